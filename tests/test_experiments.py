"""evidence/experiments.py: what is made once, what is read of logs, and every figure's name."""

import json
import math
import multiprocessing
import os
import random
import re
import time
import zlib
from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import interop
import label
import ppo
import pretrain
import reward
import sandbox
from codex import evaluate, language
from evidence import answers, claims, ensemble, experiments, programs, world
from evidence.statistics import best_of_n_kl
from evidence.world import World
from forks import rloo
from generate import sample
from model import GPT, GPTConfig, Scorer
from plumbing import interpreter
from plumbing.files import save_checkpoint
from plumbing.results import write_jsonl

ENC = interop.get_tokenizer("sandbox")
EXPERIMENTS = list(dict.fromkeys(claim.measure for claim in claims.CLAIMS.values()))


def tiny(cls=GPT, seed=0):
    torch.manual_seed(seed)
    model = cls(GPTConfig(ENC.n_vocab, 320, 1, 2, 16)).eval()
    trunk = model if cls is GPT else model.trunk
    torch.nn.init.normal_(trunk.wpe.weight, 0.0, 1.0)
    return model


# -------------------------------------------------------------------------------------------------
# a model is made once


def stage(folder, seconds=0.0, fail=()):
    """A stage that writes down that it ran, and takes its time; it finds out what is there."""

    def main(cfg):
        if os.path.exists(cfg.out):
            with open(cfg.out) as f:
                if f.read() != "a model":
                    raise ValueError(f"{cfg.out} was made by another command")
            return
        print("this is from the stage")
        with open(folder / "ran", "a") as f:
            f.write(f"{cfg.out} {cfg.seed} {cfg.width}\n")
        time.sleep(seconds)
        if fail:
            raise fail.pop()
        with open(cfg.out, "w") as f:
            f.write("a model")

    return SimpleNamespace(main=main, Config=SimpleNamespace, PRESETS={"sandbox": {"width": 3}})


def ran(folder):
    return (folder / "ran").read_text().splitlines()


def test_a_file_is_made_once_with_its_seed_and_preset(tmp_path, capsys):
    w, folder = World(9, str(tmp_path / "9")), str(tmp_path / "9")
    made = [w.make(name, stage(tmp_path)) for name in ("a.pt", "a.pt")]
    made.append(w.make("b.pt", stage(tmp_path), width=5))
    assert made == [f"{folder}/a.pt", f"{folder}/a.pt", f"{folder}/b.pt"]
    assert ran(tmp_path) == [f"{folder}/a.pt 9 3", f"{folder}/b.pt 9 5"]
    assert "from the stage" not in capsys.readouterr().out
    assert "from the stage" in (tmp_path / "9/a.pt.txt").read_text()


def test_a_quick_world_trains_less_unless_an_experiment_says_how_long(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ppo, "main", seen.append)
    monkeypatch.setattr(pretrain, "main", seen.append)
    for quick in (False, True):
        w = World(9, str(tmp_path), quick)
        w.make("base.pt", pretrain)
        w.make("ppo.pt", ppo, init="sft.pt", rm="rm.pt")
        w.make("short.pt", ppo, init="sft.pt", rm="rm.pt", iterations=25)
    whole, less = seen[:3], seen[3:]
    assert less[0].tokens < whole[0].tokens == pretrain.Config().tokens
    assert less[1].iterations < whole[1].iterations == ppo.Config().iterations
    assert less[2] == whole[2] and whole[2].iterations == 25


def test_a_file_whose_making_failed_is_made_again(tmp_path):
    w, bad = World(9, str(tmp_path)), stage(tmp_path, fail=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        w.make("a.pt", bad)
    assert os.path.exists(w.make("a.pt", bad)) and len(ran(tmp_path)) == 2


def test_a_file_that_another_command_made_is_refused(tmp_path):
    """A model that lies there is no evidence unless its stage says that it made it so."""
    w = World(9, str(tmp_path))
    (tmp_path / "a.pt").write_text("a stranger")
    with pytest.raises(ValueError, match=r"a\.pt was made by another command"):
        w.make("a.pt", stage(tmp_path))
    write_jsonl(tmp_path / "b.jsonl", [{"n": 1}])
    with pytest.raises(ValueError, match=r"b\.jsonl is there already, and this command did not"):
        w.derive("b.jsonl", {"first": 1}, [], lambda: [{"n": 2}])


def ask(folder, start):
    start.wait(10)
    assert os.path.getsize(World(9, str(folder)).make("a.pt", stage(folder, 0.2))) > 0


def test_two_processes_that_want_a_file_make_it_once(tmp_path):
    """The second waits for the first and finds it whole."""
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    processes = [fork.Process(target=ask, args=(tmp_path, start)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(20)
    assert [p.exitcode for p in processes] == [0, 0] and len(ran(tmp_path)) == 1


def test_what_is_printed_goes_into_no_file_of_somebody_else(tmp_path):
    (tmp_path / "mine").write_text("mine")
    os.symlink(tmp_path / "mine", tmp_path / "a.pt.txt")
    with pytest.raises(ValueError, match=r"a\.pt\.txt cannot be written: it is a link"):
        World(9, str(tmp_path)).make("a.pt", stage(tmp_path))
    assert (tmp_path / "mine").read_text() == "mine" and not os.path.exists(tmp_path / "ran")


def test_a_page_that_appeared_while_claims_were_measured_is_kept(tmp_path, monkeypatch):
    page = tmp_path / "docs" / "RESULTS.md"
    monkeypatch.setattr(claims, "measure_missing", lambda *_: page.write_text("mine"))
    monkeypatch.setattr(claims, "findings_of", lambda *_: ["a finding"])
    with pytest.raises(ValueError, match=r"RESULTS\.md is there already"):
        claims.main(claims.Config(docs=str(tmp_path / "docs"), readme=""))
    assert page.read_text() == "mine"


def test_the_first_comparisons_are_a_file_of_their_own(tmp_path, monkeypatch):
    w, whole = World(9, str(tmp_path)), tmp_path / "comparisons.jsonl"
    write_jsonl(whole, [{"n": i} for i in range(20)])
    monkeypatch.setattr(World, "comparisons", lambda w: str(whole))
    path = w.first(7)
    with open(path) as f:
        assert [json.loads(line)["n"] for line in f] == list(range(7))
    before = os.stat(path).st_ino
    assert w.first(7) == path and os.stat(path).st_ino == before
    write_jsonl(whole, [{"n": -i} for i in range(20)])
    with pytest.raises(ValueError, match="made from other inputs"):
        w.first(7)


# -------------------------------------------------------------------------------------------------
# what the experiments read


def test_rollouts_are_means_of_four_steps_of_a_log(tmp_path):
    path = str(tmp_path / "ppo.pt")
    lines = [{"step": s, "kl": s / 4, "score": -s} for s in range(12)]
    write_jsonl(f"{path}.log.jsonl", lines)
    kl, score = world.rollouts(path, "kl", "score")
    assert kl.tolist() == [0.375, 1.375, 2.375] and score.tolist() == [-1.5, -5.5, -9.5]
    assert world.read_log(path) == lines


def test_a_rollout_of_the_sandbox_is_four_steps():
    """What `rollouts` counts on."""
    cfg = ppo.Config(**ppo.PRESETS["sandbox"])
    assert cfg.rollout // cfg.minibatch * cfg.epochs == 4 and cfg.log_every == 1


def test_share_of_some_use_cases():
    judged = [[sandbox.Judgement(h, not h, True, False, 0)] for h in (True, True, False, False)]
    said = SimpleNamespace(judged=judged, cases=["a", "b", "b", "c"])
    assert world.share(said, "helpful") == 0.5
    assert world.share(said, "helpful", "b") == 0.5
    assert world.share(said, "hallucination", "b", "c") == pytest.approx(2 / 3)
    assert world.share(said, "helpful", "a") == 1


def test_texts_are_gone_on_with_in_their_order(tmp_path):
    path, model = str(tmp_path / "base.pt"), tiny()
    save_checkpoint(path, model, interop.tokenizer_id(ENC), {})
    people = enumerate(sandbox.PEOPLE)
    once = [f"Talk: {person} is a{' kind' * (i % 3)}" for i, person in people]
    texts = once * (1 + 200 // len(once))
    found = world.complete(path, texts, 4, temperature=0.0)
    assert len(found) == len(texts) > 200 and len(set(found)) > 2
    assert found[: len(once)] == found[-len(once) :]
    for text, after in list(zip(texts, found))[:5]:
        alone = sample(model, [ENC.encode_ordinary(text)], 4, ENC.eot_token, temperature=0.0)
        assert after == ENC.decode(alone.responses[0])


def test_a_ranking_becomes_one_ranking_for_each_pair(tmp_path):
    path, prompt = str(tmp_path / "rankings.jsonl"), [{"role": "user", "content": "Hi"}]
    record = {"prompt": prompt, "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "labeler": "x"}
    write_jsonl(path, [record])
    found = experiments.pairs_of(path)
    assert [r["responses"] for r in found] == [["b", "a"], ["b", "c"]]
    assert all(r["ranks"] == [1, 2] and r["labeler"] == "x" for r in found)


def test_exact_quality_is_that_of_labels_without_end(tmp_path, monkeypatch):
    """Against the mean over every rating that two labelers may give to each of three answers, and
    a reward model whose scores are known; what the judge cannot tell apart is no pair."""
    prompt = next(p for p in sandbox.eval_prompts(400, 0) if p.use_case == "open qa")
    texts = [prompt.meta["answers"][0], "I do not know.", "You are a stupid cat."]
    judged, scores = [sandbox.judge(prompt, text) for text in texts], [0.3, 0.9, -0.4]
    pairs = [(a, b, judged[a], judged[b]) for a in range(3) for b in range(a)]
    monkeypatch.setattr(experiments, "load", lambda path, cls: (None, None))
    monkeypatch.setattr(experiments, "score_responses", lambda *_: scores)
    tastes = experiments.own_tastes(["labeler 2", "labeler 3"])
    found = experiments.exact_quality("rm.pt", ([], [], pairs), tastes)
    loss = right = total = 0.0
    for weights, (a, b, of_a, of_b) in product(tastes, pairs):
        mine, theirs = (sandbox.rating_odds(weights, j) for j in (of_a, of_b))
        for r, s in product(range(7), repeat=2):
            p, margin = mine[r] * theirs[s], scores[a] - scores[b]
            if r != s:
                up = margin if r > s else -margin
                loss += p * math.log1p(math.exp(-up))
                right += p * (up > 0)
                total += p
    assert found["loss"] == pytest.approx(loss / total)
    assert found["accuracy"] == pytest.approx(right / total)


def test_exact_pairs_are_answers_to_one_prompt_that_the_judge_tells_apart(world):
    asked, said, pairs = experiments.exact_pairs(world, n=8)
    assert len(asked) == 8 and [i for i, _ in said] == [i for i in range(8) for _ in range(4)]
    assert pairs
    for a, b, of_a, of_b in pairs:
        assert a > b and a // 4 == b // 4 and of_a != of_b


def test_discrete_kl_is_that_of_all_draws():
    """Against every ordered draw of n samples, with replacement, from those there are."""
    scores, texts = [0.5, -1.0, 0.5, 2.0, -1.0, 0.5], ["b", "a", "b", "c", "a", "b"]
    for n in (1, 2, 3, 4):
        draws = product(range(6), repeat=n)
        best = Counter(texts[max(draw, key=lambda i: scores[i])] for draw in draws)
        shares = {text: count / 6**n for text, count in best.items()}
        exact = sum(p * math.log(p / (texts.count(text) / 6)) for text, p in shares.items())
        assert experiments.discrete_kl(scores, texts, n) == pytest.approx(exact, abs=1e-12)
        assert exact <= best_of_n_kl(n) + 1e-12
    assert experiments.discrete_kl([1.0, 1.0], ["x", "x"], 256) == 0


# -------------------------------------------------------------------------------------------------
# every experiment, on models and logs that were not trained


class Untrained(World):
    """Makes what a stage would make, of random weights and numbers, if its files are there and it
    takes such settings."""

    def make(self, name, stage, **fields):
        path = os.path.join(self.folder, name)
        settings = stage.PRESETS["sandbox"] | {"seed": self.seed, "out": path} | fields
        cfg = stage.Config(**settings)
        for value in fields.values():
            for file in value if isinstance(value, tuple) else [value]:
                if str(file).startswith(self.folder):
                    assert os.path.exists(file)
        if stage is language:
            language.main(language.Config(out=path, files=40, functions=4, prompts=2))
        elif not os.path.exists(path):
            write_rankings(path, cfg) if stage is label else write_model(path, stage, cfg)
        return path


def write_rankings(path, cfg):
    marks = {"ratings": [7, 3, 1]} if cfg.rate else {"ranks": [1, 2, 3]}
    records = []
    for i, prompt in enumerate(sandbox.prompts(12, cfg.seed)):
        responses = [prompt.meta["answers"][0], "I do not know.", "the"]
        record = {"prompt": prompt.messages, "responses": responses, "use_case": prompt.use_case}
        more = {"meta": prompt.meta} if cfg.unlabeled else marks
        records.append(record | more | {"labeler": f"labeler {i % 5 + 1}"})
    write_jsonl(path, records)


def write_model(path, stage, cfg):
    """A checkpoint, and a log of random numbers."""
    seed = zlib.crc32(os.path.basename(path).encode())
    model = tiny(Scorer if stage is reward else GPT, seed)
    if stage is not reward:  # raise the logit of EOS: it ends soon
        eos = model.wte.weight[ENC.eot_token].detach()
        model.ln_f.bias.data += 5 * eos / eos.pow(2).sum()
    save_checkpoint(path, model, interop.tokenizer_id(ENC), {"config": {"seed": 0}})
    keys = ["loss", "held_out_loss", "held_out_accuracy", "held_out_labelers_accuracy"]
    if stage in (ppo, ensemble, rloo):
        keys = ["kl", "score", "true_score", "reward", "explained_variance"]
    rng, steps = np.random.default_rng(seed), 4 * getattr(cfg, "iterations", 1)
    log = [{"step": s} | {k: abs(rng.normal()) for k in keys} for s in range(steps)]
    write_jsonl(f"{path}.log.jsonl", log)


@pytest.fixture(scope="module", name="world")
def shared_world(tmp_path_factory):
    """A folder that all experiments share; few prompts, and a judge who likes anything."""
    few = {"prompts": 64, "eval_prompts": 8, "tasks": 9, "demonstrations": 30, "corpus": 60}

    def capped(real, most):
        return lambda n=most, *rest, **more: real(min(n, max(most, n // 20)), *rest, **more)

    def judge(prompt, text):
        return sandbox.Judgement(len(text) % 2 == 0, "e" in text, True, False, len(text) % 5)

    def write_programs(coder, problem, n, temperature, seed, *how):
        rng, (*_, told) = random.Random(seed), problem.prompt.split("def f")
        bodies = [language.body(rng, language.chain_of(told), i % 3 == 0) for i in range(n)]
        return [{"program": problem.prompt + body, "logp": -rng.random(), "tokens": 9}
                for body in bodies]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "write_programs", write_programs)
        patch.setattr(programs, "PROBLEMS", 6)
        for name, most in few.items():
            patch.setattr(sandbox, name, capped(getattr(sandbox, name), most))
        patch.setattr(sandbox, "judge", judge)
        patch.setattr(answers, "PREFIXES", 2)
        yield Untrained(101, str(tmp_path_factory.mktemp("101")))


def documented(experiment):
    """What an experiment's docstring says of its figures -> the text on its arms, and the names."""
    found = re.search(r"Arms: (.*?)\n\n    Figures:\n(.*)", experiment.__doc__, re.DOTALL)
    arms, listing = found.groups()
    named = re.findall(r"^ {8}(\S.*?)(?: {2,}.*)?$", listing, flags=re.MULTILINE)
    arms = " ".join(arms.split()).replace("the keys of CHANGED", "; ".join(experiments.CHANGED))
    return arms, {name for line in named for name in line.split(", ")}


def check_documented(experiment, figures):
    """Each arm and each figure is named, and nothing is named that there is not."""
    arms, names = documented(experiment)
    assert [arm for arm in figures if not re.search(rf"\b{re.escape(arm)}\b", arms)] == []
    assert {name for of_arm in figures.values() for name in of_arm} == names


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_measures_the_figures_that_it_says(world, experiment):
    line = claims.measured((experiment, world, "abc"))
    assert "error" not in line
    check_documented(experiment, json.loads(json.dumps(line["figures"], allow_nan=False)))


def test_bleu_is_one_of_a_program_with_itself_and_falls_with_what_is_changed():
    """By hand: 6 of 8 pieces, 4 of 7 pairs, 2 of 6 threes, 1 of 5 fours, and one more of each."""
    program = "s = s . lower ( )"
    assert programs.bleu(program, program) == pytest.approx(1.0)
    changed = "s = t . lower ( ) )"
    by_hand = (7 / 9 * 5 / 8 * 3 / 7 * 2 / 6) ** 0.25
    assert programs.bleu(changed, program) == pytest.approx(by_hand)
    # shorter by two of seven pieces: exp(1 - 7 / 5), all of its own are there
    assert programs.bleu("s = s . lower", program) == pytest.approx(math.exp(1 - 7 / 5))


def test_the_figures_of_programs_are_shares_of_the_samples():
    samples = [{"problem": "a", "blocks": 1, "verdict": "pass", "program": "x", "reference": "x"},
               {"problem": "a", "blocks": 1, "verdict": "wrong", "program": "y", "reference": "x"},
               {"problem": "b", "blocks": 2, "verdict": "wrong", "program": "x", "reference": "x"},
               {"problem": "b", "blocks": 2, "verdict": "wrong", "program": "x", "reference": "x"}]
    assert [programs.share(samples, n) for n in (1, 2)] == [0.5, 0.0]
    assert programs.by_bleu(samples) == 1.0
    with pytest.raises(ValueError, match="no problem has right programs and wrong ones"):
        programs.by_bleu(samples[1:])
    assert programs.lost({"after right": 0.5, "after slip": 0.2}) == pytest.approx(0.3)


def test_programs_follow_a_right_function_or_one_with_a_slip(monkeypatch):
    """Against which of the two the answers are told apart: all answers are right here."""
    read = []

    def write_programs(coder, problem, *how):
        before, asked = problem.prompt.split("\n\n\n")
        read.append(interpreter.right(before, language.examples(language.chain_of(before))))
        chain = language.chain_of(asked)
        return [{"program": problem.prompt + language.body(random.Random(0), chain)}]

    monkeypatch.setattr(evaluate, "load", lambda path: path)
    monkeypatch.setattr(evaluate, "write_programs", write_programs)
    w = World(3, "none")
    assert programs.in_context(w, "code.pt", slip=False) == 1.0 and all(read)
    assert len(read) == programs.PROBLEMS
    read.clear()
    assert programs.in_context(w, "code.pt", slip=True) == 1.0 and not any(read)


def test_files_that_nobody_wrote_are_told_by_their_lines_and_characters():
    code = "def f(s):\n    return s\n"
    assert programs.is_written(code)
    # 100 characters a line, and one more; 1,000 in one, and one more
    assert programs.is_written("x" * 100) and not programs.is_written("x" * 101)
    assert programs.is_written("x\n" * 99 + "x" * 1000)
    assert not programs.is_written("x\n" * 99 + "x" * 1001)
    texts = language.corpus(500, 0)
    for text in texts:
        assert programs.is_written(text) == text.startswith("def")


def test_a_program_is_a_chat_in_both_directions():
    program = 'def f(s):\n    """Remove every e."""\n    return s\n'
    asked, answered = programs.forward(program)
    assert asked == {"role": "user", "content": 'def f(s):\n    """Remove every e."""'}
    assert answered == {"role": "assistant", "content": "    return s\n"}
    asked, answered = programs.backward(program)
    assert asked == {"role": "user", "content": "def f(s):\n    return s"}
    assert answered == {"role": "assistant", "content": '"""Remove every e."""'}
    # what a model wrote after a function is code, too
    program = 'def f(s):\n    """A."""\n    return s\n    """B."""\n'
    assert [m["content"] for m in programs.backward(program)] == [
        'def f(s):\n    return s\n    """B."""', '"""A."""']
    assert programs.forward(program)[1]["content"] == '    return s\n    """B."""\n'


def test_one_sample_is_chosen_of_each_problem():
    samples = [{"problem": p, "verdict": v} for p, v in
               [("a", "pass"), ("a", "wrong"), ("b", "wrong"), ("b", "pass"), ("b", "pass")]]
    assert programs.chosen(samples, [1, 0, 3, 2, 1]) == 0.5
    assert programs.chosen(samples, [1, 1, 1, 2, -math.inf]) == 1.0
    assert programs.chosen(samples, [-math.inf, 0, 1, 1, 1]) == 0.0


def test_what_is_likely_is_the_mean_of_the_last_message(monkeypatch):
    """Against the model's own loss on the two texts; the same chat has one score."""
    gpt = tiny(GPT, 3)
    monkeypatch.setattr(evaluate, "load", lambda path: evaluate.Coder(gpt, ENC, True))
    texts = [("return s", "Remove it."), ("return s", "Keep it."), ("return s + s", "Remove it.")]
    texts += [texts[0], ("return s" * 400, "Remove it.")]
    chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}]
             for a, b in texts]
    found = programs.likely("d.pt", chats)
    assert found[0] == found[3] and len(set(found)) == 4 and found[4] == -math.inf
    for logp, (code, text) in zip(found[:3], texts):
        before = ENC.encode_ordinary(f"User: {code}\n\nAssistant:")
        ids = before + ENC.encode_ordinary(f" {text}") + [ENC.eot_token]
        mask = torch.arange(len(ids) - 1)[None] >= len(before) - 1
        assert logp == pytest.approx(-gpt.loss(torch.tensor([ids]), mask).item(), abs=1e-5)
    # and what a model says is what it says of itself
    said = sample(gpt, [ENC.encode_ordinary("User: return s\n\nAssistant:")], 60, ENC.eot_token,
                  temperature=0.0).responses[0]
    text = ENC.decode([t for t in said if t != ENC.eot_token]).strip()
    of_itself = [chats[0][0], {"role": "assistant", "content": text}]
    assert programs.told("d.pt", [of_itself]) == 1.0
    assert programs.told("d.pt", [of_itself, chats[0]]) == 0.5


def test_the_committed_lines_have_the_figures_that_the_experiments_say(root):
    lines = claims.read_lines(os.path.join(root, "docs", "claims.jsonl"))
    for experiment in EXPERIMENTS:
        for line in lines:
            if line["experiment"] == experiment.__name__:
                check_documented(experiment, line["figures"])
