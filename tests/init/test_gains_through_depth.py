"""Weights scaled by the registry's gains keep the scale of signals and of gradients, for every activation it knows."""

import pytest
import torch
from torch import Tensor, nn

import relume
from relume.activations import activation, all_activations
from relume.activations.gains import normal_mean
from relume.activations.registry import TwoInputs

NETS, WIDTH, DEPTH = 200, 256, 20
KNOWN = [a for a in all_activations() if not isinstance(a, TwoInputs)]
# d log E f(√q z)² / d log q at q = 1: above 1 a small deviation grows from layer to layer, whatever the gain.
STABLE = 1 + 1e-3


def elasticity(a) -> float:
    square, slope = normal_mean(
        lambda x: torch.stack([a.function(x) ** 2, x * a.function(x) * a.derivative(x)]), a.kinks
    )
    return slope / square


def stacks() -> list[Tensor]:
    """For each layer the weights of many networks, [nets, width, width], as he_ draws them for data."""
    layers = []
    for _ in range(DEPTH):
        layer = nn.Linear(WIDTH, NETS * WIDTH, bias=False)
        relume.init.he_(layer, activation="linear")
        layers.append(layer.weight.detach().view(NETS, WIDTH, WIDTH))
    return layers


@pytest.fixture(scope="module")
def drawn() -> list[Tensor]:
    torch.manual_seed(0)
    return stacks()


def test_every_activation_keeps_the_second_moment_through_20_layers_unless_it_is_unstable(drawn: list[Tensor]) -> None:
    """Where a deviation grows by itself, each step from a standard normal pre-activation still keeps it."""
    z = {a: torch.randn(NETS, WIDTH) for a in KNOWN}
    worst = {}
    for weight in drawn:
        seen = []
        for a, value in z.items():
            if elasticity(a) > STABLE:
                value = value / value.square().mean(1, keepdim=True).sqrt()
            seen.append(a.function(value) * a.gain)
        for (a, _), new in zip(list(z.items()), (weight @ torch.stack(seen, 2)).unbind(2), strict=True):
            z[a] = new
            worst[a.name] = max(worst.get(a.name, 0), abs(float(new.square().mean()) - 1))
    assert len(worst) >= 25
    assert {name: error for name, error in worst.items() if error > 0.1} == {}


def test_backward_gains_keep_gradients_through_20_layers_of_standard_normal_pre_activations(
    drawn: list[Tensor],
) -> None:
    gradient = {a: torch.randn(NETS, WIDTH) for a in KNOWN}
    worst = {}
    for weight in drawn:
        z = torch.randn(NETS, WIDTH)
        back = torch.stack([g * a.backward_gain for a, g in gradient.items()], 2)
        for (a, _), new in zip(list(gradient.items()), (weight.transpose(1, 2) @ back).unbind(2), strict=True):
            gradient[a] = new * a.derivative(z).float()
            # Before the slope is applied: that of heavy-tailed slopes is a mean over few units.
            worst[a.name] = max(worst.get(a.name, 0), abs(float(new.square().mean()) / a.backward_gain**2 - 1))
    # One standard error after 20 layers is 0.05; docs/initialization.py has ten times as many networks.
    assert {name: error for name, error in worst.items() if error > 0.15} == {}


@pytest.mark.parametrize("name", ["relu", "leaky_relu(0.2)"])
def test_gradients_of_real_networks_keep_their_scale_where_the_activation_is_homogeneous(
    drawn: list[Tensor], name: str
) -> None:
    a = activation(name)
    h, zs = torch.randn(NETS, WIDTH, 1), []
    for i, weight in enumerate(drawn):
        z = (weight * (a.backward_gain if i else 1)) @ h
        zs.append(z.requires_grad_() if i == 0 else z)
        h = a.function(z)
    gradients = torch.autograd.grad(zs[-1], zs, torch.randn_like(zs[-1]))
    scales = torch.tensor([float(g.square().mean()) for g in gradients])
    assert float((scales - 1).abs().max()) < 0.15


@pytest.mark.parametrize(("name", "factor"), [("leaky_relu(0.5)", 1.25), ("elu", 1.18)])
def test_with_relus_gain_another_activation_grows_where_with_its_own_it_does_not(name: str, factor: float) -> None:
    a, relu = activation(name), activation("relu")
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(DEPTH)))

    def growth() -> float:
        with torch.no_grad():
            z = model[0](torch.randn(64, 512))
            first = z.square().mean()
            for layer in model[1:]:
                z = layer(a.function(z))
        return float(z.square().mean() / first) ** (1 / (DEPTH - 1))

    relume.init.he_(model, activation={"0": "linear", "*": relu})
    with_relus = growth()
    relume.init.he_(model, activation={"0": "linear", "*": a})
    assert abs(growth() - 1) < 0.03
    assert with_relus > 1 + 0.5 * (factor - 1)


def test_which_activations_are_unstable_is_known() -> None:
    assert {a.name for a in KNOWN if elasticity(a) > STABLE} >= {"gelu", "silu", "mish", "hardswish", "tanhshrink"}
    assert all(elasticity(activation(n)) <= STABLE for n in ("relu", "leaky_relu", "elu", "selu", "tanh", "softplus"))
