"""MovieLens-1M on 2 CPU cores in a night: SmolLM2-135M-Instruct, LoRA on L_WM + L_CR.

    alignuser fetch-weights smollm2
    alignuser import-logs --format=movielens --input=ML-1M --output=runs/ml-1m/data
    alignuser build-shards WHERE
    alignuser train WHERE
    alignuser evaluate WHERE

with WHERE: --config=smollm2 --dataset=runs/ml-1m/data --run=runs/ml-1m/smollm2

600 steps are 4.9 M token positions, 4.0 M of them filled: 3 hours at 400 tokens/s (AVX-512), 5
at 230 (AVX2); shards and `evaluate` come on top. It was run for an hour, with 128 steps: RMSE
of ratings .998 beside an item mean of 1.009, a user + item bias of .897 and 2.102 untrained;
preference .51 to .55 (docs/smollm2.md has the tables, the learning curve, and what binds). The
whole night has not been run.

The paper's two losses are beside two tasks of this project (DEFAULT): reconstructed visits and
ratings one after another. On a model of this size they give some fifteen answers to learn from
per 1,000 tokens, where a reflection gives one in 400.
"""

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment import BuildConfig, RolloutConfig
from alignuser_jax.model.config import LoraConfig
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.world import SiteConfig

SEQUENCE = 1024
"""Tokens of a training example, and of a conversation before it starts anew: the opening takes
a quarter of it, and five pages with their answers the rest."""

site = SiteConfig(max_pages=5)  # the horizon of an A/B session (runs/experiment.py)
session = SessionConfig(
    history_items=8,
    memory_items=8,
    recall=True,  # a model of this size knows few films: it recalls numbers (memory/recall.py)
    context_tokens=SEQUENCE,
    page_reserve_tokens=160,  # replies to one page of four items
)

experiment = Experiment(
    name="smollm2",
    note="SmolLM2-135M-Instruct; template reflections; reconstructed visits",
    backbone="smollm2",
    align=TrainConfig(
        steps=600,
        trainable="lora",
        batch_size=8,
        accumulation=4,
        seq_len=SEQUENCE,
        # answers to learn from, per 1,000 tokens: rating 12, visit 18, reflection 3
        mix={"rating": 3, "visit": 3, "world_model": 1, "reflection": 1},
        task_weights={"world_model": 0.25},  # exact next items cannot be predicted anyway
        first_reply_weight=4.0,
        learning_rate=1e-3,
        b2=0.98,
        remat="none",
        loss_chunk=64,  # few positions are trained; only those get logits
        save_every=20,
        eval_every=100,
        eval_batches=8,
    ),
    align_shards=BuildConfig(
        tasks=("world_model", "reflection", "visit", "rating"),
        limits={"world_model": 4000, "reflection": 4000, "visit": 12000, "rating": 12000},
        ratings_per_user=60,
        visits_per_user=5,
        longest_run=16,
        validation_share=0.02,
        rollouts=RolloutConfig(episodes=300),
        site=site,
        session=session,
    ),
    lora=LoraConfig(rank=16, alpha=32, layers=10),  # 1.5 times as fast (docs/benchmarks.md)
    # 1,024 tokens and the replies to a page with four rated items
    engine=EngineConfig(slots=16, context=1280, chunk=32, cpu_engines=2),
    agents=1000,
    seed=0,
)
