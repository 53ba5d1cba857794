"""data.py: the tokenizer, the records and their errors, masks and batches."""

import base64
import json
import os
import random
from collections import Counter

import pytest
import torch

import data
import sandbox

WORDS = ["Anna", "sells", "red", "lamps", "and", "what", "does", "Ben", "do", "in", "Velia", "?"]
NASTY = [
    "",
    " ",
    "naïve café",
    "日本語テキスト",
    "👩‍👩‍👧 🏳️‍🌈",
    "a\x00b\x7f",
    "tab\tnew\nline\r\n\n\n",
    "\u2028\u2029\x85\u200b\ufeff",
    "e\u0301 \u202e rtl",
    "  two  spaces   ",
    "1234 ½ ١٢٣",
    "\U0010ffff\ue000",
    "<|endoftext|>",
    "don't 'LL",
]


def said(*turns):
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def some_words(rng, most=12):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def dialogues(n, seed=0):
    """Demonstrations of one to three exchanges, some with a system message."""
    rng = random.Random(seed)
    for _ in range(n):
        messages = said(*(some_words(rng) for _ in range(2 * rng.randint(1, 3))))
        yield data.Demonstration(
            [{"role": "system", "content": "Be kind."}, *messages] if rng.random() < 0.3 else messages
        )


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


# ------------------------------------------------------------------------------------------------------------
# the tokenizer


def test_sandbox_tokenizer_round_trips_any_text(enc):
    rng = random.Random(0)
    anything = [
        "".join(
            chr(rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
            for _ in range(50)
        )
        for _ in range(200)
    ]
    for text in NASTY + anything + sandbox.corpus(50):
        ids = enc.encode_ordinary(text)
        assert enc.decode(ids) == text
        assert all(0 <= i < enc.n_vocab for i in ids)


def test_sandbox_tokenizer_is_what_the_sandbox_writes(tmp_path, root):
    sandbox.write_ranks(tmp_path / "ranks.tiktoken")
    with open(os.path.join(root, "sandbox.tiktoken"), "rb") as f:
        assert (tmp_path / "ranks.tiktoken").read_bytes() == f.read()


def test_words_of_the_sandbox_are_one_token(enc):
    for word in [*sandbox.PEOPLE, *sandbox.COUNTRIES, *sandbox.CITIES]:
        assert len(enc.encode_ordinary(f" {word}")) == 1


@pytest.mark.parametrize("text", ["<|endoftext|>", "a <|endoftext|> b", "<|endoftext|><|endoftext|>"])
def test_special_tokens_in_text_stay_text(enc, text):
    ids, trained = data.encode_dialogue(enc, said(text, text))
    assert ids.count(enc.eot_token) == 1 and ids[-1] == enc.eot_token and trained[-1]
    assert enc.eot_token not in data.encode_prompt(enc, said(text))
    assert data.pack([text, text], enc).tolist().count(enc.eot_token) == 2  # one behind each document
    assert enc.decode(ids).count(text) >= 2


def test_gpt2_ranks_give_the_ids_of_gpt2(root):
    path = os.path.join(root, "..", "shared", "data", "tokenizer", "gpt2.tiktoken")
    if not os.path.exists(path):
        pytest.skip("the GPT-2 ranks, ../shared/data/tokenizer/gpt2.tiktoken, are not here")
    gpt2 = data.get_tokenizer(path)
    assert gpt2.n_vocab == 50257 and gpt2.eot_token == 50256
    for text, ids in {
        "hello world": [31373, 995],
        "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
        "\n\nHuman: hi\n\nAssistant: ok": [198, 198, 20490, 25, 23105, 198, 198, 48902, 25, 12876],
        "can't won't I'LL": [5171, 470, 1839, 470, 314, 6, 3069],
    }.items():
        assert gpt2.encode_ordinary(text) == ids
    assert gpt2.encode("<|endoftext|>", allowed_special="all") == [50256]


def ranks_file(path, *words):
    tokens = [bytes([b]) for b in range(256)] + [w.encode() for w in words]
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)))
    return str(path)


def test_a_ranks_file_is_read_as_it_is_now(tmp_path):
    """Not as it was when it was read first."""
    path = ranks_file(tmp_path / "mine.tiktoken", "ab")
    first = data.get_tokenizer(path)
    assert first.encode_ordinary("abc") == [256, ord("c")]
    second = data.get_tokenizer(ranks_file(tmp_path / "mine.tiktoken", "bc"))
    assert second.encode_ordinary("abc") == [ord("a"), 256]
    assert data.tokenizer_id(first)["hash"] != data.tokenizer_id(second)["hash"]


def test_tokenizer_id_is_of_the_content(tmp_path):
    one, other = (
        data.tokenizer_id(data.get_tokenizer(ranks_file(tmp_path / f"{name}.tiktoken", "ab")))
        for name in "xy"
    )
    assert one["hash"] == other["hash"] and one["name"] != other["name"]


@pytest.mark.parametrize("name", ["no-such", "missing.tiktoken", "broken.tiktoken"])
def test_unknown_tokenizers_are_a_sentence(tmp_path, name):
    (tmp_path / "broken.tiktoken").write_text("this is no file of ranks\n")
    with pytest.raises(
        ValueError, match="no tokenizer is called no-such|is not a readable file of tiktoken ranks"
    ):
        data.get_tokenizer(name if name == "no-such" else str(tmp_path / name))


# ------------------------------------------------------------------------------------------------------------
# the template and the masks


def test_the_template(enc):
    messages = [{"role": "system", "content": "S"}, *said(" Hi. ", "Hello.", "Bye.")]
    assert enc.decode(data.encode_prompt(enc, messages)) == (
        "System: S\n\nUser: Hi.\n\nAssistant: Hello.<|endoftext|>\n\nUser: Bye.\n\nAssistant:"
    )


def test_a_prompt_and_its_response_are_the_dialogue(enc):
    for r in dialogues(20):
        whole, _ = data.encode_dialogue(enc, r.messages)
        assert (
            data.encode_prompt(enc, r.messages[:-1]) + data.encode_response(enc, r.messages[-1]["content"])
            == whole
        )


def decoded(enc, batch):
    return [enc.decode(ids[1:][mask].tolist()) for ids, mask in zip(batch.ids, batch.mask)]


def test_what_is_trained_on_is_what_the_assistant_said(enc):
    """Every row, every turn, EOS included; and nothing else."""
    records = list(dialogues(60))
    batch = data.tokens_batch(data.encode_demonstrations(records, enc, 500, Counter()))
    assert batch.ids.shape[0] == 60 and batch.mask.shape == (60, batch.ids.shape[1] - 1)
    for r, text in zip(records, decoded(enc, batch), strict=True):
        assert text == "".join(f" {m['content']}{data.EOS}" for m in r.messages if m["role"] == "assistant")


def test_what_is_trained_on_in_the_sandbox(enc):
    records = sandbox.demonstrations(100)
    batch = data.tokens_batch(data.encode_demonstrations(records, enc, 128, Counter()))
    for r, text in zip(records, decoded(enc, batch), strict=True):
        assert text.endswith(f" {r.messages[-1]['content']}{data.EOS}")
        assert text.count(data.EOS) == sum(m["role"] == "assistant" for m in r.messages)


def test_the_last_response_is_never_cut(enc):
    """At any length of the context; a prompt keeps its end; what does not fit is dropped and counted."""
    records = list(dialogues(80, seed=1))
    for block in (4, 8, 16, 30, 60, 120):
        counts, kept = Counter(), []
        for r in records:
            try:
                [row] = data.encode_demonstrations([r], enc, block, counts)
            except ValueError as e:
                assert "longer" in str(e)
                continue
            kept.append((r, row))
        for r, (ids, trained) in kept:
            whole, _ = data.encode_dialogue(enc, r.messages)
            assert len(ids) == len(trained) == min(block, len(whole)) and ids == whole[-len(ids) :]
            reply = data.encode_response(enc, r.messages[-1]["content"])
            assert ids[-len(reply) :] == reply and all(trained[-len(reply) :])
        dropped = counts["demonstrations dropped: the response is too long"]
        assert dropped == 80 - len(kept) == 80 - counts["demonstrations"]
        assert counts["demonstrations cut from the left"] == sum(
            len(data.encode_dialogue(enc, r.messages)[0]) > block for r, _ in kept
        )
        assert dropped > 0 or block > 20


def test_no_demonstration_left_is_an_error(enc):
    with pytest.raises(ValueError, match="no demonstration fits the model's context of 8 tokens"):
        data.encode_demonstrations([data.Demonstration(said("Hi.", "word " * 30))], enc, 8, Counter())


def test_too_long_prompts_are_cut_from_the_left(enc):
    prompts, counts = [data.Prompt(said("one two three four five " * n)) for n in (1, 20)], Counter()
    short, long = data.encode_prompts(prompts, enc, 60, counts)
    assert short == data.encode_prompt(enc, prompts[0].messages)
    assert long == data.encode_prompt(enc, prompts[1].messages)[-60:] and enc.decode(long).endswith(
        "\n\nAssistant:"
    )
    assert counts == {"prompts": 2, "prompts cut from the left": 1}
    with pytest.raises(ValueError, match="--max-new takes the whole context"):
        data.encode_prompts(prompts, enc, 0, Counter())


def test_action_mask_is_the_picture():
    mask = data.action_mask(torch.tensor([3]), torch.tensor([6]), 8)
    assert mask.int().tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    picture = next(line for line in data.__doc__.splitlines() if line.strip().startswith("mask"))
    assert [int(x) for x in picture.split()[1:8]] == mask.int().tolist()[0]


def test_action_mask_is_that_of_a_loop():
    T = 7
    cases = [(p, n) for p in range(1, T + 1) for n in range(p, T + 1)]
    prompt_len, total_len = torch.tensor(cases).T
    mask = data.action_mask(prompt_len, total_len, T)
    assert mask.shape == (len(cases), T - 1) and mask.dtype == torch.bool
    for row, (p, n) in zip(mask, cases):
        for t in range(T - 1):
            assert row[t] == (p <= t + 1 < n)  # column t chooses ids[t+1]


def test_masked_mean():
    x, mask = torch.tensor([[1.0, 5.0], [3.0, 100.0]]), torch.tensor([[True, False], [True, False]])
    assert data.masked_mean(x, mask) == 2
    assert data.masked_mean(x, torch.zeros_like(mask)) == 0


def test_pad_is_on_the_right():
    ids, length = data.pad([[1, 2, 3], [4], [5, 6]], value=9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]] and length.tolist() == [3, 1, 2]


# ------------------------------------------------------------------------------------------------------------
# rankings


def ranking(**fields):
    return {"prompt": "Hi.", "responses": ["a", "b", "c", "d"], **fields}


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({"ranks": [1, 2, 3, 4]}, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        ({"ranks": [1, 2, 2, None]}, [(0, 1), (0, 2)]),
        ({"ranks": [3, 1.5, 3, 1.5]}, [(1, 0), (1, 2), (3, 0), (3, 2)]),
        ({"ranks": [None, 2, None, 0]}, [(3, 1)]),
        ({"comparisons": [[0, 2], [3, 1], [2, 1]]}, [(0, 2), (3, 1), (2, 1)]),
        ({"ranks": [1, 2, 3, 4], "responses": ["a", " a\n", "a", "b"]}, [(0, 3), (1, 3), (2, 3)]),
        ({"comparisons": [[0, 1], [1, 2]], "responses": ["a", "b", "b"]}, [(0, 1)]),
        ({"ranks": [2, 1], "responses": ["", "b"]}, [(1, 0)]),
    ],
)
def test_pairs_of_a_ranking(tmp_path, fields, pairs):
    counts = Counter()
    [r] = data.read_rankings(write(tmp_path / "r.jsonl", ranking(**fields)), counts)
    assert sorted(r.pairs) == sorted(pairs)
    K = len(r.responses)
    assert counts == {"comparisons": len(pairs), "pairs without a preference": K * (K - 1) // 2 - len(pairs)}


def test_tied_prompts_are_skipped_and_counted(tmp_path):
    tied = [
        ranking(ranks=[1, 1, 1, 1]),
        ranking(ranks=[1, None, None, None]),
        ranking(comparisons=[]),
        ranking(ranks=[1, 2], responses=["a", "a"]),
    ]
    counts = Counter()
    [r] = data.read_rankings(write(tmp_path / "r.jsonl", *tied, ranking(ranks=[1, 2, 2, 2])), counts)
    assert r.pairs == [(0, 1), (0, 2), (0, 3)]
    assert counts["prompts skipped: all responses tied"] == 4 and counts["comparisons"] == 3
    assert counts["pairs without a preference"] == 6 + 6 + 6 + 1 + 3
    assert "4 prompts skipped: all responses tied" in data.report(counts)
    with pytest.raises(ValueError, match="holds no ranking with two responses of different rank"):
        data.read_rankings(write(tmp_path / "tied.jsonl", *tied), Counter())


def some_rankings(n, seed=0):
    rng = random.Random(seed)
    for _ in range(n):
        K = rng.randint(2, 5)
        pairs = [(i, j) for i in range(K) for j in range(i + 1, K) if rng.random() < 0.7] or [(0, 1)]
        yield data.Ranking(said(some_words(rng, 40)), [some_words(rng, 20) for _ in range(K)], pairs)


def test_responses_of_rankings_are_whole_or_dropped(enc):
    """Prompt and response fit the context; each pair is of the same two texts as before."""
    records = list(some_rankings(60))
    for block in (16, 24, 40, 400):
        counts, found = Counter(), {}
        for i, r in enumerate(records):
            try:
                [found[i]] = data.encode_rankings([r], enc, block, counts)
            except ValueError as e:
                assert "no ranking fits" in str(e)
        for i, r in enumerate(records):
            fits = [len(enc.encode_ordinary(f" {x}")) + 1 <= block // 2 for x in r.responses]
            expected = {(r.responses[a], r.responses[b]) for a, b in r.pairs if fits[a] and fits[b]}
            assert (i in found) == bool(expected)
            if i in found:
                text = [enc.decode(x).removesuffix(data.EOS).strip() for x in found[i].responses]
                assert {(text[a], text[b]) for a, b in found[i].pairs} == expected
                assert {k for p in found[i].pairs for k in p} == set(range(len(text)))
                prompt = data.encode_prompt(enc, r.messages)
                assert prompt[-len(found[i].prompt) :] == found[i].prompt
                longest = max(map(len, found[i].responses))
                assert len(found[i].prompt) == min(len(prompt), block - longest)
        assert counts["rankings"] == len(found)
        assert counts["prompts skipped: no two responses fit"] == 60 - len(found)
        assert (counts["responses dropped: too long"] > 0) == (block < 40 or len(found) < 60)


def test_rankings_batch(enc):
    encoded = data.encode_rankings(list(some_rankings(7)), enc, 400, Counter())
    batch = data.rankings_batch(encoded)
    assert batch.weight.sum().item() == pytest.approx(7)
    assert batch.prompts.ids.shape[0] == 7 and len(batch.ids) == sum(len(r.responses) for r in encoded)
    rows = [(b, x) for b, r in enumerate(encoded) for x in r.responses]
    for (b, x), ids, n, owner in zip(rows, batch.ids, batch.length, batch.owner, strict=True):
        assert ids[:n].tolist() == x and owner == b
    pairs = [
        (b, r.responses[i], r.responses[j], 1 / len(r.pairs))
        for b, r in enumerate(encoded)
        for i, j in r.pairs
    ]
    for (b, x, y, share), i, j, w in zip(pairs, batch.better, batch.worse, batch.weight, strict=True):
        assert rows[i] == (b, x) and rows[j] == (b, y) and w.item() == pytest.approx(share)


# ------------------------------------------------------------------------------------------------------------
# batches and splits


@pytest.mark.parametrize(("n", "size"), [(10, 3), (7, 7), (4, 9), (1, 2)])
def test_rows_at_is_a_permutation_of_every_epoch(n, size):
    steps = [data.rows_at(s, n, size, 0) for s in range(4 * n)]
    assert all(len(rows) == size for rows in steps)
    row = [i for rows in steps for i in rows]
    epochs = [row[e : e + n] for e in range(0, len(row), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n < 4 or len({tuple(epoch) for epoch in epochs}) > 1


def test_rows_at_is_a_function_of_step_and_seed_only():
    assert [data.rows_at(5, 100, 8, 3) for _ in range(2)] == [data.rows_at(5, 100, 8, 3)] * 2
    random.seed(1)
    torch.manual_seed(1)
    state = random.getstate()
    assert data.rows_at(5, 100, 8, 3) != data.rows_at(5, 100, 8, 4)
    assert random.getstate() == state


def test_chunks():
    assert data.chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert data.chunks([1, 2, 3], 0) == data.chunks([1, 2, 3], 9) == [[1, 2, 3]]


def test_pack_and_text_batch(enc):
    docs = ["Anna sells.", "", "<|endoftext|>", "Ben."] * 3
    tokens = data.pack(docs, enc)
    assert enc.decode(tokens.tolist()) == "".join(d + data.EOS for d in docs)
    ids, mask = data.text_batch(tokens, [2, 0], 5)
    assert (
        ids.tolist() == [tokens[10:15].tolist(), tokens[:5].tolist()] and mask.shape == (2, 4) and mask.all()
    )


def test_split_keeps_a_prompt_on_one_side():
    """Whatever its responses are, and whichever stage reads it."""
    prompts = [said(f"question {i}") for i in range(500)]
    records = [
        data.Demonstration([*p, {"role": "assistant", "content": f"{answer}"}])
        for p in prompts
        for answer in range(2)
    ]
    rest, held = data.split(records, 0.2)
    assert len(rest) + len(held) == 1000 and 130 < len(held) < 270
    asked = lambda rs: {r.messages[0]["content"] for r in rs}
    assert not asked(rest) & asked(held)
    for other in (
        [data.Prompt(p) for p in prompts],
        [data.Ranking(p, ["a", "b"], [(0, 1)]) for p in prompts],
    ):
        assert asked(data.split(other, 0.2)[1]) == asked(held)
    assert data.split(records, 0.2, seed=1)[1] != held and data.split(records, 0)[1] == []


# ------------------------------------------------------------------------------------------------------------
# files


def test_records_of_every_kind(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        {"prompt": "Hi.", "response": "Ho.", "use_case": "chat"},
        {"messages": said("a", "b", "c", "d")},
        {"prompt": said("a", "b", "c"), "response": "d"},
    )
    one, two, three = data.read_demonstrations(path)
    assert one == data.Demonstration(said("Hi.", "Ho."), "chat") and two == three == data.Demonstration(
        said("a", "b", "c", "d")
    )
    assert data.read_prompts(write(tmp_path / "p.jsonl", {"prompt": "Hi."})) == [data.Prompt(said("Hi."))]
    assert data.read_text(write(tmp_path / "t.jsonl", {"text": "a\nb"}, {"text": "c"})) == ["a\nb", "c"]
    (tmp_path / "t.txt").write_bytes("\ufeffa\n\nb é\n".encode())
    assert data.read_text(str(tmp_path / "t.txt")) == ["a\n\nb é\n"]


def test_what_is_written_is_read_again(tmp_path):
    """Line separators of Unicode inside a text do not end a record."""
    records = [{"prompt": said(text or "x"), "response": text} for text in NASTY]
    path = str(tmp_path / "x.jsonl")
    data.write_jsonl(path, records)
    assert [r for _, r in data.read_records(path)] == records
    assert [where for where, _ in data.read_records(path)][-1] == f"{path}, line {len(NASTY)}"
    assert os.listdir(tmp_path) == ["x.jsonl"]


def test_empty_lines_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \r\n{"prompt": "b"}')
    assert [r.messages[0]["content"] for r in data.read_prompts(str(tmp_path / "x.jsonl"))] == ["a", "b"]


def read_rankings(path):
    return data.read_rankings(path, Counter())


GOOD = {
    data.read_demonstrations: {"prompt": "a", "response": "b"},
    data.read_prompts: {"prompt": "a"},
    read_rankings: {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]},
    data.read_text: {"text": "a"},
}


@pytest.mark.parametrize("read", GOOD)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ', "not JSON .*column"),
        (b"[1]", "a record is a JSON object, got a list"),
        (b'"x"', "got a str"),
        (b'{"a": "\xff"}', "is not UTF-8; convert it"),
        (b"{}", '"(prompt|responses|text)" is missing; the record has no fields'),
    ],
)
def test_bad_lines_are_named(tmp_path, read, line, message):
    """Every reader, with file and line."""
    path = tmp_path / "bad.jsonl"
    good = json.dumps(GOOD[read]).encode() + b"\n\n"
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{message}") as e:
        read(str(path))
    if b"\xff" in line:
        assert f"byte {len(good) + 7} " in str(e.value)


@pytest.mark.parametrize("read", GOOD)
def test_missing_and_empty_files_are_named(tmp_path, read):
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        read(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no"):
        read(str(tmp_path / "empty.jsonl"))


def test_plain_text_errors_name_the_line(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"one\ntwo \xe9t\xe9\n")
    with pytest.raises(ValueError, match=r"t\.txt, line 2: byte 8 is not UTF-8"):
        data.read_text(str(tmp_path / "t.txt"))


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (data.read_demonstrations, {"prompt": "a", "response": "  "}, "the response is empty"),
        (
            data.read_demonstrations,
            {"prompt": "a", "response": None},
            "a response must be a string, got NoneType",
        ),
        (data.read_demonstrations, {"prompt": "a"}, '"response" is missing; the record has prompt'),
        (data.read_demonstrations, {"prompt": " ", "response": "b"}, "the prompt is empty"),
        (data.read_demonstrations, {"messages": [USER]}, "the last message must be the assistant's"),
        (
            data.read_demonstrations,
            {"messages": [USER, {"role": "assistant", "content": ""}]},
            "the response is empty",
        ),
        (data.read_demonstrations, {"messages": "a"}, "the last message must be the assistant's"),
        (data.read_prompts, {"prompt": 3}, '"prompt" must be a string or a list of'),
        (data.read_prompts, {"prompt": []}, '"prompt" must be a string or a list of'),
        (
            data.read_prompts,
            {"prompt": [{"role": "robot", "content": "a"}]},
            '"prompt" must be a string or a list of',
        ),
        (
            data.read_prompts,
            {"prompt": [{"role": "user", "content": 1}]},
            '"prompt" must be a string or a list of',
        ),
        (data.read_prompts, {"prompt": [{"role": "user"}]}, '"prompt" must be a string or a list of'),
        (
            data.read_prompts,
            {"prompt": [{"role": ["user"], "content": "a"}]},
            '"prompt" must be a string or a list of',
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b"], "ranks": [1]},
            '"responses" must be a list of at least two',
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": "bc", "ranks": [1, 2]},
            '"responses" must be a list of at least two',
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", 2], "ranks": [1, 2]},
            "a response must be a string, got int",
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"]},
            '"ranks" is missing; the record has prompt, responses',
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"], "ranks": [1]},
            "a number or null for each of the 2 responses",
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"], "ranks": ["1", "2"]},
            "a number or null for each of the 2",
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"], "ranks": 1},
            "a number or null for each of the 2 responses",
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"], "comparisons": [[0, 2]]},
            "indices from 0 to 1",
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"], "comparisons": [[-1, 0]]},
            "indices from 0 to 1",
        ),
        (
            read_rankings,
            {"prompt": "a", "responses": ["b", "c"], "comparisons": [0, 1]},
            "indices from 0 to 1",
        ),
        (
            read_rankings,
            {"prompt": 1, "responses": ["b", "c"], "ranks": [1, 2]},
            '"prompt" must be a string or a list of',
        ),
        (data.read_text, {"text": ["a"]}, '"text" must be a string'),
    ],
)
def test_wrong_records_are_named(tmp_path, read, record, message):
    path = write(tmp_path / "x.jsonl", GOOD[read], record)
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 2: .*{message}"):
        read(path)


def test_a_folder_that_does_not_exist_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot write .*--out"):
        data.write_jsonl(str(tmp_path / "no" / "x.jsonl"), [{}])
