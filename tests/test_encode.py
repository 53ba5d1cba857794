"""interop/encode.py: what is forgotten, cut, dropped and kept so that it fits a context, and the
report."""

import random
from collections import Counter

import pytest

from data import Demonstration, Prompt, Ranking, encode_dialogue, encode_prompt, encode_response
from interop import (
    EOS,
    encode_demonstrations,
    encode_prompts,
    encode_rankings,
    get_tokenizer,
    report,
)

WORDS = ["Anna", "sells", "red", "lamps", "and", "what", "does", "Ben", "do", "in", "Velia", "?"]


def said(*turns):
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def some_words(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def one_by_one(encode, records, enc, block):
    """{number of a record: its encoding} of those that fit, and what was counted."""
    counts, found = Counter(), {}
    for i, r in enumerate(records):
        try:
            [found[i]] = encode([r], enc, block, counts)
        except ValueError as e:
            assert "fits the model's context" in str(e)
    return found, counts


def some_dialogues(n, seed=0):
    """Of every shape that files have: with a system message or without, a user who speaks twice, an
    assistant who begins; the last message is a user's or a system's."""
    rng = random.Random(seed)
    for _ in range(n):
        roles = rng.choices(("user", "assistant", "assistant", "system"), k=rng.randint(0, 7))
        roles = ["system"] * (rng.random() < 0.4) + roles + [rng.choice(("user", "system"))]
        yield [{"role": role, "content": some_words(rng, 9)} for role in roles]


def what_may_be_kept(messages):
    """What a long dialogue may become, the most first: a turn ends before each message that is not
    the assistant's; a system message in front goes last."""
    system = messages[:1] if messages[0]["role"] == "system" else []
    starts = [i for i, m in enumerate(messages) if m["role"] != "assistant" and i >= len(system)]
    starts = starts or [len(messages) - 1]
    return [messages, *[system + messages[i:] for i in starts], messages[starts[-1] :]]


def test_prompts_lose_whole_turns_and_only_a_last_message_too_long_is_cut():
    """At every length, the longest of what may be kept, encoded as if there were nothing else."""
    enc, seen = get_tokenizer("sandbox"), Counter()
    for messages in some_dialogues(150):
        texts = [encode_prompt(enc, kept) for kept in what_may_be_kept(messages)]
        for room in range(1, len(texts[0]) + 2):
            counts = Counter()
            [ids] = encode_prompts([Prompt(messages)], enc, room, counts)
            fitting = [text for text in texts if len(text) <= room]
            how = "" if fitting[:1] == texts[:1] else "shortened by whole turns"
            if not fitting:
                how = "cut from the left"
            assert ids == (fitting[0] if fitting else texts[-1][-room:])
            assert +counts == Counter(["prompts"] + [f"prompts {how}"] * bool(how))
            seen[how] += 1
    assert len(seen) == 3 and min(seen.values()) >= 300


def test_demonstrations_lose_whole_turns_and_keep_the_last_response(enc):
    """At every length; where the last question would be cut, and the response has over half of the
    context, both are dropped, and counted."""
    seen = Counter()
    for i, messages in enumerate(some_dialogues(60, seed=1)):
        messages = [*messages, *said("", some_words(random.Random(i), 12))[1:]]
        texts = [encode_dialogue(enc, kept) for kept in what_may_be_kept(messages)]
        response = encode_response(enc, messages[-1]["content"])
        for block in range(1, len(texts[0][0]) + 2):
            found, counts = one_by_one(encode_demonstrations, [Demonstration(messages)], enc, block)
            fitting = [text for text in texts if len(text[0]) <= block]
            if fitting:
                assert found[0] == fitting[0]
                how = "" if fitting[0] == texts[0] else "demonstrations shortened by whole turns"
            elif len(response) <= block // 2:
                assert found[0] == tuple(part[-block:] for part in texts[-1])
                how = "demonstrations cut from the left"
            else:
                how = "demonstrations dropped: the response is too long"
            assert +counts == Counter(["demonstrations"] * bool(found) + [how] * bool(how))
            if found:
                ids, trained = found[0]
                assert ids[-len(response) :] == response and all(trained[-len(response) :])
            seen[how] += 1
    assert len(seen) == 4 and min(seen.values()) > 100


def test_what_is_kept_of_a_dialogue_by_hand(enc):
    """No line break in front, the system message with the last turn for as long as they fit."""
    system = {"role": "system", "content": "Be kind."}
    messages = [system, *said("Hello.", "Hello.", "Who is Ben?", "Anna.", "And who is Anna?")]
    turns = {
        42: "System: Be kind.\n\nUser: Who is Ben?\n\nAssistant: Anna.<|endoftext|>\n\n"
        "User: And who is Anna?\n\nAssistant:",
        31: "System: Be kind.\n\nUser: And who is Anna?\n\nAssistant:",
        18: "User: And who is Anna?\n\nAssistant:",
        6: " is Anna?\n\nAssistant:",
    }
    for room, kept in turns.items():
        [ids] = encode_prompts([Prompt(messages)], enc, room, Counter())
        assert enc.decode(ids) == kept


class Counting:
    """A tokenizer that counts the letters it reads."""

    def __init__(self, enc):
        self.enc, self.eot_token, self.letters = enc, enc.eot_token, 0

    def encode_ordinary(self, text):
        self.letters += len(text)
        return self.enc.encode_ordinary(text)


def test_a_long_dialogue_is_not_read_once_a_turn(enc):
    messages = said(*["Anna sells red lamps."] * 1001)
    long, read = sum(len(m["content"]) for m in messages), Counting(enc)
    encode_prompts([Prompt(messages)], read, 100, Counter())
    assert read.letters < 5 * long
    read = Counting(enc)
    encode_prompts([Prompt(messages)], read, 100_000, Counter())
    assert read.letters < 2 * long


def test_no_demonstration_left_is_an_error(enc):
    long = Demonstration(said("Hi.", "word " * 30))
    with pytest.raises(ValueError, match="no demonstration fits the model's context of 8 tokens"):
        encode_demonstrations([long], enc, 8, Counter())


def test_too_long_prompts_are_cut_from_the_left(enc):
    prompts = [Prompt(said("one two three four five " * n)) for n in (1, 20)]
    counts = Counter()
    short, long = encode_prompts(prompts, enc, 60, counts)
    assert short == encode_prompt(enc, prompts[0].messages)
    assert long == encode_prompt(enc, prompts[1].messages)[-60:]
    assert enc.decode(long).endswith("\n\nAssistant:")
    assert counts == {"prompts": 2, "prompts cut from the left": 1}
    with pytest.raises(ValueError, match="--max-new leaves no room in the context for a prompt"):
        encode_prompts(prompts, enc, 0, Counter())


def some_rankings(n):
    rng = random.Random(0)
    for _ in range(n):
        K = rng.randint(2, 5)
        pairs = [(i, j) for i in range(K) for j in range(i + 1, K) if rng.random() < 0.7]
        responses = [some_words(rng, 20) for _ in range(K)]
        responses[-1] = responses[rng.randrange(K)]     # some are said twice
        asked = said(*[some_words(rng, 14) for _ in range(rng.choice((1, 3, 5)))])
        yield Ranking(asked, responses, pairs or [(0, 1)], use_case="chat")


def test_responses_of_rankings_are_whole_or_dropped(enc):
    """Prompt and response fit the context; each pair is of the same two texts as before, and no
    text is there twice."""
    records = list(some_rankings(60))
    for block in (16, 24, 40, 400):
        found, counts = one_by_one(encode_rankings, records, enc, block)
        fitted = Counter()
        for i, r in enumerate(records):
            fits = [len(enc.encode_ordinary(f" {x}")) + 1 <= block // 2 for x in r.responses]
            pairs = [(r.responses[a], r.responses[b]) for a, b in r.pairs if fits[a] and fits[b]]
            assert (i in found) == bool(pairs)
            if i in found:
                text = [enc.decode(x).removesuffix(EOS).strip() for x in found[i].responses]
                assert [(text[a], text[b]) for a, b in found[i].pairs] == pairs
                assert len(set(text)) == len(text)
                assert {k for p in found[i].pairs for k in p} == set(range(len(text)))
                room = block - max(map(len, found[i].responses))
                [prompt] = encode_prompts([r], enc, room, fitted)
                assert found[i].prompt == prompt and found[i].use_case == "chat"
        assert counts["rankings"] == fitted["prompts"] == len(found)
        for how in ("prompts shortened by whole turns", "prompts cut from the left"):
            assert counts[how] == fitted[how] and (fitted[how] > 0) == (block < 400)
        assert counts["prompts skipped: no two responses fit"] == 60 - len(found)
        assert (counts["responses dropped: too long"] > 0) == (block < 40 or len(found) < 60)


def test_no_ranking_left_is_an_error(enc):
    long = Ranking(said("Hi."), ["word " * 30, "word " * 40], [(0, 1)])
    with pytest.raises(ValueError, match="no ranking fits the model's context of 8 tokens"):
        encode_rankings([long], enc, 8, Counter())


def test_the_report_says_what_there_was():
    counts = Counter({"prompts": 1234, "prompts cut from the left": 0, "rankings": 2})
    assert report(counts) == "data: 1,234 prompts, 2 rankings"
