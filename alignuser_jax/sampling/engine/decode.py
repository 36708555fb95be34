"""Decode some steps of a group of rows: what each step draws, follows and remembers.

First comes free text, one token a step, while any row has some left. Then come answers, where a
step takes one drawn token and up to J - 1 that are forced after it. Which of the two a row is
in depends on its own state only.

Letters in shapes: S slots, G rows of a group, J tokens of a jump, N tokens that one decode call
may add, D hidden size, V vocabulary, Q states, E edges, A automata.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from alignuser_jax.model import Decoder
from alignuser_jax.sampling.engine.automaton import ACCEPT, ANY_TEXT, OPEN_LINE
from alignuser_jax.sampling.engine.forward import (
    Pages,
    Strips,
    TokenBlock,
    forward,
    forward_strips,
    strips_to_pages,
)
from alignuser_jax.sampling.engine.sample import (
    ArrayT,
    NextToken,
    SamplingParams,
    draw_next_token,
)

JUMP = 4
"""Tokens of one step inside an answer: one that is drawn, and those that follow from it."""


MOST_REPEAT = 8
"""The longest run of tokens that a request may forbid to come twice."""

WRITTEN = 512
"""The most tokens of a reply in which runs must not come twice."""


class DecodeRows(NamedTuple, Generic[ArrayT]):
    """What a decode call must know of each row.

    Attributes:
        slot: int32 `[G]`.
        start: int32 `[G]`, the position of the reply's first token, which is the length of the
            prompt.
        active: bool `[G]`, false for padding.
        automaton: int32 `[G]`, the place of the automaton that the row follows.
        state: int32 `[G]`, the automaton's state.
        length: int32 `[G]`, tokens that earlier calls decoded.
        reasoning: int32 `[G]`, tokens after which the answer is forced.
        limit: int32 `[G]`, tokens after which the row ends.
        adapter: int32 `[G]`, the number of the row's adapter, from 1; 0 for the base model.
        params: How the row draws.
        key: uint32 `[G, 2]`, the words of the row's jax key.
        no_repeat: int32 `[G]`, tokens of a run that must not come twice; 0 for no such rule.
        written: int32 `[G, WRITTEN]`, what must not be repeated, at the right end: texts with
            -1 behind each, then the reply's tokens before this call; -1 in front of them, and
            everywhere in rows without that rule.
    """

    slot: ArrayT
    start: ArrayT
    active: ArrayT
    automaton: ArrayT
    state: ArrayT
    length: ArrayT
    reasoning: ArrayT
    limit: ArrayT
    adapter: ArrayT
    params: SamplingParams[ArrayT]
    key: ArrayT
    no_repeat: ArrayT
    written: ArrayT


class AutomatonTables(NamedTuple, Generic[ArrayT]):
    """The tables of `Automaton` that decoding needs, for each place; or those of one automaton.

    Attributes:
        token: int32 `[A, Q, E]`.
        next: int32 `[A, Q, E]`.
        free: bool `[A, Q]`.
        forced: int32 `[A, Q]`.
        onward: int32 `[A, Q, 2]`.
        within: int8 `[A, Q]`.
    """

    token: ArrayT
    next: ArrayT
    free: ArrayT
    forced: ArrayT
    onward: ArrayT
    within: ArrayT


class Vocabulary(NamedTuple, Generic[ArrayT]):
    """What decoding must know of the tokens.

    Attributes:
        allowed: bool `[V]`, ids that free text may use.
        ends_line: bool `[V]`, tokens whose text ends with a newline.
        spans_lines: bool `[V]`, tokens whose text has a newline and then something else.
    """

    allowed: ArrayT
    ends_line: ArrayT
    spans_lines: ArrayT


class Decoded(NamedTuple, Generic[ArrayT]):
    """What one decode call adds to each row of a group; without G, to one row.

    Attributes:
        token: int32 `[G, N]`.
        logprob: float32 `[G, N]`.
        state: int32 `[G, N]`, the automaton's state before the token.
        edge: int32 `[G, N]`, the edge that the token followed; -1 for none.
        edge_logprobs: float32 `[G, N, E]`, the distribution over the state's edges; it means
            nothing where the state has one edge.
        length: int32 `[G]`, the number of tokens added.
        final: int32 `[G]`, the automaton's state after them.
    """

    token: ArrayT
    logprob: ArrayT
    state: ArrayT
    edge: ArrayT
    edge_logprobs: ArrayT
    length: ArrayT
    final: ArrayT


class DecodeLoop(NamedTuple):
    """What a decode loop carries from step to step.

    Attributes:
        steps: int32, steps so far.
        cache: Pages or strips.
        hidden: `[G, D]`, the state of each row's last token.
        state: int32 `[G]`, the automaton's state.
        done: bool `[G]`, whether the row has ended.
        out: What was decoded so far.
    """

    steps: jax.Array
    cache: Pages | Strips
    hidden: jax.Array
    state: jax.Array
    done: jax.Array
    out: Decoded[jax.Array]


class _Jump(NamedTuple):
    """The tokens of one step of each row, the first drawn and the others forced.

    Attributes:
        tokens: int32 `[G, J]`.
        states: int32 `[G, J]`, the automaton's state before each token.
        valid: bool `[G, J]`.
        state: int32 `[G]`, the state after them.
    """

    tokens: jax.Array
    states: jax.Array
    valid: jax.Array
    state: jax.Array


@dataclass(frozen=True)
class Decoding:
    """What stays the same during one decode call.

    Attributes:
        decoder: The model.
        end_ids: Ids that end free text.
        rows: The rows.
        keys: One jax key per row.
        block_table: int32 `[G, M]`, the pages of the rows.
        automata: The automata that the rows follow.
        vocabulary: What free text may use.
    """

    decoder: Decoder
    end_ids: tuple[int, ...]
    rows: DecodeRows[jax.Array]
    keys: jax.Array
    block_table: jax.Array
    automata: AutomatonTables[jax.Array]
    vocabulary: Vocabulary[jax.Array]

    def start(self, cache: Pages | Strips, slot_state: jax.Array, steps: int) -> DecodeLoop:
        """Return the loop before its first step.

        Args:
            cache: The pages, or the strips of the rows.
            slot_state: `[S, D]`, the hidden state of each slot's last token.
            steps: Steps of each of the two loops of `run`.
        """
        n = steps * (1 + JUMP)
        rows = self.rows
        out = _no_tokens(rows, n, self.automata.token.shape[2])
        hidden = slot_state[rows.slot]
        return DecodeLoop(jnp.int32(0), cache, hidden, rows.state, ~rows.active, out)

    def run(self, loop: DecodeLoop, steps: int) -> DecodeLoop:
        """Take up to `steps` steps of free text, then up to `steps` steps of answers."""
        loop = _repeat(
            loop,
            steps,
            self.in_text,
            lambda loop: self.step(loop, self.current_state(loop), self.in_text(loop), 1),
        )
        return _repeat(
            loop,
            steps,
            self.in_answer,
            lambda loop: self.step(loop, self.current_state(loop), self.in_answer(loop), JUMP),
        )

    def in_text(self, loop: DecodeLoop) -> jax.Array:
        """Return which rows go on with free text."""
        free = self.automata.free
        return ~loop.done & free[self.rows.automaton, self.current_state(loop)]

    def in_answer(self, loop: DecodeLoop) -> jax.Array:
        """Return which rows go on with their answer."""
        return ~loop.done & ~self.in_text(loop)

    def current_state(self, loop: DecodeLoop) -> jax.Array:
        """Return each row's state: the forced one once its reasoning is over."""
        forced = self.automata.forced[self.rows.automaton, loop.state]
        over = self.rows.length + loop.out.length >= self.rows.reasoning
        return jnp.where(over, forced, loop.state)

    def copy_to_pages(self, loop: DecodeLoop, strips: Strips, pages: Pages) -> Pages:
        """Return the pages with what the loop has added to the strips."""
        rows = self.rows
        order = jnp.arange(loop.out.token.shape[1])
        positions = (rows.start + rows.length)[:, None] + order
        new = order < loop.out.length[:, None]
        positions = jnp.where(new, positions, 0)
        return strips_to_pages(pages, strips, self.block_table, positions, new)

    def step(
        self, loop: DecodeLoop, at: jax.Array, active: jax.Array, width: int
    ) -> DecodeLoop:
        """Add one token to every active row; with a `width` above 1 also the forced ones."""
        rows = self.rows
        length = rows.length + loop.out.length
        drawn = self._draw(loop, at, active, length)
        jump = self._follow(drawn, at, active, width)
        added = jump.valid.sum(axis=1)
        positions = (rows.start + length)[:, None] + jnp.arange(width)
        positions = jnp.where(jump.valid, positions, 0)
        block = TokenBlock(jump.tokens, positions, jump.valid, rows.adapter)
        hidden, cache = self._forward(block, loop.cache)
        following = jnp.zeros((rows.slot.shape[0], 0), jnp.float32)
        if width > 1:
            logits = self.decoder.logits(hidden[:, :-1])
            following = logprobs_of(logits, jump.tokens[:, 1:])
        newest = jnp.take_along_axis(hidden, jnp.maximum(added - 1, 0)[:, None, None], axis=1)
        out = _append(loop.out, drawn, jump, following)
        out = out._replace(
            length=loop.out.length + added,
            final=jnp.where(active, jump.state, loop.out.final),
        )
        return DecodeLoop(
            loop.steps + 1,
            cache,
            jnp.where(active[:, None], newest[:, 0], loop.hidden),
            jnp.where(active, jump.state, loop.state),
            loop.done | active & ((jump.state == ACCEPT) | (length + added >= rows.limit)),
            out,
        )

    def _draw(
        self, loop: DecodeLoop, at: jax.Array, active: jax.Array, length: jax.Array
    ) -> NextToken:
        return draw_next_token(
            logits_of(self.decoder, loop.hidden),
            self.automata.token[self.rows.automaton, at],
            self.automata.free[self.rows.automaton, at] & active,
            self._allowed(loop, at),
            self.end_ids,
            self.rows.params,
            jax.vmap(jax.random.fold_in)(self.keys, length),
        )

    def _allowed(self, loop: DecodeLoop, at: jax.Array) -> jax.Array:
        """Return bool `[G, V]`, the tokens that each row's free text may go on with."""
        rows, words = self.rows, self.vocabulary
        within = self.automata.within[rows.automaton, at][:, None]
        everything = jnp.broadcast_to(words.allowed, (len(within), len(words.allowed)))

        def restricted(_):
            open_ = everything & ~((within != ANY_TEXT) & words.spans_lines)
            open_ &= ~((within == OPEN_LINE) & words.ends_line)
            tokens = jnp.concatenate([rows.written, loop.out.token], axis=1)
            length = WRITTEN + loop.out.length
            repeats = would_repeat(tokens, length, rows.no_repeat)
            at_token = jnp.where(repeats, tokens, open_.shape[1])
            return open_.at[jnp.arange(len(tokens))[:, None], at_token].set(False, mode="drop")

        needed = jnp.any(within != ANY_TEXT) | jnp.any(rows.no_repeat > 0)
        return lax.cond(needed, restricted, lambda _: everything, None)

    def _follow(self, drawn: NextToken, at: jax.Array, active: jax.Array, width: int) -> _Jump:
        """Return the drawn token and up to `width - 1` tokens of states with a single edge."""
        automata, which = self.automata, self.rows.automaton
        onward = automata.next[which, at, jnp.maximum(drawn.edge, 0)]
        ends = self.vocabulary.ends_line[drawn.token].astype(jnp.int32)
        state = jnp.where(drawn.edge >= 0, onward, automata.onward[which, at, ends])
        tokens, states, valid = [drawn.token], [at], [active]
        for _ in range(width - 1):
            edges = automata.token[which, state]
            valid.append(valid[-1] & ((edges >= 0).sum(axis=1) == 1))
            tokens.append(jnp.where(valid[-1], edges[:, 0], 0))
            states.append(state)
            onward = automata.next[which, state, 0]
            state = jnp.where(valid[-1], onward, state)
        return _Jump(
            jnp.stack(tokens, axis=1),
            jnp.stack(states, axis=1),
            jnp.stack(valid, axis=1),
            state,
        )

    def _forward(
        self, block: TokenBlock, cache: Pages | Strips
    ) -> tuple[jax.Array, Pages | Strips]:
        if isinstance(cache, Strips):
            return forward_strips(self.decoder, block, cache)
        return forward(self.decoder, block, self.block_table, cache)


def _no_tokens(rows: DecodeRows[jax.Array], n: int, edges: int) -> Decoded[jax.Array]:
    """Return room for n tokens of each row."""
    group = rows.slot.shape[0]
    return Decoded(
        jnp.zeros((group, n), jnp.int32),
        jnp.zeros((group, n), jnp.float32),
        jnp.zeros((group, n), jnp.int32),
        jnp.full((group, n), -1, jnp.int32),
        jnp.zeros((group, n, edges), jnp.float32),
        jnp.zeros(group, jnp.int32),
        rows.state,
    )


def _append(
    out: Decoded[jax.Array], drawn: NextToken, jump: _Jump, following: jax.Array
) -> Decoded[jax.Array]:
    """Write the valid tokens of a jump behind those of `out`; its `length` stays as it is.

    `following [G, J - 1]` are the log probabilities of the forced tokens.
    """
    group, width = jump.tokens.shape
    edges = jnp.concatenate(
        [drawn.edge[:, None], jnp.zeros((group, width - 1), jnp.int32)], axis=1
    )
    n = out.token.shape[1]  # also the index of no token
    at = jnp.where(jump.valid, out.length[:, None] + jnp.arange(width), n)
    index = jnp.arange(group)[:, None], at

    def put(old, new):
        return old.at[index].set(new, mode="drop")

    return out._replace(
        token=put(out.token, jump.tokens),
        logprob=put(out.logprob, jnp.c_[drawn.logprob, following]),
        state=put(out.state, jump.states),
        edge=put(out.edge, edges),
        edge_logprobs=out.edge_logprobs.at[index[0][:, 0], at[:, 0]].set(
            drawn.edge_logprobs, mode="drop"
        ),
    )


def _repeat(
    loop: DecodeLoop,
    steps: int,
    active: Callable[[DecodeLoop], jax.Array],
    step: Callable[[DecodeLoop], DecodeLoop],
) -> DecodeLoop:
    """Take up to `steps` steps while any row is active."""
    start = loop.steps
    return lax.while_loop(
        lambda loop: (loop.steps - start < steps) & active(loop).any(), step, loop
    )


def would_repeat(tokens: jax.Array, length: jax.Array, run: jax.Array) -> jax.Array:
    """Return bool `[G, T]`, which tokens would complete a run of tokens for the second time.

    Such a token followed, earlier in the row, the same `run - 1` tokens as end the row.

    Args:
        tokens: int32 `[G, T]`; -1 for none.
        length: int32 `[G]`, the number of places that are filled; the row ends there.
        run: int32 `[G]`, the tokens of a run, at most `MOST_REPEAT`; 0 for rows without a rule.
    """
    order = jnp.arange(tokens.shape[1])
    same = (order < length[:, None]) & (tokens >= 0) & (run > 0)[:, None]
    for back in range(1, MOST_REPEAT):
        newest = jnp.take_along_axis(tokens, length[:, None] - back, axis=1)
        before = jnp.pad(tokens, ((0, 0), (back, 0)), constant_values=-1)[:, : len(order)]
        there = (newest >= 0) & (length >= back)[:, None]
        same &= ((before == newest) & there) | (back >= run)[:, None]
    return same


def logits_of(decoder: Decoder, hidden: jax.Array) -> jax.Array:
    """Return f32 logits `[B, V]` of hidden states `[B, D]`."""
    return decoder.logits(hidden[:, None])[:, 0]


def logprobs_of(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the log probabilities of `tokens [B, T]` under `logits [B, T, V]`."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
