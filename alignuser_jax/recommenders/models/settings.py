"""The settings of MF, LightGCN and MultVAE, checked when they are made.

Dimensions, the cap of the KL weight, batch size, learning rate, L2 weight, patience and seed
are Agent4Rec's (docs/method.md section 2.1), unless a field says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AT_LEAST_ONE = ("factors", "latent", "hidden", "layers", "batch_size", "epochs", "patience")
POSITIVE = ("learning_rate",)
NOT_NEGATIVE = ("l2", "kl_cap", "kl_epochs")


@dataclass(frozen=True)
class MFSettings:
    """Settings of `MF`.

    Attributes:
        factors: dimension of the vectors.
        batch_size: pairs of user and item in one step.
        learning_rate: of Adam.
        l2: weight of the squared parameters in the loss.
        epochs: most passes over the log.
        patience: epochs without a better validation nDCG@20 after which training stops.
        seed: of the initial parameters and of everything that is drawn in training.
    """

    factors: int = 64
    batch_size: int = 2048
    learning_rate: float = 5e-4
    l2: float = 1e-5
    epochs: int = 500
    patience: int = 20
    seed: int = 101

    def __post_init__(self) -> None:
        check_ranges("MF", self)


@dataclass(frozen=True)
class LightGCNSettings:
    """Settings of `LightGCN`: the fields of `MFSettings`, and one more.

    Attributes:
        layers: steps of propagation over the graph of interactions.
    """

    factors: int = 64
    layers: int = 2
    batch_size: int = 2048
    learning_rate: float = 5e-4
    l2: float = 1e-5
    epochs: int = 500
    patience: int = 20
    seed: int = 101

    def __post_init__(self) -> None:
        check_ranges("LightGCN", self)


@dataclass(frozen=True)
class MultVAESettings:
    """Settings of `MultVAE`: its own fields, and those of `MFSettings` but `factors`.

    Attributes:
        latent: dimension of the code.
        hidden: width of the two hidden layers.
        dropout: share of the input that is dropped in training; Liang et al.'s value.
        kl_cap: largest weight of the KL term.
        kl_epochs: epochs over which that weight rises from 0. Liang et al. let it rise over
            200,000 steps, which a small log never makes (DEFAULT).
        batch_size: users in one step. Agent4Rec's 2,048 make three steps an epoch of
            MovieLens-1M, so it is 256 here (DEFAULT).
    """

    latent: int = 200
    hidden: int = 600
    dropout: float = 0.5
    kl_cap: float = 0.2
    kl_epochs: float = 50
    batch_size: int = 256
    learning_rate: float = 5e-4
    l2: float = 1e-5
    epochs: int = 500
    patience: int = 20
    seed: int = 101

    def __post_init__(self) -> None:
        check_ranges("MultVAE", self)


def check_ranges(model: str, settings: DataclassInstance) -> None:
    """Raise `ValueError` if a setting is out of its range, naming the first one that is."""
    for field in fields(settings):
        name, value = field.name, getattr(settings, field.name)
        if name in AT_LEAST_ONE and not 1 <= value < inf:
            raise ValueError(f"{model} needs {name} >= 1, got {value}")
        if name in POSITIVE and not 0 < value < inf:
            raise ValueError(f"{model} needs {name} > 0, got {value}")
        if name in NOT_NEGATIVE and not 0 <= value < inf:
            raise ValueError(f"{model} needs {name} >= 0, got {value}")
        if name == "dropout" and not 0 <= value < 1:
            raise ValueError(f"{model} needs 0 <= dropout < 1, got {value}")
