"""The standard activations: one function each, taking the parameters that move its zones and returning the entry.

Entries are cached, so that two sites with the same slope share one. Zones are stated where they are exact and computed
from the derivative where they are not.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from relume.activations.registry import Activation, register_lazily
from relume.activations.zones import ABOVE_ZERO, INF, Zone

entry = functools.lru_cache(maxsize=512)

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
def relu() -> Activation:
    return Activation("relu", "max(0, x)", torch.relu, LEFT, RIGHT_LINEAR, True, "Nair & Hinton 2010")


@entry
def threshold(at: float, value: float) -> Activation:
    if at == 0 and value == 0:
        return relu()
    return Activation(
        "threshold",
        f"x if x > {at:g} else {value:g}",
        lambda x: F.threshold(x, at, value),
        Zone(((-INF, at),)),
        Zone(((_next_after(at, INF), INF),)),
        value >= 0 and at >= 0,
    )


@entry
def hardtanh(low: float, high: float) -> Activation:
    """Clipping to [low, high]; ReLU6 is the case (0, 6). An infinite limit clips nothing."""
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
def leaky_relu(slope: float = 0.01) -> Activation:
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
def prelu() -> Activation:
    return Activation(
        "prelu",
        "x if x > 0 else a x, a learnt",
        lambda x: F.leaky_relu(x, 0.25),
        linear=KINKED,
        reference="He et al. 2015, arXiv 1502.01852",
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
    )


@entry
def quick_gelu() -> Activation:
    return Activation(
        "quick_gelu", "x σ(1.702 x)", lambda x: x * torch.sigmoid(1.702 * x), reference="arXiv 1606.08415, section 2"
    )


@entry
def silu() -> Activation:
    return Activation("silu", "x σ(x)", F.silu, reference="Elfwing et al. 2017, arXiv 1702.03118")


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
    return Activation("sigmoid", "1 / (1 + e^-x)", torch.sigmoid, linear=Zone(), non_negative=True)


@entry
def glu() -> Activation:
    """The gate of torch's GLU: its second half, through a sigmoid. The output metered is the gated product."""
    return Activation(
        "glu",
        "a σ(x), a the other half",
        torch.sigmoid,
        linear=Zone(),
        reference="Dauphin et al. 2016, arXiv 1612.08083",
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
def softshrink(width: float = 0.5) -> Activation:
    return Activation(
        "softshrink",
        f"x - {width:g} sign(x) if |x| > {width:g} else 0",
        lambda x: F.softshrink(x, width),
        Zone(((-width, width),)),
        Zone(((-INF, _next_after(-width, -INF)), (_next_after(width, INF), INF))),
    )


@entry
def hardshrink(width: float = 0.5) -> Activation:
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


# Written out by formula in Hugging Face's transformers: seen whole, not as the tanh or sigmoid inside.
for _name, _activation in {
    "NewGELUActivation": gelu("tanh"),
    "PytorchGELUTanh": gelu("tanh"),
    "FastGELUActivation": gelu("tanh"),
    "AccurateGELUActivation": gelu("tanh"),
    "GELUTanh": gelu("tanh"),
    "QuickGELUActivation": quick_gelu(),
    "MishActivation": mish(),
    "ReLUSquaredActivation": Activation(
        "relu_squared",
        "max(0, x)²",
        lambda x: torch.relu(x) ** 2,
        LEFT,
        Zone(),
        True,
        "So et al. 2021, arXiv 2109.08668",
    ),
}.items():
    register_lazily(f"transformers.activations.{_name}", _activation)
