"""codex/evaluate.py: programs end where they should, log-probabilities are the model's, figures are
those of all choices, a run goes on, and a model that writes right programs passes."""

import itertools
import json
import random
import shutil

import pytest
import torch

import pretrain
import sft
from codex import evaluate, language, runner
from evidence import passes
from generate import sample
from interop import get_tokenizer, tokenizer_id
from model import GPTConfig, Scorer
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl
from tests.tiny import lively
from train import step_seed

ENC = get_tokenizer("sandbox")


@pytest.fixture(scope="module")
def coders(tmp_path_factory):
    """A base that has read "def f(s):" for a while, and what SFT makes of it: files."""
    folder = tmp_path_factory.mktemp("coders")
    language.main(language.Config(files=300, functions=40, prompts=4, out=str(folder / "toy")))
    toy = str(folder / "toy")
    small = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context": 224, "block": 224}
    pretrain.main(pretrain.Config(
        data=(f"{toy}/corpus.jsonl",), tokenizer=f"{toy}/toy.tiktoken", out=str(folder / "base.pt"),
        tokens=40_000, batch=4, warmup=5, **small))
    sft.main(sft.Config(init=str(folder / "base.pt"), data=(f"{toy}/functions.jsonl",), ptx_mix=0.0,
                        epochs=1, max_new=8, out=str(folder / "sft.pt")))
    return str(folder / "base.pt"), str(folder / "sft.pt")


@pytest.mark.parametrize(("said", "text"), [
    ("\n    return s\n\n\ndef g(s):\n    pass", "\n    return s\n\n"),
    ("\n    return s\n# more", "\n    return s"), ("\n    return s\nprint(s)", "\n    return s"),
    ("\n    return s\nclass A", "\n    return s"), ("\n    return s\nif s", "\n    return s"),
    ("\n    # here\n    if s: return s", "\n    # here\n    if s: return s"),
    ("", ""),
    ("\n    s = 'é'\ndef", "\n    s = 'é'"),
])
def test_a_program_ends_where_the_next_thing_begins(said, text):
    ids = ENC.encode_ordinary(said)
    found, seen = evaluate.cut(ENC, [*ids, ENC.eot_token])
    assert found == text
    # what was needed to see the end: no stop without its last token
    if text == said:
        assert seen == len(ids) + 1
    else:
        assert evaluate.cut(ENC, ids[:seen])[0] == text
        assert evaluate.cut(ENC, ids[:seen - 1])[0] != text
    if text != said:
        assert evaluate.cut(ENC, ids)[1] == seen


def test_a_program_that_defines_its_function_ends_after_it():
    said = "\n\nimport re\n# twice\ndef helper(x):\n    return x\n\ndef f(x):\n    1\nprint(f)"
    ids = ENC.encode_ordinary(said)
    assert evaluate.cut(ENC, ids, "f")[0] == said[:said.index("\nprint")]
    assert evaluate.cut(ENC, ids, "g") == (said, len(ids))


@pytest.mark.parametrize("which", [0, 1])
def test_log_probabilities_are_those_of_the_tokens_one_by_one(coders, which):
    coder = evaluate.load(coders[which])
    assert coder.is_chat == bool(which)
    problem = language.problems(1, 0)[0]
    how = {"seed": 3, "max_new": 40, "top_p": 1.0, "batch": 4}
    found = evaluate.write_programs(coder, problem, 6, 1.0, **how)
    again = evaluate.write_programs(coder, problem, 6, 1.0, **how)
    assert found == again and len(found) == 6
    assert len({s["program"] for s in found}) > 3
    prompt = problem.prompt
    asked = prompt.rstrip("\n")
    before = f"User: {asked}\n\nAssistant:" if which else asked
    ids = coder.enc.encode_ordinary(before)
    drawn = [sample(coder.gpt, [ids], 40, coder.enc.eot_token, n=n, seed=step_seed(3, part))
             for part, n in enumerate((4, 2))]
    said = [response for samples in drawn for response in samples.responses]
    for s, response in zip(found, said, strict=True):
        assert s["program"].startswith(prompt if which else asked)
        assert s["tokens"] == evaluate.cut(coder.enc, response)[1]
        total = 0.0
        with torch.no_grad():
            for n, t in enumerate(response[:s["tokens"]]):
                read = torch.tensor([ids + response[:n]])
                logits = coder.gpt.logits(coder.gpt.hidden(read)[0, -1])
                total += logits.log_softmax(-1)[t].item()
        assert s["logp"] == pytest.approx(total, abs=1e-3)


def test_figures_are_those_of_all_choices():
    rng = random.Random(0)
    samples = [{"problem": f"p{i % 5}", "verdict": rng.choice(["pass", "wrong", "error"]),
                "logp": -rng.random(), "tokens": rng.randint(1, 9)} for i in range(30)]
    samples.append(samples[0] | {"verdict": "infrastructure", "logp": 0.0})
    found = passes.figures(samples, (1, 2, 7))
    groups = [[s for s in samples[:30] if s["problem"] == f"p{i}"] for i in range(5)]
    for k in (1, 2):
        shares = []
        for group in groups:
            sets = [*itertools.combinations(group, k)]
            shares.append(sum(any(s["verdict"] == "pass" for s in x) for x in sets) / len(sets))
        assert found[f"pass@{k}"][0] == pytest.approx(sum(shares) / 5)
    assert found["pass@7"] == (None, None, 0)
    for name, key in (("chosen by mean log p", lambda s: s["logp"] / s["tokens"]),
                      ("chosen by sum log p", lambda s: s["logp"])):
        best = [max(group, key=key)["verdict"] == "pass" for group in groups]
        assert found[name][0] == pytest.approx(sum(best) / 5)
    nothing = passes.figures([samples[-1]], (1,))
    assert nothing["pass@1"] == nothing["chosen by sum log p"] == (None, None, 0)
    alone = passes.figures(samples[:1], (1,))["pass@1"]
    assert alone[1:] == (None, 1)
    assert passes.as_text(alone, 1) in ("0.0", "100.0")
    assert passes.as_text((0.25, 0.1, 4), 5) == "25.0 ± 10.0 (of 4)"
    assert passes.as_text((None, None, 0), 5) == "-"


def row(model, temperature, one, many, mean, total):
    names = ("pass@1", "pass@9", "chosen by mean log p", "chosen by sum log p")
    figures = {name: [x, 0.1, 5] for name, x in zip(names, (one, many, mean, total))}
    return {"model": model, "temperature": temperature, "figures": figures}


def test_the_report_says_what_of_the_paper_is_seen():
    rows = [row("a", 0.2, 0.2, 0.3, 0.2, 0.1), row("a", 0.8, 0.1, 0.5, 0.15, 0.05),
            row("b", 0.2, 0.1, 0.7, 0.2, 0.1), row("b", 0.8, 0.2, 0.6, 0.1, 0.3)]
    found = passes.mechanisms(rows)
    nothing = row("c", 0.2, 0.5, 0.5, 0.5, 0.5)
    nothing["figures"]["pass@1"] = (None, None, 0)
    assert passes.mechanisms([*rows, nothing]) == found
    assert [(said, seen) for _, said, seen in found] == [
        ("0.2 for pass@1, 0.8 for pass@9", True),
        ("10.0, 15.0, 5.0 at temperature 0.8", True),
        ("0.8 for pass@1, 0.2 for pass@9", False),
        ("20.0, 10.0, 30.0 at temperature 0.8", False),
        ("20.0 -> 20.0", False), ("50.0 -> 70.0", True)]


def test_a_run_writes_its_report_and_goes_on_after_a_kill(coders, tmp_path, monkeypatch):
    cfg = evaluate.Config(models=coders, toy=4, n=4, k=(1, 4), temperatures=(0.5,), max_new=24,
                          out=str(tmp_path / "whole"))
    evaluate.main(cfg)
    whole = (tmp_path / "whole/samples.jsonl").read_bytes()
    report = json.loads((tmp_path / "whole/report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["base", "sft"]
    assert sum(report["verdicts"].values()) == 2 * 4 * 4 == len(whole.splitlines())
    assert "- no: sft: pass@4 is higher" in (tmp_path / "whole/report.md").read_text()
    assert "| sft | 0.5 |" in (tmp_path / "whole/report.md").read_text()

    # killed while it writes the third problem's line
    part = tmp_path / "cut/samples.part"
    half = evaluate.Config(**(vars(cfg) | {"out": str(tmp_path / "cut")}))
    judged = []

    def some(problem, programs):
        judged.append(problem.name)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return VERDICTS(problem, programs)
    monkeypatch.setattr(language, "verdicts", some)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(half)
    with part.open("a") as f:
        f.write('0123abcd {"of": ["baé')
    # whose names are exchanged gets no sample of the other
    renamed = [str(tmp_path / name) for name in ("sft.pt", "base.pt")]
    for path, name in zip(coders, renamed):
        shutil.copy(path, name)
    with pytest.raises(ValueError, match="unfinished run with other settings"):
        evaluate.main(evaluate.Config(**(vars(half) | {"models": tuple(renamed)})))
    evaluate.main(half)
    assert (tmp_path / "cut/samples.jsonl").read_bytes() == whole
    assert judged == ["toy/0", "toy/1", "toy/2", "toy/2", "toy/3", *(f"toy/{i}" for i in range(4))]
    assert not part.exists()

    # finished, and another command in the same folder
    judged.clear()
    evaluate.main(half)
    assert not judged
    with pytest.raises(ValueError, match="choose another --out"):
        evaluate.main(evaluate.Config(**(vars(half) | {"n": 5})))


VERDICTS = language.verdicts


@pytest.mark.parametrize(("changed", "says"), [
    ({"models": ()}, "name the models"), ({"models": ("none.pt",)}, "none.pt does not exist"),
    ({"temperatures": (0.2, 0.2)}, "--temperatures names one twice"),
    ({"models": ("base.pt", "other/base.pt")}, "two of the models base, base have one name"),
    ({"models": ("base.pt", "rm.pt")}, "rm.pt is a reward model"),
    ({"max_new": 200}, "toy/.* and 200 new tokens do not fit the context of base.pt"),
    ({"problems": "none"}, "--problems none does not exist"),
    ({"problems": "p"}, "p: no problem is passed by its own solution"),
    ({"problems": "twice"}, "two problems called x/0"), ({"problems": "cut"}, "line 1: not JSON"),
])
def test_what_cannot_be_is_said_before_a_sample_is_drawn(coders, tmp_path, monkeypatch, changed,
                                                         says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    for name in ("base.pt", "other/base.pt"):
        shutil.copy(coders[0], name)
    scorer = Scorer(GPTConfig(ENC.n_vocab, 64, 1, 2, 16))
    save_checkpoint("rm.pt", scorer, tokenizer_id(ENC), {"config": {"seed": 0}})
    human = {"task_id": "x/0", "prompt": "def f(x):\n    'Twice.'\n", "entry_point": "f",
             "canonical_solution": "    pass\n", "test": "def check(f):\n  assert f(2) == 4"}
    write_jsonl("p", [human])
    write_jsonl("twice", [human, human])
    (tmp_path / "cut").write_text('{"task_id":')
    monkeypatch.setattr(evaluate, "write_programs", None)
    with pytest.raises(ValueError, match=says):
        evaluate.main(evaluate.Config(**{"models": ("base.pt",), "toy": 3, "n": 2, "max_new": 8,
                                         "out": "out"} | changed))


def test_python_problems_are_run(coders, tmp_path, capsys):
    """HumanEval's and MBPP's forms; a problem whose own solution fails is not asked."""
    human = {"task_id": "x/0", "prompt": "def f(x):\n    'Twice.'\n", "entry_point": "f",
             "canonical_solution": "    return x + x\n",
             "test": "def check(f):\n  assert f(2) == 4"}
    mbpp = {"task_id": 7, "text": "Write a function that doubles.", "test_setup_code": "",
            "code": "def twice(x):\n    return 2 * x", "test_list": ["assert twice(3) == 6"],
            "challenge_test_list": []}
    wrong = human | {"task_id": "x/1", "canonical_solution": "    pass"}
    write_jsonl(str(tmp_path / "p"), [human, mbpp, wrong])
    problems, judge = evaluate.python_judge(str(tmp_path / "p"), 2)
    assert [p.name for p in problems] == ["x/0", "MBPP/7"]
    assert problems[1].entry_point == "twice"
    assert problems[1].prompt == ('"""\nWrite a function that doubles.\nassert twice(3) == 6\n"""'
                                  "\n")
    right, wrong = "    return 2 * x\n", "    return x\n"
    programs = [problems[0].prompt + body for body in (right, wrong, right)]
    assert judge(problems[0], programs) == ["pass", "wrong", "pass"]
    programs = [f"{problems[1].prompt}def twice(x):\n{body}" for body in (right, wrong)]
    assert judge(problems[1], programs) == ["pass", "wrong"]
    chat = language.complete(problems[1].prompt, " def twice(x):\n    return 2 * x")
    assert judge(problems[1], [chat]) == ["pass"]
    assert language.complete(problems[0].prompt, "return 1") == f"{human['prompt']}    return 1"
    assert "2 of 3 problems are passed by their own solution" in capsys.readouterr().out
    cfg = evaluate.Config(models=coders[:1], problems=str(tmp_path / "p"), n=2, k=(1,), max_new=8,
                          temperatures=(0.0,), out=str(tmp_path / "out"))
    evaluate.main(cfg)
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 4


def test_a_run_stops_where_no_program_can_be_run(coders, tmp_path, monkeypatch):
    """What was sampled before is kept, and nobody's sample counts as one without a verdict."""
    first = {"task_id": "x/0", "prompt": "", "entry_point": "f", "test": "def check(f):\n  f(2)",
             "canonical_solution": "def f(x):\n    return x\n"}
    write_jsonl(str(tmp_path / "p"), [first, first | {"task_id": "x/1"}])
    cfg = evaluate.Config(models=coders[:1], problems=str(tmp_path / "p"), n=2, k=(1,), max_new=8,
                          temperatures=(0.5,), out=str(tmp_path / "out"))
    run = runner.run

    def no_process(problem, program, layers, whole=False, limits=None):
        if problem.name == "x/1" and program != first["canonical_solution"]:
            return runner.Outcome("infrastructure", "the disk is full", [])
        return run(problem, program, layers, whole)
    monkeypatch.setattr(runner, "run", no_process)
    with pytest.raises(ValueError, match=r"run for x/1 \(the disk is full\): mend that, and start"):
        evaluate.main(cfg)
    assert len((tmp_path / "out/samples.part").read_text().splitlines()) == 2
    monkeypatch.setattr(runner, "run", run)
    evaluate.main(cfg)
    samples = [json.loads(x) for x in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 and "infrastructure" not in {s["verdict"] for s in samples}


def test_a_model_that_has_learned_one_function_passes():
    """Log-probabilities apart, all of it: a GPT that can say one thing says it."""
    enc = ENC
    program = '\n    return s.replace("e", "")'
    problem = next(p for p in language.problems(400, 0, (1,), held_out=False)
                   if language.chain_of(p.prompt) == ("remove every e",))
    ids = enc.encode_ordinary(problem.prompt.rstrip("\n") + program) + [enc.eot_token]
    model = lively(evaluate.GPT(GPTConfig(enc.n_vocab, len(ids) + 4, 1, 2, 32)))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    rows = torch.tensor([ids])
    for _ in range(60):
        loss = model.loss(rows, torch.ones(1, len(ids) - 1, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    coder = evaluate.Coder(model.eval(), enc, False)
    written = evaluate.write_programs(coder, problem, 5, 0.2, 0,
                                      max_new=len(enc.encode_ordinary(program)) + 2)
    assert language.verdicts(problem, [s["program"] for s in written]) == ["pass"] * 5

