"""The three MovieLens layouts, written by hand, read as they are; and what is left out."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets import load_dataset
from alignuser_jax.datasets.formats import movielens
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.records import Interaction, Item
from tests.datasets.formats.logs import rows
from tests.datasets.formats.movielens_files import write_1m, write_100k, write_latest


@pytest.mark.parametrize("gzipped", [False, True])
def test_1m(tmp_path, gzipped):
    dataset = movielens.read(write_1m(tmp_path / "ml", gzipped=gzipped), strict=True)
    assert dataset.name == "ml-1m" and not dataset.synthetic
    assert rows(dataset) == [
        ("2", "10", 5.0, 978298413),
        ("2", "30", 2.0, 978299000),
        ("1", "30", 1.0, 978300019),
        ("1", "20", 4.0, 978302268),  # a tie: 20 stands before 10 in the file
        ("1", "10", 3.0, 978302268),
    ]
    assert dataset.item_ids == ("10", "20", "30", "40")  # 40 was never rated, and stays
    assert dataset.items["20"] == Item("20", "Misérables, Les (1995)", ("Drama", "Musical"), "")
    assert dataset.items["10"].genres == ("Animation", "Children's", "Comedy")
    assert dataset.items["30"].title == "Never Rated 1: The Film (1999)"
    assert dataset.demographics == {
        "2": {"age": "56 or older", "occupation": "self-employed"},
        "1": {"age": "under 18", "occupation": "K-12 student"},
    }
    counts = dataset.manifest["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (2, 4, 5)
    suffix = ".dat.gz" if gzipped else ".dat"
    files = dataset.manifest["source"]["files"]
    assert sorted(files) == [f"{name}{suffix}" for name in ("movies", "ratings", "users")]
    assert all(len(described["sha256"]) == 64 for described in files.values())


def test_1m_without_users_has_no_demographics(tmp_path):
    dataset = movielens.read(write_1m(tmp_path / "ml", users=None))
    assert dataset.demographics["1"] == {"age": "", "occupation": ""}


def test_1m_unknown_codes_are_no_demographics(tmp_path):
    folder = write_1m(tmp_path / "ml", users=("1::F::2::21::48067", "2::M::18::0::70072"))
    assert movielens.read(folder).demographics == {
        "2": {"age": "18-24", "occupation": "other"},
        "1": {"age": "", "occupation": ""},
    }


def test_100k(tmp_path):
    dataset = movielens.read(write_100k(tmp_path / "ml"), strict=True)
    assert dataset.name == "ml-100k"
    assert rows(dataset) == [
        ("196", "302", 5.0, 881250000),
        ("196", "242", 3.0, 881250949),
        ("186", "302", 3.0, 891717742),
    ]
    assert dataset.items["242"].title == 'Kölya, "the" film\'s (1996)'
    assert dataset.items["242"].genres == ("Comedy",)
    assert dataset.items["302"].genres == ("Crime", "Film-Noir", "Mystery", "Thriller")
    assert dataset.items["267"] == Item("267", "unknown", ("unknown",), "")
    assert dataset.demographics["186"] == {"age": "39", "occupation": "executive"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_latest(tmp_path, newline):
    dataset = movielens.read(write_latest(tmp_path / "ml", newline), strict=True)
    assert dataset.name == "ml-latest"
    assert rows(dataset) == [
        ("1", "150", 3.5, 964982000),
        ("1", "11", 4.0, 964982703),
        ("7", "11", 0.5, 1106635946),
    ]
    assert dataset.items["11"].title == "American President, The (1995)"
    assert dataset.items["11"].genres == ("Comedy", "Drama", "Romance")
    assert dataset.items["150"] == Item("150", '"Great Performances" Cats (1998)', (), "")
    assert dataset.items["152"].title == "Léon: The Professional (1994)"


def test_latest_names_the_columns_it_lacks(tmp_path):
    folder = write_latest(tmp_path / "ml")
    text = (folder / "ratings.csv").read_text().replace("movieId", "film")
    (folder / "ratings.csv").write_text(text)
    with pytest.raises(InputError, match=r"ratings\.csv lacks the columns \['movieId'\].*film"):
        movielens.read(folder)


def test_no_layout_says_what_was_expected(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::2::3::4\n")
    with pytest.raises(FileNotFoundError, match=r"ratings\.dat and movies\.dat.*u\.item"):
        movielens.read(tmp_path)


def descriptions_files(folder):
    """The same two descriptions (one of an item that is not there) in every format."""
    texts = {"10": "A cowboy doll, jealous.", "99": "Nobody's."}
    records = [{"movieId": int(key), "plot": text} for key, text in texts.items()]
    extras = "".join(
        f"{key}::T::1995::G::01 Jan::Drama::D::W::A::{text}::http://p\n"
        for key, text in texts.items()
    ).encode("latin-1")
    table = pa.table({"id": [10, 99], "description": list(texts.values())})
    files = {
        "d.csv": 'item_id,x,description\n10,1,"A cowboy doll,\njealous."\n'
        "99,2,Nobody's.\n20,3,N/A\n",
        "d.tsv": "item_id\tsummary\n10\tA cowboy doll, jealous.\n99\tNobody's.\n",
        "by_id.json": json.dumps(texts),
        "objects.json": json.dumps({k: {"abstract": t, "n": 1} for k, t in texts.items()}),
        "records.json": json.dumps(records),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "extras.dat").write_bytes(extras)
    (folder / "extras.dat.gz").write_bytes(gzip.compress(extras))
    (folder / "by_id.json.gz").write_bytes(gzip.compress(files["by_id.json"].encode()))
    pq.write_table(table, folder / "d.parquet")
    return [*files, "extras.dat", "extras.dat.gz", "by_id.json.gz", "d.parquet"]


def test_descriptions_join_by_id_in_every_format(tmp_path):
    folder = write_1m(tmp_path / "ml")
    for name in descriptions_files(tmp_path):
        dataset = movielens.read(folder, descriptions=tmp_path / name, strict=True)
        got = {item_id: item.description for item_id, item in dataset.items.items()}
        assert got == {"10": "A cowboy doll, jealous.", "20": "", "30": "", "40": ""}, name
        assert name in dataset.manifest["source"]["files"]


def test_descriptions_of_item_zero(tmp_path):
    folder = write_1m(tmp_path / "ml", ("1::0::4::978302268",), ("0::Zero::Drama",))
    (tmp_path / "d.json").write_text('[{"id": 0, "text": "Nothing."}]')
    dataset = movielens.read(folder, descriptions=tmp_path / "d.json")
    assert dataset.items["0"].description == "Nothing."


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("d.txt", "10 A cowboy", r"descriptions are read from \.csv.*not \.txt"),
        ("d.csv", "film,words\n10,A cowboy\n", r"\['film', 'words'\].*item_id.*description"),
        ("d.json", "{no json", "is no JSON"),
        ("d.json", "[1, 2]", "an object by item id or a list of records"),
        ("d.json", "3", "an object by item id or a list of records"),
        ("d.json", "", "is empty"),
    ],
)
def test_descriptions_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        movielens.read(write_1m(tmp_path / "ml"), descriptions=tmp_path / name)


@pytest.mark.parametrize("write", [write_1m, write_100k])
def test_gender_and_postcode_are_never_stored(tmp_path, write):
    directory = movielens.read(write(tmp_path / "ml")).save(tmp_path / "out")
    dataset = load_dataset(directory)
    assert dataset.user_table.column_names == ["user_id", "age", "occupation"]
    for path in directory.iterdir():
        if path.suffix == ".parquet":
            values = json.dumps(pq.read_table(path).to_pylist())
            assert '"M"' not in values and '"F"' not in values and "gender" not in values
        else:
            values = path.read_text()
            assert "gender" not in values
        assert not any(code in values for code in ("48067", "70072", "55105"))


def test_layouts_share_one_form(tmp_path):
    folders = (
        write_1m(tmp_path / "a"),
        write_100k(tmp_path / "b"),
        write_latest(tmp_path / "c"),
    )
    datasets = [movielens.read(folder) for folder in folders]
    for table in ("user_table", "item_table", "interaction_table"):
        assert len({str(getattr(d, table).schema.remove_metadata()) for d in datasets}) == 1
    for dataset in datasets:
        log = dataset.log
        kinds = [log.user.dtype, log.item.dtype, log.rating.dtype, log.timestamp.dtype]
        assert (
            kinds == [np.int32, np.int32, np.float32, np.int64] and log.split.dtype == np.int8
        )


def test_history(tmp_path):
    dataset = movielens.read(write_1m(tmp_path / "ml"))
    whole = dataset.history(dataset.log, "1")
    assert whole[0] == Interaction("30", 1.0, 978300019)
    assert [i.item_id for i in whole] == ["30", "20", "10"]
    assert dataset.history(dataset.log, "1", last=2) == whole[1:]
    assert dataset.history(dataset.log, "1", last=0) == ()
    assert dataset.history(dataset.log.of_split("train"), "1") == whole[:2]
    with pytest.raises(KeyError):
        dataset.history(dataset.log, "nobody")
    with pytest.raises(ValueError, match="unknown splits"):
        dataset.log.of_split("dev")
