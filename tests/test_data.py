"""data.py: the chat template, masks, padding and batches."""

import random

import pytest
import torch

import data
import sandbox
from interop import EOS, pack

WORDS = ["Anna", "sells", "red", "lamps", "and", "what", "does", "Ben", "do", "in", "Velia", "?"]


def said(*turns):
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def some_words(rng, most=12):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def dialogues(n, seed=0):
    """Messages of one to three exchanges, some with a system message."""
    rng = random.Random(seed)
    for _ in range(n):
        messages = said(*(some_words(rng) for _ in range(2 * rng.randint(1, 3))))
        if rng.random() < 0.3:
            messages.insert(0, {"role": "system", "content": "Be kind."})
        yield messages


# ------------------------------------------------------------------------------------------------
# the template and the masks


def test_the_template(enc):
    messages = [{"role": "system", "content": "S"}, *said(" Hi. ", "Hello.", "Bye.")]
    assert enc.decode(data.encode_prompt(enc, messages)) == (
        "System: S\n\nUser: Hi.\n\nAssistant: Hello.<|endoftext|>\n\nUser: Bye.\n\nAssistant:"
    )


def test_a_prompt_and_its_response_are_the_dialogue(enc):
    for messages in dialogues(20):
        whole, _ = data.encode_dialogue(enc, messages)
        response = data.encode_response(enc, messages[-1]["content"])
        assert data.encode_prompt(enc, messages[:-1]) + response == whole


@pytest.mark.parametrize("text", ["Ho.", " Ho,\n\nho. ", "", "naïve 日本", EOS, f"a {EOS} b"])
def test_the_text_of_a_response_comes_back(enc, text):
    ids = data.encode_response(enc, text)
    assert data.decode_response(enc, ids) == data.decode_response(enc, ids[:-1]) == text.strip()


def decoded(enc, batch):
    """The text that each row of a batch is trained on."""
    rows = zip(batch.ids, batch.mask, strict=True)
    return [enc.decode(ids[1:][mask].tolist()) for ids, mask in rows]


def test_what_is_trained_on_is_what_the_assistant_said(enc):
    """Every row, every turn, EOS included; and nothing else."""
    written = [*dialogues(60), *(d.messages for d in sandbox.demonstrations(100))]
    batch = data.tokens_batch([data.encode_dialogue(enc, messages) for messages in written])
    assert batch.ids.shape[0] == 160 and batch.mask.shape == (160, batch.ids.shape[1] - 1)
    for messages, text in zip(written, decoded(enc, batch), strict=True):
        replies = [m["content"] for m in messages if m["role"] == "assistant"]
        assert text == "".join(f" {reply}{EOS}" for reply in replies)


def test_a_reply_that_is_not_to_be_trained_on_is_read_only(enc):
    messages = [*said("Hi.", "Hello.", "Bye.", "Ciao."), *said("So.", "Yes.")]
    whole, _ = data.encode_dialogue(enc, messages)
    messages[1]["train"], messages[3]["train"] = False, True
    ids, trained = data.encode_dialogue(enc, messages)
    assert ids == whole
    [text] = decoded(enc, data.tokens_batch([(ids, trained)]))
    assert text == f" Ciao.{EOS} Yes.{EOS}"


def test_a_mask_is_never_that_of_token_ids():
    """The pad's own id, 0, is a token like any other where an assistant chose it."""
    rows = [([0, 0, 0, 7], [False, False, True, True]), ([0, 0], [False, True])]
    ids, mask = data.tokens_batch(rows)
    assert ids.tolist() == [[0, 0, 0, 7], [0, 0, 0, 0]]
    assert mask.int().tolist() == [[0, 1, 1], [1, 0, 0]]


def test_action_mask_is_the_picture():
    mask = data.action_mask(torch.tensor([3]), torch.tensor([6]), 8)
    assert mask.int().tolist() == [[0, 0, 1, 1, 1, 0, 0]]
    lines = data.__doc__.splitlines()
    picture = next(line for line in lines if line.strip().startswith("mask"))
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


# ------------------------------------------------------------------------------------------------
# tensors


def test_pads_are_on_the_right():
    rows = [[1, 2, 3], [4], [5, 6]]
    assert data.pad_rows(rows, value=9).tolist() == [[1, 2, 3], [4, 9, 9], [5, 6, 9]]
    ids, length = data.pad(rows)
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]] and length.tolist() == [3, 1, 2]


def some_rankings(n, seed=0):
    """EncodedRankings of two to five responses."""
    rng = random.Random(seed)

    def ids(most):
        return rng.choices(range(100), k=rng.randint(1, most))

    for _ in range(n):
        K = rng.randint(2, 5)
        pairs = [(i, j) for i in range(K) for j in range(i + 1, K) if rng.random() < 0.7]
        yield data.EncodedRanking(ids(20), [ids(10) for _ in range(K)], pairs or [(1, 0)], "chat")


def test_a_batch_of_comparisons():
    encoded = list(some_rankings(7))
    batch = data.comparisons_batch(encoded)
    assert batch.weight.sum().item() == pytest.approx(7)
    for r, ids, n in zip(encoded, *batch.prompts, strict=True):
        assert ids[:n].tolist() == r.prompt
    rows = [(b, x) for b, r in enumerate(encoded) for x in r.responses]
    for (b, x), ids, n, owner in zip(rows, batch.ids, batch.length, batch.owner, strict=True):
        assert ids[:n].tolist() == x and owner == b
    pairs = []
    for b, r in enumerate(encoded):
        share = 1 / len(r.pairs)
        pairs += [(b, r.responses[i], r.responses[j], share) for i, j in r.pairs]
    columns = (batch.better, batch.worse, batch.weight)
    for (b, x, y, share), better, worse, weight in zip(pairs, *columns, strict=True):
        assert rows[better] == (b, x) and rows[worse] == (b, y)
        assert weight.item() == pytest.approx(share)


# ------------------------------------------------------------------------------------------------
# which tokens, which rows


def test_text_is_packed_and_cut_into_blocks(enc):
    docs = ["Anna sells.", "", EOS, "Ben."] * 3
    tokens = pack(docs, enc)
    assert enc.decode(tokens.tolist()) == "".join(d + EOS for d in docs)
    assert tokens.tolist().count(enc.eot_token) == len(docs)  # EOS in a document is text
    blocks = data.cut_blocks(tokens, 5)
    assert blocks.shape == (len(tokens) // 5, 5)
    assert blocks.flatten().tolist() == tokens[: blocks.numel()].tolist()
    assert blocks.data_ptr() == tokens.data_ptr()  # not copied
    ids, mask = data.text_batch(blocks[[2, 0]])
    assert ids.tolist() == [tokens[10:15].tolist(), tokens[:5].tolist()]
    assert mask.shape == (2, 4) and mask.all()


@pytest.mark.parametrize(("n", "size"), [(10, 3), (7, 7), (4, 9), (1, 2)])
def test_rows_at_is_a_permutation_of_every_epoch(n, size):
    steps = [data.rows_at(s, n, size, 0) for s in range(4 * n)]
    assert all(len(rows) == size for rows in steps)
    row = [i for rows in steps for i in rows]
    epochs = [row[e : e + n] for e in range(0, len(row), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n < 4 or len({tuple(epoch) for epoch in epochs}) > 1


def test_rows_at_is_a_function_of_step_and_seed_only():
    rows, state = data.rows_at(5, 100, 8, 3), random.getstate()
    assert data.rows_at(5, 100, 8, 4) != rows
    random.seed(1)
    torch.manual_seed(1)
    data._epoch.cache_clear()  # it is computed again
    assert data.rows_at(5, 100, 8, 3) == rows
    random.setstate(state)
    data.rows_at(6, 100, 8, 5)
    assert random.getstate() == state


def test_chunks():
    assert data.chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert data.chunks([1, 2, 3], 0) == data.chunks([1, 2, 3], 9) == [[1, 2, 3]]
    assert data.chunks([], 0) == []


def test_rows_of_like_length_are_batched_once_each_with_the_longest_of_them():
    length = torch.tensor([5, 2, 9, 2, 7])

    def found(*how):
        return [(rows.tolist(), longest) for rows, longest in data.by_length(length, *how)]

    assert found(2) == [([1, 3], 2), ([0, 4], 7), ([2], 9)]
    assert found(0) == [([1, 3, 0, 4, 2], 9)]
    assert found(2, lambda rows: rows[1::2]) == [([3, 4], 7)]  # of two processes the second
