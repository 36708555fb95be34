"""`TrainConfig`: everything that decides what is learned (docs/method.md sections 9 and 16)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Implementation = Literal["auto", "xla", "cudnn", "splash"]

ATTENTION: Mapping[str, Implementation] = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}
"""The attention implementation of each platform."""

PACKS = ("xla", "splash")
"""The implementations that keep the segments of a packed row apart."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run.

    Defaults are the paper's where it gives a value (batch 16), and docs/method.md's otherwise.

    Attributes:
        steps: Optimizer steps.
        trainable: "lora" updates the adapter only, "full" every parameter of a decoder without
            an adapter.
        batch_size: Rows of a step, over all devices and micro-batches.
        accumulation: Micro-batches that a step is cut into, to save memory.
        seq_len: Longest example, in tokens.
        packing: Several examples in a row. None packs if the attention implementation keeps
            them apart. Without packing a batch has one of `length_buckets` row lengths.
        row_len: Tokens of a packed row, None for `seq_len`. Longer rows are fuller, and cost
            attention nothing more, since no token looks back farther than `seq_len`. Without
            packing it has no effect.
        length_buckets: Number of row lengths without packing: `seq_len`, half of it, a
            quarter, ...; each is compiled once.
        mix: Rows of each task per batch, as integer shares (`{"world_model": 1, "reflection":
            1}` with `batch_size=16` is 8 + 8); empty is one share for every task of the shards.
        task_weights: The lambdas of the loss; a task that is not named has 1.
        action_weight: Weight of the tokens of an action, relative to other trained tokens.
        first_reply_weight: Weight of the first of several replies of a conversation, relative
            to the later ones, which see what the earlier ones were (a DEFAULT of this project).
        normalize: "task_tokens" divides a task's loss by its summed token weights;
            "task_examples" first weighs a token by 1 / (summed weights of its example).
        optimizer: "adamw" or "adafactor".
        schedule: Learning rate after the warm-up: "cosine", "linear" or "constant".
        learning_rate: Peak; None is 1e-4 for "lora" and 1e-5 for "full".
        warmup_ratio: Share of the steps in which the rate rises to the peak; of w such steps
            the first has 1 / w of it.
        final_lr_ratio: Rate that the schedule reaches one step after the last, as a share of
            the peak.
        b1: AdamW's decay of the first moment.
        b2: AdamW's decay of the second moment.
        weight_decay: Decay of all weights but norms and biases.
        clip_norm: Largest global norm of the gradient.
        remat: What the backward pass keeps: "none", "dots" or "full" (`model.decoder.REMAT`).
        attention: "xla", "cudnn", "splash"; "auto" is `ATTENTION`'s for the platform, if that
            takes the model (`on`).
        loss_chunk: Positions whose logits exist at the same time.
        seed: Names the order of the data and the dropout masks.
        spike_nats: A loss so far above the median of the last 64 steps stops the run (0:
            never); it counts per unit of the summed lambdas.
        eval_every: Steps between held-out losses; 0 measures at both ends only.
        eval_batches: At most so many batches per task are measured; None is all.
        save_every: Steps between checkpoints.
        keep_checkpoints: How many of the last checkpoints stay.
        keep_best: How many checkpoints of the lowest held-out loss stay beside them.
        result: Which step's weights are the result: the "last", or the "best", which has the
            lowest held-out loss (needs `keep_best`).
        log_every: Steps between printed lines.
        data_threads: Threads that read and tokenize.

    Example:
        >>> config = TrainConfig(steps=1000, mix={"world_model": 1, "reflection": 1})
        >>> config.quotas({"world_model": 500, "reflection": 80})
        {'reflection': 8, 'world_model': 8}
        >>> config.on("cpu").attention
        'xla'
    """

    steps: int
    trainable: Literal["lora", "full"] = "lora"
    batch_size: int = 16
    accumulation: int = 1
    seq_len: int = 512
    packing: bool | None = None
    row_len: int | None = None
    length_buckets: int = 4
    mix: Mapping[str, int] = field(default_factory=dict)
    task_weights: Mapping[str, float] = field(default_factory=dict)
    action_weight: float = 1.0
    first_reply_weight: float = 1.0
    normalize: Literal["task_tokens", "task_examples"] = "task_tokens"
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    learning_rate: float | None = None
    warmup_ratio: float = 0.03
    final_lr_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    remat: str = "none"
    attention: Implementation = "auto"
    loss_chunk: int = 512
    seed: int = 0
    spike_nats: float = 5.0
    eval_every: int = 0
    eval_batches: int | None = None
    save_every: int = 500
    keep_checkpoints: int = 2
    keep_best: int = 0
    result: Literal["last", "best"] = "last"
    log_every: int = 10
    data_threads: int = 4

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected {expected}")

        for name in (
            *("steps", "batch_size", "accumulation", "seq_len", "loss_chunk", "length_buckets"),
            *("save_every", "keep_checkpoints", "log_every", "data_threads"),
        ):
            check(getattr(self, name) >= 1, name, "1 or more")
        for name, choices in (
            ("trainable", ("lora", "full")),
            ("normalize", ("task_tokens", "task_examples")),
            ("optimizer", ("adamw", "adafactor")),
            ("schedule", ("cosine", "linear", "constant")),
            ("attention", ("auto", *ATTENTION.values())),
            ("result", ("last", "best")),
        ):
            check(getattr(self, name) in choices, name, " or ".join(map(repr, choices)))
        check(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            f"a divisor of batch_size={self.batch_size}",
        )
        check(all(n >= 1 for n in self.mix.values()), "mix", "shares of 1 or more")
        check(all(w >= 0 for w in self.task_weights.values()), "task_weights", "weights >= 0")
        check(self.action_weight >= 0, "action_weight", "0 or more")
        check(0 < self.first_reply_weight < math.inf, "first_reply_weight", "more than 0")
        check(0 <= self.warmup_ratio <= 1, "warmup_ratio", "a share of the steps, 0 to 1")
        rate = self.learning_rate
        check(rate is None or 0 <= rate < math.inf, "learning_rate", "None, 0 or more")
        check(0 <= self.final_lr_ratio < math.inf, "final_lr_ratio", "0 or more")
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, name, "0 to below 1")
        check(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more")
        check(self.clip_norm > 0, "clip_norm", "more than 0")
        check(self.remat in ("none", "dots", "full"), "remat", "'none', 'dots' or 'full'")
        batches = self.eval_batches
        check(batches is None or batches >= 1, "eval_batches", "None (all) or 1 or more")
        check(self.eval_every >= 0, "eval_every", "0 (only at both ends) or more")
        check(self.spike_nats >= 0, "spike_nats", "0 (never stop) or more")
        check(self.keep_best >= (self.result == "best"), "keep_best", "1 or more for 'best'")
        if self.row_len is not None:
            check(self.row_len >= self.seq_len, "row_len", f"seq_len={self.seq_len} or more")
            check(self.packing is not False, "row_len", "None, since packing=False")
        if self.packing and self.attention not in ("auto", *PACKS):
            raise ValueError(
                f"packing=True, but attention={self.attention!r} would look across the examples"
                f" of a row: give packing=False (length buckets), or one of {PACKS}"
            )

    def on(self, platform: str, dtype: str = "bfloat16", head_dim: int = 128) -> TrainConfig:
        """Return the settings with `attention` and `packing` decided.

        "auto" becomes "xla" if the platform's own implementation does not take the shape or
        the type.

        Args:
            platform: "cpu", "gpu" or "tpu".
            dtype: Type of activations.
            head_dim: Size of an attention head.
        """
        attention, packing = self.attention, self.packing
        if attention == "auto":
            attention = ATTENTION[platform]
            no_cudnn = dtype == "float32" or head_dim % 8 or head_dim > 256 or packing
            no_splash = self.longest_row % 128 or head_dim % 64
            if {"cudnn": no_cudnn, "splash": no_splash}.get(attention):
                attention = "xla"
        packing = attention in PACKS if packing is None else packing
        row_len = self.row_len if packing else None
        return replace(self, attention=attention, packing=packing, row_len=row_len)

    @property
    def decided(self) -> bool:
        """Whether attention and packing are decided (`on`)."""
        return self.attention != "auto" and self.packing is not None

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that rows can have, ascending; one if examples are packed."""
        if self.packing:
            return (self.longest_row,)
        halved = {-(-self.seq_len // 2**n) for n in range(self.length_buckets)}
        return tuple(sorted(halved))

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row that a batch can have."""
        return self.row_len or self.seq_len

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate after the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if self.trainable == "lora" else 1e-5

    def quotas(self, available: Mapping[str, int]) -> dict[str, int]:
        """Return rows per batch of each task, sorted by name.

        Args:
            available: Number of examples of each task in the shards.

        Raises:
            ValueError: If a task has no example, `task_weights` names a task that is not
                trained, or the shares do not divide `batch_size`.
        """
        shares = dict(self.mix) or {task: 1 for task, count in available.items() if count}
        missing = [task for task in shares if not available.get(task)]
        if missing or not shares:
            raise ValueError(
                f"the shards have no example of {missing or 'any task'}; they have"
                f" {dict(available)}: change mix or build shards with those tasks"
            )
        unknown = sorted(set(self.task_weights) - set(shares))
        if unknown:
            raise ValueError(
                f"task_weights names {unknown}, but the trained tasks are {sorted(shares)}"
            )
        total = sum(shares.values())
        if self.batch_size % total:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of {total}, the sum of the"
                f" shares {shares}: change one of them"
            )
        return {task: self.batch_size * shares[task] // total for task in sorted(shares)}
