"""Tokenizers: the sandbox's, tiktoken's by name, files of ranks, and the folders of a GPT-2.

tiktoken's Encoding is the only interface: ranks of byte strings, a pattern that cuts text into
pieces before they are merged, and one special token, the end of text. Any text has tokens, and any
id below n_vocab has text.

    get_tokenizer("sandbox")           get_tokenizer("gpt2")
    get_tokenizer("mine.tiktoken")     get_tokenizer("folder/with/vocab.json/and/merges.txt")
"""
import base64
import functools
import hashlib
import os
from collections import Counter

import tiktoken
import tiktoken.load

import sandbox
from interop.rows import parts, read_file, read_json, shown

EOS = "<|endoftext|>"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SANDBOX_PATTERN = r" ?\p{L}+|\n+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
# tiktoken's versions write GPT-2's pattern in several ways; one tokenizer needs one hash
WITH_GPT2_PATTERN = ("gpt2", "r50k_base", "p50k_base", "p50k_edit")
# What an exported folder calls the token of byte 255, which no text has: transformers needs a pad.
PAD, PAD_BYTE = "<|pad|>", b"\xff"
LONGEST = 256       # bytes of a token; those of GPT-2 and of tiktoken's others have 128
LONG = 100_000      # characters: a longer text is tokenized in parts
TIMEOUT = 30        # seconds for which a download may be silent

# GPT-2's files write each byte as one printable character: "A" is itself, a space is "Ġ" (U+0120).
_PRINTABLE = [b for b in range(256) if chr(b).isprintable() and b != ord(" ")]
_OTHERS = [b for b in range(256) if b not in _PRINTABLE]
CHARACTER = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(_OTHERS)}
BYTE = {character: b for b, character in CHARACTER.items()}


# ---- tokenizers by name -------------------------------------------------------------------------

def get_tokenizer(name: str) -> tiktoken.Encoding:
    """The tokenizer that a user names. Raises ValueError.

    name: "sandbox"; the folder of a Hugging Face GPT-2; a .tiktoken file of ranks that split text
    as GPT-2 does; or a name that tiktoken knows ("gpt2").
    """
    if name != "sandbox":
        if os.path.isdir(name):
            return _tokenizer_in(name)
        if name.endswith(".tiktoken"):
            return _from_text(os.path.basename(name), read_file(name))
    return _known_tokenizer(name)


def tokenizer_files_of(name):
    """The files that get_tokenizer(name) reads, () of "sandbox" and of tiktoken's names."""
    if name != "sandbox" and os.path.isdir(name):
        return tuple(tokenizer_files(name))
    return (name,) if name.endswith(".tiktoken") else ()


def known_names():
    """The tokenizers that a checkpoint has by name; all others it holds itself."""
    return ["sandbox", *tiktoken.list_encoding_names()]


def _known_tokenizer(name):
    """One of `known_names`. Raises ValueError."""
    if name not in known_names():
        raise ValueError(f"no tokenizer is called {name}: use {', '.join(known_names())}, a file "
                         f"of ranks that ends in .tiktoken or a folder with GPT-2's files")
    if name == "sandbox":
        return _from_text(name, read_file(sandbox.RANKS), SANDBOX_PATTERN)
    tiktoken.load.read_file = _fetch
    try:
        enc = tiktoken.get_encoding(name)
    except Exception as e:   # tiktoken downloads the ranks with whatever `requests` raises
        raise ValueError(f"the ranks of {name} could not be downloaded ({type(e).__name__}): "
                         f"without a network, pass a file of ranks, "
                         f"--tokenizer FILE.tiktoken") from e
    return _of_tiktoken(enc)


def _fetch(url):
    """The bytes at `url`: tiktoken's own function waits for ever."""
    import requests

    response = requests.get(url, timeout=TIMEOUT)
    response.raise_for_status()
    return response.content


@functools.lru_cache(maxsize=4)
def _of_tiktoken(enc):
    """tiktoken's `enc` without its special tokens but the end of text, and so without gaps: the
    100,277 ids of cl100k_base have 16 without text."""
    pattern = GPT2_PATTERN if enc.name in WITH_GPT2_PATTERN else enc._pat_str
    return _tokenizer(enc.name, enc._mergeable_ranks, pattern)


@functools.lru_cache(maxsize=4)
def _from_text(name, text, pattern=GPT2_PATTERN):
    """The tokenizer of the text of a .tiktoken file, "base64 rank" a line. Raises ValueError.

    The same text is not read again: GPT-2's takes half a second."""
    ranks, lines = {}, text.splitlines()
    try:
        for line in lines:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError:
        ranks = {}                                           # it says where, in Python's words
    if not ranks or len(ranks) < len(lines):
        raise ValueError(f"{name} is not a readable file of tiktoken ranks (one 'base64 rank' a "
                         f"line, each token once)")
    return _tokenizer(name, ranks, pattern)


def _tokenizer(name, ranks, pattern):
    """ranks: {bytes: number}; the end of text has the first number that is free.

    Raises ValueError if there are texts without tokens, numbers without text, or long tokens."""
    longest = max(map(len, ranks))
    if longest > LONGEST:                  # each way to cut a token in two may be a merge
        raise ValueError(f"{name} has a token of {longest:,} bytes, and at most {LONGEST} are "
                         f"read: use a tokenizer of shorter tokens")
    numbers = set(ranks.values())
    end = min(set(range(len(ranks) + 1)) - numbers)
    if numbers | {end} != set(range(len(ranks) + 1)):
        raise ValueError(f"{name} has numbers without a token: the {len(ranks):,} tokens of a "
                         f"tokenizer must have the numbers from 0, but for that of the end of text")
    if not all(bytes([b]) in ranks for b in range(256)):
        raise ValueError(f"{name} has no token for some bytes: a tokenizer needs all 256")
    return Tokenizer(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={EOS: end})


class Tokenizer(tiktoken.Encoding):
    """tiktoken's, which ends the process at a million spaces: a long text is tokenized in parts, to
    the same tokens unless a word has thousands of characters."""
    def encode_ordinary(self, text):
        if len(text) < LONG:
            return super().encode_ordinary(text)
        tokens = []
        for part in parts(text):
            tokens += super().encode_ordinary(part)
        return tokens


# ---- what a checkpoint remembers ----------------------------------------------------------------

def tokenizer_id(enc: tiktoken.Encoding) -> dict:
    """{name, hash}, of a file or folder with "ranks", the text of a .tiktoken file: what a
    checkpoint remembers of its tokenizer, wherever it is moved.

    The hash covers ranks, special tokens and pattern, and not the name.
    """
    own = {"name": enc.name, "hash": _hash(enc)}
    if enc.name not in known_names():
        own["ranks"] = as_text(enc._mergeable_ranks)
    return own


@functools.lru_cache(maxsize=8)
def _hash(enc):
    digest = hashlib.sha256()
    for token, rank in sorted(enc._mergeable_ranks.items()) + sorted(enc._special_tokens.items()):
        digest.update(f"{token!r} {rank}\n".encode())
    digest.update(enc._pat_str.encode())
    return digest.hexdigest()


def as_text(ranks):
    """{bytes: rank} -> the text of a .tiktoken file."""
    lines = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        lines.append(f"{base64.b64encode(token).decode()} {rank}\n")
    return "".join(lines)


def ranks_of(texts):
    """A tokenizer of one's own: the text of a .tiktoken file of all bytes and of each word, as
    GPT-2's pattern cuts them, that comes 20 times in the texts."""
    # tiktoken's own, which knows the letters of all alphabets
    import regex

    count = Counter(word for text in texts for word in regex.findall(GPT2_PATTERN, text))
    words = sorted(word for word, n in count.items() if n >= 20 and len(word.encode()) > 1)
    tokens = [bytes([b]) for b in range(256)] + [word.encode() for word in words]
    return as_text({token: rank for rank, token in enumerate(tokens)})


def stored_tokenizer(own: dict) -> tiktoken.Encoding:
    """The tokenizer of what `tokenizer_id` returned: its name is opened as no path.

    Raises ValueError, also if it has another hash; one of "" is not known yet.
    """
    name, ranks = shown(own["name"]), own.get("ranks")
    if isinstance(ranks, str):
        enc = _from_text(_apart(name), ranks)
    elif name in known_names():
        enc = _known_tokenizer(name)
    else:
        raise ValueError(f"the model's tokenizer {name} is not in its file, and none of "
                         f"{', '.join(known_names())}: make the model again")
    if own["hash"] not in ("", _hash(enc)):
        raise ValueError(f"the tokenizer {name} has changed since the model was trained with it: "
                         f"train again")
    return enc


def tokenizer_of(checkpoint, same_as=None) -> tiktoken.Encoding:
    """The tokenizer that a checkpoint was trained with.

    Raises ValueError if it has changed since, has more tokens than the model, or is not that of
    the tokenizer `same_as`.
    """
    enc = stored_tokenizer(checkpoint["tokenizer"])
    vocab_size = checkpoint["config"]["vocab_size"]
    if enc.n_vocab > vocab_size:
        raise ValueError(f"the tokenizer {enc.name} has {enc.n_vocab:,} tokens, more than the "
                         f"model's {vocab_size:,}: they do not belong together")
    if same_as and _hash(enc) != _hash(same_as):
        raise ValueError(f"one model has the tokenizer {enc.name}, another {same_as.name}: "
                         f"all must share one")
    return enc


# ---- the files of a GPT-2's folder --------------------------------------------------------------

def tokenizer_files(folder):
    """vocab.json and merges.txt of a Hugging Face folder, or its tokenizer.json, or nothing."""
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        files = [os.path.join(folder, name) for name in names]
        if all(map(os.path.isfile, files)):
            return files
    return []


def _apart(name):
    """The last part of a folder's name, and a slash: none of `known_names` has one."""
    base = os.path.basename(os.path.normpath(name))
    return base if base.endswith(".tiktoken") else f"{base}/"


def _tokenizer_in(folder):
    """The byte-level BPE of a Hugging Face folder: vocab.json and merges.txt, or tokenizer.json."""
    wrong = (f"{folder} has no tokenizer of GPT-2's kind (vocab.json and merges.txt, or "
             f"tokenizer.json)")
    files = tokenizer_files(folder)
    if not files:
        raise ValueError(wrong)
    vocab, merges, pattern = read_vocab(*files)
    ranks, padded = {}, CHARACTER[PAD_BYTE[0]] not in vocab
    try:
        order = [vocab["".join(merge)] for merge in merges]
        for token, rank in vocab.items():
            if token == PAD and padded:
                ranks[PAD_BYTE] = rank
            elif token != EOS:
                ranks[bytes(BYTE[character] for character in token)] = rank
    except (KeyError, TypeError) as e:
        raise ValueError(f"{wrong}: its merges or tokens are written in another way") from e
    own = as_text(ranks) == read_file(sandbox.RANKS)
    if pattern != (SANDBOX_PATTERN if own else GPT2_PATTERN):
        raise ValueError(f"{wrong}: it cuts text in another way")
    if own:
        return get_tokenizer("sandbox")
    try:
        enc = _from_text(_apart(folder), as_text(ranks))
    except ValueError as e:
        raise ValueError(f"{wrong}: {e}") from e
    if order != sorted(order) or vocab.get(EOS, enc.eot_token) != enc.eot_token:
        raise ValueError(f"{wrong}: its tokens are not in the order of its merges")
    return enc


def read_vocab(file, merges=None):
    """vocab.json and merges.txt, or tokenizer.json -> ({token: rank}, [[left, right], ...], the
    pattern that cuts text, "" for one that is not known here). Raises ValueError."""
    vocab, pattern = read_json(file), GPT2_PATTERN
    if merges is None:
        model = vocab.get("model") if isinstance(vocab, dict) else None
        pattern = _pattern(vocab)
        model = model if isinstance(model, dict) else {}
        vocab, merges = model.get("vocab"), model.get("merges")
    else:
        lines = read_file(merges).split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
    numbers = isinstance(vocab, dict) and all(type(rank) is int for rank in vocab.values())
    if not numbers or not isinstance(merges, list):
        raise ValueError(f"{file} is no vocabulary of GPT-2's kind")
    # a merge is "left right" or, in newer files, ["left", "right"]
    return vocab, [m.split() if isinstance(m, str) else m for m in merges], pattern


def _pattern(found):
    """The pattern of a tokenizer.json: GPT-2's own step has it built in, or a step before it."""
    try:
        first = found["pre_tokenizer"]
        steps = first.get("pretokenizers", [first])
        if found.get("normalizer") is None and steps[-1]["type"] == "ByteLevel":
            if len(steps) == 1 and steps[0].get("use_regex", True):
                return GPT2_PATTERN
            if len(steps) == 2 and not steps[1].get("use_regex", True):
                return steps[0]["pattern"]["Regex"]
    except (KeyError, TypeError, AttributeError, IndexError):
        pass
    return ""
