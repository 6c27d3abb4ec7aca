"""What a tape holds: calls of torch, forward passes and optimizer steps, with references in place of live tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from relume.diagnose.replay.held import Held
from relume.diagnose.replay.surroundings import Ambient, RandomState


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that a replay computes itself; the first ones are parameters and buffers."""

    index: int


@dataclass(slots=True)
class Event:
    """One thing that the training did, to be done again.

    Attributes:
        func: the torch function.
        args, kwargs: with `Slot` and `Held` in place of tensors.
        outs: slots of the tensors in the result, in the order of `tensors_of`; -1 for none.
        reads: slots among the arguments.
        ambient: gradient mode and autocast.
        random: random state before it, where it draws.
        effect: it matters though nobody reads its result.
    """

    func: Any
    args: Any
    kwargs: Any
    reads: tuple[int, ...]
    ambient: Ambient
    outs: tuple[int, ...] = ()
    random: RandomState | None = None
    effect: bool = False


@dataclass(slots=True)
class Import(Event):
    """A tensor from elsewhere that the training then writes to, or takes gradients of: `args` is its value then."""


@dataclass(slots=True)
class Forward(Event):
    """A call of the model.

    `modes` is the training flag of each module; `training`, whether it was a training pass; `inside`, slots of tensors
    that it made and did not return, by their places as `Inside` numbers them.
    """

    modes: tuple[bool, ...] = ()
    training: bool = False
    inside: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Step(Event):
    """A step of an optimizer.

    `optimizer` is its number, `settings` of each parameter group what it says but for "params"; `counts`, whether it
    is one of the steps that the watch counts.
    """

    optimizer: int = 0
    settings: Sequence[dict[str, Any]] = ()
    counts: bool = True


def needed(events: Sequence[Event], alive: Iterable[int]) -> list[Event]:
    """Events without those whose results nobody reads: neither another event nor one of the slots `alive`."""
    wanted = set(alive)
    kept = []
    for event in reversed(events):
        if event.effect or any(out in wanted for out in event.outs):
            wanted.update(event.reads)
            kept.append(event)
    return kept[::-1]


def bytes_of(event: Event) -> int:
    """Of an event itself, without the tensors that it holds."""
    own = 500 + 100 * len(event.reads)
    return own + (0 if event.random is None else RandomState.nbytes)


def held_in(value: Any) -> Iterable[Held]:
    """Tensors held by the arguments of an event."""
    if isinstance(value, Held):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from held_in(item)
    elif isinstance(value, dict):
        yield from held_in(list(value.values()))
    elif isinstance(value, slice):
        yield from held_in((value.start, value.stop, value.step))
