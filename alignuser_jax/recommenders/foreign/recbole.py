"""Adapt models of RecBole, which lives in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from alignuser_jax.recommenders.foreign.recs_file import from_recs_file
from alignuser_jax.recommenders.foreign.scored import ScoredRecommender
from alignuser_jax.recommenders.http.link import HttpConfig, Link
from alignuser_jax.recommenders.http.remote import HttpRecommender


def from_recbole(where: str | Path) -> HttpRecommender | ScoredRecommender:
    """Make a recommender of a RecBole model that is served or was exported.

    `data_prep/recbole_side.py` does both. RecBole pins other versions than this library, so
    that file is copied into RecBole's own
    environment and run there. A sequential model that is served sees the live session.

    Example:
        >>> served = from_recbole("http://localhost:8090")  # doctest: +SKIP
        >>> exported = from_recbole("recs.tsv")  # doctest: +SKIP

    Args:
        where: the URL at which the model is served, or the file that was exported.
    """
    text = str(where)
    if text.startswith(("http://", "https://")):
        return HttpRecommender(Link(text, HttpConfig()))
    return from_recs_file(text)
