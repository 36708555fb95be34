"""One small Qwen3, forward and backward, here and in torch: tokens/s and peak memory as ratios.

    python -m tests.benchmarks.decoder_against_torch --rounds=5

Each side is a process of its own that stays; the sides take turns, so that a busy machine hits
both. Full-parameter gradients of the mean next-token loss; torch with its default attention.
Peak memory is the process's high-water mark less what its imports took.
"""

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time

from absl import app, flags

from tests.benchmarks.sides import QWEN3

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 5, "Alternating rounds.")
flags.DEFINE_integer("steps", 2, "Steps of a round.")
flags.DEFINE_integer("rows", 8, "Rows of a batch.")
flags.DEFINE_integer("length", 512, "Tokens of a row.")
flags.DEFINE_integer("vocabulary", 32_000, "Vocabulary.")
flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types to compare in.")


def memory() -> float:
    """High-water mark of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def serve(connection, make, *arguments) -> None:
    """Steps on demand: seconds and the loss for each request, the memory at the end."""
    step, before = make(*arguments)
    step()  # compiles
    while connection.recv():
        started = time.perf_counter()
        loss = step()
        connection.send((time.perf_counter() - started, loss))
    connection.send(memory() - before)


def torch_side(directory, dtype, tokens):
    import torch
    import transformers

    before = memory()
    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=kind).train()
    ids = torch.tensor(tokens)

    def step():
        model.zero_grad(set_to_none=True)
        loss = model(ids, labels=ids).loss
        loss.backward()
        return float(loss)

    return step, before


def jax_side(directory, dtype, tokens):
    import jax
    import jax.numpy as jnp

    from alignuser_jax.model import load_decoder, merge, split
    from alignuser_jax.model.decoder import Execution
    from alignuser_jax.training.loss import cross_entropy

    before = memory()
    graphdef, lora, base = split(load_decoder(directory, dtype=jnp.dtype(dtype)))
    ids = jnp.asarray(tokens)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    targets = jnp.roll(ids, -1, axis=1)
    weights = jnp.ones(ids.shape).at[:, -1].set(0) / (ids.shape[0] * (ids.shape[1] - 1))

    @jax.jit
    def gradient(base):
        def loss(base):
            decoder = merge(graphdef, lora, base)
            hidden = decoder(ids, positions, execution=Execution(unroll=len_layers))
            return cross_entropy(
                hidden, decoder.head(), targets, weights, trained_head=True, chunk=512
            )

        return jax.value_and_grad(loss, has_aux=True)(base)

    len_layers = QWEN3["num_hidden_layers"]

    def step():
        (loss, _), grads = jax.block_until_ready(gradient(base))
        return float(loss)

    return step, before


def compare(dtype: str) -> list[str]:
    import numpy as np
    import torch
    import transformers

    tokens = np.random.default_rng(0).integers(0, FLAGS.vocabulary, (FLAGS.rows, FLAGS.length))
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        config = transformers.Qwen3Config(vocab_size=FLAGS.vocabulary, **QWEN3)
        transformers.Qwen3ForCausalLM(config).save_pretrained(directory)
        context = multiprocessing.get_context("spawn")
        sides = {}
        for name, make in (("torch", torch_side), ("here", jax_side)):
            mine, other = context.Pipe()
            arguments = (other, make, directory, dtype, tokens)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            sides[name] = mine
        seconds, losses = {name: [] for name in sides}, {}
        for number in range(FLAGS.rounds * FLAGS.steps + 1):
            for name, side in sides.items():
                side.send(True)
                passed, losses[name] = side.recv()
                if number:  # the first waited for the compilation
                    seconds[name].append(passed)
        peak = {}
        for name, side in sides.items():
            side.send(False)
            peak[name] = side.recv()
    if abs(losses["torch"] - losses["here"]) > 0.02 * losses["torch"]:
        sys.exit(f"the sides compute different losses: {losses}")
    rate = {n: tokens.size / statistics.median(s) for n, s in seconds.items()}
    return [
        dtype,
        f"{rate['torch']:.0f}",
        f"{rate['here']:.0f}",
        f"{rate['here'] / rate['torch']:.2f}",
        f"{peak['torch']:.2f}",
        f"{peak['here']:.2f}",
        f"{peak['here'] / peak['torch']:.2f}",
    ]


def main(argv: list[str]) -> None:
    from tabulate import tabulate

    headers = ["dtype", "torch tok/s", "here tok/s", "here / torch"]
    headers += ["torch GiB", "here GiB", "here / torch"]
    rows = [compare(dtype) for dtype in FLAGS.dtypes]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
