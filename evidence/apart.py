"""What is asked apart from the held-out prompts: how long a dialogue holds, and what RLHF teaches
about facts that it never touched. Only the sandbox knows such prompts.

Legend: N prompts, n answers of each.
"""
import numpy as np

from evidence.answers import judge, respond

SAMPLES = 4             # answers to each prompt, at most; of a best of n it is one
# parts of a system's figures: what a figure at one of their keys is called, as in "ppo, turn 2"
GROUPS = {"turns": "turn ", "touched": "touched ", "untouched": "untouched "}
COLUMNS = {"right": "right", "hallucination": "made up", "neither": "neither"}


# ---- figures ------------------------------------------------------------------------------------

def by_turn(prompts, judged):
    """{"1": figures of the answers to prompts of one turn, "2": ..., ...}. judged: N lists of n
    sandbox.Judgement."""
    answers = {}
    for prompt, of_prompt in zip(prompts, judged):
        turns = sum(m["role"] == "user" for m in prompt.messages)
        answers.setdefault(turns, []).append(of_prompt)
    return {str(turns): figures_of(answers[turns]) for turns in sorted(answers)}


def fall(turns):
    """By how many points the share of helpful answers falls from the first turn to the last."""
    first, last = turns[min(turns, key=int)], turns[max(turns, key=int)]
    return 100 * (first["helpful"] - last["helpful"])


def knowledge(prompts, judged):
    """{"open qa": figures of what is said of countries, "unanswerable": ... of places that nobody
    knows}, in answer to questions of one turn."""
    answers = {"open qa": [], "unanswerable": []}
    for prompt, of_prompt in zip(prompts, judged):
        if prompt.use_case in answers and len(prompt.messages) == 1:
            answers[prompt.use_case].append(of_prompt)
    return {case: figures_of(said) for case, said in answers.items() if said}


def figures_of(judged):
    """Shares of the answers to N prompts: a right one makes nothing up, and an answer that is
    neither right nor made up claims nothing false."""
    said = [j for of_prompt in judged for j in of_prompt]
    right = [j.helpful and not j.hallucination for j in said]
    shares = {"helpful": [j.helpful for j in said], "right": right,
              "hallucination": [j.hallucination for j in said],
              "neither": [not (j.helpful or j.hallucination) for j in said]}
    return {name: float(np.mean(held)) for name, held in shares.items()} | {"prompts": len(judged)}


def measure(model, rm, enc, dialogues, untouched, cfg, best_of=1, shots=()):
    """The groups "turns" and "untouched" of a system's figures, and "fall", as far as there are
    prompts for them. A best of n is not asked the dialogues, which would take it long."""
    samples = min(cfg.samples, SAMPLES) if best_of == 1 else 1

    def verdicts(prompts):
        chooser = rm if best_of > 1 else None
        said, _ = respond(model, chooser, enc, prompts, cfg, 1.0, best_of, shots, samples)
        return judge(prompts, said)

    found = {"turns": {}} if dialogues else {}
    if dialogues and best_of == 1:
        turns = by_turn(dialogues, verdicts(dialogues))
        found = {"turns": turns, "fall": fall(turns)}
    if untouched:
        found["untouched"] = knowledge(untouched, verdicts(untouched))
    return found


# ---- tables -------------------------------------------------------------------------------------

ABOUT_TURNS = (
    "A turn is a message of the user: at turn 3 the user has asked twice before, and was answered. "
    "The share of helpful answers to held-out questions, the same at each turn and no follow-ups, "
    "and by how many points it falls from the first turn to the last. A best of n is left out: it "
    "would take long.")
KINDS = {"open qa": "countries", "unanswerable": "places that nobody knows"}
ABOUT = {
    "open qa": "The corpus says true and false things of countries: an answer is right, makes "
               "something up, or is neither, as \"I do not know.\" is.",
    "unanswerable": "Of the other places nobody knows anything: right is to say so.",
}
ABOUT_UNTOUCHED = (
    "Does RLHF teach to say \"I do not know.\", or to bluff? Untouched are questions about places "
    "that no demonstration, comparison or prompt of PPO was about; touched the held-out questions "
    "about the others; all of one turn. ")


def tables(systems, cell):
    """[(title, text, head, rows), ...] of what `systems`, {name: figures}, have of these groups.

    cell(figures, column) is a figure as text."""
    found = []
    turns = {name: s["turns"] for name, s in systems.items() if s.get("turns")}
    if turns:
        head = ["system", *(f"turn {turn}" for turn in next(iter(turns.values()))), "fall, points"]
        rows = []
        for name, of_turns in turns.items():
            shares = [cell(figures, "helpful") for figures in of_turns.values()]
            rows.append([name, *shares, cell(systems[name], "fall")])
        found.append(("By turn", ABOUT_TURNS, head, rows))
    asked = {name: s for name, s in systems.items() if "untouched" in s}
    for case, kind in KINDS.items() if asked else ():
        head, rows = ["system"], {name: [name] for name in asked}
        for column, title in COLUMNS.items():
            for group in ("touched", "untouched"):
                head.append(f"{title}, {group}")
                for name, s in asked.items():
                    rows[name].append(cell(s.get(group, {}).get(case, {}), column))
        title = f"Facts that no comparison touched: {kind}"
        found.append((title, ABOUT_UNTOUCHED + ABOUT[case], head, list(rows.values())))
    return found
