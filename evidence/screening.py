"""Who is let label: simulated candidates, some of whom do not read; the experiment of claim 21.

[IG] Ouyang et al. 2022, arXiv 2203.02155, B.1
"""
import itertools
import json
import random
from typing import NamedTuple

import numpy as np

import data
import label
import sandbox
from evidence.experiments import exact_pairs, exact_quality
from evidence.statistics import reliability

GOLD, PASSED = 30, 0.75     # pairs of known order that each is asked, and of which so many must be
                            # right ([IG] B.1: agreement of 75 % or more was typical)
RUBRIC = [1.0] * 5          # the taste of the rubric itself


class Candidate(NamedTuple):
    """Reads as a labeler does, but in a share `slip` of the tasks does what `kind` says."""
    name: str               # his taste hangs on it, as a labeler's
    kind: str               # careful; careless: anything; first: what stands first; longest
    slip: float


def candidates(seed):
    """Twenty of them: half are careful."""
    rng = random.Random(f"candidates {seed}")
    kinds = ["careful"] * 10 + ["careless"] * 4 + ["first"] * 3 + ["longest"] * 3
    return [Candidate(f"candidate {seed} {i}", kind,
                      0.0 if kind == "careful" else rng.uniform(0.5, 1.0))
            for i, kind in enumerate(kinds)]


def ratings_of(candidate, prompt, responses, rng):
    """A candidate's ratings of responses to one prompt, from 1 (worst) to 7."""
    if rng.random() >= candidate.slip:
        return sandbox.rate(candidate.name, prompt, responses, rng)
    if candidate.kind == "careless":
        return [rng.randint(1, 7) for _ in responses]
    marks = {"first": range(len(responses), 0, -1), "longest": map(len, responses)}
    return list(marks[candidate.kind])


def votes_of(candidate, task, prompt, responses, rng):
    """What a candidate says of each pair of responses -> [(name, (task, i, j), 1 or -1), ...], no
    ties."""
    marks = ratings_of(candidate, prompt, responses, rng)
    return [(candidate.name, (task, i, j), 1 if marks[i] > marks[j] else -1)
            for i, j in itertools.combinations(range(len(responses)), 2) if marks[i] != marks[j]]


def share_right(candidate, tasks, most, seed):
    """The share of pairs of known order on which a candidate is right, of `most` pairs, one of each
    task [(prompt, responses), ...]."""
    rng, right = random.Random(f"gold {seed} {candidate.name}"), []
    for prompt, responses in tasks:
        score = [sandbox.judge(prompt, text).score for text in responses]
        pairs = [(i, j) for i, j in itertools.permutations(range(len(score)), 2)
                 if score[i] > score[j]]
        if pairs and len(right) < most:
            i, j = rng.choice(pairs)
            marks = ratings_of(candidate, prompt, responses, rng)
            right.append(0.5 if marks[i] == marks[j] else marks[i] > marks[j])
    return float(np.mean(right))


def rankings_by(people, tasks, seed):
    """Each task ranked by one of these people -> records."""
    rng = random.Random(f"rankings {seed}")
    for prompt, responses in tasks:
        candidate = rng.choice(people)
        marks = ratings_of(candidate, prompt, responses, rng)
        yield {"prompt": prompt.messages, "responses": responses, "labeler": candidate.name,
               "use_case": prompt.use_case, "ranks": [1 + sum(x > mark for x in marks)
                                                      for mark in marks]}


def read_tasks(path):
    """A file of label.py --unlabeled -> [(prompt with its answer key, responses), ...]"""
    with open(path) as f:
        records = [json.loads(line) for line in f]
    return [(data.Prompt(r["prompt"], r.get("use_case", ""), r["meta"]), r["responses"])
            for r in records]


def screening(w):
    """Twenty candidates are asked 30 pairs of known order; reward models are trained on some 2,000
    rankings of all of them, and on as many of those who passed.

    Arms: everyone, screened.

    Figures:
        people          how many rank
        right           their mean share of right pairs, of 400 of known order
        accuracy        of the reward model, on exact preferences of the rubric
        correlation     over the candidates, between their right share and what says
                        statistics.reliability without gold, of some 1,000 tasks that three of them
                        ranked; only of everyone
    """
    path = w.make("tasks.jsonl", label, init=(w.sft(),), unlabeled=True, n=5000, k_max=6)
    tasks, everyone, exact = read_tasks(path), candidates(w.seed), exact_pairs(w)
    quarter = len(tasks) // 4
    gold, shared, ranked = tasks[:quarter], tasks[quarter:2 * quarter], tasks[2 * quarter:]
    passed = [c for c in everyone if share_right(c, gold, GOLD, w.seed) >= PASSED]
    right = {c.name: share_right(c, gold, 400, "truth") for c in everyone}
    figures = {}
    for arm, people in (("everyone", everyone), ("screened", passed)):
        by_them = w.derive(f"rankings-{arm}.jsonl", {"screening": arm}, [path],
                           lambda people=people: list(rankings_by(people, ranked, w.seed)))
        rm = w.reward_model(f"rm-{arm}.pt", data=(by_them,))
        figures[arm] = {"people": len(people), "right": np.mean([right[c.name] for c in people]),
                        "accuracy": exact_quality(rm, exact, [RUBRIC])["accuracy"]}
    rng, votes = random.Random(f"three {w.seed}"), []
    for task, (prompt, responses) in enumerate(shared):
        for candidate in rng.sample(everyone, 3):
            votes += votes_of(candidate, task, prompt, responses, rng)
    found = reliability(votes)
    pairs = [(right[name], share) for name, share in found.items()]
    figures["everyone"]["correlation"] = np.corrcoef(*zip(*pairs))[0, 1]
    return figures
