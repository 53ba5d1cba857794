"""Whether programs pass the tests of problems, without trusting either. Linux and macOS.

    python -m codex.runner --problems HumanEval.jsonl.gz    # their own solutions: 164 of 164

Verdicts: pass, wrong (a test fails), error (it gives no value), timeout; and infrastructure, which
says nothing about the program: a process could not be made. That is tried again, and counted apart.

Tests of plain values (None, bool, int, float, str, bytes, list, tuple, dict, set) are hidden from
the program. Others run whole, in its own process, where it could find and forge them: count those
apart; a problem's own solution decides which. Programs have the standard library, and no other.
"""
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from interop.problems import Problem, read_problems
from plumbing import cli, jail

TRIES = 3
NUMBERS = itertools.count(os.getpid())      # of runs: two at once have different ones
# of each process seconds of CPU and MB; seconds in all, MB of files, processes that it may start
LIMITS = {"cpu": 3, "memory": 512, "wall": 30, "disk": 1, "processes": 4}


class Outcome(NamedTuple):
    verdict: str            # pass | wrong | error | timeout | infrastructure
    why: str
    layers: list            # those of jail.LAYERS that were on


def attempt(job, hidden):
    """One run of jail.py -> Outcome. Raises OSError or TimeoutExpired if it tells none."""
    folder = tempfile.mkdtemp()
    text = json.dumps(job | {"folder": folder, "number": next(NUMBERS)}) + "\n" + json.dumps(hidden)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-B", jail.__file__], input=text.encode(), env={},
            capture_output=True, start_new_session=True, timeout=job["wall"] + 30, check=False)
    finally:
        subprocess.run(["rm", "-rf", folder], check=False)      # however deep its folders are
    if not done.stdout:
        raise OSError(done.stderr.decode(errors="replace")[-200:] or "the tests' process was ended")
    return Outcome(*json.loads(done.stdout))


def run(problem, program, layers, whole=False, limits=LIMITS):
    """Whether a program, the prompt included, passes -> Outcome. It runs in all of `layers`, or
    not at all."""
    if len(program) > jail.LINE:
        return Outcome("error", f"it has more than {jail.LINE} characters", layers)
    job = limits | {"program": program, "entry_point": problem.entry_point, "layers": layers}
    for n in range(TRIES):
        try:
            return attempt(job, [[problem.prompt, problem.tests], whole])
        except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as e:
            why = str(e)
            time.sleep(n)
    return Outcome("infrastructure", why, [])


def layers_here():
    """Say and return what programs are kept in on this system. Raises ValueError if none can be
    run."""
    trial = Problem("", "", "f", "assert f(1) == 2", "")
    outcome = run(trial, "def f(x): return x + 1", [])
    if outcome.verdict != "pass":
        raise ValueError(f"programs cannot be run here ({outcome.why}): can other users read "
                         f"{sys.base_prefix}?")
    on = set(outcome.layers)
    if os.geteuid() == 0 and not on & {"namespaces", "no privileges"}:
        raise ValueError("programs that root runs could outlive their end here: be another user")
    print("layers on:", ", ".join(outcome.layers))
    print("layers off:", ", ".join(x for x in jail.LAYERS if x not in on) or "none")
    if not on & {"mounts", "Landlock"}:
        print("Programs can reach files, processes and the network here: beware of whose they are.")
    return outcome.layers


def way(problem, layers):
    """How a problem's own solution passes: "hidden", "whole" or None. Raises ValueError."""
    # less time than samples have: at the limit itself verdicts would hang on the machine's load
    limits = LIMITS | {"cpu": LIMITS["cpu"] - 1}
    for name, whole in (("hidden", False), ("whole", True)):
        outcome = run(problem, problem.prompt + problem.solution, layers, whole, limits)
        if outcome.verdict == "infrastructure":
            raise ValueError(f"{problem.name} could not be run ({outcome.why}): start it again, or "
                             f"leave it out if its tests end their own process")
        if outcome.verdict == "pass":
            return name
    return None


@dataclass(frozen=True)
class Config:
    problems: str = "HumanEval.jsonl.gz"    # its problems, or MBPP's, as published
    workers: int = 0    # programs at a time, 0: two a core, as each waits half its time; >= 0


PRESETS = {"all": {}}


def main(cfg):
    problems, layers = read_problems(cfg.problems), layers_here()
    begun = time.monotonic()
    with ThreadPoolExecutor(cfg.workers or 2 * os.cpu_count()) as pool:
        ways = Counter(pool.map(partial(way, layers=layers), problems))
    rate = len(problems) / (time.monotonic() - begun)
    print(f"solutions that pass: {ways['hidden']} of {len(problems)} with hidden tests, "
          f"{ways['whole']} more whole; {rate:.1f} a second")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
