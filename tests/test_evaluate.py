"""Who wins: from checkpoints and files to a report, and what is refused."""

import base64
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
import interop
import sandbox
from evidence import answers, newcomer, report
from model import GPT, GPTConfig, Scorer
from plumbing import cli
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")


@pytest.fixture(autouse=True)
def no_matplotlib(monkeypatch):
    """Plots take longer than all the rest; test_report.py draws them."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def tiny(seed, block=160, kind=GPT):
    torch.manual_seed(seed)
    model = kind(GPTConfig(ENC.n_vocab, block, 1, 2, 32)).eval()
    trunk = model if kind is GPT else model.trunk
    torch.nn.init.normal_(trunk.wte.weight, 0.0, 0.3)
    return model


def save(path, model, stage):
    save_checkpoint(str(path), model, interop.tokenizer_id(ENC), {"stage": stage})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("base", "sft", "ppo")):
        save(folder / f"{name}.pt", tiny(seed), name)
    save(folder / "rm.pt", tiny(9, kind=Scorer), "reward")
    return folder


@pytest.fixture(scope="module")
def config(folder):
    """base, sft and ppo on 12 prompts, nothing apart, and a short text; out is for the test to
    say."""
    systems = tuple(str(folder / f"{s}.pt") for s in ("base", "sft", "ppo"))
    text = folder / "text.txt"
    text.write_text("The people of Velia eat soup. " * 40)
    return evaluate.Config(
        systems,
        str(folder / "rm.pt"),
        text=(str(text),),
        n=12,
        samples=2,
        dialogues=0,
        untouched=0,
        max_new=6,
        batch=25,
    )


def read(folder):
    report = json.loads((folder / "report.json").read_text())
    page = (folder / "report.md").read_text()
    return SimpleNamespace(page=page, named={s["name"]: s for s in report["systems"]}, **report)


@pytest.fixture(scope="module")
def mixed(folder, config):
    """All kinds of systems in one report."""
    base, sft, ppo = config.systems
    systems = (base, f"prompted:{base}", f"bon8:{sft}", sft, f"bon2:{ppo}", ppo)
    cfg = replace(config, systems=systems, n=40, text=(), out=str(folder / "mixed"), samples=3)
    cfg = replace(cfg, dialogues=12, untouched=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        metrics = evaluate.main(cfg)
    return SimpleNamespace(cfg=cfg, metrics=metrics, report=read(folder / "mixed"))


# ---- the whole report


def test_all_kinds_of_systems_give_consistent_figures(mixed):
    report, systems = mixed.report, mixed.report.named
    names = ["base", "prompted base", "sft best of 8", "sft", "ppo best of 2", "ppo"]
    assert list(systems) == report.matrix["names"] == names and report.baseline == "sft"
    assert list(mixed.metrics) == names and mixed.metrics["sft"]["kl"] == systems["sft"]["kl"]
    for view in (systems["sft"], *systems["sft"]["use_cases"].values()):
        assert view["win_rate"] == 0.5 and view["win_rate_ci"] == [0.5, 0.5] and view["kl"] == 0
    assert systems["sft"]["greedy"]["win_rate"] == 0.5
    assert systems["sft"]["greedy"]["log_ratio"] == 0 != systems["base"]["greedy"]["log_ratio"]
    assert systems["base"]["kl"] > 0.1 and systems["ppo"]["kl"] > 0.1
    assert systems["sft best of 8"]["rm_score"] > systems["sft"]["rm_score"]
    assert systems["ppo best of 2"]["rm_score"] > systems["ppo"]["rm_score"]
    assert systems["sft best of 8"]["kl"] == pytest.approx(math.log(8) - 7 / 8, abs=1e-5)
    assert "greedy" not in systems["ppo best of 2"] and "greedy" in systems["prompted base"]
    assert systems["prompted base"]["prefix"] and not systems["base"]["prefix"]
    losses = {name: s["pretrain_loss"] for name, s in systems.items()}
    assert losses["prompted base"] == losses["base"] != losses["sft"] == losses["sft best of 8"]
    assert all(s["prompts"] == 40 and 1 <= s["length"] <= 6 for s in systems.values())
    assert f"≤ {systems['sft best of 8']['kl']:.3f}" in report.page
    assert f"≤ {systems['sft']['kl']:.3f}" not in report.page
    assert all(s["samples"] == 3 for s in systems.values())
    assert all(s["greedy"]["samples"] == 1 for s in systems.values() if "greedy" in s)
    assert systems["sft"]["won"] == systems["sft"]["lost"] > 0
    for rival in ("base", "ppo"):
        assert systems[rival]["decided"] == pytest.approx(
            systems[rival]["won"] / (1 - systems[rival]["tied"])
        )


def test_what_is_asked_apart_is_in_the_report(mixed):
    """Of touched facts the main prompts ask."""
    systems = mixed.report.named
    for name, s in systems.items():
        assert list(s["turns"]) == ([] if "best of" in name else list("123456"))
        assert ("fall" in s) == bool(s["turns"])
        assert sum(f["prompts"] for f in s["untouched"].values()) == 20
        assert all(f["prompts"] == 2 for f in s["turns"].values())
    cases = Counter()
    for p in sandbox.eval_prompts(40, 0):
        cases[p.use_case] += len(p.messages) == 1
    for case, figures in systems["ppo"]["touched"].items():
        assert figures["prompts"] == cases[case] > 0
    assert systems["ppo"]["touched"].keys() == {"open qa", "unanswerable"}
    assert "## By turn" in mixed.report.page and "Facts that no" in mixed.report.page
    lines = newcomer.ten_lines(vars(mixed.report), "report.md")
    assert len(lines) == 10 and lines[0].startswith("Preferred to sft, ties half: ppo ")
    assert "base | sft | ppo say:" in lines[2]


def test_a_system_has_its_score_whoever_else_is_compared(mixed, tmp_path, capsys):
    sft, ppo = mixed.cfg.systems[3], mixed.cfg.systems[5]
    cfg = replace(mixed.cfg, systems=(ppo, sft), text=(__file__,), out=str(tmp_path))
    alone = evaluate.main(cfg)
    said = capsys.readouterr().out
    for name in ("sft", "ppo"):
        for figure in ("win_rate", "true_score", "rm_score", "kl", "length"):
            assert alone[name][figure] == mixed.report.named[name][figure]
    assert "Who beats whom" in said and "## Greedy" not in said and "matplotlib" in said


def test_the_same_command_writes_the_same_report(config, tmp_path):
    for name in ("first", "second"):
        evaluate.main(replace(config, out=str(tmp_path / name)))
    for name in ("report.json", "report.md"):
        first, second = (tmp_path / out / name for out in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_bf16_gives_nearly_the_same_figures(config, tmp_path):
    cfg = replace(config, systems=config.systems[1:2], n=4, out=str(tmp_path))
    wide = evaluate.main(replace(cfg, precision="fp32"))["sft"]["pretrain_loss"]
    other = replace(cfg, precision="bf16", out=str(tmp_path / "bf16"))
    narrow = evaluate.main(other)["sft"]["pretrain_loss"]
    assert narrow != wide and narrow == pytest.approx(wide, rel=0.02)


def test_a_report_over_seeds_reads_what_main_wrote(config, tmp_path):
    paths = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        evaluate.main(replace(config, systems=config.systems[1:], out=str(out), seed=seed))
        paths.append(str(out / "report.json"))
    table = evaluate.main(evaluate.Config(seeds=tuple(paths)))
    assert {"sft", "ppo"} <= table.keys() and table["sft"]["win_rate"] == (0.5, 0.0)
    assert "won" in table["ppo"] and "decided" in table["ppo"]


# ---- files


@pytest.fixture
def prompts(tmp_path):
    path = str(tmp_path / "p.jsonl")
    write_jsonl(path, [{"prompt": f"Who are you, {i}?"} for i in range(5)])
    return path


def test_prompted_systems_are_shown_demonstrations_of_files(config, prompts, tmp_path):
    base, demos = config.systems[0], str(tmp_path / "d.jsonl")
    write_jsonl(demos, [{"prompt": "Who is it?", "response": "It is Zora."}])
    systems, out = (base, f"prompted:{base}"), tmp_path / "r"
    cfg = replace(config, systems=systems, prompts=(prompts,), max_new=4, out=str(out))
    with pytest.raises(ValueError, match="--demos"):
        evaluate.main(cfg)
    figures = evaluate.main(replace(cfg, demos=(demos,)))
    shown = [m["content"] for m in figures["prompted base"]["prefix"]]
    assert shown == ["Who is it?", "It is Zora."]
    page = read(out).page
    assert "It is Zora." in page and "the reward model" in page and "by use case" not in page


def test_prefixes_compete_on_prompts_that_the_demonstrations_answer(config, prompts, tmp_path):
    """None of them is a prompt of the evaluation, unless they answer nothing."""
    held_out = interop.load("prompts", (prompts,), Counter(), flag="")
    for messages, want in (
        ([{"role": "user", "content": "Who is it?"}], "Who is it?"),
        ([], "Who are you, 0?"),
    ):
        path = str(tmp_path / "d.jsonl")
        write_jsonl(path, [{"messages": [*messages, {"role": "assistant", "content": "Zora."}]}])
        cfg, system = replace(config, demos=(path,)), answers.System("base.pt", prompted=True)
        demos, trials = answers.load_demonstrations(cfg, held_out, [system], ENC)
        assert demos[0].messages[-1]["content"] == "Zora."
        assert trials[0].messages[-1]["content"] == want


def test_prompts_and_text_of_files(config, prompts, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("Facts: Velia is a country. " * 100)
    cfg = replace(config, systems=config.systems[2:], prompts=(prompts,), text=(str(text),))
    cfg = replace(cfg, max_new=4, out=str(tmp_path / "r"))
    [figures] = evaluate.main(cfg).values()
    assert "true_score" not in figures and math.isfinite(figures["rm_score"])
    assert figures["prompts"] == 5
    tokens = torch.tensor(ENC.encode_ordinary(text.read_text()) + [ENC.eot_token])
    assert figures["pretrain_loss"] == pytest.approx(answers.text_loss(tiny(2), tokens, "cpu"))
    with pytest.raises(ValueError, match="--rm"):
        evaluate.main(replace(cfg, rm="", out=str(tmp_path / "no judge")))


def test_prompts_in_a_field_of_another_name(config, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("frage,n\nWho are you?,1\nWhy?,2\n")
    cfg = replace(config, systems=config.systems[2:], prompts=(str(path),), columns="prompt=frage",
                  max_new=4, out=str(tmp_path / "r"))  # fmt: skip
    [figures] = evaluate.main(cfg).values()
    assert figures["prompts"] == 2
    with pytest.raises(ValueError, match="names a field|no name in its first line|no format"):
        evaluate.main(replace(cfg, columns="", out=str(tmp_path / "s")))
    with pytest.raises(ValueError, match="--columns prompt=frage names fields of files"):
        evaluate.main(replace(cfg, prompts=(), out=str(tmp_path / "s")))


# ---- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ()}, "checkpoints"),
        ({"baseline": "other.pt"}, "not among"),
        ({"systems": ("none.pt",)}, "does not exist"),
        ({"systems": ("bon4:none.pt",)}, "does not exist"),
        ({"systems": ("bon4:none.pt",), "rm": ""}, "--rm"),
        ({"seeds": ("one.json",), "systems": ()}, "leave out --rm"),
        ({"seeds": ("one.json",)}, "name no systems"),
        ({"demos": (__file__,)}, "prompted: systems read"),
        ({"prompts": ("none.jsonl",)}, "--prompts none.jsonl does not exist"),
        ({"text": ("none.txt",)}, "--text none.txt does not exist"),
    ],
)
def test_refusals_say_what_to_do(config, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate.main(replace(config, out=str(tmp_path / "r"), **change))
    assert not list(tmp_path.glob("r/*"))


def test_a_model_of_another_tokenizer_does_not_answer_the_sandbox(config, tmp_path):
    """Neither prompts nor text nor demonstrations of the sandbox are for it."""
    other = tmp_path / "other.tiktoken"
    ranks = [bytes([b]) for b in range(256)]
    other.write_bytes(b"".join(base64.b64encode(r) + b" %d\n" % i for i, r in enumerate(ranks)))
    enc = interop.get_tokenizer(str(other))
    paths = []
    for name, kind in (("gpt", GPT), ("rm", Scorer)):
        model = kind(GPTConfig(enc.n_vocab, 160, 1, 2, 32))
        paths.append(str(tmp_path / f"{name}.pt"))
        save_checkpoint(paths[-1], model, interop.tokenizer_id(enc), {"stage": "sft"})
    prompts, text = tmp_path / "p.jsonl", tmp_path / "t.txt"
    write_jsonl(prompts, [{"prompt": f"Who are you, {i}?"} for i in range(5)])
    text.write_text("The people of Velia eat soup. " * 40)
    out = str(tmp_path / "r")
    cfg = replace(config, systems=(paths[0],), rm=paths[1], text=(), out=out)
    with pytest.raises(ValueError, match="--prompts is missing: the sandbox's"):
        evaluate.main(cfg)
    cfg = replace(cfg, prompts=(str(prompts),))
    with pytest.raises(ValueError, match="--text is missing: the sandbox's"):
        evaluate.main(cfg)
    cfg = replace(cfg, text=(str(text),))
    assert math.isfinite(evaluate.main(cfg)["gpt"]["rm_score"])
    demos = answers.System(paths[0], prompted=True)
    with pytest.raises(ValueError, match="--demos is missing: the sandbox's"):
        answers.load_demonstrations(cfg, [], [demos], enc)


# ---- what is there already, and what is not finite


def test_a_finished_report_is_shown_again_and_no_other_is_replaced(config, tmp_path, capsys):
    cfg = replace(config, systems=config.systems[1:], n=4, out=str(tmp_path / "r"))
    first = evaluate.main(cfg)
    shown = capsys.readouterr().out.split("\n", 1)[1]
    made = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    assert made.keys() == {"report.json", "report.md", "made.json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(evaluate, "measure")
        assert evaluate.main(cfg) == first
        said = capsys.readouterr().out
        assert "finished already" in said and said.endswith(shown)
        ppo = config.systems[2]
        prefixed = {"systems": (config.systems[1], f"bon2:{ppo}")}  # of the same files
        other_baseline = {"baseline": ppo}
        for other in ({"seed": 1}, {"rm": ""}, {"n": 5}, prefixed, other_baseline):
            with pytest.raises(ValueError, match="report.json is there already"):
                evaluate.main(replace(cfg, **other))
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    assert evaluate.main(replace(cfg, seed=1, overwrite=True)) != first


def test_a_file_of_somebody_else_is_refused_before_anything_is_measured(config, tmp_path):
    (tmp_path / "report.md").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(evaluate, "measure")
        with pytest.raises(ValueError, match="report.md is there already"):
            evaluate.main(replace(config, out=str(tmp_path)))
    assert (tmp_path / "report.md").read_text() == "mine"


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_no_report_is_written_of_a_model_that_is_broken(config, tmp_path, kind):
    """Its weights are such as no save of ours has; the files of others may."""
    model, path = tiny(4, kind=kind), tmp_path / "broken.pt"
    save(path, model, "ppo")
    checkpoint = torch.load(path)
    next(iter(checkpoint["weights"].values()))[5] = math.nan
    torch.save(checkpoint, path)
    broken = {"systems": (*config.systems[:2], str(path))} if kind is GPT else {"rm": str(path)}
    with pytest.raises(ValueError, match="not finite"):
        evaluate.main(replace(config, out=str(tmp_path / "r"), **broken))
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.parametrize(
    "flags",
    ["--seed -1", "--n 0", "--max-new 0", "--batch 0", "--precision fp8", "--seed 1" + "0" * 30,
     "--samples 0", "--samples 1001", "--dialogues -1", "--untouched -1"],
)
def test_settings_without_a_sense_are_refused(flags):
    with pytest.raises(ValueError, match=flags.split()[0]):
        cli.parse(evaluate.Config, evaluate.PRESETS, "", flags.split(), "systems")


def test_a_text_shorter_than_a_block_is_refused(config, tmp_path):
    (tmp_path / "short.txt").write_text("Velia is")
    text = (str(tmp_path / "short.txt"),)
    with pytest.raises(ValueError, match="short.txt"):
        evaluate.main(replace(config, out=str(tmp_path / "r"), text=text, n=4))


def test_a_reward_model_with_a_shorter_context_is_refused(config, tmp_path):
    save(tmp_path / "rm.pt", tiny(3, block=24, kind=Scorer), "reward")
    with pytest.raises(ValueError, match="context"):
        evaluate.main(replace(config, rm=str(tmp_path / "rm.pt"), out=str(tmp_path / "r")))


def test_a_baseline_with_a_shorter_context_is_refused_and_another_system_works(config, tmp_path):
    """Prompts of up to 160 - 6 tokens reach every model that reads them."""
    base, sft, _ = config.systems
    short = str(tmp_path / "short.pt")
    save(short, tiny(3, block=24), "sft")
    cfg = replace(config, systems=(base, short, sft), out=str(tmp_path / "r"), n=6)
    with pytest.raises(ValueError, match="context"):
        evaluate.main(cfg)
    figures = evaluate.main(replace(cfg, baseline=sft))
    assert np.isfinite(figures["short"]["kl"])


@pytest.mark.parametrize("change", [
    {"rm": "rm.pt"}, {"prompts": ("p.jsonl",)}, {"text": ("t.txt",)}, {"demos": ("d.jsonl",)},
    {"baseline": "sft.pt"}, {"out": "elsewhere"}, {"overwrite": True}, {"n": 3}, {"seed": 1},
    {"dialogues": 3}, {"untouched": 0},
])
def test_what_seeds_would_not_read_is_refused_by_name(change):
    [flag] = change
    with pytest.raises(ValueError, match=f"leave out --{flag}$"):
        evaluate.main(evaluate.Config(seeds=("a.json", "b.json"), **change))


def test_seeds_go_with_every_preset():
    for preset in evaluate.PRESETS.values():
        with pytest.raises(ValueError, match="none.json does not exist"):
            evaluate.main(evaluate.Config(seeds=("none.json", "b.json"), **preset))


def test_what_people_prefer_stands_beside_what_the_judge_says(tmp_path):
    """Of the votes between a system and the baseline; others say nothing here."""
    path = str(tmp_path / "votes.jsonl")
    votes = [("sft", "ppo", [2, 1])] * 7 + [("ppo", "sft", [2, 1])] * 2 + [("ppo", "sft", [1, 1])]
    common = {"prompt": [], "responses": ["x", "y"], "both_bad": False, "labeler": "anna"}
    write_jsonl(path, [common | {"systems": [a, b], "ranks": ranks, "task": str(n), "id": str(n)}
                       for n, (a, b, ranks) in enumerate([*votes, ("ppo", "base", [1, 2])])])
    names = ("base", "sft", "ppo")
    found = {"systems": [{"name": name} for name in names]}
    evaluate.add_votes(found, evaluate.load_votes((path,), names, "sft"))
    base, sft, ppo = found["systems"]
    assert base.keys() == sft.keys() == {"name"} and ppo["people"] == 7.5 / 10
    low, high = ppo["people_ci"]
    assert 0.3 < low < 0.75 < high < 1
    table = report.figures_table({s["name"]: s for s in found["systems"]}, report.WINS)
    assert any("people prefer it" in line for line in table) and len(table) == 4
    with pytest.raises(ValueError, match="has no vote between base and another"):
        evaluate.load_votes((path,), ("sft",), "base")
    write_jsonl(path, [common | {"ranks": [1, 2], "task": "0", "id": "0"}])
    with pytest.raises(ValueError, match=r"votes.jsonl, line 1 was not written by page.py"):
        evaluate.load_votes((path,), names, "sft")
