"""Flags that programs share, quiet libraries, and bad input as one message with exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

if TYPE_CHECKING:  # a program that needs no jax starts without it
    from alignuser_jax.datasets import Dataset
    from alignuser_jax.runs.backend import BackendChoice
    from alignuser_jax.runs.experiment import Experiment
    from alignuser_jax.sampling import ServerConfig

flags.disclaim_key_flags()  # the --help of a program lists what is defined here
FLAGS = flags.FLAGS

EXPECTED_ERRORS = (ValueError, OSError, RuntimeError, KeyError, FloatingPointError)
"""What the library raises for bad input and refused runs; anything else keeps its traceback."""

SERVER_FLAGS = (
    "api_key_env",
    "server_concurrency",
    "server_timeout",
    "structured",
    "server_extra",
    "prices",
    "context_tokens",
)
"""Flags that say nothing without --server."""


def experiment_flags(required: bool = True, run_required: bool | None = None) -> None:
    """Define --config, --dataset, --run and --set in the program that calls this.

    Args:
        required: Whether absl demands --dataset; if not, the program checks it itself.
        run_required: The same of --run; `None` takes `required`.
    """
    run_required = required if run_required is None else run_required
    flags.DEFINE_string("config", None, "File of the experiment.", required=True)
    flags.DEFINE_string("dataset", None, "Folder of an imported data set.", required=required)
    flags.DEFINE_string("run", None, "Run folder.", required=run_required)
    flags.DEFINE_multi_string("set", [], "Override a setting: section.field=value.")


def backend_flags(adapter: str | None = None, *, adapter_flag: bool = True) -> None:
    """Define the flags that say who answers; with none of them the policy of --run does.

    Args:
        adapter: Default of --adapter: `None` for the run's own, "" for the base model alone.
        adapter_flag: Whether the program has --adapter at all.
    """
    if adapter_flag:
        text = "Folder of another adapter for --run; '' for its base model alone."
        flags.DEFINE_string("adapter", adapter, text)
    flags.DEFINE_list("server", [], "URLs of OpenAI-compatible servers that answer instead.")
    flags.DEFINE_string("model", None, "The served model's name.")
    flags.DEFINE_string("api_key_env", "OPENAI_API_KEY", "Variable that holds the key.")
    flags.DEFINE_integer("server_concurrency", 16, "Calls at once per URL.")
    flags.DEFINE_float("server_timeout", 300.0, "Seconds to wait for a reply.")
    flags.DEFINE_string(
        "structured",
        "auto",
        "How the server constrains answers: vllm, guided (vLLM before 0.12), sglang, "
        "json_schema, none, or auto: the first that works.",
    )
    flags.DEFINE_string("server_extra", "{}", "JSON fields for the body of every call.")
    flags.DEFINE_list("prices", [], "Prompt and generated price per million tokens.")
    flags.DEFINE_string(
        "tokenizer", "", "The served model's tokenizer: a folder, hub id or GGUF file."
    )
    flags.DEFINE_integer("context_tokens", 8192, "The served model's context.", lower_bound=128)
    flags.DEFINE_string("record", "", "Keep every answer in this file; it is not asked again.")
    flags.DEFINE_string("replay", "", "Answer from such a file, without a model.")


def reflector_flags() -> None:
    """Define the flags that say which other model writes reflections, and when to stop."""
    flags.DEFINE_string(
        "reflector",
        "",
        "Another model that writes the reflections: a folder, a hub id, a GGUF file, the name "
        "of a published model, or the URL of an OpenAI-compatible server.",
    )
    flags.DEFINE_string("reflector_model", "", "The name of the model that such a URL serves.")
    flags.DEFINE_float(
        "least_kept",
        None,
        "Stop where a smaller share of the first 50 replies can be used (default: 0.2); 0 "
        "never stops.",
        lower_bound=0,
        upper_bound=1,
    )


def backend_choice(keep: str | Path = "", reply_tokens: int = 0) -> BackendChoice:
    """Return what those flags say.

    Args:
        keep: Folder for a server's answers if --record names no file.
        reply_tokens: Tokens of a reply beyond what a session has room for.

    Raises:
        app.UsageError: If flags contradict each other, or a value cannot be read.
    """
    from alignuser_jax.runs.backend import BackendChoice

    if bool(FLAGS.server) != bool(FLAGS.model):
        raise app.UsageError("--server and --model belong together: give both or none")
    server_only = [*SERVER_FLAGS, *([] if FLAGS.replay else ["tokenizer"])]
    if not FLAGS.server and (idle := [f"--{n}" for n in server_only if FLAGS[n].present]):
        raise app.UsageError(f"{', '.join(idle)}: only with --server and --model")
    choice = BackendChoice(
        server=_server_config() if FLAGS.server else None,
        tokenizer=FLAGS.tokenizer,
        context_tokens=FLAGS.context_tokens,
        record=FLAGS.record,
        replay=FLAGS.replay,
        keep=str(keep),
        adapter=FLAGS.adapter if "adapter" in FLAGS else None,
        reply_tokens=reply_tokens,
    )
    if choice.needs_run and not FLAGS.run:
        raise app.UsageError(
            "--run must be given (unless a --server answers, or a --replay of one)"
        )
    return choice


def _server_config() -> ServerConfig:
    from alignuser_jax.sampling import ServerConfig, TransportConfig

    try:
        prompt_price, generated_price = map(float, FLAGS.prices or (0, 0))
    except ValueError as error:
        raise app.UsageError(
            f"--prices={','.join(FLAGS.prices)}: expected PROMPT,GENERATED"
        ) from error
    try:
        extra = dict(json.loads(FLAGS.server_extra))
    except (TypeError, ValueError) as error:
        raise app.UsageError(
            f"--server_extra={FLAGS.server_extra}: expected a JSON object ({error})"
        ) from error
    transport = TransportConfig(
        tuple(url.rstrip("/") for url in FLAGS.server),
        FLAGS.api_key_env,
        FLAGS.server_concurrency,
        read_seconds=FLAGS.server_timeout,
    )
    return ServerConfig(
        FLAGS.model,
        transport,
        FLAGS.structured,
        extra=extra,
        prompt_price=prompt_price,
        generated_price=generated_price,
    )


def open_experiment() -> tuple[Experiment, Dataset, Path | None]:
    """Open what --config, --set, --dataset and --run name.

    Returns:
        The experiment, the data set, and the run folder that belongs to both; the folder is
        `None` without --run, which only programs with `run_required=False` allow.
    """
    from alignuser_jax.datasets import load_dataset
    from alignuser_jax.runs.experiment import load_experiment
    from alignuser_jax.runs.folder import open_run

    experiment = load_experiment(FLAGS.config, FLAGS.set)
    dataset = load_dataset(FLAGS.dataset)
    run = open_run(experiment, dataset, FLAGS.run) if FLAGS.run else None
    return experiment, dataset, run


def run(main: Callable[..., None], *, arguments: bool = False) -> None:
    """Parse the flags and call `main`; bad input becomes one message and exit code 2.

    With --verbosity=1 errors keep their traceback and the libraries say what they do.

    Args:
        main: Called without arguments, or with the list of what is not a flag.
        arguments: Whether `main` takes that list; if not, anything in it is refused.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "alignuser_jax"))
    # the default leaves out what compiles within a second, so every start compiles it again
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

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
        except EXPECTED_ERRORS as error:
            if FLAGS.verbosity > 0:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    app.run(guarded)


def numbers(flag: str, kind: type) -> dict[str, Any]:
    """Read a list flag of `name=number` items as a dictionary of `kind` (`int` or `float`)."""
    items: list[str] = FLAGS[flag].value or []
    try:
        return {name: kind(number) for name, number in (item.split("=") for item in items)}
    except ValueError as error:
        raise app.UsageError(f"--{flag}={','.join(items)}: expected name=number,…") from error
