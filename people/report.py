"""What people did, in numbers: who agrees with whom, how long it takes, who wins.

[IG] Ouyang et al. 2022, arXiv 2203.02155, B.1 and B.2
[K] Krippendorff 2011, Computing Krippendorff's Alpha-Reliability: 1 - observed / expected
    disagreement
[W] Wilson 1927: the interval of a share, also of few
"""
import itertools
import json
import math
import os
from collections import Counter, defaultdict

import numpy as np

import interop
import sandbox
from data import Prompt
from evidence.statistics import ELO, bradley_terry, reliability
from interop.records import to_ranking
from people.store import FILES, read, task_id
from plumbing import results

PASSED = 0.75           # the share of gold pairs on which a labeler should agree ([IG] B.1)
Z = 1.96


# ---- numbers ------------------------------------------------------------------------------------

def wilson(good, n):
    """(share, low, high): a share of n and its 95 % interval; [W]. (nan, 0, 1) of none."""
    if n == 0:
        return math.nan, 0.0, 1.0
    p, z = good / n, Z * Z / n
    middle, half = (p + z / 2) / (1 + z), math.sqrt(z * (p * (1 - p) + z / 4)) / (1 + z)
    return p, max(0.0, middle - half), min(1.0, middle + half)


def share_of_pairs(counts):
    """(share, low, high) of [(good, n) of each task, ...].

    A ranking of nine is 36 pairs that go together: the interval is that of as many independent ones
    as would spread as the tasks do, if all tasks agree of one for each task."""
    counts = [(good, n) for good, n in counts if n]
    good, n, tasks = sum(g for g, _ in counts), sum(n for _, n in counts), len(counts)
    if tasks < 2:
        return wilson(good / max(1, n) * tasks, tasks)
    p = good / n
    variance = tasks / (tasks - 1) * sum((g - p * m) ** 2 for g, m in counts) / n ** 2
    independent = min(n, p * (1 - p) / variance) if variance else tasks
    return wilson(p * independent, independent)


def places(ranks):
    """Where each of K ranked outputs stands, from 0 to 1; those that tie share the middle of their
    places. So rankings of different K, and 1 1 2 and 1 1 3, can be compared."""
    return [(sum(x < rank for x in ranks) + ranks.count(rank) / 2) / len(ranks) for rank in ranks]


def alpha(units):
    """Krippendorff's alpha for numbers, of units, lists of what different people gave to one and
    the same thing; nan if nobody gave anything twice, or all gave the same. [K]"""
    units = [np.array(unit, dtype=float) for unit in units if len(unit) > 1]
    if not units:
        return math.nan
    values = np.concatenate(units)
    # of n numbers the squared differences, over all ordered pairs, sum to 2 n^2 variance
    observed = sum(2 * len(unit) ** 2 * unit.var() / (len(unit) - 1) for unit in units)
    expected = 2 * len(values) ** 2 * values.var() / (len(values) - 1)
    return float(1 - observed / expected) if expected else math.nan


def pairs_of(record):
    """Which response of a record somebody judged better: {(i, j), ...}, i better than j."""
    return set(to_ranking("", record).pairs)


def agreed(ours, theirs):
    """(agreed, both): of the pairs on which both have a preference, on how many it is the same."""
    both = {pair for pair in ours if pair in theirs or pair[::-1] in theirs}
    return len(both & theirs), len(both)


def rubric_agreement(records, keys):
    """(share, pairs): how often rankings of the sandbox's tasks order two responses as its rubric
    does, which has an answer key for each task."""
    good = n = 0
    for record, key in zip(records, keys):
        prompt = Prompt(record["prompt"], record.get("use_case", ""), key)
        score = [sandbox.judge(prompt, text).score for text in record["responses"]]
        gold = {(i, j) for i in range(len(score)) for j in range(len(score)) if score[i] > score[j]}
        same, both = agreed(pairs_of(record), gold)
        good, n = good + same, n + both
    return good / max(1, n), n


# ---- the report ---------------------------------------------------------------------------------

def between_labelers(records):
    """How far labelers agree who ranked the same responses -> figures."""
    of_task = defaultdict(list)
    for record in records:
        of_task[record["task"]].append(record)
    counts, units = [], []
    for same in of_task.values():
        for one, other in itertools.combinations(same, 2):
            counts.append(agreed(pairs_of(one), pairs_of(other)))
        units += zip(*(places(record["ranks"]) for record in same))
    share, low, high = share_of_pairs(counts)
    return {"agreement": share, "low": low, "high": high, "pairs": sum(n for _, n in counts),
            "tasks": sum(len(same) > 1 for same in of_task.values()), "alpha": alpha(units)}


def pair_votes(records):
    """What labelers say of each pair of outputs -> the votes of statistics.reliability."""
    votes = []
    for record in records:
        for i, j in pairs_of(record):
            votes.append((record["labeler"], (record["task"], min(i, j), max(i, j)),
                          1 if i < j else -1))
    return votes


def of_labeler(records, gold):
    """How one labeler ranked -> figures. gold: {task: pairs of the owner's ranking}."""
    with_gold, first = [], []
    for record in records:
        pairs, order = pairs_of(record), record["order"]
        with_gold.append(agreed(pairs, gold.get(record["task"], set())))
        # how often what stood first on the screen is the better one
        first.append((sum(order.index(i) < order.index(j) for i, j in pairs), len(pairs)))
    ties = [1 - len(pairs_of(r)) / math.comb(len(r["responses"]), 2) for r in records]
    share, low, high = share_of_pairs(with_gold)
    earlier, early_low, early_high = share_of_pairs(first)
    return {"ties": float(np.mean(ties)),
            "median seconds": float(np.median([r["seconds"] for r in records])),
            "prefers what it saw first": earlier, "first low": early_low, "first high": early_high,
            "gold pairs": sum(n for _, n in with_gold),
            "agrees with gold": share, "gold low": low, "gold high": high}


def of_outputs(rankings):
    """What marks and flags the outputs got -> {"outputs": ..., "mean mark": ..., flag: share}."""
    marks = [mark for r in rankings for mark in r["ratings"] if mark]
    flags = Counter(flag for r in rankings for of in r["flags"] for flag in of)
    n = sum(len(r["responses"]) for r in rankings)
    shares = {flag: times / n for flag, times in flags.most_common()}
    return {"outputs": n, "mean mark": float(np.mean(marks)) if marks else math.nan} | shares


def of_votes(votes):
    """Who wins -> {system: {"win rate": ..., "low": ..., "high": ..., "votes": ..., "bad": ...}},
    ties half; "rating" by Bradley and Terry, the mean at 0."""
    # in a chat with one model both answers are its own
    votes = [v for v in votes if len(set(v["systems"])) == 2]
    systems = sorted({name for v in votes for name in v["systems"]})
    wins = np.zeros((len(systems), len(systems)))
    found = {name: Counter() for name in systems}
    for v in votes:
        a, b = (systems.index(name) for name in v["systems"])
        ranks = v["ranks"]
        points = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
        wins[a, b] += points
        wins[b, a] += 1 - points
        for name, won in zip(v["systems"], (points, 1 - points)):
            found[name]["votes"] += 1
            found[name]["won"] += won
            found[name]["bad"] += v["both_bad"]
    strength = bradley_terry(wins)
    report = {}
    for i, name in enumerate(systems):
        rate, low, high = wilson(found[name]["won"], found[name]["votes"])
        report[name] = {"win rate": rate, "low": low, "high": high,
                        "rating": ELO * float(strength[i]),
                        "votes": found[name]["votes"], "both bad": found[name]["bad"]}
    return report


def load_gold(files, strict=False):
    """Rankings of the owner's own, as records. Raises ValueError."""
    if not files:
        return []
    # that they are rankings; then as they stand in the file
    interop.load("rankings", files, Counter(), flag="--gold", strict=strict)
    found = interop.load("tasks", files, Counter(), flag="--gold", strict=strict)
    return [r for r in found if r.get("ranks")]


def gold_pairs(files):
    """{task: pairs of the owner's ranking} of the --gold files."""
    return {task_id(r): pairs_of(r) for r in load_gold(files)}


def make(folder, gold_files=()):
    """What people did in a folder -> figures, a dictionary. Raises ValueError if they did
    nothing."""
    records = {name: read(os.path.join(folder, f"{name}.jsonl"), name)[0] for name in FILES}
    if not any(records.values()):
        raise ValueError(f"{folder} holds nothing that people did: `python page.py rank "
                         f"tasks.jsonl --out {folder}` lets them")
    gold, labelers = gold_pairs(gold_files), defaultdict(lambda: dict.fromkeys(FILES, 0))
    for name, found in records.items():
        for record in found:
            labelers[record["labeler"]][name] += 1
    for name, figures in labelers.items():
        own = [r for r in records["rankings"] if r["labeler"] == name]
        figures |= of_labeler(own, gold) if own else {}
    rankings = records["rankings"]
    for name, share in reliability(pair_votes(rankings)).items():
        labelers[name]["reliability"] = share
    return {"records": {name: len(found) for name, found in records.items()},
            "gold rankings": sum(r["gold"] for r in rankings),
            "between labelers": between_labelers(rankings + records["votes"]),
            "labelers": labelers, "outputs": of_outputs(rankings),
            "systems": of_votes(records["votes"]),
            "skipped": Counter(r["reason"] for r in records["skips"])}


def percent(share):
    return f"{share:.0%}".replace("%", " %")


def share(p, low, high):
    """ "73 % (65 % to 80 %)", or a dash where there is nothing to count."""
    return "–" if math.isnan(p) else f"{percent(p)} ({percent(low)} to {percent(high)})"


def without_nan(x):
    """Nested dictionaries and numbers as JSON has them."""
    if isinstance(x, dict):
        return {k: without_nan(v) for k, v in x.items()}
    return None if isinstance(x, float) and math.isnan(x) else x


def labeler_row(name, f):
    name = name.replace("|", "\\|")
    counts = " | ".join(f"{f[x]:,}" for x in FILES)
    if not f["rankings"]:
        return f"| {name} | {counts} | | | | | | |"
    first = share(f["prefers what it saw first"], f["first low"], f["first high"])
    gold = share(f["agrees with gold"], f["gold low"], f["gold high"])
    overlap = percent(f["reliability"]) if "reliability" in f else "–"
    below = "below 75 %" if f["gold pairs"] and f["agrees with gold"] < PASSED else ""
    return (f"| {name} | {counts} | {f['median seconds']:.0f} | {percent(f['ties'])} | {first} | "
            f"{gold} | {overlap} | {below} |")


def sentences(figures):
    """What is not a table."""
    done = ", ".join(f"{n:,} {name}" for name, n in figures["records"].items() if n)
    yield f"{done}. Intervals are 95 %, from the spread between tasks."
    among = figures["between labelers"]
    if among["pairs"]:
        agreement = share(among["agreement"], among["low"], among["high"])
        yield (f"{among['tasks']:,} tasks were done by more than one. Two labelers agree on "
               f"{agreement} of {among['pairs']:,} pairs of outputs on which both have a "
               f"preference; Krippendorff's alpha of the places, with ties, is "
               f"{among['alpha']:.2f}.")
    if figures["gold rankings"] and not any(f.get("gold pairs") for f in
                                            figures["labelers"].values()):
        yield (f"{figures['gold rankings']:,} rankings are of gold tasks: `--gold FILE` says how "
               f"often labelers agree with them.")
    outputs = dict(figures["outputs"])
    n, mark = outputs.pop("outputs"), outputs.pop("mean mark")
    if n:
        flags = ", ".join(f"{flag} {percent(share)}" for flag, share in outputs.items())
        yield f"{n:,} outputs were marked, {mark:.1f} of 7 on average; flags: {flags or 'none'}."
    if figures["skipped"]:
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in
                            sorted(figures["skipped"].items(), key=lambda item: -item[1])[:5])
        yield f"Skipped: {reasons}."


def markdown(figures):
    """The figures as a page."""
    lines = ["# What people did", "", "\n\n".join(sentences(figures)), ""]
    columns = ["labeler", *FILES, "median seconds", "ties", "prefers what it saw first",
               "agrees with gold", "right, by the overlap", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [labeler_row(name, f) for name, f in figures["labelers"].items()]
    if figures["systems"]:
        lines += ["", "Votes are over answers that differ.", "",
                  "| system | preferred, ties half | rating | votes | both bad |",
                  "|---|---|---|---|---|"]
    for name, f in sorted(figures["systems"].items(), key=lambda item: -item[1]["rating"]):
        lines.append(f"| {name} | {share(f['win rate'], f['low'], f['high'])} | "
                     f"{f['rating']:+.0f} | {f['votes']:,} | {f['both bad']:,} |")
    return "\n".join(lines) + "\n"


def write(folder, gold_files=()):
    """Print the report, and write it into the folder: report.md, report.json, and ratings.jsonl,
    the marks without the ranks, of which sft.py --rated takes the 7s."""
    figures = make(folder, gold_files)
    text = markdown(figures)
    rated = [{x: r.get(x, "") for x in ("prompt", "responses", "ratings", "labeler", "use_case")}
             for r in read(os.path.join(folder, "rankings.jsonl"), "rankings")[0]
             if any(r["ratings"])]
    results.replace_file(os.path.join(folder, "report.md"), lambda f: f.write(text))
    results.replace_file(os.path.join(folder, "report.json"),
                         lambda f: json.dump(without_nan(figures), f, indent=1))
    results.write_jsonl(os.path.join(folder, "ratings.jsonl"), rated)
    print(text, end="")
    return figures
