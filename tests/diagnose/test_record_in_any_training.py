"""A record is part of every watch: it holds or says why it can't, whatever the training does, and never ends it."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.diagnose import listening
from relume.diagnose.attribution import PARTS
from relume.diagnose.normalization import Norm
from relume.diagnose.record import Record
from relume.diagnose.steps import SAMPLE, sampled
from relume.diagnose.trace import BIAS, COLUMNS, MEASURED, PARTS_AT, RAW, RESPONSES, Trace
from relume.sites import tracker
from relume.sites.site import Site


def mlp(*, first=None):
    return nn.Sequential(first or nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def fit(model, *, called=None, optimizer=None, steps=8, every=1, window=4, before=None, **options):
    """Train on noise; returns the watch."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    drawn = torch.Generator().manual_seed(0)
    with relume.watch(model, optimizer, every=every, window=window, min_inputs=1, **options) as watch:
        for step in range(steps):
            if before is not None:
                before(step, watch)
            loss = (called or model)(torch.randn(32, 16, generator=drawn)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch


def whole(series):
    """The change of the mean over a run, and the sum of the parts that it is told as."""
    mean = series.column("mean")
    return mean[-1] - mean[0], series.parts(0, len(series) - 1)


def test_every_watch_has_a_record_unless_told_otherwise():
    watch = fit(mlp())
    assert [trace.producers for trace in watch.record.traces.values()] == [("0",), ("2",)]
    assert [row.step for row in watch.record.steps.rows] == list(range(8))
    without = fit(mlp(), diagnose=False)
    assert without.record is None
    assert without.observers == []
    with pytest.raises(TypeError, match="diagnose is True or False"):
        relume.watch(mlp(), diagnose="yes")


def test_a_record_put_on_a_watch_takes_the_place_of_its_own():
    watch = relume.watch(mlp())
    record = Record.on(watch, rows=5)
    assert watch.observers == [record]
    assert watch.record is record
    watch.close()


def a_trace(units, at_once):
    site = Site("s", "s", "s", "relu", "", units, -1)
    return Trace.begun(site, torch.device("cpu"), 64, at_once)


def written(trace, passes, norm_of):
    """Passes of made-up numbers; the place of each as it was written."""
    for p, numbers in enumerate(passes):
        place = trace.place
        place.row[MEASURED] = numbers[MEASURED]
        trace.tell(place, numbers[BIAS], numbers[RESPONSES], norm_of(p))
        trace.add(p, connected=p > 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    passes=st.integers(2, 12),
    at_once=st.integers(1, 5),
    scale=st.sampled_from([1, 1e4]),
)
def test_parts_are_those_of_a_normalization_that_does_nothing_and_sum_to_the_change(seed, passes, at_once, scale):
    drawn = torch.Generator().manual_seed(seed)
    numbers = torch.randn(passes, len(RAW), 3, generator=drawn, dtype=torch.float64) * scale
    plain, normed, at_a_time = a_trace(3, at_once), a_trace(3, at_once), a_trace(3, 100)
    nothing = Norm.none(torch.ones(3, dtype=torch.float64))
    written(plain, numbers, lambda p: None)
    written(normed, numbers, lambda p: nothing)
    written(at_a_time, numbers, lambda p: None)
    for trace in (plain, normed, at_a_time):
        trace.end_window()
    (ours,), (theirs,), (single,) = (trace.windows for trace in (plain, normed, at_a_time))
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(ours[2], single[2], rtol=1e-6, atol=1e-6 * scale)
    change = numbers[-1, 0] - numbers[0, 0]
    # What is added up is float64; only what is kept of it is float32.
    trace = a_trace(3, at_once)
    written(trace, numbers, lambda p: None)
    trace.settle()
    torch.testing.assert_close(trace._since.sum(0), change, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("ends", [[4, 9, 12], [1, 2, 12]])
def test_windows_hold_the_parts_of_their_own_passes_whenever_they_are_made(ends):
    numbers = torch.randn(12, len(RAW), 2, dtype=torch.float64)
    late, soon = a_trace(2, 40), a_trace(2, 40)
    for p in range(12):
        for trace in (late, soon):
            place = trace.place
            place.row[MEASURED] = numbers[p, MEASURED]
            trace.tell(place, numbers[p, BIAS], numbers[p, RESPONSES], None)
            trace.add(p, connected=p > 0)
            if p + 1 in ends:
                trace.end_window()
        soon.settle()
    assert late.kept_windows == 3
    for a, b, end in zip(late.windows, soon.windows, ends, strict=True):
        assert a[:2] == b[:2] == (end - 1, end)
        torch.testing.assert_close(a[2], b[2])
    moved = late.windows[1][2][PARTS_AT:].sum(0).double() - (numbers[ends[1] - 1, 0] - numbers[ends[0] - 1, 0])
    assert moved.abs().max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    kind=st.sampled_from([torch.float32, torch.float64]),
    conv=st.booleans(),
    shift=st.sampled_from([0.0, -3.0, 1e4]),
)
def test_moments_of_a_pass_are_exact_however_far_it_has_moved_in_the_window(seed, kind, conv, shift):
    """The kernel's pivot is of the window's first inputs; here the second pass lies far from it."""
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    drawn = torch.Generator().manual_seed(seed)
    shape = (9, 5, 3, 2) if conv else (40, 5)
    first = torch.randn(shape, generator=drawn, dtype=kind)
    second = torch.randn(shape, generator=drawn, dtype=kind) * 0.3 + shift
    with relume.watch(model, every=1, window=10, min_inputs=1, axis=1) as watch:
        for x in (first, second):
            model(x.requires_grad_()).sum().backward()
        row = watch.record.traces["1"].series().table[1]
    z = second.detach().double().transpose(0, 1).flatten(1)
    for name, value in (("mean", z.mean(1)), ("std", z.std(1, correction=0)), ("max", z.amax(1)), ("min", z.amin(1))):
        torch.testing.assert_close(row[COLUMNS.index(name)], value, rtol=2e-3 if name == "std" else 1e-5, atol=1e-6)


class Sometimes(nn.Module):
    """Runs its producer in every pass, its site in every second."""

    def __init__(self):
        super().__init__()
        self.fc, self.out, self.n = nn.Linear(16, 8), nn.Linear(8, 1), 0

    def forward(self, x):
        self.n += 1
        y = self.fc(x)
        return self.out(F.relu(y) if self.n % 2 else y)


def test_a_site_that_some_passes_skip_is_split_only_against_its_own_pass_before():
    trace = fit(Sometimes(), steps=9).record.traces[":relu"]
    series = trace.series()
    assert series.steps == (0, 2, 4, 6, 8)
    change, parts = whole(series)
    torch.testing.assert_close(parts.total, change, rtol=1e-5, atol=1e-6)
    assert parts.remainder.abs().max() > 1e-3, "the mean input of a pass that it skipped belongs to no part"
    assert parts.weights.abs().max() == 0


def test_a_module_that_is_replaced_is_heard_again_and_the_sum_stays_whole():
    model = mlp()

    def replace(step, watch):
        if step == 5:
            model[0] = nn.Linear(16, 8)

    series = fit(model, steps=10, before=replace).record.traces["1"].series()
    change, parts = whole(series)
    torch.testing.assert_close(parts.total, change, rtol=1e-5, atol=1e-6)
    table = series.table[:, PARTS_AT:]
    rest = table[:, PARTS.index("remainder")].abs().amax(1)
    assert rest[5] > 1e-3 or table[5].abs().max() > 1e-2
    assert rest[8:].max() < 1e-5


def compiled(how):
    model = mlp()
    if how == "in place":
        model.compile(backend="eager")
        return model, model
    if how == "part":
        model[0] = torch.compile(model[0], backend="eager")
        return model, model
    return model, torch.compile(model, backend="eager")


@pytest.mark.parametrize("how", ["whole", "part", "in place"])
def test_compiled_code_is_made_once_and_has_no_hook_of_the_record_in_it(how):
    def made(diagnose):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model, called = compiled(how)
        watch = fit(model, called=called, steps=9, every=3, diagnose=diagnose)
        return watch, dict(torch._dynamo.utils.counters["stats"]), model.state_dict()

    _, bare, expected = made(False)
    watch, graphs, state = made(True)
    assert graphs == bare
    assert all(torch.equal(v, expected[k]) for k, v in state.items())
    assert [(t.producers, t.passes) for t in watch.record.traces.values()] == [(("0",), 3), (("2",), 3)]


def test_under_autocast_responses_are_computed_as_precisely_as_the_weights():
    model, x = mlp(), torch.randn(64, 16)
    w, b = model[0].weight.detach().double().clone(), model[0].bias.detach().double().clone()
    with relume.watch(model, every=1, min_inputs=1) as watch:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(x).float().sum().backward()
        row = watch.record.traces["1"].series().table[0]
    torch.testing.assert_close(row[COLUMNS.index("response_level")], w @ x.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(row[COLUMNS.index("bias_level")], b, rtol=1e-6, atol=1e-7)
    assert model[0].weight.grad is not None, "a cast of the weight that autocast keeps would have cost it its gradient"


class Helped(nn.Module):
    """Another thread uses one of its layers while a pass lasts."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        helper = threading.Thread(target=lambda: self.body[0](torch.zeros(2, 16)))
        helper.start()
        helper.join()
        return self.body(x)


def test_what_another_thread_calls_is_not_heard():
    for trace in fit(Helped()).record.traces.values():
        assert trace.unknown == ""
        assert whole(trace.series())[1].remainder.abs().max() < 1e-5


def test_a_graph_that_saves_tensors_by_hooks_is_not_asked_for_them():
    """To read what batch norm has saved would run the hook by which a checkpoint computes a segment again."""

    def unpacked(diagnose):
        calls = []
        model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        with relume.watch(model, every=1, diagnose=diagnose, min_inputs=1) as watch:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: calls.append(0) or t):
                loss = model(torch.randn(32, 16)).sum()
            before = len(calls)
            loss.backward()
        return before, watch

    assert unpacked(False)[0] == unpacked(True)[0] == 0
    row = unpacked(True)[1].record.traces["2"].series().table[0]
    assert row[:PARTS_AT].isfinite().all()


def test_statistics_that_batch_norm_saved_are_those_of_the_batch():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
    watch = fit(nn.Sequential(nn.Unflatten(1, (1, 4, 4)), *model), steps=8)
    change, parts = whole(watch.record.traces["3"].series())
    torch.testing.assert_close(parts.total, change, rtol=1e-4, atol=1e-5)
    assert parts.remainder.abs().max() < 1e-5
    assert parts.statistics.abs().max() > 1e-3


@pytest.mark.parametrize("where", ["tell", "add", "end_window"])
def test_an_error_in_the_record_is_said_once_and_ends_neither_training_nor_counting(where, monkeypatch):
    monkeypatch.setattr(tracker, "STRICT", False)
    real = getattr(Trace, where)

    def fails(self, *args, **kwargs):
        if self.passes >= 2:
            raise RuntimeError("a bug")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Trace, where, fails)
    model = mlp()
    with pytest.warns(relume.RelumeWarning, match="a bug") as said:
        watch = fit(model)
    assert len([w for w in said if "a bug" in str(w.message)]) == 1
    assert "a bug" in watch.record.off
    assert watch.step == 8
    assert watch.census("all")["1"].inputs == 8 * 32
    assert not any(m._forward_hooks for m in model.modules())


def test_an_error_in_a_hook_of_the_record_does_not_reach_the_model(monkeypatch):
    monkeypatch.setattr(tracker, "STRICT", False)
    monkeypatch.setattr(listening, "why_unknown", lambda module: 1 / 0)
    model = nn.Sequential(nn.Unflatten(1, (1, 16)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 1))
    with pytest.warns(relume.RelumeWarning, match="ZeroDivisionError"):
        watch = fit(model)
    assert "ZeroDivisionError" in watch.record.off
    assert watch.census("all")["2"].inputs == 8 * 32


def test_too_many_units_for_the_memory_are_counted_without_a_record_and_a_note_says_so():
    watch = fit(mlp(), before=lambda step, watch: step or Record.on(watch, limit=4_000))
    assert watch.record.off
    assert watch.record.nbytes == 0
    assert any("not what caused them" in note for note in watch.notes)
    assert watch.census("all")["3"].inputs == 8 * 32


def test_with_less_memory_windows_alone_are_kept_and_no_change_is_lost():
    torch.manual_seed(0)
    model = mlp()
    few = fit(model, steps=40, before=lambda step, watch: step or Record.on(watch, limit=12_000))
    torch.manual_seed(0)
    all_rows = fit(mlp(), steps=40)
    short, long = (w.record.traces["3"] for w in (few, all_rows))
    assert short.rows == 0
    assert few.record.nbytes <= 12_000
    a, b = whole(short.series()), whole(long.series())
    assert len(short.series()) < len(long.series()) == 40
    for name in PARTS:
        torch.testing.assert_close(getattr(a[1], name), getattr(b[1], name), rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_steps():
    seen = {}
    fit(
        mlp(), steps=1400, window=2,
        before=lambda step, watch: seen.setdefault(step, watch.record.nbytes) if step in (700, 1399) else None,
    )  # fmt: skip
    assert seen[1399] <= 1.6 * seen[700], "windows are thinned once there are more than 512"


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), transposed=st.booleans())
def test_a_sample_is_a_view_of_the_weight_and_small(rows, columns, transposed):
    numbers = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
    weight = numbers.t() if transposed else numbers
    chosen = sampled(weight)
    assert chosen.numel() == min(weight.numel(), chosen.numel()) <= SAMPLE
    assert chosen.numel() >= min(weight.numel(), SAMPLE // 2)
    assert len(chosen.flatten().unique()) == chosen.numel(), "no number is in it twice"
    assert set(chosen.flatten().tolist()) <= set(numbers.flatten().tolist())


def test_norms_of_large_weights_are_estimated_from_the_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    before = model[2].weight.detach().clone()
    watch = fit(model, steps=1)
    (row,) = watch.record.steps.rows
    grad, change = model[2].weight.grad, model[2].weight.detach() - before
    assert row.weight["2"] == pytest.approx(before.norm().item(), rel=0.05)
    assert row.gradient["2"] == pytest.approx(grad.norm().item(), rel=0.35)
    assert row.update["2"] == pytest.approx((change.norm() / before.norm()).item(), rel=0.35)
