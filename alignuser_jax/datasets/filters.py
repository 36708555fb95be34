"""Make a smaller dataset: its k-core, a sample of its users, other shares of the split.

Example:
    >>> from alignuser_jax.datasets import Filters, filtered, load_dataset
    >>> part = filtered(load_dataset("runs/ml-1m"), Filters(k_core=20, users=1000))
    >>> part.manifest["filters"]
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import (
    Dataset,
    content_hash,
    describe_log,
    interaction_table,
)
from alignuser_jax.datasets.log import Log
from alignuser_jax.datasets.splits import SHARES, SPLIT_KINDS, SplitKind, split_log
from alignuser_jax.randomness import stable_key

SAMPLE_SEED = 101
"""Seed of the sample of users (docs/method.md section 13.1: 1,000 users, seed 101)."""


@dataclass(frozen=True)
class Filters:
    """Which part of a dataset to keep.

    Attributes:
        k_core: Interactions that every remaining user and item has at least; 0 keeps all.
        users: How many users to keep, drawn from those of the k-core; 0 keeps all.
        seed: Names the sample of users.

    Example:
        >>> Filters(k_core=20, users=1000)
        Filters(k_core=20, users=1000, seed=101)
    """

    k_core: int = 0
    users: int = 0
    seed: int = SAMPLE_SEED

    def __post_init__(self) -> None:
        if self.k_core < 0 or self.users < 0:
            raise ValueError(
                f"k_core={self.k_core}, users={self.users}: expected 0 (no filter) or more"
            )


def k_core(log: Log, k: int) -> np.ndarray:
    """Return bool[n]: which interactions belong to the k-core of `log`.

    The k-core is the largest part in which every user and every item has at least `k`
    interactions. Users and items with fewer are removed in turn until none is left; the result
    does not depend on which are removed first.
    """
    keep = np.ones(len(log), bool)
    while True:
        before = int(keep.sum())
        for codes, size in ((log.user, log.n_users), (log.item, log.n_items)):
            enough = np.bincount(codes[keep], minlength=size) >= k
            keep &= enough[codes]
        if int(keep.sum()) == before:
            return keep


def sample_users(user_ids: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Return the indices of a sample of `count` ids, in ascending order.

    A user is drawn by a key of the seed and the id alone, so the sample does not depend on the
    order of the ids, and a larger sample contains the smaller one.
    """
    keys = ((stable_key("sample of users", seed, user), n) for n, user in enumerate(user_ids))
    return np.sort(np.array([n for _, n in heapq.nsmallest(count, keys)], np.int64))


def filtered(
    dataset: Dataset, filters: Filters, shares: Sequence[float] | None = None
) -> Dataset:
    """Return the k-core of `dataset`, then a sample of its users, split again as it was.

    A split that the publisher made stays as it is. The k-core removes items from the catalogue;
    the sample does not, since items that only other users have rated can still be recommended.
    The manifest's `filters` says what was done and what each step left.

    Args:
        dataset: A log of interactions.
        filters: The k-core and the sample.
        shares: Shares of train, validation and test; `None` keeps those of `dataset`.

    Raises:
        ValueError: If nothing is left, the sample is larger than the number of users, the split
            is the publisher's and there are shares, or the dataset is a log of sessions.
    """
    if (filters.k_core or filters.users or shares) and "sessions" in dataset.extra_tables:
        raise ValueError(
            f"{dataset.name} is a log of sessions: filters and shares of the split are for "
            "logs of interactions"
        )
    log, old_split = dataset.log, dataset.manifest.get("split", {})
    kind: str | None = old_split.get("kind")
    old_shares: Sequence[float] = old_split.get("shares", SHARES)
    if shares and kind not in SPLIT_KINDS:
        raise ValueError(
            f"{dataset.name} has the split {kind!r} of its publisher: it takes no shares"
        )
    steps: list[dict[str, Any]] = []
    items = np.arange(log.n_items)
    if filters.k_core:
        log = log.where(k_core(log, filters.k_core))
        if not len(log):
            raise ValueError(
                f"no part of {dataset.name} has {filters.k_core} interactions of every user "
                "and item: use a smaller --k_core"
            )
        items = np.unique(log.item)
        steps.append({"k_core": filters.k_core, **_sizes(log, items)})
    if filters.users:
        users = np.unique(log.user)
        if filters.users > len(users):
            raise ValueError(
                f"{filters.users} users are asked for, but {dataset.name} has {len(users)}"
                + (f" in its {filters.k_core}-core" if filters.k_core else "")
            )
        ids = [dataset.user_ids[code] for code in users.tolist()]
        chosen = users[sample_users(ids, filters.users, filters.seed)]
        log = log.where(np.isin(log.user, chosen))
        sample = {"users": filters.users, "seed": filters.seed}
        steps.append({"sample": sample, **_sizes(log, items)})
    new_shares = tuple(shares or old_shares)
    if not steps and new_shares == tuple(old_shares):
        return dataset
    return _rebuilt(dataset, log, items, kind, new_shares, steps)


def _sizes(log: Log, items: np.ndarray) -> dict[str, int]:
    return {
        "left_users": len(np.unique(log.user)),
        "left_items": len(items),
        "left_interactions": len(log),
    }


def _rebuilt(
    dataset: Dataset,
    log: Log,
    items: np.ndarray,
    kind: str | None,
    shares: tuple[float, ...],
    steps: list[dict[str, Any]],
) -> Dataset:
    users = np.unique(log.user)
    log = replace(
        log,
        user=np.searchsorted(users, log.user).astype(np.int32),
        item=np.searchsorted(items, log.item).astype(np.int32),
        n_users=len(users),
        n_items=len(items),
    )
    if kind in SPLIT_KINDS:
        log = split_log(log, cast(SplitKind, kind), shares)
    user_table = dataset.user_table.take(pa.array(users)).combine_chunks()
    item_table = dataset.item_table.take(pa.array(items)).combine_chunks()
    ids = (
        table[name].combine_chunks()
        for table, name in ((user_table, "user_id"), (item_table, "item_id"))
    )
    tables = user_table, item_table, interaction_table(log, *ids)
    described = describe_log(log, len(items), kind or "", shares)
    counts = described["split"]["counts"]
    described["split"] = dataset.manifest.get("split", {}) | {
        "kind": kind,
        "shares": list(shares),
        "counts": counts,
    }
    extra = {  # rows of the remaining users, in tables that have users
        name: table.filter(pc.is_in(table["user_id"], user_table["user_id"].combine_chunks()))
        if "user_id" in table.column_names
        else table
        for name, table in dataset.extra_tables.items()
    }
    described["counts"] |= {name: table.num_rows for name, table in extra.items()}
    manifest = dataset.manifest | described | {"hash": content_hash(*tables, extra)}
    if steps:
        manifest["filters"] = [*dataset.manifest.get("filters", []), *steps]
    whole = (len(dataset.user_ids), len(dataset.item_ids))
    truth = {
        name: values[np.ix_(users, items)] if values.shape == whole else values
        for name, values in dataset.truth.items()
    }
    return replace(
        dataset,
        user_table=tables[0],
        item_table=tables[1],
        interaction_table=tables[2],
        manifest=manifest,
        truth=truth,
        extra_tables=extra,
    )
