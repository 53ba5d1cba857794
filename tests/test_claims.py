"""claims.py and experiments.py: the arithmetic of a verdict, the page, what is measured once, and every figure's name."""
import json
import math
import multiprocessing
import os
import re
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import claims
import cli
import data
import evaluate
import experiments
import label
import ppo
import reward
import sandbox
from experiments import World
from model import GPT, GPTConfig, Scorer, generate, save_checkpoint

ENC = data.get_tokenizer("sandbox")


# -------------------------------------------------------------------------------------------------
# the arithmetic of a verdict

@pytest.mark.parametrize(("values", "mean", "half"), [
    ([1, 2, 3, 4, 5], 3, 2.776 * math.sqrt(2.5 / 5)),
    ([0, 1], 0.5, 12.706 * 0.5),
    ([2, 2, 2], 2, 0),
    ([4], 4, math.inf),
    ([[1, 10], [2, 10], [3, 10]], [2, 10], [4.303 / math.sqrt(3), 0]),
])
def test_intervals_in_closed_form(values, mean, half):
    got = evaluate.interval(values)
    assert got[0] == pytest.approx(mean) and got[1] == pytest.approx(half, rel=2e-3)


@pytest.mark.parametrize(("intervals", "says"), [
    ([(1, 0.5)], "holds"), ([(1, 0.5), (0.6, 0.5)], "holds"),
    ([(1, 0.5), (0.4, 0.5)], "undecided"), ([(-0.4, 0.5)], "undecided"), ([(0.5, 0.5)], "undecided"),
    ([(-0.5, 0.5)], "undecided"), ([(0, 0)], "undecided"), ([(9, math.inf)], "undecided"),
    ([(-1, 0.5)], "fails"), ([(1, 0.5), (-1, 0.5)], "fails"), ([(0, 1), (-1, 0.5), (1, 0.5)], "fails"),
])
def test_verdicts(intervals, says):
    assert claims.verdict(intervals) == says


def test_smooth_is_a_moving_average():
    assert claims.smooth([0, 5, 10, 0, 0, 0, 5]).tolist() == pytest.approx([3, 3, 3])
    assert claims.smooth([1, 2, 6], width=2).tolist() == pytest.approx([1.5, 4])


def curve(form, d, alpha=2.0, beta=0.3):
    return d * (alpha - beta * (d if form == "bon" else np.log(d)))


@pytest.mark.parametrize("form", ["bon", "rl"])
def test_a_fit_finds_what_made_the_curve_and_prefers_its_form(form):
    d, other = np.linspace(0.2, 5, 40), {"bon": "rl", "rl": "bon"}[form]
    found, r2 = claims.fit(d, curve(form, d), form)
    assert found == pytest.approx((2.0, 0.3)) and r2 == pytest.approx(1)
    noisy = curve(form, d) + 0.02 * np.random.default_rng(0).standard_normal(40)
    assert claims.fit(d, noisy, other)[1] < claims.fit(d, noisy, form)[1] < 1
    assert claims.fit(d, noisy, form)[0] == pytest.approx((2.0, 0.3), abs=0.05)


def test_r_squared_of_a_fit_that_knows_the_mean_only_is_0():
    assert claims.fit(np.ones(4), np.array([4.0, 6.0, 4.0, 6.0]), "rl")[1] == pytest.approx(0, abs=1e-9)


# -------------------------------------------------------------------------------------------------
# quantities of over-optimisation, on curves made by hand

UP_AND_DOWN = [float(x) for x in (*range(11), *range(9, -1, -1))]            # the peak of 10 at iteration 10


def test_rise_fall_and_distance_of_a_peak():
    f = {"free x true": UP_AND_DOWN, "free x kl": [4.0] * 21, "free y true": UP_AND_DOWN, "free y kl": [-1.0] * 21,
         "free x rm": list(range(21))}
    assert claims.rise("free x")(f) == pytest.approx((8 + 9 + 10 + 9 + 8) / 5 - 0 - 0.1)
    assert claims.fall("free x")(f) == pytest.approx(8.8 - (4 + 3 + 2 + 1 + 0) / 5 - 0.1)
    assert claims.at_peak(f, "free x", "rm") == pytest.approx(10)
    assert claims.distance(f, "free x") == pytest.approx(2) and claims.distance(f, "free y") == 0
    assert claims.fall("free z")({"free z true": list(range(21))}) == pytest.approx(-0.1)


def test_frontiers_are_compared_at_the_same_kl():
    kl = np.linspace(0, 10, 60)
    free = {"free 12000 kl": kl.tolist(), "free 12000 true": (2 * kl).tolist()}
    inside = np.linspace(2, 6, 30)
    assert claims.frontier_gap(free | {"penalty kl": inside, "penalty true": 2 * inside}) == pytest.approx(0, abs=1e-9)
    for shift in (0.7, -0.7):
        assert claims.frontier_gap(free | {"penalty kl": inside, "penalty true": 2 * inside + shift}) == pytest.approx(0.7)


def test_the_law_that_made_the_curves_fits_them_best():
    d, bon = np.linspace(0, 5, 50), np.sqrt([math.log(n) - (n - 1) / n for n in experiments.NS])
    f = {"free 12000 kl": (d ** 2).tolist(), "free 12000 true": [0.7, *(0.7 + curve("rl", d[1:])).tolist()],
         "bon 12000 kl": (bon ** 2).tolist(), "bon 12000 true": [0.7, *(0.7 + curve("bon", bon[1:])).tolist()]}
    for kind, wrong in (("rl", "bon"), ("bon", "rl")):
        assert claims.gain_fit(f, kind, kind) == pytest.approx(1) and claims.gain_fit(f, kind, wrong) < 1 - 1e-6


# -------------------------------------------------------------------------------------------------
# what the experiments read

def test_rollouts_are_one_in_four_steps_of_a_log_and_final_is_its_end(tmp_path):
    path = str(tmp_path / "ppo.pt")
    data.write_jsonl(f"{path}.log.jsonl", [{"step": s, "kl": s / 4, "score": -s} for s in range(12)])
    kl, score = experiments.rollouts(path, "kl", "score")
    assert kl.tolist() == [0, 1, 2] and score.tolist() == [0, -4, -8]
    assert experiments.final(path) == {"step": 11, "kl": 2.75, "score": -11}


def test_a_rollout_of_the_sandbox_is_four_steps():
    """What `rollouts` counts on."""
    cfg = ppo.Config(**ppo.PRESETS["sandbox"])
    assert cfg.rollout // cfg.minibatch * cfg.epochs == 4 and cfg.log_every == 1


def test_share_of_some_use_cases():
    judged = [sandbox.Judgement(h, not h, True, False, 0) for h in (True, True, False, False)]
    answers = SimpleNamespace(judged=judged, cases=["a", "b", "b", "c"])
    assert experiments.share(answers, "helpful") == 0.5 and experiments.share(answers, "helpful", "b") == 0.5
    assert experiments.share(answers, "hallucination", "b", "c") == pytest.approx(2 / 3)
    assert experiments.share(answers, "helpful", "a") == 1


def tiny(kind=GPT, seed=0):
    torch.manual_seed(seed)
    model = kind(GPTConfig(ENC.n_vocab, 128, 1, 2, 16)).eval()
    torch.nn.init.normal_((model if kind is GPT else model.trunk).wpe.weight, 0.0, 1.0)
    return model


def test_texts_are_gone_on_with_in_their_order(tmp_path):
    path, model = str(tmp_path / "base.pt"), tiny()
    save_checkpoint(path, model, data.tokenizer_id(ENC), {})
    texts = [f"Talk: {p} is a{' kind' * (i % 3)}" for i, p in enumerate(sandbox.PEOPLE)] * 12
    found = experiments.complete(path, texts, 4, temperature=0.0)
    assert len(found) == len(texts) > 200 and found[:20] == found[-20:] and len(set(found)) > 2
    for text, after in list(zip(texts, found))[:5]:
        ids = ENC.encode_ordinary(text)
        out, total = generate(model, *data.pad([ids]), 4, ENC.eot_token, temperature=0.0)
        assert after == ENC.decode(out[0, len(ids):total[0]].tolist())


# -------------------------------------------------------------------------------------------------
# a model is made once

def stage(folder, seconds=0.0, fail=()):
    """A stage that writes down that it ran, and takes its time."""
    def main(cfg):
        print("this is from the stage")
        with open(folder / "ran", "a") as f:
            f.write(f"{cfg.out} {cfg.seed} {cfg.width}\n")
        time.sleep(seconds)
        if fail:
            raise fail.pop()
        with open(cfg.out, "w") as f:
            f.write("a model")
    return SimpleNamespace(main=main, Config=lambda **fields: SimpleNamespace(**fields), PRESETS={"sandbox": {"width": 3}})


def ran(folder):
    return (folder / "ran").read_text().splitlines()


def test_a_file_is_made_once_with_its_seed_and_preset(tmp_path, capsys):
    world, folder = World(9, str(tmp_path / "9")), str(tmp_path / "9")
    made = [world.make("a.pt", stage(tmp_path)), world.make("a.pt", stage(tmp_path)), world.make("b.pt", stage(tmp_path), width=5)]
    assert made == [f"{folder}/a.pt", f"{folder}/a.pt", f"{folder}/b.pt"]
    assert ran(tmp_path) == [f"{folder}/a.pt 9 3", f"{folder}/b.pt 9 5"]
    assert "from the stage" not in capsys.readouterr().out and "from the stage" in (tmp_path / "9/a.pt.txt").read_text()


def test_a_file_whose_making_failed_is_made_again(tmp_path):
    world, bad = World(9, str(tmp_path)), stage(tmp_path, fail=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        world.make("a.pt", bad)
    assert os.path.exists(world.make("a.pt", bad)) and len(ran(tmp_path)) == 2


def ask(folder, seconds, start):
    start.wait(10)
    assert os.path.getsize(World(9, str(folder)).make("a.pt", stage(folder, seconds))) > 0


def test_two_processes_that_want_a_file_make_it_once(tmp_path):
    """The second waits for the first and finds it whole."""
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    processes = [fork.Process(target=ask, args=(tmp_path, 0.2, start)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(20)
    assert [p.exitcode for p in processes] == [0, 0] and len(ran(tmp_path)) == 1


def test_the_first_comparisons_are_a_file_of_their_own(tmp_path, monkeypatch):
    whole = str(tmp_path / "comparisons.jsonl")
    data.write_jsonl(whole, [{"n": i} for i in range(20)])
    monkeypatch.setattr(World, "comparisons", lambda self: whole)
    path = World(9, str(tmp_path)).first(7)
    with open(path) as f:
        assert [json.loads(line)["n"] for line in f] == list(range(7))
    before = os.stat(path).st_mtime_ns
    assert World(9, str(tmp_path)).first(7) == path and os.stat(path).st_mtime_ns == before


# -------------------------------------------------------------------------------------------------
# every experiment, on models and logs that were not trained

class Untrained(World):
    """Makes what a stage would make, of random weights and numbers, if its files are there and it takes such settings."""

    def make(self, name, stage, **fields):
        path, seed = os.path.join(self.folder, name), zlib.crc32(name.encode())
        cfg = stage.Config(**stage.PRESETS["sandbox"] | {"seed": self.seed, "out": path} | fields)
        if os.path.exists(path):
            return path
        inputs = [x for v in fields.values() for x in (v if isinstance(v, tuple) else [v]) if str(x).startswith(self.folder)]
        assert all(map(os.path.exists, inputs)), inputs
        if stage is label:
            said = [(p, [p.meta["answers"][0], "I do not know.", "the"]) for p in sandbox.prompts(12, self.seed)]
            marks = {"ratings": [7, 3, 1]} if cfg.rate else {"ranks": [1, 2, 3]}
            data.write_jsonl(path, [{"prompt": p.messages, "responses": r, "labeler": f"labeler {i % 5 + 1}",
                                     "use_case": p.use_case} | marks for i, (p, r) in enumerate(said)])
            return path
        model = tiny(Scorer if stage is reward else GPT, seed)
        if stage is not reward:                                              # raise the logit of EOS: it ends soon
            eos = model.wte.weight[ENC.eot_token].detach()
            model.ln_f.bias.data += 5 * eos / eos.pow(2).sum()
        save_checkpoint(path, model, data.tokenizer_id(ENC), {"config": {"seed": 0}})
        rng, steps = np.random.default_rng(seed), 4 * getattr(cfg, "iterations", 1)
        keys = {ppo: ("kl", "score", "true_score", "entropy")}.get(stage, ("loss", "held_out_loss", "held_out_accuracy",
                                                                           "held_out_labelers_accuracy"))
        data.write_jsonl(f"{path}.log.jsonl", [{"step": s} | {k: abs(rng.normal()) for k in keys} for s in range(steps)])
        return path


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Lines of claims.jsonl of two seeds for every experiment, which were run on untrained models and few prompts."""
    few = {"prompts": 6, "eval_prompts": 8, "tasks": 9, "demonstrations": 30, "corpus": 60}
    folder, found = str(tmp_path_factory.mktemp("101")), []

    def capped(real, most):
        return lambda n=most, *rest, **more: real(min(n, max(most, n // 20)), *rest, **more)
    with pytest.MonkeyPatch.context() as patch:
        for name, most in few.items():
            patch.setattr(sandbox, name, capped(getattr(sandbox, name), most))
        patch.setattr(sandbox, "judge", lambda p, text: sandbox.Judgement(len(text) % 2 == 0, "e" in text, True, False, len(text) % 5))
        patch.setattr(evaluate, "PREFIXES", 2)
        patch.setattr(claims, "World", Untrained)
        for measure in dict.fromkeys(claim.measure for claim in claims.CLAIMS.values()):
            line = claims.measured((measure, 101, folder, "abc"))
            other = {k: (np.array(v) * 1.01 + 0.01).tolist() for k, v in line["figures"].items()}
            found += [line, line | {"seed": 102, "figures": other}]
    return found


def rows_of(lines):
    return {n: [r for r in lines if r["experiment"] == claim.measure.__name__] for n, claim in claims.CLAIMS.items()}


@pytest.mark.parametrize("number", claims.CLAIMS)
def test_every_quantity_and_every_placeholder_of_a_claim_is_measured(lines, number):
    claim, [line, _] = claims.CLAIMS[number], rows_of(lines)[number]
    json.dumps(line, allow_nan=False)
    missing = {name for name in re.findall(r"{(.*?)}", claim.ours)} - line["figures"].keys()
    assert not missing
    assert claim.quantities and all(math.isfinite(q(line["figures"])) for q in claim.quantities.values())


def test_every_claim_is_on_the_page_with_its_numbers(lines):
    text, verdicts = claims.page(rows_of(lines), {"1": "A remark."})
    assert verdicts.keys() == claims.CLAIMS.keys() and "{" not in text and "nan" not in text
    for number, claim in claims.CLAIMS.items():
        assert f"## {number}. {claim.sentence}" in text and all(f"| {name} |" in text for name in claim.quantities)
    first, second = (r["figures"]["ptx true score"] for r in rows_of(lines)["1"])
    systems = [row for row in text.splitlines() if row.startswith("| PPO-ptx |")]
    assert len(systems) == 3 and f"{(first + second) / 2:.3f} ±" in systems[0]
    assert all(f"| {name} |" in text for name in (*experiments.CHANGED, *claims.RMS.values()))


def test_pictures_are_drawn_of_the_claims_that_are_there(lines, tmp_path):
    pytest.importorskip("matplotlib")
    claims.plot({n: rows_of(lines)[n] for n in ("1", "8")}, str(tmp_path))
    assert os.listdir(tmp_path) == ["systems.png"]
    claims.plot(rows_of(lines), str(tmp_path))
    for name in ("systems.png", "overoptimisation.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


# -------------------------------------------------------------------------------------------------
# the page and the run, of experiments that measure nothing

CALLS = []


def tall(world):
    CALLS.append(("tall", world.seed))
    return {"height": world.seed / 100, "trees": [1.0 + world.seed, 2000], "count": 123_456}


def wide(world):
    CALLS.append(("wide", world.seed))
    return {"width": -2 + world.seed / 1000}


MADE_UP = {
    "1": claims.Claim("Trees are tall.", "[T] 1", "9 m", tall, "height {height}, {count}",
                    {"height": lambda f: f["height"], "height minus 1.03": lambda f: f["height"] - 1.03}),
    "2": claims.Claim("Trees are wide.", "[T] 2", "2 m", wide, "width {width}", {"width": lambda f: f["width"]}),
    "3": claims.Claim("Trees have height.", "[T] 3", "", tall, "{height}", {"height": lambda f: f["height"]}),
}


@contextmanager
def in_this_process(workers):
    """In place of multiprocessing's Pool."""
    yield SimpleNamespace(imap_unordered=map)


@pytest.fixture
def config(tmp_path, monkeypatch):
    CALLS.clear()
    drawn = []
    monkeypatch.setattr(claims, "CLAIMS", MADE_UP)
    monkeypatch.setattr(claims, "TABLES", {})
    monkeypatch.setattr(claims, "plot", lambda rows, folder: drawn.append((set(rows), folder)))
    monkeypatch.setattr(claims.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=in_this_process))
    monkeypatch.setattr(claims.cli, "keep_freed_memory", lambda: None)
    return claims.Config(runs=str(tmp_path / "runs"), docs=str(tmp_path / "docs"), results=str(tmp_path / "R.md"))


def cells(text, first):
    [row] = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_page_says_what_the_lines_say(config):
    """Seeds 101 to 105: heights from 1.01 to 1.05, so 1.03 ± 2.776 · 0.0158 / √5 = 1.03 ± 0.0196; widths about -1.897."""
    os.makedirs(config.docs)
    with open(f"{config.docs}/remarks.md", "w") as f:
        f.write("What we think.\n\n## 2\nThey are not.\n\n## 9\nNobody asked.\n")
    assert claims.main(config) == {"1": "undecided", "2": "fails", "3": "holds"}
    with open(config.results) as f:
        text = f.read()
    assert text.index("## 2.") < text.index("They are not.") < text.index("## 3.") and "Nobody" not in text
    for number, says in ((1, "undecided"), (2, "fails"), (3, "holds")):
        assert f"**{says}**" in cells(text, number)[-1]
    assert cells(text, 1)[1:4] == ["Trees are tall.", "[T] 1: 9 m", "height 1.030 ± 0.020, 123,456"]
    assert cells(text, "height minus 1.03")[1] in ("+0.000 ± 0.020", "-0.000 ± 0.020") and cells(text, "height minus 1.03")[2] == "?"
    assert cells(text, "width")[1:] == ["-1.897 ± 0.002", "below"]
    assert text.count("| height | +1.030 ± 0.020 | above |") == 2
    assert "They are not." in text and "over 5 seeds" in text and "101, 102, 103, 104, 105" in text


def test_an_experiment_of_two_claims_is_run_once_a_seed(config):
    claims.main(config)
    assert sorted(CALLS) == sorted((name, seed) for name in ("tall", "wide") for seed in range(101, 106))
    found = [json.loads(line) for line in data.read_file(f"{config.docs}/claims.jsonl").splitlines()]
    assert [(r["experiment"], r["seed"]) for r in found] == sorted(CALLS)
    assert found[0]["figures"] == {"height": 1.01, "trees": [102.0, 2000], "count": 123_456.0}
    assert {r["commit"] for r in found} != {""} and all(r["seconds"] >= 0 for r in found)


def test_some_claims_and_some_seeds(config):
    cfg = replace(config, claims=("2",), seeds=(7, 8))
    assert claims.main(cfg) == {"2": "fails"} and CALLS == [("wide", 7), ("wide", 8)]
    assert claims.main(replace(cfg, claims=("3",))) == {"1": "fails", "2": "fails", "3": "holds"}
    assert CALLS[2:] == [("tall", 7), ("tall", 8)], "what was measured for other claims stays on the page"


def test_an_interrupted_run_goes_on(config, monkeypatch):
    def killed(world):
        if len(CALLS) == 7:
            raise KeyboardInterrupt
        return wide(world)
    monkeypatch.setitem(MADE_UP, "2", MADE_UP["2"]._replace(measure=killed))
    killed.__name__ = "wide"
    with pytest.raises(KeyboardInterrupt):
        claims.main(config)
    assert len(CALLS) == 7 and not os.path.exists(config.results)
    monkeypatch.setitem(MADE_UP, "2", MADE_UP["2"]._replace(measure=wide))
    assert claims.main(config) == {"1": "undecided", "2": "fails", "3": "holds"}
    assert len(CALLS) == len(set(CALLS)) == 10, "nothing twice"


@pytest.mark.parametrize(("wrong", "says"), [({"seeds": (101, 101)}, "two different"), ({"seeds": (101,)}, "two different"),
                                             ({"workers": 0}, "--workers at least 1")])
def test_settings_without_an_interval_or_a_worker_are_refused(config, wrong, says):
    with pytest.raises(ValueError, match=says):
        claims.main(replace(config, **wrong))
    assert CALLS == []


@pytest.mark.parametrize("broken", ["{", "[1]", '{"experiment": "tall", "seed": 101}'])
def test_a_broken_line_is_named(config, broken):
    claims.main(config)
    with open(f"{config.docs}/claims.jsonl", "a") as f:
        f.write(broken + "\n")
    with pytest.raises(ValueError, match=r"claims\.jsonl, line 11 .* delete it"):
        claims.main(config)


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(config, tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in ({"docs": str(tmp_path / "file")}, {"results": str(tmp_path / "file" / "R.md")}, {"results": str(tmp_path)}):
        with pytest.raises(ValueError, match="choose another|folder|cannot be"):
            claims.main(replace(config, **wrong))
    assert CALLS == []


def test_discrete_kl_is_that_of_all_draws():
    """Against every ordered draw of n samples, with replacement, from those there are."""
    scores, texts = [0.5, -1.0, 0.5, 2.0, -1.0, 0.5], ["b", "a", "b", "c", "a", "b"]
    for n in (1, 2, 3, 4):
        best = Counter(texts[max(draw, key=lambda i: scores[i])] for draw in product(range(6), repeat=n))
        exact = sum(c / 6 ** n * math.log(c / 6 ** n / (texts.count(t) / 6)) for t, c in best.items())
        assert experiments.discrete_kl(scores, texts, n) == pytest.approx(exact, abs=1e-12)
        assert exact <= evaluate.best_of_n_kl(n) + 1e-12
    assert experiments.discrete_kl([1.0, 1.0], ["x", "x"], 256) == 0


def test_page_measures_nothing(config):
    claims.main(config)
    with open(config.results) as f:
        before = f.read()
    os.remove(config.results)
    CALLS.clear()
    assert claims.main(replace(config, page=True)) == {"1": "undecided", "2": "fails", "3": "holds"} and CALLS == []
    with open(config.results) as f:
        assert f.read() == before


@pytest.mark.parametrize("wrong", ["4", "0", "-1", "one", "1.0", ""])
def test_an_unknown_claim_is_refused_with_one_sentence(config, wrong, monkeypatch, capsys):
    with pytest.raises(ValueError, match=rf"no claim {re.escape(wrong)}.*1, 2, 3"):
        claims.main(replace(config, claims=("1", wrong)))
    assert CALLS == [] and not os.path.exists(config.docs)
    if wrong == "4":
        monkeypatch.setattr(sys, "argv", ["claims.py", "1", wrong])
        with pytest.raises(SystemExit, match="2"):
            cli.run(claims.main, claims.Config, claims.PRESETS, claims.__doc__, positional="claims")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith("error: there is no claim 4")


def test_the_claims_are_numbered_and_say_where_they_come_from():
    assert list(dict.fromkeys(n.rstrip("abcd") for n in claims.CLAIMS)) == [str(n) for n in range(1, 14)]
    assert all(c.sentence.endswith(".") and re.match(r"\[|\w+ et al\. \d", c.source) and c.quantities for c in claims.CLAIMS.values())
    assert claims.TABLES.keys() <= claims.CLAIMS.keys()
