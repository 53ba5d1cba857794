"""Who wins: all systems answer the same held-out prompts, at temperature 1 and greedily, judged.

    python evaluate.py base.pt sft.pt ppo.pt --rm rm.pt --out report/
    python evaluate.py base.pt prompted:base.pt sft.pt bon16:sft.pt ppo.pt --rm rm.pt
    python evaluate.py sft.pt ppo.pt --rm rm.pt --votes human/votes.jsonl   # and people
    python evaluate.py --seeds runs/*/report/report.json     # mean and 95 % interval over reports

A system is a checkpoint, prompted:CHECKPOINT (reads some demonstrations before each prompt, [IG]
3.5) or bonN:CHECKPOINT (the best of N samples by the reward model). Writes report.json, report.md
and, if matplotlib is installed, plots; `python -m evidence.report report/` tells it in ten lines.
Of two systems all pairs of answers to a prompt are compared. The judge is, on the sandbox's
prompts, the true score (sandbox.RUBRIC without error), which training never sees; on other prompts
it is the reward model, the very one that best-of-n and PPO climb: it flatters them.

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
from dataclasses import dataclass, fields, replace

import interop
from evidence import answers, apart, report
from evidence.answers import answer, find_prefix, text_loss
from people.report import of_votes
from people.store import read
from plumbing import cli, files, results
from plumbing.processes import autocast, get_device


@dataclass(frozen=True)
class Config:
    systems: tuple[str, ...] = ()   # what to compare: CHECKPOINT, prompted:CHECKPOINT, bonN:...
    rm: str = ""                    # the reward model, made by reward.py; none: no RM score
    out: str = "report"             # the folder to write
    overwrite: bool = False         # replace what stands there, whatever made it
    baseline: str = ""              # what win rates, KL and log-ratios refer to; none: the first
                                    # that sft.py made
    prompts: tuple[str, ...] = ()   # prompts, files in any known format; none: the sandbox's
    columns: str = ""               # names of the fields of --prompts: prompt=question
    strict: bool = False            # stop at a bad record of data; else it is skipped and shown
    demos: tuple[str, ...] = ()     # demonstrations that prompted: shows, files; none: sandbox's
    n: int = 400                    # held-out prompts of the sandbox; [1, 1_000_000]
    samples: int = 8                # answers of each system to each prompt at temperature 1;
                                    # [1, 1000]
    dialogues: int = 240            # questions at the first turn, at the second, ..., if --prompts
                                    # names none; [0, 1_000_000]
    untouched: int = 200            # questions about what no stage was asked, if --prompts names
                                    # none; [0, 1_000_000]
    votes: tuple[str, ...] = ()     # what people preferred, votes.jsonl of page.py: a column more
    text: tuple[str, ...] = ()      # text whose loss is the alignment tax, files; none: sandbox's
    max_new: int = 32               # longest response, tokens; >= 1
    batch: int = 200                # responses sampled together, a matter of memory; >= 1
    seeds: tuple[str, ...] = ()     # instead: report.json of several seeds, to print their means
    seed: int = 0                   # of prompts, prefixes, samples and the bootstrap; >= 0
    precision: str = "auto"         # auto is bf16 on cuda, fp32 on cpu; auto | fp32 | bf16
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"sandbox": {}, "gpt2": {"max_new": 256, "batch": 64, "samples": 1}}


def made_by(cfg, systems):
    """What makes this very report: the settings, the systems as it names them, a hash of each file.

    Raises ValueError if a file is missing."""
    checkpoints = []
    for path in dict.fromkeys(s.path for s in systems):
        found = interop.model_files(path)
        files.require("the system", found, "python sft.py --init base.pt --out sft.pt")
        checkpoints += found
    names = answers.names_of(systems)
    baseline = names[cfg.systems.index(cfg.baseline)] if cfg.baseline else ""
    named = replace(cfg, systems=tuple(names), baseline=baseline)
    return results.provenance(named, "evaluate", {
        "checkpoints": checkpoints, "rm": interop.model_files(cfg.rm), "prompts": cfg.prompts,
        "demos": cfg.demos, "text": cfg.text, "votes": cfg.votes})


def load_votes(files, names, baseline):
    """{system: people's votes between it and the baseline}. Raises ValueError if there are none."""
    votes = [v for path in files for v in read(path, "votes")[0]]
    about = {name: [v for v in votes if set(v["systems"]) == {name, baseline}] for name in names}
    if files and not any(about.values()):
        raise ValueError(f"{files[0]} has no vote between {baseline} and another of these "
                         f"systems: `python page.py compare` of the same checkpoints collects some")
    return about


def add_votes(found, about):
    """Put into a report how often people prefer each system to the baseline, ties half."""
    for s in found["systems"]:
        if about[s["name"]]:
            figures = of_votes(about[s["name"]])[s["name"]]
            s["people"], s["people_votes"] = figures["win rate"], figures["votes"]
            s["people_ci"] = [figures["low"], figures["high"]]


def measure(cfg, systems, models, baseline, asked, shown, text):
    """The answers of each system, and the loss of its checkpoint on `text` -> [report.Result, ...].

    asked: the held-out prompts, dialogues, questions about what nobody touched; shown:
    demonstrations, and the prompts on which some of them are chosen."""
    prompts, *others = asked
    rm, enc, gpts = models.rm, models.enc, models.gpts
    reference, device = gpts[systems[baseline].path], get_device(cfg)
    prefix = {s: () for s in systems}
    for s in systems:
        if s.prompted:
            demos, trials = shown
            prefix[s] = find_prefix(gpts[s.path], rm, enc, trials, demos, cfg, also=prompts)
    loss = {path: text_loss(gpt, text, device) for path, gpt in gpts.items()}
    measured = []
    for name, s in zip(answers.names_of(systems), systems):
        gpt, read = gpts[s.path], prefix[s]
        sampled = answer(gpt, reference, rm, enc, prompts, 1.0, cfg, s.best_of, read, cfg.samples)
        greedy = None
        if s.best_of == 1:                                   # the best of equals is no system
            greedy = answer(gpt, reference, rm, enc, prompts, 0.0, cfg, shots=read)
        parts = apart.measure(gpt, rm, enc, *others, cfg, s.best_of, read)
        if "untouched" in parts:
            parts["touched"] = apart.knowledge(prompts, sampled.judged)
        result = report.Result(name, s.best_of, read, sampled, greedy, loss[s.path], parts)
        measured.append(result)
    return measured


def check_alone(cfg):
    """Raise ValueError for a setting beside --seeds, which reads reports and samples nothing."""
    if cfg.systems:
        raise ValueError("--seeds prints the means of reports: name no systems beside them")
    # a preset changes the last three
    allowed = {"seeds", "max_new", "batch", "samples"}
    for field in fields(Config):
        if field.name not in allowed and getattr(cfg, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise ValueError(f"--seeds prints the means of reports: leave out --{flag}")


def main(cfg):
    if cfg.seeds:
        check_alone(cfg)
        return report.over_seeds(cfg.seeds)
    systems = answers.systems_of(cfg.systems, cfg.rm, cfg.baseline)
    meta = made_by(cfg, systems)
    if results.claim(cfg.out, meta, report.FILES, cfg.overwrite):
        return report.show(cfg.out)
    models = answers.load_models(systems, cfg.rm, get_device(cfg))
    baseline = answers.baseline_of(cfg.baseline, cfg.systems, systems, models)
    names = answers.names_of(systems)
    votes = load_votes(cfg.votes, names, names[baseline])
    prompts, judge = answers.load_prompts(cfg, systems, models.enc)
    others = answers.load_apart(cfg, models.enc)
    shown = answers.load_demonstrations(cfg, prompts, systems, models.enc)
    text = answers.load_text(cfg, models)
    with autocast(cfg):
        asked = [prompts, *others]
        measured = measure(cfg, systems, models, baseline, asked, shown, text)
    found = report.make_report(measured, baseline, judge, cfg.seed, prompts)
    add_votes(found, votes)
    results.deliver(cfg.out, meta, report.writers(found))
    return report.show(cfg.out)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="systems")
