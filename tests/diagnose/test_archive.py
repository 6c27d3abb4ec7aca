"""A record that comes back from a run file: bit by bit, bounded, after a crash and after damage."""

import importlib.util
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.diagnose import archive
from relume.diagnose.archive import Archivist, restored
from relume.diagnose.attribution import PARTS
from relume.diagnose.course import COURSE, Course
from relume.diagnose.death import Around, Death, Fall
from relume.diagnose.finding import Confirmation, Finding, Remedy
from relume.diagnose.packing import made, pack_row, pack_steps, plain, unpack_rows, unpack_steps
from relume.diagnose.record import Record
from relume.diagnose.steps import Settings, StepRow
from relume.diagnose.trace import COLUMNS, Trace
from relume.errors import RunFileError
from relume.sites import Site, tracker
from relume.watch import store

CORPUS = Path(__file__).parents[1] / "planted" / "causes" / "corpus.py"


def corpus():
    name = "planted_causes_for_the_archive"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, CORPUS)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def first_of_each_cause():
    chosen = {}
    for case in corpus().CASES:
        chosen.setdefault(case.cause or case.name.partition(":")[0], case)
    return list(chosen.values())


def told(findings):
    """All of it as text, which tells NaN and -0.0 apart and the like."""
    return repr([plain(finding) for finding in findings])


@pytest.mark.parametrize("case", first_of_each_cause(), ids=lambda case: case.name)
def test_a_loaded_run_has_the_findings_of_the_living_watch(case, tmp_path, monkeypatch):
    watched = relume.watch
    monkeypatch.setattr(relume, "watch", lambda *args, **options: watched(*args, save=tmp_path / "run", **options))
    watch, _ = case.run(0)
    living = watch.diagnose()
    assert case.cause is None or case.cause in {f.code for f in living}
    assert told(relume.load(tmp_path / "run").diagnose()) == told(living)


def hot(units=32):
    model = nn.Sequential(nn.Linear(64, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 10))
    return model, torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9)


def go_on(model, optimizer, digits, steps, seed=2):
    x, y = digits
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=drawn)
        loss = F.cross_entropy(model(x[rows].flatten(1)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_at_the_end_of_each_window_the_file_says_what_the_watch_says(digits, tmp_path):
    said = []

    def compare(watch, window):
        living = watch.diagnose()
        assert told(relume.load(tmp_path).diagnose()) == told(living)
        said.append(len(living))

    torch.manual_seed(0)
    model, optimizer = hot()
    with relume.watch(model, optimizer, every=2, window=20, save=tmp_path, on_window=compare):
        go_on(model, optimizer, digits, 90)
    assert len(said) == 5
    assert said[0] > 0


def test_a_run_that_was_opened_early_is_diagnosed_as_of_then(digits, tmp_path):
    torch.manual_seed(0)
    model, optimizer = hot()
    with relume.watch(model, optimizer, every=2, window=20, save=tmp_path) as watch:
        go_on(model, optimizer, digits, 20)
        early, said = relume.load(tmp_path), told(watch.diagnose())
        go_on(model, optimizer, digits, 60)
        assert told(watch.diagnose()) != said
        assert told(early.diagnose()) == said
        assert [step for step, *_ in early.kept_record().traces["1"].windows] == [18]


KILLED = """
import sys, torch, relume
from relume.diagnose.packing import plain
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
def say(watch, window):
    print(repr([plain(finding) for finding in watch.diagnose()]), flush=True)
with relume.watch(model, optimizer, every=1, window=8, save=sys.argv[1], on_window=say):
    while True:
        loss = model(torch.randn(64, 8)).square().mean() + model[0].bias.sum()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
"""


def test_kill_9_loses_at_most_the_window_in_progress(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(12):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    rest = [line for line in child.stdout if line.endswith("\n")]
    child.wait()
    child.stdout.close()
    run = relume.load(tmp_path)
    assert len(run.windows) in (12 + len(rest), 13 + len(rest))
    findings = run.diagnose()
    assert any(f.code == "bias-drift" for f in findings)
    if rest and len(run.windows) == 12 + len(rest):
        assert told(findings) == rest[-1].strip()


# As bytes

BITS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4).flatmap(lambda units: st.tuples(
    st.just(units),
    st.lists(st.lists(st.lists(BITS, min_size=units, max_size=units), min_size=3, max_size=3), min_size=1, max_size=4),
)))  # fmt: skip
def test_rows_come_back_bit_by_bit(given_rows):
    units, rows = given_rows
    table = torch.from_numpy(np.array(rows, "<u4").reshape(len(rows), 3, units).view("<f4").copy())
    blobs = [pack_row(row) for row in table]
    back = unpack_rows(blobs, 3, units)
    assert back.numpy().tobytes() == table.numpy().tobytes()


def test_a_column_that_is_the_same_for_all_units_takes_one_number():
    row = torch.randn(len(COLUMNS), 100)
    row[3:6], row[7] = 0.0, math.nan
    blob = pack_row(row)
    assert len(blob) == len(COLUMNS) + 4 * (4 + 100 * (len(COLUMNS) - 4))
    assert torch.equal(unpack_rows([blob], len(COLUMNS), 100)[0].nan_to_num(), row.nan_to_num())


@pytest.mark.parametrize("spoilt", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"\2" + b[1:], lambda b: b""])
def test_a_row_of_another_length_is_refused(spoilt):
    whole = pack_row(torch.randn(3, 5))
    with pytest.raises(ValueError, match="a row of 5 units"):
        unpack_rows([whole, spoilt(whole)], 3, 5)


def test_steps_come_back_with_what_was_missing_and_what_was_not_finite():
    sgd = Settings("SGD", 0.1, 0.9, 0.0, math.nan, False, False, False)
    slower = Settings("SGD", 0.05, 0.9, 0.0, math.nan, False, False, True)
    rows = [
        StepRow(3, {"a": sgd, "b": sgd}, {"a": 1.1, "b": math.inf}, {"a": 2.0, "b": 3.0}, {"a": 0.25}),
        StepRow(9, {"a": slower}, {}, {"a": math.nan}, {"b": 0.5}),
    ]
    back = unpack_steps(pack_steps(rows))
    assert repr([(r.step, dict(r.settings), dict(r.gradient), dict(r.weight), dict(r.update)) for r in back]) == repr(
        [(r.step, dict(r.settings), dict(r.gradient), dict(r.weight), dict(r.update)) for r in rows]
    )


def a_death(unit, at):
    parts = {name: float(i) - 0.1 * unit for i, name in enumerate(PARTS)}
    fall = Fall(unit, at, at - 5, at + 1, 1.5, -0.5, 2.0, 1.0, math.nan, parts, parts, 1.9, at - 2, 1.8, True)
    own = Settings("AdamW", 0.1, 0.9, 0.0, 0.99, False, True, False)
    return Death(at, fall, Around(0.1, 0.2, math.inf, settings=own))


def test_deaths_and_findings_come_back_as_they_were():
    confirmation = Confirmation(True, "lr 0.1 instead of 1", (3, 9), 12, 1, "It does.", (("lr 0.1", 1), ("clip", 9)))
    finding = Finding(
        "bias-drift", "error", "1", (0, 3), (2, 9), {"units": 2, "why": "so", "lr": 0.1, "seen": True}, "Two died.",
        (Remedy("lower it"), Remedy("clip", "clip()")), ("born-dead", "0"), confirmation,
    )  # fmt: skip
    for kind, value in (
        (Death, a_death(3, 17)),
        (Death, Death(4, None, Around())),
        (Finding, finding),
        (Course, Course(units=(1, 2), died=(4, 5), steps=(3, 4, 5), table=torch.rand(3, len(COURSE)))),
    ):
        back = made(kind, json.loads(json.dumps(plain(value))))
        assert type(back) is kind
        assert repr(back) == repr(value)


# Account


def a_site(name, units):
    return Site(name, name, name, "relu", "max(x, 0)", units, -1)


class Followed:
    """A record that goes on by itself, and what an archivist has said of it, as a file would have it."""

    def __init__(self, **units):
        self.sites = [a_site(name, n) for name, n in units.items()]
        self.record = Record(nn.Module())
        for site in self.sites:
            trace = Trace(site, torch.empty(0, len(COLUMNS), site.units), producers=("fc",))
            trace.first = (0, torch.rand(len(COLUMNS), site.units))
            self.record.traces[site.name] = trace
        self.archivist = Archivist(self.record)
        self.entries = {}
        self.written = 0  # bytes
        self.window = 0

    def go_on(self, *, thin=False, without=(), steps=3):
        for name, trace in self.record.traces.items():
            if name not in without:
                trace.passes += 3
                trace.windows.append((10 * self.window + 9, trace.passes, torch.rand(len(COLUMNS), trace.site.units)))
        for i in range(steps):
            self.record.steps.rows.append(StepRow(10 * self.window + i, {}, {"fc": 0.5}, {"fc": 2.0}, {}))
        if thin:
            for trace in self.record.traces.values():
                trace.thin()
        self.window += 1

    def write(self):
        news = self.archivist.news()
        assert not news.gone & news.put.keys()
        assert news.gone <= self.entries.keys()
        self.written += sum(map(len, news.put.values()))
        self.entries = {k: v for k, v in self.entries.items() if k not in news.gone} | dict(news.put)

    def check(self):
        back = restored(self.entries, self.sites)
        for name, trace in self.record.traces.items():
            ours = back.traces[name]
            assert (ours.producers, ours.unknown, ours.passes) == (trace.producers, trace.unknown, trace.passes)
            assert [w[:2] for w in ours.windows] == [w[:2] for w in trace.windows]
            assert all(torch.equal(a[2], b[2]) for a, b in zip(ours.windows, trace.windows, strict=True))
            assert repr(ours.deaths) == repr({k: trace.deaths[k] for k in ours.deaths})
            assert ours.deaths.keys() == trace.deaths.keys()
            assert ours.first[0] == trace.first[0]
            assert torch.equal(ours.first[1], trace.first[1])
            assert len(ours.series()) == (1 + len(trace.windows) if trace.windows else 0)
        assert [r.step for r in back.steps.rows] == [r.step for r in self.record.steps.rows]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sets(st.sampled_from(["a", "b"])),
            st.lists(st.integers(0, 299), max_size=3),
            st.integers(0, 2),
        ),
        max_size=10,
    )
)
def test_after_every_window_the_entries_are_the_record(spans):
    followed = Followed(a=3, b=300)
    followed.record.steps.rows = type(followed.record.steps.rows)(maxlen=7)
    followed.write()
    followed.check()
    for thin, without, units, steps in spans:
        followed.go_on(thin=thin, without=without, steps=steps)
        for unit in units:
            followed.record.traces["b"].deaths[unit] = a_death(unit, 10 * followed.window)
        followed.write()
        followed.check()


def test_what_is_kept_of_a_long_run_stays_bounded_and_so_does_what_is_written():
    followed = Followed(a=8)
    followed.record.steps.rows = type(followed.record.steps.rows)(maxlen=60)
    largest = 0
    for window in range(1000):
        followed.go_on(thin=len(followed.record.traces["a"].windows) > 64)
        # A unit that dies again and again.
        followed.record.traces["a"].deaths[window % 8] = a_death(window % 8, 10 * window)
        followed.write()
        largest = max(largest, len(followed.entries))
        if window == 99:
            size, written = sum(map(len, followed.entries.values())), followed.written
    followed.check()
    assert largest <= 64 + 60 // 3 + 8
    assert sum(map(len, followed.entries.values())) < 1.5 * size
    assert followed.written < 12 * written


def test_a_site_that_has_other_units_now_is_begun_anew():
    followed = Followed(a=3, b=4)
    for _ in range(3):
        followed.go_on()
        followed.write()
    followed.record.traces["a"].deaths[2] = a_death(2, 5)
    followed.write()
    site = a_site("a", 2)
    followed.sites[0] = site
    followed.record.traces["a"] = Trace(site, torch.empty(0, len(COLUMNS), 2), producers=("other",))
    followed.record.traces["a"].first = (40, torch.rand(len(COLUMNS), 2))
    followed.go_on()
    followed.write()
    followed.check()


def test_of_very_many_units_only_the_steps_of_windows_are_kept(monkeypatch):
    monkeypatch.setattr(archive, "ROWS_LIMIT", 4 * len(COLUMNS) * 1000)
    small, large = Followed(a=1000), Followed(a=1000, b=1)
    for followed in (small, large):
        for _ in range(4):
            followed.go_on()
            followed.record.traces["a"].deaths[3] = a_death(3, 7)
            followed.write()
    small.check()
    rows = [len(v) for (kind, *_), v in large.entries.items() if kind == "row"]
    assert len(rows) == 8
    assert max(rows) < 100
    back = restored(large.entries, large.sites).traces["a"]
    assert [w[:2] for w in back.windows] == [w[:2] for w in large.record.traces["a"].windows]
    assert back.windows[0][2].isnan().all()
    assert torch.equal(back.first[1], large.record.traces["a"].first[1])
    assert back.deaths[3].fall.unit == 3


def test_columns_of_another_version_are_found_by_their_names():
    followed = Followed(a=2)
    followed.go_on()
    followed.write()
    about = json.loads(followed.entries["about", "", 0])
    mean, std = about["columns"].index("mean"), about["columns"].index("std")
    about["columns"][mean], about["columns"][std] = "std", "something new"
    followed.entries["about", "", 0] = json.dumps(about).encode()
    back, ours = (r.traces["a"].windows[0][2] for r in (restored(followed.entries, followed.sites), followed.record))
    assert torch.equal(back[COLUMNS.index("std")], ours[mean])
    assert back[COLUMNS.index("mean")].isnan().all()
    assert torch.equal(back[2:], ours[2:])


# The file


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    torch.manual_seed(0)
    model, optimizer = hot()
    with relume.watch(model, optimizer, every=2, window=20, save=folder) as watch:
        go_on(model, optimizer, digits, 60)
    return folder / "run.sqlite", watch


def altered(finished, folder, *statements, ids=None):
    path = folder / "run.sqlite"
    path.write_bytes(finished[0].read_bytes())
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        if ids is not None:
            ids(db)
        db.commit()
    return path


def the_rest_can_be_read(path, watch):
    run = relume.load(path)
    assert run.census().to_dict() == watch.census().to_dict()
    assert run.timeline("1").to_dict() == watch.timeline("1").to_dict()
    assert run.history() == watch.history()
    return run


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM diagnosis WHERE kind = 'first' AND site = '3'",
        "DELETE FROM diagnosis WHERE kind = 'steps'",
        "UPDATE diagnosis SET content = x'00' WHERE kind = 'deaths'",
        "UPDATE diagnosis SET content = content || x'00' WHERE kind = 'row'",
        "UPDATE diagnosis SET number = number + 1 WHERE kind = 'deaths'",
        "UPDATE diagnosis SET site = '3' WHERE kind = 'row' AND site = '1'",
        "UPDATE diagnosis SET kind = 'no such kind' WHERE kind = 'about'",
        "DROP TABLE diagnosis",
        "DELETE FROM diagnosis",
    ],
)
def test_damage_there_is_said_and_the_rest_can_be_read(finished, tmp_path, damage):
    if "SET site" in damage:
        path = altered(finished, tmp_path, "DELETE FROM diagnosis WHERE kind = 'row' AND site = '3'", damage)
    else:
        path = altered(finished, tmp_path, damage)
    run = the_rest_can_be_read(path, finished[1])
    with pytest.raises(RunFileError, match=r"for diagnosis can't be read, but all else can"):
        run.diagnose()


def rewritten(key, change):
    """Another content, with the checksum that belongs to it."""

    def apply(db):
        where = "WHERE kind = ? AND site = ? AND number = ?"
        (content,) = db.execute(f"SELECT content FROM diagnosis {where}", key).fetchone()
        content = change(content)
        checksum = store.checksum((*key, content))
        db.execute(f"UPDATE diagnosis SET content = ?, checksum = ? {where}", (content, checksum, *key))

    return apply


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (("deaths", "1", 0), lambda content: content[:-3]),
        (("deaths", "1", 0), lambda content: archive.squeezed(b'{"0": {"died_at": 3}}')),
        (("deaths", "1", 0), lambda content: archive.squeezed(b"[]")),
        (("site", "1", 0), lambda content: content.replace(b'"units":32', b'"units":31')),
        (("first", "1", 0), lambda content: content[:7]),
        (("about", "", 0), lambda content: b"{}"),
        (("about", "", 0), lambda content: b"\xff"),
    ],
)
def test_what_is_no_archive_is_refused_though_its_checksums_are_right(finished, tmp_path, key, change):
    path = altered(finished, tmp_path, ids=rewritten(key, change))
    with pytest.raises(RunFileError, match="all else can"):
        the_rest_can_be_read(path, finished[1]).diagnose()


def test_what_a_later_relume_kept_is_refused_and_the_rest_can_be_read(finished, tmp_path):
    later = rewritten(("about", "", 0), lambda content: content.replace(b'"version":1', b'"version":2'))
    run = the_rest_can_be_read(altered(finished, tmp_path, ids=later), finished[1])
    with pytest.raises(RunFileError, match=r"version 2, this relume knows up to 1: upgrade relume"):
        run.diagnose()


def test_a_file_of_format_2_is_read_and_has_nothing_to_diagnose_by(finished, tmp_path):
    def as_format_2(db):
        (rows,) = db.execute("SELECT value FROM about WHERE key = 'rows'").fetchone()
        rows = json.loads(rows)
        del rows["diagnosis"]
        value = json.dumps(rows)
        db.execute(
            "UPDATE about SET value = ?, checksum = ? WHERE key = 'rows'", (value, store.checksum(("rows", value)))
        )

    path = altered(finished, tmp_path, "DROP TABLE diagnosis", "PRAGMA user_version=2", ids=as_format_2)
    run = the_rest_can_be_read(path, finished[1])
    with pytest.raises(relume.RelumeError, match="keeps nothing to diagnose by") as refused:
        run.diagnose()
    assert not isinstance(refused.value, RunFileError)


def test_a_run_that_was_closed_says_so(finished):
    run = relume.load(finished[0])
    run.close()
    with pytest.raises(RunFileError, match="closed"):
        run.diagnose()


def test_trouble_in_keeping_it_ends_neither_the_training_nor_the_file(digits, tmp_path, monkeypatch):
    calls = []

    def fails(self):
        calls.append(self)
        raise ArithmeticError("planted")

    monkeypatch.setattr(Archivist, "news", fails)
    monkeypatch.setattr(tracker, "STRICT", False)
    model, optimizer = hot()
    with (
        pytest.warns(relume.RelumeWarning, match="planted"),
        relume.watch(model, optimizer, every=2, window=20, save=tmp_path) as watch,
    ):
        go_on(model, optimizer, digits, 60)
    assert len(calls) >= 3
    run = relume.load(tmp_path)
    assert run.history() == watch.history()
    with pytest.raises(relume.RelumeError, match="nothing to diagnose by"):
        run.diagnose()
