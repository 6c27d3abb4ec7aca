"""The store: what is damaged is refused, and two processes on one store share the work."""

import multiprocessing
import os
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from relume.lab import Member, Study, run_member
from relume.lab.runners import Local, Outcome, work
from relume.lab.study import StoreError, claims
from relume.lab.study.store import FILE_NAME, Store

MEMBERS = [Member("spirals", seed=s, steps=4, window=4, every=2, width=4) for s in range(4)]
KEYS = [m.key for m in MEMBERS]


@pytest.fixture(scope="module")
def outcomes():
    return [Outcome(m, run_member(m, diagnose=False)) for m in MEMBERS]


@pytest.fixture
def filled(tmp_path, outcomes):
    store = Store(tmp_path)
    store.put(outcomes)
    store.close()
    return tmp_path


def change(folder, sql, *values):
    with closing(sqlite3.connect(folder / FILE_NAME)) as db, db:
        db.execute(sql, values)


def read_all(folder):
    with closing(Store(folder)) as store:
        return [store.result(key, head) for key, head in store.heads()]


def test_a_result_comes_back_as_it_was(filled, outcomes):
    assert read_all(filled) == [o.result for o in outcomes]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE runs SET head = replace(head, '0.', '0.1')", "of runs is not what was written"),
        ("UPDATE runs SET status = 'failed'", "of runs is not what was written"),
        ("UPDATE runs SET key = 'x' || substr(key, 2)", "of runs is not what was written"),
        ("UPDATE details SET body = x'00'", "of details is not what was written"),
        ("DELETE FROM details", "are missing"),
        ("DROP TABLE details", "no such table"),
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_refused(filled, sql, said):
    change(filled, sql)
    with pytest.raises(StoreError, match=said):
        read_all(filled)


def test_a_file_with_bytes_changed_or_cut_off_is_refused_or_read_as_it_was(filled, outcomes):
    path = filled / FILE_NAME
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:at] + bytes(b ^ 0xFF for b in whole[at : at + 200]) + whole[at + 200 :])
        try:
            found = read_all(filled)
        except StoreError:
            refused += 1
        else:
            kept = [o.result for o in outcomes]
            assert all(result in kept for result in found)
    assert refused >= 3  # most of a small file is empty pages
    for size in (len(whole) - 1, len(whole) // 2 + 3, 100, 10):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=f"{path} is damaged"):
            read_all(filled)


def test_another_file_is_told_from_a_store(tmp_path):
    change(tmp_path, "CREATE TABLE x (y)")
    with pytest.raises(StoreError, match="no study of relume"):
        Store(tmp_path)
    (tmp_path / FILE_NAME).write_text("not a database at all, but long enough to be taken for one" * 20)
    with pytest.raises(StoreError, match="is damaged"):
        Store(tmp_path)


def test_a_newer_format_is_refused(filled):
    change(filled, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="has format 99; this relume reads up to 1: upgrade"):
        Store(filled)


def test_an_empty_file_that_a_killed_process_left_is_begun_anew(tmp_path, outcomes):
    (tmp_path / FILE_NAME).touch()
    with closing(Store(tmp_path)) as store:
        store.put(outcomes)
    assert len(read_all(tmp_path)) == 4


def test_a_folder_that_can_not_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't open"):
        Store(tmp_path / "file" / "study")


def test_a_store_that_was_removed_while_it_is_written_is_noticed(tmp_path, outcomes):
    with closing(Store(tmp_path)) as store:
        store.path.rename(tmp_path / "away")
        with pytest.raises(StoreError, match="can't write"):
            store.put(outcomes)


def test_what_one_claims_another_does_not_get_until_it_is_let_go(tmp_path, outcomes):
    with closing(Store(tmp_path)) as one, closing(Store(tmp_path)) as other:
        assert one.claim(KEYS[:3]) == KEYS[:3]
        assert other.claim(KEYS) == KEYS[3:]
        assert one.claim(KEYS) == KEYS[:3]  # its own
        one.put(outcomes[:1])
        one.release()
        assert other.claim(KEYS) == KEYS[1:]  # the first is done


def until(store):
    return min(row[0] for row in store._db.execute("SELECT until FROM claims"))


def test_a_claim_ends_when_it_is_not_renewed(tmp_path, monkeypatch):
    with closing(Store(tmp_path)) as one, closing(Store(tmp_path)) as other:
        monkeypatch.setattr(claims, "LEASE", 0.4)
        one.claim(KEYS)
        first = until(one)
        with one.claims.renewed(one.path):
            while until(one) < first + 0.2:
                time.sleep(0.02)
        last = until(one)
        while time.time() < last:
            time.sleep(0.02)
        assert other.claim(KEYS) == KEYS


def test_claims_of_a_process_that_was_killed_are_free_at_once(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=os.abort)
    child.start()
    child.join()
    with closing(Store(tmp_path)) as dead, closing(Store(tmp_path)) as other:
        host, _, token = dead.claims.owner.rsplit(":", 2)
        dead.claims.owner = f"{host}:{child.pid}:{token}"
        dead.claim(KEYS)
        assert other.claim(KEYS) == KEYS


def test_two_on_one_store_run_each_member_once(small, tmp_path, without_seconds):
    config, ran, errors = small(together=2, settings={"seed": {"low": 0, "high": 5}}), [], []
    one_at_a_time = threading.Lock()  # torch's random state is one for all threads

    def noted(block):
        with one_at_a_time:
            ran.extend(block.members)
            return work.work(block)

    def go():
        try:
            with Study(config, out=tmp_path / "shared") as opened:
                opened.run(runner=Local(work=noted), progress=False)
                assert opened.counts() == (24, 0, 24)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(ran) == len(set(ran)) == 24
    with Study(config, out=tmp_path / "shared") as shared, Study(config, out=tmp_path / "one") as one:
        one.run(progress=False)
        assert without_seconds(shared.table()) == without_seconds(one.table())
