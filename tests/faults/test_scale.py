"""Long runs: nothing that a watch holds grows with the steps, and a run file is opened without reading all of it."""

import math
import sqlite3
import sys
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
from relume.errors import RelumeWarning, RunFileError
from relume.watch import store
from relume.watch.recording import Window, held, in_memory
from relume.watch.store import Writer, checksum
from relume.watch.watch import WINDOWS_LIMIT

MODULE = sys.modules["relume.watch.watch"]

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
    assert sizes == {48 * 4}
    assert max(kept) <= WINDOWS_LIMIT
    assert kept[-1] > WINDOWS_LIMIT // 4, "older windows are added up, not dropped to a few"
    census = watch.census("all")["1"]
    assert census.inputs == 20_000
    assert census.fired.tolist() == (10_000 * (model[0](x) > 0).sum(0)).tolist()
    assert watch.windows[0].first_step == 0
    assert sum(w.observed for w in watch.windows) == 10_000


def test_steps_late_in_a_run_take_a_byte_each_and_are_exact():
    steps = torch.tensor([-1, 1_000_000, 1_000_126, -1, 1_000_003, 1_000_001])
    zero = torch.zeros(6, dtype=torch.int32)
    reals = {name: torch.zeros(6) for name in ("mean", "m2", "max", "min", "output")}
    later = torch.where(steps < 0, -1, steps + 2**40)
    counts = Counts(9, 9, zero, zero, nonfinite=zero, first_fired=steps, last_fired=later, **reals)
    blob = store.pack(counts)
    assert len(blob) == 11 + 8 * 10 + 6 * (5 * 4 + 1 + 1)
    found = store.unpack(6, 9, 9, blob)
    assert found.first_fired.tolist() == steps.tolist()
    assert found.last_fired.tolist() == later.tolist()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE counts SET inputs = inputs + 1 WHERE number = 3",
        "UPDATE counts SET arrays = (SELECT arrays FROM counts WHERE number = 4) WHERE number = 3",
        "DELETE FROM counts WHERE number = 3",
    ],
)
def test_history_and_report_refuse_a_row_that_is_not_what_was_written(tmp_path, sql):
    """They read many rows at once, by another way than a census."""
    flickering(tmp_path).close()
    db = sqlite3.connect(tmp_path / "run.sqlite")
    db.execute(sql)
    db.commit()
    db.close()
    run = relume.load(tmp_path)
    for read in (run.history, lambda: run.report(tmp_path / "report.html")):
        with pytest.raises(RunFileError, match="the counts of window 3 can't be read"):
            read()


def test_a_site_of_which_nothing_was_seen_has_no_row_in_history(tmp_path):
    watch = flickering(tmp_path / "live")
    writer = Writer(tmp_path / "run", {"min_inputs": 8})
    nothing = Window(0, 0, 1, 1, True, {"train": held({"1": Counts.empty(8)})})
    writer.write(nothing, watch.sites, [], [])
    writer.write(replace(watch.windows[1], index=1), watch.sites, [], [])
    writer.close()
    run = relume.load(tmp_path / "run")
    assert [row["window"] for row in run.history()] == [1]
    assert not run.census(0)["1"].reached
    run.report(tmp_path / "report.html")


LARGE = 300  # units, whose windows are above the limit that these tests set


def large(monkeypatch, *, save=None, windows=3, after=0, evaluate=False):
    """A watch over more units than fit into its memory; each window's first steps differ from the next one's."""
    monkeypatch.setattr(MODULE, "MEMORY_LIMIT", 36 * LARGE - 1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, LARGE), nn.ReLU())
    watch = relume.watch(model, every=1, window=2, min_inputs=1, save=save)
    for _ in range(2 * windows + after):
        with torch.no_grad():
            model[0].bias.normal_()
        model(torch.randn(8, 2))
    if evaluate:
        model.eval()
        with torch.no_grad():
            model(torch.randn(8, 2))
    return watch


def test_of_windows_too_large_for_memory_the_latest_is_kept_and_that_is_said(monkeypatch):
    with pytest.warns(RelumeWarning, match='only the latest is kept in memory; with save="FOLDER"') as said:
        watch = large(monkeypatch, after=1)
    assert len(said) == 1
    assert [w.index for w in watch.windows] == [2]
    before = watch.census()["1"].counts
    watch.close()
    assert [(w.index, w.complete) for w in watch.windows] == [(2, True), (3, False)]
    assert (watch.census().first_step, watch.census().last_step) == (4, 5)
    assert torch.equal(watch.census()["1"].fired, before.fired)
    assert watch.timeline("1").last_fired.max() == 6, "births and deaths are of all windows"
    assert len(watch.history()) == 2


def test_of_large_windows_each_phase_keeps_its_latest(monkeypatch):
    with pytest.warns(RelumeWarning, match="only the latest"):
        watch = large(monkeypatch, windows=2, evaluate=True)
    watch.model.train()
    for _ in range(6):
        watch.model(torch.randn(8, 2))
    watch.close()
    assert [(w.index, sorted(w.counts)) for w in watch.windows] == [(2, ["eval"]), (4, ["train"])]
    assert watch.census(phase="eval")["1"].inputs == 8
    assert watch.census()["1"].inputs == 16


def test_windows_too_large_for_memory_are_read_back_from_the_run_file(monkeypatch, tmp_path):
    watch = large(monkeypatch, save=tmp_path, windows=4, after=1, evaluate=True)
    watch.close()
    assert [w.index for w in watch.windows] == [0, 1, 2, 3, 4]
    assert [in_memory(w) for w in watch.windows] == [0] * 5
    run = relume.load(tmp_path)
    assert watch.history() == run.history()
    assert len(watch.history()) == 6
    assert repr(watch.census("all").to_dict()["sites"]) == repr(run.census("all").to_dict()["sites"])
    assert watch.census("all")["1"].inputs == 9 * 8
    (tmp_path / "run.sqlite").unlink()
    with pytest.raises(RunFileError, match="counts of window 3 can't be read"):
        watch.census()


def test_a_full_disk_leaves_the_window_in_memory(monkeypatch, tmp_path):
    put = Writer._put_window

    def fail(self, window):
        put(self, window)
        if window.index == 2:
            raise OSError(28, "No space left")

    monkeypatch.setattr(Writer, "_put_window", fail)
    with pytest.warns(RelumeWarning, match="can no longer write|only the latest") as said:
        watch = large(monkeypatch, save=tmp_path, windows=5)
    watch.close()
    assert len(said) == 2
    assert [(w.index, in_memory(w) > 0) for w in watch.windows] == [(0, False), (1, False), (4, True)]
    assert watch.census()["1"].inputs == 16


def as_format_1(counts):
    """A site's arrays as relume 0.1 packed them first."""
    kinds = ["<i8" if name in INTEGER_ARRAYS else "<f8" for name in ARRAYS]
    raw = b"".join(getattr(counts, n).numpy().astype(k).tobytes() for n, k in zip(ARRAYS, kinds, strict=True))
    return zlib.compress(b"".join(raw[i::8] for i in range(8)), 1)


def test_a_file_of_format_1_says_the_same(tmp_path, monkeypatch):
    watch = flickering(tmp_path / "live")
    new = relume.load(rewritten(watch, tmp_path / "new"))
    monkeypatch.setattr(store, "FORMAT", 1)
    monkeypatch.setattr(store, "pack", as_format_1)
    steps = ("died_at", "revived_at", "last_fired", "deaths", "born_dead", "dead")

    def old_timeline(timeline):
        raw = b"".join(getattr(timeline, n).numpy().astype("<i8").tobytes() for n in steps)
        return zlib.compress(b"".join(raw[i::8] for i in range(8)), 1)

    monkeypatch.setattr(store, "pack_timeline", old_timeline)
    old = rewritten(watch, tmp_path / "old")
    monkeypatch.undo()
    db = sqlite3.connect(old / "run.sqlite")
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
    old = relume.load(old)
    assert old.history() == new.history() == watch.history()
    assert old.timeline("1").to_dict() == new.timeline("1").to_dict()
    for a, b in zip(old.windows, watch.windows, strict=True):
        ours, theirs = a.counts["train"]()["1"], b.counts["train"]()["1"]
        assert all(torch.equal(getattr(ours, n), getattr(theirs, n)) for n in ARRAYS)


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
    """Pages and index included it stays near the 36 bytes that the numbers of a unit take by themselves."""
    model = nn.Sequential(nn.Linear(4, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU())
    with relume.watch(model, every=1, window=1, save=tmp_path) as watch:
        for _ in range(5):
            model(torch.randn(16, 4))
    writer = Writer(tmp_path / "many", {"min_inputs": 8})
    for i in range(200):
        writer.write(replace(watch.windows[i % 5], index=i), watch.sites, [], [])
    writer.close()
    size = (tmp_path / "many" / "run.sqlite").stat().st_size - 12 * 16384
    assert size < (40 + 1600 / units) * 2 * units * 200
    assert not (tmp_path / "many" / "run.sqlite-wal").exists()
