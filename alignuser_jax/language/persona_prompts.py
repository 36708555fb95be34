"""What is said to a model that proposes and judges personas (METHOD.md 4.4, 14; own wording).

What stays the same comes first: the closed lists for everybody, a user's ratings for all the
questions about them, so that an engine reads each of them once.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignuser_jax.language.answers import AnswerLines, integers
from alignuser_jax.language.prompts import BIG_FIVE, RATING, persona_block, turn
from alignuser_jax.records import Message, Persona

AGE, OCCUPATION = "AGE: ", "OCCUPATION: "
BIG_FIVE_LEVELS = (1, 3)
FIT = (1, 10)
"""What a set of ratings is given for how well it suits a persona."""


def propose_messages(
    ratings: str,
    ages: Sequence[str],
    occupations: Sequence[str],
    candidates: int,
    item_type: str = "movies",
) -> tuple[Message, ...]:
    """Asks for the first of `candidates` personas; `ratings` is what the user liked and did
    not like, as text. Replies are read against `propose_answer`."""
    traits = "\n".join(f"{name.upper()}: 1, 2 or 3" for name in BIG_FIVE)
    system = (
        f"You infer who somebody is from how they rate {item_type}. Propose a persona that is "
        "coherent with what they like and with what they dislike. A reply may begin with "
        "reasoning and ends with exactly these lines, the traits being 1 for low, 2 for medium "
        "and 3 for high:\n"
        f"{AGE}one of {'; '.join(ages)}\n"
        f"{OCCUPATION}one of {'; '.join(occupations)}\n"
        f"{traits}"
    )
    asked = turn("Their ratings:", ratings, f"Persona 1 of {candidates}.")
    return Message.of("system", system), Message.of("user", asked)


def propose_another(number: int, candidates: int) -> Message:
    """The turn after a reply: the next persona, from 2 on."""
    return Message.of(
        "user",
        f"Persona {number} of {candidates}: another person than before, who may well have "
        "given these ratings too.",
    )


def propose_answer(ages: Sequence[str], occupations: Sequence[str]) -> AnswerLines:
    """One line for age, occupation and each of the five traits, in `BIG_FIVE`'s order."""
    return (
        tuple(AGE + age for age in ages),
        tuple(OCCUPATION + occupation for occupation in occupations),
        *(integers(*BIG_FIVE_LEVELS, before=f"{name.upper()}: ") for name in BIG_FIVE),
    )


def fit_messages(
    ratings: str, persona: Persona, item_type: str = "movies"
) -> tuple[Message, ...]:
    """Asks the model in the role of `persona` whether it would have given these ratings."""
    system = (
        f"You are shown some ratings of {item_type} and then told who you are. Stay in "
        f"character and judge how likely you would like and dislike {item_type} such as these "
        f"in just this way. A reply may begin with reasoning and ends with the line {RATING}1 "
        "(surely not) to 10 (surely)."
    )
    asked = turn(
        "The ratings:",
        ratings,
        "Who you are:",
        persona_block(persona, item_type),
        "How likely are these ratings yours?",
    )
    return Message.of("system", system), Message.of("user", asked)


def fit_answer() -> AnswerLines:
    """Alternative i is a fit of i + 1."""
    return (integers(*FIT, before=RATING),)
