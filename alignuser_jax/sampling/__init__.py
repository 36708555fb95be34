"""Language models at work: back ends behind `records.Generator`."""

from importlib import import_module

from alignuser_jax.sampling.generate import RequestsFailed, generate
from alignuser_jax.sampling.recorded import NotRecorded, Recording, Replay
from alignuser_jax.sampling.scripted import ScriptedGenerator

_LATER = {
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "ServerConfig": "servers.server",
    "ServerError": "servers.transport",
    "ServerGenerator": "servers.server",
    "TransportConfig": "servers.transport",
    "make_replicas": "engine.replicas",
}
"""Loaded on first use: an engine needs jax, a server its client; scripted replies neither."""

__all__ = [
    *_LATER,
    "NotRecorded",
    "Recording",
    "Replay",
    "RequestsFailed",
    "ScriptedGenerator",
    "generate",
]


def __getattr__(name: str):
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
