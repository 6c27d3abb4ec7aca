"""What an activation is like, found by computing: does its gradient vanish, is it smooth, does it adapt, where torch's
gain leads. The table, the plot and the documentation show what is found here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from relume.activations.gains import normal_mean
from relume.activations.registry import Activation, InputDependent

# Halves and whole numbers are hit exactly; beyond, an activation is taken to go on as it does at the ends.
_GRID = torch.arange(-20_000, 20_001, dtype=torch.float64, device="cpu") / 500
_FAR = 1e8
_ASIDE = 1e-7  # of a kink
_LAYERS = 50

Gradient = Literal["positive", "turns", "vanishes", "flat", "varies"]


@dataclass(frozen=True)
class Properties:
    """Of the function as it stands, without what changes it in training.

    Attributes:
        gradient: "flat" if it is exactly zero on an interval; else "turns" if it is zero at one point; else
            "vanishes" if it comes below 1e-6 somewhere; else "positive". "varies" where the input decides.
        least_slope: the infimum of |f'|.
        turn: the first point at which f' changes sign or touches zero; None when there is none.
        jump_at_zero: |f'(0+) − f'(0−)|.
        kinks: all x at which f' jumps.
        monotone: f' is never negative.
        least: the infimum of f; −inf when it is unbounded below.
        torch_gain: `torch.nn.init.calculate_gain`, None where torch has none.
        torch_scale: standard deviation of the pre-activation after 50 wide layers without biases that are initialized
            with torch's gain, when it is 1 in the first; 1 with `gain`.
    """

    gradient: Gradient
    least_slope: float
    turn: float | None
    jump_at_zero: float
    kinks: tuple[float, ...]
    monotone: bool
    least: float
    torch_gain: float | None
    torch_scale: float | None


def properties(activation: Activation) -> Properties:
    """What is found of one activation; of the first input's function, where it takes two."""
    slopes = activation.derivative(_GRID)
    far = activation.derivative(torch.tensor([-_FAR, _FAR]))
    least_slope = float(torch.cat([slopes, far]).abs().min())
    turns = torch.nonzero(slopes[1:] * slopes[:-1] < 0).flatten()
    turn = _root(activation, int(turns[0])) if len(turns) else None
    zeros = torch.nonzero(slopes == 0).flatten()
    if turn is None and len(zeros) == 1 and not activation.flat:
        turn = float(_GRID[int(zeros[0])])  # touches zero
    gradient = _gradient(activation, turn, least_slope)
    jumps = {k: _jump(activation, k) for k in activation.kinks}
    torchs = torch_gain(activation)
    return Properties(
        gradient=gradient,
        least_slope=0.0 if gradient in ("flat", "turns", "vanishes") else least_slope,
        turn=turn,
        jump_at_zero=jumps.get(0.0, 0.0),
        kinks=_merged([k for k, jump in jumps.items() if jump]),
        monotone=bool((slopes >= 0).all()),
        least=_least(activation),
        torch_gain=torchs,
        torch_scale=None if torchs is None else scale_after(activation, torchs),
    )


def torch_gain(activation: Activation) -> float | None:
    """`torch.nn.init.calculate_gain` of the activation, None where torch has none."""
    if activation.name == "leaky_relu":
        slope = float(activation.derivative(torch.tensor([-1.0]))[0])
        return nn.init.calculate_gain("leaky_relu", slope)
    name = "linear" if activation.name == "identity" else activation.name
    if name in ("linear", "sigmoid", "tanh", "relu", "selu"):
        return float(nn.init.calculate_gain(name))  # type: ignore[arg-type]
    return None


def scale_after(activation: Activation, gain: float, layers: int = _LAYERS) -> float:
    """Standard deviation of the pre-activation after so many wide layers of weight variance gain² / fan_in, from 1.

    In the limit of infinite width the pre-activation stays normal, and its variance goes q → gain² E f(√q z)².
    """
    scale = 1.0
    for _ in range(layers):
        kinks = [k / scale for k in activation.kinks]
        (second,) = normal_mean(lambda z, s=scale: activation.function(s * z)[None] ** 2, kinks)  # type: ignore[misc]
        scale = gain * math.sqrt(second)
        if not 1e-12 < scale < 1e12:
            break
    return scale


def adaptation(module: nn.Module, units: int = 4) -> str:
    """How a module adapts to its negative inputs, found by trying: "follows", "learns", "by input", or "no".

    - follows: a training pass over inputs ten times as negative changes what it makes of −1 in evaluation.
    - learns: a parameter has a gradient when all inputs are negative, and none when all are positive.
    - by input: what it makes of one unit's −1 changes with the other units of the same input.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    x = torch.rand(64, units) + 0.5
    probe = torch.full((1, units), -1.0)
    try:
        found = []
        module.train()
        if _moved(module, -x) > 0 and _moved(module, x) == 0:
            found.append("learns")
        module.eval()
        with torch.no_grad():
            before = module(probe)
            others = probe.clone()
            others[:, 1:] = -3.0
            by_input = not torch.equal(module(others)[:, 0], before[:, 0])
            module.train()
            for _ in range(3):
                module(-10 * x)
            module.eval()
            if not torch.equal(module(probe), before):
                found.insert(0, "follows")
            if by_input:
                found.append("by input")
        return ", ".join(found) or "no"
    finally:
        torch.random.set_rng_state(state)


def _gradient(activation: Activation, turn: float | None, least_slope: float) -> Gradient:
    if isinstance(activation, InputDependent):
        return "varies"
    if activation.flat:
        return "flat"
    if turn is not None:
        return "turns"
    return "vanishes" if least_slope < 1e-6 else "positive"


def _moved(module: nn.Module, x: Tensor) -> float:
    """The largest gradient of any parameter when the module is given x."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return 0.0
    gradients = torch.autograd.grad(module(x).sum(), parameters, allow_unused=True)
    return max(0.0 if g is None else float(g.abs().max()) for g in gradients)


def _jump(activation: Activation, at: float) -> float:
    left, right = activation.derivative(torch.tensor([at - _ASIDE, at + _ASIDE], dtype=torch.float64)).tolist()
    return abs(right - left) if abs(right - left) > 1e-5 else 0.0


def _merged(kinks: list[float]) -> tuple[float, ...]:
    """Ends of zones that are neighbouring floats are one kink."""
    found: list[float] = []
    for k in kinks:
        if not found or k - found[-1] > 1e-4:
            found.append(k)
    return tuple(found)


def _root(activation: Activation, i: int) -> float:
    """Where f' changes sign between two points of the grid."""
    a, b = float(_GRID[i]), float(_GRID[i + 1])
    sign = float(activation.derivative(torch.tensor([a], dtype=torch.float64))[0]) > 0
    for _ in range(50):
        middle = (a + b) / 2
        if (float(activation.derivative(torch.tensor([middle], dtype=torch.float64))[0]) > 0) == sign:
            a = middle
        else:
            b = middle
    return a


def _least(activation: Activation) -> float:
    """The infimum: over the grid, its ends, and far out."""
    far = torch.tensor([-_FAR, -_FAR / 1e4, _FAR / 1e4, _FAR], dtype=torch.float64)
    low, lower, upper, high = activation.function(far).tolist()
    if low < lower - 1 or high < upper - 1:
        return -math.inf
    return float(min(low, high, float(activation.function(_GRID).min())))
