"""Malformed files for fuzz.py: checkpoints, folders of a GPT-2, what lies beside --out, reports.

A way to spoil something takes a random.Random and what is good, and returns what is bad: bytes, or
the dictionary in a checkpoint or a JSON file. `case` draws one, and a command that reads it.
"""

import base64
import contextlib
import copy
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
import zlib
from dataclasses import asdict
from typing import NamedTuple

import torch

MARKER = "executed"  # a file of this name says that code in a checkpoint was run


# ---- the data of the small world ----------------------------------------------------------------


def write_data(folder, root):
    """Text, demonstrations and prompts in some formats, a tokenizer, and odd files."""
    import sandbox

    texts = sandbox.corpus(120, "fuzz")
    demos = [asdict(d) for d in sandbox.demonstrations(24, 0)]
    prompts = [asdict(p) for p in sandbox.prompts(12)]
    pairs = [(d["messages"][0]["content"], d["messages"][-1]["content"]) for d in demos]
    rows = [f'"{asked}","{reply}"' for asked, reply in pairs]
    judged = []
    for i, (asked, reply) in enumerate(pairs):
        verdict = {"prompt": asked, "responses": [reply, "I do not know.", "No."]}
        judged.append(verdict | {"labeler": "ABCDE"[i % 5], "ranks": [1, 2, 3]})
    rated = [{k: v for k, v in r.items() if k != "ranks"} | {"ratings": [7, 3, 1]} for r in judged]
    ranks = [bytes([b]) for b in range(256)] + [b"th", b"he", b"in", b" t", b" the"]
    lines = [f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(ranks)]
    files = {
        "text.txt": "\n".join(texts),
        "text.jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
        "demos.jsonl": "\n".join(map(json.dumps, demos)),
        "demos.csv": "\n".join(["prompt,response", *rows]),
        "comparisons.jsonl": "\n".join(map(json.dumps, judged)),
        "ratings.jsonl": "\n".join(map(json.dumps, rated)),
        "prompts.jsonl": "\n".join(map(json.dumps, prompts)),
        "small.tiktoken": "\n".join(lines),
        "latin.txt": "Gr\xfc\xdfe".encode("latin1") * 50,
        "text.txt.gz": gzip.compress("\n".join(texts).encode()),
        "empty": "",
        "noise": bytes((i * i * 7919 >> 5) % 256 for i in range(5000)),
        "deep.json": "[" * 100_000 + "]" * 100_000,
        "number.jsonl": '{"prompt": %s, "response": "a"}\n' % ("9" * 5000),
        "cr.txt": "a\rb\rc" * 50,
        "spaces.txt": " " * 100_000,
        "escapes.jsonl": '{"prompt": "\\u001b[2J\\u0000 hi", "response": "\\u001b[31m\\ud800"}\n',
    }
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        with open(os.path.join(folder, name), "wb") as f:
            f.write(content)
    os.makedirs(os.path.join(folder, "docs"))
    for name in ("docs/claims.jsonl", "docs/remarks.md", "README.md"):
        shutil.copy(os.path.join(root, name), os.path.join(folder, name))


def write_report(folder, seed):
    """The report of `make compare`, with a few figures of each of its systems."""
    import sandbox
    from evidence import seeds

    shares = dict.fromkeys(seeds.OF_SOME, 0.5) | {"prompts": 10}
    of_keys = {"use_cases": sandbox.USE_CASES, "turns": "123456"}
    groups = {name: of_keys.get(name, ("open qa", "unanswerable")) for name in seeds.GROUPS}
    figures = dict.fromkeys(seeds.FIGURES, 0.5) | {"best_of": 1, "prompts": 400, "samples": 8}
    figures |= {name: dict.fromkeys(keys, shares) for name, keys in groups.items()}
    systems = [{"name": name, **figures, "elo": seed} for name in seeds.SYSTEMS]
    os.makedirs(folder)
    files = {"report.json": {"systems": systems}, "made.json": {"config": {"seed": seed}}}
    for name, content in files.items():
        write(os.path.join(folder, name), json.dumps(content))


def interrupted(function):
    """Run a stage in a process of its own that is killed after its first save."""
    pid = os.fork()
    if pid == 0:
        replace = os.replace

        def replace_and_die(source, target, **more):
            replace(source, target, **more)
            if str(target).endswith(".part"):
                os._exit(0)

        os.replace = replace_and_die
        with contextlib.suppress(BaseException):
            function()
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a stage ended before it saved anything")


# ---- bytes --------------------------------------------------------------------------------------


def cut(rng, good):
    return good[: rng.randrange(len(good))]


def flipped(rng, good):
    bad = bytearray(good)
    for _ in range(rng.choice([1, 3, 20, 200])):
        bad[rng.randrange(len(bad))] = rng.randrange(256)
    return bytes(bad)


def zeroed(rng, good):
    start, length = rng.randrange(len(good)), rng.choice([8, 100, 5000])
    return good[:start] + bytes(len(good[start : start + length])) + good[start + length :]


def with_more(rng, good):
    """Before, or behind it."""
    more = rng.choice([b"\0" * 100, b"x", b"PK\x03\x04", good])
    return rng.choice([more + good, good + more])


def another_file(rng, good):
    class Code:
        def __reduce__(self):
            return open, (MARKER, "w")

    saved, old = io.BytesIO(), io.BytesIO()
    torch.save({"weights": Code()}, saved)
    torch.save({"kind": "gpt"}, old, _use_new_zipfile_serialization=False)
    kinds = [
        b"", b"\n", b"text " * 500, b"{}", pickle.dumps(Code(), 2), pickle.dumps(Code(), 0),
        saved.getvalue(), old.getvalue(), pickle.dumps({"kind": "gpt"}), b"\x1f\x8b" + good[:99],
        gzip.compress(good), b"\x93NUMPY\x01\x00" + good[:99], b"<html>404</html>",
    ]  # fmt: skip
    return rng.choice(kinds)


def packed_again(rng, good):
    """The files in the zip, deflated, renamed, without one, with another one or with its size."""
    how = rng.choice(["deflate", "rename", "drop", "add", "up", "twice"])
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        odd = rng.choice(names)
        for name in names:
            if how == "drop" and name == odd:
                continue
            told = name
            if how in ("rename", "up") and name == odd:
                told = f"../{name}" if how == "up" else f"{name}x"
            method = zipfile.ZIP_DEFLATED if how == "deflate" else zipfile.ZIP_STORED
            new.writestr(told, old.read(name), method)
        if how == "add":
            new.writestr("archive/data/99999", b"x" * 1000)
        if how == "twice":
            with contextlib.suppress(UserWarning):
                new.writestr(f"{names[0]}", b"")
    return out.getvalue()


def bomb(rng, good):
    """A tensor of zeros that is a thousand times as large as its file: 1.3 GB."""
    pressed = zlib.compressobj(9, zlib.DEFLATED, -15)
    size, times = 1 << 24, 80
    part = pressed.compress(bytes(size)) + pressed.flush(zlib.Z_FULL_FLUSH)
    body = part * times + pressed.flush(zlib.Z_FINISH)
    with zipfile.ZipFile(io.BytesIO(good)) as old:
        largest = max(old.infolist(), key=lambda info: info.file_size)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                if info.filename != largest.filename:
                    new.writestr(info.filename, old.read(info))
            # zipfile writes the body as it is, and then the sizes that we want to have in the list
            new.writestr(largest.filename, body)
            told = new.getinfo(largest.filename)
            told.compress_type, told.file_size = zipfile.ZIP_DEFLATED, size * times
            start = told.header_offset
    bad = bytearray(out.getvalue())
    struct.pack_into("<H", bad, start + 8, zipfile.ZIP_DEFLATED)
    struct.pack_into("<I", bad, start + 22, size * times)
    return bytes(bad)


BYTES = [cut, flipped, zeroed, with_more, another_file, packed_again]


# ---- dictionaries -------------------------------------------------------------------------------

VALUES = [
    None, [], {}, "", "x", 0, -1, 1, 2**31, 2**70, 1.5, -1e39, float("nan"), float("inf"), True,
    [1, 2], {"a": 1}, "../../x", "\x1b[2J", "n" * 5000, "\ud800", ["x"] * 5,
]  # fmt: skip


def nested(depth):
    x = []
    for _ in range(depth):
        x = [x]
    return x


def spoil(rng, tree, values):
    """A copy of dicts and lists in which one place is replaced, removed, added or renamed."""
    tree = copy.deepcopy(tree)
    inside = tree
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = rng.choice(keys)
        below = inside[key]
        if not (isinstance(below, dict | list) and below) or rng.random() < 0.35:
            break
        inside = below
    how = rng.random()
    if how < 0.7:
        inside[key] = rng.choice(values)
    elif how < 0.85:
        del inside[key]
    elif isinstance(inside, dict):
        inside[rng.choice(["x", "", "h.0.attn.bias", "version", f"{key}.x"])] = below
        if rng.random() < 0.5:
            del inside[key]
    else:
        inside.append(below)
    return tree


def quantized(w):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)


TENSORS = [
    lambda w: torch.full_like(w, float("nan")),
    lambda w: torch.full_like(w, float("inf")),
    lambda w: torch.where(torch.arange(w.numel()).view(w.shape) == 0, float("nan"), w),
    lambda w: torch.zeros(1).expand(w.shape),  # one number in the file
    lambda w: torch.zeros(1).expand(100_000, 100_000),
    lambda w: torch.zeros(1).expand(2 * 10**7, *w.shape[1:]),
    lambda w: w.int(),
    lambda w: w.half(),
    lambda w: w.double() * 1e300,
    lambda w: w.to(torch.complex64),
    lambda w: w.bool(),
    lambda w: w.t() if w.dim() == 2 else w[None],
    lambda w: w.flatten()[:-1],
    lambda w: w[:0],
    lambda w: torch.tensor(1.0),
    lambda w: w.to_sparse(),
    lambda w: torch.nn.Parameter(w),
    lambda w: torch.zeros(w.shape, device="meta"),
    lambda w: w * 1e30,
    quantized,
]


def spoiled_tensor(rng, saved):
    bad = copy.deepcopy(saved)
    weights = bad["weights"]
    name = rng.choice(list(weights))
    weights[name] = rng.choice(TENSORS)(weights[name].detach())
    return bad


def spoiled_config(rng, saved):
    """Sizes that are none, do not fit, or ask for all memory there is."""
    bad = copy.deepcopy(saved)
    sizes = [-1, 0, 1, 3, 2 * 10**7, 10**8, 10**9, 2**31, 2**70, "16", 1.5,
             float("nan"), None, True]
    for name in rng.sample(list(bad["config"]), rng.choice([1, 1, 2])):
        bad["config"][name] = rng.choice(sizes)
    return bad


def spoiled_tokenizer(rng, saved):
    known = saved["tokenizer"]
    tokenizers = [
        None, "sandbox", {}, [], {"name": "sandbox"}, {"hash": known["hash"]}, known | {"name": 3},
        known | {"name": None}, known | {"hash": None}, known | {"hash": ""}, known | {"name": ""},
        known | {"name": "in"}, known | {"name": "/etc"}, known | {"name": "../x"},
        known | {"name": "in/small.tiktoken", "hash": ""}, known | {"name": "/etc/passwd"},
        known | {"name": "in/secret"}, known | {"name": "in/pipe.tiktoken"}, known | {"name": "x"},
        known | {"name": "\x1b[2J"}, known | {"name": "in/loop"}, known | {"name": "\0"},
        known | {"name": "n" * 5000}, known | {"name": "in/hf", "hash": ""},
    ]  # fmt: skip
    return copy.deepcopy(saved) | {"tokenizer": rng.choice(tokenizers)}


def spoiled_meta(rng, saved):
    bad, meta = copy.deepcopy(saved), saved["meta"]
    metas = [
        None, [], "", {}, {"stage": None}, {"stage": "x"}, {"stage": ["sft"]}, meta | {"stage": 1},
        meta | {"metrics": None}, meta | {"config": None}, meta | {"inputs": None},
        meta | {"metrics": {"loss": float("nan")}}, meta | {"config": nested(3000)},
        meta | {"stage": nested(3000)}, meta | {"inputs": {"data": 1}}, meta | {"version": 99},
    ]  # fmt: skip
    return bad | {"meta": rng.choice(metas)}


def spoiled_kind(rng, saved):
    kinds = ["gpt", "scorer", None, [], {}, 1, "x", ("gpt",), b"gpt", "\x1b[2J"]
    return copy.deepcopy(saved) | {"kind": rng.choice(kinds)}


def spoiled_anywhere(rng, saved):
    """Also no dictionary at all."""
    if rng.random() < 0.1:
        return rng.choice([saved["weights"], [saved], 1, None, torch.zeros(3), nested(3000)])
    return spoil(rng, saved, [*VALUES, torch.tensor(1.0), torch.zeros(0), b"x", ("a",)])


DICTIONARIES = [spoiled_anywhere, spoiled_anywhere, spoiled_tensor, spoiled_tensor, spoiled_config,
                spoiled_tokenizer, spoiled_meta, spoiled_kind]  # fmt: skip


def saved_bytes(x):
    """What torch.save writes; deep nesting needs a deep stack."""
    out, limit = io.BytesIO(), sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        torch.save(x, out)
    finally:
        sys.setrecursionlimit(limit)
    return out.getvalue()


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, content):
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    with open(path, "wb") as f:
        f.write(content)


def spoiled_checkpoint(rng, path):
    """-> (bytes, how): a bad version of a good checkpoint."""
    how = rng.choice([*BYTES, *DICTIONARIES, *DICTIONARIES])
    if how in BYTES:
        return how(rng, read(path)), how.__name__
    saved = torch.load(path, weights_only=True)
    return saved_bytes(how(rng, saved)), how.__name__


# ---- folders of a GPT-2 -------------------------------------------------------------------------

JSONS = [
    "", "{", "[]", "null", "3", '"x"', "NaN", "{}", "[" * 50_000, '{"n_layer": %s}' % ("9" * 5000),
    b"\xff\xfe{}", '{"a":' * 2000 + "1" + "}" * 2000, "{} {}", '{"a": 1, "a": 2}',
]  # fmt: skip


def spoiled_json(rng, text):
    """-> text or bytes. Sizes too, of which a model is built."""
    dice = rng.random()
    if dice < 0.25:
        return rng.choice(JSONS)
    if dice < 0.35:
        return flipped(rng, text.encode())
    values = [x for x in VALUES if x != "\ud800"] + [2 * 10**7, 10**8, 10**9, nested(500)]
    return json.dumps(spoil(rng, json.loads(text), values))


def safetensors(tensors, spoil_header=None):
    """The bytes of a .safetensors file: the length of a JSON header, the header, the numbers."""
    header, body = {}, b""
    for name, w in tensors.items():
        data = w.contiguous().float().numpy().tobytes()
        ends = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(w.shape), "data_offsets": ends}
        body += data
    if spoil_header:
        header = spoil_header(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def spoil_weights(rng, folder):
    """Put other weights into the folder of a GPT-2, of any format that is read there."""
    path = os.path.join(folder, "pytorch_model.bin")
    if not os.path.exists(path):
        path = os.path.join(folder, "model.safetensors")
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, weights_only=True)
    os.remove(path)
    how = rng.choice(["pickle", "pickle", "header", "bytes", "shards", "shards"])
    if how == "pickle":
        bad = saved_bytes(spoiled_tensor(rng, {"weights": weights})["weights"])
        if rng.random() < 0.3:
            bad = rng.choice(BYTES)(rng, saved_bytes(weights))
        write(os.path.join(folder, "pytorch_model.bin"), bad)
    elif how == "header":
        sizes = [*VALUES, 2**63, 2**64, [10**5, 10**5], [0, 2**40], "F64", "I8", "X", [-1, 4]]
        sizes = [x for x in sizes if x != "\ud800"]
        bad = safetensors(weights, lambda header: spoil(rng, header, sizes))
        write(os.path.join(folder, "model.safetensors"), bad)
    elif how == "bytes":
        good = safetensors(weights)
        length = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63]))
        bad = rng.choice([cut(rng, good), flipped(rng, good), length + good[8:], b""])
        write(os.path.join(folder, "model.safetensors"), bad)
    else:
        shards(rng, folder, weights)
    return how


def shards(rng, folder, weights):
    """Two files and an index, which names what it should not."""
    names = sorted(weights)
    files = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for k, file in enumerate(files):
        write(os.path.join(folder, file), safetensors({n: weights[n] for n in names[k::2]}))
    index = {"metadata": {}, "weight_map": {n: files[i % 2] for i, n in enumerate(names)}}
    odd = ["../in/sft.pt", "/etc/passwd", "..", "", None, 3, "missing.safetensors", "x\0y",
           "../../x.safetensors", ".", [files[0]], "n" * 5000, files[0]]  # fmt: skip
    text = json.dumps(index)
    if rng.random() < 0.7:
        for name in rng.sample(names, rng.choice([1, len(names)])):
            index["weight_map"][name] = odd[rng.randrange(len(odd))]
        text = json.dumps(index)
    else:
        text = spoiled_json(rng, text)
    write(os.path.join(folder, "model.safetensors.index.json"), text)


def spoil_folder(rng, folder):
    """Spoil one thing in the folder of a GPT-2 -> what."""
    found = sorted(os.listdir(folder))
    jsons = [name for name in found if name.endswith(".json") and name != "made.json"]
    how = rng.choice(["config", "config", "json", "weights", "weights", "file", "merges"])
    if how == "weights":
        return spoil_weights(rng, folder)
    if how == "file":
        path = os.path.join(folder, rng.choice(found))
        os.remove(path)
        what = rng.choice(["gone", "folder", "link", "link out", "empty"])
        if what == "folder":
            os.makedirs(path)
        elif what == "link":
            os.symlink(os.path.basename(path), path)
        elif what == "link out":
            os.symlink("/etc/passwd", path)
        elif what == "empty":
            write(path, b"")
        return f"{os.path.basename(path)}: {what}"
    name = {"config": "config.json", "merges": "merges.txt"}.get(how) or rng.choice(jsons)
    path = os.path.join(folder, name)
    if name not in found:
        name, path = "config.json", os.path.join(folder, "config.json")
    text = read(path).decode()
    if name == "merges.txt":
        lines = text.split("\n")
        lines[rng.randrange(len(lines))] = rng.choice(["", "a", "a b c", "\xff \xff", "\0 \0", "é"])
        write(path, rng.choice(["\n".join(lines), flipped(rng, text.encode()), "", "x" * 10**6]))
    else:
        write(path, spoiled_json(rng, text))
    return name


# ---- the cases ----------------------------------------------------------------------------------


class Malformed(NamedTuple):
    command: str
    flags: list  # after the command's own, which they override
    bare: list  # instead of the command's own, [] for these
    make: object  # make(work) writes the malformed file into a folder -> how it is malformed
    about: str


READERS = {  # who reads a checkpoint of a kind, or a folder of a GPT-2
    "gpt": [
        ("sample", "", "bad"), ("sample", "", "bad"), ("sft", "--init bad", ""),
        ("reward", "--init bad", ""), ("ppo", "--init bad", ""), ("label", "--init bad", ""),
        ("evaluate", "", "bad"), ("evaluate", "", "in/sft.pt bad"), ("export", "", "bad new"),
    ],
    "scorer": [
        ("ppo", "--rm bad", ""), ("ppo", "--rm bad", ""), ("sample", "--rm bad", ""),
        ("evaluate", "--rm bad", ""), ("sft", "--rm bad --select rm", ""),
        ("export", "", "bad new"),
    ],
    "folder": [
        ("sample", "", "bad"), ("sample", "", "bad"), ("export", "", "bad new"),
        ("sft", "--init bad --ptx-mix 0", ""), ("evaluate", "--text in/text.txt", "bad"),
    ],
}  # fmt: skip


def checkpoint_case(rng, world):
    """A command that reads a bad checkpoint."""
    kind = rng.choice(["gpt", "gpt", "scorer"])
    command, flags, bare = rng.choice(READERS[kind])
    good, state = os.path.join(world, "sft.pt" if kind == "gpt" else "rm.pt"), rng.getstate()

    def make(work):
        rng.setstate(state)
        if rng.random() < 0.05:
            content, about = bomb(rng, read(good)), "bomb"
        else:
            content, about = spoiled_checkpoint(rng, good)
        write(os.path.join(work, "bad"), content)
        return about

    return Malformed(command, flags.split(), bare.split(), make, f"bad is a {kind}")


def folder_case(rng, world):
    """A command that reads a bad folder of a GPT-2."""
    command, flags, bare = rng.choice(READERS["folder"])
    state = rng.getstate()

    def make(work):
        rng.setstate(state)
        folder = os.path.join(work, "bad")
        shutil.copytree(os.path.join(world, "hf"), folder)
        return spoil_folder(rng, folder)

    return Malformed(command, flags.split(), bare.split(), make, "bad is a folder of a GPT-2")


def beside_case(rng, world):
    """A stage beside whose --out something lies: an unfinished run, a log, a lock, a result."""
    command = rng.choice(["pretrain", "ppo"])
    good = {name: os.path.join(world, f"{command}.{name}")
            for name in ("new.pt.part", "new.pt.log.jsonl")}  # fmt: skip
    about = rng.choice(["part", "part", "part", "log", "log", "both", "lock", "result", "other"])
    state = rng.getstate()

    def make(work):
        rng.setstate(state)
        path = {name: os.path.join(work, name) for name in good}
        part, log = read(good["new.pt.part"]), read(good["new.pt.log.jsonl"])
        if about in ("part", "both"):
            saved = torch.load(good["new.pt.part"], weights_only=True)
            how = rng.choice([*BYTES, spoil_resume, spoil_resume, spoiled_tensor, spoiled_meta])
            part = how(rng, part) if how in BYTES else saved_bytes(how(rng, saved))
        if about in ("log", "both"):
            log = rng.choice([flipped(rng, log), cut(rng, log), b"", b"text\n", b"[]\n", b"NaN\n",
                              b"\xff\n", log * 2, b'{"step": "x"}\n', b"[" * 50_000])  # fmt: skip
        if about == "other":
            part = read(os.path.join(world, "sft.pt"))
        write(path["new.pt.part"], part)
        write(path["new.pt.log.jsonl"], log)
        odd = rng.choice(list(path.values()))
        if about == "lock":
            odd = os.path.join(work, "new.pt.lock")
        if about == "result":
            odd = os.path.join(work, "new.pt")
        if about in ("lock", "result") or rng.random() < 0.2:
            put_odd(rng, odd)

    return Malformed(command, [], [], make, f"beside new.pt lies a bad {about}")


def put_odd(rng, path):
    """A folder, a link, or a foreign file."""
    if os.path.exists(path):
        os.remove(path)
    how = rng.choice(["folder", "link", "loop", "text", "empty"])
    if how == "folder":
        os.makedirs(path)
    elif how in ("link", "loop"):
        target = "in/sft.pt" if how == "link" else os.path.basename(path)
        os.symlink(target, path)
    else:
        write(path, "mine\n" if how == "text" else "")


def spoil_resume(rng, saved):
    """What an unfinished run remembers."""
    bad = copy.deepcopy(saved)
    keys = [key for key in bad if key not in ("kind", "config", "tokenizer", "meta", "weights")]
    inner = {key: bad[key] for key in keys}
    return bad | spoil(rng, inner, [*VALUES, torch.tensor(1.0), torch.zeros(3)])


def report_case(rng, world):
    """evidence.claims, evidence.seeds, evidence.report or evaluate.py --seeds with bad figures."""
    state, command = rng.getstate(), rng.choice(["claims", "seeds", "report", "means"])
    if command == "claims":

        def make(work):
            rng.setstate(state)
            path = os.path.join(work, "docs", "claims.jsonl")
            # before anything is measured there is none
            lines = read(path).decode().splitlines() or ["{}"]
            for k in rng.sample(range(len(lines)), min(len(lines), rng.choice([1, 5]))):
                bad = spoiled_json(rng, lines[k])
                lines[k] = bad.decode("latin1") if isinstance(bad, bytes) else bad
            write(path, "\n".join(lines))

        return Malformed("claims", [], [], make, "docs/claims.jsonl has bad lines")

    good = os.path.join(world, "seed2" if command == "seeds" else "report1")

    def make(work):
        rng.setstate(state)
        folder = os.path.join(work, "bad")
        os.makedirs(folder)
        for name in ("report.json", "made.json"):
            shutil.copy(os.path.join(good, name), folder)
        # made.json has the seed
        name = "made.json" if command == "seeds" and rng.random() < 0.2 else "report.json"
        text = read(os.path.join(good, name)).decode()
        write(os.path.join(folder, name), spoiled_json(rng, text))
        return name

    flags = ["--seeds", "in/report/report.json", "bad/report.json"] if command == "means" else []
    bare = {"seeds": ["in/seed1/report.json", "bad/report.json"], "report": ["bad"]}
    return Malformed(command, flags, bare.get(command, []), make, "in bad/ is a bad file")


def case(rng, n, world):
    """Case number n. world: the folder with good files."""
    if n % 10 < 6:
        return checkpoint_case(rng, world)
    if n % 10 < 8:
        return folder_case(rng, world)
    return beside_case(rng, world) if n % 10 == 8 or n % 20 < 10 else report_case(rng, world)
