"""What a run file keeps of a site, as bytes: counts and timelines, packed and unpacked.

A blob begins with the number of its layout and a byte for each column that says how its numbers are written: in the
narrowest type that holds them exactly, as one number for all units, or as the column before. Whole numbers come with
what is to be added to them, all but -1. Columns follow, raw and little-endian: random digits, most of what is counted,
no compression makes smaller. Reading foreign bytes can fail, and takes no more memory than the site's units.
Blobs of format 1, columns of 8 bytes under zlib, are read as well.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from relume.census import Counts, Timeline
from relume.census.counts import ARRAYS, INTEGER_ARRAYS, MOST_IN_32_BITS, NEVER

Array = np.ndarray[Any, Any]

_STEPS = ("died_at", "revived_at", "last_fired", "deaths")
_FLAGS = ("born_dead", "dead")

LAYOUT = 2
_INTEGERS, _REALS = ("<i1", "<i2", "<i4", "<i8"), ("<f4", "<f8")
_SAME, _ALIKE = 6, 7  # one number for all units; the numbers of the column before
_WRITTEN = (*_INTEGERS, *_REALS)


def whole_number(value: Any, least: int = 0) -> int:
    """`value`, if it is one; bool and float are not.

    Raises:
        ValueError: it isn't, or is below `least`.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is not a whole number of at least {least}")
    return value


# Writing


def _written(column: Array) -> tuple[int, int, bytes]:
    """How a column is written, what is to be added to it, and its bytes."""
    if column.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            short = column.astype("<f4")
            wide = short.astype("<f8")
        exact = column.dtype.itemsize == 4 or wide.tobytes() == column.astype("<f8", copy=False).tobytes()
        return _WRITTEN.index("<f4" if exact else "<f8"), 0, (short if exact else column.astype("<f8")).tobytes()
    if not len(column):
        return 0, 0, b""
    low, high = int(column.min()), int(column.max())
    if low == high:
        return _SAME, low, b""
    kind, base = _narrowest(low, high), 0
    if low >= NEVER and kind:  # steps late in a run are many, but close together
        least = int(column[column != NEVER].min())
        nearer = _narrowest(low, high - least)
        if nearer < kind:
            column = np.where(column == NEVER, NEVER, column.astype(np.int64) - least)
            kind, base = nearer, least
    return kind, base, column.astype(_INTEGERS[kind]).tobytes()


def _narrowest(low: int, high: int) -> int:
    return next(i for i, kind in enumerate(_INTEGERS) if max(high, -low - 1) < 1 << (8 * int(kind[2]) - 1))


def _packed(columns: Sequence[Array]) -> bytes:
    kinds, added, parts = [], [], []
    before: Array | None = None
    for column in columns:
        alike = before is not None and column is before
        kind, base, part = (_ALIKE, 0, b"") if alike else _written(column)
        kinds.append(kind)
        added.append(base)
        parts.append(part)
        before = column
    return b"".join([bytes([LAYOUT, *kinds]), struct.pack(f"<{len(columns)}q", *added), *parts])


def pack(counts: Counts) -> bytes:
    """The per-unit arrays."""
    kept = [counts.kept(name) for name in ARRAYS]
    columns = [t.numpy() for t in kept]
    return _packed([columns[i - 1] if i and t is kept[i - 1] else columns[i] for i, t in enumerate(kept)])


def pack_timeline(timeline: Timeline) -> bytes:
    """Its per-unit arrays."""
    steps = [timeline.__dict__[name].numpy() for name in _STEPS]
    return _packed([*steps, *(getattr(timeline, name).numpy().astype(np.int8) for name in _FLAGS)])


# Reading


class Kind:
    """How the columns of a blob are written: all that begin alike are read together.

    Raises:
        ValueError: no blob of these columns begins so.
    """

    def __init__(self, head: bytes, whole: Sequence[bool], units: int) -> None:
        kinds = head[1:]
        if len(kinds) != len(whole) or head[0] != LAYOUT:
            raise ValueError(f"no column is written like that: {head.hex()}")
        self._columns: list[tuple[int, str | None]] = []  # where it begins; None: one number for all
        at = self.head = len(head) + 8 * len(kinds)
        for i, (kind, integer) in enumerate(zip(kinds, whole, strict=True)):
            if kind == _ALIKE and i and whole[i - 1] == integer:
                self._columns.append(self._columns[-1])
            elif kind == _SAME and integer:
                self._columns.append((at, None))
            elif kind < len(_WRITTEN) and integer == (kind < len(_INTEGERS)):
                self._columns.append((at, _WRITTEN[kind]))
                at += int(_WRITTEN[kind][2]) * units
            else:
                raise ValueError(f"no column is written like that: {head.hex()}")
        self.alike = [kind == _ALIKE for kind in kinds]
        self._integer = whole
        self.size = at
        self._units = units

    def columns(self, blobs: Sequence[bytes]) -> list[Array]:
        """The columns of several blobs, each of shape [blobs, units].

        Raises:
            ValueError: one has another length, or numbers too large.
        """
        for blob in blobs:
            if len(blob) != self.size:
                raise ValueError(f"{len(blob)} bytes for {self._units} units, {self.size} expected")
        raw = blobs[0] if len(blobs) == 1 else b"".join(blobs)
        n, units = len(blobs), self._units
        first = self.head - 8 * len(self._columns)
        added: Array = np.ndarray((n, len(self._columns)), "<i8", raw, first, (self.size, 8))
        found: list[Array] = []
        for i, (at, kind) in enumerate(self._columns):
            if self.alike[i]:
                found.append(found[-1])
                continue
            base = added[:, i : i + 1]
            if kind is None:
                found.append(np.broadcast_to(_narrow(base), (n, units)))
                continue
            column: Array = np.ndarray((n, units), kind, raw, at, (self.size, int(kind[2])))
            if not self._integer[i]:
                found.append(column.astype(kind[1:]))
            elif not base.any():
                found.append(column.astype("i8" if kind == "<i8" else "i4"))
            else:
                least, most = int(base.min()), int(base.max()) + int(column.max(initial=0))
                if least < 0 or most >= 1 << 63:
                    raise ValueError(f"what is added to whole numbers is {least} at least, and gives {most}")
                whole = column.astype("i4" if most <= MOST_IN_32_BITS else "i8")
                never = whole == NEVER
                whole += base.astype(whole.dtype)
                if never.any():
                    whole[never] = NEVER
                found.append(whole)
        return found


def _narrow(column: Array) -> Array:
    """In 32 bits, if all fit in."""
    fits = not column.size or (int(column.max()) <= MOST_IN_32_BITS and int(column.min()) >= -MOST_IN_32_BITS)
    return column.astype("i4") if fits else column.astype("i8")


def _unsqueezed(blob: bytes, units: int, whole: Sequence[bool]) -> list[Array]:
    """Columns of format 1: all first bytes, then all second ones, …; takes no more memory than so many units need.

    Raises:
        ValueError: the blob has another length.
    """
    size = 8 * units * len(whole)
    raw = zlib.decompressobj().decompress(blob, size + 1)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes for {units} units, {size} expected")
    raw = np.frombuffer(raw, np.uint8).reshape(8, -1).T.tobytes()
    kinds = ["<i8" if integer else "<f8" for integer in whole]
    return [np.frombuffer(raw, kind, units, 8 * units * i).astype(kind[1:]) for i, kind in enumerate(kinds)]


def _unpacked(blobs: Sequence[bytes], units: int, whole: Sequence[bool]) -> list[Array]:
    """The columns of blobs that begin alike, each of shape [blobs, units]."""
    if not all(isinstance(blob, bytes) for blob in blobs):
        raise ValueError("no bytes where there were some")
    if blobs[0].startswith(_BEGINS):
        return Kind(head(blobs[0], 1 + len(whole)), whole, units).columns(blobs)
    each = [_unsqueezed(blob, units, whole) for blob in blobs]
    return [np.stack(columns) for columns in zip(*each, strict=True)]


_BEGINS = bytes([LAYOUT])
HEAD = 1 + len(ARRAYS)  # bytes


def head(blob: bytes, size: int = HEAD) -> bytes:
    """What is the same of all blobs that can be read together."""
    return blob[:size] if blob.startswith(_BEGINS) else b""


_WHOLE = tuple(name in INTEGER_ARRAYS for name in ARRAYS)


def unpack_several(units: int, inputs: Sequence[int], samples: Sequence[int], blobs: Sequence[bytes]) -> Counts:
    """Inverse of `pack` for several windows, whose blobs have the same `head`: counts as `Counts.stacked` makes them.

    Raises:
        ValueError: a blob has another length than so many units need, or holds impossible counts.
    """
    columns = dict(zip(ARRAYS, _unpacked(blobs, units, _WHOLE), strict=True))
    all_inputs, all_samples = (
        np.array([whole_number(n) for n in numbers], np.int64)[:, None] for numbers in (inputs, samples)
    )
    brief = {name: c if c.flags.writeable else c[:, :1] for name, c in columns.items()}  # one number stands for all
    most = {"fired": all_inputs, "samples_fired": all_samples - brief["nonfinite"], "nonfinite": all_samples}
    if columns["samples_fired"] is columns["fired"]:
        most["fired"] = np.minimum(all_inputs, most.pop("samples_fired"))
    for name, limit in most.items():
        column = brief[name]
        if limit.shape[1] == 1 and units:
            column = column.max(1, keepdims=True)
        if brief[name].min(initial=0) < 0 or (column > limit).any():
            raise ValueError(f"impossible counts: {name} of {inputs[0]} inputs and {samples[0]} samples")
    arrays: dict[str, torch.Tensor] = {}
    for name, column in columns.items():
        shared = name == "samples_fired" and column is columns["fired"]
        # Read-only where it is one number for all units; nobody writes to counts.
        arrays[name] = (
            arrays["fired"] if shared else torch.from_numpy(column) if column.flags.writeable else _spread(column)
        )
    return Counts(torch.from_numpy(all_inputs), torch.from_numpy(all_samples), **arrays)  # type: ignore[arg-type]


def _spread(column: Array) -> torch.Tensor:
    """One number for all units of each window."""
    return torch.from_numpy(column[:, :1].copy()).expand(column.shape)


def unpack(units: int, inputs: int, samples: int, blob: bytes) -> Counts:
    """Inverse of `pack`.

    Raises:
        ValueError: the blob has another length than so many units need, or holds impossible counts.
    """
    several = unpack_several(units, [inputs], [samples], [blob])
    rows = {id(t): t[0] for t in map(several.kept, ARRAYS)}
    return Counts(inputs, samples, **{name: rows[id(several.kept(name))] for name in ARRAYS})


def unpack_timeline(name: str, units: int, blob: bytes) -> Timeline:
    """Inverse of `pack_timeline`.

    Raises:
        ValueError: the blob has another length than so many units need, or says what can't be.
    """
    arrays = (*_STEPS, *_FLAGS)
    columns = _unpacked([blob], units, [True] * len(arrays))
    timeline = Timeline(name, units)
    for array, (column,) in zip(arrays, columns, strict=True):
        flag = array in _FLAGS
        if (column < (0 if flag or array == "deaths" else NEVER)).any() or (flag and (column > 1).any()):
            raise ValueError(f"impossible values of {array}")
        setattr(timeline, array, torch.from_numpy(column.astype(bool) if flag else _narrow(column)))
    return timeline
