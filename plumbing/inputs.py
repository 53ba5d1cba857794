"""The files that a command reads: a folder stands for the files in it, a pipe becomes a file."""
import atexit
import functools
import os
import shutil
import stat
import tempfile

# What commands write: no data, though --out may lie in a folder of data. Models are archives, and
# europarl.pt may be Portuguese.
MODELS = (".pt", ".part")
BESIDE = (".lock", ".log.jsonl", ".made.json", ".tmp")


def files_in(paths):
    """One path or several -> a tuple of files. A folder is replaced by the files in it and below,
    in the order of their names, but for hidden ones and what commands write; "-", the standard
    input, and other pipes by files with what comes out of them. Raises ValueError."""
    found = []
    for path in [paths] if isinstance(paths, str) else paths:
        if path == "-" or _is_pipe(path):
            found.append(_spooled(path))
        elif os.path.isdir(path):
            inside = sorted(_inside(path))
            if not inside:
                raise ValueError(f"{path} is a folder that holds no file of data")
            found += inside
        else:
            found.append(path)
    return tuple(found)


def check(path, flag=""):
    """Raise ValueError unless `path`, which `flag` names, is a file."""
    if not os.path.isfile(path):
        why = "is no file" if os.path.exists(path) else "does not exist"
        raise ValueError(f"{flag}{path} {why}")


def _inside(folder):
    """Yield the files in a folder and in those below, each folder once: links may lead back."""
    folders, seen = [folder], set()
    while folders:
        folder = folders.pop()
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in seen:
            continue
        seen.add((place.st_dev, place.st_ino))
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
        inside = {entry.path for entry in shown if os.path.isdir(entry.path)}
        folders += sorted(inside, reverse=True)
        yield from (entry.path for entry in shown
                    if entry.path not in inside and not _is_result(entry.path))


def _is_result(path):
    """Whether a command of ours wrote it, or was writing it."""
    if path.endswith(MODELS) and os.path.isfile(path):
        with open(path, "rb") as f:
            return f.read(2) == b"PK"
    return path.endswith(BESIDE)


def _is_pipe(path):
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


@functools.cache
def _spooled(path):
    """A file with all that comes out of a pipe, which can be read only once; it is removed when
    the process ends. Raises ValueError if somebody would have to type it."""
    if path == "-" and os.isatty(0):
        raise ValueError("- is what another command writes into this one, as in "
                         "`zcat data.gz | python data.py -`; here there is none")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = os.path.join(folder, "stdin" if path == "-" else os.path.basename(path))
    with open(0 if path == "-" else path, "rb") as pipe, open(copy, "wb") as f:
        shutil.copyfileobj(pipe, f)
    return copy
