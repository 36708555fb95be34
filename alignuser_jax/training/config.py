"""`TrainConfig`: everything that decides what training computes (METHOD.md sections 9, 16)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

ATTENTION = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}
"""The attention back end of each platform."""
PACKS = ("xla", "splash")
"""Those that keep the segments of a packed row apart."""


@dataclass(frozen=True)
class TrainConfig:
    """Defaults are the paper's where it gives a value (batch 16) and METHOD.md's otherwise.

    `mix`: rows of each task per batch, as integer shares (`{"world_model": 1, "reflection": 1}`
    with `batch_size=16` is 8 + 8); empty means one share for every task of the shards.
    `task_weights`: the lambdas of the loss; a task that is not named has 1.
    `normalize`: "task_tokens" divides a task's loss by its summed token weights,
    "task_examples" weighs a token by 1 / (summed weights of its example) first.
    `trainable`: "lora" updates the adapter only, "full" every parameter of a decoder without
    one. `learning_rate` None: 1e-4 for "lora", 1e-5 for "full".
    `seq_len`: tokens of an example, at most.
    `packing`: several examples in a row; None packs where the attention back end keeps them
    apart. Without it a batch has one of `length_buckets` row lengths: `seq_len`, half of it, a
    quarter, ...; each is compiled once.
    `row_len`: tokens of a packed row, None for `seq_len`. Longer rows are fuller, and cost
    attention nothing more, since no token looks back farther than `seq_len`. Where rows are not
    packed it has no part.
    `attention`: "auto" is `ATTENTION`'s for the platform, where that takes the model (`on`).
    `loss_chunk`: positions whose logits exist at the same time.
    `spike_nats`: a loss so far above the median of the last 64 steps stops the run (0: never);
    it counts per unit of the summed lambdas.
    `keep_best`: so many checkpoints of the lowest held-out loss stay beside the last ones.
    `result`: which step's weights are the run's result; "best" is that of the lowest held-out
    loss (needs `keep_best`).
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
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
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
        for name, known in (
            ("trainable", ("lora", "full")),
            ("normalize", ("task_tokens", "task_examples")),
            ("optimizer", ("adamw", "adafactor")),
            ("schedule", ("cosine", "linear", "constant")),
            ("attention", ("auto", *ATTENTION.values())),
            ("result", ("last", "best")),
        ):
            check(getattr(self, name) in known, name, " or ".join(map(repr, known)))
        check(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            f"a divisor of batch_size={self.batch_size}",
        )
        check(all(n >= 1 for n in self.mix.values()), "mix", "shares of 1 or more")
        check(all(w >= 0 for w in self.task_weights.values()), "task_weights", "weights >= 0")
        check(self.action_weight >= 0, "action_weight", "0 or more")
        check(0 <= self.warmup_ratio <= 1, "warmup_ratio", "a share of the steps, 0 to 1")
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
        """These settings with `attention` and `packing` decided for "cpu", "gpu" or "tpu".

        "auto" is "xla" where the platform's own back end does not take the shape or type.
        """
        attention, packing = self.attention, self.packing
        if attention == "auto":
            attention = ATTENTION[platform]
            if (
                (
                    attention == "cudnn"
                    and (dtype == "float32" or head_dim % 8 or head_dim > 256)
                )
                or (attention == "cudnn" and packing)
                or (attention == "splash" and (self.longest_row % 128 or head_dim % 64))
            ):
                attention = "xla"
        packing = attention in PACKS if packing is None else packing
        row_len = self.row_len if packing else None
        return replace(self, attention=attention, packing=packing, row_len=row_len)

    @property
    def decided(self) -> bool:
        """Whether attention and packing are."""
        return self.attention != "auto" and self.packing is not None

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of rows, ascending: one where examples are packed."""
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
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-4 if self.trainable == "lora" else 1e-5

    def quotas(self, available: Mapping[str, int]) -> dict[str, int]:
        """Rows per batch of each task, by name; `available` is the shards' count per task.

        Raises `ValueError` for a task without examples and for shares that do not divide
        `batch_size`.
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
            raise ValueError(f"task_weights names {unknown}, trained are {sorted(shares)}")
        total = sum(shares.values())
        if self.batch_size % total:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of {total}, the sum of the"
                f" shares {shares}: change one of them"
            )
        return {task: self.batch_size * shares[task] // total for task in sorted(shares)}
