"""What every program shares: the flags of an experiment, quiet libraries, bad input as one
message and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

if TYPE_CHECKING:  # a program that needs no jax starts without it
    from alignuser_jax.datasets import Dataset
    from alignuser_jax.experiment import Experiment

flags.disclaim_key_flags()  # what is defined here is listed by the --help of the program
FLAGS = flags.FLAGS

EXPECTED = (ValueError, OSError, RuntimeError, KeyError, FloatingPointError)
"""What the library raises for bad input and refused runs; anything else keeps its trace."""


def experiment_flags(required: bool = True) -> None:
    """Defines --config, --dataset, --run and --set in the program that calls this.

    `required=False`: it checks itself whether it has a --dataset and a --run."""
    flags.DEFINE_string("config", None, "The experiment.", required=True)
    flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=required)
    flags.DEFINE_string("run", None, "Run folder.", required=required)
    flags.DEFINE_multi_string("set", [], "Override a setting: section.field=value.")


def open_experiment() -> tuple[Experiment, Dataset, Path]:
    """What those flags name: the experiment, the dataset, and the run folder that is theirs."""
    from alignuser_jax import pipeline
    from alignuser_jax.datasets import load_dataset
    from alignuser_jax.experiment import load_experiment

    experiment = load_experiment(FLAGS.config, FLAGS.set)
    dataset = load_dataset(FLAGS.dataset)
    return experiment, dataset, pipeline.open_run(experiment, dataset, FLAGS.run)


def run(main: Callable[..., None], *, arguments: bool = False) -> None:
    """Parses the flags and calls `main()`, or `main(what is not a flag)` with `arguments`.

    With `--verbosity=1` errors keep their traceback and the libraries say what they do."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "alignuser_jax"))

    def quiet() -> None:
        if FLAGS.verbosity <= 0:  # absl has raised an unset flag to 0 by now
            logging.set_verbosity(logging.WARNING)

    app.call_after_init(quiet)

    def guarded(argv: list[str]) -> None:
        if argv[1:] and not arguments:
            raise app.UsageError(f"unexpected arguments {argv[1:]}", exitcode=2)
        try:
            main(argv[1:]) if arguments else main()
        except app.UsageError as error:
            error.exitcode = 2  # as all bad input: launchers do not start it again
            raise
        except EXPECTED as error:
            if FLAGS.verbosity > 0:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    app.run(guarded)


def numbers(flag: str, kind: type) -> dict:
    """A list flag of `name=number` items as a dictionary of `kind`."""
    items = FLAGS[flag].value
    try:
        return {name: kind(number) for name, number in (item.split("=") for item in items)}
    except ValueError as error:
        raise app.UsageError(f"--{flag}={','.join(items)}: expected name=number,…") from error
