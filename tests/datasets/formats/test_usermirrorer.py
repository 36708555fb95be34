"""UserMirrorer's three JSON-lines files, as its own preprocessing writes them."""

import json

import pytest

from alignuser_jax.datasets import load_dataset
from alignuser_jax.datasets.formats import usermirrorer
from alignuser_jax.datasets.reading.delimited import InputError

ML_1M = {  # what pandas' to_json(orient="records", lines=True) makes of it
    "user_feature": [
        {"user_id": "1", "user_description": {"gender": "female", "age": "Under 18",
         "occupation": "K-12 student", "location": "Unknown"}, "user_features": {}},
        {"user_id": "2", "user_description": {}, "user_features": {}},
    ],
    "item_feature": [
        {"item_id": "10", "item_description": {"title": "Toy Story (1995)",
         "genres": "Animation|Children's|Comedy", "year": "1995"},
         "item_features": {"year": "1995"}},
        {"item_id": "20", "item_description": {"title": "Heat (1995)", "genres": "Action",
         "year": None}, "item_features": {"year": None}},
    ],
    "interaction": [
        {"user_id": "1", "item_id": "10", "timestamp": "2000-12-31 22:12:40",
         "behavior_features": {"rating": 5.0}},
        {"user_id": "1", "item_id": "20", "timestamp": "2000-12-31 22:12:39",
         "behavior_features": {"rating": "Not Rated"}},
        {"user_id": "2", "item_id": "20", "timestamp": "2001-01-01 00:00:00.123000",
         "behavior_features": {"rating": 2.0}},
    ],
}  # fmt: skip
MIND = {
    "user_feature": [{"user_id": "U1", "user_description": {}, "user_features": {}}],
    "item_feature": [
        {"item_id": name, "item_description": {"title": f"News {name}", "abstract": "Short.",
         "category": "sports", "subcategory": "football_nfl"}, "item_features": {}}
        for name in ("N1", "N2", "N3")
    ],
    "interaction": [
        {"user_id": "U1", "item_id": "N2", "timestamp": "2019-11-15 08:00:00",
         "behavior_features": {"impression_list": ["N1", "N2", "N3"], "item_pos": 1}},
        {"user_id": "U1", "item_id": "N3", "timestamp": "2019-11-15 09:00:00",
         "behavior_features": {"impression_list": ["N1", "N2"], "item_pos": 0}},
    ],
}  # fmt: skip


def write(folder, name, tables):
    folder.mkdir(exist_ok=True)
    for part, records in tables.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}_{part}.jsonl").write_text(text)
    return folder


def test_ratings(tmp_path):
    dataset = usermirrorer.read(write(tmp_path, "ml-1m", ML_1M))
    log = dataset.log
    assert dataset.name == "ml-1m" and dataset.user_ids == ("1", "2")
    assert log.rating.tolist() == [5.0, 2.0]
    assert log.timestamp.tolist() == [978_300_760, 978_307_200]
    assert dataset.report.lines == {"bad rating": ["ml-1m_interaction.jsonl:2"]}
    item = dataset.items["10"]
    assert item.title == "Toy Story (1995)" and item.description == "year: 1995"
    assert item.genres == ("Animation", "Children's", "Comedy")
    assert dataset.demographics["1"] == {"age": "Under 18", "occupation": "K-12 student"}
    assert "female" not in str(dataset.user_table.to_pylist()) and not dataset.extra_tables


def test_impressions(tmp_path):
    dataset = usermirrorer.read(write(tmp_path, "MIND", MIND))
    problem = "impression list without its item"
    assert dataset.report.lines[problem] == ["MIND_interaction.jsonl:2"]
    assert dataset.extra_tables["impressions"].to_pylist() == [
        {
            "user_id": "U1",
            "timestamp": 1_573_804_800,
            "item_ids": ["N1", "N2", "N3"],
            "clicked": "N2",
        }
    ]
    assert dataset.log.rating.tolist() == [5.0]
    assert dataset.items["N1"].genres == ("sports", "football_nfl")
    assert dataset.items["N1"].description == "abstract: Short."
    loaded = load_dataset(dataset.save(tmp_path / "out"))
    assert loaded.hash == dataset.hash and "impressions" in loaded.extra_tables
    assert loaded.manifest["counts"]["impressions"] == 1


def test_another_feature_as_the_rating(tmp_path):
    tables = json.loads(json.dumps(ML_1M))
    for record in tables["interaction"]:
        record["behavior_features"] = {"stars": 4, "hours_played": 0.5}
    write(tmp_path, "x", tables)
    assert usermirrorer.read(tmp_path, rating="stars").log.rating.tolist() == [4.0] * 3
    with pytest.raises(InputError, match="no behavior_features has 'rating'"):
        usermirrorer.read(tmp_path)


def test_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no _interaction file in"):
        usermirrorer.read(tmp_path)
    write(tmp_path, "ml-1m", ML_1M)
    (tmp_path / "ml-1m_item_feature.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match=r"lacks the fields \['item_id', 'item_description'\]"):
        usermirrorer.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        usermirrorer.read(tmp_path / "ml-1m_item_feature.jsonl")
