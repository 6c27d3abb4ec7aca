"""The local runner with several processes: the same results, and a process that is killed is no loss."""

import pytest

from relume.lab import Member, Study
from relume.lab.runners import Block, Local
from relume.lab.runners.work import work

KILLER = """\
import os, pathlib, signal
from relume.lab.runners.work import work

MARK = pathlib.Path({mark!r})

def work_or_die(block):
    if any(m.seed == 1 for m in block.members) and not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if any(m.seed == 2 for m in block.members):
        os._exit(1)  # every time
    return work(block)
"""


def test_killed_processes_cost_nothing_but_the_member_that_kills(small, tmp_path, monkeypatch, without_seconds):
    (tmp_path / "killer_of_workers.py").write_text(KILLER.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    from killer_of_workers import work_or_die

    config = small(together=2, settings={"activation": "relu", "lr": 0.1, "seed": [0, 1, 2]})
    with Study(config, out=tmp_path / "killed") as killed:
        killed.run(runner=Local(2, work_or_die), progress=False)
        assert (tmp_path / "mark").exists()
        ((member, reason),) = killed.failures()
        assert member.seed == 2
        assert "its process died 2 times" in reason
        rows = [row for row in killed.table() if row["seed"] != 2]
    config["settings"]["seed"] = [0, 1]
    with Study(config, out=tmp_path / "here") as here:
        here.run(progress=False)
        assert without_seconds(rows) == without_seconds(here.table())


def test_blocks_are_taken_only_when_somebody_is_free():
    taken = []

    def blocks():
        for seed in range(5):
            taken.append(seed)
            yield Block((Member("spirals", seed=seed, steps=2, window=2, every=1),))

    with Local(1, work) as runner:
        found = runner.run(blocks())
        assert taken == []
        (outcome,) = next(found)
        assert outcome.result is not None
        assert taken == [0]
        assert len(list(found)) == 4


@pytest.mark.parametrize("jobs", [1, 3])
def test_nothing_to_do_starts_no_process(jobs):
    with Local(jobs) as runner:
        assert list(runner.run(iter(()))) == []
        assert runner._pool is None
