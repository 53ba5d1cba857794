"""Print a page of the corpus, one prompt of each use case with its answer, and a dialogue.

    python -m sandbox
    python -m sandbox --ranks FILE.tiktoken     # write the sandbox's tokenizer instead
    python -m sandbox --mixture FILE.jsonl      # write demonstrations in the style of data sets
"""

import sandbox
from plumbing import cli, results
from sandbox.tokens import make_ranks


def show():
    """Print a page of the corpus, one prompt of each use case with its answer, and a dialogue."""
    print("\n".join(sandbox.corpus(10)), end="\n\n")
    shown = set()
    for prompt in sorted(sandbox.prompts(300), key=lambda prompt: len(prompt.messages)):
        if prompt.use_case not in shown:
            shown.add(prompt.use_case)
            asked = " | ".join(m["content"] for m in prompt.messages)
            print(f"{prompt.use_case:14} {asked}  ->  {prompt.meta['answers'][0]}")
    print()
    dialogues = [d.messages for d in sandbox.demonstrations(300) if d.use_case == "follow-up"]
    for message in max(dialogues, key=len):
        print(f"{message['role'].capitalize()}: {message['content']}")


def main():
    parser = cli.Parser(prog="python -m sandbox", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", metavar="FILE", help="write the sandbox's tokenizer instead")
    parser.add_argument("--mixture", metavar="FILE", help="write demonstrations in the style of "
                        "public data sets instead")
    args = parser.parse_args()
    with cli.told():
        if args.ranks:
            results.check_new(args.ranks)
            results.replace_file(args.ranks, lambda f: f.writelines(make_ranks()))
        if args.mixture:
            results.check_new(args.mixture)
            rows = [{"messages": d.messages, "use_case": d.use_case} for d in sandbox.mixture()]
            results.write_jsonl(args.mixture, rows)
        if not args.ranks and not args.mixture:
            show()


if __name__ == "__main__":
    main()
