"""Entries are found by the names people write, and from modules with their parameters."""

import inspect

import pytest
import torch
from torch import Tensor, nn

import relume
from relume.activations import activation, activation_of, all_activations, registry
from relume.activations import catalogue as of
from relume.errors import UnknownActivationError


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(registry, "_MODULES", dict(registry._MODULES))
    monkeypatch.setattr(registry, "_FUNCTIONS", dict(registry._FUNCTIONS))


@pytest.mark.parametrize("name", ["leaky_relu", "LeakyReLU", "leaky-relu", "LEAKY RELU", " leakyrelu "])
def test_case_and_separators_do_not_matter(name: str) -> None:
    assert activation(name) is of.leaky_relu()


@pytest.mark.parametrize(
    ("alias", "name"),
    [("swish", "silu"), ("linear", "identity"), ("squared_relu", "relu_squared"), ("DyReLU", "dynamic_relu"),
     ("gelu_pytorch_tanh", "gelu_tanh"), ("logistic", "sigmoid"), ("parametric relu", "prelu")],
)  # fmt: skip
def test_an_alias_finds_the_entry(alias: str, name: str) -> None:
    assert activation(alias).name == name


def test_every_name_and_alias_means_one_activation() -> None:
    owners: dict[str, set[str]] = {}
    for entry in all_activations():
        for name in (entry.name, *entry.aliases):
            owners.setdefault(name.replace("_", "").lower(), set()).add(entry.name)
    assert {name: who for name, who in owners.items() if len(who) > 1} == {}


def test_every_listed_entry_is_found_by_its_own_name_and_is_the_same_object() -> None:
    listed = list(all_activations())
    assert len(listed) == len({a.name for a in listed}) >= 30
    for entry in listed:
        assert activation(entry.name) is entry


def test_parameters_are_torchs_and_come_by_keyword_or_in_brackets() -> None:
    assert activation("leaky_relu", negative_slope=0.2) is of.leaky_relu(0.2)
    assert activation("LeakyReLU(0.2)") is of.leaky_relu(0.2)
    assert activation("hardtanh(min_val=-2, max_val = 3)") is of.hardtanh(-2.0, 3.0)
    assert activation("gelu(approximate=tanh)") is of.gelu("tanh")
    assert activation("threshold(1, 0)") is of.threshold(1.0, 0.0)
    assert activation("relu()") is of.relu()


@pytest.mark.parametrize(("written", "meant"), [("leakyrelo", "leaky_relu"), ("gleu", "gelu"), ("swisch", "swish")])
def test_an_unknown_name_is_answered_with_close_ones(written: str, meant: str) -> None:
    with pytest.raises(UnknownActivationError, match=rf"no activation is called '{written}'; close to it: .*{meant}"):
        activation(written)


def test_a_name_close_to_nothing_points_to_the_list() -> None:
    with pytest.raises(UnknownActivationError, match="`relume activations` lists them"):
        activation("qqqqqqq")


@pytest.mark.parametrize(
    ("written", "says"),
    [("relu(1)", "its parameters: none"), ("leaky_relu(slope=1)", "negative_slope=0.01"),
     ("threshold", "missing a required"), ("leaky_relu(big)", "'big' is no number")],
)  # fmt: skip
def test_wrong_parameters_are_answered_with_the_right_ones(written: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        activation(written)


MODULES = {
    nn.LeakyReLU(0.3): of.leaky_relu(0.3),
    nn.ReLU(inplace=True): of.relu(),
    nn.ReLU6(): of.hardtanh(0.0, 6.0),
    nn.ELU(0.5): of.elu(0.5),
    nn.GELU("tanh"): of.gelu("tanh"),
    nn.Hardtanh(-2, 3): of.hardtanh(-2.0, 3.0),
    nn.RReLU(0.1, 0.5): of.rrelu(0.1, 0.5),
    nn.Softplus(2, 9): of.softplus(2.0, 9.0),
    nn.Threshold(1.5, 0.5): of.threshold(1.5, 0.5),
    nn.Softshrink(0.7): of.softshrink(0.7),
    nn.GLU(): of.glu(),
    relume.nn.DisplacedReLU(0.2): of.displaced_relu(0.2),
    relume.nn.SquaredReLU(): of.relu_squared(),
    relume.nn.QuickGELU(): of.quick_gelu(),
}


@pytest.mark.parametrize(("module", "entry"), MODULES.items(), ids=lambda m: type(m).__name__)
def test_a_module_tells_its_activation_and_parameters(module: nn.Module, entry) -> None:
    assert activation_of(module) is entry


def test_a_prelu_is_described_by_the_mean_of_its_present_slopes() -> None:
    module = nn.PReLU(4)
    assert activation_of(module) is of.prelu()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 0.2, 0.4, 1.0]))
    entry = activation_of(module)
    assert entry.gain == pytest.approx(activation("leaky_relu", negative_slope=0.4).gain, rel=1e-6)
    assert "now 0.4" in entry.formula


def test_a_drelu_is_described_by_the_tau_and_alpha_it_has_now() -> None:
    module = relume.nn.DReLU(alpha=0.3)
    module(-4 * torch.ones(8, 2))  # τ becomes 4
    entry = activation_of(module)
    x = torch.linspace(-9, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(entry.function(x), module.eval().double()(x[:, None])[:, 0])
    assert entry.gain != pytest.approx(activation("drelu").gain, abs=1e-3)
    assert activation_of(relume.nn.DReLU()) is activation("drelu")
    assert activation("drelu", tau=2.0, form="exponential").name == "drelu_exponential"


def test_what_is_no_activation_gives_none() -> None:
    for module in (nn.Linear(2, 2), nn.Identity(), nn.Sequential(nn.ReLU()), nn.Softmax(-1)):
        assert activation_of(module) is None


def test_a_subclass_counts_as_its_base_unless_registered_itself() -> None:
    class Renamed(nn.LeakyReLU):
        pass

    @relume.register_activation(name="doubled")
    class Doubled(nn.LeakyReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert activation_of(Renamed(0.4)) is of.leaky_relu(0.4)
    assert activation_of(Doubled(0.4)).name == "doubled"
    assert activation("Doubled") is activation_of(Doubled())
    assert [a.name for a in all_activations()].count("doubled") == 1
    with pytest.raises(ValueError, match="takes no parameters"):
        activation("doubled(3)")


def test_a_registered_function_is_seen_when_its_input_is_given_by_keyword() -> None:
    @relume.register_activation(flat=[(-torch.inf, 0.0)])
    def halved(x: Tensor, by: float = 2.0) -> Tensor:
        return x.clamp(min=0) / by

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return halved(by=4.0, x=self.up(x))

    x = torch.randn(300, 4)
    assert list(relume.census(Net(), x)) == [":halved"]


def test_parameters_of_factories_bear_torchs_names() -> None:
    same = {
        "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "celu": nn.CELU, "hardtanh": nn.Hardtanh, "rrelu": nn.RReLU,
        "softplus": nn.Softplus, "softshrink": nn.Softshrink, "hardshrink": nn.Hardshrink, "threshold": nn.Threshold,
        "gelu": nn.GELU,
    }  # fmt: skip
    for name, cls in same.items():
        ours = inspect.signature(of.FACTORIES[name]).parameters
        torchs = inspect.signature(cls).parameters
        for parameter, value in ours.items():
            assert torchs[parameter].default == value.default, (name, parameter)
