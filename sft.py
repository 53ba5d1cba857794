"""6/8  Stage 1: supervised fine-tuning on demonstrations. The loss is on the assistant's tokens.

    python sft.py --init base.pt --out sft.pt                      # the sandbox's demonstrations
    python sft.py --init base.pt --data demonstrations.jsonl --out sft.pt
    python sft.py --init base.pt --rated ratings.jsonl --epochs 4 --out feedme.pt      # FeedME

In the sandbox (seeds 306 to 310) the loss falls from 2.3 to 0.1 nats a token.

DEVIATION [IG] C.3: one model is both the SFT baseline and the start of PPO, with 10 % pretraining
mixed in. The paper's baseline has no mix (`--ptx-mix 0`); its start of PPO has it, for 2 epochs.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

import data
import interop
from generate import answer
from model import GPT, Scorer
from plumbing import cli, files, processes
from train import Network, TrainConfig, mean_loss, train


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the pretrained model to start from, made by pretrain.py
    out: str = "sft.pt"             # the checkpoint to write
    data: tuple[str, ...] = ()      # demonstrations, files in any known format; none: the sandbox's
    rated: tuple[str, ...] = ()     # ratings (label.py --rate), whose 7s join the demonstrations:
                                    # FeedME, OpenAI's text-davinci-001 and 002
    columns: str = ""               # names of fields of --data: prompt=question,response=answer
    ptx: tuple[str, ...] = ()       # pretraining text for --ptx-mix, files; none: the sandbox's
    ptx_mix: float = 0.1            # its share of the loss ([IG] C.3: 10 % of data); [0, 1)
    demonstrations: int = 60        # of the sandbox, if there is no --data; [1, 10_000_000]
    epochs: int = 16                # [IG] C.1; >= 1
    batch: int = 32                 # demonstrations of one step ([IG] C.1); >= 1
    dropout: float = 0.2            # residual dropout ([IG] C.1); [0, 1)
    lr: float = 1e-3                # peak; [IG] C.1: 9.65e-6 at 1.3B and 6B; > 0
    held_out: float = 0.1           # share of the prompts kept for validation; [0, 1)
    select: str = "last"            # epoch; rm: the one with the best reward ([IG] 3.5); last | rm
    rm: str = ""                    # the reward model for --select rm
    max_new: int = 32               # longest response sampled at an evaluation, tokens; >= 1


PRESETS = {
    "sandbox": {"microbatch": 8},
    "gpt2": {"lr": 5e-5, "epochs": 3, "microbatch": 8, "max_new": 256, "ptx_mix": 0.0},
    "paper-1.3b": {"lr": 9.65e-6, "microbatch": 4, "max_new": 1000, "ptx_mix": 0.0},
    "paper-6b": {"lr": 9.65e-6, "microbatch": 1, "max_new": 1000, "ptx_mix": 0.0},
}
ASKED = 64          # validation prompts that are answered at an evaluation


class Minibatch(NamedTuple):
    demonstrations: list    # [(ids, trained), ...]
    text: Tensor            # (B, T) blocks of pretraining text; B is 0 without a mix


def batches(rows, text, cfg, start):
    """Minibatches from step `start` on: shuffled epochs over demonstrations and blocks of text."""
    mixed = max(1, cfg.batch // 4) if len(text) else 0      # blocks of a step; not in [IG]
    for step in itertools.count(start):
        chosen = [rows[i] for i in data.rows_at(step, len(rows), cfg.batch, cfg.seed)]
        chosen.sort(key=lambda r: len(r[0]))                # rows of like length need few pads
        blocks = text[data.rows_at(step, len(text), mixed, cfg.seed)]
        yield Minibatch(chosen, blocks)


def sft_losses(model, minibatch, cfg, device):
    """Mean cross-entropy of the assistant's tokens, and --ptx-mix of that of pretraining text.

    Yields (weight, loss, stats) for each micro-batch. The paper does not say whether prompts are
    trained on as well; here they are not.
    """
    rows, text = minibatch
    tokens = sum(sum(trained[1:]) for _, trained in rows)   # [1:]: in the action frame
    for chunk in data.chunks(processes.share(rows), cfg.microbatch):
        batch = data.tokens_batch(chunk, device)
        loss = model.loss(*batch)
        weight = int(batch.mask.sum()) / tokens
        yield weight, (1 - cfg.ptx_mix) * loss, {"loss": loss}
    for chunk in data.chunks(processes.share(text), cfg.microbatch):
        loss = model.loss(*data.text_batch(chunk, device))
        yield len(chunk) / len(text), cfg.ptx_mix * loss, {"ptx_loss": loss}


def load_demonstrations(cfg, enc, counts):
    """(to train on, held out): those of --data or the sandbox's, and the 7s of --rated."""
    records = interop.load("demonstrations", cfg.data, counts, flag="--data", enc=enc,
                           columns=cfg.columns, n=cfg.demonstrations, seed=cfg.seed,
                           strict=cfg.strict)
    if cfg.rated:
        records += interop.load("demonstrations", cfg.rated, counts, flag="--rated",
                                strict=cfg.strict)
        if not counts["samples rated 7 of 7"]:
            raise ValueError(f"{' '.join(cfg.rated)} has no sample rated 7: "
                             f"`python label.py --rate --init sft.pt` makes ratings")
    return interop.split(records, cfg.held_out)


def check(cfg):
    """Raise ValueError for settings that do not go together."""
    files.require("--init", interop.model_files(cfg.init), "python pretrain.py --out base.pt")
    if (cfg.select == "rm") != bool(cfg.rm):
        raise ValueError("--select rm needs --rm FILE, and nothing else does")


def main(cfg):
    check(cfg)
    run = files.begin(cfg, "sft", init=interop.model_files(cfg.init), data=cfg.data,
                      rated=cfg.rated, ptx=cfg.ptx, rm=interop.model_files(cfg.rm))
    if run.metrics is not None:
        return run.metrics
    model, checkpoint = interop.load_model(cfg.init, GPT, dropout=cfg.dropout)
    enc, context, counts = interop.tokenizer_of(checkpoint), model.cfg.block_size, Counter()
    records, held_out = load_demonstrations(cfg, enc, counts)
    rows = interop.encode_demonstrations(records, enc, context, counts)
    # If no prompt is held out, the first that is trained on stands in for one.
    held = interop.encode_demonstrations(held_out, enc, context, counts) if held_out else rows[:1]
    asked = [data.Prompt(r.messages[:-1]) for r in held_out or records[:1]]
    prompts = interop.encode_prompts(asked, enc, context - cfg.max_new, counts)[:ASKED]
    text = interop.load_text(cfg.ptx, counts, enc, context, flag="--ptx", n=5000,
                             seed=f"ptx {cfg.seed}", strict=cfg.strict, wanted=cfg.ptx_mix > 0)
    print(interop.report(counts))
    rm = None
    if cfg.rm:
        rm, _ = interop.load_model(cfg.rm, Scorer, checkpoint["tokenizer"], run.device,
                                   context=context)
        rm.eval()

    def evaluate(step, model):
        chunks = processes.mine(data.chunks(held, cfg.microbatch or 64))
        held_batches = (data.tokens_batch(chunk, run.device) for chunk in chunks)
        metrics = {"held_out_loss": mean_loss(model, held_batches)}
        scores = answer(model, rm, prompts, enc, cfg.max_new, step, cfg.microbatch, processes.mine)
        if rm:
            score = processes.all_mean(sum(scores), len(scores))
            metrics |= {"rm_score": score, "select": score}
        return metrics

    epoch = -(-len(rows) // cfg.batch)                       # steps
    every = cfg.eval_every or epoch * (1 if rm else 4)
    run = run._replace(cfg=replace(cfg, eval_every=every))
    return train(run, [Network(model, cfg.lr)], lambda start: batches(rows, text, cfg, start),
                 lambda minibatch: sft_losses(model, minibatch, cfg, run.device),
                 epoch * cfg.epochs, interop.tokenizer_id(enc), evaluate)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
