"""How sites are named, described and chosen."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.errors import AxisError, RelumeWarning
from relume.sites import Site


class Net(nn.Module):
    """One of each: a module, a functional call in a submodule, one at the root, and a second use."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1)
        )
        self.encoder = nn.ModuleDict({"mlp": MLP()})
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.features(x).flatten(1)
        x = self.encoder["mlp"](x)
        return torch.clamp(self.relu(self.relu(x) - 1) - 1, min=0)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 6)

    def forward(self, x):
        return F.relu(self.fc(x))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def data():
    return [torch.randn(64, 1, 6, 6)]


def test_names_say_where_a_site_is(net, data):
    census = relume.census(net, data)
    assert list(census) == ["features.2", "encoder.mlp:relu", "relu", "relu#1", ":clamp"]
    assert [s.site.module for s in census.values()] == ["features.2", "encoder.mlp", "relu", "relu", ""]


def test_a_clamp_may_be_asked_for_as_the_relu_it_is(net, data):
    census = relume.census(net, data)
    assert census[":relu"] is census[":clamp"]
    assert census["relu"] is not census["relu#1"]
    with pytest.raises(KeyError, match=r"no site 'relu#2'.*features\.2"):
        census["relu#2"]


def test_names_stay_when_passes_are_repeated(net, data):
    once, thrice = relume.census(net, data), relume.census(net, data * 3)
    assert list(once) == list(thrice)
    assert thrice["relu#1"].inputs == 3 * once["relu#1"].inputs


def test_producer_between_and_consumers_follow_the_data(net, data):
    sites = {s.name: s.site for s in relume.census(net, data).values()}
    first = sites["features.2"]
    assert (first.producer, first.between) == ("features.0", ("1",))
    assert first.consumers == ("encoder.mlp.fc",)
    assert sites["encoder.mlp:relu"].producer == "encoder.mlp.fc"
    assert sites["encoder.mlp:relu"].consumers == ("relu",)
    assert sites[":clamp"].consumers == ("output",)


def test_a_sum_has_the_producers_of_both_sides_and_a_shortcut_is_a_consumer():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            h = F.relu(self.a(x))
            return self.c(F.relu(self.b(h) + h))

    census = relume.census(Residual(), [torch.randn(64, 6)])
    assert census[":relu"].site.consumers == ("b", ":relu#1")
    assert set(census[":relu#1"].site.producers) == {"b", ":relu"}
    assert census[":relu#1"].site.producer is None


def test_include_and_exclude_choose_by_pattern(net, data):
    assert list(relume.census(net, data, include="features.*")) == ["features.2"]
    assert list(relume.census(net, data, include=["relu*", "encoder*"], exclude="*#1")) == ["encoder.mlp:relu", "relu"]
    with relume.watch(net, every=1, exclude=["relu*"]) as watch:
        net(data[0])
    assert list(watch.census()) == ["features.2", "encoder.mlp:relu", ":clamp"]


def test_what_is_excluded_costs_no_counting_but_is_still_a_consumer(net, data):
    census = relume.census(net, data, include="encoder*")
    assert census["encoder.mlp:relu"].site.consumers == ("relu",)


def test_axis_overrides_all_sites_or_those_of_a_pattern():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU())
    x = torch.randn(32, 4, 6)
    assert [s.units for s in relume.census(model, [x]).values()] == [8, 5]
    every = relume.census(model, [x], axis=1)
    assert [(s.units, s.samples) for s in every.values()] == [(4, 32 * 8), (4, 32 * 5)]
    some = relume.census(model, [x], axis={"3": 1})
    assert [s.units for s in some.values()] == [8, 4]
    assert some["3"].site.axis_known


def test_a_wrong_axis_says_so():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    with pytest.raises(AxisError, match=r"axis=2.*2 axes"):
        relume.census(model, [torch.randn(32, 6)], axis=2)
    with pytest.raises(AxisError, match="counts the inputs"):
        relume.census(model, [torch.randn(32, 6)], axis=0)


def test_input_axis_says_which_axis_counts_inputs():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    x = torch.randn(5, 40, 6)
    assert relume.census(model, [x])["1"].inputs == 5
    site = relume.census(model, [x], input_axis=1)["1"]
    assert (site.inputs, site.samples) == (40, 200)
    assert site.fired.tolist() == (model[0](x) > 0).any(0).sum(0).tolist()


def test_a_site_survives_json():
    census = relume.census(nn.Sequential(nn.Linear(6, 8), nn.ReLU6()), [torch.randn(32, 6)])
    site = census["1"].site
    assert Site.from_dict(json.loads(json.dumps(site.to_dict()))) == site


@pytest.mark.parametrize(
    ("model", "x", "said"),
    [
        (nn.Sequential(nn.LSTM(4, 6, batch_first=True)), torch.randn(8, 5, 4), "LSTM '0': its gates"),
        (nn.Sequential(nn.GRUCell(4, 6)), torch.randn(8, 4), "GRU '0': its gates"),
    ],
)
def test_gates_in_fused_kernels_are_noted(model, x, said):
    with relume.watch(model, every=1) as watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RelumeWarning)
        model(x)
    assert any(note.startswith(said) for note in watch.notes)


def test_a_packed_sequence_and_dropout_in_a_kernel_are_warned_of():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.RNN(4, 6, nonlinearity="relu", batch_first=True), nn.Linear(6, 5)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [3] * len(x), batch_first=True)
            return F.relu(self.fc(self.rnn(packed)[1][0]))

    with pytest.warns(RelumeWarning, match="RNN 'rnn'.*packed"):
        census = relume.census(Packed(), [torch.randn(300, 5, 4)])
    assert list(census) == [":relu"]
    assert census[":relu"].inputs == 300
    dropout = nn.Sequential(nn.RNN(4, 6, 2, nonlinearity="relu", dropout=0.5), nn.Identity())
    watch = relume.watch(dropout, every=1)
    with watch, pytest.warns(RelumeWarning):
        dropout(torch.randn(5, 300, 4))
    assert any("dropout between layers" in note for note in watch.notes)
    assert list(relume.census(dropout, [torch.randn(5, 300, 4)])) == ["0.l0:relu", "0.l1:relu"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_warned_of():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    model = nn.Sequential(nn.Linear(6, 8), scripted, nn.Linear(8, 4), nn.ReLU())
    with relume.watch(model, every=1) as watch, pytest.warns(RelumeWarning, match="'1' is a torch.jit.ScriptModule"):
        model(torch.randn(300, 6))
    census = watch.census()
    assert list(census) == ["3"]
    assert (census["3"].inputs, census["3"].units) == (300, 4)


def test_a_nested_tensor_is_warned_of():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x):
            return F.relu(self.out(F.relu(self.fc(x)).to_padded_tensor(0.0)))

    rows = torch.nested.nested_tensor([torch.randn(1 + i % 3, 5) for i in range(30)], layout=torch.jagged)
    with pytest.warns(RelumeWarning, match="nested tensor"):
        census = relume.census(Model(), [rows])
    assert list(census) == [":relu"]
    assert census[":relu"].units == 4
