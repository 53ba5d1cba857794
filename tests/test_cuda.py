"""Every stage on a pretended CUDA device (fake_cuda.py): the CPU's numbers, no wait in a loop."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

PRECISIONS = {"fp32": 1e-5, "bf16": 0.01}       # how far metrics may be from the CPU's
ROLLOUT = {     # waits of a rollout of 16 tokens in two batches, and of its statistics
    "nonzero: alive": 4,                # one in 8 tokens: who has not ended
    "_local_scalar_dense: if (new ==": 2,           # whether the logits were finite
    "copied: ids, total": 1,            # the lengths
    "copied: return [row[1:]": 2,       # the responses, for the log
    "tolist: read = torch.stack": 1,    # the statistics
}
LINES = {       # on the device: x, where: here; what is refused, or how many waits there are
    "x + here": "cuda and of the cpu", "here[x.long()]": "indices on cuda, tensor on cpu",
    "torch.cat([x, here.float()])": "cuda and of the cpu", "x.numpy()": "can't convert cuda",
    "x.sum().item()": 1, "x.tolist()": 1, "x[x > 2]": 1, "x.cpu()": 1, "x[here]": 1, "x[[0, 1]]": 1,
    "here.to('cuda')": 1, "bool(x.any())": 1, "torch.tensor([1], device='cuda')": 1,
    "x.copy_(here)": 1, "here.pin_memory().to('cuda', non_blocking=True)": 0, "x[0] + 1.0": 0,
    "torch.where(x > 2, x, 0.0).sum()": 0, "x[x.long()]": 0, "x.is_cuda and x.device": 0,
}
TRY = """
import json, torch
from tests.fake_cuda import fake_cuda
with fake_cuda() as waits:
    x, here = torch.arange(6.0, device="cuda"), torch.arange(6)
    for line in {lines!r}:
        waits.clear()
        try:
            eval(line)
            print(json.dumps(waits.total()))
        except (RuntimeError, TypeError) as e:
            print(json.dumps(str(e)))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{precision: what cuda_stages.py found}; both at once, in processes of one thread."""
    env, started = os.environ | {"OMP_NUM_THREADS": "1"}, {}
    for precision in PRECISIONS:
        folder = str(tmp_path_factory.mktemp(precision))
        command = [sys.executable, "-m", "tests.cuda_stages", precision, folder]
        started[folder] = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE,
                                           stdout=subprocess.DEVNULL, text=True)
    results = []
    for folder, process in started.items():
        _, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        with open(f"{folder}/found.json") as f:
            results.append(json.load(f))
    return dict(zip(PRECISIONS, results))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_stages_give_the_numbers_of_the_cpu(found, precision):
    cuda, cpu = (found[precision][device]["metrics"] for device in ("cuda", "cpu"))
    assert cuda.keys() == cpu.keys()
    assert {"ppo++", "sft best of 2", "resumed", "programs"} <= cuda.keys()
    for stage, figures in cuda.items():
        # RLOO's figures hang on differences of scores, DPO's on those of log-probabilities of a
        # hundred nats, each of them rounded.
        is_fork = stage in ("rloo.pt", "dpo.pt", "dpo+")
        slack = PRECISIONS[precision] * (3 if is_fork else 1)
        assert figures == pytest.approx(cpu[stage], rel=slack, abs=slack), stage
    assert cuda["resumed"] == cuda["base+"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("more", ["base.pt", "sft.pt", "rm.pt", "dpo.pt", "epoch"])
def test_no_step_waits_for_the_device(found, precision, more):
    """Pretraining, SFT, reward model and DPO, twice as long; PPO with two epochs instead of one."""
    assert found[precision]["cuda"]["more"][more] == {}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_rollout_waits_once_in_eight_tokens(found, precision):
    waits = found[precision]["cuda"]["more"]["ppo.pt"]
    allowed = {line: [n for said, n in ROLLOUT.items() if said in line] for line in waits}
    assert all(allowed[line] and waits[line] <= allowed[line][0] for line in waits), waits


def test_the_pretended_device_refuses_and_counts_as_a_real_one():
    script = TRY.format(lines=[*LINES])
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, capture_output=True,
                          text=True)
    said = dict(zip(LINES, map(json.loads, done.stdout.splitlines()), strict=True))
    for line, expected in LINES.items():
        good = expected in said[line] if isinstance(expected, str) else said[line] == expected
        assert good, (line, said[line])
