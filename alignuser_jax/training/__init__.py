"""From shards to trained weights: Grain batches, loss, optimizer, step, checkpoints, the loop.

Importing the room imports no jax: `records_io` serves rooms that only write shards.
"""
