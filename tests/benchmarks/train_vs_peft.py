"""LoRA training of one small Qwen3, here and with transformers + PEFT: speed, memory, losses.

    python -m tests.benchmarks.train_vs_peft --json=ratios.json
    python -m tests.benchmarks.train_vs_peft --json=r.json --cases=dense --dtypes=float32

`dense`: full rows, all trained; both sides get the same batches. `ragged`: the project's own
conversations, trained on replies only, each trainer as its users run it: theirs padded to the
longest of a batch, ours packed into `packed_rows` of `packed_length`, with the longest
conversation as `seq_len`; real tokens count. `curves`: the losses of both sides step by step on
the same padded batches and from the same weights.

Each side is a process of its own that stays; the sides take turns, so that a busy machine hits
both, and medians are quoted. Tokens per CPU second do not count the waiting for other programs.
Peak memory is a process's high-water mark less what its imports took. A ratio above 1 is in
our favour: speeds ours / theirs, memory theirs / ours.
"""

import itertools
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from tests.benchmarks.sides import QWEN3

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "Where the rows go.", required=True)
flags.DEFINE_list("cases", ["dense", "ragged", "curves"], "Cases to run.")
flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of the base and of products.")
flags.DEFINE_list("vocabularies", ["32000", "152000"], "Vocabularies of the model.")
flags.DEFINE_integer("rounds", 5, "Measured steps of each side; one more is not measured.")
flags.DEFINE_integer("steps", 50, "Steps of the loss curves.")
flags.DEFINE_integer("rows", 8, "Rows of a batch (curves: half as many).")
flags.DEFINE_integer("length", 512, "Tokens of a row.")
flags.DEFINE_integer("packed_rows", 6, "Rows of our packed batch, half of each task.")
flags.DEFINE_integer("packed_length", 768, "Tokens of our packed rows.")
flags.DEFINE_integer("chunk", 512, "Our loss_chunk.")
flags.DEFINE_string("remat", "dots", "Our remat.")

RATE, CLIP = 1e-3, 1.0
TASKS = ("reflection", "world_model")


def memory() -> float:
    """High-water mark of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def serve(connection, make, *arguments) -> None:
    """Steps on demand: `(seconds, CPU seconds, loss)` per batch; the memory after None."""
    step, before = make(*arguments)
    while (batch := connection.recv()) is not None:
        started, worked = time.perf_counter(), time.process_time()
        loss = step(batch)
        passed = time.perf_counter() - started, time.process_time() - worked
        connection.send((*passed, loss))
    connection.send(memory() - before)


def peer(directory, adapter, dtype, _):
    """A step on `input_ids`, `attention_mask` and `labels` `[B, T]`, as PEFT says."""
    import peft
    import torch
    import transformers

    before = memory()
    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=kind)
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def step(batch):
        loss = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step, before


def here(directory, adapter, dtype, settings):
    """A step on a `Batch`: the trainer's own step; `settings` are a `TrainConfig`'s."""
    import jax.numpy as jnp

    from alignuser_jax.model import load_decoder
    from alignuser_jax.training.config import TrainConfig
    from alignuser_jax.training.step import init_state, make_train_step, trainable_parts

    before = memory()
    decoder = load_decoder(directory, adapters={"start": adapter}, dtype=jnp.dtype(dtype))
    config = TrainConfig(**settings).on("cpu")
    parts = trainable_parts(decoder, "lora")
    train_step, state = make_train_step(parts, TASKS, config), init_state(parts, config)

    def step(batch):
        nonlocal state
        state, output = train_step(state, parts.frozen, batch)
        return float(output.loss)

    return step, before


def settings() -> dict:
    """Our side's `TrainConfig`, with a constant rate as the peer's."""
    return {
        "steps": 10**6,
        "batch_size": FLAGS.rows,
        "seq_len": FLAGS.length,
        "learning_rate": RATE,
        "warmup_ratio": 0.0,
        "final_lr_ratio": 1.0,
        "clip_norm": CLIP,
        "remat": FLAGS.remat,
        "loss_chunk": FLAGS.chunk,
    }


# --- batches ------------------------------------------------------------------------------


def padded(sequences, length=None):
    """The peer's batch of sequences, to their longest or to `length`, and its real tokens.

    A sequence is `tokens`, `targets` and `weights` `[n]`; the peer shifts labels itself, so its
    rows have the last target too.
    """
    import numpy as np

    longest = length or max(len(s["tokens"]) for s in sequences)
    shape = (len(sequences), longest + 1)
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, -100, np.int64)
    for row, s in enumerate(sequences):
        n = len(s["tokens"])
        ids[row, :n], ids[row, n], mask[row, : n + 1] = s["tokens"], s["targets"][-1], 1
        labels[row, 1 : n + 1] = np.where(s["weights"] > 0, s["targets"], -100)
    real = sum(len(s["tokens"]) for s in sequences)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, real


def one_per_row(sequences, length):
    """Our batch of sequences, each a row of its own, and its real tokens."""
    import numpy as np

    from alignuser_jax.training.data import Batch

    def rows(values, dtype=np.int32):
        padding = [np.pad(v, (0, length - len(v))) for v in values]
        return np.stack(padding).astype(dtype)[None]

    batch = Batch(
        tokens=rows([s["tokens"] for s in sequences]),
        targets=rows([s["targets"] for s in sequences]),
        positions=rows([np.arange(len(s["tokens"])) for s in sequences]),
        segment_ids=rows([np.ones(len(s["tokens"])) for s in sequences]),
        weights=rows([s["weights"] for s in sequences], np.float32),
        task=np.zeros((1, len(sequences), length), np.int32),
    )
    return batch, sum(len(s["tokens"]) for s in sequences)


def dense_batches(vocabulary):
    """Pairs (ours, theirs) of the same full rows, every token but the first a target."""
    import numpy as np

    random = np.random.default_rng(0)
    while True:
        ids = random.integers(0, vocabulary, (FLAGS.rows, FLAGS.length + 1))
        sequences = [
            {"tokens": r[:-1], "targets": r[1:], "weights": np.ones(len(r) - 1)} for r in ids
        ]
        yield one_per_row(sequences, FLAGS.length), padded(sequences)


class Conversations:
    """Shards of both alignment tasks from a synthetic log, and their tokenizer."""

    def __init__(self, folder: Path):
        from alignuser_jax.datasets.formats import synthetic
        from alignuser_jax.runs.experiment import load_experiment
        from alignuser_jax.runs.folder import open_run
        from alignuser_jax.runs.policy import tokenizer_of
        from alignuser_jax.runs.stages import build_stage

        config = Path(__file__).parents[2] / "configs" / "tiny.py"
        smaller = ["align_shards.rollouts.episodes=10", "agents=20"]
        experiment = load_experiment(config, smaller)
        made = synthetic.SyntheticConfig(users=150, items=160)
        dataset = synthetic.generate(made)
        run = open_run(experiment, dataset, folder)
        self.tokenizer = tokenizer_of(experiment, dataset, run)
        self.shards = str(build_stage(experiment, dataset, run, "align"))
        self.waited = []  # seconds for each packed batch
        longest = max(len(s["tokens"]) for s in itertools.chain(*self.by_task().values()))
        packed = {"batch_size": FLAGS.packed_rows, "row_len": FLAGS.packed_length}
        self.settings = settings() | packed | {"seq_len": longest}

    def packed(self):
        """Our batches with their real tokens, as training reads them, without end."""
        from alignuser_jax.training.config import TrainConfig
        from alignuser_jax.training.data import Batches

        quotas = dict.fromkeys(TASKS, FLAGS.packed_rows // 2)
        config = TrainConfig(**self.settings).on("cpu")
        batches = Batches(self.shards, self.tokenizer, quotas, config)
        while True:
            started = time.perf_counter()
            batch = next(batches)
            self.waited.append(time.perf_counter() - started)
            yield batch, int((batch.segment_ids > 0).sum())

    def by_task(self):
        """The same conversations one by one, task -> list."""
        from alignuser_jax.shards import read_examples
        from alignuser_jax.training.config import TrainConfig
        from alignuser_jax.training.data import sequence

        config, by_task = TrainConfig(**settings()), {task: [] for task in TASKS}
        for example in read_examples(self.shards):
            if (made := sequence(self.tokenizer, example, config)) is not None:
                by_task[example.task].append(made)
        return by_task

    def sequences(self):
        """Conversations, tasks in turn, shuffled, without end."""
        import numpy as np

        by_task, random = self.by_task(), np.random.default_rng(0)
        for parts in by_task.values():
            random.shuffle(parts)
        return itertools.chain.from_iterable(
            zip(*(itertools.cycle(parts) for parts in by_task.values()), strict=False)
        )

    def ragged_batches(self):
        """Pairs (ours packed, theirs padded): other conversations of the same shards, and as
        many, so that a step is the same work for both."""
        sequences = self.sequences()
        for ours, real in self.packed():
            conversations = int(ours.segment_ids.max(axis=-1).sum())
            yield (ours, real), padded([next(sequences) for _ in range(conversations)])

    def same_batches(self):
        """Pairs (ours, theirs) of the same conversations, one per row."""
        sequences = self.sequences()
        while True:
            some = [next(sequences) for _ in range(max(FLAGS.rows // 2, 1))]
            length = max(-(-len(s["tokens"]) // 128) * 128 for s in some)
            length = min(length, FLAGS.length)
            yield one_per_row(some, FLAGS.length), padded(some, length)


# --- measuring ----------------------------------------------------------------------------


def write_model(directory: Path, vocabulary: int) -> tuple[str, str]:
    """A random base and a fresh adapter, as directories that both sides read."""
    import torch
    import transformers

    from alignuser_jax.model import LoraConfig, load_decoder, named_arrays, save_adapter, split

    torch.manual_seed(0)
    config = transformers.Qwen3Config(vocab_size=vocabulary, **QWEN3)
    transformers.Qwen3ForCausalLM(config).save_pretrained(directory / "base")
    lora = LoraConfig(rank=16, alpha=32.0)
    _, fresh, _ = split(load_decoder(directory / "base", lora))
    save_adapter(directory / "adapter", named_arrays(fresh), lora)
    return str(directory / "base"), str(directory / "adapter")


def take_turns(dtype, vocabulary, batches, steps, settings):
    """Both sides through `steps + 1` batches: side -> (tokens/s, tokens per CPU second,
    seconds) of each step but the first, side -> losses, side -> peak GiB."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        base, adapter = write_model(Path(directory), vocabulary)
        sides, rates, losses, peak = {}, {}, {}, {}
        for name, make in (("ours", here), ("peer", peer)):
            mine, other = context.Pipe()
            arguments = (other, make, base, adapter, dtype, settings)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            sides[name], rates[name], losses[name] = mine, [], []
        for number, pair in zip(range(steps + 1), batches, strict=False):
            for (name, side), (batch, real) in zip(sides.items(), pair, strict=True):
                side.send(batch)
                *seconds, loss = side.recv()
                losses[name].append(loss)
                if number:  # the first waited for the compilation
                    rates[name].append([*(real / passed for passed in seconds), seconds[0]])
        for name, side in sides.items():
            side.send(None)
            peak[name] = side.recv()
    return rates, losses, peak


def speed_rows(case, dtype, vocabulary, batches, settings, waited=()):
    """`waited`: seconds for each of our batches, being filled while they are taken."""
    rates, losses, peak = take_turns(dtype, vocabulary, batches, FLAGS.rounds, settings)
    name = f"{case} {dtype} {vocabulary // 1000}k"
    if case == "dense":
        check_equal(losses, 0.01 if dtype == "float32" else 0.02)
    for number, (a, b) in enumerate(zip(rates["ours"], rates["peer"], strict=True), 1):
        print(f"{name}: round {number}: {a[0]:.0f} {b[0]:.0f} tokens/s", file=sys.stderr)
    for place, metric in enumerate(("tokens/s", "tokens/CPU s")):
        ours, theirs = (
            statistics.median(rate[place] for rate in rates[side]) for side in ("ours", "peer")
        )
        yield row(name, metric, ours, theirs, ours / theirs)
    yield row(name, "peak GiB", peak["ours"], peak["peer"], peak["peer"] / peak["ours"])
    if waited := waited[1 : 1 + FLAGS.rounds]:
        share = sum(waited) / sum(rate[2] for rate in rates["ours"])
        yield row(name, "data wait share; peer: allowed", share, 0.02, 0.02 / share)


def curve_rows(vocabulary, batches):
    _, losses, _ = take_turns("float32", vocabulary, batches, FLAGS.steps - 1, settings())
    name = f"curves float32 {vocabulary // 1000}k"
    pairs = list(zip(losses["ours"], losses["peer"], strict=True))
    worst = max(abs(a - b) / b for a, b in pairs)
    for metric, (a, b) in (("first loss", pairs[0]), (f"loss {len(pairs)}", pairs[-1])):
        yield row(name, metric, a, b, b / a)
    yield row(name, "largest difference; peer: allowed", worst, 0.01, 0.01 / max(worst, 1e-9))


def check_equal(losses, tolerance):
    for number, (a, b) in enumerate(zip(losses["ours"], losses["peer"], strict=True)):
        if abs(a - b) > tolerance * b:
            raise ValueError(f"step {number}: losses {a} and {b}: not the same training")


def row(case, metric, ours, theirs, ratio):
    made = {"case": case, "metric": metric, "ours": ours, "peer": theirs, "ratio": ratio}
    print(made, file=sys.stderr, flush=True)
    return made


def main(argv: list[str]) -> None:
    from tabulate import tabulate

    rows, vocabularies = [], [int(v) for v in FLAGS.vocabularies]
    with tempfile.TemporaryDirectory() as folder:
        ragged = {"ragged", "curves"} & set(FLAGS.cases)
        conversations = Conversations(Path(folder) / "run") if ragged else None
        for vocabulary, dtype in itertools.product(vocabularies, FLAGS.dtypes):
            if "dense" in FLAGS.cases:
                rows += speed_rows(
                    "dense", dtype, vocabulary, dense_batches(vocabulary), settings()
                )
            if "ragged" in FLAGS.cases:
                batches, conversations.waited = conversations.ragged_batches(), []
                how = conversations.settings, conversations.waited
                rows += speed_rows("ragged", dtype, vocabulary, batches, *how)
        if "curves" in FLAGS.cases:
            rows += curve_rows(vocabularies[0], conversations.same_batches())
        load = os.getloadavg()[0]
    cells = [[r["case"], r["metric"], *(f"{r[k]:.4g}" for k in SIDES)] for r in rows]
    headers = ["case", "metric", *SIDES]
    print(tabulate(cells, headers, tablefmt="github", disable_numparse=True))
    print(f"load of the machine at the end: {load:.1f} on {os.cpu_count()} cores")
    Path(FLAGS.json).write_text(json.dumps(rows, indent=1) + "\n")


SIDES = ("ours", "peer", "ratio")

if __name__ == "__main__":
    app.run(main)
