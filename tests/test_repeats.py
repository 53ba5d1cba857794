"""evidence/repeats.py: users with few questions in many forms, and two splits of what they send."""

import json
import os
from collections import Counter, defaultdict

import pytest

import sandbox
from evidence import repeats
from evidence.world import World


def test_users_send_forms_of_a_few_questions_of_their_own():
    both = repeats.sent_by_users(7)
    answers = {}
    for prompt in sandbox.prompts(1800, "users 7"):
        answers[prompt.messages[-1]["content"]] = prompt.meta["answers"][0]
    questions = defaultdict(set)
    for user, r in both[0] + both[1]:
        text = r["prompt"][-1]["content"]
        [question] = {q for q in answers for form in repeats.FORMS if form.format(q) == text}
        assert r["response"] == answers[question]
        questions[user].add(question)
    # 100 users and 100 others, of whom a few send nothing, each with three that nobody else asks
    assert 180 < len(questions) <= 200 and max(map(len, questions.values())) == 3
    assert sum(map(len, questions.values())) == len(set.union(*questions.values()))
    for sent in both:
        said = [json.dumps(r["prompt"]) for _, r in sent]
        assert len(said) == len(set(said)) > 500
        often = sorted(Counter(user for user, _ in sent).values())
        assert sum(often[-10:]) > 5 * sum(often[:10])
    assert repeats.sent_by_users(7) == both and both[0] != repeats.sent_by_users(8)[0]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What each arm trained on and was measured with, of one seed."""
    found = defaultdict(list)

    def make(w, name, stage, **fields):
        for path in fields.get("data", ()):
            with open(path) as f:
                found[name] = [json.loads(line) for line in f]
        return os.path.join(w.folder, name)

    def loss(path, records):
        found[path].append(records)
        return 0.0

    monkeypatch.setattr(World, "make", make)
    monkeypatch.setattr(repeats, "loss_on", loss)
    figures = repeats.splits(World(5, str(tmp_path)))
    named = {}
    for arm in ("user", "prompt"):
        name = f"sft-by-{arm}.pt"
        named[arm] = (found[name], *found[str(tmp_path / name)])
    return figures, named


def test_one_split_parts_users_and_the_other_their_questions(trained):
    figures, named = trained
    sent, others = repeats.sent_by_users(5)
    of = {json.dumps(r): user for user, r in sent}

    def senders(records):
        return {of[json.dumps(r)] for r in records}

    shared = {}
    for arm, (train, valid, later) in named.items():
        assert later == [r for _, r in others]
        assert len(train) == figures[arm]["trained"] > 2 * len(valid) > 80
        assert not {json.dumps(r) for r in train} & {json.dumps(r) for r in valid}
        shared[arm] = len(senders(train) & senders(valid)) / len(senders(valid))
    assert shared["user"] == 0 and shared["prompt"] > 0.7
    assert figures["user"]["trained"] == figures["prompt"]["trained"]
