"""Language models at work: back ends behind `records.Generator`."""

from alignuser_jax.sampling.scripted import ScriptedGenerator, generate

__all__ = ["Engine", "EngineConfig", "ScriptedGenerator", "generate", "make_replicas"]


def __getattr__(name: str):
    """What needs jax on first use, so that scripted replies need none."""
    if name == "EngineConfig":
        from alignuser_jax.sampling.config import EngineConfig

        return EngineConfig
    if name == "Engine":
        from alignuser_jax.sampling.engine import Engine

        return Engine
    if name == "make_replicas":
        from alignuser_jax.sampling.replicas import make_replicas

        return make_replicas
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
