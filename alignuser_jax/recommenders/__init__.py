"""Recommenders behind one batched method, and what tries them: the contract and held-out hits.

The live history travels in each `RecommendationRequest`, so that recommenders need no state.
"""

from alignuser_jax.recommenders.adapters import (
    from_callable,
    from_cornac,
    from_implicit,
    from_recbole,
)
from alignuser_jax.recommenders.als import ALS
from alignuser_jax.recommenders.contract import Check, ContractReport, check_contract
from alignuser_jax.recommenders.degrade import Degraded, ShuffledAcrossUsers
from alignuser_jax.recommenders.lightgcn import LightGCN
from alignuser_jax.recommenders.link import HttpConfig, RequestRefused
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
from alignuser_jax.recommenders.remote import from_http
from alignuser_jax.recommenders.scores import (
    from_factors,
    from_lightfm,
    from_recs_file,
    from_scores,
)
from alignuser_jax.recommenders.serving import RecommenderServer
from alignuser_jax.recommenders.simple import Popularity, Random

__all__ = [
    "ALS",
    "Check",
    "ContractReport",
    "Degraded",
    "HeldOutHits",
    "HttpConfig",
    "LightGCN",
    "MF",
    "MultVAE",
    "Popularity",
    "Random",
    "Ranking",
    "RecommenderServer",
    "RequestRefused",
    "ShuffledAcrossUsers",
    "check_contract",
    "draw_users",
    "from_callable",
    "from_cornac",
    "from_factors",
    "from_http",
    "from_implicit",
    "from_lightfm",
    "from_recbole",
    "from_recs_file",
    "from_scores",
    "held_out_hits",
    "held_out_ranking",
    "held_out_table",
    "load_recommender",
    "load_saved",
    "ranking_table",
]
