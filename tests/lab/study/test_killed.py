"""A study that is killed, at any moment and again and again, and then resumed is one that never was."""

import multiprocessing
import random
import time
from contextlib import closing

import pytest

from relume.lab import Study, study
from relume.lab.study.store import FILE_NAME, Store

# A server that has imported all, and forks a process in a moment.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["relume.lab.study", "optuna"])

CONFIGS = {
    "grid": {
        "together": 3,
        "settings": {"activation": ["relu", "rrelu", "elu"], "lr": 0.1, "seed": {"low": 0, "high": 6}},
    },
    "optuna": {"sampler": "optuna", "trials": 10, "at_once": 2, "settings": {"lr": {"low": 0.01, "high": 1.0}}},
}


def rows(folder):
    """What is in the store, by key; times too, which a run that is done once has for good."""
    if not (folder / FILE_NAME).exists():
        return {}
    with closing(Store(folder, make=False)) as store:
        return dict(store.heads())


@pytest.mark.parametrize("kind", CONFIGS)
def test_killed_and_resumed_is_as_never_killed(kind, small, tmp_path, without_seconds):
    if kind == "optuna":
        pytest.importorskip("optuna")
    config, folder = small(**CONFIGS[kind]), tmp_path / "killed"
    when = random.Random(kind)
    before, partly = {}, 0
    # Some are killed early, at the making of the store too, the others after a result or more of theirs.
    for many in (0, 0, 1, 4, 1, 4):
        child = SERVER.Process(target=study, args=(config,), kwargs={"out": folder, "progress": False})
        child.start()
        while many and child.is_alive() and len(rows(folder)) < len(before) + many:
            time.sleep(0.03)
        child.join(when.random() * (0.05 if many else 0.25))
        child.kill()
        child.join()
        found = rows(folder)
        assert {key: found.get(key) for key in before} == before  # nothing lost, nothing run twice
        partly += len(before) < len(found)
        before = found
    assert partly >= 2
    study(config, out=folder, progress=False).close()
    assert {key: rows(folder).get(key) for key in before} == before
    with Study(config, out=folder) as killed, study(config, out=tmp_path / "whole", progress=False) as never:
        assert killed.counts() == never.counts()
        assert killed.counts().done == killed.counts().total > 0
        assert without_seconds(killed.table()) == without_seconds(never.table())
        results = zip(killed.results(), never.results(), strict=True)
        assert all(a.curves.loss == b.curves.loss and a.sites == b.sites for a, b in results)
