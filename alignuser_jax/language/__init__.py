"""Prompts, chat rendering, tokenizers and the parsing of replies, without jax."""

from alignuser_jax.language.answers import integers, json_answer, json_value
from alignuser_jax.language.parsing import (
    REPROMPT,
    ReplyError,
    final_lines,
    parse_answer,
    parse_json,
)
from alignuser_jax.language.render import Rendered, answer_token_paths, render
from alignuser_jax.language.tokenizer import TextTokenizer, train_sentencepiece

__all__ = [
    "REPROMPT",
    "Rendered",
    "ReplyError",
    "TextTokenizer",
    "answer_token_paths",
    "final_lines",
    "integers",
    "json_answer",
    "json_value",
    "parse_answer",
    "parse_json",
    "render",
    "train_sentencepiece",
]
