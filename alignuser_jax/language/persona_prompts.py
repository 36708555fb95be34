"""The prompts of a model that proposes and judges personas (docs/method.md sections 4.4, 14).

The wording is this project's own. What many prompts share comes first, so that an engine
prefills it once: the closed lists for all users, and a user's ratings for all questions about
them.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignuser_jax.language.answers import AnswerLines, integers
from alignuser_jax.language.prompts import BIG_FIVE, persona_block, turn
from alignuser_jax.records import Message, Persona

AGE, OCCUPATION = "AGE: ", "OCCUPATION: "
BIG_FIVE_LEVELS = (1, 3)
"""The lowest and the highest level of a trait."""
FIT_LABEL = "RATING: "
FIT = (1, 10)
"""The lowest and the highest judgement of how well ratings suit a persona."""


def propose_messages(
    ratings: str,
    ages: Sequence[str],
    occupations: Sequence[str],
    candidates: int,
    item_type: str = "movies",
) -> tuple[Message, ...]:
    """Return the question for the first of `candidates` personas.

    Args:
        ratings: What the user liked and disliked, as text.
        ages: The ages to choose from.
        occupations: The occupations to choose from.
        candidates: How many personas will be asked for.
        item_type: What was rated.
    """
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
    question = turn("Their ratings:", ratings, f"Persona 1 of {candidates}.")
    return Message.of("system", system), Message.of("user", question)


def propose_another(number: int, candidates: int) -> Message:
    """Return the turn after a reply that asks for persona `number`, from 2 on."""
    return Message.of(
        "user",
        f"Persona {number} of {candidates}: another person than before, who may well have "
        "given these ratings too.",
    )


def propose_answer(ages: Sequence[str], occupations: Sequence[str]) -> AnswerLines:
    """Return the answer lines of a proposal: age, occupation and the traits of `BIG_FIVE`."""
    return (
        tuple(AGE + age for age in ages),
        tuple(OCCUPATION + occupation for occupation in occupations),
        *(integers(*BIG_FIVE_LEVELS, before=f"{name.upper()}: ") for name in BIG_FIVE),
    )


def fit_messages(
    ratings: str, persona: Persona, item_type: str = "movies"
) -> tuple[Message, ...]:
    """Return the question to the model in the role of `persona`: are these ratings yours?"""
    system = (
        f"You are shown some ratings of {item_type} and then told who you are. Stay in "
        f"character and judge how likely you would like and dislike {item_type} such as these "
        "in just this way. A reply may begin with reasoning and ends with the line "
        f"{FIT_LABEL}1 (surely not) to 10 (surely)."
    )
    question = turn(
        "The ratings:",
        ratings,
        "Who you are:",
        persona_block(persona, item_type),
        "How likely are these ratings yours?",
    )
    return Message.of("system", system), Message.of("user", question)


def fit_answer() -> AnswerLines:
    """Return the answer line of a judgement; alternative i is a judgement of i + 1."""
    return (integers(*FIT, before=FIT_LABEL),)
