"""Where arrays live: one mesh, one table from logical axis names to mesh axes."""

from alignuser_jax.parallel.mesh import RULES, constrain, make_mesh, shardings, spec

__all__ = ["RULES", "constrain", "make_mesh", "shardings", "spec"]
