"""`carry_out`: train what the claims still lack. It may be stopped at any moment and called again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from relume.errors import RelumeError
from relume.lab.claims.question import Question
from relume.lab.claims.runs import Run, Runs
from relume.lab.member import Member
from relume.lab.runners.work import Block, blocks, work

# Seconds of work that a kill may cost.
_KEPT_EVERY = 20.0


def carry_out(
    questions: tuple[Question, ...],
    path: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Runs:
    """Train the members that questions need and the file lacks, and write them into it.

    Some are known only when others have been run (a learning rate is chosen first), so it asks until none is missing.

    Raises:
        RelumeError: a member failed, which is said with its settings.
    """
    runs = Runs.read(path)
    while missing := _missing(questions, runs):
        done, kept = 0, time.monotonic()
        say(f"{len(missing)} trainings")
        try:
            for block in blocks(missing, together=32, diagnose=False):
                runs.add(_trained(block))
                done += len(block.members)
                if time.monotonic() - kept > _KEPT_EVERY:
                    runs.write(path)
                    kept = time.monotonic()
                    say(f"{done} of {len(missing)}, now {block.members[0].task}")
        finally:
            runs.write(path)
    return runs


def _missing(questions: tuple[Question, ...], runs: Runs) -> list[Member]:
    needed = {member: None for question in questions for member in question.needs(runs)}
    return [member for member in needed if member not in runs]


def _trained(block: Block) -> list[Run]:
    found = []
    for outcome in work(block):
        if outcome.result is None:
            raise RelumeError(f"{outcome.member} failed: {outcome.error}")
        found.append(Run.of(outcome.result))
    return found
