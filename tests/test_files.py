"""plumbing/files.py: checkpoints, what made a result, and logs that go on after a kill."""

import contextlib
import json
import os
import pickle
from dataclasses import replace

import pytest
import torch

from model import GPT, GPTConfig, Scorer
from plumbing.files import (
    Run,
    append_log,
    begin,
    file_hash,
    read_checkpoint,
    read_part,
    replace_file,
    require,
    save_checkpoint,
    truncate_log,
    write_jsonl,
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
    with pytest.raises(ValueError, match="cannot write .*--out"):
        write_jsonl(str(tmp_path / "no" / "x.jsonl"), [{}])


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


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_pickle(x, path):
    path.write_bytes(pickle.dumps(x, 2))


@pytest.mark.parametrize("write", [torch.save, write_pickle])
def test_code_in_a_checkpoint_does_not_run(tmp_path, write):
    path, ran = tmp_path / "m.pt", tmp_path / "ran"
    parts = {"kind": "gpt", "config": {}, "tokenizer": TOKENIZER, "meta": {}}
    write(parts | {"weights": Evil(ran)}, path)
    with pytest.raises(ValueError, match="not a safe checkpoint.*could run code"):
        read_checkpoint(path)
    assert not ran.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert ran.exists()  # the attack is a real one


# ------------------------------------------------------------------------------------------------
# other files


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, old):
    path = tmp_path / "x.txt"
    if old:
        path.write_text(old)

    def half(f):
        f.write("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="cannot write .*x.txt .No space left on device.: free"):
        replace_file(path, half)
    assert (path.read_text() if path.exists() else None) == old
    replace_file(path, lambda f: f.write("naïve"))
    assert path.read_bytes() == "naïve".encode() and os.listdir(tmp_path) == ["x.txt"]


def test_a_log_is_cut_where_the_run_goes_on(tmp_path):
    run = Run(replace(RUN, out=str(tmp_path / "m.pt")), {}, "cpu", None)
    path = tmp_path / "m.pt.log.jsonl"
    for step in range(6):
        append_log(run, {"step": step, "loss": 0.5})
    with open(path, "a") as f:
        f.write('{"step": 3, "lo')  # the line that a kill cut short
    truncate_log(path, 4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": step, "loss": 0.5} for step in range(4)]
    truncate_log(path, 0)
    assert path.read_text() == ""
    truncate_log(tmp_path / "new", 3)
    assert (tmp_path / "new").read_text() == ""
    elsewhere = run._replace(cfg=replace(RUN, out=str(tmp_path / "none" / "m.pt")))
    with pytest.raises(ValueError, match="cannot write .*none.*--out"):
        append_log(elsewhere, {"step": 0})


# ------------------------------------------------------------------------------------------------
# what made a result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run inside a folder with a file to train on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Anna sells lamps.")
    return tmp_path


def finish(run, gpt):
    """Write the result as the training loop does."""
    save_checkpoint(run.cfg.out, gpt, TOKENIZER, run.meta | {"metrics": {"loss": 1.5}})


def test_a_result_is_finished_if_this_very_command_made_it(folder, gpt, capsys):
    """Not if a setting, the stage or the content of a file is another. What changes no weight but
    by rounding, and where files lie, does not matter."""
    run = begin(RUN, "toy", data=("text.txt",))
    assert run.metrics is None and run.device == "cpu" and run.cfg is RUN
    finish(run, gpt)
    (folder / "m.pt.part").write_text("what a kill left")
    os.utime("m.pt", (0, 0))
    assert begin(RUN, "toy", data="text.txt").metrics == {"loss": 1.5}
    assert "m.pt is finished already: delete it" in capsys.readouterr().out
    assert not os.path.exists("m.pt.part") and os.stat("m.pt").st_mtime > 0  # news to `make`
    os.mkdir("moved")
    for name in ("m.pt", "text.txt"):
        os.rename(name, f"moved/{name}")
    same = replace(RUN, out="moved/m.pt", log_every=7, microbatch=3, recompute=True)
    assert begin(same, "toy", data=("moved/text.txt",)).metrics == {"loss": 1.5}
    assert begin(replace(same, seed=1), "toy", data=("moved/text.txt",)).metrics is None
    assert begin(same, "other", data=("moved/text.txt",)).metrics is None
    assert begin(same, "toy").metrics is None
    assert begin(same, "toy", ptx=("moved/text.txt",)).metrics is None
    (folder / "moved" / "text.txt").write_text("Anna sells lamps!")
    assert begin(same, "toy", data=("moved/text.txt",)).metrics is None


def test_a_result_that_is_not_ours_is_replaced(folder):
    (folder / "m.pt").write_text("not a checkpoint")
    assert begin(RUN, "toy", data=("text.txt",)).metrics is None


def test_an_input_is_never_overwritten(folder):
    for out in ("text.txt", os.path.abspath("text.txt")):
        with pytest.raises(ValueError, match="text.txt is one of the inputs: choose another name"):
            begin(replace(RUN, out=out), "toy", data=("text.txt",))


def test_what_trained_a_checkpoint_is_in_it(folder):
    meta = begin(replace(RUN, lr=0.5), "toy", data=("text.txt",), init="").meta
    assert meta["stage"] == "toy" and meta["config"]["lr"] == 0.5
    assert meta["inputs"] == {"data": [file_hash("text.txt")]}
    assert not {"out", "microbatch", "log_every"} & meta["config"].keys()


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"held_out_data": ("none.txt",)}, "--held-out-data none.txt does not exist"),
        ({"init": "none.pt"}, "--init none.pt does not exist"),
        ({"data": ("text.txt", ".")}, "--data . is a folder"),
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
        ({"log_every": 0}, "--log-every must be at least 1, got 0"),
        ({"save_every": -1}, "--save-every must be at least 1, got -1"),
        ({"schedule": "linear"}, "--schedule must be .*, got linear"),
        ({"precision": "fp8"}, "--precision must be .*, got fp8"),
    ],
)
def test_settings_that_cannot_work_are_named_by_their_flag(folder, change, says):
    with pytest.raises(ValueError, match=says):
        begin(replace(RUN, **change), "toy")


def test_a_file_that_is_required_names_the_command_that_makes_it(folder):
    require("--data", ("text.txt", "not looked at"), "make text.txt")
    for paths, name in (((), "FILE"), (("rm.pt",), "rm.pt"), ((".",), ".")):
        with pytest.raises(ValueError, match=f"--rm {name} .*`make rm.pt`"):
            require("--rm", paths, "make rm.pt")


def test_an_unfinished_run_belongs_to_its_command(folder, gpt):
    meta = begin(RUN, "toy", data=("text.txt",)).meta
    assert read_part("m.pt", meta) is None
    save_checkpoint("m.pt.part", gpt, TOKENIZER, meta, resume={"step": 3})
    assert read_part("m.pt", meta)["resume"] == {"step": 3}
    for other in (meta | {"stage": "other"}, meta | {"inputs": {}}):
        with pytest.raises(ValueError, match="m.pt.part is an unfinished run with other settings"):
            read_part("m.pt", other)
