"""Programming problems as published: HumanEval's and MBPP's files.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
[MBPP] Austin et al. 2021, Program Synthesis with Large Language Models, arXiv 2108.07732
"""
import re
from collections import Counter
from typing import NamedTuple

from interop import rows
from plumbing import inputs


class Problem(NamedTuple):
    name: str
    prompt: str             # how a program begins, Python by itself
    entry_point: str        # the function that is tested
    tests: str              # code that calls it, and raises if it is wrong
    solution: str           # how a right program goes on


def human_eval(row):
    """A row of HumanEval as published -> Problem. Raises KeyError."""
    tests = f"{row['test']}\ncheck({row['entry_point']})"
    return Problem(row["task_id"], row["prompt"], row["entry_point"], tests,
                   row["canonical_solution"])


def mbpp(row):
    """A row of MBPP as published, or as sanitized: asked as a docstring with the first test, after
    which the program begins. Raises LookupError, AttributeError."""
    text, tests = row.get("text") or row["prompt"], row["test_list"]
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports", []))
    defined = re.findall(r"^def (\w+)", row["code"], re.MULTILINE)
    entry_point = next(name for name in defined if re.search(rf"\b{name}\b", tests[0]))
    prompt = f'"""\n{text}\n{tests[0]}\n"""\n'
    return Problem(f"MBPP/{row['task_id']}", prompt, entry_point, "\n".join([setup, *tests]),
                   row["code"])


def read_problems(path):
    """HumanEval or MBPP as published -> [Problem, ...]. Raises ValueError."""
    inputs.check(path, "--problems ")
    problems = []
    for where, row in rows.read_rows(path, {}):
        if isinstance(row, ValueError):
            raise row
        try:
            problem = mbpp(row) if "test_list" in row else human_eval(row)
            if not all(isinstance(text, str) for text in problem):
                raise TypeError
        except (LookupError, AttributeError, TypeError, StopIteration) as e:
            raise ValueError(f"{where} is no problem of HumanEval (task_id, prompt, entry_point, "
                             f"test, canonical_solution) or MBPP (task_id, text, code, "
                             f"test_list)") from e
        problems.append(problem)
    names = Counter(problem.name for problem in problems)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise ValueError(f"{path} has two problems called {twice[0]}: leave one out")
    if not problems:
        raise ValueError(f"{path} holds no problem")
    return problems
