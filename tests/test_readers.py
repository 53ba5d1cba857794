"""A fuzz of the readers: whatever a file holds, it is read or refused in a sentence, and nothing is
trained on that the record says is something else."""

import bz2
import copy
import gzip
import json
import math
import random
import re
import time
from collections import Counter

import pytest

from interop import formats, records
from plumbing import cli

ASKED = [{"role": "user", "content": "Why?"}]
REPLY = [{"role": "assistant", "content": "So."}]
DIALOGUES = ("\n\nHuman: Why?\n\nAssistant: So.", "\n\nHuman: Why?\n\nAssistant: No.")
MESSAGE = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Why?"}
REPLIES = [{"message_id": x, "parent_id": "a", "role": "assistant", "text": x, "rank": n}
           for n, x in enumerate("bc")]
# a record of each of formats.FORMATS, and of the kinds of judged pairs
SAMPLES = [
    {"prompt": MESSAGE | {"replies": REPLIES}},
    {"prompt": "Why?", "responses": ["So.", "No.", "Oh."], "ranks": [1, 2, 2]},
    {"prompt": ASKED, "responses": ["So.", "No."], "ratings": [7, 1]},
    {"question": "Why?", "passages": [["T", ["a.", "b."]]], "prediction 1": "So.",
     "prediction 2": "No.", "prediction 3": "Oh.", "prediction 4": "Ah.",
     "preference": [1, 0, 2, 1, 0, 2]},
    {"prompt": DIALOGUES[0], "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
    {"instruction": "Why?", "completions": [{"response": "a", "fine-grained_score": 4.5},
                                            {"response": "b", "fine-grained_score": 3}]},
    {"info": {"post": "P", "title": "T", "subreddit": "s"}, "choice": 0, "worker": "w",
     "summaries": [{"text": "a"}, {"text": "b"}]},
    {"input": {"messages": ASKED}, "preferred_output": REPLY, "non_preferred_output": REPLY},
    {"chosen": DIALOGUES[0], "rejected": DIALOGUES[1]},
    {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    {"chosen": ASKED + REPLY, "rejected": ASKED + [{"role": "assistant", "content": "No."}]},
    {"instruction": "Why?", "instances": [{"input": "", "output": "So."}]},
    {"messages": ASKED + REPLY},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, *REPLY]},
    {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    {"prompt": "Why?", "response": "So.", "weight": 1},
    {"system": "Be kind.", "history": [["a", "b"]], "instruction": "Why?", "input": "c",
     "output": "So."},
    {"instruction": "Why?", "context": "c", "response": "So.", "category": "x"},
    {"prompt": "Why?", "completion": "So.", "label": True},
    {"question": "Why?", "answer": "So."},
    {"turns": ["Why?", "And?"], "category": "x"},
    {"prompt": "Why?", "meta": {}},
    {"text": "Once."},
    {"prompt": "Why?", "response_a": "So.", "response_b": "No.", "winner": "model_a"},
    {"prompt": '["Why?"]', "response_a": '["So."]', "response_b": '["No."]', "winner_model_a": 0,
     "winner_model_b": 1, "winner_tie": 0},
    {"conversation_a": ASKED + REPLY, "conversation_b": ASKED + REPLY, "winner": "tie", "turn": 1},
    {"prompt": "Why?", "response_0": "So.", "response_1": "No.", "better_response_id": 1},
    {"history": "Why?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": 1},
    {"prompt": "Why?", "response_1": "So.", "response_2": "No.", "preference_strength": -2},
    {"instruction": "Why?", "output_1": "So.", "output_2": "No.", "preference": 2},
    {"instruction": "Why?", "input": "", "response1": "So.", "response2": "No.", "annotator1": 1,
     "annotator2": 2, "annotator3": 1},
    MESSAGE, REPLIES[0],
]
READERS = (records.demonstrations, records.prompts, records.rankings, records.texts)
KNOWN = sorted({field for sample in SAMPLES for field in sample}
               | {"passage", "id", "train", "replies", "\x1b[2J", "a\nb"})
ODD = [None, 3, -1.5, True, "", " ", [], {}, "Human: a Assistant: b", "\u2028", [None], {"a": []},
       [["a", "b"]], 10**400, math.nan, math.inf, "x" * 5000, {"role": "user"}, "\ud800", "9",
       "tie"]
PYTHON = re.compile(r"NoneType|object is not|unpack|Traceback|KeyError|<class|attribute")


def places_in(value, at=()):
    """The places of all values in a record, itself first: ("history", 0, 1)."""
    yield at
    inside = ()
    if isinstance(value, (dict, list)):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, x in inside:
        yield from places_in(x, (*at, key))


def mutated(record, rng):
    """The record with a value somewhere in it that is dropped, renamed, repeated, nested or odd."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.randint(1, 3)):
        at = rng.choice([*places_in(record)][1:] or [()])
        if not at:
            break
        *above, key = at
        inside = record
        for step in above:
            inside = inside[step]
        how = rng.randrange(6)
        if how == 0:
            del inside[key]
        elif how == 1 and isinstance(inside, dict):
            inside[rng.choice([*KNOWN, "x", "", "ünknown"])] = inside.pop(key)
        elif how == 2:
            inside[key] = [inside[key]] * rng.randint(0, 3)
        elif how == 3:
            inside[key] = {rng.choice(KNOWN): inside[key]}
        elif how == 4 and isinstance(inside, dict):
            inside[rng.choice(KNOWN)] = copy.deepcopy(rng.choice(ODD))
        else:
            inside[key] = copy.deepcopy(rng.choice(ODD))
    return record


def written(some, rng):
    """Records as a file of some kind, cut somewhere, or packed, or neither -> bytes."""
    form = rng.randrange(6)
    if form == 0:
        raw = json.dumps(some, indent=rng.choice([None, 2]))
    elif form == 1:
        names, comma = [*some[0]], rng.choice(",\t;")
        lines = [names] + [[str(r.get(name, "")) for name in names] for r in some]
        raw = "\n".join(comma.join(line) for line in lines)
    else:
        raw = "".join(json.dumps(r, ensure_ascii=rng.random() < 0.9) + "\n" for r in some)
    raw = raw.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        raw = raw[: rng.randrange(len(raw) + 1)]
    if rng.random() < 0.2:
        raw = rng.choice([gzip.compress, bz2.compress])(raw)
        raw = raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw
    return raw


def test_every_format_has_a_sample():
    told = {next(name for name, fits, _ in formats.FORMATS if fits(r)) for r in SAMPLES[:-2]}
    assert told == {name for name, *_ in formats.FORMATS}


def test_whatever_a_file_holds_is_read_or_refused_in_a_sentence(tmp_path, capsys):
    rng, path, ends, began = random.Random(0), tmp_path / "x", Counter(), time.process_time()
    for _ in range(2000):
        sample = rng.choice(SAMPLES)
        some = [mutated(sample, rng), *rng.sample([sample, rng.choice(SAMPLES)], rng.randrange(3))]
        path.write_bytes(written(some, rng))
        for read in READERS:
            try:
                list(read(formats.read_records(str(path), Counter()), Counter()))
                ends["read"] += 1
            except ValueError as e:
                said = cli.sentence(e)
                assert said and "\n" not in said and not PYTHON.search(said), said
                ends["refused"] += 1
        skipped = capsys.readouterr().out
        assert not PYTHON.search(skipped) and skipped.count("\n") == skipped.count("skipped: ")
    assert ends["read"] > 1000 and ends["refused"] > 1000
    assert time.process_time() - began < 60


GOOD = ("response", "completion", "output", "answer")           # what a reply is called
PAIRS = (("chosen", "rejected"), ("response_a", "response_b"), ("output_1", "output_2"))
ASKS = ("prompt", "instruction", "question")
BESIDE = ("system", "input", "context", "passage", "title", "source", "text", "category")


@pytest.mark.parametrize("seed", range(5))
def test_what_is_trained_on_is_what_the_record_says_is_an_answer(tmp_path, seed):
    """A hundred records of texts under names drawn among those that are known: no answer becomes a
    prompt, and nothing else an answer. Answers begin alike, as those of a model often do."""
    rng, path, seen = random.Random(seed), tmp_path / "x.jsonl", Counter()
    for n in range(100):
        good = rng.sample(GOOD, rng.randrange(2))
        pair = rng.choice(PAIRS) if rng.random() < 0.6 else ()
        other = rng.sample(ASKS, rng.randrange(3)) + rng.sample(BESIDE, rng.randrange(4))
        answers = {field: f"Well, I answer {field} {n}." for field in (*good, *pair)}
        asked = {field: f"Do you ask {field} {n}?" for field in other}
        if pair and pair != PAIRS[0]:
            asked["winner"] = "model_a"
        if set(answers) == {"chosen", "rejected"} and not asked:
            continue                           # then what both begin with is the prompt
        fields = [*(answers | asked).items()]
        rng.shuffle(fields)
        path.write_text(json.dumps(dict(fields)) + "\n")
        for read in READERS[:3]:
            try:
                found = read(formats.read_records(str(path), Counter()), Counter())
            except ValueError:
                continue
            for r in found:
                seen[read.__name__] += 1
                prompt = r.messages
                if read is records.demonstrations:
                    *prompt, reply = prompt
                    assert reply["content"] in {answers[x] for x in (*good, *pair[:1])}
                if read is records.rankings:
                    [(better, worse)] = r.pairs
                    assert (r.responses[better], r.responses[worse]) == tuple(
                        answers[field] for field in pair)
                assert "answer" not in str(prompt) and prompt
                # "system" is what the system says; what has no part in it is left out
                for m in prompt:
                    assert (asked.get("system") == m["content"]) == (m["role"] == "system")
                    assert not re.search("passage|title|source|category|winner", m["content"])
    assert min(seen[read.__name__] for read in READERS[:3]) > 10, seen
