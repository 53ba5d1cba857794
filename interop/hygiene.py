"""Prompts that users sent -> prompts to train on, without copies and personal data ([IG] 3.2, A.1).

    python -m interop.hygiene questions.csv --user user_id --out prompts/

writes train.jsonl, valid.jsonl, test.jsonl and report.md, which says what went. In this order:

1. Exact copies go, and those that are equal in NFKC, without case, with single spaces.
2. So compared and sorted, a prompt goes if it shares 64 characters and 80 % of the shorter with the
   last that was kept. Then no two share so much that are kept anywhere: what lies between two such
   shares it too, so the shorter of them would share that much of its own length with its kept
   neighbour. Of a group the first in this order is kept, however the files are ordered.
3. At most --per-user prompts of a user, drawn by a hash of their text.
4. A hash of the user's ID says which file; so more data move nobody. Without --user every prompt is
   a user of its own.
5. Prompts with personal data (personal.py) go, or are masked; names and postal addresses are not
   found. DEVIATION [IG] 3.2: this holds for validation and test prompts too.

IDs are not written. A record without one is bad: it is skipped, and refused if --strict.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import hashlib
import heapq
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass

from data import ROLES
from interop import records
from interop.encode import report
from interop.formats import read_records
from interop.personal import mask
from plumbing import cli, results
from plumbing.inputs import files_in


@dataclass(frozen=True)
class Config:
    files: tuple[str, ...] = ()     # prompts, in any known format
    user: str = ""                  # the field with the ID of who sent it
    out: str = ""                   # a new folder
    columns: str = ""               # names of fields of the files: prompt=question
    per_user: int = 200             # most prompts of a user ([IG] 3.2); >= 1
    valid: float = 0.05             # share of the users whose prompts validate; [0, 1)
    test: float = 0.05              # share of the users whose prompts test; [0, 1)
    mask: bool = False              # write [EMAIL], [PHONE], ... for personal data; else prompts go
    strict: bool = False            # stop at a bad record of data; else it is skipped and shown


PRESETS = {"default": {}}
PREFIX = 64                         # characters that two prompts must share to be alike
EXAMPLES, WIDTH = 3, 160            # of each rule in the report; characters of one
RULES = {"exact": "Exact copies", "normalised": "Copies but for case and spaces",
         "prefix": "Long common prefix", "many": "More of a user than --per-user",
         "personal": "Personal data"}


def normalised(messages):
    """A prompt as it is compared with others: as it reads in a dialogue."""
    text = " ".join(f"{ROLES[m['role']]} {m['content']}" for m in messages)
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def drawn(text, what):
    """A number in [0, 1), the same for a text each time; `what` tells one draw from another."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=what.encode()).digest()
    return int.from_bytes(digest) / 2**64


def side(name, valid, test):
    """Where a user of this name, or a prompt, belongs: "train", "valid" or "test"."""
    at = drawn(name, "side")
    return "test" if at < test else "valid" if at < test + valid else "train"


def alike(a, b):
    """Whether two texts share PREFIX characters and 80 % of the shorter at their beginning."""
    shorter = min(len(a), len(b))
    n = max(PREFIX, -(-4 * shorter // 5))
    return n <= shorter and a[:n] == b[:n]


# ---- the rules ----------------------------------------------------------------------------------
# A row is (text as compared, record as JSON, user). What a rule takes away it adds to gone[rule],
# with the row that is kept instead or None.

def read_rows(cfg, counts: Counter):
    """The rows of the files, sorted. Raises ValueError."""
    found = read_records(files_in(cfg.files), counts, cfg.columns, keep=cfg.user)
    encode, rows = json.JSONEncoder(ensure_ascii=False).encode, []
    for prompt, user in records.sent_prompts(found, cfg.user, counts, cfg.strict):
        more = {"use_case": prompt.use_case, "meta": prompt.meta}
        record = {"prompt": prompt.messages} | {k: v for k, v in more.items() if v}
        rows.append((normalised(prompt.messages), encode(record), sys.intern(user)))
    return sorted(rows)


def without_copies(rows, gone):
    """Rules 1 and 2, of sorted rows."""
    kept, before = [], ("", "", "")
    for row in rows:
        if row[0] == before[0]:
            same = json.loads(row[1])["prompt"] == json.loads(before[1])["prompt"]
            gone["exact" if same else "normalised"].append((row, kept[-1]))
        elif kept and alike(row[0], kept[-1][0]):
            gone["prefix"].append((row, kept[-1]))
        else:
            kept.append(row)
        before = row
    return kept


def capped(rows, most, gone):
    """Rule 3; the user "" is nobody."""
    of = defaultdict(list)
    for row in rows:
        of[row[2]].append(row)
    for sent in (sent for user, sent in of.items() if user and len(sent) > most):
        sent.sort(key=lambda row: drawn(row[0], "cap"))
        gone["many"] += [(row, None) for row in sent[most:]]
    out = {id(row) for row, _ in gone["many"]}
    return [row for row in rows if id(row) not in out]


def cleaned(rows, masked, gone, kinds: Counter):
    """Rule 5. `kinds` counts the prompts that have each kind of personal data."""
    kept = []
    for row in rows:
        record, names = json.loads(row[1]), set()
        for m in record["prompt"]:
            m["content"], of_message = mask(m["content"])
            names |= of_message
        if names:
            kinds.update(names)
            gone["personal"].append((row, None))
            row = (row[0], json.dumps(record, ensure_ascii=False), row[2])
        if masked or not names:
            kept.append(row)
    return kept


def page(read, sides, gone, kinds):
    """report.md."""
    def example(row):
        said = "\n".join(m["content"] for m in json.loads(row[1])["prompt"])
        text = cli.visible(" ".join(mask(said)[0].split()))
        return text if len(text) <= WIDTH else f"{text[:WIDTH // 2]} ... {text[-WIDTH // 2:]}"

    lines = ["# Prompts that were kept, and what went", "", f"{read:,} were read. Kept:", ""]
    for name, rows in sides.items():
        users = len({user or compared for compared, _, user in rows})
        lines.append(f"- {name}: {len(rows):,}, of {users:,} users")
    for rule, title in RULES.items():
        lines += ["", f"## {title}: {len(gone[rule]):,}", ""]
        if rule == "personal":
            lines += [f"- {kind}: {n:,}" for kind, n in kinds.most_common()] + [""]
        for row, other in heapq.nsmallest(EXAMPLES, gone[rule], lambda x: drawn(x[0][0], "show")):
            kept = [f"    kept: {example(other)}"] if other else []
            lines += [f"    {example(row)}", *kept, ""]
    lines += ["Names and postal addresses are not found, nor is anything outside the messages.", ""]
    return "\n".join(lines)


def main(cfg):
    results.check_free(cfg.out)
    if cfg.valid + cfg.test >= 1:
        raise ValueError("--valid and --test leave nobody to train on: lower one")
    counts, gone, kinds = Counter(), defaultdict(list), Counter()
    rows = read_rows(cfg, counts)
    read, sides = len(rows), {"train": [], "valid": [], "test": []}
    rows = capped(without_copies(rows, gone), cfg.per_user, gone)
    for row in cleaned(rows, cfg.mask, gone, kinds):
        sides[side(row[2] or row[0], cfg.valid, cfg.test)].append(row)
    files = {"report.md": lambda f: f.write(page(read, sides, gone, kinds).encode())}
    for name, rows in sides.items():
        lines = (f"{line}\n".encode() for _, line, _ in rows)
        files[f"{name}.jsonl"] = lambda f, lines=lines: f.writelines(lines)
    results.write_folder(cfg.out, files)
    print(f"{report(counts)}\n{cfg.out}: " + ", ".join(f"{len(x):,} {s}" for s, x in sides.items()))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, "files")
