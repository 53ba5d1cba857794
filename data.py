"""1/8  Text becomes batches: the chat template, the action frame, padding and masks.

    python data.py FILE ...        # what is in a file of demonstrations, rankings, prompts or text

Right padding, always: under causal attention trailing pads are invisible. Masks of what is trained
are made here, once, from roles and lengths; they are never inferred from token ids.

The action frame. Every per-token tensor is (B, T-1): column t is the action that chose ids[:, t+1]
given ids[:, :t+1].

    ids    P P P R R E . .     prompt_len 3, total_len 6, T 8;  E = EOS is chosen too
    t      0 1 2 3 4 5 6       column t chooses ids[t+1]
    mask   0 0 1 1 1 0 0       the response's first action .. the choice of EOS
    score          ^           the reward model's score is added at t = total_len - 2

Legend: B sequences, T tokens, P tokens of a prompt, R of a response, K responses of a prompt,
N responses of a batch, M pairs. An `enc` is a tiktoken.Encoding.
"""
import functools
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


# ---- records -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prompt:
    messages: list      # [{"role", "content"}, ...], the last one not the assistant's; with
                        # "train": False a message of the assistant's is read, not trained on
    use_case: str = ""
    meta: dict = field(default_factory=dict)    # a judge's answer key; training never looks


@dataclass(frozen=True)
class Demonstration:
    messages: list      # the last one is the assistant's
    use_case: str = ""


@dataclass(frozen=True)
class Ranking:
    messages: list      # the prompt
    responses: list     # K strings
    pairs: list         # [(better, worse), ...] indices into responses, no ties
    labeler: str = ""
    use_case: str = ""


# ---- the chat template -------------------------------------------------------------------------
ROLES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def encode_dialogue(enc, messages):
    """Messages -> (ids, trained): trained is True where an assistant chose the token.

    "User: Hi\\n\\nAssistant: Hello<EOS>" has " Hello<EOS>" trained. Special tokens in what people
    write stay text (encode_ordinary).
    """
    ids, trained = [], []
    for i, m in enumerate(messages):
        head = enc.encode_ordinary(("\n\n" if i else "") + ROLES[m["role"]])
        is_response = m["role"] == "assistant"
        body = encode_response(enc, m["content"])
        if not is_response:
            body.pop()                  # EOS ends what the assistant says, nothing else
        ids += head + body
        trained += [False] * len(head) + [is_response and m.get("train", True)] * len(body)
    return ids, trained


def encode_prompt(enc, messages):
    """Messages -> ids up to and including "Assistant:"; the response begins with its space."""
    ids, _ = encode_dialogue(enc, messages)
    cue = ("\n\n" if messages else "") + ROLES["assistant"]
    return ids + enc.encode_ordinary(cue)


def encode_response(enc, response):
    """The tokens of one reply, EOS included: EOS is an action like any other."""
    return enc.encode_ordinary(" " + response.strip()) + [enc.eot_token]


def decode_response(enc, ids):
    """The text of a response's tokens, without EOS."""
    return enc.decode([t for t in ids if t != enc.eot_token]).strip()


# ---- which tokens, which rows ------------------------------------------------------------------
def cut_blocks(tokens, block):
    """Text, documents one after another with EOS behind each, -> its whole blocks (N, block)."""
    N = len(tokens) // block
    return tokens[:N * block].view(N, block)


def rows_at(step, n, size, seed):
    """The `size` rows of batch `step` of an endless sequence of shuffled epochs over n rows."""
    picks = range(step * size, (step + 1) * size)
    return [_epoch(n, seed, i // n)[i % n] for i in picks]


@functools.lru_cache(maxsize=8)
def _epoch(n, seed, epoch):
    return random.Random(f"{seed} epoch {epoch}").sample(range(n), n)


def chunks(rows, size):
    """Micro-batches: runs of at most `size` rows, all of them if size is 0."""
    size = size or len(rows) or 1
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def by_length(length, size, share=lambda rows: rows):
    """Micro-batches of rows of like length, which need few pads: [(rows, longest), ...].

    length (B,); at most `size` rows each, 0 for all. share(rows) keeps this process's part.
    """
    rows = share(length.argsort(stable=True))
    return [(part, int(length[part].max())) for part in rows.split(size or len(length))]


# ---- tensors -----------------------------------------------------------------------------------
class Tokens(NamedTuple):
    ids: Tensor         # (B, T)    right-padded
    mask: Tensor        # (B, T-1)  True where the action is trained; on the CPU


class Padded(NamedTuple):
    ids: Tensor         # (B, T)    right-padded
    length: Tensor      # (B,)


class EncodedRanking(NamedTuple):
    prompt: list        # ids
    responses: list     # K lists of ids, EOS included
    pairs: list         # [(better, worse), ...]
    use_case: str


class Comparisons(NamedTuple):
    prompts: Padded     # B of them
    ids: Tensor         # (N, R)    responses, right-padded, N = the sum of the K of each prompt
    length: Tensor      # (N,)
    owner: Tensor       # (N,)      the prompt of each response
    better: Tensor      # (M,)      rows of ids
    worse: Tensor       # (M,)
    weight: Tensor      # (M,)      1 / pairs of that prompt: summed over M it is B


def to_device(device, *tensors):
    """To a GPU they are copied from pinned memory, so that neither side waits for the other."""
    if str(device).startswith("cuda"):
        return [x.pin_memory().to(device, non_blocking=True) for x in tensors]
    return [x.to(device) for x in tensors]


def pad_rows(rows, value=0):
    """Lists of numbers -> (B, longest), right-padded. No result depends on the pad's value."""
    longest = max(len(r) for r in rows)
    padded = torch.full((len(rows), longest), value, dtype=torch.long)
    for b, r in enumerate(rows):
        padded[b, :len(r)] = torch.tensor(r)
    return padded


def pad(rows, device="cpu") -> Padded:
    """Lists of ids -> Padded."""
    length = torch.tensor([len(r) for r in rows])
    return Padded(*to_device(device, pad_rows(rows), length))


def tokens_batch(encoded, device="cpu") -> Tokens:
    """[(ids, trained), ...] -> Tokens."""
    ids = pad_rows([ids for ids, _ in encoded])
    mask = pad_rows([trained[1:] for _, trained in encoded]).bool()
    return Tokens(*to_device(device, ids), mask)


def text_batch(blocks, device="cpu") -> Tokens:
    """Blocks of text (B, T) -> Tokens: every action is trained."""
    mask = torch.ones_like(blocks[:, 1:], dtype=torch.bool)
    return Tokens(*to_device(device, blocks.long()), mask)


def comparisons_batch(encoded, device="cpu") -> Comparisons:
    """[EncodedRanking, ...] -> Comparisons."""
    responses, owner, better, worse, weight = [], [], [], [], []
    for b, r in enumerate(encoded):
        first = len(responses)
        responses += r.responses
        owner += [b] * len(r.responses)
        better += [first + i for i, _ in r.pairs]
        worse += [first + j for _, j in r.pairs]
        weight += [1 / len(r.pairs)] * len(r.pairs)
    prompts = pad([r.prompt for r in encoded], device)
    rows = map(torch.tensor, (owner, better, worse, weight))
    return Comparisons(prompts, *pad(responses, device), *to_device(device, *rows))


def action_mask(prompt_len, total_len, T):
    """(B,), (B,) -> (B, T-1): True at the response's actions, EOS's included. See the top."""
    t = torch.arange(T - 1, device=prompt_len.device)
    return (t >= prompt_len[:, None] - 1) & (t < total_len[:, None] - 1)


def masked_mean(x, mask):
    """Mean of x where mask is True; 0 where it is True nowhere."""
    return (x * mask).sum() / mask.sum().clamp(min=1)


if __name__ == "__main__":
    from interop import show  # not needed to understand what stands above
    show.main()
