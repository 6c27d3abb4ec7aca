"""A disk that fails while training goes on: no bit of the training changes, and the loss is said once."""

import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

import relume
from relume.errors import RunFileError
from relume.watch.store import Writer


def lost_once(result, bare):
    """Training as it would have been, all of it counted in memory, one warning."""
    assert result["digest"] == bare
    assert result["inputs"] == 30 * 16
    assert result["windows"] == 10
    (said,) = result["warnings"]
    assert "can no longer write" in said
    assert "training and watching go on" in said


def run_alone(program, *args):
    done = subprocess.run([sys.executable, program, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_watching_and_recording_change_nothing_when_nothing_fails(under_fault, bare, tmp_path):
    result = under_fault.train(tmp_path / "run")
    assert (result["digest"], result["warnings"]) == (bare, [])
    assert len(relume.load(tmp_path / "run").windows) == 10
    assert under_fault.train(None)["digest"] == bare


def test_a_disk_that_takes_no_more_ends_the_file_and_leaves_what_it_holds(program, bare, tmp_path):
    """A real limit of the system's: every write beyond 400 kB fails."""
    lost_once(run_alone(program, "full", tmp_path / "run"), bare)
    assert (tmp_path / "run" / "run.sqlite").stat().st_size <= 400_000
    run = relume.load(tmp_path / "run")
    assert 1 <= len(run.windows) < 10
    assert run.census("all")["1"].inputs == len(run.windows) * 3 * 16


@pytest.mark.parametrize("pages", [0, 1])
def test_a_database_that_may_not_grow_ends_and_leaves_what_it_holds(under_fault, bare, tmp_path, pages):
    def meanwhile(step, watch):
        if step == 10:
            (now,) = watch._writer._db.execute("PRAGMA page_count").fetchone()
            watch._writer._db.execute(f"PRAGMA max_page_count={now + pages}")

    result = under_fault.train(tmp_path / "run", meanwhile)
    lost_once(result, bare)
    assert "full" in result["warnings"][0]
    run = relume.load(tmp_path / "run")
    assert 3 <= len(run.windows) < 10
    assert run.census("all")["1"].inputs == len(run.windows) * 3 * 16


@pytest.mark.parametrize("moment", [0, 2, 14, 29])
def test_a_folder_that_is_deleted_meanwhile_ends_the_file(under_fault, bare, tmp_path, moment):
    def meanwhile(step, watch):
        if step == moment:
            shutil.rmtree(tmp_path / "run")

    lost_once(under_fault.train(tmp_path / "run", meanwhile), bare)
    assert not (tmp_path / "run").exists()


def test_a_database_that_another_process_locks_for_long_ends_the_file(under_fault, bare, tmp_path):
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    with contextlib.ExitStack() as stack:

        def meanwhile(step, watch):
            if step == 10:
                command = [sys.executable, "-c", script, tmp_path / "run" / "run.sqlite"]
                other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                stack.enter_context(other)
                assert other.stdout.readline() == "locked\n"

        result = under_fault.train(tmp_path / "run", meanwhile)
    lost_once(result, bare)
    assert "locked" in result["warnings"][0]
    assert len(relume.load(tmp_path / "run").windows) == 3


def test_a_lock_that_is_soon_let_go_loses_nothing(under_fault, bare, tmp_path):
    def meanwhile(step, watch):
        if step == 10:
            other = sqlite3.connect(tmp_path / "run" / "run.sqlite", isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")
            threading.Timer(0.3, lambda: (other.execute("ROLLBACK"), other.close())).start()

    result = under_fault.train(tmp_path / "run", meanwhile)
    assert (result["digest"], result["warnings"]) == (bare, [])
    assert len(relume.load(tmp_path / "run").windows) == 10


def test_a_clock_set_back_disturbs_nothing(under_fault, bare, tmp_path, monkeypatch):
    clock = itertools.count(2_000_000_000, -86_400)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    result = under_fault.train(tmp_path / "run")
    assert (result["digest"], result["warnings"]) == (bare, [])
    run = relume.load(tmp_path / "run")
    assert run.about["ended"] < run.about["started"]
    assert [w.index for w in run.windows] == list(range(10))
    assert [w.first_step for w in run.windows] == list(range(0, 30, 3))
    assert run.report(tmp_path / "report.html").exists()


def test_a_folder_that_can_not_be_written_is_said_before_training_begins(program, tmp_path):
    tmp_path.joinpath("closed").mkdir()
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)  # pytest's folders are for their owner alone, and the child may be another user
    error = run_alone(program, "read-only", tmp_path / "closed")["error"]
    assert "closed" in error
    assert "can't make the run folder" in error
    assert not list((tmp_path / "closed").iterdir())


def test_a_start_that_fails_leaves_no_file_in_the_way_of_the_next(under_fault, bare, tmp_path, monkeypatch):
    begin = Writer._begin

    def fail(self, about):
        begin(self, about)
        self._db.close()
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Writer, "_begin", fail)
    with pytest.raises(RunFileError, match="disk is full"):
        under_fault.train(tmp_path / "run")
    monkeypatch.undo()
    assert under_fault.train(tmp_path / "run")["digest"] == bare
    assert len(relume.load(tmp_path / "run").windows) == 10


def test_of_two_writers_on_one_folder_one_is_refused_and_the_other_undisturbed(under_fault, bare, tmp_path):
    def meanwhile(step, watch):
        if step in (0, 10):
            with pytest.raises(RunFileError, match="already holds a run"):
                Writer(tmp_path / "run", {"min_inputs": 1})

    result = under_fault.train(tmp_path / "run", meanwhile)
    assert (result["digest"], result["warnings"]) == (bare, [])
    assert len(relume.load(tmp_path / "run").windows) == 10


def test_of_writers_that_start_at_the_same_moment_exactly_one_gets_the_folder(tmp_path):
    for attempt in range(20):
        barrier, outcomes = threading.Barrier(4), []

        def start(folder, barrier, outcomes):
            barrier.wait()
            try:
                outcomes.append(Writer(folder, {"min_inputs": 1}))
            except RunFileError as error:
                outcomes.append(error)

        folder = tmp_path / str(attempt)
        threads = [threading.Thread(target=start, args=(folder, barrier, outcomes)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [o for o in outcomes if isinstance(o, Writer)]
        assert all("already holds a run" in str(o) for o in outcomes if o is not winner)
        winner.close()
        assert relume.load(folder).about["min_inputs"] == 1
        os.remove(folder / "run.sqlite")
