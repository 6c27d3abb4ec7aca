"""What `relume.revive` returns, and revived models in use: compiled, shared between threads of thought, trained on."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import relume


@pytest.fixture
def revived(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 2))
    bury(model[0].bias, 2)
    bury(model[0].bias, 5, at=1e3)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(256, 6)
    model(x).sum().backward()
    optimizer.step()
    census = relume.census(model, [x])
    return model, relume.revive(model, census, optimizer, units={"1": [2, 5]}, batches=[x])


def test_each_act_says_what_was_done(revived):
    _, revival = revived
    assert [(a.site, a.unit, a.method) for a in revival] == [("1", 2, "redo"), ("1", 5, "redo")]
    assert revival[0].incoming == ("0.weight", "0.bias")
    assert revival[0].before["firing_rate"] == 0
    assert revival[0].after["firing_rate"] > 0.1
    (outgoing,) = revival.outgoing
    assert (outgoing.parameter, outgoing.zeroed, outgoing.bias) == ("2.weight", 4, "2.bias")
    assert outgoing.largest_correction > 0
    assert revival.state == ("Adam.exp_avg", "Adam.exp_avg_sq")
    assert revival.change is not None
    assert revival.relative <= 1e-6


def test_it_prints_as_a_person_reads_it(revived):
    text = str(revived[1])
    assert text.startswith("2 units revived by redo; the output moved by at most")
    assert "1: units 2, 5; incoming 0.weight, 0.bias" in text
    assert "outgoing 2.weight: 4 entries zeroed, 2.bias takes over at most" in text
    assert "reset: Adam.exp_avg, Adam.exp_avg_sq" in text


def test_it_is_plain_data_too(revived):
    _, revival = revived
    data = json.loads(json.dumps(revival.to_dict()))
    assert data["acts"][1]["unit"] == 5
    assert data["relative_change"] == revival.relative
    record = pickle.loads(pickle.dumps(revival))
    assert record.to_dict() == revival.to_dict()
    with pytest.raises(relume.RelumeError, match="a record without its model"):
        record.undo()


def test_undo_works_once(revived):
    model, revival = revived
    revival.undo()
    assert float(model[0].bias[2]) < -900
    with pytest.raises(relume.RelumeError, match="undone already"):
        revival.undo()


def test_undo_leaves_alone_what_training_has_done_since(revived):
    model, revival = revived
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    trained = copy.deepcopy(model)
    revival.undo()
    assert torch.equal(model[0].weight[[0, 1, 3, 4, 6, 7]], trained[0].weight[[0, 1, 3, 4, 6, 7]])
    assert torch.equal(model[2].weight[:, [0, 1]], trained[2].weight[:, [0, 1]])
    assert float(model[0].bias[2]) < -900


def test_undo_after_the_optimizer_was_loaded_anew(bury):
    """Loading puts other tensors into an optimizer's state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    x = torch.randn(256, 6)
    model(x).sum().backward()
    optimizer.step()
    bury(model[0].bias, 2)
    was = optimizer.state[model[2].weight]["momentum_buffer"].clone()
    revival = relume.revive(model, relume.census(model, [x]), optimizer, units={"1": [2]}, batches=[x])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not torch.equal(optimizer.state[model[2].weight]["momentum_buffer"], was)
    revival.undo()
    assert torch.equal(optimizer.state[model[2].weight]["momentum_buffer"], was)


def test_nothing_dead_is_nothing_done():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(2000, 6)
    revival = relume.revive(model, relume.census(model, [x]), batches=[x])
    assert len(revival) == 0
    assert "no unit to revive" in str(revival)


def test_a_unit_that_fires_on_the_batches_is_left_alone_whatever_the_census_says(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    bury(model[0].bias, 2)
    bury(model[0].bias, 5)
    x = torch.randn(512, 6)
    census = relume.census(model, [x])
    with torch.no_grad():
        model[0].bias[5] = 0  # training went on
    kept = model[0].weight[5].clone()
    revival = relume.revive(model, census, batches=[x])
    assert revival.units == {"1": [2]}
    assert torch.equal(model[0].weight[5], kept)
    assert "1 of the 2 units of '1' that the census has as dead fire on these batches; left alone" in str(revival)
    with torch.no_grad():
        model[0].bias[2] = 1
    assert len(relume.revive(model, census, batches=[x])) == 0


def test_the_model_is_left_as_it_was_found(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)).train()
    bury(model[1].bias, 2)
    x = torch.randn(256, 6)
    before = model[1].num_batches_tracked.clone()
    relume.revive(model, relume.census(model, [x]), batches=[x])
    assert all(m.training for m in model.modules())
    assert torch.equal(model[1].num_batches_tracked, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_masks_and_aliases_name_units_too(bury):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.clamp(self.a(x), min=0))

    model = Net()
    bury(model.a.bias, 2)
    x = torch.randn(256, 6)
    census = relume.census(model, [x])
    revival = relume.revive(model, census, units={":relu": torch.arange(8) == 2}, batches=[x])
    assert revival.units == {":clamp": [2]}


def test_a_compiled_model_is_written_in_place(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    bury(model[0].bias, 2)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(256, 6)
    before = compiled(x).detach()
    revival = relume.revive(compiled, relume.census(compiled, [x]), units={"1": [2]}, batches=[x])
    assert torch.equal(compiled(x).detach(), before)
    assert float(model[0].bias[2]) == 0
    assert revival.units == {"1": [2]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_numbers(bury, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 2)).to(dtype)
    bury(model[0].bias, 2, at=1e3)
    x = torch.randn(256, 6, dtype=dtype)
    revival = relume.revive(model, relume.census(model, [x]), units={"1": [2]}, batches=[x])
    assert revival.relative <= 8 * torch.finfo(dtype).eps


def test_channels_last_weights_are_written_where_they_lie(bury):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    bury(model[0].bias, 2)
    x = torch.randn(64, 3, 8, 8).to(memory_format=torch.channels_last)
    others = model[2].weight.detach().clone()
    relume.revive(model, relume.census(model, [x], min_inputs=1), units={"1": [2]}, batches=[x])
    zero = (model[2].weight.detach() == 0).any((0, 2, 3)).nonzero().flatten().tolist()
    assert zero == [2]
    assert torch.equal(model[2].weight.detach()[:, [0, 1, 3]], others[:, [0, 1, 3]])


def test_autocast_is_seen_through(bury):
    """Under autocast weights are cast before they are used."""
    torch.manual_seed(0)

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    model = Cast()
    bury(model.net[0].bias, 2)
    x = torch.randn(256, 6)
    census = relume.census(model, [x])
    before = model(x).detach()
    relume.revive(model, census, units={"net.1": [2]}, batches=[x])
    assert torch.equal(model(x).detach(), before)
    assert float(model.net[2].weight.detach()[:, 2].abs().max()) == 0
    assert float(relume.census(model, [x])["net.1"].firing_rate[2]) > 0


def test_under_distributed_data_parallel(bury):
    """The names are the wrapper's, as a watch of it gives them; no pass broadcasts anything."""
    import torch.distributed as dist

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    bury(model[1].bias, 2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(wrapped.parameters())
        x = torch.randn(256, 6)
        revival = relume.revive(wrapped, relume.census(wrapped, [x]), optimizer, batches=[(x, "label")])
        assert revival.units == {"module.2": [2]}
        assert revival[0].incoming[0] == "module.0.weight"
        assert revival.change == 0
    finally:
        dist.destroy_process_group()
