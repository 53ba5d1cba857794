"""A toy language: programs that chain blocks of one to three lines on a string, a small part of
Python that plumbing/interpreter.py runs.

    python -m codex.language --out toy/     # corpus.jsonl, functions.jsonl, prompts.jsonl and
                                            # toy.tiktoken: to pretrain, for SFT, for RL

[Codex] tests how models compose with 13 such blocks (Appendix C). Here each has several right
programs, and files are as people write them: docstrings are right, stale or missing, a file with
one bug has more, and some files are generated. Some pairs of blocks never stand in one program of
the corpus; problems have such pairs.

[Codex] Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374
"""
import itertools
import random
import re
import zlib
from dataclasses import dataclass

from interop.problems import Problem
from interop.tokenizers import ranks_of
from plumbing import cli, results
from plumbing.interpreter import parsed, right, run

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
    f = parsed(head("") + body(rng, chain))
    for _ in range(n):
        words = [rng.choice(WORDS) + rng.choice(("", "", "", "!", "?", "."))
                 for _ in range(rng.randint(4, 8))]
        text = " ".join(words)
        found.append((text, run(f, text)))
    return found


# ---- what is made of them -----------------------------------------------------------------------

def function(rng, slip=False):
    """A function of the corpus, of whose docstrings 60 % are right, 20 stale, 20 missing."""
    chain, other = (draw_chain(rng, rng.randint(1, 4)) for _ in range(2))
    text = rng.choices((docstring(chain), docstring(other), ""), (0.6, 0.2, 0.2))[0]
    return head(text) + body(rng, chain, slip)


def file(rng):
    """A file: two or three functions, in one of four with slips; one of ten is generated digits."""
    if rng.random() < 0.1:
        return "DATA = [" + ", ".join(str(rng.randrange(10)) for _ in range(60)) + "]\n"
    slips = 0.8 if rng.random() < 0.25 else 0.0
    return "\n\n".join(function(rng, rng.random() < slips) for _ in range(rng.randint(2, 3)))


def corpus(n, seed):
    """n files -> strings."""
    rng = random.Random(f"files {seed}")
    return [file(rng) for _ in range(n)]


def problems(n, seed, lengths=(2, 3, 4), held_out=True):
    """n problems of so many blocks in turn, another one if a draw or 20 find it; `held_out`: with
    pairs of blocks that the corpus does not have -> [Problem, ...]."""
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
    """The program of a prompt and a chat's response, whose first indentation the template takes."""
    return prompt + ("    " if ends_inside(prompt) else "") + response.lstrip(" ")


def verdicts(problem, programs):
    """What programs, the prompt included, make of a problem's examples: "pass" or "wrong" each."""
    wanted = examples(chain_of(problem.prompt))
    return ["pass" if right(program, wanted) else "wrong" for program in programs]


def passes(prompt, response):
    """1.0 if the response to a data.Prompt is a body that passes the tests and nothing more, else
    0.0: a --reward for forks.rloo. Raises ValueError for a prompt of another kind."""
    asked = prompt.messages[-1]["content"] + "\n"
    return float(right(complete(asked, response), examples(chain_of(asked))))


@dataclass(frozen=True)
class Config:
    out: str = "toy"            # the folder to write
    files: int = 10_000         # of the corpus, about 150 tokens each; [1, 10_000_000]
    functions: int = 4000       # right ones, each by itself, for SFT; [1, 10_000_000]
    prompts: int = 4000         # docstrings for RL, of the corpus's pairs; [1, 10_000_000]
    overwrite: bool = False     # replace what lies at --out, whatever made it
    seed: int = 0               # >= 0


PRESETS = {"sandbox": {}}
FILES = ("corpus.jsonl", "functions.jsonl", "prompts.jsonl", "toy.tiktoken")


def question(problem):
    return {"role": "user", "content": problem.prompt.rstrip("\n")}


def main(cfg):
    meta = results.provenance(cfg, "toy", {})
    if results.claim(cfg.out, meta, FILES, cfg.overwrite):
        return
    texts = corpus(cfg.files, cfg.seed)
    shown = problems(cfg.functions, f"functions {cfg.seed}", (1, 2, 3, 4), held_out=False)
    asked = problems(cfg.prompts, f"prompts {cfg.seed}", (1, 2, 3, 4), held_out=False)
    chats = [[question(p), {"role": "assistant", "content": p.solution.rstrip("\n")}]
             for p in shown]
    # the chat's template has words, too
    ranks = ranks_of([*texts, *["User: x\n\nAssistant: x"] * 20])
    results.deliver(cfg.out, meta, {
        "corpus.jsonl": results.jsonl({"text": text} for text in texts),
        "functions.jsonl": results.jsonl({"messages": chat} for chat in chats),
        "prompts.jsonl": results.jsonl({"messages": [question(p)]} for p in asked),
        "toy.tiktoken": lambda f: f.write(ranks)})
    print(f"{cfg.out}: {len(texts):,} files, {len(chats):,} functions, {len(asked):,} prompts, "
          f"{len(ranks.splitlines())} tokens")


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
