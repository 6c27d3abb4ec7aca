"""Claims 5 to 7: what helps against dying: activations that have no flat zone, normalization, initialization."""

from __future__ import annotations

from collections.abc import Iterator

from relume.lab.claims import contest
from relume.lab.claims.cost import UNTREATED
from relume.lab.claims.death import DEEP, ESSAY, RAN, against
from relume.lab.claims.effects import ByTask
from relume.lab.claims.measures import DEAD, TEST, Measure
from relume.lab.claims.members import CONTEST_TASKS, DOOMED, FRESH_SEEDS, TASKS, seeded
from relume.lab.claims.question import Question
from relume.lab.stats import simultaneous
from relume.lab.verdicts import Claim, Says

ACTIVATIONS = {"leaky_relu": "Leaky ReLU", "prelu": "PReLU", "rrelu": "RReLU", "elu": "ELU"}
NORMS = {"batch": "Batch normalization", "layer": "Layer normalization"}
INITS = {"he": "He's initialization", "lsuv": "LSUV", "rai": "RAI"}

LEAKING: dict[str, ByTask] = {a: {t: seeded(t, lr=DOOMED, activation=a) for t in TASKS} for a in ACTIVATIONS}
NORMED: dict[str, ByTask] = {n: {t: seeded(t, lr=DOOMED, norm=n) for t in TASKS} for n in NORMS}
_OUTCOMES: tuple[tuple[Measure, str, Says], ...] = (
    (DEAD, "leaves fewer dead units", "less"),
    (TEST, "raises the test score", "more"),
)
_PLAIN = UNTREATED["lr 0.03"]


def _helps(number: int, name: str, shown: str, ours: ByTask, theirs: ByTask, ran: str, of: int) -> Iterator[Question]:
    """Two questions: of the dead, and of the score; `of` so many things that are tried beside each other."""
    for measure, does, says in _OUTCOMES:
        claim = Claim(
            f"{name}, {'dead' if measure is DEAD else 'score'}", f"{shown} {does}.", ESSAY,
            f"by {measure.beyond}; intervals hold at once for all {of} that are tried",
            says, measure.margin,
        )  # fmt: skip
        yield against(number, claim, measure, ours, theirs, ran, simultaneous(0.95, of))


def _tuned(name: str, shown: str) -> Question:
    of = len(ACTIVATIONS)
    claim = Claim(
        f"{name}, tuned", f"{shown} raises the test score where each has the learning rate that suits it.", ESSAY,
        f"by {TEST.beyond} over ReLU, mean over tasks; intervals hold at once for all {of} that are tried",
        "more", TEST.margin,
    )  # fmt: skip
    ran = f"{shown} against ReLU in the contest of claim 9; {len(CONTEST_TASKS)} tasks × {len(FRESH_SEEDS)} seeds"
    return Question(
        5, claim, TEST, lambda runs: contest.needs(runs, (name, "relu")),
        lambda runs: contest.against(runs, name, "relu", TEST, simultaneous(0.95, of)), ran,
    )  # fmt: skip


def _activation(name: str, shown: str) -> Iterator[Question]:
    ran = f"{shown} against ReLU at lr {DOOMED:g}; {RAN}"
    yield from _helps(5, name, shown, LEAKING[name], _PLAIN, ran, len(ACTIVATIONS))
    yield _tuned(name, shown)


def _norm(name: str, shown: str) -> Iterator[Question]:
    ran = f"with against without, at lr {DOOMED:g}; {RAN}"
    return _helps(6, f"{name} norm", shown, NORMED[name], _PLAIN, ran, len(NORMS))


def _init(name: str, shown: str) -> Iterator[Question]:
    ran = f"against torch's default, at depth 8; {RAN}"
    return _helps(7, name, shown, DEEP[name], DEEP["torch"], ran, len(INITS))


QUESTIONS = (
    *(question for name, shown in ACTIVATIONS.items() for question in _activation(name, shown)),
    *(question for name, shown in NORMS.items() for question in _norm(name, shown)),
    *(question for name, shown in INITS.items() for question in _init(name, shown)),
)
