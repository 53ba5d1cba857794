"""interop/formats.py: public data as it is published, from the files of ../shared/data and, for
formats without one, as documented; interop/show.py: what `python data.py FILE` prints of it."""

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
import sys
from collections import Counter
from itertools import product

import pytest
from documents import whole

import model
from data import Demonstration, Ranking, comparisons_batch, encode_dialogue
from interop import (
    encode_demonstrations,
    encode_prompts,
    encode_rankings,
    formats,
    records,
    report,
    show,
    tokenizer_id,
)
from interop.texts import pack
from plumbing.files import save_checkpoint
from plumbing.inputs import files_in

HH = [f"comparisons/hh-rlhf/helpful-{x}.jsonl.gz"
      for x in ("base.train", "base.test", "rejection-sampled.train")]
QA = "rankings/qa-feedback/dev_feedback.part1.json"
OASST = "rankings/oasst1-messages/en-validation.part1.jsonl"
DOLLY = "demonstrations/dolly/dolly-15k.part1.jsonl"
GSM8K = "demonstrations/gsm8k/train.first1000.jsonl"
ALPACA = "demonstrations/alpaca-format/instruction-data.first800.json"
SEEDS = "demonstrations/self-instruct/seed_tasks.jsonl"
SHAREGPT = "demonstrations/sharegpt/dummy_conversation.json"
KTO = "demonstrations/chat-messages/kto_en_demo.json"
CHAT = "demonstrations/chat-messages/toy_chat_fine_tuning.first4.jsonl"
MT_BENCH, VICUNA = (f"prompts/{x}_bench.question.jsonl" for x in ("mt", "vicuna"))
HUMAN_EVAL = "eval/HumanEval.jsonl.gz"
TEXT = "pretrain/tinyshakespeare.txt"

TIED, UNDECIDED = "prompts skipped: all responses tied", "pairs without a preference"
ORPHANS = "messages left out: orphans, whose parent is not in the file"
UNUSED = "records with fields not used: "
ALL = [   # file, what it holds, how many, how many prompts, and what is counted
    (HH[0], records.rankings, 1496, 1496, {"read as HH pairs": 1496, "comparisons": 1496}),
    (HH[1], records.rankings, 504, 506,
     {"read as HH pairs": 506, "comparisons": 504, UNDECIDED: 2, TIED: 2}),
    (HH[2], records.rankings, 2290, 2315,
     {"read as HH pairs": 2315, "comparisons": 2290, UNDECIDED: 25, TIED: 25}),
    (QA, records.rankings, 340, 350,
     {"read as QA-Feedback": 350, "comparisons": 1126 + 696, UNDECIDED: 278, TIED: 10,
      f"{UNUSED}gold, feedback": 350}),
    (OASST, records.rankings, 309, 309, {
        "OASST messages": 1505, "read as OASST trees": 141, "comparisons": 764, UNDECIDED: 1,
        ORPHANS: 2,
        "messages left out: deleted or spam, or an answer to one": 50,
        "sets of replies skipped: fewer than two are ranked": 41,
        "sets of replies skipped: deleted or spam": 2}),
    (DOLLY, records.demonstrations, 3000, 3000, {"read as Dolly": 3000}),
    (GSM8K, records.demonstrations, 1000, 1000, {"read as questions and answers": 1000}),
    (ALPACA, records.demonstrations, 800, 800, {"read as Alpaca": 800}),
    (SEEDS, records.demonstrations, 175, 175, 
     {"read as self-instruct tasks": 175, f"{UNUSED}id, name, is_classification": 175}),
    (SHAREGPT, records.demonstrations, 500, 500, {"read as ShareGPT": 500, f"{UNUSED}id": 500}),
    (KTO, records.demonstrations, 150, 300,
     {"read as chat messages": 300, "records skipped: their reply is labelled bad": 150}),
    (CHAT, records.demonstrations, 4, 4, {"read as chat messages": 4}),
    (MT_BENCH, records.prompts, 80, 80,
     {"read as turns": 80, "later turns left out: they follow a reply that is not there": 80,
      f"{UNUSED}question_id, reference": 80}),
    (VICUNA, records.prompts, 80, 80, {"read as turns": 80, f"{UNUSED}question_id": 80}),
    (HUMAN_EVAL, records.prompts, 164, 164,
     {"read as prompts": 164, f"{UNUSED}task_id, entry_point, canonical_solution, test": 164}),
    (TEXT, records.texts, 1, 0, {"read as texts": 1, "documents": 1}),
]
READER = {name: read for name, read, *_ in ALL}


def said(*turns, system=None):
    """Messages of user and assistant in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text}
                for i, text in enumerate(turns)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def load(read, path, columns=""):
    """What a reader finds in a file, documents whole, and what was counted."""
    counts = Counter()
    found = list(read(formats.read_records(str(path), counts, columns), counts))
    if read is records.texts:
        found = whole(found)
    return found, +counts


def messages_of(read, path):
    return [r.messages for r in load(read, path)[0]]


def canonical(path):
    return [r for _, r in formats.read_records(path, Counter())]


def published(path):
    """The records of a file with the fields they were published with."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
        text = f.read()
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture
def put(tmp_path):
    """Write a file of bytes, of text, or of records, one JSON object a line -> its path."""

    def put(content, name="x"):
        if isinstance(content, list):
            content = "".join(json.dumps(r) + "\n" for r in content)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return put


# ------------------------------------------------------------------------------------------------
# the published files


@pytest.mark.parametrize(("name", "read", "n", "prompts", "counted"), ALL)
def test_every_file_is_read_whole_and_what_is_left_out_is_counted(
    real, name, read, n, prompts, counted
):
    """As prompts, without their replies, records count whatever was judged of those."""
    found, counts = load(read, real(name))
    assert len(found) == n and counts == counted
    if read != records.texts:
        asked = messages_of(records.prompts, real(name))
        end = -1 if read == records.demonstrations else None
        messages = [r.messages[:end] for r in found]
        assert len(asked) == prompts and all(m in asked for m in messages[::7])
        assert n < prompts or asked == messages


MARKED = [
    # OpenAI's fine-tuning, Axolotl's, a table, prompts and completions
    ({"messages": [*said("a"), said("x", "b")[1] | {"weight": 0}, *said("c", "d")]}, ["d"]),
    ({"conversations": [{"from": "human", "value": "a"},
                        {"from": "gpt", "value": "b", "train": False},
                        {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}, ["d"]),
    ({"prompt": "a", "completion": "b", "weight": "0"}, []),
    ({"instruction": "a", "input": "", "output": "b", "train": False}, []),
    ({"question": "a", "answer": "b", "label": -1.0}, []),
    ({"prompt": "a", "completion": "b", "weight": 0.7}, ["b"]),
]  # fmt: skip


@pytest.mark.parametrize(("record", "trained"), MARKED)
def test_what_is_marked_is_not_trained_on_in_any_format(record, trained, enc, tmp_path):
    other = {key: value for key, value in record.items() if key not in ("weight", "train", "label")}
    other = {key: [dict(m, weight=1, train=True) for m in value] if isinstance(value, list) else
             value for key, value in other.items()}  # fmt: skip
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (record, other)))
    found = records.demonstrations(formats.read_records(str(path), Counter()), Counter())
    assert len(found) == bool(trained) + 1
    rows = encode_demonstrations(found, enc, 100, Counter())
    said_by = [enc.decode([t for t, on in zip(*row) if on]).split("<|endoftext|>") for row in rows]
    learned = [[text.strip() for text in texts if text.strip()] for texts in said_by]
    assert (learned[0] if trained else []) == trained
    assert learned[-1][-1] in ("b", "d")


def test_hh_prompts_end_with_the_last_turn_that_both_sides_begin(real):
    """Turn by turn, and what was read puts the published dialogues together again, but for white
    space around turns. In nine pairs a cut at each side's own last mark would have made two
    prompts."""
    two_prompts, inline, empty = 0, 0, Counter()
    for path in map(real, HH):
        for raw, r in zip(published(path), canonical(path), strict=True):
            _, *a = re.split(r"\n\n(Human|Assistant):", raw["chosen"])
            _, *b = re.split(r"\n\n(Human|Assistant):", raw["rejected"])
            common = [k for k in range(0, min(len(a), len(b)), 2)
                      if a[:k] == b[:k] and a[k] == b[k] == "Assistant"]
            assert [m["content"] for m in r["prompt"]] == [x.strip() for x in a[1:max(common):2]]
            speaker = {"user": "Human", "assistant": "Assistant"}
            turns = [f"\n\n{speaker[m['role']]}: {m['content']}" for m in r["prompt"]]
            prompt = "".join(turns)
            for side, reply in zip(("chosen", "rejected"), r["responses"], strict=True):
                assert f"{prompt}\n\nAssistant: {reply}".split() == raw[side].split()
                empty[side] += not reply
            own = {raw[side].rpartition("\n\nAssistant:")[0] for side in raw}
            two_prompts += len(own) == 2
            assert len(own) == 1 or any("\n\nAssistant:" in x for x in r["responses"])
            texts = [*(m["content"] for m in r["prompt"]), *r["responses"]]
            inline += any("Human:" in x.replace("\n\nHuman:", "") for x in texts)
    assert (two_prompts, inline, empty) == (9, 53, {"chosen": 0, "rejected": 4})


@pytest.mark.parametrize(("chosen", "rejected", "prompt", "replies"), [
    ("H>Hi?A>One.H>And?A>Two.", "H>Hi?A>None.", said("Hi?"), ["One.H>And?A>Two.", "None."]),
    ("H>Hi?A>One.H>And?A>Two.", "H>Hi?A>One.H>And?A>None.", said("Hi?", "One.", "And?"),
     ["Two.", "None."]),
    ("H>Hi?A>Yes.", "H>Hi?A>No.H>And?", said("Hi?"), ["Yes.", "No.H>And?"]),
    ("H>Hi?A>Yes.H>And?A>So.", "H>Hi?A>Yes.H>And?", said("Hi?"), ["Yes.H>And?A>So.", "Yes.H>And?"]),
    ("H>Say Human: x\nHuman: yA>Human: z", "H>Say Human: x\nHuman: yA>z",
     said("Say Human: x\nHuman: y"), ["Human: z", "z"]),
    ("H>Hi?A>H>And?A>Yes.", "H>Hi?A>H>And?A>", said("Hi?", "", "And?"), ["Yes.", ""]),
])
def test_the_turn_marks_of_hh(put, chosen, rejected, prompt, replies):
    """Of a reply they are its text; within a line they are text; a reply may be missing on the
    rejected side."""
    chosen, rejected, *replies = (x.replace("H>", "\n\nHuman: ").replace("A>", "\n\nAssistant: ")
                                  for x in (chosen, rejected, *replies))
    [found], counts = load(records.rankings, put([{"chosen": chosen, "rejected": rejected}]))
    assert found == Ranking(prompt, replies, [(0, 1)]) and counts["read as HH pairs"] == 1


def test_hh_pairs_that_are_left_out_are_counted(put):
    sides = [(" Yes.", " "), (" ", " No."), (" Yes.", " Yes. "), (" Yes.", " No.")]
    hi = "\n\nHuman: Hi?\n\nAssistant:"
    rows = [{"chosen": hi + better, "rejected": hi + worse} for better, worse in sides]
    rows.append({"chosen": hi + " Yes.", "rejected": hi.replace("?", "!") + " Yes."})
    found, counts = load(records.rankings, put(rows))
    assert [r.responses for r in found] == [["Yes.", ""], ["Yes.", "No."]]
    assert counts == {"read as HH pairs": 5, "comparisons": 2, UNDECIDED: 1, TIED: 1,
                      "pairs skipped: the chosen reply is empty": 1,
                      "pairs skipped: the two sides share no prompt": 1}


def test_qa_feedback_keeps_each_judgement_even_where_they_make_no_order(real):
    """16 prompts have judgements that no numbers on the four predictions explain."""
    no_order, total, doubled = 0, Counter(), 0
    for raw, r in zip(published(real(QA)), canonical(real(QA)), strict=True):
        found = {tuple(pair) for pair in r["comparisons"]}
        for (i, j), judged in zip([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)],
                                  raw["preference"], strict=True):
            assert ((i, j) in found, (j, i) in found) == (judged == 1, judged == 2)
            total[judged] += 1
        no_order += not any(all((s[i] > s[j]) == ((i, j) in found) for i in range(4)
                                for j in range(4))
                            for s in product(range(4), repeat=4))
        assert r["responses"] == [raw[f"prediction {k}"] for k in (1, 2, 3, 4)]
        for title, *sentences in raw["passages"]:
            assert all(x in r["prompt"] for x in (title, *sentences))
            doubled += f"{title} {title}\n\n" in r["prompt"]
        assert f"\n\n{r['prompt']}".endswith("\n\n" + raw["question"])
    assert total == {1: 1126, 2: 696, 0: 278} and no_order == 16
    assert doubled < 20       # of 815 passages: where the title itself was cut into sentences


def oasst_pairs(messages):
    """{texts of the path: {(better, worse), ...}}, from the flat messages alone."""
    by_id, expected = {m["message_id"]: m for m in messages}, {}

    def path(m):
        above = path(by_id[m["parent_id"]]) if m["parent_id"] in by_id else [m["parent_id"]]
        return [*above, m]

    for m in messages:
        root, *thread = path(m)
        if root is not None or m["role"] != "assistant" or m["rank"] is None:
            continue
        key = tuple(x["text"] for x in thread[:-1])
        for other in messages:
            if other["parent_id"] != m["parent_id"] or other["rank"] is None:
                continue
            usable = not any(x["deleted"] or x["review_result"] is False for x in [*thread, other])
            if usable and m["rank"] < other["rank"] and m["text"] != other["text"]:
                expected.setdefault(key, set()).add((m["text"], other["text"]))
    return expected


def test_oasst_ranks_what_has_one_and_is_neither_deleted_nor_spam(real):
    """Orphans and null ranks are in no pair, a gap in the ranks changes nothing, and roles
    alternate from the user's on."""
    pairs = {}
    for r in load(records.rankings, real(OASST))[0]:
        texts = tuple(m["content"] for m in r.messages)
        pairs[texts] = {(r.responses[i], r.responses[j]) for i, j in r.pairs}
    assert pairs == oasst_pairs(published(real(OASST)))
    ranks = Counter()
    for r in canonical(real(OASST)):
        roles = [m["role"] for m in r["prompt"]]
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
        ranks[tuple(sorted(r["ranks"]))] += 1
    assert ranks == {(0, 1): 96, (0, 2): 2, (0, 1, 2): 201, (0, 1, 2, 3): 9, (0, 1, 2, 3, 4): 1}


def test_the_order_of_oasst_replies_says_nothing_of_their_ranks(real):
    """In the file the best comes first. Shuffled, it comes first as often as chance has it, and the
    same way each time."""
    found = canonical(real(OASST))
    assert found == canonical(real(OASST))
    for k in (2, 3):
        best = [r["ranks"].index(0) for r in found if len(r["ranks"]) == k]
        assert all(abs(best.count(i) / len(best) - 1 / k) < 0.12 for i in range(k))


def test_oasst_trees_give_what_their_flat_messages_give(real, put):
    nodes = {m["message_id"]: m | {"replies": []} for m in published(real(OASST))}
    for m in nodes.values():
        if m["parent_id"] in nodes:
            nodes[m["parent_id"]]["replies"].append(m)
    trees = [{"message_tree_id": m["message_tree_id"], "tree_state": m["tree_state"], "prompt": m}
             for m in nodes.values() if m["parent_id"] is None]
    trees[0]["prompt"].pop("parent_id")          # published trees may leave out what is null
    path = put(gzip.compress("".join(json.dumps(t) + "\n" for t in trees).encode()),
               "trees.jsonl.gz")
    nested, counts = load(records.rankings, path)
    flat, flat_counts = load(records.rankings, real(OASST))
    assert counts.pop(f"{UNUSED}message_tree_id, tree_state") == 141
    assert nested == flat and flat_counts == counts | {"OASST messages": 1505, ORPHANS: 2}


def test_oasst_leaves_out_the_answers_to_what_it_leaves_out(put):
    """A message that nobody reviewed stays."""
    def node(role, text, *replies, rank=None, **more):
        return {"role": role, "text": text, "rank": rank, "replies": replies, "deleted": False,
                "review_result": True} | more

    def ranked(*texts):
        return [node("assistant", text, rank=k) for k, text in enumerate(texts)]

    best = node("assistant", "best", node("prompter", "And?", *ranked("a", "b")), rank=0)
    unread = node("assistant", "next", rank=1, review_result=None)
    spam = node("assistant", "spam", node("prompter", "So?", *ranked("c", "d")), rank=2,
                review_result=False)
    gone = node("assistant", "gone", node("prompter", "Why?", *ranked("e", "f")), rank=3,
                deleted=True)
    tree = {"message_tree_id": "1", "prompt": node("prompter", "Q?", best, unread, spam, gone)}
    found, counts = load(records.rankings, put([tree]))
    pairs = [(r.messages[-1]["content"], r.responses[i], r.responses[j])
             for r in found for i, j in r.pairs]
    assert sorted(pairs) == [("And?", "a", "b"), ("Q?", "best", "next")]
    assert counts["messages left out: deleted or spam, or an answer to one"] == 8


def asked(first, more):
    return f"{first}\n\n{more}" if more else first


@pytest.mark.parametrize(("name", "of"), [
    (DOLLY, lambda r: said(asked(r["instruction"], r["context"]), r["response"])),
    (GSM8K, lambda r: said(r["question"], r["answer"])),
    (ALPACA, lambda r: said(asked(r["instruction"], r["input"]), r["output"])),
    (SEEDS,
     lambda r: said(asked(r["instruction"], r["instances"][0]["input"]),
                    r["instances"][0]["output"])),
    (SHAREGPT, lambda r: said(*(m["value"] for m in r["conversations"]))),
    (CHAT, lambda r: r["messages"]),
    (KTO, lambda r: r["messages"] if r["label"] else None),
    (MT_BENCH, lambda r: said(r["turns"][0])),
    (VICUNA, lambda r: said(*r["turns"])),
    (HUMAN_EVAL, lambda r: said(r["prompt"])),
])
def test_each_record_says_what_was_published(real, name, of):
    wanted = [of(r) for r in published(real(name))]
    assert messages_of(READER[name], real(name)) == [messages for messages in wanted if messages]


def test_use_cases_and_texts(real):
    cases = Counter(p.use_case for p in load(records.prompts, real(MT_BENCH))[0])
    assert len(cases) == 8 and set(cases.values()) == {10}
    [play] = load(records.texts, real(TEXT))[0]
    assert len(play) == 1_115_394
    assert play.startswith("First Citizen:\n") and play.endswith("Whiles thou art waking.\n")


# ------------------------------------------------------------------------------------------------
# formats as they are documented

HUMAN, GPT = ({"from": who, "value": text} for who, text in (("human", "Q?"), ("gpt", "Yes.")))
POST = {"id": "t3_1", "post": "Long.", "title": "T", "subreddit": "tifu"}
NEWS = {"id": "9", "article": "Long.", "title": "T", "site": "cnn"}
SUMMARIES = [{"text": " No.", "policy": "x", "note": None},
             {"text": " Yes.", "policy": "ref", "note": None}]
LONG_PROMPT = said("Q?", "A.", "And?")
YES, NO = ([{"role": "assistant", "content": text}] for text in ("Yes.", "No."))
PAIRS = {   # a published record -> its prompt; "Yes." is chosen, "No." rejected
    "TRL": ({"prompt": "The sky is", "chosen": "Yes.", "rejected": "No."}, said("The sky is")),
    "TRL, implicit prompt": ({"chosen": "The sky is Yes.", "rejected": "The sky is No."},
                             said("The sky is ")),
    "TRL, messages": ({"prompt": LONG_PROMPT, "chosen": YES,
                       "rejected": NO}, LONG_PROMPT),
    "TRL, messages, implicit": ({"chosen": LONG_PROMPT + YES, "rejected": LONG_PROMPT + NO},
                                LONG_PROMPT),
    "HH with a prompt": ({"prompt": "\n\nHuman: Q?\n\nAssistant: A.\n\nHuman: And?\n\nAssistant:",
                          "response": "Yes.",
                          "chosen": "Yes.", "rejected": "No."}, LONG_PROMPT),
    "Alpaca": ({"instruction": "Do.", "input": "This.", "chosen": "Yes.", "rejected": "No."},
               said("Do.\n\nThis.")),
    "Alpaca, no input": ({"instruction": "Do.", "input": "", "chosen": "Yes.", "rejected": "No."},
                         said("Do.")),
    "ShareGPT": ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT | {"value": "No."}},
                 said("Q?")),
    "UltraFeedback, binarized": ({"prompt": "Q?", "prompt_id": "0f", "chosen": said("Q?", "Yes."),
                                  "messages": said("Q?", "Yes."),
                                  "rejected": said("Q?", "No."), "score_chosen": 8.5,
                                  "score_rejected": 5.0}, said("Q?")),
    "Reddit summaries": ({"info": POST, "summaries": SUMMARIES, "choice": 1, "worker": "w7",
                          "batch": "b", "split": "train"},
                         said("SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: Long.\n\nTL;DR:")),
    "news summaries": ({"info": NEWS, "summaries": SUMMARIES[::-1], "choice": 0, "worker": "w7"},
                       said("TITLE: T\n\nARTICLE: Long.\n\nTL;DR:")),
    "OpenAI": ({"input": {"messages": said("Q?", system="S."), "tools": [],
                          "parallel_tool_calls": True},
                "preferred_output": YES,
                "non_preferred_output": NO}, said("Q?", system="S.")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_as_they_are_documented(put, name):
    record, prompt = PAIRS[name]
    [found], counts = load(records.rankings, put([record]))
    [(better, worse)] = found.pairs
    assert found.messages == prompt
    assert (found.responses[better], found.responses[worse]) == ("Yes.", "No.")
    assert found.labeler == record.get("worker", "")
    unused = [what for what in counts if what.startswith(UNUSED)]
    assert counts["comparisons"] == 1 and len(counts) == 2 + len(unused)
    assert messages_of(records.prompts, put([record])) == [prompt]
    assert messages_of(records.demonstrations, put([record])) == [prompt + YES]


A, B = "Yes.", "No."
ARENA = {"conversation_a": said("Q?", A), "conversation_b": said("Q?", B), "model_a": "x",
         "model_b": "y", "language": "English"}
TWO_TURNS = {"conversation_a": said("Q?", A, "And?", "c"),
             "conversation_b": said("Q?", B, "And?", "d")}
PANDA = {"instruction": "Q?", "input": "", "response1": A, "response2": B}
EVAL = {"instruction": "Q?", "output_1": A, "output_2": B, "generator_1": "x", "annotator": "gpt4"}
ARENA_55K = {"prompt": "Q?", "response_a": A, "response_b": B, "model_a": "x", "model_b": "y"}
SAFE = {"prompt": "Q?", "response_0": A, "response_1": B, "safer_response_id": 1}
HELP = {"prompt": "Q?", "response_1": A, "response_2": B}
SHP = {"history": "Q?", "human_ref_A": A, "human_ref_B": B, "score_A": 3, "domain": "x"}
JUDGED = {   # a published record -> who won: 0, 1 or None
    "Arena a": (ARENA | {"winner": "model_a"}, 0), "Arena b": (ARENA | {"winner": "model_b"}, 1),
    "Arena tie": (ARENA | {"winner": "tie"}, None),
    "Arena bad": (ARENA | {"winner": "tie (bothbad)"}, None),
    "MT-Bench": (TWO_TURNS | {"winner": "model_b", "turn": 1, "judge": "expert_1"}, 1),
    "PandaLM": (PANDA | {"annotator1": 2, "annotator2": 2, "annotator3": 1}, 1),
    "PandaLM, text": (PANDA | {"annotator1": "1", "annotator2": "0", "annotator3": "1"}, 0),
    "PandaLM, tie": (PANDA | {"annotator1": 2, "annotator2": 1, "annotator3": 0}, None),
    "AlpacaEval": (EVAL | {"preference": 2}, 1), "AlpacaEval 1": (EVAL | {"preference": 1.0}, 0),
    "AlpacaEval, by chance": (EVAL | {"preference": 1.2}, 0),
    "AlpacaEval, tie": (EVAL | {"preference": 1.5}, None),
    "55k": (ARENA_55K | {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, 1),
    "55k, table": (ARENA_55K | {"winner_model_a": "1", "winner_model_b": "0"}, 0),
    "55k, tie": (ARENA_55K | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, None),
    "55k, lists": (ARENA_55K | {"prompt": '["Q?"]', "response_a": '["Yes."]',
                                "response_b": ["No."], "winner_model_a": 1}, 0),
    "SafeRLHF": (SAFE | {"better_response_id": 0}, 0),
    "SafeRLHF 1": (SAFE | {"better_response_id": 1}, 1),
    "HelpSteer2": (HELP | {"preference_strength": -2}, 0),
    "HelpSteer2 b": (HELP | {"preference_strength": 1}, 1),
    "HelpSteer2, tie": (HELP | {"preference_strength": 0}, None),
    "SHP": (SHP | {"labels": 1}, 0), "SHP b": (SHP | {"labels": 0}, 1),
    "by its field": (HELP | {"winner": "response_2"}, 1), "by number": (HELP | {"winner": 1}, 0),
    "by number from 0": (SAFE | {"winner": 1}, 1), "by letter": (ARENA_55K | {"winner": " B"}, 1),
}


@pytest.mark.parametrize("name", JUDGED)
def test_two_answers_and_who_won(put, name):
    record, won = JUDGED[name]
    tied = {"prompt": "Else?", "responses": ["x", "y"], "ranks": [1, 2]}
    found, counts = load(records.rankings, put([record, tied]))
    assert counts["read as judged pairs"] == 1
    assert [r.messages for r in found[:-1]] == ([] if won is None else [said("Q?")])
    if won is None:
        assert counts["prompts skipped: all responses tied"] == 1
    else:
        assert found[0].responses == [A, B] and found[0].pairs == [(won, 1 - won)]
    assert messages_of(records.prompts, put([record])) == [said("Q?")]


def test_a_winner_may_be_in_a_field_of_another_name(put):
    record = {"frage": "Q?", "links": A, "rechts": B, "besser": "b"}
    columns = "prompt=frage,response_a=links,response_b=rechts,winner=besser"
    [found], _ = load(records.rankings, put([record]), columns)
    assert found == Ranking(said("Q?"), [A, B], [(1, 0)])


@pytest.mark.parametrize(("record", "says"), [
    (HELP | {"winner": "gpt-4"}, '"winner" is gpt-4, and the answers are called response_1 and'),
    (HELP | {"winner": ""}, '"winner" is empty'),
    (HELP | {"winner": 3}, '"winner" is 3'),
    (SAFE | {"better_response_id": None}, '"better_response_id" is null'),
    (SAFE | {"better_response_id": 2}, "better_response_id is 2, and the answers are called"),
    (SAFE | {"better_response_id": 0.9}, '"better_response_id" is 0.9, and goes from 0 to 9'),
    (EVAL | {"preference": "first"}, '"preference" is first, and goes from 0 to 2'),
    (EVAL | {"preference": math.nan}, '"preference" is nan'),
    (EVAL | {"preference": 0.2}, '"preference" is 0.2, and goes from 1 to 2'),
    (SAFE | {"preference": 1}, '"preference" is known beside output_1 and output_2 only'),
    (SAFE | {"labels": 1}, '"labels" is known beside human_ref_A and human_ref_B only'),
    (HELP | {"preference_strength": math.nan}, '"preference_strength" is nan'),
    (ARENA_55K | {"winner_model_a": math.nan, "winner_model_b": 1}, '"winner_model_a" is nan'),
    (HELP | {"winner": "equalizer-7b"}, '"winner" is equalizer-7b'),
])  # fmt: skip
def test_a_winner_that_is_nobody_is_refused(put, record, says):
    with pytest.raises(ValueError, match=f"x, line 1: {says}"):
        load(records.rankings, put([record]))


def test_pairs_that_nobody_judged_are_counted(put):
    found, counts = load(records.rankings, put([EVAL | {"preference": None}, SHP | {"labels": 1},
                                                TWO_TURNS | {"winner": "model_a"},
                                                ARENA_55K | {"prompt": '["a", "b"]',
                                                             "winner_model_a": 1}]))  # fmt: skip
    assert len(found) == 1 and counts["pairs skipped: of several turns, whose replies differ from "
                                      "the first on"] == 1
    assert counts["pairs skipped: nobody judged them"] == 1
    assert counts["pairs skipped: the two sides differ in more than the last reply"] == 1


CHOSEN = {"chosen": "It is so that yes.", "rejected": "It is so that no."}


@pytest.mark.parametrize("other", [
    {"query": "Is it so?"}, {"post": "It is\nso.", "id": "7"}, {"context": "It is so.", "n": 3},
    {"turns": ["Is it so?"]}, {"history": [["Is it", "so?"]]},
])  # fmt: skip
def test_nothing_is_guessed_from_answers_while_there_is_other_text(put, other, capsys):
    path = put([CHOSEN | other])
    field = next(iter(other))
    with pytest.raises(ValueError, match=f"line 1: which field holds .* --columns prompt={field}"):
        load(records.rankings, path)
    if isinstance(other[field], str):
        [found], _ = load(records.rankings, path, f"prompt={field}")
        assert found.messages == said(other[field]) and found.responses == [*CHOSEN.values()]
    # marks and names are no text
    marks = {"id": "a-7", "margin": 0.5, "split": "test"}
    [found], _ = load(records.rankings, put([CHOSEN | marks]))
    assert found.messages == said("It is so that ")


TEMPLATE = "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:"


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        # an instruction that stands in a template too, which may hold the answer
        ({"instruction": "Add.", "input": "1 and 2", "output": "3", "prompt": TEMPLATE},
         said("Add.\n\n1 and 2", "3")),
        ({"instruction": "Add.", "input": "", "output": "3", "text": "x", "prompt": "### Add. 3"},
         said("Add.", "3")),
        ({"prompt": TEMPLATE, "input": "1 and 2", "response": "3"}, said(TEMPLATE, "3")),
        ({"prompt": "Add.", "input": "1 and 2", "completion": "3"}, said("Add.\n\n1 and 2", "3")),
        # the system's message beside the others
        ({"system": "Be kind.", "messages": said("a", "b")}, said("a", "b", system="Be kind.")),
        ({"system": "No.", "messages": said("a", "b", system="S")}, said("a", "b", system="S")),
        ({"system": "", "conversations": [HUMAN, GPT]}, said("Q?", "Yes.")),
        # turns before, as pairs and as messages
        ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, said("a", "b", "c", "d")),
        ({"instruction": "c", "output": "d", "history": said("a", "b")}, said("a", "b", "c", "d")),
        ({"prompt": "c", "response": "d", "history": [HUMAN, GPT], "system": "S"},
         said("Q?", "Yes.", "c", "d", system="S")),
        # HH's marks with one line's end, with none
        ({"prompt": "Human: a\nAssistant: b\nHuman: c\nAssistant:", "response": "d"},
         said("a", "b", "c", "d")),
        ({"prompt": "Human: a Assistant: b Human: c Assistant:", "response": "d"},
         said("a", "b", "c", "d")),
        ({"prompt": "Human: Say Human: x.\n\nAssistant:", "response": "d"},
         said("Say Human: x.", "d")),
        ({"prompt": "The Human: a Assistant: b", "response": "d"},
         said("The Human: a Assistant: b", "d")),
    ],
)
def test_a_prompt_is_read_once_and_whole(put, record, messages):
    [found], _ = load(records.demonstrations, put([record]))
    assert found.messages == messages


@pytest.mark.parametrize("parted", ["\n\n", "\n", " "])
def test_pairs_of_dialogues_with_other_marks(put, parted):
    sides = [parted.join(["Human: a", "Assistant: b", "Human: c", f"Assistant: {x}"]) for x in "de"]
    [found], counts = load(records.rankings, put([dict(zip(("chosen", "rejected"), sides))]))
    assert found == Ranking(said("a", "b", "c"), ["d", "e"], [(0, 1)])
    assert counts["read as HH pairs"] == 1


def test_parts_of_a_message_that_are_texts_are_its_text(put):
    parts = [{"type": "text", "text": "Q"}, {"type": "input_text", "text": "?"}]
    picture = [*parts, {"type": "image_url", "image_url": "x"}]
    asked = [{"messages": [{"role": "user", "content": content}, *YES]}
             for content in (parts, picture, [{"type": "text", "text": 3}], [])]  # fmt: skip
    found, counts = load(records.demonstrations, put(asked))
    assert [d.messages for d in found] == [said("Q\n?", "Yes.")]
    [skipped] = [n for what, n in counts.items() if "not a text" in what]
    assert skipped == 3


def test_replies_nested_in_flat_messages_are_read(put):
    reply = {"role": "assistant", "parent_id": "m"}
    replies = [reply | {"message_id": f"r{k}", "text": text, "rank": k}
               for k, text in enumerate(("Yes.", "No."))]  # fmt: skip
    root = {"message_id": "m", "parent_id": None, "role": "prompter", "text": "Q?"}
    [nested], _ = load(records.rankings, put([root | {"replies": replies}]))
    [flat], _ = load(records.rankings, put([root, *replies]))
    assert nested == flat and {*nested.responses} == {"Yes.", "No."}


@pytest.mark.parametrize(
    ("read", "record", "unused"),
    [
        (records.demonstrations, {"question": "a", "answer": "b", "passage": "c"}, "passage"),
        (records.demonstrations, {"prompt": "a", "response": "b", "use_case": "c"}, ""),
        (records.demonstrations, {"messages": said("a", "b"), "source": 1, "tools": []},
         "source, tools"),
        (records.rankings, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2}, "margin"),
        (records.rankings, {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2],
                            "labeler": "x", "why": ""}, "why"),
        # what is not read of a record with a prompt
        (records.prompts, {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]},
         "responses, ranks"),
        (records.texts, {"text": "a", "url\x1b[31m": "b"}, "url[31m"),
    ],
)
def test_fields_that_nobody_reads_are_named(put, read, record, unused):
    """Once a file, as often as there are records; also if some records lack them."""
    bare = {k: v for k, v in record.items() if k not in unused.split(", ") and "\x1b" not in k}
    known = bare if unused != "responses, ranks" else record
    _, counts = load(read, put([known, record, record]))
    named = [what for what in counts if what.startswith(UNUSED)]
    assert named == ([UNUSED + unused] if unused else [])
    assert all(counts[what] == 3 for what in named)


def test_an_implicit_prompt_ends_between_words(put):
    [found], _ = load(records.rankings,
                      put([{"chosen": "The sky is\nblue.", "rejected": "The sky is\nblack."}]))
    assert found == Ranking(said("The sky is\n"), ["blue.", "black."], [(0, 1)])


def test_several_answers_as_they_are_documented(put):
    nectar = {"prompt": "\n\nHuman: Q?\n\nAssistant: A.\n\nHuman: And?\n\nAssistant: ", "turns": 2,
              "num_responses": 3,
              "answers": [{"answer": x, "model": "m", "rank": k}
                          for x, k in (("b", 2.0), ("c", 3.0), ("a", 1.0))]}
    ultra = {"source": "x", "instruction": "Q?", "models": [], "completions": [
        {"response": x, "fine-grained_score": score, "overall_score": 9 - i, "model": "m"}
        for i, (x, score) in enumerate((("c", 2.5), ("a", 4.75), ("b", 3.0), ("a too", 4.75),
                                        ("unrated", None)))]}
    [one, two], _ = load(records.rankings, put([nectar, ultra]))
    beats = [{(r.responses[i], r.responses[j]) for i, j in r.pairs} for r in (one, two)]
    assert one.messages == LONG_PROMPT and beats[0] == {("a", "b"), ("a", "c"), ("b", "c")}
    assert two.messages == said("Q?")
    assert beats[1] == {("a", "b"), ("a", "c"), ("b", "c"), ("a too", "b"), ("a too", "c")}


@pytest.mark.parametrize(("record", "messages"), [
    ({"prompt": "Q?", "completion": "Yes."}, said("Q?", "Yes.")),
    ({"prompt": LONG_PROMPT, "completion": YES},
     [*LONG_PROMPT, *YES]),
    ({"prompt": "Q?", "completion": "Yes.", "label": True}, said("Q?", "Yes.")),
    ({"instruction": "Do.", "context": " \n", "response": "Yes.", "category": "open_qa"},
     said("Do.", "Yes.")),
    ({"instruction": "Do.", "output": "Yes."}, said("Do.", "Yes.")),
    ({"conversations": [{"from": "system", "value": "S."}, HUMAN, GPT], "id": "1"},
     said("Q?", "Yes.", system="S.")),
    ({"conversations": [HUMAN | {"from": "user"}, GPT | {"from": "chatgpt"}]}, said("Q?", "Yes.")),
    ({"conversations": said("Q?", "Yes.")}, said("Q?", "Yes.")),
    ({"messages": [{"role": "developer", "content": "S."}, *said("Q?", "Yes.")]},
     said("Q?", "Yes.", system="S.")),
    ({"prompt": "Q?", "prompt_id": "0f", "messages": said("Q?", "Yes."), "category": "Chat"},
     said("Q?", "Yes.")),
])
def test_demonstrations_as_they_are_documented(put, record, messages):
    assert messages_of(records.demonstrations, put([record])) == [messages]
    assert messages_of(records.prompts, put([record])) == [messages[:-1]]


GOOD = {records.demonstrations: {"prompt": "Q?", "response": "Yes."},
        records.prompts: {"prompt": "Q?"}, records.texts: {"text": "a"},
        records.rankings: {"prompt": "Q?", "chosen": "a", "rejected": "b"}}


@pytest.mark.parametrize(("read", "record", "reason"), [
    (records.rankings, PAIRS["UltraFeedback, binarized"][0] | {"score_rejected": 8.5},
     "both sides have one score"),
    (records.rankings, {"chosen": said("Q?", "a"), "rejected": said("Why?", "b")},
     "differ in more than the last reply"),
    (records.rankings, {"chosen": said("Q?", "a", "So?"), "rejected": said("Q?", "a", "No?")},
     "more than the last reply"),
    (records.rankings, {"chosen": "Yes.", "rejected": "No."}, "the two sides share no prompt"),
    (records.rankings, {"prompt": "Q?", "chosen": " ", "rejected": "No."},
     "the chosen reply is empty"),
    (records.demonstrations, {"instruction": "Do.", "input": "", "output": "\n"},
     "the response is empty"),
    (records.demonstrations, {"prompt": "Q?", "completion": "No.", "label": False},
     "their reply is labelled bad"),
    (records.demonstrations, {"conversations": [HUMAN]}, "no reply to train on follows"),
    (records.demonstrations, {"messages": said("Q?")}, "no reply to train on follows"),
    (records.demonstrations, {"conversations": [{"from": "tool", "value": "4"}, GPT]},
     "a message of another role"),
    (records.demonstrations,
     {"messages": [*said("Q?"), {"role": "assistant", "content": [{"type": "text"}]}]},
     "not a text"),
])
def test_what_is_left_out_is_counted_with_its_reason(put, read, record, reason):
    found, counts = load(read, put([record, GOOD[read]]))
    assert len(found) == 1 and [n for what, n in counts.items() if reason in what] == [1]


# ------------------------------------------------------------------------------------------------
# files

SAID = [('Hi, "you"?', "Ho.\n\nHa, é 日本."),
        ("\u2028\u2029\x85 \u200b\ufeff", "tab\t \x00 \x7f"),
        ("<|endoftext|>", " 👩‍👩‍👧 ")]


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["response", "prompt"])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().replace("\r\n", "\n")


def crlf(text):
    return text.replace("\n", "\r\n").encode()


AS_IS = {"plain": str.encode, "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
         "CRLF": crlf, "all and gzip": lambda text: gzip.compress(b"\xef\xbb\xbf" + crlf(text))}
FORMS = {"JSONL": lambda rs: "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rs),
         "array": json.dumps, "CSV": as_csv,
         "sparse JSONL": lambda rs: "\n  \n" + "\n\n".join(map(json.dumps, rs)),
         "indented array": lambda rs: "\n" + json.dumps(rs, indent=2, ensure_ascii=False) + "\n"}


@pytest.mark.parametrize("wrap", AS_IS)
@pytest.mark.parametrize("form", FORMS)
def test_the_content_decides_never_the_name(put, form, wrap):
    content = AS_IS[wrap](FORMS[form]([{"prompt": p, "response": r} for p, r in SAID]))
    for name in ("data.csv", "data.json", "data.txt.gz", "jsonl"):
        found = messages_of(records.demonstrations, put(content, name))
        assert found == [said(*turns) for turns in SAID]


@pytest.mark.parametrize("text", [
    "[Enter Hamlet] Who's there?\n", "{Enter Hamlet}\n", "[1] A note, [2] another.",
    '"Who\'s there?"', "[x for x in y]", "null",
    "A line,\nprompt,response\n",
])
def test_anything_else_is_one_text(put, text):
    for name in ("x.json", "x.jsonl", "x.csv"):
        found, counts = load(records.texts, put(text, name))
        assert found == [text] and counts == {"read as texts": 1, "documents": 1}


TABLE = [["prompt", "response"], ["Hi, you?", "Ho."], ["a\tb; c", 'd "e"\nf']]


def as_table(delimiter, rows=TABLE):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_tables_may_be_parted_by_tabs_and_semicolons(put, delimiter):
    found = messages_of(records.demonstrations, put(as_table(delimiter)))
    assert found == [said(*row) for row in TABLE[1:]]
    # a column without a name counts the rows, as pandas does
    counted = [["", "question", "answer"], *([str(i), *row] for i, row in enumerate(TABLE[1:]))]
    found = messages_of(records.demonstrations, put(as_table(delimiter, counted)))
    assert found == [said(*row) for row in TABLE[1:]]
    named = [["frage", "antwort"], *TABLE[1:]]
    found, _ = load(records.demonstrations, put(as_table(delimiter, named)),
                    "prompt=frage,response=antwort")
    assert [d.messages for d in found] == [said(*row) for row in TABLE[1:]]


@pytest.mark.parametrize(("content", "says"), [
    ('"Hi."\n"Ho."\n', 'is JSON, but of no objects .*: "Hi."; write one a line'),
    ('["Hi.", "Ho."]\n["a", "b"]\n["c", "d"]\n', ", line 1: the array ends and something follows"),
    ('[["Hi.", "Ho."], ["a", "b"]]', "is JSON, but of no objects"),
    ('[\n  [1, 2],\n  [3, 4]\n]\n', "is JSON, but of no objects"),
    ("- prompt: Hi.\n  response: Ho.\n", "is YAML: - prompt: Hi.; write it as JSON lines"),
    ("---\n- instruction: a\n  output: b\n", "is YAML"),
    ("frage,antwort\na,b\nc,d\n", "is a table, .*: frage,antwort; .*--columns prompt=frage"),
    ("q\ta\nHi, you?\tHo.\nx\ty\n", "is a table, .*--columns prompt=q"),
    ("q;a;n\nHi.;Ho.;1\nx;y;2\nz;w;3\n", "is a table, .*--columns prompt=q"),
    ('Frage,Antwort\n"Hi, you?\nYes?",Ho.\n', "is a table, .*--columns prompt=Frage"),
    ("id,conversation id,antwort\n1,2,a\n", "is a table, .*--columns prompt=id"),
    ("My data\nprompt,response\na,b\n", "is a table behind another line: remove My data"),
    ("sep=;\nprompt;response\na;b\n", "is a table behind another line: remove sep=;"),
    ("| prompt | response |\n|---|---|\n| a | b |\n", "is a table of Markdown"),
    ("prompt: Hi.\nresponse: Ho.\n---\nprompt: x\n", "is YAML"),
    ("data:\n  - prompt: Hi.\n    response: Ho.\n", "is YAML"),
    ('- "prompt": Hi.\n  "response": Ho.\n', "is YAML"),
    ("{'prompt': 'Hi.', 'response': 'Ho.'}\n" * 3, "is written by Python"),
    ('data: {"prompt": "a"}\ndata: {"prompt": "b"}\n', "is a stream of events"),
    ('{"data": [\n{"prompt": "a"},\n]}\n', "is one JSON object of several lines"),
    (json.dumps([[{"role": "user", "content": "x" * 100}]] * 9000), "is JSON, but of no objects"),
    (json.dumps([["q" * 100, "a" * 100]] * 6000), "is JSON, but of no objects"),
    ("a\0b\0" * 500, "holds NUL bytes"),
    ('"Hi."\n"Ho."', "is JSON, but of no objects"), ("q,a\nHi.,Ho.", "is a table, .*prompt=q"),
])
def test_what_has_a_structure_that_is_not_known_is_never_text(put, content, says):
    for wrap in (str.encode, lambda text: gzip.compress(text.encode())):
        with pytest.raises(ValueError, match=f"x.txt ?{says}"):
            load(records.texts, put(wrap(content), "x.txt"))


@pytest.mark.parametrize("text", [
    "1\n2\n3\n", "Sir,\nI write,\nand go,\n", "One; two\nthree; four\nfive\n",
    "Dear sir, madam\nHello, you\nBye, all\n", "a\tb\n", "- a list: of\n- things\n",
    "---" + "\n" * 300_000 + "The end.", "HAMLET: To be.\nHORATIO: Or not.\n",
    "User: Hi.\nAssistant: Ho.\n", "[1, 2] found that\n", "Sweet, kind\nApples, pears\n",
    "---\nA line.\n---\n", '"Hi," he said.\n"Ho," said she.\n', "null\ntrue\n1.5\n",
])
def test_text_with_signs_in_it_is_text(put, text):
    assert load(records.texts, put(text))[0] == [text]


def test_strings_in_an_array_are_prompts(put):
    found = messages_of(records.prompts, put('["Hi.",\n "Ho."]'))
    assert found == [said("Hi."), said("Ho.")]


def test_files_and_folders(put, tmp_path):
    """Several files are read in turn, each in its own format; folders are searched, hidden files
    left out."""
    (tmp_path / "more" / "deep").mkdir(parents=True)
    third = gzip.compress(b'[{"text": "3"}]')
    paths = put('{"text": "1"}', "b"), put("2", "more/a"), put(third, "more/deep/c")
    put("hidden", "more/.d")
    assert files_in([paths[0], str(tmp_path / "more")]) == paths
    assert [(where, r["text"]) for where, r in formats.read_records(paths, Counter())] == [
        (f"{paths[0]}, line 1", "1"), (paths[1], "2"), (f"{paths[2]}, line 1", "3")]


def test_an_end_of_text_in_a_record_stays_text(put, enc):
    """In every kind of batch, only what the code put there is EOS."""
    eos = "Say <|endoftext|><|endoftext|>"
    hh = {"chosen": f"\n\nHuman: {eos}\n\nAssistant: {eos}",
          "rejected": f"\n\nHuman: {eos}\n\nAssistant: No."}
    ranked, _ = load(records.rankings, put([hh]))
    batch = comparisons_batch(encode_rankings(ranked, enc, 200, Counter()))
    assert enc.eot_token not in batch.prompts.ids
    assert batch.ids[0].tolist().count(enc.eot_token) == 1
    for content in ([{"instruction": eos, "output": eos}], f'prompt,response\n"{eos}","{eos}"\n'):
        shown, _ = load(records.demonstrations, put(content))
        [(ids, _)] = encode_demonstrations(shown, enc, 200, Counter())
        assert ids.count(enc.eot_token) == 1 and enc.decode(ids[:-1]).count("<|endoftext|>") == 4
    assert pack(load(records.texts, put(eos))[0], enc).tolist().count(enc.eot_token) == 1


# ------------------------------------------------------------------------------------------------
# what cannot be read

@pytest.mark.parametrize("wrap", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("content", [
    b"one\ntwo \xe9t\xe9\n", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', b'[\n{"prompt": "caf\xe9"}]',
    b"prompt,x\ncaf\xe9,1\n"])
def test_what_is_not_utf8_is_named_by_line_and_byte(put, content, wrap):
    at = content.index(b"\xe9")
    says = f"x.jsonl, line 2: byte {at} is not UTF-8; convert it, e.g. iconv -f latin1"
    with pytest.raises(ValueError, match=says):
        load(records.prompts, put(wrap(content), "x.jsonl"))


def test_damaged_gzip_files_are_named(put):
    whole = gzip.compress(b'{"prompt": "a"}\n' * 500)
    for broken in (whole[:-9], whole[:10] + b"\xff" * 20 + whole[30:], whole[:-8] + b"12345678",
                   whole[:2]):
        with pytest.raises(ValueError, match="x.gz is a damaged gzip file .*: fetch it again"):
            load(records.prompts, put(broken, "x.gz"))


def test_a_file_cut_short_or_broken_in_a_line_is_named_by_that_line(real, put):
    """JSON lines and an indented array."""
    with open(real(ALPACA), encoding="utf-8") as f, open(real(GSM8K), encoding="utf-8") as g:
        array, jsonl = f.read(), g.read().split("\n")
    for cut in (1000, 20_000, len(array) - 2):
        line = array[:cut].count("\n") + 1
        with pytest.raises(ValueError, match=rf"x, line {line}: not JSON .*was the file cut short"):
            load(records.demonstrations, put(array[:cut]))
    lines = array.split("\n")
    for n in (3, 15, 500):
        broken = [*lines[:n - 1], lines[n - 1].replace('": "', '": ""', 1), *lines[n:]]
        assert broken != lines
        with pytest.raises(ValueError, match=rf"x, line {n}: not JSON \("):
            load(records.demonstrations, put("\n".join(broken)))
    for n in (1, 7, 900):
        path = put("\n".join([*jsonl[:n - 1], jsonl[n - 1][:-1], *jsonl[n:]]))
        with pytest.raises(ValueError,
                           match=rf"x, line {n}: not JSON \(.*; write one object a line"):
            records.demonstrations(formats.read_records(path, Counter()), Counter(), strict=True)
        found, counts = load(records.demonstrations, path)
        assert (len(found), counts["bad records skipped"]) == (999, 1)


@pytest.mark.parametrize(("read", "record", "says"), [
    (records.demonstrations, {"instruction": "a", "input": "", "output": 3},
     "a response must be a text, and is a number"),
    (records.demonstrations, {"prompt": "a", "completion": None},
     "a response must be a text, and is null"),
    (records.demonstrations, {"instruction": None, "output": "b"},
     "has the fields of Alpaca but not their form"),
    (records.demonstrations, {"conversations": ["Hi.", "Ho."]},
     "has the fields of ShareGPT but not their form"),
    (records.rankings, {"prompt": "a", "chosen": 3, "rejected": "b"},
     "a response must be a text, and is a number"),
    (records.rankings, {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": None},
     "a response must be a text, and is null"),
    (records.rankings, PAIRS["Reddit summaries"][0] | {"choice": None},
     "has the fields of summarize-from-feedback but not"),
    (records.prompts, {"turns": []}, "has the fields of turns but not their form"),
    (records.prompts, {"prompt": "a", "history": [["b"]]}, "has the fields of prompts but not"),
    (records.prompts, {"frage": "a", "antwort": "b"},
     "no format has the fields frage, antwort; say which .*--columns prompt="),
    (records.prompts, {}, r"no format has the fields \(none\)"),
    (records.texts, ["a"], "a record is a JSON object, and this is a list"),
])
def test_records_that_are_not_what_is_needed_are_named(put, read, record, says):
    """In an array of four lines a record, the third begins in line 10."""
    good = json.dumps(GOOD[read]).replace("{", "{\n\n\n", 1)
    content = f"[\n{good},\n{good},\n{json.dumps(record)}\n]"
    with pytest.raises(ValueError, match=f"x, line 10: .*{says}"):
        list(read(formats.read_records(put(content), Counter()), Counter(), strict=True))
    found, counts = load(read, put(content))
    assert len(found) == 2 and counts["bad records skipped"] == 1


@pytest.mark.parametrize("form", ['{"prompt": "a"}\n%s', '[{"prompt": "a"},\n%s]'])
@pytest.mark.parametrize(("value", "says"), [
    ("[" * 300 + "]" * 300, "lie more than 250 deep"),
    ('{"x":' * 990 + "1" + "}" * 990, "lie more than 250 deep"),
    ("[" * 100_000 + "]" * 100_000, "lie more than 250 deep"),
    ("9" * 5000, "a number has thousands of digits"),
    (r'"a \ud800 b"', r"a text has half a character, \\ud800"),
    (r'{"\udfff": 1}', r"a text has half a character, \\udfff"),
])
def test_json_that_python_cannot_work_with_is_named_by_its_line(put, form, value, says):
    """In whatever field."""
    for field in ("prompt", "label", "meta"):
        record = f'{{"prompt": "b", "{field}": {value}}}'
        with pytest.raises(ValueError, match=f"x, line 2: .*{says}"):
            records.prompts(formats.read_records(put(form % record), Counter()), Counter(), True)


def test_json_of_ordinary_depth_and_whole_characters_is_read(put):
    deep = "[" * 200 + "]" * 200
    found = messages_of(records.prompts, put(rf'{{"prompt": "\ud83d\ude00", "x": {deep}}}'))
    assert found == [said("\N{GRINNING FACE}")]


# ------------------------------------------------------------------------------------------------
# --columns and the command line

HI = Demonstration(said("Hi.", "Ho."))


@pytest.mark.parametrize(("read", "content", "columns", "found"), [
    (records.demonstrations, '{"frage": "Hi.", "antwort": "Ho.", "prompt": "x"}',
     "prompt=frage,response=antwort", HI),
    (records.demonstrations, json.dumps([{"antwort": "Ho.", "frage": "Hi.", "response": 3}]),
     "prompt=frage,response=antwort", HI),
    (records.demonstrations, "id,antwort,frage\n1,Ho.,Hi.\n", "prompt=frage,response=antwort", HI),
    (records.rankings, '{"q": "Hi.", "good": "a", "bad": "b"}', "prompt=q,chosen=good,rejected=bad",
     Ranking(said("Hi."), ["a", "b"], [(0, 1)])),
    (records.texts, '{"content": "a", "text": 3}', "text=content", "a"),
])
def test_columns_give_fields_the_names_that_are_known(put, read, content, columns, found):
    assert load(read, put(content), columns)[0] == [found]


@pytest.mark.parametrize(("columns", "says"), [
    ("prompt=q,response=none", "x, line 1: --columns names a field none; the record has q, a"),
    ("prompt", "--columns prompt: write known=yours, e.g. --columns prompt=question"),
    ("prompt=q=a", "write known=yours"), ("=q", "write known=yours"),
    ("prompt=", "write known=yours"),
    ("prompt=q,response=q", "names q twice"), ("prompt=q,prompt=a", "names prompt twice"),
    ("prompt=q,reply=a", '"response" is missing'),
])
def test_wrong_columns_are_a_sentence(put, columns, says):
    with pytest.raises(ValueError, match=says):
        load(records.demonstrations, put([{"q": "Hi.", "a": "Ho."}]), columns)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `python data.py ...` in this process -> (exit code, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["data.py", *argv])
        code = 0
        try:
            show.main()
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


def test_lengths_are_counted_in_doubling_bins():
    lines = show.histogram([0, 1, 2, 3, 16, 31, 32, 1000])
    assert [line.split()[0] for line in lines] == [
        "0-0", "1-1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128-255", "256-511",
        "512-1,023"]  # fmt: skip
    assert [line.split()[-1] for line in lines] == [
        "12%", "12%", "25%", "0%", "0%", "25%", "12%", "0%", "0%", "0%", "12%"]  # fmt: skip
    assert [line.count("#") for line in lines] == [20, 20, 40, 0, 0, 40, 20, 0, 0, 0, 20]


def test_a_model_tells_lengths_in_its_tokens_and_what_its_context_cuts(
    command, put, tmp_path, enc
):
    tiny = model.GPT(model.GPTConfig(enc.n_vocab, block_size=24, n_layer=1, n_head=1, n_embd=8))
    save_checkpoint(str(tmp_path / "sft.pt"), tiny, tokenizer_id(enc), {})
    turns = [("Hi.", "Ho."), ("Hi.", "Ho."), ("a " * 40, "b"), ("Ho.", "Hi.")]
    path = put([{"prompt": p, "response": r} for p, r in turns])
    code, out, _ = command(path, "--model", str(tmp_path / "sft.pt"))
    assert code == 0 and "1 say again what one before them says" in out
    assert "1 are longer than the context of 24" in out
    sizes = [len(encode_dialogue(enc, said(*turn))[0]) for turn in turns]
    assert all(line in out for line in show.histogram(sizes))
    code, _, err = command(path, "--model", path)
    assert code == 2 and "checkpoint" in err


def test_of_a_folder_there_is_a_line_for_each_file(command, put, tmp_path):
    (tmp_path / "f" / "g").mkdir(parents=True)
    put([GOOD[records.demonstrations]] * 3, "f/a.jsonl")
    put("Once.", "f/b.txt"), put('{"a": ', "f/g/c.json"), put(b"PK\x03\x04", "f/g/d")
    code, out, err = command(str(tmp_path / "f"))
    a, b, c, d = out.splitlines()
    assert (code, err) == (0, "") and "f/a.jsonl: 3 demonstrations; data: 3 read as" in a
    assert "f/b.txt: 1 texts" in b and "f/g/c.json: " in c and "not JSON" in c
    assert "f/g/d is a zip archive" in d


@pytest.mark.parametrize(("name", "read", "n", "_", "counted"), ALL)
def test_the_command_says_what_a_file_was_taken_for_and_shows_three_records(
    real, command, name, read, n, _, counted
):
    code, out, err = command(real(name))
    head, *shown, last = out.split("---\n")
    assert (code, err, last, len(shown)) == (0, "", "", min(n, 3))
    assert f": {n:,} {read.__name__}; " in head
    assert all(f" {count:,} {what}" in head for what, count in counted.items())
    for r, text in zip(load(read, real(name))[0], shown):
        if read == records.texts:
            assert text == f"\033[32m{r[:500]}\033[0m\n"
            continue
        assert all(m["content"].strip() in text for m in r.messages)
        green = re.findall(r"\033\[32m (.*?)(?:<\|endoftext\|>)?\033\[0m", text, re.DOTALL)
        replies = [m["content"] for m in r.messages if m["role"] == "assistant"]
        if read == records.rankings:
            replies = r.responses
            for k in range(len(replies)):
                wins, losses = (sum(p[side] == k for p in r.pairs) for side in (0, 1))
                assert f"beats {wins}, loses to {losses}:" in text
        if read != records.prompts:
            assert [x.strip() for x in green][-len(replies):] == [x.strip() for x in replies]


def test_the_command_takes_several_files_and_columns(put, command):
    one, two = put([{"q": "Hi.", "a": "Ho."}] * 2, "one"), put("q,a\nHi.,Ho.\n", "two")
    code, out, _ = command(one, two, "--columns", "prompt=q,response=a")
    record = "User: Hi.\n\nAssistant:\033[32m Ho.<|endoftext|>\033[0m\n---\n"
    assert code == 0 and out.count(record) == 3
    assert f"{one}: 2 demonstrations; " in out and f"{two}: 1 demonstrations; " in out


@pytest.mark.parametrize(("content", "argv", "says"), [
    (None, [], "holds no file of data"), (b"caf\xe9", [], "is not UTF-8"),
    ('{"a": 1}', [], "no format has the fields a"),
    ("\n \n", [], "x holds no record"), (" [ ]", [], "x holds no record"),
    (gzip.compress(b"", mtime=0), [], "x holds no record"),
    ('{"a": ', [], "line 1: not JSON"), ("[{", [], "cut short"),
    ("a", ["none"], "none does not exist"),
    ('{"a": 1}', ["--columns", "a"], "--columns a: write known=yours"),
    ('{"prompt": "a", "meta": {"answers": []}}', [], '"meta" is for the answer key'),
])
def test_bad_files_are_one_sentence_and_exit_code_2(put, tmp_path, command, content, argv, says):
    code, out, err = command(str(tmp_path) if content is None else put(content), *argv)
    assert code == 2 and ("none" in argv or out == "")
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


# ------------------------------------------------------------------------------------------------
# odd files


def test_alpaca_with_a_system_text_and_a_history(put):
    r = {"system": "Be kind.", "history": [["a", "b"]], "instruction": "c", "input": "",
         "output": "d"}
    found = messages_of(records.demonstrations, put([r]))
    assert found == [said("a", "b", "c", "d", system="Be kind.")]


def test_one_long_line_of_text(put):
    assert load(records.texts, put("word " * 50_000))[0] == ["word " * 50_000]


def test_counts_are_not_doubled(put, enc):
    found, counts = load(records.prompts, put('{"prompt": "a"}\n'))
    encode_prompts(found, enc, 50, counts)
    line = report(counts)
    assert line.count("1 prompts") == 1 and "2 prompts" not in line


@pytest.mark.parametrize("more", [{"id": 1}, {}])
def test_hh_with_another_field_or_without_leading_newlines(put, more):
    lead = "\n\n" if more else ""
    r = {x: f"{lead}Human: Hi?\n\nAssistant: I am {x}" for x in ("chosen", "rejected")} | more
    [found], _ = load(records.rankings, put(json.dumps(r)))
    assert found.messages == said("Hi?") and found.responses == ["I am chosen", "I am rejected"]


@pytest.mark.parametrize("content", [
    '[{"prompt": "a"}]\n[{"prompt": "b"}]', '["a"]\n["b"]', '[{"prompt": "a"}] and more',
])
def test_nothing_behind_an_array_is_lost(put, content):
    with pytest.raises(ValueError, match=r"x, line \d: the array ends and something follows"):
        load(records.prompts, put(content))


def test_a_csv_row_with_too_many_fields(put):
    with pytest.raises(ValueError, match="line 2"):
        load(records.demonstrations, put("prompt\na,b\n"))


def test_a_csv_row_with_too_few_fields(put):
    """Not filled: columns times rows may be many. An empty line is no row."""
    good = "prompt,response\na,b\n\nc,d\n"
    assert len(load(records.demonstrations, put(good))[0]) == 2
    with pytest.raises(ValueError, match="x, line 5: has 1 fields and the first line 2"):
        records.demonstrations(formats.read_records(put(good + "e\n"), Counter()), Counter(), True)
    found, counts = load(records.demonstrations, put(good + "e\n"))
    assert len(found) == 2 and counts["bad records skipped"] == 1


@pytest.mark.parametrize("row", ['"a,b\nc,d\n', 'a,"b\nc,d\n'])
def test_a_quotation_mark_that_is_not_closed_does_not_swallow_the_rest(put, row):
    with pytest.raises(ValueError, match=r"x, line 3: not CSV \(.*: see to its quotation marks"):
        load(records.demonstrations, put("prompt,response\nx,y\n" + row))


def test_two_columns_of_one_name(put):
    with pytest.raises(ValueError, match="x, line 1: two columns are named response: rename one"):
        load(records.demonstrations, put("prompt,response,response\na,b,c\n"))
    nameless = "prompt,response,,\na,b,,\n"
    assert messages_of(records.demonstrations, put(nameless)) == [said("a", "b")]


def oasst_chain(n):
    """Each message the only answer to the one before."""
    return [{"message_id": str(i), "parent_id": str(i - 1) if i else None, "text": "a",
             "role": ("prompter", "assistant")[i % 2]} for i in range(n)]


@pytest.mark.parametrize(("rows", "says"), [
    (oasst_chain(1200), "line 1: .*a thread has more than 100 messages: cut it"),
    ([oasst_chain(1)[0] | {"message_id": ["0"]}], 'line 1: "message_id" and "parent_id" must be'),
    ([oasst_chain(1)[0] | {"parent_id": {}}], 'line 1: "message_id" and "parent_id" must be'),
    (oasst_chain(2) + oasst_chain(1), 'line 3: "message_id" 0 is in the file twice'),
])
def test_oasst_threads_that_are_none(put, rows, says):
    with pytest.raises(ValueError, match=f"x, {says}"):
        load(records.rankings, put(rows))


def test_an_oasst_thread_of_100_messages_is_read(put):
    _, counts = load(records.rankings, put([*oasst_chain(100), *ranked_replies()]))
    assert counts["OASST messages"] == 103 and counts["comparisons"] == 1


def ranked_replies():
    """A thread with two ranked replies."""
    asked = {"message_id": "q", "text": "a", "role": "prompter"}
    return [asked] + [{"message_id": x, "parent_id": "q", "text": x, "role": "assistant", "rank": i}
                      for i, x in enumerate("rs")]


def test_oasst_without_nulls(put):
    assert len(load(records.rankings, put(ranked_replies()))[0]) == 1


def test_oasst_with_a_broken_message(put):
    rows = [{"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"},
            {"text": "b", "role": "assistant"}]
    with pytest.raises(ValueError, match="line 2"):
        load(records.rankings, put("\n".join(map(json.dumps, rows))))


def test_an_empty_instance_does_not_hide_the_others(put):
    r = {"instruction": "a",
         "instances": [{"input": "x", "output": ""}, {"input": "y", "output": "good"}]}
    assert len(load(records.demonstrations, put([r]))[0]) == 1


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_latin1_behind_a_byte_order_mark(put, wrap):
    with pytest.raises(ValueError, match="line 2: byte 5 "):
        load(records.texts, put(wrap(b"\xef\xbb\xbfa\n\xff")))


@pytest.mark.parametrize("content", [
    '{"prompt": "a", "completion": "b", "label": 0}', "prompt,completion,label\na,b,False\n",
])
def test_bad_labels_in_other_spellings(put, content):
    with pytest.raises(ValueError, match="holds no demonstration"):
        load(records.demonstrations, put(content))


def test_a_completion_that_ends_with_the_user(put):
    r = {"prompt": [{"role": "user", "content": "a"}],
         "completion": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}
    with pytest.raises(ValueError, match="records skipped: the response is empty"):
        load(records.demonstrations, put(json.dumps(r)))


def test_a_prompt_that_differs_in_white_space_is_not_doubled(put):
    r = {"prompt": "Q? ", "chosen": said("Q?", "Yes."), "rejected": said("Q?", "No.")}
    assert messages_of(records.rankings, put([r])) == [said("Q?")]


def test_the_last_turn_of_a_conversation_is_a_prompt(put):
    r = [{"conversations": [{"from": "human", "value": "Hi?"}]}]
    assert len(load(records.prompts, put(json.dumps(r)))[0]) == 1


def test_hh_prompts_in_a_file_of_prompts(put):
    r = {"prompt": "\n\nHuman: Hi?\n\nAssistant:"}
    assert messages_of(records.prompts, put([r])) == [said("Hi?")]


@pytest.mark.parametrize("text", ["[[Hamlet]] is a play.", "[1] is a note."])
def test_text_that_looks_like_json_for_two_characters(put, text):
    assert load(records.texts, put(text))[0] == [text]


# ------------------------------------------------------------------------------------------------
# lists written as texts, several texts for one, marks: what lies beside the formats


ASKED = [{"role": "user", "content": "What is it?"}]
TOLD = [*ASKED, {"role": "assistant", "content": "It is red."}]
OTHER = [*ASKED, {"role": "assistant", "content": "It is blue."}]


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_a_dialogue_that_a_table_holds_as_a_text_is_a_dialogue(put, write):
    pairs = f"prompt,chosen,rejected\n{_row('What is it?', write(TOLD), write(OTHER))}"
    [found], _ = load(records.rankings, put(pairs))
    assert found == Ranking(ASKED, ["It is red.", "It is blue."], [(0, 1)])
    [found], _ = load(records.rankings, put(f"chosen,rejected\n{_row(write(TOLD), write(OTHER))}"))
    assert found.messages == ASKED
    for field in ("messages", "conversations"):
        [found], _ = load(records.demonstrations, put([{field: write(TOLD)}]))
        assert found.messages == TOLD
        assert messages_of(records.prompts, put([{field: write(TOLD)}])) == [ASKED]
    assert messages_of(records.prompts, put([{"turns": write(["A?", "B?"])}])) == [said("A?")]
    # as NumPy prints them there is no comma
    bad = "[{'role': 'user', 'content': 'a'} {'role': 'assistant', 'content': 'b'}]"
    with pytest.raises(ValueError, match='"messages" is a list written as a text that is neither'):
        load(records.demonstrations, put([{"messages": bad}]))


def _row(*fields):
    out = io.StringIO()
    csv.writer(out).writerow(fields)
    return out.getvalue()


@pytest.mark.parametrize("first", ['sponse": "b"}', "# made by export.py", "// x", '{"note": 1}'])
def test_a_first_line_that_is_none_of_them_is_one_bad_record(put, first):
    good = '{"prompt": "What is it?", "response": "It is red."}\n'
    found, counts = load(records.demonstrations, put(f"{first}\n{good * 3}"))
    assert len(found) == 3 and counts["bad records skipped"] == 1
    flat = "".join(json.dumps(m) + "\n" for m in (
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Why?"},
        {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "b", "rank": 0},
        {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "c", "rank": 1}))
    [found], counts = load(records.rankings, put('{"broken\n' + flat))
    assert sorted(found.responses) == ["b", "c"] and counts["bad records skipped"] == 1


@pytest.mark.parametrize("replies", [3, ["x"], [{"message_id": "a"}], [{"message_id": []}]])
def test_replies_that_lead_in_circles_end(put, replies):
    m = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Why?"}
    with pytest.raises(ValueError, match="replies|holds no ranking|not their form"):
        load(records.rankings, put([m | {"replies": replies}]))


@pytest.mark.parametrize(("record", "says"), [
    ({"question": "a", "answer": "b", "response": "c"}, "response and answer hold different texts"),
    ({"prompt": "a b", "instruction": "c d", "output": "e"}, '"prompt" and "instruction" hold'),
    ({"question": "a", "context": {"x": ["y"]}, "answer": "b"}, "input or context is an object"),
    ({"word": "luck", "chosen": "The word a", "rejected": "The word b"}, "--columns prompt=word"),
    ({"input": "Hello", "chosen": "Hello a", "rejected": "Hello b"}, "--columns prompt=input"),
])  # fmt: skip
def test_of_several_texts_none_is_guessed(put, record, says):
    with pytest.raises(ValueError, match=says):
        load(records.rankings if "chosen" in record else records.demonstrations, put([record]))


def test_the_one_that_is_named_is_taken(put):
    record = {"question": "a", "answer": "b", "response": "c"}
    [found], _ = load(records.demonstrations, put([record]), "response=answer")
    assert found.messages == said("a", "b")
    swapped = {"prompt": "b", "response": "a"}
    [found], _ = load(records.demonstrations, put([swapped]), "prompt=response,response=prompt")
    assert found.messages == said("a", "b")
    for context in (["x", "y"], "x\n\ny"):
        record = {"question": "a", "input": "", "context": context, "answer": "b"}
        assert messages_of(records.demonstrations, put([record])) == [said("a\n\nx\n\ny", "b")]


@pytest.mark.parametrize(("chosen", "rejected"), [
    ("\n\nHuman: Q r?\n\nAssistant: Good.", "\n\nHuman: Q r?\n\nAssistant: Bad."),
    ("Q r? Good.", "Q r? Bad."), ("Assistant: Good.", "Assistant: Bad."), ("Good.", "Bad."),
])
def test_a_prompt_that_both_sides_repeat_is_no_part_of_the_answers(put, chosen, rejected):
    record = {"prompt": "Q r?", "chosen": chosen, "rejected": rejected}
    [found], _ = load(records.rankings, put([record]))
    assert (found.messages, found.responses) == (said("Q r?"), ["Good.", "Bad."])


def test_a_system_message_beside_dialogues_does_not_ask_twice(put):
    record = {"system": "Be kind.", "prompt": "What is it?", "chosen": TOLD, "rejected": OTHER}
    [found], _ = load(records.rankings, put([record]))
    assert found.messages == said("What is it?", system="Be kind.")


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"train": "no"},
                                  {"weight": math.nan}])
@pytest.mark.parametrize("record", [PAIR, CHOSEN, PANDA | {"annotator1": 1}, {"text": "a"}])
def test_what_is_marked_is_trained_on_nowhere(put, mark, record):
    for read in (records.demonstrations, records.rankings, records.texts):
        if (read is records.texts) == ("text" in record):
            with pytest.raises(ValueError, match="marked as not to be trained on"):
                load(read, put([record | mark]))


def test_a_reply_that_is_marked_is_not_trained_on(put):
    marked = [TOLD[0], TOLD[1] | {"weight": 0}]
    for record in ({"prompt": "What is it?", "chosen": marked, "rejected": OTHER},
                   {"prompt": ASKED, "completion": marked[1:]}):
        with pytest.raises(ValueError, match="marked as not to be trained on"):
            load(records.demonstrations, put([record]))
    for label in ("rejected", "thumbs_down", "f", math.nan):
        with pytest.raises(ValueError, match="their reply is labelled bad"):
            record = {"prompt": "a", "completion": "b", "label": label}
            load(records.demonstrations, put([record]))


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, gzip.compress])
def test_members_of_a_packed_file(put, pack):
    one, two = ('{"text": "One."}\n' * 20).encode(), ('{"text": "Two."}\n' * 20).encode()
    assert len(load(records.texts, put(pack(one) + pack(two)))[0]) == 40
    assert len(load(records.texts, put(pack(one) + bytes(64)))[0]) == 20
    second = bytearray(pack(two))
    second[1] ^= 1
    for damaged in (pack(one) + bytes(second), pack(one) + pack(two)[:-9], pack(one) + b"garbage"):
        with pytest.raises(ValueError, match="x is a damaged .* file"):
            load(records.texts, put(damaged))
