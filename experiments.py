"""The experiments behind claims.py: what is trained, and what is measured of it, for one seed of the sandbox.

Models are made by the stages' own `main`, once, and shared by the experiments. An experiment is a function of a World, a
seed's folder, and returns figures: numbers, and lists of numbers for curves.
"""
import fcntl
import json
import math
import os
from collections import Counter, defaultdict
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import NamedTuple

import numpy as np
import torch

import data
import evaluate
import label
import ppo
import pretrain
import reward
import sandbox
import sft
from model import generate, load_model
from train import step_seed


def smooth(values, width=5):
    """Moving average of `width` values (T,) -> (T - width + 1,)."""
    return np.convolve(values, np.ones(width) / width, mode="valid")


class World(NamedTuple):
    """One seed's folder. A method names a file in it and makes it first, if it is not there."""
    seed: int
    folder: str

    def make(self, name, stage, **fields):
        """The path of `name`, made by stage.main with the sandbox's preset and these fields."""
        path = os.path.join(self.folder, name)
        with alone(path):
            if not os.path.exists(path):
                stage.main(stage.Config(**stage.PRESETS["sandbox"] | {"seed": self.seed, "out": path} | fields))
        return path

    def base(self):
        return self.make("base.pt", pretrain)

    def sft(self):
        return self.make("sft.pt", sft, init=self.base())

    def comparisons(self):
        return self.make("comparisons.jsonl", label, init=(self.sft(),))

    def first(self, n):
        """The first n comparisons, a file."""
        path = os.path.join(self.folder, f"comparisons-{n}.jsonl")
        with open(self.comparisons()) as whole, alone(path):
            if not os.path.exists(path):
                data.write_jsonl(path, [json.loads(line) for _, line in zip(range(n), whole)])
        return path

    def rm(self):
        return self.make("rm.pt", reward, init=self.sft(), data=(self.comparisons(),))

    def ppo(self, name, rm=None, **fields):
        """PPO from SFT. Without other fields: PPO-ptx as `make` makes it."""
        return self.make(name, ppo, **{"init": self.sft(), "rm": rm or self.rm()} | fields)

    def ptx(self):
        return self.ppo("ppo.pt")

    def plain(self):
        return self.ppo("ppo-plain.pt", ptx_coef=0.0)

    def small(self, stage):
        """A policy or base of a hundredth of the large base's parameters."""
        base = self.make("small-base.pt", pretrain, **SMALL)
        small = self.make("small-sft.pt", sft, init=base, dropout=0.0, lr=3e-3)
        return {"base": base, "sft": small}[stage]

    def answers(self, path, prompts=None, **how):
        """evaluate.answer of a checkpoint to `prompts`, none: the sandbox's 800 held-out ones of this seed. KL is to SFT."""
        rm, reference = load_model(self.rm(), "scorer")[0].eval(), load_model(self.sft(), "gpt")[0].eval()
        model, checkpoint = load_model(path, "gpt")
        prompts = prompts or sandbox.eval_prompts(800, self.seed)
        return evaluate.answer(model.eval(), reference, rm, data.tokenizer_of(checkpoint), prompts, 1.0,
                               evaluate.Config(seed=self.seed), **how)

    def prompted(self, path, **how):
        """The answers of a base model behind the few-shot prefix that the reward model likes best."""
        model, checkpoint = load_model(path, "gpt")
        rm, enc = load_model(self.rm(), "scorer")[0].eval(), data.tokenizer_of(checkpoint)
        cfg = evaluate.Config(seed=self.seed)
        shots = evaluate.find_prefix(model.eval(), rm, enc, sandbox.prompts(64, f"prefix {self.seed}"),
                                     sandbox.demonstrations(seed=self.seed), cfg)
        return self.answers(path, shots=shots, **how)


@contextmanager
def alone(path):
    """No other process makes `path` meanwhile; what is printed goes to path.txt."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.txt", "a") as printed:
        fcntl.flock(printed, fcntl.LOCK_EX)
        with redirect_stdout(printed), redirect_stderr(printed):
            yield


def rollouts(path, *keys):
    """Columns of the log of ppo.py, a row for each rollout of 4 minibatches. -> arrays (iterations,)"""
    with open(f"{path}.log.jsonl") as f:
        rows = [row for row in map(json.loads, f) if row["step"] % 4 == 0]
    return [np.array([row[k] for row in rows]) for k in keys]


def final(path):
    """The metrics at the end of a stage's log."""
    with open(f"{path}.log.jsonl") as f:
        return json.loads(list(f)[-1])


def share(answers, what, *cases):
    """Mean of a field of sandbox.Judgement over the answers, or over those to some use cases."""
    return float(np.mean([getattr(j, what) for j, case in zip(answers.judged, answers.cases) if not cases or case in cases]))


# ---- the experiments ------------------------------------------------------------------------------------------

SMALL = {"n_embd": 32, "n_layer": 2, "lr": 5e-3}                          # about 1/100 of LARGE
LARGE = {"n_embd": 256, "n_layer": 6, "lr": 1e-3, "tokens": 1_000_000, "precision": "bf16"}
CLOSED = ("closed qa", "extraction", "rewriting")                         # where the answer stands in the prompt


def preference(w):
    feedme = w.make("feedme.pt", sft, init=w.base(), epochs=4, rated=(
        w.make("ratings.jsonl", label, init=(w.sft(),), rate=True, swap=0.0, n=1000, seed=w.seed + 10_000),))
    systems = {"base": w.answers(w.base()), "prompted": w.prompted(w.base()), "sft": w.answers(w.sft()),
               "feedme": w.answers(feedme), "bo16": w.answers(w.sft(), best_of=16), "ppo": w.answers(w.plain()),
               "ptx": w.answers(w.ptx())}
    figures = {}
    for name, a in systems.items():
        figures |= {f"{name} wins": evaluate.win_rate(a.score, systems["sft"].score), f"{name} true score": a.score.mean(),
                    f"{name} rm score": a.rm_score.mean(), f"{name} kl": a.kl.mean(), f"{name} length": a.length.mean(),
                    **{f"{name} {what}": share(a, what) for what in ("helpful", "hallucination", "harmless")},
                    f"{name} closed hallucination": share(a, "hallucination", *CLOSED)}
    names = list(systems)
    won = np.array([[evaluate.win_rate(a.score, b.score) for b in systems.values()] for a in systems.values()])
    elo = 400 / np.log(10) * evaluate.bradley_terry(won * len(a.score))
    figures |= {f"{name} elo": x - elo[names.index("sft")] for name, x in zip(names, elo)}
    return figures | {f"{a} over {b}": won[names.index(a), names.index(b)] for a in names for b in names if a != b}


def hundred_times(w):
    large = w.make("large-base.pt", pretrain, **LARGE)
    policy = w.ppo("small-ppo.pt", init=w.small("sft"), lr=1e-3, iterations=40)
    size = {path: sum(p.numel() for p in load_model(path, "gpt")[0].parameters()) for path in (policy, large)}
    ours = w.answers(policy)
    text = data.pack(sandbox.corpus(2000, "held out"), data.get_tokenizer("sandbox"))
    losses = {f"{name} base loss": evaluate.text_loss(load_model(path, "gpt")[0].eval(), text, "cpu")
              for name, path in (("small", w.small("base")), ("large", large))}
    return {"small": size[policy], "large": size[large], **losses,
            "base": evaluate.win_rate(ours.score, w.answers(large).score),
            "prompted base": evaluate.win_rate(ours.score, w.prompted(large).score)}


def toxicity(w):
    held_out = [p for p in sandbox.eval_prompts(6000, w.seed) if p.use_case == "generation"]
    figures = {}
    for how in ("respectful", "plain"):
        asked = [p for p in held_out if (sandbox.RESPECT in p.messages[0]["content"]) == (how == "respectful")]
        told = ["Talk: " + f"{sandbox.RESPECT} " * (how == "respectful") + f"{p.meta['about']} is a" for p in asked]
        said = {"base": complete(w.base(), told, 4, w.seed),               # has learned no dialogue: goes on with the text itself
                "sft": w.answers(w.sft(), asked).texts, "ptx": w.answers(w.ptx(), asked).texts}
        figures |= {f"{system} {how}": np.mean([sandbox.toxic(t) for t in texts]) for system, texts in said.items()}
    return figures


def complete(path, texts, max_new, seed=0, temperature=1.0):
    """How a model goes on with plain texts. -> strings"""
    model, checkpoint = load_model(path, "gpt")
    enc, found = data.tokenizer_of(checkpoint), []
    with torch.no_grad():
        for n, chunk in enumerate(data.chunks(texts, 200)):
            batch = data.pad([enc.encode_ordinary(t) for t in chunk])
            ids, total = generate(model.eval(), *batch, max_new, enc.eot_token, temperature=temperature,
                                  seed=step_seed(seed, n))
            ends = zip(ids.tolist(), batch.length.tolist(), total.tolist())
            found += [enc.decode(row[start:end]) for row, start, end in ends]
    return found


def alignment_tax(w):
    figures, tasks = {}, sandbox.tasks(600, w.seed)
    text = data.pack(sandbox.corpus(2000, "held out"), data.get_tokenizer("sandbox"))
    systems = {"base": w.base(), "sft": w.sft(), "ppo": w.plain(), "ptx": w.ptx(),
               "beta": w.ppo("ppo-beta-100.pt", ptx_coef=0.0, kl_coef=10.0)}
    for name, path in systems.items():
        figures[f"{name} loss"] = evaluate.text_loss(load_model(path, "gpt")[0].eval(), text, "cpu")
        right = [t.startswith(answer) for t, (_, _, answer) in zip(complete(path, [x for _, x, _ in tasks], 8, 0, 0.0), tasks)]
        figures[f"{name} accuracy"] = np.mean(right)
        for task in ("questions", "rewriting", "facts"):
            figures[f"{name} {task}"] = np.mean([r for r, (name_of, _, _) in zip(right, tasks) if name_of == task])
    for name in ("sft", "ppo", "ptx", "beta"):
        answers = w.answers(systems[name])
        figures |= {f"{name} reward": answers.rm_score.mean(), f"{name} kl": answers.kl.mean()}
    return figures


def reward_models(w, name, **fields):
    """Held-out loss and accuracy of a reward model trained on 2,000 prompts' comparisons, or on `fields`."""
    end = final(w.make(name, reward, **{"init": w.sft(), "data": (w.first(2000),)} | fields))
    with open(f"{w.folder}/{name}.log.jsonl") as f:
        training = [row["loss"] for row in map(json.loads, f)][-20:]
    return {"loss": end["held_out_loss"], "accuracy": end["held_out_accuracy"], "training loss": np.mean(training)}


def shuffled_pairs(w):
    shuffled = os.path.join(w.folder, "pairs.jsonl")
    if not os.path.exists(shuffled):
        with open(w.first(2000)) as f:
            pairs = [r | {"responses": [r["responses"][i], r["responses"][j]], "ranks": [1, 2]} for r in map(json.loads, f)
                     for i, j in data.to_ranking("", r).pairs]
        data.write_jsonl(shuffled, pairs)
    grouped = reward_models(w, "rm-2000.pt")
    with open(shuffled) as f:
        batch = 16 * sum(1 for _ in f) // 2000
    pairs = reward_models(w, "rm-pairs.pt", data=(shuffled,), batch=batch)
    return {f"{how} {k}": v for how, end in (("grouped", grouped), ("shuffled", pairs)) for k, v in end.items()}


def second_epoch(w):
    ends = {"one": reward_models(w, "rm-2000.pt"), "two": reward_models(w, "rm-2-epochs.pt", epochs=2)}
    return {f"{how} {k}": v for how, end in ends.items() for k, v in end.items()}


def sft_epochs(w):
    figures = defaultdict(list)
    for epochs in EPOCHS:
        path = w.make(f"sft-{epochs}-epochs.pt", sft, init=w.base(), ptx_mix=0.0, epochs=epochs)
        answers = w.answers(path)
        figures["loss"].append(final(path)["held_out_loss"])
        figures["rm score"].append(answers.rm_score.mean())
        figures["true score"].append(answers.score.mean())
    return dict(figures)


EPOCHS = (1, 2, 4, 8, 16)


def held_out_labelers(w):
    out = f"labeler {w.seed % 5 + 1}"                                      # each of the five in turn, over five seeds
    end = final(w.make("rm-labelers.pt", reward, init=w.sft(), data=(w.first(4000),), held_out_labelers=(out,)))
    return {"own": end["held_out_accuracy"], "other": end["held_out_labelers_accuracy"]}


def over_optimisation(w):
    rms = {"200": w.make("rm-200.pt", reward, init=w.sft(), data=(w.first(200),), warmup=2),
           "2000": w.make("rm-2000.pt", reward, init=w.sft(), data=(w.first(2000),)), "12000": w.rm(),
           "small": w.make("rm-small.pt", reward, init=w.small("sft"), data=(w.comparisons(),), lr=1e-3)}
    slow, figures = {"ptx_coef": 0.0, "lr": 1.5e-4, "iterations": 45}, {}  # so that there are rollouts on both sides of a peak
    runs = {f"free {name}": w.ppo(f"ppo-free-{name}.pt", rm, kl_coef=0.0, **slow) for name, rm in rms.items()}
    for run, path in (runs | {"penalty": w.ppo("ppo-penalty.pt", **slow)}).items():
        curves = rollouts(path, "kl", "score", "true_score")
        figures |= {f"{run} {k}": v.round(4).tolist() for k, v in zip(("kl", "rm", "true"), curves)}
    # best-of-n from 256 samples to each of 60 prompts, each judged once and scored by every reward model
    prompts, n = sandbox.eval_prompts(60, w.seed), NS[-1]
    model, checkpoint = load_model(w.sft(), "gpt")
    enc = data.tokenizer_of(checkpoint)
    scorers = {name: load_model(rm, "scorer")[0].eval() for name, rm in rms.items()}
    scored, true, texts = defaultdict(list), [], []
    with torch.no_grad():
        for i, p in enumerate(prompts):
            asked = data.encode_prompt(enc, p.messages)
            ids, total = generate(model.eval(), *data.pad([asked]), 32, enc.eot_token, n=n,
                                  seed=step_seed(w.seed, f"best of n {i}"))
            texts.append([data.decode_response(enc, row[len(asked):end]) for row, end in zip(ids.tolist(), total.tolist())])
            true.append([sandbox.judge(p, t).score for t in texts[-1]])
            for name, rm in scorers.items():
                scored[name].append(rm.score(ids, total).tolist())
    for name, rm in rms.items():
        figures |= {f"bon {name} rm": [evaluate.best_of_n(np.array(scored[name]), np.array(scored[name]), m) for m in NS],
                    f"bon {name} true": [evaluate.best_of_n(np.array(scored[name]), np.array(true), m) for m in NS],
                    f"bon {name} kl": [float(np.mean([discrete_kl(s, t, m) for s, t in zip(scored[name], texts)])) for m in NS],
                    f"accuracy {name}": final(rm)["held_out_accuracy"]}
    return figures


def discrete_kl(scores, texts, n):
    """KL of best-of-n from what it samples from, if that is the N samples themselves: some responses come again and again, and
    then log n - (n-1)/n is far too much. A response is the best of n with the chance that none scores more, less the chance that
    all score less."""
    counts, score = Counter(texts), dict(zip(texts, scores))
    below, kl = 0.0, 0.0
    for text in sorted(counts, key=score.get):
        p = counts[text] / len(texts)
        best = (below + p) ** n - below ** n
        kl += best * math.log(best / p) if best > 0 else 0.0
        below += p
    return kl


NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


ITERATIONS = 25                     # of the many runs of PPO, without pretraining text, that are compared with one another


def what_helps(w):
    no_dropout, no_mix = (w.make(f"sft-{name}.pt", sft, init=w.base(), **fields)
                          for name, fields in (("no-dropout", {"dropout": 0.0}), ("no-mix", {"ptx_mix": 0.0})))
    runs = {"mix": short_run(w, "everything"), "no mix": short_run(w, "no-mix", init=no_mix),
            "random": short_run(w, "random-value", value_init="random")}
    score = {name: w.answers(path).score for name, path in
             {"dropout": w.sft(), "no dropout": no_dropout, "mix": runs["mix"], "no mix": runs["no mix"]}.items()}
    return {"dropout": evaluate.win_rate(score["dropout"], score["no dropout"]),
            "mix": evaluate.win_rate(score["mix"], score["no mix"]),
            "value from rm": rollouts(runs["mix"], "score")[0].mean(),
            "value random": rollouts(runs["random"], "score")[0].mean()}


def short_run(w, name, **fields):
    return w.ppo(f"ppo-{name}.pt", ptx_coef=0.0, iterations=ITERATIONS, **fields)


def second_round(w):
    def round_of(n, policy, *older):
        new = w.make(f"round-{n}.jsonl", label, init=(policy,), swap=0.0, n=3000, seed=w.seed + 1000 * n)
        rm = w.make(f"round-{n}-rm.pt", reward, init=w.sft(), data=(*older, new))
        return w.ppo(f"round-{n}-ppo.pt", rm=rm, ptx_coef=0.0, iterations=ITERATIONS), new
    first, comparisons = round_of(1, w.sft())
    second, _ = round_of(2, first, comparisons)
    figures, answers = {}, {"first": w.answers(first), "second": w.answers(second)}
    for name, a in answers.items():
        evasive = [sandbox.DO_NOT_KNOW in t for t, case in zip(a.texts, a.cases) if case == "open qa"]
        figures |= {f"{name} evasive": np.mean(evasive), f"{name} true score": a.score.mean(),
                    f"{name} hallucination": share(a, "hallucination")}
    return figures | {"second over first": evaluate.win_rate(answers["second"].score, answers["first"].score)}


def details(w):
    figures, asked = {}, [p for p in sandbox.eval_prompts(100, w.seed) for _ in range(16)]
    for name, path in (("sft", w.sft()), ("ppo", w.plain()), ("ptx", w.ptx())):
        texts = w.answers(path, asked).texts
        figures[f"{name} distinct"] = np.mean([len(set(texts[i:i + 16])) for i in range(0, len(texts), 16)])
    for name, path in (("ppo", w.plain()), ("ptx", w.ptx())):
        entropy = rollouts(path, "entropy")[0]
        figures |= {f"{name} entropy before": entropy[0], f"{name} entropy after": entropy[-10:].mean()}
    for name, fields in {"everything": {}, **CHANGED}.items():
        path = short_run(w, name.replace(" ", "-"), **fields)
        figures |= {f"{name}: {k}": v[-10:].mean() for k, v in
                    zip(("reward", "true score", "kl"), rollouts(path, "score", "true_score", "kl"))}
    for name in ("everything", "no ema"):                                  # the average is not what samples: it is what is saved
        a = w.answers(short_run(w, name.replace(" ", "-"), **CHANGED.get(name, {})))
        figures |= {f"{name}: saved model's reward": a.rm_score.mean(), f"{name}: saved model's true score": a.score.mean(),
                    f"{name}: saved model's kl": a.kl.mean()}
    return figures


CHANGED = {"no whitening": {"whiten": False}, "no value clip": {"value_clip": 0.0}, "no eos penalty": {"eos_penalty": 0.0},
           "adam eps 1e-5": {"adam_eps": 1e-5}, "no ema": {"ema": 0.0}}
