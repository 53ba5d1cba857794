"""codex/language.py: blocks, problems, files; interpreter.py is Python where it knows it."""
import itertools
import json
import random
import re
import time

import pytest

from codex import language
from data import Prompt
from interop import get_tokenizer
from plumbing import interpreter

TEXTS = ["", "e", "Eat the BREAD, here!", "a  b", "? !", "one two three four five."]


def by_python(program, text):
    """What Python makes of a program."""
    names = {}
    exec(program, names)  # noqa: S102 (ours)
    return names["f"](text)


def said(run, program, text):
    try:
        return run(program, text)
    except Exception:  # noqa: BLE001 (whatever it raises)
        return "raised"


def test_every_spelling_is_python_and_does_what_the_block_says():
    """The blocks of [Codex] C, written once more without any of the spellings."""
    def words(x):
        return [w for w in re.split(" +", x.strip(" ")) if w]

    wanted = {
        "remove every e": lambda x: re.sub("e", "", x),
        "replace the spaces by exclamation marks": lambda x: re.sub(" ", "!", x),
        "convert to lower case": str.lower,
        "drop the first and last two characters": lambda x: x[2:len(x) - 2] if len(x) > 3 else "",
        "remove the vowels": lambda x: re.sub("[aeiou]", "", x),
        "keep every third character": lambda x: "".join(re.findall("(?s)(.).{0,2}", x)),
        "drop the second half": lambda x: x[:int(len(x) / 2)],
        "triple the spaces": lambda x: re.sub("( )", r"\1\1\1", x),
        "reverse the words": lambda x: " ".join(reversed(words(x))),
        "drop the first half of the words": lambda x: " ".join(words(x)[int(len(words(x)) / 2):]),
        "put apples after each word": lambda x: " ".join(f"{w} apples" for w in words(x)),
        "upper-case every other character":
            lambda x: re.sub("(?s)(.)(.?)", lambda m: m[1].upper() + m[2], x),
        "remove the punctuation marks": lambda x: re.sub("[!?.]", "", x),
    }
    assert list(wanted) == list(language.BLOCKS)
    for block, spellings in language.BLOCKS.items():
        for spelling in spellings:
            lines = "".join(f"    {line}\n" for line in spelling.split("\n"))
            program = f"def f(s):\n{lines}    return s\n"
            for text in [*TEXTS, *(text for text, _ in language.examples((block,)))]:
                assert interpreter.call(program, text) == wanted[block](text), (program, text)
                assert by_python(program, text) == wanted[block](text), (program, text)


def test_what_it_runs_it_runs_as_python_does():
    """Right programs and wrong ones, which two changes of a piece made of them."""
    rng, differ, ran = random.Random(0), [], 0
    pieces = re.compile(r"\w+|[^\w\s]|\s+")
    bodies = [language.body(rng, language.draw_chain(rng, n % 3 + 1)) for n in range(300)]
    stock = [piece for body in bodies for piece in pieces.findall(body)]
    for body in bodies:
        changed = pieces.findall(body)
        for _ in range(rng.randint(0, 2)):
            changed[rng.randrange(len(changed))] = rng.choice(stock)
        program = "def f(s):\n" + "".join(changed)
        for text in TEXTS:
            ours = said(interpreter.call, program, text)
            if ours == "raised":
                continue
            ran += 1
            theirs = said(by_python, program, text)
            if isinstance(ours, str) and ours != theirs:
                differ.append((program, text, ours, theirs))
    assert not differ
    assert ran > 600


@pytest.mark.parametrize("program", [
    "def f(s):\n    return s.replace('', s).replace('', s).replace('', s).replace('', s)\n",
    "def f(s):\n    return [a for a in [b for b in [c for c in range(999)]] for d in range(999)]\n",
    "def f(s):\n return ''.join(''.join(''.join(c for c in s) for d in range(9)) for e in s)\n",
    "def f(s):\n    return ''.join(range(10 ** 12))\n",
    "def f(s):\n    return ''.join(c for c in range(1000000000000))\n",
    "def f(s):\n    return '%999999999d' % 1\n",
    "def f(s):\n    return " + "(" * 300 + "s" + ")" * 300 + "\n",
    "def f(s):\n    return " + "-" * 900 + "1\n",
    "def f(s):\n    return f(s)\n",
    "def f(s):\n    while True: pass\n",
    "def f(s):\n    import os\n    return os.getcwd()\n",
    "def f(s):\n    return s.__class__.__mro__\n",
    "def f(s):\n    return s.format(s)\n",
    "def f(s, t=print('said')):\n    return s[::0]\n",
    "def f(s):\n    s, s.x = 1, 2\n",
    "def f():\n    return 1\n",
    "x = 1\n", "", "def f(s)", "\0", "def g(s):\n    return s\n",
], ids=range(21))
def test_every_program_ends(program, capsys):
    begun = time.monotonic()
    assert not interpreter.right(program, [("a b" * 40, "x")])
    assert time.monotonic() - begun < 2
    assert not any(capsys.readouterr())


@pytest.mark.parametrize(("expression", "says"), [
    ("s.replace('', s)", "longer than"), ("s + s + s", "longer than"),
    ("[c for c in range(9999)]", "longer than"), ("s.split(sep=' ')", "keyword is not in"),
    ("[len([len([c for c in s]) for d in s]) for e in s]", "takes too long"),
    ("lambda: s", "is not in the language"), ("f'{s}'", "is not in the language"),
    # as in Python these are iterators
    ("len(c for c in s)", "has no len"), ("len(reversed(s))", "has no len"),
    ("enumerate(s)[0]", "used where it is made"), ("len(reversed(c for c in s))", "not reversible"),
    ("[c for c in s] == [c for c in s]", "texts and numbers are compared"),
    ("[c async for c in s]", "comprehension is not in the language"),
    ("[s.strip(s) for c in s]", "takes too long"),
    ("[enumerate(s) for c in s]", "used where it is made"),
    ("[len(range(400)) for c in s]", "takes too long"),
    ("[len(enumerate(s)) for c in s]", "has no len"), ("[len(s.split()) for c in s]", "too long"),
])
def test_what_is_long_or_unknown_raises(expression, says):
    with pytest.raises((ValueError, TypeError), match=says):
        interpreter.call(f"def f(s):\n    return {expression}\n", "ab c" * 100)


@pytest.mark.parametrize("program", [
    "def f(s):\n    s += 'x'\n    return s\n", "def f(s):\n    s: str = s.lower()\n    return s\n",
    "def f(s, t):\n    return s\n", "@nothing\ndef f(s):\n    return s\n",
    "def f(s):\n    len = s\n    return len(s)\n", "def f(s):\n    return s\nf = 1\n",
    # Python would raise, or return something else
    "def f():\n    return 1\n", "def f(a, b):\n    return 1\n", "def f(*, s):\n    return 1\n",
    "def f(s, s):\n    return 1\n", "def f(s=1//0):\n    return 1\n",
    "def f(s) -> 1//0:\n    return 1\n", "def f(s: 1//0):\n    return 1\n",
    "def f(s):\n    n = len(s)\n    len = 1\n    return n\n",
    "def f(s):\n    return s\n    yield s\n", "def f(s):\n    return s\n    break\n",
    "def f(s):\n    return s\n    def len(): 1\n", "def f(s):\n    __debug__ = s\n    return s\n",
    "def f(s):\n    t = 'a'\n    g = (t for c in s)\n    t = 'b'\n    return ''.join(g)\n",
    "def f(s):\n    r = reversed(s)\n    e = [c for c in r]\n    return ''.join(r)\n",
    "def f(s):\n    return [enumerate(s) for c in s]\n",
], ids=range(21))
def test_statements_that_are_not_in_the_language_raise(program):
    with pytest.raises((ValueError, KeyError, AttributeError)):
        interpreter.call(program, "a b")


def test_problems_are_solved_by_their_solutions_and_not_by_those_of_others():
    found = language.problems(30, 3)
    for problem in found:
        program = problem.prompt + problem.solution
        assert language.verdicts(problem, [program]) == ["pass"]
        names = {}
        exec(program + problem.tests, names)  # noqa: S102 (Python's own assert)
    other = {p.prompt: p.solution for p in found}
    wrong = [language.verdicts(a, [a.prompt + solution]) == ["wrong"]
             for a in found for prompt, solution in other.items() if prompt != a.prompt]
    assert sum(wrong) / len(wrong) > 0.99


def test_no_pair_that_is_held_out_stands_in_the_corpus():
    pairs = [set(pair) for pair in itertools.combinations(language.BLOCKS, 2)
             if language.is_held_out(pair)]
    assert len(pairs) == 18
    told = [re.findall(r'"""(.+)\."""', text) for text in language.corpus(500, 1)]
    chains = [set(text.lower().split(", then ")) for texts in told for text in texts]
    assert len(chains) > 700
    assert not any(pair <= chain for pair in pairs for chain in chains)
    asked = [language.chain_of(p.prompt) for p in language.problems(60, 0)]
    assert all(any(pair <= set(chain) for pair in pairs) for chain in asked)
    assert [len(chain) for chain in asked] == 20 * [2, 3, 4] and len(set(asked)) == 60
    shown = [language.chain_of(p.prompt)
             for p in language.problems(200, 0, (1, 2, 3, 4), held_out=False)]
    assert [len(chain) for chain in shown] == 50 * [1, 2, 3, 4]
    assert not any(pair <= set(chain) for pair in pairs for chain in shown)


def test_docstrings_and_slips_of_the_corpus():
    """Of its functions 60 % have a right docstring, 20 % another's, 20 % none; in a file of four
    most are wrong, in the others none."""
    told, right, wrong_beside_wrong, files = [], 0, [], 0
    for text in language.corpus(2000, 0):
        functions = re.split(r"\n\n(?=def f)", text.rstrip("\n"))
        if not text.startswith("def"):
            continue
        files += 1
        told += ['"""' in f for f in functions]
        of_file = []
        for f in functions:
            if '"""' in f:
                of_file.append(interpreter.right(f, language.examples(language.chain_of(f))))
        right += sum(of_file)
        if len(of_file) > 1:
            wrong_beside_wrong.append(of_file[:2])
    assert abs(sum(told) / len(told) - 0.8) < 0.02
    # 3 in 4 of docstrings tell of their function; a slip is made in 4 of 5 functions of 1 file in 4
    assert abs(right / sum(told) - 0.75 * 0.8) < 0.03
    assert abs(files / 2000 - 0.9) < 0.02
    first_wrong = [b for a, b in wrong_beside_wrong if not a]
    first_right = [b for a, b in wrong_beside_wrong if a]
    assert sum(first_right) / len(first_right) > sum(first_wrong) / len(first_wrong) + 0.15


def test_the_reward_of_a_response():
    prompt = Prompt([{"role": "user", "content": 'def f(s):\n    """Remove every e."""'}])
    assert language.passes(prompt, 's = s.replace("e", "")\n    return s') == 1.0
    assert language.passes(prompt, 'return s.replace("e", "")') == 1.0
    assert language.passes(prompt, 'return s.replace("e", "a")') == 0.0
    assert language.passes(prompt, "") == 0.0
    with pytest.raises(ValueError, match="no docstring of the toy language is in 'Hello"):
        language.passes(Prompt([{"role": "user", "content": "Hello"}]), "")


def test_the_command(tmp_path):
    out = tmp_path / "toy"
    cfg = language.Config(files=400, functions=20, prompts=20, out=str(out))
    language.main(cfg)
    enc = get_tokenizer(str(out / "toy.tiktoken"))
    texts = [json.loads(line)["text"] for line in (out / "corpus.jsonl").open()]
    # an indentation is one token
    ids = enc.encode_ordinary("def f(s):\n    return s\n")
    assert [enc.decode([t]) for t in ids] == ["def", " f", "(", "s", "):", "\n   ", " return", " s",
                                              "\n"]
    # and so are the words of the chat's template
    assert len(enc.encode_ordinary("User: s\n\nAssistant: s")) == 8
    assert sum(len(enc.encode_ordinary(text)) for text in texts) < 0.4 * sum(map(len, texts))
    chats = [json.loads(line)["messages"] for line in (out / "functions.jsonl").open()]
    for asked, answered in chats:
        assert language.passes(Prompt([asked]), answered["content"]) == 1.0
    before = (out / "corpus.jsonl").read_bytes()
    language.main(cfg)
    assert (out / "corpus.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="choose another --out"):
        language.main(language.Config(files=10, out=str(out)))
