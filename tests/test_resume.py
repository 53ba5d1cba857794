"""A run that was killed anywhere and started again ends in the same bytes, whatever the stage.

KILLS=20 python -m pytest tests/test_resume.py        # kill each stage twenty times instead of twice
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import data

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KILLS = int(os.environ.get("KILLS", "2"))
# script: (its inputs, its output, steps, its options); names are relative: a checkpoint remembers its config
STAGES = {
    "pretrain": (
        [],
        "base.pt",
        60,
        """--n-layer 1 --n-head 2 --n-embd 32 --context 64 --block 32 --batch 8
        --tokens 15360 --documents 400 --warmup 5 --eval-every 20 --save-every 3""",
    ),
    "sft": (
        ["base.pt"],
        "sft.pt",
        36,
        """--init base.pt --demonstrations 100 --batch 16 --epochs 6
        --max-new 8 --save-every 2""",
    ),
    "reward": (
        ["sft.pt", "rankings.jsonl"],
        "rm.pt",
        36,
        """--init sft.pt --data rankings.jsonl --batch 8
        --epochs 4 --save-every 2""",
    ),
    "ppo": (
        ["sft.pt", "rm.pt"],
        "ppo.pt",
        24,
        """--init sft.pt --rm rm.pt --rollout 8 --minibatch 4 --epochs 2
        --iterations 6 --max-new 8 --ptx-ratio 1 --kl-target 1 --save-every 4 --eval-every 8""",
    ),
}


def start(script, options, out, folder):
    with open(folder / "output.txt", "a") as log:
        return subprocess.Popen(
            [sys.executable, os.path.join(ROOT, f"{script}.py"), *options.split(), "--out", out],
            cwd=folder,
            stdout=log,
            stderr=log,
        )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder in which every stage ran without interruption, in order, and how long each of them took."""
    folder, seconds = tmp_path_factory.mktemp("undisturbed"), {}
    rng = random.Random(0)
    data.write_jsonl(
        str(folder / "rankings.jsonl"),
        [
            {
                "prompt": f"Who are you, {rng.randrange(10**6)}?",
                "responses": ["I am.", "You are fine.", "Thank you."],
                "ranks": rng.sample([1, 2, 2], 3),
            }
            for _ in range(82)
        ],
    )
    for script, (_, out, _, options) in STAGES.items():
        began = time.monotonic()
        assert start(script, options, out, folder).wait(timeout=300) == 0, (folder / "output.txt").read_text()
        seconds[script] = time.monotonic() - began
    return folder, seconds


def steps_logged(path):
    with open(path) as f:
        return [json.loads(line)["step"] for line in f]


@pytest.mark.parametrize("script", STAGES)
def test_a_killed_run_ends_in_the_same_bytes(script, undisturbed, tmp_path):
    folder, seconds = undisturbed
    inputs, out, _, options = STAGES[script]
    for name in inputs:
        shutil.copy(folder / name, tmp_path)
    moments = random.Random(f"kill {script}")
    for _ in range(KILLS):
        process = start(script, options, out, tmp_path)
        try:
            assert process.wait(moments.uniform(0, seconds[script])) == 0, (
                tmp_path / "output.txt"
            ).read_text()
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert start(script, options, out, tmp_path).wait(timeout=300) == 0, (tmp_path / "output.txt").read_text()
    assert (tmp_path / out).read_bytes() == (folder / out).read_bytes()
    assert steps_logged(tmp_path / f"{out}.log.jsonl") == steps_logged(folder / f"{out}.log.jsonl")
    assert not (tmp_path / f"{out}.part").exists()


@pytest.mark.parametrize("script", STAGES)
def test_the_undisturbed_log_has_every_step_once(script, undisturbed):
    _, out, steps, _ = STAGES[script]
    logged = steps_logged(undisturbed[0] / f"{out}.log.jsonl")
    assert logged == list(range(len(logged))) and len(logged) >= steps // 2


def test_a_run_resumes_where_it_was_saved_and_not_from_the_start(undisturbed, tmp_path):
    """Killed as soon as its first save is there: the run that follows says so and goes on from it."""
    _, out, _, options = STAGES["pretrain"]
    process = start("pretrain", options, out, tmp_path)
    while not (tmp_path / f"{out}.part").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert start("pretrain", options, out, tmp_path).wait(timeout=300) == 0
    assert "going on from step" in (tmp_path / "output.txt").read_text()
    assert (tmp_path / out).read_bytes() == (undisturbed[0] / out).read_bytes()
