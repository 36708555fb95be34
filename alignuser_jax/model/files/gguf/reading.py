"""Open a GGUF model, in one file or in parts: its metadata, and its tensors block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from alignuser_jax.model.files.gguf.header import GgufError, TensorInfo, check_header

_T = TypeVar("_T")

DEQUANTIZED_BYTES = 32 << 20
"""Bytes of float32 that are dequantized at once."""

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_REQUIRED = object()


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: Its name in the file.
        shape: Sizes in NumPy's order, rows first: `[out, in]` for a linear map.
        kind: Name of its type, such as "Q4_1".
        data: Its bytes, mapped from the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: np.ndarray

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield `(rows, float32[rows, columns])`, a bounded number of rows at a time."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.kind]
        columns, total = self.shape[-1], math.prod(self.shape[:-1])
        data = self.data.reshape(total, -1)
        step = max(1, DEQUANTIZED_BYTES // (4 * columns))
        for first in range(0, total, step):
            rows = slice(first, min(first + step, total))
            block = np.ascontiguousarray(data[rows])
            yield rows, dequantize(block, kind).reshape(-1, columns)

    def read(self) -> np.ndarray:
        """Return the whole tensor as float32 of `shape`."""
        values = np.empty((math.prod(self.shape[:-1]), self.shape[-1]), np.float32)
        for rows, block in self.blocks():
            values[rows] = block
        return values.reshape(self.shape)


class GgufModel:
    """The metadata and the tensors of a model in one GGUF file or in its parts.

    Attributes:
        path: The file that was named.
        paths: Every file of the model, in order.
        tensors: Name to tensor.

    Example:
        >>> model = GgufModel("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> model.value("general.architecture", str)
        'llama'
    """

    def __init__(self, path: str | Path):
        """Open the files.

        Raises:
            FileNotFoundError: If the file, or a part of it, is missing.
            GgufError: If a file is broken; names the file, the place and the reason.
        """
        self.path = Path(path)
        self.paths = _parts_of(self.path)
        headers = [check_header(part) for part in self.paths]
        readers = [_reader(part) for part in self.paths]
        self._metadata = _contents(self.paths[0], readers[0])
        self.tensors: dict[str, GgufTensor] = {}
        for part, header, reader in zip(self.paths, headers, readers, strict=True):
            for tensor in _tensors(part, header, reader):
                if tensor.name in self.tensors:
                    raise GgufError(f"{part}: the tensor {tensor.name!r} stands there twice")
                self.tensors[tensor.name] = tensor
        expected = self.value("split.tensors.count", int, len(self.tensors))
        if expected != len(self.tensors):
            raise GgufError(
                f"{self.path} and its parts hold {len(self.tensors)} tensors, "
                f"expected {expected}"
            )

    def has(self, key: str) -> bool:
        """Whether the metadata has the key."""
        return key in self._metadata

    def value(self, key: str, kind: type[_T], default: Any = _REQUIRED) -> _T:
        """Return a value of the metadata.

        Args:
            key: Its key.
            kind: The type that it must have; an integer also serves where a float is expected.
            default: What stands for a missing key; without it the key is required.

        Raises:
            GgufError: If a required key is missing, or a value has another type.
        """
        if key not in self._metadata:
            if default is _REQUIRED:
                raise GgufError(f"{self.path} lacks {key}: it is no whole model")
            return cast(_T, default)
        value = self._metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise GgufError(f"{self.path}: {key} is {value!r:.80}, expected {kind.__name__}")
        return value


def _parts_of(path: Path) -> list[Path]:
    """The file itself, or all parts of a model that was split (NAME-00001-of-00003.gguf)."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= 1000:
        raise GgufError(f"{path}: a model in {count} parts: 1 to 1000 are read")
    parts = [
        path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise FileNotFoundError(
            f"{path} is one of {count} parts, and these are missing beside it: "
            f"{', '.join(missing[:5])}"
        )
    return parts


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise GgufError(f"{path} cannot be read: {error}") from error


def _contents(path: Path, reader: Any) -> dict[str, Any]:
    """The metadata as plain values."""
    values = {}
    for name, field in reader.fields.items():
        try:
            values[name] = field.contents()
        except (ValueError, IndexError, KeyError) as error:  # text that is not UTF-8 among them
            raise GgufError(f"{path}: the key {name!r} cannot be read: {error}") from error
    return values


def _tensors(path: Path, header: Sequence[TensorInfo], reader: Any) -> Iterator[GgufTensor]:
    """The tensors of a file, each known to lie inside it and to be of a type that is read."""
    size = path.stat().st_size
    readable: dict[str, bool] = {}
    for info, tensor in zip(header, reader.tensors, strict=True):
        kind = tensor.tensor_type.name
        if kind not in readable:
            readable[kind] = _dequantizes(tensor.tensor_type)
        if not readable[kind]:
            raise GgufError(
                f"{path}: the tensor {info.name!r} is of type {kind}, which the package gguf "
                "cannot turn into numbers: give a file of another quantization"
            )
        shape = tuple(reversed(info.shape))
        begin = reader.data_offset + info.offset
        if math.prod(shape) != tensor.n_elements or not all(shape):
            raise GgufError(f"{path}: the tensor {info.name!r} has the shape {list(shape)}")
        if begin != tensor.data_offset or begin + tensor.n_bytes > size:
            raise GgufError(
                f"{path}: the tensor {info.name!r} lies at byte {begin:,}, with "
                f"{tensor.n_bytes:,} bytes: outside the file of {size:,}"
            )
        yield GgufTensor(info.name, shape, kind, tensor.data)


def _dequantizes(kind: Any) -> bool:
    """Whether the package can turn this type into numbers, tried on one block of zeros."""
    from gguf import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
