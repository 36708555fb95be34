"""Make a recommender of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from alignuser_jax.records import RecommendationRequest, Slate


class FunctionRecommender:
    stateful = False

    def __init__(self, function: Callable, name: str, version: str):
        self.function, self.name, self.version = function, name, version

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        return [self._slate(request) for request in requests]

    def _slate(self, request: RecommendationRequest) -> Slate:
        found = self.function(request)
        if isinstance(found, Slate):
            return found
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise TypeError(
                f"{self.name} gave {found!r} for user {request.user_id!r}: expected item ids, "
                "best first, or a Slate"
            )
        ids = (i for i in found if i not in request.exclude)
        return Slate(tuple(islice(ids, request.k)))


def from_callable(
    function: Callable[[RecommendationRequest], Iterable[str] | Slate],
    *,
    name: str = "",
    version: str = "",
) -> FunctionRecommender:
    """`function(request)` returns item ids, best first: as many as it likes, for what is
    excluded is left out and the first k are shown. A `Slate` is taken as it is.

    Change `version` when the function changes, so that no run mixes the two.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is no function of a request")
    name = name or getattr(function, "__name__", type(function).__name__)
    return FunctionRecommender(function, name, version)
