"""The tokenizer, the canonical records, and right-padded batches with their masks.

Records are JSON objects, one a line; a prompt is a string or a list of {"role", "content"} messages:

    demonstration  {"prompt": ..., "response": "..."}                    or {"messages": [...]} ending with the assistant
    ranking        {"prompt": ..., "responses": ["...", ...], "ranks": [1, 2, 2, null]}        1 is best, equal is a tie,
                   or "comparisons": [[0, 2], ...] (0 was judged better than 2)                null was not ranked
                   or "ratings": [7, 3, ...], 7 is best
    prompt         {"prompt": ...}
    text           {"text": "..."}                                       or a file of plain text

formats.py reads them from files; `python formats.py FILE` prints some, the tokens that are trained on in green.

The action frame. Every per-token tensor is (B, T-1): column t is the choice of ids[:, t+1] given ids[:, :t+1].

    ids    P P P R R E . .     prompt_len 3, total_len 6, T 8;  E = EOS is a choice too
    t      0 1 2 3 4 5 6       column t chooses ids[t+1]
    mask   0 0 1 1 1 0 0       first response choice .. the choice of EOS
    score          ^           the reward model's score is added at t = total_len - 2

Legend: B sequences, T tokens, P tokens of a prompt, K responses of a prompt, N responses of a batch, M pairs.
"""
import base64
import functools
import gzip
import hashlib
import json
import os
import random
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor

HERE = os.path.dirname(os.path.abspath(__file__))
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SANDBOX_PATTERN = r" ?\p{L}+|\n+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
EOS = "<|endoftext|>"


# ---- the tokenizer ----------------------------------------------------------------------------------------------

def get_tokenizer(name: str) -> tiktoken.Encoding:
    """"sandbox", a name that tiktoken knows ("gpt2"), a .tiktoken file of ranks that split text as GPT-2 does, or the folder of
    a Hugging Face GPT-2."""
    if os.path.isdir(name):
        return _tokenizer_in(name)
    if name != "sandbox" and not name.endswith(".tiktoken"):
        try:
            enc = tiktoken.get_encoding(name)
            if name in ("gpt2", "r50k_base"):   # tiktoken writes GPT-2's pattern in several ways: one hash for one tokenizer
                enc = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=enc._mergeable_ranks,
                                        special_tokens=enc._special_tokens)
            return enc
        except ValueError as e:
            raise ValueError(f"no tokenizer is called {name}: use sandbox, {', '.join(tiktoken.list_encoding_names())} "
                             f"or a file of ranks that ends in .tiktoken") from e
        except Exception as e:   # tiktoken downloads the ranks with whatever `requests` raises
            raise ValueError(f"the ranks of {name} could not be downloaded ({type(e).__name__}): without a network, pass "
                             f"a file of ranks, --tokenizer FILE.tiktoken") from e
    path = os.path.join(HERE, "sandbox.tiktoken") if name == "sandbox" else name
    try:
        with open(path, "rb") as f:   # not tiktoken's own loader: it caches by path and misses that a file has changed
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, f)}
        if not ranks:
            raise ValueError("it is empty")
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not a readable file of tiktoken ranks (one 'base64 rank' a line)") from e
    return tiktoken.Encoding(name, pat_str=SANDBOX_PATTERN if name == "sandbox" else GPT2_PATTERN, mergeable_ranks=ranks,
                             special_tokens={EOS: len(ranks)})


def _tokenizer_in(folder):
    """The byte-level BPE of a Hugging Face folder: vocab.json and merges.txt, or tokenizer.json."""
    try:
        if os.path.isfile(os.path.join(folder, "merges.txt")):
            vocab = json.loads(read_file(os.path.join(folder, "vocab.json")))
            merges = [x for x in read_file(os.path.join(folder, "merges.txt")).split("\n") if x and not x.startswith("#version")]
        else:
            vocab, merges = map(json.loads(read_file(os.path.join(folder, "tokenizer.json")))["model"].get, ("vocab", "merges"))
        order = [vocab["".join(m.split() if isinstance(m, str) else m)] for m in merges]
        if order != sorted(order):
            raise ValueError("its tokens are not in the order of its merges")
        printable = [b for b in range(256) if chr(b).isprintable() and b != 32]              # GPT-2 writes bytes as characters
        others = [b for b in range(256) if b not in printable]
        byte = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
        ranks = {bytes(byte[c] for c in token): rank for token, rank in vocab.items() if token != EOS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder} has no tokenizer of GPT-2's kind (vocab.json and merges.txt, or tokenizer.json)") from e
    end = vocab.get(EOS, len(ranks))
    return tiktoken.Encoding(folder, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={EOS: end})


def tokenizer_id(enc: tiktoken.Encoding) -> dict:
    """{name, hash}: what a checkpoint remembers of its tokenizer. The hash covers ranks, special tokens and pattern."""
    digest = hashlib.sha256()
    for token, rank in sorted(enc._mergeable_ranks.items()) + sorted(enc._special_tokens.items()):
        digest.update(f"{token!r} {rank}\n".encode())
    digest.update(enc._pat_str.encode())
    return {"name": enc.name, "hash": digest.hexdigest()}


def tokenizer_of(checkpoint, same_as=None) -> tiktoken.Encoding:
    """The tokenizer a checkpoint was trained with. Raises ValueError if it has changed since, or is not that of `same_as`."""
    name = checkpoint["tokenizer"]["name"]
    enc = get_tokenizer("gpt2" if os.sep in name and not os.path.exists(name) else name)   # files that are gone may be GPT-2's
    if enc.n_vocab > checkpoint["config"]["vocab_size"]:
        raise ValueError(f"the tokenizer {enc.name} has {enc.n_vocab:,} tokens, more than the model's "
                         f"{checkpoint['config']['vocab_size']:,}: they do not belong together")
    if checkpoint["tokenizer"]["hash"] not in ("", tokenizer_id(enc)["hash"]):
        raise ValueError(f"the tokenizer {enc.name} has changed since this model was trained: restore its ranks or train again")
    if same_as and tokenizer_id(enc)["hash"] != tokenizer_id(same_as)["hash"]:
        raise ValueError(f"one model has the tokenizer {enc.name}, another {same_as.name}: all must share one")
    return enc


# ---- the chat template, written once; special tokens in user text stay text (encode_ordinary) -------------------

ROLES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def encode_prompt(enc, messages):
    """Messages -> ids up to and including "Assistant:", after which the response begins with its space."""
    return encode_dialogue(enc, messages)[0] + enc.encode_ordinary(("\n\n" if messages else "") + ROLES["assistant"])


def encode_response(enc, response):
    """The tokens of one reply, EOS included: EOS is an action like any other."""
    return enc.encode_ordinary(" " + response.strip()) + [enc.eot_token]


def decode_response(enc, ids):
    """The text of a response's tokens, without EOS."""
    return enc.decode([t for t in ids if t != enc.eot_token]).strip()


def encode_dialogue(enc, messages):
    """Messages -> (ids, trained): trained is True where an assistant chose the token."""
    ids, trained = [], []
    for i, m in enumerate(messages):
        head = enc.encode_ordinary(("\n\n" if i else "") + ROLES[m["role"]])
        if m["role"] == "assistant":
            body = encode_response(enc, m["content"])
        else:
            body = enc.encode_ordinary(" " + m["content"].strip())
        ids += head + body
        trained += [False] * len(head) + [m["role"] == "assistant"] * len(body)
    return ids, trained


# ---- canonical records ------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Prompt:
    messages: list                                   # [{"role", "content"}, ...], the last one not the assistant's
    use_case: str = ""
    meta: dict = field(default_factory=dict)         # the sandbox's judge keeps the answers here; training never looks


@dataclass(frozen=True)
class Demonstration:
    messages: list                                   # the last one is the assistant's
    use_case: str = ""


@dataclass(frozen=True)
class Ranking:
    messages: list                                   # the prompt
    responses: list
    pairs: list                                      # [(better, worse), ...] indices into responses, ties left out
    labeler: str = ""
    use_case: str = ""


def read_file(path):
    """The text of a UTF-8 file, gzipped or not. Raises ValueError naming the file and the byte that is not UTF-8."""
    if not os.path.isfile(path):
        raise ValueError(f"{path} {'is a folder: name its files' if os.path.isdir(path) else 'does not exist'}")
    with open(path, "rb") as f:
        raw = f.read()
    if raw[:4] == b"PAR1":
        raise ValueError(f"{path} is Parquet; with pandas: pandas.read_parquet('{path}').to_json('x.jsonl', orient='records', "
                         f"lines=True)")
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(f"{path} is a damaged gzip file ({e}): fetch it again") from e
    try:
        return raw.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line = raw[:e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: byte {e.start} is not UTF-8; convert it, e.g. iconv -f latin1 -t utf-8") from e


def as_messages(value, where):
    """A prompt (a string or messages) -> messages, validated."""
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    good = isinstance(messages, list) and all(
        isinstance(m, dict) and m.get("role") in list(ROLES) and isinstance(m.get("content"), str) for m in messages)
    if not good or not messages:
        raise ValueError(f'{where}: "prompt" must be a string or a list of {{"role": system|user|assistant, "content": text}}')
    if not any(m["content"].strip() for m in messages):
        raise ValueError(f"{where}: the prompt is empty")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def as_response(value, where):
    if type(value) is not str:
        raise ValueError(f"{where}: a response must be a string, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{where}: the response is empty; remove the record or write what should be answered")
    return value


def _field(record, name, where):
    if name not in record:
        raise ValueError(f'{where}: "{name}" is missing; the record has {", ".join(record) or "no fields"}')
    return record[name]


def to_ranking(where, r) -> Ranking:
    """A JSON record -> Ranking. Ties make no pair, and neither do equal responses: `pairs` may be empty. Raises ValueError."""
    responses = _field(r, "responses", where)
    if not isinstance(responses, list) or len(responses) < 2:
        raise ValueError(f'{where}: "responses" must be a list of at least two')
    if not_text := [x for x in responses if not isinstance(x, str)]:
        as_response(not_text[0], where)
    K = len(responses)
    if "comparisons" in r:
        pairs = r["comparisons"]
        if not isinstance(pairs, list) or not all(
                isinstance(p, list) and len(p) == 2 and all(isinstance(i, int) and 0 <= i < K for i in p) for p in pairs):
            raise ValueError(f'{where}: "comparisons" must be a list of [better, worse] with indices from 0 to {K - 1}')
    else:
        name, sign = ("ratings", -1) if "ratings" in r and "ranks" not in r else ("ranks", 1)
        ranks = _field(r, name, where)
        if not isinstance(ranks, list) or len(ranks) != K or not all(
                x is None or isinstance(x, (int, float)) and (sign > 0 or 1 <= x <= 7) for x in ranks):
            raise ValueError(f'{where}: "{name}" must hold a number{" from 1 to 7" * (sign < 0)} or null for each of the {K}')
        pairs = [(i, j) for i in range(K) for j in range(K)
                 if ranks[i] is not None and ranks[j] is not None and sign * ranks[i] < sign * ranks[j]]
    return Ranking(as_messages(_field(r, "prompt", where), where), responses,
                   [(i, j) for i, j in pairs if responses[i].strip() != responses[j].strip()],
                   str(r.get("labeler", "")), str(r.get("use_case", "")))


def demonstrations(records, counts: Counter) -> list[Demonstration]:
    """(where, JSON record) pairs, as formats.read_records yields them -> what is in them, validated; where, "FILE, line N", is
    for messages. Of a ranking, the response that nothing beats is taken; of ratings, the 7s. So are the next three."""
    found = []
    for where, r in records:
        _refuse_text(where, r, "demonstrations")
        if str(r.get("label", "")).lower() in ("false", "0"):
            counts["records skipped: their reply is labelled bad"] += 1
            continue
        if {"responses", "ratings"} <= r.keys() and not {"comparisons", "ranks"} & r.keys():   # FeedME
            good = [x for x, rating in zip(to_ranking(where, r).responses, r["ratings"]) if rating == 7 and x.strip()]
            counts["samples rated 7 of 7"] += len(good)
            found += [Demonstration([*as_messages(r["prompt"], where), {"role": "assistant", "content": x}]) for x in good]
            continue
        if "responses" in r:
            pairs = to_ranking(where, r).pairs
            best = {i for i, _ in pairs} - {j for _, j in pairs}
            if not best:
                counts["rankings skipped: no response is best"] += 1
                continue
            counts["rankings whose best response is a demonstration"] += 1
            r = {"prompt": r["prompt"], "response": r["responses"][min(best)]}
        if "messages" in r:
            messages = as_messages(r["messages"], where)
            end = max((i + 1 for i, m in enumerate(messages) if m["role"] == "assistant" and m["content"].strip()), default=0)
            counts["messages left out: they have no reply"] += len(messages) - end
            messages = messages[:end]
            if not messages:
                continue
        else:
            messages = as_messages(_field(r, "prompt", where), where)
            messages.append({"role": "assistant", "content": as_response(_field(r, "response", where), where)})
        found.append(Demonstration(messages, str(r.get("use_case", ""))))
    return _some(found, "demonstration", counts)


def prompts(records, counts: Counter) -> list[Prompt]:
    """Of a record with a response, what it answers."""
    found = []
    for where, r in records:
        _refuse_text(where, r, "prompts")
        meta = r.get("meta", {})
        if meta and not (isinstance(meta, dict) and isinstance(meta.get("answers"), list) and meta["answers"]):
            raise ValueError(f'{where}: "meta" is for the answer key of a sandbox prompt, its "answers"; leave it out otherwise')
        messages = as_messages(r["messages"] if "messages" in r else _field(r, "prompt", where), where)
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if messages:
            found.append(Prompt(messages, str(r.get("use_case", "")), meta))
        else:
            counts["records skipped: nothing comes before the reply"] += 1
    return _some(found, "prompt", counts)


def rankings(records, counts: Counter) -> list[Ranking]:
    """Those with at least one pair that is no tie."""
    found = []
    for where, r in records:
        _refuse_text(where, r, "rankings")
        ranking = to_ranking(where, r)
        K = len(ranking.responses)
        counts["comparisons"] += len(ranking.pairs)
        counts["pairs without a preference"] += max(0, K * (K - 1) // 2 - len(ranking.pairs))
        if ranking.pairs:
            found.append(ranking)
        else:
            counts["prompts skipped: all responses tied"] += 1
    return _some(found, "ranking with two responses of different rank", counts)


def texts(records, counts: Counter) -> list[str]:
    """Documents."""
    found = []
    for where, r in records:
        if type(_field(r, "text", where)) is not str:
            raise ValueError(f'{where}: "text" must be a string')
        found.append(r["text"])
    counts["documents"] += len(found)
    return _some(found, "text", counts)


def _refuse_text(where, r, wanted):
    if r.keys() == {"text"}:
        raise ValueError(f"{where}: this is text, for pretrain.py; here {wanted} are needed")


def _some(found, what, counts):
    if not found:
        raise ValueError(f"the data holds no {what}; {report(counts)}")
    return found


def write_jsonl(path, records):
    """Write records to a temporary file and rename it."""
    try:
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        os.replace(f"{path}.tmp", path)
    except OSError as e:
        if os.path.exists(f"{path}.tmp"):
            os.remove(f"{path}.tmp")
        raise ValueError(f"cannot write {path} ({e.strerror}): free some space or choose another --out") from e


def split(records, share, seed=0):
    """(rest, held out): `share` of the *prompts*, by a hash of their text, so that a prompt is on one side only."""
    def held(r):
        text = json.dumps([m for m in r.messages if m is not r.messages[-1] or m["role"] != "assistant"])
        return random.Random(f"{seed} {text}").random() < share
    sides = [held(r) for r in records]
    return [r for r, h in zip(records, sides) if not h], [r for r, h in zip(records, sides) if h]


# ---- encoded records: too long a prompt is cut from the left, a response never; what does not fit is dropped and counted ----

def encode_demonstrations(records, enc, block, counts: Counter):
    """-> [(ids, trained), ...] of at most `block` tokens."""
    encoded = []
    for r in records:
        ids, trained = encode_dialogue(enc, r.messages)
        reply = len(encode_response(enc, r.messages[-1]["content"]))
        if reply > block // 2 and len(ids) > block:
            counts["demonstrations dropped: the response is too long"] += 1
            continue
        if len(ids) > block:
            counts["demonstrations cut from the left"] += 1
        encoded.append((ids[-block:], trained[-block:]))
    counts["demonstrations"] += len(encoded)
    if not encoded:
        raise ValueError(f"no demonstration fits the model's context of {block} tokens: use a model with a longer one")
    return encoded


def encode_prompts(records, enc, room, counts: Counter):
    """-> [ids, ...] of at most `room` tokens, which leaves the rest of the context to the response."""
    if room < 1:
        raise ValueError("--max-new takes the whole context and leaves no room for a prompt: lower it")
    encoded = [encode_prompt(enc, r.messages) for r in records]
    counts["prompts"] += len(encoded)
    counts["prompts cut from the left"] += sum(len(ids) > room for ids in encoded)
    return [ids[-room:] for ids in encoded]


class RankedIds(NamedTuple):
    prompt: list        # ids
    responses: list     # K lists of ids, EOS included
    pairs: list         # (better, worse)
    ranking: Ranking    # where it came from


def encode_rankings(records, enc, block, counts: Counter):
    """-> [RankedIds, ...]. Responses over half the context are dropped with their pairs, prompts cut to what is left."""
    encoded = []
    for r in records:
        responses = [encode_response(enc, x) for x in r.responses]
        fits = [len(x) <= block // 2 for x in responses]
        pairs = [(i, j) for i, j in r.pairs if fits[i] and fits[j]]
        counts["responses dropped: too long"] += fits.count(False)
        if not pairs:
            counts["prompts skipped: no two responses fit"] += 1
            continue
        used = sorted({i for p in pairs for i in p})        # a response in no pair needs no forward
        prompt = encode_prompt(enc, r.messages)
        room = block - max(len(responses[i]) for i in used)
        counts["prompts cut from the left"] += len(prompt) > room
        encoded.append(RankedIds(prompt[-room:], [responses[i] for i in used],
                                 [(used.index(i), used.index(j)) for i, j in pairs], r))
    counts["rankings"] += len(encoded)
    if not encoded:
        raise ValueError(f"no ranking fits the model's context of {block} tokens: use a model with a longer one")
    return encoded


def pack(docs, enc, block=1, name=""):
    """Documents -> one long tensor of tokens, each followed by EOS. Raises ValueError if `name` has no whole block."""
    tokens = torch.cat([torch.tensor([*ids, enc.eot_token]) for ids in enc.encode_ordinary_batch(docs, num_threads=2)])
    if len(tokens) < block:
        raise ValueError(f"{name or 'the text'} has {len(tokens)} tokens, too few for a block of {block}: add text")
    return tokens


def report(counts: Counter):
    """What was read, skipped and shortened, in one line."""
    return "data: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)


# ---- batches: a function of the step ----------------------------------------------------------------------------

def rows_at(step, n, size, seed):
    """The rows of batch `step`: [step*size, (step+1)*size) of an endless sequence of shuffled epochs over n rows."""
    return [_epoch(n, seed, i // n)[i % n] for i in range(step * size, (step + 1) * size)]


@functools.lru_cache(maxsize=8)
def _epoch(n, seed, epoch):
    return random.Random(f"{seed} epoch {epoch}").sample(range(n), n)


def chunks(rows, size):
    """Micro-batches: lists of at most `size` rows, all of them if size is 0."""
    size = size or len(rows) or 1
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def by_length(length, size, share=lambda rows: rows):
    """Micro-batches of rows of like length, which need few pads: (rows, the longest of them), at most `size` rows, 0 for all.
    share(rows) picks the rows of this process (train.py)."""
    return [(rows, int(length[rows].max())) for rows in share(length.argsort(stable=True)).split(size or len(length))]


class Tokens(NamedTuple):
    ids: Tensor         # (B, T)    right-padded
    mask: Tensor        # (B, T-1)  True where column t's choice is trained; on the CPU


class Prompts(NamedTuple):
    ids: Tensor         # (B, P)    right-padded
    length: Tensor      # (B,)


class Rankings(NamedTuple):
    prompts: Prompts    # B of them
    ids: Tensor         # (N, R)    responses, right-padded, N = the sum of the K of each prompt
    length: Tensor      # (N,)
    owner: Tensor       # (N,)      the prompt of each response
    better: Tensor      # (M,)      rows of ids
    worse: Tensor       # (M,)
    weight: Tensor      # (M,)      1 / pairs of that prompt: summed over M it is B


def to_device(x, device):
    """On a GPU: copied from pinned memory, so that neither side waits for the other."""
    return x.pin_memory().to(device, non_blocking=True) if str(device).startswith("cuda") else x.to(device)


def pad(rows, value=0, device="cpu") -> Prompts:
    """Lists of ids -> Prompts: right-padded (B, longest), lengths (B,). No number depends on the pad's value."""
    length = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), int(length.max())), value, dtype=torch.long)
    for b, r in enumerate(rows):
        ids[b, :len(r)] = torch.tensor(r)
    return Prompts(to_device(ids, device), to_device(length, device))


def tokens_batch(encoded, device="cpu") -> Tokens:
    """[(ids, trained), ...] -> Tokens."""
    mask = pad([trained[1:] for _, trained in encoded]).ids.bool()
    return Tokens(pad([ids for ids, _ in encoded], device=device).ids, mask)


def text_batch(tokens, rows, block, device="cpu") -> Tokens:
    """Blocks of packed text: row r is tokens[r*block : (r+1)*block]."""
    ids = to_device(torch.stack([tokens[r * block:(r + 1) * block] for r in rows]), device)
    return Tokens(ids, torch.ones(ids.shape[0], block - 1, dtype=torch.bool))


def rankings_batch(encoded, device="cpu") -> Rankings:
    """[RankedIds, ...] -> Rankings."""
    owner, better, worse, weight = [], [], [], []
    for b, r in enumerate(encoded):
        first = len(owner)
        owner += [b] * len(r.responses)
        better += [first + i for i, _ in r.pairs]
        worse += [first + j for _, j in r.pairs]
        weight += [1 / len(r.pairs)] * len(r.pairs)
    responses = pad([x for r in encoded for x in r.responses], device=device)
    return Rankings(pad([r.prompt for r in encoded], device=device), responses.ids, responses.length,
                    *(to_device(torch.tensor(x), device) for x in (owner, better, worse, weight)))


def action_mask(prompt_len, total_len, T):
    """(B,), (B,) -> (B, T-1): True at the choices of the response, EOS included. The picture is at the top."""
    t = torch.arange(T - 1, device=prompt_len.device)
    return (t >= prompt_len[:, None] - 1) & (t < total_len[:, None] - 1)


def masked_mean(x, mask):
    """Mean of x where mask is True; 0 where it is True nowhere."""
    return (x * mask).sum() / mask.sum().clamp(min=1)
