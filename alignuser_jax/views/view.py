"""Hold the no-leak rule in one place: what prompts may show, and which ratings are targets.

Personas, histories and mean ratings always come from one part of the log (the profile), the
targets from a later, disjoint one. Whoever builds prompts or scores answers reads ratings
through a view only, so no target can stand in its own prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """What may be known of the users at one moment, and what is to be predicted.

    All but `targets` is computed from `profile`.

    Attributes:
        personas: Persona by user id.
        histories: Ratings by user id, in time order.
        mean_ratings: Mean rating by item id, of rated items only.
        recall: What users can recall of items.
        profile: The part of the log that prompts may show.
        targets: The later part, to be explained or predicted.
        persona_source: Where personas come from that replace the computed ones, for manifests
            and tables; "" if all were computed.
    """

    personas: Mapping[str, Persona]
    histories: Mapping[str, tuple[Interaction, ...]]
    mean_ratings: Mapping[str, float]
    recall: RecallIndex
    profile: Log
    targets: Log
    persona_source: str = ""


def training_view(
    dataset: Dataset,
    profile_share: float = PROFILE_SHARE,
    personas: GivenPersonas | None = None,
) -> View:
    """Return the view for training examples, within the training part.

    The profile is the first `profile_share` of each user's training part, the targets are the
    rest of it.

    Args:
        dataset: The log.
        profile_share: Share of a user's training part that prompts may show.
        personas: Personas that replace the computed ones. Personas that were matched must
            have been matched on the same profile.

    Example:
        >>> view = training_view(dataset)
        >>> view.histories["u1"][-1].timestamp <= view.targets.timestamp.max()
        True
    """
    if personas:
        personas.check(dataset.hash, ("profile",), profile_share)
    return _view(dataset, *profile_and_targets(dataset.log, profile_share), personas)


def test_view(dataset: Dataset, personas: GivenPersonas | None = None) -> View:
    """Return the view for predicting the test part: all before it may be known.

    The profile is train and validation, the targets are test.

    Args:
        dataset: The log.
        personas: Personas that replace the computed ones.

    Example:
        >>> len(test_view(dataset).targets) == len(dataset.log.of_split("test"))
        True
    """
    if personas:
        personas.check(dataset.hash, PARTS)
    log = dataset.log
    return _view(dataset, log.of_split("train", "validation"), log.of_split("test"), personas)


# a library function, whatever pytest makes of its name
test_view.__dict__["__test__"] = False


def simulation_view(dataset: Dataset, personas: GivenPersonas | None = None) -> View:
    """Return the view for simulations: only the training part may be known.

    The profile is train, so that recommenders fitted on train and held-out hits in validation
    and test, which are the targets, speak of the same moment.

    Args:
        dataset: The log.
        personas: Personas that replace the computed ones.

    Example:
        >>> view = simulation_view(dataset)
        >>> recommender = ALS().fit(dataset, view.profile)
    """
    if personas:
        personas.check(dataset.hash, PARTS)
    log = dataset.log
    return _view(dataset, log.of_split("train"), log.of_split("validation", "test"), personas)


def _view(dataset: Dataset, profile: Log, targets: Log, personas: GivenPersonas | None) -> View:
    _, counts = item_statistics(profile)
    computed = compute_personas(dataset, profile)
    return View(
        personas=personas.over(computed) if personas else computed,
        histories={user: dataset.history(profile, user) for user in dataset.user_ids},
        mean_ratings=mean_ratings(profile, dataset.item_ids),
        recall=RecallIndex(
            dataset.items, dict(zip(dataset.item_ids, counts.tolist(), strict=True))
        ),
        profile=profile,
        targets=targets,
        persona_source=personas.label if personas else "",
    )
