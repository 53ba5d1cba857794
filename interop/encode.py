"""Records -> tokens that fit a model's context; what is cut, dropped and kept is counted.

A prompt that is too long is cut from the left, a response never: it is dropped.
"""
from collections import Counter

from data import EncodedRanking, encode_dialogue, encode_prompt, encode_response

TOO_SHORT = "no {what} fits the model's context of {block} tokens: use a model with a longer one"


def encode_demonstrations(records, enc, block, counts: Counter):
    """-> [(ids, trained), ...] of at most `block` tokens. Raises ValueError if none fits."""
    encoded = []
    for r in records:
        ids, trained = encode_dialogue(enc, r.messages)
        response = encode_response(enc, r.messages[-1]["content"])
        if len(ids) > block and len(response) > block // 2:
            counts["demonstrations dropped: the response is too long"] += 1
            continue
        counts["demonstrations cut from the left"] += len(ids) > block
        encoded.append((ids[-block:], trained[-block:]))
    counts["demonstrations"] += len(encoded)
    if not encoded:
        raise ValueError(TOO_SHORT.format(what="demonstration", block=block))
    return encoded


def encode_prompts(records, enc, room, counts: Counter):
    """-> [ids, ...] of at most `room` tokens: the rest of the context is for the response."""
    if room < 1:
        raise ValueError("--max-new leaves no room in the context for a prompt: lower it")
    encoded = [encode_prompt(enc, r.messages) for r in records]
    counts["prompts"] += len(encoded)
    counts["prompts cut from the left"] += sum(len(ids) > room for ids in encoded)
    return [ids[-room:] for ids in encoded]


def encode_rankings(records, enc, block, counts: Counter):
    """-> [EncodedRanking, ...]. Responses over half the context are dropped with their pairs, and
    prompts cut to what is left. Raises ValueError if no ranking fits."""
    encoded = []
    for r in records:
        responses = [encode_response(enc, x) for x in r.responses]
        fits = [len(x) <= block // 2 for x in responses]
        pairs = [(i, j) for i, j in r.pairs if fits[i] and fits[j]]
        counts["responses dropped: too long"] += fits.count(False)
        if not pairs:
            counts["prompts skipped: no two responses fit"] += 1
            continue
        # a response in no pair needs no forward: with pairs (0, 3) only 0 and 3 are kept
        used = sorted({i for pair in pairs for i in pair})
        row = {i: k for k, i in enumerate(used)}
        prompt = encode_prompt(enc, r.messages)
        room = block - max(len(responses[i]) for i in used)
        counts["prompts cut from the left"] += len(prompt) > room
        kept = [responses[i] for i in used]
        pairs = [(row[i], row[j]) for i, j in pairs]
        encoded.append(EncodedRanking(prompt[-room:], kept, pairs, r.use_case))
    counts["rankings"] += len(encoded)
    if not encoded:
        raise ValueError(TOO_SHORT.format(what="ranking", block=block))
    return encoded


def report(counts: Counter):
    """What was read, skipped and shortened, in one line."""
    return "data: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
