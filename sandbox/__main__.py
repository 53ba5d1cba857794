"""Print a page of the corpus, and one prompt of each use case with its answer.

    python -m sandbox
    python -m sandbox --ranks FILE.tiktoken     # write the sandbox's tokenizer instead
"""
import argparse

import sandbox
from sandbox.tokens import write_ranks


def main():
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", metavar="FILE", help="write the sandbox's tokenizer instead")
    args = parser.parse_args()
    if args.ranks:
        write_ranks(args.ranks)
        return
    print("\n".join(sandbox.corpus(10)), end="\n\n")
    shown = set()
    for prompt in sandbox.prompts(300):
        if prompt.use_case not in shown:
            shown.add(prompt.use_case)
            asked = " | ".join(m["content"] for m in prompt.messages)
            print(f"{prompt.use_case:14} {asked}  ->  {prompt.meta['answers'][0]}")


if __name__ == "__main__":
    main()
