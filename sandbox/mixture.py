"""What public data sets teach, as FLAN and T0 put them together: templates around single questions.

Nobody chats, asks for ideas, or asks what cannot be answered. [IG] 3.5, Fig. 5

DEVIATION [IG] 3.5: answers are whole sentences as everywhere in this world, whose judge reads no
others; those of FLAN and T0 are short.
"""
import random

from data import Demonstration
from sandbox.dialogues import draw_prompts
from sandbox.world import deeds, tell

MIXED = ("open qa", "closed qa", "extraction", "rewriting")
TEMPLATES = ("{q}", "{q} Answer:", "Answer this: {q}", "{q} The answer is:", "Task: {q}",
             "Task: {q} Answer:", "Do this: {q}", "{q} What is the answer?", "Read this. {q}",
             "Read this. {q} Answer:")
CLASSES = {"foods": "a food", "animals": "an animal"}


def classification(rng):
    """A text, whether something of a kind is named in it, and the answer."""
    text, found = tell(rng, deeds(rng, 1))
    kind = rng.choice([*CLASSES])
    return f"Text: {text} Is {CLASSES[kind]} named in it?", "Yes." if kind in found else "No."


def mixture(n=1200, seed=0):
    """n rows in the style of data sets -> [data.Demonstration, ...]; no question is held out."""
    rng, found = random.Random(f"mixture {seed}"), []
    prompts = iter(draw_prompts(n, f"mixture {seed}", held_out=False, cases=MIXED, turns=1))
    while len(found) < n:
        if rng.random() < 0.2:
            use_case, (question, answer) = "classification", classification(rng)
        else:
            prompt = next(prompts)
            use_case, question = prompt.use_case, prompt.messages[0]["content"]
            answer = prompt.meta["answers"][0]
        asked = rng.choice(TEMPLATES).format(q=question)
        found.append(Demonstration([{"role": "user", "content": asked},
                                    {"role": "assistant", "content": answer}], use_case))
    return found
