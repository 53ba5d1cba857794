"""What is in a file of data, before anything is trained on it.

    python data.py FILE ...        # what each is taken for, what is kept and skipped, and why;
                                   # three records, the tokens that are trained on in green
    python data.py FILE --columns prompt=question,response=answer
"""
import argparse
from collections import Counter
from itertools import groupby

from data import encode_dialogue, encode_prompt
from interop.door import load
from interop.encode import report
from interop.formats import read_records
from interop.tokenizers import get_tokenizer
from plumbing import cli


def green(text):
    """Text in green, with what a terminal would obey written out."""
    return f"{cli.GREEN}{cli.visible(text)}{cli.PLAIN}"


def shown(messages):
    """A dialogue as a model reads it, what is trained on in green."""
    enc = get_tokenizer("sandbox")                         # any one will do
    if messages[-1]["role"] == "assistant":
        ids, trained = encode_dialogue(enc, messages)
    else:
        ids = encode_prompt(enc, messages)
        trained = [False] * len(ids)
    pieces = []
    for on, run in groupby(zip(trained, ids), key=lambda pair: pair[0]):
        text = enc.decode([token for _, token in run])
        pieces.append(green(text) if on else cli.visible(text))
    return "".join(pieces)


def kind_of(record):
    """What the first record of a file says that the file holds: a kind of door.load."""
    if "responses" in record:
        return "rankings"
    if "text" in record:
        return "texts"
    if "messages" in record or "response" in record:
        return "demonstrations"
    return "prompts"


def describe(path, columns="", n=3):
    """Print what a file is taken for, what is kept and what is skipped, and its first records."""
    _, first = next(read_records(path, Counter(), columns), ("", {}))
    kind, counts = kind_of(first), Counter()
    found = load(kind, (path,), counts, flag="FILE", columns=columns)
    print(f"{path}: {len(found):,} {kind}; {report(counts)}\n---")
    for r in found[:n]:
        if kind == "texts":
            print(green(r[:500]))
        else:
            print(shown(r.messages))
        if kind == "rankings":
            show_responses(r)
        print("---")


def show_responses(ranking):
    """Each response, with how many others it beats."""
    wins = Counter(i for i, _ in ranking.pairs)
    losses = Counter(j for _, j in ranking.pairs)
    for k, response in enumerate(ranking.responses):
        print(f"beats {wins[k]}, loses to {losses[k]}:{green(f' {response}')}")


def main():
    """`python data.py FILE ...`. A bad file ends in one sentence and exit code 2."""
    parser = cli.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--columns", default="", metavar="KNOWN=YOURS",
                        help="fields, e.g. prompt=question,response=answer")
    args = parser.parse_args()
    with cli.told():
        for path in args.files:
            describe(path, args.columns)
