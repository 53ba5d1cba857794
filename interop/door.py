"""The door: what a stage trains on comes in here, from files or from the sandbox, and models too.

No stage knows the sandbox. It names its files; where there are none, it gets the sandbox's own:

    load("demonstrations", ("dolly.jsonl",), counts, flag="--data")
    load("demonstrations", (), counts, flag="--data", enc=enc, n=400, seed=0)

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import math
import typing

import torch

import sandbox
from data import cut_blocks, decode_response
from interop import records
from interop.formats import read_records
from interop.gpt2 import read_model, sizes_fit
from interop.rows import shown
from interop.texts import pack, read_tokens
from plumbing.inputs import files_in

READERS = {
    "demonstrations": records.demonstrations,
    "prompts": records.prompts,
    "held-out prompts": records.prompts,
    "rankings": records.rankings,
    "tasks": records.tasks,
}
OWN = {   # what the sandbox has of its own: functions of (n, seed)
    "texts": sandbox.corpus,
    "demonstrations": sandbox.demonstrations,
    "prompts": sandbox.prompts,
    "held-out prompts": sandbox.eval_prompts,
    "dialogues": sandbox.dialogue_prompts,
    "untouched": sandbox.untouched_prompts,
}
HELD_OUT_DOCUMENTS = 2000     # of the sandbox
MADE = {   # the kinds of checkpoints, as messages call them
    "gpt": "a language model (from pretrain.py, sft.py or ppo.py)",
    "scorer": "a reward model (from reward.py)",
}


# ---- records ------------------------------------------------------------------------------------

def load(kind, files, counts, *, flag, enc=None, columns="", n=0, seed=0, strict=False):
    """The records of `files`; if there are none, n of the sandbox's own of that seed. -> a list

    kind      "demonstrations", "prompts", "held-out prompts" (of the sandbox those that no stage
              trains on), "rankings" and "tasks" (the sandbox has none of its own); only the
              sandbox has "texts", "dialogues", held-out prompts of one to six turns, and
              "untouched", questions about what no stage was asked
    files     names of files, folders and pipes
    counts    a Counter of what is read and what is skipped
    flag      what the user would name the files with, e.g. "--data"
    enc       the model's tokenizer: to a model with another one the sandbox's own are refused
    columns   "prompt=question,response=answer" gives fields the names that are known
    strict    a bad record is an error; else it is skipped, counted and shown

    Raises ValueError.
    """
    if files:
        reader, found = READERS[kind], read_records(files_in(files), counts, columns)
        if reader is records.prompts:
            found = _with_checked_keys(found)
        return reader(found, counts, strict)
    if columns:
        raise ValueError(f"--columns {columns} names fields of files: pass them with {flag}")
    if kind not in OWN:
        raise ValueError(f"{flag} is missing: the sandbox has no {kind} of its own")
    if enc is not None and not _is_sandbox(enc):
        raise ValueError(f"{flag} is missing: the sandbox's own {kind} are for models that were "
                         f"pretrained in it")
    return OWN[kind](n, seed)


def _with_checked_keys(found):
    """The records; a "meta" among them must be an answer key that the sandbox's judge can read."""
    for where, r in found:
        try:
            if isinstance(r, dict):
                sandbox.check_answer_key(r.get("meta"), where)
        except ValueError as e:
            r = e
        yield where, r


def _is_sandbox(enc):
    return enc.name == "sandbox"


def load_text(files, counts, enc, block, *, flag, n, seed, strict=False, wanted=True, whole=False):
    """Text to mix in: that of `files` but for what load_corpus holds out, unless `whole`, or n of
    the sandbox's own documents of that seed -> (N, block) tokens; N is 0 unless `wanted`.

    block: tokens, at most the model's context. Raises ValueError if there is no whole block.
    """
    if not wanted:
        return torch.empty(0, block, dtype=torch.long)
    if files:
        tokens, start = read_tokens(files_in(files), enc, counts, strict=strict)
        tokens = tokens if whole else tokens[:start]
    else:
        tokens = pack(load("texts", (), counts, flag=flag, enc=enc, n=n, seed=seed), enc)
    if len(tokens) < block:
        raise ValueError(f"{' '.join(files) or 'the text'} has {len(tokens):,} tokens, too few "
                         f"for a block of {block}: add text")
    return cut_blocks(tokens, block)


def load_corpus(files, counts, enc, block, *, n, seed, columns="", separator="", strict=False):
    """(tokens, held_out): what a model is pretrained on, two long tensors of tokens.

    Of files about 2 % are held out, in documents or parts of long ones, drawn by their hash; the
    sandbox writes documents for it. Raises ValueError if one of the two has no whole block.
    """
    if files:
        tokens, start = read_tokens(files_in(files), enc, counts, columns, separator, strict)
        tokens, held_out = tokens[:start], tokens[start:]
    else:
        if separator:
            raise ValueError("--separator parts plain text: pass it with --data")
        docs = load("texts", (), counts, flag="--data", columns=columns, n=n, seed=seed)
        tokens = pack(docs, enc)
        held_out = pack(sandbox.corpus(HELD_OUT_DOCUMENTS, "held out"), enc)
    if min(len(tokens), len(held_out)) < block:
        raise ValueError(f"{' '.join(files) or 'the corpus'} has {len(tokens):,} tokens to train "
                         f"on and {len(held_out):,} held out, too few for a block of {block}: "
                         f"add text or lower --block")
    return tokens, held_out


def hold_out_labelers(rankings, named, enc):
    """(in_group, outsiders): outsiders are the rankings by the labelers `named` ([IG] 4.1).

    If none are named, it is sandbox.HELD_OUT_LABELER for the sandbox's rankings: those with its
    tokenizer, all by its labelers. Of anyone else's nothing is held out unasked. Raises ValueError.
    """
    labelers = {r.labeler for r in rankings}
    for name in named:
        if name not in labelers:
            raise ValueError(f"--held-out-labelers {name}: no ranking is by them; the labelers are "
                             f"{', '.join(shown(x) for x in sorted(labelers)[:10])}")
    of_sandbox = _is_sandbox(enc) and all(r.labeler in sandbox.LABELERS for r in rankings)
    if of_sandbox and not named:
        named = (sandbox.HELD_OUT_LABELER,)
    in_group = [r for r in rankings if r.labeler not in named]
    outsiders = [r for r in rankings if r.labeler in named]
    return in_group, outsiders


def true_score(prompts, responses, enc):
    """The sandbox's judge on a response, a list of ids, to each prompt -> {"true_score": mean}.

    {} if a prompt has no answer key to judge by.
    """
    if not all(p.meta for p in prompts):
        return {}
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        scores.append(sandbox.judge(prompt, decode_response(enc, response)).score)
    return {"true_score": sum(scores) / len(scores)}


# ---- models -------------------------------------------------------------------------------------

def load_model(path, cls, tokenizer=None, device="cpu", dropout=0.0, context=0):
    """Load a checkpoint, a GPT-2's folder or a published GPT-2 -> (model, checkpoint), the latter
    without the weights.

    cls         model.GPT or model.Scorer: it declares its kind and its config_class
    tokenizer   {name, hash} of another model, which must be this one's too
    context     the fewest tokens that it must be able to read

    Raises ValueError if the file is of another kind or does not suit.
    """
    checkpoint = read_model(path)
    kind, config, own = checkpoint["kind"], checkpoint["config"], checkpoint["tokenizer"]
    if kind != cls.kind:
        needed = MADE.get(cls.kind, cls.kind)
        raise ValueError(f"{path} is {MADE.get(kind, shown(kind))}; here {needed} is needed")
    hashes = {own["hash"], tokenizer["hash"] if tokenizer else ""}
    if len(hashes) == 2 and "" not in hashes:              # "": a hash that is not known yet
        raise ValueError(f"{path} was trained with the tokenizer {shown(own['name'])}, the other "
                         f"model with {shown(tokenizer['name'])}: both must share one tokenizer, "
                         f"so train one of them again")
    weights = checkpoint.pop("weights")
    wrong = _wrong_config(cls.config_class, config, weights) or _wrong_weights(cls, config, weights)
    if wrong:
        raise ValueError(f"{path} holds weights that do not fit its own config: {wrong}")
    if config.get("block_size", context) < context:
        raise ValueError(f"{path} reads {config['block_size']} tokens, the other model up to "
                         f"{context}: use models with one context")
    model = cls(cls.config_class(**{**config, "dropout": dropout}))
    model.load_state_dict(weights)
    return model.to(device), checkpoint


def _wrong_config(config_class, config, weights):
    """What keeps a config from being one of these weights, or "". A few bytes can claim a billion
    layers: nothing is built before the claims are compared with what the file holds."""
    types = typing.get_type_hints(config_class)
    for name in [*config, *types]:
        if name not in types:
            return f"there is no {shown(name)} in a {config_class.__name__}"
        if name not in config:
            return f"it has no {name}"
    numbers = sum(w.numel() for w in weights.values())
    for name, value in config.items():
        whole = type(value) is int
        number = whole or type(value) is float and math.isfinite(value)
        fits = {int: whole, float: number, str: type(value) is str, bool: type(value) is bool}
        if not fits.get(types[name], True):
            return f"its {name} is no {types[name].__name__}"
        if whole and not 0 <= value <= numbers:
            return f"its {name} is {str(value)[:20]}, and the weights have {numbers:,} numbers"
    return "" if sizes_fit(config) else "its sizes do not fit together"


class _Undrawn(torch.overrides.TorchFunctionMode):
    """Draws no numbers for a model of shapes, for which PyTorch would load its compiler, two
    seconds long."""
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _shapes(cls, config):
    """{name: tensor without numbers} of a model of this config."""
    with torch.device("meta"), _Undrawn():
        return cls(cls.config_class(**config)).state_dict()


def _wrong_weights(cls, config, weights):
    """The first of the weights that a model of this config has not, or has in another shape, or
    "". The model that is built to see it is one of shapes, without memory."""
    try:
        layers, names = config.get("n_layer", 0), len(weights)
        if layers > 2:      # modules take memory too: are there weights for most of the layers?
            one, two = (len(_shapes(cls, config | {"n_layer": n})) for n in (1, 2))
            if layers * (two - one) > names + 100:
                return f"its n_layer is {layers:,}, and there are {names:,} weights"
        expected = _shapes(cls, config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as e:
        return f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"
    for name, x in expected.items():
        if name not in weights:
            return f"it has no {name}"
        if x.shape != weights[name].shape:
            return f"{name} is {tuple(weights[name].shape)}, and should be {tuple(x.shape)}"
    more = weights.keys() - expected.keys()
    return f"{shown(min(more))} is none of a {cls.__name__}'s weights" if more else ""
