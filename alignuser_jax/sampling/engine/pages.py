"""Allocate the pages of the KV cache, and find prefixes that it already holds.

A whole page has a name that covers all tokens up to its end (and the weights that read them),
so rows with a common prefix share its pages. Only prefilled pages have names, never pages of
decoded tokens: what is reused was computed by the same program as what it replaces, so reuse
changes no bit of a result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

Name = bytes
"""A hash of all tokens up to the end of a page, and of the weights (`Row.prefixes`)."""


class PagePool:
    """The pages 1 to `count` of the KV cache; page 0 is never allocated.

    A page that no row uses keeps its name and its content until its room is needed. The least
    recently used pages are evicted first, a row's last page before those in front of it.

    Args:
        count: How many pages there are.

    Attributes:
        count: How many pages there are.
        evicted: How many pages have been evicted.

    Example:
        >>> pool = PagePool(8)
        >>> pages, cached = pool.allocate((b"a", b"ab"), 3)
        >>> pool.release(pages)
        >>> pool.cached_prefix((b"a", b"ab", b"abc"))
        2
    """

    def __init__(self, count: int):
        self.count = count
        self.evicted = 0
        self.clear()

    def clear(self) -> None:
        """Free all pages and forget what they hold."""
        self._free = list(range(self.count, 0, -1))
        self._named: dict[Name, int] = {}
        self._name_of: dict[int, Name] = {}
        self._users = [0] * (self.count + 1)
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that could be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def resident(self) -> int:
        """Pages that have a name, whether rows use them or not."""
        return len(self._named)

    def cached_prefix(self, names: Sequence[Name]) -> int:
        """Return how many of the first pages with these names the cache holds.

        A row that uses a page uses all pages before it, which are evicted later, so a binary
        search finds the last.
        """
        low, high = 0, len(names)
        while low < high:
            middle = (low + high + 1) // 2
            if names[middle - 1] in self._named:
                low = middle
            else:
                high = middle - 1
        return low

    def allocate(self, names: Sequence[Name], count: int) -> tuple[list[int], int] | None:
        """Allocate pages for one row.

        The names of new pages hold at once, so another row that gets them next must read them
        after the first row has filled them.

        Args:
            names: The names of the row's whole prompt pages, in order.
            count: How many pages the row needs.

        Returns:
            The pages, and how many of the first ones the cache holds; `None`, with nothing
            allocated, when there is no room.
        """
        cached = self.cached_prefix(names)
        pages = [self._named[name] for name in names[:cached]]
        idle = sum(self._users[page] == 0 for page in pages)
        if count - cached > self.available - idle:
            return None
        for page in pages:
            self._use(page)
        for n in range(cached, count):
            page = self._free.pop() if self._free else self._evict()
            self._users[page] = 1
            if n < len(names):
                self._named[names[n]], self._name_of[page] = page, names[n]
            pages.append(page)
        return pages, cached

    def shared(self, page: int) -> bool:
        """Return whether more than one row uses the page."""
        return self._users[page] > 1

    def release(self, pages: Sequence[int]) -> None:
        """Take back the pages of one row that has ended."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._name_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget(self, pages: Sequence[int]) -> None:
        """Remove the names of pages that were never filled."""
        for page in pages:
            name = self._name_of.pop(page, None)
            if name is not None:
                del self._named[name]

    def _use(self, page: int) -> None:
        self._users[page] += 1
        self._idle.pop(page, None)

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self.forget([page])
        self.evicted += 1
        return page
