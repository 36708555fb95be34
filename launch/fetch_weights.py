"""Download an experiment's backbone once, before the processes of a cluster ask for it.

    alignuser fetch-weights --config=configs/qwen3_8b.py

The weights go into Hugging Face's cache (HF_HOME), which the processes must share. A backbone
that is a folder, or none, downloads nothing. Needs no accelerator.
"""

from absl import flags

from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "The experiment.", required=True)
flags.DEFINE_multi_string("set", [], "Override a setting: section.field=value.")


def main() -> None:
    from alignuser_jax.model import local_directory
    from alignuser_jax.runs.experiment import load_experiment

    backbone = load_experiment(FLAGS.config, FLAGS.set).backbone
    print(local_directory(backbone) if backbone else "no backbone: nothing to download")


if __name__ == "__main__":
    run_program(main)
