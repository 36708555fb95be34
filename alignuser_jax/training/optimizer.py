"""AdamW with linear warm-up, cosine decay and clipping by global norm (METHOD.md section 9)."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from alignuser_jax.training.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Step -> rate: linear from 0 to the peak, then a cosine to `final_lr_ratio` of it."""
    warmup = min(math.ceil(config.warmup_ratio * config.steps), config.steps - 1)
    peak = config.peak_learning_rate
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else peak,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=config.steps,
        end_value=peak * config.final_lr_ratio,
    )


def decayed(params: Any) -> Any:
    """True for leaves that weight decay applies to: all but norms and biases, by name."""

    def by_name(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path).lower()
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(by_name, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )
