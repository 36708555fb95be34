"""Import a GGUF model as a Hugging Face directory, which serves as a backbone everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from alignuser_jax.durable.room import require_room
from alignuser_jax.durable.whole import write_whole
from alignuser_jax.model.config import DecoderConfig
from alignuser_jax.model.files.gguf.header import GgufError
from alignuser_jax.model.files.gguf.reading import GgufModel
from alignuser_jax.model.files.gguf.shape import read_shape
from alignuser_jax.model.files.gguf.vocabulary import GgufVocabulary, read_vocabulary
from alignuser_jax.model.files.gguf.weights import (
    WEIGHT_TYPES,
    named_tensors,
    read_as,
    shards_of,
)
from alignuser_jax.model.files.hf_config import CONFIG, GENERATION, to_hf
from alignuser_jax.model.files.tensors import INDEX, WHOLE, write_tensors

SHARD_BYTES = 1 << 30
"""Bytes of one file of weights; the import needs about that much memory."""

TEMPLATE_SECONDS = 20.0
"""How long a chat template may take for three messages, with the start of a process."""

SOURCE_FILE = "gguf.json"
"""Says what the directory was imported from; written last, so its absence says 'not whole'."""

_TRY_TEMPLATE = """
import json, resource, sys
from transformers.utils.chat_template_utils import render_jinja_template
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
template, tokens = json.load(sys.stdin)
chat = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]
render_jinja_template(
    [chat], chat_template=template, add_generation_prompt=True, enable_thinking=False, **tokens
)
"""


def import_gguf(
    source: str | Path,
    output: str | Path,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a GGUF model as a Hugging Face directory: config, tokenizer and weights.

    Everything about the file is checked before the first weight is written. Interrupted, the
    same call goes on with the files of weights that are missing; a finished directory is left
    as it is.

    Args:
        source: The file, or one of its parts.
        output: The directory; empty, new, or one of the same file that is not finished.
        dtype: "bfloat16" or "float32". Quantized weights lose nothing of note in bfloat16's 8
            bits of mantissa only if they have at most 8 bits themselves.
        shard_bytes: Bytes of one file of weights.
        say: Is told how far the import is.

    Returns:
        The directory.

    Raises:
        FileNotFoundError: If the file or a part is missing.
        FileExistsError: If the directory holds something else.
        GgufError: If the file is broken, or holds what cannot be computed; says what.
        OSError: If the disk has no room for the weights.

    Example:
        >>> import_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2")
        PosixPath('smollm2')
    """
    if dtype not in WEIGHT_TYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(WEIGHT_TYPES)}")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}: expected at least 1")
    model, output = GgufModel(source), Path(output)
    origin = {"files": hashes_of(model.paths), "dtype": dtype, "shard_bytes": shard_bytes}
    if _is_finished(output, origin):
        say(f"{output}: already imported")
        return output
    config, vocabulary = read_shape(model), read_vocabulary(model)
    _check_shapes(model, config)
    _check_template(model, vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    _check_room(model, config, output, dtype)
    write_whole(output / _CLAIM, json.dumps(origin, sort_keys=True) + "\n")
    _write_weights(model, config, output, dtype, shard_bytes, say)
    _write_words(config, vocabulary, output, dtype)
    write_whole(output / SOURCE_FILE, json.dumps(origin, indent=1) + "\n")
    (output / _CLAIM).unlink()
    return output


_CLAIM = ".import.json"


def cached_import(source: str | Path, dtype: str = "bfloat16") -> Path:
    """Import a GGUF model into the cache, unless it is there, and return its directory.

    The directory is named by the content of the file, so a file that changes is imported again.
    The cache is `alignuser_jax/gguf` in `XDG_CACHE_HOME` (default `~/.cache`).

    Raises:
        FileNotFoundError: If there is no such file.
        GgufError: If the file cannot be imported; says why.
    """
    from filelock import FileLock

    model = GgufModel(source)
    name = hashlib.sha256("".join(hashes_of(model.paths).values()).encode()).hexdigest()[:24]
    cache = cache_folder() / "gguf"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}-{dtype}.lock"):  # the processes of a host share one import
        return import_gguf(source, cache / f"{name}-{dtype}", dtype=dtype)


def cache_folder() -> Path:
    """Return the folder for what this project downloads or converts once."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "alignuser_jax"


def hashes_of(paths: list[Path]) -> dict[str, str]:
    """Return file name to SHA-256 of its content."""
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _is_finished(output: Path, origin: dict) -> bool:
    """Whether the directory holds this import, whole; refuses one that holds something else."""
    for mark in (SOURCE_FILE, _CLAIM):
        if (output / mark).is_file():
            before = json.loads((output / mark).read_text())
            if _by_content(before) == _by_content(origin):
                return mark == SOURCE_FILE
            raise FileExistsError(
                f"{output} was imported from another file, or with another type: give another "
                "directory"
            )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is not empty: give a new directory")
    return False


def _by_content(origin: dict) -> dict:
    """The same without the names of the files: a file that was renamed is the same model."""
    return origin | {"files": list(origin["files"].values())}


def _check_room(model: GgufModel, config: DecoderConfig, output: Path, dtype: str) -> None:
    """Refuse a disk without room for the weights; those of an interrupted import count."""
    width = WEIGHT_TYPES[dtype].itemsize
    sizes = (_elements(tensor.shape) for tensor, _ in named_tensors(model, config).values())
    there = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    require_room(output, width * sum(sizes) - there, f"{model.path.name} as {dtype}")


def _check_shapes(model: GgufModel, config: DecoderConfig) -> None:
    """Hold every tensor against the shape that the decoder gives it, before any is read."""
    expected = expected_shapes(config)
    named = named_tensors(model, config)
    problems = [f"{name} is missing" for name in expected if name not in named]
    for name, (tensor, _) in named.items():
        if name not in expected:
            problems.append(f"{name} is unexpected")
        elif tensor.shape != expected[name]:
            problems.append(
                f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}"
            )
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        shown = "; ".join(problems[:8]) + more
        raise GgufError(f"{model.path}: the tensors do not fit the metadata: {shown}")


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Return Hugging Face's name of every tensor of a decoder to its shape, rows first."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    linear = {
        "q": ("self_attn.q_proj", queries, hidden),
        "k": ("self_attn.k_proj", keys, hidden),
        "v": ("self_attn.v_proj", keys, hidden),
        "o": ("self_attn.o_proj", hidden, queries),
        "gate": ("mlp.gate_proj", inner, hidden),
        "up": ("mlp.up_proj", inner, hidden),
        "down": ("mlp.down_proj", hidden, inner),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}
    for layer in range(config.num_layers):
        start = f"model.layers.{layer}."
        shapes |= {f"{start}{name}.weight": (size,) for name, size in norms.items()}
        for projection, (name, rows, columns) in linear.items():
            shapes[f"{start}{name}.weight"] = (rows, columns)
            if config.has_bias(projection):
                shapes[f"{start}{name}.bias"] = (rows,)
    return shapes


def _check_template(model: GgufModel, vocabulary: GgufVocabulary) -> None:
    """Render the chat template once in a process of its own, since a template is a program."""
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens = {name: vocabulary.config.get(name, "") for name in names}
    program_input = json.dumps([vocabulary.config["chat_template"], tokens])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY_TEMPLATE],
            input=program_input,
            capture_output=True,
            text=True,
            timeout=TEMPLATE_SECONDS,
            env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
        )
    except subprocess.TimeoutExpired as error:
        raise GgufError(
            f"{model.path}: the chat template is not done after {TEMPLATE_SECONDS:.0f} s; it "
            "is not used"
        ) from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise GgufError(f"{model.path}: the chat template fails: {reason[0][:200]}")


def _write_weights(
    model: GgufModel,
    config: DecoderConfig,
    output: Path,
    dtype: str,
    shard_bytes: int,
    say: Callable[[str], None],
) -> None:
    named = named_tensors(model, config)
    shards = list(shards_of(model, config, dtype, shard_bytes))
    files = [
        f"model-{n:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WHOLE
        for n in range(1, len(shards) + 1)
    ]
    for n, (file, names) in enumerate(zip(files, shards, strict=True), start=1):
        if (output / file).is_file():
            say(f"{file}: already there")
            continue
        tensors = {name: read_as(*named[name], WEIGHT_TYPES[dtype]) for name in names}
        write_tensors(output / file, tensors)
        say(f"{file}: {len(tensors)} tensors ({n} of {len(shards)} files)")
    if len(shards) > 1:
        width = WEIGHT_TYPES[dtype].itemsize
        sizes = (int(_elements(tensor.shape)) * width for tensor, _ in named.values())
        places = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
        write_whole(output / INDEX, json.dumps(index, indent=2) + "\n")


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _write_words(
    config: DecoderConfig, vocabulary: GgufVocabulary, output: Path, dtype: str
) -> None:
    """Write everything but the weights: config, generation config and tokenizer."""
    ends = list(config.eos_token_ids)
    if ends:
        write_whole(output / GENERATION, json.dumps({"eos_token_id": ends}) + "\n")
    content = to_hf(config) | {"dtype": dtype}
    write_whole(output / CONFIG, json.dumps(content, indent=2) + "\n")
    write_whole(output / "tokenizer.json", vocabulary.tokenizer.to_str())
    write_whole(
        output / "tokenizer_config.json", json.dumps(vocabulary.config, indent=2) + "\n"
    )
