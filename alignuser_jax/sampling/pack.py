"""From rows to the groups that the programs work on; NumPy only.

Work is packed without gaps: what a row needs is cut into pieces of a fixed shape, and pieces of
any rows fill a group. A group that is not full is padded with pieces of no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from alignuser_jax.sampling.prepare import Row
from alignuser_jax.sampling.programs import JUMP, Chunks, Ends, Rows, Suffixes
from alignuser_jax.sampling.sample import key_words

CALL = 16
"""Groups of one call of the prefill program."""


def pack_prompts(
    rows: Mapping[int, Row], reused: Mapping[int, int], *, chunk: int, group: int
) -> Iterator[tuple[Chunks, Ends, np.ndarray]]:
    """The prompts of `rows` (by slot) from position `reused[slot]` on, cut at multiples of
    `chunk`; their ends; and how many groups of both are used.

    Pieces go by their position: what a piece looks back to comes before it, and the rows of a
    group look back about equally far.
    """
    starts = {slot: range(reused[slot], len(row.tokens), chunk) for slot, row in rows.items()}
    pieces = sorted((start, slot) for slot, places in starts.items() for start in places)
    room = CALL * group
    for begin in range(0, len(pieces), room):
        part = pieces[begin : begin + room]
        chunks = Chunks(
            tokens=np.zeros((room, chunk), np.int32),
            slot=np.zeros(room, np.int32),
            start=np.zeros(room, np.int32),
            count=np.zeros(room, np.int32),
            final=np.zeros(room, bool),
            adapter=np.zeros(room, np.int32),
        )
        for i, (start, slot) in enumerate(part):
            tokens = rows[slot].tokens[start : start + chunk]
            chunks.tokens[i, : len(tokens)] = tokens
            chunks.slot[i], chunks.start[i], chunks.count[i] = slot, start, len(tokens)
            chunks.final[i] = start + len(tokens) == len(rows[slot].tokens)
            chunks.adapter[i] = rows[slot].adapter
        final = np.argsort(~chunks.final, kind="stable")
        ends = Ends(
            slot=chunks.slot[final],
            position=np.maximum(chunks.start + chunks.count - 1, 0)[final],
            active=chunks.final[final],
            adapter=chunks.adapter[final],
        )
        used = -(-np.array([len(part), chunks.final.sum()], np.int32) // group)
        chunks = Chunks(*(a.reshape(CALL, group, *a.shape[1:]) for a in chunks))
        yield chunks, Ends(*(a.reshape(CALL, group) for a in ends)), used


def pack_suffixes(
    rows: Mapping[int, Row], number: int, *, group: int
) -> Iterator[tuple[list[int], Suffixes]]:
    """Alternative `number` of every row's closed set after its first token, and the slots of
    each group. Alternatives of one row take the same places, so each has its own groups."""
    pieces = []
    for slot, row in rows.items():
        if number < len(row.closed.suffixes):
            suffix = row.closed.suffixes[number]
            pieces += [(at, slot, suffix) for at in range(0, len(suffix) - 1, JUMP)]
    pieces.sort(key=lambda piece: piece[:2])
    for begin in range(0, len(pieces), group):
        part = pieces[begin : begin + group]
        tokens, targets = np.zeros((2, group, JUMP), np.int32)
        slots, start, count, adapter = np.zeros((4, group), np.int32)
        for i, (at, slot, suffix) in enumerate(part):
            given = suffix[at:-1][:JUMP]
            tokens[i, : len(given)] = given
            targets[i, : len(given)] = suffix[at + 1 :][:JUMP]
            slots[i], start[i], count[i] = slot, len(rows[slot].tokens) + at, len(given)
            adapter[i] = rows[slot].adapter
        packed = Suffixes(tokens, targets, slots, start, count, adapter)
        yield [slot for _, slot, _ in part], packed


def pack_replies(
    rows: Mapping[int, Row], tables: Mapping[int, int], *, group: int
) -> Iterator[tuple[list[int], Rows]]:
    """Rows to decode, and the slots of each group; `tables[slot]` is the row's automaton.

    Rows that take about the same steps go together: free text apart from answers, one answer
    beside the same answer.
    """

    def kind(slot):
        row = rows[slot]
        return row.limit - row.automaton.longest, tables[slot]

    order = sorted(rows, key=kind)
    for begin in range(0, len(order), group):
        part = order[begin : begin + group]
        packed = Rows(
            **{name: np.zeros(group, np.int32) for name in ("slot", "start", "table")},
            active=np.arange(group) < len(part),
            **{name: np.zeros(group, np.int32) for name in ("state", "reasoning", "limit")},
            adapter=np.zeros(group, np.int32),
            temperature=np.zeros(group, np.float32),
            top_p=np.ones(group, np.float32),
            key=np.zeros((group, 2), np.uint32),
        )
        for i, slot in enumerate(part):
            row = rows[slot]
            packed.slot[i], packed.start[i] = slot, len(row.tokens)
            packed.table[i], packed.state[i] = tables[slot], row.automaton.start
            packed.reasoning[i], packed.limit[i] = row.reasoning, row.limit
            packed.temperature[i] = row.request.temperature
            packed.top_p[i], packed.adapter[i] = row.request.top_p, row.adapter
            packed.key[i] = key_words(row.key)
        yield part, packed
