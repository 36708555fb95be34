"""Arrange the work of rows in the fixed-size groups that the programs take; NumPy only.

Work is packed without gaps: what a row needs is cut into pieces of a fixed shape, and pieces of
any rows fill a group. A group that is not full is padded with pieces of no tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from alignuser_jax.sampling.engine.automaton import Automaton, Path
from alignuser_jax.sampling.engine.decode import JUMP, WRITTEN, DecodeRows
from alignuser_jax.sampling.engine.kernels import (
    PageCopies,
    PromptChunks,
    PromptEnds,
    SuffixChunks,
)
from alignuser_jax.sampling.engine.prepare import Row
from alignuser_jax.sampling.engine.sample import SamplingParams, key_words

T = TypeVar("T")


class PromptPiece(NamedTuple):
    """Up to `chunk` tokens of a prompt.

    Attributes:
        slot: The row's slot.
        row: The row.
        start: The position of the first token.
    """

    slot: int
    row: Row
    start: int


class PageCopy(NamedTuple):
    """A copy of one row's last prompt page and hidden state to another row."""

    slot: int
    to_slot: int
    page: int
    to_page: int


class SuffixPiece(NamedTuple):
    """Up to `JUMP` tokens of an alternative of a closed set.

    Attributes:
        slot: The row's slot.
        row: The row.
        suffix: The tokens of the alternative after the shared prefix.
        start: The index in `suffix` of the first token.
    """

    slot: int
    row: Row
    suffix: Path
    start: int


class DecodingRow(NamedTuple):
    """A row whose reply is being decoded.

    Attributes:
        slot: Its slot.
        row: The row.
        automaton: What the row follows.
        place: The automaton's place on the device.
        state: The automaton's state.
        length: How many tokens are decoded.
        written: What a row with `no_repeat` must not repeat (`replies.written`); else none.
    """

    slot: int
    row: Row
    automaton: Automaton
    place: int
    state: int
    length: int
    written: Sequence[int] = ()


def pack_prompts(
    pieces: Sequence[PromptPiece], *, calls: int, group: int, chunk: int
) -> tuple[PromptChunks[np.ndarray], PromptEnds[np.ndarray], np.ndarray]:
    """Pack pieces of prompts for one call of the prefill program.

    Args:
        pieces: At most `calls * group`, in an order in which whatever a piece looks back to
            comes before it.
        calls: Groups of a call.
        group: Pieces of a group.
        chunk: The most tokens of a piece.

    Returns:
        The pieces, the ends of the prompts that end in them, and how many groups of both are
        used: int32 `[2]`.
    """
    room = calls * group
    chunks = PromptChunks(
        tokens=np.zeros((room, chunk), np.int32),
        slot=np.zeros(room, np.int32),
        start=np.zeros(room, np.int32),
        length=np.zeros(room, np.int32),
        final=np.zeros(room, bool),
        adapter=np.zeros(room, np.int32),
    )
    for i, (slot, row, start) in enumerate(pieces):
        tokens = row.tokens[start : start + chunk]
        chunks.tokens[i, : len(tokens)] = tokens
        chunks.slot[i], chunks.start[i], chunks.length[i] = slot, start, len(tokens)
        chunks.final[i] = start + len(tokens) == len(row.tokens)
        chunks.adapter[i] = row.adapter
    final = np.argsort(~chunks.final, kind="stable")
    ends = PromptEnds(
        slot=chunks.slot[final],
        position=np.maximum(chunks.start + chunks.length - 1, 0)[final],
        active=chunks.final[final],
        adapter=chunks.adapter[final],
    )
    used = -(-np.array([len(pieces), chunks.final.sum()], np.int32) // group)
    chunks = PromptChunks(*(a.reshape(calls, group, *a.shape[1:]) for a in chunks))
    return chunks, PromptEnds(*(a.reshape(calls, group) for a in ends)), used


def pack_copies(copies: Sequence[PageCopy], *, group: int) -> PageCopies[np.ndarray]:
    """Pack at most `group` copies into one group."""
    padded = np.zeros((4, group), np.int32)
    for i, copy in enumerate(copies):
        padded[:, i] = copy
    slot, to_slot, page, to_page = padded
    return PageCopies(slot, to_slot, page, to_page, np.arange(group) < len(copies))


def pack_suffixes(pieces: Sequence[SuffixPiece], *, group: int) -> SuffixChunks[np.ndarray]:
    """Pack at most `group` pieces of alternatives into one group."""
    tokens, targets = np.zeros((2, group, JUMP), np.int32)
    slots, starts, lengths, adapters = np.zeros((4, group), np.int32)
    for i, (slot, row, suffix, start) in enumerate(pieces):
        piece = suffix[start:-1][:JUMP]
        tokens[i, : len(piece)] = piece
        targets[i, : len(piece)] = suffix[start + 1 :][:JUMP]
        slots[i], starts[i], lengths[i] = slot, len(row.tokens) + start, len(piece)
        adapters[i] = row.adapter
    return SuffixChunks(tokens, targets, slots, starts, lengths, adapters)


def cut_suffixes(
    rows: Mapping[int, tuple[Row, Sequence[Path]]], number: int
) -> list[SuffixPiece]:
    """Cut alternative `number` of every row into pieces, those of one row in order.

    Alternatives of one row use the same positions, so each goes on its own.

    Args:
        rows: Rows and the suffixes of their alternatives, by slot.
        number: Which alternative; rows that have fewer are left out.
    """
    pieces = []
    for slot, (row, suffixes) in rows.items():
        if number < len(suffixes):
            suffix = suffixes[number]
            starts = range(0, len(suffix) - 1, JUMP)
            pieces += [SuffixPiece(slot, row, suffix, start) for start in starts]
    return sorted(pieces, key=lambda piece: (piece.start, piece.slot))


def sort_decoding(rows: Iterable[DecodingRow], steps: int) -> list[DecodingRow]:
    """Put rows beside each other that take about the same of a call's `steps`.

    A group takes the steps, and attends over the positions, of the row that needs most. So free
    text is apart from answers, the same answers are together, and of those the short rows.
    """

    def kind(decoding: DecodingRow) -> tuple[bool, int, int, int]:
        row, left = decoding.row, decoding.row.limit - decoding.length
        answering = row.limit - decoding.automaton.longest <= decoding.length
        position = len(row.tokens) + decoding.length
        return answering, decoding.place, min(left, steps), position

    return sorted(rows, key=kind)


def pack_rows(rows: Sequence[DecodingRow], *, group: int) -> DecodeRows[np.ndarray]:
    """Pack at most `group` rows to decode into one group."""

    def zeros(dtype: type = np.int32) -> np.ndarray:
        return np.zeros(group, dtype)

    packed = DecodeRows(
        slot=zeros(),
        start=zeros(),
        active=np.arange(group) < len(rows),
        automaton=zeros(),
        state=zeros(),
        length=zeros(),
        reasoning=zeros(),
        limit=zeros(),
        adapter=zeros(),
        params=SamplingParams(
            temperature=zeros(np.float32),
            top_k=zeros(),
            top_p=np.ones(group, np.float32),
            min_p=zeros(np.float32),
        ),
        key=np.zeros((group, 2), np.uint32),
        no_repeat=zeros(),
        written=np.full((group, WRITTEN), -1, np.int32),
    )
    for i, (slot, row, _, place, state, length, written) in enumerate(rows):
        packed.slot[i], packed.start[i] = slot, len(row.tokens)
        packed.automaton[i], packed.state[i], packed.length[i] = place, state, length
        packed.reasoning[i], packed.limit[i] = row.reasoning, row.limit
        packed.adapter[i], packed.key[i] = row.adapter, key_words(row.key)
        packed.no_repeat[i] = row.request.no_repeat
        packed.written[i, WRITTEN - len(written) :] = written
        for name, values in packed.params._asdict().items():
            values[i] = getattr(row.request, name)
    return packed


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, `size` at a time."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
