"""Lexical search over titles and genres, with queries from a closed list.

The queries that a page offers are the genres and title words of its own items, as far as they
lead to an item that the user has not seen. So no query is malformed and none finds nothing.
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
"""The fewest letters of a title word that can be searched for."""
LONGEST_QUERY = 40
"""The most characters of a query; longer genres are shortened, longer words left out."""
_WORD = re.compile(rf"[^\W\d_]{{{SHORTEST_WORD},}}")


@lru_cache(maxsize=1 << 16)
def genre_terms(item: Item) -> Mapping[str, str]:
    """Return the item's genres as search terms: the term -> how a page writes it.

    Square brackets become round ones, because `]` ends an action's token.
    """
    bare = (one_line(g).replace("[", "(").replace("]", ")") for g in item.genres)
    terms = {text.casefold(): text for g in bare if (text := shorten(g, LONGEST_QUERY))}
    return MappingProxyType(terms)


@lru_cache(maxsize=1 << 16)
def word_terms(item: Item) -> Mapping[str, str]:
    """Return the title's words of `SHORTEST_WORD` letters or more as terms, in order."""
    words = (word.casefold() for word in _WORD.findall(item.title))
    return MappingProxyType({word: word for word in words if len(word) <= LONGEST_QUERY})


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """An inverted index of a catalogue's genres and title words.

    Attributes:
        postings: Term -> the ids of its items, best first. Items that have the fewest terms
            come first (the order of BM25 for one term that an item holds once); equals stay in
            the order of the catalogue.
    """

    postings: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, items: Mapping[str, Item]) -> SearchIndex:
        """Return the index of a catalogue."""
        postings: dict[str, list[tuple[int, int, str]]] = {}
        for order, (item_id, item) in enumerate(items.items()):
            terms = {**genre_terms(item), **word_terms(item)}
            for term in terms:
                postings.setdefault(term, []).append((len(terms), order, item_id))
        return cls({term: tuple(i for *_, i in sorted(ids)) for term, ids in postings.items()})

    def find(self, query: str, k: int, exclude: Collection[str] = ()) -> tuple[str, ...]:
        """Return at most `k` items that have the query as a genre or title word, best first.

        Args:
            query: One term, in any case.
            k: The most items to return.
            exclude: The ids of items to leave out.
        """
        ids = (i for i in self.postings.get(query.casefold(), ()) if i not in exclude)
        return tuple(item_id for item_id, _ in zip(ids, range(k), strict=False))

    def queries_of(
        self, items: Iterable[Item], exclude: Collection[str], limit: int
    ) -> tuple[str, ...]:
        """Return the queries that a page of these items offers.

        Genres come first, in the order of the page, then title words, the rarest first. Words
        get half of the room if there are enough of them.

        Args:
            items: The items on the page.
            exclude: Item ids that a search would not show; a query that finds nothing else is
                left out.
            limit: The most queries.
        """
        genres: dict[str, str] = {}
        words: dict[str, str] = {}
        for item in items:
            genres |= genre_terms(item)
            words |= word_terms(item)
        rarest = sorted(words, key=lambda word: len(self.postings.get(word, ())))
        first = [text for text in genres.values() if self.find(text, 1, exclude)]
        then = [w for w in rarest if w not in genres and self.find(w, 1, exclude)]
        room = limit - min(len(then), limit // 2)
        return (*first[:room], *then)[:limit]
