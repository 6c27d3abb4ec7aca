"""`Runner`: what a study asks of whoever trains its members."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from relume.lab.runners.work import Block, Outcome


class Runner(Protocol):
    """Trains blocks. It is entered once, and may then be asked to run several times."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, blocks: Iterator[Block]) -> Iterator[list[Outcome]]:
        """Outcomes as they come in, of one block or a part of one at a time. A block is taken from the iterator only
        when there is somebody to train it.

        Raises:
            MissingExtraError: what the data come from is not installed.
        """
        ...
