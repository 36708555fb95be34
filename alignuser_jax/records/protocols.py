"""The seams between rooms: worlds, recommenders, language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from alignuser_jax.records.language import Completion, Request, Ticket
from alignuser_jax.records.world import Action, RecommendationRequest, Slate, State


class World(Protocol):
    """A site as pure functions of immutable states, without I/O.

    A state whose page needs content says so in `State.needs`; `resolve` fills it in. A
    counterfactual is therefore nothing special: step every alternative, get what they need in
    one batch, resolve.
    """

    def reset(self, user_id: str, seed: int) -> State:
        """Return the first state of a visit."""
        ...

    def step(self, state: State, action: Action) -> State:
        """Return the state after `action`.

        An invalid action raises no error: it returns the unchanged page with a line that says
        so (docs/method.md section 2.5).
        """
        ...

    def resolve(self, state: State, answer: Slate | str) -> State:
        """Return `state` with the answer to `state.needs` filled in."""
        ...


@runtime_checkable
class Recommender(Protocol):
    """Whatever makes slates. Optional beside it: `fit`, `name`, `version`, `stateful`."""

    def recommend(self, requests: Sequence[RecommendationRequest]) -> Sequence[Slate]:
        """Return one slate per request, in the order of the requests."""
        ...


class RecommenderUnavailable(RuntimeError):
    """Raised by `recommend` when the recommender cannot be reached, for example its server.

    A run stops then, and goes on when it is started again. Any other error counts as a failure
    of the request that caused it.

    Attributes:
        answered: The slates of requests that were answered before, by their index in the call,
            so that they are recorded and not asked for again.
    """

    def __init__(self, reason: str, answered: Mapping[int, Slate] | None = None):
        super().__init__(reason)
        self.answered = dict(answered or {})


class Generator(Protocol):
    """A language model at work: the engine, a server, or scripted replies.

    Example:
        >>> def answer(generator: Generator, request: Request) -> Completion:
        ...     generator.submit(request)
        ...     ((_, completion),) = generator.collect()
        ...     return completion
    """

    def submit(self, request: Request) -> Ticket:
        """Take a request and return at once; the ticket names it."""
        ...

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Wait until a completion is ready; return `[]` only if nothing is outstanding."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Give up a request; its completion will not come.

        Raises:
            KeyError: The completion was collected before (some generators ignore that).
        """
        ...
