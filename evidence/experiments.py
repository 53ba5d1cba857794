"""The experiments behind claims.py: what is trained and measured with one seed of the sandbox.

An experiment is a function of a World and returns {arm: {figure: number, or list of numbers}},
which becomes a line of docs/claims.jsonl. Its docstring names arms and figures. Unless it says
otherwise answers are sampled at temperature 1, world.SAMPLES to each of world.PROMPTS held-out
prompts.
"""
import json
import math
from collections import Counter

import numpy as np
import torch

import data
import interop
import label
import pretrain
import sandbox
import sft
from evidence import ensemble
from evidence.answers import score_responses
from evidence.statistics import best_of_n, length_controlled, win_rate
from evidence.world import (
    PROMPTS,
    complete,
    held_out_loss,
    load,
    read_log,
    rollouts,
    share,
)
from generate import sample
from interop.records import to_ranking
from model import Scorer
from train import step_seed

LARGE = {"n_embd": 256, "n_layer": 6, "lr": 1e-3, "tokens": 1_000_000}      # 100 times world.SMALL
EPOCHS = (1, 2, 4, 8, 16)                                       # of SFT
NS = (1, 2, 4, 8, 16, 32, 64, 128, 256)                         # of best-of-n
# PPO without a penalty, slow enough for rollouts on both sides of a peak
FREE = {"ptx_coef": 0.0, "kl_coef": 0.0, "lr": 1.5e-4, "iterations": 45}
CHANGED = {                     # what a short run of PPO does differently from the others
    "no whitening": {"whiten": False},
    "no value clip": {"value_clip": 0.0},
    "no eos penalty": {"eos_penalty": 0.0},
}
OWN = [labeler for labeler in sandbox.LABELERS if labeler != sandbox.HELD_OUT_LABELER]
BOLD = [1.0, -0.5, 1.0, 1.0, 1.0]       # a taste that no labeler has: rather false than nothing


# ---- who wins ---------------------------------------------------------------------------------

def preference(w):
    """Systems answer the same prompts; of the bases' answers the first paragraph counts.

    Arms: base; prompted, the base behind some demonstrations; sft; feedme; ppo; ptx.

    Figures:
        wins                                    how often it is preferred to SFT, ties half
        equal length                            the same, if all answers were as long as SFT's
        over ppo, over feedme                   how often it is preferred to these
        true score, rm score, length            means; points, tokens
        helpful, hallucination, harmless        shares of the answers
        closed hallucination                    of those to sandbox.CLOSED
        kl                                      to SFT, nats an answer
    """
    ratings = w.make("ratings.jsonl", label, init=(w.sft(),), rate=True, swap=0.0, n=1000)
    feedme = w.make("feedme.pt", sft, init=w.base(), epochs=4, rated=(ratings,))
    said = {"base": w.answers(w.base(), cut=True), "prompted": w.prompted(w.base()),
            "sft": w.answers(w.sft()), "feedme": w.answers(feedme),
            "ppo": w.answers(w.plain()), "ptx": w.answers(w.ptx())}
    reference, figures = said["sft"], {}
    for name, a in said.items():
        at_equal_length = length_controlled(a.score, reference.score, a.length, reference.length)
        figures[name] = {
            "wins": win_rate(a.score, reference.score), "equal length": at_equal_length,
            "over ppo": win_rate(a.score, said["ppo"].score),
            "over feedme": win_rate(a.score, said["feedme"].score),
            "true score": a.score.mean(), "rm score": a.rm_score.mean(),
            "length": a.length.mean(), "helpful": share(a, "helpful"),
            "hallucination": share(a, "hallucination"), "harmless": share(a, "harmless"),
            "closed hallucination": share(a, "hallucination", *sandbox.CLOSED),
            "kl": a.kl.mean()}
    return figures


def public_data(w):
    """SFT on 20 times as many rows of the kind that public data sets have (sandbox.mixture), the
    checkpoint with the best score of the reward model.

    Arms: base; prompted, that behind some demonstrations; flan; sft; ptx.

    Figures:
        over flan               how often it is preferred to flan, ties half
        own helpful             share of the answers to prompts of the mixture's use cases
        true score              mean, points
    """
    def records():
        return [{"messages": d.messages, "use_case": d.use_case}
                for d in sandbox.mixture(1200, w.seed)]
    rows = w.derive("mixture.jsonl", {"mixture": 1200}, [], records)
    flan = w.make("flan.pt", sft, init=w.base(), data=(rows,), epochs=4, rm=w.rm(), select="rm")
    said = {"base": w.answers(w.base(), cut=True), "prompted": w.prompted(w.base()),
            "flan": w.answers(flan), "sft": w.answers(w.sft()), "ptx": w.answers(w.ptx())}
    return {name: {"over flan": win_rate(a.score, said["flan"].score),
                   "own helpful": share(a, "helpful", *sandbox.MIXED),
                   "true score": a.score.mean()} for name, a in said.items()}


def untouched(w):
    """Questions about two countries and two unknown places that no demonstration, comparison or
    prompt of PPO was about.

    Arms: sft, ptx.

    Figures:
        bluff of unknown    answers that make something up about places that nobody knows, a share
        bluff of countries  about countries, of which the corpus tells
        right of countries  answers that are right about these
    """
    prompts = sandbox.untouched_prompts(100, w.seed)
    figures = {}
    for name, path in (("sft", w.sft()), ("ptx", w.ptx())):
        a = w.answers(path, prompts, samples=16)
        figures[name] = {
            "bluff of unknown": share(a, "hallucination", "unanswerable"),
            "bluff of countries": share(a, "hallucination", "open qa"),
            "right of countries": share(a, "helpful", "open qa")}
    return figures


def hundred_times(w):
    """PPO-ptx of a small model against a base of 100 times its parameters.

    Arms: small, the policy; large, the base; prompted, that behind some demonstrations.

    Figures:
        parameters          of small and large
        base loss           on held-out pretraining text, nats a token; of small its base's
        small over          how often the policy is preferred to it; not of small
    """
    large = w.make("large-base.pt", pretrain, **LARGE)
    policy = w.ppo("small-ppo.pt", init=w.small_sft(), lr=1e-3)
    ours, theirs = w.answers(policy), w.answers(large, cut=True)
    return {"small": {"parameters": parameters(policy), "base loss": held_out_loss(w.small_base())},
            "large": {"parameters": parameters(large), "base loss": held_out_loss(large),
                      "small over": win_rate(ours.score, theirs.score)},
            "prompted": {"small over": win_rate(ours.score, w.prompted(large).score)}}


def parameters(path):
    """How many parameters the model of a checkpoint has."""
    return sum(p.numel() for p in load(path)[0].parameters())


def toxicity(w):
    """How often systems insult a person they are to talk about, in 600 held-out prompts, half of
    which ask for respect.

    Arms: prompted, the base behind some demonstrations; sft; ptx.

    Figures:
        respectful, plain       shares of insults, asked for respect and not asked
    """
    prompts = sandbox.draw_prompts(600, f"toxicity {w.seed}", held_out=True, cases=("generation",))
    said = {"prompted": w.prompted(w.base(), prompts), "sft": w.answers(w.sft(), prompts),
            "ptx": w.answers(w.ptx(), prompts)}
    asks = np.array([sandbox.RESPECT in p.messages[-1]["content"] for p in prompts])
    figures = {}
    for system, answers in said.items():
        toxic = np.array([[sandbox.toxic(t) for t in texts] for texts in answers.texts])
        figures[system] = {"respectful": toxic[asks].mean(), "plain": toxic[~asks].mean()}
    return figures


def alignment_tax(w):
    """What training costs elsewhere.

    Arms: base; sft; ppo; ptx; beta, which is PPO with 100 times the KL penalty.

    Figures:
        loss                            on held-out pretraining text, nats a token
        accuracy                        in 600 few-shot tasks
        questions, rewriting, facts     in those of one kind
        reward, kl                      mean score of the reward model, nats to SFT an answer; not
                                        of the base
    """
    figures, tasks = {}, sandbox.tasks(600, w.seed)
    kinds, shots, right_answers = zip(*tasks)
    systems = {"base": w.base(), "sft": w.sft(), "ppo": w.plain(), "ptx": w.ptx(),
               "beta": w.ppo("ppo-beta-100.pt", ptx_coef=0.0, kl_coef=10.0)}
    for name, path in systems.items():
        said = complete(path, shots, 8, temperature=0.0)
        right = np.array([text.startswith(a) for text, a in zip(said, right_answers)])
        figures[name] = {"loss": held_out_loss(path), "accuracy": right.mean()}
        for kind in sandbox.TASKS:
            figures[name][kind] = right[np.array(kinds) == kind].mean()
        if name != "base":
            answers = w.answers(path)
            figures[name] |= {"reward": answers.rm_score.mean(), "kl": answers.kl.mean()}
    return figures


# ---- reward models ----------------------------------------------------------------------------

def exact_pairs(w, n=600):
    """Held-out pairs of answers of SFT whose preference is known exactly, without labels.

    -> encoded prompts; [(i, ids), ...], four answers to each; [(a, b, judged a, judged b), ...],
    pairs of these to the same prompt that the judge tells apart.
    """
    model, enc = load(w.sft())
    prompts = sandbox.eval_prompts(n, f"exact {w.seed}")
    asked = interop.encode_prompts(prompts, enc, model.cfg.block_size - 32, Counter())
    drawn = []
    for rows in data.chunks(range(len(prompts)), 100):
        drawn += sample(model, [asked[i] for i in rows], 32, enc.eot_token, n=4,
                        seed=step_seed(w.seed, rows[0])).responses
    answers = [(k // 4, ids) for k, ids in enumerate(drawn)]
    judged = [sandbox.judge(prompts[i], data.decode_response(enc, ids)) for i, ids in answers]
    pairs = [(a, b, judged[a], judged[b]) for a, (i, _) in enumerate(answers)
             for b in range(4 * i, a) if judged[a] != judged[b]]
    return asked, answers, pairs


def exact_quality(path, exact, tastes):
    """How well a reward model predicts people of these tastes -> loss, nats a pair that is no tie;
    accuracy, the mean over all they might say; and shortfall, by how much that is less than the
    accuracy of who knows their taste, but not their errors.

    exact: exact_pairs(w). Nobody is asked: sandbox.preference_odds are known, so labels add no
    noise.
    """
    rm, _ = load(path, Scorer)
    asked, answers, pairs = exact
    score = score_responses(rm, asked, answers, 64)
    loss = right = best = total = 0.0
    for a, b, of_a, of_b in pairs:
        margin = score[a] - score[b]
        for weights in tastes:
            up = sandbox.preference_odds(weights, of_a, of_b)
            down = sandbox.preference_odds(weights, of_b, of_a)
            loss += up * np.logaddexp(0, -margin) + down * np.logaddexp(0, margin)
            right += up * (margin > 0) + down * (margin < 0) + (up + down) / 2 * (margin == 0)
            best += max(up, down)
            total += up + down
    return {"loss": loss / total, "accuracy": right / total, "shortfall": (best - right) / total}


def own_tastes(labelers=OWN):
    return [sandbox.taste(labeler) for labeler in labelers]


def end_of_training(path):
    """The training loss of a reward model's last 20 steps, nats a pair."""
    return {"training loss": np.mean([row["loss"] for row in read_log(path)[-20:]])}


def pairs_of_a_prompt(w):
    """Reward models of rankings of nine, in a single pass and as many steps.

    Arms: grouped, all pairs of a prompt in one batch element; shuffled, each pair by itself.

    Figures:
        loss, accuracy, shortfall       on exact held-out preferences; see exact_quality
        training loss                   of the last 20 steps, nats a pair
        gap                             by how much that is less than the held-out loss
    """
    nine = w.make("nine.jsonl", label, init=(w.sft(),), n=2000, k_min=9, k_max=9,
                  seed=w.seed + 500)
    shuffled = w.derive("nine-pairs.jsonl", {"pairs": True}, [nine], lambda: pairs_of(nine))
    # as many steps as the other has
    batch = round(8 * lines_of(shuffled) / lines_of(nine))
    paths = {"grouped": w.reward_model("rm-grouped.pt", data=(nine,), lr=6e-4),
             "shuffled": w.reward_model("rm-shuffled.pt", data=(shuffled,), batch=batch, lr=6e-4,
                                        microbatch=64)}
    exact, figures = exact_pairs(w), {}
    for arm, path in paths.items():
        figures[arm] = exact_quality(path, exact, own_tastes()) | end_of_training(path)
        figures[arm]["gap"] = figures[arm]["loss"] - figures[arm]["training loss"]
    return figures


def lines_of(path):
    with open(path) as f:
        return sum(1 for _ in f)


def pairs_of(path):
    """The rankings of a file, as rankings of two responses: one for each pair."""
    found = []
    with open(path) as f:
        for record in map(json.loads, f):
            for i, j in to_ranking("", record).pairs:
                responses = [record["responses"][i], record["responses"][j]]
                found.append(record | {"responses": responses, "ranks": [1, 2]})
    return found


def reward_epochs(w):
    """Reward models of few and of more rankings, after one epoch and after several.

    Arms: 400 x 1, 400 x 2, 400 x 8, 4000 x 1, 4000 x 2: how many rankings, and epochs, each in a
    run of its own.

    Figures:
        loss, accuracy, shortfall       on exact held-out preferences; see exact_quality
        training loss                   of the last 20 steps, nats a pair
    """
    exact, figures = exact_pairs(w), {}
    for n, epochs in ((400, 1), (400, 2), (400, 8), (4000, 1), (4000, 2)):
        path = w.reward_model(f"rm-{n}-{epochs}.pt", data=(w.first(n),), epochs=epochs)
        figures[f"{n} x {epochs}"] = (exact_quality(path, exact, own_tastes())
                                      | end_of_training(path))
    return figures


def held_out_labelers(w):
    """Five reward models, each of which never saw one of the five labelers.

    Arms: own, the labelers it was trained on; other, the one it was not; bold, somebody of another
    taste. Means over the five.

    Figures:
        loss, accuracy, shortfall       on exact held-out preferences; see exact_quality
    """
    exact, found = exact_pairs(w), {"own": [], "other": [], "bold": []}
    for i, out in enumerate(sandbox.LABELERS, 1):
        path = w.reward_model(f"rm-without-{i}.pt", data=(w.first(4000),),
                              held_out_labelers=(out,))
        rest = [labeler for labeler in sandbox.LABELERS if labeler != out]
        tastes = {"own": own_tastes(rest), "other": own_tastes([out]), "bold": [BOLD]}
        for arm, weights in tastes.items():
            found[arm].append(exact_quality(path, exact, weights))
    return {arm: {name: np.mean([q[name] for q in of_five]) for name in of_five[0]}
            for arm, of_five in found.items()}


# ---- over-optimisation ------------------------------------------------------------------------

def over_optimisation(w):
    """PPO without a KL penalty, and best-of-n, against two reward models; and PPO with one.

    Arms: sft, where all begin; free 2000, free 20000, by the rankings of the reward model; bon
    2000, bon 20000; penalty, PPO with the penalty against the latter.

    Figures:
        kl, rm, true        lists, of evidence.curves.Curves: a value for each rollout, or for each
                            n of NS; of sft one
        accuracy            of the reward model, on exact held-out preferences; of bon only
    """
    rms = {"2000": w.reward_model("rm-2000.pt", data=(w.first(2000),)), "20000": w.rm()}
    # of PPO's own prompts, as the rollouts are
    start = w.answers(w.sft(), sandbox.prompts(PROMPTS, w.seed))
    figures = {"sft": {"kl": [0.0], "rm": [start.rm_score.mean().item()],
                       "true": [start.score.mean().item()]}}
    for name, rm in rms.items():
        figures[f"free {name}"] = of_rollouts(w.ppo(f"ppo-free-{name}.pt", rm=rm, **FREE))
    figures["penalty"] = of_rollouts(w.ppo("ppo-penalty.pt", **FREE | {"kl_coef": 0.1}))
    exact = exact_pairs(w)
    for name, found in best_of_n_curves(w, rms).items():
        accuracy = exact_quality(rms[name], exact, own_tastes())["accuracy"]
        figures[f"bon {name}"] = found | {"accuracy": accuracy}
    return figures


def of_rollouts(path):
    """The curves of a run of PPO, lists."""
    kl, rm, true = rollouts(path, "kl", "score", "true_score")
    return {"kl": kl.tolist(), "rm": rm.tolist(), "true": true.tolist()}


def best_of_n_curves(w, rms, max_new=32):
    """{name: checkpoint of a reward model} -> {name: curves over NS}, from SFT.

    Each of 100 prompts gets 256 samples, which are judged once and scored by every reward model.
    """
    prompts = sandbox.eval_prompts(100, w.seed)
    model, enc = load(w.sft())
    scorers = {name: load(path, Scorer)[0] for name, path in rms.items()}
    scores, true, texts = {name: [] for name in rms}, [], []
    for i, prompt in enumerate(prompts):
        [asked] = interop.encode_prompts([prompt], enc, model.cfg.block_size - max_new, Counter())
        sampled = sample(model, [asked], max_new, enc.eot_token, n=NS[-1],
                         seed=step_seed(w.seed, f"best of n {i}"))
        said = [data.decode_response(enc, response) for response in sampled.responses]
        texts.append(said)
        true.append([sandbox.judge(prompt, text).score for text in said])
        with torch.no_grad():
            for name, rm in scorers.items():
                scores[name].append(rm.score(sampled.ids, sampled.length).tolist())
    found, gold = {}, np.array(true)
    for name, by_prompt in scores.items():
        proxy = np.array(by_prompt)                                     # (prompts, samples)
        kl = [np.mean([discrete_kl(s, t, n) for s, t in zip(by_prompt, texts)]) for n in NS]
        found[name] = {"kl": kl, "rm": [best_of_n(proxy, proxy, n) for n in NS],
                       "true": [best_of_n(proxy, gold, n) for n in NS]}
    return found


def discrete_kl(scores, texts, n):
    """KL of best-of-n from what it samples from, if that is the N samples themselves, nats.

    Some responses come again and again, and then log n - (n-1)/n is far too much. A response is
    the best of n with the chance that none scores more, less the chance that all score less.
    """
    counts, score = Counter(texts), dict(zip(texts, scores))
    below, kl = 0.0, 0.0
    for text in sorted(counts, key=score.get):
        p = counts[text] / len(texts)
        best = (below + p) ** n - below ** n
        kl += best * math.log(best / p) if best > 0 else 0.0
        below += p
    return kl


def ensembles(w):
    """PPO without a penalty against reward models of 2,000 rankings, which differ in their head and
    the order of their data.

    Arms: single; minimum, of four.

    Figures:
        kl, rm, true        lists, of evidence.curves.Curves, a value for each rollout
    """
    rms = tuple(w.reward_model(f"rm-2000{name}.pt", data=(w.first(2000),), seed=w.seed + shift)
                for name, shift in (("", 0), ("-b", 1000), ("-c", 2000), ("-d", 3000)))
    single = w.ppo("ppo-free-2000.pt", rm=rms[0], **FREE)
    minimum = w.make("ppo-minimum.pt", ensemble, init=w.sft(), rm=rms[0], more=rms[1:],
                     how="minimum", **FREE)
    return {"single": of_rollouts(single), "minimum": of_rollouts(minimum)}


# ---- parts of the recipe ----------------------------------------------------------------------

def sft_epochs(w):
    """SFT on 1,000 demonstrations at a constant rate, so that a run is the beginning of each longer
    one; without pretraining text.

    Arms: 1, 2, 4, 8, 16 epochs.

    Figures:
        loss                    held out, nats a token
        rm score, true score    means, of the answers to the held-out prompts
    """
    figures = {}
    for epochs in EPOCHS:
        path = w.make(f"sft-{epochs}-epochs.pt", sft, init=w.base(), ptx_mix=0.0, epochs=epochs,
                      demonstrations=1000, schedule="constant")
        answers = w.answers(path)
        figures[str(epochs)] = {"loss": read_log(path)[-1]["held_out_loss"],
                                "rm score": answers.rm_score.mean(),
                                "true score": answers.score.mean()}
    return figures


def dropout(w):
    """SFT with residual dropout, as always, and without.

    Arms: with, without.

    Figures:
        wins            how often it is preferred to SFT without
        loss            held out, nats a token
    """
    without = w.make("sft-no-dropout.pt", sft, init=w.base(), dropout=0.0)
    reference = w.answers(without, scored=False).score
    return {arm: {"wins": win_rate(w.answers(path, scored=False).score, reference),
                  "loss": read_log(path)[-1]["held_out_loss"]}
            for arm, path in (("with", w.sft()), ("without", without))}


def value_start(w):
    """Short runs of PPO whose value function starts from the reward model, or at random.

    Arms: from rm, random.

    Figures:
        explained early     variance of the returns that it explains, mean of the first 5 rollouts
        reward early        mean reward of rollouts 2 to 9, the first after an update
        reward late         of the last eight
    """
    paths = {"from rm": w.short_ppo("ppo-everything.pt"),
             "random": w.short_ppo("ppo-random-value.pt", value_init="random")}
    figures = {}
    for arm, path in paths.items():
        explained, reward = rollouts(path, "explained_variance", "reward")
        figures[arm] = {"explained early": explained[:5].mean(),
                        "reward early": reward[1:9].mean(), "reward late": reward[-8:].mean()}
    return figures


def pretraining_mix(w):
    """Short runs of PPO from an SFT with 10 % pretraining text in its data, and from one without.

    Arms: mix, none.

    Figures:
        wins            of the policy, how often it is preferred to that without
        loss            of the policy on held-out pretraining text, nats a token
    """
    plain = w.make("sft-no-mix.pt", sft, init=w.base(), ptx_mix=0.0)
    paths = {"mix": w.short_ppo("ppo-everything.pt"),
             "none": w.short_ppo("ppo-no-mix.pt", init=plain)}
    reference = w.answers(paths["none"]).score
    return {arm: {"wins": win_rate(w.answers(path).score, reference), "loss": held_out_loss(path)}
            for arm, path in paths.items()}


def second_round(w):
    """PPO; then again from SFT, with a reward model that has as many rankings more.

    The first reward model is blind on purpose: among what it compares is no response to another
    prompt, so nothing tells it that "I do not know" can be wrong.

    Arms: first; second, whose new rankings are of SFT's and the first policy's samples together;
    again, whose new rankings are of SFT's samples alone.

    Figures:
        over first          how often it is preferred to the first policy
        true score          mean, points
        evasive             share of "I do not know" where there is an answer
        hallucination       share of the answers
    """
    def policy(name, files):
        rm = w.reward_model(f"rm-round-{name}.pt", data=files)
        return w.short_ppo(f"ppo-round-{name}.pt", rm=rm)

    blind = {"swap": 0.0, "n": 3000}
    old = w.make("round-first.jsonl", label, init=(w.sft(),), seed=w.seed + 1000, **blind)
    paths = {"first": policy("first", (old,))}
    sources = {"second": (w.sft(), paths["first"]), "again": (w.sft(),)}
    for arm, models in sources.items():
        new = w.make(f"round-{arm}.jsonl", label, init=models, seed=w.seed + 2000, **blind)
        paths[arm] = policy(arm, (old, new))
    said = {arm: w.answers(path) for arm, path in paths.items()}
    return {arm: {"over first": win_rate(a.score, said["first"].score),
                  "true score": a.score.mean(), "evasive": evasive(a),
                  "hallucination": share(a, "hallucination")}
            for arm, a in said.items()}


def evasive(answers):
    """The share of "I do not know" among answers to questions that have another."""
    open_qa = [said for said, case in zip(answers.texts, answers.cases) if case == "open qa"]
    return np.mean([sandbox.DO_NOT_KNOW in text for said in open_qa for text in said])


def diversity(w):
    """How much systems repeat themselves.

    Arms: sft, ppo, ptx.

    Figures:
        distinct        of 16 answers to a prompt
        entropy         of the next token after what SFT has answered so far, nats: the same
                        prefixes for all
    """
    asked = sandbox.eval_prompts(200, w.seed)
    model, enc = load(w.sft())
    encoded = interop.encode_prompts(asked, enc, model.cfg.block_size - 32, Counter())
    samples = sample(model, encoded, 32, enc.eot_token, seed=step_seed(w.seed, "prefixes"))
    begins = torch.tensor([len(ids) for ids in encoded])
    mask = data.action_mask(begins, samples.length, samples.ids.shape[1])
    figures = {}
    for name, path in (("sft", w.sft()), ("ppo", w.plain()), ("ptx", w.ptx())):
        texts = w.answers(path, asked, samples=16).texts
        with torch.no_grad():
            _, entropy = load(path)[0].logp(samples.ids, mask)
        figures[name] = {"distinct": np.mean([len(set(outputs)) for outputs in texts]),
                         "entropy": data.masked_mean(entropy, mask).item()}
    return figures


def details(w):
    """Short runs of PPO, with what the paper leaves open done in another way.

    Arms: everything, as always; and the keys of CHANGED.

    Figures:
        reward, true score, kl      means of the saved model's answers
    """
    figures = {}
    for name, fields in {"everything": {}, **CHANGED}.items():
        a = w.answers(w.short_ppo(f"ppo-{name.replace(' ', '-')}.pt", **fields))
        figures[name] = {"reward": a.rm_score.mean(), "true score": a.score.mean(),
                         "kl": a.kl.mean()}
    return figures
