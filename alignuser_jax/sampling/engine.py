"""Batched generation over one decoder, with prefix reuse, grammars and scoring, as a
`Generator`.

Requests wait in a queue; `collect` runs one round: up to `slots` rows, prefill in chunks, read
closed sets, decode to the end. A row's result depends on its request and the engine's geometry
only, never on its neighbours, its slot, the round, or what was reused (ARCHITECTURE.md decision
7).
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from alignuser_jax.model import Decoder, init_cache
from alignuser_jax.records import Completion, Request, Ticket, Usage
from alignuser_jax.sampling.automaton import ACCEPT, Automaton
from alignuser_jax.sampling.prepare import Preparation, Row
from alignuser_jax.sampling.programs import Decoded, Programs, Rows, Tables, Vocabulary
from alignuser_jax.sampling.residents import Residents
from alignuser_jax.sampling.sample import draw_alternative, key_words, uniform
from alignuser_jax.sampling.scripted import with_samples


@dataclass(frozen=True)
class EngineConfig:
    """The geometry: results are bitwise the same only under the same one (it belongs into a
    run's manifest). `states` and `edges` bound an answer's automaton, `reply` its tokens."""

    slots: int = 64
    context: int = 1024
    chunk: int = 32
    reply: int = 512
    states: int = 256
    edges: int = 32

    def __post_init__(self):
        if min(asdict(self).values()) < 1:
            raise ValueError(f"every size of the engine must be positive, got {self}")
        if self.context % self.chunk:
            raise ValueError(f"context={self.context} must be a multiple of chunk={self.chunk}")


class Engine:
    """A decoder at work. `stats` accumulates tokens, rounds and seconds; `compilations` counts
    compiled programs (at most four, whatever is asked)."""

    def __init__(self, decoder: Decoder, tokenizer: Any, config: EngineConfig | None = None):
        self.config = config = config or EngineConfig()
        vocabulary = decoder.config.vocab_size
        if tokenizer.vocab_size > vocabulary:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the decoder {vocabulary}: they "
                "do not belong together"
            )
        self._tokenizer = tokenizer
        self._programs = Programs(decoder, eot=tokenizer.eot_id, reply=config.reply)
        self._prepare = Preparation(
            tokenizer,
            adapted=decoder.lora.rank > 0,
            context=config.context,
            chunk=config.chunk,
            reply=config.reply,
            states=config.states,
            edges=config.edges,
        )
        self._residents = Residents(config.slots, config.context // config.chunk)
        self._new_cache = lambda: init_cache(
            decoder.config, config.slots, config.context, decoder.dtype
        )
        self._cache, self._last = None, None
        self._hidden = (config.slots, decoder.config.hidden_size), decoder.dtype
        self._vocabulary = Vocabulary(
            np.arange(vocabulary) < tokenizer.vocab_size, np.zeros(vocabulary, bool)
        )
        self._lines_known = False
        self._bank: dict[int, tuple[int, Automaton]] = {}
        self._tables: Tables | None = None
        self._queue: list[Row] = []
        self._tickets = 0
        self._ready: list[tuple[Ticket, Completion]] = []
        self._partial: dict[Ticket, dict[int, Completion]] = {}
        self.stats: dict[str, float] = defaultdict(float)

    @property
    def compilations(self) -> int:
        return self._programs.compilations

    # --- Generator ----------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Queues a request. One that cannot be run comes back from `collect` as an error."""
        started = time.perf_counter()
        ticket, self._tickets = self._tickets, self._tickets + 1
        try:
            rows = self._prepare.rows(ticket, request)
        except Exception as error:  # this request's failure, no other's
            self._ready.append((ticket, _failure(error)))
        else:
            self._queue.extend(rows)
            self._partial[ticket] = {}
        self.stats["prepare_seconds"] += time.perf_counter() - started
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a request; its completion will not come."""
        self._queue = [row for row in self._queue if row.ticket != ticket]
        self._ready = [entry for entry in self._ready if entry[0] != ticket]
        self._partial.pop(ticket, None)

    def collect(self) -> list[tuple[Ticket, Completion]]:
        while not self._ready and self._queue:
            self._round()
        ready, self._ready = self._ready, []
        return ready

    # --- a round ------------------------------------------------------------------------

    def _round(self) -> None:
        started = time.perf_counter()
        if self._cache is None:
            self._cache = self._new_cache()
            self._last = jax.numpy.zeros(*self._hidden)
        chosen, slots, found = self._residents.choose([row.prefixes for row in self._queue])
        taken = set(chosen)
        rows = {slot: self._queue[i] for i, slot in zip(chosen, slots, strict=True)}
        reused = {
            slot: chunks * self.config.chunk for slot, chunks in zip(slots, found, strict=True)
        }
        try:
            self._prefill(rows, reused)
            results = self._score({s: r for s, r in rows.items() if not r.automaton})
            results |= self._decode({s: r for s, r in rows.items() if r.automaton})
        except (
            BaseException
        ):  # the device's state is unknown: rows stay queued, nothing is reused
            self._cache, self._last = None, None
            self._residents.clear()
            raise
        self._queue = [row for i, row in enumerate(self._queue) if i not in taken]
        for slot, row in rows.items():
            self._finish(row, results[slot], reused[slot])
        self.stats["rounds"] += 1
        self.stats["rows"] += len(rows)
        self.stats["seconds"] += time.perf_counter() - started

    def _finish(self, row: Row, completion: Completion, reused: int) -> None:
        usage = Usage(row.prompt, min(reused, row.prompt), completion.usage.generated_tokens)
        for name, value in zip(Usage._fields, usage, strict=True):
            self.stats[name] += value
        samples = self._partial[row.ticket]
        samples[row.sample] = replace(completion, usage=usage)
        if len(samples) == row.request.samples:
            del self._partial[row.ticket]
            whole = with_samples([samples[i] for i in range(len(samples))])
            self._ready.append((row.ticket, whole))

    def _prefill(self, rows: dict[int, Row], reused: dict[int, int]) -> None:
        """Brings the whole prompt of every row into its slot."""
        started = time.perf_counter()
        slots, chunk, context = self.config.slots, self.config.chunk, self.config.context
        tokens = np.zeros((slots, context), np.int32)
        start, end = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
        lora_scale = self._lora_scale(rows)
        for slot, row in rows.items():
            tokens[slot, : len(row.tokens)] = row.tokens
            start[slot], end[slot] = reused[slot], len(row.tokens)
            self._residents.hold(slot, row.prefixes)
        while (start < end).any():
            at = start[:, None] + np.arange(chunk, dtype=np.int32)
            valid = at < end[:, None]
            block = np.take_along_axis(tokens, np.minimum(at, context - 1), axis=1)
            at_start = np.where(valid[:, 0], start, 0).astype(np.int32)
            self._run_prefill(np.where(valid, block, 0), at_start, valid, lora_scale)
            start = np.minimum(start + chunk, end)
        self._last.block_until_ready()
        self.stats["prefill_seconds"] += time.perf_counter() - started

    def _lora_scale(self, rows: dict[int, Row]) -> np.ndarray:
        scale = np.zeros(self.config.slots, np.float32)
        for slot, row in rows.items():
            scale[slot] = row.lora_scale
        return scale

    def _run_prefill(self, tokens, start, valid, lora_scale) -> jax.Array:
        self._cache, hidden, self._last = self._programs.prefill(
            self._programs.leaves, self._cache, self._last, tokens, start, valid, lora_scale
        )
        self.stats["prefill_calls"] += 1
        return hidden

    # --- closed sets --------------------------------------------------------------------

    def _score(self, rows: dict[int, Row]) -> dict[int, Completion]:
        """Completions of rows whose prompt and shared answer prefix have been prefilled."""
        if not rows:
            return {}
        started = time.perf_counter()
        config, programs = self.config, self._programs
        ids = np.zeros((config.slots, config.edges), np.int32)
        for slot, row in rows.items():
            firsts = [suffix[0] for suffix in row.closed.suffixes]
            ids[slot, : len(firsts)] = firsts
        logprobs = np.asarray(programs.closed_set(programs.leaves, self._last, ids), np.float64)
        totals = {s: logprobs[s, : len(row.closed.suffixes)].copy() for s, row in rows.items()}
        longer = {s: row for s, row in rows.items() if not row.closed.single}
        for number in range(max((len(r.closed.suffixes) for r in longer.values()), default=0)):
            self._score_suffix(longer, number, totals)
        results = {}
        for slot, row in rows.items():
            p = np.exp(totals[slot] - totals[slot].max())
            p /= p.sum()
            request = row.request
            choice = draw_alternative(p, request.temperature, request.top_p, uniform(row.key))
            results[slot] = Completion(
                request.answer[0][choice],
                choices=(choice,),
                choice_probabilities=(tuple(float(value) for value in p),),
            )
        self.stats["score_seconds"] += time.perf_counter() - started
        return results

    def _score_suffix(self, rows: dict[int, Row], number: int, totals: dict) -> None:
        """Adds to `totals[slot][number]` what follows the first token of alternative
        `number`."""
        slots, chunk = self.config.slots, self.config.chunk
        suffixes = {
            slot: row.closed.suffixes[number]
            for slot, row in rows.items()
            if number < len(row.closed.suffixes)
        }
        for offset in range(0, max((len(s) - 1 for s in suffixes.values()), default=0), chunk):
            tokens, targets = np.zeros((2, slots, chunk), np.int32)
            start, valid = np.zeros(slots, np.int32), np.zeros((slots, chunk), bool)
            for slot, suffix in suffixes.items():
                given = suffix[offset:-1][:chunk]
                tokens[slot, : len(given)] = given
                targets[slot, : len(given)] = suffix[offset + 1 :][:chunk]
                valid[slot, : len(given)] = True
                start[slot] = len(rows[slot].tokens) + offset if given else 0
            hidden = self._run_prefill(tokens, start, valid, self._lora_scale(rows))
            steps = np.int32(valid.sum(axis=1).max())
            found = self._programs.sequence(self._programs.leaves, hidden, targets, steps)
            added = np.where(valid, np.asarray(found, np.float64), 0.0).sum(axis=1)
            for slot in suffixes:
                totals[slot][number] += added[slot]

    # --- decoding -----------------------------------------------------------------------

    def _decode(self, rows: dict[int, Row]) -> dict[int, Completion]:
        if not rows:
            return {}
        started = time.perf_counter()
        if any(row.reasoning for row in rows.values()) and not self._lines_known:
            self._learn_lines()
        slots, programs = self.config.slots, self._programs
        integers = {name: np.zeros(slots, np.int32) for name in Rows._fields[:6]}
        active, keys = np.zeros(slots, bool), np.zeros((slots, 2), np.uint32)
        temperature, top_p = np.zeros(slots, np.float32), np.ones(slots, np.float32)
        tables = self._bank_of([row.automaton for row in rows.values()])
        for slot, row in rows.items():
            integers["start"][slot] = len(row.tokens)
            integers["table"][slot] = self._bank[id(row.automaton)][0]
            integers["state"][slot] = row.automaton.start
            integers["reasoning"][slot] = row.reasoning
            integers["limit"][slot] = row.limit
            active[slot], keys[slot] = True, key_words(row.key)
            temperature[slot], top_p[slot] = row.request.temperature, row.request.top_p
        integers["active"] = active
        arguments = Rows(
            **integers,
            temperature=temperature,
            top_p=top_p,
            lora_scale=self._lora_scale(rows),
            key=keys,
        )
        self._cache, out = programs.decode(
            programs.leaves, self._cache, self._last, arguments, tables, self._vocabulary
        )
        decoded = Decoded(*(np.asarray(value) for value in out))
        self.stats["decode_seconds"] += time.perf_counter() - started
        self.stats["decode_steps"] += int(decoded.count[list(rows)].max())
        results, again = {}, {}
        for slot, row in rows.items():
            try:
                outcome = self._read(row, decoded, slot)
            except Exception as error:  # this row's failure, no other's
                outcome = _failure(error)
            (again if isinstance(outcome, Row) else results)[slot] = outcome
        if again:
            self._prefill(again, {s: self._chunks_of(rows[s]) for s in again})
            for slot, scored in self._score(again).items():
                results[slot] = self._after_reasoning(
                    rows[slot], again[slot], scored, decoded, slot
                )
        return results

    def _chunks_of(self, row: Row) -> int:
        return len(row.prefixes) * self.config.chunk

    def _read(self, row: Row, decoded: Decoded, slot: int) -> Completion | Row:
        """A decoded row's completion, or the row to score next where it only reasoned."""
        count = int(decoded.count[slot])
        tokens = decoded.token[slot, :count]
        finished = bool(decoded.final[slot] == ACCEPT)
        choices, probabilities, begin = (), (), count - finished
        if row.request.answer:
            choices, probabilities, begin = row.automaton.read(
                decoded.state[slot, :count],
                decoded.edge[slot, :count],
                decoded.edge_logprobs[slot, :count],
            )
        if row.closed:
            return self._prepare.with_reasoning(row, tokens[:begin])
        answer = "\n".join(
            alternatives[choice]
            for alternatives, choice in zip(row.request.answer, choices, strict=True)
        )
        return Completion(
            self._tokenizer.decode(tokens[:begin].tolist()) + answer,
            choices=choices,
            choice_probabilities=probabilities,
            tokens=tuple(tokens.tolist()),
            logprobs=tuple(decoded.logprob[slot, :count].tolist()),
            finish_reason="stop" if finished else "length",
            usage=Usage(generated_tokens=count),
        )

    def _after_reasoning(self, row, extended, scored, decoded, slot) -> Completion:
        """A scored completion with its reasoning in front; tokens and logprobs are those of the
        reasoning (the alternative was drawn from its distribution, not generated)."""
        count = len(extended.tokens) - len(row.tokens) - len(extended.closed.prefix)
        tokens = decoded.token[slot, :count].tolist()
        return Completion(
            self._tokenizer.decode(tokens) + scored.text,
            choices=scored.choices,
            choice_probabilities=scored.choice_probabilities,
            tokens=tuple(tokens),
            logprobs=tuple(decoded.logprob[slot, :count].tolist()),
            usage=Usage(generated_tokens=int(decoded.count[slot])),
        )

    def _bank_of(self, automata: list[Automaton]) -> Tables:
        """The device's tables, holding at least these automata."""
        wanted = {id(a): a for a in automata}
        new = {key: a for key, a in wanted.items() if key not in self._bank}
        if new or self._tables is None:
            if len(self._bank) + len(new) > self.config.slots:
                self._bank, new = {}, wanted
            for key, automaton in new.items():
                self._bank[key] = (len(self._bank), automaton)
            held = [automaton for _, automaton in self._bank.values()]
            held += [held[0]] * (self.config.slots - len(held))
            self._tables = Tables(
                *(
                    jax.device_put(np.stack([getattr(a, name) for a in held]))
                    for name in Tables._fields
                )
            )
        return self._tables

    def _learn_lines(self) -> None:
        """Which tokens end a line; needed once, and only by free reasoning before an answer."""
        ends = np.zeros_like(self._vocabulary.ends_line)
        for token in range(self._tokenizer.vocab_size):
            ends[token] = self._tokenizer.decode([token]).endswith("\n")
        self._vocabulary = self._vocabulary._replace(ends_line=ends)
        self._lines_known = True


def _failure(error: Exception) -> Completion:
    return Completion("", finish_reason="error", error=f"{type(error).__name__}: {error}")
