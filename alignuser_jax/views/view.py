"""The no-leak rule in one place: what a prompt may show, and which ratings are its targets.

Personas, histories and mean ratings always come from one part of the log (the profile), the
targets from a later, disjoint one; nothing else in this room reads ratings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignuser_jax.datasets import (
    Dataset,
    Log,
    item_statistics,
    mean_ratings,
    profile_and_targets,
)
from alignuser_jax.datasets.splits import PROFILE_SHARE
from alignuser_jax.memory import RecallIndex
from alignuser_jax.personas import GivenPersonas, compute_personas
from alignuser_jax.personas.given import PARTS
from alignuser_jax.records import Interaction, Persona


@dataclass(frozen=True)
class View:
    """Personas and histories by user id, mean ratings by item id (rated items only) and what
    users can recall, all of `profile`; the ratings to be explained or predicted are `targets`.
    `given` labels personas that came from elsewhere ("" where all were computed).
    """

    personas: Mapping[str, Persona]
    histories: Mapping[str, tuple[Interaction, ...]]
    mean_ratings: Mapping[str, float]
    recall: RecallIndex
    profile: Log
    targets: Log
    given: str = ""


def training_view(
    dataset: Dataset,
    profile_share: float = PROFILE_SHARE,
    personas: GivenPersonas | None = None,
) -> View:
    """Profile: the first 75 % of each user's training part; targets: the rest of it. Given
    `personas` stand over the computed ones; matched ones must be of the profile."""
    if personas:
        personas.check(dataset.hash, ("profile",), profile_share)
    view = _view(dataset, *profile_and_targets(dataset.log, profile_share))
    return _with(view, personas)


def test_view(dataset: Dataset, personas: GivenPersonas | None = None) -> View:
    """Profile: train and validation; targets: test. Given `personas` stand over the computed
    ones."""
    if personas:
        personas.check(dataset.hash, PARTS)
    log = dataset.log
    view = _view(dataset, log.of_split("train", "validation"), log.of_split("test"))
    return _with(view, personas)


def simulation_view(dataset: Dataset, personas: GivenPersonas | None = None) -> View:
    """Profile: train only, so that recommenders fitted on train and held-out hits in
    validation + test (the targets) speak of the same moment. Given `personas` stand over the
    computed ones."""
    if personas:
        personas.check(dataset.hash, PARTS)
    log = dataset.log
    view = _view(dataset, log.of_split("train"), log.of_split("validation", "test"))
    return _with(view, personas)


def _with(view: View, personas: GivenPersonas | None) -> View:
    if personas is None:
        return view
    return replace(view, personas=personas.over(view.personas), given=personas.label)


test_view.__test__ = False  # a library function, whatever pytest makes of its name


def _view(dataset: Dataset, profile: Log, targets: Log) -> View:
    _, counts = item_statistics(profile)
    return View(
        personas=compute_personas(dataset, profile),
        histories={user: dataset.history(profile, user) for user in dataset.user_ids},
        mean_ratings=mean_ratings(profile, dataset.item_ids),
        recall=RecallIndex(
            dataset.items, dict(zip(dataset.item_ids, counts.tolist(), strict=True))
        ),
        profile=profile,
        targets=targets,
    )
