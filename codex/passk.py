"""pass@k: how often at least one of k samples passes the tests of a problem.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import math

from evidence import statistics


def pass_at_k(n, c, k):
    """The share of all sets of k among n samples that hold one of the c correct ones; None if
    n < k, where there is no unbiased estimate. [Codex] Eq. 1: 1 - C(n-c, k) / C(n, k).

    Whole numbers of any size and one division: exact to the last bit for every n.
    """
    if not 0 <= c <= n or k < 1:
        raise ValueError(f"pass@{k} of {n} samples, {c} of them correct, is not defined: 1 <= k, "
                         f"and no more are correct than there are")
    if n < k:
        return None
    sets = math.comb(n, k)
    return (sets - math.comb(n - c, k)) / sets


def mean_pass_at_k(counts, k):
    """counts [(n samples, c correct) of each problem] -> the mean of pass@k, the half-width of its
    95 % interval over problems (Student's t, None of one), and of how many: with k samples."""
    values = [pass_at_k(n, c, k) for n, c in counts if n >= k]
    if not values:
        return None, None, 0
    mean, half = statistics.interval(values)
    return float(mean), float(half) if len(values) > 1 else None, len(values)
