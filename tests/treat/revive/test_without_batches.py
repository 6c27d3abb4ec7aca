"""Without batches the structure of an `nn.Sequential` has to say enough, or relume asks for them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


def images(n=300):
    return torch.randn(n, 1, 8, 8)


def small_cnn(bury):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Linear(8 * 16, 12), nn.ReLU6(), nn.Dropout()), nn.Linear(12, 4),
    ).eval()  # fmt: skip
    bury(model[1].bias, 1, 3)
    bury(model[5][0].bias, 2)
    bury(model[5][0].bias, 4, at=1e3)  # stuck at 6: a constant that the next bias takes over
    return model


UNITS = {"2": [1, 3], "5.1": [2, 4]}


@pytest.mark.parametrize("method", ["redo", "recentre", "rescale"])
def test_the_function_is_kept_by_structure_alone(bury, method, state):
    model, x = small_cnn(bury), images()
    census, before, numbers = relume.census(model, [x]), model(x).detach(), state(model)
    revival = relume.revive(model, census, method=method, units=UNITS)
    assert revival.units == UNITS
    assert revival.change is None
    assert "no batches to measure it on" in revival.notes[0]
    assert float((model(x).detach() - before).abs().max() / before.abs().max()) <= 1e-6
    after = relume.census(model, [x])
    assert all(float(after[s].firing_rate[u]) > 0 for s, numbers_of in UNITS.items() for u in numbers_of)
    revival.undo()
    assert state.same(numbers, state(model))


def test_it_cuts_what_it_cuts_with_batches(bury):
    cut = []
    for batches in (None, [images()]):
        model = small_cnn(bury)
        census = relume.census(model, [images()])
        relume.revive(model, census, units=UNITS, batches=batches)
        cut.append((model[5][0].weight.detach() == 0, model[6].weight.detach() == 0, model[6].bias.detach()))
    assert torch.equal(cut[0][0], cut[1][0])
    assert torch.equal(cut[0][1], cut[1][1])
    torch.testing.assert_close(cut[0][2], cut[1][2])


def test_training_mode_stays(bury):
    model = small_cnn(bury)
    census = relume.census(model, [images()])
    model.train()
    relume.revive(model, census, units=UNITS)
    assert all(m.training for m in model.modules())


def asks(model, batch, units, match):
    census = relume.census(model.eval(), [batch])
    with pytest.raises(relume.RelumeError, match=match):
        relume.revive(model, census, units=units)


def test_it_asks_where_a_forward_is_written_by_hand(bury, net):
    model = net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 2))
    bury(model.a.bias, 2)
    asks(model, torch.randn(300, 6), {":relu": [2]}, r"no module in an nn\.Sequential.*pass batches=.*one example")


def test_it_asks_where_the_consumer_lies_elsewhere(bury, net):
    model = net(lambda m, x: m.b(m.f(x)), f=nn.Sequential(nn.Linear(6, 8), nn.ReLU()), b=nn.Linear(8, 2))
    bury(model.f[0].bias, 2)
    asks(model, torch.randn(300, 6), {"f.1": [2]}, "its producer or its consumer lies outside")


def test_it_asks_where_the_census_saw_another_reader(bury, net):
    """A forward that takes an nn.Sequential apart: the order of its modules is not all."""

    def forward(m, x):
        h = m.f[1](m.f[0](x))
        return m.f[2](h) + m.other(h)

    layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    model = net(forward, f=layers, other=nn.Linear(8, 2))
    bury(model.f[0].bias, 2)
    asks(model, torch.randn(300, 6), {"f.1": [2]}, "not all that the census saw beside it: f.0, f.2, other")


def test_it_asks_where_a_module_is_used_twice(bury):
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), shared, nn.Tanh(), shared)
    bury(model[0].bias, 2)
    asks(model, torch.randn(300, 6), {"1": [2]}, "used in several places|not all that the census saw")


def test_it_asks_where_a_hook_may_do_anything(bury):
    model = small_cnn(bury)
    model[3].register_forward_hook(lambda m, a, out: out.flip(1))
    asks(model, images(), UNITS, "may do anything")


def test_units_that_are_not_dead_need_batches(bury):
    asks(small_cnn(bury), images(), {"2": [0]}, "unit 0 of '2' is not")


def test_no_census_and_no_batches():
    with pytest.raises(relume.RelumeError, match="without a census, pass batches="):
        relume.revive(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), None, units={"1": [0]})
