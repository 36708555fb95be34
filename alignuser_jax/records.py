"""What the rooms hand to each other: plain immutable records and the protocols at the seams.

Nothing here knows jax, files or a language model. Ids are strings at every boundary; keys are
plain integers drawn from stable hashes (`stable_key`), never counters or clocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

RATINGS: tuple[int, ...] = (1, 2, 3, 4, 5)
LIKED_FROM = 4
"""A rating of 4 or more is a like, 2 or less a dislike (METHOD.md section 5; 12.7: > 3)."""
DISLIKED_TO = 2


# --- data -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    item_id: str
    title: str
    genres: tuple[str, ...] = ()
    description: str = ""


class Interaction(NamedTuple):
    """One thing a user did with an item. `rating` is 1 to 5; `timestamp` in Unix seconds."""

    item_id: str
    rating: float
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class Persona:
    """Who a user is: from the log, matched to it, or given (METHOD.md section 4).

    `pickiness`, `engagement`, `conformity`, `variety` are levels 1 to 3, 0 where unknown;
    `rating_shares` are the shares of 1 to 5 stars among the ratings the persona was computed
    from; `big_five` the levels 1 to 3 of openness, conscientiousness, extraversion,
    agreeableness and neuroticism; `personality` and `habits` (a style of shopping) are text;
    empty strings and tuples and `None` mean unknown.
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


# --- the world --------------------------------------------------------------------------

ActionKind = Literal[
    "next_page", "previous_page", "click", "rate", "search", "exit",
    "click_element", "input", "terminate",
]  # fmt: skip
"""The first six are a recommendation site's, the last three a web shop's."""


@dataclass(frozen=True, slots=True)
class Action:
    """One explicit action. `target` is the page-local id (`ITEM_2`; in a web shop the semantic
    id of an element) or a search's query, `value` a rating, `text` what is typed."""

    kind: ActionKind
    target: str = ""
    value: int = 0
    text: str = ""

    @property
    def token(self) -> str:
        """The action as agents write it (METHOD.md section 3)."""
        if self.kind == "click":
            return f"[CLICK_ITEM:{self.target}]"
        if self.kind == "rate":
            return f"[RATE:{self.target}:{self.value}]"
        if self.kind == "search" and self.target:
            return f"[SEARCH:{self.target}]"
        if self.kind == "click_element":
            return f"[CLICK:{self.target}]"
        if self.kind == "input":
            return f"[INPUT:{self.target}|{self.text}]"
        return f"[{self.kind.upper()}]"


@dataclass(frozen=True, slots=True)
class RecommendationRequest:
    """Everything a recommender may need for one slate; the live history travels with it.

    `history` is what the user did before the session, `session` what was rated in it so far,
    `exclude` must not come back. `purpose` is "browse" for a page an agent is really shown,
    "counterfactual" for a page that is only imagined and must leave no trace.
    """

    user_id: str
    history: tuple[Interaction, ...]
    session: tuple[Interaction, ...] = ()
    k: int = 4
    page: int = 1
    exclude: frozenset[str] = frozenset()
    seed: int = 0
    purpose: Literal["browse", "counterfactual"] = "browse"


@dataclass(frozen=True, slots=True)
class NextPageRequest:
    """A page that no recommender makes (a shop's search or cart page)."""

    user_id: str
    state_text: str
    action: Action
    seed: int = 0
    purpose: Literal["browse", "counterfactual"] = "browse"


@dataclass(frozen=True, slots=True)
class Slate:
    item_ids: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    propensities: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a user sees and may do. Immutable; made by a `World` only.

    `kind` is "page", "detail" or "end"; `needs` is the question that must be answered with
    `World.resolve` before `text` and `actions` mean anything; `slate` holds the item ids of the
    current page, `ITEM_1` first; `pages` every slate seen so far, page 1 first; `session` what
    was rated so far; `feedback` the line that echoes the last action (`You rated ITEM_2: 4/5`);
    `searches` (page, query) of every page in `pages` that a search made.
    In a web shop `place` is the kind of page ("search", "cart", …), `source` what made it
    ("log", "rule", "model" or "generated"), and `inside` the world's own immutable memory.
    """

    user_id: str
    seed: int
    kind: Literal["page", "detail", "end"]
    page: int
    pages: tuple[tuple[str, ...], ...] = ()
    session: tuple[Interaction, ...] = ()
    detail: str = ""
    feedback: str = ""
    text: str = ""
    actions: tuple[Action, ...] = ()
    needs: RecommendationRequest | NextPageRequest | None = None
    searches: tuple[tuple[int, str], ...] = ()
    place: str = ""
    source: str = ""
    inside: Hashable = None

    @property
    def slate(self) -> tuple[str, ...]:
        return self.pages[self.page - 1] if 0 < self.page <= len(self.pages) else ()

    @property
    def query(self) -> str:
        """What was searched for where a search made the current page, else ""."""
        return dict(self.searches).get(self.page, "") if self.searches else ""

    @property
    def terminal(self) -> bool:
        return self.kind == "end"


@dataclass(frozen=True, slots=True)
class Transition:
    """(s, a, s') of METHOD.md section 1; `source` is "human", "rollout" or "counterfactual"."""

    state: State
    action: Action
    next_state: State
    source: str


# --- language ---------------------------------------------------------------------------

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a message. `trained`: the loss covers it; `action`: it is the final action
    line, whose tokens may carry their own weight."""

    text: str
    trained: bool = False
    action: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        return cls(role, (Span(text),))

    @property
    def content(self) -> str:
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: a conversation with at least one trained span.

    `task` names the loss term ("world_model", "reflection", "imitation", "visit"); `example_id`
    is unique in its shard set; `user_id` says whose log it comes from ("" for none).
    """

    task: str
    messages: tuple[Message, ...]
    example_id: str = ""
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a language model: the whole conversation, its limits and its key.

    A reply is free text of at most `reasoning_tokens` tokens, then the answer: one line per
    entry of `answer`, each exactly one of that entry's alternatives (lines are joined by
    newlines). `answer == ()` asks for free text of at most `max_tokens` tokens.
    `scored`: the completion carries the exact distribution over the alternatives of its only
    answer line, and the alternative is drawn from it.
    `samples` completions come back in one `Completion.samples` where it is more than 1.
    Drawing: `temperature` (0: the likeliest), then of the tempered distribution the `top_k`
    likeliest (0: all), of these the fewest whose share reaches `top_p`, and of all those at
    least `min_p` times as likely as the likeliest.
    `stop` strings end free text where the first of them appears, which is cut off.
    `timeout_seconds` after it was submitted the request comes back as an error.
    `purpose` ("screen", "rate", "act", "interview", "reflect", "world_model", …) and `subject`
    (the item id a call is about) are for logs and tests; no model sees them.
    """

    messages: tuple[Message, ...]
    purpose: str
    subject: str = ""
    answer: tuple[tuple[str, ...], ...] = ()
    scored: bool = False
    reasoning_tokens: int = 0
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    samples: int = 1
    key: int = 0
    adapter: str | None = None
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    timeout_seconds: float | None = None


class Usage(NamedTuple):
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply. `choices[i]` is the index of the alternative taken in answer line i, and
    `choice_probabilities[i]` the distribution over that line's alternatives under the
    request's constraint at temperature 1 (`()` where the back end cannot tell). A failure is
    a `Completion` with `finish_reason="error"` and the reason in `error`, never empty text."""

    text: str
    choices: tuple[int, ...] = ()
    choice_probabilities: tuple[tuple[float, ...], ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: Literal["stop", "length", "error"] = "stop"
    error: str = ""
    usage: Usage = Usage()
    samples: tuple[Completion, ...] = ()


Ticket = int


# --- what agents leave behind -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the event table; sorted by (arm, user_id, session, sequence), no clock time.

    `kind`: "page" (one row per exposed item, `probability` its propensity, 0 where the
    recommender gives none), "screen" (value 1 watch / 0 skip, `probability`
    P(watch)), "rate" (value 1 to 5, `expected` the expected rating), "act" (`text` the action
    token), "interview" (value 1 to 10), "exit" (value = last page), "failure" (`text` why);
    of a web shop `agents.shop_session` says more.
    `position` is the item's place on the page, from 1; 0 where an event has no item.
    """

    arm: str
    user_id: str
    session: int
    sequence: int
    kind: str
    page: int = 0
    position: int = 0
    item_id: str = ""
    value: float = 0.0
    probability: float = 0.0
    expected: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a session coroutine returns: its events, in order, and the state it ended in."""

    events: tuple[Event, ...]
    state: State
    extra: Mapping[str, Any] = field(default_factory=dict)


# --- protocols --------------------------------------------------------------------------


class World(Protocol):
    """A pure, I/O-free site. `step` raises `ValueError` for nothing: an invalid action gives
    the unchanged page with an error line (METHOD.md section 2.5)."""

    def reset(self, user_id: str, seed: int) -> State: ...
    def step(self, state: State, action: Action) -> State: ...
    def resolve(self, state: State, answer: Slate | str) -> State: ...


@runtime_checkable
class Recommender(Protocol):
    def recommend(self, requests: Sequence[RecommendationRequest]) -> Sequence[Slate]: ...


class RecommenderUnavailable(RuntimeError):
    """Raised by `recommend` where no request can be put to the recommender now (its server is
    away): a run stops, and goes on when it is started again. Any other error is the request's.

    `answered` maps the indices of requests that were answered before to their slates, so that
    they are not asked again.
    """

    def __init__(self, reason: str, answered: Mapping[int, Slate] | None = None):
        super().__init__(reason)
        self.answered = dict(answered or {})


class Generator(Protocol):
    """A language model at work. `collect` blocks until at least one completion is ready and
    returns `[]` only when nothing is outstanding."""

    def submit(self, request: Request) -> Ticket: ...
    def collect(self) -> list[tuple[Ticket, Completion]]: ...
    def cancel(self, ticket: Ticket) -> None: ...
