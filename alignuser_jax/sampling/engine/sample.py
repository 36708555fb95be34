"""Draw one token per row: greedy, temperature, top-k, top-p, min-p, and automaton constraints.

A row's draw depends on its own logits, parameters and key only. The branches that are taken for
speed depend on the whole batch, but never change a row's result.

Letters in shapes: S rows, V vocabulary, E edges of an automaton state, N entries of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from alignuser_jax.randomness import generator_of

STRIDE = 256
"""Entries that are summed as one before the entry itself is looked for."""

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)
"""The arrays of a structure: NumPy where the host packs it, jax inside a program."""


class SamplingParams(NamedTuple, Generic[ArrayT]):
    """How each row draws. The filters apply in this order to the tempered distribution.

    Ties with the last entry that stays are kept.

    Attributes:
        temperature: float32 `[S]`; 0 takes the likeliest entry.
        top_k: int32 `[S]`; only the `top_k` likeliest entries stay, all for 0.
        top_p: float32 `[S]`; of these the fewest whose share reaches `top_p` stay, all for 1.
        min_p: float32 `[S]`; only entries at least `min_p` times as likely as the likeliest
            stay, all for 0.
    """

    temperature: ArrayT
    top_k: ArrayT
    top_p: ArrayT
    min_p: ArrayT


def filter_probabilities(
    p: Float[Array, "S N"], params: SamplingParams[jax.Array]
) -> Float[Array, "S N"]:
    """Return `p`, not normalised, with 0 for entries that top-k, top-p or min-p leave out."""
    ranked = jnp.flip(jnp.sort(p, axis=-1), axis=-1)
    all_of_them = p.shape[-1]
    k = jnp.where(params.top_k > 0, jnp.minimum(params.top_k, all_of_them), all_of_them)
    ranked = jnp.where(jnp.arange(all_of_them) < k[:, None], ranked, 0.0)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    inside = (before < params.top_p[:, None] * ranked.sum(-1, keepdims=True)) & (ranked > 0)
    inside |= (params.top_p >= 1)[:, None] & (ranked > 0)
    lowest = jnp.min(jnp.where(inside, ranked, jnp.inf), axis=-1)
    lowest = jnp.maximum(lowest, params.min_p * ranked[:, 0])
    return jnp.where(p >= lowest[:, None], p, 0.0)


def draw_indices(
    logits: Float[Array, "S N"], params: SamplingParams[jax.Array], keys: jax.Array
) -> Int[Array, " S"]:
    """Draw one index per row; an index with a logit of -inf is never drawn.

    Each row uses one random number of 24 bits, which is looked up in the running sum of the
    entries' weights.

    Args:
        logits: The logits of the entries.
        params: How each row draws.
        keys: One jax key per row.
    """

    def sampled(_):
        scaled = logits / jnp.where(params.temperature > 0, params.temperature, 1.0)[:, None]
        p = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
        any_filter = jnp.any((params.top_k > 0) | (params.top_p < 1) | (params.min_p > 0))
        p = lax.cond(any_filter, lambda p: filter_probabilities(p, params), lambda p: p, p)
        return _look_up(p, jax.vmap(lambda key: jax.random.uniform(key))(keys))

    greedy = _likeliest(logits)
    drawn = lax.cond(jnp.any(params.temperature > 0), sampled, lambda _: greedy, None)
    return jnp.where(params.temperature > 0, drawn, greedy).astype(jnp.int32)


def _likeliest(logits: Float[Array, "S N"]) -> Int[Array, " S"]:
    """Return the `argmax`, the first of equals; 0 where there are NaNs.

    It is two plain reductions, which a CPU does 3 times faster than one over pairs of value and
    index.
    """
    size = logits.shape[-1]
    best = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(best, jnp.arange(size), size).min(axis=-1) % size


def _look_up(p: Float[Array, "S N"], u: Float[Array, " S"]) -> Int[Array, " S"]:
    """Return the first entry up to which more than the share `u` of all weight lies."""
    blocks = jnp.pad(p, ((0, 0), (0, -p.shape[1] % STRIDE)))
    blocks = blocks.reshape(p.shape[0], -1, STRIDE)
    sums = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = u * sums[:, -1]
    block = _first_above(sums, target)
    before = jnp.where(block > 0, _at(sums, jnp.maximum(block - 1, 0)), 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * STRIDE + _first_above(jnp.cumsum(inside, axis=-1), target - before)


def _first_above(sums: Float[Array, "S N"], target: Float[Array, " S"]) -> Int[Array, " S"]:
    """Return the first entry whose running sum exceeds the target.

    If rounding leaves none, it is the first that reaches the whole sum, so that its own weight
    is not 0.
    """
    reached = jnp.minimum(target, jnp.nextafter(sums[:, -1], jnp.zeros_like(target)))
    return jnp.argmax(sums > reached[:, None], axis=-1)


def _at(a: Float[Array, "S N"], index: Int[Array, " S"]) -> Float[Array, " S"]:
    return jnp.take_along_axis(a, index[:, None], axis=1)[:, 0]


class NextToken(NamedTuple):
    """The token that each row continues with.

    Attributes:
        token: The token.
        edge: The edge that it follows; -1 if a free state's token is no edge.
        logprob: The token's log probability under the unconstrained model.
        edge_logprobs: The log probabilities over the state's edges at temperature 1.
    """

    token: Int[Array, " S"]
    edge: Int[Array, " S"]
    logprob: Float[Array, " S"]
    edge_logprobs: Float[Array, "S E"]


def draw_next_token(
    logits: Float[Array, "S V"],
    edges: Int[Array, "S E"],
    free: Bool[Array, " S"],
    allowed: Bool[Array, "S V"],
    end_ids: Sequence[int],
    params: SamplingParams[jax.Array],
    keys: jax.Array,
) -> NextToken:
    """Draw the next token of every row under its automaton state.

    Args:
        logits: The model's logits.
        edges: The tokens of the state's edges; -1 where there is no edge.
        free: Whether the state takes any token, rather than its edges only.
        allowed: Which ids free text may use. Others are markers of turns, ids of an embedding
            that is wider than its tokenizer, or against a rule of the request.
        end_ids: Ids that end free text; a free state takes them only if they are edges.
        params: How each row draws.
        keys: One jax key per row.
    """
    is_edge = edges >= 0
    at_edges = jnp.take_along_axis(logits, jnp.where(is_edge, edges, 0), axis=1)
    restricted = jnp.where(is_edge, at_edges, -jnp.inf)
    has_edge = is_edge.any(axis=1)
    safe = jnp.where(has_edge[:, None], restricted, 0.0)
    by_edge = draw_indices(safe, params, keys)

    def anywhere(_):
        open_, ids = allowed, jnp.arange(logits.shape[1])
        for end in end_ids:  # a select each, in one pass over the logits
            may_end = jnp.any(is_edge & (edges == end), axis=1, keepdims=True)
            open_ = jnp.where(ids == end, may_end, open_)
        return draw_indices(jnp.where(open_, logits, -jnp.inf), params, keys)

    forced = jnp.take_along_axis(edges, by_edge[:, None], axis=1)[:, 0]
    token = lax.cond(jnp.any(free), anywhere, lambda _: jnp.maximum(forced, 0), None)
    token = jnp.where(free, token, jnp.maximum(forced, 0))
    matches = is_edge & (edges == token[:, None])
    edge = jnp.where(matches.any(axis=1), jnp.argmax(matches, axis=1), -1).astype(jnp.int32)
    total = jax.nn.logsumexp(logits, axis=-1)
    logprob = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - total
    return NextToken(token, edge, logprob, jax.nn.log_softmax(safe, axis=-1))


# --- on the host: keys and closed sets -------------------------------------------------------


def key_words(key: int) -> np.ndarray:
    """Return a request's key as the two 32-bit words of a jax key."""
    return np.array([(key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF], np.uint32)


def uniform(key: int) -> float:
    """Return the random number in [0, 1) that a key names."""
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
    """Return the index of the alternative that a random number points to.

    Args:
        probabilities: Of the alternatives; they need not sum to 1.
        u: The random number, in [0, 1).
        temperature: As in `SamplingParams`; 0 takes the first of the likeliest.
        top_k: As in `SamplingParams`.
        top_p: As in `SamplingParams`.
        min_p: As in `SamplingParams`.
    """
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
