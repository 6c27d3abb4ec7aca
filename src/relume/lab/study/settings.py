"""What a config may say of one setting: a value, a list of them, or a range; and what it is drawn from."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relume.lab.member import Member

FIELDS = {f.name: str(f.type) for f in dataclasses.fields(Member)}
_LOGARITHMIC = ("lr", "weight_decay")
_PARTS = ("low", "high", "log", "points")
Value = str | int | float


@dataclass(frozen=True)
class Choices:
    """One of these."""

    values: tuple[Value, ...]

    def grid(self) -> tuple[Value, ...]:
        """All of them."""
        return self.values

    def draw(self, stream: str) -> Value:
        """One of them, each as likely. A value that is added to the list later wins its share of draws; the others
        stay what they are (rendezvous hashing, Thaler and Ravishankar 1996)."""
        return max(self.values, key=lambda value: random.Random(f"{stream}/{value!r}").random())

    def holds(self, value: Any) -> bool:
        """Could it have been drawn?"""
        return value in self.values


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included.

    Attributes:
        log: drawn evenly by its logarithm.
        whole: a whole number.
        points: of a grid, evenly spread; None: all whole numbers.
    """

    low: float
    high: float
    log: bool
    whole: bool
    points: int | None = None

    def grid(self) -> tuple[Value, ...]:
        """The points of a grid.

        Raises:
            ValueError: there would be no end of them.
        """
        if self.points is None:
            if not self.whole:
                raise ValueError("a grid needs a list here, or points = N beside low and high")
            return tuple(range(int(self.low), int(self.high) + 1))
        shares = [i / max(self.points - 1, 1) for i in range(self.points)]
        return tuple(dict.fromkeys(self._at(share) if self.whole else _plain(self._at(share)) for share in shares))

    def draw(self, stream: str) -> Value:
        """A number by that stream of random numbers."""
        share = random.Random(stream).random()
        if self.whole and not self.log:
            return int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
        return self._at(share)

    def _at(self, share: float) -> Value:
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def holds(self, value: Any) -> bool:
        """Could it have been drawn?"""
        number = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high


Setting = Choices | Range


def setting(name: str, said: Any) -> Setting:
    """What a config says of one setting.

    Raises:
        ValueError: it can't be had, and what can.
    """
    if isinstance(said, Mapping):
        return _range(name, said)
    if isinstance(said, (list, tuple)):
        if not said:
            raise ValueError(f"{name} has an empty list; give it at least one value")
        return Choices(tuple(dict.fromkeys(checked(name, value) for value in said)))
    return Choices((checked(name, said),))


def checked(name: str, value: Any) -> Value:
    """A value of a setting, of its type, as `Member` takes it.

    Raises:
        ValueError: it is not accepted, and what is; the value is the error's second argument.
    """
    kind = FIELDS[name]
    wanted = {"str": "text", "int": "a whole number", "float": "a number"}[kind]
    right: tuple[type, ...] = {"str": (str,), "int": (int,), "float": (int, float)}[kind]
    if not isinstance(value, right) or isinstance(value, bool):
        raise ValueError(f"{name} is {wanted}{_accepted(name)}, not {value!r}", value)
    value = float(value) if kind == "float" else value  # type: ignore[arg-type]
    try:
        # A window of so many steps that no `every` is too long for it, where the window itself is not in question.
        Member.from_dict({"task": "sine", **({} if name == "window" else {"window": 2**62}), "every": 1, name: value})
    except Exception as error:  # of an activation's parameters too
        raise ValueError(f"{error}", value) from error
    return value  # type: ignore[no-any-return]


def _accepted(name: str) -> str:
    from relume.lab import tasks
    from relume.lab.member import OPTIMIZERS, TREATMENTS

    of = {"task": tasks.names(), "init": tasks.INITS, "norm": tasks.NORMS, "optimizer": OPTIMIZERS,
          "treatment": TREATMENTS}.get(name)  # fmt: skip
    return f", one of {', '.join(of)}" if of else ""


def _range(name: str, said: Mapping[str, Any]) -> Range:
    kind = FIELDS[name]
    example = "{ low = 0.001, high = 1.0 }" if kind == "float" else "{ low = 1, high = 8 }"
    if kind == "str":
        raise ValueError(f"{name} is text{_accepted(name)}: a range is for numbers; give a list")
    for part in said:
        if part not in _PARTS:
            raise ValueError(f"a range has no {part!r}; it has {', '.join(_PARTS)}, as in {name} = {example}")
    if "low" not in said or "high" not in said:
        raise ValueError(f"a range has low and high, as in {name} = {example}")
    low, high = checked(name, said["low"]), checked(name, said["high"])
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low > high:
        raise ValueError(f"low is at most high; {name} has {low} and {high}")
    log, points = said.get("log", name in _LOGARITHMIC), said.get("points")
    if not isinstance(log, bool):
        raise ValueError(f"log is true or false, not {log!r}", log)
    if log and low <= 0:
        raise ValueError(f"by its logarithm {name} can't be {low}: give a low above 0, or log = false", low)
    if points is not None and (isinstance(points, bool) or not isinstance(points, int) or points < 1):
        raise ValueError(f"points is a whole number not below 1, not {points!r}", points)
    return Range(low, high, log, kind == "int", points)


def _plain(value: Value) -> Value:
    """As a person would write it: a grid from 0.001 to 1 has 0.01, not 0.010000000000000002."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
