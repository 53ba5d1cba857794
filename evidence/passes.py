"""The report of codex.evaluate: pass@k of each model, how often one sample passes that is chosen of
all by its log-probability ([Codex] 3.3), and which of the paper's mechanisms appear.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
from collections import Counter

from codex.passk import mean_pass_at_k


def by_problem(samples):
    """{problem: its samples}, but for those that could not be run."""
    groups = {}
    for s in samples:
        if s["verdict"] != "infrastructure":
            groups.setdefault(s["problem"], []).append(s)
    return groups


def chosen(groups, key):
    """Whether the sample of the highest key passes, the first of such, of each group -> list."""
    return [max(group, key=key)["verdict"] == "pass" for group in groups.values()]


def figures(samples, ks):
    """What samples of one model at one temperature say, dictionaries of samples.jsonl -> {"pass@k":
    (mean, half-width of its 95 % interval, problems), ..., "chosen by ...": the same}; a mean or a
    half-width is None where there is too little."""
    groups = by_problem(samples)
    counts = [(len(g), sum(s["verdict"] == "pass" for s in g)) for g in groups.values()]
    found = {f"pass@{k}": mean_pass_at_k(counts, k) for k in ks}
    for name, key in (("mean", lambda s: s["logp"] / s["tokens"]), ("sum", lambda s: s["logp"])):
        counts = [(1, right) for right in chosen(groups, key)]
        found[f"chosen by {name} log p"] = mean_pass_at_k(counts, 1)
    return found


def report(samples, ks):
    """Lists of samples, each of one model at one temperature -> what report.json says of them."""
    rows = [{"model": own[0]["model"], "temperature": own[0]["temperature"],
             "figures": figures(own, ks)} for own in samples]
    verdicts = Counter(s["verdict"] for own in samples for s in own)
    return {"rows": rows, "verdicts": verdicts}


def mechanisms(rows):
    """What the paper saw, and whether these rows show it -> [(sentence, figures, bool), ...]; what
    has no figure is left out."""
    many = [name for name in rows[0]["figures"] if name.startswith("pass@")][-1]
    found, first = [], {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["temperature"]: {name: 100 * mean for name, (mean, *_) in row["figures"].items()
                                    if mean is not None}
               for row in rows if row["model"] == model}
        if not all({"pass@1", many} <= of.keys() for of in own.values()):
            continue
        best = {what: max(own, key=lambda t: own[t][what]) for what in ("pass@1", many)}
        value = {what: own[t][what] for what, t in best.items()}
        if len(own) > 1 and len(best) > 1:
            found.append((f"{model}: many samples want a higher temperature (Fig. 5)",
                          f"{best['pass@1']} for pass@1, {best[many]} for {many}",
                          best["pass@1"] < best[many]))
        one, mean, total = (own[max(own)][what] for what in
                            ("pass@1", "chosen by mean log p", "chosen by sum log p"))
        chosen = f"{one:.1f}, {mean:.1f}, {total:.1f} at temperature {max(own)}"
        what = "at random, by mean and by sum of log p: mean is better, sum is not (Fig. 7)"
        found.append((f"{model}: chosen {what}", chosen, mean > one >= total))
        for what, was in first.items():
            found.append((f"{model}: {what} is higher than the first model's",
                          f"{was:.1f} -> {value[what]:.1f}", value[what] > was))
        first = first or value
    return found


def as_text(figure, problems):
    """(mean, half-width, problems) in per cent; of how many problems, if not of all."""
    mean, half, n = figure
    if mean is None:
        return "-"
    interval = f" ± {100 * half:.1f}" if half is not None else ""
    return f"{100 * mean:.1f}{interval}{f' (of {n})' if n < problems else ''}"


def page(report):
    """The report as Markdown."""
    first = report["rows"][0]["figures"]
    about = (f"{report['problems']} problems, {report['n']} samples of each; mean and 95 % "
             "interval over problems, per cent")
    lines = ["# pass@k", "", about, "",
             f"| model | temperature | {' | '.join(first)} |", "|---" * (2 + len(first)) + "|"]
    for row in report["rows"]:
        cells = [as_text(figure, report["problems"]) for figure in row["figures"].values()]
        lines.append(f"| {row['model']} | {row['temperature']} | {' | '.join(cells)} |")
    verdicts = ", ".join(f"{n:,} {name}" for name, n in sorted(report["verdicts"].items()))
    seen = "What [Codex] saw; whether it is seen here, in figures that have the intervals above:"
    lines += ["", f"Verdicts: {verdicts}.", "", seen, ""]
    for what, said, is_seen in mechanisms(report["rows"]):
        lines.append(f"- {'yes' if is_seen else 'no'}: {what}: {said}")
    return "\n".join([*lines, ""])
