"""Records -> tokens that fit a context; what is forgotten, cut, dropped and kept is counted.

Of a dialogue that is too long whole turns are forgotten, the oldest first. Only a last message that
is too long by itself is cut, from the left. A response never is: it is dropped.
"""
from bisect import bisect_left
from collections import Counter

from data import EncodedRanking, encode_dialogue, encode_prompt, encode_response

TOO_SHORT = "no {what} fits the model's context of {block} tokens: use a model with a longer one"
FORGOT, CUT = "shortened by whole turns", "cut from the left"


def last_turns(messages, encode, room):
    """Encode as many of the last turns of a dialogue as fit `room` tokens together.

    A turn begins with a message that is not the assistant's, and holds what was answered to it. A
    system message at the start stays while there is room for it and the last turn.
    -> (tokens, how): encode(the messages that are kept), and "", FORGOT or, where the last turn
    alone has more than `room` tokens and the caller must cut it, CUT
    """
    tokens = encode(messages)
    if len(tokens) <= room:
        return tokens, ""
    system = [m for m in messages[:1] if m["role"] == "system"]
    turns = [i for i, m in enumerate(messages) if m["role"] != "assistant"][len(system):]
    turns = turns or [max(0, len(messages) - 1)]

    def fits(start):
        return len(encode(system + messages[start:])) <= room
    # the later the start, the fewer tokens: found by halving, in a few encodings
    first = bisect_left(turns, True, key=fits)
    if first < len(turns):
        return encode(system + messages[turns[first]:]), FORGOT
    tokens = encode(messages[turns[-1]:])
    return tokens, FORGOT if len(tokens) <= room else CUT


def encode_demonstrations(records, enc, block, counts: Counter):
    """-> [(ids, trained), ...] of at most `block` tokens. A response over half of it is dropped
    where its question would be cut. Raises ValueError if none fits."""
    def encode(messages):
        return list(zip(*encode_dialogue(enc, messages)))       # [(id, trained), ...]
    encoded = []
    for r in records:
        tokens, how = last_turns(r.messages, encode, block)
        response = encode_response(enc, r.messages[-1]["content"])
        if how == CUT and len(response) > block // 2:
            counts["demonstrations dropped: the response is too long"] += 1
            continue
        if how:
            counts[f"demonstrations {how}"] += 1
        ids, trained = zip(*tokens[-block:])
        encoded.append((list(ids), list(trained)))
    counts["demonstrations"] += len(encoded)
    if not encoded:
        raise ValueError(TOO_SHORT.format(what="demonstration", block=block))
    return encoded


def fit_prompt(messages, enc, room, counts: Counter):
    """A prompt of at most `room` tokens, which ends with "Assistant:" -> ids"""
    ids, how = last_turns(messages, lambda kept: encode_prompt(enc, kept), room)
    if how:
        counts[f"prompts {how}"] += 1
    return ids[-room:]


def encode_prompts(records, enc, room, counts: Counter):
    """-> [ids, ...] of at most `room` tokens: the rest of the context is for the response."""
    if room < 1:
        raise ValueError("--max-new leaves no room in the context for a prompt: lower it")
    counts["prompts"] += len(records)
    return [fit_prompt(r.messages, enc, room, counts) for r in records]


def encode_rankings(records, enc, block, counts: Counter):
    """-> [EncodedRanking, ...]. Responses over half the context are dropped with their pairs, and
    prompts fitted to what is left. Raises ValueError if no ranking fits."""
    encoded = []
    for r in records:
        responses = [encode_response(enc, x) for x in r.responses]
        fits = [len(x) <= block // 2 for x in responses]
        pairs = [(i, j) for i, j in r.pairs if fits[i] and fits[j]]
        counts["responses dropped: too long"] += fits.count(False)
        if not pairs:
            counts["prompts skipped: no two responses fit"] += 1
            continue
        # what is in no pair needs no forward, and what was said twice needs one
        kept = []
        for i in sorted({i for pair in pairs for i in pair}):
            if responses[i] not in kept:
                kept.append(responses[i])
        prompt = fit_prompt(r.messages, enc, block - max(map(len, kept)), counts)
        pairs = [(kept.index(responses[i]), kept.index(responses[j])) for i, j in pairs]
        encoded.append(EncodedRanking(prompt, kept, pairs, r.use_case))
    counts["rankings"] += len(encoded)
    if not encoded:
        raise ValueError(TOO_SHORT.format(what="ranking", block=block))
    return encoded


def report(counts: Counter):
    """What was read, skipped and shortened, in one line."""
    return "data: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
