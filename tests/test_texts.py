"""interop/texts.py and the plain text of interop/rows.py: where documents end, tokens on the disk,
what is held out, interruptions, two processes at once."""

import json
import multiprocessing
import os
import random
import tracemalloc
from collections import Counter

import pytest
import tiktoken
import torch
from disk import full_disk
from documents import whole

import interop
from interop import rows, texts
from interop.texts import read_tokens
from interop.tokenizers import GPT2_PATTERN, SANDBOX_PATTERN
from plumbing.results import write_jsonl

WORDS = ["Anna", "sells", "Ökonomie", "don't", "I'll", "3", "1984", "--", "日本", "e\u0301",
         "👩‍👧", "x_y", '"', "(a)"]
GAPS = [" "] * 12 + ["\n"] * 3 + ["\n\n", "  ", "\t", " \n", "\n  ", ".\n", ", "]
# how the tokenizers of GPT-4 and of GPT-4o split text
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
          r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
GUTENBERG = """Licence
*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***
Emma
***END OF THIS PROJECT GUTENBERG EBOOK EMMA***
More
"""
NO_MARKS = "a = b = c\n x = y\n*** stars ***\n<document>\n"


def prose(n, seed=0):
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(n)).strip()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "instructgpt"


@pytest.fixture
def put(tmp_path):
    def put(content, name="x"):
        path = tmp_path / name
        if isinstance(content, list):
            write_jsonl(str(path), [{"text": text} for text in content])
        else:
            path.write_text(content, encoding="utf-8", newline="")
        return str(path)

    return put


def documents_of(tokens, enc):
    *documents, last = enc.decode(tokens.tolist()).split("<|endoftext|>")
    assert last == ""
    return documents


# ------------------------------------------------------------------------------------------------
# where documents end


@pytest.mark.parametrize(("text", "documents"), [
    ("One.\nTwo.\n", ["One.\nTwo.\n"]),
    ("One.\fTwo.\n\f\n \fThree.", ["One.", "Two.\n", "Three."]),
    ("One.<|endoftext|>Two.\n<|endoftext|>\n", ["One.", "Two.\n"]),
    (GUTENBERG, ["Licence\n", "\nEmma\n", "\nMore\n"]),
    ('<doc id="1" title="A">\nA is.\n</doc>\n<doc id="2">\nB.\n</doc>\n', ["\nA is.\n", "\nB.\n"]),
    (" = Robert = \n\n Robert is . \n = = Early = = \n\n He . \n = Anna = \n\n She . \n",
     [" = Robert = \n\n Robert is . \n = = Early = = \n\n He . \n", " = Anna = \n\n She . \n"]),
    (NO_MARKS, [NO_MARKS]),
    (" \n\f\n", []),
])
def test_documents_end_at_form_feeds_and_at_the_marks_of_books(text, documents):
    for size in (1, 3, 7, 1000):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert list(rows.documents(pieces)) == documents


@pytest.mark.parametrize("separator", ["###", "\n\n\n", "a.b"])
def test_a_separator_is_taken_at_its_word_and_replaces_the_marks(separator):
    text = f"One.\fTwo{separator}axb{separator}{separator}Three"
    for size in (1, 2, 5, 100):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert list(rows.documents(pieces, separator)) == ["One.\fTwo", "axb", "Three"]


@pytest.mark.parametrize("seed", range(3))
def test_long_documents_come_in_parts_which_are_the_whole(seed, monkeypatch):
    monkeypatch.setattr(rows, "PART", 50)
    documents = [prose(n, seed) for n in (500, 1, 40, 2000)] + ["x" * 1000, " " * 3 + "y"]
    text = "\f".join(documents)
    for size in (64, 1000):
        found = list(rows.documents(text[i : i + size] for i in range(0, len(text), size)))
        assert whole(found) == documents
        assert max(map(len, found)) <= 100 and len(found) > 30


@pytest.mark.parametrize("pattern", [SANDBOX_PATTERN, GPT2_PATTERN, CL100K, O200K])
def test_parts_have_the_tokens_of_the_whole(pattern, monkeypatch, real):
    """No tokenizer joins what they part: not one that may join each byte with what follows it."""
    monkeypatch.setattr(rows, "PART", 300)
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes([b]) + after for b in range(256) for after in (b" ", b"\t", b"\n")]
    ranks = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    enc = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in (prose(20_000), interop.read_file(real("pretrain/tinyshakespeare.txt"))[:200_000]):
        found = rows.parts(text)
        tokens = [t for part in found for t in enc.encode_ordinary(part)]
        assert len(found) > 200 and tokens == enc.encode_ordinary(text)


# ------------------------------------------------------------------------------------------------
# tokens on the disk


def test_tokens_are_those_of_the_documents(enc, cache, put):
    """The first file's records, the second's parts; in their order, what is held out behind."""
    docs = [f"{n} {prose(20, n)}" for n in range(200)]
    book = prose(4000)
    tokens, start = read_tokens((put(docs, "a"), put(book, "b")), enc, counts := Counter())
    assert tokens.dtype == torch.uint16 and counts["documents"] == 201
    trained, held_out = tokens[:start], tokens[start:]
    assert len(tokens) / 50 <= len(held_out) < len(tokens) / 50 + 4000
    kept = documents_of(trained, enc)
    kept = [text for text in kept if text in docs]
    assert kept == [text for text in docs if text in set(kept)] and len(kept) > 180
    want = Counter(t for text in (*docs, book) for t in (*enc.encode_ordinary(text), enc.eot_token))
    assert Counter(tokens.tolist()) == want


def test_a_second_process_finds_what_the_first_has_made(enc, cache, put, monkeypatch):
    path = put(["Anna.", "Ben.", "Cleo."])
    tokens, start = read_tokens((path,), enc, first := Counter())
    [folder] = cache.iterdir()
    assert sorted(os.listdir(folder)) == ["lock", "made.json", "tokens"]
    monkeypatch.setattr(texts, "read_records", None)
    os.rename(path, path + ".moved")
    again, same = read_tokens((path + ".moved",), enc, second := Counter())
    assert again.tolist() == tokens.tolist() and same == start and first == second


def test_another_text_tokenizer_or_way_of_reading_has_tokens_of_its_own(enc, cache, put, real):
    gpt2 = interop.get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    one, two = put("Anna\nBen##Cleo##Dan", "a"), put("Anna\nBen##Cleo##Eve", "b")
    made = [read_tokens((one,), enc, Counter()), read_tokens((two,), enc, Counter()),
            read_tokens((one, two), enc, Counter()), read_tokens((one,), gpt2, Counter()),
            read_tokens((one,), enc, Counter(), separator="##")]
    assert len(list(cache.iterdir())) == 5
    assert made[4][0].tolist().count(enc.eot_token) == 3


def test_a_tokenizer_of_many_tokens_has_four_bytes_each(cache, put):
    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {f"{n:05}".encode(): 256 + n for n in range(66_000)}
    enc = interop.tokenizers._tokenizer("x", ranks, r"\d{5}|.|\n")
    tokens, _ = read_tokens((put("65999" + "a"),), enc, Counter())
    assert tokens.dtype == torch.int32 and tokens.tolist() == [66_255, 97, enc.eot_token]


@pytest.mark.parametrize("form", ["text", "records"])
def test_a_million_spaces_are_no_panic(form, cache, put, real):
    """tiktoken's regular expressions give up on as many at once."""
    gpt2 = interop.get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    text = "a" + " " * 1_000_000 + "b"
    tokens, _ = read_tokens((put(text if form == "text" else [text]),), gpt2, Counter())
    assert gpt2.decode(tokens.tolist()).replace("<|endoftext|>", "").count(" ") == 1_000_000


def test_what_is_held_out_is_drawn_by_document(enc, cache, put):
    """What is there twice lies on one side, and text that is added moves few."""
    docs = [prose(30, n) for n in range(1500)]
    tokens, start = read_tokens((put(docs + docs),), enc, Counter())
    trained, held_out = (set(documents_of(x, enc)) for x in (tokens[:start], tokens[start:]))
    assert not trained & held_out and trained | held_out == set(docs)
    more = [prose(30, n) for n in range(2000, 2150)]
    tokens, start = read_tokens((put([*more, *docs]),), enc, Counter())
    now = set(documents_of(tokens[start:], enc))
    assert len(now ^ held_out) < len(held_out) / 2
    # neither the first of the text nor the last
    at = [docs.index(text) for text in held_out]
    assert 20 < len(at) < 50 and min(at) < 300 and max(at) > 1200


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 6, 9])
def test_an_interruption_costs_no_more_than_the_batch(enc, cache, put, monkeypatch, after):
    """After any write, to either file: the tokens are the same, and few are made twice."""
    monkeypatch.setattr(texts, "BATCH", 3000)
    path = put([f"{n} {prose(40, n)}" for n in range(100)])
    want, start = read_tokens((path,), enc, Counter())
    want = want.tolist()
    for folder in cache.iterdir():
        os.remove(folder / "made.json")
        os.remove(folder / "tokens")
    real, calls = texts._append, []

    def append(f, array):
        calls.append(len(array))
        if len(calls) == after:
            f.write(array.tobytes()[:7])                   # torn
            f.flush()
            raise Interrupted
        real(f, array)

    monkeypatch.setattr(texts, "_append", append)
    with pytest.raises(Interrupted):
        read_tokens((path,), enc, Counter())
    [folder] = cache.iterdir()
    kept = os.path.getsize(folder / "units") // texts.UNIT.itemsize
    monkeypatch.setattr(texts, "_append", real)
    encoded, encode = [], texts._encoded
    monkeypatch.setattr(texts, "_encoded", lambda *a: encoded.append(len(a[0])) or encode(*a))
    tokens, again = read_tokens((path,), enc, counts := Counter())
    assert (tokens.tolist(), again) == (want, start) and counts["documents"] == 100
    assert sum(encoded) == 100 - kept


def test_what_is_there_a_thousand_times_is_not_all_held_out(enc, cache, put):
    tokens, start = read_tokens((put(["The same."] * 1000),), enc, Counter())
    assert 0.02 * len(tokens) <= len(tokens) - start < 0.03 * len(tokens)


def test_a_text_that_changes_while_it_is_read_is_not_kept(enc, cache, put, monkeypatch):
    path = put([prose(20, n) for n in range(50)])
    real = texts._tokenize

    def slow(*args):
        real(*args)
        put([prose(20, n) for n in range(7)])

    monkeypatch.setattr(texts, "_tokenize", slow)
    with pytest.raises(ValueError, match="x changed while it was read: start again"):
        read_tokens((path,), enc, Counter())
    monkeypatch.setattr(texts, "_tokenize", real)
    tokens, _ = read_tokens((path,), enc, counts := Counter())
    assert counts["documents"] == 7 and tokens.tolist().count(enc.eot_token) == 7


@pytest.mark.parametrize("damage", ["cut", "gone", "empty", "other", "torn"])
def test_a_damaged_cache_is_made_again(enc, cache, put, damage):
    path = put([prose(20, n) for n in range(50)])
    tokens, start = read_tokens((path,), enc, first := Counter())
    want = tokens.tolist()
    [folder] = cache.iterdir()
    if damage == "cut":
        os.truncate(folder / "tokens", 100)
    elif damage == "gone":
        os.remove(folder / "tokens")
    else:
        (folder / "made.json").write_text({"empty": "", "other": "[3]", "torn": '{"held'}[damage])
    again, same = read_tokens((path,), enc, second := Counter())
    assert (again.tolist(), same) == (want, start) and first == second


def test_what_is_held_out_is_not_mixed_in(enc, cache, put):
    """Of the same text --ptx takes what pretraining takes; who measures takes all of it."""
    path = put([f"{n} {prose(20, n)}" for n in range(200)])
    how = {"flag": "--ptx", "n": 0, "seed": 0}
    trained, _ = interop.load_corpus((path,), Counter(), enc, 8, n=0, seed=0)
    mixed = interop.load_text((path,), Counter(), enc, 8, **how)
    assert mixed.flatten().tolist() == trained[: mixed.numel()].tolist()
    assert 0 <= len(trained) - mixed.numel() < 8
    assert interop.load_text((path,), Counter(), enc, 8, whole=True, **how).numel() > len(trained)


def make(path, cache, barrier, results):
    os.environ["XDG_CACHE_HOME"] = cache
    enc = interop.get_tokenizer("sandbox")
    real, made = texts._tokenize, []
    texts._tokenize = lambda *a: made.append(1) or real(*a)
    barrier.wait(20)
    tokens, _ = read_tokens((path,), enc, Counter())
    results.put((len(tokens), len(made)))


def test_two_processes_at_once_make_it_once(tmp_path, put):
    fork = multiprocessing.get_context("fork")
    path, barrier, results = put([prose(40, n) for n in range(300)]), fork.Barrier(2), fork.Queue()
    started = [fork.Process(target=make, args=(path, str(tmp_path / "c"), barrier, results))
               for _ in range(2)]
    for p in started:
        p.start()
    (n, made), (m, also) = results.get(timeout=60), results.get(timeout=60)
    for p in started:
        p.join()
    assert n == m and made + also == 1


def test_bad_records_of_text_are_counted_each_time_and_refused_if_strict(enc, cache, put, capsys):
    path = put('{"text": "Anna."}\n{"text": 3}\n{"text": "Ben."}\n')
    for _ in range(2):
        read_tokens((path,), enc, counts := Counter())
        assert counts["bad records skipped"] == 1 and counts["documents"] == 2
    assert capsys.readouterr().out.count('x, line 2: "text" must be a string') == 1
    with pytest.raises(ValueError, match='x, line 2: "text" must be a string'):
        read_tokens((path,), enc, Counter(), strict=True)


def test_a_cache_that_cannot_be_written_is_a_sentence(enc, tmp_path, put, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", put("a file", "file"))
    with pytest.raises(ValueError, match="cache of tokens .* cannot be written .*XDG_CACHE_HOME"):
        read_tokens((put("Anna."),), enc, Counter())


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_full_disk_is_a_sentence_and_what_was_made_is_kept(enc, cache, put, monkeypatch, limit):
    monkeypatch.setattr(texts, "BATCH", 3000)
    path = put([prose(40, n) for n in range(100)])
    with full_disk(limit), pytest.raises(ValueError, match="cache of tokens .*: free some space"):
        read_tokens((path,), enc, Counter())
    tokens, _ = read_tokens((path,), enc, Counter())
    assert tokens.tolist().count(enc.eot_token) == 100


def test_reading_takes_the_memory_of_a_piece(tmp_path, monkeypatch):
    """4 MB of text and of records, in pieces of 64 kB."""
    monkeypatch.setattr(rows, "PIECE", 2**16)
    line = "Anna sells lamps to Ben. " * 40 + "\n"
    with open(tmp_path / "a", "w", encoding="utf-8") as f:
        f.writelines(line for _ in range(4_000))
    with open(tmp_path / "b", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": line}) + "\n" for _ in range(4_000))
    for name in "ab":
        tracemalloc.start()
        n = sum(len(row["text"]) for _, row in rows.read_rows(str(tmp_path / name), {}))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n > 3_900_000 and peak < os.path.getsize(tmp_path / name) / 4
