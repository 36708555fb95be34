"""Directories in Hugging Face's layout around published vocabularies (Llama's with chat
templates of the published formats), and small ones of the same kinds where Llama's are absent.
"""

import base64
import gzip
import io
import json
import shutil
from pathlib import Path

import pytest

from alignuser_jax.language import TextTokenizer

LLAMA_2 = """
{%- set first = namespace(system='') -%}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}
    {%- if not loop.first -%}{{ raise_exception('a system prompt comes first') }}{%- endif -%}
    {%- set first.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' -%}
  {%- elif m.role == 'user' -%}
    {%- if not loop.first and loop.previtem.role == 'user' -%}
      {{- raise_exception('roles must alternate') -}}
    {%- endif -%}
    {{- bos_token + '[INST] ' + (first.system + m.content) | trim + ' [/INST]' -}}
    {%- set first.system = '' -%}
  {%- else -%}
    {{- ' ' + m.content | trim + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = """
{%- macro head(role) -%}
{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}
{%- endmacro -%}
{{- bos_token -}}
{%- set given = messages[0].role == 'system' -%}
{{- head('system') + 'Today Date: ' + date_string | default('now') + '\n\n' -}}
{{- messages[0].content | trim if given else '' -}}
{{- '<|eot_id|>' -}}
{%- set turns = messages[1:] if given else messages -%}
{%- for m in turns -%}
  {{- head(m.role) + m.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}{%- endif -%}
"""


PUBLISHED = Path(__file__).parents[1].parent / "shared" / "data" / "tokenizers"


def qwen_3(directory):
    source = PUBLISHED / "qwen"
    if not (source / "tokenizer.json.gz").is_file():
        pytest.skip("no Qwen tokenizer in ../shared/data/tokenizers/qwen")
    packed = (source / "tokenizer.json.gz").read_bytes()
    (directory / "tokenizer.json").write_bytes(gzip.decompress(packed))
    shutil.copy(source / "qwen3_tokenizer_config.json", directory / "tokenizer_config.json")
    return TextTokenizer.load(directory)


def llama_2(directory, texts):
    """The published one, else a small one made of `texts`."""
    source = PUBLISHED / "llama2" / "tokenizer.model"
    model = source.read_bytes() if source.is_file() else small_sentencepiece(texts)
    return load_llama_2(model, directory)


def llama_3(directory, fast):
    """The published one, else one with the tokens of `fast`."""
    source = PUBLISHED / "llama3" / "tokenizer.model"
    ranks = source.read_text() if source.is_file() else small_ranks(fast.tokenizer)
    return load_llama_3(ranks, directory)


def special_tokens():
    """The 256 that follow Llama 3's ranks."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
    }
    return [named.get(n, f"<|reserved_special_token_{n}|>") for n in range(256)]


def load_llama_2(model, directory):
    """From the bytes of a SentencePiece `tokenizer.model`."""
    (directory / "tokenizer.model").write_bytes(model)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, **marks}
    return _load(directory, config, LLAMA_2)


def load_llama_3(ranks, directory):
    """From lines of a base64 token and its rank, with `transformers`' own conversion (which
    would read the file with tiktoken)."""
    from tokenizers import processors
    from transformers.convert_slow_tokenizer import TikTokenConverter

    lines = (line.split() for line in ranks.splitlines() if line)
    table = {base64.b64decode(token): int(rank) for token, rank in lines}

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(_):
            return table

    special = special_tokens()
    tokenizer = Converter("", extra_special_tokens=special).converted()
    bos = special[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    marks = {"bos_token": bos, "eos_token": "<|eot_id|>"}
    return _load(directory, {"tokenizer_class": "PreTrainedTokenizerFast", **marks}, LLAMA_3)


def _load(directory, config, template):
    config = {"clean_up_tokenization_spaces": False, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(template.strip())
    return TextTokenizer.load(directory)


def small_sentencepiece(texts):
    """A vocabulary of Llama 2's kind: bytes, and a space before every text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=450,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def byte_level(texts, vocab_size, pre_tokenizer, normalizer=None):
    """A fast byte-level BPE of transformers trained on `texts`, with ChatML's markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        bpe.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def small_ranks(tokenizer):
    """The vocabulary of a byte-level BPE as lines of base64 tokens and ranks."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    of_character = {character: byte for byte, character in bytes_to_unicode().items()}
    words = [w for w in tokenizer.get_vocab() if all(c in of_character for c in w)]
    words.sort(key=lambda word: (len(word) > 1, tokenizer.convert_tokens_to_ids(word)))
    tokens = [bytes(of_character[c] for c in word) for word in words]
    return "\n".join(f"{base64.b64encode(t).decode()} {n}" for n, t in enumerate(tokens))
