"""Normalization put before an activation: torch's own modules, of the site's number of units and on its axis."""

from __future__ import annotations

from torch import nn

from relume.treat.convert.targets import Wanted

NORMS = ("batch", "layer", "group", "rms")
_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class CantNormalizeError(Exception):
    """Why a norm has no place at a site."""


def norm_for(kind: str, units: int, wanted: Wanted) -> nn.Module:
    """A fresh norm for pre-activations with `units` channels.

    batch: per channel over the batch. layer: over all channels, per input (and position: on sequences; an image's
    channels and positions together, GroupNorm of one group, as torch's LayerNorm takes the last axes only). group: 32
    channels in a group, or the most that divide. rms: like layer, without the mean.

    Raises:
        CantNormalizeError: torch's norm of that kind does not take a tensor like this one.
    """
    at = {"device": wanted.device, "dtype": wanted.dtype}
    dims = wanted.dims
    assert dims is not None
    last = wanted.axis in (-1, dims - 1)
    if kind == "batch":
        if not wanted.torchs_axis or dims not in _BATCH:
            raise CantNormalizeError(
                f"torch's batch norm wants channels on axis 1 of 2 to 5; here it is axis {wanted.axis} of {dims}: "
                "norm='layer' does"
            )
        return _BATCH[dims](units, **at)  # type: ignore[arg-type]
    if kind in ("layer", "rms") and last:
        return (nn.LayerNorm if kind == "layer" else nn.RMSNorm)(units, **at)  # type: ignore[arg-type]
    if kind in ("layer", "group") and wanted.torchs_axis:
        groups = 1 if kind == "layer" else max(g for g in range(1, units + 1) if units % g == 0 and g <= 32)
        return nn.GroupNorm(groups, units, **at)  # type: ignore[arg-type]
    raise CantNormalizeError(f"norm='{kind}' does not fit units on axis {wanted.axis} of {dims}")
