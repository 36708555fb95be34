"""Write a base model with an adapter folded in, as a Hugging Face directory.

It goes file by file in NumPy, so that an 8B model needs the memory of one file and no
accelerator. Whatever else the base's directory holds for loading (config, tokenizer, chat
template) is copied byte for byte.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.model.files.hf_config import CONFIG
from alignuser_jax.model.files.peft import read_adapter
from alignuser_jax.model.files.tensors import FLOATS, INDEX, Tensor, find_tensors, write_tensors
from alignuser_jax.model.files.weights import checked_tensors

_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")
_KERNEL = re.compile(
    r"(?:model\.)?layers\.(\d+)\.(?:self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj\.weight"
)


def export_merged(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a model that computes what base and adapter do together.

    Each kernel is `W + scale * (B A)` in f32, rounded to the base's type or to `dtype`. Files
    that are whole already are kept, so that an interrupted export goes on.

    Args:
        base: Directory of the base model.
        adapter: PEFT directory of the adapter.
        output: Directory to write.
        dtype: "float32", "bfloat16" or "float16"; None is the base's type.
        say: Is called with a line for each file.

    Raises:
        FileNotFoundError: If a file of base or adapter is missing.
        ValueError: If base, adapter or `dtype` do not fit.
        FileExistsError: If `output` holds something else.
    """
    base, output = Path(base), Path(output)
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    if dtype is not None and dtype not in names:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(names)}")
    decoder, _ = checked_tensors(base)
    tensors = find_tensors(base)  # by the names that the files give them
    lora, arrays = read_adapter(adapter, decoder)
    adapted = lora.adapted_layers(decoder.num_layers)
    origin = {
        "base": str(base.resolve()),
        "adapter": str(Path(adapter).resolve()),
        "dtype": dtype,
    }
    _claim(output, origin)
    files: dict[Path, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        files.setdefault(tensor.path, {})[name] = tensor
    kind = FLOATS[names[dtype]] if dtype else None
    for path, contents in files.items():
        if (output / path.name).is_file():
            say(f"{path.name}: already written")
            continue
        merged = {}
        for name, tensor in contents.items():
            values = tensor.read()
            match = _KERNEL.fullmatch(name)
            if match and match[2] in lora.targets and int(match[1]) in adapted:
                layer, projection = int(match[1]) - adapted.start, f"layers.{match[2]}"
                delta = arrays[f"{projection}.a"][layer] @ arrays[f"{projection}.b"][layer]
                exact = values.astype(np.float32) + np.float32(lora.scale) * delta.T
                values = exact.astype(values.dtype)
                if kind is not None:
                    values = exact.astype(kind)
            merged[name] = values if kind is None else values.astype(kind)
        write_tensors(output / path.name, merged)
        say(f"{path.name}: {len(merged)} tensors")
    total = sum((output / path.name).stat().st_size for path in files)
    for pattern in _COPIED:
        for path in sorted(base.glob(pattern)):
            shutil.copyfile(path, output / path.name)
    if dtype is not None and kind is not None:
        _restate(output, dtype, tensors, kind)
    (output / _CLAIM).unlink()
    say(f"{output}: {total / 1e6:,.1f} MB of weights in {len(files)} file(s)")


_CLAIM = ".export.json"


def _claim(output: Path, origin: Mapping[str, str | None]) -> None:
    """Mark the folder as the result of this export, until it is whole."""
    text = json.dumps(origin, sort_keys=True)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        mark = output / _CLAIM
        if not mark.is_file() or mark.read_text() != text:
            raise FileExistsError(
                f"{output} is not empty: give another folder, or remove what is there"
            )
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / _CLAIM, text)


def _restate(output: Path, dtype: str, tensors: dict[str, Tensor], kind: np.dtype) -> None:
    """Write the new type and size into the copied config and index."""
    content = json.loads((output / CONFIG).read_text())
    content.pop("torch_dtype", None)
    content["dtype"] = dtype
    write_whole(output / CONFIG, json.dumps(content, indent=2) + "\n")
    if (output / INDEX).is_file():
        index = json.loads((output / INDEX).read_text())
        size = sum(int(np.prod(t.shape, dtype=np.int64)) for t in tensors.values())
        index["metadata"] = {"total_size": size * kind.itemsize}
        write_whole(output / INDEX, json.dumps(index, indent=2) + "\n")
