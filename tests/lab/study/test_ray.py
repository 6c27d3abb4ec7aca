"""The same study on Ray: the same results, also when a worker is killed. One cluster for the file: it takes seconds."""

import os
import pathlib
import signal
import socket

import pytest
import torch

from relume.errors import MissingExtraError, RelumeError
from relume.lab import Study
from relume.lab.runners import Block, Outcome, work
from relume.lab.runners.on_ray import OnRay

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'relume[ray]'")


@pytest.fixture(scope="module")
def cluster():
    """That is there before relume comes, and stays when it goes."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_as_here_though_a_worker_is_killed(cluster, small, tmp_path, without_seconds):
    config = small(settings={"activation": ["relu", "rrelu"], "seed": [0, 1]})
    mark = str(tmp_path / "mark")

    def dies_once(block):  # a function in a function goes to the workers by value
        if block.together and not pathlib.Path(mark).exists():
            pathlib.Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work.work(block)

    with Study(config, out=tmp_path / "ray") as there, Study(config, out=tmp_path / "here") as here:
        there.run(runner=OnRay(work=dies_once), progress=False)
        here.run(progress=False)
        assert pathlib.Path(mark).exists()
        assert there.counts() == here.counts() == (8, 0, 8)
        assert without_seconds(there.table()) == without_seconds(here.table())
        for a, b in zip(there.results(), here.results(), strict=True):
            assert (a.curves.loss, a.sites) == (b.curves.loss, b.sites)
    assert ray.is_initialized()


def test_what_kills_its_worker_every_time_has_failed_and_the_others_have_not(cluster, small, tmp_path, monkeypatch):
    monkeypatch.setattr("relume.lab.runners.on_ray._RETRIES", 0)

    def deadly(block):
        if any(m.seed == 1 for m in block.members):
            os._exit(1)
        return work.work(block)

    with Study(small(settings={"activation": "relu", "lr": 0.1, "seed": [0, 1]}), out=tmp_path) as study:
        study.run(runner=OnRay(work=deadly), progress=False)
        assert study.counts() == (1, 1, 2)
        ((member, reason),) = study.failures()
        assert member.seed == 1
        assert reason.startswith("its worker died 1 times")


def test_what_ends_a_study_here_ends_it_there(cluster, small, tmp_path):
    def missing(block):
        raise MissingExtraError("the data are not installed")

    with Study(small(), out=tmp_path) as study:
        with pytest.raises(MissingExtraError, match="the data are not installed"):
            study.run(runner=OnRay(work=missing), progress=False)
        assert study.counts().done == 0


def test_workers_compute_as_the_driver_does(cluster, small, tmp_path):
    def told(block):
        return [Outcome(m, None, f"{torch.get_default_dtype()} {torch.get_num_threads()}") for m in block.members]

    block = Block(tuple(Study(small(), out=tmp_path)._plan.members().values())[:1])
    torch.set_default_dtype(torch.float64)
    try:
        with OnRay(work=told) as runner:
            ((outcome,),) = runner.run(iter([block]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert outcome.error == "torch.float64 1"


def test_a_cluster_that_is_not_there_is_said_at_once(small, tmp_path):
    ray.shutdown()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            Study(small(), out=tmp_path) as study,
            pytest.raises(RelumeError, match=f"no Ray cluster at {address}: .*"),
        ):
            study.run(runner="ray", address=address, progress=False)
