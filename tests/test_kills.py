"""Killed from outside: torchrun, and make. What they left goes on to the same bytes.

KILLS=3 python -m pytest tests/test_kills.py        # kill make in each way instead of some
"""

import importlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from plumbing import cli
from plumbing.files import read_checkpoint

HERE = os.path.abspath(__file__)
KILLS = int(os.environ.get("KILLS", "1"))
SAVED_EVERY, STEPS = 3, 60
TINY = {
    "pretrain.py": """--n-layer 1 --n-head 2 --n-embd 32 --context 64 --block 32 --batch 8
        --tokens 15360 --documents 400 --warmup 5 --eval-every 20 --save-every 3""",
    "sft.py": "--demonstrations 100 --batch 16 --epochs 6 --max-new 8 --save-every 2",
}


def run(folder, script, *options):
    """A command to its end, in this process and in `folder`, with few steps."""
    stage = importlib.import_module(script.removesuffix(".py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *options, *TINY[script].split()])
        cli.run(stage.main, stage.Config, stage.PRESETS, stage.__doc__)


def wait_for(step, log, process):
    """Wait until the log has a step, or the process has ended."""
    sought = f'"step": {step},'
    while process.poll() is None and not (os.path.exists(log) and sought in log.read_text()):
        time.sleep(0.005)


def is_running(number):
    """Whether there is a process of this number which has not ended."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", number], stdout=subprocess.PIPE, check=False)
    return found.stdout.strip()[:1] not in (b"", b"Z")


def children_of(number):
    """Numbers of the processes that a process has started, words."""
    found = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = [line.split() for line in found.stdout.splitlines()]
    return [child for child, parent in pairs if parent == str(number)]


# ---- torchrun ----------------------------------------------------------------------------------


def torchrun(*folders):
    """Pretraining on two processes, in one folder after the other."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.path.dirname(os.path.dirname(HERE)),
    }
    with open(folders[-1] / "output.txt", "a") as said:
        return subprocess.Popen([*argv, HERE, *folders], env=env, stdout=said, stderr=said)


def test_workers_end_with_torchrun_and_the_next_go_on_to_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process, log = torchrun(whole, killed), killed / "base.pt.log.jsonl"
    wait_for(random.Random(0).randrange(SAVED_EVERY, STEPS - 10), log, process)
    assert process.poll() is None, (killed / "output.txt").read_text()
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    assert len(workers) == 2
    until = time.time() + 10
    while any(map(is_running, workers)) and time.time() < until:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
    saved = read_checkpoint(killed / "base.pt.part")["resume"]["step"]
    again = torchrun(killed)
    assert again.wait(timeout=120) == 0, (killed / "output.txt").read_text()
    assert f"going on from step {saved} of base.pt.part" in (killed / "output.txt").read_text()
    assert (killed / "base.pt").read_bytes() == (whole / "base.pt").read_bytes()


# ---- make --------------------------------------------------------------------------------------

# the stand-in for Python: the command that make gives, with few steps
STANDIN = """
import json, os, sys
tiny = json.loads({tiny!r})
os.execv({python!r}, [{python!r}, *sys.argv[1:], *tiny[sys.argv[1]].split()])
"""
# signal, whether the commands that make has started get it too, the result that is being made
INTERRUPTIONS = [
    (signal.SIGKILL, False, "base.pt"),
    (signal.SIGINT, True, "sft.pt"),
    (signal.SIGTERM, False, "sft.pt"),
    (signal.SIGKILL, True, "base.pt"),
    (signal.SIGINT, False, "base.pt"),
    (signal.SIGTERM, True, "sft.pt"),
]


@pytest.fixture
def make(root, tmp_path):
    """`make` of the first two models, in a folder with spaces."""
    standin = tmp_path / "standin.py"
    standin.write_text(STANDIN.format(python=sys.executable, tiny=json.dumps(TINY)))
    out = tmp_path / "a folder"
    argv = ["make", "-C", root, "-o", ".venv/ready", f"OUT={out}", f"{out}/sft.pt"]
    argv.append(f"PY={shlex.join([sys.executable, str(standin)])}")

    def start(*more):
        with open(tmp_path / "output.txt", "w") as said:
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            own_group = {"start_new_session": True}
            return subprocess.Popen([*argv, *more], env=env, stdout=said, stderr=said, **own_group)

    return start


def test_a_killed_make_goes_on_to_the_same_bytes(make, tmp_path):
    """Where a command runs on without it, the next `make` says so, and changes nothing."""
    out, rng = tmp_path / "a folder", random.Random(0)
    step = {"base.pt": 0, "sft.pt": 0}
    for sent, to_all, name in sorted(INTERRUPTIONS[: 2 * KILLS], key=lambda x: x[2]):
        step[name] += rng.randrange(SAVED_EVERY, 10)
        process = make()
        wait_for(step[name], out / f"{name}.log.jsonl", process)
        assert process.poll() is None, (tmp_path / "output.txt").read_text()
        (os.killpg if to_all else os.kill)(process.pid, sent)
        assert process.wait(timeout=60) != 0
        if (sent, to_all) == (signal.SIGKILL, False):
            left = re.match(r"process (\d+) ", (out / f"{name}.lock").read_text())[1]
            os.kill(int(left), signal.SIGSTOP)
            second = make().wait(timeout=60)
            os.kill(int(left), signal.SIGKILL)
            told = f"is being written by process {left} on "
            assert second == 2 and told in (tmp_path / "output.txt").read_text()
    assert make().wait(timeout=60) == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, "pretrain.py", "--out", "base.pt")
    run(whole, "sft.py", "--init", "base.pt", "--out", "sft.pt")
    for name in ("base.pt", "sft.pt"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    left = {path.name for path in out.iterdir()}
    assert left == {"make.seed", *(path.name for path in whole.iterdir())}


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        run(folder, "pretrain.py", "--out", "base.pt")
