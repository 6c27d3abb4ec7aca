"""`Watch`: counts units while a model trains, from `watch(model, optimizer)` to `close()`, and changes nothing.

While it is open the model's root carries two hooks and the optimizer one. Order of hooks: relume's come after those
that were there, so they see the arguments and the output that the user's own hooks leave. On unobserved steps the
hooks only count. On observed steps a `Tracker` sees the forward pass and `Meter`s add up on the device; at the end of a
window all meters are read with one transfer.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import relume._version as version
from relume.census import Census, Counts, Timeline
from relume.census.census import SiteCensus
from relume.errors import RelumeError, RelumeWarning
from relume.sites import Found, Tracker
from relume.watch.meters import BYTES_PER_UNIT, Meter, collect
from relume.watch.recording import Phase, Recording, Window
from relume.watch.store import Writer

# What a watch keeps in memory: beyond it, neighbouring windows are added up and the history gets coarser.
MEMORY_LIMIT = 64 * 2**20
WINDOWS_LIMIT = 512
# Steps without a call of model(...) after which a watch says that it sees nothing.
_BLIND_STEPS = 3


class _Hook:
    """A hook that a copy or a pickle of the model does not take along: there it does nothing."""

    def __init__(self, target: Callable[..., None] | None) -> None:
        self.target = target

    def __call__(self, *args: Any) -> None:
        if self.target is not None:
            self.target(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None,)


class Watch(Recording):
    """A model under watch. Made by `relume.watch`; see there."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        every: int = 10,
        window: int = 100,
        save: str | Path | None = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        axis: int | Mapping[str, int] | None = None,
        input_axis: int | None = None,
        min_inputs: int = 256,
        on_window: Callable[[Watch, Window], None] | None = None,
    ) -> None:
        super().__init__(min_inputs)
        self.model = model
        self.every = _positive("every", every)
        self.window = _positive("window", window)
        _positive("min_inputs", min_inputs)
        self.step = 0
        self.closed = False
        self._on_window = on_window
        self._optimizers = _optimizers(model, optimizer)
        self._tracker = Tracker(
            model,
            self._meter,
            include=_patterns(include),
            exclude=_patterns(exclude),
            axis=axis,
            input_axis=input_axis,
        )
        self._meters: dict[tuple[Any, Phase], Meter] = {}
        self._phase: Phase = "train"
        self._timelines: dict[str, Timeline] = {}
        self._window_start = 0
        self._window_index = 0
        self._observed_steps: set[int] = set()
        self._eval_passes = 0
        self._calls = 0
        self._kept_bytes = 0
        self._new_scalars: list[tuple[int, str, float]] = []
        self._told_no_sites = False
        self.about = _about(self, save)
        self._writer = None if save is None else Writer(save, self.about)
        self._handles: list[Any] = []
        try:
            self._attach()
        except BaseException:
            self._detach()
            raise

    # Life cycle

    def _attach(self) -> None:
        model = self.model
        self._handles.append(model.register_forward_pre_hook(_Hook(self._before_forward), with_kwargs=True))
        self._handles.append(
            model.register_forward_hook(_Hook(self._after_forward), with_kwargs=True, always_call=True)
        )
        if self._optimizers:
            self._handles.append(self._optimizers[0].register_step_post_hook(_Hook(self._after_step)))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._tracker.end()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish("finished" if kind is None else f"failed: {kind.__name__}")

    def close(self) -> None:
        """Stop watching: remove every hook, count the window in progress, finish the run file. Idempotent."""
        self._finish("finished")

    def _finish(self, status: str) -> None:
        if self.closed:
            return
        self.closed = True
        self._detach()
        self._flush()
        if self._writer is not None:
            self._write(None, {"status": status, "ended": time.time(), "steps": self.step})
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
            self._writer = None
        self.about["status"] = status
        self.about["steps"] = self.step

    # Hooks

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls += 1
        if self._tracker.active:
            if self._tracker.here():
                # An interrupt left the last pass half done, or the model calls itself; what was seen stands.
                self._tracker.end()
            else:
                return  # another thread's pass is being seen
        training = module.training and torch.is_grad_enabled()
        if training:
            observe = self.step % self.every == 0
        else:
            observe = self._eval_passes % self.every == 0
            self._eval_passes += 1
        if not observe or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return
        self._phase = "train" if training else "eval"
        try:
            self._tracker.begin(args, kwargs)
        except Exception as error:
            self._tracker.end()
            self._tracker.trouble("starting to look at a forward pass", error)

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._tracker.active and self._tracker.here():
            self._tracker.end(output)
            if self._tracker.restarted:
                self._tracker.forget()
                self._meters.clear()
            elif self._phase == "train":
                self._observed_steps.add(self.step)
            self._take_sites()
            if not self._sites and output is not None and not self._told_no_sites:
                self._told_no_sites = True
                warnings.warn(
                    f"{type(self.model).__name__} applied no activation that relume knows in this forward pass; "
                    "make your own known with relume.register_activation",
                    RelumeWarning,
                    stacklevel=2,
                )
        if not self._optimizers and module.training and torch.is_grad_enabled():
            self._step_done()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._step_done()
        if self._calls == 0 and self.step == _BLIND_STEPS:
            warnings.warn(
                f"{self.step} optimizer steps went by without a call of {type(self.model).__name__}(…): relume sees "
                "calls of the module it was given, not of its methods or submodules. Watch the module that is called",
                RelumeWarning,
                stacklevel=2,
            )

    def _step_done(self) -> None:
        self.step += 1
        if self.step - self._window_start >= self.window:
            self._flush()

    def _meter(self, found: Found, x: Tensor) -> Callable[[Tensor], None] | None:
        key = (found.key, self._phase)
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = Meter(found.plan.n_units, x.device)
        return meter.observe(x, found.plan, found.activation, self.step)

    # Windows

    def _take_sites(self) -> None:
        for site in self._tracker.sites():
            self._sites[site.name] = site
        for note in self._tracker.notes:
            if note not in self.notes:
                self.notes.append(note)

    def _counted(self, *, reset: bool) -> tuple[Window, dict[Phase, dict[str, Counts]]] | None:
        """The window in progress, read from the meters; None when nothing was observed in it."""
        used = [(key, phase, m) for (key, phase), m in self._meters.items() if m.samples]
        if not used:
            return None
        names = {key: found.site.name for key, found in self._tracker.found.items()}
        by_phase: dict[Phase, dict[str, Counts]] = {}
        for (key, phase, _), counts in zip(used, collect([m for _, _, m in used], reset=reset), strict=True):
            if key in names:
                by_phase.setdefault(phase, {})[names[key]] = counts
        last = max(self.step - 1, self._window_start)
        window = Window(
            index=self._window_index,
            first_step=self._window_start,
            last_step=last,
            observed=len(self._observed_steps),
            complete=last - self._window_start + 1 >= self.window,
            counts={phase: (lambda c=c: c) for phase, c in by_phase.items()},  # type: ignore[misc]
            settings=self._settings(),
        )
        return window, by_phase

    def _flush(self) -> None:
        """End the window: read the meters, keep and save what they say."""
        counted = self._counted(reset=True)
        self._window_start = self.step
        self._observed_steps = set()
        if counted is None:
            return
        window, by_phase = counted
        self._window_index += 1
        self._fold(by_phase.get("train", {}))
        self._keep(window, by_phase)
        if self._writer is not None:
            self._write(window)
        if self._on_window is not None:
            self._on_window(self, window)

    def _fold(self, train: Mapping[str, Counts]) -> None:
        for name, counts in train.items():
            site = self._sites[name]
            timeline = self._timelines.setdefault(name, Timeline(name, site.units))
            timeline.fold(SiteCensus(site, counts, self.min_inputs))

    def _keep(self, window: Window, by_phase: Mapping[Phase, Mapping[str, Counts]]) -> None:
        self._windows.append(window)
        self._kept_bytes += sum(80 * c.units for counts in by_phase.values() for c in counts.values())
        if self._kept_bytes > MEMORY_LIMIT or len(self._windows) > WINDOWS_LIMIT:
            self._windows = _coarser(self._windows)
            self._kept_bytes = sum(
                80 * c.units for w in self._windows for get in w.counts.values() for c in get().values()
            )

    def _write(self, window: Window | None, about: Mapping[str, Any] | None = None) -> None:
        """Save; a disk that fails must not end the training: it is said once, and recording goes on in memory."""
        assert self._writer is not None
        try:
            scalars, self._new_scalars = self._new_scalars, []
            self._writer.write(window, self.sites, scalars, self.notes, about)
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
            path, self._writer = self._writer.path, None
            self._tracker.note(
                f"relume can no longer write {path} ({error}); training and watching go on, the run file ends here"
            )
            self.notes = list(dict.fromkeys([*self.notes, *self._tracker.notes]))

    def _settings(self) -> dict[str, Any]:
        """The optimizer's plain settings per parameter group, as they are now."""
        groups = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                plain = {k: v for k, v in group.items() if isinstance(v, bool | int | float | str | None)}
                plain.update({k: list(v) for k, v in group.items() if k == "betas"})
                groups.append({"optimizer": type(optimizer).__name__, **plain})
        return {"groups": groups} if groups else {}

    # Reading

    def census(self, window: int | Literal["all"] = -1, *, phase: Phase = "train") -> Census:
        if window == -1 and not self.closed and not any(w.complete and phase in w.counts for w in self._windows):
            counted = self._counted(reset=False)  # no window is complete yet: show the one in progress
            if counted is not None and phase in counted[1]:
                return self.census_of(counted[0], phase)
        return super().census(window, phase=phase)

    census.__doc__ = Recording.census.__doc__

    def timeline(self, site: str) -> Timeline:
        name = self._name(site)
        return self._timelines[name] if name in self._timelines else super().timeline(name)

    timeline.__doc__ = Recording.timeline.__doc__

    def log(self, **values: float) -> None:
        """Record numbers of your own (loss, accuracy) at the present step, for the report and the run file."""
        for name, value in values.items():
            row = (self.step, name, float(value))
            self.scalars.append(row)
            if self._writer is not None:
                self._new_scalars.append(row)

    @property
    def state_bytes(self) -> int:
        """Bytes of counting state now on the model's devices: 88 per unit and phase."""
        return sum(BYTES_PER_UNIT * m.state.shape[1] for m in self._meters.values())


def _coarser(windows: list[Window]) -> list[Window]:
    """Add up neighbours two by two, all but the latest window; counts stay exact, resolution halves."""

    def both(a: Window, b: Window) -> Window:
        counts: dict[str, Callable[[], Mapping[str, Counts]]] = {}
        for phase in dict.fromkeys([*a.counts, *b.counts]):
            merged = dict(a.counts[phase]()) if phase in a.counts else {}
            for name, c in (b.counts[phase]() if phase in b.counts else {}).items():
                merged[name] = merged[name].merge(c) if name in merged else c
            counts[phase] = lambda m=merged: m  # type: ignore[misc]
        return Window(
            a.index, a.first_step, b.last_step, a.observed + b.observed, a.complete and b.complete, counts, b.settings
        )

    older, latest = windows[:-1], windows[-1:]
    paired = [both(a, b) for a, b in zip(older[::2], older[1::2], strict=False)]
    return [*paired, *(older[-1:] if len(older) % 2 else []), *latest]


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _optimizers(model: nn.Module, given: Optimizer | Sequence[Optimizer] | None) -> tuple[Optimizer, ...]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"relume watches a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise RelumeError(
            "relume can't see inside a torch.jit.ScriptModule: watch the model before scripting it, or census the original"
        )
    optimizers = () if given is None else tuple(given) if isinstance(given, Iterable) else (given,)
    for optimizer in optimizers:
        if not hasattr(optimizer, "register_step_post_hook"):
            raise TypeError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer: pass one, or a list of them, or None"
            )
    own = {id(p) for p in model.parameters()}
    if optimizers and not any(id(p) in own for o in optimizers for g in o.param_groups for p in g["params"]):
        warnings.warn(
            f"the optimizer holds no parameter of {type(model).__name__}: steps are counted, but they don't train this model",
            RelumeWarning,
            stacklevel=4,
        )
    return optimizers


def _about(watch: Watch, save: str | Path | None) -> dict[str, Any]:
    return {
        "relume": version.__version__,
        "torch": str(torch.__version__),
        "model": type(watch.model).__name__,
        "parameters": sum(p.numel() for p in watch.model.parameters()),
        "optimizer": ", ".join(type(o).__name__ for o in watch._optimizers),
        "every": watch.every,
        "window": watch.window,
        "min_inputs": watch.min_inputs,
    }


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    every: int = 10,
    window: int = 100,
    save: str | Path | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    axis: int | Mapping[str, int] | None = None,
    input_axis: int | None = None,
    min_inputs: int = 256,
    on_window: Callable[[Watch, Window], None] | None = None,
) -> Watch:
    """Watch a model while it trains: which units fire, which have died, and when.

    Use it as a context manager around an unchanged training loop, or call `close()`. It changes no bit of the
    training: not parameters, buffers, gradients, random state, optimizer state, hooks or modes.

    Args:
        model: the module that the loop calls.
        optimizer: whose steps count as steps; the first of several sets the pace. None: each training forward is one.
        every: observe each k-th step, beginning with step 0. On other steps the only cost is a counter.
        window: steps per window; one window is one row of history.
        save: folder for a run file, kept after each window and readable while training runs (`relume.load`).
        include, exclude: shell patterns on site names.
        axis: unit axis, for all sites or by pattern, where the data flow can't tell or you know better.
        input_axis: axis of the model's first input that counts inputs; default 0, or 1 where the model hands that
            input to a recurrent or attention module with `batch_first=False`.
        min_inputs: inputs that a unit must have seen in a window to be called dead rather than unknown.
        on_window: called with (watch, window) after each window, e.g. for a live view.

    Returns:
        Watch: `.census()`, `.history()`, `.timeline(site)`, `.report(path)`, `.log(loss=…)`, `.close()`.

    Raises:
        TypeError: not a module, or not an optimizer.
        ValueError: every, window or min_inputs is not a positive whole number.
        RunFileError: `save` can't be written, or already holds a run.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch(model, optimizer, every=1, window=5) as w:
    ...     for _ in range(10):
    ...         loss = model(torch.randn(64, 4)).square().mean()
    ...         optimizer.zero_grad(); loss.backward(); optimizer.step()
    >>> w.census()["1"].dead.shape
    torch.Size([8])
    """
    return Watch(
        model,
        optimizer,
        every=every,
        window=window,
        save=save,
        include=include,
        exclude=exclude,
        axis=axis,
        input_axis=input_axis,
        min_inputs=min_inputs,
        on_window=on_window,
    )
