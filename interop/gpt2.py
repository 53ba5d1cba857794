"""GPT-2's weights as others publish them: the folders that Hugging Face's transformers writes.

    read_model("gpt2")                 # downloaded once, into torch.hub's cache
    read_model("folder")               # config.json and model.safetensors or pytorch_model.bin
    read_model("ppo.pt")               # a checkpoint of ours

The names of our weights are theirs but for a prefix, ".mlp." and the order of the axes of matrices:
theirs are (in, out). Wherever a checkpoint can be named, so can such a folder.
"""
import json
import os
import re
import urllib.request

import torch

from interop.tokenizers import tokenizer_files
from plumbing.files import read_checkpoint

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
HUB = "https://huggingface.co"
DOWNLOADED = ("config.json", "vocab.json", "merges.txt", "pytorch_model.bin")
NAMES = {   # our names of a model's sizes, and theirs
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
KNOWN = {   # what a config may say of the architecture; where it is silent, it means the first
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
MATRIX = re.compile(r"c_\w+\.weight$")                     # theirs are stored transposed
CAUSAL_MASK = re.compile(r"\.attn\.(masked_)?bias$")       # buffers that old versions wrote


# ---- which files a name stands for --------------------------------------------------------------

def model_files(path):
    """The files that a checkpoint, a GPT-2's folder or the name of a published GPT-2 stands for:
    (FILE,) or (config, weights, *tokenizer), or () of an empty name. Raises ValueError."""
    if path in PUBLISHED and not os.path.exists(path):
        path = _download(path)
    if not os.path.isdir(path):
        return (path,) if path else ()
    config = os.path.join(path, "config.json")
    for name in ("model.safetensors", "pytorch_model.bin"):
        weights = os.path.join(path, name)
        if os.path.isfile(weights) and os.path.isfile(config):
            return config, weights, *tokenizer_files(path)
    raise ValueError(f"{path} is a folder without a GPT-2 in it: it must hold config.json and "
                     f"either model.safetensors or pytorch_model.bin")


def _download(name):
    """The folder of a published GPT-2 in torch.hub's cache; what is missing there is fetched.
    Raises ValueError."""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints", name)
    for file in DOWNLOADED:
        try:
            os.makedirs(folder, exist_ok=True)
            if not os.path.exists(os.path.join(folder, file)):
                _fetch(f"{HUB}/{name}/resolve/main/{file}", os.path.join(folder, file))
        except OSError as e:
            raise ValueError(f"{name} could not be downloaded ({e}); without a network, put "
                             f"{file} of {HUB}/{name} into {folder}, or name a folder that has "
                             f"the model") from e
    return folder


def _fetch(url, target):
    """Download a file under another name and rename it once it is whole."""
    part = f"{target}.{os.getpid()}.part"                  # several processes may fetch it at once
    torch.hub.download_url_to_file(url, part)
    # torch.hub takes a connection that broke for the end of the file
    with urllib.request.urlopen(url) as response:
        if os.path.getsize(part) != int(response.headers["Content-Length"]):
            raise OSError("the connection broke")
    os.replace(part, target)


# ---- in -----------------------------------------------------------------------------------------

def read_model(path):
    """A checkpoint {kind, config, weights, tokenizer, meta}: the one that these scripts wrote, or
    what a GPT-2's folder or name amounts to. Raises ValueError."""
    files = model_files(path)
    if len(files) > 1:
        return _read_gpt2(*files[:2])
    return read_checkpoint(path)


def _read_gpt2(config_file, weights_file):
    """GPT2LMHeadModel, or GPT2ForSequenceClassification with one label, -> a checkpoint."""
    config = _read_config(config_file)
    weights = _read_weights(weights_file)
    kind = "gpt"
    if "score.weight" in weights:
        kind = "scorer"
        head = weights.pop("score.weight")
        weights = {f"trunk.{name}": w for name, w in weights.items()}
        weights |= {"head.weight": head, "head.bias": torch.zeros(len(head))}
    folder = os.path.dirname(config_file)
    name = folder if tokenizer_files(folder) else "gpt2"
    tokenizer = {"name": name, "hash": ""}       # "": not known before it is read
    return {"kind": kind, "config": config, "weights": weights, "tokenizer": tokenizer,
            "meta": {"stage": "pretrain"}}


def _read_config(path):
    """config.json -> the fields of model.GPTConfig as a dict. Raises ValueError."""
    try:
        with open(path, encoding="utf-8") as f:
            theirs = json.load(f)
        config = {ours: theirs[name] for ours, name in NAMES.items()}
        numbers = all(isinstance(x, int) and x > 0 for x in config.values())
        if not numbers or config["n_embd"] % config["n_head"]:
            raise ValueError("its sizes do not fit together")
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not the config of a GPT-2 ({type(e).__name__}: {e})") from e
    for key, known in KNOWN.items():
        if theirs.get(key, known[0]) not in known:
            raise ValueError(f"{path} has {key} {theirs[key]}; only GPT-2's own {known[0]} is "
                             f"known here")
    return config | {"dropout": 0.0}


def _read_weights(path):
    """A file of GPT-2's weights -> {our name: float32 tensor}. Raises ValueError."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file
            theirs = load_file(path)
        else:
            theirs = torch.load(path, map_location="cpu", weights_only=True)
        weights = {}
        for name, w in theirs.items():
            if not CAUSAL_MASK.search(name):
                name = name.removeprefix("transformer.").replace(".mlp.", ".")
                w = w.float()
                weights[name] = w.t().contiguous() if MATRIX.search(name) else w
        embedding = weights["wte.weight"]
        tied = torch.equal(weights.pop("lm_head.weight", embedding), embedding)
    except ImportError as e:
        raise ValueError(f"{path} needs a package: pip install safetensors") from e
    except Exception as e:   # a damaged file makes the readers raise almost anything
        raise ValueError(f"{path} is not a readable file of GPT-2's weights; "
                         f"fetch it again") from e
    if not tied:
        raise ValueError(f"{path} has an unembedding of its own; GPT-2's, and the one here, is "
                         f"its embedding")
    return weights
