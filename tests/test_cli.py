"""plumbing/cli.py: a dataclass becomes a command line, and bad input a sentence."""

import importlib
import inspect
import json
import sys
from dataclasses import dataclass, fields

import pytest

from interop import read_file
from plumbing import cli


@dataclass(frozen=True)
class Base:
    lr: float = 1e-3  # peak learning rate, 100 % of it
    steps: int = 10  # how many


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
        "how many [default: 10]",
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
    assert "how many [default: 1000]" in shown and "whose [default: a b]" in shown


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


@pytest.mark.parametrize("main", [lambda cfg: json.loads("{"), lambda cfg: int("x")])
def test_a_value_error_from_elsewhere_is_a_bug_and_goes_through(monkeypatch, main):
    with pytest.raises(ValueError, match="Expecting|invalid literal"):
        run(main, monkeypatch)


def test_other_errors_go_through(monkeypatch):
    def main(cfg):
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(main, monkeypatch)


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def main(cfg):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as e:
        run(main, monkeypatch)
    assert e.value.code == 130 and "same command goes on" in capsys.readouterr().err
