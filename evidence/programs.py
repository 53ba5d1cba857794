"""Codex on the toy language: the experiments behind claims 24 to 29.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import json
import math
import os
import random
import re
from collections import Counter

import numpy as np

import pretrain
import sft
from codex import evaluate, language
from codex.passk import mean_pass_at_k
from forks import rloo
from train import step_seed

PROBLEMS, N = 48, 100       # a fourth each of one to four blocks, and samples of each
COLD, WARM = 0.2, 0.8       # temperatures
KS = (1, 2, 5, 10, 20, 50, 100)
BASE = {"tokens": 1_500_000, "n_embd": 96, "context": 256, "block": 256, "batch": 8}
SMALL = {"n_embd": 32, "n_layer": 2, "lr": 5e-3}
TUNED = {"epochs": 2, "lr": 5e-4, "ptx_mix": 0.0, "max_new": 100}
TESTED = {"reward": "codex.language:tests", "k": 8, "max_new": 100, "kl_coef": 0.01, "lr": 2e-4,
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


def above(right, wrong):
    """How often one of the numbers `right` exceeds one of `wrong`, ties half."""
    difference = np.subtract.outer(right, wrong)
    return float((np.sign(difference) / 2 + 0.5).mean())


def sampled(w, path, temperature, asked):
    """N programs of a checkpoint for each problem, with their verdicts, dictionaries; kept in a
    file."""
    def records():
        coder, found = evaluate.load(path), []
        for problem in asked:
            seed = step_seed(w.seed, f"{problem.name} {temperature}")
            written = evaluate.write_programs(coder, problem.prompt, N, temperature, seed, 112)
            found += [s | {"problem": problem.name, "reference": problem.solution,
                           "blocks": len(language.chain_of(problem.prompt)),
                           "verdict": language.verdict(problem, s["program"])} for s in written]
        return found
    name = f"{os.path.basename(path)}-{temperature}.jsonl"
    with open(w.derive(name, {"temperature": temperature}, [path], records)) as f:
        return [json.loads(line) for line in f]


def share(samples, blocks=()):
    """How many of the samples pass; of problems of so many blocks."""
    return np.mean([s["verdict"] == "pass" for s in samples
                    if not blocks or s["blocks"] in blocks])


def by_bleu(samples):
    """How often a right program has a higher BLEU than a wrong one of the same problem: a mean over
    the problems that have both."""
    problems, found = {}, []
    for s in samples:
        value = bleu(s["program"].split('"""\n')[-1], s["reference"])
        problems.setdefault(s["problem"], {True: [], False: []})[s["verdict"] == "pass"] += [value]
    for of in problems.values():
        if of[True] and of[False]:
            found.append(above(of[True], of[False]))
    return np.mean(found) if found else 0.5


def in_context(w, path, slip):
    """The share of right programs that follow another function, one with a slip or a right one, at
    temperature COLD; problems of one or two blocks."""
    coder, found = evaluate.load(path), []
    for problem in language.problems(96, f"context {w.seed}", held_out=False):
        if len(language.chain_of(problem.prompt)) > 2:
            continue
        rng = random.Random(f"context {w.seed} {problem.name}")
        chain = language.draw_chain(rng, 2, held_out=False)
        before = language.head(language.docstring(chain)) + language.body(rng, chain, slip)
        asked = f"{before}\n\n{problem.prompt}"
        for s in evaluate.write_programs(coder, asked, 20, COLD, w.seed, 80):
            program = s["program"][len(before) + 2:]
            found.append(language.verdict(problem, program) == "pass")
    return np.mean(found)


def lost(figures):
    """By how much a slip before it lowers the share of right programs."""
    return figures["after right"] - figures["after slip"]


def programs(w):
    """A base that has read files, SFT on right standalone functions (Codex-S), and RLOO with the
    tests as its reward.

    Arms: base; tuned; tested; small, a base with a tenth of the weights.

    Figures:
        pass@1 cold, pass@1 warm, pass@100 cold, pass@100 warm      at COLD and WARM
        one, two, three, four       pass@1, COLD, of problems of so many blocks
        mean, sum                   of the samples chosen of 100 by log-probability, WARM
        bleu                        how often a right one has more BLEU than a wrong one, WARM
        cold, warm                  lists, for the plot: pass@k for each of KS
        after right, after slip     of base and small alone: the share of right programs that follow
                                    a right function, or one with a slip
    """
    toy = w.make("toy", language)
    corpus = {"data": (f"{toy}/corpus.jsonl",), "tokenizer": f"{toy}/toy.tiktoken"} | BASE
    base = w.make("code.pt", pretrain, **corpus)
    small = w.make("code-small.pt", pretrain, **corpus | SMALL)
    tuned = w.make("code-s.pt", sft, init=base, data=(f"{toy}/functions.jsonl",), **TUNED)
    tested = w.make("code-rl.pt", rloo, init=tuned, prompts=(f"{toy}/prompts.jsonl",), **TESTED)
    asked, figures = language.problems(PROBLEMS, w.seed), {}
    for arm, path in (("base", base), ("tuned", tuned), ("tested", tested)):
        cold, warm = (sampled(w, path, temperature, asked) for temperature in (COLD, WARM))
        figures[arm] = of = {"bleu": by_bleu(warm)}
        for name, samples in (("cold", cold), ("warm", warm)):
            of[name] = [pass_at(samples, k) for k in KS]
            of |= {f"pass@1 {name}": of[name][0], f"pass@100 {name}": of[name][-1]}
        of |= {name: share(cold, (n,)) for n, name in enumerate(("one", "two", "three", "four"), 1)}
        chosen = evaluate.figures(warm, ())
        of |= {name: chosen[f"chosen by {name} log p"][0] for name in ("mean", "sum")}
    figures["small"] = {}
    for arm, path in (("base", base), ("small", small)):
        figures[arm] |= {"after right": in_context(w, path, slip=False),
                         "after slip": in_context(w, path, slip=True)}
    return figures


def pass_at(samples, k):
    """The mean of pass@k over the problems."""
    counts = Counter(s["problem"] for s in samples)
    right = Counter(s["problem"] for s in samples if s["verdict"] == "pass")
    mean, _, _ = mean_pass_at_k([(n, right[name]) for name, n in counts.items()], k)
    return mean
