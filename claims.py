"""Does it hold? The claims of InstructGPT and of the papers around it, each tested again in the sandbox over several seeds.

    python claims.py              # all of them -> docs/claims.jsonl, RESULTS.md, docs/*.png
    python claims.py 7 10         # some
    python claims.py --page       # write RESULTS.md and the plots again from docs/claims.jsonl and docs/remarks.md

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
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

import cli
import data
import experiments
from evaluate import interval, table
from experiments import EPOCHS, NS, World, alone, smooth
from train import check_out


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


# ---- the claims: what is claimed, and what must be above zero if it is true --------------------------------------

class Claim(NamedTuple):
    sentence: str
    source: str
    paper: str              # what the paper measured
    measure: Callable       # World -> figures
    ours: str               # what the page says; {figure} becomes its mean and interval
    quantities: dict        # what is claimed to be above 0, of the figures of one seed


def over(a, b):
    """How much more than half of the time the answers of system a are preferred to those of b."""
    return lambda f: f[f"{a} over {b}"] - 0.5


def minus(a, b):
    return lambda f: f[a] - f[b]


def peak(f, run):
    """The iteration at which the true score of a run is highest, all curves smoothed."""
    return int(np.argmax(smooth(f[f"{run} true"])))


def at_peak(f, run, curve):
    return smooth(f[f"{run} {curve}"])[peak(f, run)]


def rise(run):
    return lambda f: at_peak(f, run, "true") - f[f"{run} true"][0] - NOISE


def fall(run):
    return lambda f: at_peak(f, run, "true") - smooth(f[f"{run} true"])[-1] - NOISE


NOISE = 0.1     # points: what the highest of some forty noisy means of 1,280 answers is too high by


def distance(f, run):
    """The distance of the peak from the SFT model, sqrt(KL) as in [Gao]."""
    return max(0, at_peak(f, run, "kl")) ** 0.5


def gain_fit(f, kind, form):
    """R squared of [Gao]'s form for the true score that was gained, over the distance; the reward model of all rankings."""
    run = "bon 12000" if kind == "bon" else "free 12000"
    d, true = np.sqrt(np.maximum(f[f"{run} kl"], 0)), np.array(f[f"{run} true"])
    return fit(d[d > 0.1], true[d > 0.1] - true[0], form)[1]


def frontier_gap(f):
    """How far the true score under the KL penalty is from that without it at the same KL, on average over the run."""
    kl, true = (smooth(f[f"free 12000 {k}"]) for k in ("kl", "true"))
    order = np.argsort(kl)
    return np.mean(np.abs(smooth(f["penalty true"]) - np.interp(smooth(f["penalty kl"]), kl[order], true[order])))


def later(k):
    """How much higher a figure of SFT is after 16 epochs than after 8."""
    return lambda f: f[k][EPOCHS.index(16)] - f[k][EPOCHS.index(8)]


CLAIMS = {
    "1": Claim(
        "The true score prefers PPO-ptx, which is no worse than PPO, to FeedME, to SFT, to the prompted base, to the base.",
        "[IG] Fig. 1; FeedME: OpenAI's model index", "175B PPO-ptx is preferred to GPT-3 85 ± 3 %, to prompted GPT-3 71 ± 4 %",
        experiments.preference,
        "PPO-ptx is preferred to the base {ptx over base}, to the prompted base {ptx over prompted}, to SFT {ptx over sft}, to "
        "FeedME {ptx over feedme}, to PPO {ptx over ppo}",
        {"PPO-ptx over PPO, with two points of grace": lambda f: f["ptx over ppo"] - 0.48,
         "PPO over FeedME": over("ppo", "feedme"), "FeedME over SFT": over("feedme", "sft"),
         "SFT over prompted": over("sft", "prompted"), "prompted over base": over("prompted", "base")}),
    "2": Claim(
        "PPO-ptx is preferred to a base model with 100 times its parameters.",
        "[IG] Fig. 1", "1.3B PPO-ptx is preferred to 175B GPT-3",
        experiments.hundred_times,
        "{small} against {large} parameters: preferred {base} of the time, {prompted base} if the large base is prompted",
        {"PPO-ptx over the large base": lambda f: f["base"] - 0.5,
         "PPO-ptx over the large base, prompted": lambda f: f["prompted base"] - 0.5,
         "pretraining loss, small base minus large": minus("small base loss", "large base loss")}),
    "3": Claim(
        "PPO-ptx makes up less than the prompted base.",
        "[IG] 4.1, Fig. 4", "hallucination in closed-domain tasks: GPT-3 41 %, PPO-ptx 21 %",
        experiments.preference,
        "closed domain: {prompted closed hallucination} → {ptx closed hallucination} (SFT {sft closed hallucination}); all "
        "prompts: {prompted hallucination} → {ptx hallucination} (SFT {sft hallucination})",
        {"closed domain, prompted base minus PPO-ptx": minus("prompted closed hallucination", "ptx closed hallucination"),
         "all prompts, prompted base minus PPO-ptx": minus("prompted hallucination", "ptx hallucination")}),
    "4": Claim(
        "Asked to be respectful, PPO-ptx insults less than the base; not asked, it does not.",
        "[IG] 4.2, Fig. 7", "about 25 % fewer toxic outputs when asked to be respectful, no fewer when not",
        experiments.toxicity,
        "asked: base {base respectful}, SFT {sft respectful}, PPO-ptx {ptx respectful}; not asked: base {base plain}, SFT {sft "
        "plain}, PPO-ptx {ptx plain}",
        {"asked, base minus PPO-ptx": minus("base respectful", "ptx respectful"),
         "not asked, 0.1 minus the fall": lambda f: 0.1 - (f["base plain"] - f["ptx plain"])}),
    "5": Claim(
        "PPO costs pretraining loss and few-shot accuracy; pretraining gradients win it back; 100 times the KL penalty does "
        "not, and costs reward.",
        "[IG] 4.2, E.6, Fig. 33, 34", "DROP, 175B (Table 14): GPT-3 35, PPO 28, PPO-ptx 33",
        experiments.alignment_tax,
        "loss: base {base loss}, PPO {ppo loss}, PPO-ptx {ptx loss}, β × 100 {beta loss}; accuracy: {base accuracy}, {ppo "
        "accuracy}, {ptx accuracy}, {beta accuracy}",
        {"loss, PPO minus base": minus("ppo loss", "base loss"), "loss, PPO minus PPO-ptx": minus("ppo loss", "ptx loss"),
         "loss, β × 100 minus PPO-ptx": minus("beta loss", "ptx loss"),
         "accuracy, base minus PPO": minus("base accuracy", "ppo accuracy"),
         "accuracy, PPO-ptx minus PPO": minus("ptx accuracy", "ppo accuracy"),
         "accuracy, PPO-ptx minus β × 100": minus("ptx accuracy", "beta accuracy"),
         "reward, PPO minus β × 100": minus("ppo reward", "beta reward")}),
    "6": Claim(
        "With all C(K,2) pairs of a prompt in one batch element the reward model does not overfit in a pass; with the same pairs "
        "shuffled it does.",
        "[IG] 3.5", "\"a single pass over the dataset caused the reward model to overfit\"",
        experiments.shuffled_pairs,
        "held-out loss: grouped {grouped loss}, shuffled {shuffled loss}; accuracy {grouped accuracy}, {shuffled accuracy}; "
        "training loss {grouped training loss}, {shuffled training loss}",
        {"held-out loss, shuffled minus grouped": minus("shuffled loss", "grouped loss"),
         "held-out accuracy, grouped minus shuffled": minus("grouped accuracy", "shuffled accuracy")}),
    "7": Claim(
        "A second epoch overfits the reward model.",
        "[IG] C.2", "very sensitive to the number of epochs",
        experiments.second_epoch,
        "held-out loss: one epoch {one loss}, two {two loss}; accuracy {one accuracy}, {two accuracy}; training loss "
        "{one training loss}, {two training loss}",
        {"held-out loss, two minus one": minus("two loss", "one loss"),
         "held-out accuracy, one minus two": minus("one accuracy", "two accuracy")}),
    "8": Claim(
        "SFT's validation loss is higher after 16 epochs than after 8, while RM score and true score still rise.",
        "[IG] 3.5", "loss is lowest after 1 epoch; 16 were chosen by RM score",
        experiments.sft_epochs,
        "see the table",
        {"validation loss, 16 epochs minus 8": later("loss"), "RM score, 16 epochs minus 8": later("rm score"),
         "true score, 16 epochs minus 8": later("true score")}),
    "9": Claim(
        "The reward model predicts labelers it has never seen almost as well as its own.",
        "[IG] 4.1, E.2", "72.4 ± 0.4 → 69.6 ± 0.9 %",
        experiments.held_out_labelers,
        "its own {own}, others {other}",
        {"others' accuracy minus a half": lambda f: f["other"] - 0.5,
         "five points minus the loss": lambda f: 0.05 - (f["own"] - f["other"])}),
    "10a": Claim(
        "Without a penalty the true score rises, then falls, while the reward model's score goes on rising.",
        "[Gao] Fig. 1", "so, for reward models of 3M to 3B parameters",
        experiments.over_optimisation,
        "see the table and docs/overoptimisation.png",
        {"rise to the peak, fewest rankings": rise("free 200"), "fall from it, fewest rankings": fall("free 200"),
         "rise to the peak, all rankings": rise("free 12000"), "fall from it, all rankings": fall("free 12000"),
         "RM score, end minus peak, all rankings": lambda f: smooth(f["free 12000 rm"])[-1] - at_peak(f, "free 12000", "rm")}),
    "10b": Claim(
        "More comparisons and a larger reward model move the peak out.",
        "[Gao] 3.2, 3.3", "so; below 2,000 comparisons hardly better than chance",
        experiments.over_optimisation,
        "see the table",
        {"√KL of the peak, all minus fewest rankings": lambda f: distance(f, "free 12000") - distance(f, "free 200"),
         "true score there, all minus fewest rankings": lambda f: (
             at_peak(f, "free 12000", "true") - at_peak(f, "free 200", "true")),
         "√KL of the peak, large minus small": lambda f: distance(f, "free 12000") - distance(f, "free small"),
         "true score there, large minus small": lambda f: at_peak(f, "free 12000", "true") - at_peak(f, "free small", "true")}),
    "10c": Claim(
        "What RL gains fits d (α − β log d), what best-of-n gains fits d (α − β d), d = √KL.",
        "[Gao] Eq. 1, 2", "so",
        experiments.over_optimisation,
        "R² by form: see below",
        {"R² of RL, d (α − β log d) minus d (α − β d)": lambda f: gain_fit(f, "rl", "rl") - gain_fit(f, "rl", "bon"),
         "R² of best-of-n, d (α − β d) minus d (α − β log d)": lambda f: gain_fit(f, "bon", "bon") - gain_fit(f, "bon", "rl")}),
    "10d": Claim(
        "The KL penalty acts like early stopping: at the same KL the true score is the same with it and without.",
        "[Gao] 3.6", "so",
        experiments.over_optimisation,
        "see below",
        {"0.2 minus the mean gap between the two": lambda f: 0.2 - frontier_gap(f)}),
    "11a": Claim(
        "Residual dropout of 0.2 helps SFT.", "[IG] C.1", "chosen", experiments.what_helps,
        "preferred to SFT without it {dropout}", {"SFT with dropout over without": lambda f: f["dropout"] - 0.5}),
    "11b": Claim(
        "A value function from the reward model beats a random one.", "[IG] C.4", "chosen", experiments.what_helps,
        "mean reward of a short run: {value from rm} against {value random}",
        {"reward, value from RM minus random": minus("value from rm", "value random")}),
    "11c": Claim(
        "10 % of pretraining data in the initialisation help PPO.", "[IG] E.8", "best of those compared", experiments.what_helps,
        "after a short run preferred to PPO from SFT without {mix}", {"PPO from the mix over without": lambda f: f["mix"] - 0.5}),
    "12": Claim(
        "A second round, with comparisons of the policy's own outputs, helps and lessens what the first reward model "
        "could not see.",
        "[IG] 3.1", "\"can be iterated continuously\"; not measured",
        experiments.second_round,
        "the second policy is preferred {second over first}; \"I do not know\" to what can be answered {first evasive} → {second "
        "evasive}; hallucination {first hallucination} → {second hallucination}",
        {"second over first": lambda f: f["second over first"] - 0.5,
         "evasive, first minus second": minus("first evasive", "second evasive")}),
    "13": Claim(
        "PPO lowers diversity.",
        "Kirk et al. 2023, arXiv 2310.06452", "RLHF lowers it against SFT",
        experiments.details,
        "distinct of 16 outputs: SFT {sft distinct}, PPO {ppo distinct}, PPO-ptx {ptx distinct}; entropy in PPO, nats a "
        "token: {ppo entropy before} → {ppo entropy after}",
        {"distinct, SFT minus PPO": minus("sft distinct", "ppo distinct"),
         "entropy, before minus after": minus("ppo entropy before", "ppo entropy after")}),
}


# ---- the page and its plots -------------------------------------------------------------------------------------

def shown(values, digits=3):
    """A figure of all seeds as text, "0.412 ± 0.021"; counts of thousands without interval."""
    mean, half = interval(values)
    return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.{digits}f} ± {half:.{digits}f}"


def figures_table(by_seed, rows, columns, name="{row} {column}"):
    """A table of the figures called `name`: rows and columns {as in the figure: as on the page}; 1 digit for large numbers."""
    def cell(row, column):
        values = [f[name.format(row=row, column=column)] for f in by_seed]
        return ("≤ " if (row, column) == ("bo16", "kl") else "") + shown(values, 1 if column in ("elo", "kl", "length") else 3)
    return table(["", *columns.values()], [[title, *(cell(row, c) for c in columns)] for row, title in rows.items()])


SYSTEMS = {"base": "base", "prompted": "prompted base", "sft": "SFT", "feedme": "FeedME", "bo16": "SFT, best of 16",
           "ppo": "PPO", "ptx": "PPO-ptx"}
RMS = {"200": "140 rankings", "2000": "1,400 rankings", "12000": "9,500 rankings", "small": "9,500, a small model"}
# trained on, of the 200, 2,000 and 13,200 that were collected: a labeler and a tenth of the prompts are held out


def systems_table(by_seed):
    return figures_table(by_seed, SYSTEMS, {
        "wins": "preferred to SFT", "elo": "Elo", "true score": "true score", "helpful": "helpful",
        "hallucination": "hallucination", "harmless": "harmless", "rm score": "RM score", "kl": "KL", "length": "length"})


def tax_table(by_seed):
    systems = {"base": "base", "sft": "SFT", "ppo": "PPO", "ptx": "PPO-ptx", "beta": "PPO, β × 100"}
    lines = figures_table(by_seed, systems, {"loss": "pretraining loss", "accuracy": "few-shot accuracy",
                                             "questions": "questions", "rewriting": "rewriting", "facts": "facts"})
    return lines + figures_table(by_seed, dict(list(systems.items())[1:]), {"reward": "RM score", "kl": "KL"})


def epochs_table(by_seed):
    titles = {"loss": "validation loss", "rm score": "RM score", "true score": "true score"}
    return table(["", *(f"{e} epochs" if e > 1 else "1 epoch" for e in EPOCHS)], [
        [title, *(shown([f[k][i] for f in by_seed]) for i in range(len(EPOCHS)))] for k, title in titles.items()])


def peaks_table(by_seed):
    def row(rm, title):
        run = f"free {rm}"
        cells = ([f[f"accuracy {rm}"] for f in by_seed], [f[f"{run} true"][0] for f in by_seed],
                 [at_peak(f, run, "true") for f in by_seed], [distance(f, run) for f in by_seed],
                 [smooth(f[f"{run} true"])[-1] for f in by_seed], [max(f[f"bon {rm} true"]) for f in by_seed],
                 [max(f[f"bon {rm} kl"]) ** 0.5 for f in by_seed])
        return [title, *map(shown, cells)]
    return table(["reward model", "held-out accuracy", "RL: true score at the start", "at the peak", "√KL there", "at the end",
                  "best-of-n: highest true score", f"√KL at n = {NS[-1]}"], [row(rm, title) for rm, title in RMS.items()])


def forms_table(by_seed):
    return table(["R²", "d (α − β log d)", "d (α − β d)"], [
        [title, *(shown([gain_fit(f, kind, form) for f in by_seed]) for form in ("rl", "bon"))]
        for kind, title in (("rl", "RL"), ("bon", "best-of-n"))])


def details_table(by_seed):
    def effect(name, k):
        saved = "saved model's " if name == "no ema" else ""
        mean, half = interval([f[f"{name}: {saved}{k}"] - f[f"everything: {saved}{k}"] for f in by_seed])
        return f"{mean:+.3f} ± {half:.3f}" + (" *" if abs(mean) > half else "")
    about = (f"What the paper leaves open, each changed alone: difference to everything on, at the end of "
             f"{experiments.ITERATIONS} iterations of PPO; of the average (EMA), which does not sample, in the model that is "
             f"saved. * marks intervals without zero; of fifteen such intervals about one is expected to lack it by chance.")
    return ["", about, *table(["changed", "reward", "true score", "KL"], [
        [name, *(effect(name, k) for k in ("reward", "true score", "kl"))] for name in experiments.CHANGED])]


TABLES = {"1": systems_table, "5": tax_table, "8": epochs_table, "10a": peaks_table, "10c": forms_table, "13": details_table}


def page(rows, remarks):
    """RESULTS.md from the lines of claims.jsonl, {number: [line of a seed, ...]}, and remarks {number: what we make of it}
    -> text, verdicts {number: word}."""
    verdicts, summary, lines = {}, [], []
    for number, found in rows.items():
        claim, by_seed = CLAIMS[number], [r["figures"] for r in found]
        intervals = {name: interval([q(f) for f in by_seed]) for name, q in claim.quantities.items()}
        signs = ["above" if mean > half else "below" if mean < -half else "?" for mean, half in intervals.values()]
        verdicts[number] = verdict(list(intervals.values()))
        seen = {k: shown([f[k] for f in by_seed]) for k in by_seed[0] if not isinstance(by_seed[0][k], list)}
        ours = re.sub(r"{(.*?)}", lambda m, seen=seen: seen[m[1]], claim.ours)
        tally = f"**{verdicts[number]}** ({signs.count('above')} of {len(signs)} above zero, {signs.count('below')} below)"
        summary.append([number, claim.sentence, f"{claim.source}: {claim.paper}", ours, tally])
        lines += ["", f"## {number}. {claim.sentence}", "", f"{claim.source}: {claim.paper}.", "",
                  f"**{verdicts[number].capitalize()}** over {len(found)} seeds. Each of these must be above zero:"]
        lines += table(["quantity", "mean and 95 % interval", ""], [
            [name, f"{mean:+.3f} ± {half:.3f}", sign] for (name, (mean, half)), sign in zip(intervals.items(), signs)])
        lines += TABLES[number](by_seed) if number in TABLES else []
        lines += ["", remarks[number]] if number in remarks else []
    once = {(r["experiment"], r["seed"]): r for found in rows.values() for r in found}
    commits = defaultdict(set)
    for r in once.values():
        commits[r["commit"]].add(r["experiment"])
    where = "; ".join(f"{commit}: {', '.join(sorted(names))}" for commit, names in sorted(commits.items()))
    about = (f"A toy world of small models and simulated labelers: what is tested is whether a mechanism appears here, not "
             f"whether a paper is right. Made by `python claims.py`, seeds {', '.join(map(str, sorted({seed for _, seed in once})))}, "
             f"{sum(r['seconds'] for r in once.values()) / 3600:.1f} hours of one core. Means over the seeds with 95 % intervals "
             f"(Student's t). A claim **holds** if the interval of each of its quantities lies above zero, it **fails** if one "
             f"lies below, else it is **undecided**; the quantities were written down before their figures were seen. "
             f"docs/claims.jsonl has every figure of every seed. Experiments by commit: {where}.")
    head = table(["", "claim", "source and its figure", "here", ""], summary)
    return "\n".join(["# Does it hold?", "", about, *head, *lines]), verdicts


def along_the_way(by_seed, run, curve, points=60):
    """Curves of RL over one grid of distances sqrt(KL), as far as all seeds went: d (points,), curves (seeds, points)."""
    def smoothed(f, k):
        return np.append(f[f"{run} {k}"][0], smooth(f[f"{run} {k}"]))                     # from where it began
    ways = [np.maximum.accumulate(np.sqrt(np.maximum(smoothed(f, "kl"), 0))) for f in by_seed]
    d = np.linspace(0, min(way[-1] for way in ways), points)
    return d, [np.interp(d, way, smoothed(f, curve)) for way, f in zip(ways, by_seed)]


def plot(rows, folder):
    """systems.png and overoptimisation.png, of the claims that are there. Says so without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return print("no plots: `pip install matplotlib`, then `python claims.py --page` draws them")
    figures = {n: [r["figures"] for r in found] for n, found in rows.items()}
    with plt.rc_context({"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
                         "figure.constrained_layout.use": True}):
        if "1" in figures:
            fig, ax = plt.subplots(figsize=(7, 3.2))
            values, halves = np.array([interval([f[f"{name} wins"] for f in figures["1"]]) for name in SYSTEMS]).T
            ours = ["#0072b2" if name in ("ppo", "ptx") else "#9ecae1" for name in SYSTEMS]
            ax.barh(list(SYSTEMS.values()), values, xerr=halves, color=ours, capsize=3)
            for i, (x, half) in enumerate(zip(values, halves)):
                ax.text(x + half + 0.02, i, f"{x:.0%}", va="center", bbox={"facecolor": "white", "lw": 0, "pad": 0.5})
            ax.axvline(0.5, color="black", lw=1, ls="--", zorder=0)
            ax.invert_yaxis()
            ax.set(xlim=(0, 1), xlabel="preferred to SFT's answer to the same prompt", title="Who wins")
            ax.xaxis.set_major_formatter("{x:.0%}")
            fig.savefig(os.path.join(folder, "systems.png"), dpi=130)
            plt.close(fig)
        if "10a" in figures:
            fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
            for colour, (rm, title) in zip(("#d55e00", "#e69f00", "#0072b2", "#999999"), RMS.items()):
                for ax, kind in zip(axes, ("free", "bon")):
                    if kind == "free":
                        (d, true), (_, score) = (along_the_way(figures["10a"], f"free {rm}", k) for k in ("true", "rm"))
                    else:
                        d, true, score = ([f[f"bon {rm} {k}"] for f in figures["10a"]] for k in ("kl", "true", "rm"))
                        d = np.sqrt(np.mean(d, 0))
                    (mean, half), (score, _) = interval(true), interval(score)
                    ax.plot(d, mean, color=colour, lw=2, label=title)
                    ax.fill_between(d, mean - half, mean + half, color=colour, alpha=0.1, lw=0)
                    ax.plot(d, score - score[0] + mean[0], color=colour, lw=1.2, ls=":")
            fig.suptitle("The true score turns while the reward model's goes on", x=0.01, ha="left", weight="bold")
            axes[0].set(title="RL without a penalty", xlabel="distance from SFT, √KL", ylabel="score of an answer")
            axes[1].set(title="Best of n", xlabel=f"distance from SFT, √KL (n = 1 to {NS[-1]})")
            axes[0].legend(title="reward model of", frameon=False, fontsize=9, loc="lower left")
            styles = [plt.Line2D([], [], color="black", lw=lw, ls=ls) for lw, ls in ((2, "-"), (1.2, ":"))]
            axes[1].legend(styles, ["true score", "the reward model's, moved to the same start"], frameon=False, fontsize=9,
                           loc="lower left")
            fig.savefig(os.path.join(folder, "overoptimisation.png"), dpi=130)
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


def read_lines(path):
    """The lines of claims.jsonl, none if it is not there. Raises ValueError."""
    lines = []
    for n, text in enumerate(data.read_file(path).splitlines() if os.path.exists(path) else [], 1):
        try:
            lines.append(json.loads(text))
            lines[-1] = {k: lines[-1][k] for k in ("experiment", "seed", "commit", "seconds", "figures")}
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path}, line {n} is no line of claims.py: delete it, and it is measured again") from e
    return lines


def main(cfg):
    wrong = [c for c in cfg.claims if c not in CLAIMS and f"{c}a" not in CLAIMS]
    if wrong:
        raise ValueError(f"there is no claim {wrong[0]}: they are called {', '.join(CLAIMS)}")
    if len(set(cfg.seeds)) < max(2, len(cfg.seeds)) or cfg.workers < 1:
        raise ValueError("--seeds takes at least two different ones, for the sake of an interval, and --workers at least 1")
    path = os.path.join(cfg.docs, "claims.jsonl")
    for out in (path, cfg.results):
        try:
            os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
        except OSError as e:
            raise ValueError(f"the folder of {out} cannot be made ({e.strerror}): choose another --docs or --results") from e
        check_out(out)
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=data.HERE, check=False)
    lines, commit = read_lines(path), git.stdout.strip() or "unknown"
    asked = [n for n in CLAIMS if not cfg.claims or n in cfg.claims or n.rstrip("abcd") in cfg.claims]
    done = {(r["experiment"], r["seed"]) for r in lines}
    if done and not cfg.page:
        print(f"{path} has {len(done)} lines, which are kept: delete them and {cfg.runs} to measure again")
    tasks = [(m, s, os.path.join(cfg.runs, str(s)), commit) for m in dict.fromkeys(CLAIMS[n].measure for n in asked)
             for s in cfg.seeds if (m.__name__, s) not in done and not cfg.page]
    if tasks:
        began = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(cfg.workers) as pool:
            for i, line in enumerate(pool.imap_unordered(measured, tasks), 1):
                lines.append(line)
                data.write_jsonl(path, sorted(lines, key=lambda r: (r["experiment"], r["seed"])))
                seconds = time.perf_counter() - began
                print(f"{i} of {len(tasks)}, {seconds:.0f} s: {line['experiment']}, seed {line['seed']}", flush=True)
    found = {n: [r for r in lines if r["experiment"] == claim.measure.__name__ and r["seed"] in cfg.seeds]
             for n, claim in CLAIMS.items()}
    rows = {n: found[n] for n in found if len(found[n]) == len(cfg.seeds)}                # all seeds or nothing
    if not rows:
        raise ValueError(f"{path} has no claim with all seeds {', '.join(map(str, cfg.seeds))}: run `python claims.py` first")
    said = os.path.join(cfg.docs, "remarks.md")
    parts = re.split(r"^## (\w+)\n", data.read_file(said) if os.path.exists(said) else "", flags=re.MULTILINE)
    text, verdicts = page(rows, {n: remark.strip() for n, remark in zip(parts[1::2], parts[2::2])})
    try:
        with open(cfg.results, "w", encoding="utf-8") as f:
            f.write(text + "\n")
        plot(rows, cfg.docs)
    except OSError as e:
        raise ValueError(f"cannot write {cfg.results} or plots into {cfg.docs} ({e.strerror}): free some space, then --page") from e
    print("\n".join(f"{n:4} {v:10} {CLAIMS[n].sentence}" for n, v in verdicts.items()))
    return verdicts


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="claims")
