"""Public data as it is published -> canonical records (data.py): demonstrations, rankings, prompts, text.

    python formats.py FILE ...        # what each is taken for, what is kept and skipped and why, three records

A file is JSON lines, a JSON array, CSV with a `prompt` column or plain text, gzipped or not; its content decides, never its
name. A record's fields say which format it is. Whoever adds a format writes one reader and its line in FORMATS.

A reader is a generator: a published record in, canonical JSON records out, and Skip for what is left out, and why.
"""
import argparse
import csv
import glob
import io
import json
import os
import random
import re
import sys
from collections import Counter
from itertools import combinations, groupby

import data

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")    # the only turn marks of HH: "Human:" within a line is text
SPEAKERS = {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "developer": "system"}


class Skip(Exception):
    """What is left out; the message is the reason, as it is counted."""


# ---- pieces of records ------------------------------------------------------------------------------------------

def turns(value, role="user"):
    """A string, a message or a list of messages, in anyone's spelling -> canonical messages. A string is said by `role`,
    unless it is a dialogue with the turn marks of HH."""
    if isinstance(value, str):
        return dialogue(value) if has_marks(value) else [{"role": role, "content": value}]
    messages = []
    for m in value if isinstance(value, list) else [value]:
        said = {"role": m.get("role", m.get("from")), "content": m.get("content", m.get("value"))}
        said["role"] = SPEAKERS.get(said["role"], said["role"])
        if said["role"] not in data.ROLES or not isinstance(said["content"], str):
            raise Skip("records skipped: a message of another role than system, user, assistant, or not a text")
        messages.append(said)
    return messages


def has_marks(text):
    return text.startswith("\n\nHuman:") or text.startswith("Human:") and "\n\nAssistant:" in text


def dialogue(text):
    """"\\n\\nHuman: Hi\\n\\nAssistant: Hello" -> messages. A last turn without a word, the cue to answer, is none."""
    _, *parts = TURN.split(text)
    messages = [{"role": SPEAKERS.get(who.lower(), "assistant"), "content": said.strip()}
                for who, said in zip(parts[::2], parts[1::2])]
    return messages[:-1] if messages and messages[-1] == {"role": "assistant", "content": ""} else messages


def prompt_of(r):
    """The prompt of a record, by any of its names, with the input or context that belongs to it."""
    if "conversations" in r:
        prompt = turns(r["conversations"])
    else:
        prompt = turns(r.get("prompt", r.get("instruction", r.get("question"))))
        more = r.get("input", r.get("context"))
        if isinstance(more, str) and more.strip():
            prompt[-1] = prompt[-1] | {"content": f"{prompt[-1]['content']}\n\n{more}"}
    before = [m for said, reply in r.get("history") or () for m in (*turns(said), *turns(reply, "assistant"))]
    system = turns(r["system"], "system") if r.get("system") else []
    return [*system, *before, *prompt]


def pair(prompt, better, worse):
    """The ranking of two responses, one of them chosen."""
    if isinstance(better, str) and not better.strip():
        raise Skip("pairs skipped: the chosen reply is empty")
    return {"prompt": prompt, "responses": [better, worse], "comparisons": [[0, 1]]}


def ranked(prompt, answers):
    """The ranking of (response, rank) pairs."""
    if len(answers) < 2:
        raise Skip("rankings skipped: fewer than two responses")
    return {"prompt": prompt, "responses": [x for x, _ in answers], "ranks": [rank for _, rank in answers]}


# ---- readers: one a format --------------------------------------------------------------------------------------

def canonical(r):
    """A record of data.py. Its prompt may have the turn marks of HH, or, named by --columns, parts in other fields."""
    more = has_marks(str(r.get("prompt"))) or "prompt" in r and {"input", "context", "system", "history"} & r.keys()
    yield r | {"prompt": prompt_of(r)} if more else r


def hh(r):
    """Anthropic HH-RLHF: two whole dialogues. The prompt ends at the last turn of the assistant that begins in both, since a
    reply may hold turn marks of its own."""
    shared = os.path.commonprefix([r["chosen"], r["rejected"]]).rfind("\n\nAssistant:")
    if shared < 0:
        raise Skip("pairs skipped: the two sides share no prompt")
    start = shared + len("\n\nAssistant:")
    yield pair(dialogue(r["chosen"][:shared]), r["chosen"][start:].strip(), r["rejected"][start:].strip())


def preference(r):
    """TRL's pairs with or without "prompt", strings or messages; Alpaca's and ShareGPT's with "chosen" and "rejected"."""
    if r.get("score_chosen") is not None and r["score_chosen"] == r.get("score_rejected"):
        raise Skip("pairs skipped: both sides have one score")
    sides, given = (r["chosen"], r["rejected"]), {"prompt", "instruction", "question", "conversations"} & r.keys()
    if not given and all(isinstance(x, str) for x in sides):              # the prompt is what both begin with, in whole words
        shared = re.match(r".*\s|", os.path.commonprefix(sides), re.DOTALL)[0]
        if not shared.strip():
            raise Skip("pairs skipped: the two sides share no prompt")
        yield pair(turns(shared), *(x[len(shared):] for x in sides))
        return
    prompt = prompt_of(r) if given else []
    if all(isinstance(x, (list, dict)) for x in sides):
        (*before, better), (*also, worse) = (turns(x) for x in sides)
        if before != also or better["role"] != "assistant" or worse["role"] != "assistant":
            raise Skip("pairs skipped: the two sides differ in more than the last reply")
        sides = better["content"], worse["content"]
        heard = [m["content"].strip() for m in before]
        prompt = before if all(m["content"].strip() in heard for m in prompt) else prompt + before
    yield pair(prompt, *sides)


def openai_preference(r):
    """The preference data of OpenAI's fine-tuning API."""
    better, worse = (turns(r[side])[-1]["content"] for side in ("preferred_output", "non_preferred_output"))
    yield pair(turns(r["input"]["messages"]), better, worse)


def summarize_from_feedback(r):
    """OpenAI's comparisons of summaries ([S20] arXiv 2009.01325): Reddit posts or news articles, and who judged."""
    info = r["info"]
    post = (f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}" if info.get("post") else
            f"TITLE: {info['title']}\n\nARTICLE: {info['article']}")
    better, worse = (r["summaries"][i]["text"].strip() for i in (r["choice"], 1 - r["choice"]))
    yield pair(turns(f"{post}\n\nTL;DR:"), better, worse) | {"labeler": str(r.get("worker", ""))}


def qa_feedback(r):
    """FineGrainedRLHF's QA-Feedback: four predictions, six judged pairs, 1 the first is better, 2 the second, 0 neither. The
    judgements may be circular: they stay pairs."""
    told = [(title, " ".join(sentences)) for title, *sentences in r["passages"]]
    passages = [text if text.startswith(title) else f"{title} {text}" for title, text in told]
    judged = zip(combinations(range(4), 2), r["preference"])
    yield {"prompt": "\n\n".join([*passages, r["question"]]), "responses": [r[f"prediction {k}"] for k in range(1, 5)],
           "comparisons": [[i, j] if which == 1 else [j, i] for (i, j), which in judged if which]}


def nectar(r):
    """Berkeley's Nectar: seven answers, rank 1 is best; the prompt is a dialogue with the marks of HH."""
    yield ranked(turns(r["prompt"]), [(a["answer"], a["rank"]) for a in r["answers"]])


def ultrafeedback(r):
    """OpenBMB's UltraFeedback: four completions, ordered by the mean of their four ratings (their overall_score has errors)."""
    scores = [(c["response"], c.get("fine-grained_score")) for c in r["completions"]]
    yield ranked(turns(r["instruction"]), [(x, None if score is None else -score) for x, score in scores])


def oasst_tree(r):
    """OpenAssistant's trees: each set of ranked replies, to the thread above it; rank 0 is best, and ranks may have gaps."""
    def walk(message, path, usable):
        usable = usable and not message.get("deleted") and message.get("review_result") is not False
        if not usable:
            yield Skip("messages left out: deleted or spam, or an answer to one")
        path = [*path, *turns({"role": message["role"], "content": message["text"]})]
        replies = message.get("replies") or []
        ranked = [m for m in replies if m.get("rank") is not None and m["role"] in ("assistant", "gpt")]
        good = [m for m in ranked if usable and not m.get("deleted") and m.get("review_result") is not False]
        if len(good) >= 2:
            good = random.Random(message["text"]).sample(good, len(good))                   # the file has the best first
            yield {"prompt": path, "responses": [m["text"] for m in good], "ranks": [m["rank"] for m in good]}
        elif replies and replies[0]["role"] == "assistant":
            yield Skip("sets of replies skipped: " + ("deleted or spam" if len(ranked) >= 2 else "fewer than two are ranked"))
        for m in replies:
            yield from walk(m, path, usable)
    yield from walk(r["prompt"], [], usable=True)


def oasst_messages(records, counts):
    """OpenAssistant's flat messages -> the trees they stand for."""
    if strays := [where for where, m in records if "message_id" not in m]:
        raise ValueError(f"{strays[0]}: is not a message of OASST, as those before it: \"message_id\" is missing")
    messages, trees = {m["message_id"]: m | {"replies": []} for _, m in records}, []
    counts["OASST messages"] += len(messages)
    for (where, _), m in zip(records, messages.values()):
        if m.get("parent_id") in messages:
            messages[m["parent_id"]]["replies"].append(m)
        elif m.get("parent_id") is None:
            trees.append((where, {"prompt": m}))
        else:
            counts["messages left out: orphans, whose parent is not in the file"] += 1
    return trees


def chat(r):
    """Chat messages or ShareGPT's conversations; "label": false marks a bad reply."""
    messages = turns(r["messages"]) if "messages" in r else prompt_of(r)
    if not messages:
        raise Skip("records skipped: no messages")
    yield r | {"messages": messages}


def instruction(r):
    """Alpaca, Dolly, question and answer, prompt and completion: who asks and who answers, by any of their names."""
    response = r.get("response", r.get("completion", r.get("output", r.get("answer"))))
    if isinstance(response, list):
        last = turns(response)[-1]
        response = last["content"] if last["role"] == "assistant" else ""
    if isinstance(response, str) and not response.strip():
        raise Skip("records skipped: the response is empty")
    yield {"prompt": prompt_of(r), "response": response, "label": r.get("label")}


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
    return lambda r: all(f in r for f in fields)


FORMATS = (   # what a file is called, how a record is told, and its reader; the first that fits is taken
    ("OASST trees", lambda r: isinstance(r.get("prompt"), dict) and "text" in r["prompt"], oasst_tree),
    ("rankings", has("prompt", "responses"), canonical),
    ("QA-Feedback", has("question", "passages", "preference"), qa_feedback),
    ("Nectar", has("prompt", "answers"), nectar),
    ("UltraFeedback", has("instruction", "completions"), ultrafeedback),
    ("summarize-from-feedback", has("info", "summaries", "choice"), summarize_from_feedback),
    ("OpenAI preference", has("input", "preferred_output", "non_preferred_output"), openai_preference),
    ("HH pairs", lambda r: "prompt" not in r and all(has_marks(str(r.get(side))) for side in ("chosen", "rejected")), hh),
    ("preference pairs", has("chosen", "rejected"), preference),
    ("self-instruct tasks", has("instruction", "instances"), self_instruct),
    ("chat messages", has("messages"), chat),
    ("ShareGPT", has("conversations"), chat),
    ("demonstrations", has("prompt", "response"), canonical),
    ("Alpaca", has("instruction", "output"), instruction),
    ("Dolly", has("instruction", "response"), instruction),
    ("prompts and completions", has("prompt", "completion"), instruction),
    ("questions and answers", has("question", "answer"), instruction),
    ("turns", has("turns"), first_turn),
    ("prompts", has("prompt"), canonical),
    ("texts", has("text"), canonical),
)


# ---- files ------------------------------------------------------------------------------------------------------

def read_rows(path, renamed):
    """Yield (where, row) of a file: a JSON value, the dict of a CSV line, or {"text": ...} for a file of plain text."""
    text = data.read_file(path)
    if re.match(r'\s*\[\s*([{"]|\]\s*$)', text):
        yield from _json_array(path, text)
    elif re.match(r'\s*\{\s*["}]', text):
        for n, line in enumerate(text.split("\n"), 1):
            try:
                if line.strip():
                    yield f"{path}, line {n}", json.loads(line)
            except json.JSONDecodeError as e:
                raise ValueError(f"{path}, line {n}: not JSON ({e.msg} at column {e.colno}); write one object a line") from e
    elif _is_header([renamed.get(name, name) for name in next(csv.reader([text.partition("\n")[0][:10_000]]), [])]):
        csv.field_size_limit(1 << 30)
        reader = csv.DictReader(io.StringIO(text, newline=""))
        yield from ((f"{path}, line {reader.line_num}", row) for row in reader)
    elif text.strip():
        yield path, {"text": text}


def _is_header(names):
    """Whether a first line is that of a table: a `prompt`, or several plain names, one of them known."""
    known = {"text", "instruction", "question", "chosen", "messages"} & set(names) and all(n.isidentifier() for n in names)
    return "prompt" in names or len(names) > 1 and known


def _json_array(path, text):
    """Element by element, so that each has its line."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    at, line, counted = between.match(text, text.index("[") + 1).end(), 1, 0
    while text[at:at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as e:
            raise ValueError(f"{path}, line {e.lineno}: not JSON ({e.msg} at column {e.colno}); was the file cut short?") from e
        yield f"{path}, line {line}", {"prompt": row} if isinstance(row, str) else row
        at = between.match(text, at).end()
    if text[at + 1:].strip():
        raise ValueError(f"{path}, line {1 + text.count(chr(10), 0, at)}: the array ends and something follows: write one array")


def read_records(paths, counts, columns=""):
    """Yield (where, canonical JSON record) of one file or several, in any format, counting what the records are taken for and
    what is skipped. columns: "prompt=question,response=answer" gives fields the names that are known. Raises ValueError."""
    renamed = dict(part.split("=")[::-1] if part.count("=") == 1 else ("", "") for part in columns.split(",") if part)
    if not all(yours and known for yours, known in renamed.items()):
        raise ValueError(f"--columns {columns}: write known=yours, e.g. --columns prompt=question,response=answer")
    for path in [paths] if isinstance(paths, str) else paths:
        rows = [(where, _named(r, renamed, where)) for where, r in read_rows(path, renamed)]
        if not rows:
            raise ValueError(f"{path} holds no record")
        if {"message_id", "role", "text"} <= rows[0][1].keys():
            rows = oasst_messages(rows, counts)
        for where, r in rows:
            name, reader = next(((name, reader) for name, fits, reader in FORMATS if fits(r)), ("", None))
            if not name:
                raise ValueError(f"{where}: no format has the fields {', '.join(r) or '(none)'}; say which is which, e.g. "
                                 f"--columns prompt=question,response=answer")
            counts[f"read as {name}"] += 1
            try:
                for x in reader(r):
                    if isinstance(x, Skip):
                        counts[str(x)] += 1
                    else:
                        yield where, x
            except Skip as e:
                counts[str(e)] += 1
            except (KeyError, TypeError, AttributeError, IndexError) as e:
                raise ValueError(f"{where}: has the fields of {name} but not their form ({type(e).__name__}: {e})") from e


def _named(r, renamed, where):
    """A row as a dict, its fields renamed."""
    if type(r) is not dict:
        raise ValueError(f"{where}: a record is a JSON object, got a {type(r).__name__}")
    if None in r:
        raise ValueError(f"{where}: has more fields than the first line: put a field with a comma in quotation marks")
    if missing := renamed.keys() - r.keys():
        raise ValueError(f"{where}: --columns names a field {min(missing)}; the record has {', '.join(r)}")
    kept = {k: v for k, v in r.items() if k not in renamed.values()}
    return {renamed.get(k, k): v for k, v in kept.items()}


def files_in(paths):
    """Folders replaced by the files in them, hidden ones left out."""
    found = (sorted(glob.glob(f"{glob.escape(p)}/**", recursive=True)) if os.path.isdir(p) else [p] for p in
             ([paths] if isinstance(paths, str) else paths))
    return tuple(f for some in found for f in some if not os.path.isdir(f))


# ---- python formats.py FILE -------------------------------------------------------------------------------------

def shown(messages):
    """A dialogue as a model reads it, what is trained on in green."""
    enc = data.get_tokenizer("sandbox")                   # any one will do
    ids, trained = data.encode_dialogue(enc, messages) if messages[-1]["role"] == "assistant" else (
        ids := data.encode_prompt(enc, messages), [False] * len(ids))
    runs = [(on, enc.decode([i for i, _ in run])) for on, run in groupby(zip(ids, trained), key=lambda x: x[1])]
    return "".join(f"\033[32m{text}\033[0m" if on else text for on, text in runs)


def describe(path, columns="", n=3):
    """Print what a file is taken for, what is kept and what is skipped, and its first records."""
    counts, first = Counter(), next((r for _, r in read_records(path, Counter(), columns)), {})
    read = (data.rankings if "responses" in first else data.texts if "text" in first else
            data.demonstrations if "messages" in first or "response" in first else data.prompts)
    found = read(read_records(path, counts, columns), counts)
    print(f"{path}: {len(found):,} {read.__name__}; {interop.report(counts)}\n---")
    for r in found[:n]:
        print(f"\033[32m{r[:500]}\033[0m" if isinstance(r, str) else shown(r.messages))
        for k, x in enumerate(getattr(r, "responses", ())):
            print(f"beats {sum(i == k for i, _ in r.pairs)}, loses to {sum(j == k for _, j in r.pairs)}:\033[32m {x}\033[0m")
        print("---")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--columns", default="", metavar="KNOWN=YOURS", help="fields, e.g. prompt=question,response=answer")
    args = parser.parse_args()
    try:
        for path in args.files:
            describe(path, args.columns)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
