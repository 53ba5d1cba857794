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


def test_curves_are_made_of_lists():
    lists = {"true": [3.0, 2.0], "accuracy": 1, "rm": [0.1, 0.2], "kl": [0.0, 1.5]}
    run = curves.of({"free 200": lists}, "free 200")
    assert [x.tolist() for x in run] == [[0.0, 1.5], [0.1, 0.2], [3.0, 2.0]]


def test_a_run_of_ppo_begins_where_sft_is():
    """Best-of-n was measured on prompts of its own."""
    lists = {"true": [3.0, 2.0], "rm": [0.1, 0.2], "kl": [0.0, 1.5]}
    figures = {"sft": {"true": [2.5]}, "free 200": lists, "bon 200": lists}
    assert curves.of(figures, "free 200").true.tolist() == [2.5, 2.0]
    assert curves.of(figures, "bon 200").true.tolist() == [3.0, 2.0] == lists["true"]


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


@pytest.mark.parametrize("peak", [0.9, 2.0, 3.3])
def test_the_peak_of_the_fit_is_that_of_the_curve(peak):
    """Found by trying many places; in any order of the rollouts, and before the peak as well."""
    d = np.linspace(0, 2.5, 30)
    gain = curve("bon", d, alpha=2.0, beta=1 / peak)
    many = np.linspace(0, 5, 50_001)
    assert many[curve("bon", many, alpha=2.0, beta=1 / peak).argmax()] == pytest.approx(peak, 1e-3)
    shuffled = np.append(0, np.random.default_rng(0).permutation(29) + 1)
    for order in (slice(None), shuffled):
        run = Curves(d[order] ** 2, d, 0.4 + gain[order])
        assert curves.fitted_peak(run) == pytest.approx(peak)


def test_a_fit_that_does_not_turn_has_its_peak_at_the_end():
    d = np.linspace(0, 2, 20)
    assert curves.fitted_peak(Curves(d**2, d, d + d**2)) == pytest.approx(4)
    assert curves.fitted_peak(Curves(d**2, d, 2 * d - d**2 / 50)) == pytest.approx(4)
    assert curves.fitted_peak(Curves(d**2, d, -d - d**2)) == 0
    assert curves.fitted_peak(Curves(d**2, d, -d + d**2 / 9)) == 0


def test_the_gain_at_a_distance():
    d = np.linspace(0, 3, 400)
    run = Curves(d**2, d, 0.4 + 2 * d)
    assert curves.gain_at(run, 1.0) == pytest.approx(2, abs=0.01)
    assert curves.gain_at(run, 2.5) == pytest.approx(5, abs=0.01)


@pytest.mark.parametrize(("form", "other"), [("bon", "rl"), ("rl", "bon")])
def test_the_form_that_made_a_curve_foretells_its_end(form, other):
    d = np.linspace(0, 4, 60)
    true = np.append(0.7, 0.7 + curve(form, d[1:]))
    run = Curves(d**2, true, true)
    assert curves.extrapolation_error(run, form) == pytest.approx(0, abs=1e-9)
    assert curves.extrapolation_error(run, other) > 0.05
    # of what the fit has seen nothing counts, of the others each as much
    bent = true.copy()
    bent[-1] += 0.5
    missed = curves.extrapolation_error(run._replace(true=bent), form)
    unseen = (d > 0.1).sum() - round(0.6 * (d > 0.1).sum())
    assert missed == pytest.approx(0.5 / unseen**0.5)


@pytest.mark.parametrize("shift", [0, 0.7, -0.7])
def test_frontiers_are_compared_at_the_same_kl(shift):
    kl, inside = np.linspace(0, 10, 60), np.linspace(2, 6, 30)
    free, penalty = Curves(kl, kl, 2 * kl), Curves(inside, inside, 2 * inside + shift)
    assert curves.frontier_gap(free, penalty) == pytest.approx(shift, abs=1e-9)
    # what lies near the start, or where the free run never was, is not compared
    kl = np.linspace(0, 3, 60)
    rising = Curves(kl, kl, 2 * kl + np.where(kl > 2, 50.0, 0.0) * (kl > 2.1))
    short = Curves(free.kl / 5, free.rm, free.true / 5)
    assert abs(curves.frontier_gap(short, rising, beyond=1.0)) < 1
    assert curves.reach(short) == pytest.approx(2**0.5, abs=0.05)


def test_runs_are_compared_as_far_as_all_of_them_went():
    """The true score of both is their distance, but one went twice as far."""
    near, far = np.linspace(0, 2, 200), np.linspace(0, 4, 200)
    runs = [Curves(d**2, d, d) for d in (near, far)]
    grid, true = curves.over_distance(runs, "true", points=9)
    assert true.shape == (2, 9) and grid[0] == 0 and grid[-1] == pytest.approx(2, abs=0.05)
    assert np.abs(true - grid).max() < 0.05
