"""Long runs: nothing that a watch holds grows with the steps, and a run file is opened without reading all of it."""

import math
import sqlite3
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.census import Counts, Timeline
from relume.census.counts import ARRAYS, INTEGER_ARRAYS
from relume.errors import RunFileError
from relume.watch import store
from relume.watch.store import Writer, checksum
from relume.watch.watch import WINDOWS_LIMIT

NUMBERS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324])


@given(st.data(), st.integers(0, 40), st.integers(0, 2**53), st.integers(0, 2**53))
@settings(deadline=None, max_examples=60)
def test_what_is_packed_is_unpacked_to_the_bit(data, units, inputs, more):
    samples = inputs + more
    most = {"fired": (0, inputs), "samples_fired": (0, samples), "nonfinite": (0, 0)}

    def column(name):
        if name not in INTEGER_ARRAYS:
            return torch.tensor(data.draw(st.lists(NUMBERS, min_size=units, max_size=units)), dtype=torch.float64)
        values = st.integers(*most.get(name, (-1, 2**62)))
        return torch.tensor(data.draw(st.lists(values, min_size=units, max_size=units)), dtype=torch.int64)

    counts = Counts(inputs, samples, **{name: column(name) for name in ARRAYS})
    found = store.unpack(units, inputs, samples, store.pack(counts))
    for name in ARRAYS:
        ours, theirs = getattr(counts, name), getattr(found, name)
        assert ours.dtype == theirs.dtype
        assert ours.numpy().tobytes() == theirs.numpy().tobytes(), name


def test_state_and_history_stay_within_their_bounds_over_10_000_steps():
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
    x = torch.randn(2, 1)
    with relume.watch(model, every=1, window=10) as watch:
        sizes, kept = set(), []
        for step in range(10_000):
            model(x)
            if step % 1000 == 0:
                sizes.add(watch.state_bytes)
                kept.append(len(watch.windows))
    assert sizes == {88 * 4}
    assert max(kept) <= WINDOWS_LIMIT
    assert kept[-1] > WINDOWS_LIMIT // 4, "older windows are added up, not dropped to a few"
    census = watch.census("all")["1"]
    assert census.inputs == 20_000
    assert census.fired.tolist() == (10_000 * (model[0](x) > 0).sum(0)).tolist()
    assert watch.windows[0].first_step == 0
    assert sum(w.observed for w in watch.windows) == 10_000


def flickering(folder):
    """A watch whose units die and revive from window to window."""
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
    chance = torch.Generator().manual_seed(1)
    watch = relume.watch(model, every=1, window=2, min_inputs=8, save=folder)
    for step in range(24):
        if step % 2 == 0:
            with torch.no_grad():
                model[0].bias.copy_(torch.where(torch.rand(8, generator=chance) < 0.5, -100.0, 100.0))
        model(torch.randn(8, 2))
    watch.close()
    return watch


def rewritten(watch, folder):
    """The same run, its timelines written as they were after each window."""
    timelines = {s.name: Timeline(s.name, s.units) for s in watch.sites}
    writer = Writer(folder, {"min_inputs": 8})
    for window in watch.windows:
        for member in watch.census_of(window).sites:
            timelines[member.name].fold(member)
        writer.write(window, watch.sites, [], [], timelines=timelines)
    writer.close()
    return folder


def test_a_timeline_is_read_as_it_was_folded_without_unpacking_a_window(tmp_path, monkeypatch):
    watch = flickering(tmp_path / "live")
    run = relume.load(rewritten(watch, tmp_path / "run"))
    slow = relume.load(tmp_path / "run")
    slow._timelines.clear()
    folded = slow.timeline("1").to_dict()
    monkeypatch.setattr(store, "unpack", None)
    said = run.timeline("1").to_dict()
    assert said == folded == watch.timeline("1").to_dict()
    assert max(said["deaths"]) > 1
    assert max(said["revived_at"]) > 0
    assert any(said["born_dead"])


def test_a_run_sees_the_timeline_of_the_windows_it_was_opened_with(tmp_path):
    watch = flickering(tmp_path / "live")
    timelines = {"1": Timeline("1", 8)}
    writer = Writer(tmp_path / "run", {"min_inputs": 8})
    said = []
    for window in watch.windows:
        timelines["1"].fold(watch.census_of(window)["1"])
        writer.write(window, watch.sites, [], [], timelines=timelines)
        said.append((relume.load(tmp_path / "run"), timelines["1"].to_dict()))
    writer.close()
    for run, then in said:
        assert run.timeline("1").to_dict() == then


def test_a_watch_keeps_its_timelines_in_the_run_file(tmp_path, monkeypatch):
    watch = flickering(tmp_path)
    run = relume.load(tmp_path)
    monkeypatch.setattr(store, "unpack", None)
    assert run.timeline("1").to_dict() == watch.timeline("1").to_dict()


def test_opening_a_run_reads_no_counts(tmp_path):
    folder = rewritten(flickering(tmp_path / "live"), tmp_path / "run")
    db = sqlite3.connect(folder / "run.sqlite")
    db.execute("DROP TABLE counts")
    db.close()
    run = relume.load(folder)
    assert len(run.windows) == 12
    assert run.timeline("1").units == 8
    with pytest.raises(RunFileError, match="counts of window 11 can't be read"):
        run.census()


def forged(folder, **values):
    db = sqlite3.connect(folder / "run.sqlite")
    site, number, arrays = db.execute("SELECT site, number, arrays FROM timelines").fetchone()
    row = {"site": site, "number": number, "arrays": arrays, **values}
    db.execute("DELETE FROM timelines")
    db.execute("INSERT INTO timelines VALUES (?, ?, ?, ?)", (*row.values(), checksum(list(row.values()))))
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "values",
    [
        {"arrays": b""},
        {"arrays": b"x"},
        {"arrays": 3},
        {"arrays": zlib.compress(bytes(8 * 8 * 6 + 8))},
        {"arrays": zlib.compress(bytes([255]) * (8 * 8 * 6))},
        {"arrays": zlib.compress(bytes([2]) + bytes(8 * 8 * 6 - 1)), "number": 99},
        {"number": -1},
        {"number": "late"},
    ],
)
def test_a_timeline_that_can_not_be_is_refused(tmp_path, values):
    folder = rewritten(flickering(tmp_path / "live"), tmp_path / "run")
    forged(folder, **values)
    run = relume.load(folder)
    with pytest.raises(RunFileError, match="the timeline of 1 can't be read"):
        run.timeline("1")


@pytest.mark.parametrize("units", [16, 64, 200, 500])
def test_a_run_file_of_many_windows_stays_near_the_size_of_its_numbers(tmp_path, units):
    """Pages and index included it stays below the 80 bytes that the ten numbers of a unit take by themselves."""
    model = nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU())
    with relume.watch(model, every=1, window=1, save=tmp_path) as watch:
        for _ in range(5):
            model(torch.randn(16, 4))
    writer = Writer(tmp_path / "many", {"min_inputs": 8})
    for i in range(200):
        writer.write(replace(watch.windows[i % 5], index=i), watch.sites, [], [])
    writer.close()
    size = (tmp_path / "many" / "run.sqlite").stat().st_size - 12 * 16384
    assert size < 70 * 2 * units * 200
    assert not (tmp_path / "many" / "run.sqlite-wal").exists()
