"""What every recommender here shares: a catalogue with deterministic top-k, seeded draws,
versions, and one folder layout (`recommender.json` beside `arrays.npz`, no pickle)."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import Slate

SETTINGS_FILE = "recommender.json"
ARRAYS_FILE = "arrays.npz"


class Catalogue:
    """The items a recommender may show. An item's code is its place in `item_ids`."""

    def __init__(self, item_ids: Iterable[str]):
        self.item_ids: tuple[str, ...] = tuple(item_ids)
        self.index: dict[str, int] = {item: code for code, item in enumerate(self.item_ids)}
        wrong = next((item for item in self.item_ids if not isinstance(item, str)), None)
        if wrong is not None:
            raise ValueError(f"item id {wrong!r} is a {type(wrong).__name__}: ids are strings")
        if len(self.index) != len(self.item_ids):
            raise ValueError(
                f"a catalogue needs each item once: {len(self.item_ids)} ids were given, "
                f"{len(self.index)} of them different"
            )

    def __len__(self) -> int:
        return len(self.item_ids)

    def codes(self, item_ids: Iterable[str]) -> np.ndarray:
        """int64[m]: the distinct codes of the known ones among `item_ids`, ascending."""
        get = self.index.get
        found = {code for item in item_ids if (code := get(item)) is not None}
        return np.array(sorted(found), np.int64)

    def top(
        self, scores: np.ndarray, k: int, exclude: Iterable[str] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best codes not excluded and their scores, best first; ties by code.

        `scores` is float32[n_items] or float64 and finite. Fewer than k come back only where
        fewer are left.
        """
        scores = np.array(scores)  # a copy: excluded entries are overwritten
        if scores.dtype != np.float64:
            scores = scores.astype(np.float32, copy=False)
        out = self.codes(exclude)
        scores[out] = -np.inf
        k = min(k, len(self) - len(out))
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
        """`top` as a `Slate`, with its scores where they mean something (`scored`)."""
        codes, values = self.top(scores, k, exclude)
        ids = tuple(self.item_ids[code] for code in codes)
        return Slate(ids, scores=tuple(values.tolist()) if scored else None)


def generator(*names: object) -> np.random.Generator:
    """A generator keyed by names alone (`stable_key`): the same names, the same draws."""
    return named_generator(*names)


def digest(settings: Mapping[str, Any], *arrays: np.ndarray | Sequence[str]) -> str:
    """12 hex digits that name a recommender: its settings and the data it has learned from."""
    hasher = hashlib.blake2b(digest_size=6)
    hasher.update(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        if isinstance(array, np.ndarray):
            hasher.update(f"{array.dtype.str}{array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
        else:
            hasher.update("\x1f".join(array).encode())
    return hasher.hexdigest()


def write(
    directory: str | Path, kind: str, settings: Mapping[str, Any], **arrays: np.ndarray
) -> None:
    """Write a recommender's folder, making it where it is missing. Cut short, it holds no
    recommender: never half of one."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SETTINGS_FILE).unlink(missing_ok=True)
    np.savez(directory / ARRAYS_FILE, **arrays)
    text = json.dumps({"kind": kind, **settings}, indent=1, sort_keys=True)
    write_whole(directory / SETTINGS_FILE, text + "\n")


def read(
    directory: str | Path, kind: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings and arrays that `write` left.

    Raises `FileNotFoundError` where there is no saved recommender, and `ValueError` where it
    is of another kind or damaged.
    """
    directory = Path(directory)
    if not (directory / SETTINGS_FILE).is_file():
        raise FileNotFoundError(
            f"{directory} holds no {SETTINGS_FILE}, so it is no saved recommender; "
            "write one with save(dir) or with the fit-recommender program"
        )
    try:
        settings = json.loads((directory / SETTINGS_FILE).read_bytes())
        with np.load(directory / ARRAYS_FILE, allow_pickle=False) as stored:
            arrays = dict(stored)
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS_FILE} holds no JSON object")
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"the recommender in {directory} is damaged ({type(error).__name__}): fit and save "
            "it again"
        ) from error
    if kind is not None and settings.get("kind") != kind:
        raise ValueError(
            f"{directory} holds a recommender of kind {settings.get('kind')!r}, not {kind!r}; "
            "load_recommender(directory) loads any kind"
        )
    return settings, arrays


def not_fitted(recommender: object) -> RuntimeError:
    name = type(recommender).__name__
    return RuntimeError(
        f"{name} has learned nothing yet: call fit(dataset, log) or {name}.load(dir) first"
    )
