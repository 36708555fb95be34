"""A log that passes by in blocks gives what it gives in one piece, whatever the blocks."""

import gzip

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.datasets import dataset
from alignuser_jax.datasets.dataset import content_hash, load_dataset
from alignuser_jax.datasets.formats import movielens, synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.datasets.reading import cleaning
from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset
from alignuser_jax.datasets.reading.delimited import (
    LINE,
    InputError,
    read_blocks,
    read_delimited,
    stream_delimited,
)
from alignuser_jax.datasets.report import Report

SMALL = SyntheticConfig(users=12, items=40, ratings_per_user=16, seed=1)


def test_the_hash_is_that_of_the_first_release():
    """Computed by the code before logs passed by in blocks (commit 197c890)."""
    assert synthetic.generate(SMALL).hash == "cc408a90e4c7b465e07e3d183016d50c"
    assert synthetic.generate(SMALL, split="global").hash == "a5f425260c10a8d2cdbcf3f5c47094c2"


def test_the_hash_of_movielens_1m(ml1m):
    text = ml1m.parent / "ml-1m-text" / "movies_extrainfos.dat.gz"
    if not text.is_file():
        pytest.skip("no descriptions in ../shared/data/ml-1m-text")
    found = movielens.read(ml1m, descriptions=text).hash
    assert found == "3b375c6a530efcfb6cd0c85c1b990fc9"  # of commit 197c890


# --- bytes ---

PIECES = [
    "a,b,c",
    "1,2",
    "",
    '"q",r,s',
    '"open,r,s',
    "ü,ö,ä",
    "\xff",
    "x" * 40,
    " ",
    ",,",
    "\r",
]


def written(path, lines, newline, end, bom=False):
    text = newline.join(lines) + newline * end
    data = text.encode("latin-1") if "\xff" in text else text.encode()
    data = b"\xef\xbb\xbf" * bom + data
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def result(read):
    """The table and the report, or the message of the refusal."""
    report = Report()
    try:
        table = read(report)
    except InputError as error:
        return str(error)
    lines = {problem: sorted(lines) for problem, lines in report.lines.items()}
    return table.to_pydict(), report.counts, lines


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["utf-8", "latin-1"]),
    st.sampled_from([None, ("x", "y", "z")]),
)
def test_any_file_in_any_blocks(
    tmp_path_factory, lines, newline, end, bom, quoted, encoding, names
):
    path = tmp_path_factory.mktemp("any") / "log.csv"
    written(path, lines, newline, end, bom)
    options = {"encoding": encoding, "quoted": quoted}
    whole = result(lambda report: read_delimited(path, ",", names, report, **options))
    for size in (1, 5, 64, 1 << 20):
        blocks = result(
            lambda report, size=size: pa.concat_tables(
                stream_delimited(path, ",", names, report, block_bytes=size, **options)
            )
        )
        assert blocks == whole, (size, path.read_bytes())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_blocks_are_whole_lines(tmp_path, size):
    path = tmp_path / "log"
    path.write_bytes(b"\xef\xbb\xbfa\r\nbb\n\n\r\nc\rd\n\n\n")
    blocks = list(read_blocks(path, size))
    assert b"".join(blocks) == b"a\nbb\n\n\nc d\n"
    assert all(block.endswith(b"\n") for block in blocks)
    path.write_bytes(b"old\rMac\r\r")
    assert b"".join(read_blocks(path, size)) == b"old\nMac\n"


def test_a_file_in_another_encoding_is_so_from_its_first_block(tmp_path):
    """`é` in UTF-8 in the first block means `Ã©` where a later line is no UTF-8."""
    path = tmp_path / "log.dat"
    path.write_bytes("é::1\n".encode() * 50 + b"\xe9::2\n")
    for size in (10, 1 << 20):
        tables = stream_delimited(
            path, "::", ("a", "b"), Report(), encoding="latin-1", block_bytes=size
        )
        names = pa.concat_tables(tables)["a"].to_pylist()
        assert names == ["Ã©"] * 50 + ["é"]


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("alignuser_jax.datasets.reading.delimited.MAX_LINE_BYTES", 1000)
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"x" * 5000))
    with pytest.raises(InputError, match="a line of more than 1000 bytes"):
        list(stream_delimited(path, ",", None, Report(), block_bytes=100))


# --- rows ---


def dirty(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.choice([f"u{n}" for n in range(9)] + [" ", "u1 "], rows)
    item = rng.choice([f"i{n}" for n in range(14)] + ["", "unknown"], rows)
    rating = rng.choice(["1", "2.5", "5", "6", "", "nan"], rows)
    time = rng.choice(["5", "6", "7.5", "-1", "never"], rows)
    columns = (pa.array(column.tolist(), pa.string()) for column in (user, item, rating, time))
    names = ("user_id", "item_id", "rating", "timestamp")
    return pa.table({**dict(zip(names, columns, strict=True)), LINE: np.arange(1, rows + 1)})


def built(interactions, items=True):
    ids = [f"i{n}" for n in range(14)]
    table = {"item_id": ids, "title": ids, "genres": [["G"]] * 14, "description": ids}
    catalogue = pa.table(table) if items else None
    return build_dataset(RawLog(interactions, None, catalogue, "f", "n", source={}), Report())


@pytest.mark.parametrize("items", [True, False])
def test_rows_in_any_blocks(monkeypatch, items):
    for seed in range(20):
        table = dirty(seed=seed)
        whole = built(table, items)
        assert whole.report.counts["duplicate rating"] > 10
        cuts = np.sort(np.random.default_rng(seed).integers(0, 300, 5)).tolist()
        blocks = [
            table.slice(start, end - start)
            for start, end in zip([0, *cuts], [*cuts, 300], strict=True)
        ]
        for given_blocks in (blocks, iter(blocks)):
            parted = built(given_blocks, items)
            assert parted.manifest == whole.manifest
            assert parted.interaction_table.equals(whole.interaction_table)
    monkeypatch.setattr(cleaning, "BLOCK_ROWS", 7)
    monkeypatch.setattr(dataset, "CHUNK_ROWS", 7)
    chunked = built(table, items)
    assert chunked.manifest == whole.manifest
    assert chunked.interaction_table["user_id"].num_chunks > 5
    np.testing.assert_array_equal(chunked.log.item, whole.log.item)


def test_null_ids_are_empty_ids():
    table = dirty()
    ids = pa.array([None, *table["user_id"].to_pylist()[1:]])
    report = built(table.set_column(0, "user_id", ids)).report
    assert "f:1" in report.lines["empty user or item id"]


def test_no_rows_at_all():
    with pytest.raises(ValueError, match="no usable interaction is left"):
        built(iter(()))


def test_chunks_change_neither_hash_nor_what_is_loaded(tmp_path, monkeypatch):
    whole = synthetic.generate(SMALL)
    tables = (whole.user_table, whole.item_table, whole.interaction_table)

    def rechunked(table, rows):
        return pa.concat_tables(table.slice(n, rows) for n in range(0, table.num_rows, rows))

    for rows in (1, 3, 50):
        assert content_hash(*(rechunked(table, rows) for table in tables)) == whole.hash
    monkeypatch.setattr(dataset, "_JSON_STRINGS", 2)
    assert content_hash(*tables) == whole.hash
    assert content_hash(*(table.slice(0, 0) for table in tables)) != whole.hash
    monkeypatch.setattr(dataset, "CHUNK_ROWS", 11)
    loaded = load_dataset(synthetic.generate(SMALL).save(tmp_path / "out"))
    np.testing.assert_array_equal(loaded.log.user, whole.log.user)
    assert loaded.manifest == whole.manifest
