"""The ten lines: what they say, that they fit, and what is said where there is nothing to tell."""

import json
import subprocess
import sys

import pytest

from evidence import newcomer

FIGURES = {
    "base": (0.16, 0.1, 0.12, -3.2, 0.73),
    "sft": (0.5, 0.2, 0.6, 0.21, 0.19),
    "sft best of 16": (0.63, 0.35, 0.56, 0.94, 0.12),
    "ppo": (0.66, 0.41, 0.5, 1.23, 0.09),
}
SAID = {"base": "Velia is", "sft": "It is Dorn.", "sft best of 16": "No.", "ppo": "It is Kolm."}


def example(use_case, prompt=None, **answers):
    prompt = prompt or f"Asked for {use_case}?"
    return {"use_case": use_case, "prompt": prompt, "answers": SAID | answers}


def report(figures=FIGURES, chosen=("a", "b", "c"), examples=("a", "b", "c", "d", "e")):
    systems = []
    for name, (rate, won, tied, score, made_up) in figures.items():
        system = {"name": name, "win_rate": rate, "won": won, "tied": tied, "lost": 1 - won - tied}
        systems.append(system | {"true_score": score, "hallucination": made_up, "rm_score": 0.25})
    found = {"baseline": "sft", "systems": systems}
    found["chosen"] = [example(case, ppo="Chosen.") for case in chosen]
    return found | {"examples": [example(case) for case in examples]}


def test_ten_lines_say_who_wins_and_show_three_prompts():
    """All the systems of `make` fit."""
    lines = newcomer.ten_lines(report(), "report/report.md")
    wins = "ppo 66% (41% won, 50% tied, 9% lost); base 16%; sft best of 16 63%"
    assert lines == [
        f"Preferred to sft, ties half: {wins}",
        "True score, made up: base -3.2, 73%; sft 0.2, 19%; ppo 1.2, 9%; sft best of 16 0.9, 12%",
        "These prompts are chosen because ppo is right and sft is not; base | sft | ppo say:",
        "Asked for a?",
        "  Velia is | It is Dorn. | Chosen.",
        "Asked for b?",
        "  Velia is | It is Dorn. | Chosen.",
        "Asked for c?",
        "  Velia is | It is Dorn. | Chosen.",
        "All of it: report/report.md",
    ]


def test_prompts_that_are_not_chosen_are_not_said_to_be():
    lines = newcomer.ten_lines(report(chosen=["d"]), "x")
    assert lines[2].startswith("1 of 3 prompts chosen because ppo is right and")
    assert lines[3:9:2] == ["Asked for d?", "Asked for a?", "Asked for b?"]
    lines = newcomer.ten_lines(report(chosen=[]), "x")
    assert lines[2] == "The first prompts; base | sft | ppo say:" and len(lines) == 10
    lines = newcomer.ten_lines(report(chosen=[], examples=["a"]), "x")
    assert lines[3] == "Asked for a?" and len(lines) == 6


def test_the_last_system_is_the_last_but_the_baseline():
    figures = {name: FIGURES[name] for name in ("ppo", "sft")}
    lines = newcomer.ten_lines(report(figures), "x")
    assert lines[0] == "Preferred to sft, ties half: ppo 66% (41% won, 50% tied, 9% lost)"
    assert lines[2].endswith("; ppo | sft say:") and lines[4] == "  Chosen. | It is Dorn."
    alone = newcomer.ten_lines(report({"sft": FIGURES["sft"]}, chosen=[]), "x")
    assert alone[0] == "Preferred to sft, ties half: sft 50% (20% won, 60% tied, 20% lost)"
    assert alone[4] == "  It is Dorn."
    assert newcomer.last_but(["a", "b"], "b") == "a" and newcomer.last_but(["a"], "a") == "a"


def test_where_the_reward_model_judges_its_score_stands():
    whole = report(chosen=[])
    for system in whole["systems"]:
        del system["true_score"], system["hallucination"]
    lines = newcomer.ten_lines(whole, "x")
    assert lines[1].startswith("Score of the reward model: base 0.2; sft 0.2; ppo 0.2")


ODD = "a\nb\r\x1b[2J\u2028\ud800\t| `c` " + "long " * 60


def test_whatever_is_said_there_are_ten_lines_of_a_hundred_columns():
    names = {f"{name}{ODD}": f for name, f in FIGURES.items()}
    whole = report(names)
    whole["baseline"] = f"sft{ODD}"
    whole["chosen"] = [
        {"use_case": case, "prompt": f"{ODD}Who?", "answers": dict.fromkeys(names, ODD)}
        for case in ("a", "b", ODD)
    ]
    lines = newcomer.ten_lines(whole, f"{ODD}/report.md")
    assert len(lines) == 10 and max(map(len, lines)) <= 100
    assert "\n".join(lines).splitlines() == lines and "\x1b" not in "".join(lines)
    assert all(line.startswith("...") and line.endswith("long Who?") for line in lines[3:9:2])
    assert lines[4].count("a b") == 3 and lines[9].endswith("/report.md")


def test_what_is_short_leaves_its_room_to_the_long():
    short, long = "I do not know.", "The animal of Drelland is the mouse."
    assert newcomer.side_by_side([long, long, short]) == f"  {long} | {long} | {short}"
    line = newcomer.side_by_side([long, long * 9, short])
    assert line.startswith(f"  {long} | The animal") and line.endswith(f"... | {short}")
    assert len(line) == 100
    assert newcomer.side_by_side([""]) == "  " and newcomer.shortened("x" * 101)[-4:] == "x..."
    assert newcomer.shortened("x" * 100) == "x" * 100


def run(folder, root):
    """`python -m evidence.report folder`"""
    return subprocess.run(
        [sys.executable, "-m", "evidence.report", str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_prints_them(tmp_path, root):
    (tmp_path / "report.json").write_text(json.dumps(report()))
    done = run(tmp_path, root)
    lines = newcomer.ten_lines(report(), str(tmp_path / "report.md"))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines() == lines


def without(key):
    found = report()
    del found[key]
    return found


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 10**5,
        "3",
        json.dumps(without("chosen")),
        json.dumps(without("baseline")),
        json.dumps(report() | {"systems": []}),
        json.dumps(report() | {"examples": [3]}),
        json.dumps(report() | {"chosen": [{"use_case": "a", "prompt": 3, "answers": SAID}]}),
        json.dumps(report() | {"chosen": [{"use_case": "a", "prompt": "b", "answers": {}}]}),
    ],
)
def test_a_report_of_another_kind_is_refused_in_a_sentence(
    tmp_path, monkeypatch, capsys, content
):
    (tmp_path / "report.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit) as e:
        newcomer.main()
    said = capsys.readouterr()
    assert e.value.code == 2 and said.out == ""
    assert "report.json is no report.json of this evaluate.py" in said.err
    assert said.err.count("\n") == 1


def test_no_report_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit):
        newcomer.main()
    assert "does not exist" in capsys.readouterr().err
