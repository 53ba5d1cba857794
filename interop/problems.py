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


# what fields are
TEXT, NAME, TEXTS = "a text", "a text or a number", "a list of texts"


def field(row, name, kind, default=None):
    """A field of a row, of a kind; where it is missing or null, the default. Raises ValueError."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if kind == TEXTS:
        fits = isinstance(value, list) and all(isinstance(text, str) for text in value)
    else:
        # True is an int, too
        fits = type(value) is str or (kind == NAME and type(value) is int)
    if not fits:
        raise ValueError(f"{name} is not {kind}")
    return value


def human_eval(row):
    """A row of HumanEval as published -> Problem. Raises ValueError."""
    prompt, entry_point, test, solution = (
        field(row, name, TEXT) for name in ("prompt", "entry_point", "test", "canonical_solution"))
    tests = f"{test}\ncheck({entry_point})"
    return Problem(str(field(row, "task_id", NAME)), prompt, entry_point, tests, solution)


def mbpp(row):
    """A row of MBPP as published, or as sanitized: asked as a docstring with the first test, after
    which the program begins. Raises ValueError."""
    text = field(row, "text" if "text" in row else "prompt", TEXT)
    tests, code = field(row, "test_list", TEXTS), field(row, "code", TEXT)
    setup = [field(row, "test_setup_code", TEXT, ""), *field(row, "test_imports", TEXTS, [])]
    called = [name for name in re.findall(r"^def (\w+)", code, re.MULTILINE)
              if tests and re.search(rf"\b{name}\s*\(", tests[0])]
    if not called:
        raise ValueError("no function of its code is called by its first test")
    prompt = f'"""\n{text}\n{tests[0]}\n"""\n'
    return Problem(f"MBPP/{field(row, 'task_id', NAME)}", prompt, called[0],
                   "\n".join([*filter(None, setup), *tests]), code)


def read_problems(path):
    """HumanEval or MBPP as published -> [Problem, ...]. Raises ValueError."""
    inputs.check(path, "--problems ")
    problems = []
    for where, row in rows.read_rows(path, {}):
        if isinstance(row, ValueError):
            raise row
        try:
            problems.append(mbpp(row) if "test_list" in row else human_eval(row))
        except (ValueError, AttributeError, TypeError) as e:
            raise ValueError(f"{where} is no problem of HumanEval (task_id, prompt, entry_point, "
                             f"test, canonical_solution) or MBPP (task_id, text, code, "
                             f"test_list): {e}") from e
    names = Counter(problem.name for problem in problems)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise ValueError(f"{path} has two problems called {twice[0]}: leave one out")
    if not problems:
        raise ValueError(f"{path} holds no problem")
    return problems
