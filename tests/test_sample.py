"""Talking to a model: the best of n by the reward model, greedy, a chat, and refusals."""

import io
import re
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch

import data
import generate
import interop
import sample
import sandbox
from model import GPT, GPTConfig, Scorer
from plumbing import cli
from plumbing.files import save_checkpoint

ENC = interop.get_tokenizer("sandbox")
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
    save_checkpoint(str(folder / "ppo.pt"), tiny(0), interop.tokenizer_id(ENC), {"stage": "ppo"})
    save_checkpoint(
        str(folder / "rm.pt"), tiny(1, Scorer), interop.tokenizer_id(ENC), {"stage": "reward"}
    )
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
    model, rm = tiny(0), tiny(1, Scorer)
    ids = data.encode_prompt(ENC, [{"role": "user", "content": ASKED}])
    said = generate.sample(model, [ids], 8, ENC.eot_token, n=12, seed=5)
    scores = []
    for response in said.responses:
        with torch.no_grad():
            scores.append(rm.score(*data.pad([ids + response])).item())
    texts = [data.decode_response(ENC, response) for response in said.responses]
    assert max(scores) - min(scores) > 0.1
    [(text, score)] = sample.respond(
        model, rm, ENC, ids, sample.Config(best_of=12, max_new=8), seed=5
    )
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
    assert all(score is None and "<|endoftext|>" not in text for text, score in found)


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
    assert (
        best.startswith(f"{scores[0]:+.2f}  ")
        and ranked.startswith(best)
        and len(best) < len(ranked)
    )


def test_raw_continues_the_text_itself(config, printed):
    """Its own words as the prompt, no template around them; line breaks at the ends are cut off."""
    ids = ENC.encode_ordinary("Facts: Velia is")
    said = generate.sample(tiny(0), [ids], 8, ENC.eot_token, n=3)
    texts = [ENC.decode([t for t in r if t != ENC.eot_token]) for r in said.responses]
    shown = printed(replace(config, raw=True, prompt="Facts: Velia is", n=3))
    assert shown == "".join(text.strip("\n") + "\n" for text in texts)
    assert any(text.startswith(" ") for text in texts)


def test_without_a_prompt_every_use_case_is_shown(config, printed):
    shown = printed(replace(config, prompt=""))
    asked = {p.use_case: p for p in sandbox.eval_prompts(200, 0)}
    assert asked.keys() == sandbox.USE_CASES.keys()
    assert all(" | ".join(m["content"] for m in p.messages) in shown for p in asked.values())


def chat(path, lines, monkeypatch, capsys, **more):
    """The answers that a chat prints when these lines are typed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    sample.main(sample.Config((str(path),), chat=True, **more))
    return re.findall(r"Assistant: (.*?)\n(?=You: )", capsys.readouterr().out, re.DOTALL)


@pytest.fixture
def asked(monkeypatch):
    """The messages that a chat makes prompts of, one list a turn."""
    seen, encode = [], interop.encode_prompts

    def record(records, *rest):
        seen.append([(m["role"], m["content"]) for r in records for m in r.messages])
        return encode(records, *rest)

    monkeypatch.setattr(interop, "encode_prompts", record)
    return seen


@pytest.fixture(scope="module")
def brief(folder):
    """A model that ends some of its answers within eight tokens."""
    model = tiny(0)
    with torch.no_grad():
        model.wte.weight[ENC.eot_token] += 0.25 * model.ln_f.weight
        model.ln_f.bias += 0.25
    save_checkpoint(str(folder / "brief.pt"), model, interop.tokenizer_id(ENC), {"stage": "ppo"})
    return folder / "brief.pt"


CUT = " ... (not ended after --max-new 8 tokens: this turn is forgotten)"


def test_chat_remembers_the_turns_whose_answer_ended_and_forgets_the_others(
    brief, asked, monkeypatch, capsys
):
    """An empty line ends it; what follows that is not read."""
    lines = [f"Question {i}?" for i in range(100)]
    answers = chat(brief, [*lines, "", "Hello?"], monkeypatch, capsys, max_new=8)
    history = []
    for line, answer, messages in zip(lines, answers, asked, strict=True):
        assert messages == [*history, ("user", line)]
        if not answer.endswith(CUT):
            history = [*messages, ("assistant", answer)]
    assert 10 < len(history) < 150


def test_chat_answers_what_the_model_says_to_what_is_remembered(brief, monkeypatch, capsys):
    """Greedy: the same as the model says to those messages, and another than without them."""
    lines = ["Hello, I am Anna.", *[f"Question {i}?" for i in range(20)]]
    answers = chat(brief, lines, monkeypatch, capsys, temperature=0.0, max_new=8)
    model, _ = interop.load_model(str(brief), GPT)
    cfg, history, changed = sample.Config(temperature=0.0, max_new=8), [], 0
    for line, answer in zip(lines, answers, strict=True):
        said = {"role": "user", "content": line}
        replies = []
        for messages in ([*history, said], [said]):
            [ids] = interop.encode_prompts([data.Prompt(messages)], ENC, 120, Counter())
            replies += [text for text, _ in sample.respond(model, None, ENC, ids, cfg)]
        assert answer.removesuffix(CUT) == replies[0]
        changed += replies[0] != replies[1]
        if not answer.endswith(CUT):
            history += [said, {"role": "assistant", "content": replies[0]}]
    assert changed > 5


def test_the_same_question_twice_draws_two_answers_though_the_first_is_forgotten(
    folder, asked, monkeypatch, capsys
):
    answers = chat(folder / "ppo.pt", [ASKED, ASKED], monkeypatch, capsys, max_new=8)
    assert asked == [[("user", ASKED)]] * 2 and answers[0] != answers[1]


def test_chat_ends_at_the_end_of_input_and_goes_on_when_the_context_is_full(
    brief, monkeypatch, capsys
):
    assert len(chat(brief, [ASKED] * 60, monkeypatch, capsys, max_new=8)) == 60


def test_a_chat_without_standard_input_is_a_sentence(folder, monkeypatch):
    """As `python sample.py ppo.pt --chat <&-` starts it."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        sample.main(sample.Config((str(folder / "ppo.pt"),), chat=True))


def test_scores_that_are_not_finite_choose_nothing():
    model, rm = tiny(0), tiny(1, Scorer)
    with torch.no_grad():
        rm.trunk.ln_f.weight.fill_(3e38)
    ids = data.encode_prompt(ENC, [{"role": "user", "content": ASKED}])
    with pytest.raises(ValueError, match="scores that are not finite"):
        sample.respond(model, rm, ENC, ids, sample.Config(best_of=3, max_new=4))


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
        ({"raw": True, "chat": True}, "--chat"),
        ({"rm": "none.pt"}, "does not exist"),
        ({"chat": True}, "leave out --prompt"),
        ({"chat": True, "prompt": "", "n": 2}, "leave out .*--n"),
        ({"chat": True, "prompt": "", "rm": "rm.pt"}, "leave out .*--rm"),
        ({"chat": True, "prompt": "", "rm": "rm.pt", "best_of": 2}, "leave out .*--best-of"),
        ({"rm": "rm.pt", "best_of": 2, "n": 4}, "--n 4 is more than --best-of 2"),
        ({"temperature": 0.009}, "--temperature 0.009 is too small"),
        ({"temperature": 0.0, "top_k": 5}, "leave out --top-k"),
        ({"temperature": 0.0, "top_p": 0.5}, "leave out --top-k and --top-p"),
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
    save_checkpoint(
        str(tmp_path / "rm.pt"), tiny(1, Scorer, block=10), interop.tokenizer_id(ENC), {}
    )
    with pytest.raises(ValueError, match="context"):
        sample.main(replace(config, rm=str(tmp_path / "rm.pt")))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--n", "0"], "--n must lie in"),
        (["--n", "100001"], "--n must lie in"),
        (["--best-of", "100001"], "--best-of must lie in"),
        (["--max-new", "0"], "--max-new must be >= 1"),
        (["--temperature", "-1"], "--temperature must be >= 0"),
        (["--temperature", "nan"], "--temperature must be a finite number"),
        (["--top-k", "-1"], "--top-k must be >= 0"),
        (["--top-p", "1.1"], "--top-p must lie in"),
    ],
)
def test_numbers_out_of_range_are_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        cli.parse(sample.Config, sample.PRESETS, "", ["ppo.pt", *argv], "model")


def test_top_p_0_is_greedy(config, printed):
    assert printed(replace(config, top_p=0.0)) == printed(replace(config, temperature=0.0))
