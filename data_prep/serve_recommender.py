"""Serve a recommender over HTTP, for agents in another environment or on another machine.

    alignuser serve-recommender runs/als --port=8090
    alignuser simulate --arms=als=http://localhost:8090,... (or check-recommender http://…)

It speaks the JSON of `alignuser_jax/recommenders/http/protocol.py`. If the variable that
--api_key_env names holds a key, callers must send it (they read it from the same variable).
"""

import os
import signal
import sys

from absl import app, flags

from alignuser_jax.recommenders import RecommenderServer, load_recommender
from alignuser_jax.recommenders.base import label_of
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("host", "127.0.0.1", "Where to listen; 0.0.0.0 for other machines too.")
flags.DEFINE_integer(
    "port", 8090, "The port; 0 for a free one.", lower_bound=0, upper_bound=65535
)
flags.DEFINE_string("api_key_env", "ALIGNUSER_RECOMMENDER_KEY", "Variable that holds the key.")


def main(specs: list[str]) -> None:
    """Serve until the program is stopped."""
    if len(specs) != 1:
        raise app.UsageError(f"give one recommender to serve (given: {specs or 'nothing'})")
    recommender = load_recommender(specs[0])
    key = os.environ.get(FLAGS.api_key_env, "")
    with RecommenderServer(recommender, FLAGS.host, FLAGS.port, key) as server:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"serving {label_of(recommender)} {server.version} at {server.url}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run_program(main, arguments=True)
