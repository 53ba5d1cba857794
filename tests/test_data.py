"""data.py: the tokenizer, the records and their errors, masks and batches."""

import base64
import os
import random
from collections import Counter

import pytest
import torch

import data
import formats
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


def told(*records):
    """Records as formats.read_records yields them."""
    return [(f"x.jsonl, line {n}", r) for n, r in enumerate(records, 1)]


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


def test_gpt2_ranks_give_the_ids_of_gpt2(real):
    gpt2 = data.get_tokenizer(real("tokenizer/gpt2.tiktoken"))
    assert gpt2.n_vocab == 50257 and gpt2.eot_token == 50256
    for text, ids in {
        "hello world": [31373, 995],
        "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
        "\n\nHuman: hi\n\nAssistant: ok": [198, 198, 20490, 25, 23105, 198, 198, 48902, 25, 12876],
        "can't won't I'LL": [5171, 470, 1839, 470, 314, 6, 3069],
    }.items():
        assert gpt2.encode_ordinary(text) == ids
    assert gpt2.encode("<|endoftext|>", allowed_special="all") == [50256]
    assert len(gpt2.encode_ordinary(data.read_file(real("pretrain/tinyshakespeare.txt")))) == 338_025


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
    batch = data.tokens_batch(interop.encode_demonstrations(records, enc, 500, Counter()))
    assert batch.ids.shape[0] == 60 and batch.mask.shape == (60, batch.ids.shape[1] - 1)
    for r, text in zip(records, decoded(enc, batch), strict=True):
        assert text == "".join(f" {m['content']}{data.EOS}" for m in r.messages if m["role"] == "assistant")


def test_what_is_trained_on_in_the_sandbox(enc):
    records = sandbox.demonstrations(100)
    batch = data.tokens_batch(interop.encode_demonstrations(records, enc, 128, Counter()))
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
                [row] = interop.encode_demonstrations([r], enc, block, counts)
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
        interop.encode_demonstrations([data.Demonstration(said("Hi.", "word " * 30))], enc, 8, Counter())


def test_too_long_prompts_are_cut_from_the_left(enc):
    prompts, counts = [data.Prompt(said("one two three four five " * n)) for n in (1, 20)], Counter()
    short, long = interop.encode_prompts(prompts, enc, 60, counts)
    assert short == data.encode_prompt(enc, prompts[0].messages)
    assert long == data.encode_prompt(enc, prompts[1].messages)[-60:] and enc.decode(long).endswith(
        "\n\nAssistant:"
    )
    assert counts == {"prompts": 2, "prompts cut from the left": 1}
    with pytest.raises(ValueError, match="--max-new takes the whole context"):
        interop.encode_prompts(prompts, enc, 0, Counter())


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
        ({"ratings": [7, 3, 3, None]}, [(0, 1), (0, 2)]),
        ({"ratings": [1, 7, 4.5, 1]}, [(1, 0), (1, 2), (1, 3), (2, 0), (2, 3)]),
    ],
)
def test_pairs_of_a_ranking(fields, pairs):
    counts = Counter()
    [r] = data.rankings(told(ranking(**fields)), counts)
    assert sorted(r.pairs) == sorted(pairs)
    K = len(r.responses)
    assert counts == {"comparisons": len(pairs), "pairs without a preference": K * (K - 1) // 2 - len(pairs)}


def test_tied_prompts_are_skipped_and_counted():
    tied = [
        ranking(ranks=[1, 1, 1, 1]),
        ranking(ranks=[1, None, None, None]),
        ranking(comparisons=[]),
        ranking(ranks=[1, 2], responses=["a", "a"]),
        ranking(ratings=[7, 7, None, 7]),
    ]
    counts = Counter()
    [r] = data.rankings(told(*tied, ranking(ranks=[1, 2, 2, 2])), counts)
    assert r.pairs == [(0, 1), (0, 2), (0, 3)]
    assert counts["prompts skipped: all responses tied"] == 5 and counts["comparisons"] == 3
    assert counts["pairs without a preference"] == 6 + 6 + 6 + 1 + 6 + 3
    assert "5 prompts skipped: all responses tied" in interop.report(counts)
    with pytest.raises(ValueError, match="holds no ranking with two responses of different rank"):
        data.rankings(told(*tied), Counter())


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
                [found[i]] = interop.encode_rankings([r], enc, block, counts)
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
    encoded = interop.encode_rankings(list(some_rankings(7)), enc, 400, Counter())
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


@pytest.mark.parametrize(("name", "repeats"), [
    ("comparisons/hh-rlhf/helpful-rejection-sampled.train.jsonl.gz", True),
    ("rankings/oasst1-messages/en-validation.part1.jsonl", False),
    ("demonstrations/sharegpt/dummy_conversation.json", True),
])
def test_every_stage_holds_out_the_same_prompts_of_public_data(real, name, repeats):
    """A prompt is on one side, however often it occurs and whether its replies are read or not."""
    kinds, held = (data.demonstrations, data.prompts), []
    for records in (read(formats.read_records(real(name), Counter()), Counter()) for read in kinds):
        sides = [[r.messages[:-1] if isinstance(r, data.Demonstration) else r.messages for r in side]
                 for side in data.split(records, 0.2, seed=3)]
        rest, out = ({str(messages) for messages in side} for side in sides)
        assert sum(map(len, sides)) == len(records) and len(out) > 0.1 * len(rest) > 0 and not rest & out
        assert (len(rest | out) < len(records)) == repeats
        held.append((out, rest | out))
    assert held[0][0] == held[1][0] & held[0][1]


# ------------------------------------------------------------------------------------------------------------
# canonical records


def test_records_of_every_kind():
    one, two, three = data.demonstrations(
        told(
            {"prompt": "Hi.", "response": "Ho.", "use_case": "chat"},
            {"messages": said("a", "b", "c", "d")},
            {"prompt": said("a", "b", "c"), "response": "d"},
        ),
        Counter(),
    )
    assert one == data.Demonstration(said("Hi.", "Ho."), "chat") and two == three == data.Demonstration(
        said("a", "b", "c", "d")
    )
    assert data.prompts(told({"prompt": "Hi."}), Counter()) == [data.Prompt(said("Hi."))]
    counts = Counter()
    assert data.texts(told({"text": "a\nb"}, {"text": "c", "source": "x"}), counts) == ["a\nb", "c"]
    assert counts == {"documents": 2}


def test_the_best_of_a_ranking_is_a_demonstration():
    """It is beaten by none; of several the first; where all are beaten, or all tied, there is none."""
    plain = (ranking(ranks=[3, 1, 2, 1]), ranking(comparisons=[[2, 0], [0, 1]]))
    circle, tie = ranking(comparisons=[[0, 1], [1, 2], [2, 0]]), ranking(ranks=[1, 1, 1, 1])
    counts = Counter()
    found = data.demonstrations(told(*plain, circle, tie), counts)
    assert found == [data.Demonstration(said("Hi.", best)) for best in "bc"]
    assert counts["rankings whose best response is a demonstration"] == 2
    assert counts["rankings skipped: no response is best"] == 2


def test_what_is_rated_7_is_a_demonstration():
    """All of it, if it says something, and nothing else; one record may give several or none."""
    rated = [ranking(ratings=[7, 6, 7, None]), ranking(ratings=[1, 7, 7, 2], responses=["a", " \n", "c", "d"]),
             ranking(ratings=[6, 6.9, 1, 1]), {"prompt": "Hi.", "response": "z"}]
    counts = Counter()
    found = data.demonstrations(told(*rated), counts)
    assert [d.messages for d in found] == [said("Hi.", x) for x in "accz"]
    assert counts["samples rated 7 of 7"] == 3 and "rankings whose best" not in interop.report(counts)
    with pytest.raises(ValueError, match="holds no demonstration"):
        data.demonstrations(told(rated[2]), Counter())


def test_replies_labelled_bad_are_no_demonstrations_and_their_prompts_are_prompts():
    records = [{"prompt": p, "response": "b", "label": label} for p, label in zip("xyz", (True, False, None))]
    counts = Counter()
    found = data.demonstrations(told(*records), counts)
    assert [r.messages[0]["content"] for r in found] == ["x", "z"]
    assert counts == {"records skipped: their reply is labelled bad": 1}
    assert [r.messages for r in data.prompts(told(*records), Counter())] == [said(p) for p in "xyz"]


def test_a_prompt_is_what_comes_before_the_last_reply():
    counts = Counter()
    records = [{"messages": said(*turns)} for turns in ("a", "ab", "abc", "abcd")]
    alone = {"messages": [{"role": "assistant", "content": "a"}]}
    found = data.prompts(told(*records, alone), counts)
    assert [r.messages for r in found] == [said(*turns) for turns in ("a", "a", "abc", "abc")]
    assert counts == {"records skipped: nothing comes before the reply": 1}


GOOD = {
    data.demonstrations: {"prompt": "a", "response": "b"},
    data.prompts: {"prompt": "a"},
    data.rankings: {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]},
    data.texts: {"text": "a"},
}
USER = {"role": "user", "content": "a"}
MESSAGES = '"prompt" must be a string or a list of'


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (data.demonstrations, {"prompt": "a", "response": "  "}, "the response is empty"),
        (data.demonstrations, {"prompt": "a", "response": None}, "a response must be a string, got NoneType"),
        (data.demonstrations, {"prompt": "a"}, '"response" is missing; the record has prompt'),
        (data.demonstrations, {}, '"prompt" is missing; the record has no fields'),
        (data.demonstrations, {"prompt": " ", "response": "b"}, "the prompt is empty"),
        (data.prompts, {"prompt": 3}, MESSAGES),
        (data.prompts, {"prompt": []}, MESSAGES),
        (data.prompts, {"prompt": [{"role": "robot", "content": "a"}]}, MESSAGES),
        (data.prompts, {"prompt": [{"role": "user", "content": 1}]}, MESSAGES),
        (data.prompts, {"prompt": [{"role": "user"}]}, MESSAGES),
        (data.prompts, {"prompt": [{"role": ["user"], "content": "a"}]}, MESSAGES),
        (data.prompts, {"prompt": "a", "meta": {"answers": []}}, '"meta" is for the answer key'),
        (data.rankings, ranking(responses=["b"], ranks=[1]), '"responses" must be a list of at least two'),
        (data.rankings, ranking(responses="bc", ranks=[1, 2]), '"responses" must be a list of at least two'),
        (data.rankings, ranking(responses=["b", 2], ranks=[1, 2]), "a response must be a string, got int"),
        (data.rankings, ranking(), '"ranks" is missing; the record has prompt, responses'),
        (data.rankings, ranking(ranks=[1]), "a number or null for each of the 4"),
        (data.rankings, ranking(ranks=["1", "2", "3", "4"]), "a number or null for each of the 4"),
        (data.rankings, ranking(ranks=1), "a number or null for each of the 4"),
        (data.rankings, ranking(ratings=[8, 1, 1, 1]), '"ratings" must hold a number from 1 to 7 or null for each of the 4'),
        (data.rankings, ranking(ratings=[0, 1, 7, 1]), '"ratings" must hold a number from 1 to 7 or null'),
        (data.rankings, ranking(ratings=[7, 1]), '"ratings" must hold a number from 1 to 7 or null for each of the 4'),
        (data.rankings, ranking(ratings=["7", "1", "2", "3"]), '"ratings" must hold a number from 1 to 7 or null'),
        (data.rankings, ranking(ratings=7), '"ratings" must hold a number from 1 to 7 or null'),
        (data.demonstrations, ranking(ratings=[8, 1, 1, 1]), '"ratings" must hold a number from 1 to 7 or null'),
        (data.demonstrations, ranking(ratings=[7, 7]), '"ratings" must hold a number from 1 to 7 or null'),
        (data.rankings, ranking(comparisons=[[0, 4]]), "indices from 0 to 3"),
        (data.rankings, ranking(comparisons=[[-1, 0]]), "indices from 0 to 3"),
        (data.rankings, ranking(comparisons=[0, 1]), "indices from 0 to 3"),
        (data.rankings, ranking(prompt=1, ranks=[1, 2, 3, 4]), MESSAGES),
        (data.texts, {"text": ["a"]}, '"text" must be a string'),
        (data.texts, {"prompt": "a"}, '"text" is missing; the record has prompt'),
        (data.rankings, {"prompt": "a", "response": "b"}, '"responses" is missing; the record has prompt, response'),
        (data.demonstrations, {"text": "a"}, "this is text, for pretrain.py; here demonstrations are needed"),
        (data.prompts, {"text": "a"}, "this is text, for pretrain.py; here prompts are needed"),
        (data.rankings, {"text": "a"}, "this is text, for pretrain.py; here rankings are needed"),
    ],
)
def test_wrong_records_are_named(read, record, message):
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 2: .*{message}"):
        read(told(GOOD[read], record), Counter())


@pytest.mark.parametrize("read", GOOD)
def test_no_record_is_an_error(read):
    with pytest.raises(ValueError, match=f"the data holds no {read.__name__[:-1]}"):
        read([], Counter())


def test_what_is_written_is_read_again(tmp_path):
    """Line separators of Unicode inside a text do not end a record."""
    records, path = [{"prompt": said(text or "x"), "response": text} for text in NASTY], str(tmp_path / "x")
    data.write_jsonl(path, records)
    found = list(formats.read_records(path, Counter()))
    assert [r for _, r in found] == records and found[-1][0] == f"{path}, line {len(NASTY)}"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_does_not_exist_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="cannot write .*--out"):
        data.write_jsonl(str(tmp_path / "no" / "x.jsonl"), [{}])
