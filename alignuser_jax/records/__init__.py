"""The immutable records and protocols that the parts of the library exchange.

A reader who knows these types can follow any other file: a `World` turns an `Action` into a
`State`, a `Recommender` answers a `RecommendationRequest` with a `Slate`, a `Generator` answers
a `Request` with a `Completion`, and an agent's session leaves `Event`s behind.

Nothing here depends on jax, on files or on a language model. Ids are strings everywhere. Random
keys are plain integers from stable hashes (`randomness.stable_key`), never counters or clock
times, so that results do not depend on the order in which things run.
"""

from alignuser_jax.records.data import (
    DISLIKED_TO,
    LIKED_FROM,
    RATINGS,
    Interaction,
    Item,
    Persona,
)
from alignuser_jax.records.events import Event, Outcome
from alignuser_jax.records.language import (
    Completion,
    CountTokens,
    Example,
    Message,
    Request,
    Role,
    Span,
    Ticket,
    Usage,
    check_drawing,
)
from alignuser_jax.records.protocols import (
    Generator,
    Recommender,
    RecommenderUnavailable,
    World,
)
from alignuser_jax.records.world import (
    Action,
    ActionKind,
    NextPageRequest,
    RecommendationRequest,
    Slate,
    State,
    Transition,
)

__all__ = [
    "Action",
    "ActionKind",
    "Completion",
    "CountTokens",
    "DISLIKED_TO",
    "Event",
    "Example",
    "Generator",
    "Interaction",
    "Item",
    "LIKED_FROM",
    "Message",
    "NextPageRequest",
    "Outcome",
    "Persona",
    "RATINGS",
    "RecommendationRequest",
    "Recommender",
    "RecommenderUnavailable",
    "Request",
    "Role",
    "Slate",
    "Span",
    "State",
    "Ticket",
    "Transition",
    "Usage",
    "World",
    "check_drawing",
]
