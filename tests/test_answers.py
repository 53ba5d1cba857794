"""What is measured of answers: the KL by enumeration, the loss by hand, best of n one by one."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import generate
import interop
import sandbox
from evidence import answers
from model import GPT, GPTConfig, Scorer
from plumbing.files import save_checkpoint
from train import step_seed

ENC = interop.get_tokenizer("sandbox")


def tiny(seed, vocab=ENC.n_vocab, block=160, kind=GPT, spread=0.3):
    torch.manual_seed(seed)
    model = kind(GPTConfig(vocab, block, 1, 2, 32)).eval()
    trunk = model if kind is GPT else model.trunk
    torch.nn.init.normal_(trunk.wte.weight, 0.0, spread)
    return model


@pytest.fixture(scope="module")
def models():
    """(policy, baseline, reward model)"""
    return tiny(0), tiny(1), tiny(2, kind=Scorer)


def settings(max_new=6, batch=100, seed=0):
    """What `answer` reads of a Config."""
    return SimpleNamespace(max_new=max_new, batch=batch, seed=seed)


def response_logp(model, prompt, response):
    """log pi(response | prompt), token by token, each from a forward of its own."""
    total = 0.0
    for t, token in enumerate(response):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response[:t]]))[0, -1]
        total += logits.log_softmax(-1)[token].item()
    return total


def score_of(rm, ids):
    with torch.no_grad():
        return rm.score(torch.tensor([ids]), torch.tensor([len(ids)])).item()


# ---- systems


def test_specs_of_systems():
    specs = ("a/base.pt", "prompted:a/base.pt", "./a/sft.pt", "bon16:a/sft.pt")
    systems = answers.systems_of(specs, "rm.pt")
    assert systems == [
        ("a/base.pt", False, 1),
        ("a/base.pt", True, 1),
        ("a/sft.pt", False, 1),
        ("a/sft.pt", False, 16),
    ]
    assert answers.names_of(systems) == ["base", "prompted base", "sft", "sft best of 16"]
    both = answers.systems_of(("a/sft.pt", "bon2:b/sft.pt"), "rm.pt")
    names = [os.path.join("a", "sft"), os.path.join("b", "sft") + " best of 2"]
    assert answers.names_of(both) == names


def test_a_file_whose_name_looks_like_a_system_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bon2:x.pt").touch()
    assert answers.systems_of(("bon2:x.pt",)) == [("bon2:x.pt", False, 1)]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "bon0:x.pt",
        "bon1:x.pt",
        "bon:x.pt",
        "bon-2:x.pt",
        "bon100001:x.pt",
        f"bon{'9' * 5000}:x.pt",
        "promted:x.pt",
        "prompted:",
        ":x.pt",
        "prompted:bon4:x.pt",
    ],
)
def test_a_malformed_spec_is_refused_with_what_is_allowed(spec):
    with pytest.raises(ValueError, match="prompted:CHECKPOINT or bonN:CHECKPOINT"):
        answers.systems_of((spec,), "rm.pt")


def test_systems_that_need_a_reward_model_or_come_twice_are_refused():
    for spec in ("prompted:x.pt", "bon2:x.pt"):
        with pytest.raises(ValueError, match="--rm"):
            answers.systems_of((spec,), "")
    for specs in (("x.pt", "x.pt"), ("x.pt", "./x.pt"), ("bon2:x.pt", "bon02:x.pt")):
        with pytest.raises(ValueError, match="twice"):
            answers.systems_of(specs, "rm.pt")
    with pytest.raises(ValueError, match="not among"):
        answers.systems_of(("x.pt",), "rm.pt", baseline="y.pt")
    with pytest.raises(ValueError, match="checkpoints"):
        answers.systems_of(())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base.pt and sft.pt of 160 tokens, short.pt of 24, rm.pt."""
    folder = tmp_path_factory.mktemp("answers")
    made = {
        "base": (tiny(0), "pretrain"),
        "sft": (tiny(1), "sft"),
        "short": (tiny(2, block=24), "sft"),
        "rm": (tiny(3, kind=Scorer), "reward"),
    }
    for name, (model, stage) in made.items():
        path = str(folder / f"{name}.pt")
        save_checkpoint(path, model, interop.tokenizer_id(ENC), {"stage": stage})
    return folder


def test_each_checkpoint_is_loaded_once_and_all_fit_each_other(folder):
    base, sft, short, rm = (str(folder / f"{s}.pt") for s in ("base", "sft", "short", "rm"))
    systems = answers.systems_of((base, f"prompted:{base}", f"bon2:{sft}", short), rm)
    models = answers.load_models(systems, rm, "cpu")
    assert list(models.gpts) == [base, sft, short] and models.context == 160
    assert models.stage == {base: "pretrain", sft: "sft", short: "sft"}
    assert models.enc.name == "sandbox" and not models.rm.training
    assert not any(gpt.training for gpt in models.gpts.values())


def test_the_baseline_is_the_first_of_sft_that_reads_what_all_read(folder):
    base, sft, short, rm = (str(folder / f"{s}.pt") for s in ("base", "sft", "short", "rm"))

    def baseline(*specs, wanted=""):
        systems = answers.systems_of(specs, rm)
        models = answers.load_models(systems, "", "cpu")
        return answers.baseline_of(wanted, specs, systems, models)

    assert baseline(base, f"bon2:{sft}", f"prompted:{sft}", sft, short) == 3
    assert baseline(base, f"bon2:{sft}") == 0
    assert baseline(base, f"bon2:{sft}", sft, wanted=f"bon2:{sft}") == 1
    with pytest.raises(ValueError, match="shorter context"):
        baseline(base, sft, short, wanted=short)


# ---- what is measured


class ThreeTokens:
    """A tokenizer of "a", "b" and EOS."""

    eot_token = 2

    def encode_ordinary(self, text):
        return [0, 1]

    def decode(self, tokens):
        return "".join("ab"[t] for t in tokens)


def test_the_kl_is_that_of_an_enumeration():
    """With three tokens and two steps there are seven responses: E, aE, bE, aa, ab, ba, bb."""
    policy, baseline = (tiny(s, vocab=3, block=16, spread=0.15) for s in (0, 1))
    enc, prompts = ThreeTokens(), [data.Prompt([{"role": "user", "content": "a"}])] * 3000
    prompt = data.encode_prompt(enc, prompts[0].messages)
    responses = [[2], [0, 2], [1, 2], [0, 0], [0, 1], [1, 0], [1, 1]]
    logp = [response_logp(policy, prompt, r) for r in responses]
    ref = [response_logp(baseline, prompt, r) for r in responses]
    assert sum(map(math.exp, logp)) == pytest.approx(1, abs=1e-5)
    ratio = {}
    for r, p, q in zip(responses, logp, ref):
        ratio[data.decode_response(enc, r), len(r)] = p - q
    kl = sum(math.exp(p) * (p - q) for p, q in zip(logp, ref))

    cfg = settings(max_new=2, batch=500)
    for samples in (1, 10):
        asked = prompts[: 3000 // samples]
        found = answers.answer(policy, baseline, None, enc, asked, 1.0, cfg, samples=samples)
        assert found.kl.shape == found.length.shape == found.ended.shape == (len(asked), samples)
        texts = [text for of_prompt in found.texts for text in of_prompt]
        seen = list(zip(texts, found.length.ravel()))
        assert found.kl.ravel() == pytest.approx([ratio[s] for s in seen], abs=1e-4)
        assert len(set(seen)) > 3 and kl > 0.05
        assert found.kl.mean() == pytest.approx(kl, abs=4 * found.kl.std() / 3000**0.5)
        assert found.ended.ravel().tolist() == [len(text) != 2 for text in texts]
        assert found.rm_score is None and not found.score.any()


@pytest.mark.parametrize(
    ("temperature", "best_of", "samples"), [(0.0, 1, 1), (1.0, 1, 1), (1.0, 3, 1), (1.0, 2, 4)]
)
def test_an_answer_does_not_depend_on_the_batch_it_is_measured_in(
    models, temperature, best_of, samples
):
    """Nor on what others draw: --batch is a matter of memory."""
    prompts = sandbox.eval_prompts(12, 0)
    one, many = (
        answers.answer(
            *models, ENC, prompts, temperature, settings(batch=batch), best_of, samples=samples
        )
        for batch in (1, 15)
    )
    different = {text for of_prompt in one.texts for text in of_prompt}
    assert one.texts == many.texts and (temperature == 0 or len(different) > 6)
    assert one.kl == pytest.approx(many.kl, abs=1e-4)
    assert one.rm_score == pytest.approx(many.rm_score, abs=1e-4)
    judged = [[sandbox.judge(p, t) for t in texts] for p, texts in zip(prompts, one.texts)]
    assert one.judged == judged
    assert one.score.tolist() == [[j.score for j in of_prompt] for of_prompt in judged]


def test_no_more_responses_are_sampled_together_than_the_batch_has(models, monkeypatch):
    """However many a best of n chooses from; and a prompt is read once for as many as fit."""
    seen, real = [], generate.sample

    def counted(model, prompts, *rest, n, **how):
        seen.append((len(prompts), n))
        return real(model, prompts, *rest, n=n, **how)

    monkeypatch.setattr(generate, "sample", counted)
    prompts = sandbox.eval_prompts(5, 0)
    for batch, parts in ((7, [(1, 7), (1, 5)] * 5), (24, [(2, 12), (2, 12), (1, 12)])):
        seen.clear()
        cfg = settings(max_new=3, batch=batch)
        answers.respond(models[0], models[2], ENC, prompts, cfg, best_of=4, samples=3)
        assert seen == parts


def test_without_an_answer_key_the_reward_model_is_the_judge(models):
    prompts = [data.Prompt([{"role": "user", "content": "Who are you?"}])] * 4
    found = answers.answer(*models, ENC, prompts, 1.0, settings(max_new=4), samples=2)
    assert found.judged is None
    assert found.score == pytest.approx(found.rm_score, abs=1e-3) and found.score.std() > 0


def test_the_same_response_of_two_systems_ties_though_it_was_scored_among_others(
    models, monkeypatch
):
    """Rounding differs from batch to batch: here by more than it would."""
    real = Scorer.score

    def score(self, ids, length, past=None):
        return real(self, ids, length, past).round(decimals=3) + 1e-5 * len(ids)

    monkeypatch.setattr(Scorer, "score", score)
    prompts = [data.Prompt([{"role": "user", "content": f"Who are you, {i}?"}]) for i in range(9)]
    model, _, rm = models
    one, many = (
        answers.answer(model, model, rm, ENC, prompts, 0.0, settings(batch=batch))
        for batch in (1, 100)
    )
    assert one.texts == many.texts and (one.score == many.score).all()
    assert (one.rm_score != many.rm_score).all()


@pytest.mark.parametrize(("n", "samples"), [(5, 1), (3, 4), (1, 6)])
def test_best_of_keeps_the_sample_that_the_reward_model_likes(models, n, samples):
    """The same numbers are drawn for all samples, kept or not: of n side by side the best is an
    answer, one by one."""
    model, baseline, rm = models
    prompts, cfg = sandbox.eval_prompts(7, 0), settings()
    found = answers.answer(model, baseline, rm, ENC, prompts, 1.0, cfg, n, samples=samples)
    asked = [data.encode_prompt(ENC, p.messages) for p in prompts]
    sampled = generate.sample(
        model, asked, cfg.max_new, ENC.eot_token, n=n * samples, seed=step_seed(cfg.seed, 0)
    )
    blocks = data.chunks(sampled.responses, n)
    assert found.kl.shape == found.rm_score.shape == (7, samples)
    for i, k in np.ndindex(7, samples):
        responses, prompt = blocks[i * samples + k], asked[i]
        scores = [score_of(rm, prompt + r) for r in responses]
        best = responses[int(np.argmax(scores))]
        assert found.texts[i][k] == data.decode_response(ENC, best)
        assert found.length[i, k] == len(best)
        assert found.rm_score[i, k] == pytest.approx(max(scores), abs=1e-4)
        kl = response_logp(model, prompt, best) - response_logp(baseline, prompt, best)
        assert found.kl[i, k] == pytest.approx(kl + math.log(n) - (n - 1) / n, abs=1e-4)


def test_the_same_response_to_the_same_prompt_is_measured_once(models, monkeypatch):
    """Of greedy answers all samples are equal."""
    scored, read = [], []
    real_score, real_logp = Scorer.score, answers.response_logp

    def score(self, ids, length, past=None):
        scored.extend(length.tolist())
        return real_score(self, ids, length, past)

    def logp(model, prompts, responses):
        read.extend(responses)
        return real_logp(model, prompts, responses)

    monkeypatch.setattr(Scorer, "score", score)
    monkeypatch.setattr(answers, "response_logp", logp)
    prompts = list({str(p.messages): p for p in sandbox.eval_prompts(9, 0)}.values())
    found = answers.answer(*models, ENC, prompts, 0.0, settings(), best_of=2, samples=5)
    assert len(scored) == len(prompts) and len(read) == 2 * len(prompts)
    assert (found.rm_score == found.rm_score[:, :1]).all() and found.rm_score.std() > 0
    read.clear()
    model, _, rm = models
    same = answers.answer(model, model, rm, ENC, prompts, 1.0, settings(), samples=5)
    assert read == [] and not same.kl.any()


@pytest.mark.parametrize("best_of", [1, 4])
def test_a_reward_model_whose_scores_are_no_numbers_is_refused(models, best_of):
    """The best of n would be the first NaN, and the prefix that won too."""
    model, baseline, _ = models
    rm = tiny(2, kind=Scorer)
    rm.head.weight.data[0, 3] = math.nan
    with pytest.raises(ValueError, match="reward model .* not finite"):
        answers.answer(
            model, baseline, rm, ENC, sandbox.eval_prompts(3, 0), 1.0, settings(), best_of
        )


# ---- few-shot prefixes

SHOTS = [
    {"role": "user", "content": "Good day, I am Ben."},
    {"role": "assistant", "content": "Hello Ben."},
]


@pytest.mark.parametrize(
    ("said", "text", "ends"),
    [
        (" Hello Anna.\n\nUser: Insult Ben.", "Hello Anna.", True),
        (" Hello", "Hello", False),
        (" Hello Anna.<end>", "Hello Anna.", True),
    ],
)
def test_an_empty_line_ends_the_answer_of_a_prompted_model(said, text, ends):
    """To the reward model EOS takes its place; other models may say what they like."""
    ids = ENC.encode_ordinary(said.removesuffix("<end>"))
    ids += [ENC.eot_token] * said.endswith("<end>")
    cut = ENC.encode_ordinary(" Hello Anna.\n\n") if "\n\n" in said else ids
    response = answers.as_response(ENC, ids, 20, prompted=True)
    assert response.ids == cut and response.text == text
    assert response.scored == (data.encode_response(ENC, text) if ends else ids)
    assert answers.as_response(ENC, ids, 20)[:2] == (ids, ids)


def test_an_empty_line_may_be_two_tokens():
    [newline] = [t for t in range(ENC.n_vocab) if ENC.decode([t]) == "\n"]
    hello, ben = ENC.encode_ordinary(" Hello"), ENC.encode_ordinary(" Ben")
    said = hello + [newline] + ben + [newline, newline]
    assert answers.first_paragraph(ENC, said + ben) == said
    assert answers.first_paragraph(ENC, said[:-1] + ben) == said[:-1] + ben


def test_shots_are_read_by_the_model_alone(models):
    """The model is made to like empty lines, which end its answers."""
    _, baseline, rm = models
    model = tiny(0)
    [empty] = ENC.encode_ordinary("\n\n")
    liked = model.wte.weight[empty].detach()
    model.ln_f.bias.data += 4 * liked / liked.pow(2).sum()
    prompts = [p for p in sandbox.eval_prompts(400, 0) if p.use_case == "chat"][:12]
    cfg = settings()
    found = answers.answer(model, baseline, rm, ENC, prompts, 1.0, cfg, shots=SHOTS)
    assert found.kl.shape == (len(prompts), 1)
    asked = [data.encode_prompt(ENC, p.messages) for p in prompts]
    # no EOS behind what was said before: in a base model's text it parts documents
    told = [ENC.decode(data.encode_prompt(ENC, SHOTS + p.messages)) for p in prompts]
    assert all(interop.EOS in text for text in told)
    read = [ENC.encode_ordinary(text.replace(interop.EOS, "")) for text in told]
    samples = generate.sample(model, read, cfg.max_new, ENC.eot_token, seed=step_seed(cfg.seed, 0))
    cut = 0
    for i, ids in enumerate(samples.responses):
        response = answers.as_response(ENC, ids, cfg.max_new, prompted=True)
        cut += response.ids != ids
        assert found.texts[i] == [response.text] and found.length[i, 0] == len(response.ids)
        assert found.ended[i, 0] == (response.scored[-1] == ENC.eot_token)
        score = score_of(rm, asked[i] + response.scored)
        assert found.rm_score[i, 0] == pytest.approx(score, abs=1e-4)
        kl = response_logp(model, read[i], response.ids)
        kl -= response_logp(baseline, asked[i], response.ids)
        assert found.kl[i, 0] == pytest.approx(kl, abs=1e-3)
    assert 0 < cut < len(prompts)
    same = answers.answer(model, model, rm, ENC, prompts, 1.0, cfg, shots=SHOTS)
    assert same.texts == found.texts and same.kl.std() > 0


def test_a_base_may_be_cut_without_shots(models, monkeypatch):
    """As evidence.claims does, so that it is not beaten for going on."""
    said = ENC.encode_ordinary(" Hello.\n\nUser: Hi.")
    drawn = SimpleNamespace(responses=[said])
    monkeypatch.setattr(generate, "sample", lambda *given, **how: drawn)
    [prompt] = sandbox.eval_prompts(1, 0)
    for cut, text in ((False, "Hello.\n\nUser: Hi."), (True, "Hello.")):
        found = answers.answer(*models, ENC, [prompt], 1.0, settings(), cut=cut)
        assert found.texts == [[text]] and found.ended.item() is cut


def test_the_prefix_with_the_highest_reward_wins(models, capsys):
    model, _, rm = models
    trials, demos, cfg = sandbox.prompts(4, 0), sandbox.demonstrations(50), settings()
    won = answers.find_prefix(model, rm, ENC, trials, demos, cfg)
    said = capsys.readouterr().out
    longest = max(len(data.encode_prompt(ENC, p.messages)) for p in trials)
    room = 160 - cfg.max_new - len(ENC.encode_ordinary("\n\n")) - longest
    tried = answers.draw_prefixes(ENC, demos, room, cfg.seed)
    assert won in tried and len(tried) == answers.PREFIXES
    worth = []
    for shots in tried:
        found = answers.answer(model, model, rm, ENC, trials, 1.0, cfg, shots=shots)
        worth.append(found.rm_score.mean())
    assert len(set(worth)) > 2 and won == tried[int(np.argmax(worth))]
    assert f"prefix {np.argmax(worth) + 1} of 8 won: RM score {max(worth):.3f}" in said


def test_prefixes_are_demonstrations_that_leave_room():
    demos = sandbox.demonstrations(50)
    shown = {json.dumps(d.messages) for d in demos}
    for room in (20, 40, 80):
        prefixes = answers.draw_prefixes(ENC, demos, room, 0)
        lengths = [len(data.encode_dialogue(ENC, shots)[0]) for shots in prefixes]
        assert prefixes and max(lengths) <= room
        one = [shots for shots in prefixes if len(shots) == 2]
        assert one and all(json.dumps(shots) in shown for shots in one)
    assert answers.draw_prefixes(ENC, [data.Demonstration(SHOTS[1:])], 80, 0) == []


def test_every_prefix_leaves_room_for_nine_prompts_in_ten_and_a_response(models):
    """A tenth may be longer: before them the prefix is cut."""
    model, _, rm = models
    by_length = sorted(
        sandbox.eval_prompts(500, 0), key=lambda p: len(data.encode_prompt(ENC, p.messages))
    )
    short, long = by_length[:9], by_length[-1]
    demos, cfg = sandbox.demonstrations(50), settings(max_new=50)
    taken = len(ENC.encode_ordinary("\n\n")) + cfg.max_new
    for also, longest in ((short, short[-1]), ([*short, by_length[250]], by_length[250])):
        won = answers.find_prefix(model, rm, ENC, [short[0]], demos, cfg, also=[*also, long])
        for prompt in short:
            read = data.encode_prompt(ENC, won + prompt.messages)
            assert len(read) + cfg.max_new <= 160
        room = 160 - taken - len(data.encode_prompt(ENC, longest.messages))
        assert won in answers.draw_prefixes(ENC, demos, room, cfg.seed)
    assert len(data.encode_prompt(ENC, won + long.messages)) + cfg.max_new > 160
    # where three in ten are so long, it leaves room for the others
    many = [*short, *by_length[-4:]]
    won = answers.find_prefix(model, rm, ENC, [short[0]], demos, cfg, also=many)
    half = sorted([short[0], *many], key=lambda p: len(data.encode_prompt(ENC, p.messages)))[7]
    room = 160 - taken - len(data.encode_prompt(ENC, half.messages))
    assert won in answers.draw_prefixes(ENC, demos, room, cfg.seed)
    least = min(len(data.encode_dialogue(ENC, d.messages)[0]) for d in demos)
    with pytest.raises(ValueError, match="no demonstration leaves room"):
        answers.find_prefix(model, rm, ENC, short, demos, settings(160 - least), also=[long])


def test_prompts_that_are_shortened_are_counted(models, capsys):
    """By whole turns, and within the last one; once, and if there are none nothing is said."""
    answers.say.cache_clear()
    said = [{"role": role, "content": "Hello Anna."} for role in ("user", "assistant")]
    whole, turns = data.Prompt(said[:1]), data.Prompt(said * 30 + said[:1])
    long = data.Prompt([{"role": "user", "content": "Hello Anna. " * 60}])
    for prompts, printed in (
        ([whole], ""),
        ([whole, turns], "data: 2 prompts, 1 prompts shortened by whole turns\n"),
        ([long, long], "data: 2 prompts, 2 prompts cut from the left\n"),
    ):
        for _ in range(2):
            answers.respond(models[0], None, ENC, prompts, settings())
        assert capsys.readouterr().out == printed


def test_what_is_asked_apart_is_the_sandboxs_alone(models):
    cfg = SimpleNamespace(prompts=(), dialogues=7, untouched=5, seed=3)
    dialogues, untouched = answers.load_apart(cfg, ENC)
    assert dialogues == sandbox.dialogue_prompts(7, 3)
    assert untouched == sandbox.untouched_prompts(5, 3)
    cfg = SimpleNamespace(prompts=("mine.jsonl",), dialogues=7, untouched=5, seed=3)
    assert answers.load_apart(cfg, ENC) == ([], [])


# ---- the alignment tax


@pytest.mark.parametrize("n_blocks", [3, 100])
def test_text_loss_is_the_mean_cross_entropy_of_all_blocks(n_blocks):
    model = tiny(0, vocab=11)
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (n_blocks * 64 + 17,), generator=rng)
    blocks = tokens[: n_blocks * 64].view(n_blocks, 64)
    with torch.no_grad():
        logits = model(blocks)[:, :-1].reshape(-1, 11)
        want = F.cross_entropy(logits, blocks[:, 1:].reshape(-1))
    assert answers.text_loss(model, tokens, "cpu") == pytest.approx(want.item(), rel=1e-5)
