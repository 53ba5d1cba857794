"""Public data as it is published -> canonical records (records.py), as JSON objects.

The fields of a record say which format it is, never the name of its file. Whoever adds a format
writes one reader and its line in FORMATS.

A reader is a generator: it takes a published record and yields canonical JSON records. What is
left out it yields as a Skip, which says why; raised, a Skip leaves out the rest of the record too.
"""
import ast
import functools
import itertools
import json
import math
import os
import random
import re
from collections import Counter

from data import ROLES
from interop.records import LEFT_OUT, is_left_out
from interop.rows import Part, form_of, read_rows, shown

# What parts the turns of a dialogue in one string, "Human: ... Assistant: ...": in HH an empty
# line, and then "Human:" within a line is text; a line's end or a space where there is no other.
PARTED = ("\n\n", "\n", " ")
REPLY = "Assistant:"
LONGEST_THREAD = 100            # messages of OASST: people write a dozen
MESSAGE = {"message_id", "role", "text"}    # fields of a message of OASST
FIRST = 10                      # records that say whether a file holds messages of OASST
WATCHED = 500                   # first records of a file, in which fields that nobody reads show;
                                # later ones are watched if they have a new field
SPEAKERS = {   # who speaks, by other names than those of ROLES
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant",
    "developer": "system",
}
# What tables write into a text, in JSON or as Python prints it: a dialogue, which is told by its
# first name, and the lists of these fields.
DIALOGUE = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")
BRACKET = re.compile(r"\s*[\[{]")
LISTS = ("turns", "responses", "ranks", "ratings", "comparisons", "instances", "completions")
ASKS = ("prompt", "instruction", "question")                # what a prompt is called
REPLIES = ("response", "completion", "output", "answer")    # and what a reply is
# names of what is no text that a prompt could stand in
LABELS = re.compile(r"(.*_)?(id|ids|uuid|hash|index|source|split|lang|language|model|label|task|"
                    r"type|category|dataset|subset|score|rating|url|license|date|weight|train)"
                    r"(_.*)?")


class Unclear(Exception):
    """What a file holds cannot be told; the message says what the user can do."""


class Skip(Exception):
    """What is left out; the message is the reason, as it is counted."""


# ---- pieces of records --------------------------------------------------------------------------

def turns(value, role="user"):
    """A string, a message or a list of messages, in anyone's spelling, -> canonical messages.

    A string is said by `role`, unless it is a dialogue with the turn marks of HH.
    """
    if isinstance(value, str):
        parted = parted_by(value)
        return dialogue(value, parted) if parted else [{"role": role, "content": value}]
    messages = []
    for m in value if isinstance(value, list) else [value]:
        speaker = m.get("role", m.get("from"))
        speaker = SPEAKERS.get(speaker, speaker)
        content = text_of(m.get("content", m.get("value")))
        if speaker not in ROLES or not isinstance(content, str):
            raise Skip("records skipped: a message of another role than system, user, assistant, "
                       "or not a text")
        message = {"role": speaker, "content": content}
        messages.append(message | {"train": False} if is_left_out(m) else message)
    return messages


def text_of(content):
    """What a message says: a text, or parts which are all texts; otherwise the content as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content
             if isinstance(part, dict) and str(part.get("type")).endswith("text")]
    whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "\n".join(texts) if whole else content


def parted_by(text):
    """Which of PARTED stands between the turns of a dialogue; "" if the text is none."""
    if not text.lstrip().startswith("Human:"):
        return ""
    for parted in PARTED:
        if parted + REPLY in text:
            return parted
    return "\n\n" if text.startswith("\n\nHuman:") else ""


def dialogue(text, parted):
    """"\\n\\nHuman: Hi\\n\\nAssistant: Hello" -> messages.

    A last turn of the assistant without a word, the cue to answer, is none.
    """
    # ["", "Human", " Hi", "Assistant", " Hello"]
    parts = re.split(rf"(?:^\s*|{parted})(Human|Assistant):", text)
    messages = []
    for speaker, content in zip(parts[1::2], parts[2::2]):
        role = SPEAKERS.get(speaker.lower(), "assistant")
        messages.append({"role": role, "content": content.strip()})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def prompt_of(r):
    """The prompt of a record, by any of its names, with the input or context that belongs to it,
    the system's message and the turns before."""
    if "conversations" in r:
        prompt = turns(r["conversations"])
    else:
        asked = asked_in(r)
        prompt, more = turns(asked), r.get("input") or r.get("context")
        if isinstance(more, list) and all(isinstance(text, str) for text in more):
            more = "\n\n".join(more)
        if more and not isinstance(more, str):
            raise Unclear(f"its input or context is {form_of(more)}: write a text")
        # a prompt made by a template holds it already
        template = r.get("prompt") if asked == r.get("prompt") else ""
        if more and more.strip() and more.strip() not in str(template):
            prompt[-1] = prompt[-1] | {"content": f"{prompt[-1]['content']}\n\n{more}"}
    before = []
    for turn in r.get("history") or ():
        if isinstance(turn, dict):
            before += turns(turn)
        else:
            asked, reply = turn
            before += [*turns(asked), *turns(reply, "assistant")]
    return with_system(r, before + prompt)


def asked_in(r):
    """The field that holds the prompt. Beside an instruction "prompt" may be the same in a
    template, which may even hold the answer."""
    prompt, instruction = r.get("prompt"), r.get("instruction")
    if isinstance(prompt, str) and isinstance(instruction, str) and instruction.strip():
        if instruction.strip() in prompt:
            return instruction
        if prompt.strip():
            raise Unclear('"prompt" and "instruction" hold different texts: name one, --columns '
                          'prompt=instruction')
    return next((r[x] for x in ASKS if r.get(x) is not None), None)


def reply_in(r):
    """The field that holds the reply. Raises Unclear if several hold different ones."""
    found = {name: r[name] for name in REPLIES if r.get(name) not in (None, "", [])}
    if len({str(value).strip() for value in found.values()}) > 1:
        raise Unclear(f"{' and '.join(found)} hold different texts: name one, --columns "
                      f"response={next(iter(found))}")
    return next(iter(found.values()), next((r[name] for name in REPLIES if name in r), None))


def with_system(r, messages):
    """Messages behind what the field "system" says, unless they say it themselves."""
    if not r.get("system") or messages and messages[0]["role"] == "system":
        return messages
    return turns(r["system"], "system") + messages


def pair(prompt, better, worse):
    """The ranking of two responses, one of them chosen."""
    if isinstance(better, str) and not better.strip():
        raise Skip("pairs skipped: the chosen reply is empty")
    return {"prompt": prompt, "responses": [better, worse], "comparisons": [[0, 1]]}


def ranked(prompt, answers):
    """The ranking of (response, rank) pairs."""
    if len(answers) < 2:
        raise Skip("rankings skipped: fewer than two responses")
    responses, ranks = map(list, zip(*answers))
    return {"prompt": prompt, "responses": responses, "ranks": ranks}


# ---- readers: one a format ----------------------------------------------------------------------

def canonical(r):
    """A record as records.py has them. Its prompt may have the turn marks of HH, or, named by
    --columns, parts in other fields."""
    parts = {"input", "context", "system", "history"} & r.keys()
    if parted_by(str(r.get("prompt"))) or "prompt" in r and parts:
        r = r | {"prompt": prompt_of(r)}
    yield r


def hh(r):
    """Anthropic HH-RLHF: two whole dialogues. The prompt ends at the last turn of the assistant
    that begins in both, since a reply may hold turn marks of its own."""
    common = os.path.commonprefix([r["chosen"], r["rejected"]])
    parted = parted_by(r["chosen"])
    end = common.rfind(parted + REPLY)
    if end < 0:
        raise Skip("pairs skipped: the two sides share no prompt")
    start = end + len(parted + REPLY)
    better, worse = r["chosen"][start:].strip(), r["rejected"][start:].strip()
    yield pair(dialogue(common[:end], parted), better, worse)


def preference(r):
    """TRL's pairs with or without "prompt", strings or messages; Alpaca's and ShareGPT's with
    "chosen" and "rejected"."""
    if r.get("score_chosen") is not None and r["score_chosen"] == r.get("score_rejected"):
        raise Skip("pairs skipped: both sides have one score")
    better, worse = r["chosen"], r["rejected"]
    asked = {*ASKS, "conversations"} & r.keys()
    prompt, both = prompt_of(r) if asked else [], (better, worse)
    if all(isinstance(x, (list, dict)) for x in both):
        yield _last_replies(prompt, turns(better), turns(worse))
    elif asked and all(isinstance(x, str) and parted_by(x) for x in both):
        yield _last_replies(prompt, *(dialogue(x, parted_by(x)) for x in both))
    elif not asked and all(isinstance(x, str) for x in both):
        texts = [field for field, value in r.items() if field not in ("chosen", "rejected")
                 and isinstance(value, (str, list)) and value
                 and (not LABELS.fullmatch(field.lower()) or len(str(value).split()) > 1)]
        if texts:
            raise Unclear(f"which field holds the prompt? Name it: --columns prompt={texts[0]}")
        yield _split_prompt(better, worse)
    else:
        yield pair(prompt, *(_without(prompt, x) for x in both))


def _without(prompt, reply):
    """A reply without the prompt's last message, where it begins with that, and without its cue."""
    if not isinstance(reply, str) or not prompt:
        return reply
    asked, rest = prompt[-1]["content"].strip(), reply.strip()
    if len(asked.split()) > 1:
        rest = rest.removeprefix(asked).strip()
    rest = rest.removeprefix(REPLY).strip()
    return reply if rest == reply.strip() else rest


def _last_replies(prompt, better, worse):
    """A pair of two dialogues that differ in the last reply and may repeat the prompt."""
    *before, better = better
    *before_worse, worse = worse
    replies = better["role"] == worse["role"] == "assistant"
    if before != before_worse or not replies:
        raise Skip("pairs skipped: the two sides differ in more than the last reply")
    if not (better.get("train", True) and worse.get("train", True)):
        raise Skip("pairs skipped: marked as not to be trained on")
    heard = {m["content"].strip() for m in before}
    new = [m for m in prompt if m["content"].strip() not in heard]
    # a system's message of another field goes before what both sides repeat
    repeated = all(m["role"] == "system" for m in new)
    prompt = new if repeated else prompt
    return pair(prompt + before, better["content"], worse["content"])


def _split_prompt(better, worse):
    """A pair of two strings: the prompt is what both begin with, in whole words."""
    common = os.path.commonprefix([better, worse])
    words = re.match(r".*\s|", common, re.DOTALL)[0]
    if not words.strip():
        raise Skip("pairs skipped: the two sides share no prompt")
    return pair(turns(words), better[len(words):], worse[len(words):])


# The fields of two answers to one prompt, of which another field says which won.
SIDES = (("response_a", "response_b"), ("response_0", "response_1"), ("response_1", "response_2"),
         ("response1", "response2"), ("output_1", "output_2"), ("answer_a", "answer_b"),
         ("human_ref_A", "human_ref_B"), ("conversation_a", "conversation_b"))
WINNERS = {"model_a": 0, "a": 0, "first": 0, "model_b": 1, "b": 1, "second": 1}
TIES = re.compile(r"(tie|both|equal|draw|neither)(bad)?([\W_].*)?")    # a winner that is none


def sides_of(r):
    """The names of the fields of two answers, None if there are none."""
    return next((sides for sides in SIDES if all(side in r for side in sides)), None)


def is_judged(r):
    return sides_of(r) is not None and any(field in r for field in VERDICTS)


def judged(r):
    """Two answers and who won: the Arena's conversations and its 55k, MT-Bench's human judgments,
    AlpacaEval's annotations, PandaLM, SHP, PKU-SafeRLHF, HelpSteer2's preferences."""
    sides = sides_of(r)
    field = next(field for field in VERDICTS if field in r)
    won = VERDICTS[field](r, sides)
    comparisons = [] if won is None else [[won, 1 - won]]
    first, second = alone(r[sides[0]]), alone(r[sides[1]])
    if sides[0] == "conversation_a":
        end = 2 * r["turn"] if r.get("turn") else None       # the judged turn of MT-Bench
        ranking = _last_replies([], turns(first)[:end], turns(second)[:end])
    else:
        # SHP's "history" is the post
        r = r | {"prompt": alone(r["prompt"])} if "prompt" in r else r
        prompt = turns(r["history"]) if sides[0] == "human_ref_A" else prompt_of(r)
        ranking = {"prompt": prompt, "responses": [first, second]}
    yield ranking | {"comparisons": comparisons}


def alone(value):
    """The only string of a list, which may be written as JSON, as the Arena's 55k have it; another
    value as it is."""
    found = value
    if isinstance(value, str) and re.match(r'\s*\[\s*("|null|\])', value):
        try:
            found = json.loads(value)
        except ValueError:
            return value
    if not isinstance(found, list) or not all(isinstance(x, str | None) for x in found):
        return value
    if len(found) != 1:
        raise Skip("pairs skipped: of several turns, whose replies differ from the first on")
    if found[0] is None:
        raise Skip("pairs skipped: an answer is missing")
    found[0].encode()                            # half a character, written out inside a text
    return found[0]


def _by_name(r, sides):
    """A winner by any of its names, or that of its field or by what that ends with."""
    winner = str(r["winner"]).strip().lower()
    if TIES.fullmatch(winner):
        return None
    names = WINNERS | {name.lower(): i for i, side in enumerate(sides) for name in (side, side[-1])}
    if winner not in names:
        raise Unclear(f'"winner" is {shown(winner) or "empty"}, and the answers are called '
                      f'{" and ".join(sides)}: name one of them, or write tie')
    return names[winner]


def _number(value, name, low, high, whole=True):
    """The number of a verdict, in JSON or in a table; 0 for none. Raises Unclear if it is none of
    those that the format has."""
    try:
        number = float(value or 0)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or whole and number % 1:
        raise Unclear(f'"{shown(name)}" is {shown(value)}, and goes from {low} to {high}')
    return number


def _by_flags(r, sides):
    won = [_number(r.get(name), name, 0, 1) for name in ("winner_model_a", "winner_model_b")]
    return None if won[0] == won[1] else won.index(max(won))


def _by_id(r, sides):
    """The number in the name of the better answer's field, "response_1"."""
    if r["better_response_id"] is None:
        raise Unclear('"better_response_id" is null: leave the record out')
    number = f"{_number(r['better_response_id'], 'better_response_id', 0, 9):.0f}"
    ends = [side[-1] for side in sides]
    if number not in ends:
        raise Unclear(f"better_response_id is {number}, and the answers are called "
                      f"{' and '.join(sides)}")
    return ends.index(number)


def _by_preference(r, sides):
    """AlpacaEval's, from 1, the first, to 2; 0 was a tie once."""
    if r["preference"] is None:
        raise Skip("pairs skipped: nobody judged them")
    if sides != ("output_1", "output_2"):
        raise Unclear('"preference" is known beside output_1 and output_2 only: write "winner", '
                      'the name of the better field or tie')
    preference = _number(r["preference"], "preference", 0, 2, whole=False)
    if 0 < preference < 1:
        raise Unclear(f'"preference" is {preference}, and goes from 1 to 2')
    return None if preference in (0, 1.5) else int(preference > 1.5)


def _by_strength(r, sides):
    """HelpSteer2's, from -3, the first is much better, to 3."""
    strength = _number(r["preference_strength"], "preference_strength", -3, 3)
    return None if strength == 0 else int(strength > 0)


def _by_annotators(r, sides):
    """PandaLM's: 1 the first, 2 the second, 0 neither; most of three."""
    fields = [field for field in r if field.startswith("annotator")]
    votes = Counter(_number(r[field], field, 0, 2) for field in fields)
    return None if votes[1] == votes[2] else int(votes[2] > votes[1])


def _by_labels(r, sides):
    """SHP's: 1 is the first."""
    if sides != ("human_ref_A", "human_ref_B"):
        raise Unclear('"labels" is known beside human_ref_A and human_ref_B only: write "winner", '
                      'the name of the better field or tie')
    return 1 - int(_number(r["labels"], "labels", 0, 1))


VERDICTS = {
    # a field, and who won by it: 0, 1 or None
    "winner": _by_name,
    "winner_model_a": _by_flags,
    "better_response_id": _by_id,
    "labels": _by_labels,
    "preference_strength": _by_strength,
    "preference": _by_preference,
    "annotator1": _by_annotators,
}


def openai_preference(r):
    """The preference data of OpenAI's fine-tuning API."""
    better = turns(r["preferred_output"])[-1]
    worse = turns(r["non_preferred_output"])[-1]
    yield pair(turns(r["input"]["messages"]), better["content"], worse["content"])


def summarize_from_feedback(r):
    """OpenAI's comparisons of summaries ([S20] arXiv 2009.01325): Reddit posts or news articles,
    and who judged."""
    info, choice = r["info"], r["choice"]
    if info.get("post"):
        post = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}"
    else:
        post = f"TITLE: {info['title']}\n\nARTICLE: {info['article']}"
    better = r["summaries"][choice]["text"].strip()
    worse = r["summaries"][1 - choice]["text"].strip()
    ranking = pair(turns(f"{post}\n\nTL;DR:"), better, worse)
    yield ranking | {"labeler": str(r.get("worker", ""))}


def qa_feedback(r):
    """FineGrainedRLHF's QA-Feedback: four predictions, six judged pairs, 1 the first is better,
    2 the second, 0 neither. The judgements may be circular: they stay pairs."""
    parts = []
    for title, *sentences in r["passages"]:
        text = " ".join(sentences)
        parts.append(text if text.startswith(title) else f"{title} {text}")
    prompt = "\n\n".join([*parts, r["question"]])
    responses = [r[f"prediction {k}"] for k in (1, 2, 3, 4)]
    comparisons = []
    for n, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        judged = _number(r["preference"][n], "preference", 0, 2)
        if judged:
            comparisons.append([i, j] if judged == 1 else [j, i])
    yield {"prompt": prompt, "responses": responses, "comparisons": comparisons}


def nectar(r):
    """Berkeley's Nectar: seven answers, rank 1 is best; the prompt is a dialogue with the marks
    of HH."""
    yield ranked(turns(r["prompt"]), [(a["answer"], a["rank"]) for a in r["answers"]])


def ultrafeedback(r):
    """OpenBMB's UltraFeedback: four completions, ordered by the mean of their four ratings (their
    overall_score has errors)."""
    answers = []
    for c in r["completions"]:
        score = c.get("fine-grained_score")
        answers.append((c["response"], None if score is None else -score))
    yield ranked(turns(r["instruction"]), answers)


def oasst_tree(r):
    """OpenAssistant's trees: each set of ranked replies, to the thread above it; rank 0 is best,
    and ranks may have gaps."""
    yield from _oasst_thread(r["prompt"], [], usable=True)


def _oasst_thread(message, path, usable):
    """The rankings of the replies to `message` and of all below. path: the messages above;
    usable: whether none of those was deleted or spam."""
    if len(path) >= LONGEST_THREAD:
        raise Unclear(f"a thread has more than {LONGEST_THREAD} messages: cut it")
    usable = usable and _is_good(message)
    if not usable:
        yield Skip("messages left out: deleted or spam, or an answer to one")
    path = [*path, *turns({"role": message["role"], "content": message["text"]})]
    replies = message.get("replies") or []
    judged = [m for m in replies if m.get("rank") is not None and m["role"] in ("assistant", "gpt")]
    good = [m for m in judged if usable and _is_good(m)]
    if len(good) >= 2:
        # the file has the best first, which must not be a hint
        good = random.Random(message["text"]).sample(good, len(good))
        yield ranked(path, [(m["text"], m["rank"]) for m in good])
    elif replies and replies[0]["role"] == "assistant":
        why = "deleted or spam" if len(judged) >= 2 else "fewer than two are ranked"
        yield Skip(f"sets of replies skipped: {why}")
    for m in replies:
        yield from _oasst_thread(m, path, usable)


def _is_good(message):
    """Neither deleted nor found to be spam; a message that nobody reviewed is good."""
    return not message.get("deleted") and message.get("review_result") is not False


def oasst_messages(rows, counts):
    """Yield the trees that OpenAssistant's flat messages stand for, and what is wrong."""
    messages, places = {}, {}
    for where, m in rows:
        wrong = m if isinstance(m, ValueError) else _wrong_message(where, m, messages)
        if wrong:
            yield where, wrong
            continue
        messages[m["message_id"]] = m | {"replies": [*(m.get("replies") or ())]}
        places[m["message_id"]] = where
    roots, orphans, children = [], 0, {name: [] for name in messages}
    for name, m in messages.items():
        parent = m.get("parent_id")
        if parent in messages:
            messages[parent]["replies"].append(m)
            children[parent].append(name)
        elif parent is None:
            roots.append(name)
        else:
            orphans += 1
    reached, found = 0, list(roots)
    while found:
        reached += 1
        found += children[found.pop()]
    counts["OASST messages"] += len(messages)
    counts["messages left out: orphans, whose parent is not in the file"] += orphans
    lost = len(messages) - reached - orphans
    counts["messages left out: replies to an orphan, or to themselves"] += lost
    for name in roots:
        yield places[name], {"prompt": messages[name]}


def _wrong_message(where, m, messages):
    """What keeps a row from being one of OASST's `messages`, a ValueError; None if nothing."""
    if "message_id" not in m:
        return ValueError(f"{where}: is not a message of OASST, as those before it: "
                          f'"message_id" is missing')
    name, parent = m["message_id"], m.get("parent_id")
    if not isinstance(name, (str, int)) or not isinstance(parent, (str, int, type(None))):
        return ValueError(f'{where}: "message_id" and "parent_id" must be strings')
    if name in messages:
        return ValueError(f'{where}: "message_id" {shown(name)} is in the file twice')
    replies = m.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        return ValueError(f'{where}: "replies" must be a list of messages')
    return None


def chat(r):
    """Chat messages or ShareGPT's conversations; "label": false marks a bad reply."""
    messages = with_system(r, turns(r["messages"])) if "messages" in r else prompt_of(r)
    if not messages:
        raise Skip("records skipped: no messages")
    yield r | {"messages": messages}


def instruction(r):
    """Alpaca, Dolly, question and answer, prompt and completion: who asks and who answers, by any
    of their names."""
    response = reply_in(r)
    if isinstance(response, list):
        last = turns(response)[-1]
        if not last.get("train", True):
            raise Skip("records skipped: marked as not to be trained on")
        response = last["content"] if last["role"] == "assistant" else ""
    if isinstance(response, str) and not response.strip():
        raise Skip("records skipped: the response is empty")
    marks = {name: r[name] for name in ("label", *LEFT_OUT) if name in r}
    yield {"prompt": prompt_of(r), "response": response, **marks}


def self_instruct(r):
    """The seed tasks of self-instruct: instances of one instruction."""
    for instance in r["instances"]:
        try:
            yield from instruction({"instruction": r["instruction"]} | instance)
        except Skip as e:
            yield e


def first_turn(r):
    """MT-Bench: the first turn is a prompt; what follows answers a reply that is not there."""
    yield {"prompt": r["turns"][0], "use_case": r.get("category", "")}
    for _ in r["turns"][1:]:
        yield Skip("later turns left out: they follow a reply that is not there")


def has(*fields):
    needed = set(fields)
    return lambda r: needed <= r.keys()


def is_tree(r):
    return isinstance(r.get("prompt"), dict) and "text" in r["prompt"]


def is_hh(r):
    sides = (str(r.get("chosen")), str(r.get("rejected")))
    return "prompt" not in r and all(map(parted_by, sides))


FORMATS = (
    # what a file is called, how a record is told, and its reader; the first that fits is taken
    ("OASST trees", is_tree, oasst_tree),
    ("rankings", has("prompt", "responses"), canonical),
    ("judged pairs", is_judged, judged),
    ("QA-Feedback", has("question", "passages", "preference"), qa_feedback),
    ("Nectar", has("prompt", "answers"), nectar),
    ("UltraFeedback", has("instruction", "completions"), ultrafeedback),
    ("summarize-from-feedback", has("info", "summaries", "choice"), summarize_from_feedback),
    ("OpenAI preference", has("input", "preferred_output", "non_preferred_output"),
     openai_preference),
    ("HH pairs", is_hh, hh),
    ("preference pairs", has("chosen", "rejected"), preference),
    ("self-instruct tasks", has("instruction", "instances"), self_instruct),
    ("chat messages", has("messages"), chat),
    ("ShareGPT", has("conversations"), chat),
    ("demonstrations", has("prompt", "response"), canonical),
    ("Alpaca", has("instruction", "output"), instruction),
    ("Dolly", has("instruction", "response"), instruction),
    ("prompts and completions", has("prompt", "completion"), instruction),
    ("questions and answers", has("question", "answer"), instruction),
    ("questions and answers", has("question", "response"), instruction),
    ("turns", has("turns"), first_turn),
    ("prompts", has("prompt"), canonical),
    ("texts", has("text"), canonical),
)


# ---- files --------------------------------------------------------------------------------------

def read_records(paths, counts: Counter, columns="", separator="", keep=""):
    """Yield (where, canonical JSON record) of one file or several, in any format; in place of a
    record that cannot be read the ValueError that says why.

    counts      gets what the records are taken for and what is skipped
    columns     "prompt=question,response=answer" gives fields the names that are known
    separator   what parts the documents of plain text
    keep        a field that every record must have and takes along as it is, "" for none
    Raises ValueError where a file cannot be read.
    """
    renamed = _parse_columns(columns)
    for path in [paths] if isinstance(paths, str) else paths:
        rows = ((where, _named(r, renamed, where))
                for where, r in read_rows(path, renamed, separator))
        begun = list(itertools.islice(rows, FIRST))
        if not begun:
            raise ValueError(f"{path} holds no record")
        rows = itertools.chain(begun, rows)
        if any(isinstance(r, dict) and MESSAGE <= r.keys() for _, r in begun):
            rows = oasst_messages(rows, counts)
        yield from _read_rows(rows, counts, keep)


def _read_rows(rows, counts, keep):
    """Rows of a file -> what read_records yields; fields that no reader used are counted."""
    fields, used = {}, set()
    for n, (where, r) in enumerate(rows, 1):
        # what could not be read is no record, nor is a document that goes on in the next row
        if isinstance(r, ValueError) or isinstance(r.get("text"), Part):
            yield where, r
            continue
        name, reader = _format_of(r)
        if reader is None:
            has = shown(", ".join(r)) or "(none)"
            yield where, ValueError(f"{where}: no format has the fields {has}; say which is "
                                    f"which, e.g. --columns prompt=question,response=answer")
            continue
        if n <= WATCHED or not r.keys() <= fields.keys():
            fields |= dict.fromkeys(r)
            r = _Watched(r, used)
        yield from _read_record(where, r, counts, name, reader, keep)
    unused = [shown(field) for field in fields if field not in used]
    if unused:
        counts[f"records with fields not used: {', '.join(unused[:20])}"] += n


class _Watched(dict):
    """A record that adds to the set `used` what is read of it."""
    def __init__(self, record, used):
        super().__init__(record)
        self.used = used

    def __getitem__(self, field):
        self.used.add(field)
        return super().__getitem__(field)

    def get(self, field, default=None):
        self.used.add(field)
        return super().get(field, default)

    def __or__(self, more):
        return _Watched(super().__or__(more), self.used)


def _read_record(where, r, counts, name, reader, keep):
    """Yield (where, canonical record) for each that is in a published one, or what is wrong."""
    counts[f"read as {name}"] += 1
    try:
        marks = {name: r[name] for name in LEFT_OUT if name in r}
        if keep:
            # a tree of OASST is its root's
            of = r["prompt"] if reader is oasst_tree else r
            if keep not in of:
                raise Unclear(f"--user names a field {shown(keep)}; the record has "
                              f"{shown(', '.join(of))}")
            marks[keep] = of[keep]
        for x in reader(r):
            if isinstance(x, Skip):
                counts[str(x)] += 1
            else:
                yield where, x | marks if marks else x
    except Skip as e:
        counts[str(e)] += 1
    except Unclear as e:
        yield where, ValueError(f"{where}: {e}")
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError):
        forms = ", ".join(f"{shown(field)} is {form_of(r[field])}" for field in [*r][:8])
        yield where, ValueError(f"{where}: has the fields of {name} but not their form: {forms}")


def _format_of(r):
    """-> (name, reader), ("", None) if no format fits."""
    for name, fits, reader in _possible(tuple(r)):
        if fits(r):
            return name, reader
    return "", None


@functools.lru_cache(maxsize=100)
def _possible(fields):
    """The formats that a record of these fields may have, whatever their values are."""
    r = dict.fromkeys(fields)
    return [form for form in FORMATS if form[1] in (is_tree, is_hh) or form[1](r)]


def _parse_columns(columns):
    """"prompt=question,response=answer" -> {"question": "prompt", "answer": "response"}."""
    renamed = {}
    for part in columns.split(","):
        if not part:
            continue
        known, _, yours = part.partition("=")
        if not known or not yours or "=" in yours:
            raise ValueError(f"--columns {columns}: write known=yours, "
                             f"e.g. --columns prompt=question,response=answer")
        if yours in renamed or known in renamed.values():
            raise ValueError(f"--columns {columns} names {yours if yours in renamed else known} "
                             f"twice: name each field once")
        renamed[yours] = known
    return renamed


def _named(r, renamed, where):
    """A row as a dict, its fields renamed; or what is wrong with it."""
    if isinstance(r, ValueError):
        return r
    if type(r) is not dict:
        return ValueError(f"{where}: a record is a JSON object, and this is {form_of(r)}")
    if not renamed:
        return _with_lists(where, r)
    missing = renamed.keys() - r.keys()
    if missing:
        return ValueError(f"{where}: --columns names a field {min(missing)}; "
                          f"the record has {shown(', '.join(r))}")
    # fields that would be the prompt, or the reply, give way to the one that is named
    known = set(renamed.values())
    for names in (ASKS, REPLIES):
        known |= set(names) if known & set(names) else set()
    kept = {k: v for k, v in r.items() if k in renamed or k not in known}
    return _with_lists(where, {renamed.get(k, k): v for k, v in kept.items()})


def _with_lists(where, r):
    """A record in which no dialogue or list is written as a text, as tables have them; or what is
    wrong with it."""
    for field, value in r.items():
        if not isinstance(value, str) or not BRACKET.match(value):
            continue
        if DIALOGUE.match(value) or field in LISTS:
            found = _literal(value)
            if found is None:
                return ValueError(f'{where}: "{shown(field)}" is a list written as a text that is '
                                  f"neither JSON nor Python's: write it as JSON")
            r = r | {field: found}
    return r


def _literal(text):
    """The list or object that a text writes in JSON or in Python's way, None if it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, (list, dict)):
            return found
    return None
