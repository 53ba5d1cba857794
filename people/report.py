"""What people did, in numbers: who agrees with whom, how long it takes, who wins.

[IG] Ouyang et al. 2022, arXiv 2203.02155, B.1 and B.2
[K] Krippendorff, Content Analysis, 2004, ch. 11: alpha = 1 - observed / expected disagreement
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
from evidence.statistics import ELO, bradley_terry
from interop.records import to_ranking
from people.store import FILES, task_id
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
    return p, middle - half, middle + half


def alpha(units):
    """Krippendorff's alpha for ordinal values, of units, lists of what different people gave to one
    and the same thing; nan if nobody gave anything twice, or all gave the same. [K]"""
    units = [unit for unit in units if len(unit) > 1]
    counts = Counter(itertools.chain.from_iterable(units))
    values = sorted(counts)
    n = [counts[v] for v in values]
    # the distance of two ranks counts what lies between them
    ahead = np.cumsum(n) - np.array(n) / 2
    place = dict(zip(values, ahead))
    total = sum(n)
    observed = sum((place[a] - place[b]) ** 2 / (len(unit) - 1)
                   for unit in units for a, b in itertools.permutations(unit, 2))
    expected = sum(n[i] * n[j] * (ahead[i] - ahead[j]) ** 2
                   for i in range(len(n)) for j in range(len(n)))
    return 1 - (total - 1) * observed / expected if expected else math.nan


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
    good = n = 0
    units = []
    for same in of_task.values():
        for one, other in itertools.combinations(same, 2):
            hits, both = agreed(pairs_of(one), pairs_of(other))
            good, n = good + hits, n + both
        units += [list(ranks) for ranks in zip(*(record["ranks"] for record in same))]
    share, low, high = wilson(good, n)
    return {"agreement": share, "low": low, "high": high, "pairs": n, "alpha": alpha(units)}


def of_labeler(records, gold):
    """What one labeler did -> figures. gold: {task: pairs of the owner's ranking}."""
    good = n = first = decided = 0
    for record in records:
        hits, both = agreed(pairs_of(record), gold.get(record["task"], set()))
        good, n = good + hits, n + both
        for better, worse in pairs_of(record):
            # the place on the screen of each of the two
            first += record["order"].index(better) < record["order"].index(worse)
            decided += 1
    ties = [1 - len(pairs_of(r)) / math.comb(len(r["responses"]), 2) for r in records]
    share, low, high = wilson(good, n)
    earlier, early_low, early_high = wilson(first, decided)
    return {"tasks": len(records), "ties": float(np.mean(ties)),
            "median seconds": float(np.median([r["seconds"] for r in records])),
            "prefers what it saw first": earlier, "first low": early_low, "first high": early_high,
            "gold pairs": n, "agrees with gold": share, "gold low": low, "gold high": high}


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


def read(path):
    """The records of one of the store's files, none if it is not there. Raises ValueError."""
    if not os.path.exists(path):
        return []
    records = []
    for n, line in enumerate(interop.read_file(path).split("\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as e:
            raise ValueError(f"{path}, line {n} is not JSON: mend or remove it") from e
    return records


def gold_pairs(files):
    """{task: pairs of the owner's ranking} of the --gold files."""
    found = interop.load("tasks", files, Counter(), flag="--gold") if files else []
    return {task_id(r): pairs_of(r) for r in found}


def make(folder, gold_files=()):
    """What people did in a folder -> figures, a dictionary. Raises ValueError if they did
    nothing."""
    records = {name: read(os.path.join(folder, f"{name}.jsonl")) for name in FILES}
    if not any(records.values()):
        raise ValueError(f"{folder} holds nothing that people did: `python page.py rank "
                         f"tasks.jsonl --out {folder}` lets them")
    gold, by_labeler = gold_pairs(gold_files), defaultdict(list)
    for record in records["rankings"]:
        by_labeler[record["labeler"]].append(record)
    return {"records": {name: len(found) for name, found in records.items()},
            "between labelers": between_labelers(records["rankings"]),
            "labelers": {name: of_labeler(found, gold) for name, found in by_labeler.items()},
            "systems": of_votes(records["votes"]),
            "skipped": Counter(r["reason"] for r in records["skips"])}


def share(p, low, high):
    """ "73 % (65 to 80)", or a dash where there is nothing to count."""
    return "–" if math.isnan(p) else f"{p:.0%} ({low:.0%} to {high:.0%})".replace("%", " %")


def markdown(figures):
    """The figures as a page."""
    done = ", ".join(f"{n:,} {name}" for name, n in figures["records"].items() if n)
    lines = ["# What people did", "", f"{done}. Intervals are 95 %.", ""]
    among = figures["between labelers"]
    if among["pairs"]:
        agreement = share(among["agreement"], among["low"], among["high"])
        lines.append(f"Two labelers agree on {agreement} of {among['pairs']:,} pairs of outputs on "
                     f"which both have a preference; Krippendorff's alpha, with ties, is "
                     f"{among['alpha']:.2f}.\n")
    if figures["labelers"]:
        lines.append("| labeler | tasks | median seconds | ties | prefers what it saw first | "
                     "agrees with gold | |\n|---|---|---|---|---|---|---|")
    for name, f in figures["labelers"].items():
        first = share(f["prefers what it saw first"], f["first low"], f["first high"])
        gold = share(f["agrees with gold"], f["gold low"], f["gold high"])
        below = "below 75 %" if f["gold pairs"] and f["agrees with gold"] < PASSED else ""
        lines.append(f"| {name} | {f['tasks']:,} | {f['median seconds']:.0f} | {f['ties']:.0%} | "
                     f"{first} | {gold} | {below} |")
    if figures["systems"]:
        lines += ["", "| system | preferred, ties half | rating | votes | both bad |",
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
    rated = [{x: r[x] for x in ("prompt", "responses", "ratings", "labeler", "use_case")}
             for r in read(os.path.join(folder, "rankings.jsonl")) if any(r["ratings"])]
    results.replace_file(os.path.join(folder, "report.md"), lambda f: f.write(text))
    results.replace_file(os.path.join(folder, "report.json"),
                         lambda f: json.dump(figures, f, indent=1))
    results.write_jsonl(os.path.join(folder, "ratings.jsonl"), rated)
    print(text, end="")
    return figures
