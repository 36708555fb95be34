"""Measure how many synthetic sessions a second an engine runs with your model on this machine.

    alignuser benchmark --model=weights/qwen3-8b --dtype=bfloat16 --json=speed.json
    alignuser benchmark --config=configs/small.py --run=runs/ml-1m --sessions=100 --pages=5
    alignuser benchmark --shape=256,4,4,2,768,8192 --slots=96 --chunk=64

The model is a folder (or hub id) of Hugging Face weights or a GGUF file, the policy of a run,
or random weights of a shape. Sessions are those of `sampling/workload.py`: their text means
nothing, and their lengths are those of the flags. The engine compiles everything and runs a few
sessions before the measurement begins.
"""

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from absl import app, flags

from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.sampling.workload import (
    NumberedWords,
    SessionShape,
    run_sessions,
    time_parts,
)

FLAGS = flags.FLAGS
DEFAULT = SessionShape()
SHAPE = ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab")

flags.DEFINE_string("model", None, "Folder or hub id of a model, GGUF file, or smollm2.")
flags.DEFINE_string("config", None, "An experiment, with --run: its policy.")
flags.DEFINE_string("run", None, "Run folder of --config.")
flags.DEFINE_multi_string("set", [], "Override a setting of --config: section.field=value.")
flags.DEFINE_string("adapter", None, "Another adapter for --run; '' for the backbone alone.")
flags.DEFINE_list("shape", None, f"Random weights instead: {','.join(SHAPE)}.")
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of the weights of --model and --shape."
)
flags.DEFINE_integer("sessions", DEFAULT.sessions, "Sessions, all submitted at once.")
flags.DEFINE_integer("pages", DEFAULT.pages, "Pages of a session, on average.")
flags.DEFINE_integer("persona_tokens", DEFAULT.persona_tokens, "Tokens of persona and history.")
flags.DEFINE_integer(
    "shared_tokens", None, "How many of these all sessions share (default: a sixth)."
)
flags.DEFINE_integer("page_tokens", DEFAULT.page_tokens, "Tokens of a page.")
flags.DEFINE_integer("reply_tokens", DEFAULT.reply_tokens, "The most tokens of a reply.")
flags.DEFINE_integer("samples", DEFAULT.samples, "Replies drawn at each page.")
flags.DEFINE_integer("seed", DEFAULT.seed, "Seed of lengths and texts.")
flags.DEFINE_integer("slots", None, "Slots of the engine (default: the experiment's, or 64).")
flags.DEFINE_integer("context", None, "Positions of a slot (default: what the sessions need).")
flags.DEFINE_integer(
    "chunk", None, "Tokens of a prefill chunk (default: the experiment's, or 32)."
)
flags.DEFINE_integer("group", None, "Rows computed together (default: the experiment's, or 8).")
flags.DEFINE_bool("reuse", None, "Reuse cached prefixes (default: the experiment's, or true).")
flags.DEFINE_string("json", None, "File for the figures, as one JSON object.")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load() -> tuple:
    """Load what --model, --run or --shape names: decoder, tokenizer, label, experiment."""
    import jax.numpy as jnp

    from alignuser_jax.language import TextTokenizer
    from alignuser_jax.model import backbone_directory, load_decoder, merge_lora
    from alignuser_jax.runs.experiment import load_experiment
    from alignuser_jax.runs.policy import load_policy, policy_note

    sources = [name for name in ("model", "run", "shape") if FLAGS[name].value]
    if len(sources) != 1 or bool(FLAGS.run) != bool(FLAGS.config):
        raise app.UsageError(
            "give one of --model, --config with --run, and --shape; given: "
            + (", ".join(f"--{n}" for n in [*sources, "config"] if FLAGS[n].value) or "none")
        )
    if not FLAGS.run and (idle := [f"--{n}" for n in ("set", "adapter") if FLAGS[n].present]):
        raise app.UsageError(f"{', '.join(idle)}: only with --config and --run")
    dtype = jnp.dtype(FLAGS.dtype)
    if FLAGS.run:
        experiment = load_experiment(FLAGS.config, FLAGS.set)
        say(f"loading the policy of {FLAGS.run}")
        decoder, tokenizer, _ = load_policy(experiment, Path(FLAGS.run), FLAGS.adapter)
        label = f"{FLAGS.run}: {policy_note(experiment, decoder)}"
        return merge_lora(decoder), tokenizer, label, experiment
    if FLAGS.model:
        directory = backbone_directory(FLAGS.model, FLAGS.dtype)
        say(f"loading {directory}")
        decoder, label = load_decoder(directory, dtype=dtype), str(FLAGS.model)
        try:
            tokenizer = TextTokenizer.load(directory)
        except FileNotFoundError:
            tokenizer = NumberedWords(decoder.config.vocab_size)
            label += " (no tokenizer there: texts are token ids)"
        return decoder, tokenizer, label, None
    decoder = random_decoder(FLAGS.shape, dtype)
    label = f"RANDOM WEIGHTS, {', '.join(map('='.join, zip(SHAPE, FLAGS.shape, strict=True)))}"
    return decoder, NumberedWords(decoder.config.vocab_size), label, None


def random_decoder(shape: list[str], dtype):
    """Return a decoder of this shape with random weights."""
    from alignuser_jax.model import DecoderConfig, init_decoder

    wrong = len(shape) != len(SHAPE) or not all(n.isdecimal() and int(n) for n in shape)
    if wrong or int(shape[0]) % int(shape[2]):
        raise app.UsageError(
            f"--shape={','.join(shape)}: expected {','.join(SHAPE)}, whole numbers above 0, "
            "hidden a multiple of heads"
        )
    hidden, layers, heads, kv_heads, ffn, vocab = map(int, shape)
    config = DecoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
    )
    return init_decoder(config, dtype=dtype, param_dtype=dtype)


def engine_config(shape: SessionShape, experiment):
    """Return the engine's geometry: the flags, then the experiment, then what sessions need.

    One engine is measured, also where the experiment has several on a CPU.
    """
    from alignuser_jax.sampling import EngineConfig

    base = experiment.engine if experiment else EngineConfig()
    flagged = {name: FLAGS[name].value for name in ("slots", "chunk", "group", "reuse")}
    chosen = {name: value for name, value in flagged.items() if value is not None}
    sizes = {name: value for name, value in chosen.items() if name != "reuse"}
    if bad := [f"--{name}={value}" for name, value in sizes.items() if value < 1]:
        raise app.UsageError(f"{', '.join(bad)}: expected at least 1")
    chunk = chosen.get("chunk", base.chunk)
    chosen["context"] = FLAGS.context or -(-shape.context // chunk) * chunk
    return replace(base, cpu_engines=1, **chosen)


def main() -> None:
    import jax
    from tabulate import tabulate

    from alignuser_jax.parallel import make_mesh
    from alignuser_jax.runs.policy import warm_up
    from alignuser_jax.sampling import Engine

    if FLAGS.json and not Path(FLAGS.json).absolute().parent.is_dir():
        raise ValueError(f"--json={FLAGS.json}: there is no such folder; make it first")
    shared = FLAGS.shared_tokens
    names = [field.name for field in fields(SessionShape) if field.name in FLAGS]
    settings = {name: FLAGS[name].value for name in names}
    settings["shared_tokens"] = FLAGS.persona_tokens // 6 if shared is None else shared
    shape = SessionShape(**settings)
    decoder, tokenizer, label, experiment = load()
    config = engine_config(shape, experiment)
    dtype, devices = str(jax.numpy.dtype(decoder.dtype)), jax.local_devices()
    if config.tensor > len(devices):
        raise ValueError(f"engine.tensor={config.tensor}, but there are {len(devices)} devices")
    mesh = make_mesh(tensor=config.tensor, fsdp=1, devices=devices[: config.tensor])
    engine = Engine(decoder, tokenizer, config, mesh if config.tensor > 1 else None)
    del decoder
    warm_up(engine, say)
    compiled = engine.compilations
    say("a page of some sessions, not counted")
    few = replace(shape, sessions=min(shape.sessions, config.slots), pages=1)
    run_sessions(engine, tokenizer, few, name="warm up")
    before = dict(engine.stats)
    say(f"{shape.sessions} sessions of {shape.pages} pages")
    done = run_sessions(engine, tokenizer, shape, say=say)
    seconds = time_parts(before, engine.stats, done.seconds)
    device = jax.devices()[0].device_kind
    rows = [
        ("model", label),
        ("device", f"{config.tensor} x {device}"),
        ("sessions", done.sessions),
    ]
    rows += [("pages", done.pages), ("seconds", f"{done.seconds:.2f}")]
    tokens = {
        "prompt tokens read": done.read_tokens,
        "prompt tokens reused": done.usage.cached_tokens,
        "generated tokens": done.usage.generated_tokens,
    }
    rows += list(tokens.items())
    rows += [(name, f"{value:.4g}") for name, value in done.rates.items()]
    replies, hits = (engine.stats[n] - before.get(n, 0) for n in ("rows", "hits"))
    rows += [("replies that found a prefix", f"{hits / max(replies, 1):.4g}")]
    rows += [
        (f"{part} seconds", f"{value:.2f} ({value / max(done.seconds, 1e-9):.0%})")
        for part, value in seconds.items()
    ]
    late = engine.compilations - compiled
    rows += [("programs compiled ahead", compiled), ("programs compiled later", late)]
    print(tabulate(rows, ["measure", "value"], tablefmt="github", disable_numparse=True))
    if FLAGS.json:
        figures = {
            "model": label,
            "random_weights": FLAGS.shape is not None,
            "device": device,
            "dtype": dtype,
            "shape": asdict(shape),
            "engine": asdict(config),
            "pages": done.pages,
            "rates": done.rates,
            "usage": done.usage._asdict() | {"read_tokens": done.read_tokens},
            "hit_rate": hits / max(replies, 1),
            "compiled_ahead": compiled,
            "compiled_later": late,
            "seconds": {"all": done.seconds, **seconds},
        }
        Path(FLAGS.json).write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {FLAGS.json}")


if __name__ == "__main__":
    run_program(main)
