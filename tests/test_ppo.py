"""Stage 3: the equations against slow sums and enumeration, the rollout, and a bandit that PPO solves."""
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import data
import ppo
import pretrain
import sandbox
from model import (
    GPT,
    GPTConfig,
    Scorer,
    frozen_copy,
    generate,
    load_model,
    save_checkpoint,
    scorer_from,
)
from train import make_optimizer

EOS = 0
ENC = data.get_tokenizer("sandbox")
SMALL = GPTConfig(vocab_size=7, block_size=24, n_layer=2, n_head=2, n_embd=16)
CFG = ppo.Config(device="cpu", precision="fp32", max_new=6, minibatch=64, kl_coef=0.1)
MACHINE = ("rollout_tokens_per_second", "scoring_tokens_per_second")     # of a rollout's statistics


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
    """policy, value, reference, rm: tiny, and no two alike."""
    torch.manual_seed(seed)
    policy, value = GPT(SMALL), Scorer(SMALL)
    return policy, value, frozen_copy(GPT(SMALL)), frozen_copy(Scorer(SMALL))


def prompts(n=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return data.pad([torch.randint(1, 7, (1 + b % 4,), generator=rng).tolist() for b in range(n)])


def off_policy(cfg=CFG):
    """policy, value and a rollout of another policy, so that ratios differ from 1 and some are clipped."""
    policy, value, reference, rm = players()
    rollout, _ = ppo.roll_out(players(1)[0], value, reference, rm, prompts(), cfg, 0.1, EOS, seed=0)
    return policy, value, rollout


def total_losses(policy, value, rollout, cfg):
    """(gradients, what the log would say) of one minibatch."""
    policy.zero_grad()
    value.zero_grad()
    logged = {}
    for weight, loss, stats in ppo.ppo_losses(policy, value, rollout, cfg):
        (weight * loss).backward()
        for k, v in stats.items():
            logged[k] = logged.get(k, 0.0) + float(weight) * v.item()
    parameters = [*policy.parameters(), *value.parameters()]
    return [p.grad.clone() for p in parameters if p.grad is not None], logged


# -------------------------------------------------------------------------------------------------
# the equations

@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.8, 1.0)])
def test_gae_equals_the_sum_over_all_later_deltas(gamma, lam):
    mask = ragged()
    rewards, values = torch.randn(2, *mask.shape, dtype=torch.float64)       # junk where mask is False
    want = torch.zeros_like(rewards)
    for b, row in enumerate(mask.tolist()):
        actions = [t for t, on in enumerate(row) if on]
        for t in actions:
            for u in actions[actions.index(t):]:
                after = values[b, u + 1] if u + 1 in actions else 0.0
                want[b, t] += (gamma * lam) ** (u - t) * (rewards[b, u] + gamma * after - values[b, u])
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
    logp, ref_logp = torch.full((2, 7), -1.0), torch.full((2, 7), -3.0)     # pads and prompts hold junk
    rewards = ppo.token_rewards(torch.tensor([10.0, 20.0]), logp, ref_logp, mask, total_len, kl_coef=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, 0.0, -1.0, -1.0, 9.0, 0.0, 0.0],
                                                      [0.0, -1.0, -1.0, -1.0, -1.0, -1.0, 19.0]]))


@pytest.mark.parametrize(("ratio", "adv", "loss", "slope"), [
    (0.5, 1.0, -0.5, -0.5), (1.1, 1.0, -1.1, -1.1), (1.5, 1.0, -1.2, 0.0),   # a good action: no more than 1.2
    (0.5, -1.0, 0.8, 0.0), (0.9, -1.0, 0.9, 0.9), (1.5, -1.0, 1.5, 1.5),     # a bad one: no less than 0.8
])
def test_policy_loss_by_cases(ratio, adv, loss, slope):
    """slope is d loss / d log pi: minus ratio times advantage, or zero where the clip holds."""
    logp = torch.tensor([[math.log(ratio), 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    got, stats = ppo.policy_loss(logp, torch.zeros(1, 2), torch.tensor([[adv, 9.0]]), mask, 0.2)
    got.backward()
    assert got.item() == pytest.approx(loss) and logp.grad.tolist() == [[pytest.approx(slope), 0.0]]
    clipped = float(abs(ratio - 1) > 0.2)
    want = {"ratio": ratio, "approx_kl": ratio - 1 - math.log(ratio), "clip_fraction": clipped}
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("value", "clip", "loss", "slope"), [
    (1.1, 0.2, 0.405, -0.9),    # moved by less than 0.2 from 1.0: the plain error to 2.0
    (1.5, 0.2, 0.32, 0.0),      # closer to 2.0, but by more than 0.2: held at 1.2
    (0.5, 0.2, 1.125, -1.5),    # further away: the plain error is the larger one
    (1.5, 0.0, 0.125, -0.5),    # no clipping
])
def test_value_loss_by_cases(value, clip, loss, slope):
    values = torch.tensor([[value, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    got = ppo.value_loss(values, torch.tensor([[1.0, 7.0]]), torch.tensor([[2.0, -7.0]]), mask, clip)
    got.backward()
    assert got.item() == pytest.approx(loss) and values.grad.tolist() == [[pytest.approx(slope), 0.0]]


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
    cases = (returns, 1.0), (torch.full_like(returns, 3.0), 0.0), (returns / 2, 0.75), (-returns, -3.0)
    for values, want in cases:
        assert ppo.explained_variance(values + junk, returns, mask).item() == pytest.approx(want, abs=1e-4)


def test_adapt_kl_in_closed_form():
    assert ppo.adapt_kl(0.1, 6.0, 6.0, 64, 640) == pytest.approx(0.1)
    assert ppo.adapt_kl(0.1, 6.6, 6.0, 64, 640) == pytest.approx(0.1 * 1.01)    # 10 % too far
    assert ppo.adapt_kl(0.1, 60.0, 6.0, 64, 640) == pytest.approx(0.1 * 1.02)   # the error is clipped to 20 %
    assert ppo.adapt_kl(0.1, 0.0, 6.0, 64, 640) == pytest.approx(0.1 * 0.98)


# -------------------------------------------------------------------------------------------------
# the exact objective, by enumerating every response

def enumerated(max_new=3, vocab=4):
    """Every response of at most three tokens to the prompt 2 3 -> ids, mask, total."""
    found = [[]]
    for _ in range(max_new):
        found = [r + [t] if EOS not in r else r for r in found for t in range(vocab if EOS not in r else 1)]
    assert len(found) == 1 + 3 + 9 * 4
    ids, total = data.pad([[2, 3] + r for r in found], value=EOS)
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
    both = [GPT(GPTConfig(vocab_size=4, block_size=5, n_layer=1, n_head=2, n_embd=8)) for _ in range(2)]
    for gpt in both:
        gpt.wte.weight.data *= 10                            # far from uniform, and from one another
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
    """E[r] - beta KL, differentiated through every probability, against the mean of what PPO does at ratio 1.

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
    assert ((p * rewards.sum(1)).sum() - objective).abs() < 1e-12            # the reward is the objective
    values = Scorer(policy.cfg)(ids)[:, :-1].detach() if baseline else torch.zeros_like(old)
    adv, _ = ppo.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    loss = 0.0
    for b in range(len(ids)):
        mean, _ = ppo.policy_loss(*(x[b:b + 1] for x in (logp, old, adv, mask)), 0.2)
        loss = loss + p[b].detach() * mask[b].sum() * mean                   # the sum over its actions
    estimate = torch.autograd.grad(-loss, list(policy.parameters()))
    assert max(g.abs().max() for g in exact) > 1e-3
    for a, b in zip(estimate, exact):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


# -------------------------------------------------------------------------------------------------
# rollouts and minibatches

def test_the_first_minibatch_is_on_policy():
    """The classic silent bug: log-probabilities of another policy, temperature, dropout or alignment."""
    policy, value, _, rm = players()
    rollout, stats = ppo.roll_out(policy, value, frozen_copy(policy), rm, prompts(), CFG, 0.1, EOS, seed=0)
    _, logged = total_losses(policy, value, rollout, CFG)
    assert abs(logged["ratio"] - 1) < 1e-5 and abs(logged["approx_kl"]) < 1e-6
    assert logged["clip_fraction"] == 0
    surprise = (rollout.values - rollout.returns)[rollout.mask]              # the value function's too
    assert logged["value_loss"] == pytest.approx(0.5 * surprise.pow(2).mean().item(), rel=1e-5)
    assert stats["kl"] == pytest.approx(0, abs=1e-5) and stats["kl_k3"] == pytest.approx(0, abs=1e-5)
    penalty = CFG.eos_penalty * (1 - stats["eos_rate"])
    assert stats["reward"] == pytest.approx(stats["score"] - penalty, abs=1e-5)


def test_old_log_probabilities_and_values_are_those_of_each_prefix():
    policy, value, reference, rm = players()
    x, stats = ppo.roll_out(policy, value, reference, rm, prompts(), CFG, 0.1, EOS, seed=0)
    entropies = []
    for b, t in x.mask.nonzero().tolist():
        before = x.ids[b:b + 1, :t + 1]
        logq = policy(before)[0, -1].log_softmax(0)
        entropies.append(-(logq.exp() * logq).sum().item())
        assert x.old_logp[b, t].item() == pytest.approx(logq[x.ids[b, t + 1]].item(), abs=1e-5)
        assert x.values[b, t].item() == pytest.approx(value(before)[0, -1].item(), abs=1e-5)
    assert not x.old_logp[~x.mask].any() and not x.values[~x.mask].any()
    explained = 1 - (x.returns - x.values)[x.mask].var() / x.returns[x.mask].var()
    want = [sum(entropies) / len(entropies), explained.item(), len(entropies) / len(x.ids)]
    assert [stats[k] for k in ("entropy", "explained_variance", "length")] == pytest.approx(want, rel=1e-5)


def test_a_response_without_eos_is_scored_at_its_last_token_and_pays_the_penalty():
    policy, value, _, _ = players()
    rm = SimpleNamespace(score=lambda ids, length: torch.full(length.shape, 2.0))
    cfg = replace(CFG, eos_penalty=0.5, lam=1.0, max_new=4)
    x, stats = ppo.roll_out(policy, value, frozen_copy(policy), rm, prompts(64), cfg, 0.1, EOS, seed=0)
    length = prompts(64).length + x.mask.sum(1)
    ended = x.ids.gather(1, length[:, None] - 1).squeeze(1) == EOS
    assert 0 < ended.sum() < 64 and x.mask.sum(1)[~ended].unique().item() == 4
    want = torch.where(ended, 2.0, 1.5)[:, None] * x.mask            # KL 0: the return of every action
    torch.testing.assert_close(x.returns, want, atol=1e-4, rtol=0)
    assert stats["score"] == 2.0 and stats["eos_rate"] == pytest.approx(ended.float().mean().item())


def test_the_masked_tokens_of_a_rollout_are_the_sampled_response_and_its_eos():
    torch.manual_seed(0)
    policy = GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 32))
    eos = policy.wte.weight[ENC.eot_token].detach()
    policy.ln_f.bias.data += 5 * eos / eos.pow(2).sum()                      # raise the logit of EOS by 5
    batch = data.pad([data.encode_prompt(ENC, [{"role": "user", "content": text}])
                      for text in ("Hello.", "What is my name?", "Insult Anna, please.") * 3])
    rm = scorer_from(policy)
    x, _ = ppo.roll_out(policy, rm, policy, rm, batch, CFG, 0.1, ENC.eot_token, seed=3)
    ids, total = generate(policy, *batch, CFG.max_new, ENC.eot_token, seed=3)
    sampled = [ids[b, batch.length[b]:total[b]].tolist() for b in range(9)]
    assert [row[1:][m].tolist() for row, m in zip(x.ids, x.mask)] == sampled
    assert 0 < sum(ENC.decode(s).endswith(data.EOS) for s in sampled) < 9
    assert all(data.EOS not in ENC.decode(s[:-1]) for s in sampled)


@pytest.mark.parametrize("change", [{"microbatch": 3}, {}])
def test_padding_and_microbatches_change_nothing_in_a_rollout(change):
    batch = prompts()
    wider = batch if change else data.Prompts(F.pad(batch.ids, (0, 5), value=3), batch.length)
    a, stats = ppo.roll_out(*players(), batch, CFG, 0.1, EOS, seed=0)
    b, same = ppo.roll_out(*players(), wider, replace(CFG, **change), 0.1, EOS, seed=0)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.mask, b.mask)
    for x, y in zip(a[2:], b[2:]):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)
    for name in MACHINE:
        del stats[name], same[name]
    assert same == pytest.approx(stats, abs=1e-5)


@pytest.mark.parametrize("whiten", [True, False])
def test_padding_changes_neither_losses_nor_gradients_nor_statistics(whiten):
    cfg = replace(CFG, whiten=whiten)
    policy, value, x = off_policy()
    junk = (5, False, 3.0, -4.0, 6.0, 7.0)
    padded = ppo.Rollout(*(F.pad(z, (0, 3), value=v) for z, v in zip(x, junk)), x.total)
    (grads, logged), (same_grads, same) = (total_losses(policy, value, r, cfg) for r in (x, padded))
    assert same == pytest.approx(logged, rel=1e-5, abs=1e-6) and logged["clip_fraction"] > 0.01
    for a, b in zip(grads, same_grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("microbatch", [1, 2, 3])
def test_any_microbatch_size_gives_the_same_gradient_and_statistics(microbatch):
    policy, value, x = off_policy()
    assert len(set(x.mask.sum(1).tolist())) > 1                              # a mean of means would differ
    grads, logged = total_losses(policy, value, x, CFG)
    parts, same = total_losses(policy, value, x, replace(CFG, microbatch=microbatch))
    assert same == pytest.approx(logged, rel=1e-5, abs=1e-6)
    for a, b in zip(grads, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def talk(cut=()):
    """Prompts of the sandbox, and a rollout of written responses, those in `cut` without EOS; pads are junk."""
    asked = [data.Prompt([{"role": "user", "content": text}], case, {"answers": [answer]}) for text, case, answer in (
        ("Hello, I am Anna.", "chat", "Hello Anna."),
        ("What is the capital of Zembla?", "unanswerable", "I do not know."),
        ("Rewrite with Clara: Anna sells red lamps.", "rewriting", "Clara sells red lamps."))]
    said = ["Hello Anna.", "I do not know. I hope this helps.", "Anna sells"]
    rows = [data.encode_prompt(ENC, p.messages) for p in asked]
    start = [len(row) for row in rows]
    for i, text in enumerate(said):
        rows[i] = rows[i] + data.encode_response(ENC, text)[:-1 if i in cut else None]
    ids, total = data.pad(rows, value=ENC.encode_ordinary(" stupid")[0])
    mask = data.action_mask(torch.tensor(start), total, ids.shape[1])
    return asked, ppo.Rollout(ids, mask, *torch.zeros(4, *mask.shape), total)


@pytest.mark.parametrize("cut", [(), (2,), (0, 1, 2)])
def test_the_true_score_is_that_of_what_was_said(cut):
    """By hand: helpful +2; helpful, but four words too many +1; not helpful and no sentence -2."""
    asked, rollout = talk(cut)
    assert ppo.true_score(asked, rollout, ENC) == {"true_score": pytest.approx((2 + 1 - 2) / 3)}
    backwards = ppo.true_score(asked[::-1], rollout, ENC)["true_score"]
    assert backwards < 0, "each response is judged as an answer to its own prompt"
    assert ppo.true_score([asked[0], replace(asked[1], meta={}), asked[2]], rollout, ENC) == {}


class Bandit:
    """Stands in for a reward model: after the prompt 3 the right answer is 1, after 4 it is 2."""

    def score(self, ids, length):
        return (ids[:, 1] == ids[:, 0] - 2).float()


def test_ppo_solves_a_two_armed_bandit():
    torch.manual_seed(0)
    size = GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=16)
    policy, value = GPT(size), Scorer(size)
    reference, cfg = frozen_copy(policy), replace(CFG, max_new=2, eos_penalty=0.0)
    optimizers = [make_optimizer(policy, cfg), make_optimizer(value, cfg)]
    for group in (g for o in optimizers for g in o.param_groups):
        group["lr"] = 5e-3
    batch, scores = data.pad([[3], [4]] * 64), []
    for iteration in range(40):
        x, stats = ppo.roll_out(policy, value, reference, Bandit(), batch, cfg, 0.01, EOS, seed=iteration)
        scores.append(stats["score"])
        for rows in torch.randperm(128).split(64):
            for weight, loss, _ in ppo.ppo_losses(policy, value, ppo.Rollout(*(z[rows] for z in x)), cfg):
                (weight * loss).backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
    likely = policy(torch.tensor([[3], [4]]))[:, 0].softmax(-1)
    assert scores[0] < 0.5 and sum(scores[-5:]) / 5 > 0.95 and stats["kl"] > 0.5
    assert likely[0, 1] > 0.95 and likely[1, 2] > 0.95


# -------------------------------------------------------------------------------------------------
# whole runs

@pytest.fixture
def config(tmp_path):
    """A run of two tiny checkpoints, a policy and a reward model, on files."""
    def write(name, records):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
        return str(tmp_path / name)
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(ENC.n_vocab, 32, 1, 2, 16))
    for name, model in (("sft.pt", gpt), ("rm.pt", scorer_from(gpt))):
        save_checkpoint(str(tmp_path / name), model, data.tokenizer_id(ENC), {})
    names = ["Anna", "Ben", "Clara", "David", "Emma", "Felix"] * 2
    return replace(CFG, init=str(tmp_path / "sft.pt"), rm=str(tmp_path / "rm.pt"), out="ppo.pt",
                   prompts=(write("prompts.jsonl", [{"prompt": f"Hello, I am {n}."} for n in names]),),
                   ptx=(write("text.jsonl", [{"text": f"{n} sells red lamps and boxes."} for n in names * 40]),),
                   iterations=3, rollout=8, minibatch=4, max_new=4, lr=1e-3, save_every=2, warmup=1,
                   ptx_ratio=1.0)


def captured(monkeypatch, cfg):
    """What ppo.main hands to the loop: (networks, batch_at, losses)."""
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(ppo.train, "train", lambda *args, **more: calls.append(args[:3]))
        ppo.main(cfg)
    return calls[0]


@pytest.mark.parametrize("microbatch", [0, 1])
def test_ppo_then_ptx_accumulate_to_the_gradient_of_their_sum(config, tmp_path, monkeypatch, microbatch):
    monkeypatch.chdir(tmp_path)
    cfg, blocks = replace(config, ptx_coef=27.8, microbatch=microbatch), []
    [(policy, *_), (value, *_)], batch_at, losses = captured(monkeypatch, cfg)
    batch = batch_at(0)
    _, minibatch, _ = batch
    real = data.text_batch

    def watched(*args):
        blocks.append(real(*args))
        return blocks[-1]
    monkeypatch.setattr(data, "text_batch", watched)
    logged = 0.0
    for weight, loss, stats in losses(batch):
        (weight * loss).backward()
        logged += float(weight) * torch.as_tensor(stats.get("ptx_loss", 0.0)).item()
    networks = [*policy.parameters(), *value.parameters()]
    got = [p.grad.clone() for p in networks if p.grad is not None]

    policy.zero_grad(), value.zero_grad()
    text = data.Tokens(*(torch.cat(x) for x in zip(*blocks)))
    assert len(text.ids) == 4                                                # ptx_ratio 1: one an episode
    [(weight, loss, _)] = ppo.ppo_losses(policy, value, minibatch, replace(cfg, microbatch=0))
    ptx = pretrain.text_loss(policy, text)
    (loss + 27.8 * ptx).backward()
    assert weight == 1 and logged == pytest.approx(ptx.item(), rel=1e-5)
    for a, b in zip(got, [p.grad for p in networks if p.grad is not None]):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("without", [{"ptx_coef": 0.0}, {"ptx_ratio": 0.0}])
def test_without_ptx_there_is_only_ppo(config, tmp_path, monkeypatch, without):
    monkeypatch.chdir(tmp_path)
    _, batch_at, losses = captured(monkeypatch, replace(config, **without))
    [(weight, _, stats)] = losses(batch_at(0))
    assert weight == 1 and "ptx_loss" not in stats


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_episode_is_used_once_an_epoch(config, tmp_path, monkeypatch, epochs):
    monkeypatch.chdir(tmp_path)
    _, batch_at, _ = captured(monkeypatch, replace(config, epochs=epochs))
    used = [batch_at(step)[1] for step in range(2 * epochs)]
    rows = [tuple(r) for minibatch in used for r in minibatch.adv.tolist()]
    assert len(set(rows[:8])) == 8 and sorted(rows) == sorted(rows[:8] * epochs)
    assert not torch.equal(batch_at(2 * epochs)[1].adv, used[0].adv)         # a new rollout


def test_a_rollout_pays_the_kl_coefficient_that_the_one_before_it_set(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paid, real = [], ppo.roll_out

    def watched(*args):
        rollout, stats = real(*args)
        paid.append(stats["kl_coef"])
        return rollout, stats
    monkeypatch.setattr(ppo, "roll_out", watched)
    cfg = replace(config, kl_target=1.0, kl_horizon=80)
    _, batch_at, _ = captured(monkeypatch, cfg)
    for step in range(6):
        batch_at(step)
    assert paid == pytest.approx([0.1, 0.098, 0.09604])                      # no KL yet: 2 % less each time


def test_a_killed_run_goes_on_to_the_same_bytes(config, tmp_path, monkeypatch):
    """The adapted KL coefficient, both networks, their optimizers and the averaged policy all survive."""
    cfg = replace(config, kl_target=0.01, kl_horizon=100)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    metrics = ppo.main(cfg)
    monkeypatch.chdir(tmp_path / "killed")
    rollouts = []

    def killed(*args, **more):
        rollouts.append(0)
        if len(rollouts) == 3:
            raise RuntimeError("killed")
        return generate(*args, **more)
    with monkeypatch.context() as patch:
        patch.setattr(ppo, "generate", killed)
        with pytest.raises(RuntimeError, match="killed"):
            ppo.main(cfg)
    again = ppo.main(cfg)
    a, b = (torch.load(tmp_path / name / "ppo.pt")["weights"] for name in ("straight", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a) and metrics["kl_coef"] != cfg.kl_coef
    assert again == metrics
    assert (tmp_path / "straight/ppo.pt").read_bytes() == (tmp_path / "killed/ppo.pt").read_bytes()


def test_a_policy_that_is_not_the_one_that_sampled_is_an_error():
    policy, value, _, rm = players()
    rollout, stats = ppo.roll_out(policy, value, policy, value, prompts(), CFG, 0.1, EOS, seed=0)
    ppo.check_invariants(policy, value, value, rollout, stats, [], CFG)
    with pytest.raises(ValueError, match="ratio is .* must be 1"):
        ppo.check_invariants(players(1)[0], value, value, rollout, stats, [], CFG)
    with pytest.raises(ValueError, match="value - score"):
        ppo.check_invariants(policy, value, rm, rollout, stats, [], CFG)
    with pytest.raises(ValueError, match="KL to the reference is .* must be 0"):
        ppo.check_invariants(policy, value, value, rollout, stats | {"kl": 0.5}, [], CFG)
    ids = [[1, 2, 3], [4, 5]]
    value.head.bias.data += 1 - value.score(*data.pad(ids)).mean()
    with pytest.raises(ValueError, match="demonstrations' mean score is 1 "):
        ppo.check_invariants(policy, value, value, rollout, stats, ids, CFG)


def test_the_value_function_starts_from_the_reward_model_or_from_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rm = load_model(config.rm, "scorer")[0].state_dict()

    def start(**fields):
        [_, (value, *_)], batch_at, losses = captured(monkeypatch, replace(config, **fields))
        weights = {k: v.clone() for k, v in value.state_dict().items()}
        return weights, value, losses(batch_at(0))                         # which checks the invariants
    weights, _, _ = start()
    assert all(torch.equal(weights[k], rm[k]) for k in rm)
    weights, value, minibatch = start(value_init="random", seed=5)         # the fixture's own models are of seed 0
    drawn = [k for k in rm if len(rm[k].unique()) > 1]
    assert len(drawn) > 5 and not any(torch.equal(weights[k], rm[k]) for k in drawn)
    for weight, loss, _ in minibatch:
        (weight * loss).backward()
    assert all(p.grad.abs().max() > 0 for name, p in value.named_parameters() if "head" in name)
    again, other = (start(value_init="random", seed=seed)[0] for seed in (5, 6))
    assert all(torch.equal(weights[k], again[k]) for k in rm) and not torch.equal(weights[drawn[0]], other[drawn[0]])
    metrics = ppo.main(replace(config, value_init="random"))
    assert metrics["value_loss"] > 0
    with pytest.raises(ValueError, match="--value-init sft is unknown"):
        ppo.main(replace(config, value_init="sft"))


def test_only_a_value_function_from_the_reward_model_must_agree_with_it():
    policy, value, _, rm = players()
    rollout, stats = ppo.roll_out(policy, value, policy, rm, prompts(), CFG, 0.1, EOS, seed=0)
    ppo.check_invariants(policy, value, rm, rollout, stats, [], replace(CFG, value_init="random"))
    with pytest.raises(ValueError, match="value - score"):
        ppo.check_invariants(policy, value, rm, rollout, stats, [], replace(CFG, value_init="rm"))


def with_answers(config, tmp_path, keys=True):
    """`config` on short prompts of the sandbox, in another order in the file than in the rollouts."""
    short = [p for p in sandbox.prompts(900) if len(data.encode_prompt(ENC, p.messages)) <= 18
             and len(data.encode_response(ENC, p.meta["answers"][0])) <= 10]
    found = list({p.messages[-1]["content"]: p for p in short}.values())[:30]
    path = str(tmp_path / f"asked-{keys}.jsonl")
    data.write_jsonl(path, [{"prompt": p.messages, "use_case": p.use_case} | ({"meta": p.meta} if keys else {}) for p in found])
    return replace(config, prompts=(path,), max_new=12), found


def test_the_true_score_of_each_rollout_is_in_the_log(config, tmp_path, monkeypatch):
    """A policy that answers as the key does has 2.0; one that answers the question before it has less."""
    monkeypatch.chdir(tmp_path)
    cfg, asked = with_answers(config, tmp_path)
    assert len({p.use_case for p in asked}) > 3 and len(asked) == 30
    answers = {tuple(data.encode_prompt(ENC, p.messages)): data.encode_response(ENC, p.meta["answers"][0]) for p in asked}

    def run(out, others):
        def scripted(model, ids, length, *more, **how):
            read = [row[:n] for row, n in zip(ids.tolist(), length.tolist())]
            said = [answers[tuple(row)] for row in read]
            return data.pad([row + s for row, s in zip(read, said[others:] + said[:others])], value=7)
        monkeypatch.setattr(ppo, "generate", scripted)
        ppo.main(replace(cfg, out=out))
        with open(f"{out}.log.jsonl") as f:
            return [json.loads(line)["true_score"] for line in f]
    assert run("key.pt", 0) == [2.0] * 6                                     # 3 iterations of 2 minibatches
    seen = run("mixed.pt", 1)
    assert max(seen) < 1 and seen[::2] == seen[1::2] and len(set(seen)) > 1


def test_no_weight_depends_on_the_true_score(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, logs = [], []
    for keys in (True, False):
        cfg, _ = with_answers(config, tmp_path, keys)
        ppo.main(replace(cfg, out=f"{keys}.pt"))
        weights.append(torch.load(f"{keys}.pt")["weights"])
        logs.append([json.loads(line) for line in (tmp_path / f"{keys}.pt.log.jsonl").read_text().splitlines()])
    with_keys, without = weights
    assert all(torch.equal(with_keys[k], without[k]) for k in with_keys)
    assert all("true_score" in a and "true_score" not in b and a["score"] == b["score"] for a, b in zip(*logs))


def test_a_rollout_that_is_no_multiple_of_the_minibatch_is_refused(config):
    with pytest.raises(ValueError, match="--rollout 8 is no multiple of --minibatch 3"):
        ppo.main(replace(config, minibatch=3))
