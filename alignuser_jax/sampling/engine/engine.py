"""Batched generation over one decoder, with prefix reuse, grammars and scoring, as a
`Generator`.

Requests wait in a queue and take a slot as soon as one is free; `collect` works in rounds, each
of which reads some of the prompts and decodes some steps of the replies, until a request is
done. A row's result depends on its request and the engine's geometry only, never on its
neighbours, its slot, the round, or what was reused (ARCHITECTURE.md decision 7).
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from jax.sharding import Mesh

from alignuser_jax.model import Decoder
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Request, Ticket, Usage
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine import replies
from alignuser_jax.sampling.engine.device import Device
from alignuser_jax.sampling.engine.kernels import Decoded
from alignuser_jax.sampling.engine.pages import PagePool
from alignuser_jax.sampling.engine.prepare import Preparation, Row
from alignuser_jax.sampling.generate import with_samples


@dataclass(eq=False)
class _Work:
    """A row that has a slot. Its prompt lies ready up to `read`; while it has a `leader`,
    another sample of the same request, that one reads for both."""

    asked: Row
    row: Row  # `asked`, or with its reasoning in the prompt once that is done
    slot: int
    pages: list[int]
    read: int
    reused: int
    place: int  # of its automaton
    leader: _Work | None = None
    state: int = 0
    count: int = 0
    parts: list[Decoded] = field(default_factory=list)
    reasoned: Decoded | None = None  # the reasoning that has become part of the prompt

    @property
    def reading(self) -> bool:
        return self.read < len(self.row.tokens)


class Engine:
    """A decoder at work. `stats` accumulates what was done, `report` says what it comes to;
    `compilations` counts compiled programs: six, or five and two for each length of a strip,
    at most, whatever is asked.

    `mesh`: the devices over whose axis "tensor" weights and cache are spread."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        config: EngineConfig | None = None,
        mesh: Mesh | None = None,
    ):
        self.config = config = config or EngineConfig()
        if tokenizer.vocab_size > decoder.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the decoder "
                f"{decoder.config.vocab_size}: they do not belong together"
            )
        self._tokenizer = tokenizer
        ends = sorted({tokenizer.eot_id, *decoder.config.eos_token_ids})
        self._device = Device(decoder, tokenizer, config, ends, mesh)
        self._prepare = Preparation(
            tokenizer,
            adapters=[name for name, _ in decoder.adapters],
            ends=ends,
            model=f"{stable_key(decoder.config, decoder.adapters):x}",
            context=config.context,
            chunk=config.chunk,
            pages=config.all_pages,
            states=config.states,
            edges=config.edges,
        )
        self._pool = PagePool(config.all_pages)
        self._queue: list[tuple[int, int, Row]] = []  # a heap: who finds most goes first
        self._slots = list(reversed(range(config.slots)))
        self._work: dict[int, _Work] = {}  # by slot, in the order of admission
        self._leaders: dict[Ticket, _Work] = {}
        self._tickets = self._queued = 0
        self._ready: list[tuple[Ticket, Completion]] = []
        self._partial: dict[Ticket, dict[int, Completion]] = {}
        self._deadlines: dict[Ticket, tuple[float, float]] = {}
        self._spoilt = False
        self._unchecked: set[int] = set()  # pages of rows that left before they were finite
        self.stats: dict[str, float] = defaultdict(float)

    @property
    def compilations(self) -> int:
        return self._device.programs.compilations

    @property
    def slots(self) -> int:
        """Rows that are at work at a time."""
        return self.config.slots

    @property
    def context(self) -> int:
        """Tokens of a conversation with its reply, at most."""
        return self.config.context

    @property
    def cache_bytes(self) -> int:
        """What keys and values take, on all devices of the mesh together."""
        return self._device.cache_bytes

    def warm_up(self) -> None:
        """Compiles everything that any request may need."""
        self._device.compile_all()

    # --- Generator ----------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Queues a request. One that cannot be run comes back from `collect` as an error."""
        ticket, self._tickets = self._tickets, self._tickets + 1
        with self._timed("prepare"):
            try:
                rows = self._prepare.rows(ticket, request)
            except Exception as error:  # this request's failure, no other's
                self._ready.append((ticket, replies.failure(error)))
                return ticket
            self._partial[ticket] = {}
            if limit := request.timeout_seconds:
                self._deadlines[ticket] = time.monotonic() + limit, limit
            self._enqueue(rows)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a request; its completion will not come."""
        self._ready = [entry for entry in self._ready if entry[0] != ticket]
        self._forget(ticket)

    def collect(self) -> list[tuple[Ticket, Completion]]:
        ready = self.poll()
        while not ready and self._partial:
            ready = self.poll()
        return ready

    def poll(self) -> list[tuple[Ticket, Completion]]:
        """What is ready after at most one round: `collect` without waiting."""
        if not self._ready and self._partial:
            try:
                with self._timed(""):
                    self._round()
            except BaseException:  # the device's state is unknown
                self._start_over()
                raise
        ready, self._ready = self._ready, []
        return ready

    def report(self) -> dict[str, float]:
        """What was done so far: rows, prompt tokens and the share of them that was reused, the
        share of rows that found something, generated tokens, pages, seconds of each part."""
        s = self.stats
        parts = {part: s[f"{part}_seconds"] for part in ("prefill", "score", "decode")}
        seconds = s["seconds"] + s["prepare_seconds"]
        return {
            **{name: s[name] for name in ("rows", *Usage._fields)},
            "saved_share": s["cached_tokens"] / max(s["prompt_tokens"], 1),
            "hit_rate": s["hits"] / max(s["rows"], 1),
            "evicted_pages": self._pool.evicted,
            "resident_pages": self._pool.resident,
            "cache_bytes": self.cache_bytes,
            "seconds": seconds,
            **{f"{part}_seconds": spent for part, spent in parts.items()},
            "host_seconds": seconds - sum(parts.values()),
        }

    # --- a round ------------------------------------------------------------------------

    def _round(self) -> None:
        self._expire()
        self._admit()
        self._read_prompts()
        ready = [work for work in self._work.values() if not work.reading and not work.leader]
        for work in ready:
            if work.row.ticket not in self._partial:  # cancelled, but others needed its pages
                self._unchecked.update(work.pages)
                self._drop(work)
        ready = [work for work in ready if work.slot in self._work]
        self._score([work for work in ready if work.row.automaton is None])
        self._decode([work for work in ready if work.row.automaton is not None])
        self.stats["rounds"] += 1
        if self._spoilt:
            self._start_over()

    def _enqueue(self, rows: list[Row]) -> None:
        """Sessions under way go before new ones, whose room they would otherwise lose; else
        first come, first served."""
        found = self._pool.common(rows[0].prefixes) if self.config.reuse else 0
        for row in rows:
            heapq.heappush(self._queue, (-found, self._queued, row))
            self._queued += 1

    def _admit(self) -> None:
        """Gives rows slots and pages, as long as there are any."""
        while self._queue and self._slots:
            row = self._queue[0][2]
            names = row.prefixes if self.config.reuse else ()
            taken = self._pool.take(names, -(-row.needs // self.config.chunk))
            if taken is None:
                if not self._work:
                    raise RuntimeError(
                        f"no room for a row of {row.needs} tokens although none is at work: "
                        "this is a mistake in the engine, please report it"
                    )
                return
            pages, found = taken
            place = self._device.bank.acquire(row.automaton) if row.automaton else 0
            heapq.heappop(self._queue)  # not before: what raises leaves the row where it was
            slot = self._slots.pop()
            read = found * self.config.chunk
            work = _Work(row, row, slot, pages, read, min(read, row.prompt), place)
            work.state = row.automaton.start if row.automaton else 0
            self._work[slot] = work
            self._device.tables[slot] = 0
            self._device.tables[slot, : len(pages)] = pages
            if unclean := self._unchecked.intersection(pages[found:]):
                self._device.copy([(slot, slot, 0, page) for page in sorted(unclean)])
                self._unchecked -= unclean
            if row.request.samples > 1 and self.config.reuse:
                work.leader = self._leaders.get(row.ticket)
                if work.leader:
                    work.reused = row.prompt
                else:
                    self._leaders[row.ticket] = work

    def _read_prompts(self) -> None:
        """Reads pieces in the order of admission, so that whoever shares another's pages comes
        after it; then followers get what their leaders have read."""
        with self._timed("prefill"):
            chunk, pieces = self.config.chunk, []
            room = self.config.calls * self.config.group
            for work in self._work.values():
                if work.leader is None and work.reading and len(pieces) < room:
                    starts = range(work.read, len(work.row.tokens), chunk)[: room - len(pieces)]
                    pieces += [(work.slot, work.row, start) for start in starts]
                    work.read = min(starts[-1] + chunk, len(work.row.tokens))
            if not pieces:
                return
            self.stats["prefill_groups"] += self._device.read_prompts(pieces)
            copies = []
            for work in self._work.values():
                leader = work.leader
                if leader is not None and not leader.reading:
                    last = (len(work.row.tokens) - 1) // chunk
                    pair = leader.pages[last], work.pages[last]
                    copies.append((leader.slot, work.slot, *pair))
                    work.read, work.leader = leader.read, None
            self._leaders = {t: work for t, work in self._leaders.items() if work.reading}
            self._device.copy(copies)
            self._device.wait()

    def _score(self, ready: list[_Work]) -> None:
        if not ready:
            return
        with self._timed("score"):
            totals = self._device.score({work.slot: work.row for work in ready})
            for work in ready:
                completion = replies.scored(work.row, totals[work.slot])
                if work.reasoned is not None:
                    reasoning = work.row.tokens[work.row.prompt :]
                    reasoning = reasoning[: len(reasoning) - len(work.row.closed.prefix)]
                    completion = replies.after_reasoning(
                        completion, reasoning, work.reasoned, self._tokenizer
                    )
                self._finish(work, completion)

    def _decode(self, ready: list[_Work]) -> None:
        if not ready:
            return
        with self._timed("decode"):
            asked = [(w.slot, w.row, w.place, w.state, w.count) for w in ready]
            decoded, steps = self._device.decode(asked)
            self.stats["decode_steps"] += steps
            for work in ready:
                part = decoded[work.slot]
                work.parts.append(part)
                work.state, work.count = int(part.final), work.count + int(part.count)
                self._after_steps(work)

    def _after_steps(self, work: _Work) -> None:
        """Finishes a row that has come to its end, or has its answer scored next."""
        row = work.row
        ended = work.state == 0 or work.count >= row.limit
        if not ended and not row.request.stop:
            return
        decoded = replies.joined(work.parts)
        try:
            completion = replies.stopped(row, decoded, self._tokenizer)
            if completion is None and ended:
                if row.closed:
                    self._score_next(work, decoded)
                    return
                completion = replies.written(row, decoded, self._tokenizer)
        except Exception as error:  # this row's failure, no other's
            completion = replies.failure(error)
        if completion is not None:
            self._finish(work, completion)

    def _score_next(self, work: _Work, decoded: Decoded) -> None:
        """The reasoning becomes part of the prompt; it is read as prompts are, from the last
        page on that the row has for itself."""
        row, chunk = work.row, self.config.chunk
        reasoning = replies.reasoning_of(row, decoded)
        self._device.bank.release(row.automaton)
        work.row, work.reasoned = self._prepare.with_reasoning(row, reasoning), decoded
        work.read = len(row.prefixes) * chunk
        work.parts = []

    def _finish(self, work: _Work, completion: Completion) -> None:
        row = work.row
        if not replies.finite(completion):
            self._spoilt = True  # what it wrote may be read by others: nothing is kept
            problem = "the model gave no finite numbers: its weights or dtype do not hold"
            completion = replies.failure(FloatingPointError(problem))
        usage = Usage(row.prompt, work.reused, completion.usage.generated_tokens)
        for name, value in zip(Usage._fields, usage, strict=True):
            self.stats[name] += value
        self.stats["rows"] += 1
        self.stats["hits"] += work.reused > 0
        self._drop(work)
        samples = self._partial[row.ticket]
        samples[row.sample] = replace(completion, usage=usage)
        if len(samples) == row.request.samples:
            whole = with_samples([samples[i] for i in range(len(samples))])
            self._ready.append((row.ticket, whole))
            del self._partial[row.ticket]
            self._deadlines.pop(row.ticket, None)

    # --- leaving ------------------------------------------------------------------------

    def _drop(self, work: _Work) -> None:
        """Takes a row's slot and pages back."""
        del self._work[work.slot]
        self._slots.append(work.slot)
        self._pool.release(work.pages)
        if work.row.automaton:
            self._device.bank.release(work.row.automaton)

    def _forget(self, ticket: Ticket) -> None:
        """Nothing of a request stays, but pages that others wait for are still read."""
        if self._partial.pop(ticket, None) is None:
            return
        self._deadlines.pop(ticket, None)
        self._leaders.pop(ticket, None)
        if any(row.ticket == ticket for *_, row in self._queue):
            self._queue = [entry for entry in self._queue if entry[2].ticket != ticket]
            heapq.heapify(self._queue)
        mine = [work for work in self._work.values() if work.row.ticket == ticket]
        for work in sorted(mine, key=lambda work: work.leader is None):
            unread = work.pages[work.read // self.config.chunk : len(work.row.prefixes)]
            if work.leader is None and work.reading and work.reasoned is None:
                if any(map(self._pool.shared, unread)):
                    continue
                self._pool.forget(unread)
            self._unchecked.update(work.pages)
            self._drop(work)

    def _expire(self) -> None:
        now = time.monotonic()
        for ticket, (deadline, limit) in list(self._deadlines.items()):
            if now >= deadline:
                error = TimeoutError(f"not done {limit} s after it was submitted")
                self._forget(ticket)
                self._ready.append((ticket, replies.failure(error)))

    def _start_over(self) -> None:
        """All pages are lost; rows at work go back to where they came from."""
        for work in self._work.values():
            if work.row.ticket in self._partial:
                heapq.heappush(self._queue, (-self.config.row_pages, self._queued, work.asked))
                self._queued += 1
        self._work.clear()
        self._leaders.clear()
        self._slots = list(reversed(range(self.config.slots)))
        self._device.clear()
        self._device.bank.clear()
        self._pool.clear()
        self._unchecked.clear()
        self._spoilt = False

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            name = f"{part}_seconds" if part else "seconds"
            self.stats[name] += time.perf_counter() - started
