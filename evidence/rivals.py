"""PPO and what is said to replace it, from one SFT: the experiment behind claims 18 to 20."""
import numpy as np

import sandbox
from evidence.experiments import best_of_n_curves, of_rollouts
from evidence.world import PROMPTS, held_out_loss
from forks import dpo, rloo

GRPO = {"baseline": "mean", "std": True, "length": True, "kl": "loss"}
BOLD = {"beta": 0.1, "schedule": "constant"}    # DPO, so that fewer rankings begin the same path
RANKINGS = (1250, 5000, 20_000)                 # that it reads, each once


def rivals(w):
    """With the settings that suit each (tuned on seed 301): PPO, RLOO and GRPO climb one reward
    model with as many responses, DPO learns from the rankings that this was trained on. And DPO
    with a small beta, which holds it less near to SFT.

    Arms: sft, ppo, rloo, grpo, dpo; bold, DPO with the small beta; bon, best-of-n of SFT.

    Figures:
        true score, distance    of the answers to held-out prompts: points; sqrt(KL) to SFT
        loss                    on held-out pretraining text, nats a token
        distinct                of 16 answers to a prompt
        wrong                   mean length of the answers whose true score is below 0, tokens
        kl, rm, true            lists, of evidence.curves.Curves, for the plot: a value for each 256
                                responses; of dpo and bold that of SFT, and one for each of
                                RANKINGS; of bon for each of experiments.NS, and nothing else of it
    """
    paths = {"sft": w.sft(), "ppo": w.plain()}
    for name, fields in (("rloo", {}), ("grpo", GRPO)):
        paths[name] = w.make(f"{name}.pt", rloo, init=w.sft(), rm=w.rm(), **fields)
    figures = {name: of_rollouts(paths[name]) for name in ("ppo", "rloo", "grpo")}
    figures["sft"] = means(w, w.sft())
    for name, n in (("dpo", RANKINGS[-1]), *(("bold", n) for n in RANKINGS)):
        file, more = ("dpo.pt", {}) if name == "dpo" else (f"dpo-bold-{n}.pt", BOLD)
        paths[name] = w.make(file, dpo, init=w.sft(), data=(w.first(n),), **more)
        before, now = figures.get(name, figures["sft"]), means(w, paths[name])
        figures[name] = {what: before[what] + now[what] for what in now}

    for name, path in paths.items():
        a = w.answers(path, scored=False)
        few = w.answers(path, sandbox.eval_prompts(200, w.seed), samples=16, scored=False)
        figures[name] |= {"true score": a.score.mean(), "distance": max(0, a.kl.mean()) ** 0.5,
                          "loss": held_out_loss(path), "wrong": a.length[a.score < 0].mean(),
                          "distinct": np.mean([len(set(texts)) for texts in few.texts])}
    found = best_of_n_curves(w, {"bon": w.rm()})
    return figures | {"bon": found["bon"]}


def means(w, path):
    """A point of the curves, lists of one number: on prompts of PPO's, as the rollouts are."""
    a = w.answers(path, sandbox.prompts(PROMPTS, w.seed))
    found = {"kl": a.kl, "rm": a.rm_score, "true": a.score}
    return {name: [float(values.mean())] for name, values in found.items()}
