"""Parts of a record as bytes, and back: rows of windows, steps of the optimizer, and dataclasses as plain data.

Nothing is lost: numbers come back bit by bit. Reading foreign bytes can fail, and takes no more memory than their
length and the site's units account for.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import struct
import types
import typing
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relume.diagnose.death import Around, Death, Fall
from relume.diagnose.finding import Confirmation, Finding, Remedy
from relume.diagnose.steps import Settings, StepRow

_MOST = 2**28  # bytes that anything here unpacks to, or it was not written here
_NUMBERS = ("gradient", "weight", "update")

Array = np.ndarray[Any, Any]


# Rows


def pack_row(row: Tensor) -> bytes:
    """A table of columns as bytes; a column whose numbers are all the same is written as one.

    Args:
        row: float32 [columns, units].
    """
    table = row.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    bits = table.view("<u4")
    same = (bits == bits[:, :1]).all(1)
    columns = [column[:1] if alike else column for column, alike in zip(table, same.tolist(), strict=True)]
    return b"".join([bytes(same.tolist()), *(column.tobytes() for column in columns)])


def unpack_rows(blobs: Sequence[bytes], columns: int, units: int) -> Tensor:
    """Inverse of `pack_row` for several tables of one site: float32 [tables, columns, units].

    Raises:
        ValueError: a blob has another length than so many columns and units need.
    """
    table: Array = np.empty((len(blobs), columns, units), np.float32)
    alike: dict[bytes, list[int]] = {}
    for i, blob in enumerate(blobs):
        alike.setdefault(blob[:columns], []).append(i)
    for head, places in alike.items():
        lengths = [min(units, 1) if same else units for same in head]
        size = columns + 4 * sum(lengths)
        if len(head) != columns or max(head, default=0) > 1 or any(len(blobs[i]) != size for i in places):
            raise ValueError(f"a row of {units} units is not {size} bytes long")
        raw = np.frombuffer(b"".join(blobs[i][columns:] for i in places), "<f4").reshape(len(places), -1)
        at = 0
        for column, n in enumerate(lengths):
            table[places, column] = raw[:, at : at + n]
            at += n
    return torch.from_numpy(table)


# Steps


def pack_steps(rows: Sequence[StepRow]) -> bytes:
    """Steps of the optimizer as bytes."""
    numbers = [dict(getattr(row, what)) for row in rows for what in _NUMBERS]  # brought from the device once
    producers = list(dict.fromkeys(name for known in (*numbers, *(row.settings for row in rows)) for name in known))
    shape = (len(rows), len(_NUMBERS), len(producers))
    cells = [known.get(name) for known in numbers for name in producers]
    present = np.array([cell is not None for cell in cells], np.uint8)
    values = np.array([math.nan if cell is None else cell for cell in cells], "<f8")
    settings: dict[Settings | None, int] = {None: -1}
    which: Array = np.array(
        [settings.setdefault(row.settings.get(name), len(settings) - 1) for row in rows for name in producers], "<i4"
    )
    groups = [plain(own) for own in settings if own is not None]
    about = to_json({"producers": producers, "settings": groups, "shape": shape})
    steps = np.array([row.step for row in rows], "<i8")
    arrays = (steps, which, values, present)
    return squeezed(struct.pack("<I", len(about)) + about + b"".join(a.tobytes() for a in arrays))


def unpack_steps(blob: bytes) -> list[StepRow]:
    """Inverse of `pack_steps`.

    Raises:
        ValueError: it is not as it was written.
    """
    raw = unsqueezed(blob)
    (size,) = struct.unpack_from("<I", raw)
    about = json.loads(raw[4 : 4 + size])
    producers = about["producers"]
    settings = [made(Settings, group) for group in about["settings"]]
    n, kinds, width = about["shape"]
    cells, at = n * kinds * width, 4 + size
    if kinds != len(_NUMBERS) or width != len(producers) or len(raw) != at + 8 * n + 4 * n * width + 9 * cells:
        raise ValueError(f"{len(raw)} bytes for {n} steps of {width} producers")
    steps = np.frombuffer(raw, "<i8", n, at)
    which = np.frombuffer(raw, "<i4", n * width, at + 8 * n).reshape(n, width)
    at += 8 * n + 4 * n * width
    values = np.frombuffer(raw, "<f8", cells, at).reshape(n, kinds, width)
    present = np.frombuffer(raw, np.uint8, cells, at + 8 * cells).reshape(n, kinds, width)

    def numbers(i: int, kind: int) -> dict[str, float]:
        cells = zip(producers, values[i, kind].tolist(), present[i, kind].tolist(), strict=True)
        return {name: value for name, value, there in cells if there}

    @functools.cache
    def of(groups: tuple[int, ...]) -> dict[str, Settings]:
        return {name: settings[group] for name, group in zip(producers, groups, strict=True) if group >= 0}

    return [
        StepRow(step, of(tuple(which[i].tolist())), *(numbers(i, kind) for kind in range(kinds)))
        for i, step in enumerate(steps.tolist())
    ]


# Plain data


def to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def squeezed(raw: bytes) -> bytes:
    return zlib.compress(raw, 1)


def unsqueezed(blob: bytes) -> bytes:
    """Inverse of `squeezed`.

    Raises:
        ValueError, zlib.error: it is not as it was written.
    """
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(blob, _MOST)
    if not unpacker.eof:
        raise ValueError("it is cut short, or unpacks to more than any archive does")
    return raw


def plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tensors (float32) as lists, all the way down; fields that play no part in
    comparisons are left out."""
    if dataclasses.is_dataclass(value):
        return {name: plain(getattr(value, name)) for name in _compared(type(value))}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value.tolist() if isinstance(value, Tensor) else value


@functools.cache
def _compared(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind) if f.compare and f.init)


def made(kind: Any, value: Any) -> Any:
    """Inverse of `plain` for a dataclass.

    Raises:
        KeyError, TypeError, ValueError: the value is none of that type.
    """
    return _maker(kind)(value)


_TYPES = {t.__name__: t for t in (Settings, Fall, Around, Death, Finding, Confirmation, Remedy)}


@functools.cache
def _maker(kind: Any) -> Callable[[Any], Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, localns=_TYPES)
        makers = {f.name: _maker(hints[f.name]) for f in dataclasses.fields(kind) if f.init}
        make: Any = kind
        return lambda value: make(**{name: makers[name](v) for name, v in value.items()})
    if origin in (typing.Union, types.UnionType):
        makers_of = [_maker(t) for t in inner if t is not type(None)]
        if len(makers_of) > 1:
            return lambda value: value
        return lambda value: None if value is None else makers_of[0](value)
    if origin is tuple:
        each = [_maker(t) for t in inner if t is not Ellipsis]
        if len(inner) == 2 and inner[1] is Ellipsis:
            return lambda value: tuple(each[0](v) for v in value)
        return lambda value: tuple(make(v) for make, v in zip(each, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(inner) == 2:
        of_values = _maker(inner[1])
        return lambda value: {k: of_values(v) for k, v in value.items()}
    if kind is Tensor:
        return torch.tensor
    if origin is list:
        of_items = _maker(inner[0])
        return lambda value: [of_items(v) for v in value]
    return lambda value: value
