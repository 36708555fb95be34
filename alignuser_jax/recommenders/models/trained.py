"""What MF, LightGCN and MultVAE share: construction, fit, recommend, save and load.

Each of the three says only what is its own: its settings, its model and how it is trained. This
file imports no jax, so a saved recommender is loaded and asked without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.base import digest, not_fitted, read_folder, write_folder
from alignuser_jax.recommenders.checks.ranking import interaction_matrix
from alignuser_jax.records import RecommendationRequest, Slate

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Summary = dict[str, Any]
"""`best_epoch`, `epochs`, and the validation metrics of the best epoch or `None`."""


class TrainingSettings(Protocol):
    """Settings that say how long to train: one of the dataclasses in `settings`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def epochs(self) -> int:
        """Most passes over the log."""

    @property
    def patience(self) -> int:
        """Epochs without a better validation nDCG@20 after which training stops."""


class Model(Protocol):
    """What training leaves behind: it answers requests and can be saved as named arrays."""

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it may show."""

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return one slate for each request."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return the model that `arrays` describes."""


SettingsT = TypeVar("SettingsT", bound=TrainingSettings)
ModelT = TypeVar("ModelT", bound=Model)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The log that a model is trained on, as matrices.

    Attributes:
        user_ids: rows of the matrices.
        item_ids: columns of the matrices.
        positives: float32[n_users, n_items], 1 for each pair in the log.
        validation: the same of the part that training is stopped by, or `None`.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    positives: csr_matrix
    validation: csr_matrix | None

    def counts(self) -> np.ndarray:
        """Return the users of each item, float32[n_items]."""
        return np.asarray(self.positives.sum(0), np.float32).ravel()

    def index_arrays(self) -> list[np.ndarray]:
        """Return the arrays that name the pairs, for a digest."""
        matrices = [m for m in (self.positives, self.validation) if m is not None]
        return [array for m in matrices for array in (m.indptr, m.indices)]


@dataclass(frozen=True)
class FitPlan:
    """How long to fit, and where to keep an unfinished fit.

    Attributes:
        name: of the model, for the progress bar and messages.
        epochs: most epochs.
        patience: epochs without a better validation nDCG@20 after which the fit stops.
        checkpoint: a file that an interrupted fit is resumed from, or `None`.
        fingerprint: names settings and data; a checkpoint of another one is refused.
        progress: whether to show a progress bar.
    """

    name: str
    epochs: int
    patience: int
    checkpoint: Path | None = None
    fingerprint: str = ""
    progress: bool = True


class TrainedRecommender(Protocol[SettingsT, ModelT]):
    """A recommender whose model is trained here, in epochs.

    MF, LightGCN and MultVAE implement this protocol. They set the three class attributes and
    `_train`; the methods below are the same for all of them. A request whose history and
    session hold no known item gets the most popular items.

    Attributes:
        name: the kind in a saved folder, and the recommender's name.
        settings_class: the dataclass of its settings.
        model_class: the class of its model.
        settings: an instance of `settings_class`.
        model: the learned model, `None` before `fit`.
        summary: best epoch, epochs run and validation metrics; empty before `fit`.
        version: names settings and training data, empty before `fit`.
    """

    name: ClassVar[str]
    settings_class: type[SettingsT]
    model_class: type[ModelT]
    stateful: bool = False
    settings: SettingsT
    model: ModelT | None = None
    summary: Summary
    version: str = ""

    def __init__(self, settings: SettingsT | None = None, **changes: float):
        base = self.settings_class() if settings is None else settings
        self.settings = replace(base, **changes)
        self.summary = {}

    def _train(self, data: TrainingData, plan: FitPlan) -> tuple[ModelT, Summary]:
        raise NotImplementedError

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it may show; empty before `fit`."""
        return self.model.item_ids if self.model is not None else ()

    def fit(
        self,
        dataset: Dataset,
        log: Log,
        validation: Log | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Train on a log and return this recommender.

        Every rating is a positive interaction, however many stars it has.

        Args:
            dataset: whose users and items the log's codes name.
            log: what to train on.
            validation: a part of the log to stop by: training ends when its nDCG@20 no longer
                rises, and the best epoch is kept. Without it all epochs are run; a recommender
                that was fitted before (between rounds) runs as many as were best then, and its
                settings say so afterwards.
            checkpoint: a file that is written every few epochs and removed at the end; a fit
                that was interrupted is resumed from it, with the same result.
            progress: whether to show a progress bar.

        Raises:
            ValueError: if the log is empty, or the checkpoint is of another fit.
            FloatingPointError: if the loss is not finite.
        """
        if not len(log):
            name = type(self).__name__
            raise ValueError(
                f"{name} was given an empty log: fit it on a log with interactions"
            )
        if validation is None and self.summary:
            self.settings = replace(self.settings, epochs=self.summary["best_epoch"])
        data = TrainingData(
            tuple(dataset.user_ids),
            tuple(dataset.item_ids),
            interaction_matrix(log),
            None if validation is None else interaction_matrix(validation),
        )
        about = {"kind": self.name, **asdict(self.settings)}
        version = digest(about, dataset.item_ids, *data.index_arrays())
        plan = FitPlan(
            self.name,
            self.settings.epochs,
            self.settings.patience,
            Path(checkpoint) if checkpoint else None,
            version,
            progress,
        )
        self.model, self.summary = self._train(data, plan)
        self.version = version
        return self

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return one slate for each request, from its live history and session."""
        if self.model is None:
            raise not_fitted(self)
        return self.model.recommend(requests)

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load` and `load_recommender` read."""
        if self.model is None:
            raise not_fitted(self)
        about = {
            "version": self.version,
            "settings": asdict(self.settings),
            "fitted": self.summary,
        }
        write_folder(directory, self.name, about, **self.model.arrays())

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read what `save` wrote."""
        about, arrays = read_folder(directory, cls.name)
        recommender = cls(cls.settings_class(**about["settings"]))
        recommender.version, recommender.summary = about["version"], about["fitted"]
        recommender.model = cls.model_class.from_arrays(arrays)
        return recommender
