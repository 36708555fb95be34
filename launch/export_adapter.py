"""An adapter for other tools: a PEFT directory, or the base with the adapter merged into it.

    alignuser export-adapter --adapter=runs/ml-1m/qwen/align/adapter --output=exports/policy \
        --base=Qwen/Qwen3-8B
    alignuser export-adapter ... --output=exports/merged --merged --dtype=bfloat16

Adapters are PEFT directories from the start; the copy names its base model, so that `peft` and
vLLM find it. A merged model is a Hugging Face directory with the base's config and tokenizer,
written file by file: 8B parameters need the memory of one file. Interrupted, the same command
goes on.
"""

from pathlib import Path

from absl import app, flags

from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("adapter", None, "Folder of the adapter.")
flags.DEFINE_string("output", None, "Folder to write.")
flags.DEFINE_string("base", None, "Base model: a folder or hub id (default: as it names it).")
flags.DEFINE_bool("merged", False, "Write the merged model instead of the adapter.")
flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float16", "float32"], "Merged weights (default: the base's)."
)
flags.mark_flags_as_required(["adapter", "output"])


def main() -> None:
    from alignuser_jax import model

    if FLAGS.dtype and not FLAGS.merged:
        raise app.UsageError("--dtype is for --merged: adapters stay float32")
    own = Path(FLAGS.adapter).parents[1] / "pretrain" / "model"  # a run's own first stage
    named = FLAGS.base or model.base_of(FLAGS.adapter) or (str(own) if own.is_dir() else "")
    if not named:
        raise app.UsageError(f"{FLAGS.adapter} names no base model: give --base")
    base = model.local_directory(named)
    if FLAGS.merged:
        model.export_merged(base, FLAGS.adapter, FLAGS.output, dtype=FLAGS.dtype, say=print)
        return
    lora, arrays = model.read_adapter(FLAGS.adapter, model.read_config(base))
    named = str(Path(named).resolve()) if Path(named).is_dir() else named
    model.save_adapter(FLAGS.output, arrays, lora, named)
    targets = ", ".join(lora.targets)
    print(f"{FLAGS.output}: rank {lora.rank} on {targets}, for {named}")


if __name__ == "__main__":
    run_program(main)
