"""Compare greedy generation with one small Qwen3 here and in Hugging Face `generate` (CPU).

    python -m tests.benchmarks.decode_vs_transformers --json=ratios.json
    python -m tests.benchmarks.decode_vs_transformers --json=r.json --cases=8,k4 --rounds=3

A case is a batch size (prompts of `--prompt` tokens, `--new` tokens each) or `k4`: four samples
of one prompt of `--long_prompt` tokens, beside four separate requests to the same engine with
prefix reuse off. Both sides hold the same weights and get the same ids; every round has new
prompts, so no prefix is reused. The peer is `generate` with a dynamic or a static
cache (`--compiled`: or a compiled static one, the time to compile not counted), whichever was
faster in the warm-up of that cell.
In f32 both sides' tokens must be equal but for near-ties; the share of equal rows is a row.

Tokens/s are generated tokens by the whole time, prefill included; `prefill` rows are the same
prompts with one new token. Each side is a process of its own; the sides take turns, medians of
the rounds' ratios are quoted. A ratio above 1 is in our favour.
"""

import itertools
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags

from tests.benchmarks import sides

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "File for the rows.", required=True)
flags.DEFINE_list("cases", ["1", "8", "32", "64", "k4"], "Batch sizes, and k4.")
flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Types of weights and products.")
flags.DEFINE_integer("rounds", 5, "Measured rounds of each side; one more is not measured.")
flags.DEFINE_integer("prompt", 256, "Tokens of a prompt.")
flags.DEFINE_integer("long_prompt", 1024, "Tokens of the prompt of k4.")
flags.DEFINE_integer("new", 64, "New tokens of each row.")
flags.DEFINE_integer("vocabulary", 32_768, "Vocabulary of the model.")
flags.DEFINE_integer("chunk", 64, "Our chunk.")
flags.DEFINE_integer("group", 0, "Our group; 0: as many rows as the batch has.")
flags.DEFINE_integer("strips", 1, "Our strips.")
flags.DEFINE_integer("steps", 32, "Our steps.")
flags.DEFINE_bool("compiled", False, "Let the peer try torch.compile with its static cache.")
flags.DEFINE_integer("threads", 2, "Threads of torch.")
flags.DEFINE_bool("quick", False, "A tiny model and short texts, to try the program itself.")

SHAPE = sides.QWEN3 | {"max_position_embeddings": 4096}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 4}
NEAR_TIE = 1e-3
"""Logits of the peer that are this close in f32 may come out in either order."""

SAMPLES = 4


class Here:
    """Our engine on prompts of token ids."""

    def __init__(self, directory, dtype):
        import jax.numpy as jnp

        from alignuser_jax.model import load_decoder
        from alignuser_jax.sampling.workload import NumberedWords

        self._decoder = load_decoder(directory, dtype=jnp.dtype(dtype))
        self._tokenizer = NumberedWords(self._decoder.config.vocab_size)
        self._engines = {}

    def open(self, name, slots, context, *, chunk, group, prefill, strips, steps, reuse=False):
        """Make an engine with this name, in place of the one that had it."""
        from alignuser_jax.sampling import Engine, EngineConfig

        self._engines.pop(name, None)
        config = EngineConfig(
            slots=slots,
            group=group or slots,
            chunk=chunk,
            context=-(-context // chunk) * chunk,
            prefill=prefill,
            strips=strips,
            steps=steps,
            reuse=reuse,
        )
        self._engines[name] = Engine(self._decoder, self._tokenizer, config)

    def generate(self, prompts, new, samples=1, name="ours"):
        """Return the seconds, and the new tokens of each row; several samples are drawn."""
        from alignuser_jax.records import Message, Request
        from alignuser_jax.sampling import generate

        started = time.perf_counter()
        requests = [
            Request(
                (Message.of("user", self._tokenizer.decode(prompt[1:-2])),),
                "benchmark",
                max_tokens=new,
                temperature=0.0 if samples == 1 else 1.0,
                samples=samples,
            )
            for prompt in prompts
        ]
        completions = generate(self._engines[name], requests)
        seconds = time.perf_counter() - started
        rows = [one for c in completions for one in c.samples or (c,)]
        if errors := [one.error for one in rows if one.error]:
            raise RuntimeError(errors[0])
        return seconds, [list(one.tokens) for one in rows]


class Peer:
    """`generate` of transformers on the same ids."""

    def __init__(self, directory, dtype, threads):
        import torch
        import transformers

        torch.set_num_threads(threads)
        kind = getattr(torch, dtype)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=kind)
        self._model.eval()
        self._model.generation_config.eos_token_id = None  # every row runs to its full length

    def generate(self, prompts, new, how):
        import torch
        import transformers

        options = {} if how == "dynamic" else {"cache_implementation": "static"}
        if how == "compiled":
            options["compile_config"] = transformers.CompileConfig()
            options["compile_config"]._compile_all_devices = True
        started = time.perf_counter()
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                pad_token_id=0,
                **options,
            )
        tokens = out[:, ids.shape[1] :].tolist()
        return time.perf_counter() - started, tokens

    def forget(self):
        """Drop what was compiled for another batch, which this one would make dynamic."""
        import torch

        torch._dynamo.reset()

    def lead(self, ids, token, other):
        """Return by how much the logit of `token` after `ids` is above that of `other`."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([ids])).logits[0, -1].float()
        return float(logits[token] - logits[other])


def prompts_of(random, count, length):
    """Return `count` conversations of one user turn, as the ids that both sides get."""
    from alignuser_jax.language import render
    from alignuser_jax.records import Message
    from alignuser_jax.sampling.workload import NumberedWords, text_of

    tokenizer = NumberedWords(FLAGS.vocabulary)
    prompts = []
    for _ in range(count):
        message = Message.of("user", text_of(tokenizer, length - 3, random))
        prompts.append(render(tokenizer, (message,), generation=True).tokens.tolist())
    return prompts


def equal_share(prompts, ours, theirs, peer, dtype):
    """Return the share of rows with the same tokens.

    Raises `ValueError` if an f32 row differs by more than a near-tie.
    """
    same = 0
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        same += a == b
        if len(a) != len(b):
            raise ValueError(f"our row has {len(a)} tokens, the peer's {len(b)}")
        if a != b and dtype == "float32":
            at = next(n for n, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            lead = peer.ask("lead", prompt + a[:at], b[at], a[at])
            if abs(lead) > NEAR_TIE:
                raise ValueError(f"token {at}: ours {a[at]}, peer's {b[at]} by {lead:.4f}")
    return same / len(prompts)


def batch_rows(here, peer, dtype, batch):
    """Yield the rows of one batch size."""
    name, random = f"batch {batch} {dtype}", np.random.default_rng(batch)
    new, length = FLAGS.new, FLAGS.prompt
    engine = {"chunk": FLAGS.chunk, "group": FLAGS.group, "prefill": batch * length}
    engine |= {"strips": FLAGS.strips, "steps": FLAGS.steps}
    here.ask("open", "ours", batch, length + new, **engine)
    prompts, best = prompts_of(random, batch, length), {}
    _, ours = here.ask("generate", prompts, new)
    ways = ["dynamic", "static"] + ["compiled"] * FLAGS.compiled
    took = {way: [] for way in ways}
    peer.ask("forget")
    for way in ways * 2:  # the first of each warms up
        seconds, theirs = peer.ask("generate", prompts, new, way)
        took[way].append(seconds)
    best[new] = min(ways, key=lambda way: took[way][-1])
    plain = ways[:2]  # what is compiled is the step of one token
    for way in plain:
        peer.ask("generate", prompts, 1, way)
    best[1] = min(plain, key=lambda way: peer.ask("generate", prompts, 1, way)[0])
    here.ask("generate", prompts, 1)
    sides.say(name, "peer's caches:", best, {w: f"{s[-1]:.2f} s" for w, s in took.items()})
    rates = {(side, n): [] for side in ("ours", "peer") for n in best}
    shares = []
    for number in range(FLAGS.rounds):
        prompts = prompts_of(random, batch, length)
        for n in best:
            seconds, ours = here.ask("generate", prompts, n)
            rates["ours", n].append(batch * n / seconds)
            seconds, theirs = peer.ask("generate", prompts, n, best[n])
            rates["peer", n].append(batch * n / seconds)
            if n == new:
                shares.append(equal_share(prompts, ours, theirs, peer, dtype))
        last = rates["ours", new][-1], rates["peer", new][-1]
        sides.say(f"{name}: round {number + 1}: {last[0]:.1f} {last[1]:.1f} tokens/s")
    yield sides.compared(name, "tokens/s", rates["ours", new], rates["peer", new])
    per_prompt = {side: [r * length for r in rates[side, 1]] for side in ("ours", "peer")}
    yield sides.compared(name, "prefill tokens/s", per_prompt["ours"], per_prompt["peer"])
    yield sides.row(name, "share of equal rows", statistics.mean(shares), 1.0, None)


def samples_rows(here, dtype):
    """Yield rows of four samples of one prompt beside four requests with that prompt."""
    name, random = f"k4 {dtype}", np.random.default_rng(4)
    length, new = FLAGS.long_prompt, FLAGS.new
    engine = {"chunk": FLAGS.chunk, "group": FLAGS.group, "prefill": SAMPLES * length}
    engine |= {"strips": FLAGS.strips, "steps": FLAGS.steps}
    for side in ("ours", "peer"):
        here.ask("open", side, SAMPLES, length + new, reuse=side == "ours", **engine)
    seconds = {(side, n): [] for side in ("ours", "peer") for n in (1, new)}
    for number, n in itertools.product(range(FLAGS.rounds + 1), (1, new)):
        prompt = prompts_of(random, 1, length)
        ours, _ = here.ask("generate", prompt, n, SAMPLES, "ours")
        theirs, _ = here.ask("generate", prompt * SAMPLES, n, 1, "peer")
        if number:  # the first compiles
            seconds["ours", n].append(ours)
            seconds["peer", n].append(theirs)
            sides.say(f"{name}: round {number}, {n} new: {ours:.2f} {theirs:.2f} s")
    for n, metric in ((1, "seconds, 1 new token"), (new, f"seconds, {new} new tokens")):
        pair = seconds["ours", n], seconds["peer", n]
        yield sides.compared(name, metric, *pair, more_is_better=False)


def main(argv):
    if FLAGS.quick:
        for flag, value in (("prompt", 32), ("long_prompt", 64), ("new", 6), ("rounds", 1)):
            FLAGS[flag].value = value
        FLAGS.vocabulary, FLAGS.chunk, FLAGS.threads = 256, 16, 1
        FLAGS.compiled = False
    if bad := [case for case in FLAGS.cases if case != "k4" and not case.isdecimal()]:
        raise app.UsageError(f"--cases: {bad} are neither batch sizes nor k4", exitcode=2)
    from alignuser_jax.sampling.workload import NumberedWords

    rows, marks = [], range(NumberedWords.FIRST)
    shape = SHAPE | TINY if FLAGS.quick else SHAPE
    with tempfile.TemporaryDirectory() as folder:
        directory = sides.write_qwen3(folder, FLAGS.vocabulary, shape, never=marks)
        for dtype in FLAGS.dtypes:
            here = sides.Side(Here, directory, dtype)
            peer = sides.Side(Peer, directory, dtype, FLAGS.threads)
            for case in FLAGS.cases:
                if case == "k4":
                    rows += samples_rows(here, dtype)
                else:
                    rows += batch_rows(here, peer, dtype, int(case))
                sides.save(rows, FLAGS.json)
            here.close()
            peer.close()
    if cells := [r["ratio"] for r in rows if r["metric"] == "tokens/s"]:
        middle, least = statistics.median(cells), min(cells)
        rows.append(sides.row("all", "median ratio; peer: wanted", middle, 1.2, middle / 1.2))
        rows.append(sides.row("all", "least ratio; peer: wanted", least, 1.0, least))
    sides.finish(rows, FLAGS.json)


if __name__ == "__main__":
    app.run(main)
