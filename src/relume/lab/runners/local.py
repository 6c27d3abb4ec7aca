"""`Local`: blocks in this process, or in several on this machine, of one thread each."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

import torch

from relume.lab.runners.work import Block, Outcome, failed, work

# Times that a member may take its process down with it.
_TRIES = 2
_DIED = "its process died {} times while it ran by itself, killed from outside or for want of memory"

Work = Callable[[Block], list[Outcome]]


class Local:
    """Runs blocks here.

    A process that dies takes down those of its neighbours, as a pool of processes does. All that they were running is
    then run again, one at a time: whose process dies again has failed, and the others have their results.

    Args:
        jobs: processes; 1 is this one.
        work: what is done with a block.
    """

    def __init__(self, jobs: int = 1, work: Work = work) -> None:
        self._jobs, self._work = jobs, work
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(at_once=kind is not None)

    def run(self, blocks: Iterator[Block]) -> Iterator[list[Outcome]]:
        """See `Runner`."""
        return map(self._work, blocks) if self._jobs == 1 else self._in_processes(blocks)

    def _in_processes(self, blocks: Iterator[Block]) -> Iterator[list[Outcome]]:
        running: dict[Future[list[Outcome]], Block] = {}
        suspects: collections.deque[tuple[Block, int]] = collections.deque()
        more = True
        while True:
            # One waits for whoever is ready first.
            while more and len(running) < self._jobs + 1:
                block = next(blocks, None)
                more = block is not None
                if block is not None:
                    self._submit(block, running, suspects)
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    block = running.pop(future)
                    try:
                        outcomes = future.result()
                    except BrokenProcessPool:
                        suspects.append((block, 0))
                        continue
                    yield outcomes
            if suspects:
                suspects += ((block, 0) for block in running.values())
                running.clear()
                self._stop(at_once=True)
            while suspects:
                yield from self._alone(suspects)
            if not more and not running:
                return

    def _submit(
        self, block: Block, running: dict[Future[list[Outcome]], Block], suspects: collections.deque[tuple[Block, int]]
    ) -> None:
        try:
            running[self._started().submit(self._work, block)] = block
        except BrokenProcessPool:  # it has died since
            suspects.append((block, 0))

    def _alone(self, suspects: collections.deque[tuple[Block, int]]) -> Iterator[list[Outcome]]:
        """Run the first of those that were running when a process died, and nothing beside it."""
        block, tries = suspects.popleft()
        try:
            yield self._started().submit(self._work, block).result()
        except BrokenProcessPool:
            self._stop(at_once=True)
            if len(block.members) > 1:
                suspects.extendleft((alone, 0) for alone in reversed(block.alone()))
            elif tries + 1 < _TRIES:
                suspects.appendleft((block, tries + 1))
            else:
                yield [failed(block.members[0], _DIED.format(_TRIES))]

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked torch may hang
            self._pool = ProcessPoolExecutor(self._jobs, context, _begin, (torch.get_default_dtype(),))
        return self._pool

    def _stop(self, at_once: bool) -> None:
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        # Before shutdown, which lets go of them; what they run is of no use to anyone.
        processes = list((getattr(pool, "_processes", None) or {}).values()) if at_once else []
        for process in processes:
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(dtype: torch.dtype) -> None:
    """In a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that leads
    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    # A process whose parent was killed would wait for work for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()
