"""The standard activations: one function each, taking the parameters that move its zones and returning the entry.

Entries are cached, so that two sites with the same slope share one. Zones are stated where they are exact and computed
from the derivative where they are not. Parameters have torch's names. A new entry also goes into `FACTORIES` below,
by which it is found, listed and documented.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import ParamSpec

import torch
import torch.nn.functional as F

from relume.activations.registry import Activation, InputDependent, TwoInputs, register_lazily
from relume.activations.zones import ABOVE_ZERO, INF, Zone

P = ParamSpec("P")


def entry(make: Callable[P, Activation]) -> Callable[P, Activation]:
    """Caches a function's entries, however its arguments are given."""
    cached = functools.lru_cache(maxsize=512)(make)
    signature = inspect.signature(make)

    @functools.wraps(make)
    def cached_by_value(*args: P.args, **kwargs: P.kwargs) -> Activation:
        if kwargs or len(args) < len(signature.parameters):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return cached(*bound.args)
        return cached(*args)

    return cached_by_value


LEFT = Zone(((-INF, 0.0),))
# Open at zero where zero is flat, closed where the straight piece begins with it.
RIGHT_LINEAR = Zone(((ABOVE_ZERO, INF),))
RIGHT_LINEAR_FROM_ZERO = Zone(((0.0, INF),))
# Two straight pieces that meet in a kink at zero: a unit that stays on one of them is linear.
KINKED = Zone(((-INF, 0.0), (0.0, INF)))


def _next_after(x: float, towards: float) -> float:
    """The neighbouring float32, so that open ends can be written as closed ones on float32 data."""
    return float(torch.nextafter(torch.tensor(x), torch.tensor(towards)))


@entry
def identity() -> Activation:
    return Activation("identity", "x", lambda x: x * 1.0, linear=Zone(((-INF, INF),)), aliases=("linear",))


@entry
def relu() -> Activation:
    return Activation("relu", "max(0, x)", torch.relu, LEFT, RIGHT_LINEAR, True, "Nair & Hinton 2010")


@entry
def threshold(threshold: float, value: float) -> Activation:
    at = threshold
    if at == 0 and value == 0:
        return relu()
    if at == value < 0:
        return displaced_relu(-at)
    return Activation(
        "threshold",
        f"x if x > {at:g} else {value:g}",
        lambda x: F.threshold(x, at, value),
        Zone(((-INF, at),)),
        Zone(((_next_after(at, INF), INF),)),
        value >= 0 and at >= 0,
    )


@entry
def displaced_relu(delta: float = 0.05) -> Activation:
    if delta == 0:
        return relu()
    return Activation(
        "displaced_relu",
        f"max(x, {-delta:g})",
        lambda x: F.threshold(x, -delta, -delta),
        Zone(((-INF, -delta),)),
        Zone(((_next_after(-delta, INF), INF),)),
        delta < 0,
        "Macêdo et al. 2019",
    )


@entry
def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    """Clipping to [min_val, max_val]; ReLU6 is the case (0, 6). An infinite limit clips nothing."""
    low, high = min_val, max_val
    if (low, high) == (0, INF):
        return relu()
    is_relu6 = (low, high) == (0, 6)
    flat = Zone(tuple(i for i in ((-INF, low), (high, INF)) if i not in ((-INF, -INF), (INF, INF))))
    straight = (
        low if low == -INF else _next_after(low, INF) if low else ABOVE_ZERO,
        high if high == INF else _next_after(high, -INF),
    )
    return Activation(
        "relu6" if is_relu6 else "hardtanh",
        f"min(max(x, {low:g}), {high:g})",
        lambda x: F.hardtanh(x, low, high),
        flat,
        Zone((straight,) if straight[0] <= straight[1] else ()),
        low >= 0,
        "Krizhevsky 2010; Howard et al. 2017" if is_relu6 else "Collobert 2004",
        tops=high if high < INF else None,
    )


@entry
def leaky_relu(negative_slope: float = 0.01) -> Activation:
    slope = negative_slope
    if slope == 0:
        return relu()
    return Activation(
        "leaky_relu",
        f"x if x > 0 else {slope:g} x",
        lambda x: F.leaky_relu(x, slope),
        linear=KINKED if slope != 1 else Zone(((-INF, INF),)),
        reference="Maas et al. 2013",
    )


@entry
def prelu(slope: float = 0.25) -> Activation:
    """With the slope that it has now, 0.25 before training. Zones are those of any slope: it may leave 0 again."""
    return Activation(
        "prelu",
        "x if x > 0 else a x, a learnt" + (f", now {slope:.4g}" if slope != 0.25 else ""),
        lambda x: F.leaky_relu(x, slope),
        linear=KINKED,
        reference="He et al. 2015, arXiv 1502.01852",
        aliases=("parametric_relu",),
    )


@entry
def rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """In training its slope is drawn for each sample; in evaluation, and here, it is the middle one."""
    if lower == upper:
        return leaky_relu(lower)
    return Activation(
        "rrelu",
        f"x if x > 0 else a x, a ~ U({lower:.3g}, {upper:.3g})",
        lambda x: F.leaky_relu(x, (lower + upper) / 2),
        linear=KINKED,
        reference="Xu et al. 2015, arXiv 1505.00853",
        aliases=("randomized_leaky_relu",),
    )


@entry
def elu(alpha: float = 1.0) -> Activation:
    if alpha == 0:
        return relu()
    return Activation(
        "elu",
        f"x if x > 0 else {alpha:g} (e^x - 1)",
        lambda x: F.elu(x, alpha),
        linear=RIGHT_LINEAR_FROM_ZERO,
        reference="Clevert et al. 2015, arXiv 1511.07289",
    )


@entry
def selu() -> Activation:
    return Activation(
        "selu",
        "1.0507 (x if x > 0 else 1.6733 (e^x - 1))",
        F.selu,
        linear=RIGHT_LINEAR_FROM_ZERO,
        reference="Klambauer et al. 2017, arXiv 1706.02515",
    )


@entry
def celu(alpha: float = 1.0) -> Activation:
    return Activation(
        "celu",
        f"x if x > 0 else {alpha:g} (e^(x/{alpha:g}) - 1)",
        lambda x: F.celu(x, alpha),
        linear=RIGHT_LINEAR_FROM_ZERO,
        reference="Barron 2017, arXiv 1704.07483",
    )


@entry
def gelu(approximate: str = "none") -> Activation:
    formula = "x Φ(x)" if approximate == "none" else "x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))"
    return Activation(
        "gelu" if approximate == "none" else "gelu_tanh",
        formula,
        lambda x: F.gelu(x, approximate=approximate),
        reference="Hendrycks & Gimpel 2016, arXiv 1606.08415",
        aliases=() if approximate == "none" else ("gelu_new", "gelu_pytorch_tanh"),
    )


@entry
def quick_gelu() -> Activation:
    return Activation(
        "quick_gelu",
        "x σ(1.702 x)",
        lambda x: x * torch.sigmoid(1.702 * x),
        reference="Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2",
    )


@entry
def silu() -> Activation:
    return Activation("silu", "x σ(x)", F.silu, reference="Elfwing et al. 2017, arXiv 1702.03118", aliases=("swish",))


@entry
def mish() -> Activation:
    return Activation("mish", "x tanh(softplus(x))", F.mish, reference="Misra 2019, arXiv 1908.08681")


@entry
def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    return Activation(
        "softplus",
        "log(1 + e^x)" if beta == 1 else f"log(1 + e^({beta:g} x)) / {beta:g}",
        lambda x: F.softplus(x, beta, threshold),
        non_negative=True,
        reference="Dugas et al. 2000",
    )


@entry
def sigmoid() -> Activation:
    return Activation(
        "sigmoid",
        "1 / (1 + e^-x)",
        torch.sigmoid,
        linear=Zone(),
        non_negative=True,
        aliases=("logistic", "expit"),
    )


@entry
def glu() -> Activation:
    """The gate of torch's GLU: its second half, through a sigmoid. The output metered is the gated product."""
    return TwoInputs(
        "glu",
        "a σ(x), a the other half",
        torch.sigmoid,
        linear=Zone(),
        reference="Dauphin et al. 2016, arXiv 1612.08083",
        both=lambda gate, a: a * torch.sigmoid(gate),
    )


@entry
def dual_relu() -> Activation:
    """Two ReLU sites, one of each sign: each dies for itself."""
    return TwoInputs(
        "dual_relu",
        "max(0, x) - max(0, b), b the other input",
        lambda x: torch.clamp(x, min=0),
        LEFT,
        RIGHT_LINEAR,
        reference="Godin et al. 2017, arXiv 1707.08214",
        both=lambda a, b: torch.clamp(a, min=0) - torch.clamp(b, min=0),
    )


@entry
def drelu_gate() -> Activation:
    """Two ReLU sites: the output is zero where either is."""
    return TwoInputs(
        "drelu_gate",
        "max(0, x) max(0, b), b the other input",
        lambda x: torch.clamp(x, min=0),
        LEFT,
        RIGHT_LINEAR,
        True,
        "Song et al. 2024, arXiv 2406.05955",
        aliases=("drelu_gating", "turbosparse"),
        both=lambda a, b: torch.clamp(a, min=0) * torch.clamp(b, min=0),
    )


def drelu(tau: float = 1.0, alpha: float = 0.1, form: str = "rational") -> Activation:
    """`relume.nn.DReLU` at one τ and α. Its folder makes the entry, and is imported when first asked."""
    from relume.activations.drelu.entry import entry as made

    given = (tau, alpha, form)
    return made() if given == (1.0, 0.1, "rational") else made(*given)


@entry
def dynamic_relu() -> Activation:
    """At rest, when the network that sets its pieces says nothing, it is a ReLU; in general no piece is flat."""
    return InputDependent(
        "dynamic_relu",
        "max over k of a_k x + b_k, a and b from the pooled input",
        lambda x: torch.clamp(x, min=0),
        linear=Zone(),
        reference="Chen et al. 2020, arXiv 2003.10027",
        aliases=("dy_relu",),
    )


@entry
def relu_squared() -> Activation:
    return Activation(
        "relu_squared",
        "max(0, x)²",
        lambda x: torch.relu(x) ** 2,
        LEFT,
        Zone(),
        True,
        "So et al. 2021, arXiv 2109.08668",
        aliases=("squared_relu", "relu2"),
    )


@entry
def tanh() -> Activation:
    near_zero = math.atanh(0.1)  # its slope is 1 - tanh²
    return Activation("tanh", "tanh(x)", torch.tanh, linear=Zone(((-near_zero, near_zero),)))


@entry
def softsign() -> Activation:
    near_zero = 1 / math.sqrt(0.99) - 1  # its slope is 1 / (1 + |x|)²
    return Activation("softsign", "x / (1 + |x|)", F.softsign, linear=Zone(((-near_zero, near_zero),)))


@entry
def tanhshrink() -> Activation:
    tail = math.atanh(math.sqrt(0.99))  # its slope is tanh²
    return Activation("tanhshrink", "x - tanh(x)", F.tanhshrink, linear=Zone(((-INF, -tail), (tail, INF))))


@entry
def logsigmoid() -> Activation:
    return Activation("logsigmoid", "log σ(x)", F.logsigmoid, linear=Zone(((-INF, -math.log(99)),)))


@entry
def softshrink(lambd: float = 0.5) -> Activation:
    width = lambd
    return Activation(
        "softshrink",
        f"x - {width:g} sign(x) if |x| > {width:g} else 0",
        lambda x: F.softshrink(x, width),
        Zone(((-width, width),)),
        Zone(((-INF, _next_after(-width, -INF)), (_next_after(width, INF), INF))),
    )


@entry
def hardshrink(lambd: float = 0.5) -> Activation:
    width = lambd
    return Activation(
        "hardshrink",
        f"x if |x| > {width:g} else 0",
        lambda x: F.hardshrink(x, width),
        Zone(((-width, width),)),
        Zone(((-INF, _next_after(-width, -INF)), (_next_after(width, INF), INF))),
    )


@entry
def hardswish() -> Activation:
    return Activation(
        "hardswish",
        "x min(max(x + 3, 0), 6) / 6",
        F.hardswish,
        Zone(((-INF, -3.0),)),
        Zone(((3.0, INF),)),
        reference="Howard et al. 2019, arXiv 1905.02244",
    )


@entry
def hardsigmoid() -> Activation:
    return Activation(
        "hardsigmoid",
        "min(max(x + 3, 0), 6) / 6",
        F.hardsigmoid,
        Zone(((-INF, -3.0), (3.0, INF))),
        Zone(((_next_after(-3.0, INF), _next_after(3.0, -INF)),)),
        True,
        "Courbariaux et al. 2015, arXiv 1511.00363",
        tops=3.0,
    )


# By name, in the order of the tables. One that needs a parameter is found by name, but not listed.
FACTORIES: dict[str, Callable[..., Activation]] = {
    "identity": identity,
    "relu": relu,
    "relu6": functools.partial(hardtanh, 0.0, 6.0),
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "rrelu": rrelu,
    "elu": elu,
    "selu": selu,
    "celu": celu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(gelu, "tanh"),
    "quick_gelu": quick_gelu,
    "silu": silu,
    "mish": mish,
    "softplus": softplus,
    "drelu": drelu,
    "drelu_exponential": functools.partial(drelu, form="exponential"),
    "displaced_relu": displaced_relu,
    "dual_relu": dual_relu,
    "dynamic_relu": dynamic_relu,
    "drelu_gate": drelu_gate,
    "relu_squared": relu_squared,
    "glu": glu,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "hardtanh": hardtanh,
    "hardswish": hardswish,
    "hardsigmoid": hardsigmoid,
    "softsign": softsign,
    "tanhshrink": tanhshrink,
    "logsigmoid": logsigmoid,
    "softshrink": softshrink,
    "hardshrink": hardshrink,
    "threshold": threshold,
}

# Written out by formula in Hugging Face's transformers: seen whole, not as the tanh or sigmoid inside.
for _name, _activation in {
    "NewGELUActivation": gelu("tanh"),
    "PytorchGELUTanh": gelu("tanh"),
    "FastGELUActivation": gelu("tanh"),
    "AccurateGELUActivation": gelu("tanh"),
    "GELUTanh": gelu("tanh"),
    "QuickGELUActivation": quick_gelu(),
    "MishActivation": mish(),
    "ReLUSquaredActivation": relu_squared(),
}.items():
    register_lazily(f"transformers.activations.{_name}", _activation)
