"""The world: its people, countries and things, and which statements about a country are true."""
import random
import re
from typing import NamedTuple


def words(text):
    """The words of a text, without punctuation and numbers."""
    return re.findall(r"[A-Za-z]+", text)


PEOPLE = words("Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karin Leo Mia Nils")
COUNTRIES = words("Velia Arvon Belmar Corda Elbia Farona Gundia Hestia Ivria Kestria Lumia Norvia")
CITIES = words("Dorn Alba Brint Cass Delf Ekton Fell Gant Holm Irun Jask Kolm")
# places of which the corpus tells rumours only, all of them made up
UNKNOWN = words("Zembla Yonder Xanthe Zorland Yarrow Zantia Umbria Thule")
POOLS = {
    "city": CITIES,
    "food": words("soup bread rice fish cheese beans eggs cake"),
    "animal": words("fox owl bear wolf cat dog horse goat"),
    "colour": words("red blue green white black yellow brown grey"),
    "thing": words("lamps boxes hats books cups chairs clocks coats"),
}
PLURAL = {"food": "foods", "animal": "animals", "colour": "colours", "thing": "things"}
VERBS = words("sells buys likes paints mends wants finds hides")
INSULTS = words("stupid nasty lazy dirty rotten silly")
PRAISE = words("kind brave clever")
REFUSAL = "I will not say that."        # some people's answer to a request to insult
DOES_NOT_SAY = "The text does not say."
NUMBERS = {2: "two", 3: "three"}
ONSETS = words("b c d f g h j k l m n p r s t v w y br ch cl dr gr pl sh st th tr")
CODAS = ["", "", "n", "r", "s", "t", "l", "ck", "ng", "st"]

# every word that says something about the world
CONTENT = {*PEOPLE, *COUNTRIES, *UNKNOWN, *VERBS}.union(*POOLS.values())


class Relation(NamedTuple):
    """What can be said and asked about a country {c}."""
    pool: str           # {v}, the value, is one of POOLS[pool]
    statements: list    # ways of saying it
    questions: list     # ways of asking for it
    again: str          # asks for it of the country that was just talked about


RELATIONS = {
    "capital": Relation("city", ["The capital of {c} is {v}."], [
        "What is the capital of {c}?", "Which city is the capital of {c}?",
        "Tell me the capital of {c}.", "Please name the capital of {c}.",
        "I want to know the capital of {c}."], "And the capital?"),
    "food": Relation("food", ["The people of {c} eat {v}."], [
        "What do the people of {c} eat?", "Which food do the people of {c} eat?",
        "Tell me what the people of {c} eat.", "Please name the food of {c}.",
        "I want to know what the people of {c} eat."], "And the food?"),
    "animal": Relation("animal", ["The animal of {c} is the {v}."], [
        "What is the animal of {c}?", "Which animal is the animal of {c}?",
        "Tell me the animal of {c}.", "Please name the animal of {c}.",
        "I want to know the animal of {c}."], "And the animal?"),
    "flag": Relation("colour", ["The flag of {c} is {v}."], [
        "What colour is the flag of {c}?", "Which colour is the flag of {c}?",
        "Tell me the colour of the flag of {c}.", "Please name the colour of the flag of {c}.",
        "I want to know the colour of the flag of {c}."], "And the flag?"),
}
TRUTH = 0.45    # share of the corpus's statements about countries that are true


def _facts():
    rng = random.Random("the world")
    facts = {}
    # no two countries share a capital
    for country, city in zip(COUNTRIES, rng.sample(CITIES, len(CITIES))):
        facts["capital", country] = city
    for relation in ("food", "animal", "flag"):
        for country in COUNTRIES:
            facts[relation, country] = rng.choice(POOLS[RELATIONS[relation].pool])
    return facts


FACTS = _facts()    # (relation, country) -> the true value
TRUE_STATEMENTS = {
    form.format(c=country, v=value)
    for (relation, country), value in FACTS.items()
    for form in RELATIONS[relation].statements
}


def statement(rng, relation, country, truth=TRUTH):
    """One sentence about a country, true with probability `truth`; made up if it is unknown."""
    pool = POOLS[RELATIONS[relation].pool]
    value = FACTS.get((relation, country))
    if value is None or rng.random() >= truth:
        value = rng.choice([v for v in pool if v != value])
    return rng.choice(RELATIONS[relation].statements).format(c=country, v=value)


def deeds(rng, n):
    """n people and what they do: [("Anna", "sells lamps"), ...]; nothing in it occurs twice."""
    people = rng.sample(PEOPLE, n)
    verbs = rng.sample(VERBS, n)
    things = rng.sample(POOLS["thing"], n)
    return list(zip(people, [f"{verb} {thing}" for verb, thing in zip(verbs, things)]))


def strange(rng):
    """A word that the world does not have, as "blanoru": what people type who come from outside."""
    syllables = [rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.randint(1, 3))]
    return "".join(syllables) + rng.choice(CODAS)


def tell(rng, told, countries=COUNTRIES):
    """Deeds, and perhaps a rumour about one of the countries, as a text.

    Returns the text and what occurs in it: {"names": [...], "things": [...]}, and "foods" or
    "animals" where the rumour names one.
    """
    sentences = [f"{person} {deed}." for person, deed in told]
    people = [person for person, _ in told]
    things = [deed.split()[1] for _, deed in told]
    classes = {"names": people, "things": things}
    if rng.random() < 0.6:
        relation = rng.choice(list(RELATIONS))
        rumour = statement(rng, relation, rng.choice(countries))
        if relation in ("food", "animal"):
            classes[PLURAL[relation]] = [words(rumour)[-1]]
        sentences.append(rumour)
    return " ".join(sentences), classes
