"""A user's own activation is a site once it is registered."""

import math

import pytest
import torch
from torch import Tensor, nn

import relume
from relume.activations import registry

X = torch.randn(300, 4, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is unknown to the next."""
    monkeypatch.setattr(registry, "_MODULES", dict(registry._MODULES))
    monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))


def net(activation) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 6)
            self.act = activation if isinstance(activation, nn.Module) else None
            with torch.no_grad():
                self.up.bias[:2] = -50.0

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x)
            return self.act(h) if self.act is not None else activation(h)

    return Net()


def test_a_decorated_function_is_a_site_with_its_flat_zone() -> None:
    @relume.register_activation(flat=[(-math.inf, 0.0)], formula="max(0, x)²")
    def squared(x: Tensor) -> Tensor:
        return x.clamp(min=0) ** 2

    census = relume.census(net(squared), X)
    assert list(census) == [":squared"]  # and the clamp inside is none of its own
    site = census[":squared"]
    assert site.dead.tolist() == [True, True, False, False, False, False]
    assert site.site.formula == "max(0, x)²"
    assert torch.equal(squared(torch.tensor([-1.0, 3.0])), torch.tensor([0.0, 9.0]))


def test_a_registered_function_may_be_called_with_further_arguments() -> None:
    @relume.register_activation(flat=[(-math.inf, 0.0)])
    def powered(x: Tensor, power: int = 2) -> Tensor:
        return x.clamp(min=0) ** power

    assert int(relume.census(net(lambda h: powered(h, power=3)), X)[":powered"].dead.sum()) == 2


def test_a_torch_function_that_is_no_activation_for_torch_can_be_made_one() -> None:
    assert relume.register_activation(torch.erf, name="erf") is torch.erf
    census = relume.census(net(torch.erf), X)
    site = census[":erf"]
    assert site.dead.sum() == 0
    assert site.saturated.tolist() == [True, True, False, False, False, False]


def test_a_registered_module_is_one_site_and_what_it_applies_inside_is_not() -> None:
    @relume.register_activation(flat=[(-math.inf, -1.0), (2.0, math.inf)], name="boxed")
    class Boxed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + 1) - torch.relu(x - 2)

    census = relume.census(net(Boxed()), X)
    assert list(census) == ["act"]
    assert census["act"].site.activation == "boxed"
    assert census["act"].dead.tolist() == [True, True, False, False, False, False]


def test_a_subclass_of_a_registered_module_is_registered_too() -> None:
    @relume.register_activation(flat=[(-math.inf, 0.0)])
    class Base(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x > 0)

    class Derived(Base):
        pass

    assert relume.census(net(Derived()), X)["act"].site.activation == "base"


def test_linear_zone_is_the_stated_one_or_else_the_tail_of_slope_one() -> None:
    @relume.register_activation(linear=[(1.0, 2.0)])
    def stated(x: Tensor) -> Tensor:
        return x.exp()

    @relume.register_activation
    def found(x: Tensor) -> Tensor:
        return torch.where(x < 1, x**2 / 2 + 0.5, x)

    assert relume.census(net(stated), X)[":stated"].site.zones.linear.intervals == ((1.0, 2.0),)
    ((low, high),) = relume.census(net(found), X)[":found"].site.zones.linear.intervals
    assert (round(low, 3), high) == (0.99, math.inf)


def test_intervals_may_come_in_any_order() -> None:
    @relume.register_activation(flat=[(2.0, math.inf), (-math.inf, 0.0)])
    def turned(x: Tensor) -> Tensor:
        return x.clamp(0, 2)

    assert str(relume.census(net(turned), X)[":turned"].site.zones.flat) == "x ≤ 0 or x ≥ 2"


def test_wrong_ends_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the interval \(1.0, 0.0\) has its ends in the wrong order"):
        relume.register_activation(torch.cos, flat=[(1.0, 0.0)])


def test_what_is_neither_module_nor_function_is_refused() -> None:
    with pytest.raises(TypeError, match="takes a Module class or a function, not 3"):
        relume.register_activation(3)


def test_a_module_that_needs_arguments_needs_a_function_beside_it() -> None:
    class Scaled(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) * self.by

    with pytest.raises(ValueError, match="Scaled can't be made without arguments; pass function="):
        relume.register_activation(Scaled, flat=[(-math.inf, 0.0)])
    relume.register_activation(Scaled, flat=[(-math.inf, 0.0)], function=torch.relu)
    assert int(relume.census(net(Scaled(2.0)), X)["act"].dead.sum()) == 2
