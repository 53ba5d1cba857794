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
from evidence.experiments import CHANGED, EPOCHS, ITERATIONS, NS
from evidence.report import table
from evidence.statistics import interval
from plumbing.results import check_out, replace_file

SYSTEMS = {"base": "base", "prompted": "prompted base", "sft": "SFT", "feedme": "FeedME",
           "bo16": "SFT, best of 16", "ppo": "PPO", "ptx": "PPO-ptx"}
TAXED = {"base": "base", "sft": "SFT", "ppo": "PPO", "ptx": "PPO-ptx", "beta": "PPO, β × 100"}
# trained on, of the 200, 2,000 and 13,200 that were collected: a labeler and a tenth of the
# prompts are held out
RMS = {"200": "140 rankings", "2000": "1,400 rankings", "12000": "9,500 rankings",
       "small": "9,500, a small model"}
DIGITS = {"elo": 1, "kl": 1, "length": 1}       # behind the point; 3 otherwise
JUDGED = {"true score": "true score", "helpful": "helpful", "hallucination": "hallucination",
          "harmless": "harmless"}


# ---- tables -----------------------------------------------------------------------------------

def shown(values, digits=3):
    """A figure of all seeds as text, "0.412 ± 0.021"; thousands without interval."""
    mean, half = interval(values)
    return f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.{digits}f} ± {half:.{digits}f}"


def signed(mean, half):
    """A difference as text, "+0.012 ± 0.021"."""
    return f"{mean:+.3f} ± {half:.3f}"


def figures_table(by_seed, rows, columns, digits=DIGITS):
    """A table of the figures called "ROW COLUMN", empty where there is none.

    rows and columns: {as in the figure's name: as on the page}.
    """
    lines = []
    for row, title in rows.items():
        cells = [title]
        for column in columns:
            values = [f[f"{row} {column}"] for f in by_seed if f"{row} {column}" in f]
            bound = "≤ " if (row, column) == ("bo16", "kl") else ""
            cells.append(bound + shown(values, digits.get(column, 3)) if values else "")
        lines.append(cells)
    return table(["", *columns.values()], lines)


def systems_table(by_seed):
    return figures_table(by_seed, SYSTEMS, {
        "wins": "preferred to SFT", "elo": "Elo", **JUDGED, "rm score": "RM score", "kl": "KL",
        "length": "length"})


def tax_table(by_seed):
    tuned = {name: title for name, title in TAXED.items() if name != "base"}
    return figures_table(by_seed, TAXED, {
        "loss": "pretraining loss", "accuracy": "few-shot accuracy", "questions": "questions",
        "rewriting": "rewriting", "facts": "facts",
    }) + figures_table(by_seed, tuned, {"reward": "RM score", "kl": "KL"})


def epochs_table(by_seed):
    lines = []
    for name in ("loss", "rm score", "true score"):
        title = {"loss": "validation loss", "rm score": "RM score"}.get(name, name)
        lines.append([title, *(shown(values) for values in zip(*(f[name] for f in by_seed)))])
    return table(["", *("1 epoch" if n == 1 else f"{n} epochs" for n in EPOCHS)], lines)


def peaks_table(by_seed):
    lines = []
    for rm, title in RMS.items():
        free = [curves.of_figures(f, f"free {rm}") for f in by_seed]
        best_of = [curves.of_figures(f, f"bon {rm}") for f in by_seed]
        columns = [[f[f"accuracy {rm}"] for f in by_seed],
                   [run.true[0] for run in free],
                   [curves.at_peak(run, "true") for run in free],
                   [curves.distance(run) for run in free],
                   [curves.smooth(run.true)[-1] for run in free],
                   [max(run.true) for run in best_of],
                   [max(run.kl) ** 0.5 for run in best_of]]
        lines.append([title, *map(shown, columns)])
    return table(["reward model", "held-out accuracy", "RL: true score at the start", "at the peak",
                  "√KL there", "at the end", "best-of-n: highest true score",
                  f"√KL at n = {NS[-1]}"], lines)


def forms_table(by_seed):
    lines = []
    for run, title in (("free 12000", "RL"), ("bon 12000", "best-of-n")):
        runs = [curves.of_figures(f, run) for f in by_seed]
        fits = [[curves.gain_fit(run, form) for run in runs] for form in ("rl", "bon")]
        lines.append([title, *map(shown, fits)])
    return table(["R²", "d (α − β log d)", "d (α − β d)"], lines)


def details_table(by_seed):
    lines = []
    for name in CHANGED:
        saved = "saved model's " if name == "no ema" else ""
        cells = [name]
        for what in (f"{saved}reward", f"{saved}true score", f"{saved}kl"):
            changed, whole = f"{name}: {what}", f"everything: {what}"
            mean, half = interval([f[changed] - f[whole] for f in by_seed])
            cells.append(signed(mean, half) + (" *" if abs(mean) > half else ""))
        lines.append(cells)
    about = (f"What the paper leaves open, each changed alone: difference to everything on, at the "
             f"end of {ITERATIONS} iterations of PPO; of the average (EMA), which does not sample, "
             f"in the model that is saved. * marks intervals without zero; of fifteen such "
             f"intervals about one is expected to lack it by chance.")
    return ["", about, *table(["changed", "reward", "true score", "KL"], lines)]


# what stands near the beginning of the files that are ours, in the plot as its source
BEGINS = {"RESULTS.md": "# Does it hold?", "overoptimisation.png": "python -m evidence.claims"}


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
    """The commit that the code is at, with "-dirty" if it was changed since."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                         cwd=here, check=False)
    return git.stdout.strip() or "unknown"


# ---- docs/RESULTS.md --------------------------------------------------------------------------

ABOUT = """\
A toy world of small models and simulated labelers: what is tested is whether a mechanism appears \
here, not whether a paper is right. Made by `python -m evidence.claims`, seeds {seeds}, \
{hours:.1f} hours of one core. Means over the seeds with 95 % intervals (Student's t). A claim \
**holds** if the interval of each of its quantities lies above zero, it **fails** if one lies \
below, else it is **undecided**; the quantities were written down before their figures were seen. \
[claims.jsonl](claims.jsonl) has every figure of every seed. Experiments by commit: {commits}."""
# commits whose sandbox had no dialogues yet, but polite closings and 400 demonstrations
FORMER = ("b58494b", "ca48d28", "f78e787")


def results(findings, remarks):
    """RESULTS.md; remarks {number: what we make of the claim} -> text."""
    rows = []
    for f in findings:
        figures = [line["figures"] for line in f.lines]
        source = f"{f.claim.source}: {f.claim.paper}"
        rows.append([f.number, f.claim.sentence, source, filled(f.claim.ours, figures), tally(f)])
    lines = [BEGINS["RESULTS.md"], "", about(findings), *former(findings)]
    lines += table(["", "claim", "source and its figure", "here", ""], rows)
    for f in findings:
        lines += section(f, remarks.get(f.number, ""))
    return "\n".join(lines) + "\n"


def filled(text, by_seed):
    """`text` with each {figure} in it replaced by the figure's mean and interval."""
    return re.sub(r"{(.*?)}", lambda match: shown([f[match[1]] for f in by_seed]), text)


def signs(finding):
    """Where the interval of each quantity lies: "above" zero, "below", or on both sides, "?"."""
    return ["above" if mean > half else "below" if mean < -half else "?"
            for mean, half in finding.intervals.values()]


def tally(finding):
    found = signs(finding)
    return (f"**{finding.verdict}** ({found.count('above')} of {len(found)} above zero, "
            f"{found.count('below')} below)")


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


def former(findings):
    """A paragraph that names the claims which were measured in another world than today's, lines;
    none if there are none."""
    old = [f.number for f in findings if any(line["commit"] in FORMER for line in f.lines)]
    if not old:
        return []
    which = "All claims" if len(old) == len(findings) else f"The claims {', '.join(old)}"
    said = (f"{which} were measured in the former world, before the sandbox had dialogues (commits "
            f"{', '.join(FORMER)}), and will be measured again.")
    return ["", said]


def section(finding, remark):
    """What RESULTS.md says of one claim, lines."""
    claim = finding.claim
    found = f"**{finding.verdict.capitalize()}** over {len(finding.lines)} seeds."
    lines = ["", f"## {finding.number}. {claim.sentence}", "",
             f"{claim.source}: {claim.paper}.", "",
             f"{found} Each of these must be above zero:"]
    rows = []
    for (name, (mean, half)), sign in zip(finding.intervals.items(), signs(finding)):
        rows.append([name, signed(mean, half), sign])
    lines += table(["quantity", "mean and 95 % interval", ""], rows)
    if claim.table:
        lines += claim.table([line["figures"] for line in finding.lines])
    return lines + (["", remark] if remark else [])


# ---- README.md --------------------------------------------------------------------------------

def readme(text, findings):
    """The text of README.md with the table of the verdicts written again."""
    rows = []
    for f in findings:
        above = f"{signs(f).count('above')} of {len(f.intervals)}"
        rows.append([f.number, f.claim.sentence, f"**{f.verdict}**", above])
    verdicts = table(["", "claim", "verdict", "above zero"], rows)
    return between_markers(text, "verdicts", [*former(findings), *verdicts])


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
    """overoptimisation.png, if that was measured."""
    name, by_seed = "overoptimisation.png", figures.get("over_optimisation")
    if by_seed:
        draw = functools.partial(draw_curves, by_seed=by_seed)
        save_plot(draw, os.path.join(folder, name), BEGINS[name])


def draw_curves(plt, by_seed):
    """The true score and the reward model's against the distance from SFT. -> figure"""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for colour, (rm, title) in zip(("#d55e00", "#e69f00", "#0072b2", "#999999"), RMS.items()):
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
    runs = [curves.of_figures(f, f"{kind} {rm}") for f in by_seed]
    if kind == "free":
        d, true = curves.over_distance(runs, "true")
        _, scores = curves.over_distance(runs, "rm")
        return d, true, scores
    d = np.sqrt(np.mean([run.kl for run in runs], 0))       # every seed has the same n
    return d, [run.true for run in runs], [run.rm for run in runs]
