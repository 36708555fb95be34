"""AlignUSER (arXiv 2601.00930) in JAX: language-model users trained on human logs.

Importing the package imports no jax: datasets, worlds and agents work on a machine without it.
"""

__version__ = "0.1.0"
