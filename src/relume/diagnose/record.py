"""`Record`: what is kept over a run so that the death of a unit can be traced to what moved it.

Per site, unit and observed pass: mean, spread and maximum of the pre-activation, and the parts of the change since the
pass before. Recent passes lie in a ring of fixed length; windows keep the sums of their passes, and grow coarser rather
than more. Where the ring or the windows end, so does what can be said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.census import Timeline
from relume.census.counts import NEVER
from relume.diagnose.around import StepSeries
from relume.diagnose.below import Flow
from relume.diagnose.course import course_of, with_course
from relume.diagnose.death import deaths_of
from relume.diagnose.listening import Chain, Heard, Listening, Memory, apart, is_producer
from relume.diagnose.means import var_mean
from relume.diagnose.normalization import NORMS, Norm
from relume.diagnose.producer import Unknown
from relume.diagnose.steps import Steps
from relume.diagnose.trace import RAW_BYTES, ROW_BYTES, Trace
from relume.sites import Plan, Site
from relume.watch.meters import Moments

if TYPE_CHECKING:
    from relume.diagnose.finding import Finding
    from relume.watch import Watch, Window

ROWS = 64
# Passes that are written before they become rows.
AT_ONCE = 32
MEMORY_LIMIT = 64 * 2**20
WINDOWS_LIMIT = 512
# Of the limit: for rings, for what passes write. The rest is for windows.
_RINGS, _RAW = 1 / 4, 1 / 4
# Rows that a ring must have to be worth its bytes.
_FEWEST = 4


class Record:
    """Follows a watch, for diagnosis: `relume.watch` makes one, as `watch.record`. It can be asked at any time.

    Memory is bounded by the number of units: as they grow, fewer passes are kept one by one; then only windows, which
    grow coarser; and where even those would take more than `limit` nothing is recorded, which a note says.

    Args:
        model: the model.
        optimizers: those that train it, for their settings and steps.
        rows: passes of each site that are kept one by one, fewer where they would take more than a fourth of `limit`.
        limit: bytes that all of it may take, but for mean inputs, two numbers for each input of a producer.
        failed: called with an error of relume's own; None: it is raised.
        note: called with what a reader should know.

    Attributes:
        traces: by site.
        steps: of the optimizers.
        off: why nothing is recorded any more, or "".
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer] = (),
        *,
        rows: int = ROWS,
        limit: int = MEMORY_LIMIT,
        failed: Callable[[Exception], None] | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model = model
        self.traces: dict[str, Trace] = {}
        self.steps = Steps(optimizers)
        self.confirmed: dict[tuple[str, str], Finding] = {}  # by code and site before a replay, what it said
        self.off = ""
        self._rows, self._limit = rows, limit
        self._tell, self._note = failed, note
        self._listening: Listening | None = None
        self._step = 0
        self._number = 0  # of the observed pass
        self._memories: dict[tuple[str, int], Memory] = {}
        self._seen: dict[str, tuple[Site, Moments, Chain | None]] = {}
        self._given: tuple[str, Moments] | None = None  # to a meter
        # All producers; and the modules that lead to a site, None until a pass has told, and after a surprise.
        self._producers: list[tuple[str, nn.Module]] = []
        self._needed: list[tuple[str, nn.Module]] | None = None
        self._norms: set[str] = set()  # names of those that tensors led through

    @classmethod
    def on(cls, watch: Watch, **options: int) -> Record:
        """A record that follows a watch from now on, in place of the one that it has, if it has one.

        Unless told otherwise it keeps all passes of the last window. Where several processes train, what moved a unit
        is of this one's inputs; when the unit died is of all, as the watch has it.
        """
        options = {"rows": max(ROWS, -(-watch.window // watch.every) + 8)} | options
        record = cls(watch.model, watch.optimizers, failed=watch.trouble, note=watch.note, **options)
        if watch.record is not None and watch.record in watch.observers:
            watch.observers.remove(watch.record)
        watch.record = record
        watch.observers.append(record)
        return record

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, and of what becomes rows."""
        return sum(trace.nbytes for trace in self.traces.values())

    # Called by the watch

    def begin(self, step: int) -> None:
        """An observed training pass begins."""
        self.end()
        if self.off:
            return
        self._step, self._seen = step, {}
        self._number += 1
        modules = self._needed
        if modules is None:
            all_modules = [(_plain(name), module) for name, module in self.model.named_modules()]
            self._producers = [(name, module) for name, module in all_modules if is_producer(module)]
            modules = self._producers + [(name, module) for name, module in all_modules if isinstance(module, NORMS)]
        self.steps.begin(step, self._producers)
        self._listening = Listening(modules, self._number, self._memories, self._failed)
        self._listening.open()

    def moments(self, site: Site, x: Tensor) -> Moments | None:
        """Where a meter may write mean, spread and extremes of the pass, which `see` then need not read."""
        trace = self.traces.get(site.name)
        if self._listening is None or trace is None or not _of(trace, site, x.device) or not x.is_cpu:
            return None
        moments = trace.place.moments
        moments.written = False
        self._given = site.name, moments
        return moments

    def see(self, site: Site, x: Tensor, plan: Plan) -> None:
        """A site of the pass is about to be applied to x."""
        if self._listening is None:
            return
        given, self._given = self._given, None
        if site.name not in self.traces and not self._room_for(site):
            return
        if given is not None and given[0] == site.name and given[1].written:
            moments = given[1]
        else:
            moments = Moments(measured(x, plan))
        self._seen[site.name] = (site, moments, self._listening.chain(x))

    def end(self) -> None:
        """The pass is over. Idempotent."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.close()
        if self.off:  # it failed in this pass
            return
        surprise = any(name not in self.traces for name in self._seen)
        if surprise:
            for trace in self.traces.values():
                trace.shrink(*self._sizes())
        with apart():
            for site, moments, chain in self._seen.values():
                surprise |= self._take(listening, site, moments, chain)
        self._seen = {}
        if self._needed is None:
            # A site that is new to a pass in which not all were heard: hear all in the next.
            self._needed = self._leading(listening)
        elif surprise:
            self._needed = None

    def stepped(self, step: int) -> None:
        """The optimizer has made a step."""
        if not self.off:
            self.steps.stepped(step)

    def window(self, watch: Watch, window: Window) -> None:
        """A window has ended."""
        known: StepSeries = {}
        flow = functools.cache(self._flow)  # the same for all sites in which units died
        with apart():
            for name, trace in self.traces.items():
                if name in watch.timelines:
                    self._bury(trace, watch.timelines[name], known, flow)
                trace.end_window()
        while self.nbytes > self._limit or any(t.kept_windows > WINDOWS_LIMIT for t in self.traces.values()):
            if all(t.kept_windows <= 2 for t in self.traces.values()):
                break
            for trace in self.traces.values():
                trace.thin()

    def stop(self, why: str) -> None:
        """Record nothing any more; what there is stays."""
        self.off = why
        self._memories, self._seen, self._needed, self._producers = {}, {}, None, []
        if self._listening is not None:
            self._listening.close()

    # Trouble

    def _failed(self, error: Exception) -> None:
        self.stop(f"it failed ({type(error).__name__}: {error})")
        if self._tell is None:
            raise error
        self._tell(error)

    def _bury(self, trace: Trace, timeline: Timeline, known: StepSeries, flow: Callable[[], Flow]) -> None:
        """Write down how the units died that did so in this window, while the ring still tells of it."""
        if not timeline.dead.any():
            return
        if trace.buried is None:
            trace.buried = torch.full((timeline.units,), NEVER, dtype=timeline.died_at.dtype)
        new = (timeline.dead & (timeline.died_at >= 0) & (timeline.died_at != trace.buried)).nonzero().flatten()
        if len(new):
            series = trace.series()
            below = flow().producers_below(trace.site.name)
            found = deaths_of(series, self.steps, trace.producers, timeline.died_at, new, below, known)
            trace.deaths |= dict(zip(new.tolist(), found, strict=True))
            trace.courses = with_course(trace.courses, course_of(series, found, new))
            trace.buried[new] = timeline.died_at[new]

    def _flow(self) -> Flow:
        return Flow(
            [t.site for t in self.traces.values()],
            {name: t.producers for name, t in self.traces.items()},
            [name for name, _ in self._producers],
        )

    # One pass

    def _take(self, listening: Listening, site: Site, moments: Moments, chain: Chain | None) -> bool:
        """Returns whether it came otherwise than the passes before."""
        trace = self.traces.get(site.name)
        if trace is None or not _of(trace, site, moments.row.device):
            trace = self.traces[site.name] = Trace.begun(site, moments.row.device, *self._sizes())
        trace.site = site
        place = trace.place
        if moments is not place.moments:
            place.moments.row.copy_(moments.row)
        was = trace.unknown, trace.producers
        connected = False
        found = _heard(listening, site, chain)
        if isinstance(found, Unknown):
            trace.unknown, trace.producers = found.reason, ()
            trace.tell_nothing(place)
        else:
            heard, norm = found
            trace.unknown, trace.producers = "", tuple(h.name for h in heard)
            biases = [h.bias for h in heard if h.bias is not None]
            bias = biases[0] if len(biases) == 1 else torch.stack(biases).sum(0) if biases else None
            responses = heard[0].responses if len(heard) == 1 else torch.stack([h.responses for h in heard]).sum(0)
            connected = all(h.before == trace.number >= 0 for h in heard)
            trace.tell(place, bias, responses, norm)
            if chain is not None and chain.norm is not None:
                self._norms.add(chain.norm_name)
        trace.number = self._number
        trace.add(self._step, connected=connected)
        return trace.passes > 1 and was != (trace.unknown, trace.producers)

    def _leading(self, listening: Listening) -> list[tuple[str, nn.Module]]:
        """The modules heard in this pass that lead to a site."""
        wanted = {name for trace in self.traces.values() for name in (*trace.producers, *trace.site.producers)}
        between = {label for trace in self.traces.values() for label in trace.site.between}
        return [
            (name, module)
            for name, module in listening.modules
            if name in wanted or name in self._norms or (isinstance(module, NORMS) and _leaf(name) in between)
        ]

    # Memory

    def _sizes(self, more: int = 0) -> tuple[int, int]:
        """Rows of a ring, and passes that are written at once, that the units leave room for; 0 passes: none."""
        units = more + sum(trace.site.units for trace in self.traces.values())
        units = max(1, units + sum(site.units for n, (site, _, _) in self._seen.items() if n not in self.traces))
        rows = int(self._limit * _RINGS) // (ROW_BYTES * units)
        at_once = int(self._limit * _RAW) // (RAW_BYTES * units) - 1
        return (min(self._rows, rows) if rows >= _FEWEST else 0), max(0, min(AT_ONCE, at_once))

    def _room_for(self, site: Site) -> bool:
        """Is there room for one more? If not it stops."""
        if self._sizes(site.units)[1]:
            return True
        limit = f"{self._limit / 2**20:,.0f} MiB"
        self.stop(f"to record so many units takes more than {limit}")
        self.traces.clear()
        self._note(
            f"deaths are counted, but not what caused them: to record so many units takes more than {limit}; watch "
            "fewer sites (include=), or give more: relume.diagnose.record.Record.on(watch, limit=BYTES)"
        )
        return False


def measured(x: Tensor, plan: Plan) -> Tensor:
    """Mean, standard deviation, maximum and minimum of each unit, float64 [4, units]."""
    with apart():
        view = x.detach() if plan.shape is None else x.detach().reshape(plan.shape)
        over = (*plan.inputs, *plan.others)
        variance, mean = var_mean(view, over)
        extremes = view.amax(over), view.amin(over)
        return torch.stack([t.reshape(-1).double() for t in (mean, variance.sqrt(), *extremes)])


def _of(trace: Trace, site: Site, device: torch.device) -> bool:
    return trace.site.units == site.units and trace.ring.device == device and trace.raw is not None


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
    if norm is not None and norm.gamma.shape != (heard[0].units,):
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
