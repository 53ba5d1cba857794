"""Bad input ends in one sentence and exit code 2, without a traceback; good files stay."""

import importlib
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from disk import full_disk

import interop
from model import GPT, GPTConfig, Scorer
from plumbing import cli
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")
SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--context", "64", "--block", "32"]
SMALL += ["--batch", "2", "--documents", "100", "--tokens", "192"]
PPO = ["--init", "sft.pt", "--rm", "rm.pt", "--max-new", "4", "--ptx-coef", "0"]
RANKINGS = [
    {"prompt": f"Who are you, {i}?", "responses": ["I am.", "You are."], "ranks": [1, 2]}
    for i in range(40)
]
ABSENT = "does not exist|is missing; make it with `python"
DEMONSTRATIONS = [{"prompt": f"Who are you, {i}?", "response": "I am."} for i in range(40)]


class Code:
    """What it pickles to would make a file when it is loaded."""

    def __reduce__(self):
        return open, ("executed", "w")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder, own = tmp_path_factory.mktemp("errors"), interop.tokenizer_id(ENC)

    def put(name, kind=GPT, block=64, tokenizer=own, **meta):
        torch.manual_seed(0)
        save_checkpoint(
            str(folder / name),
            kind(GPTConfig(ENC.n_vocab, block, 1, 2, 16)),
            tokenizer,
            {"stage": "sft"} | meta,
        )

    put("sft.pt")
    put("short.pt", block=16)
    put("rm.pt", Scorer, config={"seed": 0})
    put("short_rm.pt", Scorer, block=16, config={"seed": 0})
    put("other.pt", Scorer, tokenizer={"name": "gpt2", "hash": "0"}, config={"seed": 0})
    put("other_gpt.pt", tokenizer={"name": "gpt2", "hash": "0"})
    (folder / "truncated.pt").write_bytes((folder / "sft.pt").read_bytes()[:-2000])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("This is no checkpoint.\n" * 50)
    torch.save({"weights": 1}, folder / "foreign.pt")
    torch.save(Code(), folder / "code.pt")
    with open(folder / "pickle.pt", "wb") as f:
        pickle.dump(Code(), f, protocol=2)
    write_jsonl(str(folder / "rankings.jsonl"), RANKINGS)
    write_jsonl(str(folder / "demos.jsonl"), DEMONSTRATIONS)
    return folder


@pytest.fixture
def inside(checkpoints, tmp_path, monkeypatch):
    """An empty working folder with links to the checkpoints."""
    for path in checkpoints.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_sentence(stderr):
    """The sentence; progress bars may stand before it."""
    errors = [line for line in stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in stderr, stderr
    assert stderr.rstrip().endswith(errors[0])
    return errors[0]


@pytest.fixture
def refusal(inside, monkeypatch, capsys):
    """Run a script's command line in this process -> its sentence. --out stays as it was, although
    it may be overwritten."""

    def refused(script, *argv):
        module = importlib.import_module(script)
        positional = {"sample": "model", "evaluate": "systems"}.get(script)
        with open("good", "wb") as f:
            f.write(b"an earlier result")
        out = ["--out", "report" if script == "evaluate" else "good", "--overwrite"]
        if "--out" in argv or script == "sample":
            out = []
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *argv, *out])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run(module.main, module.Config, module.PRESETS, module.__doc__, positional)
        assert stopped.value.code == 2
        with open("good", "rb") as f:
            assert f.read() == b"an earlier result"
        left = [name for name in os.listdir() if name.endswith(".tmp")]
        assert not os.path.exists("executed") and not left
        return one_sentence(capsys.readouterr().err)

    return refused


# -------------------------------------------------------------------------------------------------
# checkpoints


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.pt", ABSENT),
        ("truncated.pt", "truncated"),
        ("empty.pt", "empty.pt"),
        ("text.pt", "text.pt"),
        ("foreign.pt", "not a checkpoint of these scripts"),
        ("code.pt", "could run code"),
        ("pickle.pt", "not a readable checkpoint"),
        ("rm.pt", "reward model"),
        (".", "is a folder without a GPT-2"),
    ],
)
@pytest.mark.parametrize("script", ["sft", "sample", "evaluate", "label"])
def test_a_file_that_is_no_language_model(refusal, script, name, says):
    said = refusal(script, *([name] if script in ("sample", "evaluate") else ["--init", name]))
    assert re.search(says, said) and name in said


@pytest.mark.parametrize(
    ("rm", "says"),
    [
        ("sft.pt", "a reward model (from reward.py) is needed"),
        ("other.pt", "tokenizer"),
        ("short_rm.pt", "context"),
        ("truncated.pt", "truncated"),
        ("code.pt", "could run code"),
    ],
)
@pytest.mark.parametrize("script", ["ppo", "sample", "evaluate"])
def test_a_file_that_is_no_reward_model_for_this_policy(refusal, script, rm, says):
    argv = ["--init", "sft.pt"] if script == "ppo" else ["sft.pt"]
    assert says in refusal(script, *argv, "--rm", rm)


def test_systems_with_different_tokenizers(refusal):
    assert "tokenizer" in refusal("evaluate", "sft.pt", "other_gpt.pt")
    assert "tokenizer" in refusal("label", "--init", "sft.pt", "other_gpt.pt")


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("sample", ["short.pt", "--prompt", "Who?"]),
        ("evaluate", ["short.pt"]),
        ("label", ["--init", "short.pt"]),
        ("ppo", ["--init", "short.pt", "--rm", "short_rm.pt"]),
    ],
)
def test_a_context_without_room_for_a_prompt(refusal, script, argv):
    assert "--max-new" in refusal(script, *argv, "--max-new", "16")


def test_stages_name_the_commands_that_make_their_inputs(refusal):
    assert "python pretrain.py --out base.pt" in refusal("sft")
    assert "python sft.py --init base.pt --out sft.pt" in refusal("reward")
    assert "python label.py --init sft.pt" in refusal("reward", "--init", "sft.pt")
    assert "python sft.py" in refusal("label")
    said = refusal("ppo", "--init", "missing.pt", "--rm", "rm.pt")
    assert "missing.pt" in said and "python sft.py --init base.pt --out sft.pt" in said
    said = refusal("ppo", "--init", "sft.pt", "--rm", "missing.pt")
    assert "missing.pt" in said and "python reward.py --init sft.pt --data comparisons" in said


def test_the_command_of_the_readme_without_its_inputs(tmp_path, root):
    argv = [sys.executable, os.path.join(root, "ppo.py"), "--init", "sft.pt", "--rm", "rm.pt"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "python sft.py" in one_sentence(done.stderr)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------
# records


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            [b'{"prompt": "a", "response": 1}', b'{"prompt": "a", "response": "b"'],
            "line 1: a response must be a text",
        ),
        (
            [b"", b'{"prompt": "a", "response": " "}', b'{"prompt": "a", "response": "b"'],
            "line 2: the response is empty",
        ),
        ([b'{"prompt": "a", "response": ""}'], "line 1: the response is empty"),
        ([b'{"prompt": "a", "response": 3}'], "must be a text, and is a number"),
        ([b'{"prompt": "a"}'], '"response" is missing'),
        ([b'["prompt"]'], '"response" is missing'),
        ([b'[["prompt"]]'], "is JSON, but of no objects"),
        ([b'[{"prompt": "a"}, null]'], '"response" is missing'),
        ([b"null"], "this is text"),
        ([b""], "holds no record"),
        (
            [b'{"prompt": "a", "response": "b"}', b'{"prompt": "caf\xe9", "response": "b"}'],
            "line 2: byte ",
        ),
        ([b'{"messages": [{"role": "user", "content": "a"}]}'], "the data holds no demonstration"),
        ([b'{"messages": [{"role": "bot", "content": "a"}]}'], "the data holds no demonstration"),
        ([b'{"prompt": "  ", "response": "b"}'], "prompt is empty"),
    ],
)
def test_demonstrations_that_cannot_be_read(refusal, lines, says):
    with open("bad.jsonl", "wb") as f:
        f.write(b"\n".join(lines) + b"\n")
    said = refusal("sft", "--init", "sft.pt", "--data", "bad.jsonl")
    assert says in said and ("bad.jsonl" in said or says.startswith("the data holds no"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranks": [1, 1]}, "the data holds no ranking with two responses of different rank"),
        ({"ranks": [1, None]}, "the data holds no ranking with two responses of different rank"),
        (
            {"responses": ["I am.", "I am. "]},
            "the data holds no ranking with two responses of different rank",
        ),
        ({"ranks": [1, 2, 3]}, "number or null for each of the 2"),
        ({"ranks": None}, "number or null"),
        ({"ranks": ["1", "2"]}, "number or null"),
        ({"responses": ["I am."]}, "at least two"),
        ({"responses": ["I am.", 3]}, "must be a text"),
        ({"responses": None}, "at least two"),
        ({"comparisons": [[0, 2]]}, "[better, worse]"),
        ({"comparisons": [[0]]}, "[better, worse]"),
        ({"prompt": 5}, "must be a string or a list"),
    ],
)
def test_rankings_that_cannot_be_used(refusal, change, says):
    write_jsonl("bad.jsonl", [r | change for r in RANKINGS])
    said = refusal("reward", "--init", "sft.pt", "--data", "bad.jsonl")
    assert says in said and ("bad.jsonl" in said or says.startswith("the data holds no"))


def test_a_number_too_few_rankings_to_hold_some_out(refusal):
    write_jsonl("bad.jsonl", RANKINGS[:1])
    assert "too few" in refusal("reward", "--init", "sft.pt", "--data", "bad.jsonl")


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("pretrain", []),
        ("sft", ["--init", "sft.pt"]),
        ("reward", ["--init", "sft.pt"]),
        ("ppo", ["--init", "sft.pt", "--rm", "rm.pt"]),
        ("label", ["--init", "sft.pt"]),
        ("evaluate", ["sft.pt", "--rm", "rm.pt"]),
    ],
)
def test_a_data_file_that_is_missing_or_not_utf8(refusal, script, argv):
    flag = "--prompts" if script in ("ppo", "label", "evaluate") else "--data"
    said = refusal(script, *argv, flag, "none.jsonl")
    assert "none.jsonl does not exist" in said
    with open("latin.jsonl", "wb") as f:
        f.write('{"text": "Gr\xfc\xdfe", "prompt": "Gr\xfc\xdfe"}\n'.encode("latin1"))
    said = refusal(script, *argv, flag, "latin.jsonl")
    assert "line 1: byte" in said and "iconv" in said


@pytest.mark.parametrize("meta", [{"answers": []}, {"other": 1}, 3, "x", [1]])
def test_prompts_whose_answer_key_is_not_the_sandbox_s(refusal, meta):
    write_jsonl("p.jsonl", [{"prompt": "Who are you?", "meta": meta}])
    assert "p.jsonl" in refusal("evaluate", "sft.pt", "--prompts", "p.jsonl")
    assert "p.jsonl" in refusal("label", "--init", "sft.pt", "--prompts", "p.jsonl")


def test_text_that_is_too_short(refusal):
    with open("short.txt", "w") as f:
        f.write("Velia is")
    assert "short.txt" in refusal("pretrain", "--data", "short.txt")
    sft = ["--init", "sft.pt", "--data", "demos.jsonl"]
    assert "short.txt" in refusal("sft", *sft, "--ptx", "short.txt")
    ppo = ["--init", "sft.pt", "--rm", "rm.pt", "--max-new", "8", "--rollout", "4"]
    ppo += ["--minibatch", "4", "--iterations", "1"]
    assert "short.txt" in refusal("ppo", *ppo, "--ptx", "short.txt")


# -------------------------------------------------------------------------------------------------
# outputs


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("pretrain", SMALL),
        ("sft", ["--init", "sft.pt", "--data", "demos.jsonl", "--epochs", "1"]),
        ("reward", ["--init", "sft.pt", "--data", "rankings.jsonl"]),
        ("label", ["--init", "sft.pt", "--n", "2", "--max-new", "2"]),
    ],
)
def test_an_output_that_cannot_be_written(refusal, inside, script, argv):
    (inside / "folder").mkdir()
    assert "nowhere/x.pt" in refusal(script, *argv, "--out", "nowhere/x.pt")
    assert "folder" in refusal(script, *argv, "--out", "folder")
    assert os.listdir("folder") == []


def test_a_report_that_cannot_be_written(refusal):
    argv = ["evaluate", "sft.pt", "--n", "2", "--max-new", "2"]
    assert "good" in refusal(*argv, "--out", "good")  # a file, not a folder
    os.makedirs("report/report.json")
    assert "report" in refusal(*argv, "--out", "report")


@pytest.mark.parametrize(
    ("limit", "save_every", "says"),
    [
        (100_000, "2", "cannot write base.pt.part "),
        (100_000, "9", "cannot write base.pt "),
        (100, "2", "cannot write base.pt.log.jsonl "),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint(refusal, limit, save_every, says):
    """Writing the unfinished run, the result, or the log, fails; the old result stays."""
    argv = [*SMALL, "--n-embd", "64", "--save-every", save_every, "--out", "base.pt"]
    argv += ["--overwrite"]
    torch.manual_seed(0)
    old = GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 64))
    meta = {"stage": "pretrain", "metrics": {}}
    save_checkpoint("base.pt", old, interop.tokenizer_id(ENC), meta)
    with open("base.pt", "rb") as f:
        before = f.read()
    with full_disk(limit):
        said = refusal("pretrain", *argv)
    assert says in said
    with open("base.pt", "rb") as f:
        assert f.read() == before
    interop.load_model("base.pt", GPT)


def test_an_unfinished_run_with_other_settings_is_not_overwritten(refusal, inside):
    """base.pt.part of one command is refused by another, and stays."""
    torch.manual_seed(0)
    save_checkpoint(
        str(inside / "x.pt.part"),
        GPT(GPTConfig(ENC.n_vocab, 64, 1, 2, 16)),
        interop.tokenizer_id(ENC),
        {"stage": "pretrain", "config": {}, "inputs": {}},
        resume={"step": 1},
    )
    before = (inside / "x.pt.part").read_bytes()
    assert "x.pt.part" in refusal("pretrain", *SMALL, "--out", "x.pt")
    assert (inside / "x.pt.part").read_bytes() == before and not (inside / "x.pt").exists()


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("pretrain", SMALL),
        ("sft", ["--init", "sft.pt", "--data", "demos.jsonl"]),
        ("reward", ["--init", "sft.pt", "--data", "rankings.jsonl"]),
        ("ppo", ["--init", "sft.pt", "--rm", "rm.pt"]),
        ("label", ["--init", "sft.pt"]),
    ],
)
def test_a_result_that_another_command_made_is_refused_by_name(refusal, inside, script, argv):
    """A file of someone else, another model, an input, a link."""
    says = "{} is there already, and ({}).*: choose another .*, or --overwrite it"
    said = refusal(script, *argv, "--out", "good")
    assert re.search(says.format("good", "it is no checkpoint|this command did not make it"), said)
    shutil.copy("other.pt", "theirs.pt")
    if script != "label":
        said = refusal(script, *argv, "--out", "theirs.pt")
        assert re.search(says.format("theirs.pt", "it was made by sft|it was made with --"), said)
    if "--init" in argv:
        shutil.copy("sft.pt", "mine.pt")
        argv = ["mine.pt" if x == "sft.pt" else x for x in argv]
        for more in ([], ["--overwrite"]):
            said = refusal(script, *argv, "--out", "mine.pt", *more)
            assert "mine.pt is one of the inputs: choose another name" in said
    os.symlink("/dev/null", "null")
    said = refusal(script, *argv, "--out", "null", "--overwrite")
    assert "--out null cannot be written: it is a link" in said
    assert not [name for name in os.listdir() if name.endswith((".part", ".log.jsonl", ".json"))]


def test_a_report_of_someone_else_is_refused_by_name(refusal, inside):
    (inside / "report").mkdir()
    (inside / "report" / "report.md").write_text("mine")
    said = refusal("evaluate", "sft.pt", "--out", "report")
    assert "report/report.md is there already, and this command did not make it: choose" in said
    assert os.listdir("report") == ["report.md"]


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("pretrain", [*SMALL, "--tokens", "64"]),
        ("sft", ["--init", "sft.pt", "--data", "demos.jsonl", "--batch", "40", "--epochs", "1"]),
        ("reward", ["--init", "sft.pt", "--data", "rankings.jsonl", "--batch", "40"]),
        ("ppo", [*PPO, "--iterations", "1", "--rollout", "2", "--minibatch", "2"]),
    ],
)
def test_a_run_that_diverges_writes_no_result(refusal, script, argv):
    """At its only step, with the largest rate that is allowed."""
    said = refusal(script, *argv, "--lr", "9e18", "--warmup", "0", "--out", "x.pt")
    assert "not finite" in said
    assert not os.path.exists("x.pt") and not os.path.exists("x.pt.part")
    assert os.path.getsize("x.pt.log.jsonl") == 0
    for value in ("1e39", "nan", "inf", "-inf"):
        said = refusal(script, *argv, f"--lr={value}")
        assert said.startswith("error: --lr must be a finite number, below 2^63, got ")
    assert "--ema must be a finite number" in refusal(script, *argv, "--ema", "nan")


@pytest.mark.parametrize(
    ("script", "argv", "says"),
    [
        ("pretrain", [*SMALL, "--precision", "fp8"], "--precision"),
        ("pretrain", [*SMALL, "--block", "65"], "--context"),
        ("sft", ["--init", "sft.pt", "--ptx-mix", "1"], "--ptx-mix"),
        ("sft", ["--init", "sft.pt", "--select", "rm"], "--rm"),
        (
            "ppo",
            ["--init", "sft.pt", "--rm", "rm.pt", "--rollout", "5", "--minibatch", "2"],
            "--minibatch",
        ),
        ("pretrain", [*SMALL, "--n-head", "3"], "--n-head"),
        ("pretrain", [*SMALL, "--schedule", "linear"], "--schedule"),
        ("pretrain", [*SMALL, "--batch", "0"], "--batch"),
        ("sft", ["--init", "sft.pt", "--epochs", "0"], "--epochs"),
        ("sft", ["--init", "sft.pt", "--batch", "0"], "--batch"),
        ("ppo", ["--init", "sft.pt", "--rm", "rm.pt", "--minibatch", "0"], "--minibatch"),
        ("pretrain", [*SMALL, "--save-every", "0"], "--save-every"),
        ("ppo", ["--init", "sft.pt", "--rm", "rm.pt", "--value-init", "sft"], "--value-init"),
        ("sft", ["--init", "sft.pt", "--select", "best"], "--select"),
    ],
)
def test_settings_that_cannot_work(refusal, script, argv, says):
    assert says in refusal(script, *argv)


def test_a_flag_that_does_not_exist(inside, monkeypatch, capsys):
    import pretrain

    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--learning-rate", "1"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(pretrain.main, pretrain.Config, pretrain.PRESETS, pretrain.__doc__)
    assert stopped.value.code == 2 and "--learning-rate" in capsys.readouterr().err
    assert not (inside / "base.pt").exists()
