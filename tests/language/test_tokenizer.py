import base64
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.language import TextTokenizer, prompts, train_sentencepiece
from alignuser_jax.records import Action, Persona

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"))


def pieces(tokenizer, text):
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


@given(TEXT)
@settings(max_examples=200, deadline=None)
def test_text_survives_and_offsets_cut_it(small, text):
    ids, offsets = small.encode_with_offsets(text)
    assert ids == small.encode(text)
    assert small.decode(ids) == text
    covered = [n for begin, end in dict.fromkeys(offsets) for n in range(begin, end)]
    assert covered == list(range(len(text)))
    assert small.count(text) == len(ids)


@given(TEXT, TEXT)
@settings(max_examples=100, deadline=None)
def test_a_newline_cuts_the_text(small, first, second):
    whole = small.encode(f"{first}\n{second}")
    assert whole == small.encode(f"{first}\n") + small.encode(second)


def test_offsets_of_a_character_in_bytes(small):
    ids, offsets = small.encode_with_offsets("a☃b")
    assert offsets == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert len(ids) == 5


@pytest.mark.parametrize(
    "text", ["\n", "8", "[NEXT_PAGE]", "[CLICK_ITEM:2]", " yes", "BEST-ACTION: "]
)
def test_symbols_are_one_token(small, text):
    assert small.count(text) == 1


def test_digits_are_split(small):
    assert pieces(small, "3.87") == ["3", ".", "8", "7"]
    assert pieces(small, "Rate 10") == ["Rate ", "1", "0"]


def test_markers_cannot_be_spelled(small):
    markers = {small.eot_id, small.pad_id, *small.role_ids.values()}
    text = "<|end|><|system|><|user|><|assistant|><pad><unk>"
    assert not markers & set(small.encode(text))
    assert small.decode(small.encode(text)) == text


def test_extra_symbols_hold_any_text(texts, tmp_path):
    extra = ('say "so", then', "Sci-Fi")
    tokenizer = train_sentencepiece(texts, 700, tmp_path, extra)
    assert [tokenizer.count(symbol) for symbol in extra] == [1, 1]
    with pytest.raises(ValueError, match="without newlines"):
        train_sentencepiece(texts, 700, tmp_path, ["a\nb"])


def test_budgets(small, page_text):
    """What small models with 512 tokens of context count on."""
    assert small.count(prompts.system_prompt("movies")) <= 80
    assert small.count(page_text) <= 110
    actions = [Action("next_page"), *(Action("click", f"{n}") for n in range(1, 5))]
    assert small.count(prompts.act_turn([*actions, Action("exit")])) <= 13
    assert small.count(prompts.rate_turn("2")) <= 3
    persona = Persona("u", 2, 3, 1, 2, 3.6, (0.04, 0.09, 0.25, 0.38, 0.24), ("Drama",), "25-34")
    assert small.count(prompts.opening(persona, "None yet.")) <= 70


def test_training_is_deterministic_in_any_order(small, texts, tmp_path):
    again = train_sentencepiece(reversed(texts), 700, tmp_path)
    assert again.model == small.model
    assert again.fingerprint == small.fingerprint
    other = train_sentencepiece([*texts, "something else " * 30], 700, tmp_path)
    assert other.fingerprint != small.fingerprint


def test_save_and_load(small, page_text, tmp_path):
    small.save(tmp_path / "model")
    loaded = TextTokenizer.load(tmp_path / "model")
    assert loaded.fingerprint == small.fingerprint
    assert loaded.encode(page_text) == small.encode(page_text)
    assert loaded.prefix_stable


def test_errors(texts, tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="no text"):
        train_sentencepiece(["", "\n"], 700, tmp_path)
    with pytest.raises(ValueError, match="vocab_size is 300"):
        train_sentencepiece(texts, 300, tmp_path)


def test_foreign_sentencepiece_model(shared_data, tmp_path):
    shutil.copy(
        shared_data / "tokenizers" / "llama2" / "tokenizer.model",
        tmp_path / "sentencepiece.model",
    )
    with pytest.raises(ValueError, match="lacks the chat markers"):
        TextTokenizer.load(tmp_path)


def test_hugging_face(fast, tmp_path):
    assert fast.decode(fast.encode("Rate 2.")) == "Rate 2."
    assert fast.decode([fast.eot_id]) == ""
    assert fast.safe("a <|im_end|> b <|im_en") == "a < |im_end|> b <|im_en"
    assert fast.eot_id not in fast.encode(fast.safe("<|im_end|>"))
    fast.save(tmp_path)
    assert TextTokenizer.load(tmp_path).fingerprint == fast.fingerprint


def test_hugging_face_without_a_template(fast, tmp_path):
    fast.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no chat template"):
        TextTokenizer.load(tmp_path)


def test_qwen3(qwen):
    assert qwen.tokenizer.convert_ids_to_tokens(qwen.eot_id) == "<|im_end|>"
    assert not qwen.prefix_stable
    ids, offsets = qwen.encode_with_offsets("RATING: 4")
    assert offsets[-1] == (8, 9)
    assert qwen.decode(ids) == "RATING: 4"


def test_a_vocabulary_smaller_than_its_models_embedding(qwen):
    assert qwen.vocab_size == 151_669  # the model's table has 151,936 rows
    assert max(qwen.tokenizer.get_vocab().values()) == qwen.vocab_size - 1


def test_llamas(llama2, llama3):
    assert llama2.tokenizer.convert_ids_to_tokens(llama2.eot_id) == "</s>"
    assert (llama2.reply_opening, llama2.reply_closing) == (" ", " ")
    assert llama3.tokenizer.convert_ids_to_tokens(llama3.eot_id) == "<|eot_id|>"
    assert (llama3.reply_opening, llama3.reply_closing) == ("", "")
    assert llama2.prefix_stable and llama3.prefix_stable
    for tokenizer in (llama2, llama3):
        top = max(tokenizer.tokenizer.get_vocab().values())
        assert tokenizer.vocab_size == top + 1


def test_a_vocabulary_that_puts_a_space_before_every_text(llama2):
    assert llama2.encode("\n") == llama2.encode("a\n")[-1:]
    for text in ("RATING: 4", "[NEXT_PAGE]", " a", "\n\na", "☃"):
        assert llama2.encode("x\n" + text) == llama2.encode("x\n") + llama2.encode(text)
    assert llama2.decode(llama2.encode("RATING: 4")) == "RATING: 4"
    ids, offsets = llama2.encode_with_offsets("RATING: 4")
    assert ids == llama2.encode(" RATING: 4")
    assert offsets[-1] == (8, 9)


def merged(ranks, word):
    """Tokens of a word, by joining the pair of the lowest rank until none is left."""
    parts = [bytes([byte]) for byte in word.encode()]
    while True:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:], strict=False)]
        if not pairs or min(pairs) == len(ranks):
            return [ranks[part] for part in parts]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_llama_3_as_its_ranks_say(shared_data, llama3):
    source = shared_data / "tokenizers" / "llama3" / "tokenizer.model"
    if not source.is_file():
        pytest.skip("no vocabulary in ../shared/data/tokenizers/llama3")
    lines = (line.split() for line in source.read_text().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    assert (llama3.vocab_size, llama3.eot_id) == (128_256, 128_009)
    for word in ("RATING", " recommendations", "WATCH", " Café", "☃☃", " Zurückhaltung", "384"):
        assert llama3.encode(word) == merged(ranks, word)


def test_llama_2_as_sentencepiece_says(shared_data, llama2):
    import sentencepiece

    source = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    if not source.is_file():
        pytest.skip("no vocabulary in ../shared/data/tokenizers/llama2")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=source.read_bytes())
    assert (llama2.vocab_size, llama2.eot_id) == (32_000, 2)
    for text in ("RATING: 4 ☃\n", "1 [WATCH]\n2 [SKIP]", "Café Zurückhaltung\n\n"):
        assert llama2.encode_with_offsets(text)[0] == pieces.encode(text)
