"""A dataset, or what simulated users did, in the formats of other tools.

RecBole atomic files, Hugging Face `datasets`, and obp's bandit feedback, so that a simulation
can be checked by off-policy estimators.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.log import SPLITS
from alignuser_jax.durable.whole import replacing

if TYPE_CHECKING:
    import datasets as hf

Reward = Literal["watched", "liked", "rating"]
RECBOLE_PARTS = {"train": "train", "validation": "valid", "test": "test"}


def new_folder(directory: str | Path) -> Path:
    """The folder, made where it is missing. Raises `FileExistsError` where it is not empty."""
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_recbole(dataset: Dataset, directory: str | Path, *, benchmark: bool = False) -> Path:
    """`NAME/NAME.inter`, `.user`, `.item` (and `.kg` where the dataset has a graph) below
    `directory`. `benchmark`: three files `NAME.train.inter`, `.valid.inter`, `.test.inter`
    instead of one, for RecBole's `benchmark_filename: [train, valid, test]`, so that it uses
    this split.

    Separators inside a text become spaces, spaces inside a genre underscores.
    """
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in dataset.name) or "dataset"
    folder = new_folder(Path(directory) / name)
    table = dataset.interaction_table
    header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
    parts = {"": table}
    if benchmark:
        parts = {
            f".{part}": table.filter(pc.equal(table["split"], split))
            for split, part in RECBOLE_PARTS.items()
        }
    for part, rows in parts.items():
        columns = (rows[c.partition(":")[0]].to_pylist() for c in header)
        _write(folder / f"{name}{part}.inter", header, zip(*columns, strict=True))
    users = dataset.user_table
    _write(
        folder / f"{name}.user",
        ("user_id:token", "age:token", "occupation:token"),
        zip(*(users[n].to_pylist() for n in ("user_id", "age", "occupation")), strict=True),
    )
    rows = (
        (
            row["item_id"],
            row["title"],
            " ".join("_".join(genre.split()) for genre in row["genres"] or ()),
            row["description"],
        )
        for row in dataset.item_table.to_pylist()
    )
    header = ("item_id:token", "title:token_seq", "genres:token_seq", "description:token_seq")
    _write(folder / f"{name}.item", header, rows)
    graph = dataset.extra_tables.get("graph")
    if graph is not None:
        rows = zip(*(graph[n].to_pylist() for n in ("head", "relation", "tail")), strict=True)
        header = ("head_id:token", "relation_id:token", "tail_id:token")
        _write(folder / f"{name}.kg", header, rows)
        items = set(graph["head"].to_pylist()) | set(graph["tail"].to_pylist())
        rows = ((item, item) for item in dataset.item_ids if item in items)
        _write(folder / f"{name}.link", ("item_id:token", "entity_id:token"), rows)
    return folder


def _write(path: Path, header: Iterable[str], rows: Iterable[tuple]) -> None:
    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        return " ".join(str(value).split())

    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        file.writelines("\t".join(map(text, row)) + "\n" for row in rows)


def to_datasets(dataset: Dataset) -> dict[str, hf.DatasetDict | hf.Dataset]:
    """Hugging Face datasets by table name: interactions (and sessions and steps, where there
    are any) as a `DatasetDict` with the splits, the others whole."""
    import datasets as hf

    def whole(table: pa.Table) -> hf.Dataset:
        return hf.Dataset(hf.table.InMemoryTable(table.combine_chunks()))

    def by_split(table: pa.Table, splits: pa.ChunkedArray) -> hf.DatasetDict:
        parts = {s: table.filter(pc.equal(splits, s)) for s in SPLITS}
        return hf.DatasetDict({s: whole(part) for s, part in parts.items() if part.num_rows})

    found: dict[str, Any] = {
        "users": whole(dataset.user_table),
        "items": whole(dataset.item_table),
    }
    table = dataset.interaction_table
    if table.num_rows:
        found["interactions"] = by_split(table.drop_columns("split"), table["split"])
    extra = dict(dataset.extra_tables)
    if "sessions" in extra:
        sessions, steps = extra.pop("sessions"), extra.pop("steps")
        place = pc.index_in(steps["session_id"], sessions["session_id"].combine_chunks())
        found["sessions"] = by_split(sessions.drop_columns("split"), sessions["split"])
        found["steps"] = by_split(steps, sessions["split"].take(place))
    return found | {name: whole(table) for name, table in extra.items()}


def write_datasets(dataset: Dataset, directory: str | Path) -> Path:
    """One folder a table below `directory`, as `datasets.load_from_disk` reads it."""
    folder = new_folder(directory)
    for name, table in to_datasets(dataset).items():
        table.save_to_disk(folder / name)
    return folder


def bandit_feedback(
    dataset: Dataset, events: pa.Table, *, arm: str = "", reward: Reward = "watched"
) -> dict[str, Any]:
    """obp's `BanditFeedback` of one arm of a simulated event table: one round for each item
    shown.

    n_rounds, n_actions; action int64[n] (code of the item in `dataset.item_ids`); position
    int64[n] (0 is the first place); reward float64[n] ("watched": 1 or 0; "liked": rated above
    3 or not; "rating": 1 to 5, 0 where not rated); pscore float64[n], the propensity with which
    the recommender showed the item there, or `None` where its slates have none; context
    float64[n, genres], the shares of genres in the user's training history; action_context
    float64[n_actions, genres], the genres of each item. Beside obp's own keys: user_id, item_id
    and genres, as arrays of text.

    Raises `ValueError` for an unknown arm or reward, several arms where none is named, no page
    shown, and items that are not the dataset's.
    """
    if reward not in ("watched", "liked", "rating"):
        raise ValueError(f"reward is {reward!r}: expected watched, liked or rating")
    arms = sorted(set(events["arm"].to_pylist()))
    if arm not in arms and (arm or len(arms) != 1):
        raise ValueError(f"the events have the arms {arms}: name one, not {arm!r}")
    events = events.filter(pc.equal(events["arm"], arm or arms[0]))
    rows = events.select(
        ["user_id", "session", "kind", "page", "position", "item_id", "value", "probability"]
    ).to_pylist()
    given: dict[tuple, float] = {}
    for row in rows:
        key = (row["user_id"], row["session"], row["page"], row["item_id"])
        if row["kind"] == "screen" and reward == "watched":
            given[key] = row["value"]
        elif row["kind"] == "rate":
            value = {"watched": 1.0, "liked": float(row["value"] > 3)}
            given[key] = value.get(reward, row["value"])
    shown = [row for row in rows if row["kind"] == "page"]
    if not shown:
        raise ValueError(f"the events of arm {arm or arms[0]!r} show no page")
    codes = {item: code for code, item in enumerate(dataset.item_ids)}
    if strange := sorted({row["item_id"] for row in shown} - set(codes)):
        raise ValueError(
            f"{len(strange)} items of the events are not in {dataset.name!r}, e.g. "
            f"{strange[0]!r}: give the dataset that was simulated on"
        )
    propensities = np.array([row["probability"] for row in shown])
    genres, of_item = _genre_matrix(dataset)
    of_user = _genre_shares(dataset, of_item)
    user_code = {user: code for code, user in enumerate(dataset.user_ids)}
    unknown = len(dataset.user_ids)  # a row of zeros
    return {
        "n_rounds": len(shown),
        "n_actions": len(codes),
        "action": np.array([codes[row["item_id"]] for row in shown], np.int64),
        "position": np.array([row["position"] - 1 for row in shown], np.int64),
        "reward": np.array(
            [
                given.get((r["user_id"], r["session"], r["page"], r["item_id"]), 0.0)
                for r in shown
            ]
        ),
        "pscore": propensities if (propensities > 0).all() else None,
        "context": of_user[[user_code.get(row["user_id"], unknown) for row in shown]],
        "action_context": of_item,
        "user_id": np.array([row["user_id"] for row in shown]),
        "item_id": np.array(dataset.item_ids),
        "genres": np.array(genres),
    }


def _genre_matrix(dataset: Dataset) -> tuple[list[str], np.ndarray]:
    lists = [row or [] for row in dataset.item_table["genres"].to_pylist()]
    genres = sorted({genre for row in lists for genre in row})
    place = {genre: n for n, genre in enumerate(genres)}
    matrix = np.zeros((len(lists), len(genres)))
    for n, row in enumerate(lists):
        matrix[n, [place[genre] for genre in row]] = 1.0
    return genres, matrix


def _genre_shares(dataset: Dataset, of_item: np.ndarray) -> np.ndarray:
    """float64[users + 1, genres]; the last row, and that of a user without history, is 0."""
    train = dataset.log.of_split("train")
    total = np.zeros((train.n_users + 1, of_item.shape[1]))
    np.add.at(total, train.user, of_item[train.item])
    return total / np.maximum(total.sum(1, keepdims=True), 1.0)


def write_feedback(feedback: dict[str, Any], path: str | Path) -> Path:
    """The feedback as one `.npz` without pickles; `read_feedback` reads it."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **{k: v for k, v in feedback.items() if v is not None})
    return path


def read_feedback(path: str | Path) -> dict[str, Any]:
    """What `bandit_feedback` gave, from a file of `write_feedback`."""
    with np.load(path) as arrays:
        found: dict[str, Any] = dict(arrays)
    counts = {name: int(found[name]) for name in ("n_rounds", "n_actions")}
    return {"pscore": None} | found | counts
