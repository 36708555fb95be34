"""Prompts that make reflections: other actions, and why the user's own was better.

They follow docs/method.md section 8, in this project's own wording. The replies are read by
`parsing.parse_alternatives` and `parsing.parse_tags`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignuser_jax.language.prompts import HISTORY, PLATFORM, turn
from alignuser_jax.records import Message, Persona
from alignuser_jax.text import one_line


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


@dataclass(frozen=True, slots=True)
class RatedItem:
    """What the user of a reflection knows of the item that was rated.

    Attributes:
        title: Its title.
        about: Its genres, or what it is about; "" for nothing.
        others: The mean rating of all users, 1 to 5; `None` where the page does not show it.
        similar: Titles and ratings of similar items that the user has rated.
    """

    title: str
    about: str = ""
    others: float | None = None
    similar: tuple[tuple[str, float], ...] = ()


def rating_reflection_messages(
    user: UserText, item: RatedItem, rating: int, alternative: int, examples: int = 2
) -> tuple[Message, ...]:
    """Return the question why the user's rating of one item fits better than another rating.

    Everything that differs between users and items comes after the worked examples, and the
    alternative comes last, so that an engine reads the beginning once. Ratings are words, so
    that the reply has no number to repeat.

    Args:
        user: Who rated; the history is not shown, the ratings of similar items are.
        item: What was rated.
        rating: The rating that was given, 1 to 5.
        alternative: The other rating.
        examples: How many worked examples come first, at most those of `EXAMPLES`.
    """
    system = RATING_SYSTEM.format(platform=user.platform)
    messages = [Message.of("system", system)]
    for example in EXAMPLES[:examples]:
        question = _rating_question(example.persona, example.item, *example.ratings)
        messages.append(Message.of("user", question))
        messages.append(Message.of("assistant", example.reply))
    question = _rating_question(user.persona, item, rating, alternative)
    return (*messages, Message.of("user", question))


RATING_SYSTEM = (
    "You are a user of {platform}. You say, as a thought of your own, why you feel about an "
    "item as you do: in the first person, true to your tastes, about this item and its genres. "
    "Name no number. Reply with exactly two lines:\n"
    "WHY: one or two sentences\n"
    "LESSON: one short sentence about your taste"
)
PICKY = ("", "not picky", "moderately picky", "very picky")
FEELINGS = ("hate it", "dislike it", "find it just okay", "like it", "love it")
"""How a rating of 1 to 5 is called in a question about it."""


def feeling(rating: float) -> str:
    """Return a rating in words; a mean is taken as the nearest rating.

    Example:
        >>> feeling(4.4)
        'like it'
    """
    return FEELINGS[min(max(round(rating), 1), 5) - 1]


FAVOURITES = 3
"""Favourite genres that `persona_line` names."""


def persona_line(persona: Persona | None) -> str:
    """Return one short line about a user, "" without a persona.

    A question about one item needs little of a persona, and is asked thousands of times.
    """
    if persona is None:
        return ""
    about = (persona.age, persona.occupation, PICKY[persona.pickiness or 0])
    parts = [", ".join(filter(None, (one_line(text or "") for text in about)))]
    if persona.favourite_genres:
        genres = persona.favourite_genres[:FAVOURITES]
        parts.append(f"favourite genres {one_line(', '.join(genres))}")
    return "; ".join(filter(None, parts))


def example_texts(count: int) -> tuple[str, ...]:
    """Return the replies and titles of the first `count` worked examples."""
    texts: list[str] = []
    for example in EXAMPLES[:count]:
        titles = [title for title, _ in example.item.similar]
        texts += [example.reply, example.item.title, *titles]
    return tuple(texts)


def example_lines(count: int) -> tuple[str, ...]:
    """Return what each line of the first `count` worked replies says, without its tag."""
    replies = [example.reply.splitlines() for example in EXAMPLES[:count]]
    return tuple(line.partition(": ")[2] for lines in replies for line in lines)


def _rating_question(persona: str, item: RatedItem, rating: int, alternative: int) -> str:
    similar = "; ".join(f"{title} (I {feeling(value)})" for title, value in item.similar)
    return turn(
        f"Me: {persona}" if persona else "",
        f"Item: {item.title}" + (f" ({item.about})" if item.about else ""),
        f"Most people {feeling(item.others)}." if item.others is not None else "",
        f"Similar items I know: {similar}" if similar else "",
        f"I {feeling(rating)} (not: I {feeling(alternative)}). Why?",
    )


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """A question about an invented item with a good reply (a DEFAULT of this project).

    Attributes:
        persona: The user, as the question describes them.
        item: The item; neither it nor the similar ones exist, so no data set has them.
        ratings: The rating and the alternative.
        reply: The reply.
    """

    persona: str
    item: RatedItem
    ratings: tuple[int, int]
    reply: str


EXAMPLES = (
    WorkedExample(
        "45-49, lawyer, very picky; favourite genres Mystery, Drama",
        RatedItem(
            "The Clockmaker's Alibi",
            "Mystery, Drama",
            3.9,
            (("Death at Quillmere", 5.0), ("A Lamp for Odette", 4.0)),
        ),
        (5, 3),
        "WHY: I love The Clockmaker's Alibi because its mystery is about people and not about "
        "clues, which is what I loved in Death at Quillmere too.\n"
        "LESSON: A mystery wins me over when I care for the people in it.",
    ),
    WorkedExample(
        "18-24, student, moderately picky; favourite genres Action, Comedy",
        RatedItem(
            "Turbo Uncles 2",
            "Comedy, Musical",
            3.4,
            (("Turbo Uncles", 2.0), ("Honk If You Sing", 3.0)),
        ),
        (2, 4),
        "WHY: I dislike Turbo Uncles 2 because the songs slow its comedy down, and the first "
        "Turbo Uncles had bored me in the same way.\n"
        "LESSON: A comedy has to be quick, so a musical seldom suits me.",
    ),
    WorkedExample(
        "35-44, teacher, not picky; favourite genres War, Romance",
        RatedItem("Snow over Brenlau", "War, Adventure", 3.6, (("The Ferry Pilots", 4.0),)),
        (3, 5),
        "WHY: I find Snow over Brenlau just okay because its war scenes are well made, but it "
        "left me colder than The Ferry Pilots did.\n"
        "LESSON: A war film has to touch me before I praise it.",
    ),
)
"""Worked examples, of a high, a low and a middling rating."""


def _messages(system: str, user: UserText, *parts: str) -> tuple[Message, ...]:
    text = turn(user.persona, HISTORY, user.history, *parts)
    return Message.of("system", system), Message.of("user", text)
