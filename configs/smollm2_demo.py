"""The demo's SYNTHETIC log on a pretrained backbone: SmolLM2-135M-Instruct, a little LoRA.

    alignuser fetch-weights smollm2
    alignuser demo --backbone=smollm2

It shows that the demo's way works with a pretrained model, on 2 CPU cores. The titles of the
generated catalogue mean nothing to the model, so what it knows of films is of no use here;
`configs/smollm2_quick.py` is the same on MovieLens-1M.

Some 13 minutes on two cores (Intel Xeon, AVX-512): training 2, simulation of 360 pages 8 to 9.
Do not believe its verdicts: the same recommender against itself came out as "better" (likes per
exposed +0.085 [+0.021, +0.150], p .042) with its 24 agents and 12 steps at the seed that it
has.
"""

from dataclasses import replace

from configs.smollm2_quick import experiment as quick

experiment = replace(
    quick,
    name="smollm2-demo",
    note="SYNTHETIC data; a small pretrained model; template reflections",
    align=replace(quick.align, steps=12),
    align_shards=replace(
        quick.align_shards,
        limits={"world_model": 100, "reflection": 100, "visit": 300, "rating": 300},
        validation_share=0.1,
    ),
    agents=24,
)
