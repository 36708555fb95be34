"""MovieLens-1M on 2 CPU cores in 20 minutes: SmolLM2-135M-Instruct, a little LoRA, an A/B test.

    alignuser fetch-weights smollm2
    alignuser import-logs --format=movielens --input=ML-1M --output=runs/ml-1m/data
    alignuser build-shards WHERE
    alignuser train WHERE
    alignuser fit-recommender --kind=popularity --dataset=runs/ml-1m/data \
        --output=runs/ml-1m/popularity
    alignuser fit-recommender --kind=als --dataset=runs/ml-1m/data --output=runs/ml-1m/als
    alignuser simulate WHERE --out=runs/ml-1m/quick-ab \
        --arms=popularity=runs/ml-1m/popularity,als=runs/ml-1m/als
    alignuser ab-test --simulations=runs/ml-1m/quick-ab --control=popularity
    alignuser evaluate WHERE --agents=60

with WHERE: --config=smollm2_quick --dataset=runs/ml-1m/data --run=runs/ml-1m/smollm2-quick

Measured from a fresh clone on two cores (Intel Xeon, AVX-512, commit 76b4d65): fetch 1 s,
import 3 s, shards 38 s, train 296 s, recommenders 11 and 15 s, simulate 327 s (48 sessions of 5
pages), ab-test 2 s: **12 minutes from data to the A/B table**; `evaluate --agents=24 --cap=10`
357 s on top. A step of training took 31 s on an AMD EPYC with AVX2, where it took 18. The
tables that came out are in docs/smollm2.md: "cannot tell" in all four rows, as few agents and
little training deserve.

The backbone is pretrained and small; the adapter sees some hundred ratings. It shows that the
way from logs to a verdict works with a pretrained model, on a laptop. `configs/smollm2.py` is
the same for a night.
"""

from dataclasses import replace

from configs.smollm2 import experiment as night

experiment = replace(
    night,
    name="smollm2-quick",
    note="SmolLM2-135M-Instruct, trained for minutes; template reflections",
    align=replace(
        night.align,
        steps=16,
        batch_size=4,
        accumulation=2,
        mix={"rating": 1, "visit": 1, "world_model": 1, "reflection": 1},
        warmup_ratio=0.1,
    ),
    align_shards=replace(
        night.align_shards,
        limits={"world_model": 300, "reflection": 300, "visit": 600, "rating": 600},
    ),
    agents=24,
)
