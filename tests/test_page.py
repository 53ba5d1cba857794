"""evidence/page.py: tables and the plot of the committed figures, and the pages as committed."""

import os

import pytest

from evidence import claims, page
from evidence.experiments import CHANGED

SEEDS = claims.Config().seeds


@pytest.fixture(scope="module")
def findings(root):
    lines = claims.read_lines(os.path.join(root, "docs", "claims.jsonl"))
    return claims.findings_of(lines, SEEDS)


@pytest.fixture(scope="module")
def figures(findings):
    return {f.claim.measure.__name__: [r["figures"] for r in f.lines] for f in findings}


@pytest.fixture(scope="module")
def text(root, findings):
    return page.results(findings, claims.read_remarks(os.path.join(root, "docs", "remarks.md")))


def test_the_committed_pages_are_those_that_the_command_writes(root, text, findings):
    with open(os.path.join(root, "docs", "RESULTS.md")) as f:
        assert f.read() == text
    with open(os.path.join(root, "README.md")) as f:
        readme = f.read()
    assert page.readme(readme, findings) == readme, "run python -m evidence.claims --page"


def test_every_claim_is_on_the_page_with_its_numbers(text, findings, figures):
    assert [f.number for f in findings] == list(claims.CLAIMS)
    assert "{" not in text and "nan" not in text
    for number, claim in claims.CLAIMS.items():
        assert f"## {number}. {claim.sentence}" in text
        assert all(f"| {name} |" in text for name in claim.quantities)
    mean = sum(f["ptx true score"] for f in figures["preference"]) / len(SEEDS)
    systems = [row for row in text.splitlines() if row.startswith("| PPO-ptx |")]
    assert len(systems) == 3 and f"| {mean:.3f} ±" in systems[0]
    assert all(f"| {name} |" in text for name in (*CHANGED, *page.RMS.values()))


def test_a_figure_is_shown_with_the_digits_that_it_deserves():
    assert page.shown([1.0, 1.2, 1.1]) == "1.100 ± 0.248"
    assert page.shown([1.0, 1.2, 1.1], digits=1) == "1.1 ± 0.2"
    assert page.shown([1234.5, 1236.5]) == "1,236"
    assert page.signed(-0.5, 0.25) == "-0.500 ± 0.250"


def test_a_figure_that_was_not_measured_leaves_its_cell_empty():
    by_seed = [{"a kl": 1.0, "b kl": 2.0, "b loss": 3.0}] * 2
    lines = page.figures_table(by_seed, {"a": "A", "b": "B"}, {"kl": "KL", "loss": "loss"})
    assert lines[1] == "|  | KL | loss |"
    assert lines[3:] == ["| A | 1.0 ± 0.0 |  |", "| B | 2.0 ± 0.0 | 3.000 ± 0.000 |"]
    bound = page.figures_table([{"bo16 kl": 1.0}] * 2, {"bo16": "best"}, {"kl": "KL"})
    assert bound[-1] == "| best | ≤ 1.0 ± 0.0 |"


def test_the_readme_is_left_as_it_is_but_for_its_verdicts(findings):
    own = "# A\n<!-- systems -->\nB\n<!-- /systems -->\n"
    own += "<!-- verdicts -->\nstale\n<!-- /verdicts -->\nC\n"
    filled = page.readme(own, findings)
    assert page.readme(filled, findings) == filled and "stale" not in filled
    ours = [line for line in filled.splitlines() if line and not line.startswith("|")]
    said = "".join(page.former(findings))
    assert ours == [line for line in own.replace("stale", said).splitlines() if line]


def test_the_table_of_verdicts_is_narrow(findings):
    filled = page.readme("<!-- verdicts -->\n<!-- /verdicts -->", findings)
    rows = [line for line in filled.splitlines() if line.startswith("| ")]
    assert sum("**fails**" in line for line in rows) == 1
    widest = max(len(row.split("|")) for row in rows if "**" in row)
    assert widest - 2 == 4


@pytest.mark.parametrize("missing", ["<!-- verdicts -->", "<!-- /verdicts -->"])
def test_a_readme_without_a_marker_is_refused(missing, findings):
    own = "<!-- verdicts -->\n<!-- /verdicts -->\n"
    with pytest.raises(ValueError, match=f"no place for .*{missing}"):
        page.readme(own.replace(missing, ""), findings)


def test_the_plot_is_drawn_if_it_was_measured(figures, tmp_path):
    pytest.importorskip("matplotlib")
    page.plot({"preference": figures["preference"]}, str(tmp_path))
    assert os.listdir(tmp_path) == []
    page.plot(figures, str(tmp_path))
    assert (tmp_path / "overoptimisation.png").read_bytes()[:4] == b"\x89PNG"
