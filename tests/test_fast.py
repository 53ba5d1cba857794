"""Every fast path equals the plain one: losses, gradients, samples at a seed, log-probabilities."""

import json
import math
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bench
import data
import model as model_file
import ppo
from model import GPT, GPTConfig, Scorer, attention, frozen_copy, generate, read_checkpoint, save_checkpoint
from train import Network, TrainConfig, prepare_blocks, train

CFG = GPTConfig(vocab_size=23, block_size=40, n_layer=2, n_head=2, n_embd=16)


def lively(module, seed=0):
    torch.manual_seed(seed)
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p, 1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.3)
    return module


def tokens(*shape, seed=0):
    return torch.randint(CFG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters()]


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


# -------------------------------------------------------------------------------------------------
# logits in chunks

@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_loss_in_chunks_is_the_mean_over_all_logits(chunk):
    gpt, ids = lively(GPT(CFG)), tokens(4, 12)
    mask = torch.rand(4, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    want = F.cross_entropy(gpt(ids)[:, :-1][mask], ids[:, 1:][mask])
    grads = gradients(gpt, want)
    gpt.logits_at_once = chunk * CFG.vocab_size
    loss = gpt.loss(ids, mask)
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    for a, b in zip(gradients(gpt, loss), grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_log_probabilities_in_chunks_are_those_of_the_softmax():
    gpt, ids = lively(GPT(CFG)), tokens(4, 12)
    mask = torch.rand(4, 11, generator=torch.Generator().manual_seed(1)) < 0.6
    weight = torch.randn(4, 11)
    logq = (gpt(ids)[:, :-1] / 0.7).log_softmax(-1)
    want = logq.gather(2, ids[:, 1:, None]).squeeze(2) * mask
    grads = gradients(gpt, (want * weight).sum())
    gpt.logits_at_once = 5 * CFG.vocab_size
    logp, entropy = gpt.logp(ids, mask, temperature=0.7)
    torch.testing.assert_close(logp, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(logq.exp() * logq).sum(-1) * mask, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(gpt, (logp * weight).sum()), grads):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_loss_in_chunks_in_bf16_has_the_gradient_of_the_whole_within_its_rounding():
    gpt, ids = lively(GPT(CFG)), tokens(4, 12)
    mask = torch.ones(4, 11, dtype=torch.bool)
    grads = []
    for chunk in (44, 5):
        gpt.logits_at_once = chunk * CFG.vocab_size
        with bf16():
            loss = gpt.loss(ids, mask)
        grads.append(torch.cat([g.flatten() for g in gradients(gpt, loss)]))
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()


def test_no_more_logits_exist_at_once_than_allowed(monkeypatch):
    gpt, ids = lively(GPT(CFG)), tokens(4, 12)
    seen, logits = [], GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, h: seen.append(h.shape[0] * CFG.vocab_size) or logits(self, h))
    gpt.logits_at_once = 100
    gpt.loss(ids, torch.ones(4, 11, dtype=torch.bool)).backward()
    assert max(seen) <= 100 and sum(seen) == 2 * 44 * CFG.vocab_size         # forward, and again in the backward


# -------------------------------------------------------------------------------------------------
# attention in bf16

@pytest.mark.parametrize("prompt", [0, 5])
def test_plain_attention_in_bf16_is_softmax_attention(prompt):
    """With a mask where there is a prompt, causal where there is none; against float64 from the definition."""
    B, H, T, D = 3, 2, 9, 8
    S = prompt + T
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, n, D).bfloat16() for n in (T, S, S))
    visible = torch.ones(B, 1, T, S, dtype=torch.bool).tril(prompt)
    if prompt:
        visible[1, :, :, 2:5] = False                                        # a shorter prompt
    wide = [z.double().requires_grad_() for z in (q, k, v)]
    narrow = [z.clone().requires_grad_() for z in (q, k, v)]
    scores = (wide[0] @ wide[1].transpose(2, 3) / math.sqrt(D)).masked_fill(~visible, -math.inf)
    want = scores.softmax(-1) @ wide[2]
    got = attention(*narrow, visible if prompt else None)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2e-2)
    weight = torch.randn(want.shape).bfloat16()
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    for a, b in zip(narrow, wide):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=4e-2, rtol=4e-2)


# -------------------------------------------------------------------------------------------------
# frozen models

@pytest.mark.parametrize("make", [GPT, Scorer])
def test_frozen_in_bf16_says_the_same_to_the_bit(make):
    module, ids = lively(make(CFG)), tokens(3, 12)
    with bf16(), torch.no_grad():
        frozen = frozen_copy(module)
        assert torch.equal(frozen(ids), module(ids))
    matrices = [m.weight.dtype for n, m in frozen.named_modules() if isinstance(m, torch.nn.Linear)]
    assert matrices and set(matrices) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in frozen_copy(module).parameters())
    assert all(p.dtype == torch.float32 for p in module.parameters())


# -------------------------------------------------------------------------------------------------
# decoding

def sampled(gpt, **more):
    prompts = data.pad([tokens(n, seed=n).tolist() for n in (3, 9, 1, 6, 6, 2)])
    return generate(gpt, *prompts, 20, eos=22, seed=3, **more)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cache_of_fixed_size_samples_the_same(monkeypatch, temperature):
    gpt = lively(GPT(CFG)).eval()
    ids, total = sampled(gpt, temperature=temperature)
    monkeypatch.setattr(model_file, "compiled_decode", lambda: model_file.decode)
    same_ids, same_total = sampled(gpt, temperature=temperature, compile=True)
    assert torch.equal(ids, same_ids) and torch.equal(total, same_total)
    assert temperature == 0 or 1 < len(set((total - torch.tensor([3, 9, 1, 6, 6, 2])).tolist()))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_the_compiled_step_samples_the_same():
    gpt = lively(GPT(CFG)).eval()
    (ids, total), (same_ids, same_total) = sampled(gpt), sampled(gpt, compile=True)
    assert torch.equal(ids, same_ids) and torch.equal(total, same_total)


def test_the_head_of_a_decoding_step_is_the_unembedding():
    gpt = lively(GPT(replace(CFG, vocab_size=10_001)))
    h = torch.randn(8, 16)
    torch.testing.assert_close(model_file.few_logits(gpt, h), gpt.logits(h), atol=1e-5, rtol=1e-5)


def test_rows_of_a_rollout_lose_only_unused_columns():
    x = torch.arange(3 * 9).view(3, 9)
    total = torch.tensor([4, 9, 6])
    rollout = ppo.Rollout(x, *(x[:, 1:] + i for i in range(5)), total)
    part = rollout.rows(torch.tensor([2, 0]))
    assert torch.equal(part.ids, x[[2, 0], :6]) and torch.equal(part.total, total[[2, 0]])
    assert torch.equal(part.values, rollout.values[[2, 0], :5]) and part.mask.shape == (2, 5)


# -------------------------------------------------------------------------------------------------
# the loop

def fitted(cfg, dropout=0.2):
    torch.manual_seed(0)
    gpt = GPT(replace(CFG, dropout=dropout))

    def losses(step):
        ids = tokens(4, 12, seed=step)
        loss = gpt.loss(ids, torch.ones(4, 11, dtype=torch.bool))
        yield 1.0, loss, {"loss": loss}

    def save(path, module, meta, **more):
        save_checkpoint(path, module, {"name": "none", "hash": "none"}, meta, **more)
    train([Network(gpt, cfg.lr)], lambda step: step, losses, cfg, 7, save, {"stage": "toy", "config": asdict(cfg)}, read_checkpoint)
    with open(f"{cfg.out}.log.jsonl") as f:
        return gpt, [json.loads(line) for line in f]


RUN = TrainConfig(out="toy.pt", device="cpu", precision="fp32", lr=1e-2)


@pytest.mark.parametrize("change", [{"recompute": True}, {"log_every": 3}])
def test_flags_for_speed_and_memory_change_no_weight(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    gpt, _ = fitted(RUN)
    same, lines = fitted(replace(RUN, out="same.pt", **change))
    for a, b in zip(gpt.parameters(), same.parameters()):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert [line["step"] for line in lines] == ([2, 5, 6] if "log_every" in change else [*range(7)])


def test_recompute_leaves_generation_alone():
    gpt = lively(GPT(CFG)).eval()
    ids, total = sampled(gpt)
    prepare_blocks([Network(gpt, 0.0)], replace(RUN, recompute=True))
    same_ids, same_total = sampled(gpt)
    assert torch.equal(ids, same_ids) and torch.equal(total, same_total)


def test_weights_that_are_not_finite_still_sample_a_token():
    """So that the sentence about them comes from the loop, which looks at every --log-every-th step only."""
    assert model_file.next_token(torch.full((2, 5), math.nan), torch.tensor([0.1, 0.9])).tolist() == [4, 4]


def test_recompute_keeps_fewer_activations():
    gpt, ids = GPT(replace(CFG, n_layer=6)), tokens(4, 12)
    kept = []
    for recompute in (False, True):
        prepare_blocks([Network(gpt, 0.0)], replace(RUN, recompute=recompute))
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x, s=sizes: s.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
            gpt.loss(ids, torch.ones(4, 11, dtype=torch.bool)).backward()
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.5 * kept[0]


# -------------------------------------------------------------------------------------------------
# the benchmark

def test_floors_count_the_arithmetic_that_pytorch_counts():
    """PyTorch counts a causal row as a full square, and attention only where it is made of products."""
    gpt, ids = GPT(CFG), tokens(3, 12)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        gpt(ids)
    assert bench.flops(CFG, 36, 3 * 12 * 12, 36) == counter.get_total_flops()


def test_a_rollout_reads_the_weights_and_the_cache_once_a_step():
    prefill, steps = bench.decoding(CFG, B=3, P=5, R=2, width=4)
    weights = 12 * 2 * 16 * 16 + 23 * 16
    assert steps[1] == 4 * (2 * weights + 3 * 2 * 2 * 16 * (6 + 7))          # K and V of 2 layers, 6 and then 7 tokens
    assert prefill[0] == bench.flops(CFG, 15, 3 * 15, 3)


@pytest.mark.parametrize("case", ["train", "ppo"])
def test_a_race_measures(case):
    shape = {"train": (2, 8), "ppo": (4, 4, 5)}[case]
    row, = bench.measure(case, CFG, shape, bench.Config(rounds=1, device="cpu"))
    assert row["system"] == "ours" and row["ratio"] == 1 and row["seconds"] > row["floor_seconds"] > 0
    assert row["tokens_per_second"] * row["seconds"] == pytest.approx({"train": 16, "ppo": 20}[case])
    assert row["peak_mb"] > 50


@pytest.mark.parametrize("bad", [{"cases": "train,ppoo"}, {"size": "L"}, {"dtype": "fp8"}, {"peer": "trl"}, {"rounds": 0}])
def test_what_cannot_be_measured_is_a_sentence(bad):
    with pytest.raises(ValueError, match="--"):
        bench.main(bench.Config(**bad))


def test_rows_of_like_length_are_batched_once_each_with_the_longest_of_them():
    length = torch.tensor([5, 2, 9, 2, 7])
    assert [(rows.tolist(), longest) for rows, longest in data.by_length(length, 2)] == [([1, 3], 2), ([0, 4], 7), ([2], 9)]
    assert [(rows.tolist(), longest) for rows, longest in data.by_length(length, 0)] == [([1, 3, 0, 4, 2], 9)]
