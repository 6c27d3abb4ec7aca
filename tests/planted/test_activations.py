"""Other activations: their flat zones, the ceiling, and those that never die."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SHIFTS = torch.tensor([-50.0, 50.0, 0.0, -4.0, 4.0, 8.0])


def _shifted(activation):
    """Six units that see the same small number, each moved by its own amount."""
    model = nn.Sequential(nn.Linear(1, 6), activation, nn.Linear(6, 1))
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].bias.copy_(SHIFTS)
    return model


@pytest.mark.parametrize(
    ("make", "name", "dead"),
    [
        (nn.ReLU, "relu", {0, 3}),
        (nn.ReLU6, "relu6", {0, 1, 3, 5}),
        (nn.Hardtanh, "hardtanh", {0, 1, 3, 4, 5}),
        (nn.Hardswish, "hardswish", {0, 3}),
        (nn.Hardsigmoid, "hardsigmoid", {0, 1, 3, 4, 5}),
        (lambda: nn.Threshold(0.5, 0.0), "threshold", {0, 2, 3}),
        (nn.Hardshrink, "hardshrink", {2}),
    ],
)
@pytest.mark.parametrize("style", ["module", "function"])
def test_flat_zones(planted, make, name, dead, style):
    module = make()
    model = _shifted(module)
    if style == "function":
        functions = {"threshold": lambda x: F.threshold(x, 0.5, 0.0)}
        function = functions.get(name) or getattr(F, name)

        class Functional(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = model[0], model[2]

            def forward(self, x):
                return self.b(function(self.a(x)))

        site, watched = f":{name}", Functional()
    else:
        site, watched = "1", model
    batches = [torch.rand(128, 1) * 0.9 for _ in range(4)]
    planted(watched, batches, lambda x: {site: (name, model[0](x))}, {site: dead})


def test_a_relu6_unit_that_is_always_at_six_is_stuck_at_the_top(planted):
    model = _shifted(nn.ReLU6())
    census = planted(
        model,
        [torch.rand(512, 1)],
        lambda x: {"1": ("relu6", model[0](x))},
        {"1": {0, 1, 3, 5}},
    )
    assert census["1"].state == ["dead", "stuck-at-top", "linear", "dead", "linear", "stuck-at-top"]
    assert census["1"].stuck_at_top.tolist() == [False, True, False, False, False, True]


@pytest.mark.parametrize(
    "activation", [nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()]
)
def test_an_activation_without_a_flat_zone_never_dies(planted, activation):
    name = {"LeakyReLU": "leaky_relu"}.get(type(activation).__name__, type(activation).__name__.lower())
    model = _shifted(activation)
    planted(model, [torch.randn(128, 1) for _ in range(4)], lambda x: {"1": (name, model[0](x))}, {})


def test_a_prelu_never_dies(planted):
    for parameters in (1, 6):
        model = _shifted(nn.PReLU(parameters, 0.3))
        planted(
            model,
            [torch.randn(128, 1) for _ in range(4)],
            lambda x: {"1": ("prelu", model[0](x), F.leaky_relu(model[0](x), 0.3))},
            {},
        )


@pytest.mark.parametrize("shape", [(12,), (5, 12)])
def test_glu_is_a_site_at_its_gate(planted, shape):
    model = nn.Sequential(nn.Linear(12, 12), nn.GLU(), nn.Linear(6, 1))

    def oracle(x):
        a, gate = model[0](x).movedim(-1, 1).chunk(2, 1)
        return {"1": ("glu", gate, a * gate.sigmoid())}

    planted(model, planted.batches(*shape), oracle, {})


@pytest.mark.parametrize("split", ["chunk", "split", "slices", "two layers", "unflatten"])
def test_the_gate_of_a_reglu_is_a_site(planted, split):
    class ReGLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.wi, self.wo = nn.Linear(6, 16), nn.Linear(8, 6)
            self.gate = nn.Linear(6, 8)

        def forward(self, x):
            h = self.wi(x)
            if split == "two layers":
                return self.wo(F.relu(self.gate(x)) * h[..., :8])
            if split == "chunk":
                a, g = h.chunk(2, dim=-1)
            elif split == "split":
                a, g = torch.split(h, [8, 8], -1)
            elif split == "slices":
                a, g = h[..., :8], h[..., 8:]
            else:
                a, g = h.unflatten(-1, (2, 8)).unbind(-2)
            return self.wo(a * F.relu(g))

    model = ReGLU()
    planted.bury(model.wi, 0, 8, 15)
    planted.bury(model.gate, 0, 7)

    def oracle(x):
        z = model.gate(x) if split == "two layers" else model.wi(x)[..., 8:]
        return {":relu": z.movedim(-1, 1)}

    planted(model, planted.batches(4, 6), oracle, {":relu": {0, 7}})


def test_activations_in_a_row_of_their_own(planted):
    """Squared ReLU, and a ReLU of a sum with a shift: the pre-activation is what the ReLU is given."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x):
            return F.relu(self.b(F.relu(self.a(x)).square()) - 1.0)

    model = Model()
    planted.bury(model.a, 1)
    planted.bury(model.b, 2, lift=2.0)

    def oracle(x):
        h = model.a(x)
        return {":relu": h, ":relu#1": model.b(h.clamp(min=0).square()) - 1.0}

    planted(model, planted.batches(6), oracle, {":relu": {1}, ":relu#1": {2}})


def test_crelu_of_both_signs(planted):
    """cat(x, -x): twice the units; burying one buries one of them only, its mirror is always on."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 5)

        def forward(self, x):
            z = self.fc(x)
            return F.relu(torch.cat([z, -z], 1))

    model = Model()
    planted.bury(model.fc, 3)

    def oracle(x):
        z = model.fc(x)
        return {":relu": torch.cat([z, -z], 1)}

    planted(model, planted.batches(6), oracle, {":relu": {3}})
