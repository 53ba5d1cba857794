"""What a newcomer should see of a report, in ten lines: who wins, and three prompts."""
import json
import os

import interop
from plumbing import cli

WIDTH = 100             # columns
EXAMPLES = 3            # each of two lines


def last_but(items, one):
    """The last of the items that is not this one, which it is if there are no others."""
    return next((x for x in reversed(items) if x is not one), one)


def shortened(text, room=WIDTH, end=True):
    """Strangers' text on one line of at most `room` columns: its beginning, or its end."""
    text = cli.visible(" ".join(text.split()))
    if len(text) <= room:
        return text
    return text[:room - 3] + "..." if end else "..." + text[3 - room:]


def side_by_side(texts):
    """Texts on one line, of which the longest are shortened."""
    texts = [shortened(text) for text in texts]
    room, width = WIDTH - 2 - len(" | ") * (len(texts) - 1), WIDTH
    while sum(min(len(text), width) for text in texts) > room:
        width -= 1
    return "  " + " | ".join(shortened(text, width) for text in texts)


def figures_lines(systems, baseline, last):
    """Two lines: who is preferred to the baseline, and the scores. systems: {name: figures}, the
    important ones first."""
    new = systems[last]
    rivals = {name: s for name, s in systems.items() if name not in (baseline, last)}
    shares = ", ".join(f"{new[how]:.0%} {how}" for how in ("won", "tied", "lost"))
    wins = [f"{last} {new['win_rate']:.0%} ({shares})"]
    wins += [f"{name} {s['win_rate']:.0%}" for name, s in rivals.items()]
    if "true_score" in new:
        scores = [f"{name} {s['true_score']:.1f}, {s['hallucination']:.0%}"
                  for name, s in systems.items()]
        title = "True score, made up"
    else:
        scores = [f"{name} {s['rm_score']:.1f}" for name, s in systems.items()]
        title = "Score of the reward model"
    return [f"Preferred to {baseline}, ties half: {'; '.join(wins)}",
            f"{title}: {'; '.join(scores)}"]


def why(chosen, shown, last, baseline):
    """Why just these prompts are shown: nobody is to take them for typical."""
    if not chosen:
        return "The first prompts"
    which = "These prompts are" if chosen == shown else f"{chosen} of {shown} prompts"
    return f"{which} chosen because {last} is right and {baseline} is not"


def ten_lines(report, page):
    """What the content of report.json tells, in at most ten lines; `page` is where all of it
    stands."""
    by_name, baseline = {s["name"]: s for s in report["systems"]}, report["baseline"]
    names = list(by_name)
    last = last_but(names, baseline)
    shown = list(dict.fromkeys([names[0], baseline, last]))
    systems = {name: by_name[name] for name in dict.fromkeys([*shown, *names])}
    chosen = report["chosen"][:EXAMPLES]
    cases = [x["use_case"] for x in chosen]
    examples = chosen + [x for x in report["examples"] if x["use_case"] not in cases]
    examples = examples[:EXAMPLES]
    lines = figures_lines(systems, baseline, last)
    lines.append(f"{why(len(chosen), len(examples), last, baseline)}; {' | '.join(shown)} say:")
    lines = [shortened(line) for line in lines]
    for x in examples:
        lines.append(shortened(x["prompt"], end=False))
        lines.append(side_by_side([x["answers"][name] for name in shown]))
    return [*lines, shortened(f"All of it: {page}", end=False)]


def main():
    parser = cli.Parser(prog="python -m evidence.report", description=__doc__)
    parser.add_argument("folder", help="what evaluate.py has written")
    args = parser.parse_args()
    with cli.told():
        path = os.path.join(args.folder, "report.json")
        text = interop.read_file(path)
        try:
            lines = ten_lines(json.loads(text), os.path.join(args.folder, "report.md"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(f"{path} is no report.json of this evaluate.py: run it "
                             f"again") from e
        print("\n".join(lines))
