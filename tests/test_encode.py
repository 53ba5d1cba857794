"""interop/encode.py: what is cut, dropped and kept so that it fits a context, and the report."""

import random
from collections import Counter

import pytest

from data import Demonstration, Prompt, Ranking, encode_dialogue, encode_prompt, encode_response
from interop import EOS, encode_demonstrations, encode_prompts, encode_rankings, report

WORDS = ["Anna", "sells", "red", "lamps", "and", "what", "does", "Ben", "do", "in", "Velia", "?"]


def said(*turns):
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def some_words(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def some_demonstrations(n):
    rng = random.Random(1)
    for _ in range(n):
        turns = [some_words(rng, 12) for _ in range(2 * rng.randint(1, 3))]
        yield Demonstration(said(*turns))


def one_by_one(encode, records, enc, block):
    """{number of a record: its encoding} of those that fit, and what was counted."""
    counts, found = Counter(), {}
    for i, r in enumerate(records):
        try:
            [found[i]] = encode([r], enc, block, counts)
        except ValueError as e:
            assert "fits the model's context" in str(e)
    return found, counts


def test_the_last_response_is_never_cut(enc):
    """At any length of the context; a prompt keeps its end; a response over half of a context that
    the whole exceeds is dropped, and counted."""
    records = list(some_demonstrations(80))
    for block in (4, 8, 16, 30, 60, 120):
        kept, counts = one_by_one(encode_demonstrations, records, enc, block)
        cut = 0
        for i, r in enumerate(records):
            whole, marks = encode_dialogue(enc, r.messages)
            response = encode_response(enc, r.messages[-1]["content"])
            assert (i in kept) == (len(whole) <= block or len(response) <= block // 2)
            if i in kept:
                ids, trained = kept[i]
                assert len(ids) == min(block, len(whole))
                assert ids == whole[-len(ids) :] and trained == marks[-len(ids) :]
                assert ids[-len(response) :] == response and all(trained[-len(response) :])
                cut += len(whole) > block
        dropped = counts["demonstrations dropped: the response is too long"]
        assert dropped == 80 - len(kept) == 80 - counts["demonstrations"]
        assert counts["demonstrations cut from the left"] == cut
        assert dropped > 0 or block > 20


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
        yield Ranking(said(some_words(rng, 40)), responses, pairs or [(0, 1)], use_case="chat")


def test_responses_of_rankings_are_whole_or_dropped(enc):
    """Prompt and response fit the context; each pair is of the same two texts as before."""
    records = list(some_rankings(60))
    for block in (16, 24, 40, 400):
        found, counts = one_by_one(encode_rankings, records, enc, block)
        for i, r in enumerate(records):
            fits = [len(enc.encode_ordinary(f" {x}")) + 1 <= block // 2 for x in r.responses]
            pairs = {(r.responses[a], r.responses[b]) for a, b in r.pairs if fits[a] and fits[b]}
            assert (i in found) == bool(pairs)
            if i in found:
                text = [enc.decode(x).removesuffix(EOS).strip() for x in found[i].responses]
                assert {(text[a], text[b]) for a, b in found[i].pairs} == pairs
                assert {k for p in found[i].pairs for k in p} == set(range(len(text)))
                prompt, longest = encode_prompt(enc, r.messages), max(map(len, found[i].responses))
                assert prompt[-len(found[i].prompt) :] == found[i].prompt
                assert len(found[i].prompt) == min(len(prompt), block - longest)
                assert found[i].use_case == "chat"
        assert counts["rankings"] == len(found)
        assert counts["prompts skipped: no two responses fit"] == 60 - len(found)
        assert (counts["responses dropped: too long"] > 0) == (block < 40 or len(found) < 60)


def test_no_ranking_left_is_an_error(enc):
    long = Ranking(said("Hi."), ["word " * 30, "word " * 40], [(0, 1)])
    with pytest.raises(ValueError, match="no ranking fits the model's context of 8 tokens"):
        encode_rankings([long], enc, 8, Counter())


def test_the_report_says_what_there_was():
    counts = Counter({"prompts": 1234, "prompts cut from the left": 0, "rankings": 2})
    assert report(counts) == "data: 1,234 prompts, 2 rankings"
