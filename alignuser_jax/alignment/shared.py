"""What the examples of the training part and of the validation part are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alignuser_jax.alignment.config import BuildConfig
from alignuser_jax.alignment.counterfactuals import Generate
from alignuser_jax.alignment.reflecting.writing import Tally
from alignuser_jax.datasets import Dataset
from alignuser_jax.recommenders import ALS
from alignuser_jax.records import CountTokens, Recommender
from alignuser_jax.text import Say
from alignuser_jax.views import View
from alignuser_jax.views.sites import Sites


@dataclass(frozen=True)
class Reflector:
    """A model that writes reflections.

    Attributes:
        ask: Answers a batch of requests.
        about: What it is, for the manifest: `model` is its id, the hash of its weights where
            they are here; `name` and `tokenizer` where they are known.
    """

    ask: Generate
    about: Mapping[str, Any]


@dataclass
class Shared:
    """What the training part and the validation part share.

    Attributes:
        dataset: The log.
        view: What prompts may show, and the target ratings.
        config: The settings.
        fills_pages: The recommender that was passed; `None` for ALS.
        generate: Asks the model that draws alternatives and acts; `None` without one.
        reflector: Who writes the reflections; `None` for templates.
        count_tokens: Counts tokens as the model that will be trained does.
        say: Prints a line of progress.
        row_tokens: Tokens of a row of the training; `None` refuses no example.
    """

    dataset: Dataset
    view: View
    config: BuildConfig
    fills_pages: Recommender | None
    generate: Generate | None
    count_tokens: CountTokens | None
    say: Say
    row_tokens: int | None = None
    reflector: Reflector | None = None

    @cached_property
    def tally(self) -> Tally:
        """What has become of the replies about reflections, in both parts."""
        return Tally(self.config.reflections, self.say, visible=self.reflector is not None)

    @cached_property
    def sites(self) -> Sites:
        """The sites on which examples are made."""
        return Sites(self.dataset.items, self.view, self.config.site)

    @cached_property
    def recommender(self) -> Recommender:
        """The recommender that fills pages; ALS is fitted when it is first needed."""
        if self.fills_pages is not None:
            return self.fills_pages
        self.say("fitting ALS on the profile part")
        return ALS(seed=self.config.seed).fit(self.dataset, self.view.profile)
