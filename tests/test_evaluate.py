"""Who wins: win rates and their interval, the KL by enumeration, the loss by hand, and the report."""

import itertools
import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import evaluate
import sandbox
from model import GPT, GPTConfig, Scorer, save_checkpoint

ENC = data.get_tokenizer("sandbox")
PROMISED = {
    "name",
    "win_rate",
    "win_rate_ci",
    "elo",
    "elo_ci",
    "length_controlled",
    "true_score",
    "helpful",
    "hallucination",
    "harmless",
    "rm_score",
    "kl",
    "pretrain_loss",
    "length",
}


def tiny(seed, vocab=ENC.n_vocab, block=128, kind=GPT, spread=0.3):
    torch.manual_seed(seed)
    model = kind(GPTConfig(vocab, block, 1, 2, 32)).eval()
    trunk = model if kind is GPT else model.trunk
    torch.nn.init.normal_(trunk.wte.weight, 0.0, spread)
    return model


# -------------------------------------------------------------------------------------------------
# figures


def test_win_rate_counts_ties_half():
    assert evaluate.win_rate(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(0.5)
    assert evaluate.win_rate(np.array([1, 2, 3, 4]), np.array([1, 1, 2, 3])) == pytest.approx(3.5 / 4)
    assert evaluate.win_rate(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert evaluate.win_rate(np.array([0, 0]), np.array([1, 1])) == 0


def test_the_bootstrap_interval_covers_the_truth_19_times_in_20():
    """Scores 0, 1, 2 at .2 .3 .5 against .5 .3 .2: wins .3*.5 + .5*.8 = .55, ties .29, win rate .695."""
    rng, covered, widths = np.random.default_rng(0), 0, []
    for draw in range(200):
        ours, theirs = rng.choice(3, 120, p=[0.2, 0.3, 0.5]), rng.choice(3, 120, p=[0.5, 0.3, 0.2])
        low, high = evaluate.bootstrap(ours, theirs, np.arange(120), seed=draw, resamples=400)
        covered += low <= 0.695 <= high
        widths.append(high - low)
    assert 0.90 <= covered / 200 <= 0.99
    assert 0.05 < min(widths) and max(widths) < 0.25


def test_the_interval_is_a_function_of_its_seed_and_narrows_with_prompts():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=2000), rng.normal(size=2000)
    names = np.arange(2000)
    assert evaluate.bootstrap(ours, theirs, names, 1) == evaluate.bootstrap(ours, theirs, names, 1)
    few, many = (evaluate.bootstrap(ours[:n], theirs[:n], names[:n]) for n in (100, 2000))
    assert many[1] - many[0] < (few[1] - few[0]) / 3


def test_answers_to_the_same_prompt_again_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    ours, theirs, names = rng.normal(size=200), rng.normal(size=200), np.arange(200)
    once = evaluate.bootstrap(ours, theirs, names)
    assert evaluate.bootstrap(np.tile(ours, 9), np.tile(theirs, 9), np.tile(names, 9)) == once


def test_the_interval_covers_the_truth_if_prompts_have_several_answers():
    """300 data sets of 60 prompts with 1 to 5 answers; a prompt's answers share a taste, so they are not independent."""
    rng, covered = np.random.default_rng(1), 0
    for draw in range(300):
        prompts = np.repeat(np.arange(60), rng.integers(1, 6, 60))
        p = rng.choice([0.2, 0.9], 60)[prompts]
        low, high = evaluate.bootstrap(rng.random(len(p)) < p, np.full(len(p), 0.5), prompts, draw, resamples=300)
        covered += low <= 0.55 <= high
    assert 0.90 <= covered / 300 <= 0.99


@pytest.mark.parametrize("levels", [3, 1000])
def test_best_of_n_is_the_mean_over_all_subsets(levels):
    """With 3 levels nearly everything ties: a subset's best is then each of those that tie, equally often."""
    rng, N = np.random.default_rng(levels), 7
    proxy, gold = rng.integers(levels, size=(4, N)) / 8, rng.normal(size=(4, N))
    for n in range(1, N + 1):
        best = []
        for p, g in zip(proxy, gold):
            for subset in map(list, itertools.combinations(range(N), n)):
                best.append(g[subset][p[subset] == p[subset].max()].mean())
        assert evaluate.best_of_n(proxy, gold, n) == pytest.approx(np.mean(best), abs=1e-12)


def test_best_of_n_of_a_thousand_samples():
    """Of ranks 1 ... N the highest of n is n (N + 1) / (n + 1) on average."""
    ranks = np.random.default_rng(0).permuted(np.tile(np.arange(1.0, 1001), (2, 1)), axis=1)
    for n in (1, 2, 16, 500, 999, 1000):
        assert evaluate.best_of_n(ranks, ranks, n) == pytest.approx(n * 1001 / (n + 1), rel=1e-12)
    for n in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            evaluate.best_of_n(ranks, ranks, n)


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_kl_of_best_of_n(n):
    """The best of n uniform numbers has the density n u^(n-1). Of a few responses that come again and again it is less."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    density = n * u ** (n - 1)
    assert evaluate.best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(density + 1e-300)), abs=1e-4)
    p = np.array([0.05, 0.4, 0.25, 0.2, 0.1])                     # worst first, so the best of n is at most the k-th
    best = np.diff(np.append(0, p.cumsum()) ** n)                 # with probability cumsum^n
    kl = (best[best > 0] * np.log((best / p)[best > 0])).sum()
    assert kl <= evaluate.best_of_n_kl(n) + 1e-12 and (n == 1 or kl < evaluate.best_of_n_kl(n) - 0.01)


def test_bradley_terry_recovers_the_strengths_of_exact_wins():
    strengths = np.array([0.0, 3.0, -1.5, 0.4, -1.9])
    wins = 7 / (1 + np.exp(strengths[None] - strengths[:, None]))
    assert evaluate.bradley_terry(wins, tie=0) == pytest.approx(strengths, abs=1e-6)
    assert evaluate.bradley_terry(wins * 1e8) == pytest.approx(strengths, abs=1e-6)
    assert abs(evaluate.bradley_terry(wins)).max() < abs(strengths).max()


def test_at_bradley_terrys_maximum_everyone_wins_as_often_as_expected():
    """d log-likelihood / d s_i = wins of i - sum over j of games(i, j) sigmoid(s_i - s_j)."""
    one_sided = [[0, 0, 0, 1e2, 0], [1e4, 0, 1e5, 0, 0], [1e4, 10, 0, 1, 1], [0.1, 0, 0, 0, 0], [1e4, 10, 0, 0, 0]]
    seen = [np.array(one_sided) + 0.5]                            # here whole Newton steps end nowhere
    seen += [np.random.default_rng(seed).integers(1, 10 ** (1 + seed % 4), (6, 6)).astype(float) for seed in range(20)]
    for wins in seen:
        np.fill_diagonal(wins, 0)
        s = evaluate.bradley_terry(wins, tie=0)
        expected = ((wins + wins.T) / (1 + np.exp(s[None] - s[:, None]))).sum(1)
        assert expected == pytest.approx(wins.sum(1), rel=1e-8) and s.mean() == pytest.approx(0, abs=1e-12)


def test_a_system_that_wins_everything_has_a_finite_rating():
    """800 wins and one tie are odds of 800.5 to 0.5."""
    s = evaluate.bradley_terry(np.array([[0.0, 800], [0, 0]]))
    assert s[0] - s[1] == pytest.approx(math.log(800.5 / 0.5), abs=1e-6)
    chain = np.triu(np.full((7, 7), 1e6), 1)
    assert np.isfinite(evaluate.bradley_terry(chain)).all() and (np.diff(evaluate.bradley_terry(chain)) < 0).all()
    assert np.isfinite(evaluate.bradley_terry(chain, tie=0)).all()


def test_ratings_are_elo_with_an_interval_that_covers_the_truth():
    """Scores of two systems on a prompt are one apart, the higher one's with odds of 10 to 1: 400 Elo."""
    rng, covered = np.random.default_rng(0), 0
    for draw in range(60):
        first = rng.random(300) < 10 / 11
        rates, elo, ci = evaluate.ratings(np.array([first, ~first, first]), np.arange(300), 1, draw, 100)
        assert rates[0, 1] == first.mean() and rates == pytest.approx(1 - rates.T) and rates[0, 2] == 0.5
        assert elo[1] == 0 and (ci[1] == 0).all() and elo[0] == pytest.approx(elo[2]) and ci[0, 0] <= elo[0] <= ci[0, 1]
        covered += ci[0, 0] <= 400 <= ci[0, 1]
    assert 0.85 <= covered / 60


def test_the_interval_of_ratings_does_not_narrow_with_the_same_prompts_again():
    scores, names = np.random.default_rng(0).normal(size=(3, 80)), np.arange(80)
    once, again = (evaluate.ratings(np.tile(scores, (1, k)), np.tile(names, k), 0)[2] for k in (1, 9))
    assert again == pytest.approx(once, rel=0.05)                 # but for the tie that is added


def test_length_controlled_is_fair_to_systems_that_differ_in_length_only():
    """The longer answer wins with a probability that grows with tanh(d / std d); ours is longer mostly."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(10, 60, 20_000), rng.integers(5, 40, 20_000)
    d = ours - theirs
    for advantage in (0.0, 1.0):
        won = rng.random(len(d)) < 1 / (1 + np.exp(-advantage - 2 * np.tanh(d / d.std())))
        found = evaluate.length_controlled(won, np.full(len(d), 0.5), ours, theirs)
        assert found == pytest.approx(1 / (1 + math.exp(-advantage)), abs=0.015)
        assert evaluate.win_rate(won, np.full(len(d), 0.5)) > found + 0.04


def test_length_controlled_is_the_win_rate_at_equal_lengths():
    ours, theirs = np.random.default_rng(0).integers(3, size=(2, 50))
    for longer in (0, 4):
        length = np.arange(50)
        found = evaluate.length_controlled(ours, theirs, length + longer, length)
        assert found == pytest.approx(evaluate.win_rate(ours, theirs), abs=1e-6)


def test_length_controlled_is_finite_where_length_decides_everything():
    d = np.array([-3.0, -1, 2, 5])
    for ours in (d, -d, np.ones(4), -np.ones(4)):
        assert 0 <= evaluate.length_controlled(ours, np.zeros(4), d, np.zeros(4)) <= 1
    assert evaluate.length_controlled(np.ones(4), np.zeros(4), d, np.zeros(4)) > 0.99


@pytest.mark.parametrize("n_blocks", [3, 100])
def test_text_loss_is_the_mean_cross_entropy_of_all_blocks(n_blocks):
    model = tiny(0, vocab=11)
    tokens = torch.randint(11, (n_blocks * 64 + 17,), generator=torch.Generator().manual_seed(0))
    blocks = tokens[: n_blocks * 64].view(n_blocks, 64)
    with torch.no_grad():
        want = F.cross_entropy(model(blocks)[:, :-1].reshape(-1, 11), blocks[:, 1:].reshape(-1))
    assert evaluate.text_loss(model, tokens, "cpu") == pytest.approx(want.item(), rel=1e-5)


class ThreeTokens:
    """A tokenizer of "a", "b" and EOS."""

    eot_token = 2

    def encode_ordinary(self, text):
        return [0, 1]

    def decode(self, tokens):
        return "".join("ab"[t] for t in tokens)


def response_logp(model, prompt, response):
    """log pi(response | prompt), token by token, each from a forward of its own."""
    total = 0.0
    for t, token in enumerate(response):
        with torch.no_grad():
            total += model(torch.tensor([prompt + response[:t]]))[0, -1].log_softmax(-1)[token].item()
    return total


def test_the_kl_is_that_of_an_enumeration():
    """With three tokens and two steps there are seven responses: E, aE, bE, aa, ab, ba, bb."""
    policy, baseline = (tiny(s, vocab=3, block=16, spread=0.15) for s in (0, 1))
    enc, prompts = ThreeTokens(), [data.Prompt([{"role": "user", "content": "a"}])] * 3000
    prompt = data.encode_prompt(enc, prompts[0].messages)
    responses = [[2], [0, 2], [1, 2], [0, 0], [0, 1], [1, 0], [1, 1]]
    logp, ref = ([response_logp(m, prompt, r) for r in responses] for m in (policy, baseline))
    assert sum(map(math.exp, logp)) == pytest.approx(1, abs=1e-5)
    ratio = {(enc.decode([t for t in r if t != 2]), len(r)): p - q for r, p, q in zip(responses, logp, ref)}
    kl = sum(math.exp(p) * (p - q) for p, q in zip(logp, ref))
    cfg = evaluate.Config(max_new=2, batch=500)
    found = evaluate.answer(policy, baseline, None, enc, prompts, 1.0, cfg)
    want = [ratio[text, n] for text, n in zip(found.texts, found.length)]
    assert found.kl == pytest.approx(want, abs=1e-4)
    assert len(set(zip(found.texts, found.length))) > 3 and kl > 0.05
    assert found.kl.mean() == pytest.approx(kl, abs=4 * found.kl.std() / len(prompts) ** 0.5)
    ended = [len(text) != 2 for text in found.texts]
    assert found.ended.tolist() == ended


def test_an_answer_does_not_depend_on_the_batch_it_is_measured_in():
    model, baseline, rm = tiny(0), tiny(1), tiny(2, kind=Scorer)
    prompts = sandbox.eval_prompts(12, 0)
    one, many = (
        evaluate.answer(model, baseline, rm, ENC, prompts, 0.0, evaluate.Config(max_new=6, batch=b))
        for b in (1, 5)
    )
    assert one.texts == many.texts
    assert one.kl == pytest.approx(many.kl, abs=1e-4) and one.rm_score == pytest.approx(
        many.rm_score, abs=1e-4
    )
    assert one.judged == [sandbox.judge(p, t) for p, t in zip(prompts, one.texts)]
    assert one.score.tolist() == [j.score for j in one.judged]


def test_without_an_answer_key_the_reward_model_is_the_judge():
    prompts = [data.Prompt([{"role": "user", "content": "Who are you?"}])] * 4
    found = evaluate.answer(
        tiny(0), tiny(1), tiny(2, kind=Scorer), ENC, prompts, 1.0, evaluate.Config(max_new=4)
    )
    assert found.judged == [None] * 4
    assert found.score.tolist() == found.rm_score.tolist() and found.score.std() > 0


def test_best_of_keeps_the_sample_that_the_reward_model_likes():
    """The same numbers are drawn for the n samples, kept or not: their best is recomputed one by one."""
    model, baseline, rm, n = tiny(0), tiny(1), tiny(2, kind=Scorer), 5
    prompts, cfg = sandbox.eval_prompts(7, 0), evaluate.Config(max_new=6, batch=100)
    found = evaluate.answer(model, baseline, rm, ENC, prompts, 1.0, cfg, best_of=n)
    batch = data.pad([data.encode_prompt(ENC, p.messages) for p in prompts])
    ids, total = evaluate.generate(model, *batch, 6, ENC.eot_token, n=n, seed=evaluate.step_seed(cfg.seed, 0))
    for i, p in enumerate(prompts):
        prompt, scores, kls, texts = data.encode_prompt(ENC, p.messages), [], [], []
        for row, end in zip(ids[i * n : (i + 1) * n].tolist(), total[i * n : (i + 1) * n].tolist()):
            with torch.no_grad():
                scores.append(rm.score(torch.tensor([row[:end]]), torch.tensor([end])).item())
            response = row[len(prompt) : end]
            kls.append(response_logp(model, prompt, response) - response_logp(baseline, prompt, response))
            texts.append(ENC.decode([t for t in response if t != ENC.eot_token]).strip())
        best = int(np.argmax(scores))
        assert found.texts[i] == texts[best] and found.rm_score[i] == pytest.approx(max(scores), abs=1e-4)
        assert found.kl[i] == pytest.approx(kls[best] + math.log(n) - (n - 1) / n, abs=1e-4)


class Script:
    """Stands in for `generate`: says what it is told, and remembers what it was asked."""

    def __init__(self, *responses):
        self.responses = [ENC.encode_ordinary(r.removesuffix("<end>")) + [ENC.eot_token] * r.endswith("<end>")
                          for r in responses]

    def __call__(self, model, prompts, length, max_new, eos, **how):
        self.asked = [row[:n] for row, n in zip(prompts.tolist(), length.tolist())]
        return data.pad([a + r for a, r in zip(self.asked, self.responses)], value=eos)


def test_shots_are_read_by_the_model_alone_and_an_empty_line_ends_the_answer(monkeypatch):
    script = Script(" Hello Anna.\n\nUser: Insult Ben.", " Hello", " Hello Anna.<end>")
    monkeypatch.setattr(evaluate, "generate", script)
    model, baseline, rm = tiny(0), tiny(1), tiny(2, kind=Scorer)
    shots = [{"role": "user", "content": "Good day, I am Ben."}, {"role": "assistant", "content": "Hello Ben."}]
    prompts = [p for p in sandbox.eval_prompts(400, 0) if p.use_case == "chat"][:3]
    cfg = evaluate.Config(max_new=20)
    found = evaluate.answer(model, baseline, rm, ENC, prompts, 1.0, cfg, shots=shots)
    assert found.texts == ["Hello Anna.", "Hello", "Hello Anna."] and found.ended.tolist() == [True, False, True]
    cut = len(ENC.encode_ordinary(" Hello Anna.\n\n"))
    assert found.length.tolist() == [cut, len(script.responses[1]), len(script.responses[2])]
    scored = [script.responses[2], script.responses[1], script.responses[2]]     # EOS takes the empty line's place
    for i, (p, response) in enumerate(zip(prompts, scored)):
        prompt = data.encode_prompt(ENC, p.messages)
        assert script.asked[i] == data.encode_prompt(ENC, shots + p.messages)
        with torch.no_grad():
            want = rm.score(torch.tensor([prompt + response]), torch.tensor([len(prompt + response)])).item()
        assert found.rm_score[i] == pytest.approx(want, abs=1e-4)
        said = script.responses[i][: int(found.length[i])]
        kl = response_logp(model, script.asked[i], said) - response_logp(baseline, prompt, said)
        assert found.kl[i] == pytest.approx(kl, abs=1e-3)


def test_the_prefix_with_the_highest_reward_wins(monkeypatch, capsys):
    """A reward that counts how often the shots say "hat", in place of sampling."""
    tried, trials = [], sandbox.prompts(5, 0)

    def answer(model, baseline, rm, enc, prompts, temperature, cfg, shots):
        assert prompts == trials and temperature == 1
        tried.append(shots)
        return SimpleNamespace(rm_score=np.full(5, sum(len(m["content"]) % 7 for m in shots)))

    monkeypatch.setattr(evaluate, "answer", answer)
    demos, cfg = sandbox.demonstrations(50), evaluate.Config(max_new=10)
    won = evaluate.find_prefix(tiny(0), None, ENC, trials, demos, cfg)
    worth = [sum(len(m["content"]) % 7 for m in shots) for shots in tried]
    assert won == tried[worth.index(max(worth))] and len(tried) == evaluate.PREFIXES and len(set(worth)) > 2
    assert f"prefix {worth.index(max(worth)) + 1} of 8 won: RM score {max(worth):.3f}" in capsys.readouterr().out
    shown = {json.dumps(d.messages) for d in demos}
    one = [shots for shots in tried if len(shots) == 2]
    assert one and all(json.dumps(shots) in shown for shots in one)


def test_every_prefix_leaves_room_for_prompt_and_response(monkeypatch):
    tried, long = [], max(sandbox.eval_prompts(500, 0), key=lambda p: len(data.encode_prompt(ENC, p.messages)))

    def answer(model, baseline, rm, enc, prompts, temperature, cfg, shots):
        tried.append(shots)
        return SimpleNamespace(rm_score=np.zeros(1))

    monkeypatch.setattr(evaluate, "answer", answer)
    trials, demos, cfg = sandbox.prompts(5, 0), sandbox.demonstrations(50), evaluate.Config(max_new=50)
    evaluate.find_prefix(tiny(0), None, ENC, trials, demos, cfg, also=[long])
    assert tried and all(len(data.encode_prompt(ENC, s + long.messages)) + 50 <= 128 for s in tried)
    with pytest.raises(ValueError, match="no demonstration leaves room"):
        evaluate.find_prefix(tiny(0), None, ENC, trials, demos, replace(cfg, max_new=100), also=[long])


def test_specs_of_systems():
    systems = evaluate.systems_of(("a/base.pt", "prompted:a/base.pt", "./a/sft.pt", "bon16:a/sft.pt"), "rm.pt")
    assert systems == [("a/base.pt", False, 1), ("a/base.pt", True, 1), ("a/sft.pt", False, 1), ("a/sft.pt", False, 16)]
    assert evaluate.names_of(systems) == ["base", "prompted base", "sft", "sft best of 16"]
    both = evaluate.systems_of(("a/sft.pt", "bon2:b/sft.pt"), "rm.pt")
    assert evaluate.names_of(both) == [os.path.join("a", "sft"), os.path.join("b", "sft") + " best of 2"]


@pytest.mark.parametrize("spec", ["bon0:x.pt", "bon1:x.pt", "bon:x.pt", "bon-2:x.pt", "promted:x.pt", "prompted:", ":x.pt",
                                  "prompted:bon4:x.pt"])
def test_a_malformed_spec_is_refused_with_what_is_allowed(spec):
    with pytest.raises(ValueError, match="prompted:CHECKPOINT or bonN:CHECKPOINT"):
        evaluate.systems_of((spec,), "rm.pt")


def test_systems_that_need_a_reward_model_or_come_twice_are_refused():
    for spec in ("prompted:x.pt", "bon2:x.pt"):
        with pytest.raises(ValueError, match="--rm"):
            evaluate.systems_of((spec,), "")
    for specs in (("x.pt", "x.pt"), ("x.pt", "./x.pt"), ("bon2:x.pt", "bon02:x.pt")):
        with pytest.raises(ValueError, match="twice"):
            evaluate.systems_of(specs, "rm.pt")


# -------------------------------------------------------------------------------------------------
# several seeds


def made_up(path, **figures):
    system = {
        "name": "ppo",
        **figures,
        "use_cases": {"chat": {"win_rate": figures["win_rate"] / 2, "kl": 1.0}},
    }
    with open(path, "w") as f:
        json.dump({"baseline": "sft", "systems": [system]}, f)
    return str(path)


def test_over_seeds_by_hand(tmp_path, capsys):
    """0.6, 0.7, 0.8: mean 0.7, standard deviation 0.1, Student's t of two degrees of freedom 4.303."""
    paths = [made_up(tmp_path / f"{w}.json", win_rate=w, win_rate_ci=[0, 1], kl=2.0) for w in (0.6, 0.7, 0.8)]
    table = evaluate.over_seeds(paths)
    assert table["ppo"]["win_rate"] == pytest.approx((0.7, 4.303 * 0.1 / 3**0.5), rel=1e-3)
    assert table["ppo"]["kl"] == pytest.approx((2.0, 0.0))
    assert table["ppo, chat"]["win_rate"] == pytest.approx((0.35, 4.303 * 0.05 / 3**0.5), rel=1e-3)
    shown = capsys.readouterr().out
    assert "3 seeds" in shown and "0.700 ± 0.248" in shown


def test_over_seeds_shows_what_all_reports_have(tmp_path, capsys):
    """An older report has no Elo, and another order of systems."""
    new, old = {"win_rate": 0.6, "elo": 100.0, "kl": 1.0}, {"win_rate": 0.8, "kl": 3.0}
    paths = [made_up(tmp_path / "new.json", **new), made_up(tmp_path / "old.json", **old)]
    old = json.loads((tmp_path / "old.json").read_text())
    old["systems"].insert(0, old["systems"][0] | {"name": "base", "win_rate": 0.1})
    (tmp_path / "old.json").write_text(json.dumps(old))
    table = evaluate.over_seeds(paths)
    assert table.keys() == {"ppo", "ppo, chat"} and table["ppo"].keys() == {"win_rate", "kl"}
    assert table["ppo"]["win_rate"][0] == pytest.approx(0.7)
    assert "Elo" not in capsys.readouterr().out
    made_up(tmp_path / "old.json", win_rate=0.8, elo=300.0)
    assert evaluate.over_seeds(paths)["ppo"]["elo"] == pytest.approx((200, 12.71 * 100), rel=1e-3)


def test_one_report_or_no_report_is_refused(tmp_path):
    path = made_up(tmp_path / "a.json", win_rate=0.5)
    with pytest.raises(ValueError, match="at least two"):
        evaluate.over_seeds([path])
    with pytest.raises(ValueError, match="report.json"):
        evaluate.over_seeds([path, str(tmp_path / "none.json")])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="report.json"):
        evaluate.over_seeds([path, str(tmp_path / "bad.json")])


# -------------------------------------------------------------------------------------------------
# the whole report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("base", "sft", "ppo")):
        save_checkpoint(str(folder / f"{name}.pt"), tiny(seed), data.tokenizer_id(ENC), {"stage": name})
    save_checkpoint(str(folder / "rm.pt"), tiny(9, kind=Scorer), data.tokenizer_id(ENC), {"stage": "reward"})
    return folder


@pytest.fixture(scope="module")
def report(folder):
    cfg = evaluate.Config(
        tuple(str(folder / f"{s}.pt") for s in ("base", "sft", "ppo")),
        rm=str(folder / "rm.pt"),
        out=str(folder / "report"),
        n=60,
        max_new=6,
        batch=25,
    )
    metrics = evaluate.main(cfg)
    with open(folder / "report" / "report.json") as f:
        return SimpleNamespace(
            cfg=cfg, metrics=metrics, page=(folder / "report" / "report.md").read_text(), **json.load(f)
        )


def test_the_report_has_the_fields_that_were_promised(report):
    assert [s["name"] for s in report.systems] == ["base", "sft", "ppo"]
    for s in report.systems:
        assert PROMISED <= s.keys()
        low, high = s["win_rate_ci"]
        assert 0 <= low <= s["win_rate"] <= high <= 1
        assert all(0 <= s[k] <= 1 for k in ("helpful", "hallucination", "harmless"))
        assert 1 <= s["length"] <= 6 and s["pretrain_loss"] > 0
        assert sum(c["prompts"] for c in s["use_cases"].values()) == 60
        assert s["use_cases"].keys() <= sandbox.USE_CASES.keys()
        mean = sum(c["true_score"] * c["prompts"] for c in s["use_cases"].values()) / 60
        assert mean == pytest.approx(s["true_score"])


def test_the_baseline_is_the_sft_model_and_ties_with_itself(report):
    base, sft, ppo = report.systems
    assert report.baseline == "sft"
    for view in (sft, sft["greedy"], *sft["use_cases"].values()):
        assert view["win_rate"] == 0.5 and view["win_rate_ci"] == [0.5, 0.5] and view["kl"] == 0
    assert base["kl"] > 0.1 and ppo["kl"] > 0.1
    assert base["pretrain_loss"] != sft["pretrain_loss"]


def test_the_page_shows_every_system_and_use_case(report):
    assert all(f"| {name} |" in report.page for name in ("base", "sft", "ppo"))
    head = "| system | " + " | ".join(report.systems[0]["use_cases"]) + " |"
    assert report.page.count(head) == 4
    for s in report.systems:
        helpful = " | ".join(f"{c['helpful']:.2f}" for c in s["use_cases"].values())
        assert f"| {s['name']} | {helpful} |" in report.page.split("## Helpful by use case")[1].split("##")[0]
    assert "Against sft" in report.page and f"{report.systems[2]['kl']:.3f}" in report.page


def test_the_same_command_writes_the_same_report(report, folder):
    evaluate.main(replace(report.cfg, out=str(folder / "again")))
    for name in ("report.json", "report.md"):
        assert (folder / "again" / name).read_bytes() == (folder / "report" / name).read_bytes()


def test_pictures_are_drawn_if_matplotlib_is_there(report):
    pytest.importorskip("matplotlib")
    for name in ("systems.png", "matrix.png", "use_cases.png"):
        with open(os.path.join(report.cfg.out, name), "rb") as f:
            assert f.read(4) == b"\x89PNG"


@pytest.fixture(scope="module")
def mixed(folder):
    """All kinds of systems in one report."""
    base, sft, ppo = (str(folder / f"{s}.pt") for s in ("base", "sft", "ppo"))
    systems = (base, f"prompted:{base}", f"bon8:{sft}", sft, f"bon2:{ppo}", ppo)
    cfg = evaluate.Config(systems, rm=str(folder / "rm.pt"), out=str(folder / "mixed"), n=60, max_new=6, batch=25)
    loaded, load = [], evaluate.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "load_model", lambda path, *more, **how: loaded.append(path) or load(path, *more, **how))
        evaluate.main(cfg)
    with open(folder / "mixed" / "report.json") as f:
        return SimpleNamespace(cfg=cfg, loaded=loaded, page=(folder / "mixed" / "report.md").read_text(), **json.load(f))


def test_all_kinds_of_systems_give_consistent_figures(mixed, report):
    names = ["base", "prompted base", "sft best of 8", "sft", "ppo best of 2", "ppo"]
    systems = {s["name"]: s for s in mixed.systems}
    rates = np.array(mixed.matrix["win_rates"])
    assert list(systems) == mixed.matrix["names"] == names and mixed.baseline == "sft"
    assert rates + rates.T == pytest.approx(np.ones((6, 6)))
    assert rates[:, 3].tolist() == [s["win_rate"] for s in mixed.systems]
    assert systems["sft best of 8"]["rm_score"] > systems["sft"]["rm_score"]
    assert systems["ppo best of 2"]["rm_score"] > systems["ppo"]["rm_score"]
    assert systems["sft best of 8"]["kl"] == pytest.approx(math.log(8) - 7 / 8, abs=1e-5)
    assert "greedy" not in systems["ppo best of 2"] and "greedy" in systems["prompted base"]
    assert systems["prompted base"]["pretrain_loss"] == systems["base"]["pretrain_loss"]
    assert systems["prompted base"]["prefix"] and not systems["base"]["prefix"]
    elo = [s["elo"] for s in mixed.systems]
    assert elo[3] == 0 and mixed.systems[3]["elo_ci"] == [0, 0]
    assert all(s["elo_ci"][0] <= s["elo"] <= s["elo_ci"][1] for s in mixed.systems)
    assert len(mixed.loaded) == 4, "each checkpoint is read once"
    assert f"≤ {systems['sft best of 8']['kl']:.3f}" in mixed.page and f"≤ {systems['sft']['kl']:.3f}" not in mixed.page
    assert mixed.systems[3]["true_score"] == report.systems[1]["true_score"], "whoever else is compared"


def test_any_system_can_be_the_baseline(mixed, tmp_path):
    for baseline in (mixed.cfg.systems[1], mixed.cfg.systems[2]):
        cfg = replace(mixed.cfg, systems=mixed.cfg.systems[:3], baseline=baseline, n=12, out=str(tmp_path / "r"))
        figures = list(evaluate.main(cfg).values())
        assert figures[cfg.systems.index(baseline)]["win_rate"] == 0.5


def test_bf16_gives_nearly_the_same_figures(mixed, tmp_path):
    cfg = replace(mixed.cfg, systems=mixed.cfg.systems[2:4], n=12, out=str(tmp_path / "r"))
    wide, narrow = (evaluate.main(replace(cfg, precision=p))["sft"] for p in ("fp32", "bf16"))
    assert narrow["pretrain_loss"] != wide["pretrain_loss"] == pytest.approx(narrow["pretrain_loss"], rel=0.02)


def test_prompted_systems_are_shown_demonstrations_of_files(folder, tmp_path, capsys):
    base, prompts, demos = str(folder / "base.pt"), str(tmp_path / "p.jsonl"), str(tmp_path / "d.jsonl")
    data.write_jsonl(prompts, [{"prompt": f"Who are you, {i}?"} for i in range(5)])
    data.write_jsonl(demos, [{"prompt": "Who is it?", "response": "It is Zora."}])
    cfg = evaluate.Config((base, f"prompted:{base}"), str(folder / "rm.pt"), str(tmp_path / "r"), prompts=(prompts,), max_new=4)
    with pytest.raises(ValueError, match="--demos"):
        evaluate.main(cfg)
    figures = evaluate.main(replace(cfg, demos=(demos,)))
    assert [m["content"] for m in figures["prompted base"]["prefix"]] == ["Who is it?", "It is Zora."]
    page = (tmp_path / "r" / "report.md").read_text()
    assert "It is Zora." in page and "the reward model" in page and "by use case" not in page


def test_a_report_over_seeds_reads_what_main_wrote(report, folder):
    evaluate.main(replace(report.cfg, out=str(folder / "seed 1"), seed=1, n=40))
    paths = tuple(str(folder / name / "report.json") for name in ("report", "seed 1"))
    table = evaluate.main(evaluate.Config(seeds=paths))
    assert {"base", "sft", "ppo"} <= table.keys() and table["sft"]["win_rate"] == (0.5, 0.0)


def test_prompts_and_text_of_files(folder, tmp_path, capsys):
    prompts, text = str(tmp_path / "p.jsonl"), tmp_path / "t.txt"
    data.write_jsonl(prompts, [{"prompt": f"Who are you, {i}?"} for i in range(5)])
    text.write_text("Facts: Velia is a country. " * 100)
    cfg = evaluate.Config(
        (str(folder / "ppo.pt"),),
        str(folder / "rm.pt"),
        str(tmp_path / "r"),
        prompts=(prompts,),
        text=(str(text),),
        max_new=4,
    )
    [figures] = evaluate.main(cfg).values()
    assert "true_score" not in figures and math.isfinite(figures["rm_score"]) and figures["prompts"] == 5
    with pytest.raises(ValueError, match="--rm"):
        evaluate.main(replace(cfg, rm=""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ()}, "checkpoints"),
        ({"baseline": "other.pt"}, "not among"),
        ({"systems": ("none.pt",)}, "does not exist"),
        ({"systems": ("bon4:none.pt",)}, "does not exist"),
        ({"systems": ("bon4:none.pt",), "rm": ""}, "--rm"),
        ({"seeds": ("one.json",)}, "report.json"),
    ],
)
def test_refusals_say_what_to_do(report, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate.main(replace(report.cfg, out=str(tmp_path / "r"), **change))


def test_a_text_shorter_than_a_block_is_refused(report, tmp_path):
    (tmp_path / "short.txt").write_text("Velia is")
    with pytest.raises(ValueError, match="short.txt"):
        evaluate.main(replace(report.cfg, out=str(tmp_path / "r"), text=(str(tmp_path / "short.txt"),), n=4))


@pytest.mark.parametrize("short", ["rm.pt", "sft.pt"])
def test_a_model_with_a_shorter_context_than_the_others_is_refused_or_works(report, short, tmp_path):
    """Prompts of up to 128 - 6 tokens reach every model that reads them."""
    shorter = tiny(3, block=24, kind=Scorer if short == "rm.pt" else GPT)
    save_checkpoint(str(tmp_path / short), shorter, data.tokenizer_id(ENC), {"stage": "sft"})
    systems = tuple(str(tmp_path / short) if s.endswith(short) else s for s in report.cfg.systems)
    rm = str(tmp_path / short) if short == "rm.pt" else report.cfg.rm
    try:
        evaluate.main(replace(report.cfg, systems=systems, rm=rm, out=str(tmp_path / "r"), n=30))
    except ValueError as e:
        assert "context" in str(e)
