"""Public data as it was published, through the stages: each file of ../shared/data through its own,
and one model through all four. Where the files are not, these tests are skipped, or fail if
REAL_DATA_REQUIRED is set.
"""

import gzip
import io
import json
import math
import re
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import evaluate
import ppo
import pretrain
import reward
import sft
from data import cut_blocks, text_batch
from forks import dpo, rloo
from interop import (
    encode_rankings,
    get_tokenizer,
    load,
    load_model,
    read_records,
    tokenizer_id,
)
from interop.texts import pack
from model import GPT, GPTConfig, Scorer, scorer_from
from plumbing import cli
from plumbing.files import save_checkpoint

DOLLY = "demonstrations/dolly/dolly-15k.part1.jsonl"
QA = "rankings/qa-feedback/dev_feedback.part1.json"
MT_BENCH = "prompts/mt_bench.question.jsonl"
SHAKESPEARE = "pretrain/tinyshakespeare.txt"
TOKENS = "tokenizer/gpt2.tiktoken"
VOCABULARY = 10_000     # of GPT-2's tokens: enough to tell words, and quick
CONTEXT = 256


@pytest.fixture(scope="module")
def tokens(real, tmp_path_factory):
    """A file of the ranks that GPT-2 learned first, which are a tokenizer too."""
    lines = Path(real(TOKENS)).read_bytes().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("tokens") / "first.tiktoken"
    path.write_bytes(b"".join(lines[:VOCABULARY]))
    return str(path)


@pytest.fixture(scope="module")
def enc(tokens):
    return get_tokenizer(tokens)


def lines(path):
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def canonical(path):
    return [r for _, r in read_records(str(path), Counter())]


def write_part(path, folder, n):
    """The first n records or lines of a published file, in its own format, under its own name."""
    raw, part = Path(path).read_bytes(), folder / Path(path).name
    packed = raw.startswith(b"\x1f\x8b")
    text = (gzip.decompress(raw) if packed else raw).decode()
    if text.startswith("["):
        text = json.dumps(json.loads(text)[:n], indent=2, ensure_ascii=False)
    else:
        text = "".join(text.splitlines(keepends=True)[:n])
    part.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return str(part)


# ------------------------------------------------------------------------------------------------
# each file through its stage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, enc, real):
    """A folder with an untrained policy and reward model, and the published files that a stage
    needs besides its own."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    gpt, tokenizer = GPT(GPTConfig(enc.n_vocab, CONTEXT, 1, 2, 32)), tokenizer_id(enc)
    save_checkpoint(str(folder / "gpt.pt"), gpt, tokenizer, {"stage": "sft"})
    save_checkpoint(str(folder / "rm.pt"), scorer_from(gpt), tokenizer, {"stage": "reward"})
    write_part(real(DOLLY), folder, 12)
    write_part(real(SHAKESPEARE), folder, 100)
    return folder


SIZE = f"--n-layer 1 --n-head 2 --n-embd 32 --context {CONTEXT}"
COMMANDS = {
    pretrain: f"--data FILE --tokenizer TOKENS {SIZE} --block 32 --batch 4 --tokens 256",
    sft: "--init gpt.pt --data FILE --ptx-mix 0 --epochs 1 --batch 8 --microbatch 4 --max-new 4",
    reward: "--init gpt.pt --data FILE --demos dolly-15k.part1.jsonl --batch 8 --microbatch 4",
    ppo: "--init gpt.pt --rm rm.pt --prompts FILE --ptx tinyshakespeare.txt --iterations 1 "
         "--rollout 4 --minibatch 4 --max-new 4",
    dpo: "--init gpt.pt --data FILE --batch 8 --microbatch 4 --max-new 4",
    rloo: "--init gpt.pt --rm rm.pt --prompts FILE --iterations 2 --rollout 4 --max-new 4",
    evaluate: "gpt.pt --rm rm.pt --prompts FILE --text tinyshakespeare.txt --max-new 4",
}


@pytest.mark.parametrize(("name", "n", "stage", "says"), [
    ("comparisons/hh-rlhf/helpful-base.train.jsonl.gz", 40, reward,
     "40 read as HH pairs, 40 comparisons"),
    ("comparisons/hh-rlhf/helpful-base.test.jsonl.gz", 40, reward,
     "40 read as HH pairs, 40 comparisons"),
    ("comparisons/hh-rlhf/helpful-rejection-sampled.train.jsonl.gz", 40, reward,
     "40 read as HH pairs"),
    (QA, 50, reward, "50 read as QA-Feedback"),
    ("rankings/oasst1-messages/en-validation.part1.jsonl", 400, reward, "400 OASST messages"),
    ("comparisons/hh-rlhf/helpful-base.train.jsonl.gz", 40, dpo,
     "40 read as HH pairs, 40 comparisons"),
    (QA, 50, dpo, "50 read as QA-Feedback"),
    (MT_BENCH, 20, rloo, "20 read as turns, 20 later turns left out"),
    (DOLLY, 16, sft, "16 read as Dolly"),
    ("demonstrations/gsm8k/train.first1000.jsonl", 16, sft, "16 read as questions and answers"),
    ("demonstrations/alpaca-format/instruction-data.first800.json", 16, sft, "16 read as Alpaca"),
    ("demonstrations/self-instruct/seed_tasks.jsonl", 16, sft, "16 read as self-instruct tasks"),
    ("demonstrations/sharegpt/dummy_conversation.json", 16, sft, "16 read as ShareGPT"),
    ("demonstrations/chat-messages/kto_en_demo.json", 40, sft,
     "40 read as chat messages, 15 records skipped: their reply is"),
    ("demonstrations/chat-messages/toy_chat_fine_tuning.first4.jsonl", 4, sft,
     "4 read as chat messages"),
    (MT_BENCH, 20, ppo, "20 read as turns, 20 later turns left out"),
    ("prompts/vicuna_bench.question.jsonl", 20, ppo, 
     "20 read as turns, 20 records with fields not used: question_id, 20 prompts"),
    ("eval/HumanEval.jsonl.gz", 20, evaluate, "| gpt | 0.500"),
    (SHAKESPEARE, 400, pretrain, "1 read as texts, 1 documents"),
])
def test_every_published_file_goes_through_its_stage(
    tiny, real, tokens, tmp_path, monkeypatch, capsys, name, n, stage, says
):
    """As it is, from the command line: the numbers are finite, and what was read is said."""
    places = {"FILE": write_part(real(name), tmp_path, n), "TOKENS": tokens}
    argv = [places.get(x, x) for x in COMMANDS[stage].split()]
    argv += ["--out", f"{tmp_path}/out", "--device", "cpu"]
    positional = "systems" if stage is evaluate else None
    monkeypatch.chdir(tiny)
    metrics = stage.main(cli.parse(stage.Config, stage.PRESETS, "", argv, positional=positional))
    assert says in capsys.readouterr().out
    if stage is evaluate:
        assert metrics["gpt"]["prompts"] == n and math.isfinite(metrics["gpt"]["rm_score"])
    else:
        log = lines(tmp_path / "out.log.jsonl")
        numbers = [x for line in log for name, x in line.items() if name != "run"]
        assert numbers and all(map(math.isfinite, numbers))
        assert (tmp_path / "out").is_file()


def test_published_dialogues_lose_whole_turns(real, enc):
    """Over a third of HH do not fit a context of 200 tokens: what is left begins with a turn."""
    counts = Counter()
    path = real("comparisons/hh-rlhf/helpful-base.test.jsonl.gz")
    records = load("rankings", (path,), counts, flag="--data")
    encoded = encode_rankings(records, enc, 200, counts)
    whole = [enc.decode(r.prompt).startswith("User:") for r in encoded]
    assert counts["prompts shortened by whole turns"] > 100
    assert whole.count(False) == counts["prompts cut from the left"] < len(whole) / 20


# ------------------------------------------------------------------------------------------------
# one model through all four


@pytest.fixture(scope="module")
def published(tmp_path_factory, real):
    """A folder with parts of published files: short enough for a laptop, long enough to be cut and
    dropped in places."""
    folder = tmp_path_factory.mktemp("real")
    for name, n in ((DOLLY, 110), (MT_BENCH, 80), (SHAKESPEARE, 2300)):
        write_part(real(name), folder, n)
    records = json.loads(Path(real(QA)).read_text(encoding="utf-8"))
    tied = [r for r in records[60:] if not any(r["preference"])][:3]
    part = json.dumps(records[:60] + tied, indent=2)
    (folder / Path(QA).name).write_text(part, encoding="utf-8")
    return folder


def trained(folder, stage, options):
    """Run a stage in a folder -> (its metrics, its log, what it printed)."""
    out = f"{stage.__name__}.pt"
    argv = [*options.split(), "--out", out, "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        metrics = stage.main(cli.parse(stage.Config, stage.PRESETS, "", argv))
    return metrics, lines(folder / f"{out}.log.jsonl"), printed.getvalue()


@pytest.fixture(scope="module")
def base(published, tokens):
    return trained(published, pretrain, f"""--data tinyshakespeare.txt --tokenizer {tokens} {SIZE}
                   --block 64 --batch 4 --tokens 8192 --lr 1e-2 --warmup 3""")


@pytest.fixture(scope="module")
def tuned(published, base):
    return trained(published, sft, """--init pretrain.pt --data dolly-15k.part1.jsonl --ptx-mix 0
                   --held-out 0 --batch 8 --microbatch 4 --epochs 2 --lr 5e-3 --max-new 16""")


@pytest.fixture(scope="module")
def scored(published, tuned):
    return trained(published, reward, """--init sft.pt --data dev_feedback.part1.json
                   --demos dolly-15k.part1.jsonl --batch 8 --microbatch 4 --epochs 6 --lr 3e-3""")


@pytest.fixture(scope="module")
def reinforced(published, scored):
    return trained(published, ppo, """--init sft.pt --rm reward.pt
                   --prompts mt_bench.question.jsonl --ptx tinyshakespeare.txt --ptx-ratio 1
                   --ptx-coef 1 --iterations 2 --rollout 8 --minibatch 4 --microbatch 2
                   --max-new 16 --lr 1e-3 --warmup 0 --ema 0""")


def size(enc, text):
    return len(enc.encode_ordinary(text))


def asked(prompt):
    """A prompt as a model reads it."""
    return f"User: {prompt.strip()}\n\nAssistant:"


def said(reply):
    """A reply as a model reads it, its end apart."""
    return f" {reply.strip()}"


def cut_and_dropped(folder, enc):
    """Demonstrations over the context: with a reply over half of it they are dropped, others are
    cut."""
    cut = dropped = 0
    for r in lines(folder / Path(DOLLY).name):
        prompt = f"{r['instruction']}\n\n{r['context']}" if r["context"] else r["instruction"]
        reply = size(enc, said(r["response"])) + 1
        if size(enc, asked(prompt)) + reply > CONTEXT:
            cut += reply <= CONTEXT // 2
            dropped += reply > CONTEXT // 2
    return cut, dropped


def falls(log, key, by, n=4):
    first, last = (sum(line[key] for line in part) / n for part in (log[:n], log[-n:]))
    assert all(math.isfinite(line[key]) for line in log)
    assert last < first - by, f"{key} from {first:.3f} to {last:.3f}"


def test_pretraining_on_shakespeare(base, published, enc):
    metrics, log, printed = base
    assert len(log) == 32
    falls(log, "loss", by=1)
    assert log[0]["loss"] == pytest.approx(math.log(enc.n_vocab), abs=0.5)
    text = (published / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokens = size(enc, text) + 1  # and one EOS
    trained, held = map(int, re.search(r"(\d+) tokens of text (\d+) held out",
                                       printed.replace(",", "")).groups())
    assert trained + held == tokens and tokens / 50 <= held < tokens / 50 + 1000
    assert metrics["held_out_loss"] < log[0]["loss"] - 1


def test_fine_tuning_on_dolly(tuned, published, enc):
    _, log, printed = tuned
    cut, dropped = cut_and_dropped(published, enc)
    assert dropped > 3 and cut > 3
    for what in (
        f"{dropped} demonstrations dropped: the response is too long",
        f"{cut} demonstrations cut from the left",
        f" {110 - dropped} demonstrations",
    ):
        assert what in printed
    assert len(log) == 2 * math.ceil((110 - dropped) / 8)
    falls(log, "loss", by=0.3)


def test_rewards_of_qa_feedback(scored, published, enc):
    metrics, log, printed = scored
    records = canonical(published / Path(QA).name)
    pairs = sum(len(r["comparisons"]) for r in records)
    tied = sum(not r["comparisons"] for r in records)
    assert tied >= 3
    too_long, skipped, cut = 0, 0, 0
    for r in records:
        if not r["comparisons"]:
            continue
        reply = [size(enc, said(x)) + 1 for x in r["responses"]]
        fits = [n <= CONTEXT // 2 for n in reply]
        too_long += fits.count(False)
        used = {i for pair in r["comparisons"] for i in pair if all(fits[k] for k in pair)}
        if used:
            cut += size(enc, asked(r["prompt"])) > CONTEXT - max(reply[i] for i in used)
        else:
            skipped += 1
    assert too_long > 5 and skipped > 0 and cut > 30
    for what in (
        f"{pairs} comparisons",
        f"{tied} prompts skipped: all responses tied",
        f"{too_long} responses dropped: too long",
        f"{skipped} prompts skipped: no two responses fit",
        f"{cut} prompts cut from the left",
        f"{len(records) - tied - skipped} rankings",
    ):
        assert what in printed
    falls(log, "loss", by=0.15, n=6)
    assert sum(line["accuracy"] for line in log[-6:]) / 6 > 0.65
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=0.5)
    assert abs(metrics["demonstrations_mean_score"]) < 1e-3
    assert 0 <= metrics["held_out_accuracy"] <= 1
    assert load_model(str(published / "reward.pt"), Scorer)[0].cfg.block_size == CONTEXT


def test_ppo_on_mt_bench_with_pretraining_mix(reinforced, published, enc, real):
    metrics, log, printed = reinforced
    assert len(log) == 4
    assert all(math.isfinite(v) for line in log for name, v in line.items() if name != "run")
    assert all(1 <= line["length"] <= 16 and line["score"] != 0 for line in log)
    assert abs(log[0]["kl"]) < 1e-3 and log[0]["ratio"] == pytest.approx(1, abs=1e-3)
    assert log[-1]["kl"] != log[0]["kl"]
    play = (published / "tinyshakespeare.txt").read_text(encoding="utf-8")
    blocks = cut_blocks(pack([play], enc)[:6000], 64)
    loss = []
    for file in ("sft.pt", "ppo.pt"):
        model, _ = load_model(str(published / file), GPT)
        with torch.no_grad():
            loss.append(model.loss(*text_batch(blocks)).item())
    assert loss[1] < loss[0] - 0.02
    cut = sum(size(enc, asked(r["turns"][0])) > CONTEXT - 16 for r in lines(real(MT_BENCH)))
    assert cut > 0 and f"80 prompts, {cut} prompts cut from the left" in printed
    assert "at the start: ratio" in printed and math.isfinite(metrics["eval_score"])
    load_model(str(published / "ppo.pt"), GPT, tokenizer=tokenizer_id(enc))
