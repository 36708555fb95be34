"""Loading an 8B-shaped checkpoint of random numbers: peak host memory beside the model's bytes.

    python tests/benchmarks/loading_memory.py --layers=2 --devices=8

Qwen3-8B's shapes at a reduced depth, bfloat16, in several files. On a CPU the arrays themselves
are host memory, so the least possible peak is the model's bytes; what loading needs beside them
should be about the largest block of one stacked weight, whatever the depth.
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("layers", 2, "Depth.")
flags.DEFINE_integer("devices", 1, "Simulated devices, all on the fsdp axis.")
flags.DEFINE_integer("divisor", 1, "Divides hidden and inner size (a quick look).")
flags.DEFINE_string("directory", None, "Where the files go (default: a temporary folder).")


def resident() -> dict[str, int]:
    """Bytes of this process that are its own (anonymous) and mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: 1024 * int(values[name].split()[0]) for name in ("RssAnon", "RssFile")}


class Peak(threading.Thread):
    """The highest `resident` values while it runs, looked at every millisecond."""

    def __init__(self):
        super().__init__(daemon=True)
        self.highest, self.over = resident(), False

    def run(self):
        while not self.over:
            now = resident()
            self.highest = {name: max(now[name], self.highest[name]) for name in now}
            time.sleep(0.001)


def write_checkpoint(directory: Path) -> None:
    """Random bits of the right shapes, a file per layer and one for the rest."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from alignuser_jax.model import DecoderConfig, abstract_decoder, split
    from alignuser_jax.model.files.hf_config import to_hf
    from alignuser_jax.model.files.weights import TABLE, find

    config = DecoderConfig(
        vocab_size=151936 // FLAGS.divisor,
        hidden_size=4096 // FLAGS.divisor,
        intermediate_size=12288 // FLAGS.divisor,
        num_layers=FLAGS.layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        tie_word_embeddings=False,
    )
    base, random, weight_map = split(abstract_decoder(config))[2], np.random.default_rng(0), {}
    for part in range(-1, FLAGS.layers):
        tensors = {}
        for ours, template, transposed in TABLE:
            node = find(base, ours)
            if node is None or ("{i}" in template) != (part >= 0):
                continue
            shape = node.get_value().shape["{i}" in template :]
            shape = shape[::-1] if transposed else shape
            values = random.standard_normal(shape, np.float32)
            tensors[template.format(i=part)] = values.astype(ml_dtypes.bfloat16)
        file = f"part-{part + 1}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    (directory / "config.json").write_text(json.dumps(to_hf(config)))


def measure(directory: Path) -> None:
    import jax
    import jax.numpy as jnp
    from tabulate import tabulate

    from alignuser_jax.model import load_decoder, split
    from alignuser_jax.model.files.tensors import Tensor, find_tensors
    from alignuser_jax.parallel import make_mesh

    jnp.zeros(1).block_until_ready()
    read, whole = [], Tensor.pieces

    def counted(self, index=()):
        for where, values in whole(self, index):
            read.append(values.nbytes)
            yield where, values

    Tensor.pieces = counted
    mesh = make_mesh(fsdp=FLAGS.devices)
    before, peak, started = resident(), Peak(), time.perf_counter()
    peak.start()
    decoder = load_decoder(directory, dtype=jnp.bfloat16, mesh=mesh)
    jax.block_until_ready(jax.tree.leaves(split(decoder)[2]))
    seconds, peak.over = time.perf_counter() - started, True
    peak.join()
    leaves = jax.tree.leaves(split(decoder)[2])
    model = sum(leaf.nbytes for leaf in leaves)
    block = max(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    files = sum(tensor.nbytes for tensor in find_tensors(directory).values())
    own = peak.highest["RssAnon"] - before["RssAnon"]
    mapped = peak.highest["RssFile"] - before["RssFile"]
    rows = [
        ["model", model / 1e9, 1],
        ["largest block of one stacked weight", block / 1e9, block / model],
        ["peak of the process's own memory", own / 1e9, own / model],
        ["the same beside the model", (own - model) / 1e9, (own - model) / model],
        ["peak of mapped file pages", mapped / 1e9, mapped / model],
        ["bytes copied out of the files", sum(read) / 1e9, sum(read) / files],
    ]
    print(tabulate(rows, ["", "GB", "/ model"], floatfmt=".3f"))
    print(f"{FLAGS.devices} devices, {seconds:.1f} s, {files / seconds / 1e9:.2f} GB/s")


def main(argv: list[str]) -> None:
    flag = f"--xla_force_host_platform_device_count={FLAGS.devices}"
    os.environ["XLA_FLAGS"] = flag
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(FLAGS.directory or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "config.json").is_file():
            if os.fork() == 0:  # so that what writing took is not in the figures
                write_checkpoint(directory)
                os._exit(0)
            if os.wait()[1]:
                sys.exit("writing the checkpoint failed")
        measure(directory)


if __name__ == "__main__":
    app.run(main)
