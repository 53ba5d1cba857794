"""Where preferences come from: K responses to each prompt are sampled, and ranked or rated 1 to 7.
The labelers are the sandbox's: simulated, they read by one rubric, weigh it differently, and err.

    python label.py --init sft.pt --out comparisons.jsonl
    python label.py --init sft.pt base.pt --temperatures 1.0 1.3 --out comparisons.jsonl
    python label.py --init sft.pt --rate --swap 0 --n 1000 --out ratings.jsonl      # for FeedME
    python label.py --init sft.pt --prompts mine.jsonl --unlabeled --out tasks.jsonl    # for people

DEVIATION [IG] 3.5: by default no comparison comes from a PPO policy. Instead some of the responses
that are ranked belong to other prompts (--swap): without them the reward model has never seen that
"I do not know" can be wrong, and PPO says nothing else. `make rounds` comes nearer to the paper: it
has a policy's own outputs compared, and trains the next one on them.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import random
from collections import Counter
from dataclasses import dataclass

import torch
from tqdm import tqdm

import data
import interop
import sandbox
from generate import sample
from model import GPT, Scorer
from plumbing import cli, processes, results
from train import step_seed


@dataclass(frozen=True)
class Config:
    init: tuple[str, ...] = ()      # models to sample from, made by sft.py, ppo.py or pretrain.py
    out: str = "comparisons.jsonl"  # the rankings to write
    prompts: tuple[str, ...] = ()   # prompts, but for --unlabeled the sandbox's with their "meta";
                                    # files, none: drawn in the sandbox
    columns: str = ""               # names of the fields of --prompts: prompt=question
    strict: bool = False            # stop at a bad record of data; else it is skipped and shown
    overwrite: bool = False         # replace what stands at --out, whatever made it
    n: int = 20_000                 # prompts to draw; [1, 10_000_000]
    k_min: int = 4                  # fewest responses ranked together ([IG] 3.5); [2, 1000]
    k_max: int = 9                  # most responses ranked together ([IG] 3.5); [2, 1000]
    temperatures: tuple[float, ...] = (1.0, 1.3)    # one of these for each response; 0 is greedy,
                                    # else at least 0.01; >= 0
    swap: float = 0.2               # share of the responses that answer another prompt; [0, 1]
    overlap: float = 0.1            # share of the prompts that two labelers rank, to see whether
                                    # they agree; [0, 1]
    rate: bool = False              # write ratings from 1 to 7 instead of rankings
    unlabeled: bool = False         # write different responses that nobody has ranked, for page.py;
                                    # to prompts of any kind, and none are swapped
    rm: str = ""                    # the reward model for --best-of, made by reward.py
    best_of: int = 1                # each response is the best of so many to --rm; [1, 10_000]
    max_new: int = 32               # longest response, tokens; >= 1
    batch: int = 1024               # prompts sampled together; >= 1
    seed: int = 0                   # of prompts, samples and labelers; >= 0
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"sandbox": {}}


def ranks_of(ratings):
    """Ratings, more is better -> ranks, 1 is best; equal ratings tie: [7, 3, 7] -> [1, 2, 1]."""
    order = sorted(set(ratings), reverse=True)
    return [order.index(r) + 1 for r in ratings]


def sample_responses(models, rm, enc, prompts, k, cfg):
    """k[i] responses to prompt i, each by a model and at a temperature drawn at random -> texts.

    With a reward model `rm` each is the best of cfg.best_of.
    """
    # a setting is a model and a temperature
    settings = [(model, temperature) for model in models for temperature in cfg.temperatures]
    rng = random.Random(f"samples {cfg.seed}")
    drawn = []      # of each prompt the settings: [[0, 1, 1, 0], [1, 0], ...]
    for k_i in k:
        drawn.append([rng.randrange(len(settings)) for _ in range(k_i)])
    counts = Counter()
    room = min(model.cfg.block_size for model in models) - cfg.max_new
    encoded = interop.encode_prompts(prompts, enc, room, counts)
    print(interop.report(counts))
    responses = [[] for _ in prompts]
    # prompts of like length are sampled together: there is little to pad
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    for first in tqdm(range(0, len(prompts), cfg.batch), desc="sample"):
        together = order[first:first + cfg.batch]
        for s, (model, temperature) in enumerate(settings):
            # prompts that drew this setting n times: each is computed once for its n responses
            for n in range(1, max(k) + 1):
                rows = [i for i in together if drawn[i].count(s) == n]
                if not rows:
                    continue
                seed = step_seed(cfg.seed, f"{first} {s} {n}")
                samples = sample(model, [encoded[i] for i in rows], cfg.max_new, enc.eot_token,
                                 n=n * cfg.best_of, temperature=temperature, seed=seed)
                for r, response in enumerate(best(samples, rm, cfg.best_of)):
                    responses[rows[r // n]].append(data.decode_response(enc, response))
    return responses


@torch.no_grad()
def best(samples, rm, n):
    """Of each n responses that follow one another the one that `rm` scores highest; all if n is 1.
    """
    if n == 1:
        return samples.responses
    winners = rm.score(samples.ids, samples.length).view(-1, n).argmax(1)    # (responses / n,)
    return [samples.responses[n * i + int(k)] for i, k in enumerate(winners)]


def unlabeled(prompts, responses):
    """Tasks for people -> records for a file. What is said twice is shown once, and nobody is asked
    where all responses are the same."""
    records = []
    for prompt, of_prompt in zip(prompts, responses):
        different = list(dict.fromkeys(of_prompt))
        if len(different) > 1:
            meta = {"meta": prompt.meta} if prompt.meta else {}
            records.append({"prompt": prompt.messages, "responses": different,
                            "use_case": prompt.use_case, **meta})
    return records


def swap_some(responses, share, rng):
    """Replace a share of the responses, lists of strings, by responses to any of the prompts."""
    pool = [response for of_prompt in responses for response in of_prompt]
    swapped = []
    for of_prompt in responses:
        swapped.append([rng.choice(pool) if rng.random() < share else x for x in of_prompt])
    return swapped


def judge_all(prompts, responses, cfg, rng):
    """Have each prompt's responses judged by one labeler, some by two -> records for a file."""
    records = []
    for prompt, of_prompt in zip(prompts, responses):
        for labeler in rng.sample(sandbox.LABELERS, 2 if rng.random() < cfg.overlap else 1):
            ratings = sandbox.rate(labeler, prompt, of_prompt, rng)
            verdict = {"ratings": ratings} if cfg.rate else {"ranks": ranks_of(ratings)}
            records.append({"prompt": prompt.messages, "responses": of_prompt,
                            "labeler": labeler, "use_case": prompt.use_case, **verdict})
    return records


def check(cfg):
    """Raise ValueError for settings that do not go together."""
    if not cfg.init:
        raise ValueError("--init is missing: one or more models to sample from; make one with "
                         "`python sft.py --init base.pt --out sft.pt`")
    if (cfg.best_of > 1) != bool(cfg.rm):
        raise ValueError("--best-of needs --rm FILE, the reward model that says which response is "
                         "best, and nothing else does")
    if cfg.unlabeled and cfg.rate:
        raise ValueError("--unlabeled leaves judging to people: leave out --rate")
    if cfg.k_min > cfg.k_max:
        raise ValueError(f"--k-min {cfg.k_min} is more than --k-max {cfg.k_max}")
    for temperature in cfg.temperatures:
        if 0 < temperature < 0.01:
            raise ValueError(f"--temperatures {temperature} is too small to divide by: use 0, "
                             f"which is greedy, or at least 0.01")


def main(cfg):
    check(cfg)
    inputs = [path for name in cfg.init for path in interop.model_files(name)]
    meta = results.provenance(cfg, "label", {"init": inputs, "prompts": cfg.prompts,
                                             "rm": interop.model_files(cfg.rm)})
    if results.claim(cfg.out, meta, overwrite=cfg.overwrite):
        return None
    device = processes.get_device(cfg)
    models, tokenizer, enc = [], None, None
    for path in cfg.init:
        model, checkpoint = interop.load_model(path, GPT, tokenizer, device)
        tokenizer, enc = checkpoint["tokenizer"], interop.tokenizer_of(checkpoint, same_as=enc)
        models.append(model)
    rm = None
    if cfg.rm:
        context = max(model.cfg.block_size for model in models)
        rm, _ = interop.load_model(cfg.rm, Scorer, tokenizer, device, context=context)
        rm.eval()
    prompts = interop.load("prompts", cfg.prompts, Counter(), flag="--prompts", enc=enc, n=cfg.n,
                           columns=cfg.columns, seed=f"label {cfg.seed}", strict=cfg.strict)
    if not cfg.unlabeled and not all(prompt.meta for prompt in prompts):
        raise ValueError(f"{cfg.prompts[0]}: the simulated labelers judge the sandbox's own "
                         f'prompts only, with their "meta"; --unlabeled samples for people')
    rng = random.Random(f"labelers {cfg.seed}")
    k = [rng.randint(cfg.k_min, cfg.k_max) for _ in prompts]
    responses = sample_responses(models, rm, enc, prompts, k, cfg)
    if cfg.unlabeled:
        records = unlabeled(prompts, responses)
    else:
        responses = swap_some(responses, cfg.swap, rng)
        records = judge_all(prompts, responses, cfg, rng)
    if not records:
        raise ValueError("all responses to each prompt are the same: raise --temperatures")
    results.deliver(cfg.out, meta, {"": results.jsonl(records)})
    distinct = sum(len(set(x)) / len(x) for x in responses) / len(responses)
    what = "tasks" if cfg.unlabeled else "ratings" if cfg.rate else "rankings"
    shown = sum(len(r["responses"]) for r in records) / len(records)
    print(f"{cfg.out}: {len(records):,} {what} of {shown:.1f} responses; of those sampled "
          f"{distinct:.0%} are distinct")
    if cfg.unlabeled and len(records) < len(prompts):
        print(f"{len(prompts) - len(records):,} prompts are left out: all responses to them are "
              f"the same; higher --temperatures vary them")
    return {"records": len(records), "distinct": distinct}


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
