"""`study`: many trainings as a file describes them, run wherever, kept as they land, and never run twice."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from rich.console import Console

from relume._version import __version__
from relume.errors import RelumeWarning
from relume.lab.member import Member
from relume.lab.result import Result
from relume.lab.runners import Block, Runner, runner
from relume.lab.study.best import Place, Ranking, judged
from relume.lab.study.config import Config, read, restored
from relume.lab.study.errors import StoreError
from relume.lab.study.plan import Plan, plan_of
from relume.lab.study.rows import Head
from relume.lab.study.show import Display
from relume.lab.study.store import Store
from relume.lab.study.table import Table, table_of
from relume.lab.study.tracked import Tracked

_VERSIONS = {"relume": __version__, "torch": torch.__version__}
# Seconds between looks at what another process on the same store has done.
_LOOK = 0.5


class Counts(NamedTuple):
    """Members of a study: with a result, without one because they failed, and all."""

    done: int
    failed: int
    total: int


def study(
    config: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    runner: str = "local",
    jobs: int = 1,
    address: str | None = None,
    progress: bool = True,
) -> Study:
    """Run what a config describes, or what of it has not been run before, and give the results.

    It may be stopped or killed at any moment, and called again: what is in the store is not run again. Several
    processes may run one study at a time.

    Args:
        config: a TOML file, or a dict of the same form; see docs/study.md.
        out: folder of the store; default `runs/NAME`.
        runner: "local" or "ray".
        jobs: processes, of one thread each; 1 runs all in this one. With more, a script needs the usual
            `if __name__ == "__main__":`, since each process imports it anew. On Ray, CPUs of a cluster started here.
        address: of a Ray cluster.
        progress: show on stderr how far it is.

    Returns:
        Study: open, with `table()`, `best()`, `results()`.

    Raises:
        ConfigError: the config is not what it must be; the message names the line.
        StoreError: the store is damaged or can't be written.
        MissingExtraError: what the runner, the sampler or a task needs is not installed.
        ValueError: no such runner, or fewer than one job.
    """
    opened = Study(config, out=out)
    try:
        return opened.run(runner=runner, jobs=jobs, address=address, progress=progress)
    except BaseException:
        opened.close()
        raise


class Study:
    """A study and its store.

    Args:
        config: as `study` takes it.
        out: likewise.

    Attributes:
        config: what was read.
        folder: of the store.

    Raises:
        ConfigError, StoreError: as `study`; the folder holds a study of another name.
    """

    def __init__(self, config: str | Path | Mapping[str, Any], *, out: str | Path | None = None) -> None:
        self._begin(read(config), out)

    def _begin(self, config: Config, out: str | Path | None) -> None:
        self.config = config
        self.folder = Path(out) if out is not None else Path("runs") / config.name
        self._store = Store(self.folder)
        try:
            about = self._store.about()
            name = about.get("name", config.name)
            if name != config.name:
                raise StoreError(
                    f"{self._store.path} keeps the study {name!r}, not {config.name!r}: choose another out"
                )
            self._scores: dict[str, float] = {}
            self._plan: Plan = plan_of(config, self._asked)
        except BaseException:
            self._store.close()
            raise

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """A study that was run before, by its folder, as its latest config has it.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        store = Store(folder, make=False)
        try:
            text = store.about().get("config")
        finally:
            store.close()
        if not isinstance(text, str):
            raise StoreError(f"{store.path} was never run")
        opened = cls.__new__(cls)
        opened._begin(restored(text), store.path.parent)
        return opened

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()

    # Running

    def run(
        self,
        *,
        runner: str | Runner = "local",
        jobs: int = 1,
        address: str | None = None,
        progress: bool | Console = True,
        again: bool = False,
    ) -> Study:
        """Run what has not been run.

        Args:
            runner: by name, or one of your own.
            jobs, address: as `study` takes them.
            progress: or where to show it.
            again: also what failed before.

        Raises:
            As `study`.
        """
        chosen = _runner(runner, jobs, address)
        self._note_versions()
        self._store.set_about(self._about())
        ranking = Ranking(self.config)
        console = progress if isinstance(progress, Console) else Console(stderr=True) if progress else None
        display = Display(self.config.name, self._plan.total(), ranking, console)
        tracked = Tracked(self.config, ranking, display, self._scores, again)
        tracked.begin(self._plan, self._store.heads())
        try:
            with self._store.claims.renewed(self._store.path), chosen as ready, display.shown():
                while True:
                    while tracked.pending:
                        self._run_pending(ready, tracked)
                    if not self._plan.more():
                        break
                    for key in tracked.take(self._plan):
                        tracked.found(key, self._store.head(key))
        finally:
            self._store.release()
        return self

    def _run_pending(self, runner: Runner, tracked: Tracked) -> None:
        """Run those that nobody else is running; take note of what others have done, after a while if that is all."""
        ours = False
        for outcomes in runner.run(self._claimed(tracked)):
            ours = True
            for key in self._store.put(outcomes):
                tracked.landed(key, self._store.head(key))
        if tracked.pending:
            if not ours:
                time.sleep(_LOOK)
            for key, (status, diagnosed) in self._store.statuses().items():
                if key in tracked.pending and tracked.over(status, diagnosed):
                    tracked.found(key, self._store.head(key))

    def _claimed(self, tracked: Tracked) -> Iterator[Block]:
        """Blocks of what is pending, each claimed when it is asked for."""
        for block in tracked.blocks():
            members = {key: m for m in block.members if (key := m.key) in tracked.pending}
            if not members:
                continue
            claimed = self._store.claim(list(members), diagnose=self.config.diagnose, again=tracked.again)
            if claimed:
                yield Block(tuple(members[key] for key in claimed), block.together, block.diagnose)

    def _asked(self) -> Plan:
        from relume.lab.study.optuna import Asked

        for key, head in self._store.heads():
            if head["status"] == "done":
                self._scores[key] = judged(head, self.config.objective)
        return Asked(self.config, self._store, self._scores.get)

    def _about(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "config": self.config.text,
            "versions": _VERSIONS,
            "latest_run": time.time(),
        }

    def _note_versions(self) -> None:
        before = self._store.about().get("versions", _VERSIONS)
        apart = [f"{name} {before.get(name)}, now {now}" for name, now in _VERSIONS.items() if before.get(name) != now]
        if apart:
            said = (
                f"{self._store.path} has results of {'; '.join(apart)}: those to come may differ from them by rounding"
            )
            warnings.warn(said, RelumeWarning, stacklevel=3)

    # Results

    def counts(self) -> Counts:
        """How many members are done, have failed, and are there."""
        found = self._store.statuses()
        mine = [found[key][0] for key in self._plan.members() if key in found]
        return Counts(mine.count("done"), mine.count("failed"), self._plan.total())

    def table(self) -> Table:
        """A row for each member that was run, in the order of the config. What was run by an earlier config and is
        not in this one stays in the store, and out of the table."""
        return table_of(self._plan.members(), self._store.heads())

    def results(self) -> Iterator[Result]:
        """The whole results, with curves and the census of each site, in the same order; read one by one."""
        for key, head in self._heads():
            if head["status"] == "done":
                yield self._store.result(key, head)

    def best(self, n: int = 10) -> list[Place]:
        """The n points of each task that did best by the objective, as a mean over seeds."""
        ranking = Ranking(self.config)
        for _, head in self._heads():
            ranking.add(head)
        return ranking.best(n)

    def failures(self) -> list[tuple[Member, str]]:
        """Members that failed, and why."""
        failed = (head for _, head in self._heads() if head["status"] == "failed")
        return [(Member.from_dict(head["member"]), head["error"]) for head in failed]

    def _heads(self) -> list[tuple[str, Head]]:
        """What the store keeps of each member that was run, in the order of the config."""
        members = self._plan.members()
        found = {key: head for key, head in self._store.heads() if key in members}
        return [(key, found[key]) for key in members if key in found]

    def optuna(self) -> dict[str, Any]:
        """Optuna's own studies, for its plots and importances: one for each combination of the settings in `each`, by
        these settings as JSON.

        Raises:
            ValueError: the sampler is another.
        """
        from relume.lab.study.optuna import Asked

        if not isinstance(self._plan, Asked):
            raise ValueError(f"the sampler of this study is {self.config.sampler}")
        return self._plan.studies()


def _runner(chosen: str | Runner, jobs: int, address: str | None) -> Runner:
    return runner(chosen, jobs=jobs, address=address) if isinstance(chosen, str) else chosen
