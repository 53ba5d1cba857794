"""Rankings, and tasks that nobody has ranked, as others read them: a JSON object a line, for
Label Studio a list of them.

    python -m interop.write comparisons.jsonl --as trl --out pairs.jsonl
    python -m interop.write tasks.jsonl --as argilla --out records.jsonl
    python -m interop.write tasks.jsonl --as label-studio --out import.json

No public preference set has a known truth; what label.py writes has one.
"""
import argparse
import json
import os
from collections import Counter

from data import ROLES
from interop.door import load
from interop.encode import report
from plumbing import cli, results


def trl(ranking):
    """The pairs of a data.Ranking in TRL's conversational form."""
    for better, worse in ranking.pairs:
        chosen, rejected = ([{"role": "assistant", "content": ranking.responses[i]}]
                            for i in (better, worse))
        yield {"prompt": ranking.messages, "chosen": chosen, "rejected": rejected}


def argilla(task):
    """A task as Dataset.records.log of Argilla takes it, for ChatField("prompt") and a TextField
    `response_1`, `response_2`, ... for each of the most that a task has, the later ones with
    required=False."""
    responses = {f"response_{k}": text for k, text in enumerate(task["responses"], 1)}
    yield {"prompt": task["prompt"], **responses}


def label_studio(task):
    """A task as Label Studio imports it, for this labeling interface:

    <View><Text name="prompt" value="$prompt"/> <List name="items" value="$items"/>
          <Ranker name="rank" toName="items"/></View>
    """
    prompt = "\n\n".join(f"{ROLES[m['role']]} {m['content']}" for m in task["prompt"])
    items = [{"id": str(k), "title": f"Output {k}", "body": text}
             for k, text in enumerate(task["responses"], 1)]
    yield {"data": {"prompt": prompt, "items": items}}


WRITERS = {"trl": ("rankings", trl), "argilla": ("tasks", argilla),
           "label-studio": ("tasks", label_studio)}


def write(files, form, out):
    """Write the records of `files` to `out`, in the form of one of WRITERS. Raises ValueError."""
    results.check_out(out)
    if os.path.exists(out):
        raise ValueError(f"--out {out} is there already: choose another name")
    counts, (kind, written) = Counter(), WRITERS[form]
    found = [x for record in load(kind, files, counts, flag="FILE") for x in written(record)]
    if form == "label-studio":
        results.replace_file(out, lambda f: json.dump(found, f, ensure_ascii=False, indent=1))
    else:
        results.write_jsonl(out, found)
    print(f"{report(counts)}\n{out}: {len(found):,} {'pairs' if kind == 'rankings' else kind}")


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
