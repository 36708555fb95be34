"""Several engines on one host behind one `Generator`: each has some of the devices for itself.

Which engine answers changes no result (ARCHITECTURE.md decision 7: all have one geometry), so a
conversation goes where it was before and finds its beginning there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax

from alignuser_jax.model import Decoder
from alignuser_jax.parallel import make_mesh
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Request, Ticket
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.engine import Engine

PAUSE_SECONDS = 1.0  # before an engine that raised goes on
REMEMBERED = 1 << 16
"""Conversations of which it is known who had them."""


def make_replicas(
    decoder: Decoder,
    tokenizer: Any,
    config: EngineConfig | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Engine | Replicas:
    """An engine for every `config.tensor` of the (local) devices, its weights spread over them;
    the engine itself where that makes one. Raises `ValueError` where `tensor` does not divide
    the devices or the model's heads."""
    devices = list(jax.local_devices() if devices is None else devices)
    tensor = (config or EngineConfig()).tensor
    if len(devices) % tensor:
        raise ValueError(
            f"tensor={tensor} does not divide the {len(devices)} local devices: choose one "
            "that does"
        )
    if len(devices) == 1:
        return Engine(decoder, tokenizer, config)
    engines = [
        Engine(decoder, tokenizer, config, make_mesh(tensor=tensor, fsdp=1, devices=part))
        for part in (devices[n : n + tensor] for n in range(0, len(devices), tensor))
    ]
    return engines[0] if len(engines) == 1 else Replicas(engines)


class Replicas:
    """Each engine works in a thread of its own until `close`, or until nobody holds this."""

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._inboxes = [queue.SimpleQueue() for _ in self.engines]
        self._of: dict[Ticket, int] = {}
        self._homes: OrderedDict[int, int] = OrderedDict()
        self._tickets, self._closed = 0, False
        for number, engine in enumerate(self.engines):
            arguments = engine, self._inboxes[number], self._done.put
            threading.Thread(target=_work, args=arguments, daemon=True).start()

    def submit(self, request: Request) -> Ticket:
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._of[ticket] = number = self._home(request)
        self._inboxes[number].put((ticket, request))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        number = self._of.pop(ticket, None)
        if number is not None:
            self._inboxes[number].put((ticket, None))

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """As an engine's; what an engine raises comes after what is ready, and the next call
        goes on."""
        ready: list[tuple[Ticket, Completion]] = []
        while self._of and not ready:
            if self._closed:
                raise RuntimeError(f"closed before {len(self._of)} requests were done")
            found = [self._done.get()]
            while not self._done.empty():
                found.append(self._done.get())
            for number, item in enumerate(found):
                if isinstance(item, BaseException):
                    for later in found[number + (not ready) :]:
                        self._done.put(later)
                    if ready:
                        break
                    raise item
                if self._of.pop(item[0], None) is not None:  # else it was cancelled
                    ready.append(item)
        return ready

    @property
    def slots(self) -> int:
        """Rows that are at work at a time."""
        return sum(engine.slots for engine in self.engines)

    @property
    def context(self) -> int:
        """Tokens of a conversation with its reply, at most."""
        return self.engines[0].context

    def warm_up(self) -> None:
        for engine in self.engines:
            engine.warm_up()

    def report(self) -> dict[str, float]:
        """The engines' reports together; shares are means by what they are shares of."""
        reports = [engine.report() for engine in self.engines]
        total = {name: sum(report[name] for report in reports) for name in reports[0]}
        total["saved_share"] = total["cached_tokens"] / max(total["prompt_tokens"], 1)
        hits = sum(report["hit_rate"] * report["rows"] for report in reports)
        total["hit_rate"] = hits / max(total["rows"], 1)
        return total

    @property
    def compilations(self) -> int:
        return sum(engine.compilations for engine in self.engines)

    def close(self) -> None:
        """Ends the threads; what is not done is lost."""
        self._closed = True
        for inbox in self._inboxes:
            inbox.put(None)

    __del__ = close

    def _home(self, request: Request) -> int:
        """Where the conversation was before; a new one goes where least is to be done."""
        key = stable_key(*(m.content for m in request.messages[:2]), request.adapter)
        if key not in self._homes:
            busy = [list(self._of.values()).count(n) for n in range(len(self.engines))]
            self._homes[key] = busy.index(min(busy))
            if len(self._homes) > REMEMBERED:
                self._homes.popitem(last=False)
        self._homes.move_to_end(key)
        return self._homes[key]


def _work(engine: Engine, inbox: queue.SimpleQueue, done: Callable[[Any], None]) -> None:
    """Takes (ticket, request), (ticket, None) to cancel it, or None to end."""
    names: dict[Ticket, Ticket] = {}
    tickets: dict[Ticket, Ticket] = {}
    while True:
        while not names or not inbox.empty():
            item = inbox.get()
            if item is None:
                return
            ticket, request = item
            if request is not None:
                tickets[ticket] = engine.submit(request)
                names[tickets[ticket]] = ticket
            elif ticket in tickets:
                names.pop(tickets[ticket])
                engine.cancel(tickets.pop(ticket))
        try:
            for own, completion in engine.poll():
                ticket = names.pop(own)
                del tickets[ticket]
                done((ticket, completion))
        except Exception as error:
            done(error)
            time.sleep(PAUSE_SECONDS)
