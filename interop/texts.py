"""Text of any size -> tokens on the disk, made once and shared by all processes.

    tokens, start = read_tokens(("wiki.jsonl", "book.txt"), enc, counts)
    tokens[:start], tokens[start:]              # what is trained on, what is held out

Each text has a folder in the cache (XDG_CACHE_HOME, or ~/.cache, and there "instructgpt"), named by
a hash of its files, of how they are read and of the tokenizer. In it are

    tokens              uint16, or int32 for more than 65,536 kinds of tokens
    made.json           where what is held out begins, and what was counted
    tokens.part, units  while they are made: the tokens of all units, in the order of the text; of
                        each unit a hash and how many tokens it has

A unit is a document, or of a long one a part (rows.PART). Held out are the units with the lowest
hashes, 2 % of the tokens: what is there twice lies on one side, unless a tenth of all were held out
so, and text that is added moves few.
"""
import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from interop import records
from interop.formats import read_records
from interop.rows import Part, parts, read_json
from interop.tokenizers import tokenizer_id
from plumbing import results

VERSION = 1                         # of how files become tokens
UNFINISHED, MADE = ("tokens.part", "units"), "made.json"
MOST_HELD_OUT = 10
HELD_OUT = 50                       # one token in so many
THREADS = 2
BATCH = 2**22                       # characters that are tokenized at once
COPIED = 2**24                      # tokens copied at once
UNIT = np.dtype([("hash", "<u8"), ("tokens", "<u4")])


def pack(docs, enc):
    """Documents -> one long tensor of tokens, each document followed by EOS."""
    encoded = enc.encode_ordinary_batch(docs, num_threads=THREADS)
    return torch.cat([torch.tensor([*ids, enc.eot_token]) for ids in encoded])


def cache_folder():
    """Where tokens are kept; whoever deletes it loses the time it took to make them."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "instructgpt")


def read_tokens(files, enc, counts: Counter, columns="", separator="", strict=False):
    """The text of files, tokenized unless the cache has it -> (tokens, where in them begins what is
    held out). tokens: (N,) uint16 or int32, in the memory of a file, EOS behind each document.

    counts gets what was read and skipped. Raises ValueError.
    """
    hashes = [results.file_hash(path) for path in files]
    how = [hashes, columns, separator, tokenizer_id(enc)["hash"], VERSION]
    key = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:32]
    folder = os.path.join(cache_folder(), key)
    dtype = np.dtype("uint16" if enc.n_vocab <= 2**16 else "int32")
    if not _known(folder, dtype):
        with _locked(folder):
            if not _known(folder, dtype):
                fresh = Counter()
                found = read_records(files, fresh, columns, separator)
                _tokenize(records.texts(found, fresh, strict), enc, dtype, folder)
                if hashes != [results.file_hash(path) for path in files]:
                    _remove_unfinished(folder)
                    raise ValueError(f"{' '.join(files)} changed while it was read: start again")
                _finish(folder, dtype, fresh)
    _remove_unfinished(folder)
    known = _known(folder, dtype)
    if strict and known["counts"].get("bad records skipped"):
        # it was made without --strict: the first of them is raised
        again = read_records(files, Counter(), columns, separator)
        deque(records.texts(again, Counter(), strict), maxlen=0)
    counts.update(known["counts"])
    tokens = torch.from_file(os.path.join(folder, "tokens"), size=known["tokens"],
                             dtype=getattr(torch, dtype.name))
    return tokens, known["held out from"]


def _known(folder, dtype):
    """What made.json says, if the tokens beside it are as many as it says; else None."""
    try:
        known = read_json(os.path.join(folder, MADE))
        size = os.path.getsize(os.path.join(folder, "tokens"))
        whole = known["tokens"] * dtype.itemsize == size
        good = 0 <= known["held out from"] <= known["tokens"] and isinstance(known["counts"], dict)
        return known if whole and good else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _finish(folder, dtype, counts):
    """Write `tokens`, and made.json when they are whole."""
    start, n = _sort(folder, dtype)
    known = {"held out from": start, "tokens": n, "counts": counts}
    results.replace_file(os.path.join(folder, MADE), functools.partial(json.dump, known))


def _remove_unfinished(folder):
    for name in UNFINISHED:
        with contextlib.suppress(OSError):                   # gone, or in a cache to be read only
            os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def _locked(folder):
    """No other process is in here meanwhile; whoever waited finds what the first has made."""
    try:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "lock"), "w") as lock:
            with contextlib.suppress(ImportError):           # Windows
                import fcntl
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as e:
        raise ValueError(f"the cache of tokens {folder} cannot be written ({e.strerror}): free "
                         f"some space, or set XDG_CACHE_HOME to a folder where there is "
                         f"some") from e


def _tokenize(texts, enc, dtype, folder):
    """Append the tokens of all texts to `tokens.part` and their units to `units`, but for those
    that are there from an interrupted run."""
    part, units = (os.path.join(folder, name) for name in UNFINISHED)
    with open(part, "ab") as f, open(units, "ab") as g:
        known = np.fromfile(units, UNIT)
        if f.tell() < known["tokens"].sum() * dtype.itemsize:        # the machine stopped
            known = known[:0]
        f.truncate(known["tokens"].sum() * dtype.itemsize)
        g.truncate(len(known) * UNIT.itemsize)
        new = itertools.islice(_units(texts), len(known), None)
        # shown from the second second on, so nothing stands before the error of a wrong file
        with tqdm(desc="tokens of text", unit="", unit_scale=True, delay=1,
                  initial=int(known["tokens"].sum())) as bar:
            for tokens, found in _encode(new, enc):
                _append(f, tokens.astype(dtype))
                _append(g, found)
                bar.update(len(tokens))


def _append(f, array):
    f.write(array.tobytes())
    f.flush()


def _encode(texts, enc):
    """Yield what `_encoded` makes of the texts, a share at a time, by several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        for batch in _batches(texts):
            size = -(-len(batch) // (4 * THREADS))                   # for who is done first
            shares = [batch[i:i + size] for i in range(0, len(batch), size)]
            yield from pool.map(lambda share: _encoded(share, enc), shares)


def _units(texts):
    """Documents, long ones cut; a rows.Part has been cut already."""
    for text in texts:
        yield from [text] if isinstance(text, Part) else parts(text)


def _batches(texts):
    """Lists of texts of about BATCH characters together."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(texts, enc):
    """-> their tokens one behind another, and for each its hash and how many it has."""
    found, units = [], np.empty(len(texts), UNIT)
    for i, text in enumerate(texts):
        tokens = enc.encode_to_numpy(text, disallowed_special=())
        if not isinstance(text, Part):
            tokens = np.append(tokens, np.uint32(enc.eot_token))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        units[i] = int.from_bytes(digest, "little"), len(tokens)
        found.append(tokens)
    return np.concatenate(found), units


def _sort(folder, dtype):
    """Write `tokens`: what is trained on and, behind it, what is held out. -> where this begins,
    and how many all are"""
    part, units = (os.path.join(folder, name) for name in UNFINISHED)
    units, tokens = np.fromfile(units, UNIT), np.memmap(part, dtype, "r")
    order = np.argsort(units["hash"], kind="stable")
    enough = np.cumsum(units["tokens"][order]) * HELD_OUT >= len(tokens)
    last = order[enough.argmax()]
    held_out = units["hash"] <= units["hash"][last]
    # what is there a thousand times would take all of it along
    if units["tokens"][held_out].sum() * MOST_HELD_OUT > len(tokens):
        held_out = np.zeros(len(units), bool)
        held_out[order[:enough.argmax() + 1]] = len(units) > 1
    ends = np.cumsum(units["tokens"], dtype=np.int64)

    with open(os.path.join(folder, "tokens"), "wb") as f:
        for wanted in (False, True):
            for first, last in _runs(held_out, wanted):
                begin = ends[first] - units["tokens"][first]
                f.writelines(tokens[at:min(at + COPIED, ends[last])].tobytes()
                             for at in range(begin, ends[last], COPIED))
        f.flush()
        os.fsync(f.fileno())
    return int(units["tokens"][~held_out].sum()), len(tokens)


def _runs(flags, wanted):
    """[(first, last), ...] of the runs of `wanted` among flags."""
    changes = np.flatnonzero(flags[1:] != flags[:-1])
    firsts = np.concatenate([[0], changes + 1])
    lasts = np.concatenate([changes, [len(flags) - 1]])
    return [(a, b) for a, b in zip(firsts, lasts) if flags[a] == wanted]
