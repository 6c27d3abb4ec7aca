"""Runners: who trains the members of a study. `work.py` says what is done with a block of them, wherever it is done."""

from __future__ import annotations

from relume.lab.runners.local import Local
from relume.lab.runners.on_ray import OnRay
from relume.lab.runners.runner import Runner as Runner
from relume.lab.runners.work import Block as Block
from relume.lab.runners.work import Outcome as Outcome

RUNNERS = ("local", "ray")


def runner(name: str, *, jobs: int = 1, address: str | None = None) -> Runner:
    """A runner by name, not yet started.

    Args:
        name: "local" or "ray".
        jobs: processes of the local one, where 1 is this process; CPUs of a Ray cluster that is started here.
        address: of a Ray cluster; None starts one here.

    Raises:
        ValueError: there is no such runner, or it takes no such arguments.
    """
    if name not in RUNNERS:
        raise ValueError(f"runner is one of {', '.join(RUNNERS)}, not {name!r}")
    if jobs < 1:
        raise ValueError(f"jobs is a whole number not below 1, not {jobs}")
    if name == "ray":
        return OnRay(jobs, address)
    if address is not None:
        raise ValueError("an address is of a Ray cluster: give runner ray too")
    return Local(jobs)
