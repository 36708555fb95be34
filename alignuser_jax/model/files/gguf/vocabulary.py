"""Build a Hugging Face tokenizer from the vocabulary in a GGUF file.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`); the patterns are those that
llama.cpp has under this name (`src/llama-vocab.cpp`). `transformers` has a reader of its own,
which ignores that name and splits digits and spaces otherwise, so it is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignuser_jax.model.files.gguf.header import GgufError
from alignuser_jax.model.files.gguf.reading import GgufModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`, as llama.cpp numbers them."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MODERN = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is cut before byte pairs are merged.

    Attributes:
        patterns: Regular expressions; each cuts what the ones before left whole.
        compose: Whether text is first put into Unicode's composed form (NFC).
        whole_words: Whether a word that is a token is taken without merging.
    """

    patterns: tuple[str, ...]
    compose: bool = False
    whole_words: bool = False


_LLAMA_3 = PreTokenizer(
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _MODERN,), whole_words=True
)
_QWEN_2 = PreTokenizer(
    (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _MODERN,), compose=True
)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "qwen2": _QWEN_2,
    "deepseek-r1-qwen": _QWEN_2,
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
}
"""Name in the file to how text is cut."""


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokenizer of a GGUF model.

    Attributes:
        tokenizer: A tokenizer of the package `tokenizers`.
        config: The content of `tokenizer_config.json`.
    """

    tokenizer: Tokenizer
    config: dict[str, Any]


def read_vocabulary(model: GgufModel) -> GgufVocabulary:
    """Build the tokenizer of a GGUF model.

    Raises:
        GgufError: If the kind of vocabulary or its pre-tokenizer is unknown (names it), the
            lists disagree, or there is no chat template.
    """
    kind = model.value("tokenizer.ggml.model", str)
    tokens = _texts(model, "tokenizer.ggml.tokens")
    rows = model.tensors["token_embd.weight"].shape[0]
    if len(tokens) > rows:
        raise GgufError(f"{model.path} has {len(tokens)} tokens for {rows} embeddings")
    if len(set(tokens)) != len(tokens):
        raise GgufError(f"{model.path}: tokenizer.ggml.tokens holds a token twice")
    types = model.value("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise GgufError(f"{model.path} has {len(types)} token types for {len(tokens)} tokens")
    if kind == "gpt2":
        tokenizer = _byte_pairs(model, tokens)
    elif kind == "llama":
        tokenizer = _sentence_pieces(model, tokens, types)
    else:
        raise GgufError(
            f"{model.path} has a vocabulary of kind {kind!r}: gpt2 (byte pairs) and llama "
            "(SentencePiece) are read"
        )
    _add_special(tokenizer, tokens, types)
    return GgufVocabulary(tokenizer, _config(model, tokens))


def _texts(model: GgufModel, key: str) -> list[str]:
    values = model.value(key, list)
    if not all(isinstance(value, str) for value in values):
        raise GgufError(f"{model.path}: {key} holds something else than texts")
    return values


def _byte_pairs(model: GgufModel, tokens: Sequence[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = model.value("tokenizer.ggml.pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise GgufError(
            f"{model.path} has the pre-tokenizer {name!r}; {', '.join(PRE_TOKENIZERS)} are "
            "read. Another would cut numbers and spaces otherwise: give the Hugging Face "
            "directory of the model instead"
        )
    how = PRE_TOKENIZERS[name]
    merges = []
    for text in _texts(model, "tokenizer.ggml.merges"):
        left, space, right = text.partition(" ")
        if not space or not left or not right:
            raise GgufError(f"{model.path}: the merge {text!r} is no pair of tokens")
        merges.append((left, right))
    ids = {token: number for number, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(
            models.BPE(vocab=ids, merges=merges, ignore_merges=how.whole_words)
        )
    except Exception as error:  # the package raises its own, without a base of its own
        raise GgufError(f"{model.path}: the merges do not fit the tokens: {error}") from error
    if how.compose:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in how.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(
    model: GgufModel, tokens: Sequence[str], types: Sequence[int]
) -> Tokenizer:
    """The tokenizer of a SentencePiece vocabulary: byte pairs in the order of their scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = model.value("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise GgufError(f"{model.path} has {len(scores)} scores for {len(tokens)} tokens")
    ids = {token: number for number, token in enumerate(tokens)}
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(ids, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = model.value("tokenizer.ggml.add_space_prefix", bool, True)
    steps: list[Any] = [normalizers.Prepend("\u2581")] if prefix else []
    steps.append(normalizers.Replace(" ", "\u2581"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*back, decoders.Strip(content=" ", left=1)] if prefix else back
    )
    return tokenizer


def _merges(
    ids: Mapping[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Every way to make a piece of two pieces, best score first.

    SentencePiece merges the neighbours whose union has the best score; as a list of merges that
    is each pair at the rank of its union (equal scores: the lower id first).
    """
    pairs = []
    for piece, number in ids.items():
        if types[number] not in (NORMAL, USER_DEFINED):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                pairs.append((-scores[number], number, ids[left], ids[right], left, right))
    pairs.sort()
    return [(left, right) for *_, left, right in pairs]


def _add_special(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    from tokenizers import AddedToken

    for kind, special in ((CONTROL, True), (UNKNOWN, True), (USER_DEFINED, False)):
        texts = [t for t, own in zip(tokens, types, strict=True) if own == kind]
        added = [AddedToken(t, special=special, normalized=False) for t in texts if t]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)


def _config(model: GgufModel, tokens: Sequence[str]) -> dict[str, Any]:
    template = model.value("tokenizer.chat_template", str, "")
    if not template:
        raise GgufError(
            f"{model.path} has no chat template: give the file of the chat (instruct) model"
        )
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.value(
            f"{model.value('general.architecture', str)}.context_length", int
        ),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        number = model.value(f"tokenizer.ggml.{key}_token_id", int, -1)
        if number >= len(tokens):
            raise GgufError(f"{model.path}: the {key} token {number} is outside the vocabulary")
        if number >= 0:
            config[f"{name}_token"] = tokens[number]
    return json.loads(json.dumps(config))
