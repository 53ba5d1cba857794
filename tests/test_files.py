"""plumbing/files.py: checkpoints, what made a result, and logs that go on after a kill."""

import contextlib
import copy
import json
import math
import os
import pickle
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disk import full_disk

from model import GPT, GPTConfig, Scorer
from plumbing import results
from plumbing.files import (
    Run,
    append_log,
    begin,
    read_checkpoint,
    read_part,
    require,
    save_checkpoint,
    truncate_log,
)
from train import TrainConfig

CFG = GPTConfig(vocab_size=23, block_size=40, n_layer=1, n_head=2, n_embd=16, dropout=0.5)
TOKENIZER = {"name": "tiny", "hash": "0123"}
RUN = TrainConfig(out="m.pt", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(0)
    return GPT(CFG)


# ------------------------------------------------------------------------------------------------
# checkpoints


@pytest.mark.parametrize("make", [GPT, Scorer])
def test_checkpoints_round_trip_to_the_bit(tmp_path, make):
    torch.manual_seed(0)
    model, again, path = make(CFG), make(CFG), str(tmp_path / "m.pt")
    meta = {"stage": "test", "n": (1, 2)}
    save_checkpoint(path, model, TOKENIZER, meta, resume={"step": 3})
    checkpoint = read_checkpoint(path)
    again.load_state_dict(checkpoint["weights"])
    ids = torch.arange(8)[None]
    assert torch.equal(again.eval()(ids), model.eval()(ids))
    weights, saved = model.state_dict(), checkpoint["weights"]
    assert list(saved) == list(weights) and all(saved[k].equal(weights[k]) for k in weights)
    assert checkpoint["kind"] == make.kind and GPTConfig(**checkpoint["config"]) == CFG
    assert checkpoint["meta"] == meta and checkpoint["tokenizer"] == TOKENIZER
    assert checkpoint["resume"] == {"step": 3}
    assert os.listdir(tmp_path) == ["m.pt"]


def test_other_weights_may_be_saved(tmp_path, gpt):
    """Those of an earlier step, which was the best."""
    best = {k: v + 1 for k, v in gpt.state_dict().items()}
    save_checkpoint(tmp_path / "m.pt", gpt, TOKENIZER, {}, weights=best)
    saved = read_checkpoint(tmp_path / "m.pt")["weights"]
    assert all(saved[k].equal(best[k]) for k in best)


@pytest.mark.parametrize(
    "error",
    [
        OSError("No space left on device"),
        RuntimeError("file write failed"),
        KeyboardInterrupt(),
    ],
)
@pytest.mark.parametrize("where", ["save", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, gpt, where, error):
    path, new = str(tmp_path / "m.pt"), GPT(CFG)
    save_checkpoint(path, gpt, TOKENIZER, {})

    def crash(*args):
        if where == "save":
            args[1].write(b"half of it")
        raise error

    monkeypatch.setattr(torch if where == "save" else os, where, crash)
    is_refused = isinstance(error, Exception)
    with pytest.raises(ValueError if is_refused else KeyboardInterrupt, match="m.pt|^$"):
        save_checkpoint(path, new, TOKENIZER, {})
    monkeypatch.undo()
    assert torch.equal(read_checkpoint(path)["weights"]["wte.weight"], gpt.wte.weight)
    if is_refused:
        assert os.listdir(tmp_path) == ["m.pt"]


def test_a_folder_that_does_not_exist_is_a_sentence(tmp_path, gpt):
    with pytest.raises(ValueError, match="cannot write .*--out"):
        save_checkpoint(tmp_path / "no" / "m.pt", gpt, TOKENIZER, {})


@pytest.mark.parametrize("limit", [0, 5000, 15_000, 1_000_000])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, gpt, limit):
    """Not by PyTorch's "unexpected pos 64 vs 0"."""
    path = tmp_path / "m.pt"
    path.write_text("old")
    says = r"cannot write .*m.pt \(File too large\): free some space or choose another --out$"
    with full_disk(limit), pytest.raises(ValueError, match=says):
        save_checkpoint(path, gpt, TOKENIZER, {}, more=torch.zeros(500_000))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("given", [False, True])
def test_weights_that_are_not_finite_are_not_written(tmp_path, bad, given):
    model = GPT(CFG)
    weights = copy.deepcopy(model.state_dict()) if given else None
    target = weights or model.state_dict()
    target["h.0.attn.c_proj.weight"].view(-1)[7] = bad
    says = r"m.pt is not written: h.0.attn.c_proj.weight of its GPT is not finite"
    with pytest.raises(ValueError, match=says):
        save_checkpoint(tmp_path / "m.pt", model, TOKENIZER, {}, weights=weights)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pt does not exist"):
        read_checkpoint(tmp_path / "none.pt")


def test_truncated_checkpoints_are_refused(tmp_path, gpt):
    path = tmp_path / "m.pt"
    save_checkpoint(path, gpt, TOKENIZER, {})
    whole = path.read_bytes()
    for n in (0, 1, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"m\.pt is not a .*checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b'{"a": 1}\n',
        b"\x89PNG\r\n\x1a\n",
        b"\x80\x02a.",
        bytes(range(256)),
        pickle.dumps({"kind": "gpt"}, 2),
    ],
    ids=["text", "json", "png", "damaged", "bytes", "pickle"],
)
def test_files_of_other_kinds_are_refused(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.pt is not a .*checkpoint"):
        read_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"wte.weight": torch.zeros(3, 4)},
        torch.zeros(3),
        {"model": {}, "step": 1},
    ],
)
def test_foreign_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    says = "not a checkpoint of these scripts: it must hold kind, config"
    with pytest.raises(ValueError, match=says):
        read_checkpoint(tmp_path / "m.pt")


GOOD = {"kind": "gpt", "config": {}, "tokenizer": TOKENIZER, "meta": {}, "weights": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 3},
        {"kind": None},
        {"config": None},
        {"config": [1]},
        {"tokenizer": None},
        {"tokenizer": "gpt2"},
        {"tokenizer": {"name": "gpt2"}},
        {"tokenizer": {"name": None, "hash": ""}},
        {"tokenizer": {"name": "gpt2", "hash": 3}},
        {"meta": None},
        {"meta": []},
        {"meta": {"config": {"lr": torch.zeros(3)}}},
        {"meta": {"stage": {"toy"}}},
        {"meta": {"config": 3}},
        {"meta": {"metrics": [1.0]}},
        {"config": {"n_layer": torch.zeros(2)}},
        {"tokenizer": TOKENIZER | {"ranks": torch.zeros(2)}},
        {"weights": None},
        {"weights": [torch.zeros(3)]},
        {"weights": {"w": 3}},
        {"weights": {"w": None}},
        {"weights": {"w": [torch.zeros(3)]}},
        {"weights": {3: torch.zeros(3)}},
        {"weights": {"w": torch.zeros(3, dtype=torch.long)}},
        {"weights": {"w": torch.zeros(3).to_sparse()}},
        {"weights": {"w": torch.zeros(3, device="meta")}},
    ],
)
def test_a_checkpoint_with_something_else_in_a_place_is_refused(tmp_path, change):
    path = tmp_path / "m.pt"
    torch.save(GOOD | {"weights": {"w": torch.zeros(3)}}, path)
    read_checkpoint(path)
    torch.save(GOOD | change, path)
    with pytest.raises(
        ValueError, match=r"m\.pt is .*not a (checkpoint of|safe checkpoint|readable)"
    ):
        read_checkpoint(path)
    missing = dict(GOOD)
    del missing[next(iter(change))]
    torch.save(missing, path)
    with pytest.raises(ValueError, match="not a checkpoint of these scripts"):
        read_checkpoint(path)


def test_a_few_bytes_that_unpack_to_many_are_refused(tmp_path):
    """30 kB, and 30 MB; PyTorch alone would unpack them."""
    torch.save(GOOD | {"weights": {"w": torch.zeros(7_500_000)}}, tmp_path / "big.pt")
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(tmp_path / "big.pt") as big, zipfile.ZipFile(path, "w") as packed:
        for name in big.namelist():
            packed.writestr(name, big.read(name), zipfile.ZIP_DEFLATED, 1)
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"m\.pt is not a readable checkpoint"):
        read_checkpoint(path)


def test_entries_that_share_their_bytes_are_refused(tmp_path, gpt):
    path = tmp_path / "m.pt"
    save_checkpoint(path, gpt, TOKENIZER, {})
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.filelist, key=lambda entry: entry.file_size)
        for i in range(9):
            again = copy.copy(largest)
            again.filename += str(i)
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(ValueError, match=r"m\.pt is not a readable checkpoint"):
        read_checkpoint(path)


def test_one_number_that_stands_for_many_is_refused(tmp_path):
    weights = {"w": torch.zeros(1).expand(10**7)}
    torch.save(GOOD | {"weights": weights}, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 5000
    with pytest.raises(ValueError, match=r"m\.pt claims more weights than it holds"):
        read_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "m.pt"),
        OSError(5, "Input/output error"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_file_that_may_be_good_is_not_called_damaged(tmp_path, monkeypatch, gpt, error):
    save_checkpoint(tmp_path / "m.pt", gpt, TOKENIZER, {})

    def fail(*args, **more):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as raised:
        read_checkpoint(tmp_path / "m.pt")
    assert raised.value is error


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_pickle(x, path):
    path.write_bytes(pickle.dumps(x, 2))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (torch.save, "not a safe checkpoint.*could run code"),
        (write_pickle, "not a readable checkpoint"),  # it is not looked into at all
    ],
)
def test_code_in_a_checkpoint_does_not_run(tmp_path, write, says):
    path, ran = tmp_path / "m.pt", tmp_path / "ran"
    parts = {"kind": "gpt", "config": {}, "tokenizer": TOKENIZER, "meta": {}}
    write(parts | {"weights": Evil(ran)}, path)
    with pytest.raises(ValueError, match=says):
        read_checkpoint(path)
    assert not ran.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert ran.exists()  # the attack is a real one


# ------------------------------------------------------------------------------------------------
# logs


def toy_run(tmp_path, **change):
    """A run, and the beginning of each line of its log."""
    run = Run(replace(RUN, out=str(tmp_path / "m.pt"), **change), {"stage": "toy"}, "cpu", None)
    return run, f'{{"run": "{results.name_of(run.meta)}", "step": '.encode()


def test_a_log_is_cut_where_the_run_goes_on(tmp_path):
    run, begins = toy_run(tmp_path)
    path = tmp_path / "m.pt.log.jsonl"
    for step in range(6):
        append_log(run, {"step": step, "loss": 0.5})
    assert all(line.startswith(begins) for line in path.read_bytes().splitlines())
    with open(path, "ab") as f:
        f.write(begins + b'3, "lo')  # the line that a kill cut short
    truncate_log(run, 4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(step, 0.5) for step in range(4)]
    truncate_log(run, 0)
    assert path.read_text() == ""
    path.unlink()
    truncate_log(run, 3)
    assert path.read_text() == ""
    elsewhere = run._replace(cfg=replace(RUN, out=str(tmp_path / "none" / "m.pt")))
    with pytest.raises(ValueError, match="cannot write .*none.*--out"):
        append_log(elsewhere, {"step": 0})


@pytest.mark.parametrize("cut", [b"", b"2", b'2, "x": "\xc3', b"9"])
@pytest.mark.parametrize("lines", [0, 2])
def test_the_line_that_a_kill_cut_short_is_dropped(tmp_path, cut, lines):
    run, begins = toy_run(tmp_path)
    path = tmp_path / "m.pt.log.jsonl"
    whole = b"".join(begins + b"%d}\n" % step for step in range(lines))
    path.write_bytes(whole + begins + cut)
    truncate_log(run, 5)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"mine", 1),
        (b"{", 1),
        (b"LOG0}\nmine", 2),
        (b"mine\n", 1),
        (b"LOG0}\n\nLOG1}\n", 2),
        (b'LOG0}\n{"loss": 1}\n', 2),
        (b'LOG"one"}\n', 1),
        (b"LOGnull}\n", 1),
        (b'{"step": 0}\n', 1),
        (b'{"run": "of another", "step": 0}\n', 1),
        (b"[1]\n", 1),
        (b"3\n", 1),
        (b"LOG0, \"name\": \"caf\xe9\"}\n", 1),
        (b"[" * 100_000 + b"\n", 1),
    ],
)
def test_a_log_of_something_else_is_refused_by_name(tmp_path, content, line):
    """Of another command too."""
    run, begins = toy_run(tmp_path)
    path = tmp_path / "m.pt.log.jsonl"
    content = content.replace(b"LOG", begins)
    path.write_bytes(content)
    says = f"m.pt.log.jsonl, line {line} is not of the log of this command: move the file away"
    with pytest.raises(ValueError, match=says):
        truncate_log(run, 5)
    assert path.read_bytes() == content
    truncate_log(toy_run(tmp_path, overwrite=True)[0], 5)
    assert b"mine" not in path.read_bytes() and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_log_has_no_number_that_is_not_finite(tmp_path, bad):
    run, begins = toy_run(tmp_path)
    append_log(run, {"step": 3, "loss": 1.0})
    says = (
        "toy, step 4: the loss is not finite; .*{}; start again with a lower --lr and another --out"
    )
    with pytest.raises(ValueError, match=says.format("nothing is saved yet")):
        append_log(run, {"step": 4, "loss": bad})
    (tmp_path / "m.pt.part").write_text("")
    with pytest.raises(ValueError, match=says.format("m.pt.part holds the last good save")):
        append_log(run, {"step": 4, "loss": bad})
    assert (tmp_path / "m.pt.log.jsonl").read_bytes() == begins + b'3, "loss": 1.0}\n'


def test_a_log_is_not_written_through_a_link_nor_on_a_full_disk(tmp_path):
    run, _ = toy_run(tmp_path, overwrite=True)
    with full_disk(20), pytest.raises(ValueError, match="cannot write .*log.jsonl .File too large"):
        append_log(run, {"step": 0, "loss": 0.123456})
    path = tmp_path / "m.pt.log.jsonl"
    path.unlink()
    path.symlink_to(tmp_path / "target")
    for write in (lambda: append_log(run, {"step": 0}), lambda: truncate_log(run, 0)):
        with pytest.raises(ValueError, match="log.jsonl cannot be written: it is a link; choose"):
            write()
    assert not (tmp_path / "target").exists()
    path.unlink()
    (tmp_path / "target").write_text("mine")
    path.hardlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match="log.jsonl has another name too"):
        append_log(run, {"step": 0})
    assert path.read_text() == "mine"


# ------------------------------------------------------------------------------------------------
# what made a result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run inside a folder with a file to train on; give all locks back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "HELD", {})
    (tmp_path / "text.txt").write_text("Anna sells lamps.")
    yield tmp_path
    results.release_all()


def start(cfg=RUN, stage="toy", data=("text.txt",), **inputs):
    return begin(cfg, stage, data=data, **inputs)


def finish(run, gpt):
    """Write the result as the training loop does."""
    save_checkpoint(run.cfg.out, gpt, TOKENIZER, run.meta | {"metrics": {"loss": 1.5}})


def save(run, gpt, step=3):
    """Write an unfinished run as the training loop does."""
    save_checkpoint(f"{run.cfg.out}.part", gpt, TOKENIZER, run.meta, resume={"step": step})


def refused(says, cfg=RUN, act=start, **more):
    """That a start is refused and changes no file."""
    before = {path: path.read_bytes() for path in results_in(".")}
    with pytest.raises(ValueError, match=says):
        act(cfg, **more)
    assert {path: path.read_bytes() for path in results_in(".")} == before


def results_in(folder):
    return [p for p in Path(folder).iterdir() if p.is_file() and p.suffix != ".lock"]


def test_a_result_is_finished_if_this_very_command_made_it(folder, gpt, capsys):
    """What changes no weight but by rounding, and where files lie, does not matter."""
    run = start()
    assert run.metrics is None and run.device == "cpu" and run.cfg is RUN
    assert os.path.exists("m.pt.lock")
    finish(run, gpt)
    save(run, gpt)
    os.utime("m.pt", (0, 0))
    assert start(data="text.txt").metrics == {"loss": 1.5}
    assert "m.pt is finished already: delete it" in capsys.readouterr().out
    assert not os.path.exists("m.pt.part") and os.stat("m.pt").st_mtime > 0  # news to `make`
    assert not os.path.exists("m.pt.lock")
    os.mkdir("moved")
    for name in ("m.pt", "text.txt"):
        os.rename(name, f"moved/{name}")
    same = replace(RUN, out="moved/m.pt", log_every=7, microbatch=3, recompute=True)
    for cfg in (same, replace(same, overwrite=True)):
        assert start(cfg, data=("moved/text.txt",)).metrics == {"loss": 1.5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cfg": replace(RUN, seed=1)}, "it was made with --seed 0 instead of 1"),
        ({"cfg": replace(RUN, grad_clip=2.0)}, "it was made with --grad-clip 1.0 instead of 2.0"),
        ({"stage": "other"}, "it was made by toy"),
        ({"data": ()}, "it was made from other inputs"),
        ({"ptx": ("text.txt",)}, "it was made from other inputs"),
        ({"data": ("other.txt",)}, "it was made from other inputs"),
    ],
)
def test_the_result_of_another_command_is_refused_by_name(folder, gpt, change, says):
    """Whatever differs, a setting, the stage, or a file's content; --overwrite lets it go."""
    (folder / "other.txt").write_text("Anna sells lamps!")
    finish(start(), gpt)
    refused(f"--out m.pt is there already, and ({says}): choose another name, or --o", **change)
    cfg = replace(change.pop("cfg", RUN), overwrite=True)
    run = start(cfg, **change)
    assert run.metrics is None and os.path.exists("m.pt")
    finish(run, gpt)
    assert start(replace(cfg, overwrite=False), **change).metrics == {"loss": 1.5}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"mine", "it is no checkpoint"),
        (b"", "it is no checkpoint"),
        ({"a": 1}, "it is no checkpoint"),
        (GOOD, "it does not say what made it"),
        (GOOD | {"meta": {"stage": "toy"}}, "it does not say what made it"),
        (GOOD | {"meta": {"stage": ["toy"], "config": {}}}, "it does not say what made it"),
    ],
)
def test_a_file_of_someone_else_is_refused_by_name(folder, content, says):
    """As --out, and as the unfinished run beside it."""
    for name in ("m.pt", "m.pt.part"):
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            torch.save(content, name)
        if name == "m.pt":
            refused(f"--out m.pt is there already, and {says}: choose another name, or --overwrite")
            assert start(replace(RUN, overwrite=True)).metrics is None
            os.remove(name)
    run, says = start(), says.replace("it is no checkpoint", "m.pt.part is .*not a .*checkpoint.*")
    says = rf"m.pt.part is no unfinished run of this command \({says}\): choose another --out, or -"
    refused(says, run, read_part)
    assert read_part(run._replace(cfg=replace(RUN, overwrite=True))) is None


def make_socket(path):
    """Something like a device."""
    with socket.socket(socket.AF_UNIX) as device:
        device.bind(path)


@pytest.mark.parametrize("kind", ["link", "folder", "socket"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_links_folders_and_devices_are_refused(folder, gpt, kind, overwrite):
    """As --out, as an unfinished run, and as a log."""
    (folder / "target").write_text("mine")
    make = {"link": lambda p: os.symlink("target", p), "folder": os.mkdir, "socket": make_socket}
    run = start(replace(RUN, overwrite=overwrite))
    acts = {
        "m.pt": lambda: start(run.cfg),
        "m.pt.part": lambda: read_part(run),
        "m.pt.log.jsonl": lambda: truncate_log(run, 0),
    }
    for name, act in acts.items():
        make[kind](name)
        with pytest.raises(ValueError, match=f"{name} cannot be written: it is a "):
            act()
        os.rmdir(name) if kind == "folder" else os.remove(name)
    assert (folder / "target").read_text() == "mine"


def test_an_unfinished_run_in_the_place_of_a_result_is_no_result(folder, gpt):
    run = start()
    save(run, gpt)
    os.rename("m.pt.part", "m.pt")
    refused("--out m.pt is there already, and it is not finished: choose another name")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(folder, overwrite):
    for out in ("text.txt", os.path.abspath("text.txt")):
        cfg = replace(RUN, out=out, overwrite=overwrite)
        refused("text.txt is one of the inputs: choose another name", cfg)


@pytest.mark.parametrize("foreign", [b"mine", "another run", "a link"])
def test_what_lies_beside_a_finished_result_and_is_not_its_own_stays(folder, gpt, foreign):
    run = start()
    finish(run, gpt)
    if foreign == "a link":
        save(run, gpt)
        os.rename("m.pt.part", "target")
        os.symlink("target", "m.pt.part")
    elif foreign == "another run":
        save(run._replace(meta=run.meta | {"stage": "other"}), gpt)
    else:
        Path("m.pt.part").write_bytes(foreign)
    before = Path("m.pt.part").read_bytes()
    assert start().metrics == {"loss": 1.5}
    assert Path("m.pt.part").read_bytes() == before


def test_a_second_run_of_one_result_is_refused(folder):
    """Before it has read or written anything."""
    start()
    held, results.HELD = results.HELD, {}
    refused(f"--out m.pt is being written by process {os.getpid()} on .*: wait until it ends")
    results.HELD = held


def test_values_outside_their_range_are_refused_before_files_are_read(folder):
    for change, says in (
        ({"lr": -1.0}, "--lr must be > 0, got -1.0"),
        ({"ema": math.nan}, "--ema must be a finite number"),
        ({"device": "xyz"}, "--device must be"),
    ):
        with pytest.raises(ValueError, match=says):
            start(replace(RUN, **change), data=("none.txt",))


def test_what_trained_a_checkpoint_is_in_it(folder):
    meta = begin(replace(RUN, lr=0.5), "toy", data=("text.txt",), init="").meta
    assert meta["stage"] == "toy" and meta["config"]["lr"] == 0.5
    assert meta["inputs"] == {"data": [results.file_hash("text.txt")]}
    assert not {"out", "overwrite", "microbatch", "log_every"} & meta["config"].keys()


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"held_out_data": ("none.txt",)}, "--held-out-data none.txt does not exist"),
        ({"init": "none.pt"}, "--init none.pt does not exist"),
        ({"data": ("text.txt", "text.txt/")}, "--data text.txt/ does not exist"),
    ],
)
def test_inputs_that_are_not_there_are_named_by_their_flag(folder, inputs, says):
    with pytest.raises(ValueError, match=says):
        begin(RUN, "toy", **inputs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"out": ""}, "--out is missing"),
        ({"out": "."}, "--out . cannot be written: it is a folder"),
        (
            {"out": "none/m.pt"},
            "--out none/m.pt cannot be written: .*none is not a writable folder",
        ),
        ({"log_every": 0}, "--log-every must be >= 1, got 0"),
        ({"save_every": -1}, "--save-every must be >= 1, got -1"),
        ({"schedule": "linear"}, "--schedule must be cosine or restarts or constant, got linear"),
        ({"precision": "fp8"}, "--precision must be auto or fp32 or bf16, got fp8"),
        ({"device": "xyz"}, "--device must be cpu, cuda, cuda:N, mps or auto, got xyz"),
    ],
)
def test_settings_that_cannot_work_are_named_by_their_flag(folder, change, says):
    with pytest.raises(ValueError, match=says):
        begin(replace(RUN, **change), "toy")


def test_a_file_that_is_required_names_the_command_that_makes_it(folder):
    require("--data", ("text.txt", "not looked at"), "make text.txt")
    for paths, name in (((), "FILE"), (("rm.pt",), "rm.pt")):
        with pytest.raises(ValueError, match=f"--rm {name} .*`make rm.pt`"):
            require("--rm", paths, "make rm.pt")


def test_an_unfinished_run_belongs_to_its_command(folder, gpt):
    run = start()
    assert read_part(run) is None
    save(run, gpt)
    assert read_part(run)["resume"] == {"step": 3}
    for change, says in (
        ({"stage": "other"}, "it was made by toy"),
        ({"inputs": {}}, "it was made from other inputs"),
        (
            {"config": run.meta["config"] | {"lr": 2.0}},
            "it was made with --lr 0.001 instead of 2.0",
        ),
    ):
        other = run._replace(meta=run.meta | change)
        refused(rf"m.pt.part is no unfinished run of this command \({says}\): ", other, read_part)
        assert read_part(other._replace(cfg=replace(RUN, overwrite=True))) is None
    finish(run._replace(cfg=replace(RUN, out="m.pt.part")), gpt)
    refused(r"m.pt.part is no unfinished run of this command \(it is finished\): ", run, read_part)
