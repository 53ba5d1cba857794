"""A toy language: programs that chain blocks of one to three lines on a string, a small part of
Python that we interpret ourselves.

    python -m codex.language --out toy/     # corpus.jsonl, functions.jsonl, prompts.jsonl and
                                            # toy.tiktoken: to pretrain, for SFT, for RL

[Codex] tests how models compose with 13 such blocks (Appendix C). Here each has several right
programs, and files are as people write them: docstrings are right, stale or missing, a file with
one bug has more, and some files are generated. Some pairs of blocks never stand in one program of
the corpus; problems have such pairs.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import ast
import itertools
import operator
import random
import re
import warnings
import zlib
from collections import Counter
from dataclasses import dataclass

from codex.runner import Problem
from interop.tokenizers import GPT2_PATTERN, as_text
from plumbing import cli, results

# ---- programs are run ---------------------------------------------------------------------------

LONGEST, STEPS = 1000, 20_000   # characters or items of a value; nodes that are evaluated
METHODS = ("lower", "upper", "replace", "split", "join", "strip")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.FloorDiv: operator.floordiv,
             ast.Mod: operator.mod, ast.Eq: operator.eq, ast.NotEq: operator.ne,
             ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
SIGNS = {ast.USub: operator.neg, ast.Not: operator.not_}


def checked(value):
    """The value. Raises ValueError if it is long."""
    if hasattr(value, "__len__") and len(value) > LONGEST:
        raise ValueError(f"a value is longer than {LONGEST}")
    return value


FUNCTIONS = {
    "len": len,
    "range": lambda *ends: checked(range(*ends)),
    "reversed": lambda x: iter([*reversed(x)]),
    "enumerate": lambda x: iter([*enumerate(x)]),
}


class Interpreter:
    """Evaluates expressions; each ends, whatever they are."""

    def __init__(self):
        self.left = STEPS

    def value(self, node, names):
        """The value of a node of the syntax tree; names {variable: value}. Raises what Python
        would, and ValueError for what is not in the language or takes too much."""
        self.left -= 1
        find = getattr(self, type(node).__name__, None)
        if find is None or self.left < 0:
            raise ValueError(f"{type(node).__name__} is not in the language, or takes too long")
        return checked(find(node, names))

    def Constant(self, node, names):
        return node.value

    def Name(self, node, names):
        return names[node.id]

    def UnaryOp(self, node, names):
        return SIGNS[type(node.op)](self.value(node.operand, names))

    def BinOp(self, node, names):
        a, b = self.value(node.left, names), self.value(node.right, names)
        if type(a) is not type(b) or (type(a) is not int and not isinstance(node.op, ast.Add)):
            raise TypeError("numbers are added to numbers, texts to texts")
        return OPERATORS[type(node.op)](a, b)

    def Compare(self, node, names):
        [op], [right] = node.ops, node.comparators
        a, b = self.value(node.left, names), self.value(right, names)
        # lists may lie so deep in one another that to compare them takes hours
        if not {type(a), type(b)} <= {str, int}:
            raise TypeError("texts and numbers are compared")
        return OPERATORS[type(op)](a, b)

    def IfExp(self, node, names):
        return self.value(node.body if self.value(node.test, names) else node.orelse, names)

    def Subscript(self, node, names):
        return self.value(node.value, names)[self.value(node.slice, names)]

    def Slice(self, node, names):
        ends = (node.lower, node.upper, node.step)
        return slice(*(None if end is None else self.value(end, names) for end in ends))

    def Call(self, node, names):
        args = [self.value(arg, names) for arg in node.args]
        if node.keywords:
            raise ValueError("arguments have no names in the language")
        if isinstance(node.func, ast.Name) and node.func.id not in names:
            return FUNCTIONS[node.func.id](*args)
        text = self.value(node.func.value, names)
        if type(text) is not str or node.func.attr not in METHODS:
            raise AttributeError(f"{node.func.attr} is not in the language")
        return getattr(text, node.func.attr)(*args)

    def ListComp(self, node, names):
        [loop], found = node.generators, []
        if loop.is_async:
            raise ValueError("async is not in the language")
        for item in self.value(loop.iter, names):
            inner = names | bound(loop.target, item)
            if all(self.value(test, inner) for test in loop.ifs):
                found.append(self.value(node.elt, inner))
        return found

    def GeneratorExp(self, node, names):
        return iter(self.ListComp(node, names))


def bound(target, value):
    """The names that an assignment binds. Raises ValueError."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if not isinstance(target, ast.Tuple) or len(target.elts) != len(value):
        raise ValueError("only names are assigned to")
    return {name.id: x for name, x in zip(target.elts, value)}


def call(program, text):
    """What f of a program returns for a text. Raises what Python would, and ValueError."""
    if len(program) > LONGEST:
        raise ValueError("a program is shorter")
    with warnings.catch_warnings(action="ignore"):
        [f] = ast.parse(program).body
    if not isinstance(f, ast.FunctionDef) or f.name != "f" or f.decorator_list:
        raise ValueError("a program is a function f")
    names, interpreter = {ast.unparse(f.args): text}, Interpreter()
    for statement in f.body:
        if isinstance(statement, ast.Return):
            return interpreter.value(statement.value, names)
        if isinstance(statement, ast.Assign):
            [target] = statement.targets
            names |= bound(target, interpreter.value(statement.value, names))
            continue
        # of other statements than an expression by itself none is in the language
        alone = statement.value if isinstance(statement, ast.Expr) else statement
        interpreter.value(alone, names)
    return None


def right(program, examples):
    """Whether a program maps each text to the other, examples [(text, text), ...]."""
    try:
        return all(call(program, text) == wanted for text, wanted in examples)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, SyntaxError,
            TypeError, ValueError):
        return False


# ---- programs are written -----------------------------------------------------------------------

BLOCKS = {      # [Codex] C: what a docstring calls them, and how they can be written
    "remove every e": ['s = s.replace("e", "")', 's = "".join(c for c in s if c != "e")'],
    "replace the spaces by exclamation marks":
        ['s = s.replace(" ", "!")', 's = "!".join(s.split(" "))'],
    "convert to lower case": ["s = s.lower()", 's = "".join(c.lower() for c in s)'],
    "drop the first and last two characters": ["s = s[2:-2]", "s = s[2:]\ns = s[:-2]"],
    "remove the vowels": ['s = "".join(c for c in s if c not in "aeiou")',
                          's = "".join("" if c in "aeiou" else c for c in s)'],
    "keep every third character":
        ["s = s[::3]", 's = "".join(s[i] for i in range(0, len(s), 3))'],
    "drop the second half": ["s = s[:len(s) // 2]", "n = len(s) // 2\ns = s[:n]"],
    "triple the spaces": ['s = s.replace(" ", "   ")', 's = "   ".join(s.split(" "))'],
    "reverse the words": ['s = " ".join(s.split()[::-1])', 's = " ".join(reversed(s.split()))',
                          'w = s.split()\nw = w[::-1]\ns = " ".join(w)'],
    "drop the first half of the words":
        ['w = s.split()\ns = " ".join(w[len(w) // 2:])',
         'w = s.split()\nn = len(w) // 2\ns = " ".join(w[n:])'],
    "put apples after each word":
        ['s = " ".join(w + " apples" for w in s.split())',
         'w = s.split()\nw = [x + " apples" for x in w]\ns = " ".join(w)'],
    "upper-case every other character":
        ['s = "".join(c if i % 2 else c.upper() for i, c in enumerate(s))',
         's = "".join(c.upper() if i % 2 == 0 else c for i, c in enumerate(s))'],
    "remove the punctuation marks": ['s = "".join(c for c in s if c not in "!?.")',
                                     's = s.replace("!", "").replace("?", "").replace(".", "")'],
}
SLIPS = (("3", "2"), ("2", "1"), ("0", "1"), ('"e"', '"a"'), ("aeiou", "aeio"), ('"!?."', '"!?"'),
         ('replace("?", "")', 'replace("?", "!")'), ("lower", "upper"), ("upper", "lower"),
         ('" "', '""'), ('"   "', '"  "'), ('"!"', '"?"'), ("::-1", "1:"), ("apples", "apple"))
THEN = ", then "


def docstring(chain):
    """What a chain, a tuple of keys of BLOCKS, does: "Reverse the words, then remove every e."."""
    return THEN.join(chain).capitalize() + "."


def head(text):
    """The lines of a program before its body; text is a docstring, or ""."""
    return "def f(s):\n" + (f'    """{text}"""\n' if text else "")


def chain_of(text):
    """The chain that a head or a program's docstring tells of. Raises ValueError."""
    found = re.search('"""(.+)\\."""', text)
    chain = tuple(found[1].lower().split(THEN)) if found else ()
    if not chain or not all(block in BLOCKS for block in chain):
        raise ValueError(f"no docstring of the toy language is in {text[:60]!r}")
    return chain


def body(rng, chain, slip=False):
    """A body for a chain, one of its spellings; with a slip in it where one is possible."""
    returns = rng.random() < 0.5
    lines = [line for block in chain for line in rng.choice(BLOCKS[block]).split("\n")]
    slips = [(n, a, b) for n, line in enumerate(lines) for a, b in SLIPS if a in line]
    if slip and slips:
        n, a, b = rng.choice(slips)
        lines[n] = lines[n].replace(a, b, 1)
    if returns:
        lines[-1] = lines[-1].replace("s = ", "return ", 1)
    else:
        lines.append("return s")
    return "".join(f"    {line}\n" for line in lines)


def is_held_out(chain):
    """Whether two of its blocks never stand in one program of the corpus: 18 of 78 pairs."""
    pairs = itertools.combinations(sorted(chain), 2)
    return any(zlib.crc32(THEN.join(pair).encode()) % 6 == 0 for pair in pairs)


def draw_chain(rng, length, held_out=False):
    """A chain of `length` different blocks, held out or not. Of one block none is."""
    while True:
        chain = tuple(rng.sample([*BLOCKS], length))
        if is_held_out(chain) == held_out:
            return chain


WORDS = ("Apple", "tree", "river", "Stone", "the", "house", "Is", "red", "and", "here", "A",
         "green", "bird", "sees", "me", "today", "under", "every", "Lamp", "eagle", "water", "we",
         "eat", "Bread", "or", "cheese", "it")


def examples(chain, n=8):
    """[(text, what the chain makes of it), ...], always the same n for a chain."""
    rng, found = random.Random(f"examples {chain}"), []
    program = head("") + body(rng, chain)
    for _ in range(n):
        words = [rng.choice(WORDS) + rng.choice(("", "", "", "!", "?", "."))
                 for _ in range(rng.randint(4, 8))]
        text = " ".join(words)
        found.append((text, call(program, text)))
    return found


# ---- what is made of them -----------------------------------------------------------------------

def function(rng, slip=False):
    """A function of the corpus, of whose docstrings 60 % are right, 20 stale, 20 missing."""
    chain, other = (draw_chain(rng, rng.randint(1, 4)) for _ in range(2))
    text = rng.choices((docstring(chain), docstring(other), ""), (0.6, 0.2, 0.2))[0]
    return head(text) + body(rng, chain, slip)


def file(rng):
    """A file of the corpus: two or three functions, most of which have a slip in one file out of
    four; one file in ten is generated, digits and more digits."""
    if rng.random() < 0.1:
        return "DATA = [" + ", ".join(str(rng.randrange(10)) for _ in range(60)) + "]\n"
    slips = 0.8 if rng.random() < 0.25 else 0.0
    return "\n\n".join(function(rng, rng.random() < slips) for _ in range(rng.randint(2, 3)))


def corpus(n, seed):
    """n files -> strings."""
    rng = random.Random(f"files {seed}")
    return [file(rng) for _ in range(n)]


def problems(n, seed, lengths=(2, 3, 4), held_out=True):
    """n problems of so many blocks in turn, each once as long as there are others; `held_out`:
    with pairs of blocks that the corpus does not have -> [codex.runner.Problem, ...]."""
    rng, asked, found = random.Random(f"problems {seed} {held_out}"), set(), []
    for i in range(n):
        chain = draw_chain(rng, lengths[i % len(lengths)], held_out)
        for _ in range(20):
            if chain in asked:
                chain = draw_chain(rng, len(chain), held_out)
        asked.add(chain)
        tests = "".join(f"assert f({text!r}) == {wanted!r}\n" for text, wanted in examples(chain))
        found.append(Problem(f"toy/{i}", head(docstring(chain)), "f", tests, body(rng, chain)))
    return found


def ends_inside(prompt):
    """Whether a prompt ends within a function, whose body is to follow."""
    return prompt.rstrip("\n").split("\n")[-1].startswith(" ")


def complete(prompt, response):
    """The program of a prompt and a chat's response, from which the template takes the first line's
    indentation."""
    return prompt + ("    " if ends_inside(prompt) else "") + response.lstrip(" ")


def verdict(problem, program):
    """"pass" or "wrong": what program, the prompt included, makes of the problem's examples."""
    return "pass" if right(program, examples(chain_of(problem.prompt))) else "wrong"


def passes(prompt, response):
    """1.0 if the response to a data.Prompt passes the tests, else 0.0: a --reward for forks.rloo.
    Raises ValueError for a prompt of another kind."""
    asked = prompt.messages[-1]["content"] + "\n"
    return float(right(complete(asked, response), examples(chain_of(asked))))


def make_ranks(texts):
    """The text of a .tiktoken file: 256 bytes, and each piece of the texts that comes 20 times."""
    # tiktoken's own, which knows the letters of all alphabets
    import regex

    count = Counter(piece for text in texts for piece in regex.findall(GPT2_PATTERN, text))
    pieces = sorted(piece for piece, n in count.items() if n >= 20 and len(piece.encode()) > 1)
    tokens = [bytes([b]) for b in range(256)] + [piece.encode() for piece in pieces]
    return as_text({token: rank for rank, token in enumerate(tokens)})


@dataclass(frozen=True)
class Config:
    out: str = "toy"            # the folder to write
    files: int = 10_000         # of the corpus, about 150 tokens each; [1, 10_000_000]
    functions: int = 4000       # right ones, each by itself, for SFT; [1, 10_000_000]
    prompts: int = 4000         # docstrings for RL, of the corpus's pairs; [1, 10_000_000]
    seed: int = 0               # >= 0


PRESETS = {"sandbox": {}}
FILES = ("corpus.jsonl", "functions.jsonl", "prompts.jsonl", "toy.tiktoken")


def question(problem):
    return {"role": "user", "content": problem.prompt.rstrip("\n")}


def main(cfg):
    meta = results.provenance(cfg, "toy", {})
    if results.claim(cfg.out, meta, FILES):
        return
    texts = corpus(cfg.files, cfg.seed)
    shown = problems(cfg.functions, f"functions {cfg.seed}", (1, 2, 3, 4), held_out=False)
    chats = [[question(p), {"role": "assistant", "content": p.solution.rstrip("\n")}]
             for p in shown]
    asked = problems(cfg.prompts, f"prompts {cfg.seed}", (1, 2, 3, 4), held_out=False)
    # the chat's template has words, too
    ranks = make_ranks([*texts, *["User: x\n\nAssistant: x"] * 20])
    writers = (results.jsonl({"text": text} for text in texts),
               results.jsonl({"messages": chat} for chat in chats),
               results.jsonl({"messages": [question(p)]} for p in asked),
               lambda f: f.write(ranks))
    results.deliver(cfg.out, meta, dict(zip(FILES, writers)))
    print(f"{cfg.out}: {len(texts):,} files, {len(chats):,} functions, {len(asked):,} prompts, "
          f"{len(ranks.splitlines())} tokens")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
