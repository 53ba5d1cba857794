"""Stage 0: the loss is next-token prediction over every token, and a tiny run learns."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import interop
import pretrain
from data import cut_blocks, text_batch
from model import GPT, GPTConfig
from plumbing.files import read_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")
CFG = pretrain.Config(
    device="cpu",
    precision="fp32",
    tokens=8 * 16 * 100,
    batch=8,
    block=16,
    n_layer=1,
    n_head=2,
    n_embd=32,
    context=32,
    lr=1e-2,
    warmup=10,
    eval_every=0,
)


@pytest.fixture
def config(tmp_path):
    """A run of a tiny model on a corpus of sentences whose last word follows from the colour."""
    docs = [f"Anna eats {pair}." for pair in ("red soup", "blue rice", "green fish")]
    docs = random.Random(0).choices(docs, k=300)
    write_jsonl(str(tmp_path / "text.jsonl"), [{"text": d} for d in docs])
    return replace(CFG, out=str(tmp_path / "base.pt"), data=(str(tmp_path / "text.jsonl"),))


def test_the_loss_is_the_cross_entropy_of_every_next_token():
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(13, 8, 2, 2, 16)), torch.randint(13, (3, 8))
    each = []
    for row in ids:
        for t in range(7):
            each.append(-model(row[None, : t + 1])[0, -1].log_softmax(0)[row[t + 1]])
    [(weight, loss, stats)] = pretrain.text_losses(model, ids, CFG, "cpu")
    assert weight == 1 and stats == {"loss": loss}
    torch.testing.assert_close(loss, torch.stack(each).mean())
    whole = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, whole)


def test_an_untrained_model_says_ln_v():
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 32, 2, 2, 32))
    blocks = torch.randint(ENC.n_vocab, (8, 32))
    [(_, loss, _)] = pretrain.text_losses(model, blocks, CFG, "cpu")
    assert loss.item() == pytest.approx(math.log(ENC.n_vocab), abs=0.1)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_any_microbatch_size_gives_the_same_gradient(microbatch):
    torch.manual_seed(0)
    model, blocks = GPT(GPTConfig(13, 16, 1, 2, 16)), torch.randint(13, (8, 16))

    def gradient(size):
        model.zero_grad()
        logged = 0.0
        for weight, loss, stats in pretrain.text_losses(
            model, blocks, replace(CFG, microbatch=size), "cpu"
        ):
            (weight * loss).backward()
            logged += weight * stats["loss"].item()
        return [p.grad.clone() for p in model.parameters()], logged

    (whole, loss), (parts, same) = gradient(0), gradient(microbatch)
    assert same == pytest.approx(loss, rel=1e-5)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_tiny_run_learns_and_its_checkpoint_stands_alone(config):
    metrics = pretrain.main(config)
    with open(config.out + ".log.jsonl") as f:
        losses = [json.loads(line)["loss"] for line in f]
    assert len(losses) == 100 and losses[0] == pytest.approx(math.log(ENC.n_vocab), abs=0.3)
    unknown = math.log(3) / 6  # one of three colours in a document of 6 tokens
    assert losses[-1] < 2 * unknown and metrics["held_out_loss"] < 2 * unknown
    model, checkpoint = interop.load_model(config.out, GPT)
    enc = interop.get_tokenizer(checkpoint["tokenizer"]["name"])
    assert checkpoint["tokenizer"] == interop.tokenizer_id(enc)
    prompts = [enc.encode_ordinary(f"Anna eats {c}") for c in ("red", "blue", "green")]
    likeliest = model(torch.tensor(prompts))[:, -1].argmax(-1).tolist()
    assert [enc.decode([t]) for t in likeliest] == [" soup", " rice", " fish"]


def test_another_seed_starts_from_other_weights_and_takes_the_text_in_another_order(
    config, monkeypatch
):
    started = []

    def look(run, networks, batches, *rest):
        source = batches(0)
        started.append((networks[0].module.wte.weight, torch.stack([next(source), next(source)])))
        return {}

    monkeypatch.setattr(pretrain, "train", look)
    for seed in (1, 1, 2):
        pretrain.main(replace(config, seed=seed))
    (weight, first), (same_weight, same), (other_weight, other) = started
    assert torch.equal(same_weight, weight) and not torch.equal(other_weight, weight)
    assert torch.equal(same, first) and not torch.equal(other, first)
    assert not torch.equal(first[0], first[1])


def test_the_held_out_text_is_measured_and_not_trained_on(config, tmp_path, monkeypatch):
    path = str(tmp_path / "numbers.jsonl")
    docs = [f"Anna sells {n}." for n in range(1000, 1300)]
    write_jsonl(path, [{"text": text} for text in docs])
    cfg = replace(config, data=(path,), tokens=8 * 16 * 30)
    metrics = pretrain.main(cfg)
    _, held_out = interop.load_corpus((path,), Counter(), ENC, cfg.block, n=0, seed=0)
    model, _ = interop.load_model(config.out, GPT)
    want = model.loss(*text_batch(cut_blocks(held_out, cfg.block))).item()
    assert metrics["held_out_loss"] == pytest.approx(want, rel=1e-5)

    seen = []

    def look(run, networks, batches, *rest):
        source = batches(0)
        seen.extend(ENC.decode(row.tolist()) for _ in range(50) for row in next(source))

    monkeypatch.setattr(pretrain, "train", look)
    pretrain.main(replace(cfg, out=f"{config.out}.2"))
    trained = {text for text in docs if any(text in row for row in seen)}
    held_out = set(ENC.decode(held_out.tolist()).split("<|endoftext|>")[:-1])
    assert len(trained) > 150 and not trained & held_out and held_out < set(docs)


def test_evaluations_change_no_weight(config):
    weights = []
    for every in (1, 0):
        cfg = replace(config, tokens=8 * 16 * 4, eval_every=every, out=f"{config.out}.{every}")
        pretrain.main(cfg)
        with open(cfg.out + ".log.jsonl") as f:
            evaluated = ["held_out_loss" in json.loads(line) for line in f]
        assert evaluated == [bool(every)] * 3 + [True]
        weights.append(read_checkpoint(cfg.out)["weights"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_too_little_text_is_refused(config):
    with pytest.raises(ValueError, match="too few for a block of 5000"):
        pretrain.main(replace(config, block=5000, context=5000))
    with pytest.raises(ValueError, match="--block 16 is longer than --context 8"):
        pretrain.main(replace(config, context=8))
