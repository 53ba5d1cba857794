"""Direct preference optimisation: rankings train the policy itself, without reward model and RL.

    python -m forks.dpo --init sft.pt --data comparisons.jsonl --out dpo.pt

Against reward.py: each response gets a log-probability instead of a score, minus what the policy at
the start gave it; that difference times beta is the *implicit reward*, and the loss over the pairs
of a prompt is the reward model's. Each response is computed once, whatever K is, and each prompt
once for all its responses; the reference's log-probabilities are computed once for the whole run.

Why does the log-probability of the chosen response fall? The loss sees nothing but the difference
of two responses, and a step that lowers both, the rejected one more, is as good as any other. So
the log has both: chosen_change and rejected_change, nats since the start, on held-out rankings; in
the sandbox (seeds 306 to 310) -0.5 and -2.1, with --beta 0.1 and a constant rate -3.4 and -9.9.
Why does the implicit reward start at 0 here, and elsewhere not? Policy and reference are the same
network in the same precision, and dropout is off: the first line of the log has loss log 2.

[DPO] Rafailov et al. 2023, arXiv 2305.18290   [IPO] Azar et al. 2023, arXiv 2310.12036
[cDPO] Mitchell 2023, A note on DPO with noisy preferences
"""
import itertools
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data
import interop
from generate import prefix, sample
from model import GPT
from plumbing import cli, files, processes
from reward import load_rankings
from train import Network, TrainConfig, train


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the policy to start from, and the reference; made by sft.py
    data: tuple[str, ...] = ()      # rankings, made by label.py or in any known format
    columns: str = ""               # names of fields of --data: chosen=best,rejected=worst
    out: str = "dpo.pt"             # the checkpoint to write
    beta: float = 0.5               # what a nat costs: stay near the reference; [DPO]: 0.1; > 0
    ipo: bool = False               # the square loss of [IPO], whose margins end at 1 / (2 beta)
    smooth: float = 0.0             # share of the labels taken for wrong ([cDPO]); [0, 1)
    epochs: int = 1                 # >= 1
    batch: int = 8                  # prompts of one step; >= 1
    lr: float = 5e-5                # peak; > 0
    warmup: int = 20                # steps; >= 0
    max_new: int = 32               # longest response of an evaluation, tokens; >= 1
    held_out: float = 0.1           # share of the prompts kept for validation; (0, 1)
    held_out_labelers: tuple[str, ...] = ()   # never trained on; none: sandbox's fifth


PRESETS = {"sandbox": {"microbatch": 4, "eval_every": 200},
           "gpt2": {"lr": 1e-6, "batch": 64, "microbatch": 4}}
ASKED = 64          # held-out prompts that are answered at an evaluation, for the KL


# ---- the loss ----------------------------------------------------------------------------------
def preference_loss(margin, weight, cfg):
    """-log sigmoid(beta h), mean over prompts. margin h (M,): how much more the policy prefers the
    better response of a pair than the reference does, nats; weight (M,) = 1 / pairs of that prompt.
    [DPO] Eq. 7; [cDPO]; [IPO] Eq. 17"""
    z = cfg.beta * margin
    loss = -(1 - cfg.smooth) * F.logsigmoid(z) - cfg.smooth * F.logsigmoid(-z)
    if cfg.ipo:
        loss = (margin - 0.5 / cfg.beta) ** 2
    return (weight * loss).sum() / weight.sum()


def response_logp(model, rankings, device):
    """Encoded rankings -> the log-probability (N,) of each response, nats; data.Comparisons. Each
    prompt is computed once."""
    # The model reads a prompt but for its last token, from which a response's first is predicted.
    rows = [r._replace(prompt=r.prompt[:-1], responses=[[r.prompt[-1], *x] for x in r.responses])
            for r in rankings]
    batch = data.comparisons_batch(rows, device)
    length = torch.tensor([len(x) for r in rows for x in r.responses])    # (N,)
    mask = data.action_mask(torch.ones_like(length), length, batch.ids.shape[1])
    past = prefix(model, batch.prompts.ids, batch.prompts.length, batch.owner)
    return model.logp(batch.ids, mask, past=past)[0].sum(1), batch


def preference_stats(policy, items, cfg, device):
    """[(data.EncodedRanking, its responses' log-probabilities under the reference)] -> loss, stats.

    A `change` is since the start, nats, of the better and of the worse response of a pair."""
    rankings, known = zip(*items)
    logp, batch = response_logp(policy, rankings, device)
    change = logp - data.to_device(device, torch.cat(known))[0]           # (N,)
    better, worse = change[batch.better], change[batch.worse]             # (M,)
    loss, mean = preference_loss(better - worse, batch.weight, cfg), batch.weight / len(items)
    return loss, {"loss": loss, "accuracy": (mean * (better > worse)).sum(),
                  "reward_margin": cfg.beta * (mean * (better - worse)).sum(),
                  "chosen_change": (mean * better).sum(), "rejected_change": (mean * worse).sum()}


def dpo_losses(policy, items, cfg, device):
    """The loss of a step in micro-batches: yields (weight, loss, stats)."""
    ordered = sorted(items, key=lambda item: len(item[0].prompt))   # like lengths need few pads
    for chunk in data.chunks(processes.share(ordered), cfg.microbatch):
        yield len(chunk) / len(items), *preference_stats(policy, chunk, cfg, device)


# ---- wiring ------------------------------------------------------------------------------------
@torch.no_grad()
def with_reference(reference, rankings, device, microbatch):
    """Encoded rankings -> the items of preference_stats: the reference is asked once in a run."""
    items, ordered = [], sorted(rankings, key=lambda r: len(r.prompt))
    for chunk in data.chunks(ordered, 4 * microbatch or 64):   # fit where no gradient is kept
        logp, _ = response_logp(reference, chunk, device)
        items += zip(chunk, logp.cpu().split([len(r.responses) for r in chunk]))
    return items


@torch.no_grad()
def kl_to_reference(policy, reference, prompts, enc, cfg, seed):
    """KL(policy || reference) of the policy's responses to some prompts, nats each."""
    said = sample(policy, prompts, cfg.max_new, enc.eot_token, seed=seed)
    length = torch.tensor([len(p) for p in prompts])
    mask = data.action_mask(length, said.length.cpu(), said.ids.shape[1])
    ours, theirs = (model.logp(said.ids, mask)[0].sum(1) for model in (policy, reference))
    return (ours - theirs).mean().item()


@torch.no_grad()
def quality(policy, items, cfg, device):
    """preference_stats of held-out rankings, means over prompts."""
    sums = Counter()
    for chunk in processes.mine(data.chunks(items, cfg.microbatch or 64)):
        _, stats = preference_stats(policy, chunk, cfg, device)
        sums.update({k: len(chunk) * v for k, v in processes.numbers(stats).items()})
    return {f"held_out_{k}": total / len(items) for k, total in processes.sums(sums).items()}


def main(cfg):
    init = interop.model_files(cfg.init)
    files.require("--init", init, "python sft.py --init base.pt --out sft.pt")
    files.require("--data", cfg.data, "python label.py --init sft.pt --out comparisons.jsonl")
    if cfg.ipo and cfg.smooth:
        raise ValueError("--ipo is a loss of its own, without --smooth: choose one")
    run = files.begin(cfg, "dpo", init=init, data=cfg.data)
    if run.metrics is not None:
        return run.metrics
    policy, checkpoint = interop.load_model(cfg.init, GPT)
    enc, context, counts = interop.tokenizer_of(checkpoint), policy.cfg.block_size, Counter()
    train_on, held_out, _, _ = load_rankings(cfg, enc, context, counts)
    print(interop.report(counts))
    with processes.autocast(cfg):
        reference = processes.frozen_copy(policy, run.device)
        items, held_items = (with_reference(reference, part, run.device, cfg.microbatch)
                             for part in (train_on, held_out))
    asked = [r.prompt[-(context - cfg.max_new):] for r in held_out[:ASKED]]

    def batches(start):
        for step in itertools.count(start):
            rows = data.rows_at(step, len(items), cfg.batch, cfg.seed)
            yield [items[i] for i in rows]

    def evaluate(step, policy):
        metrics = quality(policy, held_items, cfg, run.device)
        return metrics | {"kl": kl_to_reference(policy, reference, asked, enc, cfg, step)}

    # keep: responses send gradients into the blocks of an earlier pass, that over the prompts
    return train(run, [Network(policy, cfg.lr, keep=True)], batches,
                 lambda items: dpo_losses(policy, items, cfg, run.device),
                 -(-len(items) // cfg.batch) * cfg.epochs, interop.tokenizer_id(enc), evaluate)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
