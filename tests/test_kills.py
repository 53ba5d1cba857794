"""Killed from outside: torchrun, and make. What they left goes on to the same bytes.

KILLS=3 python -m pytest tests/test_kills.py        # kill make in each way instead of some
"""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import pretrain
from plumbing import cli
from plumbing.files import read_checkpoint

HERE = os.path.abspath(__file__)
KILLS = int(os.environ.get("KILLS", "1"))
SAVED_EVERY, STEPS = 3, 80
TINY = "--n-layer 1 --n-head 2 --n-embd 32 --context 64 --block 32 --batch 8 --tokens 20480 "
TINY += "--documents 400 --warmup 5 --eval-every 20 --save-every 3"


def run(folder):
    """Tiny pretraining to its end, in this process and in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pretrain.py", "--out", "base.pt", *TINY.split()])
        cli.run(pretrain.main, pretrain.Config, pretrain.PRESETS, pretrain.__doc__)


def wait_for(step, log, process):
    """Wait until the log has a step, or the process has ended."""
    sought = f'"step": {step},'
    while process.poll() is None and not (os.path.exists(log) and sought in log.read_text()):
        time.sleep(0.005)


def is_running(number):
    """Whether there is a process of this number which has not ended."""
    argv = ["ps", "-o", "stat=", "-p", str(number)]
    found = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
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
    root = os.path.dirname(os.path.dirname(HERE))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    with open(folders[-1] / "output.txt", "a") as said:
        return subprocess.Popen([*argv, HERE, *folders], env=env, stdout=said, stderr=said)


def test_workers_end_with_torchrun_and_the_next_go_on_to_the_same_bytes(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process, log = torchrun(whole, killed), killed / "base.pt.log.jsonl"
    wait_for(random.Random(0).randrange(SAVED_EVERY, STEPS - 10), log, process)
    assert process.poll() is None, (killed / "output.txt").read_text()
    workers = [int(worker) for worker in children_of(process.pid)]
    assert len(workers) == 2
    # They look for torchrun once a second, in which a fast machine would finish: they stand still.
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    process.kill()
    process.wait()
    time.sleep(1)
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
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

# signal, whether the command that make has started gets it too
INTERRUPTIONS = [
    (signal.SIGKILL, False),
    (signal.SIGINT, True),
    (signal.SIGTERM, False),
    (signal.SIGKILL, True),
    (signal.SIGTERM, True),
    (signal.SIGINT, False),  # make waits for the command, which ends as ever
]


@pytest.fixture
def make(root, tmp_path):
    """`make` of the first model, in a folder with spaces."""
    tiny = tmp_path / "python with tiny settings"
    tiny.write_text(f'exec {shlex.quote(sys.executable)} "$@" {TINY}')
    out = tmp_path / "a folder"
    argv = ["make", "-C", root, "-o", ".venv/ready", f"OUT={out}", f"{out}/base.pt"]
    argv.append(f"PY=sh {shlex.quote(str(tiny))}")

    def start(*more):
        with open(tmp_path / "output.txt", "w") as said:
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            own_group = {"start_new_session": True}
            return subprocess.Popen([*argv, *more], env=env, stdout=said, stderr=said, **own_group)

    return start


def test_a_killed_make_goes_on_to_the_same_bytes(make, tmp_path):
    """Where a command runs on without it, the next `make` says so, and changes nothing."""
    out, said, rng = tmp_path / "a folder", tmp_path / "output.txt", random.Random(0)
    log, lock, refused = out / "base.pt.log.jsonl", out / "base.pt.lock", 0
    for sent, to_all in INTERRUPTIONS[: 2 * KILLS]:
        done = len(log.read_text().splitlines()) if log.exists() else 0
        process = make()
        wait_for(done + rng.randrange(SAVED_EVERY, 8), log, process)
        assert process.poll() is None, said.read_text()
        command = re.match(r"process (\d+) ", lock.read_text())[1]
        (os.killpg if to_all else os.kill)(process.pid, sent)
        assert process.wait(timeout=60) != 0
        while to_all and is_running(command):
            time.sleep(0.01)
        if is_running(command):
            os.kill(int(command), signal.SIGSTOP)
            second = make().wait(timeout=60)
            os.kill(int(command), signal.SIGKILL)
            assert second == 2, said.read_text()
            assert f"is being written by process {command} on " in said.read_text()
            refused += 1
    assert refused > 0
    assert make().wait(timeout=60) == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole)
    assert (out / "base.pt").read_bytes() == (whole / "base.pt").read_bytes()
    left = {path.name for path in out.iterdir()}
    assert left == {"make.seed", *(path.name for path in whole.iterdir())}


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        run(folder)
