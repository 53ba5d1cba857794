"""4/8  The one training loop that every stage runs on. It knows no model and no stage's data.

A stage hands over its networks, its batches, and a generator of each batch's losses, in pieces.
`train` does the rest: schedule, precision, clipping, AdamW, averaging, log, evaluation, saving.

Resume is exact, on a CPU to the byte, because nothing is drawn from a generator whose state must be
remembered: step s is seeded by (seed, s, rank).

[IG] Ouyang et al. 2022, arXiv 2203.02155
[N] Huang et al., The N Implementation Details of RLHF with PPO
"""
import copy
import hashlib
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from plumbing import files, processes


@dataclass(frozen=True)
class TrainConfig:
    out: str = ""                   # where the result goes; FILE.log.jsonl beside it gets the log
    overwrite: bool = False         # replace what stands at --out, whatever made it
    strict: bool = False            # stop at a bad record of data; else it is skipped and shown
    seed: int = 0                   # of all that is random: weights, data order, rollouts; >= 0
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one
    precision: str = "auto"         # bf16: autocast over fp32 weights, on cuda; auto | fp32 | bf16
    compile: bool = False           # torch.compile each block, and decoding: costs half a minute
    recompute: bool = False         # compute each block's activations twice instead of keeping them
    microbatch: int = 0             # rows of one forward, 0: all; memory, not the gradient; >= 0
    shard: bool = False             # under torchrun: a process keeps a part of each network (FSDP2)
    lr: float = 1e-3                # peak learning rate; > 0
    schedule: str = "cosine"        # to 10 %, restarts 4 times; cosine | restarts | constant
    warmup: int = 0                 # steps from 1/10 of the peak to the peak; >= 0
    weight_decay: float = 0.0       # AdamW, matrices only; not in [IG]; >= 0
    beta2: float = 0.95             # AdamW's second beta, the first is 0.9 ([IG] C); [0, 1)
    adam_eps: float = 1e-8          # not in [IG]; first steps bolder than TensorFlow's ([N]); > 0
    grad_clip: float = 1.0          # largest gradient norm of a network, 0: any; not in [IG]; >= 0
    ema: float = 0.0                # decay per step of the averaged result, 0: none; [0, 1)
    eval_every: int = 0             # steps between evaluations, 0: the stage's own choice; >= 0
    log_every: int = 1              # steps between lines of the log, which wait for a GPU; >= 1
    save_every: int = 50            # steps between saves of FILE.part, to go on from; >= 1


class Network(NamedTuple):
    """A module to train. It says itself what is special about it: `undecayed`, how the names of
    matrices without weight decay end; blocks() and `transformer`, see model.GPT."""
    module: nn.Module
    lr: float           # its own peak learning rate: PPO's policy and value function have one each
    keep: bool = False  # with --shard: gathered blocks stay until the step ends


# ---- pure functions ----------------------------------------------------------------------------
def lr_factor(step, steps, schedule, warmup):
    """What multiplies the peak learning rate at `step`: warm-up from 1/10, then the schedule."""
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "restarts":
        done = done * 4 % 1
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def step_seed(seed, step, rank=0):
    """A seed for everything random at a step, or at a place with a name: a hash of all three."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def is_time(step, every, cycle=1):
    """Whether `step` ends a cycle in which the steps done reached a multiple of `every`."""
    done = step + 1
    return done % cycle == 0 and done // every > (done - cycle) // every


# ---- one optimizer step ------------------------------------------------------------------------
def make_optimizer(module, cfg):
    """Fused AdamW, with decay on matrices only: not on biases, gains, nor what is `undecayed`."""
    groups = defaultdict(list)
    for name, p in module.named_parameters():
        decays = p.dim() >= 2 and not name.endswith(getattr(module, "undecayed", ()))
        # One fused kernel takes whole parameters or sharded ones, not both.
        groups[decays, processes.is_split(p)].append(p)
    settings = [{"params": params, "weight_decay": cfg.weight_decay * decays}
                for (decays, _), params in sorted(groups.items(), reverse=True)]
    return torch.optim.AdamW(settings, betas=(0.9, cfg.beta2), eps=cfg.adam_eps, fused=True)


@torch.no_grad()
def update_ema(average, module, decay):
    """average <- decay * average + (1 - decay) * module ([IG] C.4: 0.992)."""
    old, new = ([processes.local(p) for p in m.parameters()] for m in (average, module))
    torch._foreach_lerp_(old, new, 1 - decay)


def clip_grad(module, bound):
    """The norm of the whole gradient, which is scaled down to `bound` only if it exceeds it."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(processes.norms(grads))
    grads = [processes.local(g) for g in grads]
    if bound and norm.is_cuda:
        # No `if`: it would wait for the device.
        torch._foreach_mul_(grads, (bound / norm).clamp(max=1))
    elif bound and norm > bound:
        torch._foreach_mul_(grads, bound / norm)
    return norm


def update(networks, optimizers, pieces, cfg, autocast):
    """One optimizer step on the sum of `pieces`, (weight, loss, stats), over all processes.

    Each piece is computed under `autocast` and backpropagated as soon as it is there. A network's
    gradients add up, over pieces and processes, and are clipped then. Returns this process's
    weighted sums of the stats, and the norms of the gradients. It does not wait for a GPU.
    """
    seen, pieces = defaultdict(float), iter(pieces)
    while True:
        with autocast:
            piece = next(pieces, None)
        if piece is None:
            break
        weight, loss, stats = piece
        (weight * loss).backward()
        for k, v in stats.items():
            seen[k] += weight * (v.detach() if torch.is_tensor(v) else v)
    for n in networks:
        processes.sum_gradients(n.module)
    norms = [clip_grad(n.module, cfg.grad_clip) for n in networks]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    # Of two networks the second is PPO's value function.
    return seen, dict(zip(("grad_norm", "grad_norm_value"), norms))


# ---- the loop ----------------------------------------------------------------------------------
def step_stats(step, seen, norms, run):
    """A step's stats, summed over all processes, and norms. Raises ValueError if not finite."""
    stats = processes.numbers(seen | norms)
    stats |= processes.sums({k: stats[k] for k in seen})
    files.check_stats(run, step, stats)
    return stats


@torch.no_grad()
def mean_loss(model, batches):
    """Mean loss of an action over all batches of all processes; each is what model.loss takes."""
    total, actions = 0.0, 0
    for batch in batches:
        marked = int(batch.mask.sum())
        total += model.loss(*batch).item() * marked
        actions += marked
    return processes.all_mean(total, actions)


def set_up(run, networks, tokenizer, state) -> files.Training:
    """Networks, optimizers and average, on their devices."""
    cfg, average = run.cfg, None
    if cfg.ema:
        average = copy.deepcopy(networks[0].module).requires_grad_(False)
        processes.place(average, cfg)
    for n in networks:
        processes.place(n.module, cfg, n.keep)
    optimizers = [make_optimizer(n.module, cfg) for n in networks]
    return files.Training(run, networks, optimizers, average, tokenizer, state)


def measure(t, step, autocast, evaluate, finish):
    """Finish the result, if this is its end, and evaluate it -> metrics."""
    files.check_weights(t, step)
    t.result.eval()
    with autocast:
        if finish is not None:
            finish(processes.whole(t.result))
        return {} if evaluate is None else evaluate(step, processes.whole(t.result))


SHOWN = ("loss", "accuracy", "score", "reward", "kl", "ptx_loss")      # of the log, in the terminal


def train(run, networks, batches, losses, steps, tokenizer, evaluate=None, finish=None, state=None,
          cycle=1):
    """Train `networks` for `steps` optimizer steps; the first one becomes cfg.out. -> metrics

    batches(start)   an iterator over the batches from step `start` on. Each is asked for after the
                     previous update: PPO rolls out there
    losses(batch)    yields (weight, loss, stats); the log has the weighted sums of the stats
    evaluate(step, module) -> numbers for the log; "select" among them picks the best weights
    finish(module)   the last change to the result, before it is evaluated and saved
    state            a stage's own numbers, saved too; "stop" among them ends the run with the cycle
    cycle            steps between which nothing is saved (PPO: those of one rollout)

    Raises ValueError on a number that is not finite; cfg.out.part still holds the last good save.
    """
    cfg, metrics = run.cfg, {}
    state = {} if state is None else state
    t = set_up(run, networks, tokenizer, state)
    start, best = files.resume(t, steps)
    for n in networks:
        processes.prepare_blocks(n.module, cfg)
    source, autocast = batches(start), processes.autocast(cfg)
    began, logged = time.perf_counter(), start
    with tqdm(total=steps, initial=start, desc=run.meta["stage"], disable=processes.rank()) as bar:
        for step in range(start, steps):
            torch.manual_seed(step_seed(cfg.seed, step, processes.rank()))
            factor = lr_factor(step, steps, cfg.schedule, cfg.warmup)
            for n, optimizer in zip(networks, t.optimizers):
                for group in optimizer.param_groups:
                    group["lr"] = n.lr * factor
            with autocast:
                batch = next(source)
            for module in t.modules:
                module.train()
            seen, norms = update(networks, t.optimizers, losses(batch), cfg, autocast)
            if t.average is not None:
                update_ema(t.average, t.modules[0], cfg.ema)
            bar.update()

            last = step == steps - 1 or (state.get("stop", False) and is_time(step, cycle))
            saves = not last and is_time(step, cfg.save_every, cycle)
            evaluates = last or (cfg.eval_every and is_time(step, cfg.eval_every))
            if evaluates or saves or is_time(step, cfg.log_every):
                stats = step_stats(step, seen, norms, run)
                seconds = (time.perf_counter() - began) / (step + 1 - logged)
                line = {"step": step, "lr": networks[0].lr * factor, **stats, "seconds": seconds}
                if evaluates:
                    metrics = measure(t, step, autocast, evaluate, finish if last else None)
                    best = files.better(best, metrics, step, t.result)
                    line |= metrics
                files.append_log(run, line)
                bar.set_postfix({k: f"{line[k]:.3g}" for k in SHOWN if k in line})
                if saves:
                    files.save_part(t, step + 1, best)
                began, logged = time.perf_counter(), step + 1
            if last:
                return files.save_result(t, best, stats | metrics)
