"""From rows at work to the groups that the programs work on; NumPy only.

Work is packed without gaps: what a row needs is cut into pieces of a fixed shape, and pieces of
any rows fill a group. A group that is not full is padded with pieces of no tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignuser_jax.sampling.engine.kernels import JUMP, Chunks, Copies, Ends, Rows, Suffixes
from alignuser_jax.sampling.engine.prepare import Row
from alignuser_jax.sampling.engine.sample import How, key_words


def pack_prompts(
    pieces: Sequence[tuple[int, Row, int]], *, calls: int, group: int, chunk: int
) -> tuple[Chunks, Ends, np.ndarray]:
    """Pieces of prompts (slot, row, position of the first token) in the order given, which must
    put what a piece looks back to before it; their ends; how many groups of both are used."""
    room = calls * group
    chunks = Chunks(
        tokens=np.zeros((room, chunk), np.int32),
        slot=np.zeros(room, np.int32),
        start=np.zeros(room, np.int32),
        count=np.zeros(room, np.int32),
        final=np.zeros(room, bool),
        adapter=np.zeros(room, np.int32),
    )
    for i, (slot, row, start) in enumerate(pieces):
        tokens = row.tokens[start : start + chunk]
        chunks.tokens[i, : len(tokens)] = tokens
        chunks.slot[i], chunks.start[i], chunks.count[i] = slot, start, len(tokens)
        chunks.final[i] = start + len(tokens) == len(row.tokens)
        chunks.adapter[i] = row.adapter
    final = np.argsort(~chunks.final, kind="stable")
    ends = Ends(
        slot=chunks.slot[final],
        position=np.maximum(chunks.start + chunks.count - 1, 0)[final],
        active=chunks.final[final],
        adapter=chunks.adapter[final],
    )
    used = -(-np.array([len(pieces), chunks.final.sum()], np.int32) // group)
    chunks = Chunks(*(a.reshape(calls, group, *a.shape[1:]) for a in chunks))
    return chunks, Ends(*(a.reshape(calls, group) for a in ends)), used


def pack_copies(copies: Sequence[tuple[int, int, int, int]], *, group: int) -> Copies:
    """One group of copies (from slot, to slot, from page, to page)."""
    padded = np.zeros((4, group), np.int32)
    for i, copy in enumerate(copies):
        padded[:, i] = copy
    return Copies(*padded, np.arange(group) < len(copies))


def pack_suffixes(
    pieces: Sequence[tuple[int, Row, tuple[int, ...], int]], *, group: int
) -> Suffixes:
    """One group of pieces (slot, row, the alternative's tokens after its first, the first of
    them to read)."""
    tokens, targets = np.zeros((2, group, JUMP), np.int32)
    slots, start, count, adapter = np.zeros((4, group), np.int32)
    for i, (slot, row, suffix, at) in enumerate(pieces):
        given = suffix[at:-1][:JUMP]
        tokens[i, : len(given)] = given
        targets[i, : len(given)] = suffix[at + 1 :][:JUMP]
        slots[i], start[i], count[i] = slot, len(row.tokens) + at, len(given)
        adapter[i] = row.adapter
    return Suffixes(tokens, targets, slots, start, count, adapter)


def cut_suffixes(
    rows: Mapping[int, Row], number: int
) -> list[tuple[int, Row, tuple[int, ...], int]]:
    """The pieces of alternative `number` of every row's closed set, those of one row in order.
    Alternatives of one row take the same places, so each goes on its own."""
    pieces = []
    for slot, row in rows.items():
        if number < len(row.closed.suffixes):
            suffix = row.closed.suffixes[number]
            pieces += [(slot, row, suffix, at) for at in range(0, len(suffix) - 1, JUMP)]
    return sorted(pieces, key=lambda piece: (piece[3], piece[0]))


Reply = tuple[int, Row, int, int, int]
"""A row to decode: slot, row, its automaton's place, the state it is in, tokens decoded."""


def sort_replies(replies: Iterable[Reply], steps: int) -> list[Reply]:
    """Rows that take about the same of a call's `steps` beside each other (free text apart from
    answers, one answer beside the same answer), and of those the short beside the short: a
    group takes the steps, and attends over the positions, of the row that needs most."""

    def kind(reply):
        _, row, place, _, count = reply
        free = row.limit - row.automaton.longest <= count
        return free, place, min(row.limit - count, steps), len(row.tokens) + count

    return sorted(replies, key=kind)


def pack_replies(replies: Sequence[Reply], *, group: int) -> Rows:
    """One group of rows to decode."""
    columns = ("slot", "start", "table", "state", "count", "reasoning", "limit", "adapter")
    packed = Rows(
        **{name: np.zeros(group, np.int32) for name in columns},
        active=np.arange(group) < len(replies),
        how=How(
            temperature=np.zeros(group, np.float32),
            top_k=np.zeros(group, np.int32),
            top_p=np.ones(group, np.float32),
            min_p=np.zeros(group, np.float32),
        ),
        key=np.zeros((group, 2), np.uint32),
    )
    for i, (slot, row, place, state, count) in enumerate(replies):
        packed.slot[i], packed.start[i] = slot, len(row.tokens)
        packed.table[i], packed.state[i], packed.count[i] = place, state, count
        packed.reasoning[i], packed.limit[i] = row.reasoning, row.limit
        packed.adapter[i], packed.key[i] = row.adapter, key_words(row.key)
        for name, values in packed.how._asdict().items():
            values[i] = getattr(row.request, name)
    return packed


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """`items` in order, `size` at a time."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
