"""The bounds of each operation: one function per family, found by the operation's name in torch's core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relume.prove.certify.rules import elementwise, norms, products, structural
from relume.prove.certify.rules.call import Call as Call

Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {
    **dict.fromkeys(structural.MOVES, structural.move),
    **dict.fromkeys(structural.SAME, structural.same),
    **dict.fromkeys(structural.CHOICES, structural.choice),
    **dict.fromkeys(structural.AVERAGES, structural.average),
    **dict.fromkeys(structural.MAX_POOLS, structural.max_pool),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), structural.view),
    **dict.fromkeys(("_to_copy", "to"), structural.convert),
    **dict.fromkeys(("max", "min"), structural.max_along),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "matmul"), products.matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), products.addmm),
    "linear": products.linear,
    "convolution": products.convolution,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
        products.batch_norm,
    ),
    "add": products.add,
    "sub": products.sub,
    "rsub": products.rsub,
    "neg": products.neg,
    "mul": products.mul,
    "div": products.div,
    **dict.fromkeys(elementwise.CURVES, elementwise.curve),
    "clamp": elementwise.clamp,
    "clamp_min": elementwise.clamp,
    "clamp_max": elementwise.clamp,
    **dict.fromkeys(("sqrt", "rsqrt", "log", "log1p"), elementwise.half),
    "reciprocal": elementwise.reciprocal,
    **dict.fromkeys(("sin", "cos"), elementwise.wave),
    **dict.fromkeys(("gt", "ge", "lt", "le"), elementwise.compare),
    "logical_not": elementwise.logical_not,
    "where": elementwise.where,
    "masked_fill": elementwise.masked_fill,
    "index_put": elementwise.index_put,
    "fill": elementwise.fill,
    "zero": elementwise.fill,
    "copy": elementwise.copy,
    "merge": elementwise.merge,
    "site": elementwise.site,
    "native_layer_norm": norms.layer_norm,
    "native_group_norm": norms.group_norm,
    "_softmax": norms.softmax,
    "_safe_softmax": norms.softmax,
    "glu": norms.glu,
}
# Of these the input's linear bounds are worth having, as what follows is tighter for it.
BENDS = frozenset(
    {
        *elementwise.CURVES, *structural.MAX_POOLS, "site", "glu", "native_layer_norm", "native_group_norm", "_softmax",
        "_safe_softmax", "mul", "bmm", "div", "sqrt", "rsqrt", "log", "log1p", "reciprocal", "sin", "cos", "maximum",
        "minimum",
    }
)  # fmt: skip
