"""`Meter` against brute force: any layout, dtype, memory format and activation, with NaN and infinity anywhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import relume
from relume.activations import Activation
from relume.activations import catalogue as of
from relume.census import Counts
from relume.sites import Plan
from relume.sites import layout as lay
from relume.sites.layout import INPUT, OTHER, UNIT
from relume.sites.plan import plan_for
from relume.watch import meters
from relume.watch.kernels import ROOM
from relume.watch.meters import Meter, collect

CPU = torch.device("cpu")
ENTRIES = [
    of.relu(), of.hardtanh(0.0, 6.0), of.hardtanh(-1.0, 1.0), of.threshold(0.5, 0.0), of.leaky_relu(), of.prelu(),
    of.rrelu(), of.elu(), of.selu(), of.celu(), of.gelu(), of.gelu("tanh"), of.quick_gelu(), of.silu(), of.mish(),
    of.softplus(), of.sigmoid(), of.tanh(), of.softsign(), of.tanhshrink(), of.logsigmoid(), of.softshrink(),
    of.hardshrink(), of.hardswish(), of.hardsigmoid(), of.glu(),
]  # fmt: skip
either_way = pytest.mark.parametrize("look", [True, False], ids=["looks", "never-looks"])

# Random layouts


@st.composite
def layouts(draw) -> lay.Layout:
    """Up to four axes in any order: inputs, units (on one or two), others; one may be split into inputs and others."""
    axes = [lay.axis_of(draw(st.integers(1, 5)), UNIT)]
    if draw(st.booleans()):
        axes.append(lay.axis_of(draw(st.integers(1, 3)), UNIT))
    if draw(st.booleans()):
        axes.append(lay.axis_of(draw(st.integers(1, 4)), OTHER))
    inputs = draw(st.integers(1, 6))
    if draw(st.booleans()):  # x.view(B * T, D)
        axes.append((lay.Factor(inputs, INPUT), lay.Factor(draw(st.integers(1, 4)), OTHER)))
    else:
        axes.append(lay.axis_of(inputs, INPUT))
    return tuple(draw(st.permutations(axes)))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def tensors(draw, layout: lay.Layout, dtype: torch.dtype, bad: bool) -> Tensor:
    """Values on both sides of every edge, contiguous or not."""
    shape = [lay.size_of(a) for a in layout]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * draw(st.sampled_from([0.1, 2.0, 8.0]))
    x = torch.where(torch.rand(shape, generator=generator) < 0.2, x.round(), x).to(dtype)  # the edges themselves
    if bad:
        for value in (math.nan, math.inf, -math.inf):
            x[torch.rand(shape, generator=generator) < 0.15] = value
    match draw(st.sampled_from(["plain", "transposed", "strided", "expanded"])):
        case "transposed":
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
        case "strided":
            x = torch.stack([x, torch.full_like(x, 9.0)], -1)[..., 0]
        case "expanded":
            x = x[:1].expand(shape)
    return x


# Brute force: one unit, one input, one sample at a time, in Python's own numbers


def reference(calls: list[tuple[Tensor, Tensor, lay.Layout, Activation, int]], units: int) -> dict[str, list]:
    seen: list[list[tuple[int, int, float, float]]] = [[] for _ in range(units)]  # (call, input, x, |y|) per unit
    for number, (x, y, layout, _, _) in enumerate(calls):
        factors = [f for axis in layout for f in axis]
        x, y = (t.double().reshape([f.size for f in factors]) for t in (x, y))
        for index in torch.cartesian_prod(*(torch.arange(f.size) for f in factors)).reshape(-1, len(factors)).tolist():
            unit = who = 0
            for i, factor in zip(index, factors, strict=True):
                if factor.role == UNIT:
                    unit = unit * factor.size + i
                if factor.role == INPUT:
                    who = who * factor.size + i
            seen[unit].append((number, who, float(x[tuple(index)]), abs(float(y[tuple(index)]))))

    result: dict[str, list] = {n: [] for n in Counts.__dataclass_fields__ if n not in ("inputs", "samples")}
    for samples in seen:
        good = [s for s in samples if math.isfinite(s[2])]

        def inside(number: int, value: float, name: str) -> bool:
            zone = getattr(calls[number][3], name)
            wide = calls[number][0].dtype == torch.float64
            # Edges are compared in the samples' own precision, as torch's functions do.
            edges = torch.tensor(zone.intervals, dtype=torch.float64 if wide else torch.float32).tolist()
            return any(a <= value <= b for a, b in edges)

        firing = {(n, who) for n, who, v, _ in good if not inside(n, v, "flat")}
        values = [v for _, _, v, _ in good]
        mean = math.fsum(values) / len(values) if values else math.nan
        result["fired"].append(len(firing))
        result["samples_fired"].append(sum(not inside(n, v, "counted_zone") for n, _, v, _ in good))
        result["mean"].append(mean)
        result["m2"].append(math.fsum((v - mean) ** 2 for v in values))
        result["max"].append(max(values, default=-math.inf))
        result["min"].append(min(values, default=math.inf))
        result["output"].append(math.fsum(y for *_, y in good if math.isfinite(y)))
        result["nonfinite"].append(len(samples) - len(good))
        steps = [calls[n][4] for n, _ in firing]
        result["first_fired"].append(min(steps, default=-1))
        result["last_fired"].append(max(steps, default=-1))
    return result


EXACT = ("fired", "samples_fired", "max", "min", "nonfinite", "first_fired", "last_fired")


def agrees(counts: Counts, expected: dict[str, list], rtol: float = 2e-6) -> None:
    for name in EXACT:
        assert getattr(counts, name).tolist() == expected[name], name
    known = torch.tensor([not math.isnan(m) for m in expected["mean"]])
    for name in ("mean", "m2", "output"):
        theirs = torch.tensor(expected[name], dtype=torch.float64)
        scale = max(1.0, float(theirs[known].abs().max()) if known.any() else 1.0)
        if name == "m2" and known.any():  # the difference of sums of squares, where the pivot is off
            scale += counts.samples * float(counts.mean[known].square().max())
        torch.testing.assert_close(getattr(counts, name)[known], theirs[known], rtol=rtol, atol=rtol * scale)


def apply(activation: Activation, x: Tensor) -> Tensor:
    return activation.function(x.double()).to(x.dtype)


@settings(max_examples=150, deadline=None)
@given(st.data(), layouts(), st.sampled_from(DTYPES), st.sampled_from(ENTRIES), st.booleans(), st.booleans())
def test_a_meter_counts_what_brute_force_counts(data, layout, dtype, activation, bad, look) -> None:
    plan = plan_for(layout, lay.count(layout, INPUT))
    meter = Meter(plan.n_units, CPU, look=look)
    calls = []
    for step in data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True).map(sorted)):
        x = data.draw(tensors(layout, dtype, bad))
        before, y = x.clone(), apply(activation, x)
        meter.observe(x, plan, activation, step)(y)
        assert torch.equal(x, before) or bad  # never written
        calls.append((x, y, layout, activation, step))
    (counts,) = collect([meter])
    assert counts.inputs == len(calls) * plan.n_inputs
    assert counts.samples == len(calls) * plan.n_samples
    agrees(counts, reference(calls, plan.n_units))


@settings(max_examples=60, deadline=None)
@given(st.data(), layouts(), st.sampled_from(DTYPES), st.sampled_from(ENTRIES), st.booleans())
def test_looking_at_values_changes_no_count(data, layout, dtype, activation, bad) -> None:
    plan = plan_for(layout, lay.count(layout, INPUT))
    pair = [Meter(plan.n_units, CPU, look=look) for look in (True, False)]
    for step in range(2):
        x = data.draw(tensors(layout, dtype, bad))
        for meter in pair:
            meter.observe(x, plan, activation, step)(apply(activation, x))
    looked, blind = collect(pair)
    for name in EXACT:
        assert torch.equal(getattr(looked, name), getattr(blind, name)), name


@pytest.mark.parametrize("activation", ENTRIES, ids=lambda a: a.formula)
@either_way
def test_every_entry_of_the_catalogue_is_counted_rightly_around_nan_and_infinity(activation, look) -> None:
    layout = (lay.axis_of(7, INPUT), lay.axis_of(3, UNIT), lay.axis_of(2))
    plan = plan_for(layout, 7)
    x = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(1)) * 6
    x[0, 0], x[1, 1, 0], x[2, 1, 1], x[:, 2] = math.nan, math.inf, -math.inf, math.nan
    meter = Meter(3, CPU, look=look)
    y = apply(activation, x)
    meter.observe(x, plan, activation, 5)(y)
    agrees(collect([meter])[0], reference([(x, y, layout, activation, 5)], 3))


# Numerics


def dense(inputs: int, units: int) -> tuple[Plan, lay.Layout]:
    layout = (lay.axis_of(inputs, INPUT), lay.axis_of(units, UNIT))
    return plan_for(layout, inputs), layout


@either_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_spread_are_tight_where_the_mean_is_a_million_spreads(dtype: torch.dtype, look: bool) -> None:
    plan, _ = dense(400, 3)
    meter = Meter(3, CPU, look=look)
    centre = torch.tensor([1e6, -3e4, 0.0], dtype=dtype)
    # Spreads that the dtype can resolve at that mean.
    spread = torch.tensor([1.0, 0.05, 1e-4] if dtype == torch.float32 else [1e-2, 1e-3, 1e-6], dtype=dtype)
    windows = []
    for _ in range(3):
        batches = [centre + spread * torch.randn(400, 3, dtype=dtype) for _ in range(5)]
        for x in batches:
            meter.observe(x, plan, of.relu(), 0)(torch.relu(x))
        windows.append((torch.cat(batches).double(), collect([meter])[0]))
    for x, counts in windows:
        torch.testing.assert_close(counts.mean, x.mean(0), rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(counts.m2, x.var(0, correction=0) * len(x), rtol=1e-5, atol=0)


@either_way
def test_a_mean_that_moves_far_between_windows_is_followed(look: bool) -> None:
    plan, _ = dense(500, 1)
    meter = Meter(1, CPU, look=look)
    for centre in (0.0, 1e5, 1e30, 1.0, -1e5):  # a network that diverged, and came back
        x = centre + torch.randn(500, 1)
        meter.observe(x, plan, of.relu(), 0)
        (counts,) = collect([meter])
        torch.testing.assert_close(counts.mean, x.double().mean(0), rtol=1e-6, atol=1e-6)
        if centre < 1e30:
            torch.testing.assert_close(counts.m2, x.double().var(0, correction=0) * 500, rtol=1e-5, atol=0)


def test_the_pivot_is_one_number_in_every_dtype() -> None:
    """A model that is turned from float64 to float32 within a window."""
    plan, _ = dense(500, 1)
    x = 1e6 + 1 / 3 + torch.randn(500, 1, dtype=torch.float64)
    meter = Meter(1, CPU)
    meter.observe(x, plan, of.relu(), 0)
    meter.observe(x.float(), plan, of.relu(), 1)
    both = torch.cat([x, x.float().double()])
    torch.testing.assert_close(collect([meter])[0].mean, both.mean(0), rtol=0, atol=1e-6)


def test_nan_in_the_very_first_batch_does_not_spoil_the_pivot() -> None:
    plan, _ = dense(500, 1)
    x = 1e5 + torch.randn(500, 1)
    x[0] = math.nan
    meter = Meter(1, CPU, look=False)
    meter.observe(x, plan, of.relu(), 0)
    torch.testing.assert_close(collect([meter])[0].m2, x[1:].double().var(0, correction=0) * 499, rtol=1e-5, atol=0)


@either_way
def test_values_whose_squares_float32_does_not_hold_leave_finite_counts(look: bool) -> None:
    plan, _ = dense(4, 1)
    x = torch.tensor([[3e38], [-3e38], [1e30], [-1.0]])
    meter = Meter(1, CPU, look=look)
    meter.observe(x, plan, of.leaky_relu(), 0)(x)
    for _ in range(2):
        (counts,) = collect([meter])
        assert counts.nonfinite.tolist() == [0]
        assert all(bool(torch.isfinite(v).all()) for v in (counts.mean, counts.m2, counts.output))
        meter.observe(torch.ones(4, 1), plan, of.leaky_relu(), 1)(torch.ones(4, 1))
    assert counts.mean.item() == pytest.approx(1.0)


def test_on_the_cpu_such_values_are_summed_in_float64() -> None:
    plan, _ = dense(4, 1)
    x = torch.tensor([[3e38], [-3e38], [1e30], [-1.0]])
    meter = Meter(1, CPU)
    meter.observe(x, plan, of.leaky_relu(), 0)(x)
    (counts,) = collect([meter])
    assert counts.m2.item() == pytest.approx(float((x.double() - x.double().mean()).square().sum()), rel=1e-9)
    assert counts.output.item() == pytest.approx(6e38, rel=1e-6)


@either_way
def test_an_output_that_overflows_does_not_enter_the_sum(look: bool) -> None:
    plan, _ = dense(2, 2)
    meter = Meter(2, CPU, look=look)
    meter.observe(torch.tensor([[300.0, 1.0], [2.0, 1.0]]).half(), plan, of.silu(), 0)(
        torch.tensor([[math.inf, 1.0], [4.0, 1.0]]).half()
    )
    assert collect([meter])[0].output.tolist() == [4.0, 2.0]


@either_way
def test_counts_stay_exact_beyond_what_float32_counts(look: bool) -> None:
    """17 observations of 2^20 samples: more ones than float32 tells apart."""
    plan, _ = dense(1 << 20, 1)
    x = torch.ones(1 << 20, 1)
    x[0] = -1.0
    meter = Meter(1, CPU, look=look)
    for step in range(17):
        meter.observe(x, plan, of.relu(), step)
    (counts,) = collect([meter])
    assert counts.samples > 2**24
    assert counts.fired.tolist() == counts.samples_fired.tolist() == [17 * (2**20 - 1)]


@either_way
@pytest.mark.parametrize("axis", ["inputs", "positions"])
def test_one_observation_of_more_samples_than_float32_counts_is_exact(axis: str, look: bool) -> None:
    n = 2**24 + 3
    layout = (
        lay.axis_of(n if axis == "inputs" else 1, INPUT),
        lay.axis_of(1, UNIT),
        lay.axis_of(1 if axis == "inputs" else n),
    )
    plan = plan_for(layout, n if axis == "inputs" else 1)
    meter = Meter(1, CPU, look=look)
    x = torch.ones(1).expand(n).reshape([lay.size_of(a) for a in layout])
    meter.observe(x, plan, of.relu(), 0)
    (counts,) = collect([meter])
    assert counts.samples_fired.tolist() == [n]
    assert counts.nonfinite.tolist() == [0]


# Life


@either_way
def test_reading_resets_unless_told_otherwise_and_windows_are_apart(look: bool) -> None:
    plan, layout = dense(50, 3)
    meter = Meter(3, CPU, look=look)
    batches = [torch.randn(50, 3) * (i + 1) - i for i in range(4)]
    for step, x in enumerate(batches):
        meter.observe(x, plan, of.relu(), step)(torch.relu(x))
        if step == 1:
            peeked, taken = collect([meter], reset=False)[0], collect([meter])[0]
            assert all(torch.equal(getattr(peeked, n), getattr(taken, n)) for n in EXACT)
    calls = [(x, torch.relu(x), layout, of.relu(), i) for i, x in enumerate(batches)]
    agrees(taken, reference(calls[:2], 3))
    agrees(collect([meter])[0], reference(calls[2:], 3))
    assert collect([meter])[0].samples == 0


def test_what_was_read_does_not_change_with_the_meter() -> None:
    plan, _ = dense(50, 3)
    meter = Meter(3, CPU)
    meter.observe(torch.randn(50, 3), plan, of.relu(), 0)
    (counts,) = collect([meter], reset=False)
    before = {n: getattr(counts, n).clone() for n in EXACT}
    meter.observe(torch.randn(50, 3) * 9, plan, of.relu(), 1)
    assert all(torch.equal(getattr(counts, n), v) for n, v in before.items())


def test_layouts_may_change_from_call_to_call() -> None:
    """Sequences of several lengths, a last batch that is smaller."""
    meter = Meter(3, CPU)
    calls = []
    for step, (inputs, length) in enumerate([(4, 5), (4, 2), (1, 7)]):
        layout = (lay.axis_of(inputs, INPUT), lay.axis_of(length), lay.axis_of(3, UNIT))
        x = torch.randn(inputs, length, 3)
        meter.observe(x, plan_for(layout, inputs), of.relu(), step)(torch.relu(x))
        calls.append((x, torch.relu(x), layout, of.relu(), step))
    (counts,) = collect([meter])
    assert (counts.inputs, counts.samples) == (9, 35)
    agrees(counts, reference(calls, 3))


def test_several_meters_are_read_together_each_as_its_own() -> None:
    several, expected = [], []
    for units in (1, 4, 2):
        plan, layout = dense(20, units)
        x = torch.randn(20, units)
        several.append(Meter(units, CPU))
        several[-1].observe(x, plan, of.relu(), 3)(torch.relu(x))
        expected.append(reference([(x, torch.relu(x), layout, of.relu(), 3)], units))
    for counts, theirs in zip(collect(several), expected, strict=True):
        agrees(counts, theirs)


def test_rows_that_cannot_be_traced_to_inputs_bound_how_many_fired() -> None:
    layout = (lay.axis_of(12), lay.axis_of(2, UNIT))
    plan = plan_for(layout, 4)  # four inputs, twelve rows
    assert not plan.inputs_known
    x = -torch.ones(12, 2)
    x[:6, 1] = 1.0
    meter = Meter(2, CPU)
    meter.observe(x, plan, of.relu(), 0)
    (counts,) = collect([meter])
    assert (counts.inputs, counts.samples) == (4, 12)
    assert counts.fired.tolist() == [0, 4]
    assert counts.samples_fired.tolist() == [0, 6]


@pytest.mark.parametrize(
    ("activation", "shape", "dtype", "bad", "expected"),
    [
        (of.relu(), (2, 3), torch.float32, False, 48),
        (of.relu(), (2, 3), torch.bfloat16, False, 48),
        (of.tanh(), (2, 3), torch.float32, False, 52),  # fired and samples fired are two numbers
        (of.relu(), (2, 3, 4), torch.float32, False, 52),
        (of.relu(), (2, 3, 4), torch.float32, True, 56),
        (of.relu(), (2, 3, 4), torch.float64, True, 64),
    ],
)
def test_state_is_a_fixed_number_of_bytes_however_long_the_run(activation, shape, dtype, bad, expected) -> None:
    layout = tuple(lay.axis_of(s, r) for s, r in zip(shape, (INPUT, UNIT, OTHER), strict=False))
    plan = plan_for(layout, shape[0])
    meter = Meter(3, CPU)
    x = torch.randn(shape).to(dtype)
    if bad:
        x[0, 0] = math.nan
    kept = set(vars(meter))
    for step in range(3000):
        meter.observe(x, plan, activation, step)(activation.function(x))
    assert meter.state_bytes == sum(row.untyped_storage().nbytes() for row in meter.state.rows().values())
    assert meter.state_bytes == 3 * expected
    assert set(vars(meter)) == kept
    assert collect([meter])[0].inputs == 6000
    assert meter.state is None
    assert meter.state_bytes == 3 * expected


def everything(counts: Counts) -> dict[str, list]:
    return {n: getattr(counts, n).tolist() for n in EXACT} | {"seen": [counts.inputs, counts.samples]}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_beyond_32_bits_are_exact(fused: bool, dtype: torch.dtype) -> None:
    """As if 2^31 samples had been counted: what comes then must go on where they were."""
    layout = (lay.axis_of(4, INPUT), lay.axis_of(2, UNIT), lay.axis_of(5))
    plan = plan_for(layout, 4)
    x = torch.randn(4, 2, 5, dtype=dtype) + 9
    meter = Meter(2, CPU, fused=fused)
    meter.observe(x, plan, of.relu(), 0)(x)
    meter.observe(x, plan, of.relu(), 1)(x)
    already = ROOM - 80  # with the 40 that were, room for two more observations of 20 samples
    for row in (meter.state.fired, meter.state.samples_fired):
        row.add_(already)
    meter.inputs, meter.samples = already + 8, already + 40
    for step in range(2, 7):
        meter.observe(x, plan, of.relu(), step)(x)
    (counts,) = collect([meter])
    assert counts.fired.tolist() == [already + 7 * 4] * 2
    assert counts.samples_fired.tolist() == [already + 7 * 20] * 2
    assert counts.samples_fired.min() > ROOM
    assert counts.merge(counts).samples_fired.tolist() == [2 * (already + 7 * 20)] * 2


def test_two_counts_of_32_bits_add_up_to_more() -> None:
    meter = Meter(1, CPU)
    plan, _ = dense(4, 1)
    meter.observe(torch.ones(4, 1), plan, of.relu(), 0)
    meter.state.fired.fill_(ROOM)
    meter.inputs = meter.samples = ROOM
    (counts,) = collect([meter])
    assert counts.kept("fired").dtype == torch.int32
    twice = counts.merge(counts)
    assert twice.fired.tolist() == twice.samples_fired.tolist() == [2 * ROOM]


@pytest.mark.parametrize("fused", [True, False])
def test_steps_beyond_32_bits_are_noted_exactly(fused: bool) -> None:
    plan, _ = dense(4, 2)
    x = torch.tensor([[1.0, -1.0]] * 4)
    meter = Meter(2, CPU, fused=fused)
    for step in range(ROOM - 2, ROOM + 3):
        meter.observe(x, plan, of.relu(), step)
        x = torch.ones(4, 2)
    (counts,) = collect([meter])
    assert counts.first_fired.tolist() == [ROOM - 2, ROOM - 1]
    assert counts.last_fired.tolist() == [ROOM + 2] * 2
    assert counts.fired.tolist() == [20, 16]


@pytest.mark.parametrize("fused", [True, False])
def test_kinds_of_samples_may_change_within_a_window(fused: bool) -> None:
    """float32 then float64; one sample to an input, then several; and all the while the counts are those of each."""
    flat, deep = (
        (lay.axis_of(6, INPUT), lay.axis_of(3, UNIT)),
        (lay.axis_of(6, INPUT), lay.axis_of(3, UNIT), lay.axis_of(4)),
    )
    calls = []
    meter = Meter(3, CPU, fused=fused)
    kinds = [(flat, torch.float32), (deep, torch.float32), (flat, torch.float64), (deep, torch.float32)]
    for step, (layout, dtype) in enumerate([kind for kind in kinds for _ in range(2)]):
        x = torch.randn([lay.size_of(a) for a in layout], dtype=torch.float64).to(dtype)
        meter.observe(x, plan_for(layout, 6), of.relu(), step)(torch.relu(x))
        calls.append((x, torch.relu(x), layout, of.relu(), step))
    agrees(collect([meter])[0], reference(calls, 3))


def test_a_window_once_read_is_kept_without_a_copy_and_no_wider_than_it_was_counted() -> None:
    plan, _ = dense(50, 1000)
    meter = Meter(1000, CPU)
    x = torch.randn(50, 1000)
    meter.observe(x, plan, of.relu(), 0)(torch.relu(x))
    rows = {row.data_ptr() for row in meter.state.rows().values()}
    (counts,) = collect([meter])
    assert counts.nbytes == 1000 * 36
    assert {counts.kept(n).data_ptr() for n in ("fired", "mean", "max", "min", "first_fired", "last_fired")} <= rows
    assert {counts.fired.dtype, counts.last_fired.dtype} == {torch.int64}
    assert {counts.mean.dtype, counts.m2.dtype, counts.max.dtype, counts.output.dtype} == {torch.float64}


def test_states_are_brought_from_a_device_row_by_row_unmixed(monkeypatch) -> None:
    """As from a GPU: all in one transfer of bytes, whatever their numbers of units; or a few at a time."""
    for limit in (meters._TRANSFER, 100):
        monkeypatch.setattr(meters, "_TRANSFER", limit)
        several = [Meter(units, CPU) for units in (3, 1, 6)]
        for meter in several:
            plan, _ = dense(50, meter.units)
            x = torch.randn(50, meter.units)
            meter.observe(x, plan, of.tanh(), 7)(torch.tanh(x))
        brought = [b for batch in meters._batches(several) for b in meters._brought([several[i].state for i in batch])]
        for meter, theirs in zip(several, brought, strict=True):
            rows = meter.state.rows()
            assert list(theirs.rows()) == list(rows)
            assert all(torch.equal(row, theirs.rows()[name]) for name, row in rows.items())


def test_channels_last_is_counted_like_any_other_memory_format() -> None:
    layout = (lay.axis_of(4, INPUT), lay.axis_of(3, UNIT), lay.axis_of(5), lay.axis_of(6))
    plan = plan_for(layout, 4)
    x = torch.randn(4, 3, 5, 6)
    found = []
    for value in (x, x.to(memory_format=torch.channels_last)):
        meter = Meter(3, CPU)
        meter.observe(value, plan, of.relu(), 0)(torch.relu(value))
        found.append(collect([meter])[0])
        agrees(found[-1], reference([(x, torch.relu(x), layout, of.relu(), 0)], 3))


def test_an_empty_batch_among_others_counts_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    batches = [torch.randn(20, 4), torch.randn(0, 4), torch.randn(20, 4)]
    with_empty, without = relume.census(model, batches), relume.census(model, batches[::2])
    assert with_empty["1"].inputs == 40
    assert torch.equal(with_empty["1"].fired, without["1"].fired)


def test_counting_leaves_no_trace_in_autograd_and_needs_none() -> None:
    plan, _ = dense(8, 3)
    x = torch.randn(8, 3, requires_grad=True)
    h = x * 2
    meter = Meter(3, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        meter.observe(h, plan, of.relu(), 0)(torch.relu(h))
    assert h._version == 0
    assert not any(row.requires_grad for row in meter.state.rows().values())
    (grad,) = torch.autograd.grad(h.sum(), x)
    assert torch.equal(grad, torch.full((8, 3), 2.0))


def test_a_meter_made_in_inference_mode_serves_outside_of_it() -> None:
    plan, _ = dense(8, 3)
    with torch.inference_mode():
        meter = Meter(3, CPU)
        meter.observe(torch.ones(8, 3), plan, of.relu(), 0)(torch.ones(8, 3))
    meter.observe(torch.ones(8, 3), plan, of.relu(), 1)(torch.ones(8, 3))
    assert collect([meter])[0].fired.tolist() == [16, 16, 16]


# Synchronisation


class Looked(TorchDispatchMode):
    """Names of the operations by which a program waits for a device: values or data-dependent shapes read back."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "isin")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITING or (name.startswith("index") and any(a.dtype == torch.bool for a in _tensors(args))):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, tuple | list) else []


@pytest.mark.parametrize("activation", ENTRIES, ids=lambda a: a.formula)
def test_on_a_device_nothing_is_read_back_within_a_window(activation: Activation) -> None:
    layout = (lay.axis_of(6, INPUT), lay.axis_of(3, UNIT), lay.axis_of(2))
    plan = plan_for(layout, 6)
    x = torch.randn(6, 3, 2)
    meter = Meter(3, CPU, look=False)
    str(activation.counted_zone)  # worked out when it is first asked for, on the CPU
    with Looked() as looked:
        for step in range(3):
            meter.observe(x, plan, activation, step)(apply(activation, x))
        meter.reset()
    assert looked.seen == []


def test_the_watch_for_reading_back_does_see_it() -> None:
    plan, _ = dense(6, 3)
    with Looked() as looked:
        Meter(3, CPU, look=True, fused=False).observe(torch.randn(6, 3), plan, of.relu(), 0)
    assert "_local_scalar_dense" in looked.seen
