"""The report: its figures, tables and plots from made-up answers, and means over seeds."""

import io
import json
import math
import re
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

import data
import sandbox
from evidence import report
from evidence.answers import Answers
from plumbing import results

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
PROMPTS = sandbox.eval_prompts(40, 0)
PREFIX = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "Zora."}]


def said(seed, prompts=PROMPTS, kl=1.0):
    """Answers that nobody gave: to prompts of the sandbox its own or one that is wrong."""
    rng = np.random.default_rng(seed)
    texts = [p.meta["answers"][0] if p.meta and rng.random() < 0.5 else "No." for p in prompts]
    judged = [sandbox.judge(p, t) if p.meta else None for p, t in zip(prompts, texts)]
    rm_score, N = rng.normal(size=len(prompts)), len(prompts)
    return Answers(
        prompts=[str(p.messages) for p in prompts],
        cases=[p.use_case for p in prompts],
        texts=texts,
        score=np.array([j.score for j in judged]) if all(judged) else rm_score,
        judged=judged,
        rm_score=rm_score,
        kl=np.full(N, kl),
        length=rng.integers(1, 7, N).astype(float),
        ended=rng.random(N) < 0.5,
    )


def results_of(prompts):
    """base, prompted base, sft, sft best of 8"""
    return [
        report.Result("base", 1, (), said(0, prompts), said(1, prompts), 2.0),
        report.Result("prompted base", 1, PREFIX, said(2, prompts), said(3, prompts), 2.0),
        report.Result("sft", 1, (), said(4, prompts, kl=0.0), said(5, prompts, kl=0.0), 2.5),
        report.Result("sft best of 8", 8, (), said(6, prompts, kl=1.204), None, 2.5),
    ]


@dataclass
class Made:
    """A report, its page, and its systems by name."""

    report: dict
    page: str
    systems: dict


def made(prompts=PROMPTS, baseline=2, judge="the true score"):
    found = results_of(prompts)
    whole = report.make_report(found, baseline, judge, seed=0)
    page = report.markdown(whole, report.examples_of(found, prompts))
    return Made(whole, page, {s["name"]: s for s in whole["systems"]})


@pytest.fixture(scope="module")
def four():
    return made()


# ---- figures


def test_the_report_has_the_fields_that_were_promised(four):
    assert list(four.systems) == ["base", "prompted base", "sft", "sft best of 8"]
    for s in four.systems.values():
        assert PROMISED <= s.keys()
        low, high = s["win_rate_ci"]
        assert 0 <= low <= s["win_rate"] <= high <= 1
        assert s["elo_ci"][0] <= s["elo"] <= s["elo_ci"][1]
        assert all(0 <= s[k] <= 1 for k in ("helpful", "hallucination", "harmless", "eos_rate"))
        assert s["use_cases"].keys() <= sandbox.USE_CASES.keys()
        assert sum(c["prompts"] for c in s["use_cases"].values()) == s["prompts"] == 40
        mean = sum(c["true_score"] * c["prompts"] for c in s["use_cases"].values()) / 40
        assert mean == pytest.approx(s["true_score"])
    json.dumps(four.report, allow_nan=False)


def test_figures_by_hand():
    ours, theirs = results_of(PROMPTS)[0].sampled, results_of(PROMPTS)[2].sampled
    rows = [3, 5, 8]
    found = report.summary(ours, theirs, seed=0, rows=rows)
    won = [(ours.score[i] > theirs.score[i]) + (ours.score[i] == theirs.score[i]) / 2 for i in rows]
    assert found["win_rate"] == pytest.approx(sum(won) / 3) and found["prompts"] == 3
    assert found["helpful"] == pytest.approx(sum(ours.judged[i].helpful for i in rows) / 3)
    assert found["eos_rate"] == pytest.approx(sum(ours.ended[i] for i in rows) / 3)
    assert found["distinct"] == pytest.approx(len({ours.texts[i] for i in rows}) / 3)


def test_the_baseline_ties_with_itself(four):
    sft = four.systems["sft"]
    assert four.report["baseline"] == "sft"
    for view in (sft, *sft["use_cases"].values()):
        assert view["win_rate"] == 0.5 and view["win_rate_ci"] == [0.5, 0.5] and view["kl"] == 0
    assert sft["greedy"]["win_rate"] == 0.5 and sft["greedy"]["log_ratio"] == 0
    assert sft["elo"] == 0 and sft["elo_ci"] == [0, 0]


def test_the_matrix_agrees_with_the_win_rates(four):
    rates = np.array(four.report["matrix"]["win_rates"])
    assert four.report["matrix"]["names"] == list(four.systems)
    assert rates + rates.T == pytest.approx(np.ones((4, 4)))
    assert rates[:, 2].tolist() == [s["win_rate"] for s in four.systems.values()]


def test_any_system_can_be_the_baseline():
    """A best of n too, which has no greedy answers: then greedy ones are held against its own."""
    for baseline in (1, 3):
        found = made(baseline=baseline)
        systems = list(found.systems.values())
        assert systems[baseline]["win_rate"] == 0.5 and systems[baseline]["elo"] == 0
        assert all("greedy" in s for s in systems[:3]) and "greedy" not in systems[3]


# ---- the page


def test_the_page_shows_every_system_and_use_case(four):
    assert all(f"| {name} |" in four.page for name in four.systems)
    head = "| system | " + " | ".join(four.systems["sft"]["use_cases"]) + " |"
    assert four.page.count(head) == 4
    table = four.page.split("## Helpful by use case")[1].split("##")[0]
    for name, s in four.systems.items():
        helpful = " | ".join(f"{c['helpful']:.2f}" for c in s["use_cases"].values())
        assert f"| {name} | {helpful} |" in table
    assert "Against sft" in four.page and f"{four.systems['base']['true_score']:.3f}" in four.page
    assert "≤ 1.204" in four.page and "≤ 1.000" not in four.page
    assert "## What prompted base reads first" in four.page and "- assistant: Zora." in four.page
    assert "## What base reads first" not in four.page
    asked = {f"**{p.messages[-1]['content']}**" for p in PROMPTS if len(p.messages) == 1}
    assert any(line in asked for line in four.page.split("## Answers")[1].splitlines())


def test_half_a_character_in_a_prompt_does_not_spoil_the_page():
    prompts = [data.Prompt([{"role": "user", "content": "Who \ud800 are you?"}])] * 2
    found = made(prompts, judge="the reward model")
    assert r"**Who \ud800 are you?**" in found.page.encode().decode()
    json.loads(json.dumps(found.report))


def test_prompts_without_an_answer_key_have_no_true_score():
    prompts = [data.Prompt([{"role": "user", "content": f"Who are you, {i}?"}]) for i in range(9)]
    found = made(prompts, judge="the reward model")
    assert all("true_score" not in s and "helpful" not in s for s in found.systems.values())
    assert "judged by the reward model" in found.page
    assert "by use case" not in found.page and "true score" not in found.page


def test_a_cell_shows_the_interval_and_whether_it_is_a_bound():
    figures = {"kl": 1.25, "elo": 12.4, "elo_ci": [-3.6, 20.0], "best_of": 4}
    assert report.cell(figures, "kl") == "≤ 1.250" and report.cell({"kl": 1.25}, "kl") == "1.250"
    assert report.cell(figures, "elo") == "12 [-4, 20]" and report.cell(figures, "length") == ""


def test_pictures_are_drawn_if_matplotlib_is_there(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    few = [data.Prompt([{"role": "user", "content": "Who are you?"}])] * 3
    for folder, found in (("true", made(PROMPTS[:9])), ("reward", made(few))):
        (tmp_path / folder).mkdir()
        results.deliver(tmp_path / folder, {}, report.writers(found.report, found.page))
        for name in ("systems.png", "matrix.png", "use_cases.png"):
            assert (tmp_path / folder / name).read_bytes()[:4] == b"\x89PNG"
        assert report.show(tmp_path / folder) == json.loads(json.dumps(found.systems))
    assert "no plots" not in capsys.readouterr().out


def test_make_looks_at_the_page_which_is_written_last(four, monkeypatch):
    assert list(report.writers(four.report, four.page)) == list(report.FILES)
    assert report.FILES[-1] == "report.md"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert list(report.writers(four.report, four.page)) == ["report.json", "report.md"]


def test_no_figure_that_is_not_finite_is_reported():
    """The sentence names the system and what was measured of it."""
    for how in ("sampled", "greedy"):
        for figure in ("score", "rm_score", "kl"):
            found = results_of(PROMPTS[:9])[:2]
            getattr(getattr(found[1], how), figure)[-1] = np.nan
            with pytest.raises(ValueError, match="^prompted base[,:] .*not finite"):
                report.make_report(found, 0, "the true score", seed=0)
    found = results_of(PROMPTS[:9])[2:]
    found[1] = found[1]._replace(text_loss=np.inf)
    with pytest.raises(ValueError, match="^sft best of 8: the pretrain_loss"):
        report.make_report(found, 0, "the true score", seed=0)


def test_the_log_ratio_of_one_answer_is_not_called_a_kl(four):
    greedy = four.page.split("## Greedy")[1].split("##")[0]
    assert "| log-ratio |" in greedy and "| KL |" not in greedy and "it is no KL" in greedy
    before = four.page.split("## Greedy")[0]
    assert "| KL |" in before and "log-ratio" not in before
    assert all("kl" not in s["greedy"] for s in four.systems.values() if "greedy" in s)


HOSTILE = ["$\\frac$", "half a character \ud800", "a\nb | c `d` \x1b[31m"]


def with_names(names):
    """A report of systems and use cases of these names."""
    prompts = [replace(p, use_case=names[i % len(names)]) for i, p in enumerate(PROMPTS[:9])]
    found = [r._replace(name=name) for r, name in zip(results_of(prompts), names)]
    return report.make_report(found, 0, "the true score", seed=0)


def test_names_are_drawn_as_they_are():
    """Neither a formula nor half a character in a name ends a run after all its sampling."""
    for write in report.plots(with_names(HOSTILE)).values():
        f = io.BytesIO()
        write(f)
        assert f.getvalue().startswith(b"\x89PNG")


def test_no_name_breaks_a_table():
    lines = report.markdown(with_names(HOSTILE), []).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert sum(r"| a b \| c \`d\` " in line for line in tables) >= 3
    columns = {len(re.split(r"(?<!\\)\|", line)) for line in lines[2:7]}
    assert len(columns) == 1
    assert not [line for line in lines if line.startswith("b |")]


# ---- several seeds


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
    """0.6, 0.7, 0.8: standard deviation 0.1, Student's t of two degrees of freedom 4.3027."""
    paths = []
    for win_rate in (0.6, 0.7, 0.8):
        path = tmp_path / f"{win_rate}.json"
        paths.append(made_up(path, win_rate=win_rate, win_rate_ci=[0, 1], kl=2.0))
    table = report.over_seeds(paths)
    half = 4.3027 * 0.1 / 3**0.5
    assert table["ppo"]["win_rate"] == pytest.approx((0.7, half), rel=1e-3)
    assert table["ppo"]["kl"] == pytest.approx((2.0, 0.0))
    assert table["ppo, chat"]["win_rate"] == pytest.approx((0.35, half / 2), rel=1e-3)
    shown = capsys.readouterr().out
    assert "3 seeds" in shown and "0.700 ± 0.248" in shown


def test_over_seeds_shows_what_all_reports_have(tmp_path, capsys):
    """An older report has no Elo, and another order of systems."""
    new = made_up(tmp_path / "new.json", win_rate=0.6, elo=100.0, kl=1.0)
    old = made_up(tmp_path / "old.json", win_rate=0.8, kl=3.0)
    content = json.loads((tmp_path / "old.json").read_text())
    base = content["systems"][0] | {"name": "base", "win_rate": 0.1}
    content["systems"].insert(0, base)
    (tmp_path / "old.json").write_text(json.dumps(content))
    table = report.over_seeds([new, old])
    assert table.keys() == {"ppo", "ppo, chat"} and table["ppo"].keys() == {"win_rate", "kl"}
    assert table["ppo"]["win_rate"][0] == pytest.approx(0.7)
    assert "Elo" not in capsys.readouterr().out
    made_up(tmp_path / "old.json", win_rate=0.8, elo=300.0)
    elo = report.over_seeds([new, old])["ppo"]["elo"]
    assert elo == pytest.approx((200, 12.71 * 100), rel=1e-3)


def test_means_that_are_not_finite_are_no_table(tmp_path, capsys):
    paths = [made_up(tmp_path / f"{kl}.json", win_rate=0.5, kl=kl) for kl in (1.7e308, -1.7e308)]
    with pytest.raises(ValueError, match="^ppo, mean and interval over the seeds: the kl is not"):
        report.over_seeds(paths)
    assert capsys.readouterr().out == ""


def test_one_report_or_no_report_is_refused(tmp_path):
    path = made_up(tmp_path / "a.json", win_rate=0.5)
    for few in ([path], [path, path]):
        with pytest.raises(ValueError, match="at least two"):
            report.over_seeds(few)
    with pytest.raises(ValueError, match="none.json does not exist"):
        report.over_seeds([path, str(tmp_path / "none.json")])


@pytest.mark.parametrize(
    "systems",
    [
        None,
        3,
        [3],
        [{}],
        [{"name": "ppo"}],
        [{"name": "ppo", "use_cases": 1}],
        [{"name": "ppo", "use_cases": {"chat": 1}}],
        [{"name": "ppo", "use_cases": {}, "kl": math.nan}],
        [{"name": "ppo", "use_cases": {}, "kl": "much"}],
        [{"name": "ppo", "use_cases": {"chat": {"kl": 10**400}}}],
    ],
)
def test_a_report_that_says_nothing_is_named(tmp_path, systems):
    path, bad = made_up(tmp_path / "a.json", win_rate=0.5), tmp_path / "bad.json"
    for text in (json.dumps({"systems": systems}), json.dumps(systems), "{", "[" * 10**5):
        bad.write_text(text)
        with pytest.raises(ValueError, match="bad.json is no report.json"):
            report.over_seeds([path, str(bad)])
