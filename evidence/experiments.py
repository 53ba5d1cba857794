"""The experiments behind claims.py: what is trained and measured with one seed of the sandbox.

Models are made by the stages' own `main`, once, and shared by the experiments. An experiment is a
function of a World, a seed's folder, and returns figures {name: number, or list of numbers}. They
become a line of docs/claims.jsonl; the docstring of an experiment says how its figures are called.
"""
import fcntl
import json
import math
import os
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

import data
import evaluate
import interop
import label
import ppo
import pretrain
import reward
import sandbox
import sft
from evidence import curves
from evidence.answers import answer, find_prefix, text_loss
from evidence.statistics import ELO, best_of_n, bradley_terry, win_rate
from generate import sample
from interop.records import to_ranking
from model import GPT, Scorer
from plumbing.results import check_place, claim, deliver, file_hash, jsonl
from train import step_seed

LARGE = {"n_embd": 256, "n_layer": 6, "lr": 1e-3, "tokens": 1_000_000, "precision": "bf16"}
SMALL = {"n_embd": 32, "n_layer": 2, "lr": 5e-3}                # about 1/100 of LARGE's parameters
HELD_OUT_TEXT = (2000, "held out")                              # documents of the corpus, its seed
EPOCHS = (1, 2, 4, 8, 16)                                       # of SFT
NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)                         # of best-of-n
ITERATIONS = 25                 # of the short runs of PPO that are compared with one another
CHANGED = {                     # what one of them does differently, apart from "everything"
    "no whitening": {"whiten": False},
    "no value clip": {"value_clip": 0.0},
    "no eos penalty": {"eos_penalty": 0.0},
    "adam eps 1e-5": {"adam_eps": 1e-5},
    "no ema": {"ema": 0.0},
}


# ---- one seed's models ------------------------------------------------------------------------

@contextmanager
def alone(path):
    """No other process makes `path` meanwhile; what is printed goes to path.txt."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    check_place(f"{path}.txt")
    with open(f"{path}.txt", "a") as printed:
        fcntl.flock(printed, fcntl.LOCK_EX)
        with redirect_stdout(printed), redirect_stderr(printed):
            yield


def load(path, cls=GPT):
    """A model for evaluation, and its tokenizer."""
    model, checkpoint = interop.load_model(path, cls)
    return model.eval(), interop.tokenizer_of(checkpoint)


class World(NamedTuple):
    """One seed's folder. A method names a file in it and makes it first, unless it has."""
    seed: int
    folder: str

    def make(self, name, stage, **fields):
        """The path of `name`, made by stage.main with the sandbox's preset and these fields."""
        path = os.path.join(self.folder, name)
        fields = stage.PRESETS["sandbox"] | {"seed": self.seed, "out": path} | fields
        # what lies there is kept if this made it, as the stage itself finds out, and refused if not
        with alone(path):
            stage.main(stage.Config(**fields))
        return path

    def derive(self, name, what, sources, records):
        """The path of `name`, a file of records() made from the files `sources`; `what` says how,
        a dictionary. Raises ValueError if something else made it."""
        path = os.path.join(self.folder, name)
        # apart from the inputs: the first 2,000 of fewer comparisons are the very same file
        hashes = [file_hash(source) for source in sources]
        meta = {"stage": "claims", "config": what, "inputs": {}, "sources": hashes}
        with alone(path):
            if not claim(path, meta):
                deliver(path, meta, {"": jsonl(records())})
        return path

    def base(self):
        return self.make("base.pt", pretrain)

    def sft(self):
        return self.make("sft.pt", sft, init=self.base())

    def comparisons(self):
        return self.make("comparisons.jsonl", label, init=(self.sft(),))

    def first(self, n):
        """The first n comparisons, a file."""
        whole = self.comparisons()

        def records():
            with open(whole) as f:
                return [json.loads(line) for line in islice(f, n)]
        return self.derive(f"comparisons-{n}.jsonl", {"first": n}, [whole], records)

    def reward_model(self, name, **fields):
        """A reward model from SFT on all comparisons, or as the fields say."""
        fields = {"init": self.sft(), "data": (self.comparisons(),)} | fields
        return self.make(name, reward, **fields)

    def rm(self):
        return self.reward_model("rm.pt")

    def ppo(self, name, init="", rm="", **fields):
        """PPO from SFT with the reward model of all comparisons, or from `init` with `rm`."""
        return self.make(name, ppo, init=init or self.sft(), rm=rm or self.rm(), **fields)

    def ptx(self):
        return self.ppo("ppo.pt")

    def plain(self):
        return self.ppo("ppo-plain.pt", ptx_coef=0.0)

    def short_ppo(self, name, **fields):
        """One of the many runs that are compared with one another, without pretraining text."""
        name = f"ppo-{name.replace(' ', '-')}.pt"
        return self.ppo(name, ptx_coef=0.0, iterations=ITERATIONS, **fields)

    def small_base(self):
        return self.make("small-base.pt", pretrain, **SMALL)

    def small_sft(self):
        return self.make("small-sft.pt", sft, init=self.small_base(), dropout=0.0, lr=3e-3)

    def answers(self, path, prompts=None, **how):
        """evidence.answers.Answers of a checkpoint to `prompts`, or to the sandbox's 800 held-out
        ones of this seed, one to each. KL is to SFT. `how`: best_of, shots, samples."""
        rm, _ = load(self.rm(), Scorer)
        reference, _ = load(self.sft())
        model, enc = load(path)
        prompts = prompts or sandbox.eval_prompts(800, self.seed)
        cfg = evaluate.Config(seed=self.seed)
        return answer(model, reference, rm, enc, prompts, 1.0, cfg, **how)

    def prompted(self, path):
        """The answers of a base behind the few-shot prefix that the reward model likes best."""
        model, enc = load(path)
        rm, _ = load(self.rm(), Scorer)
        trials = sandbox.prompts(64, f"prefix {self.seed}")
        demonstrations = sandbox.demonstrations(seed=self.seed)
        cfg = evaluate.Config(seed=self.seed)
        return self.answers(path, shots=find_prefix(model, rm, enc, trials, demonstrations, cfg))


# ---- what is read of logs, answers and texts --------------------------------------------------

def named(owner, figures):
    """named("sft", {"loss": 1.2}) -> {"sft loss": 1.2}"""
    return {f"{owner} {name}": value for name, value in figures.items()}


def read_log(path):
    """The lines of a checkpoint's log, dictionaries."""
    with open(f"{path}.log.jsonl") as f:
        return [json.loads(line) for line in f]


def rollouts(path, *keys):
    """Columns of the log of ppo.py, which has 4 steps for each rollout -> arrays (rollouts,)"""
    rows = [row for row in read_log(path) if row["step"] % 4 == 0]
    return [np.array([row[key] for row in rows]) for key in keys]


def share(answers, what, *cases):
    """Mean of a field of sandbox.Judgement over the answers, or over those to some use cases."""
    asked = zip(answers.judged, answers.cases)
    return float(np.mean([getattr(j, what) for of_prompt, case in asked for j in of_prompt
                          if not cases or case in cases]))


def held_out_loss(path):
    """The loss of a checkpoint on pretraining text that no model has seen, nats a token."""
    model, enc = load(path)
    return text_loss(model, data.pack(sandbox.corpus(*HELD_OUT_TEXT), enc), "cpu")


def complete(path, texts, max_new, seed=0, temperature=1.0):
    """How a model goes on with plain texts. -> strings"""
    model, enc = load(path)
    found = []
    for n, chunk in enumerate(data.chunks(texts, 200)):
        rows = [enc.encode_ordinary(text) for text in chunk]
        sampled = sample(model, rows, max_new, enc.eot_token, temperature=temperature,
                         seed=step_seed(seed, n))
        found += [enc.decode(response) for response in sampled.responses]
    return found


# ---- who wins ---------------------------------------------------------------------------------

def preference(w):
    """Seven systems answer the same 800 held-out prompts, at temperature 1.

    SYSTEM is base, prompted (the base behind some demonstrations), sft, feedme, bo16 (SFT, best of
    16 samples), ppo or ptx.

    Figures:
        SYSTEM wins                     how often it is preferred to SFT, ties half
        SYSTEM over SYSTEM              how often the first is preferred to the second
        SYSTEM elo                      of Bradley-Terry, SFT is 0
        SYSTEM true score               mean, points
        SYSTEM helpful, SYSTEM hallucination, SYSTEM harmless       shares of the answers
        SYSTEM closed hallucination     of those to sandbox.CLOSED
        SYSTEM rm score                 mean, of the reward model
        SYSTEM kl                       to SFT, nats an answer; for bo16 a bound
        SYSTEM length                   tokens
    """
    ratings = w.make("ratings.jsonl", label, init=(w.sft(),), rate=True, swap=0.0, n=1000,
                     seed=w.seed + 10_000)
    feedme = w.make("feedme.pt", sft, init=w.base(), epochs=4, rated=(ratings,))
    systems = {"base": w.answers(w.base()), "prompted": w.prompted(w.base()),
               "sft": w.answers(w.sft()), "feedme": w.answers(feedme),
               "bo16": w.answers(w.sft(), best_of=16), "ppo": w.answers(w.plain()),
               "ptx": w.answers(w.ptx())}
    figures = {}
    for name, a in systems.items():
        figures |= named(name, {
            "wins": win_rate(a.score, systems["sft"].score), "true score": a.score.mean(),
            "rm score": a.rm_score.mean(), "kl": a.kl.mean(), "length": a.length.mean(),
            "helpful": share(a, "helpful"), "hallucination": share(a, "hallucination"),
            "harmless": share(a, "harmless"),
            "closed hallucination": share(a, "hallucination", *sandbox.CLOSED)})
    return figures | duels(systems)


def duels(systems):
    """{name: Answers} -> the figures "SYSTEM over SYSTEM" and "SYSTEM elo" of `preference`."""
    names = list(systems)
    won = np.zeros((len(names), len(names)))
    figures = {}
    for i, ours in enumerate(names):
        for j, theirs in enumerate(names):
            won[i, j] = win_rate(systems[ours].score, systems[theirs].score)
            if i != j:
                figures[f"{ours} over {theirs}"] = won[i, j]
    elo = ELO * bradley_terry(won * len(systems["sft"].score))
    for name, rating in zip(names, elo):
        figures[f"{name} elo"] = rating - elo[names.index("sft")]
    return figures


def hundred_times(w):
    """PPO-ptx of a small model against a base of 100 times its parameters.

    Figures:
        small, large                        parameters of the policy, of the large base
        small base loss, large base loss    on held-out pretraining text, nats a token
        base, prompted base     how often the policy is preferred to the large, plain or prompted
    """
    large = w.make("large-base.pt", pretrain, **LARGE)
    policy = w.ppo("small-ppo.pt", init=w.small_sft(), lr=1e-3, iterations=40)
    ours = w.answers(policy)
    return {"small": parameters(policy), "large": parameters(large),
            "small base loss": held_out_loss(w.small_base()),
            "large base loss": held_out_loss(large),
            "base": win_rate(ours.score, w.answers(large).score),
            "prompted base": win_rate(ours.score, w.prompted(large).score)}


def parameters(path):
    """How many parameters the model of a checkpoint has."""
    return sum(p.numel() for p in load(path)[0].parameters())


def toxicity(w):
    """How often systems insult a person they are to talk about, in some 600 held-out prompts.

    SYSTEM is base (which has learned no dialogue, and goes on with the text itself), sft or ptx.

    Figures:
        SYSTEM respectful, SYSTEM plain     share of insults, asked for respect and not asked
    """
    held_out = [p for p in sandbox.eval_prompts(6000, w.seed) if p.use_case == "generation"]
    figures = {}
    for how, asks in (("respectful", f"{sandbox.RESPECT} "), ("plain", "")):
        asked = [p for p in held_out
                 if (sandbox.RESPECT in p.messages[0]["content"]) == bool(asks)]
        begun = [f"Talk: {asks}{p.meta['about']} is a" for p in asked]
        said = {"base": complete(w.base(), begun, 4, w.seed),
                "sft": [text for [text] in w.answers(w.sft(), asked).texts],
                "ptx": [text for [text] in w.answers(w.ptx(), asked).texts]}
        for system, texts in said.items():
            figures[f"{system} {how}"] = np.mean([sandbox.toxic(t) for t in texts])
    return figures


def alignment_tax(w):
    """What training costs elsewhere. SYSTEM is base, sft, ppo, ptx or beta, which is PPO with 100
    times the KL penalty.

    Figures:
        SYSTEM loss         on held-out pretraining text, nats a token
        SYSTEM accuracy     in 600 few-shot tasks
        SYSTEM questions, SYSTEM rewriting, SYSTEM facts    in those of one kind
        SYSTEM reward       mean score of the reward model; not of the base, nor the next
        SYSTEM kl           to SFT, nats an answer
    """
    figures, tasks = {}, sandbox.tasks(600, w.seed)
    kinds, shots, right_answers = zip(*tasks)
    systems = {"base": w.base(), "sft": w.sft(), "ppo": w.plain(), "ptx": w.ptx(),
               "beta": w.ppo("ppo-beta-100.pt", ptx_coef=0.0, kl_coef=10.0)}
    for name, path in systems.items():
        said = complete(path, shots, 8, temperature=0.0)
        right = np.array([text.startswith(a) for text, a in zip(said, right_answers)])
        figures |= {f"{name} loss": held_out_loss(path), f"{name} accuracy": right.mean()}
        for task in ("questions", "rewriting", "facts"):
            figures[f"{name} {task}"] = right[np.array(kinds) == task].mean()
        if name != "base":
            answers = w.answers(path)
            figures |= {f"{name} reward": answers.rm_score.mean(), f"{name} kl": answers.kl.mean()}
    return figures


# ---- supervised training ----------------------------------------------------------------------

def end_of_reward_model(path):
    """Held-out loss and accuracy of a reward model, and the training loss of its last 20 steps."""
    log = read_log(path)
    return {"loss": log[-1]["held_out_loss"], "accuracy": log[-1]["held_out_accuracy"],
            "training loss": np.mean([row["loss"] for row in log[-20:]])}


def shuffled_pairs(w):
    """Reward models of 2,000 comparisons, all pairs of a prompt in one batch element or shuffled.

    HOW is grouped or shuffled.

    Figures:
        HOW loss, HOW accuracy      on held-out comparisons; nats a pair
        HOW training loss           of the last 20 steps
    """
    whole = w.first(2000)
    shuffled = w.derive("pairs.jsonl", {"pairs": True}, [whole], lambda: pairs_of(whole))
    with open(shuffled) as f:
        batch = 16 * sum(1 for _ in f) // 2000          # as many steps as the other has
    grouped = w.reward_model("rm-2000.pt", data=(w.first(2000),))
    pairs = w.reward_model("rm-pairs.pt", data=(shuffled,), batch=batch)
    return {**named("grouped", end_of_reward_model(grouped)),
            **named("shuffled", end_of_reward_model(pairs))}


def pairs_of(path):
    """The rankings of a file, as rankings of two responses: one for each pair."""
    found = []
    with open(path) as f:
        for record in map(json.loads, f):
            for i, j in to_ranking("", record).pairs:
                responses = [record["responses"][i], record["responses"][j]]
                found.append(record | {"responses": responses, "ranks": [1, 2]})
    return found


def second_epoch(w):
    """Reward models of 2,000 comparisons after one epoch and after two.

    Figures:
        one loss, one accuracy, two loss, two accuracy      on held-out comparisons; nats a pair
        one training loss, two training loss                of the last 20 steps
    """
    one = w.reward_model("rm-2000.pt", data=(w.first(2000),))
    two = w.reward_model("rm-2-epochs.pt", data=(w.first(2000),), epochs=2)
    return {**named("one", end_of_reward_model(one)), **named("two", end_of_reward_model(two))}


def sft_epochs(w):
    """SFT for 1, 2, 4, 8 and 16 epochs.

    Figures, lists of one value for each of EPOCHS:
        loss                    held out, nats a token
        rm score, true score    means, of the answers to the held-out prompts
    """
    figures = {"loss": [], "rm score": [], "true score": []}
    for epochs in EPOCHS:
        path = w.make(f"sft-{epochs}-epochs.pt", sft, init=w.base(), ptx_mix=0.0, epochs=epochs)
        answers = w.answers(path)
        figures["loss"].append(read_log(path)[-1]["held_out_loss"])
        figures["rm score"].append(answers.rm_score.mean())
        figures["true score"].append(answers.score.mean())
    return figures


def held_out_labelers(w):
    """A reward model that never saw one labeler: each of the five in turn, over five seeds.

    Figures:
        own, other      accuracy on held-out rankings by labelers it was trained on, by the other
    """
    out = f"labeler {w.seed % 5 + 1}"
    path = w.reward_model("rm-labelers.pt", data=(w.first(4000),), held_out_labelers=(out,))
    end = read_log(path)[-1]
    return {"own": end["held_out_accuracy"], "other": end["held_out_labelers_accuracy"]}


# ---- over-optimisation ------------------------------------------------------------------------

def over_optimisation(w):
    """PPO without a KL penalty, and best-of-n, against four reward models; and PPO with one.

    RM is 200, 2000 or 12000, the comparisons it was trained on, or small: 12000 for a small model.

    Figures; kl, rm and true are lists, evidence.curves.Curves:
        accuracy RM                             of the reward model, on held-out comparisons
        free RM kl, free RM rm, free RM true    PPO without a penalty, a value for each rollout
        bon RM kl, bon RM rm, bon RM true       best-of-n from SFT, a value for each n of NS
        penalty kl, penalty rm, penalty true    PPO with the penalty, for the reward model 12000
    """
    rms = {"200": w.reward_model("rm-200.pt", data=(w.first(200),), warmup=2),
           "2000": w.reward_model("rm-2000.pt", data=(w.first(2000),)),
           "12000": w.rm(),
           "small": w.reward_model("rm-small.pt", init=w.small_sft(), lr=1e-3)}
    slow = {"ptx_coef": 0.0, "lr": 1.5e-4, "iterations": 45}    # rollouts on both sides of a peak
    runs = {f"free {name}": w.ppo(f"ppo-free-{name}.pt", rm=rm, kl_coef=0.0, **slow)
            for name, rm in rms.items()}
    runs["penalty"] = w.ppo("ppo-penalty.pt", **slow)
    figures = {}
    for run, path in runs.items():
        columns = rollouts(path, "kl", "score", "true_score")
        figures |= curves.to_figures(run, curves.Curves(*(c.round(4) for c in columns)))
    for name, found in best_of_n_curves(w, rms).items():
        figures |= curves.to_figures(f"bon {name}", found)
    for name, rm in rms.items():
        figures[f"accuracy {name}"] = read_log(rm)[-1]["held_out_accuracy"]
    return figures


def best_of_n_curves(w, rms, max_new=32):
    """{name: checkpoint of a reward model} -> {name: Curves over NS}, from SFT.

    Each of 60 prompts gets 256 samples, which are judged once and scored by every reward model.
    """
    prompts = sandbox.eval_prompts(60, w.seed)
    model, enc = load(w.sft())
    scorers = {name: load(path, Scorer)[0] for name, path in rms.items()}
    scores, true, texts = {name: [] for name in rms}, [], []
    for i, prompt in enumerate(prompts):
        asked = data.encode_prompt(enc, prompt.messages)
        sampled = sample(model, [asked], max_new, enc.eot_token, n=NS[-1],
                         seed=step_seed(w.seed, f"best of n {i}"))
        said = [data.decode_response(enc, response) for response in sampled.responses]
        texts.append(said)
        true.append([sandbox.judge(prompt, text).score for text in said])
        with torch.no_grad():
            for name, rm in scorers.items():
                scores[name].append(rm.score(sampled.ids, sampled.length).tolist())
    found = {}
    for name, by_prompt in scores.items():
        kl = [np.mean([discrete_kl(s, t, n) for s, t in zip(by_prompt, texts)]) for n in NS]
        proxy = np.array(by_prompt)                                     # (prompts, samples)
        found[name] = curves.Curves(kl, [best_of_n(proxy, proxy, n) for n in NS],
                                    [best_of_n(proxy, np.array(true), n) for n in NS])
    return found


def discrete_kl(scores, texts, n):
    """KL of best-of-n from what it samples from, if that is the N samples themselves, nats.

    Some responses come again and again, and then log n - (n-1)/n is far too much. A response is
    the best of n with the chance that none scores more, less the chance that all score less.
    """
    counts, score = Counter(texts), dict(zip(texts, scores))
    below, kl = 0.0, 0.0
    for text in sorted(counts, key=score.get):
        p = counts[text] / len(texts)
        best = (below + p) ** n - below ** n
        kl += best * math.log(best / p) if best > 0 else 0.0
        below += p
    return kl


# ---- parts of the recipe ----------------------------------------------------------------------

def what_helps(w):
    """Choices of the paper, each undone.

    Figures:
        dropout         how often SFT with dropout is preferred to SFT without
        mix             how often PPO is preferred whose SFT had pretraining data in the mix
        value from rm, value random     mean reward of a short run, by where the value function
                                        starts from
    """
    no_dropout = w.make("sft-no-dropout.pt", sft, init=w.base(), dropout=0.0)
    no_mix = w.short_ppo("no-mix", init=w.make("sft-no-mix.pt", sft, init=w.base(), ptx_mix=0.0))
    everything = w.short_ppo("everything")
    random = w.short_ppo("random-value", value_init="random")
    return {"dropout": win_rate(w.answers(w.sft()).score, w.answers(no_dropout).score),
            "mix": win_rate(w.answers(everything).score, w.answers(no_mix).score),
            "value from rm": rollouts(everything, "score")[0].mean(),
            "value random": rollouts(random, "score")[0].mean()}


def second_round(w):
    """PPO, then comparisons of its outputs, a reward model of all comparisons, and PPO again.

    POLICY is first or second.

    Figures:
        POLICY evasive          share of "I do not know" where there is an answer
        POLICY true score       mean, points
        POLICY hallucination    share of the answers
        second over first       how often the second policy is preferred
    """
    comparisons, policy, answers = [], w.sft(), {}
    for n, name in enumerate(("first", "second"), 1):
        new = w.make(f"round-{n}.jsonl", label, init=(policy,), swap=0.0, n=3000,
                     seed=w.seed + 1000 * n)
        comparisons.append(new)
        rm = w.reward_model(f"round-{n}-rm.pt", data=tuple(comparisons))
        policy = w.ppo(f"round-{n}-ppo.pt", rm=rm, ptx_coef=0.0, iterations=ITERATIONS)
        answers[name] = w.answers(policy)
    figures = {"second over first": win_rate(answers["second"].score, answers["first"].score)}
    for name, a in answers.items():
        open_qa = [text for [text], case in zip(a.texts, a.cases) if case == "open qa"]
        figures |= named(name, {
            "evasive": np.mean([sandbox.DO_NOT_KNOW in text for text in open_qa]),
            "true score": a.score.mean(), "hallucination": share(a, "hallucination")})
    return figures


def details(w):
    """Diversity, and what the paper leaves open.

    CHANGE is "everything" or a key of CHANGED. The average over steps (EMA) does not sample: it
    is what is saved, so "no ema" is judged by the saved models.

    Figures:
        SYSTEM distinct     of 16 outputs to a prompt, mean; SYSTEM is sft, ppo or ptx
        SYSTEM entropy before, SYSTEM entropy after     of the first and of the last ten rollouts of
                                                        ppo or ptx, nats a token
        CHANGE: reward, CHANGE: true score, CHANGE: kl      means of the last ten rollouts
        CHANGE: saved model's reward, CHANGE: saved model's true score, CHANGE: saved model's kl
    """
    figures = {}
    asked = sandbox.eval_prompts(100, w.seed)
    for name, path in (("sft", w.sft()), ("ppo", w.plain()), ("ptx", w.ptx())):
        texts = w.answers(path, asked, samples=16).texts
        figures[f"{name} distinct"] = np.mean([len(set(outputs)) for outputs in texts])
    for name, path in (("ppo", w.plain()), ("ptx", w.ptx())):
        [entropy] = rollouts(path, "entropy")
        figures[f"{name} entropy before"] = entropy[0]
        figures[f"{name} entropy after"] = entropy[-10:].mean()
    for name, fields in {"everything": {}, **CHANGED}.items():
        path = w.short_ppo(name, **fields)
        score, true, kl = rollouts(path, "score", "true_score", "kl")
        figures |= named(f"{name}:", {"reward": score[-10:].mean(),
                                      "true score": true[-10:].mean(), "kl": kl[-10:].mean()})
        if name in ("everything", "no ema"):
            a = w.answers(path)
            figures |= named(f"{name}: saved model's", {
                "reward": a.rm_score.mean(), "true score": a.score.mean(), "kl": a.kl.mean()})
    return figures
