"""List the evaluation protocols and run some of them on a subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignuser_jax.evaluation import next_state, preference, rating_turns, ratings
from alignuser_jax.evaluation.protocol import Protocol, ProtocolResult, Subject
from alignuser_jax.sampling import RequestsFailed

PROTOCOLS = (
    ratings.PROTOCOL,
    rating_turns.PROTOCOL,
    preference.PROTOCOL,
    next_state.PROTOCOL,
)
"""Every protocol that `alignuser evaluate` offers. A new one is a file and a place here."""

NAMES = tuple(protocol.name for protocol in PROTOCOLS)


def choose(names: Sequence[str]) -> list[Protocol]:
    """Return the protocols of these names, in their order; raises `ValueError` for others."""
    by_name = {protocol.name: protocol for protocol in PROTOCOLS}
    if unknown := sorted(set(names) - by_name.keys()):
        raise ValueError(f"unknown {unknown}; choose from {', '.join(NAMES)}")
    return [by_name[name] for name in names]


def run_protocols(protocols: Sequence[Protocol], subject: Subject) -> Iterator[ProtocolResult]:
    """Run protocols one after the other and yield each outcome as soon as it is there.

    A protocol whose requests failed yields an outcome with an `error`, and the next one is
    still run.

    Raises:
        ValueError: A protocol needs something that the subject lacks; raised before any runs.
    """
    for protocol in protocols:
        if lacking := [name for name in protocol.needs if getattr(subject, name) is None]:
            raise ValueError(f"the protocol {protocol.name} needs {', '.join(lacking)}")
    for protocol in protocols:
        try:
            yield protocol.run(subject)
        except RequestsFailed as error:
            yield ProtocolResult(f"NOT MEASURED: {error}", error=str(error))
