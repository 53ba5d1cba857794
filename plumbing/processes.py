"""Devices, precision, and many processes: torchrun --nproc_per_node=8 ppo.py ... starts one a GPU.

A batch's rows are split over the processes (`share`), each backpropagates its part, and gradients
are added up (`sum_gradients`). With --shard each process keeps a part of every network (FSDP2).
Nothing here knows a model: a network says what its `blocks` are, and which `transformer` they form.

One process needs none of this: what PyTorch has for many is imported where it is used.
"""
import copy
import functools
import multiprocessing
import os
import re
import threading
import time
from contextlib import nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

# ---- this process's device ---------------------------------------------------------------------

def get_device(cfg):
    """"cpu", "mps", "cuda" or, of the processes that torchrun started, this one's "cuda:N"."""
    has_cuda = torch.cuda.is_available()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", cfg.device):
        raise ValueError(f"--device must be cpu, cuda, cuda:N, mps or auto, got {cfg.device}")
    if cfg.device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: PyTorch sees no Apple GPU here; use --device cpu")
    if cfg.device.startswith("cuda") and not has_cuda:
        raise ValueError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    index = cfg.device.partition(":")[2]
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"--device {cfg.device}: PyTorch sees only {torch.cuda.device_count()} "
                         f"CUDA devices here")
    if cfg.device == "cuda" or (cfg.device == "auto" and has_cuda):
        return f"cuda:{os.environ['LOCAL_RANK']}" if count() > 1 else "cuda"
    return "cpu" if cfg.device == "auto" else cfg.device


def autocast(cfg):
    """The context in which every forward of a stage runs, the rollouts' too: old and new
    log-probabilities must agree. Raises ValueError."""
    device = get_device(cfg).split(":")[0]
    has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
    if cfg.precision == "fp32" or (cfg.precision == "auto" and not has_bf16):
        return nullcontext()
    # autocast's cache would keep a bf16 copy of every gathered block, which --shard is to avoid.
    is_sharded = getattr(cfg, "shard", False)
    return torch.autocast(device, torch.bfloat16, cache_enabled=not is_sharded)


def frozen_copy(model, device="cpu"):
    """A copy on `device`, in eval mode, that no optimizer touches: reference policy, reward model.

    Under autocast to bf16 the layers' matrices are kept in bf16: the numbers to which autocast
    would round them at every forward, in half the memory.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    kind = torch.device(device).type
    if torch.is_autocast_enabled(kind):
        for layer in frozen.modules():
            if isinstance(layer, nn.Linear):
                layer.to(torch.get_autocast_dtype(kind))
    return frozen.to(device)


def prepare_blocks(module, cfg):
    """What --compile and --recompute ask for, in place, so that the names of the weights stay."""
    for block in module.blocks() if cfg.recompute or cfg.compile else ():
        if cfg.recompute:
            block.forward = functools.partial(recompute, block.forward)
        if cfg.compile:
            block.compile()


def recompute(f, *args):
    """f(*args), whose activations are computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return f(*args)
    return checkpoint(f, *args, use_reentrant=False)


# ---- who does what -----------------------------------------------------------------------------

def rank():
    """Which process this is; 0 without torchrun."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def count():
    """How many processes there are; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def join(cfg):
    """This process's device, once it has met the others. Raises ValueError."""
    device = get_device(cfg)
    if cfg.shard and count() == 1:
        raise ValueError("--shard splits the networks over processes: start it with "
                         "torchrun --nproc_per_node=N")
    if count() > 1 and not dist.is_initialized():
        end_with_parent()
        patience = timedelta(hours=2)                        # a save may take long
        if device == "cpu":
            dist.init_process_group("gloo", timeout=patience)
        else:
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", timeout=patience, device_id=torch.device(device))
    return device


def end_with_parent():
    """End this process when the one that started it is gone: a killed torchrun tells nobody."""
    started_by = multiprocessing.parent_process()
    parent = started_by.pid if started_by else os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def mine(rows):
    """This process's part of rows that need not split evenly: every count()-th."""
    return rows[rank()::count()]


def share(rows):
    """This process's part of a batch's rows. Raises ValueError if parts differ in size: with
    --shard every process must make the same number of forwards."""
    if len(rows) % count():
        raise ValueError(
            f"{len(rows)} rows of a batch cannot be split evenly over {count()} processes: make "
            f"--batch, --rollout, --minibatch and --ptx-ratio times it multiples of "
            f"{4 * count()}, or start another number of processes")
    return mine(rows)


def all_sum(x):
    """The sum of a tensor over all processes."""
    if count() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def all_list(items):
    """The items of all processes' lists."""
    if count() == 1:
        return items
    parts = [None] * count()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def all_mean(total, number):
    """The mean of what all processes have summed up and counted, a number."""
    sums = all_list([(float(total), number)])
    return sum(total for total, _ in sums) / max(1, sum(number for _, number in sums))


def numbers(stats):
    """{name: tensor of one number, or a number} -> {name: number}, read from a GPU all at once."""
    tensors = {k: v.float() for k, v in stats.items() if torch.is_tensor(v)}
    read = torch.stack([*tensors.values()]).tolist() if tensors else []
    return stats | dict(zip(tensors, read))


def sums(numbers):
    """{name: number} -> {name: the sum over all processes}."""
    parts = zip(*all_list([[*numbers.values()]]))
    return dict(zip(numbers, map(sum, parts)))


def agree(x):
    """Raise ValueError unless all processes have the same x."""
    if len(set(all_list([repr(x)]))) > 1:
        raise ValueError("the processes see different files: --out and all inputs must lie on a "
                         "disk that they share")


def sum_gradients(module):
    """Add up all processes' gradients; FSDP has done so for what is sharded, each micro-batch."""
    if hasattr(module, "blank"):
        for m in module.modules():
            if hasattr(m, "reshard"):
                m.reshard()                                  # what Network.keep kept
    if count() > 1:
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        waiting = [dist.all_reduce(g, async_op=True) for g in grads if not is_split(g)]
        for work in waiting:
            work.wait()


# ---- --shard: each process keeps a part --------------------------------------------------------

def is_split(x):
    """Whether a tensor is a DTensor, of which each process has a part."""
    return hasattr(x, "to_local")


def local(x):
    """A tensor, or of a sharded one the part that this process has."""
    return x.to_local() if is_split(x) else x


def norms(grads):
    """The norm of each gradient, the whole one where each process has a part."""
    are_parts = torch.tensor([is_split(g) for g in grads])
    found = torch.stack(torch._foreach_norm([local(g) for g in grads]))
    if not are_parts.any():
        return found
    whole = all_sum(found ** 2).sqrt()
    return torch.where(are_parts.to(found.device), whole, found)


def shard(module, keep=False):
    """Split the transformer of `module` over all processes, in place, a block at a time; what is
    left over, a head, is copied. keep: gathered blocks stay until the step ends (train.Network).

    Blocks are gathered in fp32: bf16 is autocast's business, and the numbers are those of a module
    that is not sharded. `module.blank`, a copy without weights, is for `whole`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (count(),))
    weightless = {}
    for p in module.parameters():
        weightless[id(p)] = nn.Parameter(p.to("meta"), p.requires_grad)
    blank = copy.deepcopy(module, weightless)
    object.__setattr__(module, "blank", blank)               # not a submodule
    transformer = module.transformer
    for unit in [*module.blocks(), transformer]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not transformer and not keep)
        unit.set_reshard_after_backward(not keep, recurse=False)
        # A sum, not a mean: each process's pieces have their share of the weight.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(transformer, "hidden")
    module.to(mesh.device_type)


def place(module, cfg, keep=False):
    """Move a module, which comes on the CPU, to the device, or split it over all processes."""
    if cfg.shard:
        shard(module, keep)
    else:
        module.to(get_device(cfg))


@torch.no_grad()
def whole(module):
    """`module` itself, or of a sharded one a copy in eval mode with all weights. All call it.

    To sample, each block is so gathered once, not once a token, and no process waits for another.
    Under autocast the layers' matrices are gathered in its type, to which every forward would round
    them. What is not sharded, a head, is the module's own.
    """
    if not hasattr(module, "blank"):
        return module
    full = copy.deepcopy(module.blank).eval()
    for name, p in module.named_parameters():
        path, _, leaf = name.rpartition(".")
        layer, kind = full.get_submodule(path), p.device.type
        if is_split(p):
            if isinstance(layer, nn.Linear) and torch.is_autocast_enabled(kind):
                p = p.to(torch.get_autocast_dtype(kind))
            p = nn.Parameter(p.full_tensor(), requires_grad=False)
        setattr(layer, leaf, p)
    return full


def whole_state(x):
    """The tensors of nested dicts and lists, whole and on the CPU of process 0; None elsewhere.

    All processes call it."""
    if isinstance(x, dict):
        return {k: whole_state(v) for k, v in x.items()}
    if isinstance(x, list):
        return [whole_state(v) for v in x]
    if isinstance(x, torch.Tensor):
        x = x.detach()
        if is_split(x):
            x = x.full_tensor()
        return x.cpu() if rank() == 0 else None
    return x


def like(p, x):
    """A whole tensor x on p's device, split as p is if it has p's shape."""
    x = x.to(p.device)
    if not is_split(p) or x.shape != p.shape:
        return x
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None)
