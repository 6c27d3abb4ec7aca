"""`OnRay`: blocks as tasks of a Ray cluster; only the driver writes to the store."""

from __future__ import annotations

import importlib
import logging
import re
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch

from relume.errors import RelumeError, missing_extra
from relume.lab.runners.work import Block, Outcome, failed, work

# Times that Ray starts a block anew whose worker was killed, or whose machine was lost.
_RETRIES = 3
_PATIENCE = 10.0  # seconds for a cluster to answer


class OnRay:
    """Runs blocks on Ray, a CPU and a thread for each.

    A block whose worker dies is retried by Ray; one that dies again and again is taken apart, and what dies by itself
    has failed.

    Args:
        jobs: CPUs of a cluster that is started here.
        address: of a running one, as `ray.init` takes it; None starts one, unless this process is connected already.
        work: what is done with a block.
    """

    def __init__(self, jobs: int = 1, address: str | None = None, work: Callable[[Block], list[Outcome]] = work):
        self._jobs, self._address, self._work = jobs, address, work
        self._ours = False

    def __enter__(self) -> OnRay:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise missing_extra("ray", "ray", "the runner ray") from error
        if not self._ray.is_initialized():
            here = {"num_cpus": self._jobs, "include_dashboard": False} if self._address is None else {}
            try:
                _knock(self._address or "local")
                self._ray.init(
                    address=self._address or "local", log_to_driver=False, logging_level=logging.ERROR, **here
                )
            except (OSError, RuntimeError, ValueError) as error:
                where = f"at {self._address}" if self._address else "here"
                raise RelumeError(f"there is no Ray cluster {where}: {error}") from error
            self._ours = True
        run = _in_one_thread(self._work, torch.get_default_dtype())
        self._remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            self._ray.shutdown()

    def run(self, blocks: Iterator[Block]) -> Iterator[list[Outcome]]:
        """See `Runner`."""
        ray = self._ray
        running: dict[Any, Block] = {}
        apart: list[Block] = []
        more = True
        try:
            while True:
                at_most = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
                while apart or (more and len(running) < at_most):
                    block = apart.pop() if apart else next(blocks, None)
                    if block is None:
                        more = False
                        break
                    running[self._remote.remote(block)] = block
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    block = running.pop(reference)
                    try:
                        outcomes = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from error  # `work` raises what ends a study, and nothing else
                    except ray.exceptions.RayError as error:
                        if len(block.members) > 1:
                            apart += block.alone()
                            continue
                        died = f"its worker died {_RETRIES + 1} times: {str(error).splitlines()[0]}"
                        outcomes = [failed(block.members[0], died)]
                    yield outcomes
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _knock(address: str) -> None:
    """Does anybody listen there? Ray itself asks again for many minutes.

    Raises:
        OSError: nobody does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+)\]?:(\d+)", address)
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE).close()


def _in_one_thread(work: Callable[[Block], list[Outcome]], dtype: torch.dtype) -> Callable[[Block], list[Outcome]]:
    def run(block: Block) -> list[Outcome]:
        torch.set_num_threads(1)
        torch.set_default_dtype(dtype)
        return work(block)

    return run
