"""Messages, requests and completions: what passes between agents and language models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
        >>> Message.of("user", "Rate 1.").content
        'Rate 1.'
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
        task: The loss term: "world_model", "reflection", "imitation", "visit" or "rating".
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
    whole reply is free text. With `lines` it is one line per entry instead: the entry itself,
    then free text without a newline. Only a back end that can constrain its replies keeps it to
    them.

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
        reply_start: What the reply begins with. The model goes on from there, and
            `Completion.text` holds it too. Not with an `answer`.
        lines: What each line of the reply begins with, such as "WHY:" and "LESSON:"; the reply
            ends with the last of them. () for no such lines. Not with an `answer`.
        line_tokens: The most tokens of each of these lines after what it begins with; the line
            is cut there, in the middle of a sentence if need be. `max_tokens` says nothing of
            such a reply.
        no_repeat: No run of so many tokens comes twice in the free text of one reply; 0 for no
            such rule. Servers do not know it: readers of their replies check for repeats.
        no_repeat_of: Texts of which no such run comes in the reply either, such as the worked
            examples of the prompt. Goes with `no_repeat`.

    Example:
        >>> from alignuser_jax.randomness import stable_key
        >>> request = Request(
        ...     (Message.of("user", "Rate 1."),),
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
    reply_start: str = ""
    lines: tuple[str, ...] = ()
    line_tokens: int = 0
    no_repeat: int = 0
    no_repeat_of: tuple[str, ...] = ()


def check_drawing(temperature: float, top_p: float) -> None:
    """Refuse settings with which no token can be drawn; the bounds are those of every back end.

    Settings call it, rather than `Request`, which is built hundreds of thousands of times.

    Raises:
        ValueError: `temperature` is neither 0 nor 1e-6 to 1e6, or `top_p` not 1e-6 to 1.

    Example:
        >>> check_drawing(temperature=-1, top_p=1)
        Traceback (most recent call last):
        ValueError: temperature is -1, expected 0 (the likeliest token), or 1e-6 to 1e6
    """
    if not (temperature == 0 or 1e-6 <= temperature <= 1e6):
        raise ValueError(
            f"temperature is {temperature}, expected 0 (the likeliest token), or 1e-6 to 1e6"
        )
    if not 1e-6 <= top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected at least 1e-6 and at most 1")


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
