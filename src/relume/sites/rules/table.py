"""The table of rules, by the name of the torch function, and `follow`, which applies the right one to a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from relume.sites.flow import Flow, Node, tensors_in
from relume.sites.rules.common import Rule, by_shape, generic, nothing, passing
from relume.sites.rules.pieces import cat, getitem, scatter, select, setitem, stack, unbind
from relume.sites.rules.producers import attention, bilinear, conv, embedding, linear, multihead, norm, recurrent
from relume.sites.rules.products import addmm, cdist, einsum, matmul, rmatmul
from relume.sites.rules.shapes import (
    expand,
    movedim,
    permute,
    pixel_shuffle,
    repeat,
    repeat_interleave,
    reshape,
    reverse,
    squeeze,
    swap_last,
    transpose,
    unsqueeze,
)
from relume.sites.rules.values import cast, compare, like, negate, reduce, zeros, zeros_like

_NAMED: dict[str, Rule] = {
    "linear": linear,
    "bilinear": bilinear,
    **{f"conv{t}{d}d": conv(d) for d in (1, 2, 3) for t in ("", "_transpose")},
    "convolution": conv(-1, 8),
    "embedding": embedding,
    "embedding_bag": embedding,
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm", "mv", "dot", "_sparse_mm", "hspmm"), matmul),
    "__rmatmul__": rmatmul,
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv"), addmm),
    "einsum": einsum,
    "cdist": cdist,
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multihead,
    **dict.fromkeys(
        ("rnn_relu", "rnn_tanh", "lstm", "gru", "rnn_relu_cell", "rnn_tanh_cell", "lstm_cell", "gru_cell"), recurrent
    ),
    **{n: norm(n, 1) for n in ("batch_norm", "instance_norm", "group_norm", "native_batch_norm", "native_group_norm")},
    **{n: norm(n, -1) for n in ("layer_norm", "rms_norm", "native_layer_norm")},
    **{n: passing(n) for n in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")},
    **{n: passing("dropout") for n in ("dropout1d", "dropout2d", "dropout3d")},
    **{
        f"{kind}_pool{d}d": passing(f"{kind}_pool{d}d")
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp", "fractional_max")
        for d in (1, 2, 3)
    },
    **{n: passing(n) for n in ("boolean_dispatch", "softmax", "log_softmax", "normalize", "interpolate", "upsample")},
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"), reshape),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("t", "adjoint"), swap_last),
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    "unbind": unbind,
    "select": select,
    "__getitem__": getitem,
    "__setitem__": setitem,
    **dict.fromkeys(
        ("index_add", "index_copy", "index_reduce", "scatter", "scatter_add", "scatter_reduce"),
        scatter,
    ),
    **dict.fromkeys(
        (
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "prod",
            "std",
            "var",
            "norm",
            "logsumexp",
            "any",
            "all",
            "median",
            "nansum",
            "nanmean",
            "argmax",
            "argmin",
            "count_nonzero",
        ),
        reduce,
    ),
    **dict.fromkeys(("gt", "ge", "__gt__", "__ge__", "greater"), compare("positive")),
    **dict.fromkeys(("lt", "le", "__lt__", "__le__", "less"), compare("negative")),
    **dict.fromkeys(("bitwise_not", "logical_not", "__invert__"), negate),
    **dict.fromkeys(
        ("to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "bool", "clone", "detach"), cast
    ),
    **dict.fromkeys(("zeros", "new_zeros"), zeros),
    "zeros_like": zeros_like,
    **dict.fromkeys(("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "randint_like"), like),
    "pixel_shuffle": pixel_shuffle,
    **dict.fromkeys(
        (
            "size",
            "dim",
            "stride",
            "numel",
            "is_floating_point",
            "is_complex",
            "element_size",
            "get_device",
            "__len__",
            "storage_offset",
            "is_contiguous",
            "requires_grad_",
            "register_hook",
            "backward",
            "item",
            "tolist",
            "__bool__",
            "__float__",
            "__int__",
            "ndimension",
            "nelement",
            "_set_grad_enabled",
            "set_grad_enabled",
            "empty",
            "rand",
            "randn",
            "ones",
            "full",
            "arange",
            "tensor",
            "as_tensor",
            "new_ones",
            "new_full",
            "new_empty",
            "randint",
            "eye",
            "linspace",
            "is_autocast_enabled",
        ),
        nothing,
    ),
}


_PROPERTIES: dict[str, Rule] = {"T": reverse, "mT": swap_last, "H": swap_last, "mH": swap_last}
_PROPERTIES |= dict.fromkeys(("data", "real", "imag"), generic)


_RULES: dict[Any, Rule] = {}


def _rule_for(func: Any) -> Rule:
    """The rule by the function's name; attribute getters by the attribute's."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return _PROPERTIES.get(getattr(func.__self__, "__name__", ""), nothing)
    if name == "__set__":
        return nothing
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(name).partition(".")[0]
    if name.startswith("__i") and name.endswith("__") and name[3:-2] in ("add", "sub", "mul", "truediv", "matmul"):
        return generic
    return _NAMED.get(name) or _NAMED.get(name.rstrip("_")) or _NAMED.get(name.lstrip("_")) or generic


def follow(
    flow: Flow, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> tuple[Node | None, ...] | None:
    """Give each output of one torch call a `Node`; a function without a rule is followed by shape (see `by_shape`).

    Returns:
        The nodes that all calls alike give to their outputs, none where there is nothing to follow; None when another
        call like this one may give others.
    """
    if isinstance(out, Tensor) and out.is_nested:
        return None
    rule = _RULES.get(func)
    if rule is None:
        rule = _RULES[func] = _rule_for(func)
    if rule is nothing:
        return ()
    key = _key(flow, func, args, kwargs, out) if rule not in _BY_VALUE else None
    if key is None:
        rule(flow, args, kwargs, out)
        for tensor in tensors_in(out, 1):
            flow.share(tensor)  # so that what follows from it may be found
        return None
    outputs = (out,) if isinstance(out, Tensor) else out
    nodes: tuple[Node | None, ...] | None = flow.memo.get(key)
    if nodes is None:
        inputs = flow.inputs
        rule(flow, args, kwargs, out)
        if flow.inputs != inputs:
            return None
        nodes = flow.memo[key] = tuple(flow.node(t) for t in outputs)
        return nodes
    for tensor, node in zip(outputs, nodes, strict=True):
        if node is not None:
            flow.set(tensor, node)
    return nodes


# These look at values, remember tensors, or write into their arguments: no two calls of them are alike.
_BY_VALUE = frozenset(
    rule
    for name, rule in _NAMED.items()
    if rule in (cast, cdist, getitem, negate, recurrent, scatter, setitem, zeros, zeros_like)
    or name in ("gt", "ge", "__gt__", "__ge__", "greater", "lt", "le", "__lt__", "__le__", "less", "embedding_bag")
)
_PLAIN = (int, str, bool, type(None), torch.dtype, torch.device, torch.memory_format, type(Ellipsis), torch.Size)


def _key(flow: Flow, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """All that the nodes of the outputs depend on, or None where that can't be said."""
    outputs = (out,) if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else ()
    if not outputs or any(not isinstance(t, Tensor) or is_lazy(t) for t in outputs):
        return None
    shapes = tuple([t.shape for t in outputs])
    try:
        parts = tuple([_part(flow, a) for a in args])
        named = tuple([(k, _part(flow, v)) for k, v in kwargs.items()]) if kwargs else ()
    except _Unkeyed:
        return None
    return func, flow.where, flow.inputs, parts, named, shapes


class _Unkeyed(Exception):  # noqa: N818 - no error: it ends the making of a key
    pass


def _part(flow: Flow, value: Any) -> Any:
    """What matters of one argument: a tensor's node, or its shape where it has none."""
    if isinstance(value, Tensor):
        node = flow.node(value)
        if node is None and is_lazy(value):
            raise _Unkeyed
        return node or (value.shape,)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return float
    if isinstance(value, tuple | list):
        return tuple([_part(flow, v) for v in value])
    raise _Unkeyed


def through_module(flow: Flow, args: tuple[Any, ...], out: Any) -> None:
    """After a module call: follow by shape what no torch function announced (custom kernels, scripted parts)."""
    known: list[tuple[Tensor, Node]] | None = None
    for tensor in tensors_in(out):
        if flow.node(tensor) is not None:
            continue
        if known is None:
            known = [(t, n) for t in tensors_in(args) if (n := flow.node(t)) is not None]
        if known:
            flow.set(tensor, by_shape(known, tensor))
