"""Write a dataset, or what simulated users did, in the formats of other tools.

The formats are RecBole's atomic files, Hugging Face `datasets`, and obp's bandit feedback, so
that off-policy estimators can check a simulation.
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
"""What `bandit_feedback` counts as a reward."""
RECBOLE_PARTS = {"train": "train", "validation": "valid", "test": "test"}
"""Our name of a split -> RecBole's."""
EVENT_COLUMNS = (
    *("arm", "user_id", "session", "kind", "page", "position", "item_id", "value"),
    "probability",
)
"""The columns of an event table that `bandit_feedback` reads."""


def new_folder(directory: str | Path) -> Path:
    """Make a folder for an export.

    Raises:
        FileExistsError: If it exists and is not an empty folder.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty: choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_recbole(dataset: Dataset, directory: str | Path, *, benchmark: bool = False) -> Path:
    """Write a dataset as RecBole's atomic files, and return the folder they are in.

    The files are `NAME/NAME.inter`, `.user` and `.item` below `directory`, and `.kg` with
    `.link` if the dataset has a graph. Separators inside a text become spaces, and spaces
    inside a genre become underscores.

    Args:
        dataset: The dataset.
        directory: The folder below which the folder NAME is made.
        benchmark: Write `NAME.train.inter`, `.valid.inter` and `.test.inter` instead of one
            file, for RecBole's `benchmark_filename: [train, valid, test]`: it then uses the
            split of this dataset.

    Raises:
        FileExistsError: If the folder NAME exists and is not empty.
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
    _write_items(dataset, folder / f"{name}.item")
    if "graph" in dataset.extra_tables:
        _write_graph(dataset, folder, name)
    return folder


def _write_items(dataset: Dataset, path: Path) -> None:
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
    _write(path, header, rows)


def _write_graph(dataset: Dataset, folder: Path, name: str) -> None:
    graph = dataset.extra_tables["graph"]
    rows = zip(*(graph[n].to_pylist() for n in ("head", "relation", "tail")), strict=True)
    _write(folder / f"{name}.kg", ("head_id:token", "relation_id:token", "tail_id:token"), rows)
    entities = set(graph["head"].to_pylist()) | set(graph["tail"].to_pylist())
    links = ((item, item) for item in dataset.item_ids if item in entities)
    _write(folder / f"{name}.link", ("item_id:token", "entity_id:token"), links)


def _write(path: Path, header: Iterable[str], rows: Iterable[tuple]) -> None:
    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        return " ".join(str(value).split())

    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        file.writelines("\t".join(map(text, row)) + "\n" for row in rows)


def to_datasets(dataset: Dataset) -> dict[str, hf.DatasetDict | hf.Dataset]:
    """Return the tables as Hugging Face datasets, by table name.

    Interactions, sessions and steps become a `DatasetDict` with the splits; the other tables
    become one dataset each.
    """
    import datasets as hf

    def whole(table: pa.Table) -> hf.Dataset:
        return hf.Dataset(hf.table.InMemoryTable(table.combine_chunks()))

    def by_split(table: pa.Table, splits: pa.ChunkedArray) -> hf.DatasetDict:
        parts = {s: table.filter(pc.equal(splits, s)) for s in SPLITS}
        return hf.DatasetDict({s: whole(part) for s, part in parts.items() if part.num_rows})

    exported: dict[str, Any] = {
        "users": whole(dataset.user_table),
        "items": whole(dataset.item_table),
    }
    table = dataset.interaction_table
    if table.num_rows:
        exported["interactions"] = by_split(table.drop_columns("split"), table["split"])
    extra = dict(dataset.extra_tables)
    if "sessions" in extra:
        sessions, steps = extra.pop("sessions"), extra.pop("steps")
        place = pc.index_in(steps["session_id"], sessions["session_id"].combine_chunks())
        exported["sessions"] = by_split(sessions.drop_columns("split"), sessions["split"])
        exported["steps"] = by_split(steps, sessions["split"].take(place))
    return exported | {name: whole(table) for name, table in extra.items()}


def write_datasets(dataset: Dataset, directory: str | Path) -> Path:
    """Write one folder per table below `directory`, for `datasets.load_from_disk`.

    Raises:
        FileExistsError: If `directory` exists and is not empty.
    """
    folder = new_folder(directory)
    for name, table in to_datasets(dataset).items():
        table.save_to_disk(folder / name)
    return folder


def bandit_feedback(
    dataset: Dataset, events: pa.Table, *, arm: str = "", reward: Reward = "watched"
) -> dict[str, Any]:
    """Return one arm of a simulated event table as obp's `BanditFeedback`.

    There is one round for each item that a page showed. The keys are:

    - n_rounds, n_actions: ints; an action is an item of the dataset.
    - action: int64[n_rounds], the item's code in `dataset.item_ids`.
    - position: int64[n_rounds], the item's place on its page, from 0.
    - reward: float64[n_rounds], see `reward` below.
    - pscore: float64[n_rounds], the propensity with which the recommender showed the item
      there, or `None` if its slates have none.
    - context: float64[n_rounds, genres], the shares of genres in the user's training history.
    - action_context: float64[n_actions, genres], the genres of each item.
    - user_id, item_id, genres: arrays of text, beside obp's own keys.

    Args:
        dataset: The dataset that was simulated on.
        events: The events of one simulation (`agents.events`).
        arm: Which arm; not needed if there is only one.
        reward: "watched" is 1 or 0; "liked" is 1 for a rating above 3 and 0 otherwise; "rating"
            is the rating from 1 to 5, and 0 for an item that was not rated.

    Raises:
        ValueError: If a column is missing, the arm or the reward does not exist, several arms
            are there and none is named, no page is shown, or an item is not the dataset's.

    Example:
        >>> events = pq.read_table("runs/sim/events.parquet")
        >>> feedback = bandit_feedback(load_dataset("runs/ml-1m"), events, arm="als")
    """
    if reward not in ("watched", "liked", "rating"):
        raise ValueError(f"reward is {reward!r}: expected watched, liked or rating")
    rows = _arm_rows(events, arm)
    rounds = [row for row in rows if row["kind"] == "page"]
    if not rounds:
        raise ValueError(f"the events of arm {arm or rows[0]['arm']!r} show no page")
    codes = _item_codes(dataset, rounds)
    rewards = _rewards(rows, reward)
    propensities = np.array([row["probability"] for row in rounds])
    genres, of_item = _genre_matrix(dataset)
    of_user = _genre_shares(dataset, of_item)
    user_code = {user: code for code, user in enumerate(dataset.user_ids)}
    unknown = len(dataset.user_ids)  # a row of zeros
    return {
        "n_rounds": len(rounds),
        "n_actions": len(codes),
        "action": np.array([codes[row["item_id"]] for row in rounds], np.int64),
        "position": np.array([row["position"] - 1 for row in rounds], np.int64),
        "reward": np.array([rewards.get(_round_key(row), 0.0) for row in rounds]),
        "pscore": propensities if (propensities > 0).all() else None,
        "context": of_user[[user_code.get(row["user_id"], unknown) for row in rounds]],
        "action_context": of_item,
        "user_id": np.array([row["user_id"] for row in rounds]),
        "item_id": np.array(dataset.item_ids),
        "genres": np.array(genres),
    }


def _arm_rows(events: pa.Table, arm: str) -> list[dict[str, Any]]:
    """Return the events of the named arm, or of the only one."""
    if missing := [name for name in EVENT_COLUMNS if name not in events.column_names]:
        raise ValueError(f"this is no event table: it lacks the columns {missing}")
    arms = sorted(set(events["arm"].to_pylist()))
    if arm not in arms and (arm or len(arms) != 1):
        raise ValueError(f"the events have the arms {arms}: name one, not {arm!r}")
    events = events.filter(pc.equal(events["arm"], arm or arms[0]))
    return events.select(list(EVENT_COLUMNS)).to_pylist()


def _item_codes(dataset: Dataset, rounds: list[dict[str, Any]]) -> dict[str, int]:
    """Return the code of each item; items of other datasets are refused."""
    codes = {item: code for code, item in enumerate(dataset.item_ids)}
    if strange := sorted({row["item_id"] for row in rounds} - set(codes)):
        raise ValueError(
            f"{len(strange)} items of the events are not in {dataset.name!r}, e.g. "
            f"{strange[0]!r}: give the dataset that was simulated on"
        )
    return codes


def _round_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["user_id"], row["session"], row["page"], row["item_id"]


def _rewards(rows: list[dict[str, Any]], reward: Reward) -> dict[tuple[Any, ...], float]:
    """Return the reward of each round in which the user did something with the item."""
    rewards: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["kind"] == "screen" and reward == "watched":
            rewards[_round_key(row)] = row["value"]
        elif row["kind"] == "rate":
            value = {"watched": 1.0, "liked": float(row["value"] > 3)}
            rewards[_round_key(row)] = value.get(reward, row["value"])
    return rewards


def _genre_matrix(dataset: Dataset) -> tuple[list[str], np.ndarray]:
    lists = [row or [] for row in dataset.item_table["genres"].to_pylist()]
    genres = sorted({genre for row in lists for genre in row})
    place = {genre: n for n, genre in enumerate(genres)}
    matrix = np.zeros((len(lists), len(genres)))
    for n, row in enumerate(lists):
        matrix[n, [place[genre] for genre in row]] = 1.0
    return genres, matrix


def _genre_shares(dataset: Dataset, of_item: np.ndarray) -> np.ndarray:
    """Return float64[users + 1, genres]: each user's shares of genres in training.

    The last row, and the row of a user without history, is 0.
    """
    train = dataset.log.of_split("train")
    total = np.zeros((train.n_users + 1, of_item.shape[1]))
    np.add.at(total, train.user, of_item[train.item])
    return total / np.maximum(total.sum(1, keepdims=True), 1.0)


def write_feedback(feedback: dict[str, Any], path: str | Path) -> Path:
    """Write bandit feedback as one `.npz` without pickles; `read_feedback` reads it.

    Raises:
        FileExistsError: If the file exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **{k: v for k, v in feedback.items() if v is not None})
    return path


def read_feedback(path: str | Path) -> dict[str, Any]:
    """Return what `bandit_feedback` returned, from a file of `write_feedback`."""
    with np.load(path) as arrays:
        feedback: dict[str, Any] = dict(arrays)
    counts = {name: int(feedback[name]) for name in ("n_rounds", "n_actions")}
    return {"pscore": None} | feedback | counts
