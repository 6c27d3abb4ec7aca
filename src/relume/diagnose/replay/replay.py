"""`Replay`: what is kept of a training so that its recent steps can be run again, and the asking of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relume.diagnose.finding import Finding
from relume.diagnose.replay.change import Change
from relume.diagnose.replay.confirming import confirm, unplayed
from relume.diagnose.replay.episode import Episode, episode_of
from relume.diagnose.replay.plans import Plan
from relume.diagnose.replay.player import Played, Player
from relume.diagnose.replay.recorder import Recorder
from relume.diagnose.replay.surroundings import RandomState
from relume.errors import RelumeError
from relume.sites import Plan as SitePlan
from relume.sites import Site

if TYPE_CHECKING:
    from relume.watch import Watch, Window

#: Bytes that snapshots and batches may take, unless told otherwise.
LIMIT = 512 * 2**20
# Findings that a replay has nothing to say of: they are no illness, or say where units died that others speak for.
NOT_TRIED = ("sparse", "silent-site")


class Replay:
    """Made by `relume.watch(model, optimizer, replay=True)`.

    Args:
        watch: of the training.
        limit: bytes that snapshots and batches may take.
    """

    def __init__(self, watch: Watch, limit: int) -> None:
        self.watch = watch
        self.recorder = Recorder(watch.model, watch.optimizers, limit, watch.window)
        self._dead: dict[str, Tensor] = {}
        self._cache: dict[Any, Played | str] = {}

    @classmethod
    def on(cls, watch: Watch, limit: int | None = None) -> Replay:
        """Begin to keep what a replay needs; closed with `close`."""
        replay = cls(watch, LIMIT if limit is None else limit)
        watch.observers.append(replay)
        replay.recorder.open()
        return replay

    def close(self) -> None:
        """Stop: hooks off, what is kept stays. Idempotent."""
        self.recorder.close()

    @property
    def nbytes(self) -> int:
        """Bytes that snapshots and batches take now."""
        return self.recorder.nbytes

    @property
    def refused(self) -> str:
        """Why nothing is kept, or ""."""
        return self.recorder.refused

    # As an observer of the watch

    def begin(self, step: int) -> None: ...

    def see(self, site: Site, x: Tensor, plan: SitePlan) -> None: ...

    def end(self) -> None: ...

    def stepped(self, step: int) -> None: ...

    def window(self, watch: Watch, window: Window) -> None:
        """A window has ended: what is kept of the steps in which units died is kept longest."""
        for site in watch.sites:
            timeline = watch.timeline(site.name)
            before = self._dead.get(site.name, torch.zeros(timeline.units, dtype=torch.bool))
            self._dead[site.name] = timeline.dead.clone()
            for step in timeline.died_at[timeline.dead & ~before].tolist():
                self.recorder.reel.deaths[max(step, 0)] += 1

    # Asking

    def confirm(self, finding: Finding) -> Finding:
        """The finding with `.confirmation`: what became of its units with one thing changed.

        The live training is left as it is, to the bit.
        """
        if finding.code in NOT_TRIED:
            return finding
        recorder = self.recorder
        random = RandomState.now(recorder.cuda)
        with recorder.aside():
            recorder.settle()
            if recorder.refused:
                return self._kept(finding, unplayed(finding, recorder.refused))
            try:
                episode = episode_of(self.watch, recorder.reel, finding)
                if isinstance(episode, str):
                    return self._kept(finding, unplayed(finding, episode))
                return self._kept(finding, confirm(self, finding, episode))
            finally:
                random.restore()

    def _kept(self, finding: Finding, said: Finding) -> Finding:
        """For later diagnoses and the run file."""
        if self.watch.record is not None:
            self.watch.record.confirmed[finding.code, finding.site] = said
        return said

    def played(self, episode: Episode, change: Change, plan: Plan) -> Played | str:
        """What became of an episode with a change; or why it can't be played."""
        whole = not plan.finding.units
        key = (episode.first, episode.last, episode.judge_from, change.key, change.words, plan.producers, whole)
        if key not in self._cache:
            self._cache[key] = self._play(episode, change, whole)
        return self._cache[key]

    def _play(self, episode: Episode, change: Change, whole: bool) -> Played | str:
        trouble = next((s.trouble for s in episode.segments if s.trouble), "")
        if trouble:
            return trouble
        try:
            player = Player(self.watch, episode.segments, change, episode.judge_from, self._options(), whole)
            return player.play(self.recorder.end_of(episode.segments[-1]))
        except RelumeError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _options(self) -> dict[str, Any]:
        tracker = self.watch._tracker
        return {
            "include": tracker.include,
            "exclude": tracker.exclude,
            "axis": tracker.axis,
            "input_axis": tracker.input_axis,
            "min_inputs": self.watch.min_inputs,
        }


def confirmed(findings: Sequence[Finding], replay: Replay) -> list[Finding]:
    """Findings with what a replay says of each, and with the causes that it supports.

    Args:
        findings: of the watch that the replay belongs to.
        replay: `Watch.replay`.
    """
    said = [replay.confirm(finding) for finding in findings]
    now = {(a.code, a.site): (b.code, b.site) for a, b in zip(findings, said, strict=True)}
    return [replace(f, root=now.get(f.root, f.root)) if f.root else f for f in said]
