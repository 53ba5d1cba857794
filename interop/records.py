"""Canonical records: JSON objects of files, checked and turned into the records of data.py.

A record is a JSON object, one a line; a prompt is a string or a list of {"role", "content"}:

    demonstration   {"prompt": ..., "response": "..."}
                    or {"messages": [...]}, the assistant's last
    ranking         {"prompt": ..., "responses": ["...", ...], "ranks": [1, 2, 2, null]}
                    1 is best, equal is a tie, null was not ranked
                    or "comparisons": [[0, 2], ...], 0 was judged better than 2
                    or "ratings": [7, 3, ...], 7 is best
    prompt          {"prompt": ...}
    text            {"text": "..."}, or a file of plain text

formats.py turns what others publish into these. `demonstrations`, `prompts`, `rankings` and `texts`
take pairs (where, record), where `where` is "FILE, line N", for the messages of errors.
"""
import bz2
import gzip
import io
import itertools
import json
import lzma
import math
import os
import random
import zlib
from collections import Counter, defaultdict

from data import ROLES, Demonstration, Prompt, Ranking
from interop.encode import report

# what files are, by their first bytes: packed ones, which are unpacked ...
PACKED = {b"\x1f\x8b": ("gzip", gzip.open), b"BZh": ("bzip2", bz2.open),
          b"\xfd7zXZ\x00": ("xz", lzma.open)}
# ... text that is not UTF-8 but says what it is ...
ENCODED = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# ... and others, which are named, with what makes text of them
BINARY = {
    b"PAR1": "Parquet; with pandas: pandas.read_parquet('{path}')"
             ".to_json('x.jsonl', orient='records', lines=True)",
    b"PK\x03\x04": "a zip archive (or a spreadsheet or a document, which are such): unpack it, or "
                   "save it as CSV or text",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it with zstd -d",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"ARROW1": "Arrow; with datasets: Dataset.from_file('{path}').to_json('x.jsonl')",
    b"SQLite format 3\x00": "an SQLite database: export the table as CSV",
    b"%PDF": "a PDF: pdftotext makes text of it",
    b"\x89PNG": "a picture",
}
PIECE = 2**20                     # bytes unpacked at once
MOST_PACKED = 100                 # text is packed to a tenth or a third of its size
BEST_RATING = 7
# fields of a record or a message that say "not to be trained on", if they are 0 or false
LEFT_OUT = ("weight", "train")
MOST_RESPONSES = 256              # K make K * (K - 1) / 2 pairs; a labeler ranks 4 to 9


# ---- files --------------------------------------------------------------------------------------

def read_file(path):
    """The text of a file in UTF-8, or in UTF-16 with its mark; packed by gzip, bzip2, xz, or not.

    Raises ValueError naming the file, and the line and byte that is not UTF-8.
    """
    if not os.path.isfile(path):
        why = "is no file" if os.path.exists(path) else "does not exist"
        why = "is a folder: name its files" if os.path.isdir(path) else why
        raise ValueError(f"{path} {why}")
    try:
        with open(path, "rb") as f:
            raw = f.read()
    except OSError as e:
        raise ValueError(f"{path} cannot be read ({e.strerror}): see who may read it") from e
    packing = _by_first_bytes(raw, PACKED)
    if packing:
        raw = _unpacked(path, raw, *packing)
    binary = _by_first_bytes(raw, BINARY)
    if binary:
        raise ValueError(f"{path} is {binary.format(path=path)}")
    encoding = _by_first_bytes(raw, ENCODED) or "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as e:
        if encoding != "utf-8":
            raise ValueError(f"{path}: byte {e.start} is not {encoding.upper()}, as the file's "
                             f"mark says it is: save it as UTF-8") from e
        line = raw[:e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: byte {e.start} is not UTF-8; convert it, "
                         f"e.g. iconv -f latin1 -t utf-8") from e
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _by_first_bytes(raw, kinds):
    """What `kinds` has for the beginning of a file, if anything."""
    return next((kind for begins, kind in kinds.items() if raw.startswith(begins)), None)


def _unpacked(path, raw, name, unpack):
    """What a packed file holds. Raises ValueError if it is damaged, or if it is made to fill the
    memory: megabytes can unpack to gigabytes."""
    packed, pieces, size = io.BytesIO(raw), [], 0
    try:
        with unpack(packed) as f:
            for piece in iter(lambda: f.read(PIECE), b""):
                pieces.append(piece)
                size += len(piece)
                if size > MOST_PACKED * packed.tell() + PIECE:
                    raise ValueError(f"{path} unpacks to more than {MOST_PACKED} times its size, "
                                     f"which no text does: unpack it yourself if it is yours")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise ValueError(f"{path} is a damaged {name} file ({e}): fetch it again") from e
    return b"".join(pieces)


def read_json(path):
    """What a JSON file holds. Raises ValueError, which repeats nothing of it."""
    text = read_file(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not readable JSON: fetch it again") from e


def shown(name):
    """A name that a stranger's file gives, as it can stand in a sentence."""
    return "".join(filter(str.isprintable, str(name)[:80]))


# ---- parts of a record --------------------------------------------------------------------------

def as_messages(value, where):
    """A prompt, a string or messages, -> messages. Raises ValueError if it is neither."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        raise ValueError(f'{where}: "prompt" must be a string or a list of '
                         f'{{"role": system|user|assistant, "content": text}}')
    if not any(m["content"].strip() for m in value):
        raise ValueError(f"{where}: the prompt is empty")
    return [{"role": m["role"], "content": m["content"]}
            | ({"train": False} if is_left_out(m) else {}) for m in value]


def is_left_out(x):
    """Whether a record or a message is marked as not to be trained on, in JSON or in a table."""
    return any(_says_no(x[name]) for name in LEFT_OUT if name in x)


def _says_no(mark):
    """Whether a mark says 0, no or bad. None says nothing."""
    if isinstance(mark, str):
        mark = mark.strip().lower()
        if mark in ("false", "no", "bad", "negative"):
            return True
        try:
            mark = float(mark)
        except ValueError:
            return False
    return isinstance(mark, (bool, int, float)) and mark <= 0


def _is_message(m):
    """Whether m is {"role": one of ROLES, "content": a string}."""
    if not isinstance(m, dict):
        return False
    # list(): a role that is itself a list is no key that a dict could look up
    return m.get("role") in list(ROLES) and isinstance(m.get("content"), str)


def as_response(value, where):
    """A reply, if it is a string that says something. Raises ValueError otherwise."""
    if type(value) is not str:
        raise ValueError(f"{where}: a response must be a string, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{where}: the response is empty; remove the record or write what "
                         f"should be answered")
    return value


def _field(record, name, where):
    """record[name]. Raises ValueError saying which fields there are."""
    if name not in record:
        fields = ", ".join(record) or "no fields"
        raise ValueError(f'{where}: "{name}" is missing; the record has {fields}')
    return record[name]


def to_ranking(where, r) -> Ranking:
    """A JSON record -> Ranking. Ties make no pair, and neither do equal responses, so that `pairs`
    may be empty. Raises ValueError."""
    responses = _field(r, "responses", where)
    if not isinstance(responses, list) or len(responses) < 2:
        raise ValueError(f'{where}: "responses" must be a list of at least two')
    if len(responses) > MOST_RESPONSES:
        raise ValueError(f"{where}: ranks {len(responses):,} responses, which make too many pairs: "
                         f"rank at most {MOST_RESPONSES} at once")
    for response in responses:
        if not isinstance(response, str):
            as_response(response, where)       # raises; an empty string may well be ranked
    if "comparisons" in r:
        judged = _compared(where, r["comparisons"], len(responses))
    else:
        judged = _ordered(where, r, len(responses))
    pairs = [(i, j) for i, j in judged if responses[i].strip() != responses[j].strip()]
    messages = as_messages(_field(r, "prompt", where), where)
    labeler, use_case = str(r.get("labeler", "")), str(r.get("use_case", ""))
    return Ranking(messages, responses, pairs, labeler, use_case)


def _compared(where, pairs, K):
    """"comparisons" -> [[better, worse], ...], checked."""
    def is_pair(p):
        if not isinstance(p, list) or len(p) != 2:
            return False
        return all(isinstance(i, int) and 0 <= i < K for i in p)

    if not isinstance(pairs, list) or not all(map(is_pair, pairs)):
        raise ValueError(f'{where}: "comparisons" must be a list of [better, worse] with indices '
                         f"from 0 to {K - 1}")
    return pairs


def _ordered(where, r, K):
    """"ranks", less is better, or "ratings", more is better, -> [(better, worse), ...]."""
    rated = "ratings" in r and "ranks" not in r
    name = "ratings" if rated else "ranks"

    def is_number(x):
        if not isinstance(x, (int, float)):
            return x is None
        # JSON as Python reads it may say NaN, which no number is less than
        if isinstance(x, float) and not math.isfinite(x):
            return False
        return not rated or 1 <= x <= BEST_RATING

    values = _field(r, name, where)
    if not isinstance(values, list) or len(values) != K or not all(map(is_number, values)):
        limits = f" from 1 to {BEST_RATING}" if rated else ""
        raise ValueError(f'{where}: "{name}" must hold a number{limits} or null '
                         f"for each of the {K}")
    judged = [k for k, x in enumerate(values) if x is not None]
    sign = -1 if rated else 1                  # sign * value: less is better
    return [(i, j) for i in judged for j in judged if sign * values[i] < sign * values[j]]


# ---- records of each kind -----------------------------------------------------------------------

def demonstrations(records, counts: Counter) -> list[Demonstration]:
    """(where, JSON record) pairs -> what is in them, checked; what is skipped is counted.

    Of a ranking the response that nothing beats is taken, of ratings all that got a 7.
    Raises ValueError, and so do the next three.
    """
    found = []
    for where, r in records:
        _refuse_text(where, r, "demonstrations")
        if _says_no(r.get("label")):
            counts["records skipped: their reply is labelled bad"] += 1
            continue
        if is_left_out(r):
            counts["records skipped: marked as not to be trained on"] += 1
            continue
        if {"responses", "ratings"} <= r.keys() and not {"comparisons", "ranks"} & r.keys():
            found += _rated_best(where, r, counts)
            continue
        if "responses" in r:
            r = _best_of_ranking(where, r, counts)
        if r is not None:
            found += _demonstration(where, r, counts)
    return _some(found, "demonstration", counts)


def _rated_best(where, r, counts):
    """The samples that were rated 7 of 7, which is what FeedME is trained on."""
    responses = to_ranking(where, r).responses
    good = [x for x, rating in zip(responses, r["ratings"]) if rating == BEST_RATING and x.strip()]
    counts["samples rated 7 of 7"] += len(good)
    # of a dialogue the last reply alone was rated: those before it may be anybody's
    asked = [{**m, "train": False} if m["role"] == "assistant" else m
             for m in as_messages(r["prompt"], where)]
    return [Demonstration([*asked, {"role": "assistant", "content": x}]) for x in good]


def _best_of_ranking(where, r, counts):
    """A ranking -> a record of the first response that nothing beats and that beats another."""
    pairs = to_ranking(where, r).pairs
    best = {i for i, _ in pairs} - {j for _, j in pairs}
    if not best:
        counts["rankings skipped: no response is best"] += 1
        return None
    counts["rankings whose best response is a demonstration"] += 1
    return {"prompt": r["prompt"], "response": r["responses"][min(best)]}


def _demonstration(where, r, counts):
    """A record with messages, or with prompt and response, -> a list of one, or of none."""
    if "messages" in r:
        messages = as_messages(r["messages"], where)
        end = 0                                # behind the last reply that can be trained on
        for i, m in enumerate(messages):
            if m["role"] != "assistant":
                continue
            if is_left_out(m):
                counts["replies read only: marked as not to be trained on"] += 1
            elif m["content"].strip():
                end = i + 1
        counts["messages left out: no reply to train on follows"] += len(messages) - end
        messages = messages[:end]
        if not messages:
            return []
    else:
        messages = as_messages(_field(r, "prompt", where), where)
        reply = as_response(_field(r, "response", where), where)
        messages.append({"role": "assistant", "content": reply})
    return [Demonstration(messages, str(r.get("use_case", "")))]


def prompts(records, counts: Counter) -> list[Prompt]:
    """Prompts; of a record with a response, what it answers. "meta" is kept unread."""
    found = []
    for where, r in records:
        _refuse_text(where, r, "prompts")
        said = r["messages"] if "messages" in r else _field(r, "prompt", where)
        messages = as_messages(said, where)
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if messages:
            found.append(Prompt(messages, str(r.get("use_case", "")), r.get("meta", {})))
        else:
            counts["records skipped: nothing comes before the reply"] += 1
    return _some(found, "prompt", counts)


def rankings(records, counts: Counter) -> list[Ranking]:
    """Rankings with at least one pair that is no tie."""
    found = []
    for where, r in records:
        _refuse_text(where, r, "rankings")
        ranking = to_ranking(where, r)
        K = len(ranking.responses)
        undecided = K * (K - 1) // 2 - len(ranking.pairs)
        counts["comparisons"] += len(ranking.pairs)
        counts["pairs without a preference"] += max(0, undecided)
        if ranking.pairs:
            found.append(ranking)
        else:
            counts["prompts skipped: all responses tied"] += 1
    return _some(found, "ranking with two responses of different rank", counts)


def texts(records, counts: Counter) -> list[str]:
    """Documents, for pretraining."""
    found = []
    for where, r in records:
        text = _field(r, "text", where)
        if type(text) is not str:
            raise ValueError(f'{where}: "text" must be a string')
        found.append(text)
    counts["documents"] += len(found)
    return _some(found, "text", counts)


def _refuse_text(where, r, wanted):
    if r.keys() == {"text"}:
        raise ValueError(f"{where}: this is text, for pretrain.py; here {wanted} are needed")


def _some(found, what, counts):
    if not found:
        raise ValueError(f"the data holds no {what}; {report(counts)}")
    return found


# ---- many records -------------------------------------------------------------------------------

def split(records, share, seed=0):
    """(rest, held out): `share` of the *prompts*, by a hash of their text, which has one side."""
    rest, held_out = [], []
    for r in records:
        is_demonstration = r.messages[-1]["role"] == "assistant"
        messages = r.messages[:-1] if is_demonstration else r.messages
        prompt = json.dumps([{"role": m["role"], "content": m["content"]} for m in messages])
        if random.Random(f"{seed} {prompt}").random() < share:
            held_out.append(r)
        else:
            rest.append(r)
    return rest, held_out


def agreement(rankings):
    """(share, pairs): how often two labelers who both had a preference on two outputs agree."""
    judged = defaultdict(dict)      # two outputs -> {labeler: whether the first is better}
    for r in rankings:
        outputs = (str(r.messages), tuple(r.responses))
        for i, j in r.pairs:
            judged[(*outputs, min(i, j), max(i, j))][r.labeler] = i < j
    votes = []
    for by_labeler in judged.values():
        votes += [a == b for a, b in itertools.combinations(by_labeler.values(), 2)]
    return sum(votes) / max(1, len(votes)), len(votes)
