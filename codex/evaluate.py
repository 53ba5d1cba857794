"""pass@k: programs are sampled, run against the tests of their problems, and counted.

    python -m codex.evaluate base.pt --n 200 --k 1 10 100       # the toy language's held-out pairs
    python -m codex.evaluate folder/ --problems HumanEval.jsonl.gz --n 20       # runs Python

Writes samples.jsonl, which has verdicts, report.json and report.md. An interrupted run goes on.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import data
import interop
from codex import language, runner
from evidence import passes
from generate import sample
from interop.problems import read_problems
from model import GPT
from plumbing import cli, files, processes, results
from train import step_seed

STOPS = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint")     # [Codex] 3.1: what ends a program


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ()    # checkpoints, or folders of a GPT-2
    problems: str = ""              # HumanEval or MBPP as published; none: the toy language's
    toy: int = 100                  # problems of the toy language; [1, 1_000_000]
    n: int = 100                    # samples of each problem; [1, 100_000]
    k: tuple[int, ...] = (1, 10, 100)               # of pass@k, those up to --n, and 1; >= 1
    temperatures: tuple[float, ...] = (0.2, 0.8)    # 0 is greedy; >= 0
    top_p: float = 0.95             # [Codex] 3.1: the likeliest tokens of this probability; (0, 1]
    max_new: int = 128              # longest program, tokens; >= 1
    batch: int = 100                # programs sampled together, a matter of memory; >= 1
    workers: int = 0                # Python programs run at once, 0: two a core; >= 0
    out: str = "pass-at-k"          # the folder to write
    seed: int = 0                   # of the samples, and of the toy problems; >= 0
    overwrite: bool = False         # replace what lies at --out, whatever made it
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"toy": {}, "gpt2": {"max_new": 300, "batch": 20, "n": 20, "k": (1, 10)}}
FILES, PART = ("samples.jsonl", "report.json", "report.md"), "samples.part"


# ---- samples ------------------------------------------------------------------------------------

class Coder(NamedTuple):
    """A model that writes programs."""
    gpt: GPT
    enc: object
    is_chat: bool       # it was fine-tuned: it is asked in the chat's template


def load(path, device="cpu"):
    """A checkpoint or a GPT-2's folder -> Coder. Raises ValueError."""
    gpt, checkpoint = interop.load_model(path, GPT, device=device)
    is_chat = checkpoint["meta"].get("stage") in ("sft", "ppo", "rloo", "dpo")
    return Coder(gpt.eval(), interop.tokenizer_of(checkpoint), is_chat)


def asked_of(coder, prompt):
    """The tokens of a prompt, Python, as a model is asked. Its last newline is left out: with the
    indentation of what follows it is one token."""
    asked = prompt.rstrip("\n")
    if coder.is_chat:
        return data.encode_prompt(coder.enc, [{"role": "user", "content": asked}])
    return coder.enc.encode_ordinary(asked) or [coder.enc.eot_token]


def cut(enc, ids, entry_point=""):
    """Sampled ids -> the text before the first of STOPS or the end, and how many of the ids were
    needed to see it end. A program that has yet to define its entry point ends after that."""
    pieces = [b"" if t == enc.eot_token else enc.decode_single_token_bytes(t) for t in ids]
    text = b"".join(pieces)
    begin = 0
    if entry_point:
        found = re.search(rf"def {re.escape(entry_point)}\b".encode(), text)
        begin = found.end() if found else len(text)
    stop = re.compile(b"|".join(map(re.escape, STOPS))).search(text, begin)
    if not stop:
        return text.decode(errors="replace"), len(ids)
    lengths = np.cumsum([len(piece) for piece in pieces])
    return text[:stop.start()].decode(errors="replace"), int((lengths < stop.end()).sum()) + 1


@torch.no_grad()
def write_programs(coder, problem, n, temperature, seed, max_new=128, top_p=0.95, batch=100):
    """n programs that go on from a Problem's prompt -> [{"program", "logp", "tokens"}, ...]:
    logp is the sum of the tokens' log-probabilities at temperature 1, nats.

    Raises ValueError if prompt and program do not fit the model's context.
    """
    gpt, enc, is_chat = coder
    ids, found = asked_of(coder, problem.prompt), []
    entry_point = "" if language.ends_inside(problem.prompt) else problem.entry_point
    for number, rows in enumerate(data.chunks(range(n), batch)):
        drawn = sample(gpt, [ids], max_new, enc.eot_token, n=len(rows), temperature=temperature,
                       top_p=top_p, seed=step_seed(seed, number))
        ends = [cut(enc, response, entry_point) for response in drawn.responses]
        length = torch.tensor([len(ids) + tokens for _, tokens in ends])
        mask = data.action_mask(torch.full_like(length, len(ids)), length, drawn.ids.shape[1])
        logp, _ = gpt.logp(drawn.ids, mask)
        for (text, tokens), total in zip(ends, logp.sum(1).tolist()):
            program = problem.prompt.rstrip("\n") + text
            if is_chat:
                program = language.complete(problem.prompt, text)
            found.append({"program": program, "logp": total, "tokens": tokens})
    return found


# ---- a run --------------------------------------------------------------------------------------

def python_judge(path, workers):
    """Problems as published -> those whose own solution passes, and a function of a problem and
    some programs that gives their verdicts. Raises ValueError."""
    found, layers = read_problems(path), runner.layers_here()
    pool = ThreadPoolExecutor(workers or 2 * os.cpu_count())
    ways = dict(zip(found, pool.map(partial(runner.way, layers=layers), found)))
    kept = [p for p in found if ways[p]]
    if not kept:
        raise ValueError(f"{path}: no problem is passed by its own solution")
    print(f"{len(kept)} of {len(found)} problems are passed by their own solution and are asked; "
          f"{sum(ways[p] == 'whole' for p in kept)} of them show the program their tests")

    def judge(problem, programs):
        run = partial(runner.run, problem, layers=layers, whole=ways[problem] == "whole")
        different = list(dict.fromkeys(programs))
        outcomes = dict(zip(different, pool.map(run, different)))
        if all(outcome.verdict == "infrastructure" for outcome in outcomes.values()):
            why = outcomes[programs[0]].why
            raise ValueError(f"no program could be run for {problem.name} ({why}): mend that, and "
                             f"start the same command again")
        return [outcomes[program].verdict for program in programs]
    return kept, judge


def collect(cfg, name, coder, problems, judge, part, done):
    """Yield all samples of a model at one temperature after another, lists. Those of each problem
    are appended to the file `part` as they come; `done` are those that are there."""
    for temperature in cfg.temperatures:
        own = []
        for problem in tqdm(problems, f"{name}, T = {temperature}", mininterval=5):
            of = (name, temperature, problem.name)
            if of not in done:
                seed = step_seed(cfg.seed, f"{problem.name} {temperature}")
                samples = write_programs(coder, problem, cfg.n, temperature, seed, cfg.max_new,
                                         cfg.top_p, cfg.batch)
                verdicts = judge(problem, [s["program"] for s in samples])
                done[of] = [dict(zip(("model", "temperature", "problem"), of)) | s | {"verdict": v}
                            for s, v in zip(samples, verdicts)]
                results.append(part, {"of": of, "samples": done[of]})
            own += done[of]
        yield own


def load_all(cfg, names, problems):
    """{name: Coder}. Raises ValueError if a prompt is too long for one."""
    coders = {}
    for name, path in zip(names, cfg.models):
        coders[name] = load(path, processes.get_device(cfg))
        room = coders[name].gpt.cfg.block_size - cfg.max_new
        for problem in problems:
            if len(asked_of(coders[name], problem.prompt)) > room:
                raise ValueError(f"{problem.name} and {cfg.max_new} new tokens do not fit the "
                                 f"context of {path}: lower --max-new, or leave it out")
    return coders


def measure(cfg, meta):
    """Sample, judge and count -> all samples, the report."""
    problems, judge = language.problems(cfg.toy, cfg.seed), language.verdicts
    if cfg.problems:
        problems, judge = python_judge(cfg.problems, cfg.workers)
    coders = load_all(cfg, meta["names"], problems)
    part, samples = os.path.join(cfg.out, PART), []
    done = {tuple(x["of"]): x["samples"] for x in results.go_on(part, meta)}
    for name, coder in coders.items():
        samples += collect(cfg, name, coder, problems, judge, part, done)
    ks = sorted({1, *(k for k in cfg.k if k <= cfg.n)})
    about = {"problems": len(problems), "n": cfg.n}
    return [s for own in samples for s in own], about | passes.report(samples, ks)


def main(cfg):
    if not cfg.models:
        raise ValueError("name the models, e.g. `python -m codex.evaluate base.pt sft.pt`")
    if len(set(cfg.temperatures)) < len(cfg.temperatures):
        raise ValueError("--temperatures names one twice: name each once")
    for path in cfg.models:
        files.require("the model", interop.model_files(path), "python pretrain.py --out base.pt")
    checkpoints = [file for path in cfg.models for file in interop.model_files(path)]
    names = [os.path.basename(os.path.abspath(path)).removesuffix(".pt") for path in cfg.models]
    if len(set(names)) < len(names):
        raise ValueError(f"two of the models {', '.join(names)} have one name: rename one")
    meta = {"names": names} | results.provenance(cfg, "pass at k", {
        "models": checkpoints, "problems": (cfg.problems,) if cfg.problems else ()})
    if not results.claim(cfg.out, meta, FILES, cfg.overwrite):
        written, report = measure(cfg, meta)
        results.deliver(cfg.out, meta, {
            "samples.jsonl": results.jsonl(written),
            "report.json": lambda f: json.dump(report, f, indent=1),
            "report.md": lambda f: f.write(passes.page(report))})
        os.remove(os.path.join(cfg.out, PART))
    with open(os.path.join(cfg.out, "report.md"), encoding="utf-8") as f:
        print(f.read())


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="models")
