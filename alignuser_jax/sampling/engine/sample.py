"""Drawing one token per row: greedy, temperature, top-k, top-p and min-p, over the vocabulary
or over edges.

Letters: S rows (slots), V vocabulary, E edges of an automaton state, N entries of any of them.
A row's draw depends on its own logits, parameters and key only; the branches taken for speed
depend on the whole batch but never change a row's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alignuser_jax.randomness import generator_of

STRIDE = 256
"""Entries that are summed together before the entry itself is looked for."""


class How(NamedTuple):
    """How a row draws, `[S]` each: temperature (0: the likeliest), then of the tempered
    distribution the `top_k` likeliest entries (0: all), of these the fewest whose share reaches
    `top_p` (1: all), and of all entries those at least `min_p` times as likely as the likeliest
    (0: all). Ties are kept."""

    temperature: Float[Array, " S"]
    top_k: Int[Array, " S"]
    top_p: Float[Array, " S"]
    min_p: Float[Array, " S"]


def narrowed(p: Float[Array, "S N"], how: How) -> Float[Array, "S N"]:
    """`p`, not normalised, with 0 for what top-k, top-p and min-p leave out."""
    ranked = jnp.flip(jnp.sort(p, axis=-1), axis=-1)
    all_of_them = p.shape[-1]
    k = jnp.where(how.top_k > 0, jnp.minimum(how.top_k, all_of_them), all_of_them)
    ranked = jnp.where(jnp.arange(all_of_them) < k[:, None], ranked, 0.0)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    inside = (before < how.top_p[:, None] * ranked.sum(-1, keepdims=True)) & (ranked > 0)
    inside |= (how.top_p >= 1)[:, None] & (ranked > 0)
    lowest = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1)
    lowest = jnp.maximum(lowest, how.min_p * ranked[:, 0])
    return jnp.where(p >= lowest[:, None], p, 0.0)


def draw(logits: Float[Array, "S N"], how: How, keys) -> Int[Array, " S"]:
    """One index per row; -inf is never drawn. One random number per row, of 24 bits: looked up
    in the running sum of what each entry weighs."""

    def sampled(_):
        scaled = logits / jnp.where(how.temperature > 0, how.temperature, 1.0)[:, None]
        p = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
        any_narrow = jnp.any((how.top_k > 0) | (how.top_p < 1) | (how.min_p > 0))
        p = lax.cond(any_narrow, lambda p: narrowed(p, how), lambda p: p, p)
        return _look_up(p, jax.vmap(lambda key: jax.random.uniform(key))(keys))

    greedy = _likeliest(logits)
    drawn = lax.cond(jnp.any(how.temperature > 0), sampled, lambda _: greedy, None)
    return jnp.where(how.temperature > 0, drawn, greedy).astype(jnp.int32)


def _likeliest(logits: Float[Array, "S N"]) -> Int[Array, " S"]:
    """`argmax`, the first of equals, as two plain reductions: a CPU does these 3 times faster
    than one over pairs of value and index. 0 where there are NaNs."""
    size = logits.shape[-1]
    best = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(best, jnp.arange(size), size).min(axis=-1) % size


def _look_up(p: Float[Array, "S N"], u: Float[Array, " S"]) -> Int[Array, " S"]:
    """The first entry up to which more than `u` of all weight lies."""
    blocks = jnp.pad(p, ((0, 0), (0, -p.shape[1] % STRIDE)))
    blocks = blocks.reshape(p.shape[0], -1, STRIDE)
    sums = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = u * sums[:, -1]
    block = _first_above(sums, target)
    before = jnp.where(block > 0, _at(sums, jnp.maximum(block - 1, 0)), 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * STRIDE + _first_above(jnp.cumsum(inside, axis=-1), target - before)


def _first_above(sums: Float[Array, "S N"], target: Float[Array, " S"]) -> Int[Array, " S"]:
    """The first entry whose running sum exceeds the target; where rounding leaves none, the
    first that reaches the whole sum, so that its own weight is not 0."""
    reached = jnp.minimum(target, jnp.nextafter(sums[:, -1], jnp.zeros_like(target)))
    return jnp.argmax(sums > reached[:, None], axis=-1)


def _at(a, index):
    return jnp.take_along_axis(a, index[:, None], axis=1)[:, 0]


class Pick(NamedTuple):
    token: Int[Array, " S"]
    edge: Int[Array, " S"]  # the edge taken, -1 where a free state took none
    logprob: Float[Array, " S"]  # of the token, under the unconstrained model
    edge_logprobs: Float[Array, "S E"]  # over the state's edges at temperature 1


def pick(
    logits: Float[Array, "S V"],
    edges: Int[Array, "S E"],
    free: Bool[Array, " S"],
    allowed: Bool[Array, " V"],
    ends: Sequence[int],
    how: How,
    keys,
) -> Pick:
    """The next token of every row under its automaton state (`edges`: -1 = no edge).

    `allowed` says which ids free text may use (an embedding can be wider than its tokenizer,
    and markers of turns are no text); those of `ends` it may use only where they are edges.
    """
    is_edge = edges >= 0
    at_edges = jnp.take_along_axis(logits, jnp.where(is_edge, edges, 0), axis=1)
    restricted = jnp.where(is_edge, at_edges, -jnp.inf)
    has_edge = is_edge.any(axis=1)
    safe = jnp.where(has_edge[:, None], restricted, 0.0)
    by_edge = draw(safe, how, keys)

    def anywhere(_):
        open_, ids = allowed, jnp.arange(logits.shape[1])
        for end in ends:  # a select each, in one pass over the logits
            may_end = jnp.any(is_edge & (edges == end), axis=1, keepdims=True)
            open_ = jnp.where(ids == end, may_end, open_)
        return draw(jnp.where(open_, logits, -jnp.inf), how, keys)

    forced = jnp.take_along_axis(edges, by_edge[:, None], axis=1)[:, 0]
    token = lax.cond(jnp.any(free), anywhere, lambda _: jnp.maximum(forced, 0), None)
    token = jnp.where(free, token, jnp.maximum(forced, 0))
    matches = is_edge & (edges == token[:, None])
    edge = jnp.where(matches.any(axis=1), jnp.argmax(matches, axis=1), -1).astype(jnp.int32)
    total = jax.nn.logsumexp(logits, axis=-1)
    logprob = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - total
    return Pick(token, edge, logprob, jax.nn.log_softmax(safe, axis=-1))


# --- the host's side: closed sets -------------------------------------------------------


def key_words(key: int) -> np.ndarray:
    """A request's 63-bit key as the two words of a jax key."""
    return np.array([(key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF], np.uint32)


def uniform(key: int) -> float:
    """The number in [0, 1) that a key names."""
    return float(generator_of(key).random())


def draw_alternative(
    probabilities: np.ndarray,
    u: float,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """The alternative that `u` in [0, 1) points to, drawn as `How` says; at temperature 0 the
    likeliest (first)."""
    p = np.asarray(probabilities, float)
    if temperature <= 0:
        return int(p.argmax())
    with np.errstate(divide="ignore"):
        logs = np.log(p) / temperature
    p = np.exp(logs - logs.max())
    ranked = np.sort(p)[::-1]
    share = ranked[: top_k or len(p)]
    if top_p < 1:
        share = share[np.cumsum(share) - share < top_p * share.sum()]
    p[p < max(share[-1], min_p * ranked[0])] = 0.0  # ties of the last one stay
    cumulative = np.cumsum(p)
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(p) - 1)
