"""What is asked apart: shares by turn and of what nobody touched, by hand; who is asked what."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import interop
import sandbox
from evidence import apart
from model import GPT, GPTConfig, Scorer

ENC = interop.get_tokenizer("sandbox")
RIGHT = sandbox.Judgement(True, False, True, False, 0)
WRONG = sandbox.Judgement(False, True, True, False, 0)
BOTH = sandbox.Judgement(True, True, True, False, 0)  # a right sentence, and one made up
SILENT = sandbox.Judgement(False, False, True, False, 0)


def dialogue(turns, use_case="chat", text="Hello."):
    asked, said = {"role": "user", "content": text}, {"role": "assistant", "content": "Hi."}
    return data.Prompt([*[asked, said] * (turns - 1), asked], use_case, {"answers": ["Hi."]})


# ---- figures


def test_shares_of_one_prompt_by_hand():
    found = apart.figures_of([[RIGHT, RIGHT, WRONG], [BOTH, SILENT, WRONG]])
    assert found == pytest.approx(
        {"helpful": 3 / 6, "right": 2 / 6, "hallucination": 3 / 6, "neither": 1 / 6, "prompts": 2}
    )
    assert found["right"] + found["hallucination"] + found["neither"] == pytest.approx(1)


def test_the_share_of_helpful_answers_by_turn_and_its_fall():
    prompts = [dialogue(turns) for turns in (3, 1, 2, 1)]
    judged = [[WRONG, RIGHT], [RIGHT, RIGHT], [SILENT, WRONG], [BOTH, WRONG]]
    found = apart.by_turn(prompts, judged)
    assert {turn: f["helpful"] for turn, f in found.items()} == {"1": 0.75, "2": 0, "3": 0.5}
    assert list(found) == ["1", "2", "3"] and found["1"]["prompts"] == 2
    assert apart.fall(found) == pytest.approx(25)
    many = {str(t): {"helpful": t / 20} for t in (2, 10, 9)}
    assert apart.fall(many) == pytest.approx(-40)


def test_knowledge_is_of_questions_of_one_turn():
    asked = [("open qa", 1), ("open qa", 1), ("unanswerable", 1), ("open qa", 2), ("chat", 1)]
    prompts = [dialogue(turns, case, f"{case}?") for case, turns in asked]
    judged = [[RIGHT, SILENT], [WRONG, BOTH], [RIGHT, WRONG], [WRONG, WRONG], [WRONG, WRONG]]
    found = apart.knowledge(prompts, judged)
    assert found.keys() == {"open qa", "unanswerable"}
    countries, unknown = found["open qa"], found["unanswerable"]
    assert [countries[c] for c in apart.COLUMNS] == [0.25, 0.5, 0.25]
    assert [unknown[c] for c in apart.COLUMNS] == [0.5, 0.5, 0]
    assert countries["prompts"] == 2
    assert apart.knowledge(prompts[4:], judged[4:]) == {}


# ---- who is asked


def tiny(kind):
    torch.manual_seed(0)
    model = kind(GPTConfig(ENC.n_vocab, 160, 1, 2, 16)).eval()
    trunk = model if kind is GPT else model.trunk
    torch.nn.init.normal_(trunk.wte.weight, 0.0, 0.3)
    return model


@pytest.fixture
def asked(monkeypatch):
    """What `respond` was asked: [(prompts, reward model, best_of, samples), ...]."""
    seen, real = [], apart.respond

    def respond(model, rm, enc, prompts, cfg, temperature, best_of, shots, samples):
        seen.append((prompts, rm, best_of, samples))
        return real(model, rm, enc, prompts, cfg, temperature, best_of, shots, samples)

    monkeypatch.setattr(apart, "respond", respond)
    return seen


def test_every_system_is_asked_what_there_is(asked):
    model, rm = tiny(GPT), tiny(Scorer)
    dialogues, untouched = sandbox.dialogue_prompts(6, 0), sandbox.untouched_prompts(8, 0)
    cfg = SimpleNamespace(samples=8, max_new=4, batch=100, seed=0)
    found = apart.measure(model, rm, ENC, dialogues, untouched, cfg)
    assert asked == [(dialogues, None, 1, 4), (untouched, None, 1, 4)]
    assert list(found["turns"]) == list("123456") and found["fall"] == apart.fall(found["turns"])
    assert sum(f["prompts"] for f in found["untouched"].values()) == 8
    asked.clear()
    best = apart.measure(model, rm, ENC, dialogues, untouched, cfg, best_of=3)
    assert asked == [(untouched, rm, 3, 1)] and best["turns"] == {} and "fall" not in best
    few = SimpleNamespace(**{**vars(cfg), "samples": 2})
    assert apart.measure(model, rm, ENC, [], [], cfg) == {}
    asked.clear()
    assert apart.measure(model, rm, ENC, [], untouched, few).keys() == {"untouched"}
    assert asked[0][3] == 2


def test_the_answers_are_judged(monkeypatch):
    """A model that says the same whatever it is asked, which is right at places nobody knows."""
    said = [SimpleNamespace(text=sandbox.DO_NOT_KNOW)]
    monkeypatch.setattr(
        apart, "respond", lambda model, rm, enc, prompts, *how: ([said] * len(prompts), None)
    )
    cfg = SimpleNamespace(samples=1)
    prompts = sandbox.untouched_prompts(60, 0)
    found = apart.measure(None, None, ENC, [], prompts, cfg)["untouched"]
    assert [found["unanswerable"][c] for c in apart.COLUMNS] == [1, 0, 0]
    assert [found["open qa"][c] for c in apart.COLUMNS] == [0, 0, 1]
    unknown = [p for p in prompts if p.use_case == "unanswerable"]
    assert found["unanswerable"]["prompts"] == len(unknown) > 10


# ---- tables


def cell(figures, column):
    return str(figures.get(column, ""))


def test_a_system_without_an_answer_has_an_empty_cell():
    """Few prompts may hold no question of a kind."""
    figures = {"helpful": 0.5, "right": 1, "hallucination": 2, "neither": 3}
    systems = {
        "ppo": {"touched": {}, "untouched": {"open qa": figures}, "turns": {}},
        "own": {"use_cases": {}},
    }
    (title, text, head, rows), (other, *_, empty) = apart.tables(systems, cell)
    assert title.endswith(": countries") and "Untouched are" in text
    assert rows == [["ppo", "", "1", "", "2", "", "3"]] and len(head) == 7
    assert other.endswith("nobody knows") and empty == [["ppo", *[""] * 6]]
    assert apart.tables({"own": {}}, cell) == []


def test_turns_stand_in_their_order():
    turns = {"1": {"helpful": 0.5}, "2": {"helpful": np.float64(0.25)}}
    [(title, text, head, rows)] = apart.tables({"ppo": {"turns": turns, "fall": 25}}, cell)
    assert title == "By turn" and "A turn is a message of the user" in text
    assert head == ["system", "turn 1", "turn 2", "fall, points"]
    assert rows == [["ppo", "0.5", "0.25", "25"]]
