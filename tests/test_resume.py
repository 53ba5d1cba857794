"""A run that was killed anywhere and started again ends in the same bytes, whatever the stage.

KILLS=20 python -m pytest tests/test_resume.py        # kill each stage twenty times instead of once
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from plumbing import cli
from plumbing.files import read_checkpoint, write_jsonl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KILLS = int(os.environ.get("KILLS", "1"))
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as conftest.py has it
PRETRAIN = """--n-layer 1 --n-head 2 --n-embd 32 --context 64 --block 32 --batch 8
    --tokens 15360 --documents 400 --warmup 5 --eval-every 20 --save-every 3 --out base.pt"""
SFT = """--init base.pt --demonstrations 100 --batch 16 --epochs 6 --max-new 8 --save-every 2
    --out sft.pt"""
REWARD = """--init sft.pt --data rankings.jsonl --batch 8 --epochs 4 --save-every 2 --out rm.pt"""
PPO = """--init sft.pt --rm rm.pt --rollout 8 --minibatch 4 --epochs 2 --iterations 6 --max-new 8
    --ptx-ratio 1 --kl-target 1 --save-every 4 --eval-every 8 --out ppo.pt"""
# script: its inputs, its options; names are relative, since a checkpoint remembers its config
STAGES = {
    "pretrain": ([], PRETRAIN),
    "sft": (["base.pt"], SFT),
    "reward": (["sft.pt", "rankings.jsonl"], REWARD),
    "ppo": (["sft.pt", "rm.pt"], PPO),
}


def result_of(script):
    return STAGES[script][1].split()[-1]


def start(script, folder):
    """The command in a process of its own, which can be killed."""
    argv = [sys.executable, os.path.join(ROOT, f"{script}.py"), *STAGES[script][1].split()]
    with open(folder / "output.txt", "a") as log:
        return subprocess.Popen(argv, cwd=folder, env=ONE_THREAD, stdout=log, stderr=log)


def run(script, folder, patch):
    """The same command to its end, in this process: it starts a second sooner."""
    stage = importlib.import_module(script)
    patch.chdir(folder)
    patch.setattr(sys, "argv", [f"{script}.py", *STAGES[script][1].split()])
    cli.run(stage.main, stage.Config, stage.PRESETS, stage.__doc__)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder in which every stage ran without interruption, in order, and their seconds."""
    folder, seconds = tmp_path_factory.mktemp("undisturbed"), {}
    rng = random.Random(0)
    rankings = []
    for _ in range(82):
        prompt = f"Who are you, {rng.randrange(10**6)}?"
        responses = ["I am.", "You are fine.", "Thank you."]
        ranks = rng.sample([1, 2, 2], 3)
        rankings.append({"prompt": prompt, "responses": responses, "ranks": ranks})
    write_jsonl(str(folder / "rankings.jsonl"), rankings)
    for script in STAGES:
        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            run(script, folder, patch)
        seconds[script] = time.monotonic() - began
    return folder, seconds


def steps_logged(path):
    with open(path) as f:
        return [json.loads(line)["step"] for line in f]


def kill_at_a_save(process, part, wait):
    """Wait for the first save and `wait` seconds more, kill it -> whether it still ran."""
    while not part.exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(wait)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


@pytest.mark.parametrize("script", STAGES)
def test_a_killed_run_ends_in_the_same_bytes(script, undisturbed, tmp_path, monkeypatch, capsys):
    folder, seconds = undisturbed
    out, part = result_of(script), tmp_path / f"{result_of(script)}.part"
    for name in STAGES[script][0]:
        shutil.copy(folder / name, tmp_path)
    moments = random.Random(f"kill {script}")
    for _ in range(KILLS):
        kill_at_a_save(start(script, tmp_path), part, moments.uniform(0, seconds[script] / KILLS))
    saved = read_checkpoint(part)["resume"]["step"] if part.exists() else None
    run(script, tmp_path, monkeypatch)
    if saved is not None:
        assert f"going on from step {saved} of {out}.part" in capsys.readouterr().out
    assert (tmp_path / out).read_bytes() == (folder / out).read_bytes()
    logs = [steps_logged(at / f"{out}.log.jsonl") for at in (tmp_path, folder)]
    assert logs[0] == logs[1] and not part.exists()


@pytest.mark.parametrize(
    ("script", "steps"), [("pretrain", 60), ("sft", 36), ("reward", 36), ("ppo", 24)]
)
def test_the_undisturbed_log_has_every_step_once(script, steps, undisturbed):
    logged = steps_logged(undisturbed[0] / f"{result_of(script)}.log.jsonl")
    assert logged == list(range(len(logged))) and len(logged) >= steps // 2


def test_a_run_resumes_where_it_was_saved_and_not_from_the_start(
    undisturbed, tmp_path, monkeypatch, capsys
):
    """Killed as soon as its first save is there: the run that follows goes on from it."""
    assert kill_at_a_save(start("pretrain", tmp_path), tmp_path / "base.pt.part", wait=0)
    run("pretrain", tmp_path, monkeypatch)
    assert "going on from step" in capsys.readouterr().out
    assert (tmp_path / "base.pt").read_bytes() == (undisturbed[0] / "base.pt").read_bytes()
