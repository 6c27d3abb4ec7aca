"""Zones: sets of numbers, found from a predicate and asked about tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relume.activations import Zone
from relume.activations.zones import ABOVE_ZERO, where

INF = math.inf
number = st.floats(-35, 35)


@st.composite
def zones(draw) -> Zone:
    """Disjoint intervals with gaps wider than the grid on which `where` looks."""
    edges = draw(st.lists(number, min_size=0, max_size=6, unique=True).map(sorted))
    edges = [e for i, e in enumerate(edges) if i == 0 or e - edges[i - 1] > 0.005]
    edges = ([-INF] if draw(st.booleans()) else []) + edges
    edges = edges + ([INF] if len(edges) % 2 else [])
    return Zone(tuple(zip(edges[::2], edges[1::2], strict=True)))


@given(zones(), st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_contains_is_membership_in_any_closed_interval_and_nan_is_in_none(zone: Zone, values: list[float]) -> None:
    inside = [any(a <= v <= b for a, b in zone.intervals) for v in values]
    assert zone.contains(torch.tensor(values, dtype=torch.float64)).tolist() == inside


@given(zones(), number, number)
def test_covers_asks_for_one_interval_that_holds_the_whole_range(zone: Zone, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    expected = any(x <= low and high <= y for x, y in zone.intervals)
    assert zone.covers(
        torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)
    ).tolist() == [expected]


@given(zones())
def test_where_finds_the_edges_of_any_zone(zone: Zone) -> None:
    found = where(zone.contains)
    assert len(found.intervals) == len(zone.intervals)
    for ours, given_ in zip(found.intervals, zone.intervals, strict=True):
        assert ours == pytest.approx(given_, abs=1e-12)
        assert zone.contains(torch.tensor([v for v in ours if math.isfinite(v)], dtype=torch.float64)).all()


def test_where_gives_the_whole_line_and_nothing() -> None:
    assert where(lambda x: x == x).intervals == ((-INF, INF),)
    assert not where(lambda x: x != x)


def test_the_whole_line_holds_everything_but_nan() -> None:
    x = torch.tensor([-INF, -1.0, INF, math.nan])
    assert Zone(((-INF, INF),)).contains(x).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("intervals", "edge"),
    [(((-INF, 2.0),), 2.0), (((2.0, INF),), None), (((-INF, 0.0), (6.0, INF)), None), ((), None)],
)
def test_only_a_zone_on_the_left_is_decided_by_one_comparison(intervals, edge) -> None:
    assert Zone(intervals).left_edge == edge


@pytest.mark.parametrize(
    ("intervals", "text"),
    [
        ((), "none"),
        (((-INF, 0.0),), "x ≤ 0"),
        (((-INF, 0.0), (6.0, INF)), "x ≤ 0 or x ≥ 6"),
        (((ABOVE_ZERO, INF),), "x > 0"),
        (((-0.5, 0.5),), "-0.5 ≤ x ≤ 0.5"),
        (((-INF, INF),), "all x"),
    ],
)
def test_a_zone_reads_as_a_person_writes_it(intervals, text: str) -> None:
    assert str(Zone(intervals)) == text
