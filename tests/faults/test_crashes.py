"""kill -9 at any moment: the run file opens, and holds every window that was committed."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import relume
from relume import RelumeError

RUNS = 50


@pytest.fixture(scope="module")
def killed(program, tmp_path_factory):
    """Folders of the runs, and how many windows each had committed for certain when it was killed."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, program, "kill", folder, str(RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [(folder / str(i), windows) for i, windows in enumerate(json.loads(done.stdout))]


def test_every_committed_window_is_there_after_kill_9_with_the_right_numbers(killed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
    x = torch.randn(8, 4)
    right = (2 * (model[0](x) > 0).sum(0)).tolist()
    lengths = set()
    for i, (folder, committed) in enumerate(killed):
        if i % 5 == 0:
            continue
        run = relume.load(folder)
        assert run.status == "running"
        assert committed <= len(run.windows) <= committed + 1, "one more may be committed and not yet told of"
        for number, window in enumerate(run.windows):
            counts = window.counts["train"]()["1"]
            assert counts.fired.tolist() == right
            assert (counts.inputs, window.first_step, window.complete) == (16, 2 * number, True)
        assert run.timeline("1").last_fired.max() == 2 * len(run.windows) - 1
        lengths.add(len(run.windows))
    assert len(lengths) > 10, "the kills fell at different moments"


def test_a_run_killed_at_its_start_opens_or_says_that_it_holds_nothing(killed):
    for folder, _ in killed[::5]:
        try:
            said = relume.load(folder).status
        except RelumeError as error:
            said = str(error)
        assert said == "running" or str(folder) in said


def test_a_killed_run_has_a_report(killed, tmp_path):
    folder, _ = max(killed, key=lambda pair: pair[1])
    page = relume.load(folder).report(tmp_path / "report.html").read_text()
    assert "running" in page
