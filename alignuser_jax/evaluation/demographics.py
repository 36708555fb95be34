"""Score how well age and occupation are predicted from ratings (the paper's Table 10).

Beside a predictor, such as matched personas, stand a majority vote and a logistic regression on
features of the same ratings. Nothing is asked here: `personas.match_dataset` asks the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.personas import compute_traits
from alignuser_jax.statistics.paired import Interval, bootstrap_generator, resample_weights
from alignuser_jax.text import markdown_table

DEMOGRAPHIC_FIELDS = ("age", "occupation")
LABEL_SCORES = (
    "accuracy",
    *("precision, macro", "recall, macro", "F1, macro"),
    *("precision, weighted", "recall, weighted", "F1, weighted"),
)
FOLDS = 5
MAJORITY, REGRESSION = "majority", "logistic regression"


@dataclass(frozen=True)
class DemographicScores:
    """The scores of one predictor of one field.

    Attributes:
        field: The field, one of `DEMOGRAPHIC_FIELDS`.
        name: The predictor.
        users: How many users were predicted.
        unpredicted: How many of them got no prediction; they count as wrong.
        scores: Each of `LABEL_SCORES` with its interval over resampled users.
    """

    field: str
    name: str
    users: int
    unpredicted: int
    scores: Mapping[str, Interval]


def known_labels(dataset: Dataset, field: str) -> dict[str, str]:
    """Return the true label of every user who has one, by user id."""
    rows = {u: (row.get(field) or "").strip() for u, row in dataset.demographics.items()}
    return {user: label for user, label in rows.items() if label}


def features(dataset: Dataset, log: Log) -> np.ndarray:
    """Return what predictors may read of a user's ratings: float64[users, genres + 7].

    Of what the user rated in `log`: the share of each genre, the logarithm of 1 + the number
    of ratings, the mean rating, and the share of each number of stars.
    """
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
    """Predict each user's label with predictors that were fitted on the other folds' users.

    Users are dealt to folds at random. The regression is scikit-learn's, on standardized
    features, with its default penalty.

    Args:
        rows: float64[users, features].
        truth: The true label of each user.
        folds: Number of folds.
        seed: Seed of the folds.

    Returns:
        Predictor -> one label per user.

    Raises:
        ValueError: There are fewer users than folds.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = np.array(truth)
    if len(labels) < folds:
        raise ValueError(
            f"{len(labels)} users cannot be dealt to {folds} folds: pass more users"
        )
    makers: dict[str, Callable] = {
        MAJORITY: lambda: DummyClassifier(strategy="most_frequent"),
        REGRESSION: lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    }
    predicted = {name: np.empty_like(labels) for name in makers}
    for fitted, held in KFold(folds, shuffle=True, random_state=seed).split(rows):
        constant = len(set(labels[fitted])) == 1
        for name, make in makers.items():
            model = makers[MAJORITY]() if constant else make()
            predicted[name][held] = model.fit(rows[fitted], labels[fitted]).predict(rows[held])
    return {name: column.tolist() for name, column in predicted.items()}


def score_labels(
    field: str,
    name: str,
    truth: Sequence[str],
    predicted: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> DemographicScores:
    """Score one predictor of one field.

    Precision, recall and F1 are computed per label and averaged over the labels that are true
    or predicted anywhere (macro), or by how many users have them (weighted). They are 0 for a
    label that is never predicted. Intervals are percentile bootstraps over users.

    Args:
        field: The field.
        name: The predictor's name.
        truth: The true label of each user.
        predicted: The predicted labels; "" is no prediction.
        resamples: Bootstrap resamples of the users.
        seed: Names the resamples.

    Raises:
        ValueError: The lengths differ, or there are no users.
    """
    if len(truth) != len(predicted) or not len(truth):
        raise ValueError(
            f"got {len(truth)} true and {len(predicted)} predicted labels: expected as many of "
            "each, and some"
        )
    labels = sorted({*truth, *predicted} - {""})
    code = {label: n for n, label in enumerate(labels)}
    true = np.array([code[label] for label in truth])
    guess = np.array([code.get(label, len(labels)) for label in predicted])
    one_hot = np.eye(len(labels) + 1)
    columns = np.concatenate(
        [one_hot[true], one_hot[guess], one_hot[true] * (true == guess)[:, None]], 1
    )
    weights = resample_weights(
        len(true), resamples, bootstrap_generator("demographics", field, seed)
    )
    point = _label_scores(np.ones((1, len(true))) @ columns, len(labels))
    draws = _label_scores(weights @ columns, len(labels))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return DemographicScores(
        field,
        name,
        len(true),
        int((guess == len(labels)).sum()),
        {
            metric: Interval(float(point[0, n]), float(low[n]), float(high[n]))
            for n, metric in enumerate(LABEL_SCORES)
        },
    )


def _label_scores(counts: np.ndarray, labels: int) -> np.ndarray:
    """The scores, float[draws, scores], from counts, float[draws, 3 (labels + 1)].

    The counts are how many users have a label, are predicted to have it, and both.
    """

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    parts = counts.reshape(len(counts), 3, labels + 1)[:, :, :labels]
    support, predicted, right = parts[:, 0], parts[:, 1], parts[:, 2]
    each = (
        ratio(right, predicted),
        ratio(right, support),
        ratio(2 * right, predicted + support),
    )
    total = support.sum(1)
    occurs = (support + predicted) > 0  # a label outside of a draw has no score in it
    macro = [(values * occurs).sum(1) / occurs.sum(1) for values in each]
    weighted = [(values * support).sum(1) / total for values in each]
    return np.stack([right.sum(1) / total, *macro, *weighted], 1)


def score(
    dataset: Dataset,
    log: Log,
    predictions: Mapping[str, Mapping[str, Mapping[str, str]]],
    users: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> list[DemographicScores]:
    """Score the baselines and every predictor, per field that the dataset knows.

    Args:
        dataset: Its demographics are the truth.
        log: The ratings that the baselines may read.
        predictions: Predictor -> user id -> field -> label.
        users: The users on whom all are scored (default: all). The baselines learn from every
            user of the other folds.
        seed: Seed of the folds and the resamples.
    """
    chosen = set(dataset.user_ids if users is None else users)
    code_of = {user: code for code, user in enumerate(dataset.user_ids)}
    scores: list[DemographicScores] = []
    rows: np.ndarray | None = None
    for field in DEMOGRAPHIC_FIELDS:
        labels = known_labels(dataset, field)
        everybody, scored = list(labels), [u for u in labels if u in chosen]
        if not scored or len(everybody) < FOLDS:
            continue
        rows = features(dataset, log) if rows is None else rows
        truth = [labels[user] for user in scored]
        fitted = cross_validated(
            rows[[code_of[user] for user in everybody]], list(labels.values()), seed=seed
        )
        columns = {}
        for name, column in fitted.items():
            of_user = dict(zip(everybody, column, strict=True))
            columns[name] = [of_user[user] for user in scored]
        for name, by_user in predictions.items():
            columns[name] = [by_user.get(user, {}).get(field, "") for user in scored]
        scores += [score_labels(field, n, truth, c, seed=seed) for n, c in columns.items()]
    return scores


def table(scores: Sequence[DemographicScores]) -> str:
    """Return a Markdown table with one row per field and predictor."""
    rows = [
        [s.field, s.name, str(s.users), *(s.scores[name].text() for name in LABEL_SCORES)]
        for s in scores
    ]
    return markdown_table(rows, ["field", "predictor", "users", *LABEL_SCORES])
