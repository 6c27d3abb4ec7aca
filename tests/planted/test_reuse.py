"""Reuse, branches, and control flow that depends on the data."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import relume


def test_a_module_used_three_times_is_three_sites(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 7), nn.ReLU()

        def forward(self, x):
            return self.act(self.c(self.act(self.b(self.act(self.a(x))))))

    model = Model()
    for layer, unit in ((model.a, 1), (model.b, 2), (model.c, 3)):
        planted.bury(layer, unit)

    def oracle(x):
        a = model.a(x)
        b = model.b(a.relu())
        return {"act": a, "act#1": b, "act#2": model.c(b.relu())}

    planted(model, planted.batches(6), oracle, {"act": {1}, "act#1": {2}, "act#2": {3}})


def test_shared_weights_die_at_one_use_and_live_at_another(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return F.relu(self.fc(F.relu(self.fc(x)) + 100.0))

    model = Model()
    with torch.no_grad():
        model.fc.weight.abs_()
        model.fc.bias.fill_(0.5)
        model.fc.bias[2] = -50.0
        model.fc.weight[2] = 1.0

    def oracle(x):
        z = model.fc(x)
        return {":relu": z, ":relu#1": model.fc(z.relu() + 100.0)}

    planted(model, planted.batches(6), oracle, {":relu": {2}})


@pytest.mark.parametrize("inplace", [False, True])
def test_residual_blocks(planted, inplace):
    class Block(nn.Module):
        def __init__(self, c, out, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.relu = nn.ReLU(inplace=inplace)
            self.down = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))

        def forward(self, x):
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out += self.down(x)
            return self.relu(out)

        def pre(self, x):
            one = self.bn1(self.conv1(x))
            return one, self.bn2(self.conv2(one.relu())) + self.down(x)

    model = nn.Sequential(Block(3, 6, 1), Block(6, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    planted.bury(model[0].bn1, 1)
    planted.bury(model[0].bn2, 2)
    planted.bury(model[1].bn1, 3)
    planted.bury(model[1].down[1], 4)

    def oracle(x):
        a, b = model[0].pre(x.clone())
        c, d = model[1].pre(b.relu())
        return {"0.relu": a, "0.relu#1": b, "1.relu": c, "1.relu#1": d}

    dead = {"0.relu": {1}, "0.relu#1": {2}, "1.relu": {3}, "1.relu#1": {4}}
    planted(model, planted.batches(3, 8, 8, inputs=256, batch=64), oracle, dead)


def test_concatenated_branches_keep_their_units_in_order(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(9, 6, 1)

        def forward(self, x):
            return F.relu(self.c(F.relu(torch.cat([self.a(x), self.b(x)], 1))))

    model = Model()
    planted.bury(model.a, 3)
    planted.bury(model.b, 0, 4)
    planted.bury(model.c, 5)

    def oracle(x):
        z = torch.cat([model.a(x), model.b(x)], 1)
        return {":relu": z, ":relu#1": model.c(z.relu())}

    census = planted(model, planted.batches(3, 5, 5), oracle, {":relu": {3, 4, 8}, ":relu#1": {5}})
    assert census[":relu"].site.producers == ("a", "b")


def test_a_branch_taken_by_some_batches_only(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(6, 8), nn.Linear(6, 8), nn.ReLU()

        def forward(self, x):
            return self.act(self.a(x)) if x.sum() > 0 else self.act(self.b(x))

    model = Model()
    planted.bury(model.a, 1)
    planted.bury(model.b, 2)
    batches = [x.abs() if i % 2 == 0 else -x.abs() for i, x in enumerate(planted.batches(6, inputs=1024))]

    def oracle(x):
        return {"act": model.a(x)} if x.sum() > 0 else {"act#1": model.b(x)}

    # Which is "act" depends on which comes first.
    planted(model, batches, oracle, {"act": {1}, "act#1": {2}})


def test_a_site_not_reached_in_a_window_is_not_dead():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x, late):
            h = torch.tanh(self.b(x)) if late else self.b(x)
            return F.relu(self.a(x)) + h

    model = Model()
    with relume.watch(model, every=1, window=4) as watch:
        for step in range(8):
            model(torch.randn(128, 6), late=step < 4)
    tanh = watch.census(1)[":tanh"]
    assert not tanh.reached
    assert not tanh.dead.any()
    assert tanh.state == ["unknown"] * 8
    assert watch.census(0)[":tanh"].reached


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*requires_grad=True.*:UserWarning")
def test_a_checkpointed_segment_is_counted_once(planted, reentrant):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return F.relu(self.fc(checkpoint(self.block, x, use_reentrant=reentrant)))

    model = Model()
    planted.bury(model.block[0], 1)
    planted.bury(model.fc, 2)

    def oracle(x):
        z = model.block[0](x)
        return {"block.1": z, ":relu": model.fc(z.relu())}

    data = planted.batches(6)
    planted(model, data, oracle, {"block.1": {1}, ":relu": {2}})
    with relume.watch(model, every=1) as watch:
        for x in data:
            model.train()(x.requires_grad_()).sum().backward()
    assert watch.census("all")["block.1"].inputs == 512


def test_loops_of_varying_length(planted):
    """Turns of a loop are sites of their own; those not reached by every batch have seen fewer inputs."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x, turns):
            for _ in range(turns):
                x = F.relu(self.fc(x))
            return x

    model = Model()
    planted.bury(model.fc, 4)

    def oracle(x, turns):
        sites = {}
        for name in [":relu", ":relu#1", ":relu#2"][:turns]:
            sites[name] = model.fc(x)
            x = sites[name].relu()
        return sites

    batches = [(x, 1 + i % 3) for i, x in enumerate(planted.batches(6, inputs=1536))]
    planted(model, batches, oracle, {":relu": {4}, ":relu#1": {4}, ":relu#2": {4}})


def test_two_towers_share_an_encoder(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, a, b):
            return (self.encoder(a) * self.encoder(b)).sum(-1)

    model = Model()
    planted.bury(model.encoder[0], 5)
    pairs = list(zip(planted.batches(6), planted.batches(6), strict=True))
    planted(
        model,
        pairs,
        lambda a, b: {"encoder.1": model.encoder[0](a), "encoder.1#1": model.encoder[0](b)},
        {"encoder.1": {5}, "encoder.1#1": {5}},
    )


def test_two_views_put_end_to_end_are_samples_of_the_same_inputs(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, a, b):
            return F.relu(self.fc(torch.cat([a, b]))).chunk(2)

    model = Model()
    planted.bury(model.fc, 5)
    pairs = list(zip(planted.batches(6), planted.batches(6), strict=True))
    planted(model, pairs, lambda a, b: {":relu": torch.stack([model.fc(a), model.fc(b)], 2)}, {":relu": {5}})
