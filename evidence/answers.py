"""Systems, what they answer to held-out prompts, and what is measured of each answer.

Legend: N prompts, n answers of each. [IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import functools
import os
import random
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

import data
import generate
import interop
import sandbox
from evidence.statistics import best_of_n_kl
from model import GPT, Scorer
from train import step_seed

PREFIXES = 8            # few-shot prefixes that compete; not in [IG]
TRIALS = 64             # training prompts on which they do; not in [IG]
TEXT_BLOCK = 64         # tokens; the alignment tax is measured on blocks of this length, whatever
                        # the text, so that the losses of all models and texts compare
FORWARD = 64            # responses that are scored together, at most: more would need more pads
MOST = 100_000          # samples that a best of n chooses from
TEXT_BLOCKS = 512       # at most so many of them


# ---- systems ------------------------------------------------------------------------------------

class System(NamedTuple):
    path: str               # the checkpoint
    prompted: bool = False  # reads demonstrations before each prompt
    best_of: int = 1        # samples of which the reward model picks one; 1: the sample as it is


def system_of(spec):
    """"bon16:sft.pt" -> System("sft.pt", best_of=16). Raises ValueError."""
    if spec and (":" not in spec or os.path.exists(spec)):
        return System(os.path.normpath(spec))
    how, _, path = spec.rpartition(":")
    samples = re.fullmatch(r"bon0*(\d{1,6})", how)
    if path and how == "prompted":
        return System(os.path.normpath(path), prompted=True)
    if path and samples and 1 < int(samples[1]) <= MOST:
        return System(os.path.normpath(path), best_of=int(samples[1]))
    raise ValueError(f"{spec} is no system: give CHECKPOINT, prompted:CHECKPOINT or "
                     f"bonN:CHECKPOINT, N from 2 to {MOST:,}")


def systems_of(specs, rm="", baseline=""):
    """("sft.pt", "prompted:base.pt", "bon16:sft.pt") -> [System, ...]. `rm` is the path of the
    reward model, `baseline` one of the specs; "" for none. Raises ValueError."""
    if not specs:
        raise ValueError("name the checkpoints to compare, e.g. `python evaluate.py base.pt "
                         "sft.pt ppo.pt --rm rm.pt`")
    if baseline and baseline not in specs:
        raise ValueError(f"--baseline {baseline} is not among the systems: {', '.join(specs)}")
    found = []
    for spec in specs:
        system = system_of(spec)
        if not rm and (system.prompted or system.best_of > 1):
            raise ValueError(f"{spec} needs a reward model that chooses: pass --rm rm.pt")
        found.append(system)
    if len(set(found)) < len(found):
        raise ValueError(f"a system is named twice: {' '.join(specs)}")
    return found


def names_of(systems):
    """["base", "prompted base", "sft best of 16", ...]; with their folders if two checkpoints
    have one name."""
    paths = {s.path for s in systems}
    files = Counter(os.path.basename(path) for path in paths)
    names = []
    for system in systems:
        file = os.path.basename(system.path)
        name = system.path if files[file] > 1 else file
        name = name.removesuffix(".pt")
        if system.prompted:
            name = f"prompted {name}"
        if system.best_of > 1:
            name = f"{name} best of {system.best_of}"
        names.append(name)
    return names


class Models(NamedTuple):
    gpts: dict              # path -> GPT
    stage: dict             # path -> the stage that made it
    rm: Scorer | None
    enc: object             # the tokenizer, which all share
    context: int            # the longest context of a GPT; the reward model's is as long


def load_models(systems, rm, device):
    """The checkpoints of the systems, each once, and the reward model at path `rm` ("": none).
    Raises ValueError if they do not fit each other."""
    gpts, stage, tokenizer, enc = {}, {}, None, None
    for system in systems:
        if system.path in gpts:
            continue
        gpt, checkpoint = interop.load_model(system.path, GPT, tokenizer, device)
        tokenizer = checkpoint["tokenizer"]
        enc = interop.tokenizer_of(checkpoint, same_as=enc)
        gpts[system.path] = gpt.eval()
        stage[system.path] = checkpoint["meta"]["stage"]
    context = max(gpt.cfg.block_size for gpt in gpts.values())
    scorer = None
    if rm:
        scorer, _ = interop.load_model(rm, Scorer, tokenizer, device, context=context)
        scorer.eval()
    return Models(gpts, stage, scorer, enc, context)


def baseline_of(wanted, specs, systems, models):
    """Which of the systems the others are compared with: the one of the spec `wanted`; "": the
    first that sft.py made, or the first. Raises ValueError if it cannot read what others read."""
    plain = [k for k, s in enumerate(systems) if not s.prompted and s.best_of == 1]
    made_by_sft = [k for k in plain if models.stage[systems[k].path] == "sft"]
    baseline = made_by_sft[0] if made_by_sft else 0
    if wanted:
        baseline = specs.index(wanted)
    if models.gpts[systems[baseline].path].cfg.block_size < models.context:
        raise ValueError(f"{specs[baseline]} has a shorter context than the {models.context} "
                         f"tokens of another system: name a baseline that can read them all, "
                         f"with --baseline")
    return baseline


# ---- what is asked, shown and read ---------------------------------------------------------------

def load_prompts(cfg, systems, enc):
    """The held-out prompts, and whose score counts. Raises ValueError if there is no judge."""
    prompts = interop.load("held-out prompts", cfg.prompts, Counter(), flag="--prompts", enc=enc,
                           columns=cfg.columns, n=cfg.n, seed=cfg.seed, strict=cfg.strict)
    if all(p.meta for p in prompts):
        return prompts, "the true score"
    if not cfg.rm:
        raise ValueError(f"{' '.join(cfg.prompts)} has no answer key, so a judge is needed: "
                         f"pass --rm rm.pt")
    if not cfg.demos and any(s.prompted for s in systems):
        raise ValueError("prompted: shows demonstrations, and the sandbox's do not suit these "
                         "prompts: pass --demos FILE")
    return prompts, "the reward model"


def load_apart(cfg, enc):
    """What is asked apart from the held-out prompts, of which only the sandbox knows: dialogues of
    one to sandbox.MOST_TURNS turns, and questions about what no stage was asked. [], [] where the
    prompts are somebody's own."""
    if cfg.prompts:
        return [], []
    wanted = {"dialogues": cfg.dialogues, "untouched": cfg.untouched}
    return [interop.load(kind, (), Counter(), flag="--prompts", enc=enc, n=n, seed=cfg.seed)
            for kind, n in wanted.items()]


def load_demonstrations(cfg, prompts, systems, enc):
    """What prompted: shows, and the prompts on which that is chosen: the evaluation's stay unseen,
    unless the demonstrations answer none. Raises ValueError if nobody asked for them."""
    if not any(s.prompted for s in systems):
        if cfg.demos:
            raise ValueError("--demos is what prompted: systems read, and there are none")
        return [], []
    demos = interop.load("demonstrations", cfg.demos, Counter(), flag="--demos", enc=enc, n=400,
                         seed=cfg.seed, strict=cfg.strict)
    trials = [data.Prompt(d.messages[:-1]) for d in demos[-TRIALS:] if len(d.messages) > 1]
    if not cfg.demos:
        trials = interop.load("prompts", (), Counter(), flag="--prompts", n=TRIALS,
                              seed=f"prefixes {cfg.seed}")
    return demos, trials or prompts[:TRIALS]


def load_text(cfg, models):
    """The held-out text, tokens (N,). Raises ValueError if it is shorter than a block."""
    block = min(TEXT_BLOCK, models.context)
    blocks = interop.load_text(cfg.text, Counter(), models.enc, block, flag="--text", n=2000,
                               seed="held out", strict=cfg.strict, whole=True)
    return blocks.view(-1)


# ---- sampling: what a system answers ------------------------------------------------------------

class Response(NamedTuple):
    """One sample in the three forms in which it is read."""
    ids: list           # by the model: as it was sampled, EOS included if it came
    scored: list        # by the reward model
    text: str           # by the judge


def first_paragraph(enc, ids):
    """Sampled ids up to the first empty line, that included."""
    for t in range(len(ids)):
        # two tokens at a time: an empty line is one token or two
        if "\n\n" in enc.decode(ids[max(0, t - 1):t + 1]):
            return ids[:t + 1]
    return ids


def as_response(enc, ids, max_new, prompted=False):
    """Sampled ids -> Response.

    A base model that is prompted does not end its answer but goes on with "User:". The first empty
    line ends it ([IG] D: the first line); to the reward model, which knows no such end, it is EOS.
    """
    if prompted:
        ids = first_paragraph(enc, ids)
    text = enc.decode([t for t in ids if t != enc.eot_token])
    scored = ids
    if prompted and "\n\n" in text:
        scored = data.encode_response(enc, text)[:max_new]
    return Response(ids, scored, text.strip())


def score_responses(rm, asked, pairs, batch):
    """The reward model's scores of responses to encoded prompts: pairs [(i, ids), ...], ids being a
    response to asked[i] -> a list. Raises ValueError if one is not finite."""
    device, scores = next(rm.parameters()).device, []
    for part in data.chunks(pairs, min(batch, FORWARD)):
        # a prompt is computed once for all responses to it
        used = list(dict.fromkeys(i for i, _ in part))
        owner = torch.tensor([used.index(i) for i, _ in part], device=device)
        past = generate.prefix(rm.trunk, *data.pad([asked[i] for i in used], device), owner)
        ids, length = data.pad([ids for _, ids in part], device)
        scores += rm.score(ids, length, past).tolist()
    if not np.isfinite(scores).all():
        raise ValueError("the reward model gives scores that are not finite numbers: train it "
                         "again, or name another with --rm")
    return scores


def choose(rm, asked, responses, best_of, batch):
    """Of each `best_of` responses that lie side by side the one that the reward model scores
    highest.

    asked: N encoded prompts; responses: as many for each prompt, side by side; without a reward
    model the scores are 0. -> Responses, and a list of their scores. Raises ValueError if a score
    is not finite.
    """
    if rm is None:
        kept = responses[::best_of]
        return kept, [0.0] * len(kept)
    each = len(responses) // len(asked)
    pairs = [(k // each, tuple(r.scored)) for k, r in enumerate(responses)]
    # the same response to the same prompt comes again and again: it is scored once
    different = list(dict.fromkeys(pairs))
    score_of = dict(zip(different, score_responses(rm, asked, different, batch)))
    kept, scores = [], []
    for block in data.chunks(range(len(pairs)), best_of):
        best = max(block, key=lambda k: score_of[pairs[k]])
        kept.append(responses[best])
        scores.append(score_of[pairs[best]])
    return kept, scores


@functools.cache
def say(line):
    """Print a line, once: most systems read the same prompts."""
    print(line)


@torch.no_grad()
def respond(model, rm, enc, prompts, cfg, temperature=1.0, best_of=1, shots=(), samples=1,
            cut=False):
    """`samples` answers to each of N prompts, each the one of `best_of` responses that `rm` scores
    highest -> N lists of n Responses; their scores (N, n), 0 without `rm`.

    A prompt draws the same numbers whatever the batch it is in; cfg holds max_new, batch (how many
    responses are sampled together) and seed. `shots` are messages that `model` reads before each
    prompt, and `rm` does not; with them, or with `cut`, an answer ends with its first paragraph.
    Raises ValueError if `rm` gives a score that is not finite.
    """
    counts = Counter()
    asked, read = encoded(model, enc, prompts, cfg.max_new, shots, counts)
    # more than how many they are: some were shortened
    if len(counts) > 1:
        say(interop.report(counts))
    each, N = samples * best_of, len(prompts)
    seed = step_seed(cfg.seed, 0)
    said, scores = [None] * N, np.zeros((N, samples))
    order = sorted(range(N), key=lambda i: len(read[i]))     # of like length: few pads
    for rows in data.chunks(order, max(1, cfg.batch // each)):
        responses = []
        # more than one part only if the responses to a single prompt exceed the batch
        for part in data.chunks(range(each), cfg.batch):
            # which of the numbers that are drawn for all responses are those of these
            own = [each * i + k for i in rows for k in part]
            drawn = generate.sample(model, [read[i] for i in rows], cfg.max_new, enc.eot_token,
                                    n=len(part), temperature=temperature, seed=seed,
                                    draws=(own, each * N))
            responses += [as_response(enc, ids, cfg.max_new, prompted=bool(shots) or cut)
                          for ids in drawn.responses]
        kept, score = choose(rm, [asked[i] for i in rows], responses, best_of, cfg.batch)
        for k, i in enumerate(rows):
            own = slice(k * samples, (k + 1) * samples)
            said[i], scores[i] = kept[own], score[own]
    return said, scores


def encoded(model, enc, prompts, max_new, shots, counts):
    """Prompts as the reward model and the baseline read them, and as `model` does, which reads the
    messages `shots` before each -> two lists of ids. The latter are counted."""
    room = model.cfg.block_size - max_new
    told = [replace(p, messages=[*shots, *p.messages]) for p in prompts]
    asked = interop.encode_prompts(prompts, enc, room, Counter())
    read = interop.encode_prompts(told, enc, room, counts)
    if shots:
        # in the text that a base model knows, EOS parts documents, not what people say
        read = [[t for t in ids if t != enc.eot_token] for ids in read]
    return asked, read


# ---- measuring ----------------------------------------------------------------------------------

class Answers(NamedTuple):
    prompts: list       # the text of each prompt
    cases: list         # its use case
    texts: list         # N lists of n responses
    score: np.ndarray   # (N, n) the judge's
    judged: list | None     # N lists of n sandbox.Judgement; None if a prompt has no answer key
    rm_score: np.ndarray | None     # (N, n)
    kl: np.ndarray      # (N, n) nats, of the whole response: log pi - log pi_baseline, whose mean
                        # is the KL if responses are sampled at temperature 1, but not if they are
                        # greedy; of a best of n the bound that `answer` explains
    length: np.ndarray  # (N, n) tokens, EOS included
    ended: np.ndarray   # (N, n) bool


def judge(prompts, said):
    """N lists of n Responses -> N lists of n sandbox.Judgement; None if a prompt has no answer
    key."""
    if not all(p.meta for p in prompts):
        return None
    return [[sandbox.judge(p, r.text) for r in of_prompt] for p, of_prompt in zip(prompts, said)]


def response_logp(model, prompts, responses):
    """log pi(response | prompt), summed over its tokens: lists of N lists of ids -> (N,)."""
    device = next(model.parameters()).device
    rows = [p + r for p, r in zip(prompts, responses)]
    ids, length = data.pad(rows, device=device)
    start = torch.tensor([len(p) for p in prompts], device=device)
    mask = data.action_mask(start, length, ids.shape[1])
    return model.logp(ids, mask)[0].sum(1)


def log_ratios(model, baseline, read, asked, said, batch):
    """log pi(response | what `model` read) - log pi_baseline(response | prompt), nats, of N lists
    of n Responses -> (N, n). A response that comes again is computed once."""
    if model is baseline and read == asked:
        return np.zeros((len(said), len(said[0])))
    keys = [(i, tuple(r.ids)) for i, of_prompt in enumerate(said) for r in of_prompt]
    different = sorted(set(keys), key=lambda key: (len(read[key[0]]) + len(key[1]), key))
    ratio_of = {}
    for part in data.chunks(different, min(batch, FORWARD)):
        ids = [list(response) for _, response in part]
        ours = response_logp(model, [read[i] for i, _ in part], ids)
        theirs = response_logp(baseline, [asked[i] for i, _ in part], ids)
        ratio_of |= zip(part, (ours - theirs).tolist())
    return np.array([ratio_of[key] for key in keys]).reshape(len(said), -1)


@torch.no_grad()
def answer(model, baseline, rm, enc, prompts, temperature, cfg, best_of=1, shots=(), samples=1,
           cut=False):
    """What `respond` samples, measured -> Answers.

    The KL of a best of n is a bound: log best/pi_baseline is log best/pi, at most best_of_n_kl on
    average, and log pi/pi_baseline, which is measured on what was kept. Raises ValueError if `rm`
    gives a score that is not finite.
    """
    said, rm_score = respond(model, rm, enc, prompts, cfg, temperature, best_of, shots, samples,
                             cut)
    asked, read = encoded(model, enc, prompts, cfg.max_new, shots, Counter())
    kl = log_ratios(model, baseline, read, asked, said, cfg.batch) + best_of_n_kl(best_of)
    judged = judge(prompts, said)
    # the same response of two systems is to tie, though it was scored among others
    score = rm_score.round(3)
    if judged:
        score = np.array([[j.score for j in of_prompt] for of_prompt in judged])
    length = np.array([[len(r.ids) for r in of_prompt] for of_prompt in said])
    ended = np.array([[r.scored[-1] == enc.eot_token for r in of_prompt] for of_prompt in said])
    texts = [[r.text for r in of_prompt] for of_prompt in said]
    return Answers([str(p.messages) for p in prompts], [p.use_case for p in prompts], texts,
                   score, judged, rm_score if rm else None, kl, length, ended)


@torch.no_grad()
def text_loss(model, tokens, device, block=TEXT_BLOCK):
    """Cross-entropy of held-out pretraining text (packed, 1-D), nats a token: what alignment costs
    elsewhere ([IG] 4.2)."""
    blocks = data.cut_blocks(tokens, min(block, model.cfg.block_size))[:TEXT_BLOCKS]
    losses = []
    for rows in blocks.split(64):
        batch = data.text_batch(rows, device)
        losses.append(model.loss(*batch) * len(rows))
    return (sum(losses) / len(blocks)).item()


# ---- few-shot prefixes --------------------------------------------------------------------------

def draw_prefixes(enc, demos, room, seed):
    """At most PREFIXES prefixes, lists of messages: one to three demonstrations each, of at most
    `room` tokens together."""
    rng = random.Random(f"prefixes {seed}")
    demos = [d for d in demos if len(d.messages) > 1]        # a reply to nothing shows nothing
    fitting = []
    for n in rng.choices((1, 2, 3), k=8 * PREFIXES):
        drawn = rng.sample(demos, min(n, len(demos)))
        shots = [m for d in drawn for m in d.messages]
        if shots and len(data.encode_dialogue(enc, shots)[0]) <= room:
            fitting.append(shots)
    return fitting[:PREFIXES]


def find_prefix(model, rm, enc, trials, demos, cfg, also=()):
    """The messages to put before each prompt: the winner of a competition that the reward model
    judges ([IG] 3.5, B).

    Prefixes are tried on the prompts `trials`, which should be training prompts, if they leave
    room for nine in ten of them and of the prompts `also`, and a response, or if none does, for
    half; before a longer prompt they are shortened. Raises ValueError if none leaves so much.
    """
    room = model.cfg.block_size - cfg.max_new - len(enc.encode_ordinary("\n\n"))
    asked = interop.encode_prompts([*trials, *also], enc, room, Counter())
    lengths = sorted(len(ids) for ids in asked)
    for long in (lengths[9 * len(lengths) // 10], lengths[len(lengths) // 2]):
        prefixes = draw_prefixes(enc, demos, room - long, cfg.seed)
        if prefixes:
            break
    else:
        raise ValueError(f"no demonstration leaves room for the prompts (half have up to "
                         f"{long} tokens) and --max-new {cfg.max_new} in a context of "
                         f"{model.cfg.block_size}: pass shorter --demos or --prompts, or lower "
                         f"--max-new")
    scores = []
    for shots in prefixes:
        answers = answer(model, model, rm, enc, trials, 1.0, cfg, shots=shots)
        scores.append(answers.rm_score.mean())
    best = int(np.argmax(scores))
    said = " | ".join(m["content"] for m in prefixes[best])
    print(f"prefix {best + 1} of {len(scores)} won: RM score {scores[best]:.3f}, the worst "
          f"{min(scores):.3f}, on {len(trials)} training prompts: {said}")
    return prefixes[best]
