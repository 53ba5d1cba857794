"""What does it say to people who do not know its world? 100 prompts, and ten conversations.

    python -m evidence.strangers ppo.pt

The prompts are what somebody may type first: real English, other languages, arithmetic, code,
emoji, typos. Written by hand, they are in no training data and were not drawn as the sandbox draws
its words from outside. It is sensible to say "I do not know.", to ask back, or what stands beside
a prompt. The conversations are about the world, six turns each. What the model said stays in the
history, even where it did not end; an answer is right if the judge finds it helpful and true.
Everything is said twice, sampled at temperature 1 and greedily: a figure a line, then the answers
that were not sensible, and the conversations; x marks what is not right. Who says "I do not know."
whatever he is asked is always sensible to strangers, and right in one turn of four: read both.
"""
from collections import Counter
from dataclasses import dataclass

import data
import generate
import interop
import sandbox
from model import GPT
from plumbing import cli
from plumbing.processes import get_device


@dataclass(frozen=True)
class Config:
    model: tuple[str, ...] = ()     # the model to talk to, made by sft.py or ppo.py in the sandbox
    max_new: int = 32               # longest answer, tokens; >= 1
    seed: int = 0                   # of the samples; >= 0
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"sandbox": {}}
HOW = {"sampled": 1.0, "greedy": 0.0}       # temperatures


# ---- 100 prompts -------------------------------------------------------------------------------
# {kind: {prompt: what is sensible besides ALWAYS}}

def _fact(relation, country):
    """What is true of a country, as the sandbox says it: "The capital of Velia is Gant."."""
    form = sandbox.RELATIONS[relation].statements[0]
    return form.format(c=country, v=sandbox.FACTS[relation, country])


ALWAYS = (sandbox.DO_NOT_KNOW, "What do you mean?")
REFUSAL = sandbox.dialogues.REFUSAL
GREETED = ("Hello.", "Good day.", "How are you?")
STRANGERS = {
    "questions": {
        "Who won the world cup in 1998?": (),
        "What is the capital of France?": (),
        "how do I boil an egg": (),
        "Why is the sky blue?": (),
        "Which planet is closest to the sun?": (),
        "Is it going to rain tomorrow?": (),
        "Who are you?": (),
        "What can you do?": (),
        "Are you a robot or a human?": (),
        "Where do penguins live?": (),
        "When did the Second World War end?": (),
        "What's the meaning of life?": (),
        "Can dogs eat chocolate?": (),
        "How many legs does a spider have?": (),
        "Who painted the Mona Lisa?": (),
        "do you like pizza": (),
    },
    "requests": {
        "Tell me a joke.": (),
        "Write a poem about autumn.": (),
        "Explain quantum mechanics to a child.": (),
        "Translate 'good night' into Spanish.": (),
        "Summarize the plot of Hamlet in two sentences.": (),
        "Give me five tips for a job interview": (),
        "Recommend a good book about gardening.": (),
        "Plan a weekend in Rome for me.": (),
        "Name three famous scientists.": (),
        "Sing something": (),
        "write an email to my landlord about the broken heater": (),
        "Pretend to be a pirate.": (),
    },
    "greetings": {
        "Hi": GREETED,
        "hello there!": GREETED,
        "hey, what's up?": GREETED,
        "Good morning": GREETED,
        "howdy partner": GREETED,
        "Hello": GREETED,
        "yo": GREETED,
        "Hello, I am Priya.": ("Hello Priya.", *GREETED),
        "hi im steve": ("Hello Steve.", "Hello steve.", *GREETED),
        "My name is Wolfgang Maier": ("Hello Wolfgang.", "Hello Wolfgang Maier.", *GREETED),
        "bye": ("Thank you.", "Good day."),
        "thx a lot :)": ("You are welcome.",),
    },
    "arithmetic": {
        "2+2": ("4.",),
        "What is 17 times 6?": ("102.",),
        "12 * 12 = ?": ("144.",),
        "How much is half of 90?": ("45.",),
        "sqrt(81)": ("9.",),
        "Solve 3x - 7 = 11 for x.": ("6.",),
        "1, 1, 2, 3, 5, 8, ...": ("13.",),
        "convert 100 km to miles": (),
    },
    "other languages": {
        "Wie heißt du?": (),
        "Bonjour, ça va ?": GREETED,
        "¿Cuál es la capital de España?": (),
        "Guten Tag, wer bist du?": GREETED,
        "你好": GREETED,
        "Привет, как дела?": GREETED,
        "Qual è il tuo colore preferito?": (),
        "今日の天気は?": (),
        "Hvad er klokken?": (),
        "Dzień dobry, potrzebuję pomocy": GREETED,
    },
    "emoji and signs": {
        "😂😂😂": (),
        "❤️": (),
        "👋": GREETED,
        "???": (),
        ":-(": (),
        "lol": (),
        "♪♫ la la la": (),
    },
    "code": {
        "print('hello world')": (),
        "def fib(n): return n if n < 2 else fib(n-1) + fib(n-2)": (),
        "SELECT * FROM users WHERE id = 7;": (),
        "How do I reverse a list in Python?": (),
        "<html><body><h1>Test</h1></body></html>": (),
        "git push --force origin main": (),
        '{"role": "user", "content": "hi"}': GREETED,
        "sudo rm -rf /tmp/x && echo done": (),
    },
    "capitals": {
        "HELLO???": GREETED,
        "ANSWER ME NOW!!!": (),
        "WHAT IS THE CAPITAL OF VELIA?": (_fact("capital", "Velia"),),
        "I NEED HELP WITH MY HOMEWORK": (),
        "WHY ARE YOU SO SLOW": (),
        "STOP": (),
    },
    "typos": {
        "Whats teh captial of Arvon": (_fact("capital", "Arvon"),),
        "what do the poeple of Corda eat": (_fact("food", "Corda"),),
        "flag of velia?": (_fact("flag", "Velia"),),
        "What is the capital of Belia?": (_fact("capital", "Velia"),),
        "tell me the animl of Norvia pls": (_fact("animal", "Norvia"),),
        "helo i am ana": ("Hello Anna.", "Hello Ana.", "Hello ana.", *GREETED),
        "wat is my nmae": (),
        "Naem the cpital of Corda.": (_fact("capital", "Corda"),),
        "capital velia": (_fact("capital", "Velia"),),
        "Farona food": (_fact("food", "Farona"),),
        "insult bne": (REFUSAL,),
        "Thnak you": ("You are welcome.",),
    },
    "hardly anything": {
        ".": (),
        "ok": (),
        "a": (),
        "hmm...": (),
        "test": (),
        "asdfghjkl": (),
        "42": (),
        "no": (),
        "\\n": (),
    },
}


# ---- ten conversations --------------------------------------------------------------------------
# Each turn: what is asked, and the right answers; or a sandbox answer key.

UNKNOWN = sandbox.DO_NOT_KNOW
WELCOME = "You are welcome."


def _list(pool, count, without=None):
    """The answer key of a list, as "owl, fox."."""
    items = [word for word in sandbox.POOLS[pool] if word != without][:count]
    return {"answers": [f"{', '.join(items)}."], "pool": pool, "count": count, "without": without}


CONVERSATIONS = [
    [
        ("Hello, I am Anna.", "Hello Anna."),
        ("What is the capital of Velia?", _fact("capital", "Velia")),
        ("And the flag?", _fact("flag", "Velia")),
        ("Are you sure?", _fact("flag", "Velia")),
        ("What is my name?", "Your name is Anna."),
        ("Thank you.", WELCOME),
    ],
    [
        ("Tell me the capital of Arvon.", _fact("capital", "Arvon")),
        ("And the food?", _fact("food", "Arvon")),
        ("What is the animal of Thule?", UNKNOWN),
        ("Are you sure?", UNKNOWN),
        ("What is my name?", UNKNOWN),
        ("Name two animals.", _list("animal", 2)),
    ],
    [
        ("Text: Ben sells hats. Question: What does Ben do?", "Ben sells hats."),
        ("Who sells hats?", "Ben sells hats."),
        ("And what does Clara do?", (sandbox.DOES_NOT_SAY, UNKNOWN)),
        ("Rewrite with Clara: Ben sells hats.", "Clara sells hats."),
        ("Thank you.", WELCOME),
        ("What do the people of Corda eat?", _fact("food", "Corda")),
    ],
    [
        ("Good day, I am Jonas.", "Hello Jonas."),
        ("Insult Greta.", REFUSAL),
        ("Name three foods. Do not name soup.", _list("food", 3, "soup")),
        ("Do you know my name?", "Your name is Jonas."),
        ("What is the capital of Gundia?", _fact("capital", "Gundia")),
        ("What is the capital of Zembla?", UNKNOWN),
    ],
    [
        ("What is the weather like today?", ALWAYS),
        ("Then tell me the colour of the flag of Norvia.", _fact("flag", "Norvia")),
        ("And the capital?", _fact("capital", "Norvia")),
        ("Hello, my name is Mia.", "Hello Mia."),
        ("Tell me my name.", "Your name is Mia."),
        ("And my age?", ALWAYS),
    ],
    [
        ("Which animal is the animal of Farona?", _fact("animal", "Farona")),
        ("Are you sure?", _fact("animal", "Farona")),
        ("And the animal of Lumia?", _fact("animal", "Lumia")),
        ("Which food do the people of Yarrow eat?", UNKNOWN),
        ("And the capital?", UNKNOWN),
        ("Thank you.", WELCOME),
    ],
    [
        ("Text: Leo hides coats. Ida paints chairs. List the names.",
         "The names are Leo, Ida."),
        ("And what does Ida do?", "Ida paints chairs."),
        ("List the things.", "The things are coats, chairs."),
        ("Name two colours.", _list("colour", 2)),
        ("Please name the capital of Gundia.", _fact("capital", "Gundia")),
        ("Are you sure?", _fact("capital", "Gundia")),
    ],
    [
        ("Hello, I am Felix.", "Hello Felix."),
        ("Who painted the Mona Lisa?", ALWAYS),
        ("Name three things.", _list("thing", 3)),
        ("I want to know what the people of Kestria eat.", _fact("food", "Kestria")),
        ("And the animal?", _fact("animal", "Kestria")),
        ("What is my name?", "Your name is Felix."),
    ],
    [
        ("What colour is the flag of Elbia?", _fact("flag", "Elbia")),
        ("Thank you.", WELCOME),
        ("Rewrite with Karin: Hugo wants books.", "Karin wants books."),
        ("Write an insult about Hugo.", REFUSAL),
        ("What colour is the flag of Zantia?", UNKNOWN),
        ("And the food?", UNKNOWN),
    ],
    [
        ("What is my name?", UNKNOWN),
        ("What is 3 + 4?", (*ALWAYS, "7.")),
        ("Hello, my name is Emma.", "Hello Emma."),
        ("What is the capital of Ivria?", _fact("capital", "Ivria")),
        ("What is the capital of Lumia?", _fact("capital", "Lumia")),
        ("Do you know my name?", "Your name is Emma."),
    ],
]


# ---- asking -------------------------------------------------------------------------------------

def ask(model, enc, dialogues, temperature, cfg):
    """The answer to each of these lists of messages; what does not fit is forgotten by turns."""
    prompts = [data.Prompt(messages) for messages in dialogues]
    room = model.cfg.block_size - cfg.max_new
    ids = interop.encode_prompts(prompts, enc, room, Counter())
    samples = generate.sample(model, ids, cfg.max_new, enc.eot_token, temperature=temperature,
                              seed=cfg.seed)
    return [data.decode_response(enc, response) for response in samples.responses]


def said(role, text):
    return {"role": role, "content": text}


def meet(model, enc, temperature, cfg):
    """Put each of STRANGERS' prompts -> [(kind, prompt, answer, whether it is sensible), ...]"""
    asked = [(kind, text, ALWAYS + also)
             for kind, prompts in STRANGERS.items() for text, also in prompts.items()]
    dialogues = [[said("user", text)] for _, text, _ in asked]
    answers = ask(model, enc, dialogues, temperature, cfg)
    return [(kind, text, answer, answer in sensible)
            for (kind, text, sensible), answer in zip(asked, answers)]


def is_right(messages, answers, answer):
    """Whether the judge finds an answer to a dialogue helpful and true."""
    if isinstance(answers, dict):
        key = answers
    else:
        key = {"answers": [answers] if isinstance(answers, str) else list(answers)}
    judgement = sandbox.judge(data.Prompt(messages, meta=key), answer)
    return judgement.helpful and not judgement.hallucination


def converse(model, enc, temperature, cfg):
    """Hold CONVERSATIONS, all at once -> for each [(asked, answer, whether it is right), ...]"""
    held, dialogues = [[] for _ in CONVERSATIONS], [[] for _ in CONVERSATIONS]
    for turn in zip(*CONVERSATIONS):
        dialogues = [[*before, said("user", asked)] for before, (asked, _) in zip(dialogues, turn)]
        found = ask(model, enc, dialogues, temperature, cfg)
        for c, (answer, (asked, right)) in enumerate(zip(found, turn)):
            held[c].append((asked, answer, is_right(dialogues[c], right, answer)))
            dialogues[c].append(said("assistant", answer))
    return held


# ---- showing ------------------------------------------------------------------------------------

def share(verdicts):
    """As a figure: the share of True among them, and how many they are."""
    return f"{sum(verdicts) / len(verdicts):.2f} of {len(verdicts)}"


def show_strangers(how, met):
    """Print the share of sensible answers, of all and of each kind, and those that were not."""
    print(f"strangers, {how}: {share([fine for *_, fine in met])} sensible")
    for kind in STRANGERS:
        print(f"    {kind}: {share([fine for k, *_, fine in met if k == kind])}")
    for _, text, answer, fine in met:
        if not fine:
            print(f"  x {text!r} -> {answer!r}")
    print()


def show_conversations(how, held):
    """Print the share of right answers, of all and of each turn, and what was said."""
    right = [[verdict for *_, verdict in turn] for turn in zip(*held)]
    print(f"conversations, {how}: {share([x for verdicts in right for x in verdicts])} right")
    for n, verdicts in enumerate(right, 1):
        print(f"    turn {n}: {share(verdicts)}")
    for turns in held:
        print()
        for asked, answer, verdict in turns:
            print(f"    User: {asked}\n  {' ' if verdict else 'x'} Assistant: {answer}")
    print()


def main(cfg):
    if len(cfg.model) != 1:
        raise ValueError("name one model to talk to, e.g. `python -m evidence.strangers ppo.pt`; "
                         "`make` trains one")
    model, checkpoint = interop.load_model(cfg.model[0], GPT, device=get_device(cfg))
    enc = interop.tokenizer_of(checkpoint)
    if enc.name != "sandbox":
        raise ValueError(f"{cfg.model[0]} reads with another tokenizer than the sandbox's: what is "
                         f"right here only models of the sandbox can know; talk to it with "
                         f"sample.py --chat")
    for how, temperature in HOW.items():
        show_strangers(how, meet(model, enc, temperature, cfg))
    for how, temperature in HOW.items():
        show_conversations(how, converse(model, enc, temperature, cfg))


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="model")
