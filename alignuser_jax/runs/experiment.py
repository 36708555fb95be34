"""Read an experiment: the settings of every room in one frozen record.

A file in configs/ defines `experiment = Experiment(...)`; its docstring says the command, the
hardware and the number to expect. `--set section.field=value` overrides one setting by name.
"""

from __future__ import annotations

import ast
import dataclasses
import runpy
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment import BuildConfig
from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.programs import find_config, make_importable
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.world import SiteConfig

HORIZON = 5
"""Pages of every A/B session.

The horizon is fixed because rating logs hold no exits to validate an agent's own against
(docs/evidence.md).
"""


@dataclass(frozen=True)
class Experiment:
    """The settings of one experiment.

    A real experiment starts from a pretrained `backbone`. Without one, a first stage trains a
    model from scratch: its shape is `decoder`, its settings are `pretrain` and
    `pretrain_shards`. The method proper is the stage "align": LoRA on the world-model and
    reflection losses.

    Attributes:
        name: Short name, written to manifests.
        note: What to print beside every result ("SYNTHETIC data; ...").
        align: Training of the stage "align".
        align_shards: Examples of the stage "align"; its site and session are the experiment's.
        decoder: Shape of a model that is trained from scratch.
        pretrain: Training of the first stage: all parameters.
        pretrain_shards: Examples of the first stage: world-model text and reconstructed visits.
        backbone: A model's folder, its hub id, a GGUF file, or the name of a published model
            such as "smollm2" (`model/files/backbone.py`); its own `config.json` says its shape.
        vocabulary: Pieces of the tokenizer that a model from scratch gets.
        dtype: Type of the weights and of the computation.
        lora: Rank, scale and targets of the adapters.
        engine: Geometry of the engine that samples.
        agents: Users kept out of training to become agents.
        seed: Names the draws of agents and weights.

    Raises:
        ValueError: If settings contradict each other; names them.

    Example:
        >>> experiment = load_experiment("configs/tiny.py", ["align.steps=10"])
        >>> experiment.stage("align")[0].steps
        10
    """

    name: str
    note: str
    align: TrainConfig
    align_shards: BuildConfig
    decoder: DecoderConfig | None = None
    pretrain: TrainConfig | None = None
    pretrain_shards: BuildConfig | None = None
    backbone: str = ""
    vocabulary: int = 0
    dtype: str = "float32"
    lora: LoraConfig = LoraConfig(rank=16)
    engine: EngineConfig = EngineConfig()
    agents: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if (self.pretrain is None) != (self.pretrain_shards is None):
            raise ValueError("pretrain and pretrain_shards belong together: give both or none")
        from_scratch = {"pretrain": self.pretrain, "decoder": self.decoder}
        present = [name for name, value in from_scratch.items() if value is not None]
        if present and self.backbone or len(present) == 1 or not (present or self.backbone):
            raise ValueError(
                f"backbone is {self.backbone!r}, and given are {present}: a model has either a "
                "pretrained backbone, or a decoder and a first stage that trains it"
            )
        if self.agents < 0:
            raise ValueError(f"agents is {self.agents}: expected 0 or more users")
        shards = self.pretrain_shards
        if shards and (shards.site, shards.session) != (self.site, self.session):
            raise ValueError(
                "both stages must build their shards for the same site and session"
            )

    def scratch_decoder(self, vocab_size: int) -> DecoderConfig:
        """Return the shape of the model from scratch, with its tokenizer's vocabulary."""
        if self.decoder is None:
            raise ValueError(f"{self.name} has a backbone and no model from scratch")
        return dataclasses.replace(self.decoder, vocab_size=vocab_size)

    @property
    def site(self) -> SiteConfig:
        """The site, the same in every stage."""
        return self.align_shards.site

    @property
    def session(self) -> SessionConfig:
        """The agents' session, the same in every stage."""
        return self.align_shards.session

    def stage(self, name: str) -> tuple[TrainConfig, BuildConfig]:
        """Return the training and the shard settings of "pretrain" or "align".

        Raises:
            ValueError: If the experiment has no such stage.
        """
        stages = {"align": (self.align, self.align_shards)}
        if self.pretrain and self.pretrain_shards:
            stages["pretrain"] = (self.pretrain, self.pretrain_shards)
        if name not in stages:
            raise ValueError(f"{self.name} has no stage {name!r}; it has {', '.join(stages)}")
        return stages[name]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Run a config file and return its experiment, with overrides applied.

    Args:
        path: The config file, a Python program; or the name of one that comes with the
            software, such as `tiny` (`programs.find_config`).
        overrides: `section.field=value` each; `site.field` and `session.field` change every
            stage at once.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file defines no experiment, a name is unknown (the nearest one is
            named), or a value has another type.
    """
    path = find_config(path)
    make_importable()  # configs import each other
    experiment = runpy.run_path(str(path)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} must define `experiment = Experiment(...)`")
    changes: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r}: expected section.field=value")
        names, text = name.strip().split("."), value.strip()
        for place in _places(experiment, names):
            group = changes
            for part in place[:-1]:
                group = group.setdefault(part, {})
                if not isinstance(group, dict):
                    raise ValueError(f"--set {name}: {part!r} is also set as a whole")
            if isinstance(group.get(place[-1]), dict):
                raise ValueError(f"--set {name}: {place[-1]!r} is also set as a whole")
            group[place[-1]] = _Override(text, name)
    return override_settings(experiment, changes)


class _Override(NamedTuple):
    """A value as a person typed it, and the whole name that it was given for."""

    text: str
    name: str


def _places(experiment: Experiment, names: Sequence[str]) -> list[list[str]]:
    """Where a setting stands; site and session are the same in every stage."""
    if names[0] not in ("site", "session"):
        return [list(names)]
    stages = [s for s in ("pretrain_shards", "align_shards") if getattr(experiment, s)]
    return [[stage, *names] for stage in stages]


def override_settings(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Return `settings` with all changes made at once, so that they are checked together.

    Two settings that only make sense together, such as the items on a page of the site and of
    its visits, would each be refused alone.

    Args:
        settings: A frozen dataclass, which may hold others.
        changes: Field to its new value as typed, or to the changes of the dataclass there.

    Raises:
        ValueError: If a name is unknown, a value has another type, or the result contradicts
            itself.
    """
    fields = {f.name for f in dataclasses.fields(settings)}
    values = {}
    for head, change in changes.items():
        whole = _first_name(change)
        if head not in fields:
            near = get_close_matches(head, fields, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"--set {whole}: {type(settings).__name__} has no {head!r}; {hint}"
                f"it has {', '.join(sorted(fields))}"
            )
        current = getattr(settings, head)
        if isinstance(change, _Override):
            expected = typing.get_type_hints(type(settings))[head]
            values[head] = _read_value(change.text, expected, change.name)
        elif dataclasses.is_dataclass(current):
            values[head] = override_settings(current, change)
        else:
            raise ValueError(f"--set {whole}: {head!r} has no fields of its own")
    return dataclasses.replace(settings, **values)


def _first_name(change: Any) -> str:
    """The name that a change was given for, for error messages."""
    while not isinstance(change, _Override):
        change = next(iter(change.values()))
    return change.name


def _read_value(text: str, expected: Any, name: str) -> Any:
    if expected is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if _is_a(value, expected):
        return float(value) if expected is float else value
    raise ValueError(f"--set {name}={text}: expected {expected}, got {value!r}")


def _is_a(value: Any, expected: Any) -> bool:
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(expected))
    if origin is typing.Literal:
        return value in typing.get_args(expected)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected is type(None):
        return value is None
    return isinstance(value, origin or expected)


def with_defaults(settings: Any, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings with the default of every setting that they do not have.

    A setting is added together with a default that changes nothing, so what an older version
    recorded stands for that default.

    Args:
        settings: A dataclass, which may hold others.
        recorded: Its fields as an earlier version wrote them, as plain nested dictionaries.
    """
    filled = dict(recorded)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name in filled:
            if dataclasses.is_dataclass(value) and isinstance(filled[field.name], dict):
                filled[field.name] = with_defaults(value, filled[field.name])
        elif field.default is not dataclasses.MISSING:
            default: Any = field.default
            nested = dataclasses.is_dataclass(default)
            filled[field.name] = dataclasses.asdict(default) if nested else default
    return filled


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Return every setting as plain values, to be stored beside what was made with it."""
    return dataclasses.asdict(experiment)
