"""REINFORCE with k responses to a prompt, each judged by the others: PPO without a value function.

    python -m forks.rloo --init sft.pt --rm rm.pt --out rloo.pt                      # RLOO
    python -m forks.rloo ... --baseline mean --std --length --kl loss                # GRPO
    python -m forks.rloo ... --baseline mean --kl-coef 0                             # Dr. GRPO
    python -m forks.rloo --init sft.pt --reward mine:points --out rlvr.pt            # RLVR

Against ppo.py: a response is one action. Its reward is the score minus beta times the KL of all its
tokens; its advantage is that minus the mean of the other k - 1. A rollout makes one step, so there
is no ratio to clip. A mean that counts the response itself (--baseline mean) only shortens the
step, to (k - 1) / k; what else GRPO does changes what is followed:

--std       divides by the deviation of the k rewards: prompts with like answers count more
--length    averages over a response's tokens where RLOO sums: the longer a bad answer is, the less
            each of its tokens is punished ([DR] 3.1)
--kl loss   the estimate k3 as a loss: its gradient is that of each token's KL(reference || pi)

[RLOO] Ahmadian et al. 2024, arXiv 2402.14740   [GRPO] Shao et al. 2024, arXiv 2402.03300
[DR] Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv 2503.20783
"""
import math
import numbers
from collections import Counter
from dataclasses import dataclass

import torch

import data
import interop
import ppo
from generate import answer
from model import GPT
from plumbing import cli, files, processes
from train import Network, TrainConfig, step_seed, train


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the policy to start from and to stay near, made by sft.py
    rm: str = ""                    # the reward model, made by reward.py; none: --reward alone
    reward: str = ""                # module:function of a data.Prompt and a text -> number, added
    out: str = "rloo.pt"            # the checkpoint to write
    prompts: tuple[str, ...] = ()   # prompts, files in any known format; none: the sandbox's
    columns: str = ""               # names of the fields of --prompts: prompt=question
    iterations: int = 160           # rollouts, each an optimizer step; >= 1
    rollout: int = 64               # responses of one rollout; >= 1
    k: int = 4                      # responses to each prompt; >= 2
    sample_batch: int = 64          # responses sampled together, 0: all; memory only; >= 0
    max_new: int = 32               # longest response, tokens; >= 1
    baseline: str = "others"        # of k rewards, what is subtracted from each; others | mean
    std: bool = False               # divide by the deviation of the k rewards ([GRPO])
    length: bool = False            # average over a response's tokens ([GRPO])
    kl: str = "reward"              # where the KL penalty stands; reward | loss
    kl_coef: float = 0.1            # beta: stay near the reference; >= 0
    eos_penalty: float = 3.0        # off the score of a response without an end; >= 0
    microbatch: int = 32            # rows of one forward, 0: all; memory, not the gradient; >= 0
    lr: float = 1e-4                # peak; > 0
    schedule: str = "constant"      # after the warm-up; cosine | restarts | constant
    warmup: int = 40                # steps from 1/10 of the peak; >= 0
    ema: float = 0.98               # decay per step of averaged policy, the result; 0: none; [0, 1)

    # what ppo.py's functions ask for besides: no discount, no values, no pretraining text
    gamma = lam = 1.0
    value_init, ptx, ptx_coef, ptx_ratio = "none", (), 0.0, 0.0


PRESETS = {"sandbox": {}, "gpt2": {"lr": 1e-5, "max_new": 128, "microbatch": 16}}


class Zero:
    """In the place of the value function, and of the reward model where there is none."""

    def __call__(self, ids):
        return torch.zeros(ids.shape, device=ids.device)

    def score(self, ids, _length):
        return torch.zeros(len(ids), device=ids.device)


# ---- the equations -----------------------------------------------------------------------------
def advantages(reward, cfg):
    """reward (N,), the k of a prompt side by side -> (N,). [RLOO] 2.2; [GRPO] 4.1.2"""
    group = reward.view(-1, cfg.k)                                        # (N / k, k)
    adv = group - group.mean(1, keepdim=True)
    if cfg.baseline == "others":
        adv = adv * cfg.k / (cfg.k - 1)     # the mean of the others differs from that of all
    if cfg.std:
        adv = adv / (group.std(1, keepdim=True) + 1e-4)
    return adv.flatten()


def rloo_losses(models, rollout, cfg, device):
    """-A log pi, sums or means over a response's tokens, mean over responses; and k3 if it is a
    loss. Yields (weight, loss, stats) for each micro-batch of (ppo.Rollout, stats)."""
    full, rollout_stats = rollout
    for rows, _ in data.by_length(full.total, cfg.microbatch, processes.share):
        x = full.rows(rows)
        weight = 1 / x.mask.sum(1) if cfg.length else torch.ones(len(rows))
        mask, weight = data.to_device(device, x.mask, weight)
        logp, _ = models.policy.logp(x.ids, x.mask)                       # (B, T-1), 0 off the mask
        policy_loss = -(weight[:, None] * x.adv * logp).sum() / len(rows)
        stats = {"policy_loss": policy_loss} | rollout_stats
        loss = policy_loss
        if cfg.kl == "loss":
            ref_logp, _ = models.reference.logp(x.ids, x.mask)
            _, k3 = ppo.kl_estimates(logp, ref_logp, mask)
            loss = loss + cfg.kl_coef * (weight * k3).mean()
        yield len(rows) / len(full.total), loss, stats


# ---- the loop ----------------------------------------------------------------------------------
def rollouts(models, inputs, cfg, judge, start=0):
    """(ppo.Rollout, stats) of iteration `start` and all later ones; a step follows each."""
    beta = cfg.kl_coef if cfg.kl == "reward" else 0.0
    for iteration in range(start, cfg.iterations):
        picks = data.rows_at(iteration, len(inputs.prompts), cfg.rollout // cfg.k, cfg.seed)
        rows = [i for i in picks for _ in range(cfg.k)]
        prompts = data.pad([inputs.prompts[i] for i in rows])
        seed = step_seed(cfg.seed, f"rollout {iteration}")
        rollout, stats = ppo.roll_out(models, prompts, cfg, beta, inputs.enc.eot_token, seed)
        asked, said = [inputs.records[i] for i in rows], rollout.responses()
        stats |= interop.true_score(asked, said, inputs.enc)
        texts = [data.decode_response(inputs.enc, ids) for ids in said]
        points = [judge(*pair) for pair in zip(asked, texts)]
        for x in points:
            if not isinstance(x, numbers.Real) or not math.isfinite(x):
                raise ValueError(f"--reward {cfg.reward} returned {x!r}, and must return a number "
                                 f"that is finite")
        judged = torch.tensor(points, dtype=torch.float32)
        stats["judged"] = judged.mean().item()
        # Without values and discount, the return of the first action is the response's reward.
        judged, first = data.to_device(rollout.ids.device, judged, prompts.length[:, None] - 1)
        reward = rollout.returns.gather(1, first).squeeze(1) + judged
        adv = advantages(reward, cfg)[:, None].expand_as(rollout.adv)     # (N, T-1)
        yield rollout._replace(adv=adv), stats


def load_models(cfg, device):
    """-> ppo.Models without a value function, the tokenizer."""
    if cfg.rm:
        models, enc = ppo.load_models(cfg, device)
        return models._replace(value=Zero()), enc
    policy, checkpoint = interop.load_model(cfg.init, GPT)
    with processes.autocast(cfg):
        reference = processes.frozen_copy(policy, device)
    return ppo.Models(policy, Zero(), reference, Zero()), interop.tokenizer_of(checkpoint)


def main(cfg):
    files.require("--init", interop.model_files(cfg.init), "python sft.py --init base.pt")
    if cfg.rm or not cfg.reward:
        files.require("--rm", interop.model_files(cfg.rm), "python reward.py --init sft.pt")
    if cfg.rollout % cfg.k:
        raise ValueError(f"--rollout {cfg.rollout} is no multiple of --k {cfg.k}: change one")
    judge = cli.function("--reward", cfg.reward) if cfg.reward else lambda _prompt, _text: 0.0
    run = files.begin(cfg, "rloo", init=interop.model_files(cfg.init),
                      rm=interop.model_files(cfg.rm), prompts=cfg.prompts)
    if run.metrics is not None:
        return run.metrics
    models, enc = load_models(cfg, run.device)
    counts = Counter()
    inputs = ppo.load_inputs(cfg, enc, models.policy.cfg.block_size, counts)
    print(interop.report(counts))

    def evaluate(step, policy):
        scores = answer(policy, models.rm, inputs.prompts[-ppo.ASKED:], enc, cfg.max_new, step)
        return {"eval_score": sum(scores) / len(scores)}

    return train(run, [Network(models.policy, cfg.lr)],
                 lambda start: rollouts(models, inputs, cfg, judge, start),
                 lambda rollout: rloo_losses(models, rollout, cfg, run.device), cfg.iterations,
                 interop.tokenizer_id(enc), evaluate)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
