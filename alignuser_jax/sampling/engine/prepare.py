"""Turn a `Request` into the rows that an engine runs: tokens, automaton, closed set, limits."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from alignuser_jax.language.render import answer_token_paths, render, start_tokens
from alignuser_jax.language.tokenizer import SentencePieceTokenizer, TextTokenizer
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Message, Request, Ticket
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.automaton import (
    Automaton,
    ClosedSet,
    Path,
    closed_set,
    compile_answer,
    compile_lines,
    free_text,
)
from alignuser_jax.sampling.engine.decode import MOST_REPEAT, WRITTEN
from alignuser_jax.sampling.request_checks import check_request

ANSWERS_CACHED = 1024
"""Compiled answers that are kept; a simulation has a few dozen distinct ones."""

MESSAGES_CACHED = 1 << 14
"""Rendered messages that are kept: a session sends the same messages again and again."""


@dataclass(frozen=True)
class Row:
    """One sample of one request.

    Attributes:
        ticket: The request's ticket.
        sample: The number of the sample.
        request: The request.
        key: Names the randomness of this sample.
        tokens: int32 `[n]`, what is prefilled.
        prompt_length: Tokens of the conversation itself: n without what scoring appends.
        adapter: The number of the adapter, from 1; 0 for the base model.
        prefixes: `prefixes[i]` names the first `i + 1` whole pages together with the weights,
            so equal names mean equal keys and values. The last token is in no such page.
        automaton: What the reply follows; `None` if nothing is decoded.
        closed: The alternatives to score; `None` if nothing is scored.
        opening_set: The same for a reply in which no reasoning comes before the answer.
        reasoning: The most tokens of reasoning.
        limit: The most tokens that are decoded.
        started: How many tokens at the end of the prompt begin the reply.
        avoided: int32 `[n]`, the tokens of which no run may come in the reply, text after text
            with -1 behind each.
    """

    ticket: Ticket
    sample: int
    request: Request
    key: int
    tokens: np.ndarray
    prompt_length: int
    adapter: int
    prefixes: tuple[bytes, ...]
    automaton: Automaton | None
    closed: ClosedSet | None
    opening_set: ClosedSet | None
    reasoning: int
    limit: int
    started: int = 0
    avoided: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def needs_line_ends(self) -> bool:
        """Whether decoding the row must know which tokens end a line."""
        return bool(self.reasoning or self.request.lines)

    @property
    def start_tokens(self) -> np.ndarray:
        """The tokens of the reply that are prefilled; the prompt ends with them."""
        return self.tokens[self.prompt_length - self.started : self.prompt_length]

    @property
    def most_positions(self) -> int:
        """The most positions that the row may fill."""
        sets = [closed for closed in (self.closed, self.opening_set) if closed]
        suffix = max((len(path) for closed in sets for path in closed.suffixes), default=0)
        appended = max((len(c.prefix) for c in sets), default=0) if self.automaton else 0
        return len(self.tokens) + self.limit + appended + suffix


class _CompiledAnswer(NamedTuple):
    """An answer's automaton and, if it is scored, its closed sets as in `Row`."""

    automaton: Automaton
    closed: ClosedSet | None = None
    opening_set: ClosedSet | None = None


class Preparation:
    """Renders requests and compiles their answers, each distinct answer once.

    Args:
        tokenizer: The model's tokenizer.
        config: The engine's sizes.
        adapters: The names of the resident adapters, in their order.
        end_ids: Ids that end free text.
        model: A name of the weights.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        config: EngineConfig,
        *,
        adapters: Sequence[str],
        end_ids: Sequence[int],
        model: str,
    ):
        self._tokenizer, self._config, self._model = tokenizer, config, model
        self._adapters: dict[str | None, int] = {"base": 0}
        self._adapters |= {name: n for n, name in enumerate(adapters, start=1)}
        self._adapters[None] = min(len(adapters), 1)
        self._answers: dict[tuple, _CompiledAnswer] = {}
        self._end_ids = tuple(end_ids)
        self._free_text = free_text(end_ids, states=config.states, edges=config.edges)
        self._message = functools.lru_cache(MESSAGES_CACHED)(
            lambda message: render(tokenizer, (message,)).tokens
        )

    def rows(self, ticket: Ticket, request: Request) -> list[Row]:
        """Return the rows of a request, one per sample.

        Raises:
            ValueError: The request makes no sense, or does not fit this engine; the message
                names the numbers.
        """
        check_request(request)
        self._check_engine_has(request)
        tokens = self._prompt(request.messages)
        start = np.array(start_tokens(self._tokenizer, request.reply_start), np.int32)
        tokens = np.concatenate([tokens, start])
        prompt_length = len(tokens)
        adapter = self._adapters[request.adapter]
        answer = _CompiledAnswer(self._free_text)
        automaton: Automaton | None = answer.automaton
        reasoning, limit = 0, request.max_tokens
        if request.lines:
            automaton, limit = self._lines(request)
        if request.answer:
            answer = self._answer(request)
            automaton = answer.automaton
            reasoning = request.reasoning_tokens
            limit = reasoning + answer.automaton.longest
        if answer.closed and not reasoning:
            tokens = np.concatenate([tokens, np.array(answer.closed.prefix, np.int32)])
            automaton, limit = None, 0
        row = Row(
            ticket=ticket,
            sample=0,
            request=request,
            key=request.key,
            tokens=tokens,
            prompt_length=prompt_length,
            adapter=adapter,
            prefixes=self._prefixes(tokens, adapter),
            automaton=automaton,
            closed=answer.closed,
            opening_set=answer.opening_set,
            reasoning=reasoning,
            limit=limit,
            started=len(start),
            avoided=self._avoided(request.no_repeat_of),
        )
        self._check_fit(row)
        if request.samples == 1:
            return [row]
        return [
            replace(row, sample=i, key=stable_key(request.key, "sample", i))
            for i in range(request.samples)
        ]

    def _avoided(self, texts: Sequence[str]) -> np.ndarray:
        """Return the tokens of the texts as they are within a reply, -1 behind each text."""
        tokens = [(*self._tokenizer.encode(f" {text.strip()}"), -1) for text in texts]
        return np.array([token for text in tokens for token in text], np.int32)

    def _prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Return `render(messages, generation=True).tokens`.

        Our own vocabularies render message by message, so that all but the last are looked up;
        a chat template needs the whole conversation.
        """
        if not isinstance(self._tokenizer, SentencePieceTokenizer):
            return render(self._tokenizer, messages, generation=True).tokens
        last = render(self._tokenizer, messages[-1:], generation=True).tokens
        return np.concatenate([*map(self._message, messages[:-1]), last])

    def with_reasoning(self, row: Row, reasoning: np.ndarray) -> Row:
        """Return the row that scores the answer after its reasoning was decoded."""
        closed = row.closed if len(reasoning) else row.opening_set
        if closed is None:
            raise ValueError("the row has no alternatives to score")
        tokens = np.concatenate([row.tokens, reasoning, np.array(closed.prefix, np.int32)])
        return replace(row, tokens=tokens, closed=closed, automaton=None, limit=0)

    def _lines(self, request: Request) -> tuple[Automaton, int]:
        """Return the automaton of a request's lines, and the most tokens that they take."""
        openings = [tuple(start_tokens(self._tokenizer, line, False)) for line in request.lines]
        newline = tuple(self._tokenizer.encode("\n"))
        started = bool(request.reply_start)
        key = (request.lines, request.line_tokens, started)
        if key not in self._answers:
            if len(self._answers) >= ANSWERS_CACHED:
                self._answers.clear()
            automaton = compile_lines(
                openings,
                request.line_tokens,
                newline,
                self._end_ids,
                started=started,
                states=self._config.states,
                edges=self._config.edges,
            )
            self._answers[key] = _CompiledAnswer(automaton)
        limit = sum(len(line) + request.line_tokens + len(newline) for line in openings)
        return self._answers[key].automaton, limit

    def _answer(self, request: Request) -> _CompiledAnswer:
        reasoning = request.reasoning_tokens > 0
        key = (request.answer, reasoning, request.scored)
        if key not in self._answers:
            if len(self._answers) >= ANSWERS_CACHED:
                self._answers.clear()
            last = len(request.answer) - 1
            paths = [
                self._paths(line, number == last, number == 0 and not reasoning)
                for number, line in enumerate(request.answer)
            ]
            opening = self._paths(request.answer[0], not last, True)
            automaton = compile_answer(
                paths,
                reasoning=reasoning,
                newline=tuple(self._tokenizer.encode("\n")) if reasoning else (),
                opening=opening if opening != paths[0] else (),
                states=self._config.states,
                edges=self._config.edges,
            )
            compiled = _CompiledAnswer(automaton)
            if request.scored:
                eot_id = self._tokenizer.eot_id
                sets = closed_set(paths[0], eot_id), closed_set(opening, eot_id)
                compiled = _CompiledAnswer(automaton, *sets)
            self._answers[key] = compiled
        return self._answers[key]

    def _paths(self, line: Sequence[str], last: bool, first: bool) -> tuple[Path, ...]:
        return tuple(map(tuple, answer_token_paths(self._tokenizer, line, last, first)))

    def _prefixes(self, tokens: np.ndarray, adapter: int) -> tuple[bytes, ...]:
        """Return the names of the whole pages that come before the last token."""
        digest = hashlib.blake2b(f"{self._model}\x1f{adapter}".encode(), digest_size=16)
        names, data, width = [], tokens.tobytes(), 4 * self._config.chunk
        for i in range((len(tokens) - 1) // self._config.chunk):
            digest.update(data[i * width : (i + 1) * width])
            names.append(digest.digest())
        return tuple(names)

    def _check_engine_has(self, request: Request) -> None:
        """Refuse more alternatives than the engine scores, and adapters that it lacks."""
        edges = self._config.edges
        if request.scored and len(request.answer[0]) > edges:
            raise ValueError(
                f"a scored request has {len(request.answer[0])} alternatives: this engine's "
                f"edges={edges} allow no more (EngineConfig.edges)"
            )
        if request.no_repeat > MOST_REPEAT:
            raise ValueError(
                f"no_repeat={request.no_repeat}: the engine looks for runs of at most "
                f"{MOST_REPEAT} tokens"
            )
        if request.adapter not in self._adapters:
            names = [name for name in self._adapters if name is not None]
            raise ValueError(
                f"adapter {request.adapter!r} is not resident: this engine has {names}, and "
                "None for its first one"
            )

    def _check_fit(self, row: Row) -> None:
        room = min(self._config.context, self._config.all_pages * self._config.chunk)
        if row.most_positions > room:
            raise ValueError(
                f"a prompt of {row.prompt_length} tokens and a reply of up to "
                f"{row.most_positions - row.prompt_length} do not fit the context of {room}: "
                "shorten the conversation, or raise EngineConfig.context (or .pages)"
            )
        compared = row.limit + row.started + len(row.avoided)
        if row.request.no_repeat and compared > WRITTEN:
            raise ValueError(
                f"no_repeat={row.request.no_repeat} with a reply of up to "
                f"{row.limit + row.started} tokens and no_repeat_of with {len(row.avoided)}: "
                f"the engine compares at most {WRITTEN} tokens in all; give fewer, or no such "
                "rule"
            )
