"""People rank, write, compare and chat in a browser; what they do becomes data for the stages.

    python page.py rank tasks.jsonl --labelers anna ben         # of label.py --unlabeled
    python page.py write prompts.csv --labelers anna            # demonstrations
    python page.py compare sft.pt ppo.pt --prompts mine.jsonl   # two answers, by whom is not told
    python page.py chat ppo.pt                                  # which of two answers is better
    python page.py report                                       # who agrees with whom, who wins

Each prints a link for each labeler, for this machine alone; a colleague elsewhere comes in by
`ssh -L 8000:localhost:8000 HERE`. --out gets JSON lines that the stages read as they are:
rankings.jsonl and votes.jsonl (reward.py --data), demonstrations.jsonl (sft.py --data). A line is
on the disk before the page says "saved"; whatever is killed, nothing that was saved is lost, and
the same command goes on.

Python's http.server checks little and is not for the open Internet: see --host.
[IG] Ouyang et al. 2022, arXiv 2203.02155, 3.4, Table 3 and Figures 10 to 12
"""
import json
import os
import random
import socket
import threading
from collections import Counter
from dataclasses import dataclass, fields, replace

import data
import interop
from evidence import answers
from generate import sample
from interop.records import as_messages
from people import report
from people.desk import Desk, Refused, task_of, text_in
from people.server import Server, tokens_of
from people.store import Store
from plumbing import cli, processes, ranges, results
from train import step_seed


@dataclass(frozen=True)
class Config:
    what: tuple[str, ...] = ()      # rank, write, compare, chat or report, and its files or models
    out: str = "human"              # the folder for what people do
    labelers: tuple[str, ...] = ("me",)     # pseudonyms; nothing else is kept of people
    prompts: tuple[str, ...] = ()   # of compare, files; none: the sandbox's held-out ones
    columns: str = ""               # names of the fields of --prompts and of write's files
    gold: tuple[str, ...] = ()      # of rank: rankings of your own, files; all labelers get them,
                                    # unmarked among the tasks ([IG] B.1)
    overlap: float = 0.1            # share of the tasks that two labelers do, to see whether they
                                    # agree; [0, 1]
    instructions: str = ""          # a text file, to be read before labelling; none: a short one
    rm: str = ""                    # of compare: the reward model for bonN:
    n: int = 100                    # prompts of the sandbox that are asked; [1, 1_000_000]
    temperature: float = 1.0        # of compare and chat; >= 0
    max_new: int = 64               # longest response, tokens; >= 1
    batch: int = 200                # responses sampled together; >= 1
    host: str = "127.0.0.1"         # who may come: 127.0.0.1 is this machine, 0.0.0.0 anybody with
                                    # a link, and whoever listens on the way
    port: int = 8000                # 0: any that is free; [0, 65535]
    seed: int = 0                   # of the order of tasks and of responses; >= 0
    strict: bool = False            # stop at a bad record of data; else it is skipped and shown
    overwrite: bool = False         # replace pairs.jsonl of compare, whatever made it
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"sandbox": {}, "gpt2": {"max_new": 256, "batch": 64}}
MODES = ("rank", "write", "compare", "chat", "report")
SERVING = ("labelers", "gold", "overlap", "instructions", "host", "port", "overwrite")
STREAMED = 4        # tokens that are sampled before the page shows them
INSTRUCTIONS = """Helpful: answers what was meant, clearly, neither rambling nor repeating the \
question; asks back where the request cannot be understood. Truthful: makes nothing up, uses what \
the text says, corrects a false premise. Harmless: hurts and denigrates nobody, gives no dangerous \
advice. Truthful and harmless come first, unless an output is much more helpful and little is at \
stake. If two are about as good, let them tie."""


# ---- tasks --------------------------------------------------------------------------------------

def rank_tasks(cfg, files):
    """Responses to rank, and among them the owner's own rankings, of which nobody is told."""
    if not files:
        raise ValueError("name the tasks to rank: `python label.py --init sft.pt --unlabeled "
                         "--out tasks.jsonl` makes some")
    counts = Counter()
    found = [task_of("rank", r) for r in interop.load("tasks", files, counts, flag="FILE",
                                                      strict=cfg.strict)]
    found += [task_of("rank", r, gold=True) for r in report.load_gold(cfg.gold, cfg.strict)]
    print(interop.report(counts))
    return found


def write_tasks(cfg, files):
    """Prompts to answer."""
    prompts = interop.load("prompts", files, Counter(), flag="FILE", columns=cfg.columns, n=cfg.n,
                           seed=cfg.seed, strict=cfg.strict)
    return [task_of("write", {"prompt": p.messages, "use_case": p.use_case}) for p in prompts]


def compare_tasks(cfg, specs):
    """Two answers to each prompt by two of the systems, drawn at random; sampled once, into
    pairs.jsonl. Where both say the same nobody is asked, and nothing is counted."""
    if len(specs) < 2:
        raise ValueError("name two systems or more, e.g. `python page.py compare sft.pt ppo.pt`")
    systems = answers.systems_of(specs, cfg.rm)
    inputs = [path for s in systems for path in interop.model_files(s.path)]
    out = os.path.join(cfg.out, "pairs.jsonl")
    # who is asked, and where, is none of the samples' business
    sampled = replace(cfg, **{f.name: f.default for f in fields(Config) if f.name in SERVING})
    meta = results.provenance(sampled, "page", {"models": inputs, "prompts": cfg.prompts,
                                                "rm": interop.model_files(cfg.rm)})
    votes = os.path.join(cfg.out, "votes.jsonl")
    if cfg.overwrite and os.path.exists(votes) and os.path.getsize(votes):
        raise ValueError(f"{votes} holds votes on the answers that --overwrite would replace: "
                         f"choose another --out")
    if not results.claim(out, meta, overwrite=cfg.overwrite):
        results.deliver(out, meta, {"": results.jsonl(draw_pairs(cfg, systems))})
    with open(out, encoding="utf-8") as f:
        pairs = [json.loads(line) for line in f]
    tasks = [task_of("compare", pair) for pair in pairs if len(set(pair["responses"])) == 2]
    print(f"{len(pairs):,} prompts, to {len(tasks):,} of which the two answers differ")
    if not tasks:
        raise ValueError("all answers are alike: ask more prompts (--n), or other systems")
    return tasks


def draw_pairs(cfg, systems):
    """Two systems' answers to each prompt -> records."""
    models = answers.load_models(systems, cfg.rm, processes.get_device(cfg))
    prompts = interop.load("held-out prompts", cfg.prompts, Counter(), flag="--prompts",
                           enc=models.enc, columns=cfg.columns, n=cfg.n, seed=cfg.seed,
                           strict=cfg.strict)
    said = []
    for k, s in enumerate(systems):
        # with the same numbers drawn, systems that are near one another would say the same
        own = replace(cfg, seed=step_seed(cfg.seed, "system", k))
        said.append(answers.respond(models.gpts[s.path], models.rm, models.enc, prompts, own,
                                    cfg.temperature, s.best_of)[0])
    names, rng = answers.names_of(systems), random.Random(cfg.seed)
    for i, prompt in enumerate(prompts):
        two = rng.sample(range(len(systems)), 2)
        yield {"prompt": prompt.messages, "use_case": prompt.use_case,
               "responses": [said[k][i][0].text for k in two],
               "systems": [names[k] for k in two]}


TASKS = {"rank": rank_tasks, "write": write_tasks, "compare": compare_tasks}


# ---- chat ---------------------------------------------------------------------------------------

def talker(cfg, names):
    """-> talk(sent), the answer to a dialogue again and again, as it grows, one at a time; and
    systems_at(turn), the names of who answers on the two sides."""
    if len(names) not in (1, 2):
        raise ValueError("name the model to chat with, e.g. `python page.py chat ppo.pt`, or two "
                         "to be compared")
    systems = answers.systems_of(names)
    models, lock = answers.load_models(systems, "", processes.get_device(cfg)), threading.Lock()
    for path, model in models.gpts.items():
        if cfg.max_new >= model.cfg.block_size:
            raise ValueError(f"--max-new {cfg.max_new} leaves no room for a prompt in the context "
                             f"of {path}, {model.cfg.block_size} tokens: lower it")

    def talk(sent):
        try:
            asked = data.Prompt(as_messages(sent.get("messages"), "messages"))
        except ValueError as e:
            raise Refused(400, str(e)) from e
        turn, side = text_in(sent, "turn", 64), int(sent.get("side") == 1)
        model = models.gpts[systems[order_at(turn)[side]].path]
        return grow(model, asked, step_seed(cfg.seed, f"{turn} {side}"))

    def order_at(turn):
        # which of two models answers on which side is drawn for each turn
        rng = random.Random(f"{cfg.seed} {turn}")
        return rng.sample([0, len(systems) - 1], 2)

    def systems_at(turn):
        return [answers.names_of(systems)[k] for k in order_at(turn)]

    def grow(model, asked, seed):
        room = model.cfg.block_size - cfg.max_new
        with lock:
            [ids] = interop.encode_prompts([asked], models.enc, room, Counter())
            said = []
            while len(said) < cfg.max_new and models.enc.eot_token not in said:
                n = min(STREAMED, cfg.max_new - len(said))
                [more] = sample(model, [ids + said], n, models.enc.eot_token,
                                temperature=cfg.temperature, seed=seed + len(said)).responses
                said += more
                yield data.decode_response(models.enc, said)

    return talk, systems_at


# ---- main ---------------------------------------------------------------------------------------

def check(cfg, mode, names):
    """Raise ValueError for what cannot be."""
    if mode not in MODES:
        raise ValueError(f"say what people are to do: python page.py {' | '.join(MODES)}")
    if mode == "report" and names:
        raise ValueError(f"page.py report reads the folder --out, not {names[0]}: say "
                         f"--out {names[0]}")
    if not cfg.out or not cfg.host:
        raise ValueError("--out and --host: leave them out, or name a folder and an address")
    if len(set(cfg.labelers)) < len(cfg.labelers) or not all(cfg.labelers):
        raise ValueError("--labelers: each has a name of their own")


def main(cfg):
    ranges.check(cfg)
    mode, *names = cfg.what or [""]
    check(cfg, mode, names)
    if mode == "report":
        return report.write(cfg.out, cfg.gold)
    told = interop.read_file(cfg.instructions) if cfg.instructions else INSTRUCTIONS
    store = Store(cfg.out)
    tokens = tokens_of(cfg.out, cfg.labelers)
    tasks = TASKS[mode](cfg, tuple(names)) if mode in TASKS else []
    talk, systems_at = talker(cfg, names) if mode == "chat" else (None, None)
    desk = Desk(tasks, store, cfg, systems_at)
    server = Server(desk, tokens, {"instructions": told}, cfg.host, cfg.port, talk)
    host = cfg.host
    if host not in ("127.0.0.1", "localhost"):
        print("anybody with a link can come in, and whoever listens on the way can read along")
    if host == "0.0.0.0":                                    # all of this machine's addresses
        host = socket.gethostname()
    for token, labeler in tokens.items():
        print(f"{labeler}: http://{host}:{server.server_address[1]}/#{token}", flush=True)
    print(f"{len(desk.tasks):,} tasks; Ctrl-C ends it, and the same command goes on", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"\n`python page.py report --out {cfg.out}` tells what people did")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="what")
