r"""Import a GGUF model of llama.cpp once, as a folder that every command takes as a backbone.

    alignuser import-gguf SmolLM2-135M-Instruct.Q4_1.gguf --output=models/smollm2
    alignuser train --config=configs/small.py --set=backbone=models/smollm2 ...

Llama, Qwen2 and Qwen3 files of version 2 and 3 are read, whole or in parts, in every type that
the package gguf can turn into numbers. Shapes, tokenizer and chat template come out of the
file; what cannot be computed is refused by name before anything is written. Interrupted, the
same command goes on. --set=backbone=FILE.gguf does the same into the cache by itself.
"""

import time

from absl import app, flags

from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("output", None, "Folder of the imported model.", required=True)
flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Type of the weights in the folder."
)


def main(arguments: list[str]) -> None:
    from alignuser_jax.model.files.gguf.importing import import_gguf

    if len(arguments) != 1:
        raise app.UsageError("give one FILE.gguf (of a model in parts, any of them)")
    started = time.perf_counter()
    folder = import_gguf(arguments[0], FLAGS.output, dtype=FLAGS.dtype, say=print)
    print(f"{folder}: ready in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    run_program(main, arguments=True)
