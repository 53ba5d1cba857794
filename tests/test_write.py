"""interop/write.py: what it writes is read again as what it was."""

import json
import sys
from collections import Counter

import pytest

from interop import load, write

PROMPT = [{"role": "user", "content": "naïve 日本?"}]


@pytest.fixture
def rankings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [
        {"prompt": PROMPT, "responses": ["a", "b\nc", "d"], "ranks": [2, 1, 2], "labeler": "x"},
        {"prompt": "Hi.", "responses": ["e", ""], "comparisons": [[0, 1]]},
        {"prompt": "Tie.", "responses": ["f", "g"], "ranks": [1, 1]},
    ]
    (tmp_path / "comparisons.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return ("comparisons.jsonl",)


def pairs_of(files):
    found = load("rankings", files, Counter(), flag="")
    return [(r.messages, r.responses[i], r.responses[j]) for r in found for i, j in r.pairs]


def test_pairs_are_written_and_read_again(rankings, capsys):
    write.write(rankings, "trl", "pairs.jsonl")
    hi = [{"role": "user", "content": "Hi."}]
    wanted = [(PROMPT, "b\nc", "a"), (PROMPT, "b\nc", "d"), (hi, "e", "")]
    assert sorted(pairs_of(("pairs.jsonl",)), key=str) == sorted(wanted, key=str)
    with open("pairs.jsonl", encoding="utf-8") as f:
        first = json.loads(next(f))
    assert first.keys() == {"prompt", "chosen", "rejected"}
    assert first["chosen"] == [{"role": "assistant", "content": "b\nc"}]
    assert "3 pairs" in capsys.readouterr().out


def test_the_command_refuses_what_is_there_and_what_is_no_ranking(rankings, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["write.py", *args])
        with pytest.raises(SystemExit) as ended:
            write.main()
        return ended.value.code, capsys.readouterr().err

    code, said = run(*rankings, "--out", rankings[0])
    assert code == 2 and "comparisons.jsonl is there already" in said
    code, said = run("none.jsonl", "--out", "pairs.jsonl")
    assert code == 2 and "none.jsonl does not exist" in said
    code, said = run(*rankings, "--as", "csv", "--out", "pairs.jsonl")
    assert code == 2 and "csv" in said
    assert pairs_of(rankings)


def test_tasks_are_written_for_those_who_rank_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"prompt": PROMPT, "responses": ["a", "b"]}))
    found = {}
    for form in ("argilla", "label-studio"):
        write.write(("tasks.jsonl",), form, form)
        found[form] = json.loads((tmp_path / form).read_text())
    assert found["argilla"] == {"prompt": PROMPT, "response_1": "a", "response_2": "b"}
    items = [{"id": "1", "title": "Output 1", "body": "a"},
             {"id": "2", "title": "Output 2", "body": "b"}]
    assert found["label-studio"] == [{"data": {"prompt": "User: naïve 日本?", "items": items}}]
    assert "1 tasks" in capsys.readouterr().out
