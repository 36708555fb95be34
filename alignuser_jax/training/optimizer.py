"""Build AdamW or Adafactor with warm-up, schedule and clipping (docs/method.md section 9)."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from alignuser_jax.training.config import TrainConfig


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Over w steps of warm-up it rises by peak / w a step, from peak / w at the first one to the
    peak at the last, so that no step is without effect. Then it follows the schedule, which
    would reach `final_lr_ratio` of the peak one step after the last ("constant" stays at the
    peak).
    """
    peak, last = config.peak_learning_rate, config.peak_learning_rate * config.final_lr_ratio
    # Steps of the rise before the peak: a warm-up of one step is at the peak already.
    rising = max(warmup_steps(config) - 1, 0)
    left = config.steps - rising
    after = {
        "cosine": optax.cosine_decay_schedule(peak, left, config.final_lr_ratio),
        "linear": optax.linear_schedule(peak, last, left),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if not rising:
        return after
    rise = optax.linear_schedule(peak / (rising + 1), peak, rising)
    return optax.join_schedules([rise, after], [rising])


def warmup_steps(config: TrainConfig) -> int:
    """Return the number of steps of the warm-up: at most all but the last."""
    return min(math.ceil(config.warmup_ratio * config.steps), config.steps - 1)


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
