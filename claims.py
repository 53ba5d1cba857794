"""Does it hold? The claims of InstructGPT and of the papers around it, each tested again in the sandbox over several seeds.

    python claims.py              # all of them -> docs/claims.jsonl, RESULTS.md, docs/*.png
    python claims.py 7 10         # some
    python claims.py --page       # write RESULTS.md and the plots again from docs/claims.jsonl

A claim is a sentence of a paper and some *quantities*, each of which must be above zero if the sentence is true. A quantity is
measured once a seed. The claim **holds** if the 95 % interval of every quantity over the seeds (Student's t) lies above zero,
it **fails** if the interval of any lies below, and is **undecided** otherwise. Sentences and quantities stand in CLAIMS and
were there before the run; the seeds of the run (101 ...) were used for nothing else.

What is trained and measured stands in experiments.py; a run that was interrupted goes on.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [Gao] Gao et al. 2022, arXiv 2210.10760   [N] Huang et al., The N Implementation
Details of RLHF with PPO   [FeedME] OpenAI's model index
"""
import json
import multiprocessing
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

import cli
import data
from evaluate import best_of_n_kl, interval, table
from experiments import (
    EPOCHS,
    ITERATIONS,
    NS,
    WITHOUT,
    World,
    alignment_tax,
    alone,
    details,
    held_out_labelers,
    hundred_times,
    over_optimisation,
    preference,
    second_epoch,
    second_round,
    sft_epochs,
    shuffled_pairs,
    smooth,
    toxicity,
    what_helps,
)


@dataclass(frozen=True)
class Config:
    claims: tuple[str, ...] = ()    # numbers of the claims to test; none: all
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)   # of everything: corpus, weights, prompts, labelers
    runs: str = "runs/claims"       # the folder where models are made and kept
    docs: str = "docs"              # the folder of claims.jsonl and of the plots
    results: str = "RESULTS.md"     # the page to write
    workers: int = 2                # processes of one thread each
    page: bool = False              # measure nothing, only write the page and the plots again


PRESETS = {"sandbox": {}}


# ---- the arithmetic of a verdict --------------------------------------------------------------------------------

def verdict(intervals):
    """[(mean, half-width), ...] -> "holds", "fails" or "undecided", as the docstring of this file says."""
    if all(mean - half > 0 for mean, half in intervals):
        return "holds"
    return "fails" if any(mean + half < 0 for mean, half in intervals) else "undecided"


def fit(d, gain, form):
    """Least squares of gain = d (alpha - beta g(d)), g = d for "bon", log d for "rl" ([Gao] Eq. 1, 2), through the origin.
    d and gain (N,), d > 0. -> (alpha, beta), R squared."""
    design = np.stack([d, -d * (d if form == "bon" else np.log(d))], 1)
    (alpha, beta), *_ = np.linalg.lstsq(design, gain, rcond=None)
    return (alpha, beta), 1 - ((gain - design @ [alpha, beta]) ** 2).sum() / ((gain - gain.mean()) ** 2).sum()


# ---- the claims: what is claimed, and what must be above which threshold ----------------------------------------

class Claim(NamedTuple):
    sentence: str
    source: str
    paper: str              # what the paper measured
    measure: Callable       # World -> figures
    ours: str               # what the page says; {figure} becomes its mean and interval
    quantities: dict        # what is claimed to be above 0, of the figures of one seed
    remark: str = ""        # what we make of the verdict


def over(a, b):
    """How much more than half of the time the answers of system a are preferred to those of b."""
    return lambda f: f[f"{a} over {b}"] - 0.5


def drop(a, b):
    return lambda f: f[a] - f[b]


def peak(f, run):
    """The iteration at which the true score of a run is highest, all curves smoothed."""
    return int(np.argmax(smooth(f[f"{run} true"])))


def at_peak(f, run, curve):
    return smooth(f[f"{run} {curve}"])[peak(f, run)]


def rise(run):
    return lambda f: at_peak(f, run, "true") - f[f"{run} true"][0] - 0.1   # 0.1: the highest of noisy values is too high


def fall(run):
    return lambda f: at_peak(f, run, "true") - smooth(f[f"{run} true"])[-1] - 0.1


def distance(f, run):
    """The distance of the peak from the SFT model, sqrt(KL) as in [Gao]."""
    return max(0, at_peak(f, run, "kl")) ** 0.5


def gain_fit(f, kind, form):
    """R squared of [Gao]'s form for the true score that was gained, over the distance; the reward model of 12,000 rankings."""
    d = np.sqrt([best_of_n_kl(n) for n in NS]) if kind == "bon" else np.sqrt(np.maximum(f["free 12000 kl"], 0))
    true = np.array(f["bon 12000 true" if kind == "bon" else "free 12000 true"])
    return fit(d[d > 0.1], true[d > 0.1] - true[0], form)[1]


def same_frontier(f):
    """How far the true score under the KL penalty is from that without it at the same KL, on average over the run."""
    kl, true = (smooth(f[f"free 12000 {k}"]) for k in ("kl", "true"))
    order = np.argsort(kl)
    return abs(np.mean(smooth(f["penalty true"]) - np.interp(smooth(f["penalty kl"]), kl[order], true[order])))


CLAIMS = {
    1: Claim(
        "Labelers prefer PPO-ptx, which is no worse than PPO, to FeedME, to SFT, to the prompted base, to the base.",
        "[IG] Fig. 1; FeedME's place is that of OpenAI's model index", "175B PPO-ptx beats few-shot GPT-3 in 71 ± 4 %",
        preference,
        "Elo: base {base elo}, prompted {prompted elo}, SFT 0, FeedME {feedme elo}, best of 16 {bo16 elo}, PPO {ppo elo}, PPO-ptx "
        "{ptx elo}",
        {"PPO-ptx over PPO, and two points of grace": lambda f: f["ptx over ppo"] - 0.48,
         "PPO over FeedME": over("ppo", "feedme"), "FeedME over SFT": over("feedme", "sft"),
         "SFT over prompted": over("sft", "prompted"), "prompted over base": over("prompted", "base")}),
    2: Claim(
        "PPO-ptx is preferred to a base model with 100 times its parameters.",
        "[IG] Fig. 1", "1.3B PPO-ptx is preferred to 175B GPT-3",
        hundred_times,
        "{small} against {large} parameters: preferred {base} of the time, {prompted base} if the large one is prompted",
        {"PPO-ptx over the large base": lambda f: f["base"] - 0.5,
         "PPO-ptx over the large base, prompted": lambda f: f["prompted base"] - 0.5}),
    3: Claim(
        "PPO-ptx makes up less than the base does.",
        "[IG] 4.1, Fig. 4", "hallucination in closed-domain tasks 41 → 21 %",
        preference,
        "closed domain: prompted base {prompted closed hallucination}, SFT {sft closed hallucination}, PPO-ptx {ptx closed "
        "hallucination}; all prompts: {prompted hallucination}, {sft hallucination}, {ptx hallucination}",
        {"closed domain, prompted base minus PPO-ptx": drop("prompted closed hallucination", "ptx closed hallucination"),
         "all prompts, prompted base minus PPO-ptx": drop("prompted hallucination", "ptx hallucination"),
         "all prompts, SFT minus PPO-ptx": drop("sft hallucination", "ptx hallucination")}),
    4: Claim(
        "Asked to be respectful, PPO-ptx insults less than the base; not asked, it does not.",
        "[IG] 4.2, Fig. 7", "about 25 % fewer toxic outputs when asked to be respectful, no fewer when not",
        toxicity,
        "asked: base {base respectful}, SFT {sft respectful}, PPO-ptx {ptx respectful}; not asked: {base plain}, {sft plain}, "
        "{ptx plain}",
        {"asked, base minus PPO-ptx": drop("base respectful", "ptx respectful"),
         "not asked, a tenth minus the fall": lambda f: 0.1 - (f["base plain"] - f["ptx plain"])}),
    5: Claim(
        "PPO costs pretraining loss and few-shot accuracy; pretraining gradients repair it; 100 times the KL penalty does not, and "
        "costs reward.",
        "[IG] 4.2, E.6, Fig. 33, 34", "DROP 35 → 28 with PPO, 33 with PPO-ptx",
        alignment_tax,
        "base, SFT, PPO, PPO-ptx, β × 100: loss {base loss}, {sft loss}, {ppo loss}, {ptx loss}, {beta loss}; accuracy {base "
        "accuracy}, {sft accuracy}, {ppo accuracy}, {ptx accuracy}, {beta accuracy}; reward of PPO {ppo reward}, β × 100 {beta "
        "reward}",
        {"loss, PPO minus base": drop("ppo loss", "base loss"), "loss, PPO minus PPO-ptx": drop("ppo loss", "ptx loss"),
         "loss, β × 100 minus PPO-ptx": drop("beta loss", "ptx loss"),
         "accuracy, base minus PPO": drop("base accuracy", "ppo accuracy"),
         "accuracy, PPO-ptx minus PPO": drop("ptx accuracy", "ppo accuracy"),
         "accuracy, PPO-ptx minus β × 100": drop("ptx accuracy", "beta accuracy"),
         "reward, PPO minus β × 100": drop("ppo reward", "beta reward")}),
    6: Claim(
        "With all C(K,2) pairs of a prompt in one batch element the reward model does not overfit in a pass; with the same pairs "
        "shuffled it does.",
        "[IG] 3.5", "\"a single pass over the dataset caused the reward model to overfit\"",
        shuffled_pairs,
        "held-out loss: grouped {grouped loss}, shuffled {shuffled loss}; accuracy {grouped accuracy}, {shuffled accuracy}",
        {"held-out loss, shuffled minus grouped": drop("shuffled loss", "grouped loss"),
         "held-out accuracy, grouped minus shuffled": drop("grouped accuracy", "shuffled accuracy")}),
    7: Claim(
        "A second epoch overfits the reward model.",
        "[IG] C.2", "very sensitive to epochs",
        second_epoch,
        "held-out loss: one epoch {one loss}, two {two loss}; accuracy {one accuracy}, {two accuracy}",
        {"held-out loss, two minus one": drop("two loss", "one loss"),
         "held-out accuracy, one minus two": drop("one accuracy", "two accuracy")}),
    8: Claim(
        "SFT's validation loss turns up early, while RM score and true preference go on rising to 16 epochs.",
        "[IG] 3.5", "loss is lowest after 1 epoch; 16 epochs were chosen by RM score",
        sft_epochs,
        f"{', '.join(map(str, EPOCHS))} epochs: loss {{loss}}; RM score {{rm score}}; true score {{true score}}",
        {f"{k}, 16 epochs minus 8": lambda f, k=k: f[k][EPOCHS.index(16)] - f[k][EPOCHS.index(8)]
         for k in ("loss", "rm score", "true score")}),
    9: Claim(
        "The reward model predicts labelers it has never seen almost as well as its own.",
        "[IG] 4.1, E.2", "72.4 ± 0.4 → 69.6 ± 0.9 %",
        held_out_labelers,
        "its own {own}, others {other}",
        {"others' accuracy minus a half": lambda f: f["other"] - 0.5,
         "five points minus the loss": lambda f: 0.05 - (f["own"] - f["other"])}),
    10: Claim(
        "Over-optimisation: without a penalty the true score rises, then falls while the RM's goes on; more comparisons and a larger "
        "RM move the peak out; RL fits d (α − β log d), best-of-n d (α − β d); the KL penalty acts like early stopping.",
        "[Gao] 3.1, 3.2, 3.6, Fig. 1", "so, with reward models of 3M to 3B",
        over_optimisation,
        "see the table below and docs/overoptimisation.png",
        {"rise to the peak, 200 rankings, minus 0.1": rise("free 200"),
         "fall from the peak, 200 rankings, minus 0.1": fall("free 200"),
         "rise to the peak, 12,000 rankings, minus 0.1": rise("free 12000"),
         "fall from the peak, 12,000 rankings, minus 0.1": fall("free 12000"),
         "RM score from peak to end, 12,000": lambda f: smooth(f["free 12000 rm"])[-1] - at_peak(f, "free 12000", "rm"),
         "√KL of the peak, 12,000 minus 200": lambda f: distance(f, "free 12000") - distance(f, "free 200"),
         "√KL of the peak, large minus small RM": lambda f: distance(f, "free 12000") - distance(f, "free small"),
         "R² of RL, d (α − β log d) minus d (α − β d)": lambda f: gain_fit(f, "rl", "rl") - gain_fit(f, "rl", "bon"),
         "R² of best-of-n, d (α − β d) minus d (α − β log d)": lambda f: gain_fit(f, "bon", "bon") - gain_fit(f, "bon", "rl"),
         "0.2 minus the distance of the frontiers with and without a penalty": lambda f: 0.2 - same_frontier(f)}),
    11: Claim(
        "Residual dropout in SFT, a value function from the reward model, and pretraining data in the initialisation help.",
        "[IG] C.1, C.4, E.8", "chosen, or compared in E.8",
        what_helps,
        "preferred to its like without: dropout {dropout}, the mix {mix}; mean reward of a short run: value from RM {value from rm}, "
        "random {value random}",
        {"SFT with dropout over without": lambda f: f["dropout"] - 0.5,
         "reward, value from RM minus random": drop("value from rm", "value random"),
         "PPO from the mix over without": lambda f: f["mix"] - 0.5}),
    12: Claim(
        "A second round, on comparisons of the policy's own outputs, helps and repairs what the first reward model could not see.",
        "[IG] 3.1", "\"can be iterated continuously\"; not measured",
        second_round,
        "the second policy is preferred {second over first}; \"I do not know\" to what can be answered {first evasive} → {second "
        "evasive}; hallucination {first hallucination} → {second hallucination}",
        {"second over first": lambda f: f["second over first"] - 0.5,
         "evasive, first minus second": drop("first evasive", "second evasive")}),
    13: Claim(
        "PPO collapses diversity.",
        "[IG] 4.1; for the details below, [N]", "not measured",
        details,
        "distinct of 16 outputs: SFT {sft distinct}, PPO {ppo distinct}, PPO-ptx {ptx distinct}; entropy, nats a token: PPO {ppo "
        "entropy before} → {ppo entropy after}",
        {"distinct, SFT minus PPO": drop("sft distinct", "ppo distinct"),
         "entropy, before minus after": drop("ppo entropy before", "ppo entropy after")}),
}


# ---- the page and its plots -------------------------------------------------------------------------------------

def shown(values):
    """Figures of all seeds as text: "0.41 ± 0.02", one for each entry of a list; counts without digits."""
    mean, half = interval(values)
    if np.ndim(mean):
        return ", ".join(shown(column) for column in np.asarray(values, float).T)
    if abs(mean) >= 1000:
        return f"{mean:,.0f}"
    return f"{mean:.0f} ± {half:.0f}" if abs(mean) >= 20 else f"{mean:.3f} ± {half:.3f}"


def systems_table(by_seed):
    columns = {"wins": "win rate", "elo": "Elo", "true score": "true score", "helpful": "helpful",
               "hallucination": "hallucination", "harmless": "harmless", "rm score": "RM score", "kl": "KL", "length": "length"}
    return table(["system", *columns.values()], [
        [title, *(shown([f[f"{name} {c}"] for f in by_seed]) for c in columns)] for name, title in SYSTEMS.items()])


SYSTEMS = {"base": "base", "prompted": "prompted base", "sft": "SFT", "feedme": "FeedME", "bo16": "SFT, best of 16",
           "ppo": "PPO", "ptx": "PPO-ptx"}


def peaks_table(by_seed):
    def row(rm, title):
        run = f"free {rm}"
        cells = ([f[f"{run} true"][0] for f in by_seed], [at_peak(f, run, "true") for f in by_seed], [distance(f, run) for f in by_seed],
                 [smooth(f[f"{run} true"])[-1] for f in by_seed], [max(f[f"bon {rm} true"]) for f in by_seed])
        return [title, *map(shown, cells)]
    return table(["reward model", "true score at the start", "at the peak", "√KL there", "at the end", "best of n, highest"],
                 [row(rm, title) for rm, title in RMS.items()])


RMS = {"200": "200 rankings", "2000": "2,000 rankings", "12000": "12,000 rankings", "small": "12,000, a small one"}


def details_table(by_seed):
    def effect(name, k):
        saved = "saved model's " if name == "no ema" else ""
        mean, half = interval([f[f"{name}: {saved}{k}"] - f[f"everything: {saved}{k}"] for f in by_seed])
        return f"{mean:+.3f} ± {half:.3f}" + (" (matters)" if abs(mean) > half else "")
    return table([f"changed alone, at the end of {ITERATIONS} iterations of PPO", "reward", "true score", "KL"],
                 [[name, *(effect(name, k) for k in ("reward", "true score", "kl"))] for name in WITHOUT])


TABLES = {1: systems_table, 10: peaks_table, 13: details_table}


def page(rows, command):
    """RESULTS.md from the lines of claims.jsonl: {number: [line of a seed, ...]}."""
    verdicts, tallies, lines = {}, {}, []
    for number, found in rows.items():
        claim, by_seed = CLAIMS[number], [r["figures"] for r in found]
        intervals = {name: interval([q(f) for f in by_seed]) for name, q in claim.quantities.items()}
        verdicts[number] = verdict(list(intervals.values()))
        signs = ["above" if mean > half else "below" if mean < -half else "?" for mean, half in intervals.values()]
        tallies[number] = f"{signs.count('above')} of {len(signs)} above zero, {signs.count('below')} below"
        lines += ["", f"## {number}. {claim.sentence}", "", f"{claim.source}: {claim.paper}.", "",
                  f"**{verdicts[number].capitalize()}** over {len(found)} seeds. Each of these must be above zero:"]
        lines += table(["quantity", "mean and 95 % interval", ""], [
            [name, f"{mean:+.3f} ± {half:.3f}", sign] for (name, (mean, half)), sign in zip(intervals.items(), signs)])
        lines += TABLES[number](by_seed) if number in TABLES else []
        lines += ["", claim.remark] if claim.remark else []
    def ours(number):
        seen = {k: shown([r["figures"][k] for r in rows[number]]) for k in rows[number][0]["figures"]}
        return re.sub(r"{(.*?)}", lambda m: seen[m[1]], CLAIMS[number].ours)
    once = {(r["experiment"], r["seed"]): r for found in rows.values() for r in found}
    commits = sorted({r["commit"] for r in once.values()})
    about = (f"`{command}` on commit {', '.join(commits)}, seeds {', '.join(map(str, sorted({seed for _, seed in once})))}; "
             f"{sum(r['seconds'] for r in once.values()) / 3600:.1f} hours of one core. Means over the seeds with 95 % intervals "
             f"(Student's t). A claim **holds** if the interval of each of its quantities lies above zero, it **fails** if one "
             f"lies below, else it is **undecided**. `claims.py` had the quantities before the run; docs/claims.jsonl has every "
             f"figure of every seed.")
    head = ["# Does it hold?", "", about]
    head += table(["", "claim", "source and its figure", "here", ""], [
        [str(n), CLAIMS[n].sentence, f"{CLAIMS[n].source}: {CLAIMS[n].paper}", ours(n), f"**{verdicts[n]}**: {tallies[n]}"] for n in rows])
    return "\n".join([*head, *lines]), verdicts


def plot(rows, folder):
    """overoptimisation.png, systems.png and sft_epochs.png, of the claims that are there. Says so without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return print("no plots: `pip install matplotlib`, then `python claims.py --page` draws them")
    style = {"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
             "figure.constrained_layout.use": True}
    figures = {n: [r["figures"] for r in found] for n, found in rows.items()}

    def mean(n, k):
        return interval([f[k] for f in figures[n]])
    with plt.rc_context(style):
        if 1 in figures:
            fig, ax = plt.subplots(figsize=(7, 3.2))
            values, halves = np.array([mean(1, f"{name} wins") for name in SYSTEMS]).T
            ours = ["#0072b2" if name in ("ppo", "ptx") else "#9ecae1" for name in SYSTEMS]
            ax.barh(list(SYSTEMS.values()), values, xerr=halves, color=ours, capsize=3)
            for i, (x, half) in enumerate(zip(values, halves)):
                ax.text(x + half + 0.02, i, f"{x:.0%}", va="center")
            ax.axvline(0.5, color="black", lw=1, ls="--")
            ax.invert_yaxis()
            ax.set(xlim=(0, 1), xlabel="preferred to SFT's answer to the same prompt", title="Who wins")
            ax.xaxis.set_major_formatter("{x:.0%}")
            fig.savefig(os.path.join(folder, "systems.png"), dpi=130)
            plt.close(fig)
        if 10 in figures:
            fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
            for colour, (rm, title) in zip(("#d55e00", "#e69f00", "#0072b2", "#999999"), RMS.items()):
                d = smooth(np.sqrt(np.maximum(mean(10, f"free {rm} kl")[0], 0)))
                bon = np.sqrt([best_of_n_kl(n) for n in NS])
                for ax, x, kind in ((left, d, "free"), (right, bon, "bon")):
                    true, half, score = *mean(10, f"{kind} {rm} true"), mean(10, f"{kind} {rm} rm")[0]
                    true, half, score = (v if kind == "bon" else smooth(v) for v in (true, half, score))
                    ax.plot(x, true, color=colour, lw=2, label=title)
                    ax.fill_between(x, true - half, true + half, color=colour, alpha=0.15, lw=0)
                    ax.plot(x, score - score[0] + true[0], color=colour, lw=1.2, ls=":")
            left.set(xlim=(0, 6), ylim=(-2.5, 3), title="Reinforcement learning without a penalty", ylabel="score of an answer",
                     xlabel="distance from SFT, √KL")
            right.set(title="Best of n", xlabel="distance from SFT, √(log n − (n−1)/n)")
            left.legend(title="reward model trained on", frameon=False, loc="lower left", fontsize=9)
            right.plot([], [], color="black", lw=2, label="true score")
            right.plot([], [], color="black", lw=1.2, ls=":", label="what the reward model believes")
            right.legend(handles=right.get_legend_handles_labels()[0][-2:], frameon=False, loc="lower right")
            fig.savefig(os.path.join(folder, "overoptimisation.png"), dpi=130)
            plt.close(fig)
        if 8 in figures:
            fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
            for ax, k, title in zip(axes, ("loss", "rm score", "true score"), ("validation loss", "RM score", "true score")):
                value, half = mean(8, k)
                ax.errorbar(EPOCHS, value, half, marker="o", capsize=3, color="#0072b2")
                ax.set_xscale("log", base=2)
                ax.set_xticks(EPOCHS, EPOCHS)
                ax.set(title=f"SFT: {title}", xlabel="epochs")
            fig.savefig(os.path.join(folder, "sft_epochs.png"), dpi=130)
            plt.close(fig)


# ---- running ----------------------------------------------------------------------------------------------------

def measured(task):
    """One experiment with one seed -> a line of claims.jsonl."""
    measure, seed, folder, commit = task
    torch.set_num_threads(1)
    cli.keep_freed_memory()
    began = time.perf_counter()
    with alone(os.path.join(folder, measure.__name__)):
        figures = measure(World(seed, folder))
    return {"experiment": measure.__name__, "seed": seed, "commit": commit, "seconds": round(time.perf_counter() - began),
            "figures": {k: v if isinstance(v, list) else float(v) for k, v in figures.items()}}


def main(cfg):
    wrong = [c for c in cfg.claims if c not in map(str, CLAIMS)]
    if wrong:
        raise ValueError(f"there is no claim {wrong[0]}: they have the numbers 1 to {len(CLAIMS)}")
    os.makedirs(cfg.docs, exist_ok=True)
    path = os.path.join(cfg.docs, "claims.jsonl")
    numbers = [int(c) for c in cfg.claims] or list(CLAIMS)
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=data.HERE,
                         check=False)
    commit = git.stdout.strip() or "unknown"
    lines = []
    if os.path.exists(path):
        lines = [json.loads(line) for line in data.read_file(path).splitlines()]
    done = {(r["experiment"], r["seed"]) for r in lines}
    wanted = dict.fromkeys(CLAIMS[n].measure for n in numbers) if not cfg.page else {}
    tasks = [(m, s, os.path.join(cfg.runs, str(s)), commit) for m in wanted for s in cfg.seeds if (m.__name__, s) not in done]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(cfg.workers if tasks else 1) as pool:
        for i, line in enumerate(pool.imap_unordered(measured, tasks)):
            lines.append(line)
            data.write_jsonl(path, sorted(lines, key=lambda r: (r["experiment"], r["seed"])))
            seconds = time.perf_counter() - began
            print(f"{i + 1} of {len(tasks)}, {seconds:.0f} s: {line['experiment']}, seed {line['seed']}", flush=True)
    lines = [r for r in lines if r["seed"] in cfg.seeds]
    rows = {n: [r for r in lines if r["experiment"] == claim.measure.__name__] for n, claim in CLAIMS.items()}
    rows = {n: found for n, found in rows.items() if found}
    if not rows:
        raise ValueError(f"{path} has no line of the seeds {', '.join(map(str, cfg.seeds))}: run `python claims.py` first")
    text, verdicts = page(rows, "python claims.py")
    with open(cfg.results, "w") as f:
        f.write(text + "\n")
    plot(rows, cfg.docs)
    print("\n".join(f"{n:3} {v:10} {CLAIMS[n].sentence}" for n, v in verdicts.items()))
    return verdicts


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="claims")
