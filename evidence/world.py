"""One seed's models, made once by the stages' own `main` and shared by all experiments.

What lies in a seed's folder is kept if the same command made it and refused if not, as everywhere;
what a stage prints goes into a file beside its result.
"""
import fcntl
import json
import os
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import islice
from typing import NamedTuple

import numpy as np

import data
import evaluate
import interop
import label
import ppo
import pretrain
import reward
import sandbox
import sft
from evidence.answers import answer, find_prefix, text_loss
from generate import sample
from model import GPT, Scorer
from plumbing.results import check_place, claim, deliver, file_hash, jsonl
from train import step_seed

PROMPTS, SAMPLES = 800, 4           # held out, and answers of a system to each
SMALL = {"n_embd": 32, "n_layer": 2, "lr": 5e-3}
HELD_OUT_TEXT = (2000, "held out")  # documents of the corpus, its seed
SHORT = 25                          # iterations of the runs of PPO that are compared
# of a quick world: what its stages do less of
QUICK = {pretrain: {"tokens": 1_000_000}, label: {"n": 6000}, ppo: {"iterations": 20}}


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
    quick: bool = False

    def make(self, name, stage, **fields):
        """The path of `name`, made by stage.main with the sandbox's preset and these fields."""
        path = os.path.join(self.folder, name)
        less = QUICK.get(stage, {}) if self.quick else {}
        fields = stage.PRESETS["sandbox"] | {"seed": self.seed, "out": path} | less | fields
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
        return self.ppo(name, ptx_coef=0.0, iterations=SHORT, **fields)

    def small_base(self):
        return self.make("small-base.pt", pretrain, **SMALL)

    def small_sft(self):
        return self.make("small-sft.pt", sft, init=self.small_base(), dropout=0.0, lr=3e-3)

    def answers(self, path, prompts=None, samples=SAMPLES, scored=True, **how):
        """evidence.answers.Answers of a checkpoint to `prompts`, or to the held-out ones of this
        seed; without the reward model's scores if not `scored`. KL is to SFT. `how`: shots, cut."""
        rm = load(self.rm(), Scorer)[0] if scored else None
        reference, _ = load(self.sft())
        model, enc = load(path)
        prompts = prompts or sandbox.eval_prompts(PROMPTS, self.seed)
        cfg = evaluate.Config(seed=self.seed)
        return answer(model, reference, rm, enc, prompts, 1.0, cfg, samples=samples, **how)

    def prompted(self, path, prompts=None):
        """The answers of a base behind the few-shot prefix that the reward model likes best."""
        model, enc = load(path)
        rm, _ = load(self.rm(), Scorer)
        trials = sandbox.prompts(64, f"prefix {self.seed}")
        demonstrations = sandbox.demonstrations(seed=self.seed)
        cfg = evaluate.Config(seed=self.seed)
        shots = find_prefix(model, rm, enc, trials, demonstrations, cfg)
        return self.answers(path, prompts, shots=shots)


# ---- what is read of logs, answers and texts --------------------------------------------------

def read_log(path):
    """The lines of a checkpoint's log, dictionaries."""
    with open(f"{path}.log.jsonl") as f:
        return [json.loads(line) for line in f]


def rollouts(path, *keys):
    """Columns of the log of ppo.py, or of forks/rloo.py: means of each 4 steps, which have 256
    responses -> arrays (steps / 4,)"""
    rows = read_log(path)
    return [np.array([row[key] for row in rows]).reshape(-1, 4).mean(1) for key in keys]


def share(answers, what, *cases):
    """Mean of a field of sandbox.Judgement over the answers, or over those to some use cases."""
    asked = zip(answers.judged, answers.cases)
    return float(np.mean([getattr(j, what) for of_prompt, case in asked for j in of_prompt
                          if not cases or case in cases]))


def held_out_loss(path):
    """The loss of a checkpoint on pretraining text that no model has seen, nats a token."""
    model, enc = load(path)
    return text_loss(model, interop.pack(sandbox.corpus(*HELD_OUT_TEXT), enc), "cpu")


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
