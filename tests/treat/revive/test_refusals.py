"""Where the function can't be kept, or the call makes no sense: an error that says why, and a model as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


@pytest.fixture
def refuse(state):
    """Revive, see the error, and see that nothing was written."""

    def check(model, batch, units, match, optimizer=None, error=relume.RelumeError, census=True, **options):
        model.eval()
        before = state(model, *([optimizer] if optimizer else []))
        counted = relume.census(model, [batch], min_inputs=1) if census is True else census
        with pytest.raises(error, match=match):
            relume.revive(model, counted, optimizer, units=units, batches=[batch], **options)
        assert state.same(before, state(model, *([optimizer] if optimizer else [])))

    return check


@pytest.fixture
def mlp(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    bury(model[0].bias, 2)
    return model, torch.randn(64, 6)


def test_a_layer_norm_over_the_units(bury, refuse):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))
    bury(model[0].bias, 2)
    refuse(model, torch.randn(64, 6), {"1": [2]}, r"'3' reads them mixed.*'2' normalizes over them and other units")


def test_the_output_of_the_model(bury, refuse):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    bury(model[0].bias, 2)
    refuse(model, torch.randn(64, 6), {"1": [2]}, "the output of the model itself reads '1'")


def test_a_residual_stream(bury, net, refuse):
    model = net(lambda m, x: m.b(x + F.relu(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 2))
    bury(model.a.bias, 2)
    refuse(model, torch.randn(64, 6), {":relu": [2]}, r"'b' reads them mixed.*a sum adds other values to them")


def test_the_channels_of_a_stream_that_others_read(bury, net, refuse):
    """Before a norm the unit's rows are the stream's own: rewriting them would tell every later block."""

    def forward(m, x):
        x = m.stem(x)
        x = x + m.b(F.relu(m.bn(x)))
        return m.out(F.relu(m.bn2(x)))

    layers = {"stem": nn.Linear(6, 6), "bn": nn.BatchNorm1d(6), "b": nn.Linear(6, 6), "bn2": nn.BatchNorm1d(6)}
    model = net(forward, **layers, out=nn.Linear(6, 2))
    bury(model.bn.bias, 2)
    refuse(model, torch.randn(64, 6), {":relu": [2]}, r"'out' reads them mixed")


def test_tied_weights_that_make_and_read_the_unit(bury, net, refuse):
    model = net(lambda m, x: F.linear(F.relu(m.a(x)), m.a.weight.t()), a=nn.Linear(6, 8))
    bury(model.a.bias, 2)
    refuse(model, torch.randn(64, 6), {":relu": [2]}, r"'a.weight' is used again \(tied or reused\)")


def test_a_consumer_tied_to_an_embedding(bury, net, refuse):
    model = net(lambda m, x: F.linear(F.relu(m.a(m.e(x))), m.e.weight), e=nn.Embedding(10, 6), a=nn.Linear(6, 6))
    bury(model.a.bias, 2)
    refuse(model, torch.randint(10, (64,)), {":relu": [2]}, "'e.weight' is shared: 'embedding' in 'e' reads the same")


def test_a_consumer_with_computed_weights(mlp, refuse):
    model, x = mlp
    nn.utils.parametrizations.weight_norm(model[2])
    refuse(model, x, {"1": [2]}, r"the weights of '2' are computed \(parametrized\)")


def test_a_producer_with_computed_weights(mlp, refuse):
    model, x = mlp
    nn.utils.parametrizations.weight_norm(model[0])
    refuse(model, x, {"1": [2]}, r"unit 2 of '1' can't be rewritten: its incoming weights \(of 0\)")


def test_a_constant_at_zero_padding(bury, refuse):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3, padding=1))
    bury(model[0].bias, 2)
    nn.init.normal_(model[2].bias)
    refuse(model, torch.randn(64, 1, 6, 6), {"1": [2]}, r"'3' reads the units as a constant other than 0 with zeros")


def test_a_constant_for_a_layer_without_bias(bury, refuse):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2, bias=False))
    bury(model[0].bias, 2)
    nn.init.normal_(model[2].bias)
    refuse(model, torch.randn(64, 6), {"1": [2]}, r"'3' reads the units as a constant other than 0 and has no bias")


def test_a_unit_that_fires(mlp, refuse):
    refuse(*mlp, {"1": [1]}, r"unit 1 of '1' says different things for different inputs")


def test_a_unit_that_fires_in_a_later_batch_only(mlp):
    """Dead on the first batch, by which the structure is seen, and not on the second."""
    model, x = mlp
    with torch.no_grad():
        model[0].bias[2] = -20
    census = relume.census(model, [x], min_inputs=1)
    assert census["1"].state[2] == "dead"
    with pytest.raises(relume.RelumeError, match="not constant on the batches"):
        relume.revive(model, census, batches=[x, 100 * x])


def test_a_unit_that_is_constant_within_each_batch_only(mlp):
    """Of batches of one input every unit is."""
    model, x = mlp
    with pytest.raises(relume.RelumeError, match="not constant on the batches"):
        relume.revive(model, None, units={"1": [1]}, batches=list(x[:, None]))


def test_a_maximum_with_units_that_fire(bury, net, refuse):
    """A dead unit is the smaller one everywhere, so that only a large value shows where it is heard."""
    model = net(
        lambda m, x: m.out(torch.maximum(F.relu(m.a(x)), torch.exp(m.b(x)))),
        a=nn.Linear(6, 8), b=nn.Linear(6, 8), out=nn.Linear(8, 2),
    )  # fmt: skip
    bury(model.a.bias, 2)
    refuse(model, torch.randn(64, 6), {":relu": [2]}, "'out' reads them mixed")


def test_a_reused_module_whose_unit_lives_elsewhere(net, refuse):
    def forward(m, x):
        return m.one(m.act(m.shared(x[:, :3]))), m.two(m.act(m.shared(x[:, 3:])))

    model = net(forward, shared=nn.Linear(3, 8), act=nn.ReLU(), one=nn.Linear(8, 2), two=nn.Linear(8, 2))
    with torch.no_grad():
        model.shared.weight[3], model.shared.bias[3] = 1.0, -50
    x = torch.randn(64, 6)
    x[:, 3:] *= 100
    refuse(model, x, {"act": [3]}, r"'two' reads them mixed.*'shared.weight' is used again")


@pytest.mark.parametrize("frozen", [0, 2])
def test_frozen_parameters(mlp, refuse, frozen):
    model, x = mlp
    model[frozen].requires_grad_(False)
    refuse(model, x, {"1": [2]}, rf"'{frozen}\.\w+' would be rewritten and is frozen")


def test_numbers_that_are_not_finite(mlp, refuse):
    model, x = mlp
    census = relume.census(model, [x], min_inputs=1)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    refuse(model, x, {"1": [2]}, r"'2.weight' holds numbers that are not finite", census=census)


def test_a_census_of_another_model(mlp, refuse):
    model, x = mlp
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))
    elsewhere = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    for wrong, unit, match in ((other, {"1": [8]}, "9 in the census"), (elsewhere, {"2": [2]}, "has no site '2'")):
        refuse(model, x, unit, match, census=relume.census(wrong, [x], min_inputs=1))


def test_units_that_do_not_exist(mlp, refuse):
    refuse(*mlp, {"1": [8]}, "site '1' has units 0 to 7; 8 is none", error=ValueError)
    refuse(*mlp, {"9": [0]}, "there is no site '9'")
    refuse(*mlp, "drowsy", "units is 'dead', 'dormant' or a dict", error=ValueError)


def test_a_method_that_does_not_exist(mlp, refuse):
    refuse(*mlp, None, "there is no method 'revive'", error=ValueError, method="revive")
    refuse(*mlp, None, "keeps ages and utilities between calls", error=ValueError, method="continual")


def test_an_output_that_would_move_undoes_all(mlp, refuse):
    """Something that no trial sees: a forward that looks at a weight's value through numpy."""
    model, x = mlp
    forward = model.forward
    model.forward = lambda x: forward(x) + float(model[0].weight.detach().numpy()[2, 0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    refuse(model, x, {"1": [2]}, "the output would move by", optimizer=optimizer)


def test_the_generator_is_put_back_with_the_model(mlp):
    model, x = mlp
    census = relume.census(model, [x], min_inputs=1)
    model[2].requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with pytest.raises(relume.RelumeError):
        relume.revive(model, census, batches=[x], generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_preserve_false_does_what_it_can_and_says_what_it_did_not(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    bury(model[0].bias, 2)
    x = torch.randn(64, 6)
    before = model(x).detach()
    revival = relume.revive(model, relume.census(model, [x], min_inputs=1), batches=[x], preserve=False)
    assert revival.change == pytest.approx(float((model(x).detach() - before).abs().max()), rel=1e-5)
    assert revival.change > 0
    assert revival.notes[0].startswith("not kept: '3' reads them mixed")


def test_dormant_units_are_recycled_and_their_mean_goes_into_the_bias():
    """ReDo's own setting, τ > 0: the units fire, so that their outgoing weights carry more than a constant."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight[3] *= 0.01
        model[0].bias[3] = 0
        model[2].weight[:, 3] = 50
    x = torch.randn(512, 6)
    census = relume.census(model, [x])
    assert census["1"].dormant(0.1).nonzero().flatten().tolist() == [3]
    before = model(x).detach()
    mean = (F.relu(model[0](x))[:, 3].mean() * 50).detach()
    relume.revive(model, census, units="dormant", tau=0.1, batches=[x], preserve=False)
    assert float(model[2].weight[:, 3].detach().abs().max()) == 0
    lost = before - model(x).detach()
    assert lost.mean(0).abs().max() < 1e-5 * mean * 10
    assert mean > 0.1
