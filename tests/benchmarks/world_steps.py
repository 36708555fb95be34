"""Steps per second of the worlds, of their Gymnasium views, and the world's share of a run.

    python -m tests.benchmarks.world_steps --json=r.json
    python -m tests.benchmarks.world_steps --json=r.json --simulate \\
        --peers=recsim=/envs/recsim/bin/python,recogym=/envs/recogym/bin/python

Data are SYNTHETIC. The worlds walk by random valid actions, slates come from a list, so that
only the world is timed. `RecSysEnv` (a random slate of four to a behavioural user a step)
stands beside simulators without page text, each in an environment of its own that its `--peers`
entry names; the sides take turns and medians of the rounds' ratios are quoted, above 1 in our
favour.

`--simulate` runs the agents of `configs/tiny.py` (weights untrained, which costs the same) over
two arms and says how much of the time passes inside the world, everything else being the rest.
"""

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import ALS, Random
from alignuser_jax.records import Slate
from alignuser_jax.world import RecommendationSite, SiteConfig, site_of_dataset
from alignuser_jax.world.gym import recsys_env, recsys_vector_env, user_env
from tests.benchmarks import sides

FLAGS = flags.FLAGS
flags.DEFINE_string("json", None, "Where the rows go.", required=True)
flags.DEFINE_list("worlds", ["site", "shop"], "Which worlds walk.")
flags.DEFINE_list("peers", [], "name=python of recsim and recogym.")
flags.DEFINE_integer("steps", 20_000, "Steps of a round.")
flags.DEFINE_integer("rounds", 3, "Measured rounds of each side.")
flags.DEFINE_bool("simulate", False, "Also run agents, for the world's share of the time.")
flags.DEFINE_bool("quick", False, "Few steps, to try the program itself.")

VECTOR = 64
WORLD = ("reset", "step", "resolve", "item_line", "rating_text")


def walk_rate(world, answer, user_ids, steps):
    """Steps/s of `world` alone over random valid actions that seldom end a visit."""
    rng = np.random.default_rng(0)
    draws, leaving = rng.random(steps), rng.random(steps)
    state, spent, visit = None, 0.0, 0
    for draw, leave in zip(draws, leaving, strict=True):
        if state is None or state.terminal:
            visit += 1
            state = world.reset(user_ids[visit % len(user_ids)], visit)
            if state.needs is not None:
                state = world.resolve(state, answer(state.needs))
        actions = state.actions
        action = actions[int(draw * len(actions))]
        if action.kind in ("exit", "terminate") and leave > 0.1:
            action = actions[0]
        started = time.perf_counter()
        state = world.step(state, action)
        spent += time.perf_counter() - started
        if state.needs is not None:
            slate = answer(state.needs)
            started = time.perf_counter()
            state = world.resolve(state, slate)
            spent += time.perf_counter() - started
    return steps / spent


def site_rate(config, steps):
    dataset = synthetic.generate()
    site, ids = site_of_dataset(dataset, config), dataset.item_ids

    def answer(request):
        start = request.seed % len(ids)
        around = (*ids[start:], *ids[:start])
        free = (item for item in around if item not in request.exclude)
        return Slate(tuple(item for item, _ in zip(free, range(request.k), strict=False)))

    return walk_rate(site, answer, dataset.user_ids, steps)


def shop_rate(steps):
    from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue

    shop = GeneratedShop(make_catalogue(config=CatalogueConfig()))
    return walk_rate(shop, None, [f"u{n}" for n in range(100)], steps)


def recsys_rate(steps):
    env = recsys_env()
    env.reset(seed=0)
    env.action_space.seed(0)
    started = time.perf_counter()
    for _ in range(steps):
        if env.step(env.action_space.sample())[2]:
            env.reset()
    return steps / (time.perf_counter() - started)


def vector_rate(steps):
    envs = recsys_vector_env(num_envs=VECTOR)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    started = time.perf_counter()
    for _ in range(max(steps // VECTOR, 1)):
        envs.step(envs.action_space.sample())
    return VECTOR * max(steps // VECTOR, 1) / (time.perf_counter() - started)


def user_rate(steps):
    env = user_env()
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    started = time.perf_counter()
    for _ in range(steps):
        _, _, over, _, info = env.step(env.action_space.sample(info["action_mask"]))
        if over:
            _, info = env.reset()
    return steps / (time.perf_counter() - started)


class Peer:
    """A simulator in another environment; `rate(steps)` asks it."""

    def __init__(self, name, python):
        program = Path(__file__).with_name("world_steps_peers.py")
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(program), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def rate(self, steps):
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def world_share(agents):
    """The seconds of a simulation and those spent inside the site, and the pages shown."""
    from alignuser_jax.driver.backend import Backend
    from alignuser_jax.runs import simulate as simulation
    from alignuser_jax.runs.experiment import load_experiment
    from alignuser_jax.runs.folder import open_run
    from alignuser_jax.runs.policy import make_engine, tokenizer_of, warm_up
    from alignuser_jax.runs.simulate import SimulationSettings
    from alignuser_jax.runs.stages import start_decoder
    from alignuser_jax.views import policy_and_agent_users, simulation_view

    experiment = load_experiment(str(Path(__file__).parents[2] / "configs" / "tiny.py"), [])
    dataset = synthetic.generate(synthetic.SyntheticConfig(users=500, items=160))
    clock = {"inside": 0.0, "depth": 0}

    def timed(function):
        def call(*arguments):
            clock["depth"] += 1
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                clock["depth"] -= 1
                if not clock["depth"]:  # a method that another one calls is counted there
                    clock["inside"] += time.perf_counter() - started

        return call

    for name in WORLD:
        setattr(RecommendationSite, name, timed(getattr(RecommendationSite, name)))
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(experiment, dataset, Path(folder) / "run")
        tokenizer = tokenizer_of(experiment, dataset, run)
        decoder = start_decoder(experiment, tokenizer, run, "pretrain")
        engine = make_engine(experiment, decoder, tokenizer)
        warm_up(engine)
        arms = {
            "random": Random(dataset.item_ids),
            "als": ALS(factors=16).fit(dataset, dataset.log.of_split("train")),
        }
        users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1][:agents]
        view = simulation_view(dataset)

        def simulate(name, seed):
            return simulation.simulate(
                experiment, dataset, view, arms,
                Backend(engine, tokenizer.count, "untrained"), run / name,
                SimulationSettings(users, seed=seed, progress=False),
            )  # fmt: skip

        simulate("warm up", 0)
        clock["inside"] = 0.0
        started = time.perf_counter()
        events = simulate("measured", 1)
        seconds = time.perf_counter() - started
    page_count = sum(kind == "page" for kind in events["kind"].to_pylist()) / 4
    return seconds, clock["inside"], page_count


def main(argv):
    if unknown := set(FLAGS.worlds) - {"site", "shop"}:
        raise app.UsageError(f"--worlds: {sorted(unknown)}, expected site, shop", exitcode=2)
    peers = dict(peer.partition("=")[::2] for peer in FLAGS.peers)
    if unknown := peers.keys() - {"recsim", "recogym"}:
        raise app.UsageError(f"--peers: {sorted(unknown)}, expected recsim, recogym", 2)
    steps, rounds = (400, 1) if FLAGS.quick else (FLAGS.steps, FLAGS.rounds)
    cases = []
    if "site" in FLAGS.worlds:
        cases += [
            ("site", lambda: site_rate(SiteConfig(), steps)),
            ("site, with search", lambda: site_rate(SiteConfig(search=True), steps)),
        ]
    if "shop" in FLAGS.worlds:
        cases.append(("generated shop", lambda: shop_rate(steps)))
    cases += [
        ("UserEnv", lambda: user_rate(steps)),
        (f"RecSysEnv, {VECTOR} at once", lambda: vector_rate(steps)),
    ]
    rows = []
    for name, rate in cases:
        middle = statistics.median(rate() for _ in range(rounds))
        rows.append(sides.row(name, "steps/s", middle, None, None))
    sides.save(rows, FLAGS.json)
    started = {name: Peer(name, python) for name, python in peers.items()}
    for peer in started.values():
        peer.rate(10)  # what it imports is not timed
    for name, peer in started.items():
        pairs = [(recsys_rate(steps), peer.rate(steps)) for _ in range(rounds)]
        ours, theirs = zip(*pairs, strict=True)
        rows.append(sides.compared("RecSysEnv", f"steps/s; peer: {name}", ours, theirs))
        peer.close()
    if not peers:
        ours = [recsys_rate(steps) for _ in range(rounds)]
        rows.append(sides.row("RecSysEnv", "steps/s", statistics.median(ours), None, None))
    sides.save(rows, FLAGS.json)
    if FLAGS.simulate:
        seconds, inside, pages = world_share(4 if FLAGS.quick else 60)
        for metric, value in (
            ("seconds", seconds),
            ("pages/s", pages / seconds),
            ("share of the time in the world", inside / seconds),
        ):
            rows.append(sides.row("simulation, tiny model", metric, value, None, None))
    sides.finish(rows, FLAGS.json)


if __name__ == "__main__":
    app.run(main)
