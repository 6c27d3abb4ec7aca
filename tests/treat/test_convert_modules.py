"""relume.convert on activation modules: exchanged in their places, each site with its own channels."""

import pytest
import torch
from torch import nn

import relume
from relume.nn import DReLU

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def mlp(*activations):
    a, b = activations or (nn.ReLU(), nn.ReLU())
    return nn.Sequential(nn.Linear(6, 10), a, nn.Linear(10, 4), b, nn.Linear(4, 2))


def test_each_site_gets_as_many_channels_as_it_has_units():
    model = mlp()
    conversion = relume.convert(model, "drelu", batches=X)
    assert [(m.channels, m.axis) for m in (model[1], model[3])] == [(10, -1), (4, -1)]
    assert [(s.name, s.outcome, s.after) for s in conversion] == [("1", "converted", "1"), ("3", "converted", "3")]


def test_channels_of_a_convolution_are_on_axis_one():
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.ReLU6())
    relume.convert(model, "drelu", batches=torch.randn(4, 1, 8, 8))
    assert [(m.channels, m.axis) for m in (model[1], model[3])] == [(5, 1), (3, 1)]


def test_without_batches_one_value_serves_all_units():
    model = mlp()
    conversion = relume.convert(model, "prelu")
    assert model[1].weight.numel() == 1
    assert "without batches" in conversion.notes[0]


def test_a_census_tells_the_units_and_chooses_the_sites():
    model = mlp()
    census = relume.census(model, X, include="3")
    conversion = relume.convert(model, "drelu", census)
    assert type(model[1]) is nn.ReLU
    assert (model[3].channels, model[3].axis) == (4, -1)
    assert conversion["1"].reason == "not selected"


@pytest.mark.parametrize(
    "where",
    ["3", ["3"], "[3-9]", lambda site: site.units == 4, lambda site: site.producer == "2"],
    ids=["name", "list", "pattern", "units", "producer"],
)
def test_sites_are_chosen_by_pattern_or_predicate(where):
    model = mlp()
    conversion = relume.convert(model, "elu", where, batches=X)
    assert (type(model[1]), type(model[3])) == (nn.ReLU, nn.ELU)
    assert [s.outcome for s in conversion] == ["left", "converted"]


@pytest.mark.parametrize(
    ("to", "kind", "shown"),
    [
        ("leaky_relu(0.2)", nn.LeakyReLU, "negative_slope=0.2"),
        ("LeakyReLU", nn.LeakyReLU, "negative_slope=0.01"),
        ("swish", nn.SiLU, ""),
        ("gelu_new", nn.GELU, "approximate='tanh'"),
        ("relu6", nn.ReLU6, ""),
        ("celu(2)", nn.CELU, "alpha=2.0"),
        ("drelu(alpha=0.3)", DReLU, "alpha=0.3"),
        ("drelu_exponential", DReLU, "form=exponential"),
        (nn.Mish, nn.Mish, ""),
        (nn.ELU(0.7), nn.ELU, "alpha=0.7"),
        (lambda: nn.Softplus(beta=2), nn.Softplus, "beta=2"),
        (lambda site: nn.PReLU(site.channels, init=0.1), nn.PReLU, "num_parameters=10"),
        (DReLU, DReLU, "10, axis=-1"),
    ],
    ids=range(13),
)
def test_what_to_convert_to_is_given_in_any_form(to, kind, shown):
    model = mlp()
    relume.convert(model, to, batches=X)
    assert type(model[1]) is kind
    assert shown in model[1].extra_repr()
    assert model[1] is not model[3]


def test_every_name_of_the_registry_makes_a_module_of_its_function_or_says_why_not():
    x = torch.linspace(-4, 4, 33).reshape(-1, 1)
    refused = []
    for entry in relume.activations.all_activations(own=False):
        model = nn.Sequential(nn.Identity(), nn.Hardshrink())
        try:
            relume.convert(model, entry.name, where="1")
        except relume.RelumeError:
            refused.append(entry.name)
            continue
        torch.testing.assert_close(model.eval()(x).double(), entry.function(x.double()), rtol=1e-5, atol=1e-5)
    assert refused == ["dual_relu", "dynamic_relu", "drelu_gate", "glu"]


def test_hooks_and_mode_come_along_and_their_handles_still_remove_them():
    model = mlp()
    calls = []
    handle = model[1].register_forward_hook(lambda *a: calls.append("forward"))
    model[1].register_full_backward_hook(lambda *a: calls.append("backward"))
    model[1].eval()
    relume.convert(model, "drelu", batches=X)
    assert not model[1].training
    assert model[3].training
    calls.clear()
    model(X).sum().backward()
    assert calls == ["forward", "backward"]
    handle.remove()
    calls.clear()
    model(X)
    assert calls == []


def test_new_parameters_have_the_dtype_of_the_layers_beside():
    model = mlp().to(torch.bfloat16)
    relume.convert(model, "prelu", batches=X.bfloat16())
    assert model[1].weight.dtype == torch.bfloat16
    assert model(X.bfloat16()).dtype == torch.bfloat16


def test_in_dicts_lists_and_attributes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.d = nn.ModuleDict({"fc": nn.Linear(6, 5), "act": nn.ReLU()})
            self.l = nn.ModuleList([nn.Linear(5, 4), nn.ReLU()])
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.l[1](self.l[0](self.d["act"](self.d["fc"](x)))) - 0.5)

    model = Model()
    before = list(relume.census(model, X))
    relume.convert(model, "drelu", batches=X)
    assert [model.d["act"].channels, model.l[1].channels, model.act.channels] == [5, 4, 4]
    assert list(relume.census(model, X)) == before


def test_a_module_registered_in_two_places_becomes_two():
    act = nn.ReLU()
    model = mlp(act, act)
    conversion = relume.convert(model, "drelu", batches=X)
    assert (model[1].channels, model[3].channels) == (10, 4)
    assert [(s.name, s.after) for s in conversion] == [("1", "1"), ("1#1", "3")]


def test_of_a_module_registered_in_two_places_one_is_converted():
    act = nn.ReLU()
    model = mlp(act, act)
    relume.convert(model, "drelu", "1#1", batches=X)
    assert model[1] is act
    assert model[3].channels == 4


def test_a_module_used_twice_in_a_method_becomes_two(net, images):
    conversion = relume.convert(net, "drelu", "blocks.*", batches=images)
    block = net.blocks[0]
    assert (block.relu.channels, block.relu_1.channels) == (6, 8)
    assert conversion["blocks.0.relu#1"].after == "blocks.0.relu_1"
    net.eval()
    x = torch.randn(4, 8, 6, 6)
    out = block.relu(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), block.relu_1(block.bn2(block.conv2(out)) + x))


def test_of_a_module_used_twice_only_the_chosen_use_changes(net, images):
    relume.convert(net, "drelu", "blocks.0.relu#1", batches=images)
    block = net.blocks[0].eval()
    assert type(block.relu) is nn.ReLU
    x = torch.randn(4, 8, 6, 6)
    out = block.relu(block.bn1(block.conv1(x)))
    assert torch.equal(block(x), block.relu_1(block.bn2(block.conv2(out)) + x))
    assert type(net.blocks[1]).forward is type(net.blocks[1]).__mro__[0].forward


def test_uses_of_one_call_share_a_module_or_are_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.act = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)]), nn.ReLU()

        def forward(self, x):
            for layer in self.layers:
                x = self.act(layer(x))
            return x

    model = Model()
    part = relume.convert(model, "drelu", "act#1", batches=X)
    assert type(model.act) is nn.ReLU
    assert part["act#1"].outcome == "can't"
    assert "not all selected" in part["act#1"].reason
    stateless = relume.convert(model, nn.ELU, batches=X)
    assert [s.after for s in stateless] == ["act", "act#1"]
    whole = relume.convert(model, "drelu", batches=X)
    assert model.act.channels == 1
    assert "one module for 2 uses" in whole["act"].reason


def test_an_activation_that_is_there_already_is_left():
    model = mlp(nn.LeakyReLU(0.2), nn.LeakyReLU(0.3))
    first = model[1]
    conversion = relume.convert(model, "leaky_relu(0.2)", batches=X)
    assert model[1] is first
    assert model[3].negative_slope == 0.2
    assert conversion["1"].reason == "it is leaky_relu already"


def test_gates_are_left_unless_asked_for(net, images):
    assert relume.convert(net, "drelu", batches=images)[":sigmoid"].outcome == "left"
    assert relume.convert(net, "hardsigmoid", ":sigmoid", batches=images)[":sigmoid"].outcome == "converted"


def test_back_to_relu_computes_what_it_did(net, images):
    net.eval()
    before = net(images)
    there = relume.convert(net, "drelu", batches=images)
    assert there.change > 0
    back = relume.convert(net, "relu", batches=images)
    assert len(back.converted) == len(there.converted)
    assert torch.equal(net(images), before)


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
@pytest.mark.parametrize("activation", ["relu", nn.GELU()], ids=["function", "module"])
def test_torchs_transformer_layers_in_training_and_evaluation(layer, activation):
    model = layer(8, 2, 16, dropout=0.0, activation=activation, batch_first=True)
    x = torch.randn(3, 5, 8)
    args = (x,) if layer is nn.TransformerEncoderLayer else (x, x)
    relume.convert(model, "drelu", batches=[args])
    assert (model.activation.channels, model.activation.axis) == (16, -1)
    model.train()
    model(*args)
    model.eval()
    with torch.no_grad():
        fast = model(*args)  # torch's fused path would still apply a ReLU
    torch.testing.assert_close(fast, model(*args), rtol=1e-5, atol=1e-6)
    census = relume.census(model, [args])
    assert [s.site.activation for s in census.values()] == ["drelu"]


def test_a_transformer_encoder_with_padding_leaves_its_nested_tensors():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x, padding = torch.randn(3, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    batch = {"src": x, "src_key_padding_mask": padding}
    conversion = relume.convert(model, "leaky_relu", batches=[batch])
    model.eval()
    with torch.no_grad():
        fused = model(**batch)
    torch.testing.assert_close(fused[~padding], model(**batch)[~padding], rtol=1e-5, atol=1e-6)
    conversion.undo()
    assert model.use_nested_tensor
    assert [layer.activation_relu_or_gelu for layer in model.layers] == [1, 1]
    assert model.layers[0].activation is torch.nn.functional.relu


def test_norm_is_put_before_the_activation_of_the_fitting_kind():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.ReLU())
    x = torch.randn(8, 1, 6, 6)
    conversion = relume.convert(model, "relu", batches=x, norm="batch")
    assert (type(model[1].norm), type(model[4].norm)) == (nn.BatchNorm2d, nn.BatchNorm1d)
    assert conversion.change > 0
    assert conversion["1"].after == "1.activation"
    assert model[1].norm.num_features == 6


def test_norm_is_not_put_where_there_is_one_or_where_none_fits(net, images):
    conversion = relume.convert(net, "drelu", batches=images, norm="batch")
    assert "bn1 is there already" in conversion["blocks.0.relu"].reason
    assert "batch norm before it" in conversion[":relu"].reason
    tokens = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    unfit = relume.convert(tokens, "relu", batches=torch.randn(2, 3, 4), norm="batch")
    assert "no norm: torch's batch norm wants channels on axis 1" in unfit["1"].reason
    fit = relume.convert(tokens, "relu", batches=torch.randn(2, 3, 4), norm="layer")
    assert "layer norm" in fit["1"].reason


def test_what_an_in_place_activation_overwrote_is_overwritten_still_where_the_model_reads_it():
    class PreActivation(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.fc, self.relu = nn.Linear(6, 6), nn.ReLU(inplace=inplace)

        def forward(self, x):
            x = x * 1.0
            out = self.fc(self.relu(x))
            return out + x

    x = X.clone()
    for inplace in (True, False):
        model = PreActivation(inplace)
        conversion = relume.convert(model, "leaky_relu(0.5)", batches=x)
        h = nn.functional.leaky_relu(x, 0.5)
        assert torch.equal(model(x), model.fc(h) + (h if inplace else x))
        assert ("overwrites its input" in conversion[0].reason) is inplace
        model(x).sum().backward()
    preserved = PreActivation(True)
    conversion = relume.convert(preserved, "drelu", batches=x, preserve=True)
    assert conversion.change == 0
    conversion.anneal(1.0)
    assert isinstance(preserved.relu.activation, DReLU)


def test_a_census_of_a_module_with_several_uses_does_not_tell_its_channels():
    act = nn.ReLU()
    model = mlp(act, act)
    census = relume.census(model, X)
    with pytest.raises(relume.RelumeError, match=r"no site is called '1#1'.*Only batches= shows"):
        relume.convert(model, "drelu", census)
    relume.convert(model, "drelu", [census["1"]])
    assert model[1].channels == 1
    assert model[1] is model[3]
    model(X)
