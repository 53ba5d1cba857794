"""Makefile: what is made, from what, once; with which seed and Python; and what `clean` removes.

A stand-in takes the place of Python: it notes the command, sees that its inputs are there, and
writes what --out names. The commands themselves run in test_kills.py.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from evidence import report

STANDIN = """
import json, os, sys, time

version, ensurepip, calls = {version}, {ensurepip}, {calls!r}
words = sys.argv[1:]
with open(calls, "a") as f:
    f.write(json.dumps(words) + "\\n")
if words == ["--version"]:
    print("Python " + ".".join(map(str, version)))
elif words[0] == "-c":
    sys.version_info = version
    if not ensurepip:
        sys.modules["ensurepip"] = None
    exec(words[1])
elif words[:2] == ["-m", "venv"]:
    os.makedirs(words[2] + "/bin")
    os.symlink({path!r}, words[2] + "/bin/python")
elif "--out" in words or "--mixture" in words:
    out = words[words.index("--out" if "--out" in words else "--mixture") + 1]
    for word in words[1:]:
        path = word.split(":")[-1]
        if path.endswith((".pt", ".jsonl")) and path != out and not os.path.exists(path):
            sys.exit(path + " is not there yet")
    if "." not in os.path.basename(out):
        os.makedirs(out, exist_ok=True)
        for name in ("corpus.jsonl", "functions.jsonl", "prompts.jsonl", "made.json"):
            if out.endswith("toy"):
                open(out + "/" + name, "w").close()
        out += "/toy.tiktoken" if out.endswith("toy") else "/report.md"
    open(out, "w").close()
    time.sleep({seconds})
"""


class Standin:
    """A Python of our own, and the commands that it was given."""

    def __init__(self, folder, version=(3, 11, 0), ensurepip=True, seconds=0.0):
        self.calls_file, self.path = f"{folder}/calls", f"{folder}/standin"
        values = {"version": version, "ensurepip": ensurepip, "seconds": seconds}
        with open(f"{self.path}.py", "w") as f:
            f.write(STANDIN.format(calls=self.calls_file, path=self.path, **values))
        command = shlex.join([sys.executable, f"{self.path}.py"])
        with open(self.path, "w") as f:
            f.write(f'#!/bin/sh\nexec {command} "$@"\n')
        os.chmod(self.path, 0o755)

    def calls(self):
        """The commands so far, lists of words; the next call of `calls` begins anew."""
        if not os.path.exists(self.calls_file):
            return []
        with open(self.calls_file) as f:
            found = [json.loads(line) for line in f]
        os.remove(self.calls_file)
        return found


@pytest.fixture
def standin(tmp_path):
    return Standin(tmp_path)


@pytest.fixture
def out(tmp_path):
    """A folder with spaces, which is not there yet."""
    return f"{tmp_path}/a folder/of mine"


def start(root, *args, **env):
    """`make` in the folder of the source files, where the environment counts as installed."""
    argv = ["make", "-C", root, "-o", ".venv/ready", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHON": sys.executable} | env
    return subprocess.Popen(argv, env=env, start_new_session=True, **pipes)


def make(root, *args, **env):
    """`make` to its end -> exit code, what it said."""
    process = start(root, *args, **env)
    said, errors = process.communicate(timeout=60)
    return process.returncode, said + errors


def results(calls):
    """Names of what the commands wrote, sorted."""
    written = [words[words.index("--out") + 1] for words in calls if "--out" in words]
    return sorted(os.path.basename(path) for path in written)


# ---- what is made, and from what ---------------------------------------------------------------

CODEX = ["code-rl.pt", "code-s.pt", "code.pt", "codex", "toy"]
ARTEFACTS = ["base.pt", "comparisons.jsonl", "ppo.pt", "report", "rm.pt", "sft.pt"]
COMPARED = ["base.pt", "ceiling.pt", "compare", "comparisons.jsonl", "feedme.pt", "flan.pt"]
COMPARED += ["ppo-plain.pt", "ppo.pt", "ratings.jsonl", "rm.pt", "sft.pt"]
GOALS = {"all": (ARTEFACTS, "report"), "compare": (COMPARED, "report/compare")}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("jobs", ("-j1", "-j2", "-j8"))
def test_every_artefact_is_made_once_after_what_it_is_made_from(root, standin, out, jobs, goal):
    """And the last command says what the report says, each time."""
    artefacts, folder = GOALS[goal]
    show = ["-m", "evidence.report", f"{out}/{folder}"]
    code, said = make(root, jobs, goal, f"OUT={out}", f"PY={standin.path}")
    assert code == 0, said
    calls = standin.calls()
    assert results(calls) == artefacts and calls[-1] == show
    assert make(root, jobs, goal, f"OUT={out}", f"PY={standin.path}")[0] == 0
    assert standin.calls() == [show]


def test_codex_is_made_once_in_order(root, standin, out):
    """And its page is shown each time."""
    given = ["codex", f"OUT={out}", f"PY={standin.path}"]
    code, said = make(root, *given)
    assert code == 0, said
    assert results(standin.calls()) == CODEX
    assert re.findall(r"^codex (\d)/5 .*, about \d+ s$", said, re.MULTILINE) == [*"12345"]
    assert make(root, *given)[0] == 0
    assert standin.calls() == []


def test_what_is_missing_is_made_again_with_what_follows_from_it(root, standin, out):
    given = ["all", "compare", f"OUT={out}", f"PY={standin.path}"]
    make(root, *given)
    standin.calls()
    os.remove(f"{out}/rm.pt")
    assert make(root, *given)[0] == 0
    again = ["ceiling.pt", "compare", "flan.pt", "ppo-plain.pt", "ppo.pt", "report", "rm.pt"]
    assert results(standin.calls()) == again


def test_the_report_of_a_seed_has_its_systems_and_its_prompts(root, standin, out):
    """The last of them is the one that the ten lines are about."""
    make(root, "all", "compare", f"OUT={out}", f"PY={standin.path}", SEED="7")
    whole, small = (words for words in reversed(standin.calls()) if words[0] == "evaluate.py")
    names = ["base.pt", "sft.pt", "bon16:sft.pt", "ppo.pt"]
    more = ["base.pt", "prompted:base.pt", "sft.pt", "flan.pt", "feedme.pt", "bon16:sft.pt"]
    more += ["ppo-plain.pt", "ceiling.pt", "ppo.pt"]
    for words, systems in ((small, names), (whole, more)):
        assert [word.replace(f"{out}/", "") for word in words[1 : words.index("--rm")]] == systems
        assert words[words.index("--seed") + 1] == "7"


def test_each_stage_says_what_it_is_and_how_long_it_takes(root, standin, out):
    given = [f"OUT={out}", f"PY={standin.path}"]
    begins = re.compile(r"^((?:compare )?\d/\d) .*, about \d+ s$", re.MULTILINE)
    said = make(root, *given)[1]
    assert begins.findall(said) == [f"{i}/6" for i in range(1, 7)]
    said = make(root, *given, "compare")[1]
    assert begins.findall(said) == [f"compare {i}/6" for i in range(1, 7)]
    assert begins.findall(make(root, *given, "all", "compare")[1]) == []


def test_each_command_sees_what_was_made_by_hand_before(root, standin, out):
    """It knows whether it has made that, with which seed."""
    os.makedirs(out)
    for name in ("base.pt", "sft.pt"):
        with open(f"{out}/{name}", "w"):
            os.utime(f"{out}/{name}", (0, 0))
    assert make(root, f"OUT={out}", f"PY={standin.path}")[0] == 0
    assert results(standin.calls()) == ARTEFACTS


def test_the_home_folder_is_what_the_shell_would_make_of_it(root, standin, tmp_path):
    code, said = make(root, "OUT=~/of mine", f"PY={standin.path}", HOME=str(tmp_path))
    assert code == 0, said
    calls = standin.calls()
    assert results(calls) == ARTEFACTS
    assert calls[-1] == ["-m", "evidence.report", f"{tmp_path}/of mine/report"]
    assert (tmp_path / "of mine" / "make.seed").read_text() == "0\n"


def data_of(calls):
    """Names of the comparisons of each reward model."""
    found = []
    for words in calls:
        if words[0] == "reward.py":
            given = words[words.index("--data") + 1 : words.index("--out")]
            found.append([os.path.basename(path) for path in given])
    return found


def test_rounds_hand_on_comparisons_policies_and_seeds(root, standin, out):
    goal = ["rounds", f"OUT={out}", f"PY={standin.path}", "SEED=5"]
    code, said = make(root, *goal, "ROUNDS=3")
    assert code == 0, said
    calls = standin.calls()[2:]  # after base.pt and sft.pt
    names = ["round-1.jsonl", "round-2.jsonl", "round-3.jsonl"]
    assert data_of(calls) == [names[:1], names[:2], names]
    samplers = [words[words.index("--init") + 1] for words in calls if words[0] == "label.py"]
    assert [os.path.basename(path) for path in samplers] == ["sft.pt", "round-1.pt", "round-2.pt"]
    seeds = [words[words.index("--seed") + 1] for words in calls if words[0] != "evaluate.py"]
    assert seeds == ["51", "5", "5", "52", "5", "5", "53", "5", "5"]
    systems = calls[-1][1 : calls[-1].index("--rm")]
    assert systems == [f"{out}/{name}.pt" for name in ("sft", "round-1", "round-2", "round-3")]
    # every command is given again: it knows what it has made
    assert make(root, *goal, "ROUNDS=3", "KEEP=0")[0] == 0
    calls = standin.calls()
    assert len(calls) == 10 and data_of(calls) == [[name] for name in names]


@pytest.mark.parametrize("goal", ("all", "compare", "rounds", "rm.pt"))
def test_another_seed_is_refused_before_anything_is_made_with_it(root, standin, out, goal):
    goal = f"{out}/{goal}" if "." in goal else goal
    given = [f"OUT={out}", f"PY={standin.path}"]
    assert make(root, *given, SEED="3")[0] == 0
    standin.calls()
    for name in (None, "sft.pt", "base.pt"):
        if name:
            os.remove(f"{out}/{name}")
        code, said = make(root, *given, goal, SEED="4")
        assert code == 2 and standin.calls() == []
        assert f"error: {out}/make.seed says that OUT was begun with SEED=3, not SEED=4" in said
    assert make(root, *given, "clean", SEED="4")[0] == 0
    assert make(root, *given, SEED="4")[0] == 0 and results(standin.calls()) == ARTEFACTS


def test_a_command_that_fails_ends_make(root, out):
    code, said = make(root, f"OUT={out}", "PY=false")
    assert code == 2 and "base.pt" in said and "sft.py" not in said


# ---- interruptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("to_all", (False, True))
@pytest.mark.parametrize("sent", (signal.SIGINT, signal.SIGTERM))
def test_what_is_written_stays_when_make_is_interrupted(root, tmp_path, out, sent, to_all):
    """`make` would delete the result of the command that it was waiting for."""
    standin = Standin(tmp_path, seconds=0.3)
    process = start(root, f"OUT={out}", f"PY={standin.path}")
    while not os.path.exists(f"{out}/base.pt") and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    if to_all:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert os.path.exists(f"{out}/base.pt") and not os.path.exists(f"{out}/sft.pt")


# ---- the Python --------------------------------------------------------------------------------


@pytest.fixture
def checkout(root, tmp_path):
    """A checkout without an environment, in a folder with spaces."""
    folder = tmp_path / "my checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt"):
        with open(f"{root}/{name}") as f:
            (folder / name).write_text(f.read())
    return folder


def test_the_environment_is_installed_once_and_first(checkout, standin):
    argv = ["make", "-j8", "-C", checkout, f"PYTHON={standin.path}"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    calls = standin.calls()
    assert [words[0] for words in calls[:4]] == ["-c", "-m", "-m", "pretrain.py"]
    assert results(calls[3:]) == ARTEFACTS
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    assert [words[:2] for words in standin.calls()] == [["-m", "evidence.report"]]


def test_seeds_have_a_folder_each_and_come_together_in_their_order(checkout, standin):
    """Whatever OUT is: those that were made already are not made again."""
    argv = ["make", "-C", checkout, f"PYTHON={standin.path}", "OUT=elsewhere", "SEEDS=12 3"]
    subprocess.run([*argv, "seeds"], check=True, capture_output=True, timeout=60)
    calls = standin.calls()
    assert calls[-1] == ["-m", "evidence.seeds"] + [
        f"runs/{seed}/report/compare/report.json" for seed in (12, 3)
    ]
    assert results(calls) == sorted([*COMPARED, *COMPARED])
    for seed in ("12", "3"):
        own = [words for words in calls if f"runs/{seed}/" in " ".join(words)]
        seeds = [words[words.index("--seed") + 1] for words in own if "--seed" in words]
        assert seeds == [seed] * len(COMPARED)
        assert (checkout / "runs" / seed / "make.seed").read_text() == f"{seed}\n"
    assert not (checkout / "elsewhere").exists()
    subprocess.run([*argv, "seeds"], check=True, capture_output=True, timeout=60)
    assert results(standin.calls()) == []


@pytest.mark.parametrize(
    "python, which",
    [
        ({"version": (3, 8, 10)}, "Python 3.8.10"),
        ({"version": (3, 12, 1), "ensurepip": False}, "Python 3.12.1"),
        (None, "not found"),
    ],
)
def test_a_python_that_is_too_old_or_lacks_venv_is_told_first(checkout, tmp_path, python, which):
    standin = Standin(tmp_path, **(python or {}))
    path = standin.path if python else f"{tmp_path}/nowhere"
    argv = ["make", "-C", checkout, f"PYTHON={path}"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"error: PYTHON={path} is not Python 3.11 or newer with its venv (" in done.stderr
    assert which in done.stderr.splitlines()[0]
    assert [words[0] for words in standin.calls()] == (["-c", "--version"] if python else [])
    assert sorted(path.name for path in checkout.iterdir()) == ["Makefile", "requirements.txt"]


# ---- clean -------------------------------------------------------------------------------------


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_clean_removes_what_was_made_and_no_other_file(root, standin, tmp_path):
    out = tmp_path / "a folder"
    given = [f"OUT={out}", f"PY={standin.path}"]
    assert make(root, *given, "all", "compare", "codex", "rounds", "ROUNDS=10")[0] == 0
    made = [name for name in files_below(out) if name.endswith((".pt", ".jsonl"))]
    assert len(made) == 9 + 2 + 3 + 3 + 3 * 10
    made = [name for name in made if not name.startswith("toy/")]
    folders = ["report", "report/compare", "report/codex", "report/rounds-10"]
    left = [f"{folder}.lock" for folder in folders]
    for name in made:
        left += [f"{name}.lock", f"{name}.part", f"{name}.log.jsonl", f"{name}.made.json"]
        left += [f".{name}.a_b0cdef.tmp", f".{name}.part.abcdefgh.tmp"]
        left += [f".{name}.log.jsonl.abcdefgh.tmp", f".{name}.made.json.abcdefgh.tmp"]
    for folder in folders:
        for name in (*report.FILES, "made.json"):
            left += [f"{folder}/{name}", f"{folder}/.{name}.abcdefgh.tmp"]
    own = ["mine.pt", "ppo-2.pt", "data.jsonl", "my.log.jsonl", "report.md", "my.lock", ".x.tmp"]
    own += ["report/notes.md", "report/rounds-mine/report.md", "round-1-notes.jsonl", "seed"]
    own += ["report/compare/notes.md", "toy/mine.jsonl"]
    own += [".base.pt-backup.20240101.tmp", ".sft.pt.mine.20240101.tmp", ".report.md.abcdefgh.tmp"]
    (out / "report" / "rounds-mine").mkdir()
    for name in left + own:
        (out / name).write_text("x")
    assert make(root, *given, "clean")[0] == 0
    assert files_below(out) == sorted(own)


def test_clean_leaves_a_folder_that_make_did_not_begin(root, standin, tmp_path):
    own = ["ratings.jsonl", "report/report.md", "sft.pt"]
    (tmp_path / "mine" / "report").mkdir(parents=True)
    for name in own:
        (tmp_path / "mine" / name).write_text("x")
    for out in (tmp_path / "mine", tmp_path / "not there"):
        code, said = make(root, "clean", f"OUT={out}")
        assert code == 0
        assert f"nothing in {out} was made by make: it has no make.seed" in said
    assert files_below(tmp_path / "mine") == own


@pytest.mark.parametrize("link", ("report", "report/rounds-2"))
def test_clean_removes_nothing_through_a_link(root, standin, tmp_path, link):
    out, other = tmp_path / "ours", tmp_path / "other"
    given = [f"OUT={out}", f"PY={standin.path}"]
    assert make(root, *given, "rounds", "ROUNDS=1")[0] == 0
    (other / "rounds-3").mkdir(parents=True)
    own = ["made.json", "report.md", "rounds-1.lock"]
    for name in own:
        (other / name).write_text("x")
    if link == "report":
        (out / "report").rename(out / "moved")
    (out / link).symlink_to(other)
    assert make(root, *given, "clean")[0] == 0
    assert files_below(other) == own and (other / "rounds-3").is_dir()
    left = ["moved/rounds-1/report.md"] if link == "report" else []
    assert files_below(out) == left and (out / link).is_symlink()


@pytest.mark.parametrize("name", ("-", "there"))
def test_clean_goes_to_the_folder_that_is_named(root, tmp_path, name):
    """Not to the last one, nor to one that CDPATH has."""
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout / name, elsewhere, elsewhere / "there"):
        folder.mkdir(parents=True)
        for file in ("base.pt", "make.seed"):
            (folder / file).write_text("x")
    env = {"CDPATH": str(elsewhere), "OLDPWD": str(elsewhere), "PWD": str(checkout)}
    argv = ["make", "-f", f"{root}/Makefile", "clean", f"OUT={name}"]
    env = os.environ | {"PYTHON": sys.executable} | env
    subprocess.run(argv, check=True, capture_output=True, timeout=60, cwd=checkout, env=env)
    assert files_below(checkout) == []
    assert len(files_below(elsewhere)) == 4


HOLD = """
import sys
from plumbing import results
results.hold(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ("sft.pt", "round-12-rm.pt", "report", "report/compare"))
def test_clean_waits_for_a_run_that_is_on_and_not_for_one_that_was_killed(root, out, name):
    os.makedirs(f"{out}/report")
    for file in ("make.seed", "base.pt"):
        with open(f"{out}/{file}", "w"):
            pass
    argv = [sys.executable, "-c", HOLD, f"{out}/{name}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, cwd=root, **pipes) as run:
        assert run.stdout.readline() == b"held\n"
        there = sorted(os.listdir(out))
        code, said = make(root, "clean", f"OUT={out}")
        run.kill()
    assert code == 2 and sorted(os.listdir(out)) == there
    assert f"error: {out}/{name}.lock is held by process {run.pid} on " in said
    assert os.path.exists(f"{out}/{name}.lock")
    code, said = make(root, "clean", f"OUT={out}")
    assert code == 0, said
    assert os.listdir(out) == []
