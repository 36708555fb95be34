"""Build AdamW or Adafactor with warm-up, schedule and clipping (docs/method.md section 9)."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from alignuser_jax.training.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    It rises linearly from 0 to the peak, then follows the schedule down to `final_lr_ratio` of
    the peak at the last step ("constant" stays at the peak).
    """
    warmup = min(math.ceil(config.warmup_ratio * config.steps), config.steps - 1)
    peak, last = config.peak_learning_rate, config.peak_learning_rate * config.final_lr_ratio
    left = config.steps - warmup
    after = {
        "cosine": optax.cosine_decay_schedule(peak, left, config.final_lr_ratio),
        "linear": optax.linear_schedule(peak, last, left),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    rise = optax.linear_schedule(0.0, peak, max(warmup, 1))
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def decayed(params: Any) -> Any:
    """Return a tree of flags: True where weight decay applies, all but norms and biases."""

    def by_name(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path).lower()
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(by_name, params)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Return the optimizer of a training, with clipping by the global norm."""
    rate = learning_rate(config)
    if config.optimizer == "adafactor":
        chosen = optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,  # LoRA's B starts at 0 and would stay there
            weight_decay_rate=config.weight_decay or None,
            weight_decay_mask=decayed,
        )
    else:
        chosen = optax.adamw(
            rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=decayed
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), chosen)
