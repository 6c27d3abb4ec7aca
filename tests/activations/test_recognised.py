"""Every activation module and function of torch is a site with its parameters when called in a model."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume.activations import catalogue as of
from relume.sites.site import Zones

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(3)) * 4


class Applies(nn.Module):
    """A linear layer, a copy of its output (some functions write in place), and the activation."""

    def __init__(self, function) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        if isinstance(function, nn.Module):
            self.act = function
        self.function = function if not isinstance(function, nn.Module) else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).clone()
        return self.act(h) if self.function is None else self.function(h)


MODULES = {
    "ReLU": (nn.ReLU(), of.relu()),
    "ReLU inplace": (nn.ReLU(inplace=True), of.relu()),
    "ReLU6": (nn.ReLU6(), of.hardtanh(0.0, 6.0)),
    "ReLU6 inplace": (nn.ReLU6(inplace=True), of.hardtanh(0.0, 6.0)),
    "LeakyReLU": (nn.LeakyReLU(), of.leaky_relu(0.01)),
    "LeakyReLU 0.3": (nn.LeakyReLU(0.3, inplace=True), of.leaky_relu(0.3)),
    "LeakyReLU 0": (nn.LeakyReLU(0), of.relu()),
    "PReLU": (nn.PReLU(), of.prelu()),
    "PReLU 6": (nn.PReLU(6), of.prelu()),
    "RReLU": (nn.RReLU(), of.rrelu()),
    "ELU": (nn.ELU(), of.elu()),
    "ELU 2": (nn.ELU(2.0, inplace=True), of.elu(2.0)),
    "SELU": (nn.SELU(inplace=True), of.selu()),
    "CELU": (nn.CELU(), of.celu()),
    "CELU 0.5": (nn.CELU(0.5, inplace=True), of.celu(0.5)),
    "GELU": (nn.GELU(), of.gelu()),
    "GELU tanh": (nn.GELU(approximate="tanh"), of.gelu("tanh")),
    "SiLU": (nn.SiLU(inplace=True), of.silu()),
    "Mish": (nn.Mish(), of.mish()),
    "Softplus": (nn.Softplus(), of.softplus()),
    "Softplus 2 10": (nn.Softplus(2, 10), of.softplus(2.0, 10.0)),
    "Sigmoid": (nn.Sigmoid(), of.sigmoid()),
    "Tanh": (nn.Tanh(), of.tanh()),
    "Hardtanh": (nn.Hardtanh(), of.hardtanh(-1.0, 1.0)),
    "Hardtanh -3 2": (nn.Hardtanh(-3, 2, inplace=True), of.hardtanh(-3.0, 2.0)),
    "Hardtanh 0 inf": (nn.Hardtanh(0.0, math.inf), of.relu()),
    "Hardswish": (nn.Hardswish(inplace=True), of.hardswish()),
    "Hardsigmoid": (nn.Hardsigmoid(), of.hardsigmoid()),
    "Softsign": (nn.Softsign(), of.softsign()),
    "Tanhshrink": (nn.Tanhshrink(), of.tanhshrink()),
    "LogSigmoid": (nn.LogSigmoid(), of.logsigmoid()),
    "Softshrink": (nn.Softshrink(), of.softshrink(0.5)),
    "Softshrink 2": (nn.Softshrink(2.0), of.softshrink(2.0)),
    "Hardshrink 1": (nn.Hardshrink(1.0), of.hardshrink(1.0)),
    "Threshold": (nn.Threshold(0.7, 0.1), of.threshold(0.7, 0.1)),
    "Threshold 0": (nn.Threshold(0, 0, inplace=True), of.relu()),
    "GLU": (nn.GLU(), of.glu()),
}

FUNCTIONS = {
    "F.relu": (lambda h: F.relu(h), of.relu()),
    "F.relu keyword": (lambda h: F.relu(input=h, inplace=True), of.relu()),
    "F.relu_": (lambda h: F.relu_(h), of.relu()),
    "torch.relu": (torch.relu, of.relu()),
    "torch.relu_": (torch.relu_, of.relu()),
    "x.relu": (lambda h: h.relu(), of.relu()),
    "x.relu_": (lambda h: h.relu_(), of.relu()),
    "aten.relu": (lambda h: torch.ops.aten.relu(h), of.relu()),
    "aten.relu_.default": (lambda h: torch.ops.aten.relu_.default(h), of.relu()),
    "clamp(min=0)": (lambda h: torch.clamp(h, min=0), of.relu()),
    "x.clamp_(0)": (lambda h: h.clamp_(0), of.relu()),
    "x.clamp(0, 6)": (lambda h: h.clamp(0, 6), of.hardtanh(0.0, 6.0)),
    "clip(-1, 1)": (lambda h: torch.clip(h, -1, 1), of.hardtanh(-1.0, 1.0)),
    "clamp_min": (lambda h: torch.clamp_min(h, 0.0), of.relu()),
    "maximum": (lambda h: torch.maximum(h, torch.zeros(())), of.relu()),
    "maximum, zero first": (lambda h: torch.maximum(torch.zeros_like(h), h), of.relu()),
    "F.relu6": (lambda h: F.relu6(h, inplace=True), of.hardtanh(0.0, 6.0)),
    "F.leaky_relu": (lambda h: F.leaky_relu(h), of.leaky_relu(0.01)),
    "F.leaky_relu position": (lambda h: F.leaky_relu(h, 0.2, True), of.leaky_relu(0.2)),
    "F.leaky_relu keyword": (lambda h: F.leaky_relu(h, negative_slope=0.2), of.leaky_relu(0.2)),
    "F.leaky_relu_": (lambda h: F.leaky_relu_(h, 0.2), of.leaky_relu(0.2)),
    "F.prelu": (lambda h: F.prelu(h, torch.full((1,), 0.1)), of.prelu()),
    "x.prelu": (lambda h: h.prelu(torch.full((6,), 0.1)), of.prelu()),
    "F.rrelu": (lambda h: F.rrelu(h, training=False), of.rrelu()),
    "F.elu position": (lambda h: F.elu(h, 0.4), of.elu(0.4)),
    "F.elu keyword": (lambda h: F.elu(input=h, alpha=0.4, inplace=True), of.elu(0.4)),
    "F.elu_": (lambda h: F.elu_(h, 0.4), of.elu(0.4)),
    "F.selu": (lambda h: F.selu(h, inplace=True), of.selu()),
    "torch.selu_": (torch.selu_, of.selu()),
    "F.celu position": (lambda h: F.celu(h, 0.4), of.celu(0.4)),
    "F.celu keyword": (lambda h: F.celu(h, alpha=0.4), of.celu(0.4)),
    "torch.celu_": (lambda h: torch.celu_(h, 0.4), of.celu(0.4)),
    "F.gelu": (lambda h: F.gelu(h), of.gelu()),
    "F.gelu tanh": (lambda h: F.gelu(h, approximate="tanh"), of.gelu("tanh")),
    "F.silu": (lambda h: F.silu(h, True), of.silu()),
    "F.mish": (lambda h: F.mish(h, inplace=True), of.mish()),
    "F.softplus": (lambda h: F.softplus(h), of.softplus()),
    "F.softplus position": (lambda h: F.softplus(h, 3, 9), of.softplus(3.0, 9.0)),
    "F.softplus keyword": (lambda h: F.softplus(h, threshold=9, beta=3), of.softplus(3.0, 9.0)),
    "F.sigmoid": (lambda h: F.sigmoid(h), of.sigmoid()),
    "torch.sigmoid_": (torch.sigmoid_, of.sigmoid()),
    "x.sigmoid": (lambda h: h.sigmoid(), of.sigmoid()),
    "torch.special.expit": (torch.special.expit, of.sigmoid()),
    "torch.tanh": (torch.tanh, of.tanh()),
    "x.tanh_": (lambda h: h.tanh_(), of.tanh()),
    "F.tanh": (lambda h: F.tanh(h), of.tanh()),
    "F.hardtanh": (lambda h: F.hardtanh(h), of.hardtanh(-1.0, 1.0)),
    "F.hardtanh position": (lambda h: F.hardtanh(h, -2.0, 3.0), of.hardtanh(-2.0, 3.0)),
    "F.hardtanh keyword": (lambda h: F.hardtanh(h, max_val=3.0, min_val=0.0), of.hardtanh(0.0, 3.0)),
    "F.hardtanh_": (lambda h: F.hardtanh_(h, 0.0, 6.0), of.hardtanh(0.0, 6.0)),
    "F.hardswish": (lambda h: F.hardswish(h, inplace=True), of.hardswish()),
    "F.hardsigmoid": (lambda h: F.hardsigmoid(h), of.hardsigmoid()),
    "F.softsign": (lambda h: F.softsign(h), of.softsign()),
    "F.tanhshrink": (lambda h: F.tanhshrink(h), of.tanhshrink()),
    "F.logsigmoid": (lambda h: F.logsigmoid(h), of.logsigmoid()),
    "F.softshrink position": (lambda h: F.softshrink(h, 1.5), of.softshrink(1.5)),
    "F.softshrink keyword": (lambda h: F.softshrink(h, lambd=1.5), of.softshrink(1.5)),
    "F.hardshrink": (lambda h: F.hardshrink(h), of.hardshrink(0.5)),
    "x.hardshrink": (lambda h: h.hardshrink(lambd=1.5), of.hardshrink(1.5)),
    "F.threshold position": (lambda h: F.threshold(h, 0.5, 0.0), of.threshold(0.5, 0.0)),
    "F.threshold keyword": (lambda h: F.threshold(h, value=2.0, threshold=1.0, inplace=True), of.threshold(1.0, 2.0)),
    "F.threshold_": (lambda h: F.threshold_(h, 0.0, 0.0), of.relu()),
    "F.glu": (lambda h: F.glu(h, dim=1), of.glu()),
}


def only_site(function) -> relume.SiteCensus:
    census = relume.census(Applies(function), X)
    (site,) = census.sites
    return site


def check(site: relume.SiteCensus, entry) -> None:
    assert (site.site.activation, site.site.formula) == (entry.name, entry.formula)
    assert site.site.zones == Zones.of(entry)
    assert site.site.producer == "up"
    assert site.units == (3 if entry.name == "glu" else 6)
    assert site.inputs == len(X)


@pytest.mark.parametrize(("module", "entry"), MODULES.values(), ids=MODULES)
def test_a_module_of_torch_is_one_site_with_its_parameters(module: nn.Module, entry) -> None:
    site = only_site(module)
    check(site, entry)
    assert site.name == "act"


@pytest.mark.parametrize(("function", "entry"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_of_torch_is_one_site_with_its_parameters(function, entry) -> None:
    site = only_site(function)
    check(site, entry)
    assert site.name.startswith(":")


@pytest.mark.parametrize(
    "function",
    [
        nn.RReLU(0.2, 0.6),
        lambda h: F.rrelu(h, 0.2, 0.6),
        lambda h: F.rrelu(h, upper=0.6, lower=0.2),
    ],
    ids=["module", "position", "keyword"],
)
def test_the_bounds_of_a_random_slope_are_read(function) -> None:
    check(only_site(function), of.rrelu(0.2, 0.6))


def test_every_module_of_torch_that_acts_element_by_element_is_in_the_table_above() -> None:
    """A new one in torch makes this fail: it wants an entry in the catalogue, or a reason here."""
    not_element_wise = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
    torchs = set(nn.modules.activation.__all__) - not_element_wise
    assert torchs == {type(m).__name__ for m, _ in MODULES.values()}


@pytest.mark.parametrize(("module", "entry"), MODULES.values(), ids=MODULES)
def test_a_census_counts_what_the_entry_says(module: nn.Module, entry) -> None:
    """The flat zone of the entry, applied by hand to the layer's output, gives the census's counts."""
    model = Applies(module)
    site = relume.census(model, X)["act"]
    with torch.no_grad():
        x = model.up(X)[:, -site.units :]
    assert site.fired.tolist() == (~entry.flat.contains(x)).sum(0).tolist()


def test_random_slopes_are_recognised_in_training_too() -> None:
    census = relume.census(Applies(nn.RReLU()), X, phase="train")
    check(census["act"], of.rrelu())
