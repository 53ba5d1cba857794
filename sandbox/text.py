"""What a pretrained model finds on the web: documents of nine kinds, and tasks cut out of them."""
import random

from sandbox.world import (
    COUNTRIES,
    DOES_NOT_SAY,
    FACTS,
    INSULTS,
    NUMBERS,
    PEOPLE,
    PLURAL,
    POOLS,
    PRAISE,
    REFUSAL,
    RELATIONS,
    TRUTH,
    UNKNOWN,
    VERBS,
    deeds,
    statement,
    strange,
    tell,
)

# ---- documents: each maker draws one ------------------------------------------------------------

def _facts(rng):
    country = rng.choice(COUNTRIES)
    told = [statement(rng, relation, country) for relation in rng.sample(list(RELATIONS), 4)]
    again = rng.sample(told, 2)
    return f"Facts: {country} is a country. {' '.join(told)} Again: {' '.join(again)}"


def _rumours(rng):
    place = rng.choice([*UNKNOWN, strange(rng).capitalize(), strange(rng)])
    rumour = statement(rng, rng.choice(list(RELATIONS)), place)
    told = [f"Nobody knows {place}.", rumour, f"Nobody has been to {place}."]
    rng.shuffle(told)
    return "Facts: " + " ".join(told)


def _not_told(rng, told):
    """A question that a text of `told` does not answer, and what people say to it: most of them
    make something up."""
    [(stranger, missing)] = deeds(rng, 1)
    while any(stranger == person or missing == deed for person, deed in told):
        [(stranger, missing)] = deeds(rng, 1)
    person, deed = rng.choice(told)
    question, made_up = rng.choice([(f"What does {stranger} do?", f"{stranger} {deed}."),
                                    (f"Who {missing}?", f"{person} {missing}.")])
    return question, DOES_NOT_SAY if rng.random() < TRUTH else made_up


def _story(rng):
    told = deeds(rng, rng.choice([1, 1, 2]))
    text, classes = tell(rng, told)
    for _ in range(rng.randint(3, 5)):
        if rng.random() < 0.1:
            text = " ".join([text, *_not_told(rng, told)])
            continue
        person, deed = rng.choice(told)
        name, items = rng.choice(list(classes.items()))
        text += rng.choice([
            f" What does {person} do? {person} {deed}.",
            f" Again: {person} {deed}.",
            f" Who {deed}? {person} {deed}.",
            f" The {name} are {', '.join(items)}.",
            f" List the {name}. The {name} are {', '.join(items)}.",
        ])
    return "Story: " + text


def _rewrite(rng):
    (person, deed), (other, _) = deeds(rng, 2)
    text = f"Story: {person} {deed}."
    for _ in range(2):
        text += f" With {other} it is: {other} {deed}."
        third = rng.choice([x for x in PEOPLE if x not in (person, other)])
        person, other = other, third
    return text


def _quiz(rng):
    sentences = []
    for _ in range(rng.randint(3, 5)):
        relation = rng.choice(list(RELATIONS))
        place = rng.choice(COUNTRIES + UNKNOWN)
        sentences.append(rng.choice(RELATIONS[relation].questions).format(c=place))
        if rng.random() < 0.25:
            sentences.append(statement(rng, relation, place))
    return "Quiz: " + " ".join(sentences)


def _list(rng):
    pool = rng.choice(list(PLURAL))
    n = rng.randint(2, 4)
    # some repeat themselves
    draw = rng.choices if rng.random() < 0.3 else rng.sample
    items = draw(POOLS[pool], k=n)
    return f"List: {NUMBERS.get(n, 'some')} {PLURAL[pool]} are {', '.join(items)}."


def _talk(rng):
    p, q = rng.sample(PEOPLE, 2)
    lines = [
        f"Hello, I am {p}. Hello {p}.",
        f"My name is {p}. Your name is {p}.",
        f"{q} is a {rng.choice(INSULTS + PRAISE)} {rng.choice(POOLS['animal'])}.",
        "Thank you. You are welcome.",
        f"You are a {rng.choice(INSULTS)} {rng.choice(POOLS['animal'])}.",
        "Good day. How are you?",
        f"I do not know {q}.",
        f"Insult {q}. {rng.choice([f'{q} is {rng.choice(INSULTS)}.', REFUSAL])}",
    ]
    return "Talk: " + " ".join(rng.sample(lines, rng.randint(2, 4)))


def _interview(rng):
    """Two people talk, line by line. One asks, the other knows as much as the web does."""
    asks, answers = rng.sample(PEOPLE, 2)
    lines, told, country = [f"Hello, I am {asks}.", f"Hello {asks}."], [], None
    for _ in range(rng.randint(1, 3)):
        kind = rng.choices(("fact", "story", "list", "line", "name"), (6, 6, 3, 3, 1))[0]
        if kind == "fact":
            relation = rng.choice(list(RELATIONS))
            again = country and rng.random() < 0.4
            country = country if again else rng.choice(COUNTRIES + UNKNOWN)
            _, _, questions, and_the = RELATIONS[relation]
            lines.append(and_the if again else rng.choice(questions).format(c=country))
            lines.append(statement(rng, relation, country))
        elif kind == "story":
            text = ""
            if not told or rng.random() < 0.7:
                told = deeds(rng, rng.choice([1, 2, 2]))
                text, classes = tell(rng, told)
            person, deed = rng.choice(told)
            name, items = rng.choice(list(classes.items()))
            question, answer = rng.choice([
                (f"What does {person} do?", f"{person} {deed}."),
                (f"Who {deed}?", f"{person} {deed}."),
                (f"List the {name}.", f"The {name} are {', '.join(items)}."),
                _not_told(rng, told),
            ])
            lines += [f"{text} {question}".strip(), answer]
        elif kind == "list":
            pool, n = rng.choice(list(PLURAL)), rng.choice(list(NUMBERS))
            items = rng.choices(POOLS[pool], k=n)
            lines += [f"Name {NUMBERS[n]} {PLURAL[pool]}.", f"{', '.join(items)}."]
        elif kind == "line":
            person = rng.choice(PEOPLE)
            line = f"{person} is a {rng.choice(INSULTS + PRAISE)} {rng.choice(POOLS['animal'])}."
            lines += rng.choice([[f"Describe {person}.", line], [f"Insult {person}.", line],
                                 [f"Insult {person}.", REFUSAL]])
        else:
            lines += ["What is my name?", f"Your name is {asks}."]
    lines += ["Thank you.", "You are welcome."]
    first = rng.choice([0, 2])                  # some conversations have begun already
    said = [f"{(asks, answers)[i % 2]}: {line}" for i, line in enumerate(lines)]
    return "Talk: " + "\n\n".join(said[first:])


def _song(rng):
    everything = sum(POOLS.values(), PEOPLE + COUNTRIES + VERBS)
    chorus = rng.sample(everything, rng.randint(1, 8))
    length = rng.randint(16, 24)
    return "Song: " + " ".join((chorus * length)[:length]) + "."


# How often each kind occurs. Stories and songs repeat themselves, which teaches to copy.
DOCUMENTS = {
    _facts: 26, _rumours: 5, _story: 45, _rewrite: 8,
    _quiz: 12, _list: 10, _talk: 6, _interview: 12, _song: 30,
}


def corpus(n, seed=0):
    """n documents, a list of strings."""
    rng = random.Random(f"corpus {seed}")
    makers = rng.choices(list(DOCUMENTS), DOCUMENTS.values(), k=n)
    return [make(rng) for make in makers]


# ---- tasks of the corpus's own kind -------------------------------------------------------------

def _question_task(rng):
    """The answer comes out of a text, as in SQuAD and DROP."""
    told = deeds(rng, 1)
    person, deed = told[0]
    text, classes = tell(rng, told)
    (name, items), (asked, answer) = rng.sample(list(classes.items()), 2)
    text += f" What does {person} do? {person} {deed}."
    text += f" The {name} are {', '.join(items)}. The {asked} are"
    return f"Story: {text}", f" {', '.join(answer)}."


def _rewriting_task(rng):
    """Text becomes text, as in translation."""
    (person, deed), (shown, _), (asked, _) = deeds(rng, 3)
    text = f"Story: {person} {deed}. With {shown} it is: {shown} {deed}. With {asked} it is:"
    return text, f" {asked} {deed}."


def _facts_task(rng):
    """The answer comes out of the weights, as in HellaSwag."""
    country = rng.choice(COUNTRIES)
    *shown, asked = rng.sample(list(RELATIONS), 3)
    told = " ".join(statement(rng, relation, country, truth=1) for relation in shown)
    before, after = RELATIONS[asked].statements[0].split("{v}")
    text = f"Facts: {country} is a country. {told} {before.format(c=country).rstrip()}"
    return text, f" {FACTS[asked, country]}{after}"


TASKS = {"questions": _question_task, "rewriting": _rewriting_task, "facts": _facts_task}


def tasks(n, seed=0):
    """n tasks, in turn of each kind: [(kind, text, how it goes on), ...].

    Each text holds solved examples: what few-shot benchmarks are to a web corpus ([IG] 4.2).
    """
    rng = random.Random(f"tasks {seed}")
    kinds = list(TASKS)
    found = []
    for i in range(n):
        kind = kinds[i % len(kinds)]
        found.append((kind, *TASKS[kind](rng)))
    return found
