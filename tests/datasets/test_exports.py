"""Exports to Hugging Face `datasets` and to obp's bandit feedback, and the program."""

import subprocess
import sys
from pathlib import Path

import datasets as hf
import numpy as np
import pyarrow as pa
import pytest

from alignuser_jax.agents.events import to_table
from alignuser_jax.datasets.exports import (
    bandit_feedback,
    read_feedback,
    write_datasets,
    write_feedback,
)
from alignuser_jax.datasets.formats import opera, recbole, synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.records import Event
from tests.datasets.formats.opera_files import write_opera

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made():
    return synthetic.generate(SyntheticConfig(users=12, items=30, ratings_per_user=10))


def test_datasets_from_disk(made, tmp_path):
    folder = write_datasets(made, tmp_path / "out")
    found = hf.load_from_disk(str(folder / "interactions"))
    assert {name: len(part) for name, part in found.items()} == made.manifest["split"]["counts"]
    table = made.interaction_table.to_pylist()
    expected = [row["item_id"] for row in table if row["split"] == "test"]
    assert found["test"]["item_id"][:] == expected
    items = hf.load_from_disk(str(folder / "items"))
    assert items["genres"][:] == made.item_table["genres"].to_pylist()
    with pytest.raises(FileExistsError, match="choose another folder"):
        write_datasets(made, tmp_path / "out")


def test_sessions_go_by_split_too(tmp_path):
    dataset = opera.read(write_opera(tmp_path))
    folder = write_datasets(dataset, tmp_path / "out")
    steps = hf.load_from_disk(str(folder / "steps"))
    assert {name: len(part) for name, part in steps.items()} == {"train": 18, "test": 5}
    assert set(steps["test"]["session_id"]) == {
        row["session_id"]
        for row in dataset.extra_tables["sessions"].to_pylist()
        if row["split"] == "test"
    }
    assert steps["train"][1]["products"][0]["price"] == "$139.99"
    assert not (folder / "interactions").exists()
    assert len(hf.load_from_disk(str(folder / "surveys"))) == 2


def visit(made, arm="als", propensity=0.25):
    """One page of two items: the first watched and rated 5, the second skipped."""
    user, (a, b) = made.user_ids[3], made.item_ids[4:6]
    rows = [
        ("page", {"position": 1, "item_id": a, "probability": propensity}),
        ("page", {"position": 2, "item_id": b, "probability": propensity / 2}),
        ("screen", {"position": 1, "item_id": a, "value": 1.0, "probability": 0.9}),
        ("screen", {"position": 2, "item_id": b, "value": 0.0, "probability": 0.1}),
        ("rate", {"position": 1, "item_id": a, "value": 5.0, "expected": 4.4}),
        ("exit", {"value": 1.0}),
    ]
    return [Event(arm, user, 0, n, kind, 1, **rest) for n, (kind, rest) in enumerate(rows)]


def test_bandit_feedback(made):
    feedback = bandit_feedback(made, to_table(visit(made)))
    assert (feedback["n_rounds"], feedback["n_actions"]) == (2, 30)
    assert feedback["action"].tolist() == [4, 5] and feedback["position"].tolist() == [0, 1]
    assert feedback["reward"].tolist() == [1.0, 0.0]
    assert feedback["pscore"].tolist() == [0.25, 0.125]
    assert feedback["action"].dtype == feedback["position"].dtype == np.int64
    for name, expected in (("liked", [1.0, 0.0]), ("rating", [5.0, 0.0])):
        got = bandit_feedback(made, to_table(visit(made)), reward=name)["reward"]
        assert got.tolist() == expected
    genres = feedback["genres"].tolist()
    row = feedback["action_context"][4]
    assert (
        tuple(g for g, on in zip(genres, row, strict=True) if on)
        == made.items[made.item_ids[4]].genres
    )
    train = made.log.of_split("train")
    seen = [
        genre
        for item in train.item[train.user == 3]
        for genre in made.items[made.item_ids[item]].genres
    ]
    shares = [seen.count(genre) / len(seen) for genre in genres]
    np.testing.assert_allclose(feedback["context"][0], shares)


def test_inverse_propensity_from_the_file_is_the_hand_computed_value(made, tmp_path):
    path = write_feedback(bandit_feedback(made, to_table(visit(made))), tmp_path / "f.npz")
    feedback = read_feedback(path)
    assert set(feedback) >= {
        *("n_rounds", "n_actions", "context", "action_context", "action", "position"),
        *("reward", "pscore"),
    }
    uniform = np.full((feedback["n_rounds"], feedback["n_actions"]), 1 / 30)
    taken = uniform[np.arange(feedback["n_rounds"]), feedback["action"]]
    ips = np.mean(feedback["reward"] * taken / feedback["pscore"])
    assert ips == pytest.approx((1 / 30) / 0.25 / 2)
    with pytest.raises(FileExistsError):
        write_feedback(feedback, path)


def test_without_propensities_there_is_no_pscore(made, tmp_path):
    feedback = bandit_feedback(made, to_table(visit(made, propensity=0.0)))
    assert feedback["pscore"] is None
    assert read_feedback(write_feedback(feedback, tmp_path / "f.npz"))["pscore"] is None


def test_what_cannot_be_exported(made):
    both = to_table(visit(made) + visit(made, "random"))
    with pytest.raises(ValueError, match=r"have the arms \['als', 'random'\]: name one"):
        bandit_feedback(made, both)
    assert bandit_feedback(made, both, arm="random")["n_rounds"] == 2
    with pytest.raises(ValueError, match="name one, not 'other'"):
        bandit_feedback(made, to_table(visit(made)), arm="other")
    with pytest.raises(ValueError, match="expected watched, liked or rating"):
        bandit_feedback(made, both, reward="joy")
    with pytest.raises(ValueError, match="show no page"):
        bandit_feedback(made, to_table(visit(made)[2:]))
    strange = [Event("als", "u", 0, 0, "page", 1, 1, "no such item")]
    with pytest.raises(ValueError, match="1 items of the events are not in 'synthetic'"):
        bandit_feedback(made, to_table(strange))


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.export_logs", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_program(made, tmp_path):
    import pyarrow.parquet as pq

    data = made.save(tmp_path / "data")
    events = tmp_path / "events.parquet"
    pq.write_table(to_table(visit(made)), events)
    out = tmp_path / "f.npz"
    code, text, error = run(f"--dataset={data}", "--to=obp", f"--events={events}",
                            f"--output={out}", "--reward=liked")  # fmt: skip
    assert code == 0, error
    assert "SYNTHETIC" in text and "2 rounds, 30 actions, mean reward 0.5000" in text
    assert "with propensities" in text and text.strip().endswith(str(out))
    code, text, error = run(f"--dataset={data}", "--to=recbole", f"--output={tmp_path / 'rb'}")
    assert code == 0, error
    assert len(recbole.read(tmp_path / "rb" / "synthetic").log) == len(made.log)
    code, text, error = run(f"--dataset={data}", "--to=obp", f"--output={out}")
    assert code == 2 and "--to=obp needs --events" in error + text
    pq.write_table(pa.table({"arm": ["a"]}), events)
    code, text, error = run(f"--dataset={data}", "--to=obp", f"--events={events}",
                            f"--output={tmp_path / 'g.npz'}")  # fmt: skip
    assert code == 2 and "is no event table: it lacks" in error and "Traceback" not in error
