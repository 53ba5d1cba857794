"""Users who ask the same again and again, and how a validation loss is taken in: claim 23."""
import random
from collections import Counter

import torch

import data
import interop
import sandbox
import sft
from evidence.world import load
from interop.hygiene import normalised, side
from train import mean_loss

USERS, QUESTIONS, SENT = 100, 3, 1500       # of each user; of all, some of them twice
FORMS = ("{}", "Hello. {}", "Please. {}", "{} Thank you.", "Hello. {} Thank you.",
         "Please. {} Thank you.")
VALID = 0.2
EPOCHS = 4


def sent_by_users(seed):
    """What users send, the first of them most (Zipf): their own questions in a few forms; and what
    as many others send. -> twice [(user, demonstration), ...], each once"""
    drawn = sandbox.prompts(6 * USERS * QUESTIONS, f"users {seed}")
    # of a question that several ask, the last is taken
    asked = list({p.messages[-1]["content"]: p for p in drawn}.values())[:2 * USERS * QUESTIONS]
    own = [asked[i:i + QUESTIONS] for i in range(0, len(asked), QUESTIONS)]
    rng, half = random.Random(f"sent {seed}"), len(own) // 2
    return _sent(own[:half], rng), _sent(own[half:], rng)


def _sent(own, rng):
    found = {}
    name = rng.random()             # or the same users would be held out with each seed
    often = [1 / rank for rank in range(1, len(own) + 1)]
    for user in rng.choices(range(len(own)), often, k=SENT):
        prompt, form = rng.choice(own[user]), rng.choice(FORMS)
        *before, last = prompt.messages
        said = [*before, last | {"content": form.format(last["content"])}]
        record = {"prompt": said, "response": prompt.meta["answers"][0]}
        found[str(said)] = f"user {user} {name}", record
    return list(found.values())


def loss_on(path, demonstrations):
    """A checkpoint's loss on the answers of records, nats a token."""
    model, enc = load(path)
    found = [data.Demonstration([*r["prompt"], {"role": "assistant", "content": r["response"]}])
             for r in demonstrations]
    rows = interop.encode_demonstrations(found, enc, model.cfg.block_size, Counter())
    with torch.no_grad():
        return mean_loss(model, map(data.tokens_batch, data.chunks(rows, 64)))


def splits(w):
    """SFT on as many demonstrations of one split as of the other; a fifth is held out, by the hash
    of who sent it or of the prompt.

    Arms: user, prompt.

    Figures:
        validation      loss on what is held out, nats a token
        later           on what others send, as users do who come later
        trained         demonstrations that it was trained on
    """
    (sent, others), parts, figures = sent_by_users(w.seed), {}, {}
    for arm in ("user", "prompt"):
        parts[arm] = {"train": [], "valid": []}
        for user, record in sent:
            name = user if arm == "user" else normalised(record["prompt"])
            parts[arm][side(name, VALID, 0)].append(record)
    n = min(len(part["train"]) for part in parts.values())
    later = [record for _, record in others]
    for arm, part in parts.items():
        train = random.Random(w.seed).sample(part["train"], n)
        path = w.derive(f"sent-{arm}.jsonl", {"split": arm}, [], lambda train=train: train)
        model = w.make(f"sft-by-{arm}.pt", sft, init=w.base(), data=(path,), epochs=EPOCHS,
                       held_out=0.0, ptx_mix=0.0)
        figures[arm] = {"validation": loss_on(model, part["valid"]),
                        "later": loss_on(model, later), "trained": n}
    return figures
