"""`register_activation`: modules, torch functions and plain functions of the user's own become sites."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.activations import registry

LEFT = [(-math.inf, 0.0)]


@pytest.fixture(autouse=True)
def unregistered():
    """What a test registers is gone after it."""
    saved = dict(registry._MODULES), dict(registry._FUNCTIONS)
    yield
    for table, old in zip((registry._MODULES, registry._FUNCTIONS), saved, strict=True):
        table.clear()
        table.update(old)


class Net(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc, self.act = nn.Linear(6, 8), activation
        with torch.no_grad():
            self.fc.bias[3] = -50.0

    def forward(self, x):
        return self.act(self.fc(x))


def census(activation):
    return relume.census(Net(activation), [torch.randn(300, 6)])


def test_a_module_class_is_one_site_and_what_it_applies_inside_is_none():
    @relume.register_activation(flat=LEFT, formula="max(0, x)²")
    class SquaredReLU(nn.Module):
        def forward(self, x):
            return F.relu(x) ** 2

    class Deeper(SquaredReLU):
        pass

    for cls in (SquaredReLU, Deeper):
        found = census(cls())
        assert list(found) == ["act"]
        assert found["act"].dead.tolist() == [i == 3 for i in range(8)]
        assert found["act"].site.activation == "squaredrelu"
        assert found["act"].site.formula == "max(0, x)²"


def test_a_plain_function_as_a_decorator():
    @relume.register_activation(name="squared", flat=LEFT)
    def squared_relu(x, power=2):
        return torch.relu(x) ** power

    found = census(lambda x: squared_relu(x, power=3))
    assert list(found) == [":squared_relu"]
    assert found[":squared"].dead.tolist() == [i == 3 for i in range(8)]
    assert torch.equal(squared_relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 4.0]))


def test_a_torch_function_that_relume_takes_for_arithmetic():
    relume.register_activation(torch.square, name="square", flat=[])
    found = census(torch.square)
    assert found[":square"].site.activation == "square"
    assert not found[":square"].dead.any()


def test_without_registration_only_what_is_inside_is_seen():
    class Mine(nn.Module):
        def forward(self, x):
            return F.relu(x) * 2

    assert list(census(Mine())) == ["act:relu"]


def test_a_registered_module_without_a_flat_zone_never_dies():
    @relume.register_activation
    class Snake(nn.Module):
        def forward(self, x):
            return x + torch.sin(x) ** 2

    site = census(Snake())["act"]
    assert not site.dead.any()
    assert not site.site.can_die


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: relume.register_activation(3), TypeError, "Module class or a function"),
        (lambda: relume.register_activation(torch.cos, flat=[(1.0, 0.0)]), ValueError, "wrong order"),
        (lambda: relume.register_activation(torch.cos, linear=[(math.nan, 0.0)]), ValueError, "wrong order"),
        (lambda: relume.register_activation(nn.Linear), ValueError, "Linear can't be made without arguments"),
        (lambda: relume.register_activation(lambda x: x @ torch.ones(2, 3)), ValueError, "can't be evaluated"),
    ],
)
def test_errors_say_what_to_do(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_refused_registration_leaves_nothing_behind():
    with pytest.raises(ValueError, match="can't be evaluated"):
        relume.register_activation(torch.cos, function=lambda x: x.nothing())
    assert torch.cos not in registry.registered_functions()


def test_module_classes_that_need_arguments_take_an_implementation():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            return self.scale * torch.sigmoid(x)

    relume.register_activation(Scaled, function=torch.sigmoid)
    assert census(Scaled(2.0))["act"].saturated.tolist() == [i == 3 for i in range(8)]
