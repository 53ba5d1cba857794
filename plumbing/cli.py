"""A frozen config dataclass becomes a command line; the comment behind a field is its --help.

    @dataclass(frozen=True)
    class Config:
        lr: float = 1e-4       # peak learning rate ([IG] C.3); > 0

gives `--lr 1e-4`, typed, documented, with underscores written as hyphens; ranges.py has the values
that are allowed. `--preset NAME` picks a set of values, any flag overrides it.

What is not a bug ends in one sentence, without a traceback, and in exit code 2: a `ValueError` that
this project's own code raises, an error of the system, a lack of memory.
"""
import argparse
import atexit
import contextlib
import ctypes
import dataclasses
import errno
import importlib
import io
import os
import re
import sys
import traceback
import types
import typing

from plumbing import ranges

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are a sentence too."""

    def error(self, message):
        say(f"error: {visible(message)}; --help lists the flags")
        sys.exit(2)


def parse(Config, presets, doc, argv=None, positional=None):
    """Command line -> Config. `positional` names the one field that takes bare arguments.

    Exits with 2 on bad flags. Raises ValueError for a value outside its range."""
    parser = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    first = next(iter(presets))
    if len(presets) > 1:
        parser.add_argument("--preset", choices=list(presets), default=first,
                            help="a set of values; flags override it; default: %(default)s")
    # The preset is needed first: it decides which defaults --help shows.
    given = sys.argv[1:] if argv is None else argv
    known, _ = parser.parse_known_args([a for a in given if a not in ("-h", "--help")])
    values = presets[getattr(known, "preset", first)]
    comments, kinds = ranges.field_comments(Config), typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        default = values.get(field.name, field.default)
        help = f"{comments[field.name]} [default: {as_text(default)}]".strip()
        add_argument(parser, field.name, kinds[field.name], default, help, positional)
    args = vars(parser.parse_args(argv))
    args.pop("preset", None)
    for name, value in args.items():
        if isinstance(value, list):
            if typing.get_origin(kinds[name]) is not tuple:  # argparse's answer to --lr=--
                parser.error(f"argument --{name.replace('_', '-')}: expected one value")
            args[name] = tuple(value)
    cfg = Config(**args)
    ranges.check(cfg)
    return cfg


def as_text(default):
    """A default as --help shows it."""
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    return "none" if shown in ("", None) else shown


def add_argument(parser, name, kind, default, help, positional):
    """One field of a config -> one flag, or the bare arguments."""
    flag = "--" + name.replace("_", "-")
    help = help.replace("%", "%%")
    if isinstance(kind, types.UnionType):                    # float | None
        kind = kind.__args__[0]
    if name == positional:
        parser.add_argument(name, nargs="*", default=default, help=help)
    elif kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help)
    elif typing.get_origin(kind) is tuple:
        parser.add_argument(flag, nargs="+", type=kind.__args__[0], default=default,
                            metavar=name[0].upper(), help=help)
    else:
        parser.add_argument(flag, type=kind, default=default, metavar=kind.__name__.upper(),
                            help=help)


def function(flag, name):
    """What "module:function" names, a module of the folder where the command runs or an installed
    one. Raises ValueError."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        if not callable(found):
            raise TypeError("it is not a function")
    except (ImportError, AttributeError, ValueError, TypeError) as e:
        raise ValueError(f"{flag} {name} names no function: write module:function, as in "
                         f"mine:points for points in mine.py ({e})") from e
    return found


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3   # glibc's malloc.h


def keep_freed_memory():
    """On glibc, keep freed memory instead of mapping each tensor anew and touching its pages again.

    It is a property of the C library's allocator: any program that makes these calls gains from
    them (`python -m evidence.bench --peer transformers`). Tensors over 32 MB are still given back:
    batches whose lengths vary would leave holes of every size, and memory would grow far beyond
    its use.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:
        return                                               # another libc: nothing to set
    mallopt(M_MMAP_THRESHOLD, 32 << 20)
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_TOP_PAD, 256 << 20)


# ---- what is printed ---------------------------------------------------------------------------

# Control characters but tab and newline, directions of writing, halves of characters.
UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
GREEN, PLAIN = "\033[32m", "\033[0m"     # the colour of python data.py


def visible(text):
    """Text in which what a terminal would obey is written out: \\x1b[2J clears no screen."""
    return UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


class Printed:
    """A stream of text that shows what strangers' files and models say instead of obeying it."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        pieces = re.split(f"({re.escape(GREEN)}|{re.escape(PLAIN)})", text)
        shown = "".join(x if x in (GREEN, PLAIN) else visible(x) for x in pieces)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self.stream, name)


# ---- how a command ends ------------------------------------------------------------------------

ADVICE = {
    errno.ENOSPC: "free some space and start the same command again",
    errno.EDQUOT: "free some space and start the same command again",
    errno.EACCES: "ask its owner for permission, or use another file",
    errno.EPERM: "ask its owner for permission, or use another file",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "raise the number of open files, e.g. ulimit -n 4096",
}


def is_ours(path):
    """Whether a source file belongs to this project, its tests and its environment apart."""
    parts = os.path.relpath(path, ROOT).split(os.sep)
    return parts[0] not in ("..", "tests") and "site-packages" not in parts


def sentence(e):
    """What an exception says to a user, "" if it is a bug."""
    if isinstance(e, OSError) and e.errno is not None:
        what = f"{e.filename}: " if e.filename else ""
        advice = ADVICE.get(e.errno, "check it and start the same command again")
        return f"{what}{e.strerror}; {advice}"
    lacks_memory = "can't allocate memory" in str(e) or "out of memory" in str(e)
    if isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and lacks_memory):
        return ("the memory does not suffice: lower --microbatch or --batch, or use a smaller "
                "model; `python model.py plan` says what a model needs")
    if isinstance(e, ValueError) and is_ours(traceback.extract_tb(e.__traceback__)[-1].filename):
        return str(e)
    return ""


def leave_others():
    """Take leave of the other processes, which torch wants done before the end."""
    distributed = sys.modules["torch"].distributed
    if distributed.is_initialized():
        distributed.destroy_process_group()


def say(text):
    """Print to standard error, if it can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def end_output():
    """Say what is left to be said on standard output, or, if it cannot be, nothing: Python tries
    again at the very end, and complains."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def told(resumes=False, rank="0"):
    """Inside, what is not a bug ends in a sentence and exit code 2, and prints are made visible.

    resumes: whether the same command goes on where it was interrupted."""
    where = "" if rank == "0" else f" in process {rank}"
    if sys.stderr is None:                                   # after `2>&-`
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
    # Of the processes that torchrun started, one speaks; after `>&-` there is no stdout.
    printed = Printed(sys.stdout) if rank == "0" and sys.stdout else io.StringIO()
    try:
        try:
            with contextlib.redirect_stdout(printed):
                yield
        except SystemExit:                                   # as after --help
            printed.flush()
            raise
        printed.flush()
    except BrokenPipeError:                                  # as in `... | head`
        end_output()
        sys.exit(1)
    except KeyboardInterrupt:
        then = ": the same command goes on from the last save" if resumes else ""
        say(f"\ninterrupted{then}")
        end_output()
        sys.exit(130)
    except Exception as e:
        said = sentence(e)
        if not said:
            raise                                            # a bug, not bad input: show where
        one_line = visible(said).replace("\n", " ")
        say(f"error{where}: {one_line}")
        end_output()
        sys.exit(2)


def run(main, Config, presets, doc, positional=None):
    """Parse the command line and call main(cfg). Bad input ends in one sentence and exit code 2."""
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    with told(hasattr(Config, "save_every"), os.environ["RANK"] if torchrun else "0"):
        cfg = parse(Config, presets, doc, positional=positional)
        keep_freed_memory()
        try:
            main(cfg)
        except RuntimeError as e:
            if not torchrun or "onnection" not in str(e):
                raise
            print(f"error: another process of this run has ended, torchrun says which; the same "
                  f"command goes on from the last save ({e})", file=sys.stderr)
            sys.exit(1)
        if torchrun:
            # Not after an error: the others may be waiting in the middle of a step.
            atexit.register(leave_others)
