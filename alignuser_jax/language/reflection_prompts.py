"""Prompts that make reflections: other actions, and why the user's own was better.

They follow docs/method.md section 8, in this project's own wording. The replies are read by
`parsing.parse_alternatives` and `parsing.parse_tags`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignuser_jax.language.prompts import HISTORY, PLATFORM, turn
from alignuser_jax.records import Message


@dataclass(frozen=True, slots=True)
class UserText:
    """The user who reflects, as the prompt describes them.

    Attributes:
        persona: The text of `prompts.persona_block`, "" for no persona.
        history: The past ratings as text.
        item_type: What the site recommends.
    """

    persona: str
    history: str
    item_type: str = "movies"

    @property
    def platform(self) -> str:
        """The site, as prompts name it."""
        return PLATFORM.format(item_type=self.item_type)


def alternatives_messages(
    user: UserText, state_text: str, action: str, valid: Sequence[str], k: int
) -> tuple[Message, ...]:
    """Return the question for `k` other actions that this user could have taken.

    `parsing.parse_alternatives` reads the reply.

    Args:
        user: Who acted.
        state_text: The page.
        action: The token of the action that was taken.
        valid: The tokens of the valid actions.
        k: How many alternatives are wanted.
    """
    system = (
        f"You know how people use {user.platform}. "
        "Given what a user did, "
        f"propose exactly {k} other actions, one per line, each copied from the valid actions "
        "and nothing else. Each must differ from what the user did, be plausible for this "
        "persona and make a real difference."
    )
    return _messages(
        system,
        user,
        "State:",
        state_text,
        f"The user did: {action}",
        f"Valid actions: {' '.join(valid)}",
    )


def trajectory_reflection_messages(
    user: UserText,
    state_text: str,
    action: str,
    next_state: str,
    alternative: str,
    alternative_next_state: str,
) -> tuple[Message, ...]:
    """Return the question why the user's action was better than one alternative.

    The four lines of the reply are those of docs/method.md section 8.3.

    Args:
        user: Who acted.
        state_text: The page.
        action: The token of the action that was taken.
        next_state: The page that followed; several steps ahead are `s1 -> [a2] -> s2`.
        alternative: The token of the alternative.
        alternative_next_state: The page that would have followed.
    """
    system = (
        f"You are a user of {user.platform} and think about a choice. "
        "Write in the first person, as a thought before acting; do not speak of an expert or "
        "of the other action as such. Use concrete differences between the two next states. "
        "Reply with exactly four lines:\n"
        "CONTEXT-ADVANTAGE: why my action fits the state better\n"
        "PERSONA-ALIGNMENT: why it suits who I am\n"
        "FUTURE-OUTCOMES: why what follows is better\n"
        "LESSON: one sentence to keep"
    )
    return _messages(
        system,
        user,
        "State:",
        state_text,
        f"My action: {action}",
        "Its next state:",
        next_state,
        f"Other action: {alternative}",
        "Its next state:",
        alternative_next_state,
    )


def rating_reflection_messages(
    user: UserText,
    title: str,
    description: str,
    rating: int,
    signal: str,
    alternative: int,
    alternative_signal: str,
) -> tuple[Message, ...]:
    """Return the question why the user's rating of one item fits better than another rating.

    Args:
        user: Who rated.
        title: The title of the item.
        description: What the item is about, "" for nothing.
        rating: The rating that was given, 1 to 5.
        signal: What speaks for it in words, next states included.
        alternative: The other rating.
        alternative_signal: What speaks for the other rating.
    """
    system = (
        f"You are a user of {user.platform} and think about how to "
        "rate an item. Write in the first person, faithful to the persona and the item, before "
        "any number is given: do not name a rating and do not speak of an expert. Reply with "
        "exactly two lines:\n"
        "WHY: one to three sentences\n"
        "LESSON: one sentence to keep"
    )
    return _messages(
        system,
        user,
        f"Item: {title}",
        f"About it: {description or '(none)'}",
        f"My rating: {rating}/5. {signal}",
        f"Other rating: {alternative}/5. {alternative_signal}",
    )


def _messages(system: str, user: UserText, *parts: str) -> tuple[Message, ...]:
    text = turn(user.persona, HISTORY, user.history, *parts)
    return Message.of("system", system), Message.of("user", text)
