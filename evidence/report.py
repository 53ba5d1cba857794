"""The report of an evaluation: figures of each system, a page of tables, plots, means over seeds.

Legend: S systems.
"""
import functools
import json
import os
import re
from typing import NamedTuple

import numpy as np

import interop
from evidence.answers import Answers
from evidence.statistics import bootstrap, interval, length_controlled, ratings, win_rate
from plumbing.cli import visible
from plumbing.results import check_finite

HHH = ("helpful", "hallucination", "harmless")      # fields of sandbox.Judgement
COLUMNS = {             # a figure: what the page calls it
    "win_rate": "win rate", "elo": "Elo", "length_controlled": "at equal length",
    "true_score": "true score", "helpful": "helpful", "hallucination": "hallucination",
    "harmless": "harmless", "rm_score": "RM score", "kl": "KL",
    "log_ratio": "log-ratio", "pretrain_loss": "pretraining loss", "length": "length",
}
DIGITS = {"elo": 0, "length": 1}                    # behind the point; 3 otherwise


# ---- figures ------------------------------------------------------------------------------------

class Result(NamedTuple):
    """What was measured of one system."""
    name: str
    best_of: int
    prefix: list            # the messages that it reads before each prompt
    sampled: Answers        # at temperature 1
    greedy: Answers | None  # none for a best of n: the best of equals is no system
    text_loss: float        # nats a token


def summary(answers, base, seed, rows=None):
    """The figures of one system against the baseline's answers, over all prompts or some `rows`."""
    rows = np.arange(len(answers.texts)) if rows is None else np.array(rows)
    ours, theirs = answers.score[rows], base.score[rows]
    prompts = np.array(answers.prompts)[rows]
    figures = {
        "win_rate": win_rate(ours, theirs),
        "win_rate_ci": bootstrap(ours, theirs, prompts, seed),
        "length_controlled": length_controlled(ours, theirs, answers.length[rows],
                                               base.length[rows]),
    }
    if all(answers.judged):
        figures["true_score"] = float(ours.mean())
        for field in HHH:
            held = [getattr(answers.judged[i], field) for i in rows]
            figures[field] = float(np.mean(held))
    if answers.rm_score is not None:
        figures["rm_score"] = float(answers.rm_score[rows].mean())
    means = {"kl": answers.kl, "length": answers.length, "eos_rate": answers.ended}
    figures |= {name: float(values[rows].mean()) for name, values in means.items()}
    figures["distinct"] = len({answers.texts[i] for i in rows}) / len(rows)
    figures["prompts"] = len(rows)
    return figures


def rows_by_case(answers):
    """{use case: the prompts of it}, in the order of the alphabet."""
    rows = {case: [] for case in sorted(set(answers.cases))}
    for i, case in enumerate(answers.cases):
        rows[case].append(i)
    return rows


def greedy_summary(answers, base, seed):
    """`summary` of greedy answers. log pi - log pi_baseline of the one answer that a system always
    gives has no expectation in it: it is no KL."""
    figures = summary(answers, base, seed)
    figures["log_ratio"] = figures.pop("kl")
    return figures


def make_report(results, baseline, judge, seed):
    """[Result, ...] -> what report.json holds. `baseline` is a number of a result, `judge` the
    name of what scored the answers. Raises ValueError if a number is not finite."""
    base = results[baseline]
    cases = rows_by_case(base.sampled)
    scores = np.stack([r.sampled.score for r in results])    # (S, N)
    rates, elo, elo_ci = ratings(scores, base.sampled.prompts, baseline, seed)
    systems = []
    for k, r in enumerate(results):
        system = {"name": r.name, "best_of": r.best_of, "prefix": r.prefix}
        system |= summary(r.sampled, base.sampled, seed)
        system |= {"elo": float(elo[k]), "elo_ci": elo_ci[k].tolist()}
        system["pretrain_loss"] = r.text_loss
        system["use_cases"] = {case: summary(r.sampled, base.sampled, seed, rows)
                               for case, rows in cases.items()}
        if r.greedy:
            system["greedy"] = greedy_summary(r.greedy, base.greedy or base.sampled, seed)
        check_finite(r.name, system)
        systems.append(system)
    matrix = {"names": [r.name for r in results], "win_rates": rates.tolist()}
    return {"baseline": base.name, "judge": judge, "systems": systems, "matrix": matrix}


# ---- the page -----------------------------------------------------------------------------------

def cell(figures, column):
    """A figure of one system as text, with its interval if it has one; empty if it was not
    measured: "0.412 [0.380, 0.440]"."""
    if column not in figures:
        return ""
    digits = DIGITS.get(column, 3)
    text = f"{figures[column]:.{digits}f}"
    if column == "kl" and figures.get("best_of", 1) > 1:
        text = f"≤ {text}"                          # a bound: see answers.answer
    if f"{column}_ci" in figures:
        low, high = figures[f"{column}_ci"]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def table(head, rows):
    """Lines of a Markdown table: head (C,) and rows (R, C) of strings."""
    named = [[literal(text) for text in cells] for cells in (head, *rows)]
    lines = [named[0], ["---"] * len(head), *named[1:]]
    return ["", *(f"| {' | '.join(cells)} |" for cells in lines)]


def literal(text):
    """Text on one line in which what Markdown would obey in a table stands for itself."""
    return re.sub(r"[\\`|]", r"\\\g<0>", " ".join(text.splitlines()))


def figures_table(systems):
    """A row for each system, a column for each figure that any of them has."""
    columns = [c for c in COLUMNS if any(c in s for s in systems)]
    rows = [[s["name"], *(cell(s, c) for c in columns)] for s in systems]
    return table(["system", *(COLUMNS[c] for c in columns)], rows)


def tables_by_case(systems):
    """A table for each figure that says how a system does at each use case."""
    cases = list(systems[0]["use_cases"])
    lines = []
    if len(cases) == 1:
        return lines                                # the first table says it all
    for column in ("win_rate", *HHH):
        if column not in systems[0]:
            continue
        rows = []
        for s in systems:
            rates = [f"{s['use_cases'][case][column]:.2f}" for case in cases]
            rows.append([s["name"], *rates])
        lines += ["", f"## {COLUMNS[column].capitalize()} by use case"]
        lines += table(["system", *cases], rows)
    return lines


def markdown(report, examples):
    """The report as a page: a row for each system, who beats whom, greedy, the use cases, answers
    side by side. examples: [(prompt, [(name of a system, its answer), ...]), ...]"""
    systems, baseline = report["systems"], report["baseline"]
    names, rates = report["matrix"]["names"], report["matrix"]["win_rates"]
    greedy = [s["greedy"] | {"name": s["name"]} for s in systems if "greedy" in s]
    about = (f"Against {baseline}: {systems[0]['prompts']} held-out prompts, one answer each at "
             f"temperature 1, judged by {report['judge']}. Ties count half. In brackets: 95 % "
             f"bootstrap intervals over distinct prompts. Elo: fitted to all pairs, {baseline} = "
             f"0. At equal length: the win rate if all answers were as long as {baseline}'s. KL: "
             f"in nats a response, from the checkpoint of {baseline}; ≤ is an upper bound, with "
             f"log n - (n-1)/n for best of n.")
    lines = [about, *figures_table(systems)]
    lines += ["", "## Who beats whom", "",
              "Share of the prompts on which the row's answer beats the column's."]
    rows = [[name, *(f"{x:.2f}" for x in row)] for name, row in zip(names, rates)]
    lines += table(["", *names], rows)
    if greedy:
        legend = (f"The likeliest token each time. Log-ratio: log π(answer) of the system minus "
                  f"that of the checkpoint of {baseline}, nats; it is no KL, as nothing is "
                  f"sampled.")
        lines += ["", "## Greedy", "", legend, *figures_table(greedy)]
    lines += tables_by_case(systems)
    for s in systems:
        if s["prefix"]:
            lines += ["", f"## What {s['name']} reads first", ""]
            lines += [f"- {m['role']}: {m['content']}" for m in s["prefix"]]
    lines += ["", "## Answers", ""]
    for prompt, texts in examples:
        lines += [f"**{prompt}**", ""]
        lines += [f"- {name}: {text}" for name, text in texts]
        lines += [""]
    # Half a character, which JSON can hold and UTF-8 cannot, is written out: \ud800
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def examples_of(results, prompts):
    """The first prompt of each use case with all answers to it, for `markdown`."""
    examples = []
    for rows in rows_by_case(results[0].sampled).values():
        prompt = " | ".join(m["content"] for m in prompts[rows[0]].messages)
        texts = [(r.name, r.sampled.texts[rows[0]]) for r in results]
        examples.append((prompt, texts))
    return examples


def writers(report, page):
    """{name of a file: what writes it}, for plumbing.results.deliver. `make` looks at report.md,
    which is the last."""
    return {"report.json": lambda f: json.dump(report, f, indent=1, allow_nan=False),
            **plots(report), "report.md": lambda f: f.write(page + "\n")}


def show(folder):
    """Print what report.md says of the systems, and who beats whom -> {name: figures}."""
    page = interop.read_file(os.path.join(folder, "report.md"))
    print("\n\n## ".join(page.split("\n\n## ")[:2]))
    found = json.loads(interop.read_file(os.path.join(folder, "report.json")))
    return {s["name"]: s for s in found["systems"]}


# ---- plots --------------------------------------------------------------------------------------

STYLE = {"axes.titlelocation": "left", "axes.titlesize": 11, "ytick.major.size": 0,
         "axes.spines.top": False, "axes.spines.left": False, "axes.spines.right": False,
         "figure.constrained_layout.use": True,
         # names are strangers' text: a "$" in one begins no formula
         "text.parse_math": False}
# Okabe and Ito's colours: safe for all eyes
BLUE, GREEN, VERMILION, SKY = "#0072b2", "#009e73", "#d55e00", "#56b4e9"


def labels(names):
    """Names as a font can show them: half a character, or an escape, is written out."""
    return [visible(name) for name in names]


def heatmap(ax, values, rows, columns, title, colours):
    """values (R, C), from 0 to 1, as colours with the numbers on them; NaN stays empty."""
    shades = ax.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (i, j), x in np.ndenumerate(values):
        if np.isnan(x):
            continue
        red_green_blue = shades.to_rgba(x)[:3]
        dark = np.dot(red_green_blue, (0.3, 0.59, 0.11)) < 0.5         # luminance
        ax.text(j, i, f"{x:.2f}", ha="center", va="center", size=9,
                color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_title(title)
    ax.spines.bottom.set_visible(False)


def bars(ax, values, ends, rows, title, colour):
    """values (S,), from 0 to 1, as horizontal bars; the numbers stand behind the `ends` (S,) of
    their intervals."""
    ax.barh(rows, values, 0.65, color=colour, zorder=-1)
    white = {"facecolor": "white", "lw": 0, "pad": 0.5}
    for i, (x, end) in enumerate(zip(values, ends)):
        ax.text(max(x, end) + 0.03, i, f"{x:.2f}", va="center", size=9, bbox=white)
    ax.set(xlim=(0, 1.22), xticks=(0, 0.5, 1), title=title)
    ax.spines.bottom.set_bounds(0, 1)


def draw_systems(plt, report):
    """Win rates with their intervals, and what is helpful, made up and harmless, as bars."""
    systems, names = report["systems"], labels(report["matrix"]["names"])
    shares = [k for k in HHH if k in systems[0]]
    size = (5 + 2 * len(shares), 1.2 + 0.4 * len(names))
    figure, axes = plt.subplots(1, 1 + len(shares), figsize=size, squeeze=False, sharey=True,
                                width_ratios=[2.2] + [1] * len(shares))
    first, *others = axes[0]
    low, high = np.array([s["win_rate_ci"] for s in systems]).T
    rates = [s["win_rate"] for s in systems]
    [baseline] = labels([report["baseline"]])
    bars(first, rates, high, names, f"win rate against {baseline}", BLUE)
    first.axvline(0.5, color="black", lw=1, ls="--", zorder=0)
    first.hlines(range(len(names)), low, high, color="black", lw=1.5)
    first.invert_yaxis()
    for ax, field, colour in zip(others, shares, (GREEN, VERMILION, SKY)):
        values = [s[field] for s in systems]
        bars(ax, values, values, names, field, colour)
    return figure


def draw_matrix(plt, report):
    """Who beats whom, without the diagonal."""
    names = labels(report["matrix"]["names"])
    S = len(names)
    figure, ax = plt.subplots(figsize=(2.4 + 0.75 * S, 1.8 + 0.5 * S))
    rates = np.where(np.eye(S), np.nan, report["matrix"]["win_rates"])
    heatmap(ax, rates, names, names, "how often the row beats the column", "PuOr")
    return figure


def draw_use_cases(plt, report):
    """Systems by use cases: helpful and hallucination, or, if they are not known, win rates."""
    systems, names = report["systems"], labels(report["matrix"]["names"])
    cases = list(systems[0]["use_cases"])
    shown = {"win_rate": "PuOr"}
    if "helpful" in systems[0]:
        shown = {"helpful": "Greens", "hallucination": "Oranges"}
    size = (2 + 0.55 * len(cases) * len(shown), 1.8 + 0.4 * len(names))
    figure, axes = plt.subplots(1, len(shown), figsize=size, squeeze=False, sharey=True)
    for ax, (column, colours) in zip(axes[0], shown.items()):
        values = [[s["use_cases"][case][column] for case in cases] for s in systems]
        heatmap(ax, np.array(values), names, labels(cases), COLUMNS[column], colours)
    return figure


DRAWINGS = {"systems.png": draw_systems, "matrix.png": draw_matrix,
            "use_cases.png": draw_use_cases}
FILES = ("report.json", *DRAWINGS, "report.md")


def plots(report):
    """{name of a plot: what writes it}, {} without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        print("no plots: `pip install matplotlib` draws them")
        return {}

    def write(draw, f):
        with plt.rc_context(STYLE):
            figure = draw(plt, report)
            figure.savefig(f, format="png", dpi=120)
            plt.close(figure)
    return {name: functools.partial(write, draw) for name, draw in DRAWINGS.items()}


# ---- several seeds ------------------------------------------------------------------------------

def read_report(path):
    """report.json -> {name of a system: its figures}. Raises ValueError."""
    text = interop.read_file(path)
    try:
        systems = {str(s["name"]): s for s in json.loads(text)["systems"]}
        for name, system in systems.items():
            for figures in (system, *system["use_cases"].values()):
                check_finite(name, {c: float(figures[c]) for c in COLUMNS if c in figures})
        return systems
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
            RecursionError) as e:
        raise ValueError(f"{path} is no report.json of evaluate.py ({e}), which --seeds "
                         f"takes") from e


def views_of(reports):
    """{"ppo": [figures of each report], ..., "ppo, chat": [...]}: systems and their use cases that
    all reports have."""
    views, by_case = {}, {}
    for name, system in reports[0].items():
        if not all(name in r for r in reports):
            continue
        views[name] = [r[name] for r in reports]
        for case in system["use_cases"]:
            if all(case in s["use_cases"] for s in views[name]):
                by_case[f"{name}, {case}"] = [s["use_cases"][case] for s in views[name]]
    return views | by_case


def mean_cell(figures, column):
    """{column: (mean, half-width)} -> "0.412 ± 0.021", or "" if it was not measured."""
    if column not in figures:
        return ""
    digits = DIGITS.get(column, 3)
    mean, half = figures[column]
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def over_seeds(paths):
    """Mean and half-width of the 95 % interval (Student's t) of every figure over several
    report.json. Prints a table of what all reports have: an older one may lack a system or a
    column. Raises ValueError."""
    if len(set(paths)) < max(2, len(paths)):
        raise ValueError("--seeds needs at least two different reports: an interval over one is "
                         "none")
    found = {}
    for name, seen in views_of([read_report(path) for path in paths]).items():
        common = [c for c in COLUMNS if all(c in figures for figures in seen)]
        # numbers that are finite may have a mean, or a spread, that is not
        with np.errstate(over="ignore", invalid="ignore"):
            found[name] = {c: interval([figures[c] for figures in seen]) for c in common}
        check_finite(f"{name}, mean and interval over the seeds", found[name])
    columns = [c for c in COLUMNS if any(c in figures for figures in found.values())]
    rows = [[name, *(mean_cell(figures, c) for c in columns)] for name, figures in found.items()]
    print(f"mean and 95 % interval over {len(paths)} seeds")
    print("\n".join(table(["system", *(COLUMNS[c] for c in columns)], rows)))
    return found
