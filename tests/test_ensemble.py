"""evidence/ensemble.py: several reward models in place of one."""

import json
from dataclasses import replace

import pytest
import torch

import data
import interop
import ppo
import sandbox
from evidence import ensemble
from model import GPT, GPTConfig, Scorer
from plumbing.files import read_checkpoint, save_checkpoint

ENC = interop.get_tokenizer("sandbox")
TINY = GPTConfig(ENC.n_vocab, block_size=160, n_layer=1, n_head=2, n_embd=32)


def scorer(seed):
    torch.manual_seed(seed)
    rm = Scorer(TINY)
    torch.nn.init.normal_(rm.head.weight)
    return rm.eval()


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_checkpoint("sft.pt", GPT(TINY), interop.tokenizer_id(ENC), {})
    for n in range(3):
        save_checkpoint(f"rm-{n}.pt", scorer(n), interop.tokenizer_id(ENC), {})
    return ensemble.Config(
        init="sft.pt", rm="rm-0.pt", out="ensemble.pt", device="cpu", ptx_coef=0.0,
        iterations=1, rollout=16, minibatch=16, max_new=8)  # fmt: skip


def first_score(cfg, main=ensemble.main):
    main(cfg)
    with open(f"{cfg.out}.log.jsonl") as f:
        return json.loads(next(f))["score"]


def test_a_score_is_the_mean_or_the_least_of_all():
    rms = [scorer(n) for n in range(3)]
    prompts = [data.encode_prompt(ENC, p.messages) for p in sandbox.prompts(30)]
    ids, length = data.pad(prompts)
    with torch.no_grad():
        each = [rm.score(ids, length).tolist() for rm in rms]
        found = {how: ensemble.Ensemble(rms, how).score(ids, length) for how in ("mean", "minimum")}
    for i, scores in enumerate(zip(*each, strict=True)):
        assert found["minimum"][i] == pytest.approx(min(scores))
        assert found["mean"][i] == pytest.approx(sum(scores) / 3, abs=1e-5)
    assert len({scores.index(min(scores)) for scores in zip(*each)}) > 1


def test_ppo_climbs_what_the_ensemble_says(config):
    """The first rollout is the same whatever scores it."""
    own = {name: value for name, value in vars(config).items() if name not in ("more", "how")}
    plain = ppo.Config(**own)
    alone = [first_score(replace(plain, rm=f"rm-{n}.pt", out=f"ppo-{n}.pt"), ppo.main)
             for n in range(3)]  # fmt: skip
    more = ("rm-1.pt", "rm-2.pt")
    mean = first_score(replace(config, out="mean.pt", how="mean", more=more))
    least = first_score(replace(config, out="least.pt", more=more))
    assert mean == pytest.approx(sum(alone) / 3, abs=1e-4)
    assert least < min(alone)
    assert read_checkpoint("least.pt")["meta"]["stage"] == "ensemble"
    with pytest.raises(ValueError, match="was made by ensemble"):
        ppo.main(replace(plain, out="least.pt"))


def test_an_ensemble_of_one_is_refused(config):
    with pytest.raises(ValueError, match="--more FILE is missing"):
        ensemble.main(config)
    with pytest.raises(ValueError, match=r"--more none\.pt does not exist"):
        ensemble.main(replace(config, more=("none.pt",)))
