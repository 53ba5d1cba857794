"""Does it hold? Claims of InstructGPT and of the papers around it, tested in the sandbox.

    python -m evidence.claims            # all -> docs/claims.jsonl, RESULTS.md, a plot; README.md
    python -m evidence.claims 7 10       # some
    python -m evidence.claims --page     # only the pages and the plot, from docs/claims.jsonl

A claim is a sentence of a paper and some *quantities*, each of which must be above zero if the
sentence is true; each has a *margin*, and what is nearer to zero than that does not matter. A
quantity is measured once a seed, and statistics.effect says what the seeds say of it. The claim
**holds** if all its quantities are above zero, it **fails** if one is below; it is **negligible**
if all are, holds **in part** if some are above zero and the others negligible, and is **undecided**
only if there is too little data for any of these. A claim that something makes no difference holds
if all its quantities are negligible, and fails if the interval of one lies beyond its margin.

Sentences, quantities, margins and numbers of seeds stand in CLAIMS and were there before the run.
What is trained and measured stands in experiments.py; a run that was interrupted goes on. What we
make of the verdicts is written into docs/remarks.md by hand, and onto the page by --page.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [Gao] Gao et al. 2022, arXiv 2210.10760
[FeedME] OpenAI's model index
"""
import itertools
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

import interop
from evidence import curves, experiments, page, programs, repeats, rivals, screening
from evidence.experiments import CHANGED
from evidence.statistics import effect
from evidence.world import World, alone
from plumbing import cli, processes, results


@dataclass(frozen=True)
class Config:
    claims: tuple[str, ...] = ()    # numbers of the claims to test; none: all
    seeds: tuple[int, ...] = ()     # of corpus, weights, prompts and labelers; none: SEEDS, of
                                    # which a claim has the first few; >= 0
    runs: str = "runs"              # the folder where models are made and kept, also `make seeds`'
    docs: str = "docs"              # the folder of claims.jsonl, RESULTS.md and the plot
    readme: str = "README.md"       # the page whose verdicts are written again, empty for none
    workers: int = 2                # processes of one thread each; >= 1
    quick: bool = False             # models that have seen less, to look on: other figures
    page: bool = False              # measure nothing, only write the pages and the plot again


PRESETS = {"sandbox": {}}


# ---- what is claimed, and what must be above zero if it is true -------------------------------

class Quantity(NamedTuple):
    figure: Callable                # of one seed's figures -> what must exceed 0
    margin: float                   # a mean nearer to 0 does not matter


class Claim(NamedTuple):
    sentence: str
    source: str
    paper: str                      # what the paper measured
    measure: Callable               # a function of experiments.py, whose docstring names figures
    ours: str                       # what the page says; {arm.figure} becomes mean and interval
    quantities: dict                # {name: Quantity}
    seeds: int = 5                  # how many of SEEDS
    equal: bool = False             # the sentence says that its quantities are negligible
    table: Callable | None = None   # figures of all seeds -> lines for the page


def above(name, threshold, margin):
    return Quantity(lambda f: page.get(f, name) - threshold, margin)


def below(name, threshold, margin):
    return Quantity(lambda f: threshold - page.get(f, name), margin)


def minus(a, b, margin):
    return Quantity(lambda f: page.get(f, a) - page.get(f, b), margin)


def minus_times(a, factor, b, margin):
    return Quantity(lambda f: page.get(f, a) - factor * page.get(f, b), margin)


def of_run(measure, arm, margin):
    """A measure of a run's curves."""
    return Quantity(lambda f: measure(curves.of(f, arm)), margin)


def minus_run(measure, a, b, margin):
    """By how much a measure of run a exceeds that of run b."""
    return Quantity(lambda f: measure(curves.of(f, a)) - measure(curves.of(f, b)), margin)


def won_back(figure):
    """What pretraining gradients win back of a figure, less half of what SFT and PPO lost."""
    def quantity(f):
        base, ppo, ptx = (f[arm][figure] for arm in ("base", "ppo", "ptx"))
        lost, won = ppo - base, ppo - ptx
        # a loss is lost by rising, an accuracy by falling
        sign = 1 if figure == "loss" else -1
        return sign * (won - 0.5 * lost)
    return quantity


def later_rm(run):
    """How much the reward model's score rises after the peak of the true score."""
    return curves.smooth(run.rm)[-1] - curves.at_peak(run, "rm")


def best_of_256(run):
    """The true score of the best of 256, points."""
    return run.true[-1]


def gain_at_one(run):
    return curves.gain_at(run, 1.0)


def end(run):
    """The mean true score of the last ten rollouts, points."""
    return run.true[-10:].mean()


def foretells(form, other):
    """By how much less one form misses a run's farther rollouts than the other, points."""
    return lambda run: (curves.extrapolation_error(run, other)
                        - curves.extrapolation_error(run, form))


def penalty_gap(f):
    return curves.frontier_gap(curves.of(f, "free 20000"), curves.of(f, "penalty"))


def at_one_distance(f):
    """What the minimum gained more than one reward model, as far out as both went."""
    runs = [curves.of(f, arm) for arm in ("minimum", "single")]
    distance = min(map(curves.reach, runs))
    ours, other = (curves.gain_at(run, distance) for run in runs)
    return ours - other


SEEDS = range(306, 316)

CLAIMS = {
    "1a": Claim(
        "PPO-ptx is preferred to SFT, and SFT to the base.",
        "[IG] Fig. 1", "175B: PPO-ptx is preferred to GPT-3 85 ± 3 %",
        experiments.preference,
        "preferred to SFT: PPO-ptx {ptx.wins}, the base {base.wins}",
        {"PPO-ptx over SFT": above("ptx.wins", 0.5, 0.02),
         "SFT over the base": below("base.wins", 0.5, 0.02)},
        table=page.systems_table),
    "1b": Claim(
        "PPO-ptx is preferred to FeedME, and FeedME to SFT.",
        "[FeedME]", "text-davinci-003, PPO, followed 002, FeedME",
        experiments.preference,
        "PPO-ptx over FeedME {ptx.over feedme}, FeedME over SFT {feedme.wins}",
        {"PPO-ptx over FeedME": above("ptx.over feedme", 0.5, 0.02),
         "FeedME over SFT": above("feedme.wins", 0.5, 0.02)}),
    "1c": Claim(
        "PPO-ptx is preferred as often as PPO, or at most two points less.",
        "[IG] Fig. 1", "no difference that can be seen",
        experiments.preference,
        "PPO-ptx over PPO {ptx.over ppo}",
        # with a margin of 0 nothing is negligible: the two points stand in the sentence
        {"PPO-ptx over PPO, minus 48 %": above("ptx.over ppo", 0.48, 0)}),
    "1d": Claim(
        "A few-shot prefix makes the base better, and still SFT is preferred to it.",
        "[IG] Fig. 1", "175B: PPO-ptx over GPT-3 85 ± 3 %, over prompted GPT-3 71 ± 4 %",
        experiments.preference,
        "preferred to SFT: the base {base.wins}, prompted {prompted.wins}",
        {"preferred to SFT, prompted minus plain": minus("prompted.wins", "base.wins", 0.02),
         "SFT over the prompted base": below("prompted.wins", 0.5, 0.02)}),
    "2": Claim(
        "PPO-ptx is preferred to a base model with 100 times its parameters.",
        "[IG] Fig. 1", "1.3B PPO-ptx is preferred to 175B GPT-3",
        experiments.hundred_times,
        "{small.parameters} against {large.parameters} parameters: preferred {large.small over} of "
        "the time, {prompted.small over} if the large base is prompted",
        {"PPO-ptx over the large base": above("large.small over", 0.5, 0.02),
         "PPO-ptx over the large base, prompted": above("prompted.small over", 0.5, 0.02),
         "pretraining loss, small base minus large":
            minus("small.base loss", "large.base loss", 0.02)}, seeds=3),
    "3": Claim(
        "PPO-ptx makes up less than the prompted base.",
        "[IG] 4.1, Fig. 4", "hallucination in closed-domain tasks: GPT-3 41 %, PPO-ptx 21 %",
        experiments.preference,
        "closed domain: {prompted.closed hallucination} → {ptx.closed hallucination} "
        "(SFT {sft.closed hallucination}); all prompts: {prompted.hallucination} → "
        "{ptx.hallucination} (SFT {sft.hallucination})",
        {"closed domain, prompted base minus PPO-ptx":
            minus("prompted.closed hallucination", "ptx.closed hallucination", 0.02),
         "all prompts, prompted base minus PPO-ptx":
            minus("prompted.hallucination", "ptx.hallucination", 0.02)}),
    "4a": Claim(
        "Asked to be respectful, PPO-ptx insults less than the prompted base.",
        "[IG] 4.2, Fig. 7", "about 25 % fewer toxic outputs when asked to be respectful",
        experiments.toxicity,
        "prompted base {prompted.respectful}, SFT {sft.respectful}, PPO-ptx {ptx.respectful}",
        {"insults, prompted base minus PPO-ptx":
            minus("prompted.respectful", "ptx.respectful", 0.05)}, seeds=10),
    "4b": Claim(
        "Not asked to be respectful, PPO-ptx insults as often, within ten points.",
        "[IG] 4.2, Fig. 7", "no fewer toxic outputs when not asked",
        experiments.toxicity,
        "prompted base {prompted.plain}, SFT {sft.plain}, PPO-ptx {ptx.plain}",
        {"insults, prompted base minus PPO-ptx": minus("prompted.plain", "ptx.plain", 0.1)},
        seeds=10, equal=True),
    "5a": Claim(
        "PPO costs pretraining loss and few-shot accuracy, beyond what SFT costs.",
        "[IG] 4.2", "DROP, 175B (Table 14): GPT-3 35, PPO 28",
        experiments.alignment_tax,
        "loss: base {base.loss}, SFT {sft.loss}, PPO {ppo.loss}; accuracy: {base.accuracy}, "
        "{sft.accuracy}, {ppo.accuracy}",
        {"loss, PPO minus SFT": minus("ppo.loss", "sft.loss", 0.02),
         "accuracy, SFT minus PPO": minus("sft.accuracy", "ppo.accuracy", 0.02)},
        seeds=10, table=page.tax_table),
    "5b": Claim(
        "Pretraining gradients win back at least half of what SFT and PPO cost.",
        "[IG] 4.2, Fig. 33", "DROP, 175B (Table 14): GPT-3 35, PPO 28, PPO-ptx 33",
        experiments.alignment_tax,
        "loss: PPO {ppo.loss}, PPO-ptx {ptx.loss}; accuracy: {ppo.accuracy}, {ptx.accuracy}",
        {"loss won back, minus half of what was lost": Quantity(won_back("loss"), 0),
         "accuracy won back, minus half of what was lost": Quantity(won_back("accuracy"), 0)},
        seeds=10),
    "5c": Claim(
        "A hundred times the KL penalty wins back less, and costs reward.",
        "[IG] E.6, Fig. 34", "so",
        experiments.alignment_tax,
        "loss: PPO-ptx {ptx.loss}, β × 100 {beta.loss}; accuracy: {ptx.accuracy}, {beta.accuracy}; "
        "reward: PPO {ppo.reward}, β × 100 {beta.reward}",
        {"loss, β × 100 minus PPO-ptx": minus("beta.loss", "ptx.loss", 0.02),
         "accuracy, PPO-ptx minus β × 100": minus("ptx.accuracy", "beta.accuracy", 0.02),
         "reward, PPO minus β × 100": minus("ppo.reward", "beta.reward", 0.05)}, seeds=10),
    "6": Claim(
        "Shuffled over the minibatches, the pairs of a prompt overfit a reward model in a single "
        "pass that leaves it better where they are grouped in one batch element.",
        "[IG] 3.5", "\"a single pass over the dataset caused the reward model to overfit\"",
        experiments.pairs_of_a_prompt,
        "held-out loss: grouped {grouped.loss}, shuffled {shuffled.loss}; accuracy "
        "{grouped.accuracy}, {shuffled.accuracy}; training loss {grouped.training loss}, "
        "{shuffled.training loss}",
        {"held-out loss, shuffled minus grouped": minus("shuffled.loss", "grouped.loss", 0.01),
         "held-out minus training loss, shuffled minus grouped":
            minus("shuffled.gap", "grouped.gap", 0.02)},
        seeds=10),
    "7a": Claim(
        "A second epoch overfits the reward model.",
        "[IG] C.2", "very sensitive to the number of epochs; [Gao] footnote 7: four epochs over "
        "2,000 comparisons change nothing",
        experiments.reward_epochs,
        "4,000 rankings: held-out loss {4000 x 1.loss} → {4000 x 2.loss}, accuracy "
        "{4000 x 1.accuracy} → {4000 x 2.accuracy}",
        {"held-out loss, two minus one": minus("4000 x 2.loss", "4000 x 1.loss", 0.01)},
        seeds=10, table=page.epochs_table),
    "7b": Claim(
        "Eight epochs over few rankings overfit it, against two.",
        "[IG] C.2", "very sensitive to the number of epochs",
        experiments.reward_epochs,
        "400 rankings: held-out loss {400 x 2.loss} → {400 x 8.loss}, accuracy "
        "{400 x 2.accuracy} → {400 x 8.accuracy}",
        {"held-out loss, eight minus two": minus("400 x 8.loss", "400 x 2.loss", 0.01)}, seeds=10),
    "8": Claim(
        "SFT's validation loss rises after two epochs, and RM score and true score rise as well.",
        "[IG] 3.5", "loss is lowest after 1 epoch; 16 were chosen by RM score",
        experiments.sft_epochs,
        "see the table",
        {"validation loss, 16 epochs minus 2": minus("16.loss", "2.loss", 0.01),
         "RM score, the same": minus("16.rm score", "2.rm score", 0.03),
         "true score, the same": minus("16.true score", "2.true score", 0.1)},
        seeds=10, table=page.sft_table),
    "9a": Claim(
        "The reward model predicts labelers it has never seen as well as its own, within a point.",
        "[IG] 4.1, E.2", "72.4 ± 0.4 → 69.6 ± 0.9 %",
        experiments.held_out_labelers,
        "accuracy: its own {own.accuracy}, others {other.accuracy}; short of what can be known of "
        "their tastes by {own.shortfall}, {other.shortfall}",
        {"shortfall, others minus own": minus("other.shortfall", "own.shortfall", 0.01)},
        seeds=10, equal=True),
    "9b": Claim(
        "Somebody who would rather be told what is false than nothing it predicts worse.",
        "[IG] 5.2", "\"not ... representative of the full spectrum of people\"",
        experiments.held_out_labelers,
        "accuracy: its own {own.accuracy}, somebody else {bold.accuracy}; short of what can be "
        "known of their tastes by {own.shortfall}, {bold.shortfall}",
        {"shortfall, somebody else minus own": minus("bold.shortfall", "own.shortfall", 0.02)},
        seeds=10),
    "10a": Claim(
        "Without a penalty the true score rises, then falls, while the reward model's score goes "
        "on rising.",
        "[Gao] Fig. 1", "so, for reward models of 3M to 3B parameters",
        experiments.over_optimisation,
        "see the table and [overoptimisation.png](overoptimisation.png)",
        {"rise to the peak, 2,000 rankings": of_run(curves.rise, "free 2000", 0.1),
         "fall from it, 2,000 rankings": of_run(curves.fall, "free 2000", 0.1),
         "RM score, end minus peak, 2,000 rankings": of_run(later_rm, "free 2000", 0.02)},
        seeds=10, table=page.peaks_table),
    "10b": Claim(
        "With ten times the rankings the peak of best-of-n is farther out, and as far out as "
        "before more is gained.",
        "[Gao] 3.3", "so; below 2,000 comparisons hardly better than chance",
        experiments.over_optimisation,
        "see the table",
        {"√KL of the fitted peak of best-of-n, 20,000 rankings minus 2,000":
            minus_run(curves.fitted_peak, "bon 20000", "bon 2000", 0.05),
         "true score of best-of-256, the same":
            minus_run(best_of_256, "bon 20000", "bon 2000", 0.1),
         "gain of RL at √KL = 1, the same":
            minus_run(gain_at_one, "free 20000", "free 2000", 0.1)}, seeds=10),
    "10c": Claim(
        "What RL gains goes on as d (α − β log d) says, what best-of-n gains as d (α − β d) says; "
        "d = √KL.",
        "[Gao] Eq. 1, 2", "so",
        experiments.over_optimisation,
        "R² by form: see below",
        {"RL, 2,000 rankings, error in the farther 40 %: other form minus its own":
            of_run(foretells("rl", "bon"), "free 2000", 0.05),
         "best-of-n, the same": of_run(foretells("bon", "rl"), "bon 2000", 0.02)},
        seeds=10, table=page.forms_table),
    "10d": Claim(
        "The KL penalty acts like early stopping: at the same KL the true score is the same with "
        "it and without, within 0.2 points.",
        "[Gao] 3.6", "so",
        experiments.over_optimisation,
        "see below",
        {"true score beyond half a nat, with penalty minus without": Quantity(penalty_gap, 0.2)},
        seeds=10, equal=True),
    "11a": Claim(
        "Residual dropout of 0.2 helps SFT.", "[IG] C.1", "chosen",
        experiments.dropout,
        "preferred to SFT without it {with.wins}",
        {"SFT with dropout over without": above("with.wins", 0.5, 0.02)}, seeds=10),
    "11b": Claim(
        "A value function from the reward model has a head start over a random one.", "[IG] C.4",
        "chosen",
        experiments.value_start,
        "variance explained in the first five rollouts: {from rm.explained early} against "
        "{random.explained early}; reward in 2 to 9 {from rm.reward early} against "
        "{random.reward early}, of the last eight {from rm.reward late} against "
        "{random.reward late}",
        {"variance explained, from RM minus random":
            minus("from rm.explained early", "random.explained early", 0.02),
         "early reward, from RM minus random":
            minus("from rm.reward early", "random.reward early", 0.02)}),
    "11c": Claim(
        "10 % of pretraining data in the initialisation help PPO.",
        "[IG] E.8", "best of those compared",
        experiments.pretraining_mix,
        "after a short run preferred to PPO from SFT without {mix.wins}; pretraining loss "
        "{mix.loss} against {none.loss}",
        {"PPO from the mix over without": above("mix.wins", 0.5, 0.02)}, seeds=10),
    "12a": Claim(
        "A second round, with comparisons of the policy's own outputs, helps.",
        "[IG] 3.1", "\"can be iterated continuously\"; not measured",
        experiments.second_round,
        "preferred to the first policy {second.over first}; true score {first.true score} → "
        "{second.true score}",
        {"second over first": above("second.over first", 0.5, 0.02)},
        table=page.rounds_table),
    "12b": Claim(
        "It helps more than as many new comparisons of SFT's outputs.",
        "[IG] 3.1", "not measured",
        experiments.second_round,
        "true score {again.true score}, {second.true score}; \"I do not know\" to what can be "
        "answered {first.evasive}, {again.evasive}, {second.evasive}",
        {"true score, second minus again": minus("second.true score", "again.true score", 0.05)}),
    "13": Claim(
        "PPO lowers diversity.",
        "Kirk et al. 2023, arXiv 2310.06452", "RLHF lowers it against SFT",
        experiments.diversity,
        "distinct of 16 outputs: SFT {sft.distinct}, PPO {ppo.distinct}, PPO-ptx {ptx.distinct}; "
        "entropy after the same words, nats a token: {sft.entropy}, {ppo.entropy}, {ptx.entropy}",
        {"distinct, SFT minus PPO": minus("sft.distinct", "ppo.distinct", 0.2),
         "entropy, SFT minus PPO": minus("sft.entropy", "ppo.entropy", 0.02)}),
    "14": Claim(
        "What PPO-ptx wins over SFT is not length: at equal length it wins as often, within two "
        "points.",
        "Singhal et al. 2023, arXiv 2310.03716", "the opposite: most of the reward gained with "
        "three public preference sets is length",
        experiments.preference,
        "PPO-ptx is preferred to SFT {ptx.wins}, at equal length {ptx.equal length}",
        {"preferred, minus preferred at equal length": minus("ptx.wins", "ptx.equal length", 0.02)},
        equal=True),
    "15": Claim(
        "Asked about four places that no comparison touched, PPO-ptx makes up less than SFT.",
        "[IG] 4.1", "half as much as GPT-3, on prompts of customers",
        experiments.untouched,
        "places that nobody knows: {sft.bluff of unknown} → {ptx.bluff of unknown}; countries: "
        "{sft.bluff of countries} → {ptx.bluff of countries}, right "
        "{sft.right of countries} → {ptx.right of countries}",
        {"made up of places that nobody knows, SFT minus PPO-ptx":
            minus("sft.bluff of unknown", "ptx.bluff of unknown", 0.02),
         "made up of countries, SFT minus PPO-ptx":
            minus("sft.bluff of countries", "ptx.bluff of countries", 0.02)}),
    "16": Claim(
        "The minimum of four reward models is over-optimised less than one of them.",
        "Coste et al. 2023, arXiv 2310.02743", "so, and hardly at all with a small KL penalty",
        experiments.ensembles,
        "see the table",
        {"true score at the end, minimum minus one": minus_run(end, "minimum", "single", 0.1),
         "true score at the same √KL, the same": Quantity(at_one_distance, 0.1)},
        table=page.ensembles_table),
    "17": Claim(
        "What the paper leaves open makes no difference of 0.15 points in 25 iterations: "
        "whitening, clipping the value, a penalty for no end.",
        "[IG] C.4", "not told",
        experiments.details,
        "see the table",
        {f"true score, {name} minus everything":
            minus(f"{name}.true score", "everything.true score", 0.15) for name in CHANGED},
        equal=True, table=page.details_table),
    "18a": Claim(
        "RLOO's true score is higher than PPO's, with as many responses.",
        "Ahmadian et al. 2024, arXiv 2402.14740", "so, by the reward model and by GPT-4",
        rivals.rivals,
        "see the table and [forks.png](forks.png)",
        {"true score, RLOO minus PPO": minus("rloo.true score", "ppo.true score", 0.1)},
        table=page.rivals_table),
    "18b": Claim(
        "PPO's true score is higher than DPO's, from the same rankings.",
        "Ahmadian et al. 2024, arXiv 2402.14740; Xu et al. 2024, arXiv 2404.10719", "so",
        rivals.rivals,
        "see the table of 18a",
        {"true score, PPO minus DPO": minus("ppo.true score", "dpo.true score", 0.1)}),
    "19": Claim(
        "With a small β DPO over-optimises: its true score is best before the end of the first "
        "epoch.",
        "Rafailov et al. 2024, arXiv 2406.02900", "so, after a quarter of it",
        rivals.rivals,
        "see the table of 18a",
        {"true score, of 5,000 rankings minus 20,000":
            Quantity(lambda f: f["bold"]["true"][2] - f["bold"]["true"][3], 0.1)}),
    "20": Claim(
        "GRPO's wrong answers are longer than RLOO's.",
        "Liu et al. 2025, arXiv 2503.20783", "its answers grow, wrong ones above all",
        rivals.rivals,
        "tokens of an answer with a true score below 0: {rloo.wrong}, {grpo.wrong}",
        {"GRPO minus RLOO, tokens": minus("grpo.wrong", "rloo.wrong", 0.2)}),
    "21a": Claim(
        "Labelers who were screened make a better reward model, with as many rankings.",
        "[IG] B.1", "those were hired who agreed with the researchers; not measured",
        screening.screening,
        "{screened.people} of 20 candidates pass, right {screened.right} of the time instead of "
        "{everyone.right}; accuracy of the reward model {everyone.accuracy} → {screened.accuracy}",
        {"accuracy, screened minus everyone":
            minus("screened.accuracy", "everyone.accuracy", 0.01)}),
    "21b": Claim(
        "Who of them is right can be told without gold, from what three say of the same tasks.",
        "Dawid and Skene 1979", "so, of doctors",
        screening.screening,
        "correlation over the candidates with the share of pairs on which they are right: "
        "{everyone.correlation}",
        {"correlation, minus 0.8": above("everyone.correlation", 0.8, 0.02)}),
    "22a": Claim(
        "SFT on data sets of the public kind is preferred to the base, and SFT on a few "
        "demonstrations to it.",
        "[IG] 4.1", "so, FLAN and T0",
        experiments.public_data,
        "preferred to it: the base {base.over flan}, SFT {sft.over flan}",
        {"over the base": below("base.over flan", 0.5, 0.02),
         "SFT over it": above("sft.over flan", 0.5, 0.02)}),
    "22b": Claim(
        "It is preferred as often as the prompted base, within five points.",
        "[IG] Fig. 5", "about so",
        experiments.public_data,
        "preferred to it: the prompted base {prompted.over flan}",
        {"prompted base over it, minus 50 %": above("prompted.over flan", 0.5, 0.05)},
        equal=True),
    "22c": Claim(
        "PPO-ptx is preferred to it two times of three, or more often.",
        "[IG] Fig. 5", "78 ± 4 % (FLAN), 79 ± 4 % (T0)",
        experiments.public_data,
        "preferred to it: PPO-ptx {ptx.over flan}",
        {"PPO-ptx over it, minus 66 %": above("ptx.over flan", 0.66, 0)}),
    "22d": Claim(
        "On the use cases that such data sets have it helps as often as SFT, or at most two points "
        "less.",
        "[IG] 4.1", "the reason given: these are a small part of what users ask",
        experiments.public_data,
        "helpful there: {flan.own helpful}, SFT {sft.own helpful}",
        {"helpful, it minus SFT, plus 2 %":
            Quantity(lambda f: f["flan"]["own helpful"] - f["sft"]["own helpful"] + 0.02, 0)}),
    "23": Claim(
        "Users who repeat themselves make a split by prompt look better than a split by user.",
        "[IG] 3.2", "split by user ID; not measured",
        repeats.splits,
        "validation loss: split by prompt {prompt.validation}, by user {user.validation}; of the "
        "same models on what other users send {prompt.later}, {user.later}",
        {"validation loss, by user minus by prompt":
            minus("user.validation", "prompt.validation", 0.02)}, seeds=10),
    "24a": Claim(
        "A base that read files solves more once it is fine-tuned on right functions, with one "
        "sample and with 100.",
        "[Codex] 4.5", "Codex-S: pass@1 6.5 points more, pass@100 15.1",
        programs.programs,
        "pass@1 at a temperature of 0.2 {base.pass@1 cold} → {tuned.pass@1 cold}, pass@100 at 0.8 "
        "{base.pass@100 warm} → {tuned.pass@100 warm}",
        {"pass@1, Codex-S minus base": minus("tuned.pass@1 cold", "base.pass@1 cold", 0.02),
         "pass@100, Codex-S minus base": minus("tuned.pass@100 warm", "base.pass@100 warm", 0.02)},
        table=page.programs_table),
    "24b": Claim(
        "With one sample a base wants a low temperature, with a hundred a high one.",
        "[Codex] Fig. 5", "the best are 0.2 for pass@1 and 0.8 for pass@100",
        programs.programs,
        "the base at 0.2 and 0.8: pass@1 {base.pass@1 cold}, {base.pass@1 warm}; pass@100 "
        "{base.pass@100 cold}, {base.pass@100 warm}",
        {"pass@1 of the base, 0.2 minus 0.8": minus("base.pass@1 cold", "base.pass@1 warm", 0.02),
         "pass@100 of the base, 0.8 minus 0.2":
            minus("base.pass@100 warm", "base.pass@100 cold", 0.02)}),
    "25a": Claim(
        "Of 100 samples the one of the best mean log-probability is right more often than one at "
        "random.",
        "[Codex] Fig. 7", "so; 11.6 points for Codex-S",
        programs.programs,
        "at 0.8 one at random and the chosen: base {base.pass@1 warm}, {base.mean}; Codex-S "
        "{tuned.pass@1 warm}, {tuned.mean}",
        {"base, chosen minus random": minus("base.mean", "base.pass@1 warm", 0.02),
         "Codex-S, chosen minus random": minus("tuned.mean", "tuned.pass@1 warm", 0.02)}),
    "25b": Claim(
        "The one of the best sum is right less often than one at random.",
        "[Codex] Fig. 7", "it is right a little less often",
        programs.programs,
        "at 0.8 one at random and the chosen: base {base.pass@1 warm}, {base.sum}; Codex-S "
        "{tuned.pass@1 warm}, {tuned.sum}",
        {"base, random minus chosen": minus("base.pass@1 warm", "base.sum", 0.02),
         "Codex-S, random minus chosen": minus("tuned.pass@1 warm", "tuned.sum", 0.02)}),
    "26": Claim(
        "Each further block in a docstring divides the share of right programs by 1.5 or more.",
        "[Codex] Fig. 11", "by two to three",
        programs.programs,
        "base, two to four blocks: {base.two}, {base.three}, {base.four}; Codex-S: {tuned.two}, "
        "{tuned.three}, {tuned.four}",
        {f"{arm}, {fewer} minus 1.5 times {more}":
            minus_times(f"{arm}.{fewer}", 1.5, f"{arm}.{more}", 0.02)
         for arm in ("base", "tuned") for fewer, more in itertools.pairwise(programs.BLOCKS)}),
    "27": Claim(
        "After a function with a bug it writes fewer right programs, and the more so the larger "
        "it is.",
        "[Codex] Fig. 12", "so",
        programs.programs,
        "after a right function and after one with a slip: small base {small.after right}, "
        "{small.after slip}, base {base.after right}, {base.after slip}",
        {"base, after right minus after slip": minus("base.after right", "base.after slip", 0.02),
         "the same, base minus small base":
            Quantity(lambda f: programs.lost(f["base"]) - programs.lost(f["small"]), 0.02)}),
    "28": Claim(
        "BLEU does not tell right programs from wrong ones: a right one has more in less than "
        "three of four pairs.",
        "[Codex] Fig. 8", "the distributions overlap",
        programs.programs,
        "a right program has more BLEU than a wrong one of the same problem {tuned.bleu} of the "
        "time (Codex-S), {base.bleu} (base)",
        {"0.75 minus that share, base": below("base.bleu", 0.75, 0.02),
         "0.75 minus that share, Codex-S": below("tuned.bleu", 0.75, 0.02)}),
    "29a": Claim(
        "RL with the tests as reward makes one sample better.",
        "Yue et al. 2025, arXiv 2504.13837", "so",
        programs.programs,
        "pass@1 at 0.2: {tuned.pass@1 cold} → {tested.pass@1 cold}",
        {"pass@1, RL minus Codex-S": minus("tested.pass@1 cold", "tuned.pass@1 cold", 0.02)}),
    "29b": Claim(
        "And a hundred worse, each at the better one of two temperatures.",
        "Yue et al. 2025, arXiv 2504.13837", "so; disputed since",
        programs.programs,
        "pass@100 at 0.8: {tuned.pass@100 warm} → {tested.pass@100 warm}, at 1.2 "
        "{tuned.pass@100 hot} → {tested.pass@100 hot}",
        {"pass@100, Codex-S minus RL":
            Quantity(lambda f: programs.most(f["tuned"]) - programs.most(f["tested"]), 0.02)}),
    "30": Claim(
        "Without the files that nobody wrote as many tokens make a better base.",
        "[Codex] 3.1", "filters leave 159 of 179 GB; what they gain is not told",
        programs.data_filters,
        "{kept.tokens} tokens are left of {all.tokens}; on new files that people wrote the base's "
        "loss is {all.loss} → {kept.loss} nats a token, its pass@100 {all.pass@100} → "
        "{kept.pass@100}",
        {"loss of the base, all files minus filtered": minus("all.loss", "kept.loss", 0.005)}),
    "31a": Claim(
        "Of 100 samples the one from which another model, Codex-D, is likeliest to tell the "
        "docstring is right more often than one at random.",
        "[Codex] 5", "so, and it overfits quickly",
        programs.reranking,
        "one at random and the chosen: base {base.random}, {base.back}, Codex-S {tuned.random}, "
        "{tuned.back}; a right one is among them {base.oracle}, {tuned.oracle}; Codex-D tells "
        "{describer.told} of the problems' docstrings from their own solutions",
        {"base, chosen minus random": minus("base.back", "base.random", 0.02),
         "Codex-S, chosen minus random": minus("tuned.back", "tuned.random", 0.02)}),
    "31b": Claim(
        "And less often than the one that Codex-S finds likeliest.",
        "[Codex] 5", "so",
        programs.reranking,
        "chosen by Codex-S and by Codex-D: the base's samples {base.forward}, {base.back}, its own "
        "{tuned.forward}, {tuned.back}; the shortest: {base.short}, {tuned.short}",
        {"of the base's samples, by Codex-S minus by Codex-D":
            minus("base.forward", "base.back", 0.02),
         "of its own, the same": minus("tuned.forward", "tuned.back", 0.02)}),
}


# ---- the verdict ------------------------------------------------------------------------------

class Finding(NamedTuple):
    number: str
    claim: Claim
    lines: list         # of claims.jsonl, one for each seed
    effects: dict       # {quantity: statistics.Effect}
    verdict: str


def verdict(effects, equal=False):
    """statistics.Effects of a claim -> what the top of this file says. `equal`: the claim is that
    they are negligible."""
    signs = {e.sign for e in effects}
    if equal:
        if signs == {"negligible"}:
            return "holds"
        return "fails" if any(e.matters for e in effects) else "undecided"
    if "below" in signs:
        return "fails"
    if "unknown" in signs:
        return "undecided"
    if signs == {"above", "negligible"}:
        return "in part"
    return "holds" if signs == {"above"} else "negligible"


def seeds_of(claim, cfg):
    """The seeds of a claim: those that were asked for, or the first few of SEEDS."""
    return tuple(cfg.seeds or SEEDS[:claim.seeds])


def findings_of(lines, cfg):
    """The claims whose experiment was measured with all of their seeds -> [Finding, ...]."""
    findings = []
    for number, claim in CLAIMS.items():
        name, seeds = claim.measure.__name__, seeds_of(claim, cfg)
        found = [line for line in lines if line["experiment"] == name and line["seed"] in seeds]
        if len(found) < len(seeds):
            continue
        effects = {}
        for quantity, (figure, margin) in claim.quantities.items():
            effects[quantity] = effect([figure(line["figures"]) for line in found], margin)
        word = verdict(effects.values(), claim.equal)
        findings.append(Finding(number, claim, found, effects, word))
    return findings


# ---- running ----------------------------------------------------------------------------------

def start_worker():
    """Whoever started this process ends it, on Ctrl-C too; it does not outlive him."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.end_with_parent()


def measured(task):
    """One experiment with one seed -> a line of claims.jsonl; or one that says its "error", a
    sentence, if it cannot be measured."""
    measure, world, commit = task
    torch.set_num_threads(1)
    cli.keep_freed_memory()
    began = time.perf_counter()
    line = {"experiment": measure.__name__, "seed": world.seed, "commit": commit}
    try:
        with alone(os.path.join(world.folder, measure.__name__)):
            figures = measure(world)
    except Exception as e:
        said = cli.sentence(e)
        if not said:
            raise                                            # a bug: show where
        return line | {"error": said}
    figures = {arm: {name: v if isinstance(v, list) else float(v) for name, v in of_arm.items()}
               for arm, of_arm in figures.items()}
    return line | {"seconds": round(time.perf_counter() - began), "figures": figures}


def in_turn(numbers, cfg):
    """The experiments of some claims with their seeds, [(measure, seed), ...]: of a few seeds at a
    time, a seed for each worker, as the experiments of one seed share its models."""
    wanted = {(CLAIMS[n].measure, seed): None for n in numbers for seed in seeds_of(CLAIMS[n], cfg)}
    experiments_of = list(dict.fromkeys(measure for measure, _ in wanted))
    seeds = sorted({seed for _, seed in wanted})
    return sorted(wanted, key=lambda of: (seeds.index(of[1]) // cfg.workers,
                                          experiments_of.index(of[0]), of[1]))


def measure_missing(numbers, lines, path, cfg):
    """Measure what the claims called `numbers` lack in `lines`, those of the file `path`; each
    experiment with each seed is added to both as soon as it is done. Raises ValueError."""
    commit = page.commit()
    done = {(line["experiment"], line["seed"]) for line in lines}
    if done:
        print(f"{path} has {len(done)} lines, which are kept: delete them and {cfg.runs} to "
              f"measure again")
    tasks = []
    for measure, seed in in_turn(numbers, cfg):
        if (measure.__name__, seed) not in done:
            world = World(seed, os.path.join(cfg.runs, str(seed)), cfg.quick)
            tasks.append((measure, world, commit))
    if not tasks:
        return
    began = time.perf_counter()
    spawn, workers = multiprocessing.get_context("spawn"), min(cfg.workers, len(tasks))
    with spawn.Pool(workers, start_worker) as pool:
        for i, line in enumerate(pool.imap_unordered(measured, tasks), 1):
            what = f"{line['experiment']}, seed {line['seed']}"
            if "error" in line:
                raise ValueError(f"{what}: {line['error']}")
            results.check_finite(what, line["figures"])
            lines.append(line)
            results.write_jsonl(path, sorted(lines, key=lambda r: (r["experiment"], r["seed"])))
            seconds = time.perf_counter() - began
            print(f"{i} of {len(tasks)}, {seconds:.0f} s: {what}", flush=True)


def read_lines(path):
    """The lines of claims.jsonl, none if it is not there. Raises ValueError."""
    text = interop.read_file(path) if os.path.exists(path) else ""
    lines = []
    for n, line in enumerate(text.splitlines(), 1):
        try:
            lines.append(checked(json.loads(line)))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
                RecursionError) as e:
            raise ValueError(f"{path}, line {n} is no line of claims.py: delete it, and it "
                             f"is measured again") from e
    return lines


def checked(record):
    """A line of claims.jsonl, if there is all in it that claims need: else some exception."""
    line = {"experiment": str(record["experiment"]), "seed": int(record["seed"]),
            "commit": str(record["commit"]), "seconds": int(record["seconds"]),
            "figures": dict(record["figures"])}
    results.check_finite("its figures", line["figures"])
    for claim in CLAIMS.values():
        if claim.measure.__name__ == line["experiment"]:
            found = {name: q.figure(line["figures"]) for name, q in claim.quantities.items()}
            results.check_finite("its quantities", found)
    return line


def read_remarks(path):
    """docs/remarks.md -> {number of a claim: what stands below its heading}"""
    text = interop.read_file(path) if os.path.exists(path) else ""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return {number: remark.strip() for number, remark in zip(parts[1::2], parts[2::2])}


def check(cfg):
    """Raises ValueError where a setting is wrong, or a page would replace what is not ours."""
    for number in cfg.claims:
        if number not in CLAIMS and f"{number}a" not in CLAIMS:
            raise ValueError(f"there is no claim {number}: they are called {', '.join(CLAIMS)}")
    if cfg.seeds and len(set(cfg.seeds)) < max(2, len(cfg.seeds)):
        raise ValueError("--seeds takes at least two different ones, for the sake of an interval")
    os.makedirs(cfg.docs, exist_ok=True)
    results.check_out(os.path.join(cfg.docs, "claims.jsonl"))
    for name, begins in page.BEGINS.items():
        page.check_ours(os.path.join(cfg.docs, name), begins)
    if cfg.readme:
        results.check_out(cfg.readme)
        page.readme(interop.read_file(cfg.readme), [])


def missing(findings):
    """The sentences of the claims that are not among the findings."""
    found = {f.number for f in findings}
    return [claim.sentence for number, claim in CLAIMS.items() if number not in found]


def write_pages(findings, cfg):
    """RESULTS.md, the plot, and the verdicts of README.md."""
    figures = {f.claim.measure.__name__: [line["figures"] for line in f.lines] for f in findings}
    remarks = read_remarks(os.path.join(cfg.docs, "remarks.md"))
    text = page.results(findings, remarks, missing(findings))
    results.replace_file(os.path.join(cfg.docs, "RESULTS.md"), lambda f: f.write(text))
    if cfg.readme:
        readme = page.readme(interop.read_file(cfg.readme), findings)
        results.replace_file(cfg.readme, lambda f: f.write(readme))
    page.plot(figures, cfg.docs)


def main(cfg):
    check(cfg)
    path = os.path.join(cfg.docs, "claims.jsonl")
    results.hold(path)
    lines = read_lines(path)
    if not cfg.page:
        numbers = [n for n in CLAIMS
                   if not cfg.claims or n in cfg.claims or n.rstrip("abcd") in cfg.claims]
        measure_missing(numbers, lines, path, cfg)
    findings = findings_of(lines, cfg)
    check(cfg)                  # again: somebody else's page may lie there by now
    write_pages(findings, cfg)
    print("\n".join(f"{f.number:4} {f.verdict:10} {f.claim.sentence}" for f in findings))
    return {f.number: f.verdict for f in findings}


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="claims")
