"""How fast each stage is: against what this machine can do at most, and against others' code.

    python -m evidence.bench                                    # every case at size S, in fp32
    python -m evidence.bench --cases train,rm --size M --dtype bf16 --peer transformers
    python -m evidence.bench --cases ppo --peer trl             # TRL 1.10, the last one with PPO
    python -m evidence.bench --cases train,generate --peer nanogpt=FOLDER     # with its model.py
    python -m evidence.bench --sweep                            # how cost grows -> bench.png

What is timed are the functions that the stages call. Every system has a process of its own, and the
processes take turns: a machine that is slow for a while is slow for all of them. Beside the systems
run a matrix product and a copy of memory, which say what the machine can do. The floor of a case is
the time that its arithmetic takes at that rate, or its traffic at that bandwidth, whichever is
longer, summed over its parts. MFU is the arithmetic, and "of bytes" the traffic, as a share of what
the maker of a card states (CARDS), of any other device as a share of what was measured. A ratio is
a peer's time over ours: medians over the rounds, with the extremes. "transformers + allocator" is
the peer with the setting of cli.keep_freed_memory.

Sizes: S has 4 layers, 128 channels, 512 tokens of vocabulary, M is GPT-2's smallest with a context
of 512. Weights and tokens are random. Legend: B rows or prompts, K responses to a prompt, P tokens
of a prompt, R of a response, T of a row.
"""
import importlib.util
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm import tqdm

import data
import ppo
import reward
from generate import generate
from model import GPT, GPTConfig, Scorer
from plumbing import cli, processes, results
from plumbing.processes import autocast, frozen_copy, get_device, prepare_blocks
from train import Network, TrainConfig, make_optimizer, update


@dataclass(frozen=True)
class Config:
    cases: str = "train,generate,sft,rm,ppo"   # which, separated by commas
    size: str = "S"                 # of the model: see above; S | M
    dtype: str = "fp32"             # what arithmetic is done in; fp32 | bf16
    compile: bool = False           # torch.compile, as --compile of the stages
    peer: str = "none"              # who else does the same work: none, transformers, trl, or
                                    # nanogpt=FOLDER
    sweep: bool = False             # time against context, K, batch and response length, and plot
    rounds: int = 5                 # repetitions of each system, one round after the other; >= 1
    out: str = "bench.png"          # the plot of --sweep
    overwrite: bool = False         # replace the file that stands there
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"all": {}}
SIZES = {"S": GPTConfig(512, 256, 4, 4, 128), "M": GPTConfig(50257, 512, 12, 12, 768)}
SHAPES = {
    "train": {"S": (16, 256), "M": (2, 512)},                   # B, T
    "sft": {"S": (16, 256), "M": (4, 256)},                     # B, T
    "generate": {"S": (64, 32, 96), "M": (8, 64, 64)},          # B, P, R
    "rm": {"S": (1, 8, 192, 64), "M": (1, 8, 192, 64)},         # B, K, P, R
    "ppo": {"S": (64, 32, 64), "M": (8, 32, 64)},               # B, P, R; 4 minibatches
}
# Part of a card's name: FLOP/s in bf16 (dense, sums in fp32) and bytes/s, as its maker states them.
CARDS = {
    "B200": (2250e12, 8.0e12),
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.0e12),
    "L40S": (362e12, 0.86e12),
    "RTX 5090": (209e12, 1.79e12),
    "RTX 4090": (165e12, 1.01e12),
    "RTX 3090": (71e12, 0.94e12),
}
SFT_SHARE = 0.25        # of a row of "sft" that is the response's, and trained on


class Case(NamedTuple):
    run: object         # does the work once
    tokens: int         # that the work is about: trained on, generated, or rolled out
    work: list          # (FLOPs, bytes) of each part; a part follows another


# ---- what the work is at least ----------------------------------------------------------------

def flops(c, tokens, pairs, logits):
    """Of a forward: 2 for each weight of a matrix and token, 4 C for each query and key that it may
    see (`pairs`), and the unembedding of `logits` tokens."""
    weights = 24 * c.n_layer * c.n_embd**2 * tokens
    attention = 4 * c.n_layer * c.n_embd * pairs
    return weights + attention + 2 * c.vocab_size * c.n_embd * logits


def triangle(T):
    """Queries and keys of a causal row of T tokens."""
    return T * (T + 1) // 2


def decoding(c, B, P, R, dtype):
    """The parts of a rollout: all prompts at once, then R steps that read the weights and cache."""
    width = 2 if dtype == "bf16" else 4                         # bytes of a number
    seen = sum(range(P + 1, P + R + 1))                         # keys, by the R queries of a row
    weights = 12 * c.n_layer * c.n_embd**2 + c.vocab_size * c.n_embd
    cache = 2 * c.n_layer * c.n_embd * B * seen
    return [(flops(c, B * P, B * triangle(P), B), weights * width),
            (flops(c, B * R, B * seen, B * R), (R * weights + cache) * width)]


# ---- our side ---------------------------------------------------------------------------------

def tokens_of(c, *shape):
    """Random tokens; the last of the vocabulary, EOS, is not among them."""
    return torch.randint(c.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))


def train_config(cfg):
    return TrainConfig(precision=cfg.dtype, device=cfg.device, compile=cfg.compile)


def stepper(networks, losses, cfg):
    """-> a function that does one optimizer step on the pieces of `losses(...)`."""
    run = train_config(cfg)
    optimizers = [make_optimizer(n.module, run) for n in networks]
    for n in networks:
        prepare_blocks(n.module, run)
    forward = autocast(run)
    return lambda *args: update(networks, optimizers, losses(*args), run, forward)


def train(c, shape, cfg, trained=1.0):
    """A step of pretrain.py, or of sft.py if only a part of each row is trained on."""
    B, T = shape
    device = get_device(cfg)
    torch.manual_seed(0)
    model = GPT(c).to(device)
    is_trained = [t >= T * (1 - trained) for t in range(T)]
    rows = [(ids, is_trained) for ids in tokens_of(c, B, T).tolist()]

    def losses():
        loss = model.loss(*data.tokens_batch(rows, device))
        yield 1.0, loss, {"loss": loss}
    work = 3 * flops(c, B * T, B * triangle(T), B * sum(is_trained[1:]))
    return Case(stepper([Network(model, 1e-4)], losses, cfg), B * T, [(work, 0)])


def rm(c, shape, cfg):
    """A step of reward.py: K ranked responses that share a prompt."""
    B, K, P, R = shape
    device = get_device(cfg)
    torch.manual_seed(0)
    scorer = Scorer(c).to(device)
    pairs = [(i, j) for i in range(K) for j in range(i + 1, K)] or [(0, 0)]
    rankings = []
    for ids in tokens_of(c, B, P + K * R).tolist():
        responses = data.chunks(ids[P:], R)
        rankings.append(data.EncodedRanking(ids[:P], responses, pairs, ""))

    def losses():
        batch = data.comparisons_batch(rankings, device)
        score = reward.score_responses(scorer, batch)
        loss = reward.pairwise_loss(score, batch.better, batch.worse, batch.weight)
        yield 1.0, loss, {"loss": loss}
    seen = triangle(P) + K * (R * P + triangle(R))
    tokens = B * (P + K * R)
    step = stepper([Network(scorer, 1e-4)], losses, cfg)
    return Case(step, tokens, [(3 * flops(c, tokens, B * seen, 0), 0)])


def endless(model):
    """`model` with an EOS, its last token, that is never sampled: no response ends early."""
    with torch.no_grad():
        model.ln_f.bias[0] = 10.0
        model.wte.weight[-1, 0] = -10.0
    return model


def sampling(c, shape, cfg):
    """A rollout without its scores."""
    B, P, R = shape
    device = get_device(cfg)
    torch.manual_seed(0)
    model = endless(GPT(c)).to(device)
    prompts = data.pad(tokens_of(c, B, P).tolist(), device)
    forward = autocast(train_config(cfg))

    def run():
        with forward:
            generate(model, *prompts, R, c.vocab_size - 1, compile=cfg.compile)
    return Case(run, B * R, decoding(c, B, P, R, cfg.dtype))


def ppo_iteration(c, shape, cfg):
    """An iteration of ppo.py without pretraining text: rollout, scores, 4 minibatches."""
    B, P, R = shape
    settings = ppo.Config(rollout=B, minibatch=B // 4, max_new=R, precision=cfg.dtype,
                          device=cfg.device, compile=cfg.compile)
    device, forward = get_device(cfg), autocast(settings)
    torch.manual_seed(0)
    policy, value = endless(GPT(c)).to(device), Scorer(c).to(device)
    with forward:
        reference, rewarder = frozen_copy(policy, device), frozen_copy(value, device)
    models = ppo.Models(policy, value, reference, rewarder)
    no_answer_keys = [data.Prompt([])] * B
    no_text = torch.empty(0, 1, dtype=torch.long)
    enc = SimpleNamespace(eot_token=c.vocab_size - 1)
    inputs = ppo.Inputs(no_answer_keys, tokens_of(c, B, P).tolist(), no_text, enc)
    step = stepper([Network(policy, 1e-5), Network(value, 1e-5)],
                   lambda minibatch: ppo.ppo_ptx_losses(models, minibatch, settings, device), cfg)

    def run():
        # from step 4, the second iteration: the checks before the first update are not part of it
        source = ppo.minibatches(models, inputs, settings, {"kl_coef": 0.02}, start=4)
        for _ in range(4):
            with forward:
                minibatch = next(source)
            step(minibatch)
    # a forward of a trunk over all episodes, with the logits of the responses or with none
    with_logits = flops(c, B * (P + R), B * triangle(P + R), B * R)
    without = flops(c, B * (P + R), B * triangle(P + R), 0)
    scores = 2 * with_logits + 2 * without          # policy and reference; value and reward model
    updates = 3 * (with_logits + without)           # policy; value
    return Case(run, B * R, [*decoding(c, B, P, R, cfg.dtype), (scores, 0), (updates, 0)])


OURS = {"train": train, "generate": sampling, "sft": partial(train, trained=SFT_SHARE), "rm": rm,
        "ppo": ppo_iteration}


# ---- the peer ---------------------------------------------------------------------------------

def hf_config(c, **more):
    from transformers import GPT2Config
    return GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd,
                      n_layer=c.n_layer, n_head=c.n_head, resid_pdrop=0.0, embd_pdrop=0.0,
                      attn_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=0, **more)


def hf_stepper(model, loss, cfg):
    """A step as transformers' Trainer takes it: autocast, a clipped gradient, its fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run():
        with autocast(train_config(cfg)):
            x = loss()
        x.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.train()
    if cfg.compile:
        model.compile()
    return run


def hf_train(c, shape, cfg, trained=1.0):
    from transformers import GPT2LMHeadModel
    B, T = shape
    model = GPT2LMHeadModel(hf_config(c)).to(get_device(cfg))
    ids = tokens_of(c, B, T).to(get_device(cfg))
    is_prompt = torch.arange(T, device=ids.device) < T * (1 - trained)
    labels = ids.masked_fill(is_prompt, -100)
    return Case(hf_stepper(model, lambda: model(input_ids=ids, labels=labels).loss, cfg), B * T, [])


def hf_rm(c, shape, cfg, as_pairs=False):
    """One forward for each completion, or, as TRL does, two for each pair."""
    from transformers import GPT2ForSequenceClassification
    B, K, P, R = shape
    model = GPT2ForSequenceClassification(hf_config(c, num_labels=1)).to(get_device(cfg))
    first, second = torch.triu_indices(K, K, 1)
    prompt = tokens_of(c, B, P)[:, None].expand(B, K, P)
    rows = torch.cat([prompt, tokens_of(c, B, K, R)], 2)                # (B, K, P + R)
    if as_pairs:
        rows = torch.cat([rows[:, first], rows[:, second]], 1)          # (B, 2 pairs, P + R)
    ids = rows.flatten(0, 1).to(get_device(cfg))

    def loss():
        score = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.view(B, -1)
        better, worse = score.chunk(2, 1) if as_pairs else (score[:, first], score[:, second])
        return -torch.nn.functional.logsigmoid(better - worse).mean()
    return Case(hf_stepper(model, loss, cfg), B * (P + K * R), [])


def hf_generate(c, shape, cfg):
    from transformers import GPT2LMHeadModel
    B, P, R = shape
    model = GPT2LMHeadModel(hf_config(c)).to(get_device(cfg)).eval()
    model = model.bfloat16() if cfg.dtype == "bf16" else model
    ids = tokens_of(c, B, P).to(get_device(cfg))
    run = lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                                 max_new_tokens=R)
    return Case(run, B * R, [])


def trl_ppo(c, shape, cfg):
    """An iteration of TRL's PPOTrainer: the same rollout, four optimizer steps."""
    from datasets import Dataset
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    B, P, R = shape
    policy, reference = (GPT2LMHeadModel(hf_config(c)) for _ in range(2))
    scorers = [GPT2ForSequenceClassification(hf_config(c, num_labels=1)) for _ in range(2)]
    prompts = Dataset.from_dict({"input_ids": tokens_of(c, B, P).tolist()})
    folder = tempfile.TemporaryDirectory()              # which TRL wants; nothing is written there
    # of the tokenizer only these are read; no prompt holds the token
    ends = SimpleNamespace(pad_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1)
    settings = PPOConfig(
        output_dir=folder.name, per_device_train_batch_size=B, num_mini_batches=4,
        num_ppo_epochs=1, total_episodes=B, local_rollout_forward_batch_size=B, response_length=R,
        temperature=1.0, learning_rate=1e-5, num_sample_generations=0, report_to="none",
        save_strategy="no", logging_steps=10**6, disable_tqdm=True, bf16=cfg.dtype == "bf16",
        use_cpu=get_device(cfg) == "cpu", gradient_checkpointing=False)
    trainer = PPOTrainer(
        settings, ends, policy, reference, scorers[0], prompts, value_model=scorers[1],
        data_collator=lambda rows: {"input_ids": torch.tensor([r["input_ids"] for r in rows])})
    return Case(trainer.train, B * R, [])


def nanogpt(folder):
    """nanoGPT's model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt", os.path.join(folder, "model.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nano_model(c, cfg, folder):
    nano = nanogpt(folder)
    settings = nano.GPTConfig(block_size=c.block_size, vocab_size=c.vocab_size, n_layer=c.n_layer,
                              n_head=c.n_head, n_embd=c.n_embd, dropout=0.0, bias=True)
    return nano.GPT(settings).to(get_device(cfg))


def nano_train(c, shape, cfg, folder):
    """A step of its train.py."""
    B, T = shape
    device, model = get_device(cfg), nano_model(c, cfg, folder)
    optimizer = model.configure_optimizers(0.0, 1e-4, (0.9, 0.95), device)
    rows = tokens_of(c, B, T + 1).to(device)
    x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def run():
        with autocast(train_config(cfg)):
            _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if cfg.compile:
        model.compile()
    return Case(run, B * T, [])


def nano_generate(c, shape, cfg, folder):
    B, P, R = shape
    model, ids = nano_model(c, cfg, folder).eval(), tokens_of(c, B, P).to(get_device(cfg))

    def run():
        with autocast(train_config(cfg)):
            model.generate(ids, R)
    return Case(run, B * R, [])


AS_PAIRS = partial(hf_rm, as_pairs=True)
PEERS = {
    "transformers": {
        "train": {"transformers": hf_train},
        "sft": {"transformers": partial(hf_train, trained=SFT_SHARE)},
        "generate": {"transformers": hf_generate},
        "rm": {"transformers": hf_rm, "transformers, pairs": AS_PAIRS},
    },
    "trl": {"ppo": {"TRL": trl_ppo}},
    "nanogpt": {"train": {"nanoGPT": nano_train}, "generate": {"nanoGPT": nano_generate}},
}


def peers_of(cfg, case):
    """{name: a function that makes its Case} of those who do the same work."""
    peer, _, folder = cfg.peer.partition("=")
    found = PEERS.get(peer, {}).get(case, {})
    return {name: partial(make, folder=folder) if folder else make for name, make in found.items()}


def check_peer(peer):
    """Raise ValueError for a peer that is not known or not there."""
    name, _, folder = peer.partition("=")
    if name not in ("none", *PEERS) or (name == "nanogpt") != bool(folder):
        raise ValueError(f"--peer must be none, transformers, trl or nanogpt=FOLDER, got {peer}")
    if folder and not os.path.isfile(os.path.join(folder, "model.py")):
        raise ValueError(f"--peer {peer}: there is no {folder}/model.py: `git clone "
                         f"https://github.com/karpathy/nanoGPT` brings it")
    needed = {"transformers": "transformers", "trl": "trl.experimental.ppo"}.get(name)
    try:
        if needed:
            importlib.import_module(needed)
    except ImportError as e:
        version = "trl==1.10.0" if name == "trl" else name
        raise ValueError(f"--peer {name}: `pip install {version}` first") from e


# ---- what the machine can do ------------------------------------------------------------------

def matmul(n, dtype, device):
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=kind)
    b = torch.randn(n, n, device=device, dtype=kind)
    return Case(lambda: a @ b, 0, [(2 * n**3, 0)])


def copy(n, device):
    a = torch.ones(n, dtype=torch.uint8, device=device)
    b = torch.ones(n, dtype=torch.uint8, device=device)
    return Case(lambda: a.copy_(b), 0, [(0, 2 * n)])


# ---- measuring --------------------------------------------------------------------------------

class Result(NamedTuple):
    seconds: list       # of each round
    memory: float       # peak, MB: of the process on the CPU, of the tensors on a GPU
    tokens: int
    work: list


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device):
    """Bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as f:            # on Linux ru_maxrss starts from the parent's
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) * 1024


def work_of_a_process(pipe, make, args, allocator, device):
    """What each process does: make a Case, then run it once for every message."""
    processes.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is for the one who started it
    if allocator:
        cli.keep_freed_memory()
    case = make(*args)
    for _ in range(2):                              # warm up
        case.run()
    wait(device)
    pipe.send((case.tokens, case.work))
    while pipe.recv():
        began = time.perf_counter()
        case.run()
        wait(device)
        pipe.send(time.perf_counter() - began)
    pipe.send(peak_memory(device) / 1e6)


def race(systems, rounds, device):
    """{name: (make, args, allocator)} -> {name: Result}: every system in a process of its own, one
    after the other in turns. `allocator`: with cli.keep_freed_memory. Raises ValueError."""
    spawn, pipes, started = multiprocessing.get_context("spawn"), {}, []
    for name, (make, args, allocator) in systems.items():
        pipes[name], end = spawn.Pipe()
        process = spawn.Process(target=work_of_a_process, args=(end, make, args, allocator, device),
                                daemon=True)
        process.start()
        started.append(process)
        end.close()
    try:
        first = {name: pipe.recv() for name, pipe in pipes.items()}
        seconds = {name: [] for name in pipes}
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(True)
                seconds[name].append(pipe.recv())
        for pipe in pipes.values():
            pipe.send(False)
        return {name: Result(seconds[name], pipe.recv(), *first[name])
                for name, pipe in pipes.items()}
    except EOFError as e:
        raise ValueError("a benchmark's process ended early: its own message is above") from e
    finally:
        for process in started:
            process.join(timeout=1)
            process.kill()


def floor(work, flops_per_second, bytes_per_second):
    """Seconds of [(FLOPs, bytes), ...]: of each part the longer, its arithmetic or its traffic."""
    return sum(max(f / flops_per_second, b / bytes_per_second) for f, b in work)


def measure(case, c, shape, cfg):
    """Race one case -> the rows of the table, dictionaries."""
    device = get_device(cfg)
    size = 8192 if device == "cuda" else 2048
    systems = {"matmul": (matmul, (size, cfg.dtype, device), True),
               "copy": (copy, (1 << 29, device), True), "ours": (OURS[case], (c, shape, cfg), True)}
    for name, make in peers_of(cfg, case).items():
        systems[name] = (make, (c, shape, cfg), False)
        # the memory of the pairs, kept twice, is too much for a laptop
        if device == "cpu" and make is not AS_PAIRS:
            systems[f"{name} + allocator"] = (make, (c, shape, cfg), True)
    card = torch.cuda.get_device_name() if device == "cuda" else device
    stated = stated_peak(card, cfg.dtype)
    setting = {"case": case, "card": card, "size": cfg.size, "shape": shape, "dtype": cfg.dtype,
               "compile": cfg.compile, "device": device, "threads": torch.get_num_threads()}
    return [setting | row for row in compare(race(systems, cfg.rounds, device), stated)]


def stated_peak(card, dtype):
    """(FLOP/s, bytes/s) that CARDS has for a card; None if it has none, or not in this dtype."""
    return next((peak for name, peak in CARDS.items() if name in card and dtype == "bf16"), None)


def compare(results, stated=None):
    """{name: Result} -> what the table says of "ours" and of each peer, dictionaries. "matmul" and
    "copy" are the machine's rate of arithmetic and its bandwidth; stated: those of the card."""
    ours, matrix, memory = results["ours"], results["matmul"], results["copy"]
    rate = matrix.work[0][0] / median(matrix.seconds)
    bandwidth = memory.work[0][1] / median(memory.seconds)
    least = floor(ours.work, rate, bandwidth)
    arithmetic, traffic = (sum(part) for part in zip(*ours.work))
    peak_rate, peak_bandwidth = stated or (rate, bandwidth)
    rows = []
    for name, r in results.items():
        if name in ("matmul", "copy"):
            continue
        seconds = median(r.seconds)
        ratios = [theirs / own for theirs, own in zip(r.seconds, ours.seconds)]
        rows.append({
            "system": name, "seconds": seconds, "tokens_per_second": r.tokens / seconds,
            "peak_mb": r.memory, "floor_seconds": least, "of_floor": least / seconds,
            "mfu": arithmetic / seconds / peak_rate,
            "of_bytes": traffic / seconds / peak_bandwidth,
            "ratio": median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)})
    return rows


def show(rows):
    print(f"\n{'case':9} {'system':34} {'seconds':>8} {'tokens/s':>9} {'peak MB':>8} {'floor':>8} "
          f"{'of floor':>8} {'MFU':>5} {'of bytes':>8}  ratio")
    for r in rows:
        print("{case:9} {system:34} {seconds:8.3f} {tokens_per_second:9,.0f} {peak_mb:8,.0f} "
              "{floor_seconds:8.3f} {of_floor:8.2f} {mfu:5.2f} {of_bytes:8.2f}  "
              "{ratio:.2f} [{ratio_least:.2f}, {ratio_most:.2f}]".format(**r))
    for r in rows:
        print(json.dumps(r))


# ---- how cost grows ---------------------------------------------------------------------------

class Panel(NamedTuple):
    title: str
    xlabel: str
    case: str
    xs: list
    shape: object       # x -> the shape of the case


PANELS = [
    Panel("training step of 4096 tokens", "tokens of a row", "train", [128, 256, 512, 1024, 2048],
          lambda x: (4096 // x, x)),
    Panel("reward model step, 4 prompts", "responses to a prompt", "rm", [1, 2, 3, 5, 7, 9],
          lambda x: (4, x, 192, 64)),
    Panel("rollout of 96 new tokens", "prompts", "generate", [8, 16, 32, 64, 128],
          lambda x: (x, 32, 96)),
    Panel("rollout for 64 prompts", "new tokens", "generate", [32, 64, 128, 256, 512],
          lambda x: (64, 32, x)),
]


def sweep(cfg):
    """Time against context, K, batch and response length, beside its floor. Writes a plot."""
    try:
        import matplotlib
    except ImportError as e:
        raise ValueError("--sweep draws a plot: `pip install matplotlib` first") from e
    results.check_new(cfg.out, cfg.overwrite)
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    c = SIZES[cfg.size]
    fig, axes = plt.subplots(2, 2, figsize=(10, 7))
    for ax, panel in zip(axes.flat, PANELS):
        points = []
        for x in tqdm(panel.xs, desc=panel.title):
            shape = panel.shape(x)
            longest = shape[1] if panel.case == "train" else sum(shape[-2:])    # T, or P + R
            sized = replace(c, block_size=max(c.block_size, longest))
            points.append(measure(panel.case, sized, shape, cfg)[0])
        for point in points:
            print(json.dumps(point))
        ax.plot(panel.xs, [p["seconds"] for p in points], "o-", label="measured")
        ax.plot(panel.xs, [p["floor_seconds"] for p in points], "--", color="grey", label="floor")
        ax.set(title=panel.title, xlabel=panel.xlabel, ylabel="seconds", xlim=(0, None),
               ylim=(0, None))
        ax.legend()
    fig.tight_layout()
    results.check_new(cfg.out, cfg.overwrite)           # again: something may lie there by now
    results.replace_file(cfg.out, partial(fig.savefig, format="png", dpi=120), "wb")
    print(f"{cfg.out}: how cost grows, size {cfg.size}, {cfg.dtype}")


def main(cfg):
    cases = cfg.cases.split(",")
    for case in cases:
        if case not in OURS:
            raise ValueError(f"--cases {case} is none of {', '.join(OURS)}")
    check_peer(cfg.peer)
    if cfg.sweep:
        return sweep(cfg)
    rows = []
    for case in cases:
        rows += measure(case, SIZES[cfg.size], SHAPES[case][cfg.size], cfg)
    show(rows)
    return rows


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
