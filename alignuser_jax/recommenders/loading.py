"""Getting a recommender from what a person types: a saved folder, a URL, a file of
recommendations, `module:attr`, or the name of an installed plugin."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path

from alignuser_jax.recommenders.base import SETTINGS_FILE, read
from alignuser_jax.recommenders.controls import Degraded, ShuffledAcrossUsers
from alignuser_jax.recommenders.foreign.recs_file import SUFFIXES, from_recs_file
from alignuser_jax.recommenders.http.remote import from_http
from alignuser_jax.recommenders.models.als import ALS
from alignuser_jax.recommenders.models.lightgcn import LightGCN
from alignuser_jax.recommenders.models.mf import MF
from alignuser_jax.recommenders.models.multvae import MultVAE
from alignuser_jax.recommenders.models.simple import Popularity, Random
from alignuser_jax.records import Recommender

PLUGINS = "alignuser.recommenders"
"""Group of entry points, name = module:attr, by which a package offers its recommenders."""


def load_saved(directory: str | Path) -> Recommender:
    """The recommender that `save(directory)` wrote."""
    settings, _ = read(directory)
    match settings.get("kind"):
        case "random":
            return Random.load(directory)
        case "popularity":
            return Popularity.load(directory)
        case "als":
            return ALS.load(directory)
        case "mf":
            return MF.load(directory)
        case "lightgcn":
            return LightGCN.load(directory)
        case "multvae":
            return MultVAE.load(directory)
        case "degraded":
            return Degraded.load(directory, load_saved)
        case "shuffled":
            return ShuffledAcrossUsers.load(directory, load_saved)
        case kind:
            raise ValueError(
                f"{directory} holds a recommender of kind {kind!r}; this version reads random, "
                "popularity, als, mf, lightgcn, multvae, degraded and shuffled"
            )


def load_recommender(spec: str | Path) -> Recommender:
    """A recommender from what a person types:

    * the folder of a saved one;
    * `http://…` or `https://…`, a server that speaks `protocol`, or `cornac+http://…`, a Cornac
      server;
    * a file of recommendations (.tsv, .csv, .txt, .parquet), see `from_recs_file`;
    * `module:attr`, where `attr` is an instance, a class, or a function without required
      arguments that returns one; dots in it are followed. `module` is looked for in the working
      directory too;
    * the name under which an installed package offers one (entry points of `PLUGINS`).

    Raises `ValueError`, `FileNotFoundError` or `RecommenderUnavailable` that say
    what was wrong; what the module itself raises comes through.
    """
    path, text = Path(spec), str(spec)
    if (path / SETTINGS_FILE).is_file():
        return load_saved(path)
    if text.startswith(("http://", "https://")):
        return from_http(text)
    if text.startswith(("cornac+http://", "cornac+https://")):
        return from_http(text.removeprefix("cornac+"), cornac=True)
    if path.suffix in SUFFIXES and ":" not in text:
        return from_recs_file(path)
    plugins = {plugin.name: plugin for plugin in entry_points(group=PLUGINS)}
    if text in plugins:
        return _made(plugins[text].load(), text)
    module_name, colon, attribute = str(spec).partition(":")
    if not colon or not module_name or not attribute or os.sep in module_name:
        near = get_close_matches(text, plugins, n=1)
        hint = f" (did you mean the plugin {near[0]!r}?)" if near else ""
        raise FileNotFoundError(
            f"{text!r} is neither the folder of a saved recommender (one with a "
            f"{SETTINGS_FILE}), nor http://…, nor cornac+http://…, nor a file of "
            f"recommendations ({', '.join(SUFFIXES)}), nor of the form module:attr, nor the "
            f"name of an installed plugin{hint}"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
        raise ValueError(
            f"{spec!r}: there is no module {module_name!r} (looked in the working directory "
            "and the installed packages)"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            where = getattr(found, "__name__", type(found).__name__)
            raise ValueError(f"{spec!r}: {where} has no attribute {part!r}")
        found = getattr(found, part)
    return _made(found, text)


def _made(found: object, spec: str) -> Recommender:
    made = found
    if isinstance(found, type) or (callable(found) and not hasattr(found, "recommend")):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ValueError(
                f"{spec!r} cannot be made without arguments ({error}): name an instance, or a "
                "function without arguments that returns one"
            ) from error
        made = found()
    if not isinstance(made, Recommender) or isinstance(made, type):
        raise ValueError(
            f"{spec!r} gave a {type(made).__name__} without recommend(requests): expected an "
            "instance of a recommender, its class, or a function without arguments that "
            "returns one"
        )
    return made
