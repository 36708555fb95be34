"""Language models that answer requests: the back ends behind `records.Generator`."""

from importlib import import_module
from typing import Any

from alignuser_jax.sampling.generate import RequestsFailed, generate
from alignuser_jax.sampling.recorded import NotRecorded, Recording, Replay
from alignuser_jax.sampling.scripted import ScriptedGenerator

_LAZY_MODULES = {
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "ServerConfig": "servers.server",
    "ServerError": "servers.transport",
    "ServerGenerator": "servers.server",
    "TransportConfig": "servers.transport",
    "make_replicas": "replicas",
}
"""Names imported on first use: the engine needs jax, and a server its client library."""

__all__ = [
    *_LAZY_MODULES,
    "NotRecorded",
    "Recording",
    "Replay",
    "RequestsFailed",
    "ScriptedGenerator",
    "generate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return getattr(import_module(f"{__name__}.{_LAZY_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
