"""From shards to trained weights: Grain batches, loss, optimizer, step, checkpoints, the loop.

Importing the room imports no jax: `alignuser_jax.shards` serves rooms that only write shards.
"""
