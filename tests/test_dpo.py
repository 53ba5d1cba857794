"""forks/dpo.py: log-probabilities, losses against closed forms, and that it learns."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import CFG, gpt, tokens

import data
import interop
from forks import dpo
from model import GPT, GPTConfig
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")


def rankings():
    """Two prompts of unlike length, with three and two responses."""
    ids = tokens(60, seed=1).tolist()
    return [data.EncodedRanking(ids[:7], [ids[7:12], ids[12:14], ids[14:20]], [(0, 1), (0, 2)], ""),
            data.EncodedRanking(ids[20:23], [ids[23:30], ids[30:31]], [(1, 0)], "")]


def items_of(model, found):
    return dpo.with_reference(model, found, "cpu", 1)


def test_a_response_has_the_log_probability_that_it_has_alone():
    """Of the whole row, prompt and response, in one forward without a shared prompt."""
    model, found = gpt(), rankings()
    ours, _ = dpo.response_logp(model, found, "cpu")
    alone = []
    for r in found:
        for response in r.responses:
            ids = torch.tensor([r.prompt + response])
            length = torch.tensor([len(r.prompt)])
            mask = data.action_mask(length, torch.tensor([ids.shape[1]]), ids.shape[1])
            alone.append(model.logp(ids, mask)[0].sum())
    torch.testing.assert_close(ours, torch.stack(alone))
    items = items_of(model, found)                          # shorter prompts first
    kept = [known for r in found for same, known in items if same is r]
    torch.testing.assert_close(torch.cat(kept), torch.stack(alone).detach())


def test_losses_are_the_papers_of_each_pair():
    torch.manual_seed(0)
    margin, weight = torch.randn(5, dtype=torch.float64), torch.tensor([0.5, 0.5, 1, 1 / 3, 1 / 3])
    settings = {"dpo": {}, "cdpo": {"smooth": 0.2}, "ipo": {"ipo": True}}
    for name, change in settings.items():
        cfg = dpo.Config(beta=0.3, **change)
        total = 0.0
        for h, w in zip(margin.tolist(), weight.tolist()):
            p = 1 / (1 + math.exp(-0.3 * h))
            total += w * {"dpo": -math.log(p), "ipo": (h - 1 / 0.6) ** 2,
                          "cdpo": -0.8 * math.log(p) - 0.2 * math.log(1 - p)}[name]
        found = dpo.preference_loss(margin, weight, cfg).item()
        assert found == pytest.approx(total / weight.sum().item(), rel=1e-6)


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_what_minimises_it_is_the_reference_times_the_exponential_of_the_reward(beta):
    """[DPO] Eq. 4: with preferences of Bradley and Terry of a known reward, three responses."""
    cfg = dpo.Config(beta=beta)
    reward = torch.tensor([0.0, 0.7, -0.4], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    logits = reference.clone().requires_grad_()
    pairs = list(itertools.permutations(range(3), 2))
    better, worse = torch.tensor(pairs).T
    weight = (reward[better] - reward[worse]).sigmoid()      # how often the first is preferred
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        change = logits.log_softmax(0) - reference
        loss = dpo.preference_loss(change[better] - change[worse], weight, cfg)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = (reference + reward / cfg.beta).log_softmax(0)
    torch.testing.assert_close(logits.detach().log_softmax(0), best, atol=1e-5, rtol=0)


def test_at_the_start_nothing_is_preferred_and_micro_batches_change_nothing():
    cfg, found = dpo.Config(beta=0.3), rankings()
    items = items_of(gpt(), found)
    _, stats = dpo.preference_stats(gpt(), items, cfg, "cpu")
    assert stats["loss"].item() == pytest.approx(math.log(2), abs=1e-5)
    assert stats["chosen_change"].abs() < 1e-4 and stats["rejected_change"].abs() < 1e-4
    gradients = []
    for microbatch in (0, 1):
        model = gpt(2)
        in_parts = replace(cfg, microbatch=microbatch)
        for weight, loss, _ in dpo.dpo_losses(model, items, in_parts, "cpu"):
            (weight * loss).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_kl_is_that_of_its_own_samples():
    """Of a policy that never ends, over all sequences of two tokens, enumerated."""
    cfg = dpo.Config(max_new=2)
    enc = type("Enc", (), {"eot_token": CFG.vocab_size - 1})
    a, b = gpt(0), gpt(1)
    for model in (a, b):
        with torch.no_grad():
            model.ln_f.bias[0], model.wte.weight[-1, 0] = 10.0, -10.0
    prompt = tokens(4, seed=3).tolist()
    pairs = list(itertools.product(range(CFG.vocab_size - 1), repeat=2))
    ids = torch.tensor([prompt + list(pair) for pair in pairs])
    mask = torch.zeros(len(ids), 5, dtype=torch.bool)
    mask[:, 3:] = True
    p, q = (model.logp(ids, mask)[0].sum(1) for model in (a, b))
    exact = (p.exp() * (p - q)).sum().item()
    found = [dpo.kl_to_reference(a, b, [prompt] * 400, enc, cfg, seed) for seed in range(4)]
    error = (max(found) - min(found)) / 2
    assert sum(found) / 4 == pytest.approx(exact, abs=2 * error) and error < 0.3 * exact


@pytest.fixture
def config(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, 48, 1, 2, 32))
    save_checkpoint(str(tmp_path / "sft.pt"), model, interop.tokenizer_id(ENC), {})
    records = [{"prompt": f"Name a colour {i}.", "responses": ["red.", "blue.", "green."],
                "ranks": [1, 3, 2], "labeler": "x"} for i in range(80)]
    write_jsonl(str(tmp_path / "c.jsonl"), records)
    return dpo.Config(init=str(tmp_path / "sft.pt"), data=(str(tmp_path / "c.jsonl"),), batch=8,
                      out=str(tmp_path / "dpo.pt"), lr=3e-3, epochs=3, max_new=8, warmup=1,
                      save_every=5)


def test_it_learns_the_preference_and_goes_on_where_it_was_interrupted(config, monkeypatch):
    metrics = dpo.main(config)
    assert metrics["held_out_accuracy"] > 0.95 and metrics["held_out_loss"] < 0.5
    assert metrics["held_out_chosen_change"] > metrics["held_out_rejected_change"] + 2
    assert metrics["kl"] > 0.01
    before, after = (interop.load_model(path, GPT)[0] for path in (config.init, config.out))
    asked = data.Prompt([{"role": "user", "content": "Name a colour 7."}])
    [prompt] = interop.encode_prompts([asked], ENC, 40, Counter())
    said = [data.encode_response(ENC, text) for text in ("red.", "blue.", "green.")]
    rankings = [data.EncodedRanking(prompt, said, [(0, 1)], "")]
    logp = [dpo.response_logp(model, rankings, "cpu")[0] for model in (before, after)]
    best, last, second = (logp[1] - logp[0]).tolist()       # ranks 1, 3, 2
    assert best > second + 1 > last + 2
    with open(f"{config.out}.log.jsonl") as f:
        first = json.loads(f.readline())
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    again = replace(config, out=f"{config.out}.again.pt")
    append = dpo.files.append_log

    def interrupted(run, line):
        append(run, line)
        if line["step"] == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(dpo.files, "append_log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dpo.main(again)
    monkeypatch.undo()
    assert dpo.main(again) == metrics


@pytest.mark.parametrize(("change", "says"), [
    ({"ipo": True, "smooth": 0.1}, "--ipo is a loss of its own"),
    ({"beta": 0.0}, "--beta"), ({"smooth": 1.0}, "--smooth"), ({"init": "none.pt"}, "none.pt"),
    ({"data": ()}, "--data"), ({"held_out": 1e-9}, "too few to hold out"),
])
def test_what_cannot_be_is_a_sentence(config, change, says):
    with pytest.raises(ValueError, match=says):
        dpo.main(replace(config, **change))
