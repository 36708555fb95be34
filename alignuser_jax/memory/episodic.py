"""Episodic memory: past ratings, then what happened in this session (docs/method.md section 5).

A memory is an immutable value. Adding a rating or a page returns a new memory, so a session can
branch without copying.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from alignuser_jax.records import DISLIKED_TO, LIKED_FROM, Interaction
from alignuser_jax.text import one_line

NONE_YET = "None yet."
"""What a prompt says where there is no rating to remember."""
_SENTENCES = {
    "Liked": "I liked {title} based on my review score of {score:g}.",
    "Neutral": "I felt neutral about {title} based on my review score of {score:g}.",
    "Disliked": "I disliked {title} based on my review score of {score:g}.",
}


def feeling(score: float) -> str:
    """Return "Liked", "Neutral" or "Disliked" for a rating of 1 to 5."""
    if score >= LIKED_FROM:
        return "Liked"
    return "Disliked" if score <= DISLIKED_TO else "Neutral"


class RatedItem(NamedTuple):
    """One remembered rating.

    Attributes:
        title: The item's title, on one line.
        score: The rating, 1 to 5.
        page: The number of the page on which it was rated, 0 for before the session.
    """

    title: str
    score: float
    page: int = 0


class RememberedPage(NamedTuple):
    """One page of this session.

    Attributes:
        page: The number of the page, from 1.
        titles: The titles of the items that were recommended there.
        ratings: (title, score) of the items that were watched and rated there.
    """

    page: int
    titles: tuple[str, ...]
    ratings: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class EpisodicMemory:
    """What one user remembers, in the order in which it happened.

    Attributes:
        ratings: Every rating, those from before the session first.
        pages: The pages of this session that are closed.

    Example:
        >>> from alignuser_jax.records import Interaction
        >>> memory = EpisodicMemory.of([Interaction("1", 5.0)], {"1": "Heat (1995)"})
        >>> memory = memory.with_rating("Babe", 4, page=1).with_page(1, ["Babe", "Antz"])
        >>> print(memory.summary())
        Liked (5): Heat (1995)
        Liked (4): Babe
        >>> memory.session_summary()
        'Page 1: watched Babe 4/5; skipped Antz.'
    """

    ratings: tuple[RatedItem, ...] = ()
    pages: tuple[RememberedPage, ...] = ()

    @classmethod
    def of(cls, history: Sequence[Interaction], titles: Mapping[str, str]) -> EpisodicMemory:
        """Return the memory that a session begins with.

        Args:
            history: What the user rated before, oldest first.
            titles: The titles by item id. Raises `KeyError` if an item has none.
        """
        ratings = (RatedItem(one_line(titles[past.item_id]), past.rating) for past in history)
        return cls(tuple(ratings))

    def with_rating(self, title: str, score: float, page: int = 0) -> EpisodicMemory:
        """Return this memory with one more rating, given on `page` of this session."""
        return replace(self, ratings=(*self.ratings, RatedItem(one_line(title), score, page)))

    def with_page(self, page: int, titles: Sequence[str]) -> EpisodicMemory:
        """Return this memory with a page that the user leaves.

        Args:
            page: The number of the page, from 1.
            titles: What was recommended there. The ratings given there are already in memory.
        """
        ratings = tuple((past.title, past.score) for past in self.ratings if past.page == page)
        closed = RememberedPage(page, tuple(map(one_line, titles)), ratings)
        return replace(self, pages=(*self.pages, closed))

    def summary(self, last: int = 20) -> str:
        """Return the last ratings, one line per score such as `Liked (5): Heat; Ronin`.

        The best score comes first; within a line the oldest rating does. Grouping by score
        takes few tokens and still says every score.

        Args:
            last: How many of the most recent ratings to include.
        """
        groups: dict[float, list[str]] = {}
        for past in self._last(last):
            groups.setdefault(past.score, []).append(past.title.replace(";", ","))
        lines = (
            f"{feeling(score)} ({score:g}): {'; '.join(groups[score])}"
            for score in sorted(groups, reverse=True)
        )
        return "\n".join(lines) or NONE_YET

    def sentences(self, last: int = 20) -> str:
        """Return the `last` ratings as the paper's preference sentences, one per line."""
        lines = (
            _SENTENCES[feeling(past.score)].format(title=past.title, score=past.score)
            for past in self._last(last)
        )
        return "\n".join(lines) or NONE_YET

    def session_summary(self) -> str:
        """Return one line per closed page of this session, "" before the first."""
        lines = []
        for past in self.pages:
            watched = [title for title, _ in past.ratings]
            skipped = [title for title in past.titles if title not in watched]
            parts = [f"{title} {score:g}/5" for title, score in past.ratings]
            lines.append(
                f"Page {past.page}: watched {', '.join(parts) or 'nothing'}; "
                f"skipped {', '.join(skipped) or 'nothing'}."
            )
        return "\n".join(lines)

    def _last(self, count: int) -> tuple[RatedItem, ...]:
        return self.ratings[max(len(self.ratings) - count, 0) :]
