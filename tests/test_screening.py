"""evidence/screening.py and statistics.reliability: who reads, told with and without gold."""

import itertools
import math
import random

import numpy as np
import pytest

import sandbox
from evidence import screening
from evidence.statistics import reliability


def simulated(chances, things=400, voters=3, seed=0):
    """Votes on things of which the truth is 1 or -1, by labelers right with these chances."""
    rng, votes = random.Random(seed), []
    for thing in range(things):
        truth = rng.choice((1, -1))
        for labeler in rng.sample(range(len(chances)), voters):
            votes.append((labeler, thing, truth if rng.random() < chances[labeler] else -truth))
    return votes


def test_reliability_finds_who_is_right_without_being_told():
    chances = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.5, 0.2]
    found = reliability(simulated(chances, things=3000))
    assert [found[i] for i in range(10)] == pytest.approx(chances, abs=0.06)


def test_reliability_is_where_the_likelihood_is_highest():
    """Summed over all truths, with Beta(2, 2) on each labeler: one vote right and one wrong."""
    votes = simulated([0.9, 0.8, 0.6], things=7, voters=3, seed=3)
    found = reliability(votes, rounds=5000)
    assert max(found.values()) < 1

    def log_posterior(right):
        total = sum(math.log(p * (1 - p)) for p in right.values())
        for thing in range(7):
            by_truth = [math.prod(right[a] if sign == truth else 1 - right[a]
                                  for a, t, sign in votes if t == thing) for truth in (1, -1)]
            total += math.log(sum(by_truth) / 2)
        return total

    best = log_posterior(found)
    for step in itertools.product((-1e-3, 0, 1e-3), repeat=3):
        moved = {a: p + s for (a, p), s in zip(found.items(), step)}
        assert log_posterior(moved) <= best + 1e-9


def test_what_one_labeler_alone_says_tells_nothing():
    votes = simulated([0.9, 0.8, 0.7])
    alone = [("hermit", f"own {i}", 1) for i in range(9)]
    assert reliability(votes + alone) == reliability(votes)


@pytest.fixture(scope="module")
def tasks():
    """Prompts, each with a right answer, one that is made up and one that says nothing."""
    found = []
    for prompt in sandbox.prompts(400, 5):
        wrong = "Oslo sells blue hats to Mia."
        found.append((prompt, [wrong, prompt.meta["answers"][0], sandbox.DO_NOT_KNOW]))
    return found


def test_gold_tells_the_careful_from_those_who_do_not_read(tasks):
    found = screening.candidates(1)
    assert found == screening.candidates(1) != screening.candidates(2)
    assert [c.kind for c in found].count("careful") == 10 == len(found) / 2
    right = {c: screening.share_right(c, tasks, 400, 0) for c in found}
    careful = [share for c, share in right.items() if c.kind == "careful"]
    others = [share for c, share in right.items() if c.kind != "careful"]
    assert min(careful) > 0.75 and np.mean(others) < np.mean(careful) - 0.15
    assert screening.share_right(found[0], tasks, 30, 0) in [n / 60 for n in range(61)]


def test_what_a_candidate_does_who_does_not_read(tasks):
    prompt, responses = tasks[0]
    rng = random.Random(0)
    first = screening.Candidate("x", "first", 1.0)
    assert screening.ratings_of(first, prompt, responses, rng) == [3, 2, 1]
    longest = screening.Candidate("x", "longest", 1.0)
    marks = screening.ratings_of(longest, prompt, responses, rng)
    assert sorted(responses, key=len) == [r for _, r in sorted(zip(marks, responses))]
    careless = screening.Candidate("x", "careless", 1.0)
    drawn = [m for _ in range(400) for m in screening.ratings_of(careless, prompt, responses, rng)]
    assert set(drawn) == set(range(1, 8)) and np.mean(drawn) == pytest.approx(4, abs=0.2)


def test_rankings_are_what_the_ratings_say(tasks):
    first = screening.Candidate("x", "first", 1.0)
    records = list(screening.rankings_by([first], tasks[:3], 0))
    assert [r["ranks"] for r in records] == [[1, 2, 3]] * 3
    assert {r["labeler"] for r in records} == {"x"}
    votes = screening.votes_of(first, 7, *tasks[0], random.Random(0))
    assert votes == [("x", (7, i, j), 1) for i, j in ((0, 1), (0, 2), (1, 2))]
