"""What a run file keeps of a site, as bytes: counts and timelines, packed and unpacked.

Raw little-endian numbers under zlib: reading foreign bytes can fail, and takes no more memory than the site's units.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from relume.census import Counts, Timeline
from relume.census.counts import ARRAYS, INTEGER_ARRAYS

_STEPS = ("died_at", "revived_at", "last_fired", "deaths")
_FLAGS = ("born_dead", "dead")


def whole_number(value: Any, least: int = 0) -> int:
    """`value`, if it is one; bool and float are not.

    Raises:
        ValueError: it isn't, or is below `least`.
    """
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is not a whole number of at least {least}")
    return value


def _squeezed(columns: Sequence[np.ndarray[Any, Any]]) -> bytes:
    """Arrays of 8-byte numbers, one after the other; all first bytes, then all second ones, …: most of them are alike,
    which zlib makes use of."""
    raw = b"".join(column.tobytes() for column in columns)
    return zlib.compress(np.frombuffer(raw, np.uint8).reshape(-1, 8).T.tobytes(), 1)


def _unsqueezed(blob: bytes, units: int, kinds: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """Inverse of `_squeezed`; takes no more memory than so many units need.

    Raises:
        ValueError: the blob has another length.
    """
    size = 8 * units * len(kinds)
    raw = zlib.decompressobj().decompress(blob, size + 1)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes for {units} units, {size} expected")
    raw = np.frombuffer(raw, np.uint8).reshape(8, -1).T.tobytes()
    return [np.frombuffer(raw, kind, units, 8 * units * i).astype(kind[1:], copy=True) for i, kind in enumerate(kinds)]


_KINDS = tuple("<i8" if name in INTEGER_ARRAYS else "<f8" for name in ARRAYS)


def pack(counts: Counts) -> bytes:
    """The per-unit arrays, compressed."""
    return _squeezed(
        [getattr(counts, name).numpy().astype(kind, copy=False) for name, kind in zip(ARRAYS, _KINDS, strict=True)]
    )


def unpack(units: int, inputs: int, samples: int, blob: bytes) -> Counts:
    """Inverse of `pack`.

    Raises:
        ValueError: the blob has another length than so many units need, or holds impossible counts.
    """
    columns = _unsqueezed(blob, units, _KINDS)
    arrays = dict(zip(ARRAYS, columns, strict=True))
    finite = whole_number(samples) - arrays["nonfinite"]
    for name, most in (("fired", whole_number(inputs)), ("samples_fired", finite), ("nonfinite", samples)):
        if (arrays[name] < 0).any() or (arrays[name] > most).any():
            raise ValueError(f"impossible counts: {name} of {inputs} inputs and {samples} samples")
    return Counts(inputs, samples, **{name: torch.from_numpy(column) for name, column in arrays.items()})


def pack_timeline(timeline: Timeline) -> bytes:
    """Its per-unit arrays, compressed."""
    return _squeezed([getattr(timeline, name).numpy().astype("<i8") for name in (*_STEPS, *_FLAGS)])


def unpack_timeline(name: str, units: int, blob: bytes) -> Timeline:
    """Inverse of `pack_timeline`.

    Raises:
        ValueError: the blob has another length than so many units need, or says what can't be.
    """
    columns = _unsqueezed(blob, units, ["<i8"] * len((*_STEPS, *_FLAGS)))
    timeline = Timeline(name, units)
    for array, column in zip((*_STEPS, *_FLAGS), columns, strict=True):
        flag = array in _FLAGS
        if (column < (0 if flag or array == "deaths" else -1)).any() or (flag and (column > 1).any()):
            raise ValueError(f"impossible values of {array}")
        setattr(timeline, array, torch.from_numpy(column.astype(bool) if flag else column))
    return timeline
