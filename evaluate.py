"""Who wins: all systems answer the same held-out prompts, at temperature 1 and greedily, judged.

    python evaluate.py base.pt sft.pt ppo.pt --rm rm.pt --out report/
    python evaluate.py base.pt prompted:base.pt sft.pt bon16:sft.pt ppo.pt --rm rm.pt
    python evaluate.py --seeds runs/*/report/report.json     # mean and 95 % interval over reports

A system is a checkpoint, prompted:CHECKPOINT (reads some demonstrations before each prompt, [IG]
3.5) or bonN:CHECKPOINT (the best of N samples by the reward model). Writes report.json, report.md
and, if matplotlib is installed, plots. The judge is, on the sandbox's prompts, the true score
(sandbox.RUBRIC without error), which training never sees; on other prompts it is the reward model,
the very one that best-of-n and PPO climb: it flatters them.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import os
from collections import Counter
from dataclasses import dataclass

import data
import interop
from evidence import answers, report
from evidence.answers import answer, find_prefix, text_loss
from plumbing import cli
from plumbing.files import check_out
from plumbing.processes import autocast, get_device


@dataclass(frozen=True)
class Config:
    systems: tuple[str, ...] = ()   # what to compare: CHECKPOINT, prompted:CHECKPOINT, bonN:...
    rm: str = ""                    # the reward model, made by reward.py; none: no RM score
    out: str = "report"             # the folder to write
    baseline: str = ""              # what win rates and KL refer to; none: the first made by sft.py
    prompts: tuple[str, ...] = ()   # prompts, files in any known format; none: the sandbox's
    demos: tuple[str, ...] = ()     # demonstrations that prompted: shows, files; none: sandbox's
    n: int = 800                    # held-out prompts of the sandbox
    text: tuple[str, ...] = ()      # text whose loss is the alignment tax, files; none: sandbox's
    max_new: int = 32               # longest response, tokens
    batch: int = 200                # responses sampled together
    seeds: tuple[str, ...] = ()     # instead: report.json of several seeds, to print their means
    seed: int = 0                   # of prompts, prefixes, samples and the bootstrap
    precision: str = "auto"         # fp32, bf16, or auto: bf16 on cuda, fp32 on cpu
    device: str = "auto"            # cpu, cuda, or auto: cuda where there is one


PRESETS = {"sandbox": {}, "gpt2": {"max_new": 256, "batch": 64}}
TRIALS = 64     # training prompts on which the prefixes of prompted: compete; not in [IG]


def make_folder(out):
    """Make the folder `out` and see that a report can be written there. Raises ValueError."""
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {out} cannot be made a folder ({e.strerror}): choose "
                         f"another") from e
    check_out(os.path.join(out, "report.json"))


def load_prompts(cfg, systems):
    """The held-out prompts, and whose score counts. Raises ValueError if there is no judge."""
    prompts = interop.load("held-out prompts", cfg.prompts, Counter(), flag="--prompts", n=cfg.n,
                           seed=cfg.seed)
    if all(p.meta for p in prompts):
        return prompts, "the true score"
    if not cfg.rm:
        raise ValueError(f"{' '.join(cfg.prompts)} has no answer key, so a judge is needed: "
                         f"pass --rm rm.pt")
    if not cfg.demos and any(s.prompted for s in systems):
        raise ValueError("prompted: shows demonstrations, and the sandbox's do not suit these "
                         "prompts: pass --demos FILE")
    return prompts, "the reward model"


def load_demonstrations(cfg, prompts):
    """What prompted: shows, and the prompts on which that is chosen: the evaluation's stay unseen,
    unless the demonstrations answer none."""
    demos = interop.load("demonstrations", cfg.demos, Counter(), flag="--demos", n=400,
                         seed=cfg.seed)
    trials = [data.Prompt(d.messages[:-1]) for d in demos[-TRIALS:] if len(d.messages) > 1]
    if not cfg.demos:
        trials = interop.load("prompts", (), Counter(), flag="--prompts", n=TRIALS,
                              seed=f"prefixes {cfg.seed}")
    return demos, trials or prompts[:TRIALS]


def main(cfg):
    if cfg.seeds:
        return report.over_seeds(cfg.seeds)
    systems = answers.systems_of(cfg.systems, cfg.rm, cfg.baseline)
    make_folder(cfg.out)
    device = get_device(cfg)
    models = answers.load_models(systems, cfg.rm, device)
    baseline = answers.baseline_of(cfg.baseline, cfg.systems, systems, models)
    prompts, judge = load_prompts(cfg, systems)
    demos, trials = load_demonstrations(cfg, prompts)
    docs = interop.load("texts", cfg.text, Counter(), flag="--text", n=2000, seed="held out")
    block = min(answers.TEXT_BLOCK, models.context)
    text = data.pack(docs, models.enc, block, " ".join(cfg.text))

    rm, enc, gpts = models.rm, models.enc, models.gpts
    reference = gpts[systems[baseline].path]
    prefix = {s: () for s in systems}
    results = []
    with autocast(cfg):
        for s in systems:
            if s.prompted:
                prefix[s] = find_prefix(gpts[s.path], rm, enc, trials, demos, cfg, also=prompts)
        loss = {path: text_loss(gpt, text, device) for path, gpt in gpts.items()}
        for name, s in zip(answers.names_of(systems), systems):
            gpt, read = gpts[s.path], prefix[s]
            sampled = answer(gpt, reference, rm, enc, prompts, 1.0, cfg, s.best_of, read)
            greedy = None
            if s.best_of == 1:                               # the best of equals is no system
                greedy = answer(gpt, reference, rm, enc, prompts, 0.0, cfg, shots=read)
            results.append(report.Result(name, s.best_of, read, sampled, greedy, loss[s.path]))

    found = report.make_report(results, baseline, judge, cfg.seed)
    page = report.markdown(found, report.examples_of(results, prompts))
    report.write(found, page, cfg.out)
    print("\n\n## ".join(page.split("\n\n## ")[:2]))        # the systems, and who beats whom
    return {s["name"]: s for s in found["systems"]}


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="systems")
