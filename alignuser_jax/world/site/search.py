"""Lexical search over titles and genres, whose queries come from a closed list: the terms of
what is on the page, as far as they lead to something new. So no query is malformed or empty.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten

SHORTEST_WORD = 4
LONGEST_QUERY = 40
_WORD = re.compile(rf"[^\W\d_]{{{SHORTEST_WORD},}}")


@lru_cache(maxsize=1 << 16)
def genre_terms(item: Item) -> Mapping[str, str]:
    """Term -> how a page writes it, of each genre. Square brackets, which end an action's
    token, become round ones.
    """
    bare = (one_line(g).replace("[", "(").replace("]", ")") for g in item.genres)
    terms = {text.casefold(): text for g in bare if (text := shorten(g, LONGEST_QUERY))}
    return MappingProxyType(terms)


@lru_cache(maxsize=1 << 16)
def word_terms(item: Item) -> Mapping[str, str]:
    """The title's words of `SHORTEST_WORD` letters or more, in order."""
    words = (word.casefold() for word in _WORD.findall(item.title))
    return MappingProxyType({word: word for word in words if len(word) <= LONGEST_QUERY})


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """`postings`: term -> the ids of its items, best first: those described by the fewest terms
    (the order of BM25 for one term that an item holds once), then in catalogue order.
    """

    postings: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, items: Mapping[str, Item]) -> SearchIndex:
        found: dict[str, list[tuple[int, int, str]]] = {}
        for order, (item_id, item) in enumerate(items.items()):
            terms = genre_terms(item) | word_terms(item)
            for term in terms:
                found.setdefault(term, []).append((len(terms), order, item_id))
        return cls({term: tuple(i for *_, i in sorted(ids)) for term, ids in found.items()})

    def find(self, query: str, k: int, exclude: Collection[str] = ()) -> tuple[str, ...]:
        """At most `k` items that the query's genre or title word describes, best first."""
        ids = (i for i in self.postings.get(query.casefold(), ()) if i not in exclude)
        return tuple(item_id for item_id, _ in zip(ids, range(k), strict=False))

    def offered(
        self, shown: Iterable[Item], exclude: Collection[str], limit: int
    ) -> tuple[str, ...]:
        """At most `limit` queries of a page: its genres in order, then its title words, rarest
        first, which get half the room where there are as many. Only queries that find an item
        which is not in `exclude`.
        """
        genres: dict[str, str] = {}
        words: dict[str, str] = {}
        for item in shown:
            genres |= genre_terms(item)
            words |= word_terms(item)
        rarest = sorted(words, key=lambda word: len(self.postings.get(word, ())))
        first = [text for text in genres.values() if self.find(text, 1, exclude)]
        then = [w for w in rarest if w not in genres and self.find(w, 1, exclude)]
        room = limit - min(len(then), limit // 2)
        return (*first[:room], *then)[:limit]
