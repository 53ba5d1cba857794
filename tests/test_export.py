"""interop/export.py: a checkpoint as a folder, and what transformers makes of it with nothing said.

Where transformers is not installed its tests are skipped, or fail if TRANSFORMERS_REQUIRED is set.
"""

import errno
import json
import os
import random
import sys

import pytest
import tiktoken
import torch
from folders import (
    NASTY,
    TEXT,
    agree,
    close,
    learned,
    loaded_by,
    ours,
    publish,
    read_config,
    same_continuations,
    saved,
    write_ranks,
)

import data
from data import encode_dialogue, encode_prompt, encode_response
from generate import generate
from interop import export as module
from interop import get_tokenizer, plan, read_model, tokenizer_id
from interop.export import CHAT_TEMPLATE, export
from interop.tokenizers import PAD, PAD_BYTE
from model import GPT, GPTConfig, Scorer
from plumbing import results
from plumbing.files import save_checkpoint

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
AUTO = {GPT: "AutoModelForCausalLM", Scorer: "AutoModelForSequenceClassification"}
P50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K = r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s"


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


@pytest.fixture(params=["small", "gpt2", "sandbox"])
def own(request, small, real):
    """Each kind of tokenizer that goes out."""
    names = {"small": lambda: small, "gpt2": lambda: real("tokenizer/gpt2.tiktoken")}
    return get_tokenizer(names.get(request.param, lambda: "sandbox")())


def exported(folder, kind, enc, block=64, **weights):
    """A small model of that kind and tokenizer, and its folder."""
    network = ours(kind, enc.n_vocab, block)
    save_checkpoint(f"{folder}.pt", network, tokenizer_id(enc), {"stage": "test"})
    assert export(f"{folder}.pt", str(folder))
    return network


def random_text(rng, longest=30):
    """Pieces of language, white space of all kinds, repetitions, any letters of Unicode."""
    pieces = [*"aabetno  \n\n'.,!?-0123éß漢字😀\t\r\x00\x1c\u00a0\u0301\u200b\u3000", TEXT, "    "]
    pieces += ["'ll", "don't", " the", " capital", "User:", "====", "aaaa", "\n\n\n", "ſ", "Ā", "ÿ"]
    text = ""
    for _ in range(rng.randrange(1, longest)):
        if rng.random() < 0.1:
            text += chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
        else:
            text += rng.choice(pieces)
    return text


def dialogue(rng):
    """Messages, the last one the user's; some are empty."""
    roles = ["user", "assistant"] * rng.randrange(3) + ["user"]
    if rng.random() < 0.4:
        roles = ["system", *roles]
    messages = []
    for role in roles:
        around = rng.choice(["", " ", "\n", " \n\t "])
        text = random_text(rng, 8) + rng.choice("aé.?\u0301ſ") if rng.random() < 0.95 else ""
        messages.append({"role": role, "content": f"{around}{text}{around}"})
    return messages


# -------------------------------------------------------------------------------------------------
# weights and config


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_ours_is_theirs(hf, tmp_path, small, command, kind):
    network = ours(kind, get_tokenizer(small).n_vocab)
    assert kind is GPT or abs(network.head.bias.item()) > 0.01
    path, folder = saved(tmp_path / "m.pt", network, small), tmp_path / "new" / "folder"
    code, said, _ = command("export", path, folder)
    assert code == 0 and str(folder) in said and "without" not in said
    agree(hf, path, folder)
    other = loaded_by(hf, folder, AUTO[kind])
    assert read_config(folder)["architectures"] == [type(other).__name__]
    if kind is GPT:
        same_continuations(network, other)


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_the_weights_are_those_of_the_folder_that_they_came_from(hf, tmp_path, small, kind):
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = saved(tmp_path / "m.pt", ours(kind, get_tokenizer(small).n_vocab), small)
    publish(path, tmp_path / "theirs")
    export(str(tmp_path / "theirs"), str(tmp_path / "again"))
    before = torch.load(tmp_path / "theirs" / "pytorch_model.bin")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    with safe_open(tmp_path / "again" / "model.safetensors", "pt") as found:
        assert found.metadata() == {"format": "pt"}
    with open(tmp_path / "again" / "model.safetensors", "rb") as f:
        assert int.from_bytes(f.read(8), "little") % 8 == 0


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_what_is_read_from_the_folder_is_exported_as_the_same(tmp_path, own, kind):
    exported(tmp_path / "first", kind, own)
    checkpoint = read_model(str(tmp_path / "first"))
    assert checkpoint["tokenizer"]["hash"] == tokenizer_id(own)["hash"]
    export(str(tmp_path / "first"), str(tmp_path / "second"))
    for name in os.listdir(tmp_path / "first"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_head_of_zeros_is_refused(tmp_path, small):
    """Their head has no bias, and no direction that ours could be added along."""
    network = ours(Scorer, get_tokenizer(small).n_vocab)
    torch.nn.init.zeros_(network.head.weight)
    path = saved(tmp_path / "m.pt", network, small)
    with pytest.raises(ValueError, match=r"m\.pt gives every text the same score"):
        export(path, str(tmp_path / "folder"))
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.update({"head.weight": w["wte.weight"].clone()}), "weights, not"),
        (lambda w: w.update({"rotary.angles": w.pop("wpe.weight")}), "it has rotary.angles"),
    ],
)
def test_a_fork_of_the_model_is_not_exported_as_a_gpt2(tmp_path, enc, change, says):
    model = GPT(GPTConfig(enc.n_vocab, 16, 1, 2, 8))
    weights = dict(model.state_dict())
    change(weights)
    path, folder = str(tmp_path / "fork.pt"), tmp_path / "folder"
    save_checkpoint(path, model, tokenizer_id(enc), {}, weights=weights)
    with pytest.raises(ValueError, match=says):
        export(path, str(folder))
    assert not folder.exists()


def test_weights_that_are_not_finite_are_refused(tmp_path, enc):
    model = ours(vocab=enc.n_vocab)
    save_checkpoint(tmp_path / "m.pt", model, tokenizer_id(enc), {})
    checkpoint = torch.load(tmp_path / "m.pt")
    checkpoint["weights"]["h.1.c_fc.weight"][3, 2] = float("nan")
    torch.save(checkpoint, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"h\.1\.c_fc\.weight .*not finite"):
        export(str(tmp_path / "m.pt"), str(tmp_path / "folder"))
    assert os.listdir(tmp_path) == ["m.pt"]


# -------------------------------------------------------------------------------------------------
# tokenizers


def test_the_tokenizer_cuts_text_as_ours_does(hf, tmp_path, own):
    exported(tmp_path / "folder", GPT, own)
    tokenizer, rng = hf.AutoTokenizer.from_pretrained(tmp_path / "folder"), random.Random(0)
    texts = [*NASTY, TEXT] + [random_text(rng) for _ in range(2000)]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert ids == own.encode_ordinary(text), text
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == own.n_vocab
    assert sorted(tokenizer.get_vocab().values()) == list(range(own.n_vocab))
    end = "an end <|endoftext|> or not"
    assert tokenizer(end)["input_ids"] == own.encode(end, allowed_special="all")


def test_ranks_that_no_merging_made_are_tokens_too(hf, tmp_path):
    """tiktoken merges whatever two neighbours make a token, in the order of the ranks."""
    for seed in range(10):
        rng = random.Random(seed)
        words = {"".join(rng.choices("abc", k=rng.randrange(2, 6))).encode() for _ in range(20)}
        tokens = [bytes([b]) for b in range(256)] + sorted(words, key=lambda _: rng.random())
        path = write_ranks(tmp_path / f"{seed}.tiktoken", {t: n for n, t in enumerate(tokens)})
        exported(tmp_path / f"{seed}", GPT, get_tokenizer(path))
        tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / f"{seed}")
        texts = ["".join(rng.choices("abc ", k=rng.randrange(1, 20))) for _ in range(200)]
        expected = [get_tokenizer(path).encode_ordinary(text) for text in texts]
        assert tokenizer(texts)["input_ids"] == expected


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_special_tokens(hf, tmp_path, small, kind):
    enc, folder = get_tokenizer(small), tmp_path / "folder"
    exported(folder, kind, enc)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    assert enc.decode_single_token_bytes(tokenizer.pad_token_id) == PAD_BYTE == b"\xff"
    for name in ("bos", "eos", "pad"):
        expected = enc._mergeable_ranks[PAD_BYTE] if name == "pad" else enc.eot_token
        assert read_config(folder)[f"{name}_token_id"] == expected
        assert getattr(tokenizer, f"{name}_token_id") == expected
    assert tokenizer.decode([*enc.encode("Hi"), enc.eot_token, tokenizer.pad_token_id]) == (
        f"Hi<|endoftext|>{PAD}"
    )
    assert tokenizer.model_max_length == 64
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # version 4 makes token_type_ids too where nothing is said, whose embeddings GPT-2 adds
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("pattern", [P50K, CL100K], ids=["p50k_base", "cl100k_base"])
def test_the_end_of_text_is_the_tokenizers(hf, tmp_path, monkeypatch, command, pattern):
    """p50k_base cuts as GPT-2 does, and has the end of text amidst its numbers; cl100k_base cuts in
    another way, and has more special tokens, and numbers without any."""
    name = "p50k_base" if pattern == P50K else "cl100k_base"
    tokens = [bytes([b]) for b in range(256)] + learned(60)
    if pattern == P50K:
        ranks = {token: n + (n >= 300) for n, token in enumerate(tokens)}
        special = {"<|endoftext|>": 300}
    else:
        ranks = {token: n for n, token in enumerate(tokens)}
        special = {"<|endoftext|>": 316, "<|fim_prefix|>": 317, "<|endofprompt|>": 330}
    theirs = tiktoken.Encoding(
        name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {name: theirs}.get)
    folder = tmp_path / "folder"
    enc = get_tokenizer(name)
    save_checkpoint(tmp_path / "m.pt", ours(vocab=enc.n_vocab), tokenizer_id(enc), {})
    code, said, _ = command("export", tmp_path / "m.pt", folder)
    assert code == 0 and ("without a tokenizer" in said) == (pattern == CL100K)
    for file in ("config.json", "generation_config.json"):
        found = json.loads((folder / file).read_text())
        assert found["eos_token_id"] == found["bos_token_id"] == special["<|endoftext|>"]
        assert found["pad_token_id"] == 255
    if pattern == P50K:
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        for text in [*NASTY, TEXT]:
            assert tokenizer(text)["input_ids"] == theirs.encode_ordinary(text)
        assert tokenizer.eos_token_id == 300
    else:
        assert not [name for name in os.listdir(folder) if name.startswith("tokenizer")]


def test_nothing_of_a_source_folder_is_copied(tmp_path, small):
    """A folder whose tokenizer.json links to another file would publish that."""
    path = saved(tmp_path / "m.pt", ours(vocab=get_tokenizer(small).n_vocab), small)
    publish(path, tmp_path / "theirs")
    for name in os.listdir(tmp_path / "theirs"):
        if name.endswith(".json"):
            content = json.loads((tmp_path / "theirs" / name).read_text())
            if name == "config.json":
                content["password"] = "secret"
            (tmp_path / f"elsewhere {name}").write_text(json.dumps(content))
            (tmp_path / "theirs" / name).unlink()
            (tmp_path / "theirs" / name).symlink_to(tmp_path / f"elsewhere {name}")
    (tmp_path / "theirs" / "notes.txt").write_text("secret")
    export(str(tmp_path / "theirs"), str(tmp_path / "folder"))
    assert sorted(os.listdir(tmp_path / "folder")) == sorted([*FILES, "generation_config.json"])
    for file in (tmp_path / "folder").iterdir():
        assert not file.is_symlink() and b"secret" not in file.read_bytes()


# -------------------------------------------------------------------------------------------------
# dialogues


def test_the_chat_template_is_ours(hf, tmp_path, own):
    """On ids, whatever people say, and what is trained is marked."""
    exported(tmp_path / "folder", GPT, own)
    tokenizer, rng = hf.AutoTokenizer.from_pretrained(tmp_path / "folder"), random.Random(0)
    turns = set()
    for _ in range(200):
        messages = dialogue(rng)
        said = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert said["input_ids"] == encode_prompt(own, messages)
        messages.append({"role": "assistant", "content": random_text(rng, 8) + "."})
        said = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
        ids, trained = encode_dialogue(own, messages)
        assert said["input_ids"] == ids
        assert list(map(bool, said["assistant_masks"])) == trained
        turns.add(len(messages))
    assert turns >= {2, 3, 4, 5, 6, 7}


def test_a_role_that_no_model_has_seen_is_an_error(hf, tmp_path, enc):
    exported(tmp_path / "folder", GPT, enc)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "folder")
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "42"}])
    assert all(role in CHAT_TEMPLATE for role in data.ROLES)


def test_special_tokens_that_a_user_types_are_special_there_and_text_here(hf, tmp_path, small):
    """The known difference, stated in docs/data.md."""
    exported(tmp_path / "folder", GPT, get_tokenizer(small))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "folder")
    for token in ("<|endoftext|>", PAD):
        assert len(tokenizer(token)["input_ids"]) == 1
        assert len(get_tokenizer(small).encode_ordinary(token)) > 1


# -------------------------------------------------------------------------------------------------
# batches, with the folder's own tokenizer and nothing else said


def test_scores_of_a_padded_batch_are_ours(hf, tmp_path, own):
    network = exported(tmp_path / "folder", Scorer, own, block=256)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "folder")
    other, rng = loaded_by(hf, tmp_path / "folder", AUTO[Scorer]), random.Random(1)
    dialogues = []
    for said in ("Yes.", "No, it is a dog!", "ÿ\x00", "A much longer reply, which nobody reads."):
        reply = {"role": "assistant", "content": said}
        dialogues.append([{"role": "user", "content": random_text(rng, 4) + "?"}, reply])
    expected = []
    for messages in dialogues:
        ids = torch.tensor([encode_dialogue(own, messages)[0]])
        assert ids[0, -1] == own.eot_token
        expected.append(network.score(ids, torch.tensor([ids.shape[1]])).item())
    batch = tokenizer.apply_chat_template(dialogues, padding=True, return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert len({int(n) for n in batch["attention_mask"].sum(1)}) > 2
    with torch.no_grad():
        close(other(**batch).logits[:, 0], torch.tensor(expected))
        close(other(**batch).logits[:, 0], network.score(
            batch["input_ids"], batch["attention_mask"].sum(1)
        ))


def test_a_dialogue_that_is_too_long_loses_its_beginning(hf, tmp_path, small):
    """As here; without its end a reply would have another score."""
    enc = get_tokenizer(small)
    exported(tmp_path / "folder", Scorer, enc)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "folder")
    ids = encode_response(enc, TEXT * 2)
    assert len(ids) > 64
    cut = tokenizer(f" {TEXT * 2}<|endoftext|>", truncation=True)["input_ids"]
    assert cut == ids[-64:]


def ends_early(network, enc, prompt):
    """Have some continuations end: the end of text is what this prompt's fourth token was."""
    ids, _ = generate(network, prompt, torch.tensor(prompt.shape[1:]), 12, -1, temperature=0)
    said = ids[0, prompt.shape[1] + 3]
    with torch.no_grad():
        network.wte.weight[enc.eot_token] = 1.01 * network.wte.weight[said]


def test_a_batch_is_continued_as_ours(hf, tmp_path, own):
    network = ours(GPT, own.n_vocab, 64)
    texts = ["Hello", "What is the capital of that?", "ab", "User: So?\n\nAssistant:", "It is 12"]
    encoded = [own.encode_ordinary(text) for text in texts]
    ends_early(network, own, torch.tensor(encoded[:1]))
    save_checkpoint(tmp_path / "m.pt", network, tokenizer_id(own), {})
    export(str(tmp_path / "m.pt"), str(tmp_path / "folder"))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "folder")
    other = loaded_by(hf, tmp_path / "folder", AUTO[GPT])

    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch["input_ids"].ne(tokenizer.pad_token_id).sum() == sum(map(len, encoded))
    said = other.generate(**batch, do_sample=False, max_new_tokens=12)
    said = said[:, batch["input_ids"].shape[1] :]
    ended = 0
    for ids, theirs in zip(encoded, said, strict=True):
        rows, total = generate(
            network, torch.tensor([ids]), torch.tensor([len(ids)]), 12, own.eot_token, temperature=0
        )
        new = rows[0, len(ids) : total[0]].tolist()
        assert theirs[: len(new)].tolist() == new
        assert set(theirs[len(new) :].tolist()) <= {tokenizer.pad_token_id}
        shown = tokenizer.decode(theirs, skip_special_tokens=True)
        without = [t for t in new if t not in tokenizer.all_special_ids]
        assert shown == own.decode(without)
        ended += len(new) < 12
    assert 0 < ended < len(texts)


def test_samples_are_drawn_as_in_training_if_nothing_is_said(hf, tmp_path, enc):
    exported(tmp_path / "folder", GPT, enc)
    settings = loaded_by(hf, tmp_path / "folder", AUTO[GPT]).generation_config
    assert (settings.do_sample, settings.temperature) == (True, 1.0)
    assert (settings.top_p, settings.top_k) == (1.0, 0)
    assert (settings.max_length, settings.max_new_tokens) == (64, None)
    assert settings.eos_token_id == settings.bos_token_id == enc.eot_token
    assert settings.pad_token_id == enc._mergeable_ranks[PAD_BYTE]


def test_a_pipeline_answers_a_dialogue(hf, tmp_path, enc):
    """Until the context is full, if there is no end."""
    network = exported(tmp_path / "folder", GPT, enc)
    messages = [{"role": "user", "content": "What is the capital of Velia?"}]
    chat = hf.pipeline("text-generation", str(tmp_path / "folder"), device="cpu")
    [shown] = chat(messages, do_sample=False)
    ids = encode_prompt(enc, messages)
    prompt, new = torch.tensor([ids]), 64 - len(ids)
    rows, total = generate(network, prompt, torch.tensor([len(ids)]), new, -1, temperature=0)
    said = enc.decode(rows[0, len(ids) : total[0]].tolist())
    assert total[0] == 64 and enc.eot_token not in rows[0]
    assert shown["generated_text"] == [*messages, {"role": "assistant", "content": said}]


# -------------------------------------------------------------------------------------------------
# all or nothing


def refused(command, *argv):
    """The sentence on stderr."""
    code, printed, said = command("export", *argv)
    assert code == 2 and printed == "" and said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.fixture
def path(tmp_path, small):
    """A checkpoint, alone in its folder."""
    return saved(tmp_path / "m.pt", ours(vocab=get_tokenizer(small).n_vocab), small)


def test_what_is_no_model_makes_no_folder(tmp_path, command):
    assert "none.pt does not exist" in refused(command, tmp_path / "none.pt", tmp_path / "new")
    assert "a folder without a GPT-2" in refused(command, tmp_path, tmp_path / "new")
    assert not os.listdir(tmp_path)


def file(place):
    place.write_text("mine")


def full(place):
    place.mkdir()
    (place / "mine").write_text("mine")


def link(place):
    full(place.parent / "aim")
    place.symlink_to(place.parent / "aim")


def link_to_an_empty_folder(place):
    (place.parent / "aim").mkdir()
    place.symlink_to(place.parent / "aim")


def link_to_nothing(place):
    place.symlink_to(place.parent / "nowhere")


def contents(folder):
    """{path: what it is}, without following links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[path] = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize("make", [file, full, link, link_to_an_empty_folder, link_to_nothing])
def test_nothing_is_overwritten(tmp_path, path, command, make, end):
    make(tmp_path / "taken")
    before = contents(tmp_path)
    said = refused(command, path, f"{tmp_path}/taken{end}")
    assert f"{tmp_path}/taken{end} is there already: name a new folder" in said
    assert contents(tmp_path) == before


def test_what_appears_meanwhile_is_not_overwritten(tmp_path, path, command, monkeypatch):
    monkeypatch.setattr(results, "check_free", lambda folder: None)
    for make in (file, full, link, link_to_nothing):
        place = tmp_path / make.__name__
        place.mkdir()
        make(place / "taken")
        before = contents(tmp_path)
        assert "cannot write" in refused(command, path, place / "taken")
        assert contents(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path, path, command):
    (tmp_path / "new").mkdir()
    assert command("export", path, f"{tmp_path}/new/")[0] == 0
    assert sorted(os.listdir(tmp_path / "new")) == sorted([*FILES, "generation_config.json"])
    assert sorted(os.listdir(tmp_path)) == ["m.pt", "new"]
    again = refused(command, path, tmp_path / "new")
    assert "is there already" in again


@pytest.mark.parametrize("nth", range(5))
def test_a_full_disk_leaves_nothing(tmp_path, path, command, monkeypatch, nth):
    synced, before = [], contents(tmp_path)

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) > nth:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    said = refused(command, path, tmp_path / "new")
    assert f"cannot write {tmp_path}/new (No space left on device): free some space" in said
    assert contents(tmp_path) == before and len(synced) == nth + 1


def test_an_interruption_leaves_nothing(tmp_path, path, monkeypatch):
    def interrupt(weights, f):
        f.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_safetensors", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(path, str(tmp_path / "new"))
    assert os.listdir(tmp_path) == ["m.pt"]


def test_a_place_that_cannot_be_is_a_sentence(tmp_path, path, command):
    (tmp_path / "file").write_text("in the way")
    for place in ("file/folder", "x" * 300, "a" * 250):
        assert "name another folder" in refused(command, path, tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["file", "m.pt"]


def test_others_may_read_it_as_they_may_read_files(tmp_path, path):
    before = os.umask(0o027)
    try:
        export(path, str(tmp_path / "new"))
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "new").iterdir()} == {0o640}


def test_export_needs_both_names(command):
    code, _, said = command("export", "m.pt")
    assert code == 2 and "folder" in said and "Traceback" not in said
