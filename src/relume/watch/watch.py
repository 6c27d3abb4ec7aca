"""`Watch`: counts units while a model trains, from `watch(model, optimizer)` to `close()`, and changes nothing.

While it is open the model's root carries two hooks and the optimizer one. Order of hooks: relume's come after those
that were there, so they see the arguments and the output that the user's own hooks leave. On unobserved steps the
hooks only count. On observed steps a `Tracker` sees the forward pass and `Meter`s add up on the device; at the end of a
window all meters are read with one transfer.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import sqlite3
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

import relume._version as version
from relume.census import Census, Counts, Phase, SiteCensus, Timeline
from relume.errors import RelumeError, RelumeWarning
from relume.sites import Found, Site, Tracker, transforms
from relume.watch import arguments, compiled
from relume.watch.calls import Calls, Hook, alive
from relume.watch.meters import Meter, collect, counted_already
from relume.watch.observer import Observer
from relume.watch.pace import Pace
from relume.watch.probe import Probe
from relume.watch.recording import Recording, Window, coarser, give_back_memory, held, in_memory, latest
from relume.watch.store import Writer
from relume.watch.sync import Ranks, on_this_rank, ranks_of, replicated, tensor_parallel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from relume.diagnose.archive import Archivist, News
    from relume.diagnose.record import Record

# What a watch keeps in memory: beyond it, neighbouring windows are added up and the history gets coarser.
MEMORY_LIMIT = 64 * 2**20
WINDOWS_LIMIT = 512
# Steps without a call of model(...) after which a watch says that it sees nothing.
_BLIND_STEPS = 3


class Watch(Recording):
    """A model under watch. Made by `relume.watch`; see there."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        *,
        every: int | Literal["auto"] = 10,
        window: int = 100,
        save: str | Path | None = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        axis: int | Mapping[str, int] | None = None,
        input_axis: int | None = None,
        min_inputs: int = 256,
        on_window: Callable[[Watch, Window], None] | None = None,
        budget: float = 0.01,
        sync: bool | ProcessGroup = True,
        diagnose: bool = True,
        replay: bool | int = False,
    ) -> None:
        super().__init__(arguments.positive("min_inputs", min_inputs))
        called = compiled.original(arguments.module(model, "watch"))
        model = replicated(model)
        self.model = compiled.original(replicated(called))
        self._pace = Pace(arguments.share("budget", budget)) if every == "auto" else None
        self.every = self._pace.every if self._pace is not None else arguments.positive("every", every, or_else="auto")
        self.window = arguments.positive("window", window)
        arguments.axes(axis, input_axis)
        if on_window is not None and not callable(on_window):
            raise TypeError(f"on_window is a function of (watch, window), not {type(on_window).__name__}")
        self.step = 0
        self.closed = False
        self._entered = False
        self._on_window = on_window
        self._optimizers = arguments.optimizers(model, optimizer)
        # Is each training forward a step? Without an optimizer, and where compiled code hides its steps.
        self._by_passes = not self._optimizers
        self._tracker = Tracker(
            self.model,
            self._meter,
            include=arguments.patterns("include", include),
            exclude=arguments.patterns("exclude", exclude),
            axis=axis,
            input_axis=input_axis,
        )
        # Several threads may call the model; one pass at a time is seen, and no window ends within a count.
        self._lock = threading.RLock()
        self._calls = Calls()
        self._probe = Probe(self._tracker, self._tell_of_begin, self._seen)
        self.observers: list[Observer] = []  # of training passes, beside the meters
        self._doors = compiled.Doors(self._before_forward, self._after_forward)
        self._meters: dict[tuple[int, Phase], Meter] = {}  # by the number of the site
        self._phase: Phase = "train"
        self._timelines: dict[str, Timeline] = {}
        self._window_start = 0
        self._window_index = 0
        self._due = 0  # the first training pass at this step or later is observed
        self._seen_step = -1  # the latest step of which a training pass was observed
        self._observed = 0  # steps of this window that were
        self._eval_passes = 0
        self._kept_bytes = 0
        self._new_scalars: list[tuple[int, str, float]] = []
        self._told_no_sites = False
        self._told_blind = False
        self._taken: Any = None  # what the tracker had found when its sites were last taken over
        self.about = self._describe()
        self._ranks = self._find_ranks(called, sync)
        writes = save is not None and (self._ranks is None or self._ranks.first)
        self._writer = Writer(save, self.about) if save is not None and writes else None
        self.record = self._recorded(diagnose)
        self._archivist: Archivist | None = None  # says what of the record is new to the run file
        self._ended: Path | None = None  # the run file, once it is finished
        self.replay = self._replayed(replay)
        self._handles: list[Any] = []
        self._hooks: list[Any] = []  # on the model itself
        self._traced = False  # compiled code has been made with them in place
        self._attach()
        if compiled.is_wrapper(model):
            self._doors.open(model)
        if compiled.compiles():
            self._find_doors()

    def _describe(self) -> dict[str, Any]:
        parameters = [p for p in self.model.parameters() if not isinstance(p, UninitializedParameter)]
        return {
            "relume": version.__version__,
            "torch": str(torch.__version__),
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in parameters),
            "optimizer": ", ".join(type(o).__name__ for o in self._optimizers),
            "every": "auto" if self._pace is not None else self.every,
            "window": self.window,
            "min_inputs": self.min_inputs,
        }

    def _recorded(self, diagnose: bool) -> Record | None:
        """What diagnosis keeps of the run; imported here, as it stands a floor above."""
        if not isinstance(diagnose, bool):
            raise TypeError(f"diagnose is True or False, not {type(diagnose).__name__}")
        if not diagnose:
            return None
        from relume.diagnose.record import Record

        return Record.on(self)

    def _replayed(self, replay: bool | int) -> Any:
        """What a replay needs of the run, up to so many bytes."""
        if replay is False:
            return None
        from relume.diagnose.replay import Replay

        return Replay.on(self, None if replay is True else arguments.positive("replay", replay))

    def _find_ranks(self, called: nn.Module, sync: bool | ProcessGroup) -> Ranks | None:
        ranks = ranks_of(called, sync, {k: self.about[k] for k in ("relume", "model", "parameters", "window")})
        if ranks is not None and sync is True and tensor_parallel(self.model):
            ranks.leave(
                "tensor parallelism spreads the units over ranks; sync=GROUP adds up a group whose ranks hold the same",
                quiet=False,
            )
        self.about["ranks"] = 1 if ranks is None else len(ranks.members)
        return ranks

    # Life cycle

    def _attach(self) -> None:
        model = self.model
        if isinstance(model, nn.TransformerEncoderLayer):
            self._tracker.note(
                "any hook on a TransformerEncoderLayer makes torch run it by its ordinary path, so evaluation rounds "
                "otherwise while it is watched by itself; watch a module that contains it instead"
            )
        self._handles = [
            o.register_step_post_hook(Hook(self._after_step, self._compiling_step)) for o in self._optimizers[:1]
        ]
        if not compiled.in_place(model):  # else all calls come through a door
            self._hang_on_model()
        if self._writer is not None or self._ranks is not None:
            _unfinished.add(self)

    def _hang_on_model(self) -> None:
        hook = Hook(self._before_forward, self._compiling)
        self._hooks = [self.model.register_forward_pre_hook(hook, with_kwargs=True)]
        if self._by_passes:
            self._hear_the_end()

    def _hear_the_end(self) -> None:
        """Hear of the end of the model's pass, too: a hook that costs time, so it is there only while needed."""
        with self._lock:
            if len(self._hooks) == 1:
                hook = Hook(self._after_forward)
                self._hooks.append(self.model.register_forward_hook(hook, with_kwargs=True, always_call=True))

    def _heard_the_end(self) -> None:
        with self._lock:
            if len(self._hooks) == 2 and not self._by_passes and not self._calls.running:
                self._hooks.pop().remove()

    def _detach(self) -> None:
        """Take the hooks off; the last one only when no other thread needs it to end the pass it is in."""
        with self._lock:
            elsewhere = self._tracker.active and not self._tracker.here() and alive(self._tracker.thread)
            going, self._hooks = (self._hooks[:-1], self._hooks[-1:]) if elsewhere else (self._hooks, [])
            for handle in (*self._handles, *going):
                handle.remove()
            self._handles = []
            if not elsewhere:
                self._doors.close()
                self._tracker.end()
                self._tell("ending a forward pass", lambda observer: observer.end())

    def __enter__(self) -> Watch:
        if self.closed or self._entered:
            raise RelumeError(
                f"this watch {'is closed' if self.closed else 'is open already'}; "
                "each `with` takes a new one: relume.watch(model, optimizer)"
            )
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish("finished" if kind is None else f"failed: {kind.__name__}")
        except Exception as another:
            if error is None:
                raise
            # The training's own error is the one to be raised.
            warnings.warn(f"closing the watch raised {type(another).__name__}: {another}", RelumeWarning, stacklevel=2)

    def close(self) -> None:
        """Stop watching: remove every hook, count the window in progress, finish the run file. Idempotent."""
        self._finish("finished")

    def _finish(self, status: str) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            if self.replay is not None:
                self.replay.close()
            self._detach()
            if self._ranks is not None and status == "finished":
                self._ranks.meet(closing=True)
            elif self._ranks is not None:
                self._ranks.leave(status)
            self._flush()
        finally:
            self._meters.clear()
            every = {} if self._pace is None else {"every": f"auto ({self.every} at the end)"}
            self.about |= {"status": status, "steps": self.step, **every}
            self._save(None, {"status": status, "steps": self.step, "ended": time.time(), **every})
            self._ended = self._writer.path if self._writer is not None else None
            self._stop_saving()

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """An error inside relume must not end a training run."""
        try:
            yield
        except Exception as error:
            self._tracker.trouble(doing, error)

    def _tell(self, doing: str, what: Callable[[Observer], None]) -> None:
        """Tell the observers of something. One that fails is told nothing more, and must not take counts with it."""
        for observer in tuple(self.observers):
            try:
                what(observer)
            except Exception as error:
                self.observers.remove(observer)
                if observer is self.record:
                    self.record.stop(f"it failed while {doing} ({type(error).__name__}: {error})")
                with self._guarded(doing):
                    observer.end()
                self._tracker.trouble(doing, error)
                self._take_notes()

    def _tell_of_begin(self) -> None:
        if self._phase == "train":
            self._tell("starting to look at a forward pass", lambda observer: observer.begin(self.step))

    def note(self, text: str) -> None:
        """Something that readers of the run should know: among its notes, without a warning."""
        self._tracker.note(text, quiet=True)
        self._take_notes()

    def trouble(self, error: Exception) -> None:
        """An error in an observer, where no call of its could raise it: said once, and training goes on."""
        self._tracker.trouble("recording what diagnosis needs", error)

    # Hooks

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls = self._calls
        if (
            self.step < self._due
            and self.step != self._seen_step
            and not calls.running
            and module.training
            and not self._doors.opened
            and not self._by_passes
            and torch.is_grad_enabled()
        ):
            calls.total += 1  # what nearly every call comes to
            return
        if self._probe.here() or torch.compiler.is_compiling():
            return
        self._end_interrupted()
        call = self._calls.begin(module, sys._getframe(2))
        if call is not None and module is self.model and module not in self._doors:
            self._hear_the_end()
        if call is not None and module in self._doors and not self._traced:
            # Compiled code that was made without relume's hooks would be made anew with them.
            for handle in self._hooks:
                handle.remove()
        if call is None or call.recomputed:
            return
        self._observe(module, call.training, args, kwargs)

    def _observe(self, module: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at a pass that begins, if it is time to."""
        if training:
            observe = self.step >= self._due or self.step == self._seen_step
        else:
            observe = self._eval_passes % self.every == 0
            self._eval_passes += 1
        if not observe or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return
        if transforms.hides_inputs():
            self._tracker.note(
                f"{type(self.model).__name__} is called inside torch.vmap, which hides what an input is: such calls "
                "are not counted. Take relume.census(model, batches) of each member instead, with its weights loaded"
            )
            self._take_notes()
            return
        self._see(module, training, args, kwargs)

    def _see(self, module: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin to look at a pass, unless one in another thread is being looked at."""
        aside = self._probe.needed(module)
        with compiled.eager() if aside else contextlib.nullcontext(), self._lock:
            if self._tracker.active and alive(self._tracker.thread):
                self._tracker.note("several threads call the model at once: one pass at a time is seen", quiet=True)
                return
            self._phase = "train" if training else "eval"
            with self._guarded("looking at a forward pass aside" if aside else "starting to look at a forward pass"):
                if aside:
                    self._probe.run(module, args, kwargs)
                else:
                    self._tell_of_begin()
                    self._tracker.begin(args, kwargs)
        if training:
            self._due = (self.step // self.every + 1) * self.every
            self._observed += self.step != self._seen_step
            self._seen_step = self.step

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._calls.running or self._probe.here() or torch.compiler.is_compiling():
            return
        call = self._calls.end(module)
        if call is None:
            return
        failed = call.failed
        if self._hooks and module in self._doors and not self._traced and not self.closed:
            self._hang_on_model()
        if self._tracker.active and self._tracker.here():
            with self._guarded("ending a forward pass"):
                self._seen(output, failed)
        if self._probe.failure is not None and not failed:
            error, self._probe.failure = self._probe.failure, None
            self._tracker.trouble("looking at a forward pass aside", error)
            self._take_notes()
        self._heard_the_end()
        if self.closed:
            self._detach()
        elif self._by_passes and call.training and not call.recomputed and not failed:
            self._step_done()

    def _seen(self, output: Any, failed: bool) -> None:
        """The end of an observed pass."""
        tracker = self._tracker
        empty = tracker.flow.inputs == 0
        tracker.end(output)
        self._tell("ending a forward pass", lambda observer: observer.end())
        if tracker.restarted:
            with self._lock:
                tracker.forget()
                self._meters.clear()
            return
        self._take_sites()
        if not tracker.found and not failed and not empty and not self._told_no_sites:
            self._told_no_sites = True
            warnings.warn(
                f"{type(self.model).__name__} applied no activation that relume knows in this forward pass; "
                "make your own known with relume.register_activation",
                RelumeWarning,
                stacklevel=2,
            )

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._calls.running:
            self._end_interrupted()
        # A scaler lets a fused optimizer step whatever it found, and skip by itself. To read it waits for the device,
        # as the scaler does for any other optimizer.
        if bool(getattr(optimizer, "found_inf", False)):
            return
        self._step_done()
        if self._calls.total == 0 and self.step == 1:
            self._find_doors()
        if self._calls.total == 0 and self.step == _BLIND_STEPS and not self._told_blind:
            self._told_blind = True
            warnings.warn(
                f"{self.step} optimizer steps went by without a call of {type(self.model).__name__}(…): relume sees "
                "calls of the module it was given, not of its methods or submodules. Watch the module that is called",
                RelumeWarning,
                stacklevel=2,
            )

    # Compiled code

    def _find_doors(self) -> None:
        """The model may have been compiled before: find what runs it."""
        if compiled.in_place(self.model):
            self._doors.open(self.model)
        for wrapper in compiled.wrappers_of(self.model):
            self._doors.open(wrapper)

    def _compiling(self) -> None:
        """A call of the model is being compiled: from the next on, the watch stands at its door."""
        if self.closed or self._probe.here():
            return
        with self._guarded("looking at a call that is being compiled"):
            call = compiled.now_compiling()
            self._traced = True
            if call is None or call.what in self._doors:
                return
            if isinstance(call.what, nn.Module):
                self._doors.open(call.what)
                self._calls.total += 1
                training = call.what.training and torch.is_grad_enabled()
                self._observe(call.what, training, call.args, call.kwargs)
                if training and self._by_passes:
                    self._step_done()
                return
            self._blind(call, f"the calls of {type(self.model).__name__} in it are not counted")

    def _compiling_step(self) -> None:
        """A step of the optimizer is being compiled, which hides those that follow."""
        if self.closed or self._by_passes:
            return
        with self._guarded("looking at a step that is being compiled"):
            call = compiled.now_compiling()
            if call is not None:
                self._by_passes = True
                if self._hooks:
                    self._hear_the_end()
                self._step_done()
                self._blind(call, "from now on each training forward counts as a step, in place of the optimizer's")

    def _blind(self, call: compiled.Compiling, what: str) -> None:
        self._told_blind = True
        name = getattr(call.what, "__qualname__", type(call.what).__name__)
        self._tracker.note(
            f"{name} is compiled as a whole, and relume can't look inside of compiled code: {what}. Compile the model "
            "(torch.compile(model)) and leave loss, backward and optimizer step outside, or take "
            "relume.census(model, batches) from time to time"
        )
        self._take_notes()

    def _end_interrupted(self) -> None:
        """An interrupt may have left this thread's last pass half done; what was seen of it stands."""
        if self._calls.left_behind():
            self._heard_the_end()
            if self._tracker.here():
                self._tracker.end()
                self._tell("ending a forward pass", lambda observer: observer.end())

    def _step_done(self) -> None:
        if self.observers and self.step == self._seen_step:
            self._tell("looking at an optimizer's step", lambda observer: observer.stepped(self.step))
        if self._pace is not None:
            self._pace.step(observed=self.step == self._seen_step)
        self.step += 1
        whole = (self.step - self._window_start) % self.window == 0
        if whole and (self._ranks is None or self._ranks.meet()):
            self._flush()
            if self._pace is not None:
                self.every = self._pace.choose()
                self._due = min(self._due, (self.step // self.every + 1) * self.every)
                self._pace.pause()

    def _meter(self, found: Found, x: Tensor) -> Callable[[Tensor], None] | None:
        if self.closed:
            return None
        if x.is_meta:
            self._tracker.note("tensors on the meta device hold no numbers: nothing is counted there")
            return None
        whole = x if type(x) is Tensor else on_this_rank(x)
        if whole is None:
            self._tracker.note(f"'{found.site.name}' is a DTensor, spread over ranks: relume doesn't count those")
            return None
        with self._lock:
            training = self._phase == "train"
            key = (found.number, self._phase)
            meter = self._meters.get(key)
            if meter is None:
                meter = self._meters[key] = Meter(found.plan.n_units, x.device)
            moments = None
            if training and self.record is not None:
                moments = self.record.moments(found.site, whole)
            output = meter.observe(whole, found.plan, found.activation, self.step, moments)
            if training:
                self._tell("looking at a site", lambda observer: observer.see(found.site, whole, found.plan))
            return None if output is counted_already else output

    # Windows

    def _take_sites(self) -> None:
        if self._ranks is None and self._taken == self._tracker.news:
            return
        self._taken = self._tracker.news
        if self._ranks is None or not self._ranks.agreed:
            self._sites |= {site.name: site for site in self._own_sites()}
        self._take_notes()

    def _own_sites(self) -> list[Site]:
        return [site for site in self._tracker.sites() if self._tracker.wanted(site.name)]

    def _take_notes(self) -> None:
        self.notes = list(dict.fromkeys([*self.notes, *self._tracker.notes]))

    def _counted(self, *, reset: bool) -> Window | None:
        """The window in progress, read from the meters; None when nothing was observed in it."""
        with self._lock:
            self._take_sites()  # of a pass in progress, or one that an interrupt left half done
            used = [(key, phase, m) for (key, phase), m in self._meters.items() if m.samples]
            if not used:
                return None
            names = {found.number: found.site.name for found in self._tracker.found.values()}
            by_phase: dict[Phase, dict[str, Counts]] = {}
            for (key, phase, _), counts in zip(used, collect([m for _, _, m in used], reset=reset), strict=True):
                if key in names:
                    by_phase.setdefault(phase, {})[names[key]] = counts
        return self._window_of(by_phase)

    def _window_of(self, by_phase: Mapping[Phase, Mapping[str, Counts]]) -> Window:
        return Window(
            index=self._window_index,
            first_step=self._window_start,
            last_step=max(self.step - 1, self._window_start, self._seen_step),
            observed=self._observed,
            complete=self.step - self._window_start >= self.window,
            counts={phase: held(counts) for phase, counts in by_phase.items()},
            settings=arguments.settings(self._optimizers),
        )

    def _flush(self) -> None:
        """End the window: read the meters, keep and save what they say."""
        window: Window | None = None
        with self._guarded("reading the counts of a window"):
            window = self._counted(reset=True)
        if self._ranks is not None:
            with self._guarded("adding up ranks"):
                window = self._merged(self._ranks, window)
        self._window_start, self._observed = self.step, 0
        if window is not None:
            self._window_index += 1
            with self._guarded("adding up a window"):
                self._fold(window)
                self._keep(window)
            self._tell("adding up a window", lambda observer: observer.window(self, window))
        if window is not None or self._new_scalars:
            self._save(window)
        if window is not None and self._on_window is not None:
            self._on_window(self, window)

    def _merged(self, ranks: Ranks, window: Window | None) -> Window | None:
        """What all ranks counted, in place of what this one did."""
        merged = ranks.merge(window or self._window_of({}), self._own_sites(), self._tracker.notes)
        self._sites = {site.name: site for site in merged.sites}
        if merged.parted is not None:
            self._tracker.note(f"from step {self._window_start} on, {merged.parted}", quiet=ranks.quiet)
        self.notes = list(dict.fromkeys([*self.notes, *merged.notes, *self._tracker.notes]))
        return merged.window

    def _fold(self, window: Window) -> None:
        for name, counts in window.counts["train"]().items() if "train" in window.counts else ():
            site = self._sites[name]
            timeline = self._timelines.setdefault(name, Timeline(name, site.units))
            timeline.fold(SiteCensus(site, counts, self.min_inputs))

    def _keep(self, window: Window) -> None:
        self._windows.append(window)
        self._kept_bytes += in_memory(window)
        if self._kept_bytes <= MEMORY_LIMIT and len(self._windows) <= WINDOWS_LIMIT:
            return
        if not any(in_memory(w) > MEMORY_LIMIT for w in self._windows):
            self._windows = coarser(self._windows)
        elif self._writer is None:  # else it is let go of when it is written
            self._windows = latest(self._windows)
            self._tidy()
            self._tracker.note(
                f"counts of a window take more than {MEMORY_LIMIT // 2**20} MiB, so only the latest is kept in memory; "
                'with save="FOLDER" all are kept on disk'
            )
            self._take_notes()
        self._kept_bytes = sum(map(in_memory, self._windows))

    def _tidy(self) -> None:
        """After a large window: keep memory from being broken up by states made among the tensors of a pass."""
        give_back_memory()
        for meter in () if self.closed else self._meters.values():
            meter.renew()

    def _save(self, window: Window | None, about: Mapping[str, Any] | None = None) -> None:
        """A disk that fails must not end the training: it is said once, and recording goes on in memory."""
        if self._writer is None:
            return
        try:
            scalars, self._new_scalars = self._new_scalars, []
            news = self._for_diagnosis()
            self._writer.write(window, self.sites, scalars, self.notes, about, self._timelines, news)
            if window is not None and in_memory(window) > MEMORY_LIMIT:
                self._windows[-1] = self._writer.stored(window)
                self._kept_bytes = sum(map(in_memory, self._windows))
                self._tidy()
        except (sqlite3.Error, OSError) as error:
            path = self._writer.path
            self._stop_saving()
            self._tracker.note(
                f"relume can no longer write {path} ({error}); training and watching go on, the run file ends here"
            )
            self._take_notes()
        except Exception as error:
            self._stop_saving()
            self._tracker.trouble("saving a window", error)
            self._take_notes()

    def _for_diagnosis(self) -> News | None:
        """What the run file does not have yet of the record."""
        if self.record is None:
            return None
        with self._guarded("keeping what diagnosis needs"):
            if self._archivist is None:
                from relume.diagnose.archive import Archivist  # above

                self._archivist = Archivist(self.record)
            return self._archivist.news()
        return None

    def keep_confirmed(self) -> None:
        """Findings were confirmed by a replay: to the run file with them, though it has ended."""
        if self._writer is not None:
            self._save(None)
        elif self._ended is not None and self._archivist is not None:
            try:
                writer = Writer.again(self._ended)
                try:
                    writer.amend(self._archivist.news())
                finally:
                    writer.close()
            except (sqlite3.Error, OSError, ValueError) as error:
                self._tracker.note(f"what a replay said can't be added to {self._ended} ({error})")
                self._take_notes()

    def _stop_saving(self) -> None:
        writer, self._writer = self._writer, None
        if self.closed or self._ranks is None:
            _unfinished.discard(self)
        if writer is not None:
            writer.close()

    # Reading

    def census(self, window: int | Literal["all"] = -1, *, phase: Phase = "train") -> Census:
        if window == -1 and not self.closed and not any(w.complete and phase in w.counts for w in self._windows):
            counted = self._counted(reset=False)  # no window is complete yet: show the one in progress
            if counted is not None and phase in counted.counts:
                own = counted if self._ranks is None else self._ranks.so_far(counted, self._own_sites())
                return self.census_of(own, phase)
        return super().census(window, phase=phase)

    census.__doc__ = Recording.census.__doc__

    def timeline(self, site: str) -> Timeline:
        name = self._name(site)
        # A copy, as the timeline itself goes on with the training.
        return copy.deepcopy(self._timelines[name]) if name in self._timelines else super().timeline(name)

    timeline.__doc__ = Recording.timeline.__doc__

    @property
    def timelines(self) -> Mapping[str, Timeline]:
        """By site, as they go on with the training; for reading alone."""
        return MappingProxyType(self._timelines)

    def log(self, **values: float | Tensor) -> None:
        """Record numbers of your own (loss, accuracy) at the present step, for the report and the run file.

        A tensor of one element is taken too; reading it waits for its device.
        """
        for name, value in values.items():
            row = (self.step, name, arguments.number(name, value))
            self.scalars.append(row)
            if self._writer is not None:
                self._new_scalars.append(row)

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """Those it was given."""
        return self._optimizers

    @property
    def state_bytes(self) -> int:
        """Bytes of counting state on the model's devices while a window is counted: 48 to 56 per unit and phase for
        float32 activations."""
        return sum(meter.state_bytes for meter in self._meters.values())


# Watches with a run file, or of several processes, that a program may leave without closing.
_unfinished: weakref.WeakSet[Watch] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    uncaught = getattr(sys, "last_type", None)
    for unfinished in list(_unfinished):
        with contextlib.suppress(Exception):
            unfinished._finish("finished" if uncaught is None else f"failed: {uncaught.__name__}")


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    every: int | Literal["auto"] = 10,
    window: int = 100,
    save: str | Path | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    axis: int | Mapping[str, int] | None = None,
    input_axis: int | None = None,
    min_inputs: int = 256,
    on_window: Callable[[Watch, Window], None] | None = None,
    budget: float = 0.01,
    sync: bool | ProcessGroup = True,
    diagnose: bool = True,
    replay: bool | int = False,
) -> Watch:
    """Watch a model while it trains: which units fire, which have died, and when.

    Use it as a context manager around an unchanged training loop, or call `close()`. It changes no bit of the
    training: not parameters, buffers, gradients, random state, optimizer state, hooks or modes.

    The model may be compiled, as a whole or in parts, before the watch begins or after. What runs compiled code is
    looked at aside: an observed step then costs one more forward pass, of the original code and without gradients, and
    effects of that code outside of the model (printing, counting in a global variable) happen twice.

    Args:
        model: the module that the loop calls.
        optimizer: whose steps count as steps; the first of several sets the pace. None: each training forward is one.
        every: observe each k-th step, beginning with step 0. On other steps the only cost is a counter. "auto": begin
            with each tenth and then, from measured step times, choose anew at the end of each window so that watching
            takes no more than `budget`; `Watch.every` is what it chose, at most 1000. Let a window be several of that.
        window: steps per window; one window is one row of history.
        save: folder for a run file, kept after each window and readable while training runs (`relume.load`).
        include, exclude: shell patterns on site names.
        axis: unit axis, for all sites or by pattern, where the data flow can't tell or you know better.
        input_axis: axis of the model's first input that counts inputs; default 0, or 1 where the model hands that
            input to a recurrent or attention module with `batch_first=False`.
        min_inputs: inputs that a unit must have seen in a window to be called dead rather than unknown.
        on_window: called with (watch, window) after each window, e.g. for a live view.
        budget: for every="auto", the share of training time that watching may take.
        sync: where `torch.distributed` is initialized, call `watch` alike on every rank, and each holds the census of
            all ranks' inputs after each window; the first rank writes `save`, the others ignore it. A process group
            adds up its ranks alone; False adds up none, and each rank writes what it is told to.
        diagnose: keep what `relume.diagnose` needs, as `Watch.record`: of each unit what moved its mean pre-activation,
            of each producer its steps. False leaves it out.
        replay: keep snapshots and recent batches too, so that `finding.confirm()` can run them again with one thing
            changed; True, or the bytes that they may take.

    Returns:
        Watch: `.census()`, `.history()`, `.timeline(site)`, `.report(path)`, `.log(loss=…)`, `.close()`.

    Raises:
        TypeError: not a module, not an optimizer, or not a process group.
        ValueError: every (but "auto"), window or min_inputs is not a positive whole number, or budget no share.
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
        budget=budget,
        sync=sync,
        diagnose=diagnose,
        replay=replay,
    )
