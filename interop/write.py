"""Rankings as others read them: pairs with prompt, chosen and rejected, one a line.

    python -m interop.write comparisons.jsonl --as trl --out pairs.jsonl

No public preference set has a known truth; what label.py writes has one.
"""
import argparse
import json
import os
from collections import Counter

from interop.door import load
from interop.encode import report
from plumbing import cli, results


def trl(ranking):
    """The pairs of a data.Ranking in TRL's conversational form."""
    for better, worse in ranking.pairs:
        chosen, rejected = ([{"role": "assistant", "content": ranking.responses[i]}]
                            for i in (better, worse))
        yield {"prompt": ranking.messages, "chosen": chosen, "rejected": rejected}


WRITERS = {"trl": trl}


def write(files, form, out):
    """Write the rankings of `files` to `out`, in the form of one of WRITERS. Raises ValueError."""
    results.check_out(out)
    if os.path.exists(out):
        raise ValueError(f"--out {out} is there already: choose another name")
    counts = Counter()
    rankings = load("rankings", files, counts, flag="FILE")
    pairs = [pair for ranking in rankings for pair in WRITERS[form](ranking)]
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
    results.replace_file(out, lambda f: f.write(text))
    print(f"{report(counts)}\n{out}: {len(pairs):,} pairs")


def main():
    """`python -m interop.write FILE ... --out FILE`."""
    parser = cli.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--as", dest="form", choices=WRITERS, default="trl")
    parser.add_argument("--out", required=True, metavar="FILE")
    args = parser.parse_args()
    with cli.told():
        write(tuple(args.files), args.form, args.out)


if __name__ == "__main__":
    main()
