"""RecBole's atomic files in and out."""

import pytest

from alignuser_jax.datasets import load_dataset
from alignuser_jax.datasets.exports import write_recbole
from alignuser_jax.datasets.formats import recbole, synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.datasets.reading.delimited import InputError

FILES = {
    "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n186\t302\t3.5\t891717742.0\n196\t302\t5\t881250000\n"
    "196\t999\t5\t881250000\n",
    "ml.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    '242\tKolya\t1996\tComedy\n302\tL.A. "Confidential"\t1997\tCrime Film-Noir, Mystery\n',
    "ml.user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "196\t49\tM\twriter\t55105\n186\t39\tF\texecutive\t00000\n",
    "ml.kg": "head_id:token\trelation_id:token\ttail_id:token\n"
    "m.0k\tfilm.director\tm.0d\nm.0d\tborn.in\tm.0p\n",
    "ml.link": "item_id:token\tentity_id:token\n242\tm.0k\n",
}


def write(folder, files=FILES):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_atomic_files(tmp_path):
    dataset = recbole.read(write(tmp_path / "ml"))
    assert dataset.name == "ml" and dataset.user_ids == ("196", "186")
    assert dataset.log.rating.tolist() == [5.0, 3.0, 3.5]
    assert dataset.log.timestamp.tolist() == [881_250_000, 881_250_949, 891_717_742]
    assert dataset.report.lines == {"unknown item id": ["ml.inter:5"]}
    item = dataset.items["302"]
    assert item.title == 'L.A. "Confidential"'
    assert item.genres == ("Crime", "Film-Noir", "Mystery")
    assert dataset.demographics["186"] == {"age": "39", "occupation": "executive"}
    assert dataset.user_table.column_names == ["user_id", "age", "occupation"]
    assert dataset.extra_tables["graph"].to_pylist() == [
        {"head": "242", "relation": "film.director", "tail": "m.0d"},
        {"head": "m.0d", "relation": "born.in", "tail": "m.0p"},
    ]
    assert set(dataset.manifest["source"]["files"]) == set(FILES)
    loaded = load_dataset(dataset.save(tmp_path / "out"))
    assert loaded.extra_tables["graph"].equals(dataset.extra_tables["graph"])
    assert recbole.read(tmp_path / "ml" / "ml.inter").hash == dataset.hash


def test_other_column_names(tmp_path):
    text = FILES["ml.inter"].replace("rating:", "stars:").replace("item_id", "movie")
    folder = write(tmp_path / "ml", {"ml.inter": text})
    with pytest.raises(
        InputError, match=r"lacks the columns \['item_id', 'rating'\].*role=col"
    ):
        recbole.read(folder)
    dataset = recbole.read(folder, columns={"item": "movie", "rating": "stars"})
    assert len(dataset.log) == 4


@pytest.mark.parametrize(
    "text, message",
    [
        ("user_id\titem_id\n1\t2\n", "name no type: expected name:type"),
        ("user_id:token\tuser_id:float\n1\t2\n", "names a column twice"),
        ("user_id:token,item_id:token\n1,2\n", "lacks the columns"),
        ("", "is empty"),
    ],
)
def test_what_is_no_atomic_file(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        recbole.read(write(tmp_path / "ml", {"ml.inter": text}))


def test_missing_and_many(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \.inter file in"):
        recbole.read(tmp_path)
    write(tmp_path, {"a.inter": "x", "b.inter": "x"})
    with pytest.raises(ValueError, match="several files .*: a.inter, b.inter; name one"):
        recbole.read(tmp_path)


def test_out_and_in_again(tmp_path):
    made = synthetic.generate(SyntheticConfig(users=12, items=30, ratings_per_user=10))
    folder = write_recbole(made, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == [
        f"synthetic.{end}" for end in ("inter", "item", "user")
    ]
    back = recbole.read(folder, strict=True)
    assert dict(back.items) == dict(made.items) and back.demographics == made.demographics
    assert back.interaction_table.equals(made.interaction_table)


def test_the_graph_comes_back_too(tmp_path):
    dataset = recbole.read(write(tmp_path / "ml"))
    back = recbole.read(write_recbole(dataset, tmp_path / "out"))
    assert back.extra_tables["graph"].equals(dataset.extra_tables["graph"])


def test_benchmark_files_hold_the_split(tmp_path):
    made = synthetic.generate(SyntheticConfig(users=12, items=30, ratings_per_user=10))
    folder = write_recbole(made, tmp_path, benchmark=True)
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        lines = (folder / f"synthetic.{part}.inter").read_text().splitlines()
        assert lines[0] == "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        assert len(lines) - 1 == made.manifest["split"]["counts"][split]
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_recbole(made, tmp_path)


def test_separators_inside_texts(tmp_path):
    import pyarrow as pa

    from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset
    from alignuser_jax.datasets.reading.delimited import LINE
    from alignuser_jax.datasets.report import Report

    items = pa.table({"item_id": ["i"], "title": ["A\tB\nC"], "genres": [["Free to Play"]],
                      "description": ["x"]})  # fmt: skip
    log = pa.table({"user_id": ["u"], "item_id": ["i"], "rating": ["4.5"], "timestamp": ["7"],
                    LINE: [1]})  # fmt: skip
    report = Report()
    dataset = build_dataset(RawLog(log, None, items, "f", "a b", source={}), report)
    assert dataset.items["i"].title == "A B C" and report.repaired == {
        "control characters taken out of a title": 1
    }
    folder = write_recbole(dataset, tmp_path)
    assert folder.name == "a_b"
    assert (folder / "a_b.item").read_text().splitlines()[1] == "i\tA B C\tFree_to_Play\tx"
    assert (folder / "a_b.inter").read_text().splitlines()[1] == "u\ti\t4.5\t7"
