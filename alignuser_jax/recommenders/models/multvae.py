"""MultVAE (Liang et al., 2018): a variational autoencoder of a user's items with a multinomial
likelihood. It encodes the live history of every request and keeps no users.

Dimensions, the cap of the KL weight, learning rate, L2, patience and seed are Agent4Rec's
(METHOD.md section 2.1); its batch of 2,048 users makes three steps an epoch of MovieLens-1M, so
the batch here is 256 (DEFAULT). Dropout 0.5 of the input is Liang's; the KL weight rises over
epochs, not over 200,000 steps that a small log never makes (DEFAULT).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.base import Catalogue, not_fitted, read, write
from alignuser_jax.recommenders.models.factors import top_slates
from alignuser_jax.recommenders.models.settings import check_settings, training_pairs
from alignuser_jax.records import RecommendationRequest, Slate


class MultVAE:
    """Every rating is a positive interaction, whatever its stars. A request whose history and
    session hold no item of the catalogue gets the most popular items."""

    name = "multvae"
    stateful = False
    version = ""
    catalogue: Catalogue | None = None
    params: dict[str, np.ndarray]  # float32, as `variational.VAE.arrays`
    counts: np.ndarray  # float32[n_items], interactions in training
    fitted: dict[str, Any]  # best epoch, epochs run, validation recall@20 and ndcg@20

    def __init__(
        self,
        latent: int = 200,
        hidden: int = 600,
        dropout: float = 0.5,
        kl_cap: float = 0.2,
        kl_epochs: int = 50,
        batch_size: int = 256,
        learning_rate: float = 5e-4,
        l2: float = 1e-5,
        epochs: int = 500,
        patience: int = 20,
        seed: int = 101,
    ):
        self.settings = check_settings(
            "MultVAE",
            latent=latent,
            hidden=hidden,
            dropout=dropout,
            kl_cap=kl_cap,
            kl_epochs=kl_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            l2=l2,
            epochs=epochs,
            patience=patience,
            seed=seed,
        )

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids if self.catalogue else ()

    def fit(
        self,
        dataset: Dataset,
        log: Log,
        validation: Log | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> MultVAE:
        """Train on `log`, stop where `validation` says so; without it, after all epochs,
        or after those that were best when it was fitted before.
        `checkpoint`: a file to take an interrupted fit up from."""
        from alignuser_jax.recommenders.models import variational

        positives, held_out, self.version = training_pairs(self, dataset, log, validation)
        found = variational.train(
            self.name,
            positives,
            held_out,
            self.settings,
            checkpoint,
            self.version,
            progress,
        )
        self.fitted = found.summary()
        counts = np.asarray(positives.sum(0), np.float32).ravel()
        return self._set(dataset.item_ids, counts, found.params)

    def _set(
        self, item_ids: Sequence[str], counts: np.ndarray, params: dict[str, np.ndarray]
    ) -> MultVAE:
        self.catalogue, self.counts, self.params = Catalogue(item_ids), counts, params
        return self

    def logits(self, items: np.ndarray) -> np.ndarray:
        """float32[n_items]: the decoded mean of a user with these codes, one at least."""
        p = self.params
        latent = len(p["w3"])
        # a sparse row of unit length
        hidden = np.tanh(p["w1"][items].sum(0) / np.float32(np.sqrt(len(items))) + p["b1"])
        mean = hidden @ p["w2"][:, :latent] + p["b2"][:latent]
        return np.tanh(mean @ p["w3"] + p["b3"]) @ p["w4"] + p["b4"]

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        if self.catalogue is None:
            raise not_fitted(self)
        return top_slates(
            self.catalogue, self.counts, requests, lambda _, live: self.logits(live)
        )

    def save(self, directory: str | Path) -> None:
        if self.catalogue is None:
            raise not_fitted(self)
        about = {"version": self.version, "settings": self.settings, "fitted": self.fitted}
        ids = np.array(self.item_ids)
        write(directory, self.name, about, item_ids=ids, counts=self.counts, **self.params)

    @classmethod
    def load(cls, directory: str | Path) -> MultVAE:
        stored, arrays = read(directory, cls.name)
        made = cls(**stored["settings"])
        made.version, made.fitted = stored["version"], stored["fitted"]
        ids, counts = arrays.pop("item_ids").tolist(), arrays.pop("counts")
        return made._set(ids, counts, arrays)
