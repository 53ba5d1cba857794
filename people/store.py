"""What people did, on the disk: files of JSON lines in a folder, of which nothing saved is lost."""
import errno
import fcntl
import hashlib
import json
import os
import stat

from plumbing import results

# What a line of each file holds, beside the labeler's name, the task and the id of what was sent.
FILES = {
    "rankings": {"prompt": list, "responses": list, "ranks": list, "ratings": list, "flags": list,
                 "order": list, "gold": bool, "seconds": (int, float)},
    "demonstrations": {"prompt": list, "response": str},
    "votes": {"prompt": list, "responses": list, "ranks": list, "systems": list, "both_bad": bool},
    "skips": {"reason": str},
}
COMMON = {"labeler": str, "task": str, "id": str}
ONE_EACH = ("ranks", "ratings", "flags", "order", "systems")     # lists, one thing a response


def task_id(record):
    """What a task is called: a hash of its prompt and responses."""
    shown = [record["prompt"], record.get("responses", [])]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


# ---- reading ------------------------------------------------------------------------------------

def parsed(name, line):
    """The record of a line of the file called `name`. Raises ValueError if it is none."""
    record, kinds = json.loads(line), COMMON | FILES[name]
    missing = [x for x, kind in kinds.items() if not isinstance(record.get(x), kind)]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    K = len(record.get("responses", []))
    if any(len(record[field]) != K for field in ONE_EACH if field in FILES[name]):
        raise ValueError(f"not as many of {', '.join(ONE_EACH)} as responses")
    if sorted(record.get("order", range(K))) != [*range(K)]:
        raise ValueError('"order" does not name each response once')
    return record


def read(path, name):
    """The records of a file -> (records, bytes that they take). A last line that a kill tore was
    never saved and is left out, as are records of a submission that is not whole. Raises ValueError
    on anything else that page.py does not write; reads nothing that is not there."""
    if not os.path.exists(path):
        return [], 0
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no file: choose another --out")
    with open(path, "rb") as f:
        lines = f.read().splitlines(keepends=True)
    records, size = [], 0
    for n, line in enumerate(lines, 1):
        try:
            records.append(parsed(name, line))
        except (ValueError, AttributeError, TypeError, RecursionError) as e:
            if n == len(lines) and not line.endswith(b"\n"):
                break
            raise ValueError(f"{path}, line {n} was not written by page.py ({e}): mend or remove "
                             f"it") from e
        size += len(line)
    if records:
        last = records[-1]
        whole = [r for r in records if (r["id"], r["labeler"]) == (last["id"], last["labeler"])]
        if len(whole) < last.get("of", 1):
            records = records[:-len(whole)]
            size = sum(map(len, lines[:len(records)]))
    return records, size


# ---- writing ------------------------------------------------------------------------------------

class Store:
    """Files of JSON lines in a folder, of which one process at a time has hold."""

    def __init__(self, folder):
        """Raises ValueError if another process has hold of it, or a line is not page.py's."""
        # links and what people wrote are nobody else's
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self.lock = os.open(os.path.join(folder, "lock"), os.O_CREAT | os.O_WRONLY, 0o600)
        except OSError as e:
            raise ValueError(f"--out {folder}: {e.strerror}; choose another folder") from e
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ValueError(f"{folder} is in use by another page.py: stop that one, or choose "
                             f"another --out") from e
        self.folder, self.files, self.records, self.torn = folder, {}, {}, {}
        found = {name: read(self.path(name), name) for name in FILES}
        for name, (records, size) in found.items():
            self.open(name)
            self.records[name] = records
            self.mend(name, size)

    def path(self, name):
        return os.path.join(self.folder, f"{name}.jsonl")

    def open(self, name):
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        self.files[name] = os.open(self.path(name), flags, 0o600)
        here = os.open(self.folder, os.O_RDONLY)
        os.fsync(here)                                       # the name of the file, too
        os.close(here)

    def mend(self, name, size):
        """Cut off what was never saved; end the last line, if an editor did not."""
        file = self.files[name]
        beyond = os.fstat(file).st_size - size
        if beyond:
            os.ftruncate(file, size)
            print(f"{self.path(name)}: cut off {beyond} bytes that were never saved")
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")

    def append(self, name, records):
        """Returns when the records, of one submission, are on the disk. Raises OSError, and none
        is."""
        file, path = self.files[name], self.path(name)
        if name in self.torn:
            os.ftruncate(file, self.torn[name])
            del self.torn[name]
        if not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(file)):
            raise OSError(errno.ESTALE, f"{path} was replaced: start page.py again")
        of = {"of": len(records)} if len(records) > 1 else {}
        records = [r | of for r in records]
        end = os.lseek(file, 0, os.SEEK_END)
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
        try:
            if os.write(file, lines) < len(lines):
                raise OSError(errno.ENOSPC, "No space left on device")
            os.fsync(file)
        except OSError:
            self.torn[name] = end                            # in case that this fails, too
            os.ftruncate(file, end)
            del self.torn[name]
            raise
        self.records[name] += records

    def of(self, name, sent, labeler):
        """The records of what a labeler sent under the id `sent`."""
        return [r for r in self.records[name] if (r["id"], r["labeler"]) == (sent, labeler)]

    def remove(self, name, sent, labeler):
        """Take these records out of the file. Raises ValueError if it cannot be written, and
        nothing is lost."""
        kept = [r for r in self.records[name] if (r["id"], r["labeler"]) != (sent, labeler)]
        results.write_jsonl(self.path(name), kept)
        os.close(self.files[name])
        self.open(name)
        self.records[name] = kept
