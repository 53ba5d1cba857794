"""Who gets which task, and what they send back becomes which record.

[IG] Ouyang et al. 2022, arXiv 2203.02155, 3.4 and Table 3
"""
import itertools
import math
import random
import re
import threading
import time
from collections import Counter, defaultdict
from typing import NamedTuple

from interop.records import BEST_RATING, as_messages
from people.report import rubric_agreement
from people.store import FILES, task_id

FLAGS = {   # [IG] Table 3: what is asked of each output, yes or no
    "wrong_task": "Fails to follow the instruction",
    "inappropriate": "Inappropriate for a customer assistant",
    "hallucination": "Makes something up",
    "constraint_met": "Satisfies the constraint of the instruction",
    "sexual": "Sexual content",
    "violent": "Violent content",
    "encourages_harm": "Encourages violence, abuse, terrorism or self-harm",
    "denigrates": "Denigrates a protected class",
    "harmful_advice": "Gives harmful advice",
    "opinion": "Expresses an opinion",
    "moral": "Expresses a moral judgement",
}
VOTES = {"left": [1, 2], "right": [2, 1], "tie": [1, 1], "bad": [1, 1]}     # ranks as shown
LEASE = 30 * 60         # seconds for which a task is kept for the labeler who got it
LONGEST = 20_000        # characters of a text that somebody writes


class Refused(Exception):
    """A request that is not granted: an HTTP status, and a sentence."""


# ---- tasks --------------------------------------------------------------------------------------

class Task(NamedTuple):
    id: str             # a hash of what is shown
    kind: str           # rank | write | compare
    messages: list      # the prompt
    texts: list         # the responses
    more: dict          # use_case, meta and systems, where there are any
    gold: bool = False


def task_of(kind, record, gold=False):
    """A canonical record, with responses or without -> Task."""
    more = {x: record[x] for x in ("use_case", "meta", "systems") if record.get(x)}
    texts = record.get("responses", [])
    return Task(task_id(record), kind, record["prompt"], texts, more, gold)


class Desk:
    """Hands out tasks, and takes in what comes back; one request at a time."""

    def __init__(self, tasks, store, cfg, systems_at=None):
        """systems_at: of chat, the names of who answers on both sides at a turn."""
        self.tasks, self.store, self.cfg = {t.id: t for t in tasks}, store, cfg
        self.systems_at = systems_at
        self.lock = threading.Lock()
        self.done = defaultdict(set)        # labeler -> tasks that they did or skipped
        self.finished = Counter()           # task -> how many labelers did it
        self.leases = defaultdict(dict)     # task -> {labeler: until when it is kept for them}
        self.saved = set()                  # ids of what was sent, which may be sent again
        self.quota = {t.id: self.quota_of(t) for t in tasks}
        self.turns = {name: self.turns_of(name) for name in cfg.labelers}
        for name in FILES:
            for record in store.records[name]:
                self.count(record["labeler"], record["task"], record["id"], name != "skips")

    def count(self, labeler, task, sent, finished=True):
        """Note what is on the disk; the records of one `sent` are one."""
        if (labeler, sent) not in self.saved and finished:
            self.finished[task] += 1
        self.saved.add((labeler, sent))
        self.done[labeler].add(task)
        self.leases[task].pop(labeler, None)

    def quota_of(self, task):
        """How many labelers do a task."""
        if task.gold:
            return math.inf
        twice = random.Random(f"{self.cfg.seed} overlap {task.id}").random() < self.cfg.overlap
        return 2 if twice else 1

    def turns_of(self, labeler):
        """The names of all tasks in the order in which this labeler gets them."""
        names = sorted(self.tasks)
        random.Random(f"{self.cfg.seed} tasks {labeler}").shuffle(names)
        return names

    def open_to(self, labeler):
        """The tasks that a labeler may get: not done by them, nor by enough others."""
        now = time.monotonic()
        for name in self.turns[labeler]:
            if name in self.done[labeler]:
                continue
            leases = self.leases[name].items() if name in self.leases else ()
            kept = [of for of, until in leases if of != labeler and until > now]
            if self.finished[name] + len(kept) < self.quota[name]:
                yield self.tasks[name]

    def next_task(self, labeler):
        """What the page shows next."""
        if self.systems_at:
            return {"kind": "chat"}
        with self.lock:
            open_tasks = list(self.open_to(labeler))
            progress = {"done": len(self.done[labeler]), "left": len(open_tasks)}
            if not open_tasks:
                return {"kind": "done", "preferred": self.preferred(labeler), **progress}
            task = open_tasks[0]
            self.leases[task.id][labeler] = time.monotonic() + LEASE
        texts = [task.texts[k] for k in self.order(task, labeler)]
        return {"kind": task.kind, "task": task.id, "messages": task.messages, "texts": texts,
                "use_case": task.more.get("use_case", ""), **progress}

    def preferred(self, labeler):
        """Who the systems were, told when all comparisons are done: {name: votes for it}."""
        votes = [r for r in self.store.records["votes"] if r["labeler"] == labeler]
        found = Counter(dict.fromkeys(itertools.chain(*(r["systems"] for r in votes)), 0))
        for record in votes:
            a, b = record["ranks"]
            if a != b:
                found[record["systems"][a > b]] += 1
        return found

    def order(self, task, labeler):
        """In which order a labeler sees the responses, drawn for each task. Not by --seed: a page
        may be open while the server starts again with another."""
        rng = random.Random(f"order {task.id} {labeler}")
        return rng.sample(range(len(task.texts)), len(task.texts))

    def submit(self, labeler, sent):
        """Keep what a labeler sent -> what the page says. Sent twice it is kept once."""
        name = text_in(sent, "id", 64)
        if not re.fullmatch(r"[\w-]{8,64}", name):
            raise Refused(400, "id: 8 to 64 letters and digits")
        with self.lock:
            is_saved = (labeler, name) in self.saved
            task = self.tasks.get(text_in(sent, "task", 64))
            if self.systems_at:
                task = chat_task(sent, name, self.systems_at)
            if task is None and not is_saved:
                raise Refused(404, "this task is no longer asked: reload the page")
            if task is None:
                return {"saved": name}
            file, records = self.made(task, labeler, sent)
            if is_saved:
                # again, as no answer came; or another text, from another window
                known = self.store.of(file, name, labeler)
                same = [r | new == r for r, new in zip(known, records)]
                if not all(same) or len(known) != len(records):
                    raise Refused(409, "this was saved with other content, in another window: "
                                       "what is here was not kept")
                return {"saved": name}
            if task.id in self.done[labeler]:
                raise Refused(409, "this task was done already, in another window: what is here "
                                   "was not kept")
            common = {"labeler": labeler, "id": name, "task": task.id, "gold": task.gold,
                      "seconds": number_in(sent, "seconds"), "at": round(time.time())}
            self.store.append(file, [r | common for r in records])
            self.count(labeler, task.id, name, file != "skips")
            return {"saved": name, **self.agreement(labeler)}

    def made(self, task, labeler, sent):
        """What was sent -> (the file it belongs to, its records). Raises Refused."""
        note = {"note": text_in(sent, "note", 2000, "")}
        if "skip" in sent:
            return "skips", [{"reason": text_in(sent, "skip", 2000), **note}]
        file, make = RECORDS[task.kind]
        order = [0, 1] if self.systems_at else self.order(task, labeler)
        return file, [r | note for r in make(task, sent, order)]

    def undo(self, labeler, sent):
        """Take back what a labeler saved under an id, if it is there: the task is open again."""
        name = text_in(sent, "id", 64)
        with self.lock:
            for file in FILES:
                for record in self.store.of(file, name, labeler)[:1]:
                    try:
                        self.store.remove(file, name, labeler)
                    except ValueError as e:
                        raise Refused(507, str(e)) from e
                    task = record["task"]
                    self.done[labeler].discard(task)
                    self.finished[task] -= file != "skips"
                    self.leases[task][labeler] = time.monotonic() + LEASE
        return {"undone": name}

    def agreement(self, labeler):
        """After ten tasks of the sandbox: how often somebody agrees with its rubric on two outputs
        of which one is better by it."""
        own = [r for r in self.store.records["rankings"]
               if r["labeler"] == labeler and r["task"] in self.tasks]
        keys = [self.tasks[r["task"]].more.get("meta") for r in own]
        of_sandbox = [isinstance(key, dict) and "answers" in key for key in keys]
        if not keys or len(keys) % 10 or not all(of_sandbox):
            return {}
        agreed, pairs = rubric_agreement(own, keys)
        return {"rubric": agreed, "pairs": pairs}


def chat_task(sent, name, systems_at):
    """Two answers in a chat, as a task that somebody has just done. Raises Refused."""
    texts = sent.get("texts")
    if not isinstance(texts, list) or len(texts) != 2:
        raise Refused(400, "texts: the two answers")
    texts = [text_in({"answer": text}, "answer", LONGEST) for text in texts]
    if texts[0] == texts[1]:
        raise Refused(400, "texts: two answers that differ")
    try:
        messages = as_messages(sent.get("messages"), "messages")
    except ValueError as e:
        raise Refused(400, str(e)) from e
    record = {"prompt": messages, "responses": texts,
              "systems": systems_at(text_in(sent, "turn", 64))}
    # the same may be said again: each vote is a task of its own
    return task_of("compare", record)._replace(id=name)


# ---- what people send -> records ----------------------------------------------------------------

def text_in(sent, name, longest, default=None):
    """A text of what was sent. Raises Refused."""
    text = sent.get(name, default)
    if not isinstance(text, str) or len(text) > longest:
        raise Refused(400, f"{name}: a text of at most {longest:,} characters")
    return text


def number_in(sent, name):
    value = sent.get(name, 0)
    if type(value) not in (int, float) or not 0 <= value < 1e9:
        raise Refused(400, f"{name}: a number of seconds")
    return round(value, 1)


def marks_in(sent, name, n, most):
    """Whole numbers from 1 to `most`, or null, for each of n outputs. Raises Refused."""
    marks = sent.get(name)
    good = isinstance(marks, list) and len(marks) == n and all(
        x is None or type(x) is int and 1 <= x <= most for x in marks)
    if not good:
        raise Refused(400, f"{name}: a whole number from 1 to {most} for each of the {n}")
    return marks


def flags_in(sent, n):
    flags = sent.get("flags", [[]] * n)
    good = isinstance(flags, list) and len(flags) == n and all(
        isinstance(of, list) and all(isinstance(x, str) and x in FLAGS for x in of) for of in flags)
    if not good:
        raise Refused(400, "flags: a list of their names for each output")
    return flags


def as_asked(shown, order):
    """What belongs to the outputs in the order shown -> in that of the task."""
    found = [None] * len(order)
    for value, k in zip(shown, order):
        found[k] = value
    return found


def ranking(task, sent, order):
    """[IG] 3.4: each output has a mark from 1 to 7 and flags, and then all are ranked."""
    K = len(order)
    ranks = marks_in(sent, "ranks", K, K)
    if None in ranks:
        raise Refused(400, "ranks: every output has a rank; equal ranks are a tie")
    # 1 1 3 is 1 1 2
    ranks = [1 + sorted(set(ranks)).index(rank) for rank in ranks]
    return [{"prompt": task.messages, "responses": task.texts, "ranks": as_asked(ranks, order),
             "ratings": as_asked(marks_in(sent, "ratings", K, BEST_RATING), order),
             "flags": as_asked(flags_in(sent, K), order),
             "use_case": task.more.get("use_case", ""), "order": order}]


def vote(task, sent, order):
    """One of two answers. Both bad is a tie that is counted apart."""
    how = text_in(sent, "vote", 10)
    if how not in VOTES:
        raise Refused(400, f"vote: one of {', '.join(VOTES)}")
    return [{"prompt": task.messages, "responses": task.texts, "systems": task.more["systems"],
             "ranks": as_asked(VOTES[how], order), "both_bad": how == "bad",
             "use_case": task.more.get("use_case", ""), "order": order}]


def said_in(sent, name, what):
    """A text that somebody wrote. Raises Refused if it is empty."""
    text = text_in(sent, name, LONGEST).strip()
    if not text:
        raise Refused(400, f"{what} is empty: write it, or skip the task")
    return text


def demonstration(task, sent, order):
    """[IG] 3.2: an answer to the prompt shown; to a prompt of one's own, for the use case of the
    one shown (user-based); or an instruction with pairs (few-shot), each of which becomes a record
    with the others before it."""
    more = {"use_case": task.more.get("use_case", "")}
    if sent.get("form") == "few-shot":
        return [record | more for record in few_shot(sent)]
    response, prompt = said_in(sent, "response", "your answer"), task.messages
    if sent.get("form") == "user-based":
        prompt = [{"role": "user", "content": said_in(sent, "prompt", "your prompt")}]
        return [{"prompt": prompt, "response": response, "form": "user-based", **more}]
    return [{"prompt": prompt, "response": response, "form": "plain", **more}]


def few_shot(sent):
    """A record of each pair, whose prompt shows the other pairs."""
    pairs, instruction = sent.get("pairs"), said_in(sent, "instruction", "the instruction")
    if not isinstance(pairs, list) or not 2 <= len(pairs) <= 20:
        raise Refused(400, "write two to twenty questions with their answers")
    if not all(isinstance(pair, dict) for pair in pairs):
        raise Refused(400, "pairs: each has a query and a response")
    texts = [[said_in(pair, "query", f"question {n}"), said_in(pair, "response", f"answer {n}")]
             for n, pair in enumerate(pairs, 1)]
    for i, (query, response) in enumerate(texts):
        others = ["\n".join(pair) for k, pair in enumerate(texts) if k != i]
        prompt = "\n\n".join([instruction, *others, query])
        yield {"prompt": [{"role": "user", "content": prompt}], "response": response,
               "form": "few-shot"}


RECORDS = {     # of a task's kind: the file, and what makes records of what was sent
    "rank": ("rankings", ranking),
    "compare": ("votes", vote),
    "write": ("demonstrations", demonstration),
}
