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
take pairs (where, record), where `where` is "FILE, line N", for the messages of errors; in place of
a record that could not be read stands the ValueError that says why.
"""
import itertools
import json
import math
import random
from collections import Counter, defaultdict

from data import ROLES, Demonstration, Prompt, Ranking
from interop.encode import report
from interop.rows import Part, form_of, shown

BEST_RATING = 7
# fields of a record or a message that say "not to be trained on", if they are 0 or false
LEFT_OUT = ("weight", "train")
NO = ("false", "f", "no", "n", "bad", "negative", "rejected", "undesirable", "incorrect",
      "thumbs_down")
SHOWN = 3                         # bad records that are shown
HOPELESS = 1000                   # bad records without a good one: the file is another kind of file
TASK = ("responses", "ranks", "ratings", "comparisons", "use_case", "meta")     # its fields
UNRANKED = {"comparisons": []}    # of responses that nobody has ranked
MOST_RESPONSES = 256              # K make K * (K - 1) / 2 pairs; a labeler ranks 4 to 9


# ---- parts of a record --------------------------------------------------------------------------

def as_messages(value, where):
    """A prompt, a string or messages, -> messages. Raises ValueError if it is neither."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{where}: the prompt is empty")
        return [{"role": "user", "content": value}]
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
        if mark in NO:
            return True
        try:
            mark = float(mark)
        except ValueError:
            return False
    return isinstance(mark, (bool, int, float)) and not mark > 0    # NaN neither


def _is_message(m):
    """Whether m is {"role": one of ROLES, "content": a string}."""
    if not isinstance(m, dict):
        return False
    # list(): a role that is itself a list is no key that a dict could look up
    return m.get("role") in list(ROLES) and isinstance(m.get("content"), str)


def as_response(value, where):
    """A reply, if it is a string that says something. Raises ValueError otherwise."""
    if type(value) is not str:
        raise ValueError(f"{where}: a response must be a text, and is {form_of(value)}")
    if not value.strip():
        raise ValueError(f"{where}: the response is empty; remove the record or write what "
                         f"should be answered")
    return value


def _field(record, name, where):
    """record[name]. Raises ValueError saying which fields there are."""
    if name not in record:
        fields = shown(", ".join(record)) or "no fields"
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

def demonstrations(records, counts: Counter, strict=False) -> list[Demonstration]:
    """(where, JSON record) pairs -> what is in them, checked; what is skipped is counted.

    Of a ranking the response that nothing beats is taken, of ratings all that got a 7.
    Raises ValueError if there is none, or of a bad record, if `strict`; and so do the next three.
    """
    return list(_read(records, counts, strict, _demonstrations, "demonstration"))


def prompts(records, counts: Counter, strict=False) -> list[Prompt]:
    """Prompts; of a record with a response, what it answers. "meta" is kept unread."""
    return list(_read(records, counts, strict, _prompts, "prompt"))


def sent_prompts(records, user, counts: Counter, strict=False):
    """Yield (prompt, who sent it), one by one; the latter stands in the field `user`, and is "" of
    all if that is ""."""
    def read(where, r, counts):
        sender = _sender(where, r[user], user) if user else ""
        return [(prompt, sender) for prompt in _prompts(where, r, counts)]

    yield from _read(records, counts, strict, read, "prompt")


def rankings(records, counts: Counter, strict=False) -> list[Ranking]:
    """Rankings with at least one pair that is no tie."""
    what = "ranking with two responses of different rank"
    return list(_read(records, counts, strict, _rankings, what))


def tasks(records, counts: Counter, strict=False) -> list[dict]:
    """Prompts with two responses or more, ranked or not, for people to rank: canonical records,
    their prompts messages."""
    return list(_read(records, counts, strict, _tasks, "prompt with two responses"))


def texts(records, counts: Counter, strict=False):
    """Yield documents, for pretraining, one by one: strings, long ones in parts (rows.Part)."""
    yield from _read(records, counts, strict, _texts, "text")


def _read(records, counts, strict, read, what):
    """Yield what read(where, record, counts) finds in each record. A bad one is skipped, counted
    and, of the first three, shown; the first is raised if `strict`, if there is no good one, or
    none among the first HOPELESS. A text is no record of another kind."""
    found, bad = False, []
    for where, r in records:
        try:
            if isinstance(r, ValueError):
                raise r
            if what != "prompt" and is_left_out(r):
                counts["records skipped: marked as not to be trained on"] += 1
                continue
            if r.keys() == {"text"} and read is not _texts:
                raise ValueError(f"{where}: this is text, for pretrain.py, and no {what}")
            made = read(where, r, counts)
        except ValueError as e:
            if strict:
                raise
            counts["bad records skipped"] += 1
            bad += [e] if len(bad) < SHOWN else []
            if counts["bad records skipped"] == HOPELESS and not found:
                break
            continue
        found = found or bool(made)
        yield from made
    if not found:
        raise bad[0] if bad else ValueError(f"the data holds no {what}; {report(counts)}")
    for e in bad:
        print(f"skipped: {e}")


def _demonstrations(where, r, counts):
    if _says_no(r.get("label")):
        counts["records skipped: their reply is labelled bad"] += 1
        return []
    if {"responses", "ratings"} <= r.keys() and not {"comparisons", "ranks"} & r.keys():
        return _rated_best(where, r, counts)
    if "responses" in r:
        r = _best_of_ranking(where, r, counts)
    return [] if r is None else _demonstration(where, r, counts)


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
        # an empty reply, of one who called a tool, is nothing to learn
        messages = [m if m["content"].strip() else m | {"train": False} for m in messages[:end]]
        if not messages:
            return []
    else:
        messages = as_messages(_field(r, "prompt", where), where)
        reply = as_response(_field(r, "response", where), where)
        messages.append({"role": "assistant", "content": reply})
    return [Demonstration(messages, str(r.get("use_case", "")))]


def _prompts(where, r, counts):
    said = r["messages"] if "messages" in r else _field(r, "prompt", where)
    messages = as_messages(said, where)
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        counts["records skipped: nothing comes before the reply"] += 1
        return []
    return [Prompt(messages, str(r.get("use_case", "")), r.get("meta", {}))]


def _sender(where, value, user):
    """An ID as text: 7 and "7" are one user. Raises ValueError if it is none."""
    if type(value) in (list, dict):
        raise ValueError(f"{where}: the field {user} must be a text or a number, and is "
                         f"{form_of(value)}")
    sender = str(value).strip()
    if sender in ("", "None", "nan"):           # as Python and pandas write nothing
        raise ValueError(f"{where}: the field {user} is empty: write who sent the prompt, or "
                         f"leave it out")
    return sender


def _rankings(where, r, counts):
    ranking = to_ranking(where, r)
    K = len(ranking.responses)
    undecided = K * (K - 1) // 2 - len(ranking.pairs)
    counts["comparisons"] += len(ranking.pairs)
    counts["pairs without a preference"] += max(0, undecided)
    if not ranking.pairs:
        counts["prompts skipped: all responses tied"] += 1
        return []
    return [ranking]


def _tasks(where, r, counts):
    to_ranking(where, r if {"ranks", "ratings", "comparisons"} & r.keys() else r | UNRANKED)
    counts["tasks"] += 1
    kept = {name: r[name] for name in TASK if name in r}
    return [kept | {"prompt": as_messages(r["prompt"], where)}]


def _texts(where, r, counts):
    text = _field(r, "text", where)
    if type(text) not in (str, Part):
        raise ValueError(f'{where}: "text" must be a string')
    if type(text) is not Part:
        counts["documents"] += 1
    return [text]


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
