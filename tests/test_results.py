"""plumbing/results.py: what a command may write over, one writer at a time, and whole files."""

import contextlib
import json
import math
import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from disk import full_disk

from plumbing import results


@dataclass(frozen=True)
class Config:
    out: str = "out.jsonl"
    init: tuple[str, ...] = ("model.pt",)
    seed: int = 0
    temperatures: tuple[float, ...] = (1.0, 1.3)
    batch: int = 1


CFG = Config()
NAMES = ("report.json", "plot.png", "report.md")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work inside an empty folder; give all locks back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "HELD", {})
    yield tmp_path
    results.release_all()


@pytest.fixture
def model(folder):
    """A file that results are made from."""
    Path("model.pt").write_text("weights")
    return folder


def tree(folder="."):
    """{name: content} of all files, links not followed, locks apart."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file() and path.suffix != ".lock":
            found[str(path)] = path.read_bytes()
    return found


def plant(kind, path, target="target"):
    """A link to a file, or to none; a folder; a device."""
    if kind == "link":
        Path(target).write_text("mine")
    if kind in ("link", "dangling"):
        os.symlink(target, path)
    elif kind == "folder":
        os.mkdir(path)
    else:
        # No pipe, whose reader would wait; no device of the machine, which could be lost.
        with socket.socket(socket.AF_UNIX) as device:
            device.bind(path)


PLANTED = {"link": "a link", "dangling": "a link", "folder": "a folder", "socket": "a device"}

# ---- one file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_replaced_whole_or_not_at_all(folder, old):
    path = Path("x.txt")
    if old:
        path.write_text(old)

    def half(error):
        def write(f):
            f.write("ha")
            raise error

        return write

    says = "cannot write x.txt .No space left on device.: free some space or choose another --out"
    with pytest.raises(ValueError, match=says):
        results.replace_file("x.txt", half(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="cannot write x.txt .encoder error -2"):
        results.replace_file("x.txt", half(OSError("encoder error -2")))  # as PIL says it
    for error in (KeyError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            results.replace_file("x.txt", half(error))
    assert tree() == ({"x.txt": b"old"} if old else {})
    results.replace_file("x.txt", lambda f: f.write("naïve"))
    assert tree() == {"x.txt": "naïve".encode()}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(folder):
    Path("x.txt").write_text("old")
    with full_disk(1000), pytest.raises(ValueError, match="cannot write x.txt .File too large.:"):
        results.replace_file("x.txt", lambda f: f.write("x" * 5000))
    assert tree() == {"x.txt": b"old"}


@pytest.mark.parametrize("kind", PLANTED)
def test_no_file_is_written_through_a_link_a_folder_or_a_device(folder, kind):
    plant(kind, "x.txt")
    before = tree()
    says = f"x.txt cannot be written: it is {PLANTED[kind]}; choose another name"
    with pytest.raises(ValueError, match=says):
        results.replace_file("x.txt", lambda f: f.write("new"))
    for check in (results.check_out, results.check_new):
        with pytest.raises(ValueError, match=f"--out {says}"):
            check("x.txt")
    with pytest.raises(ValueError, match=says):
        results.check_new("x.txt", overwrite=True)
    assert tree() == before and not os.path.exists("target") or kind == "link"


def test_temporary_names_cannot_be_planted(folder):
    """What anyone could guess stays untouched; twice the name is another, and new."""
    for name in ("x.txt.tmp", ".x.txt.tmp", "tmp", ".x.txt..tmp"):
        os.symlink("target", name)
    before, names = tree(), []
    for _ in range(2):
        results.replace_file("x.txt", lambda f: names.append(f.fileno()) or f.write("new"))
        results.replace_file("x.txt", lambda f: names.append(os.listdir()))
    assert tree() == before | {"x.txt": b""}
    one, two = (set(listed) - set(os.listdir()) for listed in (names[1], names[3]))
    assert len(one) == len(two) == 1 and one != two and all(x.startswith(".x.txt.") for x in one)


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_of_any_new_file(folder, umask, wanted):
    before = os.umask(umask)
    try:
        results.replace_file("x.txt", lambda f: f.write("new"))
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("x.txt").st_mode) == wanted


def test_lines_of_records(folder):
    results.write_jsonl("x.jsonl", [{"a": "ü\n", "b": [1, None]}, {}])
    assert Path("x.jsonl").read_bytes() == '{"a": "ü\\n", "b": [1, null]}\n{}\n'.encode()
    with pytest.raises(ValueError, match="cannot write no/x.jsonl .*--out"):
        results.write_jsonl("no/x.jsonl", [{}])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_named(bad):
    good = {"a": 1.0, "b": {"c": [1, None, "nan", {"d": 2.0}], "e": (3.0,)}, "f": 2**70}
    results.check_finite("x", good)
    for numbers, says in (
        ({"a": 1.0, "b": bad}, "x: the b is not finite; help"),
        ({"a": [1.0, bad]}, "x: the a is not finite; help"),
        ({"a": {"b": (1.0, {"c": bad})}}, "x, a, b: the c is not finite; help"),
    ):
        with pytest.raises(ValueError, match=f"^{says}$"):
            results.check_finite("x", numbers, "; help")


# ---- where a result may go -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("", "--out is missing"),
        (".", "--out . cannot be written: it is a folder"),
        ("no/x", "--out no/x cannot be written: .*no is not a writable folder"),
        ("file/x", "--out file/x cannot be written: .*file is not a writable folder"),
        ("new/", "--out new/ cannot be written: it names a folder"),
        ("x" * 201, "cannot be written: use a name of at most 200 bytes"),
        ("ü" * 101, "cannot be written: use a name of at most 200 bytes"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(folder, out, says):
    Path("file").write_text("mine")
    with pytest.raises(ValueError, match=says):
        results.check_out(out)
    with pytest.raises(ValueError, match=says):
        results.claim(out, {"stage": "x", "config": {}, "inputs": {}})
    assert tree() == {"file": b"mine"}


def test_names_of_200_bytes_can_be_written_with_all_that_lies_beside_them(folder):
    cfg = replace(CFG, out="x" * 200, init=())
    assert make(cfg) and not make(cfg)


def test_what_is_there_is_not_replaced_without_being_asked(folder):
    results.check_new("x.png")
    Path("x.png").write_text("mine")
    with pytest.raises(ValueError, match="x.png is there already: choose another name, or move"):
        results.check_new("x.png")
    results.check_new("x.png", overwrite=True)


# ---- a result that is not a checkpoint -----------------------------------------------------------


def claimed(cfg, names=(), overwrite=False, stage="label"):
    """Claim a result -> its meta, None if it is finished already."""
    meta = results.provenance(cfg, stage, {"init": cfg.init})
    return None if results.claim(cfg.out, meta, names, overwrite) else meta


def make(cfg, text="new", **more):
    """Claim a file and write it -> whether that had to be done."""
    meta = claimed(cfg, **more)
    if meta:
        results.deliver(cfg.out, meta, {"": lambda f: f.write(text)})
    return bool(meta)


def report(text="new"):
    """Writers of the files of a report."""
    return {
        "report.json": lambda f: f.write(f"{text} json"),
        "plot.png": lambda f: f.write(b"\x89PNG " + text.encode()),
        "report.md": lambda f: f.write(f"{text} md"),
    }


def make_report(cfg, text="new", **more):
    meta = claimed(cfg, NAMES, **more)
    if meta:
        results.deliver(cfg.out, meta, report(text))
    return bool(meta)


def refused(says, act=make, cfg=CFG, **more):
    """That `act` says so and changes nothing."""
    before = tree()
    with pytest.raises(ValueError, match=says):
        act(cfg, **more)
    assert tree() == before


def test_a_result_is_made_once(model, capsys):
    """The second time it only becomes up to date for `make`; the lock is given back."""
    assert make(CFG) and not os.path.exists("out.jsonl.lock")
    before = tree()
    assert before.keys() == {"model.pt", "out.jsonl", "out.jsonl.made.json"}
    made = json.loads(before["out.jsonl.made.json"])
    assert made["stage"] == "label" and made["config"]["temperatures"] == [1.0, 1.3]
    assert made["files"] == {"": results.file_hash("out.jsonl")}
    os.utime("out.jsonl", (0, 0))
    capsys.readouterr()
    assert not make(CFG, "newer") and tree() == before
    assert capsys.readouterr().out == "out.jsonl is finished already: delete it to make it again\n"
    assert os.stat("out.jsonl").st_mtime > 0 and not os.path.exists("out.jsonl.lock")
    os.remove("out.jsonl")
    assert make(CFG) and tree() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "it was made with --seed 0 instead of 1"),
        (
            {"temperatures": (0.5,)},
            r"it was made with --temperatures \[1.0, 1.3\] instead of \[0.5\]",
        ),
        ({"init": ("model.pt", "model.pt")}, "it was made from other inputs"),
        ({"init": ()}, r"it was made with --init unknown instead of \[\]"),
    ],
)
def test_a_result_of_another_command_is_refused_by_name(model, change, says):
    make(CFG)
    says = f"out.jsonl is there already, and {says}: choose another --out, or --overwrite it"
    refused(says, cfg=replace(CFG, **change))
    assert make(replace(CFG, **change), "other", overwrite=True)
    assert Path("out.jsonl").read_text() == "other" and not make(replace(CFG, **change))


def test_a_result_of_a_command_that_had_more_settings_is_refused_by_name(model):
    make(CFG)
    made = json.loads(Path("out.jsonl.made.json").read_text())
    made["config"]["depth"] = 3
    Path("out.jsonl.made.json").write_text(json.dumps(made))
    refused("and it was made with --depth 3 instead of unknown: choose")


def test_a_result_of_another_stage_or_of_changed_inputs_is_refused(model):
    make(CFG)
    refused("and it was made by label: choose", stage="rate")
    Path("model.pt").write_text("other weights")
    refused("and it was made from other inputs: choose")


def test_what_changes_no_result_may_change(model):
    """--out, --overwrite and the settings of memory are none of what made a file."""
    make(CFG)
    os.rename("out.jsonl", "x.jsonl")
    os.rename("out.jsonl.made.json", "x.jsonl.made.json")
    os.rename("model.pt", "m.pt")
    assert not make(replace(CFG, out="x.jsonl", init=("m.pt",)))


def test_a_result_that_was_changed_is_refused(model):
    make(CFG)
    Path("out.jsonl").write_text("edited by hand")
    refused("out.jsonl is there already, and it was changed since this command made it: choose")
    assert make(CFG, overwrite=True) and Path("out.jsonl").read_text() == "new"


def test_a_file_that_is_not_ours_is_refused(model):
    Path("out.jsonl").write_text("mine")
    refused("out.jsonl is there already, and this command did not make it: choose another --out, o")
    assert make(CFG, overwrite=True) and Path("out.jsonl").read_text() == "new"
    assert not make(CFG) and not make(CFG, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_replaced(model, overwrite):
    for out in ("model.pt", "./model.pt", os.path.abspath("model.pt")):
        says = "model.pt is one of the inputs: choose another name"
        refused(says, cfg=replace(CFG, out=out), overwrite=overwrite)
    os.mkdir("runs")
    os.link("model.pt", "runs/report.md")
    refused("runs/report.md is one of the inputs", make_report, replace(CFG, out="runs"))


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        b"3",
        b"[]",
        b"{}",
        b'"files"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"files": [], "config": {}}',
        b'{"files": {}, "config": 3}',
        b'{"files": null}',
    ],
)
@pytest.mark.parametrize("act", [make, make_report])
def test_a_made_json_of_someone_else_is_refused(model, act, content):
    cfg = replace(CFG, out="run")
    os.mkdir("run" if act is make_report else "other")
    path = Path("run/made.json" if act is make_report else "run.made.json")
    path.write_bytes(content)
    refused(f"{path} does not say what made the files beside it: move them away, or", act, cfg)
    assert act(cfg, overwrite=True) and not act(cfg)


def test_a_made_json_that_lies_is_not_believed(model):
    """It may name any file, and say anything."""
    meta = {"stage": None, "config": {}, "files": {"../model.pt": "", "": 3}}
    Path("out.jsonl.made.json").write_text(json.dumps(meta))
    Path("out.jsonl").write_text("mine")
    refused("out.jsonl is there already, and it does not say what made it: choose")
    Path("out.jsonl.made.json").unlink()
    Path("out.jsonl").unlink()
    make(CFG)
    made = json.loads(Path("out.jsonl.made.json").read_text())
    made["files"]["../model.pt"] = ""
    Path("out.jsonl.made.json").write_text(json.dumps(made))
    assert make(CFG, "again") and Path("model.pt").read_text() == "weights"


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("overwrite", [False, True])
def test_links_folders_and_devices_are_refused_wherever_they_lie(model, kind, overwrite):
    for act, planted in ((make, "run"), (make, "run.made.json"), (make_report, "run/plot.png")):
        cfg = replace(CFG, out=planted.split("/")[0].removesuffix(".made.json"))
        if act is make_report:
            os.mkdir("run")
        plant(kind, planted, os.path.abspath("target"))
        says = f"{planted} cannot be written: it is {PLANTED[kind]}"
        refused(says, act, cfg, overwrite=overwrite)
        os.rmdir(planted) if kind == "folder" else os.remove(planted)
    assert Path("target").read_text() == "mine" if kind == "link" else not Path("target").exists()


def test_a_report_is_a_folder_of_files(model):
    cfg = replace(CFG, out="a/run")
    assert make_report(cfg)
    before = tree()
    assert before["a/run/plot.png"] == b"\x89PNG new" and before["a/run/report.md"] == b"new md"
    Path("a/run/notes.txt").write_text("mine")
    assert not make_report(cfg)
    other = replace(cfg, seed=1)
    refused("a/run/report.json is there already, .* --seed 0 instead of 1", make_report, other)
    Path("a/run/report.md").unlink()
    assert make_report(cfg) and tree() == before | {"a/run/notes.txt": b"mine"}
    Path("a/run/plot.png").write_bytes(b"mine")
    refused("a/run/plot.png is there already, and it was changed", make_report, cfg)
    assert make_report(cfg, overwrite=True) and not os.path.exists("a/run.lock")
    assert tree() == before | {"a/run/notes.txt": b"mine"}


def test_a_file_that_a_report_did_not_write_is_not_its_own(model):
    """Some have no plots."""
    cfg = replace(CFG, out="run")
    results.deliver("run", claimed(cfg, NAMES), {"report.md": lambda f: f.write("md")})
    assert claimed(cfg, NAMES) is None
    Path("run/plot.png").write_bytes(b"mine")
    os.remove("run/report.md")
    refused("run/plot.png is there already, and this command did not make it", make_report, cfg)


def test_where_no_folder_can_be_made_is_a_sentence(model):
    Path("file").write_text("mine")
    for out in ("file", "file/run"):
        says = f"--out {out} cannot be made a folder .*: choose another"
        refused(says, make_report, replace(CFG, out=out))


@pytest.mark.parametrize("at", NAMES)
def test_an_interrupted_report_is_written_by_the_same_command_only(model, at):
    cfg = replace(CFG, out="run")

    def crash(f):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.deliver("run", claimed(cfg, NAMES), report("half") | {at: crash})
    results.release("run")
    done = NAMES[: NAMES.index(at)]
    assert [name for name in NAMES if os.path.exists(f"run/{name}")] == list(done)
    if done:
        refused("--seed 0 instead of 1: choose", make_report, replace(cfg, seed=1))
    assert make_report(cfg) and not make_report(cfg)
    assert Path("run/report.md").read_text() == "new md"


def test_a_result_that_cannot_be_written_leaves_the_old_one(model):
    make(CFG)
    meta = claimed(replace(CFG, seed=1), overwrite=True)
    with full_disk(1000), pytest.raises(ValueError, match="cannot write out.jsonl .File too la"):
        results.deliver("out.jsonl", meta, {"": lambda f: f.write("x" * 5000)})
    assert Path("out.jsonl").read_text() == "new"
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


# ---- one writer at a time ------------------------------------------------------------------------


@contextlib.contextmanager
def child(code, *argv):
    """Run code in another process, which says "ready" and then waits."""
    code = f"import os, sys, signal\nfrom plumbing import results\n{code}"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, *argv], env=env, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


HOLD = "results.hold(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("ending", ["end", "kill"])
def test_a_second_process_is_refused_until_the_first_has_ended(folder, monkeypatch, ending):
    monkeypatch.setattr(sys, "argv", ["/somewhere/x.py"])
    with child(HOLD, "m.pt", "--lr", "1\x1b[2J") as process:
        assert process.stdout.readline() == "ready\n"
        says = rf"--out ./m.pt is being written by process {process.pid} on .* \(-c m.pt --lr 1"
        with pytest.raises(ValueError, match=f"{says}.*: wait until it ends, or choose another"):
            results.hold("./m.pt")
        with pytest.raises(ValueError, match=f"process {process.pid}"):
            results.claim("m.pt", {"stage": "x", "config": {}, "inputs": {}}, overwrite=True)
        results.hold("other.pt")
        assert len(results.HELD) == 1
        if ending == "end":
            process.stdin.close()
        else:
            process.kill()
        process.wait(10)
    assert os.path.exists("m.pt.lock") == (ending == "kill")
    results.hold("m.pt")
    text = f"process {os.getpid()} on {socket.gethostname()} (x.py)"
    assert Path("m.pt.lock").read_text() == text
    results.release("m.pt")
    assert not os.path.exists("m.pt.lock")


def test_a_lock_may_be_taken_twice_and_given_back_twice(folder):
    results.hold("m.pt")
    results.hold(os.path.abspath("m.pt"))
    results.release("m.pt")
    results.release("m.pt")
    assert not results.HELD and os.listdir() == []


@pytest.mark.parametrize("content", ["mine", "process 12", "process 12 is mine"])
def test_a_file_that_happens_to_be_called_like_a_lock_is_refused_and_stays(folder, content):
    Path("m.pt.lock").write_text(content)
    with pytest.raises(ValueError, match=r"m.pt.lock is no lock of ours: choose another --out"):
        results.hold("m.pt")
    assert Path("m.pt.lock").read_text() == content and not results.HELD


@pytest.mark.parametrize("kind", PLANTED)
def test_a_lock_is_not_written_through_a_link(folder, kind):
    plant(kind, "m.pt.lock")
    before = tree()
    with pytest.raises(ValueError, match=f"m.pt.lock cannot be written: it is {PLANTED[kind]}"):
        results.hold("m.pt")
    assert tree() == before and not results.HELD


def test_a_lock_that_was_deleted_is_not_taken_from_who_made_it_anew(folder):
    results.hold("m.pt")
    os.remove("m.pt.lock")
    with child(HOLD, "m.pt") as process:
        process.stdout.readline()
        results.release("m.pt")
        with pytest.raises(ValueError, match=f"process {process.pid}"):
            results.hold("m.pt")


RACE = """
import time
held, ends = 0, time.time() + float(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while time.time() < ends:
    try:
        results.hold("m.pt")
    except ValueError:
        continue
    os.close(os.open("held", os.O_CREAT | os.O_EXCL))
    held += 1
    os.remove("held")
    results.release("m.pt")
print(held)
"""


def test_never_two_hold_a_lock(folder):
    """Six processes take it and give it back as fast as they can; who holds it makes a file, which
    fails if it is there."""
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(child(RACE, "1.5")) for _ in range(6)]
        for process in racers:
            process.stdout.readline()
        for process in racers:
            process.stdin.write("go\n")
            process.stdin.flush()
        held = [int(process.stdout.read()) for process in racers]
        assert [process.wait(10) for process in racers] == [0] * 6
    assert sum(x > 0 for x in held) > 1 and sum(held) > 10
    assert os.listdir() == []


# ---- what a killed process leaves ----------------------------------------------------------------


def test_what_a_killed_process_was_writing_is_removed(model):
    """A file, and a file of a report. Nothing else that lies there."""
    code = """
meta = {"stage": "label", "config": {}, "inputs": {}}
names = sys.argv[2:]
results.claim(sys.argv[1], meta, names)
writers = dict.fromkeys(names or [""], lambda f: os.kill(os.getpid(), signal.SIGKILL))
results.deliver(sys.argv[1], meta, writers)
"""
    meta = {"stage": "label", "config": {}, "inputs": {}}
    for out, names in (("out.jsonl", []), ("run", ["report.json", "report.md"])):
        with child(code, out, *names) as process:
            assert process.wait(10) == -signal.SIGKILL
        assert [name for name in tree() if name.endswith(".tmp")]
        assert results.claim(out, meta, names) is False
        assert not [name for name in tree() if name.endswith(".tmp")]
        results.release(out)


@pytest.mark.parametrize("out", ["m.pt", "m[1]*?.pt", "m", "$^"])
def test_only_temporary_files_of_this_result_are_removed(folder, out):
    ours = [f".{out}{beside}.a_bcdef9.tmp" for beside in ("", ".part", ".log.jsonl", ".made.json")]
    kept = [f".{out}.tmp", f".{out}.backup.tmp", f".{out}.ABCDEFGH.tmp", f".{out}.abcdefgh.tmp.txt"]
    kept += [f".{out}.jsonl.abcdefgh.tmp", f".{out}2.abcdefgh.tmp", f".{out}.abcdefgh", ".x.tmp"]
    kept += [f"{out}.abcdefgh.tmp", f".{out}.abc.defg.tmp", f"x.{out}.abcdefgh.tmp"]
    for name in ours + kept:
        Path(name).write_text("")
    os.mkdir(f".{out}.folder12.tmp")
    results.hold(out)
    assert sorted(os.listdir()) == sorted([*kept, f".{out}.folder12.tmp", f"{out}.lock"])


def test_lines_of_an_unfinished_run_are_gone_on_with(tmp_path):
    path = tmp_path / "samples.part"
    meta = {"stage": "x", "config": {"n": 1}, "inputs": {}}
    for begun in ("", '{"stage": "x", "con'):  # a kill came before the first line was whole
        path.write_text(begun)
        assert results.go_on(str(path), meta) == [] == results.go_on(str(path), meta)
    records = [{"n": "é\u2028"}, {"n": [2, None]}]
    for record in records:
        results.append(str(path), record)
    whole = path.read_bytes()
    path.write_bytes(whole + b'01234567 {"n": "\xc3')
    for _ in range(2):
        assert results.go_on(str(path), meta) == records
        assert path.read_bytes() == whole
    lines = whole.split(b"\n")
    for damaged in (b"", b"{}", b"00000000 {}", lines[2].replace(b"2", b"3"), b"\xff", b"[" * 9999):
        path.write_bytes(b"\n".join([lines[0], damaged, lines[2], b""]))
        with pytest.raises(ValueError, match="samples.part, line 2 is damaged: remove the line"):
            results.go_on(str(path), meta)
    other = json.dumps(meta | {"config": {"n": 2}}) + "\n"
    for strange in (other, "my notes\nsecond line", "1\n", "my notes"):
        path.write_text(strange)
        with pytest.raises(ValueError, match="is of an unfinished run with other settings"):
            results.go_on(str(path), meta)
        assert path.read_text() == strange
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="it is a link"):
        results.go_on(str(path), meta)
    assert not (tmp_path / "elsewhere").exists()


def test_a_line_that_a_full_disk_cuts_off_names_the_file(monkeypatch):
    with pytest.raises(ValueError, match="cannot write /dev/full .*: free some space"):
        results.append("/dev/full", {"n": 1})


def test_a_folder_with_the_result_of_another_command_is_refused(tmp_path):
    """The hashes of its files are in the one made.json that a folder has."""
    out = str(tmp_path)
    first = {"stage": "a", "config": {}, "inputs": {}}
    assert not results.claim(out, first, ("a.txt",))
    results.deliver(out, first, {"a.txt": lambda f: f.write("a")})
    with pytest.raises(ValueError, match="holds a.txt, and it was made by a: choose another --out"):
        results.claim(out, first | {"stage": "b"}, ("b.txt",))
    assert results.claim(out, first, ("a.txt",))
