"""Make a recommender of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from alignuser_jax.records import RecommendationRequest, Slate

Answer = Callable[[RecommendationRequest], Iterable[str] | Slate]
"""From a request to item ids, best first, or to a whole slate."""


class FunctionRecommender:
    """A function behind `recommend`; `from_callable` makes one.

    Attributes:
        function: answers one request.
        name: for tables.
        version: names what the function does; change it when the function changes.
    """

    stateful = False

    def __init__(self, function: Answer, name: str, version: str):
        self.function, self.name, self.version = function, name, version

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return one slate for each request."""
        return [self._slate(request) for request in requests]

    def _slate(self, request: RecommendationRequest) -> Slate:
        answer = self.function(request)
        if isinstance(answer, Slate):
            return answer
        if isinstance(answer, str) or not isinstance(answer, Iterable):
            raise TypeError(
                f"{self.name} gave {answer!r} for user {request.user_id!r}: expected item ids, "
                "best first, or a Slate"
            )
        ids = (item for item in answer if item not in request.exclude)
        return Slate(tuple(islice(ids, request.k)))


def from_callable(
    function: Answer, *, name: str = "", version: str = ""
) -> FunctionRecommender:
    """Make a recommender of a function of one request.

    Example:
        >>> def by_name(request):
        ...     return sorted(dataset.item_ids)
        >>> recommender = from_callable(by_name, version="1")
        >>> recommender.name
        'by_name'

    Args:
        function: returns item ids, best first, as many as it likes: those that the request
            excludes are left out and the first k are shown. A `Slate` is passed on as it is.
        name: for tables; the function's name when it is not given.
        version: change it when the function changes, so that no run mixes the two.

    Raises:
        TypeError: if `function` is not callable.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is no function of a request")
    name = name or getattr(function, "__name__", type(function).__name__)
    return FunctionRecommender(function, name, version)
