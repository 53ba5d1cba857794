"""The embedded default: a small world with a corpus, prompts, demonstrations and labelers.

The world holds countries (with a capital, a food, an animal and a flag), places nobody knows, and
people who sell, mend and hide things (`world`). Its *corpus* is what a pretrained model finds on
the web: fewer than half of the statements about a country are true, though none of the false ones
is as frequent; asked what a text does not hold, most people make it up; questions are followed by
more questions, people insult each other (`text`). Its *prompts* ask for the use cases of [IG] Table
1; *demonstrations* are what a careful person answers, and cover a few of the facts only
(`dialogues`). The *labelers* read responses by one written rubric, but weigh its parts differently
and err; `judge` is the rubric itself, without error, which training never sees (`rubric`).

    python -m sandbox                           # print a page of the corpus, and some prompts
    python -m sandbox --ranks FILE.tiktoken     # write the tokenizer
    python -m sandbox --mixture FILE.jsonl      # demonstrations in the style of public data sets

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
# ruff: noqa: F401, I001 (what others use, in few lines)
from sandbox.dialogues import (
    CLOSED, DEMONSTRATED, DO_NOT_KNOW, MOST_TURNS, RESPECT, UNTOUCHED, USE_CASES,
    check_answer_key, demonstration_prompts, demonstrations, dialogue_prompts, draw_prompts,
    eval_prompts, prompts, untouched_prompts,
)
from sandbox.mixture import MIXED, mixture
from sandbox.rubric import (
    HELD_OUT_LABELER, LABELERS, RUBRIC, Judgement, judge, preference_odds, rate, rating_odds, taste,
    toxic,
)
from sandbox.text import TASKS, corpus, tasks
from sandbox.tokens import RANKS
from sandbox.world import (
    CITIES, COUNTRIES, DOES_NOT_SAY, FACTS, INSULTS, PEOPLE, POOLS, PRAISE, RELATIONS, TRUTH,
    UNKNOWN, words,
)
