"""forks/rloo.py: each gradient against the exact one, by enumerating responses; that it learns."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_ppo import EOS, Bandit, doubles, enumerated, tree_kl, two_policies  # noqa: F401

import data
import interop
import ppo
from forks import rloo
from model import GPT, GPTConfig, Scorer
from plumbing.files import save_checkpoint
from plumbing.processes import frozen_copy
from plumbing.results import write_jsonl
from train import make_optimizer

ENC = interop.get_tokenizer("sandbox")
CFG = rloo.Config(device="cpu", precision="fp32", k=2, microbatch=0, kl_coef=0.3)


def rollout_of(ids, mask, total, adv):
    zeros = torch.zeros(mask.shape)
    return ppo.Rollout(ids, mask, zeros, zeros, adv[:, None].expand(mask.shape), zeros, total)


class Enumerated:
    """Two samples of one prompt, all pairs of the 49 responses: the expected gradient, exactly."""

    def __init__(self):
        self.policy, self.reference = two_policies()
        self.ids, self.mask, self.total = enumerated()
        self.models = ppo.Models(self.policy, None, self.reference, None)
        self.logp = self.policy.logp(self.ids, self.mask)[0]
        self.p = self.logp.sum(1).exp()
        self.score = torch.randn(len(self.ids))
        self.first, self.second = torch.cartesian_prod(*[torch.arange(len(self.ids))] * 2).T

    def gradient(self, objective):
        return torch.autograd.grad(objective, list(self.policy.parameters()), retain_graph=True)

    def reward(self, beta):
        ref_logp, now = self.reference.logp(self.ids, self.mask)[0], self.logp
        return ppo.token_rewards(self.score, now, ref_logp, self.mask, self.total, beta).sum(1)

    def expected(self, cfg, reward):
        """The mean step of rloo.py: minus the gradient of its loss, each pair at its odds."""
        both = torch.stack([self.first, self.second], 1).flatten()        # (2 pairs,)
        adv = rloo.advantages(reward.detach()[both], cfg)
        likely = (self.p[self.first] * self.p[self.second]).repeat_interleave(2).detach()
        # of a response all pairs that it is in, side by side: the loss is linear in A
        summed = torch.zeros(len(self.p)).index_add(0, both, adv * likely) * len(self.p) / 2
        rollout = rollout_of(self.ids, self.mask, self.total, summed)
        [(weight, loss, _)] = rloo.rloo_losses(self.models, (rollout, {}), cfg, "cpu")
        return self.gradient(-weight * loss)


def close(a, b):
    assert max(x.abs().max() for x in b) > 1e-3
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-9)


def cosine(a, b):
    a, b = (torch.cat([x.flatten() for x in g]) for g in (a, b))
    return torch.cosine_similarity(a, b, dim=0).item()


def test_the_gradient_is_that_of_the_exact_objective(doubles):  # noqa: F811
    """E[r] - beta KL, differentiated through every probability."""
    e = Enumerated()
    exact = e.gradient((e.p * e.score).sum() - 0.3 * tree_kl(e.policy, e.reference, [2, 3]))
    close(e.expected(CFG, e.reward(0.3)), exact)
    # the mean of all, the response itself included: half of the step, in the same direction
    close(e.expected(replace(CFG, baseline="mean"), e.reward(0.3)), [g / 2 for g in exact])


@pytest.mark.parametrize("k", [2, 3, 8])
def test_grpo_without_deviation_and_length_is_rloo_times_k_minus_1_of_k(k):
    torch.manual_seed(k)
    reward, cfg = torch.randn(5 * k), replace(CFG, k=k)
    others = rloo.advantages(reward, cfg)
    mean = rloo.advantages(reward, replace(cfg, baseline="mean"))
    torch.testing.assert_close(mean, others * (k - 1) / k)
    for i in range(5 * k):
        group = reward[i // k * k:i // k * k + k].tolist()
        own = group.pop(i % k)
        assert others[i].item() == pytest.approx(own - sum(group) / len(group), abs=1e-6)


def test_the_deviation_makes_it_another_objective(doubles):  # noqa: F811
    """Of two responses (r - mean) / deviation is a sign: what is followed is how often a response
    beats another one of the policy's, and not by how much."""
    e = Enumerated()
    reward = e.score * 100           # beside which the 1e-4 in the denominator is nothing
    wins = (reward[:, None] - reward).sign() @ e.p.detach()
    found = e.expected(replace(CFG, baseline="mean", std=True), reward)
    for x, y in zip(found, e.gradient((e.p * wins).sum() / 2**0.5)):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
    assert cosine(found, e.gradient((e.p * reward).sum())) < 0.99


def test_means_over_tokens_are_biased(doubles):  # noqa: F811
    e = Enumerated()
    exact = e.gradient((e.p * e.score).sum())
    found = e.expected(replace(CFG, length=True), e.score)
    assert cosine(e.expected(CFG, e.score), exact) > 1 - 1e-9 > 0.99 > cosine(found, exact)
    # each response's gradient is divided by its number of tokens, nothing else
    adv = e.score - (e.p * e.score).sum()
    by_length = e.p.detach() * adv.detach() / e.mask.sum(1) * e.logp.sum(1)
    close(found, e.gradient(by_length.sum()))


def tree_reverse_kl(policy, reference, prefix, depth=3):
    """KL(pi_ref || pi) of each node of the tree of responses, as often as pi comes there."""
    q, p = (m(torch.tensor([prefix]))[0, -1].softmax(-1) for m in (policy, reference))
    kl = (p * (p / q).log()).sum()
    if depth > 1:
        more = [t for t in range(len(q)) if t != EOS]
        kl = kl + sum(q[t].detach() * tree_reverse_kl(policy, reference, [*prefix, t], depth - 1)
                      for t in more)
    return kl


def test_k3_as_a_loss_has_the_gradient_of_the_other_divergence(doubles):  # noqa: F811
    e = Enumerated()
    cfg = replace(CFG, kl="loss", kl_coef=1.0, microbatch=1)
    rollout = rollout_of(e.ids, e.mask, e.total, torch.zeros(len(e.p)))
    rows = e.total.argsort(stable=True)
    losses = rloo.rloo_losses(e.models, (rollout, {}), cfg, "cpu")
    mean = sum(e.p[i].detach() * loss for i, (_, loss, _) in zip(rows, losses, strict=True))
    found = e.gradient(mean)
    close(found, e.gradient(tree_reverse_kl(e.policy, e.reference, [2, 3])))
    assert cosine(found, e.gradient(tree_kl(e.policy, e.reference, [2, 3]))) < 0.99
    _, k3 = ppo.kl_estimates(e.logp, e.reference.logp(e.ids, e.mask)[0], e.mask)
    by_token = replace(cfg, length=True, microbatch=0)
    [(_, loss, _)] = rloo.rloo_losses(e.models, (rollout, {}), by_token, "cpu")
    torch.testing.assert_close(loss, (k3 / e.mask.sum(1)).mean())


def test_a_rollouts_advantages_are_of_the_rewards_of_k_responses_to_one_prompt():
    """Score, a penalty where there is no end, what the function says, the KL of all tokens."""
    torch.manual_seed(0)
    size = GPTConfig(vocab_size=7, block_size=24, n_layer=1, n_head=2, n_embd=16)
    policy, reference, rm = GPT(size), GPT(size), Scorer(size)
    models = ppo.Models(policy, rloo.Zero(), reference, rm)
    cfg = replace(CFG, rollout=12, k=3, max_new=4, iterations=1)
    asked = [[2, 3], [4, 5, 6], [3], [5, 5, 5, 2], [6, 2]]
    inputs = ppo.Inputs([data.Prompt([str(i)]) for i in range(5)], asked, None,
                        SimpleNamespace(eot_token=EOS, decode=lambda ids: " ".join(map(str, ids))))
    [(rollout, _)] = rloo.rollouts(models, inputs, cfg, lambda prompt, text: len(text) ** 0.5)
    logp, ref_logp = (m.logp(rollout.ids, rollout.mask)[0] for m in (policy, reference))
    rewards = rm.score(rollout.ids, rollout.total) - cfg.kl_coef * (logp - ref_logp).sum(1)
    for i, ids in enumerate(rollout.responses()):
        rewards[i] += len(" ".join(str(t) for t in ids if t != EOS)) ** 0.5
        rewards[i] -= 0.0 if EOS in ids else cfg.eos_penalty
    for first in range(0, 12, 3):
        starts = {tuple(row[:int(m.nonzero()[0]) + 1].tolist())
                  for row, m in zip(rollout.ids[first:first + 3], rollout.mask[first:first + 3])}
        assert len(starts) == 1 and list(*starts) in asked
        for i in range(first, first + 3):
            others = [rewards[j].item() for j in range(first, first + 3) if j != i]
            expected = rewards[i].item() - sum(others) / 2
            assert rollout.adv[i].tolist() == pytest.approx([expected] * rollout.adv.shape[1],
                                                            abs=1e-4)


@pytest.mark.parametrize("flags", [{}, {"kl": "loss", "length": True}])
def test_micro_batches_change_nothing(flags):
    torch.manual_seed(0)
    policy, reference = two_policies()
    ids, mask, total = enumerated()
    rollout = rollout_of(ids, mask, total, torch.randn(len(ids)))
    gradients = []
    for microbatch in (0, 5):
        cfg = replace(CFG, microbatch=microbatch, **flags)
        models = ppo.Models(policy, None, reference, None)
        pieces = rloo.rloo_losses(models, (rollout, {}), cfg, "cpu")
        total_loss = sum(weight * loss for weight, loss, _ in pieces)
        gradients.append(torch.autograd.grad(total_loss, list(policy.parameters())))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("flags", [
    {}, {"baseline": "mean", "std": True, "length": True, "kl": "loss"},
    {"baseline": "mean", "kl_coef": 0.0}])
def test_it_solves_a_two_armed_bandit(flags):
    """Of test_ppo.py: each of two prompts has one right answer. As RLOO, GRPO and Dr. GRPO."""
    torch.manual_seed(0)
    policy = GPT(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=16))
    models = ppo.Models(policy, rloo.Zero(), frozen_copy(policy), Bandit())
    cfg = replace(CFG, k=4, max_new=2, eos_penalty=0.0, kl_coef=0.01, iterations=60)
    cfg = replace(cfg, **flags)
    [optimizer] = [make_optimizer(policy, cfg)]
    optimizer.param_groups[0]["lr"] = 1e-2
    inputs = ppo.Inputs([data.Prompt([])] * 2, [[3], [4]], None, SimpleNamespace(
        eot_token=EOS, decode=str))
    scores = []
    for batch in rloo.rollouts(models, inputs, cfg, lambda prompt, text: 0.0):
        scores.append(batch[1]["score"])
        for weight, loss, _ in rloo.rloo_losses(models, batch, cfg, "cpu"):
            (weight * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    likely = policy(torch.tensor([[3], [4]]))[:, 0].softmax(-1)
    assert len(scores) == 60 and scores[0] < 0.5 and sum(scores[-10:]) / 10 > 0.95
    assert likely[0, 1] > 0.95 and likely[1, 2] > 0.95


@pytest.fixture
def config(tmp_path):
    """A model that says anything, and a reward that wants short answers, from a file of its own."""
    torch.manual_seed(0)
    size, tokenizer = GPTConfig(ENC.n_vocab, 48, 1, 2, 32), interop.tokenizer_id(ENC)
    save_checkpoint(str(tmp_path / "sft.pt"), GPT(size), tokenizer, {})
    save_checkpoint(str(tmp_path / "rm.pt"), Scorer(size), tokenizer, {})
    write_jsonl(str(tmp_path / "p.jsonl"), [{"prompt": f"Name {i}."} for i in range(40)])
    (tmp_path / "mine.py").write_text(
        "def short(prompt, text):\n"
        "    assert prompt.messages[-1]['content'].startswith('Name')\n"
        "    return -len(text) / 10\n"
        "def nothing(prompt, text):\n    return float('nan')\n"
        "def text(prompt, text):\n    return '1'\n")
    return rloo.Config(init=str(tmp_path / "sft.pt"), prompts=(str(tmp_path / "p.jsonl"),),
                       out=str(tmp_path / "rloo.pt"), iterations=30, rollout=16, max_new=8,
                       reward="mine:short", lr=1e-2, warmup=0, eos_penalty=0.0, save_every=5)


def log_of(cfg):
    with open(f"{cfg.out}.log.jsonl") as f:
        return [json.loads(line) for line in f]


def test_a_function_is_a_reward_and_a_run_goes_on_where_it_was_interrupted(config, monkeypatch):
    monkeypatch.syspath_prepend(config.init.removesuffix("sft.pt"))
    metrics = rloo.main(config)
    log = log_of(config)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-4) and log[0]["score"] == 0
    assert log[-1]["judged"] > 0.7 * log[0]["judged"] and log[-1]["kl"] > 0.1
    again = replace(config, out=f"{config.out}.again.pt")
    append = rloo.files.append_log

    def interrupted(run, line):
        append(run, line)
        if line["step"] == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(rloo.files, "append_log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rloo.main(again)
    monkeypatch.setattr(rloo.files, "append_log", append)
    timed = ("seconds", "rollout_tokens_per_second", "scoring_tokens_per_second")
    same = {k: v for k, v in metrics.items() if k not in timed}
    assert {k: v for k, v in rloo.main(again).items() if k not in timed} == same


@pytest.mark.parametrize(("change", "says"), [
    ({"reward": "", "rm": ""}, "--rm"), ({"rollout": 18}, "no multiple of --k 4"),
    ({"k": 1}, "--k"), ({"reward": "nowhere:points"}, "--reward nowhere:points"),
    ({"reward": "math:points"}, "--reward math:points"), ({"reward": "math"}, "module:function"),
    ({"reward": "math:pi"}, "not a function"), ({"init": "none.pt"}, "none.pt"),
    ({"rm": "none.pt"}, "none.pt"),
    ({"reward": "mine:nothing"}, "--reward mine:nothing returned nan, and must return a number"),
    ({"reward": "mine:text"}, "--reward mine:text returned '1', and must return a number"),
])
def test_what_cannot_be_is_a_sentence(config, change, says, monkeypatch):
    monkeypatch.syspath_prepend(config.init.removesuffix("sft.pt"))
    with pytest.raises(ValueError, match=says):
        rloo.main(replace(config, **change))
