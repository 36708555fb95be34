"""The public face: a pretrained model with its adapters, for code outside this project.

model = load_pretrained("Qwen/Qwen3-8B", dtype=jnp.bfloat16, adapters="runs/x/align/adapter")
model.logits(tokens)                    # f32 [B, T, V] of the adapted model
model.logits(tokens, adapter=None)      # of the base
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignuser_jax.model.config import DecoderConfig
from alignuser_jax.model.decoder import Decoder
from alignuser_jax.model.files.hub import local_directory
from alignuser_jax.model.files.weights import load_decoder
from alignuser_jax.model.states import merge, split

Choice = str | None | Sequence[str | None]
"""An adapter's name (None: the base), for all rows or one per row."""

_ONLY = "the only one"


def load_pretrained(
    directory: str | Path,
    *,
    dtype: jnp.dtype = jnp.bfloat16,
    mesh: Mesh | None = None,
    adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path] | None = None,
    attention: str = "xla",
) -> LanguageModel:
    """The model in a Hugging Face directory, or of a hub id (downloaded once per host).

    Args:
      dtype: of weights and activations; norms, softmax and accumulation are f32 always.
      mesh: from `parallel.make_mesh`; every device reads its own part of each weight.
      adapters: PEFT directories that share this base. A mapping names them, otherwise they
        are called by their folder's name.
      attention: "xla", "cudnn" or "splash" (`attention.attend_causal`).

    Raises `FileNotFoundError` and `ValueError` as `load_decoder` does, before anything is
    allocated.
    """
    if isinstance(adapters, (str, Path)):
        adapters = [adapters]
    if adapters is not None and not isinstance(adapters, Mapping):
        names = [Path(path).name for path in adapters]
        if len(set(names)) < len(names):
            raise ValueError(f"adapters share the names {names}: give a mapping name -> folder")
        adapters = dict(zip(names, adapters, strict=True))
    decoder = load_decoder(
        local_directory(directory), adapters=adapters, dtype=dtype, mesh=mesh
    )
    return LanguageModel(decoder, mesh, attention)


class LanguageModel:
    """A decoder with its weights. Tokens are int `[B, T]`, padded on the right where rows
    differ (causal attention: what follows a token does not change it)."""

    def __init__(self, decoder: Decoder, mesh: Mesh | None = None, attention: str = "xla"):
        self.decoder, self._mesh, self._attention = decoder, mesh, attention
        self._parts = split(decoder)

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.decoder.adapters)

    def logits(
        self,
        tokens: jax.typing.ArrayLike,
        segment_ids: jax.typing.ArrayLike | None = None,
        *,
        adapter: Choice = _ONLY,
    ) -> jax.Array:
        """f32 `[B, T, V]`. `segment_ids [B, T]`: packed rows; a token sees its own segment,
        whose positions count from 0. `adapter`: by default the only one there is."""
        if self.config.headless:
            self.decoder.head()  # says why there are none
        return self._run(tokens, segment_ids, None, adapter, "logits")

    def hidden(
        self,
        tokens: jax.typing.ArrayLike,
        segment_ids: jax.typing.ArrayLike | None = None,
        *,
        adapter: Choice = _ONLY,
    ) -> jax.Array:
        """`[B, T, D]` in the model's dtype: what the head sees, after the last norm."""
        return self._run(tokens, segment_ids, None, adapter, "hidden")

    def embed(
        self,
        tokens: jax.typing.ArrayLike,
        lengths: jax.typing.ArrayLike | None = None,
        *,
        adapter: Choice = _ONLY,
    ) -> jax.Array:
        """f32 `[B, D]` of length 1: the hidden state of each row's last token (last-token
        pooling, as Qwen3-Embedding's model card has it; its texts end with the tokenizer's
        `<|endoftext|>`). `lengths [B]`: how many tokens of each row are text, default all."""
        shape = np.shape(tokens)
        lengths = np.full(shape[:1], shape[-1]) if lengths is None else np.asarray(lengths)
        if lengths.shape != shape[:1] or (lengths < 1).any() or (lengths > shape[-1]).any():
            raise ValueError(
                f"lengths={lengths.tolist()}: expected one number of 1 to {shape[-1]} for each "
                f"of {shape[0]} rows"
            )
        return self._run(tokens, None, lengths, adapter, "embed")

    def _run(self, tokens, segment_ids, lengths, adapter, what: str) -> jax.Array:
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
        rows = len(tokens)
        given = tokens, segment_ids, lengths, self._numbers(adapter, rows)
        mesh = self._mesh
        spread = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
        missing = -rows % spread  # rows are spread over devices evenly
        padded = [
            None if a is None else _repeat_last(np.asarray(a, np.int32), missing) for a in given
        ]
        context = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
        with context:
            result = _forward(what, self._attention, *self._parts, *padded)
        return result[:rows] if missing else result

    def _numbers(self, adapter: Choice, rows: int) -> np.ndarray:
        """Adapters by number, 0 the base, one per row."""
        names = self.adapters
        if adapter is _ONLY:
            if len(names) > 1:
                raise ValueError(
                    f"several adapters are resident, {list(names)}: say adapter=NAME, one name "
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


@partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(what, attention, graphdef, lora, base, tokens, segment_ids, lengths, adapter):
    decoder = merge(graphdef, lora, base)
    order = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    positions = order
    if segment_ids is not None:
        before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        starts = jax.lax.cummax(jnp.where(segment_ids != before, order, 0), axis=1)
        positions = order - starts
    options = {"lengths": lengths, "implementation": attention, "adapter": adapter}
    hidden, _ = decoder(tokens, positions, segment_ids, **options)
    if what == "logits":
        return decoder.logits(hidden)
    if what == "hidden":
        return hidden
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    last = last.astype(jnp.float32)
    return last / jnp.maximum(jnp.linalg.norm(last, axis=-1, keepdims=True), 1e-12)
