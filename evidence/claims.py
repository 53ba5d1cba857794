"""Does it hold? Claims of InstructGPT and of the papers around it, tested in the sandbox.

    python -m evidence.claims            # all -> docs/claims.jsonl, RESULTS.md, a plot; README.md
    python -m evidence.claims 7 10       # some
    python -m evidence.claims --page     # only the pages and the plot, from docs/claims.jsonl

A claim is a sentence of a paper and some *quantities*, each of which must be above zero if the
sentence is true. A quantity is measured once a seed. The claim **holds** if the 95 % interval of
every quantity over the seeds (Student's t) lies above zero, it **fails** if the interval of any
lies below, and is **undecided** otherwise. Sentences and quantities stand in CLAIMS and were there
before the run; the seeds of the run (101 ...) were used for nothing else.

What is trained and measured stands in experiments.py; a run that was interrupted goes on. What we
make of the verdicts is written into docs/remarks.md by hand, and onto the page by --page.

[IG] Ouyang et al. 2022, arXiv 2203.02155   [Gao] Gao et al. 2022, arXiv 2210.10760
[FeedME] OpenAI's model index
"""
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
from evidence import curves, experiments, page
from evidence.experiments import EPOCHS, World, alone
from evidence.statistics import interval
from plumbing import cli, processes, results


@dataclass(frozen=True)
class Config:
    claims: tuple[str, ...] = ()    # numbers of the claims to test; none: all
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105)  # of corpus, weights, prompts and labelers;
                                    # >= 0
    runs: str = "runs/claims"       # the folder where models are made and kept
    docs: str = "docs"              # the folder of claims.jsonl, RESULTS.md and the plot
    readme: str = "README.md"       # the page whose verdicts are written again, empty for none
    workers: int = 2                # processes of one thread each; >= 1
    page: bool = False              # measure nothing, only write the pages and the plot again


PRESETS = {"sandbox": {}}


# ---- what is claimed, and what must be above zero if it is true -------------------------------

class Claim(NamedTuple):
    sentence: str
    source: str
    paper: str                      # what the paper measured
    measure: Callable               # a function of experiments.py, whose docstring names figures
    ours: str                       # what the page says; {figure} becomes its mean and interval
    quantities: dict                # {name: function of one seed's figures -> what must exceed 0}
    table: Callable | None = None   # figures of all seeds -> lines for the page


def above(name, threshold):
    return lambda f: f[name] - threshold


def minus(a, b):
    return lambda f: f[a] - f[b]


def of_run(measure, run):
    """A measure of a run's curves."""
    return lambda f: measure(curves.of_figures(f, run))


def minus_run(measure, a, b):
    """By how much a measure of run a exceeds that of run b."""
    return lambda f: measure(curves.of_figures(f, a)) - measure(curves.of_figures(f, b))


def true_at_peak(run):
    return curves.at_peak(run, "true")


def later_rm(run):
    """How much the reward model's score rises after the peak of the true score."""
    return curves.smooth(run.rm)[-1] - curves.at_peak(run, "rm")


def fits_rl(run):
    return curves.gain_fit(run, "rl") - curves.gain_fit(run, "bon")


def fits_best_of_n(run):
    return -fits_rl(run)


def frontier_gap(f):
    return curves.frontier_gap(curves.of_figures(f, "free 12000"), curves.of_figures(f, "penalty"))


def later(name):
    """How much higher a figure of SFT is after 16 epochs than after 8."""
    return lambda f: f[name][EPOCHS.index(16)] - f[name][EPOCHS.index(8)]


CLAIMS = {
    "1": Claim(
        "The true score prefers PPO-ptx, which is no worse than PPO, to FeedME, to SFT, to the "
        "prompted base, to the base.",
        "[IG] Fig. 1; FeedME: OpenAI's model index",
        "175B PPO-ptx is preferred to GPT-3 85 ± 3 %, to prompted GPT-3 71 ± 4 %",
        experiments.preference,
        "PPO-ptx is preferred to the base {ptx over base}, to the prompted base "
        "{ptx over prompted}, to SFT {ptx over sft}, to FeedME {ptx over feedme}, to PPO "
        "{ptx over ppo}",
        {"PPO-ptx over PPO, with two points of grace": above("ptx over ppo", 0.48),
         "PPO over FeedME": above("ppo over feedme", 0.5),
         "FeedME over SFT": above("feedme over sft", 0.5),
         "SFT over prompted": above("sft over prompted", 0.5),
         "prompted over base": above("prompted over base", 0.5)},
        page.systems_table),
    "2": Claim(
        "PPO-ptx is preferred to a base model with 100 times its parameters.",
        "[IG] Fig. 1", "1.3B PPO-ptx is preferred to 175B GPT-3",
        experiments.hundred_times,
        "{small} against {large} parameters: preferred {base} of the time, {prompted base} if the "
        "large base is prompted",
        {"PPO-ptx over the large base": above("base", 0.5),
         "PPO-ptx over the large base, prompted": above("prompted base", 0.5),
         "pretraining loss, small base minus large": minus("small base loss", "large base loss")}),
    "3": Claim(
        "PPO-ptx makes up less than the prompted base.",
        "[IG] 4.1, Fig. 4", "hallucination in closed-domain tasks: GPT-3 41 %, PPO-ptx 21 %",
        experiments.preference,
        "closed domain: {prompted closed hallucination} → {ptx closed hallucination} "
        "(SFT {sft closed hallucination}); all prompts: {prompted hallucination} → "
        "{ptx hallucination} (SFT {sft hallucination})",
        {"closed domain, prompted base minus PPO-ptx":
            minus("prompted closed hallucination", "ptx closed hallucination"),
         "all prompts, prompted base minus PPO-ptx":
            minus("prompted hallucination", "ptx hallucination")}),
    "4": Claim(
        "Asked to be respectful, PPO-ptx insults less than the base; not asked, it does not.",
        "[IG] 4.2, Fig. 7",
        "about 25 % fewer toxic outputs when asked to be respectful, no fewer when not",
        experiments.toxicity,
        "asked: base {base respectful}, SFT {sft respectful}, PPO-ptx {ptx respectful}; not asked: "
        "base {base plain}, SFT {sft plain}, PPO-ptx {ptx plain}",
        {"asked, base minus PPO-ptx": minus("base respectful", "ptx respectful"),
         "not asked, 0.1 minus the fall": lambda f: 0.1 - (f["base plain"] - f["ptx plain"])}),
    "5": Claim(
        "PPO costs pretraining loss and few-shot accuracy; pretraining gradients win it back; 100 "
        "times the KL penalty does not, and costs reward.",
        "[IG] 4.2, E.6, Fig. 33, 34", "DROP, 175B (Table 14): GPT-3 35, PPO 28, PPO-ptx 33",
        experiments.alignment_tax,
        "loss: base {base loss}, PPO {ppo loss}, PPO-ptx {ptx loss}, β × 100 {beta loss}; "
        "accuracy: {base accuracy}, {ppo accuracy}, {ptx accuracy}, {beta accuracy}",
        {"loss, PPO minus base": minus("ppo loss", "base loss"),
         "loss, PPO minus PPO-ptx": minus("ppo loss", "ptx loss"),
         "loss, β × 100 minus PPO-ptx": minus("beta loss", "ptx loss"),
         "accuracy, base minus PPO": minus("base accuracy", "ppo accuracy"),
         "accuracy, PPO-ptx minus PPO": minus("ptx accuracy", "ppo accuracy"),
         "accuracy, PPO-ptx minus β × 100": minus("ptx accuracy", "beta accuracy"),
         "reward, PPO minus β × 100": minus("ppo reward", "beta reward")},
        page.tax_table),
    "6": Claim(
        "With all C(K,2) pairs of a prompt in one batch element the reward model does not overfit "
        "in a pass; with the same pairs shuffled it does.",
        "[IG] 3.5", "\"a single pass over the dataset caused the reward model to overfit\"",
        experiments.shuffled_pairs,
        "held-out loss: grouped {grouped loss}, shuffled {shuffled loss}; accuracy "
        "{grouped accuracy}, {shuffled accuracy}; training loss {grouped training loss}, "
        "{shuffled training loss}",
        {"held-out loss, shuffled minus grouped": minus("shuffled loss", "grouped loss"),
         "held-out accuracy, grouped minus shuffled":
            minus("grouped accuracy", "shuffled accuracy")}),
    "7": Claim(
        "A second epoch overfits the reward model.",
        "[IG] C.2", "very sensitive to the number of epochs",
        experiments.second_epoch,
        "held-out loss: one epoch {one loss}, two {two loss}; accuracy {one accuracy}, "
        "{two accuracy}; training loss {one training loss}, {two training loss}",
        {"held-out loss, two minus one": minus("two loss", "one loss"),
         "held-out accuracy, one minus two": minus("one accuracy", "two accuracy")}),
    "8": Claim(
        "SFT's validation loss is higher after 16 epochs than after 8, while RM score and true "
        "score still rise.",
        "[IG] 3.5", "loss is lowest after 1 epoch; 16 were chosen by RM score",
        experiments.sft_epochs,
        "see the table",
        {"validation loss, 16 epochs minus 8": later("loss"),
         "RM score, 16 epochs minus 8": later("rm score"),
         "true score, 16 epochs minus 8": later("true score")},
        page.epochs_table),
    "9": Claim(
        "The reward model predicts labelers it has never seen almost as well as its own.",
        "[IG] 4.1, E.2", "72.4 ± 0.4 → 69.6 ± 0.9 %",
        experiments.held_out_labelers,
        "its own {own}, others {other}",
        {"others' accuracy minus a half": above("other", 0.5),
         "five points minus the loss": lambda f: 0.05 - (f["own"] - f["other"])}),
    "10a": Claim(
        "Without a penalty the true score rises, then falls, while the reward model's score goes "
        "on rising.",
        "[Gao] Fig. 1", "so, for reward models of 3M to 3B parameters",
        experiments.over_optimisation,
        "see the table and [overoptimisation.png](overoptimisation.png)",
        {"rise to the peak, fewest rankings": of_run(curves.rise, "free 200"),
         "fall from it, fewest rankings": of_run(curves.fall, "free 200"),
         "rise to the peak, all rankings": of_run(curves.rise, "free 12000"),
         "fall from it, all rankings": of_run(curves.fall, "free 12000"),
         "RM score, end minus peak, all rankings": of_run(later_rm, "free 12000")},
        page.peaks_table),
    "10b": Claim(
        "More comparisons and a larger reward model move the peak out.",
        "[Gao] 3.2, 3.3", "so; below 2,000 comparisons hardly better than chance",
        experiments.over_optimisation,
        "see the table",
        {"√KL of the peak, all minus fewest rankings":
            minus_run(curves.distance, "free 12000", "free 200"),
         "true score there, all minus fewest rankings":
            minus_run(true_at_peak, "free 12000", "free 200"),
         "√KL of the peak, large minus small":
            minus_run(curves.distance, "free 12000", "free small"),
         "true score there, large minus small":
            minus_run(true_at_peak, "free 12000", "free small")}),
    "10c": Claim(
        "What RL gains fits d (α − β log d), what best-of-n gains fits d (α − β d), d = √KL.",
        "[Gao] Eq. 1, 2", "so",
        experiments.over_optimisation,
        "R² by form: see below",
        {"R² of RL, d (α − β log d) minus d (α − β d)": of_run(fits_rl, "free 12000"),
         "R² of best-of-n, d (α − β d) minus d (α − β log d)":
            of_run(fits_best_of_n, "bon 12000")},
        page.forms_table),
    "10d": Claim(
        "The KL penalty acts like early stopping: at the same KL the true score is the same with "
        "it and without.",
        "[Gao] 3.6", "so",
        experiments.over_optimisation,
        "see below",
        {"0.2 minus the mean gap between the two": lambda f: 0.2 - frontier_gap(f)}),
    "11a": Claim(
        "Residual dropout of 0.2 helps SFT.", "[IG] C.1", "chosen",
        experiments.what_helps,
        "preferred to SFT without it {dropout}",
        {"SFT with dropout over without": above("dropout", 0.5)}),
    "11b": Claim(
        "A value function from the reward model beats a random one.", "[IG] C.4", "chosen",
        experiments.what_helps,
        "mean reward of a short run: {value from rm} against {value random}",
        {"reward, value from RM minus random": minus("value from rm", "value random")}),
    "11c": Claim(
        "10 % of pretraining data in the initialisation help PPO.",
        "[IG] E.8", "best of those compared",
        experiments.what_helps,
        "after a short run preferred to PPO from SFT without {mix}",
        {"PPO from the mix over without": above("mix", 0.5)}),
    "12": Claim(
        "A second round, with comparisons of the policy's own outputs, helps and lessens what the "
        "first reward model could not see.",
        "[IG] 3.1", "\"can be iterated continuously\"; not measured",
        experiments.second_round,
        "the second policy is preferred {second over first}; \"I do not know\" to what can be "
        "answered {first evasive} → {second evasive}; hallucination {first hallucination} → "
        "{second hallucination}",
        {"second over first": above("second over first", 0.5),
         "evasive, first minus second": minus("first evasive", "second evasive")}),
    "13": Claim(
        "PPO lowers diversity.",
        "Kirk et al. 2023, arXiv 2310.06452", "RLHF lowers it against SFT",
        experiments.details,
        "distinct of 16 outputs: SFT {sft distinct}, PPO {ppo distinct}, PPO-ptx {ptx distinct}; "
        "entropy in PPO, nats a token: {ppo entropy before} → {ppo entropy after}",
        {"distinct, SFT minus PPO": minus("sft distinct", "ppo distinct"),
         "entropy, before minus after": minus("ppo entropy before", "ppo entropy after")},
        page.details_table),
}


# ---- the verdict ------------------------------------------------------------------------------

class Finding(NamedTuple):
    number: str
    claim: Claim
    lines: list         # of claims.jsonl, one for each seed
    intervals: dict     # {quantity: (mean, half-width of the 95 % interval)}
    verdict: str


def verdict(intervals):
    """[(mean, half-width), ...] -> "holds", "fails" or "undecided": see the top of this file."""
    if all(mean - half > 0 for mean, half in intervals):
        return "holds"
    if any(mean + half < 0 for mean, half in intervals):
        return "fails"
    return "undecided"


def findings_of(lines, seeds):
    """The claims whose experiment was measured with all of the seeds -> [Finding, ...]."""
    findings = []
    for number, claim in CLAIMS.items():
        name = claim.measure.__name__
        found = [line for line in lines if line["experiment"] == name and line["seed"] in seeds]
        if len(found) < len(seeds):
            continue
        intervals = {}
        for quantity, value in claim.quantities.items():
            intervals[quantity] = interval([value(line["figures"]) for line in found])
        word = verdict(list(intervals.values()))
        findings.append(Finding(number, claim, found, intervals, word))
    return findings


# ---- running ----------------------------------------------------------------------------------

def start_worker():
    """Whoever started this process ends it, on Ctrl-C too; it does not outlive him."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.end_with_parent()


def measured(task):
    """One experiment with one seed -> a line of claims.jsonl; or one that says its "error", a
    sentence, if it cannot be measured."""
    measure, seed, folder, commit = task
    torch.set_num_threads(1)
    cli.keep_freed_memory()
    began = time.perf_counter()
    line = {"experiment": measure.__name__, "seed": seed, "commit": commit}
    try:
        with alone(os.path.join(folder, measure.__name__)):
            figures = measure(World(seed, folder))
    except Exception as e:
        said = cli.sentence(e)
        if not said:
            raise                                            # a bug: show where
        return line | {"error": said}
    figures = {k: v if isinstance(v, list) else float(v) for k, v in figures.items()}
    return line | {"seconds": round(time.perf_counter() - began), "figures": figures}


def measure_missing(numbers, lines, path, cfg):
    """Measure what the claims called `numbers` lack in `lines`, those of the file `path`; each
    experiment with each seed is added to both as soon as it is done. Raises ValueError."""
    commit = page.commit()
    done = {(line["experiment"], line["seed"]) for line in lines}
    if done:
        print(f"{path} has {len(done)} lines, which are kept: delete them and {cfg.runs} to "
              f"measure again")
    tasks = []
    for measure in dict.fromkeys(CLAIMS[n].measure for n in numbers):      # each once
        for seed in cfg.seeds:
            if (measure.__name__, seed) not in done:
                tasks.append((measure, seed, os.path.join(cfg.runs, str(seed)), commit))
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
            found = {name: value(line["figures"]) for name, value in claim.quantities.items()}
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
    if len(set(cfg.seeds)) < max(2, len(cfg.seeds)):
        raise ValueError("--seeds takes at least two different ones, for the sake of an interval")
    os.makedirs(cfg.docs, exist_ok=True)
    results.check_out(os.path.join(cfg.docs, "claims.jsonl"))
    for name, begins in page.BEGINS.items():
        page.check_ours(os.path.join(cfg.docs, name), begins)
    if cfg.readme:
        results.check_out(cfg.readme)
        page.readme(interop.read_file(cfg.readme), [])


def write_pages(findings, cfg):
    """RESULTS.md, the plot, and the verdicts of README.md."""
    figures = {f.claim.measure.__name__: [line["figures"] for line in f.lines] for f in findings}
    remarks = read_remarks(os.path.join(cfg.docs, "remarks.md"))
    text = page.results(findings, remarks)
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
    findings = findings_of(lines, cfg.seeds)
    if not findings:
        seeds = ", ".join(map(str, cfg.seeds))
        raise ValueError(f"{path} has no claim with all seeds {seeds}: run `python -m "
                         f"evidence.claims` first")
    check(cfg)                  # again: somebody else's page may lie there by now
    write_pages(findings, cfg)
    print("\n".join(f"{f.number:4} {f.verdict:10} {f.claim.sentence}" for f in findings))
    return {f.number: f.verdict for f in findings}


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="claims")
