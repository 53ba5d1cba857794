"""PPO whose reward is what several reward models say together, against over-optimisation.

    python -m evidence.ensemble --init sft.pt --rm rm.pt --more rm-2.pt rm-3.pt --how minimum

The flags are those of ppo.py, and everything is done as there but that the score of a response is
the mean or the minimum of all models' scores. The value function starts from the first of them.

Coste et al. 2023, arXiv 2310.02743
"""
from dataclasses import dataclass
from typing import NamedTuple

import torch

import interop
import ppo
from evidence.ceiling import reinforce
from model import Scorer
from plumbing import cli, files, processes


@dataclass(frozen=True)
class Config(ppo.Config):
    more: tuple[str, ...] = ()      # reward models besides --rm
    how: str = "minimum"            # of the scores of all; mean | minimum


PRESETS = {"sandbox": {"out": "ensemble.pt"}}


class Ensemble(NamedTuple):
    """In place of the reward model: it scores as model.Scorer does."""
    rms: list           # of Scorer
    how: str            # mean | minimum

    def score(self, ids, length):
        """The scores (B,) of prompts with their responses: ids (B, T), length (B,)."""
        scores = torch.stack([rm.score(ids, length) for rm in self.rms])       # (models, B)
        return scores.mean(0) if self.how == "mean" else scores.min(0).values


def main(cfg):
    files.require("--more", [file for path in cfg.more for file in interop.model_files(path)],
                  "python reward.py --seed 1 --init sft.pt --data comparisons.jsonl --out rm-2.pt")

    def scorer(models, inputs):
        rms, context = [models.rm], models.policy.cfg.block_size
        tokenizer = interop.tokenizer_id(inputs.enc)
        for path in cfg.more:
            rm, _ = interop.load_model(path, Scorer, tokenizer, context=context)
            rms.append(processes.frozen_copy(rm, processes.get_device(cfg)))
        return Ensemble(rms, cfg.how)

    return reinforce(cfg, "ensemble", scorer, more=cfg.more)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
