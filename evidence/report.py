"""The report of an evaluation: figures of each system, a page of tables, means over seeds, and

    python -m evidence.report FOLDER        # what a newcomer should see of it, in ten lines

Legend: N prompts, n answers of each, S systems.
"""
import json
import os
import re
from typing import NamedTuple

import numpy as np

import interop
from evidence import apart, newcomer
from evidence.answers import Answers
from evidence.plots import DRAWINGS, HHH, plots
from evidence.statistics import (
    agreement,
    bootstrap,
    interval,
    length_controlled,
    ratings,
    shares,
    win_rate,
)
from plumbing.results import check_finite

WINS = {                # a figure: what the page calls it; who wins
    "win_rate": "win rate", "won": "won", "tied": "tied", "lost": "lost",
    "decided": "won of decided", "length_controlled": "at equal length", "elo": "Elo",
    "people": "people prefer it",
}
ANSWERS = {             # what the answers are like
    "true_score": "true score", "helpful": "helpful", "hallucination": "hallucination",
    "harmless": "harmless", "rm_score": "RM score", "rm_agreement": "RM agrees", "kl": "KL",
    "log_ratio": "log-ratio", "pretrain_loss": "pretraining loss", "length": "length",
}
COLUMNS = WINS | ANSWERS
FILES = ("report.json", *DRAWINGS, "report.md")
DIGITS = {"elo": 0, "length": 1, "fall": 1}         # behind the point; 3 otherwise


# ---- figures ------------------------------------------------------------------------------------

class Result(NamedTuple):
    """What was measured of one system."""
    name: str
    best_of: int
    prefix: list            # the messages that it reads before each prompt
    sampled: Answers        # at temperature 1
    greedy: Answers | None  # none for a best of n: the best of equals is no system
    text_loss: float        # nats a token
    parts: dict             # figures of what is asked apart, see apart.measure


def summary(answers, base, seed, rows=None):
    """The figures of one system against the baseline's answers, over all prompts or some `rows`."""
    rows = np.arange(len(answers.texts)) if rows is None else np.array(rows)
    ours, theirs = answers.score[rows], base.score[rows]
    prompts = np.array(answers.prompts)[rows]
    figures = {
        "win_rate": win_rate(ours, theirs),
        "win_rate_ci": bootstrap(ours, theirs, prompts, seed),
        **shares(ours, theirs),
        "length_controlled": length_controlled(ours, theirs, answers.length[rows],
                                               base.length[rows]),
    }
    if answers.judged:
        figures["true_score"] = float(ours.mean())
        for field in HHH:
            held = [[getattr(j, field) for j in answers.judged[i]] for i in rows]
            figures[field] = float(np.mean(held))
    if answers.rm_score is not None:
        figures["rm_score"] = float(answers.rm_score[rows].mean())
        agrees = agreement(answers.rm_score[rows], ours) if answers.judged else None
        if agrees is not None:
            figures["rm_agreement"] = agrees
    means = {"kl": answers.kl, "length": answers.length, "eos_rate": answers.ended}
    figures |= {name: float(values[rows].mean()) for name, values in means.items()}
    figures["distinct"] = len({text for i in rows for text in answers.texts[i]}) / ours.size
    figures |= {"prompts": len(rows), "samples": ours.shape[1]}
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


def make_report(results, baseline, judge, seed, prompts):
    """[Result, ...] -> what report.json holds. `baseline` is a number of a result, `judge` the
    name of what scored the answers to `prompts`. Raises ValueError if a number is not finite."""
    base = results[baseline]
    cases = rows_by_case(base.sampled)
    scores = np.stack([r.sampled.score for r in results])    # (S, N, n)
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
        system |= r.parts
        check_finite(r.name, system)
        systems.append(system)
    matrix = {"names": [r.name for r in results], "win_rates": rates.tolist()}
    firsts = [rows[0] for rows in cases.values()]
    return {"baseline": base.name, "judge": judge, "systems": systems, "matrix": matrix,
            "examples": [example(results, prompts, i) for i in firsts],
            "chosen": [example(results, prompts, i) for i in improved(results, baseline)]}


def example(results, prompts, i):
    """Prompt i with the first answer of each system."""
    asked = " | ".join(m["content"] for m in prompts[i].messages)
    return {"use_case": prompts[i].use_case, "prompt": asked,
            "answers": {r.name: r.sampled.texts[i][0] for r in results}}


def improved(results, baseline):
    """The first prompts of three use cases at which the first answer of the last system is right,
    and that of the baseline is not; fewer if there are no more."""
    last = newcomer.last_but(results, results[baseline])
    ours, theirs = last.sampled, results[baseline].sampled
    found = {}
    for i, case in enumerate(ours.cases):
        if ours.judged and case not in found and len(found) < 3:
            new, old = ours.judged[i][0], theirs.judged[i][0]
            if is_right(new) and not is_right(old):
                found[case] = i
    return list(found.values())


def is_right(judged):
    return judged.helpful and not judged.hallucination


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


def figures_table(systems, columns, cell=cell):
    """A row for each system of {name: figures}, a column for each of these figures that any of them
    has; systems that have none are left out."""
    rows = {name: f for name, f in systems.items() if any(c in f for c in columns)}
    shown = [c for c in columns if any(c in f for f in rows.values())]
    lines = [[name, *(cell(figures, c) for c in shown)] for name, figures in rows.items()]
    return table(["system", *(columns[c] for c in shown)], lines)


def tables_by_case(systems):
    """A table for each figure that says how a system does at each use case."""
    cases = list(systems[0]["use_cases"])
    lines = []
    if len(cases) == 1:
        return lines                                # the first table says it all
    for column in ("win_rate", *HHH, "rm_agreement"):
        if column not in systems[0]:
            continue
        rows = []
        for s in systems:
            figures = [s["use_cases"][case].get(column) for case in cases]
            rows.append([s["name"], *("" if x is None else f"{x:.2f}" for x in figures)])
        title = COLUMNS[column]
        lines += ["", f"## {title[0].upper()}{title[1:]} by use case"]
        lines += table(["system", *cases], rows)
    return lines


def about(report):
    """What the first table says, and the second."""
    first, baseline = report["systems"][0], report["baseline"]
    wins = (f"Against {baseline}: {first['prompts']} held-out prompts, of each system "
            f"{first['samples']} answers at temperature 1, judged by {report['judge']}; of two "
            f"systems all pairs of answers to a prompt are compared. Win rate: ties count half; "
            f"won, tied and lost: what it is made of; won of decided: ties apart. In brackets: "
            f"95 % bootstrap intervals over distinct prompts. At equal length: the win rate if "
            f"all answers were as long as {baseline}'s. Elo: fitted to all pairs, {baseline} = 0.")
    asked = [f"{s['people_votes']:,} of {s['name']}" for s in report["systems"] if "people" in s]
    if asked:
        wins += (f" People prefer it: votes between it and {baseline} ({', '.join(asked)}), only "
                 f"over answers that differ, ties half.")
    answers = (f"RM agrees: of the pairs of answers to a prompt that the judge tells apart, the "
               f"share that the reward model orders as the judge does. KL: in nats a response, "
               f"from the checkpoint of {baseline}; ≤ is an upper bound, with log n - (n-1)/n for "
               f"best of n. Length: in tokens.")
    return wins, answers


def markdown(report):
    """The report as a page: who wins, what the answers are like, who beats whom, greedy, what is
    asked apart, the use cases, answers side by side."""
    systems = {s["name"]: s for s in report["systems"]}
    names, rates = report["matrix"]["names"], report["matrix"]["win_rates"]
    greedy = {name: s["greedy"] for name, s in systems.items() if "greedy" in s}
    wins, answers = about(report)
    lines = [wins, *figures_table(systems, WINS)]
    lines += ["", "## What the answers are like", "", answers, *figures_table(systems, ANSWERS)]
    lines += ["", "## Who beats whom", "",
              "Share of the pairs in which the row's answer beats the column's."]
    rows = [[name, *(f"{x:.2f}" for x in row)] for name, row in zip(names, rates)]
    lines += table(["", *names], rows)
    for title, text, head, rows in apart.tables(systems, cell):
        lines += ["", f"## {title}", "", text, *table(head, rows)]
    if greedy:
        legend = (f"The likeliest token each time. Log-ratio: log π(answer) of the system minus "
                  f"that of the checkpoint of {report['baseline']}, nats; it is no KL, as nothing "
                  f"is sampled.")
        lines += ["", "## Greedy", "", legend, *figures_table(greedy, WINS)]
        lines += figures_table(greedy, ANSWERS)
    lines += tables_by_case(report["systems"])
    for s in report["systems"]:
        if s["prefix"]:
            lines += ["", f"## What {s['name']} reads first", ""]
            lines += [f"- {m['role']}: {m['content']}" for m in s["prefix"]]
    lines += ["", "## Answers", "", "The first prompt of each use case, and the first answers.", ""]
    for found in report["examples"]:
        lines += [f"**{found['prompt']}**", ""]
        lines += [f"- {literal(name)}: {text}" for name, text in found["answers"].items()]
        lines += [""]
    # Half a character, which JSON can hold and UTF-8 cannot, is written out: \ud800
    return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def writers(report):
    """{name of a file: what writes it}, for plumbing.results.deliver. `make` looks at report.md,
    which is the last."""
    return {"report.json": lambda f: json.dump(report, f, indent=1, allow_nan=False),
            **plots(report), "report.md": lambda f: f.write(markdown(report) + "\n")}


def show(folder):
    """Print what report.md says of the systems, up to who beats whom -> {name: figures}."""
    page = interop.read_file(os.path.join(folder, "report.md"))
    print("\n\n## ".join(page.split("\n\n## ")[:3]))
    found = json.loads(interop.read_file(os.path.join(folder, "report.json")))
    return {s["name"]: s for s in found["systems"]}


# ---- several seeds ------------------------------------------------------------------------------

GROUPS = ("use_cases", *apart.GROUPS)


def parts_of(system):
    """{"chat": figures at a use case, ..., "turn 1": ..., "untouched open qa": ...}"""
    asked_apart = {f"{title}{key}": figures for group, title in apart.GROUPS.items()
                   for key, figures in system.get(group, {}).items()}
    return system["use_cases"] | asked_apart


def numbers(figures):
    """{figure: number} of what a table shows."""
    shown = [*COLUMNS, *apart.COLUMNS, "fall"]
    return {c: float(figures[c]) for c in shown if c in figures}


def read_report(path):
    """report.json -> {name of a system: its figures}. Raises ValueError."""
    text = interop.read_file(path)
    try:
        systems = {str(s["name"]): s for s in json.loads(text)["systems"]}
        for name, system in systems.items():
            for figures in (system, *parts_of(system).values()):
                check_finite(name, numbers(figures))
        return systems
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
            RecursionError) as e:
        raise ValueError(f"{path} is no report.json of evaluate.py ({e}), which --seeds "
                         f"takes") from e


def mean_cell(figures, column):
    """{column: (mean, half-width)} -> "0.412 ± 0.021", or "" if it was not measured."""
    if column not in figures:
        return ""
    digits = DIGITS.get(column, 3)
    mean, half = figures[column]
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def means(name, seen):
    """The figures that several reports have of one system -> {figure: (mean, half-width)}. Raises
    ValueError if one is not finite."""
    measured = [numbers(figures) for figures in seen]
    common = [c for c in measured[0] if all(c in figures for figures in measured)]
    # numbers that are finite may have a mean, or a spread, that is not
    with np.errstate(over="ignore", invalid="ignore"):
        found = {c: interval([figures[c] for figures in measured]) for c in common}
    check_finite(f"{name}, mean and interval over the seeds", found)
    return found


def mean_system(name, seen):
    """`means` of a system, and of those of its parts that all reports have, as report.json has
    them."""
    found = means(name, seen)
    for group in GROUPS:
        parts = [system.get(group, {}) for system in seen]
        common = [key for key in parts[0] if all(key in part for part in parts)]
        found[group] = {key: means(f"{name}, {key}", [p[key] for p in parts]) for key in common}
    return found


def over_seeds(paths):
    """Mean and half-width of the 95 % interval (Student's t) of every figure over several
    report.json. Prints tables of what all reports have: an older one may lack a system or a
    column. -> {"ppo": figures, ..., "ppo, chat": ..., "ppo, turn 2": ...}. Raises ValueError."""
    if len(set(paths)) < max(2, len(paths)):
        raise ValueError("--seeds needs at least two different reports: an interval over one is "
                         "none")
    reports = [read_report(path) for path in paths]
    systems = {name: mean_system(name, [r[name] for r in reports]) for name in reports[0]
               if all(name in r for r in reports)}
    by_case = {f"{name}, {case}": figures for name, s in systems.items()
               for case, figures in s["use_cases"].items()}
    print(f"mean and 95 % interval over {len(paths)} seeds")
    for columns in (WINS, ANSWERS):
        print("\n".join(figures_table(systems | by_case, columns, mean_cell)))
    for title, _, head, rows in apart.tables(systems, mean_cell):
        print("\n".join(["", title, *table(head, rows)]))
    found = {name: {c: f for c, f in s.items() if c not in GROUPS} for name, s in systems.items()}
    return found | {f"{name}, {part}": figures for name, s in systems.items()
                    for part, figures in parts_of(s).items()}


if __name__ == "__main__":
    newcomer.main()
