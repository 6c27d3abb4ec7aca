"""What a record keeps of real trainings is held to brute force: each step's model is run again, one thing changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relume.diagnose.attribution import PARTS
from relume.diagnose.trace import COLUMNS


class Far(nn.Module):
    """Producer and site lie apart: pooling by averages, which keeps means, a view and a function between."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.out = nn.Linear(6 * 16, 10)

    def forward(self, x):
        y = self.conv(x)
        return self.out(F.relu(F.avg_pool2d(y, 2).contiguous()).flatten(1))


class TwiceAtOnce(nn.Module):
    """The sum of two producers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 12), nn.Linear(64, 12, bias=False)
        self.out = nn.Linear(12, 10)

    def forward(self, x):
        return self.out((self.a(x) + self.b(x.square())).relu())


class Tied(nn.Module):
    """One layer, run twice, each time before a site of its own."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(F.relu(self.fc(F.relu(self.fc(x)))))


def mlp():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))


def cnn(norm):
    return nn.Sequential(nn.Conv2d(1, 6, 3), norm(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))


# Model, shape of an image, site, module whose output is the site's input, producers, normalization.
CASES = {
    "mlp, first site": (mlp, (64,), "1", "0", ["0"], None),
    "mlp, second site": (mlp, (64,), "3", "2", ["2"], None),
    "cnn": (lambda: cnn(lambda u: nn.Identity()), (1, 8, 8), "2", "1", ["0"], None),
    "cnn with batch norm": (lambda: cnn(nn.BatchNorm2d), (1, 8, 8), "2", "1", ["0"], "1"),
    "cnn with group norm": (lambda: cnn(lambda u: nn.GroupNorm(2, u)), (1, 8, 8), "2", "1", ["0"], "1"),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10)),
        (64,),
        "2",
        "1",
        ["0"],
        "1",
    ),
}
PARTS_OF = slice(COLUMNS.index(PARTS[0]), None)


def out_of(model, module, x):
    """What a module gives out when the model is run, per unit in float64."""
    got = []
    handle = model.get_submodule(module).register_forward_hook(lambda m, a, out: got.append(out))
    with torch.no_grad():
        model(x)
    handle.remove()
    return got[0].double().transpose(0, 1).flatten(1)


def restored(training, step):
    model = copy.deepcopy(training.model).train()
    model.load_state_dict(training.states[step])
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_parts_are_the_change_that_brute_force_finds(case, train):
    make, shape, site, before_site, (producer,), norm = CASES[case]
    training = train(make(), shape=shape, keep=True)
    trace = training.record.traces[site]
    assert trace.producers == (producer,)
    series = trace.series()
    assert series.steps == tuple(range(20))
    means = torch.stack([out_of(restored(training, s), before_site, x).mean(1) for s, x in enumerate(training.batches)])
    close = {"rtol": 1e-4, "atol": 2e-5}  # the training computes in float32
    torch.testing.assert_close(series.column("mean"), means, **close)
    for after, last in ((0, 19), (3, 11)):
        parts = series.parts(after, last)
        torch.testing.assert_close(parts.total, means[last] - means[after], **close)
        if norm is None or isinstance(training.model.get_submodule(norm), nn.BatchNorm2d):
            torch.testing.assert_close(parts.remainder, torch.zeros_like(parts.remainder), **close)
    if norm is None:  # one step, part by part
        old, new = restored(training, 4), restored(training, 5)
        crossed = copy.deepcopy(old)
        crossed.get_submodule(producer).load_state_dict(new.get_submodule(producer).state_dict())
        by_weights_and_bias = out_of(crossed, producer, training.batches[4]).mean(1) - means[4]
        by_bias = (new.get_submodule(producer).bias - old.get_submodule(producer).bias).double().detach()
        parts = series.parts(4, 5)
        torch.testing.assert_close(parts.bias, by_bias, **close)
        torch.testing.assert_close(parts.weights, by_weights_and_bias - by_bias, **close)
        torch.testing.assert_close(parts.upstream, means[5] - means[4] - by_weights_and_bias, **close)
        assert parts.weights.abs().max() > 1e-3


def test_spread_and_extremes_are_those_of_the_pass(train):
    training = train(mlp(), keep=True)
    z = out_of(restored(training, 7), "0", training.batches[7])
    row = training.record.traces["1"].series().table[7]
    for name, value in (("std", z.std(1, correction=0)), ("max", z.amax(1)), ("min", z.amin(1))):
        torch.testing.assert_close(row[COLUMNS.index(name)], value, rtol=1e-4, atol=1e-5)


def test_producer_and_site_far_apart_are_joined_by_the_data_flow(train):
    training = train(Far(), shape=(1, 8, 8))
    (trace,) = training.record.traces.values()
    assert trace.producers == ("conv",)
    parts = trace.series().parts(0, 19)
    assert parts.total.abs().max() > 0.01
    torch.testing.assert_close(parts.remainder, torch.zeros(6).double(), rtol=0, atol=2e-5)


def test_a_sum_of_two_producers_is_split_over_both(train):
    (trace,) = train(TwiceAtOnce()).record.traces.values()
    assert set(trace.producers) == {"a", "b"}
    parts = trace.series().parts(0, 19)
    torch.testing.assert_close(parts.remainder, torch.zeros(12).double(), rtol=0, atol=2e-5)


def test_a_tied_layer_is_split_at_each_of_its_sites(train):
    traces = train(Tied()).record.traces
    assert [t.producers for t in traces.values()] == [("fc",), ("fc",)]
    for trace in traces.values():
        parts = trace.series().parts(0, 19)
        torch.testing.assert_close(parts.remainder, torch.zeros(64).double(), rtol=0, atol=2e-5)
    below, above = (t.series().parts(0, 19).bias for t in traces.values())
    torch.testing.assert_close(below, above, rtol=1e-4, atol=1e-5)


class Halves(nn.Module):
    """Its sites have half the producer's units each."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(64, 16), nn.Linear(8, 10)

    def forward(self, x):
        a, b = self.fc(x).chunk(2, 1)
        return self.out(F.relu(a) + F.relu(b))


class Matmul(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(64, 16) / 8), nn.Linear(16, 10)

    def forward(self, x):
        return self.out(F.relu(x @ self.w))


@pytest.mark.parametrize(("make", "says"), [(Halves, "16 units"), (Matmul, "unknown producer")])
def test_what_cannot_be_split_says_so_and_is_measured_all_the_same(make, says, train):
    for trace in train(make()).record.traces.values():
        assert says in trace.unknown
        series = trace.series()
        assert series.column("mean").isfinite().all()
        assert series.table[:, PARTS_OF].isnan().all()


@pytest.mark.parametrize("every", [1, 3])
def test_training_under_a_record_is_bitwise_what_it_is_without(every, train):
    def trained(recorded):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(6 * 36, 10)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        train(model, optimizer, shape=(1, 8, 8), every=every, recorded=recorded)
        hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
        assert not any(a or b for a, b in hooks)
        return model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()

    with_record, without = trained(True), trained(False)
    assert all(torch.equal(v, without[0][k]) for k, v in with_record[0].items())
    assert all(torch.equal(v, without[1][i][k]) for i, s in with_record[1].items() for k, v in s.items())
    assert torch.equal(with_record[2], without[2])


def test_hooks_hang_on_modules_only_while_an_observed_pass_lasts(train):
    model = mlp()
    seen = []
    model.register_forward_pre_hook(lambda m, a: seen.append(len(m[0]._forward_hooks)))
    model[0].register_forward_pre_hook(lambda m, a: seen.append(len(m._forward_hooks)))
    training = train(model, every=4, steps=8)
    assert seen[1::2] == [1, 0, 0, 0, 1, 0, 0, 0]
    assert training.record.traces["1"].series().steps == (0, 4)


def test_a_ring_that_overflows_leaves_the_windows_and_loses_no_change(train):
    whole, short = (train(_seeded(), steps=60, rows=rows).record.traces["3"] for rows in (64, 12))
    long, coarse = whole.series(), short.series()
    assert len(coarse) < len(long) == 60
    assert coarse.steps[:2] == (0, 9), "the first pass, then windows"
    assert coarse.steps[-10:] == tuple(range(50, 60))
    for name in PARTS:
        a, b = getattr(long.parts(0, 59), name), getattr(coarse.parts(0, len(coarse) - 1), name)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _seeded():
    torch.manual_seed(5)
    return mlp()


def test_memory_stays_within_the_limit_and_sums_stay_whole(train):
    whole = train(_seeded(), steps=60, window=2)
    bounded = train(_seeded(), steps=60, window=2, rows=4, limit=40_000)
    assert bounded.record.nbytes <= 40_000 < whole.record.nbytes
    a, b = (t.record.traces["1"].series() for t in (whole, bounded))
    assert len(b) < 30
    torch.testing.assert_close(a.parts(0, len(a) - 1).total, b.parts(0, len(b) - 1).total, rtol=1e-4, atol=1e-5)


def test_steps_know_settings_of_each_parameter_group_and_what_the_scheduler_did(digits):
    import relume
    from relume.diagnose.record import Record

    x, y = digits
    model = mlp()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.01},
            {"params": [model[2].weight], "weight_decay": 0.3},
            {"params": [model[2].bias]},
        ],
        lr=0.02,
        momentum=0.5,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
    before = after = None
    with relume.watch(model, optimizer, every=1, window=5) as watch:
        record = Record.on(watch)
        for step in range(10):
            if step == 3:
                before = model[0].weight.detach().clone()
            F.cross_entropy(model(x[:64].flatten(1)), y[:64]).backward()
            optimizer.step()
            if step == 3:
                after, gradient = model[0].weight.detach().clone(), model[0].weight.grad.clone()
            optimizer.zero_grad()
            scheduler.step()
    first, last = record.steps.settings("0", 0), record.steps.settings("0")
    assert (first.optimizer, first.lr, first.momentum, first.weight_decay) == ("SGD", 0.1, 0.5, 0.01)
    assert (first.decays_bias, first.scheduled, last.lr) == (True, True, 0.05)
    assert record.steps.settings("2").weight_decay == 0.3
    assert not record.steps.settings("2").decays_bias
    assert record.steps.settings("4") is None, "no optimizer holds the output layer"
    numbers = {what: record.steps.numbers("0", what)[1][3] for what in ("gradient", "weight", "update")}
    assert numbers["gradient"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert numbers["weight"] == pytest.approx(before.norm().item(), rel=1e-5)
    assert numbers["update"] == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-4)


def test_a_training_that_fails_in_the_middle_of_a_pass_leaves_no_hook(train):
    model = mlp()
    model[3].register_forward_pre_hook(lambda m, a: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        train(model)
    assert not any(m._forward_hooks for m in model)


class Block(nn.Module):
    """Its normalization lies in a module of its own, and is called as in every other block."""

    def __init__(self):
        super().__init__()
        self.body, self.after = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3)}), nn.ModuleDict({"bn": nn.BatchNorm2d(4)})

    def forward(self, x):
        return F.relu(self.after["bn"](self.body["conv"](x)))


def test_a_normalization_is_found_by_the_tensor_where_its_name_is_one_of_several(train):
    model = nn.Sequential(nn.Conv2d(1, 4, 1), Block(), Block(), nn.Flatten(), nn.Linear(4 * 16, 10))
    for trace in train(model, shape=(1, 8, 8)).record.traces.values():
        assert not trace.unknown
        parts = trace.series().parts(0, 19)
        assert parts.beta.abs().max() > 1e-3
        torch.testing.assert_close(parts.total, parts.beta, rtol=0, atol=2e-5)
        torch.testing.assert_close(parts.remainder, torch.zeros(4).double(), rtol=0, atol=2e-5)
