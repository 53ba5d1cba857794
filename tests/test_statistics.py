"""Win rates, best of n and ratings: against enumerations, and intervals that cover the truth."""

import itertools
import math

import numpy as np
import pytest

from evidence import statistics

# ---- win rates


def column(*scores):
    """One answer to each prompt (N, 1)."""
    return np.array(scores, float)[:, None]


def few_scores(seed, n, m, levels=3, prompts=4):
    """Scores with many ties of `ours` (prompts, n) and `theirs` (prompts, m)."""
    rng = np.random.default_rng(seed)
    return rng.integers(levels, size=(prompts, n)), rng.integers(levels, size=(prompts, m))


def all_pairs(ours, theirs):
    """[(prompt, score of ours, score of theirs), ...], one by one."""
    return [(i, x, y) for i in range(len(ours)) for x in ours[i] for y in theirs[i]]


def test_win_rate_counts_ties_half():
    win_rate = statistics.win_rate
    assert win_rate(column(1, 2, 3), column(1, 3, 2)) == pytest.approx(0.5)
    assert win_rate(column(1, 2, 3, 4), column(1, 1, 2, 3)) == pytest.approx(3.5 / 4)
    assert win_rate(column(1, 2), column(1, 2)) == 0.5
    assert win_rate(column(0, 0), column(1, 1)) == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (2, 5)])
def test_all_pairs_of_answers_to_a_prompt_are_compared(n, m):
    ours, theirs = few_scores(n, n, m)
    pairs = all_pairs(ours, theirs)
    won, tied, lost = statistics.outcomes(ours, theirs)
    for i in range(4):
        of_prompt = [(x, y) for at, x, y in pairs if at == i]
        assert won[i] == sum(x > y for x, y in of_prompt)
        assert tied[i] == sum(x == y for x, y in of_prompt)
        assert lost[i] == sum(x < y for x, y in of_prompt)
    rate = sum((x > y) + (x == y) / 2 for _, x, y in pairs) / len(pairs)
    assert statistics.win_rate(ours, theirs) == pytest.approx(rate)
    found = statistics.shares(ours, theirs)
    more, less = sum(x > y for _, x, y in pairs), sum(x < y for _, x, y in pairs)
    assert found["won"] == pytest.approx(more / len(pairs))
    assert found["lost"] == pytest.approx(less / len(pairs))
    assert found["tied"] == pytest.approx(1 - (more + less) / len(pairs))
    assert found["decided"] == pytest.approx(more / (more + less))


def test_a_system_ties_with_itself_whatever_it_says():
    """Its answers to a prompt beat one another, as often as they lose."""
    for n in (1, 3, 7):
        ours, _ = few_scores(n, n, 1, prompts=29)
        assert statistics.win_rate(ours, ours) == 0.5
        assert statistics.bootstrap(ours, ours, np.arange(29), resamples=50) == [0.5, 0.5]
        length = np.random.default_rng(0).integers(1, 9, (29, n))
        fair = statistics.length_controlled(ours, ours, length, length)
        assert fair == pytest.approx(0.5, abs=1e-9)
    found = statistics.shares(ours, ours)
    assert found["won"] == found["lost"] > 0 and found["decided"] == 0.5


def test_nothing_is_decided_where_everything_ties():
    assert statistics.shares(np.ones((3, 2)), np.ones((3, 2))) == {"won": 0, "tied": 1, "lost": 0}


def test_agreement_counts_the_pairs_of_each_prompt():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, (9, 5)), rng.integers(0, 3, (9, 5))
    right = []
    for p, g in zip(proxy, gold):
        for i, j in itertools.permutations(range(5), 2):
            if g[i] > g[j]:
                right.append(1 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0)
    assert statistics.agreement(proxy, gold) == pytest.approx(np.mean(right))
    assert statistics.agreement(gold * 2.0, gold) == 1
    assert statistics.agreement(-gold, gold) == 0
    assert statistics.agreement(proxy, np.ones((9, 5))) is None


def test_the_bootstrap_interval_covers_the_truth_19_times_in_20():
    """Scores 0, 1, 2 at .2 .3 .5 against .5 .3 .2: wins .3*.5 + .5*.8 = .55, ties .29."""
    for n in (1, 4):
        rng, covered, widths = np.random.default_rng(0), 0, []
        for draw in range(200):
            ours = rng.choice(3, (120, n), p=[0.2, 0.3, 0.5])
            theirs = rng.choice(3, (120, n), p=[0.5, 0.3, 0.2])
            low, high = statistics.bootstrap(ours, theirs, np.arange(120), draw, resamples=400)
            covered += low <= 0.55 + 0.29 / 2 <= high
            widths.append(high - low)
        assert 0.90 <= covered / 200 <= 0.99
        assert 0.05 < min(widths) * n**0.5 and max(widths) * n**0.5 < 0.25


def test_the_interval_is_a_function_of_its_seed_and_narrows_with_prompts():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 1))
    names = np.arange(2000)

    def interval_of(n):
        return statistics.bootstrap(ours[:n], theirs[:n], names[:n], seed=1, resamples=500)

    assert interval_of(100) == interval_of(100)
    few, many = interval_of(100), interval_of(2000)
    assert many[1] - many[0] < (few[1] - few[0]) / 3


def test_answers_to_the_same_prompt_again_do_not_narrow_the_interval():
    """Neither as rows of their own, nor as answers that are all the same."""
    rng = np.random.default_rng(0)
    ours, theirs, names = rng.normal(size=(200, 1)), rng.normal(size=(200, 1)), np.arange(200)
    once = statistics.bootstrap(ours, theirs, names)
    rows = statistics.bootstrap(np.tile(ours, (9, 1)), np.tile(theirs, (9, 1)), np.tile(names, 9))
    answers = statistics.bootstrap(np.tile(ours, 9), np.tile(theirs, 9), names)
    assert rows == answers == once


def test_the_interval_covers_the_truth_if_answers_to_one_prompt_depend():
    """60 prompts, some of them twice or more; all answers to a prompt share a taste."""
    rng, covered = np.random.default_rng(1), 0
    for draw in range(300):
        prompts = np.repeat(np.arange(60), rng.integers(1, 4, 60))
        p = rng.choice([0.2, 0.9], 60)[prompts]
        ours, theirs = rng.random((len(p), 2)) < p[:, None], np.full((len(p), 2), 0.5)
        low, high = statistics.bootstrap(ours, theirs, prompts, draw, resamples=300)
        covered += low <= 0.55 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_students_t_of_any_number_of_values():
    """Closed forms for one and two degrees of freedom, the published table, and the normal's."""
    t = statistics.student_t
    assert t(2) == pytest.approx(math.tan(0.475 * math.pi), abs=1e-7)
    assert t(3) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=1e-7)
    table = {5: 2.776445, 10: 2.262157, 11: 2.228139, 12: 2.200985, 31: 2.042272, 101: 1.983972}
    assert {n: round(t(n), 6) for n in table} == table
    assert t(10**6) == pytest.approx(1.959964 + 2.4e-6, abs=1e-6)
    falling = [t(n) for n in range(2, 200)]
    assert falling == sorted(falling, reverse=True)


def test_students_t_is_scipys():
    quantile = pytest.importorskip("scipy.stats").t.ppf
    for n in (2, 3, 7, 57, 58, 59, 1000, 10**7):
        assert statistics.student_t(n) == pytest.approx(quantile(0.975, n - 1), abs=1e-7)


def test_the_interval_of_many_seeds_covers_the_truth_19_times_in_20():
    """Of 12 values; the normal's 1.96 would cover it 92 times in 100."""
    values = np.random.default_rng(0).normal(size=(12, 20_000))
    mean, half = statistics.interval(values)
    assert np.mean(abs(mean) < half) == pytest.approx(0.95, abs=0.005)


def test_the_interval_over_seeds():
    """0.6, 0.7, 0.8: standard deviation 0.1, Student's t of two degrees of freedom 4.302653."""
    mean, half = statistics.interval([0.6, 0.7, 0.8])
    assert (mean, half) == pytest.approx((0.7, 4.302653 * 0.1 / 3**0.5), rel=1e-6)
    mean, half = statistics.interval([[1.0, 2.0], [1.0, 4.0]])
    assert mean.tolist() == [1, 3] and half == pytest.approx([0, 12.7062047])
    assert statistics.interval([5.0]) == (5, math.inf)


def test_students_t_of_other_shares():
    """Closed forms again, the published table of one-sided 95 %, and scipy's where it is."""
    t = statistics.student_t
    for share in (0.2, 0.6, 0.9):
        assert t(2, share) == pytest.approx(math.tan(share * math.pi / 2), abs=1e-7)
        assert t(3, share) == pytest.approx(share * math.sqrt(2 / (1 - share**2)), abs=1e-7)
    table = {5: 2.131847, 10: 1.833113, 31: 1.697261}
    assert {n: round(t(n, 0.9), 6) for n in table} == table


@pytest.mark.parametrize(
    ("values", "margin", "sign"),
    [
        ([0.4, 0.5, 0.6], 0.1, "above"),
        ([-0.4, -0.5, -0.6], 0.1, "below"),
        ([-0.4, 0.5, 0.6], 0.1, "unknown"),
        ([-0.01, 0.0, 0.01], 0.1, "negligible"),
        # it is above zero, but nearer to it than what matters
        ([0.04, 0.05, 0.06], 0.1, "negligible"),
        ([-0.04, -0.05, -0.06], 0.1, "negligible"),
        ([0.04, 0.05, 0.06], 0.0, "above"),
        # it is above zero, but who knows whether it matters
        ([0.05, 0.09, 0.10], 0.1, "unknown"),
        ([-0.05, -0.09, -0.10], 0.1, "unknown"),
        ([0.1, 0.1, 0.1], 0.1, "above"),
        ([0.0, 0.0, 0.0], 0.0, "unknown"),
    ],
)
def test_the_sign_of_an_effect(values, margin, sign):
    assert statistics.effect(values, margin).sign == sign


def test_an_effect_by_hand():
    """0.6, 0.7, 0.8: standard deviation 0.1; Student's t, two degrees of freedom, 4.302653 for
    97.5 % and 1.060660 for 80 %."""
    found = statistics.effect([0.6, 0.7, 0.8], 0.05)
    assert (found.mean, found.n, found.margin) == (pytest.approx(0.7), 3, 0.05)
    error = 0.1 / 3**0.5
    assert found.half == pytest.approx(4.302653 * error, rel=1e-6)
    assert found.deviation == pytest.approx(0.1)
    # 0.7 - 0.248 is more than 0.4, and less than 0.5
    assert statistics.effect([0.6, 0.7, 0.8], 0.4).matters
    assert not statistics.effect([0.6, 0.7, 0.8], 0.5).matters
    assert statistics.effect([-0.6, -0.7, -0.8], 0.4).matters
    assert found.findable == pytest.approx((4.302653 + 1.060660) * error, rel=1e-6)


def signs(mean, n, margin):
    """What is found of 4,000 effects of `mean`, over n seeds of standard deviation 1."""
    values = np.random.default_rng(n).normal(mean, size=(4000, n))
    return np.array([statistics.effect(v, margin).sign for v in values])


@pytest.mark.parametrize("n", [5, 12])
def test_of_effects_as_large_as_the_margin_one_in_twenty_is_called_negligible(n):
    """At most; fewer where two of four tests fail for want of data."""
    assert np.mean(signs(2.0, n, 2.0) == "negligible") == pytest.approx(0.05, abs=0.012)
    assert np.mean(signs(-0.3, n, 0.3) == "negligible") < 0.05
    assert np.mean(signs(0.0, n, 2.0) == "negligible") > 0.9


@pytest.mark.parametrize("n", [5, 10, 20])
def test_what_can_be_found_is_found_four_times_in_five(n):
    findable = (statistics.student_t(n) + statistics.student_t(n, 0.6)) / n**0.5
    assert np.mean(signs(findable, n, 0.0) == "above") == pytest.approx(0.8, abs=0.03)
    assert np.mean(signs(0.0, n, 0.0) == "above") == pytest.approx(0.025, abs=0.01)


# ---- best of n


@pytest.mark.parametrize("levels", [3, 1000])
def test_best_of_n_is_the_mean_over_all_subsets(levels):
    """With 3 levels nearly all tie: a subset's best is then each of those that tie, equally."""
    rng, N = np.random.default_rng(levels), 7
    proxy, gold = rng.integers(levels, size=(4, N)) / 8, rng.normal(size=(4, N))
    for n in range(1, N + 1):
        best = []
        for p, g in zip(proxy, gold):
            for subset in map(list, itertools.combinations(range(N), n)):
                best.append(g[subset][p[subset] == p[subset].max()].mean())
        found = statistics.best_of_n(proxy, gold, n)
        assert found == pytest.approx(np.mean(best), abs=1e-12)


def test_best_of_n_of_a_thousand_samples():
    """Of ranks 1 ... N the highest of n is n (N + 1) / (n + 1) on average."""
    rng = np.random.default_rng(0)
    ranks = rng.permuted(np.tile(np.arange(1.0, 1001), (2, 1)), axis=1)
    for n in (1, 2, 16, 500, 999, 1000):
        want = n * 1001 / (n + 1)
        assert statistics.best_of_n(ranks, ranks, n) == pytest.approx(want, rel=1e-12)
    for n in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            statistics.best_of_n(ranks, ranks, n)


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_kl_of_best_of_n(n):
    """The best of n uniform numbers has the density n u^(n-1). Of a few responses that come again
    and again it is less."""
    bound = statistics.best_of_n_kl(n)
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = n * u ** (n - 1)
    assert bound == pytest.approx(np.mean(density * np.log(density + 1e-300)), abs=1e-4)
    p = np.array([0.05, 0.4, 0.25, 0.2, 0.1])  # worst first: the best is at most the k-th
    best = np.diff(np.append(0, p.cumsum()) ** n)  # with probability cumsum^n
    kl = (best[best > 0] * np.log((best / p)[best > 0])).sum()
    assert kl <= bound + 1e-12 and (n == 1 or kl < bound - 0.01)


# ---- ratings


def test_bradley_terry_recovers_the_strengths_of_exact_wins():
    strengths = np.array([0.0, 3.0, -1.5, 0.4, -1.9])
    wins = 7 / (1 + np.exp(strengths[None] - strengths[:, None]))
    assert statistics.bradley_terry(wins, tie=0) == pytest.approx(strengths, abs=1e-6)
    assert statistics.bradley_terry(wins * 1e8) == pytest.approx(strengths, abs=1e-6)
    assert abs(statistics.bradley_terry(wins)).max() < abs(strengths).max()


def test_at_bradley_terrys_maximum_everyone_wins_as_often_as_expected():
    """d log-likelihood / d s_i = wins of i - sum over j of games(i, j) sigmoid(s_i - s_j)."""
    one_sided = [  # here whole Newton steps end nowhere
        [0, 0, 0, 1e2, 0],
        [1e4, 0, 1e5, 0, 0],
        [1e4, 10, 0, 1, 1],
        [0.1, 0, 0, 0, 0],
        [1e4, 10, 0, 0, 0],
    ]
    seen = [np.array(one_sided) + 0.5]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen.append(rng.integers(1, 10 ** (1 + seed % 4), (6, 6)).astype(float))
    for wins in seen:
        np.fill_diagonal(wins, 0)
        s = statistics.bradley_terry(wins, tie=0)
        expected = ((wins + wins.T) / (1 + np.exp(s[None] - s[:, None]))).sum(1)
        assert expected == pytest.approx(wins.sum(1), rel=1e-8)
        assert s.mean() == pytest.approx(0, abs=1e-12)


def test_a_system_that_wins_everything_has_a_finite_rating():
    """800 wins and one tie are odds of 800.5 to 0.5."""
    s = statistics.bradley_terry(np.array([[0.0, 800], [0, 0]]))
    assert s[0] - s[1] == pytest.approx(math.log(800.5 / 0.5), abs=1e-6)
    chain = np.triu(np.full((7, 7), 1e6), 1)
    found = statistics.bradley_terry(chain)
    assert np.isfinite(found).all() and (np.diff(found) < 0).all()
    assert np.isfinite(statistics.bradley_terry(chain, tie=0)).all()


def test_ratings_are_win_rates_and_elo():
    first = np.random.default_rng(0).random(300) < 10 / 11
    scores = np.array([first, ~first, first])[:, :, None]
    rates, elo, ci = statistics.ratings(scores, np.arange(300), 1, resamples=80)
    assert rates[0, 1] == first.mean() and rates[0, 2] == 0.5
    assert rates == pytest.approx(1 - rates.T)
    assert elo[1] == 0 and (ci[1] == 0).all() and elo[0] == pytest.approx(elo[2])
    assert ci[0, 0] <= elo[0] <= ci[0, 1]


def test_ratings_are_those_of_all_pairs_of_answers():
    """A prompt is one game, and the pairs share it; prompts that come twice are two."""
    scores = np.random.default_rng(3).integers(3, size=(3, 5, 4))
    names = np.array([0, 1, 1, 2, 3])
    rates, elo, ci = statistics.ratings(scores, names, 2, resamples=50)
    wins = np.zeros((3, 3))
    for i, j in itertools.product(range(3), repeat=2):
        for _, x, y in all_pairs(scores[i], scores[j]):
            wins[i, j] += ((x > y) + (x == y) / 2) / 16
    assert rates == pytest.approx(wins / 5)
    strengths = statistics.ELO * statistics.bradley_terry(wins)
    assert elo == pytest.approx(strengths - strengths[2])
    answers_again = np.tile(scores, (1, 1, 3))
    again = statistics.ratings(answers_again, names, 2, resamples=50)
    assert again[1] == pytest.approx(elo) and again[2] == pytest.approx(ci)


def test_the_interval_of_elo_covers_the_truth():
    """Scores of two systems are one apart, the higher one's with odds of 10 to 1: 400 Elo."""
    rng, covered = np.random.default_rng(0), 0
    for draw in range(60):
        first = rng.random((300, 1)) < 10 / 11
        _, _, ci = statistics.ratings(
            np.array([first, ~first]), np.arange(300), 1, draw, resamples=100
        )
        covered += ci[0, 0] <= 400 <= ci[0, 1]
    assert 0.85 <= covered / 60


def test_the_interval_of_ratings_does_not_narrow_with_the_same_prompts_again():
    scores, names = np.random.default_rng(0).normal(size=(3, 80, 1)), np.arange(80)
    once, again = (
        statistics.ratings(np.tile(scores, (1, k, 1)), np.tile(names, k), 0, resamples=200)[2]
        for k in (1, 9)
    )
    assert again == pytest.approx(once, rel=0.05)  # but for the tie that is added


# ---- length


def test_length_controlled_is_fair_to_systems_that_differ_in_length_only():
    """The longer answer wins with a probability that grows with tanh(d / std d); ours is longer."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(10, 60, (20_000, 1)), rng.integers(5, 40, (20_000, 1))
    d, even = ours - theirs, np.full((20_000, 1), 0.5)
    for advantage in (0.0, 1.0):
        chance = 1 / (1 + np.exp(-advantage - 2 * np.tanh(d / d.std())))
        won = rng.random((20_000, 1)) < chance
        found = statistics.length_controlled(won, even, ours, theirs)
        assert found == pytest.approx(1 / (1 + math.exp(-advantage)), abs=0.015)
        assert statistics.win_rate(won, even) > found + 0.04


def test_length_controlled_is_fitted_to_all_pairs_of_answers():
    """To each of them one by one, which is what the sums by difference stand for."""
    for n, m in ((2, 2), (1, 3), (4, 2)):
        ours, theirs = few_scores(n, n, m, prompts=9)
        our_length, their_length = few_scores(10 + n, n, m, levels=7, prompts=9)
        pairs = zip(all_pairs(ours, theirs), all_pairs(our_length, their_length))
        won, d = [], []
        for (_, x, y), (_, longer, shorter) in pairs:
            won.append((x > y) + (x == y) / 2)
            d.append(longer - shorter)
        x = np.stack([np.ones(len(d)), np.tanh(np.array(d) / np.std(d))], 1)
        a, _ = statistics.logistic(x, np.array(won), np.ones(len(d)), ridge=1e-6)
        found = statistics.length_controlled(ours, theirs, our_length, their_length)
        assert found == pytest.approx(1 / (1 + math.exp(-a)), abs=1e-6)
        assert found != pytest.approx(statistics.win_rate(ours, theirs), abs=1e-3)


def test_length_controlled_is_the_win_rate_at_equal_lengths():
    ours, theirs = np.random.default_rng(0).integers(3, size=(2, 50, 1))
    length = np.arange(50)[:, None]
    for longer in (0, 4):
        found = statistics.length_controlled(ours, theirs, length + longer, length)
        assert found == pytest.approx(statistics.win_rate(ours, theirs), abs=1e-6)


def test_length_controlled_is_finite_where_length_decides_everything():
    d, zeros = column(-3, -1, 2, 5), np.zeros((4, 1))
    for ours in (d, -d, zeros + 1, zeros - 1):
        assert 0 <= statistics.length_controlled(ours, zeros, d, zeros) <= 1
    assert statistics.length_controlled(zeros + 1, zeros, d, zeros) > 0.99
