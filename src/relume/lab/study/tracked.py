"""`Tracked`: what one go of a study has still to run, and what becomes known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from relume.lab.member import Member
from relume.lab.runners import Block
from relume.lab.runners.work import blocks
from relume.lab.study.best import Ranking, judged
from relume.lab.study.config import Config
from relume.lab.study.plan import Plan
from relume.lab.study.rows import Head
from relume.lab.study.show import Display
from relume.lab.study.store import counts


class Tracked:
    """What is still to be run in one go of a study, and what is shown of it."""

    def __init__(
        self, config: Config, ranking: Ranking, display: Display, scores: dict[str, float], again: bool
    ) -> None:
        self._config, self._ranking, self._display, self._scores = config, ranking, display, scores
        self.again = again
        self.pending: dict[str, Member] = {}
        self._seen: set[str] = set()
        self._round: list[Member] = []

    def over(self, status: str, diagnosed: bool) -> bool:
        """Need a member of such a row not be run?"""
        return counts(status, diagnosed, diagnose=self._config.diagnose, again=self.again)

    def begin(self, plan: Plan, heads: Iterable[tuple[str, Head]]) -> None:
        """With the members that are planned and what has been run of them."""
        self.take(plan)
        done = failed = 0
        for key, head in heads:
            if self.found(key, head, tell=False):
                failed += head["status"] == "failed"
                done += head["status"] == "done"
        self._display.known(done, failed)

    def take(self, plan: Plan) -> list[str]:
        """Take in the members that are new in the plan: a round. Returns their keys."""
        new = {key: member for key, member in plan.members().items() if key not in self._seen}
        self._seen.update(new)
        self.pending.update(new)
        self._round = list(new.values())
        return list(new)

    def found(self, key: str, head: Head | None, tell: bool = True) -> bool:
        """A row was found in the store: need this member, if it is pending, not be run?"""
        if head is None or key not in self.pending or not self.over(head["status"], head.get("causes") is not None):
            return False
        self.landed(key, head, tell)
        return True

    def landed(self, key: str, head: Head | None, tell: bool = True) -> None:
        """A member has been run, by whomever."""
        if head is None or self.pending.pop(key, None) is None:
            return
        if head["status"] == "done":
            self._scores[key] = judged(head, self._config.objective)
        self._ranking.add(head)
        if tell:
            self._display.add(head)

    def blocks(self) -> Iterator[Block]:
        """All members of the round in blocks, run or not: so a block is the same after a kill as before."""
        return blocks(self._round, together=self._config.together, diagnose=self._config.diagnose)
