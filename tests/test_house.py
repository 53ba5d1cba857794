"""The house rules: sizes, who imports whom, every setting is read, nothing happens at import."""

import ast
import dataclasses
import importlib
import io
import os
import re
import subprocess
import sys
import tokenize
import typing
from pathlib import Path

import pytest

from plumbing import ranges

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("plumbing", "interop", "sandbox", "evidence", "people", "forks", "codex")
# {name: source}, as in "ppo" and "plumbing/files"
SOURCES = {path.stem: path.read_text() for path in sorted(ROOT.glob("*.py"))}
for package in PACKAGES:
    for path in sorted(ROOT.glob(f"{package}/*.py")):
        SOURCES[f"{package}/{path.stem}"] = path.read_text()
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
TESTS = {f"tests/{path.stem}": path.read_text() for path in sorted(ROOT.glob("tests/*.py"))}

STAGES = ("pretrain", "sft", "reward", "ppo")
CORE = ("data", "model", "generate", "train", *STAGES)
DOORS = {"plumbing", "interop"}
BELOW_A_STAGE = {"data", "model", "generate", "train", *DOORS}
# who may import whom, a package being one place; sandbox knows no other door, and no stage knows it
MAY_IMPORT = {
    "data": set(),
    "model": set(),
    "plumbing": set(),
    "sandbox": {"data"},
    "interop": {"data", "plumbing", "sandbox"},
    "generate": {"data", "model"},
    "train": {"plumbing"},
    **dict.fromkeys(STAGES, BELOW_A_STAGE),
    **dict.fromkeys(("label", "sample"), BELOW_A_STAGE | {"sandbox"}),
    "evaluate": BELOW_A_STAGE | {"sandbox", "evidence", "people"},
    "evidence": BELOW_A_STAGE | {"sandbox", "label", "evaluate", "forks", "codex", *STAGES},
    "forks": BELOW_A_STAGE | set(STAGES),
    "codex": BELOW_A_STAGE | {"evidence"},
    "people": {"data", "interop", "plumbing", "sandbox", "evidence"},
    "page": BELOW_A_STAGE | {"evidence", "people"},
}
# the memory plan counts the parameters of a model that it makes; a command ends as all do
EXCEPTIONS = {"interop/plan": {"model"}, "sandbox/__main__": {"plumbing"}}
CONFIGURED = [
    name
    for name, tree in TREES.items()
    if any(isinstance(n, ast.ClassDef) and n.name == "Config" for n in tree.body)
]


def module(name):
    return importlib.import_module(name.replace("/", "."))


def fields(name):
    return {f.name for f in dataclasses.fields(module(name).Config)}


# ---- sizes -------------------------------------------------------------------------------------


def test_no_line_has_more_than_100_columns():
    wide = []
    for name, text in (SOURCES | TESTS).items():
        for n, line in enumerate(text.splitlines(), 1):
            if len(line) > 100:
                wide.append(f"{name}.py:{n}")
    assert not wide


def test_functions_can_be_seen_at_a_glance():
    """50 lines, docstring included; the `main` of a stage 40, as it is wiring; `train` 60."""
    long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                limit = {"main": 40 if name in STAGES else 50}.get(node.name, 50)
                if (name, node.name) == ("train", "train"):
                    limit = 60
                lines = node.end_lineno - node.lineno + 1
                if lines > limit:
                    long.append(f"{name}.py: {node.name} has {lines} lines, at most {limit}")
    assert not long


def docstring_lines(tree):
    """Numbers of the lines of docstrings."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def code_lines(text):
    """The lines of code of a source, without indentation, comments and docstrings."""
    no_code = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines, used = text.splitlines(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            n, column = token.start
            lines[n - 1] = lines[n - 1][:column]
        elif token.type not in no_code:
            used |= set(range(token.start[0], token.end[0] + 1))
    return [lines[n - 1].strip() for n in sorted(used - docstring_lines(ast.parse(text)))]


def test_code_lines_are_those_of_an_example():
    text = '"""Two\nlines."""\n\n\ndef f():  # why\n    # more\n    """One."""\n'
    text += '    return """a\n  b"""\n'
    assert code_lines(text) == ["def f():", 'return """a', 'b"""']


def test_the_core_can_be_read_in_one_sitting():
    """1,900 lines, which are not saved by widening them."""
    assert sum(len(SOURCES[name].splitlines()) for name in CORE) <= 1900
    lines = [line for name in CORE for line in code_lines(SOURCES[name])]
    assert len(lines) > 700 and sum(map(len, lines)) / len(lines) <= 44


def test_codex_is_short():
    assert sum(len(text.splitlines()) for name, text in SOURCES.items() if "codex/" in name) <= 600


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_there_are_five_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = {re.split(r"[=<>~! ]", line)[0] for line in lines if line.strip()}
    assert names == {"torch", "numpy", "tiktoken", "tqdm", "pytest"}


def test_every_file_says_what_it_is():
    trees = TREES | {name: ast.parse(text) for name, text in TESTS.items()}
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_the_core_is_numbered_in_the_order_of_reading():
    for i, name in enumerate(CORE, 1):
        assert ast.get_docstring(TREES[name]).startswith(f"{i}/8 "), name


# ---- arrows point down -------------------------------------------------------------------------


def place(name):
    """Where a file belongs in MAY_IMPORT: its package, or itself."""
    return name.split("/")[0]


def imported(tree):
    """First names of the modules that are imported anywhere in `tree`, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def without_guard(tree):
    """A module without what only `python FILE` runs, and that."""
    inside = [n for n in tree.body if isinstance(n, ast.If) and "__name__" in ast.unparse(n.test)]
    outside = [n for n in tree.body if n not in inside]
    return ast.Module(outside, []), ast.Module(inside, [])


def test_every_file_has_its_place():
    assert {place(name) for name in SOURCES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down_only(name):
    """Stages stand on the core and the doors, and never on each other; `python data.py` and
    `python model.py` hand on to interop."""
    local = MAY_IMPORT.keys() - {place(name)}
    may = MAY_IMPORT.get(place(name), set()) | EXCEPTIONS.get(name, set())
    if name in ("data", "model"):
        first, guarded = without_guard(TREES[name])
        assert imported(first) & local == set() and imported(guarded) == {"interop"}
    else:
        assert imported(TREES[name]) & local <= may


def test_nothing_of_the_core_knows_what_stands_on_it():
    """Evidence, forks of the core, and code instead of chat."""
    below = [n for n in SOURCES if n in CORE or place(n) in ("plumbing", "interop", "sandbox")]
    above = {"evidence", "people", "forks", "codex"}
    found = {name: imported(TREES[name]) & above for name in below}
    assert {name for name, names in found.items() if names} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_knows_the_sandbox(stage):
    """What it needs of the default world comes through the door, whatever its name."""
    assert "sandbox" not in imported(TREES[stage])
    for node in ast.walk(TREES[stage]):
        if isinstance(node, (ast.Compare, ast.Match)):
            strings = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            assert "sandbox" not in strings, f"{stage}.py:{node.lineno}"


# ---- settings ----------------------------------------------------------------------------------


def attributes_of_cfg(tree):
    """Every x of an expression cfg.x or run.cfg.x."""
    found = set()
    for node in ast.walk(tree):
        of_cfg = ("cfg", "self.cfg", "run.cfg", "t.run.cfg")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in of_cfg:
            found.add(node.attr)
    return found


def readers(name):
    """The files that read the Config of a file: itself, and what it hands it to."""
    names = [name, "plumbing/files", "plumbing/processes"]
    if "train" in imported(TREES[name]):
        names.append("train")
    if name == "evaluate":
        names += ["evidence/answers", "evidence/report"]
    if name == "page":
        names += ["evidence/answers", "people/desk"]
    if name in ("forks/dpo", "forks/rloo"):
        names += ["reward", "ppo"]
    if name == "evidence/ensemble":
        names += ["evidence/ceiling", "ppo", "train"]
    return names


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_field_of_a_config_is_read_and_has_a_comment(name):
    read = set()
    for reader in readers(name):
        read |= attributes_of_cfg(TREES[reader])
    assert fields(name) - read == set()
    comments = ranges.field_comments(module(name).Config)
    assert [f for f in fields(name) if not comments.get(f, "").strip()] == []


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_number_has_a_range_and_every_preset_lies_within(name):
    """Behind the last semicolon of its comment, of fields that it inherits too. So do the words of
    a string of which there are a few."""
    Config, unclear = module(name).Config, []
    kinds, comments = typing.get_type_hints(Config), ranges.field_comments(Config)
    for field, comment in comments.items():
        range = comment.rpartition("; ")[2]
        of_numbers = ranges.ABOVE.fullmatch(range) or ranges.BETWEEN.fullmatch(range)
        words = re.findall(r"\w+", str(kinds[field]))
        if not of_numbers and ("int" in words or "float" in words):
            unclear.append(f"{field}: {range}")
        if "|" in comment and not ranges.WORDS.fullmatch(range):
            unclear.append(f"{field}: {range}")
    assert unclear == [] and comments.keys() == fields(name)
    for values in module(name).PRESETS.values():
        ranges.check(Config(**values))


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_field_that_is_read_exists(name):
    assert attributes_of_cfg(TREES[name]) <= fields(name)


def test_what_train_reads_is_a_setting_of_training():
    import train

    known = {f.name for f in dataclasses.fields(train.TrainConfig)}
    for name in ("train", "plumbing/files", "plumbing/processes"):
        found = attributes_of_cfg(TREES[name])
        assert found and found <= known


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_config_is_frozen_and_every_preset_fits_it(name):
    assert set(STAGES) < set(CONFIGURED)
    assert module(name).Config.__dataclass_params__.frozen
    for values in module(name).PRESETS.values():
        module(name).Config(**values)


# ---- at the start ------------------------------------------------------------------------------

AT_THE_START = """
import sys
import torch
before = torch.get_rng_state()
import {stages}
from plumbing import files
slow = {"torch.distributed.fsdp", "torch.distributed.tensor"}
assert not slow & sys.modules.keys(), "at import"
import {everything}
assert before.equal(torch.get_rng_state())
assert not slow & sys.modules.keys(), "at import of the rest"
run = files.begin(pretrain.Config(out="base.pt", device="cpu"), "pretrain")
assert run.device == "cpu"
assert not slow & sys.modules.keys(), "at the start of a run"
"""


def test_nothing_happens_at_import_and_one_process_starts_without_what_many_need(tmp_path):
    """Nothing is printed, written or drawn, in an empty folder and a fresh interpreter. PyTorch's
    FSDP and DTensor take a second to import."""
    names = [name.replace("/", ".").removesuffix(".__init__") for name in SOURCES]
    code = AT_THE_START.replace("{stages}", ", ".join(STAGES))
    code = code.replace("{everything}", ", ".join(names))
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
