"""interop/export.py: a checkpoint as a folder, and what transformers makes of it.

Where transformers is not installed its tests are skipped, or fail if TRANSFORMERS_REQUIRED is set.
"""

import json
import os
import sys

import pytest
import torch
from folders import (
    NASTY,
    TEXT,
    agree,
    hash_of,
    learned,
    loaded_by,
    ours,
    read_config,
    same_continuations,
    saved,
    small_ranks,
    theirs,
    write_ranks,
)

from interop import get_tokenizer, load_model, plan, tokenizer_id
from interop.export import export, write_tokenizer
from model import GPT, GPTConfig, Scorer
from plumbing.files import save_checkpoint

NO_GPT2 = "is a folder without a GPT-2 in it"


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `python model.py ...` in this process -> (exit code, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["model.py", *map(str, argv)])
        capsys.readouterr()
        try:
            plan.main()
            code = 0
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_ours_is_theirs(hf, tmp_path, small, command, kind):
    network = ours(kind, get_tokenizer(small).n_vocab)
    assert kind is GPT or abs(network.head.bias.item()) > 0.01
    path, folder = saved(tmp_path / "m.pt", network, small), tmp_path / "new" / "folder"
    code, said, _ = command("export", path, folder)
    assert code == 0 and str(folder) in said and "without" not in said
    agree(hf, path, folder)
    auto = "AutoModelForCausalLM" if kind is GPT else "AutoModelForSequenceClassification"
    assert [type(loaded_by(hf, folder, auto)).__name__] == read_config(folder)["architectures"]
    assert read_config(folder)["eos_token_id"] == get_tokenizer(small).eot_token
    if kind is GPT:
        same_continuations(network, loaded_by(hf, folder, auto))


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2ForSequenceClassification"])
def test_a_folder_that_went_through_a_checkpoint_is_the_same(hf, tmp_path, command, kind):
    before, after = tmp_path / "before", tmp_path / "after"
    os.mkdir(before)
    network = theirs(hf, kind)
    network.config.save_pretrained(before)
    torch.save(network.state_dict(), before / "pytorch_model.bin")
    network, _ = load_model(str(before), GPT if kind == "GPT2LMHeadModel" else Scorer)
    save_checkpoint(tmp_path / "m.pt", network, {"name": "sandbox", "hash": ""}, {})
    assert command("export", tmp_path / "m.pt", after)[0] == 0
    weights = [torch.load(folder / "pytorch_model.bin") for folder in (before, after)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())
    known = read_config(before)
    kept = {k for k, v in read_config(after).items() if k in known and known[k] == v}
    alone = {"architectures", "num_labels"}  # which a config that has no model does not say
    assert read_config(after).keys() - kept == alone


def test_no_model_is_exported_over_another(hf, tmp_path, small):
    """transformers prefers model.safetensors, so what is exported beside it would not be read."""
    theirs(hf).save_pretrained(tmp_path / "folder")
    path = saved(tmp_path / "m.pt", ours(vocab=get_tokenizer(small).n_vocab, seed=1), small)
    for source in (path, str(tmp_path / "folder")):
        with pytest.raises(ValueError, match="folder holds another model: name a new folder"):
            export(source, str(tmp_path / "folder"))


def test_the_tokenizer_files_split_text_as_the_ranks_do(hf, tmp_path, ranks):
    enc = get_tokenizer(ranks)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert write_tokenizer(ranks, str(tmp_path))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*NASTY, TEXT]:
        assert tokenizer(text)["input_ids"] == enc.encode_ordinary(text), text
    assert tokenizer.eos_token_id == enc.eot_token and len(tokenizer) == enc.n_vocab
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(enc.n_vocab))
    assert vocabulary["<|endoftext|>"] == enc.eot_token
    end = "an end <|endoftext|> or not"
    assert tokenizer(end)["input_ids"] == enc.encode(end, allowed_special="all")
    assert enc.eot_token in tokenizer(end)["input_ids"]
    assert enc.eot_token not in enc.encode_ordinary(end)


def test_the_folder_has_the_tokenizer_of_the_ranks(tmp_path, ranks):
    """Its hash, so that models with either may meet, and what was written from a folder is the same
    again."""
    enc = get_tokenizer(ranks)
    for name, source in (("a", ranks), ("b", str(tmp_path / "a"))):
        (tmp_path / name).mkdir()
        assert write_tokenizer(source, str(tmp_path / name))
        again = get_tokenizer(str(tmp_path / name))
        assert hash_of(again) == hash_of(enc)
        assert [again.encode_ordinary(x) for x in NASTY] == [enc.encode_ordinary(x) for x in NASTY]
    for i in range(9):  # merges do happen
        assert len(enc.encode_ordinary(TEXT[i:])) < len(TEXT[i:]) / 2


def test_ranks_are_written_as_they_are_now(tmp_path):
    for words in (20, 30):
        path = small_ranks(tmp_path / "mine.tiktoken", words)
        write_tokenizer(path, str(tmp_path))
    assert hash_of(tmp_path) == hash_of(path)


def test_ranks_with_another_order_of_bytes_come_back(tmp_path):
    tokens = [bytes([b]) for b in range(256)] + learned(60)
    path = write_ranks(tmp_path / "mine.tiktoken", {token: n for n, token in enumerate(tokens)})
    assert write_tokenizer(path, str(tmp_path))
    assert hash_of(tmp_path) == hash_of(path)


def test_the_sandbox_splits_text_in_a_way_of_its_own_and_the_command_says_so(
    tmp_path, enc, command
):
    save_checkpoint(tmp_path / "m.pt", ours(vocab=enc.n_vocab), tokenizer_id(enc), {})
    code, said, _ = command("export", tmp_path / "m.pt", tmp_path / "folder")
    assert code == 0 and "without a tokenizer: transformers" in said
    assert sorted(os.listdir(tmp_path / "folder")) == ["config.json", "pytorch_model.bin"]


def test_the_end_of_text_is_the_tokenizers(tmp_path, small):
    export(saved(tmp_path / "m.pt", ours(vocab=384), small), str(tmp_path / "folder"))
    assert read_config(tmp_path / "folder")["eos_token_id"] == get_tokenizer(small).eot_token


def refused(command, *argv):
    """The sentence on stderr."""
    code, printed, said = command("export", *argv)
    assert code == 2 and printed == "" and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_exports_that_cannot_be(tmp_path, small, command, monkeypatch):
    path = saved(tmp_path / "m.pt", ours(vocab=get_tokenizer(small).n_vocab), small)
    assert "none.pt does not exist" in refused(command, tmp_path / "none.pt", tmp_path / "new")
    assert NO_GPT2 in refused(command, tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/folder"):
        assert "name another folder" in refused(command, path, tmp_path / place)
    (tmp_path / "taken" / "config.json").mkdir(parents=True)
    assert "name another folder" in refused(command, path, tmp_path / "taken")
    assert (tmp_path / "file").read_text() == "in the way"
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
    ):
        monkeypatch.setattr(torch, "save", lambda *a, error=error: (_ for _ in ()).throw(error))
        assert "free some space" in refused(command, path, tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.update({"head.weight": w["wte.weight"]}), "weights, not"),
        (lambda w: w.update({"rotary.angles": w.pop("wpe.weight")}), "it has rotary.angles"),
    ],
)
def test_a_fork_of_the_model_is_not_exported_as_a_gpt2(tmp_path, change, says):
    model = GPT(GPTConfig(60, 16, 1, 2, 8))
    weights = dict(model.state_dict())
    change(weights)
    path, folder = str(tmp_path / "fork.pt"), tmp_path / "folder"
    save_checkpoint(path, model, {"name": "sandbox", "hash": ""}, {}, weights=weights)
    with pytest.raises(ValueError, match=says):
        export(path, str(folder))
    assert not folder.exists()


def test_export_needs_both_names(command):
    code, _, said = command("export", "m.pt")
    assert code == 2 and "folder" in said and "Traceback" not in said


@pytest.mark.parametrize("name", ["small.tiktoken", "folder"])
def test_a_tokenizer_that_is_gone_is_named(tmp_path, monkeypatch, command, name):
    small_ranks(tmp_path / "small.tiktoken")
    (tmp_path / "folder").mkdir()
    write_tokenizer(str(tmp_path / "small.tiktoken"), str(tmp_path / "folder"))
    path = saved(tmp_path / "m.pt", ours(vocab=317), tmp_path / name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    os.rename(tmp_path / name, tmp_path / "elsewhere")
    said = refused(command, path, tmp_path / "new")
    assert str(tmp_path / name) in said and "free some space" not in said

