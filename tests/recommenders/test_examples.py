"""The examples in the docstrings of recommenders run as they stand, on a small dataset.

Examples that call a server, or a library that is not installed, are skipped in their own lines.
"""

import doctest
import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax import recommenders
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig, generate
from alignuser_jax.recommenders.checks.ranking import interaction_matrix
from alignuser_jax.records import RecommendationRequest

ROOT = Path(recommenders.__file__).parents[2]
FILES = [
    path
    for path in (
        *sorted(Path(recommenders.__file__).parent.rglob("*.py")),
        ROOT / "alignuser_jax" / "retrying.py",
    )
    if ">>> " in path.read_text()
]
SHOWN = (
    *("from_callable", "from_implicit", "from_cornac", "from_recbole", "from_scores"),
    *("from_recs_file", "from_http", "load_recommender", "RecommenderServer"),
    *("check_contract", "ALS", "MF", "LightGCN", "MultVAE", "Degraded", "ShuffledAcrossUsers"),
)


@pytest.fixture(scope="module")
def dataset():
    return generate(SyntheticConfig(users=60, items=80, seed=0))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples(path, dataset, tmp_path, monkeypatch):
    if path.stem == "cornac_models":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("cornac", reason="pip install cornac")
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    train = dataset.log.of_split("train")
    names = {key: getattr(recommenders, key) for key in recommenders.__all__} | {
        "dataset": dataset,
        "user_ids": dataset.user_ids,
        "item_ids": dataset.item_ids,
        "requests": [RecommendationRequest("somebody", ())],
        "user_items": interaction_matrix(train),
        "triples": [
            (dataset.user_ids[u], dataset.item_ids[i], 1.0)
            for u, i in zip(train.user, train.item, strict=True)
        ],
        "RecommendationRequest": RecommendationRequest,
        "Path": Path,
        "np": np,
    }
    results = doctest.testmod(importlib.import_module(name), extraglobs=names)
    assert results.failed == 0


def test_what_people_construct_has_an_example():
    missing = [name for name in SHOWN if ">>> " not in getattr(recommenders, name).__doc__]
    assert not missing
