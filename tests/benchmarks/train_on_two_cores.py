"""LoRA training of the real SmolLM2-135M on a CPU: what each setting gains, and PEFT beside it.

    alignuser fetch-weights smollm2
    taskset -c 0,1 python -m tests.benchmarks.train_on_two_cores --json=cores.json
    taskset -c 0,1 python -m tests.benchmarks.train_on_two_cores --json=c.json \
        --cases=before,best,peft_best

Every case is a process of its own that stays, and they take turns on the same batch: a busy
machine hits all of them, and medians are quoted. A batch has `rows` full rows of `length`
random tokens, of which `share` are trained on, as in conversations whose replies are short.
PEFT is run as its users run it, in float32 (torch's bfloat16 products are 5 times slower on a
CPU without bfloat16), with two threads, rank 16 on all seven projections, and for `peft_best`
the same layers (`layers_to_transform`). The first losses of all float32 cases are compared: the
same model on the same batch. The ratio is to the first case, of tokens per second of wall time
and of tokens per second of CPU time, in which waiting for other programs does not count.
"""

import os
import resource
import statistics
import time

from absl import app, flags

from tests.benchmarks.sides import Side, save, say

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "Where the rows go.", required=True)
flags.DEFINE_list("cases", ["before", "best", "peft_all", "peft_best"], "Cases, or 'all'.")
flags.DEFINE_string("backbone", "smollm2", "The model.")
flags.DEFINE_integer("rounds", 3, "Measured steps of each case; one more is not measured.")
flags.DEFINE_integer("rows", 2, "Rows of a batch.")
flags.DEFINE_integer("length", 512, "Tokens of a row.")
flags.DEFINE_float("share", 0.05, "Share of the tokens that are trained on.")

BEFORE = {"layers": None, "remat": "full", "loss_chunk": 512, "dtype": "float32"}
"""The settings of the CPU configs before."""

BEST = {"layers": 10, "remat": "none", "loss_chunk": 64, "dtype": "float32"}

CASES = {
    "before": BEFORE,
    "chunk_64": BEFORE | {"loss_chunk": 64},
    "remat_dots": BEFORE | {"loss_chunk": 64, "remat": "dots"},
    "remat_none": BEFORE | {"loss_chunk": 64, "remat": "none"},
    "best": BEST,
    "best_16_layers": BEST | {"layers": 16},
    "best_6_layers": BEST | {"layers": 6},
    "best_remat_full": BEST | {"remat": "full"},
    "best_bfloat16": BEST | {"dtype": "bfloat16"},
    "peft_all": {"peer": True, "layers": None},
    "peft_best": {"peer": True, "layers": BEST["layers"]},
}
"""Name to settings."""


def memory() -> float:
    """High-water mark of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stepper:
    """Takes steps on one batch; made by its subclasses in a process of its own."""

    def __init__(self, directory, batch, settings):
        self._step = self.made(directory, batch, settings)

    def step(self):
        """(seconds, CPU seconds, loss) of one step."""
        started, worked = time.perf_counter(), time.process_time()
        loss = self._step()
        return time.perf_counter() - started, time.process_time() - worked, loss

    def memory(self):
        """GiB beyond what the imports took."""
        return memory() - self.before


class Peer(Stepper):
    """transformers and PEFT."""

    def made(self, directory, batch, settings):
        import peft
        import torch
        import transformers

        from alignuser_jax.model.config import PROJECTIONS

        torch.set_num_threads(2)
        self.before = memory()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        )
        layers = settings["layers"]
        last = model.config.num_hidden_layers
        lora = peft.LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules=[f"{name}_proj" for name in PROJECTIONS],
            layers_to_transform=None if layers is None else list(range(last - layers, last)),
        )
        model = peft.get_peft_model(model, lora).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
        tokens, weights = (torch.from_numpy(array) for array in batch)
        labels = torch.where(weights > 0, tokens, -100)

        def step():
            loss = model(input_ids=tokens, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss.detach())

        return step


class Here(Stepper):
    """The trainer's own step."""

    def made(self, directory, batch, settings):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from alignuser_jax.model import LoraConfig, load_decoder
        from alignuser_jax.training.config import TrainConfig
        from alignuser_jax.training.data import Batch
        from alignuser_jax.training.step import init_state, make_train_step, trainable_parts

        self.before = memory()
        tokens, weights = (array[None] for array in batch)
        shape = (1, tokens.shape[1], tokens.shape[2] - 1)
        rows = Batch(
            tokens=tokens[..., :-1].astype(np.int32),
            targets=tokens[..., 1:].astype(np.int32),
            positions=np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape),
            segment_ids=np.ones(shape, np.int32),
            weights=weights[..., 1:].astype(np.float32),
            task=np.zeros(shape, np.int32),
        )
        config = TrainConfig(
            steps=10**6, batch_size=shape[1], seq_len=shape[2], warmup_ratio=0.0,
            remat=settings["remat"], loss_chunk=settings["loss_chunk"],
        ).on("cpu")  # fmt: skip
        lora = LoraConfig(rank=16, alpha=32, layers=settings["layers"])
        decoder = load_decoder(directory, lora, dtype=jnp.dtype(settings["dtype"]))
        parts = trainable_parts(decoder, "lora")
        train_step, state = make_train_step(parts, ["a"], config), init_state(parts, config)
        rows = jax.device_put(rows)

        def step():
            nonlocal state
            state, output = train_step(state, parts.frozen, rows)
            return float(output.loss)

        return step


def made_batch():
    """Tokens `[B, T + 1]` and weights of the same shape, 0 at the first token of a row."""
    import numpy as np

    random = np.random.default_rng(0)
    shape = (FLAGS.rows, FLAGS.length + 1)
    weights = (random.random(shape) < FLAGS.share).astype(np.int64)
    weights[:, 0] = 0
    return random.integers(1000, 40_000, shape), weights


def measured(names, directory):
    """Case -> (tokens/s, tokens per CPU second) of each round, case -> loss, case -> GiB."""
    batch, sides = made_batch(), {}
    for name in names:
        kind = Peer if CASES[name].get("peer") else Here
        sides[name] = Side(kind, str(directory), batch, CASES[name])
    rates, losses, tokens = {name: [] for name in names}, {}, FLAGS.rows * FLAGS.length
    for number in range(FLAGS.rounds + 1):
        for name, side in sides.items():
            seconds, worked, loss = side.ask("step")
            losses.setdefault(name, loss)
            if number:  # the first waited for the compilation
                rates[name].append((tokens / seconds, tokens / worked))
            say(f"round {number} {name}: {seconds:.1f} s, {worked:.1f} CPU s, loss {loss:.4f}")
    peak = {name: side.ask("memory") for name, side in sides.items()}
    for side in sides.values():
        side.close()
    return rates, losses, peak


def main(argv):
    from tabulate import tabulate

    from alignuser_jax.model.files.backbone import backbone_directory

    names = list(CASES) if FLAGS.cases == ["all"] else FLAGS.cases
    if unknown := sorted(set(names) - set(CASES)):
        raise app.UsageError(f"--cases {unknown}: expected some of {list(CASES)}")
    directory = backbone_directory(FLAGS.backbone, "float32")
    rates, losses, peak = measured(names, directory)
    exact = {n: v for n, v in losses.items() if CASES[n].get("dtype") != "bfloat16"}
    if max(exact.values()) > 1.001 * min(exact.values()):
        raise ValueError(f"the first losses differ: {losses}: not the same training")
    middle, rows = statistics.median, []
    for name in names:
        ratios = [
            middle(a[i] / b[i] for a, b in zip(rates[name], rates[names[0]], strict=True))
            for i in range(2)
        ]
        wall, cpu = (middle(rate[i] for rate in rates[name]) for i in range(2))
        rows.append({"case": name, "tokens/s": wall, "ratio": ratios[0], "tokens/CPU s": cpu,
                     "CPU ratio": ratios[1], "peak GiB": peak[name]})  # fmt: skip
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    save(rows, FLAGS.json)


if __name__ == "__main__":
    app.run(main)
