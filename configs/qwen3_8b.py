"""The paper's backbone: Qwen3-8B, LoRA on L_WM + L_CR, batch 16, K = 4 (METHOD.md section 16).

    alignuser train --config=configs/qwen3_8b.py --dataset=runs/ml-1m/data --run=runs/qwen \
        --stage=align

The weights come from the hub once per host, or from a folder: --set=backbone=/models/Qwen3-8B.
Hardware: an accelerator with 80 GB or more. It cannot run on a CPU; the backbone is built
abstractly in tests/model/files/test_published.py. No number was measured with it yet.
"""

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment import BuildConfig
from alignuser_jax.model.config import LoraConfig
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.world import SiteConfig

SEQUENCE = 4096

site = SiteConfig(summary="both", summary_chars=240)
session = SessionConfig(
    history_items=20,
    context_tokens=SEQUENCE,
    page_reserve_tokens=768,
    reasoning_tokens=256,
    temperature=0.7,
    top_p=0.8,
)

experiment = Experiment(
    name="qwen3_8b",
    note="Qwen3-8B with LoRA; reflections by the base model or a template, as the shards say",
    backbone="Qwen/Qwen3-8B",
    dtype="bfloat16",
    align=TrainConfig(
        steps=8000,
        trainable="lora",
        batch_size=16,
        seq_len=SEQUENCE,
        mix={"world_model": 1, "reflection": 1},
        remat="full",
        save_every=200,
        eval_every=500,
    ),
    align_shards=BuildConfig(tasks=("world_model", "reflection"), site=site, session=session),
    lora=LoraConfig(rank=16, alpha=32),
    # 1,024 pages take 39 GB beside 16 GB of weights; all 128 rows at full length would take 77
    engine=EngineConfig(slots=128, context=SEQUENCE, chunk=256, group=128, pages=1024),
    agents=1000,
    seed=0,
)
