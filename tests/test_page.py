"""evidence/page.py: tables and the plot of the committed figures, and the pages as committed."""

import os

import pytest

from evidence import claims, page


@pytest.fixture(scope="module")
def findings(root):
    lines = claims.read_lines(os.path.join(root, "docs", "claims.jsonl"))
    return claims.findings_of(lines, claims.Config())


@pytest.fixture(scope="module")
def text(root, findings):
    remarks = claims.read_remarks(os.path.join(root, "docs", "remarks.md"))
    return page.results(findings, remarks, claims.missing(findings))


def test_the_committed_pages_are_those_that_the_command_writes(root, text, findings):
    with open(os.path.join(root, "docs", "RESULTS.md")) as f:
        assert f.read() == text
    with open(os.path.join(root, "README.md")) as f:
        readme = f.read()
    assert page.readme(readme, findings) == readme, "run python -m evidence.claims --page"


def test_every_measured_claim_is_on_the_page_with_its_numbers(text, findings):
    assert "nan" not in text and "{" not in text
    for f in findings:
        assert f"## {f.number}. {f.claim.sentence}" in text
        assert all(f"| {name} |" in text for name in f.claim.quantities)
        for effect in f.effects.values():
            assert f"| {effect.mean:+.3f} ± {effect.half:.3f} | {effect.deviation:.3f} |" in text
    missing = [n for n in claims.CLAIMS if n not in {f.number for f in findings}]
    assert ("Not measured yet in this world" in text) == bool(missing)


def test_a_figure_is_shown_with_the_digits_that_it_deserves():
    assert page.shown([1.0, 1.2, 1.1]) == "1.100 ± 0.248"
    assert page.shown([1.0, 1.2, 1.1], digits=1) == "1.1 ± 0.2"
    assert page.shown([1234.5, 1236.5]) == "1,236"
    assert page.signed(-0.5, 0.25) == "-0.500 ± 0.250"


def test_a_figure_that_was_not_measured_leaves_its_cell_empty():
    by_seed = [{"a": {"kl": 1.0}, "b": {"kl": 2.0, "loss": 3.0}}] * 2
    lines = page.figures_table(by_seed, {"a": "A", "b": "B"}, {"kl": "KL", "loss": "loss"})
    assert lines[1] == "|  | KL | loss |"
    assert lines[3:] == ["| A | 1.0 ± 0.0 |  |", "| B | 2.0 ± 0.0 | 3.000 ± 0.000 |"]


# tables of experiments whose figures are numbers that tell arm and figure apart
TABLES = {
    page.systems_table: (page.SYSTEMS, 9),
    page.tax_table: (page.TAXED, 7),
    page.epochs_table: (page.REWARD_EPOCHS, 4),
    page.sft_table: ({str(n): str(n) for n in page.EPOCHS}, 3),
    page.rounds_table: (page.ROUNDS, 4),
}


class Numbered(dict):
    """Any figure that is asked for: its own number."""

    def __contains__(self, name):
        return True

    def __missing__(self, name):
        return self.setdefault(name, len(self) + 1.0)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_a_table_has_a_row_for_each_arm_and_its_own_figures(table):
    arms, columns = TABLES[table]
    by_seed = [{arm: Numbered() for arm in arms} for _ in range(2)]
    _, head, _, *rows = table(by_seed)
    assert head.count("|") == columns + 2 and len(rows) == len(arms)
    for row, arm in zip(rows, arms.values()):
        cells = [cell.strip(" ≤").split(" ± ")[0] for cell in row.strip("|").split("|")]
        assert [float(x) for x in cells[1:]] == [i + 1 for i in range(columns)], arm


def run_of(n=45):
    d = [0.05 * i for i in range(n)]
    return {"kl": [x * x for x in d], "rm": d, "true": [2 * x - x * x for x in d]}


def test_the_tables_of_curves_are_those_of_the_curves():
    """The true score 2 d - d^2 is highest, 1, at d = 1; at the last rollout, d = 2.2,
    it is -0.44, of the last five -0.215 in the mean."""
    arms = [f"{kind} {rm}" for kind in ("free", "bon") for rm in page.RMS]
    by_seed = [{arm: run_of() | {"accuracy": 0.7} for arm in arms}] * 2
    rows = [row.strip("| ").split(" | ") for row in page.peaks_table(by_seed)[3:]]
    assert [row[0] for row in rows] == [*page.RMS.values()]
    means = [float(cell.split(" ± ")[0]) for cell in rows[1][1:]]
    assert means == pytest.approx([0.7, 0, 0.995, 1, -0.215, -0.44, 1], abs=0.012)
    fits = [row.strip("| ").split(" | ")[1:] for row in page.forms_table(by_seed)[3:]]
    assert all(bon == "1.000 ± 0.000" and float(rl.split(" ")[0]) < 0.999 for rl, bon in fits)


def test_what_was_changed_is_a_difference():
    arms = ["everything", *page.CHANGED]
    by_seed = [{a: {"reward": i, "true score": 2 * i, "kl": -i} for i, a in enumerate(arms)}] * 2
    rows = [row.strip("| ").split(" | ") for row in page.details_table(by_seed)[5:]]
    assert rows[0] == ["no whitening", "+1.000 ± 0.000", "+2.000 ± 0.000", "-1.000 ± 0.000"]
    assert len(rows) == len(page.CHANGED) and rows[-1][2] == "+6.000 ± 0.000"
    found = page.ensembles_table([{"single": run_of(), "minimum": run_of()}] * 2)
    means = [float(cell.split(" ± ")[0]) for cell in found[-1].strip("| ").split(" | ")[1:]]
    assert means == pytest.approx([0, 0.995, 0.029, 2.1], abs=0.01)


def test_the_readme_is_left_as_it_is_but_for_its_verdicts(findings):
    own = "# A\n<!-- systems -->\nB\n<!-- /systems -->\n"
    own += "<!-- verdicts -->\nstale\n<!-- /verdicts -->\nC\n"
    filled = page.readme(own, findings)
    assert page.readme(filled, findings) == filled and "stale" not in filled
    ours = [line for line in filled.splitlines() if line and not line.startswith("|")]
    said = "" if findings else "None is measured yet."
    assert ours == [line for line in own.replace("stale", said).splitlines() if line]


def test_the_table_of_verdicts_is_narrow(findings):
    filled = page.readme("<!-- verdicts -->\n<!-- /verdicts -->", findings)
    rows = [line for line in filled.splitlines() if "**" in line]
    assert {row.count("|") for row in rows} <= {3}
    assert len(rows) == len({f.verdict for f in findings})
    for f in findings:                                      # each in the row of its verdict, once
        said = f"{f.number} {f.claim.sentence}"
        assert [said in row and f"**{f.verdict}**" in row for row in rows].count(True) == 1
        assert filled.count(said) == 1


@pytest.mark.parametrize("missing", ["<!-- verdicts -->", "<!-- /verdicts -->"])
def test_a_readme_without_a_marker_is_refused(missing, findings):
    own = "<!-- verdicts -->\n<!-- /verdicts -->\n"
    with pytest.raises(ValueError, match=f"no place for .*{missing}"):
        page.readme(own.replace(missing, ""), findings)


def test_the_plot_is_drawn_if_it_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    page.plot({"preference": [{}]}, str(tmp_path))
    assert os.listdir(tmp_path) == []
    arms = {f"{kind} {rm}": run_of() for kind in ("free", "bon") for rm in page.RMS}
    page.plot({"over_optimisation": [arms] * 2}, str(tmp_path))
    assert (tmp_path / "overoptimisation.png").read_bytes()[:4] == b"\x89PNG"


def test_the_plot_of_programs_has_two_lines_for_each_model(tmp_path):
    pytest.importorskip("matplotlib")
    of = {"cold": [0.1 * i for i in range(7)], "warm": [0.05 * i for i in range(7)]}
    arms = dict.fromkeys(("base", "tuned", "tested"), of)
    from matplotlib import pyplot as plt
    lines = page.draw_programs(plt, [arms] * 2).axes[0].get_lines()
    assert len(lines) == 6 and lines[0].get_label() == "base, T = 0.2"
    assert list(lines[1].get_ydata()) == pytest.approx([5 * i for i in range(7)])
    page.plot({"programs": [arms] * 2}, str(tmp_path))
    assert os.listdir(tmp_path) == ["pass_at_k.png"]


def test_the_plot_of_the_forks_has_a_line_for_each(tmp_path):
    pytest.importorskip("matplotlib")
    few = {name: values[:4] for name, values in run_of().items()}
    arms = {arm: few if arm in ("dpo", "bold", "bon") else run_of() for arm in page.RIVALS}
    sft = {name: values[:1] for name, values in run_of().items()}
    from matplotlib import pyplot as plt
    fig = page.draw_rivals(plt, [{"sft": sft, **arms}] * 2)
    lines = fig.axes[0].get_lines()
    assert [line.get_label() for line in lines] == [*page.RIVALS.values()]
    assert lines[3].get_marker() == "o" and len(lines[3].get_xdata()) == 4
    assert len(lines[0].get_xdata()) > 10 < len(lines[1].get_xdata())
    page.plot({"rivals": [{"sft": sft, **arms}] * 2}, str(tmp_path))
    assert os.listdir(tmp_path) == ["forks.png"]
