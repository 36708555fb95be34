"""Export an adapter for other tools, as a PEFT folder or merged into its base model.

    alignuser export-adapter --adapter=runs/ml-1m/qwen/align/adapter --output=exports/policy \
        --base=Qwen/Qwen3-8B
    alignuser export-adapter ... --output=exports/merged --merged --dtype=bfloat16
    alignuser export-adapter --adapter=runs/ml-1m/qwen/align --step=200 --output=exports/200

An adapter of a run is a PEFT folder already; the exported one names its base model, so that
`peft` and vLLM find it. A merged model is a Hugging Face folder with the base's config and
tokenizer. It is written file by file, so that 8B parameters need the memory of one file.
Interrupted, the same command goes on. With --step it is the adapter that a training had at a
checkpoint (`align.keep_checkpoints` says how many stay): a point of a learning curve.
"""

from pathlib import Path

from absl import app, flags

from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("adapter", None, "Folder of the adapter; with --step: of a training.")
flags.DEFINE_integer("step", None, "Export what a training's checkpoint of this step has.")
flags.DEFINE_string("output", None, "Folder to write.")
flags.DEFINE_string(
    "base", None, "Base model: folder, hub id or GGUF file; default: what it names."
)
flags.DEFINE_bool("merged", False, "Write the base model with the adapter merged into it.")
flags.DEFINE_enum(
    "dtype",
    None,
    ["bfloat16", "float16", "float32"],
    "Type of the merged weights; default: the base's own.",
)
flags.mark_flags_as_required(["adapter", "output"])


def main() -> None:
    from alignuser_jax import model

    if FLAGS.dtype and not FLAGS.merged:
        raise app.UsageError("--dtype is for --merged: adapters stay float32")
    if FLAGS.step is not None:
        export_step()
        return
    name = base_name(Path(FLAGS.adapter))
    dtype = FLAGS.dtype or "bfloat16"
    base = model.backbone_directory(name, dtype)
    if FLAGS.merged:
        model.export_merged(base, FLAGS.adapter, FLAGS.output, dtype=FLAGS.dtype, say=print)
        return
    shape = model.read_config(base)
    lora, arrays = model.read_adapter(FLAGS.adapter, shape)
    name = model.backbone_name(name, dtype)
    # another program may start in another folder
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    model.save_adapter(FLAGS.output, arrays, lora, name, num_layers=shape.num_layers)
    targets, layers = ", ".join(lora.targets), lora.adapted_layers(shape.num_layers)
    where = f"{len(layers)} of {shape.num_layers} layers"
    print(f"{FLAGS.output}: rank {lora.rank} on {targets} of {where}, for {name}")


def export_step() -> None:
    """Write the adapter of a training's checkpoint."""
    from alignuser_jax.model import save_adapter
    from alignuser_jax.training.checkpoint import adapter_at

    if FLAGS.merged:
        raise app.UsageError("--merged: export the step first, then merge what came out")
    found = adapter_at(Path(FLAGS.adapter) / "checkpoints", FLAGS.step)
    own = Path(FLAGS.adapter).absolute().parent / "pretrain" / "model"
    base = FLAGS.base or found.base or (str(own) if own.is_dir() else "")
    layers = found.num_layers
    save_adapter(FLAGS.output, found.arrays, found.lora, base, num_layers=layers)
    print(f"{FLAGS.output}: rank {found.lora.rank}, step {FLAGS.step} of {FLAGS.adapter}")


def base_name(adapter: Path) -> str:
    """Return the folder, hub id or GGUF file of the adapter's base model.

    It is what --base says, else what the adapter names, else the model of its own run's first
    stage.
    """
    from alignuser_jax.model import base_of

    own = adapter.absolute().parents[1] / "pretrain" / "model"
    name = FLAGS.base or base_of(adapter) or (str(own) if own.is_dir() else "")
    if not name:
        raise app.UsageError(f"{adapter} names no base model: give --base")
    return name


if __name__ == "__main__":
    run_program(main)
