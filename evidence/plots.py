"""The plots of a report: who wins, who beats whom, what each system does at each use case."""
import functools

import numpy as np

from plumbing.cli import visible

HHH = ("helpful", "hallucination", "harmless")      # fields of sandbox.Judgement
TITLES = {"win_rate": "win rate", "helpful": "helpful", "hallucination": "hallucination"}
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
        heatmap(ax, np.array(values), names, labels(cases), TITLES[column], colours)
    return figure


DRAWINGS = {"systems.png": draw_systems, "matrix.png": draw_matrix,
            "use_cases.png": draw_use_cases}


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
