"""Treatments: changes made to a live model while it trains."""

import importlib
import types

_PARTS = ("convert", "guard", "revive")


def __getattr__(name: str) -> types.ModuleType:
    """`relume.treat.revive.Continual`, without an import of its own; each part is loaded with its first use."""
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
