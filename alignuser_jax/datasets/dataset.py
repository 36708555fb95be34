"""`Dataset`: users, items and interactions as Arrow tables, one folder of Parquet on disk."""

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
from alignuser_jax.records import Interaction, Item

FORMAT_VERSION = 1
TABLES = ("users", "items", "interactions")
EXTRA_TABLES = ("sessions", "steps", "surveys", "impressions", "graph")
"""Tables that only some logs have, described in `sessions.py` (three), `usermirrorer.py` and
`recbole.py`."""
CHUNK_ROWS = 1 << 20
"""Rows of a chunk of the interaction table and of a row group on disk."""
_JSON_STRINGS = 1 << 16
MANIFEST, TRUTH = "manifest.json", "truth.npz"


@dataclass(frozen=True, eq=False)
class Dataset:
    """One log in one form.

    user_table: user_id, age, occupation (strings, "" unknown). item_table: item_id, title,
    genres (list of strings), description. interaction_table: user_id, item_id, rating float32,
    timestamp int64 seconds, split ("train", "validation", "test"), sorted by user code, then
    time, ties in file order. manifest: format_version, name, synthetic, source, counts, split,
    report and `hash`, which names the content. `truth`: the true utilities of a synthetic
    dataset, kept aside in a file of their own that no prompt and no recommender reads.
    `extra_tables`: those of `EXTRA_TABLES` that the log has, by name.
    """

    user_table: pa.Table
    item_table: pa.Table
    interaction_table: pa.Table
    manifest: dict[str, Any]
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    extra_tables: dict[str, pa.Table] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.manifest["name"]

    @property
    def synthetic(self) -> bool:
        return bool(self.manifest.get("synthetic"))

    @property
    def hash(self) -> str:
        return self.manifest["hash"]

    @property
    def report(self) -> Report:
        """What the import found wrong and dropped."""
        return Report.of(self.manifest["report"])

    @cached_property
    def user_ids(self) -> tuple[str, ...]:
        return tuple(self.user_table["user_id"].to_pylist())

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(self.item_table["item_id"].to_pylist())

    @cached_property
    def items(self) -> Mapping[str, Item]:
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
        return MappingProxyType(
            {
                row["user_id"]: {"age": row["age"], "occupation": row["occupation"]}
                for row in self.user_table.to_pylist()
            }
        )

    @cached_property
    def log(self) -> Log:
        def codes(column: str, ids: tuple[str, ...]) -> np.ndarray:
            found = pc.index_in(self.interaction_table[column], pa.array(ids))
            return found.to_numpy().astype(np.int32)

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
        """What `user_id` did in `log` (a part of this dataset's), oldest first; only the
        `last` so many where given. Raises `KeyError` for an unknown user."""
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
        """Write the folder whole or not at all: into a hidden one beside it, then a rename.

        A dataset that is there is replaced; `FileExistsError` where the folder holds anything
        else, which would be lost.
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
                np.savez_compressed(new / TRUTH, **self.truth)
            text = json.dumps(self.manifest, indent=2, ensure_ascii=False)
            (new / MANIFEST).write_text(text + "\n", encoding="utf-8")
            if directory.exists():
                os.rename(directory, work / "replaced")
            os.rename(new, directory)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return directory

    @classmethod
    def load(cls, directory: str | Path) -> Dataset:
        """Read a folder written by `save`. Raises `FileNotFoundError` where there is none and
        `ValueError` for another format version or content that is not the manifest's."""
        directory = Path(directory)
        if not (directory / MANIFEST).is_file():
            raise FileNotFoundError(
                f"no dataset in {directory}: {MANIFEST} is missing; make one with "
                "`alignuser import-logs`"
            )
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{directory} has format version {manifest.get('format_version')}, this "
                f"program reads {FORMAT_VERSION}: import the logs again"
            )
        tables = [pq.read_table(directory / f"{name}.parquet") for name in TABLES]
        present = (n for n in EXTRA_TABLES if (directory / f"{n}.parquet").is_file())
        extra = {name: pq.read_table(directory / f"{name}.parquet") for name in present}
        if content_hash(*tables, extra) != manifest["hash"]:
            raise ValueError(
                f"the tables in {directory} are not those its manifest describes: they were "
                "changed after the import; import the logs again"
            )
        truth = {}
        if (directory / TRUTH).is_file():
            with np.load(directory / TRUTH) as arrays:
                truth = dict(arrays)
        return cls(*tables, manifest=manifest, truth=truth, extra_tables=extra)


def load_dataset(directory: str | Path) -> Dataset:
    """The dataset in a folder made by `alignuser import-logs`."""
    return Dataset.load(directory)


def interaction_table(log: Log, user_ids: pa.Array, item_ids: pa.Array) -> pa.Table:
    """The rows of `log` under its ids, in chunks: no column of strings has to fit in one."""
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
    """A manifest's `counts` and `split`."""
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
    """`dataset` with these of `EXTRA_TABLES` beside its own, and a hash that names them too.
    Raises `ValueError` for another name."""
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
    """A name for the content: blake2b over the values of the tables, column by column.

    It depends on neither the Parquet encoding nor the chunks nor the Arrow version."""
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
        for place, part in enumerate(kind):
            _add_column(digest, [chunk.flatten()[place] for chunk in chunks], part.type)
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
    """What `json.dumps` makes of the list, a part at a time."""
    for start in range(0, max(len(strings), 1), _JSON_STRINGS):
        text = json.dumps(strings.slice(start, _JSON_STRINGS).to_pylist())
        digest.update(("[" if start == 0 else ", ").encode() + text[1:-1].encode())
    digest.update(b"]")
