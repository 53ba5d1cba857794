"""The one training loop that every stage runs on. It knows no model and no data.

A stage hands over its networks, a function that makes the batch of a step, and a generator that yields that batch's
losses piece by piece. `train` does the rest: schedule, precision, clipping, AdamW, averaging, log, evaluation, saving.
Nothing is drawn from a generator whose state must be remembered: step s is seeded by (seed, s), so a run that was killed
anywhere and started again with the same command ends in the same bytes as one that was not.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [N] Huang et al., The N Implementation Details of RLHF with PPO
"""
import copy
import functools
import hashlib
import json
import math
import os
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm


@dataclass(frozen=True)
class TrainConfig:
    out: str = ""                   # where the result goes; FILE.log.jsonl beside it gets a line every --log-every steps
    seed: int = 0                   # of everything random: initialisation, data order, dropout, rollouts
    device: str = "auto"            # cpu, cuda, or auto: cuda where there is one
    precision: str = "auto"         # fp32, bf16 (autocast over fp32 weights), or auto: bf16 on cuda, fp32 on cpu
    compile: bool = False           # torch.compile each transformer block and the step of PPO's rollouts: costs half a minute
    recompute: bool = False         # compute each block's activations twice instead of keeping them: slower, less memory
    microbatch: int = 0             # rows of one forward, 0 for all that a process has; changes memory, not the gradient
    shard: bool = False             # under torchrun: each process keeps a part of each network (FSDP2), not a copy
    lr: float = 1e-3                # peak learning rate
    schedule: str = "cosine"        # cosine (to 10 % of the peak), restarts (cosine, 4 times) or constant
    warmup: int = 0                 # steps from 1/10 of the peak to the peak
    weight_decay: float = 0.0       # AdamW, matrices only; not in [IG]
    beta2: float = 0.95             # AdamW's second beta, the first is 0.9 ([IG] C)
    adam_eps: float = 1e-8          # not in [IG]; TensorFlow's placement of it makes early updates bolder ([N])
    grad_clip: float = 1.0          # largest gradient norm of one network, 0 for no clipping; not in [IG]
    ema: float = 0.0                # decay per step of the averaged weights that are saved as the result; 0 for none
    eval_every: int = 0             # steps between evaluations, 0 for the stage's own choice
    log_every: int = 1              # steps between lines of the log, each of which waits for the device: 10 pays on cuda
    save_every: int = 50            # steps between saves of FILE.part, from which an interrupted run goes on


class Network(NamedTuple):
    module: nn.Module
    lr: float           # its own peak learning rate; PPO's policy and value have one each
    keep: bool = False  # with --shard: gathered blocks stay until the step ends (reward.py: the pass over responses sends
                        # gradients into the blocks of the pass over prompts, outside of what FSDP sees of a block)


def lr_factor(step, steps, schedule, warmup):
    """What multiplies the peak learning rate at `step`: warm-up from 1/10, then the schedule. A pure function."""
    if step < warmup:
        return 0.1 + 0.9 * step / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "restarts":
        done = done * 4 % 1
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def step_seed(seed, step, rank=0):
    """A seed for everything random at one step: (seed, step, rank) through a hash, so that no two are related."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:6], "big")


def make_optimizer(module, cfg):
    """Fused AdamW with decay on matrices only: not on biases, gains and the embedding of positions."""
    groups = defaultdict(list)                               # one fused kernel takes whole parameters or sharded ones
    for n, p in module.named_parameters():
        groups[p.dim() >= 2 and not n.endswith("wpe.weight"), isinstance(p, DTensor)].append(p)
    return torch.optim.AdamW([{"params": params, "weight_decay": cfg.weight_decay * decays}
                              for (decays, _), params in sorted(groups.items(), reverse=True)],
                             betas=(0.9, cfg.beta2), eps=cfg.adam_eps, fused=True)


@torch.no_grad()
def update_ema(average, module, decay):
    """average <- decay * average + (1 - decay) * module, tensor by tensor ([IG] C.4: 0.992)."""
    for a, p in zip(average.parameters(), module.parameters()):
        local(a).lerp_(local(p), 1 - decay)


def clip_grad(module, bound):
    """The norm of the whole gradient; the gradient is scaled down to `bound` only if it exceeds it."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    parts = torch.tensor([isinstance(g, DTensor) for g in grads])
    grads = [local(g) for g in grads]
    norms = torch.stack(torch._foreach_norm(grads))
    if parts.any():                                          # of a sharded gradient each process has a part
        norms = torch.where(parts.to(norms.device), all_sum(norms ** 2).sqrt(), norms)
    norm = torch.linalg.vector_norm(norms)
    if bound and norm.is_cuda:
        torch._foreach_mul_(grads, (bound / norm).clamp(max=1))   # no `if`: it would wait for the device
    elif bound and norm > bound:
        torch._foreach_mul_(grads, bound / norm)
    return norm


def update(networks, optimizers, pieces, cfg, forward):
    """One optimizer step on the sum of `pieces`, (weight, loss, stats) computed in the context `forward`, over all processes.
    Returns this process's weighted sums of the stats, and the norms of the gradients. Unsharded, it never waits for a GPU."""
    seen = defaultdict(float)
    for weight, loss, stats in _in_context(pieces, forward):
        (weight * loss).backward()
        for k, v in stats.items():
            seen[k] += weight * (v.detach() if torch.is_tensor(v) else v)
    for n in networks:
        sum_gradients(n.module)
    norms = dict(zip(("grad_norm", "grad_norm_value"), [clip_grad(n.module, cfg.grad_clip) for n in networks]))
    for o in optimizers:
        o.step()
        o.zero_grad()
    return seen, norms


def prepare_blocks(networks, cfg):
    """What --compile and --recompute ask for, on each transformer block in place, so that the names of the weights stay."""
    for layer in (x for n in networks for m in n.module.modules() if isinstance(m, nn.ModuleList) for x in m):
        if cfg.recompute:
            layer.forward = functools.partial(_recomputed, layer.forward)
        if cfg.compile:
            layer.compile()


def _recomputed(f, *args):
    return recomputed(f, *args, use_reentrant=False) if torch.is_grad_enabled() else f(*args)


def check_finite(terms, stage, step, part):
    """Stop where the `terms` of a step, {name: number}, are not all finite: at its line, before a save. Raises ValueError."""
    for name, value in terms.items():
        if not math.isfinite(value):
            raise ValueError(f"{stage}, step {step}: the {name} is not finite; {part} holds the last good save if there was one; "
                             f"start again with a lower --lr and another --out")


# ---- devices ----------------------------------------------------------------------------------------------------

def get_device(cfg):
    """"cpu", "cuda" or, of the processes that torchrun started, this one's "cuda:N"."""
    if cfg.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    if cfg.device == "cuda" or cfg.device == "auto" and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}" if ranks()[1] > 1 else "cuda"
    return "cpu" if cfg.device == "auto" else cfg.device


def autocast(cfg):
    """The context in which every forward of a stage runs, the rollouts' too: old and new log-probabilities must agree."""
    if cfg.precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"--precision must be fp32, bf16 or auto, got {cfg.precision}")
    device = get_device(cfg).split(":")[0]
    bf16 = cfg.precision == "bf16" or cfg.precision == "auto" and device == "cuda" and torch.cuda.is_bf16_supported()
    # autocast's cache would keep a bf16 copy of every gathered block, which is what --shard is there to avoid
    return torch.autocast(device, torch.bfloat16, cache_enabled=not getattr(cfg, "shard", False)) if bf16 else nullcontext()


# ---- many processes: torchrun --nproc_per_node=8 ppo.py ... starts one for each GPU -----------------------------

def ranks():
    """(which process this is, how many there are); (0, 1) without torchrun."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if dist.is_torchelastic_launched() else (0, 1)


def join(cfg):
    """This process's device, once it has met the others. Raises ValueError."""
    device, (_, size) = get_device(cfg), ranks()
    if cfg.shard and size == 1:
        raise ValueError("--shard splits the networks over processes: start it with torchrun --nproc_per_node=N")
    if size > 1 and not dist.is_initialized():
        if device != "cpu":
            torch.cuda.set_device(device)
        on = None if device == "cpu" else torch.device(device)
        dist.init_process_group("nccl" if on else "gloo", timeout=timedelta(hours=2), device_id=on)   # a save may take long
    return device


def share(rows):
    """This process's part of a batch's rows, every size-th. Raises ValueError if parts differ in size: with --shard every
    process must make the same number of forwards."""
    if len(rows) % (size := ranks()[1]):
        raise ValueError(f"{len(rows)} rows of a batch cannot be split evenly over {size} processes: make --batch, --rollout, "
                         f"--minibatch and --ptx-ratio times it multiples of {4 * size}, or start another number of processes")
    return mine(rows)


def mine(rows):
    """This process's part of rows that need not split evenly: an evaluation's, which runs on `whole` networks."""
    return rows[ranks()[0]::ranks()[1]]


def all_sum(x):
    """The sum of a tensor over all processes."""
    if ranks()[1] > 1:
        dist.all_reduce(x := x.clone())
    return x


def all_rows(x):
    """The rows of all processes' shares (B / size, ...), put back in order -> (B, ...)."""
    if ranks()[1] == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(ranks()[1])]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def all_list(mine):
    """The items of all processes' lists."""
    if ranks()[1] == 1:
        return mine
    dist.all_gather_object(parts := [None] * ranks()[1], mine)
    return [x for part in parts for x in part]


def all_mean(total, count):
    """The mean of what all processes have summed up and counted, a number."""
    totals, counts = zip(*all_list([(float(total), count)]))
    return sum(totals) / max(1, sum(counts))


def local(x):
    """A tensor, or of a sharded one the part that this process has."""
    return x.to_local() if isinstance(x, DTensor) else x


def sum_gradients(module):
    """Add up all processes' gradients; FSDP has done it for what is sharded, after each micro-batch, which saves memory."""
    for m in module.modules():
        if isinstance(m, FSDPModule):
            m.reshard()                                      # what Network.keep kept
    if ranks()[1] > 1:
        grads = [p.grad for p in module.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
        for work in [dist.all_reduce(g, async_op=True) for g in grads]:
            work.wait()


def shard(module, keep=False):
    """Split the transformer of `module` over all processes, in place, a block at a time. What is left over, a head, is copied.
    Blocks are gathered in fp32: bf16 is autocast's business, and the numbers are those of a module that is not sharded."""
    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (ranks()[1],))
    blank = copy.deepcopy(module, {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()})
    object.__setattr__(module, "blank", blank)               # for `whole`; not a part of the module
    for trunk in [m for m in module.modules() if any(isinstance(c, nn.ModuleList) for c in m.children())]:
        for unit in [*(block for c in trunk.children() if isinstance(c, nn.ModuleList) for block in c), trunk]:
            fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not trunk and not keep)
            unit.set_reshard_after_backward(not keep, recurse=False)
            unit.set_gradient_divide_factor(1.0)             # a sum: each process's pieces have their share of the weight
            unit.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(trunk, "hidden")
    module.to(mesh.device_type)


@torch.no_grad()
def whole(module):
    """`module` itself, or of a sharded one a copy in eval mode with all weights, which all processes make together: to sample,
    each block is gathered once, not once a token, and no process waits for another. Under autocast the layers' matrices
    are gathered in its type, to which every forward would round them. What is not sharded, a head, is the module's own."""
    if not hasattr(module, "blank"):
        return module
    full = copy.deepcopy(module.blank).eval()
    for name, p in module.named_parameters():
        path, _, leaf = name.rpartition(".")
        layer, kind = full.get_submodule(path), p.device.type
        if isinstance(p, DTensor):
            cast = isinstance(layer, nn.Linear) and torch.is_autocast_enabled(kind)
            p = nn.Parameter((p.to(torch.get_autocast_dtype(kind)) if cast else p).full_tensor(), requires_grad=False)
        setattr(layer, leaf, p)
    return full


def whole_state(x):
    """The tensors of nested dicts and lists, whole and on the CPU of process 0; None elsewhere. All processes call it."""
    if isinstance(x, dict):
        return {k: whole_state(v) for k, v in x.items()}
    if isinstance(x, list):
        return [whole_state(v) for v in x]
    if isinstance(x, torch.Tensor):
        x = x.detach().full_tensor() if isinstance(x, DTensor) else x.detach()
        return x.cpu() if ranks()[0] == 0 else None
    return x


def like(p, x):
    """A whole tensor x on p's device, split as p is if it has p's shape."""
    x = x.to(p.device)
    split = isinstance(p, DTensor) and x.shape == p.shape
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None) if split else x


# ---- files ------------------------------------------------------------------------------------------------------

def file_hash(path):
    """sha256 of an input file: a checkpoint remembers what it was made from."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(cfg, stage, **inputs):
    """What trained a checkpoint: the stage, its config, and a hash of each input file that was given. Where the files lie
    does not matter, so a folder may be moved in the middle of a run."""
    for name in ("batch", "epochs", "iterations", "rollout", "minibatch", "max_new", "tokens", "log_every", "save_every"):
        if getattr(cfg, name, 1) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(cfg, name)}")
    if cfg.schedule not in ("cosine", "restarts", "constant"):
        raise ValueError(f"--schedule must be cosine, restarts or constant, got {cfg.schedule}")
    inputs = {name: (paths,) if isinstance(paths, str) else paths for name, paths in inputs.items() if paths}
    for name, paths in inputs.items():
        for path in paths:
            if not os.path.isfile(path):
                why = "is a folder" if os.path.isdir(path) else "does not exist"
                raise ValueError(f"--{name.replace('_', '-')} {path} {why}")
    # what no weight depends on but by rounding, and what has a hash
    apart = ("out", "log_every", "recompute", "shard", "microbatch", "sample_batch", *inputs)
    return {"stage": stage, "config": {k: v for k, v in asdict(cfg).items() if k not in apart},
            "inputs": {k: [file_hash(p) for p in paths] for k, paths in inputs.items()}}


def check_out(out):
    """Raise ValueError unless `out` is a file that can be written."""
    if not out:
        raise ValueError("--out is missing: say where the result goes, e.g. --out model.pt")
    folder = os.path.dirname(os.path.abspath(out))
    if not os.access(folder, os.W_OK) or os.path.isdir(out):
        why = "it is a folder" if os.path.isdir(out) else f"{folder} is not a writable folder"
        raise ValueError(f"--out {out} cannot be written: {why}")


def already_done(cfg, meta, read):
    """The final metrics if `cfg.out` is the finished result of exactly this command on these inputs, else None."""
    join(cfg)
    check_out(cfg.out)
    metrics = _finished(cfg, meta, read)
    agree((meta, metrics))
    return metrics


def agree(x):
    """Raise ValueError unless all processes have the same x."""
    if len(set(all_list([repr(x)]))) > 1:
        raise ValueError("the processes see different files: --out and all inputs must lie on a disk that they share")


def _finished(cfg, meta, read):
    if os.path.exists(cfg.out):
        if any(file_hash(cfg.out) in hashes for hashes in meta.get("inputs", {}).values()):
            raise ValueError(f"--out {cfg.out} is one of the inputs: choose another name for the result")
        try:
            old = read(cfg.out)["meta"]
        except ValueError:
            return None                                      # not ours or broken: it is replaced when we finish
        if {k: old.get(k) for k in meta} == meta:
            if ranks()[0] == 0:
                os.utime(cfg.out)                            # it is up to date, for make
                if os.path.exists(f"{cfg.out}.part"):
                    os.remove(f"{cfg.out}.part")             # killed between the last save and the end
            print(f"{cfg.out} is finished already: delete it to make it again")
            return old["metrics"]
    return None


def train(networks: list[Network], batch_at, losses, cfg, steps, save, meta, read, evaluate=None, state=None, cycle=1):
    """Train `networks`, which come on the CPU, for `steps` optimizer steps and write the first one to cfg.out. Returns metrics.

    batch_at(step)          the batch of a step, asked for after the previous update; PPO rolls out here
    losses(batch)           yields (weight, loss, stats): each is backpropagated at once, weight * loss, and the stats
                            (tensors or numbers) are summed with the same weights into the step's line of the log
    save(path, module, meta, **more), read(path)     the checkpoint's own writer and reader
    evaluate(step, module)  -> numbers for the log; "select", if among them, picks the best weights as the result
    state                   a dict of numbers that a stage carries from step to step, saved with the rest
    cycle                   saves happen only between cycles of this many steps (PPO: between two rollouts)

    Raises ValueError on a loss that is not finite, after which cfg.out.part still holds the last good save.
    """
    if steps < 1:
        raise ValueError("there is nothing to train: raise --tokens, --epochs or --iterations")
    state = {} if state is None else state
    main, rank = networks[0].module, ranks()[0]
    average = copy.deepcopy(main).requires_grad_(False) if cfg.ema else None
    for n in [*networks, Network(average, 0.0)] if cfg.ema else networks:
        if cfg.shard:
            shard(n.module, n.keep)
        else:
            n.module.to(get_device(cfg))
    optimizers = [make_optimizer(n.module, cfg) for n in networks]
    part, log_path = f"{cfg.out}.part", f"{cfg.out}.log.jsonl"
    start, best = 0, None

    if os.path.exists(part):
        resume = read(part)
        if {k: resume["meta"].get(k) for k in meta} != meta:
            raise ValueError(f"{part} is an unfinished run with other settings or inputs: delete it to start anew, or "
                             f"choose another --out")
        with torch.no_grad():
            for n, o, saved in zip(networks, optimizers, resume["resume"]["networks"]):
                for name, p in n.module.named_parameters():
                    local(p).copy_(local(like(p, saved["weights"][name])))
                    o.state[p] = {k: like(p, v) for k, v in saved["optimizer"][name].items()}
            for name, p in average.named_parameters() if cfg.ema else ():
                local(p).copy_(local(like(p, resume["weights"][name])))
        start, best = resume["resume"]["step"], resume["resume"]["best"]
        state.update(resume["resume"]["state"])
        print(f"going on from step {start} of {part}")
    agree(start)

    def save_part(step):
        result = main if average is None else average
        weights, saved = whole_state(result.state_dict()), whole_state([
            {"weights": n.module.state_dict(), "optimizer": {name: o.state[p] for name, p in n.module.named_parameters()}}
            for n, o in zip(networks, optimizers)])
        if rank == 0:
            save(part, result, meta, weights=weights,
                 resume={"step": step, "best": best, "state": dict(state), "networks": saved})

    prepare_blocks(networks, cfg)
    if rank == 0:
        _truncate_log(log_path, start)
    forward = autocast(cfg)
    metrics, began, logged = {}, time.perf_counter(), start
    with tqdm(total=steps, initial=start, desc=meta["stage"], dynamic_ncols=True, disable=rank > 0) as bar:
        for step in range(start, steps):
            torch.manual_seed(step_seed(cfg.seed, step, rank))
            factor = lr_factor(step, steps, cfg.schedule, cfg.warmup)
            for n, o in zip(networks, optimizers):
                for group in o.param_groups:
                    group["lr"] = n.lr * factor
            with forward:
                batch = batch_at(step)
            for n in networks:
                n.module.train()
            seen, norms = update(networks, optimizers, losses(batch), cfg, forward)
            if average is not None:
                update_ema(average, main, cfg.ema)
            stop = state.get("stop", False) and (step + 1) % cycle == 0
            last = step == steps - 1 or stop
            save_now = (step + 1) % cycle == 0 and (step + 1) // cfg.save_every != (step + 1 - cycle) // cfg.save_every
            evaluate_now = evaluate and (last or cfg.eval_every and (step + 1) % cfg.eval_every == 0)
            if not (last or save_now or evaluate_now or (step + 1) % cfg.log_every == 0):
                bar.update()
                continue                                     # a line waits for the device: no line, no wait
            sums = map(sum, zip(*all_list([[float(v) for v in seen.values()]])))
            stats = dict(zip(seen, sums)) | {k: float(v) for k, v in norms.items()}
            check_finite(stats, meta["stage"], step, part)
            seconds = (time.perf_counter() - began) / (step + 1 - logged)
            line = {"step": step, "lr": networks[0].lr * factor, **stats, "seconds": seconds}
            if evaluate_now:
                result = main if average is None else average
                result.eval()
                with forward:
                    metrics = evaluate(step, whole(result))
                line |= metrics
                if "select" in metrics and (best is None or metrics["select"] > best["select"]):
                    best = {"select": metrics["select"], "step": step, "metrics": metrics,
                                "weights": copy.deepcopy(whole_state(result.state_dict()))}
            if rank == 0:
                _append(log_path, line)
            bar.update()
            bar.set_postfix({k: f"{v:.3g}" for k, v in line.items() if k in ("loss", "accuracy", "score", "kl", "ptx_loss")})
            if last:
                break
            if save_now:
                save_part(step + 1)
            began, logged = time.perf_counter(), step + 1

    result = main if average is None else average
    weights = whole_state(result.state_dict())
    if best is not None:
        weights, metrics = best["weights"], best["metrics"] | {"selected_step": best["step"]}
    metrics = {k: v for k, v in stats.items() if not k.endswith("_per_second")} | metrics         # speed is not a result
    # interned, so that a name that a checkpoint brought back is pickled as it would have been without the interruption
    metrics = {sys.intern(k): v for k, v in metrics.items()}
    if rank == 0:
        save(cfg.out, result, meta | {"metrics": metrics}, weights=weights)
        if os.path.exists(part):
            os.remove(part)
    all_list([])                                             # wait for the file: the next stage may read it
    return metrics


def _in_context(generator, context):
    """Run each piece of a generator inside `context`, and what its consumer does between the pieces outside of it."""
    while True:
        with context:
            try:
                piece = next(generator)
            except StopIteration:
                return
        yield piece


def _append(path, line):
    try:
        with open(path, "a") as f:
            f.write(json.dumps(line) + "\n")
    except OSError as e:
        raise ValueError(f"cannot write {path} ({e.strerror}): free some space or choose another --out") from e


def _truncate_log(path, step):
    """Keep the lines of the log before `step`: what follows is written again."""
    kept = []
    if step and os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    if json.loads(line)["step"] < step:
                        kept.append(line)
                except json.JSONDecodeError:
                    break                                    # the line a kill cut short
    with open(f"{path}.tmp", "w") as f:
        f.writelines(kept)
    os.replace(f"{path}.tmp", path)
