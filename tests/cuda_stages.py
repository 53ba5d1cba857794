"""Every stage for a few steps on the CPU and on the pretended device: what test_cuda.py looks at.

    python -m tests.cuda_stages fp32 FOLDER       # -> FOLDER/found.json

A process of its own, as PyTorch asks once which devices there are.
"""

import contextlib
import json
import os
import sys
import time
from collections import Counter

import evaluate
import interop
import label
import page
import ppo
import pretrain
import reward
import sample
import sandbox
import sft
from codex import evaluate as codex_evaluate
from data import Prompt
from evidence import bench
from forks import dpo, rloo
from model import GPT, GPTConfig
from plumbing import files
from plumbing.results import write_jsonl
from tests.fake_cuda import fake_cuda
from tests.tiny import lively

SIZE = {"n_layer": 1, "n_embd": 32, "n_head": 2, "context": 48, "block": 48, "warmup": 1}
RARELY = {"log_every": 1000, "save_every": 1000, "eval_every": 1000}
RL = {"rollout": 8, "minibatch": 4, "microbatch": 2, "sample_batch": 4, "max_new": 16,
      "warmup": 1, "ema": 0.9}
BENCH = {"train": (2, 16), "sft": (2, 16), "generate": (2, 8, 9), "rm": (1, 3, 8, 8),
         "ppo": (4, 8, 9)}


class Interrupted(Exception):
    pass


def stages(device, precision, text, at, waits):
    """Run all on a device -> {stage: {"metrics": ..., "waits": ...}}; files lie in the folder `at`.

    Of what trains, `more` has the waits of a longer run that those of the shorter one lack."""
    os.makedirs(at)
    on = {"device": device, "precision": precision}
    found, counted = {}, {}

    def run(name, module, **settings):
        waits.clear()
        print(time.perf_counter(), name, file=sys.stderr)
        metrics = module.main(module.Config(out=f"{at}/{name}", **settings, **on))
        found[name] = metrics if isinstance(metrics, dict) else {}
        counted[name] = Counter(waits)

    prompts, demos = f"{at}/prompts.jsonl", f"{at}/demos.jsonl"
    write_jsonl(prompts, [{"prompt": p.messages} for p in sandbox.prompts(60, 0)])
    write_jsonl(demos, [{"messages": d.messages} for d in sandbox.demonstrations(40, 0)])
    text_of = {"data": (text,), "batch": 4, "microbatch": 2, **SIZE, **RARELY}
    run("base.pt", pretrain, tokens=48 * 4 * 4, **text_of)
    run("base+", pretrain, tokens=48 * 4 * 8, **text_of)
    supervised = {"init": f"{at}/base.pt", "ptx": (text,), "data": (demos,), "batch": 8,
                  "microbatch": 4, "ptx_mix": 0.2, "max_new": 16, "ema": 0.9, **RARELY}
    run("sft.pt", sft, epochs=1, **supervised)
    run("sft+", sft, epochs=2, **supervised)
    label.main(label.Config(init=(f"{at}/sft.pt",), out=f"{at}/c.jsonl", n=60, k_max=4, max_new=16,
                            device=device))
    ranked = {"init": f"{at}/sft.pt", "data": (f"{at}/c.jsonl",), "demos": (demos,), "batch": 8,
              "microbatch": 4, **RARELY}
    run("rm.pt", reward, epochs=1, **ranked)
    run("rm+", reward, epochs=2, **ranked)
    label.main(label.Config(init=(f"{at}/sft.pt",), out=f"{at}/best.jsonl", n=20, k_max=4,
                            max_new=16, rm=f"{at}/rm.pt", best_of=4, device=device))
    rl = {"init": f"{at}/sft.pt", "rm": f"{at}/rm.pt", "ptx": (text,), "prompts": (prompts,),
          **RL, **RARELY}
    run("ppo.pt", ppo, iterations=1, **rl)
    run("ppo+", ppo, iterations=2, **rl)
    run("ppo++", ppo, iterations=1, epochs=2, **rl)
    compared = {k: v for k, v in ranked.items() if k != "demos"}
    run("dpo.pt", dpo, epochs=1, max_new=16, **compared)
    run("dpo+", dpo, epochs=2, max_new=16, **compared)
    sampled = {k: rl[k] for k in ("init", "prompts", "rollout", "microbatch", "max_new")} | RARELY
    run("rloo.pt", rloo, rm=rl["rm"], iterations=1, kl="loss", **sampled)
    evaluate.main(evaluate.Config(
        systems=(f"{at}/sft.pt", f"bon2:{at}/sft.pt", f"{at}/ppo.pt"), rm=f"{at}/rm.pt", n=6,
        samples=2, dialogues=6, untouched=6, max_new=16, text=(text,), out=f"{at}/report", **on))
    with open(f"{at}/report/report.json") as f:
        found |= {s["name"]: {k: s[k] for k in ("rm_score", "kl", "pretrain_loss")}
                  for s in json.load(f)["systems"]}
    sample.main(sample.Config(model=(f"{at}/ppo.pt",), prompt="Hi.", max_new=16, device=device))
    talk, _ = page.talker(page.Config(max_new=16, device=device), [f"{at}/ppo.pt"])
    asked = {"messages": Prompt([{"role": "user", "content": "Hi."}]).messages, "turn": "1"}
    found["chat"] = {"letters": len(list(talk(asked))[-1])}
    found["resumed"] = resumed(at, text_of, on)
    found["programs"] = programs(at, text, device)
    for case, shape in BENCH.items():
        cfg = bench.Config(device=device, dtype=precision)
        bench.OURS[case](GPTConfig(512, 48, 1, 2, 32), shape, cfg).run()
    more = {short: counted[long] - counted[short] for short, long in (
        ("base.pt", "base+"), ("sft.pt", "sft+"), ("rm.pt", "rm+"), ("dpo.pt", "dpo+"),
        ("ppo.pt", "ppo+"))}
    more["epoch"] = counted["ppo++"] - counted["ppo.pt"]
    return {"metrics": found, "more": more}


def programs(at, text, device):
    """What codex.evaluate says of a model that both devices have."""
    problem = {"task_id": "f", "prompt": "def f(x):\n", "entry_point": "f",
               "canonical_solution": "    return x\n", "test": "def check(f):\n  assert f(2) == 2"}
    write_jsonl(f"{at}/problems.jsonl", [problem])
    codex_evaluate.main(codex_evaluate.Config(
        models=(f"{os.path.dirname(text)}/lively.pt",), problems=f"{at}/problems.jsonl", n=8,
        batch=5, max_new=12, temperatures=(0.0, 0.8), out=f"{at}/programs", device=device))
    with open(f"{at}/programs/samples.jsonl") as f:
        samples = [json.loads(line) for line in f]
    return {f"{name} {i}": s[name] for i, s in enumerate(samples) for name in ("logp", "tokens")}


def resumed(at, text_of, on):
    """The metrics of a run that was interrupted after its fourth step, and went on."""
    settings = {"out": f"{at}/again.pt", "tokens": 48 * 4 * 8, **text_of, **on,
                "save_every": 2, "log_every": 1}
    append = files.append_log

    def interrupting(run, line):
        append(run, line)
        if line["step"] == 4:
            raise Interrupted

    files.append_log = interrupting
    with contextlib.suppress(Interrupted):
        pretrain.main(pretrain.Config(**settings))
    files.append_log = append
    assert os.path.exists(f"{at}/again.pt.part")
    return pretrain.main(pretrain.Config(**settings))


def main(precision, folder):
    text = f"{folder}/text.jsonl"
    write_jsonl(text, [{"text": document} for document in sandbox.corpus(300, "ptx")])
    enc = interop.get_tokenizer("sandbox")
    gpt = lively(GPT(GPTConfig(enc.n_vocab, 48, 1, 2, 32)))
    files.save_checkpoint(f"{folder}/lively.pt", gpt, interop.tokenizer_id(enc),
                          {"config": {"seed": 0}})
    with fake_cuda() as waits:
        cuda = stages("cuda", precision, text, f"{folder}/cuda", waits)
    cpu = stages("cpu", precision, text, f"{folder}/cpu", Counter())
    with open(f"{folder}/found.json", "w") as f:
        json.dump({"cuda": cuda, "cpu": cpu}, f, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
