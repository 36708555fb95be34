"""The paper's backbone: Qwen3-8B, LoRA on L_WM + L_CR, batch 16 and K = 4.

    alignuser train --config=configs/qwen3_8b.py --dataset=runs/ml-1m/data --run=runs/qwen \
        --stage=align

The settings are those of docs/method.md section 16. The weights come from the hub once per
host, or from a folder: --set=backbone=/models/Qwen3-8B.

Hardware: an accelerator with 80 GB or more; it cannot run on a CPU. `--dry_run` says what it
needs on a mesh (launch/README.md). Time and results: not measured here yet. The paper reports
51.47 % exact next actions on OPeRA with this backbone (docs/method.md section 12.5). The
backbone is built abstractly in tests/model/files/test_published.py.
"""

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment import BuildConfig
from alignuser_jax.model.config import LoraConfig
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.world import SiteConfig

SEQUENCE = 4096
"""DEFAULT for recommendation sites (docs/method.md section 9)."""

site = SiteConfig(summary="both", summary_chars=240)  # a pretrained model reads descriptions
session = SessionConfig(
    history_items=20,  # DEFAULT, docs/method.md section 5
    context_tokens=SEQUENCE,
    page_reserve_tokens=768,  # a page of long lines and its replies, each with reasoning
    reasoning_tokens=256,
    temperature=0.7,  # DEFAULT for simulations, docs/method.md section 10
    top_p=0.8,  # the same
)

experiment = Experiment(
    name="qwen3_8b",
    note="Qwen3-8B; reflections by the base model or a template, as the shards say",
    backbone="Qwen/Qwen3-8B",
    dtype="bfloat16",
    align=TrainConfig(
        steps=8000,  # 8 epochs (the paper's) of 16,000 examples: fit it to your shards
        trainable="lora",
        batch_size=16,  # the paper's
        seq_len=SEQUENCE,
        mix={"world_model": 1, "reflection": 1},  # DEFAULT, docs/method.md section 9
        remat="full",  # activations of 36 layers and 4,096 tokens would not fit
        save_every=200,
        eval_every=500,
    ),
    align_shards=BuildConfig(tasks=("world_model", "reflection"), site=site, session=session),
    lora=LoraConfig(rank=16, alpha=32),  # DEFAULT: 16 to 64, docs/method.md section 9
    # 1,024 pages take 39 GB beside 16 GB of weights; all 128 rows at full length would take 77
    engine=EngineConfig(slots=128, context=SEQUENCE, chunk=256, group=128, pages=1024),
    agents=1000,  # the paper's preference test (docs/method.md section 12.1)
    seed=0,
)
