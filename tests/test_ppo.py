"""Stage 3: the equations against slow sums, the rollout, the loop, and a bandit that PPO solves."""

import json
import math
import os
import signal
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import data
import interop
import ppo
import sandbox
from generate import generate, sample
from model import GPT, GPTConfig, Scorer, scorer_from
from plumbing.files import read_checkpoint, save_checkpoint
from plumbing.processes import frozen_copy
from plumbing.results import write_jsonl
from train import make_optimizer

EOS = 0
ENC = interop.get_tokenizer("sandbox")
SMALL = GPTConfig(vocab_size=7, block_size=24, n_layer=2, n_head=2, n_embd=16)
CFG = ppo.Config(device="cpu", precision="fp32", max_new=6, minibatch=64, kl_coef=0.1)
NO_TEXT = torch.empty(0, 24, dtype=torch.long)
MACHINE = ("rollout_tokens_per_second", "scoring_tokens_per_second")  # of a rollout's statistics


@pytest.fixture
def doubles(monkeypatch):
    """float64 throughout, where the models cast to float32 as well."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def ragged(T=9):
    """A mask of six rows: actions from anywhere to anywhere, one row with a single action."""
    spans = [(0, T), (2, 5), (T - 1, T), (3, T), (0, 1), (4, 8)]
    return torch.tensor([[a <= t < b for t in range(T)] for a, b in spans])


def players(seed=0):
    """Four tiny models, no two alike."""
    torch.manual_seed(seed)
    policy, value = GPT(SMALL), Scorer(SMALL)
    return ppo.Models(policy, value, frozen_copy(GPT(SMALL)), frozen_copy(Scorer(SMALL)))


def at_the_start(seed=0):
    """Models as a run begins with them: the reference is the policy, the reward model the value."""
    models = players(seed)
    return models._replace(reference=frozen_copy(models.policy), rm=frozen_copy(models.value))


def prompts(n=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return data.pad([torch.randint(1, 7, (1 + b % 4,), generator=rng).tolist() for b in range(n)])


def off_policy():
    """Models and a rollout of another policy and value function: ratios differ from 1, values from
    those of the rollout, and some of both are clipped."""
    models, others = players(), players(7)
    other = models._replace(policy=others.policy, value=others.value)
    other.policy.wte.weight.data *= 3
    rollout, _ = ppo.roll_out(other, prompts(), CFG, 0.1, EOS, seed=0)
    return models, rollout


def total_losses(models, rollout, cfg, text=NO_TEXT):
    """(gradients, what the log would say) of one minibatch."""
    trained = [*models.policy.parameters(), *models.value.parameters()]
    for p in trained:
        p.grad = None
    logged = Counter()
    minibatch = ppo.Minibatch(rollout, text, {})
    for weight, loss, stats in ppo.ppo_ptx_losses(models, minibatch, cfg, "cpu"):
        (weight * loss).backward()
        logged.update({k: float(weight) * v.item() for k, v in stats.items()})
    return [p.grad.clone() for p in trained if p.grad is not None], logged


# -------------------------------------------------------------------------------------------------
# the equations


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.8, 1.0)])
def test_gae_equals_the_sum_over_all_later_deltas(gamma, lam):
    mask = ragged()
    rewards, values = torch.randn(2, *mask.shape, dtype=torch.float64)  # junk where mask is False
    want = torch.zeros_like(rewards)
    for b, row in enumerate(mask.tolist()):
        actions = [t for t, on in enumerate(row) if on]
        for t in actions:
            for u in actions[actions.index(t) :]:
                after = values[b, u + 1] if u + 1 in actions else 0.0
                want[b, t] += (gamma * lam) ** (u - t) * (
                    rewards[b, u] + gamma * after - values[b, u]
                )
    adv, returns = ppo.gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(adv, want, atol=1e-12, rtol=0)
    torch.testing.assert_close(returns, (want + values) * mask, atol=1e-12, rtol=0)


def test_with_lambda_1_the_returns_are_the_rewards_to_come():
    mask = ragged()
    rewards, values = torch.randn(2, *mask.shape, dtype=torch.float64)
    adv, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    to_come = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_come, atol=1e-12, rtol=0)
    torch.testing.assert_close(adv, (returns - values) * mask, atol=1e-12, rtol=0)


def test_the_score_lands_on_the_last_token_and_the_kl_on_every_action():
    """Row 0 is the picture in data.py and ends with EOS; row 1 was cut off."""
    prompt_len, total_len = torch.tensor([3, 2]), torch.tensor([6, 8])
    mask = data.action_mask(prompt_len, total_len, 8)
    logp, ref_logp = (
        torch.full((2, 7), -1.0),
        torch.full((2, 7), -3.0),
    )  # pads and prompts hold junk
    rewards = ppo.token_rewards(
        torch.tensor([10.0, 20.0]), logp, ref_logp, mask, total_len, kl_coef=0.5
    )
    torch.testing.assert_close(
        rewards,
        torch.tensor(
            [[0.0, 0.0, -1.0, -1.0, 9.0, 0.0, 0.0], [0.0, -1.0, -1.0, -1.0, -1.0, -1.0, 19.0]]
        ),
    )


@pytest.mark.parametrize(
    ("ratio", "adv", "loss", "slope"),
    [
        (0.5, 1.0, -0.5, -0.5),
        (1.1, 1.0, -1.1, -1.1),
        (1.5, 1.0, -1.2, 0.0),  # a good action: no more than 1.2
        (0.5, -1.0, 0.8, 0.0),
        (0.9, -1.0, 0.9, 0.9),
        (1.5, -1.0, 1.5, 1.5),  # a bad one: no less than 0.8
    ],
)
def test_policy_loss_by_cases(ratio, adv, loss, slope):
    """slope is d loss / d log pi: minus ratio times advantage, or zero where the clip holds."""
    logp = torch.tensor([[math.log(ratio), 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    got, stats = ppo.policy_loss(logp, torch.zeros(1, 2), torch.tensor([[adv, 9.0]]), mask, 0.2)
    got.backward()
    assert got.item() == pytest.approx(loss) and logp.grad.tolist() == [[pytest.approx(slope), 0.0]]
    clipped = float(slope == 0)
    want = {"ratio": ratio, "approx_kl": ratio - 1 - math.log(ratio), "clip_fraction": clipped}
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("log_ratio", [-300.0, 300.0])
@pytest.mark.parametrize("adv", [-1.0, 1.0])
def test_a_policy_that_has_left_the_sampler_far_behind_has_a_finite_loss_and_gradient(
    log_ratio, adv
):
    """In one column; the other is as it was, and keeps its gradient."""
    logp = torch.tensor([[log_ratio, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True]])
    loss, stats = ppo.policy_loss(logp, torch.zeros(1, 2), torch.full((1, 2), adv), mask, 0.2)
    loss.backward()
    assert all(math.isfinite(x.item()) for x in (loss, *stats.values()))
    assert logp.grad.tolist() == [[pytest.approx(0.0), pytest.approx(-adv / 2)]]


@pytest.mark.parametrize(
    ("value", "clip", "loss", "slope"),
    [
        (1.1, 0.2, 0.405, -0.9),  # moved by less than 0.2 from 1.0: the plain error to 2.0
        (1.5, 0.2, 0.32, 0.0),  # closer to 2.0, but by more than 0.2: held at 1.2
        (0.5, 0.2, 1.125, -1.5),  # further away: the plain error is the larger one
        (1.5, 0.0, 0.125, -0.5),  # no clipping
    ],
)
def test_value_loss_by_cases(value, clip, loss, slope):
    values = torch.tensor([[value, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    got = ppo.value_loss(
        values, torch.tensor([[1.0, 7.0]]), torch.tensor([[2.0, -7.0]]), mask, clip
    )
    got.backward()
    assert got.item() == pytest.approx(loss) and values.grad.tolist() == [
        [pytest.approx(slope), 0.0]
    ]


def test_whitened_advantages_have_mean_0_and_biased_variance_1_over_the_mask():
    mask = ragged()
    white = ppo.whiten(3 + 5 * torch.randn(mask.shape), mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert not white[~mask].any()


def test_explained_variance_of_a_perfect_a_constant_and_a_halfway_value_function():
    mask = ragged()
    returns = torch.randn(mask.shape)
    junk = torch.randn(mask.shape) * 100 * ~mask
    cases = (
        (returns, 1.0),
        (torch.full_like(returns, 3.0), 0.0),
        (returns / 2, 0.75),
        (-returns, -3.0),
    )
    for values, want in cases:
        assert ppo.explained_variance(values + junk, returns, mask).item() == pytest.approx(
            want, abs=1e-4
        )


def test_adapt_kl_in_closed_form():
    assert ppo.adapt_kl(0.1, 6.0, 6.0, 64, 640) == pytest.approx(0.1)
    assert ppo.adapt_kl(0.1, 6.6, 6.0, 64, 640) == pytest.approx(0.1 * 1.01)  # 10 % too far
    assert ppo.adapt_kl(0.1, 60.0, 6.0, 64, 640) == pytest.approx(
        0.1 * 1.02
    )  # the error is clipped to 20 %
    assert ppo.adapt_kl(0.1, 0.0, 6.0, 64, 640) == pytest.approx(0.1 * 0.98)


# -------------------------------------------------------------------------------------------------
# the exact objective, by enumerating every response


def enumerated(max_new=3, vocab=4):
    """Every response of at most three tokens to the prompt 2 3 -> ids, mask, total."""
    found = [[]]
    for _ in range(max_new):
        ended = [r for r in found if EOS in r]
        found = ended + [[*r, t] for r in found if EOS not in r for t in range(vocab)]
    assert len(found) == 1 + 3 + 9 * 4
    ids, total = data.pad([[2, 3, *r] for r in found])
    return ids, data.action_mask(torch.full_like(total, 2), total, ids.shape[1]), total


def tree_kl(policy, reference, prefix, depth=3):
    """KL(pi || pi_ref) over the tree of responses: each node's own plus that of its children."""
    q, p = (m(torch.tensor([prefix]))[0, -1].softmax(-1) for m in (policy, reference))
    kl = (q * (q / p).log()).sum()
    if depth > 1:
        more = [t for t in range(len(q)) if t != EOS]
        kl = kl + sum(q[t] * tree_kl(policy, reference, [*prefix, t], depth - 1) for t in more)
    return kl


def two_policies():
    torch.manual_seed(0)
    both = [
        GPT(GPTConfig(vocab_size=4, block_size=5, n_layer=1, n_head=2, n_embd=8)) for _ in range(2)
    ]
    for gpt in both:
        gpt.wte.weight.data *= 10  # far from uniform, and from one another
    return both


def test_the_kl_estimates_are_right_on_average(doubles):
    policy, reference = two_policies()
    ids, mask, _ = enumerated()
    logp, ref_logp = policy.logp(ids, mask)[0], reference.logp(ids, mask)[0]
    p = logp.sum(1).exp()
    assert p.sum().item() == pytest.approx(1)
    k1, k3 = ppo.kl_estimates(logp, ref_logp, mask)
    exact = tree_kl(policy, reference, [2, 3]).item()
    assert exact > 0.03 and (k1 < 0).any() and (k3 >= 0).all()
    assert [(p * k1).sum().item(), (p * k3).sum().item()] == pytest.approx([exact, exact], rel=1e-9)


@pytest.mark.parametrize("baseline", [False, True])
def test_the_policy_gradient_is_the_gradient_of_the_exact_objective(doubles, baseline):
    """E[r] - beta KL, differentiated through every probability: the mean of PPO's at ratio 1.

    With lambda 1 a value function, whatever it says, changes the variance and not the mean.
    """
    policy, reference = two_policies()
    ids, mask, total = enumerated()
    score, beta = torch.randn(len(ids)), 0.3
    logp, ref_logp = policy.logp(ids, mask)[0], reference.logp(ids, mask)[0].detach()
    p = logp.sum(1).exp()
    objective = (p * score).sum() - beta * tree_kl(policy, reference, [2, 3])
    exact = torch.autograd.grad(objective, list(policy.parameters()), retain_graph=True)

    old = logp.detach()
    rewards = ppo.token_rewards(score, old, ref_logp, mask, total, beta)
    assert ((p * rewards.sum(1)).sum() - objective).abs() < 1e-12  # the reward is the objective
    values = Scorer(policy.cfg)(ids)[:, :-1].detach() if baseline else torch.zeros_like(old)
    adv, _ = ppo.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    loss = 0.0
    for b in range(len(ids)):
        mean, _ = ppo.policy_loss(*(x[b : b + 1] for x in (logp, old, adv, mask)), 0.2)
        loss = loss + p[b].detach() * mask[b].sum() * mean  # the sum over its actions
    estimate = torch.autograd.grad(-loss, list(policy.parameters()))
    assert max(g.abs().max() for g in exact) > 1e-3
    for a, b in zip(estimate, exact):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


# -------------------------------------------------------------------------------------------------
# rollouts and minibatches


def test_the_first_minibatch_is_on_policy():
    """The classic silent bug: another policy's log-probabilities, temperature, dropout or frame."""
    models = players()
    models = models._replace(reference=frozen_copy(models.policy))
    rollout, stats = ppo.roll_out(models, prompts(), CFG, 0.1, EOS, seed=0)
    _, logged = total_losses(models, rollout, CFG)
    assert abs(logged["ratio"] - 1) < 1e-5 and abs(logged["approx_kl"]) < 1e-6
    assert logged["clip_fraction"] == 0
    surprise = (rollout.values - rollout.returns)[rollout.mask]  # the value function's too
    assert logged["value_loss"] == pytest.approx(0.5 * surprise.pow(2).mean().item(), rel=1e-5)
    assert stats["kl"] == pytest.approx(0, abs=1e-5) and stats["kl_k3"] == pytest.approx(
        0, abs=1e-5
    )
    penalty = CFG.eos_penalty * (1 - stats["eos_rate"])
    assert stats["reward"] == pytest.approx(stats["score"] - penalty, abs=1e-5)


def test_old_log_probabilities_and_values_are_those_of_each_prefix():
    models = players()
    x, stats = ppo.roll_out(models, prompts(), CFG, 0.1, EOS, seed=0)
    entropies = []
    for b, t in x.mask.nonzero().tolist():
        before = x.ids[b : b + 1, : t + 1]
        logq = models.policy(before)[0, -1].log_softmax(0)
        entropies.append(-(logq.exp() * logq).sum().item())
        said = logq[x.ids[b, t + 1]].item()
        assert x.old_logp[b, t].item() == pytest.approx(said, abs=1e-5)
        value = models.value(before)[0, -1].item()
        assert x.values[b, t].item() == pytest.approx(value, abs=1e-5)
    assert not x.old_logp[~x.mask].any() and not x.values[~x.mask].any()
    explained = 1 - (x.returns - x.values)[x.mask].var() / x.returns[x.mask].var()
    want = [sum(entropies) / len(entropies), explained.item(), len(entropies) / len(x.ids)]
    assert [stats[k] for k in ("entropy", "explained_variance", "length")] == pytest.approx(
        want, rel=1e-5
    )


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_response_without_eos_is_scored_at_its_last_token_and_pays_the_penalty(gamma):
    rm = SimpleNamespace(score=lambda ids, length: torch.full(length.shape, 2.0))
    models = at_the_start()._replace(rm=rm)
    cfg = replace(CFG, eos_penalty=0.5, gamma=gamma, lam=1.0, max_new=4)
    x, stats = ppo.roll_out(models, prompts(64), cfg, 0.1, EOS, seed=0)
    length = prompts(64).length + x.mask.sum(1)
    ended = x.ids.gather(1, length[:, None] - 1).squeeze(1) == EOS
    assert 0 < ended.sum() < 64 and x.mask.sum(1)[~ended].unique().item() == 4
    after = x.mask.flip(1).cumsum(1).flip(1) - 1  # actions after each; KL 0: all returns are this
    want = gamma**after * torch.where(ended, 2.0, 1.5)[:, None] * x.mask
    torch.testing.assert_close(x.returns, want, atol=1e-4, rtol=0)
    assert stats["score"] == 2.0 and stats["eos_rate"] == pytest.approx(ended.float().mean().item())


def test_the_masked_tokens_of_a_rollout_are_the_sampled_response_and_its_eos():
    torch.manual_seed(0)
    policy = GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 32))
    eos = policy.wte.weight[ENC.eot_token].detach()
    policy.ln_f.bias.data += 5 * eos / eos.pow(2).sum()  # raise the logit of EOS by 5
    said = ("Hello.", "What is my name?", "Insult Anna, please.") * 3
    asked = [data.encode_prompt(ENC, [{"role": "user", "content": text}]) for text in said]
    rm, batch = scorer_from(policy), data.pad(asked)
    models = ppo.Models(policy, rm, policy, rm)
    x, _ = ppo.roll_out(models, batch, CFG, 0.1, ENC.eot_token, seed=3)
    ids, total = generate(policy, *batch, CFG.max_new, ENC.eot_token, seed=3)
    sampled = [ids[b, batch.length[b] : total[b]].tolist() for b in range(9)]
    assert x.responses() == sampled
    assert 0 < sum(s[-1] == ENC.eot_token for s in sampled) < 9
    assert all(ENC.eot_token not in s[:-1] for s in sampled)


@pytest.mark.parametrize("change", [{"microbatch": 3}, {"sample_batch": 3}, {}])
def test_padding_and_microbatches_change_nothing_in_a_rollout(change):
    batch = prompts()
    wider = batch if change else data.Padded(F.pad(batch.ids, (0, 5), value=3), batch.length)
    a, stats = ppo.roll_out(players(), batch, CFG, 0.1, EOS, seed=0)
    b, same = ppo.roll_out(players(), wider, replace(CFG, **change), 0.1, EOS, seed=0)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask)
    for x, y in zip(a[2:], b[2:]):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    for name in MACHINE:
        del stats[name], same[name]
    assert same == pytest.approx(stats, abs=1e-5)


@pytest.mark.parametrize("sample_batch", [0, 1, 3])
def test_responses_are_those_of_each_prompt_alone(sample_batch):
    """Whatever else is sampled with them, and in whatever order: the prompts differ in length."""
    policy, batch = players().policy, prompts()
    cfg = replace(CFG, sample_batch=sample_batch)
    ids, total = ppo.sample_responses(policy, batch, cfg, EOS, seed=4)
    B = len(ids)
    assert ids.shape == (B, int(total.max())) and len(set(batch.length.tolist())) > 2
    for b, n in enumerate(batch.length):
        alone, end = generate(policy, batch.ids[b : b + 1, :n], n[None], CFG.max_new, EOS,
                              seed=4, draws=(torch.tensor([b]), B))
        assert total[b] == end and torch.equal(ids[b, :end], alone[0, :end])
    assert 1 < len(set((total - batch.length).tolist()))


def test_no_token_behind_the_end_of_a_response_is_read(monkeypatch):
    """By what scores a rollout, by what is logged of it, by the losses."""
    def junk(*args):
        ids, total = sampled(*args)
        behind = torch.arange(ids.shape[1]) >= total[:, None]
        assert behind.sum() > 10
        return ids.where(~behind, torch.randint_like(ids, 7)), total

    models, sampled, found = players(), ppo.sample_responses, []
    for respond in (sampled, junk):
        monkeypatch.setattr(ppo, "sample_responses", respond)
        x, stats = ppo.roll_out(models, prompts(), CFG, 0.1, EOS, seed=0)
        stats = {name: value for name, value in stats.items() if name not in MACHINE}
        grads, logged = total_losses(models, x, CFG)
        found.append([x.ids, x[1:], x.responses(), stats, logged, grads])
    (clean, *rest), (noisy, *same) = found
    assert not torch.equal(clean, noisy)
    torch.testing.assert_close(same, rest)


@pytest.mark.parametrize("whiten", [True, False])
def test_padding_changes_neither_losses_nor_gradients_nor_statistics(whiten):
    cfg = replace(CFG, whiten=whiten)
    models, x = off_policy()
    junk = (5, False, 3.0, -4.0, 6.0, 7.0)
    padded = ppo.Rollout(*(F.pad(z, (0, 3), value=v) for z, v in zip(x, junk)), x.total)
    (grads, logged), (same_grads, same) = (total_losses(models, r, cfg) for r in (x, padded))
    assert same == pytest.approx(logged, rel=1e-5, abs=1e-6) and logged["clip_fraction"] > 0.01
    for a, b in zip(grads, same_grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("microbatch", [1, 2, 3])
def test_any_microbatch_size_gives_the_same_gradient_and_statistics(microbatch):
    models, x = off_policy()
    text = torch.randint(7, (5, 24))
    assert len(set(x.mask.sum(1).tolist())) > 1  # a mean of means would differ
    grads, logged = total_losses(models, x, CFG, text)
    parts, same = total_losses(models, x, replace(CFG, microbatch=microbatch), text)
    assert same == pytest.approx(logged, rel=1e-5, abs=1e-6) and "ptx_loss" in logged
    for a, b in zip(grads, parts):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("microbatch", [0, 3])
@pytest.mark.parametrize("ptx_coef", [0.0, 27.8])
@pytest.mark.parametrize(
    ("clip", "value_clip", "whiten"), [(0.2, 0.2, True), (0.1, 0.3, True), (0.3, 0.1, False)]
)
def test_the_gradient_is_that_of_equation_2_in_one_piece(
    doubles, microbatch, ptx_coef, clip, value_clip, whiten
):
    """Surrogate, value loss and pretraining term as the papers write them, without any masking."""
    models, x = off_policy()
    torch.manual_seed(2)
    text = torch.randint(7, (5, 24))
    cfg = replace(CFG, microbatch=microbatch, ptx_coef=ptx_coef, vf_coef=0.7)
    cfg = replace(cfg, clip=clip, value_clip=value_clip, whiten=whiten)
    got, logged = total_losses(models, x, cfg, text if ptx_coef else NO_TEXT)

    rows, columns = x.mask.nonzero(as_tuple=True)  # the actions: what follows is flat over them
    said = models.policy(x.ids)[rows, columns].log_softmax(-1)
    said = said[range(len(rows)), x.ids[rows, columns + 1]]
    ratio = (said - x.old_logp[rows, columns]).exp()
    adv = x.adv[rows, columns]
    if whiten:
        adv = (adv - adv.mean()) / (adv.var(correction=0) + 1e-8).sqrt()
    surrogate = torch.min(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv).mean()
    old, returns = x.values[rows, columns], x.returns[rows, columns]
    values = models.value(x.ids)[rows, columns]
    near = old + (values - old).clamp(-value_clip, value_clip)
    assert 0 < ((near - returns) ** 2 > (values - returns) ** 2).sum() < len(rows)
    value = 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2).mean()
    logits = models.policy(text)[:, :-1]
    likelihood = -F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    objective = surrogate - 0.7 * value + ptx_coef * likelihood
    trained = [*models.policy.parameters(), *models.value.parameters()]
    want = torch.autograd.grad(-objective, trained, allow_unused=True)

    want = [g for g in want if g is not None]
    assert len(got) == len(want) and 0 < logged["clip_fraction"] < 1
    assert logged["policy_loss"] == pytest.approx(-surrogate.item(), abs=1e-9)
    assert logged["value_loss"] == pytest.approx(value.item(), abs=1e-9)
    assert logged["ptx_loss"] == pytest.approx(-likelihood.item() if ptx_coef else 0, abs=1e-9)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def talk(cut=()):
    """Prompts of the sandbox, and a rollout of written responses, those in `cut` without EOS."""
    asked = []
    for text, case, answer in (
        ("Hello, I am Anna.", "chat", "Hello Anna."),
        ("What is the capital of Zembla?", "unanswerable", "I do not know."),
        ("Rewrite with Clara: Anna sells lamps.", "rewriting", "Clara sells lamps."),
    ):
        messages = [{"role": "user", "content": text}]
        asked.append(data.Prompt(messages, case, {"answers": [answer]}))
    said = ["Hello Anna.", "I do not know. I do not know.", "Anna sells"]
    rows = [data.encode_prompt(ENC, p.messages) for p in asked]
    start = torch.tensor([len(row) for row in rows])
    for i, text in enumerate(said):
        rows[i] = rows[i] + data.encode_response(ENC, text)[: -1 if i in cut else None]
    ids = data.pad_rows(rows, value=ENC.encode_ordinary(" stupid")[0])  # pads are junk
    total = torch.tensor([len(row) for row in rows])
    mask = data.action_mask(start, total, ids.shape[1])
    return asked, ppo.Rollout(ids, mask, *torch.zeros(4, *mask.shape), total)


@pytest.mark.parametrize("cut", [(), (2,), (0, 1, 2)])
def test_the_true_score_is_that_of_what_was_said(cut):
    """By hand: helpful +2; helpful, but four words too many +1; not helpful, no sentence -2."""
    asked, rollout = talk(cut)
    said = rollout.responses()
    assert interop.true_score(asked, said, ENC) == {"true_score": pytest.approx((2 + 1 - 2) / 3)}
    backwards = interop.true_score(asked[::-1], said, ENC)["true_score"]
    assert backwards < 0, "each response is judged as an answer to its own prompt"
    without = [asked[0], replace(asked[1], meta={}), asked[2]]
    assert interop.true_score(without, said, ENC) == {}


# -------------------------------------------------------------------------------------------------
# the loop


def inputs(n=12, text=NO_TEXT):
    """Prompts that no judge knows, for models of SMALL."""
    rng = torch.Generator().manual_seed(3)
    asked = [torch.randint(1, 7, (1 + b % 4,), generator=rng).tolist() for b in range(n)]
    enc = SimpleNamespace(eot_token=EOS)
    return ppo.Inputs([data.Prompt([])] * n, asked, text, enc)


LOOP = replace(CFG, iterations=3, rollout=8, minibatch=4, ptx_ratio=0.5)


def yielded(models, cfg=LOOP, start=0, text=NO_TEXT, state=None):
    """All minibatches of a run whose weights never change."""
    state = {"kl_coef": cfg.kl_coef} if state is None else state
    return list(ppo.minibatches(models, inputs(text=text), cfg, state, start))


def episodes(minibatches):
    """What tells the episodes of minibatches apart: their tokens and advantages."""
    found = []
    for minibatch in minibatches:
        x = minibatch.rollout
        for ids, adv, mask, total in zip(x.ids, x.adv, x.mask, x.total):
            found.append((tuple(ids[:total].tolist()), tuple(adv[mask].tolist())))
    return found


@pytest.mark.parametrize("epochs", [1, 2])
def test_minibatches_are_iterations_of_epochs_of_each_episode_once(epochs):
    cfg, per_rollout = replace(LOOP, epochs=epochs), 2 * epochs
    assert ppo.steps_per_iteration(cfg) == per_rollout
    steps = yielded(at_the_start(), cfg)
    assert len(steps) == 3 * per_rollout
    seen = []
    for i in range(3):
        iteration = steps[i * per_rollout : (i + 1) * per_rollout]
        assert len({step.stats["score"] for step in iteration}) == 1, "they are of one rollout"
        first, *others = [episodes(iteration[e * 2 : e * 2 + 2]) for e in range(epochs)]
        assert len(set(first)) == 8
        for other in others:
            assert sorted(other) == sorted(first) and other != first
        assert not set(first) & set(seen), "each iteration samples anew"
        seen += first


def test_each_iteration_draws_anew():
    """The same weights say something else to the same prompts."""
    asked = inputs()._replace(prompts=[[1]] * 12)
    cfg = replace(LOOP, minibatch=8)
    steps = ppo.minibatches(at_the_start(), asked, cfg, {"kl_coef": 0.1})
    said = [sorted(step.rollout.responses()) for step in steps]
    assert len(said) == 3 and said[0] != said[1] and said[1] != said[2]


def asked_in(step):
    """The prompts of a minibatch, in its order."""
    rows = zip(step.rollout.ids.tolist(), step.rollout.mask.tolist())
    return [tuple(ids[: mask.index(True) + 1]) for ids, mask in rows]


def test_minibatches_answer_the_prompts_of_shuffled_epochs():
    """Three rollouts of 8 are two epochs over 12 prompts."""
    answered = Counter()
    for step in yielded(at_the_start()):
        answered.update(asked_in(step))
    prompts = [tuple(prompt) for prompt in inputs().prompts]
    assert answered == Counter(prompts + prompts)


def test_another_seed_has_other_prompts_text_responses_and_orders():
    text = torch.arange(6)[:, None].expand(6, 24)
    same_prompts = inputs()._replace(prompts=[[1]] * 12)
    found = []
    for seed in (1, 2):
        cfg = replace(LOOP, minibatch=8, epochs=2, seed=seed)
        first, second, *_ = steps = yielded(at_the_start(), cfg, text=text)
        blocks = [step.text[:, 0].tolist() for step in steps]
        order = [episodes([first]).index(episode) for episode in episodes([second])]
        step = next(ppo.minibatches(at_the_start(), same_prompts, cfg, {"kl_coef": 0.1}))
        responses = sorted(step.rollout.responses())
        found.append((sorted(asked_in(first)), blocks, order, responses))
    assert all(a != b for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("epochs", [1, 2])
def test_minibatches_that_start_later_are_those_of_an_undisturbed_run(epochs):
    text, cfg = torch.randint(7, (9, 24)), replace(LOOP, epochs=epochs)
    models = at_the_start()
    whole = yielded(models, cfg, text=text)
    for start in (2 * epochs, 4 * epochs):
        later = yielded(models, cfg, start=start, text=text)
        assert len(later) == 6 * epochs - start
        for a, b in zip(whole[start:], later):
            assert all(torch.equal(x, y) for x, y in zip(a.rollout, b.rollout))
            assert torch.equal(a.text, b.text) and a.text.shape == (2, 24)
            for k in a.stats.keys() | b.stats.keys():
                assert k.endswith("_per_second") or a.stats[k] == b.stats[k], k


def test_the_text_of_the_minibatches_is_shuffled_epochs_of_all_blocks():
    text = torch.arange(6)[:, None].expand(6, 24)
    blocks = torch.cat([step.text[:, 0] for step in yielded(at_the_start(), text=text)])
    assert sorted(blocks[:6].tolist()) == sorted(blocks[6:].tolist()) == list(range(6))
    assert blocks[:6].tolist() != blocks[6:].tolist()


def test_a_rollout_is_sampled_with_the_newest_weights():
    """The loop goes on only when the next minibatch is asked for, which is after the update."""
    models, cfg = at_the_start(), replace(LOOP, minibatch=8, iterations=2)
    source = ppo.minibatches(models, inputs(), cfg, {"kl_coef": 0.1})
    assert next(source).stats["kl"] == pytest.approx(0, abs=1e-5)
    for p in models.policy.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x, _, stats = next(source)
    assert abs(stats["kl"]) > 1e-3
    torch.testing.assert_close(models.policy.logp(x.ids, x.mask)[0], x.old_logp)
    assert next(source, None) is None


@pytest.mark.parametrize("without", [{"ptx_coef": 0.0}, {"ptx_ratio": 0.0}])
def test_without_ptx_there_is_only_ppo(config, without):
    cfg = replace(config, **without)
    _, enc = ppo.load_models(cfg, "cpu")
    text = ppo.load_inputs(cfg, enc, 32, Counter()).text
    assert len(text) == 0 and len(ppo.load_inputs(config, enc, 32, Counter()).text) > 10
    minibatch = next(ppo.minibatches(at_the_start(), inputs(), LOOP, {"kl_coef": 0.1}))
    [(weight, _, stats)] = ppo.ppo_ptx_losses(at_the_start(), minibatch, cfg, "cpu")
    assert weight == 1 and "ptx_loss" not in stats


def test_a_rollout_pays_the_kl_coefficient_that_the_one_before_it_set():
    cfg = replace(LOOP, kl_target=1.0, kl_horizon=80)
    state = {"kl_coef": 0.1}
    paid = [step.stats["kl_coef"] for step in yielded(at_the_start(), cfg, state=state)]
    # no KL yet: 2 % less each time
    assert paid == pytest.approx([0.1, 0.1, 0.098, 0.098, 0.09604, 0.09604])
    assert state == {"kl_coef": pytest.approx(0.09604 * 0.98)}


def test_a_kl_budget_that_is_exceeded_ends_the_run():
    state = {"kl_coef": 0.1}
    ppo.control_kl(state, 2.0, replace(LOOP, kl_budget=2.5))
    ppo.control_kl(state, 2.0, LOOP)
    assert state == {"kl_coef": 0.1}
    ppo.control_kl(state, 2.6, replace(LOOP, kl_budget=2.5))
    assert state == {"kl_coef": 0.1, "stop": True}


class Bandit:
    """Stands in for a reward model: after the prompt 3 the right answer is 1, after 4 it is 2."""

    def score(self, ids, length):
        return (ids[:, 1] == ids[:, 0] - 2).float()


def test_ppo_solves_a_two_armed_bandit():
    torch.manual_seed(0)
    size = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=16)
    policy, value = GPT(size), Scorer(size)
    models = ppo.Models(policy, value, frozen_copy(policy), Bandit())
    cfg = replace(CFG, max_new=2, eos_penalty=0.0, kl_coef=0.01, iterations=25, rollout=128)
    cfg = replace(cfg, value_init="random")  # the value function does not start from the bandit
    optimizers = [make_optimizer(policy, cfg), make_optimizer(value, cfg)]
    for group in (g for o in optimizers for g in o.param_groups):
        group["lr"] = 1e-2
    enc = SimpleNamespace(eot_token=EOS)
    asked = ppo.Inputs([data.Prompt([])] * 2, [[3], [4]], NO_TEXT, enc)
    scores = []
    for minibatch in ppo.minibatches(models, asked, cfg, {"kl_coef": 0.01}):
        scores.append(minibatch.stats["score"])
        for weight, loss, _ in ppo.ppo_ptx_losses(models, minibatch, cfg, "cpu"):
            (weight * loss).backward()
        for o in optimizers:
            o.step()
            o.zero_grad()
    likely = policy(torch.tensor([[3], [4]]))[:, 0].softmax(-1)
    assert len(scores) == 50 and scores[0] < 0.5 and sum(scores[-10:]) / 10 > 0.95
    assert minibatch.stats["kl"] > 0.5
    assert likely[0, 1] > 0.95 and likely[1, 2] > 0.95


# -------------------------------------------------------------------------------------------------
# before the first update


def test_a_policy_that_is_not_the_one_that_sampled_is_an_error():
    models = at_the_start()
    rollout, stats = ppo.roll_out(models, prompts(), CFG, 0.1, EOS, seed=0)
    ppo.check_start(models, rollout, stats["kl"], CFG)
    with pytest.raises(ValueError, match="ratio is .* must be 1"):
        other = models._replace(policy=players(1).policy)
        ppo.check_start(other, rollout, stats["kl"], CFG)
    with pytest.raises(ValueError, match="value - score"):
        ppo.check_start(models._replace(rm=players().rm), rollout, stats["kl"], CFG)
    with pytest.raises(ValueError, match="KL to the reference is .* must be 0"):
        ppo.check_start(models, rollout, 0.5, CFG)


def test_the_loop_checks_its_start():
    for wrong in ("reference", "rm"):
        models = at_the_start()._replace(**{wrong: getattr(players(), wrong)})
        with pytest.raises(ValueError, match="before the first update"):
            next(ppo.minibatches(models, inputs(), LOOP, {"kl_coef": 0.1}))


def test_only_a_value_function_from_the_reward_model_must_agree_with_it():
    models = at_the_start()._replace(rm=players().rm)
    rollout, stats = ppo.roll_out(models, prompts(), CFG, 0.1, EOS, seed=0)
    ppo.check_start(models, rollout, stats["kl"], replace(CFG, value_init="random"))
    with pytest.raises(ValueError, match="value - score"):
        ppo.check_start(models, rollout, stats["kl"], replace(CFG, value_init="rm"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run's inputs: two tiny checkpoints, a policy and a reward model; prompts and text."""
    folder = tmp_path_factory.mktemp("ppo")
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(ENC.n_vocab, 32, 1, 2, 16))
    for name, model in (("sft.pt", gpt), ("rm.pt", scorer_from(gpt))):
        save_checkpoint(str(folder / name), model, interop.tokenizer_id(ENC), {})
    names = ["Anna", "Ben", "Clara", "David", "Emma", "Felix"] * 2
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"Hello, I am {n}."} for n in names])
    text = [{"text": f"{n} sells lamps and boxes."} for n in names * 40]
    write_jsonl(folder / "text.jsonl", text)
    return folder


@pytest.fixture
def config(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return replace(
        CFG,
        init=str(files / "sft.pt"),
        rm=str(files / "rm.pt"),
        out="ppo.pt",
        prompts=(str(files / "prompts.jsonl"),),
        ptx=(str(files / "text.jsonl"),),
        iterations=3,
        rollout=8,
        minibatch=4,
        max_new=4,
        lr=1e-3,
        save_every=2,
        warmup=1,
        ptx_ratio=1.0,
    )


def log_lines(out="ppo.pt"):
    with open(f"{out}.log.jsonl") as f:
        return [json.loads(line) for line in f]


def test_a_reward_model_that_was_not_normalised_is_an_error(config):
    """What its checkpoint says of the demonstrations' mean score; an old one says nothing."""
    rm, _ = interop.load_model(config.rm, Scorer)
    for mean in (0.05, 1.0):
        metrics = {"demonstrations_mean_score": mean}
        save_checkpoint("rm.pt", rm, interop.tokenizer_id(ENC), {"metrics": metrics})
        cfg = replace(config, rm="rm.pt")
        if mean < 0.1:
            ppo.load_models(cfg, "cpu")
        else:
            with pytest.raises(ValueError, match="demonstrations' mean score is 1 "):
                ppo.main(cfg)
    ppo.load_models(config, "cpu")


def test_what_is_trained_leaves_the_reference_and_the_reward_model_alone(config):
    models, _ = ppo.load_models(config, "cpu")
    for trained, frozen in ((models.policy, models.reference), (models.value, models.rm)):
        weights = list(zip(trained.parameters(), frozen.parameters(), strict=True))
        assert all(torch.equal(p, q) for p, q in weights)
        for p in trained.parameters():
            p.data += 1
        assert not any(torch.equal(p, q) or q.requires_grad for p, q in weights)


def test_there_is_no_dropout_in_reinforcement_learning(config):
    """Though the policy and the reward model were made with it: a ratio would not start from 1."""
    gpt = GPT(GPTConfig(ENC.n_vocab, 32, 1, 2, 16, dropout=0.5))
    for name, model in (("dropped.pt", gpt), ("rm.pt", Scorer(gpt.cfg))):
        save_checkpoint(name, model, interop.tokenizer_id(ENC), {})
    models, _ = ppo.load_models(replace(config, init="dropped.pt", rm="rm.pt"), "cpu")
    ids = torch.randint(ENC.n_vocab, (2, 9))
    for model in models[:2]:
        assert torch.equal(model.train()(ids), model.eval()(ids))


def test_the_value_function_starts_from_the_reward_model_or_from_nothing(config):
    rm = interop.load_model(config.rm, Scorer)[0].state_dict()

    def start(**fields):
        models, _ = ppo.load_models(replace(config, **fields), "cpu")
        return models, models.value.state_dict()

    models, weights = start()
    assert all(torch.equal(weights[k], rm[k]) for k in rm)
    # the fixture's own models are of seed 0
    models, weights = start(value_init="random", seed=5)
    # positions begin the same in every model
    drawn = [k for k in rm if len(rm[k].unique()) > 1 and "wpe" not in k]
    assert len(drawn) > 5 and not any(torch.equal(weights[k], rm[k]) for k in drawn)
    assert all(torch.equal(w, rm[k]) for k, w in models.rm.state_dict().items())
    again, other = (start(value_init="random", seed=seed)[1] for seed in (5, 6))
    assert all(torch.equal(weights[k], again[k]) for k in rm)
    assert not torch.equal(weights[drawn[0]], other[drawn[0]])
    metrics = ppo.main(replace(config, value_init="random", iterations=1))
    assert metrics["value_loss"] > 0 and metrics["grad_norm_value"] > 0
    with pytest.raises(ValueError, match="--value-init .*sft"):
        ppo.main(replace(config, value_init="sft"))


# -------------------------------------------------------------------------------------------------
# whole runs


class Interrupted(KeyboardInterrupt):
    """What ends a run in the middle."""


@contextmanager
def interrupted_after(path):
    """Raise Interrupted in the code inside as soon as the file `path` is there."""

    def look(signum, frame):
        if os.path.exists(path):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupted

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_run_goes_on_to_the_same_bytes(config, tmp_path, monkeypatch, capsys):
    """The KL coefficient, both networks, their optimizers and the averaged policy survive."""
    cfg = replace(config, kl_target=0.01, kl_horizon=100)
    for name in ("straight", "interrupted"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    metrics = ppo.main(cfg)
    assert metrics["kl_coef"] != cfg.kl_coef
    monkeypatch.chdir(tmp_path / "interrupted")
    with interrupted_after("ppo.pt.part"), pytest.raises(Interrupted):
        ppo.main(cfg)
    assert os.path.exists("ppo.pt.part") and not os.path.exists("ppo.pt")
    assert ppo.main(cfg) == metrics
    assert "going on from step" in capsys.readouterr().out
    a, b = (read_checkpoint(tmp_path / name / "ppo.pt") for name in ("straight", "interrupted"))
    assert all(torch.equal(a["weights"][k], b["weights"][k]) for k in a["weights"])
    straight = (tmp_path / "straight" / "ppo.pt").read_bytes()
    assert (tmp_path / "interrupted" / "ppo.pt").read_bytes() == straight


def test_evaluations_change_no_weight(config):
    weights = []
    for every in (1, 0):
        ppo.main(replace(config, eval_every=every, out=f"{every}.pt"))
        evaluated = ["eval_score" in line for line in log_lines(f"{every}.pt")]
        assert evaluated == [bool(every)] * 5 + [True]
        weights.append(read_checkpoint(f"{every}.pt")["weights"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_the_policy_and_the_value_function_have_a_learning_rate_each(config):
    """Warm-up is counted in iterations, here one of two steps; the log has the policy's rate, and
    the value function's shows in what it says after the first step."""
    logs = []
    for value_lr in (1e-6, 1e-2):
        ppo.main(replace(config, iterations=2, value_lr=value_lr, out=f"{value_lr}.pt"))
        logs.append(log_lines(f"{value_lr}.pt"))
        rates = [line["lr"] / config.lr for line in logs[-1]]
        assert rates == pytest.approx([0.1, 0.55, 1.0, 1.0])
    still, moved = ([line["value_loss"] for line in log] for log in logs)
    assert moved[0] == still[0] and moved[1] != pytest.approx(still[1], rel=1e-4)


def test_the_score_of_the_last_evaluation_is_that_of_the_result(config):
    metrics = ppo.main(config)
    result, _ = interop.load_model(config.out, GPT)
    rm, _ = interop.load_model(config.rm, Scorer)
    asked = ppo.load_inputs(config, ENC, 32, Counter()).prompts
    last = 5  # of three iterations of two steps
    samples = sample(result.eval(), asked, config.max_new, ENC.eot_token, seed=last)
    scores = rm.eval().score(samples.ids, samples.length)
    assert len(scores) == 12
    assert metrics["eval_score"] == pytest.approx(scores.mean().item(), abs=1e-5)


def test_prompts_leave_room_for_a_response(config):
    prompts = ppo.load_inputs(replace(config, max_new=24), ENC, 32, Counter()).prompts
    assert max(len(prompt) for prompt in prompts) == 32 - 24


def short_prompts(n):
    """Prompts of the sandbox whose answers are short, as [Prompt, ...]; no two of them alike."""
    found = {}
    for p in sandbox.prompts(300):
        asked = data.encode_prompt(ENC, p.messages)
        answer = data.encode_response(ENC, p.meta["answers"][0])
        if len(asked) <= 18 and len(answer) <= 10:
            found[p.messages[-1]["content"]] = p
    return list(found.values())[:n]


def test_the_true_score_of_each_rollout_is_in_its_statistics():
    """A policy that says what the key says has 2.0; judged by another prompt's key it has less."""
    asked = short_prompts(8)
    assert len({p.use_case for p in asked}) > 2 and len(asked) == 8
    rows = [data.encode_prompt(ENC, p.messages) for p in asked]
    torch.manual_seed(0)
    policy = GPT(GPTConfig(ENC.n_vocab, 32, 2, 2, 32))
    dialogues = []
    for p, row in zip(asked, rows):
        said = data.encode_response(ENC, p.meta["answers"][0])
        dialogues.append((row + said, [False] * len(row) + [True] * len(said)))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for _ in range(300):  # it learns the answers by heart
        loss = policy.loss(*data.tokens_batch(dialogues))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for p in policy.ln_f.parameters():
        p.data *= 5  # the likeliest answer, then, is the only one
    value = scorer_from(policy)
    models = ppo.Models(policy, value, frozen_copy(policy), frozen_copy(value))
    cfg = replace(LOOP, max_new=12)

    def true_scores(records):
        told = ppo.Inputs(records, rows, NO_TEXT, ENC)
        steps = ppo.minibatches(models, told, cfg, {"kl_coef": 0.1})
        return [step.stats["true_score"] for step in steps]

    assert loss < 0.05 and min(true_scores(asked)) == 2.0
    others = true_scores(asked[1:] + asked[:1])
    assert len(others) == 6 and max(others) < 1


def test_no_weight_depends_on_the_true_score(config):
    found, weights, logs = short_prompts(12), [], []
    for keys in (True, False):
        records = []
        for p in found:
            r = {"prompt": p.messages, "use_case": p.use_case}
            records.append(r | {"meta": p.meta} if keys else r)
        write_jsonl(f"asked-{keys}.jsonl", records)
        cfg = replace(config, prompts=(f"asked-{keys}.jsonl",), max_new=12, out=f"{keys}.pt")
        ppo.main(cfg)
        weights.append(read_checkpoint(cfg.out)["weights"])
        logs.append(log_lines(cfg.out))
    with_keys, without = weights
    assert all(torch.equal(with_keys[k], without[k]) for k in with_keys)
    for a, b in zip(*logs, strict=True):
        assert "true_score" in a and "true_score" not in b and a["score"] == b["score"]


def test_a_rollout_that_is_no_multiple_of_the_minibatch_is_refused(config):
    with pytest.raises(ValueError, match="--rollout 8 is no multiple of --minibatch 3"):
        ppo.main(replace(config, minibatch=3))
