"""Two processes: the numbers, files and words of one; replicated or sharded; interrupted or killed.

torchrun starts this file as well: what each process then does stands at the end.
"""

import contextlib
import copy
import importlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import data
import interop
import ppo
import sandbox
import sft
import train
from generate import generate
from model import GPT, GPTConfig, Scorer
from plumbing import cli, files, processes, results
from plumbing.files import read_checkpoint
from plumbing.processes import frozen_copy, local, whole, whole_state
from plumbing.results import write_jsonl

HERE = os.path.abspath(__file__)
ROOT = os.path.dirname(os.path.dirname(HERE))
# A large epsilon keeps AdamW from dividing gradients by their own size: a wrong scale shows, and
# rounding stays small.
COMMON = """--device cpu --precision fp32 --adam-eps 1e-2 --warmup 2 --lr 2e-2 --microbatch 2
            --save-every 2 """
# script: its result, its options. A word with a dot is an input file. Each run has 6 steps.
STAGES = {
    "pretrain": (
        "base.pt",
        """--data text.txt --n-layer 2 --n-head 2 --n-embd 32 --context 64 --block 16 --batch 8
        --tokens 768 --eval-every 4""",
    ),
    "sft": (
        "sft.pt",
        """--init base.pt --data demos.jsonl --ptx text.txt --batch 8 --epochs 2 --dropout 0
        --ptx-mix 0.25 --ema 0.5 --max-new 8 --eval-every 4 --held-out 0.2""",
    ),
    "reward": (
        "rm.pt",
        "--init sft.pt --data rankings.jsonl --demos demos.jsonl --batch 8 --eval-every 4",
    ),
    "ppo": (
        "ppo.pt",
        """--init sft.pt --rm rm.pt --prompts prompts.jsonl --ptx text.txt --iterations 3
        --rollout 8 --minibatch 4 --microbatch 1 --sample-batch 3 --max-new 8 --ptx-ratio 0.5
        --kl-target 1 --kl-horizon 20 --kl-coef 0.1 --value-lr 1e-2 --warmup 0 --ema 0.5
        --eval-every 4""",
    ),
    "forks.dpo": (
        "dpo.pt",
        "--init sft.pt --data rankings.jsonl --batch 8 --max-new 8 --eval-every 4",
    ),
    "forks.rloo": (
        "rloo.pt",
        """--init sft.pt --rm rm.pt --prompts prompts.jsonl --iterations 6 --rollout 8 --k 2
        --microbatch 1 --sample-batch 3 --max-new 8 --kl loss --length --eval-every 4""",
    ),
}
MODES = {"replicated": "", "sharded": "--shard", "recomputed": "--shard --recompute"}
RUNS = [
    (script, mode)
    for mode in MODES
    for script in STAGES
    if mode != "recomputed" or script in ("reward", "ppo")
]
SMALL = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)
CFG = train.TrainConfig(device="cpu", precision="fp32", weight_decay=0.1, adam_eps=1e-2)
THEN_ONE_DIES = "---- then process 1 dies ----"


class Interrupted(Exception):
    """What ends a run in the middle, on all of its processes."""


def call_of(script, folder, more="", **disturbed):
    """A command whose result lies in `folder`, and whose inputs lie with those of one process."""
    out, options = STAGES[script]
    inputs = folder.parent / "one"
    argv = [
        str(inputs / x) if "." in x and x[-1].isalpha() else x for x in (COMMON + options).split()
    ]
    return {
        "script": script,
        "argv": [*argv, *more.split(), "--out", str(folder / out)],
        **disturbed,
    }


@contextlib.contextmanager
def disturbance(call):
    """After call["stop"] steps of the run in here all processes raise Interrupted; after
    call["kill"] steps process 1 dies without a word."""
    networks, calls = 2 if call["script"] == "ppo" else 1, itertools.count()

    def before_a_step(optimizer, args, kwargs):
        done = next(calls) // networks
        if done == call.get("stop"):
            raise Interrupted
        if done == call.get("kill") and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    handle = register_optimizer_step_pre_hook(before_a_step)
    try:
        yield
    finally:
        handle.remove()


def run(call):
    """Run a call in this process, as its command line would."""
    module = importlib.import_module(call["script"])
    argv, sys.argv = sys.argv, [call["script"], *call["argv"]]
    with disturbance(call), contextlib.suppress(Interrupted, SystemExit):
        cli.run(module.main, module.Config, module.PRESETS, module.__doc__)
    sys.argv = argv
    results.release_all()  # as at the end of a process


def said_by(call):
    """Run a call in this process -> the lines that it says."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run(call)
    return said.getvalue().splitlines()


@contextlib.contextmanager
def two_processes(folder):
    """torchrun two processes, which try the functions of `units` and then run what `folder` has
    in calls.jsonl, as soon as it is there."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*argv, HERE, str(folder / "calls.jsonl")], env=env, **pipes) as process:
        try:
            yield process
        finally:
            process.terminate()  # torchrun then ends its processes as well


def write_inputs(folder):
    """Text, demonstrations, rankings of 2 or 4 responses by 5 labelers, and prompts: a few each."""
    (folder / "text.txt").write_text("\n\n".join(sandbox.corpus(300)))
    words = [[m["content"] for m in d.messages[:2]] for d in sandbox.demonstrations(30)]
    write_jsonl(folder / "demos.jsonl", [{"prompt": x, "response": y} for x, y in words])
    write_jsonl(folder / "prompts.jsonl", [{"prompt": x} for x, _ in words])
    said, rng = ["I am.", "You are fine.", "Thank you.", "I do not know."], random.Random(0)
    rankings = []
    for i, n in enumerate([2, 4, 2, 2, 4] * 12):
        rankings.append(
            {
                "prompt": f"{words[i % 30][0]} {i}",
                "responses": said[:n],
                "ranks": [1, *rng.choices((1, 2, 2, None), k=n - 2), 3],
                "labeler": f"labeler {i % 5 + 1}",
            }
        )
    write_jsonl(folder / "rankings.jsonl", rankings)


class World(NamedTuple):
    folder: Path
    reports: dict  # {script: what one process says of the data}
    done: object  # what two processes said
    seconds: float  # from the last save before one of them died to the end of the other
    saved: dict  # {folder: {script: the steps that interrupted runs had saved}}
    again: list  # what one process said when it finished them


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Each stage on one process; on two in each mode; on one interrupted, then on two interrupted,
    then on one to its end; and a run on two one of which dies, and then on one."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("one", "back", "killed", *MODES):
        (folder / name).mkdir()
    write_inputs(folder / "one")
    with two_processes(folder) as process:
        reports, saved = {}, {name: [] for name in (*STAGES, "killed")}
        calls = [call_of(script, folder / mode, MODES[mode]) for script, mode in RUNS]
        for script, (out, _) in STAGES.items():
            said = said_by(call_of(script, folder / "one"))
            [reports[script]] = [line for line in said if line.startswith("data: ")]
            run(call_of(script, folder / "back", stop=3))
            saved[script].append(saved_step(f"{folder}/back/{out}"))
            mode = "" if script == "pretrain" else "--shard"
            calls.append(call_of(script, folder / "back", mode, stop=3))
        nowhere = [f"{folder}/nowhere.pt" if x.endswith("base.pt") else x for x in calls[1]["argv"]]
        calls += [{"script": "sft", "argv": nowhere}, call_of("sft", folder / "killed", kill=5)]
        write_jsonl(folder / "calls.jsonl", calls)
        out, err = process.communicate(timeout=300)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert os.path.exists(f"{folder}/killed/sft.pt.part"), done.stderr
    seconds = time.time() - os.path.getmtime(f"{folder}/killed/sft.pt.part")
    saved["killed"].append(saved_step(f"{folder}/killed/sft.pt"))
    again = said_by(call_of("sft", folder / "killed"))
    for script, (out, _) in STAGES.items():
        saved[script].append(saved_step(f"{folder}/back/{out}"))
        again += said_by(call_of(script, folder / "back"))
    return World(folder, reports, done, seconds, saved, again)


def saved_step(out):
    return read_checkpoint(f"{out}.part")["resume"]["step"]


# ---- the numbers, the files and the words ------------------------------------------------------


def measured(numbers):
    """What does not depend on speed."""
    return {k: v for k, v in numbers.items() if k != "seconds" and not k.endswith("_per_second")}


def log_of(path):
    lines = Path(f"{path}.log.jsonl").read_text().splitlines()
    return [measured(json.loads(line)) for line in lines]


def assert_same(a, b):
    """Two results of one stage, with their logs, are equal but for rounding, and alike as files."""
    logs = log_of(a), log_of(b)
    assert [line["step"] for line in logs[0]] == list(range(len(logs[0])))
    for one, two in zip(*logs, strict=True):
        assert one.pop("run") == two.pop("run")  # the command that wrote it
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5), one["step"]
    a, b = read_checkpoint(a), read_checkpoint(b)
    assert {type(w) for w in b["weights"].values()} == {torch.Tensor}
    torch.testing.assert_close(b.pop("weights"), a.pop("weights"), rtol=1e-5, atol=1e-5)
    want = a["meta"].pop("metrics")
    assert b["meta"].pop("metrics") == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert b == a  # kind, config, tokenizer, and what trained it


@pytest.mark.parametrize("script, mode", RUNS)
def test_two_processes_compute_what_one_does(world, script, mode):
    """At every step every loss, norm and statistic; what was held out; the weights; and meta:
    --shard is no setting of a run."""
    out = STAGES[script][0]
    assert_same(world.folder / "one" / out, world.folder / mode / out)
    interop.load_model(f"{world.folder}/{mode}/{out}", Scorer if script == "reward" else GPT)


def test_the_runs_are_a_test(world):
    """What is compared moves: the weights, the gradients that are clipped and those that are not,
    the KL coefficient."""
    one = world.folder / "one"
    logs = {out: log_of(one / out) for out, _ in STAGES.values()}
    first, last = (read_checkpoint(one / name)["weights"] for name in ("sft.pt", "ppo.pt"))
    assert max((first[k] - last[k]).abs().max() for k in first) > 0.01
    norms = [line["grad_norm"] for log in logs.values() for line in log]
    assert min(norms) < 0.9 and max(norms) > 1.1
    lines = logs["ppo.pt"]
    assert len({line["kl_coef"] for line in lines}) == 3 and lines[-1]["kl"] > 0.01
    assert any(0 < line["clip_fraction"] < 1 for line in lines) and "eval_score" in lines[-1]


def test_only_process_0_speaks_and_writes(world):
    undisturbed, _ = world.done.stderr.split(THEN_ONE_DIES)
    lines = world.done.stdout.splitlines()
    for script in STAGES:
        runs = [s for s, _ in RUNS].count(script)
        name = script.removeprefix("forks.")
        assert undisturbed.count(f"\n{name}:   0%") == runs  # the bar's first picture
        # those that went on, and of sft the one that is killed
        assert lines.count(world.reports[script]) == runs + 1 + (script == "sft")
    assert world.done.stdout.count("going on from step 2 of ") == len(STAGES)
    assert "Traceback" not in undisturbed
    assert not [p for p in world.folder.rglob("*") if p.suffix in (".tmp", ".part")]


@pytest.mark.parametrize("script", STAGES)
def test_an_interrupted_run_goes_on_with_any_number_of_processes(world, script):
    """One, then two, then one: the two have a part of each network, but in pretraining."""
    out = STAGES[script][0]
    assert world.saved[script] == [2, 4]
    assert f"going on from step 4 of {world.folder}/back/{out}.part" in world.again
    assert_same(world.folder / "one" / out, world.folder / "back" / out)


def test_a_dead_process_ends_the_run_which_then_goes_on(world):
    """torchrun names the process and the signal; the same command goes on from what was saved."""
    assert world.done.returncode != 0 and world.seconds < 60
    assert "SIGKILL" in world.done.stderr.split(THEN_ONE_DIES)[1]
    assert world.saved["killed"] == [4]
    assert f"going on from step 4 of {world.folder}/killed/sft.pt.part" in world.again
    assert_same(world.folder / "one" / "sft.pt", world.folder / "killed" / "sft.pt")


def test_bad_input_ends_in_a_sentence_of_each_process(world):
    for who in ("error", "error in process 1"):
        sentence = f"{who}: --init {world.folder}/nowhere.pt does not exist; `python pretrain.py"
        assert world.done.stderr.count(sentence) == 1


# ---- in one process ----------------------------------------------------------------------------


def prompts_of(n):
    rng = torch.Generator().manual_seed(n)
    return data.pad([torch.randint(1, 11, (1 + b % 3,), generator=rng).tolist() for b in range(n)])


@pytest.mark.parametrize("size", (2, 3, 7))
def test_a_part_of_a_batch_draws_what_it_would_draw_in_the_whole(size):
    torch.manual_seed(0)
    model, prompts = GPT(SMALL), prompts_of(7)
    everything = generate(model, *prompts, 5, 0, seed=3)
    for r in range(size):
        rows = torch.arange(7)[r::size]
        part = generate(model, *(x[rows] for x in prompts), 5, 0, seed=3, draws=(rows, 7))
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, everything))


@pytest.mark.parametrize("sample_batch", (1, 3, 5))
def test_a_rollout_does_not_depend_on_how_many_are_sampled_together(sample_batch):
    """But for the pads, which stand wherever the longest of them ends. Lengths are mixed, so that
    rows are sampled in another order than they stand in."""
    torch.manual_seed(0)
    policy, value, eos = GPT(SMALL), Scorer(SMALL), 7
    models = ppo.Models(policy, value, frozen_copy(policy), frozen_copy(value))
    found = []
    for n in (0, sample_batch):
        cfg = ppo.Config(max_new=5, sample_batch=n)
        found.append(ppo.roll_out(models, prompts_of(8), cfg, 0.1, eos, seed=1)[0])
    one, two = found
    said = torch.arange(one.ids.shape[1]) < one.total[:, None]
    assert one.ids.shape == two.ids.shape and torch.equal(one.ids[said], two.ids[said])
    assert not torch.equal(one.ids, two.ids)
    torch.testing.assert_close(two[1:], one[1:])
    assert len(set(one.total.tolist())) > 2


def test_what_cannot_be_split_is_refused(tmp_path, monkeypatch):
    gpt, own = GPT(SMALL), interop.tokenizer_id(interop.get_tokenizer("sandbox"))
    files.save_checkpoint(f"{tmp_path}/base.pt", gpt, own, {})
    with pytest.raises(ValueError, match="--shard .* start it with torchrun --nproc_per_node"):
        sft.main(sft.Config(init=f"{tmp_path}/base.pt", out=f"{tmp_path}/x.pt", shard=True))
    assert [p.name for p in tmp_path.iterdir()] == ["base.pt"]
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    assert processes.share([1, 2, 3, 4]) == [2, 4]
    sentence = "3 rows of a batch cannot be split evenly over 2 processes: make --batch"
    with pytest.raises(ValueError, match=sentence):
        processes.share([1, 2, 3])


# ---- the functions of plumbing/processes.py and train.py, on two processes ---------------------


@pytest.fixture
def found(world):
    """What `units` found on process 0 and on process 1."""
    return [torch.load(world.folder / f"units.{rank}", weights_only=False) for rank in (0, 1)]


def test_what_processes_tell_each_other_split_and_draw_apart(found):
    for x in found:
        assert x["split"]  # by train(), on --shard
        assert x["sum"].tolist() == [2, 1]
        assert x["mean"] == (3, 0)
        assert x["list"] == [0, 1, 1]
        assert "see different files" in x["disagreement"]
    # all_sum leaves its argument alone
    assert [x["summed"].tolist() for x in found] == [[1, 0], [1, 1]]
    # another seed for each process and step
    assert len({u for x in found for u in x["draws"]}) == 2 * 3


def test_whole_has_the_weights_of_the_module_it_was_split_from(found):
    model = GPT(SMALL)
    assert whole(model) is model and model.training
    for x in found:
        assert x["local"] < x["plain"] / 1.5 and not x["training"]  # it was split
        for got, wanted in (x["whole"], x["whole in bf16"]):
            assert list(got) == list(wanted)
            for name, w in got.items():
                assert w.dtype == wanted[name].dtype and w.equal(wanted[name]), name
        kinds = {w.dtype for w in x["whole in bf16"][0].values()}
        assert kinds == {torch.float32, torch.bfloat16}
        assert x["answers in bf16"][0].equal(x["answers in bf16"][1])


def test_gradients_and_their_norm_are_those_of_the_whole_batch(found):
    """Summed over processes; left alone under a bound, clipped to one that they exceed."""
    for x in found:
        assert x["norms"][0] == pytest.approx(x["norms"][1], rel=1e-5)
    torch.testing.assert_close(*found[0]["gradients"], rtol=1e-5, atol=1e-6)
    assert set(found[1]["gradients"][0].values()) == {None}  # only process 0 needs them


def test_the_optimizer_decays_steps_and_is_restored_as_it_is_unsplit(found):
    for x in found:
        names = len(x["whole"][0])
        assert x["decayed"][0] == x["decayed"][1] and 0 < len(x["decayed"][0]) < names
        assert len(x["kinds"]) == 4 and all(len(kind) == 1 for kind in x["kinds"])
        assert len(x["back"]) == 4 * names and all(x["back"])  # from a file
    torch.testing.assert_close(*found[0]["state"], rtol=1e-5, atol=1e-6)


def units(folder):
    """Try the functions on each process, and write what they return for the tests above."""
    processes.join(CFG)
    found = talk()
    found["split"], found["draws"] = train_a_toy(folder)
    torch.manual_seed(0)
    plain = Scorer(SMALL)
    sharded, ids = copy.deepcopy(plain), torch.randint(11, (4, 8))
    processes.shard(sharded)
    found |= gather(sharded, plain, ids) | step(sharded, plain, ids, folder)
    torch.save(found, f"{folder}/units.{processes.rank()}")


def talk():
    """What processes tell each other."""
    rank = processes.rank()
    found = {"summed": torch.tensor([1, rank])}
    found["sum"] = processes.all_sum(found["summed"])
    found["mean"] = processes.all_mean(3.0 * rank, rank), processes.all_mean(0.0, 0)
    found["list"] = processes.all_list([rank] * (rank + 1))
    processes.agree("the same")
    with pytest.raises(ValueError) as disagreement:
        processes.agree(rank)
    return found | {"disagreement": str(disagreement.value)}


def train_a_toy(folder):
    """Three steps with --shard -> whether the network was split, a draw of each step."""
    toy, cfg = GPT(SMALL), replace(CFG, out=f"{folder}/toy.pt", shard=True)

    def batches(start):
        while True:
            yield torch.rand(()).item()

    def losses(draw):
        draws.append(draw)
        yield 1.0, toy(torch.ones(2, 8).long()).mean(), {}

    draws, run = [], files.Run(cfg, {"stage": "toy"}, "cpu", None)
    train.train(run, [train.Network(toy, 0.1)], batches, losses, 3, {"name": "", "hash": ""})
    return all(isinstance(p, DTensor) for p in toy.parameters()), draws


def size(module):
    """Numbers that this process has."""
    return sum(local(p).numel() for p in module.parameters())


def gather(sharded, plain, ids):
    """Whole copies of a module that is split, and of one that is not."""
    found = {"local": size(sharded), "plain": size(plain), "training": whole(sharded).training}
    found["whole"] = copy.deepcopy((whole(sharded).state_dict(), plain.state_dict()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, theirs = whole(sharded), frozen_copy(plain)
        found["answers in bf16"] = ours(ids), theirs(ids)
    # the head is not split: it stays as it is
    theirs.head.float().load_state_dict(plain.head.state_dict())
    found["whole in bf16"] = copy.deepcopy((ours.state_dict(), theirs.state_dict()))
    return found


def step(sharded, plain, ids, folder):
    """Gradients of a loss, their norms, a step of the optimizers, and their state in a file."""
    modules, found = (sharded, plain), {}
    (sharded(processes.share(ids)) ** 2).sum().backward()
    (plain(ids) ** 2).sum().backward()
    processes.sum_gradients(sharded)
    bound = train.clip_grad(plain, 0).item()
    bounds = (0, 2 * bound, bound / 3, 0)
    found["norms"] = [[train.clip_grad(m, b).item() for b in bounds] for m in modules]
    grads = [{name: p.grad for name, p in m.named_parameters()} for m in modules]
    found["gradients"] = [whole_state(g) for g in grads]

    optimizers = [train.make_optimizer(m, CFG) for m in modules]
    names = [{p: name for name, p in m.named_parameters()} for m in modules]
    found["decayed"], found["state"] = [], []
    for o, name in zip(optimizers, names):
        decayed = [p for g in o.param_groups if g["weight_decay"] for p in g["params"]]
        found["decayed"].append(sorted(name[p] for p in decayed))
        o.step()
        found["state"].append(whole_state({n: [p, o.state[p]] for p, n in name.items()}))
    groups = optimizers[0].param_groups
    found["kinds"] = [{isinstance(p, DTensor) for p in g["params"]} for g in groups]
    if processes.rank() == 0:
        torch.save(found["state"][0], f"{folder}/state")
    dist.barrier()
    saved, found["back"] = torch.load(f"{folder}/state"), []
    for p, name in names[0].items():
        weights, state = saved[name]
        pairs = [(p, weights), *((x, state[k]) for k, x in optimizers[0].state[p].items())]
        for x, stored in pairs:
            y = processes.like(p, stored)
            same_kind = isinstance(x, DTensor) == isinstance(y, DTensor)
            found["back"].append(same_kind and local(x).equal(local(y)))
    return found


if __name__ == "__main__":
    todo = Path(sys.argv[1])
    units(todo.parent)
    while not todo.exists():
        time.sleep(0.02)
    for call in map(json.loads, todo.read_text().splitlines()):
        if "kill" in call and processes.rank() == 0:
            print(THEN_ONE_DIES, file=sys.stderr, flush=True)
        run(call)
