"""Tensors in safetensors files: find them, check them before anything is read, read slices.

The headers are read here and not by the `safetensors` package, because a checkpoint that is
wrong in many places should be told all of them at once, and a slice should cost no more than
its own bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from alignuser_jax.durable.whole import replacing
from alignuser_jax.model.files.hf_config import read_json, strict_json

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
FLOATS = {"F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_OTHER_BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16},
    **{"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
_BITS = {name: 8 * dtype.itemsize for name, dtype in FLOATS.items()} | _OTHER_BITS
HEADER_LIMIT = 100 << 20  # bytes, the format's own
PIECE = 32 << 20  # bytes of a file that are mapped at once


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        path: The file.
        dtype: The type, by safetensors' name.
        shape: The shape.
        offset: Where its bytes begin, from the start of the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8

    def pieces(self, index: tuple[slice, ...] = ()) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield a slice (of step 1) in pieces.

        Only one piece of the file is mapped at a time, so that what the slice passes over does
        not fill the process.

        Yields:
            Where the piece belongs along the result's first axis, and its values, which are to
            be copied at once.
        """
        (begin, end, _), *others = self._extents(index)
        inner = tuple(slice(*extent) for extent in others)
        row_bytes = self.nbytes // max(self.shape[0], 1)
        rows = max(1, PIECE // max(row_bytes, 1))
        for first in range(begin, end if row_bytes else begin, rows):
            last = min(first + rows, end)
            place, shape = self.offset + first * row_bytes, (last - first, *self.shape[1:])
            mapped = np.memmap(self.path, FLOATS[self.dtype], "r", place, shape)
            yield slice(first - begin, last - begin), mapped[(slice(None), *inner)]

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Return a copy of a slice (of step 1)."""
        shape = [len(range(*extent)) for extent in self._extents(index)]
        result = np.empty(shape, FLOATS[self.dtype])
        for where, values in self.pieces(index):
            result[where] = values
        return result

    def _extents(self, index: tuple[slice, ...]) -> list[tuple[int, int, int]]:
        extents = [s.indices(size) for s, size in zip(index, self.shape, strict=False)]
        return extents + [(0, size, 1) for size in self.shape[len(index) :]]


def find_tensors(directory: Path, problems: list[str] | None = None) -> dict[str, Tensor]:
    """Find every tensor of `model.safetensors`, or of the files of an index, by name.

    Args:
        directory: The model directory.
        problems: What is wrong is added here instead of raised, for a caller that has more to
            say.

    Raises:
        FileNotFoundError: If files are missing; names them.
        ValueError: If a file has no header, truncated or overlapping tensors, or the index
            disagrees with it; names all that is wrong.
    """
    weight_map: Mapping[str, str] | None = None
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and name == Path(name).name for name in weight_map.values()
        ):
            raise ValueError(
                f"{directory / INDEX} has no weight_map from tensor names to file names"
            )
    files = sorted(set(weight_map.values())) if weight_map else [WHOLE]
    absent = [name for name in files if not (directory / name).is_file()]
    if absent:
        other = sorted(path.name for path in directory.glob("*.bin"))
        raise FileNotFoundError(
            f"{directory} lacks {', '.join(absent)}: expected {WHOLE}, or {INDEX} and every "
            "file that it names"
            + (f"; {', '.join(other)} cannot be read, convert to safetensors" * bool(other))
        )
    return read_headers([directory / name for name in files], weight_map, problems)


def read_headers(
    paths: Iterable[Path],
    weight_map: Mapping[str, str] | None = None,
    collected: list[str] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of several files by name; raise `ValueError` for what is wrong.

    Args:
        paths: The files.
        weight_map: Name of the file that each tensor should be in.
        collected: What is wrong is added here instead of raised.
    """
    found: dict[str, Tensor] = {}
    problems: list[str] = [] if collected is None else collected
    for path in paths:
        for name, tensor in _header(path, problems).items():
            if name in found:
                problems.append(f"{name} is in {found[name].path.name} and in {path.name}")
            found[name] = tensor
    for name, file in (weight_map or {}).items():
        if name not in found:
            problems.append(f"{name} is missing, which the index expects in {file}")
        elif found[name].path.name != file:
            problems.append(f"{name} is in {found[name].path.name}, the index says {file}")
    if problems and collected is None:
        raise ValueError(listed("these safetensors files are broken", problems))
    return found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one file, never torn at its own name, readable by whom the umask says.

    `safetensors` alone makes it readable by its owner only.

    Raises:
        OSError: If it cannot be written, as on a full disk.
    """
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(dict(tensors), partial, {"format": "pt"})
        except SafetensorError as error:  # no OSError, whatever the system said
            needed = sum(values.nbytes for values in tensors.values()) / 1e6
            raise OSError(
                f"cannot write {path} ({needed:,.0f} MB): {error}; make room, or choose a "
                "folder on another disk"
            ) from error
        partial.chmod(mode)


def listed(what: str, problems: list[str], most: int = 40) -> str:
    """Return `what: problem; problem; …`, with at most `most` of them spelled out."""
    rest = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return f"{what}: " + "; ".join(problems[:most] + rest)


def _header(path: Path, problems: list[str]) -> dict[str, Tensor]:
    """Return the tensors in the header of one file, and add what is wrong to `problems`."""

    def wrong(text: str) -> dict:
        problems.append(f"{path.name}: {text}")
        return {}

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            return wrong(f"not a safetensors file ({size} bytes, a header of {length})")
        text = file.read(length)
    try:
        header = strict_json(text)
    except (ValueError, RecursionError) as error:
        return wrong(f"its header is not valid JSON: {error}")
    if not isinstance(header, dict):
        return wrong(f"its header holds a {type(header).__name__}, expected an object")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
        wrong(f"__metadata__ is {json.dumps(about)[:60]}, expected an object of strings")
    data, tensors, extents = size - 8 - length, {}, []
    for name, entry in header.items():
        if not _is_entry(entry):
            wrong(f"{name} is {json.dumps(entry)[:80]}, expected dtype, shape, data_offsets")
            continue
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        extents.append((begin, end, name))
        bits = math.prod(shape) * _BITS.get(entry["dtype"], 0)
        tensors[name] = Tensor(path, entry["dtype"], shape, 8 + length + begin)
        if entry["dtype"] not in _BITS:
            wrong(f"{name} has an unknown dtype {entry['dtype'][:20]!r}")
        elif begin > end or 8 * (end - begin) != bits:
            wrong(
                f"{name} of {entry['dtype']} {list(shape)} takes {bits // 8} bytes, its "
                f"offsets {begin} to {end} hold {end - begin}"
            )
        elif end > data:
            wrong(f"{name} is truncated: it ends at byte {end} of {data}")
    at = 0
    for begin, end, name in sorted(extents):
        if begin != at:
            wrong(f"{name} begins at byte {begin}, what is before it ends at {at}")
        at = max(at, end)
    if at < data:
        wrong(f"{data - at} bytes after the last tensor")
    return tensors


def _is_entry(entry: object) -> bool:
    def sizes(value: object) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)

    return (
        isinstance(entry, dict)
        and entry.keys() == {"dtype", "shape", "data_offsets"}
        and isinstance(entry["dtype"], str)
        and sizes(entry["shape"])
        and len(entry["shape"]) <= 8
        and sizes(entry["data_offsets"])
        and len(entry["data_offsets"]) == 2
    )
