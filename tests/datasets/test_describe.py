"""The numbers of a description against a count by hand, and pictures for every kind of log."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from alignuser_jax.datasets.describe import describe, gaps, gini, session_lengths
from alignuser_jax.datasets.formats import movielens, opera, synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.report.log_pictures import PLOTS, write_description
from tests.datasets.formats.movielens_files import write_1m
from tests.datasets.formats.opera_files import write_opera
from tests.datasets.test_splits import make_log

ROOT = Path(__file__).parents[2]
HOUR = 3600


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """User 1 has two sessions, user 2 one; item 10 is twice as popular as the others."""
    ratings = [
        "1::10::5::1000",
        "1::20::4::1000",
        f"1::30::4::{1000 + 1800}",
        f"1::40::1::{1000 + 1800 + 1801}",
        f"2::10::5::{90 * 86_400}",
    ]
    movies = ["10::A::Drama|War", "20::B::Drama", "30::C::War", "40::D::", "50::E::Comedy"]
    return movielens.read(write_1m(tmp_path_factory.mktemp("d") / "ml", ratings, movies, None))


def test_numbers_by_hand(tiny):
    levels = {"pickiness": np.array([2, 0]), "variety": np.array([1, 3])}
    found = describe(tiny, levels)
    assert json.loads(json.dumps(found)) == found
    assert found["name"] == "ml-1m" and not found["synthetic"]
    assert found["parts"][0] == {
        "part": "all",
        "interactions": 5,
        "users": 2,
        "rated items": 4,
        "density": 5 / 8,
        "mean rating": 3.8,
    }
    assert [part["interactions"] for part in found["parts"]] == [5, 3, 0, 2]
    assert found["parts"][2]["density"] is None and found["parts"][2]["mean rating"] is None
    assert found["items_in_catalogue"] == 5
    assert found["ratings"] == {"1": 1, "4": 2, "5": 2}
    assert found["per_user"]["mean"] == 2.5 and found["per_user"]["max"] == 4
    assert found["per_item"]["share of the top tenth"] == 2 / 5
    assert found["time"]["first_day"] == "1970-01-01"
    assert found["time"]["last_day"] == "1970-04-01"
    assert found["time"]["sessions"] == 3
    assert found["time"]["gap_seconds"]["median"] == 1800
    assert found["genres"] == {"Drama": 3, "War": 3}  # of what was rated; by name at a tie
    assert found["traits"] == {
        "pickiness": {"not picky": 0, "moderately": 1, "extremely": 0, "unknown": 1},
        "variety": {"low": 1, "middle": 0, "high": 1, "unknown": 0},
    }


def test_sessions_end_after_more_than_half_an_hour():
    log = make_log([0, 0, 0, 1, 1], [0, 1800, 3601, 3601, 3602])
    assert gaps(log).tolist() == [1800, 1801, 1]
    assert session_lengths(log).tolist() == [2, 1, 2]
    assert session_lengths(make_log([], [])).tolist() == []


def test_gini():
    assert gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert gini(np.array([10, 0, 0, 0])) == pytest.approx(0.75)
    counts = np.sort(np.random.default_rng(0).integers(1, 50, 30))[::-1]
    pairs = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(pairs)


def pictures(folder):
    found = {path.stem for path in folder.glob("*.png")}
    for name in found:
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == (880, 495)
            assert len(image.convert("L").histogram()) > 1
            assert np.asarray(image.convert("L")).std() > 10  # something is drawn
    page = (folder / "description.md").read_text()
    assert set(re.findall(r"\((\w+)\.png\)", page)) == found
    return found


def test_every_picture_of_a_synthetic_log(tmp_path):
    dataset = synthetic.generate(SyntheticConfig(users=30, items=40, ratings_per_user=16))
    levels = {"engagement": np.arange(30) % 3 + 1}
    described = write_description(dataset, tmp_path / "a", levels)
    assert pictures(tmp_path / "a") == set(PLOTS) - {"steps", "kinds"}
    assert json.loads((tmp_path / "a" / "description.json").read_text()) == described
    assert (tmp_path / "a" / "description.md").read_text().startswith("# synthetic (SYNTHETIC)")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    write_description(dataset, tmp_path / "a", levels)  # the same bytes for the same dataset
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def changed(dataset, table, **columns):
    old = getattr(dataset, table)
    for name, values in columns.items():
        place = old.column_names.index(name)
        old = old.set_column(place, name, pa.array(values, old[name].type))
    return dataclasses.replace(dataset, **{table: old})


def test_logs_without_ratings_times_or_genres(tiny, tmp_path):
    rows, nothing = len(tiny.log), float("nan")
    for table, columns, missing in (
        ("interaction_table", {"rating": [nothing] * rows}, "ratings"),
        ("interaction_table", {"rating": [5.0] * rows}, "ratings"),
        ("interaction_table", {"timestamp": [0] * rows}, "time"),
        ("item_table", {"genres": [[]] * 5}, "genres"),
    ):
        found = describe(changed(tiny, table, **columns))
        assert set(describe(tiny)) - set(found) == {missing}
    bare = changed(tiny, "interaction_table", rating=[5.0] * rows, timestamp=[0] * rows)
    bare = changed(bare, "item_table", genres=[[]] * 5)
    (tmp_path / "ratings.png").write_bytes(b"of an earlier description")
    write_description(bare, tmp_path)
    assert pictures(tmp_path) == {"per_user", "per_item"}
    page = (tmp_path / "description.md").read_text()
    assert "It has no ratings, timestamps, genres." in page


def test_titles_that_look_like_formulas(tiny, tmp_path):
    genres, rows = [["$x_{", "a" * 200], ["|"], ["*b*"], [], []], len(tiny.log)
    dataset = changed(tiny, "item_table", genres=genres)
    dataset = changed(dataset, "interaction_table", timestamp=[0] * rows)
    dataset.manifest["name"] = "$\\frac{"
    try:
        write_description(dataset, tmp_path)
    finally:
        dataset.manifest["name"] = "ml-1m"
    assert "genres" in pictures(tmp_path)


def test_one_user_with_one_interaction(tmp_path):
    folder = write_1m(tmp_path / "ml", ["1::10::5::1000"], ["10::A::Drama"], None)
    write_description(movielens.read(folder), tmp_path / "out", {"variety": np.array([0])})
    assert {"per_user", "per_item", "genres"} <= pictures(tmp_path / "out")


def test_the_program(tmp_path):
    dataset = synthetic.generate(SyntheticConfig(users=30, items=40, ratings_per_user=16))
    dataset.save(tmp_path / "data")
    program = "from alignuser_jax.runs.flags import run; from data_prep import describe; "
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{program}run(describe.main)",
            "--dataset=data",
            "--output=out",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC: generated, no human made these ratings" in done.stdout
    assert "| interactions per user " in done.stdout and "| validation " in done.stdout
    assert done.stdout.strip().endswith("out/description.md")
    assert pictures(tmp_path / "out") == set(PLOTS) - {"steps", "kinds"}


def test_a_log_of_sessions(tmp_path):
    dataset = opera.read(write_opera(tmp_path / "files"))
    found = write_description(dataset, tmp_path / "out")
    visits = found["session_log"]
    assert json.loads(json.dumps(found)) == found
    assert [tuple(part.values()) for part in visits["parts"]] == [
        ("all", 5, 2, 23, 3),
        ("train", 4, 2, 18, 2),
        ("validation", 0, 0, 0, 0),
        ("test", 1, 1, 5, 1),
    ]
    assert visits["lengths"] == {"4": 2, "5": 3}
    assert visits["actions"] == {"click": 13, "input": 5, "terminate": 5}
    assert visits["clicks"] == {"product_link": 5, "review": 5, "purchase": 3}
    assert sum(visits["pages"].values()) == 23 and visits["reasons"] == 5 / 23
    assert visits["shown"] == 13 / 18  # the reviews are on no page
    assert pictures(tmp_path / "out") == {"steps", "kinds"}
    page = (tmp_path / "out" / "description.md").read_text()
    assert "Steps of a session: median 5, mean 4.6, most 5." in page
    assert "It has no ratings." in page and "| train " in page
