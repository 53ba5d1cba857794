"""Codex on the toy language: the experiments behind claims 24 to 31.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import json
import math
import os
import random
import re
import zlib
from collections import Counter

import numpy as np
import torch

import data
import interop
import pretrain
import sft
from codex import evaluate, language
from evidence import passes
from evidence.answers import response_logp, text_loss
from evidence.statistics import win_rate
from forks import rloo
from generate import sample
from plumbing.interpreter import right
from train import step_seed

PROBLEMS, N = 48, 100       # a third each of two to four blocks, and samples of each
LONGEST = 112               # tokens of a program
COLD, WARM, HOT = TEMPERATURES = 0.2, 0.8, 1.2
KS = (1, 2, 5, 10, 20, 50, 100)
BLOCKS = {"two": 2, "three": 3, "four": 4}
BASE = {"tokens": 1_500_000, "n_embd": 96, "context": 256, "block": 256, "batch": 8}
SMALL = {"n_embd": 32, "n_layer": 2, "lr": 5e-3}
TUNED = {"epochs": 2, "lr": 2e-3, "ptx_mix": 0.0, "max_new": 100}
TESTED = {"reward": "codex.language:passes", "k": 8, "max_new": 100, "kl_coef": 0.01, "lr": 1e-4,
          "warmup": 5}


def corpus_of(toy):
    """Settings of pretrain.py: a base that reads the files of a folder of the toy language."""
    return {"data": (f"{toy}/corpus.jsonl",), "tokenizer": f"{toy}/toy.tiktoken"} | BASE


def models(w):
    """The folder of the toy language, the base that has read its files, and Codex-S: SFT on right
    standalone functions."""
    toy = w.make("toy", language)
    base = w.make("code.pt", pretrain, **corpus_of(toy))
    tuned = w.make("code-s.pt", sft, init=base, data=(f"{toy}/functions.jsonl",), **TUNED)
    return toy, base, tuned


# ---- what samples say ---------------------------------------------------------------------------

def bleu(text, reference):
    """BLEU of a program against another, of one to four pieces, each precision with one added to
    both of its counts -> 0 to 1. Papineni et al. 2002; Lin and Och 2004"""
    ours, theirs = (re.findall(r"\w+|[^\w\s]", x) for x in (text, reference))
    logs = []
    for n in range(1, 5):
        mine, wanted = (Counter(zip(*(x[i:] for i in range(n)))) for x in (ours, theirs))
        logs.append(math.log((sum((mine & wanted).values()) + 1) / (sum(mine.values()) + 1)))
    short = min(0.0, 1 - len(theirs) / max(1, len(ours)))
    return math.exp(short + sum(logs) / 4)


def sampled(w, path, temperature, asked, n=N):
    """n programs of a checkpoint for each problem, with their verdicts, dictionaries; the programs
    are kept in a file."""
    def records():
        coder, found = evaluate.load(path), []
        for problem in asked:
            seed = step_seed(w.seed, f"{problem.name} {temperature}")
            found.append(evaluate.write_programs(coder, problem, n, temperature, seed, LONGEST))
        return [{"programs": written} for written in found]
    what = {"temperature": temperature, "n": n, "longest": LONGEST,
            "asked": [problem.prompt for problem in asked]}
    key = zlib.crc32(json.dumps(what).encode())
    with open(w.derive(f"{os.path.basename(path)}-{key}.jsonl", what, [path], records)) as f:
        written = [json.loads(line)["programs"] for line in f]
    found = []
    for problem, samples in zip(asked, written, strict=True):
        about = {"problem": problem.name, "reference": problem.solution,
                 "blocks": len(language.chain_of(problem.prompt))}
        verdicts = language.verdicts(problem, [s["program"] for s in samples])
        found += [s | about | {"verdict": v} for s, v in zip(samples, verdicts)]
    return found


def share(samples, blocks):
    """How many of the samples pass, of problems of so many blocks."""
    return np.mean([s["verdict"] == "pass" for s in samples if s["blocks"] == blocks])


def by_bleu(samples):
    """How often a right program has a higher BLEU than a wrong one of the same problem: a mean over
    the problems that have both. Raises ValueError if there are none."""
    found = []
    for group in passes.by_problem(samples).values():
        of = {True: [], False: []}
        for s in group:
            value = bleu(s["program"].split('"""\n')[-1], s["reference"])
            of[s["verdict"] == "pass"].append(value)
        if of[True] and of[False]:
            found.append(win_rate(np.array([of[True]]), np.array([of[False]])))
    if not found:
        raise ValueError("no problem has right programs and wrong ones")
    return np.mean(found)


def context(problem, seed, slip):
    """A function to stand before a problem, right, or with a slip that makes it wrong."""
    rng = random.Random(f"context {seed} {problem.name}")
    chain = language.draw_chain(rng, 2)
    while True:
        program = language.head(language.docstring(chain)) + language.body(rng, chain, slip)
        if right(program, language.examples(chain)) != slip:
            return program


def in_context(w, path, slip):
    """The share of right programs that follow another function, one with a slip or a right one, at
    temperature COLD; problems of one or two blocks, whose pairs the corpus has."""
    coder, found = evaluate.load(path), []
    for problem in language.problems(PROBLEMS, f"context {w.seed}", (1, 2), held_out=False):
        before = context(problem, w.seed, slip) + "\n\n"
        seed = step_seed(w.seed, problem.name)
        after = problem._replace(prompt=before + problem.prompt)
        written = evaluate.write_programs(coder, after, 20, COLD, seed, 80)
        found += language.verdicts(problem, [s["program"][len(before):] for s in written])
    return found.count("pass") / len(found)


def lost(figures):
    """By how much a slip before it lowers the share of right programs."""
    return figures["after right"] - figures["after slip"]


# ---- the story ----------------------------------------------------------------------------------

def most(figures):
    """pass@100 at the better one of WARM and HOT."""
    return max(figures["pass@100 warm"], figures["pass@100 hot"])


def programs(w):
    """A base that has read files, SFT on right standalone functions (Codex-S), and RLOO with the
    tests as its reward.

    Arms: base; tuned; tested; small, a base with an eighth of the weights.

    Figures:
        pass@1 cold, pass@1 warm, pass@1 hot            at COLD, WARM and HOT
        pass@100 cold, pass@100 warm, pass@100 hot
        mean, sum                   of the samples chosen of 100 by log-probability, WARM
        bleu                        how often a right one has more BLEU than a wrong one, WARM
        cold, warm, hot             lists: pass@k for each of KS; the plot has cold and warm
        two, three, four            of problems of so many blocks the share of right programs, COLD
        after right, after slip     of base and small: right programs that follow a right function,
                                    or one with a slip
    """
    toy, base, tuned = models(w)
    small = w.make("code-small.pt", pretrain, **corpus_of(toy) | SMALL)
    tested = w.make("code-rl.pt", rloo, init=tuned, prompts=(f"{toy}/prompts.jsonl",), **TESTED)
    asked, figures = language.problems(PROBLEMS, w.seed), {"small": {}}
    for arm, path in (("base", base), ("tuned", tuned), ("tested", tested)):
        cold, warm, hot = (sampled(w, path, temperature, asked) for temperature in TEMPERATURES)
        found = passes.figures(warm, KS)
        figures[arm] = of = {"bleu": by_bleu(warm)}
        of |= {name: found[f"chosen by {name} log p"][0] for name in ("mean", "sum")}
        of |= {name: share(cold, blocks) for name, blocks in BLOCKS.items()}
        for name, samples in (("cold", cold), ("warm", warm), ("hot", hot)):
            found = passes.figures(samples, KS)
            of[name] = [found[f"pass@{k}"][0] for k in KS]
            of |= {f"pass@{k} {name}": found[f"pass@{k}"][0] for k in (1, 100)}
    for arm, path in (("base", base), ("small", small)):
        figures[arm] |= {"after right": in_context(w, path, slip=False),
                         "after slip": in_context(w, path, slip=True)}
    return figures


# ---- the data filters ---------------------------------------------------------------------------

def is_written(text):
    """Whether a file passes for one that people wrote: [Codex] 3.1, its lines have 100 characters
    on average or fewer, and 1,000 at most."""
    lengths = [len(line) for line in text.splitlines()]
    return np.mean(lengths) <= 100 and max(lengths) <= 1000


def data_filters(w):
    """Bases that read as many tokens of all files, or of those that people wrote.

    Arms: all; kept.

    Figures:
        tokens          of the corpus, a number
        loss            on new files that people wrote, nats a token
        pass@100        WARM
    """
    toy = w.make("toy", language)
    with open(f"{toy}/corpus.jsonl") as f:
        texts = [json.loads(line)["text"] for line in f]
    written = [text for text in texts if is_written(text)]
    kept = w.derive("kept.jsonl", {"filter": "[Codex] 3.1"}, [f"{toy}/corpus.jsonl"],
                    lambda: [{"text": text} for text in written])
    asked, figures = language.problems(PROBLEMS, w.seed), {}
    new = [text for text in language.corpus(1000, f"held out {w.seed}") if is_written(text)]
    every, those = corpus_of(toy), corpus_of(toy) | {"data": (kept,)}
    for arm, name, read, files in (("all", "code.pt", every, texts),
                                   ("kept", "kept.pt", those, written)):
        base = w.make(name, pretrain, **read)
        gpt, enc, _ = evaluate.load(base)
        figures[arm] = {
            "tokens": len(interop.pack(files, enc)),
            "loss": text_loss(gpt, interop.pack(new, enc), "cpu", gpt.cfg.block_size),
            "pass@100": passes.figures(sampled(w, base, WARM, asked), (N,))[f"pass@{N}"][0]}
    return figures


# ---- reranking ----------------------------------------------------------------------------------

DOCSTRING = re.compile(r' *(""".+""")\n?')


def forward(program):
    """A program -> messages: its head with the docstring, and its body."""
    end = DOCSTRING.search(program).end()
    return [{"role": "user", "content": program[:end].rstrip("\n")},
            {"role": "assistant", "content": program[end:]}]


def backward(program):
    """A program -> messages: its code without the docstring, and that as it stands in files."""
    told = DOCSTRING.search(program)
    code = program[:told.start()] + program[told.end():]
    return [{"role": "user", "content": code.rstrip("\n")},
            {"role": "assistant", "content": told[1]}]


@torch.no_grad()
def likely(path, chats):
    """The mean log-probability, nats, of the tokens of each chat's last message by a checkpoint ->
    list. Of what does not fit its context it is minus infinity."""
    gpt, enc, _ = evaluate.load(path)
    found, logp = [], {}
    for *asked, answered in chats:
        prompt = data.encode_prompt(enc, asked)
        response = data.encode_response(enc, answered["content"])
        pair = tuple(prompt), tuple(response)
        if len(prompt) + len(response) > gpt.cfg.block_size:
            logp[pair] = -math.inf
        elif pair not in logp:
            logp[pair] = response_logp(gpt, [prompt], [response]).item() / len(response)
        found.append(logp[pair])
    return found


def told(path, chats):
    """How often a checkpoint says of itself, greedily, the last message of a chat."""
    gpt, enc, _ = evaluate.load(path)
    prompts = [data.encode_prompt(enc, asked) for *asked, _ in chats]
    said = sample(gpt, prompts, 60, enc.eot_token, temperature=0.0).responses
    wanted = [answered["content"] for *_, answered in chats]
    return np.mean([data.decode_response(enc, ids) == x for ids, x in zip(said, wanted)])


def chosen(samples, scores):
    """The share of the problems whose sample of the highest score, the first of such, passes."""
    scored = [s | {"score": score} for s, score in zip(samples, scores, strict=True)]
    return np.mean(passes.chosen(passes.by_problem(scored), lambda s: s["score"]))


def reranking(w):
    """One sample is chosen of N, WARM, by the model that learned to write functions, Codex-S, or by
    Codex-D: SFT of the same base on the docstrings of the same functions.

    Arms: base; tuned, Codex-S; describer, Codex-D.

    Figures:
        random          of one sample at random
        forward         of the one that is likeliest, by Codex-S, mean of its tokens
        back            from which the docstring is likeliest, by Codex-D
        short           of the fewest tokens
        oracle          of a right one, if there is one
        told            of the problems' own solutions: how often Codex-D tells the docstring
    """
    toy, base, tuned = models(w)
    shown = f"{toy}/functions.jsonl"

    def records():
        with open(shown) as f:
            chats = [json.loads(line)["messages"] for line in f]
        programs = [language.complete(asked["content"] + "\n", answered["content"])
                    for asked, answered in chats]
        return [{"messages": backward(program)} for program in programs]
    described = w.derive("described.jsonl", {"docstrings": "of functions"}, [shown], records)
    describer = w.make("code-d.pt", sft, init=base, data=(described,), **TUNED)
    asked, figures = language.problems(PROBLEMS, w.seed), {}
    solved = [backward(problem.prompt + problem.solution) for problem in asked]
    figures["describer"] = {"told": told(describer, solved)}
    for arm, path in (("base", base), ("tuned", tuned)):
        samples = sampled(w, path, WARM, asked)
        found = passes.figures(samples, (1, N))
        texts = [s["program"] for s in samples]
        figures[arm] = {
            "random": found["pass@1"][0], "oracle": found[f"pass@{N}"][0],
            "forward": chosen(samples, likely(tuned, map(forward, texts))),
            "back": chosen(samples, likely(describer, map(backward, texts))),
            "short": chosen(samples, [-s["tokens"] for s in samples])}
    return figures
