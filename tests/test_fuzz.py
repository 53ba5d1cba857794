"""The fuzz itself: a few of its cases pass, and it reports whatever is wrong with a command."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it needs Linux's /proc")

# What a command may do wrong, by its only argument, and what is said of it.
WRONG = {
    "fine": "",
    "refuses": "",
    "usage": "",
    "raises": "exit code 1: ValueError: a bug",
    "exits": "exit code 1",
    "hangs": "it hangs",
    "dies": "killed by SIGKILL",
    "grows": "more than 1 GB",
    "warns": "exit code 0, but: careful",
    "prints": "it prints what is not finite",
    "says_more": "not one sentence, but 2 lines",
    "says_nothing": "not one sentence, but 0 lines",
    "says_it_in_python": "Python's words: NoneType",
    "says_escapes": "control characters",
    "saves_nan": "new.pt, weights is not finite",
    "writes_nan": "new.jsonl, loss is not finite",
    "changes": "it changed in/text.txt",
    "removes": "it changed in/text.txt",
    "leaves": r"left a file behind: .*\.tmp",
    "executes": "code in a file was run",
}
BROKEN = r"""
import argparse, json, os, signal, sys, time, torch

def error(text):
    print(text, file=sys.stderr)
    sys.exit(2)

def put(path, text):
    with open(path, "w") as f:
        f.write(text)

def grows():
    return torch.ones(300_000_000)

def bug():
    raise ValueError("a bug")

{
    "fine": lambda: put("new.jsonl", '{"loss": 1.0}\n'),
    "refuses": lambda: error("error: this cannot be done"),
    "usage": lambda: argparse.ArgumentParser().parse_args(["--unknown"]),
    "raises": bug,
    "exits": lambda: sys.exit(1),
    "hangs": lambda: time.sleep(60),
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "grows": grows,
    "warns": lambda: print("careful", file=sys.stderr),
    "prints": lambda: print("score nan"),
    "says_more": lambda: error("error: this cannot be done\nfor two reasons"),
    "says_nothing": lambda: sys.exit(2),
    "says_it_in_python": lambda: error("error: 'NoneType' object is no model"),
    "says_escapes": lambda: error("error: no file \x1b[2J is there"),
    "saves_nan": lambda: torch.save({"weights": torch.tensor([1, float("nan")])}, "new.pt"),
    "writes_nan": lambda: put("new.jsonl", '{"loss": NaN}\n'),
    "changes": lambda: put("in/text.txt", "other"),
    "removes": lambda: os.remove("in/text.txt"),
    "leaves": lambda: put(".new.pt.x.tmp", ""),
    "executes": lambda: put("executed", ""),
}[sys.argv[1]]()
"""
RUN = """
import os, sys
import torch
from tests import fuzz

torch.set_num_threads(1)
fuzz.PATIENCE = 6
fuzz.COMMANDS["broken"] = fuzz.Command("broken", 1, "", kinds=(("lr", float),))
folder = os.getcwd()
os.makedirs("world/in")
with open("world/in/text.txt", "w") as f:
    f.write("text")
_, resident = fuzz.forked(lambda: None)
world = fuzz.World(os.path.join(folder, "world", "in"), ["in/text.txt"], resident)
cases = [fuzz.Case(name, "broken", [name]) for name in sys.argv[1:]]
cases.append(fuzz.Case("negative", "broken", ["fine", "--lr=-1"]))
places = [fuzz.Place(os.path.join(folder, str(k)), world) for k in range(2)]
for outcome in fuzz.each_case(cases, places):
    print(f"{outcome.case.name} = {outcome.problem}")

def lines(seed):
    return [fuzz.line_of(fuzz.flags_case(n, seed, world)) for n in range(30)]

del fuzz.COMMANDS["broken"]
assert lines(0) == lines(0) != lines(1)
"""


def run(root, folder, *argv):
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_everything_that_is_wrong_is_reported(root, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = run(root, tmp_path, "-c", RUN, *WRONG)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" = ") for line in done.stdout.splitlines())
    assert found.pop("negative") == "broken --lr -1 is accepted, which means nothing"
    assert found.keys() == WRONG.keys()
    for name, problem in found.items():
        expected = WRONG[name]
        assert re.search(expected, problem) if expected else problem == "", (name, problem)


def test_a_few_cases_pass(root, tmp_path):
    argv = ["-m", "tests.fuzz", "--flags", "12", "--checkpoints", "10", "--verbose"]
    done = run(root, tmp_path, *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^[fc]\d+ [02] [\d.]+ s python ", done.stdout, re.MULTILINE)) == 22
