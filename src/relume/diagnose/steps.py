"""What the optimizer did in recent steps: its settings, and per producer the gradient's norm and the step's size.

Kept in a ring of fixed length. A step's size is taken from a sample of each weight, at most 1,024 numbers of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relume.diagnose.listening import apart

SAMPLE, RUN = 1024, 32
T = TypeVar("T")
_SETTINGS = ("lr", "momentum", "betas", "weight_decay", "decoupled_weight_decay", "initial_lr")
ROWS = 512


@dataclass(frozen=True)
class Settings:
    """Of the parameter group that a producer's weight is in, at one step. NaN: the optimizer has no such setting.

    Attributes:
        optimizer: its class.
        lr, momentum, weight_decay, beta2: as the group says; for Adam, `momentum` is β₁.
        decays_bias: the bias is in a group with weight decay as well.
        decoupled: weight decay acts on the weights (AdamW) rather than on the gradient.
        scheduled: a scheduler has set the learning rate at some time.
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    beta2: float
    decays_bias: bool
    decoupled: bool
    scheduled: bool


class _Norms:
    """Norms of samples in one step, float32 [3, producers]: of the weight before it, the gradient, the change."""

    def __init__(self, names: Sequence[str], norms: Tensor, scale: Sequence[float]) -> None:
        self._names, self._norms, self._scale = names, norms, scale
        self._numbers: dict[str, dict[str, float]] | None = None

    def read(self, what: str) -> dict[str, float]:
        """As those of the whole, by producer; brought from the device when first asked for."""
        if self._numbers is None:
            weight, gradient, change = self._norms.tolist()
            scaled = [[v * s for v, s in zip(values, self._scale, strict=True)] for values in (gradient, weight)]
            ratio = [c / max(w, 1e-30) for c, w in zip(change, weight, strict=True)]
            rows = zip(("gradient", "weight", "update"), (*scaled, ratio), strict=True)
            self._numbers = {name: dict(zip(self._names, values, strict=True)) for name, values in rows}
        return self._numbers[what]


class Norms(Mapping[str, float]):
    """One number for each of some producers, which is computed when it is asked for."""

    __slots__ = ("_names", "_of", "_what")

    def __init__(self, names: Sequence[str], of: _Norms, what: str) -> None:
        self._names, self._of, self._what = names, of, what

    def __getitem__(self, name: str) -> float:
        if name not in self._names:
            raise KeyError(name)
        return self._of.read(self._what)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class StepRow:
    """One observed optimizer step; numbers are those of a sample of each weight, as those of the whole.

    Attributes:
        step: the number of optimizer steps before it.
        settings: by producer; missing where no optimizer that was given holds its weight.
        gradient: norm of the weight's gradient; missing where there is none, or it is sparse.
        weight: norm of the weight before the step.
        update: norm of what the step changed, divided by the norm of the weight.
    """

    step: int
    settings: Mapping[str, Settings]
    gradient: Mapping[str, float]
    weight: Mapping[str, float]
    update: Mapping[str, float]


class _Samples:
    """Samples of the weights on one device: before a step, of the gradient, and after it.

    Args:
        producers: by name.
        weights: theirs.

    Attributes:
        table: float32 [3, producers, sample]; after a step its last row holds what has changed.
    """

    def __init__(self, producers: Sequence[tuple[str, nn.Module]], weights: Sequence[Tensor]) -> None:
        self.names = [name for name, _ in producers]
        self.modules = tuple(module for _, module in producers)
        self.weights = tuple(weights)
        self._views = [sampled(w) for w in weights]
        self._addresses = [w.data_ptr() for w in weights]
        sizes = [view.shape for view in self._views]
        device = weights[0].device
        self.table = torch.zeros(3, len(weights), max(size.numel() for size in sizes), device=device)
        self.before, self.gradient, self.after = (
            [self.table[i, j, : size.numel()].view(size) for j, size in enumerate(sizes)] for i in range(3)
        )
        scale = [math.sqrt(w.numel() / size.numel()) for w, size in zip(weights, sizes, strict=True)]
        self._scale = scale

    def hold(self) -> bool:
        """Are these still the weights of their modules, where they were?"""
        return self._there() == [True] * len(self.weights)

    def _there(self) -> list[bool]:
        return [
            module._parameters.get("weight") is w and w.data_ptr() == address
            for module, w, address in zip(self.modules, self.weights, self._addresses, strict=True)
        ]

    def begin(self) -> None:
        """Before the step."""
        torch._foreach_copy_(self.before, self._views)

    def stepped(self) -> tuple[Norms, Norms, Norms]:
        """After it: norms of the gradient and of the weight before, and the size of the step."""
        # A weight that is elsewhere now, or another, tells nothing of the step.
        there = self._there()
        grads = [w.grad if ok else None for w, ok in zip(self.weights, there, strict=True)]
        dense = [i for i, g in enumerate(grads) if type(g) is Tensor and g.layout is torch.strided]
        if dense:
            torch._foreach_copy_(_some(self.gradient, dense), [sampled(grads[i]) for i in dense])  # type: ignore[arg-type]
        kept = [i for i, ok in enumerate(there) if ok]
        if kept:
            torch._foreach_copy_(_some(self.after, kept), _some(self._views, kept))
        self.table[2].sub_(self.table[0])
        norms = _Norms(self.names, torch.linalg.vector_norm(self.table, dim=2), self._scale)
        return (
            Norms(_some(self.names, dense), norms, "gradient"),
            Norms(self.names, norms, "weight"),
            Norms(_some(self.names, kept), norms, "update"),
        )


def _some(values: list[T], chosen: Sequence[int]) -> list[T]:
    return values if len(chosen) == len(values) else [values[i] for i in chosen]


class Steps:
    """Recent steps of the producers of a model.

    Args:
        optimizers: those that train it; without one, steps are not seen.
        rows: how many steps are kept.
    """

    def __init__(self, optimizers: Sequence[Optimizer], rows: int = ROWS) -> None:
        self._optimizers = tuple(optimizers)
        self.rows: deque[StepRow] = deque(maxlen=rows)
        self._samples: dict[torch.device, _Samples] = {}
        self._producers: Any = None  # that they are of
        self._begun = -1  # step whose weights have been sampled
        self._settings: tuple[Any, dict[str, Settings]] = (None, {})  # what they are of, and they
        self._read: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        self._read_of: Any = None

    def trained_by(self, optimizers: Sequence[Optimizer]) -> None:
        """From now on, where it was not known at the beginning."""
        self._optimizers = tuple(optimizers)

    def begin(self, step: int, producers: Sequence[tuple[str, nn.Module]]) -> None:
        """Keep a sample of each weight as it is before the step; of several passes of one step, in the first."""
        if step == self._begun or not self._optimizers:
            return
        if producers is not self._producers or not all(samples.hold() for samples in self._samples.values()):
            self._sample(producers)
        with apart():
            for samples in self._samples.values():
                samples.begin()
        self._begun = step

    def _sample(self, producers: Sequence[tuple[str, nn.Module]]) -> None:
        """Find the weights that can be sampled."""
        by_device: dict[torch.device, tuple[list[tuple[str, nn.Module]], list[Tensor]]] = {}
        for name, module in producers:
            weight = module._parameters.get("weight")
            if weight is not None and _samplable(weight):
                named, weights = by_device.setdefault(weight.device, ([], []))
                named.append((name, module))
                weights.append(weight)
        with apart():
            self._samples = {device: _Samples(*found) for device, found in by_device.items()}
        self._producers = producers

    def stepped(self, step: int) -> None:
        """Look at the step that has just been made; without a `begin` there is nothing to see."""
        if step != self._begun or not self._optimizers:  # without one, a step is a pass: nothing has been changed yet
            return
        self._begun = -1
        with apart():
            norms = [samples.stepped() for samples in self._samples.values()]
        numbers = [_together(of_devices) for of_devices in zip(*norms, strict=True)] or [{}, {}, {}]
        self.rows.append(StepRow(step, self._settings_now(), *numbers))

    def _settings_now(self) -> dict[str, Settings]:
        """Of all producers; the same object as long as no setting is another."""
        now: list[Any] = [list(map(id, self._samples.values()))]
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                values = [v if not isinstance(v, Tensor) else _number(v) for v in map(group.get, _SETTINGS)]
                now.append([len(group["params"]), id(group["params"]), *values])
        before, settings = self._settings
        if before != now:
            groups = self._groups()
            named = [pair for s in self._samples.values() for pair in zip(s.names, s.modules, strict=True)]
            found = {name: settings_of(module, groups) for name, module in named}
            settings = {name: own for name, own in found.items() if own is not None}
            self._settings = now, settings
        return settings

    def _groups(self) -> dict[int, tuple[Optimizer, dict[str, Any]]]:
        return {id(p): (o, group) for o in self._optimizers for group in o.param_groups for p in group["params"]}

    def numbers(self, producer: str, what: str) -> tuple[list[int], list[float]]:
        """Steps, and at each the gradient, weight or update of a producer; NaN where there was none."""
        now = len(self.rows), self.rows[-1] if self.rows else None
        if self._read_of != now:
            self._read, self._read_of = {}, now
        found = self._read.get((producer, what))
        if found is None:
            chosen = [(row.step, getattr(row, what).get(producer)) for row in self.rows]
            numbers = [math.nan if v is None else float(v) for _, v in chosen]
            found = self._read[producer, what] = [s for s, _ in chosen], numbers
        return found[0], found[1]

    def settings(self, producer: str, step: int | None = None) -> Settings | None:
        """Of a producer at the last observed step not after `step`; None where no optimizer is known to hold it."""
        found = None
        for row in self.rows:
            if step is not None and row.step > step and found is not None:
                break
            found = row.settings.get(producer, found)
        return found


def settings_of(module: nn.Module, groups: Mapping[int, tuple[Optimizer, dict[str, Any]]]) -> Settings | None:
    """Settings of the group that holds the module's weight, out of groups by `id` of the parameter."""
    held = groups.get(id(getattr(module, "weight", None)))
    if held is None:
        return None
    optimizer, group = held
    bias = getattr(module, "bias", None)
    _, of_bias = groups.get(id(bias), (None, {})) if bias is not None else (None, {})
    betas = group.get("betas", (math.nan, math.nan))
    return Settings(
        optimizer=type(optimizer).__name__,
        lr=_number(group.get("lr")),
        momentum=_number(group.get("momentum", betas[0])),
        weight_decay=_number(group.get("weight_decay", 0.0)),
        beta2=_number(betas[1]),
        decays_bias=bool(of_bias.get("weight_decay", 0.0)),
        decoupled=bool(group.get("decoupled_weight_decay", type(optimizer).__name__ == "AdamW")),
        scheduled="initial_lr" in group,
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _samplable(weight: Tensor) -> bool:
    """Does it hold numbers here, and one by one?"""
    plain = type(weight) in (nn.Parameter, Tensor) and not is_lazy(weight) and not weight.is_meta
    dense = plain and weight.layout is torch.strided and weight.is_floating_point()
    return dense and weight.untyped_storage().size() > 0


def sampled(weight: Tensor) -> Tensor:
    """A view of at most `SAMPLE` numbers, in runs that lie evenly spread: rows and columns share in them."""
    if weight.numel() <= SAMPLE or not weight.is_contiguous():
        flat = weight.reshape(-1)
        return flat if flat.numel() <= SAMPLE else flat[:: -(-flat.numel() // SAMPLE)][:SAMPLE]
    runs = SAMPLE // RUN
    apart = (weight.numel() - RUN) // (runs - 1)
    apart -= 1 - apart % 2  # odd, so that runs do not all begin in the same columns
    return weight.as_strided((runs, RUN), (apart, 1))


def _together(found: Sequence[Norms]) -> Mapping[str, float]:
    return found[0] if len(found) == 1 else {name: value for norms in found for name, value in norms.items()}
