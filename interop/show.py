"""What is in a file of data, before anything is trained on it.

    python data.py FILE ...        # what each is taken for, what is kept and skipped, and why; how
                                   # long the records are; three of them, the tokens that are
                                   # trained on in green
    python data.py FILE --columns prompt=question,response=answer
    python data.py FILE --model sft.pt      # in its tokens, and how many its context cuts
    python data.py FOLDER                   # a line for each file
    zcat FILE.gz | python data.py -         # what another command writes
"""
import argparse
import hashlib
import os
from collections import Counter
from itertools import groupby
from typing import NamedTuple

from data import encode_dialogue, encode_prompt, encode_response
from interop import records
from interop.door import load
from interop.encode import report
from interop.formats import read_records
from interop.gpt2 import read_model
from interop.rows import Part
from interop.tokenizers import get_tokenizer, tokenizer_of
from plumbing import cli
from plumbing.inputs import files_in

MEASURED = 20_000_000               # characters of a file whose tokens are counted
BAR = 40                            # signs of the longest bar of the histogram


def green(text):
    """Text in green, with what a terminal would obey written out."""
    return f"{cli.GREEN}{cli.visible(text)}{cli.PLAIN}"


def shown(messages, enc):
    """A dialogue as a model reads it, what is trained on in green."""
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


def length_of(record, kind, enc):
    """How many tokens a record has; of a ranking its prompt with the longest response."""
    if kind == "demonstrations":
        return len(encode_dialogue(enc, record.messages)[0])
    longest = 0
    if kind == "rankings":
        longest = max(len(encode_response(enc, x)) for x in record.responses)
    return len(encode_prompt(enc, record.messages)) + longest


def histogram(lengths):
    """Lengths -> lines, of doubling bins: " 16-31  ######## 12%"."""
    bins = Counter(n.bit_length() for n in lengths)
    lines = []
    for bits in range(min(bins), max(bins) + 1):
        low, high = 2 ** (bits - 1) if bits else 0, 2 ** bits - 1
        bar = "#" * round(BAR * bins[bits] / max(bins.values()))
        lines.append(f"{low:>9,}-{high:<9,} {bar} {bins[bits] / len(lengths):.0%}")
    return lines


class Seen(NamedTuple):
    """What is told of a record."""
    tokens: int | None  # None behind the first MEASURED characters of a file
    said: bytes         # a hash of what it says
    record: object      # of a text only how it begins


def seen(path, columns, strict, enc):
    """What a file holds -> its kind, a Seen of each record, and the counts of what was read and
    skipped, which are complete when the records are. enc: None where nobody asks for lengths."""
    found = (r for _, r in read_records(path, Counter(), columns) if isinstance(r, dict))
    kind, counts = kind_of(next(found, {})), Counter()
    if kind == "texts":
        parts = records.texts(read_records(path, counts, columns), counts, strict)
        return kind, _texts(parts, enc), counts
    found = load(kind, (path,), counts, flag="FILE", columns=columns, strict=strict)
    return kind, _records(found, kind, enc), counts


def _records(found, kind, enc):
    read = 0
    for r in found:
        said = str(r.messages)
        read += len(said)
        tokens = length_of(r, kind, enc) if enc and read <= MEASURED else None
        yield Seen(tokens, hashlib.blake2b(said.encode()).digest(), r)


def _texts(parts, enc):
    """Documents, of which long ones come in parts: no more than a part is kept of them."""
    read, tokens, said, begin = 0, 0, hashlib.blake2b(), ""
    for part in parts:
        read += len(part)
        if enc and read <= MEASURED:
            tokens += len(enc.encode_ordinary(part))
        said.update(part.encode())
        begin += part[:500 - len(begin)]
        if not isinstance(part, Part):
            yield Seen(tokens if read <= MEASURED else None, said.digest(), begin)
            tokens, said, begin = 0, hashlib.blake2b(), ""


def describe(path, columns, strict, enc, context, n=3):
    """Print what a file is taken for, what is kept and what is skipped, how long its records are,
    and the first of them. context: of a model, 0 for none."""
    kind, found, counts = seen(path, columns, strict, enc)
    lengths, said, first = [], Counter(), []
    for one in found:
        lengths += [one.tokens] if one.tokens is not None else []
        said[one.said] += 1
        first += [one.record] if len(first) < n else []
    print(f"{path}: {said.total():,} {kind}; {report(counts)}")
    if lengths:
        few = f" of the first {len(lengths):,}" if len(lengths) < said.total() else ""
        print(f"lengths{few} in tokens of the tokenizer {enc.name}:", *histogram(lengths), sep="\n")
    if said.total() > len(said):
        print(f"{said.total() - len(said):,} say again what one before them says")
    if context and kind != "texts":
        print(f"{sum(size > context for size in lengths):,} are longer than the context of "
              f"{context:,}: shortened, or dropped")
    print("---")
    for r in first:
        print(green(r) if kind == "texts" else shown(r.messages, enc))
        if kind == "rankings":
            show_responses(r)
        print("---")


def describe_folder(path, columns, strict):
    """Print a line for each file in a folder: what it holds, or why it cannot be read. Raises
    ValueError if there is none."""
    for file in files_in(path):
        try:
            kind, found, counts = seen(file, columns, strict, None)
            n = sum(1 for _ in found)
            print(f"{file}: {n:,} {kind}; {report(counts)}")
        except ValueError as e:
            print(f"{file}: {e}")


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
    parser.add_argument("--strict", action="store_true",
                        help="stop at a bad record; else it is skipped, counted and shown")
    parser.add_argument("--model", default="", metavar="CHECKPOINT",
                        help="whose tokens are counted, and how many its context holds")
    args = parser.parse_args()
    with cli.told():
        enc, context = get_tokenizer("sandbox"), 0
        if args.model:
            checkpoint = read_model(args.model)
            enc, context = tokenizer_of(checkpoint), checkpoint["config"]["block_size"]
        for path in args.files:
            if os.path.isdir(path):
                describe_folder(path, args.columns, args.strict)
            else:
                [file] = files_in(path)
                describe(file, args.columns, args.strict, enc, context)
