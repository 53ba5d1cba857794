"""What lies on the disk: checkpoints, logs, what made them, and going on after an interruption.

FILE.pt is a result; FILE.pt.part beside it is an unfinished run, from which the same command goes
on; FILE.pt.log.jsonl has a line of numbers for each step. results.py says what may be replaced.
"""
import contextlib
import copy
import json
import os
import pickle
import sys
import warnings
import zipfile
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import nn

from plumbing import processes, ranges, results

# ---- checkpoints -------------------------------------------------------------------------------

def save_checkpoint(path, model, tokenizer, meta, weights=None, **more):
    """Write a self-contained checkpoint: weights, config, kind, tokenizer, what trained it (meta).

    tokenizer: {name, hash}; weights: instead of the model's own. Raises ValueError.
    """
    weights = weights or model.state_dict()
    bad = not_finite(weights)
    if bad:
        raise ValueError(f"{path} is not written: {bad} of its {type(model).__name__} is not "
                         f"finite")
    checkpoint = dict(kind=model.kind, config=asdict(model.cfg), tokenizer=tokenizer, meta=meta,
                      weights={k: v.detach().cpu() for k, v in weights.items()}, **more)
    checkpoint = same_strings(checkpoint)
    results.replace_file(path, lambda f: torch.save(checkpoint, f), mode="wb")


def same_strings(x):
    """Nested dicts, lists and tuples, in which equal strings are one object: else the bytes of a
    pickle depend on where each string came from, a file or the code."""
    if isinstance(x, str):
        return sys.intern(x)
    if isinstance(x, dict):
        return {same_strings(k): same_strings(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(same_strings(v) for v in x)
    return x


def not_finite(tensors):
    """The name of the first of {name: tensor} that holds a number which is not finite, or ""."""
    for name, x in tensors.items():
        if not torch.isfinite(processes.local(x)).all():
            return name
    return ""


def read_checkpoint(path, mmap=False):
    """The dictionary that `save_checkpoint` wrote. Only tensors and plain data are unpickled.

    mmap: leave the tensors on the disk. Raises ValueError."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} does not exist")
    try:
        size = check_archive(path)
        with warnings.catch_warnings():                      # of tensors that no model has
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):
        raise                                                # the file may be good
    except pickle.UnpicklingError as e:
        raise ValueError(f"{path} is not a safe checkpoint: it holds more than tensors and plain "
                         f"data, and loading it could run code; use a file made by these "
                         f"scripts") from e
    except Exception as e:   # a damaged file makes torch.load raise almost anything
        if "can't allocate memory" in str(e):
            raise
        raise ValueError(f"{path} is not a readable checkpoint (truncated, or another kind of "
                         f"file); make it again or restore a copy") from e
    if not is_checkpoint(checkpoint):
        raise ValueError(f"{path} is a PyTorch file but not a checkpoint of these scripts: it must "
                         f"hold kind, config, weights, tokenizer and meta")
    # A view can repeat one number a billion times; of two names for one weight both are counted.
    if sum(w.numel() * w.element_size() for w in checkpoint["weights"].values()) > 2 * size:
        raise ValueError(f"{path} claims more weights than it holds: make it again or restore a "
                         f"copy")
    return checkpoint


def check_archive(path):
    """The size of a file, bytes. Raises ValueError unless it is an archive that does not unpack to
    more, as those that torch.save writes."""
    with open(path, "rb") as f:
        if f.read(4) != b"PK\3\4":                          # what PyTorch takes for its archives
            raise ValueError("it is no archive")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = os.path.getsize(path)
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("it is packed")
    return size


def is_checkpoint(x):
    """Whether x is a dictionary as `save_checkpoint` writes it."""
    kinds = {"kind": str, "config": dict, "weights": dict, "tokenizer": dict, "meta": dict}
    if not isinstance(x, dict) or not all(isinstance(x.get(k), t) for k, t in kinds.items()):
        return False
    try:
        json.dumps([x["config"], x["tokenizer"], x["meta"]])
    except (TypeError, ValueError, RecursionError):          # tensors could be anywhere
        return False
    named = all(isinstance(x["tokenizer"].get(k), str) for k in ("name", "hash"))
    parts = [x["meta"].get(k, {}) for k in ("config", "inputs", "metrics")]
    if not named or not all(isinstance(part, dict) for part in parts):
        return False
    numbers = all(isinstance(v, int | float) for v in parts[-1].values())
    return numbers and all(isinstance(k, str) and is_plain(w) for k, w in x["weights"].items())


def is_plain(x):
    """Whether x is a tensor of floats as models have them: neither sparse, nor without memory."""
    return (torch.is_tensor(x) and x.layout == torch.strided and x.device.type == "cpu"
            and x.is_floating_point())


# ---- the start of a stage ----------------------------------------------------------------------

def require(flag, paths, how):
    """Raise ValueError unless the file that `flag` names is there; `how` is the command for it.

    paths: what it stands for, () where it was not given."""
    if not paths:
        raise ValueError(f"{flag} FILE is missing; make it with `{how}`")
    if paths[0] != "-" and not os.path.exists(paths[0]):
        raise ValueError(f"{flag} {paths[0]} does not exist; `{how}` makes one")


def finished(cfg, meta):
    """The metrics of cfg.out if it is the finished result of exactly this command, else None.

    Raises ValueError if it is anything else, which is not replaced unless cfg.overwrite."""
    out = cfg.out
    if not os.path.exists(out):
        return None
    results.refuse_inputs(out, meta)
    try:
        old = read_checkpoint(out, mmap=True)["meta"]
        why = results.difference(old, meta) or "it is not finished"
    except ValueError:
        old, why = {}, "it is no checkpoint"
    if results.same_command(old, meta) and "metrics" in old:
        return old["metrics"]
    if not cfg.overwrite:
        raise ValueError(f"--out {out} is there already, and {why}: choose another name, or "
                         f"--overwrite it")
    return None


def mark_finished(out, meta):
    """Make a finished result up to date for `make`; remove what a kill left beside it."""
    os.utime(out)
    with contextlib.suppress(ValueError):                    # a file that is not ours stays
        results.check_place(f"{out}.part")
        if results.same_command(read_checkpoint(f"{out}.part", mmap=True)["meta"], meta):
            os.remove(f"{out}.part")
    results.release(out)


def advice(run):
    """What to do when a number of a run is not finite."""
    part = f"{run.cfg.out}.part"
    good = f"{part} holds the last good save" if os.path.exists(part) else "nothing is saved yet"
    return f"; {good}; start again with a lower --lr and another --out"


def check_stats(run, step, stats):
    """Raise ValueError if a number of a step is not finite."""
    results.check_finite(f"{run.meta['stage']}, step {step}", stats, advice(run))


class Run(NamedTuple):
    cfg: object             # a stage's, of train.TrainConfig
    meta: dict              # what trains the result: stage, config, hashes of the inputs
    device: str
    metrics: dict | None    # those of cfg.out, if this very command has finished it already


def begin(cfg, stage, **inputs) -> Run:
    """What comes before any stage: check, meet the other processes, look whether all is done.

    inputs: {flag: path or paths}. Raises ValueError.
    """
    ranges.check(cfg)
    processes.get_device(cfg)   # refuses an unknown one now, not after hashing the inputs
    meta = results.provenance(cfg, stage, inputs)
    device = processes.join(cfg)
    results.check_out(cfg.out)
    if processes.rank() == 0:
        results.hold(cfg.out)
    metrics = finished(cfg, meta)
    processes.agree((meta, metrics))
    if metrics is not None:
        print(f"{cfg.out} is finished already: delete it to make it again")
        if processes.rank() == 0:
            mark_finished(cfg.out, meta)
    return Run(cfg, meta, device, metrics)


# ---- interruptions -----------------------------------------------------------------------------

def read_part(run):
    """What an unfinished run of this command has saved, or None. Raises ValueError."""
    part = f"{run.cfg.out}.part"
    results.check_place(part)
    if not os.path.exists(part):
        return None
    try:
        saved = read_checkpoint(part)
        if results.same_command(saved["meta"], run.meta) and "resume" in saved:
            return saved
        why = results.difference(saved["meta"], run.meta) or "it is finished"
    except ValueError as e:
        why = str(e)
    if not run.cfg.overwrite:
        raise ValueError(f"{part} is no unfinished run of this command ({why}): choose another "
                         f"--out, or --overwrite it")
    return None


@torch.no_grad()
def restore(saved, modules, optimizers, average):
    """Put weights, optimizer states and the average of `read_part` back in their places."""
    networks = saved["resume"]["networks"]
    for module, optimizer, its in zip(modules, optimizers, networks, strict=True):
        for name, p in module.named_parameters():
            put(p, its["weights"][name])
            state = its["optimizer"][name]
            for key, x in state.items():
                check_fits(x, p if key != "step" else x.new_zeros(()))
            optimizer.state[p] = {k: processes.like(p, v) for k, v in state.items()}
    if average is not None:
        for name, p in average.named_parameters():
            put(p, saved["weights"][name])


def check_fits(x, p):
    """Raise ValueError unless the tensor x has p's shape, and finite numbers."""
    if not is_plain(x) or x.shape != p.shape or not x.isfinite().all():
        raise ValueError("what is saved does not fit this model")


def put(p, x):
    """Copy the whole tensor x into the parameter p, or this process's part of it."""
    check_fits(x, p)
    processes.local(p).copy_(processes.local(processes.like(p, x)))


def check_best(best, weights):
    """Raise ValueError unless `best` is what `better` returns, of a model with these weights."""
    if best is None:
        return
    numbers = {**best["metrics"], "select": best["select"], "step": best["step"]}
    results.check_finite("the best evaluation", {k: float(x) for k, x in numbers.items()})
    if best["weights"].keys() != weights.keys():
        raise ValueError("the best weights are those of another model")
    for name, x in best["weights"].items():
        check_fits(x, weights[name])


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


def resume(t: Training, steps):
    """Go on from cfg.out.part if it is there -> (the step of `steps` to start with, the best result
    yet). Raises ValueError if it holds anything else."""
    start, best = 0, None
    saved = read_part(t.run)
    if saved is not None:
        try:
            start, best, state = (saved["resume"][key] for key in ("step", "best", "state"))
            if start not in range(steps):
                raise ValueError(f"there is no step {start}")
            restore(saved, t.modules, t.optimizers, t.average)
            check_best(best, saved["weights"])
            results.check_finite("the state", {k: float(x) for k, x in state.items()})
            t.state.update(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise ValueError(f"{t.run.cfg.out}.part does not hold what this run has saved: move "
                             f"it away to start again") from e
        print(f"going on from step {start} of {t.run.cfg.out}.part")
    processes.agree(start)
    if processes.rank() == 0:
        truncate_log(t.run, start)
    return start, best


def better(best, metrics, step, module):
    """The best result so far, by metrics["select"] if the stage has it."""
    if "select" not in metrics or (best and metrics["select"] <= best["select"]):
        return best
    weights = copy.deepcopy(processes.whole_state(module.state_dict()))
    return {"select": metrics["select"], "step": step, "metrics": metrics, "weights": weights}


def check_weights(t: Training, step):
    """Raise ValueError if a weight, or what Adam remembers of it, is not finite after `step`."""
    for module, optimizer in zip(t.modules, t.optimizers):
        tensors = dict(module.state_dict())
        for name, p in module.named_parameters():
            for key, x in optimizer.state[p].items():
                tensors[f"Adam's {key} of {name}"] = x
        bad = not_finite(tensors)
        if bad:
            raise ValueError(f"{t.run.meta['stage']}, step {step}: {bad}, of its "
                             f"{type(module).__name__}, is not finite{advice(t.run)}")


def save_part(t: Training, step, best):
    """Save all that `resume` needs to go on with `step`. All processes call it."""
    check_weights(t, step - 1)
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
    metrics = {k: v for k, v in metrics.items() if not k.endswith("_per_second")}
    out = t.run.cfg.out
    if processes.rank() == 0:
        results.check_unchanged(out)
        meta = t.run.meta | {"metrics": metrics}
        save_checkpoint(out, t.result, t.tokenizer, meta, weights=weights)
        mark_finished(out, t.run.meta)
    processes.all_list([])                                   # the next stage may read it: wait
    return metrics


# ---- logs --------------------------------------------------------------------------------------

def append_log(run, line):
    """Add a dict to the log of a run, from one process. Raises ValueError if one of its numbers is
    not finite."""
    check_stats(run, line["step"], line)
    if processes.rank() > 0:
        return
    path = f"{run.cfg.out}.log.jsonl"
    results.check_place(path)
    try:
        with open(path, "a", encoding="utf-8") as f:
            if os.fstat(f.fileno()).st_nlink > 1:
                raise ValueError(f"{path} has another name too, whose file would be written: "
                                 f"choose another --out")
            f.write(json.dumps({"run": results.name_of(run.meta)} | line) + "\n")
    except OSError as e:
        raise results.unwritten(path, e) from e


def truncate_log(run, step):
    """Keep the lines of a run's log before `step`: what follows is written again. Raises ValueError
    if the file is not the log of this command."""
    path, name = f"{run.cfg.out}.log.jsonl", results.name_of(run.meta)
    results.check_place(path)
    kept, lines = [], []
    if os.path.exists(path):
        with open(path, "rb") as f:
            lines = f.readlines()
    for n, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            ours = found["run"] == name and isinstance(found["step"], int)
            if ours and found["step"] < step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            # a kill or a full disk has cut the last line short
            is_cut = n == len(lines) and not line.endswith(b"\n")
            ours = is_cut and line.startswith(f'{{"run": "{name}"'.encode())
        if not (ours or run.cfg.overwrite):
            raise ValueError(f"{path}, line {n} is not of the log of this command: move the file "
                             f"away, choose another --out, or --overwrite it")
    results.replace_file(path, lambda f: f.writelines(kept), "wb")
