"""Stage 1: the loss is on the response, the pretraining mix is weighed, selection is by reward."""
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import data
import formats
import sft
from model import (
    GPT,
    GPTConfig,
    Scorer,
    generate,
    load_model,
    save_checkpoint,
    scorer_from,
)

ENC = data.get_tokenizer("sandbox")
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karin", "Leo"]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture
def config(tmp_path):
    """A run on demonstrations whose answer follows from the first word and is longer for one of the two."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(ENC.n_vocab, 48, 1, 2, 32))
    save_checkpoint(str(tmp_path / "base.pt"), gpt, data.tokenizer_id(ENC), {})
    save_checkpoint(str(tmp_path / "rm.pt"), scorer_from(gpt), data.tokenizer_id(ENC), {})
    demos = [{"prompt": f"{verb} {n}.", "response": answer} for n in NAMES
             for verb, answer in (("Insult", "I do not know."), ("Hello", "I am."))]
    return sft.Config(init=str(tmp_path / "base.pt"), data=(write(tmp_path / "demos.jsonl", demos),), lr=1e-2,
                      out=str(tmp_path / "sft.pt"), device="cpu", precision="fp32", batch=8, max_new=8)


def captured(monkeypatch, cfg):
    """What sft.main hands to the loop: (networks, batch_at, losses)."""
    calls = []
    monkeypatch.setattr(sft.train, "train", lambda *args, **more: calls.append(args[:3]))
    sft.main(cfg)
    return calls[0]


def log_lines(cfg):
    with open(cfg.out + ".log.jsonl") as f:
        return [json.loads(line) for line in f]


def two_turns():
    """A batch of two dialogues of unequal length; the first has two replies."""
    def talk(*texts):
        return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    dialogues = talk("Hello.", "Good day.", "What is my name?", "I do not know."), talk("I am Anna.", "Yes.")
    return data.tokens_batch([data.encode_dialogue(ENC, d) for d in dialogues])


# -------------------------------------------------------------------------------------------------
# the loss

def stub(hidden):
    """A model whose logits are the given numbers (B, T, V)."""
    model = SimpleNamespace(hidden=lambda ids: hidden, logits=lambda h: h, logits_at_once=1 << 26,
                            cfg=SimpleNamespace(vocab_size=ENC.n_vocab))
    model.in_chunks = lambda *args: GPT.in_chunks(model, *args)
    model.loss = lambda ids, mask: GPT.loss(model, ids, mask)
    return model


def test_logits_at_prompt_and_pad_positions_get_exactly_zero_gradient():
    batch = two_turns()
    logits = torch.randn(*batch.ids.shape, ENC.n_vocab, requires_grad=True)
    sft.response_loss(stub(logits), batch).backward()
    moved = logits.grad.abs().sum(-1) > 0                                   # (B, T)
    assert torch.equal(moved[:, :-1], batch.mask) and not moved[:, -1].any()
    assert 0 < batch.mask.sum() < batch.mask.numel()


def test_the_loss_does_not_depend_on_prompt_and_pad_targets():
    batch = two_turns()
    logits = torch.randn(*batch.ids.shape, ENC.n_vocab)
    loss = sft.response_loss(stub(logits), batch)
    chosen = F.pad(batch.mask, (1, 0))                       # (B, T): tokens the assistant wrote
    other = batch.ids.where(chosen, (batch.ids + 1) % ENC.n_vocab)
    assert sft.response_loss(stub(logits), batch._replace(ids=other)) == loss
    other = batch.ids.where(~chosen, (batch.ids + 1) % ENC.n_vocab)
    assert sft.response_loss(stub(logits), batch._replace(ids=other)) != loss


def test_response_loss_equals_one_forward_for_each_token():
    torch.manual_seed(0)
    model, batch = GPT(GPTConfig(ENC.n_vocab, 48, 2, 2, 16)), two_turns()
    each = [-model(batch.ids[b:b + 1, :t + 1])[0, -1].log_softmax(0)[batch.ids[b, t + 1]]
            for b, t in batch.mask.nonzero().tolist()]
    torch.testing.assert_close(sft.response_loss(model, batch), torch.stack(each).mean())
    assert sum(ENC.decode([batch.ids[b, t + 1]]) == data.EOS for b, t in batch.mask.nonzero().tolist()) == 3


@pytest.mark.parametrize("microbatch", [1, 3])
@pytest.mark.parametrize("ptx_mix", [0.0, 0.25])
def test_any_microbatch_size_gives_the_same_gradient(config, tmp_path, monkeypatch, microbatch, ptx_mix):
    """A mean of means would weigh the tokens of short responses more."""
    text = (write(tmp_path / "text.jsonl", [{"text": f"{n} sells red lamps."} for n in NAMES * 14]),)

    def gradient(size):
        cfg = replace(config, dropout=0.0, microbatch=size, ptx=text, ptx_mix=ptx_mix)
        [network], batch_at, losses = captured(monkeypatch, cfg)
        logged = 0.0
        assert len({len(data.encode_response(ENC, x)) for x in ("I do not know.", "I am.")}) == 2
        for weight, loss, stats in losses(batch_at(0)):
            (weight * loss).backward()
            logged += weight * sum(stats.values()).item()
        return [p.grad for p in network.module.parameters()], logged
    (whole, loss), (parts, same) = gradient(0), gradient(microbatch)
    assert same == pytest.approx(loss, rel=1e-5)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_pretraining_mix_is_its_share_of_the_loss(config, tmp_path, monkeypatch):
    text = (write(tmp_path / "text.jsonl", [{"text": f"{n} sells red lamps."} for n in NAMES * 14]),)
    cfg = replace(config, ptx=text, ptx_mix=0.2, microbatch=3, dropout=0.0)
    _, batch_at, losses = captured(monkeypatch, cfg)
    total, logged = {"loss": 0.0, "ptx_loss": 0.0}, {"loss": 0.0, "ptx_loss": 0.0}
    for weight, loss, stats in losses(batch_at(0)):
        (name, value), = stats.items()
        total[name] += weight * loss.item()
        logged[name] += weight * value.item()
    assert total == pytest.approx({"loss": 0.8 * logged["loss"], "ptx_loss": 0.2 * logged["ptx_loss"]})
    assert logged["loss"] == pytest.approx(logged["ptx_loss"], rel=0.05)   # per token, both about ln V


# -------------------------------------------------------------------------------------------------
# whole runs

def test_a_tiny_run_learns_to_answer_prompts_it_has_not_seen(config):
    metrics = sft.main(replace(config, epochs=60, eval_every=5, dropout=0.1))
    held = [x["held_out_loss"] for x in log_lines(config) if "held_out_loss" in x]
    assert metrics["held_out_loss"] == held[-1] < 0.2 and held[0] > 2.0
    model, _ = load_model(config.out, "gpt")
    for verb, answer in (("Insult", "I do not know."), ("Hello", "I am.")):
        prompt = data.encode_prompt(ENC, [{"role": "user", "content": f"{verb} Viktor."}])
        ids, total = generate(model, *data.pad([prompt]), 8, ENC.eot_token, temperature=0)
        assert ids[0, len(prompt):total[0]].tolist() == data.encode_response(ENC, answer)


def test_select_rm_keeps_the_epoch_of_the_highest_reward(config, tmp_path, monkeypatch):
    rewards = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(Scorer, "score", lambda self, ids, length: torch.full(length.shape, next(rewards)))
    metrics = sft.main(replace(config, epochs=3, lr=1e-3, select="rm", rm=str(tmp_path / "rm.pt")))
    evaluated = [x for x in log_lines(config) if "rm_score" in x]
    steps = len(log_lines(config)) // 3
    assert [x["rm_score"] for x in evaluated] == [1.0, 3.0, 2.0]
    assert metrics["rm_score"] == 3.0 and metrics["selected_step"] == evaluated[1]["step"] == 2 * steps - 1
    records = data.demonstrations(formats.read_records(config.data, Counter()), Counter())
    _, held = data.split(records, config.held_out)
    model, _ = load_model(config.out, "gpt")
    batch = data.tokens_batch([data.encode_dialogue(ENC, r.messages) for r in held])
    with torch.no_grad():
        loss = sft.response_loss(model, batch).item()
    assert loss == pytest.approx(evaluated[1]["held_out_loss"], abs=1e-5)
    assert loss != pytest.approx(evaluated[2]["held_out_loss"], abs=1e-3)


def test_no_prompt_is_on_both_sides_of_the_split(config, monkeypatch):
    sides, real = [], data.encode_demonstrations

    def watched(records, *rest):
        sides.append({r.messages[0]["content"] for r in records})
        return real(records, *rest)
    monkeypatch.setattr(data, "encode_demonstrations", watched)
    captured(monkeypatch, config)
    assert len(sides) == 2 and all(sides) and not sides[0] & sides[1]


@pytest.fixture
def rated(tmp_path):
    """Ratings of answers to a request that no demonstration shows."""
    return write(tmp_path / "ratings.jsonl", [
        {"prompt": f"Praise {n}.", "responses": ["I will not.", f"{n} is kind.", ""], "ratings": [6, 7, 7]} for n in NAMES])


def test_samples_rated_7_join_the_demonstrations(config, rated, monkeypatch):
    sides, real = [], data.encode_demonstrations

    def watched(records, *rest):
        sides.append([[m["content"] for m in r.messages] for r in records])
        return real(records, *rest)
    monkeypatch.setattr(data, "encode_demonstrations", watched)
    captured(monkeypatch, config)
    captured(monkeypatch, replace(config, rated=(rated,)))
    demos, _, trained, held = sides
    praise = [x for x in trained if x[0].startswith("Praise")]
    assert [x for x in trained if x not in praise] == demos and len(praise) > len(NAMES) / 2
    assert sorted(x for x in trained + held if "Praise" in x[0]) == sorted([f"Praise {n}.", f"{n} is kind."] for n in NAMES)


def test_a_model_learns_from_ratings_what_demonstrations_do_not_show(config, tmp_path, rated):
    def answer(out, **fields):
        sft.main(replace(config, out=str(tmp_path / out), epochs=25, eval_every=1000, dropout=0.0, ptx_mix=0.0, **fields))
        prompt = data.encode_prompt(ENC, [{"role": "user", "content": "Praise Viktor."}])
        ids, total = generate(load_model(str(tmp_path / out), "gpt")[0], *data.pad([prompt]), 8, ENC.eot_token, temperature=0)
        return ENC.decode(ids[0, len(prompt):total[0]].tolist())
    assert answer("feedme.pt", rated=(rated,)).endswith(f" is kind.{data.EOS}")
    assert "kind" not in answer("plain.pt")


@pytest.mark.parametrize("wrong", [{"init": ""}, {"select": "rm"}, {"rm": "rm.pt"}, {"select": "best"},
                                   {"ptx_mix": 1.0}, {"ptx_mix": -0.5}])
def test_flags_that_make_no_sense_are_refused(config, wrong):
    with pytest.raises(ValueError, match="--(init|select|ptx-mix)"):
        sft.main(replace(config, **wrong))
