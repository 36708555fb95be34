"""An open language model as one value: who answers, and what manifests say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignuser_jax.records import CountTokens, Generator


@dataclass(frozen=True)
class Backend:
    """An open back end: the engine, a server, a recording, or scripted replies.

    Attributes:
        generator: Answers requests.
        count_tokens: Counts the tokens of a text as `generator` does.
        policy_id: Names the model and its weights, for manifests. A run may only be resumed
            under the same one.
        engine: What else decides the answers (engine geometry, a server's settings), as plain
            JSON values, for manifests.
        note: What to print beside results ("SYNTHETIC data; ...").
        concurrency: How many coroutines at once keep the generator busy.

    Example:
        >>> from alignuser_jax.sampling import ScriptedGenerator
        >>> model = ScriptedGenerator(lambda request: "RATING: 4")
        >>> backend = Backend(model, lambda text: len(text.split()), policy_id="scripted")
    """

    generator: Generator
    count_tokens: CountTokens
    policy_id: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    concurrency: int = 64
