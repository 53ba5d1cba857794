"""What the tests of GPT-2's folders share: small models, small tokenizers, folders as others
publish them, and whether transformers computes the same of them."""

import base64
import functools
import json
import os
import re
from itertools import pairwise

import torch
from tiktoken import _educational
from tiny import lively

from generate import generate
from interop import get_tokenizer, load_model, read_model, tokenizer_id
from interop.tokenizers import CHARACTER, GPT2_PATTERN, stored_tokenizer
from interop.tokenizers import EOS as END
from model import GPT, GPTConfig, Scorer
from plumbing.files import read_checkpoint, save_checkpoint

TEXT = (
    "The cat sat on the mat, and the dog didn't. We'll see 12 naïve cafés: 漢字漢字 漢字! "
    "User: What is it?\n\nAssistant: It is."
)


NASTY = [
    "",
    "Hello world",
    "User: What is it?\n\nAssistant:",
    " leading, trailing   and  two  spaces ",
    "\n\n\n a\t\tb \r\n\r\nc \n",
    "I'm sure you're right, they'll say WE'VE won; it's 'tis don't 's",
    "café naïve Ångström Ñandú, and e\u0301 a\u0308 taken apart",
    "😀 👩\u200d👩\u200d👧 🇫🇷 ✌🏽",
    "漢字かな交じり文。 한국어 العربية हिन्दी",
    "1234567 3.14 ½ ² ٣",
    "\u00a0no-break\u3000ideographic\u200bzero width\ufeff",
    "\x00\x07\x7f nulls and bells",
    "¿¡«»—…™ <|endoftext <| endoftext |>",
    "x" * 60 + "=" * 60,
]


V, T, EOS = 83, 24, 82


CLASSES = {"gpt": GPT, "scorer": Scorer}


def ours(kind=GPT, vocab=V, block=T, seed=0):
    return lively(kind(GPTConfig(vocab, block, 2, 4, 16)), seed)


def rows(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert b.std() > 0.1  # there is something to compare


def write_ranks(path, ranks):
    with open(path, "wb") as f:
        f.writelines(
            base64.b64encode(token) + b" %d\n" % n
            for token, n in sorted(ranks.items(), key=lambda x: x[1])
        )
    return str(path)


@functools.cache
def learned(words):
    """The merged tokens of a small byte-pair encoding of TEXT, in the order of their merging."""
    ranks = _educational.bpe_train(TEXT * 3, 256 + words, GPT2_PATTERN, visualise=None)
    return sorted((token for token in ranks if len(token) > 1), key=ranks.get)


def small_ranks(path, words=60):
    """A file of ranks with GPT-2's order of bytes: printable ones first."""
    first = sorted(range(256), key=lambda b: not chr(b).isprintable() or b == 32)
    tokens = [bytes([b]) for b in first] + learned(words)
    return write_ranks(path, {token: n for n, token in enumerate(tokens)})


def hash_of(enc):
    """Of a tokenizer, or of what names one."""
    enc = get_tokenizer(str(enc)) if isinstance(enc, (str, os.PathLike)) else enc
    return tokenizer_id(enc)["hash"]


def saved(path, network, ranks):
    """A checkpoint with the tokenizer of a file of ranks."""
    save_checkpoint(str(path), network, tokenizer_id(get_tokenizer(str(ranks))), {"stage": "test"})
    return str(path)


def same_continuations(network, other):
    """Ours and theirs say the same to single prompts, greedily; the first of them finds a token
    that then ends the others."""
    said, eos = [], network.cfg.vocab_size - 1
    for n in range(1, 13):
        prompt = rows(1, n, seed=n)
        settings = {
            "max_new_tokens": 12,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "attention_mask": torch.ones_like(prompt),
        }
        expected = other.generate(prompt, do_sample=False, **settings)
        ids, total = generate(network, prompt, torch.tensor([n]), 12, eos, temperature=0)
        assert ids[0, : total[0]].tolist() == expected[0].tolist()
        said.append(expected[0, n:].tolist())
        eos = said[0][3]
    assert {len(x) for x in said} > {12}  # some end,
    assert len({t for x in said for t in x}) > 5  # in many ways


def loaded_by(hf, folder, kind):
    network, report = getattr(hf, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return network.eval()


def agree(hf, path, folder, seed=0):
    """A checkpoint and its folder compute the same, the one here, the other in transformers."""
    checkpoint = read_model(path)
    network, _ = load_model(path, CLASSES[checkpoint["kind"]])
    network.eval()
    ids = torch.randint(
        network.cfg.vocab_size, (4, 12), generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        if checkpoint["kind"] == "gpt":
            close(loaded_by(hf, folder, "AutoModelForCausalLM")(ids).logits, network(ids))
        else:
            other = loaded_by(hf, folder, "GPT2ForSequenceClassification")
            scores = torch.stack([other(x[None, :n]).logits[0, 0] for x in ids for n in (1, 7, 12)])
            close(scores, network(ids)[:, [0, 6, 11]].flatten())


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def theirs(hf, kind="GPT2LMHeadModel", seed=0):
    config = hf.GPT2Config(
        vocab_size=V,
        n_positions=T,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=EOS,
        eos_token_id=EOS,
        num_labels=1,
    )
    return lively(getattr(hf, kind)(config), seed)


# -------------------------------------------------------------------------------------------------
# a folder as others publish it


def publish(path, folder):
    """Write a checkpoint as GPT-2 was published: config.json, pytorch_model.bin, vocab.json and
    merges.txt. Rows that its tokenizer has no text for are published too."""
    checkpoint = read_checkpoint(str(path))
    os.makedirs(folder)
    ours, weights = checkpoint["config"], dict(checkpoint["weights"])
    if checkpoint["kind"] == "scorer":
        w, b = weights["head.weight"], weights.pop("head.bias")
        weights["trunk.ln_f.bias"] = weights["trunk.ln_f.bias"] + (b * w / (w @ w.t()))[0]
    theirs = {}
    for name, w in weights.items():
        name = name.removeprefix("trunk.").replace("head.", "score.")
        for layer in ("c_fc", "c_proj"):
            name = re.sub(rf"(h\.\d+)\.{layer}", rf"\1.mlp.{layer}", name)
        if re.search(r"c_\w+\.weight", name):
            w = w.t().contiguous()
        theirs[name if name.startswith("score") else f"transformer.{name}"] = w
    torch.save(theirs, os.path.join(folder, "pytorch_model.bin"))
    config = {"model_type": "gpt2", "vocab_size": ours["vocab_size"]}
    config |= {"n_positions": ours["block_size"], "num_labels": 1}
    config |= {name: ours[name] for name in ("n_layer", "n_head", "n_embd")}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    publish_tokenizer(stored_tokenizer(checkpoint["tokenizer"]), folder)


def publish_tokenizer(enc, folder):
    """Write vocab.json and merges.txt of a tokenizer, or of what names one. For each token of
    several bytes merges.txt has the two that it was merged from, which are found by merging the
    pair of the lowest rank until two are left."""
    enc = get_tokenizer(str(enc)) if isinstance(enc, (str, os.PathLike)) else enc
    ranks, lines = enc._mergeable_ranks, ["#version: 0.2"]

    def written(token):
        return "".join(CHARACTER[b] for b in token)

    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            i = pairs.index(min(pairs))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            lines.append(" ".join(map(written, parts)))
    vocab = {written(token): rank for token, rank in ranks.items()} | {END: len(ranks)}
    with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump(vocab, f, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
