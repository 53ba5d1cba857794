"""What lies on the disk: checkpoints, logs, what made them, and going on after an interruption.

FILE.pt is a result; FILE.pt.part beside it is an unfinished run, from which the same command goes
on; FILE.pt.log.jsonl has a line of numbers for each step.
"""
import copy
import hashlib
import json
import os
import pickle
import sys
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import nn

from plumbing import processes

# ---- writing -----------------------------------------------------------------------------------

def replace_file(path, write, mode="w"):
    """Have write(f) fill a temporary file, then rename it: a crash or full disk leaves the old one.

    Raises ValueError."""
    temporary = f"{path}.tmp"
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(temporary, mode, encoding=encoding) as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:                     # torch.save raises RuntimeError
        if os.path.exists(temporary):
            os.remove(temporary)
        why = getattr(e, "strerror", None) or e
        raise ValueError(f"cannot write {path} ({why}): free some space or choose another "
                         f"--out") from e


def write_jsonl(path, records):
    """Write records, one JSON object a line. Raises ValueError."""
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in records]
    replace_file(path, lambda f: f.writelines(lines))


def check_out(out):
    """Raise ValueError unless `out` is a file that can be written."""
    if not out:
        raise ValueError("--out is missing: say where the result goes, e.g. --out model.pt")
    if os.path.isdir(out):
        raise ValueError(f"--out {out} cannot be written: it is a folder")
    folder = os.path.dirname(os.path.abspath(out))
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: {folder} is not a writable folder")


# ---- checkpoints -------------------------------------------------------------------------------

def save_checkpoint(path, model, tokenizer, meta, weights=None, **more):
    """Write a self-contained checkpoint: weights, config, kind, tokenizer, what trained it (meta).

    tokenizer: {name, hash}; weights: instead of the model's own. Raises ValueError.
    """
    weights = weights or model.state_dict()
    checkpoint = dict(kind=model.kind, config=asdict(model.cfg), tokenizer=tokenizer, meta=meta,
                      weights={k: v.detach().cpu() for k, v in weights.items()}, **more)
    replace_file(path, lambda f: torch.save(checkpoint, f), mode="wb")


def read_checkpoint(path):
    """The dictionary that `save_checkpoint` wrote. Only tensors and plain data are unpickled.

    Raises ValueError."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as e:
        raise ValueError(f"{path} is not a safe checkpoint: it holds more than tensors and plain "
                         f"data, and loading it could run code; use a file made by these "
                         f"scripts") from e
    except Exception as e:   # a damaged file makes torch.load raise almost anything
        raise ValueError(f"{path} is not a readable checkpoint (truncated, or another kind of "
                         f"file); make it again or restore a copy") from e
    needed = {"kind", "config", "weights", "tokenizer", "meta"}
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise ValueError(f"{path} is a PyTorch file but not a checkpoint of these scripts: it must "
                         f"hold kind, config, weights, tokenizer and meta")
    return checkpoint


# ---- what made a result ------------------------------------------------------------------------

def file_hash(path):
    """sha256 of an input file: a checkpoint remembers what it was made from."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def require(flag, paths, how):
    """Raise ValueError unless the file that `flag` names is there; `how` is the command for it.

    paths: what it stands for, () where it was not given."""
    if not paths:
        raise ValueError(f"{flag} FILE is missing; make it with `{how}`")
    if not os.path.isfile(paths[0]):
        raise ValueError(f"{flag} {paths[0]} does not exist; `{how}` makes one")


def check_inputs(inputs):
    """Raise ValueError unless every file of {flag: paths} is there."""
    for name, paths in inputs.items():
        for path in paths:
            if not os.path.isfile(path):
                why = "is a folder" if os.path.isdir(path) else "does not exist"
                raise ValueError(f"--{name.replace('_', '-')} {path} {why}")


def provenance(cfg, stage, inputs):
    """What trained a checkpoint: the stage, its config, and a hash of each file of {flag: paths}.

    Where the files lie does not matter: a folder may be moved in the middle of a run. Nor does what
    no weight depends on but by rounding.
    """
    apart = {"out", "log_every", "recompute", "shard", "microbatch", "sample_batch", *inputs}
    config = {k: v for k, v in asdict(cfg).items() if k not in apart}
    hashes = {name: [file_hash(path) for path in paths] for name, paths in inputs.items()}
    return {"stage": stage, "config": config, "inputs": hashes}


def same_command(old, meta):
    """Whether the meta of a file, `old`, says that the command of `meta` made it."""
    return all(old.get(k) == v for k, v in meta.items())


def finished(out, meta):
    """The metrics of `out` if it is the finished result of exactly this command, else None.

    Raises ValueError if it is one of the inputs."""
    if not os.path.exists(out):
        return None
    digest = file_hash(out)
    if any(digest in hashes for hashes in meta["inputs"].values()):
        raise ValueError(f"--out {out} is one of the inputs: choose another name for the result")
    try:
        old = read_checkpoint(out)["meta"]
    except ValueError:
        return None                          # not ours, or broken: it is replaced when we finish
    return old["metrics"] if same_command(old, meta) else None


def mark_finished(out):
    """Make a finished result up to date for `make`; remove what a kill left beside it."""
    os.utime(out)
    if os.path.exists(f"{out}.part"):
        os.remove(f"{out}.part")


class Run(NamedTuple):
    cfg: object             # a stage's, of train.TrainConfig
    meta: dict              # what trains the result: stage, config, hashes of the inputs
    device: str
    metrics: dict | None    # those of cfg.out, if this very command has finished it already


AT_LEAST_1 = ("batch", "epochs", "iterations", "rollout", "minibatch", "max_new", "tokens",
              "log_every", "save_every")
CHOICES = {"schedule": ("cosine", "restarts", "constant"), "value_init": ("rm", "random"),
           "select": ("last", "rm")}


def check_settings(cfg):
    """Raise ValueError where a setting that several stages have makes no sense."""
    for name in AT_LEAST_1:
        if getattr(cfg, name, 1) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, got {getattr(cfg, name)}")
    for name, choices in CHOICES.items():
        if getattr(cfg, name, choices[0]) not in choices:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be {' or '.join(choices)}, got {getattr(cfg, name)}")


def begin(cfg, stage, **inputs) -> Run:
    """What comes before any stage: check, meet the other processes, look whether all is done.

    inputs: {flag: path or paths}. Raises ValueError.
    """
    check_settings(cfg)
    processes.autocast(cfg)     # refuses an unknown --precision or device now, not after loading
    given = {name: paths for name, paths in inputs.items() if paths}
    given = {k: (v,) if isinstance(v, str) else v for k, v in given.items()}
    check_inputs(given)
    meta = provenance(cfg, stage, given)
    device = processes.join(cfg)
    check_out(cfg.out)
    metrics = finished(cfg.out, meta)
    processes.agree((meta, metrics))
    if metrics is not None:
        print(f"{cfg.out} is finished already: delete it to make it again")
        if processes.rank() == 0:
            mark_finished(cfg.out)
    return Run(cfg, meta, device, metrics)


# ---- interruptions -----------------------------------------------------------------------------

def read_part(out, meta):
    """What an unfinished run of this command has saved, or None. Raises ValueError."""
    part = f"{out}.part"
    if not os.path.exists(part):
        return None
    saved = read_checkpoint(part)
    if not same_command(saved["meta"], meta):
        raise ValueError(f"{part} is an unfinished run with other settings or inputs: delete it to "
                         f"start anew, or choose another --out")
    return saved


@torch.no_grad()
def restore(saved, modules, optimizers, average):
    """Put weights, optimizer states and the average of `read_part` back in their places."""
    for module, optimizer, its in zip(modules, optimizers, saved["resume"]["networks"]):
        for name, p in module.named_parameters():
            put(p, its["weights"][name])
            state = its["optimizer"][name]
            optimizer.state[p] = {k: processes.like(p, v) for k, v in state.items()}
    if average is not None:
        for name, p in average.named_parameters():
            put(p, saved["weights"][name])


def put(p, x):
    """Copy the whole tensor x into the parameter p, or this process's part of it."""
    processes.local(p).copy_(processes.local(processes.like(p, x)))


def progress(modules, optimizers):
    """What `restore` needs, on process 0. All processes call it."""
    networks = []
    for module, optimizer in zip(modules, optimizers):
        states = {name: optimizer.state[p] for name, p in module.named_parameters()}
        networks.append({"weights": module.state_dict(), "optimizer": states})
    return processes.whole_state(networks)


class Training(NamedTuple):
    """What a save of an unfinished run holds, the step and the best result so far apart."""
    run: Run
    networks: list              # of train.Network
    optimizers: list
    average: nn.Module | None   # of the first network, if cfg.ema
    tokenizer: dict             # {name, hash}
    state: dict                 # the stage's own numbers

    @property
    def result(self):
        return self.networks[0].module if self.average is None else self.average

    @property
    def modules(self):
        return [n.module for n in self.networks]


def resume(t: Training):
    """Go on from cfg.out.part if it is there -> (the step to start with, the best result yet)."""
    start, best = 0, None
    saved = read_part(t.run.cfg.out, t.run.meta)
    if saved is not None:
        restore(saved, t.modules, t.optimizers, t.average)
        start, best = saved["resume"]["step"], saved["resume"]["best"]
        t.state.update(saved["resume"]["state"])
        print(f"going on from step {start} of {t.run.cfg.out}.part")
    processes.agree(start)
    if processes.rank() == 0:
        truncate_log(f"{t.run.cfg.out}.log.jsonl", start)
    return start, best


def better(best, metrics, step, module):
    """The best result so far, by metrics["select"] if the stage has it."""
    if "select" not in metrics or (best and metrics["select"] <= best["select"]):
        return best
    weights = copy.deepcopy(processes.whole_state(module.state_dict()))
    return {"select": metrics["select"], "step": step, "metrics": metrics, "weights": weights}


def save_part(t: Training, step, best):
    """Save all that `resume` needs to go on with `step`. All processes call it."""
    weights = processes.whole_state(t.result.state_dict())
    networks = progress(t.modules, t.optimizers)
    if processes.rank() == 0:
        save_checkpoint(
            f"{t.run.cfg.out}.part", t.result, t.tokenizer, t.run.meta, weights=weights,
            resume={"step": step, "best": best, "state": dict(t.state), "networks": networks})


def save_result(t: Training, best, metrics):
    """Write cfg.out, the best weights or the last -> the metrics. All processes call it."""
    if best is None:
        weights = processes.whole_state(t.result.state_dict())
    else:
        weights = best["weights"]
        metrics |= best["metrics"] | {"selected_step": best["step"]}
    # Interned: a name that a checkpoint brought back is pickled as it is without an interruption.
    metrics = {sys.intern(k): v for k, v in metrics.items() if not k.endswith("_per_second")}
    out = t.run.cfg.out
    if processes.rank() == 0:
        meta = t.run.meta | {"metrics": metrics}
        save_checkpoint(out, t.result, t.tokenizer, meta, weights=weights)
        mark_finished(out)
    processes.all_list([])                                   # the next stage may read it: wait
    return metrics


# ---- logs --------------------------------------------------------------------------------------

def append_log(run, line):
    """Add a dict to the log of a run, from one process. Raises ValueError."""
    if processes.rank() > 0:
        return
    path = f"{run.cfg.out}.log.jsonl"
    try:
        with open(path, "a") as f:
            f.write(json.dumps(line) + "\n")
    except OSError as e:
        raise ValueError(f"cannot write {path} ({e.strerror}): free some space or choose another "
                         f"--out") from e


def truncate_log(path, step):
    """Keep the lines of a log before `step`: what follows is written again."""
    kept = []
    if step and os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    before = json.loads(line)["step"] < step
                except json.JSONDecodeError:
                    break                                    # the line that a kill cut short
                if before:
                    kept.append(line)
    replace_file(path, lambda f: f.writelines(kept))
