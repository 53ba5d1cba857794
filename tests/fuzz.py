"""Fuzz of all flags and files: no traceback, no hang, no more than 1 GB, nothing lost.

    python -m tests.fuzz                            # 600 command lines, 200 malformed files
    python -m tests.fuzz --only ppo --flags 3000    # more of one command
    python -m tests.fuzz --case f17                 # one case again, with what it printed
    python -m tests.fuzz --case c3 --folder kept    # its files stay in kept/: run it there by hand

A case is a command line of COMMANDS that works, with one to three changes (f0, f1, ...), or with a
malformed file (c0, c1, ..., malformed.py). It must end with exit code 0, or with 2 and a sentence;
it leaves its inputs as they were, no temporary file, and no number that is not finite. Each runs in
a process of its own, forked when everything is imported, in a small world that the stages made.
The same seed gives the same cases. Linux only.
"""

import argparse
import atexit
import gc
import importlib
import json
import math
import os
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import traceback
import typing
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from tests import malformed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE = 20  # seconds, after which a case hangs
GB = 2**30
ALLOWED = 2 * GB  # bytes of addresses: more is refused, as if there were no more memory

# ---- the commands -------------------------------------------------------------------------------

MODEL = "--n-layer 1 --n-head 2 --n-embd 16 --context 64 --block 16"
STEPS = "--warmup 1 --save-every 2 --eval-every 2"


@dataclass(frozen=True)
class Command:
    module: str  # as after python -m
    share: int  # how many of a round of cases are of this command
    line: str  # flags that work, apart from bare arguments
    bare: tuple = ()  # bare arguments that work
    bare_field: str = ""  # of Config
    kinds: tuple = ()  # (name of a flag, type); where there is no Config
    copied: tuple = ()  # of the world, what the command is to change


COMMANDS = {
    "pretrain": Command(
        "pretrain",
        8,
        f"--data in/text.txt --tokens 192 --batch 2 {MODEL} {STEPS} --out new.pt",
    ),
    "sft": Command(
        "sft",
        8,
        "--init in/base.pt --data in/demos.jsonl --ptx in/text.txt --epochs 1 --batch 8 "
        f"--max-new 4 {STEPS} --out new.pt",
    ),
    "reward": Command(
        "reward",
        7,
        "--init in/sft.pt --data in/comparisons.jsonl --demos in/demos.jsonl --batch 8 "
        f"{STEPS} --out new.pt",
    ),
    "ppo": Command(
        "ppo",
        11,
        "--init in/sft.pt --rm in/rm.pt --prompts in/prompts.jsonl --ptx in/text.txt "
        "--iterations 2 --rollout 4 --minibatch 2 --microbatch 2 --max-new 4 "
        f"{STEPS} --out new.pt",
    ),
    "dpo": Command(
        "forks.dpo",
        3,
        "--init in/sft.pt --data in/comparisons.jsonl --batch 8 --max-new 4 "
        f"{STEPS} --out new.pt",
    ),
    "rloo": Command(
        "forks.rloo",
        3,
        "--init in/sft.pt --rm in/rm.pt --prompts in/prompts.jsonl --iterations 3 --rollout 4 "
        f"--k 2 --microbatch 2 --max-new 4 {STEPS} --out new.pt",
    ),
    "label": Command(
        "label",
        6,
        "--init in/sft.pt --n 4 --k-min 2 --k-max 3 --max-new 4 --out new.jsonl",
    ),
    "sample": Command("sample", 5, "--prompt Hi --max-new 4", ("in/sft.pt",), "model"),
    "evaluate": Command(
        "evaluate",
        5,
        "--rm in/rm.pt --n 4 --samples 2 --dialogues 6 --untouched 6 --max-new 4 "
        "--text in/text.txt --out new",
        ("in/base.pt", "in/sft.pt"),
        "systems",
    ),
    "means": Command(
        "evaluate",
        1,
        "--seeds in/report/report.json in/report1/report.json",
        kinds=(("seeds", tuple[str, ...]), ("rm", str)),
    ),
    "report": Command("evidence.report", 1, "", ("in/report",)),
    "ceiling": Command(
        "evidence.ceiling",
        3,
        "--init in/sft.pt --rm in/rm.pt --prompts in/prompts.jsonl --ptx in/text.txt "
        "--iterations 2 --rollout 4 --minibatch 2 --microbatch 2 --max-new 4 "
        f"{STEPS} --out new.pt",
    ),
    "strangers": Command("evidence.strangers", 2, "--max-new 4", ("in/sft.pt",), "model"),
    "seeds": Command(
        "evidence.seeds",
        2,
        "--docs docs --readme README.md",
        ("in/seed1/report.json", "in/seed2/report.json"),
        "reports",
        copied=("docs", "README.md"),
    ),
    "claims": Command(
        "evidence.claims",
        2,
        "--page --docs docs --readme README.md --runs runs",
        bare_field="claims",
        copied=("docs", "README.md"),
    ),
    "bench": Command("evidence.bench", 2, "--cases train --rounds 1 --out new.png"),
    "codex": Command(
        "codex.evaluate",
        3,
        "--toy 2 --n 3 --k 1 2 --max-new 8 --out new",
        ("in/bytes.pt",),
        "models",
    ),
    "toy": Command("codex.language", 2, "--files 20 --functions 5 --prompts 5 --out new"),
    "hygiene": Command(
        "interop.hygiene",
        4,
        "--user labeler --out new",
        ("in/comparisons.jsonl",),
        "files",
    ),
    "data": Command("data", 2, "", ("in/demos.jsonl",), kinds=(("columns", str), ("strict", bool))),
    "plan": Command(
        "model",
        1,
        "plan --preset gpt2 --gpus 2",
        kinds=(("preset", str), ("gpus", int), ("microbatch", int), ("sampled", int)),
    ),
    "export": Command("model", 2, "export", ("in/sft.pt", "new")),
    "sandbox": Command("sandbox", 1, "", kinds=(("ranks", str),)),
}
# What is never changed, and why.
LEFT_OUT = {
    "compile": "it takes half a minute",
    "preset": "models of GPT-2's size, with a tokenizer that is downloaded",
    "peer": "transformers takes many seconds to import",
    "sweep": "it takes minutes",
    "page": "without it the claims are measured, which takes hours",
}
# What may ask for work without an end: such fields get no number over a hundred.
ENDLESS = {
    "batch", "best_of", "demonstrations", "dialogues", "documents", "epochs", "files", "functions",
    "iterations", "k_max", "k_min", "minibatch", "n", "n_layer", "prompts", "ptx_ratio", "rollout",
    "rounds", "samples", "tokens", "toy", "untouched",
}  # fmt: skip

# ---- values -------------------------------------------------------------------------------------

WHOLE_NUMBERS = ["-1", "0", "1", "2", "7"]
FRACTIONS = [*WHOLE_NUMBERS, "0.5", "1.5", "-0.5", "1e-300", "-1e-300", "-0.0"]
NO_NUMBERS = ["0.5", "", "x", "é", "0x10", "1_0", " 3", "3,5", "None", "9" * 5000 + "x", "--1"]
LARGE = ["1000000", str(2**31), str(2**63), str(2**70), "9" * 5000]
HUGE = ["1000000", "1e39", "1e308", "9" * 5000]
NEGATIVE = [str(-(2**70)), "-1000000", "-1000000"]
NOT_FINITE = ["nan", "nan", "inf", "-inf", "-1e39"]
STRINGS = [
    "", " ", "x", "é", ".", "..", "-", "--", "=", "a=b", "a=b,b=a", "prompt=", "0", "-1", "nan",
    "None", "*", "%s", "%", "{}", "{0}", "~", "$HOME", "'", '"', "n" * 300, "é" * 150, "x/" * 60,
    "missing.pt", "none/missing.pt", "../x", "new.pt/x", "in", "in/", "a\nb", "a\tb", "\x1b[31mx",
    "\u202egnp.exe", "\udcff", "a\udcffb", "🙂", "cpu", "cuda", "cuda:99", "cpu:0", "meta", "mps",
    "xyz", "auto", "bf16", "fp64", "sandbox", "rm", "random", "cosine", "/dev/fd/9",
    "/proc/self/mem", "prompted:in/base.pt", "bon2:in/sft.pt", "bon0:in/sft.pt", "bonx:", ":",
    "bon99999999999999999999:in/sft.pt", "train,rm", "S", "1", "7", "2c",
]  # fmt: skip
WORDS = {
    "schedule": ("cosine", "restarts", "constant"),
    "select": ("last", "rm"),
    "value_init": ("rm", "random"),
    "precision": ("auto", "fp32", "bf16"),
    "device": ("auto", "cpu"),
    "cases": ("train", "generate", "sft", "rm", "ppo", "rm,sft"),
    "dtype": ("fp32", "bf16"),
    "size": ("S",),
    "rm": ("in/rm.pt",),
    "demos": ("in/demos.jsonl", "in/demos.csv"),
    "ptx": ("in/text.txt", "in/text.jsonl", "in/text.txt.gz"),
    "text": ("in/text.txt", "in/text.jsonl"),
    "rated": ("in/ratings.jsonl",),
    "prompts": ("in/prompts.jsonl",),
    "tokenizer": ("sandbox", "in/small.tiktoken"),
    "columns": ("prompt=question", "text=content"),
    "held_out_labelers": ("Ann",),
    "user": ("labeler", "use_case"),
    "baseline": ("in/base.pt",),
}
DEVICES = {"in/null": 3, "in/full": 7}  # Linux's numbers of /dev/null and /dev/full
# What stands on standard input: a conversation, among others.
INPUTS = [b"", b"Hi.\nWho are you?\n\n", b"\xff\xfe\n\n", b"\x1b[2J\0\n\n", b"long " * 5000]
ODD_WORDS = ["extra", "--unknown", "--unknown=1", "-x", "--", "--help", "-h", "@in/text.txt", ""]


def kinds_of(command):
    """{field: type} of what a command line can say, but for what is left out."""
    if command.kinds or command.module in ("model", "data", "sandbox", "evidence.report"):
        return dict(command.kinds)
    Config = importlib.import_module(command.module).Config
    kinds = typing.get_type_hints(Config)
    out = [*LEFT_OUT, command.bare_field]
    return {f.name: kinds[f.name] for f in fields(Config) if f.name not in out}


def wrong_value(rng, name, kind, world):
    """A value for a field of this type, which may fit or not, as text."""
    if kind in (int, float):
        if kind is int:
            groups = [WHOLE_NUMBERS] * 3 + [NEGATIVE, NO_NUMBERS]
        else:
            groups = [FRACTIONS] * 4 + [NOT_FINITE, NOT_FINITE, NO_NUMBERS]
        if name not in ENDLESS:
            groups += [LARGE if kind is int else HUGE] * 2
        return rng.choice(rng.choice(groups))
    is_file = name not in WORDS or any("in/" in word for word in WORDS[name])
    return rng.choice(world.names if rng.random() < (0.75 if is_file else 0.1) else STRINGS)


def right_value(rng, name, kind):
    """A value for a field of this type that fits."""
    if name in WORDS:
        return rng.choice(WORDS[name])
    if kind is str:
        return "x"
    return str(rng.choice([1, 2, 3, 4, 8] if kind is int else [0, 0.1, 0.5, 0.9, 1]))


def change(rng, name, kind, world):
    """-> what is added to a command line to change a field."""
    flag, several = f"--{name.replace('_', '-')}", typing.get_origin(kind) is tuple
    if several:
        kind = kind.__args__[0]
    if typing.get_origin(kind) is not None or not isinstance(kind, type):  # float | None
        kind = kind.__args__[0]
    if kind is bool:
        no = f"--no-{name.replace('_', '-')}"
        return [rng.choice([flag, flag, flag, flag, flag, no, no, f"{flag}=1"])]
    dice = rng.random()
    if dice < 0.04:
        return [flag]  # without a value, or with what comes next
    if dice < 0.45:
        values = [right_value(rng, name, kind) for _ in range(rng.choice([1, 1, 2]))]
    else:
        values = [wrong_value(rng, name, kind, world) for _ in range(rng.choice([1, 1, 1, 2]))]
    if several and len(values) > 1:
        return [flag, *values]
    return [f"{flag}={value}" for value in values]  # two: the flag stands there twice


class Case(NamedTuple):
    name: str  # f17 or c3
    command: str
    argv: list
    stdin: bytes = b""
    stdout: str = "../stdout"  # from work/
    make: object = None  # writes the malformed file into the current folder
    about: str = ""  # what is malformed


def rounds():
    """The commands, by name, of a round of cases."""
    order = [name for name, command in COMMANDS.items() for _ in range(command.share)]
    return random.Random(0).sample(order, len(order))


def flags_case(n, seed, world):
    """Case number n of the command lines. Every field has its turn."""
    rng, order = random.Random(f"{seed} flags {n}"), rounds()
    name = order[n % len(order)]
    command, kinds = COMMANDS[name], kinds_of(COMMANDS[name])
    turn = n // len(order) * command.share + order[: n % len(order)].count(name)
    bare, argv, parsed = list(command.bare), [], list(kinds)
    if parsed and (len(parsed) > 1 or rng.random() < 0.4):
        turns = random.Random(f"{seed} {name}").sample(parsed, len(parsed))
        chosen = [turns[turn % len(turns)], *rng.sample(parsed, min(2, len(parsed)))]
        for field in dict.fromkeys(chosen[: rng.choice([1, 1, 1, 2, 3])]):
            argv += change(rng, field, kinds[field], world)
    if name == "claims":
        bare = rng.choice([[], [], [], ["7"], ["1", "2"], ["2c"], ["x"], ["\udcff"]])
    elif bare and rng.random() < (0.2 if len(parsed) > 1 else 0.9):
        bare[rng.randrange(len(bare))] = wrong_value(rng, "", str, world)
    if rng.random() < 0.05:
        argv.insert(rng.randint(0, len(argv)), rng.choice(ODD_WORDS))
    line = command.line.split()
    if name in ("plan", "export"):
        argv = [*line, *argv, *bare]
    else:
        argv = [*bare, *line, *argv]
    stdout = "/dev/full" if rng.random() < 0.03 else "../stdout"  # as on a full disk
    return Case(f"f{n}", name, argv, rng.choice(INPUTS), stdout)


def malformed_case(n, seed, world):
    """Case number n of the malformed files."""
    m = malformed.case(random.Random(f"{seed} malformed {n}"), n, world.folder)
    command = COMMANDS[m.command]
    argv = command.line.split() + m.flags
    if m.bare:
        argv = [*argv, *m.bare] if m.command == "export" else [*m.bare, *argv]
    elif command.bare:
        argv = [*command.bare, *argv]
    return Case(f"c{n}", m.command, argv, make=m.make, about=m.about)


def shown(arg):
    """An argument as bash reads it; the same character many times is counted."""
    if len(arg) > 99 and arg.startswith(arg[0] * (len(arg) - 1)):
        return f"$(printf '{arg[0]}%.0s' {{1..{len(arg) - 1}}}){shown(arg[-1])}"
    if arg.isprintable() and arg.isascii():
        return shlex.quote(arg)
    if arg.isprintable() and "\\" not in arg and "'" not in arg:
        return f"'{arg}'"
    escaped = "".join(
        chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\x{b:02x}"
        for b in os.fsencode(arg)
    )
    return f"$'{escaped}'"


def line_of(case):
    """The command line of a case, to be typed in a folder with the small world."""
    module = COMMANDS[case.command].module
    is_script = os.path.exists(os.path.join(ROOT, f"{module}.py"))
    script = f"{module}.py" if is_script else f"-m {module}"
    words = []
    for arg in case.argv:
        flag, equals, value = arg.partition("=")
        as_flag = arg.startswith("--") and equals and shown(flag) == flag
        words.append(f"{flag}={shown(value)}" if as_flag else shown(arg))
    if case.stdout != "../stdout":
        words.append(f"> {case.stdout}")
    typed = ""
    if "--chat" in case.argv:
        typed = "".join(f"\\{b:03o}" for b in case.stdin[:99])
        typed = f"printf '{typed}' | "
    return " ".join([f"{typed}python", script, *words])


# ---- the small world ----------------------------------------------------------------------------


class World(NamedTuple):
    folder: str  # the small world itself, of which every worker has a copy
    names: list  # what can be named in a command line
    resident: int  # bytes of a process that does nothing


def run_line(name, line, bare=()):
    """Run a command in this process, as its guard would."""
    command = COMMANDS[name]
    is_script = os.path.exists(os.path.join(ROOT, f"{command.module}.py"))
    sys.argv = [f"{command.module}.py" if is_script else command.module, *bare, *line]
    if name == "bench":
        return run_bench()
    if name == "sandbox":
        make_sandbox_small()
    if "." in command.module:
        sys.modules.pop(command.module, None)  # runpy warns of what is imported already
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def make_sandbox_small():
    """The tokenizer is written from a few documents, instead of from many in six seconds."""
    from sandbox import tokens

    corpus, draw = tokens.corpus, tokens.draw_prompts
    tokens.corpus = lambda n, *args, **more: corpus(min(n, 50), *args, **more)
    tokens.draw_prompts = lambda n, *args, **more: draw(min(n, 50), *args, **more)


def run_bench():
    """evidence.bench with small sizes, each case run once in this process: flags are tested here,
    and every process of a race takes seconds to start."""
    from evidence import bench
    from model import GPTConfig
    from plumbing import cli

    bench.SIZES["S"] = GPTConfig(32, 32, 1, 2, 16)
    small = {"train": (2, 8), "sft": (2, 8), "generate": (2, 4, 4), "rm": (1, 2, 4, 4)}
    for case, shape in (small | {"ppo": (4, 4, 4)}).items():
        bench.SHAPES[case]["S"] = shape

    def race(systems, rounds, device):
        results = {}
        for name, (make, args, _) in systems.items():
            done = bench.Case(None, 1, [(1, 1)])
            if name not in ("matmul", "copy"):
                done = make(*args)
                done.run()
            results[name] = bench.Result([1.0] * rounds, 1.0, done.tokens, done.work)
        return results

    bench.race = race
    cli.run(bench.main, bench.Config, bench.PRESETS, bench.__doc__)


def make_world():
    """In the current folder, make in/: data, models of every stage, and odd things."""
    os.makedirs("in")
    malformed.write_data("in", ROOT)
    for seed in (1, 2):
        malformed.write_report(f"in/seed{seed}", seed)
    steps = [
        ("pretrain", "--out in/base.pt"),
        ("sft", "--out in/sft.pt"),
        ("label", "--out in/labels.jsonl"),
        ("reward", "--out in/rm.pt"),
        ("ppo", "--out in/ppo.pt"),
        ("evaluate", "--out in/report"),
        ("evaluate", "--out in/report1 --n 5"),
        ("pretrain", "--out in/bytes.pt --tokenizer in/small.tiktoken --context 192"),
    ]
    for name, more in steps:
        # another seed than that of the cases, which are not to find a result of their own
        line = f"{COMMANDS[name].line} --seed 5 {more}".split()
        run_line(name, line, COMMANDS[name].bare)
    run_line("export", ["export", "in/bytes.pt", "in/hf"])
    for name in ("pretrain", "ppo"):
        malformed.interrupted(lambda name=name: run_line(name, COMMANDS[name].line.split()))
        for file in ("new.pt.part", "new.pt.log.jsonl"):
            os.replace(file, f"in/{name}.{file}")
    for name in os.listdir("."):
        if name != "in":
            os.remove(name)


def odd_things(folder):
    """In in/: links, a pipe, what nobody may read or write. Not all of it can be copied."""
    for link, target in (("link.pt", "sft.pt"), ("link.txt", "text.txt"), ("dangling", "nowhere")):
        os.symlink(target, os.path.join(folder, link))
    os.makedirs(os.path.join(folder, "loop"))
    os.symlink(".", os.path.join(folder, "loop", "self"))
    os.makedirs(os.path.join(folder, "closed"))
    os.chmod(os.path.join(folder, "closed"), 0o555)
    os.mkfifo(os.path.join(folder, "pipe"))
    with open(os.path.join(folder, "secret"), "w") as f:
        f.write("secret")
    os.chmod(os.path.join(folder, "secret"), 0)


def devices_in(folder):
    """Names of devices that can be given as a file. A root could replace the machine's own ones:
    it gets some that nobody needs, in in/."""
    if not os.access("/dev", os.W_OK):
        return ["/dev/null", "/dev/full"]
    try:
        make_devices(folder)
    except OSError:
        return []
    return list(DEVICES)


def make_devices(folder):
    for path, number in DEVICES.items():
        device = os.path.join(folder, os.path.basename(path))
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, number))


def snapshot(folder):
    """{path: what a change would change} of all that is in a folder."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(parent, name)
            s = os.lstat(path)
            content = () if stat.S_ISDIR(s.st_mode) else (s.st_ino, s.st_size, s.st_mtime_ns)
            found[os.path.relpath(path, folder)] = (s.st_mode, *content)
    return found


def forked(function):
    """Run a function in a process of its own -> whether it ended well, the bytes it took."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            leave(code)
    _, status, usage = os.wait4(pid, 0)
    return status == 0, usage.ru_maxrss * 1024


def leave(code):
    """End this process as the interpreter would: with what an exception says, too."""
    if sys.exc_info()[0]:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1
    os._exit(code)


def found_world(folder):
    """Make the small world in a folder -> World. Raises RuntimeError."""
    os.makedirs(os.path.join(folder, "world"))
    world, log = os.path.join(folder, "world"), os.path.join(folder, "world.log")

    def make():
        redirect(os.devnull, log, log)
        os.chdir(world)
        make_world()

    well, _ = forked(make)
    _, resident = forked(lambda: None)
    if not well:
        with open(log, encoding="utf-8", errors="replace") as f:
            raise RuntimeError(f"the small world could not be made:\n{f.read()[-3000:]}")
    inside = os.path.join(world, "in")
    names = [f"in/{name}" for name in sorted(os.listdir(inside))]
    names += ["in/link.pt", "in/link.txt", "in/dangling", "in/loop", "in/pipe", "in/secret"]
    names += ["in/closed", "in/closed/x", "in/sft.pt/x", "in/report/report.json"]
    return World(inside, names + devices_in(folder), resident)


# ---- running a case -----------------------------------------------------------------------------


def redirect(stdin, stdout, stderr):
    """Standard input and output of this process, whatever the caller made of them."""
    for fd, path in enumerate((stdin, stdout, stderr)):
        how = os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(path, how, 0o644)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def check_tree(where, x):
    """Raise ArithmeticError where a number in a checkpoint or a JSON record is not finite."""
    if torch.is_tensor(x):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ArithmeticError(f"{where} is not finite")
    elif isinstance(x, float):
        if not math.isfinite(x):
            raise ArithmeticError(f"{where} is not finite")
    elif isinstance(x, dict):
        for key, value in x.items():
            check_tree(f"{where}, {key}", value)
    elif isinstance(x, list | tuple):
        for i, value in enumerate(x):
            check_tree(f"{where}, {i}", value)


def check_written(before):
    """Raise ArithmeticError if the new files of the current folder hold what is not finite."""
    for path in sorted(snapshot(".").keys() - before):
        name = os.path.basename(path)
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        if zipfile.is_zipfile(path):
            saved = torch.load(path, map_location="cpu", weights_only=True)
            check_tree(path, saved)
        elif name.endswith((".jsonl", ".json")):
            with open(path, encoding="utf-8") as f:
                text = f.read()
            for part in text.splitlines() if name.endswith("l") else [text]:
                check_tree(path, json.loads(part))


def write_nothing(pipe):
    """Open a pipe for writing and close it, again and again: who reads it waits for a writer."""
    while os.path.exists(pipe):
        with open(pipe, "wb"):
            time.sleep(0.01)


def run_inside(case):
    """In a process of its own and the folder of the case: run it, then look at what it wrote."""
    os.chdir("work")
    redirect("../stdin", case.stdout, "../stderr")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as f:
        virtual = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ALLOWED, virtual + ALLOWED))
    before, code = snapshot(".").keys(), 1
    if "in/pipe" in case.argv:
        threading.Thread(target=write_nothing, args=("in/pipe",), daemon=True).start()
    try:
        run_line(case.command, case.argv)
        check_written(before)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    finally:
        leave(code)


class Place:
    """A folder in which one case after the other runs: work/ with a copy of the world, work/in."""

    def __init__(self, folder, world):
        self.folder, self.world = folder, world
        self.before = None  # what in/ is like when nobody has changed it
        self.made = {}  # what there is when a case begins
        self.about = ""  # what is malformed

    def tidy(self):
        """Remove what the last case left; a world that it changed is copied anew."""
        inside = os.path.join(self.folder, "work", "in")
        if self.before is None or snapshot(inside) != self.before:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.copytree(self.world.folder, inside, symlinks=True)
            odd_things(inside)
            if "in/null" in self.world.names:
                make_devices(inside)
            self.before = snapshot(inside)
        for folder, kept in ((self.folder, "work"), (os.path.dirname(inside), "in")):
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                if name != kept:
                    is_folder = os.path.isdir(path) and not os.path.islink(path)
                    shutil.rmtree(path) if is_folder else os.remove(path)

    def prepare(self, case):
        """Make everything ready for a case."""
        self.tidy()
        work = os.path.join(self.folder, "work")
        for name in COMMANDS[case.command].copied:
            source = os.path.join(work, "in", name)
            copy = shutil.copytree if os.path.isdir(source) else shutil.copy
            copy(source, os.path.join(work, name))
        self.about = ": ".join(filter(None, [case.about, case.make and case.make(work)]))
        with open(os.path.join(self.folder, "stdin"), "wb") as f:
            f.write(case.stdin)
        with open(os.path.join(self.folder, "stdout"), "wb"):
            pass  # it may go elsewhere
        self.made = snapshot(self.folder)

    def read(self, name):
        with open(os.path.join(self.folder, name), encoding="utf-8", errors="replace") as f:
            return f.read()

    def harm(self):
        """What a case left that it should not have: [] or sentences."""
        inside = os.path.join(self.folder, "work", "in")
        after, problems = snapshot(inside), []
        for path, state in self.before.items():
            if after.get(path) != state:
                problems.append(f"it changed in/{path}")
        for path in snapshot(self.folder).keys() - self.made:
            name = os.path.basename(path)
            if name.endswith((".tmp", ".lock")):
                problems.append("it left a file behind: .../*" + os.path.splitext(name)[1])
            if name == malformed.MARKER:
                problems.append("code in a file was run")
        return problems


class Running(NamedTuple):
    case: Case
    place: Place
    pid: int
    began: float


def start(case, place):
    """Start a case in a process of its own."""
    place.prepare(case)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.chdir(place.folder)
            run_inside(case)
        finally:
            os._exit(70)
    return Running(case, place, pid, time.perf_counter())


class Outcome(NamedTuple):
    case: Case
    code: int | None  # None: it was killed, since it took too long
    seconds: float
    peak: int  # bytes more than this process had
    problem: str  # "" if there is none
    said: str  # the end of what it printed on stderr
    about: str  # what was malformed


def ended(run):
    """The outcome of a case if it has ended or takes too long, else None."""
    pid, status, usage = os.wait4(run.pid, os.WNOHANG)
    seconds = time.perf_counter() - run.began
    if not pid and seconds < PATIENCE:
        return None
    code = os.waitstatus_to_exitcode(status) if pid else None
    try:
        os.killpg(run.pid, signal.SIGKILL)  # and what it started
    except ProcessLookupError:
        pass
    if not pid:
        _, _, usage = os.wait4(run.pid, 0)
    peak = usage.ru_maxrss * 1024 - run.place.world.resident
    out, said = run.place.read("stdout"), run.place.read("stderr")
    problem = judge(run.case, code, peak, out, said) or "; ".join(run.place.harm())
    return Outcome(run.case, code, seconds, peak, problem, said[-5000:], run.place.about)


def each_case(cases, places):
    """Run all cases, as many at once as there are places. Yields outcomes as they come."""
    waiting, free, running = iter(cases), list(places), []
    while True:
        while free and (case := next(waiting, None)):
            running.append(start(case, free.pop()))
        if not running:
            return
        time.sleep(0.002)
        for run in list(running):
            outcome = ended(run)
            if outcome:
                running.remove(run)
                free.append(run.place)
                yield outcome


# ---- judging it ---------------------------------------------------------------------------------

PYTHON = re.compile(  # what Python and PyTorch say to programmers
    r"Traceback|NoneType|object is not|values? to unpack|cannot unpack|invalid literal|"
    r"not iterable|unhashable|not subscriptable|has no attribute|list index|codec can't|"
    r"could not convert string|unexpected keyword|positional argument|must be real number|"
    r"expected str, bytes|object of type|not supported between|\[Errno|"
    r"embedded null|Exceeds the limit|recursion depth|<class|0x[0-9a-f]{8}"
)
BAR = re.compile(r"\d+%\||\d+it \[|it/s|s/it|\?it|^tokens of text: .*/s\]$")
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def judge(case, code, peak, out, said):
    """What is wrong with how a case ended, "" if nothing is."""
    if code is None:
        return f"it hangs: more than {PATIENCE} s"
    if code < 0:
        return f"it was killed by {signal.Signals(-code).name}"
    if code not in (0, 2) or "Traceback" in said:
        return f"exit code {code}: {where(said)}"
    if peak > GB:
        return "it takes more than 1 GB"
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip() and not BAR.search(line)]
    if code == 0:
        flag = negative(case)
        if flag:
            return f"{case.command} {flag} is accepted, which means nothing"
        if not re.search("nan|inf", " ".join(case.argv)) and re.search(r"\W(nan|inf)\b", out):
            return "it prints what is not finite"
        return f"exit code 0, but: {lines[-1][:100]}" if lines else ""
    if lines and lines[0].startswith("usage:") and re.search(r"\n[\w. -]+: error: .", said):
        return ""  # argparse's
    if len(lines) != 1 or not re.match("error: .{8}", lines[0]):
        first = lines[0][:100] if lines else "nothing"
        return f"not one sentence, but {len(lines)} lines: {first}"
    words = PYTHON.search(lines[0])
    if words:
        return f"Python's words: {words[0]}"
    if re.search("[\0-\x08\x0a-\x1f\x7f]", lines[0]):
        return "a sentence with control characters"
    if case.make and "memory does not suffice" in lines[0]:
        return "a file that asks for much memory is believed"
    return ""


def negative(case):
    """The first flag of a case whose number, the last one given, is below zero; "" without one, or
    if the case asks for help, which reads no numbers."""
    if {"--help", "-h"} & set(case.argv):
        return ""
    given, kinds = {}, kinds_of(COMMANDS[case.command])
    for arg in case.argv:
        flag, _, value = arg.partition("=")
        given[flag] = value
    for name, kind in kinds.items():
        flag = f"--{name.replace('_', '-')}"
        value = given.get(flag, "")
        if kind in (int, float) and re.fullmatch(r"-[\d.e-]+", value) and float(value) < 0:
            return f"{flag} {value[:30]}"
    return ""


def where(said):
    """The last frame of this project in a traceback, and the exception."""
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "nothing was said"
    ours = []
    for path, line, function in FRAME.findall(said):
        path = os.path.relpath(path, ROOT)
        if not path.startswith(("..", "tests", "<")) and "site-packages" not in path:
            ours.append(f"{path}:{line}, {function}")
    last = re.sub(r"[0-9.e+-]{4,}", "N", re.sub("'.*'", "'...'", last))
    return f"{ours[-1]}: {last[:120]}" if ours else last[:160]


# ---- the summary --------------------------------------------------------------------------------


def print_summary(outcomes, seconds):
    """A row for each command, then each class of failures with the first of its command lines."""
    print(f"\n{'command':10} cases accepted refused failed  peak MB  seconds")
    names = list(COMMANDS) if len(outcomes) > 1 else [outcomes[0].case.command]
    for name in [*names, "all"]:
        rows = [o for o in outcomes if name in (o.case.command, "all")]
        if rows:
            found = Counter("failed" if o.problem else o.code for o in rows)
            print(
                f"{name:10} {len(rows):5} {found[0]:8} {found[2]:7} {found['failed']:6} "
                f"{max(o.peak for o in rows) / 1e6:8.0f} {sum(o.seconds for o in rows):8.1f}"
            )
    print(f"{seconds:.0f} s in all")
    classes = defaultdict(list)
    for o in outcomes:
        if o.problem:
            classes[o.problem].append(o)
    for problem, failed in sorted(classes.items(), key=lambda item: -len(item[1])):
        first = min(failed, key=lambda o: (len(line_of(o.case)), o.case.name))
        names = " ".join(sorted(o.case.name for o in failed)[:12])
        print(f"\n{len(failed)} x {problem}\n    cases {names}\n    {line_of(first.case)}")
        if first.about:
            print(f"    ({first.about})")


def offline(folder):
    """Nothing is fetched, and nothing is kept at home."""
    nowhere = "http://127.0.0.1:9"
    os.makedirs(os.path.join(folder, "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = nowhere
    for name in ("HOME", "TORCH_HOME", "TIKTOKEN_CACHE_DIR", "MPLCONFIGDIR"):
        os.environ[name] = os.path.join(folder, "home")


def import_all():
    """What every case would import, once."""
    torch.set_num_threads(1)
    for name in ("torch._dynamo", "evidence.page", "interop.plan", "interop.show", "sandbox"):
        importlib.import_module(name)
    for command in COMMANDS.values():
        if command.module != "sandbox":
            importlib.import_module(command.module)
    try:
        import matplotlib

        matplotlib.use("Agg")
        importlib.import_module("matplotlib.pyplot")
        importlib.import_module("safetensors.torch")
    except ImportError:
        pass  # the commands say so, too


def fuzz(args, folder):
    """Run what is asked for in a folder. -> whether all is well"""
    began = time.perf_counter()
    offline(folder)
    import_all()
    gc.freeze()  # a collection in a case would copy all that it looks at
    world = found_world(folder)
    print(f"the small world was made in {time.perf_counter() - began:.0f} s", flush=True)
    if args.case:
        make = {"f": flags_case, "c": malformed_case}[args.case[0]]
        cases = [make(int(args.case[1:]), args.seed, world)]
    else:
        cases = [flags_case(n, args.seed, world) for n in range(args.flags)]
        cases += [malformed_case(n, args.seed, world) for n in range(args.checkpoints)]
        cases = [case for case in cases if args.only in ("", case.command)]
    places = [Place(os.path.join(folder, str(k)), world) for k in range(args.workers)]
    outcomes = []
    for o in each_case(cases, places[: len(cases)]):
        outcomes.append(o)
        if o.problem:
            print(f"{o.case.name}: {o.problem}\n    {line_of(o.case)}", flush=True)
    if args.verbose:
        for o in outcomes:
            said = re.split(r"[\r\n]+", o.said.strip())[-1]
            print(f"{o.case.name} {o.code} {o.seconds:.1f} s {line_of(o.case)}\n    {said[:300]}")
    if args.case:
        [place] = places[:1]
        print(line_of(cases[0]), place.about, place.read("stdout"), place.read("stderr"),
              f"exit code {outcomes[0].code}", sep="\n---\n")  # fmt: skip
    print_summary(outcomes, time.perf_counter() - began)
    return not any(o.problem for o in outcomes)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--flags", type=int, default=600, help="command lines")
    parser.add_argument("--checkpoints", type=int, default=200, help="malformed files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", choices=list(COMMANDS), help="of one command")
    parser.add_argument("--case", default="", help="one case: f17, or c3 of the malformed files")
    parser.add_argument("--verbose", action="store_true", help="say how each case ended")
    parser.add_argument("--folder", default="", help="a new folder in which all is left")
    args = parser.parse_args(argv)
    if args.folder:
        os.makedirs(args.folder)
        return fuzz(args, os.path.abspath(args.folder))
    folder = tempfile.mkdtemp()  # no TemporaryDirectory: the end of every case would remove it
    try:
        return fuzz(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
