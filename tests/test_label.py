"""Labelling: ranks from ratings, K responses for each prompt, records for the reward model."""

import json
import os
import random
from collections import Counter
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

import data
import generate
import interop
import label
import sandbox
import sft as fine_tuning
from model import GPT, GPTConfig, Scorer
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")


def talkative(seed=0):
    """A tiny random model whose greedy replies to two prompts differ."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(ENC.n_vocab, 160, 1, 2, 32)).eval()
    torch.nn.init.normal_(model.wte.weight, 0.0, 0.1)
    torch.nn.init.normal_(model.wpe.weight, 0.0, 1.0)
    return model


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("label") / "sft.pt")
    save_checkpoint(path, talkative(), interop.tokenizer_id(ENC), {"stage": "sft"})
    return path


def written(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


@pytest.fixture
def config(sft, tmp_path):
    return label.Config(
        init=(sft,), out=str(tmp_path / "c.jsonl"), n=14, k_min=2, k_max=5, max_new=5, batch=4
    )


# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratings", "ranks"),
    [
        ([7, 3, 7], [1, 2, 1]),
        ([1], [1]),
        ([2, 2, 2], [1, 1, 1]),
        ([1, 2, 3, 4], [4, 3, 2, 1]),
        ([5, 7, 5, 1], [2, 1, 2, 3]),
    ],
)
def test_ranks_of_ratings(ratings, ranks):
    assert label.ranks_of(ratings) == ranks


def test_every_prompt_gets_as_many_responses_as_asked_for():
    prompts, k = sandbox.prompts(7), [2, 5, 3, 1, 4, 9, 2]
    cfg = label.Config(max_new=4, batch=3)
    found = label.sample_responses([talkative()], None, ENC, prompts, k, cfg)
    assert [len(r) for r in found] == k
    assert all(isinstance(r, str) and "<|endoftext|>" not in r for rs in found for r in rs)
    assert found == label.sample_responses([talkative()], None, ENC, prompts, k, cfg)
    other = replace(cfg, seed=1)
    assert found != label.sample_responses([talkative()], None, ENC, prompts, k, other)


def test_responses_belong_to_their_prompt_and_come_from_every_model():
    """Greedy, so that each reply can be made alone; the two models are asked in turn."""
    models, prompts = [talkative(0), talkative(1)], sandbox.prompts(9)
    alone = []
    for p in prompts:
        ids = data.encode_prompt(ENC, p.messages)
        said = [generate.sample(m, [ids], 6, ENC.eot_token, temperature=0) for m in models]
        alone.append([data.decode_response(ENC, x.responses[0]) for x in said])
    assert len({a for a, _ in alone}) > 2 and all(a != b for a, b in alone)
    cfg = label.Config(temperatures=(0.0,), max_new=6, batch=4)
    found = label.sample_responses(models, None, ENC, prompts, [4] * 9, cfg)
    assert all(set(rs) <= set(both) for rs, both in zip(found, alone))
    asked = Counter(both.index(r) for rs, both in zip(found, alone) for r in rs)
    assert min(asked[0], asked[1]) >= 8


def key(prompt):
    """How a model reads it, as text."""
    return f"{data.encode_prompt(ENC, prompt.messages)}"


@pytest.fixture
def asked(monkeypatch):
    """What is drawn and sampled -> (settings drawn, one after the other; calls of the sampler). A
    response says to which prompt, by which model and at which temperature it was sampled."""
    drawn, calls = [], []

    class Drawing(random.Random):
        def randrange(self, n):
            drawn.append(super().randrange(n))
            return drawn[-1]

    def sample(model, prompts, max_new, eos, n, temperature, seed):
        calls.append((model.name, temperature, n, prompts, seed))
        said = [f"{prompt} {model.name} {temperature}" for prompt in prompts for _ in range(n)]
        return SimpleNamespace(responses=[ENC.encode_ordinary(text) for text in said])

    monkeypatch.setattr(label, "random", SimpleNamespace(Random=Drawing))
    monkeypatch.setattr(label, "sample", sample)
    return drawn, calls


def test_responses_are_sampled_at_the_settings_that_their_prompt_drew(asked):
    """As often as it drew each of them; for those of one setting a prompt is computed once."""
    drawn, calls = asked
    size = GPTConfig(ENC.n_vocab, 256, 1, 2, 32)
    models = [SimpleNamespace(name=name, cfg=size) for name in ("one", "two")]
    prompts = list({key(p): p for p in sandbox.prompts(60)}.values())
    k = [2 + i % 5 for i in range(len(prompts))]
    cfg = label.Config(temperatures=(0.5, 1.0, 1.3), max_new=4, batch=8)
    found = label.sample_responses(models, None, ENC, prompts, k, cfg)
    settings = [f"{name} {t}" for name in ("one", "two") for t in cfg.temperatures]
    draws = iter(drawn)
    for prompt, k_i, responses in zip(prompts, k, found):
        wanted = Counter(f"{key(prompt)} {settings[i]}" for i in islice(draws, k_i))
        assert Counter(responses) == wanted
    assert set(drawn) == set(range(6)) and next(draws, None) is None
    computed = [(f"{ids}", *setting) for *setting, _, ids_of, _ in calls for ids in ids_of]
    assert len(set(computed)) == len(computed) == sum(len(set(x)) for x in found)
    assert any(n > 1 for _, _, n, _, _ in calls)
    assert any(len(together) > 1 for _, _, _, together, _ in calls)
    # no two calls draw the same numbers
    assert len({seed for *_, seed in calls}) == len(calls)


def test_rankings_have_a_labeler_and_a_rank_for_each_response(config):
    cfg = replace(config, n=60)
    metrics = label.main(cfg)
    records = written(cfg.out)
    assert metrics["records"] == len(records) >= 60
    for r in records:
        assert r["labeler"] in sandbox.LABELERS and r["use_case"] in sandbox.USE_CASES
        assert 2 <= len(r["responses"]) == len(r["ranks"]) <= 5
        assert set(r["ranks"]) == set(range(1, max(r["ranks"]) + 1))
    assert {len(r["responses"]) for r in records} == {2, 3, 4, 5}
    assert {r["labeler"] for r in records} == set(sandbox.LABELERS)


def test_labelling_twice_writes_the_same_bytes(config, tmp_path):
    other = replace(config, out=str(tmp_path / "again.jsonl"))
    label.main(config)
    label.main(other)
    with open(config.out, "rb") as f, open(other.out, "rb") as g:
        assert f.read() == g.read()


def test_a_file_is_written_once_and_no_other_is_replaced(config, tmp_path, capsys):
    label.main(config)
    before = (tmp_path / "c.jsonl").read_bytes()
    assert label.main(config) is None
    assert "c.jsonl is finished already: delete it to make it again" in capsys.readouterr().out
    for change, says in (({"seed": 1}, "--seed 0 instead of 1"), ({"batch": 5}, "--batch 4 inst")):
        with pytest.raises(
            ValueError, match=f"c.jsonl is there already, and it was made with {says}"
        ):
            label.main(replace(config, **change))
    other = GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 16))
    x = str(tmp_path / "x.pt")
    save_checkpoint(x, other, interop.tokenizer_id(ENC), {})
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="x.pt is one of the inputs: choose another name"):
            label.main(replace(config, init=(x,), out=x, overwrite=overwrite))
    assert (tmp_path / "c.jsonl").read_bytes() == before
    assert label.main(replace(config, seed=1, overwrite=True))["records"]
    assert (tmp_path / "c.jsonl").read_bytes() != before
    made = ["c.jsonl", "c.jsonl.made.json", "x.pt"]
    assert [name for name in sorted(os.listdir(tmp_path)) if name != "x.pt.lock"] == made


def test_a_model_whose_logits_are_not_finite_says_nothing(config, tmp_path):
    bad = GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 16))
    torch.nn.init.constant_(bad.wte.weight, 1e30)
    path = str(tmp_path / "bad.pt")
    save_checkpoint(path, bad, interop.tokenizer_id(ENC), {})
    with pytest.raises(ValueError, match="the model's logits are not finite: use an earlier check"):
        label.main(replace(config, init=(path,)))
    assert sorted(os.listdir(tmp_path)) == ["bad.pt", "c.jsonl.lock"]


@pytest.mark.parametrize(("overlap", "labelers"), [(0.0, 1), (1.0, 2)])
def test_two_labelers_rank_the_same_responses_of_a_prompt_that_overlaps(config, overlap, labelers):
    cfg = replace(config, overlap=overlap)
    assert label.main(cfg)["records"] == 14 * labelers
    by_outputs = {}
    for r in written(cfg.out):
        by_outputs.setdefault((str(r["prompt"]), str(r["responses"])), set()).add(r["labeler"])
    assert len(by_outputs) == 14 and all(len(names) == labelers for names in by_outputs.values())


def test_ranks_are_those_of_the_ratings(config):
    """The same labelers with the same errors write both."""
    label.main(config)
    ranked = written(config.out)
    rankings = interop.load("rankings", (config.out,), Counter(), flag="--data")
    rates = replace(config, rate=True, out=f"{config.out}.rated")
    label.main(rates)
    rated = written(rates.out)
    assert [label.ranks_of(r.pop("ratings")) for r in rated] == [r.pop("ranks") for r in ranked]
    assert rated == ranked
    assert 0 < len(rankings) <= len(ranked)


def test_rate_writes_ratings_from_1_to_7(config):
    label.main(replace(config, rate=True, n=40))
    records = written(config.out)
    assert all("ranks" not in r and len(r["ratings"]) == len(r["responses"]) for r in records)
    seen = {x for r in records for x in r["ratings"]}
    assert seen <= set(range(1, 8)) and len(seen) > 3


def test_what_is_rated_7_trains_a_model(config, tmp_path, capsys):
    """label.py --rate, then sft.py --rated."""
    label.main(replace(config, rate=True, n=40, seed=1))
    best = []
    for r in written(config.out):
        said = zip(r["responses"], r["ratings"])
        best += [(r["prompt"], x) for x, rating in said if rating == 7 and x]
    read = interop.load("demonstrations", (config.out,), Counter(), flag="--rated")
    assert len(best) > 4
    assert [(d.messages[:-1], d.messages[-1]["content"]) for d in read] == best
    cfg = fine_tuning.Config(
        init=config.init[0],
        rated=(config.out,),
        out=str(tmp_path / "feedme.pt"),
        demonstrations=12,
        epochs=1,
        max_new=4,
        ptx_mix=0.0,
        device="cpu",
        precision="fp32",
    )
    assert fine_tuning.main(cfg)["held_out_loss"] > 0
    assert f"{len(best)} samples rated 7 of 7" in capsys.readouterr().out
    assert len(torch.load(cfg.out)["meta"]["inputs"]["rated"]) == 1


def test_swap_mixes_in_what_answers_other_prompts():
    responses = [[f"reply to {i}"] * (2 + i % 4) for i in range(200)]

    def strangers(share):
        swapped = label.swap_some(responses, share, random.Random(0))
        assert [len(x) for x in swapped] == [len(x) for x in responses]
        own = [r == f"reply to {i}" for i, of_prompt in enumerate(swapped) for r in of_prompt]
        return 1 - sum(own) / len(own)

    assert strangers(0.0) == 0
    assert strangers(0.5) == pytest.approx(0.5, abs=0.08)


def test_swap_none_keeps_what_was_sampled(config):
    """A model that answers greedily says one thing to a prompt; --swap 1 gives it another's."""
    greedy = replace(config, temperatures=(0.0,), overlap=0.0)
    responses = []
    for swap in (0.0, 1.0):
        cfg = replace(greedy, swap=swap, out=f"{config.out}.{swap}")
        label.main(cfg)
        responses.append([set(r["responses"]) for r in written(cfg.out)])
    own, swapped = responses
    assert all(len(x) == 1 for x in own) and len(set.union(*own)) > 2
    assert any(len(x) > 1 for x in swapped) and set.union(*swapped) <= set.union(*own)


def test_prompts_of_a_file_are_labelled_by_their_meta(config, tmp_path):
    path = str(tmp_path / "prompts.jsonl")
    write_jsonl(
        path,
        [
            {"prompt": p.messages, "use_case": p.use_case, "meta": p.meta}
            for p in sandbox.prompts(5, 9)
        ],
    )
    label.main(replace(config, prompts=(path,), overlap=0.0))
    assert [r["prompt"] for r in written(config.out)] == [p.messages for p in sandbox.prompts(5, 9)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_min": 6}, "--k-min 6 is more than --k-max 5"),
        ({"init": ()}, "--init"),
        ({"temperatures": (1.0, 0.009)}, "--temperatures 0.009 is too small"),
        ({"max_new": 160}, "--max-new"),
        ({"init": ("none.pt",)}, "none.pt does not exist"),
        ({"out": "/no/such/folder/c.jsonl"}, "not a writable folder"),
    ],
)
def test_refusals_say_what_to_change(config, change, message):
    with pytest.raises(ValueError, match=message):
        label.main(replace(config, **change))


def test_prompts_without_an_answer_key_and_reward_models_are_refused(config, tmp_path):
    path, rm = str(tmp_path / "prompts.jsonl"), str(tmp_path / "rm.pt")
    write_jsonl(path, [{"prompt": "Who are you?"}])
    with pytest.raises(ValueError, match="meta"):
        label.main(replace(config, prompts=(path,)))
    save_checkpoint(rm, Scorer(GPTConfig(ENC.n_vocab, 64, 1, 2, 16)), interop.tokenizer_id(ENC), {})
    with pytest.raises(ValueError, match="reward model"):
        label.main(replace(config, init=(rm,)))


# -------------------------------------------------------------------------------------------------
# tasks for people


def test_tasks_for_people_are_different_responses_that_nobody_ranked(config, tmp_path):
    """To anybody's prompts, of which the simulated labelers know nothing."""
    mine = tmp_path / "mine.csv"
    mine.write_text("prompt,use_case\nHow are you?,chat\nWhere is Kleve?,open qa\n")
    cfg = replace(config, prompts=(str(mine),), k_min=6, k_max=6)
    with pytest.raises(ValueError, match="--unlabeled samples for people"):
        label.main(cfg)
    label.main(replace(cfg, unlabeled=True))
    records = written(cfg.out)
    assert [r["use_case"] for r in records] == ["chat", "open qa"]
    for r in records:
        assert r.keys() == {"prompt", "responses", "use_case"}
        assert 2 <= len(set(r["responses"])) == len(r["responses"]) <= 6
        with pytest.raises(ValueError, match='"ranks" is missing'):
            interop.load("rankings", (cfg.out,), Counter(), flag="--data")


def test_where_all_responses_are_the_same_nobody_is_asked(config):
    cfg = replace(config, unlabeled=True, temperatures=(0.0,))
    with pytest.raises(ValueError, match="all responses to each prompt are the same"):
        label.main(cfg)
    assert not os.path.exists(cfg.out)


def test_of_tasks_of_the_sandbox_the_answer_key_is_kept(config):
    label.main(replace(config, unlabeled=True))
    found = interop.load("prompts", (config.out,), Counter(), flag="--prompts")
    assert found and all(p.meta for p in found)


def test_the_best_of_some_responses(sft, config, tmp_path):
    """Response by response, each the one that the reward model scores highest of its four."""
    torch.manual_seed(3)
    rm = Scorer(GPTConfig(ENC.n_vocab, 160, 1, 2, 32)).eval()
    torch.nn.init.normal_(rm.trunk.wpe.weight, 0.0, 1.0)
    prompts = sandbox.prompts(1)
    cfg = label.Config(temperatures=(1.0,), max_new=6, best_of=4)
    drawn = []

    def sample(*args, **how):
        drawn.append(generate.sample(*args, **how))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label, "sample", sample)
        [found] = label.sample_responses([talkative()], rm, ENC, prompts, [3], cfg)
    [samples] = drawn
    with torch.no_grad():
        scores = rm.score(samples.ids, samples.length).tolist()
    texts = [data.decode_response(ENC, ids) for ids in samples.responses]
    for i, text in enumerate(found):
        four = range(4 * i, 4 * i + 4)
        assert text == texts[max(four, key=scores.__getitem__)]
    assert len(texts) == 12 and len(found) == 3 and len(set(scores)) > 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"best_of": 4}, "--best-of needs --rm FILE"),
        ({"rm": "rm.pt"}, "--best-of needs --rm FILE"),
        ({"unlabeled": True, "rate": True}, "leave out --rate"),
    ],
)
def test_settings_that_do_not_go_together(config, change, says):
    with pytest.raises(ValueError, match=says):
        label.main(replace(config, **change))
