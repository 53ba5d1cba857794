"""Talking to a model: the best of n by the reward model, greedy, a chat that remembers, and refusals."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

import data
import sample
import sandbox
from model import GPT, GPTConfig, Scorer, generate, load_model, save_checkpoint

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENC = data.get_tokenizer("sandbox")
ASKED = "What is the capital of Velia?"


def tiny(seed, kind=GPT, block=128):
    """A tiny random model; what it says depends much on where it stands."""
    torch.manual_seed(seed)
    model = kind(GPTConfig(ENC.n_vocab, block, 1, 2, 32)).eval()
    trunk = model if kind is GPT else model.trunk
    torch.nn.init.normal_(trunk.wte.weight, 0.0, 0.1)
    torch.nn.init.normal_(trunk.wpe.weight, 0.0, 1.0)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    save_checkpoint(str(folder / "ppo.pt"), tiny(0), data.tokenizer_id(ENC), {"stage": "ppo"})
    save_checkpoint(str(folder / "rm.pt"), tiny(1, Scorer), data.tokenizer_id(ENC), {"stage": "reward"})
    return folder


@pytest.fixture
def config(folder):
    return sample.Config((str(folder / "ppo.pt"),), prompt=ASKED, max_new=8)


@pytest.fixture
def printed(capsys):
    def output_of(cfg):
        capsys.readouterr()
        sample.main(cfg)
        return capsys.readouterr().out

    return output_of


# -------------------------------------------------------------------------------------------------


def test_best_of_shows_the_response_with_the_highest_score():
    """The scores are those of each response alone, without its neighbours' padding."""
    model, rm, ids = tiny(0), tiny(1, Scorer), data.encode_prompt(ENC, [{"role": "user", "content": ASKED}])
    rows, total = generate(model, *data.pad([ids]), 8, ENC.eot_token, n=12, seed=5)
    with torch.no_grad():
        scores = [rm.score(rows[i : i + 1, : total[i]], total[i : i + 1]).item() for i in range(12)]
    texts = [
        ENC.decode([t for t in rows[i, len(ids) : total[i]].tolist() if t != ENC.eot_token]).strip()
        for i in range(12)
    ]
    assert max(scores) - min(scores) > 0.1
    [(text, score)] = sample.respond(model, rm, ENC, ids, sample.Config(best_of=12, max_new=8), seed=5)
    assert score == pytest.approx(max(scores), abs=1e-5)
    assert text == texts[scores.index(max(scores))]
    ranked = sample.respond(model, rm, ENC, ids, sample.Config(n=12, max_new=8), seed=5)
    assert [s for _, s in ranked] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    best3 = sample.respond(model, rm, ENC, ids, sample.Config(n=3, best_of=12, max_new=8), seed=5)
    assert best3 == ranked[:3]


def test_without_a_reward_model_there_are_n_responses_and_no_score():
    model, ids = tiny(0), data.encode_prompt(ENC, [{"role": "user", "content": ASKED}])
    found = sample.respond(model, None, ENC, ids, sample.Config(n=4, max_new=8), seed=1)
    assert len(found) == 4 and len({text for text, _ in found}) > 1
    assert all(score is None and data.EOS not in text for text, score in found)


def test_greedy_says_the_same_whatever_the_seed(config, printed):
    greedy = replace(config, temperature=0.0)
    assert printed(greedy) == printed(replace(greedy, seed=7)) != ""
    assert printed(greedy) == printed(replace(config, top_k=1, seed=3))
    assert printed(config) == printed(config) != printed(replace(config, seed=7))


def test_best_of_on_the_command_line_prints_one_scored_line(config, printed, folder):
    ranked = printed(replace(config, rm=str(folder / "rm.pt"), n=6))
    best = printed(replace(config, rm=str(folder / "rm.pt"), best_of=6))
    scores = [float(x) for x in re.findall(r"^([+-]\d+\.\d\d)  ", ranked, re.MULTILINE)]
    assert len(scores) == 6 and scores == sorted(scores, reverse=True)
    assert best.startswith(f"{scores[0]:+.2f}  ") and ranked.startswith(best) and len(best) < len(ranked)


def test_raw_continues_the_text_itself(config, monkeypatch):
    seen = []

    def spy(model, prompts, *args, **more):
        seen.append(prompts.tolist())
        return generate(model, prompts, *args, **more)

    monkeypatch.setattr(sample, "generate", spy)
    sample.main(replace(config, raw=True, prompt="Facts: Velia is"))
    assert seen == [[ENC.encode_ordinary("Facts: Velia is")]]


def test_without_a_prompt_every_use_case_is_shown(config, printed):
    shown = printed(replace(config, prompt=""))
    asked = {p.use_case: p for p in sandbox.eval_prompts(200, 0)}
    assert asked.keys() == sandbox.USE_CASES.keys()
    assert all(" | ".join(m["content"] for m in p.messages) in shown for p in asked.values())


def greedy_reply(model, messages, max_new):
    [ids] = data.encode_prompts([data.Prompt(messages)], ENC, model.cfg.block_size - max_new, Counter())
    return sample.respond(model, None, ENC, ids, sample.Config(temperature=0.0, max_new=max_new))[0][0]


def test_chat_reads_lines_and_remembers_what_was_said(folder):
    """An empty line ends it; what follows that is not read."""
    said = ["Hello, I am Anna.", "What is my name?"]
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(ROOT, "sample.py"),
            "ppo.pt",
            "--chat",
            "--temperature",
            "0",
            "--max-new",
            "5",
        ],
        cwd=folder,
        input="\n".join([*said, "", "Hello?"]) + "\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    model, _ = load_model(str(folder / "ppo.pt"), "gpt")
    messages = [{"role": "user", "content": said[0]}]
    first = greedy_reply(model, messages, 5)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": said[1]}]
    second = greedy_reply(model, messages, 5)
    assert second != greedy_reply(model, messages[-1:], 5)
    shown = done.stdout.replace("\r\n", "\n")
    assert shown.count("Assistant: ") == 2
    assert f"Assistant: {first}\n" in shown and f"Assistant: {second}\n" in shown


def test_chat_ends_at_the_end_of_input_and_forgets_what_no_longer_fits(folder, monkeypatch, capsys):
    lines = iter(["What is the capital of Velia?"] * 30)

    def read(prompt):
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    sample.main(sample.Config((str(folder / "ppo.pt"),), chat=True, max_new=8))
    assert capsys.readouterr().out.count("Assistant: ") == 30


# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ()}, "one model"),
        ({"model": ("a.pt", "b.pt")}, "one model"),
        ({"model": ("none.pt",)}, "does not exist"),
        ({"best_of": 4}, "--rm"),
        ({"max_new": 128}, "--max-new"),
        ({"raw": True, "prompt": ""}, "--prompt"),
        ({"rm": "none.pt"}, "does not exist"),
    ],
)
def test_refusals_say_what_to_do(config, change, message):
    with pytest.raises(ValueError, match=message):
        sample.main(replace(config, **change))


def test_the_wrong_kind_and_another_tokenizer_are_refused(config, folder, tmp_path):
    with pytest.raises(ValueError, match="reward model"):
        sample.main(replace(config, model=(str(folder / "rm.pt"),)))
    with pytest.raises(ValueError, match="language model"):
        sample.main(replace(config, rm=str(folder / "ppo.pt")))
    save_checkpoint(str(tmp_path / "rm.pt"), tiny(1, Scorer), {"name": "gpt2", "hash": "0"}, {})
    with pytest.raises(ValueError, match="tokenizer"):
        sample.main(replace(config, rm=str(tmp_path / "rm.pt")))


def test_a_reward_model_with_a_shorter_context_is_refused(config, tmp_path):
    save_checkpoint(str(tmp_path / "rm.pt"), tiny(1, Scorer, block=10), data.tokenizer_id(ENC), {})
    with pytest.raises(ValueError, match="context"):
        sample.main(replace(config, rm=str(tmp_path / "rm.pt")))


@pytest.mark.parametrize(
    "change", [{"n": 0}, {"max_new": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_numbers_out_of_range_are_refused_or_harmless(config, change):
    """Never a traceback of another kind than the sentence for the user."""
    try:
        sample.main(replace(config, **change))
    except ValueError as e:
        assert "--" in str(e)
