"""The run file: what is read from it is what the live watch says, or an error; never a wrong number."""

# ruff: noqa: PT031 - a `with` that is tested holds a training, not a single statement

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import relume
from relume.errors import RelumeWarning, RunFileError
from relume.watch import store

NAME = store.FILE_NAME


def train(save, *, steps=23, window=5, every=1, close=True):
    """A small training with two sites, both phases, scalars (NaN among them) and a note."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.05), betas=(0.8, 0.99))
    watch = relume.watch(model, optimizer, every=every, window=window, save=save, min_inputs=16)
    watch._tracker.note("a note that sorts last, zzz", quiet=True)
    watch._tracker.note("a note that sorts first", quiet=True)
    for step in range(steps):
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.log(loss=float("nan") if step == 3 else float("inf") if step == 4 else loss.detach(), step=step)
        if step % 4 == 3:
            model.eval()
            with torch.no_grad():
                model(torch.randn(32, 4))
            model.train()
    if close:
        watch.close()
    return watch, model, optimizer


def facts(recording):
    """Everything that can be read from a recording, as plain data; `repr` tells NaN and -0.0 apart and the like."""
    result = {
        "windows": [
            (w.index, w.first_step, w.last_step, w.observed, w.complete, sorted(w.counts), dict(w.settings))
            for w in recording.windows
        ],
        "sites": [s.to_dict() for s in recording.sites],
        "history": recording.history().to_dict(),
        "notes": recording.notes,
        "scalars": recording.scalars,
        "about": sorted((k, v) for k, v in recording.about.items() if k not in ("started", "ended")),
        "timelines": [recording.timeline(s.name).to_dict() for s in recording.sites],
        "census": [
            recording.census_of(w, phase).to_dict() for w in recording.windows for phase in sorted(w.counts)
        ],
    }  # fmt: skip
    for phase in ("train", "eval"):
        if any(phase in w.counts for w in recording.windows):
            for window in (-1, "all"):
                result[phase, window] = recording.census(window, phase=phase).to_dict()
    return {k: repr(v) for k, v in result.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder, and what it says."""
    folder = tmp_path_factory.mktemp("run")
    train(folder)
    return folder, facts(relume.load(folder))


@pytest.mark.parametrize(("steps", "window", "every"), [(23, 5, 1), (24, 6, 2), (3, 10, 1)])
def test_a_loaded_run_says_exactly_what_the_live_watch_says(tmp_path, steps, window, every):
    watch, *_ = train(tmp_path / "deep" / "run", steps=steps, window=window, every=every)
    run = relume.load(tmp_path / "deep" / "run")
    assert facts(run) == facts(watch)
    assert run.status == "finished"
    assert run.about["steps"] == steps
    settings = run.windows[0].settings["groups"][0]
    assert (settings["optimizer"], settings["lr"], settings["betas"]) == ("AdamW", pytest.approx(0.05), [0.8, 0.99])
    assert len(run.scalars) == 2 * steps
    for w, ours in zip(run.windows, watch.windows, strict=True):
        for phase in w.counts:
            for name, counts in w.counts[phase]().items():
                live = ours.counts[phase]()[name]
                assert all(torch.equal(getattr(counts, n), getattr(live, n)) for n in store.ARRAYS)


def test_a_run_may_be_named_by_its_file(finished):
    folder, said = finished
    assert facts(relume.load(folder / NAME)) == said
    assert facts(relume.load(str(folder))) == said


def test_a_run_is_read_while_it_is_written(tmp_path):
    watch, model, optimizer = train(tmp_path, steps=12, close=False)
    early = relume.load(tmp_path)
    assert early.status == "running"
    assert [w.last_step for w in early.windows] == [4, 9]
    said = facts(early)
    for _ in range(6):
        model(torch.randn(8, 4)).mean().backward()
        optimizer.step()
    assert facts(early) == said, "a run sees what was there when it was opened"
    assert [w.last_step for w in relume.load(tmp_path).windows] == [4, 9, 14]
    watch.close()
    assert relume.load(tmp_path).status == "finished"


def test_a_run_is_read_by_another_process_while_it_is_written(tmp_path):
    watch, *_ = train(tmp_path, steps=12, close=False)
    script = "import relume, sys; print(relume.load(sys.argv[1]).census()['1'].fired.tolist())"
    command = [sys.executable, "-c", script, str(tmp_path)]
    said = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() for _ in range(2)]
    assert said == [str(watch.census()["1"].fired.tolist())] * 2
    watch.close()


ENDLESS = """
import sys, torch, relume
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 64), nn.ReLU())
with relume.watch(model, every=1, window=2, save=sys.argv[1], min_inputs=1) as watch:
    while True:
        model(torch.ones(8, 4))
        if watch.step % 2 == 0:
            print(watch.step // 2, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_nothing_that_was_committed(tmp_path, seed):
    child = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        child.stdout.readline()
    time.sleep(random.Random(seed).random() * 0.2)
    os.kill(child.pid, signal.SIGKILL)
    committed = 5 + sum(1 for line in child.stdout if line.endswith("\n"))
    child.wait()
    child.stdout.close()
    run = relume.load(tmp_path)
    assert run.status == "running"
    assert committed <= len(run.windows) <= committed + 1
    fired = {tuple(w.counts["train"]()["1"].fired.tolist()) for w in run.windows}
    assert len(fired) == 1
    assert {w.counts["train"]()["1"].inputs for w in run.windows} == {16}


# Damage


def copied(folder, to):
    to.mkdir()
    for path in folder.glob(NAME + "*"):
        shutil.copy(path, to / path.name)
    return to / NAME


def error_or_right(path, said):
    """True when refused, False when everything read is right; a wrong number fails the test."""
    try:
        found = facts(relume.load(path))
    except RunFileError as error:
        found = str(error)
    if isinstance(found, str):
        assert str(path) in found
        return True
    assert found == said
    return False


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_are_noticed_or_harmless(finished, tmp_path, seed):
    folder, said = finished
    path = copied(folder, tmp_path / "x")
    whole = path.read_bytes()
    chance = random.Random(seed)
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        for side in ("-wal", "-shm"):
            path.with_name(NAME + side).unlink(missing_ok=True)
        refused += error_or_right(path, said)
    assert refused, "no damage was done, so nothing is shown"


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_in_the_log_of_a_killed_run_lose_windows_at_most(tmp_path, seed):
    watch, *_ = train(tmp_path / "live", close=False)
    whole = {p.name: p.read_bytes() for p in (tmp_path / "live").iterdir() if not p.name.endswith("-shm")}
    assert len(whole[NAME + "-wal"]) > 10_000
    chance, lost = random.Random(seed), 0
    (tmp_path / "x").mkdir()
    for _ in range(25):
        for old in (tmp_path / "x").iterdir():
            old.unlink()
        data = bytearray(whole[NAME + "-wal"])
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "x" / NAME).write_bytes(whole[NAME])
        (tmp_path / "x" / (NAME + "-wal")).write_bytes(data)
        try:
            run = relume.load(tmp_path / "x")
        except RunFileError:
            lost += 1
            continue
        lost += len(run.windows) < len(watch.windows)
        for ours, live in zip(run.windows, watch.windows, strict=False):
            assert repr(run.census_of(ours).to_dict()["sites"]) == repr(watch.census_of(live).to_dict()["sites"])
    watch.close()
    assert lost, "no damage was done, so nothing is shown"


TAMPERING = {
    "inputs": "UPDATE counts SET inputs = inputs + 1 WHERE number = 1",
    "samples": "UPDATE counts SET samples = samples * 2",
    "a phase": "UPDATE counts SET phase = 'train' WHERE number = 0 AND phase = 'eval' AND site = 'gone'; "
    "UPDATE windows SET rows = '{\"eval\": 2}' WHERE number = 0",
    "arrays swapped": "UPDATE counts SET arrays = (SELECT arrays FROM counts WHERE number = 2 AND phase = 'train' "
    "AND site = '1') WHERE number = 1 AND phase = 'train' AND site = '1'",
    "first_step": "UPDATE windows SET first_step = 3 WHERE number = 0",
    "complete": "UPDATE windows SET complete = 0",
    "observed": "UPDATE windows SET observed = 4",
    "settings": "UPDATE windows SET settings = '{}'",
    "min_inputs": "UPDATE about SET value = '1' WHERE key = 'min_inputs'",
    "status": "UPDATE about SET value = '\"failed\"' WHERE key = 'status'",
    "a site": "UPDATE sites SET description = replace(description, 'relu', 'gelu')",
    "a scalar": "UPDATE scalars SET step = 0",
    "a note": "UPDATE notes SET text = 'all is well'",
    "a row of counts gone": "DELETE FROM counts WHERE number = 1 AND site = '1'",
    "a window gone": "DELETE FROM windows WHERE number = 1",
    "a site gone": "DELETE FROM sites WHERE name = '1'",
    "a table gone": "DROP TABLE scalars",
    "a column gone": "ALTER TABLE notes RENAME TO notizen",
}


@pytest.mark.parametrize("what", TAMPERING)
def test_a_row_that_is_not_what_was_written_is_refused(finished, tmp_path, what):
    """Nothing but the checksums and the windows' own tallies can notice these: the database is sound."""
    path = copied(finished[0], tmp_path / "x")
    db = sqlite3.connect(path)
    db.executescript(TAMPERING[what])
    db.commit()
    db.close()
    assert error_or_right(path, finished[1])


@pytest.mark.parametrize("keep", [0, 1, 15, 16, 99, 100, 512, 4095, 4096, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(finished, tmp_path, keep):
    path = copied(finished[0], tmp_path / "x")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(RunFileError):
        facts(relume.load(path))


@pytest.mark.parametrize(
    "content", [b"", b"relume", b"\x00" * 5000, b"SQLite format 3\x00", b"SQLite format 3\x00" * 900]
)
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(RunFileError, match=r"run file|damaged"):
        relume.load(tmp_path)


def test_a_database_of_another_program_is_refused(tmp_path):
    db = sqlite3.connect(tmp_path / NAME)
    db.execute("CREATE TABLE about (key TEXT, value TEXT)")
    db.commit()
    db.close()
    with pytest.raises(RunFileError, match="no run file of relume"):
        relume.load(tmp_path)


@pytest.mark.parametrize(("version", "says"), [(store.FORMAT + 1, "upgrade relume"), (0, "damaged")])
def test_a_file_of_another_format_is_refused(finished, tmp_path, version, says):
    path = copied(finished[0], tmp_path / "x")
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={version}")
    db.close()
    with pytest.raises(RunFileError, match=says):
        relume.load(path)


def test_no_run_and_a_folder_in_its_place_are_refused(tmp_path):
    with pytest.raises(RunFileError, match="there is no run at"):
        relume.load(tmp_path / "nowhere")
    (tmp_path / NAME).mkdir()
    with pytest.raises(RunFileError):
        relume.load(tmp_path)


def test_a_log_that_can_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    """Opened as immutable the file would miss what is still in its log, and numbers would be out of date."""
    watch, *_ = train(tmp_path, steps=12, close=False)
    connect = sqlite3.connect

    def read_only_folder(target, **options):
        if "immutable" not in str(target):
            raise sqlite3.OperationalError("unable to open database file")
        return connect(target, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only_folder)
    with pytest.raises(RunFileError, match="unable to open"):
        relume.load(tmp_path)
    monkeypatch.undo()
    watch.close()
    monkeypatch.setattr(sqlite3, "connect", read_only_folder)
    assert len(relume.load(tmp_path).windows) == 3, "a closed run has no log, and is read where nothing can be written"


def test_a_closed_run_says_so_of_what_it_has_not_read(finished):
    run = relume.load(finished[0])
    run.close()
    with pytest.raises(RunFileError, match="closed"):
        run.census()


# Writing


def test_an_existing_run_is_not_overwritten(finished):
    before = (finished[0] / NAME).read_bytes()
    with pytest.raises(RunFileError, match="already holds a run; choose another folder"):
        relume.watch(nn.Linear(2, 2), save=finished[0])
    assert (finished[0] / NAME).read_bytes() == before


def test_a_path_that_can_not_be_written_is_said_at_once_and_leaves_no_hook(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "x.sqlite").mkdir()
    model = nn.Linear(2, 2)
    for path in (tmp_path / "file" / "run", tmp_path / "x.sqlite"):
        with pytest.raises(RunFileError):
            relume.watch(model, save=path)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def one_warning(steps, during):
    """Train on while the disk goes; every window must be there in memory, and one warning said."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    with pytest.warns(RelumeWarning, match="can no longer write") as said:
        watch = during(model)
        for _ in range(steps):
            model(torch.randn(8, 4))
        watch.close()
    assert len([w for w in said if issubclass(w.category, RelumeWarning)]) == 1
    assert watch.census("all")["1"].inputs == watch.step * 8
    assert any("can no longer write" in note for note in watch.notes)
    return watch


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_removed_meanwhile_ends_the_file_not_the_training(tmp_path, replaced):
    def during(model):
        watch = relume.watch(model, every=1, window=3, save=tmp_path / "run")
        for _ in range(4):
            model(torch.randn(8, 4))
        shutil.rmtree(tmp_path / "run")
        if replaced:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / NAME).write_bytes(b"another's")
        return watch

    assert one_warning(6, during).step == 10
    if replaced:
        assert (tmp_path / "run" / NAME).read_bytes() == b"another's"


@pytest.mark.parametrize("error", [sqlite3.OperationalError("database or disk is full"), OSError(28, "No space left")])
def test_a_full_disk_ends_the_file_not_the_training(tmp_path, monkeypatch, error):
    put = store.Writer._put_window

    def fail(self, window):
        put(self, window)
        if window.index == 2:
            raise error

    monkeypatch.setattr(store.Writer, "_put_window", fail)
    one_warning(12, lambda model: relume.watch(model, every=1, window=2, save=tmp_path))
    run = relume.load(tmp_path)
    assert [w.index for w in run.windows] == [0, 1], "half a window is not written"
    assert run.status == "running"


def test_what_is_logged_without_any_pass_is_saved_at_the_end_of_each_window(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, window=2, save=tmp_path) as watch:
        watch.log(loss=1.5)
        optimizer.step(), optimizer.step()
        run = relume.load(tmp_path)
        assert run.scalars == [(0, "loss", 1.5)]
        assert not run.windows
