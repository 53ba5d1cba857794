"""Prompts that users sent -> prompts to train on: no copies, few of each user, no personal data.

    python -m interop.hygiene questions.csv --user user_id --out prompts/

writes train.jsonl, valid.jsonl, test.jsonl and report.md, as [IG] 3.2 and A.1 say. In this order:
1. Copies go: texts that are equal in NFKC, without case, with single spaces.
2. So sorted, a text goes if it shares 64 characters and 80 % of the shorter with the last that
   stays. Then no two that stay share so much: what lies between two such shares it too, so the
   shorter of them would share that much of itself with its neighbour. The first of a group stays.
3. --per-user prompts of each user stay, drawn by a hash of the text.
4. A hash of the user's ID says which file, so more data move nobody; without --user every prompt is
   a user of its own. IDs are not written; a record without one is bad, and skipped.
5. Prompts with personal data (personal.py) go, or are masked. DEVIATION [IG] 3.2: of all files.
"""
import hashlib
import heapq
import json
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass

from interop.encode import report
from interop.formats import read_records
from interop.personal import PATTERNS, mask
from interop.records import sent_prompts
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
PREFIX, EXAMPLES, WIDTH = 64, 3, 160    # characters; of a rule in the report; characters of each
RULES = {"exact": "Exact copies", "normalised": "Copies but for case and spaces",
         "prefix": "Long common prefix", "many": "More of a user than --per-user"}
RULES |= {name: f"Personal data, {name}" for name, *_ in PATTERNS}


def normalised(messages):
    """A prompt as it is compared, behind who speaks: a dialogue's next question is no copy."""
    speakers = "".join([m["role"][0] for m in messages])
    text = " ".join([speakers, *[m["content"] for m in messages]])
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def drawn(text, what):
    """A number in [0, 1), the same for a text each time; `what` tells one draw from another."""
    hashed = hashlib.blake2b(text.encode(), digest_size=8, person=what.encode())
    return int.from_bytes(hashed.digest()) / 2**64


def side(name, valid, test):
    """Where a user of this name, or a prompt, belongs: "train", "valid" or "test"."""
    at = drawn(name, "side")
    return "test" if at < test else "valid" if at < test + valid else "train"


def alike(a, b):
    """Whether two different texts begin with the same PREFIX characters and 80 % of the shorter."""
    n = max(PREFIX, -(-4 * min(len(a), len(b)) // 5))
    return a[:n] == b[:n]


# A row is (text as compared, record as JSON, user). What does not stay is added to gone[rule], with
# the row that stays instead or None.

def read_rows(cfg, counts: Counter):
    """All rows of the files, sorted. Raises ValueError."""
    found = read_records(files_in(cfg.files), counts, cfg.columns, keep=cfg.user)
    encode, rows = json.JSONEncoder(ensure_ascii=False).encode, []
    for prompt, user in sent_prompts(found, cfg.user, counts, cfg.strict):
        record = {"prompt": prompt.messages, "use_case": prompt.use_case, "meta": prompt.meta}
        line = encode({name: value for name, value in record.items() if value})
        rows.append((normalised(prompt.messages), line, sys.intern(user)))
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
    for user, sent in of.items():
        if user and len(sent) > most:
            sent.sort(key=lambda row: drawn(row[0], "cap"))
            gone["many"] += [(row, None) for row in sent[most:]]
    out = {id(row) for row, _ in gone["many"]}
    return [row for row in rows if id(row) not in out]


def cleaned(rows, masked, gone):
    """Rule 5, with an entry of `gone` for each kind of personal data."""
    for row in rows:
        record, names = json.loads(row[1]), set()
        for m in record["prompt"]:
            m["content"], found = mask(m["content"])
            names |= found
        for name in names:
            gone[name].append((row, None))
        if not names:
            yield row
        elif masked:
            yield row[0], json.dumps(record, ensure_ascii=False), row[2]


def page(read, sides, gone):
    """report.md."""
    def example(row):
        text = "\n".join(m["content"] for m in json.loads(row[1])["prompt"])
        text = cli.visible(" ".join(mask(text)[0].split()))
        return text if len(text) <= WIDTH else f"{text[:WIDTH // 2]} ... {text[-WIDTH // 2:]}"

    lines = ["# Prompts that stay, and what went", "", f"{read:,} were read. There stay:", ""]
    for name, rows in sides.items():
        lines.append(f"- {name}: {len(rows):,} of {len({r[2] or r[0] for r in rows}):,} users")
    for rule, title in RULES.items():
        lines += ["", f"## {title}: {len(gone[rule]):,}"]
        for row, other in heapq.nsmallest(EXAMPLES, gone[rule], lambda x: drawn(x[0][0], "show")):
            stays = [f"    stays: {example(other)}"] if other else []
            lines += ["", f"    {example(row)}", *stays]
    lines += ["", "Names and postal addresses are not found, nor what is not in messages.", ""]
    return "\n".join(lines)


def main(cfg):
    results.check_free(cfg.out)
    if cfg.valid + cfg.test >= 1:
        raise ValueError("--valid and --test leave nobody to train on: lower one")
    counts, gone, sides = Counter(), defaultdict(list), {"train": [], "valid": [], "test": []}
    rows = read_rows(cfg, counts)
    read, rows = len(rows), capped(without_copies(rows, gone), cfg.per_user, gone)
    for row in cleaned(rows, cfg.mask, gone):
        sides[side(row[2] or row[0], cfg.valid, cfg.test)].append(row)
    files = {"report.md": lambda f: f.write(page(read, sides, gone).encode())}
    for name, rows in sides.items():
        lines = (f"{line}\n".encode() for _, line, _ in rows)
        files[f"{name}.jsonl"] = lambda f, lines=lines: f.writelines(lines)
    results.write_folder(cfg.out, files)
    print(f"{report(counts)}\n{cfg.out}: " + ", ".join(f"{len(x):,} {s}" for s, x in sides.items()))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, "files")
