"""Prompts, chat rendering, tokenizers and the parsing of replies; no jax."""
