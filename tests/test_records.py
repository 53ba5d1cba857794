"""interop/records.py: files, records and their errors, what is held out. The formats that records
are published in have tests of their own."""

import bz2
import codecs
import gzip
import lzma
import os
import random
import tracemalloc
from collections import Counter

import pytest

from data import Demonstration, Prompt, Ranking
from interop import agreement, read_file, read_records, report, split
from interop.records import demonstrations, prompts, rankings, texts
from interop.rows import BINARY, PIECE, read_json
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
    found = texts(told({"text": "a\nb"}, {"text": "c", "source": "x"}), counts)
    assert list(found) == ["a\nb", "c"]
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


@pytest.mark.parametrize("mark", [False, 0, 0.0, -1, "false", "0", "-1", " False", "no", "bad"])
@pytest.mark.parametrize("field", ["label", "weight", "train"])
def test_a_record_that_is_marked_is_no_demonstration(field, mark):
    bad = {"prompt": "Hi.", "response": "x", field: mark}
    good = [{"prompt": "Hi.", "response": "y", field: g}
            for g in (True, 1, 0.5, "true", "1.0", "good", "", None, [0])]  # fmt: skip
    counts = Counter()
    found = demonstrations(told(bad, *good), counts)
    assert [d.messages[-1]["content"] for d in found] == ["y"] * len(good)
    why = "their reply is labelled bad" if field == "label" else "marked as not to be trained on"
    assert counts == {f"records skipped: {why}": 1}
    # as a question it is as good as any
    assert len(prompts(told(bad, *good), Counter())) == 10


def marked(turns, *skipped, **mark):
    """Messages, of which some replies have a mark."""
    return [m | mark if i in skipped else m for i, m in enumerate(turns)]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": "0"}])
def test_a_reply_that_is_marked_is_read_and_not_trained_on(mark):
    """OpenAI's and Axolotl's marks. After the last reply that is left nothing is to be learned."""
    turns, counts = said("a", "b", "c", "d", "e", "f"), Counter()
    records = [
        {"messages": marked(turns, 1, **mark)},
        {"messages": marked(turns, 3, 5, **mark)},
        {"messages": marked(turns, 1, 3, 5, **mark)},
        {"messages": marked(turns, 1, weight=1)},
    ]
    found = demonstrations(told(*records), counts)
    plain = [{k: m[k] for k in ("role", "content")} for m in turns]
    assert found[0].messages == [plain[0], plain[1] | {"train": False}, *plain[2:]]
    assert found[1].messages == plain[:2]
    assert found[2].messages == plain and len(found) == 3
    assert counts["replies read only: marked as not to be trained on"] == 6
    assert counts["messages left out: no reply to train on follows"] == 4 + 6


def test_of_a_rated_dialogue_only_the_last_reply_is_trained_on():
    """Nobody rated those before it. It is on the same side of a split as the plain dialogue."""
    asked = said("Hi.", "Hello.", "And now?")
    for n in range(20):
        turns = [{"role": "system", "content": f"S{n}"}, *asked]
        rated = ranking(prompt=turns, ratings=[7, 1, 1, 1])
        [d] = demonstrations(told(rated), Counter())
        assert [m.get("train", True) for m in d.messages] == [True, True, False, True, True]
        [plain] = demonstrations(told({"prompt": turns, "response": "a"}), Counter())
        assert all(m.get("train", True) for m in plain.messages)
        assert len({bool(split([x], 0.5)[1]) for x in (d, plain)}) == 1


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
    (demonstrations, {"prompt": "a", "response": None}, "must be a text, and is null"),
    (demonstrations, {"prompt": "a"}, '"response" is missing; the record has prompt'),
    (demonstrations, {}, '"prompt" is missing; the record has no fields'),
    (demonstrations, {"prompt": " ", "response": "b"}, "the prompt is empty"),
    (demonstrations, {"text": "a"}, "this is text, for pretrain.py, and no demonstration"),
    (demonstrations, ranking(ratings=[8, 1, 1, 1]), RATINGS),
    (demonstrations, ranking(ratings=[7, 7]), RATINGS),
    (prompts, {"prompt": 3}, MESSAGES),
    (prompts, {"prompt": []}, MESSAGES),
    (prompts, {"prompt": [{"role": "robot", "content": "a"}]}, MESSAGES),
    (prompts, {"prompt": [{"role": "user", "content": 1}]}, MESSAGES),
    (prompts, {"prompt": [{"role": "user"}]}, MESSAGES),
    (prompts, {"prompt": [{"role": ["user"], "content": "a"}]}, MESSAGES),
    (prompts, {"text": "a"}, "this is text, for pretrain.py, and no prompt"),
    (rankings, ranking(responses=["b"], ranks=[1]), TWO),
    (rankings, ranking(responses="bc", ranks=[1, 2]), TWO),
    (rankings, ranking(responses=["b", 2], ranks=[1, 2]), "must be a text, and is a number"),
    (rankings, ranking(), '"ranks" is missing; the record has prompt, responses'),
    (rankings, ranking(ranks=[1]), RANKS),
    (rankings, ranking(ranks=["1", "2", "3", "4"]), RANKS),
    (rankings, ranking(ranks=[float("nan"), 1, 2, 3]), RANKS),
    (rankings, ranking(ranks=[1, 2, 3, float("inf")]), RANKS),
    (rankings, ranking(ratings=[7, float("nan"), 1, 1]), RATINGS),
    (rankings, ranking(responses=["a"] * 257, ranks=[1] * 257), "ranks 257 responses"),
    (demonstrations, ranking(responses=["a"] * 257, ratings=[1] * 257), "rank at most 256"),
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
    (rankings, {"text": "a"}, "this is text, for pretrain.py, and no ranking"),
    (texts, {"text": ["a"]}, '"text" must be a string'),
    (texts, {"prompt": "a"}, '"text" is missing; the record has prompt'),
])
def test_wrong_records_are_named(read, record, message):
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 2: .*{message}"):
        list(read(told(GOOD[read], record), Counter(), strict=True))


@pytest.mark.parametrize("read", GOOD)
def test_no_record_is_an_error(read):
    with pytest.raises(ValueError, match=f"the data holds no {read.__name__[:-1]}"):
        list(read([], Counter()))


def test_what_is_written_is_read_again(tmp_path):
    """Line separators of Unicode inside a text do not end a record."""
    records = [{"prompt": said(text or "x"), "response": text} for text in NASTY]
    path = str(tmp_path / "x")
    write_jsonl(path, records)
    found = list(read_records(path, Counter()))
    assert [r for _, r in found] == records
    assert found[-1][0] == f"{path}, line {len(NASTY)}"
    assert os.listdir(tmp_path) == ["x"]


# ------------------------------------------------------------------------------------------------
# files


def test_parquet_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"PAR1\x00\xff")
    with pytest.raises(ValueError, match=r"x is Parquet; with pandas: .*to_json\('x.jsonl'"):
        read_file(str(tmp_path / "x"))


@pytest.mark.parametrize("packing", [gzip, bz2, lzma])
def test_packed_text_is_read_whole(tmp_path, packing):
    """Larger than the pieces it is unpacked in; of several packed files that were joined, all."""
    rng = random.Random(0)
    text = "".join(f"line {rng.random()}\n" for _ in range(100_000))
    half = len(text) // 2
    joined = packing.compress(text[:half].encode()) + packing.compress(text[half:].encode())
    (tmp_path / "x.gz").write_bytes(joined)
    assert len(text) > PIECE and read_file(str(tmp_path / "x.gz")) == text


@pytest.mark.parametrize("packing", [gzip, bz2, lzma])
@pytest.mark.parametrize("begins", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b""])
def test_text_in_utf_16_with_its_mark_is_read(tmp_path, begins, packing):
    text = 'na\u00efve \u65e5\u672c \U0001f600\r\n{"a": 1}'
    encoding = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    raw = begins + text.encode(encoding.get(begins, "utf-8"))
    for content in (raw, packing.compress(raw)):
        (tmp_path / "x").write_bytes(content)
        assert read_file(str(tmp_path / "x")) == text.replace("\r\n", "\n")
    if begins:
        (tmp_path / "x").write_bytes(raw + b"\n")
        with pytest.raises(ValueError, match=r"x: byte \d+ is not UTF-16, .*: save it as UTF-8"):
            read_file(str(tmp_path / "x"))


@pytest.mark.parametrize(("begins", "says"), BINARY.items())
def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path, begins, says):
    """Not as text in a wrong encoding; packed, too."""
    for content in (begins + bytes(range(256)), gzip.compress(begins + b"\xff" * 9)):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match=r"x is (a|an|packed|Parquet|Arrow)\b") as error:
            read_file(str(tmp_path / "x"))
        assert says.split("{")[0] in str(error.value) and "iconv" not in str(error.value)


@pytest.mark.parametrize("packing", [gzip, bz2, lzma])
@pytest.mark.parametrize("before", [b"", bytes(range(128)) * 20])
def test_what_is_made_to_fill_the_memory_is_refused_long_before(tmp_path, before, packing):
    """A thousandth of its size: 100 MB take 0.1 MB."""
    (tmp_path / "bomb").write_bytes(packing.compress(before + b" " * 100_000_000))
    assert (tmp_path / "bomb").stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="bomb unpacks to more than 100 times its size"):
        read_file(str(tmp_path / "bomb"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # xz has a dictionary of 8 MB
    assert peak < 10_000_000 + (packing is lzma) * 2**23


@pytest.mark.parametrize("text", ['{"a": ', "[" * 100_000, "9" * 5000, "secret"])
def test_json_that_cannot_be_read_is_not_repeated(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError) as refused:
        read_json(str(tmp_path / "x.json"))
    assert str(refused.value) == f"{tmp_path}/x.json is not readable JSON: fetch it again"


def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").write_text("text")
    monkeypatch.setattr("interop.rows.open", refuse, raising=False)
    with pytest.raises(ValueError, match=r"x cannot be read \(Permission denied\)"):
        read_file(str(tmp_path / "x"))
    with pytest.raises(ValueError, match="/dev/null is no file"):
        read_file("/dev/null")


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
