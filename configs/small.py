"""MovieLens-1M on 2 CPU cores: 1.1 M parameters from scratch, then LoRA on L_WM + L_CR.

    alignuser import-logs --format=movielens --input=ML-1M --output=runs/ml-1m/data
    alignuser build-shards WHERE --stage=pretrain
    alignuser train WHERE --stage=pretrain              (about 30 minutes)
    alignuser build-shards WHERE --stage=align
    alignuser train WHERE --stage=align                 (about 5 minutes)
    alignuser evaluate WHERE

with WHERE: --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m/small

Hardware: 2 CPU cores; the first stage took 68 minutes on one core that other work shared.
Expect an RMSE of the expected rating of 0.970 [0.948, 0.991] (11,329 test ratings of 1,000
users, commit 47cd9f9), below the user mean (1.077) and the item mean (1.000) and behind matrix
factorization (0.884). `launch/movielens_1m.sh` runs everything behind the README's tables.

There is no pretrained backbone: the first stage trains every parameter on world-model text and
reconstructed visits; the second is the method proper, as it would be on Qwen3-8B.
"""

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment import BuildConfig, RolloutConfig
from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.world import SiteConfig

SEQUENCE = 416
"""Tokens of a training example, and of a conversation before it starts anew: a persona, a short
history and the pages of a visit. Attention and memory on a CPU allow little more."""

site = SiteConfig(max_pages=5)  # the horizon of an A/B session (runs/experiment.py)
session = SessionConfig(
    history_items=5,  # what fits into 416 tokens beside a page
    memory_items=4,
    recall=True,  # a 1 M model reads little from titles: it recalls numbers (memory/recall.py)
    context_tokens=SEQUENCE,
    page_reserve_tokens=96,  # replies to one page of four items
)

experiment = Experiment(
    name="small",
    note="1.1 M parameters trained from scratch; template reflections; reconstructed visits",
    # 1.1 M parameters see 11.5 M tokens in 30 minutes on 2 cores (docs/evidence.md)
    decoder=DecoderConfig(
        vocab_size=3072,  # already more than a third of the parameters
        hidden_size=136,
        intermediate_size=544,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,  # QK-norm bounds the logits: narrow heads could not attend sharply
        rope_theta=1000.0,  # conversations are a few hundred tokens long
    ),
    vocabulary=3072,
    pretrain=TrainConfig(
        steps=4000,  # at 2,000 it did not always learn what to watch
        trainable="full",
        batch_size=8,
        seq_len=SEQUENCE,
        mix={"visit": 3, "world_model": 1},  # visits teach choices and ratings
        task_weights={"world_model": 0.25},  # exact next items cannot be predicted anyway
        learning_rate=3e-3,  # high, as for any model this small; set by hand
        warmup_ratio=0.05,
        final_lr_ratio=0.02,
        b2=0.98,  # 0.999 would average over a quarter of the run
        remat="full",  # costs no visible time on a CPU, and takes a third of the memory
        save_every=100,
        eval_every=800,
        eval_batches=16,
    ),
    pretrain_shards=BuildConfig(
        tasks=("world_model", "visit"),
        limits={"world_model": 6000, "visit": 24000},
        visits_per_user=5,  # the first ones: bulk raters have hundreds
        validation_share=0.02,
        hidden_mean_share=0.15,  # so that `simulate --noshow_means` shows pages of a known kind
        rollouts=RolloutConfig(episodes=300),
        site=site,
        session=session,
    ),
    # the third of three settings tried, chosen on held-out losses (README, "Ratings")
    align=TrainConfig(
        steps=300,
        trainable="lora",
        batch_size=16,  # the paper's
        seq_len=SEQUENCE,
        mix={"world_model": 1, "reflection": 1},  # docs/method.md section 9
        task_weights={"reflection": 0.25},
        learning_rate=3e-3,
        b2=0.98,
        remat="full",
        save_every=100,
        eval_batches=20,
    ),
    align_shards=BuildConfig(
        tasks=("world_model", "reflection"),
        limits={"world_model": 4000, "reflection": 12000},
        ratings_per_user=4,  # K = 4 reflections each: many users rather than many ratings
        validation_share=0.02,
        rollouts=RolloutConfig(episodes=300),
        site=site,
        session=session,
    ),
    lora=LoraConfig(rank=16, alpha=32),
    # 416 tokens and the replies to a page with four rated items
    engine=EngineConfig(slots=64, context=704, chunk=32),
    agents=1000,  # the paper's preference test (docs/method.md section 12.1)
    seed=0,
)
