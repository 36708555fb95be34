"""The demo: a tiny decoder trained from scratch on a SYNTHETIC log, then aligned with LoRA.

    alignuser demo

Hardware: 2 CPU cores, under 3 minutes. Expect the ALS arm to beat the random arm on likes per
exposed and mean rating with intervals that exclude 0, and the A/A comparison to say "cannot
tell". The model has no pretrained backbone: it shows that the machinery works, nothing more.
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
    name="tiny",
    note="SYNTHETIC data; a tiny model trained from scratch; template reflections",
    decoder=DecoderConfig(
        vocab_size=1024,
        hidden_size=96,
        intermediate_size=256,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=64,
        rope_theta=1000.0,
    ),
    vocabulary=1024,
    pretrain=TrainConfig(
        steps=1000,
        trainable="full",
        batch_size=4,
        seq_len=SEQUENCE,
        mix={"visit": 3, "world_model": 1},
        task_weights={"world_model": 0.25},
        learning_rate=4e-3,
        b2=0.98,
        remat="full",
        warmup_ratio=0.1,
        final_lr_ratio=0.05,
        save_every=300,
        log_every=40,
        eval_batches=8,
    ),
    pretrain_shards=BuildConfig(
        tasks=("world_model", "visit"),
        limits={"world_model": 1500},
        validation_share=0.1,
        rollouts=RolloutConfig(episodes=60),
        site=site,
        session=session,
    ),
    align=TrainConfig(
        steps=30,
        trainable="lora",
        batch_size=8,
        seq_len=SEQUENCE,
        mix={"world_model": 1, "reflection": 1},
        learning_rate=2e-3,
        save_every=30,
        remat="full",
        eval_batches=2,
    ),
    align_shards=BuildConfig(
        tasks=("world_model", "reflection"),
        limits={"world_model": 600, "reflection": 1200},
        validation_share=0.1,
        rollouts=RolloutConfig(episodes=30),
        site=site,
        session=session,
    ),
    lora=LoraConfig(rank=8, alpha=16),
    engine=EngineConfig(slots=64, context=640, chunk=32),
    agents=60,
    seed=0,
)
