"""Claims 1 to 3: what kills units: depth, the learning rate, initialization."""

from __future__ import annotations

import math
from collections.abc import Sequence

from relume.lab.claims.effects import ByTask, paired, trend
from relume.lab.claims.measures import BORN_DEAD, DEAD, Measure
from relume.lab.claims.members import SEEDS, TASKS, seeded
from relume.lab.claims.question import Question
from relume.lab.member import Member
from relume.lab.verdicts import Claim

ESSAY = "the essay"
DEPTHS = (2, 4, 8, 16)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
#: By setting, its levels.
LEVELS: dict[str, tuple[ByTask, ...]] = {
    "depth": tuple({task: seeded(task, depth=depth) for task in TASKS} for depth in DEPTHS),
    "lr": tuple({task: seeded(task, lr=lr) for task in TASKS} for lr in RATES),
}
DEEP: dict[str, ByTask] = {
    init: {task: seeded(task, depth=8, init=init) for task in TASKS} for init in ("torch", "he", "lsuv", "rai")
}
# Lu et al.'s networks: deep, and so narrow that all of a layer may be silent at once.
_NARROW = {"depth": 10, "width": 3, "steps": 20, "every": 2, "window": 20, "batch": 64}
NARROW: dict[str, ByTask] = {init: {"sine": seeded("sine", init=init, **_NARROW)} for init in ("he", "rai")}

RAN = f"images, text, speech × {len(SEEDS)} seeds"


def members(*groups: ByTask) -> tuple[Member, ...]:
    """Of all tasks of all groups."""
    return tuple(member for group in groups for of_task in group.values() for member in of_task)


def against(
    number: int, claim: Claim, measure: Measure, ours: ByTask, theirs: ByTask, ran: str, confidence: float = 0.95
) -> Question:
    """A question of a paired difference: ours less theirs."""
    return Question(
        number, claim, measure, lambda runs: members(ours, theirs),
        lambda runs: paired(runs, ours, theirs, measure, confidence), ran,
    )  # fmt: skip


def _trend(number: int, id: str, text: str, measure: Measure, setting: str, at: Sequence[float], per: str) -> Question:
    levels = LEVELS[setting]
    support = f"the share of {measure.name} grows by {measure.beyond} {per} (each seed's slope, mean over tasks)"
    run_at = {"depth": "depths 2, 4, 8, 16 at lr 0.003", "lr": "lr 0.001, 0.003, 0.01, 0.03, 0.1 at depth 4"}
    return Question(
        number, Claim(id, text, ESSAY, support, "more", measure.margin), measure, lambda runs: members(*levels),
        lambda runs: trend(runs, levels, at, measure), f"{run_at[setting]}; {RAN}", per,
    )  # fmt: skip


def _worse(id: str, text: str, measure: Measure, how: str) -> Question:
    support = f"deep ReLU networks drawn by torch's default, which is not made for ReLU, have {how}"
    ran = f"torch's default against He's at depth 8; {RAN}"
    claim = Claim(id, text, ESSAY, f"{support}, by {measure.beyond}", "more", measure.margin)
    return against(3, claim, measure, DEEP["torch"], DEEP["he"], ran)


_DOUBLINGS = tuple(math.log2(depth) for depth in DEPTHS)
_TENFOLDS = tuple(math.log10(lr) for lr in RATES)
_PER_DEPTH = "per doubling of depth"

QUESTIONS = (
    _trend(1, "depth", "Units die more in deeper networks.", DEAD, "depth", _DOUBLINGS, _PER_DEPTH),
    _trend(
        1, "depth-born", "More of them are born dead in deeper networks.", BORN_DEAD, "depth", _DOUBLINGS, _PER_DEPTH
    ),
    _trend(2, "rate", "Units die more at a higher learning rate.", DEAD, "lr", _TENFOLDS, "per tenfold rate"),
    _worse(
        "init-born", "A bad initialization makes units be born dead.", BORN_DEAD,
        "more units born dead than those drawn by He's rule",
    ),
    _worse(
        "init-dead", "A bad initialization makes more units be dead after training.", DEAD,
        "more dead units at the end than those drawn by He's rule",
    ),
    against(
        3,
        Claim(
            "init-narrow", "In deep narrow networks He's initialization, symmetric about zero, buries units at birth.",
            ESSAY, f"of 10 layers of 3 units, by {BORN_DEAD.beyond} more are born dead by He's rule than by the "
            "asymmetric RAI", "more", BORN_DEAD.margin,
        ),
        BORN_DEAD, NARROW["he"], NARROW["rai"],
        f"He's against RAI, 10 layers of 3 units, x sin 5x, first 20 steps; {len(SEEDS)} seeds",
    ),
)  # fmt: skip
