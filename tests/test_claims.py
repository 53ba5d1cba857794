"""evidence/claims.py: the arithmetic of a verdict, the claims, and what is measured once."""

import json
import math
import multiprocessing
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from orphans import hello, outlives

from evidence import claims, page
from evidence import world as world_of
from evidence.claims import Claim
from evidence.statistics import effect
from plumbing import cli

# -------------------------------------------------------------------------------------------------
# the verdict, and the claims


ABOVE, BELOW, SMALL, UNSURE = [0.4, 0.5, 0.6], [-0.4, -0.5, -0.6], [-0.01, 0.0, 0.01], [-1, 0, 1]
# it is not nothing, but whether it is more than 0.1 nobody knows
SOME = [0.06, 0.09, 0.12]


@pytest.mark.parametrize(
    ("values", "says", "says_equal"),
    [
        ([ABOVE], "holds", "fails"),
        ([ABOVE, ABOVE], "holds", "fails"),
        ([BELOW], "fails", "fails"),
        ([ABOVE, BELOW], "fails", "fails"),
        ([UNSURE, BELOW, SMALL], "fails", "fails"),
        ([SMALL], "negligible", "holds"),
        ([SMALL, SMALL], "negligible", "holds"),
        ([ABOVE, SMALL], "in part", "fails"),
        ([UNSURE], "undecided", "undecided"),
        ([ABOVE, UNSURE], "undecided", "fails"),
        ([SMALL, UNSURE], "undecided", "undecided"),
        ([SOME], "undecided", "undecided"),
        ([SOME, SMALL], "undecided", "undecided"),
        ([SOME, ABOVE], "undecided", "fails"),
    ],
)
def test_verdicts(values, says, says_equal):
    for order in (values, values[::-1]):
        effects = [effect(v, 0.1) for v in order]
        assert claims.verdict(effects) == says
        assert claims.verdict(effects, equal=True) == says_equal


def test_the_claims_are_numbered_and_say_where_they_come_from():
    numbers = dict.fromkeys(n.rstrip("abcd") for n in claims.CLAIMS)
    assert list(numbers) == [str(n) for n in range(1, 32)]
    for claim in claims.CLAIMS.values():
        assert claim.sentence.endswith(".") and claim.quantities
        assert re.match(r"\[|\w+ (et al\.|and \w+) \d", claim.source)
        assert 3 <= claim.seeds <= len(claims.SEEDS)
        assert all(q.margin >= 0 for q in claim.quantities.values())
        assert all(q.margin > 0 for q in claim.quantities.values()) or not claim.equal


def test_claims_of_one_experiment_have_as_many_seeds():
    seeds = {}
    for claim in claims.CLAIMS.values():
        assert seeds.setdefault(claim.measure, claim.seeds) == claim.seeds


@pytest.mark.parametrize("number", claims.CLAIMS)
def test_every_quantity_and_every_placeholder_of_a_measured_claim_is_there(root, number):
    claim, lines = claims.CLAIMS[number], claims.read_lines(f"{root}/docs/claims.jsonl")
    found = [r["figures"] for r in lines if r["experiment"] == claim.measure.__name__]
    for figures in found:
        for name in re.findall(r"{(.*?)}", claim.ours):
            assert math.isfinite(page.get(figures, name))
        assert all(math.isfinite(q.figure(figures)) for q in claim.quantities.values())


def test_quantities_of_curves():
    """A true score that peaks at 10, while the reward model's goes on."""
    true = [float(x) for x in (*range(11), *range(9, -1, -1))]
    a = {"kl": [4.0] * 21, "rm": list(range(21)), "true": true}
    f = {"a": a, "b": a | {"kl": [1.0] * 21, "true": [0.0] * 20 + [3.0]}}
    assert claims.of_run(claims.later_rm, "a", 0.1).figure(f) == pytest.approx(18 - 10)
    assert claims.minus_run(claims.best_of_256, "b", "a", 0.1).figure(f) == pytest.approx(3)
    assert claims.minus_run(claims.curves.distance, "a", "b", 0.1).figure(f) == pytest.approx(1)


def test_quantities_of_figures():
    f = {"4": {"x": 2.0}, "16": {"x": 5.0}}
    assert claims.minus("16.x", "4.x", 0.1).figure(f) == 3
    assert claims.above("4.x", 0.5, 0.1).figure(f) == 1.5
    assert claims.below("4.x", 0.5, 0.1).figure(f) == -1.5


def test_what_is_won_back_is_counted_from_half():
    """Of a loss that rose by 0.4 and an accuracy that fell by 0.4, 0.3 are won back."""
    f = {"base": {"loss": 1.0, "accuracy": 0.9}, "ppo": {"loss": 1.4, "accuracy": 0.5},
         "ptx": {"loss": 1.1, "accuracy": 0.8}}  # fmt: skip
    for name in ("loss", "accuracy"):
        assert claims.won_back(name)(f) == pytest.approx(0.3 - 0.2)


def test_two_runs_are_compared_as_far_out_as_both_went():
    """One went to a distance of 2 and gained 1 on its way; the other to 3 and lost it all again."""
    def run(d, true):
        return {"kl": [x * x for x in d], "rm": d, "true": [true(x) for x in d]}

    near, far = [i / 50 for i in range(101)], [i / 50 for i in range(151)]
    f = {"minimum": run(near, lambda x: x / 2),
         "single": run(far, lambda x: x / 4 if x < 2.5 else -9.0)}  # fmt: skip
    assert claims.at_one_distance(f) == pytest.approx(0.5, abs=0.02)


def test_the_form_that_foretells_the_rest_of_a_run_misses_it_less():
    d = [i / 10 for i in range(60)]
    for form, other, g in (("rl", "bon", lambda x: math.log(x or 1)), ("bon", "rl", lambda x: x)):
        run = {"kl": [x * x for x in d], "rm": d, "true": [x * (2 - 0.3 * g(x)) for x in d]}
        assert claims.of_run(claims.foretells(form, other), "a", 0.1).figure({"a": run}) > 0.05
        assert claims.of_run(claims.foretells(other, form), "a", 0.1).figure({"a": run}) < -0.05


# -------------------------------------------------------------------------------------------------
# the run and its pages, of experiments that measure nothing

CALLS = []
README = """\
# Trees

<!-- verdicts -->
something old
<!-- /verdicts -->

<!-- systems -->
what was measured before
<!-- /systems -->
The end.
"""


def tall(world):
    CALLS.append(("tall", world.seed))
    return {"oak": {"height": world.seed / 100, "rings": [1.0 + world.seed, 2000]},
            "all": {"count": 123_456}}


def wide(world):
    CALLS.append(("wide", world.seed))
    return {"oak": {"width": -2 + world.seed / 1000}}


HEIGHT = claims.above("oak.height", 0, 0.01)
MADE_UP = {
    "1": Claim("Trees are tall.", "[T] 1", "9 m", tall, "height {oak.height}, {all.count}",
               {"height": HEIGHT, "height minus 1.03": claims.above("oak.height", 1.03, 0.01)}),
    "2": Claim("Trees are wide.", "[T] 2", "2 m", wide, "width {oak.width}",
               {"width": claims.above("oak.width", 0, 0.01)}),
    "3": Claim("Trees have height.", "[T] 3", "", tall, "{oak.height}", {"height": HEIGHT}),
    "4": Claim("Trees have 1.03.", "[T] 4", "", tall, "{oak.height}",
               {"height minus 1.03": claims.above("oak.height", 1.03, 0.02)}, equal=True),
}  # fmt: skip
VERDICTS = {"1": "undecided", "2": "fails", "3": "holds", "4": "holds"}


@contextmanager
def in_this_process(workers, initializer):
    """In place of multiprocessing's Pool."""
    assert initializer is claims.start_worker and workers == 2
    yield SimpleNamespace(imap_unordered=map)


@pytest.fixture
def config(tmp_path, monkeypatch):
    CALLS.clear()
    (tmp_path / "README.md").write_text(README)
    monkeypatch.setattr(claims, "CLAIMS", dict(MADE_UP))
    monkeypatch.setattr(claims, "SEEDS", range(101, 120))
    context = SimpleNamespace(Pool=in_this_process)
    monkeypatch.setattr(claims.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)
    return claims.Config(
        runs=str(tmp_path / "runs"), docs=str(tmp_path / "docs"), readme=str(tmp_path / "README.md")
    )


def read(folder, name):
    with open(os.path.join(folder, name)) as f:
        return f.read()


def cells(text, first):
    [row] = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_page_says_what_the_lines_say(config):
    """Seeds 101 to 105: heights from 1.01 to 1.05, so 1.03 ± 2.776 · 0.0158 / √5 = 1.03 ± 0.0196;
    widths about -1.897."""
    os.makedirs(config.docs)
    with open(f"{config.docs}/remarks.md", "w") as f:
        f.write("What we think.\n\n## 2\nThey are not.\n\n## 9\nNobody asked.\n")
    assert claims.main(config) == VERDICTS
    text = read(config.docs, "RESULTS.md")
    assert text.index("## 2.") < text.index("They are not.") < text.index("## 3.")
    assert "Nobody" not in text
    for number, says in VERDICTS.items():
        assert f"**{says}**" in cells(text, number)[-1]
    assert cells(text, 1)[1:4] == ["Trees are tall.", "[T] 1: 9 m", "height 1.030 ± 0.020, 123,456"]
    unsure, small = [row for row in text.splitlines() if row.startswith("| height minus 1.03 |")]
    # 1.66 standard deviations can be found: (2.776 + 0.941) / √5
    assert unsure.split(" | ")[2:] == ["0.016", "0.026", "0.01", "unknown |"]
    assert small.split(" | ")[2:] == ["0.016", "0.026", "0.02", "negligible |"]
    assert small.split(" | ")[1] in ("+0.000 ± 0.020", "-0.000 ± 0.020")
    assert cells(text, "width")[1:] == ["-1.897 ± 0.002", "0.002", "0.003", "0.01", "below"]
    assert text.count("| height | +1.030 ± 0.020 | 0.016 | 0.026 | 0.01 | above |") == 2
    assert "over 5 seeds" in text and "101, 102, 103, 104, 105" in text


def test_the_verdicts_are_written_into_the_readme(config):
    claims.main(config)
    text = read(os.path.dirname(config.docs), "README.md")
    assert "| **undecided** | 1 Trees are tall. |" in text
    assert "| **fails** | 2 Trees are wide. |" in text
    assert text.startswith("# Trees\n\n<!-- verdicts -->\n\n| ") and "something old" not in text
    assert text.endswith("|\n\n<!-- /verdicts -->" + README.split("<!-- /verdicts -->")[1])
    claims.main(replace(config, page=True))
    assert read(os.path.dirname(config.docs), "README.md") == text
    claims.main(replace(config, readme=""))


def test_an_experiment_of_two_claims_is_run_once_a_seed(config):
    claims.main(config)
    # two seeds at a time, as there are two workers
    assert CALLS == [(name, seed) for seeds in ((101, 102), (103, 104), (105,))
                     for name in ("tall", "wide") for seed in seeds]  # fmt: skip
    found = [json.loads(line) for line in read(config.docs, "claims.jsonl").splitlines()]
    assert [(r["experiment"], r["seed"]) for r in found] == sorted(CALLS)
    assert found[0]["figures"] == {
        "oak": {"height": 1.01, "rings": [102.0, 2000]}, "all": {"count": 123_456.0}}  # fmt: skip
    assert all(r["commit"] and r["seconds"] >= 0 for r in found)


def test_some_claims_and_some_seeds(config):
    cfg = replace(config, claims=("2",), seeds=(7, 8))
    assert claims.main(cfg) == {"2": "fails"} and CALLS == [("wide", 7), ("wide", 8)]
    # what was measured for other claims stays on the page
    assert claims.main(replace(cfg, claims=("3",))) == {
        "1": "fails", "2": "fails", "3": "holds", "4": "fails"}  # fmt: skip
    assert CALLS[2:] == [("tall", 7), ("tall", 8)]


def test_a_claim_may_have_more_seeds_than_others(config, monkeypatch):
    monkeypatch.setitem(claims.CLAIMS, "2", MADE_UP["2"]._replace(seeds=7))
    claims.main(config)
    of = {name: [seed for called, seed in CALLS if called == name] for name in ("tall", "wide")}
    assert of == {"tall": list(range(101, 106)), "wide": list(range(101, 108))}
    assert "(7 seeds)" in cells(read(config.docs, "RESULTS.md"), 2)[-1]


def test_an_interrupted_run_goes_on(config, monkeypatch):
    def killed(world):
        if len(CALLS) == 7:
            raise KeyboardInterrupt
        return wide(world)

    killed.__name__ = "wide"
    monkeypatch.setitem(claims.CLAIMS, "2", MADE_UP["2"]._replace(measure=killed))
    with pytest.raises(KeyboardInterrupt):
        claims.main(config)
    assert len(CALLS) == 7 and not os.path.exists(f"{config.docs}/RESULTS.md")
    monkeypatch.setitem(claims.CLAIMS, "2", MADE_UP["2"])
    assert claims.main(config) == VERDICTS
    assert len(CALLS) == len(set(CALLS)) == 10, "nothing twice"


def test_before_anything_is_measured_the_pages_say_so(config):
    assert claims.main(replace(config, page=True)) == {} and CALLS == []
    text = read(config.docs, "RESULTS.md")
    assert text.startswith("# Does it hold?") and "**" not in text
    assert all(f"- {claim.sentence}" in text for claim in MADE_UP.values())
    assert "None is measured yet." in read(os.path.dirname(config.docs), "README.md")


def test_page_measures_nothing(config):
    claims.main(config)
    before = read(config.docs, "RESULTS.md")
    os.remove(f"{config.docs}/RESULTS.md")
    CALLS.clear()
    assert claims.main(replace(config, page=True)) == VERDICTS and CALLS == []
    assert read(config.docs, "RESULTS.md") == before


def work():
    hello()
    time.sleep(60)


def wait_for_work():
    with multiprocessing.get_context("fork").Pool(1, claims.start_worker) as pool:
        pool.apply(work)


def test_no_worker_outlives_the_command():
    assert not outlives(wait_for_work)


def test_a_plot_says_whose_it_is(config, monkeypatch):
    """Or it would be refused the next time."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(claims.page, "draw_curves", lambda plt, by_seed: plt.figure())
    os.makedirs(config.docs)
    for _ in range(2):
        claims.page.plot({"over_optimisation": [{}] * 2}, config.docs)
        claims.check(config)
    assert os.listdir(config.docs) == ["overoptimisation.png"]


# -------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seeds": (101, 101)}, "two different"),
        ({"seeds": (101,)}, "two different"),
    ],
)
def test_settings_that_lead_to_no_page_are_refused(config, wrong, says):
    with pytest.raises(ValueError, match=says):
        claims.main(replace(config, **wrong))
    assert CALLS == []


LINE = {"experiment": "tall", "seed": 101, "commit": "", "seconds": 1,
        "figures": {"oak": {"height": 1.0}}}  # fmt: skip


@pytest.mark.parametrize("flags", ["--workers 0", "--seeds 1 -1"])
def test_settings_without_a_sense_are_refused(flags):
    with pytest.raises(ValueError, match=flags.split()[0]):
        cli.parse(claims.Config, claims.PRESETS, "", flags.split(), "claims")


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[1]",
        "null",
        "[" * 10**5,
        '{"experiment": "tall", "seed": 101}',
        json.dumps(LINE | {"seed": "one"}),
        json.dumps(LINE | {"seconds": math.inf}),
        json.dumps(LINE | {"figures": 3}),
        json.dumps(LINE | {"figures": {}}),
        json.dumps(LINE | {"figures": {"oak": {"height": "1"}}}),
        json.dumps(LINE | {"figures": {"oak": {"height": math.nan}}}),
        json.dumps(LINE | {"figures": {"oak": {"height": 1.0, "rings": [1.0, math.inf]}}}),
    ],
)
def test_a_broken_line_is_named(config, broken):
    claims.main(config)
    with open(f"{config.docs}/claims.jsonl", "a") as f:
        f.write(broken + "\n")
    with pytest.raises(ValueError, match=r"claims\.jsonl, line 11 .* delete it"):
        claims.main(config)


@pytest.mark.parametrize("figure", [math.nan, [1.0, -math.inf]])
def test_a_figure_that_is_not_finite_is_no_line(config, monkeypatch, figure):
    def broken(world):
        return {"oak": {"width": figure}} if world.seed == 103 else wide(world)

    broken.__name__ = "wide"
    monkeypatch.setitem(claims.CLAIMS, "2", MADE_UP["2"]._replace(measure=broken))
    with pytest.raises(ValueError, match="wide, seed 103, oak: the width is not finite"):
        claims.main(config)
    lines = read(config.docs, "claims.jsonl").splitlines()
    assert len(lines) == 6 and "NaN" not in str(lines) and "Infinity" not in str(lines)


def test_what_stops_an_experiment_is_a_sentence_and_a_bug_is_not(config, monkeypatch):
    """An exception that comes from another process has lost where it was raised."""

    def stopped(world):
        world_of.load(os.path.join(world.folder, "base.pt"))

    def bug(world):
        return {}["height"]

    for measure, error in ((stopped, ValueError), (bug, KeyError)):
        measure.__name__ = "wide"
        monkeypatch.setitem(claims.CLAIMS, "2", MADE_UP["2"]._replace(measure=measure))
        with pytest.raises(error, match="wide, seed 101: .*base.pt does not exist|height"):
            claims.main(config)


@pytest.mark.parametrize("name", ["RESULTS.md", "overoptimisation.png"])
def test_a_file_of_somebody_else_is_not_replaced(config, name, tmp_path):
    os.makedirs(config.docs)
    path = os.path.join(config.docs, name)
    with open(path, "w") as f:
        f.write("# Mine")
    with pytest.raises(ValueError, match=f"{name} is there already"):
        claims.main(config)
    assert read(config.docs, name) == "# Mine"
    os.remove(path)
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(ValueError, match=f"{name} cannot be written: it is a link"):
        claims.main(config)
    assert CALLS == [] and not os.path.exists(tmp_path / "elsewhere")


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(config, tmp_path):
    (tmp_path / "file").write_text("")
    no_folder, folder = str(tmp_path / "file" / "docs"), str(tmp_path)
    for wrong in ({"docs": str(tmp_path / "file")}, {"docs": no_folder}, {"readme": folder}):
        with pytest.raises((ValueError, OSError), match=r"a folder|File exists|Not a directory"):
            claims.main(replace(config, **wrong))
    (tmp_path / "README.md").write_text(README.replace("<!-- /verdicts -->", ""))
    with pytest.raises(ValueError, match="no place for the table of verdicts"):
        claims.main(config)
    assert CALLS == []


@pytest.mark.parametrize("wrong", ["5", "0", "-1", "one", "1.0", ""])
def test_an_unknown_claim_is_refused_with_one_sentence(config, wrong, monkeypatch, capsys):
    with pytest.raises(ValueError, match=rf"no claim {re.escape(wrong)}.*1, 2, 3"):
        claims.main(replace(config, claims=("1", wrong)))
    assert CALLS == [] and not os.path.exists(config.docs)
    if wrong == "5":
        monkeypatch.setattr(sys, "argv", ["claims.py", "1", wrong])
        with pytest.raises(SystemExit, match="2"):
            cli.run(claims.main, claims.Config, claims.PRESETS, claims.__doc__, "claims")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith("error: there is no claim 5")
