"""What people did, on the disk: files of JSON lines in a folder, of which nothing saved is lost."""
import errno
import fcntl
import hashlib
import json
import os

from plumbing import results

FILES = ("rankings", "demonstrations", "votes", "skips")


def task_id(record):
    """What a task is called: a hash of its prompt and responses."""
    shown = [record["prompt"], record.get("responses", [])]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


class Store:
    """Files of JSON lines in a folder, of which one process at a time has hold."""

    def __init__(self, folder):
        """Raises ValueError if another process has hold of it, or a line is not JSON."""
        # links and what people wrote are nobody else's
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.lock = os.open(os.path.join(folder, "lock"), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ValueError(f"{folder} is in use by another page.py: stop that one, or choose "
                             f"another --out") from e
        self.folder, self.files, self.records = folder, {}, {}
        for name in FILES:
            self.open(name)
            self.records[name] = mended(self.path(name), self.files[name])

    def path(self, name):
        return os.path.join(self.folder, f"{name}.jsonl")

    def open(self, name):
        self.files[name] = os.open(self.path(name), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        here = os.open(self.folder, os.O_RDONLY)
        os.fsync(here)                                       # the name of the file, too
        os.close(here)

    def append(self, name, records):
        """Returns when the records are on the disk. Raises OSError, and nothing is written."""
        file = self.files[name]
        end = os.lseek(file, 0, os.SEEK_END)
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()
        try:
            if os.write(file, lines) < len(lines):
                raise OSError(errno.ENOSPC, "No space left on device")
            os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise
        self.records[name] += records

    def remove(self, sent, labeler):
        """Take out what a labeler sent under the id `sent` -> the task it belonged to, or None if
        there is nothing. Raises ValueError if it cannot be written, and nothing is lost."""
        found = None
        for name, known in self.records.items():
            gone = [r for r in known if (r["id"], r["labeler"]) == (sent, labeler)]
            if gone:
                found = gone[0]["task"]
                kept = [r for r in known if (r["id"], r["labeler"]) != (sent, labeler)]
                results.write_jsonl(self.path(name), kept)
                os.close(self.files[name])
                self.open(name)
                self.records[name] = kept
        return found


def mended(path, file):
    """The records of a file, without a last line that a kill tore. Raises ValueError."""
    with open(path, "rb") as f:
        raw = f.read()
    whole = raw[:raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.ftruncate(file, len(whole))
        print(f"{path}: cut off {len(raw) - len(whole)} bytes of a line that was never saved")
    records = []
    for n, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            records.append(record)
            record["labeler"], record["task"], record["id"]
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise ValueError(f"{path}, line {n} was not written by page.py: mend or remove "
                             f"it") from e
    return records
