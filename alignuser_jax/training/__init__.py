"""Train a decoder on shards: Grain batches, loss, optimizer, step, checkpoints, the loop.

Importing the room imports no jax.
"""
