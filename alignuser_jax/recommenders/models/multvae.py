"""MultVAE (Liang et al., 2018): a variational autoencoder with a multinomial likelihood.

It encodes the items of every request's live history, so it keeps no users. NumPy only; the
training is in `variational`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alignuser_jax.recommenders.base import ItemIndex
from alignuser_jax.recommenders.models.factors import top_slates
from alignuser_jax.recommenders.models.settings import MultVAESettings
from alignuser_jax.recommenders.models.trained import (
    FitPlan,
    Summary,
    TrainedRecommender,
    TrainingData,
)
from alignuser_jax.records import RecommendationRequest, Slate


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """The trained weights of MultVAE.

    Attributes:
        item_ids: items of the training log.
        counts: float32[n_items], interactions in training; the scores of a request that holds
            no known item.
        params: float32 weights `w1` to `w4` and biases `b1` to `b4`, as
            `variational.VAE.arrays` returns them.
    """

    item_ids: tuple[str, ...]
    counts: np.ndarray
    params: Mapping[str, np.ndarray]

    @cached_property
    def index(self) -> ItemIndex:
        """The index of `item_ids`."""
        return ItemIndex(self.item_ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, from which `from_arrays` makes the same again."""
        return {"item_ids": np.array(self.item_ids), "counts": self.counts, **self.params}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Autoencoder:
        """Return the model that `arrays` describes."""
        params = {name: a for name, a in arrays.items() if name not in ("item_ids", "counts")}
        return cls(tuple(arrays["item_ids"].tolist()), arrays["counts"], params)

    def logits(self, codes: np.ndarray) -> np.ndarray:
        """Return the decoded mean code of a user, float32[n_items].

        Args:
            codes: int64[m] codes of the user's items, at least one.
        """
        p = self.params
        latent = len(p["w3"])
        # a sparse row of unit length
        hidden = np.tanh(p["w1"][codes].sum(0) / np.float32(np.sqrt(len(codes))) + p["b1"])
        mean = hidden @ p["w2"][:, :latent] + p["b2"][:latent]
        return np.tanh(mean @ p["w3"] + p["b3"]) @ p["w4"] + p["b4"]

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the items with the largest logits for each request's items."""
        return top_slates(self.index, self.counts, requests, lambda _, live: self.logits(live))


class MultVAE(TrainedRecommender[MultVAESettings, Autoencoder]):
    """MultVAE: every rating is a positive interaction, however many stars it has.

    Example:
        >>> recommender = MultVAE(latent=8, hidden=32, epochs=2)
        >>> parts = dataset.log.of_split("train"), dataset.log.of_split("validation")
        >>> slates = recommender.fit(dataset, *parts).recommend(requests)

    Args:
        settings: a `MultVAESettings`; the defaults when it is not given.
        **changes: fields of the settings to change, by name.
    """

    name = "multvae"
    settings_class = MultVAESettings
    model_class = Autoencoder

    def _train(self, data: TrainingData, plan: FitPlan) -> tuple[Autoencoder, Summary]:
        from alignuser_jax.recommenders.models import variational

        result = variational.train_vae(self.settings, data, plan)
        return Autoencoder(data.item_ids, data.counts(), result.params), result.summary()
