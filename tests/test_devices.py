"""plumbing/processes.py in one process: device, precision, frozen copies, recomputed blocks."""

import multiprocessing
import time
from dataclasses import replace

import pytest
import torch
from orphans import hello, outlives
from tiny import CFG, gpt, lively, ragged, tokens
from torch import nn

from generate import generate
from model import GPT, Scorer
from plumbing.processes import autocast, end_with_parent, frozen_copy, get_device, prepare_blocks
from train import TrainConfig

RUN = TrainConfig(device="cpu", precision="fp32")


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


# ------------------------------------------------------------------------------------------------
# device and precision


def test_the_device_is_the_one_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_device(replace(RUN, device="auto")) == get_device(RUN) == "cpu"
    with pytest.raises(ValueError, match="--device cuda: .* no CUDA device here; use --device cpu"):
        get_device(replace(RUN, device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert get_device(replace(RUN, device="auto")) == "cuda" and get_device(RUN) == "cpu"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert get_device(replace(RUN, device="auto")) == "cuda:1"
    assert get_device(replace(RUN, device="cuda:0")) == "cuda:0"
    with pytest.raises(ValueError, match="--device cuda:2: PyTorch sees only 2 CUDA devices here"):
        get_device(replace(RUN, device="cuda:2"))


@pytest.mark.parametrize(
    "device", ["xyz", "", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:1x", "mps:0"]
)
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ValueError, match=f"--device must be cpu, cuda, .* or auto, got {device}$"):
        get_device(replace(RUN, device=device))


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", "cuda:99"):
        with pytest.raises(ValueError, match="PyTorch sees no CUDA device here; use --device cpu"):
            get_device(replace(RUN, device=device))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch sees no Apple GPU here; use --device cpu"):
        get_device(replace(RUN, device="mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert get_device(replace(RUN, device="mps")) == "mps"


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("auto", torch.float32),
    ],
)
def test_the_precision_of_a_forward(precision, dtype):
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with autocast(replace(RUN, precision=precision)):
        assert layer(x).dtype == dtype


# ------------------------------------------------------------------------------------------------
# the process that started this one


def start_worker():
    """What torchrun does, and then waits."""

    def work():
        end_with_parent()
        hello()
        time.sleep(60)

    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)


def test_a_process_ends_when_the_one_that_started_it_is_killed():
    assert not outlives(start_worker, 3)


# ------------------------------------------------------------------------------------------------
# frozen copies


def test_a_frozen_copy_stays_as_it_is():
    model, ids = gpt(cfg=replace(CFG, dropout=0.5)).train(), tokens(2, 8)
    frozen = frozen_copy(model)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    before = frozen(ids)
    assert torch.equal(before, model.eval()(ids))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids).square().mean().backward()
    optimizer.step()
    assert torch.equal(frozen(ids), before) and not torch.allclose(model(ids), before)
    assert all(p.grad is None for p in frozen.parameters())


@pytest.mark.parametrize("make", [GPT, Scorer])
def test_frozen_in_bf16_says_the_same_to_the_bit(make):
    module, ids = lively(make(CFG)), tokens(3, 12)
    with bf16(), torch.no_grad():
        frozen = frozen_copy(module)
        assert torch.equal(frozen(ids), module(ids))
    layers = [m for m in frozen.modules() if isinstance(m, nn.Linear)]
    assert layers and {m.weight.dtype for m in layers} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in frozen_copy(module).parameters())
    assert all(p.dtype == torch.float32 for p in module.parameters())


# ------------------------------------------------------------------------------------------------
# --recompute


def held(module, ids):
    """How many numbers a forward pass keeps for the backward pass."""
    sizes = {}

    def pack(x):
        sizes[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        mask = torch.ones(len(ids), ids.shape[1] - 1, dtype=torch.bool)
        module.loss(ids, mask).backward()
    return sum(sizes.values())


def test_recompute_keeps_fewer_activations_and_the_names_of_the_weights():
    module, ids = GPT(replace(CFG, n_layer=6)), tokens(4, 12)
    names = list(module.state_dict())
    prepare_blocks(module, RUN)
    plain = held(module, ids)
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    prepare_blocks(module, replace(RUN, recompute=True))
    assert held(module, ids) < 0.5 * plain
    assert list(module.state_dict()) == names
    for p, wanted in zip(module.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, wanted)


def test_recompute_leaves_generation_alone():
    module = gpt()
    ids, total = generate(module, *ragged([3, 9, 1, 6], 0), 20, eos=22, seed=3)
    prepare_blocks(module, replace(RUN, recompute=True))
    same_ids, same_total = generate(module, *ragged([3, 9, 1, 6], 0), 20, eos=22, seed=3)
    assert torch.equal(ids, same_ids) and torch.equal(total, same_total)
