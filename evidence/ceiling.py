"""What if the reward model were perfect? PPO-ptx whose reward is the true score.

    python -m evidence.ceiling --init sft.pt --rm rm.pt --out ceiling.pt

No labeler's error and no reward model's stand between this policy and the rubric, so what it
reaches is what better comparisons and a better reward model could add to ppo.pt. The flags are
those of ppo.py, and everything is done as there but two things:

- The reward is sandbox.judge's score, from -8 to 2 points a response, as it is. A reward model's
  scores spread less, so the same --kl-coef holds this policy less near to the reference: rightly,
  as here nothing can be over-optimised.
- The value function starts from rm.pt all the same, whose features know good answers from bad ones.
  That it agrees with the reward at the start, as in ppo.py, is not expected.

It is a measurement, no method: outside the sandbox nobody knows the true score.
"""
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import torch

import data
import interop
import ppo
import sandbox
from generate import answer
from plumbing import cli, files, processes
from train import Network, train

Config, PRESETS = ppo.Config, {"sandbox": {"out": "ceiling.pt"}}


class Judge(NamedTuple):
    """In place of the reward model: it scores as model.Scorer does, and knows the truth."""
    asked: dict         # tuple of the ids of an encoded prompt -> data.Prompt
    enc: object         # the tokenizer

    def score(self, ids, length):
        """The true scores (B,) of prompts with their responses: ids (B, T), length (B,)."""
        rows = [row[:n] for row, n in zip(ids.tolist(), length.tolist())]
        scores = [self.score_row(row) for row in rows]
        return torch.tensor(scores, device=ids.device)

    def score_row(self, row):
        """The true score of one prompt with its response, a list of ids."""
        n = self.prompt_length(row)
        response = data.decode_response(self.enc, row[n:])
        return sandbox.judge(self.asked[tuple(row[:n])], response).score

    def prompt_length(self, row):
        """How many ids of a row are its prompt.

        It is the longest prompt that the row begins with. A shorter one may be the same dialogue at
        an earlier turn. A longer one would hold the end of the response, and nothing follows that.
        """
        begins = [n for n in range(len(row) + 1) if tuple(row[:n]) in self.asked]
        return begins[-1]


def judge_of(inputs, files_given):
    """ppo.Inputs -> Judge. Raises ValueError where a prompt has no answer key."""
    if not all(prompt.meta for prompt in inputs.records):
        raise ValueError(f"--prompts {' '.join(files_given)} has no answer key, and the true score "
                         f"is only known of the sandbox's prompts: leave out --prompts")
    asked = [tuple(ids) for ids in inputs.prompts]
    return Judge(dict(zip(asked, inputs.records, strict=True)), inputs.enc)


def main(cfg):
    return reinforce(cfg, "ceiling", lambda models, inputs: judge_of(inputs, cfg.prompts))


def reinforce(cfg, stage, scorer, **read):
    """As ppo.main, with scorer(models, inputs) in place of the reward model. `read`: files that it
    needs besides, by the names of their flags."""
    ppo.check(cfg)
    run = files.begin(cfg, stage, init=interop.model_files(cfg.init),
                      rm=interop.model_files(cfg.rm), prompts=cfg.prompts, ptx=cfg.ptx, **read)
    if run.metrics is not None:
        return run.metrics
    counts, state = Counter(), {"kl_coef": cfg.kl_coef}
    models, enc = ppo.load_models(cfg, run.device)
    inputs = ppo.load_inputs(cfg, enc, models.policy.cfg.block_size, counts)
    models = models._replace(rm=scorer(models, inputs))
    print(interop.report(counts))

    def evaluate(step, policy):
        scores = answer(policy, models.rm, inputs.prompts[-ppo.ASKED:], enc, cfg.max_new, step,
                        cfg.sample_batch, processes.mine)
        return {"eval_score": processes.all_mean(sum(scores), len(scores))}

    # all that ppo.minibatches reads of it: that the value function need not be the reward
    unlike = replace(cfg, value_init="random")
    cycle = ppo.steps_per_iteration(cfg)
    in_steps = replace(cfg, warmup=cfg.warmup * cycle, eval_every=cfg.eval_every or 25 * cycle)
    networks = [Network(models.policy, cfg.lr), Network(models.value, cfg.value_lr)]
    return train(run._replace(cfg=in_steps), networks,
                 lambda start: ppo.minibatches(models, inputs, unlike, state, start),
                 lambda minibatch: ppo.ppo_ptx_losses(models, minibatch, cfg, run.device),
                 cfg.iterations * cycle, interop.tokenizer_id(enc), evaluate, state=state,
                 cycle=cycle)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__)
