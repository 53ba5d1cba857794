"""evidence/curves.py: peaks, distances and fits of curves that were made by hand."""

import math

import numpy as np
import pytest

from evidence import curves
from evidence.curves import Curves

UP_AND_DOWN = [float(x) for x in (*range(11), *range(9, -1, -1))]  # the peak of 10 at 10


def run_of(true, kl=4.0, rm=0.0):
    return Curves(np.full(len(true), kl), np.full(len(true), rm), np.array(true))


def curve(form, d, alpha=2.0, beta=0.3):
    return d * (alpha - beta * (d if form == "bon" else np.log(d)))


def test_curves_are_figures_and_back():
    run = Curves(np.array([0.0, 1.5]), np.array([0.1, 0.2]), np.array([3.0, 2.0]))
    figures = curves.to_figures("free 200", run)
    assert figures == {
        "free 200 kl": [0.0, 1.5],
        "free 200 rm": [0.1, 0.2],
        "free 200 true": [3.0, 2.0],
    }
    assert np.array_equal(curves.of_figures(figures | {"other kl": []}, "free 200"), run)


def test_smooth_is_a_moving_average():
    assert curves.smooth([0, 5, 10, 0, 0, 0, 5]).tolist() == pytest.approx([3, 3, 3])
    assert curves.smooth([1, 2, 6], width=2).tolist() == pytest.approx([1.5, 4])


def test_rise_fall_and_distance_of_a_peak():
    run = run_of(UP_AND_DOWN)._replace(rm=np.arange(21))
    assert curves.rise(run) == pytest.approx((8 + 9 + 10 + 9 + 8) / 5 - 0 - 0.1)
    assert curves.fall(run) == pytest.approx(8.8 - (4 + 3 + 2 + 1 + 0) / 5 - 0.1)
    assert curves.at_peak(run, "rm") == pytest.approx(10)
    assert curves.distance(run) == pytest.approx(2)
    assert curves.distance(run_of(UP_AND_DOWN, kl=-1.0)) == 0
    assert curves.fall(run_of(np.arange(21.0))) == pytest.approx(-0.1)


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_a_fit_finds_what_made_the_curve_and_prefers_its_form(form):
    d, other = np.linspace(0.2, 5, 40), {"bon": "rl", "rl": "bon"}[form]
    found, r2 = curves.fit(d, curve(form, d), form)
    assert found == pytest.approx((2.0, 0.3)) and r2 == pytest.approx(1)
    noisy = curve(form, d) + 0.02 * np.random.default_rng(0).standard_normal(40)
    assert curves.fit(d, noisy, other)[1] < curves.fit(d, noisy, form)[1] < 1
    assert curves.fit(d, noisy, form)[0] == pytest.approx((2.0, 0.3), abs=0.05)


def test_r_squared_of_a_fit_that_knows_the_mean_only_is_0():
    _, r2 = curves.fit(np.ones(4), np.array([4.0, 6.0, 4.0, 6.0]), "rl")
    assert r2 == pytest.approx(0, abs=1e-9)


def test_the_law_that_made_a_run_fits_it_best():
    """Of the gain over a start of 0.7, which is left out where d is about 0."""
    rl, bon = np.linspace(0, 5, 50), np.sqrt([math.log(n) - (n - 1) / n for n in 2 ** np.arange(9)])
    for d, form, wrong in ((rl, "rl", "bon"), (bon, "bon", "rl")):
        true = np.append(0.7, 0.7 + curve(form, d[1:]))
        run = Curves(d**2, true, true)
        assert curves.gain_fit(run, form) == pytest.approx(1)
        assert curves.gain_fit(run, wrong) < 1 - 1e-6


@pytest.mark.parametrize("shift", [0, 0.7, -0.7])
def test_frontiers_are_compared_at_the_same_kl(shift):
    kl, inside = np.linspace(0, 10, 60), np.linspace(2, 6, 30)
    free, penalty = Curves(kl, kl, 2 * kl), Curves(inside, inside, 2 * inside + shift)
    assert curves.frontier_gap(free, penalty) == pytest.approx(abs(shift), abs=1e-9)


def test_runs_are_compared_as_far_as_all_of_them_went():
    """The true score of both is their distance, but one went twice as far."""
    near, far = np.linspace(0, 2, 200), np.linspace(0, 4, 200)
    runs = [Curves(d**2, d, d) for d in (near, far)]
    grid, true = curves.over_distance(runs, "true", points=9)
    assert true.shape == (2, 9) and grid[0] == 0 and grid[-1] == pytest.approx(2, abs=0.05)
    assert np.abs(true - grid).max() < 0.05
