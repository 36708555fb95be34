"""A log in one form: `Dataset`, Arrow tables in memory and one folder of Parquet on disk.

Every adapter (`datasets.formats`) makes a `Dataset`, and everything after the import reads one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignuser_jax.datasets.log import SPLITS, Log
from alignuser_jax.datasets.report import Report
from alignuser_jax.durable.whole import SOFTWARE, WRITTEN_BY
from alignuser_jax.records import Interaction, Item

FORMAT_VERSION = 1
"""Version of the folder's layout; a folder of another version is refused."""
TABLES = ("users", "items", "interactions")
"""The tables that every dataset has."""
EXTRA_TABLES = ("sessions", "steps", "surveys", "impressions", "graph")
"""Tables that only some logs have: the first three are described in `datasets.sessions`, the
others in `formats.usermirrorer` and `formats.recbole`."""
CHUNK_ROWS = 1 << 20
"""Rows of a chunk of the interaction table and of a row group on disk."""
_JSON_STRINGS = 1 << 16  # strings that are hashed at a time
MANIFEST, TRUTH = "manifest.json", "truth.npz"


@dataclass(frozen=True, eq=False)
class Dataset:
    """One log: its users, items and interactions, and where they came from.

    Attributes:
        user_table: The columns user_id, age and occupation, all strings; "" means unknown.
        item_table: The columns item_id, title, genres (list of strings) and description.
        interaction_table: The columns user_id, item_id, rating (float32), timestamp (int64,
            Unix seconds) and split ("train", "validation" or "test"), sorted by user in the
            order of `user_table`, then by time; ties stay in file order.
        manifest: format_version, name, synthetic, source, counts, split, report, and `hash`,
            which names the content.
        truth: True utilities of a synthetic dataset, by name. They lie in a file of their own,
            which no prompt and no recommender reads.
        extra_tables: The tables of `EXTRA_TABLES` that the log has, by name.

    Example:
        >>> from alignuser_jax.datasets.formats import synthetic
        >>> config = synthetic.SyntheticConfig(users=10, items=20, ratings_per_user=8)
        >>> dataset = synthetic.generate(config)
        >>> train = dataset.log.of_split("train")
        >>> dataset.history(train, dataset.user_ids[0], last=1)[0].rating in {1, 2, 3, 4, 5}
        True
    """

    user_table: pa.Table
    item_table: pa.Table
    interaction_table: pa.Table
    manifest: dict[str, Any]
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    extra_tables: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the dataset, such as "ml-1m"."""
        return self.manifest["name"]

    @property
    def synthetic(self) -> bool:
        """Whether the log was generated, so that no human made its ratings."""
        return bool(self.manifest.get("synthetic"))

    @property
    def label(self) -> str:
        """The name for people to read, which says if the log is synthetic."""
        note = " (SYNTHETIC: generated, no human made these ratings)" if self.synthetic else ""
        return self.name + note

    @property
    def hash(self) -> str:
        """A name for the content of all tables (`content_hash`)."""
        return self.manifest["hash"]

    @property
    def report(self) -> Report:
        """What the import dropped and repaired."""
        return Report.of(self.manifest["report"])

    @cached_property
    def user_ids(self) -> tuple[str, ...]:
        """The users' ids; a user's code is its index here."""
        return tuple(self.user_table["user_id"].to_pylist())

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """The items' ids; an item's code is its index here."""
        return tuple(self.item_table["item_id"].to_pylist())

    @cached_property
    def items(self) -> Mapping[str, Item]:
        """The items by id."""
        rows = self.item_table.to_pylist()
        return MappingProxyType(
            {
                row["item_id"]: Item(
                    row["item_id"], row["title"], tuple(row["genres"] or ()), row["description"]
                )
                for row in rows
            }
        )

    @cached_property
    def demographics(self) -> Mapping[str, dict[str, str]]:
        """Age and occupation by user id; "" means unknown."""
        return MappingProxyType(
            {
                row["user_id"]: {"age": row["age"], "occupation": row["occupation"]}
                for row in self.user_table.to_pylist()
            }
        )

    @cached_property
    def log(self) -> Log:
        """The interactions as NumPy columns of codes and numbers."""

        def codes(column: str, ids: tuple[str, ...]) -> np.ndarray:
            places = pc.index_in(self.interaction_table[column], pa.array(ids))
            return places.to_numpy().astype(np.int32)

        split = pc.index_in(self.interaction_table["split"], pa.array(SPLITS))
        return Log(
            codes("user_id", self.user_ids),
            codes("item_id", self.item_ids),
            self.interaction_table["rating"].to_numpy(),
            self.interaction_table["timestamp"].to_numpy(),
            split.to_numpy().astype(np.int8),
            len(self.user_ids),
            len(self.item_ids),
        )

    def history(
        self, log: Log, user_id: str, last: int | None = None
    ) -> tuple[Interaction, ...]:
        """Return what a user did in a part of this dataset's log, oldest first.

        Args:
            log: The part, such as `dataset.log.of_split("train")`.
            user_id: The user.
            last: Return only so many, the latest ones; `None` returns all.

        Raises:
            KeyError: If the dataset has no such user.
        """
        code = self._user_codes[user_id]
        start, end = np.searchsorted(log.user, [code, code + 1])
        if last is not None:
            start = max(start, end - last)
        ids = self.item_ids
        return tuple(
            Interaction(ids[item], rating, time)
            for item, rating, time in zip(
                log.item[start:end].tolist(),
                log.rating[start:end].tolist(),
                log.timestamp[start:end].tolist(),
                strict=True,
            )
        )

    @cached_property
    def _user_codes(self) -> dict[str, int]:
        return {user: code for code, user in enumerate(self.user_ids)}

    # --- on disk ---

    def save(self, directory: str | Path) -> Path:
        """Write the folder as a whole, or not at all, and return its path.

        The folder is written under a hidden name beside it and then renamed. A dataset that is
        already there is replaced. The manifest on disk also says which version of the software
        wrote it.

        Raises:
            FileExistsError: If the folder holds anything that is no part of a dataset, which
                would be lost.
        """
        directory = Path(directory)
        ours = {MANIFEST, TRUTH, *(f"{name}.parquet" for name in TABLES + EXTRA_TABLES)}
        if directory.exists() and (others := {p.name for p in directory.iterdir()} - ours):
            raise FileExistsError(
                f"{directory} holds {', '.join(sorted(others)[:5])}, which is no part of a "
                "dataset: choose another output folder"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            new = work / "new"
            new.mkdir()
            tables = (self.user_table, self.item_table, self.interaction_table)
            named = dict(zip(TABLES, tables, strict=True)) | self.extra_tables
            for name, table in named.items():
                pq.write_table(table, new / f"{name}.parquet")
            if self.truth:
                arrays: dict[str, Any] = dict(self.truth)
                np.savez_compressed(new / TRUTH, **arrays)
            manifest = self.manifest | {WRITTEN_BY: SOFTWARE}
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (new / MANIFEST).write_text(text + "\n", encoding="utf-8")
            if directory.exists():
                os.rename(directory, work / "replaced")
            os.rename(new, directory)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return directory

    @classmethod
    def load(cls, directory: str | Path) -> Dataset:
        """Read a folder written by `save`.

        Raises:
            FileNotFoundError: If there is no dataset in the folder.
            ValueError: If the folder has another format version, or its tables are not those
                that its manifest describes.
        """
        directory = Path(directory)
        if not (directory / MANIFEST).is_file():
            raise FileNotFoundError(
                f"no dataset in {directory}: {MANIFEST} is missing; make one with "
                "`alignuser import-logs`"
            )
        manifest = _read_manifest(directory)
        users, items, interactions = (
            pq.read_table(directory / f"{name}.parquet") for name in TABLES
        )
        present = (n for n in EXTRA_TABLES if (directory / f"{n}.parquet").is_file())
        extra = {name: pq.read_table(directory / f"{name}.parquet") for name in present}
        if content_hash(users, items, interactions, extra) != manifest["hash"]:
            raise ValueError(
                f"the tables in {directory} are not those its manifest describes: they were "
                "changed after the import; import the logs again"
            )
        truth = {}
        if (directory / TRUTH).is_file():
            with np.load(directory / TRUTH) as arrays:
                truth = dict(arrays)
        return cls(users, items, interactions, manifest, truth, extra)


def load_dataset(directory: str | Path) -> Dataset:
    """Read a dataset folder made by `alignuser import-logs` or `Dataset.save`.

    Raises:
        FileNotFoundError: If there is no dataset in the folder.
        ValueError: If the folder has another format version, or its tables are not those that
            its manifest describes.

    Example:
        >>> dataset = load_dataset("runs/ml-1m")
        >>> len(dataset.user_ids), len(dataset.log)
        (6040, 1000209)
    """
    return Dataset.load(directory)


def _read_manifest(directory: Path) -> dict[str, Any]:
    """Return a folder's manifest without the name of the software that wrote it."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): import the logs again") from error
    software = manifest.pop(
        WRITTEN_BY, "a version of alignuser_jax that did not say its number"
    )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{directory} has format version {manifest.get('format_version')}, written by "
            f"{software}; {SOFTWARE} reads {FORMAT_VERSION}: import the logs again"
        )
    return manifest


def interaction_table(log: Log, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    """Return the rows of `log` with their ids instead of codes.

    The table is made in chunks, since a column of strings can be too large for one chunk.
    """
    names = ("user_id", "item_id", "rating", "timestamp", "split")
    splits = pa.array(SPLITS)
    blocks = []
    for start in range(0, max(len(log), 1), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        columns = (
            user_ids.take(pa.array(log.user[part])),
            item_ids.take(pa.array(log.item[part])),
            pa.array(log.rating[part]),
            pa.array(log.timestamp[part]),
            splits.take(pa.array(log.split[part])),
        )
        blocks.append(pa.table(dict(zip(names, columns, strict=True))))
    return pa.concat_tables(blocks)


def describe_log(
    log: Log, n_items: int, split: str, shares: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Return the `counts` and `split` of a manifest."""
    return {
        "counts": {
            "users": log.n_users,
            "items": n_items,
            "rated_items": int(np.count_nonzero(np.bincount(log.item))),
            "interactions": len(log),
        },
        "split": {
            "kind": split,
            "shares": list(shares),
            "counts": {s: int((log.split == n).sum()) for n, s in enumerate(SPLITS)},
        },
    }


def with_extra_tables(dataset: Dataset, tables: Mapping[str, pa.Table]) -> Dataset:
    """Return `dataset` with more tables, and a hash that covers them too.

    Raises:
        ValueError: If a name is not one of `EXTRA_TABLES`.
    """
    if unknown := sorted(set(tables) - set(EXTRA_TABLES)):
        raise ValueError(f"unknown tables {unknown}: expected some of {EXTRA_TABLES}")
    extra = dataset.extra_tables | dict(tables)
    own = (dataset.user_table, dataset.item_table, dataset.interaction_table)
    counts = dataset.manifest["counts"] | {n: table.num_rows for n, table in tables.items()}
    manifest = dataset.manifest | {"hash": content_hash(*own, extra), "counts": counts}
    return replace(dataset, manifest=manifest, extra_tables=extra)


def content_hash(
    users: pa.Table,
    items: pa.Table,
    interactions: pa.Table,
    extra: Mapping[str, pa.Table] = MappingProxyType({}),
) -> str:
    """Return a name for the content: blake2b over the values of the tables, column by column.

    It does not depend on the Parquet encoding, the chunks or the Arrow version.
    """
    digest = hashlib.blake2b(digest_size=16)
    for table in (users, items, interactions, *(extra[name] for name in sorted(extra))):
        for name, column in zip(table.column_names, table.columns, strict=True):
            digest.update(name.encode())
            _add_column(digest, column.chunks, column.type)
    return digest.hexdigest()


def _add_column(digest: Any, chunks: list[pa.Array], kind: pa.DataType) -> None:
    if pa.types.is_list(kind):
        for chunk in chunks:
            _add_values(digest, pc.list_value_length(chunk).to_numpy(), "<i8")
        chunks, kind = [chunk.flatten() for chunk in chunks], kind.value_type
    if pa.types.is_struct(kind):
        for index, part in enumerate(kind):
            _add_column(digest, [chunk.flatten()[index] for chunk in chunks], part.type)
        return
    if pa.types.is_string(kind):
        # distinct values in the order they appear, the same for all chunks
        encoded = pa.chunked_array(chunks, kind).dictionary_encode()
        chunks = encoded.chunks
        distinct = chunks[-1].dictionary if chunks else pa.array([], kind)
        _add_json(digest, distinct)
        chunks = [chunk.indices for chunk in chunks]
    for chunk in chunks:
        values = chunk.to_numpy(zero_copy_only=False)
        _add_values(digest, values, values.dtype.newbyteorder("<"))


def _add_values(digest: Any, values: np.ndarray, kind: Any) -> None:
    digest.update(values.astype(kind, copy=False).tobytes())


def _add_json(digest: Any, strings: pa.Array) -> None:
    """Add what `json.dumps` would make of the whole list, part by part to save memory."""
    for start in range(0, max(len(strings), 1), _JSON_STRINGS):
        text = json.dumps(strings.slice(start, _JSON_STRINGS).to_pylist())
        digest.update(("[" if start == 0 else ", ").encode() + text[1:-1].encode())
    digest.update(b"]")
