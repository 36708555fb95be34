"""The calls that the tests of this room repeat."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alignuser_jax.model import merge, split


def with_random_b(decoder, seed=11):
    """The decoder with `B` drawn at random, so that its adapters do something."""
    graphdef, lora, base = split(decoder)
    random = np.random.default_rng(seed)
    leaves, tree = jax.tree.flatten(lora)
    leaves = [jnp.asarray(random.normal(0, 0.1, a.shape), a.dtype) for a in leaves]
    return merge(graphdef, jax.tree.unflatten(tree, leaves), base)


def positions_like(tokens, start=0):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32) + start, tokens.shape)


def logits(decoder, tokens, positions=None, **options):
    """Jitted logits `[B, T, V]` of a call; one compilation per structure and `execution`."""
    positions = positions_like(tokens) if positions is None else positions
    return np.asarray(_logits(*split(decoder), tokens, positions, **options))


@partial(jax.jit, static_argnums=0, static_argnames="execution")
def _logits(graphdef, lora, base, tokens, positions, **options):
    decoder = merge(graphdef, lora, base)
    return decoder.logits(decoder(tokens, positions, **options))
