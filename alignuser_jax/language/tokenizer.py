"""Turn text into token ids and back, with own SentencePiece or Hugging Face vocabularies.

Both kinds are behind one small interface, `TextTokenizer`. Chat markers can never come from
content: in own vocabularies they are control symbols, which text cannot spell; for Hugging Face
tokenizers `safe` breaks a marker's spelling, be it a token or plain text of the template such
as [INST].
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from alignuser_jax.durable.whole import replacing
from alignuser_jax.language.prompts import FIXED_PHRASES
from alignuser_jax.world.site import page

Offsets = list[tuple[int, int]]
"""For each token (begin, end) of the text that it stands for, in characters."""

MODEL_FILE = "sentencepiece.model"
"""The file of an own vocabulary in a model's directory."""
PAD, UNK, END = "<pad>", "<unk>", "<|end|>"
ROLE_MARKERS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
ASCII = string.digits + string.ascii_letters + string.punctuation
_SPACE = "\u2581"  # how SentencePiece writes a space

# Answers to what chat templates ask for: no thinking, and no clock in a prompt.
TEMPLATE_OPTIONS: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


WRITTEN_MARKS = r"\[/?[A-Z_]+\]|<</?[A-Z_]+>>"
"""The markers that templates of the Llama 2 family write as plain text: [INST], <<SYS>>, ..."""


class TextTokenizer(Protocol):
    """A tokenizer with a chat format, as rendering, sampling and training use it.

    Attributes:
        vocab_size: The number of token ids.
        eot_id: The token that ends a turn.
        reply_opening: The text between a prompt and the reply's own text: a space for Llama 2,
            else "".
        reply_closing: The text between a reply and `eot_id`: a space for Llama 2, else "".
        pad_id: The token that fills rows up.
        special_ids: The tokens that are no text (turn markers, padding and the like), `eot_id`
            among them.
        fingerprint: Names vocabulary and chat template, for checkpoints and manifests.
        prefix_stable: Whether an assistant's earlier replies stay in the tokens of a longer
            conversation as they were generated; false for templates that rewrite them.

    Example:
        >>> def count_tokens(folder, text):
        ...     tokenizer = TextTokenizer.load(folder)
        ...     ids = tokenizer.encode(text)
        ...     assert tokenizer.decode(ids) == text
        ...     return len(ids)
    """

    vocab_size: int
    eot_id: int
    reply_opening: str
    reply_closing: str
    pad_id: int
    special_ids: frozenset[int]
    fingerprint: str
    prefix_stable: bool

    def encode(self, text: str) -> list[int]:
        """Return the tokens that `text` has inside a longer text.

        So lines that are encoded one by one give the tokens of the whole.
        """
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the tokens of a whole text, and what each stands for."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; special tokens give nothing."""
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of `encode(text)`."""
        ...

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer so that `load` finds it."""
        ...

    @staticmethod
    def load(directory: str | Path) -> SentencePieceTokenizer | HuggingFaceTokenizer:
        """Load the tokenizer in a model's directory, an own one or one of Hugging Face.

        Raises:
            FileNotFoundError: There is none.
        """
        directory = Path(directory)
        if (directory / MODEL_FILE).is_file():
            return SentencePieceTokenizer((directory / MODEL_FILE).read_bytes())
        if not (directory / "tokenizer_config.json").is_file():
            raise FileNotFoundError(
                f"no tokenizer in {directory}: expected {MODEL_FILE} (made by "
                "train_sentencepiece) or a Hugging Face tokenizer_config.json"
            )
        from transformers import AutoTokenizer

        return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(directory))


class SentencePieceTokenizer(TextTokenizer):
    """A vocabulary made by `train_sentencepiece`, with the chat markers of `ROLE_MARKERS`.

    Attributes:
        model: The bytes of the SentencePiece model.
        role_ids: The token that begins a turn, by role.
    """

    prefix_stable = True
    reply_opening = reply_closing = ""

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        # conversations only grow: a session asks with the same messages again and again
        self._encode = functools.lru_cache(maxsize=1 << 15)(self._pieces.encode)
        self.vocab_size = self._pieces.get_piece_size()
        first = [self._pieces.id_to_piece(n) for n in range(min(self.vocab_size, 16))]
        markers = [PAD, END, *ROLE_MARKERS.values()]
        if missing := [marker for marker in markers if marker not in first]:
            raise ValueError(
                f"the SentencePiece model lacks the chat markers {missing}: it was not made by "
                "train_sentencepiece; use a Hugging Face tokenizer with its chat template"
            )
        self.pad_id = first.index(PAD)
        self.eot_id = first.index(END)
        self.role_ids = {role: first.index(marker) for role, marker in ROLE_MARKERS.items()}
        kinds = self._pieces.is_control, self._pieces.is_unknown
        self.special_ids = frozenset(
            n for n in range(self.vocab_size) if any(kind(n) for kind in kinds)
        )
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text` inside a longer text."""
        return list(self._encode(text))

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the tokens of a whole text, and what each stands for.

        Pieces are the text itself (identity normalization). Each byte of a character that fell
        back to bytes gets the whole character.
        """
        ids = self._pieces.encode(text)
        offsets: Offsets = []
        at, bytes_left = 0, 0
        for token in ids:
            if not self._pieces.is_byte(token):
                width = len(self._pieces.id_to_piece(token))
                offsets.append((at, at + width))
                at += width
                continue
            bytes_left = bytes_left or len(text[at].encode())
            offsets.append((at, at + 1))
            bytes_left -= 1
            at += not bytes_left
        return ids, offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; markers give nothing."""
        return self._pieces.decode([int(token) for token in ids])

    def count(self, text: str) -> int:
        """Return how many tokens `encode` gives."""
        return len(self.encode(text))

    def save(self, directory: str | Path) -> None:
        """Write the vocabulary so that `TextTokenizer.load` finds it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(directory / MODEL_FILE) as partial:  # a torn file would look finished
            partial.write_bytes(self.model)


class HuggingFaceTokenizer(TextTokenizer):
    """A fast `transformers` tokenizer that has a chat template.

    Attributes:
        tokenizer: The wrapped tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, so it gives no offsets: "
                "add the model's tokenizer.json"
            )
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template: use the tokenizer of the chat model, or "
                "put a chat_template into tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        added = tokenizer.added_tokens_decoder.values()
        marks = [str(a) for a in added if a.special or re.fullmatch("<.+>", str(a), re.DOTALL)]
        marks += set(re.findall(WRITTEN_MARKS, str(tokenizer.chat_template)))
        marks = sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        self._lead = self._lead_of_a_text()
        self._bytes, self._inside = self._byte_tokens(), self._from_start("a")[-1:]
        self.eot_id, self.reply_opening, self.reply_closing = self._turn()
        pad = tokenizer.pad_token_id
        self.pad_id = self.eot_id if pad is None else pad
        special = {n for n, a in tokenizer.added_tokens_decoder.items() if a.special}
        self.special_ids = frozenset({*special, *tokenizer.all_special_ids, self.eot_id})
        definition = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()
        ask = [{"role": "user", "content": "a"}]
        longer = [*ask, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
        reply = self.chat_text(ask, generation=True) + self.reply_opening + "b"
        self.prefix_stable = self.chat_text(longer).startswith(reply)

    def _lead_of_a_text(self) -> list[int]:
        """Return the tokens of a leading newline if every text gets a space before it.

        Llama 2's does; for others the list is empty.
        """
        lead = self._from_start("\n")
        both = self._from_start("\na")
        prefixed = both[: len(lead)] == lead and both[len(lead) :] != self._from_start("a")
        return lead if prefixed else []

    def _turn(self) -> tuple[int, str, str]:
        """Return (end-of-turn token, text before a reply, text between reply and that token).

        The end-of-turn token is the first added token after a reply as the template writes it.
        """
        ask, reply = [{"role": "user", "content": "a"}], "reply"
        prompt = self.chat_text(ask, generation=True)
        text = self.chat_text([*ask, {"role": "assistant", "content": reply}])
        at = text.rindex(reply)
        end = at + len(reply)
        opening = text[len(prompt) : at] if text[:at].startswith(prompt) else ""
        added, eos = self.tokenizer.added_tokens_decoder, self.tokenizer.eos_token_id
        for token, (begin, _) in zip(*self.encode_with_offsets(text), strict=True):
            if begin >= end and (token in added or token == eos):
                return token, opening, text[end:begin]
        if eos is None:
            raise ValueError("neither the chat template nor eos_token ends a reply")
        return eos, opening, ""

    def chat_text(self, chat: list[dict[str, str]], generation: bool = False) -> str:
        """Return the conversation as the tokenizer's own template writes it.

        Raises:
            ValueError: The template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=generation, **TEMPLATE_OPTIONS
            )
        except TemplateError as error:
            raise ValueError(
                f"the chat template refuses the roles {[turn['role'] for turn in chat]}: "
                f"{error}; this backbone's template cannot render such a conversation"
            ) from error

    def breaks(self, text: str) -> list[int]:
        """Return the places at which a space keeps `text` from spelling a marker."""
        places = []
        match = self._marks.search(text)
        while match:
            places.append(match.start() + 1)
            match = self._marks.search(text, match.start() + 1)
        return places

    def safe(self, text: str) -> str:
        """Return `text` with a space inside whatever would read as a marker."""
        ends = [0, *self.breaks(text), len(text)]
        return " ".join(text[a:b] for a, b in zip(ends, ends[1:], strict=False))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of `text` inside a longer text.

        Raises:
            ValueError: The tokenizer cannot encode line by line.
        """
        lead = self._lead
        ids = self._from_start("\n" + text) if lead else self._from_start(text)
        if ids[: len(lead)] != lead:
            raise ValueError(
                f"{type(self.tokenizer).__name__} joins a newline with what follows and puts a "
                "space before every text: its lines cannot be encoded one by one"
            )
        return ids[len(lead) :]

    def _from_start(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the tokens of a whole text, and the stretch that each stands for."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; special tokens give nothing.

        Bytes that are no character become U+FFFD, and only they. Left to itself a vocabulary
        with byte tokens (Llama 2) gives U+FFFD for all bytes in a row with a broken one, a
        newline among them.
        """
        ids = [int(token) for token in ids if token not in self.special_ids]
        if self._bytes.keys().isdisjoint(ids):
            return self._decode(ids)
        text = ""
        for spelled, tokens in itertools.groupby(ids, self._bytes.__contains__):
            run = list(tokens)
            if spelled:
                text += bytes(self._bytes[token] for token in run).decode(errors="replace")
            elif text:  # a space is cut off at the beginning of the whole text only
                text += self._decode([*self._inside, *run])[1:]
            else:
                text = self._decode(run)
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _byte_tokens(self) -> dict[int, int]:
        """Return the byte that each token such as <0x0A> stands for."""
        if '"ByteFallback"' not in self.tokenizer.backend_tokenizer.to_str():
            return {}
        ids = self.tokenizer.get_vocab()
        names = ((f"<0x{byte:02X}>", byte) for byte in range(256))
        return {ids[name]: byte for name, byte in names if name in ids}

    def count(self, text: str) -> int:
        """Return how many tokens `encode` gives."""
        return len(self.encode(text))

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer as a Hugging Face directory."""
        self.tokenizer.save_pretrained(directory)


def _symbols(extra: Iterable[str]) -> list[str]:
    """Return the texts that are one token each: newline, actions, page skeleton, phrases."""
    ids = [page.local_id(n) for n in range(1, 9)]
    skeleton = [page.PAGE_MARK.strip(), page.PAGE_MARK, page.RATED_MARK, page.SIMILAR_MARK]
    skeleton += [page.FIELD_MARK, page.GENRES_MARK, page.DETAILS_MARK, "SESSION ENDED"]
    skeleton += [f"{item}. " for item in ids]
    actions = ["[NEXT_PAGE]", "[PREVIOUS_PAGE]", "[EXIT]", "[CLICK_ITEM:", "[RATE:"]
    actions += [f"[CLICK_ITEM:{item}]" for item in ids]
    feelings = ["Liked (", "Neutral (", "Disliked (", "): ", "; ", "/5", "None yet."]
    years = [" (19", " (20", ")" + page.RATED_MARK]
    every = ["\n", *skeleton, *actions, *feelings, *years, *FIXED_PHRASES, *extra]
    return list(dict.fromkeys(every))


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    out_dir: str | Path,
    extra_symbols: Sequence[str] = (),
) -> SentencePieceTokenizer:
    """Train a byte-pair vocabulary and save it to `out_dir`.

    It depends on the multiset of lines of `texts` only, not on their order. Text survives
    encoding and decoding unchanged, except that U+2581 comes back as a space.

    Args:
        texts: The texts to train on.
        vocab_size: The most pieces.
        out_dir: The directory for the vocabulary.
        extra_symbols: Texts that become single tokens. They must not hold a newline, which is a
            token of its own, so that lines are tokenised one by one as they are together.

    Raises:
        ValueError: There is no text, `vocab_size` is too small, or an extra symbol is empty or
            holds a newline.

    Example:
        >>> def train(texts):
        ...     tokenizer = train_sentencepiece(texts, vocab_size=4000, out_dir="tokenizer")
        ...     return tokenizer.encode("RATING: 4")
    """
    import sentencepiece

    if bad := [symbol for symbol in extra_symbols if "\n" in symbol or not symbol]:
        raise ValueError(f"extra symbols must be non-empty and without newlines, got {bad}")
    lines = sorted(line for text in texts for line in text.splitlines() if line)
    if not lines:
        raise ValueError("no text to train a tokenizer on")
    symbols = [symbol.replace(" ", _SPACE) for symbol in _symbols(extra_symbols)]
    needed = 3 + len(ROLE_MARKERS) + len(symbols) + 256 + len(ASCII)
    if vocab_size < needed + 100:
        raise ValueError(
            f"vocab_size is {vocab_size}; markers, symbols, bytes and letters alone are "
            f"{needed} pieces: ask for some hundreds more"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        byte_fallback=True,
        character_coverage=0.9998,  # what is rarer is spelled in bytes
        required_chars=ASCII,
        control_symbols=[*ROLE_MARKERS.values(), END],
        user_defined_symbols=symbols,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece=PAD,
        unk_piece=UNK,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    tokenizer.save(out_dir)
    return tokenizer
