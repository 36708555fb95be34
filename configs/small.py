"""MovieLens-1M on 2 CPU cores: 1.1 M parameters from scratch, then LoRA on L_WM + L_CR.

    alignuser import-logs --format=movielens --input=ML-1M --output=runs/ml-1m/data
    alignuser build-shards WHERE --stage=pretrain
    alignuser train WHERE --stage=pretrain              (about 30 minutes)
    alignuser build-shards WHERE --stage=align
    alignuser train WHERE --stage=align                 (about 5 minutes)
    alignuser evaluate WHERE

with WHERE: --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m/small

Expect an RMSE of the expected rating below user mean and item mean (README). There is no
pretrained backbone: the first stage trains every parameter on world-model text and
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

site = SiteConfig(max_pages=5)
session = SessionConfig(
    history_items=5,
    memory_items=4,
    recall=True,
    context_tokens=SEQUENCE,
    page_reserve_tokens=96,
)

experiment = Experiment(
    name="small",
    note="1.1 M parameters trained from scratch; template reflections; reconstructed visits",
    decoder=DecoderConfig(
        vocab_size=3072,
        hidden_size=136,
        intermediate_size=544,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        rope_theta=1000.0,
    ),
    vocabulary=3072,
    pretrain=TrainConfig(
        steps=4000,
        trainable="full",
        batch_size=8,
        seq_len=SEQUENCE,
        mix={"visit": 3, "world_model": 1},
        task_weights={"world_model": 0.25},
        learning_rate=3e-3,
        warmup_ratio=0.05,
        final_lr_ratio=0.02,
        b2=0.98,
        remat="full",
        save_every=100,
        eval_every=800,
        eval_batches=16,
    ),
    pretrain_shards=BuildConfig(
        tasks=("world_model", "visit"),
        limits={"world_model": 6000, "visit": 24000},
        visits_per_user=5,
        validation_share=0.02,
        hidden_mean_share=0.15,
        rollouts=RolloutConfig(episodes=300),
        site=site,
        session=session,
    ),
    align=TrainConfig(
        steps=300,
        trainable="lora",
        batch_size=16,
        seq_len=SEQUENCE,
        mix={"world_model": 1, "reflection": 1},
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
        ratings_per_user=4,
        validation_share=0.02,
        rollouts=RolloutConfig(episodes=300),
        site=site,
        session=session,
    ),
    lora=LoraConfig(rank=16, alpha=32),
    engine=EngineConfig(slots=64, context=704, chunk=32),
    agents=1000,
    seed=0,
)
