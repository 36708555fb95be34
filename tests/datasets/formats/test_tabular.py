"""Any CSV or Parquet log: mappings, files of items and users, and what they refuse."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets.formats import tabular
from alignuser_jax.datasets.formats.tabular import TableFile
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.records import Item
from tests.datasets.formats.logs import rows

HEADER = "when,who,what,stars,note"
LINES = (
    "1600000300,ann,b1,4.5,fine",
    '1600000100,ann,b2,3,"well, so"',
    "1600000200,bob,b1,1,",
)
COLUMNS = {"user": "who", "item": "what", "rating": "stars", "timestamp": "when"}


def write(path, *lines, separator=","):
    path.write_text("".join(line.replace(",", separator) + "\n" for line in lines))
    return path


EXPECTED = [
    ("ann", "b2", 3.0, 1600000100),
    ("ann", "b1", 4.5, 1600000300),
    ("bob", "b1", 1.0, 1600000200),
]


def test_csv_with_a_mapping(tmp_path):
    dataset = tabular.read(TableFile(write(tmp_path / "log.csv", HEADER, *LINES), COLUMNS))
    assert rows(dataset) == EXPECTED
    assert dataset.name == "log" and dataset.items["b1"] == Item("b1", "b1", (), "")
    assert dataset.demographics["ann"] == {"age": "", "occupation": ""}
    assert tabular.read(TableFile(tmp_path / "log.csv", COLUMNS), name="mine").name == "mine"


def test_default_column_names_and_tsv(tmp_path):
    path = tmp_path / "log.tsv"
    write(path, "user_id,item_id,rating,timestamp", "ann,b1,4,7", "bob,b1,2,5", separator="\t")
    dataset = tabular.read(path, strict=True)
    assert rows(dataset) == [("ann", "b1", 4.0, 7), ("bob", "b1", 2.0, 5)]


@pytest.mark.parametrize("moments", [False, True])
def test_parquet_with_a_mapping(tmp_path, moments):
    when = [1600000300, 1600000100, 1600000200]
    if moments:
        when = [datetime.datetime.fromtimestamp(t, datetime.UTC) for t in when]
    table = pa.table(
        {
            "when": when,
            "who": pa.array(["ann", "ann", "bob"]).dictionary_encode(),
            "what": ["b1", "b2", "b1"],
            "stars": pa.array([4.5, 3, 1], pa.float32()),
            "extra": [[1], [2], [3]],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    dataset = tabular.read(TableFile(tmp_path / "log.parquet", COLUMNS), strict=True)
    assert rows(dataset) == EXPECTED


def test_parquet_numbers_and_missing_values(tmp_path):
    table = pa.table(
        {
            "user_id": [1, 1, None, 2],
            "item_id": [7, 8, 7, 7],
            "rating": [5, None, 3, 4],
            "timestamp": [10, 20, 30, 40],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    dataset = tabular.read(tmp_path / "log.parquet")
    assert rows(dataset) == [("1", "7", 5.0, 10), ("2", "7", 4.0, 40)]
    assert dataset.manifest["report"]["dropped"] == {
        "empty user or item id": 1,
        "bad rating": 1,
    }
    assert dataset.manifest["report"]["lines"]["bad rating"] == ["log.parquet:2"]


def items_files(folder):
    write(
        folder / "items.csv",
        "asin,name,kinds,text",
        'b1,"The ""First"", Book",Novel; War,A tale.',
        "b2,Second,,",
        "b3,Unread,Poem,",
    )
    table = pa.table(
        {
            "asin": ["b1", "b2", "b3"],
            "name": ['The "First", Book', "Second", "Unread"],
            "kinds": [["Novel", "War"], [], ["Poem"]],
            "text": ["A tale.", None, ""],
        }
    )
    pq.write_table(table, folder / "items.parquet")
    return "items.csv", "items.parquet"


def test_items_in_csv_and_parquet(tmp_path):
    log = write(tmp_path / "log.csv", HEADER, *LINES)
    roles = {"item": "asin", "title": "name", "genres": "kinds", "description": "text"}
    for name in items_files(tmp_path):
        dataset = tabular.read(
            TableFile(log, COLUMNS),
            items=TableFile(tmp_path / name, roles, genre_separator=";"),
        )
        assert list(dataset.items.values()) == [
            Item("b1", 'The "First", Book', ("Novel", "War"), "A tale."),
            Item("b2", "Second", (), ""),
            Item("b3", "Unread", ("Poem",), ""),
        ], name
        assert rows(dataset) == EXPECTED
        assert sorted(dataset.manifest["source"]["files"]) == sorted(["log.csv", name])


def test_items_need_only_an_id(tmp_path):
    log = write(tmp_path / "log.csv", HEADER, *LINES)
    items = write(tmp_path / "items.csv", "item_id", "b1", "b2")
    dataset = tabular.read(TableFile(log, COLUMNS), items=items)
    assert dataset.items["b2"] == Item("b2", "b2", (), "")


def test_users_keep_age_and_occupation_only(tmp_path):
    log = write(tmp_path / "log.csv", HEADER, *LINES)
    header = "id,name,gender,years,job"
    users = write(
        tmp_path / "users.csv", header, "ann,Ann Q.,F,31,nurse", "zoe,Zoe R.,F,9,none"
    )
    roles = {"user": "id", "age": "years", "occupation": "job"}
    dataset = tabular.read(TableFile(log, COLUMNS), users=TableFile(users, roles))
    assert dataset.user_table.to_pylist() == [
        {"user_id": "ann", "age": "31", "occupation": "nurse"},
        {"user_id": "bob", "age": "", "occupation": ""},  # in no file; zoe did nothing
    ]
    for path in dataset.save(tmp_path / "out").iterdir():
        assert not any(word in path.read_bytes() for word in (b"Ann Q.", b"gender", b"Zoe"))


def test_gender_cannot_be_asked_for(tmp_path):
    log = write(tmp_path / "log.csv", HEADER, *LINES)
    users = write(tmp_path / "users.csv", "user_id,gender", "ann,F")
    with pytest.raises(InputError, match="gender.*expected.*user.*age.*occupation"):
        tabular.read(TableFile(log, COLUMNS), users=TableFile(users, {"gender": "gender"}))


def test_descriptions_join_with_and_without_a_file_of_items(tmp_path):
    log = write(tmp_path / "log.csv", HEADER, *LINES)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"b1": "Joined."}))
    dataset = tabular.read(TableFile(log, COLUMNS), descriptions=texts)
    assert {i.item_id: i.description for i in dataset.items.values()} == {
        "b1": "Joined.",
        "b2": "",
    }
    header = "item_id,description"
    items = write(tmp_path / "items.csv", header, "b1,Own one.", "b2,Own two.")
    dataset = tabular.read(TableFile(log, COLUMNS), items=items, descriptions=texts)
    assert [i.description for i in dataset.items.values()] == ["Joined.", "Own two."]


def test_missing_columns_are_named_with_those_there(tmp_path):
    log = write(tmp_path / "log.csv", HEADER, *LINES)
    message = r"lacks the columns user=user_id, item=item_id.*'who'.*role=column"
    with pytest.raises(InputError, match=message):
        tabular.read(TableFile(log, {"rating": "stars", "timestamp": "when"}))
    with pytest.raises(InputError, match="rating=grade"):
        tabular.read(TableFile(log, COLUMNS | {"rating": "grade"}))


def test_a_column_named_twice(tmp_path):
    log = write(tmp_path / "log.csv", "user_id,item_id,rating,rating", "a,b,3,4")
    with pytest.raises(InputError, match="names a column twice"):
        tabular.read(log)


def test_a_column_called_line_is_no_matter(tmp_path):
    log = write(
        tmp_path / "log.csv", "line,who,what,stars,when", "9,ann,b1,9,1", "8,bob,b1,3,2"
    )
    dataset = tabular.read(TableFile(log, COLUMNS))
    assert dataset.manifest["report"]["lines"] == {"bad rating": ["log.csv:2"]}


def test_files_that_are_not_there_or_no_parquet(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        tabular.read(tmp_path / "none.csv")
    (tmp_path / "log.parquet").write_bytes(b"user_id,item_id\n")
    with pytest.raises(ValueError, match=r"log\.parquet.*not a parquet file"):
        tabular.read(tmp_path / "log.parquet")


def test_lists_where_one_value_is_expected(tmp_path):
    columns = {"user_id": [["a"]], "item_id": ["b"], "rating": [3], "timestamp": [4]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    with pytest.raises(InputError, match="user_id.*hold lists"):
        tabular.read(tmp_path / "log.parquet")
