"""An experiment: the settings of every room in one frozen record, read from a file in configs/.

A config file defines `experiment = Experiment(...)`; its docstring says the command, the
hardware and the number to expect. `--set section.field=value` overrides one setting by name.
"""

from __future__ import annotations

import ast
import dataclasses
import runpy
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment import BuildConfig
from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.sampling import EngineConfig
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.world import SiteConfig

HORIZON = 5
"""Pages of every A/B session: a fixed horizon, since exit is not validated (EVIDENCE.md)."""


@dataclass(frozen=True)
class Experiment:
    """`decoder` is the shape of a model trained from scratch in the first stage, `pretrain`
    (full-parameter, on world-model text and reconstructed visits), with a vocabulary of
    `vocabulary` pieces trained on the same text. A real experiment has a pretrained `backbone`
    (a Hugging Face directory or hub id, whose own `config.json` says its shape) instead, and no
    first stage. `align` is the method proper: LoRA on the world-model and reflection losses.
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
        if (self.pretrain is None) != (self.pretrain_shards is None):
            raise ValueError("pretrain and pretrain_shards belong together: give both or none")
        given = {"pretrain": self.pretrain is not None, "decoder": self.decoder is not None}
        if bool(self.backbone) in given.values():
            raise ValueError(
                f"backbone is {self.backbone!r}, and given are "
                f"{[name for name, there in given.items() if there]}: a model has either a "
                "pretrained backbone, or a decoder and a first stage that trains it"
            )
        shards = self.pretrain_shards
        if shards and (shards.site, shards.session) != (self.site, self.session):
            raise ValueError(
                "both stages must build their shards for the same site and session"
            )

    @property
    def site(self) -> SiteConfig:
        return self.align_shards.site

    @property
    def session(self) -> SessionConfig:
        return self.align_shards.session

    def stage(self, name: str) -> tuple[TrainConfig, BuildConfig]:
        """The settings of "pretrain" or "align"."""
        stages = {"align": (self.align, self.align_shards)}
        if self.pretrain and self.pretrain_shards:
            stages["pretrain"] = (self.pretrain, self.pretrain_shards)
        if name not in stages:
            raise ValueError(f"{self.name} has no stage {name!r}; it has {', '.join(stages)}")
        return stages[name]


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The `experiment` of a config file, with `section.field=value` overrides applied;
    `site.field` and `session.field` are those of every stage.

    Raises `FileNotFoundError` for a missing file and `ValueError` for a file without an
    experiment, an unknown name (with the nearest one) or a value of another type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}: expected one such as configs/tiny.py")
    experiment = runpy.run_path(str(path)).get("experiment")
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path} must define `experiment = Experiment(...)`")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r}: expected section.field=value")
        names, text = name.strip().split("."), value.strip()
        if names[0] in (
            "site",
            "session",
        ):  # the same in every stage, so changed in all at once
            stages = [s for s in ("pretrain_shards", "align_shards") if getattr(experiment, s)]
            changed = {
                s: override_setting(getattr(experiment, s), names, text, name) for s in stages
            }
            experiment = dataclasses.replace(experiment, **changed)
        else:
            experiment = override_setting(experiment, names, text, name)
    return experiment


def override_setting(settings: Any, names: Sequence[str], text: str, full_name: str) -> Any:
    """`settings` with the field at the dotted path replaced by `text` read as its type."""
    known = {f.name for f in dataclasses.fields(settings)}
    head, *rest = names
    if head not in known:
        near = get_close_matches(head, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"--set {full_name}: {type(settings).__name__} has no {head!r}; {hint}"
            f"it has {', '.join(sorted(known))}"
        )
    current = getattr(settings, head)
    if rest:
        if not dataclasses.is_dataclass(current):
            raise ValueError(f"--set {full_name}: {head!r} has no fields of its own")
        value = override_setting(current, rest, text, full_name)
    else:
        hint_type = typing.get_type_hints(type(settings))[head]
        value = _read_value(text, hint_type, full_name)
    return dataclasses.replace(settings, **{head: value})


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


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Every setting as plain values, to be stored beside what was made with it."""
    return dataclasses.asdict(experiment)
