"""The arithmetic of over-optimisation: how far from SFT a policy went, where its true score turned.

[Gao] Gao et al. 2022, arXiv 2210.10760
"""
from typing import NamedTuple

import numpy as np

NOISE = 0.1     # points: what the highest of some forty noisy means of 1,280 answers is too high by


class Curves(NamedTuple):
    """One run: a value for each rollout of PPO or for each n of best-of-n. Arrays (N,)."""
    kl: np.ndarray      # from SFT, nats a response
    rm: np.ndarray      # mean score by the reward model that is climbed
    true: np.ndarray    # mean true score


def of(figures, arm):
    """The curves of an arm, made of the lists that experiments.of_rollouts returns. Runs of PPO
    begin where SFT is, if that was measured apart: a first rollout knows it less well."""
    curves = Curves(*(np.array(figures[arm][name]) for name in Curves._fields))
    if "sft" in figures and not arm.startswith("bon"):
        curves.true[0] = figures["sft"]["true"][0]
    return curves


def smooth(values, width=5):
    """Moving average of `width` values (T,) -> (T - width + 1,)."""
    return np.convolve(values, np.ones(width) / width, mode="valid")


# ---- the peak of the true score ---------------------------------------------------------------

def at_peak(curves, name):
    """The smoothed curve called `name` where the smoothed true score is highest."""
    return smooth(getattr(curves, name))[np.argmax(smooth(curves.true))]


def rise(curves):
    """How much the true score rises to its peak, beyond noise."""
    return at_peak(curves, "true") - curves.true[0] - NOISE


def fall(curves):
    """How much the true score falls from its peak to the end, beyond noise."""
    return at_peak(curves, "true") - smooth(curves.true)[-1] - NOISE


def distance(curves):
    """How far from SFT the peak is, sqrt(KL) as in [Gao]."""
    return max(0, at_peak(curves, "kl")) ** 0.5     # estimated from samples, a KL may be below 0


# ---- whole curves -----------------------------------------------------------------------------

def shape(d, form):
    """g(d) of `fit`."""
    return d if form == "bon" else np.log(d)


def fit(d, gain, form):
    """Least squares of gain = d (alpha - beta g(d)); g(d) is d for "bon", log d for "rl".

    [Gao] Eq. 1, 2. d and gain (N,), d > 0. Returns (alpha, beta) and R squared.
    """
    design = np.stack([d, -d * shape(d, form)], 1)           # (N, 2)
    (alpha, beta), *_ = np.linalg.lstsq(design, gain, rcond=None)
    errors = gain - design @ [alpha, beta]
    return (alpha, beta), 1 - (errors ** 2).sum() / ((gain - gain.mean()) ** 2).sum()


def gained(curves):
    """How far a run is from SFT, sqrt(KL), and what its true score gained there: two arrays, the
    nearest first. At the start there is no gain, and log d has no value."""
    d = np.sqrt(np.maximum(curves.kl, 0))
    gain = curves.true - curves.true[0]
    order = np.argsort(d, kind="stable")
    order = order[d[order] > 0.1]
    return d[order], gain[order]


def gain_fit(curves, form):
    """R squared of a form of [Gao], "rl" or "bon", for the true score that a run gained."""
    return fit(*gained(curves), form)[1]


def fitted_peak(curves):
    """Where the fit d (alpha - beta d) to a run's gain is highest: alpha / 2 beta, if that is
    between SFT and twice the way that was gone, or else the nearer of these."""
    d, gain = gained(curves)
    (alpha, beta), _ = fit(d, gain, "bon")
    if beta <= 0:                                            # it never turns
        return 2 * d[-1] if alpha > 0 else 0.0
    return float(np.clip(alpha / (2 * beta), 0, 2 * d[-1]))


def gain_at(curves, distance):
    """The true score gained at a distance from SFT, points, or at the end of a run that does not go
    so far: of the smoothed curves."""
    d = np.sqrt(np.maximum(smooth(curves.kl), 0))
    order = np.argsort(d, kind="stable")
    return float(np.interp(distance, d[order], smooth(curves.true)[order]) - curves.true[0])


def extrapolation_error(curves, form, seen=0.6):
    """A form is fitted to the nearer points of a run, a share of them: by how much it misses the
    others, root mean square, points."""
    d, gain = gained(curves)
    n = round(seen * len(d))
    (alpha, beta), _ = fit(d[:n], gain[:n], form)
    errors = gain[n:] - d[n:] * (alpha - beta * shape(d[n:], form))
    return float(np.sqrt(np.mean(errors ** 2)))


def reach(curves):
    """How far from SFT a run went."""
    return float(np.sqrt(max(0.0, smooth(curves.kl).max())))


def frontier_gap(free, penalty, beyond=0.5):
    """By how much the true score of a run with the KL penalty exceeds that of a free one at the
    same KL, mean over its rollouts beyond so many nats, as far as the free one went."""
    kl, true = smooth(free.kl), smooth(free.true)
    order = np.argsort(kl)
    there = smooth(penalty.kl)
    compared = (there > beyond) & (there < kl.max())
    same_kl = np.interp(there[compared], kl[order], true[order])
    return float(np.mean(smooth(penalty.true)[compared] - same_kl))


def over_distance(runs, name, points=60):
    """A curve of several seeds' runs over one grid of distances sqrt(KL), as far as all runs went.

    Returns the grid (points,) and the curves (seeds, points).
    """
    def smoothed(values):
        return np.append(values[0], smooth(values))         # from where the run began
    ways = [np.sqrt(np.maximum(smoothed(run.kl), 0)) for run in runs]
    ways = [np.maximum.accumulate(way) for way in ways]     # np.interp needs x that do not fall
    grid = np.linspace(0, min(way[-1] for way in ways), points)
    curves = [np.interp(grid, way, smoothed(getattr(run, name))) for way, run in zip(ways, runs)]
    return grid, np.array(curves)
