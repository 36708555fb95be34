"""A session-shaped load for any `Generator`: synthetic agents that read pages and reply.

A session's conversation grows as an agent's does: a system prompt that all share, its own
persona and history with the first page, then reply and page in turn. Its content means nothing;
its lengths are what is asked for, so that engines and models can be compared by their work.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.language.tokenizer import ROLE_MARKERS, Offsets, SentencePieceTokenizer
from alignuser_jax.randomness import generator_of, named_generator, stable_key
from alignuser_jax.records import Generator, Message, Request, Usage

PROGRESS_SECONDS = 10.0

WORDS = (
    *("a", "the", "of", "and", "on", "in", "by", "for", "with", "from", "one", "two", "film"),
    *("story", "page", "list", "old", "new", "long", "short", "good", "quiet", "late", "early"),
    *("rated", "watched", "liked", "skipped", "drama", "comedy", "crime", "action", "year"),
    *("night", "city", "river", "house", "road", "winter", "summer", "again", "never", "about"),
)
"""What texts are made of where a tokenizer's own ids cannot be told to come back as drawn."""


class NumberedWords(SentencePieceTokenizer):
    """A stand-in vocabulary without text: the word `w7` is token 7, and nothing else is.

    It has the conversation layout of our own vocabularies, so a message of n words takes n + 2
    tokens; ids below `FIRST` are its marks. `eot_id` is 1.
    """

    FIRST = 8

    def __init__(self, vocab_size: int) -> None:  # no SentencePiece model is behind it
        if vocab_size <= self.FIRST:
            raise ValueError(f"vocab_size={vocab_size}: expected more than {self.FIRST}")
        self.vocab_size = vocab_size
        self.pad_id, self.eot_id = 0, 1
        self.role_ids = {role: number for number, role in enumerate(ROLE_MARKERS, start=2)}
        self.special_ids = frozenset(range(self.FIRST))
        self.fingerprint = f"numbered words {vocab_size}"

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        return self.encode(text), [word.span() for word in re.finditer(r"\S+", text)]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{int(token)}" for token in ids if token >= self.FIRST)

    def save(self, directory: str | Path) -> None:
        raise ValueError("numbered words have no file: make them anew from their vocab_size")


def text_of(tokenizer: Any, tokens: int, random: np.random.Generator) -> str:
    """A text of exactly `tokens` tokens of numbered words; of other tokenizers one of common
    words that takes about as many."""
    if isinstance(tokenizer, NumberedWords):
        return tokenizer.decode(random.integers(tokenizer.FIRST, tokenizer.vocab_size, tokens))
    ids = tokenizer.encode(" ".join(random.choice(WORDS, max(tokens, 1))))
    return tokenizer.decode(ids[:tokens])


@dataclass(frozen=True)
class SessionShape:
    """What every session is like. Markers of the chat come on top of the given tokens.

    `persona_tokens` of persona and history are in the first prompt, the first `shared_tokens`
    of them the same for all (the system prompt). The number of pages varies by a third around
    `pages`, so that sessions end at different times. At each page `samples` replies of
    `reply_tokens` are drawn; the first stays in the conversation.
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
            if value < least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        if self.shared_tokens >= self.persona_tokens:
            raise ValueError(
                f"shared_tokens={self.shared_tokens} are part of the first prompt's "
                f"persona_tokens={self.persona_tokens}: give fewer"
            )

    def pages_of(self, session: int) -> int:
        """The pages of one session: `pages` on average, by the seed."""
        third = self.pages // 3
        key = stable_key("workload pages", self.seed, session)
        return self.pages - third + key % (2 * third + 1)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt without markers."""
        last = self.pages + self.pages // 3 - 1
        return self.persona_tokens + self.page_tokens + last * self.step_tokens

    @property
    def step_tokens(self) -> int:
        """By how much a prompt grows from page to page."""
        return self.reply_tokens + self.page_tokens

    @property
    def markers(self) -> int:
        """Room for what chat templates put around the messages of the longest prompt."""
        return 32 + 8 * (2 * (self.pages + self.pages // 3) + 1)

    @property
    def context(self) -> int:
        """Positions for the longest prompt and its reply, with room for what templates add."""
        return self.longest_prompt + self.markers + self.reply_tokens


@dataclass(frozen=True)
class WorkloadResult:
    """What was done. Prompt tokens count once per sample, as `Usage` has them; `cached_tokens`
    of them were not computed again."""

    sessions: int
    pages: int
    seconds: float
    usage: Usage

    @property
    def rates(self) -> dict[str, float]:
        """Per second: sessions, pages, prompt and generated tokens; and the share of prompt
        tokens that prefix reuse saved."""
        usage, seconds = self.usage, max(self.seconds, 1e-9)
        return {
            "sessions/s": self.sessions / seconds,
            "pages/s": self.pages / seconds,
            "prompt tokens/s": usage.prompt_tokens / seconds,
            "generated tokens/s": usage.generated_tokens / seconds,
            "prompt tokens saved": usage.cached_tokens / max(usage.prompt_tokens, 1),
        }


def time_parts(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Where `seconds` went, by an engine's `stats` before and after: prefill, scoring, decode,
    and what the host did besides."""
    parts = {
        part: after.get(f"{part}_seconds", 0.0) - before.get(f"{part}_seconds", 0.0)
        for part in ("prefill", "score", "decode")
    }
    return parts | {"host": seconds - sum(parts.values())}


def run_sessions(
    generator: Generator,
    tokenizer: Any,
    shape: SessionShape,
    *,
    name: object = 0,
    say: Callable[[str], None] | None = None,
) -> WorkloadResult:
    """All sessions through `generator` at once, each asking again when it is answered.

    `name` makes the personas, pages and keys of this run its own, so that a second run finds
    nothing of the first but the shared prompt. Raises `RuntimeError` with the engine's message
    where a request fails. `say` gets a line now and then.
    """
    sessions = [_Session(tokenizer, shape, name, n) for n in range(shape.sessions)]
    asking = {}
    started = said = time.perf_counter()
    for session in sessions:
        asking[generator.submit(session.request())] = session
    ended = pages = 0
    usage = np.zeros(len(Usage._fields), np.int64)
    while batch := generator.collect():
        for ticket, completion in batch:
            session = asking.pop(ticket)
            replies = completion.samples or (completion,)
            if errors := [reply.error for reply in replies if reply.finish_reason == "error"]:
                raise RuntimeError(f"session {session.number}: {errors[0]}")
            usage += np.array(completion.usage)
            pages += 1
            if session.answered(completion.text):
                asking[generator.submit(session.request())] = session
            else:
                ended += 1
        if say and time.perf_counter() - said > PROGRESS_SECONDS:
            said = time.perf_counter()
            say(
                f"{ended} of {shape.sessions} sessions ended, {pages} pages "
                f"in {said - started:.0f} s"
            )
    if asking:
        raise RuntimeError(
            f"the generator is idle, but {len(asking)} sessions wait for replies"
        )
    seconds = time.perf_counter() - started
    return WorkloadResult(shape.sessions, pages, seconds, Usage(*map(int, usage)))


class _Session:
    """One synthetic agent: its conversation so far and the request that follows."""

    def __init__(self, tokenizer: Any, shape: SessionShape, name: object, number: int):
        self.number = number
        self._tokenizer, self._shape = tokenizer, shape
        self._key = stable_key("workload", shape.seed, name, number)
        self._random = generator_of(self._key)
        self._left = shape.pages_of(number)
        everyone = named_generator("workload", shape.seed)
        system = text_of(tokenizer, shape.shared_tokens, everyone)
        own = self._text(shape.persona_tokens - shape.shared_tokens)
        self._messages = [Message.of("system", system)] if system else []
        self._messages.append(Message.of("user", f"{own}\n{self._text(shape.page_tokens)}"))

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

    def answered(self, reply: str) -> bool:
        """Takes the reply and the next page into the conversation; False where it was the last
        page."""
        self._left -= 1
        if not self._left:
            return False
        self._messages.append(Message.of("assistant", reply))
        self._messages.append(Message.of("user", self._text(self._shape.page_tokens)))
        return True
