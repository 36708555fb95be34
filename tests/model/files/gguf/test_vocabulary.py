"""Tokenizers out of GGUF files give the tokens of those that went in."""

import random
from pathlib import Path

import pytest

from alignuser_jax.language import TextTokenizer
from alignuser_jax.model.files.gguf.header import GgufError
from alignuser_jax.model.files.gguf.importing import import_gguf
from alignuser_jax.model.files.gguf.reading import GgufModel
from alignuser_jax.model.files.gguf.vocabulary import PRE_TOKENIZERS, read_vocabulary
from tests import llama_files
from tests.language.conftest import TEXTS, fast
from tests.model.files.gguf.gguf_files import (
    byte_pair_vocabulary,
    sentence_piece_vocabulary,
    torch_model,
    write_gguf,
)

gguf = pytest.importorskip("gguf")

__all__ = ["fast"]  # the fixture

ROOT = Path(__file__).parents[4]
HARD = [
    "Heat (1995), 12345 films, 7 of 10; 3.14159 and 2,000,000",
    "don't I'LL we've They'D it's",
    "  two   spaces\n\n\nthree lines\t\ttabs \r\n end  ",
    "Amélie, 千と千尋の神隠し, Пётр, e\u0301 composed or not: é, ﬁ, ½, ²",
    "emoji 🎬🍿 and a flag 🇫🇷",
    "x=y+z; a<b>c ^ ~ | `code` $5 #hash @at _under_",
    "<|im_start|>user\nhello<|im_end|>",
    "",
    " ",
    "\n",
]


@pytest.fixture(scope="module")
def texts():
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line]
    random.Random(3).shuffle(lines)
    return [*HARD, *TEXTS, *lines[:300]]


def through_a_file(folder, vocabulary, pre):
    model = torch_model("llama", len(vocabulary["add_token_list"]))
    write_gguf(folder / "m.gguf", model, vocabulary, pre=pre)
    return read_vocabulary(GgufModel(folder / "m.gguf")).tokenizer


def same(ours, theirs, texts):
    for text in texts:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False).ids == expected, text


def trained(pre_tokenizer):
    """A byte-level BPE of transformers with a pre-tokenizer of its own."""
    texts = [*HARD, *TEXTS, "1995 1995 1996 12 123 1234"] * 3
    return llama_files.byte_level(texts, 700, pre_tokenizer)


def test_gpt_2_and_smollm(tmp_path, texts):
    """As their published tokenizer.json files cut: GPT-2's pattern, digits apart or not."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    for name, cut in (("gpt-2", level), ("smollm", pre_tokenizers.Sequence([digits, level]))):
        theirs = trained(cut)
        (folder := tmp_path / name).mkdir()
        same(through_a_file(folder, byte_pair_vocabulary(theirs), name), theirs, texts)


def test_the_pre_tokenizer_matters(tmp_path, texts):
    """What a reader that ignores the name gets wrong, so that the tests above can fail."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs = trained(level)
    ours = through_a_file(tmp_path, byte_pair_vocabulary(theirs), "smollm")
    differing = [
        text
        for text in texts
        if ours.encode(text).ids != theirs(text, add_special_tokens=False)["input_ids"]
    ]
    assert differing and all(any(c.isdigit() for c in text) for text in differing)


@pytest.mark.slow
def test_qwens(tmp_path, texts):
    qwen = llama_files.qwen_3(tmp_path).tokenizer
    vocabulary = byte_pair_vocabulary(qwen)
    ours = through_a_file(tmp_path, vocabulary, "qwen2")
    same(ours, qwen, texts)
    for text in texts:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == qwen.decode(ids)


@pytest.mark.slow
def test_llama_3s(tmp_path, texts, fast):
    llama = llama_files.llama_3(tmp_path, fast).tokenizer
    ours = through_a_file(tmp_path, byte_pair_vocabulary(llama), "llama-bpe")
    same(ours, llama, texts)


def test_llama_2s(tmp_path, texts):
    """SentencePiece itself is the measure, on whole texts."""
    import sentencepiece

    source = llama_files.PUBLISHED / "llama2" / "tokenizer.model"
    model = source.read_bytes() if source.is_file() else llama_files.small_sentencepiece(TEXTS)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = through_a_file(tmp_path, sentence_piece_vocabulary(model), None)
    for text in texts:
        if not text or "<|" in text:
            continue
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == pieces.encode(text), text
        assert ours.decode(ids) == pieces.decode(ids)


def test_the_directory_serves_as_a_chat_tokenizer(tmp_path, fast):
    vocabulary = byte_pair_vocabulary(fast.tokenizer)
    model = torch_model("llama", len(vocabulary["add_token_list"]))
    write_gguf(tmp_path / "m.gguf", model, vocabulary)
    import_gguf(tmp_path / "m.gguf", tmp_path / "hf")
    ours = TextTokenizer.load(tmp_path / "hf")
    chat = [{"role": "user", "content": "Rate Heat (1995)."}]
    assert ours.chat_text(chat, generation=True) == fast.chat_text(chat, generation=True)
    assert ours.eot_id == fast.eot_id and ours.special_ids == fast.special_ids
    assert ours.encode("a movie") == fast.encode("a movie")


WRONG = {
    "merges of unknown tokens": (
        {"add_token_merges": ["zz yy"]},
        "merges do not fit the tokens",
    ),
    "a merge of one": ({"add_token_merges": ["zz"]}, "no pair of tokens"),
    "too few types": ({"add_token_types": [1, 1]}, "2 token types for"),
    "another kind": ({"add_tokenizer_model": "bert"}, "kind 'bert'"),
    "an end outside": ({"add_eos_token_id": 10**6}, "outside the vocabulary"),
}


@pytest.mark.parametrize("name", WRONG)
def test_lists_that_disagree_are_refused(tmp_path, name, fast):
    changes, message = WRONG[name]
    vocabulary = byte_pair_vocabulary(fast.tokenizer) | changes
    model = torch_model("llama", len(vocabulary["add_token_list"]))
    write_gguf(tmp_path / "m.gguf", model, vocabulary)
    with pytest.raises(GgufError, match=message):
        import_gguf(tmp_path / "m.gguf", tmp_path / "hf")


def test_every_pre_tokenizer_keeps_the_text(tmp_path, fast, texts):
    """Cutting loses nothing, whatever the name."""
    vocabulary = byte_pair_vocabulary(fast.tokenizer)
    for name in PRE_TOKENIZERS:
        (folder := tmp_path / name).mkdir()
        ours = through_a_file(folder, vocabulary, name)
        for text in texts[:60]:
            composed = PRE_TOKENIZERS[name].compose
            if composed and "\u0301" in text:
                continue
            ids = ours.encode(text, add_special_tokens=False).ids
            assert ours.decode(ids, skip_special_tokens=False) == text
