"""Every fast path equals the plain one: losses, gradients, samples at a seed, log-probabilities."""

import itertools
import json
import math
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CFG, gpt, ragged, tokens

import ppo
from generate import Cache, Recorder, decode_all, generate, join
from model import GPT, attention
from plumbing.files import Run
from train import Network, TrainConfig, train


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters()]


def some_actions():
    return torch.rand(4, 11, generator=torch.Generator().manual_seed(1)) < 0.6


ALL_ACTIONS = torch.ones(4, 11, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------
# logits in chunks


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_loss_in_chunks_is_the_mean_over_all_logits(chunk):
    module, ids, mask = gpt(), tokens(4, 12), some_actions()
    want = F.cross_entropy(module(ids)[:, :-1][mask], ids[:, 1:][mask])
    grads = gradients(module, want)
    module.logits_at_once = chunk * CFG.vocab_size
    loss = module.loss(ids, mask)
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    for a, b in zip(gradients(module, loss), grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_log_probabilities_in_chunks_are_those_of_the_softmax():
    module, ids, mask = gpt(), tokens(4, 12), some_actions()
    weight = torch.randn(4, 11)
    logq = (module(ids)[:, :-1] / 0.7).log_softmax(-1)
    want = logq.gather(2, ids[:, 1:, None]).squeeze(2) * mask
    grads = gradients(module, (want * weight).sum())
    module.logits_at_once = 5 * CFG.vocab_size
    logp, entropy = module.logp(ids, mask, temperature=0.7)
    torch.testing.assert_close(logp, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(logq.exp() * logq).sum(-1) * mask, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(module, (logp * weight).sum()), grads):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_loss_in_chunks_in_bf16_has_the_gradient_of_the_whole_within_its_rounding():
    module, ids, grads = gpt(), tokens(4, 12), []
    for chunk in (44, 5):
        module.logits_at_once = chunk * CFG.vocab_size
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.loss(ids, ALL_ACTIONS)
        grads.append(torch.cat([g.flatten() for g in gradients(module, loss)]))
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()


def test_no_more_logits_exist_at_once_than_allowed():
    seen = []

    class Watched(GPT):
        logits_at_once = 100

        def logits(self, h):
            seen.append(h.shape[0] * CFG.vocab_size)
            return super().logits(h)

    Watched(CFG).loss(tokens(4, 12), ALL_ACTIONS).backward()
    # forward, and again in the backward
    assert max(seen) <= 100 and sum(seen) == 2 * 44 * CFG.vocab_size


# ------------------------------------------------------------------------------------------------
# attention in bf16


@pytest.mark.parametrize("prompt", [0, 5])
def test_plain_attention_in_bf16_is_softmax_attention(prompt):
    """With a mask where there is a prompt, causal where there is none; against float64 from the
    definition."""
    B, H, T, D = 3, 2, 9, 8
    S = prompt + T
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, n, D).bfloat16() for n in (T, S, S))
    visible = torch.ones(B, 1, T, S, dtype=torch.bool).tril(prompt)
    if prompt:
        visible[1, :, :, 2:5] = False  # a shorter prompt
    wide = [z.double().requires_grad_() for z in (q, k, v)]
    narrow = [z.clone().requires_grad_() for z in (q, k, v)]
    scores = wide[0] @ wide[1].transpose(2, 3) / math.sqrt(D)
    want = scores.masked_fill(~visible, -math.inf).softmax(-1) @ wide[2]
    got = attention(*narrow, visible if prompt else None)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, atol=2e-2, rtol=2e-2)
    weight = torch.randn(want.shape).bfloat16()
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    for a, b in zip(narrow, wide):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=4e-2, rtol=4e-2)


# ------------------------------------------------------------------------------------------------
# decoding

PROMPT_LEN = [3, 9, 1, 6, 6, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@torch.no_grad()
def test_a_cache_of_fixed_size_samples_the_same(temperature):
    """As one that grows with what is sampled."""
    module, (prompts, length) = gpt(), ragged(PROMPT_LEN, 3)
    u = torch.rand(20, 6, generator=torch.Generator().manual_seed(3))
    found = []
    for size, static in ((29, False), (40, True)):
        recorder = Recorder()
        h = module.hidden(prompts, recorder)[torch.arange(6), length - 1]
        cache = Cache(recorder, 1, length, size, static)
        new = decode_all(module, cache, h, u, 22, (temperature, 0, 1.0), compile=False)
        assert cache.used == (40 if static else 29) and len(cache.length) <= 6
        found.append(join(prompts, length, new, 22))
    (ids, total), (same_ids, same_total) = found
    assert torch.equal(ids, same_ids) and torch.equal(total, same_total)
    assert temperature == 0 or 1 < len(set((total - length).tolist()))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++")
def test_the_compiled_step_samples_the_same():
    """And is compiled once, for prompts of any length."""
    from torch._inductor import config  # slow to import

    module, how = gpt(cfg=replace(CFG, n_layer=1)), {"eos": 22, "seed": 3}
    for lengths, stance in ((PROMPT_LEN, "default"), ([2, 1, 4, 3, 1, 2], "fail_on_recompile")):
        prompts = ragged(lengths, 3)
        ids, total = generate(module, *prompts, 20, **how)
        # Without vector instructions, g++ takes a third of the time.
        with config.patch({"cpp.vec_isa_ok": False}), torch.compiler.set_stance(stance):
            same_ids, same_total = generate(module, *prompts, 20, compile=True, **how)
        assert torch.equal(ids, same_ids) and torch.equal(total, same_total)


def test_the_head_of_a_decoding_step_is_the_unembedding():
    h = torch.randn(8, 16)
    for words in (23, 10_001):
        module = gpt(cfg=replace(CFG, vocab_size=words))
        few = module.logits(h, few=True)
        torch.testing.assert_close(few, module.logits(h), atol=1e-5, rtol=1e-5)


def test_rows_of_a_rollout_lose_only_unused_columns():
    x = torch.arange(3 * 9).view(3, 9)
    total = torch.tensor([4, 9, 6])
    rollout = ppo.Rollout(x, *(x[:, 1:] + i for i in range(5)), total)
    part = rollout.rows(torch.tensor([2, 0]))
    assert torch.equal(part.ids, x[[2, 0], :6]) and torch.equal(part.total, total[[2, 0]])
    assert torch.equal(part.values, rollout.values[[2, 0], :5]) and part.mask.shape == (2, 5)


# ------------------------------------------------------------------------------------------------
# the loop

RUN = TrainConfig(device="cpu", precision="fp32", lr=1e-2)


def fitted(cfg):
    """Train a tiny GPT with dropout for 7 steps -> (the model, the steps in its log)."""
    torch.manual_seed(0)
    module = GPT(replace(CFG, dropout=0.2))

    def losses(ids):
        loss = module.loss(ids, ALL_ACTIONS)
        yield 1.0, loss, {"loss": loss}

    def batches(start):
        return (tokens(4, 12, seed=step) for step in itertools.count(start))

    meta = {"stage": "toy", "config": asdict(cfg), "inputs": {}}
    tokenizer = {"name": "none", "hash": "none"}
    run = Run(cfg, meta, "cpu", None)
    train(run, [Network(module, cfg.lr)], batches, losses, 7, tokenizer)
    with open(f"{cfg.out}.log.jsonl") as f:
        return module, [json.loads(line)["step"] for line in f]


def test_flags_for_speed_and_memory_change_no_weight(tmp_path):
    plain, steps = fitted(replace(RUN, out=f"{tmp_path}/plain.pt"))
    assert steps == [*range(7)]
    for name, change, logged in (
        ("recompute", {"recompute": True}, steps),
        ("log", {"log_every": 3}, [2, 5, 6]),
    ):
        module, found = fitted(replace(RUN, out=f"{tmp_path}/{name}.pt", **change))
        assert found == logged
        for a, b in zip(plain.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
