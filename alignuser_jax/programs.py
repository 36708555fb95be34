"""What every program shares: quiet libraries, bad input as one message and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

EXPECTED = (ValueError, OSError, RuntimeError, KeyError, FloatingPointError)
"""What the library raises for bad input and refused runs; anything else keeps its trace."""


def run(main: Callable[[list[str]], None]) -> None:
    """`absl.app.run(main)`; with `--verbosity=1` errors keep their traceback and the libraries
    say what they do."""
    from absl import app, flags, logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(cache, "alignuser_jax"))

    def quiet() -> None:
        if flags.FLAGS.verbosity <= 0:  # absl has raised an unset flag to 0 by now
            logging.set_verbosity(logging.WARNING)

    app.call_after_init(quiet)

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except app.UsageError:
            raise
        except EXPECTED as error:
            if flags.FLAGS.verbosity > 0:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    app.run(guarded)


def numbers(flag: str, kind: type) -> dict:
    """A list flag of `name=number` items as a dictionary of `kind`."""
    from absl import app, flags

    items = flags.FLAGS[flag].value
    try:
        return {name: kind(number) for name, number in (item.split("=") for item in items)}
    except ValueError as error:
        raise app.UsageError(f"--{flag}={','.join(items)}: expected name=number,…") from error
