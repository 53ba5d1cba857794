"""codex/runner.py, plumbing/jail.py: programs that mean ill get no verdict but theirs, end in time
and leave nothing; those that mean well pass."""

import gzip
import json
import math
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from codex import runner
from plumbing import jail
from plumbing.results import write_jsonl

TESTS = """
def check(f):
    assert f(2) == 4
    assert f("ab") == "abab"
    assert f([1]) == [1, 1]
check(f)
"""
RIGHT = "def f(x): return x + x"
PROBLEM = runner.Problem("double", "", "f", TESTS, RIGHT)
LIMITS = runner.LIMITS | {"cpu": 1, "memory": 200, "wall": 8}
LATE = 25       # seconds that a busy machine may need besides
PARTS = re.split(r"^## (.+): (.+)\n", Path(__file__).with_name("attacks.txt").read_text(),
                 flags=re.MULTILINE)[1:]
PROGRAMS = {name: (code, verdicts.split())
            for name, verdicts, code in zip(PARTS[::3], PARTS[1::3], PARTS[2::3])}
PROGRAMS["a NUL"] = ("\0", ["error"])
PROGRAMS["60 MB of code"] = ("#" * 6 * 10**7, ["error"])


def alive(path=jail.__file__):
    """The processes that run jail.py, and that these have forked: {id: parent's id}."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if path.encode() in (folder / "cmdline").read_bytes():
                _, _, rest = (folder / "stat").read_text().rpartition(") ")
                found[int(folder.name)] = int(rest.split()[1])
        except (OSError, IndexError):
            continue
    return found


def none_alive(seconds, path=jail.__file__):
    end = time.monotonic() + seconds
    while alive(path) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(path)


@pytest.fixture(scope="module")
def layers():
    return runner.layers_here()


@pytest.fixture(scope="module")
def jailed(layers):
    """All layers: without them some programs would do what they are here for."""
    lacking = [x for x in jail.LAYERS if x not in layers]
    if lacking:
        pytest.skip(f"this system lacks {', '.join(lacking)}")
    return layers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What is to be harmed."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "canary").write_text("alive")
    place = tempfile.mkdtemp("-socket")         # whose path is short enough
    sockets = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX),
               socket.socket(type=socket.SOCK_DGRAM)]
    addresses = [("127.0.0.1", 0), f"{place}/x", "\0codex-attacked", ("127.0.0.1", 0)]
    for x, address in zip(sockets, addresses):
        x.bind(address)
        x.setblocking(False)
    for x in sockets[:3]:
        x.listen()
    victim = subprocess.Popen(["sleep", "600"])
    words = {"PID": victim.pid, "TCP": sockets[0].getsockname()[1], "SOCKET": f"{place}/x",
             "UDP": sockets[3].getsockname()[1], "OUTSIDE": outside}
    yield SimpleNamespace(words=words, sockets=sockets, victim=victim, outside=outside)
    victim.kill()
    victim.wait()
    for x in sockets:
        x.close()
    os.remove(f"{place}/x")
    os.rmdir(place)


@pytest.fixture(scope="module")
def outcomes(world, jailed):
    """All programs, six at a time -> {name: (outcome, seconds)}, and new files in /tmp."""
    def timed(name):
        code, _ = PROGRAMS[name]
        for word, value in world.words.items():
            code = code.replace(word, str(value))
        begun = time.monotonic()
        outcome = runner.run(PROBLEM, code, jailed, limits=LIMITS)
        return outcome, time.monotonic() - begun

    before = set(os.listdir(tempfile.gettempdir()))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
        patch.setenv("SECRET", "4")
        of = dict(zip(PROGRAMS, pool.map(timed, PROGRAMS)))
    return SimpleNamespace(of=of, new=set(os.listdir(tempfile.gettempdir())) - before)


@pytest.mark.parametrize("name", PROGRAMS, ids=lambda name: name.replace(" ", "-"))
def test_a_program_gets_its_verdict_in_time(name, outcomes):
    outcome, seconds = outcomes.of[name]
    assert outcome.verdict in PROGRAMS[name][1], outcome
    assert seconds < LIMITS["wall"] + LATE


def test_what_a_program_writes_is_kept_from_the_runner(layers, monkeypatch):
    told, start = [], subprocess.run

    def seen(*args, **kwargs):
        told.append(start(*args, **kwargs))
        return told[-1]

    monkeypatch.setattr(runner.subprocess, "run", seen)
    program = "import os\nfor fd in (0, 1, 2): os.write(fd, b'x' * 9)\nprint('x')\n" + RIGHT
    assert runner.run(PROBLEM, program, layers).verdict == "pass"
    assert told[0].stderr == b"" and b"x" not in told[0].stdout


def test_programs_harm_nobody_and_leave_nothing(world, outcomes):
    assert len(outcomes.of) > 150 and none_alive(5)
    assert world.victim.poll() is None
    assert os.getpriority(os.PRIO_PROCESS, world.victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert [x.name for x in world.outside.iterdir()] == ["canary"]
    assert (world.outside / "canary").read_text() == "alive"
    assert (world.outside / "canary").stat().st_mode & 0o777
    for x in world.sockets:
        with pytest.raises(BlockingIOError):
            x.recv(1) if x.type == socket.SOCK_DGRAM else x.accept()
    assert not [x for x in outcomes.new if "attacked" in x]
    assert not os.path.exists("/dev/shm/attacked")


# ---- the tests' side ----------------------------------------------------------------------------

@pytest.mark.parametrize("value", [
    None, True, 3, 2**80, -0.5, math.inf, "é\0\ud800", [], [1, [2.0, "x"]], (), (1, (2, [3])),
    {"tuple": [1]}, {1: "a", (2, 3): {4}}, set(), {1, "a", (2,)}, {frozenset({1}): [None]},
    b"\0\xff",
])
def test_values_come_as_they_went(value):
    come = json.loads(json.dumps(jail.tagged(value)), object_hook=jail.untagged)
    assert come == value and repr(come) == repr(value)


def test_what_is_more_than_its_plain_type_comes_as_that():
    import collections
    import enum

    color = enum.IntEnum("color", "red")
    for value, plain in [(collections.Counter("aab"), {"a": 2, "b": 1}), (color.red, 1),
                         (collections.namedtuple("P", "x y")(1, 2), (1, 2))]:
        come = json.loads(json.dumps(jail.tagged(value)), object_hook=jail.untagged)
        assert come == plain and type(come) is type(plain)
    assert list(jail.untagged(jail.tagged(map(str, [1, 2])))) == ["1", "2"]
    with pytest.raises(TypeError):
        jail.tagged(object())


@pytest.mark.parametrize(("tests", "verdict"), [
    ("assert f(2) == 4", "pass"), ("assert f(2) == 5", "wrong"), ("assert f(2) == (4,)", "wrong"),
    ("assert [f(x) for x in range(99)] == list(range(0, 198, 2))", "pass"),
    ("assert abs(f(.1) - .2) < 1e-9", "pass"), ("assert helper(f(2)) == 5", "pass"),
    ("assert f(f(2)) == 8", "pass"), ("raise KeyError", "wrong"), ("assert f(None)", "error"),
    ("assert f(2) == 4\nimport sys; sys.exit(0)", "wrong"), ("assert f(object())", "wrong"),
    ("print('x' * 10**6)\nassert f((1,)) == (1, 1)", "pass"), ("while True: f(1)", "timeout"),
    ("try: f(None)\nexcept: pass\nelse: assert 0", "error"),
])
def test_tests_are_python_and_see_the_prompts_functions(tests, verdict, layers):
    problem = runner.Problem("", "def helper(x): return x + 1\ndef f(x): pass", "f", tests, "")
    limits = LIMITS | {"wall": 2 if verdict == "timeout" else 8}
    found = runner.run(problem, "def helper(x): return 5\n" + RIGHT, layers, limits=limits)
    assert found.verdict == verdict, found


OBJECTS = runner.Problem("", "class A:\n  x = 3\n", "f", "assert f(A()) == 3",
                         "def f(a): return a.x")


def test_tests_of_objects_run_whole(layers):
    assert runner.way(OBJECTS, layers) == "whole" and runner.way(PROBLEM, layers) == "hidden"
    assert runner.way(OBJECTS._replace(solution="def f(a): return 4"), layers) is None


def test_a_solution_at_the_limit_of_time_does_not_count(layers, monkeypatch):
    """One of MBPP's takes three seconds: its samples would pass on one day and not on another."""
    monkeypatch.setattr(runner, "LIMITS", runner.LIMITS | {"cpu": 2})
    slow = "import time\ndef f(x):\n  while time.process_time() < 1.5: pass\n  return 2 * x"
    assert runner.run(PROBLEM, slow, layers, limits=runner.LIMITS).verdict == "pass"
    assert runner.way(PROBLEM._replace(solution=slow), layers) is None


@pytest.mark.parametrize("name", [
    "SystemExit", "os._exit", "os._exit in the call", "exit of C", "a verdict ready",
    "an answer ready", "another exception", "nothing", "atexit and an exit", "sleeping"])
def test_whole_needs_more_than_an_end_without_an_exception(name, layers):
    code = {"atexit and an exit": "import atexit, os\natexit.register(os._exit, 0)\nexit(0)"}
    program = OBJECTS.prompt + (code.get(name) or PROGRAMS[name][0])
    limits = LIMITS | {"wall": 2 if name == "sleeping" else 8}
    found = runner.run(OBJECTS, program, layers, whole=True, limits=limits)
    assert found.verdict in ("error", "wrong", "timeout")


def test_programs_see_no_installed_packages_and_nobody_else_s_files(layers):
    if "mounts" not in layers:
        pytest.skip("programs have no mounts of their own here")
    import pytest as installed
    packages = os.path.dirname(os.path.dirname(installed.__file__))
    library = os.path.dirname(os.__file__)
    problem = runner.Problem("", "import os\n", "f", f"""
assert f({library!r} + "/site-packages") in ([], None) and "json" in f({library!r})
assert f({packages!r}) in ([], None) and f("/usr/share") is None and f("/usr/src") is None
""", "")
    program = """
import os
def f(x): return os.listdir(x) if os.path.isdir(x) else None
"""
    assert runner.run(problem, program, layers).verdict == "pass"


def test_two_runs_at_once_are_of_two_users(monkeypatch):
    asked = []

    def started(command, **how):
        if "input" in how:
            asked.append(json.loads(how["input"].splitlines()[0])["number"])
            raise OSError
        os.rmdir(command[-1])
    monkeypatch.setattr(runner.subprocess, "run", started)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: runner.run(PROBLEM, "x = 1", []), range(40)))
    assert len(asked) == 120
    assert len({n % len(jail.USERS) for n in asked}) == 120


# ---- what is nobody's fault ---------------------------------------------------------------------

@pytest.fixture
def patched(tmp_path, monkeypatch):
    """Have runner.py use a jail.py in which some text is another."""
    def patch(*pairs):
        source = Path(jail.__file__).read_text()
        for old, new in pairs:
            assert source.count(old) >= 1
            source = source.replace(old, new)
        (tmp_path / "jail.py").write_text(source)
        monkeypatch.setattr(jail, "__file__", str(tmp_path / "jail.py"))
        tmp_path.chmod(0o755)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    return patch


NO_LANDLOCK = ('call("syscall", 444, None, 0, 1)', 'call("syscall", 9999)')
NO_NAMESPACES = ('call("unshare", NEWNS', 'call("swapon", NEWNS')


def test_a_layer_that_should_be_there_is_not_done_without(patched, jailed):
    patched(NO_LANDLOCK)
    found = runner.run(PROBLEM, RIGHT, ["Landlock"])
    assert found.verdict == "infrastructure" and "syscall" in found.why
    found = runner.run(PROBLEM, RIGHT, [])
    assert found.verdict == "pass" and set(jailed) - set(found.layers) == {"Landlock"}


@pytest.mark.parametrize("lacking", [[NO_LANDLOCK], [NO_NAMESPACES],
                                     [NO_LANDLOCK, NO_NAMESPACES]])
def test_with_fewer_layers_the_verdicts_are_the_same(lacking, patched, capsys):
    patched(*lacking)
    layers = runner.layers_here()
    off = capsys.readouterr().out.split("off: ")[1]
    assert ("namespaces, SHM, mounts" in off) == (NO_NAMESPACES in lacking)
    assert "Landlock" in off or NO_LANDLOCK not in lacking
    assert "beware" in off or len(lacking) < 2
    some = ("plain", "printing", "SystemExit", "a str's __eq__", "an answer ready", "frames",
            "a busy loop", "memory at once", "fork bomb")

    def verdict(name):
        return runner.run(PROBLEM, PROGRAMS[name][0], layers, limits=LIMITS).verdict

    with ThreadPoolExecutor(6) as pool:
        for name, found in zip(some, pool.map(verdict, some)):
            assert found in PROGRAMS[name][1], name
    assert none_alive(5, jail.__file__)


def test_what_the_system_spoils_is_tried_again_and_never_wrong(monkeypatch, layers):
    spoilt, attempt = [], runner.attempt

    def once(*args):
        if not spoilt:
            spoilt.append(1)
            raise BlockingIOError(11, "fork: retry")
        return attempt(*args)

    monkeypatch.setattr(runner, "attempt", once)
    assert runner.run(PROBLEM, RIGHT, layers).verdict == "pass" and spoilt
    monkeypatch.setattr(runner, "attempt", attempt)
    monkeypatch.setattr(runner.time, "sleep", spoilt.append)
    monkeypatch.setattr(runner.sys, "executable", "/nowhere/python")
    found = runner.run(PROBLEM, "def f(x): return 0", layers)
    assert found.verdict == "infrastructure" and "/nowhere/python" in found.why
    assert spoilt == [1, 0, 1, 2]
    with pytest.raises(ValueError, match="programs cannot be run here"):
        runner.layers_here()


STAYS = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(60)"


def test_a_killed_keeper_takes_all_with_it(monkeypatch, jailed):
    monkeypatch.setattr(runner, "TRIES", 1)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(runner.run, PROBLEM, STAYS, jailed)
        while len(alive()) < 3:
            time.sleep(0.01)
        time.sleep(0.3)
        [keeper] = [pid for pid, parent in alive().items() if parent == os.getpid()]
        os.kill(keeper, signal.SIGKILL)
        assert none_alive(5)
        assert found.result().verdict == "infrastructure"


def test_a_killed_evaluation_leaves_nothing_that_lasts(jailed):
    pid = os.fork()
    if pid == 0:
        runner.run(PROBLEM, STAYS, jailed, limits=LIMITS | {"wall": 3})
        os._exit(0)
    while len(alive()) < 3:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert none_alive(3 + LATE)


# ---- HumanEval ----------------------------------------------------------------------------------

def test_solutions_of_humaneval_pass_and_others_do_not(real, layers):
    """Every sixth, and those whose tests call functions of the prompt or the tested one; all 164
    are run by `python -m codex.runner`."""
    problems = runner.read_problems(real("eval/HumanEval.jsonl.gz"))
    assert len(problems) == 164 and problems[0].name == "HumanEval/0"
    some = problems[::6] + [problems[i] for i in (32, 33, 38, 50)]

    def both(problem):
        nothing = runner.run(problem, f"{problem.prompt}    return None\n", layers)
        return runner.way(problem, layers), nothing.verdict

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(both, some)) == {("hidden", "wrong")}


def test_the_command(tmp_path, capsys):
    row = {"task_id": "x/0", "prompt": "def f(x):\n    'Twice.'\n", "entry_point": "f",
           "canonical_solution": "    return x + x\n", "test": "def check(f):\n  assert f(2) == 4"}
    objects = row | {"test": "def check(f):\n  assert f(type('A', (int,), {})) == 4",
                     "canonical_solution": "    return 4 if isinstance(x, type) else 0\n"}
    write_jsonl(str(tmp_path / "p"), [row, objects | {"task_id": "x/1"},
                                     row | {"task_id": "x/2", "canonical_solution": "    pass"}])
    runner.main(runner.Config(problems=str(tmp_path / "p")))
    said = capsys.readouterr().out
    assert "1 of 3 with hidden tests, 1 more whole" in said and "layers on: " in said


@pytest.mark.parametrize(("content", "says"), [
    (b'{"task_id": "x"}', "line 1 is no problem of HumanEval"),
    (b'{"task_id": 1, "text": "x", "code": "def f(): 1", "test_list": []}', "called by its first"),
    (b'{"task_id": 1, "text": "x", "code": "def f(): 1", "test_list": ["f"]}', "called by its fi"),
    (b'{"task_id": 1, "text": 5, "code": "def f(): 1", "test_list": ["f()"]}', "text is not a"),
    (b'{"task_id": 1, "text": "x", "code": "", "test_list": "f()"}', "test_list is not a list of"),
    (b'{"task_id": true, "text": "x", "code": "def f(): 1", "test_list": ["f()"]}', "task_id is"),
    (b'{"task_id": "x", "prompt": "", "entry_point": "f", "test": null, "canonical_solution": ""}',
     "line 1 is no problem of .*: test is not a text"),
    (b'[1]\n{"a": 1}', "line 1 is no problem of"), (b"", "holds no problem"),
    (gzip.compress(b'{"task_id": "x"}', mtime=0)[:-9], "p"), (b"\xff\xfe\xfa", "p"),
])
def test_another_file_is_a_sentence(content, says, tmp_path):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        runner.read_problems(str(tmp_path / "p"))
    with pytest.raises(ValueError, match="--problems .*none does not exist"):
        runner.read_problems(str(tmp_path / "none"))
