"""The sandbox's tokenizer: the 256 bytes, and the words of its world."""
import base64
import os
import re
from collections import Counter

from sandbox.dialogues import draw_prompts
from sandbox.text import corpus
from sandbox.world import CONTENT, INSULTS, PEOPLE, PRAISE

# the file of the ranks, one "base64 rank" a line
RANKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox.tiktoken")


def make_ranks():
    """The lines of the tokenizer's file: 256 bytes, then each word of the world with the space
    before it."""
    texts = corpus(20_000, 0)
    for prompt in draw_prompts(20_000, "ranks", held_out=False):
        texts += [m["content"] for m in prompt.messages]
        texts += prompt.meta["answers"]
    # a strange word does not come twenty times
    count = Counter(re.findall(r" [A-Za-z]+", " " + " ".join(texts)))
    pieces = {piece for piece, n in count.items() if n >= 20}
    pieces |= {f" {word}" for word in CONTENT.union(INSULTS, PRAISE)}
    # what begins a document or a message has no space before it
    pieces |= {document.split(":")[0] for document in corpus(2000)}
    pieces |= {"User", "Assistant", "System", "\n\n", *PEOPLE}
    ranks = [bytes([b]) for b in range(256)] + [piece.encode() for piece in sorted(pieces)]
    return [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks)]
