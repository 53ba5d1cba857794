"""Codex on the toy language: the experiments behind claims 24 to 29.

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

import pretrain
import sft
from codex import evaluate, language
from evidence.statistics import win_rate
from forks import rloo
from train import step_seed

PROBLEMS, N = 48, 100       # a third each of two to four blocks, and samples of each
LONGEST = 112               # tokens of a program
COLD, WARM = 0.2, 0.8       # temperatures
KS = (1, 2, 5, 10, 20, 50, 100)
BLOCKS = ("one", "two", "three", "four")
BASE = {"tokens": 1_500_000, "n_embd": 96, "context": 256, "block": 256, "batch": 8}
SMALL = {"n_embd": 32, "n_layer": 2, "lr": 5e-3}
TUNED = {"epochs": 2, "lr": 5e-4, "ptx_mix": 0.0, "max_new": 100}
TESTED = {"reward": "codex.language:passes", "k": 8, "max_new": 100, "kl_coef": 0.01, "lr": 2e-4,
          "warmup": 5}


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
    return [s | {"problem": problem.name, "reference": problem.solution,
                 "blocks": len(language.chain_of(problem.prompt)),
                 "verdict": language.verdict(problem, s["program"])}
            for problem, programs in zip(asked, written, strict=True) for s in programs]


def share(samples, blocks):
    """How many of the samples pass, of problems of so many blocks."""
    return np.mean([s["verdict"] == "pass" for s in samples if s["blocks"] == blocks])


def by_bleu(samples):
    """How often a right program has a higher BLEU than a wrong one of the same problem: a mean over
    the problems that have both. Raises ValueError if there are none."""
    problems, found = {}, []
    for s in samples:
        value = bleu(s["program"].split('"""\n')[-1], s["reference"])
        problems.setdefault(s["problem"], {True: [], False: []})[s["verdict"] == "pass"] += [value]
    for of in problems.values():
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
        if language.right(program, language.examples(chain)) != slip:
            return program


def in_context(w, path, slip):
    """The share of right programs that follow another function, one with a slip or a right one, at
    temperature COLD; problems of one or two blocks, whose pairs the corpus has."""
    coder, found = evaluate.load(path), []
    for problem in language.problems(PROBLEMS, f"context {w.seed}", (1, 2), held_out=False):
        before = context(problem, w.seed, slip) + "\n\n"
        seed = step_seed(w.seed, problem.name)
        after = problem._replace(prompt=before + problem.prompt)
        for s in evaluate.write_programs(coder, after, 20, COLD, seed, 80):
            program = s["program"][len(before):]
            found.append(language.verdict(problem, program) == "pass")
    return np.mean(found)


def lost(figures):
    """By how much a slip before it lowers the share of right programs."""
    return figures["after right"] - figures["after slip"]


def programs(w):
    """A base that has read files, SFT on right standalone functions (Codex-S), and RLOO with the
    tests as its reward.

    Arms: base; tuned; tested; small, a base with an eighth of the weights.

    Figures:
        pass@1 cold, pass@1 warm, pass@100 cold, pass@100 warm      at COLD and WARM
        mean, sum                   of the samples chosen of 100 by log-probability, WARM
        bleu                        how often a right one has more BLEU than a wrong one, WARM
        cold, warm                  lists, for the plot: pass@k for each of KS
        one, two, three, four       of base and tuned: right programs of so many blocks, COLD, whose
                                    pairs the corpus has
        after right, after slip     of base and small: right programs that follow a right function,
                                    or one with a slip
    """
    toy = w.make("toy", language)
    corpus = {"data": (f"{toy}/corpus.jsonl",), "tokenizer": f"{toy}/toy.tiktoken"} | BASE
    base = w.make("code.pt", pretrain, **corpus)
    small = w.make("code-small.pt", pretrain, **corpus | SMALL)
    tuned = w.make("code-s.pt", sft, init=base, data=(f"{toy}/functions.jsonl",), **TUNED)
    tested = w.make("code-rl.pt", rloo, init=tuned, prompts=(f"{toy}/prompts.jsonl",), **TESTED)
    asked, figures = language.problems(PROBLEMS, w.seed), {"small": {}}
    for arm, path in (("base", base), ("tuned", tuned), ("tested", tested)):
        cold, warm = (sampled(w, path, temperature, asked) for temperature in (COLD, WARM))
        found = evaluate.figures(warm, KS)
        figures[arm] = of = {"bleu": by_bleu(warm)}
        of |= {name: found[f"chosen by {name} log p"][0] for name in ("mean", "sum")}
        for name, samples in (("cold", cold), ("warm", warm)):
            found = evaluate.figures(samples, KS)
            of[name] = [found[f"pass@{k}"][0] for k in KS]
            of |= {f"pass@{k} {name}": found[f"pass@{k}"][0] for k in (1, 100)}
    known = language.problems(PROBLEMS, f"known {w.seed}", (1, 2, 3, 4), held_out=False)
    for arm, path in (("base", base), ("tuned", tuned)):
        samples = sampled(w, path, COLD, known, 20)
        figures[arm] |= {name: share(samples, n) for n, name in enumerate(BLOCKS, 1)}
    for arm, path in (("base", base), ("small", small)):
        figures[arm] |= {"after right": in_context(w, path, slip=False),
                         "after slip": in_context(w, path, slip=True)}
    return figures
