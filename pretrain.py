"""5/8  Stage 0: next-token prediction on text. The GPT that everything else starts from.

    python pretrain.py --out base.pt                              # the sandbox's corpus
    python pretrain.py --data text.txt more/ --tokenizer gpt2 --preset gpt2 --out base.pt

On the sandbox's corpus the loss falls from 6.1 (ln of 469 tokens) to 0.9 nats a token.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [GPT3] Brown et al. 2020, arXiv 2005.14165
"""
import itertools
from collections import Counter
from dataclasses import dataclass

import torch
from tqdm import tqdm

import data
import interop
from generate import sample
from model import GPT, GPTConfig
from plumbing import cli, files, processes
from train import Network, TrainConfig, mean_loss, train


@dataclass(frozen=True)
class Config(TrainConfig):
    out: str = "base.pt"            # the checkpoint to write
    data: tuple[str, ...] = ()      # text to train on, files or folders; none: the sandbox's corpus
    columns: str = ""               # names of the fields of --data, where they differ: text=content
    separator: str = ""             # what parts the documents of plain text, $'\n\n' in a shell;
                                    # none: form feeds and the marks of books and encyclopedias
    tokenizer: str = "sandbox"      # sandbox, a name that tiktoken knows, or a .tiktoken file
    documents: int = 60_000         # documents of the sandbox's corpus; [1, 10_000_000]
    tokens: int = 3_000_000         # tokens to train on; text is repeated as that takes; >= 1
    batch: int = 12                 # blocks of one step; >= 1
    block: int = 160                # tokens of one block, at most the model's context; >= 2
    n_layer: int = 3                # blocks of the transformer; [1, 1000]
    n_head: int = 4                 # attention heads; [1, 1000]
    n_embd: int = 128               # channels; [1, 100_000]
    context: int = 160              # longest sequence the model can read, tokens; [2, 1_000_000]
    lr: float = 2e-3                # peak learning rate; > 0
    warmup: int = 100               # steps; >= 0
    weight_decay: float = 0.1       # [GPT3] B; >= 0
    eval_every: int = 400           # steps; >= 0


# [GPT3] 2.1 has the batch sizes and rates, in tokens.
LARGE = {"tokenizer": "gpt2", "save_every": 500, "eval_every": 1000, "log_every": 10,
         "compile": True}
PRESETS = {
    "sandbox": {},
    "gpt2": LARGE | {
        "n_layer": 12, "n_head": 12, "n_embd": 768, "context": 1024, "block": 1024,
        "tokens": 10_000_000_000, "batch": 512, "microbatch": 32, "lr": 6e-4, "warmup": 700},
    "paper-1.3b": LARGE | {
        "n_layer": 24, "n_head": 16, "n_embd": 2048, "context": 2048, "block": 2048,
        "tokens": 300_000_000_000, "batch": 512, "microbatch": 4, "lr": 2e-4, "warmup": 360},
    "paper-6b": LARGE | {
        "n_layer": 32, "n_head": 32, "n_embd": 4096, "context": 2048, "block": 2048,
        "tokens": 300_000_000_000, "batch": 1024, "microbatch": 2, "lr": 1.2e-4, "warmup": 180},
}


def text_losses(model, blocks, cfg, device):
    """Mean cross-entropy of next-token prediction, nats a token, on blocks (B, T) of text.

    Yields (weight, loss, stats) for each micro-batch of this process; all weights sum to 1."""
    for chunk in data.chunks(processes.share(blocks), cfg.microbatch):
        loss = model.loss(*data.text_batch(chunk, device))
        yield len(chunk) / len(blocks), loss, {"loss": loss}


def check(cfg):
    """Raise ValueError for sizes that do not fit together."""
    if cfg.n_embd % cfg.n_head:
        raise ValueError(f"--n-embd {cfg.n_embd} is no multiple of --n-head {cfg.n_head}")
    if cfg.block > cfg.context:
        raise ValueError(f"--block {cfg.block} is longer than --context {cfg.context}")


def main(cfg):
    check(cfg)
    run = files.begin(cfg, "pretrain", data=cfg.data,
                      tokenizer=interop.tokenizer_files_of(cfg.tokenizer))
    if run.metrics is not None:
        return run.metrics      # this very command has finished already
    enc, counts = interop.get_tokenizer(cfg.tokenizer), Counter()
    tokens, held_out = interop.load_corpus(
        cfg.data, counts, enc, cfg.block, columns=cfg.columns, separator=cfg.separator,
        n=cfg.documents, seed=cfg.seed, strict=cfg.strict)
    blocks = data.cut_blocks(tokens, cfg.block)
    held_blocks = data.cut_blocks(held_out, cfg.block)[:256]
    counts.update({"tokens of text": len(tokens), "held out": len(held_out)})
    print(interop.report(counts))
    torch.manual_seed(cfg.seed)
    model = GPT(GPTConfig(enc.n_vocab, cfg.context, cfg.n_layer, cfg.n_head, cfg.n_embd))

    def batches(start):
        for step in itertools.count(start):
            yield blocks[data.rows_at(step, len(blocks), cfg.batch, cfg.seed)]

    def evaluate(step, model):
        prompt = held_out[:min(12, cfg.context // 2)].tolist()
        room = min(40, cfg.context - len(prompt))
        samples = sample(model, [prompt], room, enc.eot_token, seed=step)
        tqdm.write(enc.decode(prompt + samples.responses[0]))
        chunks = data.chunks(processes.mine(held_blocks), cfg.microbatch)
        held_batches = (data.text_batch(chunk, run.device) for chunk in chunks)
        return {"held_out_loss": mean_loss(model, held_batches)}

    steps = max(1, cfg.tokens // (cfg.batch * cfg.block))
    return train(run, [Network(model, cfg.lr)], batches,
                 lambda blocks: text_losses(model, blocks, cfg, run.device), steps,
                 interop.tokenizer_id(enc), evaluate)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
