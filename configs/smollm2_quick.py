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

Measured on two cores (AMD EPYC, AVX2): shards 71 s, training 31 s a step (24 steps: 740 s,
with the held-out losses), the two recommenders 34 s, 41 s to compile the engine and .5 pages a
second in the simulation. By these figures the way to the A/B table takes 17 minutes; it was not
run to the end with today's 16 steps and 24 agents. `evaluate` comes on top.

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
