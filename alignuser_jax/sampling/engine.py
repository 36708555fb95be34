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
from alignuser_jax.sampling.pack import pack_prompts, pack_replies, pack_suffixes
from alignuser_jax.sampling.prepare import Preparation, Row
from alignuser_jax.sampling.programs import Decoded, Programs, Tables, Vocabulary
from alignuser_jax.sampling.residents import Residents
from alignuser_jax.sampling.sample import draw_alternative, uniform
from alignuser_jax.sampling.scripted import with_samples


@dataclass(frozen=True)
class EngineConfig:
    """The geometry: results are bitwise the same only under the same one (it belongs into a
    run's manifest). `states` and `edges` bound an answer's automaton, `reply` its tokens.
    `group` rows are computed at a time: more for a device that is not full with `group` chunks
    of prefill, fewer waste less where few rows have work."""

    slots: int = 64
    context: int = 1024
    chunk: int = 32
    reply: int = 512
    states: int = 256
    edges: int = 32
    group: int = 8

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
        ends = sorted({tokenizer.eot_id, *decoder.config.eos_token_ids})
        self._programs = Programs(decoder, ends=ends, reply=config.reply)
        self._prepare = Preparation(
            tokenizer,
            adapters=[name for name, _ in decoder.adapters],
            ends=ends,
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
        for slot, row in rows.items():
            self._residents.hold(slot, row.prefixes)
        sizes = {"chunk": self.config.chunk, "group": self.config.group}
        for chunks, ends, groups in pack_prompts(rows, reused, **sizes):
            self._cache, self._last = self._programs.prefill(
                self._programs.leaves, self._cache, self._last, chunks, ends, groups
            )
            self.stats["prefill_groups"] += int(groups[0])
        self._last.block_until_ready()
        self.stats["prefill_seconds"] += time.perf_counter() - started

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
            for slots, group in pack_suffixes(longer, number, group=config.group):
                self._cache, found = programs.suffix(programs.leaves, self._cache, group)
                found = np.asarray(found, np.float64)
                for slot, count, values in zip(slots, group.count, found, strict=False):
                    totals[slot][number] += values[:count].sum()
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

    # --- decoding -----------------------------------------------------------------------

    def _decode(self, rows: dict[int, Row]) -> dict[int, Completion]:
        if not rows:
            return {}
        started = time.perf_counter()
        if any(row.reasoning for row in rows.values()) and not self._lines_known:
            self._learn_lines()
        programs, results, again = self._programs, {}, {}
        tables = self._bank_of([row.automaton for row in rows.values()])
        places = {slot: self._bank[id(row.automaton)][0] for slot, row in rows.items()}
        replies: dict[int, Decoded] = {}
        for slots, group in pack_replies(rows, places, group=self.config.group):
            self._cache, out, steps = programs.decode(
                programs.leaves, self._cache, self._last, group, tables, self._vocabulary
            )
            whole = [np.asarray(values) for values in out]
            for i, slot in enumerate(slots):
                replies[slot] = Decoded(*(values[i] for values in whole))
            self.stats["decode_steps"] += int(steps)
        self.stats["decode_seconds"] += time.perf_counter() - started
        for slot, row in rows.items():
            try:
                outcome = self._read(row, replies[slot])
            except Exception as error:  # this row's failure, no other's
                outcome = _failure(error)
            (again if isinstance(outcome, Row) else results)[slot] = outcome
        if again:
            self._prefill(again, {s: self._chunks_of(rows[s]) for s in again})
            for slot, scored in self._score(again).items():
                results[slot] = self._after_reasoning(
                    rows[slot], again[slot], scored, replies[slot]
                )
        return results

    def _chunks_of(self, row: Row) -> int:
        return len(row.prefixes) * self.config.chunk

    def _read(self, row: Row, decoded: Decoded) -> Completion | Row:
        """A decoded row's completion, or the row to score next where it only reasoned."""
        count = int(decoded.count)
        tokens = decoded.token[:count]
        finished = bool(decoded.final == ACCEPT)
        choices, probabilities, begin = (), (), count - finished
        if row.request.answer:
            choices, probabilities, begin = row.automaton.read(
                decoded.state[:count], decoded.edge[:count], decoded.edge_logprobs[:count]
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
            logprobs=tuple(decoded.logprob[:count].tolist()),
            finish_reason="stop" if finished else "length",
            usage=Usage(generated_tokens=count),
        )

    def _after_reasoning(self, row, extended, scored, decoded) -> Completion:
        """A scored completion with its reasoning in front; tokens and logprobs are those of the
        reasoning (the alternative was drawn from its distribution, not generated)."""
        count = len(extended.tokens) - len(row.tokens) - len(extended.closed.prefix)
        tokens = decoded.token[:count].tolist()
        return Completion(
            self._tokenizer.decode(tokens) + scored.text,
            choices=scored.choices,
            choice_probabilities=scored.choice_probabilities,
            tokens=tuple(tokens),
            logprobs=tuple(decoded.logprob[:count].tolist()),
            usage=Usage(generated_tokens=int(decoded.count)),
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
