"""What may be written where: a command replaces only what it made itself, or was making.

Whatever else stands at --out is refused by name, unless --overwrite says that it may go; links,
folders and devices always. A file is written aside, synced and renamed: whoever looks sees the old
one or the new one. Who writes a result holds OUT.lock while doing so.
"""
import atexit
import contextlib
import glob
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
import zlib
from dataclasses import asdict

from plumbing.inputs import check, files_in

HELD = {}                   # of this process: lock file -> its descriptor
SEEN = {}                   # file -> how it was when this process saw that it may be replaced
LONGEST = 200               # bytes of a file's name, which others are made from
BESIDE = ("", ".part", ".log.jsonl", ".made.json", ".lock")     # what is written beside a result


# ---- one file ----------------------------------------------------------------------------------

def located(path):
    """A path with the folder that it really lies in: one file has one such name."""
    folder, name = os.path.split(os.fspath(path).rstrip(os.sep) or os.sep)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def check_place(path, named=""):
    """Raise ValueError if `path` is a link, a folder or a device, through which no file is
    written."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a device"
        raise ValueError(f"{named or path} cannot be written: it is {kind}; choose another name")


def replace_file(path, write, mode="w"):
    """Have write(f) fill a temporary file, then rename it: a crash or full disk leaves the old one.

    Raises ValueError."""
    check_place(path)
    place = located(path)
    folder, name = os.path.split(place)
    encoding, temporary = None if "b" in mode else "utf-8", None
    try:
        # A name that nobody can guess: what is planted there would be written through.
        descriptor, temporary = tempfile.mkstemp(".tmp", f".{name}.", folder)
        with open(descriptor, mode, encoding=encoding) as f:
            write(f)
            f.flush()
            os.fsync(descriptor)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, place)
        temporary = None
    except (OSError, RuntimeError) as e:                     # torch.save raises RuntimeError
        raise unwritten(path, e) from e
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.remove(temporary)


def unwritten(path, e):
    """What to raise for an error that came while `path` was written."""
    return ValueError(f"cannot write {path} ({_reason(e)}): free some space or choose another "
                      f"--out")


def _umask():
    """The permissions that new files do not get; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _reason(e):
    """Why a file could not be written: PyTorch's own words are those of the disk's error."""
    while e is not None:
        if isinstance(e, OSError):
            return e.strerror or e
        e = e.__cause__ or e.__context__
    return "the disk may be full"


def jsonl(records):
    """What writes records to a file f, one JSON object a line."""
    lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in records]
    return lambda f: f.writelines(lines)


def write_jsonl(path, records):
    """Write records, one JSON object a line. Raises ValueError."""
    replace_file(path, jsonl(records))


def file_hash(path):
    """sha256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_finite(what, numbers, advice=""):
    """Raise ValueError if one of the numbers in nested dicts and lists is not finite."""
    for name, value in numbers.items():
        for x in value if isinstance(value, list | tuple) else (value,):
            if isinstance(x, dict):
                check_finite(f"{what}, {name}", x, advice)
            elif isinstance(x, float) and not math.isfinite(x):
                raise ValueError(f"{what}: the {name} is not finite{advice}")


# ---- what may be replaced ----------------------------------------------------------------------

def check_out(out):
    """Raise ValueError unless `out` can be written: a plain file or none, in a writable folder."""
    if not out:
        raise ValueError("--out is missing: say where the result goes, e.g. --out model.pt")
    check_place(out, f"--out {out}")
    if os.path.basename(out) in ("", ".", ".."):
        raise ValueError(f"--out {out} cannot be written: it names a folder")
    if os.fspath(out).endswith((*BESIDE[1:], ".tmp")):
        raise ValueError(f"--out {out} cannot be written: its name is that of what is written "
                         f"beside a result; choose another")
    folder, name = os.path.split(located(out))
    if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        raise ValueError(f"--out {out} cannot be written: {folder} is not a writable folder")
    if len(os.fsencode(name)) > LONGEST:
        raise ValueError(f"--out {out} cannot be written: use a name of at most {LONGEST} bytes")


def check_new(path, overwrite=False):
    """Raise ValueError if there is something at `path`, unless it is a file that may go."""
    check_out(path)
    if os.path.exists(path) and not overwrite:
        raise ValueError(f"{path} is there already: choose another name, or move it away")


def check_inputs(inputs):
    """Raise ValueError unless every file of {flag: paths} is there."""
    for name, paths in inputs.items():
        for path in paths:
            check(path, f"--{name.replace('_', '-')} ")


def provenance(cfg, stage, inputs):
    """What made a result: the stage, its config, and a hash of each file of {flag: paths}, which
    may be folders and pipes.

    Where the files lie does not matter: a folder may be moved in the middle of a run. Nor does what
    no weight depends on but by rounding. Raises ValueError if one is not there.
    """
    inputs = {k: files_in(v) for k, v in inputs.items() if v}
    check_inputs(inputs)
    for suffix in BESIDE if cfg.out else ():
        beside = f"{cfg.out}{suffix}"
        for path in itertools.chain(*inputs.values()):
            if os.path.exists(beside) and os.path.samefile(beside, path):
                raise ValueError(f"{path} is one of the inputs: choose another name for the "
                                 f"result than --out {cfg.out}")
    apart = {"out", "overwrite", "log_every", "recompute", "shard", "microbatch", "sample_batch",
             "strict", *inputs}
    config = {k: v for k, v in asdict(cfg).items() if k not in apart}
    hashes = {name: [file_hash(path) for path in paths] for name, paths in inputs.items()}
    return {"stage": stage, "config": config, "inputs": hashes}


def name_of(meta):
    """A short name of a command, for the lines of its log."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:8]


def same_command(old, meta):
    """Whether the meta of a file, `old`, says that the command of `meta` made it."""
    return all(old.get(k) == v for k, v in meta.items())


def difference(old, meta):
    """How the command of `meta` differs from the one that made a file: a few words, "" if it does
    not."""
    stage, before = old.get("stage"), old.get("config")
    if not isinstance(stage, str) or not isinstance(before, dict):
        return "it does not say what made it"
    if stage != meta["stage"]:
        return f"it was made by {stage}"
    for name in meta["config"] | before:
        was, now = (config.get(name, "unknown") for config in (before, meta["config"]))
        if was != now:
            return f"it was made with --{name.replace('_', '-')} {was} instead of {now}"
    return "" if same_command(old, meta) else "it was made from other inputs"


def refuse_inputs(out, meta):
    """Raise ValueError if the file `out` is one of the inputs of the command of `meta`."""
    digest = file_hash(out)
    if any(digest in hashes for hashes in meta["inputs"].values()):
        raise ValueError(f"--out {out} is one of the inputs: choose another name")


# ---- one writer at a time ----------------------------------------------------------------------

def hold(out):
    """Lock the result `out` until `release`, or until this process ends.

    Also removes what a killed process was writing. Raises ValueError that names who holds it."""
    try:
        import fcntl
    except ImportError:                                      # Windows
        return
    watch(out)
    path = f"{located(out)}.lock"
    if path in HELD:
        return
    while True:
        check_place(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        holder = os.read(descriptor, 1000).decode(errors="replace")
        foreign = holder and not re.match(r"process \d+ on \S* \(", holder)
        if foreign or os.fstat(descriptor).st_nlink > 1:
            os.close(descriptor)
            raise ValueError(f"{path} is no lock of ours: choose another --out")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            for _ in range(100) if not holder else ():
                time.sleep(0.01)                             # until it has said who it is
                holder = holder or os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            raise ValueError(f"--out {out} is being written by {holder or 'another process'}: wait "
                             f"until it ends, or choose another name") from None
        # Whoever held it may have removed it meanwhile: then it locks nothing.
        if _is_at(descriptor, path):
            break
        os.close(descriptor)
    os.truncate(descriptor, 0)
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} "
                          f"({command[:500]})".encode(errors="replace"), 0)
    if not HELD:
        atexit.register(release_all)
    HELD[path] = descriptor
    for suffix in BESIDE:
        _sweep(out + suffix)


def _is_at(descriptor, path):
    """Whether an open file is the one that lies at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _sweep(path):
    """Remove the temporary files of `path` that a killed process left."""
    folder, name = os.path.split(located(path))
    pattern = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.tmp")
    for found in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*.tmp")):
        if pattern.fullmatch(os.path.basename(found)):
            with contextlib.suppress(OSError):
                os.remove(found)


def release(out):
    """Give the lock back."""
    path = f"{located(out)}.lock"
    descriptor = HELD.pop(path, None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            if _is_at(descriptor, path):
                os.remove(path)
        os.close(descriptor)


def release_all():
    """Give all locks back."""
    for path in list(HELD):
        release(path.removesuffix(".lock"))


def _state(path):
    """What changes when a file is replaced or written; None if there is none."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def watch(path):
    """Remember how a file is that this command may replace."""
    SEEN[located(path)] = _state(path)


def check_unchanged(path):
    """Raise ValueError if someone else has written the file since `watch`: a run may take days."""
    if SEEN.get(located(path)) != _state(path):
        raise ValueError(f"{path} was written by another program while this command ran: move it "
                         f"away, and start the same command again")


# ---- results that are not checkpoints ----------------------------------------------------------

def _paths(out, names):
    """{name: path} of the files of a result; "" is that of a single file."""
    return {name: os.path.join(out, name) for name in names} if names else {"": out}


def _made_file(out, names):
    """The file that says what made a result: beside a file, or in its folder."""
    return os.path.join(out, "made.json") if names else f"{out}.made.json"


def _read_made(path, overwrite):
    """What the file at `path` says, {} without one. Raises ValueError if it is no such file."""
    check_place(path)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as f:
            made = json.load(f)
        if isinstance(made["files"], dict) and isinstance(made["config"], dict):
            return made
    except (ValueError, KeyError, TypeError, RecursionError):
        pass                                                 # not ours, as what follows says
    if overwrite:
        return {}
    raise ValueError(f"{path} does not say what made the files beside it: move them away, or "
                     f"--overwrite them")


def claim(out, meta, names=(), overwrite=False):
    """Lock a result, and see that nothing is lost by writing it: a file, or files of these names in
    the folder `out`. -> whether this very command has made it already, and it is unchanged.

    If it is, it becomes up to date for `make`. Raises ValueError that names what would be lost."""
    if names:
        _make_folder(out)
    check_out(os.path.join(out, names[0]) if names else out)
    hold(out)
    meta = json.loads(json.dumps(meta))                      # as it is in a file
    made_file, paths = _made_file(out, names), _paths(out, names)
    for path in [*paths.values(), made_file]:
        _sweep(path)
    made = _read_made(made_file, overwrite)
    others = [name for name in made.get("files", ()) if names and name not in names]
    if others and not overwrite:
        raise ValueError(f"{out} holds {others[0]}, and {difference(made, meta)}: choose another "
                         f"--out")
    known = made["files"] if same_command(made, meta) else {}         # {name: hash}
    found = {}
    for name, path in paths.items():
        check_place(path)
        watch(path)
        if not os.path.exists(path):
            continue
        refuse_inputs(path, meta)
        found[name] = file_hash(path)
        # "": it was being written when a kill came
        if known.get(name) in ("", found[name]) or overwrite:
            continue
        why = "this command did not make it"
        if name in known:
            why = "it was changed since this command made it"
        elif made:
            why = difference(made, meta) or why
        raise ValueError(f"{path} is there already, and {why}: choose another --out, or "
                         f"--overwrite it")
    finished = bool(known) and all(found.get(name) == known[name] for name in known)
    if finished:
        print(f"{out} is finished already: delete it to make it again")
        for name in found:
            os.utime(paths[name])
        release(out)
    return finished


def _make_folder(out):
    """Raise ValueError if there is no folder `out` and none can be made."""
    if not out:
        check_out(out)                                       # says that it is missing
    if os.path.islink(out.rstrip(os.sep)):
        raise ValueError(f"--out {out} cannot be written: it is a link; choose another name")
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {out} cannot be made a folder ({e.strerror}): choose "
                         f"another") from e


def deliver(out, meta, writers):
    """Write the files of a result that is claimed: {name: write(f)}, "" for a single file; .png in
    binary. What made them is written beside them. Raises ValueError."""
    names = [name for name in writers if name]
    made_file, hashes = _made_file(out, names), dict.fromkeys(writers, "")

    def write_made(f):
        json.dump(meta | {"files": hashes}, f, indent=1)

    replace_file(made_file, write_made)
    for name, path in _paths(out, names).items():
        check_unchanged(path)
        replace_file(path, writers[name], "wb" if name.endswith(".png") else "w")
        hashes[name] = file_hash(path)
    replace_file(made_file, write_made)
    release(out)


# ---- an unfinished result, line by line --------------------------------------------------------

def go_on(path, meta):
    """What an unfinished run of the command of `meta` has left in `path` by append -> list; a file
    for it to append to, if it is the first. Raises ValueError if it is damaged, or of another."""
    check_place(path)
    begun, data = json.dumps(meta).encode() + b"\n", b""
    if os.path.exists(path):
        with open(path, "rb") as f:
            data = f.read()
    if begun.startswith(data):                      # a kill may have cut even this line off
        replace_file(path, lambda f: f.write(begun.decode()))
        return []
    if not data.startswith(begun):
        raise ValueError(f"{path} is of an unfinished run with other settings: go on with those, "
                         f"remove it, or choose another --out")
    whole = data[:data.rfind(b"\n") + 1]            # or the last line
    os.truncate(path, len(whole))
    found = []
    for n, line in enumerate(whole.split(b"\n")[1:-1], 2):
        checksum, record = line[:8], line[9:]
        if checksum != b"%08x" % zlib.crc32(record):
            raise ValueError(f"{path}, line {n} is damaged: remove the line, and start the same "
                             f"command again")
        found.append(json.loads(record))
    return found


def append(path, record):
    """Add a record to the file that go_on has left, behind a checksum. Raises ValueError."""
    line = json.dumps(record)
    try:
        with open(path, "a", encoding="utf-8") as f:
            f.write(f"{zlib.crc32(line.encode()):08x} {line}\n")
    except OSError as e:
        raise unwritten(path, e) from e


# ---- a new folder -------------------------------------------------------------------------------

def check_free(folder):
    """Raise ValueError unless there is nothing at `folder`, or an empty folder."""
    if not folder:
        raise ValueError("the folder has no name: name a new one")
    target = os.path.abspath(folder)                         # a slash at the end would hide a link
    empty = os.path.isdir(target) and not os.path.islink(target) and not os.listdir(target)
    if os.path.lexists(target) and not empty:
        raise ValueError(f"{folder} is there already: name a new folder")


def write_folder(folder, files):
    """Write {name: function(f)} as a folder, all of it or nothing. Raises ValueError."""
    target = os.path.abspath(folder)
    temporary = f"{target}.{secrets.token_hex(8)}.tmp"
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.mkdir(temporary)
        for name, write in files.items():
            with open(os.path.join(temporary, name), "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
        os.rename(temporary, target)                         # onto nothing, or an empty folder
    except OSError as e:
        raise ValueError(f"cannot write {folder} ({e.strerror}): free some space or name another "
                         f"folder") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
