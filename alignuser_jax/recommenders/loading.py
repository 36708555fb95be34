"""Load a recommender from what a person types in a flag.

That is a saved folder, a URL, a file of recommendations, `module:attr`, or the name of an
installed plugin.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from alignuser_jax.recommenders.base import SETTINGS_FILE, read_folder
from alignuser_jax.recommenders.controls import Degraded, ShuffledAcrossUsers
from alignuser_jax.recommenders.foreign.recs_file import SUFFIXES, from_recs_file
from alignuser_jax.recommenders.http.remote import from_http
from alignuser_jax.recommenders.models.als import ALS
from alignuser_jax.recommenders.models.baselines import Popularity, Random
from alignuser_jax.recommenders.models.lightgcn import LightGCN
from alignuser_jax.recommenders.models.mf import MF
from alignuser_jax.recommenders.models.multvae import MultVAE
from alignuser_jax.records import Recommender

PLUGINS = "alignuser.recommenders"
"""Group of entry points, name = module:attr, by which a package offers its recommenders."""


def load_saved(directory: str | Path) -> Recommender:
    """Load the recommender that `save(directory)` wrote.

    Raises:
        FileNotFoundError: if the folder holds no saved recommender.
        ValueError: if it is damaged, of a kind that this version does not know, or saved by a
            version with other settings.
    """
    readers: dict[str, Callable[[Path], Recommender]] = {
        "random": Random.load,
        "popularity": Popularity.load,
        "als": ALS.load,
        "mf": MF.load,
        "lightgcn": LightGCN.load,
        "multvae": MultVAE.load,
        "degraded": lambda folder: Degraded.load(folder, load_saved),
        "shuffled": lambda folder: ShuffledAcrossUsers.load(folder, load_saved),
    }
    about, _ = read_folder(directory)
    kind = about.get("kind")
    if kind not in readers:
        raise ValueError(
            f"{directory} holds a recommender of kind {kind!r}; this version reads "
            f"{', '.join(readers)}"
        )
    try:
        return readers[kind](Path(directory))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the {kind} recommender in {directory} lacks what this version reads or has more "
            f"({error}): load it with the version that saved it, or fit and save it again"
        ) from error


def load_recommender(spec: str | Path) -> Recommender:
    """Load a recommender from what a person types.

    `spec` is one of:

    * the folder of a saved one;
    * `http://…` or `https://…`, a server that speaks the JSON of `http.protocol`, or
      `cornac+http://…`, a Cornac server;
    * a file of recommendations (.tsv, .csv, .txt, .parquet), see `from_recs_file`;
    * the name under which an installed package offers one (an entry point, see `PLUGINS`);
    * `module:attr`, where `attr` is an instance, a class, or a function without required
      arguments that returns one; dots in it are followed. `module` is looked for in the working
      directory too.

    Example:
        >>> ALS(factors=8).fit(dataset, dataset.log.of_split("train")).save("runs/als")
        >>> load_recommender("runs/als").name
        'als'
        >>> load_recommender("alignuser_jax.recommenders:Popularity").name
        'popularity'

    Raises:
        FileNotFoundError: if `spec` is none of these.
        ValueError: if what it names is no recommender, or a damaged one.
        RecommenderUnavailable: if the server does not answer.
        Exception: what the module itself raises when it is imported.
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
        return _instance(plugins[text].load(), text)
    module_name, colon, attribute = text.partition(":")
    if not colon or not module_name or not attribute or os.sep in module_name:
        raise _unknown(text, plugins)
    return _instance(_attribute(text, module_name, attribute), text)


def _unknown(spec: str, plugins: dict[str, EntryPoint]) -> FileNotFoundError:
    near = get_close_matches(spec, plugins, n=1)
    hint = f" (did you mean the plugin {near[0]!r}?)" if near else ""
    return FileNotFoundError(
        f"{spec!r} is neither the folder of a saved recommender (one with a "
        f"{SETTINGS_FILE}), nor http://…, nor cornac+http://…, nor a file of "
        f"recommendations ({', '.join(SUFFIXES)}), nor of the form module:attr, nor the "
        f"name of an installed plugin{hint}"
    )


def _attribute(spec: str, module_name: str, attribute: str) -> object:
    """Import the module and follow the dots of the attribute."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
        raise ValueError(
            f"{spec!r}: there is no module {module_name!r} (looked in the working directory "
            "and the installed packages)"
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            where = getattr(value, "__name__", type(value).__name__)
            raise ValueError(f"{spec!r}: {where} has no attribute {part!r}")
        value = getattr(value, part)
    return value


def _instance(value: object, spec: str) -> Recommender:
    """Return a recommender: the value itself, or what calling it without arguments makes."""
    if isinstance(value, type) or (callable(value) and not hasattr(value, "recommend")):
        try:
            inspect.signature(value).bind()
        except TypeError as error:
            raise ValueError(
                f"{spec!r} cannot be made without arguments ({error}): name an instance, or a "
                "function without arguments that returns one"
            ) from error
        value = value()
    if not isinstance(value, Recommender) or isinstance(value, type):
        raise ValueError(
            f"{spec!r} gave a {type(value).__name__} without recommend(requests): expected an "
            "instance of a recommender, its class, or a function without arguments that "
            "returns one"
        )
    return value
