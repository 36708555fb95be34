"""Spoiled files of every format: imported with a count of what was dropped, or refused with a
reason. Never another exception, never a row that the file did not hold, never a row lost in
silence."""

import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets import check_leaks, load_dataset
from alignuser_jax.datasets.formats import (
    amazon,
    movielens,
    opera,
    recbole,
    steam,
    tabular,
    usermirrorer,
)
from alignuser_jax.datasets.reading.cleaning import MAX_TIMESTAMP
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.report import DirtyInput
from alignuser_jax.datasets.sessions import check_session_leaks, sessions
from alignuser_jax.randomness import stable_key
from tests.datasets.formats.movielens_files import write_1m, write_100k, write_latest
from tests.datasets.formats.opera_files import write_opera
from tests.datasets.formats.test_amazon import META_2014, META_2023, REVIEWS_2014, REVIEWS_2023
from tests.datasets.formats.test_recbole import FILES
from tests.datasets.formats.test_steam import AUSTRALIAN, CSV, GAMES, KANG_MCAULEY
from tests.datasets.formats.test_usermirrorer import ML_1M
from tests.datasets.reading.mutations import GZIPPED, INVENTS, TABLE, TEXT

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def text_lines(folder, files):
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), newline="")
    return folder


def write_tabular(folder):
    return text_lines(
        folder,
        {
            "log.csv": ["user_id,item_id,rating,timestamp", "ann,x,4,100", '"bob",y,3.5,200',
                        "ann,y,2,300", "cat,x,5,400"],
            "items.csv": ["item_id,title,genres,description", 'x,"Ex, the ""first""",War,a',
                          "y,Why,Drama|War,b"],
        },
    )  # fmt: skip


def write_parquet(folder):
    folder.mkdir(exist_ok=True)
    log = {"user_id": ["ann", "bob", "ann"], "item_id": [1, 2, 2], "rating": [4.0, 3.5, 2.0],
           "timestamp": [100, 200, 300]}  # fmt: skip
    pq.write_table(pa.table(log), folder / "log.parquet")
    items = {"item_id": [1, 2], "title": ["One", "Two"], "genres": [["War"], []]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def write_usermirrorer(folder):
    return text_lines(
        folder, {f"a_{part}.jsonl": map(json.dumps, rows) for part, rows in ML_1M.items()}
    )


def write_recbole_files(folder):
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


FORMATS = {
    "movielens 1m": (write_1m, movielens.read),
    "movielens 100k": (write_100k, movielens.read),
    "movielens latest": (write_latest, movielens.read),
    "csv": (
        write_tabular,
        lambda folder, strict: tabular.read(
            folder / "log.csv", items=folder / "items.csv", strict=strict
        ),
    ),
    "parquet": (
        write_parquet,
        lambda folder, strict: tabular.read(
            folder / "log.parquet", items=folder / "items.parquet", strict=strict
        ),
    ),
    "steam": (
        lambda folder: text_lines(
            folder, {"steam_reviews.json": KANG_MCAULEY, "steam_games.json": GAMES[:2]}
        ),
        steam.read,
    ),
    "steam csv": (
        lambda folder: text_lines(folder, {"steam_reviews.csv": CSV.splitlines()}),
        steam.read,
    ),
    "steam australian": (
        lambda folder: text_lines(folder, {"australian_user_reviews.json": [AUSTRALIAN] * 2}),
        steam.read,
    ),
    "amazon 2014": (
        lambda folder: text_lines(
            folder, {"reviews_B.json": REVIEWS_2014[:3], "meta_B.json": META_2014[:2]}
        ),
        amazon.read,
    ),
    "amazon 2023": (
        lambda folder: text_lines(folder, {"B.jsonl": REVIEWS_2023, "meta_B.jsonl": META_2023}),
        amazon.read,
    ),
    "usermirrorer": (write_usermirrorer, usermirrorer.read),
    "recbole": (write_recbole_files, recbole.read),
    "opera": (write_opera, opera.read),
}
UNUSED = ("u.user", "tags.csv", "links.csv")


def files_of(folder):
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name not in UNUSED
    )


def rows_of(dataset):
    log = dataset.log
    return {
        (dataset.user_ids[u], dataset.item_ids[i], float(r), int(t))
        for u, i, r, t in zip(log.user, log.item, log.rating, log.timestamp, strict=True)
    }


def check_sound(dataset, folder):
    """What holds for every dataset, whatever it was made from."""
    log = dataset.log
    assert np.isfinite(log.rating).all() and (log.timestamp < MAX_TIMESTAMP).all()
    assert ((log.rating >= 0.5) & (log.rating <= 5)).all() and (log.timestamp >= 0).all()
    for ids in (dataset.user_ids, dataset.item_ids):
        assert len(set(ids)) == len(ids) and all(ids)
        assert not any(CONTROL.search(name) or len(name.encode()) > 512 for name in ids)
    for item in dataset.items.values():
        for text in (item.title, item.description, *item.genres):
            assert not CONTROL.search(text) and len(text) <= 20_000
        assert len(item.title) <= 1_000 and all(0 < len(genre) <= 200 for genre in item.genres)
    if "sessions" in dataset.extra_tables:
        assert check_session_leaks(dataset) == []
        for session in sessions(dataset):
            assert not CONTROL.search("".join(session.steps[0].page.split("\n")))
            assert all(step.timestamp_milliseconds >= 0 for step in session.steps)
    else:
        assert len(log) and check_leaks(dataset) == []
    assert load_dataset(dataset.save(folder / "saved")).hash == dataset.hash


def attempt(read, folder, strict):
    """The dataset or the error: of the kinds that say what is wrong, with a name in it."""
    try:
        return read(folder, strict=strict), None
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, InputError, DirtyInput, FileNotFoundError), repr(
            error
        )
        return None, str(error)


def spoil(path, name, rng):
    """Replace a file by its mutation; a gzipped one gets the suffix."""
    if path.suffix == ".parquet":
        if name in TABLE:
            pq.write_table(TABLE[name](pq.read_table(path), rng), path)
        else:
            path.write_bytes(TEXT[name](path.read_bytes(), rng))
        return path
    data = TEXT[name](path.read_bytes(), rng)
    if name in GZIPPED:
        path.unlink()
        path = path.with_name(path.name + ".gz")
    path.write_bytes(data)
    return path


def cases(kind, folder):
    """(file, mutation) of every file of a format and every mutation that fits it."""
    for path in files_of(written(kind, folder)):
        byte_wise = ("empty", "cut in half", "random bytes", "an error page")
        fitting = [*TABLE, *byte_wise] if path.suffix == ".parquet" else list(TEXT)
        name = path.relative_to(folder)
        if kind == "opera":  # a third of them: the slowest format
            fitting = [m for n, m in enumerate(fitting) if n % 3 == len(name.parts) % 3]
        elif kind == "csv":  # named files: another suffix is another file
            fitting = [m for m in fitting if m not in GZIPPED]
        yield from ((name, mutation) for mutation in fitting)


def written(kind, folder):
    folder.mkdir(parents=True, exist_ok=True)
    FORMATS[kind][0](folder)
    return folder


def one_case(folder, kind, name, mutation, originals):
    read = FORMATS[kind][1]
    rng = np.random.default_rng(stable_key(kind, str(name), mutation))
    path = spoil(written(kind, folder) / name, mutation, rng)
    dataset, problem = attempt(read, folder, False)
    strict, refused = attempt(read, folder, True)
    if dataset is None:
        assert strict is None, "strict took what the other refused"
        known = [p.name for p in files_of(folder)] + [str(folder), "no usable"]
        assert any(part in problem for part in known) and len(problem) > 20, problem
        return "refused"
    check_sound(dataset, folder)
    dropped = sum(dataset.report.counts.values())
    assert (strict is None) == bool(dropped), (refused, dataset.report)
    if strict is not None:
        assert strict.hash == dataset.hash
    if mutation not in INVENTS and mutation in TEXT:
        rows = rows_of(dataset)
        if kind == "steam":  # quintiles of the hours of all reviews: they move with the file
            rows, originals = ({(u, i, t) for u, i, _, t in r} for r in (rows, originals))
        assert rows <= originals, rows - originals
    if path.suffix in (".csv", ".json", ".jsonl", ".dat", ".data", ".inter"):
        interactions = any(part in name.name for part in ("rating", "log", "review", "inter"))
        interactions = interactions or name.name in ("u.data", "B.jsonl")
        if interactions and mutation not in ("old mac", "quotes", "stray returns", "crlf"):
            rows = sum(bool(line.strip(b"\r ")) for line in path.read_bytes().split(b"\n"))
            assert len(dataset.log) + dropped >= rows - 3, (rows, dataset.report)
    return "imported"


def spoiled(tmp_path, kind, every):
    """Try every so-manieth case of a format; all failures at once, by name."""
    originals = rows_of(FORMATS[kind][1](written(kind, tmp_path / "good"), strict=False))
    outcomes, failures = {"imported": 0, "refused": 0}, []
    found = list(cases(kind, tmp_path / "list"))[::every]
    for n, (name, mutation) in enumerate(found):
        try:
            outcomes[one_case(tmp_path / f"case{n}", kind, name, mutation, originals)] += 1
        except Exception as error:
            what = f"{name}, {mutation}: {type(error).__name__}: {error}"
            failures.append(what[:600])
    assert not failures, f"{len(failures)} of {len(found)}:\n" + "\n".join(failures)
    return outcomes


EVERY = dict.fromkeys(FORMATS, 6) | {"opera": 24}
"""Of the fast test: three hundred of the cases, few of the slowest format; the slow test tries
them all."""


@pytest.mark.parametrize("kind", FORMATS)
def test_spoiled_files(tmp_path, kind):
    assert sum(spoiled(tmp_path, kind, EVERY[kind]).values()) > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_every_spoiled_file(tmp_path, kind):
    assert min(spoiled(tmp_path, kind, 1).values()) > 10


def test_there_are_three_hundred_and_more(tmp_path):
    counts = [len(list(cases(kind, tmp_path / kind))[:: EVERY[kind]]) for kind in FORMATS]
    assert sum(counts) >= 300


def test_a_bomb_of_one_line_is_no_record(tmp_path):
    """17 MB of one line from 17 kB: left out, not held."""
    path = tmp_path / "reviews_B.json.gz"
    good = "".join(f"{line}\n" for line in REVIEWS_2014).encode()
    path.write_bytes(gzip.compress(good + b'{"a": "' + b"x" * (1 << 24) + b'"}\n' + good))
    dataset = amazon.read(path)
    assert dataset.report.counts == {
        "line longer than 16777216 bytes": 1,
        "duplicate rating": len(REVIEWS_2014),
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_the_good_files_are_good(tmp_path, kind):
    check_sound(FORMATS[kind][1](written(kind, tmp_path / "good"), strict=False), tmp_path)
