"""A pretrained model with its adapters, for code outside this project.

`load_pretrained` reads one from a directory or from the Hugging Face hub; `LanguageModel` gives
its logits, hidden states and embeddings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from alignuser_jax.model.attention import RowLayout
from alignuser_jax.model.config import DecoderConfig
from alignuser_jax.model.decoder import Decoder, Execution
from alignuser_jax.model.files.backbone import backbone_directory
from alignuser_jax.model.files.weights import load_decoder
from alignuser_jax.model.states import merge, split

AdapterNames = str | None | Sequence[str | None]
"""An adapter's name (None: the base model) for all rows, or one name per row."""

Result = Literal["logits", "hidden", "embed"]
"""What a forward pass returns."""

_ONLY = "the only one"


class _Rows(NamedTuple):
    """What a call computes on, each with B rows; `adapter [B]` counts from 1, 0 is the base."""

    tokens: jax.Array
    segment_ids: jax.Array | None
    lengths: jax.Array | None
    adapter: jax.Array


def load_pretrained(
    directory: str | Path,
    *,
    dtype: jnp.dtype = jnp.bfloat16,
    mesh: Mesh | None = None,
    adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path] | None = None,
    attention: str = "xla",
) -> LanguageModel:
    """Load a model from its directory, hub id (downloaded once per host) or GGUF file.

    Args:
        directory: A model's directory, its id `owner/name` on the Hugging Face hub, a GGUF
            file, or the name of a published model (`files.backbone`).
        dtype: Type of weights and activations; norms, softmax and accumulation are f32 always.
        mesh: From `parallel.make_mesh`; every device reads its own part of each weight.
        adapters: PEFT directories that share this base. A mapping names them, otherwise each
            has its folder's name.
        attention: "xla", "cudnn" or "splash" (`attention.attend_causal`).

    Raises:
        FileNotFoundError: If there is no such model or a file of it is missing.
        ValueError: If its configuration, tensors or adapters do not fit, or its GGUF file
            cannot be imported. Both are raised before anything is allocated.

    Example:
        >>> model = load_pretrained(  # doctest: +SKIP
        ...     "Qwen/Qwen3-8B", adapters={"policy": "runs/x/align/adapter"}
        ... )
        >>> tokens = np.array([[9707, 11, 1879]])
        >>> model.logits(tokens).shape  # of the adapted model  # doctest: +SKIP
        (1, 3, 151936)
        >>> base = model.logits(tokens, adapter=None)  # of the base  # doctest: +SKIP
    """
    if isinstance(adapters, (str, Path)):
        adapters = [adapters]
    if adapters is not None and not isinstance(adapters, Mapping):
        names = [Path(path).name for path in adapters]
        if len(set(names)) < len(names):
            raise ValueError(
                f"adapters share a folder name, {names}: give a mapping from names to folders"
            )
        adapters = dict(zip(names, adapters, strict=True))
    folder = backbone_directory(directory, jnp.dtype(dtype).name)
    decoder = load_decoder(folder, adapters=adapters, dtype=dtype, mesh=mesh)
    return LanguageModel(decoder, mesh, attention)


class LanguageModel:
    """A decoder with its weights and adapters, called with NumPy or JAX arrays.

    Tokens are int `[B, T]`. Rows of different lengths are padded on the right: attention is
    causal, so what follows a token does not change its result.

    Args:
        decoder: From `load_decoder` or `init_decoder`.
        mesh: The mesh its weights lie on; None for one device.
        attention: "xla", "cudnn" or "splash" (`attention.attend_causal`).

    Example:
        >>> from alignuser_jax.model import DecoderConfig, init_decoder
        >>> model = LanguageModel(init_decoder(DecoderConfig(vocab_size=64)))
        >>> model.logits(np.array([[5, 6, 7]])).shape
        (1, 3, 64)
        >>> model.embed(np.array([[5, 6, 7], [5, 6, 0]]), lengths=[3, 2]).shape
        (2, 128)
    """

    def __init__(self, decoder: Decoder, mesh: Mesh | None = None, attention: str = "xla"):
        self.decoder, self._mesh, self._attention = decoder, mesh, attention
        self._parts = split(decoder)

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shape."""
        return self.decoder.config

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded."""
        return tuple(name for name, _ in self.decoder.adapters)

    def logits(
        self,
        tokens: jax.typing.ArrayLike,
        segment_ids: jax.typing.ArrayLike | None = None,
        *,
        adapter: AdapterNames = _ONLY,
    ) -> jax.Array:
        """Return f32 logits `[B, T, V]`.

        Args:
            tokens: int `[B, T]`.
            segment_ids: int `[B, T]` for packed rows: a token sees its own segment only, whose
                positions count from 0.
            adapter: Name of the adapter; by default the only one that is loaded, or the base.

        Raises:
            ValueError: If an argument has another shape or range, or this is an embedding
                model, which has no logits.
        """
        if self.config.headless:
            self.decoder.head()  # raises the error that says why
        return self._run(tokens, segment_ids, None, adapter, "logits")

    def hidden(
        self,
        tokens: jax.typing.ArrayLike,
        segment_ids: jax.typing.ArrayLike | None = None,
        *,
        adapter: AdapterNames = _ONLY,
    ) -> jax.Array:
        """Return the hidden states `[B, T, D]` after the last norm, in the model's dtype.

        The arguments are those of `logits`.
        """
        return self._run(tokens, segment_ids, None, adapter, "hidden")

    def embed(
        self,
        tokens: jax.typing.ArrayLike,
        lengths: jax.typing.ArrayLike | None = None,
        *,
        adapter: AdapterNames = _ONLY,
    ) -> jax.Array:
        """Return f32 embeddings `[B, D]` of norm 1: each row's hidden state at its last token.

        That is last-token pooling, as in Qwen3-Embedding's model card; its texts end with the
        tokenizer's `<|endoftext|>`.

        Args:
            tokens: int `[B, T]`.
            lengths: int `[B]`: how many tokens of each row are text; default all.
            adapter: As in `logits`.
        """
        shape = np.shape(tokens)
        sizes = np.full(shape[:1], shape[-1]) if lengths is None else np.asarray(lengths)
        if sizes.shape != shape[:1] or (sizes < 1).any() or (sizes > shape[-1]).any():
            raise ValueError(
                f"lengths={sizes.tolist()}: expected one number of 1 to {shape[-1]} for each "
                f"of {shape[0]} rows"
            )
        return self._run(tokens, None, sizes, adapter, "embed")

    def _run(
        self,
        tokens: jax.typing.ArrayLike,
        segment_ids: jax.typing.ArrayLike | None,
        lengths: np.ndarray | None,
        adapter: AdapterNames,
        result: Result,
    ) -> jax.Array:
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"tokens are {tokens.dtype}{list(tokens.shape)}, expected integers [B, T]"
            )
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise ValueError(
                f"tokens of {tokens.min()} to {tokens.max()}, the vocabulary has "
                f"{self.config.vocab_size}"
            )
        if segment_ids is not None and np.shape(segment_ids) != tokens.shape:
            raise ValueError(
                f"segment_ids are {np.shape(segment_ids)}, tokens are {tokens.shape}"
            )
        count = len(tokens)
        mesh = self._mesh
        spread = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        missing = -count % spread  # devices get equal numbers of rows

        def padded(array: jax.typing.ArrayLike) -> Any:  # NumPy here, traced in `_forward`
            return _repeat_last(np.asarray(array, np.int32), missing)

        rows = _Rows(
            padded(tokens),
            None if segment_ids is None else padded(segment_ids),
            None if lengths is None else padded(lengths),
            padded(self._numbers(adapter, count)),
        )
        context = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
        with context:
            values = _forward(result, self._attention, self._parts, rows)
        return values[:count] if missing else values

    def _numbers(self, adapter: AdapterNames, rows: int) -> np.ndarray:
        """Return the number of each row's adapter, 0 for the base."""
        names = self.adapters
        if adapter is _ONLY:
            if len(names) > 1:
                raise ValueError(
                    f"several adapters are loaded, {list(names)}: give adapter=NAME, one name "
                    "per row, or None for the base"
                )
            adapter = names[0] if names else None
        chosen = [adapter] * rows if adapter is None or isinstance(adapter, str) else adapter
        unknown = sorted({str(name) for name in chosen if name not in (None, *names)})
        if unknown or len(chosen) != rows:
            raise ValueError(
                f"adapter={adapter!r}: expected one of {[None, *names]}, or {rows} of them"
            )
        return np.array([0 if name is None else 1 + names.index(name) for name in chosen])


def _repeat_last(rows: np.ndarray, times: int) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], times, axis=0)]) if times else rows


# The structure is an attribute of the tree of parts, hence static: one compilation per model.
@partial(jax.jit, static_argnums=(0, 1))
def _forward(
    result: Result,
    attention: str,
    parts: tuple[nnx.GraphDef, nnx.State, nnx.State],
    rows: _Rows,
) -> jax.Array:
    decoder = merge(*parts)
    tokens, segment_ids, lengths, adapter = rows
    order = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    positions = order
    if segment_ids is not None:
        before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        starts = jax.lax.cummax(jnp.where(segment_ids != before, order, 0), axis=1)
        positions = order - starts
    layout, execution = RowLayout(segment_ids, lengths), Execution(attention)
    hidden = decoder(tokens, positions, layout, execution, adapter=adapter)
    if result == "logits":
        return decoder.logits(hidden)
    if result == "hidden":
        return hidden
    assert lengths is not None  # an embedding is that of the last token
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    last = last.astype(jnp.float32)
    return last / jnp.maximum(jnp.linalg.norm(last, axis=-1, keepdims=True), 1e-12)
