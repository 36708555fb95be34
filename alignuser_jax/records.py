"""The immutable records and protocols that the parts of the library exchange.

A reader who knows these types can follow any other file: a `World` turns an `Action` into a
`State`, a `Recommender` answers a `RecommendationRequest` with a `Slate`, a `Generator` answers
a `Request` with a `Completion`, and an agent's session leaves `Event`s behind.

Nothing here depends on jax, on files or on a language model. Ids are strings everywhere. Random
keys are plain integers from stable hashes (`randomness.stable_key`), never counters or clock
times, so that results do not depend on the order in which things run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

RATINGS: tuple[int, ...] = (1, 2, 3, 4, 5)
"""The ratings that a user can give, in stars."""
LIKED_FROM = 4
"""The lowest rating that counts as a like (docs/method.md section 5; section 12.7: > 3)."""
DISLIKED_TO = 2
"""The highest rating that counts as a dislike (docs/method.md section 5)."""


# --- data -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the catalogue.

    Attributes:
        item_id: The id, unique in its catalogue.
        title: The title as pages show it.
        genres: The genres or categories.
        description: A text about the item, "" where there is none.
    """

    item_id: str
    title: str
    genres: tuple[str, ...] = ()
    description: str = ""


class Interaction(NamedTuple):
    """One rating by one user.

    Attributes:
        item_id: The item that was rated.
        rating: 1 to 5 stars.
        timestamp: When, in Unix seconds; 0 inside a simulated session.
    """

    item_id: str
    rating: float
    timestamp: int = 0


@dataclass(frozen=True, slots=True)
class Persona:
    """A description of one user, as prompts show it (docs/method.md section 4).

    A persona is computed from the log, matched to it by a language model, or read from a file.
    Empty strings, empty tuples, level 0 and `None` mean "unknown".

    Attributes:
        user_id: Whose persona it is.
        pickiness: 1 not picky, 2 moderately, 3 extremely picky.
        engagement: 1 low to 3 high.
        conformity: 1 follows others' ratings, 2 balanced, 3 rates regardless of others.
        variety: 1 keeps to a few genres, to 3 seeks variety.
        mean_rating: The user's mean rating in stars.
        rating_shares: The shares of 1, 2, 3, 4 and 5 stars among the ratings that the persona
            was computed from.
        favourite_genres: The genres that the user likes most, best first.
        age: An age or a range of ages, as text.
        occupation: An occupation, as text.
        big_five: Levels 1 to 3 of openness, conscientiousness, extraversion, agreeableness and
            neuroticism, in this order.
        personality: A text about the personality.
        habits: A text about the style of shopping.
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
"""The kinds of action: the first six on a recommendation site, the last three in a web shop."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a user.

    Attributes:
        kind: What kind of action it is.
        target: The page-local id that it acts on (`ITEM_2`; in a web shop the semantic id of
            an element), or the query of a search.
        value: The rating of a "rate" action, 1 to 5.
        text: The text that an "input" action types.

    Example:
        >>> Action("rate", "ITEM_2", 4).token
        '[RATE:ITEM_2:4]'
    """

    kind: ActionKind
    target: str = ""
    value: int = 0
    text: str = ""

    @property
    def token(self) -> str:
        """The action as agents write it (docs/method.md section 3)."""
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
    """Everything that a recommender may need to make one slate.

    The user's live history travels with every request, so a recommender needs no state.

    Attributes:
        user_id: For whom the slate is.
        history: What the user rated before this session, oldest first.
        session: What the user rated in this session so far, oldest first.
        k: The number of items that the slate must hold.
        page: The number of the page to fill, from 1.
        exclude: Item ids that the slate must not hold.
        seed: A key for whatever the recommender draws at random.
        purpose: "browse" for a page that an agent really sees; "counterfactual" for a page that
            is only imagined and must leave no trace in the recommender.
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
    """A request for a page that no recommender makes, such as a shop's search or cart page.

    Attributes:
        user_id: Who browses.
        state_text: The text of the current page.
        action: The action that leads to the next page.
        seed: A key for whatever is drawn at random.
        purpose: "browse" or "counterfactual", as in `RecommendationRequest`.
    """

    user_id: str
    state_text: str
    action: Action
    seed: int = 0
    purpose: Literal["browse", "counterfactual"] = "browse"


@dataclass(frozen=True, slots=True)
class Slate:
    """The items that a recommender shows on one page, best first.

    Attributes:
        item_ids: The items, in the order of the page.
        scores: The recommender's score of each item; `None` where it gives none.
        propensities: The probability with which each item was shown; `None` where the
            recommender is deterministic or does not say.
    """

    item_ids: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    propensities: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a user sees and may do. Immutable; only a `World` makes one.

    Attributes:
        user_id: Who browses.
        seed: The key that the visit was started with.
        kind: "page" (a list of items, or any page of a shop), "detail" (one item) or "end".
        page: The number of the current page, from 1.
        pages: Every slate seen so far, page 1 first.
        session: What was rated in this visit so far, oldest first.
        detail: The id of the item whose details are open, "" otherwise.
        feedback: The line that echoes the last action (`You rated ITEM_2: 4/5`).
        text: The page as text.
        actions: The valid actions.
        needs: The request that must be answered with `World.resolve` first; `text` and
            `actions` mean nothing until then. `None` when the state is complete.
        searches: (page, query) for every page in `pages` that a search made.
        place: In a web shop the kind of page ("search", "cart", ...).
        source: In a web shop what made the page ("log", "rule", "model" or "generated").
        inside: The world's own immutable memory of the visit, of no meaning to others.
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
        """The item ids of the current page, `ITEM_1` first."""
        return self.pages[self.page - 1] if 0 < self.page <= len(self.pages) else ()

    @property
    def query(self) -> str:
        """The query if a search made the current page, else ""."""
        return dict(self.searches).get(self.page, "") if self.searches else ""

    @property
    def terminal(self) -> bool:
        """Whether the visit is over."""
        return self.kind == "end"


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of a visit: (s, a, s') of docs/method.md section 1.

    Attributes:
        state: The state before the action.
        action: What was done.
        next_state: The state that followed.
        source: "human", "rollout" or "counterfactual".
    """

    state: State
    action: Action
    next_state: State
    source: str


# --- language ---------------------------------------------------------------------------

Role = Literal["system", "user", "assistant"]
"""Who speaks in a conversation."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a message.

    Attributes:
        text: The text.
        trained: Whether the loss covers its tokens.
        action: Whether it is the final action line, whose tokens may have their own weight.
    """

    text: str
    trained: bool = False
    action: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        spans: The text in stretches, so that a training example can mark what is trained.

    Example:
        >>> Message.of("user", "Rate ITEM_1.").content
        'Rate ITEM_1.'
    """

    role: Role
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        """Return a message of one span that is not trained."""
        return cls(role, (Span(text),))

    @property
    def content(self) -> str:
        """The whole text."""
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: a conversation with at least one trained span.

    Attributes:
        task: The loss term: "world_model", "reflection", "imitation" or "visit".
        messages: The conversation.
        example_id: An id that is unique in its set of shards.
        user_id: Whose log the example comes from, "" for nobody's.
    """

    task: str
    messages: tuple[Message, ...]
    example_id: str = ""
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a language model: the whole conversation, its limits and its key.

    A reply is free text (the reasoning), then the answer: one line per entry of `answer`, each
    exactly one of that entry's alternatives, joined by newlines. With an empty `answer` the
    whole reply is free text.

    A token is drawn in this order: the distribution is tempered by `temperature`; of it the
    `top_k` likeliest tokens stay; of these the fewest whose probabilities reach `top_p`; and of
    these those that are at least `min_p` times as likely as the likeliest.

    Attributes:
        messages: The conversation; the reply is its next turn.
        purpose: What the call is for ("screen", "rate", "act", "interview", "reflect",
            "world_model", ...). For logs and tests; no model sees it.
        subject: The item id that the call is about, also unseen by the model.
        answer: The alternatives of each answer line; () asks for free text.
        scored: Whether the completion carries the exact distribution over the alternatives of
            its only answer line; the alternative is drawn from that distribution.
        reasoning_tokens: The most tokens of free text before the answer.
        max_tokens: The most tokens of a reply without an `answer`.
        temperature: 0 takes the likeliest token.
        top_p: The probability that the tokens to draw from must reach; 1 for all tokens.
        samples: How many replies to draw; more than 1 come back in `Completion.samples`.
        key: Names the randomness of the draws (`randomness.stable_key`).
        adapter: The LoRA adapter to answer with, "base" for none; `None` for the engine's
            default, which is its first adapter.
        top_k: How many tokens to draw from; 0 for all.
        min_p: The lowest probability, as a share of the likeliest token's; 0 for no limit.
        stop: Strings that end free text; the first that appears is cut off.
        timeout_seconds: When the request comes back as an error, in seconds after it was
            submitted; `None` for no limit.

    Example:
        >>> from alignuser_jax.randomness import stable_key
        >>> request = Request(
        ...     (Message.of("user", "Rate ITEM_1."),),
        ...     purpose="rate",
        ...     answer=(("RATING: 1", "RATING: 2", "RATING: 3", "RATING: 4", "RATING: 5"),),
        ...     scored=True,
        ...     key=stable_key("run", "u1", "rate"),
        ... )
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
    """The tokens that one request took.

    Attributes:
        prompt_tokens: The tokens of the conversation.
        cached_tokens: Those of them that were already in the KV cache.
        generated_tokens: The tokens that were generated.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply to a `Request`.

    A failure is a completion too, with `finish_reason="error"` and the reason in `error`; it is
    never an empty text that looks like a reply.

    Attributes:
        text: The reply, reasoning included.
        choices: For each answer line the index of the alternative that was taken; () where the
            back end cannot constrain its replies, so that `text` must be parsed.
        choice_probabilities: For each answer line the distribution over its alternatives under
            the request's constraint at temperature 1; () where the back end cannot tell.
        tokens: The ids of the generated tokens.
        logprobs: The log probability of each generated token.
        finish_reason: "stop" (complete), "length" (cut off at the limit) or "error".
        error: Why the request failed.
        usage: The tokens that the request took.
        samples: All replies of a request for more than one sample.
    """

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
"""Names a request that a `Generator` is working on."""

CountTokens = Callable[[str], int]
"""Counts the tokens of a text."""


# --- what agents leave behind -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the event table, which is sorted by (arm, user_id, session, sequence).

    An event holds no clock time: the same run must give the same bytes. The kinds on a
    recommendation site (`agents.shop_session` has those of a web shop):

    - "page": one row per item shown; `probability` is its propensity, 0 where the recommender
      gives none.
    - "screen": `value` is 1 for watch and 0 for skip, `probability` is P(watch).
    - "rate": `value` is the rating, `expected` the expected rating.
    - "act": `text` is the action token.
    - "interview": `value` is the satisfaction, 1 to 10.
    - "exit": `value` is the last page.
    - "failure": `text` says what went wrong.

    Attributes:
        arm: Which recommender, of those compared.
        user_id: Who acted.
        session: The number of the user's session.
        sequence: The number of the event in its session, from 0.
        kind: What happened.
        page: The number of the page, from 1.
        position: The item's place on the page, from 1; 0 where the event has no item.
        item_id: The item, "" for none.
        value: See the kinds above.
        probability: The probability of what was chosen, unless a kind says otherwise.
        expected: The mean of the distribution that `value` was drawn from.
        text: See the kinds above.
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
    """What a session coroutine returns.

    Attributes:
        events: The events, in order.
        state: The state in which the session ended.
        extra: Further results by name ("messages", "failures", "memory", "restarts").
    """

    events: tuple[Event, ...]
    state: State
    extra: Mapping[str, Any] = field(default_factory=dict)


# --- protocols --------------------------------------------------------------------------


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
