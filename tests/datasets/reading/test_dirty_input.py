"""Every kind of dirty input: dropped and counted with its line by default; strict stops."""

import gzip

import pytest

from alignuser_jax.datasets.formats import movielens, tabular
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.report import SHOWN_LINES, DirtyInput, Report
from tests.datasets.formats.movielens_files import MOVIES_1M, RATINGS_1M, write_1m, write_latest

GOOD = ("ann::10::4::100", "ann::20::3::200", "bob::10::2::300")
TRUNCATED = "truncated or too long line"

DIRTY_LINES = [
    ("ann::30::4", TRUNCATED),
    ("ann::30", TRUNCATED),
    ("ann::30::4::100::7", TRUNCATED),
    ("", "empty user or item id"),  # a blank line in the middle
    ("::30::4::100", "empty user or item id"),
    ("  ::30::4::100", "empty user or item id"),
    ("ann::::4::100", "empty user or item id"),
    ("ann::30::good::100", "bad rating"),
    ("ann::30::::100", "bad rating"),
    ("ann::30::0::100", "bad rating"),
    ("ann::30::6::100", "bad rating"),
    ("ann::30::-3::100", "bad rating"),
    ("ann::30::nan::100", "bad rating"),
    ("ann::30::inf::100", "bad rating"),
    ("ann::30::4::yesterday", "bad timestamp"),
    ("ann::30::4::", "bad timestamp"),
    ("ann::30::4::-5", "bad timestamp"),
    ("ann::30::4::nan", "bad timestamp"),
    ("ann::30::4::978300019000", "bad timestamp"),  # milliseconds
    ("ann::77::4::100", "unknown item id"),
    ("ann::10::1::900", "duplicate rating"),
]


def ids(dataset):
    log = dataset.log
    return [
        (dataset.user_ids[u], dataset.item_ids[i], float(r))
        for u, i, r in zip(log.user, log.item, log.rating, strict=True)
    ]


@pytest.mark.parametrize("line, problem", DIRTY_LINES)
def test_one_dirty_line(tmp_path, line, problem):
    folder = write_1m(tmp_path / "ml", (*GOOD[:2], line, GOOD[2]))
    dataset = movielens.read(folder)
    assert ids(dataset) == [("ann", "10", 4.0), ("ann", "20", 3.0), ("bob", "10", 2.0)]
    report = dataset.manifest["report"]
    assert report["dropped"] == {problem: 1}
    assert report["lines"] == {problem: ["ratings.dat:3"]}
    assert f"{problem}: 1 (ratings.dat:3)" in str(dataset.report)
    with pytest.raises(DirtyInput, match=f"(?s){problem}: 1 .ratings.dat:3.*without --strict"):
        movielens.read(folder, strict=True)


def test_all_of_them_at_once_keep_their_lines(tmp_path):
    lines = [GOOD[0]]
    for dirty, _ in DIRTY_LINES:
        lines += [dirty, f"zed::{20 if len(lines) < 2 else 77}::5::50"]
    folder = write_1m(tmp_path / "ml", lines)
    report = movielens.read(folder).report
    expected = {}
    for n, (_, problem) in enumerate(DIRTY_LINES):
        expected.setdefault(problem, []).append(2 + 2 * n)
    for n in range(1, len(DIRTY_LINES)):  # zed's later lines name an unknown item
        expected["unknown item id"].append(3 + 2 * n)
    shown = {p: [f"ratings.dat:{n}" for n in sorted(ns)] for p, ns in expected.items()}
    assert report.counts == {problem: len(ns) for problem, ns in expected.items()}
    assert report.lines == {problem: ns[:SHOWN_LINES] for problem, ns in shown.items()}


def test_the_first_of_duplicates_stays_whatever_the_times(tmp_path):
    lines = ("ann::10::1::900", "ann::10::5::100", "ann::20::3::500", "ann::10::4::950")
    dataset = movielens.read(write_1m(tmp_path / "ml", lines))
    assert ids(dataset) == [("ann", "20", 3.0), ("ann", "10", 1.0)]
    assert dataset.report.lines["duplicate rating"] == ["ratings.dat:2", "ratings.dat:4"]


def test_a_dropped_line_is_no_duplicates_first(tmp_path):
    lines = ("ann::10::9::100", "ann::10::5::100")
    dataset = movielens.read(write_1m(tmp_path / "ml", lines))
    assert ids(dataset) == [("ann", "10", 5.0)] and dataset.report.counts == {"bad rating": 1}


def test_white_space_round_ids_and_numbers_is_no_dirt(tmp_path):
    folder = write_1m(tmp_path / "ml", (" ann ::10 :: 4 :: 100", "ann::20::3::2e2"))
    dataset = movielens.read(folder, strict=True)
    assert ids(dataset) == [("ann", "10", 4.0), ("ann", "20", 3.0)]


def test_a_last_line_cut_off(tmp_path):
    folder = write_1m(tmp_path / "ml")
    data = "\n".join((*GOOD, "bob::20::3::97"))
    (folder / "ratings.dat").write_text(data[:-4])
    dataset = movielens.read(folder)
    assert dataset.report.lines == {TRUNCATED: ["ratings.dat:4"]} and len(dataset.log) == 3


def test_byte_order_mark_and_crlf_are_no_dirt(tmp_path):
    plain = write_latest(tmp_path / "a")
    marked = write_latest(tmp_path / "b", "\r\n")
    for name in ("ratings.csv", "movies.csv"):
        (marked / name).write_bytes(b"\xef\xbb\xbf" + (marked / name).read_bytes())
    first, second = (movielens.read(folder, strict=True) for folder in (plain, marked))
    assert first.hash == second.hash and first.user_ids == ("1", "7")


def test_wrong_encoding(tmp_path):
    log = tmp_path / "log.csv"
    header, a, b = "user_id,item_id,rating,timestamp\n", "ann,b1,3,1\n", "zoë,b1,4,2\n"
    log.write_bytes(header.encode() + a.encode() + b.encode("latin-1") + b"bob,b1,5,3\n")
    dataset = tabular.read(log)
    assert dataset.user_ids == ("ann", "bob")
    assert dataset.report.lines == {"not utf-8": ["log.csv:3"]}
    with pytest.raises(DirtyInput, match=r"not utf-8: 1 \(log\.csv:3\)"):
        tabular.read(log, strict=True)
    log.write_bytes((header + a + b).encode("utf-16"))
    with pytest.raises(InputError, match="is UTF-16: expected UTF-8"):
        tabular.read(log)


def test_lines_after_one_in_another_encoding_keep_their_numbers(tmp_path):
    log = tmp_path / "log.csv"
    log.write_bytes(
        b"user_id,item_id,rating,timestamp\nann,b1,3,1\nzo\xeb,b1,4,2\nbob,b1,9,3\ncut\n"
    )
    assert tabular.read(log).report.lines == {
        "not utf-8": ["log.csv:3"],
        TRUNCATED: ["log.csv:5"],
        "bad rating": ["log.csv:4"],
    }


def test_utf8_titles_in_a_latin1_layout(tmp_path):
    folder = write_1m(tmp_path / "ml")
    text = "10::Amélie (2001)::Comedy\n20::B::Drama\n30::C::Drama\n"
    (folder / "movies.dat").write_bytes(text.encode("utf-8"))
    assert movielens.read(folder).items["10"].title == "Amélie (2001)"


def test_an_open_quote_swallows_nothing(tmp_path):
    log = tmp_path / "log.csv"
    rows = ['"ann",b1,3,1', '"bob,b1,4,2', "cat,b1,5,3"]
    log.write_text("user_id,item_id,rating,timestamp\n" + "\n".join(rows) + "\n")
    dataset = tabular.read(log)
    assert dataset.user_ids == ("ann", "cat")
    assert dataset.report.lines == {TRUNCATED: ["log.csv:3"]}


@pytest.mark.parametrize("content", ["", "\n\n", "   \n"])
def test_an_empty_file(tmp_path, content):
    folder = write_1m(tmp_path / "ml")
    (folder / "ratings.dat").write_text(content)
    with pytest.raises(InputError, match=r"ratings\.dat is empty: expected at least one row"):
        movielens.read(folder)
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(InputError, match=r"log\.csv is empty"):
        tabular.read(tmp_path / "log.csv")


def test_a_header_and_no_rows(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,rating,timestamp\n")
    with pytest.raises(InputError, match="no readable rows below its header"):
        tabular.read(tmp_path / "log.csv")
    folder = write_latest(tmp_path / "ml")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\r\n")
    with pytest.raises(InputError, match=r"ratings\.csv has no readable rows"):
        movielens.read(folder)


def test_only_dirt_is_refused_with_its_report(tmp_path):
    folder = write_1m(tmp_path / "ml", ("ann::10::9::100", "ann::77::4::100"))
    with pytest.raises(ValueError, match="(?s)no usable interaction.*bad rating: 1.*unknown"):
        movielens.read(folder)


def test_another_separator_is_named(tmp_path):
    folder = write_1m(tmp_path / "ml", [line.replace("::", "\t") for line in RATINGS_1M])
    with pytest.raises(InputError, match=r"no line has the 4 columns"):
        movielens.read(folder)


def test_a_truncated_gzip_file(tmp_path):
    folder = write_1m(tmp_path / "ml", gzipped=True)
    path = folder / "ratings.dat.gz"
    data = path.read_bytes()
    for broken in (
        data[:-12],
        data[: len(data) // 2],
        b"no gzip at all",
        data[:20] + data[22:],
    ):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"ratings\.dat\.gz is not a complete gzip file"):
            movielens.read(folder)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match="is empty"):
        movielens.read(folder)


def test_dirty_items_and_users(tmp_path):
    movies = (*MOVIES_1M, "10::Another Ten::Drama", "::No id::Drama", "50::cut off")
    users = ("1::F::1::10::48067", "1::M::56::16::70072", "2::M")
    folder = write_1m(tmp_path / "ml", movies=movies, users=users)
    dataset = movielens.read(folder)
    assert dataset.items["10"].title == "Toy Story (1995)" and "50" not in dataset.items
    assert dataset.demographics["1"]["age"] == "under 18"
    report = dataset.report
    assert report.lines["empty id"] == ["movies.dat:6"]
    assert report.lines["duplicate id"] == ["movies.dat:5", "users.dat:2"]
    assert report.lines[TRUNCATED] == ["movies.dat:7", "users.dat:3"]
    assert len(dataset.log) == len(RATINGS_1M)
    with pytest.raises(DirtyInput, match="duplicate id: 2"):
        movielens.read(folder, strict=True)


def test_report_shows_the_first_lines_and_all_counts():
    report = Report()
    report.read = 300
    report.add("bad", "f", range(100, 0, -1))
    report.add("bad", "g", range(1, 51))
    report.add("worse", "g", [])
    assert report.counts == {"bad": 150} and len(report.lines["bad"]) == SHOWN_LINES
    assert report.lines["bad"][0] == "f:1"
    assert str(report).startswith("300 rows read, 150 dropped:\n  bad: 150 (f:1, f:2,")
    assert str(Report()) == "0 rows read, nothing dropped"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1600000000000", "'1600000000000': expected seconds since 1970 (milliseconds:"),
        ("2020-01-02T00:00:00Z", "'2020-01-02T00:00:00Z': expected seconds since 1970"),
        ("x\x1b[2J" + "y" * 99, "'x\\x1b[2Jyyyy"),
    ],
)
def test_what_a_dropped_value_looks_like_is_said(tmp_path, value, said):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,rating,timestamp\nu,i,4,{value}\n")
    with pytest.raises(ValueError) as caught:
        tabular.read(tmp_path / "log.csv")
    assert f"bad timestamp: 1 (log.csv:2), such as {said}" in str(caught.value)
