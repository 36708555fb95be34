"""Drawing one token per row: greedy, temperature and top-p, over the vocabulary or over edges.

Letters: S rows (slots), V vocabulary, E edges of an automaton state. A row's draw depends on
its own logits, parameters and key only; the branches taken for speed depend on the whole batch
but never change a row's result.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def nucleus(logits: Float[Array, "S N"], top_p: Float[Array, " S"]) -> Bool[Array, "S N"]:
    """The smallest set of the likeliest entries whose probability reaches top_p (ties kept)."""
    p = jax.nn.softmax(logits, axis=-1)
    ranked = jnp.flip(jnp.sort(p, axis=-1), axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    cutoff = jnp.min(jnp.where(before < top_p[:, None], ranked, jnp.inf), axis=-1)
    return (p >= cutoff[:, None]) | (top_p >= 1)[:, None]


def draw(
    logits: Float[Array, "S N"],
    temperature: Float[Array, " S"],
    top_p: Float[Array, " S"],
    keys,
) -> Int[Array, " S"]:
    """One index per row: argmax at temperature 0, else a sample (Gumbel); -inf is never
    drawn."""

    def sampled(_):
        scaled = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        scaled = jax.lax.cond(
            jnp.any(top_p < 1),
            lambda x: jnp.where(nucleus(x, top_p), x, -jnp.inf),
            lambda x: x,
            scaled,
        )
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(
            keys
        )
        return jnp.argmax(scaled + noise, axis=-1)

    greedy = jnp.argmax(logits, axis=-1)
    drawn = jax.lax.cond(jnp.any(temperature > 0), sampled, lambda _: greedy, None)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


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
    ends: Int[Array, " K"],
    temperature: Float[Array, " S"],
    top_p: Float[Array, " S"],
    keys,
) -> Pick:
    """The next token of every row under its automaton state (`edges`: -1 = no edge).

    `allowed` says which ids free text may use (an embedding can be wider than its tokenizer);
    those of `ends` it may use only where they are edges.
    """
    is_edge = edges >= 0
    at_edges = jnp.take_along_axis(logits, jnp.where(is_edge, edges, 0), axis=1)
    restricted = jnp.where(is_edge, at_edges, -jnp.inf)
    has_edge = is_edge.any(axis=1)
    safe = jnp.where(has_edge[:, None], restricted, 0.0)
    by_edge = draw(safe, temperature, top_p, keys)

    def anywhere(_):
        may_end = jnp.any(is_edge[..., None] & (edges[..., None] == ends), axis=1)
        open_ = jnp.broadcast_to(allowed, logits.shape).at[:, ends].set(may_end)
        return draw(jnp.where(open_, logits, -jnp.inf), temperature, top_p, keys)

    forced = jnp.take_along_axis(edges, by_edge[:, None], axis=1)[:, 0]
    token = jax.lax.cond(jnp.any(free), anywhere, lambda _: jnp.maximum(forced, 0), None)
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
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def draw_alternative(
    probabilities: np.ndarray, temperature: float, top_p: float, u: float
) -> int:
    """The alternative that `u` in [0, 1) points to; at temperature 0 the likeliest (first)."""
    p = np.asarray(probabilities, float)
    if temperature <= 0:
        return int(p.argmax())
    with np.errstate(divide="ignore"):
        logs = np.log(p) / temperature
    p = np.exp(logs - logs.max())
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0.0
    cumulative = np.cumsum(p)
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(p) - 1)
