"""7/8  Stage 2: the reward model, trained on rankings of K responses to a prompt.

All C(K,2) pairs of a prompt are one batch element: each response is scored once, not once a pair,
and the prompt that the K responses share is computed once. Ties are dropped; a prompt's loss is the
mean over the pairs that are left.

    python reward.py --init sft.pt --data comparisons.jsonl --out rm.pt

In the sandbox (seeds 306-310) it predicts 0.72 of held-out comparisons; two labelers agree on 0.74.

DEVIATION [IG] C.2: starts from the SFT model, as [IG] 3.5 says; the paper's final reward model
started from a GPT-3 fine-tuned on public NLP data sets, "for historical reasons", no better.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [S20] Stiennon et al. 2020, arXiv 2009.01325
"""
import itertools
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data
import interop
from generate import prefix
from model import GPT, scorer_from
from plumbing import cli, files, processes
from train import Network, TrainConfig, train


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the model whose trunk to start from, made by sft.py ([IG] 3.5)
    data: tuple[str, ...] = ()      # rankings, made by label.py or in any known format
    columns: str = ""               # names of fields of --data: chosen=best,rejected=worst
    out: str = "rm.pt"              # the checkpoint to write
    demos: tuple[str, ...] = ()     # demonstrations that get mean score 0, files; none: sandbox's
    epochs: int = 1                 # more overfit ([IG] C.2); >= 1
    batch: int = 8                  # prompts of one step; [IG] C.2: 64; >= 1
    lr: float = 3e-4                # peak; [IG] C.2: 9e-6 at 6B; > 0
    warmup: int = 20                # steps; not in [IG]; >= 0
    held_out: float = 0.1           # share of the prompts kept for validation; (0, 1)
    held_out_labelers: tuple[str, ...] = ()   # never trained on ([IG] 4.1); none: sandbox's fifth


PRESETS = {
    "sandbox": {"microbatch": 4},       # of prompts of like length: most are short
    "gpt2": {"lr": 2e-5, "batch": 64, "microbatch": 4, "warmup": 0},
    # [S20]; [IG] has no reward model of this size
    "paper-1.3b": {"lr": 1.5e-5, "batch": 64, "microbatch": 2, "warmup": 0},
    "paper-6b": {"lr": 9e-6, "batch": 64, "microbatch": 1, "warmup": 0},
}


# ---- the loss ----------------------------------------------------------------------------------
def pairwise_loss(score, better, worse, weight):
    """-1/C(K,2) sum over a prompt's pairs of log sigmoid(r_better - r_worse), mean over prompts.

    score (N,); better and worse (M,) are rows of score; weight (M,) = 1 / pairs of that prompt.
    [IG] Eq. 1
    """
    return -(weight * F.logsigmoid(score[better] - score[worse])).sum() / weight.sum()


def score_responses(rm, batch):
    """Scores (N,) of data.Comparisons; each prompt is computed once and handed to its responses."""
    past = prefix(rm.trunk, batch.prompts.ids, batch.prompts.length, batch.owner)
    return rm.score(batch.ids, batch.length, past)


def reward_losses(rm, rankings, cfg, device):
    """The loss of data.EncodedRankings in micro-batches: yields (weight, loss, stats)."""
    ordered = sorted(rankings, key=lambda r: len(r.prompt))     # like lengths need few pads
    for chunk in data.chunks(processes.share(ordered), cfg.microbatch):
        batch = data.comparisons_batch(chunk, device)
        score = score_responses(rm, batch)
        loss = pairwise_loss(score, batch.better, batch.worse, batch.weight)
        right = (score[batch.better] > score[batch.worse]).float()
        right = (batch.weight * right).sum() / batch.weight.sum()
        yield len(chunk) / len(rankings), loss, {"loss": loss, "accuracy": right}


# ---- the normalisation -------------------------------------------------------------------------
@torch.no_grad()
def mean_score(rm, demonstrations, device, microbatch):
    """Mean score of encoded demonstrations [(ids, trained), ...], a number."""
    scores = []
    for chunk in processes.mine(data.chunks(demonstrations, microbatch or 64)):
        ids, length = data.pad([ids for ids, _ in chunk], device)
        scores += rm.score(ids, length).tolist()
    return processes.all_mean(sum(scores), len(scores))


def normalise(rm, demonstrations, device, microbatch):
    """Shift the head's bias so that demonstrations have mean score 0; no loss sees it. [IG] 3.5"""
    rm.head.bias.data -= mean_score(rm, demonstrations, device, microbatch)
    torch.clear_autocast_cache()                             # it keeps the former bias, rounded


# ---- how good it is ----------------------------------------------------------------------------
@torch.no_grad()
def pair_margins(rm, rankings, device, microbatch):
    """[(r_better - r_worse, use case), ...] for every pair of encoded rankings."""
    margins = []
    for chunk in processes.mine(data.chunks(rankings, microbatch or 64)):
        batch = data.comparisons_batch(chunk, device)
        score = score_responses(rm, batch)
        margin = (score[batch.better] - score[batch.worse]).tolist()
        margins += zip(margin, [r.use_case for r in chunk for _ in r.pairs])
    return processes.all_list(margins)


def accuracy(margins):
    """Share of the pairs whose better response has the higher score."""
    return sum(margin > 0 for margin, _ in margins) / len(margins)


def calibration_error(margin, bins=10):
    """Mean |accuracy - confidence| over bins of confidence, weighted by their pairs.

    margin (M,); the confidence of a pair is sigmoid(|margin|), from 0.5 to 1."""
    confidence, right = margin.abs().sigmoid(), (margin > 0).double()
    bin = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    total = 0.0
    for b in bin.unique():
        gap = (right[bin == b] - confidence[bin == b]).mean().abs()
        total += gap.item() * int((bin == b).sum())
    return total / len(margin)


def quality(rm, rankings, device, microbatch):
    """Accuracy, loss and calibration on held-out rankings, means over pairs -> metrics."""
    margins = pair_margins(rm, rankings, device, microbatch)
    margin = torch.tensor([margin for margin, _ in margins], dtype=torch.float64)
    metrics = {"held_out_accuracy": accuracy(margins), "held_out_pairs": len(margins),
               "held_out_loss": -F.logsigmoid(margin).mean().item(),
               "calibration_error": calibration_error(margin)}
    for case in sorted({case for _, case in margins}):
        metrics[f"accuracy {case}"] = accuracy([m for m in margins if m[1] == case])
    return metrics


def load_rankings(cfg, enc, context, counts):
    """-> encoded rankings: to train on, of held-out prompts, of those by held-out labelers; and how
    far labelers agree, (share, pairs)."""
    rankings = interop.load("rankings", cfg.data, counts, flag="--data", columns=cfg.columns,
                            strict=cfg.strict)
    in_group, outsiders = interop.hold_out_labelers(rankings, cfg.held_out_labelers, enc)
    train_on, held_out = interop.split(in_group, cfg.held_out)
    _, outsiders = interop.split(outsiders, cfg.held_out)
    if not train_on or not held_out:
        raise ValueError(f"{' '.join(cfg.data)}: {len(in_group)} rankings are too few to hold out "
                         f"{cfg.held_out:.0%} of the prompts: add some or change --held-out")
    parts = [interop.encode_rankings(part, enc, context, counts) if part else []
             for part in (train_on, held_out, outsiders)]
    return *parts, interop.agreement(rankings)


def main(cfg):
    init = interop.model_files(cfg.init)
    files.require("--init", init, "python sft.py --init base.pt --out sft.pt")
    files.require("--data", cfg.data, "python label.py --init sft.pt --out comparisons.jsonl")
    run = files.begin(cfg, "reward", init=init, data=cfg.data, demos=cfg.demos)
    if run.metrics is not None:
        return run.metrics
    gpt, checkpoint = interop.load_model(cfg.init, GPT)
    torch.manual_seed(cfg.seed)
    rm = scorer_from(gpt)
    enc, context, counts = interop.tokenizer_of(checkpoint), gpt.cfg.block_size, Counter()
    demos = interop.load("demonstrations", cfg.demos, counts, flag="--demos", enc=enc, n=400,
                         seed=cfg.seed, strict=cfg.strict)
    rankings, held_out, outsiders, (agreed, votes) = load_rankings(cfg, enc, context, counts)
    demos = interop.encode_demonstrations(demos, enc, context, counts)
    print(interop.report(counts))

    def batches(start):
        for step in itertools.count(start):
            rows = data.rows_at(step, len(rankings), cfg.batch, cfg.seed)
            yield [rankings[i] for i in rows]

    def evaluate(step, rm):
        metrics = quality(rm, held_out, run.device, cfg.microbatch)
        metrics |= {"labeler_agreement": agreed} if votes else {}
        metrics["demonstrations_mean_score"] = mean_score(rm, demos, run.device, cfg.microbatch)
        if outsiders:
            margins = pair_margins(rm, outsiders, run.device, cfg.microbatch)
            metrics["held_out_labelers_accuracy"] = accuracy(margins)
        return metrics

    # keep: responses send gradients into the blocks of an earlier pass, that over the prompts
    metrics = train(
        run, [Network(rm, cfg.lr, keep=True)], batches,
        lambda rankings: reward_losses(rm, rankings, cfg, run.device),
        -(-len(rankings) // cfg.batch) * cfg.epochs, interop.tokenizer_id(enc), evaluate,
        finish=lambda rm: normalise(rm, demos, run.device, cfg.microbatch))
    print("\n".join(f"{k:34} {v:.3f}" for k, v in metrics.items()))
    return metrics


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
