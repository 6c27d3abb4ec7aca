"""The published namesakes: their values, their gradients, and what a watch sees of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import relume
import relume.functional as RF
from relume.activations import activation

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(4))
number = st.floats(-10, 10, width=32)


@given(st.lists(number, min_size=1, max_size=20), st.floats(0.0078125, 2, width=32))
def test_displaced_relu_is_the_larger_of_x_and_minus_delta(values: list[float], delta: float) -> None:
    x = torch.tensor(values)
    assert torch.equal(RF.displaced_relu(x, delta), x.clamp(min=-delta))
    assert torch.equal(relume.nn.DisplacedReLU(delta)(x), x.clamp(min=-delta))


def test_displaced_relu_has_the_papers_delta_works_in_place_and_says_what_it_is() -> None:
    module = relume.nn.DisplacedReLU(inplace=True)
    x = torch.tensor([-1.0, 0.5])
    assert module(x) is x
    assert x.tolist() == pytest.approx([-0.05, 0.5])
    assert repr(module) == "DisplacedReLU(delta=0.05, inplace=True)"
    assert module.delta == 0.05


@given(st.lists(st.tuples(number, number), min_size=1, max_size=20))
def test_dual_relu_is_the_difference_of_two_relus_and_odd_in_their_exchange(pairs: list[tuple[float, float]]) -> None:
    a, b = torch.tensor(pairs).T
    out = RF.dual_relu(a, b)
    assert torch.equal(out, a.clamp(min=0) - b.clamp(min=0))
    assert torch.equal(RF.dual_relu(b, a), -out)
    assert torch.equal(relume.nn.DualReLU()(torch.cat([a, b])), out)


def test_dual_relu_splits_on_its_axis_and_refuses_an_odd_one() -> None:
    x = torch.randn(2, 6, 3)
    assert torch.equal(relume.nn.DualReLU(dim=1)(x), RF.dual_relu(x[:, :3], x[:, 3:]))
    with pytest.raises(ValueError, match=r"splits axis -1 in half, but it has 3 entries: shape \(2, 6, 3\)"):
        relume.nn.DualReLU()(x)


@given(st.lists(st.tuples(number, number), min_size=1, max_size=20))
def test_drelu_gate_is_the_product_of_two_relus(pairs: list[tuple[float, float]]) -> None:
    gate, up = torch.tensor(pairs).T
    assert torch.equal(RF.drelu_gate(gate, up), gate.clamp(min=0) * up.clamp(min=0))


def test_a_gated_block_computes_the_papers_formula_with_llamas_names() -> None:
    block = relume.nn.DReLUGatedMLP(4, 6, dtype=torch.float64)
    assert list(block.state_dict()) == ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
    x = torch.randn(5, 4, dtype=torch.float64)
    gate, up, down = block.state_dict().values()
    torch.testing.assert_close(block(x), (x @ gate.T).relu().mul((x @ up.T).relu()) @ down.T)


@pytest.mark.parametrize(("function", "name"), [(RF.squared_relu, "relu_squared"), (RF.quick_gelu, "quick_gelu")])
def test_what_torch_lacks_is_what_the_registry_says(function, name: str) -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(function(x), activation(name).function(x))
    (slope,) = torch.autograd.grad(function(x).sum(), x)
    torch.testing.assert_close(slope, activation(name).derivative(x.detach()))


# What a watch sees.


class TwoBranches(nn.Module):
    """Units 0 and 1 are dead in branch a, 1 to 3 in branch b."""

    def __init__(self, join) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Linear(4, 6), nn.Linear(4, 6), join
        with torch.no_grad():
            self.a.bias[:2] = -50.0
            self.b.bias[1:4] = -50.0

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.a(x), self.b(x))


@pytest.mark.parametrize("join", [RF.dual_relu, relume.nn.DualReLU(), RF.drelu_gate], ids=["dual", "module", "gate"])
def test_a_two_input_activation_is_two_relu_sites_which_die_for_themselves(join) -> None:
    first, second = relume.census(TwoBranches(join), X).sites
    assert (first.site.producer, second.site.producer) == ("a", "b")
    assert first.dead.tolist() == [True, True, False, False, False, False]
    assert second.dead.tolist() == [False, True, True, True, False, False]


def test_displaced_relu_dies_at_minus_delta_not_at_zero() -> None:
    """Unit 0 lies between −0.2 and 0 (alive for δ = 0.3, dead for ReLU), unit 1 below −0.3."""

    class Planted(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.up, self.act = nn.Linear(4, 3), act
            with torch.no_grad():
                self.up.weight.zero_()
                self.up.bias.copy_(torch.tensor([-0.1, -0.4, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.up(x))

    displaced = relume.census(Planted(relume.nn.DisplacedReLU(0.3)), X)["act"]
    assert displaced.dead.tolist() == [False, True, False]
    assert displaced.site.activation == "displaced_relu"
    assert str(displaced.site.zones.flat) == "x ≤ -0.3"
    assert relume.census(Planted(nn.ReLU()), X)["act"].dead.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("module", "function", "name"),
    [
        (relume.nn.SquaredReLU(), RF.squared_relu, "squared_relu"),
        (relume.nn.QuickGELU(), RF.quick_gelu, "quick_gelu"),
    ],
    ids=["squared", "quick"],
)
def test_module_and_function_are_one_site_each_and_hide_what_they_apply_inside(module, function, name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act = nn.Linear(4, 6), module
            with torch.no_grad():
                self.up.bias[:2] = -50.0

        def forward(self, x: Tensor) -> Tensor:
            return function(self.act(self.up(x)) - 1)

    census = relume.census(Net(), X)
    assert list(census) == ["act", f":{name}"]
    assert int(census["act"].dead.sum()) == (2 if name == "squared_relu" else 0)


@pytest.mark.parametrize(
    "module",
    [relume.nn.DisplacedReLU(), relume.nn.DualReLU(), relume.nn.SquaredReLU(), relume.nn.QuickGELU(),
     relume.nn.DReLUGatedMLP(4, 4), relume.nn.DynamicReLU(4), relume.nn.DynamicReLU(4, "A")],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_each_has_right_gradients_of_both_orders_and_survives_copying(module: nn.Module) -> None:
    module = copy.deepcopy(module).double()
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


def test_each_compiles_in_one_piece() -> None:
    for module in (relume.nn.DisplacedReLU(), relume.nn.DualReLU(), relume.nn.SquaredReLU(), relume.nn.QuickGELU(),
                   relume.nn.DReLUGatedMLP(4, 4), relume.nn.DynamicReLU(4, "B")):  # fmt: skip
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(X), module(X))


def test_a_relu_squared_of_torch_is_the_same_function() -> None:
    torch.testing.assert_close(RF.squared_relu(X), F.relu(X) ** 2)
