"""Train a decoder on shards: LoRA on a pretrained one, or every parameter from scratch.

    python -m launch.train --model=runs/base/model --shards=runs/shards/train --out=runs/lora \
        --steps=500 --lora_rank=16 --task_weights=world_model=1,reflection=1

    python -m launch.train --init_config=tiny.json --tokenizer=runs/tokenizer --trainable=full \
        --shards=runs/shards/train --out=runs/base --steps=2000 --lr=3e-3

The same command again resumes. SIGTERM saves and exits with code 85.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Directory in Hugging Face layout to start from.")
flags.DEFINE_string("init_config", None, "config.json of a decoder to start from scratch.")
flags.DEFINE_string("tokenizer", None, "Tokenizer directory; default: that of --model.")
flags.DEFINE_string("shards", None, "Training shards.", required=True)
flags.DEFINE_string("validation", None, "Held-out shards whose losses are measured.")
flags.DEFINE_string("out", None, "Run directory.", required=True)
flags.DEFINE_enum("trainable", "lora", ["lora", "full"], "What is updated.")
flags.DEFINE_integer("steps", None, "Optimizer steps.", required=True)
flags.DEFINE_integer("batch_size", 16, "Rows per step.")
flags.DEFINE_integer("accumulation", 1, "Micro-batches per step; changes memory only.")
flags.DEFINE_integer("seq_len", 512, "Tokens per row.")
flags.DEFINE_boolean("packing", True, "Several short examples per row.")
flags.DEFINE_float("lr", None, "Peak learning rate; default 1e-4 for lora, 1e-5 for full.")
flags.DEFINE_float("warmup_ratio", 0.03, "Share of the steps that warm up.")
flags.DEFINE_float("final_lr_ratio", 0.0, "Last learning rate over the peak.")
flags.DEFINE_float("weight_decay", 0.0, "AdamW's decay; not of norms.")
flags.DEFINE_float("clip_norm", 1.0, "Largest global gradient norm.")
flags.DEFINE_integer("lora_rank", 16, "Rank of the adapters (trainable=lora).")
flags.DEFINE_float("lora_alpha", 32.0, "Scale of the adapters times their rank.")
flags.DEFINE_float("lora_dropout", 0.0, "Dropout before the adapters.")
flags.DEFINE_list("task_weights", [], "Lambdas: world_model=1,reflection=1; default 1 each.")
flags.DEFINE_list("mix", [], "Row shares: world_model=1,reflection=1; default 1 each.")
flags.DEFINE_float("action_weight", 1.0, "Loss weight of final action lines; 1: the paper.")
flags.DEFINE_enum("normalize", "task_tokens", ["task_tokens", "task_examples"], "Loss means.")
flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "What a layer recomputes.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")
flags.DEFINE_integer("eval_every", 0, "Steps between held-out losses; 0: both ends only.")
flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.")
flags.DEFINE_integer("keep_checkpoints", 2, "How many stay.")
flags.DEFINE_integer("seed", 0, "Names data order, dropout and fresh weights.")

SAME_NAME = (
    *("steps", "trainable", "batch_size", "accumulation", "seq_len", "packing", "warmup_ratio"),
    *("final_lr_ratio", "weight_decay", "clip_norm", "action_weight", "normalize", "remat"),
    *("eval_every", "save_every", "keep_checkpoints", "seed"),
)


def pairs(items: list[str], kind: type, flag: str) -> dict:
    """`["a=1", "b=2"]` as a dict of `kind`."""
    try:
        return {name: kind(value) for name, value in (item.split("=") for item in items)}
    except ValueError as error:
        raise app.UsageError(f"--{flag}={','.join(items)}: expected name=number,…") from error


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if (FLAGS.model is None) == (FLAGS.init_config is None):
        raise app.UsageError("give one of --model and --init_config")
    if FLAGS.tokenizer is None and FLAGS.model is None:
        raise app.UsageError("--init_config needs --tokenizer")
    import jax.numpy as jnp

    from alignuser_jax.language.tokenizer import TextTokenizer
    from alignuser_jax.model import DecoderConfig, LoraConfig, init_decoder, load_pretrained
    from alignuser_jax.training.config import TrainConfig
    from alignuser_jax.training.loop import train

    config = TrainConfig(
        **{name: FLAGS[name].value for name in SAME_NAME},
        learning_rate=FLAGS.lr,
        task_weights=pairs(FLAGS.task_weights, float, "task_weights"),
        mix=pairs(FLAGS.mix, int, "mix"),
    )
    lora = LoraConfig(
        rank=FLAGS.lora_rank if FLAGS.trainable == "lora" else 0,
        alpha=FLAGS.lora_alpha,
        dropout=FLAGS.lora_dropout,
    )
    tokenizer = TextTokenizer.load(FLAGS.tokenizer or FLAGS.model)
    dtype = jnp.dtype(FLAGS.dtype)
    frozen = dtype if FLAGS.trainable == "lora" else jnp.float32  # trained weights stay f32
    types = {"seed": FLAGS.seed, "dtype": dtype, "param_dtype": frozen}
    if FLAGS.model:
        decoder = load_pretrained(FLAGS.model, lora, **types)
    else:
        numbers = json.loads(Path(FLAGS.init_config).read_text())
        decoder_config = DecoderConfig.from_hf({**numbers, "vocab_size": tokenizer.vocab_size})
        decoder = init_decoder(decoder_config, lora, **types)
    result = train(
        config, decoder, FLAGS.shards, tokenizer, FLAGS.out, validation_dir=FLAGS.validation
    )
    for task, held in result.held_out.items():
        before = result.first_held_out[task]["loss"]
        print(f"held-out {task}: {before:.4f} -> {held['loss']:.4f}")
    print(f"{FLAGS.trainable} weights of step {result.steps}: {result.result_dir}")


if __name__ == "__main__":
    app.run(main)
