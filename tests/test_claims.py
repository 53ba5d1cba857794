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

from evidence import claims, experiments
from evidence.claims import Claim
from plumbing import cli

# -------------------------------------------------------------------------------------------------
# the verdict, and the claims


@pytest.mark.parametrize(
    ("intervals", "says"),
    [
        ([(1, 0.5)], "holds"),
        ([(1, 0.5), (0.6, 0.5)], "holds"),
        ([(1, 0.5), (0.4, 0.5)], "undecided"),
        ([(-0.4, 0.5)], "undecided"),
        ([(0.5, 0.5)], "undecided"),
        ([(-0.5, 0.5)], "undecided"),
        ([(0, 0)], "undecided"),
        ([(9, math.inf)], "undecided"),
        ([(-1, 0.5)], "fails"),
        ([(1, 0.5), (-1, 0.5)], "fails"),
        ([(0, 1), (-1, 0.5), (1, 0.5)], "fails"),
    ],
)
def test_verdicts(intervals, says):
    assert claims.verdict(intervals) == says


def test_the_claims_are_numbered_and_say_where_they_come_from():
    numbers = dict.fromkeys(n.rstrip("abcd") for n in claims.CLAIMS)
    assert list(numbers) == [str(n) for n in range(1, 14)]
    for claim in claims.CLAIMS.values():
        assert claim.sentence.endswith(".") and claim.quantities
        assert re.match(r"\[|\w+ et al\. \d", claim.source)


@pytest.mark.parametrize("number", claims.CLAIMS)
def test_every_quantity_and_every_placeholder_of_a_claim_was_measured(root, number):
    claim, lines = claims.CLAIMS[number], claims.read_lines(f"{root}/docs/claims.jsonl")
    found = [r["figures"] for r in lines if r["experiment"] == claim.measure.__name__]
    assert len(found) == 5
    assert set(re.findall(r"{(.*?)}", claim.ours)) <= found[0].keys()
    assert all(math.isfinite(value(f)) for value in claim.quantities.values() for f in found)


def test_quantities_of_curves():
    """A true score that peaks at 10, while the reward model's goes on."""
    true = [float(x) for x in (*range(11), *range(9, -1, -1))]
    rm = list(range(21))
    f = {f"{run} {name}": values for run in ("a", "b") for name, values in
         (("true", true), ("rm", rm), ("kl", [4.0] * 21))}  # fmt: skip
    f["b kl"] = [1.0] * 21
    assert claims.of_run(claims.true_at_peak, "a")(f) == pytest.approx(8.8)
    assert claims.of_run(claims.later_rm, "a")(f) == pytest.approx(18 - 10)
    assert claims.minus_run(claims.curves.distance, "a", "b")(f) == pytest.approx(2 - 1)
    assert claims.later("x")({"x": [0, 0, 0, 1, 4]}) == 3


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
    return {"height": world.seed / 100, "trees": [1.0 + world.seed, 2000], "count": 123_456}


def wide(world):
    CALLS.append(("wide", world.seed))
    return {"width": -2 + world.seed / 1000}


def height(f):
    return f["height"]


MADE_UP = {
    "1": Claim("Trees are tall.", "[T] 1", "9 m", tall, "height {height}, {count}",
               {"height": height, "height minus 1.03": claims.above("height", 1.03)}),
    "2": Claim("Trees are wide.", "[T] 2", "2 m", wide, "width {width}",
               {"width": lambda f: f["width"]}),
    "3": Claim("Trees have height.", "[T] 3", "", tall, "{height}", {"height": height}),
}  # fmt: skip
VERDICTS = {"1": "undecided", "2": "fails", "3": "holds"}


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
    assert cells(text, "height minus 1.03")[1] in ("+0.000 ± 0.020", "-0.000 ± 0.020")
    assert cells(text, "height minus 1.03")[2] == "?"
    assert cells(text, "width")[1:] == ["-1.897 ± 0.002", "below"]
    assert text.count("| height | +1.030 ± 0.020 | above |") == 2
    assert "over 5 seeds" in text and "101, 102, 103, 104, 105" in text


def test_the_verdicts_are_written_into_the_readme(config):
    claims.main(config)
    text = read(os.path.dirname(config.docs), "README.md")
    assert cells(text, 1)[1:] == ["Trees are tall.", "**undecided**", "1 of 2"]
    assert cells(text, 2)[1:] == ["Trees are wide.", "**fails**", "0 of 1"]
    assert text.startswith("# Trees\n\n<!-- verdicts -->\n\n| ") and "something old" not in text
    assert text.endswith("|\n\n<!-- /verdicts -->" + README.split("<!-- /verdicts -->")[1])
    claims.main(replace(config, page=True))
    assert read(os.path.dirname(config.docs), "README.md") == text
    claims.main(replace(config, readme=""))


def test_an_experiment_of_two_claims_is_run_once_a_seed(config):
    claims.main(config)
    assert sorted(CALLS) == [(name, seed) for name in ("tall", "wide") for seed in range(101, 106)]
    found = [json.loads(line) for line in read(config.docs, "claims.jsonl").splitlines()]
    assert [(r["experiment"], r["seed"]) for r in found] == sorted(CALLS)
    assert found[0]["figures"] == {"height": 1.01, "trees": [102.0, 2000], "count": 123_456.0}
    assert all(r["commit"] and r["seconds"] >= 0 for r in found)


def test_some_claims_and_some_seeds(config):
    cfg = replace(config, claims=("2",), seeds=(7, 8))
    assert claims.main(cfg) == {"2": "fails"} and CALLS == [("wide", 7), ("wide", 8)]
    # what was measured for other claims stays on the page
    assert claims.main(replace(cfg, claims=("3",))) == {"1": "fails", "2": "fails", "3": "holds"}
    assert CALLS[2:] == [("tall", 7), ("tall", 8)]


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


def test_claims_of_another_world_are_named_until_they_are_measured_again(config):
    claims.main(config)
    path, readme = f"{config.docs}/claims.jsonl", os.path.dirname(config.docs)
    lines = claims.read_lines(path)
    old = claims.page.FORMER[0]
    says = "were measured in the former world"

    def pages(commits):
        changed = [line | {"commit": commits.get(line["experiment"], "new")} for line in lines]
        claims.results.write_jsonl(path, changed)
        claims.main(replace(config, page=True))
        return read(config.docs, "RESULTS.md"), read(readme, "README.md")

    for text in pages({}):
        assert says not in text
    for text in pages({"tall": old}):
        assert f"The claims 1, 3 {says}" in text
    for text in pages({"tall": old, "wide": old}):
        assert f"All claims {says}" in text


# -------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seeds": (101, 101)}, "two different"),
        ({"seeds": (101,)}, "two different"),
        ({"page": True}, "no claim with all seeds"),
    ],
)
def test_settings_that_lead_to_no_page_are_refused(config, wrong, says):
    with pytest.raises(ValueError, match=says):
        claims.main(replace(config, **wrong))
    assert CALLS == []


LINE = {"experiment": "tall", "seed": 101, "commit": "", "seconds": 1, "figures": {"height": 1.0}}


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
        json.dumps(LINE | {"figures": {"height": "1"}}),
        json.dumps(LINE | {"figures": {"height": math.nan}}),
        json.dumps(LINE | {"figures": {"height": 1.0, "trees": [1.0, math.inf]}}),
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
        return {"width": figure} if world.seed == 103 else wide(world)

    broken.__name__ = "wide"
    monkeypatch.setitem(claims.CLAIMS, "2", MADE_UP["2"]._replace(measure=broken))
    with pytest.raises(ValueError, match="wide, seed 103: the width is not finite"):
        claims.main(config)
    lines = read(config.docs, "claims.jsonl").splitlines()
    assert len(lines) == 7 and "NaN" not in str(lines) and "Infinity" not in str(lines)


def test_what_stops_an_experiment_is_a_sentence_and_a_bug_is_not(config, monkeypatch):
    """An exception that comes from another process has lost where it was raised."""

    def stopped(world):
        experiments.load(os.path.join(world.folder, "base.pt"))

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


@pytest.mark.parametrize("wrong", ["4", "0", "-1", "one", "1.0", ""])
def test_an_unknown_claim_is_refused_with_one_sentence(config, wrong, monkeypatch, capsys):
    with pytest.raises(ValueError, match=rf"no claim {re.escape(wrong)}.*1, 2, 3"):
        claims.main(replace(config, claims=("1", wrong)))
    assert CALLS == [] and not os.path.exists(config.docs)
    if wrong == "4":
        monkeypatch.setattr(sys, "argv", ["claims.py", "1", wrong])
        with pytest.raises(SystemExit, match="2"):
            cli.run(claims.main, claims.Config, claims.PRESETS, claims.__doc__, "claims")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith("error: there is no claim 4")
