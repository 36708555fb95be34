"""What every recommender shares: an index of its items, versions, and one folder layout.

A saved recommender is a folder with `recommender.json` (its kind, version and settings) beside
`arrays.npz` (what it learned); nothing is pickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from zipfile import BadZipFile

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.durable.whole import replacing, write_whole
from alignuser_jax.records import Recommender, Slate

SETTINGS_FILE = "recommender.json"
ARRAYS_FILE = "arrays.npz"


class ItemIndex:
    """The items that a recommender may show; an item's code is its place in `item_ids`.

    Example:
        >>> index = ItemIndex(["heat", "alien", "fargo"])
        >>> index.slate(np.array([1.0, 3.0, 2.0]), k=2, exclude={"alien"}).item_ids
        ('fargo', 'heat')

    Attributes:
        item_ids: the ids, each once.
        code_of: item id to code.
    """

    def __init__(self, item_ids: Iterable[str]):
        self.item_ids: tuple[str, ...] = tuple(item_ids)
        self.code_of: dict[str, int] = {item: code for code, item in enumerate(self.item_ids)}
        wrong = next((item for item in self.item_ids if not isinstance(item, str)), None)
        if wrong is not None:
            raise ValueError(
                f"item id {wrong!r} is a {type(wrong).__name__}: ids are strings, so convert "
                "them with str"
            )
        if len(self.code_of) != len(self.item_ids):
            raise ValueError(
                f"item ids must be distinct: {len(self.item_ids)} ids were given, "
                f"{len(self.code_of)} of them different"
            )

    def __len__(self) -> int:
        return len(self.item_ids)

    def codes(self, item_ids: Iterable[str]) -> np.ndarray:
        """Return the distinct codes of `item_ids`, int64[m] ascending, without unknown ids."""
        get = self.code_of.get
        distinct = {code for item in item_ids if (code := get(item)) is not None}
        return np.array(sorted(distinct), np.int64)

    def top(
        self, scores: np.ndarray, k: int, exclude: Iterable[str] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes and scores of the k best items, best first, equal scores by code.

        Args:
            scores: float32[n_items] or float64[n_items], all finite; left unchanged.
            k: how many items; fewer come back only when fewer are left.
            exclude: ids that must not be returned; unknown ids are ignored.

        Returns:
            int64[at most k] codes, and their scores.
        """
        scores = np.array(scores)  # a copy: excluded entries are overwritten
        if scores.dtype != np.float64:
            scores = scores.astype(np.float32, copy=False)
        excluded = self.codes(exclude)
        scores[excluded] = -np.inf
        k = min(k, len(self) - len(excluded))
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        # everything at least as good as the k-th, in code order, then a stable sort: ties at
        # the cut never depend on how the partition happened to arrange them
        cut = np.partition(scores, len(self) - k)[len(self) - k]
        best = np.flatnonzero(scores >= cut)
        best = best[np.argsort(-scores[best], kind="stable")][:k]
        return best, scores[best]

    def slate(
        self, scores: np.ndarray, k: int, exclude: Iterable[str] = (), *, scored: bool = True
    ) -> Slate:
        """Return the k best items as a `Slate`.

        Args:
            scores: as for `top`.
            k: as for `top`.
            exclude: as for `top`.
            scored: whether the slate carries the scores; false when they are random draws.
        """
        codes, values = self.top(scores, k, exclude)
        ids = tuple(self.item_ids[code] for code in codes)
        return Slate(ids, scores=tuple(values.tolist()) if scored else None)


def digest(settings: Mapping[str, Any], *arrays: np.ndarray | Sequence[str]) -> str:
    """Return 12 hex digits that name a recommender by its settings and its training data."""
    hasher = hashlib.blake2b(digest_size=6)
    hasher.update(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        if isinstance(array, np.ndarray):
            hasher.update(f"{array.dtype.str}{array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
        else:
            hasher.update("\x1f".join(array).encode())
    return hasher.hexdigest()


def label_of(recommender: object) -> str:
    """Return the recommender's `name`, or its class's name when it has none."""
    return str(getattr(recommender, "name", "") or type(recommender).__name__)


def version_of(recommender: object) -> str:
    """Return the recommender's `version` as text, empty when it has none."""
    return str(getattr(recommender, "version", ""))


@runtime_checkable
class Fittable(Recommender, Protocol):
    """A recommender that can be fitted on a log here."""

    def fit(self, dataset: Dataset, log: Log) -> Recommender:
        """Return the recommender as fitted on `log`."""


@runtime_checkable
class Saveable(Protocol):
    """A recommender that can be written to a folder."""

    def save(self, directory: str | Path) -> None:
        """Write the folder."""


def refit(recommender: Recommender, dataset: Dataset, log: Log) -> Recommender:
    """Return a recommender fitted on `log`; the one given stays as it was.

    Raises:
        ValueError: if it has no `fit`.
    """
    if not isinstance(recommender, Fittable):
        raise ValueError(
            f"{label_of(recommender)} has no fit(dataset, log), so it cannot be fitted here: a "
            "server, a file or a function has none"
        )
    return copy.copy(recommender).fit(dataset, log)  # a copy: arms may share the original


def write_arrays(file: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as one `.npz` file: a program that is killed leaves no half file."""
    with replacing(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def write_folder(
    directory: str | Path, kind: str, about: Mapping[str, Any], **arrays: np.ndarray
) -> None:
    """Save a recommender in a folder, which is made if it is missing.

    The old settings file is removed first and the new one is written last, so a folder whose
    writing was cut short holds no recommender, never half of one.

    Args:
        directory: the folder.
        kind: which class reads it back; `loading.load_saved` looks at it.
        about: what goes into `recommender.json` beside the kind: version, settings.
        **arrays: what goes into `arrays.npz`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SETTINGS_FILE).unlink(missing_ok=True)
    write_arrays(directory / ARRAYS_FILE, arrays)
    text = json.dumps({"kind": kind, **about}, indent=1, sort_keys=True)
    write_whole(directory / SETTINGS_FILE, text + "\n")


def read_folder(
    directory: str | Path, kind: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the settings and arrays that `write_folder` wrote.

    Args:
        directory: the folder.
        kind: the expected kind; `None` accepts any.

    Raises:
        FileNotFoundError: if the folder holds no saved recommender.
        ValueError: if it holds one of another kind, or a damaged one.
    """
    directory = Path(directory)
    if not (directory / SETTINGS_FILE).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {SETTINGS_FILE}, so it is no saved recommender; "
            "write one with save(dir) or with the fit-recommender program"
        )
    try:
        about = json.loads((directory / SETTINGS_FILE).read_bytes())
        with np.load(directory / ARRAYS_FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        if not isinstance(about, dict):
            raise ValueError(f"{SETTINGS_FILE} holds no JSON object")
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"the recommender in {directory} is damaged ({type(error).__name__}): fit and save "
            "it again"
        ) from error
    if kind is not None and about.get("kind") != kind:
        raise ValueError(
            f"{directory} holds a recommender of kind {about.get('kind')!r}, not {kind!r}; "
            "load_recommender(directory) loads any kind"
        )
    return about, arrays


def not_fitted(recommender: object) -> RuntimeError:
    """Return the error for a recommender that is used before it has learned anything."""
    name = type(recommender).__name__
    return RuntimeError(
        f"{name} has learned nothing yet: call fit(dataset, log) or {name}.load(dir) first"
    )
