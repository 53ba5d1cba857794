"""model.py: the network, its initial weights, log-probabilities, the Scorer."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import CFG, gpt, lively, tokens

from model import GPT, GPTConfig, Scorer, scorer_from

V = CFG.vocab_size


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_token_changes_nothing_before_it():
    model, ids = gpt(), tokens(3, 12)
    before = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % V
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(2).all()  # and everything from it on


@pytest.mark.parametrize("pad", [0, 7])
def test_pads_at_the_end_change_no_number(pad):
    model, scorer, ids = gpt().double(), lively(Scorer(CFG)).double(), tokens(3, 9)
    length = torch.tensor([9, 5, 2])
    padded = F.pad(ids, (0, 6), value=pad)
    mask = torch.arange(8) < length[:, None] - 1
    wider = F.pad(mask, (0, 6))
    same(model(padded)[:, :9], model(ids))
    same(model.loss(padded, wider), model.loss(ids, mask))
    assert torch.allclose(scorer(padded)[:, :9], scorer(ids), rtol=1e-6)
    scores, found = scorer.score(padded, length), model.logp(padded, wider)
    losses = []
    for b, n in enumerate(length):  # each row alone, without a pad
        row, marked = ids[b : b + 1, :n], mask[b : b + 1, : n - 1]
        assert torch.allclose(scores[b], scorer(row)[0, -1], rtol=1e-6)
        losses.append(model.loss(row, marked) * (n - 1))
        for ours, alone in zip(found, model.logp(row, marked), strict=True):
            assert torch.allclose(ours[b, : n - 1], alone[0], atol=1e-6)
            assert not ours[b, n - 1 :].any()
    mean = torch.stack(losses).sum() / mask.sum()
    assert torch.allclose(model.loss(padded, wider), mean, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logp_and_entropy_are_those_of_the_softmax(temperature):
    model, ids = gpt(), tokens(4, 10)
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    logp, entropy = model.logp(ids, mask, temperature)
    assert logp.shape == entropy.shape == (4, 9)
    logits = model(ids)
    for b in range(4):
        for t in range(9):
            q = (logits[b, t] / temperature).log_softmax(0)
            assert torch.allclose(logp[b, t], q[ids[b, t + 1]] * mask[b, t], atol=1e-5)
            assert torch.allclose(entropy[b, t], -(q.exp() * q).sum() * mask[b, t], atol=1e-5)


def test_embeddings_are_tied():
    model = gpt()
    assert sum(p.shape == (V, 16) for p in model.parameters()) == 1
    h = torch.randn(5, 16)
    assert torch.equal(model.logits(h), h @ model.wte.weight.T)


def test_initial_loss_is_that_of_a_guess():
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(50, 32, 2, 2, 32)), torch.randint(50, (16, 32))
    loss = model.loss(ids, torch.ones(16, 31, dtype=torch.bool))
    assert abs(loss.item() - math.log(50)) < 0.1


def test_initial_weights_are_those_of_gpt2():
    """At GPT-2's width; residual outputs are scaled down by the depth. Positions are not."""
    weights = dict(GPT(GPTConfig(50, 50, 2, 12, 768)).named_parameters())
    del weights["wpe.weight"]
    for name, p in weights.items():
        if p.dim() == 2:
            std = 0.01 if name.endswith("c_proj.weight") else 0.02
            assert abs(p.std().item() - std) < 0.0005, name
        else:
            is_gain = "ln_" in name and name.endswith("weight")
            assert (p == (1.0 if is_gain else 0.0)).all(), name


@pytest.mark.parametrize("width", [2, 16, 192])
def test_positions_begin_as_waves(width):
    """The product of two of them depends on their distance only: of each frequency there is a sine
    and a cosine, and cos(s) cos(t) + sin(s) sin(t) = cos(t - s)."""
    p = GPT(GPTConfig(3, 400, 0, 1, width)).wpe.weight.detach().double()
    t = torch.arange(400)
    distance = t[:, None] - t                                             # (T, T)
    expected = torch.zeros(400, 400, dtype=torch.double)
    for c in range(0, width, 2):
        period = 2 * math.pi * 300 ** (c / width)                         # tokens
        expected += 0.04**2 * torch.cos(2 * math.pi * distance / period)
    torch.testing.assert_close(p @ p.T, expected, rtol=0, atol=1e-7 * width)
    # the nearer of two positions is the more alike, out to where the fastest wave comes again
    assert (expected[0, :4].diff() < 0).all()


def test_positions_are_learned():
    """They begin as waves and do not stay so; no two models share them."""
    model, other = gpt(), gpt()
    before = other.wpe.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.loss(tokens(3, 12), torch.ones(3, 11, dtype=torch.bool)).backward()
    optimizer.step()
    changed = (model.wpe.weight != before).any(1)
    assert changed[:11].all() and torch.equal(other.wpe.weight, before)


def test_narrow_models_start_with_larger_matrices():
    """Of a width of 192, twice as large; the embeddings are not."""
    weights = dict(GPT(GPTConfig(200, 200, 2, 12, 192)).named_parameters())
    del weights["wpe.weight"]
    for name, p in weights.items():
        if p.dim() == 2:
            std = 0.02 if name.endswith(("c_proj.weight", "wte.weight")) else 0.04
            assert abs(p.std().item() - std) < 0.001, name


def test_dropout_is_on_in_training_only():
    model, ids = gpt(cfg=replace(CFG, dropout=0.5)), tokens(2, 8)
    plain = gpt()(ids)
    assert torch.equal(model(ids), plain)
    model.train()
    assert not torch.allclose(model(ids), plain) and not torch.allclose(model(ids), model(ids))


def test_dropout_is_on_the_two_outputs_of_a_block():
    """Whole at p = 1: nothing is left of attention and feed-forward, the embeddings stay."""
    model, ids = gpt(cfg=replace(CFG, dropout=1.0)).train(), tokens(2, 8)
    same(model(ids), model.logits(model.ln_f(model.wte(ids) + model.wpe(torch.arange(8)))))


def test_a_copy_shares_nothing():
    model, ids = gpt(), tokens(2, 8)
    before, other = model(ids).detach(), copy.deepcopy(model)
    assert torch.equal(other(ids), before)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(ids).square().mean().backward()
    optimizer.step()
    assert torch.equal(model(ids), before) and not torch.allclose(other(ids), before)
    assert all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------------------------
# the Scorer


def test_a_scorer_starts_from_the_trunk():
    model, ids = gpt(cfg=replace(CFG, dropout=0.5)), tokens(2, 8)
    scorer = scorer_from(model)
    same(scorer.train().trunk.hidden(ids), model.hidden(ids))  # and has none of its dropout
    assert scorer.cfg == scorer.trunk.cfg == CFG
    scorer.trunk.wte.weight.data.zero_()
    assert model.wte.weight.abs().sum() > 0


def test_the_head_of_a_scorer_starts_as_it_should():
    """N(0, 1 / (C + 1)), without a bias."""
    head = Scorer(GPTConfig(3, 3, 0, 1, 4000)).head
    assert head.weight.std().item() == pytest.approx(4001**-0.5, rel=0.05)
    assert head.bias.item() == 0


def test_the_score_is_the_number_at_the_last_token():
    scorer, ids = lively(Scorer(CFG)), tokens(3, 9)
    numbers = scorer(ids)
    assert numbers.shape == (3, 9)
    assert torch.equal(numbers, scorer.head(scorer.trunk.hidden(ids)).squeeze(-1))
    assert scorer.score(ids, torch.tensor([9, 1, 4])).equal(numbers[[0, 1, 2], [8, 0, 3]])
