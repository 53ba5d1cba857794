"""A frozen config dataclass becomes a command line; the comment behind a field is its --help.

    @dataclass(frozen=True)
    class Config:
        lr: float = 1e-4       # peak learning rate ([IG] C.3)

gives `--lr 1e-4`, typed, documented, with underscores written as hyphens. `--preset NAME` picks a
set of values, any flag overrides it. A `ValueError` that this project's own code raises is a
sentence for the user: it is printed without a traceback, and the exit code is 2.
"""
import argparse
import atexit
import contextlib
import ctypes
import dataclasses
import inspect
import io
import os
import re
import sys
import traceback
import types
import typing

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def field_comments(Config):
    """{field: the comment behind it, and in lines of comment below it}, base classes included."""
    comments = {}
    for cls in reversed(Config.__mro__[:-1]):
        field = None
        for line in inspect.getsource(cls).splitlines():
            declared = re.match(r"    (\w+)\s*:[^#]*(?:#\s*(.*))?$", line)
            continued = re.match(r"\s+#\s*(.*)", line)
            if declared:
                field = declared[1]
                comments[field] = declared[2] or ""
            elif field and continued:
                comments[field] += " " + continued[1]
            else:
                field = None
    return comments


def parse(Config, presets, doc, argv=None, positional=None):
    """Command line -> Config. `positional` names the one field that takes bare arguments.

    Exits with 2 on bad flags."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    first = next(iter(presets))
    if len(presets) > 1:
        parser.add_argument("--preset", choices=list(presets), default=first,
                            help="a set of values; flags override it; default: %(default)s")
    # The preset is needed first: it decides which defaults --help shows.
    given = sys.argv[1:] if argv is None else argv
    known, _ = parser.parse_known_args([a for a in given if a not in ("-h", "--help")])
    values = presets[getattr(known, "preset", first)]
    comments, kinds = field_comments(Config), typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        default = values.get(field.name, field.default)
        help = f"{comments[field.name]} [default: {as_text(default)}]".strip()
        add_argument(parser, field.name, kinds[field.name], default, help, positional)
    args = vars(parser.parse_args(argv))
    args.pop("preset", None)
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})


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


def leave_others():
    """Take leave of the other processes, which torch wants done before the end."""
    distributed = sys.modules["torch"].distributed
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_ours(path):
    """Whether a source file belongs to this project, its tests and its environment apart."""
    parts = os.path.relpath(path, ROOT).split(os.sep)
    return parts[0] not in ("..", "tests") and "site-packages" not in parts


def run(main, Config, presets, doc, positional=None):
    """Parse the command line and call main(cfg). Bad input ends in one sentence and exit code 2."""
    cfg = parse(Config, presets, doc, positional=positional)
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    rank = os.environ["RANK"] if torchrun else "0"
    keep_freed_memory()
    try:
        # Of the processes that torchrun started, one speaks.
        with contextlib.redirect_stdout(sys.stdout if rank == "0" else io.StringIO()):
            main(cfg)
        if torchrun:
            # Not after an error: the others may be waiting in the middle of a step.
            atexit.register(leave_others)
    except ValueError as e:
        if not is_ours(traceback.extract_tb(e.__traceback__)[-1].filename):
            raise                                            # a bug, not bad input: show where
        where = "" if rank == "0" else f" in process {rank}"
        print(f"error{where}: {e}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as e:
        if not torchrun or "onnection" not in str(e):
            raise
        print(f"error: another process of this run has ended, torchrun says which; the same "
              f"command goes on from the last save ({e})", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the last save", file=sys.stderr)
        sys.exit(130)
