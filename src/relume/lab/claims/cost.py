"""Claim 4: what dying costs. An association over runs, and two tests of cause: doomed trainings in which nothing is
changed but that the dead are revived, or that the flat zone has a slope of 0.01."""

from __future__ import annotations

from dataclasses import dataclass

from relume.lab.claims.death import ESSAY, LEVELS, RAN, against, members
from relume.lab.claims.effects import ByTask, association
from relume.lab.claims.measures import DEAD, GAP, LOSS, TEST, Measure
from relume.lab.claims.members import CHANGES, TASKS, seeded
from relume.lab.claims.question import Question
from relume.lab.verdicts import Claim, Says

#: By name of the doomed setting.
UNTREATED: dict[str, ByTask] = {name: {t: seeded(t, **change) for t in TASKS} for name, change in CHANGES}
REVIVED: dict[str, ByTask] = {
    name: {t: seeded(t, treatment="guard", **change) for t in TASKS} for name, change in CHANGES
}
SLOPED: dict[str, ByTask] = {
    name: {t: seeded(t, activation="leaky_relu", **change) for t in TASKS} for name, change in CHANGES
}
_DEAD_POINTS = 10.0


@dataclass(frozen=True)
class _Cost:
    """What dying is said to cost, by what it is measured, in words too, and which way the cost goes."""

    what: str
    measure: Measure
    measured: str
    says: Says

    @property
    def worse(self) -> str:
        return f"{'lower' if self.says == 'less' else 'higher'} by {self.measure.beyond}"


_COSTS = (
    _Cost("accuracy", TEST, "the test score", "less"),
    _Cost("convergence", LOSS, "the training loss, averaged over all steps,", "more"),
    _Cost("generalization", GAP, "the gap between training and test score", "more"),
)


def _caused(cost: _Cost, setting: str) -> Question:
    claim = Claim(
        f"{cost.what}, {setting}", f"Dying costs {cost.what} (cause, by revival; {setting}).", ESSAY,
        f"{cost.measured} is {cost.worse} in trainings left alone than in the same trainings whose dead units are "
        "revived", cost.says, cost.measure.margin,
    )  # fmt: skip
    ran = f"left alone, less revived by `guard`, at {setting}; {RAN}"
    return against(4, claim, cost.measure, UNTREATED[setting], REVIVED[setting], ran)


def _sloped(cost: _Cost, setting: str) -> Question:
    claim = Claim(
        f"{cost.what}, sloped, {setting}", f"Dying costs {cost.what} (cause, by a slope of 0.01; {setting}).", ESSAY,
        f"{cost.measured} is {cost.worse} with ReLU than with Leaky ReLU of slope 0.01, which differs from it in "
        "nothing but that its units can't die (added when results of revival had been seen)",
        cost.says, cost.measure.margin,
    )  # fmt: skip
    ran = f"ReLU, less Leaky ReLU (0.01), at {setting}; {RAN}"
    return against(4, claim, cost.measure, UNTREATED[setting], SLOPED[setting], ran)


def _associated(cost: _Cost) -> Question:
    levels = LEVELS["lr"]
    claim = Claim(
        f"{cost.what}, associated", f"Trainings in which more units die have worse {cost.what} (association).", ESSAY,
        f"among trainings of one learning rate, {cost.measured} is {cost.worse} for each {_DEAD_POINTS:g} points more "
        "of dead units", cost.says, cost.measure.margin,
    )  # fmt: skip
    return Question(
        4, claim, cost.measure, lambda runs: members(*levels),
        lambda runs: association(runs, levels, DEAD, cost.measure, _DEAD_POINTS),
        f"lr 0.001 to 0.1, none treated; {RAN}", f"per {_DEAD_POINTS:g} points dead",
    )  # fmt: skip


def _works(setting: str) -> Question:
    claim = Claim(
        f"revival, {setting}", f"Revival leaves fewer dead units (which the first test of cause rests on; {setting}).",
        "a check of the instrument",
        f"the share of dead units is higher by {DEAD.beyond} in trainings left alone than in the same ones revived",
        "more", DEAD.margin,
    )  # fmt: skip
    ran = f"left alone, less revived by `guard`, at {setting}; {RAN}"
    return against(4, claim, DEAD, UNTREATED[setting], REVIVED[setting], ran)


QUESTIONS = (
    *(_works(setting) for setting, _ in CHANGES),
    *(_caused(cost, setting) for setting, _ in CHANGES for cost in _COSTS),
    *(_sloped(cost, setting) for setting, _ in CHANGES for cost in _COSTS),
    *(_associated(cost) for cost in _COSTS),
)
