"""Stage 2: all pairs of a prompt at once, shared prompts, calibration, and a preference learnt."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import data
import interop
import reward
from data import EncodedRanking
from model import GPT, GPTConfig, Scorer
from plumbing.files import read_checkpoint, save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")
CFG = reward.Config(device="cpu", precision="fp32", lr=5e-3, batch=8, epochs=3)


def ranked(rng, K, levels=3, vocab=20):
    """K random responses with ranks 1 .. levels, ties among them, and at least one pair."""
    ranks = [1, 2] + [rng.randint(1, levels) for _ in range(K - 2)]
    rng.shuffle(ranks)
    pairs = [(i, j) for i in range(K) for j in range(K) if ranks[i] < ranks[j]]
    rows = [[rng.randrange(vocab) for _ in range(rng.randint(1, 6))] for _ in range(K + 1)]
    return EncodedRanking(rows[0], rows[1:], pairs, rng.choice(["chat", "other"])), ranks


def some(seed=0, sizes=(4, 9, 2, 6)):
    rng = random.Random(seed)
    return [ranked(rng, K)[0] for K in sizes]


def loss_of(score, encoded):
    batch = data.comparisons_batch(encoded)
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


def weights_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("K", range(4, 10))
def test_pairwise_loss_equals_a_double_loop_with_ties(K):
    rng = random.Random(K)
    encoded = [ranked(rng, k) for k in (K, 4, K)]
    score = torch.randn(sum(len(ranks) for _, ranks in encoded), dtype=torch.float64)
    prompts, first = [], 0
    for _, ranks in encoded:
        pairs = []
        for i, better in enumerate(ranks):
            for j, worse in enumerate(ranks):
                if better < worse:
                    pairs.append(math.log(1 + math.exp(score[first + j] - score[first + i])))
        prompts.append(sum(pairs) / len(pairs))
        first += len(ranks)
    got = loss_of(score, [e for e, _ in encoded]).item()
    assert got == pytest.approx(sum(prompts) / 3, rel=1e-6)


def test_two_responses_give_the_softplus_of_their_difference():
    encoded = [EncodedRanking([1], [[2], [3]], [(1, 0)], "")]
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
        responses = [r.responses[i] for i in order]
        pairs = [(order.index(i), order.index(j)) for i, j in reversed(r.pairs)]
        return r._replace(responses=responses, pairs=pairs)

    def loss(encoded):
        return loss_of(reward.score_responses(rm, data.comparisons_batch(encoded)), encoded)

    torch.testing.assert_close(loss(encoded[::-1]), loss(encoded))
    torch.testing.assert_close(loss([shuffled(r) for r in encoded]), loss(encoded))


def test_a_prompt_computed_once_scores_as_one_forward_for_each_response(doubles):
    rm, encoded = tiny_scorer(), some()
    direction = torch.randn(21)

    def gradient(score):
        rm.zero_grad()
        (score * direction).sum().backward()
        return [p.grad.clone() for p in rm.parameters() if p.grad is not None]

    shared = reward.score_responses(rm, data.comparisons_batch(encoded))
    whole = [r.prompt + response for r in encoded for response in r.responses]
    alone = [rm.score(torch.tensor([ids]), torch.tensor([len(ids)]))[0] for ids in whole]
    alone = torch.stack(alone)
    torch.testing.assert_close(shared, alone, atol=1e-10, rtol=0)
    for a, b in zip(gradient(shared), gradient(alone)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_any_microbatch_size_gives_the_same_gradient(microbatch):
    """A prompt counts once, however many pairs it has."""
    rm, rankings = tiny_scorer(), some(sizes=(4, 9, 2, 6, 3, 2, 5, 2))

    def gradient(size):
        rm.zero_grad()
        logged = Counter()
        cfg = replace(CFG, microbatch=size)
        for weight, loss, stats in reward.reward_losses(rm, rankings, cfg, "cpu"):
            (weight * loss).backward()
            logged.update({k: weight * v.item() for k, v in stats.items()})
        return [p.grad.clone() for p in rm.parameters() if p.grad is not None], logged

    (whole, stats), (parts, same) = gradient(0), gradient(microbatch)
    assert same == pytest.approx(stats, rel=1e-5) and set(stats) == {"loss", "accuracy"}
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_pads_change_neither_the_loss_nor_the_statistics():
    """A batch is padded to its longest prompt and response; alone, a ranking has other pads."""
    rm, rankings = tiny_scorer(), some()
    rm.head.weight.data *= 20  # scores that differ
    [(weight, loss, stats)] = reward.reward_losses(rm, rankings, CFG, "cpu")
    alone = [next(reward.reward_losses(rm, [r], CFG, "cpu")) for r in rankings]
    assert weight == 1 and len({len(r.prompt) for r in rankings}) > 1
    assert loss.item() == pytest.approx(sum(x.item() for _, x, _ in alone) / 4, rel=1e-5)
    for name, value in stats.items():
        assert value.item() == pytest.approx(sum(s[name].item() for _, _, s in alone) / 4, rel=1e-5)
    measured = reward.quality(rm, rankings, "cpu", 0)
    assert reward.quality(rm, rankings, "cpu", 1) == pytest.approx(measured, abs=1e-5)
    demos = [(r.prompt + r.responses[0], None) for r in rankings]
    mean = reward.mean_score(rm, demos, "cpu", 0)
    assert reward.mean_score(rm, demos, "cpu", 1) == pytest.approx(mean, abs=1e-5)

    batch = data.comparisons_batch(rankings)
    wider = batch._replace(
        prompts=data.Padded(F.pad(batch.prompts.ids, (0, 5), value=17), batch.prompts.length),
        ids=F.pad(batch.ids, (0, 5), value=13),
    )
    want = reward.score_responses(rm, batch)
    torch.testing.assert_close(reward.score_responses(rm, wider), want, atol=1e-5, rtol=1e-5)


# ---- the normalisation and what is reported ----------------------------------------------------


def test_normalise_gives_demonstrations_mean_score_0_and_changes_no_margin():
    rm, rankings = tiny_scorer(), some()
    rm.head.weight.data *= 20
    rm.head.bias.data += 9.0
    demos = [(r.prompt + r.responses[0], None) for r in some(seed=1)]
    before = weights_of(rm)
    margins = reward.pair_margins(rm, rankings, "cpu", 0)
    assert reward.mean_score(rm, demos, "cpu", 0) > 1
    reward.normalise(rm, demos, "cpu", 3)
    assert reward.mean_score(rm, demos, "cpu", 0) == pytest.approx(0, abs=1e-5)
    each = [rm.score(torch.tensor([ids]), torch.tensor([len(ids)])).item() for ids, _ in demos]
    assert sum(each) == pytest.approx(0, abs=1e-4) and max(each) > 0.1
    again = reward.pair_margins(rm, rankings, "cpu", 0)
    assert [m for m, _ in again] == pytest.approx([m for m, _ in margins], abs=1e-5)
    del before["head.bias"]
    assert_same_weights({k: v for k, v in weights_of(rm).items() if k in before}, before)


def test_measuring_changes_no_weight():
    rm, rankings = tiny_scorer(), some()
    before = weights_of(rm)
    reward.quality(rm, rankings, "cpu", 2)
    reward.mean_score(rm, [(r.prompt, None) for r in rankings], "cpu", 2)
    assert_same_weights(weights_of(rm), before)
    assert all(p.grad is None for p in rm.parameters())


def test_quality_is_that_of_every_pair_scored_alone():
    rm, rankings = tiny_scorer(), some(sizes=(4, 9, 2, 6, 3, 2, 5, 2))
    rm.head.weight.data *= 20  # scores that differ
    each, cases = [], {"chat": [], "other": []}
    for r in rankings:
        rows = [r.prompt + response for response in r.responses]
        with torch.no_grad():
            score = [rm.score(*data.pad([row])).item() for row in rows]
        each += [math.log(1 + math.exp(score[j] - score[i])) for i, j in r.pairs]
        cases[r.use_case] += [float(score[i] > score[j]) for i, j in r.pairs]
    metrics = reward.quality(rm, rankings, "cpu", 3)
    assert len(each) == metrics["held_out_pairs"] > 30 and max(each) > 3 * min(each)
    assert metrics["held_out_loss"] == pytest.approx(sum(each) / len(each), rel=1e-4)
    right = cases["chat"] + cases["other"]
    assert 0 < sum(right) < len(right)
    assert metrics["held_out_accuracy"] == pytest.approx(sum(right) / len(right))
    for name, found in cases.items():
        assert metrics[f"accuracy {name}"] == pytest.approx(sum(found) / len(found))


def test_calibration_error_in_closed_form():
    def margins(confidence, right, wrong):
        margin = math.log(confidence / (1 - confidence))
        return torch.tensor([margin] * right + [-margin] * wrong)

    calibrated, sure = margins(0.75, 3, 1), margins(0.92, 6, 6)
    assert reward.calibration_error(calibrated) == pytest.approx(0, abs=1e-6)
    assert reward.calibration_error(sure) == pytest.approx(0.42, abs=1e-6)
    both = reward.calibration_error(torch.cat([calibrated, sure]))
    assert both == pytest.approx(0.42 * 12 / 16, abs=1e-6)


# ---- whole runs: an answer is as good as its first word ----------------------------------------

WORDS = ["red", "blue", "green", "white", "black", "yellow"]


def write(path, records):
    write_jsonl(str(path), records)
    return str(path)


def comparisons(n=200):
    """Rankings of 2 to 5 answers by 5 labelers, who all order the first words as WORDS does."""
    rng, records = random.Random(0), []
    for i in range(n):
        words = rng.choices(WORDS, k=rng.randint(2, 5))
        answers = [f"{w} {rng.choice(WORDS)}{' box' * rng.randint(0, 3)}." for w in words]
        records.append(
            {
                "prompt": f"Name a colour{' please' * (i % 3)} {i}.",
                "labeler": f"labeler {i % 5 + 1}",
                "responses": answers,
                "ranks": [WORDS.index(w) for w in words],
            }
        )
    return records


@pytest.fixture
def config(tmp_path):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(ENC.n_vocab, 48, 1, 2, 32, dropout=0.2))
    save_checkpoint(str(tmp_path / "sft.pt"), gpt, interop.tokenizer_id(ENC), {})
    demos = [{"prompt": f"Name a colour {i}.", "response": f"{WORDS[i % 2]}."} for i in range(9)]
    return replace(
        CFG,
        init=str(tmp_path / "sft.pt"),
        data=(write(tmp_path / "comparisons.jsonl", comparisons()),),
        demos=(write(tmp_path / "demos.jsonl", demos),),
        out=str(tmp_path / "rm.pt"),
    )


def test_demonstrations_score_0_in_bf16_too(config):
    """Autocast keeps the weights that it has rounded; the bias of before is not to be used."""
    metrics = reward.main(replace(config, precision="bf16", epochs=1))
    assert metrics["demonstrations_mean_score"] == pytest.approx(0, abs=0.01)
    rm, _ = interop.load_model(config.out, Scorer)
    assert abs(rm.head.bias.item()) > 0.05, "there was something to shift"


def test_a_tiny_run_learns_the_preference_and_demonstrations_score_0(config):
    metrics = reward.main(config)
    assert metrics["held_out_accuracy"] > 0.9 and metrics["held_out_labelers_accuracy"] > 0.9
    assert metrics["held_out_pairs"] > 30
    rm, checkpoint = interop.load_model(config.out, Scorer)
    assert checkpoint["meta"]["metrics"] == metrics
    demos = interop.load("demonstrations", config.demos, Counter(), flag="--demos")
    demos = interop.encode_demonstrations(demos, ENC, 48, Counter())
    assert metrics["demonstrations_mean_score"] == pytest.approx(0, abs=1e-5)
    each = [rm.score(torch.tensor([ids]), torch.tensor([len(ids)])).item() for ids, _ in demos]
    assert sum(each) == pytest.approx(0, abs=1e-4) and max(each) > 0.1


def test_the_trunk_starts_from_the_sft_model(config):
    """A run whose steps are too small to change a weight leaves it as it was."""
    sft, _ = interop.load_model(config.init, GPT)
    reward.main(replace(config, lr=1e-60, epochs=1, seed=5))  # the fixture's own is of seed 0
    rm, _ = interop.load_model(config.out, Scorer)
    assert_same_weights(weights_of(rm.trunk), weights_of(sft))


def test_another_seed_starts_from_another_head_and_takes_the_data_in_another_order(
    config, monkeypatch
):
    started = []

    def look(run, networks, batches, *rest, **more):
        started.append((weights_of(networks[0].module.head), next(batches(0))))
        return {}

    monkeypatch.setattr(reward, "train", look)
    for seed in (1, 1, 2):
        reward.main(replace(config, seed=seed))
    (head, first), (same_head, same), (other_head, other) = started
    assert_same_weights(same_head, head)
    assert same == first != other and not torch.equal(other_head["weight"], head["weight"])


def test_evaluations_change_no_weight(config):
    weights = []
    for every in (1, 0):
        cfg = replace(config, epochs=1, eval_every=every, out=f"{config.out}.{every}")
        reward.main(cfg)
        with open(cfg.out + ".log.jsonl") as f:
            means = [json.loads(line).get("demonstrations_mean_score") for line in f]
        # the normalisation comes once, at the end: an evaluation before it sees what was learnt
        assert means[-1] == pytest.approx(0, abs=1e-5)
        if every:
            assert max(abs(m) for m in means) > 0.01
        else:
            assert means[:-1] == [None] * (len(means) - 1)
        weights.append(read_checkpoint(cfg.out)["weights"])
    assert_same_weights(*weights)


def prompts_of(encoded):
    return {ENC.decode(r.prompt) for r in encoded}


def test_labelers_and_prompts_that_are_held_out_are_never_trained_on(config):
    cfg, block = replace(config, held_out_labelers=("labeler 2",)), 48
    train_on, held_out, outsiders, _ = reward.load_rankings(cfg, ENC, block, Counter())
    asked = {
        ENC.decode(data.encode_prompt(ENC, [{"role": "user", "content": r["prompt"]}])): r
        for r in comparisons()
    }
    who = [{asked[p]["labeler"] for p in prompts_of(x)} for x in (train_on, held_out, outsiders)]
    others = {f"labeler {i}" for i in (1, 3, 4, 5)}
    assert who == [others, others, {"labeler 2"}]
    trained, held = prompts_of(train_on), prompts_of(held_out) | prompts_of(outsiders)
    assert len(trained) > 100 and len(held) > 15 and not held & trained


def test_labelers_who_are_held_out_are_measured_on_prompts_that_nobody_was_trained_on(
    config, tmp_path
):
    """Though they ranked the answers to all prompts, as the others did."""
    records = []
    for r in comparisons():
        records += [r | {"labeler": name} for name in ("labeler 1", "labeler 2")]
    both = write(tmp_path / "both.jsonl", records)
    cfg = replace(config, data=(both,), held_out_labelers=("labeler 2",))
    train_on, held_out, outsiders, agreed = reward.load_rankings(cfg, ENC, 48, Counter())
    trained = prompts_of(train_on)
    assert len(trained) > 150 and 5 < len(prompts_of(outsiders)) < 50
    assert not prompts_of(outsiders) & trained
    assert prompts_of(held_out) == prompts_of(outsiders), "the same prompts"
    assert agreed[0] == 1 and agreed[1] > 200
    metrics = reward.main(replace(cfg, epochs=1))
    assert metrics["held_out_labelers_accuracy"] == metrics["held_out_accuracy"], (
        "they ranked alike"
    )
    assert metrics["labeler_agreement"] == 1


def test_what_is_measured_is_what_was_held_out(config):
    """The metrics of a run are those of its result on the rankings that are not trained on."""
    metrics = reward.main(replace(config, epochs=1))
    assert "labeler_agreement" not in metrics, "nobody ranked the same outputs as somebody else"
    rm, _ = interop.load_model(config.out, Scorer)
    _, held_out, outsiders, _ = reward.load_rankings(config, ENC, 48, Counter())
    want = reward.quality(rm, held_out, "cpu", 0)
    assert {k: metrics[k] for k in want} == pytest.approx(want, abs=1e-6)
    margins = reward.pair_margins(rm, outsiders, "cpu", 0)
    assert metrics["held_out_labelers_accuracy"] == reward.accuracy(margins)
    assert metrics["held_out_labelers_accuracy"] != metrics["held_out_accuracy"]


def test_too_few_rankings_are_refused(config):
    with pytest.raises(ValueError, match="too few to hold out"):
        reward.main(replace(config, held_out=1e-9))
