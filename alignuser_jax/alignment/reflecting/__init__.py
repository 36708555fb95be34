"""Reflections: by template, or by a language model that is asked, checked and asked again."""
