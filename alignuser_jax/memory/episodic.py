"""Episodic memory: past ratings, then what happened in the session (METHOD.md section 5).

A memory is a value: to remember one thing more gives a new memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from alignuser_jax.records import DISLIKED_TO, LIKED_FROM, Interaction
from alignuser_jax.text import one_line

NONE_YET = "None yet."
_SENTENCES = {
    "Liked": "I liked {title} based on my review score of {score:g}.",
    "Neutral": "I felt neutral about {title} based on my review score of {score:g}.",
    "Disliked": "I disliked {title} based on my review score of {score:g}.",
}


def feeling(score: float) -> str:
    """`Liked`, `Neutral` or `Disliked`."""
    if score >= LIKED_FROM:
        return "Liked"
    return "Disliked" if score <= DISLIKED_TO else "Neutral"


class RatedItem(NamedTuple):
    """`page` is 0 for what was rated before the session."""

    title: str
    score: float
    page: int = 0


class SeenPage(NamedTuple):
    page: int
    titles: tuple[str, ...]
    ratings: tuple[tuple[str, float], ...]
    """(title, score) of what was watched and rated there."""


@dataclass(frozen=True, slots=True)
class EpisodicMemory:
    """Ratings and pages, each in the order in which they happened."""

    ratings: tuple[RatedItem, ...] = ()
    pages: tuple[SeenPage, ...] = ()

    @classmethod
    def of(cls, history: Sequence[Interaction], titles: Mapping[str, str]) -> EpisodicMemory:
        """The memory a session begins with; `titles` names items by id (KeyError where it
        does not know one)."""
        rated = (RatedItem(one_line(titles[past.item_id]), past.rating) for past in history)
        return cls(tuple(rated))

    def rated(self, title: str, score: float, page: int = 0) -> EpisodicMemory:
        return replace(self, ratings=(*self.ratings, RatedItem(one_line(title), score, page)))

    def seen_page(self, page: int, titles: Sequence[str]) -> EpisodicMemory:
        """Closes a page: what was recommended there, with what was rated on it."""
        ratings = tuple((past.title, past.score) for past in self.ratings if past.page == page)
        seen = SeenPage(page, tuple(map(one_line, titles)), ratings)
        return replace(self, pages=(*self.pages, seen))

    def summary(self, last: int = 20) -> str:
        """The last ratings, one line per score from best to worst, oldest first within a
        line: `Liked (5): Heat (1995); Ronin (1998)`. Few tokens, and no score is lost."""
        groups: dict[float, list[str]] = {}
        for past in self._last(last):
            groups.setdefault(past.score, []).append(past.title.replace(";", ","))
        lines = (
            f"{feeling(score)} ({score:g}): {'; '.join(groups[score])}"
            for score in sorted(groups, reverse=True)
        )
        return "\n".join(lines) or NONE_YET

    def sentences(self, last: int = 20) -> str:
        """The last ratings as the paper's preference sentences, one per line."""
        lines = (
            _SENTENCES[feeling(past.score)].format(title=past.title, score=past.score)
            for past in self._last(last)
        )
        return "\n".join(lines) or NONE_YET

    def session_summary(self) -> str:
        """One line per page seen in this session; "" before the first."""
        lines = []
        for seen in self.pages:
            watched = [title for title, _ in seen.ratings]
            skipped = [title for title in seen.titles if title not in watched]
            parts = [f"{title} {score:g}/5" for title, score in seen.ratings]
            lines.append(
                f"Page {seen.page}: watched {', '.join(parts) or 'nothing'}; "
                f"skipped {', '.join(skipped) or 'nothing'}."
            )
        return "\n".join(lines)

    def _last(self, count: int) -> tuple[RatedItem, ...]:
        return self.ratings[max(len(self.ratings) - count, 0) :]
