"""`configs/qwen3_8b.py` on Qwen2.5-7B, one of the other backbones of the paper (Table 8).

    alignuser train --config=configs/qwen25_7b.py \
        --dataset=runs/ml-1m/data --run=runs/qwen25_7b --stage=align

Which variant the paper used is not known: the instruction-tuned one is a default of this
project. Everything but the backbone is as there.

Hardware: an accelerator with 80 GB or more. Time and results: not measured here yet.
"""

from dataclasses import replace

from configs.qwen3_8b import experiment as qwen3_8b

experiment = replace(
    qwen3_8b,
    name="qwen25_7b",
    note="Qwen2.5-7B for ratings and next pages; reflections as the shards say",
    backbone="Qwen/Qwen2.5-7B-Instruct",
)
