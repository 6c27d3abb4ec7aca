"""Timelines folded window by window, against the same read plainly off a record of every step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relume.activations import catalogue as of
from relume.census import Counts, SiteCensus, Timeline
from relume.sites import Site, Zones

MIN_INPUTS = 4


def site(units: int) -> Site:
    return Site("1", "1", "", "relu", "max(0, x)", units, -1, zones=Zones.of(of.relu()))


def window(fired: Tensor, first_step: int, inputs_per_step: int = 2, bad: Tensor | None = None) -> SiteCensus:
    """Census of a window from a bool record [steps, units]: fired at that step or not."""
    steps = torch.arange(first_step, first_step + len(fired)).unsqueeze(1)
    units = fired.shape[1]
    empty = Counts.empty(units)
    any_fired = fired.any(0)
    first = torch.where(fired, steps, 10**9).amin(0)
    counts = Counts(
        **{
            **vars(empty),
            "inputs": len(fired) * inputs_per_step,
            "samples": len(fired) * inputs_per_step,
            "fired": fired.sum(0),
            "samples_fired": fired.sum(0),
            "first_fired": torch.where(any_fired, first, -1),
            "last_fired": torch.where(fired, steps, -1).amax(0),
            "nonfinite": torch.zeros(units, dtype=torch.int64) if bad is None else bad.long(),
        }
    )
    return SiteCensus(site(units), counts, MIN_INPUTS)


def plainly(record: list[tuple[int, list[bool], bool]]) -> dict[str, object]:
    """One unit's life. `record` has, per window: its first step, fired or not at each step, NaN or not."""
    judged = fired_before = born_dead = False
    standing = "alive"
    deaths, revived_at, died_at, last_fired = 0, -1, -1, -1
    for first_step, fired, bad in record:
        if any(fired):
            at = [first_step + i for i, f in enumerate(fired) if f]
            if standing == "dead":
                revived_at, died_at = at[0], -1
            standing, judged, fired_before, last_fired = "alive", True, True, at[-1]
        elif len(fired) * 2 >= MIN_INPUTS and not bad:
            if standing == "alive":
                born_dead |= not judged and not fired_before
                died_at = last_fired
                deaths += 1
            standing, judged = "dead", True
    return {
        "born_dead": born_dead, "dead": standing == "dead", "died_at": died_at, "revived_at": revived_at,
        "last_fired": last_fired, "deaths": deaths,
    }  # fmt: skip


@st.composite
def runs(draw) -> list[tuple[int, list[list[bool]], list[bool]]]:
    """Windows: first step, firings [steps][units], NaN [units]."""
    units, step, windows = draw(st.integers(1, 3)), 0, []
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(1, 4))
        silent = draw(st.lists(st.booleans(), min_size=units, max_size=units))
        fired = [[draw(st.booleans()) and not s for s in silent] for _ in range(length)]
        windows.append((step, fired, [draw(st.integers(0, 5)) == 0 for _ in range(units)]))
        step += length + draw(st.integers(0, 2))
    return windows or [(0, [[False] * units], [False] * units)]


@settings(max_examples=200, deadline=None)
@given(runs())
def test_a_folded_timeline_says_what_the_record_of_all_steps_says(run) -> None:
    units = len(run[0][2])
    timeline = Timeline("1", units)
    for first_step, fired, bad in run:
        timeline.fold(window(torch.tensor(fired), first_step, bad=torch.tensor(bad)))
    found = timeline.to_dict()
    for unit in range(units):
        expected = plainly([(s, [row[unit] for row in fired], bad[unit]) for s, fired, bad in run])
        assert {n: found[n][unit] for n in expected} == expected


def life(*windows: str) -> Timeline:
    """One unit's life written as "x." per window: x a step with a firing. Steps are numbered from 0."""
    timeline, step = Timeline("1", 1), 0
    for text in windows:
        timeline.fold(window(torch.tensor([[c == "x"] for c in text]), step))
        step += len(text)
    return timeline


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        (("xx", "x."), "alive throughout"),
        (("..", ".."), "born dead"),
        (("xx", "x.", ".."), "died at 2"),
        (("..", ".x"), "born dead, revived at 3"),
        (("xx", "..", ".x"), "revived at 5"),
        (("xx", "..", "x.", ".."), "revived at 4, died at 4"),
        (("..", "x.", ".."), "born dead, revived at 2, died at 2"),
        ((".", ".", "x"), "alive throughout"),  # windows too short to tell
        ((".", ".."), "born dead"),
    ],
)
def test_a_life_in_words(windows: tuple[str, ...], words: str) -> None:
    assert life(*windows).describe(0) == words


def test_a_unit_that_dies_twice_has_two_deaths_and_the_later_date() -> None:
    timeline = life("xx", "..", "x.", "..", "..")
    assert timeline.deaths.tolist() == [2]
    assert timeline.died_at.tolist() == [4]
    assert timeline.revived_at.tolist() == [4]


def test_dying_within_a_window_is_seen_in_the_next_and_dated_to_the_step() -> None:
    assert not life("x...").dead.any()
    timeline = life("x...", "....")
    assert (timeline.dead.tolist(), timeline.died_at.tolist()) == ([True], [0])


def test_windows_that_cannot_tell_leave_a_unit_as_it_stood() -> None:
    dead, alive = life("xx", "..", "."), life("xx", ".")
    assert (dead.dead.tolist(), dead.deaths.tolist()) == ([True], [1])
    assert not alive.dead.any()


def test_a_timeline_is_plain_data() -> None:
    assert life("xx", "..").to_dict() == {
        "site": "1", "born_dead": [False], "dead": [True], "died_at": [1], "revived_at": [-1], "last_fired": [1],
        "deaths": [1],
    }  # fmt: skip
