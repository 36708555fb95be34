"""Items, interactions and personas: what a log says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

RATINGS: tuple[int, ...] = (1, 2, 3, 4, 5)
"""The ratings that a user can give, in stars."""
LIKED_FROM = 4
"""The lowest rating that counts as a like (docs/method.md section 5; section 12.7: > 3)."""
DISLIKED_TO = 2
"""The highest rating that counts as a dislike (docs/method.md section 5)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the catalogue.

    Attributes:
        item_id: The id, unique in its catalogue.
        title: The title as pages show it.
        genres: The genres or categories.
        description: A text about the item, "" where there is none.
    """

    item_id: str
    title: str
    genres: tuple[str, ...] = ()
    description: str = ""


class Interaction(NamedTuple):
    """One rating by one user.

    Attributes:
        item_id: The item that was rated.
        rating: 1 to 5 stars.
        timestamp: When, in Unix seconds; 0 inside a simulated session.
    """

    item_id: str
    rating: float
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class Persona:
    """A description of one user, as prompts show it (docs/method.md section 4).

    A persona is computed from the log, matched to it by a language model, or read from a file.
    Empty strings, empty tuples, level 0 and `None` mean "unknown".

    Attributes:
        user_id: Whose persona it is.
        pickiness: 1 not picky, 2 moderately, 3 extremely picky.
        engagement: 1 low to 3 high.
        conformity: 1 follows others' ratings, 2 balanced, 3 rates regardless of others.
        variety: 1 keeps to a few genres, to 3 seeks variety.
        mean_rating: The user's mean rating in stars.
        rating_shares: The shares of 1, 2, 3, 4 and 5 stars among the ratings that the persona
            was computed from.
        favourite_genres: The genres that the user likes most, best first.
        age: An age or a range of ages, as text.
        occupation: An occupation, as text.
        big_five: Levels 1 to 3 of openness, conscientiousness, extraversion, agreeableness and
            neuroticism, in this order.
        personality: A text about the personality.
        habits: A text about the style of shopping.
    """

    user_id: str
    pickiness: int = 0
    engagement: int = 0
    conformity: int = 0
    variety: int = 0
    mean_rating: float | None = None
    rating_shares: tuple[float, ...] = ()
    favourite_genres: tuple[str, ...] = ()
    age: str = ""
    occupation: str = ""
    big_five: tuple[int, ...] = ()
    personality: str = ""
    habits: str = ""
