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
import os
from collections import Counter
from itertools import groupby, islice

from data import encode_dialogue, encode_prompt, encode_response
from interop import records
from interop.door import load
from interop.encode import report
from interop.formats import read_records
from interop.gpt2 import read_model
from interop.tokenizers import get_tokenizer, tokenizer_of
from plumbing import cli
from plumbing.inputs import files_in

MEASURED = 20_000                   # records of a file whose lengths are looked at
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
    if kind == "texts":
        return len(enc.encode_ordinary(record))
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


def twice(records):
    """How many records say again what one before has said."""
    said = Counter(str(r if isinstance(r, str) else r.messages) for r in records)
    return sum(said.values()) - len(said)


def kept(path, columns, strict):
    """What a file holds -> its kind, the records, and the counts of what was read and skipped."""
    found = (r for _, r in read_records(path, Counter(), columns) if isinstance(r, dict))
    kind, counts = kind_of(next(found, {})), Counter()
    if kind == "texts":
        found = read_records(path, counts, columns)
        return kind, records.texts(found, counts, strict), counts
    return kind, load(kind, (path,), counts, flag="FILE", columns=columns, strict=strict), counts


def describe(path, columns, strict, enc, context, n=3):
    """Print what a file is taken for, what is kept and what is skipped, how long its records are,
    and the first of them. context: of a model, 0 for none."""
    kind, found, counts = kept(path, columns, strict)
    print(f"{path}: {len(found):,} {kind}; {report(counts)}")
    lengths = [length_of(r, kind, enc) for r in islice(found, MEASURED)]
    print(f"lengths in tokens of the tokenizer {enc.name}:", *histogram(lengths), sep="\n")
    if twice(found):
        print(f"{twice(found):,} say again what one before them says")
    if context and kind != "texts":
        print(f"{sum(size > context for size in lengths):,} are longer than the context of "
              f"{context:,}: shortened, or dropped")
    print("---")
    for r in found[:n]:
        if kind == "texts":
            print(green(r[:500]))
        else:
            print(shown(r.messages, enc))
        if kind == "rankings":
            show_responses(r)
        print("---")


def describe_folder(path, columns, strict):
    """Print a line for each file in a folder: what it holds, or why it cannot be read. Raises
    ValueError if there is none."""
    for file in files_in(path):
        try:
            kind, found, counts = kept(file, columns, strict)
            print(f"{file}: {len(found):,} {kind}; {report(counts)}")
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
