"""`relume.guard`: a watch that treats: at the ends of windows it acts on what diagnosis found, and judges its acts.

It acts between two steps, after the optimizer's. An act is judged by the training loss, `patience` windows later: one
that harmed is taken back. The watch's own promise, to change no bit of the training, holds until the first act.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.diagnose.causes import diagnose
from relume.errors import RelumeError
from relume.treat.convert import convert
from relume.treat.guard.act import Act, Outcome
from relume.treat.guard.batch import as_batch
from relume.treat.guard.choose import Intent, Standing, intents
from relume.treat.guard.held import Held
from relume.treat.guard.judge import Losses
from relume.treat.guard.policy import Policy, policy_of
from relume.treat.revive import Revival, revive
from relume.watch import Watch, Window, arguments, census, compiled


class Guard(Watch):
    """A model under guard. Made by `relume.guard`; see there."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        policy: str | Policy = "gentle",
        loss: str = "loss",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if optimizer is None:
            raise TypeError("a guard treats between the steps of an optimizer: give the one that trains the model")
        if not options.get("diagnose", True):
            raise ValueError("a guard acts on what diagnosis finds: leave diagnose=True")
        own = {f.name for f in fields(Policy)} - {"name"}
        self.policy = policy_of(policy, **{name: options.pop(name) for name in own & set(options)})
        if not self.policy.dry and options.get("sync", True) is not False and _ranks() > 1:
            raise RelumeError(
                "a guard acts by what its own process has seen, so that the replicas of several ranks would part: "
                "watch there and act by hand, or take policy='log'. For a model of this rank alone, pass sync=False"
            )
        self._acts: list[Act] = []
        self._losses = Losses(loss)
        self._told: Callable[[Watch, Window], None] | None = options.pop("on_window", None)
        self._seed = seed
        self._undo: dict[int, Callable[[], None]] = {}  # of acts that are pending, by their number
        self._due_at: dict[int, int] = {}  # the window in which each is judged
        self._window_now = 0
        self._touched: dict[str, int] = {}  # the window in which each site, or "" for the settings, was last treated
        self._revived: dict[str, int] = {}
        self._lowered: dict[str, int] = {}
        self._since = -1
        self._converted: set[str] = set()
        self._batch: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._treating = False
        super().__init__(model, optimizer, on_window=self._on_the_window, **options)
        self._held = [Held(o) for o in self.optimizers]

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "policy": self.policy.name}

    @property
    def acts(self) -> tuple[Act, ...]:
        """What it did, or would have done, in order."""
        return tuple(self._acts)

    def log(self, **values: float | Tensor) -> None:
        numbers = {name: arguments.number(name, value) for name, value in values.items()}
        self._losses.add(self.step, numbers)
        super().log(**numbers)

    log.__doc__ = Watch.log.__doc__

    def __str__(self) -> str:
        n = len(self._acts)
        acts = "1 act" if n == 1 else f"{n or 'no'} acts"
        head = f"{self.policy.name} guard of {type(self.model).__name__}, step {self.step:,}: {acts}"
        return "\n".join([head, *(f"  {act}" for act in self._acts)])

    # What happens

    def _observe(self, module: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._treating:  # passes of its own are none of the run's evaluation
            super()._observe(module, training, args, kwargs)

    def _see(self, module: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if training:
            self._batch = (args, kwargs)
        super()._see(module, training, args, kwargs)

    def _finish(self, status: str) -> None:
        if not self.closed:
            super()._finish(status)
            for held in self._held:
                held.release()
            self._batch = None

    def _on_the_window(self, watch: Watch, window: Window) -> None:
        # The window that closing cuts short comes after the last step: nothing is gained by treating then.
        if not self.closed and window.complete:
            self._treating = True
            try:
                with self._guarded("treating"):
                    self._treat()
            except RelumeError as error:  # which a watch raises for the user to mend; here it would end a training
                self.note(f"the guard could not treat: {error}")
            finally:
                self._treating = False
        if self._told is not None:
            self._told(self, window)

    def _treat(self) -> None:
        self._window_now += 1
        known = len(self._acts)
        before = list(self._acts)
        self._judge()
        if self._by_passes:  # a compiled step: the end of a forward pass is no place to write weights
            self._tracker.note("the optimizer's step is compiled, so the guard can't act between steps", quiet=True)
        elif len(self._acts) < self.policy.budget:
            for intent in self._intents():
                if len(self._acts) < self.policy.budget:
                    self._acts.append(self._do(intent))
        if len(self._acts) > known or self._acts != before:
            self.about["acts"] = [act.to_dict() for act in self._acts]
            self._save(None, {"acts": self.about["acts"]})

    def _intents(self) -> list[Intent]:
        record = self.record
        if record is None:
            raise RelumeError("a guard needs the record that diagnosis goes by: leave diagnose=True")
        sizes = {site.name: site.units for site in self.sites}
        standing = Standing(self._resting, self._revived, self._lowered, self._since, frozenset(self._converted))
        found = intents(diagnose(self, record), sizes, self.policy, standing)
        if not self.policy.dry:
            return found
        said = {(act.kind, *act.units.items()) for act in self._acts}
        return [intent for intent in found if (intent.kind, *intent.units.items()) not in said]

    def _resting(self, where: str) -> bool:
        last = self._touched.get(where)
        return last is not None and self._window_now - last < self.policy.cooldown

    def _judge(self) -> None:
        """Keep or undo what was done `patience` windows ago; at once where the loss has become no number."""
        after = self._losses.recent(self._start)
        due = [
            (i, act) for i, act in enumerate(self._acts)
            if act.outcome == "pending" and (self._losses.diverged or self._due_at[i] <= self._window_now)
        ]  # fmt: skip
        harmful = {act.step for _, act in due if self._losses.harmed(act.loss_before, after, self.policy.tolerance)}
        for i, act in reversed(due):  # what was done last is taken back first
            undo, alive = self._undo.pop(i), self._alive(act) if act.units else None
            finite = math.isfinite(act.loss_before)
            blind = "" if finite else "no finite loss was logged before it, so it could not be judged"
            outcome: Outcome = "undone" if act.step in harmful else "kept"
            stays = ""
            if act.step in harmful:
                try:
                    undo()
                except RelumeError as error:
                    outcome, stays = "kept", f"it harmed and could not be undone: {error}"
            note = "; ".join(filter(None, (act.note, blind, stays)))
            self._acts[i] = replace(act, outcome=outcome, loss_after=after, alive=alive, note=note)
            if act.kind == "revive":
                self._count(act)

    def _alive(self, act: Act) -> int:
        return sum(int((~self.timeline(site).dead[list(units)]).sum()) for site, units in act.units.items())

    def _count(self, act: Act) -> None:
        """A site whose units live gets its tries back."""
        for site, units in act.units.items():
            alive = int((~self.timeline(site).dead[list(units)]).sum())
            self._revived[site] = 0 if 2 * alive >= len(units) else self._revived.get(site, 0) + 1

    # Acts

    def _do(self, intent: Intent) -> Act:
        what = self._words(intent.kind, intent.units)
        before = self._losses.recent(self._start)
        act = Act(self.step, intent.kind, what, intent.why, intent.units, loss_before=before)
        for site in intent.units or ("",):
            self._touched[site] = self._window_now
        try:
            doing = {"revive": self._revive, "convert": self._convert}.get(intent.kind, self._lower)
            return doing(act)
        except (RelumeError, ValueError) as error:
            # What can't be done is no error of the training.
            for site in intent.units:
                self._revived[site] = self._revived.get(site, 0) + 1
                if intent.kind == "convert":
                    self._converted.add(site)
            return replace(act, outcome="failed", note=str(error))

    def _words(self, kind: str, units: Mapping[str, tuple[int, ...]]) -> str:
        if kind == "revive":
            sites = ", ".join(f"{len(own)} of '{site}'" for site, own in units.items()) or "none"
            return f"revive {sites} by {self.policy.method}"
        if kind == "convert":
            return f"convert '{next(iter(units))}' to {self.policy.to}"
        if kind == "lr":
            rate = max((rate for held in self._held for rate in held.rates), default=math.nan)
            return f"lower the learning rate from {rate:.3g} to {rate * self.policy.lr_factor:.3g}"
        return "clip the gradient's norm" if kind == "clip" else "switch weight decay off"

    @property
    def _start(self) -> int:
        """The step from which on the latest window's losses were logged."""
        return self.step - self.window

    def _pending(self, act: Act, undo: Callable[[], None]) -> Act:
        self._undo[len(self._acts)] = undo
        self._due_at[len(self._acts)] = self._window_now + self.policy.patience
        return act

    def _revive(self, act: Act) -> Act:
        if self.policy.dry:
            return replace(act, outcome="would")
        batches = None if self._batch is None else [self._batch_as_batch()]
        act = replace(act, units=self._still_dead(act.units, batches))
        if not act.units:
            return replace(act, outcome="failed", note="the latest step has brought all of them back by itself")
        done: list[Revival] = []
        refused: list[str] = []

        def treat(units: Mapping[str, tuple[int, ...]]) -> None:
            done.append(
                revive(
                    self.model,
                    self.census(),
                    optimizer=self.optimizers,
                    method=self.policy.method,
                    units=units,
                    batches=batches,
                    seed=self._seed + len(self._acts),
                )
            )

        try:
            treat(act.units)
        except RelumeError as error:
            # One site that can't be revived is no reason to leave the others.
            if len(act.units) < 2:
                raise
            refused.append(str(error))
            for site, units in act.units.items():
                with contextlib.suppress(RelumeError):
                    treat({site: units})
            if not done:
                raise
        treated = {site: tuple(units) for revival in done for site, units in revival.units.items()}
        changes = [revival.relative for revival in done if revival.relative is not None]

        def undo() -> None:
            for revival in reversed(done):
                revival.undo()

        what = self._words("revive", treated)
        act = replace(act, what=what, units=treated, difference=max(changes, default=math.nan), note="; ".join(refused))
        return self._pending(act, undo)

    def _still_dead(self, units: Mapping[str, tuple[int, ...]], batches: Any) -> dict[str, tuple[int, ...]]:
        """Without those that the latest step has brought back by itself, as the last batch shows."""
        if batches is None:
            return dict(units)
        now = census(self.model, batches, min_inputs=1)
        kept = {
            site: tuple(u for u in own if site not in now or int(now[site].fired[u]) == 0)
            for site, own in units.items()
        }
        return {site: own for site, own in kept.items() if own}

    def _batch_as_batch(self) -> Any:
        assert self._batch is not None
        return as_batch(compiled.original(self.model), *self._batch)

    def _convert(self, act: Act) -> Act:
        (site,) = act.units
        if self.policy.dry:
            self._converted.add(site)
            return replace(act, outcome="would")
        batches = None if self._batch is None else [self._batch_as_batch()]
        conversion = convert(self.model, self.policy.to, where=site, batches=batches, optimizer=self.optimizers[0])
        if not conversion.converted:
            raise RelumeError("; ".join(row.reason for row in conversion) or "no site was converted")
        self._converted.add(site)
        return self._pending(act, conversion.undo)

    def _lower(self, act: Act) -> Act:
        policy, kind = self.policy, act.kind
        if kind == "decay" and not any(held.decays for held in self._held):
            self._lowered[kind] = policy.tries
            raise RelumeError("no optimizer here has any: what pulls the weights in must be a penalty in the loss")
        if kind == "clip":
            limit = self._usual_gradient() * policy.clip_factor
            if not math.isfinite(limit) or limit <= 0:
                raise RelumeError("clip the gradient: no usual gradient is known yet")
            old = [held.clip for held in self._held]
            act = replace(act, what=f"clip the gradient's norm at {limit:.3g}")
        else:
            old = [getattr(held, kind) for held in self._held]
        self._lowered[kind] = self._lowered.get(kind, 0) + 1
        self._since = self.step
        if policy.dry:
            return replace(act, outcome="would")
        for held in self._held:
            if kind == "clip":
                held.clip = limit
            elif kind == "lr":
                held.lr *= policy.lr_factor
            else:
                held.decay = 0.0

        def undo() -> None:
            for held, value in zip(self._held, old, strict=True):
                if kind == "lr":  # which may have been cut once more since
                    held.lr /= policy.lr_factor
                else:
                    setattr(held, kind, value)

        return self._pending(act, undo)

    def _usual_gradient(self) -> float:
        """The norm of the gradient of all producers, as it usually was."""
        assert self.record is not None
        norms = []
        for row in self.record.steps.rows:
            squares = [float(g) ** 2 for g in row.gradient.values()]
            if squares and all(map(math.isfinite, squares)):
                norms.append(math.sqrt(sum(squares)))
        return sorted(norms)[len(norms) // 2] if norms else math.nan


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
