"""evidence/page.py: tables and plots of the committed figures, and the pages that are committed."""

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


def test_the_committed_pages_are_those_that_the_command_writes(root, text, findings, figures):
    with open(os.path.join(root, "docs", "RESULTS.md")) as f:
        assert f.read() == text
    with open(os.path.join(root, "README.md")) as f:
        readme = f.read()
    assert page.readme(readme, findings, figures) == readme, "run python -m evidence.claims --page"


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


def test_the_readme_is_left_as_it_is_but_for_its_tables(findings, figures):
    own = "# A\n<!-- systems -->\nstale\n<!-- /systems -->\nB\n"
    own += "<!-- verdicts -->\n<!-- /verdicts -->\nC\n"
    filled = page.readme(own, findings, figures)
    assert page.readme(filled, findings, figures) == filled and "stale" not in filled
    rest = [line for line in filled.splitlines() if line and not line.startswith("|")]
    assert rest == [line for line in own.splitlines() if line != "stale"]
    rows = [line for line in filled.splitlines() if line.startswith("| ")]
    assert sum(line.startswith("| PPO-ptx | 0.7") for line in rows) == 1
    assert sum("**fails**" in line for line in rows) == 1
    widest = max(len(row.split("|")) for row in rows if "**" in row)
    assert widest - 2 == 4, "the table of verdicts is narrow"
    assert "stale" in page.readme(own, findings, {}), "systems that were not measured stay"


@pytest.mark.parametrize("missing", ["<!-- verdicts -->", "<!-- /systems -->"])
def test_a_readme_without_a_marker_is_refused(missing, findings, figures):
    own = "<!-- systems -->\n<!-- /systems -->\n<!-- verdicts -->\n<!-- /verdicts -->\n"
    with pytest.raises(ValueError, match=f"no place for .*{missing}"):
        page.readme(own.replace(missing, ""), findings, figures)


def test_plots_are_drawn_of_what_was_measured(figures, tmp_path):
    pytest.importorskip("matplotlib")
    page.plot({name: figures[name] for name in ("preference", "sft_epochs")}, str(tmp_path))
    assert os.listdir(tmp_path) == ["systems.png"]
    page.plot(figures, str(tmp_path))
    for name in ("systems.png", "overoptimisation.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
