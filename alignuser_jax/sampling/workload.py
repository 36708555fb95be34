"""A load for any `Generator` with the shape of sessions: synthetic agents that read and reply.

A session's conversation grows as an agent's does: a system prompt that all sessions share, its
own persona and history with the first page, then reply and page in turn. The content means
nothing; the lengths are those of a `SessionShape`, so that engines and models can be compared
by the work that they do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from alignuser_jax.language.tokenizer import (
    ROLE_MARKERS,
    Offsets,
    SentencePieceTokenizer,
    TextTokenizer,
)
from alignuser_jax.randomness import generator_of, named_generator, stable_key
from alignuser_jax.records import Generator, Message, Request, Usage

PROGRESS_SECONDS = 10.0
"""How often `run_sessions` reports its progress."""

WORDS = (
    *("a", "the", "of", "and", "on", "in", "by", "for", "with", "from", "one", "two", "film"),
    *("story", "page", "list", "old", "new", "long", "short", "good", "quiet", "late", "early"),
    *("rated", "watched", "liked", "skipped", "drama", "comedy", "crime", "action", "year"),
    *("night", "city", "river", "house", "road", "winter", "summer", "again", "never", "about"),
)
"""What texts consist of for tokenizers whose random ids would not survive decode and encode."""


class NumberedWords(SentencePieceTokenizer):
    """A stand-in vocabulary without text: the word `w7` is token 7, and nothing else is a word.

    It lays out conversations as our own vocabularies do, so a message of n words takes n + 2
    tokens. Ids below `FIRST` are its markers; `eot_id` is 1.

    Args:
        vocab_size: The number of ids, more than `FIRST`.

    Example:
        >>> NumberedWords(300).encode("w7 w12")
        [7, 12]
    """

    FIRST = 8
    """The first id that is a word."""

    def __init__(self, vocab_size: int) -> None:  # no SentencePiece model is behind it
        if vocab_size <= self.FIRST:
            raise ValueError(f"vocab_size={vocab_size}: expected more than {self.FIRST}")
        self.vocab_size = vocab_size
        self.pad_id, self.eot_id = 0, 1
        self.role_ids = {role: number for number, role in enumerate(ROLE_MARKERS, start=2)}
        self.special_ids = frozenset(range(self.FIRST))
        self.fingerprint = f"numbered words {vocab_size}"

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the words."""
        return [int(word[1:]) for word in text.split()]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the numbers of the words, and where each word stands in the text."""
        return self.encode(text), [word.span() for word in re.finditer(r"\S+", text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words with these numbers; markers are left out."""
        return " ".join(f"w{int(token)}" for token in ids if token >= self.FIRST)

    def save(self, directory: str | Path) -> None:
        """Raise `ValueError`: there is no file to save."""
        raise ValueError(
            "NumberedWords have no file: construct them again from their vocab_size"
        )


def text_of(tokenizer: TextTokenizer, tokens: int, random: np.random.Generator) -> str:
    """Return a random text of `tokens` tokens.

    The number is exact for `NumberedWords`; for other tokenizers the text consists of common
    words and takes about as many tokens.
    """
    if isinstance(tokenizer, NumberedWords):
        drawn = random.integers(tokenizer.FIRST, tokenizer.vocab_size, tokens)
        return tokenizer.decode(drawn.tolist())
    ids = tokenizer.encode(" ".join(random.choice(WORDS, max(tokens, 1))))
    return tokenizer.decode(ids[:tokens])


@dataclass(frozen=True)
class SessionShape:
    """The lengths of every session of a load. The chat's markers come on top of these tokens.

    Attributes:
        sessions: How many sessions there are.
        pages: Pages of a session on average; it varies by a third, so that sessions end at
            different times.
        persona_tokens: Tokens of system prompt, persona and history in the first prompt.
        shared_tokens: The first of these, which are the same for all (the system prompt).
        page_tokens: Tokens of a page.
        reply_tokens: The most tokens of a reply.
        samples: Replies that are drawn at each page; the first stays in the conversation.
        temperature: The temperature of the draws.
        seed: Names the lengths, the texts and the draws.

    Raises:
        ValueError: A number is too small, or `shared_tokens` leaves nothing for the persona.

    Example:
        >>> SessionShape(sessions=100, pages=5).longest_prompt
        2300
    """

    sessions: int = 24
    pages: int = 6
    persona_tokens: int = 600
    shared_tokens: int = 100
    page_tokens: int = 250
    reply_tokens: int = 40
    samples: int = 4
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, value in asdict(self).items():
            least = 0 if name in ("shared_tokens", "temperature", "seed") else 1
            if not value >= least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        if self.shared_tokens >= self.persona_tokens:
            raise ValueError(
                f"shared_tokens={self.shared_tokens} must be fewer than the "
                f"persona_tokens={self.persona_tokens} of which they are a part"
            )

    def pages_of(self, session: int) -> int:
        """Return the number of pages of one session, which the seed decides."""
        third = self.pages // 3
        key = stable_key("workload pages", self.seed, session)
        return self.pages - third + key % (2 * third + 1)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt, without markers."""
        last = self.pages + self.pages // 3 - 1
        return self.persona_tokens + self.page_tokens + last * self.step_tokens

    @property
    def step_tokens(self) -> int:
        """The tokens by which a prompt grows from page to page."""
        return self.reply_tokens + self.page_tokens

    @property
    def markers(self) -> int:
        """Tokens to allow for what chat templates put around the longest prompt's messages."""
        return 32 + 8 * (2 * (self.pages + self.pages // 3) + 1)

    @property
    def context(self) -> int:
        """Positions for the longest prompt, its markers and its reply."""
        return self.longest_prompt + self.markers + self.reply_tokens


@dataclass(frozen=True)
class WorkloadResult:
    """The work that was done.

    Attributes:
        sessions: Sessions that ended.
        pages: Pages that were answered.
        seconds: The time it took.
        usage: The tokens. A prompt counts once per sample.
    """

    sessions: int
    pages: int
    seconds: float
    usage: Usage

    @property
    def read_tokens(self) -> int:
        """Prompt tokens that were read (prefilled), without those that were reused."""
        return self.usage.prompt_tokens - self.usage.cached_tokens

    @property
    def rates(self) -> dict[str, float]:
        """The work per second, and the share of the prompt tokens that prefix reuse saved.

        Tokens that a generator found in its cache are no work: they have a rate of their own.
        """
        usage, seconds = self.usage, max(self.seconds, 1e-9)
        return {
            "sessions/s": self.sessions / seconds,
            "pages/s": self.pages / seconds,
            "prompt tokens read/s": self.read_tokens / seconds,
            "prompt tokens reused/s": usage.cached_tokens / seconds,
            "generated tokens/s": usage.generated_tokens / seconds,
            "prompt tokens saved": usage.cached_tokens / max(usage.prompt_tokens, 1),
        }


def time_parts(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Return the seconds that an engine spent on prefill, scoring and decode.

    Args:
        before: The engine's `stats` at the start.
        after: Its `stats` at the end.
        seconds: The whole time; what the device's parts leave of it is the "host" part.
    """
    parts = {
        part: after.get(f"{part}_seconds", 0.0) - before.get(f"{part}_seconds", 0.0)
        for part in ("prefill", "score", "decode")
    }
    return parts | {"host": seconds - sum(parts.values())}


def run_sessions(
    generator: Generator,
    tokenizer: TextTokenizer,
    shape: SessionShape,
    *,
    name: object = 0,
    say: Callable[[str], None] | None = None,
) -> WorkloadResult:
    """Run all sessions at once, each submitting its next request when it is answered.

    Args:
        generator: Answers the requests.
        tokenizer: The model's tokenizer, or `NumberedWords`.
        shape: The lengths of the sessions.
        name: Gives this run personas, pages and keys of its own, so that a second run finds
            nothing of the first in the cache but the shared prompt.
        say: Gets a line about the progress every `PROGRESS_SECONDS`.

    Raises:
        RuntimeError: A request has failed; the message is the generator's.
    """
    sessions = [_Session(tokenizer, shape, name, n) for n in range(shape.sessions)]
    waiting = {}
    started = last_said = time.perf_counter()
    for session in sessions:
        waiting[generator.submit(session.request())] = session
    ended = pages = 0
    usage = np.zeros(len(Usage._fields), np.int64)
    while batch := generator.collect():
        for ticket, completion in batch:
            session = waiting.pop(ticket)
            replies = completion.samples or (completion,)
            if errors := [reply.error for reply in replies if reply.finish_reason == "error"]:
                raise RuntimeError(f"session {session.number}: {errors[0]}")
            usage += np.array(completion.usage)
            pages += 1
            if session.add_reply(completion.text):
                waiting[generator.submit(session.request())] = session
            else:
                ended += 1
        if say and time.perf_counter() - last_said > PROGRESS_SECONDS:
            last_said = time.perf_counter()
            say(
                f"{ended} of {shape.sessions} sessions ended, {pages} pages "
                f"in {last_said - started:.0f} s"
            )
    if waiting:
        raise RuntimeError(
            f"the generator is idle, but {len(waiting)} sessions wait for replies"
        )
    seconds = time.perf_counter() - started
    return WorkloadResult(shape.sessions, pages, seconds, Usage(*map(int, usage)))


class _Session:
    """One synthetic agent: its conversation so far and the request that follows."""

    def __init__(
        self, tokenizer: TextTokenizer, shape: SessionShape, name: object, number: int
    ):
        self.number = number
        self._tokenizer, self._shape = tokenizer, shape
        self._key = stable_key("workload", shape.seed, name, number)
        self._random = generator_of(self._key)
        self._pages_left = shape.pages_of(number)
        shared_random = named_generator("workload", shape.seed)
        system = text_of(tokenizer, shape.shared_tokens, shared_random)
        persona = self._text(shape.persona_tokens - shape.shared_tokens)
        self._messages = [Message.of("system", system)] if system else []
        self._messages.append(Message.of("user", f"{persona}\n{self._text(shape.page_tokens)}"))

    def _text(self, tokens: int) -> str:
        return text_of(self._tokenizer, tokens, self._random)

    def request(self) -> Request:
        return Request(
            tuple(self._messages),
            "benchmark",
            max_tokens=self._shape.reply_tokens,
            temperature=self._shape.temperature,
            samples=self._shape.samples,
            key=stable_key(self._key, len(self._messages)),
        )

    def add_reply(self, reply: str) -> bool:
        """Add the reply and the next page; return False if that was the last page."""
        self._pages_left -= 1
        if not self._pages_left:
            return False
        self._messages.append(Message.of("assistant", reply))
        self._messages.append(Message.of("user", self._text(self._shape.page_tokens)))
        return True
