"""One optimizer step of the tiny task, over some mesh and some processes, as an .npz of its
loss, its tasks' losses and every gradient:

    python one_step.py SHARDS TOKENIZER OUT [data=2,fsdp=2,tensor=2:ACCUMULATION:PACKED ...]

PACKED is "packed", "unpacked", or "upper": packed, with adapters on the upper layer only.
"""

import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alignuser_jax.language import TextTokenizer
from alignuser_jax.model import (
    DecoderConfig,
    LoraConfig,
    init_decoder,
    merge,
    named_arrays,
    split,
)
from alignuser_jax.parallel import Hosts, make_mesh, place, replicate, start_hosts
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batches
from alignuser_jax.training.step import init_state, make_train_step, trainable_parts

QUOTAS = {"reflection": 16, "world_model": 16}


def unpacked(batch):
    """Each example of a packed batch in a row of its own; rows of padding fill it up."""
    rows = []
    flat = [x.reshape(-1, x.shape[-1]) for x in batch]
    for row, segments in enumerate(batch.segment_ids.reshape(-1, batch.tokens.shape[-1])):
        for segment in range(1, segments.max() + 1):
            at = segments == segment
            fields = [np.zeros_like(x[row]) for x in flat]
            for field, whole in zip(fields, flat, strict=True):
                field[: at.sum()] = whole[row][at]
            example = type(batch)(*fields)
            example.segment_ids[: at.sum()] = 1
            example.task[:] = flat[5][row, 0]
            rows.append(example)
    rows += [jax.tree.map(np.zeros_like, rows[0])] * (-len(rows) % 32)
    return jax.tree.map(lambda *parts: np.stack(parts)[None], *rows)


def decoder(tokenizer, layers=None):
    shape = DecoderConfig(tokenizer.vocab_size, 16, 32, 2, 4, 2, 8)
    adapters = LoraConfig(rank=4, alpha=8, layers=layers)
    graphdef, lora, base = split(init_decoder(shape, adapters, seed=3))
    lora = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), lora)
    return merge(graphdef, lora, base)


def one_step(shards, tokenizer, sizes, accumulation, packed):
    config = TrainConfig(
        steps=10, batch_size=32, seq_len=64, accumulation=accumulation, learning_rate=1e-2,
        warmup_ratio=0.0, clip_norm=1e9, task_weights={"reflection": 0.25}, loss_chunk=64,
    ).on("cpu")  # fmt: skip
    mesh = make_mesh(**sizes)
    with jax.set_mesh(mesh):
        layers = 1 if packed == "upper" else None
        graphdef, state = nnx.split(decoder(tokenizer, layers))
        parts = trainable_parts(nnx.merge(graphdef, place(state, mesh)), "lora")
        hosts = Hosts(mesh)
        rows = hosts.rows(accumulation, config.batch_size)
        batch = next(Batches(shards, tokenizer, QUOTAS, config, rows=rows))
        size = config.batch_size
        if packed == "unpacked":
            batch = unpacked(batch)
            size = batch.tokens.shape[1]
        step = make_train_step(parts, sorted(QUOTAS), config)
        placed = hosts.global_batch(batch, size)
        state, output = step(init_state(parts, config), parts.frozen, placed)
        moments = replicate(state.opt_state[1][0].mu, mesh)  # (1 - b1) x gradient
        return {"loss": output.loss, "nll": output.nll, "weight": output.weight} | {
            name: values / (1 - config.b1) for name, values in named_arrays(moments).items()
        }


def main():
    shards, tokens, out, *cases = sys.argv[1:]
    if "PROCESS" in os.environ:
        start_hosts(os.environ["COORDINATOR"], 2, int(os.environ["PROCESS"]))
    tokenizer = TextTokenizer.load(tokens)
    for case in cases:
        mesh, accumulation, packed = case.split(":")
        sizes = {a: int(n) for a, n in (size.split("=") for size in mesh.split(","))}
        found = one_step(shards, tokenizer, sizes, int(accumulation), packed)
        if jax.process_index() == 0:
            np.savez(f"{out}/{case.replace(':', '_')}.npz", **jax.tree.map(np.asarray, found))


if __name__ == "__main__":
    main()
