"""A run that was killed anywhere and started again ends in the same bytes, whatever the stage.

Each command runs once without interruption. Then, in another folder, it runs in a process of its
own that is killed with SIGKILL at a random step, and once more to its end. Of two at once, one goes
on.

KILLS=20 python -m pytest tests/test_resume.py        # kill each stage twenty times instead of once
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import time

import pytest
import torch

import sandbox
from plumbing import cli
from plumbing.files import read_checkpoint
from plumbing.results import write_jsonl

KILLS = int(os.environ.get("KILLS", "1"))
# Processes are forked from one that has imported torch, and nothing else.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch"])
PRETRAIN = """--n-layer 1 --n-head 2 --n-embd 32 --context 64 --block 32 --batch 8
    --tokens 15360 --documents 400 --warmup 5 --eval-every 20 --save-every 3 --out base.pt"""
SFT = """--init base.pt --demonstrations 100 --ptx text.jsonl --batch 16 --epochs 6 --max-new 8
    --save-every 2 --out sft.pt"""
REWARD = """--init sft.pt --data rankings.jsonl --batch 8 --epochs 4 --save-every 2 --out rm.pt"""
PPO = """--init sft.pt --rm rm.pt --ptx text.jsonl --rollout 8 --minibatch 4 --epochs 2
    --iterations 6 --max-new 8 --ptx-ratio 1 --kl-target 1 --save-every 4 --eval-every 8
    --out ppo.pt"""
DPO = """--init sft.pt --data rankings.jsonl --batch 8 --epochs 4 --max-new 8 --save-every 2
    --out dpo.pt"""
RLOO = """--init sft.pt --rm rm.pt --rollout 8 --iterations 12 --max-new 8 --save-every 4
    --eval-every 8 --out rloo.pt"""
LABEL = "--init sft.pt --n 40 --max-new 8 --out comparisons.jsonl"
# script: its inputs, its steps, its options; names are relative, since a checkpoint remembers
# its config
STAGES = {
    "pretrain": ([], 60, PRETRAIN),
    "sft": (["base.pt", "text.jsonl"], 36, SFT),
    "reward": (["sft.pt", "rankings.jsonl"], 40, REWARD),
    "ppo": (["sft.pt", "rm.pt", "text.jsonl"], 24, PPO),
    "forks.dpo": (["sft.pt", "rankings.jsonl"], 40, DPO),
    "forks.rloo": (["sft.pt", "rm.pt"], 12, RLOO),
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


def run(script, folder, more=""):
    """A command to its end, in this process, as its command line would run it."""
    options = LABEL if script == "label" else STAGES[script][-1]
    stage = importlib.import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{script}.py", *options.split(), *more.split()])
        cli.run(stage.main, stage.Config, stage.PRESETS, stage.__doc__)


def run_alone(script, folder, more, at_once):
    """What a process of its own does. Its words go to a file that its number names."""
    torch.set_num_threads(1)  # as conftest.py has it
    with contextlib.ExitStack() as words:
        said = words.enter_context(open(folder / f"said by {os.getpid()}", "w"))
        words.enter_context(contextlib.redirect_stdout(said))
        words.enter_context(contextlib.redirect_stderr(said))
        if at_once:
            at_once.wait(timeout=60)
        run(script, folder, more)


def start(script, folder, more="", at_once=None):
    """The command in a process of its own, which can be killed; all wait for the barrier."""
    process = PROCESSES.Process(target=run_alone, args=(script, folder, more, at_once))
    process.start()
    return process


def said_by(process, folder):
    return (folder / f"said by {process.pid}").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder in which every stage ran without interruption, in order."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_inputs(folder)
    for script in (*STAGES, "label"):
        run(script, folder)
    return folder


def log_of(path):
    """The lines of a log without what depends on speed."""
    lines = []
    with open(f"{path}.log.jsonl") as f:
        for line in map(json.loads, f):
            names = [k for k in line if k != "seconds" and not k.endswith("_per_second")]
            lines.append({name: line[name] for name in names})
    return lines


def kill_at(process, log, step):
    """Wait until the log has the line of that step, kill -> whether the process still ran."""
    sought = f'"step": {step},'
    while process.is_alive() and not (log.exists() and sought in log.read_text()):
        time.sleep(0.002)
    running = process.is_alive()
    process.kill()
    process.join()
    return running


def steps_to_kill_at(script):
    """KILLS steps in order, the first of them once something is saved."""
    _, steps, options = STAGES[script]
    saved = int(options.partition("--save-every")[2].split()[0])
    rng = random.Random(f"kill {script}")
    return sorted(rng.randrange(saved, steps - saved) for _ in range(KILLS))


@pytest.mark.parametrize("script", STAGES)
def test_a_killed_run_ends_in_the_same_bytes(script, undisturbed, tmp_path, capsys):
    """It goes on from its last save, not from the start; what it had locked is free."""
    inputs, _, _ = STAGES[script]
    for name in inputs:
        shutil.copy(undisturbed / name, tmp_path)
    out = result_of(script)
    part, log, lock = (tmp_path / f"{out}.{end}" for end in ("part", "log.jsonl", "lock"))
    for step in steps_to_kill_at(script):
        process = start(script, tmp_path)
        running = kill_at(process, log, step)
        assert running, said_by(process, tmp_path)
    saved = read_checkpoint(part)["resume"]["step"]
    assert lock.exists()
    run(script, tmp_path)
    assert f"going on from step {saved} of {out}.part" in capsys.readouterr().out
    assert (tmp_path / out).read_bytes() == (undisturbed / out).read_bytes()
    assert log_of(tmp_path / out) == log_of(undisturbed / out)
    assert not part.exists() and not lock.exists()


@pytest.mark.parametrize("script", STAGES)
def test_the_undisturbed_log_has_every_step_once(script, undisturbed):
    _, steps, _ = STAGES[script]
    log = log_of(undisturbed / result_of(script))
    assert [line["step"] for line in log] == list(range(steps))


def test_killed_sampling_begins_anew(undisturbed, tmp_path):
    """What label.py was writing is neither taken for finished nor refused."""
    shutil.copy(undisturbed / "sft.pt", tmp_path)
    rng, out = random.Random("kill label"), LABEL.split()[-1]
    for _ in range(KILLS):
        process = start("label", tmp_path)
        while process.is_alive() and not (tmp_path / f"{out}.lock").exists():
            time.sleep(0.002)
        time.sleep(0.5 * rng.random())
        process.kill()
        process.join()
    run("label", tmp_path)
    assert (tmp_path / out).read_bytes() == (undisturbed / out).read_bytes()
    names = [path.name for path in tmp_path.iterdir() if "said by" not in path.name]
    assert sorted(names) == [out, f"{out}.made.json", "sft.pt"]


@pytest.mark.parametrize(
    "script, seeds", [("pretrain", (0, 0)), ("pretrain", (0, 1)), ("label", (0, 1))]
)
def test_of_two_at_once_one_goes_on(script, seeds, undisturbed, tmp_path):
    """The other is told which process holds the result, which is that one's alone."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for folder in (tmp_path, alone):
        shutil.copy(undisturbed / "sft.pt", folder)
    barrier = PROCESSES.Barrier(2)
    both = [start(script, tmp_path, f"--seed {seed}", barrier) for seed in seeds]
    for process in both:
        process.join()
    said = [said_by(process, tmp_path) for process in both]
    first = [process.exitcode for process in both].index(0)
    assert both[1 - first].exitcode == 2, said
    out = LABEL.split()[-1] if script == "label" else result_of(script)
    held = rf"error: --out {out} is being written by process {both[first].pid} on \S+ \("
    late = rf"error: {out} is there already, and it was made with --seed {seeds[first]} instead"
    assert re.search(f"{held}|{late}", said[1 - first])
    run(script, alone, f"--seed {seeds[first]}")
    assert (tmp_path / out).read_bytes() == (alone / out).read_bytes()
    if script == "pretrain":
        assert log_of(tmp_path / out) == log_of(alone / out)
