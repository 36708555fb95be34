"""The folder on disk: round trip, replacement, and what it refuses."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets import Dataset, load_dataset
from alignuser_jax.datasets.formats import movielens, synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.durable.whole import SOFTWARE
from tests.datasets.formats.movielens_files import write_1m

TABLES = ["interactions.parquet", "items.parquet", "users.parquet"]


@pytest.fixture
def dataset(tmp_path):
    return movielens.read(write_1m(tmp_path / "ml"))


def assert_same(first: Dataset, second: Dataset):
    assert first.manifest == second.manifest and first.user_ids == second.user_ids
    assert dict(first.items) == dict(second.items)
    assert dict(first.demographics) == dict(second.demographics)
    for column in ("user", "item", "rating", "timestamp", "split"):
        np.testing.assert_array_equal(getattr(first.log, column), getattr(second.log, column))
    assert (first.log.n_users, first.log.n_items) == (second.log.n_users, second.log.n_items)


def test_round_trip(dataset, tmp_path):
    directory = dataset.save(tmp_path / "deep" / "out")
    assert sorted(os.listdir(directory)) == sorted([*TABLES, "manifest.json"])
    assert os.listdir(directory.parent) == ["out"]  # no half-written folder beside it
    loaded = load_dataset(str(directory))
    assert_same(dataset, loaded)
    assert loaded.report.read == 5 and loaded.name == "ml-1m"
    again = loaded.save(tmp_path / "again")
    assert load_dataset(again).hash == dataset.hash


def test_one_import_twice_has_one_hash_and_the_folder_does_not_matter(tmp_path):
    hashes = {movielens.read(write_1m(tmp_path / name)).hash for name in ("a", "b")}
    assert len(hashes) == 1
    manifests = {json.dumps(movielens.read(tmp_path / name).manifest) for name in ("a", "b")}
    assert len(manifests) == 1 and str(tmp_path) not in manifests.pop()


def test_the_manifest_says_what_and_whence(dataset, tmp_path):
    manifest = json.loads((dataset.save(tmp_path / "out") / "manifest.json").read_text())
    assert manifest["counts"]["interactions"] == 5 and manifest["synthetic"] is False
    assert manifest["split"] == {
        "kind": "per_user",
        "shares": [0.8, 0.1, 0.1],
        "counts": {"train": 3, "validation": 0, "test": 2},
    }
    assert manifest["source"]["files"]["ratings.dat"]["bytes"] == 100


def test_a_dataset_is_replaced_whole(dataset, tmp_path):
    out = tmp_path / "out"
    config = SyntheticConfig(users=5, items=20, ratings_per_user=8)
    synthetic.generate(config).save(out)
    assert (out / "truth.npz").is_file()
    dataset.save(out)
    assert sorted(os.listdir(out)) == sorted([*TABLES, "manifest.json"])
    assert load_dataset(out).hash == dataset.hash
    (tmp_path / "empty").mkdir()
    dataset.save(tmp_path / "empty")


def test_other_folders_are_not_overwritten(dataset, tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="chapter.tex.*choose another output folder"):
        dataset.save(out)
    assert (out / "chapter.tex").read_text() == "years of work" and len(os.listdir(out)) == 1
    saved = dataset.save(tmp_path / "out")
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt"):
        dataset.save(saved)
    assert load_dataset(saved).hash == dataset.hash
    (tmp_path / "file").write_text("a file")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        dataset.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a file"


def rewrite(path, name, change, **options):
    table = pq.read_table(path)
    place = table.column_names.index(name)
    values = change(table[name].to_pylist())
    pq.write_table(
        table.set_column(place, name, pa.array(values, table[name].type)), path, **options
    )


@pytest.mark.parametrize(
    "table, column, change",
    [
        ("items", "title", lambda v: [*v[:-1], "Another"]),
        ("items", "genres", lambda v: [v[0][:1], v[0][1:] + v[1], *v[2:]]),  # same in a row
        ("items", "title", lambda v: [v[1], v[0], *v[2:]]),
        ("users", "age", lambda v: ["35-44", *v[1:]]),
        ("interactions", "rating", lambda v: [*v[:-1], 5.0]),
        ("interactions", "split", lambda v: ["train"] * len(v)),
        ("interactions", "timestamp", lambda v: [v[0] + 1, *v[1:]]),
        ("interactions", "item_id", lambda v: [v[1], v[0], *v[2:]]),
    ],
)
def test_tampering_is_refused(dataset, tmp_path, table, column, change):
    directory = dataset.save(tmp_path / "out")
    rewrite(directory / f"{table}.parquet", column, change)
    with pytest.raises(ValueError, match="changed after the import; import the logs again"):
        load_dataset(directory)


def test_another_encoding_of_the_same_content_is_no_tampering(dataset, tmp_path):
    directory = dataset.save(tmp_path / "out")
    for name in TABLES:
        path = directory / name
        first = pq.read_table(path).column_names[0]
        rewrite(path, first, list, compression="zstd", row_group_size=2, use_dictionary=False)
    assert_same(load_dataset(directory), dataset)


def test_what_is_no_dataset(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing.*import-logs"):
        load_dataset(tmp_path)
    directory = dataset.save(tmp_path / "out")
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    message = f"format version 99, written by {SOFTWARE}.* reads 1: import the logs again"
    with pytest.raises(ValueError, match=message):
        load_dataset(directory)
    (directory / "manifest.json").write_text("{cut off")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged.*import the logs again"):
        load_dataset(directory)


def test_a_folder_says_which_version_wrote_it(dataset, tmp_path):
    path = dataset.save(tmp_path / "out") / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("written_by") == SOFTWARE
    assert "written_by" not in load_dataset(path.parent).manifest  # two versions, one dataset
    path.write_text(json.dumps(manifest))  # as 0.1.0 wrote it before it said so
    assert_same(load_dataset(path.parent), dataset)
    path.write_text(json.dumps(manifest | {"format_version": 0}))
    with pytest.raises(ValueError, match="format version 0, written by a version of"):
        load_dataset(path.parent)


def test_a_missing_or_broken_table(dataset, tmp_path):
    directory = dataset.save(tmp_path / "out")
    path = directory / "items.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="items.parquet"):
        load_dataset(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="items.parquet"):
        load_dataset(directory)


def test_a_save_that_fails_leaves_the_old_dataset(dataset, tmp_path, monkeypatch):
    directory = dataset.save(tmp_path / "out")
    before = {p.name: p.read_bytes() for p in directory.iterdir()}

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        dataset.save(directory)
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
