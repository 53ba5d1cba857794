"""evidence/ceiling.py: the judge in place of the reward model, and a policy that learns from it."""

import json
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch

import data
import interop
import ppo
import sandbox
from evidence import ceiling
from model import GPT, GPTConfig, Scorer
from plumbing import cli
from plumbing.files import read_checkpoint, save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")
TINY = GPTConfig(ENC.n_vocab, block_size=40, n_layer=1, n_head=2, n_embd=32)
UNKNOWN = {"role": "assistant", "content": sandbox.DO_NOT_KNOW}


def questions():
    """One about each of six places: two of three have an answer."""
    found = []
    for place in (*sandbox.COUNTRIES[:4], *sandbox.UNKNOWN[:2]):
        asked = [{"role": "user", "content": f"What is the capital of {place}?"}]
        answer = sandbox.DO_NOT_KNOW
        if place in sandbox.COUNTRIES:
            answer = f"The capital of {place} is {sandbox.FACTS['capital', place]}."
        found.append(data.Prompt(asked, "open qa", {"answers": [answer]}))
    return found


def answered(policy, prompts, steps=60):
    """Train a policy to give the right answer and another with one probability each."""
    wrong = [p.meta["answers"][0] for p in prompts[1:] + prompts[:1]]
    rows = []
    for prompt, other in zip(prompts, wrong):
        for said in (prompt.meta["answers"][0], other):
            messages = [*prompt.messages, {"role": "assistant", "content": said}]
            rows.append(data.encode_dialogue(ENC, messages))
    batch = data.tokens_batch(rows)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(steps):
        policy.loss(*batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ceiling")
    torch.manual_seed(0)
    policy = answered(GPT(TINY), questions())
    for name, model in (("sft.pt", policy), ("rm.pt", Scorer(TINY))):
        save_checkpoint(str(folder / name), model, interop.tokenizer_id(ENC), {})
    write_jsonl(folder / "prompts.jsonl", [asdict(p) for p in questions()])
    return folder


@pytest.fixture
def config(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ceiling.Config(
        init=str(files / "sft.pt"), rm=str(files / "rm.pt"), prompts=(f"{files}/prompts.jsonl",),
        out="ceiling.pt", device="cpu", ptx_coef=0.0, iterations=6, rollout=64, minibatch=16,
        max_new=12, warmup=0, lr=5e-3, value_lr=5e-3, ema=0.0)  # fmt: skip


def log():
    with open("ceiling.pt.log.jsonl") as f:
        return [json.loads(line) for line in f]


def as_row(prompt, said, ended=True):
    """The ids of a prompt with a response."""
    response = data.encode_response(ENC, said)
    return data.encode_prompt(ENC, prompt.messages) + response[: None if ended else -1]


def judge(prompts):
    inputs = ppo.Inputs(prompts, [data.encode_prompt(ENC, p.messages) for p in prompts], None, ENC)
    return ceiling.judge_of(inputs, ())


# -------------------------------------------------------------------------------------------------
# the judge


def test_the_score_is_that_of_the_sandbox_judge_whatever_the_pads():
    drawn = sandbox.prompts(40)
    right = [p.meta["answers"][0] for p in drawn]
    prompts, said = [*drawn, *drawn], [*right, *right[1:], right[0]]
    rows = [as_row(p, text, ended=i % 3 > 0) for i, (p, text) in enumerate(zip(prompts, said))]
    ids, length = data.pad(rows)
    junk = torch.arange(ids.shape[1]) >= length[:, None]
    ids[junk] = 7
    want = [sandbox.judge(p, text).score for p, text in zip(prompts, said)]
    assert judge(prompts).score(ids, length).tolist() == want
    assert min(want) < 0 and max(want) == 2


def test_a_dialogue_is_told_from_its_own_beginning():
    """Both are prompts, and the longer begins with the shorter one and an answer to it."""
    first = questions()[0]
    answer = {"role": "assistant", "content": first.meta["answers"][0]}
    thanks = {"role": "user", "content": "Thank you."}
    longer = data.Prompt([*first.messages, answer, thanks], "", {"answers": ["You are welcome."]})
    found = judge([longer, first])
    rows = [as_row(longer, "You are welcome."), as_row(first, answer["content"])]
    assert found.score(*data.pad(rows)).tolist() == [2, 2]
    assert [found.prompt_length(row) for row in rows] == [
        len(data.encode_prompt(ENC, p.messages)) for p in (longer, first)
    ]


# -------------------------------------------------------------------------------------------------
# the run


def test_the_policy_learns_what_is_true_and_says_whose_it_is(config):
    metrics = ceiling.main(config)
    lines = log()
    assert lines[0]["score"] < 1 and lines[-1]["score"] > lines[0]["score"] + 0.4
    assert all(line["score"] == pytest.approx(line["true_score"], abs=1e-5) for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4) and lines[0]["clip_fraction"] == 0
    meta = read_checkpoint("ceiling.pt")["meta"]
    assert meta["stage"] == "ceiling" and meta["metrics"] == metrics
    assert metrics["eval_score"] > lines[0]["score"] + 0.4
    policy, _ = interop.load_model("ceiling.pt", GPT)
    assert policy.cfg == TINY
    with pytest.raises(ValueError, match="was made by ceiling"):
        ppo.main(config)
    with pytest.raises(ValueError, match="reward model"):
        interop.load_model("ceiling.pt", Scorer)


def test_the_same_seed_makes_the_same_bytes(config):
    short = replace(config, iterations=1)
    made = []
    for name, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1)):
        ceiling.main(replace(short, out=name, seed=seed))
        made.append(read_checkpoint(name)["weights"])
    with open("a.pt", "rb") as a, open("b.pt", "rb") as b:
        assert a.read() == b.read()
    assert any(not torch.equal(x, made[2][name]) for name, x in made[0].items())


def test_the_value_function_starts_from_the_reward_model(config, monkeypatch):
    began = []

    def seen(models, *rest):
        began.append([p.clone() for p in models.value.parameters()])
        return iter(())

    monkeypatch.setattr(ppo, "minibatches", seen)
    monkeypatch.setattr(ceiling, "train", lambda run, networks, batches, *a, **k: batches(0))
    ceiling.main(config)
    rm, _ = interop.load_model(config.rm, Scorer)
    assert all(torch.equal(p, q) for p, q in zip(began[0], rm.parameters(), strict=True))


# -------------------------------------------------------------------------------------------------
# what is refused


def test_prompts_of_others_are_refused(config, tmp_path):
    write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "Hi"}] * 4)
    with pytest.raises(ValueError, match=r"--prompts .*mine\.jsonl has no answer key.*leave out"):
        ceiling.main(replace(config, prompts=("mine.jsonl",)))


def test_the_command_has_the_flags_of_ppo_and_another_result():
    cfg = cli.parse(ceiling.Config, ceiling.PRESETS, ceiling.__doc__, ["--init", "sft.pt"])
    assert cfg == replace(ppo.Config(init="sft.pt"), out="ceiling.pt")
    with pytest.raises(ValueError, match="--rm FILE is missing"):
        ceiling.main(replace(cfg, init=__file__))


def test_every_prompt_of_the_sandbox_finds_its_key():
    """Two prompts may have the same tokens: then they have the same judge too."""
    inputs = ppo.load_inputs(ppo.Config(ptx_coef=0.0), ENC, 160, Counter())
    found = ceiling.judge_of(inputs, ())
    for ids, prompt in list(zip(inputs.prompts, inputs.records))[::20]:
        row = ids + data.encode_response(ENC, prompt.meta["answers"][0])
        assert found.score_row(row) == 2
