"""A checkpoint as a folder that Hugging Face's transformers reads: weights, config, tokenizer.

    export("ppo.pt", "folder")         # python model.py export ppo.pt folder
"""
import json
import os
import re
import shutil
from itertools import pairwise

import torch

from interop.gpt2 import MATRIX, read_model
from interop.tokenizers import CHARACTER, EOS, get_tokenizer, tokenizer_files

OURS = re.compile(   # every weight of a GPT-2, as we call it
    r"(trunk\.)?((wte|wpe)\.weight|(ln_f|h\.\d+\.(ln_[12]|attn\.c_attn|(attn\.)?c_proj|c_fc))"
    r"\.(weight|bias))|head\.(weight|bias)")


def export(path, folder):
    """Write a checkpoint as a folder for transformers: GPT2LMHeadModel, or of a scorer
    GPT2ForSequenceClassification, whose score is that of the last token.

    Returns whether the folder has a tokenizer. Raises ValueError.
    """
    checkpoint = read_model(path)
    same = os.path.realpath(path) == os.path.realpath(folder)
    if same or os.path.exists(os.path.join(folder, "model.safetensors")):
        raise ValueError(f"{folder} holds another model: name a new folder")
    weights = _their_weights(checkpoint)
    try:
        os.makedirs(folder, exist_ok=True)
        vocab = write_tokenizer(checkpoint["tokenizer"]["name"], folder)
        torch.save(weights, os.path.join(folder, "pytorch_model.bin"))
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
            json.dump(_their_config(checkpoint, vocab), f, indent=1)
    except (OSError, RuntimeError) as e:
        raise ValueError(f"cannot write into {folder} ({e}): free some space or name another "
                         f"folder") from e
    return bool(vocab)


def _their_weights(checkpoint):
    """-> {their name: tensor}. Raises ValueError for a model of another architecture."""
    weights = dict(checkpoint["weights"])
    scorer = checkpoint["kind"] == "scorer"
    other = [name for name in weights if not OURS.fullmatch(name)]
    expected = 12 * checkpoint["config"]["n_layer"] + 4 + 2 * scorer
    if other or len(weights) != expected:
        what = f"it has {other[0]}" if other else f"{len(weights)} weights, not {expected}"
        raise ValueError(f"this model is no GPT-2 ({what}): transformers' GPT-2 cannot hold it")
    if scorer:
        # Their head has no bias b. To add b to ln_f's output along the head's direction w does
        # the same: (x + b w / |w|^2) . w = x . w + b.
        w, b = weights["head.weight"], weights.pop("head.bias")
        shift = (b * w / (w @ w.t())).squeeze(0)
        weights["trunk.ln_f.bias"] = weights["trunk.ln_f.bias"] + shift
        weights["score.weight"] = weights.pop("head.weight")
    theirs = {}
    for name, w in weights.items():
        name = name.removeprefix("trunk.")
        name = re.sub(r"(h\.\d+)\.c_", r"\1.mlp.c_", name)
        if name != "score.weight":
            name = f"transformer.{name}"
        theirs[name] = w.t().contiguous() if MATRIX.search(name) else w
    if not scorer:
        theirs["lm_head.weight"] = theirs["transformer.wte.weight"]
    return theirs


def _their_config(checkpoint, vocab):
    """What config.json holds."""
    ours = checkpoint["config"]
    scorer = checkpoint["kind"] == "scorer"
    eos = vocab.get(EOS, ours["vocab_size"] - 1)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2ForSequenceClassification" if scorer else "GPT2LMHeadModel"],
        "n_positions": ours["block_size"],
        "vocab_size": ours["vocab_size"],
        "n_layer": ours["n_layer"],
        "n_head": ours["n_head"],
        "n_embd": ours["n_embd"],
        "activation_function": "gelu_new",
        "bos_token_id": eos,
        "eos_token_id": eos,
        "num_labels": 1,
        # a classifier reads the last token that is no pad: not the end of text, with which a
        # reply ends, but byte 0
        "pad_token_id": vocab.get(CHARACTER[0]),
    }


# ---- the tokenizer ------------------------------------------------------------------------------

def write_tokenizer(name, folder):
    """Write vocab.json and merges.txt of a tokenizer that splits text as GPT-2 does.

    Returns the vocabulary {token: rank}, an empty one if `name` is a tokenizer that GPT-2's files
    cannot hold. Raises ValueError, and OSError if `folder` cannot be written.
    """
    if name == "sandbox":
        return {}
    if os.sep in name and not os.path.exists(name):
        raise ValueError(f"the model's tokenizer {name} is gone: put it back")
    if os.path.isdir(name):
        return _copy_tokenizer(name, folder)
    if name != "gpt2" and not name.endswith(".tiktoken"):
        return {}
    ranks = get_tokenizer(name)._mergeable_ranks
    vocab = {_characters(token): rank for token, rank in ranks.items()} | {EOS: len(ranks)}
    with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump(vocab, f, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("\n".join(["#version: 0.2", *_merges(ranks)]) + "\n")
    return vocab


def _copy_tokenizer(source, folder):
    """Copy the tokenizer's files from one folder to another. Returns the vocabulary."""
    files = tokenizer_files(source)
    for file in files:
        shutil.copy(file, folder)
    with open(files[0], encoding="utf-8") as f:
        vocab = json.load(f)
    return vocab["model"]["vocab"] if len(files) == 1 else vocab


def _characters(token):
    """The bytes of a token, written as GPT-2's files do."""
    return "".join(CHARACTER[b] for b in token)


def _merges(ranks):
    """The lines of merges.txt: for each token of several bytes the two that it was merged from.

    Ranks do not say which two. They are found by doing what an encoder does: merge the pair of
    the lowest rank again and again, until two parts are left. With the tokens "on" and "ion",
    "ion" goes from i, o, n to i, on: its line is "i on".
    """
    lines = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [left + right for left, right in pairwise(parts)]
            pair_ranks = [ranks.get(pair, rank) for pair in pairs]
            i = pair_ranks.index(min(pair_ranks))
            parts[i:i + 2] = [pairs[i]]
        if len(parts) == 2:
            left, right = parts
            lines.append(f"{_characters(left)} {_characters(right)}")
    return lines
