"""`configs/small.py` under another exposure assumption: filler uniform and by popularity only.

    alignuser train --config=configs/small_uniform.py --dataset=... --run=... --stage=pretrain

and the other commands of `configs/small.py`, with this file and another --run folder. What
fills a page decides who wins (docs/evidence.md), so verdicts are held against both.

Hardware and time: as there. Expect the verdicts of `small`, with other figures (README, "Which
recommender", the column "verdict, uniform").
"""

from dataclasses import replace

from alignuser_jax.alignment import ExposureMixture
from configs.small import experiment as small

# no filler from a model's top: the mixture of `small` has a third of it
mixture = ExposureMixture(uniform=0.5, popularity=0.5, model_top=0.0)
shards = small.pretrain_shards

experiment = replace(
    small,
    name="small, uniform and popular filler",
    pretrain_shards=replace(shards, visits=replace(shards.visits, exposure=mixture)),
    align_shards=replace(
        small.align_shards, visits=replace(small.align_shards.visits, exposure=mixture)
    ),
)
