"""Recommenders from scores that were computed elsewhere: a matrix, factors and biases, a file.

They know users by id and the catalogue by its ids; the live session changes what is excluded,
not the scores. A user that they do not know gets what the mean user would; where a user's own
items are used up, the mean user's best ones follow (a warning says so once).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from alignuser_jax.recommenders.base import Catalogue, digest
from alignuser_jax.records import RecommendationRequest, Slate


class ScoredUsers:
    """`row(code)` is float32[n_items] or float64, the scores of user number `code`, -inf for an
    item that is no recommendation of theirs; `mean` are the finite scores of the mean user."""

    stateful = False

    def __init__(
        self,
        name: str,
        version: str,
        catalogue: Catalogue,
        user_ids: Iterable[str],
        row: Callable[[int], np.ndarray],
        mean: np.ndarray,
    ):
        self.name, self.version, self.catalogue = name, version, catalogue
        self.users = {user: code for code, user in enumerate(user_ids)}
        self.row, self.mean = row, np.asarray(mean, np.float32)

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        return [self._slate(request) for request in requests]

    def _slate(self, request: RecommendationRequest) -> Slate:
        code = self.users.get(request.user_id)
        scores = self.mean if code is None else self.row(code)
        return filled_slate(self.catalogue, scores, self.mean, request, self.name)


def filled_slate(
    catalogue: Catalogue,
    scores: np.ndarray,
    otherwise: np.ndarray,
    request: RecommendationRequest,
    name: str,
) -> Slate:
    """The k best of the finite `scores`; where these are too few, the best by `otherwise`
    follow, and the slate has no scores. Both are float32[n_items]."""
    codes = np.flatnonzero(np.isfinite(scores))
    if len(codes) == len(catalogue):
        return catalogue.slate(scores, request.k, request.exclude)
    codes = np.setdiff1d(codes, catalogue.codes(request.exclude), assume_unique=True)
    best = codes[np.argsort(-scores[codes], kind="stable")][: request.k]
    ids = tuple(catalogue.item_ids[code] for code in best)
    if len(ids) == request.k:
        return Slate(ids, tuple(scores[best].tolist()))
    more = catalogue.slate(otherwise, request.k - len(ids), request.exclude.union(ids))
    if more.item_ids:
        logging.log_first_n(
            logging.WARNING,
            "%s has only %d more items for user %r; what most users get follows",
            1, name, len(ids), request.user_id,
        )  # fmt: skip
    return Slate(ids + more.item_ids)


def from_scores(
    matrix: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    name: str = "scores",
) -> ScoredUsers:
    """From a [users, items] array, or a scipy sparse one whose missing entries are items not to
    recommend. In a dense one -inf says the same; NaN and +inf are refused."""
    catalogue, users = Catalogue(item_ids), distinct(user_ids)
    sparse = hasattr(matrix, "tocsr")
    if sparse:
        matrix = matrix.tocsr()
        matrix.sum_duplicates()
        if np.isneginf(matrix.data).any():
            matrix = matrix.tocoo()
            told = ~np.isneginf(matrix.data)
            where = matrix.row[told], matrix.col[told]
            matrix = type(matrix)((matrix.data[told], where), matrix.shape).tocsr()
        values = matrix.data
    else:
        matrix = values = np.asarray(matrix)
    if matrix.shape != (len(users), len(catalogue)):
        raise ValueError(
            f"the scores have shape {tuple(matrix.shape)} for {len(users)} users and "
            f"{len(catalogue)} items: expected [users, items]"
        )
    if np.isnan(values).any() or (values == np.inf).any():
        raise ValueError("the scores hold NaN or +inf: expected numbers (or -inf: never)")
    if sparse:
        mean = np.asarray(matrix.mean(axis=0), np.float64).ravel()
        count = np.bincount(matrix.indices, minlength=len(catalogue))
        mean[count == 0] = mean.min(initial=0) - 1  # items that nobody is to get: last
        arrays = [matrix.indptr, matrix.indices, matrix.data]

        def row(code: int) -> np.ndarray:
            scores = np.full(len(catalogue), -np.inf)
            own = slice(matrix.indptr[code], matrix.indptr[code + 1])
            scores[matrix.indices[own]] = matrix.data[own]
            return scores

    else:
        finite = np.isfinite(matrix)
        count = np.maximum(finite.sum(axis=0), 1)
        mean = np.where(finite, matrix, 0).sum(axis=0, dtype=np.float64) / count
        mean[~finite.any(axis=0)] = mean.min(initial=0) - 1  # items that nobody is to get: last
        arrays = [matrix]

        def row(code: int) -> np.ndarray:
            return matrix[code].astype(np.float64)

    version = digest({"kind": "scores"}, catalogue.item_ids, users, *arrays)
    return ScoredUsers(name, version, catalogue, users, row, mean)


def from_factors(
    user_factors: Any,
    item_factors: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    user_biases: Any = None,
    item_biases: Any = None,
    name: str = "factors",
) -> ScoredUsers:
    """The score of user u for item i is x_u·y_i + b_u + b_i; factors are [users, d] and
    [items, d], biases (0 where not given) [users] and [items]."""
    catalogue, users = Catalogue(item_ids), distinct(user_ids)
    x, y = np.asarray(user_factors, np.float32), np.asarray(item_factors, np.float32)
    b_u = np.zeros(len(users), np.float32) if user_biases is None else user_biases
    b_i = np.zeros(len(catalogue), np.float32) if item_biases is None else item_biases
    b_u, b_i = np.asarray(b_u, np.float32).ravel(), np.asarray(b_i, np.float32).ravel()
    expected = {
        "user_factors": (x.shape, (len(users), *x.shape[1:])),
        "item_factors": (y.shape, (len(catalogue), *x.shape[1:])),
        "user_biases": (b_u.shape, (len(users),)),
        "item_biases": (b_i.shape, (len(catalogue),)),
    }
    wrong = [f"{n} {g}, expected {e}" for n, (g, e) in expected.items() if g != e]
    if wrong or x.ndim != 2:
        raise ValueError(f"shapes do not fit: {'; '.join(wrong) or f'factors {x.shape}'}")
    for label, array in (("factors", x), ("factors", y), ("biases", b_u), ("biases", b_i)):
        if not np.isfinite(array).all():
            raise ValueError(f"the {label} hold NaN or infinite numbers")

    def row(code: int) -> np.ndarray:
        return y @ x[code] + b_i + b_u[code]

    mean = y @ x.mean(axis=0) + b_i if len(users) else b_i
    version = digest({"kind": "factors"}, catalogue.item_ids, users, x, y, b_u, b_i)
    return ScoredUsers(name, version, catalogue, users, row, mean)


def from_lightfm(
    model: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    user_features: Any = None,
    item_features: Any = None,
    name: str = "lightfm",
) -> ScoredUsers:
    """A fitted LightFM model (anything with its `get_user_representations` and
    `get_item_representations`, which return biases and embeddings); ids in the order of its
    rows, features those that it was fitted with."""
    user_biases, user_factors = model.get_user_representations(user_features)
    item_biases, item_factors = model.get_item_representations(item_features)
    return from_factors(
        user_factors,
        item_factors,
        user_ids,
        item_ids,
        user_biases=user_biases,
        item_biases=item_biases,
        name=name,
    )


# --- a file of recommendations ------------------------------------------------------------

USER = ("user_id", "user", "userId", "userID", "uid")
ITEM = ("item_id", "item", "itemId", "itemID", "iid")
SCORE = ("score", "prediction", "rating")
SUFFIXES = (".tsv", ".csv", ".txt", ".parquet")


def from_recs_file(path: str | Path, *, name: str = "") -> ScoredUsers:
    """From rows (user, item, score): Parquet, or text separated by tabs (.csv: by commas).

    Columns are found by name (user_id, item_id, score and the like) where there is a header,
    else they are the first three, as elliot writes them. Each user's best scores come first,
    ties in the file's order. Raises `ValueError` that says which row is wrong.
    """
    path = Path(path)
    users, items, scores = _read_table(path)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{path}: row {row} has score {scores[row]}, expected a number")
    user_ids, user = np.unique(users, return_inverse=True)
    item_ids, item = np.unique(items, return_inverse=True)
    order = np.lexsort((-scores, user))  # stable: ties stay in the file's order
    user, item, scores = user[order], item[order], scores[order]
    pairs = user.astype(np.int64) * len(item_ids) + item
    if len(np.unique(pairs)) != len(pairs):
        sorted_pairs = np.sort(pairs)
        twice = int(sorted_pairs[1:][np.diff(sorted_pairs) == 0][0])
        raise ValueError(
            f"{path}: user {user_ids[twice // len(item_ids)]!r} has item "
            f"{item_ids[twice % len(item_ids)]!r} twice"
        )
    catalogue = Catalogue(item_ids.tolist())
    starts = np.searchsorted(user, np.arange(len(user_ids) + 1))
    ranks = -(np.arange(len(user)) - starts[user]).astype(np.float32)

    def row(code: int) -> np.ndarray:
        own = slice(starts[code], starts[code + 1])
        ranking = np.full(len(catalogue), -np.inf, np.float32)
        ranking[item[own]] = ranks[own]
        return ranking

    often = np.bincount(item, minlength=len(catalogue)).astype(np.float32)
    version = digest({"kind": "recs"}, catalogue.item_ids, user_ids.tolist(), user, item)
    return ScoredUsers(name or path.stem, version, catalogue, user_ids.tolist(), row, often)


def _read_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(f"no recommendations file {path}")
    if path.suffix == ".parquet":
        table = pa.parquet.read_table(path)
        names = table.column_names
    else:
        delimiter, quoting = ("\t", csv.QUOTE_NONE)  # as elliot writes it
        if path.suffix == ".csv":
            delimiter, quoting = (",", csv.QUOTE_MINIMAL)
        with path.open(encoding="utf-8-sig") as text:
            first = next(csv.reader(text, delimiter=delimiter, quoting=quoting), [])
        headless = len(first) >= 3 and _is_number(first[2])
        names = [f"column {n}" for n in range(len(first))] if headless else first
        try:
            table = pa.csv.read_csv(
                path,
                read_options=pa.csv.ReadOptions(column_names=names, skip_rows=not headless),
                parse_options=pa.csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char='"' if quoting == csv.QUOTE_MINIMAL else False,
                    newlines_in_values=quoting == csv.QUOTE_MINIMAL,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types={n: pa.string() for n in names}, strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no table of user, item, score: {error}") from error
        if headless:
            names = [USER[0], ITEM[0], SCORE[0], *names[3:]]
            table = table.rename_columns(names)
    columns = []
    for known in (USER, ITEM, SCORE):
        found = [n for n in names if n.strip() in known]
        if len(found) != 1:
            raise ValueError(
                f"{path} has columns {', '.join(map(repr, names[:8]))}: expected one of "
                f"{', '.join(known)}"
            )
        columns.append(table[found[0]])
    if not len(table):
        raise ValueError(f"{path} has no rows")
    if any(column.null_count for column in columns):
        raise ValueError(f"{path} has rows without a user, an item or a score")
    for column in columns[:2]:
        if pa.types.is_floating(column.type):
            raise ValueError(f"{path} has ids of type {column.type}: expected text or integers")
    try:
        scores = columns[2].cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} has a score that is no number: {error}") from error
    ids = (np.array(column.cast(pa.string()).to_pylist(), object) for column in columns[:2])
    return *ids, scores.to_numpy()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def distinct(user_ids: Iterable[str]) -> tuple[str, ...]:
    users = tuple(user_ids)
    if len(set(users)) != len(users):
        raise ValueError(f"{len(users)} user ids were given, {len(set(users))} different ones")
    wrong = next((user for user in users if not isinstance(user, str)), None)
    if wrong is not None:
        raise ValueError(f"user id {wrong!r} is a {type(wrong).__name__}: ids are strings")
    return users
