"""`Certificate`: what holds for every input of a box, for each unit of each site."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from relume.census.table import plain_text
from relume.errors import CensusMismatchError, RelumeError, missing_extra
from relume.prove.certify.table import table
from relume.sites import Site

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class SiteCertificate:
    """Of one site; tensors are of shape [units], on the CPU.

    Attributes:
        site: as a census describes it.
        lower, upper: float64; within them lies the unit's pre-activation, at every position, for every input of the
            box, as the model's own floating-point arithmetic computes it. Infinite: not bounded.
        dead: certified not to fire: every position lies in the flat zone, for every input.
        linear: certified never to leave one straight piece of the activation (its linear zone in the registry).
        value: float64; the output of a dead unit, the same for all inputs and positions. NaN elsewhere, and for a dead
            unit whose positions lie in different flat parts (ReLU6: below 0 here, above 6 there).
        which: whole numbers; the row of `witnesses` on which the unit fires, −1 when none was found.
        witnesses: inputs of the box, each the witness of one unit or more, [some, *input].
    """

    site: Site
    lower: Tensor
    upper: Tensor
    dead: Tensor
    linear: Tensor
    value: Tensor
    which: Tensor
    witnesses: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def units(self) -> int:
        return self.site.units

    @property
    def open(self) -> Tensor:
        """Neither certified dead nor certified linear."""
        return ~(self.dead | self.linear)

    @property
    def fires(self) -> Tensor:
        """An input of the box on which the unit fires was found."""
        return self.which >= 0

    @property
    def width(self) -> Tensor:
        """upper − lower."""
        return self.upper - self.lower

    @property
    def state(self) -> list[str]:
        """Per unit: "dead", "linear" or "open"."""
        return ["dead" if d else "linear" if s else "open" for d, s in zip(self.dead, self.linear, strict=True)]

    def witness(self, unit: int) -> Tensor | None:
        """An input of the box, without the batch axis, on which the unit fires; None when none was found.

        Args:
            unit: its number.

        Raises:
            IndexError: the site has no such unit.
        """
        if not -self.units <= unit < self.units:
            raise IndexError(f"site '{self.name}' has {self.units} units, no unit {unit}")
        row = int(self.which[unit])
        return self.witnesses[row] if row >= 0 else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "site": self.site.to_dict(),
            **{n: _plain(getattr(self, n)) for n in ("lower", "upper", "value")},
            **{n: getattr(self, n).tolist() for n in ("dead", "linear", "which")},
            "witnesses": _plain(self.witnesses),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], input_shape: tuple[int, ...], dtype: torch.dtype) -> SiteCertificate:
        dead, linear = (torch.tensor(data[n], dtype=torch.bool) for n in ("dead", "linear"))
        return cls(
            site=Site.from_dict(data["site"]),
            lower=_tensor(data["lower"]),
            upper=_tensor(data["upper"]),
            dead=dead,
            linear=linear,
            value=_tensor(data["value"]),
            which=torch.tensor(data["which"], dtype=torch.long),
            witnesses=_tensor(data["witnesses"]).reshape(-1, *input_shape).to(dtype),
        )


@dataclass(frozen=True, eq=False)
class Certificate(Mapping[str, SiteCertificate]):
    """What is certain of a model for every input of the box [lower, upper].

    Attributes:
        sites: in forward order.
        lower, upper: the box, of one input's shape, in the model's dtype.
        method: "ibp" or "crown".
        model: name of its class.
        notes: what a reader should know.

    A mapping from site name (or alias, as in a census) to `SiteCertificate`; a name it does not hold raises
    CensusMismatchError.
    """

    sites: tuple[SiteCertificate, ...]
    lower: Tensor
    upper: Tensor
    method: str
    model: str = ""
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> SiteCertificate:
        found = [s for s in self.sites if s.name == name] or [s for s in self.sites if s.site.alias == name]
        if len(found) != 1:
            known = ", ".join(s.name for s in self.sites[:20]) or "none"
            raise CertificateKeyError(f"there is no site {name!r} in this certificate; sites: {known}")
        return found[0]

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    @property
    def units(self) -> int:
        return sum(s.units for s in self.sites)

    @property
    def dead(self) -> int:
        """Units certified dead."""
        return sum(int(s.dead.sum()) for s in self.sites)

    @property
    def linear(self) -> int:
        """Units certified linear."""
        return sum(int(s.linear.sum()) for s in self.sites)

    @property
    def open(self) -> int:
        return sum(int(s.open.sum()) for s in self.sites)

    @property
    def fires(self) -> int:
        """Units of which an input was found that makes them fire."""
        return sum(int(s.fires.sum()) for s in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; infinities and NaN are strings."""
        return {
            "format": _FORMAT,
            "model": self.model,
            "method": self.method,
            "dtype": str(self.lower.dtype).removeprefix("torch."),
            "shape": list(self.lower.shape),
            "lower": _box(self.lower),
            "upper": _box(self.upper),
            "units": self.units,
            "dead": self.dead,
            "linear": self.linear,
            "open": self.open,
            "fires": self.fires,
            "notes": list(self.notes),
            "sites": [s.to_dict() for s in self.sites],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Certificate:
        """Inverse of `to_dict`.

        Args:
            data: what `to_dict` gave.

        Returns:
            The certificate.

        Raises:
            RelumeError: it is no certificate, or one of a newer relume.
        """
        if data.get("format", 0) != _FORMAT:
            raise RelumeError(
                f"no certificate of format {_FORMAT}, which this relume reads, but {data.get('format')!r}"
            )
        try:
            shape, dtype = tuple(data["shape"]), getattr(torch, data["dtype"])
            lower, upper = (_tensor(data[n]).expand(shape).to(dtype).clone() for n in ("lower", "upper"))
            sites = tuple(SiteCertificate.from_dict(s, shape, dtype) for s in data["sites"])
            return cls(sites, lower, upper, str(data["method"]), str(data["model"]), tuple(map(str, data["notes"])))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise RelumeError(f"a damaged certificate: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Args:
            path: of the file.

        Raises:
            OSError: it can't be written.
        """
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read what `save` wrote.

        Args:
            path: of the file.

        Returns:
            The certificate.

        Raises:
            RelumeError: the file is no certificate.
            OSError: it can't be read.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise RelumeError(f"{path} is no certificate: {error}") from error
        if not isinstance(data, dict):
            raise RelumeError(f"{path} is no certificate")
        return cls.from_dict(data)

    def to_pandas(self) -> pd.DataFrame:
        """One row per unit: site, unit, state, lower, upper, dead, linear, value, fires.

        Raises:
            MissingExtraError: pandas is not installed (extra "pandas").
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("pandas", "pandas", "to_pandas()") from error
        columns = ("lower", "upper", "dead", "linear", "value", "fires")
        parts = [
            pd.DataFrame(
                {
                    "site": s.name,
                    "unit": range(s.units),
                    "state": s.state,
                    **{n: getattr(s, n).numpy() for n in columns},
                }
            )
            for s in self.sites
        ]
        return pd.concat(parts, ignore_index=True)

    def __rich__(self) -> Table:
        return table(self)

    def __str__(self) -> str:
        return plain_text(table(self))

    def __repr__(self) -> str:
        return (
            f"Certificate({len(self.sites)} sites, {self.units} units: {self.dead} dead, {self.linear} linear, "
            f"{self.open} open, by {self.method})"
        )


class CertificateKeyError(CensusMismatchError, KeyError):
    """A site name that the certificate does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])


def _plain(values: Tensor) -> list[Any]:
    return [v if math.isfinite(v) else str(v) for v in values.double().flatten().tolist()]


def _tensor(values: Any) -> Tensor:
    return torch.tensor([float(v) for v in values] if isinstance(values, list) else float(values), dtype=torch.float64)


def _box(end: Tensor) -> Any:
    """One number where all are the same."""
    flat = end.double().flatten()
    return float(flat[0]) if len(flat) and bool((flat == flat[0]).all()) else flat.tolist()
