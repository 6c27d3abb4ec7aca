"""Points named by Optuna's TPE (Bergstra et al. 2011; Akiba et al. 2019), which learns from how others went.

It is asked in rounds: so many points at once, which are kept in the store before they are run and told when all of them
have been. Each round's sampler has a seed of its own, and what it has been told is in the store: a study that was
killed names the same points when it goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable
from typing import Any

from relume.errors import missing_extra
from relume.lab import tasks
from relume.lab.member import Member
from relume.lab.study.config import Config
from relume.lab.study.plan import Point, certain, families, repeated
from relume.lab.study.settings import Choices, Setting
from relume.lab.study.store import Store

Judge = Callable[[str], float | None]


class Asked:
    """The plan of a study whose sampler learns.

    Args:
        config: with sampler "optuna".
        store: keeps the points.
        judge: of the key of a member, its score by the objective; None where there is none.

    Raises:
        MissingExtraError: optuna is not installed.
    """

    def __init__(self, config: Config, store: Store, judge: Judge) -> None:
        self._optuna = _imported()
        self._config, self._store, self._judge = config, store, judge
        self._families = [_Family(config, point, store) for point in families(config)]

    def members(self) -> dict[str, Member]:
        return {m.key: m for family in self._families for point in family.points for m in repeated(self._config, point)}

    def more(self) -> bool:
        named = [self._ask(family) for family in self._families]
        return any(named)

    def total(self) -> int:
        seeds = sum(1 for _ in repeated(self._config, {**certain(self._config), **self._families[0].point}))
        return len(self._families) * self._config.trials * seeds

    def _ask(self, family: _Family) -> bool:
        wanted = min(self._config.at_once, self._config.trials - len(family.points))
        if wanted <= 0:
            return False
        study = self.told(family)
        seed = hashlib.sha256(f"{self._config.sampler_seed}/{family.name}/{len(family.points)}".encode()).digest()
        study.sampler = self._optuna.samplers.TPESampler(seed=int.from_bytes(seed[:4], "big"), constant_liar=True)
        space = _space(self._optuna, self._config.sampled())
        asked = [study.ask(space).params for _ in range(wanted)]
        self._store.add_trials(family.name, family.kept, [{**family.fixed, **params} for params in asked])
        family.read()
        return True

    def told(self, family: _Family) -> Any:
        """Optuna's own study of a family, with all that has been run."""
        optuna = self._optuna
        better = tasks.get(family.point["task"]).higher_is_better
        study = optuna.create_study(direction="maximize" if better else "minimize")
        space = _space(optuna, self._config.sampled())
        for point in family.points:
            scores = [self._judge(member.key) for member in repeated(self._config, point)]
            params = {name: point[name] for name in space}
            found = [score for score in scores if score is not None]
            mean = sum(found) / len(found) if found else math.nan
            # What failed or diverged is worse than anything that did not, which is to be learnt from.
            value = (-math.inf if better else math.inf) if math.isnan(mean) else mean
            study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=dict(space)))
        return study

    def studies(self) -> dict[str, Any]:
        """Optuna's own studies, by the settings of the family as JSON."""
        return {family.name: self.told(family) for family in self._families}


class _Family:
    """The points named for one combination of the settings in `each`.

    Attributes:
        points: those that lie in the config's space, from whichever config they came.
        kept: number of the next point.
    """

    def __init__(self, config: Config, point: Point, store: Store) -> None:
        self.point, self.name = point, json.dumps(point, sort_keys=True)
        self.fixed = {**certain(config), **point}
        self._sampled, self._store, self._most = config.sampled(), store, config.trials
        self.read()

    def read(self) -> None:
        """The points as the store has them."""
        kept = self._store.trials(self.name)
        self.kept = len(kept)
        self.points = [point for point in kept if self._fits(point)][: self._most]

    def _fits(self, point: Point) -> bool:
        return point.keys() == {*self.fixed, *self._sampled} and all(
            self._sampled[name].holds(value) if name in self._sampled else self.fixed[name] == value
            for name, value in point.items()
        )


def _imported() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise missing_extra("optuna", "optuna", 'sampler = "optuna"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _space(optuna: Any, sampled: dict[str, Setting]) -> dict[str, Any]:
    of = optuna.distributions
    return {
        name: of.CategoricalDistribution(s.values)
        if isinstance(s, Choices)
        else (of.IntDistribution(int(s.low), int(s.high), log=s.log))
        if s.whole
        else of.FloatDistribution(s.low, s.high, log=s.log)
        for name, s in sampled.items()
    }
