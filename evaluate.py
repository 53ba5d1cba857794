"""Who wins: every system answers the same held-out prompts, at temperature 1 and greedily, and is judged.

    python evaluate.py base.pt sft.pt ppo.pt --rm rm.pt --out report/
    python evaluate.py base.pt prompted:base.pt sft.pt bon16:sft.pt ppo.pt --rm rm.pt
    python evaluate.py --seeds runs/*/report/report.json           # mean and 95 % interval over reports

A system is a checkpoint, prompted:CHECKPOINT (reads some demonstrations before each prompt, [IG] 3.5) or bonN:CHECKPOINT (the
best of N samples by the reward model). Writes report.json, report.md and, if matplotlib is installed, plots. The judge is,
on the sandbox's prompts, the true score (sandbox.RUBRIC without error), which training never sees; on other prompts it is the
reward model, the very one that best-of-n and PPO climb: it flatters them.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import json
import math
import os
import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

import cli
import data
import formats
import sandbox
from model import generate, load_model
from train import autocast, check_out, get_device, step_seed


@dataclass(frozen=True)
class Config:
    systems: tuple[str, ...] = ()   # what to compare: checkpoints, prompted:CHECKPOINT, bonN:CHECKPOINT
    rm: str = ""                    # the reward model, made by reward.py; none: no RM score
    out: str = "report"             # the folder to write
    baseline: str = ""              # the system that win rates and KL refer to; none: the first one that sft.py made
    prompts: tuple[str, ...] = ()   # prompts, files in any format of formats.py; none: the sandbox's held-out prompts
    demos: tuple[str, ...] = ()     # demonstrations that prompted: shows, files; none: the sandbox's
    n: int = 800                    # held-out prompts of the sandbox
    text: tuple[str, ...] = ()      # text whose loss is the alignment tax, files; none: the sandbox's corpus, held out
    max_new: int = 32               # longest response, tokens
    batch: int = 200                # responses sampled together
    seeds: tuple[str, ...] = ()     # instead: report.json files of several seeds, to print their means and intervals
    seed: int = 0                   # of prompts, prefixes, samples and the bootstrap
    precision: str = "auto"         # fp32, bf16, or auto: bf16 on cuda, fp32 on cpu
    device: str = "auto"            # cpu, cuda, or auto: cuda where there is one


PRESETS = {"sandbox": {}, "gpt2": {"max_new": 256, "batch": 64}}
PREFIXES, TRIALS = 8, 64            # prefixes that compete, and the prompts they are tried on; not in [IG]


class System(NamedTuple):
    path: str           # the checkpoint
    prompted: bool      # reads demonstrations before each prompt
    best_of: int        # samples of which the reward model picks one; 1: the sample as it is


def systems_of(specs, rm):
    """("sft.pt", "prompted:base.pt", "bon16:sft.pt") -> [System, ...]. Raises ValueError."""
    found = []
    for spec in specs:
        plain = ":" not in spec or os.path.exists(spec)
        parts = re.fullmatch(r"()()(.+)" if plain else r"(?:(prompted)|bon(\d+)):([^:]+)", spec)
        if not parts or parts[2] and int(parts[2]) < 2:
            raise ValueError(f"{spec} is no system: give CHECKPOINT, prompted:CHECKPOINT or bonN:CHECKPOINT, N at least 2")
        if not (plain or rm):
            raise ValueError(f"{spec} needs a reward model that chooses: pass --rm rm.pt")
        found.append(System(os.path.normpath(parts[3]), bool(parts[1]), int(parts[2] or 1)))
    if len(set(found)) < len(found):
        raise ValueError(f"a system is named twice: {' '.join(specs)}")
    return found


def names_of(systems):
    """["base", "prompted base", "sft best of 16", ...]; with their folders if two checkpoints have one name."""
    files = Counter(os.path.basename(path) for path in {s.path for s in systems})
    names = [s.path if files[os.path.basename(s.path)] > 1 else os.path.basename(s.path) for s in systems]
    return ["prompted " * s.prompted + name.removesuffix(".pt") + f" best of {s.best_of}" * (s.best_of > 1)
            for s, name in zip(systems, names)]


class Answers(NamedTuple):
    prompts: list       # the text of each prompt
    cases: list         # its use case
    texts: list         # one response for each prompt
    score: np.ndarray   # (N,) the judge's
    judged: list        # sandbox.Judgement, or None where the prompt has no answer key
    rm_score: np.ndarray | None
    kl: np.ndarray      # (N,) log pi - log pi_baseline of the response, nats; of a best of n, the bound that `answer` explains
    length: np.ndarray  # (N,) tokens, EOS included
    ended: np.ndarray   # (N,) bool


def beats(ours, theirs):
    """1 where `ours` beats `theirs`, 1/2 where they tie, 0 elsewhere; arrays that broadcast."""
    return (ours > theirs) + 0.5 * (ours == theirs)


def win_rate(ours, theirs):
    """How often `ours` beats `theirs` (N,), ties half."""
    return float(np.mean(beats(ours, theirs)))


def bootstrap(ours, theirs, prompts, seed=0, resamples=2000):
    """95 % interval of the win rate (N,), resampling distinct `prompts` (N,) with all the answers to each."""
    _, owner = np.unique(prompts, return_inverse=True)
    won, answers = np.bincount(owner, beats(ours, theirs)), np.bincount(owner)
    drawn = np.random.default_rng(seed).integers(0, len(won), (resamples, len(won)))
    return [float(x) for x in np.quantile(won[drawn].sum(1) / answers[drawn].sum(1), [0.025, 0.975])]


def interval(values):
    """Mean over the first axis of values (seeds, ...), and the half-width of its 95 % interval (Student's t)."""
    values = np.asarray(values, float)
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}.get(len(values), 2.2)
    half = t * values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(values.shape[1:], np.inf)
    return values.mean(0), half[()]


def best_of_n(proxy, gold, n):
    """Expected gold score of the sample with the highest proxy score among n, estimated from N >= n samples of each prompt.

    proxy, gold (prompts, N) -> a number. The mean over all subsets of n (Nakano et al. 2021, arXiv 2112.09332; pass@k of
    Chen et al. 2021 is the same sum): with gold in ascending order of proxy, sum_i C(i-1, n-1) / C(N, n) gold_(i), because
    sample i is the best of the C(i-1, n-1) subsets whose others lie below it. Samples that tie in proxy share their gold.
    """
    N = proxy.shape[1]
    if not 1 <= n <= N:
        raise ValueError(f"the best of {n} cannot be estimated from {N} samples of a prompt: n is 1 to {N}")
    subsets = math.comb(N, n)                                # integers of any size: their ratio is exact
    weight = np.array([math.comb(i, n - 1) / subsets for i in range(N)])
    total = 0.0
    for p, g in zip(proxy, gold):
        _, group = np.unique(p, return_inverse=True)         # ascending; one number for samples that tie
        total += weight @ (np.bincount(group, g) / np.bincount(group))[np.sort(group)]
    return float(total / len(proxy))


def best_of_n_kl(n):
    """KL of best-of-n from what it samples from, nats: log n - (n-1)/n (Stiennon et al. 2020, G.3). Exact where scores never
    tie and no response is likely to come twice; otherwise an upper bound (Beirami et al. 2024, arXiv 2401.01879)."""
    return np.log(n) - (n - 1) / n


def logistic(x, won, games, ridge=1e-9):
    """The w (F,) that maximises the likelihood of P(win) = sigmoid(x w): x (M, F); `won` (M,) of `games` (M,) were won.
    By Newton's method. The penalty ridge/2 |w|^2 keeps w finite where wins and losses can be separated.
    """
    w = np.zeros(x.shape[1])
    for _ in range(200):
        p = 0.5 + 0.5 * np.tanh(x @ w / 2)                   # sigmoid, without overflow
        hessian = x.T @ (x * (games * p * (1 - p))[:, None]) + ridge * np.eye(len(w))
        step = np.linalg.solve(hessian, x.T @ (won - games * p) - ridge * w)
        w += step / np.abs(step).max(initial=1)              # far from the maximum a whole step may overshoot
        if np.abs(step).max(initial=0) < 1e-10:
            break
    return w


def bradley_terry(wins, tie=1.0):
    """wins (S, S), how often i beat j -> log-strengths (S,) of mean 0: P(i beats j) = sigmoid(s_i - s_j), maximum likelihood.
    `tie` ties are added to each pair, which keeps a system that wins everything finite; 0 for the plain estimate.
    """
    i, j = np.triu_indices(len(wins), 1)
    pairs = np.eye(len(wins))[i] - np.eye(len(wins))[j]      # (pairs, S)
    won = wins[i, j] + tie / 2
    s = np.append(0, logistic(pairs[:, 1:], won, won + wins[j, i] + tie / 2))   # the first is 0: only differences count
    return s - s.mean()


def ratings(scores, prompts, baseline, seed=0, resamples=500):
    """Scores (S, N) of S systems -> win rates (S, S), row over column; Elo (S,), `baseline` 0; its 95 % interval (S, 2).
    Elo is Bradley-Terry's strength in units of ln(10)/400: 400 more is odds of ten to one. The interval resamples distinct
    `prompts` (N,), as `bootstrap` does.
    """
    won = beats(scores[:, None], scores[None])               # (S, S, N)
    _, owner = np.unique(prompts, return_inverse=True)
    by_prompt = np.zeros((owner.max() + 1, *won.shape[:2]))  # (distinct prompts, S, S)
    np.add.at(by_prompt, owner, won.transpose(2, 0, 1))
    drawn = np.random.default_rng(seed).integers(0, len(by_prompt), (resamples, len(by_prompt)))
    strengths = np.array([bradley_terry(by_prompt[rows].sum(0)) for rows in [np.arange(len(by_prompt)), *drawn]])
    elo = 400 / math.log(10) * (strengths - strengths[:, [baseline]])
    return won.mean(2), elo[0], np.quantile(elo[1:], [0.025, 0.975], axis=0).T


def length_controlled(ours, theirs, our_length, their_length):
    """The win rate (N,) that is left at equal length (N,): Dubois et al. 2024, arXiv 2404.04475 (AlpacaEval 2).
    P(win) = sigmoid(a + b tanh(d / std d)), d the difference in length; the answer is sigmoid(a). AlpacaEval's term for how
    hard a prompt is is left out. Where d is the same everywhere, length cannot be told from the rest: the plain win rate.
    """
    d = np.asarray(our_length, float) - their_length
    x = np.tanh(d / d.std()) if d.std() > 0 else np.zeros(len(d))
    a, _ = logistic(np.stack([np.ones(len(d)), x], 1), beats(ours, theirs), np.ones(len(d)), ridge=1e-6)
    return float(0.5 + 0.5 * np.tanh(a / 2))


def first_paragraph(enc, response):
    """Sampled ids up to the first empty line, that included."""
    ends = (t + 1 for t in range(len(response)) if "\n\n" in enc.decode(response[max(0, t - 1):t + 1]))   # of one token or two
    return response[:next(ends, None)]


def response_logp(model, prompts, responses, device):
    """log pi(response | prompt), summed over its tokens: lists of N lists of ids -> (N,)."""
    ids, length = data.pad([p + r for p, r in zip(prompts, responses)], device=device)
    start = torch.tensor([len(p) for p in prompts], device=device)
    return model.logp(ids, data.action_mask(start, length, ids.shape[1]))[0].sum(1)


@torch.no_grad()
def answer(model, baseline, rm, enc, prompts, temperature, cfg, best_of=1, shots=()):
    """Sample `best_of` responses to each prompt, keep the one that `rm` scores highest, and measure it -> Answers.

    `shots` are messages that `model` reads before each prompt; the reward model and the baseline read the prompt alone. A
    base model does not end its answer but goes on with "User:": with shots, the first empty line ends it ([IG] D: the first
    line), for its KL too. The KL of a best of n is a bound: log best/pi_baseline is log best/pi, at most best_of_n_kl on
    average, and log pi/pi_baseline, which is measured on what was kept.
    """
    device, eos, parts, texts = next(model.parameters()).device, enc.eot_token, [], []
    room, counts = model.cfg.block_size - cfg.max_new, Counter()
    asked = data.encode_prompts(prompts, enc, room, Counter())
    read = data.encode_prompts([replace(p, messages=[*shots, *p.messages]) for p in prompts], enc, room, counts)
    if counts["prompts cut from the left"]:
        print(data.report(counts))
    for n, rows in enumerate(data.chunks(range(len(prompts)), max(1, cfg.batch // best_of))):
        batch = data.pad([read[i] for i in rows], device=device)
        ids, total = generate(model, *batch, cfg.max_new, eos, n=best_of, temperature=temperature, seed=step_seed(cfg.seed, n))
        owner = [i for i in rows for _ in range(best_of)]
        sampled = [row[len(read[i]):end] for i, row, end in zip(owner, ids.tolist(), total.tolist())]
        sampled = [first_paragraph(enc, r) for r in sampled] if shots else sampled
        said = [enc.decode([t for t in r if t != eos]) for r in sampled]
        scored = sampled                                     # what the reward model reads
        if shots:                                            # to it an empty line is EOS
            scored = [data.encode_response(enc, text)[:cfg.max_new] if "\n\n" in text else r for text, r in zip(said, sampled)]
        whole = data.pad([asked[i] + r for i, r in zip(owner, scored)], device=device)
        score = rm.score(*whole) if rm else torch.zeros(len(owner), device=device)
        best = score.view(-1, best_of).argmax(1) + best_of * torch.arange(len(rows), device=device)
        kept = [sampled[k] for k in best.tolist()]
        kl = (response_logp(model, [read[i] for i in rows], kept, device)
              - response_logp(baseline, [asked[i] for i in rows], kept, device) + best_of_n_kl(best_of))
        counted = torch.tensor([[len(sampled[k]), scored[k][-1] == eos] for k in best.tolist()], device=device)
        parts.append(torch.stack([score[best], kl, *counted.T]).cpu())
        texts += [said[k].strip() for k in best.tolist()]
    rm_score, kl, length, ended = torch.cat(parts, 1).double().numpy()
    judged = [sandbox.judge(p, t) if p.meta else None for p, t in zip(prompts, texts)]
    score = np.array([j.score for j in judged]) if all(judged) else rm_score
    return Answers([str(p.messages) for p in prompts], [p.use_case for p in prompts], texts, score, judged,
                   rm_score if rm else None, kl, length, ended > 0)


def find_prefix(model, rm, enc, trials, demos, cfg, also=()):
    """The messages to put before each prompt: the winner of a competition that the reward model judges ([IG] 3.5, B).
    Prefixes of one to three demonstrations are tried on the prompts `trials`, which should be training prompts, if they leave
    room for the longest of them and of the prompts `also` and its response. Raises ValueError if none does."""
    rng = random.Random(f"prefixes {cfg.seed}")
    demos = [d for d in demos if len(d.messages) > 1]        # a reply to nothing shows nothing
    room = model.cfg.block_size - cfg.max_new - len(enc.encode_ordinary("\n\n"))
    longest = max(map(len, data.encode_prompts([*trials, *also], enc, room, Counter())))
    drawn = [[m for d in rng.sample(demos, min(n, len(demos))) for m in d.messages]
             for n in rng.choices((1, 2, 3), k=8 * PREFIXES)]
    fitting = [shots for shots in drawn if shots and len(data.encode_dialogue(enc, shots)[0]) + longest <= room][:PREFIXES]
    if not fitting:
        raise ValueError(f"no demonstration leaves room for the longest prompt ({longest} tokens) and --max-new {cfg.max_new} "
                         f"in a context of {model.cfg.block_size}: pass shorter --demos or --prompts, or lower --max-new")
    scores = [answer(model, model, rm, enc, trials, 1.0, cfg, shots=s).rm_score.mean() for s in fitting]
    best = int(np.argmax(scores))
    print(f"prefix {best + 1} of {len(scores)} won: RM score {scores[best]:.3f}, the worst {min(scores):.3f}, on {len(trials)} "
          f"training prompts: " + " | ".join(m["content"] for m in fitting[best]))
    return fitting[best]


@torch.no_grad()
def text_loss(model, tokens, device):
    """Cross-entropy of held-out pretraining text, nats a token: what alignment costs elsewhere ([IG] 4.2)."""
    block = min(64, model.cfg.block_size)
    losses = []
    for rows in data.chunks(range(min(512, len(tokens) // block)), 64):
        losses.append(model.loss(*data.text_batch(tokens, rows, block, device)) * len(rows))
    return (sum(losses) / min(512, len(tokens) // block)).item()


def summary(answers, base, seed, rows=None):
    """The figures of one system against the baseline's answers, over all prompts or some `rows` of them."""
    rows = np.arange(len(answers.texts)) if rows is None else np.array(rows)
    ours, theirs = answers.score[rows], base.score[rows]
    figures = {"win_rate": win_rate(ours, theirs),
               "win_rate_ci": bootstrap(ours, theirs, np.array(answers.prompts)[rows], seed),
               "length_controlled": length_controlled(ours, theirs, answers.length[rows], base.length[rows])}
    if all(answers.judged):
        judged = [answers.judged[i] for i in rows]
        figures |= {"true_score": float(ours.mean())} | {k: float(np.mean([getattr(j, k) for j in judged])) for k in HHH}
    if answers.rm_score is not None:
        figures["rm_score"] = float(answers.rm_score[rows].mean())
    means = {"kl": answers.kl, "length": answers.length, "eos_rate": answers.ended}
    return figures | {k: float(v[rows].mean()) for k, v in means.items()} | {
        "distinct": len({answers.texts[i] for i in rows}) / len(rows), "prompts": len(rows)}


HHH = ("helpful", "hallucination", "harmless")
COLUMNS = {"win_rate": "win rate", "elo": "Elo", "length_controlled": "at equal length", "true_score": "true score",
           "helpful": "helpful", "hallucination": "hallucination", "harmless": "harmless", "rm_score": "RM score", "kl": "KL",
           "pretrain_loss": "pretraining loss", "length": "length"}
DIGITS = {"elo": 0, "length": 1}    # behind the point; 3 otherwise


def cell(s, column):
    """A figure of one system as text, with its interval if it has one; empty if it was not measured."""
    if column not in s:
        return ""
    digits, bound = DIGITS.get(column, 3), "≤ " if column == "kl" and s.get("best_of", 1) > 1 else ""
    ci = " [{:.{d}f}, {:.{d}f}]".format(*s[f"{column}_ci"], d=digits) if f"{column}_ci" in s else ""
    return f"{bound}{s[column]:.{digits}f}{ci}"


def table(head, rows):
    """Lines of a Markdown table: head (C,) and rows (R, C) of strings."""
    return ["", *(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])]


def markdown(report, examples):
    """The report as a page: a row for each system, who beats whom, greedy, the use cases, answers side by side."""
    systems, baseline, names = report["systems"], report["baseline"], report["matrix"]["names"]
    greedy = [s["greedy"] | {"name": s["name"]} for s in systems if "greedy" in s]
    def figures(systems):
        columns = [c for c in COLUMNS if any(c in s for s in systems)]
        return table(["system", *(COLUMNS[c] for c in columns)], [[s["name"], *(cell(s, c) for c in columns)] for s in systems])
    about = (f"Against {baseline}: {systems[0]['prompts']} held-out prompts, one answer each at temperature 1, judged by "
             f"{report['judge']}. Ties count half. In brackets: 95 % bootstrap intervals over distinct prompts. Elo: fitted to "
             f"all pairs, {baseline} = 0. At equal length: the win rate if all answers were as long as {baseline}'s. KL: in "
             f"nats a response, from the checkpoint of {baseline}; ≤ is an upper bound, with log n - (n-1)/n for best of n.")
    lines = [about, *figures(systems)]
    rates = [[f"{x:.2f}" for x in row] for row in report["matrix"]["win_rates"]]
    lines += ["", "## Who beats whom", "", "Share of the prompts on which the row's answer beats the column's."]
    lines += table(["", *names], [[name, *row] for name, row in zip(names, rates)])
    lines += ["", "## Greedy", *figures(greedy)] if greedy else []
    cases = list(systems[0]["use_cases"])
    for column in ("win_rate", *HHH) if len(cases) > 1 else ():
        if column in systems[0]:
            rows = [[s["name"], *(f"{s['use_cases'][c][column]:.2f}" for c in cases)] for s in systems]
            lines += ["", f"## {COLUMNS[column].capitalize()} by use case", *table(["system", *cases], rows)]
    for s in (s for s in systems if s["prefix"]):
        lines += ["", f"## What {s['name']} reads first", "", *(f"- {m['role']}: {m['content']}" for m in s["prefix"])]
    lines += ["", "## Answers", ""]
    for prompt, texts in examples:
        lines += [f"**{prompt}**", "", *(f"- {name}: {text}" for name, text in texts), ""]
    return "\n".join(lines)


def heatmap(ax, values, rows, columns, title, colours):
    """values (R, C), from 0 to 1, as colours with the numbers on them; NaN stays empty."""
    shades = ax.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (i, j), x in np.ndenumerate(values):
        dark = np.dot(shades.to_rgba(x)[:3], (0.3, 0.59, 0.11)) < 0.5
        ax.text(j, i, "" if np.isnan(x) else f"{x:.2f}", ha="center", va="center", color="white" if dark else "black", size=9)
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), rows)
    ax.set_title(title)
    ax.spines.bottom.set_visible(False)


def bars(ax, values, ends, rows, title, colour):
    """values (S,), from 0 to 1, as horizontal bars; the numbers stand behind the `ends` (S,) of their intervals."""
    ax.barh(rows, values, 0.65, color=colour, zorder=-1)
    for i, (x, end) in enumerate(zip(values, ends)):
        ax.text(max(x, end) + 0.03, i, f"{x:.2f}", va="center", size=9, bbox={"facecolor": "white", "lw": 0, "pad": 0.5})
    ax.set(xlim=(0, 1.22), xticks=(0, 0.5, 1), title=title)
    ax.spines.bottom.set_bounds(0, 1)


def plot(report, folder):
    """systems.png, matrix.png and use_cases.png. Does nothing but say so without matplotlib."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return print("no plots: `pip install matplotlib` draws them")
    systems, names, cases = report["systems"], report["matrix"]["names"], list(report["systems"][0]["use_cases"])
    S, shares, size = len(names), [k for k in HHH if k in systems[0]], {"squeeze": False, "sharey": True}
    style = {"axes.titlelocation": "left", "axes.titlesize": 11, "ytick.major.size": 0, "figure.constrained_layout.use": True}
    style |= {f"axes.spines.{side}": False for side in ("top", "left", "right")}
    with plt.rc_context(style):
        wide, [axes] = plt.subplots(1, 1 + len(shares), figsize=(5 + 2 * len(shares), 1.2 + 0.4 * S),
                                    width_ratios=[2.2] + [1] * len(shares), **size)
        low, high = np.array([s["win_rate_ci"] for s in systems]).T
        bars(axes[0], [s["win_rate"] for s in systems], high, names, f"win rate against {report['baseline']}", "#0072b2")
        axes[0].axvline(0.5, color="black", lw=1, ls="--", zorder=0)
        axes[0].hlines(range(S), low, high, color="black", lw=1.5)
        axes[0].invert_yaxis()
        for ax, k, colour in zip(axes[1:], shares, ("#009e73", "#d55e00", "#56b4e9")):   # Okabe and Ito: safe for all eyes
            bars(ax, [s[k] for s in systems], [s[k] for s in systems], names, k, colour)
        square, [axes] = plt.subplots(1, 1, figsize=(2.4 + 0.75 * S, 1.8 + 0.5 * S), **size)
        rates = np.where(np.eye(S), np.nan, report["matrix"]["win_rates"])
        heatmap(axes[0], rates, names, names, "how often the row beats the column", "PuOr")
        shown = {"helpful": "Greens", "hallucination": "Oranges"} if shares else {"win_rate": "PuOr"}
        double, [axes] = plt.subplots(1, len(shown), figsize=(2 + 0.55 * len(cases) * len(shown), 1.8 + 0.4 * S), **size)
        for ax, (k, colours) in zip(axes, shown.items()):
            heatmap(ax, np.array([[s["use_cases"][c][k] for c in cases] for s in systems]), names, cases, COLUMNS[k], colours)
        for fig, name in ((wide, "systems.png"), (square, "matrix.png"), (double, "use_cases.png")):
            fig.savefig(os.path.join(folder, name), dpi=120)
            plt.close(fig)


def over_seeds(paths):
    """Mean and half-width of the 95 % interval (Student's t) of every figure over several report.json. Prints a table of
    what all reports have: an older one may lack a system or a column."""
    try:
        reports = [{s["name"]: s for s in json.loads(data.read_file(path))["systems"]} for path in paths]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"--seeds takes report.json files of evaluate.py: {e}") from e
    if len(paths) < 2:
        raise ValueError("--seeds needs at least two reports: an interval over one is none")
    systems = [name for name in reports[0] if all(name in r for r in reports)]
    views = {name: [r[name] for r in reports] for name in systems}
    views |= {f"{name}, {case}": [s["use_cases"][case] for s in views[name]] for name in systems
              for case in reports[0][name]["use_cases"] if all(case in s["use_cases"] for s in views[name])}
    found = {}
    for name, seen in views.items():
        values = {c: [s[c] for s in seen] for c in COLUMNS if all(c in s for s in seen)}
        found[name] = {c: interval(v) for c, v in values.items()}
    columns = [c for c in COLUMNS if any(c in figures for figures in found.values())]
    print(f"mean and 95 % interval over {len(paths)} seeds", *table(["system", *(COLUMNS[c] for c in columns)], [
        [name, *("{:.{d}f} ± {:.{d}f}".format(*figures[c], d=DIGITS.get(c, 3)) if c in figures else "" for c in columns)]
        for name, figures in found.items()]), sep="\n")
    return found


def main(cfg):
    if cfg.seeds:
        return over_seeds(cfg.seeds)
    if not cfg.systems:
        raise ValueError("name the checkpoints to compare, e.g. `python evaluate.py base.pt sft.pt ppo.pt --rm rm.pt`")
    if cfg.baseline and cfg.baseline not in cfg.systems:
        raise ValueError(f"--baseline {cfg.baseline} is not among the systems: {', '.join(cfg.systems)}")
    specs = dict(zip(cfg.systems, systems_of(cfg.systems, cfg.rm)))
    try:
        os.makedirs(cfg.out, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {cfg.out} cannot be made a folder ({e.strerror}): choose another") from e
    check_out(os.path.join(cfg.out, "report.json"))
    device, tokenizer, enc, models, made_by = get_device(cfg), None, None, {}, {}
    for path in dict.fromkeys(s.path for s in specs.values()):   # each once
        model, checkpoint = load_model(path, "gpt", tokenizer, device)
        tokenizer, enc = checkpoint["tokenizer"], data.tokenizer_of(checkpoint, same_as=enc)
        models[path], made_by[path] = model.eval(), checkpoint["meta"]["stage"]
    sft = [spec for spec, s in specs.items() if made_by[s.path] == "sft" and not s.prompted and s.best_of == 1]
    baseline = cfg.baseline or [*sft, cfg.systems[0]][0]
    reference, context = models[specs[baseline].path], max(m.cfg.block_size for m in models.values())
    if reference.cfg.block_size < context:
        raise ValueError(f"{baseline} has a shorter context than the {context} tokens of another system: name a baseline that "
                         f"can read them all, with --baseline")
    rm = load_model(cfg.rm, "scorer", tokenizer, device, context=context)[0].eval() if cfg.rm else None
    prompts = sandbox.eval_prompts(cfg.n, cfg.seed)
    if cfg.prompts:
        prompts = data.prompts(formats.read_records(cfg.prompts, Counter()), Counter())
    keyed = all(p.meta for p in prompts)
    if rm is None and not keyed:
        raise ValueError(f"{' '.join(cfg.prompts)} has no answer key, so a judge is needed: pass --rm rm.pt")
    if not (keyed or cfg.demos) and any(s.prompted for s in specs.values()):
        raise ValueError("prompted: shows demonstrations, and the sandbox's do not suit these prompts: pass --demos FILE")
    demos, trials = sandbox.demonstrations(seed=cfg.seed), sandbox.prompts(TRIALS, f"prefixes {cfg.seed}")
    if cfg.demos:                                            # then the prompts that they answer: the evaluation's stay unseen
        demos = data.demonstrations(formats.read_records(cfg.demos, Counter()), Counter())
        trials = [data.Prompt(d.messages[:-1]) for d in demos[-TRIALS:] if len(d.messages) > 1] or prompts[:TRIALS]
    docs = data.texts(formats.read_records(cfg.text, Counter()), Counter()) if cfg.text else sandbox.corpus(2000, "held out")
    tokens = data.pack(docs, enc, min(64, context), " ".join(cfg.text))
    cases = {c: [i for i, p in enumerate(prompts) if p.use_case == c] for c in sorted({p.use_case for p in prompts})}

    with autocast(cfg):
        shots = {spec: find_prefix(models[s.path], rm, enc, trials, demos, cfg, prompts) if s.prompted else ()
                 for spec, s in specs.items()}
        answers = {(spec, t): answer(models[s.path], reference, rm, enc, prompts, t, cfg, s.best_of, shots[spec])
                   for spec, s in specs.items() for t in (1.0, 0.0) if t or s.best_of == 1}   # the best of equals is no system
        loss = {path: text_loss(model, tokens, device) for path, model in models.items()}
    names, base, row = names_of([*specs.values()]), answers[baseline, 1.0], cfg.systems.index(baseline)
    rates, elo, elo_ci = ratings(np.stack([answers[spec, 1.0].score for spec in specs]), base.prompts, row, cfg.seed)
    systems = []
    for k, (spec, s) in enumerate(specs.items()):
        sampled, greedy = answers[spec, 1.0], answers.get((spec, 0.0))
        systems.append({"name": names[k], "best_of": s.best_of, "prefix": shots[spec], **summary(sampled, base, cfg.seed),
                        "elo": float(elo[k]), "elo_ci": elo_ci[k].tolist(), "pretrain_loss": loss[s.path],
                        "use_cases": {c: summary(sampled, base, cfg.seed, rows) for c, rows in cases.items()}})
        if greedy:
            systems[k]["greedy"] = summary(greedy, answers.get((baseline, 0.0), base), cfg.seed)
    examples = [(" | ".join(m["content"] for m in prompts[rows[0]].messages),
                 [(name, answers[spec, 1.0].texts[rows[0]]) for name, spec in zip(names, specs)]) for rows in cases.values()]
    report = {"baseline": names[row], "judge": "the true score" if keyed else "the reward model", "systems": systems,
              "matrix": {"names": names, "win_rates": rates.tolist()}}
    page = markdown(report, examples)
    try:
        with open(os.path.join(cfg.out, "report.json"), "w") as f:
            json.dump(report, f, indent=1)
        with open(os.path.join(cfg.out, "report.md"), "w", encoding="utf-8") as f:
            f.write(page + "\n")
        plot(report, cfg.out)
    except OSError as e:
        raise ValueError(f"cannot write into {cfg.out} ({e.strerror}): free some space or choose another --out") from e
    print("\n\n## ".join(page.split("\n\n## ")[:2]))        # the systems, and who beats whom
    return {s["name"]: s for s in systems}


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="systems")
