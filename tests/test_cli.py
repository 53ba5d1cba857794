"""plumbing/cli.py: a dataclass becomes a command line, and bad input a sentence."""

import errno
import importlib
import inspect
import json
import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path

import pytest
import torch

from interop import read_file, show
from plumbing import cli, files

ROOT = str(Path(__file__).parent.parent)


@dataclass(frozen=True)
class Base:
    lr: float = 1e-3  # peak learning rate, 100 % of it
    steps: int = 10  # how many; >= 1


@dataclass(frozen=True)
class Config(Base):
    out: str = "model.pt"  # where it goes
    max_new: int = 32  # longest response,
    # in tokens
    ema: bool = True  # average the weights
    fast: bool = False  # no checks
    temperatures: tuple[float, ...] = (1.0, 1.3)  # one or more
    names: tuple[str, ...] = ()  # whose
    limit: float | None = None  # at most
    lr: float = 2e-3  # peak, of this stage


PRESETS = {"small": {}, "large": {"steps": 1000, "lr": 5e-5, "names": ("a", "b"), "ema": False}}


def parse(*argv, positional=None):
    return cli.parse(Config, PRESETS, "what it does", list(argv), positional)


def refused(capsys, *argv):
    """The message of a command line that is refused."""
    with pytest.raises(SystemExit) as e:
        parse(*argv)
    assert e.value.code == 2
    return capsys.readouterr().err


def help_of(capsys, monkeypatch, Config, presets, *argv):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as e:
        cli.parse(Config, presets, "what it does", [*argv, "--help"])
    assert e.value.code == 0
    return capsys.readouterr().out


def test_no_flags_are_the_defaults():
    assert parse() == Config()


def test_values_have_the_type_of_their_field():
    cfg = parse("--lr", "1", "--steps=7", "--max-new", "5", "--limit", "0.5", "--out", "12")
    assert (cfg.lr, cfg.steps, cfg.max_new, cfg.limit, cfg.out) == (1.0, 7, 5, 0.5, "12")
    assert type(cfg.lr) is float and type(cfg.steps) is int


def test_tuples():
    cfg = parse("--temperatures", "0.5", "1", "2", "--names", "x")
    assert cfg.temperatures == (0.5, 1.0, 2.0) and cfg.names == ("x",)
    assert type(parse("--temperatures", "1").temperatures[0]) is float


def test_booleans_are_switched_on_and_off():
    assert (parse("--fast").fast, parse("--no-fast").fast) == (True, False)
    assert (parse("--ema").ema, parse("--no-ema").ema) == (True, False)


def test_a_preset_sets_values_and_flags_override_it_in_any_order():
    assert parse("--preset", "large") == Config(steps=1000, lr=5e-5, names=("a", "b"), ema=False)
    assert parse("--preset=large").steps == 1000
    for argv in (["--preset", "large", "--steps", "3"], ["--steps", "3", "--preset", "large"]):
        cfg = parse(*argv)
        assert (cfg.steps, cfg.lr) == (3, 5e-5)
    assert parse("--preset", "large", "--lr", "0.002", "--ema") == Config(
        steps=1000, names=("a", "b")
    )
    assert parse("--preset", "small") == Config()


def test_the_first_preset_is_the_default():
    assert cli.parse(Config, {"tiny": {"steps": 2}, "large": {"steps": 9}}, "", []).steps == 2
    assert cli.parse(Config, {"only": {"steps": 2}}, "", []).steps == 2


def test_bare_arguments():
    assert parse("a b", "c", "--steps", "3", positional="names") == Config(
        names=("a b", "c"), steps=3
    )
    assert parse(positional="names").names == ()


@pytest.mark.parametrize("value", ["a=b", "x=1=2", "--like=this", "", "100%", "ü %s"])
def test_values_survive_as_they_are(value):
    assert parse(f"--out={value}").out == value


@pytest.mark.parametrize(
    "argv",
    [
        ["--unknown", "1"],
        ["--step", "3"],
        ["--max", "3"],
        ["--max_new", "3"],
        ["--pre", "large"],
        ["--steps", "1.5"],
        ["--lr", "fast"],
        ["--preset", "huge"],
        ["--fast=1"],
        ["stray"],
        ["--steps"],
    ],
)
def test_typos_abbreviations_and_wrong_types_exit_with_2(capsys, argv):
    message = refused(capsys, *argv)
    assert argv[0].split("=")[0] in message and "Traceback" not in message


def test_help_holds_comments_and_defaults(capsys, monkeypatch):
    shown = help_of(capsys, monkeypatch, Config, PRESETS)
    for expected in [
        "what it does",
        "--lr",
        "peak, of this stage [default: 0.002]",
        "how many; >= 1 [default: 10]",
        "where it goes [default: model.pt]",
        "--max-new",
        "longest response, in tokens [default: 32]",
        "--no-ema",
        "average the weights [default: True]",
        "one or more [default: 1.0 1.3]",
        "whose [default: none]",
        "at most [default: none]",
        "default: small",
    ]:
        assert expected in shown
    assert "100 %" not in shown  # the comment of the field that was overridden
    assert "100 % of it [default: 0.001]" in help_of(capsys, monkeypatch, Base, {"only": {}})


@pytest.mark.parametrize("argv", [["--preset", "large"], ["--preset=large"]])
def test_help_of_a_preset_shows_its_values(capsys, monkeypatch, argv):
    shown = help_of(capsys, monkeypatch, Config, PRESETS, *argv)
    assert "how many; >= 1 [default: 1000]" in shown and "whose [default: a b]" in shown


@pytest.mark.parametrize(
    "stage", ["pretrain", "sft", "reward", "ppo", "label", "sample", "evaluate"]
)
def test_help_of_each_stage(capsys, monkeypatch, stage):
    """Every comment in the source of a config is shown, with every preset."""
    module = importlib.import_module(stage)
    source = inspect.getsource(module.Config)
    for preset in module.PRESETS:
        chosen = ["--preset", preset] if len(module.PRESETS) > 1 else []
        shown = help_of(capsys, monkeypatch, module.Config, module.PRESETS, *chosen)
        for line in source.splitlines():
            assert line.partition("#")[2].strip() in shown
        for f in fields(module.Config):
            value = module.PRESETS[preset].get(f.name, f.default)
            if not isinstance(value, (tuple, str)):
                assert f"[default: {value}]" in shown
        assert all(
            name in {f.name for f in fields(module.Config)} for name in module.PRESETS[preset]
        )


def run(main, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["x.py", *argv])
    cli.run(main, Config, PRESETS, "what it does")


def test_run_hands_the_config_to_main(monkeypatch):
    seen = []
    run(seen.append, monkeypatch, "--steps", "3", "--preset", "large")
    assert seen == [Config(steps=3, lr=5e-5, names=("a", "b"), ema=False)]


def test_a_value_error_of_this_project_is_one_line(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as e:
        run(lambda cfg: read_file(f"{tmp_path}/none.txt"), monkeypatch)
    assert e.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none.txt does not exist\n"


def told(capsys, act, code=2):
    """What is said when `act` ends inside `cli.told`, on stderr; its exit code is checked."""
    with pytest.raises(SystemExit) as stopped, cli.told():
        act()
    assert stopped.value.code == code
    return capsys.readouterr().err


def fails(error):
    """A function that raises an error."""

    def act(*args):
        raise error

    return act


def test_a_value_outside_its_range_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as e:
        run(print, monkeypatch, "--steps", "0")
    assert e.value.code == 2
    assert capsys.readouterr() == ("", "error: --steps must be >= 1, got 0\n")


AGAIN = "and start the same command again"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            "x: No such file or directory; ch",
        ),
        (
            PermissionError(13, "Permission denied", "x"),
            "x: Permission denied; ask its owner for p",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            f"No space left on device; free .* {AGAIN}",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x"),
            "x: File name too long; use a sho",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "x"),
            "x: Too many open files; raise the num",
        ),
        (OSError(errno.EIO, "Input/output error"), f"Input/output error; check it {AGAIN}"),
        (IsADirectoryError(21, "Is a directory", b"x"), "Is a directory; check it"),
        (MemoryError(), "the memory does not suffice: lower --microbatch or --batch, or use"),
        (RuntimeError("CUDA out of memory. Tried to"), "the memory does not suffice: lower --micr"),
    ],
)
def test_an_error_of_the_system_is_one_line_that_says_what_to_do(capsys, error, says):
    said = told(capsys, fails(error))
    assert re.match(f"error: .*{says}", said) and said.count("\n") == 1


def test_a_real_file_and_a_real_lack_of_memory(capsys, tmp_path):
    said = told(capsys, lambda: Path(f"{tmp_path}/none").read_text())
    assert said == f"error: {tmp_path}/none: No such file or directory; check it {AGAIN}\n"
    for act in (lambda: torch.empty(2**50), lambda: bytearray(2**60)):
        assert told(capsys, act).startswith("error: the memory does not suffice: lower --microb")


def test_a_file_without_permission_is_named(capsys, monkeypatch, tmp_path):
    """Of a checkpoint too, which is not called damaged."""
    (tmp_path / "m.pt").write_bytes(b"PK\3\4")
    denied = fails(PermissionError(13, "Permission denied", "m.pt"))
    monkeypatch.setattr(files.zipfile, "ZipFile", denied)
    said = told(capsys, lambda: files.read_checkpoint(tmp_path / "m.pt"))
    assert said == (
        "error: m.pt: Permission denied; ask its owner for permission, or use another file\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        OSError("no number"),
        RuntimeError("shapes do not match"),
        AssertionError(),
        ZeroDivisionError(),
        RecursionError(),
    ],
)
def test_a_bug_goes_through_and_shows_where(monkeypatch, error):
    with pytest.raises(type(error)) as raised:
        run(fails(error), monkeypatch)
    assert raised.value is error


@pytest.mark.parametrize("main", [lambda cfg: json.loads("{"), lambda cfg: int("x")])
def test_a_value_error_from_elsewhere_is_a_bug_and_goes_through(monkeypatch, main):
    with pytest.raises(ValueError, match="Expecting|invalid literal"):
        run(main, monkeypatch)


def test_an_interrupt_says_what_then_holds(monkeypatch, capsys):
    """A training goes on, and what else was begun is not there."""
    Training = make_dataclass("Training", [("save_every", int, 50)], frozen=True)
    monkeypatch.setattr(cli.ranges, "field_comments", lambda Config: {"save_every": ""})
    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(SystemExit) as e:
        cli.run(fails(KeyboardInterrupt()), Training, {"only": {}}, "")
    assert e.value.code == 130
    assert "interrupted: the same command goes on from the last save" in capsys.readouterr().err
    assert told(capsys, fails(KeyboardInterrupt()), 130) == "\ninterrupted\n"


# ---- what is printed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\x08\x00", r"a\rb\x08\x00"),
        ("\x7f\x85\x9b31m", r"\x7f\x85\x9b31m"),
        ("\u202etxt.exe\u2066", r"\u202etxt.exe\u2066"),
        ("\ud800x\udfff", r"\ud800x\udfff"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\x1b[0m"),
        (f"{cli.GREEN}green{cli.PLAIN}", f"{cli.GREEN}green{cli.PLAIN}"),
        ("tab\tline\nnaïve 中 \U0001f600", "tab\tline\nnaïve 中 \U0001f600"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_obey_is_shown(capsys, text, shown):
    with cli.told():
        print(text, end="")
        sys.stdout.writelines([text])
    assert capsys.readouterr().out == shown * 2


def test_what_a_terminal_would_obey_is_shown_in_errors_too(capsys):
    error = FileNotFoundError(2, "No such file", "a\x1b[2J\nb\udce9")
    assert told(capsys, fails(error)).startswith(r"error: a\x1b[2J b\udce9: No such file")


TOLD = "import sys\nfrom plumbing import cli\nwith cli.told():\n    "


def shell(line, code, **env):
    """A line of bash in which $CODE is a command that runs `code` inside `cli.told`; it needs no
    torch, which takes seconds to import."""
    env = os.environ | {"PYTHONPATH": ROOT, "CODE": TOLD + code, "PYTHON": sys.executable} | env
    env |= {"PYTHONUNBUFFERED": ""}  # what is printed waits for the end
    line = line.replace("CODE", '"$PYTHON" -c "$CODE"')
    argv = ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(argv, env=env, capture_output=True, check=False)


MANY = "[print(i) for i in range(10 ** 5)]"
FULL = b"error: No space left on device; free some space and start the same command again\n"


@pytest.mark.parametrize(
    ("line", "code", "returncode", "out", "err"),
    [
        ("CODE | head -1", MANY, 1, b"0\n", b""),
        (
            "CODE | true",
            "print(1); raise FileNotFoundError(2, 'no', 'x')",
            2,
            b"",
            b"error: x: no;",
        ),
        ("CODE > /dev/full", "print(1)", 2, b"", FULL),
        ("CODE > /dev/full", MANY, 2, b"", FULL),
        ("CODE > /dev/full", "print(1); sys.exit(0)", 2, b"", FULL),
        ("CODE > /dev/full", "print(1); raise MemoryError", 2, b"", b"error: the memory does not"),
        (
            "CODE > /dev/full",
            "print(1); raise KeyboardInterrupt",
            130,
            b"",
            b"\ninterrupted",
        ),
        ("CODE >&-", "print(1)", 0, b"", b""),
        ("CODE >&-", "print(1); raise MemoryError", 2, b"", b"error: the memory does not suffice"),
    ],
)
def test_an_output_that_cannot_be_written(line, code, returncode, out, err):
    """Quiet, or one sentence; nothing of Python's own at the end."""
    done = shell(line, code)
    assert (done.returncode, done.stdout) == (returncode, out)
    assert done.stderr.startswith(err) and (err or not done.stderr)
    assert b"Exception ignored" not in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf-8"])
def test_a_terminal_of_any_encoding_shows_any_text(encoding):
    text = r"'na\xefve \u4e2d \ud800 \x1b'"
    code = f"print({text}); raise FileNotFoundError(2, 'no', {text})"
    done = shell("CODE", code, PYTHONIOENCODING=encoding)
    wanted = {
        "ascii": rb"na\xefve \u4e2d \ud800 \x1b",
        "latin1": b"na\xefve \\u4e2d \\ud800 \\x1b",
        "utf-8": "naïve 中 \\ud800 \\x1b".encode(),
    }[encoding]
    assert done.returncode == 2 and done.stdout == wanted + b"\n"
    assert done.stderr.startswith(b"error: " + wanted + b": no; check it")


def test_what_is_typed_is_read_after_a_prompt():
    """In a pipe, and at a terminal, where Python edits the line."""
    code = "print('got', input('you: '))"
    done = shell("echo hello | CODE", code)
    assert done.stdout == b"you: got hello\n"
    env = os.environ | {"PYTHONPATH": ROOT}
    ours, theirs = pty.openpty()
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen([sys.executable, "-c", TOLD + code], env=env, **ends) as process:
        os.close(theirs)
        assert said_until(b"you: ", ours)
        os.write(ours, b"hello\n")
        assert said_until(b"got hello", ours)
        assert process.wait(10) == 0
    os.close(ours)


def said_until(text, terminal):
    """Whether a terminal says `text` within 10 seconds."""
    said = b""
    while text not in said and select.select([terminal], [], [], 10)[0]:
        said += os.read(terminal, 100)
    return text in said


def test_what_data_py_shows(tmp_path, monkeypatch, capsys):
    """It has no Config, and ends as all commands do."""
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one \\u001b[2J two"}\n')
    monkeypatch.setattr(sys, "argv", ["data.py", str(path)])
    show.main()
    shown = capsys.readouterr().out
    assert cli.GREEN + r"one \x1b[2J two" + cli.PLAIN in shown
    argv = f"{sys.executable} {ROOT}/data.py {path} > /dev/full"
    done = subprocess.run(["bash", "-c", argv], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, FULL)
