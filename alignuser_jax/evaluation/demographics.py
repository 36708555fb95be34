"""How well age and occupation are told from ratings (the paper's Table 10), beside a majority
vote and a logistic regression on features of the same ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.personas import compute_traits
from alignuser_jax.statistics.paired import Interval, bootstrap_generator, resample_weights

FIELDS = ("age", "occupation")
METRICS = (
    "accuracy",
    *("precision, macro", "recall, macro", "F1, macro"),
    *("precision, weighted", "recall, weighted", "F1, weighted"),
)
FOLDS = 5
MAJORITY, REGRESSION = "majority", "logistic regression"


@dataclass(frozen=True)
class DemographicScores:
    """One predictor of one field; `scores` has the `METRICS`, each with its interval over
    resampled users. A user without a prediction counts as wrong."""

    field: str
    name: str
    users: int
    unpredicted: int
    scores: Mapping[str, Interval]


def known_labels(dataset: Dataset, field: str) -> dict[str, str]:
    """The true label of every user that has one."""
    rows = {u: (row.get(field) or "").strip() for u, row in dataset.demographics.items()}
    return {user: label for user, label in rows.items() if label}


def features(dataset: Dataset, log: Log) -> np.ndarray:
    """float64[users, genres + 7]: of what a user rated in `log` the share of each genre, the
    logarithm of the number, the mean rating, the share of each number of stars."""
    traits = compute_traits(dataset, log)
    names = sorted({genre for item in dataset.items.values() for genre in item.genres})
    column = {name: n for n, name in enumerate(names)}
    members = np.zeros((len(dataset.item_ids), len(names)))
    for row, item in enumerate(dataset.item_ids):
        members[row, [column[genre] for genre in dataset.items[item].genres]] = 1
    counts = np.zeros((len(dataset.user_ids), len(names)))
    for n in range(len(names)):
        counts[:, n] = np.bincount(log.user, members[log.item, n], len(counts))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = [np.log1p(traits.engagement)[:, None], traits.mean_rating[:, None]]
    return np.nan_to_num(np.concatenate([shares, *few, traits.rating_shares], 1))


def cross_validated(
    rows: np.ndarray, truth: Sequence[str], *, folds: int = FOLDS, seed: int = 0
) -> dict[str, list[str]]:
    """For every user the labels that predictors fitted on the other folds' users give.

    Users are dealt to folds at random. The regression is scikit-learn's, on standardized
    features, with its default penalty. Raises `ValueError` for fewer users than folds."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array(truth)
    if len(labels) < folds:
        raise ValueError(f"{len(labels)} users cannot be dealt to {folds} folds: give more")
    makers: dict[str, Callable] = {
        MAJORITY: lambda: DummyClassifier(strategy="most_frequent"),
        REGRESSION: lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    }
    found = {name: np.empty_like(labels) for name in makers}
    for fitted, held in KFold(folds, shuffle=True, random_state=seed).split(rows):
        constant = len(set(labels[fitted])) == 1
        for name, make in makers.items():
            model = makers[MAJORITY]() if constant else make()
            found[name][held] = model.fit(rows[fitted], labels[fitted]).predict(rows[held])
    return {name: predicted.tolist() for name, predicted in found.items()}


def score(
    field: str,
    name: str,
    truth: Sequence[str],
    predicted: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> DemographicScores:
    """Accuracy; precision, recall and F1 per label, averaged over the labels that are true or
    predicted anywhere (macro), or by how many users have them (weighted); 0 where a label is
    never predicted. "" is no prediction. Percentile bootstrap over users."""
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(
            f"{len(truth)} true and {len(predicted)} predicted labels: expected as many of "
            "each, and some"
        )
    labels = sorted({*truth, *predicted} - {""})
    code = {label: n for n, label in enumerate(labels)}
    true = np.array([code[label] for label in truth])
    said = np.array([code.get(label, len(labels)) for label in predicted])
    one_hot = np.eye(len(labels) + 1)
    columns = np.concatenate(
        [one_hot[true], one_hot[said], one_hot[true] * (true == said)[:, None]], 1
    )
    weights = resample_weights(
        len(true), resamples, bootstrap_generator("demographics", field, seed)
    )
    point = _metrics(np.ones((1, len(true))) @ columns, len(labels))
    draws = _metrics(weights @ columns, len(labels))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return DemographicScores(
        field,
        name,
        len(true),
        int((said == len(labels)).sum()),
        {
            metric: Interval(float(point[0, n]), float(low[n]), float(high[n]))
            for n, metric in enumerate(METRICS)
        },
    )


def _metrics(counts: np.ndarray, labels: int) -> np.ndarray:
    """[draws, metrics] from [draws, 3 (labels + 1)]: how many users have a label, are given it,
    and are rightly given it."""

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    parts = counts.reshape(len(counts), 3, labels + 1)[:, :, :labels]
    support, given, right = parts[:, 0], parts[:, 1], parts[:, 2]
    each = (ratio(right, given), ratio(right, support), ratio(2 * right, given + support))
    total = support.sum(1)
    seen = (support + given) > 0  # in a draw: a label that nobody has or is given has no score
    macro = [(values * seen).sum(1) / seen.sum(1) for values in each]
    weighted = [(values * support).sum(1) / total for values in each]
    return np.stack([right.sum(1) / total, *macro, *weighted], 1)


def compare(
    dataset: Dataset,
    log: Log,
    predictions: Mapping[str, Mapping[str, Mapping[str, str]]],
    users: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> list[DemographicScores]:
    """Per field that `dataset` knows: the baselines and every predictor of `predictions` (name
    -> user id -> field -> label), on the same `users` (default: all). The baselines learn from
    all users of the other folds, by what `log` holds."""
    chosen = set(dataset.user_ids if users is None else users)
    place = {user: code for code, user in enumerate(dataset.user_ids)}
    found, rows = [], None
    for field in FIELDS:
        labels = known_labels(dataset, field)
        everybody, scored = list(labels), [u for u in labels if u in chosen]
        if not scored or len(everybody) < FOLDS:
            continue
        rows = features(dataset, log) if rows is None else rows
        truth = [labels[user] for user in scored]
        fitted = cross_validated(
            rows[[place[user] for user in everybody]], list(labels.values()), seed=seed
        )
        for name, said in fitted.items():
            of_user = dict(zip(everybody, said, strict=True))
            found.append(score(field, name, truth, [of_user[u] for u in scored], seed=seed))
        for name, by_user in predictions.items():
            said = [by_user.get(user, {}).get(field, "") for user in scored]
            found.append(score(field, name, truth, said, seed=seed))
    return found
