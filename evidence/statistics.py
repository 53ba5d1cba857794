"""Win rates, ratings and their intervals: numpy arrays in, numbers out.

Legend: N prompts, n and m answers of each, S systems, F features.
"""
import functools
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

CI = [0.025, 0.975]     # the quantiles between which 95 % lie
ELO = 400 / math.log(10)            # 400 points more are odds of ten to one


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 + 0.5 * np.tanh(x / 2)


# ---- win rates ----------------------------------------------------------------------------------

def outcomes(ours, theirs):
    """How many pairs of answers to each prompt `ours` (N, n) wins, ties and loses against `theirs`
    (N, m), all n m of them -> three arrays (N,) of whole numbers."""
    won, tied = np.zeros(len(ours), int), np.zeros(len(ours), int)
    # an n-th of the pairs at a time
    for score in ours.T:                                     # (N,)
        won += (score[:, None] > theirs).sum(1)
        tied += (score[:, None] == theirs).sum(1)
    return won, tied, ours.shape[1] * theirs.shape[1] - won - tied


def win_rate(ours, theirs):
    """How often an answer of `ours` (N, n) beats one of `theirs` (N, m) to the same prompt, ties
    half."""
    won, tied, lost = (pairs.sum() for pairs in outcomes(ours, theirs))
    return float((2 * won + tied) / (2 * (won + tied + lost)))


def shares(ours, theirs):
    """What the win rate is made of: {"won": share of the pairs, "tied": ..., "lost": ...}, and
    "decided", the share won of what is not tied, if there is any."""
    won, tied, lost = (pairs.sum() for pairs in outcomes(ours, theirs))
    pairs = won + tied + lost
    found = {"won": won / pairs, "tied": tied / pairs, "lost": lost / pairs}
    if won + lost > 0:
        found["decided"] = won / (won + lost)
    return {name: float(share) for name, share in found.items()}


def agreement(proxy, gold):
    """Of the pairs of answers to one prompt that differ in gold score, the share that the proxy
    score orders in the same way, ties half: proxy and gold (N, n) -> a number, None without pairs.
    """
    proxy_gap = proxy[:, :, None] - proxy[:, None]           # (N, n, n)
    gold_gap = gold[:, :, None] - gold[:, None]
    pairs = gold_gap > 0
    if not pairs.any():
        return None
    return float((0.5 + 0.5 * np.sign(proxy_gap[pairs])).mean())


def bootstrap(ours, theirs, prompts, seed=0, resamples=2000):
    """95 % interval of the win rate, resampling distinct `prompts` (N,) with all the answers to
    each: two answers to one prompt are not two independent draws."""
    _, owner = np.unique(prompts, return_inverse=True)
    won, tied, lost = (np.bincount(owner, pairs) for pairs in outcomes(ours, theirs))
    points, most = 2 * won + tied, 2 * (won + tied + lost)   # (distinct prompts,)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(most), (resamples, len(most)))
    rates = points[drawn].sum(1) / most[drawn].sum(1)        # (resamples,)
    return [float(x) for x in np.quantile(rates, CI)]


@functools.cache
def student_t(n, share=0.95):
    """Within how many standard errors of the mean of n values, n > 1, the truth lies with the
    probability `share`.

    With t = sqrt(n - 1) tan(a) the density of Student's t becomes cos(a)^(n - 2), whose integral
    are the trapezoids of a fine grid, to eight digits. Beyond 12 / sqrt(n) nothing is left of it.
    """
    a = np.linspace(0, min(np.pi / 2, 12 / math.sqrt(n)), 100_001)
    density = np.cos(a) ** (n - 2)
    area = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return math.sqrt(n - 1) * math.tan(np.interp(share * area[-1], area, a))


def interval(values, share=0.95):
    """Mean over the first axis of values (seeds, ...), and the half-width of its 95 % interval
    (Student's t), or that of another share; infinite for one seed."""
    values = np.asarray(values, float)
    n = len(values)
    if n > 1:
        half = student_t(n, share) * values.std(0, ddof=1) / n ** 0.5
    else:
        half = np.full(values.shape[1:], np.inf)
    return values.mean(0), half[()]                          # [()]: a number, not an array of one


class Effect(NamedTuple):
    """What a few seeds say of a quantity."""
    mean: float
    half: float         # half-width of the 95 % interval of the mean
    n: int              # seeds
    deviation: float    # standard deviation over the seeds
    findable: float     # a mean so large has its interval above zero four times in five
    margin: float       # a mean nearer to zero does not matter
    sign: str           # above | below | negligible | unknown

    @property
    def matters(self):
        """Whether the 95 % interval lies beyond the margin, on one side."""
        return abs(self.mean) - self.half > self.margin


def effect(values, margin):
    """Values of two seeds or more -> Effect.

    It is negligible if two one-sided tests at 5 % say that the mean lies within the margin: if its
    90 % interval does (Schuirmann 1987). It is above or below zero if the 95 % interval is, and the
    mean is no nearer to zero than the margin.
    """
    values = np.asarray(values, float)
    n, deviation = len(values), values.std(ddof=1)
    mean, half = interval(values)
    _, narrow = interval(values, 0.9)
    if max(mean + narrow, narrow - mean) < margin:
        sign = "negligible"
    elif abs(mean) > half and abs(mean) >= margin:
        sign = "above" if mean > 0 else "below"
    else:
        sign = "unknown"
    findable = (student_t(n) + student_t(n, 0.6)) * deviation / n ** 0.5
    return Effect(*map(float, (mean, half)), n, float(deviation), float(findable), margin, sign)


# ---- best of n ----------------------------------------------------------------------------------

def best_of_n(proxy, gold, n):
    """Expected gold score of the sample with the highest proxy score among n, estimated from
    N >= n samples of each prompt: proxy, gold (prompts, N) -> a number. Raises ValueError.

    It is the mean over all subsets of n (Nakano et al. 2021, arXiv 2112.09332; pass@k of Chen et
    al. 2021 is the same sum): with gold in ascending order of proxy,
    sum_i C(i-1, n-1) / C(N, n) gold_(i), because sample i is the best of the C(i-1, n-1) subsets
    whose others lie below it. Samples that tie in proxy share their gold.
    """
    N = proxy.shape[1]
    if not 1 <= n <= N:
        raise ValueError(f"the best of {n} cannot be estimated from {N} samples of a prompt: "
                         f"n is 1 to {N}")
    subsets = math.comb(N, n)                                # integers of any size: exact ratios
    weight = np.array([math.comb(i, n - 1) / subsets for i in range(N)])
    total = 0.0
    for p, g in zip(proxy, gold):
        # proxy 3 1 3 -> group 1 0 1: ascending, and one number for samples that tie
        _, group = np.unique(p, return_inverse=True)
        shared = np.bincount(group, g) / np.bincount(group)  # mean gold of each group
        total += weight @ shared[np.sort(group)]
    return float(total / len(proxy))


def best_of_n_kl(n):
    """KL of best-of-n from what it samples from, nats: log n - (n-1)/n (Stiennon et al. 2020, G.3).

    Exact where scores never tie and no response is likely to come twice; otherwise an upper bound
    (Beirami et al. 2024, arXiv 2401.01879).
    """
    return np.log(n) - (n - 1) / n


# ---- ratings ------------------------------------------------------------------------------------

def logistic(x, won, games, ridge=1e-9):
    """The w (F,) that maximises the likelihood of P(win) = sigmoid(x w), by Newton's method.

    x (M, F); `won` (M,) of `games` (M,) were won. The penalty ridge/2 |w|^2 keeps w finite where
    wins and losses can be separated.
    """
    w = np.zeros(x.shape[1])
    for _ in range(200):
        p = sigmoid(x @ w)
        curvature = games * p * (1 - p)
        hessian = x.T @ (x * curvature[:, None]) + ridge * np.eye(len(w))
        gradient = x.T @ (won - games * p) - ridge * w
        step = np.linalg.solve(hessian, gradient)
        # far from the maximum a whole step may overshoot: no weight moves by more than 1
        w += step / np.abs(step).max(initial=1)
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return w


def bradley_terry(wins, tie=1.0):
    """wins (S, S), how often i beat j -> log-strengths (S,) of mean 0.

    P(i beats j) = sigmoid(s_i - s_j), maximum likelihood. `tie` ties are added to each pair, which
    keeps a system that wins everything finite; 0 for the plain estimate.
    """
    i, j = np.triu_indices(len(wins), 1)
    each = np.eye(len(wins))
    pairs = each[i] - each[j]                                # (pairs, S): 1 at i, -1 at j
    won = wins[i, j] + tie / 2
    games = won + wins[j, i] + tie / 2
    # only differences of strengths count, so the first one stays 0 until the mean is taken out
    s = np.append(0, logistic(pairs[:, 1:], won, games))
    return s - s.mean()


def reliability(votes, rounds=100):
    """How often each labeler is right, from what several of them say of one and the same thing.

    votes: [(labeler, thing, 1 or -1), ...]. -> {labeler: share}, of those who share a thing with
    somebody. Which answer is right is not known: in turns it is guessed from the votes, weighed by
    the labelers' log odds of being right, and these are counted against the guesses. One right and
    one wrong vote are added to each, so that nobody is certain. Dawid and Skene 1979, by EM, with
    one number for each labeler.
    """
    of_thing = defaultdict(list)
    for vote in votes:
        of_thing[vote[1]].append(vote)
    shared = [vote for same in of_thing.values() if len(same) > 1 for vote in same]
    labelers, who = np.unique([v[0] for v in shared], return_inverse=True)
    _, what = np.unique([repr(v[1]) for v in shared], return_inverse=True)
    sign = np.array([v[2] for v in shared], float)
    right = np.full(len(labelers), 0.75)
    for _ in range(rounds):
        odds = np.bincount(what, sign * np.log(right / (1 - right))[who])
        agrees = sigmoid(sign * odds[what])                  # (votes,)
        right = (np.bincount(who, agrees) + 1) / (np.bincount(who) + 2)
    return dict(zip(labelers.tolist(), right.tolist()))


def ratings(scores, prompts, baseline, seed=0, resamples=500):
    """Scores (S, N, n) of S systems -> win rates (S, S), row over column; Elo (S,), that of system
    `baseline` 0; its 95 % interval (S, 2).

    Elo is Bradley-Terry's strength in units of ln(10)/400; a prompt, with all pairs of answers to
    it, is one game. The interval resamples distinct `prompts` (N,), as `bootstrap` does.
    """
    S, N, n = scores.shape
    _, owner = np.unique(prompts, return_inverse=True)
    distinct = owner.max() + 1
    points = np.zeros((distinct, S, S))                      # two for a pair won, one for a tie
    for i in range(S):
        for j in range(S):
            won, tied, _ = outcomes(scores[i], scores[j])
            points[:, i, j] = np.bincount(owner, 2 * won + tied)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, distinct, (resamples, distinct))
    draws = [np.arange(distinct), *drawn]                    # first all prompts, each once
    strengths = np.array([bradley_terry(points[rows].sum(0) / (2 * n * n)) for rows in draws])
    elo = ELO * (strengths - strengths[:, [baseline]])       # (1 + resamples, S)
    return points.sum(0) / (2 * N * n * n), elo[0], np.quantile(elo[1:], CI, axis=0).T


def length_controlled(ours, theirs, our_length, their_length):
    """The win rate that is left at equal length: Dubois et al. 2024, arXiv 2404.04475.

    ours, our_length (N, n); theirs, their_length (N, m); lengths are whole numbers. Of all pairs
    of answers to a prompt P(win) = sigmoid(a + b tanh(d / std d)), d the difference in length; the
    answer is sigmoid(a). AlpacaEval 2's term for how hard a prompt is is left out. Where d is the
    same everywhere, length cannot be told from the rest: the plain win rate.
    """
    our_length, their_length = our_length.astype(int), their_length.astype(int)
    least = our_length.min() - their_length.max()
    d = np.arange(least, our_length.max() - their_length.min() + 1)
    won, games = np.zeros(len(d)), np.zeros(len(d))          # of the pairs that differ by d
    # an n-th of the pairs at a time
    for score, length in zip(ours.T, our_length.T):          # (N,), (N,)
        at = (length[:, None] - their_length - least).ravel()            # (N m,)
        points = (score[:, None] > theirs) + 0.5 * (score[:, None] == theirs)
        won += np.bincount(at, points.ravel(), len(d))
        games += np.bincount(at, minlength=len(d))
    std = np.sqrt(np.average((d - np.average(d, weights=games)) ** 2, weights=games))
    longer = np.tanh(d / std) if std > 0 else np.zeros(len(d))
    x = np.stack([np.ones(len(d)), longer], 1)               # (differences, 2)
    a, _ = logistic(x, won, games, ridge=1e-6)
    return float(sigmoid(a))
