"""OpenAI-compatible servers as generators."""
