"""Start a LoRA training from an earlier adapter: a second round.

The earlier adapter must be of the very shape that the experiment trains, on the same base: what
differs is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.model.files.peft import CONFIG, WEIGHTS, Arrays, base_of, read_adapter

if TYPE_CHECKING:
    from alignuser_jax.model.decoder import Decoder

PLACES = ("", "adapter", "align/adapter")
"""Where an adapter lies in its own folder, in a training's, and in a run's."""


def adapter_folder(source: str | Path) -> Path:
    """Return the PEFT folder of an adapter, of a training (`--out`) or of a whole run.

    Raises:
        FileNotFoundError: If there is none; a training that has not ended yet has none.

    Example:
        >>> adapter_folder("runs/ml-1m")  # doctest: +SKIP
        PosixPath('runs/ml-1m/align/adapter')
    """
    for place in PLACES:
        if (Path(source) / place / CONFIG).is_file():
            return Path(source) / place
    unfinished = [
        place for place in ("", "align") if (Path(source) / place / "checkpoints").is_dir()
    ]
    hint = (
        "; its training has checkpoints but no result yet: run its command again to finish it"
        if unfinished
        else ""
    )
    raise FileNotFoundError(
        f"--adapter_from={source} holds no adapter ({CONFIG} in the folder itself, in its "
        f"adapter/ or its align/adapter/): give the folder of a run, of a training or of PEFT"
        f"{hint}"
    )


def with_adapter_of(
    decoder: Decoder, source: str | Path, base: str
) -> tuple[Decoder, dict[str, Any]]:
    """Return the decoder with the weights of an earlier adapter in place of its fresh ones.

    Args:
        decoder: A decoder with fresh adapters of the experiment's shape.
        source: Folder of a run, of a training or of an adapter.
        base: Name of the decoder's base model, "" if it has none.

    Returns:
        The decoder, and what to record of its start.

    Raises:
        FileNotFoundError: If there is no adapter.
        ValueError: If its rank, scale, targets, layers, sizes or base are not the decoder's;
            names all that differs.
    """
    import jax

    from alignuser_jax.model import merge, split
    from alignuser_jax.model.states import with_arrays
    from alignuser_jax.training.checkpoint import weights_hash

    folder = adapter_folder(source)
    graphdef, fresh, frozen = split(decoder)
    recorded = folder.parent / "train.json"
    about = json.loads(recorded.read_text()) if recorded.is_file() else {}
    weights = {"before": about.get("base_weights"), "now": weights_hash(frozen)}
    arrays = _checked(folder, decoder.lora, decoder.config, base, weights)
    placed = {}
    for path, leaf in jax.tree.leaves_with_path(fresh):
        name = ".".join(str(part.key) for part in path if hasattr(part, "key"))
        placed[name] = jax.device_put(arrays[name], leaf.sharding)
    started = {
        "folder": str(folder.resolve()),
        "weights": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        "base": base_of(folder),
    }
    return merge(graphdef, with_arrays(fresh, placed), frozen), started


def _checked(
    folder: Path,
    lora: LoraConfig,
    decoder: DecoderConfig,
    base: str,
    weights: dict[str, str | None],
) -> Arrays:
    """Return the adapter's arrays; refuse what the experiment does not go on from."""
    shape = read_adapter(folder)[0]  # its own shape first: sizes alone would say little
    layers = decoder.num_layers
    problems = [
        f"{name} is {theirs}, the experiment's {ours}"
        for name, theirs, ours in (
            ("rank", shape.rank, lora.rank),
            ("scale (alpha and rslora)", shape.scale, lora.scale),
            ("targets", _listed(shape), _listed(lora)),
            ("layers", shape.layers or layers, len(lora.adapted_layers(layers))),
        )
        if theirs != ours
    ]
    named = base_of(folder)
    if named and base and not _same_base(named, base):
        problems.append(
            f"its base is {named}, the experiment's {base} (if both are the same model, say so "
            f"in base_model_name_or_path of {folder / CONFIG})"
        )
    if weights["before"] not in (None, weights["now"]):
        problems.append(
            "the base that it was trained on has other weights or another type than this one "
            f"(base_weights in {folder.parent / 'train.json'})"
        )
    if problems:
        raise ValueError(
            f"training cannot go on from the adapter in {folder}:\n  "
            + "\n  ".join(problems)
            + "\nSet lora.rank, lora.alpha, lora.targets and lora.layers to the adapter's, and "
            "backbone to its base"
        )
    return read_adapter(folder, decoder)[1]


def _listed(lora: LoraConfig) -> str:
    return ", ".join(sorted(lora.targets))


def _same_base(a: str, b: str) -> bool:
    """Whether two names are the same hub id, or the same folder."""
    return a == b or (Path(a).exists() and Path(a).resolve() == Path(b).resolve())
