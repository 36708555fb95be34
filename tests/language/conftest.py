"""A small vocabulary of ours, a small fast tokenizer with two ChatML templates, Qwen3's, and
Llama 2's and 3's (or small ones of their kinds where those are absent)."""

import pytest

from alignuser_jax.language import TextTokenizer, train_sentencepiece
from alignuser_jax.language.tokenizer import HuggingFaceTokenizer
from tests import llama_files

PAGE = "\n".join(
    [
        "PAGE 1",
        "1. Heat (1995) | rated 3.9 | Action, Crime",
        "2. Babe (1995) | Comedy, Drama",
        "3. Casino (1995) | rated 3.8 | Drama",
        "4. Antz (1998) | rated 3.5 | Animation, Comedy",
    ]
)
TEXTS = (
    PAGE,
    "a movie about a man who likes movies and rates them",
    "Occupation: programmer\nFavourite genres: Drama, Comedy, Animation, Action, Crime",
    "Heat Babe Casino Antz Drama Comedy Crime Action Animation",
) * 5

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As Qwen2.5 has it: nothing is trimmed, and who gives no system prompt gets one.
CHATML_WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You answer as asked.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def page_text():
    return PAGE


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return train_sentencepiece(TEXTS, 700, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def fast():
    """A byte-level BPE made here, whose template keeps earlier replies as they were."""
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = llama_files.byte_level(TEXTS, 500, level)
    tokenizer.chat_template = CHATML
    return HuggingFaceTokenizer(tokenizer)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory):
    return llama_files.qwen_3(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def with_default(fast, tmp_path_factory):
    directory = tmp_path_factory.mktemp("with_default")
    fast.save(directory)
    (directory / "chat_template.jinja").write_text(CHATML_WITH_DEFAULT)
    return TextTokenizer.load(directory)


@pytest.fixture(scope="session")
def llama2(tmp_path_factory):
    return llama_files.llama_2(tmp_path_factory.mktemp("llama2"), TEXTS)


@pytest.fixture(scope="session")
def llama3(fast, tmp_path_factory):
    return llama_files.llama_3(tmp_path_factory.mktemp("llama3"), fast)


CHAT = ["fast", "with_default", "qwen", "llama2", "llama3"]


@pytest.fixture(scope="session", params=["small", *CHAT])
def each(request):
    """Every kind of tokenizer in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=CHAT)
def hugging_face(request):
    """The tokenizers that have a chat template of their own."""
    return request.getfixturevalue(request.param)
