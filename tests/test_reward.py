"""Stage 2: all pairs of a prompt at once, shared prompts, agreement, calibration, and a preference learnt."""
import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import data
import formats
import reward
from data import RankedIds, Ranking
from model import GPT, GPTConfig, Scorer, load_model, save_checkpoint, scorer_from

ENC = data.get_tokenizer("sandbox")


def ranked(rng, K, levels=3, vocab=20):
    """A RankedIds of K random responses with ranks 1 .. levels, ties among them, and at least one pair."""
    ranks = [1, 2] + [rng.randint(1, levels) for _ in range(K - 2)]
    rng.shuffle(ranks)
    pairs = [(i, j) for i in range(K) for j in range(K) if ranks[i] < ranks[j]]
    rows = [[rng.randrange(vocab) for _ in range(rng.randint(1, 6))] for _ in range(K + 1)]
    return RankedIds(rows[0], rows[1:], pairs, None), ranks


def some(seed=0, sizes=(4, 9, 2, 6)):
    rng = random.Random(seed)
    return [ranked(rng, K)[0] for K in sizes]


def loss_of(score, encoded):
    batch = data.rankings_batch(encoded)
    return reward.pairwise_loss(score, batch.better, batch.worse, batch.weight)


@pytest.fixture
def doubles(monkeypatch):
    """float64 throughout, where the models cast to float32 as well."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tiny_scorer(block=32):
    torch.manual_seed(0)
    return Scorer(GPTConfig(20, block, 2, 2, 16))


# -------------------------------------------------------------------------------------------------
# the loss

@pytest.mark.parametrize("K", range(4, 10))
def test_pairwise_loss_equals_a_double_loop_with_ties(K):
    rng = random.Random(K)
    encoded = [ranked(rng, k) for k in (K, 4, K)]
    score = torch.randn(sum(len(ranks) for _, ranks in encoded), dtype=torch.float64)
    prompts, first = [], 0
    for _, ranks in encoded:
        pairs = [math.log(1 + math.exp(score[first + j] - score[first + i]))
                 for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        prompts.append(sum(pairs) / len(pairs))
        first += len(ranks)
    assert loss_of(score, [e for e, _ in encoded]).item() == pytest.approx(sum(prompts) / 3, rel=1e-6)


def test_two_responses_give_the_softplus_of_their_difference():
    encoded = [RankedIds([1], [[2], [3]], [(1, 0)], None)]
    for better, worse in ((0.3, 1.7), (200.0, -200.0), (-200.0, 200.0)):
        want = F.softplus(torch.tensor(worse - better))
        torch.testing.assert_close(loss_of(torch.tensor([worse, better]), encoded), want)


def test_an_undecided_model_loses_ln_2():
    assert loss_of(torch.zeros(21), some()).item() == pytest.approx(math.log(2))


def test_a_common_shift_of_the_scores_changes_nothing():
    score = torch.randn(21, dtype=torch.float64)
    torch.testing.assert_close(loss_of(score + 7, some()), loss_of(score, some()))


def test_permuting_prompts_or_responses_changes_nothing(doubles):
    rm, encoded = tiny_scorer(), some()

    def shuffled(r):
        order = random.Random(1).sample(range(len(r.responses)), len(r.responses))
        return r._replace(responses=[r.responses[i] for i in order],
                          pairs=[(order.index(i), order.index(j)) for i, j in reversed(r.pairs)])

    def loss(encoded):
        return loss_of(reward.score_responses(rm, data.rankings_batch(encoded)), encoded)
    torch.testing.assert_close(loss(encoded[::-1]), loss(encoded))
    torch.testing.assert_close(loss([shuffled(r) for r in encoded]), loss(encoded))


def test_a_prompt_computed_once_scores_as_one_forward_for_each_response(doubles):
    rm, encoded = tiny_scorer(), some()
    direction = torch.randn(21)

    def gradient(score):
        rm.zero_grad()
        (score * direction).sum().backward()
        return [p.grad.clone() for n, p in rm.named_parameters() if p.grad is not None]
    shared = reward.score_responses(rm, data.rankings_batch(encoded))
    alone = torch.stack([rm.score(torch.tensor([r.prompt + x]), torch.tensor([len(r.prompt + x)]))[0]
                         for r in encoded for x in r.responses])
    torch.testing.assert_close(shared, alone, atol=1e-10, rtol=0)
    for a, b in zip(gradient(shared), gradient(alone)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


# -------------------------------------------------------------------------------------------------
# what is reported

def test_agreement_counts_pairs_on_which_two_labelers_both_have_a_preference():
    def judged(labeler, *pairs, outputs="abc"):
        return Ranking([{"role": "user", "content": "Q"}], list(outputs), list(pairs), labeler)
    ann, bob = judged("Ann", (0, 1), (0, 2), (1, 2)), judged("Bob", (0, 1), (2, 0))   # Bob ties 1 and 2
    assert reward.agreement([ann, bob]) == (0.5, 2)
    assert reward.agreement([ann, judged("Bob", (0, 1), outputs="abd")]) == (0, 0)
    cat = judged("Cat", (0, 1))                               # 3 votes on the first pair: 3 agreements of two
    assert reward.agreement([ann, bob, cat]) == (0.75, 4)


def test_calibration_error_in_closed_form():
    def pairs(confidence, right, wrong):
        margin = math.log(confidence / (1 - confidence))
        return [(margin, "")] * right + [(-margin, "")] * wrong
    calibrated, sure = pairs(0.75, 3, 1), pairs(0.92, 6, 6)
    assert reward.calibration_error(calibrated) == pytest.approx(0, abs=1e-6)
    assert reward.calibration_error(sure) == pytest.approx(0.42, abs=1e-6)
    assert reward.calibration_error(calibrated + sure) == pytest.approx(0.42 * 12 / 16, abs=1e-6)


# -------------------------------------------------------------------------------------------------
# whole runs: an answer is as good as its first word

WORDS = ["red", "blue", "green", "white", "black", "yellow"]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture
def config(tmp_path):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(ENC.n_vocab, 48, 1, 2, 32, dropout=0.2))
    save_checkpoint(str(tmp_path / "sft.pt"), gpt, data.tokenizer_id(ENC), {})
    rng, records = random.Random(0), []
    for i in range(200):
        K = rng.randint(2, 5)
        words = rng.choices(WORDS, k=K)
        records.append({"prompt": f"Name a colour{' please' * (i % 3)} {i}.",
                        "labeler": f"labeler {i % 5 + 1}",
                        "responses": [f"{w} {rng.choice(WORDS)}{' box' * rng.randint(0, 3)}." for w in words],
                        "ranks": [WORDS.index(w) for w in words]})
    demos = [{"prompt": f"Name a colour {i}.", "response": f"{WORDS[i % 2]}."} for i in range(9)]
    return reward.Config(init=str(tmp_path / "sft.pt"), data=(write(tmp_path / "comparisons.jsonl", records),),
                         demos=(write(tmp_path / "demos.jsonl", demos),), out=str(tmp_path / "rm.pt"), lr=5e-3,
                         device="cpu", precision="fp32", batch=8, epochs=3)


def captured(monkeypatch, cfg):
    """What reward.main hands to the loop: (networks, batch_at, losses), evaluate."""
    calls = []

    def train(*args, evaluate, **more):
        calls.append((args[:3], evaluate))
        return {}
    monkeypatch.setattr(reward.train, "train", train)
    reward.main(cfg)
    return calls[0]


@pytest.mark.parametrize("microbatch", [1, 3])
def test_any_microbatch_size_gives_the_same_gradient(config, monkeypatch, microbatch):
    """A prompt counts once, however many pairs it has."""
    def gradient(size):
        ([network], batch_at, losses), _ = captured(monkeypatch, replace(config, microbatch=size))
        logged = Counter()
        for weight, loss, stats in losses(batch_at(0)):
            (weight * loss).backward()
            logged.update({k: weight * v.item() for k, v in stats.items()})
        return [p.grad for p in network.module.parameters() if p.grad is not None], logged
    (whole, stats), (parts, same) = gradient(0), gradient(microbatch)
    assert same == pytest.approx(stats, rel=1e-5) and set(stats) == {"loss", "accuracy"}
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_pads_change_neither_the_loss_nor_the_statistics(config, monkeypatch):
    def look():
        (_, batch_at, losses), evaluate = captured(monkeypatch, config)
        (_, loss, stats), = losses(batch_at(0))
        return {"loss of the step": loss.item()} | {k: v.item() for k, v in stats.items()}, evaluate

    def wider(rows, value=0, device="cpu"):
        ids, length = real(rows, value, device)
        return data.Prompts(F.pad(ids, (0, 5), value=77), length)
    real = data.pad
    step, evaluate = look()
    rm = scorer_from(load_model(config.init, "gpt")[0])
    metrics = evaluate(0, rm)
    monkeypatch.setattr(data, "pad", wider)
    padded_step, evaluate = look()
    assert padded_step == pytest.approx(step, rel=1e-5)
    assert evaluate(0, rm) == pytest.approx(metrics, abs=1e-5)


def test_a_tiny_run_learns_the_preference_and_demonstrations_score_0(config):
    metrics = reward.main(config)
    assert metrics["held_out_accuracy"] > 0.9 and metrics["held_out_labelers_accuracy"] > 0.9
    assert metrics["held_out_pairs"] > 30
    rm, _ = load_model(config.out, "scorer")
    demos = data.demonstrations(formats.read_records(config.demos, Counter()), Counter())
    demos = data.encode_demonstrations(demos, ENC, 48, Counter())
    assert metrics["demonstrations_mean_score"] == pytest.approx(0, abs=1e-5)
    assert reward.mean_score(rm, demos, "cpu") == pytest.approx(0, abs=1e-5)
    each = [rm.score(torch.tensor([ids]), torch.tensor([len(ids)])).item() for ids, _ in demos]
    assert sum(each) == pytest.approx(0, abs=1e-4) and max(each) > 0.1


def test_labelers_and_prompts_that_are_held_out_are_never_trained_on(config, monkeypatch):
    seen, real = [], data.rankings_batch

    def watched(encoded, device):
        seen.extend(r.ranking for r in encoded)
        return real(encoded, device)
    monkeypatch.setattr(data, "rankings_batch", watched)
    cfg = replace(config, held_out_labelers=("labeler 2",))
    ([network], batch_at, losses), evaluate = captured(monkeypatch, cfg)
    for step in range(20):
        list(losses(batch_at(step)))
    trained = {str(r.messages) for r in seen}
    assert "labeler 2" not in {r.labeler for r in seen} and len(trained) > 100
    seen.clear()
    evaluate(0, network.module)
    held = {str(r.messages) for r in seen}
    assert "labeler 2" in {r.labeler for r in seen} and len(held) > 15 and not held & trained


def test_labelers_who_are_held_out_are_measured_on_prompts_that_nobody_was_trained_on(config, tmp_path, monkeypatch):
    """Though they ranked the answers to all prompts, as the others did."""
    with open(config.data[0]) as f:
        records = [json.loads(line) for line in f]
    both = write(tmp_path / "both.jsonl", [r | {"labeler": who} for r in records for who in ("labeler 1", "labeler 2")])
    seen, real = [], data.rankings_batch

    def watched(encoded, device):
        seen.extend((str(r.ranking.messages), r.ranking.labeler) for r in encoded)
        return real(encoded, device)
    monkeypatch.setattr(data, "rankings_batch", watched)
    cfg = replace(config, data=(both,), held_out_labelers=("labeler 2",))
    ([network], batch_at, losses), evaluate = captured(monkeypatch, cfg)
    for step in range(25):
        list(losses(batch_at(step)))
    trained = {prompt for prompt, _ in seen}
    seen.clear()
    metrics = evaluate(0, network.module)
    measured = {who: {prompt for prompt, w in seen if w == who} for who in ("labeler 1", "labeler 2")}
    assert len(trained) > 150 and 5 < len(measured["labeler 2"]) < 50 and not measured["labeler 2"] & trained
    assert measured["labeler 1"] == measured["labeler 2"], "the same prompts"
    assert metrics["held_out_labelers_accuracy"] == metrics["held_out_accuracy"], "they ranked alike"


def test_held_out_loss_is_the_mean_over_all_pairs_of_prompts_that_are_held_out(config, monkeypatch):
    seen, real = [], data.rankings_batch

    def watched(encoded, device):
        seen.extend(r.ranking for r in encoded)
        return real(encoded, device)
    monkeypatch.setattr(data, "rankings_batch", watched)
    ([network], _, _), evaluate = captured(monkeypatch, replace(config, held_out_labelers=()))
    network.module.head.weight.data *= 20                                    # scores that differ
    metrics, rm, each = evaluate(0, network.module), network.module, []
    for r in seen:
        rows = [data.encode_prompt(ENC, r.messages) + data.encode_response(ENC, x) for x in r.responses]
        with torch.no_grad():
            score = [rm.score(*data.pad([row])).item() for row in rows]
        each += [math.log(1 + math.exp(score[j] - score[i])) for i, j in r.pairs]
    assert len(each) == metrics["held_out_pairs"] > 30 and max(each) > 3 * min(each)
    assert metrics["held_out_loss"] == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_too_few_rankings_are_refused(config):
    with pytest.raises(ValueError, match="too few to hold out"):
        reward.main(replace(config, held_out=0.0))
