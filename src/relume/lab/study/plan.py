"""Which members a study has: all combinations of a grid, or points drawn at random. `optuna.py` is the third way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from relume.lab.member import Member
from relume.lab.study.config import REPEATS, Config
from relume.lab.study.errors import ConfigError
from relume.lab.study.settings import Choices, Setting

Point = dict[str, Any]


class Plan(Protocol):
    """The members of a study, of which some may be named only when others have been run."""

    def members(self) -> dict[str, Member]:
        """By key, in order, those named so far."""

    def more(self) -> bool:
        """All so far have been run: name more. False: there are no more."""

    def total(self) -> int:
        """How many there will be."""


class Fixed:
    """A plan that is known from the beginning.

    Raises:
        ConfigError: a combination of settings is not accepted.
    """

    def __init__(self, config: Config) -> None:
        points = grid(config.settings) if config.sampler == "grid" else _drawn(config)
        self._members = {member.key: member for member in map(member_of, points)}

    def members(self) -> dict[str, Member]:
        return self._members

    def more(self) -> bool:
        return False

    def total(self) -> int:
        return len(self._members)


def plan_of(config: Config, ask: Callable[[], Plan]) -> Plan:
    """A config's plan; `ask` makes the one of a sampler that learns."""
    return ask() if config.sampler == "optuna" else Fixed(config)


def grid(settings: Mapping[str, Setting]) -> Iterator[Point]:
    """All combinations, the last setting the quickest to change."""
    for values in itertools.product(*(of.grid() for of in settings.values())):
        yield dict(zip(settings, values, strict=True))


def families(config: Config) -> Iterator[Point]:
    """Combinations of the settings that every draw is made for anew."""
    yield from grid({name: config.settings[name] for name in config.each if name in config.settings})


def repeated(config: Config, point: Point) -> Iterator[Member]:
    """A point's members: one for each seed and split."""
    for repeat in grid({name: of for name, of in config.settings.items() if name in REPEATS}):
        yield member_of({**point, **repeat})


def certain(config: Config) -> Point:
    """The settings of which there is no choice."""
    settings = config.settings.items()
    return {n: s.values[0] for n, s in settings if isinstance(s, Choices) and len(s.values) == 1 and n not in REPEATS}


def _drawn(config: Config) -> Iterator[Point]:
    """Points at random, the same for every family: they are compared like with like. Each setting of each trial has a
    stream of its own, so that more trials, or more to choose from elsewhere, leave it what it is."""
    fixed, sampled = certain(config), config.sampled()
    for family in families(config):
        for trial in range(config.trials):
            drawn = {name: of.draw(f"{config.sampler_seed}/{name}/{trial}") for name, of in sampled.items()}
            for member in repeated(config, {**fixed, **family, **drawn}):
                yield member.to_dict()


def member_of(point: Mapping[str, Any]) -> Member:
    """A member of these settings.

    Raises:
        ConfigError: they don't go together.
    """
    try:
        return Member.from_dict(point)
    except ValueError as error:
        raise ConfigError(f"with {', '.join(f'{k} = {v!r}' for k, v in point.items())}: {error}") from error
