"""interop/tokenizers.py: the sandbox's, tiktoken's, files of ranks, folders; what a checkpoint
holds of its tokenizer; what is refused."""

import base64
import http.server
import json
import os
import random
import shutil
import threading

import pytest
import tiktoken
from folders import NASTY, TEXT, hash_of, publish_tokenizer, write_ranks

import sandbox
from data import encode_dialogue, encode_prompt
from interop import (
    EOS,
    get_tokenizer,
    read_file,
    tokenizer_files_of,
    tokenizer_id,
    tokenizer_of,
    tokenizers,
)
from interop.texts import pack
from interop.tokenizers import CHARACTER, GPT2_PATTERN, stored_tokenizer

BYTES = [bytes([b]) for b in range(256)]


def said(*turns):
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


# ------------------------------------------------------------------------------------------------
# by name


def test_the_tokenizer_of_the_sandbox_round_trips_any_text(enc):
    rng = random.Random(0)
    ranges = [(0, 128), (0, 0xD800), (0xE000, 0x110000)]
    characters = [chr(rng.randrange(*rng.choice(ranges))) for _ in range(10_000)]
    anything = ["".join(characters[i : i + 50]) for i in range(0, len(characters), 50)]
    for text in NASTY + anything + sandbox.corpus(50):
        ids = enc.encode_ordinary(text)
        assert enc.decode(ids) == text
        assert all(0 <= i < enc.n_vocab for i in ids)


def test_words_of_the_sandbox_are_one_token(enc):
    for word in [*sandbox.PEOPLE, *sandbox.COUNTRIES, *sandbox.CITIES]:
        assert len(enc.encode_ordinary(f" {word}")) == 1


def test_the_name_sandbox_is_never_a_folder(tmp_path, monkeypatch, enc):
    """As the one in the root of this project."""
    (tmp_path / "sandbox").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tokenizer_id(get_tokenizer("sandbox")) == tokenizer_id(enc)


@pytest.mark.parametrize("text", [EOS, f"a {EOS} b", EOS + EOS])
def test_special_tokens_in_text_stay_text(enc, text):
    ids, trained = encode_dialogue(enc, said(text, text))
    assert ids.count(enc.eot_token) == 1 and ids[-1] == enc.eot_token and trained[-1]
    assert enc.eot_token not in encode_prompt(enc, said(text))
    assert pack([text, text], enc).tolist().count(enc.eot_token) == 2  # one behind each document
    assert enc.decode(ids).count(text) >= 2


def test_gpt2_ranks_give_the_ids_of_gpt2(real):
    gpt2 = get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    assert gpt2.n_vocab == 50257 and gpt2.eot_token == 50256
    for text, ids in {
        "hello world": [31373, 995],
        "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
        "\n\nHuman: hi\n\nAssistant: ok": [198, 198, 20490, 25, 23105, 198, 198, 48902, 25, 12876],
        "can't won't I'LL": [5171, 470, 1839, 470, 314, 6, 3069],
    }.items():
        assert gpt2.encode_ordinary(text) == ids
    assert gpt2.encode(EOS, allowed_special="all") == [50256]
    assert len(gpt2.encode_ordinary(read_file(real("pretrain/tinyshakespeare.txt")))) == 338_025


def ranks_file(path, *words):
    tokens = [bytes([b]) for b in range(256)] + [w.encode() for w in words]
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)]
    path.write_text("".join(lines))
    return str(path)


def test_a_file_of_ranks_is_read_as_it_is_now(tmp_path):
    """Not as it was when it was read first."""
    path = ranks_file(tmp_path / "mine.tiktoken", "ab")
    first = get_tokenizer(path)
    assert first.encode_ordinary("abc") == [256, ord("c")]
    second = get_tokenizer(ranks_file(tmp_path / "mine.tiktoken", "bc"))
    assert second.encode_ordinary("abc") == [ord("a"), 256]
    assert tokenizer_id(first)["hash"] != tokenizer_id(second)["hash"]


def test_the_id_of_a_tokenizer_is_of_its_content(tmp_path):
    files = [ranks_file(tmp_path / f"{name}.tiktoken", "ab") for name in "xy"]
    one, other = (tokenizer_id(get_tokenizer(file)) for file in files)
    assert one["hash"] == other["hash"] and one["name"] != other["name"]


NO_RANKS = "is not a readable file of tiktoken ranks"


@pytest.mark.parametrize(("name", "says"), [
    ("no-such", "no tokenizer is called no-such"),
    ("missing.tiktoken", "missing.tiktoken does not exist"),
    ("broken.tiktoken", NO_RANKS), ("empty.tiktoken", NO_RANKS),
    ("folder", "folder has no tokenizer of GPT-2's kind"),
])
def test_unknown_tokenizers_are_a_sentence(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.tiktoken").write_text("this is no file of ranks\n")
    (tmp_path / "empty.tiktoken").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=says):
        get_tokenizer(name)


def test_the_files_of_a_tokenizer(tmp_path, monkeypatch, small):
    """All that a stage must know to tell whether a tokenizer has changed."""
    monkeypatch.chdir(tmp_path)
    for folder in ("sandbox", "both", "one", "none"):
        os.mkdir(folder)
    publish_tokenizer(small, "sandbox")                      # a name that is never a folder
    publish_tokenizer(small, "both")
    open("both/tokenizer.json", "w").close()                 # is not read beside the two
    open("one/tokenizer.json", "w").close()
    expected = {
        "sandbox": (),
        "gpt2": (),
        "none": (),
        "a/mine.tiktoken": ("a/mine.tiktoken",),
        "both": ("both/vocab.json", "both/merges.txt"),
        "one": ("one/tokenizer.json",),
    }
    assert {name: tokenizer_files_of(name) for name in expected} == expected


def numbered(tokens, first=0):
    return {token: n for n, token in enumerate(tokens, first)}


@pytest.mark.parametrize(("ranks", "says"), [
    (numbered(BYTES) | {b"ab": 258, b"abc": 259}, "has numbers without a token"),
    (numbered(BYTES) | {b"ab": 255}, "has numbers without a token"),
    (numbered(BYTES) | {b"ab": -1}, "has numbers without a token"),
    (numbered(BYTES) | {b"ab": 10**30}, "has numbers without a token"),
    (numbered(BYTES, 2), "has numbers without a token"),
    (numbered([*BYTES[:-1], b"ab"]), "has no token for some bytes"),
    (numbered([*BYTES, b"a" * 257]), "has a token of 257 bytes, and at most 256 are read"),
])
def test_a_tokenizer_with_ids_without_text_or_text_without_ids_is_refused(tmp_path, ranks, says):
    with pytest.raises(ValueError, match=f"mine.tiktoken {says}"):
        get_tokenizer(write_ranks(tmp_path / "mine.tiktoken", ranks))


def test_a_token_may_be_long(tmp_path):
    ranks = numbered([*BYTES, b"a" * 256])
    assert get_tokenizer(write_ranks(tmp_path / "mine.tiktoken", ranks)).n_vocab == 258


def test_the_end_of_text_has_the_first_free_number(tmp_path):
    """As that of p50k_base, which has tokens behind it."""
    ranks = numbered(BYTES) | {b"ab": 257}
    enc = get_tokenizer(write_ranks(tmp_path / "mine.tiktoken", ranks))
    assert (enc.eot_token, enc.n_vocab) == (256, 258)
    assert all(enc.decode_bytes([i]) for i in range(enc.n_vocab))


@pytest.mark.parametrize("line", ["YQ== 300", "YQ== 1 2", "YQ== one", "!!! 256", "YQ== 256"])
def test_a_line_that_is_no_rank_is_refused(tmp_path, line):
    """Among good ones; the last is a second number for "a"."""
    path = ranks_file(tmp_path / "mine.tiktoken")
    with open(path, "a") as f:
        f.write(f"{line}\n")
    with pytest.raises(ValueError, match="mine.tiktoken " + NO_RANKS):
        get_tokenizer(path)


# ------------------------------------------------------------------------------------------------
# tiktoken's


def with_gaps(name="cl100k_base"):
    """Laid out as tiktoken's newer tokenizers: special tokens behind the ranks, with gaps."""
    special = {EOS: 258, "<|fim_prefix|>": 259, "<|endofprompt|>": 265}
    ranks = numbered([*BYTES, b"ab"])
    return tiktoken.Encoding(name, pat_str=r"\p{L}+|.|\s", mergeable_ranks=ranks,
                             special_tokens=special)


def test_every_id_of_a_tokenizer_of_tiktoken_has_text(monkeypatch):
    theirs = with_gaps()
    with pytest.raises(KeyError):
        theirs.decode([257])
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": theirs}.get)
    enc = get_tokenizer("cl100k_base")
    assert (enc.n_vocab, enc.eot_token) == (258, 257)
    assert all(enc.decode_bytes([i]) for i in range(enc.n_vocab))
    assert enc.encode_ordinary("ab abc") == theirs.encode_ordinary("ab abc")
    assert tokenizer_id(enc).keys() == {"name", "hash"}
    assert hash_of(stored_tokenizer(tokenizer_id(enc))) == hash_of(enc)


def test_gpt2s_pattern_has_one_hash(monkeypatch, small):
    """tiktoken's versions write it in several ways, and several of its tokenizers have it."""
    ranks = get_tokenizer(small)._mergeable_ranks
    names = ["gpt2", "r50k_base", "p50k_base"]
    theirs = {}
    for name, pattern in zip(names, (GPT2_PATTERN, r"\p{L}+|.", r"\p{L}++|.")):
        theirs[name] = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks,
                                         special_tokens={EOS: len(ranks)})
    monkeypatch.setattr(tiktoken, "get_encoding", theirs.get)
    assert {hash_of(get_tokenizer(name)) for name in names} == {hash_of(small)}


@pytest.mark.parametrize(
    ("how", "what"), [("silent", "ReadTimeout"), ("portal", "ValueError"), ("gone", "HTTPError")]
)
def test_a_download_of_tiktokens_that_fails_is_a_sentence(tmp_path, monkeypatch, how, what):
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if how == "silent":
                over.wait(3)
            self.send_response(404 if how == "gone" else 200)
            self.end_headers()
            self.wfile.write(b"<html>Please log in.</html>")

        def log_message(self, *args):
            pass

    def download(name):
        url = f"http://127.0.0.1:{served.server_port}/{name}"
        return tiktoken.load.load_tiktoken_bpe(url, expected_hash="0" * 64)

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tokenizers, "TIMEOUT", 0.2 if how == "silent" else 20)
    monkeypatch.setattr(tiktoken, "get_encoding", download)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}).start()
        with pytest.raises(ValueError, match=f"gpt2 could not be .*{what}") as refused:
            get_tokenizer("gpt2")
        over.set()
        served.shutdown()
    assert "log in" not in str(refused.value) and not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------------
# what a checkpoint holds


def of(own, vocab_size=1000):
    return {"tokenizer": own, "config": {"vocab_size": vocab_size}}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_checkpoint_holds_its_tokenizer(tmp_path, small, kind):
    """Wherever its file was, and is now; what it says is the same each time."""
    source = tmp_path / ("secret/mine.tiktoken" if kind == "file" else "secret/mine")
    os.makedirs(source.parent)
    if kind == "file":
        shutil.copy(small, source)
    else:
        os.makedirs(source)
        publish_tokenizer(small, str(source))
    own = tokenizer_id(get_tokenizer(str(source)))
    assert own["name"] == source.name + ("" if kind == "file" else "/")
    assert "secret" not in json.dumps(own) and own.keys() == {"name", "hash", "ranks"}
    shutil.rmtree(tmp_path / "secret")
    enc = tokenizer_of(of(own))
    assert tokenizer_id(enc) == own and own["hash"] == hash_of(small)
    assert [enc.encode_ordinary(x) for x in NASTY] == [
        get_tokenizer(small).encode_ordinary(x) for x in NASTY
    ]


def test_the_sandboxs_and_tiktokens_are_held_by_name(enc):
    assert tokenizer_id(enc) == {"name": "sandbox", "hash": hash_of(enc)}
    assert tokenizer_of(of(tokenizer_id(enc))).name == "sandbox"


@pytest.mark.parametrize("name", ["gpt2", "sandbox", "cl100k_base"])
def test_a_folder_that_is_called_as_one_of_tiktokens_is_not_taken_for_it(
    tmp_path, monkeypatch, small, name
):
    monkeypatch.chdir(tmp_path)
    os.makedirs(f"in/{name}")
    publish_tokenizer(small, f"in/{name}")
    own = tokenizer_id(get_tokenizer(f"in/{name}"))
    assert tokenizer_id(tokenizer_of(of(own))) == own and hash_of(small) == own["hash"]


def test_a_name_in_a_checkpoint_is_not_opened(tmp_path, monkeypatch, small):
    """Neither a folder nor a file, wherever they are; and a folder does not take the place of one
    of tiktoken's."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("gpt2")
    publish_tokenizer(small, "gpt2")
    shutil.copy(small, "mine.tiktoken")
    for name in (str(tmp_path / "gpt2"), "./gpt2", "gpt2/", "mine.tiktoken", small, ""):
        with pytest.raises(ValueError, match="is not in its file"):
            tokenizer_of(of({"name": name, "hash": ""}))
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": with_gaps("gpt2")}.get)
    assert tokenizer_of(of({"name": "gpt2", "hash": ""})).n_vocab == 258


def test_ranks_in_a_checkpoint_that_were_changed_are_refused(small):
    own = tokenizer_id(get_tokenizer(small))
    lines = own["ranks"].splitlines()
    (a, n), (b, m) = lines[-1].split(), lines[-2].split()
    swapped = "\n".join([*lines[:-2], f"{b} {n}", f"{a} {m}"])
    for ranks, says in [
        (swapped, "has changed since the model was trained"),
        ("\n".join(lines[:-1]), "has changed since the model was trained"),
        ("", NO_RANKS), ("\u2028 1", NO_RANKS), (None, "is not in its file"),
        ([1], "is not in its file"),
    ]:
        with pytest.raises(ValueError, match=says):
            tokenizer_of(of(own | {"ranks": ranks}))


def test_the_same_text_is_read_once(tmp_path, small, monkeypatch):
    """And another one anew, as the test above of a file that changes says."""
    own = tokenizer_id(get_tokenizer(str(shutil.copy(small, tmp_path / "mine.tiktoken"))))
    monkeypatch.setattr(tiktoken, "Encoding", None)
    assert tokenizer_of(of(own)) is get_tokenizer(str(tmp_path / "mine.tiktoken"))


# ------------------------------------------------------------------------------------------------
# folders


@pytest.fixture
def folder(tmp_path, small):
    """One with GPT-2's files of a small tokenizer."""
    os.makedirs(tmp_path / "folder")
    publish_tokenizer(small, str(tmp_path / "folder"))
    return tmp_path / "folder"


def as_one_file(folder, **more):
    """Make tokenizer.json of vocab.json and merges.txt."""
    merges = (folder / "merges.txt").read_text().split("\n")[1:-1]
    model = {"type": "BPE", "vocab": json.loads((folder / "vocab.json").read_text())}
    step = {"type": "ByteLevel", "add_prefix_space": False}
    found = {"pre_tokenizer": step, "model": model | {"merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(found | more))
    (folder / "merges.txt").unlink()


@pytest.mark.parametrize("save", [True, False])
def test_a_tokenizer_json_is_read(hf, folder, small, save):
    """Of older transformers, or as it writes it today."""
    if save:
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        hf.AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "new")
        assert not (folder / "new" / "merges.txt").exists()
    else:
        as_one_file(folder)
    enc = get_tokenizer(str(folder / "new" if save else folder))
    assert hash_of(enc) == hash_of(small) and len(enc.encode_ordinary(TEXT)) < len(TEXT) / 2


@pytest.mark.parametrize("more", [
    {"pre_tokenizer": None},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
    {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated"},
        {"type": "ByteLevel", "use_regex": False}]}},
    {"normalizer": {"type": "NFC"}},
])
def test_a_tokenizer_json_that_cuts_text_in_another_way_is_refused(folder, more):
    as_one_file(folder, **more)
    with pytest.raises(ValueError, match="folder has no tokenizer .*: it cuts text in another way"):
        get_tokenizer(str(folder))


def change_vocab(change):
    def changed(folder):
        vocab = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(change(vocab)))
    return changed


def merges_backwards(folder):
    first, *lines = (folder / "merges.txt").read_text().split("\n")[:-1]
    (folder / "merges.txt").write_text("\n".join([first, *lines[::-1]]))


@pytest.mark.parametrize(("damage", "says"), [
    (merges_backwards, "its tokens are not in the order of its merges"),
    (change_vocab(list), r"vocab\.json is no vocabulary"),
    (change_vocab(lambda v: v | {"A": 1.5}), r"vocab\.json is no vocabulary"),
    (change_vocab(lambda v: v | {"A": True}), r"vocab\.json is no vocabulary"),
    (change_vocab(lambda v: v | {"A": None}), r"vocab\.json is no vocabulary"),
    (change_vocab(lambda v: v | {"new": 400}), "has numbers without a token"),
    (change_vocab(lambda v: v | {"new": 3}), "has numbers without a token"),
    (change_vocab(lambda v: v | {"new": -3}), "has numbers without a token"),
    (change_vocab(lambda v: v | {"": 317}), "is not a readable file of tiktoken ranks"),
    (change_vocab(lambda v: v | {EOS: 400}), "not in the order"),
    (change_vocab(lambda v: {k: n for k, n in v.items() if k != "A"}), "has no token for"),
    (change_vocab(lambda v: v | {"漢": 317}), "merges or tokens are written in another way"),
    (change_vocab(lambda v: {}), "merges or tokens are written in another way"),
    (lambda folder: (folder / "merges.txt").write_text("a b c\nd"), "in another way"),
    (lambda folder: (folder / "merges.txt").write_bytes(b"\xff"), "merges.txt, line 1"),
    (lambda folder: (folder / "vocab.json").write_text("[" * 100_000), "is not readable JSON"),
    (lambda folder: (folder / "vocab.json").write_text("9" * 5000), "is not readable JSON"),
])
def test_a_damaged_tokenizer_of_a_folder_is_a_sentence(folder, damage, says):
    damage(folder)
    with pytest.raises(ValueError, match=says) as refused:
        get_tokenizer(str(folder))
    assert "folder" in str(refused.value) and "\n" not in str(refused.value)


def test_a_link_to_something_else_is_not_repeated(folder, tmp_path):
    (tmp_path / "secret").write_text("root:hunter2")
    (folder / "merges.txt").unlink()
    for content in ("root:hunter2", '{"model": {"vocab": "hunter2", "merges": ["hunter2"]}}'):
        (tmp_path / "secret").write_text(content)
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match="tokenizer.json is") as refused:
            get_tokenizer(str(folder))
        assert "hunter2" not in str(refused.value)


def test_the_pad_of_an_exported_folder_is_a_byte(folder, small):
    """Whose token no text has."""
    def pad(vocab):
        last = CHARACTER[255]
        return {k.replace(last, "<|pad|>") if k == last else k: n for k, n in vocab.items()}

    change_vocab(pad)(folder)
    assert "<|pad|>" in (folder / "vocab.json").read_text()
    assert hash_of(get_tokenizer(str(folder))) == hash_of(small)


def test_the_sandboxs_tokenizer_comes_back_from_a_folder(folder, enc):
    publish_tokenizer(enc, str(folder))
    with pytest.raises(ValueError, match="it cuts text in another way"):
        get_tokenizer(str(folder))
    cut = {"type": "Split", "pattern": {"Regex": enc._pat_str}, "behavior": "Isolated"}
    steps = [cut, {"type": "ByteLevel", "use_regex": False}]
    as_one_file(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    assert tokenizer_id(get_tokenizer(str(folder))) == tokenizer_id(enc)


@pytest.mark.parametrize("text", ["a" + " " * 1_000_000 + "b", "\n" * 300_000, "x" * 200_000])
def test_a_prompt_of_a_million_spaces_is_no_panic(text, real):
    enc = get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    assert enc.decode(enc.encode_ordinary(text)) == text


def test_a_long_text_has_the_tokens_that_tiktoken_gives_it(real):
    enc = get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    text = read_file(real("pretrain/tinyshakespeare.txt"))
    assert enc.encode_ordinary(text) == tiktoken.Encoding.encode_ordinary(enc, text)
