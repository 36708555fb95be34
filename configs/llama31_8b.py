"""`configs/qwen3_8b.py` on Llama-3.1-8B, one of the other backbones of the paper (Table 8).

    alignuser train --config=configs/llama31_8b.py \
        --dataset=runs/ml-1m/data --run=runs/llama31_8b --stage=align

Which variant the paper used is not known: the instruction-tuned one is a default of this
project. Everything but the backbone is as there.
The hub asks for an accepted licence and a token (HF_TOKEN); a folder needs neither:
--set=backbone=/models/NAME.

Hardware: an accelerator with 80 GB or more. Time and results: not measured here yet.
"""

from dataclasses import replace

from configs.qwen3_8b import experiment as qwen3_8b

experiment = replace(
    qwen3_8b,
    name="llama31_8b",
    note="Llama-3.1-8B for ratings and next pages; reflections as the shards say",
    backbone="meta-llama/Llama-3.1-8B-Instruct",
)
