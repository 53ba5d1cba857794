"""interop/door.py: files or the sandbox's own, what is held out, checkpoints."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch

import interop
import sandbox
from data import Demonstration, Prompt, Ranking, encode_response
from interop import (
    get_tokenizer,
    hold_out_labelers,
    load,
    load_corpus,
    load_model,
    load_text,
    tokenizer_id,
    tokenizer_of,
    true_score,
)
from model import GPT, GPTConfig, Scorer, scorer_from
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

ASKED = [{"role": "user", "content": "Hi."}]
RECORDS = {
    "demonstrations": {"prompt": "Hi.", "response": "Ho."},
    "prompts": {"prompt": "Hi.", "meta": {"answers": ["Ho."]}},
    "held-out prompts": {"prompt": "Hi.", "meta": {"answers": ["Ho."]}},
    "rankings": {"prompt": "Hi.", "responses": ["a", "b"], "ranks": [1, 2]},
    "tasks": {"prompt": "Hi.", "responses": ["a", "b"]},
}
FOUND = {
    "demonstrations": Demonstration([*ASKED, {"role": "assistant", "content": "Ho."}]),
    "prompts": Prompt(ASKED, meta={"answers": ["Ho."]}),
    "held-out prompts": Prompt(ASKED, meta={"answers": ["Ho."]}),
    "rankings": Ranking(ASKED, ["a", "b"], [(0, 1)]),
    "tasks": {"prompt": ASKED, "responses": ["a", "b"]},
}
OWN = {
    "demonstrations": sandbox.demonstrations,
    "prompts": sandbox.prompts,
    "held-out prompts": sandbox.eval_prompts,
    "texts": sandbox.corpus,
    "dialogues": sandbox.dialogue_prompts,
    "untouched": sandbox.untouched_prompts,
}


@pytest.fixture
def put(tmp_path):
    """Write records into a file -> its path."""

    def put(*records, name="x.jsonl"):
        write_jsonl(str(tmp_path / name), records)
        return str(tmp_path / name)

    return put


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another tokenizer than the sandbox's, of the same ranks."""
    path = tmp_path_factory.mktemp("ranks") / "other.tiktoken"
    with open(sandbox.RANKS, "rb") as f:
        path.write_bytes(f.read())
    return get_tokenizer(str(path))


# ------------------------------------------------------------------------------------------------
# records


@pytest.mark.parametrize("kind", RECORDS)
def test_records_come_from_files_if_there_are_any(put, other, kind):
    """Whatever the tokenizer is."""
    counts = Counter()
    found = load(kind, (put(RECORDS[kind]),), counts, flag="--data", enc=other, n=5)
    assert found == [FOUND[kind]] and any(what.startswith("read as") for what in counts)


@pytest.mark.parametrize("kind", OWN)
def test_without_files_they_are_the_sandboxs_own(enc, other, kind):
    """n of them of that seed; not for a model with another tokenizer."""
    counts = Counter()
    for suits in (enc, None):
        assert load(kind, (), counts, flag="--x", enc=suits, n=7, seed=3) == OWN[kind](7, 3)
    assert not counts
    says = f"--x is missing: the sandbox's own {kind} are for models that were pretrained in it"
    with pytest.raises(ValueError, match=says):
        load(kind, (), counts, flag="--x", enc=other, n=7, seed=3)


@pytest.mark.parametrize("kind", ["dialogues", "untouched"])
def test_what_only_the_sandbox_has_can_be_judged(enc, kind):
    """Each has an answer key that the judge reads."""
    found = load(kind, (), Counter(), flag="--prompts", enc=enc, n=30, seed=1)
    assert all(sandbox.judge(p, p.meta["answers"][0]).score == 2 for p in found)


def test_the_sandbox_has_no_rankings(enc):
    with pytest.raises(ValueError, match="--data is missing: the sandbox has no rankings"):
        load("rankings", (), Counter(), flag="--data", enc=enc)


def test_columns_and_folders(put, tmp_path):
    renamed = put({"q": "Hi.", "a": "Ho."})
    columns = "prompt=q,response=a"
    found = load("demonstrations", (renamed,), Counter(), flag="--data", columns=columns)
    assert found == [FOUND["demonstrations"]]
    (tmp_path / "more" / "deep").mkdir(parents=True)
    put({"q": "Hi.", "a": "Ho."}, name="more/z")
    put({"q": "Hi.", "a": "Ho."}, name="more/deep/y")
    found = load("demonstrations", (str(tmp_path / "more"),), Counter(), flag="--data",
                 columns=columns)
    assert found == [FOUND["demonstrations"]] * 2


@pytest.mark.parametrize("meta", [{"answers": []}, {"source": "x"}, ["x"], "x"])
def test_an_answer_key_is_one_that_the_judge_can_read(put, meta):
    """Of prompts; other records may have any meta."""
    path = put(RECORDS["prompts"], {"prompt": "Hi.", "response": "Ho.", "meta": meta})
    with pytest.raises(ValueError, match='x.jsonl, line 2: "meta" is for the answer key'):
        load("prompts", (path,), Counter(), flag="--prompts", strict=True)
    assert len(load("prompts", (path,), Counter(), flag="--prompts")) == 1
    path = put({"prompt": "Hi.", "response": "Ho.", "meta": meta})
    assert load("demonstrations", (path,), Counter(), flag="--x") == [FOUND["demonstrations"]]


# ------------------------------------------------------------------------------------------------
# text


def test_blocks_of_text(put, enc, other):
    """The sandbox's and a file's, of any length; none where they are not wanted."""
    keywords = {"flag": "--ptx", "n": 50, "seed": "ptx 0"}
    own = load_text((), Counter(), enc, 128, **keywords)
    assert own.shape[1] == 128
    assert load_text((), Counter(), enc, 16, **keywords).shape[1] == 16
    assert load_text((), Counter(), enc, 16, wanted=False, **keywords).shape == (0, 16)
    document = enc.decode(own[:4].flatten().tolist()).partition("<|endoftext|>")[0]
    assert document == sandbox.corpus(50, "ptx 0")[0]
    path = put({"text": "Ho. " * 100})
    blocks = load_text((path,), Counter(), other, 128, **keywords)
    assert blocks.shape[1] == 128 and other.decode(blocks[0].tolist()).startswith("Ho. Ho.")
    with pytest.raises(ValueError, match="--ptx is missing: the sandbox's own texts are for"):
        load_text((), Counter(), other, 128, **keywords)
    with pytest.raises(ValueError, match=r"x.jsonl has \d+ tokens, too few for a block of 4096"):
        load_text((path,), Counter(), enc, 4096, **keywords)


def test_the_corpus_of_pretraining(put, enc, other):
    """Of files documents are held out, of the sandbox others; any tokenizer may read its corpus."""
    docs = [f"Ho {n}." for n in range(100)]
    path = put(*({"text": text} for text in docs))
    parts = load_corpus((path,), Counter(), enc, 4, n=0, seed=0)
    trained, held_out = (enc.decode(x.tolist()).split("<|endoftext|>")[:-1] for x in parts)
    assert sorted(trained + held_out) == sorted(docs) and len(held_out) in (2, 3)
    assert trained == [text for text in docs if text not in held_out]
    for tokenizer in (enc, other):
        tokens, held_out = load_corpus((), Counter(), tokenizer, 64, n=20, seed=1)
        shown = tokenizer.decode(tokens.tolist()).split("<|endoftext|>")
        assert shown == [*sandbox.corpus(20, 1), ""]
        assert tokenizer.decode(held_out.tolist()).startswith(sandbox.corpus(2000, "held out")[0])
    with pytest.raises(ValueError, match="the corpus has .* held out, too few for a block of 9999"):
        load_corpus((), Counter(), enc, 9999, n=20, seed=1)


# ------------------------------------------------------------------------------------------------
# labelers and the judge


def ranked_by(*labelers):
    return [Ranking(ASKED, ["a", "b"], [(0, 1)], labeler) for labeler in labelers]


def test_labelers_who_are_named_are_held_out(enc, other):
    rankings = ranked_by("Ann", "Bob", "Ann", "labeler 5")
    for tokenizer in (enc, other):
        in_group, outsiders = hold_out_labelers(rankings, ("Ann",), tokenizer)
        assert in_group == [rankings[1], rankings[3]] and outsiders == [rankings[0], rankings[2]]


def test_of_the_sandboxs_rankings_one_labeler_is_held_out_unasked(enc):
    rankings = ranked_by(*sandbox.LABELERS)
    in_group, outsiders = hold_out_labelers(rankings, (), enc)
    assert [r.labeler for r in outsiders] == [sandbox.HELD_OUT_LABELER]
    assert len(in_group) == len(rankings) - 1
    in_group, outsiders = hold_out_labelers(rankings, ("labeler 1",), enc)
    assert [r.labeler for r in outsiders] == ["labeler 1"]


def test_of_anyone_elses_rankings_nothing_is_held_out_unasked(enc, other):
    """Though a labeler may have the same name."""
    for rankings, tokenizer in (
        (ranked_by(*sandbox.LABELERS), other),
        (ranked_by(*sandbox.LABELERS, "Ann"), enc),
        (ranked_by(*sandbox.LABELERS, ""), enc),
    ):
        assert hold_out_labelers(rankings, (), tokenizer) == (rankings, [])


def test_the_true_score_is_the_judges_mean(enc):
    """Where a prompt has no answer key, there is none."""
    prompts = sandbox.eval_prompts(20)
    texts = [p.meta["answers"][0] for p in prompts[:10]] + ["Anna is stupid."] * 10
    responses = [encode_response(enc, text) for text in texts]
    judged = [sandbox.judge(p, text).score for p, text in zip(prompts, texts)]
    assert judged[:10] == [2] * 10 and min(judged) < 0
    assert true_score(prompts, responses, enc) == {"true_score": sum(judged) / 20}
    assert true_score([*prompts[:-1], replace(prompts[-1], meta={})], responses, enc) == {}


# ------------------------------------------------------------------------------------------------
# checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory, enc):
    """Paths of a language model and of a reward model, the language model, its tokenizer's id."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(enc.n_vocab, 32, 1, 2, 16, dropout=0.1))
    tokenizer = tokenizer_id(enc)
    paths = {"gpt": str(folder / "gpt.pt"), "scorer": str(folder / "rm.pt")}
    save_checkpoint(paths["gpt"], gpt, tokenizer, {"stage": "test"})
    save_checkpoint(paths["scorer"], scorer_from(gpt), tokenizer, {"stage": "test"})
    return paths, gpt, tokenizer


@pytest.mark.parametrize("cls", [GPT, Scorer])
def test_a_checkpoint_comes_back_as_its_class(saved, cls):
    paths, gpt, tokenizer = saved
    model, checkpoint = load_model(paths[cls.kind], cls, tokenizer, context=32)
    assert type(model) is cls and model.cfg == replace(gpt.cfg, dropout=0.0)
    assert checkpoint["meta"] == {"stage": "test"} and tokenizer_of(checkpoint).name == "sandbox"
    trunk = model if cls is GPT else model.trunk
    assert torch.equal(trunk.wte.weight, gpt.wte.weight)
    assert load_model(paths[cls.kind], cls, dropout=0.2)[0].cfg.dropout == 0.2


@pytest.mark.parametrize(("wanted", "cls", "keywords", "says"), [
    ("gpt", Scorer, {}, "gpt.pt is a language model .*; here a reward model .*is needed"),
    ("scorer", GPT, {}, "rm.pt is a reward model .*; here a language model .*is needed"),
    ("gpt", GPT, {"tokenizer": {"name": "big", "hash": "4567"}},
     "gpt.pt was trained with the tokenizer sandbox, the other model with big: both must share"),
    ("gpt", GPT, {"context": 33}, "gpt.pt reads 32 tokens, the other model up to 33"),
])
def test_checkpoints_that_do_not_suit_are_refused(saved, wanted, cls, keywords, says):
    with pytest.raises(ValueError, match=says):
        load_model(saved[0][wanted], cls, **keywords)


def test_a_tokenizer_is_told_by_its_hash(saved):
    """A name may change, and a hash that is not known yet fits any."""
    paths, _, tokenizer = saved
    for fits in (tokenizer | {"name": "renamed"}, {"name": "x", "hash": ""}):
        assert load_model(paths["gpt"], GPT, fits)


NO_FIT = "m.pt holds weights that do not fit its own config: "
GONE = object()


@pytest.mark.parametrize(("change", "says"), [
    ({"config": {"n_layer": 2}}, NO_FIT + "it has no h.1.ln_1.weight"),
    ({"config": {"n_layer": 0}}, NO_FIT + "its sizes do not fit together"),
    ({"config": {"n_layer": -1}}, NO_FIT + "its n_layer is -1"),
    ({"config": {"n_layer": 10**9}}, NO_FIT + "its n_layer is 1000000000, and the weights have"),
    ({"config": {"n_layer": 5000}}, NO_FIT + "its n_layer is 5,000, and there are 16 weights"),
    ({"config": {"vocab_size": 10**8}}, NO_FIT + "its vocab_size is 100000000"),
    ({"config": {"n_embd": 10**400}}, NO_FIT + "its n_embd is 10000000000000000000, and"),
    ({"config": {"n_embd": 32}}, NO_FIT + r"wte.weight is \((\d+), 16\), and should be \(\1, 32\)"),
    ({"config": {"n_head": 3}}, NO_FIT + "its sizes do not fit together"),
    ({"config": {"n_head": GONE}}, NO_FIT + "it has no n_head"),
    ({"config": {"n_head": 2.0}}, NO_FIT + "its n_head is no int"),
    ({"config": {"n_head": True}}, NO_FIT + "its n_head is no int"),
    ({"config": {"n_head": [2]}}, NO_FIT + "its n_head is no int"),
    ({"config": {"dropout": "0.1"}}, NO_FIT + "its dropout is no float"),
    ({"config": {"dropout": math.nan}}, NO_FIT + "its dropout is no float"),
    ({"config": {"rotary": True}}, NO_FIT + "there is no rotary in a GPTConfig"),
    ({"config": {1: 2}}, NO_FIT + "there is no 1 in a GPTConfig"),
    ({"kind": "tree"}, "is tree; here a language model"),
    ({"tokenizer": {"name": "/etc/passwd", "hash": ""}}, "m.pt: .*passwd is not in its file"),
    ({"tokenizer": {"name": "x", "hash": "", "ranks": "YQ=="}}, "m.pt: x/ is not a readable file"),
    ({"weights": {"ln_f.bias": torch.full((16,), math.inf)}}, "m.pt: ln_f.bias holds numbers that"),
    ({"weights": {"ln_f.bias": torch.tensor([math.inf, -math.inf] * 8)}}, "m.pt: ln_f.bias holds"),
    ({"weights": {"b": torch.full((16,), 3e38)}}, NO_FIT + "b is none of"),  # the sum is not finite
    ({"weights": {"ln_f.bias": torch.zeros(17)}}, NO_FIT + r"ln_f.bias is \(17,\), and should be"),
    ({"weights": {"ln_f.bias": torch.zeros(())}}, NO_FIT + r"ln_f.bias is \(\), and should be"),
    ({"weights": {"ln_f.bias": GONE}}, NO_FIT + "it has no ln_f.bias"),
    ({"weights": {"b": torch.zeros(1)}}, NO_FIT + "b is none of a GPT's weights"),
    ({"weights": {"wte.weight": torch.ones(1).expand(469, 10**12)}}, "m.pt.* claims more "),
    ({"weights": {"b": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}},
     "m.pt: b is no tensor of floating-point numbers of 16, 32 or 64 bits"),
    ({"meta": {"stage": ["sft"]}}, "m.pt: the stage that made it has no name"),
    ({"meta": {"stage": None}}, "m.pt: the stage that made it has no name"),
    ({"meta": {"metrics": {"mean": math.nan}}}, "m.pt: its metric mean is no finite number"),
    ({"meta": {"metrics": {"mean": -math.inf}}}, "m.pt: its metric mean is no finite number"),
    ({"meta": {"metrics": {"ok": 0.5, "big": 10**400}}}, "m.pt: its metric big is no finite"),
])
def test_what_a_checkpoint_says_must_fit(saved, tmp_path, change, says):
    checkpoint = torch.load(saved[0]["gpt"], weights_only=True)
    for part, value in change.items():
        if isinstance(value, dict):
            value = {k: v for k, v in (checkpoint[part] | value).items() if v is not GONE}
        checkpoint[part] = value
    torch.save(checkpoint, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=says) as refused:
        load_model(str(tmp_path / "m.pt"), GPT)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_in_another_precision_or_layout_are_the_models_own_float32(saved, tmp_path, dtype):
    checkpoint = torch.load(saved[0]["gpt"], weights_only=True)
    wte = checkpoint["weights"]["wte.weight"].to(dtype)
    checkpoint["weights"] |= {"wte.weight": wte.t().contiguous().t()}
    torch.save(checkpoint, tmp_path / "m.pt")
    weight = load_model(str(tmp_path / "m.pt"), GPT)[0].wte.weight
    assert weight.dtype == torch.float32 and weight.is_contiguous() and weight.requires_grad
    assert weight.untyped_storage().nbytes() == 4 * weight.numel()
    assert torch.equal(weight, wte.float())


def test_a_checkpoint_without_a_stage_has_an_empty_one(saved, tmp_path):
    checkpoint = torch.load(saved[0]["gpt"], weights_only=True)
    torch.save(checkpoint | {"meta": {"metrics": {"m": 1}}}, tmp_path / "m.pt")
    meta = load_model(str(tmp_path / "m.pt"), GPT)[1]["meta"]
    assert meta == {"stage": "", "metrics": {"m": 1}}


@dataclass(frozen=True)
class ForkConfig(GPTConfig):
    window: int = 0
    norm: str = "layer"


class Fork(GPT):
    """One of its own kind: an unembedding that shares the embedding's weights, and a table that is
    not saved."""

    kind = "fork"
    config_class = ForkConfig

    def __init__(self, cfg):
        super().__init__(cfg)
        self.lm_head = torch.nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("table", torch.arange(8.0), persistent=False)


def test_a_fork_with_a_config_of_its_own_comes_back(enc, tmp_path):
    """Spare rows are cut off there too; what one name shares with another it shares again."""
    fork = Fork(ForkConfig(enc.n_vocab + 9, 32, 1, 2, 16, window=4, norm="rms"))
    apart = {name: w.clone() for name, w in fork.state_dict().items()}
    save_checkpoint(tmp_path / "m.pt", fork, tokenizer_id(enc), {}, weights=apart)
    model, _ = load_model(str(tmp_path / "m.pt"), Fork)
    assert (model.cfg.window, model.cfg.norm, model.cfg.vocab_size) == (4, "rms", enc.n_vocab)
    assert model.lm_head.weight is model.wte.weight and torch.equal(model.table, torch.arange(8.0))
    assert torch.equal(model.wte.weight, fork.wte.weight[: enc.n_vocab])
    checkpoint = torch.load(tmp_path / "m.pt", weights_only=True)
    checkpoint["config"] |= {"norm": 3}
    torch.save(checkpoint, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=NO_FIT + "its norm is no str"):
        load_model(str(tmp_path / "m.pt"), Fork)


def test_loading_draws_what_building_a_model_draws(saved):
    """The shapes alone, which are compared first, draw nothing."""
    torch.manual_seed(0)
    GPT(saved[1].cfg)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_model(saved[0]["gpt"], GPT)
    assert torch.equal(torch.rand(1), expected)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="none.pt does not exist"):
        load_model(str(tmp_path / "none.pt"), GPT)


MODULES = """
import interop, json, sys
print(json.dumps(list(sys.modules)))
from model import GPT
interop.load_model(sys.argv[1], GPT)
print(json.dumps(list(sys.modules)))
"""


def test_importing_interop_imports_nothing_optional_and_no_model(root, saved):
    """To load one imports no compiler, which takes two seconds."""
    env = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, "-c", MODULES, saved[0]["gpt"]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    first, then = (set(json.loads(line)) for line in done.stdout.splitlines())
    assert not first & {"transformers", "safetensors", "matplotlib", "model", "train"}
    assert "model" in then and "torch._dynamo" not in then


def test_settings_that_change_nothing_are_refused():
    """Names of fields without a file, and labelers who labelled nothing."""
    enc = get_tokenizer("sandbox")
    with pytest.raises(ValueError, match="--columns prompt=x names fields .* with --data"):
        interop.load("prompts", (), Counter(), flag="--data", columns="prompt=x")
    rankings = [Ranking([], ["a", "b"], [(0, 1)], labeler) for labeler in ("Ida", "Ben")]
    with pytest.raises(ValueError, match="--held-out-labelers Eve: .* the labelers are Ben, Ida"):
        interop.hold_out_labelers(rankings, ("Ida", "Eve"), enc)
    assert interop.hold_out_labelers(rankings, ("Ida",), enc) == (rankings[1:], rankings[:1])
