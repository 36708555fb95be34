"""Killed at any moment and started again, through the command line: the same bytes.

SIGKILL comes at seeded moments. Some are met exactly (the process is stopped, the moment is
seen to last, then it is killed): a checkpoint half written, a recommender asked and not yet
heard. Others are a seeded while after such a moment, or after the start.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignuser_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 10
SMALLER = (
    *("decoder.num_layers=1", "agents=8", "engine.slots=12"),
    *(f"pretrain.steps={STEPS}", f"align.steps={STEPS}"),
    *("pretrain.save_every=2", "pretrain.eval_batches=1", "pretrain.batch_size=4"),
    *("align.save_every=2", "align.eval_batches=1", "align.batch_size=4"),
    *("pretrain_shards.rollouts.episodes=6", "align_shards.rollouts.episodes=6"),
)
SETTINGS = ("--config=configs/tiny.py", *(f"--set={setting}" for setting in SMALLER))
SECONDS_AT_MOST = 1200.0
"""Of one program; a quiet machine needs about 15."""
TRIES = 8

Moment = Callable[[], bool]

SLOW = """
import os, time
from pathlib import Path
from alignuser_jax.recommenders import load_recommender

ASKED = Path(os.environ["SLOW_ASKED"])

class Slow:
    name, version, stateful = "slow", "1", False

    def __init__(self):
        self.inner = load_recommender(os.environ["SLOW_INNER"])

    def recommend(self, requests):
        ASKED.touch()
        time.sleep(0.05)
        slates = self.inner.recommend(requests)
        ASKED.unlink()
        return slates
"""
"""A recommender that takes its time; the file `SLOW_ASKED` is there while it is asked."""


@dataclass(frozen=True)
class Place:
    """A folder with a dataset, two recommenders and `reference`, a run never killed."""

    folder: Path

    @property
    def asked(self) -> Path:
        return self.folder / "asked"

    @property
    def run(self) -> Path:
        return self.folder / "reference"

    def start(self, program: str, *flags: object) -> subprocess.Popen:
        environment = {
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(self.folder))),
            "SLOW_INNER": str(self.folder / "als"),
            "SLOW_ASKED": str(self.asked),
        }
        command = [sys.executable, "-m", program, *map(str, flags)]
        with (self.folder / "log.txt").open("a") as log:
            print("\n$", *command[1:], file=log, flush=True)
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def done(self, program: str, *flags: object) -> None:
        """Run to the end."""
        process = self.start(program, *flags)
        try:
            assert process.wait(SECONDS_AT_MOST) == 0, self.log()
        finally:
            process.kill()

    def killed(self, moment: Moment, program: str, *flags: object) -> bool:
        """Run until `moment`; false where the program came to its end before it."""
        process = self.start(program, *flags)
        deadline = time.monotonic() + SECONDS_AT_MOST
        try:
            while process.poll() is None:
                assert time.monotonic() < deadline, self.log()
                if moment():
                    process.send_signal(signal.SIGSTOP)
                    if moment():
                        process.kill()
                        return process.wait() == -signal.SIGKILL
                    process.send_signal(signal.SIGCONT)
                time.sleep(0.001)
            assert process.returncode == 0, self.log()
            return False
        finally:
            process.kill()
            process.wait()

    def kills(
        self, moments: Iterable[Callable[[], Moment]], out: Path, program: str, *flags: object
    ) -> Iterator[int]:
        """Kill at each moment in turn, counting. A fast machine may be done before a moment:
        then `out` is emptied and the program begins again, until the moment is met."""
        for count, moment in enumerate(moments, start=1):
            for _ in range(TRIES):
                if self.killed(moment(), program, *flags):
                    break
                shutil.rmtree(out)
            else:
                pytest.fail(f"moment {count} missed {TRIES} times\n{self.log()}")
            yield count

    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")[-4000:]

    def flags(self, run: Path) -> tuple[str, ...]:
        return (*SETTINGS, f"--dataset={self.folder / 'data'}", f"--run={run}")

    def simulation(self, out: Path) -> tuple[str, ...]:
        arms = f"random={self.folder / 'random'},slow=slow:Slow"
        return (*self.flags(self.run), f"--arms={arms}", "--horizon=3", f"--out={out}")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("killed"))
    data = place.folder / "data"
    sizes = ("--synthetic_users=40", "--synthetic_items=60", "--synthetic_ratings=24")
    place.done("data_prep.import_logs", "--format=synthetic", *sizes, f"--output={data}")
    for kind in ("als", "random"):
        flags = (f"--kind={kind}", "--factors=8", "--users=0")
        place.done(
            "data_prep.fit_recommender", f"--dataset={data}", *flags,
            f"--output={place.folder / kind}",
        )  # fmt: skip
    (place.folder / "slow.py").write_text(SLOW)
    for stage in ("pretrain", "align"):
        for program in ("data_prep.build_shards", "launch.train"):
            place.done(program, *place.flags(place.run), f"--stage={stage}")
    return place


# --- moments ------------------------------------------------------------------------------


def later(seconds: float, moment: Moment = lambda: True) -> Moment:
    """From `seconds` after the first time that `moment` is there."""
    since: list[float] = []

    def passed() -> bool:
        if not since and moment():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return passed


def fresh(folder: Path, pattern: str) -> Moment:
    """While there is a file or folder that is not there now."""
    before = set(folder.glob(pattern))
    return lambda: bool(set(folder.glob(pattern)) - before)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("segment-*.bin"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def untimed(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(out)]


# --- training -----------------------------------------------------------------------------

HALF = "*.orbax-checkpoint-tmp*"


def training_moments(out: Path, draw: random.Random) -> Sequence[Callable[[], Moment]]:
    """Made when their run starts, since some are told by what is new in its folder."""
    checkpoints = out / "checkpoints"

    def begun() -> bool:
        """Steps are made, and no checkpoint is whole."""
        losses = [line for line in read_metrics(out) if "loss" in line]
        return bool(losses) and not any(p.name.isdigit() for p in checkpoints.glob("*"))

    return (
        lambda: later(draw.uniform(0, 5)),
        lambda: begun,
        lambda: fresh(checkpoints, HALF),
        lambda: later(draw.uniform(0, 0.5), fresh(checkpoints, HALF)),
        lambda: later(draw.uniform(0, 0.5), (checkpoints / f"{STEPS - 2}").is_dir),
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_training_killed_at_any_moment_ends_in_the_same_bytes(place, tmp_path, stage):
    draw = random.Random(f"killed {stage}")
    run = tmp_path / "run"
    if stage == "align":
        shutil.copytree(place.run, run, ignore=shutil.ignore_patterns("align"))
    flags = (*place.flags(run), f"--stage={stage}")
    shards, out = run / "shards" / stage, run / stage

    half_built = later(draw.uniform(0, 0.2), fresh(shards, "*.arrayrecord.tmp"))
    for moment in (later(draw.uniform(0, 4)), half_built):
        place.killed(moment, "data_prep.build_shards", *flags)
    place.done("data_prep.build_shards", *flags)
    assert digests(shards) == digests(place.run / "shards" / stage)
    assert digests(run / "tokenizer") == digests(place.run / "tokenizer")

    half_written, without_checkpoint = 0, 0
    for _ in place.kills(training_moments(out, draw), out, "launch.train", *flags):
        half_written += any((out / "checkpoints").glob(HALF))
        without_checkpoint += not any(p.name.isdigit() for p in out.glob("checkpoints/*"))
        print(stage, sorted(p.name for p in out.glob("checkpoints/*")), len(read_metrics(out)))
    assert half_written and without_checkpoint, place.log()
    place.done("launch.train", *flags)

    assert untimed(out) == untimed(place.run / stage)
    assert [line["step"] for line in untimed(out) if "held_out" in line] == [0, STEPS]
    result = "model" if stage == "pretrain" else "adapter"
    assert digests(out / result) == digests(place.run / stage / result)
    assert not list((out / "checkpoints").glob(HALF))


# --- simulation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(place) -> tuple[bytes, int]:
    """The event table of a simulation never killed, and the size of its journal."""
    out = place.folder / "simulation"
    place.done("inference.simulate", *place.simulation(out))
    return (out / "events.parquet").read_bytes(), bytes_in(out / "journal")


@pytest.mark.slow
def test_simulation_killed_at_any_moment_ends_in_the_same_bytes(place, simulated, tmp_path):
    events, size = simulated
    draw = random.Random("killed simulation")
    journal = tmp_path / "journal"

    def written(share: float) -> Moment:
        return lambda: bytes_in(journal) >= share * size

    def in_flight() -> bool:
        return place.asked.exists() and bytes_in(journal) >= 0.3 * size

    moments = (
        lambda: later(draw.uniform(0, 5)),
        lambda: later(draw.uniform(0, 0.1), written(0.1)),
        lambda: in_flight,
        lambda: written(draw.uniform(0.5, 0.7)),
        lambda: later(draw.uniform(0, 0.1), written(0.8)),
        lambda: written(1.0),
    )
    program = ("inference.simulate", *place.simulation(tmp_path))
    asked, parts = 0, []
    for kills in place.kills(moments, tmp_path, *program):
        asked += place.asked.exists()
        place.asked.unlink(missing_ok=True)
        parts.append(bytes_in(journal))
        if kills % 2 == 0:  # a kill seldom tears a record, a power cut does
            last = max(journal.glob("segment-*.bin"), key=lambda path: path.name)
            os.truncate(last, max(0, last.stat().st_size - draw.randrange(1, 2000)))
        print("journal", [path.stat().st_size for path in sorted(journal.glob("*.bin"))])
    assert asked, place.log()
    assert sum(0 < part < size for part in parts) >= 2, parts
    place.done(*program)
    assert (tmp_path / "events.parquet").read_bytes() == events


@pytest.mark.slow
@pytest.mark.parametrize("order", [(), ("--shuffle=7",)], ids=["again", "shuffled"])
def test_simulation_again_in_a_new_folder_is_the_same_bytes(place, simulated, tmp_path, order):
    place.done("inference.simulate", *place.simulation(tmp_path), *order)
    assert (tmp_path / "events.parquet").read_bytes() == simulated[0]
