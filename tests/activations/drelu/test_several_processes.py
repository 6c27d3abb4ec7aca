"""τ under DistributedDataParallel, in two processes that talk by gloo: of all ranks' inputs, or each rank's own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RANKS = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    processes = [
        subprocess.Popen([sys.executable, str(RANKS), str(folder)], env={**shared, "RANK": str(rank)})
        for rank in (0, 1)
    ]
    try:
        assert [p.wait(100) for p in processes] == [0, 0]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def running(batches):
    tau = None
    for x in batches:
        mean = torch.stack([c[c < 0].abs().mean() for c in x.T])
        tau = mean if tau is None else tau + 0.5 * (mean - tau)
    return tau


@pytest.mark.parametrize("broadcast", [True, False])
def test_synchronised_tau_is_that_of_all_inputs_on_every_rank(results, broadcast):
    (a, tau_a, n_a), (b, tau_b, n_b) = (r[True, broadcast] for r in results)
    torch.testing.assert_close(tau_a, running([torch.cat(pair) for pair in zip(a, b, strict=True)]))
    assert torch.equal(tau_a, tau_b)
    assert n_a.tolist() == n_b.tolist() == [3] * 6


def test_local_tau_is_each_ranks_own_where_buffers_are_not_copied(results):
    for seen, tau, _ in (r[False, False] for r in results):
        torch.testing.assert_close(tau, running(seen))
    assert not torch.equal(results[0][False, False][1], results[1][False, False][1])


def test_local_tau_begins_each_step_as_rank_zeros_where_buffers_are_copied(results):
    (seen, first, _), (other, second, _) = (r[False, True] for r in results)
    torch.testing.assert_close(first, running(seen))
    before = running(seen[:2])
    torch.testing.assert_close(second, before + 0.5 * (running(other[2:]) - before))
