"""A checkpoint as a folder that Hugging Face's transformers reads: weights, config, tokenizer.

    export("ppo.pt", "folder")         # python model.py export ppo.pt folder

Nothing is copied: every file is written anew from what the checkpoint holds.
"""
import json
import re

from data import ROLES
from interop.gpt2 import MATRIX, read_model
from interop.tokenizers import (
    CHARACTER,
    EOS,
    GPT2_PATTERN,
    PAD,
    PAD_BYTE,
    SANDBOX_PATTERN,
    tokenizer_of,
)
from plumbing import results

OURS = re.compile(   # every weight of a GPT-2, as we call it
    r"(trunk\.)?((wte|wpe)\.weight|(ln_f|h\.\d+\.(ln_[12]|attn\.c_attn|(attn\.)?c_proj|c_fc))"
    r"\.(weight|bias))|head\.(weight|bias)")

# data.encode_dialogue as a template; "generation" marks what is trained
CHAT_TEMPLATE = "".join([
    "{% set roles = " + json.dumps(ROLES) + " %}",
    "{% for m in messages %}",
    r"{{ '' if loop.first else '\n\n' }}",
    "{{ roles[m.role] or raise_exception('roles are system, user and assistant') }}",
    "{% if m.role == 'assistant' %}",
    "{% generation %} {{ m.content | trim }}" + EOS + "{% endgeneration %}",
    "{% else %} {{ m.content | trim }}{% endif %}",
    "{% endfor %}",
    r"{% if add_generation_prompt %}{{ '\n\n' if messages else '' }}",
    ROLES["assistant"] + "{% endif %}",
])


def export(path, folder):
    """Write a checkpoint as a new folder for transformers: GPT2LMHeadModel, or of a scorer
    GPT2ForSequenceClassification, whose score is that of the last token.

    Returns whether the folder has a tokenizer. Raises ValueError.
    """
    results.check_free(folder)
    checkpoint = read_model(path)
    enc = tokenizer_of(checkpoint)
    weights = _their_weights(path, checkpoint)
    texts = {"config.json": _their_config(checkpoint, enc)}
    # Other patterns may mean something else there, and cl100k_base's makes one token of a full stop
    # and the newlines that the template puts behind it.
    has_tokenizer = enc._pat_str in (GPT2_PATTERN, SANDBOX_PATTERN)
    if has_tokenizer:
        texts["tokenizer.json"] = _their_tokenizer(enc)
        texts["tokenizer_config.json"] = _tokenizer_config(checkpoint)
    if checkpoint["kind"] == "gpt":
        texts["generation_config.json"] = _generation_config(checkpoint, enc)

    files = {"model.safetensors": lambda f: _write_safetensors(weights, f)}
    for name, content in texts.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        files[name] = lambda f, text=text: f.write(text.encode())
    results.write_folder(folder, files)
    return has_tokenizer


# ---- weights ------------------------------------------------------------------------------------

def _their_weights(path, checkpoint):
    """-> {their name: tensor}. Raises ValueError for a model of another architecture, and for what
    a GPT2ForSequenceClassification cannot hold."""
    weights = dict(checkpoint["weights"])
    scorer = checkpoint["kind"] == "scorer"
    other = [name for name in weights if not OURS.fullmatch(name)]
    expected = 12 * checkpoint["config"]["n_layer"] + 4 + 2 * scorer
    if other or len(weights) != expected:
        what = f"it has {other[0]}" if other else f"{len(weights)} weights, not {expected}"
        raise ValueError(f"{path} is no GPT-2 ({what}): transformers' GPT-2 cannot hold it")
    if scorer:
        # Their head has no bias b. To add b to ln_f's output along the head's direction w does
        # the same: (x + b w / |w|^2) . w = x . w + b.
        w, b = weights["head.weight"].double(), weights.pop("head.bias").double()
        shift = (b * w / (w @ w.t())).squeeze(0).float()
        if not shift.isfinite().all():
            raise ValueError(f"{path} gives every text the same score, as its head is 0: train it")
        weights["trunk.ln_f.bias"] = weights["trunk.ln_f.bias"] + shift
        weights["score.weight"] = weights.pop("head.weight")
    theirs = {}
    for name, w in weights.items():
        name = name.removeprefix("trunk.")
        name = re.sub(r"(h\.\d+)\.c_", r"\1.mlp.c_", name)
        if name != "score.weight":
            name = f"transformer.{name}"
        theirs[name] = (w.t() if MATRIX.search(name) else w).contiguous()
    return theirs


def _write_safetensors(weights, f):
    """The format: the length of a header, the header as JSON, the numbers. The unembedding is not
    in it: transformers takes the embedding for it, as GPT-2's."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, w in weights.items():
        start, end = end, end + w.nbytes
        header[name] = {"dtype": "F32", "shape": list(w.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)                          # numbers begin at a multiple of 8
    f.write(len(text).to_bytes(8, "little") + text)
    for w in weights.values():
        f.write(w.numpy())


# ---- config -------------------------------------------------------------------------------------

def _special_ids(enc):
    """A document begins after the end of another, so that the end of text stands for both.

    The pad is a token that no text has. A classifier reads the score at the last token that is no
    pad: with the end of text as pad it would read that of the token before, and so it would with
    byte 0 where a text ends with it.
    """
    return {
        "bos_token_id": enc.eot_token,
        "eos_token_id": enc.eot_token,
        "pad_token_id": enc._mergeable_ranks[PAD_BYTE],
    }


def _their_config(checkpoint, enc):
    """What config.json holds."""
    ours = checkpoint["config"]
    scorer = checkpoint["kind"] == "scorer"
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2ForSequenceClassification" if scorer else "GPT2LMHeadModel"],
        "n_positions": ours["block_size"],
        "vocab_size": ours["vocab_size"],
        "n_layer": ours["n_layer"],
        "n_head": ours["n_head"],
        "n_embd": ours["n_embd"],
        "activation_function": "gelu_new",
        "num_labels": 1,
        **_special_ids(enc),
    }


def _generation_config(checkpoint, enc):
    """Samples as the policy was trained: where nothing is said, transformers draws from the 50
    likeliest tokens only. A max_new_tokens here would overrule the max_length of lm-eval's calls.
    """
    return {
        **_special_ids(enc),
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_length": checkpoint["config"]["block_size"],
    }


# ---- the tokenizer ------------------------------------------------------------------------------

def _their_tokenizer(enc):
    """What tokenizer.json holds: the pattern, then byte-pair encoding by tiktoken's rules.

    A piece that is a token is that token (ignore_merges). Else any two neighbours that make a token
    are merged, the one of the lowest rank first: each way to cut a token in two is a merge.
    """
    ranks, vocab, merges = enc._mergeable_ranks, {}, []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        vocab[_characters(token)] = rank
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in ranks and right in ranks:
                merges.append(f"{_characters(left)} {_characters(right)}")
    vocab[PAD] = vocab.pop(_characters(PAD_BYTE))
    vocab[EOS] = enc.eot_token
    pattern = {"type": "Split", "pattern": {"Regex": enc._pat_str}, "behavior": "Isolated",
               "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [_special_token(token, vocab[token]) for token in (PAD, EOS)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, as_bytes]},
        "decoder": as_bytes,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
    }


def _characters(token):
    """The bytes of a token, written as GPT-2's files do."""
    return "".join(CHARACTER[b] for b in token)


def _special_token(content, id):
    """A token that stands for no text, and that is found in text as it is."""
    return {"id": id, "content": content, "special": True, "normalized": False,
            "single_word": False, "lstrip": False, "rstrip": False}


def _tokenizer_config(checkpoint):
    """What tokenizer_config.json holds. Pads are on the right, where a classifier does not see
    them; generation goes on at the right end of a row, and counts positions from where it begins.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "padding_side": "left" if checkpoint["kind"] == "gpt" else "right",
        "truncation_side": "left",
        "model_max_length": checkpoint["config"]["block_size"],
        # GPT-2 would add the embeddings of token_type_ids
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
