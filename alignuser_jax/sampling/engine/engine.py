"""The engine: batched generation over one decoder, as a `Generator`.

It reuses cached prefixes, keeps replies to their answers, and scores closed sets of
alternatives. Requests wait in a queue and get a slot as soon as one is free. `collect` works in
rounds, each of which reads some of the prompts and decodes some steps of the replies, until a
request is done. A row's result depends on its request and the engine's geometry only, never on
its neighbours, its slot, the round, or what was reused (docs/architecture.md decision 7).
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from jax.sharding import Mesh

from alignuser_jax.language.tokenizer import TextTokenizer
from alignuser_jax.model import Decoder
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Request, Ticket, Usage
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine import replies
from alignuser_jax.sampling.engine.automaton import ACCEPT, Automaton
from alignuser_jax.sampling.engine.decode import Decoded
from alignuser_jax.sampling.engine.device import Device
from alignuser_jax.sampling.engine.pack import DecodingRow, PageCopy, PromptPiece
from alignuser_jax.sampling.engine.pages import PagePool
from alignuser_jax.sampling.engine.prepare import Preparation, Row
from alignuser_jax.sampling.generate import with_samples


@dataclass(eq=False)
class _ActiveRow:
    """A row that has a slot.

    Attributes:
        queued: The row as it was queued.
        row: The same, or with its reasoning in the prompt once that is decoded.
        slot: Its slot.
        pages: Its pages of the cache.
        read: Tokens of its prompt that are in the cache.
        reused: Tokens of its prompt that were there when it came.
        place: The place of its automaton on the device.
        leader: Another sample of the same request, which reads the prompt for both.
        state: The automaton's state.
        length: How many tokens are decoded.
        calls: What each decode call added.
        reasoned: The decoded reasoning that has become part of the prompt.
    """

    queued: Row
    row: Row
    slot: int
    pages: list[int]
    read: int
    reused: int
    place: int
    leader: _ActiveRow | None = None
    state: int = 0
    length: int = 0
    calls: list[Decoded[np.ndarray]] = field(default_factory=list)
    reasoned: Decoded[np.ndarray] | None = None

    @property
    def reading(self) -> bool:
        """Whether some of the prompt is still to be read."""
        return self.read < len(self.row.tokens)


class Engine:
    """A decoder that answers requests, many at a time.

    It compiles at most six programs, or five and two for each length of a strip, whatever the
    requests are.

    Args:
        decoder: The model. The engine copies its weights, so that the caller can delete it.
        tokenizer: The model's tokenizer.
        config: The engine's geometry; the default is that of `EngineConfig()`.
        mesh: The devices over whose axis "tensor" weights and cache are spread.

    Attributes:
        config: The engine's geometry.
        stats: Counts and seconds of everything done so far; `report` summarises them.

    Raises:
        ValueError: The tokenizer has more ids than the decoder.

    Example:
        >>> from alignuser_jax.language import TextTokenizer
        >>> from alignuser_jax.model import load_decoder
        >>> from alignuser_jax.records import Message
        >>> from alignuser_jax.sampling import generate
        >>> decoder = load_decoder("weights/qwen3-0.6b")
        >>> tokenizer = TextTokenizer.load("weights/qwen3-0.6b")
        >>> engine = Engine(decoder, tokenizer, EngineConfig(slots=8, context=512))
        >>> request = Request(
        ...     (Message.of("user", "Rate the film: a quiet drama of 1999."),),
        ...     "rate",
        ...     answer=(("RATING: 1", "RATING: 2", "RATING: 3"),),
        ...     scored=True,
        ... )
        >>> (completion,) = generate(engine, [request])
        >>> completion.text, completion.choice_probabilities
        ('RATING: 2', ((0.11, 0.62, 0.27),))
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextTokenizer,
        config: EngineConfig | None = None,
        mesh: Mesh | None = None,
    ):
        self.config = config = config or EngineConfig()
        if tokenizer.vocab_size > decoder.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, and the decoder only "
                f"{decoder.config.vocab_size}: they do not belong together"
            )
        self._tokenizer = tokenizer
        end_ids = sorted({tokenizer.eot_id, *decoder.config.eos_token_ids})
        self._device = Device(decoder, tokenizer, config, end_ids, mesh)
        self._prepare = Preparation(
            tokenizer,
            config,
            adapters=[name for name, _ in decoder.adapters],
            end_ids=end_ids,
            model=f"{stable_key(decoder.config, decoder.adapters):x}",
        )
        self._pool = PagePool(config.all_pages)
        # a heap: rows with the longest cached prefix first
        self._queue: list[tuple[int, int, Row]] = []
        self._slots = list(reversed(range(config.slots)))
        self._active: dict[int, _ActiveRow] = {}  # by slot, in the order of admission
        self._leaders: dict[Ticket, _ActiveRow] = {}
        self._tickets = self._queued = 0
        self._ready: list[tuple[Ticket, Completion]] = []
        self._partial: dict[Ticket, dict[int, Completion]] = {}
        self._deadlines: dict[Ticket, tuple[float, float]] = {}
        self._spoilt = False  # some page may hold numbers that are not finite
        # pages of rows that left before their numbers were known to be finite
        self._unchecked: set[int] = set()
        self.stats: dict[str, float] = defaultdict(float)

    @property
    def compilations(self) -> int:
        """How many programs were compiled."""
        return self._device.programs.compilations

    @property
    def slots(self) -> int:
        """Rows that are in work at the same time."""
        return self.config.slots

    @property
    def context(self) -> int:
        """The most tokens of a conversation with its reply."""
        return self.config.context

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, on all devices of the mesh together."""
        return self._device.cache_bytes

    def warm_up(self) -> None:
        """Compile every program that a request may need."""
        self._device.compile_all()

    # --- Generator ----------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Queue a request; one that cannot be run comes back from `collect` as an error."""
        ticket, self._tickets = self._tickets, self._tickets + 1
        with self._timed("prepare"):
            try:
                rows = self._prepare.rows(ticket, request)
            except Exception as error:  # this request's failure, no other's
                self._ready.append((ticket, replies.failed(error)))
                return ticket
            self._partial[ticket] = {}
            if limit := request.timeout_seconds:
                self._deadlines[ticket] = time.monotonic() + limit, limit
            self._enqueue(rows)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; its completion will not come."""
        self._ready = [entry for entry in self._ready if entry[0] != ticket]
        self._forget(ticket)

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Work until some request is done; return what is done, [] if nothing is in work."""
        ready = self.poll()
        while not ready and self._partial:
            ready = self.poll()
        return ready

    def poll(self) -> list[tuple[Ticket, Completion]]:
        """Return what is done after at most one round: `collect` without waiting."""
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
        """Return what was done so far.

        Rows and tokens; `read_tokens`, those that prefill has read, which are the prompt tokens
        without the cached ones and what scoring has put behind them; `saved_share`, the share
        of prompt tokens that was reused; `hit_rate`, the share of rows with a cached prefix;
        pages and bytes of the cache; seconds of each part.
        """
        s = self.stats
        parts = {part: s[f"{part}_seconds"] for part in ("prefill", "score", "decode")}
        seconds = s["seconds"] + s["prepare_seconds"]
        return {
            **{name: s[name] for name in ("rows", *Usage._fields, "read_tokens")},
            "saved_share": s["cached_tokens"] / max(s["prompt_tokens"], 1),
            "hit_rate": s["hits"] / max(s["rows"], 1),
            "evicted_pages": self._pool.evicted,
            "resident_pages": self._pool.resident,
            "cache_bytes": self.cache_bytes,
            "seconds": seconds,
            **{f"{part}_seconds": spent for part, spent in parts.items()},
            "host_seconds": seconds - sum(parts.values()),
        }

    # --- one round ------------------------------------------------------------------------

    def _round(self) -> None:
        self._expire()
        self._admit()
        self._read_prompts()
        ready = [work for work in self._active.values() if not work.reading and not work.leader]
        for work in ready:
            if work.row.ticket not in self._partial:  # cancelled, but others needed its pages
                self._unchecked.update(work.pages)
                self._drop(work)
        ready = [work for work in ready if work.slot in self._active]
        self._score([work for work in ready if work.row.automaton is None])
        self._decode([(work, work.row.automaton) for work in ready if work.row.automaton])
        self.stats["rounds"] += 1
        if self._spoilt:
            self._start_over()

    def _enqueue(self, rows: list[Row]) -> None:
        """Queue rows; those with a longer cached prefix go first, then those that came first.

        Otherwise sessions under way would lose their pages to new ones.
        """
        cached = self._pool.cached_prefix(rows[0].prefixes) if self.config.reuse else 0
        for row in rows:
            heapq.heappush(self._queue, (-cached, self._queued, row))
            self._queued += 1

    def _admit(self) -> None:
        """Give queued rows slots and pages, as long as there are any."""
        while self._queue and self._slots:
            row = self._queue[0][2]
            names = row.prefixes if self.config.reuse else ()
            allocation = self._pool.allocate(names, -(-row.most_positions // self.config.chunk))
            if allocation is None:
                if not self._active:
                    raise RuntimeError(
                        f"no pages for a row of {row.most_positions} tokens although no other "
                        "row has any: this is a mistake in the engine, please report it"
                    )
                return
            pages, cached = allocation
            place = self._device.automata.acquire(row.automaton) if row.automaton else 0
            heapq.heappop(
                self._queue
            )  # only now: an exception above leaves the row in the queue
            slot = self._slots.pop()
            read = cached * self.config.chunk
            reused = min(read, row.prompt_length)
            work = _ActiveRow(row, row, slot, pages, read, reused, place)
            work.state = row.automaton.start if row.automaton else ACCEPT
            self._active[slot] = work
            self._device.block_table[slot] = 0
            self._device.block_table[slot, : len(pages)] = pages
            if unclean := self._unchecked.intersection(pages[cached:]):
                self._device.copy([PageCopy(slot, slot, 0, page) for page in sorted(unclean)])
                self._unchecked -= unclean
            if row.request.samples > 1 and self.config.reuse:
                work.leader = self._leaders.get(row.ticket)
                if work.leader:
                    work.reused = row.prompt_length
                else:
                    self._leaders[row.ticket] = work

    def _read_prompts(self) -> None:
        """Read pieces of prompts, and give followers what their leaders have read.

        Pieces go in the order of admission, so that a row comes after the row that fills the
        pages they share.
        """
        with self._timed("prefill"):
            chunk, pieces = self.config.chunk, list[PromptPiece]()
            room = self.config.calls * self.config.chunk_group
            for work in self._active.values():
                if work.leader is None and work.reading and len(pieces) < room:
                    starts = range(work.read, len(work.row.tokens), chunk)[: room - len(pieces)]
                    pieces += [PromptPiece(work.slot, work.row, start) for start in starts]
                    before, work.read = work.read, min(starts[-1] + chunk, len(work.row.tokens))
                    self.stats["read_tokens"] += work.read - before
            if not pieces:
                return
            self.stats["prefill_groups"] += self._device.read_prompts(pieces)
            copies = []
            for work in self._active.values():
                leader = work.leader
                if leader is not None and not leader.reading:
                    last = (len(work.row.tokens) - 1) // chunk
                    pair = leader.pages[last], work.pages[last]
                    copies.append(PageCopy(leader.slot, work.slot, *pair))
                    work.read, work.leader = leader.read, None
            self._leaders = {t: work for t, work in self._leaders.items() if work.reading}
            self._device.copy(copies)
            self._device.wait()

    def _score(self, ready: list[_ActiveRow]) -> None:
        rows = {work.slot: (work.row, work.row.closed) for work in ready if work.row.closed}
        if not rows:
            return
        with self._timed("score"):
            totals = self._device.score(rows)
            for work in ready:
                row, closed = rows[work.slot]
                completion = replies.from_scores(row, totals[work.slot])
                if work.reasoned is not None:
                    reasoning = row.tokens[row.prompt_length :]
                    reasoning = reasoning[: len(reasoning) - len(closed.prefix)]
                    completion = replies.after_reasoning(
                        completion, reasoning, work.reasoned, self._tokenizer
                    )
                self._finish(work, completion)

    def _decode(self, ready: list[tuple[_ActiveRow, Automaton]]) -> None:
        if not ready:
            return
        with self._timed("decode"):
            rows = [
                DecodingRow(
                    *(w.slot, w.row, automaton, w.place, w.state, w.length),
                    replies.written(w.row, w.calls),
                )
                for w, automaton in ready
            ]
            decoded, steps = self._device.decode(rows)
            self.stats["decode_steps"] += steps
            for work, automaton in ready:
                added = decoded[work.slot]
                work.calls.append(added)
                work.state = int(added.final)
                work.length += int(added.length)
                self._after_steps(work, automaton)

    def _after_steps(self, work: _ActiveRow, automaton: Automaton) -> None:
        """Finish a row that has come to its end, or let its answer be scored next."""
        row = work.row
        ended = work.state == ACCEPT or work.length >= row.limit
        if not ended and not row.request.stop:
            return
        decoded = replies.join_calls(work.calls)
        try:
            completion = replies.at_stop(row, decoded, self._tokenizer)
            if completion is None and ended:
                if row.closed:
                    self._score_next(work, automaton, decoded)
                    return
                completion = replies.from_decoded(row, automaton, decoded, self._tokenizer)
        except Exception as error:  # this row's failure, no other's
            completion = replies.failed(error)
        if completion is not None:
            self._finish(work, completion)

    def _score_next(
        self, work: _ActiveRow, automaton: Automaton, decoded: Decoded[np.ndarray]
    ) -> None:
        """Make the reasoning part of the prompt, which is then read as prompts are.

        Reading starts again after the whole pages of the first prompt.
        """
        row, chunk = work.row, self.config.chunk
        reasoning = replies.reasoning_of(automaton, decoded)
        self._device.automata.release(automaton)
        work.row, work.reasoned = self._prepare.with_reasoning(row, reasoning), decoded
        work.read = len(row.prefixes) * chunk
        work.calls = []

    def _finish(self, work: _ActiveRow, completion: Completion) -> None:
        row = work.row
        if not replies.is_finite(completion):
            self._spoilt = True  # others may read what it wrote, so no page is kept
            problem = "the model's numbers are not finite: check its weights and its dtype"
            completion = replies.failed(FloatingPointError(problem))
        usage = Usage(row.prompt_length, work.reused, completion.usage.generated_tokens)
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

    # --- rows that leave -----------------------------------------------------------------

    def _drop(self, work: _ActiveRow) -> None:
        """Take back a row's slot, pages and automaton."""
        del self._active[work.slot]
        self._slots.append(work.slot)
        self._pool.release(work.pages)
        if work.row.automaton:
            self._device.automata.release(work.row.automaton)

    def _forget(self, ticket: Ticket) -> None:
        """Remove a request, but go on reading pages for which other rows wait."""
        if self._partial.pop(ticket, None) is None:
            return
        self._deadlines.pop(ticket, None)
        self._leaders.pop(ticket, None)
        if any(row.ticket == ticket for *_, row in self._queue):
            self._queue = [entry for entry in self._queue if entry[2].ticket != ticket]
            heapq.heapify(self._queue)
        rows = [work for work in self._active.values() if work.row.ticket == ticket]
        for work in sorted(rows, key=lambda work: work.leader is None):
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
                self._ready.append((ticket, replies.failed(error)))

    def _start_over(self) -> None:
        """Give up all pages; rows in work go back into the queue, in front of others."""
        for work in self._active.values():
            if work.row.ticket in self._partial:
                heapq.heappush(self._queue, (-self.config.row_pages, self._queued, work.queued))
                self._queued += 1
        self._active.clear()
        self._leaders.clear()
        self._slots = list(reversed(range(self.config.slots)))
        self._device.clear()
        self._device.automata.clear()
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
