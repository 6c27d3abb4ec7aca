"""Operations that move, copy, drop or choose the larger of values, or average them: each output grows with each input,
so the bounds of the output are the outputs of the bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relume.prove.certify.bound import Bound, Selected
from relume.prove.certify.rounding import margin
from relume.prove.certify.rules.call import Call

# Each output element is one of the input's, or a constant: exact, and linear.
MOVES = (
    "cat", "channel_shuffle", "concat", "constant_pad_nd", "diagonal",
    "expand", "flip", "gather", "im2col", "index", "index_select", "native_channel_shuffle", "permute",
    "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "select", "slice", "slice_scatter",
    "select_scatter", "split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "tril", "triu", "unbind",
    "unfold", "unsafe_split", "unsqueeze", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
)  # fmt: skip
SAME = ("alias", "clone", "contiguous", "detach", "lift_fresh")
# Exact and growing, but not linear.
CHOICES = ("maximum", "minimum", "fmax", "fmin", "amax", "amin", "floor", "ceil", "round", "trunc", "sign")
# Sums and averages with weights that are not negative; linear.
AVERAGES = (
    "sum", "mean", "cumsum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "col2im", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
)  # fmt: skip
MAX_POOLS = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d",
)  # fmt: skip


def move(call: Call) -> Any:
    return _growing(call, call.step.function, linear=True)


def same(call: Call) -> Any:
    """Nothing happens; written as a copy, since automatic differentiation stops at `detach`."""
    return _growing(call, lambda x, *_, **__: x.clone(), linear=True)


def choice(call: Call) -> Any:
    return _growing(call, call.step.function, linear=False)


def view(call: Call) -> Any:
    """As reshape: our bounds may lie otherwise in memory than the model's values."""
    return _growing(call, lambda x, shape: x.reshape(shape), linear=True)


def convert(call: Call) -> Bound:
    """To another dtype or device; bounds stay where they are, in float64."""
    (x,) = call.tracked
    to, was = call.outputs[0], call.kwargs.get("dtype") or call.arg(1, "dtype")
    assert to is not None
    if was is not None and not to.is_floating_point() and to.dtype is not torch.bool:
        raise call.unsupported("it rounds to whole numbers, which certify does not bound; leave the model in float32")
    narrow = to.dtype is torch.float32
    error = margin(1, x.magnitude, to.dtype) if narrow else None
    lower, upper = (x.lower, x.upper) if to.is_floating_point() else ((x.lower > 0).double(), (x.upper > 0).double())
    if not to.is_floating_point() and bool((x.lower < 0).any()):
        lower, upper = torch.zeros_like(x.lower), torch.ones_like(x.upper)
    return Bound(lower, upper, error, call.affine(lambda v: v * 1.0) if to.is_floating_point() else None)


def average(call: Call) -> Bound:
    """Sums, averages and linear interpolation. The number of terms is that of all that lie in one window."""
    (x,) = call.tracked
    out = call.outputs[0]
    assert out is not None
    call.kwargs.pop("dtype", None)
    function = call.step.function
    terms = _terms(call, x, out)
    scale = call.with_tracked(function, [x.magnitude])
    lower, upper = call.with_tracked(function, [x.lower]), call.with_tracked(function, [x.upper])
    affine = call.affine(lambda v: call.with_tracked(function, [v]))
    return Bound(lower, upper, margin(terms + 4, scale, call.dtype), affine)


def _terms(call: Call, x: Bound, out: Tensor) -> int:
    name = call.step.name
    if name.startswith("avg_pool"):
        kernel = call.args[1]
        axes = out.dim() - 2 if not isinstance(kernel, list | tuple) or len(kernel) == 1 else len(kernel)
        sizes = kernel if isinstance(kernel, list | tuple) else [kernel]
        return int(math.prod(sizes) ** (axes if len(sizes) == 1 else 1))
    if "adaptive" in name:
        sizes = call.args[1] if isinstance(call.args[1], list | tuple) else [call.args[1]]
        inner = x.shape[-len(sizes) :]
        return math.prod(-(-i // o) + 1 for i, o in zip(inner, sizes, strict=True))
    if name.startswith("upsample"):
        return 16
    if name == "col2im":
        return int(math.prod(call.args[2]))
    return max(1, x.lower.numel() // max(1, out.numel())) if name != "cumsum" else max(x.shape, default=1)


def max_pool(call: Call) -> list[Bound | None]:
    """Linear bounds: below, the element whose lower bound is largest; above, the same where no other can be larger."""
    (x,) = call.tracked
    function = call.step.function
    low, chosen = call.with_tracked(function, [x.lower])
    high, _ = call.with_tracked(function, [x.upper])
    bound = Bound(low, high)
    if call.lines:
        axes = 2 if "2d" in call.step.name else 3
        flat = chosen.flatten(-axes)

        def select(v: Tensor) -> Tensor:
            return v.flatten(-axes).gather(-1, flat).reshape(chosen.shape)

        # The chosen one put far down, is the largest of the others' upper bounds still below its lower bound?
        taken = torch.zeros_like(x.upper).flatten(-axes).scatter(-1, flat, 1.0).reshape(x.upper.shape)
        others, _ = call.with_tracked(function, [torch.where(taken > 0, -math.inf, x.upper)])
        windows_share = call.with_tracked(function, [torch.where(taken > 0, x.upper, -math.inf)])[0]
        alone = (others <= low) & (windows_share == select(x.upper)) & (_taken_once(taken, call, select))
        bound.backward = Selected(x.index, select, alone)
    return [bound, None]


def _taken_once(taken: Tensor, call: Call, select: Callable[[Tensor], Tensor]) -> Tensor:
    """Windows may overlap: another's chosen element may lie in this window, and be larger than this one's."""
    stride = call.arg(2, "stride") or call.arg(1, "kernel_size")
    apart = "adaptive" not in call.step.name and list(stride) == list(call.arg(1, "kernel_size"))
    return torch.full(select(taken).shape, apart, dtype=torch.bool, device=taken.device)


def max_along(call: Call) -> Any:
    """`max` and `min`, of all elements or along an axis, whose indices are not followed."""
    if call.step.function in (torch.ops.aten.max.other, torch.ops.aten.min.other):
        return choice(call)
    lower, upper = (call.with_tracked(call.step.function, [v]) for v in _ends(call))
    if isinstance(lower, Tensor):
        return Bound(lower, upper)
    return [Bound(lower[0], upper[0]), None]


def _ends(call: Call) -> tuple[Tensor, Tensor]:
    (x,) = call.tracked
    return x.lower, x.upper


def _growing(call: Call, function: Callable[..., Any], *, linear: bool) -> Any:
    lower = call.with_tracked(function, [b.lower for b in call.tracked])
    upper = call.with_tracked(function, [b.upper for b in call.tracked])
    if isinstance(lower, Tensor):
        affine = call.affine(lambda *v: call.with_tracked(function, v)) if linear else None
        return Bound(lower, upper, None, affine)
    found: list[Bound] = []
    for k, (a, b) in enumerate(zip(lower, upper, strict=True)):
        affine = call.affine(lambda *v, k=k: call.with_tracked(function, v)[k]) if linear else None
        found.append(Bound(a, b, None, affine))
    return found
