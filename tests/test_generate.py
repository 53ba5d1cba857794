"""generate.py: prompts that are shared, the next token, the cache, samples and answers."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import CFG, gpt, lively, ragged, tokens

import data
from generate import answer, generate, next_token, prefix, sample
from model import GPT, GPTConfig, Scorer

V, END = CFG.vocab_size, 5


# ------------------------------------------------------------------------------------------------
# Prefix: K responses of a prompt

PROMPT_LEN, OWNER = [7, 2, 5], [0, 0, 0, 1, 2, 2]


def each_alone(prompts, ids, lengths):
    """Prompt and response of each row, without a pad -> [(row, tokens of its prompt), ...]."""
    for r, (b, n) in enumerate(zip(OWNER, lengths, strict=True)):
        P = PROMPT_LEN[b]
        yield torch.cat([prompts[b, :P], ids[r, :n]])[None], P


def test_responses_that_share_a_prompt_equal_separate_forwards_in_values_and_gradients():
    shared, apart, lengths = gpt().double(), gpt().double(), [4, 1, 6, 3, 6, 2]
    (prompts, prompt_len), (ids, length) = ragged(PROMPT_LEN, 1), ragged(lengths, 2)
    weight = torch.randn(6, 6, 16, dtype=torch.double)
    h = shared.hidden(ids, prefix(shared, prompts, prompt_len, torch.tensor(OWNER)))
    total = 0
    for r, (row, P) in enumerate(each_alone(prompts, ids, lengths)):
        alone = apart.hidden(row)[0, P:]
        n = len(alone)
        torch.testing.assert_close(h[r, :n], alone, rtol=1e-10, atol=1e-10)
        total = total + (alone * weight[r, :n]).sum()
    total.backward()
    (h * weight * (torch.arange(6) < length[:, None])[:, :, None]).sum().backward()
    for p, q in zip(shared.parameters(), apart.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)
    assert shared.wpe.weight.grad[0].abs().sum() > 0  # the gradient reaches the prompt


@pytest.mark.parametrize("block_size", [40, 11])
def test_scores_with_a_shared_prompt(block_size):
    """In a context of 11 every sequence fits (7 + 4, 2 + 3, 5 + 6), though 7 and the widest, 6, do
    not."""
    lengths = [4, 1, 4, 3, 6, 2]
    scorer = lively(Scorer(replace(CFG, block_size=block_size)))
    (prompts, prompt_len), (ids, length) = ragged(PROMPT_LEN, 1), ragged(lengths, 2)
    past = prefix(scorer.trunk, prompts, prompt_len, torch.tensor(OWNER))
    score = scorer.score(ids, length, past)
    assert score.shape == (6,)
    for r, (row, _) in enumerate(each_alone(prompts, ids, lengths)):
        assert torch.allclose(score[r], scorer(row)[0, -1], atol=1e-5)


# ------------------------------------------------------------------------------------------------
# the next token


def distribution(logits, grid=4096, **settings):
    """The share of the grid of u in [0, 1) that is mapped to each token."""
    u = (torch.arange(grid) + 0.5) / grid
    drawn = next_token(logits.expand(grid, -1), u, **settings)
    return torch.bincount(drawn, minlength=logits.shape[-1]) / grid


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_next_token_follows_the_softmax(temperature):
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, -4.0, 1.0, 0.7]])
    p = (logits[0] / temperature).softmax(0)
    assert (distribution(logits, temperature=temperature) - p).abs().max() <= 1.01 / 4096


def test_next_token_takes_each_row_for_itself():
    logits, u = torch.randn(50, 7), torch.rand(50)
    alone = [next_token(logits[b : b + 1], u[b : b + 1]).item() for b in range(50)]
    assert next_token(logits, u).tolist() == alone


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, [2]),
        ({"top_k": 3}, [2, 5, 0]),
        ({"top_k": 99}, range(6)),
        ({"top_p": 0.39}, [2]),
        ({"top_p": 0.41}, [2, 5]),
        ({"top_p": 0.64}, [2, 5]),
        ({"top_p": 0.66}, [2, 5, 0]),
        ({"top_p": 1.0}, range(6)),
        ({"top_k": 3, "top_p": 0.95}, [2, 5, 0]),
        ({"top_k": 2, "top_p": 0.61}, [2]),
        ({"top_p": 0.5, "temperature": 3.0}, [2, 5, 0]),
    ],
)
def test_top_k_and_top_p_keep_exactly(settings, kept):
    p = torch.tensor([0.15, 0.1, 0.4, 0.06, 0.04, 0.25])
    expected = torch.zeros(6)
    expected[list(kept)] = p[list(kept)] ** (1 / settings.get("temperature", 1.0))
    got = distribution(p.log()[None], **settings)
    assert got.nonzero().flatten().tolist() == sorted(kept)
    assert (got - expected / expected.sum()).abs().max() <= 1.01 / 4096


def test_temperature_zero_is_greedy():
    logits = torch.randn(40, 7)
    assert torch.equal(next_token(logits, torch.rand(40), temperature=0), logits.argmax(-1))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 2},
        {"top_p": 0.5},
        {"top_p": 0.0},
        {"temperature": 0.01},
    ],
)
def test_no_token_of_probability_zero_is_ever_drawn(settings):
    """At both ends of u, and at the ends of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(1, 9, generator=generator) * 5
        off = torch.randperm(9, generator=generator)[:6]
        logits[0, off] = -math.inf
        ends = torch.tensor([0.0, 1e-45, 1 - 2**-24, 1 - 2**-53], dtype=torch.double)
        u = torch.cat([ends, torch.rand(200, generator=generator)])
        drawn = next_token(logits.expand(len(u), -1), u, **settings)
        assert not set(drawn.tolist()) & set(off.tolist())


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_no_token(bad, temperature):
    """The row that has one gets a number behind the vocabulary; -inf is a token that is off."""
    logits = torch.zeros(3, 5)
    logits[:, 1], logits[1, 3] = -math.inf, bad
    drawn = next_token(logits, torch.tensor([0.1, 0.5, 0.9]), temperature=temperature)
    assert drawn[1] == 5 and drawn[0] < 5 and drawn[2] < 5


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_weights_that_are_not_finite_sample_nothing(temperature):
    model = gpt()
    model.ln_f.weight.data[3] = math.nan
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        generate(model, *ragged([4, 2], 0), 8, END, temperature=temperature)


# ------------------------------------------------------------------------------------------------
# generate


def slowly(model, prompt, u, **settings):
    """Continue one prompt without cache and batch; u[i] decides the i-th token."""
    ids = list(prompt)
    for i in range(len(u)):
        logits = model(torch.tensor([ids]))[:, -1]
        ids.append(next_token(logits, u[i : i + 1], **settings).item())
        if ids[-1] == END:
            break
    return ids


@pytest.mark.parametrize(("n", "temperature"), [(1, 0.0), (3, 1.0), (1, 3.0), (3, 3.0)])
def test_cached_generation_equals_uncached(n, temperature):
    """Ragged right-padded prompts; rows end at different steps."""
    model, max_new, rows = gpt(3), 24, 4 * n
    prompts, length = ragged([9, 1, 4, 6], 3)
    how = {"n": n, "temperature": temperature, "seed": 1}
    ids, total = generate(model, prompts, length, max_new, END, **how)
    rng = torch.Generator().manual_seed(1)
    u = torch.stack([torch.rand(rows, generator=rng) for _ in range(max_new)])
    assert ids.shape == (rows, 9 + max_new)
    ends = set()
    for r in range(rows):
        prompt = prompts[r // n, : length[r // n]].tolist()
        row = slowly(model, prompt, u[:, r], temperature=temperature)
        assert ids[r, : total[r]].tolist() == row
        assert (ids[r, total[r] :] == END).all()
        ends.add(len(row) - len(prompt))
    assert temperature == 0 or len(ends) > 1


def test_a_row_is_sampled_the_same_whatever_the_other_rows_do():
    """With as many rows and the same seed: whether the others end at once or never does not
    matter."""
    model = gpt(3)
    prompts, length = ragged([6, 6, 3, 4], 3)
    first, total = generate(model, prompts, length, 20, END, temperature=3.0, seed=7)
    lengths = set()
    for seed in range(6):
        others = tokens(4, 6, seed=seed)
        others[1] = prompts[1]
        ids, n = generate(model, others, length, 20, END, temperature=3.0, seed=7)
        assert torch.equal(ids[1], first[1]) and n[1] == total[1]
        lengths.add(tuple(n.tolist()))
    assert len(lengths) > 3  # the others did change


@pytest.mark.parametrize("rows", [[0], [5, 1], [1, 3, 5], torch.tensor([4, 0, 2])])
def test_some_rows_sample_what_they_sample_among_all(rows):
    """Alone or together, in any order: draws says which rows of how many these are."""
    model = gpt(3)
    prompts, length = ragged([6, 2, 3, 4, 6, 1], 3)
    how = {"temperature": 3.0, "seed": 7}
    ids, total = generate(model, prompts, length, 20, END, **how)
    part = generate(model, prompts[rows], length[rows], 20, END, draws=(rows, 6), **how)
    assert torch.equal(part[0], ids[rows]) and torch.equal(part[1], total[rows])
    assert len(set((total - length).tolist())) > 2


def test_seeds_differ_and_repeat():
    model = gpt(3)

    def sampled(seed):
        return generate(model, *ragged([4, 2], 0), 12, END, seed=seed)[0].tolist()

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.parametrize("training", [True, False])
def test_generation_runs_without_dropout_and_leaves_the_mode(training):
    model, prompts = gpt(cfg=replace(CFG, dropout=0.5)).train(training), ragged([4, 3], 0)
    ids, _ = generate(model, *prompts, 8, END, temperature=0)
    assert model.training == training
    assert torch.equal(ids, generate(gpt(), *prompts, 8, END, temperature=0)[0])


def test_generation_fills_the_context_and_refuses_more():
    model, prompt = gpt(), ragged([10], 0)
    ids, total = generate(model, *prompt, 30, V, temperature=0)
    assert ids.shape == (1, 40) and total.item() == 40
    with pytest.raises(
        ValueError, match="prompt of 10 tokens and 31 new .* context of 40.*--max-new"
    ):
        generate(model, *prompt, 31, V)


# ------------------------------------------------------------------------------------------------
# sample and answer


def test_samples_are_what_is_generated():
    """For lists of ids; a response begins behind its prompt, and ends with EOS if there is one."""
    model, prompts = gpt(3), [tokens(n, seed=n).tolist() for n in (6, 1, 4)]
    how = {"n": 2, "temperature": 3.0, "top_k": 20, "seed": 7}
    ids, total = generate(model, *data.pad(prompts), 12, END, **how)
    samples = sample(model, prompts, 12, END, **how)
    assert torch.equal(samples.ids, ids) and torch.equal(samples.length, total)
    assert len(samples.responses) == 6
    for r, response in enumerate(samples.responses):
        assert prompts[r // 2] + response == ids[r, : total[r]].tolist()
        assert END not in response[:-1] and (response[-1] == END or len(response) == 12)
    assert len({len(response) for response in samples.responses}) > 2


@pytest.fixture(scope="module")
def models(enc):
    """A policy and a reward model of the sandbox's tokens."""
    cfg = GPTConfig(enc.n_vocab, 24, 1, 2, 16)
    return lively(GPT(cfg), 1), lively(Scorer(cfg), 2)


@pytest.fixture(scope="module")
def prompts(enc):
    names = ("Velia", "red", "Anna", "it", "Ben")
    return [enc.encode_ordinary(f"User: What is {name}?\n\nAssistant:") for name in names]


def test_three_answers_are_shown_with_their_scores(enc, models, prompts, capsys):
    policy, rm = models
    samples = sample(policy, prompts, 8, enc.eot_token, seed=3)
    wanted = rm.score(samples.ids, samples.length).tolist()
    assert len(set(wanted)) == 5
    texts = []
    for prompt, response in zip(prompts[:3], samples.responses):
        texts.append(enc.decode(prompt + response).replace("\n\n", " | "))
    assert answer(policy, rm, prompts, enc, 8, seed=3) == pytest.approx(wanted)
    lines = [f"{score:+.2f}  {text}\n" for score, text in zip(wanted, texts)]
    assert capsys.readouterr().out == "".join(lines)
    assert answer(policy, None, prompts, enc, 8, seed=3) == []
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts)


@pytest.mark.parametrize(("at_once", "count"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (0, 2)])
def test_answers_do_not_depend_on_who_samples_which_of_them(
    enc, models, prompts, capsys, at_once, count
):
    """Of `count` processes each samples every count-th chunk; the first shows what it samples."""
    everything = answer(*models, prompts, enc, 8, seed=3)
    shown = capsys.readouterr().out
    chunks, found = data.chunks(range(5), at_once), {}
    for rank in range(count):
        own = slice(rank, None, count)
        scores = answer(*models, prompts, enc, 8, 3, at_once, mine=lambda x, own=own: x[own])
        rows = [row for chunk in chunks[own] for row in chunk]
        found |= dict(zip(rows, scores, strict=True))
        said = capsys.readouterr().out
        assert (rank == 0 and bool(said) and shown.startswith(said)) or not said
    assert [found[row] for row in range(5)] == pytest.approx(everything, abs=1e-5)
