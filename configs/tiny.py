"""The demo: a tiny decoder trained from scratch on a SYNTHETIC log, then aligned with LoRA.

    alignuser demo

Hardware: 2 CPU cores, under 3 minutes; 69 seconds at commit be1cf09, 112 on cores without
AVX-512 (c1bb890). Expect the ALS arm to beat the random arm on likes per exposed (+0.064
[+0.043, +0.085] at 57d5909) and on the mean rating (+0.382 [+0.297, +0.467]) with intervals
that exclude 0, and the A/A comparison to say "cannot tell". Another CPU rounds otherwise and
gives other digits. The model has no pretrained backbone: the demo shows that the machinery
works, nothing more.
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
    recall=True,  # a tiny model reads little from titles: it recalls numbers (memory/recall.py)
    context_tokens=SEQUENCE,
    page_reserve_tokens=96,  # replies to one page of four items
)

experiment = Experiment(
    name="tiny",
    note="SYNTHETIC data; a tiny model trained from scratch; template reflections",
    decoder=DecoderConfig(
        vocab_size=1024,
        hidden_size=96,
        intermediate_size=256,
        num_layers=2,  # with one layer the demo showed no difference at all
        num_heads=2,
        num_kv_heads=2,
        head_dim=64,  # QK-norm bounds the logits: narrow heads could not attend sharply
        rope_theta=1000.0,  # conversations are a few hundred tokens long
    ),
    vocabulary=1024,
    pretrain=TrainConfig(
        steps=1000,  # at 600 the demo did not always learn what its users rate highly
        trainable="full",
        batch_size=4,
        seq_len=SEQUENCE,
        mix={"visit": 3, "world_model": 1},  # visits teach choices and ratings
        task_weights={"world_model": 0.25},  # exact next items cannot be predicted anyway
        learning_rate=4e-3,  # high, as for any model this small; set by hand at seed 0
        b2=0.98,  # 0.999 would average over the whole run
        remat="full",  # costs no visible time on a CPU, and takes a third of the memory
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
        rollouts=RolloutConfig(episodes=60),  # few: 1,500 examples are the limit anyway
        site=site,
        session=session,
    ),
    align=TrainConfig(
        steps=30,  # enough to see the stage work, within the demo's 3 minutes
        trainable="lora",
        batch_size=8,
        seq_len=SEQUENCE,
        mix={"world_model": 1, "reflection": 1},  # docs/method.md section 9
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
    engine=EngineConfig(slots=64, context=640, chunk=32),  # 416 and the replies to a page
    agents=60,
    seed=0,
)
