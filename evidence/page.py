"""What claims.py writes: docs/RESULTS.md with its tables and plot, and the verdicts of README.md.

`by_seed` is a list of the figures of one experiment, a dictionary for each seed (experiments.py
says what is in them); `figures` is {experiment: by_seed}; `findings` are claims.Finding.
"""
import functools
import os
import re
import subprocess
from collections import defaultdict

import numpy as np

from evidence import curves
from evidence.experiments import CHANGED, EPOCHS, NS
from evidence.programs import COLD, KS, WARM
from evidence.report import table
from evidence.statistics import interval
from evidence.world import SHORT
from plumbing.results import check_out, replace_file

SYSTEMS = {"base": "base", "prompted": "prompted base", "sft": "SFT", "feedme": "FeedME",
           "ppo": "PPO", "ptx": "PPO-ptx"}
TAXED = {"base": "base", "sft": "SFT", "ppo": "PPO", "ptx": "PPO-ptx", "beta": "PPO, β × 100"}
RMS = {"2000": "2,000 rankings", "20000": "20,000"}
REWARD_EPOCHS = {"400 x 1": "400 rankings, 1 epoch", "400 x 2": "2 epochs",
                 "400 x 8": "8 epochs", "4000 x 1": "4,000 rankings, 1 epoch",
                 "4000 x 2": "2 epochs"}
ROUNDS = {"first": "first round", "second": "second, of SFT's and the policy's samples",
          "again": "second, of SFT's samples alone"}
DIGITS = {"kl": 1, "length": 1}                 # behind the point; 3 otherwise
RIVALS = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "dpo": "DPO", "bold": "DPO, β = 0.1",
          "bon": "best of n"}
COLOURS = {"ppo": "#0072b2", "rloo": "#009e73", "grpo": "#cc79a7", "dpo": "#d55e00",
           "bold": "#e69f00", "bon": "#777777"}
CODERS = {"base": "base", "tuned": "Codex-S", "tested": "RL with the tests"}
JUDGED = {"true score": "true score", "helpful": "helpful", "hallucination": "hallucination",
          "harmless": "harmless"}


def get(figures, name):
    """get(figures, "sft.loss"): a figure of an arm."""
    arm, _, figure = name.partition(".")
    return figures[arm][figure]


# ---- tables -----------------------------------------------------------------------------------

def shown(values, digits=3):
    """A figure of all seeds as text, "0.412 ± 0.021"; thousands without interval."""
    mean, half = interval(values)
    return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.{digits}f} ± {half:.{digits}f}"


def signed(mean, half):
    """A difference as text, "+0.012 ± 0.021"."""
    return f"{mean:+.3f} ± {half:.3f}"


def figures_table(by_seed, rows, columns, digits=DIGITS):
    """A table of figures, empty where there is none.

    rows: {arm: as on the page}; columns: {figure: as on the page}.
    """
    lines = []
    for row, title in rows.items():
        cells = [title]
        for column in columns:
            values = [f[row][column] for f in by_seed if column in f[row]]
            cells.append(shown(values, digits.get(column, 3)) if values else "")
        lines.append(cells)
    return table(["", *columns.values()], lines)


def systems_table(by_seed):
    return figures_table(by_seed, SYSTEMS, {
        "wins": "preferred to SFT", "equal length": "at equal length", **JUDGED,
        "rm score": "RM score", "kl": "KL", "length": "length"})


def tax_table(by_seed):
    return figures_table(by_seed, TAXED, {
        "loss": "pretraining loss", "accuracy": "few-shot accuracy", "questions": "questions",
        "rewriting": "rewriting", "facts": "facts", "reward": "RM score", "kl": "KL"})


def epochs_table(by_seed):
    return figures_table(by_seed, REWARD_EPOCHS, {
        "loss": "held-out loss", "accuracy": "accuracy", "shortfall": "short of the best by",
        "training loss": "training loss"})


def sft_table(by_seed):
    epochs = {str(n): "1 epoch" if n == 1 else f"{n} epochs" for n in EPOCHS}
    return figures_table(by_seed, epochs, {
        "loss": "validation loss", "rm score": "RM score", "true score": "true score"})


def rounds_table(by_seed):
    return figures_table(by_seed, ROUNDS, {
        "over first": "preferred to the first", "true score": "true score",
        "evasive": "evasive", "hallucination": "hallucination"})


def peaks_table(by_seed):
    lines = []
    for rm, title in RMS.items():
        free = [curves.of(f, f"free {rm}") for f in by_seed]
        best_of = [curves.of(f, f"bon {rm}") for f in by_seed]
        columns = [[f[f"bon {rm}"]["accuracy"] for f in by_seed],
                   [run.true[0] for run in free],
                   [curves.at_peak(run, "true") for run in free],
                   [curves.distance(run) for run in free],
                   [curves.smooth(run.true)[-1] for run in free],
                   [run.true[-1] for run in best_of],
                   [curves.fitted_peak(run) for run in best_of]]
        lines.append([title, *map(shown, columns)])
    return table(["reward model of", "held-out accuracy", "RL: true score at the start",
                  "at the peak", "√KL there", "at the end",
                  f"best-of-n: true score at n = {NS[-1]}", "√KL of the fitted peak"], lines)


def ensembles_table(by_seed):
    lines = []
    for arm, title in (("single", "one"), ("minimum", "the minimum of four")):
        runs = [curves.of(f, arm) for f in by_seed]
        columns = [[run.true[0] for run in runs],
                   [curves.at_peak(run, "true") for run in runs],
                   [run.true[-10:].mean() for run in runs],
                   [curves.reach(run) for run in runs]]
        lines.append([title, *map(shown, columns)])
    return table(["reward models", "true score at the start", "at the peak", "at the end",
                  "√KL there"], lines)


def rivals_table(by_seed):
    rows = {"sft": "SFT", **RIVALS}
    rows.pop("bon")
    return figures_table(by_seed, rows, {
        "true score": "true score", "distance": "√KL", "loss": "pretraining loss",
        "distinct": "distinct of 16", "wrong": "tokens of a wrong answer"})


def programs_table(by_seed):
    """pass@1 and pass@100 of each model at both temperatures."""
    return figures_table(by_seed, CODERS, {
        "pass@1 cold": "pass@1, 0.2", "pass@1 warm": "pass@1, 0.8",
        "pass@100 cold": "pass@100, 0.2", "pass@100 warm": "pass@100, 0.8",
        "pass@100 hot": "pass@100, 1.2",
        "mean": "chosen by mean log p", "sum": "by sum", "bleu": "BLEU tells"})


def forms_table(by_seed):
    lines = []
    for arm, title in (("free 2000", "RL, 2,000 rankings"), ("free 20000", "RL, 20,000"),
                       ("bon 2000", "best-of-n, 2,000"), ("bon 20000", "best-of-n, 20,000")):
        runs = [curves.of(f, arm) for f in by_seed]
        fits = [[curves.gain_fit(run, form) for run in runs] for form in ("rl", "bon")]
        lines.append([title, *map(shown, fits)])
    return table(["R²", "d (α − β log d)", "d (α − β d)"], lines)


def details_table(by_seed):
    lines = []
    for name in CHANGED:
        cells = [name]
        for what in ("reward", "true score", "kl"):
            mean, half = interval([f[name][what] - f["everything"][what] for f in by_seed])
            cells.append(signed(mean, half))
        lines.append(cells)
    about = (f"Each changed alone: difference to everything on, of the models saved after {SHORT} "
             f"iterations of PPO.")
    return ["", about, *table(["changed", "reward", "true score", "KL"], lines)]


# what stands near the beginning of the files that are ours, in the plot as its source
BEGINS = {"RESULTS.md": "# Does it hold?", "overoptimisation.png": "python -m evidence.claims",
          "forks.png": "python -m evidence.claims", "pass_at_k.png": "python -m evidence.claims"}


def check_ours(path, begins):
    """Raise ValueError if there is a file at `path` without the words near its beginning that ours
    have."""
    check_out(path)
    if not os.path.exists(path):
        return
    with open(path, "rb") as f:
        if begins.encode() not in f.read(1000):
            raise ValueError(f"{path} is there already, and this command did not make it: move it "
                             f"away, or choose another --docs")


def commit():
    """The commit that the code is at, with "-dirty" if it was changed since. What commands write
    into docs/ is no code."""
    def git(*command):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return subprocess.run(["git", *command], capture_output=True, text=True, cwd=root,
                              check=False)

    known = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "*.py").returncode
    return f"{known}{'-dirty' * bool(changed)}" if known else "unknown"


# ---- docs/RESULTS.md --------------------------------------------------------------------------

ABOUT = """\
A toy world of small models and simulated labelers: what is tested is whether a mechanism appears \
here, not whether a paper is right. Made by `python -m evidence.claims`, seeds {seeds}, \
{hours:.1f} hours of one core. Means over the seeds with 95 % intervals (Student's t). Each claim \
has quantities, which must be above zero if it is true, and each quantity a margin, nearer to zero \
than which it does not matter. A quantity is *above* zero if its 95 % interval is and its mean is \
no less than the margin, and *negligible* if its 90 % interval lies within the margin on both \
sides. A claim **holds** if all its quantities are above zero, **in part** if the others are \
negligible, and it is **negligible** if all are; it **fails** if one is below zero. That something \
makes no difference holds if all quantities are negligible, and fails if the 95 % interval of one \
lies beyond its margin. Findable is a mean so large that its interval lies above zero with four in \
five such sets of seeds: a claim is **undecided** only for want of data. Sentences, quantities, \
margins and numbers of seeds were written down before the run. [claims.jsonl](claims.jsonl) has \
every figure of every seed. Experiments by commit: {commits}."""


def results(findings, remarks, missing=()):
    """RESULTS.md; remarks {number: what we make of the claim}; missing: the sentences of claims
    that lack seeds -> text."""
    rows = []
    for f in findings:
        figures = [line["figures"] for line in f.lines]
        source = f"{f.claim.source}: {f.claim.paper}"
        rows.append([f.number, f.claim.sentence, source, filled(f.claim.ours, figures), tally(f)])
    lines = [BEGINS["RESULTS.md"]]
    if findings:
        lines += ["", about(findings)]
        lines += table(["", "claim", "source and its figure", "here", ""], rows)
    if missing:
        lines += ["", "Not measured yet in this world:", "", *(f"- {text}" for text in missing)]
    for f in findings:
        lines += section(f, remarks.get(f.number, ""))
    return "\n".join(lines) + "\n"


def filled(text, by_seed):
    """`text` with each {arm.figure} in it replaced by the figure's mean and interval."""
    return re.sub(r"{(.*?)}", lambda match: shown([get(f, match[1]) for f in by_seed]), text)


def tally(finding):
    """The verdict, and how many seeds it rests on."""
    return f"**{finding.verdict}** ({len(finding.lines)} seeds)"


def about(findings):
    """The paragraph at the top: how RESULTS.md came to be."""
    once = {(line["experiment"], line["seed"]): line for f in findings for line in f.lines}
    seeds = sorted({seed for _, seed in once})
    hours = sum(line["seconds"] for line in once.values()) / 3600
    commits = defaultdict(set)
    for line in once.values():
        commits[line["commit"]].add(line["experiment"])
    made = [f"{commit}: {', '.join(sorted(names))}" for commit, names in sorted(commits.items())]
    return ABOUT.format(seeds=", ".join(map(str, seeds)), hours=hours, commits="; ".join(made))


def section(finding, remark):
    """What RESULTS.md says of one claim, lines."""
    claim = finding.claim
    wanted = "negligible" if claim.equal else "above zero"
    found = f"**{finding.verdict.capitalize()}** over {len(finding.lines)} seeds."
    lines = ["", f"## {finding.number}. {claim.sentence}", "",
             f"{claim.source}: {claim.paper}.", "",
             f"{found} If it is true, each of these is {wanted}:"]
    rows = []
    for name, e in finding.effects.items():
        rows.append([name, signed(e.mean, e.half), f"{e.deviation:.3f}", f"{e.findable:.3f}",
                     f"{e.margin:g}", e.sign])
    lines += table(["quantity", "mean and 95 % interval", "s over seeds", "findable", "margin", ""],
                   rows)
    if claim.table:
        lines += claim.table([line["figures"] for line in finding.lines])
    return lines + (["", remark] if remark else [])


# ---- README.md --------------------------------------------------------------------------------

def readme(text, findings):
    """The text of README.md with the table of the verdicts written again, a row for each verdict:
    the page stays as short whatever is measured."""
    claims = {}
    for f in findings:
        claims.setdefault(f.verdict, []).append(f"{f.number} {f.claim.sentence}")
    rows = [[f"**{verdict}**", "<br>".join(said)] for verdict, said in claims.items()]
    verdicts = table(["verdict", "claims"], rows) if rows else ["", "None is measured yet."]
    return between_markers(text, "verdicts", verdicts)


def between_markers(text, name, lines):
    """`text` with `lines` between <!-- name --> and <!-- /name -->. Raises ValueError."""
    before, opened, rest = text.partition(f"<!-- {name} -->")
    _, closed, after = rest.partition(f"<!-- /{name} -->")
    if not opened or not closed:
        raise ValueError(f"the page --readme has no place for the table of {name}: it must stand "
                         f"between the lines <!-- {name} --> and <!-- /{name} -->")
    return "\n".join([before + opened, *lines, "", closed + after])


# ---- the plot ----------------------------------------------------------------------------------

STYLE = {"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
         "figure.constrained_layout.use": True}


def save_plot(draw, path, source):
    """Write the figure that draw(pyplot) returns, and in it `source`, the command that drew it.
    Says so without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        print(f"{path} is not drawn: `pip install matplotlib`, then the same command again")
        return
    with plt.rc_context(STYLE):
        fig = draw(plt)
        save = functools.partial(fig.savefig, format="png", dpi=130, metadata={"Source": source})
        replace_file(path, save, "wb")
        plt.close(fig)


def plot(figures, folder):
    """overoptimisation.png, forks.png and pass_at_k.png, if they were measured."""
    for name, experiment, draw in (("overoptimisation.png", "over_optimisation", draw_curves),
                                   ("forks.png", "rivals", draw_rivals),
                                   ("pass_at_k.png", "programs", draw_programs)):
        if experiment in figures:
            draw = functools.partial(draw, by_seed=figures[experiment])
            save_plot(draw, os.path.join(folder, name), BEGINS[name])


def draw_rivals(plt, by_seed):
    """The true score against the distance from SFT. -> figure"""
    fig, ax = plt.subplots(figsize=(7.5, 4.2))
    for arm, title in RIVALS.items():
        runs = [curves.of(f, arm) for f in by_seed]
        if len(runs[0].kl) > 10 and arm != "bon":
            d, true = curves.over_distance(runs, "true")
            style = {}
        else:
            d = np.mean([np.sqrt(np.maximum(run.kl, 0)) for run in runs], 0)
            true = [run.true for run in runs]
            style = {"marker": "o", "ls": ":"} if arm != "bon" else {}
        mean, half = interval(true)
        ax.plot(d, mean, color=COLOURS[arm], lw=2, label=title, **style)
        ax.fill_between(d, mean - half, mean + half, color=COLOURS[arm], alpha=0.1, lw=0)
    ax.set(title="What is gained on the way from SFT, and lost again", xlim=(0, None),
           xlabel="distance from SFT, √KL", ylabel="true score of an answer")
    ax.legend(frameon=False, fontsize=9)
    return fig


def draw_programs(plt, by_seed):
    """pass@k against k, for each model at two temperatures. -> figure"""
    fig, ax = plt.subplots(figsize=(7.5, 4.2))
    for colour, (arm, title) in zip(("#999999", "#0072b2", "#d55e00"), CODERS.items()):
        for name, temperature, style in (("cold", COLD, ":"), ("warm", WARM, "-")):
            mean, half = (100 * x for x in interval([f[arm][name] for f in by_seed]))
            label = f"{title}, T = {temperature}"
            ax.plot(KS, mean, style, color=colour, lw=2, label=label)
            ax.fill_between(KS, mean - half, mean + half, color=colour, alpha=0.1, lw=0)
    ax.set(title="More samples solve more, and want a higher temperature", xscale="log",
           xticks=KS, xticklabels=KS, ylim=(0, 100), xlabel="samples, k", ylabel="pass@k, %")
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0.03, 0.28))
    return fig


def draw_curves(plt, by_seed):
    """The true score and the reward model's against the distance from SFT. -> figure"""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for colour, (rm, title) in zip(("#d55e00", "#0072b2"), RMS.items()):
        for ax, kind in zip(axes, ("free", "bon")):
            d, true, scores = against_distance(by_seed, kind, rm)
            (mean, half), (score, _) = interval(true), interval(scores)
            ax.plot(d, mean, color=colour, lw=2, label=title)
            ax.fill_between(d, mean - half, mean + half, color=colour, alpha=0.1, lw=0)
            ax.plot(d, score - score[0] + mean[0], color=colour, lw=1.2, ls=":")
    fig.suptitle("The true score turns while the reward model's goes on", x=0.01, ha="left",
                 weight="bold")
    axes[0].set(title="RL without a penalty", xlabel="distance from SFT, √KL",
                ylabel="score of an answer")
    axes[1].set(title="Best of n", xlabel=f"distance from SFT, √KL (n = 1 to {NS[-1]})")
    axes[0].legend(title="reward model of", frameon=False, fontsize=9, loc="lower left")
    lines = [plt.Line2D([], [], color="black", lw=2, ls="-"),
             plt.Line2D([], [], color="black", lw=1.2, ls=":")]
    axes[1].legend(lines, ["true score", "the reward model's, moved to the same start"],
                   frameon=False, fontsize=9, loc="lower left")
    return fig


def against_distance(by_seed, kind, rm):
    """Distances (points,), true scores and a reward model's (seeds, points) of "free" or "bon"."""
    runs = [curves.of(f, f"{kind} {rm}") for f in by_seed]
    if kind == "free":
        d, true = curves.over_distance(runs, "true")
        _, scores = curves.over_distance(runs, "rm")
        return d, true, scores
    d = np.sqrt(np.mean([run.kl for run in runs], 0))       # every seed has the same n
    return d, [run.true for run in runs], [run.rm for run in runs]
