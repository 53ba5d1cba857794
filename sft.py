"""Stage 1: supervised fine-tuning on demonstrations. The loss is on the assistant's tokens, EOS included.

    python sft.py --init base.pt --out sft.pt                              # the sandbox's demonstrations
    python sft.py --init base.pt --data demonstrations.jsonl --out sft.pt
    python sft.py --init base.pt --rated ratings.jsonl --epochs 4 --out feedme.pt   # FeedME: and the samples rated 7 of 7

DEVIATION [IG] C.3: one model is both the SFT baseline and the start of PPO, with 10 % pretraining mixed in. The paper trains
them apart: the baseline without the mix (`--ptx-mix 0`), the start of PPO for 2 epochs with it; `ppo.py --init` takes either.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
from collections import Counter
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

import cli
import data
import formats
import sandbox
import train
from model import checkpoint_files, generate, load_model, read_checkpoint, save_checkpoint
from train import Network, TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    init: str = ""                  # the pretrained model to start from, made by pretrain.py
    out: str = "sft.pt"             # the checkpoint to write
    data: tuple[str, ...] = ()      # demonstrations, files in any format of formats.py; none: the sandbox's
    rated: tuple[str, ...] = ()     # ratings, made by label.py --rate: the samples rated 7 of 7 join the demonstrations, and the
                                    # result is FeedME, OpenAI's text-davinci-001 and 002
    columns: str = ""               # names of the fields of --data, where they differ: prompt=question,response=answer
    ptx: tuple[str, ...] = ()       # pretraining text for --ptx-mix, files; none: the sandbox's corpus
    ptx_mix: float = 0.1            # pretraining tokens' share of the loss ([IG] C.3 mixes 10 % of data), 0 for none
    demonstrations: int = 400       # demonstrations of the sandbox, if there is no --data
    epochs: int = 16                # [IG] C.1
    batch: int = 32                 # demonstrations of one step ([IG] C.1)
    dropout: float = 0.2            # residual dropout ([IG] C.1)
    lr: float = 1e-3                # peak; [IG] C.1: 9.65e-6 at 1.3B and 6B
    held_out: float = 0.1           # share of the prompts kept for validation
    select: str = "last"            # last, or rm: the epoch with the best reward on validation prompts, as [IG] 3.5
    rm: str = ""                    # the reward model for --select rm
    max_new: int = 32               # longest response sampled at an evaluation, tokens


PRESETS = {
    "sandbox": {},
    "gpt2": {"lr": 5e-5, "epochs": 3, "microbatch": 8, "max_new": 256, "ptx_mix": 0.0},
    "paper-1.3b": {"lr": 9.65e-6, "microbatch": 4, "max_new": 1000, "ptx_mix": 0.0},
    "paper-6b": {"lr": 9.65e-6, "microbatch": 1, "max_new": 1000, "ptx_mix": 0.0},
}


def response_loss(model, batch):
    """Mean cross-entropy over the tokens that batch.mask marks. The paper does not say whether prompts are trained on
    as well; here they are not."""
    return model.loss(*batch)


def main(cfg):
    if not cfg.init:
        raise ValueError("--init is missing: the model to start from; make one with `python pretrain.py --out base.pt`")
    if cfg.select not in ("last", "rm") or (cfg.select == "rm") != bool(cfg.rm):
        raise ValueError("--select is last or rm; rm needs --rm FILE and nothing else does")
    if not 0 <= cfg.ptx_mix < 1:
        raise ValueError(f"--ptx-mix {cfg.ptx_mix} must be at least 0 and below 1: it is the pretraining tokens' share")
    meta = train.provenance(cfg, "sft", init=checkpoint_files(cfg.init), data=cfg.data, rated=cfg.rated, ptx=cfg.ptx,
                            rm=checkpoint_files(cfg.rm))
    if (metrics := train.already_done(cfg, meta, read_checkpoint)) is not None:
        return metrics
    device, (rank, _) = train.join(cfg), train.ranks()
    model, checkpoint = load_model(cfg.init, "gpt", dropout=cfg.dropout)
    enc, block = data.tokenizer_of(checkpoint), model.cfg.block_size
    if checkpoint["tokenizer"]["name"] != "sandbox" and not (cfg.data and (cfg.ptx or not cfg.ptx_mix)):
        raise ValueError("--data and --ptx are needed: the sandbox's own are for models that were pretrained in it; --ptx-mix 0 "
                         "does without pretraining text")
    counts = Counter()
    if cfg.data:
        records = data.demonstrations(formats.read_records(cfg.data, counts, cfg.columns), counts)
    else:
        records = sandbox.demonstrations(cfg.demonstrations, cfg.seed)
    if cfg.rated:
        records += data.demonstrations(formats.read_records(cfg.rated, counts), counts)
        if not counts["samples rated 7 of 7"]:
            raise ValueError(f"{' '.join(cfg.rated)} has no sample rated 7: `python label.py --rate --init sft.pt` makes ratings")
    records, held_out = data.split(records, cfg.held_out)
    rows = data.encode_demonstrations(records, enc, block, counts)
    held = data.encode_demonstrations(held_out, enc, block, counts) if held_out else rows[:1]
    prompts = [replace(r, messages=r.messages[:-1]) for r in held_out or records[:1]]
    prompts = data.encode_prompts(prompts, enc, block - cfg.max_new, counts)
    ptx = None
    if cfg.ptx_mix:
        docs = data.texts(formats.read_records(cfg.ptx, counts), counts) if cfg.ptx else sandbox.corpus(5000, f"ptx {cfg.seed}")
        ptx = data.pack(docs, enc, block, " ".join(cfg.ptx))
    print(data.report(counts))
    rm = load_model(cfg.rm, "scorer", checkpoint["tokenizer"], device, context=block)[0].eval() if cfg.rm else None
    steps_per_epoch = -(-len(rows) // cfg.batch)

    def losses(step):
        chosen = sorted((rows[i] for i in data.rows_at(step, len(rows), cfg.batch, cfg.seed)), key=lambda r: len(r[0]))
        trained = sum(sum(t[1:]) for _, t in chosen)
        for chunk in data.chunks(train.share(chosen), cfg.microbatch):
            loss = response_loss(model, data.tokens_batch(chunk, device))
            yield sum(sum(t[1:]) for _, t in chunk) / trained, (1 - cfg.ptx_mix) * loss, {"loss": loss}
        if ptx is not None:
            blocks = data.rows_at(step, len(ptx) // block, max(1, cfg.batch // 4), cfg.seed)
            for chunk in data.chunks(train.share(blocks), cfg.microbatch):
                loss = response_loss(model, data.text_batch(ptx, chunk, block, device))
                yield len(chunk) / len(blocks), cfg.ptx_mix * loss, {"ptx_loss": loss}

    @torch.no_grad()
    def evaluate(step, model):
        batches = [data.tokens_batch(c, device) for c in train.mine(data.chunks(held, cfg.microbatch or 64))]
        tokens = [int(b.mask.sum()) for b in batches]
        summed = sum(response_loss(model, b).item() * n for b, n in zip(batches, tokens))
        metrics = {"held_out_loss": train.all_mean(summed, sum(tokens))}
        scores = []
        for i, chunk in enumerate(data.chunks(train.mine(prompts[:64]) or prompts[:1], cfg.microbatch or 64)):
            batch = data.pad(chunk, device=device)
            ids, total = generate(model, *batch, cfg.max_new, enc.eot_token, seed=step + (rank << 32) + (i << 24))
            for b in range(min(3, len(ids)) if i == 0 else 0):
                tqdm.write(enc.decode(ids[b, :total[b]].tolist()).replace("\n\n", " | "))
            scores += rm.score(ids, total).tolist() if rm is not None else []
        if rm is not None:
            metrics["rm_score"] = metrics["select"] = train.all_mean(sum(scores), len(scores))
        return metrics

    cfg_epochs = replace(cfg, eval_every=cfg.eval_every or steps_per_epoch * (1 if rm else 4))
    return train.train(
        [Network(model, cfg.lr)], lambda step: step, losses, cfg_epochs, steps=steps_per_epoch * cfg.epochs, meta=meta,
        read=read_checkpoint, evaluate=evaluate,
        save=lambda path, module, meta, **more: save_checkpoint(path, module, data.tokenizer_id(enc), meta, **more))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
