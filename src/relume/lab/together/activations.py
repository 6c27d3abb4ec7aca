"""`Site`: one activation of all members, which may be another for each, and the census that is taken there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from relume.activations import Activation, activation_of
from relume.census import Counts, SiteCensus, Timeline
from relume.census.counts import ARRAYS
from relume.lab.member import MIN_INPUTS, Member
from relume.lab.tasks.networks import Choice
from relume.lab.together.layers import CantStackError, Layer, apart, side_by_side
from relume.lab.together.parameters import Parameters
from relume.sites import Plan, Zones
from relume.sites import Site as Described
from relume.watch.meters import Meter, collect


@dataclass
class _Group:
    """Neighbouring members that apply the same activation; `span` is where they stand.

    Attributes:
        module: applies it to all of them: any member's own where it has no state, else one with all their channels.
        state: numbers of its parameters, by name.
        entry: what relume knows of it; None where it knows nothing, and counts nothing.
    """

    span: slice
    module: nn.Module
    entry: Activation | None
    state: dict[str, int] = field(default_factory=dict)
    wide: bool = False
    meter: Meter | None = None
    timeline: Timeline | None = None
    latest: SiteCensus | None = None

    @property
    def members(self) -> int:
        return self.span.stop - self.span.start  # type: ignore[no-any-return]


class Site(Layer):
    """One site of all members.

    Args:
        name: of the site.
        layers: the members' activation modules, equal ones next to each other.
        members: theirs.
        units: of the site.
        dims: axes of one member's pre-activation.
        parameters: that take theirs.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[nn.Module],
        members: Sequence[Member],
        units: int,
        dims: int,
        parameters: Parameters,
    ) -> None:
        super().__init__(layers, parameters)
        self.name, self.units = name, units
        self.observing: int | None = None  # the step whose passes are counted
        self.groups: list[_Group] = []
        start = 0
        for stop in range(1, len(members) + 1):
            if stop == len(members) or members[stop].activation != members[start].activation:
                self.groups.append(self._group(slice(start, stop), members[start].activation, dims))
                start = stop

    def _group(self, span: slice, activation: str, dims: int) -> _Group:
        own = self.layers[span]
        if isinstance(own[0], nn.RReLU):
            raise CantStackError(f"'{self.name}' draws its slopes at random, and would draw others")
        entry = activation_of(own[0])
        stateful = [*own[0].named_parameters(), *own[0].named_buffers()]
        if not stateful:
            return _Group(span, own[0], entry)
        if any(t.shape != (self.units,) for _, t in stateful):
            raise CantStackError(f"'{self.name}', {own[0]}, has state that is not one number per unit")
        wide = Choice(activation).act(len(own) * self.units, dims=dims)
        for name, buffer in wide.named_buffers():
            buffer.copy_(torch.cat([module.get_buffer(name) for module in own]))
        state = {
            name: self.parameters.add(torch.stack([module.get_parameter(name) for module in own]), span)
            for name, _ in wide.named_parameters()
        }
        return _Group(span, wide, entry, state, wide=True)

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        if len(self.groups) == 1:
            return self._apply(self.groups[0], x, training, alone=True)
        return torch.cat([self._apply(g, x[g.span], training, alone=False) for g in self.groups])

    def _apply(self, group: _Group, x: Tensor, training: bool, alone: bool) -> Tensor:
        told: Callable[[Tensor], None] | None = None
        if self.observing is not None and group.entry is not None:
            told = self._observe(group, group.entry, x)
        if group.wide:
            group.module.train(training)
            state = {name: self.parameters[number].flatten() for name, number in group.state.items()}
            y = apart(functional_call(group.module, state, (side_by_side(x),)), group.members)
        elif alone and type(group.module) is nn.ReLU and not x._is_view():
            y = x.relu_()
        else:
            y = group.module(x)
        if told is not None:
            told(side_by_side(y))
        return y

    def _observe(self, group: _Group, entry: Activation, x: Tensor) -> Callable[[Tensor], None]:
        wide = side_by_side(x.detach()).contiguous()
        if group.meter is None:
            group.meter = Meter(wide.shape[1], wide.device)
        others = tuple(range(2, wide.dim()))
        samples = wide.numel() // wide.shape[1]
        plan = Plan(None, (0,), (1,), others, wide.shape[0], wide.shape[1], samples, 1, True, True)
        return group.meter.observe(wide, plan, entry, self.observing or 0)

    # Census

    def end_window(self) -> Tensor:
        """Read what was counted in training; how many units of each member are dead: int64 [members]."""
        dead = torch.zeros(len(self.layers), dtype=torch.int64)
        for group in self.groups:
            census = self._taken(group, MIN_INPUTS)
            if census is not None:
                group.latest = census
                group.timeline = group.timeline or Timeline(self.name, census.units)
                group.timeline.fold(census)
            if group.latest is not None:
                dead[group.span] = group.latest.dead.view(group.members, -1).sum(1)
        return dead

    def at_end(self, min_inputs: int) -> list[tuple[SiteCensus, Timeline]]:
        """The census of what was counted since the last window, and the timeline of training, of each member; an
        empty list where the activation is none that relume knows for some of them."""
        found: list[tuple[SiteCensus, Timeline]] = []
        for group in self.groups:
            census = self._taken(group, min_inputs)
            if census is None or group.timeline is None:
                return []
            found += [_part(census, group.timeline, self.units, i) for i in range(group.members)]
        return found

    def _taken(self, group: _Group, min_inputs: int) -> SiteCensus | None:
        if group.meter is None or group.entry is None or not group.meter.samples:
            return None
        (counts,) = collect([group.meter])
        entry = group.entry
        site = Described(
            self.name, self.name, self.name, entry.name, entry.formula, counts.units, 1, zones=Zones.of(entry)
        )
        return SiteCensus(site, counts, min_inputs)

    def give_back(self) -> None:
        """Write the members' state into their own modules."""
        with torch.no_grad():
            for group in self.groups:
                own = self.layers[group.span]
                for name, number in group.state.items():
                    for module, value in zip(own, self.parameters[number], strict=True):
                        module.get_parameter(name).copy_(value)
                for name, buffer in group.module.named_buffers() if group.wide else ():
                    for module, value in zip(own, buffer.view(len(own), -1), strict=True):
                        module.get_buffer(name).copy_(value)


def _part(census: SiteCensus, timeline: Timeline, units: int, member: int) -> tuple[SiteCensus, Timeline]:
    """One member's share of what was counted for several, side by side."""
    mine = slice(member * units, (member + 1) * units)
    c = census.counts
    counts = Counts(c.inputs, c.samples, **{name: c.kept(name)[mine] for name in ARRAYS})
    own = Timeline(timeline.name, units)
    for name in ("born_dead", "dead", "died_at", "revived_at", "last_fired", "deaths"):
        setattr(own, name, getattr(timeline, name)[mine])
    return SiteCensus(dataclasses.replace(census.site, units=units), counts, census.min_inputs), own
