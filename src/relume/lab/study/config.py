"""`Config`: what a study is to run, read from TOML or a dict and checked down to each value, with the line at fault."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relume.lab.study.settings import FIELDS, Choices, Range, Setting, setting
from relume.lab.study.toml import Source

SAMPLERS = ("grid", "random", "optuna")
OBJECTIVES = ("validation", "best-validation")
# Settings by which runs are repeated, not compared: every point is run with all of them.
REPEATS = ("seed", "split")
# A grid beyond this is a slip more often than a plan; each member is held in memory.
_MOST = 2_000_000


@dataclass(frozen=True)
class Config:
    """A study as described.

    Attributes:
        name: of the study, and of its folder.
        settings: by name of the setting, what its values are.
        sampler: "grid": every combination; "random" and "optuna": `trials` points for every combination of `each`.
        trials: points that are drawn.
        each: settings that every draw is made for anew, so that they have equal budgets; "task" always is one.
        objective: what a point is judged by, a mean over its seeds: "validation", the score at the end, or
            "best-validation", the best of all windows.
        sampler_seed: of random and optuna.
        at_once: points that optuna names before it is told how they went.
        together: members of one shape that are trained as one at most.
        diagnose: also ask what killed the units that died; every member is then trained by itself.
        text: as it was written, or as JSON.
    """

    name: str
    settings: Mapping[str, Setting]
    sampler: str = "grid"
    trials: int = 20
    each: tuple[str, ...] = ("task",)
    objective: str = "validation"
    sampler_seed: int = 0
    at_once: int = 8
    together: int = 32
    diagnose: bool = False
    text: str = ""

    def sampled(self) -> dict[str, Setting]:
        """Settings that a sampler draws: those of which there is a choice."""
        return {
            name: of
            for name, of in self.settings.items()
            if name not in (*REPEATS, *self.each) and not (isinstance(of, Choices) and len(of.values) == 1)
        }

    def varied(self) -> tuple[str, ...]:
        """Settings that differ between members, without those that only repeat them."""
        return tuple(
            name
            for name, of in self.settings.items()
            if name not in REPEATS and not (isinstance(of, Choices) and len(of.values) == 1)
        )


_KEYS = ("name", "sampler", "trials", "each", "objective", "sampler_seed", "at_once", "together", "diagnose")


def read(config: str | Path | Mapping[str, Any]) -> Config:
    """A study from a TOML file or a dict of the same form.

    Raises:
        ConfigError: something in it is not accepted; the message names the file, the line and what is.
    """
    return checked_config(Source.of(config))


def restored(text: str) -> Config:
    """From `Config.text`."""
    return checked_config(Source(json.loads(text)) if text.startswith("{") else Source.written(text))


def checked_config(source: Source) -> Config:
    """From what was written.

    Raises:
        ConfigError: as `read`.
    """
    data = source.data
    for key in data:
        if key not in (*_KEYS, "settings"):
            raise source.error((key,), _unknown("a study has no", key, (*_KEYS, "settings"), beside=FIELDS))
    whole = {name: _whole(source, name, least, default) for name, least, default in _WHOLE}
    sampler = _one_of(source, "sampler", SAMPLERS, "grid")
    diagnose = data.get("diagnose", False)
    if not isinstance(diagnose, bool):
        raise source.error(("diagnose",), f"diagnose is true or false, not {diagnose!r}")
    config = Config(
        name=_name(source),
        settings=_settings(source),
        sampler=sampler,
        each=_each(source, sampler),
        objective=_objective(source),
        diagnose=diagnose,
        text=source.text if source.text is not None else json.dumps(data, default=list),
        **whole,
    )
    _check_sampler(source, config)
    _check_windows(source, config)
    return config


_WHOLE = (("trials", 1, 20), ("sampler_seed", 0, 0), ("at_once", 1, 8), ("together", 1, 32))


def _name(source: Source) -> str:
    name = source.data.get("name")
    if name is None:
        raise source.error((), 'a study needs a name, as in name = "activations"')
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.-]*", name):
        raise source.error(("name",), f"name is letters, digits, '-', '_' and '.', for a folder, not {name!r}")
    return name


def _settings(source: Source) -> dict[str, Setting]:
    said = source.data.get("settings")
    if not isinstance(said, Mapping):
        example = '[settings] with task = "digits" and lr = [0.01, 0.1]'
        raise source.error(("settings",) if said is not None else (), f"a study needs a table of settings: {example}")
    found: dict[str, Setting] = {}
    for name, values in said.items():
        path = ("settings", name)
        if name not in FIELDS:
            raise source.error(path, _unknown("a member has no setting", name, tuple(FIELDS), beside=_KEYS))
        try:
            found[name] = setting(name, values)
        except ValueError as error:
            raise source.error(path, error.args[0], error.args[1] if len(error.args) > 1 else None) from error
    if "task" not in found:
        from relume.lab import tasks

        raise source.error(("settings",), f"settings need a task, of: {', '.join(tasks.names())}")
    return found


def _objective(source: Source) -> str:
    if source.data.get("objective") in ("test", "train"):
        said = f"objective is one of {', '.join(OBJECTIVES)}: what is chosen by the {source.data['objective']} score"
        raise source.error(("objective",), f"{said} says nothing of new inputs")
    return _one_of(source, "objective", OBJECTIVES, "validation")


def _each(source: Source, sampler: str) -> tuple[str, ...]:
    said = source.data.get("each", [])
    if not isinstance(said, (list, tuple)) or not all(isinstance(name, str) for name in said):
        raise source.error(("each",), f'each is a list of settings, as in each = ["task", "activation"], not {said!r}')
    if said and sampler == "grid":
        raise source.error(("each",), "each is for the samplers random and optuna: a grid runs every combination")
    for name in said:
        if name in REPEATS or name not in FIELDS:
            accepted = tuple(f for f in FIELDS if f not in REPEATS)
            raise source.error(("each",), _unknown("each names no setting", name, accepted), name)
    return tuple(dict.fromkeys(["task", *said]))


def _check_sampler(source: Source, config: Config) -> None:
    is_grid = config.sampler == "grid"
    if is_grid and "trials" in source.data:
        raise source.error(("trials",), "trials is for the samplers random and optuna: a grid runs every combination")
    if not is_grid and not config.sampled():
        said = f"there is nothing for the sampler {config.sampler} to choose: give a setting a list or a range"
        raise source.error(("sampler",), said)
    count = 1 if is_grid else config.trials
    for name, of in config.settings.items():
        if is_grid or name in (*REPEATS, *config.each):
            try:
                count *= len(of.grid())
            except ValueError as error:
                raise source.error(("settings", name), f"{name}: {error}") from error
    if count > _MOST:
        raise source.error(("settings",), f"that is {count:,} runs; a study has at most {_MOST:,}")


def _check_windows(source: Source, config: Config) -> None:
    every, window = (config.settings.get(n, Choices((d,))) for n, d in (("every", 10), ("window", 100)))
    most = every.high if isinstance(every, Range) else max(every.values)
    least = window.low if isinstance(window, Range) else min(window.values)
    if most > least:  # type: ignore[operator]
        at = "window" if "window" in config.settings else "every"
        raise source.error(
            ("settings", at), f"a window of {least} steps has none to look at with every = {most}: give every ≤ window"
        )


def _one_of(source: Source, key: str, accepted: tuple[str, ...], default: str) -> str:
    value = source.data.get(key, default)
    if value not in accepted:
        close = difflib.get_close_matches(str(value), accepted, 1)
        hint = f"; close to it: {close[0]}" if close else ""
        raise source.error((key,), f"{key} is one of {', '.join(accepted)}, not {value!r}{hint}")
    return str(value)


def _whole(source: Source, key: str, least: int, default: int) -> int:
    value = source.data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise source.error((key,), f"{key} is a whole number not below {least}, not {value!r}")
    return value


def _unknown(what: str, name: str, accepted: Iterable[str], beside: Iterable[str] = ()) -> str:
    accepted = tuple(accepted)
    if name in beside:
        place = "under [settings]" if name in FIELDS else "above [settings]"
        return f"{name!r} stands {place}"
    close = difflib.get_close_matches(name, accepted, 1)
    hint = f"; close to it: {close[0]}" if close else ""
    return f"{what} {name!r}{hint}; there are: {', '.join(accepted)}"
