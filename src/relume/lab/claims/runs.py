"""`Runs`: of many trainings the few numbers that claims are judged by, in one small file that ships with the page."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relume.errors import RelumeError
from relume.lab import tasks
from relume.lab.member import Member
from relume.lab.result import Result

_SETTINGS = {f.name: str(f.type) for f in dataclasses.fields(Member)}
_NUMBERS = ("train", "validation", "test", "loss")
_COUNTS = ("units", "dead", "born_dead")


@dataclass(frozen=True)
class Run:
    """What is kept of one training.

    Attributes:
        member: its settings.
        train, validation, test: scores at the end in points, higher is better: percent of right answers; of a
            regression, 100 (1 − RMSE / standard deviation of what is to be predicted). No finite output, or a
            regression worse than a constant answer, has the points of a constant answer.
        loss: training loss, the mean over windows; in a window where it is not finite or higher, that of a constant
            answer, by which nothing has been learnt.
        units, dead: of all sites at the end, on all training inputs.
        born_dead: dead in the first window already.
        diverged: was the training loss ever NaN or infinite?
    """

    member: Member
    train: float
    validation: float
    test: float
    loss: float
    units: int
    dead: int
    born_dead: int
    diverged: bool

    @classmethod
    def of(cls, result: Result) -> Run:
        """From a whole result."""
        task = result.member.task
        points = {part: _rounded(_points(task, score)) for part, score in result.scores.items()}
        most = _constant(task)[1]
        curve = [min(loss, most) if math.isfinite(loss) else most for loss in result.curves.loss]
        # A dead unit is one whose inputs are known: after NaN, nothing is.
        dead = 0 if result.diverged else result.dead
        born_dead = sum(len(site.born_dead) for site in result.sites.values())
        mean = _rounded(sum(curve) / len(curve))
        return cls(result.member, **points, loss=mean, units=result.units, dead=dead, born_dead=born_dead,
                   diverged=result.diverged)  # fmt: skip

    @property
    def dead_share(self) -> float:
        """Dead units at the end, in percent."""
        return 100 * self.dead / max(self.units, 1)

    @property
    def born_dead_share(self) -> float:
        """Units born dead, in percent."""
        return 100 * self.born_dead / max(self.units, 1)

    @property
    def log_loss(self) -> float:
        """100 times the natural logarithm of the mean training loss: differences are percent, nearly."""
        return 100 * math.log(max(self.loss, 1e-9))

    @property
    def gap(self) -> float:
        """Training points minus test points."""
        return self.train - self.test


class Runs:
    """Runs by their members' settings."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._by_key = {run.member.key: run for run in runs}

    def add(self, runs: Iterable[Run]) -> None:
        """Take these in, each in place of an earlier one of its settings."""
        self._by_key.update((run.member.key, run) for run in runs)

    def __contains__(self, member: Member) -> bool:
        return _key(member) in self._by_key

    def __getitem__(self, member: Member) -> Run:
        return self._by_key[_key(member)]

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._by_key.values())

    @classmethod
    def read(cls, path: Path) -> Runs:
        """From a file; none if there is no such file.

        Raises:
            RelumeError: the file is not one of stored runs.
        """
        if not path.exists():
            return cls()
        try:
            text = gzip.decompress(path.read_bytes()).decode()
            return cls(_run(row) for row in csv.DictReader(io.StringIO(text), strict=True))
        except (OSError, EOFError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise RelumeError(f"{path} does not hold stored runs ({error}): give another file") from error

    def write(self, path: Path) -> None:
        """Into a file, in the order of settings: the same runs give the same bytes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*_SETTINGS, *_NUMBERS, *_COUNTS, "diverged"))
        settings = [tuple(run.member.to_dict().values()) for run in self]
        for values, run in sorted(zip(settings, self, strict=True), key=lambda pair: pair[0]):
            numbers = [f"{getattr(run, name):.6g}" for name in _NUMBERS]
            writer.writerow((*values, *numbers, *(getattr(run, name) for name in _COUNTS), int(run.diverged)))
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
        beside.replace(path)  # whoever is killed here leaves the old one


def _run(row: dict[str, Any]) -> Run:
    kinds = {"str": str, "int": int, "float": float}
    member = Member(**{name: kinds[kind](row[name]) for name, kind in _SETTINGS.items()})
    train, validation, test, loss = (float(row[name]) for name in _NUMBERS)
    units, dead, born_dead = (int(row[name]) for name in _COUNTS)
    return Run(member, train, validation, test, loss, units, dead, born_dead, bool(int(row["diverged"])))


@functools.lru_cache(maxsize=65536)
def _key(member: Member) -> str:
    return member.key


def _rounded(value: float) -> float:
    """As it is written."""
    return float(f"{value:.6g}")


def _points(task: str, score: float) -> float:
    least = _constant(task)[0]
    if not math.isfinite(score):
        return least
    if tasks.get(task).kind == "classification":
        return 100 * score
    return max(100 * (1 - score / math.sqrt(_constant(task)[1])), least)


@functools.cache
def _constant(task: str) -> tuple[float, float]:
    """Points and loss of a constant answer: chance among equally frequent classes, or the mean of the values."""
    of = tasks.get(task)
    if of.kind == "classification":
        return 100 / of.outputs, math.log(of.outputs)
    if of.metric != "rmse":
        raise ValueError(f"points are of classifications and of regressions judged by RMSE, and not of '{task}'")
    return 0.0, float(of.data(0).train.y.double().var(correction=0))
