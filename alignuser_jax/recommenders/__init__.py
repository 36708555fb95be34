"""Recommenders behind one batched method, and checks of them: the contract and held-out items.

The live history travels in each `RecommendationRequest`, so that recommenders need no state.
"""

from alignuser_jax.recommenders.checks.contract_report import (
    Check,
    ContractReport,
    check_contract,
)
from alignuser_jax.recommenders.checks.held_out import HeldOutSplits
from alignuser_jax.recommenders.checks.offline import (
    HeldOutHits,
    draw_users,
    held_out_hits,
    held_out_table,
)
from alignuser_jax.recommenders.checks.ranking import Ranking, held_out_ranking, ranking_table
from alignuser_jax.recommenders.controls import Degraded, ShuffledAcrossUsers
from alignuser_jax.recommenders.foreign.cornac_models import from_cornac
from alignuser_jax.recommenders.foreign.function import from_callable
from alignuser_jax.recommenders.foreign.implicit_models import from_implicit
from alignuser_jax.recommenders.foreign.recbole import from_recbole
from alignuser_jax.recommenders.foreign.recs_file import from_recs_file
from alignuser_jax.recommenders.foreign.scores import from_factors, from_lightfm, from_scores
from alignuser_jax.recommenders.http.link import HttpConfig, RequestRefused
from alignuser_jax.recommenders.http.remote import from_http
from alignuser_jax.recommenders.http.serving import RecommenderServer
from alignuser_jax.recommenders.loading import load_recommender, load_saved
from alignuser_jax.recommenders.models.als import ALS
from alignuser_jax.recommenders.models.baselines import Popularity, Random
from alignuser_jax.recommenders.models.lightgcn import LightGCN
from alignuser_jax.recommenders.models.mf import MF
from alignuser_jax.recommenders.models.multvae import MultVAE
from alignuser_jax.recommenders.models.settings import (
    LightGCNSettings,
    MFSettings,
    MultVAESettings,
)

__all__ = [
    "ALS",
    "Check",
    "ContractReport",
    "Degraded",
    "HeldOutHits",
    "HeldOutSplits",
    "HttpConfig",
    "LightGCN",
    "LightGCNSettings",
    "MF",
    "MFSettings",
    "MultVAE",
    "MultVAESettings",
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
