"""The house rules: who imports whom, every flag is read and has a comment, nothing happens at import."""

import ast
import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import cli

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path.stem: path.read_text() for path in sorted(ROOT.glob("*.py"))}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
CONFIGURED = [
    name
    for name, tree in TREES.items()
    if any(isinstance(n, ast.ClassDef) and n.name == "Config" for n in tree.body)
]

GROUND, SHARED = {"cli", "model", "data"}, {"train", "sandbox", "formats"}
STAGES, TOOLS = {"pretrain", "sft", "reward", "ppo"}, {"sample", "label", "evaluate"}
MAY_IMPORT = {name: set() for name in GROUND | {"train"}}
MAY_IMPORT |= {name: {"data"} for name in SHARED - {"train"}}
MAY_IMPORT |= {name: GROUND | SHARED for name in STAGES | TOOLS}
MAY_IMPORT["evaluate"] = GROUND | SHARED | {"sample"}
MAY_IMPORT["bench"] = GROUND | SHARED | STAGES               # it times what the stages call, and nothing imports it
MAY_IMPORT["experiments"] = GROUND | SHARED | STAGES | {"label", "evaluate"}   # it trains and measures
MAY_IMPORT["claims"] = {"cli", "data", "train", "evaluate", "experiments"}              # it judges; nothing imports it


def local_imports(tree):
    """Names of this project's files that are imported anywhere in `tree`, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names & SOURCES.keys()


def attributes_of_cfg(tree):
    """Every x of an expression cfg.x."""
    return {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "cfg"
    }


def test_every_file_has_its_place():
    assert SOURCES.keys() <= MAY_IMPORT.keys()
    assert GROUND | STAGES | {"train", "sandbox"} <= SOURCES.keys()


def test_imports_are_those_of_the_design():
    """The ground imports nothing local, train knows no model and no data, stages never import each other."""
    wrong = {name: found for name, tree in TREES.items() if (found := local_imports(tree) - MAY_IMPORT[name])}
    assert not wrong


def test_every_field_of_a_config_is_read():
    unread = {}
    for name in CONFIGURED:
        read = attributes_of_cfg(TREES[name])
        if "train" in local_imports(TREES[name]):
            read |= attributes_of_cfg(TREES["train"])
        found = [
            f.name for f in dataclasses.fields(importlib.import_module(name).Config) if f.name not in read
        ]
        if found:
            unread[name] = found
    assert CONFIGURED and not unread


def test_every_field_that_is_read_exists():
    known = {f.name for name in CONFIGURED for f in dataclasses.fields(importlib.import_module(name).Config)}
    for name in CONFIGURED:
        own = {f.name for f in dataclasses.fields(importlib.import_module(name).Config)}
        assert attributes_of_cfg(TREES[name]) <= own, name
    assert attributes_of_cfg(TREES["train"]) <= known


def test_every_field_has_a_comment():
    for name in CONFIGURED:
        comments = cli.field_comments(importlib.import_module(name).Config)
        for f in dataclasses.fields(importlib.import_module(name).Config):
            assert comments.get(f.name, "").strip(), f"{name}.Config.{f.name}"


def test_every_config_is_frozen_and_every_preset_fits_it():
    for name in CONFIGURED:
        module = importlib.import_module(name)
        assert module.Config.__dataclass_params__.frozen, name
        for values in module.PRESETS.values():
            module.Config(**values)


def test_nothing_happens_at_import(tmp_path):
    """Nothing is printed, written or drawn, in an empty folder and a fresh interpreter."""
    code = "import torch; s = torch.get_rng_state(); import NAMES; assert s.equal(torch.get_rng_state())"
    code = code.replace("NAMES", ", ".join(SOURCES))
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_files_can_be_read_in_one_sitting():
    """model.py has more sections than the others: network, cache, sampling, checkpoints, GPT-2's folders, memory."""
    limit = {name: 530 for name in SOURCES} | {"model": 720}
    assert {name: n for name, text in SOURCES.items() if (n := len(text.splitlines())) > limit[name]} == {}


def test_every_file_says_what_it_is():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []
