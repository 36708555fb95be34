"""Language models at work: back ends behind `records.Generator`."""

from alignuser_jax.sampling.scripted import ScriptedGenerator, generate

__all__ = ["Engine", "EngineConfig", "ScriptedGenerator", "generate"]


def __getattr__(name: str):
    """`Engine` and `EngineConfig` on first use, so that scripted replies need no jax."""
    if name in ("Engine", "EngineConfig"):
        from alignuser_jax.sampling import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
