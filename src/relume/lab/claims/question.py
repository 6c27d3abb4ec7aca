"""`Question`: a claim with the members that it needs and how its effect is computed of them; and its judgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relume.errors import RelumeError
from relume.lab.claims.measures import Measure
from relume.lab.claims.runs import Runs
from relume.lab.member import Member
from relume.lab.stats import Interval
from relume.lab.verdicts import Claim, Verdict, verdict


class MissingRunsError(RelumeError):
    """A claim can't be judged: members that it needs have not been run."""


@dataclass(frozen=True)
class Effect:
    """What was measured.

    Attributes:
        overall: what the claim is judged by.
        parts: of what it is made up, by name: tasks, or rivals.
        note: what else has to be known, in a sentence.
    """

    overall: Interval
    parts: tuple[tuple[str, Interval], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Question:
    """A claim, or a part of one, that trainings can settle.

    Attributes:
        number: of the essay's claim that it is a part of.
        claim: with what would support it, written down before anything was run.
        measure: what it is about.
        needs: the members that it is judged by, as far as they are known from what has been run.
        effect: of these.
        ran: what was run, in words.
        per: of a slope, what one step along the setting is.
    """

    number: int
    claim: Claim
    measure: Measure
    needs: Callable[[Runs], Sequence[Member]]
    effect: Callable[[Runs], Effect]
    ran: str
    per: str = ""

    @property
    def unit(self) -> str:
        """Of the effect."""
        return f"{self.measure.unit} {self.per}".strip()


@dataclass(frozen=True)
class Judged:
    """A question with its answer."""

    question: Question
    effect: Effect
    verdict: Verdict


def judge(question: Question, runs: Runs) -> Judged:
    """Hold what was measured against the claim.

    Raises:
        MissingRunsError: members that it needs have not been run; it says which.
    """
    missing = [member for member in question.needs(runs) if member not in runs]
    if missing:
        raise MissingRunsError(
            f"claim '{question.claim.id}' can't be judged: {len(missing)} of its members have not been run, the first "
            f"of them {missing[0]}; `python docs/verdicts.py --run` runs them"
        )
    effect = question.effect(runs)
    return Judged(question, effect, verdict(question.claim, effect.overall, question.ran))
