"""8/8  Stage 3: reinforcement learning from the reward model, in a bandit: a prompt comes, the
policy responds, a score follows. Token-level PPO with a value function, a KL penalty at every token
and pretraining gradients mixed in (PPO-ptx).

    python ppo.py --init sft.pt --rm rm.pt --out ppo.pt        # PPO-ptx, the paper's "InstructGPT"
    python ppo.py --init sft.pt --rm rm.pt --ptx-coef 0 --out ppo-plain.pt

What the log should show: kl (to the reference) 0, ratio 1 and clip_fraction 0 at the start; score
and kl rising together; approx_kl (to the policy of the rollout) below 0.05 and clip_fraction below
0.3; explained_variance rising; eos_rate near 1; ptx_loss flat. In the sandbox the score
rises from -0.1 to 0.3, and kl to 1.1 nats (seeds 306 to 310).

DEVIATION [IG] C.4: the defaults suit the sandbox and a short run; other presets are the paper's.
DEVIATION [IG] C.2: the reward model has the policy's size; the paper's has 6B for every policy.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [S20] Stiennon et al. 2020, arXiv 2009.01325
[Z19] Ziegler et al. 2019, arXiv 1909.08593   [PPO] arXiv 1707.06347   [GAE] arXiv 1506.02438
[N] Huang et al., The N Implementation Details of RLHF with PPO
[KL] Schulman, Approximating KL Divergence
"""
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import data
import interop
from generate import answer, generate
from model import GPT, Scorer
from plumbing import cli, files, processes
from train import Network, TrainConfig, step_seed, train


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the policy to start from and to stay near, made by sft.py
    rm: str = ""                    # the reward model, made by reward.py
    value_init: str = "rm"          # where the value function starts, [IG] C.4: rm; rm | random
    out: str = "ppo.pt"             # the checkpoint to write
    prompts: tuple[str, ...] = ()   # prompts, files in any known format; none: the sandbox's
    columns: str = ""               # names of the fields of --prompts: prompt=question
    ptx: tuple[str, ...] = ()       # pretraining text, files; none: the sandbox's corpus
    iterations: int = 40            # rollouts; [IG] C.4: 500; >= 1
    rollout: int = 256              # episodes of one rollout; [IG] C.4: 512; >= 1
    minibatch: int = 64             # episodes of one optimizer step ([IG] C.4); >= 1
    sample_batch: int = 64          # episodes sampled together, 0: all; memory only; >= 0
    epochs: int = 1                 # passes over one rollout ([IG] C.4); >= 1
    max_new: int = 32               # longest response, tokens; [IG] C: 1000; >= 1
    kl_coef: float = 0.1            # beta of [IG] Eq. 2: stay near the reference; [IG]: 0.02; >= 0
    kl_target: float = 0.0          # KL for kl_coef to hold, nats an episode; 0: none ([Z19]); >= 0
    kl_horizon: int = 10_000        # episodes over which kl_coef adapts ([Z19]); >= 1
    kl_budget: float = 0.0          # KL that ends the run, nats an episode; 0: none; >= 0
    ptx_coef: float = 0.5           # gamma of [IG] Eq. 2; 0 is plain PPO; [IG]: 27.8; >= 0
    ptx_ratio: float = 0.1          # pretraining blocks for each episode; [IG] C.4: 8; >= 0
    gamma: float = 1.0              # no discount ([IG] C.4); [0, 1]
    lam: float = 0.95               # lambda of GAE; not in [IG]: [S20], [Z19]; [0, 1]
    clip: float = 0.2               # of the probability ratio ([IG] C.4); (0, 1)
    value_clip: float = 0.2         # of the change of a value, 0: none; not in [IG]: [Z19]; >= 0
    vf_coef: float = 1.0            # of the value loss; hardly matters: V has its own Adam; > 0
    whiten: bool = True             # advantages, over a minibatch's tokens; not in [IG]: [N]
    eos_penalty: float = 3.0        # off the score of a response without an end; not in [IG]; >= 0
    microbatch: int = 32            # rows of one forward, 0: all; memory, not the gradient; >= 0
    lr: float = 4e-4                # peak, policy; [IG] E.9: 2.55e-6 .. 2.55e-5; > 0
    value_lr: float = 1e-3          # peak, value function; [IG] C.4: 9e-6; > 0
    schedule: str = "constant"      # after the warm-up ([IG] C.4); cosine | restarts | constant
    warmup: int = 10                # iterations from 1/10 of the peak ([IG] C.4); >= 0
    ema: float = 0.98               # decay per step of averaged policy, the result; 0: none; [0, 1)


PAPER = {"iterations": 500, "rollout": 512, "max_new": 1000, "kl_coef": 0.02, "ptx_coef": 27.8,
         "ptx_ratio": 8.0, "eos_penalty": 1.0, "lr": 1e-5, "value_lr": 9e-6, "ema": 0.992}
PRESETS = {
    "sandbox": {},
    "gpt2": PAPER | {"iterations": 200, "max_new": 128, "microbatch": 16},
    "paper-1.3b": PAPER | {"microbatch": 4, "sample_batch": 16},
    "paper-6b": PAPER | {"microbatch": 1, "sample_batch": 8},
}
ASKED = 64          # prompts that are answered at an evaluation: the last, also trained on


# ---- the equations: tensors (B, T-1) in the action frame (data.py), column t chooses ids[:, t+1]
def token_rewards(score, logp, ref_logp, mask, total_len, kl_coef):
    """r_t = -beta (log pi - log pi_ref), and the score (B,) at the last action. [IG] Eq. 2"""
    rewards = -kl_coef * (logp - ref_logp) * mask                          # (B, T-1)
    return rewards.scatter_add(1, total_len[:, None] - 2, score[:, None])


def gae(rewards, values, mask, gamma, lam):
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t. [GAE] Eq. 16

    V is 0 after the end. Each row of `mask` must be one run of True. Returns advantages, and
    returns = advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])                                # (B,)
    next_value = torch.zeros_like(later)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        later = (delta + gamma * lam * later) * mask[:, t]
        advantages[:, t] = later
        next_value = values[:, t] * mask[:, t]
    return advantages, (advantages + values) * mask


def whiten(x, mask):
    """x to mean 0 and variance 1 over the masked entries; 0 elsewhere."""
    mean = data.masked_mean(x, mask)
    variance = data.masked_mean((x - mean) ** 2, mask)
    return (x - mean) * (variance + 1e-8).rsqrt() * mask


def policy_loss(logp, old_logp, adv, mask, clip):
    """-min(ratio A, clip(ratio, 1-eps, 1+eps) A), mean over actions. [PPO] Eq. 7. -> loss, stats"""
    # Beyond e^88 the ratio is infinite and its gradient NaN.
    log_ratio = (logp - old_logp).clamp(-20, 20)
    ratio = log_ratio.exp()
    unclipped = ratio * adv
    clipped = ratio.clamp(1 - clip, 1 + clip) * adv
    loss = -data.masked_mean(torch.minimum(unclipped, clipped), mask)
    with torch.no_grad():
        stats = {"ratio": data.masked_mean(ratio, mask),
                 "approx_kl": data.masked_mean(ratio - 1 - log_ratio, mask),
                 "clip_fraction": data.masked_mean(clipped < unclipped, mask)}
    return loss, stats


def value_loss(values, old_values, returns, mask, clip):
    """max of the squared errors of V and of V clipped to old V +- clip, halved. [Z19], not [IG]"""
    error = (values - returns) ** 2
    if clip:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * data.masked_mean(error, mask)


def kl_estimates(logp, ref_logp, mask):
    """KL(pi || pi_ref) of each episode from its own sample, nats: k1 (B,) = sum log pi/pi_ref, k3
    (B,) = sum (r - 1 - log r), r = pi_ref/pi, >= 0 but far from the reference too noisy. [KL]"""
    log_r = (ref_logp - logp) * mask
    return -log_r.sum(1), ((log_r.exp() - 1 - log_r) * mask).sum(1)


def adapt_kl(kl_coef, kl, target, episodes, horizon):
    """beta (1 + clip(kl / target - 1, -0.2, 0.2) min(1, episodes / horizon)). [Z19] 2.2"""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * min(1, episodes / horizon))


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than the mean."""
    def variance(x):
        return data.masked_mean((x - data.masked_mean(x, mask)) ** 2, mask)
    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)


# ---- a rollout ---------------------------------------------------------------------------------
class Rollout(NamedTuple):
    ids: Tensor         # (B, T)    prompt + response, right-padded
    mask: Tensor        # (B, T-1)  True where the policy chose; on the CPU
    old_logp: Tensor    # (B, T-1)  from a forward of the policy that sampled, not from the sampler
    values: Tensor      # (B, T-1)  V(ids[:, :t+1]) at rollout time
    adv: Tensor         # (B, T-1)  GAE, not whitened yet
    returns: Tensor     # (B, T-1)
    total: Tensor       # (B,)      tokens of prompt and response, EOS included; on the CPU

    def rows(self, rows):
        """Some rows, an index tensor on the CPU, without the columns that none of them uses."""
        T, [there] = int(self.total[rows].max()), data.to_device(self.ids.device, rows)
        per_token = [x[there, :T - 1] for x in self[2:-1]]   # old_logp .. returns
        return Rollout(self.ids[there, :T], self.mask[rows, :T - 1], *per_token, self.total[rows])

    def responses(self):
        """The tokens of each response, lists of ids."""
        return [row[1:][m].tolist() for row, m in zip(self.ids.cpu(), self.mask)]


class Models(NamedTuple):
    policy: GPT         # trained
    value: Scorer       # trained
    reference: GPT      # frozen: the policy at the start
    rm: Scorer          # frozen


def sample_responses(policy, prompts, cfg, eos, seed):
    """Respond to data.Padded prompts at temperature 1, unfiltered -> ids (B, T), total (B,)."""
    sampler, (B, P) = processes.whole(policy), prompts.ids.shape
    device = next(sampler.parameters()).device
    ids = prompts.ids.new_zeros(B, P + cfg.max_new, device=device)
    total = torch.zeros_like(prompts.length, device=device)
    for rows, longest in data.by_length(prompts.length, cfg.sample_batch, processes.share):
        there, asked, length = data.to_device(
            device, rows, prompts.ids[rows, :longest], prompts.length[rows])
        part, total[there] = generate(sampler, asked, length, cfg.max_new, eos, seed=seed,
                                      compile=cfg.compile, draws=(there, B))
        ids[there, :part.shape[1]] = part
    ids, total = processes.all_sum(ids), processes.all_sum(total).cpu()
    return ids[:, :int(total.max())], total


def read_responses(models, ids, mask, total, cfg):
    """What the networks say of a rollout: logp, entropy, ref_logp, values (B, T-1), score (B,)."""
    policy, value, reference, rm = models
    logp, entropy, ref_logp, values = (torch.zeros(mask.shape, device=ids.device) for _ in range(4))
    score = torch.zeros(len(ids), device=ids.device)
    for rows, T in data.by_length(total, cfg.microbatch, processes.share):
        m = mask[rows, :T - 1]
        there, chosen, length = data.to_device(ids.device, rows, m, total[rows])
        x = ids[there, :T]
        logp[there, :T - 1], entropy[there, :T - 1] = policy.logp(x, m)
        ref_logp[there, :T - 1], _ = reference.logp(x, m)
        values[there, :T - 1] = value(x)[:, :-1] * chosen
        score[there] = rm.score(x, length)
    # The rows of other processes are 0 here: a sum puts all together.
    return [processes.all_sum(x) for x in (logp, entropy, ref_logp, values, score)]


@torch.no_grad()
def roll_out(models, prompts, cfg, kl_coef, eos, seed):
    """Sample, score, reward, advantage: data.Padded prompts, on the CPU -> Rollout, stats.

    Of several processes each samples and scores its share; then all have the whole rollout.
    """
    began = time.perf_counter()
    ids, total = sample_responses(models.policy, prompts, cfg, eos, seed)
    sampled = time.perf_counter()
    chosen = data.action_mask(prompts.length, total, ids.shape[1])
    logp, entropy, ref_logp, values, score = read_responses(models, ids, chosen, total, cfg)
    scored = time.perf_counter()
    mask, end = data.to_device(ids.device, chosen, total)
    ended = ids.gather(1, end[:, None] - 1).squeeze(1) == eos
    rewards = token_rewards(score - cfg.eos_penalty * ~ended, logp, ref_logp, mask, end, kl_coef)
    adv, returns = gae(rewards, values, mask, cfg.gamma, cfg.lam)
    rollout = Rollout(ids, chosen, logp, values, adv, returns, total)

    k1, k3 = kl_estimates(logp, ref_logp, mask)
    response_len = total - prompts.length
    stats = {"score": score.mean(), "reward": rewards.sum(1).mean(), "kl": k1.mean(),
             "kl_k3": k3.mean(), "kl_coef": kl_coef, "entropy": data.masked_mean(entropy, mask),
             "explained_variance": explained_variance(values, returns, mask),
             "length": int(response_len.sum()) / len(ids), "eos_rate": ended.float().mean(),
             "distinct": len({tuple(r) for r in rollout.responses()}) / len(ids),
             "rollout_tokens_per_second": int(response_len.sum()) / (sampled - began),
             "scoring_tokens_per_second": int(total.sum()) / (scored - sampled)}
    return rollout, processes.numbers(stats)


# ---- the loop ----------------------------------------------------------------------------------
class Minibatch(NamedTuple):
    rollout: Rollout    # some rows of one
    text: Tensor        # (N, block) pretraining text; N is 0 for plain PPO
    stats: dict         # of the rollout, for the log


class Inputs(NamedTuple):
    records: list       # of data.Prompt
    prompts: list       # their ids
    text: Tensor        # (N, block) pretraining text; N is 0 for plain PPO
    enc: object         # the tokenizer


def steps_per_iteration(cfg):
    """Optimizer steps of one rollout."""
    return cfg.rollout // cfg.minibatch * cfg.epochs


def control_kl(state, kl, cfg):
    """Adapt beta to --kl-target; end the run at --kl-budget. kl: nats an episode."""
    if cfg.kl_target:
        state["kl_coef"] = adapt_kl(
            state["kl_coef"], kl, cfg.kl_target, cfg.rollout, cfg.kl_horizon)
    if 0 < cfg.kl_budget < kl:
        tqdm.write(f"this is the last iteration: {kl:.2f} nats exceed --kl-budget")
        state["stop"] = True


def minibatches(models, inputs, cfg, state, start=0):
    """The loop of PPO, an iterator from optimizer step `start` on, the first of an iteration.

    train.py asks for the next minibatch after each update: every rollout is sampled with the newest
    weights. state["kl_coef"] is beta, state["stop"] ends the run with the iteration.
    """
    step, speed, eos = start, {}, inputs.enc.eot_token
    mixed = max(1, round(cfg.minibatch * cfg.ptx_ratio)) if len(inputs.text) else 0
    for iteration in range(start // steps_per_iteration(cfg), cfg.iterations):
        rows = data.rows_at(iteration, len(inputs.prompts), cfg.rollout, cfg.seed)
        prompts = data.pad([inputs.prompts[i] for i in rows])
        seed = step_seed(cfg.seed, f"rollout {iteration}")
        rollout, stats = roll_out(models, prompts, cfg, state["kl_coef"], eos, seed)
        # The truth goes into the log, where over-optimisation shows; no update sees it.
        asked = [inputs.records[i] for i in rows]
        stats |= speed | interop.true_score(asked, rollout.responses(), inputs.enc)
        if iteration == 0:
            check_start(models, rollout, stats["kl"], cfg)
        control_kl(state, stats["kl"], cfg)

        began = time.perf_counter()
        shuffle = torch.Generator().manual_seed(step_seed(cfg.seed, f"order {iteration}"))
        for _epoch in range(cfg.epochs):
            order = torch.randperm(cfg.rollout, generator=shuffle)
            for chosen in order.split(cfg.minibatch):
                text = inputs.text[data.rows_at(step, len(inputs.text), mixed, cfg.seed)]
                yield Minibatch(rollout.rows(chosen), text, stats)
                step += 1
        seconds = time.perf_counter() - began                # of train.py's updates, at the yields
        speed = {"update_tokens_per_second": cfg.epochs * int(rollout.total.sum()) / seconds}


def ppo_ptx_losses(models, minibatch, cfg, device):
    """[IG] Eq. 2, negated: surrogate + vf_coef * value loss + ptx_coef * E_pretrain[-log pi(x)].

    E[r - beta KL] is what the advantages hold (token_rewards). Yields (weight, loss, stats) for
    each micro-batch; their gradients add up in one buffer, the paper's "consecutive steps" (C.4).
    The paper does not say whether log pi(x) is summed or averaged over x: with the mean, ptx_coef
    does not depend on the length of a block.
    """
    full, text, rollout_stats = minibatch
    if cfg.whiten:
        full = full._replace(adv=whiten(full.adv, *data.to_device(device, full.mask)))
    for rows, _ in data.by_length(full.total, cfg.microbatch, processes.share):
        x = full.rows(rows)
        [mask], weight = data.to_device(device, x.mask), x.mask.sum() / full.mask.sum()
        logp, _ = models.policy.logp(x.ids, x.mask)
        surrogate, stats = policy_loss(logp, x.old_logp, x.adv, mask, cfg.clip)
        values = models.value(x.ids)[:, :-1]
        v = value_loss(values, x.values, x.returns, mask, cfg.value_clip)
        stats |= {"policy_loss": surrogate, "value_loss": v} | rollout_stats
        yield weight.item(), surrogate + cfg.vf_coef * v, stats

    for chunk in data.chunks(processes.share(text), cfg.microbatch):
        loss = models.policy.loss(*data.text_batch(chunk, device))
        yield len(chunk) / len(text), cfg.ptx_coef * loss, {"ptx_loss": loss}


# ---- wiring ------------------------------------------------------------------------------------
def expect(what, got, want, slack, otherwise):
    """Print a number that must be `want` at the start. Raises ValueError if it is not."""
    print(f"at the start: {what} {got:+.5f}")
    if not abs(got - want) <= slack:                         # NaN is not within any bounds
        raise ValueError(f"{what} is {got:.4g} before the first update and must be {want}: "
                         f"{otherwise}")


@torch.no_grad()
def check_start(models, rollout, kl, cfg):
    """What must hold before any update, of some rows of the first rollout. Raises ValueError."""
    x = rollout.rows(torch.arange(len(rollout.total))[:cfg.microbatch or cfg.minibatch])
    mask, total = data.to_device(x.ids.device, x.mask, x.total)
    logp, _ = models.policy.logp(x.ids, x.mask)
    _, stats = policy_loss(logp, x.old_logp, x.adv, mask, cfg.clip)
    gap = models.value.score(x.ids, total) - models.rm.score(x.ids, total)
    slack = 0.05 if torch.is_autocast_enabled(x.ids.device.type) else 1e-3     # bf16 rounds
    otherwise = "the policy that is trained is not the one that sampled, or not the reference"
    expect("KL to the reference", kl, 0, slack, otherwise)
    expect("ratio", stats["ratio"].item(), 1, slack, otherwise)
    expect("clip fraction", stats["clip_fraction"].item(), 0, slack, otherwise)
    if cfg.value_init == "rm":
        expect("|value - score| at the last token", gap.abs().max().item(), 0, slack,
               "the value function is not the reward model")


def check(cfg):
    """Raise ValueError for what is missing or does not go together."""
    files.require("--init", interop.model_files(cfg.init),
                  "python sft.py --init base.pt --out sft.pt")
    files.require("--rm", interop.model_files(cfg.rm),
                  "python reward.py --init sft.pt --data comparisons.jsonl --out rm.pt")
    if cfg.rollout % cfg.minibatch:
        raise ValueError(f"--rollout {cfg.rollout} is no multiple of --minibatch {cfg.minibatch}: "
                         f"change one of them")


def load_models(cfg, device):
    """-> Models, the trained ones still on the CPU; their tokenizer. Dropout is 0 in RL ([N])."""
    policy, checkpoint = interop.load_model(cfg.init, GPT)
    value, rm_checkpoint = interop.load_model(cfg.rm, Scorer, checkpoint["tokenizer"],
                                              context=policy.cfg.block_size)
    mean = rm_checkpoint["meta"].get("metrics", {}).get("demonstrations_mean_score", 0.0)
    expect("demonstrations' mean score", mean, 0, 0.1, "make the reward model again with reward.py")
    with processes.autocast(cfg):    # frozen_copy keeps bf16 matrices under it
        reference = processes.frozen_copy(policy, device)
        rm = processes.frozen_copy(value, device)
    if cfg.value_init == "random":
        torch.manual_seed(step_seed(cfg.seed, "value"))
        value = Scorer(value.cfg)
    enc = interop.tokenizer_of(rm_checkpoint, same_as=interop.tokenizer_of(checkpoint))
    return Models(policy, value, reference, rm), enc


def load_inputs(cfg, enc, context, counts) -> Inputs:
    """Prompts, and pretraining text if it is mixed in."""
    records = interop.load("prompts", cfg.prompts, counts, flag="--prompts", enc=enc,
                           columns=cfg.columns, n=10_000, seed=cfg.seed, strict=cfg.strict)
    prompts = interop.encode_prompts(records, enc, context - cfg.max_new, counts)
    text = interop.load_text(cfg.ptx, counts, enc, context, flag="--ptx", n=20_000,
                             seed=f"ptx {cfg.seed}", strict=cfg.strict,
                             wanted=cfg.ptx_coef * cfg.ptx_ratio > 0)
    return Inputs(records, prompts, text, enc)


def main(cfg):
    check(cfg)
    run = files.begin(cfg, "ppo", init=interop.model_files(cfg.init),
                      rm=interop.model_files(cfg.rm), prompts=cfg.prompts, ptx=cfg.ptx)
    if run.metrics is not None:
        return run.metrics
    counts, state = Counter(), {"kl_coef": cfg.kl_coef}
    models, enc = load_models(cfg, run.device)
    inputs = load_inputs(cfg, enc, models.policy.cfg.block_size, counts)
    print(interop.report(counts))

    def evaluate(step, policy):
        scores = answer(policy, models.rm, inputs.prompts[-ASKED:], enc, cfg.max_new, step,
                        cfg.sample_batch, processes.mine)
        return {"eval_score": processes.all_mean(sum(scores), len(scores))}

    cycle = steps_per_iteration(cfg)
    in_steps = replace(cfg, warmup=cfg.warmup * cycle, eval_every=cfg.eval_every or 25 * cycle)
    networks = [Network(models.policy, cfg.lr), Network(models.value, cfg.value_lr)]
    return train(run._replace(cfg=in_steps), networks,
                 lambda start: minibatches(models, inputs, cfg, state, start),
                 lambda minibatch: ppo_ptx_losses(models, minibatch, cfg, run.device),
                 cfg.iterations * cycle, interop.tokenizer_id(enc), evaluate, state=state,
                 cycle=cycle)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
