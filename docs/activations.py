"""Makes docs/activations.md and docs/activations.svg: `python docs/activations.py`. Every entry is computed.

With `--print` the page goes to standard output and nothing is written.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import relume.nn
from relume.activations import Activation, activation, all_activations
from relume.activations.plot import svg
from relume.activations.properties import Properties, adaptation, properties
from relume.activations.table import gradient_in_words, number

HERE = Path(__file__).parent
DRAWN = ("relu", "leaky_relu", "elu", "gelu", "drelu", "displaced_relu")
UNITS = 16
# Those whose behaviour is more than a fixed function: tried as modules.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "prelu": nn.PReLU,
    "rrelu": nn.RReLU,
    "dynamic_relu": lambda: relume.nn.DynamicReLU(UNITS, "B", reduction=2),
    "drelu": relume.nn.DReLU,
    "drelu_exponential": lambda: relume.nn.DReLU(form="exponential"),
}

PAGE = """\
# Activations: what each is like

Made by `python docs/activations.py`; every entry is computed from the functions, none is asserted. `relume activations
NAME` shows all that is known of one, `--plot FILE.svg` draws it. What each costs is measured in
[benchmarks/README.md](../benchmarks/README.md).

![The function, its derivative and its flat zone](activations.svg)

## Against dying

The essay behind relume asks of an activation that it never has a zero gradient, passes smoothly from negative to
positive inputs, and adapts to its negative inputs.

{properties}

- **gradient**: how small |f′| gets. Where it is exactly zero on an interval, a unit whose every input falls there gets
  no gradient from the loss: it can die. Where it only vanishes far out, a unit can be buried so deep that it learns too
  slowly to matter, and floating point rounds its gradient to zero at last. Where it is zero at one point alone, the
  unit is held there by no interval; those that turn vanish far to the left as well.
- **jump at 0**: |f′(0+) − f′(0−)|; 0 is a smooth transition. Kinks elsewhere are named.
- **adapts**: tried on the module. *follows*: a training pass over more negative inputs changes what evaluation makes
  of −1. *learns*: a parameter has a gradient from negative inputs, and none from positive ones. *by input*: what is
  made of a unit depends on the other units of the same input.
- **bounded below**: by the infimum of f.
- **bias shift**: E f(z), z ~ N(0, 1): what a unit adds, on average, to the pre-activations of the next layer.

A two-input activation (`dual_relu`, `drelu_gate`, `glu`) is described by its first input, a gate where it has one, but
its bias shift and gains are those of both inputs together, independent and N(0, 1). `dynamic_relu` is described at
rest, where it is ReLU; its gradient is what its input makes it. `drelu` is described at τ = 1, where it
starts.

## Gains

Weights of variance gain² / fan_in keep a standard normal pre-activation's scale from layer to layer, with
gain = 1 / √E f(z)²; weights of variance backward² / fan_out keep the gradient's, with backward = 1 / √E f′(z)². Both
are integrated numerically, to 1e-9 or better. Where they differ no single scale keeps both.

{gains}

`torch.nn.init.calculate_gain` gives the same where it is exact: {same}. Elsewhere it gives a convention:

{conventions}

*After 50 layers* is the standard deviation of the pre-activation, 50 layers on, of a wide network without biases whose
weights have torch's gain, when it is 1 in the first layer; with the gain of this table it stays 1. That
balance is stable where f grows no faster than x; `relu_squared` and `drelu_gate` fall away from it on either side.
"""

WHY = {
    "tanh": "5/3 is a rule of thumb, larger than the gain that keeps z ~ N(0, 1).",
    "selu": "3/4 is chosen for its gradients; SELU was built so that a gain of 1 (torch's `linear`) keeps mean 0 and "
    "variance 1.",
    "sigmoid": "1 is the gain of a linear layer. Most of E f(z)² is the squared mean, which no scale removes.",
}


class Plain(nn.Module):
    """A function as a module."""

    def __init__(self, entry: Activation) -> None:
        super().__init__()
        self.entry = entry

    def forward(self, x: Tensor) -> Tensor:
        return self.entry.function(x.double())


def adapts(entry: Activation) -> str:
    torch.manual_seed(0)
    return adaptation(MODULES[entry.name]() if entry.name in MODULES else Plain(entry), UNITS)


def jump(found: Properties) -> str:
    elsewhere = [f"{k:.3g}" for k in found.kinks if abs(k) > 1e-3]
    return number(found.jump_at_zero) + (f" (kinks at {', '.join(elsewhere)})" if elsewhere else "")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def page() -> str:
    entries = [(a, properties(a)) for a in all_activations(own=False)]
    described = [
        [
            f"`{a.name}`",
            a.formula,
            gradient_in_words(a, p),
            jump(p),
            adapts(a),
            "yes" if p.monotone else "no",
            "no" if p.least == -float("inf") else number(p.least),
            number(a.mean),
        ]
        for a, p in entries
    ]
    gains = [
        [
            f"`{a.name}`",
            number(a.gain),
            number(a.backward_gain),
            "–" if p.torch_gain is None else number(p.torch_gain),
            "–" if p.torch_scale is None else number(p.torch_scale),
        ]
        for a, p in entries
    ]
    same = [f"`{a.name}`" for a, p in entries if p.torch_gain is not None and abs(p.torch_gain / a.gain - 1) < 1e-9]
    conventions = [
        f"- `{a.name}`: {number(p.torch_gain)} instead of {number(a.gain)}. {WHY[a.name]}"
        for a, p in entries
        if p.torch_gain is not None and abs(p.torch_gain / a.gain - 1) >= 1e-9
    ]
    header = ["", "f(x)", "gradient", "jump at 0", "adapts", "monotone", "bounded below", "bias shift"]
    return PAGE.format(
        properties=markdown(header, described),
        gains=markdown(["", "gain", "backward", "torch's", "after 50 layers with torch's"], gains),
        same=", ".join(same),
        conventions="\n".join(conventions),
    )


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        print(page(), end="")
    else:
        (HERE / "activations.md").write_text(page(), encoding="utf-8")
        (HERE / "activations.svg").write_text(svg([activation(name) for name in DRAWN]), encoding="utf-8")
