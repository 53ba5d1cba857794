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


def to_figures(run, curves):
    """Curves of a run, "free 200" say -> figures "free 200 kl", "free 200 rm", "free 200 true"."""
    named = curves._asdict()
    return {f"{run} {name}": np.asarray(values).tolist() for name, values in named.items()}


def of_figures(figures, run):
    """Curves of a run from its figures, which are called as to_figures calls them."""
    return Curves(*(np.array(figures[f"{run} {name}"]) for name in Curves._fields))


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

def fit(d, gain, form):
    """Least squares of gain = d (alpha - beta g(d)); g(d) is d for "bon", log d for "rl".

    [Gao] Eq. 1, 2. d and gain (N,), d > 0. Returns (alpha, beta) and R squared.
    """
    g = d if form == "bon" else np.log(d)
    design = np.stack([d, -d * g], 1)       # (N, 2)
    (alpha, beta), *_ = np.linalg.lstsq(design, gain, rcond=None)
    errors = gain - design @ [alpha, beta]
    return (alpha, beta), 1 - (errors ** 2).sum() / ((gain - gain.mean()) ** 2).sum()


def gain_fit(curves, form):
    """R squared of a form of [Gao], "rl" or "bon", for the true score that a run gained."""
    d = np.sqrt(np.maximum(curves.kl, 0))
    gain = curves.true - curves.true[0]
    away = d > 0.1                  # at the start there is no gain, and log d has no value
    return fit(d[away], gain[away], form)[1]


def frontier_gap(free, penalty):
    """How far apart the true scores of a run with the KL penalty and a free one are at one KL."""
    kl, true = smooth(free.kl), smooth(free.true)
    order = np.argsort(kl)
    same_kl = np.interp(smooth(penalty.kl), kl[order], true[order])
    return np.mean(np.abs(smooth(penalty.true) - same_kl))


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
