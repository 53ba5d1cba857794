"""Public data as it was published, through all four stages.

Dolly, QA-Feedback, OASST, MT-Bench, Shakespeare and GPT-2's tokens lie in ../shared/data. Where they
do not, these tests are skipped, or fail if REAL_DATA_REQUIRED is set.
"""

import json
import math
import os
import random
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import cli
import data
import evaluate
import ppo
import pretrain
import reward
import sft
from model import load_model

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
DOLLY = FOLDER / "demonstrations" / "dolly" / "dolly-15k.part1.jsonl"
QA = FOLDER / "rankings" / "qa-feedback" / "dev_feedback.part1.json"
OASST = FOLDER / "rankings" / "oasst1-messages" / "en-validation.part1.jsonl"
MT_BENCH = FOLDER / "prompts" / "mt_bench.question.jsonl"
SHAKESPEARE = FOLDER / "pretrain" / "tinyshakespeare.txt"
TOKENS = FOLDER / "tokenizer" / "gpt2.tiktoken"
CONTEXT = 256


@pytest.fixture(scope="module", autouse=True)
def real_data():
    if not all(p.is_file() for p in (DOLLY, QA, OASST, MT_BENCH, SHAKESPEARE, TOKENS)):
        if os.environ.get("REAL_DATA_REQUIRED"):
            pytest.fail(f"REAL_DATA_REQUIRED is set and {FOLDER} is not complete")
        pytest.skip(f"the real data is not in {FOLDER}")


@pytest.fixture(scope="module")
def gpt2():
    return data.get_tokenizer(str(TOKENS))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


# -------------------------------------------------------------------------------------------------
# published formats -> canonical records


def dolly():
    return [
        {
            "prompt": r["instruction"] + (f"\n\n{r['context']}" if r["context"].strip() else ""),
            "response": r["response"],
        }
        for r in lines(DOLLY)
    ]


def qa_feedback():
    """The six judged pairs (1,2) (1,3) (1,4) (2,3) (2,4) (3,4); 0 is no preference, and so no pair."""
    found = []
    for r in json.loads(QA.read_text(encoding="utf-8")):
        passages = "\n\n".join(" ".join(p[1:]) for p in r["passages"])
        pairs = [
            [i, j] if p == 1 else [j, i] for (i, j), p in zip(combinations(range(4), 2), r["preference"]) if p
        ]
        found.append(
            {
                "prompt": f"{passages}\n\n{r['question']}",
                "responses": [r[f"prediction {k}"] for k in range(1, 5)],
                "comparisons": pairs,
            }
        )
    return found


def oasst():
    """Replies to one parent are ranked together, some without a rank; the prompt is the path to the root."""
    messages = {m["message_id"]: m for m in lines(OASST)}
    children = {}
    for m in messages.values():
        children.setdefault(m["parent_id"], []).append(m)
    found, rng = [], random.Random(0)
    for parent, replies in children.items():
        path, at = [], parent
        while at in messages:
            path.insert(0, messages[at])
            at = messages[at]["parent_id"]
        ranked = [m for m in replies if m["role"] == "assistant" and m["rank"] is not None]
        if at is not None or len(ranked) < 2:
            continue
        replies = rng.sample(replies, len(replies))  # the file has them in the order of their ranks
        found.append(
            {
                "prompt": [
                    {"role": "user" if m["role"] == "prompter" else "assistant", "content": m["text"]}
                    for m in path
                ],
                "responses": [m["text"] for m in replies],
                "ranks": [m["rank"] for m in replies],
            }
        )
    return found


@pytest.fixture(scope="module")
def converted(tmp_path_factory, gpt2):
    """Files of canonical records: short enough for a laptop, long enough to be cut and dropped in places."""
    folder, rng = tmp_path_factory.mktemp("real"), random.Random(0)
    files = {
        "demos": dolly()[:110],
        "rankings": qa_feedback()[:60],
        "oasst": oasst(),
        "prompts": [{"prompt": r["turns"][0], "use_case": r["category"]} for r in lines(MT_BENCH)],
    }
    short = [d for d in files["demos"] if len(gpt2.encode_ordinary(d["prompt"])) < 100]
    files["demos"] = [short[0], *(d for d in files["demos"] if d is not short[0])]
    tied = [r | {"comparisons": []} for r in files["rankings"][:3]]
    files["rankings"] += rng.sample(tied, 3)
    for name, records in files.items():
        data.write_jsonl(str(folder / f"{name}.jsonl"), records)
    (folder / "text.txt").write_text(SHAKESPEARE.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return folder


# -------------------------------------------------------------------------------------------------
# reading


def test_the_tokenizer_file_splits_as_gpt2_does(gpt2):
    assert gpt2.n_vocab == 50257 and gpt2.eot_token == 50256
    assert gpt2.encode_ordinary("hello world") == [31373, 995]
    assert gpt2.encode_ordinary("\n\nHuman: hi\n\nAssistant: ok") == [
        198,
        198,
        20490,
        25,
        23105,
        198,
        198,
        48902,
        25,
        12876,
    ]
    assert gpt2.encode_ordinary("can't won't I'LL") == [5171, 470, 1839, 470, 314, 6, 3069]
    assert len(gpt2.encode_ordinary(SHAKESPEARE.read_text(encoding="utf-8"))) == 338_025


def test_all_of_dolly_is_read(tmp_path):
    data.write_jsonl(str(tmp_path / "d.jsonl"), dolly())
    found = data.read_demonstrations(str(tmp_path / "d.jsonl"))
    assert len(found) == 3000
    assert [d.messages[-1]["content"] for d in found] == [r["response"] for r in lines(DOLLY)]


def test_all_of_qa_feedback_is_read_and_its_ties_are_counted(tmp_path):
    """1126 + 696 of the 2,100 judged pairs have a preference; ten prompts have none."""
    data.write_jsonl(str(tmp_path / "q.jsonl"), qa_feedback())
    counts = Counter()
    found = data.read_rankings(str(tmp_path / "q.jsonl"), counts)
    same = sum(
        r["responses"][i].strip() == r["responses"][j].strip()
        for r in qa_feedback()
        for i, j in r["comparisons"]
    )
    assert counts["comparisons"] == sum(len(r.pairs) for r in found) == 1126 + 696 - same
    assert len(found) == 340 and counts["prompts skipped: all responses tied"] == 10


def test_oasst_ranks_become_pairs_and_replies_without_a_rank_stay_out_of_them(converted):
    """311 reply sets have two ranked replies or more: with 2, 3, 4, 5 replies 99, 202, 9, 1 times."""
    records, counts = oasst(), Counter()
    found = data.read_rankings(str(converted / "oasst.jsonl"), counts)
    ranked = Counter(sum(x is not None for x in r["ranks"]) for r in records)
    assert sum(ranked.values()) >= 309 and set(ranked) == {2, 3, 4, 5}  # two orphans are left out
    assert sum(None in r["ranks"] for r in records) >= 20
    by_prompt = {(str(r["prompt"]), tuple(r["responses"])): r["ranks"] for r in records}
    for r in found:
        ranks = by_prompt[str(r.messages), tuple(r.responses)]
        assert r.pairs and all(ranks[i] < ranks[j] for i, j in r.pairs)
    assert counts["comparisons"] >= 99 + 3 * 200 and any(len(r.messages) > 1 for r in found)


def test_mt_bench_is_read_as_prompts(converted):
    found = data.read_prompts(str(converted / "prompts.jsonl"))
    assert len(found) == 80 and [p.messages[0]["content"] for p in found] == [
        r["turns"][0] for r in lines(MT_BENCH)
    ]
    assert {p.use_case for p in found} == {r["category"] for r in lines(MT_BENCH)}


@pytest.mark.parametrize(
    ("name", "green"),
    [
        ("demos.jsonl", True),
        ("rankings.jsonl", True),
        ("oasst.jsonl", True),
        ("prompts.jsonl", False),
        ("text.txt", True),
    ],
)
def test_show_prints_every_kind_of_file(converted, name, green, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["data.py", "--show", str(converted / name), "--tokenizer", str(TOKENS)])
    data.main()
    shown = capsys.readouterr().out
    assert ("\033[32m" in shown) == green and "---" in shown
    if name == "prompts.jsonl":
        assert lines(converted / name)[0]["prompt"][:60] in shown and shown.count("---\n") == 5


# -------------------------------------------------------------------------------------------------
# the four stages on real data


@pytest.fixture(scope="module")
def trained(converted):
    """Run a stage on a command line, once -> (its metrics, its log, what it printed)."""
    done = {}

    def stage(module, *argv):
        out = converted / f"{module.__name__}.pt"
        if module not in done:
            cfg = cli.parse(module.Config, module.PRESETS, "", [*argv, "--out", str(out), "--device", "cpu"])
            printed = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("builtins.print", lambda *a, **k: printed.append(" ".join(map(str, a))))
                metrics = module.main(cfg)
            done[module] = metrics, lines(Path(f"{out}.log.jsonl")), "\n".join(printed)
        return done[module]

    return stage


@pytest.fixture(scope="module")
def base(trained, converted):
    return trained(
        pretrain,
        "--data",
        str(converted / "text.txt"),
        "--tokenizer",
        str(TOKENS),
        "--n-layer",
        "1",
        "--n-head",
        "2",
        "--n-embd",
        "32",
        "--context",
        str(CONTEXT),
        "--block",
        "64",
        "--batch",
        "4",
        "--tokens",
        "8192",
        "--lr",
        "1e-2",
        "--warmup",
        "3",
    )


@pytest.fixture(scope="module")
def tuned(base, trained, converted):
    return trained(
        sft,
        "--init",
        str(converted / "pretrain.pt"),
        "--data",
        str(converted / "demos.jsonl"),
        "--ptx-mix",
        "0",
        "--held-out",
        "0",
        "--batch",
        "8",
        "--microbatch",
        "4",
        "--epochs",
        "2",
        "--lr",
        "5e-3",
        "--max-new",
        "16",
    )


@pytest.fixture(scope="module")
def scored(tuned, trained, converted):
    return trained(
        reward,
        "--init",
        str(converted / "sft.pt"),
        "--data",
        str(converted / "rankings.jsonl"),
        "--demos",
        str(converted / "demos.jsonl"),
        "--batch",
        "8",
        "--microbatch",
        "4",
        "--epochs",
        "6",
        "--lr",
        "3e-3",
    )


@pytest.fixture(scope="module")
def reinforced(scored, trained, converted):
    return trained(
        ppo,
        "--init",
        str(converted / "sft.pt"),
        "--rm",
        str(converted / "reward.pt"),
        "--prompts",
        str(converted / "prompts.jsonl"),
        "--ptx",
        str(converted / "text.txt"),
        "--ptx-ratio",
        "1",
        "--ptx-coef",
        "1",
        "--iterations",
        "2",
        "--rollout",
        "8",
        "--minibatch",
        "4",
        "--microbatch",
        "2",
        "--max-new",
        "16",
        "--lr",
        "1e-3",
        "--warmup",
        "0",
        "--ema",
        "0",
    )


def size(enc, text):
    return len(enc.encode_ordinary(text))


def asked(prompt):
    """A prompt as a model reads it."""
    return f"User: {prompt.strip()}\n\nAssistant:"


def cut_and_dropped(folder, enc):
    """Demonstrations over the context: with a reply over half of it they are dropped, others are cut."""
    sizes = [
        (size(enc, asked(d["prompt"])), size(enc, f" {d['response'].strip()}") + 1)
        for d in lines(folder / "demos.jsonl")
    ]
    long = [reply for prompt, reply in sizes if prompt + reply > CONTEXT]
    return sum(n <= CONTEXT // 2 for n in long), sum(n > CONTEXT // 2 for n in long)


def falls(log, key, by, n=4):
    first, last = (sum(line[key] for line in part) / n for part in (log[:n], log[-n:]))
    assert all(math.isfinite(line[key]) for line in log)
    assert last < first - by, f"{key} from {first:.3f} to {last:.3f}"


def test_pretraining_on_shakespeare(base, converted, gpt2):
    metrics, log, printed = base
    assert len(log) == 32
    falls(log, "loss", by=1.5)
    assert log[0]["loss"] == pytest.approx(math.log(50257), abs=0.5)
    tokens = (
        len(gpt2.encode_ordinary((converted / "text.txt").read_text(encoding="utf-8"))) + 1
    )  # and one EOS
    held = math.ceil(tokens / 50)
    assert f"data: {tokens - held:,} tokens of text, {held:,} held out" in printed
    assert metrics["held_out_loss"] < log[0]["loss"] - 1


def test_fine_tuning_on_dolly(tuned, converted, gpt2):
    _, log, printed = tuned
    cut, dropped = cut_and_dropped(converted, gpt2)
    assert dropped > 3 and cut > 3
    for what in (
        f"{dropped} demonstrations dropped: the response is too long",
        f"{cut} demonstrations cut from the left",
        f" {110 - dropped} demonstrations",
    ):
        assert what in printed
    assert len(log) == 2 * math.ceil((110 - dropped) / 8)
    falls(log, "loss", by=0.3)


def test_rewards_of_qa_feedback(scored, converted, gpt2):
    metrics, log, printed = scored
    records = lines(converted / "rankings.jsonl")
    pairs = sum(len(r["comparisons"]) for r in records)
    tied = sum(not r["comparisons"] for r in records)
    assert (
        tied >= 3
        and f"{pairs} comparisons" in printed
        and f"{tied} prompts skipped: all responses tied" in printed
    )
    too_long, skipped, cut = 0, 0, 0
    for r in records:
        reply = [size(gpt2, f" {x.strip()}") + 1 for x in r["responses"]]
        used = {i for pair in r["comparisons"] for i in pair if max(reply[k] for k in pair) <= CONTEXT // 2}
        too_long += sum(n > CONTEXT // 2 for n in reply) if r["comparisons"] else 0
        skipped += bool(r["comparisons"]) and not used
        cut += bool(used) and size(gpt2, asked(r["prompt"])) > CONTEXT - max(reply[i] for i in used)
    assert too_long > 5 and skipped > 0 and cut > 30
    for what in (
        f"{too_long} responses dropped: too long",
        f"{skipped} prompts skipped: no two responses fit",
        f"{cut} prompts cut from the left",
        f"{len(records) - tied - skipped} rankings",
    ):
        assert what in printed
    falls(log, "loss", by=0.15, n=6)
    assert sum(line["accuracy"] for line in log[-6:]) / 6 > 0.65
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=0.5)
    assert abs(metrics["demonstrations_mean_score"]) < 1e-3 and 0 <= metrics["held_out_accuracy"] <= 1
    assert load_model(str(converted / "reward.pt"), "scorer")[0].cfg.block_size == CONTEXT


def test_ppo_on_mt_bench_with_pretraining_mix(reinforced, converted, gpt2):
    metrics, log, printed = reinforced
    assert len(log) == 4
    assert all(math.isfinite(v) for line in log for v in line.values())
    assert all(1 <= line["length"] <= 16 and line["score"] != 0 for line in log)
    assert (
        abs(log[0]["kl"]) < 1e-3
        and log[0]["ratio"] == pytest.approx(1, abs=1e-3)
        and log[-1]["kl"] != log[0]["kl"]
    )
    text = data.pack(data.read_text(str(converted / "text.txt")), gpt2)
    before, after = (
        evaluate.text_loss(load_model(str(converted / f), "gpt")[0], text, "cpu")
        for f in ("sft.pt", "ppo.pt")
    )
    assert after < before - 0.02
    cut = sum(size(gpt2, asked(r["turns"][0])) > CONTEXT - 16 for r in lines(MT_BENCH))
    assert cut > 0 and f"80 prompts, {cut} prompts cut from the left" in printed
    assert "at the start: ratio" in printed and math.isfinite(metrics["eval_score"])
    load_model(str(converted / "ppo.pt"), "gpt", tokenizer=data.tokenizer_id(gpt2))
