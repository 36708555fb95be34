"""Several engines on one host behind one `Generator`, each with devices of its own.

Which engine answers changes no result, since all have one geometry (docs/architecture.md
decision 7). So a conversation goes to the engine that had it before, whose cache holds its
prefix.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from alignuser_jax.language.tokenizer import TextTokenizer
from alignuser_jax.model import Decoder
from alignuser_jax.parallel import make_mesh
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Request, Ticket
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.engine import Engine

PAUSE_SECONDS = 1.0
"""How long an engine pauses after it has raised an exception."""

BEGINNING_CHARACTERS = 500
"""Characters of the second message by which a conversation is known: a persona, ratings."""

CONVERSATIONS_REMEMBERED = 1 << 16
"""Conversations whose engine is remembered."""

_Order = tuple[Ticket, Request | None]
"""A request for an engine; without the request, cancel it."""

_Outcome = tuple[Ticket, Completion] | Exception
"""What an engine has done, or the exception that it raised."""


def make_replicas(
    decoder: Decoder,
    tokenizer: TextTokenizer,
    config: EngineConfig | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Engine | Replicas:
    """Make an engine for every `config.tensor` of the devices, its weights spread over them.

    Args:
        decoder: The model.
        tokenizer: Its tokenizer.
        config: The geometry of each engine.
        devices: The devices to use; by default all local ones.

    Returns:
        The replicas, or the engine itself if there is only one.

    Raises:
        ValueError: `config.tensor` does not divide the number of devices, or the model's heads.

    Example:
        >>> from alignuser_jax.language import TextTokenizer
        >>> from alignuser_jax.model import load_decoder
        >>> decoder = load_decoder("weights/qwen3-8b")
        >>> tokenizer = TextTokenizer.load("weights/qwen3-8b")
        >>> engine = make_replicas(decoder, tokenizer, EngineConfig(tensor=2))  # 8 devices
        >>> engine.slots  # of 4 engines
        256
    """
    devices = list(jax.local_devices() if devices is None else devices)
    tensor = (config or EngineConfig()).tensor
    if len(devices) % tensor:
        raise ValueError(
            f"tensor={tensor} does not divide the {len(devices)} local devices: choose a "
            "number that does (EngineConfig.tensor)"
        )
    if len(devices) == 1:
        return Engine(decoder, tokenizer, config)
    engines = [
        Engine(decoder, tokenizer, config, make_mesh(tensor=tensor, fsdp=1, devices=part))
        for part in (devices[n : n + tensor] for n in range(0, len(devices), tensor))
    ]
    return engines[0] if len(engines) == 1 else Replicas(engines)


class Replicas:
    """Engines that each work in a thread of their own.

    The threads end with `close`, or when nothing refers to this object any more.

    Args:
        engines: The engines; all must have one geometry.

    Attributes:
        engines: The engines.
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self._done: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        self._inboxes: list[queue.SimpleQueue[_Order | None]] = [
            queue.SimpleQueue() for _ in self.engines
        ]
        self._engine_of: dict[Ticket, int] = {}
        self._homes: OrderedDict[int, int] = OrderedDict()
        self._tickets, self._closed = 0, False
        for number, engine in enumerate(self.engines):
            arguments = engine, self._inboxes[number], self._done.put
            threading.Thread(target=_work, args=arguments, daemon=True).start()

    def submit(self, request: Request) -> Ticket:
        """Queue a request at the engine that had its conversation, or at the least busy one."""
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._engine_of[ticket] = number = self._home(request)
        self._inboxes[number].put((ticket, request))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; its completion will not come."""
        number = self._engine_of.pop(ticket, None)
        if number is not None:
            self._inboxes[number].put((ticket, None))

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Wait until some request is done; return what is done, [] if nothing is in work.

        An exception of an engine is raised after everything that was done before it has been
        returned; the next call goes on.
        """
        ready: list[tuple[Ticket, Completion]] = []
        while self._engine_of and not ready:
            if self._closed:
                raise RuntimeError(f"closed before {len(self._engine_of)} requests were done")
            items = [self._done.get()]
            while not self._done.empty():
                items.append(self._done.get())
            for number, item in enumerate(items):
                if isinstance(item, BaseException):
                    for later in items[number + (not ready) :]:
                        self._done.put(later)
                    if ready:
                        break
                    raise item
                if self._engine_of.pop(item[0], None) is not None:  # else it was cancelled
                    ready.append(item)
        return ready

    @property
    def slots(self) -> int:
        """Rows that are in work at the same time, in all engines together."""
        return sum(engine.slots for engine in self.engines)

    @property
    def context(self) -> int:
        """The most tokens of a conversation with its reply."""
        return self.engines[0].context

    def warm_up(self) -> None:
        """Compile every program that a request may need."""
        with ThreadPoolExecutor(len(self.engines)) as threads:
            list(threads.map(Engine.warm_up, self.engines))

    def report(self) -> dict[str, float]:
        """Return the sum of the engines' reports; the shares are those of the sums."""
        reports = [engine.report() for engine in self.engines]
        total = {name: sum(report[name] for report in reports) for name in reports[0]}
        total["saved_share"] = total["cached_tokens"] / max(total["prompt_tokens"], 1)
        hits = sum(report["hit_rate"] * report["rows"] for report in reports)
        total["hit_rate"] = hits / max(total["rows"], 1)
        return total

    @property
    def compilations(self) -> int:
        """How many programs were compiled."""
        return sum(engine.compilations for engine in self.engines)

    def close(self) -> None:
        """End the threads; requests that are not done are lost."""
        self._closed = True
        for inbox in self._inboxes:
            inbox.put(None)

    __del__ = close

    def _home(self, request: Request) -> int:
        """Return the engine that had the conversation; for a new one the least busy engine.

        Conversations that begin alike, as those about one user do, count as one: they share
        pages of the cache.
        """
        system, *first = (message.content for message in request.messages[:2])
        beginning = [text[:BEGINNING_CHARACTERS] for text in first]
        key = stable_key(system, *beginning, request.adapter)
        if key not in self._homes:
            busy = [list(self._engine_of.values()).count(n) for n in range(len(self.engines))]
            self._homes[key] = busy.index(min(busy))
            if len(self._homes) > CONVERSATIONS_REMEMBERED:
                self._homes.popitem(last=False)
        self._homes.move_to_end(key)
        return self._homes[key]


def _work(
    engine: Engine,
    inbox: queue.SimpleQueue[_Order | None],
    done: Callable[[_Outcome], None],
) -> None:
    """Run one engine until `None` comes into its inbox."""
    outer: dict[Ticket, Ticket] = {}  # the replicas' tickets by the engine's
    inner: dict[Ticket, Ticket] = {}  # the engine's tickets by the replicas'
    while True:
        while not outer or not inbox.empty():
            item = inbox.get()
            if item is None:
                return
            ticket, request = item
            if request is not None:
                inner[ticket] = engine.submit(request)
                outer[inner[ticket]] = ticket
            elif ticket in inner:
                outer.pop(inner[ticket])
                engine.cancel(inner.pop(ticket))
        try:
            for own, completion in engine.poll():
                ticket = outer.pop(own)
                del inner[ticket]
                done((ticket, completion))
        except Exception as error:
            done(error)
            time.sleep(PAUSE_SECONDS)
