"""Count the tokens of conversations and replies, exactly as a chat template renders them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from alignuser_jax.language.answers import AnswerLines
from alignuser_jax.language.render import answer_token_paths, render
from alignuser_jax.language.tokenizer import TextTokenizer
from alignuser_jax.records import Message


class TokenCounter:
    """A `CountTokens` that also counts whole conversations and replies.

    A chat template puts tokens around each message, and joins texts whose tokens then differ at
    the seams, so sums over messages are estimates. Where a limit must hold, count the whole.

    Args:
        tokenizer: A tokenizer of `TextTokenizer.load`.

    Example:
        >>> def prompt_tokens(folder, messages):
        ...     count = TokenCounter(TextTokenizer.load(folder))
        ...     assert count("Rate it.") > 0
        ...     return count.conversation(messages)
    """

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        self._reply = functools.lru_cache(maxsize=4096)(self._longest_reply)

    def __call__(self, text: str) -> int:
        """Return the tokens of a text alone."""
        return self.tokenizer.count(text)

    def conversation(self, messages: Sequence[Message]) -> int:
        """Return the tokens of a prompt, with the beginning of the reply that follows."""
        return len(render(self.tokenizer, messages, generation=True))

    def trained(self, messages: Sequence[Message]) -> int:
        """Return the tokens of an example before its last trained one: what a row needs."""
        weights = render(self.tokenizer, messages).weights
        trained = np.flatnonzero(weights)
        return int(trained[-1]) if len(trained) else 0

    def reply(self, answer: AnswerLines) -> int:
        """Return the tokens of the longest reply of these answer lines, its end included."""
        return self._reply(tuple(tuple(lines) for lines in answer))

    def _longest_reply(self, answer: tuple[tuple[str, ...], ...]) -> int:
        return sum(
            max(
                len(path)
                for path in answer_token_paths(
                    self.tokenizer, lines, last=n == len(answer) - 1, first=n == 0
                )
            )
            for n, lines in enumerate(answer)
        )
