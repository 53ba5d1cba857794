"""Whether the tests notice: slips of the kind that RLHF code has, and the test that catches each.

    python -m tests.mutants            # all, in a few minutes; writes the table of docs/testing.md
    python -m tests.mutants 5          # five of them, and writes nothing
    python -m tests.mutants --list

Each is made in a copy of the checkout, never in the checkout itself.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = "docs/testing.md"
AT_ONCE = 2  # copies that are tested at a time
PATIENCE = 300  # seconds after which a test that does not end is stopped


class Mutation(NamedTuple):
    what: str  # what goes wrong, for the table
    file: str
    old: str  # a piece of it that occurs once
    new: str  # what stands there instead
    test: str  # the test in tests/ that must fail


MUTATIONS = [
    Mutation(
        "a response's first token is no action",
        "data.py",
        "t >= prompt_len[:, None] - 1",
        "t >= prompt_len[:, None]",
        "test_data.py::test_action_mask_is_the_picture",
    ),
    Mutation(
        "EOS is no action: nothing learns to end",
        "data.py",
        "t < total_len[:, None] - 1",
        "t < total_len[:, None] - 2",
        "test_data.py::test_action_mask_is_that_of_a_loop",
    ),
    Mutation(
        "prompts are trained on",
        "data.py",
        '[is_response and m.get("train", True)] * len(body)',
        "[True] * len(body)",
        "test_data.py::test_what_is_trained_on_is_what_the_assistant_said",
    ),
    Mutation(
        "masks leave out what has the pad's id",
        "data.py",
        "for _, trained in encoded]).bool()",
        "for _, trained in encoded]).bool() & (ids[:, 1:] != 0)",
        "test_data.py::test_a_mask_is_never_that_of_token_ids",
    ),
    Mutation(
        "all epochs have the same order",
        "data.py",
        "_epoch(n, seed, i // n)",
        "_epoch(n, seed, 0)",
        "test_data.py::test_rows_at_is_a_permutation_of_every_epoch",
    ),
    Mutation(
        "a prompt with more pairs counts more",
        "data.py",
        "[1 / len(r.pairs)] * len(r.pairs)",
        "[1.0] * len(r.pairs)",
        "test_reward.py::test_pairwise_loss_equals_a_double_loop_with_ties",
    ),
    Mutation(
        "log-probabilities forget the temperature",
        "model.py",
        "F.log_softmax(logits / temperature, dim=-1)",
        "F.log_softmax(logits, dim=-1)",
        "test_model.py::test_logp_and_entropy_are_those_of_the_softmax",
    ),
    Mutation(
        "the score is that of the last column, a pad",
        "model.py",
        "self(ids, past).gather(1, length[:, None] - 1).squeeze(1)",
        "self(ids, past)[:, -1]",
        "test_model.py::test_the_score_is_the_number_at_the_last_token",
    ),
    Mutation(
        "after a shared prompt, positions count its pads",
        "generate.py",
        "self.length[:, None] + t)",
        "0 * self.length[:, None] + self.keys[0].shape[2] + t)",
        "test_generate.py::test_scores_with_a_shared_prompt",
    ),
    Mutation(
        "responses see the pads of a shared prompt",
        "generate.py",
        "torch.arange(P, device=device) < self.length[:, None, None]",
        "torch.arange(P, device=device) < P + 0 * self.length[:, None, None]",
        "test_generate.py::test_scores_with_a_shared_prompt",
    ),
    Mutation(
        "top-p drops the token that reaches p",
        "generate.py",
        "before = ranked.cumsum(-1) - ranked",
        "before = ranked.cumsum(-1)",
        "test_generate.py::test_top_k_and_top_p_keep_exactly",
    ),
    Mutation(
        "the average follows the newest weights only",
        "train.py",
        "_foreach_lerp_(old, new, 1 - decay)",
        "_foreach_lerp_(old, new, decay)",
        "test_train.py::test_ema_of_a_constant_in_closed_form",
    ),
    Mutation(
        "beta2 is not passed on",
        "train.py",
        "betas=(0.9, cfg.beta2)",
        "betas=(0.9, 0.95)",
        "test_train.py::test_two_steps_of_adamw_in_closed_form",
    ),
    Mutation(
        "all steps draw the same dropout",
        "train.py",
        "torch.manual_seed(step_seed(cfg.seed, step, processes.rank()))",
        "torch.manual_seed(step_seed(cfg.seed, 0, processes.rank()))",
        "test_train.py::test_dropout_is_on_and_drawn_anew_at_each_step",
    ),
    Mutation(
        "an interrupted run does its last step again",
        "train.py",
        "files.save_part(t, step + 1, best)",
        "files.save_part(t, step, best)",
        "test_train.py::test_a_killed_run_goes_on_to_the_same_bytes",
    ),
    Mutation(
        "a smaller last micro-batch weighs as much as a whole one",
        "pretrain.py",
        "yield len(chunk) / len(blocks)",
        "yield (cfg.microbatch or len(chunk)) / len(blocks)",
        "test_pretrain.py::test_any_microbatch_size_gives_the_same_gradient",
    ),
    Mutation(
        "micro-batches are averaged, whatever their tokens",
        "sft.py",
        "weight = int(batch.mask.sum()) / tokens",
        "weight = len(chunk) / len(rows)",
        "test_sft.py::test_any_microbatch_size_gives_the_same_gradient",
    ),
    Mutation(
        "the reward model is not normalised",
        "reward.py",
        "finish=lambda rm: normalise(rm, demos, run.device, cfg.microbatch)",
        "finish=None",
        "test_reward.py::test_a_tiny_run_learns_the_preference_and_demonstrations_score_0",
    ),
    Mutation(
        "the score lands on a column that is counted from the response's start",
        "ppo.py",
        "rewards.scatter_add(1, total_len[:, None] - 2,",
        "rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1,",
        "test_ppo.py::test_the_score_lands_on_the_last_token_and_the_kl_on_every_action",
    ),
    Mutation(
        "the KL penalty is a reward",
        "ppo.py",
        "rewards = -kl_coef * (logp - ref_logp)",
        "rewards = kl_coef * (logp - ref_logp)",
        "test_ppo.py::test_the_policy_gradient_is_the_gradient_of_the_exact_objective",
    ),
    Mutation(
        "GAE goes on into the pads",
        "ppo.py",
        "next_value = values[:, t] * mask[:, t]",
        "next_value = values[:, t]",
        "test_ppo.py::test_gae_equals_the_sum_over_all_later_deltas",
    ),
    Mutation(
        "values are those after the action",
        "ppo.py",
        "value(x)[:, :-1] * chosen",
        "value(x)[:, 1:] * chosen",
        "test_ppo.py::test_old_log_probabilities_and_values_are_those_of_each_prefix",
    ),
    Mutation(
        "the ratio is to the policy itself, not to the one that sampled",
        "ppo.py",
        "(logp - old_logp).clamp(-20, 20)",
        "(logp - logp.detach()).clamp(-20, 20)",
        "test_ppo.py::test_policy_loss_by_cases",
    ),
    Mutation(
        "the value loss takes the smaller error",
        "ppo.py",
        "torch.maximum(error,",
        "torch.minimum(error,",
        "test_ppo.py::test_value_loss_by_cases",
    ),
    Mutation(
        "pads are whitened along",
        "ppo.py",
        "mean = data.masked_mean(x, mask)\n    variance",
        "mean = x.mean()\n    variance",
        "test_ppo.py::test_whitened_advantages_have_mean_0_and_biased_variance_1_over_the_mask",
    ),
    Mutation(
        "the reference is trained along",
        "ppo.py",
        "reference = processes.frozen_copy(policy, device)",
        "reference = policy",
        "test_ppo.py::test_what_is_trained_leaves_the_reference_and_the_reward_model_alone",
    ),
    Mutation(
        "the policy keeps the dropout it was made with",
        "ppo.py",
        "policy, checkpoint = interop.load_model(cfg.init, GPT)",
        "policy, checkpoint = interop.load_model(cfg.init, GPT, dropout=0.5)",
        "test_ppo.py::test_there_is_no_dropout_in_reinforcement_learning",
    ),
    Mutation(
        "all steps have the same pretraining text",
        "ppo.py",
        "inputs.text[data.rows_at(step, len(inputs.text)",
        "inputs.text[data.rows_at(0, len(inputs.text)",
        "test_ppo.py::test_the_text_of_the_minibatches_is_shuffled_epochs_of_all_blocks",
    ),
    Mutation(
        "a KL budget ends nothing",
        "ppo.py",
        "if 0 < cfg.kl_budget < kl:",
        "if 0 < kl < cfg.kl_budget:",
        "test_ppo.py::test_a_kl_budget_that_is_exceeded_ends_the_run",
    ),
    Mutation(
        "a result may replace one of its inputs",
        "plumbing/results.py",
        'if any(digest in hashes for hashes in meta["inputs"].values()):',
        "if False:",
        "test_files.py::test_an_input_is_never_overwritten",
    ),
]


# ---- a copy, a slip, a test --------------------------------------------------------------------


def copy_checkout(folder):
    """Copy what git would commit into `folder`; what it ignores stays behind."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def mutate(mutation, folder):
    """Make the slip in a copy. Raises ValueError where its piece is not there exactly once."""
    path = folder / mutation.file
    text = path.read_text()
    times = text.count(mutation.old)
    if times != 1:
        raise ValueError(
            f"tests/mutants.py, {mutation.what!r}: {mutation.old!r} stands in {mutation.file} "
            f"{times} times and must stand there once; adapt the one or the other"
        )
    path.write_text(text.replace(mutation.old, mutation.new))


def run_tests(folder, tests):
    """Run tests in a copy, to the first failure -> (exit code, output)."""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"]
    argv += [f"tests/{test}" for test in dict.fromkeys(tests)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    how = {"cwd": folder, "env": env, "capture_output": True, "text": True}
    try:
        done = subprocess.run(argv, timeout=PATIENCE, check=False, **how)
    except subprocess.TimeoutExpired:
        return None, f"no end within {PATIENCE} seconds"
    return done.returncode, done.stdout + done.stderr


def is_caught(code, output, mutation):
    """Whether an assertion of the named test failed: an error elsewhere proves nothing."""
    file, _, name = mutation.test.partition("::")
    where = rf"^\S*tests/{re.escape(file)}:\d+: (assert |AssertionError|Failed: DID NOT RAISE)"
    failed = rf"^FAILED tests/{re.escape(file)}::{re.escape(name)}\b"
    return code == 1 and all(re.search(x, output, re.MULTILINE) for x in (where, failed))


def attempt(mutation):
    """Make one slip in a copy of its own and run its test -> (mutation, caught, output)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_checkout(folder)
        mutate(mutation, folder)
        code, output = run_tests(folder, [mutation.test])
    return mutation, is_caught(code, output, mutation), output


# ---- the page ----------------------------------------------------------------------------------


def table():
    """The rows of docs/testing.md."""
    lines = ["| what goes wrong | in | the test that catches it |", "|---|---|---|"]
    for m in MUTATIONS:
        lines.append(f"| {m.what} | {m.file} | `{m.test.replace('::', '` `')}` |")
    return "\n".join(["", *lines, "", ""])


def with_table(page):
    """The page with the table between its markers."""
    before, _, rest = page.partition("<!-- mutants -->")
    _, _, after = rest.partition("<!-- /mutants -->")
    return f"{before}<!-- mutants -->{table()}<!-- /mutants -->{after}"


def main(argv=None):
    """Print what each slip came to -> the exit code, 1 if one was not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("n", nargs="?", type=int, default=len(MUTATIONS), help="how many of them")
    parser.add_argument("--list", action="store_true", help="say what they are, and run nothing")
    args = parser.parse_args(argv)
    if args.list:
        for m in MUTATIONS:
            print(f"{m.file:20} {m.what}")
        return 0
    if not 1 <= args.n <= len(MUTATIONS):
        parser.error(f"there are {len(MUTATIONS)}, got {args.n}")
    chosen = MUTATIONS[:: len(MUTATIONS) // args.n][: args.n]
    with tempfile.TemporaryDirectory() as name:
        copy_checkout(Path(name))
        code, output = run_tests(name, [m.test for m in chosen])
    if code != 0:
        print(f"{output}\nThe tests fail on the code as it is: nothing was tried.")
        return 1
    survived = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for mutation, caught, output in pool.map(attempt, chosen):
            print(f"{'caught  ' if caught else 'SURVIVED'}  {mutation.file:20} {mutation.what}")
            if not caught:
                survived += 1
                print(output)
    if not survived and args.n == len(MUTATIONS):
        page = ROOT / PAGE
        page.write_text(with_table(page.read_text()))
    return int(survived > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as e:
        sys.exit(f"error: {e}")
