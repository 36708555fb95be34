"""The event table: sorted, without clock time, the same bytes for the same events.

Timings live in `metrics.jsonl`; a table that held them could not be compared byte for byte
between a run, its re-run and a run that was killed and resumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from alignuser_jax.durable.whole import replacing
from alignuser_jax.records import Event

SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("user_id", pa.string()),
        ("session", pa.int32()),
        ("sequence", pa.int32()),
        ("kind", pa.string()),
        ("page", pa.int32()),
        ("position", pa.int32()),
        ("item_id", pa.string()),
        ("value", pa.float64()),
        ("probability", pa.float64()),
        ("expected", pa.float64()),
        ("text", pa.string()),
    ]
)
_COLUMNS = tuple(SCHEMA.names)


def event_order(event: Event) -> tuple[str, str, int, int]:
    """What identifies an event and sorts the table."""
    return event.arm, event.user_id, event.session, event.sequence


def sort_events(events: Iterable[Event]) -> list[Event]:
    """Events by (arm, user_id, session, sequence); two with the same four are refused."""
    ordered = sorted(events, key=event_order)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if event_order(before) == event_order(after):
            raise ValueError(
                f"two events ({before.kind!r}, {after.kind!r}) have the same (arm, user_id, "
                f"session, sequence) {event_order(after)}; run each (arm, user, session) once"
            )
    return ordered


def to_table(events: Iterable[Event]) -> pa.Table:
    """The Arrow table of `events`, sorted, one column per field of `Event`."""
    ordered = sort_events(events)
    columns = {name: [getattr(event, name) for event in ordered] for name in _COLUMNS}
    return pa.table(columns, schema=SCHEMA)


def write_events(events: Iterable[Event], path: str | Path) -> Path:
    """Write `events` as Parquet with fixed options, at once or not at all; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        pq.write_table(
            to_table(events),
            partial,
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            compression_level=3,
            use_dictionary=True,
            write_statistics=True,
            row_group_size=1 << 20,
        )
    return path


def read_events(path: str | Path) -> list[Event]:
    """The events of a table written by `write_events`, in its order."""
    table = pq.read_table(path)
    if table.schema.names != list(_COLUMNS):
        raise ValueError(
            f"{path} is not an event table: it has columns {table.schema.names}, "
            f"expected {list(_COLUMNS)}"
        )
    columns = [table.column(name).to_pylist() for name in _COLUMNS]
    return [Event(*row) for row in zip(*columns, strict=True)]
