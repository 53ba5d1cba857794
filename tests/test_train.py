"""The training loop: schedule, optimizer, micro-batches, averaging, log, exact resuming."""

import itertools
import json
import math
import os
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import data
from model import GPT, GPTConfig
from plumbing.files import Run, begin, read_checkpoint
from train import (
    Network,
    TrainConfig,
    clip_grad,
    is_time,
    lr_factor,
    make_optimizer,
    mean_loss,
    step_seed,
    train,
    update_ema,
)

SMALL = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)
CFG = TrainConfig(out="toy.pt", device="cpu", precision="fp32", lr=1e-2)


def four_rows(step):
    return torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(step))


def next_token_losses(model, cfg):
    def losses(ids):
        for chunk in ids.split(cfg.microbatch or len(ids)):
            loss = F.cross_entropy(model(chunk)[:, :-1].flatten(0, 1), chunk[:, 1:].flatten())
            yield len(chunk) / len(ids), loss, {"loss": loss}

    return losses


TOKENIZER = {"name": "none", "hash": "none"}


def batches_of(batch_at):
    """What `train` takes: an iterator over the batches from a step on."""
    return lambda start: map(batch_at, itertools.count(start))


def fit(cfg, steps, batch_at=four_rows, dropout=0.0, losses=next_token_losses, meta=None, **more):
    """Train a new tiny GPT -> (model, metrics)."""
    torch.manual_seed(cfg.seed)
    model = GPT(replace(SMALL, dropout=dropout))
    meta = meta or {"stage": "toy", "config": asdict(cfg), "inputs": {}}
    run = Run(cfg, meta, "cpu", None)
    networks = [Network(model, cfg.lr)]
    metrics = train(
        run, networks, batches_of(batch_at), losses(model, cfg), steps, TOKENIZER, **more
    )
    return model, metrics


def log_lines(path="toy.pt.log.jsonl"):
    with open(path) as f:
        return [json.loads(line) for line in f]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run inside an empty folder, so that two runs may write to the same relative path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -------------------------------------------------------------------------------------------------
# pure functions


@pytest.mark.parametrize("schedule", ["cosine", "restarts", "constant"])
def test_warm_up_goes_in_a_line_from_a_tenth_to_the_peak(schedule):
    assert [lr_factor(s, 100, schedule, 10) for s in (0, 5, 10)] == pytest.approx([0.1, 0.55, 1.0])
    assert lr_factor(0, 100, schedule, 0) == 1.0


def test_cosine_ends_at_a_tenth():
    steps = (10, 40, 55, 100)
    want = [1.0, 0.1 + 0.9 * 0.75, 0.55, 0.1]  # (1 + cos(pi/3)) / 2 = 3/4
    assert [lr_factor(s, 100, "cosine", 10) for s in steps] == pytest.approx(want)


def test_restarts_go_back_to_the_peak_four_times():
    got = [lr_factor(s, 80, "restarts", 0) for s in range(0, 80, 10)]
    assert got == pytest.approx([1.0, 0.55] * 4)
    last = 0.1 + 0.45 * (1 + math.cos(math.pi * 0.95))
    assert lr_factor(79, 80, "restarts", 0) == pytest.approx(last)


def test_constant_stays_at_the_peak():
    assert [lr_factor(s, 100, "constant", 10) for s in (10, 50, 99)] == [1.0] * 3


def test_step_seeds_are_distinct_and_reproducible():
    steps = [*range(50), "rollout 1", "order 1 0"]
    keys = [(seed, step, rank) for seed in range(3) for step in steps for rank in range(2)]
    assert len({step_seed(*k) for k in keys}) == len(keys)
    assert step_seed(3, 7) == step_seed(3, 7)
    torch.manual_seed(max(step_seed(*k) for k in keys))  # fits


def test_ema_of_a_constant_in_closed_form():
    average, module = nn.Linear(3, 2), nn.Linear(3, 2)
    start = average.weight.detach().clone()
    for _ in range(5):
        update_ema(average, module, 0.9)
    torch.testing.assert_close(average.weight, 0.9**5 * start + (1 - 0.9**5) * module.weight)


def test_clip_scales_only_what_exceeds_the_bound():
    module = nn.Linear(2, 1)
    for bound, want in ((10.0, [3.0, 0.0, 4.0]), (0, [3.0, 0.0, 4.0]), (1.0, [0.6, 0.0, 0.8])):
        module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
        assert clip_grad(module, bound).item() == pytest.approx(5.0)
        assert [*module.weight.grad[0].tolist(), module.bias.grad.item()] == pytest.approx(want)


def test_weight_decay_is_on_matrices_only():
    model = GPT(SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    optimizer = make_optimizer(model, replace(CFG, weight_decay=0.5, lr=0.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    for name, p in model.named_parameters():
        decayed = p.dim() == 2 and name != "wpe.weight"
        assert p.unique().item() == pytest.approx(0.95 if decayed else 1.0), name


@pytest.mark.parametrize("cycle", [1, 4, 6])
def test_is_time_at_the_end_of_the_cycle_that_passes_a_multiple(cycle):
    for every in (1, 3, 5, 12):
        want = []
        for end in range(cycle, 61, cycle):
            passed = any(done % every == 0 for done in range(end - cycle + 1, end + 1))
            want += [end - 1] * passed
        assert [step for step in range(60) if is_time(step, every, cycle)] == want


def test_mean_loss_weighs_batches_by_what_is_marked():
    torch.manual_seed(0)
    model = GPT(SMALL)
    ids = torch.randint(11, (5, 8))
    mask = torch.rand(5, 7) < 0.4
    parts = [data.Tokens(ids[:1], mask[:1]), data.Tokens(ids[1:], mask[1:])]
    whole = model.loss(ids, mask).item()
    assert mean_loss(model, parts) == pytest.approx(whole, rel=1e-5)


# -------------------------------------------------------------------------------------------------
# one step


@pytest.mark.parametrize("microbatch", [1, 2, 3])
def test_any_microbatch_size_gives_the_same_step(folder, microbatch):
    # with a large eps the update is all but the gradient
    linear = replace(CFG, adam_eps=1.0, grad_clip=0.0)
    whole, _ = fit(linear, 1)
    parts, _ = fit(replace(linear, microbatch=microbatch, out="parts.pt"), 1)
    for a, b in zip(whole.parameters(), parts.parameters()):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)
    [line], [line_of_parts] = log_lines(), log_lines("parts.pt.log.jsonl")
    assert line["loss"] == pytest.approx(line_of_parts["loss"], rel=1e-6)


def test_consecutive_losses_accumulate_to_the_gradient_of_their_sum(folder):
    """PPO and its pretraining term: two backward passes into one buffer."""

    def other(model, ids):
        return model.hidden(ids).pow(2).mean()

    def apart(model, cfg):
        def losses(ids):
            yield from next_token_losses(model, cfg)(ids)
            yield 27.8, other(model, ids), {}

        return losses

    def together(model, cfg):
        def losses(ids):
            [(weight, loss, stats)] = next_token_losses(model, cfg)(ids)
            yield weight, loss + 27.8 * other(model, ids), stats

        return losses

    linear = replace(CFG, adam_eps=1.0, grad_clip=0.0)
    a, _ = fit(linear, 1, losses=apart)
    b, _ = fit(replace(linear, out="b.pt"), 1, losses=together)
    for p, q in zip(a.parameters(), b.parameters()):
        torch.testing.assert_close(p, q, atol=1e-7, rtol=0)


class Number(nn.Module):
    """A network of one weight, as much of one as a checkpoint asks for."""

    kind, cfg = "number", SMALL

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))


@pytest.mark.parametrize("beta2", [0.5, 0.95])
def test_two_steps_of_adamw_in_closed_form(folder, beta2):
    """With gradients 1 and 3: bias-corrected means of these two and of their squares."""
    cfg = replace(CFG, schedule="constant", grad_clip=0.0, beta2=beta2, adam_eps=0.01)
    number = Number()

    def losses(gradient):
        loss = gradient * number.weight.sum()
        yield 1.0, loss, {"loss": loss}

    run = Run(cfg, {"stage": "toy", "config": {}, "inputs": {}}, "cpu", None)
    train(run, [Network(number, 0.1)], batches_of([1.0, 3.0].__getitem__), losses, 2, TOKENIZER)
    mean = (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.9**2)
    square = (beta2 * (1 - beta2) * 1 + (1 - beta2) * 9) / (1 - beta2**2)
    want = -0.1 * 1 / (1 + 0.01) - 0.1 * mean / (math.sqrt(square) + 0.01)
    assert number.weight.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(("bound", "clipped"), [(1.0, 1.0), (2.0, 2.0), (0.0, 1000.0)])
def test_each_network_has_its_own_clip_and_learning_rate(folder, bound, clipped):
    """AdamW's first update of a gradient g is lr g / (|g| + eps); clipped to 1, 1000 becomes 1.
    The average is that of the first network."""
    cfg = replace(CFG, adam_eps=1.0, grad_clip=bound, ema=0.75)
    networks = [Network(Number(), lr) for lr in (0.1, 0.2)]

    def losses(batch):
        a, b = (n.module.weight.sum() for n in networks)
        yield 1.0, 1000 * a + 0.5 * b, {"loss": a}

    run = Run(cfg, {"stage": "toy", "config": {}, "inputs": {}}, "cpu", None)
    train(run, networks, batches_of(lambda step: None), losses, 1, TOKENIZER)
    got = [n.module.weight.item() for n in networks]
    first = -0.1 * clipped / (clipped + 1)
    assert got == pytest.approx([first, -0.2 * 0.5 / 1.5], rel=1e-5)
    average = read_checkpoint("toy.pt")["weights"]["weight"]
    assert average.item() == pytest.approx(0.25 * first, rel=1e-5)
    norms = [log_lines()[0][k] for k in ("grad_norm", "grad_norm_value")]
    assert norms == pytest.approx([1000, 0.5])


def test_the_learning_rate_of_each_step_is_the_schedules(folder):
    cfg = replace(CFG, warmup=4)
    fit(cfg, 12)
    want = [CFG.lr * lr_factor(s, 12, "cosine", 4) for s in range(12)]
    assert [x["lr"] for x in log_lines()] == pytest.approx(want)


# -------------------------------------------------------------------------------------------------
# many steps


def test_overfits_one_batch_to_zero(folder):
    _, metrics = fit(replace(CFG, lr=2e-2), 120, batch_at=lambda step: four_rows(0)[:1])
    assert log_lines()[0]["loss"] == pytest.approx(math.log(11), abs=0.7)
    assert metrics["loss"] < 0.01


def test_the_batch_is_made_after_the_previous_update_and_the_ema_follows_the_weights(folder):
    seen, decay = [], 0.8

    def losses(model, cfg):
        def watched(ids):
            seen.append(model.wte.weight.detach().clone())
            yield from next_token_losses(model, cfg)(ids)

        return watched

    model, _ = fit(replace(CFG, ema=decay), 6, losses=losses)
    want = seen[0]
    for raw in [*seen[1:], model.wte.weight.detach()]:
        assert not torch.equal(raw, want)
        want = decay * want + (1 - decay) * raw
    torch.testing.assert_close(read_checkpoint("toy.pt")["weights"]["wte.weight"], want)


def test_dropout_is_on_and_drawn_anew_at_each_step(folder):
    """After an evaluation too, which turns it off; again the same with the same seed only."""
    drawn = []

    def losses(model, cfg):
        def watched(ids):
            drawn.append(F.dropout(torch.ones(64), 0.5, model.training).tolist())
            yield from next_token_losses(model, cfg)(ids)

        return watched

    for out, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1)):
        cfg = replace(CFG, eval_every=1, out=out, seed=seed)
        fit(cfg, 4, losses=losses, evaluate=lambda step, model: {})
    assert drawn[:4] == drawn[4:8] and all(0.0 in numbers for numbers in drawn)
    assert len({tuple(numbers) for numbers in drawn}) == 8


def test_select_keeps_the_best_weights(folder):
    kept = {}

    def evaluate(step, model):
        kept[step] = model.wte.weight.detach().clone()
        return {"select": -abs(step - 3), "held_out": float(step)}

    _model, metrics = fit(replace(CFG, eval_every=1), 6, evaluate=evaluate)
    result = read_checkpoint("toy.pt")
    assert sorted(kept) == list(range(6)) and not torch.equal(kept[3], kept[5])
    assert torch.equal(result["weights"]["wte.weight"], kept[3])
    assert metrics["selected_step"] == 3 and metrics["held_out"] == 3.0
    assert result["meta"]["metrics"] == metrics


def test_finish_changes_the_result_once_before_it_is_evaluated_and_saved(folder):
    """With averaging the result is the average: what samples and trains is left alone."""
    seen, finished = [], []

    def finish(module):
        finished.append(module)
        with torch.no_grad():
            module.wte.weight.fill_(2.0)

    def evaluate(step, module):
        seen.append(module.wte.weight.mean().item())
        return {}

    cfg = replace(CFG, eval_every=2, ema=0.5)
    model, _ = fit(cfg, 4, evaluate=evaluate, finish=finish)
    assert len(finished) == 1 and seen[0] != 2.0 and seen[1] == 2.0
    assert (read_checkpoint("toy.pt")["weights"]["wte.weight"] == 2.0).all()
    assert not (model.wte.weight == 2.0).any()


def test_without_select_the_last_weights_are_the_result(folder):
    cfg = replace(CFG, eval_every=2)
    model, metrics = fit(cfg, 5, evaluate=lambda step, model: {"held_out": step})
    assert metrics["held_out"] == 4
    assert torch.equal(read_checkpoint("toy.pt")["weights"]["wte.weight"], model.wte.weight)


@pytest.mark.parametrize(("cycle", "steps"), [(1, 3), (3, 3), (5, 5)])
def test_stop_in_the_state_ends_the_run_with_its_cycle(folder, cycle, steps):
    state = {}

    def batch_at(step):
        state["stop"] = step >= 2
        return four_rows(step)

    fit(CFG, 10, batch_at=batch_at, state=state, cycle=cycle)
    assert [x["step"] for x in log_lines()] == list(range(steps)) and os.path.exists("toy.pt")


# -------------------------------------------------------------------------------------------------
# resuming


def killed_at(step):
    def batch_at(s):
        if s == step:
            raise RuntimeError("killed")
        return four_rows(s)

    return batch_at


def contents(*names):
    return [open(name, "rb").read() for name in names]


@pytest.mark.parametrize("kill", [3, 6, 7])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, kill):
    """8 steps with dropout and averaging; killed before step `kill`, saved every 2, again."""
    cfg = replace(CFG, ema=0.9, save_every=2, seed=5, eval_every=4)
    evaluate = {"evaluate": lambda step, model: {"held_out": model.wte.weight.sum().item()}}
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    fit(cfg, 8, dropout=0.2, **evaluate)
    straight, straight_log = contents("toy.pt"), log_lines()
    monkeypatch.chdir(tmp_path / "killed")
    with pytest.raises(RuntimeError, match="killed"):
        fit(cfg, 8, dropout=0.2, batch_at=killed_at(kill), **evaluate)
    assert not os.path.exists("toy.pt")
    assert read_checkpoint("toy.pt.part")["resume"]["step"] == kill // 2 * 2
    with open("toy.pt.log.jsonl", "r+") as log:
        cut = log.readline()[:40]  # the line that the kill cut short
        log.seek(0, os.SEEK_END)
        log.write(cut)
    fit(cfg, 8, dropout=0.2, **evaluate)
    assert contents("toy.pt") == straight and not os.path.exists("toy.pt.part")
    for line in (again := log_lines()) + straight_log:
        del line["seconds"]
    assert again == straight_log and [x["step"] for x in again] == list(range(8))


def test_a_killed_run_that_selects_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    """The best weights came before the kill and are never beaten."""
    cfg = replace(CFG, save_every=2, eval_every=1)
    more = {
        "evaluate": lambda step, model: {"select": -abs(step - 1.0)},
        "meta": {"stage": "toy", "config": dict(asdict(cfg), select="rm")},
    }
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    fit(cfg, 6, **more)
    (straight,) = contents("toy.pt")
    monkeypatch.chdir(tmp_path / "killed")
    with pytest.raises(RuntimeError, match="killed"):
        fit(cfg, 6, batch_at=killed_at(5), **more)
    fit(cfg, 6, **more)
    result, wanted = read_checkpoint("toy.pt"), read_checkpoint(tmp_path / "straight/toy.pt")
    for key in ("weights", "meta"):
        assert str(result[key]) == str(wanted[key])
    assert contents("toy.pt") == [straight]


def test_the_state_of_a_stage_is_resumed(folder):
    def counting(state, kill):
        def batch_at(step):
            state["count"] = state.get("count", 0.0) + step
            return killed_at(kill)(step)

        return {"batch_at": batch_at, "state": state}

    cfg = replace(CFG, save_every=2)
    with pytest.raises(RuntimeError):
        fit(cfg, 8, **counting({}, 5))
    state = {}
    fit(cfg, 8, **counting(state, None))
    assert state["count"] == sum(range(8))


def test_saves_fall_between_cycles(folder):
    """PPO saves between two rollouts only."""
    with pytest.raises(RuntimeError):
        fit(replace(CFG, save_every=2), 12, batch_at=killed_at(8), cycle=3)
    assert read_checkpoint("toy.pt.part")["resume"]["step"] == 6


def test_an_unfinished_run_with_other_settings_is_refused(folder):
    cfg = replace(CFG, save_every=2)
    with pytest.raises(RuntimeError):
        fit(cfg, 8, batch_at=killed_at(3))
    before = contents("toy.pt.part")
    other, says = replace(cfg, lr=1e-3), r"\(it was made with --lr 0.01 instead of 0.001\)"
    with pytest.raises(ValueError, match=f"toy.pt.part is no unfinished run of this .*{says}.*: c"):
        fit(other, 8)
    assert contents("toy.pt.part") == before
    with pytest.raises(RuntimeError):
        fit(replace(other, overwrite=True), 8, batch_at=killed_at(5))
    saved = read_checkpoint("toy.pt.part")
    assert saved["meta"]["config"]["lr"] == 1e-3 and saved["resume"]["step"] == 4
    assert [line["step"] for line in log_lines()] == list(range(5))


def test_a_save_that_does_not_hold_what_the_run_needs_is_a_sentence(folder):
    """Its settings are right, and the rest has been tampered with."""
    cfg = replace(CFG, save_every=2)
    with pytest.raises(RuntimeError):
        fit(cfg, 8, batch_at=killed_at(3))
    good = read_checkpoint("toy.pt.part")
    [network] = good["resume"]["networks"]
    for bad in (
        {},
        good["resume"] | {"networks": [{}]},
        good["resume"] | {"networks": [network | {"weights": []}]},
        good["resume"] | {"networks": [network | {"weights": dict.fromkeys(network["weights"])}]},
        good["resume"]
        | {"networks": [network | {"weights": dict.fromkeys(network["weights"], torch.ones(1))}]},
        *(good["resume"] | {"step": step} for step in ("two", -1, 0.5, 8, 10**6)),
        *(good["resume"] | {"state": state} for state in (3, {"kl_coef": math.nan})),
        *(good["resume"] | {"best": best} for best in bests(good["weights"])),
        good["resume"] | {"networks": []},
        good["resume"] | {"networks": [network | {"optimizer": moments_of(network)}]},
        3,
    ):
        torch.save(good | {"resume": bad}, "toy.pt.part")
        with pytest.raises(ValueError, match="toy.pt.part does not hold what .*: move it away"):
            fit(cfg, 8)


def bests(weights):
    """What cannot be the best evaluation so far of a run with these weights."""
    good = {"select": 1.0, "step": 1, "metrics": {"select": 1.0}, "weights": weights}
    yield from (1, {}, good | {"select": "x"}, good | {"metrics": {"loss": math.nan}})
    yield from (good | {"weights": {"foo": torch.ones(3)}}, good | {"weights": 3})


def moments_of(network):
    """Adam's, of another size."""
    return {
        name: state | {"exp_avg_sq": torch.zeros(3)}
        for name, state in network["optimizer"].items()
    }


def test_a_finished_run_is_not_repeated(folder):
    run = begin(CFG, "toy")
    assert run.metrics is None
    _, metrics = fit(CFG, 2, meta=run.meta)
    assert begin(CFG, "toy").metrics == metrics
    with pytest.raises(ValueError, match="toy.pt is there already, and it was made with --seed 0"):
        begin(replace(CFG, seed=1), "toy")


@pytest.mark.parametrize("out", ["", "no such folder/model.pt", "."])
def test_an_out_that_cannot_be_written_is_refused_before_training(folder, out):
    with pytest.raises(ValueError, match="--out"):
        begin(replace(CFG, out=out), "toy")


# -------------------------------------------------------------------------------------------------
# what goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_last_good_save(folder, bad):
    calls = []

    def losses(model, cfg):
        def broken(ids):
            calls.append(0)
            for weight, loss, stats in next_token_losses(model, cfg)(ids):
                yield weight, loss * (bad if len(calls) == 6 else 1.0), stats

        return broken

    with pytest.raises(ValueError, match="toy, step 5: the grad_norm is not finite"):
        fit(replace(CFG, save_every=2), 9, losses=losses)
    part = read_checkpoint("toy.pt.part")
    assert part["resume"]["step"] == 4 and not os.path.exists("toy.pt")
    assert all(torch.isfinite(w).all() for w in part["weights"].values())


@pytest.mark.parametrize("last", [False, True])
def test_a_gradient_that_is_not_finite_is_never_saved(folder, last):
    """The loss may be finite where its gradient is not: the square root at zero."""
    calls = []

    def losses(model, cfg):
        def broken(ids):
            calls.append(0)
            for weight, loss, stats in next_token_losses(model, cfg)(ids):
                root = (model.wte.weight.sum() * 0).sqrt()
                yield weight, loss + root if len(calls) == 4 else loss, stats

        return broken

    with pytest.raises(ValueError, match="toy, step"):
        fit(replace(CFG, save_every=2), 4 if last else 8, losses=losses)
    saved = read_checkpoint("toy.pt.part")["weights"]
    assert all(torch.isfinite(w).all() for w in saved.values()) and not os.path.exists("toy.pt")


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_not_finite_are_never_written(folder, steps):
    """The last update's are in no statistic: here the losses, and all gradients, are finite."""
    says = "toy, step 0: wte.weight, of its GPT, is not finite; nothing is saved yet; start again"
    with pytest.raises(ValueError, match=says):
        fit(replace(CFG, lr=1e39, save_every=1), steps)
    assert all(name.endswith(".jsonl") for name in os.listdir())


def test_an_average_that_is_not_finite_is_never_written(folder):
    with pytest.raises(ValueError, match=r"toy.pt is not written: wte.weight of its GPT is not fi"):
        fit(replace(CFG, ema=math.nan), 1)
    assert not os.path.exists("toy.pt")


def test_what_adam_remembers_is_never_saved_if_it_is_not_finite(folder):
    """A gradient whose square is infinite, at a step that nobody looks at: the weights stay as they
    are for good, and finite."""

    def losses(model, cfg):
        def broken(step):
            for weight, loss, stats in next_token_losses(model, cfg)(four_rows(step)):
                yield weight, loss * (1e22 if step == 4 else 1.0), stats

        return broken

    cfg = replace(CFG, save_every=3, log_every=2, grad_clip=0.0)
    says = "toy, step 5: Adam's exp_avg_sq of wte.weight, of its GPT, is not finite; toy.pt.part h"
    with pytest.raises(ValueError, match=says):
        fit(cfg, 9, batch_at=lambda step: step, losses=losses)
    assert read_checkpoint("toy.pt.part")["resume"]["step"] == 3


def test_metrics_that_are_not_finite_are_never_written(folder):
    with pytest.raises(ValueError, match="toy, step 1: the held_out is not finite; nothing is sa"):
        fit(CFG, 2, evaluate=lambda step, model: {"held_out": math.nan})
    assert not os.path.exists("toy.pt")
    assert [line["step"] for line in log_lines()] == [0]
