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
    "won",
    "tied",
    "lost",
    "decided",
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


def said(seed, prompts=PROMPTS, kl=1.0, samples=2):
    """Answers that nobody gave: to prompts of the sandbox its own or one that is wrong."""
    rng, shape = np.random.default_rng(seed), (len(prompts), samples)
    texts, judged = [], []
    for p in prompts:
        right = rng.random(samples) < 0.5
        texts.append([p.meta["answers"][0] if p.meta and r else "No." for r in right])
        judged.append([sandbox.judge(p, text) if p.meta else None for text in texts[-1]])
    rm_score, known = rng.normal(size=shape), all(p.meta for p in prompts)
    return Answers(
        prompts=[str(p.messages) for p in prompts],
        cases=[p.use_case for p in prompts],
        texts=texts,
        score=np.array([[j.score for j in of] for of in judged]) if known else rm_score,
        judged=judged if known else None,
        rm_score=rm_score,
        kl=np.full(shape, kl),
        length=rng.integers(1, 7, shape).astype(float),
        ended=rng.random(shape) < 0.5,
    )


def figures(helpful, hallucination, right=0.1):
    """Of one key of a group of what is asked apart."""
    shares = {"helpful": helpful, "hallucination": hallucination, "right": right}
    return shares | {"neither": 0.02, "prompts": 10}


def parts_of(name, best_of, prompts):
    """What is asked apart of a system; nothing where the prompts are somebody's own."""
    if not all(p.meta for p in prompts):
        return {}
    turns = {"1": figures(0.9, 0.1), "2": figures(0.4, 0.2), "3": figures(0.625, 0.2)}
    apart = {"turns": turns, "fall": 27.5} if best_of == 1 else {"turns": {}}
    for group, share in (("touched", 0.6), ("untouched", 0.7)):
        apart[group] = {
            "open qa": figures(0.5, share, right=share / 2 + len(name) / 100),
            "unanswerable": figures(0.5, share / 10),
        }
    return apart


def results_of(prompts, names=("base", "prompted base", "sft", "sft best of 8")):
    """Of a base, with and without a prefix, SFT and a best of it."""
    made = []
    for k, name in enumerate(names):
        best_of, kl = (8, 1.204) if k == 3 else (1, 0.0 if k == 2 else 1.0)
        greedy = said(k + 10, prompts, kl, samples=1) if best_of == 1 else None
        parts, prefix = parts_of(name, best_of, prompts), PREFIX if k == 1 else ()
        loss = 2.0 if k < 2 else 2.5
        answers = said(k, prompts, kl)
        made.append(report.Result(name, best_of, prefix, answers, greedy, loss, parts))
    return made


@dataclass
class Made:
    """A report, its page, and its systems by name."""

    report: dict
    page: str
    systems: dict


def made(prompts=PROMPTS, baseline=2, judge="the true score"):
    whole = report.make_report(results_of(prompts), baseline, judge, 0, prompts)
    return Made(whole, report.markdown(whole), {s["name"]: s for s in whole["systems"]})


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
        assert s["won"] + s["tied"] + s["lost"] == pytest.approx(1)
        assert s["won"] + s["tied"] / 2 == pytest.approx(s["win_rate"])
        assert s["decided"] == pytest.approx(s["won"] / (s["won"] + s["lost"]))
        assert s["samples"] == 2
        assert all(0 <= s[k] <= 1 for k in ("helpful", "hallucination", "harmless", "eos_rate"))
        assert s["use_cases"].keys() <= sandbox.USE_CASES.keys()
        assert sum(c["prompts"] for c in s["use_cases"].values()) == s["prompts"] == 40
        mean = sum(c["true_score"] * c["prompts"] for c in s["use_cases"].values()) / 40
        assert mean == pytest.approx(s["true_score"])
    json.dumps(four.report, allow_nan=False)


def test_figures_by_hand():
    """Of all four pairs of answers to a prompt."""
    ours, theirs = results_of(PROMPTS)[0].sampled, results_of(PROMPTS)[2].sampled
    rows = [3, 5, 8]
    found = report.summary(ours, theirs, seed=0, rows=rows)
    pairs = [(x, y) for i in rows for x in ours.score[i] for y in theirs.score[i]]
    assert found["won"] == pytest.approx(sum(x > y for x, y in pairs) / 12)
    assert found["lost"] == pytest.approx(sum(x < y for x, y in pairs) / 12)
    assert found["win_rate"] == pytest.approx(sum((x > y) + (x == y) / 2 for x, y in pairs) / 12)
    helpful = [j.helpful for i in rows for j in ours.judged[i]]
    assert found["helpful"] == pytest.approx(sum(helpful) / 6) and found["prompts"] == 3
    assert found["eos_rate"] == pytest.approx(sum(ours.ended[i].sum() for i in rows) / 6)
    assert 0 <= found["rm_agreement"] <= 1
    assert found["distinct"] == pytest.approx(len({t for i in rows for t in ours.texts[i]}) / 6)


def test_the_baseline_ties_with_itself(four):
    sft = four.systems["sft"]
    assert four.report["baseline"] == "sft"
    for view in (sft, *sft["use_cases"].values()):
        assert view["win_rate"] == 0.5 and view["win_rate_ci"] == [0.5, 0.5] and view["kl"] == 0
    assert sft["won"] == sft["lost"] > 0 and sft["decided"] == 0.5
    assert sft["greedy"]["win_rate"] == 0.5 and sft["greedy"]["log_ratio"] == 0
    assert sft["greedy"]["tied"] == 1 and "decided" not in sft["greedy"]
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
    assert four.page.count(head) == 5
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


def rows_of(page, title):
    """The cells of the first table of a section, or of the page: {first cell: the others}."""
    text = page.split(f"## {title}\n")[1].split("\n## ")[0] if title else page
    lines = text[text.index("\n| ") + 1 :].split("\n\n")[0].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def test_the_first_table_says_who_wins_and_the_second_what_the_answers_are_like(four):
    wins, answers = rows_of(four.page, ""), rows_of(four.page, "What the answers are like")
    assert wins["system"] == [t for c, t in report.WINS.items() if c != "people"]
    assert answers["system"] == [t for c, t in report.ANSWERS.items() if c != "log_ratio"]
    for name, s in four.systems.items():
        shares = [f"{s[c]:.3f}" for c in ("won", "tied", "lost", "decided")]
        assert wins[name][1:5] == shares and wins[name][0].startswith(f"{s['win_rate']:.3f} [")
        assert answers[name][:2] == [f"{s['true_score']:.3f}", f"{s['helpful']:.3f}"]
    assert "40 held-out prompts, of each system 2 answers" in four.page
    greedy = rows_of(four.page, "Greedy")
    assert greedy["sft"][1:5] == ["0.000", "1.000", "0.000", ""]


def test_what_is_asked_apart_has_tables_of_its_own(four):
    turns = rows_of(four.page, "By turn")
    assert turns["system"] == ["turn 1", "turn 2", "turn 3", "fall, points"]
    assert turns["base"] == ["0.900", "0.400", "0.625", "27.5"]
    assert "sft best of 8" not in turns and "sft" in turns
    countries = rows_of(four.page, "Facts that no comparison touched: countries")
    assert countries["system"][:3] == ["right, touched", "right, untouched", "made up, touched"]
    assert countries["sft"] == ["0.330", "0.380", "0.600", "0.700", "0.020", "0.020"]
    assert countries["sft best of 8"][:2] == ["0.430", "0.480"]
    unknown = rows_of(four.page, "Facts that no comparison touched: places that nobody knows")
    assert unknown["base"][2:4] == ["0.060", "0.070"]
    assert "Untouched are questions" in four.page
    for name, s in four.systems.items():
        assert s["untouched"]["open qa"]["right"] == pytest.approx(0.35 + len(name) / 100)


def test_prompts_that_only_the_last_system_gets_right_are_chosen():
    """The first of three use cases, by the first answers; none without an answer key."""
    prompts = sorted(PROMPTS, key=lambda p: p.use_case)
    found = results_of(prompts)
    theirs, ours = found[2].sampled, found[3].sampled
    # a sentence that is right, and another that is made up, are not right
    ours.judged[0][0] = sandbox.Judgement(True, True, True, False, 4)
    theirs.judged[0][0] = sandbox.Judgement(False, True, True, False, 4)
    # two prompts of one use case, of which the first is chosen
    first = next(i for i in range(1, 39) if ours.cases[i] == ours.cases[i + 1])
    for i in (first, first + 1):
        ours.judged[i][0] = sandbox.Judgement(True, False, True, False, 0)
        theirs.judged[i][0] = sandbox.Judgement(False, True, True, False, 0)

    def right(answers, i):
        return answers.judged[i][0].helpful and not answers.judged[i][0].hallucination

    better = [i for i in range(40) if right(ours, i) and not right(theirs, i)]
    cases = [ours.cases[i] for i in better]
    assert len(set(cases)) > 3 and len(set(cases[:3])) < 3 and 0 not in better
    first = {ours.cases[i]: i for i in reversed(better)}
    chosen = report.make_report(found, 2, "the true score", 0, prompts)["chosen"]
    assert [x["use_case"] for x in chosen] == list(dict.fromkeys(cases))[:3]
    for x in chosen:
        i = first[x["use_case"]]
        assert x["prompt"] == " | ".join(m["content"] for m in prompts[i].messages)
        assert x["answers"] == {r.name: r.sampled.texts[i][0] for r in found}
    of_another = report.make_report(found, 3, "the true score", 0, prompts)["chosen"]
    assert of_another != chosen and of_another
    own = [data.Prompt([{"role": "user", "content": f"Who are you, {i}?"}]) for i in range(9)]
    whole = made(own, judge="the reward model").report
    assert whole["chosen"] == [] and [x["prompt"] for x in whole["examples"]] == ["Who are you, 0?"]


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
    assert "By turn" not in found.page and "no comparison touched" not in found.page


def test_a_cell_shows_the_interval_and_whether_it_is_a_bound():
    figures = {"kl": 1.25, "elo": 12.4, "elo_ci": [-3.6, 20.0], "best_of": 4}
    assert report.cell(figures, "kl") == "≤ 1.250" and report.cell({"kl": 1.25}, "kl") == "1.250"
    assert report.cell(figures, "elo") == "12 [-4, 20]" and report.cell(figures, "length") == ""


def test_pictures_are_drawn_if_matplotlib_is_there(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    few = [data.Prompt([{"role": "user", "content": "Who are you?"}])] * 3
    for folder, found in (("true", made(PROMPTS[:9])), ("reward", made(few))):
        (tmp_path / folder).mkdir()
        results.deliver(tmp_path / folder, {}, report.writers(found.report))
        for name in ("systems.png", "matrix.png", "use_cases.png"):
            assert (tmp_path / folder / name).read_bytes()[:4] == b"\x89PNG"
        assert report.show(tmp_path / folder) == json.loads(json.dumps(found.systems))
    assert "no plots" not in capsys.readouterr().out


def test_make_looks_at_the_page_which_is_written_last(four, monkeypatch):
    pytest.importorskip("matplotlib")
    assert list(report.writers(four.report)) == list(report.FILES)
    assert report.FILES[-1] == "report.md"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert list(report.writers(four.report)) == ["report.json", "report.md"]


def test_no_figure_that_is_not_finite_is_reported():
    """The sentence names the system and what was measured of it."""
    for how in ("sampled", "greedy"):
        for figure in ("score", "rm_score", "kl"):
            found = results_of(PROMPTS[:9])[:2]
            getattr(getattr(found[1], how), figure)[-1, -1] = np.nan
            with pytest.raises(ValueError, match="^prompted base[,:] .*not finite"):
                report.make_report(found, 0, "the true score", 0, PROMPTS[:9])
    found = results_of(PROMPTS[:9])[2:]
    found[1] = found[1]._replace(text_loss=np.inf)
    with pytest.raises(ValueError, match="^sft best of 8: the pretrain_loss"):
        report.make_report(found, 0, "the true score", 0, PROMPTS[:9])


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
    found = results_of(prompts, names)
    return report.make_report(found, 0, "the true score", 0, prompts)


def test_names_are_drawn_as_they_are():
    """Neither a formula nor half a character in a name ends a run after all its sampling."""
    for write in report.plots(with_names(HOSTILE)).values():
        f = io.BytesIO()
        write(f)
        assert f.getvalue().startswith(b"\x89PNG")


def test_no_name_breaks_a_table():
    lines = report.markdown(with_names(HOSTILE)).splitlines()
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


def test_over_seeds_has_what_was_asked_apart(tmp_path, four, capsys):
    """Of whole reports: every figure is what it is in both."""
    paths = [str(tmp_path / f"{k}.json") for k in range(2)]
    for path in paths:
        with open(path, "w") as f:
            json.dump(four.report, f)
    found = report.over_seeds(paths)
    sft = four.systems["sft"]
    assert found["sft"]["fall"] == (27.5, 0) and found["sft"]["decided"] == (0.5, 0)
    assert found["sft, turn 3"]["helpful"] == (0.625, 0)
    for group in ("touched", "untouched"):
        for case, figures in sft[group].items():
            of_case = found[f"sft, {group} {case}"]
            assert of_case["right"] == (figures["right"], 0)
            assert of_case["neither"] == (figures["neither"], 0)
    assert "sft best of 8, turn 1" not in found and "turns" not in found["sft"]
    shown = capsys.readouterr().out
    names = ["| system | win rate | won | tied | lost | won of decided |"]
    names += ["| system | true score |", "| system | turn 1 | turn 2 | turn 3 | fall, points |"]
    names += ["| system | right, touched | right, untouched |"] * 2
    heads = [line for line in shown.splitlines() if line.startswith("| system |")]
    assert len(heads) == 5 and all(h.startswith(name) for h, name in zip(heads, names))
    assert "| sft | 0.900 ± 0.000 | 0.400 ± 0.000 | 0.625 ± 0.000 | 27.5 ± 0.0 |" in shown
    case = next(iter(sft["use_cases"]))
    assert sum(line.startswith(f"| sft, {case} |") for line in shown.splitlines()) == 2


def test_a_report_of_before_goes_with_new_ones(tmp_path, four):
    """It has neither won, tied and lost nor what is asked apart: neither have the means."""
    new, old = json.loads(json.dumps(four.report)), json.loads(json.dumps(four.report))
    for system in old["systems"]:
        for key in ("won", "tied", "lost", "decided", "turns", "fall", "touched", "untouched"):
            system.pop(key, None)
    for name, content in (("new", new), ("old", old)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [str(tmp_path / f"{name}.json") for name in ("new", "old")]
    for order in (paths, paths[::-1]):
        found = report.over_seeds(order)
        assert "win_rate" in found["sft"] and "won" not in found["sft"]
        assert not [name for name in found if "touched" in name or "turn" in name]


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
        [{"name": "ppo", "use_cases": {}, "turns": 3}],
        [{"name": "ppo", "use_cases": {}, "untouched": {"open qa": {"right": math.inf}}}],
    ],
)
def test_a_report_that_says_nothing_is_named(tmp_path, systems):
    path, bad = made_up(tmp_path / "a.json", win_rate=0.5), tmp_path / "bad.json"
    for text in (json.dumps({"systems": systems}), json.dumps(systems), "{", "[" * 10**5):
        bad.write_text(text)
        with pytest.raises(ValueError, match="bad.json is no report.json"):
            report.over_seeds([path, str(bad)])
