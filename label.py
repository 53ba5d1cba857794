"""Where preferences come from: sample K responses to each prompt and have them ranked, or rated from 1 to 7.

The rankers of this file are the sandbox's simulated labelers. They read by one rubric, weigh it differently, and err.

    python label.py --init sft.pt --out comparisons.jsonl
    python label.py --init sft.pt base.pt --temperatures 1.0 1.3 --out comparisons.jsonl
    python label.py --init sft.pt --rate --out ratings.jsonl

DEVIATION [IG] 3.5: by default no comparison comes from a PPO policy. Instead some of the responses that are ranked belong to
other prompts (--swap): without them the reward model has never seen that "I do not know" can be wrong, and PPO says nothing
else. `make rounds` goes the paper's way: it has a policy's own outputs compared and trains the next one on them.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import random
from collections import Counter
from dataclasses import dataclass

import torch
from tqdm import tqdm

import cli
import data
import formats
import sandbox
from model import generate, load_model
from train import check_out, get_device, step_seed


@dataclass(frozen=True)
class Config:
    init: tuple[str, ...] = ()      # one or more models to sample from, made by sft.py, ppo.py or pretrain.py
    out: str = "comparisons.jsonl"  # the rankings to write
    prompts: tuple[str, ...] = ()   # the sandbox's prompts with their "meta", .jsonl; none: drawn from the seed
    n: int = 12_000                 # prompts to draw
    k_min: int = 4                  # fewest responses ranked together ([IG] 3.5)
    k_max: int = 9                  # most responses ranked together ([IG] 3.5)
    temperatures: tuple[float, ...] = (1.0, 1.3)   # each response is sampled by one model at one of these
    swap: float = 0.2               # share of the responses that answer another prompt: the reward model must have seen that
                                    # what is right for one prompt is wrong for another; not in [IG]
    overlap: float = 0.1            # share of the prompts that two labelers rank, which shows how far they agree
    rate: bool = False              # write ratings from 1 to 7 instead of rankings
    max_new: int = 32               # longest response, tokens
    batch: int = 256                # prompts sampled together
    seed: int = 0                   # of prompts, samples and labelers
    device: str = "auto"            # cpu, cuda, or auto: cuda where there is one


PRESETS = {"sandbox": {}}


def ranks_of(ratings):
    """Ratings, more is better -> ranks, 1 is best; equal ratings tie: [7, 3, 7] -> [1, 2, 1]."""
    order = sorted(set(ratings), reverse=True)
    return [order.index(r) + 1 for r in ratings]


def sample_responses(models, enc, prompts, k, cfg):
    """k[i] responses to prompt i, each from a model and a temperature drawn at random. -> list of lists of strings."""
    responses = [[] for _ in prompts]
    rng = random.Random(f"samples {cfg.seed}")
    settings = [(m, t) for m in models for t in cfg.temperatures]
    drawn = [[rng.randrange(len(settings)) for _ in range(k_i)] for k_i in k]
    counts = Counter()
    encoded = data.encode_prompts(prompts, enc, min(m.cfg.block_size for m in models) - cfg.max_new, counts)
    print(data.report(counts))
    by_length = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))   # little padding
    for first in tqdm(range(0, len(prompts), cfg.batch), desc="sample"):
        for s, (model, temperature) in enumerate(settings):
            todo = [i for i in by_length[first:first + cfg.batch] for choice in drawn[i] if choice == s]
            if not todo:
                continue
            batch = data.pad([encoded[i] for i in todo], device=next(model.parameters()).device)
            ids, total = generate(model, *batch, cfg.max_new, enc.eot_token, temperature=temperature,
                                  seed=step_seed(cfg.seed, f"{first} {s}"))
            for i, row, start, end in zip(todo, ids.tolist(), batch.length.tolist(), total.tolist()):
                responses[i].append(data.decode_response(enc, row[start:end]))
    return responses


def main(cfg):
    if not cfg.init:
        raise ValueError("--init is missing: one or more models to sample from; make one with "
                         "`python sft.py --init base.pt --out sft.pt`")
    if not 2 <= cfg.k_min <= cfg.k_max:
        raise ValueError(f"--k-min {cfg.k_min} and --k-max {cfg.k_max}: at least 2 responses, and no fewer at most than at least")
    check_out(cfg.out)
    device, tokenizer, enc, models = get_device(cfg), None, None, []
    for path in cfg.init:
        model, checkpoint = load_model(path, "gpt", tokenizer, device)
        tokenizer, enc = checkpoint["tokenizer"], data.tokenizer_of(checkpoint, same_as=enc)
        models.append(model)
    if cfg.prompts:
        prompts = data.prompts(formats.read_records(cfg.prompts, Counter()), Counter())
    else:
        prompts = sandbox.prompts(cfg.n, f"label {cfg.seed}")
    if not all(p.meta for p in prompts):
        raise ValueError(f'{cfg.prompts[0]}: the simulated labelers judge the sandbox\'s own prompts only, with their "meta"')
    rng = random.Random(f"labelers {cfg.seed}")
    k = [rng.randint(cfg.k_min, cfg.k_max) for _ in prompts]
    records, sampled = [], sample_responses(models, enc, prompts, k, cfg)
    pool = [r for responses in sampled for r in responses]
    sampled = [[rng.choice(pool) if rng.random() < cfg.swap else r for r in responses] for responses in sampled]
    for prompt, responses in zip(prompts, sampled):
        for labeler in rng.sample(sandbox.LABELERS, 2 if rng.random() < cfg.overlap else 1):
            ratings = sandbox.rate(labeler, prompt, responses, rng)
            records.append({"prompt": prompt.messages, "responses": responses, "labeler": labeler, "use_case": prompt.use_case,
                            **({"ratings": ratings} if cfg.rate else {"ranks": ranks_of(ratings)})})
    data.write_jsonl(cfg.out, records)
    distinct = sum(len(set(r["responses"])) / len(r["responses"]) for r in records) / len(records)
    print(f"{cfg.out}: {len(records):,} {'ratings' if cfg.rate else 'rankings'} of {sum(k) / len(k):.1f} responses, "
          f"{distinct:.0%} of them distinct")
    return {"records": len(records), "distinct": distinct}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    cli.run(main, Config, PRESETS, __doc__)
