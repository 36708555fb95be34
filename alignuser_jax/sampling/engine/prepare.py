"""From a `Request` to the rows that an engine runs: tokens, automaton, closed set, limits."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alignuser_jax.language.render import answer_token_paths, render
from alignuser_jax.language.tokenizer import SentencePieceTokenizer
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Message, Request, Ticket
from alignuser_jax.sampling.engine.automaton import (
    Automaton,
    ClosedSet,
    Path,
    closed_set,
    compile_answer,
    free_text,
)

ANSWERS_KEPT = 1024
"""Compiled answers kept; a simulation has a few dozen distinct ones."""

MESSAGES_KEPT = 1 << 14
"""Rendered messages kept: a session asks with the same messages again and again."""


@dataclass(frozen=True)
class Row:
    """One sample of one request. `tokens` is what is prefilled; `prefixes[i]` names its first
    `i + 1` pages together with the adapter, so equal names mean equal keys and values."""

    ticket: Ticket
    sample: int
    request: Request
    key: int
    tokens: np.ndarray  # int32[n]
    prompt: int  # tokens of the conversation itself, n without what scoring appends
    adapter: int  # which resident adapter, counted from 1; 0 = the base
    prefixes: tuple[bytes, ...]  # of the whole pages, without the last token's
    automaton: Automaton | None  # None: nothing to decode
    closed: ClosedSet | None  # None: nothing to score
    at_once: ClosedSet | None  # the same where no reasoning comes before the answer
    reasoning: int
    limit: int

    @property
    def needs(self) -> int:
        """Positions that the row may fill."""
        sets = [closed for closed in (self.closed, self.at_once) if closed]
        suffix = max((len(path) for closed in sets for path in closed.suffixes), default=0)
        appended = max((len(c.prefix) for c in sets), default=0) if self.automaton else 0
        return len(self.tokens) + self.limit + appended + suffix


class Preparation:
    """Renders requests and compiles their answers, each distinct answer once.

    `adapters` are the resident ones' names, `ends` the ids that end free text, `model` names
    the weights. `states`, `edges`, `context`, `chunk` (tokens of a page) and `pages` are the
    engine's sizes; a request that does not fit them raises `ValueError` with the numbers.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        adapters: Sequence[str],
        ends: Sequence[int],
        model: str,
        context: int,
        chunk: int,
        pages: int,
        **sizes: int,
    ):
        self._tokenizer = tokenizer
        self._numbers = {"base": 0} | {name: n for n, name in enumerate(adapters, start=1)}
        self._numbers[None] = min(len(adapters), 1)
        self._model, self._sizes = model, sizes
        self._context, self._chunk, self._pages = context, chunk, pages
        self._answers: dict[tuple, tuple[Automaton, ClosedSet | None, ClosedSet | None]] = {}
        self._free = free_text(ends, **sizes)
        self._message = functools.lru_cache(MESSAGES_KEPT)(
            lambda message: render(tokenizer, (message,)).tokens
        )

    def rows(self, ticket: Ticket, request: Request) -> list[Row]:
        self._check(request)
        tokens = self._prompt(request.messages)
        prompt = len(tokens)
        adapter = self._numbers[request.adapter]
        automaton, closed, at_once = self._free, None, None
        reasoning, limit = 0, request.max_tokens
        if request.answer:
            automaton, closed, at_once = self._answer(request)
            reasoning = request.reasoning_tokens
            limit = reasoning + automaton.longest
        if closed and not reasoning:
            tokens = np.concatenate([tokens, np.array(closed.prefix, np.int32)])
            automaton, limit = None, 0
        row = Row(
            ticket=ticket,
            sample=0,
            request=request,
            key=request.key,
            tokens=tokens,
            prompt=prompt,
            adapter=adapter,
            prefixes=self._prefixes(tokens, adapter),
            automaton=automaton,
            closed=closed,
            at_once=at_once,
            reasoning=reasoning,
            limit=limit,
        )
        self._check_fit(row)
        if request.samples == 1:
            return [row]
        return [
            replace(row, sample=i, key=stable_key(request.key, "sample", i))
            for i in range(request.samples)
        ]

    def _prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """`render(messages, generation=True).tokens`. Our own vocabularies render message by
        message, so that all but the last are looked up; a chat template needs the whole."""
        if not isinstance(self._tokenizer, SentencePieceTokenizer):
            return render(self._tokenizer, messages, generation=True).tokens
        last = render(self._tokenizer, messages[-1:], generation=True).tokens
        return np.concatenate([*map(self._message, messages[:-1]), last])

    def with_reasoning(self, row: Row, reasoning: np.ndarray) -> Row:
        """The second half of a row that reasons before it is scored."""
        closed = row.closed if len(reasoning) else row.at_once
        appended = np.array(closed.prefix, np.int32)
        tokens = np.concatenate([row.tokens, reasoning, appended])
        return replace(row, tokens=tokens, closed=closed, automaton=None, limit=0)

    def _answer(self, request: Request) -> tuple[Automaton, ClosedSet | None, ClosedSet | None]:
        """The automaton, and the closed set of a scored answer, after reasoning and at once."""
        reasoning = request.reasoning_tokens > 0
        key = (request.answer, reasoning, request.scored)
        if key not in self._answers:
            if len(self._answers) >= ANSWERS_KEPT:
                self._answers.clear()
            last = len(request.answer) - 1
            paths = [
                self._paths(line, number == last, number == 0 and not reasoning)
                for number, line in enumerate(request.answer)
            ]
            at_once = self._paths(request.answer[0], not last, True)
            newline = tuple(self._tokenizer.encode("\n")) if reasoning else ()
            automaton = compile_answer(
                paths,
                reasoning=reasoning,
                newline=newline,
                at_once=at_once if at_once != paths[0] else (),
                **self._sizes,
            )
            sets = None, None
            if request.scored:
                eot = self._tokenizer.eot_id
                sets = closed_set(paths[0], eot), closed_set(at_once, eot)
            self._answers[key] = automaton, *sets
        return self._answers[key]

    def _paths(self, line: Sequence[str], last: bool, first: bool) -> tuple[Path, ...]:
        return tuple(map(tuple, answer_token_paths(self._tokenizer, line, last, first)))

    def _prefixes(self, tokens: np.ndarray, adapter: int) -> tuple[bytes, ...]:
        """One name per whole page; the last token is never in one (its logits are needed)."""
        digest = hashlib.blake2b(f"{self._model}\x1f{adapter}".encode(), digest_size=16)
        names, data, width = [], tokens.tobytes(), 4 * self._chunk
        for i in range((len(tokens) - 1) // self._chunk):
            digest.update(data[i * width : (i + 1) * width])
            names.append(digest.digest())
        return tuple(names)

    def _check(self, request: Request) -> None:
        if not request.messages or request.messages[-1].role == "assistant":
            raise ValueError(
                "a request ends with a user turn; this one "
                + ("ends with a reply" if request.messages else "has no messages")
            )
        if request.scored and len(request.answer) != 1:
            raise ValueError(
                f"a scored request needs exactly one answer line, got {len(request.answer)}"
            )
        if request.scored and len(request.answer[0]) > self._sizes["edges"]:
            raise ValueError(
                f"a scored request has {len(request.answer[0])} alternatives: this engine's "
                f"edges={self._sizes['edges']} allow no more (EngineConfig.edges)"
            )
        whole = (request.samples, request.max_tokens, request.reasoning_tokens, request.top_k)
        if not all(isinstance(n, int | np.integer) and n < 2**31 for n in whole):
            raise ValueError(
                f"samples, max_tokens, reasoning_tokens, top_k are {whole}: expected whole "
                "numbers below 2**31"
            )
        if not 0 <= request.key < 2**64:
            raise ValueError(f"key={request.key}: expected 0 to 2**64 - 1 (stable_key)")
        if request.adapter not in self._numbers:
            names = [name for name in self._numbers if name is not None]
            raise ValueError(
                f"adapter {request.adapter!r} is not resident: this engine has {names}, and "
                "None for its first one"
            )
        if request.samples < 1 or request.max_tokens < 1 or request.reasoning_tokens < 0:
            raise ValueError(
                f"samples={request.samples}, max_tokens={request.max_tokens}, reasoning_tokens="
                f"{request.reasoning_tokens}: expected at least 1, 1 and 0"
            )
        if not (
            (request.temperature == 0 or 1e-6 <= request.temperature <= 1e6)
            and 1e-6 <= request.top_p <= 1
            and 0 <= request.min_p <= 1
            and request.top_k >= 0
        ):
            raise ValueError(
                f"temperature={request.temperature}, top_k={request.top_k}, top_p="
                f"{request.top_p}, min_p={request.min_p}: expected a temperature of 0 "
                "or 1e-6 to 1e6, top_k of 0 (all) or more, 1e-6 <= top_p <= 1, 0 <= min_p <= 1"
            )
        if request.stop and (request.answer or not all(request.stop)):
            raise ValueError(
                f"stop={request.stop}: stop strings are not empty and go with free text; a "
                "reply with an answer ends with it"
            )
        if request.timeout_seconds is not None and not request.timeout_seconds > 0:
            raise ValueError(
                f"timeout_seconds={request.timeout_seconds}: expected more than 0, or None"
            )

    def _check_fit(self, row: Row) -> None:
        room = min(self._context, self._pages * self._chunk)
        if row.needs > room:
            raise ValueError(
                f"a prompt of {row.prompt} tokens and a reply of up to "
                f"{row.needs - row.prompt} do not fit the context of {room}: shorten "
                "the conversation or raise EngineConfig.context (or .pages)"
            )
