"""codex/passk.py: against all subsets, human-eval's published formula; what intervals promise."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from codex import passk


def test_it_is_the_share_of_all_subsets_with_a_correct_sample():
    for n in range(1, 10):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            correct = [True] * c + [False] * (n - c)
            sets = list(itertools.combinations(correct, k))
            share = Fraction(sum(map(any, sets)), len(sets))
            assert passk.pass_at_k(n, c, k) == float(share)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_its_mean_over_samples_is_the_chance_itself(k):
    """Unbiased: summed over all c at their binomial odds it is 1 - (1 - p)^k."""
    n, p = 12, Fraction(1, 3)
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * Fraction(passk.pass_at_k(n, c, k))
               for c in range(n + 1))
    assert float(mean) == pytest.approx(float(1 - (1 - p) ** k), rel=1e-15)


def human_eval(n, c, k):
    """openai/human-eval@6d43fb9, evaluation.py: the estimator, letter by letter."""
    if n - c < k:
        return 1.0
    return 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


def test_it_is_human_evals_formula_to_rounding():
    for n, c, k in itertools.product([1, 20, 200, 4000], [0, 1, 7, 150, 4000], [1, 10, 100, 1000]):
        if c <= n and k <= n:
            assert passk.pass_at_k(n, c, k) == pytest.approx(human_eval(n, c, k), rel=1e-10,
                                                             abs=1e-14)


def test_thousands_of_samples_are_no_trouble():
    assert passk.pass_at_k(5000, 1, 100) == 100 / 5000       # one correct: it is among the k or not
    assert passk.pass_at_k(10_000, 5000, 5000) == 1.0
    two = 1 - Fraction(9900 * 9899, 10_000 * 9999)
    assert passk.pass_at_k(10_000, 2, 100) == float(two)


def test_too_few_samples_have_no_value():
    assert passk.pass_at_k(9, 9, 10) is None
    found = passk.mean_pass_at_k([(9, 9), (10, 0), (10, 10), (20, 20)], 10)
    assert found[::2] == (pytest.approx(2 / 3), 3)
    assert passk.mean_pass_at_k([(9, 9)], 10) == (None, None, 0)
    # of one problem there is no interval, whatever the others lack
    assert passk.mean_pass_at_k([(10, 10), (9, 9)], 10) == (1.0, None, 1)


def test_the_interval_holds_the_truth_19_times_of_20():
    """Problems drawn from a Beta(2, 2), whose pass@2 is 1 - E(1-p)^2 = 1 - 0.3."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        p = rng.beta(2, 2, 40)
        mean, half, _ = passk.mean_pass_at_k([(8, c) for c in rng.binomial(8, p)], 2)
        held += abs(mean - 0.7) <= half
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_what_is_not_defined_is_a_sentence(n, c, k):
    with pytest.raises(ValueError, match=f"pass@{k} of {n} samples, {c} of them correct"):
        passk.pass_at_k(n, c, k)
