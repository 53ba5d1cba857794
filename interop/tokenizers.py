"""Tokenizers: the sandbox's, tiktoken's by name, files of ranks, and the folders of a GPT-2.

tiktoken's Encoding is the only interface: ranks of byte strings, a pattern that cuts text into
pieces before they are merged, and one special token, the end of text.

    get_tokenizer("sandbox")           get_tokenizer("gpt2")
    get_tokenizer("mine.tiktoken")     get_tokenizer("folder/with/vocab.json/and/merges.txt")
"""
import base64
import hashlib
import json
import os

import tiktoken

import sandbox
from interop.records import read_file

EOS = "<|endoftext|>"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SANDBOX_PATTERN = r" ?\p{L}+|\n+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"

# GPT-2's files write each byte as one printable character: "A" is itself, a space is "Ġ" (U+0120).
_PRINTABLE = [b for b in range(256) if chr(b).isprintable() and b != ord(" ")]
_OTHERS = [b for b in range(256) if b not in _PRINTABLE]
CHARACTER = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(_OTHERS)}
BYTE = {character: b for b, character in CHARACTER.items()}


# ---- tokenizers by name -------------------------------------------------------------------------

def get_tokenizer(name: str) -> tiktoken.Encoding:
    """The tokenizer of that name. Raises ValueError.

    name: "sandbox"; the folder of a Hugging Face GPT-2; a .tiktoken file of ranks that split text
    as GPT-2 does; or a name that tiktoken knows ("gpt2").
    """
    if name == "sandbox":
        return _tokenizer(name, read_ranks(sandbox.RANKS), SANDBOX_PATTERN)
    if os.path.isdir(name):
        return _tokenizer_in(name)
    if name.endswith(".tiktoken"):
        return _tokenizer(name, read_ranks(name), GPT2_PATTERN)
    try:
        enc = tiktoken.get_encoding(name)
    except ValueError as e:
        known = ", ".join(tiktoken.list_encoding_names())
        raise ValueError(f"no tokenizer is called {name}: use sandbox, {known} or a file of ranks "
                         f"that ends in .tiktoken") from e
    except Exception as e:   # tiktoken downloads the ranks with whatever `requests` raises
        raise ValueError(f"the ranks of {name} could not be downloaded ({type(e).__name__}): "
                         f"without a network, pass a file of ranks, "
                         f"--tokenizer FILE.tiktoken") from e
    if name in ("gpt2", "r50k_base"):
        # tiktoken's versions write GPT-2's pattern in several ways; one tokenizer needs one hash
        return _tokenizer(name, enc._mergeable_ranks, GPT2_PATTERN, enc.eot_token)
    return enc


def _tokenizer(name, ranks, pattern, eos=None):
    """ranks: {bytes: number}. eos: the number of the end of text; by default the next one."""
    special_tokens = {EOS: len(ranks) if eos is None else eos}
    return tiktoken.Encoding(
        name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)


def read_ranks(path):
    """A .tiktoken file, "base64 rank" a line, -> {bytes: rank}. Raises ValueError."""
    ranks = {}
    try:
        # not tiktoken's own loader: it caches by path and misses that a file has changed
        with open(path, "rb") as f:
            for line in f:
                token, rank = line.split()
                ranks[base64.b64decode(token)] = int(rank)
        if not ranks:
            raise ValueError("it is empty")
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} is not a readable file of tiktoken ranks "
                         f"(one 'base64 rank' a line)") from e
    return ranks


# ---- what a checkpoint remembers ----------------------------------------------------------------

def tokenizer_id(enc: tiktoken.Encoding) -> dict:
    """{name, hash}: what a checkpoint remembers of its tokenizer. The hash covers ranks, special
    tokens and pattern, and not the name."""
    digest = hashlib.sha256()
    for token, rank in sorted(enc._mergeable_ranks.items()) + sorted(enc._special_tokens.items()):
        digest.update(f"{token!r} {rank}\n".encode())
    digest.update(enc._pat_str.encode())
    return {"name": enc.name, "hash": digest.hexdigest()}


def tokenizer_of(checkpoint, same_as=None) -> tiktoken.Encoding:
    """The tokenizer that a checkpoint was trained with.

    Raises ValueError if it has changed since, has more tokens than the model, or is not that of
    the tokenizer `same_as`.
    """
    name, known_hash = checkpoint["tokenizer"]["name"], checkpoint["tokenizer"]["hash"]
    if os.sep in name and not os.path.exists(name):
        name = "gpt2"        # a file that is gone may have held GPT-2's ranks: the hash will tell
    enc = get_tokenizer(name)
    vocab_size = checkpoint["config"]["vocab_size"]
    if enc.n_vocab > vocab_size:
        raise ValueError(f"the tokenizer {enc.name} has {enc.n_vocab:,} tokens, more than the "
                         f"model's {vocab_size:,}: they do not belong together")
    enc_hash = tokenizer_id(enc)["hash"]
    if known_hash not in ("", enc_hash):         # "": a model that others trained does not say
        raise ValueError(f"the tokenizer {enc.name} has changed since this model was trained: "
                         f"restore its ranks or train again")
    if same_as and enc_hash != tokenizer_id(same_as)["hash"]:
        raise ValueError(f"one model has the tokenizer {enc.name}, another {same_as.name}: "
                         f"all must share one")
    return enc


# ---- the files of a GPT-2's folder, in and out --------------------------------------------------

def tokenizer_files(folder):
    """vocab.json and merges.txt of a Hugging Face folder, or its tokenizer.json, or nothing."""
    for names in (("vocab.json", "merges.txt"), ("tokenizer.json",)):
        files = [os.path.join(folder, name) for name in names]
        if all(map(os.path.isfile, files)):
            return files
    return []


def _tokenizer_in(folder):
    """The byte-level BPE of a Hugging Face folder: vocab.json and merges.txt, or tokenizer.json."""
    try:
        vocab, merges = _read_vocab(folder)
        order = [vocab["".join(merge)] for merge in merges]
        if order != sorted(order):
            raise ValueError("its tokens are not in the order of its merges")
        ranks = {}
        for token, rank in vocab.items():
            if token != EOS:
                ranks[bytes(BYTE[character] for character in token)] = rank
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder} has no tokenizer of GPT-2's kind (vocab.json and merges.txt, "
                         f"or tokenizer.json)") from e
    return _tokenizer(folder, ranks, GPT2_PATTERN, vocab.get(EOS))


def _read_vocab(folder):
    """-> ({token: rank}, [[left, right], ...]), the tokens in GPT-2's characters."""
    def read(name):
        return read_file(os.path.join(folder, name))

    if os.path.isfile(os.path.join(folder, "merges.txt")):
        lines = read("merges.txt").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        vocab = json.loads(read("vocab.json"))
    else:
        model = json.loads(read("tokenizer.json"))["model"]
        vocab, merges = model["vocab"], model["merges"]
    # a merge is "left right" or, in newer files, ["left", "right"]
    return vocab, [m.split() if isinstance(m, str) else m for m in merges]
