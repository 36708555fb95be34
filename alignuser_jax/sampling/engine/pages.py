"""Which page of the cache holds what: prefixes that lie ready, rows that use them, and who goes
first when room is needed.

A whole page has a name that covers all tokens up to its end (and the weights that read them),
so rows with a common beginning share its pages. Only prefilled pages have names, never decoded
tokens: what is reused was computed by the same program as what it replaces, so reuse changes no
bit of a result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

Name = bytes


class PagePool:
    """Pages 1 to `count`; page 0 is never given out. A page that nobody uses keeps its name,
    and what it holds, until its room is needed: least recently used first, a row's last page
    before those in front of it. `evicted` counts them."""

    def __init__(self, count: int):
        self.count = count
        self.evicted = 0
        self.clear()

    def clear(self) -> None:
        """Forgets everything: what the pages hold is lost."""
        self._free = list(range(self.count, 0, -1))
        self._named: dict[Name, int] = {}
        self._name_of: dict[int, Name] = {}
        self._users = [0] * (self.count + 1)
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that could be given out now."""
        return len(self._free) + len(self._idle)

    @property
    def resident(self) -> int:
        """Pages that have a name, in use or not."""
        return len(self._named)

    def common(self, names: Sequence[Name]) -> int:
        """How many leading pages of these lie ready. An earlier page is used whenever a later
        one is, and never goes before it, so halving finds the last."""
        low, high = 0, len(names)
        while low < high:
            middle = (low + high + 1) // 2
            if names[middle - 1] in self._named:
                low = middle
            else:
                high = middle - 1
        return low

    def take(self, names: Sequence[Name], count: int) -> tuple[list[int], int] | None:
        """`count` pages for a row whose leading whole pages have these names, and how many of
        them lie ready; None, and nothing taken, where there is no room. The names of new pages
        hold at once: who takes them next must read after the one who took them first."""
        found = self.common(names)
        pages = [self._named[name] for name in names[:found]]
        idle = sum(self._users[page] == 0 for page in pages)
        if count - found > self.available - idle:
            return None
        for page in pages:
            self._use(page)
        for n in range(found, count):
            page = self._free.pop() if self._free else self._evict()
            self._users[page] = 1
            if n < len(names):
                self._named[names[n]], self._name_of[page] = page, names[n]
            pages.append(page)
        return pages, found

    def shared(self, page: int) -> bool:
        """Whether more than one row uses the page."""
        return self._users[page] > 1

    def release(self, pages: Sequence[int]) -> None:
        """A row is done with its pages."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if page in self._name_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def forget(self, pages: Sequence[int]) -> None:
        """Takes the names off pages that were never filled."""
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
