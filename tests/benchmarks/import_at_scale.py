"""Importing a generated log of N million rows: rows/s and peak memory beside plain pandas.

    python -m tests.benchmarks.import_at_scale --millions=25 --json=import.json

The rows are in the order of time, with ids as long as Amazon's, a few bad rows and a few given
twice. Both sides read the file, drop what is bad (we also say where it stood), split per user,
write Parquet, read it back, and compute item statistics and the users' traits; each in its own
process, one after the other, stopped where it goes over `--memory_gib`. What they find is
compared. SYNTHETIC: no human made these rows.
"""

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from absl import app, flags

from alignuser_jax.randomness import generator_of
from tests.benchmarks import sides

FLAGS = flags.FLAGS
flags.DEFINE_float("millions", 25.0, "Rows, in millions.")
flags.DEFINE_integer("rows_per_user", 150, "Rows of a mean user.")
flags.DEFINE_integer("items", 60_000, "Items of the catalogue.")
flags.DEFINE_float("memory_gib", 6.0, "Memory that a side may take.")
flags.DEFINE_list("peers", ["pandas"], "What to run beside ours; empty: nothing.")
flags.DEFINE_string("directory", None, "Where the files go (default: a temporary folder).")
flags.DEFINE_string("json", "import.json", "Where the rows go.")
flags.DEFINE_bool("quick", False, "A twentieth of a million rows.")

GENRES = [f"Genre {n:02}" for n in range(20)]
BAD_EVERY = 100_003
SHARES = (0.8, 0.1, 0.1)


def gib(name: str) -> float:
    """VmRSS or VmHWM (the peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def generate(folder: Path, rows: int, users: int, items: int) -> None:
    """log.csv and items.csv; the same for the same sizes."""
    rng = generator_of(2026)
    user_ids = pa.array([f"A{n * 7919 % 10**12:013}" for n in range(users)])
    item_ids = pa.array([f"B{n:09}" for n in range(items)])
    genres = ["|".join(rng.choice(GENRES, rng.integers(1, 4), False)) for _ in range(items)]
    columns = {"item_id": item_ids, "title": item_ids, "genres": genres}
    pa.csv.write_csv(pa.table(columns), folder / "items.csv")
    fame = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    names = ["user_id", "item_id", "rating", "timestamp"]
    schema = pa.schema([(name, pa.string()) for name in names])
    stars = pa.array([f"{n / 2:.1f}" for n in range(1, 11)] + ["no rating"])
    part = folder / "log.csv.part"
    with pa.csv.CSVWriter(part, schema, write_options=pa.csv.WriteOptions(
        quoting_style="none"
    )) as writer:  # fmt: skip
        for first in range(0, rows, 1 << 20):
            place = np.arange(first, min(first + (1 << 20), rows))
            user = np.floor(users * rng.random(len(place)) ** 1.7).astype(np.int64)
            item = np.searchsorted(fame, rng.random(len(place)) * fame[-1])
            rating = np.clip(np.rint(rng.normal(6, 2, len(place))), 0, 9).astype(np.int64)
            rating[place % BAD_EVERY == BAD_EVERY - 1] = 10
            moment = pa.array(1_000_000_000 + place * 20)
            columns = (
                user_ids.take(pa.array(user)),
                item_ids.take(pa.array(np.minimum(item, items - 1))),
                stars.take(pa.array(rating)),
                moment.cast(pa.string()),
            )
            writer.write_table(pa.table(dict(zip(names, columns, strict=True))))
    part.rename(folder / "log.csv")


class Watched:
    """A side that ends itself when it goes over the memory it may take."""

    def __init__(self, folder: str, limit_gib: float):
        self.folder, self.seconds, self.last = Path(folder), {}, time.perf_counter()
        threading.Thread(target=self.watch, args=(limit_gib,), daemon=True).start()

    def watch(self, limit_gib: float) -> None:
        import os

        while gib("VmRSS") < limit_gib:
            time.sleep(0.05)
        os._exit(9)

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self.last
        sides.say(
            f"{type(self).__name__}: {step} {now - self.last:.1f} s, {gib('VmHWM'):.2f} GiB"
        )
        self.last = now

    def run(self) -> dict:
        self.last = time.perf_counter()
        found = self.work()
        found = {name: float(value) for name, value in found.items()}
        cpu = time.process_time()
        return {"seconds": self.seconds, "cpu": cpu, "gib": gib("VmHWM"), "found": found}


class Ours(Watched):
    def work(self) -> dict:
        from alignuser_jax.datasets import check_leaks, item_statistics, load_dataset
        from alignuser_jax.datasets.formats import tabular
        from alignuser_jax.personas import compute_traits

        out = self.folder / "ours"
        dataset = tabular.read(self.folder / "log.csv", items=self.folder / "items.csv")
        self.done("read, clean and split")
        assert check_leaks(dataset) == []
        self.done("check of leaks")
        dataset.save(out)
        del dataset
        self.done("write")
        dataset = load_dataset(out)
        log = dataset.log
        self.done("read back")
        mean, count = item_statistics(log)
        train = log.of_split("train")
        traits = compute_traits(dataset, train)
        self.done("statistics and traits")
        return {
            "interactions": len(log),
            "train": len(train),
            "most popular": count.max(),
            "mean of item means": np.nanmean(mean.astype(np.float64)),
            "conformity": np.nanmean(traits.conformity),
            "genres": traits.genres.sum(),
        }


class Pandas(Watched):
    def work(self) -> dict:
        import pandas as pd

        kinds = {"user_id": str, "item_id": str, "rating": str}
        log = pd.read_csv(self.folder / "log.csv", dtype=kinds)
        items = pd.read_csv(self.folder / "items.csv")
        log["rating"] = pd.to_numeric(log["rating"], errors="coerce")
        log = log[log["rating"].between(0.5, 5) & log["item_id"].isin(items["item_id"])]
        log = log.drop_duplicates(["user_id", "item_id"])
        log["user_code"] = pd.factorize(log["user_id"])[0]
        log = log.sort_values(["user_code", "timestamp"], kind="stable")
        groups = log.groupby("user_code")["timestamp"]
        rank, size = groups.cumcount(), groups.transform("size")
        first, second = (np.floor(size * s + 1e-9) for s in (SHARES[0], sum(SHARES[:2])))
        part = (rank >= first).astype(int) + (rank >= second).astype(int)
        log["split"] = np.array(["train", "validation", "test"])[part]
        self.done("read, clean and split")
        log.drop(columns="user_code").to_parquet(self.folder / "pandas.parquet")
        del log, groups, rank, size, first, second, part
        self.done("write")
        log = pd.read_parquet(self.folder / "pandas.parquet")
        self.done("read back")
        statistics = log.groupby("item_id")["rating"].agg(["mean", "count"])
        train = log[log["split"] == "train"]
        means = train.groupby("item_id")["rating"].transform("mean")
        squares = (train["rating"] - means) ** 2
        conformity = squares.groupby(train["user_id"]).mean()
        genres = items.assign(genre=items["genres"].str.split("|"))[["item_id", "genre"]]
        pairs = train[["user_id", "item_id"]].merge(genres.explode("genre"), on="item_id")
        touched = pairs.groupby("user_id")["genre"].nunique()
        self.done("statistics and traits")
        return {
            "interactions": len(log),
            "train": len(train),
            "most popular": statistics["count"].max(),
            "mean of item means": statistics["mean"].mean(),
            "conformity": conformity.mean(),
            "genres": touched.sum(),
        }


def run(kind: type, folder: Path) -> dict | None:
    """What the side found and took; None where it was stopped."""
    side = sides.Side(kind, str(folder), FLAGS.memory_gib)
    try:
        result = side.ask("run")
    except (EOFError, ConnectionResetError):
        sides.say(f"{kind.__name__} went over {FLAGS.memory_gib} GiB and was stopped")
        return None
    side.close()
    return result


def main(argv: list[str]) -> None:
    rows = 50_000 if FLAGS.quick else round(FLAGS.millions * 1e6)
    users = max(rows // FLAGS.rows_per_user, 2)
    items = min(FLAGS.items, max(rows // 50, 10))
    made, case = [], f"{rows:,} rows, {users:,} users, {items:,} items"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FLAGS.directory or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "log.csv").is_file():
            generate(folder, rows, users, items)
        size = (folder / "log.csv").stat().st_size
        sides.say(f"{case}: {size / 1e9:.2f} GB of CSV")
        ours = run(Ours, folder)
        assert ours, f"ours needs more than {FLAGS.memory_gib} GiB"
        peer = run(Pandas, folder) if "pandas" in FLAGS.peers else None
        if peer:
            for name, value in ours["found"].items():
                other = peer["found"][name]
                assert abs(value - other) <= 1e-4 * abs(other), (name, value, other)
        seconds = [sum(side["seconds"].values()) if side else None for side in (ours, peer)]
        speed = [rows / s if s else None for s in seconds]
        ratio = speed[0] / speed[1] if peer else None
        made.append(sides.row(case, "rows/s", *speed, ratio))
        speed = [rows / side["cpu"] if side else None for side in (ours, peer)]
        ratio = speed[0] / speed[1] if peer else None
        made.append(sides.row(case, "rows per CPU second", *speed, ratio))
        memory = [side["gib"] if side else None for side in (ours, peer)]
        ratio = memory[1] / memory[0] if peer else None
        made.append(sides.row(case, "peak RSS, GiB", *memory, ratio))
        for step, mine in ours["seconds"].items():
            other = peer["seconds"].get(step) if peer else None
            ratio = other / mine if other else None
            made.append(sides.row(case, f"seconds, {step}", mine, other, ratio))
    sides.finish(made, FLAGS.json)


if __name__ == "__main__":
    app.run(main)
