"""`Record`: what is kept over a run so that the death of a unit can be traced to what moved it.

Per site, unit and observed pass: mean, spread and maximum of the pre-activation, and the parts of the change since the
pass before. Recent passes lie in a ring of fixed length; windows keep the sums of their passes, and grow coarser rather
than more. Where the ring or the windows end, so does what can be said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.census import Timeline
from relume.census.counts import NEVER
from relume.diagnose.attribution import PARTS, Moment, split, summed
from relume.diagnose.death import deaths_of
from relume.diagnose.listening import Chain, Heard, Listening, apart, is_producer
from relume.diagnose.means import var_mean
from relume.diagnose.normalization import NORMS, Norm
from relume.diagnose.producer import Unknown
from relume.diagnose.steps import Steps
from relume.diagnose.trace import COLUMNS, Trace
from relume.sites import Plan, Site

if TYPE_CHECKING:
    from relume.watch import Watch, Window

ROWS = 64
MEMORY_LIMIT = 64 * 2**20
WINDOWS_LIMIT = 512


class Record:
    """Follows a watch, for diagnosis: `record = Record.on(watch)` before the training, and ask it at any time.

    Args:
        model: the model.
        optimizers: those that train it, for their settings and steps.
        rows: passes of each site that are kept one by one, fewer where they would take more than a fourth of `limit`.
        limit: bytes that all of it may take, but for the state of two moments per unit and producer input.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer] = (),
        *,
        rows: int = ROWS,
        limit: int = MEMORY_LIMIT,
    ) -> None:
        self.model = model
        self.traces: dict[str, Trace] = {}
        self.steps = Steps(optimizers)
        self._rows, self._limit = rows, limit
        self._listening: Listening | None = None
        self._step = 0
        self._before: dict[tuple[str, int], Tensor] = {}
        self._seen: dict[str, tuple[Site, Tensor, Chain | None]] = {}
        # Producers that lead to a site; None until a pass has told, and after one that found a new site.
        self._needed: set[str] | None = None

    @classmethod
    def on(cls, watch: Watch, **options: int) -> Record:
        """A record that follows a watch from now on; unless told otherwise it keeps all passes of its last window."""
        options = {"rows": max(ROWS, -(-watch.window // watch.every) + 8)} | options
        record = cls(watch.model, watch.optimizers, **options)
        watch.observers.append(record)
        return record

    @property
    def nbytes(self) -> int:
        """Bytes of the rings and windows."""
        return sum(t.ring.nbytes + sum(row.nbytes for _, _, row in t.windows) for t in self.traces.values())

    # Called by the watch

    def begin(self, step: int) -> None:
        """An observed training pass begins."""
        self.end()
        self._step, self._seen = step, {}
        modules = [(_plain(name), module) for name, module in self.model.named_modules()]
        self.steps.begin((n, m) for n, m in modules if is_producer(m))
        if self._needed is not None:
            modules = [(n, m) for n, m in modules if n in self._needed or isinstance(m, NORMS)]
        self._listening = Listening(modules, self._before)
        self._listening.open()

    def see(self, site: Site, x: Tensor, plan: Plan) -> None:
        """A site of the pass is about to be applied to x."""
        if self._listening is None:
            return
        with apart():
            chain = self._listening.chain(x)
            view = x.detach() if plan.shape is None else x.detach().reshape(plan.shape)
            over = (*plan.inputs, *plan.others)
            variance, mean = var_mean(view, over)
            extremes = view.amax(over), view.amin(over)
            moments = torch.stack([t.reshape(-1).double() for t in (mean, variance.sqrt(), *extremes)])
            self._seen[site.name] = (site, moments, chain)

    def end(self) -> None:
        """The pass is over. Idempotent."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.close()
        known = len(self.traces)
        with apart():
            for site, moments, chain in self._seen.values():
                self._take(listening, site, moments, chain)
        self._seen = {}
        # A site that is new to a pass in which not all were heard: hear all in the next.
        self._needed = None if self._needed is not None and len(self.traces) > known else self._wanted()
        for calls in listening.calls.values():
            self._before |= {(h.name, h.call): h.mean_input for h in calls if isinstance(h, Heard)}

    def stepped(self, step: int) -> None:
        """The optimizer has made a step."""
        self.steps.stepped(step)

    def window(self, watch: Watch, window: Window) -> None:
        """A window has ended."""
        for name, trace in self.traces.items():
            self._bury(trace, watch.timeline(name))
            trace.end_window()
        if self.nbytes > self._limit or any(len(t.windows) > WINDOWS_LIMIT for t in self.traces.values()):
            for trace in self.traces.values():
                trace.thin()

    def _bury(self, trace: Trace, timeline: Timeline) -> None:
        """Write down how the units died that did so in this window, while the ring still tells of it."""
        known = torch.full((timeline.units,), NEVER)
        for unit, death in trace.deaths.items():
            known[unit] = death.died_at
        new = (timeline.dead & (timeline.died_at >= 0) & (timeline.died_at != known)).nonzero().flatten()
        if len(new):
            found = deaths_of(trace.series(), self.steps, trace.producers, timeline.died_at, new)
            trace.deaths |= dict(zip(new.tolist(), found, strict=True))

    # One pass

    def _take(self, listening: Listening, site: Site, moments: Tensor, chain: Chain | None) -> None:
        trace = self.traces.get(site.name)
        if trace is None or trace.site.units != site.units or trace.ring.device != moments.device:
            trace = self.traces[site.name] = Trace(site, self._ring(site, moments.device))
        trace.site = site
        found = _heard(listening, site, chain)
        mean = moments[0]
        nothing = torch.full_like(mean, math.nan)
        parts: Tensor = nothing.expand(len(PARTS), -1)
        levels = (nothing, nothing)
        now: Moment | None = None
        if isinstance(found, Unknown):
            trace.unknown, trace.producers = found.reason, ()
        else:
            heard, norm = found
            trace.unknown, trace.producers = "", tuple(h.name for h in heard)
            now = summed([Moment.of(h.bias, h.response, norm, mean) for h in heard])
            levels = (now.bias, now.response)
            crossed = [h.crossed for h in heard if h.crossed is not None]
            if trace.moment is not None and len(crossed) == len(heard):
                parts = split(trace.moment, now, torch.stack(crossed).sum(0)).stacked()
        trace.moment = now
        trace.add(self._step, torch.cat([moments, torch.stack(levels), parts]))

    def _wanted(self) -> set[str]:
        return {name for trace in self.traces.values() for name in (*trace.producers, *trace.site.producers)}

    def _ring(self, site: Site, device: torch.device) -> Tensor:
        units = sum(t.site.units for t in self.traces.values()) + site.units
        rows = max(4, min(self._rows, self._limit // 4 // (4 * len(COLUMNS) * max(units, 1))))
        return torch.full((rows, len(COLUMNS), site.units), math.nan, dtype=torch.float32, device=device)


def _heard(listening: Listening, site: Site, chain: Chain | None) -> tuple[list[Heard], Norm | None] | Unknown:
    """The calls whose sum, normalized, is a site's pre-activation."""
    if chain is not None:
        calls: list[Heard | Unknown] = [chain.heard]
        norm = chain.norm
    else:
        if not site.producers:
            return Unknown("unknown producer: the data flow names none")
        calls = []
        for name in site.producers:
            own = listening.calls.get(name, [])
            if len(own) != 1:
                many = f"it ran {len(own)} times in one pass" if own else "no Linear, convolution or embedding"
                return Unknown(f"unknown producer: '{name}' ({many})")
            calls += own
        norm = _norm_between(listening, site)
    heard = [h for h in calls if isinstance(h, Heard)]
    unknown = next((h for h in calls if isinstance(h, Unknown)), None)
    if unknown is not None:
        return unknown
    odd = next((h for h in heard if h.units != site.units), None)
    if odd is not None:
        return Unknown(f"unknown producer: '{odd.name}' gives {odd.units} units, the site has {site.units}")
    if isinstance(norm, Unknown):
        return norm
    if norm is not None and norm.gamma.shape != heard[0].bias.shape:
        return Unknown("unknown normalization: it is not over the site's units")
    return heard, norm


def _norm_between(listening: Listening, site: Site) -> Norm | Unknown | None:
    """The normalization that a site's description names, where the tensor itself did not lead to it."""
    named = [(name, norms) for label in site.between for name, norms in listening.norms.items() if _leaf(name) == label]
    if not named:
        return None
    parent = site.producers[0].rpartition(".")[0]
    near = [(name, norms) for name, norms in named if name.rpartition(".")[0] == parent] or named
    if len(near) != 1 or len(near[0][1]) != 1:
        return Unknown(f"unknown normalization: several could lie between '{site.producers[0]}' and '{site.name}'")
    return near[0][1][0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
