"""Which calls apply an activation, however they are written: modules, `F.*`, torch functions, methods, in-place,
`clamp(min=0)`, `maximum(x, 0)`, `where(x > 0, x, 0)`, `x * (x > 0)`, `torch.ops.aten.*`.

`application(func, args, kwargs, facts)` is the question; the answer names the activation and the pre-activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from relume.activations import Activation
from relume.activations import catalogue as of
from relume.activations.registry import registered_functions


class Application(NamedTuple):
    """One call that applies an activation.

    Attributes:
        activation: which.
        x: the pre-activation; for a gate, the gate's part.
        called: name of the function called, without a trailing underscore.
        plain: False for clamp, maximum, where and mul, which are activations only on units of a producer.
    """

    activation: Activation
    x: Tensor
    called: str
    plain: bool = True


class Facts(Protocol):
    """What a recogniser may ask about the tensors of a call."""

    def is_zero(self, value: object) -> bool:
        """Is it the number 0, or a constant tensor of zeros?"""

    def sign_mask(self, mask: object, x: object) -> str | None:
        """ "positive" when mask was made as `x > 0`, "negative" when as `x < 0`, else None."""


Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Recogniser = Callable[[Args, Kwargs, Facts], "tuple[Activation, Any] | None"]


def _get(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _fixed(make: Callable[[], Activation]) -> Recogniser:
    return lambda args, kwargs, facts: (make(), _get(args, kwargs, 0, "input"))


def _with(make: Callable[..., Activation], *parameters: tuple[int, str, Any]) -> Recogniser:
    def recognise(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any]:
        values = [_get(args, kwargs, position, name, default) for position, name, default in parameters]
        return make(*(float(v) if isinstance(v, int | float) else v for v in values)), _get(args, kwargs, 0, "input")

    return recognise


def _hardtanh(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    low = _get(args, kwargs, 1, "min_val", -1.0)
    high = _get(args, kwargs, 2, "max_val", 1.0)
    return of.hardtanh(float(low), float(high)), _get(args, kwargs, 0, "input")


def _glu(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    x = _get(args, kwargs, 0, "input")
    with torch._C.DisableTorchFunction():
        return of.glu(), x.detach().chunk(2, _get(args, kwargs, 1, "dim", -1))[1]


def _clamp(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    """min=0 is ReLU, [0, 6] ReLU6, [-1, 1] Hardtanh; any other clamp is taken for arithmetic."""
    x = _get(args, kwargs, 0, "input")
    low, high = _get(args, kwargs, 1, "min"), _get(args, kwargs, 2, "max")
    if high is None or high == math.inf:
        return (of.relu(), x) if low is not None and facts.is_zero(low) else None
    if isinstance(low, int | float) and isinstance(high, int | float) and (low, high) in ((0, 6), (-1, 1)):
        return of.hardtanh(float(low), float(high)), x
    return None


def _clamp_min(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    low = _get(args, kwargs, 1, "min")
    return (of.relu(), _get(args, kwargs, 0, "input")) if low is not None and facts.is_zero(low) else None


def _maximum(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    a, b = _get(args, kwargs, 0, "input"), _get(args, kwargs, 1, "other")
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None  # torch.max(x, dim)
    if facts.is_zero(b):
        return of.relu(), a
    return (of.relu(), b) if facts.is_zero(a) else None


def _where(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    mask, a, b = (_get(args, kwargs, i, n) for i, n in enumerate(("condition", "input", "other")))
    if not isinstance(mask, Tensor):
        return None
    if isinstance(a, Tensor) and facts.sign_mask(mask, a) == "positive" and facts.is_zero(b):
        return of.relu(), a
    if isinstance(b, Tensor) and facts.sign_mask(mask, b) == "negative" and facts.is_zero(a):
        return of.relu(), b
    return None


def _where_method(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    """`x.where(mask, 0)`."""
    x, mask, other = _get(args, kwargs, 0, "self"), _get(args, kwargs, 1, "condition"), _get(args, kwargs, 2, "other")
    return _where((mask, x, other), {}, facts)


def _masked_fill(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    x, mask, value = _get(args, kwargs, 0, "input"), _get(args, kwargs, 1, "mask"), _get(args, kwargs, 2, "value")
    return (of.relu(), x) if facts.sign_mask(mask, x) == "negative" and facts.is_zero(value) else None


def _setitem(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    """`x[x < 0] = 0`."""
    return _masked_fill(args, kwargs, facts)


def _mul(args: Args, kwargs: Kwargs, facts: Facts) -> tuple[Activation, Any] | None:
    a, b = _get(args, kwargs, 0, "input"), _get(args, kwargs, 1, "other")
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if facts.sign_mask(b, a) == "positive":
            return of.relu(), a
        if facts.sign_mask(a, b) == "positive":
            return of.relu(), b
    return None


_BY_NAME: dict[str, Recogniser] = {
    "relu": _fixed(of.relu),
    "relu6": _fixed(lambda: of.hardtanh(0.0, 6.0)),
    "leaky_relu": _with(of.leaky_relu, (1, "negative_slope", 0.01)),
    "prelu": _fixed(of.prelu),
    "rrelu": _with(of.rrelu, (1, "lower", 1 / 8), (2, "upper", 1 / 3)),
    "elu": _with(of.elu, (1, "alpha", 1.0)),
    "selu": _fixed(of.selu),
    "celu": _with(of.celu, (1, "alpha", 1.0)),
    "gelu": _with(of.gelu, (9, "approximate", "none")),
    "silu": _fixed(of.silu),
    "mish": _fixed(of.mish),
    "softplus": _with(of.softplus, (1, "beta", 1.0), (2, "threshold", 20.0)),
    "hardtanh": _hardtanh,
    "hardswish": _fixed(of.hardswish),
    "hardsigmoid": _fixed(of.hardsigmoid),
    "sigmoid": _fixed(of.sigmoid),
    "special_expit": _fixed(of.sigmoid),
    "expit": _fixed(of.sigmoid),
    "tanh": _fixed(of.tanh),
    "logsigmoid": _fixed(of.logsigmoid),
    "log_sigmoid": _fixed(of.logsigmoid),
    "softsign": _fixed(of.softsign),
    "tanhshrink": _fixed(of.tanhshrink),
    "softshrink": _with(of.softshrink, (1, "lambd", 0.5)),
    "hardshrink": _with(of.hardshrink, (1, "lambd", 0.5)),
    "threshold": _with(of.threshold, (1, "threshold", 0.0), (2, "value", 0.0)),
    "glu": _glu,
}

# Activations only where they act on the units of a producer; elsewhere they are arithmetic.
_ARITHMETIC: dict[str, Recogniser] = {
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp_min,
    "maximum": _maximum,
    "fmax": _maximum,
    "max": _maximum,
    "where": _where,
    "masked_fill": _masked_fill,
    "mul": _mul,
    "multiply": _mul,
}


def _table() -> dict[Any, tuple[str, Recogniser, bool]]:
    table: dict[Any, tuple[str, Recogniser, bool]] = {}
    homes = (torch, F, Tensor, torch._C._nn, torch.special)
    for names, is_plain in ((_BY_NAME, True), (_ARITHMETIC, False)):
        for name, recogniser in names.items():
            for home in homes:
                for spelling in (name, f"{name}_", f"_{name}"):
                    function = getattr(home, spelling, None)
                    if function is not None and callable(function):
                        table[function] = (name, recogniser, is_plain)
    table[Tensor.where] = ("where", _where_method, False)
    table[Tensor.__setitem__] = ("setitem", _setitem, False)
    for dunder in ("__mul__", "__rmul__", "__imul__"):
        table[getattr(Tensor, dunder)] = ("mul", _mul, False)
    return table


_TABLE = _table()


def _lookup(func: Any) -> tuple[str, Recogniser, bool] | None:
    """The entry of a callable; operators of `torch.ops.aten` are added to the table as they are met."""
    try:
        return _TABLE[func]
    except KeyError:
        pass
    custom = registered_functions().get(func)
    if custom is not None:
        name = getattr(func, "__name__", custom.name)
        return name, (lambda args, kwargs, facts: (custom, _get(args, kwargs, 0, "input"))), True
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        namespace, _, name = str(packet._qualified_op_name).partition("::")
        name = name.rstrip("_")
        for names, is_plain in ((_BY_NAME, True), (_ARITHMETIC, False)):
            if namespace == "aten" and name in names:
                _TABLE[func] = (name, names[name], is_plain)
                return _TABLE[func]
    return None


def looks_at_values(func: Any, args: Args, kwargs: Kwargs) -> bool:
    """May the values of a tensor decide whether this call applies an activation, as those of b in `maximum(a, b)`?"""
    entry = _lookup(func)
    if entry is None or entry[2] or entry[0] in ("mul", "multiply"):
        return False
    return sum(isinstance(v, Tensor) for v in (*args, *kwargs.values())) > 1


def application(func: Any, args: Args, kwargs: Kwargs, facts: Facts) -> Application | None:
    """The activation that this call applies, or None."""
    entry = _lookup(func)
    if entry is None:
        return None
    name, recogniser, is_plain = entry
    found = recogniser(args, kwargs, facts)
    if found is None:
        return None
    activation, x = found
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0:
        return None
    return Application(activation, x, name, is_plain)
