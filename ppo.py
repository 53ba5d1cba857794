"""Stage 3: reinforcement learning from the reward model: token-level PPO with a value function, a KL penalty at every
token and pretraining gradients mixed in (PPO-ptx).

The environment is a bandit: a prompt comes, the policy writes a response, the reward model scores it, the end.

    python ppo.py --init sft.pt --rm rm.pt --out ppo.pt          # PPO-ptx, the paper's "InstructGPT"
    python ppo.py --init sft.pt --rm rm.pt --ptx-coef 0 --out ppo-plain.pt

What the log should show: kl 0, ratio 1 and clip_fraction 0 at the start; score and kl rising together; approx_kl below
0.05 and clip_fraction below 0.3; explained_variance rising; eos_rate near 1; ptx_loss flat.

DEVIATION [IG] C.4: the sandbox's preset has its own rates, and for its short run rollouts of 256, beta 0.1, gamma 3 on a
quarter of a block an episode, and an average over 50 steps (EMA 0.98); the other presets keep the paper's values.
DEVIATION [IG] C.2: the reward model has the policy's size; the paper uses one of 6B for every policy.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [S20] Stiennon et al. 2020, arXiv 2009.01325   [Z19] Ziegler et al. 2019,
arXiv 1909.08593   [PPO] arXiv 1707.06347   [GAE] arXiv 1506.02438   [N] Huang et al., The N Implementation Details of
RLHF with PPO   [KL] Schulman, Approximating KL Divergence
"""
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import cli
import data
import formats
import sandbox
import train
from model import Scorer, checkpoint_files, frozen_copy, generate, load_model, read_checkpoint, save_checkpoint
from train import Network, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the policy to start from and to stay near, made by sft.py
    rm: str = ""                    # the reward model, made by reward.py
    value_init: str = "rm"          # what the value function starts from: rm ([IG] C.4), or random: nothing
    out: str = "ppo.pt"             # the checkpoint to write
    prompts: tuple[str, ...] = ()   # prompts, files in any format of formats.py; none: the sandbox's
    columns: str = ""               # names of the fields of --prompts, where they differ: prompt=question
    ptx: tuple[str, ...] = ()       # pretraining text, files; none: the sandbox's corpus
    demos: tuple[str, ...] = ()     # demonstrations whose mean score must be 0; none: the sandbox's, if its prompts are used
    iterations: int = 100           # rollouts; [IG] C.4: 500
    rollout: int = 256              # episodes of one rollout; [IG] C.4: 512
    minibatch: int = 64             # episodes of one optimizer step ([IG] C.4)
    sample_batch: int = 0           # episodes that a process samples together, 0 for all it has; changes memory, not the samples
    epochs: int = 1                 # passes over one rollout ([IG] C.4)
    max_new: int = 32               # longest response, tokens; [IG] C: 1000
    kl_coef: float = 0.02           # beta of [IG] Eq. 2: the penalty at each token for leaving the reference policy; [IG]: 0.02
    kl_target: float = 0.0          # if > 0, kl_coef adapts to keep the KL of an episode here, nats ([Z19] 2.2)
    kl_horizon: int = 10_000        # episodes over which kl_coef adapts ([Z19])
    kl_budget: float = 0.0          # if > 0, the run ends when the KL of an episode exceeds it, nats; not in [IG]
    ptx_coef: float = 27.8          # gamma of [IG] Eq. 2, on the mean loss of a pretraining token; 0 is plain PPO; [IG]: 27.8
    ptx_ratio: float = 8.0          # pretraining blocks for each episode; [IG] C.4: 8
    gamma: float = 1.0              # no discount ([IG] C.4)
    lam: float = 0.95               # lambda of GAE; not in [IG]: [S20], [Z19]
    clip: float = 0.2               # of the probability ratio ([IG] C.4)
    value_clip: float = 0.2         # of the change of a value, 0 for none; not in [IG]: [Z19]
    vf_coef: float = 1.0            # weight of the value loss; its network is separate, so Adam all but undoes it
    whiten: bool = True             # advantages to mean 0 and variance 1 over a minibatch's tokens; not in [IG]: [N]
    eos_penalty: float = 1.0        # taken from the score of a response that does not end; not in [IG]: [S20]
    lr: float = 1e-5                # peak, policy; [IG] E.9 scans 2.55e-6 .. 2.55e-5, and without ptx it diverged above 8.05e-6
    value_lr: float = 9e-6          # peak, value function ([IG] C.4)
    schedule: str = "constant"      # constant after the warm-up ([IG] C.4)
    warmup: int = 10                # iterations from 1/10 of the peak ([IG] C.4)
    ema: float = 0.992              # decay per step of the averaged policy, which is the result; [IG] C.4: 0.992, of what is open


PRESETS = {
    "sandbox": {"lr": 3e-4, "value_lr": 1e-3, "ptx_coef": 3.0, "ptx_ratio": 0.25, "kl_coef": 0.1, "ema": 0.98, "iterations": 80,
                "microbatch": 16},
    "gpt2": {"iterations": 200, "rollout": 512, "max_new": 128, "microbatch": 16},
    "paper-1.3b": {"iterations": 500, "rollout": 512, "max_new": 1000, "microbatch": 4, "sample_batch": 16},
    "paper-6b": {"iterations": 500, "rollout": 512, "max_new": 1000, "microbatch": 1, "sample_batch": 8},
}


# ---- the equations, in the action frame (data.py): tensors (B, T-1), column t is the choice of ids[:, t+1] ------

def token_rewards(score, logp, ref_logp, mask, total_len, kl_coef):
    """r_t = -beta (log pi - log pi_ref), plus the score (B,) at the action that ended the response. [IG] Eq. 2"""
    rewards = -kl_coef * (logp - ref_logp) * mask                          # (B, T-1)
    return rewards.scatter_add(1, total_len[:, None] - 2, score[:, None])


def gae(rewards, values, mask, gamma, lam):
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t, V = 0 after the end. [GAE] Eq. 16

    The true entries of each row of `mask` stand side by side. Returns advantages and returns = advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
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
    """-min(ratio A, clip(ratio, 1-eps, 1+eps) A), mean over actions. [PPO] Eq. 7. Returns loss, stats."""
    ratio = (logp - old_logp).exp()
    unclipped, clipped = ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv
    loss = -data.masked_mean(torch.minimum(unclipped, clipped), mask)
    with torch.no_grad():
        stats = {"ratio": data.masked_mean(ratio, mask), "approx_kl": data.masked_mean(ratio - 1 - (logp - old_logp), mask),
                     "clip_fraction": data.masked_mean(((ratio - 1).abs() > clip).float(), mask)}
    return loss, stats


def value_loss(values, old_values, returns, mask, clip):
    """max of the squared errors of V and of V clipped to old V +- clip, halved, mean over actions. [Z19]; not in [IG]"""
    error = (values - returns) ** 2
    if clip:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns) ** 2)
    return 0.5 * data.masked_mean(error, mask)


def kl_estimates(logp, ref_logp, mask):
    """KL(pi || pi_ref) of each episode from its own sample: k1 = sum log pi/pi_ref, k3 = sum (r - 1 - log r) with
    r = pi_ref/pi. Both are unbiased, k3 is never negative. [KL]. Returns (B,), (B,)."""
    log_r = (ref_logp - logp) * mask
    return -log_r.sum(1), ((log_r.exp() - 1 - log_r) * mask).sum(1)


def adapt_kl(kl_coef, kl, target, episodes, horizon):
    """The proportional controller of [Z19] 2.2: beta (1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon)."""
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * episodes / horizon)


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value function, 0 one that says the mean."""
    def variance(x):
        return data.masked_mean((x - data.masked_mean(x, mask)) ** 2, mask)
    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)


def text_loss(policy, batch):
    """Mean cross-entropy of a pretraining token, the second expectation of [IG] Eq. 2. The paper does not say whether
    log pi(x) is summed or averaged over x; a mean keeps gamma independent of the length of a block."""
    return policy.loss(*batch)


# ---- what touches models ----------------------------------------------------------------------------------------

class Rollout(NamedTuple):
    ids: Tensor         # (B, T)    prompt + response, right-padded
    mask: Tensor        # (B, T-1)  True where the policy chose
    old_logp: Tensor    # (B, T-1)  from a forward of the policy that sampled, not from the sampler
    values: Tensor      # (B, T-1)  V(ids[:, :t+1]) at rollout time
    adv: Tensor         # (B, T-1)  GAE, not whitened yet
    returns: Tensor     # (B, T-1)
    total: Tensor       # (B,)      tokens, EOS included

    def rows(self, rows):
        """Some rows, without the columns that none of them uses."""
        T = int(self.total[rows].max())
        return Rollout(self.ids[rows, :T], *(x[rows, :T - 1] for x in self[1:-1]), self.total[rows])


@torch.no_grad()
def roll_out(policy, value, reference, rm, prompts, cfg, kl_coef, eos, seed):
    """Sample a response to each of data.Prompts and score it -> (Rollout, stats). Temperature 1, nothing filtered.

    Of several processes each samples and scores its share, and then all have all: what follows is the same everywhere.
    """
    began, (rank, size) = time.perf_counter(), train.ranks()
    mine, sampler = data.Prompts(*map(train.share, prompts)), train.whole(policy)
    n = -(-len(mine.ids) // (cfg.sample_batch or len(mine.ids)))           # in n parts
    parts = [generate(sampler, mine.ids[i::n], mine.length[i::n], cfg.max_new, eos, seed=seed, compile=cfg.compile,
                      part=(rank + size * i, size * n, len(prompts.ids))) for i in range(n)]
    order = torch.cat([torch.arange(i, len(mine.ids), n) for i in range(n)]).argsort()
    ids, total = (train.all_rows(torch.cat(x)[order]) for x in zip(*parts))
    del sampler
    ids = ids[:, :int(total.max())]                                        # (B, T)
    sampled = time.perf_counter()
    mask = data.action_mask(prompts.length, total, ids.shape[1])
    logp, entropy, ref_logp, values = (torch.zeros(mask.shape, device=ids.device) for _ in range(4))
    score = torch.zeros(len(ids), device=ids.device)
    for rows, t in data.by_length(total, cfg.microbatch, train.share):
        x, m = ids[rows, :t], mask[rows, :t - 1]
        logp[rows, :t - 1], entropy[rows, :t - 1] = policy.logp(x, m)
        ref_logp[rows, :t - 1] = reference.logp(x, m)[0]
        values[rows, :t - 1] = value(x)[:, :-1] * m
        score[rows] = rm.score(x, total[rows])
    logp, entropy, ref_logp, values, score = map(train.all_sum, (logp, entropy, ref_logp, values, score))   # 0: others' rows
    ended = ids.gather(1, total[:, None] - 1).squeeze(1) == eos
    rewards = token_rewards(score - cfg.eos_penalty * ~ended, logp, ref_logp, mask, total, kl_coef)
    adv, returns = gae(rewards, values, mask, cfg.gamma, cfg.lam)
    k1, k3 = kl_estimates(logp, ref_logp, mask)
    length = total - prompts.length
    responses = {tuple(x[start:end]) for x, start, end in zip(ids.tolist(), prompts.length.tolist(), total.tolist())}
    stats = {"score": score.mean(), "reward": rewards.sum(1).mean(), "kl": k1.mean(), "kl_k3": k3.mean(), "kl_coef": kl_coef,
                 "entropy": data.masked_mean(entropy, mask), "explained_variance": explained_variance(values, returns, mask),
                 "length": length.float().mean(), "eos_rate": ended.float().mean(),
                 "distinct": len(responses) / len(ids),
                 "rollout_tokens_per_second": int(length.sum()) / (sampled - began),
                 "scoring_tokens_per_second": int(total.sum()) / (time.perf_counter() - sampled)}
    return Rollout(ids, mask, logp, values, adv, returns, total), {k: float(v) for k, v in stats.items()}


def ppo_losses(policy, value, mb, cfg):
    """The losses of one minibatch, a Rollout, in micro-batches: yields (weight, loss, stats)."""
    mb = mb._replace(adv=whiten(mb.adv, mb.mask) if cfg.whiten else mb.adv)
    for rows, _ in data.by_length(mb.total, cfg.microbatch, train.share):
        x = mb.rows(rows)
        logp, _ = policy.logp(x.ids, x.mask)
        pg, stats = policy_loss(logp, x.old_logp, x.adv, x.mask, cfg.clip)
        v = value_loss(value(x.ids)[:, :-1], x.values, x.returns, x.mask, cfg.value_clip)
        yield x.mask.sum() / mb.mask.sum(), pg + cfg.vf_coef * v, dict(stats, policy_loss=pg, value_loss=v)


def true_score(prompts, rollout, enc):
    """Mean true score of a rollout (sandbox.judge), {} unless every prompt of `prompts` has an answer key. It goes into the log,
    where over-optimisation shows, and nowhere else: no update sees it."""
    if not all(p.meta for p in prompts):
        return {}
    first = rollout.mask.int().argmax(1) + 1                               # (B,) where the response begins
    texts = [data.decode_response(enc, row[start:end])
             for row, start, end in zip(rollout.ids.tolist(), first.tolist(), rollout.total.tolist())]
    return {"true_score": sum(sandbox.judge(p, t).score for p, t in zip(prompts, texts)) / len(texts)}


def scores_of(rm, ids, total, microbatch):
    """rm's scores of ids (B, T) with lengths total (B,) -> (B,)."""
    score = torch.zeros(len(ids), device=ids.device)
    for rows, t in data.by_length(total, microbatch):
        score[rows] = rm.score(ids[rows, :t], total[rows])
    return score


def check_invariants(policy, value, rm, rollout, stats, demo_ids, cfg):
    """What must hold before the first update; prints it, and raises ValueError where it does not."""
    first = rollout.rows(slice(cfg.minibatch))
    with torch.no_grad():
        seen = [(w, s) for w, _, s in ppo_losses(policy, value, first, cfg)]
        ratio, clipped = (float(train.all_sum(sum(w * s[k] for w, s in seen))) for k in ("ratio", "clip_fraction"))
        gap = torch.sub(*(scores_of(m, first.ids, first.total, cfg.microbatch) for m in (value, rm))).abs().max().item()
        scores = [rm.score(*data.pad(chunk, device=first.ids.device)) for chunk in data.chunks(demo_ids, cfg.microbatch or 64)]
        demos = torch.cat(scores).mean().item() if scores else 0.0
    tolerance = 0.05 if torch.is_autocast_enabled(first.ids.device.type) else 1e-3   # bf16 rounds
    slack_of_value = math.inf if cfg.value_init == "random" else tolerance
    for what, got, want, slack in (("KL to the reference", stats["kl"], 0, tolerance), ("ratio", ratio, 1, tolerance),
                                   ("clip fraction", clipped, 0, tolerance),
                                   ("|value - score| at the last token", gap, 0, slack_of_value),
                                   ("demonstrations' mean score", demos, 0, 0.1 if demo_ids else 1)):
        good = abs(got - want) <= slack
        print(f"at the start: {what} {got:+.5f}" + ("" if good else f", expected {want}"))
        if not good:
            raise ValueError(f"{what} is {got:.4g} before the first update and must be {want}: " + (
                "make the reward model again with reward.py, on the demonstrations of --demos" if "demo" in what else
                "the policy that is trained is not the one that sampled"))


def make_batches(policy, value, reference, rm, records, rows, demos, enc, cfg, state, device):
    """-> batch_at(step): the minibatch of a step, a Rollout. It rolls out with current weights when the last one is used up."""
    per_epoch = cfg.rollout // cfg.minibatch
    rollout, order, stats, updating_since = None, None, {}, 0.0

    def batch_at(step):
        nonlocal rollout, order, stats, updating_since
        iteration, k = divmod(step, per_epoch * cfg.epochs)
        if k == 0:
            speed = {}
            if rollout:
                seconds = time.perf_counter() - updating_since
                speed = {"update_tokens_per_second": cfg.epochs * int(rollout.total.sum()) / seconds}
            chosen = data.rows_at(iteration, len(rows), cfg.rollout, cfg.seed)
            prompts = data.pad([rows[i] for i in chosen], device=device)
            seed = train.step_seed(cfg.seed, f"rollout {iteration}")
            rollout, stats = roll_out(policy, value, reference, rm, prompts, cfg, state["kl_coef"], enc.eot_token, seed)
            stats |= speed | true_score([records[i] for i in chosen], rollout, enc)
            if step == 0:
                check_invariants(policy, value, rm, rollout, stats, demos, cfg)
            if cfg.kl_target:
                state["kl_coef"] = adapt_kl(state["kl_coef"], stats["kl"], cfg.kl_target, cfg.rollout, cfg.kl_horizon)
            if cfg.kl_budget and stats["kl"] > cfg.kl_budget:
                tqdm.write(f"iteration {iteration}: a KL of {stats['kl']:.2f} nats exceeds --kl-budget: this is the last one")
                state["stop"] = True
            shuffle = torch.Generator().manual_seed(train.step_seed(cfg.seed, f"order {iteration}"))
            order = torch.cat([torch.randperm(cfg.rollout, generator=shuffle) for _ in range(cfg.epochs)]).to(device)
            updating_since = time.perf_counter()
        chosen = order[k * cfg.minibatch:(k + 1) * cfg.minibatch]
        return step, rollout.rows(chosen), stats
    return batch_at


def main(cfg):
    for flag, path, how in (("--init", cfg.init, "python sft.py --init base.pt --out sft.pt"),
                            ("--rm", cfg.rm, ("python label.py --init sft.pt --out comparisons.jsonl && "
                                             "python reward.py --init sft.pt --data comparisons.jsonl --out rm.pt"))):
        if not path or len(checkpoint_files(path)) == 1 and not os.path.isfile(path):
            raise ValueError(f"{flag} {path or 'FILE'} is missing; make it with `{how}`")
    if cfg.value_init not in ("rm", "random"):
        raise ValueError(f"--value-init {cfg.value_init} is unknown: it is rm or random")
    if cfg.minibatch < 1 or cfg.rollout % cfg.minibatch:
        raise ValueError(f"--rollout {cfg.rollout} is no multiple of --minibatch {cfg.minibatch}: change one of them")
    meta = train.provenance(cfg, "ppo", init=checkpoint_files(cfg.init), rm=checkpoint_files(cfg.rm), prompts=cfg.prompts,
                            ptx=cfg.ptx, demos=cfg.demos)
    if (metrics := train.already_done(cfg, meta, read_checkpoint)) is not None:
        return metrics
    device, (rank, _), counts = train.join(cfg), train.ranks(), Counter()
    policy, checkpoint = load_model(cfg.init, "gpt")                       # dropout 0 in RL ([N])
    value, rm_checkpoint = load_model(cfg.rm, "scorer", checkpoint["tokenizer"], context=policy.cfg.block_size)
    with train.autocast(cfg):
        reference, rm = frozen_copy(policy, device), frozen_copy(value, device)
    if cfg.value_init == "random":
        torch.manual_seed(train.step_seed(cfg.seed, "value"))
        value = Scorer(value.cfg)
    enc, block = data.tokenizer_of(rm_checkpoint, same_as=data.tokenizer_of(checkpoint)), policy.cfg.block_size
    if cfg.prompts:
        records = data.prompts(formats.read_records(cfg.prompts, counts, cfg.columns), counts)
    else:
        records = sandbox.prompts(10_000, cfg.seed)
    rows = data.encode_prompts(records, enc, block - cfg.max_new, counts)
    use_ptx = cfg.ptx_coef > 0 and cfg.ptx_ratio > 0
    if checkpoint["tokenizer"]["name"] != "sandbox" and not (cfg.prompts and (cfg.ptx or not use_ptx)):
        raise ValueError("--prompts and --ptx are needed: the sandbox's own are for models that were pretrained in it; "
                         "--ptx-coef 0 does without pretraining text")
    ptx_block = block if cfg.ptx else min(block, 64)                       # 64: the blocks that the sandbox's base was trained on
    text = None
    if use_ptx:
        docs = data.texts(formats.read_records(cfg.ptx, counts), counts) if cfg.ptx else sandbox.corpus(20_000, f"ptx {cfg.seed}")
        text = data.pack(docs, enc, ptx_block, " ".join(cfg.ptx))
    if cfg.demos:
        demos = data.demonstrations(formats.read_records(cfg.demos, counts), counts)
    else:   # those that reward.py took: the sandbox's of its seed
        demos = [] if cfg.prompts else sandbox.demonstrations(seed=rm_checkpoint["meta"]["config"]["seed"])
    demo_ids = [ids for ids, _ in data.encode_demonstrations(demos, enc, block, counts)] if demos else []
    print(data.report(counts))

    cycle = cfg.rollout // cfg.minibatch * cfg.epochs                      # optimizer steps of one rollout
    state = {"kl_coef": cfg.kl_coef}

    def losses(batch):
        step, mb, stats = batch
        for weight, loss, minibatch_stats in ppo_losses(policy, value, mb, cfg):
            yield weight, loss, minibatch_stats | stats                    # the weights of a minibatch sum to 1
        if use_ptx:   # a second gradient into the same buffer: the paper's "consecutive steps" ([IG] C.4)
            blocks = data.rows_at(step, len(text) // ptx_block, max(1, round(cfg.minibatch * cfg.ptx_ratio)), cfg.seed)
            for chunk in data.chunks(train.share(blocks), cfg.microbatch):
                loss = text_loss(policy, data.text_batch(text, chunk, ptx_block, device))
                yield len(chunk) / len(blocks), cfg.ptx_coef * loss, {"ptx_loss": loss}

    def evaluate(step, policy):
        asked = train.mine(rows[-64:]) or rows[-1:]
        scores, texts = [], []
        for i, chunk in enumerate(data.chunks(asked, cfg.sample_batch)):
            batch = data.pad(chunk, device=device)
            ids, total = generate(policy, *batch, cfg.max_new, enc.eot_token, seed=step + (rank << 32) + (i << 24))
            with torch.no_grad():
                scores += scores_of(rm, ids, total, cfg.microbatch).tolist()
            texts += [enc.decode(x[:end]).replace("\n\n", " | ") for x, end in zip(ids.tolist(), total.tolist())]
        tqdm.write("\n".join(f"{score:+.2f}  {text}" for score, text in list(zip(scores, texts))[:3]))
        return {"eval_score": train.all_mean(sum(scores), len(scores))}

    run = replace(cfg, warmup=cfg.warmup * cycle, save_every=max(cycle, cfg.save_every), eval_every=cfg.eval_every or 25 * cycle)
    batch_at = make_batches(policy, value, reference, rm, records, rows, demo_ids, enc, cfg, state, device)
    return train.train(
        [Network(policy, cfg.lr), Network(value, cfg.value_lr)], batch_at, losses, run, steps=cfg.iterations * cycle, meta=meta,
        read=read_checkpoint, evaluate=evaluate, state=state, cycle=cycle,
        save=lambda path, module, meta, **more: save_checkpoint(path, module, data.tokenizer_id(enc), meta, **more))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
