"""GPT-2's weights as others publish them: the folders that Hugging Face's transformers writes.

    read_model("gpt2")                 # downloaded once, into torch.hub's cache
    read_model("folder")               # config.json and weights: one file, or parts with an index
    read_model("ppo.pt")               # a checkpoint of ours

The names of our weights are theirs but for a prefix, ".mlp." and the order of the axes of matrices:
theirs are (in, out). Wherever a checkpoint can be named, so can such a folder.
"""
import contextlib
import hashlib
import http.client
import json
import os
import re
import sys
import urllib.request

import torch
from tqdm import tqdm

from interop.rows import read_json, shown
from interop.tokenizers import (
    TIMEOUT,
    get_tokenizer,
    known_names,
    read_vocab,
    stored_tokenizer,
    tokenizer_files,
    tokenizer_id,
)
from plumbing.files import check_archive, read_checkpoint

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
HUB = "https://huggingface.co"
DOWNLOADED = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
SHA256 = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?')
ARCHIVE = b"PK\x03\x04"                                     # how a zip file begins
PIECE = 2**20                                              # bytes of a download, read at once
WEIGHTS = (   # in the order in which transformers looks for them
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
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
DTYPES = {   # of safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
A_ROW_A_TOKEN = ("wte.weight", "lm_head.weight")           # the ends of names
FEWEST = 50257                                             # tokens of tiktoken's: GPT-2's


# ---- which files a name stands for --------------------------------------------------------------

def model_files(path):
    """The files that a checkpoint, a GPT-2's folder or the name of a published GPT-2 stands for:
    (FILE,) or (config, *weights, *tokenizer), or () of an empty name. Raises ValueError."""
    if path in PUBLISHED and not os.path.exists(path):
        path = _download(path)
    if not os.path.isdir(path):
        return (path,) if path else ()
    config, weights = os.path.join(path, "config.json"), _weight_files(path)
    if not weights or not os.path.isfile(config):
        raise ValueError(f"{path} is a folder without a GPT-2 in it: it must hold config.json and "
                         f"either model.safetensors or pytorch_model.bin, or an index and parts")
    return config, *weights, *tokenizer_files(path)


def _weight_files(folder):
    """The weights of a folder: [FILE], or [index, *parts], or []. Raises ValueError."""
    for name in WEIGHTS:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return [path, *_parts(path)] if name.endswith(".index.json") else [path]
    return []


def _parts(index):
    """The files that an index of weights names, which lie beside it. Raises ValueError."""
    found = read_json(index)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} is no index of weights: fetch it again")
    ending = index.removesuffix(".index.json").rpartition(".")[2]
    folder, paths = os.path.dirname(index), []
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(rf"[\w-][\w.-]*\.{ending}", name):
            raise ValueError(f"{index} names a file that is no .{ending} beside it: fetch it again")
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise ValueError(f"{index} names {name}, which is not there: fetch it too")
        if path not in paths:
            paths.append(path)
    return paths


# ---- downloads ----------------------------------------------------------------------------------

def _download(name):
    """The folder of a published GPT-2 in torch.hub's cache; what is missing there is fetched.
    Raises ValueError."""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints", name)
    for file in DOWNLOADED:
        target = os.path.join(folder, file)
        try:
            if not os.path.exists(target):
                os.makedirs(folder, exist_ok=True)
                _fetch_once(f"{HUB}/{name}/resolve/main/{file}", target)
        except (OSError, ValueError, http.client.HTTPException) as e:
            raise ValueError(f"{name} could not be downloaded ({str(e) or type(e).__name__}); "
                             f"without a network, put {file} of {HUB}/{name} into {folder}, or "
                             f"name a folder that has the model") from e
    return folder


def _fetch_once(url, target):
    """Download a file; of several processes one does, and the others wait for it. Raises OSError,
    HTTPException, ValueError."""
    with open(f"{os.path.dirname(target)}.lock", "a") as lock:
        with contextlib.suppress(ImportError):             # Windows
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(target):
            return
        part = f"{target}.part"
        try:
            _fetch(url, part)
            os.replace(part, target)
        finally:
            if os.path.exists(part):
                os.remove(part)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the sha256 that the hub gives for a large file on the way to where it lies."""
    sha256 = None

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.sha256 = headers["X-Linked-Etag"] or self.sha256
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url, part):
    """Download a file and see that it is whole: by its hash where the hub gives one, else by its
    length and by reading it."""
    redirects, digest = _Redirects(), hashlib.sha256()
    opener = urllib.request.build_opener(redirects)
    with opener.open(url, timeout=TIMEOUT) as response, open(part, "wb") as f:
        length = response.headers["Content-Length"]
        published = response.headers["X-Linked-Etag"] or redirects.sha256
        if response.url == url:
            published = published or response.headers["ETag"]
        with tqdm(desc=url, total=int(length or 0) or None, unit="B", unit_scale=True) as bar:
            for piece in iter(lambda: response.read(PIECE), b""):
                f.write(piece)
                digest.update(piece)
                bar.update(len(piece))
        size = f.tell()
        f.flush()
        os.fsync(f.fileno())
    if length is not None and size != int(length):
        raise OSError("the connection broke")
    known = SHA256.fullmatch(published or "")
    if known and known[1] != digest.hexdigest():
        raise OSError("what came is not what was published")
    if not known:
        _check_download(part)


def _check_download(part):
    """Raise ValueError if a file is not what its name says: a page for logging in, for example."""
    folder, name = os.path.split(part.removesuffix(".part"))
    if name == "config.json":
        _read_config(part)
    elif name == "vocab.json":
        read_json(part)
    elif name == "merges.txt":
        vocab, merges, _ = read_vocab(os.path.join(folder, "vocab.json"), part)
        if any("".join(merge) not in vocab for merge in merges):
            raise ValueError("these are no merges of its vocabulary")
    else:
        _tensors(part)


# ---- in -----------------------------------------------------------------------------------------

def read_model(path):
    """A checkpoint {kind, config, weights, tokenizer, meta}: the one that these scripts wrote, or
    what a GPT-2's folder or name amounts to. The weights are finite float32; ids that the tokenizer
    has no text for are cut off. Raises ValueError."""
    files = model_files(path)
    if len(files) > 1:
        checkpoint = _read_gpt2(os.path.dirname(files[0]))
    else:
        checkpoint = read_checkpoint(path)
        checkpoint["meta"] = _checked_meta(path, checkpoint["meta"])
        checkpoint["weights"] = _plain(path, checkpoint["weights"])
    try:
        return _without_spare_rows(checkpoint)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def _checked_meta(path, meta):
    """The meta of a checkpoint; where it has no stage, "" is it. Raises ValueError if the stage is
    no name, or if a metric is not finite."""
    stage = meta.get("stage", "")
    if type(stage) is not str:
        raise ValueError(f"{path}: the stage that made it has no name: make it again")
    for name, x in meta.get("metrics", {}).items():
        # a whole number may be too large for a float, and nan lies in no range
        if not -sys.float_info.max <= x <= sys.float_info.max:
            raise ValueError(f"{path}: its metric {shown(name)} is no finite number: make it again")
    return meta | {"stage": stage}


def _without_spare_rows(checkpoint):
    """A vocabulary is often rounded up, to 50,304 say: ids that have no text are never to be
    sampled, so their rows go. Raises ValueError if the tokenizer cannot be had."""
    own, config = checkpoint["tokenizer"], checkpoint["config"]
    rows, weights = config.get("vocab_size"), checkpoint["weights"]
    large = [name for name in weights if name.endswith(A_ROW_A_TOKEN)
             and weights[name].dim() == 2 and len(weights[name]) == rows]
    is_tiktokens = own["name"] in known_names()[1:] and "ranks" not in own
    if not large or is_tiktokens and rows <= FEWEST:
        return checkpoint                                  # without asking tiktoken for its ranks
    tokens = stored_tokenizer(own).n_vocab
    if tokens < rows:
        cut = {name: weights[name][:tokens].clone() for name in large}
        checkpoint["weights"] = weights | cut
        checkpoint["config"] = config | {"vocab_size": tokens}
    return checkpoint


def _read_gpt2(folder):
    """GPT2LMHeadModel, or GPT2ForSequenceClassification with one label, -> a checkpoint."""
    config = _read_config(os.path.join(folder, "config.json"))
    weights = _read_weights(_weight_files(folder))
    kind = "gpt"
    if "score.weight" in weights:
        kind = "scorer"
        head = weights.pop("score.weight")
        weights = {f"trunk.{name}": w for name, w in weights.items()}
        weights |= {"head.weight": head, "head.bias": torch.zeros(head.shape[:1])}
    tokenizer = {"name": "gpt2", "hash": ""}               # "": not known before it is read
    if tokenizer_files(folder):
        tokenizer = tokenizer_id(get_tokenizer(folder))
    return {"kind": kind, "config": config, "weights": weights, "tokenizer": tokenizer,
            "meta": {"stage": "pretrain"}}


def _read_config(path):
    """config.json -> the fields of model.GPTConfig as a dict. Raises ValueError."""
    theirs = read_json(path)
    if not isinstance(theirs, dict) or not theirs.keys() >= set(NAMES.values()):
        raise ValueError(f"{path} is not the config of a GPT-2: it must have "
                         f"{', '.join(NAMES.values())}")
    config = {ours: theirs[name] for ours, name in NAMES.items()}
    if not sizes_fit(config):
        raise ValueError(f"{path} is not the config of a GPT-2: its sizes do not fit together")
    for key, known in KNOWN.items():
        if theirs.get(key, known[0]) not in known:
            raise ValueError(f"{path} has {key} {shown(theirs[key])}; only GPT-2's own "
                             f"{known[0]} is known here")
    return config | {"dropout": 0.0}


def sizes_fit(config):
    """Whether the sizes in a config are whole numbers from 1, and the channels those of heads."""
    sizes = {name: config[name] for name in NAMES if name in config}
    if not all(type(x) is int and x > 0 for x in sizes.values()):
        return False
    return sizes.get("n_embd", 0) % sizes.get("n_head", 1) == 0


def _read_weights(files):
    """The files of GPT-2's weights -> {our name: float32 tensor}. Raises ValueError."""
    theirs = {}
    for path in files:
        if not path.endswith(".json"):
            found = _tensors(path)
            if theirs.keys() & found.keys():
                raise ValueError(f"{path} has a weight that another part has too: fetch the model "
                                 f"again")
            theirs |= found
    weights = {}
    for name, w in _plain(files[0], theirs).items():
        name = name.removeprefix("transformer.").replace(".mlp.", ".")
        turned = MATRIX.search(name) and len(w.shape) == 2
        weights[name] = w.t().contiguous() if turned else w
    unembedding = weights.pop("lm_head.weight", None)
    if unembedding is not None and not torch.equal(unembedding, weights.get("wte.weight")):
        raise ValueError(f"{files[0]} has an unembedding of its own; GPT-2's, and the one here, is "
                         f"its embedding")
    return weights


def _tensors(path):
    """One file of a folder -> {their name: tensor}, without causal masks. Raises ValueError.

    PyTorch's format of before 2020 is refused: it can claim numbers that the file does not have,
    and memory as it was found would be weights.
    """
    try:
        if path.removesuffix(".part").endswith(".safetensors"):
            return _safetensors(path)
        with open(path, "rb") as f:
            start = f.read(len(ARCHIVE))
        if start == ARCHIVE:                               # as PyTorch tells its formats apart
            check_archive(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
            return {name: w for name, w in found.items() if not CAUSAL_MASK.search(name)}
    except Exception as e:   # a damaged file makes the readers raise almost anything
        raise ValueError(f"{path} is not a readable file of GPT-2's weights; "
                         f"fetch it again") from e
    raise ValueError(f"{path} is not a readable file of GPT-2's weights (no zip archive, as "
                     f"torch.save writes since 2020): fetch model.safetensors instead, or load and "
                     f"save it again with a recent torch")


def _safetensors(path):
    """The format: the length of a header in 8 bytes, the header as JSON, the numbers."""
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        size = os.path.getsize(path) - 8 - length
        header = json.loads(f.read(length)) if size > 0 else {}
        numbers = bytearray(size)
        f.readinto(numbers)
    found, taken = {}, 0
    for name, entry in header.items():
        if name == "__metadata__" or CAUSAL_MASK.search(name):
            continue
        (start, end), dtype = entry["data_offsets"], DTYPES[entry["dtype"]]
        taken += end - start
        if not 0 <= start < end <= size or taken > size:
            raise ValueError("it has less than its header says")
        part = torch.frombuffer(numbers, dtype=torch.uint8, count=end - start, offset=start)
        # cloned, as a number must lie at a multiple of its size
        found[name] = part.clone().view(dtype).view(entry["shape"])
    return found


def _plain(path, weights):
    """Weights of a file -> the same as float32. Raises ValueError that names the first that is
    none, that is not finite, or that has more numbers than the file.

    A view can repeat one number a billion times; two names of one tensor are fine.
    """
    plain, told, stored = {}, 0, {}
    for name, w in weights.items():
        usual = type(w) in (torch.Tensor, torch.nn.Parameter) and not w.is_nested
        usual = usual and w.layout == torch.strided and w.device.type == "cpu"
        if not usual or w.dtype not in DTYPES.values():    # some of fewer bits do not convert
            raise ValueError(f"{path}: {shown(name)} is no tensor of floating-point numbers of 16, "
                             f"32 or 64 bits")
        storage = w.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        told += w.numel() * w.element_size()
        if told > 2 * sum(stored.values()):
            raise ValueError(f"{path}: {shown(name)} claims more numbers than the file has")
        plain[name] = w.detach().float().contiguous()
        # a finite sum, which is computed sooner, has finite terms only
        if not (plain[name].sum().isfinite() or plain[name].isfinite().all()):
            raise ValueError(f"{path}: {shown(name)} holds numbers that are not finite: the model "
                             f"is broken, use an earlier one")
    return plain
