"""What the default world shows over several seeds, and which of its targets are met.

    make seeds                                                       # five seeds, from the start
    python -m evidence.seeds runs/*/report/compare/report.json       # what they have reported
    python -m evidence.seeds                                         # only the pages, again

Writes docs/seeds.jsonl, with a line of figures for each seed; of these docs/WORLD.md, with all
tables, docs/systems.png, and the table of the systems in README.md. Intervals are Student's t, 95 %
of them, over the seeds. The targets stand in TARGETS, and were there before the run.
"""
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import interop
import sandbox
from evidence import apart
from evidence.page import between_markers, check_ours, commit, save_plot, shown
from evidence.report import table
from evidence.statistics import interval
from plumbing import cli, results


@dataclass(frozen=True)
class Config:
    reports: tuple[str, ...] = ()   # report.json of `make compare`, one of each seed; none: write
                                    # the pages and the plot again
    docs: str = "docs"              # the folder of seeds.jsonl, WORLD.md and systems.png
    readme: str = "README.md"       # the page whose systems are written again, empty for none


PRESETS = {"sandbox": {}}
# as evaluate.py names the systems, and as the pages do
SYSTEMS = {"base": "base", "prompted base": "prompted base", "sft": "SFT", "flan": "FLAN",
           "feedme": "FeedME", "sft best of 16": "SFT, best of 16", "ppo-plain": "PPO",
           "ppo": "PPO-ptx", "ceiling": "PPO-ptx, true score as reward"}
SHARES = ("won", "tied", "lost")
# what a line of seeds.jsonl keeps of a system, of all its answers and of those to some prompts
FIGURES = ("best_of", "prompts", "samples", "win_rate", *SHARES, "decided", "length_controlled",
           "elo", "true_score", "helpful", "hallucination", "harmless", "rm_score",
           "rm_agreement", "kl", "length", "pretrain_loss", "fall")
OF_SOME = ("prompts", "win_rate", "helpful", "hallucination", "rm_agreement", "right", "neither")
GROUPS = ("use_cases", *apart.GROUPS)
DRAWN = (*SHARES, "length_controlled")
# behind the point; 3 otherwise
DIGITS = {"won": 2, "tied": 2, "lost": 2, "elo": 0, "kl": 1, "length": 1, "fall": 1}


# ---- the targets -------------------------------------------------------------------------------
# `systems` is {name: figures} of one seed, as in a line of seeds.jsonl.

class Target(NamedTuple):
    what: str
    figure: Callable                # systems of one seed -> a number, whose mean must lie within
    low: float = -math.inf
    high: float = math.inf


def of(system, name):
    return lambda systems: systems[system][name]


def minus(name, a, b):
    """How much a figure of system a exceeds that of b."""
    return lambda systems: systems[a][name] - systems[b][name]


def ratio(name, a="ppo", b="sft"):
    return lambda systems: systems[a][name] / systems[b][name]


def outside(systems):
    return systems["ppo"]["use_cases"]["outside"]["helpful"]


TARGETS = [
    Target("PPO-ptx preferred to SFT at equal length", of("ppo", "length_controlled"), 0.62),
    Target("length of PPO-ptx, as a ratio to SFT's", ratio("length"), 0.9, 1.1),
    Target("hallucination of PPO-ptx, as a ratio to SFT's", ratio("hallucination"), high=0.42),
    Target("the same in the closed domain", ratio("closed_domain"), high=0.7),
    Target("helpful, PPO-ptx minus SFT", minus("helpful", "ppo", "sft"), 0.14),
    Target("true score, PPO-ptx minus SFT's best of 16",
           minus("true_score", "ppo", "sft best of 16"), 0),
    Target("true score, SFT's best of 16 minus SFT",
           minus("true_score", "sft best of 16", "sft"), 0),
    Target("true score, PPO-ptx minus FeedME", minus("true_score", "ppo", "feedme"), 0),
    Target("hallucination, FeedME minus PPO-ptx", minus("hallucination", "feedme", "ppo"), 0),
    Target("pretraining loss of PPO-ptx, as a ratio to SFT's", ratio("pretrain_loss"), high=1.02),
    Target("PPO-ptx preferred to SFT, of what is no tie", of("ppo", "decided"), 0.7),
    Target("right answers of PPO-ptx, first turn minus last, points", of("ppo", "fall"), high=10),
    Target("right answers of PPO-ptx, use case outside", outside, 0.8),
]


def judged(mean, half, low, high):
    """Whether a mean lies within its bounds, and whether its interval reaches over one of them."""
    met = "met" if low <= mean <= high else "not met"
    unsure = any(abs(mean - bound) <= half for bound in (low, high))
    return f"**{met}**" + (", but the interval reaches over the bound" if unsure else "")


def bounds(low, high):
    """The bounds of a target as text."""
    if high == math.inf:
        return f"at least {low}"
    return f"at most {high}" if low == -math.inf else f"{low} to {high}"


def targets_rows(lines):
    """A row for each target: what, its figure, its bounds, the verdict."""
    rows = []
    for target in TARGETS:
        mean, half = interval([target.figure(line["systems"]) for line in lines])
        rows.append([target.what, f"{mean:.3f} ± {half:.3f}", bounds(target.low, target.high),
                     judged(mean, half, target.low, target.high)])
    return [*rows, use_cases_row(lines)]


def use_cases_row(lines):
    """The target that no use case gets worse: helpful, PPO-ptx minus SFT, of each. A fall within
    the interval counts as none."""
    by_case = {}
    for case in lines[0]["systems"]["ppo"]["use_cases"]:
        by_case[case] = interval([helpful(line, "ppo", case) - helpful(line, "sft", case)
                                  for line in lines])
    down = [case for case, (mean, half) in by_case.items() if mean + half < 0]
    worst = min(by_case, key=lambda case: by_case[case][0])
    mean, half = by_case[worst]
    return ["helpful by use case, PPO-ptx minus SFT, the worst of them",
            f"{worst}: {mean:+.3f} ± {half:.3f}", "no fall by more than the interval",
            f"**not met**: {', '.join(down)}" if down else "**met**"]


def helpful(line, system, case):
    return line["systems"][system]["use_cases"][case]["helpful"]


# ---- tables ------------------------------------------------------------------------------------

def merged(seeds):
    """Nested dicts of numbers, one of each seed -> one of lists of numbers, of what all have."""
    found = {}
    for key, x in seeds[0].items():
        if all(key in figures for figures in seeds):
            values = [figures[key] for figures in seeds]
            found[key] = merged(values) if isinstance(x, dict) else values
    return found


def systems_of(lines):
    """{name of a system, as on the pages: its figures over the seeds}, in their order."""
    systems = merged([line["systems"] for line in lines])
    return {title: systems[name] for name, title in SYSTEMS.items() if name in systems}


def cell(figures, column):
    """A figure over the seeds as text, "0.412 ± 0.021"; empty if it was not measured."""
    if column == "shares":
        return " / ".join(cell(figures, share).split(" ± ")[0] for share in SHARES)
    if column not in figures:
        return ""
    is_bound = column == "kl" and figures["best_of"][0] > 1     # see answers.answer
    return ("≤ " if is_bound else "") + shown(figures[column], DIGITS.get(column, 3))


def systems_table(systems, columns):
    """A row for each system; columns: {name of a figure: as on the page}."""
    rows = [[title, *(cell(figures, column) for column in columns)]
            for title, figures in systems.items()]
    return table(["", *columns.values()], rows)


def use_cases_table(systems, column):
    """A row for each use case, a column for each system."""
    rows = [[case, *(cell(figures["use_cases"][case], column) for figures in systems.values())]
            for case in systems["SFT"]["use_cases"]]
    return table(["", *systems], rows)


# ---- the pages ---------------------------------------------------------------------------------

README = {"win_rate": "preferred to SFT", "length_controlled": "at equal length",
          "shares": "won / tied / lost", "decided": "won of what is no tie",
          "true_score": "true score", "helpful": "helpful", "hallucination": "hallucination",
          "kl": "KL", "length": "length", "pretrain_loss": "pretraining loss"}
WORLD = README | {"closed_domain": "hallucination, closed domain", "harmless": "harmless",
                  "rm_score": "RM score", "rm_agreement": "RM agrees", "elo": "Elo"}
BY_CASE = {"helpful": "Helpful", "hallucination": "Hallucination", "rm_agreement": "RM agrees"}
BEGINS = {"WORLD.md": "# What the default world shows", "seeds.jsonl": '{"seed": ',
          "systems.png": "python -m evidence."}     # the start of whoever drew it
ABOUT = """\
Made by `make seeds`, seeds {seeds}, commit {commits}; [seeds.jsonl](seeds.jsonl) has the figures \
of each. A seed has its own corpus, weights, demonstrations, errors of labelers and held-out \
prompts: {prompts}, with {samples} answers of each system, sampled at temperature 1 and judged by \
the true score; the facts and the labelers' tastes are the same. Every figure is a mean over the \
seeds with its 95 % interval (Student's t). The last system was trained on the true score itself: \
what PPO-ptx would be if the reward model were perfect. \
Helpful, hallucination and harmless are shares of the answers; in the closed domain, {closed}, the \
answer stands in the prompt, or that there is none. RM agrees: of the pairs of a system's answers \
to a prompt that the true score tells apart, the share that the reward model orders in the same \
way. KL is to SFT, in nats an answer, length in tokens, the loss in nats a token."""
PREFERRED = """\
A system is compared with SFT on all pairs of their answers to a prompt. Preferred: the share that \
it wins, ties half. At equal length: what is left of that if all answers were as long as SFT's."""
TARGETED = """\
Each was written down before the run, for the mean over the seeds. Where the interval reaches over \
the bound, other seeds might decide otherwise."""


def world(lines):
    """The text of WORLD.md."""
    systems = systems_of(lines)
    sft = systems["SFT"]
    seeds = ", ".join(str(line["seed"]) for line in lines)
    commits = ", ".join(dict.fromkeys(line["commit"] for line in lines))
    about = ABOUT.format(seeds=seeds, commits=commits, prompts=f"{sft['prompts'][0]:.0f}",
                         samples=f"{sft['samples'][0]:.0f}", closed=", ".join(sandbox.CLOSED))
    page = [BEGINS["WORLD.md"], "", about, "", "## Targets", "", TARGETED]
    page += table(["", "over the seeds", "target", ""], targets_rows(lines))
    page += ["", "## Systems", "", PREFERRED, *systems_table(systems, WORLD)]
    for column, title in BY_CASE.items():
        page += ["", f"## {title} by use case", *use_cases_table(systems, column)]
    for title, text, head, rows in apart.tables(systems, cell):
        page += ["", f"## {title}", "", text, *table(head, rows)]
    return "\n".join(page) + "\n"


def readme(text, lines):
    """The text of README.md with the table of the systems written again."""
    return between_markers(text, "systems", systems_table(systems_of(lines), README))


def draw_systems(plt, lines):
    """Won, tied and lost against SFT as stacked bars, and who is preferred at equal length. ->
    figure"""
    systems = {title: f for title, f in systems_of(lines).items() if title != "SFT"}
    rows = list(systems)
    drawn = {column: interval(np.transpose([f[column] for f in systems.values()]))
             for column in DRAWN}
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
    start = np.zeros(len(rows))
    for share, colour in zip(SHARES, ("#56b4e9", "#dddddd", "#e69f00")):
        mean, _ = drawn[share]
        bars = left.barh(rows, mean, left=start, color=colour)
        left.bar_label(bars, fmt="{:.0%}", label_type="center", size=8)
        start = start + mean
    mean, half = drawn["length_controlled"]
    right.barh(rows, mean, xerr=half, color="#56b4e9", capsize=3)
    for i, (x, end) in enumerate(zip(mean, mean + half)):
        right.text(end + 0.02, i, f"{x:.0%}", va="center")
    right.axvline(0.5, color="black", lw=1, ls="--", zorder=0)
    left.invert_yaxis()
    left.set(xlim=(0, 1), title="Won, tied and lost against SFT")
    right.set(xlim=(0, 1), title="Preferred to SFT at equal length")
    for ax in (left, right):
        ax.xaxis.set_major_formatter("{x:.0%}")
    return fig


# ---- reading and writing -----------------------------------------------------------------------

def kept(figures, names):
    """Those of the figures that a line keeps."""
    return {name: round(float(figures[name]), 5) for name in names if name in figures}


def closed_domain(cases):
    """Hallucination in all the answers whose source is the prompt, of figures by use case."""
    cases = [cases[case] for case in sandbox.CLOSED]
    prompts = sum(case["prompts"] for case in cases)
    return sum(case["hallucination"] * case["prompts"] for case in cases) / prompts


def line_of(path, code):
    """report.json of a seed -> a line of seeds.jsonl; `code` is the commit. Raises ValueError."""
    beside = os.path.join(os.path.dirname(path), "made.json")
    try:
        seed = json.loads(interop.read_file(beside))["config"]["seed"]
        systems = {}
        for system in json.loads(interop.read_file(path))["systems"]:
            figures = kept(system, FIGURES)
            for group in GROUPS:
                asked = system.get(group, {})
                figures[group] = {key: kept(f, OF_SOME) for key, f in asked.items()}
            figures["closed_domain"] = closed_domain(figures["use_cases"])
            systems[system["name"]] = figures
        return checked({"seed": seed, "commit": code, "systems": systems})
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
            RecursionError) as e:
        raise ValueError(f"{path} is no report of `make compare` ({e}): make it again") from e


def checked(line):
    """A line of seeds.jsonl, if all can be made of it: else some exception."""
    line = {"seed": int(line["seed"]), "commit": str(line["commit"]),
            "systems": dict(line["systems"])}
    for name, figures in line["systems"].items():
        results.check_finite(name, figures)
        sum(figures[column] for column in DRAWN)
    world([line])
    return line


def read_lines(path):
    """The lines of seeds.jsonl. Raises ValueError."""
    lines = []
    for n, text in enumerate(interop.read_file(path).splitlines(), 1):
        try:
            lines.append(checked(json.loads(text)))
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
                RecursionError) as e:
            raise ValueError(f"{path}, line {n} is no line of seeds.py ({e}): delete the file and "
                             f"run `make seeds`") from e
    return lines


def check(cfg):
    """Raises ValueError where a page would replace what is not ours, or has no place for us."""
    os.makedirs(cfg.docs, exist_ok=True)
    for name, begins in BEGINS.items():
        check_ours(os.path.join(cfg.docs, name), begins)
    if cfg.readme:
        results.check_out(cfg.readme)
        between_markers(interop.read_file(cfg.readme), "systems", [])
    if not cfg.reports and not os.path.exists(os.path.join(cfg.docs, "seeds.jsonl")):
        raise ValueError(f"{cfg.docs} has no seeds.jsonl yet: name the report.json of several "
                         f"seeds, or run `make seeds`")


def main(cfg):
    check(cfg)
    path = os.path.join(cfg.docs, "seeds.jsonl")
    results.hold(path)
    if cfg.reports:
        code = commit()
        lines = [line_of(report, code) for report in cfg.reports]
    else:
        lines = read_lines(path)
    if len({line["seed"] for line in lines}) < max(2, len(lines)):
        raise ValueError("at least two reports are needed, of different seeds, for the sake of an "
                         "interval")
    results.write_jsonl(path, lines)
    results.replace_file(os.path.join(cfg.docs, "WORLD.md"), lambda f: f.write(world(lines)))
    if cfg.readme:
        text = readme(interop.read_file(cfg.readme), lines)
        results.replace_file(cfg.readme, lambda f: f.write(text))
    save_plot(lambda plt: draw_systems(plt, lines), os.path.join(cfg.docs, "systems.png"),
              "python -m evidence.seeds")
    rows = targets_rows(lines)
    print("\n".join(f"{verdict.replace('*', '')}: {what} {figure}, {bound}"
                    for what, figure, bound, verdict in rows))
    return {what: verdict for what, _, _, verdict in rows}


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="reports")
