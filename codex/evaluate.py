"""pass@k: programs are sampled, run against the tests of their problems, and counted.

    python -m codex.evaluate base.pt --n 200 --k 1 10 100       # the toy language's held-out pairs
    python -m codex.evaluate folder/ --problems HumanEval.jsonl.gz --n 20       # runs Python

Writes into a folder samples.jsonl, each sample with its verdict, report.json, report.md and, if
matplotlib is installed, pass_at_k.png. A run that was interrupted goes on. The page also says how
often one sample passes that is chosen of all n of a problem: by its log-probability or, which only
tests can do, a right one if there is any ([Codex] 3.3).

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
import interop
from codex import language, runner
from codex.passk import mean_pass_at_k
from evidence.statistics import interval
from generate import sample
from model import GPT
from plumbing import cli, files, processes, results
from train import step_seed

STOPS = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint")     # [Codex] 3.1: what ends a program


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ()    # checkpoints, or folders of a GPT-2
    problems: str = ""              # HumanEval or MBPP as published; none: the toy language's
    toy: int = 100                  # problems of the toy language; [1, 1_000_000]
    n: int = 100                    # samples of each problem; [1, 100_000]
    k: tuple[int, ...] = (1, 10, 100)               # what pass@k is wanted for; >= 1
    temperatures: tuple[float, ...] = (0.2, 0.8)    # 0 is greedy; >= 0
    top_p: float = 0.95             # [Codex] 3.1: the likeliest tokens of this probability; (0, 1]
    max_new: int = 128              # longest program, tokens; >= 1
    batch: int = 100                # programs sampled together, a matter of memory; >= 1
    workers: int = 0                # Python programs run at once, 0: two a core; >= 0
    out: str = "pass-at-k"          # the folder to write
    seed: int = 0                   # of the samples, and of the toy problems; >= 0
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"toy": {}, "gpt2": {"max_new": 300, "batch": 20, "n": 20, "k": (1, 10)}}
FILES = ("samples.jsonl", "report.json", "report.md", "pass_at_k.png")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


# ---- samples ------------------------------------------------------------------------------------

class Coder(NamedTuple):
    """A model that writes programs."""
    gpt: GPT
    enc: object
    chats: bool         # it was fine-tuned: it is asked in the chat's template


def load(path, device="cpu"):
    """A checkpoint or a GPT-2's folder -> Coder. Raises ValueError."""
    gpt, checkpoint = interop.load_model(path, GPT, device=device)
    chats = checkpoint["meta"].get("stage") in ("sft", "ppo", "rloo", "dpo")
    return Coder(gpt.eval(), interop.tokenizer_of(checkpoint), chats)


def cut(enc, ids):
    """Sampled ids -> the text before the first of STOPS or the end, and how many of the ids were
    needed to see it end."""
    pieces = [b"" if t == enc.eot_token else enc.decode_single_token_bytes(t) for t in ids]
    text = b"".join(pieces)
    # 1: where the prompt is only a docstring, a program begins with one of them
    stop = re.compile(b"|".join(map(re.escape, STOPS))).search(text, 1)
    if not stop:
        return text.decode(errors="replace"), len(ids)
    lengths = np.cumsum([len(piece) for piece in pieces])
    return text[:stop.start()].decode(errors="replace"), int((lengths < stop.end()).sum()) + 1


@torch.no_grad()
def write_programs(coder, prompt, n, temperature, seed, max_new=128, top_p=1.0, batch=100):
    """n programs that go on from a prompt, Python -> [{"program", "logp", "tokens"}, ...]: logp is
    the sum of its tokens' log-probabilities at temperature 1, nats.

    Raises ValueError if prompt and program do not fit the model's context.
    """
    gpt, enc, chats = coder
    # a prompt's last newline and a program's indentation are one token
    asked = prompt.rstrip("\n")
    ids = enc.encode_ordinary(asked)
    if chats:
        ids = data.encode_prompt(enc, [{"role": "user", "content": asked}])
    found = []
    for part, rows in enumerate(data.chunks(range(n), batch)):
        drawn = sample(gpt, [ids], max_new, enc.eot_token, n=len(rows), temperature=temperature,
                       top_p=top_p, seed=step_seed(seed, part))
        ends = [cut(enc, response) for response in drawn.responses]
        length = torch.tensor([len(ids) + tokens for _, tokens in ends])
        start = torch.full_like(length, len(ids))
        mask = data.action_mask(start, length, drawn.ids.shape[1])
        logp, _ = gpt.logp(drawn.ids, mask)
        for (text, tokens), total in zip(ends, logp.sum(1).tolist()):
            program = language.complete(asked + "\n", text) if chats else asked + text
            found.append({"program": program, "logp": total, "tokens": tokens})
    return found


# ---- verdicts -----------------------------------------------------------------------------------

def python_judge(path, workers):
    """Problems as published -> those whose own solution passes, and a function of a problem and
    some programs that gives their verdicts. Raises ValueError."""
    found, layers = runner.read_problems(path), runner.layers_here()
    pool = ThreadPoolExecutor(workers or 2 * os.cpu_count())
    ways = dict(zip(found, pool.map(partial(runner.way, layers=layers), found)))
    kept = [p for p in found if ways[p]]
    whole = sum(ways[p] == "whole" for p in kept)
    print(f"{len(kept)} of {len(found)} problems are passed by their own solution and are asked; "
          f"{whole} of them show the program their tests")

    def judge(problem, programs):
        different = list(dict.fromkeys(programs))
        run = partial(runner.run, problem, layers=layers, whole=ways[problem] == "whole")
        verdicts = pool.map(lambda program: run(program).verdict, different)
        of = dict(zip(different, verdicts))
        return [of[program] for program in programs]
    return kept, judge


def toy_judge(cfg):
    """The same for the toy language."""
    found = language.problems(cfg.toy, cfg.seed)
    return found, lambda problem, programs: [language.verdict(problem, x) for x in programs]


# ---- figures ------------------------------------------------------------------------------------

def figures(samples, ks):
    """What samples of one model at one temperature say, dictionaries of samples.jsonl ->
    {"pass@k": [mean, half-width of its 95 % interval, problems], ..., "chosen by ...": a share}."""
    by_problem = {}
    for s in samples:
        if s["verdict"] != "infrastructure":
            by_problem.setdefault(s["problem"], []).append(s)
    groups = [*by_problem.values()]
    counts = [(len(g), sum(s["verdict"] == "pass" for s in g)) for g in groups]
    found = {f"pass@{k}": mean_pass_at_k(counts, k) for k in ks}

    def chosen(key):
        best = [max(g, key=key) for g in groups]
        values = [s["verdict"] == "pass" for s in best]
        mean, half = interval(values)
        return [float(mean), float(half), len(values)]

    found["chosen by mean log p"] = chosen(lambda s: s["logp"] / s["tokens"])
    found["chosen by sum log p"] = chosen(lambda s: s["logp"])
    found["chosen by tests"] = chosen(lambda s: s["verdict"] == "pass")
    return found


def mechanisms(rows, k):
    """What the paper saw and whether these rows show it, `k` being the largest of their pass@k ->
    [(sentence, figures, bool), ...]"""
    found, of_first, many = [], {}, f"pass@{k}"
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["temperature"]: row["figures"] for row in rows if row["model"] == model}
        best = {what: max(own, key=lambda t: own[t][what][0] or 0.0) for what in ("pass@1", many)}
        value = {what: 100 * (own[best[what]][what][0] or 0.0) for what in best}
        if len(own) > 1:
            found.append((f"{model}: many samples want a higher temperature (Fig. 5)",
                          f"{best['pass@1']} for pass@1, {best[many]} for {many}",
                          best["pass@1"] < best[many]))
        one, mean, total = (100 * own[max(own)][what][0] for what in
                            ("pass@1", "chosen by mean log p", "chosen by sum log p"))
        chosen = f"at random {one:.1f}, by mean {mean:.1f}, by sum {total:.1f}"
        what = "the mean log-probability chooses better than chance, the sum does not (Fig. 7)"
        found.append((f"{model}: {what}", chosen, mean > one >= total))
        for what, was in of_first.items():
            found.append((f"{model}: {what} is higher than the first model's",
                          f"{was:.1f} → {value[what]:.1f}", value[what] > was))
        of_first = of_first or value
    return found


def page(report):
    """The report as Markdown."""
    first = report["rows"][0]["figures"]
    about = (f"{report['problems']} problems, {report['n']} samples of each; mean and 95 % "
             "interval over problems, per cent")
    lines = ["# pass@k", "", about, "",
             f"| model | temperature | {' | '.join(first)} |", "|---" * (2 + len(first)) + "|"]
    for row in report["rows"]:
        cells = ["-" if mean is None else f"{100 * mean:.1f} ± {100 * half:.1f}"
                 for mean, half, _ in row["figures"].values()]
        lines.append(f"| {row['model']} | {row['temperature']} | {' | '.join(cells)} |")
    verdicts = ", ".join(f"{n:,} {name}" for name, n in sorted(report["verdicts"].items()))
    seen = [f"- {'yes' if holds else 'no'}: {what}: {said}" for what, said, holds in
            mechanisms(report["rows"], report["k"])]
    return "\n".join([*lines, "", f"Verdicts: {verdicts}.", "", "What [Codex] saw, here:", "",
                      *seen, ""])


def draw(report, samples, f):
    """pass@k against k, a line for each model and temperature, into f."""
    from matplotlib import pyplot as plt
    ks = np.unique(np.geomspace(1, report["n"], 12).round().astype(int)).tolist()
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    models, temperatures = ([*dict.fromkeys(row[what] for row in report["rows"])]
                            for what in ("model", "temperature"))
    styles, shades = dict(zip(models, ("-", "--", ":", "-."))), dict(zip(temperatures, COLOURS))
    for row, own in zip(report["rows"], samples):
        found = figures(own, ks)
        means = [100 * found[f"pass@{k}"][0] for k in ks]
        ax.plot(ks, means, styles.get(row["model"], "-"), color=shades.get(row["temperature"]),
                label=f"{row['model']}, T = {row['temperature']}")
    ax.set(xscale="log", xlabel="k", ylabel="pass@k, %", ylim=(0, None))
    ax.legend(frameon=False)
    figure.savefig(f, format="png", dpi=130)
    plt.close(figure)


# ---- a run --------------------------------------------------------------------------------------

def read_part(path, meta):
    """The samples of an unfinished run, {(model, temperature, problem): samples}, begun by the same
    command. Raises ValueError if it was another."""
    if not os.path.exists(path):
        with open(path, "w", encoding="utf-8") as f:
            f.write(json.dumps(meta) + "\n")
    with open(path, "r+", encoding="utf-8") as f:
        text = f.read()
        whole = text[:text.rfind("\n") + 1]         # the last line may have been cut off
        f.truncate(len(whole.encode()))
    first, *groups = map(json.loads, whole.splitlines())
    if not results.same_command(first, json.loads(json.dumps(meta))):
        raise ValueError(f"{path} is of an unfinished run with other settings: go on with those, "
                         f"remove it, or choose another --out")
    return {tuple(group["of"]): group["samples"] for group in groups}


def collect(cfg, path, problems, judge, part, meta):
    """All samples of a model, lists by temperature; those of each problem are appended to the file
    `part` as they come."""
    coder, done = None, read_part(part, meta)
    name, found = os.path.basename(path.rstrip("/")).removesuffix(".pt"), []
    for temperature in cfg.temperatures:
        own = []
        for problem in tqdm(problems, f"{name}, T = {temperature}", mininterval=5):
            of = (name, temperature, problem.name)
            if of not in done:
                coder = coder or load(path, processes.get_device(cfg))
                seed = step_seed(cfg.seed, f"{problem.name} {temperature}")
                samples = write_programs(coder, problem.prompt, cfg.n, temperature, seed,
                                         cfg.max_new, cfg.top_p, cfg.batch)
                verdicts = judge(problem, [s["program"] for s in samples])
                done[of] = [dict(zip(("model", "temperature", "problem"), of)) | s | {"verdict": v}
                            for s, v in zip(samples, verdicts)]
                with open(part, "a", encoding="utf-8") as f:
                    f.write(json.dumps({"of": of, "samples": done[of]}) + "\n")
            own += done[of]
        found.append(own)
    return found


def main(cfg):
    if not cfg.models:
        raise ValueError("name the models, e.g. `python -m codex.evaluate base.pt sft.pt`")
    if 1 not in cfg.k or cfg.n < 1:
        raise ValueError("--k names at least 1, the samples one by one")
    for path in cfg.models:
        files.require("the model", interop.model_files(path), "python pretrain.py --out base.pt")
    checkpoints = [file for path in cfg.models for file in interop.model_files(path)]
    meta = results.provenance(cfg, "pass at k", {
        "models": checkpoints, "problems": (cfg.problems,) if cfg.problems else ()})
    if not results.claim(cfg.out, meta, FILES):
        problems, judge = toy_judge(cfg)
        if cfg.problems:
            problems, judge = python_judge(cfg.problems, cfg.workers)
        part, samples = os.path.join(cfg.out, "samples.part"), []
        for path in cfg.models:
            samples += collect(cfg, path, problems, judge, part, meta)
        rows = [{"model": own[0]["model"], "temperature": own[0]["temperature"],
                 "figures": figures(own, cfg.k)} for own in samples]
        verdicts = Counter(s["verdict"] for own in samples for s in own)
        report = {"problems": len(problems), "n": cfg.n, "k": max(k for k in cfg.k if k <= cfg.n),
                  "rows": rows, "verdicts": verdicts}
        writers = (results.jsonl(s for own in samples for s in own),
                   lambda f: json.dump(report, f, indent=1), lambda f: f.write(page(report)),
                   partial(draw, report, samples))
        results.deliver(cfg.out, meta, dict(zip(FILES, writers)))
        os.remove(part)
    with open(os.path.join(cfg.out, "report.md"), encoding="utf-8") as f:
        print(f.read())


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="models")
