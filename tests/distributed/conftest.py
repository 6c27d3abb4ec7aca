"""Runs cases of `workers.py` in two processes that talk by gloo, and keeps what they return."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

WORKERS = Path(__file__).with_name("workers.py")
SECONDS = 100  # for all cases of one launch


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """launch("case", …) gives {"case": [result on rank 0, on rank 1]}; None where a rank ended before.

    The same cases are run once, also where several pytest workers ask for them.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(*cases):
        folder = base / f"ranks-{cases[0]}"
        try:
            folder.mkdir()
        except FileExistsError:
            wait_for(folder / "ended")
        else:
            try:
                start(folder, cases)
            finally:
                (folder / "ended").touch()
        return {case: results(folder, case) for case in cases}

    return run


def wait_for(path):
    deadline = time.monotonic() + SECONDS + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def start(folder, cases):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "relume",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    ranks = []
    for rank in ("0", "1"):
        with (folder / f"output.{rank}").open("w") as file:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, str(WORKERS), str(folder), *cases],
                    env={**environment, "RANK": rank, "LOCAL_RANK": rank},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        deadline = time.monotonic() + SECONDS
        codes = [process.wait(max(0.0, deadline - time.monotonic())) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    (folder / "codes").write_text(" ".join(map(str, codes)))


def results(folder, case):
    """What a case returned on each rank; how the processes ended is `codes`."""
    paths = [folder / f"{case}.{rank}" for rank in range(2)]
    found = [torch.load(p, weights_only=False) if p.exists() else None for p in paths]
    for rank, result in enumerate(found):
        output = (folder / f"output.{rank}").read_text()[-3000:]
        assert not isinstance(result, str), f"{case} on rank {rank}:\n{result}\n{output}"
        assert any(r is not None for r in found), f"{case} gave nothing; rank {rank} printed:\n{output}"
    return found
