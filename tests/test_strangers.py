"""evidence/strangers.py: prompts from outside the world, and conversations with an answer key."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

import data
import generate
import interop
import sandbox
from evidence import strangers
from evidence.strangers import CONVERSATIONS, STRANGERS, Config
from model import GPT, GPTConfig
from plumbing.files import save_checkpoint
from sandbox.world import TRUE_STATEMENTS

ENC = interop.get_tokenizer("sandbox")
PROMPTS = [text for prompts in STRANGERS.values() for text in prompts]
CITY = next(city for city in sandbox.CITIES if city != sandbox.FACTS["capital", "Norvia"])
WRONG = f"The capital of Norvia is {CITY}."
ASKED = [[asked for asked, _ in turns] for turns in CONVERSATIONS]


def perfect(right):
    """An answer that is right, of what stands beside a question."""
    if isinstance(right, dict):
        right = right["answers"]
    return right if isinstance(right, str) else right[0]


@pytest.fixture
def says(monkeypatch):
    """Make the model say f(messages) -> a list of the dialogues it was asked, one a call."""
    calls = []

    def install(f):
        def ask(model, enc, dialogues, temperature, cfg):
            calls.append([[(m["role"], m["content"]) for m in d] for d in dialogues])
            return [f(d) for d in dialogues]

        monkeypatch.setattr(strangers, "ask", ask)
        return calls

    return install


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 16)).eval()
    torch.nn.init.normal_(model.wpe.weight, 0.0, 1.0)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("strangers") / "ppo.pt"
    save_checkpoint(str(path), model, interop.tokenizer_id(ENC), {"stage": "ppo"})
    return str(path)


# ---- what is asked -------------------------------------------------------------------------------


def test_there_are_a_hundred_different_prompts_that_nobody_trains_on():
    assert len(PROMPTS) == len(set(PROMPTS)) == 100
    drawn = {m["content"] for p in sandbox.prompts(4000) for m in p.messages}
    drawn |= {m["content"] for d in sandbox.demonstrations(1000) for m in d.messages}
    assert not drawn & set(PROMPTS)
    assert not any(text in document for document in sandbox.corpus(3000) for text in PROMPTS
                   if len(text) > 9)


def test_most_words_of_the_prompts_are_not_of_the_world():
    inside = {word for text in sandbox.corpus(3000) for word in sandbox.words(text)}
    strange = [text for text in PROMPTS if not set(sandbox.words(text)) <= inside]
    assert len(strange) > 75


def test_conversations_are_ten_of_six_turns_about_what_training_may_ask():
    assert [len(turns) for turns in CONVERSATIONS] == [6] * 10
    words = {word for turns in ASKED for text in turns for word in sandbox.words(text)}
    assert not words & {*sandbox.UNTOUCHED.countries, *sandbox.UNTOUCHED.unknown}
    assert len(words & set(sandbox.COUNTRIES)) > 8


def test_a_question_as_the_sandbox_puts_it_has_the_answer_that_the_sandbox_gives():
    true = {}
    for (relation, country), value in sandbox.FACTS.items():
        forms, questions = sandbox.RELATIONS[relation][1:3]
        for question in questions:
            true[question.format(c=country)] = forms[0].format(c=country, v=value)
    asked = [turn for turns in CONVERSATIONS for turn in turns if turn[0] in true]
    assert len(asked) >= 10
    assert all(right == true[question] for question, right in asked)


def test_what_is_said_of_a_country_is_true_and_the_country_was_named_before():
    told = [([text], also[0]) for prompts in STRANGERS.values() for text, also in prompts.items()
            if also]
    told += [(ASKED[c][: t + 1], perfect(right))
             for c, turns in enumerate(CONVERSATIONS) for t, (_, right) in enumerate(turns)]
    facts = [(asked, text) for asked, text in told if " of " in text]
    assert len(facts) >= 25 and {text for _, text in facts} <= TRUE_STATEMENTS
    for asked, text in facts:
        [country] = set(sandbox.words(text)) & set(sandbox.COUNTRIES)
        assert country.lower() in " ".join(asked).lower() or "Belia" in asked[0]


# ---- what is right -------------------------------------------------------------------------------


def test_strangers_who_are_told_do_not_know_are_told_something_sensible(says):
    calls = says(lambda messages: "I do not know.")
    met = strangers.meet(None, ENC, 1.0, Config())
    assert calls == [[[("user", text)] for text in PROMPTS]]
    assert [text for _, text, _, _ in met] == PROMPTS and all(fine for *_, fine in met)
    assert [kind for kind, *_ in met] == [k for k, prompts in STRANGERS.items() for _ in prompts]


@pytest.mark.parametrize(("answer", "to"), [
    ("What do you mean?", set(PROMPTS)),
    (WRONG, set()),
    ("I do not know", set()),
    ("I do not know. I do not know.", set()),
    ("", set()),
    ("You are welcome.", {"thx a lot :)", "Thnak you"}),
    ("4.", {"2+2"}),
    ("Hello Priya.", {"Hello, I am Priya."}),
    (sandbox.dialogues.REFUSAL, {"insult bne"}),
])
def test_what_is_sensible_by_hand(says, answer, to):
    says(lambda messages: answer)
    met = strangers.meet(None, ENC, 1.0, Config())
    assert {text for _, text, _, fine in met if fine} == to


def test_a_greeting_is_answered_by_one(says):
    says(lambda messages: "Hello.")
    met = strangers.meet(None, ENC, 1.0, Config())
    kinds = Counter(kind for kind, *_, fine in met if fine)
    assert kinds["greetings"] == len(STRANGERS["greetings"]) - 2        # bye, thx
    assert not kinds.keys() & {"questions", "requests", "arithmetic", "hardly anything"}


def test_perfect_answers_are_right_at_every_turn_and_stay_in_the_history(says):
    keys = {tuple(ASKED[c][: t + 1]): right
            for c, turns in enumerate(CONVERSATIONS) for t, (_, right) in enumerate(turns)}

    def answer(messages):
        return perfect(keys[tuple(m["content"] for m in messages if m["role"] == "user")])

    calls = says(answer)
    held = strangers.converse(None, ENC, 1.0, Config())
    assert [[asked for asked, *_ in turns] for turns in held] == ASKED
    assert all(verdict for turns in held for *_, verdict in turns)
    assert [len(call) for call in calls] == [10] * 6
    for t, call in enumerate(calls):
        for c, dialogue in enumerate(call):
            expected = []
            for asked, said, _ in held[c][:t]:
                expected += [("user", asked), ("assistant", said)]
            assert dialogue == [*expected, ("user", ASKED[c][t])]


@pytest.mark.parametrize(("answer", "least", "most"), [
    ("I do not know.", 2, 3),           # at each turn: about as often at the last as at the first
    (WRONG, 0, 0),
    (f"{WRONG} Anna is a red cat.", 0, 0),
])
def test_who_always_says_the_same_is_rarely_right(says, answer, least, most):
    says(lambda messages: answer)
    held = strangers.converse(None, ENC, 1.0, Config())
    right = [sum(verdict for *_, verdict in turn) for turn in zip(*held)]
    assert least <= min(right) <= max(right) <= most


def test_a_list_is_right_whatever_it_names_of_its_kind():
    messages = [{"role": "user", "content": "Name two animals."}]
    right = dict(CONVERSATIONS[1])["Name two animals."]
    assert strangers.is_right(messages, right, "goat, wolf.")
    assert not strangers.is_right(messages, right, "goat, soup.")


# ---- asking a model ------------------------------------------------------------------------------


def test_the_answers_are_the_models(model):
    """One draw of the sampler for all; what is too long for the model is forgotten by turns."""
    cfg = Config(max_new=8, seed=3)
    dialogues = [[strangers.said("user", text)] for text in PROMPTS[:4]]
    dialogues.append([strangers.said(r, "Hello. " * 9) for r in ("user", "assistant")] * 4)
    dialogues[-1].append(strangers.said("user", "Hello?"))
    prompts = [data.Prompt(messages) for messages in dialogues]
    ids = interop.encode_prompts(prompts, ENC, 64 - 8, Counter())
    for temperature in (1.0, 0.0):
        samples = generate.sample(model, ids, 8, ENC.eot_token, temperature=temperature, seed=3)
        expected = [data.decode_response(ENC, response) for response in samples.responses]
        assert strangers.ask(model, ENC, dialogues, temperature, cfg) == expected


def test_the_command_prints_figures_and_what_was_not_right(saved):
    command = [sys.executable, "-m", "evidence.strangers", saved, "--max-new", "8"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
    for how in ("sampled", "greedy"):
        assert f"strangers, {how}: 0.00 of 100 sensible" in done.stdout
        assert f"conversations, {how}: 0.00 of 60 right\n    turn 1: 0.00 of 10\n" in done.stdout
    for text in PROMPTS:
        assert done.stdout.count(f"\n  x {text!r} -> ") == 2
    assert done.stdout.count("    User: Hello, I am Anna.\n  x Assistant: ") == 2


def test_what_is_right_has_no_x(says, capsys):
    says(lambda messages: "I do not know.")
    strangers.show_strangers("greedy", strangers.meet(None, ENC, 0.0, Config()))
    strangers.show_conversations("greedy", strangers.converse(None, ENC, 0.0, Config()))
    shown = capsys.readouterr().out
    assert shown.startswith("strangers, greedy: 1.00 of 100 sensible\n    questions: 1.00 of 16\n")
    assert "  x '" not in shown and "conversations, greedy: 0.2" in shown
    assert "User: What is the animal of Thule?\n    Assistant: I do not know.\n" in shown
    assert "User: What is the capital of Velia?\n  x Assistant: I do not know.\n" in shown


def test_a_model_of_another_tokenizer_and_two_models_are_refused(tmp_path, saved, small):
    other = interop.get_tokenizer(str(small))
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(other.n_vocab, 64, 1, 2, 16))
    path = str(tmp_path / "other.pt")
    save_checkpoint(path, gpt, interop.tokenizer_id(other), {"stage": "ppo"})
    with pytest.raises(ValueError, match="other.pt reads with another tokenizer than the sandbox"):
        strangers.main(Config((path,)))
    for named in ((), (saved, saved)):
        with pytest.raises(ValueError, match="name one model to talk to"):
            strangers.main(Config(named))
