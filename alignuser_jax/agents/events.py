"""The event table as Parquet: sorted, and the same bytes for the same events.

It holds no clock time, so a run, its re-run and a run that was killed and resumed can be
compared byte for byte. Timings are in `metrics.jsonl`.
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
"""One column per field of `records.Event`."""
_COLUMNS = tuple(SCHEMA.names)


def event_order(event: Event) -> tuple[str, str, int, int]:
    """Return (arm, user_id, session, sequence): an event's identity and place in the table."""
    return event.arm, event.user_id, event.session, event.sequence


def sort_events(events: Iterable[Event]) -> list[Event]:
    """Return the events sorted by `event_order`.

    Raises:
        ValueError: Two events have the same (arm, user_id, session, sequence).
    """
    ordered = sorted(events, key=event_order)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if event_order(before) == event_order(after):
            raise ValueError(
                f"two events ({before.kind!r}, {after.kind!r}) have the same (arm, user_id, "
                f"session, sequence) {event_order(after)}; run each (arm, user, session) once"
            )
    return ordered


def to_table(events: Iterable[Event]) -> pa.Table:
    """Return `events`, sorted, as an Arrow table of `SCHEMA`."""
    ordered = sort_events(events)
    columns = {name: [getattr(event, name) for event in ordered] for name in _COLUMNS}
    return pa.table(columns, schema=SCHEMA)


def write_events(events: Iterable[Event], path: str | Path) -> Path:
    """Write `events` as Parquet, completely or not at all, and return the path.

    The options are fixed, so that the same events give the same bytes.
    """
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
    """Return the events of a table that `write_events` wrote, in its order.

    Raises:
        ValueError: The columns are not those of an event table.
    """
    table = pq.read_table(path)
    if table.schema.names != list(_COLUMNS):
        raise ValueError(
            f"{path} is not an event table: it has columns {table.schema.names}, "
            f"expected {list(_COLUMNS)}"
        )
    columns = [table.column(name).to_pylist() for name in _COLUMNS]
    return [Event(*row) for row in zip(*columns, strict=True)]
