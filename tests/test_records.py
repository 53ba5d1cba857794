"""interop/records.py and interop/tokenizers.py: records and their errors, what is held out, files
of ranks. The formats that records are published in have tests of their own."""

import base64
import os
import random
from collections import Counter

import pytest

import sandbox
from data import Demonstration, Prompt, Ranking, encode_dialogue, encode_prompt, pack
from interop import (
    EOS,
    agreement,
    get_tokenizer,
    read_file,
    read_records,
    report,
    split,
    tokenizer_id,
)
from interop.records import demonstrations, prompts, rankings, texts
from plumbing.results import write_jsonl

NASTY = [
    "",
    " ",
    "naïve café",
    "日本語テキスト",
    "👩‍👩‍👧 🏳️‍🌈",
    "a\x00b\x7f",
    "tab\tnew\nline\r\n\n\n",
    "\u2028\u2029\x85\u200b\ufeff",
    "e\u0301 \u202e rtl",
    "  two  spaces   ",
    "1234 ½ ١٢٣",
    "\U0010ffff\ue000",
    "<|endoftext|>",
    "don't 'LL",
]


def said(*turns):
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def told(*records):
    """Records as read_records yields them."""
    return [(f"x.jsonl, line {n}", r) for n, r in enumerate(records, 1)]


def ranking(**fields):
    return {"prompt": "Hi.", "responses": ["a", "b", "c", "d"], **fields}


# ------------------------------------------------------------------------------------------------
# the tokenizer


def test_the_tokenizer_of_the_sandbox_round_trips_any_text(enc):
    rng = random.Random(0)
    ranges = [(0, 128), (0, 0xD800), (0xE000, 0x110000)]
    characters = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(10_000)]
    anything = ["".join(characters[i : i + 50]) for i in range(0, len(characters), 50)]
    for text in NASTY + anything + sandbox.corpus(50):
        ids = enc.encode_ordinary(text)
        assert enc.decode(ids) == text
        assert all(0 <= i < enc.n_vocab for i in ids)


def test_words_of_the_sandbox_are_one_token(enc):
    for word in [*sandbox.PEOPLE, *sandbox.COUNTRIES, *sandbox.CITIES]:
        assert len(enc.encode_ordinary(f" {word}")) == 1


def test_the_name_sandbox_is_never_a_folder(tmp_path, monkeypatch, enc):
    """As the one in the root of this project."""
    (tmp_path / "sandbox").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tokenizer_id(get_tokenizer("sandbox")) == tokenizer_id(enc)


@pytest.mark.parametrize("text", [EOS, f"a {EOS} b", EOS + EOS])
def test_special_tokens_in_text_stay_text(enc, text):
    ids, trained = encode_dialogue(enc, said(text, text))
    assert ids.count(enc.eot_token) == 1 and ids[-1] == enc.eot_token and trained[-1]
    assert enc.eot_token not in encode_prompt(enc, said(text))
    assert pack([text, text], enc).tolist().count(enc.eot_token) == 2  # one behind each document
    assert enc.decode(ids).count(text) >= 2


def test_gpt2_ranks_give_the_ids_of_gpt2(real):
    gpt2 = get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    assert gpt2.n_vocab == 50257 and gpt2.eot_token == 50256
    for text, ids in {
        "hello world": [31373, 995],
        "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
        "\n\nHuman: hi\n\nAssistant: ok": [198, 198, 20490, 25, 23105, 198, 198, 48902, 25, 12876],
        "can't won't I'LL": [5171, 470, 1839, 470, 314, 6, 3069],
    }.items():
        assert gpt2.encode_ordinary(text) == ids
    assert gpt2.encode(EOS, allowed_special="all") == [50256]
    assert len(gpt2.encode_ordinary(read_file(real("pretrain/tinyshakespeare.txt")))) == 338_025


def ranks_file(path, *words):
    tokens = [bytes([b]) for b in range(256)] + [w.encode() for w in words]
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    path.write_text("".join(lines))
    return str(path)


def test_a_file_of_ranks_is_read_as_it_is_now(tmp_path):
    """Not as it was when it was read first."""
    path = ranks_file(tmp_path / "mine.tiktoken", "ab")
    first = get_tokenizer(path)
    assert first.encode_ordinary("abc") == [256, ord("c")]
    second = get_tokenizer(ranks_file(tmp_path / "mine.tiktoken", "bc"))
    assert second.encode_ordinary("abc") == [ord("a"), 256]
    assert tokenizer_id(first)["hash"] != tokenizer_id(second)["hash"]


def test_the_id_of_a_tokenizer_is_of_its_content(tmp_path):
    files = [ranks_file(tmp_path / f"{name}.tiktoken", "ab") for name in "xy"]
    one, other = (tokenizer_id(get_tokenizer(file)) for file in files)
    assert one["hash"] == other["hash"] and one["name"] != other["name"]


NO_RANKS = "is not a readable file of tiktoken ranks"


@pytest.mark.parametrize(("name", "says"), [
    ("no-such", "no tokenizer is called no-such"), ("missing.tiktoken", NO_RANKS),
    ("broken.tiktoken", NO_RANKS), ("empty.tiktoken", NO_RANKS),
    ("folder", "folder has no tokenizer of GPT-2's kind"),
])
def test_unknown_tokenizers_are_a_sentence(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.tiktoken").write_text("this is no file of ranks\n")
    (tmp_path / "empty.tiktoken").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=says):
        get_tokenizer(name)


# ------------------------------------------------------------------------------------------------
# records of each kind


def test_records_of_every_kind():
    one, two, three = demonstrations(told(
        {"prompt": "Hi.", "response": "Ho.", "use_case": "chat"},
        {"messages": said("a", "b", "c", "d")},
        {"prompt": said("a", "b", "c"), "response": "d"},
    ), Counter())
    assert one == Demonstration(said("Hi.", "Ho."), "chat")
    assert two == three == Demonstration(said("a", "b", "c", "d"))
    assert prompts(told({"prompt": "Hi."}), Counter()) == [Prompt(said("Hi."))]
    counts = Counter()
    assert texts(told({"text": "a\nb"}, {"text": "c", "source": "x"}), counts) == ["a\nb", "c"]
    assert counts == {"documents": 2}


@pytest.mark.parametrize(("fields", "pairs"), [
    ({"ranks": [1, 2, 3, 4]}, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ({"ranks": [1, 2, 2, None]}, [(0, 1), (0, 2)]),
    ({"ranks": [3, 1.5, 3, 1.5]}, [(1, 0), (1, 2), (3, 0), (3, 2)]),
    ({"ranks": [None, 2, None, 0]}, [(3, 1)]),
    ({"comparisons": [[0, 2], [3, 1], [2, 1]]}, [(0, 2), (3, 1), (2, 1)]),
    ({"ranks": [1, 2, 3, 4], "responses": ["a", " a\n", "a", "b"]}, [(0, 3), (1, 3), (2, 3)]),
    ({"comparisons": [[0, 1], [1, 2]], "responses": ["a", "b", "b"]}, [(0, 1)]),
    ({"ranks": [2, 1], "responses": ["", "b"]}, [(1, 0)]),
    ({"ratings": [7, 3, 3, None]}, [(0, 1), (0, 2)]),
    ({"ratings": [1, 7, 4.5, 1]}, [(1, 0), (1, 2), (1, 3), (2, 0), (2, 3)]),
])
def test_pairs_of_a_ranking(fields, pairs):
    counts = Counter()
    [r] = rankings(told(ranking(**fields)), counts)
    assert sorted(r.pairs) == sorted(pairs)
    K = len(r.responses)
    undecided = K * (K - 1) // 2 - len(pairs)
    assert counts == {"comparisons": len(pairs), "pairs without a preference": undecided}


def test_tied_prompts_are_skipped_and_counted():
    tied = [
        ranking(ranks=[1, 1, 1, 1]),
        ranking(ranks=[1, None, None, None]),
        ranking(comparisons=[]),
        ranking(ranks=[1, 2], responses=["a", "a"]),
        ranking(ratings=[7, 7, None, 7]),
    ]
    counts = Counter()
    [r] = rankings(told(*tied, ranking(ranks=[1, 2, 2, 2])), counts)
    assert r.pairs == [(0, 1), (0, 2), (0, 3)]
    assert counts["prompts skipped: all responses tied"] == 5 and counts["comparisons"] == 3
    assert counts["pairs without a preference"] == 6 + 6 + 6 + 1 + 6 + 3
    assert "5 prompts skipped: all responses tied" in report(counts)
    with pytest.raises(ValueError, match="holds no ranking with two responses of different rank"):
        rankings(told(*tied), Counter())


def test_the_best_of_a_ranking_is_a_demonstration():
    """It is beaten by none; of several the first; where all are beaten, or tied, there is none."""
    plain = (ranking(ranks=[3, 1, 2, 1]), ranking(comparisons=[[2, 0], [0, 1]]))
    circle = ranking(comparisons=[[0, 1], [1, 2], [2, 0]])
    tie = ranking(ranks=[1, 1, 1, 1])
    counts = Counter()
    found = demonstrations(told(*plain, circle, tie), counts)
    assert found == [Demonstration(said("Hi.", best)) for best in "bc"]
    assert counts["rankings whose best response is a demonstration"] == 2
    assert counts["rankings skipped: no response is best"] == 2


def test_what_is_rated_7_is_a_demonstration():
    """All of it, if it says something, and nothing else; one record may give several or none."""
    rated = [
        ranking(ratings=[7, 6, 7, None]),
        ranking(ratings=[1, 7, 7, 2], responses=["a", " \n", "c", "d"]),
        ranking(ratings=[6, 6.9, 1, 1]),
        {"prompt": "Hi.", "response": "z"},
    ]
    counts = Counter()
    found = demonstrations(told(*rated), counts)
    assert [d.messages for d in found] == [said("Hi.", x) for x in "accz"]
    assert counts["samples rated 7 of 7"] == 3
    assert "rankings whose best" not in report(counts)
    with pytest.raises(ValueError, match="holds no demonstration"):
        demonstrations(told(rated[2]), Counter())


def test_replies_labelled_bad_are_no_demonstrations_and_their_prompts_are_prompts():
    labels = {"x": True, "y": False, "z": None}
    records = [{"prompt": p, "response": "b", "label": label} for p, label in labels.items()]
    counts = Counter()
    found = demonstrations(told(*records), counts)
    assert [r.messages[0]["content"] for r in found] == ["x", "z"]
    assert counts == {"records skipped: their reply is labelled bad": 1}
    assert [r.messages for r in prompts(told(*records), Counter())] == [said(p) for p in "xyz"]


def test_a_prompt_is_what_comes_before_the_last_reply():
    counts = Counter()
    records = [{"messages": said(*turns)} for turns in ("a", "ab", "abc", "abcd")]
    alone = {"messages": [{"role": "assistant", "content": "a"}]}
    found = prompts(told(*records, alone), counts)
    assert [r.messages for r in found] == [said(*turns) for turns in ("a", "a", "abc", "abc")]
    assert counts == {"records skipped: nothing comes before the reply": 1}


# ------------------------------------------------------------------------------------------------
# wrong records

GOOD = {
    demonstrations: {"prompt": "a", "response": "b"},
    prompts: {"prompt": "a"},
    rankings: {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]},
    texts: {"text": "a"},
}
MESSAGES = '"prompt" must be a string or a list of'
TWO = '"responses" must be a list of at least two'
RANKS = '"ranks" must hold a number or null for each of the 4'
RATINGS = '"ratings" must hold a number from 1 to 7 or null for each of the 4'


@pytest.mark.parametrize(("read", "record", "message"), [
    (demonstrations, {"prompt": "a", "response": "  "}, "the response is empty"),
    (demonstrations, {"prompt": "a", "response": None}, "must be a string, got NoneType"),
    (demonstrations, {"prompt": "a"}, '"response" is missing; the record has prompt'),
    (demonstrations, {}, '"prompt" is missing; the record has no fields'),
    (demonstrations, {"prompt": " ", "response": "b"}, "the prompt is empty"),
    (demonstrations, {"text": "a"}, "this is text, for pretrain.py; here demonstrations are"),
    (demonstrations, ranking(ratings=[8, 1, 1, 1]), RATINGS),
    (demonstrations, ranking(ratings=[7, 7]), RATINGS),
    (prompts, {"prompt": 3}, MESSAGES),
    (prompts, {"prompt": []}, MESSAGES),
    (prompts, {"prompt": [{"role": "robot", "content": "a"}]}, MESSAGES),
    (prompts, {"prompt": [{"role": "user", "content": 1}]}, MESSAGES),
    (prompts, {"prompt": [{"role": "user"}]}, MESSAGES),
    (prompts, {"prompt": [{"role": ["user"], "content": "a"}]}, MESSAGES),
    (prompts, {"text": "a"}, "this is text, for pretrain.py; here prompts are needed"),
    (rankings, ranking(responses=["b"], ranks=[1]), TWO),
    (rankings, ranking(responses="bc", ranks=[1, 2]), TWO),
    (rankings, ranking(responses=["b", 2], ranks=[1, 2]), "must be a string, got int"),
    (rankings, ranking(), '"ranks" is missing; the record has prompt, responses'),
    (rankings, ranking(ranks=[1]), RANKS),
    (rankings, ranking(ranks=["1", "2", "3", "4"]), RANKS),
    (rankings, ranking(ranks=1), RANKS),
    (rankings, ranking(ratings=[8, 1, 1, 1]), RATINGS),
    (rankings, ranking(ratings=[0, 1, 7, 1]), RATINGS),
    (rankings, ranking(ratings=[7, 1]), RATINGS),
    (rankings, ranking(ratings=["7", "1", "2", "3"]), RATINGS),
    (rankings, ranking(ratings=7), RATINGS),
    (rankings, ranking(comparisons=[[0, 4]]), "indices from 0 to 3"),
    (rankings, ranking(comparisons=[[-1, 0]]), "indices from 0 to 3"),
    (rankings, ranking(comparisons=[0, 1]), "indices from 0 to 3"),
    (rankings, ranking(prompt=1, ranks=[1, 2, 3, 4]), MESSAGES),
    (rankings, {"prompt": "a", "response": "b"}, '"responses" is missing; the record has prompt,'),
    (rankings, {"text": "a"}, "this is text, for pretrain.py; here rankings are needed"),
    (texts, {"text": ["a"]}, '"text" must be a string'),
    (texts, {"prompt": "a"}, '"text" is missing; the record has prompt'),
])
def test_wrong_records_are_named(read, record, message):
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 2: .*{message}"):
        read(told(GOOD[read], record), Counter())


@pytest.mark.parametrize("read", GOOD)
def test_no_record_is_an_error(read):
    with pytest.raises(ValueError, match=f"the data holds no {read.__name__[:-1]}"):
        read([], Counter())


def test_what_is_written_is_read_again(tmp_path):
    """Line separators of Unicode inside a text do not end a record."""
    records = [{"prompt": said(text or "x"), "response": text} for text in NASTY]
    path = str(tmp_path / "x")
    write_jsonl(path, records)
    found = list(read_records(path, Counter()))
    assert [r for _, r in found] == records
    assert found[-1][0] == f"{path}, line {len(NASTY)}"
    assert os.listdir(tmp_path) == ["x"]


def test_parquet_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"PAR1\x00\xff")
    with pytest.raises(ValueError, match=r"x is Parquet; with pandas: .*to_json\('x.jsonl'"):
        read_file(str(tmp_path / "x"))


# ------------------------------------------------------------------------------------------------
# what is held out, and how far labelers agree


def test_split_keeps_a_prompt_on_one_side():
    """Whatever its responses are, and whichever stage reads it."""
    asked = [said(f"question {i}") for i in range(500)]
    records = [Demonstration(p + said("", answer)[1:]) for p in asked for answer in "ab"]
    rest, held = split(records, 0.2)
    assert len(rest) + len(held) == 1000 and 130 < len(held) < 270

    def questions(side):
        return {r.messages[0]["content"] for r in side}

    assert not questions(rest) & questions(held)
    for others in ([Prompt(p) for p in asked], [Ranking(p, ["a", "b"], [(0, 1)]) for p in asked]):
        assert questions(split(others, 0.2)[1]) == questions(held)
    assert split(records, 0.2, seed=1)[1] != held and split(records, 0)[1] == []


@pytest.mark.parametrize(("name", "repeats"), [
    ("comparisons/hh-rlhf/helpful-rejection-sampled.train.jsonl.gz", True),
    ("rankings/oasst1-messages/en-validation.part1.jsonl", False),
    ("demonstrations/sharegpt/dummy_conversation.json", True),
])
def test_every_stage_holds_out_the_same_prompts_of_public_data(real, name, repeats):
    """A prompt is on one side, however often it occurs and whether its replies are read or not."""
    held = []
    for read, end in ((demonstrations, -1), (prompts, None)):
        records = read(read_records(real(name), Counter()), Counter())
        rest, out = ([str(r.messages[:end]) for r in side] for side in split(records, 0.2, seed=3))
        assert len(rest) + len(out) == len(records)
        rest, out = set(rest), set(out)
        assert len(out) > 0.1 * len(rest) > 0 and not rest & out
        assert (len(rest | out) < len(records)) == repeats
        held.append((out, rest | out))
    (of_demonstrations, read_as_demonstrations), (of_prompts, _) = held
    assert of_demonstrations == of_prompts & read_as_demonstrations


def test_agreement_counts_pairs_on_which_two_labelers_both_have_a_preference():
    def judged(labeler, *pairs, outputs="abc"):
        return Ranking(said("Q"), list(outputs), list(pairs), labeler)

    ann, bob = judged("Ann", (0, 1), (0, 2), (1, 2)), judged("Bob", (0, 1), (2, 0))  # a tie: 1, 2
    assert agreement([ann, bob]) == (0.5, 2)
    assert agreement([ann, judged("Bob", (0, 1), outputs="abd")]) == (0, 0)
    cat = judged("Cat", (0, 1))  # 3 votes on the first pair: 3 agreements of two
    assert agreement([ann, bob, cat]) == (0.75, 4)
