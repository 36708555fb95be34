"""Recommenders behind one batched method, and what tries them: the contract and held-out hits.

All here are stateless: the live history travels in each `RecommendationRequest`.
"""

from alignuser_jax.recommenders.als import ALS
from alignuser_jax.recommenders.contract import Check, ContractReport, check_contract
from alignuser_jax.recommenders.degrade import Degraded, ShuffledAcrossUsers
from alignuser_jax.recommenders.lightgcn import LightGCN
from alignuser_jax.recommenders.loading import load_recommender, load_saved
from alignuser_jax.recommenders.mf import MF
from alignuser_jax.recommenders.multvae import MultVAE
from alignuser_jax.recommenders.offline import (
    HeldOutHits,
    draw_users,
    held_out_hits,
    held_out_table,
)
from alignuser_jax.recommenders.ranking import Ranking, held_out_ranking, ranking_table
from alignuser_jax.recommenders.simple import Popularity, Random

__all__ = [
    "ALS",
    "Check",
    "ContractReport",
    "Degraded",
    "HeldOutHits",
    "LightGCN",
    "MF",
    "MultVAE",
    "Popularity",
    "Random",
    "Ranking",
    "ShuffledAcrossUsers",
    "check_contract",
    "draw_users",
    "held_out_hits",
    "held_out_ranking",
    "held_out_table",
    "load_recommender",
    "load_saved",
    "ranking_table",
]
