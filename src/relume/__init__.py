"""relume finds the units of a PyTorch network that have died while it trains.

    with relume.watch(model, optimizer) as watch:
        ...                             # an unchanged training loop
    print(watch.census())

Import from here; everything else is private. torch is imported with the first name that is used, not before, so that a
script under `relume run` may still say how torch is to start.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from relume._version import __version__ as __version__

if TYPE_CHECKING:
    from relume import functional as functional
    from relume import init as init
    from relume import lab as lab
    from relume import nn as nn
    from relume import prove as prove
    from relume import treat as treat
    from relume.activations import register_activation as register_activation
    from relume.activations.drelu import backend as backend
    from relume.census import Census as Census
    from relume.census import SiteCensus as SiteCensus
    from relume.census import Timeline as Timeline
    from relume.diagnose import Confirmation as Confirmation
    from relume.diagnose import Finding as Finding
    from relume.diagnose import Remedy as Remedy
    from relume.diagnose import diagnose as diagnose
    from relume.errors import RelumeError as RelumeError
    from relume.errors import RelumeWarning as RelumeWarning
    from relume.prove.certify import Certificate as Certificate
    from relume.prove.certify import certify as certify  # type: ignore[no-redef]
    from relume.prove.compact import Compaction as Compaction
    from relume.prove.compact import compact as compact  # type: ignore[no-redef]
    from relume.prove.compact import rebuild as rebuild
    from relume.sites import Site as Site
    from relume.treat.convert import Conversion as Conversion
    from relume.treat.convert import convert as convert
    from relume.treat.guard import Guard as Guard
    from relume.treat.guard import Policy as Policy
    from relume.treat.guard import guard as guard  # type: ignore[no-redef]
    from relume.treat.revive import Revival as Revival
    from relume.treat.revive import revive as revive
    from relume.watch import Run as Run
    from relume.watch import Watch as Watch
    from relume.watch import census as census
    from relume.watch import load as load
    from relume.watch import watch as watch  # type: ignore[no-redef]

_HOMES = {
    "register_activation": "relume.activations",
    "backend": "relume.activations.drelu",
    "Census": "relume.census",
    "SiteCensus": "relume.census",
    "Timeline": "relume.census",
    "Confirmation": "relume.diagnose",
    "Finding": "relume.diagnose",
    "Remedy": "relume.diagnose",
    "diagnose": "relume.diagnose",
    "RelumeError": "relume.errors",
    "RelumeWarning": "relume.errors",
    "Certificate": "relume.prove.certify",
    "certify": "relume.prove.certify",
    "Compaction": "relume.prove.compact",
    "compact": "relume.prove.compact",
    "rebuild": "relume.prove.compact",
    "Site": "relume.sites",
    "Conversion": "relume.treat.convert",
    "convert": "relume.treat.convert",
    "Guard": "relume.treat.guard",
    "Policy": "relume.treat.guard",
    "guard": "relume.treat.guard",
    "Revival": "relume.treat.revive",
    "revive": "relume.treat.revive",
    "Run": "relume.watch",
    "Watch": "relume.watch",
    "census": "relume.watch",
    "load": "relume.watch",
    "watch": "relume.watch",
}
# Folders whose names are used through them: `relume.init.lsuv_(model, batches)`.
_PARTS = ("functional", "init", "lab", "nn", "prove", "treat")
__all__ = ["__version__", *_HOMES]


def _public(name: str, home: str) -> property:
    given: list[Any] = []

    def get(module: types.ModuleType) -> Any:
        return given[0] if given else getattr(importlib.import_module(home), name)

    def put(module: types.ModuleType, value: Any) -> None:
        """Importing the folder `relume.watch` sets an attribute of that name: the function keeps its place."""
        if not isinstance(value, types.ModuleType):
            given[:] = [value]

    return property(get, put)


class _Relume(types.ModuleType):
    """This module, with names that are looked up where they live."""

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES, *_PARTS})

    def __getattr__(self, name: str) -> types.ModuleType:
        """Asked for what has not been imported yet."""
        if name in _PARTS:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _name, _home in _HOMES.items():
    setattr(_Relume, _name, _public(_name, _home))
sys.modules[__name__].__class__ = _Relume
