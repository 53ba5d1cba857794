"""Stage 1: the loss is on the response, the pretraining mix is weighed, selection is by reward."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import data
import interop
import sft
from generate import sample
from model import GPT, GPTConfig, scorer_from
from plumbing.files import read_checkpoint, save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")
CFG = sft.Config(device="cpu", precision="fp32", lr=1e-2, batch=8, max_new=8, ptx_mix=0.0)
SIZE = GPTConfig(ENC.n_vocab, 48, 1, 2, 32)
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix"]
NAMES += ["Greta", "Hugo", "Ida", "Jonas", "Karin", "Leo"]
ANSWERS = {"Insult": "I do not know.", "Hello": "I am."}
DEMOS = [
    {"prompt": f"{verb} {name}.", "response": answer}
    for name in NAMES
    for verb, answer in ANSWERS.items()
]


@pytest.fixture
def config(tmp_path):
    """A run on demonstrations whose answer follows from the first word."""
    torch.manual_seed(0)
    own = interop.tokenizer_id(ENC)
    save_checkpoint(str(tmp_path / "base.pt"), GPT(SIZE), own, {})
    write_jsonl(str(tmp_path / "demos.jsonl"), DEMOS)
    return replace(
        CFG,
        init=str(tmp_path / "base.pt"),
        data=(str(tmp_path / "demos.jsonl"),),
        out=str(tmp_path / "sft.pt"),
    )


def encoded(demos=DEMOS):
    """Demonstrations as `sft_losses` takes them; one of the verbs has the longer response."""
    rows = []
    for d in demos:
        asked = {"role": "user", "content": d["prompt"]}
        said = {"role": "assistant", "content": d["response"]}
        rows.append(data.encode_dialogue(ENC, [asked, said]))
    return rows


def blocks_of_text(n=30, block=16):
    docs = [f"{name} sells lamps." for name in NAMES * 30]
    return data.cut_blocks(interop.pack(docs, ENC), block)[:n]


def log_lines(cfg):
    with open(cfg.out + ".log.jsonl") as f:
        return [json.loads(line) for line in f]


# ---- the loss ----------------------------------------------------------------------------------


def two_turns():
    """Two dialogues of unequal length; the first has two replies."""
    dialogues = []
    for texts in (
        ("Hello.", "Good day.", "What is my name?", "I do not know."),
        ("I am Anna.", "Yes."),
    ):
        roles = ("user", "assistant") * 2
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
        dialogues.append(data.encode_dialogue(ENC, messages))
    return dialogues


def stub(logits):
    """A GPT that says the given numbers (B, T, V)."""
    model = GPT(GPTConfig(ENC.n_vocab, 48, 0, 1, 1))
    model.hidden = lambda ids: logits
    model.logits = lambda h: h
    return model


def loss_of(model, rows):
    """The loss of one step on encoded demonstrations alone."""
    minibatch = sft.Minibatch(rows, torch.empty(0, 48, dtype=torch.long))
    [(weight, loss, stats)] = sft.sft_losses(model, minibatch, CFG, "cpu")
    assert weight == 1 and stats == {"loss": loss}
    return loss


def test_logits_at_prompt_and_pad_positions_get_exactly_zero_gradient():
    batch = data.tokens_batch(two_turns())
    logits = torch.randn(*batch.ids.shape, ENC.n_vocab, requires_grad=True)
    loss_of(stub(logits), two_turns()).backward()
    moved = logits.grad.abs().sum(-1) > 0  # (B, T)
    assert torch.equal(moved[:, :-1], batch.mask) and not moved[:, -1].any()
    assert 0 < batch.mask.sum() < batch.mask.numel()


def test_the_loss_does_not_depend_on_prompt_and_pad_targets():
    batch = data.tokens_batch(two_turns())
    model = stub(torch.randn(*batch.ids.shape, ENC.n_vocab))
    loss = loss_of(model, two_turns())
    assert model.loss(*batch) == loss
    chosen = F.pad(batch.mask, (1, 0))  # (B, T): tokens the assistant wrote
    other = batch.ids.where(chosen, (batch.ids + 1) % ENC.n_vocab)
    assert model.loss(other, batch.mask) == loss
    other = batch.ids.where(~chosen, (batch.ids + 1) % ENC.n_vocab)
    assert model.loss(other, batch.mask) != loss


def test_the_loss_equals_one_forward_for_each_token():
    torch.manual_seed(0)
    model, batch = GPT(replace(SIZE, n_layer=2)), data.tokens_batch(two_turns())
    each, ends = [], 0
    for b, t in batch.mask.nonzero().tolist():
        action = batch.ids[b, t + 1]
        each.append(-model(batch.ids[b : b + 1, : t + 1])[0, -1].log_softmax(0)[action])
        ends += action.item() == ENC.eot_token
    torch.testing.assert_close(loss_of(model, two_turns()), torch.stack(each).mean())
    assert ends == 3


@pytest.mark.parametrize("microbatch", [1, 3])
@pytest.mark.parametrize("ptx_mix", [0.0, 0.25])
def test_any_microbatch_size_gives_the_same_gradient(microbatch, ptx_mix):
    """A mean of means would weigh the tokens of short responses more."""
    torch.manual_seed(0)
    model, cfg = GPT(SIZE), replace(CFG, ptx_mix=ptx_mix)
    rows = encoded()[:8]
    assert len({sum(trained) for _, trained in rows}) == 2
    minibatch = sft.Minibatch(rows, blocks_of_text(4 if ptx_mix else 0))

    def gradient(size):
        model.zero_grad()
        logged = Counter()
        pieces = sft.sft_losses(model, minibatch, replace(cfg, microbatch=size), "cpu")
        for weight, loss, stats in pieces:
            (weight * loss).backward()
            logged.update({k: weight * v.item() for k, v in stats.items()})
        return [p.grad.clone() for p in model.parameters()], logged

    (whole, stats), (parts, same) = gradient(0), gradient(microbatch)
    assert same == pytest.approx(stats, rel=1e-5) and len(stats) == 1 + (ptx_mix > 0)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_pretraining_mix_is_its_share_of_the_loss():
    torch.manual_seed(0)
    model, cfg = GPT(SIZE), replace(CFG, ptx_mix=0.2, microbatch=3)
    minibatch = sft.Minibatch(encoded()[:8], blocks_of_text(4))
    total, logged = Counter(), Counter()
    for weight, loss, stats in sft.sft_losses(model, minibatch, cfg, "cpu"):
        [(name, value)] = stats.items()
        total[name] += weight * loss.item()
        logged[name] += weight * value.item()
    shares = {"loss": 0.8 * logged["loss"], "ptx_loss": 0.2 * logged["ptx_loss"]}
    assert total == pytest.approx(shares)
    # per token, both about ln V
    assert logged["loss"] == pytest.approx(logged["ptx_loss"], rel=0.05)


def test_minibatches_are_shuffled_epochs_of_demonstrations_and_of_text():
    cfg, rows, text = replace(CFG, batch=4), encoded(), blocks_of_text(10)
    assert len(rows) == 24
    source = sft.batches(rows, text, cfg, 0)
    steps = [next(source) for _ in range(20)]
    seen = [ids for step in steps[:6] for ids, _ in step.demonstrations]
    assert sorted(seen) == sorted(ids for ids, _ in rows) and seen != [ids for ids, _ in rows]
    for step in steps:
        lengths = [len(ids) for ids, _ in step.demonstrations]
        assert lengths == sorted(lengths) and step.text.shape == (1, 16)
    blocks = torch.cat([step.text for step in steps])
    assert sorted(blocks[:10].tolist()) == sorted(blocks[10:].tolist()) == sorted(text.tolist())
    from_6 = sft.batches(rows, text, cfg, 6)
    for step in steps[6:]:
        other = next(from_6)
        assert other.demonstrations == step.demonstrations and torch.equal(other.text, step.text)
    other = next(sft.batches(rows, text, replace(cfg, seed=1), 0))
    assert other.demonstrations != steps[0].demonstrations
    assert not torch.equal(other.text, steps[0].text)
    without = next(sft.batches(rows, text[:0], cfg, 0))
    assert len(without.text) == 0 and without.demonstrations == steps[0].demonstrations


# ---- the data ----------------------------------------------------------------------------------


def test_no_prompt_is_on_both_sides_of_the_split(config):
    sides = sft.load_demonstrations(config, ENC, Counter())
    train_on, held_out = ({r.messages[0]["content"] for r in side} for side in sides)
    assert train_on and held_out and not train_on & held_out
    assert train_on | held_out == {d["prompt"] for d in DEMOS}


@pytest.fixture
def rated(tmp_path):
    """Ratings of answers to a request that no demonstration shows."""
    path, ratings = str(tmp_path / "ratings.jsonl"), []
    for name in NAMES:
        said = ["I will not.", f"{name} is kind.", ""]
        ratings.append({"prompt": f"Praise {name}.", "responses": said, "ratings": [6, 7, 7]})
    write_jsonl(path, ratings)
    return path


def test_samples_rated_7_join_the_demonstrations(config, rated):
    def texts(cfg):
        sides = sft.load_demonstrations(cfg, ENC, Counter())
        return [[[m["content"] for m in r.messages] for r in side] for side in sides]

    demos, _ = texts(config)
    trained, held = texts(replace(config, rated=(rated,)))
    praise = [x for x in trained if x[0].startswith("Praise")]
    assert [x for x in trained if x not in praise] == demos and len(praise) > len(NAMES) / 2
    want = sorted([f"Praise {name}.", f"{name} is kind."] for name in NAMES)
    assert sorted(x for x in trained + held if "Praise" in x[0]) == want


# ---- whole runs --------------------------------------------------------------------------------


def greedy(path, text):
    """What the model in the file answers."""
    model, _ = interop.load_model(path, GPT)
    prompt = data.encode_prompt(ENC, [{"role": "user", "content": text}])
    return sample(model, [prompt], 8, ENC.eot_token, temperature=0).responses[0]


def test_a_tiny_run_learns_to_answer_prompts_it_has_not_seen(config, tmp_path):
    write_jsonl(str(tmp_path / "text.jsonl"), [{"text": "Ida sells lamps."}] * 60)
    more = {"dropout": 0.1, "ptx_mix": 0.1, "ptx": (str(tmp_path / "text.jsonl"),)}
    metrics = sft.main(replace(config, epochs=40, eval_every=10, **more))
    held = [x["held_out_loss"] for x in log_lines(config) if "held_out_loss" in x]
    assert metrics["held_out_loss"] == held[-1] < 0.2 and held[0] > 1.5
    for verb, answer in ANSWERS.items():
        assert greedy(config.out, f"{verb} Mia.") == data.encode_response(ENC, answer)


def test_a_model_learns_from_ratings_what_demonstrations_do_not_show(config, rated):
    def answer(**fields):
        cfg = replace(config, epochs=25, eval_every=1000, dropout=0.0, **fields)
        sft.main(cfg)
        return ENC.decode(greedy(cfg.out, "Praise Mia."))

    assert answer(rated=(rated,)).endswith(f" is kind.{interop.EOS}")
    assert "kind" not in answer(out=f"{config.out}.plain.pt")


def write_rm(path, likes_eos):
    """A reward model that reads the last token alone: it likes EOS, or anything but EOS."""
    torch.manual_seed(0)
    gpt = GPT(SIZE)
    for p in gpt.h.parameters():
        p.data.zero_()
    rm = scorer_from(gpt)
    eos = gpt.wte.weight[ENC.eot_token]
    rm.head.weight.data = (eos if likes_eos else -eos)[None] / eos.norm()
    save_checkpoint(path, rm, interop.tokenizer_id(ENC), {})


@pytest.mark.parametrize("likes_eos", [True, False])
def test_select_rm_keeps_the_epoch_of_the_highest_reward(config, tmp_path, likes_eos):
    """A model that has learnt more ends more of its responses with EOS."""
    write_rm(str(tmp_path / "rm.pt"), likes_eos)
    more = {"select": "rm", "rm": str(tmp_path / "rm.pt"), "epochs": 3, "held_out": 0.5}
    more["lr"] = 3e-2  # so fast that each epoch ends more of them, whatever the seed
    metrics = sft.main(replace(config, **more))
    lines = log_lines(config)
    evaluated = [x for x in lines if "rm_score" in x]
    scores = [x["rm_score"] for x in evaluated]
    assert len(scores) == 3 and len(set(scores)) == 3
    best = evaluated[scores.index(max(scores))]
    assert (best is evaluated[0]) == (not likes_eos)
    assert metrics["rm_score"] == max(scores) and metrics["selected_step"] == best["step"]
    assert best["step"] + 1 == len(lines) // 3 * (scores.index(max(scores)) + 1)

    model, _ = interop.load_model(config.out, GPT)
    _, held = sft.load_demonstrations(replace(config, **more), ENC, Counter())
    batch = data.tokens_batch([data.encode_dialogue(ENC, r.messages) for r in held])
    loss = model.loss(*batch).item()
    others = [x["held_out_loss"] for x in evaluated if x is not best]
    assert loss == pytest.approx(best["held_out_loss"], abs=1e-5)
    assert loss not in [pytest.approx(x, abs=1e-3) for x in others]


def test_prompts_of_an_evaluation_leave_room_for_an_answer(config):
    """A prompt fits the context together with what was demonstrated, and not with a sample."""
    long = [{**d, "prompt": f"{'red ' * 28}{d['prompt']}"} for d in DEMOS]
    rows = encoded(long)
    assert min(trained.index(True) for _, trained in rows) + 16 > SIZE.block_size
    assert max(len(ids) for ids, _ in rows) <= SIZE.block_size
    write_jsonl(config.data[0], long)
    assert sft.main(replace(config, epochs=1, max_new=16))["held_out_loss"] > 0


def test_dropout_is_that_of_the_command(config):
    """In training; a measurement is made without it."""
    first = {}
    for dropout in (0.0, 0.5):
        cfg = replace(config, epochs=1, lr=1e-60, dropout=dropout, out=f"{config.out}.{dropout}")
        metrics = sft.main(cfg)
        first[dropout] = (log_lines(cfg)[0]["loss"], metrics["held_out_loss"])
    (whole, held), (with_dropout, same) = first[0.0], first[0.5]
    assert with_dropout != pytest.approx(whole, abs=1e-4) and same == held


def test_evaluations_change_no_weight(config):
    weights = []
    for every in (1, 1000):
        cfg = replace(config, epochs=2, eval_every=every, out=f"{config.out}.{every}")
        sft.main(cfg)
        evaluated = ["held_out_loss" in line for line in log_lines(cfg)]
        assert sum(evaluated) == (len(evaluated) if every == 1 else 1)
        weights.append(read_checkpoint(cfg.out)["weights"])
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"init": ""},
        {"select": "rm"},
        {"rm": "rm.pt"},
        {"select": "best"},
        {"ptx_mix": 1.0},
        {"ptx_mix": -0.5},
    ],
)
def test_flags_that_make_no_sense_are_refused(config, wrong):
    with pytest.raises(ValueError, match="--(init|select|ptx-mix)"):
        sft.main(replace(config, **wrong))
