"""The sizes of the presets, the memory that each stage needs, and export.

    python model.py                                      # parameters of each size
    python model.py plan --preset paper-6b --gpus 8      # the memory that each stage needs
    python model.py export ppo.pt folder                 # for Hugging Face's transformers

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import argparse

import torch

from interop.export import export
from plumbing import cli

GIB = 2**30
MOST = 10**9    # GPUs, or rows
SIZES = {   # the sandbox's own, GPT-2's smallest, two policies of [IG] that one machine can train
    "sandbox": {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 160, "vocab_size": 469},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024},
    "paper-1.3b": {"n_layer": 24, "n_head": 16, "n_embd": 2048, "block_size": 2048},
    "paper-6b": {"n_layer": 32, "n_head": 32, "n_embd": 4096, "block_size": 2048},
}


def parameters(size):
    """How many numbers a GPT of this size holds. size: keywords of model.GPTConfig."""
    # here and not above, since model.py's own main hands on to this file
    from model import GPT, GPTConfig

    with torch.device("meta"):           # shapes without memory
        return sum(p.numel() for p in GPT(GPTConfig(**size)).parameters())


def memory(size, gpus=1, shard=False, bf16=True, recompute=False, microbatch=1, sampled=8):
    """Bytes that one of `gpus` needs at the peak of each stage -> {stage: bytes}.

    size        keywords of model.GPTConfig
    shard, bf16, recompute    whether the flags of the stages are on (bf16: --precision bf16)
    microbatch  rows of a whole context that a forward sees; the reward model's sees as many
                prompts of 7/8 of one, each with nine responses of 1/8
    sampled     rows that a rollout samples together
    PPO is planned with EMA, and with the two frozen models.
    """
    from model import GPT, GPTConfig

    cfg, n = GPTConfig(**size), parameters(size)
    L, C, T = cfg.n_layer, cfg.n_embd, cfg.block_size
    number = 2 if bf16 else 4                            # bytes of one that a matrix is read with
    linear = 12 * C * C * L                              # weights in the blocks' matrices
    part = gpus if shard else 1
    state = 16 * n / part                # fp32 weights, gradients, Adam's two moments

    # What is kept for the backward pass, bytes of a token: in a block x twice in fp32; q, k, v,
    # attention's output, two normed x, and two times 4 C in the MLP. With recompute x alone, and
    # one block's worth of the rest.
    if recompute:
        token = 4 * C * L + 64 * C
    else:
        token = (36 if bf16 else 64) * C * L
    forward = microbatch * T * token

    casts = 0                            # autocast's copies of the matrices
    if bf16:
        casts = 2 * linear / (L if recompute and shard else 1)
    gathered = 0                         # one block and the embeddings, whole
    if shard:
        gathered = 4 * (linear / L + n - linear)
    frozen = number * linear + 4 * (n - linear)
    positions = min(microbatch * T, max(1, GPT.logits_at_once * 16 // cfg.vocab_size))
    logits = positions * cfg.vocab_size * (10 if bf16 else 12)
    cache = sampled * T * L * 2 * C * number

    update = 2 * (state + casts + forward) + gathered + logits
    rollout = 1.5 * state + 2 * casts + (frozen if shard else 0) + cache
    return {
        "pretrain, sft": state + casts + gathered + forward + logits,
        "reward": state + casts + (4 * n if shard else 0) + 2 * forward,
        "ppo": 4 * n / part + 2 * frozen + max(update, rollout),
    }


# ---- python model.py ----------------------------------------------------------------------------

def parse():
    """The command line -> argparse's namespace."""
    parser = cli.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    plan = commands.add_parser("plan", help="the memory that each stage needs on each GPU")
    plan.add_argument("--preset", choices=list(SIZES), required=True)
    plan.add_argument("--gpus", type=int, default=1)
    plan.add_argument("--microbatch", type=int, default=1,
                      help="rows of one forward, each of a whole context")
    plan.add_argument("--sampled", type=int, default=8, help="rows that a rollout samples together")
    out = commands.add_parser(
        "export", help="a checkpoint as a folder that Hugging Face's transformers reads")
    out.add_argument("checkpoint")
    out.add_argument("folder")
    return parser.parse_args()


def print_sizes():
    """The parameters of each preset."""
    print(f"{'preset':12} {'parameters':>14} {'weights fp32':>14}")
    for name, size in SIZES.items():
        n = parameters(size)
        print(f"{name:12} {n:14,} {n * 4 / GIB:10.2f} GiB")


def print_plan(preset, gpus, microbatch, sampled):
    """What each stage needs, with and without --shard and --recompute."""
    for number in (gpus, microbatch, sampled):
        if not 1 <= number <= MOST:
            raise ValueError(f"--gpus, --microbatch and --sampled must lie in [1, {MOST}]")
    plural = "s" if gpus > 1 else ""
    print(f"GiB on each of {gpus} GPU{plural}, {preset}, --precision bf16")
    modes = [("one copy a GPU", False)]
    if gpus > 1:
        modes.append(("--shard", True))
    for recompute in (False, True):
        for mode, shard in modes:
            if recompute:
                mode += " --recompute"
            needs = memory(SIZES[preset], gpus, shard, True, recompute, microbatch, sampled)
            stages = [f"{stage}: {n / GIB:7.1f}" for stage, n in needs.items()]
            print(f"{mode:28}", *stages, sep="   ")


def print_export(checkpoint, folder):
    """Write the folder and say so."""
    has_tokenizer = export(checkpoint, folder)
    without = "" if has_tokenizer else ", without a tokenizer: transformers has none of this kind"
    print(f"{folder} is written{without}")


def main():
    """`python model.py [plan | export]`. Bad input ends in one sentence and exit code 2."""
    args = parse()
    with cli.told():
        if args.command == "plan":
            print_plan(args.preset, args.gpus, args.microbatch, args.sampled)
        elif args.command == "export":
            print_export(args.checkpoint, args.folder)
        else:
            print_sizes()
