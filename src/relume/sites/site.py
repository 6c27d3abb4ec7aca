"""`Site`: one application of an activation in a model's forward pass, as relume describes it to a reader."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from relume.activations import Activation, Zone
from relume.activations.zones import INF


@dataclass(frozen=True)
class Zones:
    """The three zones of a site's activation, kept with the site so that a run file can be read without the model."""

    flat: Zone
    saturated: Zone
    linear: Zone
    top: float | None = None
    counts_responsive: bool = False

    @classmethod
    def of(cls, activation: Activation) -> Zones:
        return cls(
            activation.flat,
            activation.saturated,
            activation.linear_zone,
            activation.tops,
            activation.counts_responsive,
        )


@dataclass(frozen=True)
class Site:
    """Where an activation is applied, and what surrounds it.

    Attributes:
        name: `features.2`, `blocks.0.relu#2` (third use), `encoder.mlp:relu` (functional call), `:relu` (at the root).
        alias: the same with the activation's name, for calls named otherwise (`:clamp` is also `:relu`).
        module: dotted name of the module in whose forward the call happens; "" is the root.
        activation: its name in the registry.
        formula: of the activation, parameters filled in.
        units: how many.
        axis: the unit axis of the pre-activation (-1 is the last); a tuple when units lie on several axes.
        producers: operations whose output, possibly through normalization, is the input; empty when unknown.
        between: what lies between producer and site, in order of application, e.g. ("bn1", "dropout").
        consumers: operations seen to read the output.
        axis_known: the unit axis follows from the data flow or the user; False: guessed from the shape.
        inputs_known: the axis that counts inputs could be followed from the model's own input.
        zones: flat, saturated and linear zone.
    """

    name: str
    alias: str
    module: str
    activation: str
    formula: str
    units: int
    axis: int | tuple[int, ...]
    producers: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    axis_known: bool = True
    inputs_known: bool = True
    zones: Zones = field(default_factory=lambda: Zones(Zone(), Zone(), Zone()), repr=False)

    @property
    def producer(self) -> str | None:
        """The one producer, or None when it is unknown or there are several (see `producers`)."""
        return self.producers[0] if len(self.producers) == 1 else None

    @property
    def can_die(self) -> bool:
        """Has the activation a flat zone at all?"""
        return bool(self.zones.flat)

    def with_consumers(self, consumers: tuple[str, ...]) -> Site:
        return replace(self, consumers=consumers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; infinities are written as the strings "inf" and "-inf"."""

        def zone(z: Zone) -> list[list[float | str]]:
            return [[str(v) if abs(v) == INF else v for v in pair] for pair in z.intervals]

        return {
            "name": self.name,
            "alias": self.alias,
            "module": self.module,
            "activation": self.activation,
            "formula": self.formula,
            "units": self.units,
            "axis": list(self.axis) if isinstance(self.axis, tuple) else self.axis,
            "producers": list(self.producers),
            "between": list(self.between),
            "consumers": list(self.consumers),
            "axis_known": self.axis_known,
            "inputs_known": self.inputs_known,
            "zones": {
                "flat": zone(self.zones.flat),
                "saturated": zone(self.zones.saturated),
                "linear": zone(self.zones.linear),
                "top": self.zones.top,
                "counts_responsive": self.zones.counts_responsive,
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Site:
        """Inverse of `to_dict`; raises KeyError, TypeError or ValueError on anything else."""

        def zone(pairs: list[list[Any]]) -> Zone:
            return Zone(tuple((float(a), float(b)) for a, b in pairs))

        zones = data["zones"]
        axis = data["axis"]
        return cls(
            name=str(data["name"]),
            alias=str(data["alias"]),
            module=str(data["module"]),
            activation=str(data["activation"]),
            formula=str(data["formula"]),
            units=int(data["units"]),
            axis=tuple(int(a) for a in axis) if isinstance(axis, list) else int(axis),
            producers=tuple(map(str, data["producers"])),
            between=tuple(map(str, data["between"])),
            consumers=tuple(map(str, data["consumers"])),
            axis_known=bool(data["axis_known"]),
            inputs_known=bool(data["inputs_known"]),
            zones=Zones(
                zone(zones["flat"]),
                zone(zones["saturated"]),
                zone(zones["linear"]),
                None if zones["top"] is None else float(zones["top"]),
                bool(zones["counts_responsive"]),
            ),
        )
