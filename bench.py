"""How fast each stage is: against what this machine can do at most and, if asked, against `transformers`.

    python bench.py                                                    # every case at size S, in fp32
    python bench.py --cases train,rm --size M --dtype bf16 --peer transformers
    python bench.py --sweep                                            # how cost grows -> bench.png (needs matplotlib)

What is timed are the functions that the stages call. Every system has a process of its own, and the processes take turns:
a machine that is slow for a while is slow for all of them. Beside the systems run a matrix product and a copy of memory,
which say what the machine can do. The floor of a case is the time that its arithmetic takes at that rate, or its traffic at
that bandwidth, whichever is longer, summed over its parts. A ratio is a peer's time over ours: medians over the rounds, with
the extremes. "transformers + allocator" is the peer with the allocator's settings of cli.keep_freed_memory.

Sizes: S has 4 layers, 128 channels, 512 tokens of vocabulary, M is GPT-2's smallest with a context
of 512. Weights and tokens are random.
"""
import json
import multiprocessing
import os
import resource
import statistics
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm import tqdm

import cli
import data
import ppo
import reward
from model import GPT, GPTConfig, Scorer, frozen_copy, generate
from train import Network, TrainConfig, autocast, get_device, make_optimizer, prepare_blocks, update


@dataclass(frozen=True)
class Config:
    cases: str = "train,generate,sft,rm,ppo"   # which, separated by commas
    size: str = "S"                 # S or M
    dtype: str = "fp32"             # fp32 or bf16
    compile: bool = False           # torch.compile, as --compile of the stages
    peer: str = ""                  # transformers: the same work done by that library, if it is installed
    sweep: bool = False             # time against context, K, batch and response length instead, and plot it
    rounds: int = 5                 # repetitions of each system, one round after the other
    out: str = "bench.png"          # the plot of --sweep
    device: str = "auto"            # cpu, cuda, or auto: cuda where there is one


PRESETS = {"all": {}}
SIZES = {"S": GPTConfig(512, 256, 4, 4, 128), "M": GPTConfig(50257, 512, 12, 12, 768)}
SHAPES = {   # rows and tokens of each case
    "train": {"S": (16, 256), "M": (2, 512)},
    "generate": {"S": (64, 32, 96), "M": (8, 64, 64)},        # prompts, tokens of a prompt, new tokens
    "sft": {"S": (16, 256), "M": (4, 256)},                   # a quarter of the tokens are the response's
    "rm": {"S": (1, 8, 192, 64), "M": (1, 8, 192, 64)},       # prompts, K, tokens of a prompt, tokens of a response
    "ppo": {"S": (64, 32, 64), "M": (8, 32, 64)},             # episodes, tokens of a prompt, new tokens; 4 minibatches
}


class Case(NamedTuple):
    run: object         # does the work once
    tokens: int         # that the work is about: trained on, generated, or rolled out
    work: list          # of (FLOPs, bytes), one for each part that must follow another


# ---- what the work is at least ----------------------------------------------------------------------------------

def flops(c, tokens, pairs, logits):
    """Of a forward: 2 for each weight of a matrix and token, 4 C for each query and key it may see, and the unembedding."""
    return 24 * c.n_layer * c.n_embd**2 * tokens + 4 * c.n_layer * c.n_embd * pairs + 2 * c.vocab_size * c.n_embd * logits


def triangle(T):
    """Queries and keys of a causal row of T tokens."""
    return T * (T + 1) // 2


def decoding(c, B, P, R, width):
    """The parts of a rollout: all prompts at once, then R steps that read the weights and the cache, `width` bytes a number."""
    weights = 12 * c.n_layer * c.n_embd**2 + c.vocab_size * c.n_embd
    cache = 2 * c.n_layer * c.n_embd * B * sum(range(P + 1, P + R + 1))
    return [(flops(c, B * P, B * triangle(P), B), weights * width),
            (flops(c, B * R, B * sum(range(P + 1, P + R + 1)), B * R), (R * weights + cache) * width)]


# ---- our side ---------------------------------------------------------------------------------------------------

def tokens_of(c, *shape):
    return torch.randint(c.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))


def train_config(cfg):
    return TrainConfig(precision=cfg.dtype, device=cfg.device, compile=cfg.compile)


def stepper(networks, losses, cfg):
    """-> a function that does one optimizer step on the pieces of `losses()`."""
    run = train_config(cfg)
    optimizers = [make_optimizer(n.module, run) for n in networks]
    prepare_blocks(networks, run)
    context = autocast(run)
    return lambda *args: update(networks, optimizers, losses(*args), run, context)


def train(c, shape, cfg, trained=1.0):
    """A step of pretrain.py, or of sft.py if only a part of each row is trained on."""
    B, T = shape
    torch.manual_seed(0)
    model = GPT(c).to(get_device(cfg))
    rows = [(ids, [i >= T * (1 - trained) for i in range(T)]) for ids in tokens_of(c, B, T).tolist()]

    def losses():
        loss = model.loss(*data.tokens_batch(rows, get_device(cfg)))
        yield 1.0, loss, {"loss": loss}
    chosen = B * sum(rows[0][1][1:])
    return Case(stepper([Network(model, 1e-4)], losses, cfg), B * T, [(3 * flops(c, B * T, B * triangle(T), chosen), 0)])


def sft(c, shape, cfg):
    return train(c, shape, cfg, trained=0.25)


def rm(c, shape, cfg):
    """A step of reward.py: K ranked responses that share a prompt."""
    B, K, P, R = shape
    torch.manual_seed(0)
    scorer = Scorer(c).to(get_device(cfg))
    pairs = [(i, j) for i in range(K) for j in range(i + 1, K)] or [(0, 0)]
    ids = tokens_of(c, B, P + K * R).tolist()
    rankings = [data.RankedIds(x[:P], [x[P + i * R:P + i * R + R] for i in range(K)], pairs, None) for x in ids]

    def losses():
        batch = data.rankings_batch(rankings, get_device(cfg))
        loss = reward.pairwise_loss(reward.score_responses(scorer, batch), batch.better, batch.worse, batch.weight)
        yield 1.0, loss, {"loss": loss}
    seen = triangle(P) + K * (R * P + triangle(R))
    return Case(stepper([Network(scorer, 1e-4)], losses, cfg), B * (P + K * R), [(3 * flops(c, B * (P + K * R), B * seen, 0), 0)])


def endless(model):
    """`model` with an EOS, its last token, that is never sampled: every response has its full length."""
    with torch.no_grad():
        model.ln_f.bias[0], model.wte.weight[-1, 0] = 10.0, -10.0
    return model


def sampling(c, shape, cfg):
    """A rollout without its scores."""
    B, P, R = shape
    torch.manual_seed(0)
    model = endless(GPT(c)).to(get_device(cfg))
    prompts = data.pad(tokens_of(c, B, P).tolist(), device=get_device(cfg))
    context = autocast(train_config(cfg))

    def run():
        with context:
            generate(model, *prompts, R, c.vocab_size - 1, compile=cfg.compile)
    return Case(run, B * R, decoding(c, B, P, R, 2 if cfg.dtype == "bf16" else 4))


def ppo_iteration(c, shape, cfg):
    """An iteration of ppo.py, without pretraining text: rollout, scores, one epoch of 4 minibatches."""
    B, P, R = shape
    settings = ppo.Config(rollout=B, minibatch=B // 4, max_new=R, precision=cfg.dtype, device=cfg.device, compile=cfg.compile)
    device, context = get_device(cfg), autocast(settings)
    torch.manual_seed(0)
    policy, value = endless(GPT(c)).to(device), Scorer(c).to(device)
    with context:
        reference, rewarder = frozen_copy(policy, device), frozen_copy(value, device)
    prompts, enc = tokens_of(c, B, P).tolist(), SimpleNamespace(eot_token=c.vocab_size - 1)
    records = [data.Prompt([])] * B          # no answer keys
    batch_at = ppo.make_batches(policy, value, reference, rewarder, records, prompts, [], enc, settings, {"kl_coef": 0.02},
                                device)
    step = stepper([Network(policy, 1e-5), Network(value, 1e-5)], lambda mb: ppo.ppo_losses(policy, value, mb, settings), cfg)

    def run():
        for k in range(4, 8):                # from 4: the checks before the first update are not part of it
            with context:
                batch = batch_at(k)[1]
            step(batch)
    seen = B * triangle(P + R)
    scores = flops(c, B * (P + R), seen, B * R) * 2 + flops(c, B * (P + R), seen, 0) * 2
    updates = 3 * (flops(c, B * (P + R), seen, B * R) + flops(c, B * (P + R), seen, 0))
    return Case(run, B * R, [*decoding(c, B, P, R, 2 if cfg.dtype == "bf16" else 4), (scores, 0), (updates, 0)])


OURS = {"train": train, "generate": sampling, "sft": sft, "rm": rm, "ppo": ppo_iteration}


# ---- the peer ---------------------------------------------------------------------------------------------------

def hf_config(c, **more):
    from transformers import GPT2Config
    return GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
                      pad_token_id=0, **more)


def hf_stepper(model, loss, cfg):
    """A step as transformers' Trainer takes it: autocast, a clipped gradient, its default fused AdamW."""
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
    labels = ids.masked_fill(torch.arange(T, device=ids.device) < T * (1 - trained), -100)
    return Case(hf_stepper(model, lambda: model(input_ids=ids, labels=labels).loss, cfg), B * T, [])


def hf_sft(c, shape, cfg):
    return hf_train(c, shape, cfg, trained=0.25)


def hf_rm(c, shape, cfg, as_pairs=False):
    """One forward for each completion, or, as TRL does, two for each pair."""
    from transformers import GPT2ForSequenceClassification
    B, K, P, R = shape
    model = GPT2ForSequenceClassification(hf_config(c, num_labels=1)).to(get_device(cfg))
    first, second = torch.triu_indices(K, K, 1)
    prompt, responses = tokens_of(c, B, P)[:, None].expand(B, K, P), tokens_of(c, B, K, R)
    rows = torch.cat([prompt, responses], 2)                                     # (B, K, P + R)
    rows = torch.cat([rows[:, first], rows[:, second]], 1) if as_pairs else rows
    ids = rows.flatten(0, 1).to(get_device(cfg))

    def loss():
        score = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.view(B, -1)
        better, worse = score.chunk(2, 1) if as_pairs else (score[:, first], score[:, second])
        return -torch.nn.functional.logsigmoid(better - worse).mean()
    return Case(hf_stepper(model, loss, cfg), B * (P + K * R), [])


def hf_rm_pairs(c, shape, cfg):
    return hf_rm(c, shape, cfg, as_pairs=True)


def hf_generate(c, shape, cfg):
    from transformers import GPT2LMHeadModel
    B, P, R = shape
    model = GPT2LMHeadModel(hf_config(c)).to(get_device(cfg)).eval()
    model = model.bfloat16() if cfg.dtype == "bf16" else model
    ids = tokens_of(c, B, P).to(get_device(cfg))
    return Case(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=R),
                B * R, [])


PEERS = {"train": {"transformers": hf_train}, "sft": {"transformers": hf_sft}, "generate": {"transformers": hf_generate},
         "rm": {"transformers": hf_rm, "transformers, pairs": hf_rm_pairs}, "ppo": {}}


# ---- what the machine can do ------------------------------------------------------------------------------------

def matmul(n, dtype, device):
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32) for _ in range(2))
    return Case(lambda: a @ b, 0, [(2 * n**3, 0)])


def copy(n, device):
    a, b = torch.ones(n, dtype=torch.uint8, device=device), torch.ones(n, dtype=torch.uint8, device=device)
    return Case(lambda: a.copy_(b), 0, [(0, 2 * n)])


# ---- measuring --------------------------------------------------------------------------------------------------

class Result(NamedTuple):
    seconds: list       # of each round
    memory: float       # peak, MB: of the process on the CPU, of the tensors on a GPU
    tokens: int
    work: list


def work_of_a_process(pipe, make, args, allocator, device):
    """What each process does: make a Case, then run it once for every message."""
    if allocator:
        cli.keep_freed_memory()
    case = make(*args)
    for _ in range(2):
        case.run()
    if device == "cuda":
        torch.cuda.synchronize()
    pipe.send((case.tokens, case.work))
    while pipe.recv():
        began = time.perf_counter()
        case.run()
        if device == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - began)
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    elif os.path.exists("/proc/self/status"):    # not ru_maxrss: on Linux it starts from the parent's
        with open("/proc/self/status") as f:
            memory = next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) * 1024
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send(memory / 1e6)


def race(systems, rounds, device):
    """{name: (make, args, allocator)} -> {name: Result}: every system in a process of its own, one after the other in turns."""
    spawn, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name, (make, args, allocator) in systems.items():
        pipes[name], end = spawn.Pipe()
        processes.append(spawn.Process(target=work_of_a_process, args=(end, make, args, allocator, device), daemon=True))
        processes[-1].start()
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
        return {name: Result(seconds[name], pipe.recv(), *first[name]) for name, pipe in pipes.items()}
    except EOFError as e:
        raise ValueError("a benchmark's process ended early: its own message is above") from e
    finally:
        for p in processes:
            p.join(timeout=1)
            p.kill()


def floor(work, results):
    """Seconds: each part at the measured rate of arithmetic or the measured bandwidth, whichever takes longer."""
    rates = [sum(part[i] for part in r.work) / statistics.median(r.seconds)
             for i, r in enumerate((results["matmul"], results["copy"]))]
    return sum(max(f / rates[0], b / rates[1]) for f, b in work)


def measure(case, c, shape, cfg):
    """Race one case -> the rows of the table, dictionaries."""
    device = get_device(cfg)
    big = device == "cuda"
    systems = {"matmul": (matmul, (8192 if big else 2048, cfg.dtype, device), True), "copy": (copy, (1 << 29, device), True),
               "ours": (OURS[case], (c, shape, cfg), True)}
    for name, make in PEERS[case].items() if cfg.peer else ():
        systems[name] = (make, (c, shape, cfg), False)
        if device == "cpu" and make is not hf_rm_pairs:      # its memory, kept twice, is too much for a laptop
            systems[f"{name} + allocator"] = (make, (c, shape, cfg), True)
    results = race(systems, cfg.rounds, device)
    ours = results["ours"]
    least = floor(ours.work, results)
    rows = []
    for name, r in list(results.items())[2:]:
        seconds = statistics.median(r.seconds)
        ratios = [theirs / own for theirs, own in zip(r.seconds, ours.seconds)]
        rows.append({"case": case, "size": cfg.size, "shape": shape, "dtype": cfg.dtype, "compile": cfg.compile, "device": device,
                     "threads": torch.get_num_threads(), "system": name, "seconds": seconds,
                     "tokens_per_second": r.tokens / seconds,
                     "peak_mb": r.memory, "floor_seconds": least, "of_floor": least / seconds,
                     "mfu": sum(f for f, _ in ours.work) / seconds * statistics.median(results["matmul"].seconds)
                     / results["matmul"].work[0][0],
                     "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)})
    return rows


def table(rows):
    print(f"\n{'case':9} {'system':34} {'seconds':>8} {'tokens/s':>9} {'peak MB':>8} {'floor':>8} {'of floor':>8} {'MFU':>5}"
          "  ratio")
    for r in rows:
        print("{case:9} {system:34} {seconds:8.3f} {tokens_per_second:9,.0f} {peak_mb:8,.0f} {floor_seconds:8.3f} "
              "{of_floor:8.2f} {mfu:5.2f}  {ratio:.2f} [{ratio_least:.2f}, {ratio_most:.2f}]".format(**r))


def sweep(cfg):
    """Time against context, K, batch and response length: how cost grows, beside its floor. Writes a plot."""
    try:
        import matplotlib
    except ImportError as e:
        raise ValueError("--sweep draws a plot: `pip install matplotlib` first") from e
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    c = SIZES[cfg.size]
    panels = {   # title and what x is: (case, x of each point, shape of each point)
        ("training step of 4096 tokens", "tokens of a row"): ("train", [128, 256, 512, 1024, 2048], lambda x: (4096 // x, x)),
        ("reward model step, 4 prompts", "responses to a prompt"): ("rm", [1, 2, 3, 5, 7, 9], lambda x: (4, x, 192, 64)),
        ("rollout of 96 new tokens", "prompts"): ("generate", [8, 16, 32, 64, 128], lambda x: (x, 32, 96)),
        ("rollout for 64 prompts", "new tokens"): ("generate", [32, 64, 128, 256, 512], lambda x: (64, 32, x)),
    }
    fig, axes = plt.subplots(2, 2, figsize=(10, 7))
    for ax, ((title, what), (case, xs, shape_of)) in zip(axes.flat, panels.items()):
        points = []
        for x in tqdm(xs, desc=title):
            longest = {"train": x, "rm": 256, "generate": sum(shape_of(x)[1:])}[case]
            points += measure(case, replace(c, block_size=max(c.block_size, longest)), shape_of(x), cfg)[:1]
        for p in points:
            print(json.dumps(p))
        ax.plot(xs, [p["seconds"] for p in points], "o-", label="measured")
        ax.plot(xs, [p["floor_seconds"] for p in points], "--", color="grey", label="floor")
        ax.set(title=title, xlabel=what, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        ax.legend()
    fig.tight_layout()
    fig.savefig(cfg.out, dpi=120)
    print(f"{cfg.out}: how cost grows, size {cfg.size}, {cfg.dtype}")


def main(cfg):
    cases = cfg.cases.split(",")
    if unknown := [x for x in cases if x not in OURS]:
        raise ValueError(f"--cases {unknown[0]} is none of {', '.join(OURS)}")
    if cfg.size not in SIZES or cfg.dtype not in ("fp32", "bf16") or cfg.peer not in ("", "transformers") or cfg.rounds < 1:
        raise ValueError("--size is S or M, --dtype fp32 or bf16, --peer transformers or nothing, --rounds at least 1")
    if cfg.peer:
        try:
            import transformers  # noqa: F401
        except ImportError as e:
            raise ValueError("--peer transformers: `pip install transformers` first") from e
    if cfg.sweep:
        return sweep(cfg)
    rows = []
    for case in cases:
        rows += measure(case, SIZES[cfg.size], SHAPES[case][cfg.size], cfg)
    table(rows)
    for r in rows:
        print(json.dumps(r))
    return rows


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
