"""interop/gpt2.py: GPT-2's weights as others publish them, against transformers: folders,
tokenizers, downloads, and what is refused; stages that start from folders.

Where transformers is not installed its tests are skipped, or fail if TRANSFORMERS_REQUIRED is set.
"""

import contextlib
import hashlib
import http.server
import io
import json
import math
import os
import shutil
import threading
import zipfile

import pytest
import tiktoken
import torch
from folders import (
    NASTY,
    TEXT,
    T,
    V,
    agree,
    close,
    hash_of,
    learned,
    ours,
    publish,
    publish_tokenizer,
    read_config,
    rows,
    same_continuations,
    saved,
    small_ranks,
    theirs,
    write_ranks,
)
from tiny import lively

import ppo
import reward
import sample
import sft
from data import encode_prompt
from interop import get_tokenizer, gpt2, load_model, read_model, tokenizer_of
from interop.export import _write_safetensors, export
from model import GPT, GPTConfig, Scorer
from plumbing import cli
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl


@pytest.fixture(scope="module", autouse=True)
def no_cache(tmp_path_factory):
    """tiktoken keeps copies of the files that it reads, here in a folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path_factory.mktemp("tiktoken")))
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory, small):
    """A folder with a small model that takes the place of GPT-2, its tokenizer included."""
    folder = tmp_path_factory.mktemp("exported")
    network = ours(vocab=get_tokenizer(small).n_vocab)
    publish(saved(folder / "m.pt", network, small), folder / "gpt2")
    return folder / "gpt2"


# -------------------------------------------------------------------------------------------------
# theirs -> ours


def causal_masks(weights):
    """The buffers that older versions of transformers wrote beside the weights."""
    return weights | {
        name.replace("c_attn.bias", mask): x
        for name in weights
        if name.endswith("attn.c_attn.bias")
        for mask, x in (
            ("bias", torch.ones(1, 1, T, T).tril().to(torch.uint8)),
            ("masked_bias", torch.tensor(-1e4)),
        )
    }


def write_bin(network, folder, weights):
    network.config.save_pretrained(folder)
    torch.save(weights, os.path.join(folder, "pytorch_model.bin"))


LAYOUTS = {
    "safetensors": lambda m, folder: m.save_pretrained(folder),
    "all names of the class": lambda m, folder: write_bin(m, folder, m.state_dict()),
    "without the prefix": lambda m, folder: write_bin(m, folder, m.transformer.state_dict()),
    "masks, as gpt2 was published": lambda m, folder: write_bin(
        m, folder, causal_masks(m.transformer.state_dict())
    ),
    "masks and the prefix": lambda m, folder: write_bin(m, folder, causal_masks(m.state_dict())),
}


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_their_language_model_is_ours(hf, tmp_path, write):
    network, ids = theirs(hf), rows(3, T)
    write(network, str(tmp_path))
    loaded, checkpoint = load_model(str(tmp_path), GPT)
    with torch.no_grad():
        close(loaded(ids), network(ids).logits)
    assert loaded.cfg == GPTConfig(V, T, 2, 4, 16)
    assert checkpoint["tokenizer"] == {"name": "gpt2", "hash": ""}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_widened(hf, tmp_path, dtype):
    network, ids = theirs(hf).to(dtype), rows(3, T)
    network.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path), GPT)
    weights = [*loaded.parameters(), *read_model(str(tmp_path))["weights"].values()]
    assert {w.dtype for w in weights} == {torch.float32}
    with torch.no_grad():
        close(loaded(ids), network.float()(ids).logits)


def test_their_continuations_are_ours(hf, tmp_path):
    network = theirs(hf)
    network.save_pretrained(tmp_path)
    same_continuations(load_model(str(tmp_path), GPT)[0], network)


@pytest.mark.parametrize(
    "write", [LAYOUTS["safetensors"], LAYOUTS["masks and the prefix"]], ids=["safetensors", "bin"]
)
def test_their_classifier_with_one_label_is_a_scorer(hf, tmp_path, write):
    network = theirs(hf, "GPT2ForSequenceClassification")
    write(network, str(tmp_path))
    scorer, _ = load_model(str(tmp_path), Scorer)
    ids, length = rows(6, T), torch.tensor([1, 5, 9, 13, 20, T])
    with torch.no_grad():
        close(
            scorer.score(ids, length),
            torch.stack([network(ids[b : b + 1, :n]).logits[0, 0] for b, n in enumerate(length)]),
        )


# -------------------------------------------------------------------------------------------------
# parts


def write_parts(folder):
    """Make two parts and an index of pytorch_model.bin, as old versions of transformers did."""
    found = torch.load(folder / "pytorch_model.bin")
    names, index = sorted(found), {}
    for part, mine in (("a.bin", names[::2]), ("b.bin", names[1::2])):
        torch.save({name: found[name] for name in mine}, folder / part)
        index |= dict.fromkeys(mine, part)
    (folder / "pytorch_model.bin").unlink()
    write_index(folder, {"metadata": {}, "weight_map": index})


def write_index(folder, index):
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_parts_are_one_model(hf, tmp_path, exported):
    """Those that transformers writes, and those of older versions; each part is an input of a
    stage."""
    network, ids = theirs(hf), rows(3, T)
    network.save_pretrained(tmp_path / "new", max_shard_size="10KB")
    assert not (tmp_path / "new" / "model.safetensors").exists()
    loaded, _ = load_model(str(tmp_path / "new"), GPT)
    with torch.no_grad():
        close(loaded(ids), network(ids).logits)
    shutil.copytree(exported, tmp_path / "old")
    write_parts(tmp_path / "old")
    for folder in ("new", "old"):
        parts = {x for x in os.listdir(tmp_path / folder) if "model" in x or x.endswith(".bin")}
        files = {os.path.basename(x) for x in gpt2.model_files(str(tmp_path / folder))}
        assert len(parts) > 2 and parts | {"config.json"} <= files
    weights = read_model(str(exported))["weights"]
    assert same(read_model(str(tmp_path / "old"))["weights"], weights)


def twice(folder):
    more = torch.load(folder / "b.bin") | {"transformer.ln_f.bias": torch.zeros(16)}
    torch.save(more | torch.load(folder / "a.bin"), folder / "b.bin")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "b.bin").unlink(), "index.json names b.bin, which is not there: fetch it"),
        (lambda f: (f / "b.bin").write_bytes(b"x"), "b.bin is not a readable file of GPT-2's"),
        (twice, "b.bin has a weight that another part has too"),
        (lambda f: write_index(f, {"weight_map": {"x": "a.bin"}}), "fit its own config: it has no"),
        (lambda f: write_index(f, []), "index.json is no index of weights"),
        (lambda f: write_index(f, {"weight_map": {}}), "index.json is no index of weights"),
        (lambda f: write_index(f, {"weight_map": ["a.bin"]}), "index.json is no index of weights"),
        *[
            (lambda f, x=x: write_index(f, {"weight_map": {"x": x}}), "names a file that is no")
            for x in ("../a.bin", "/etc/passwd", "..", "x\\a.bin", "a.bin\n", 3, ["a.bin"], "x")
        ],
    ],
)
def test_parts_that_are_refused(exported, tmp_path, damage, says):
    shutil.copytree(exported, tmp_path / "folder")
    write_parts(tmp_path / "folder")
    load_model(str(tmp_path / "folder"), GPT)
    damage(tmp_path / "folder")
    with pytest.raises(ValueError, match=says):
        load_model(str(tmp_path / "folder"), GPT)


# -------------------------------------------------------------------------------------------------
# rows without a token


@pytest.mark.parametrize("kind", [GPT, Scorer])
def test_rows_that_have_no_token_are_cut_off(tmp_path, small, kind):
    """Of a folder as of a checkpoint, whose vocabulary was rounded up: so they are never
    sampled. What is left computes the same."""
    enc, network, ids = get_tokenizer(small), ours(kind, vocab=384), rows(3, T)
    path = saved(tmp_path / "m.pt", network, small)
    publish(path, tmp_path / "folder")
    assert read_config(tmp_path / "folder")["vocab_size"] == 384
    for source in (path, str(tmp_path / "folder")):
        loaded, checkpoint = load_model(source, kind)
        assert loaded.cfg.vocab_size == checkpoint["config"]["vocab_size"] == enc.n_vocab == 317
        assert tokenizer_of(checkpoint).n_vocab == 317
        with torch.no_grad():
            wanted = network(ids)[..., :317] if kind is GPT else network(ids)
            close(loaded(ids), wanted)
        said = torch.multinomial(loaded(ids).flatten(0, 1).softmax(1), 50) if kind is GPT else ids
        assert enc.decode(said.flatten().tolist())


def test_rows_up_to_gpt2s_are_not_asked_about(tmp_path, monkeypatch, enc):
    """tiktoken would have to download; none of its tokenizers has fewer. The sandbox's has."""
    asked = []
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: asked.append(name) or enc)
    network = ours(vocab=500)
    for name, rows_left in (("gpt2", 500), ("p50k_base", 500), ("sandbox", enc.n_vocab)):
        save_checkpoint(tmp_path / "m.pt", network, {"name": name, "hash": ""}, {})
        assert load_model(str(tmp_path / "m.pt"), GPT)[0].cfg.vocab_size == rows_left
    assert not asked
    save_checkpoint(
        tmp_path / "m.pt", GPT(GPTConfig(50258, 4, 1, 1, 2)), {"name": "gpt2", "hash": ""}, {}
    )
    load_model(str(tmp_path / "m.pt"), GPT)
    assert asked == ["gpt2"]


# -------------------------------------------------------------------------------------------------
# tokenizers


def test_the_folder_has_the_tokenizer_of_the_ranks(tmp_path, ranks):
    """Its hash, so that models with either may meet, and what was written from a folder is the same
    again."""
    enc = get_tokenizer(ranks)
    for name, source in (("a", ranks), ("b", str(tmp_path / "a"))):
        (tmp_path / name).mkdir()
        publish_tokenizer(source, str(tmp_path / name))
        again = get_tokenizer(str(tmp_path / name))
        assert hash_of(again) == hash_of(enc)
        assert [again.encode_ordinary(x) for x in NASTY] == [enc.encode_ordinary(x) for x in NASTY]
    for i in range(9):  # merges do happen
        assert len(enc.encode_ordinary(TEXT[i:])) < len(TEXT[i:]) / 2


def test_ranks_with_another_order_of_bytes_come_back(tmp_path):
    tokens = [bytes([b]) for b in range(256)] + learned(60)
    path = write_ranks(tmp_path / "mine.tiktoken", {token: n for n, token in enumerate(tokens)})
    publish_tokenizer(path, str(tmp_path))
    assert hash_of(tmp_path) == hash_of(path)


def test_a_model_of_a_folder_brings_its_tokenizer(exported, small):
    checkpoint = read_model(str(exported))
    assert checkpoint["tokenizer"]["name"] == "gpt2/"  # and not tiktoken's
    assert hash_of(tokenizer_of(checkpoint)) == hash_of(small)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_folder_without_both_files_has_the_tokenizer_of_gpt2(exported, tmp_path, missing):
    shutil.copytree(exported, tmp_path / "folder", ignore=lambda *_: [missing])
    assert read_model(str(tmp_path / "folder"))["tokenizer"] == {"name": "gpt2", "hash": ""}


def test_the_tokenizer_of_a_folder_is_read_as_it_is_now(tmp_path):
    hashes = set()
    for words in (20, 30):
        publish_tokenizer(small_ranks(tmp_path / f"{words}.tiktoken", words), str(tmp_path))
        hashes.add(hash_of(tmp_path))
    assert len(hashes) == 2


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, small):
    path = saved(tmp_path / "m.pt", ours(vocab=get_tokenizer(small).n_vocab - 1), small)
    publish(path, tmp_path / "folder")
    says = "has 317 tokens, more than the model's 316: they do not belong together"
    with pytest.raises(ValueError, match=says):
        tokenizer_of(read_model(str(tmp_path / "folder")))


# -------------------------------------------------------------------------------------------------
# the stages on folders

WORDS = ["cat", "dog", "mat", "café", "漢字", "12"]
STAGES = {
    sft: """--data demos.jsonl --ptx-mix 0 --held-out 0.2 --epochs 2 --batch 4 --lr 1e-2
         --max-new 4""",
    reward: """--data rankings.jsonl --demos demos.jsonl --held-out 0.3 --epochs 1 --batch 4
            --lr 1e-2""",
    ppo: """--prompts prompts.jsonl --ptx-coef 0 --iterations 2 --rollout 4 --minibatch 2
         --max-new 6 --warmup 0 --lr 1e-2 --ema 0""",
}


def write_records():
    demos = [{"prompt": f"What is {w}?", "response": f"It is {w}."} for w in WORDS * 2]
    write_jsonl("demos.jsonl", demos)
    write_jsonl("prompts.jsonl", [{"prompt": f"Is it {w}?"} for w in WORDS])
    rankings = []
    for w in WORDS * 3:
        responses = [f"The {w}.", "It didn't.", f"It is {w}."]
        prompt = f"What is {w}, {len(rankings)}?"
        rankings.append({"prompt": prompt, "responses": responses, "ranks": [2, 3, 1]})
    write_jsonl("rankings.jsonl", rankings)


def run(stage, out, **inputs):
    """Run a stage in the current folder -> (the path of its result, what it printed)."""
    argv = [*STAGES[stage].split(), "--out", out, "--device", "cpu"]
    for name, path in inputs.items():
        argv += [f"--{name}", str(path)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        stage.main(cli.parse(stage.Config, stage.PRESETS, "", argv))
    return out, printed.getvalue()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, small):
    """A folder in which every stage started from the published result of the one before."""
    place = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        write_records()
        base = ours(vocab=get_tokenizer(small).n_vocab, block=64)
        publish(saved("base.pt", base, small), "base")
        publish(run(sft, "sft.pt", init="base")[0], "sft")
        publish(run(reward, "rm.pt", init="sft")[0], "rm")
        publish(run(ppo, "ppo.pt", init="sft", rm="rm")[0], "ppo")
    return place


@pytest.fixture
def inside(pipeline, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    shutil.copytree(pipeline, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


@pytest.mark.parametrize("name", ["sft", "rm", "ppo"])
def test_what_a_stage_made_of_a_folder_is_theirs(hf, inside, name):
    """The reward model's bias, which gives its demonstrations a mean of 0, is in their ln_f."""
    export(f"{name}.pt", "new")
    for folder in (name, "new"):
        agree(hf, f"{name}.pt", folder)
    assert hash_of(name) == read_model(f"{name}.pt")["tokenizer"]["hash"]
    before = read_model({"sft": "base.pt", "rm": "sft.pt", "ppo": "sft.pt"}[name])["weights"]
    weights = read_model(f"{name}.pt")["weights"]
    after = {k.removeprefix("trunk."): w for k, w in weights.items()}
    for k in ("wte.weight", "h.0.attn.c_attn.weight", "ln_f.weight"):
        assert (before[k] - after[k]).abs().max() > 1e-3
    assert name != "rm" or abs(after["head.bias"].item()) > 1e-3


def test_fine_tuning_with_the_tokens_of_gpt2(hf, tmp_path, monkeypatch, real):
    """From a folder that transformers wrote, whatever tokenizer files it had."""
    monkeypatch.chdir(tmp_path)
    write_records()
    ranks = real("tokenizer/gpt2.tiktoken")
    config = hf.GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=4)
    lively(hf.GPT2LMHeadModel(config)).save_pretrained("base")
    publish_tokenizer(ranks, "base")
    run(sft, "sft.pt", init="base")
    export("sft.pt", "sft")
    agree(hf, "sft.pt", "sft")
    assert read_model("sft.pt")["tokenizer"]["hash"] == hash_of(ranks)
    prompt = encode_prompt(get_tokenizer("sft"), [{"role": "user", "content": "Is it?"}])
    tokenizer = hf.AutoTokenizer.from_pretrained("sft")
    assert tokenizer("User: Is it?\n\nAssistant:")["input_ids"] == prompt


def change_weights(folder):
    path = os.path.join(folder, "pytorch_model.bin")
    weights = torch.load(path)
    weights["transformer.ln_f.bias"][3] += 1e-3
    torch.save(weights, path)


def change_config(folder):
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    with open(path, "w") as f:
        json.dump(config | {"transformers_version": "0"}, f)


@pytest.mark.parametrize("change", [change_weights, change_config])
@pytest.mark.parametrize(
    ("stage", "out", "inputs", "changed"),
    [
        (sft, "sft.pt", {"init": "base"}, "init"),
        (reward, "rm.pt", {"init": "sft"}, "init"),
        (ppo, "ppo.pt", {"init": "sft", "rm": "rm"}, "init"),
        (ppo, "ppo.pt", {"init": "sft", "rm": "rm"}, "rm"),
    ],
)
def test_a_run_from_a_folder_is_one_of_its_files(inside, stage, out, inputs, changed, change):
    """Wherever the folder lies."""
    assert "is finished already" in run(stage, out, **inputs)[1]
    os.rename(inputs[changed], "moved")
    moved = inputs | {changed: "moved"}
    assert "is finished already" in run(stage, out, **moved)[1]
    before = read_model(out)["meta"]["inputs"]
    change("moved")
    os.rename(out, f"{out}.part")
    says = r"\.part is no unfinished run of this command \(it was made from other inputs\)"
    with pytest.raises(ValueError, match=says):
        run(stage, out, **moved)
    os.rename(f"{out}.part", out)
    with pytest.raises(ValueError, match="is there already, and it was made from other inputs"):
        run(stage, out, **moved)
    os.remove(out)
    os.remove(f"{out}.log.jsonl")
    run(stage, out, **moved)
    after = read_model(out)["meta"]["inputs"]
    assert [k for k in before if before[k] != after[k]] == [changed]


def test_sample_takes_a_folder(inside, capsys):
    def said(network, rm):
        capsys.readouterr()
        sample.main(
            sample.Config((network,), prompt="Is it 漢字?", rm=rm, n=4, max_new=8, device="cpu")
        )
        return capsys.readouterr().out

    shown = said("sft.pt", "rm.pt")
    assert shown.count("\n") >= 4 and said("sft", "rm") == shown


def test_a_context_or_kind_that_does_not_fit_is_refused(inside):
    with pytest.raises(ValueError, match="sft is a language model .*; here a reward model .*is"):
        load_model("sft", Scorer)
    with pytest.raises(ValueError, match="rm is a reward model .*; here a language model .*is"):
        load_model("rm", GPT)
    with pytest.raises(ValueError, match="sft reads 64 tokens, the other model up to 65"):
        load_model("sft", GPT, context=65)
    with pytest.raises(ValueError, match="rm is a reward model"):
        run(sft, "new.pt", init="rm")
    with pytest.raises(ValueError, match="sft is a language model"):
        run(ppo, "new.pt", init="sft", rm="sft")


def test_a_reward_model_with_another_tokenizer_is_refused(inside, tmp_path):
    enc = get_tokenizer(small_ranks(tmp_path / "other.tiktoken", 50))
    publish_tokenizer(str(tmp_path / "other.tiktoken"), "rm")
    assert hash_of(enc) == hash_of("rm")
    with pytest.raises(ValueError, match="tokenizer"):
        run(ppo, "new.pt", init="sft.pt", rm="rm")


# -------------------------------------------------------------------------------------------------
# downloads

FILES = ["config.json", "merges.txt", "model.safetensors", "vocab.json"]


@pytest.fixture
def hub(tmp_path, monkeypatch, exported):
    """A place that is laid out as the hub, the folder that downloads go to, and an empty current
    folder."""
    source = tmp_path / "hub" / "gpt2" / "resolve" / "main"
    shutil.copytree(exported, source)
    found = torch.load(source / "pytorch_model.bin")
    with open(source / "model.safetensors", "wb") as f:
        _write_safetensors(found, f)
    # the hub's is of PyTorch's older format, which is not read
    torch.save(found, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(gpt2, "HUB", (tmp_path / "hub").as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return source, tmp_path / "home" / "hub" / "checkpoints" / "gpt2"


def same(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items()) and a.keys() == b.keys()


def test_a_published_name_is_downloaded_once(hub, exported, small):
    source, target = hub
    wanted = read_model(str(exported))["weights"]
    network, checkpoint = load_model("gpt2", GPT)
    assert same(network.state_dict(), wanted) and sorted(os.listdir(target)) == FILES
    assert hash_of(tokenizer_of(checkpoint)) == hash_of(small)
    shutil.rmtree(source)
    assert same(load_model("gpt2", GPT)[0].state_dict(), wanted)
    assert not os.listdir()


def test_only_what_is_missing_is_fetched(hub, exported):
    source, target = hub
    load_model("gpt2", GPT)
    (target / "merges.txt").unlink()
    (source / "model.safetensors").write_bytes(b"another")
    load_model("gpt2", GPT)
    assert (target / "merges.txt").read_bytes() == (exported / "merges.txt").read_bytes()


def test_a_folder_that_has_the_name_comes_first(hub, exported):
    shutil.copytree(exported, "gpt2")
    change_weights("gpt2")
    assert not same(load_model("gpt2", GPT)[0].state_dict(), read_model(str(exported))["weights"])
    assert not hub[1].exists()


@pytest.mark.parametrize("missing", FILES)
def test_without_a_network_the_sentence_says_where_the_file_goes(hub, missing):
    source, target = hub
    (source / missing).rename("kept")
    with pytest.raises(ValueError) as refused:
        load_model("gpt2", GPT)
    said = str(refused.value)
    assert said.startswith("gpt2 could not be downloaded") and "\n" not in said
    assert f"put {missing} of {gpt2.HUB}/gpt2 into {target}" in said
    assert set(os.listdir(target)) <= set(FILES) - {missing}
    shutil.copy("kept", target / missing)
    assert load_model("gpt2", GPT)[0].cfg.n_layer == 2


@pytest.fixture
def server(hub, monkeypatch):
    """The hub over HTTP -> {name of a file: what goes wrong with it}, and what was asked for."""
    source, wrong, asked, over = hub[0], {}, [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            content, how = (source / name).read_bytes(), wrong.get(name, "")
            digest = hashlib.sha256(content).hexdigest()
            asked.append(name)
            if how == "silent":
                over.wait(3)
            moved = self.path.startswith("/elsewhere")
            if how in ("elsewhere", "linked", "linked, changed") and not moved:
                self.send_response(302)
                self.send_header("Location", f"/elsewhere/{name}")
                if how != "elsewhere":
                    self.send_header("X-Linked-Etag", f'"{digest}"')
                self.end_headers()
                return
            if how == "linked, changed":
                content = b"x" * len(content)
            if how == "portal":
                content = b"<html><body>Please log in.</body></html>"
            self.send_response(200)
            if how != "no length":
                self.send_header("Content-Length", str(len(content)))
            if how in ("elsewhere", "linked", "another hash"):
                # elsewhere it may be a hash of anything
                self.send_header("ETag", '"' + "0" * 64 + '"')
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if how == "cut" else content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(gpt2, "HUB", f"http://127.0.0.1:{served.server_port}")
        yield wrong, asked
        over.set()
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("how", ["", "no length", "linked", "elsewhere"])
def test_a_download_over_http(server, hub, exported, how):
    server[0].update(dict.fromkeys(FILES, how))
    assert same(load_model("gpt2", GPT)[0].state_dict(), read_model(str(exported))["weights"])
    assert sorted(os.listdir(hub[1])) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["cut", "portal", "linked, changed", "another hash", "silent"])
def test_what_is_not_the_whole_file_is_not_kept(server, hub, monkeypatch, name, how):
    monkeypatch.setattr(gpt2, "TIMEOUT", 0.2 if how == "silent" else 20)
    wrong, _ = server
    wrong[name] = how
    says = f"gpt2 could not be downloaded .*without a network, put {name} of .* into {hub[1]}"
    with pytest.raises(ValueError, match=says) as refused:
        load_model("gpt2", GPT)
    assert "\n" not in str(refused.value) and "log in" not in str(refused.value)
    assert set(os.listdir(hub[1])) <= set(FILES) - {name}
    wrong.clear()
    load_model("gpt2", GPT)


def test_of_two_processes_one_downloads(server, hub):
    """The other waits, and takes what is there then; what a killed one left is written over."""
    os.makedirs(hub[1])
    (hub[1] / "config.json.part").write_bytes(b"left by a killed process" * 1000)
    threads = [threading.Thread(target=load_model, args=("gpt2", GPT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server[1]) == sorted(os.listdir(hub[1])) == FILES


def test_a_cache_that_cannot_be_written_is_a_sentence(hub, tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="gpt2 could not be downloaded|cannot write"):
        load_model("gpt2", GPT)


# -------------------------------------------------------------------------------------------------
# refusals


class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


GONE = object()


def config(**changes):
    def change(folder):
        found = json.loads((folder / "config.json").read_text()) | changes
        found = {k: v for k, v in found.items() if v is not GONE}
        (folder / "config.json").write_text(json.dumps(found))

    return change


def weights(change):
    def changed(folder):
        found = torch.load(folder / "pytorch_model.bin")
        torch.save(change(found), folder / "pytorch_model.bin")

    return changed


def without(name):
    return lambda found: {k: w for k, w in found.items() if not k.endswith(name)}


def filled(number, dtype=torch.float32):
    full = torch.full((16,), number, dtype=dtype)
    return lambda found: found | {"transformer.ln_f.bias": full}


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def safetensors(offsets, size):
    """A file with tensors of 100 numbers at these offsets, of which it has `size` bytes."""
    tensors = {k: {"dtype": "F32", "shape": [100], "data_offsets": x} for k, x in offsets.items()}
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def deflated(folder):
    """Its zeros take a thousandth of their size; PyTorch would read them."""
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    assert torch.load(path)


def old_format(folder):
    """Its storages can be claimed and not listed, so that nothing fills them."""
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    assert torch.load(path)


def old_format_and_an_archive(folder):
    """PyTorch reads the first of the two, zipfile the second."""
    path = folder / "pytorch_model.bin"
    archive = path.read_bytes()
    old_format(folder)
    path.write_bytes(path.read_bytes() + archive)
    assert zipfile.is_zipfile(path) and torch.load(path)


def cut_to(share):
    def cut(folder):
        path = folder / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return cut


NO_GPT2 = (
    "is a folder without a GPT-2 in it: it must hold config.json and either model.safetensors or "
    "pytorch_model.bin"
)
NO_FIT = "holds weights that do not fit its own config"
REFUSED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), NO_GPT2),
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), NO_GPT2),
    "a folder of something else": (lambda folder: [x.unlink() for x in folder.iterdir()], NO_GPT2),
    "broken json": (
        text("config.json", b'{"n_layer": 2,'),
        r"config\.json is not readable JSON",
    ),
    "no text": (text("config.json", b"\xfe\xfe\x00"), r"config\.json, line 1: .* not UTF-8"),
    "a list": (text("config.json", b"[1, 2]"), r"config\.json is not the config of a GPT-2"),
    "another model": (
        config(n_layer=GONE, num_hidden_layers=2),
        "is not the config of a GPT-2: it must have .*n_layer",
    ),
    "another activation": (
        config(activation_function="relu"),
        "has activation_function relu; only GPT-2's own gelu_new",
    ),
    "exact gelu": (
        config(activation_function="gelu"),
        "has activation_function gelu; only GPT-2's own gelu_new",
    ),
    "too few layers": (config(n_layer=1), f"{NO_FIT}: h.1.attn.c_attn.bias is none of a GPT's"),
    "too many layers": (config(n_layer=3), f"{NO_FIT}: it has no h.2.ln_1.weight"),
    "another width": (
        config(n_embd=32),
        rf"{NO_FIT}: wte.weight is \(317, 16\), and should be \(317, 32\)",
    ),
    "another context": (
        config(n_positions=T + 1),
        rf"{NO_FIT}: wpe.weight is \(24, 16\), and should be \(25, 16\)",
    ),
    "another vocabulary": (
        config(vocab_size=V),
        rf"{NO_FIT}: wte.weight is \(317, 16\), and should be \(83, 16\)",
    ),
    "a billion layers": (config(n_layer=10**9), f"{NO_FIT}: its n_layer is 1000000000"),
    "ten thousand layers": (config(n_layer=10**4), f"{NO_FIT}: its n_layer is 10,000, and there"),
    "a huge vocabulary": (config(vocab_size=10**8), f"{NO_FIT}: its vocab_size is 100000000"),
    "a huge width": (config(n_embd=10**400), f"{NO_FIT}: its n_embd is 10000000"),
    "a huge context": (config(n_positions=10**12), f"{NO_FIT}: its block_size is 1000000000000"),
    "a number of 5,000 digits": (text("config.json", b'{"n_layer": %s}' % (b"9" * 5000)), "JSON"),
    "nested too deep": (text("config.json", b"[" * 100_000), r"config\.json is not readable JSON"),
    "numbers as text": (config(n_layer="2"), "its sizes do not fit together"),
    "half a layer": (config(n_layer=1.5), "its sizes do not fit together"),
    "true layers": (config(n_layer=True), "its sizes do not fit together"),
    "a weight less": (weights(without("h.1.ln_2.bias")), f"{NO_FIT}: it has no h.1.ln_2.bias"),
    "no embedding": (weights(without("wte.weight")), f"{NO_FIT}: it has no wte.weight"),
    "a weight more": (
        weights(lambda found: found | {"extra": torch.zeros(2)}),
        f"{NO_FIT}: extra is none of a GPT's weights",
    ),
    "nan": (weights(filled(math.nan)), "ln_f.bias holds numbers that are not finite"),
    "too large for 32 bits": (
        weights(filled(1e300, torch.float64)),
        "ln_f.bias holds numbers that are not finite",
    ),
    "whole numbers": (weights(filled(1, torch.int64)), "ln_f.bias is no tensor of floating-point"),
    "text for a weight": (
        weights(lambda found: found | {"transformer.ln_f.bias": "zeros"}),
        "ln_f.bias is no tensor of floating-point",
    ),
    "sparse": (
        weights(lambda found: found | {"transformer.ln_f.bias": torch.zeros(16).to_sparse()}),
        "ln_f.bias is no tensor of floating-point|not a readable file",
    ),
    "a view of one number": (
        weights(lambda found: found | {"transformer.wte.weight": torch.ones(1).expand(317, 10**9)}),
        "wte.weight claims more numbers than the file has",
    ),
    "views of one tensor": (
        weights(lambda found: found | {f"extra.{i}": found["transformer.wte.weight"]
                                       for i in range(1000)}),
        r"extra.\d+ claims more numbers than the file has",
    ),
    "empty": (cut_to(0), r"pytorch_model\.bin is not a readable file of GPT-2's weights"),
    "half": (cut_to(0.5), r"pytorch_model\.bin is not a readable file of GPT-2's weights"),
    "nearly all": (cut_to(0.99), r"pytorch_model\.bin is not a readable file of GPT-2's weights"),
    "text": (
        text("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n"),
        "is not a readable file of GPT-2's weights",
    ),
    "code": (
        weights(lambda found: found | {"transformer.ln_f.bias": Code()}),
        "is not a readable file of GPT-2's weights",
    ),
    "the format of before 2020": (old_format, "save it again with a recent torch"),
    "two formats": (old_format_and_an_archive, "save it again with a recent torch"),
    "deflated": (deflated, "is not a readable file of GPT-2's weights"),
    "safetensors, many of one": (
        text("model.safetensors", safetensors({f"x{i}": [0, 400] for i in range(2)}, 700)),
        "safetensors is not a readable file of GPT-2's weights",
    ),
    "safetensors, backwards": (
        text("model.safetensors", safetensors({"x": [4, 3], "y": [0, 400]}, 399)),
        "safetensors is not a readable file of GPT-2's weights",
    ),
    "safetensors, cut off": (
        text("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
        r"safetensors is not a readable file of GPT-2's weights",
    ),
    "a list of weights": (weights(lambda found: list(found.values())), "weights"),
    "weights in a dictionary": (
        weights(lambda found: {"state_dict": found}),
        "state_dict is no tensor of floating-point numbers",
    ),
    "numbers for names": (weights(lambda found: dict(enumerate(found.values()))), "weights"),
    "a matrix with three axes": (
        weights(lambda found: found | {"transformer.h.0.mlp.c_fc.weight": torch.zeros(1, 2, 3)}),
        "weights",
    ),
    "heads that do not divide the width": (config(n_head=3), "config|heads"),
    "no heads": (config(n_head=0), "config|heads"),
    "no context": (config(n_positions=None), "config"),
    "scores scaled by layer": (
        config(scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx",
    ),
    "scores not scaled": (config(scale_attn_weights=False), "scale_attn_weights"),
    "another epsilon": (config(layer_norm_epsilon=1e-3), "layer_norm_epsilon"),
    "an unembedding of its own": (
        weights(lambda found: found | {"lm_head.weight": torch.ones(2, 2)}),
        "has an unembedding of its own",
    ),
}


@pytest.mark.parametrize(
    ("damage", "says"),
    [pytest.param(*x, id=name) for name, x in REFUSED.items()],
)
def test_folders_that_are_refused(exported, tmp_path, monkeypatch, damage, says):
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    damage(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says) as refused:
        load_model(str(folder), GPT)[0](rows(1, 4))
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    assert os.listdir() == ["folder"]  # nothing was executed


def test_a_classifier_with_two_labels_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "folder")
    score = {"score.weight": torch.zeros(2, 16)}
    weights(lambda found: without("lm_head.weight")(found) | score)(tmp_path / "folder")
    with pytest.raises(ValueError, match=NO_FIT):
        load_model(str(tmp_path / "folder"), Scorer)


def test_what_is_refused_above_was_fine_before(exported, tmp_path):
    """And the code in the weights is a real attack."""
    assert load_model(str(exported), GPT)[0](rows(1, 4)).isfinite().all()
    shutil.copytree(exported, tmp_path / "folder")
    REFUSED["code"][0](tmp_path / "folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        torch.load("folder/pytorch_model.bin", weights_only=False)
    assert (tmp_path / "executed").is_dir()




