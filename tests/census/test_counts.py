"""`Counts.merge`: counts of a stream are the same however it is cut."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relume.census import Counts

WHOLE = ("fired", "samples_fired", "nonfinite", "first_fired", "last_fired", "max", "min")


def counts_of(x: np.ndarray, first_step: int) -> Counts:
    """Counts of samples [steps, units] of a ReLU, one input per step, straight from the definitions in numpy."""
    steps = np.arange(first_step, first_step + len(x))[:, None]
    good = np.isfinite(x)
    fires = good & (x > 0)
    n = good.sum(0)
    values = np.where(good, x, 0.0)
    mean = values.sum(0) / np.maximum(n, 1)
    every = {
        "fired": fires.sum(0),
        "samples_fired": fires.sum(0),
        "mean": mean,
        "m2": np.where(good, (values - mean) ** 2, 0.0).sum(0),
        "max": np.where(good, x, -np.inf).max(0, initial=-np.inf),
        "min": np.where(good, x, np.inf).min(0, initial=np.inf),
        "output": np.where(fires, x, 0.0).sum(0),
        "nonfinite": (~good).sum(0),
        "first_fired": np.where(fires.any(0), np.where(fires, steps, 10**9).min(0, initial=10**9), -1),
        "last_fired": np.where(fires, steps, -1).max(0, initial=-1),
    }
    return Counts(len(x), len(x), **{k: torch.from_numpy(np.asarray(v)) for k, v in every.items()})


@st.composite
def streams(draw) -> np.ndarray:
    units, steps = draw(st.integers(1, 4)), draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    centre = draw(st.sampled_from([0.0, -3.0, 1e6, -1e6]))
    x = centre + rng.standard_normal((steps, units)) * draw(st.sampled_from([1.0, 1e-2]))
    x[rng.random(x.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = draw(
        st.sampled_from([math.nan, math.inf, -math.inf])
    )
    return x


def merged(parts: list[Counts], units: int) -> Counts:
    total = Counts.empty(units)
    for part in parts:
        total = total.merge(part)
    return total


def same(a: Counts, b: Counts, x: np.ndarray) -> None:
    assert (a.inputs, a.samples) == (b.inputs, b.samples)
    for name in WHOLE:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.output, b.output, rtol=1e-12, atol=1e-12)
    seen = a.finite > 0
    size = float(np.abs(x[np.isfinite(x)]).max(initial=1.0))
    torch.testing.assert_close(a.mean[seen], b.mean[seen], rtol=0, atol=1e-15 * size * 8)
    # One rounding of a number of that size, squared, for each sample: what float64 can do at all.
    torch.testing.assert_close(a.m2[seen], b.m2[seen], rtol=1e-6, atol=len(x) * (1e-15 * size) ** 2 * 100)


@settings(max_examples=150, deadline=None)
@given(streams(), st.lists(st.integers(0, 40), max_size=6))
def test_a_stream_cut_at_any_places_adds_up_to_the_whole(x: np.ndarray, cuts: list[int]) -> None:
    edges = [0, *sorted(min(c, len(x)) for c in cuts), len(x)]
    parts = [counts_of(x[a:b], a) for a, b in itertools.pairwise(edges)]
    same(merged(parts, x.shape[1]), counts_of(x, 0), x)


@settings(max_examples=80, deadline=None)
@given(streams(), st.integers(0, 40), st.integers(0, 40))
def test_merging_is_associative(x: np.ndarray, i: int, j: int) -> None:
    i, j = sorted((min(i, len(x)), min(j, len(x))))
    a, b, c = counts_of(x[:i], 0), counts_of(x[i:j], i), counts_of(x[j:], j)
    same(a.merge(b).merge(c), a.merge(b.merge(c)), x)


def test_mean_and_deviation_survive_a_mean_a_hundred_million_deviations_from_zero() -> None:
    x = 1e6 + np.random.default_rng(0).standard_normal((4000, 3)) * 1e-2
    total = merged([counts_of(x[i : i + 40], i) for i in range(0, 4000, 40)], 3)
    np.testing.assert_allclose(total.mean.numpy(), x.mean(0), rtol=2e-14, atol=0)
    np.testing.assert_allclose((total.m2 / 4000).sqrt().numpy(), x.std(0), rtol=1e-9)


def test_nothing_is_neutral_on_either_side() -> None:
    x = np.random.default_rng(1).standard_normal((20, 3))
    some, none = counts_of(x, 5), Counts.empty(3)
    for total in (some.merge(none), none.merge(some)):
        for name in (*WHOLE, "mean", "m2", "output"):
            assert torch.equal(getattr(total, name), getattr(some, name)), name


def test_a_span_of_nothing_but_nan_changes_no_moment() -> None:
    x = np.random.default_rng(1).standard_normal((20, 2))
    total = counts_of(x, 0).merge(counts_of(np.full((5, 2), np.nan), 20))
    assert torch.equal(total.mean, counts_of(x, 0).mean)
    assert total.nonfinite.tolist() == [5, 5]
    assert total.finite.tolist() == [20, 20]


def test_the_first_firing_is_the_earlier_spans_and_the_last_the_later_ones() -> None:
    early, late = counts_of(np.array([[1.0, -1.0, 1.0, -1.0]]), 3), counts_of(np.array([[1.0, 1.0, -1.0, -1.0]]), 8)
    total = early.merge(late)
    assert total.first_fired.tolist() == [3, 8, 3, -1]
    assert total.last_fired.tolist() == [8, 8, 3, -1]


def test_merging_changes_neither_part() -> None:
    a, b = counts_of(np.ones((2, 2)), 0), counts_of(-np.ones((2, 2)), 2)
    kept = {n: getattr(a, n).clone() for n in (*WHOLE, "mean", "m2")}
    a.merge(b)
    assert all(torch.equal(getattr(a, n), v) for n, v in kept.items())


def test_counts_of_nothing_are_zero_and_on_the_cpu() -> None:
    empty = Counts.empty(3)
    assert (empty.inputs, empty.samples, empty.units) == (0, 0, 3)
    tensors = [v for v in vars(empty).values() if isinstance(v, Tensor)]
    assert len(tensors) == 10
    assert all(t.device.type == "cpu" and t.shape == (3,) for t in tensors)
    assert (empty.first_fired == -1).all()
    assert (empty.max == -math.inf).all()


def test_counts_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Counts.empty(1).inputs = 4  # type: ignore[misc]
