"""A run that was killed anywhere and started again ends in the same bytes, whatever the stage.

Each command runs once without interruption. Then, in another folder, it runs in a process of its
own that is killed with SIGKILL at a random step, and once more to its end.

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

import sandbox
from plumbing import cli
from plumbing.files import read_checkpoint
from plumbing.results import write_jsonl

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KILLS = int(os.environ.get("KILLS", "1"))
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as conftest.py has it
PRETRAIN = """--n-layer 1 --n-head 2 --n-embd 32 --context 64 --block 32 --batch 8
    --tokens 15360 --documents 400 --warmup 5 --eval-every 20 --save-every 3 --out base.pt"""
SFT = """--init base.pt --demonstrations 100 --ptx text.jsonl --batch 16 --epochs 6 --max-new 8
    --save-every 2 --out sft.pt"""
REWARD = """--init sft.pt --data rankings.jsonl --batch 8 --epochs 4 --save-every 2 --out rm.pt"""
PPO = """--init sft.pt --rm rm.pt --ptx text.jsonl --rollout 8 --minibatch 4 --epochs 2
    --iterations 6 --max-new 8 --ptx-ratio 1 --kl-target 1 --save-every 4 --eval-every 8
    --out ppo.pt"""
# script: its inputs, its steps, its options; names are relative, since a checkpoint remembers
# its config
STAGES = {
    "pretrain": ([], 60, PRETRAIN),
    "sft": (["base.pt", "text.jsonl"], 36, SFT),
    "reward": (["sft.pt", "rankings.jsonl"], 40, REWARD),
    "ppo": (["sft.pt", "rm.pt", "text.jsonl"], 24, PPO),
}


def write_inputs(folder):
    """What no stage makes."""
    rng = random.Random(0)
    rankings = []
    for _ in range(82):
        prompt = f"Who are you, {rng.randrange(10**6)}?"
        responses = ["I am.", "You are fine.", "Thank you."]
        ranks = rng.sample([1, 2, 2], 3)
        rankings.append({"prompt": prompt, "responses": responses, "ranks": ranks})
    write_jsonl(str(folder / "rankings.jsonl"), rankings)
    texts = [{"text": text} for text in sandbox.corpus(500)]
    write_jsonl(str(folder / "text.jsonl"), texts)


def result_of(script):
    return STAGES[script][-1].split()[-1]


def start(script, folder):
    """The command in a process of its own, which can be killed."""
    argv = [sys.executable, os.path.join(ROOT, f"{script}.py"), *STAGES[script][-1].split()]
    with open(folder / "output.txt", "a") as log:
        return subprocess.Popen(argv, cwd=folder, env=ONE_THREAD, stdout=log, stderr=log)


def run(script, folder, patch):
    """The same command to its end, in this process: it starts a second sooner."""
    stage = importlib.import_module(script)
    patch.chdir(folder)
    patch.setattr(sys, "argv", [f"{script}.py", *STAGES[script][-1].split()])
    cli.run(stage.main, stage.Config, stage.PRESETS, stage.__doc__)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder in which every stage ran without interruption, in order."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_inputs(folder)
    for script in STAGES:
        with pytest.MonkeyPatch.context() as patch:
            run(script, folder, patch)
    return folder


def steps_logged(path):
    with open(path) as f:
        return [json.loads(line)["step"] for line in f]


def kill_at(process, log, step):
    """Wait until the log has the line of that step, kill -> whether the process still ran."""
    sought = f'{{"step": {step},'
    while process.poll() is None and not (log.exists() and sought in log.read_text()):
        time.sleep(0.002)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


def steps_to_kill_at(script):
    """KILLS steps in order, the first of them once something is saved."""
    _, steps, options = STAGES[script]
    saved = int(options.partition("--save-every")[2].split()[0])
    rng = random.Random(f"kill {script}")
    return sorted(rng.randrange(saved, steps - saved) for _ in range(KILLS))


@pytest.mark.parametrize("script", STAGES)
def test_a_killed_run_ends_in_the_same_bytes(script, undisturbed, tmp_path, monkeypatch, capsys):
    """It goes on from its last save, not from the start."""
    inputs, _, _ = STAGES[script]
    for name in inputs:
        shutil.copy(undisturbed / name, tmp_path)
    out = result_of(script)
    part, log = tmp_path / f"{out}.part", tmp_path / f"{out}.log.jsonl"
    for step in steps_to_kill_at(script):
        running = kill_at(start(script, tmp_path), log, step)
        assert running, (tmp_path / "output.txt").read_text()
    saved = read_checkpoint(part)["resume"]["step"]
    run(script, tmp_path, monkeypatch)
    assert f"going on from step {saved} of {out}.part" in capsys.readouterr().out
    assert (tmp_path / out).read_bytes() == (undisturbed / out).read_bytes()
    assert steps_logged(log) == steps_logged(undisturbed / f"{out}.log.jsonl")
    assert not part.exists()


@pytest.mark.parametrize("script", STAGES)
def test_the_undisturbed_log_has_every_step_once(script, undisturbed):
    _, steps, _ = STAGES[script]
    assert steps_logged(undisturbed / f"{result_of(script)}.log.jsonl") == list(range(steps))
