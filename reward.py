"""Stage 2: the reward model, trained on rankings of K responses to a prompt.

All C(K,2) pairs of a prompt are one batch element: each response is scored once, not once per pair, and the prompt that
the K responses share is computed once. Ties are dropped; a prompt's loss is the mean over the pairs that are left.

    python reward.py --init sft.pt --data comparisons.jsonl --out rm.pt

--compile has nothing to compile here: every pass of a training step has a past, the shared prompt.

DEVIATION [IG] C.2: starts from the SFT model, as [IG] 3.5 says; the paper's final reward model started from a GPT-3 that
was fine-tuned on public NLP data sets, "for historical reasons", and with similar results.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [S20] Stiennon et al. 2020, arXiv 2009.01325
"""
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F

import cli
import data
import formats
import sandbox
import train
from model import checkpoint_files, load_model, prefix, read_checkpoint, save_checkpoint, scorer_from
from train import Network, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the model whose trunk to start from, made by sft.py ([IG] 3.5)
    data: tuple[str, ...] = ()      # rankings, made by label.py or in any format of formats.py
    columns: str = ""               # names of the fields of --data, where they differ: chosen=best,rejected=worst
    out: str = "rm.pt"              # the checkpoint to write
    demos: tuple[str, ...] = ()     # demonstrations that get mean score 0 ([IG] 3.5), files; none: the sandbox's
    epochs: int = 1                 # more overfit ([IG] C.2)
    batch: int = 16                 # prompts of one step; [IG] C.2: 64
    lr: float = 5e-4                # peak; [IG] C.2: 9e-6 at 6B
    warmup: int = 20                # steps; not in [IG]
    held_out: float = 0.1           # share of the prompts kept for validation
    held_out_labelers: tuple[str, ...] = ("labeler 5",)   # whose rankings are never trained on ([IG] 4.1)


PRESETS = {
    "sandbox": {},
    "gpt2": {"lr": 2e-5, "batch": 64, "microbatch": 4, "warmup": 0},
    "paper-1.3b": {"lr": 1.5e-5, "batch": 64, "microbatch": 2, "warmup": 0},   # [S20]; [IG] has no reward model of this size
    "paper-6b": {"lr": 9e-6, "batch": 64, "microbatch": 1, "warmup": 0},
}


def pairwise_loss(score, better, worse, weight):
    """-1/C(K,2) sum over a prompt's pairs of log sigmoid(r_better - r_worse), mean over prompts. [IG] Eq. 1

    score (N,), better and worse (M,) rows of score, weight (M,) = 1 / pairs of that prompt.
    """
    return -(weight * F.logsigmoid(score[better] - score[worse])).sum() / weight.sum()


def score_responses(rm, batch):
    """Scores (N,) of a data.Rankings batch; each prompt is computed once and handed to its responses."""
    past = prefix(rm.trunk, batch.prompts.ids, batch.prompts.length, batch.owner)
    return rm.score(batch.ids, batch.length, past)


def agreement(rankings):
    """How often two labelers who both had a preference agree, over pairs of the same outputs. -> (share, pairs)."""
    judged = defaultdict(dict)
    for r in rankings:
        outputs = (str(r.messages), tuple(r.responses))
        for i, j in r.pairs:
            judged[(*outputs, min(i, j), max(i, j))][r.labeler] = i < j
    votes = [a == b for by in judged.values() for a, b in combinations(by.values(), 2)]
    return sum(votes) / max(1, len(votes)), len(votes)


@torch.no_grad()
def pair_margins(rm, encoded, device, microbatch=64):
    """[(r_better - r_worse, use case), ...] for every pair of encoded rankings."""
    margins = []
    for chunk in train.mine(data.chunks(encoded, microbatch)):
        batch = data.rankings_batch(chunk, device)
        score = score_responses(rm, batch)
        cases = [r.ranking.use_case for r in chunk for _ in r.pairs]
        margins += zip((score[batch.better] - score[batch.worse]).tolist(), cases)
    return train.all_list(margins)


def calibration_error(margins, bins=10):
    """Mean |accuracy - confidence| over bins of confidence sigmoid(|margin|) in [0.5, 1], weighted by their pairs."""
    confidence = torch.tensor([abs(m) for m, _ in margins]).sigmoid()
    right = torch.tensor([float(m > 0) for m, _ in margins])
    bin = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    return sum((right[bin == b].mean() - confidence[bin == b].mean()).abs().item() * int((bin == b).sum())
               for b in bin.unique().tolist()) / len(margins)


@torch.no_grad()
def mean_score(rm, encoded, device, microbatch=64):
    """Mean score of demonstrations [(ids, trained), ...]."""
    scores = [s for chunk in train.mine(data.chunks(encoded, microbatch))
              for s in rm.score(*data.pad([ids for ids, _ in chunk], device=device)).tolist()]
    return train.all_mean(sum(scores), len(scores))


def main(cfg):
    if not cfg.init or not cfg.data:
        raise ValueError("--init and --data are needed: `python sft.py --init base.pt --out sft.pt` makes the one, "
                         "`python label.py --init sft.pt --out comparisons.jsonl` the other")
    meta = train.provenance(cfg, "reward", init=checkpoint_files(cfg.init), data=cfg.data, demos=cfg.demos)
    if (metrics := train.already_done(cfg, meta, read_checkpoint)) is not None:
        return metrics
    device = train.join(cfg)
    gpt, checkpoint = load_model(cfg.init, "gpt")
    torch.manual_seed(cfg.seed)
    rm = scorer_from(gpt)
    if not cfg.demos and checkpoint["tokenizer"]["name"] != "sandbox":
        raise ValueError("--demos is missing: the demonstrations that get mean score 0, those that sft.py was trained on")
    enc, block, counts = data.tokenizer_of(checkpoint), gpt.cfg.block_size, Counter()
    rankings = data.rankings(formats.read_records(cfg.data, counts, cfg.columns), counts)
    if cfg.demos:
        demos = data.demonstrations(formats.read_records(cfg.demos, counts), counts)
    else:
        demos = sandbox.demonstrations(seed=cfg.seed)
    demos = data.encode_demonstrations(demos, enc, block, counts)
    in_group = [r for r in rankings if r.labeler not in cfg.held_out_labelers]
    train_on, held_out = data.split(in_group, cfg.held_out)
    _, outsiders = data.split([r for r in rankings if r.labeler in cfg.held_out_labelers], cfg.held_out)   # of the same prompts
    if not train_on or not held_out:
        raise ValueError(f"{' '.join(cfg.data)}: {len(in_group)} rankings are too few to hold out {cfg.held_out:.0%} of the "
                         f"prompts: add some or change --held-out")
    train_on, held_out = (data.encode_rankings(r, enc, block, counts) for r in (train_on, held_out))
    outsiders = data.encode_rankings(outsiders, enc, block, counts) if outsiders else []
    agreed, votes = agreement(rankings)
    print(data.report(counts) + f"; two labelers agree on {agreed:.1%} of {votes:,} pairs")

    def losses(rows):
        by_length = sorted((train_on[i] for i in rows), key=lambda r: len(r.prompt))
        for chunk in data.chunks(train.share(by_length), cfg.microbatch):
            batch = data.rankings_batch(chunk, device)
            score = score_responses(rm, batch)
            loss = pairwise_loss(score, batch.better, batch.worse, batch.weight)
            right = (score[batch.better] > score[batch.worse]).float()
            yield len(chunk) / len(rows), loss, {"loss": loss, "accuracy": (batch.weight * right).sum() / batch.weight.sum()}

    def evaluate(step, rm):
        rows = cfg.microbatch or 64
        rm.head.bias.data -= mean_score(rm, demos, device, rows)    # [IG] 3.5; the loss does not see a shift.
        # It is the trained model's own head, also where `rm` is train.whole's copy
        margins = pair_margins(rm, held_out, device, rows)
        metrics = {"held_out_accuracy": sum(m > 0 for m, _ in margins) / len(margins), "held_out_pairs": len(margins),
                   "held_out_loss": sum(max(-m, 0) + math.log1p(math.exp(-abs(m))) for m, _ in margins) / len(margins),
                   "calibration_error": calibration_error(margins), "labeler_agreement": agreed,
                   "demonstrations_mean_score": mean_score(rm, demos, device, rows)}
        for case in sorted({c for _, c in margins}):
            of_case = [m > 0 for m, c in margins if c == case]
            metrics[f"accuracy {case}"] = sum(of_case) / len(of_case)
        if outsiders:
            others = pair_margins(rm, outsiders, device, rows)
            metrics["held_out_labelers_accuracy"] = sum(m > 0 for m, _ in others) / len(others)
        return metrics

    steps = -(-len(train_on) // cfg.batch) * cfg.epochs
    metrics = train.train(
        [Network(rm, cfg.lr, keep=True)], lambda step: data.rows_at(step, len(train_on), cfg.batch, cfg.seed), losses, cfg,
        steps=steps, meta=meta, read=read_checkpoint, evaluate=evaluate,
        save=lambda path, module, meta, **more: save_checkpoint(path, module, data.tokenizer_id(enc), meta, **more))
    print("\n".join(f"{k:34} {v:.3f}" for k, v in metrics.items()))
    return metrics


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
