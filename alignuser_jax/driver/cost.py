"""Count the requests and tokens that coroutines take, and what they cost."""

from __future__ import annotations

import os
from typing import NamedTuple

from alignuser_jax.records import CountTokens, Request


class Load(NamedTuple):
    """An amount of work for a language model.

    Attributes:
        requests: The number of requests.
        prompt_tokens: The tokens of all prompts.
        generated_tokens: The tokens of all replies.

    Example:
        >>> Load(1, 1000, 50).scaled(100).price(per_million=(0.5, 2.0))
        0.06
    """

    requests: float = 0
    prompt_tokens: float = 0
    generated_tokens: float = 0

    def plus(self, other: Load, times: int = 1) -> Load:
        """Return the sum of this load and `times` the other."""
        return Load(*(mine + times * more for mine, more in zip(self, other, strict=True)))

    def scaled(self, factor: float) -> Load:
        """Return this load times a factor."""
        return Load(*(value * factor for value in self))

    def price(self, per_million: tuple[float, float]) -> float:
        """Return the price, given that of a million prompt and a million generated tokens."""
        return (
            self.prompt_tokens * per_million[0] + self.generated_tokens * per_million[1]
        ) / 1e6


class LoadCounter:
    """Adds up the load of exchanges between coroutines and a model.

    Attributes:
        expected: The load if every reply can be read.
        worst: The load if every question is asked twice, and as often as it can be at all.
        new_tokens: The prompt tokens that are not a prefix of another request of the same
            coroutine. An engine that reuses prefixes must prefill only these.

    Args:
        count_tokens: Counts the tokens of a text.
        message_tokens: The most tokens that a chat template puts around a message.
        repeat_tokens: The tokens that asking again adds to a prompt, beside the bad reply.
    """

    def __init__(self, count_tokens: CountTokens, message_tokens: int, repeat_tokens: int):
        self.expected, self.worst, self.new_tokens = Load(), Load(), 0
        self._count = count_tokens
        self._message_tokens, self._repeat_tokens = message_tokens, repeat_tokens
        self._texts: list[str] = []

    def next_coroutine(self) -> None:
        """Begin a coroutine, which shares no prefix with those before."""
        self._texts = []

    def add(self, request: Request, reply: str, most: int = 1) -> None:
        """Count a request and its reply; `most` is how often the request can be made."""
        text = "\x1e".join(message.content for message in request.messages)
        around = self._message_tokens * len(request.messages)
        read = self._count(text) + around
        written = request.reasoning_tokens + self._count(reply)
        shared = max((len(os.path.commonprefix([text, old])) for old in self._texts), default=0)
        self.new_tokens += self._count(text[shared:])
        self.new_tokens += self._message_tokens if shared else around
        self.expected = self.expected.plus(Load(1, read, written))
        twice = Load(2, 2 * read + written + self._repeat_tokens, 2 * written)
        self.worst = self.worst.plus(twice, most)
        self._texts.append(text)
