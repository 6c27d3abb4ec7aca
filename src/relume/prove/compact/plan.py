"""`plan_for`: which groups of slots go, which constants take their place, and why each other dead unit stays."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relume.prove.compact.slots import FIRST, FREE, Place
from relume.prove.compact.trace import Read, Trace

_BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Fold:
    """Constants that a bias takes over.

    Attributes:
        weight: the parameter that reads them.
        axis: of it, that is summed over.
        owner: the module whose bias it is, where that has none yet; else "".
        bias: the parameter's name.
        values: the constant by entry of the axis.
    """

    weight: str
    axis: int
    owner: str
    bias: str
    values: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        removed: entries that go, by parameter or buffer and axis.
        labels: float64, those of all slots that go.
        folds: constants, by weight and bias.
        units: that go, by site; those that lived but were read by nothing but dead ones included.
        kept: why each other dead unit stays.
    """

    removed: dict[Place, list[int]]
    labels: Tensor
    folds: list[Fold]
    units: dict[str, tuple[int, ...]]
    kept: dict[tuple[str, int], str]


def plan_for(model: nn.Module, trace: Trace, constants: dict[str, Tensor]) -> Plan:
    """Decide, from one pass.

    Args:
        model: with its own weights.
        trace: of a pass with these constants.
        constants: float64 [units] by site, NaN where a unit is not dead.
    """
    slots = trace.slots
    must_stay = slots.reasons()
    reads: dict[int, list[tuple[Read, int]]] = {}
    for read in trace.reads:
        for i, label in enumerate(read.labels.tolist()):
            if label >= FIRST:
                reads.setdefault(slots.group(int(label)), []).append((read, i))
    judged: dict[int, str] = {}
    kept: dict[tuple[str, int], str] = {}
    asked: dict[int, list[tuple[str, int]]] = {}
    for name, values in constants.items():
        marks = trace.sites.get(name)
        for unit in torch.nonzero(~values.isnan()).flatten().tolist():
            label = FREE if marks is None else float(marks.labels[unit])
            if marks is None or label < FIRST:
                kept[name, unit] = _why_unlabelled(marks is not None, label, marks.why_not if marks else "")
                continue
            group = slots.group(int(label))
            if group not in judged:
                judged[group] = must_stay.get(group) or _why_read(model, trace, reads.get(group, []))
            if judged[group]:
                kept[name, unit] = judged[group]
            else:
                asked.setdefault(group, []).append((name, unit))
    going = set(asked)
    for labels in slots.of.values():  # no axis is left empty
        groups = {slots.group(int(v)) for v in labels.tolist()}
        if groups and groups <= going:
            stays = slots.group(int(labels[0]))
            going.discard(stays)
            kept |= dict.fromkeys(asked[stays], "all units of its layer are dead, and one must be left")
    return _made(model, trace, constants, going, reads, kept)


def _why_unlabelled(reached: bool, label: float, why: str) -> str:
    if not reached:
        return "it runs in a fused kernel that can't be looked into, or not at all on the first batch"
    return why or ("it is the only unit of its layer" if label == FREE else "no layer with weights of its own makes it")


def _why_read(model: nn.Module, trace: Trace, reads: list[tuple[Read, int]]) -> str:
    """What in the operations that read a group stands in the way of its removal; "" for nothing."""
    values: dict[tuple[str, int], float] = {}
    for read, i in reads:
        value = float(read.known[i])
        if math.isnan(value):
            where = read.where or read.weight
            return f"what '{where}' reads of it is not constant: it is summed, multiplied or padded before"
        if values.setdefault((read.weight, i), value) != value:
            return f"'{read.where or read.weight}' is used several times and reads different constants"
        if value == 0:
            continue
        if not read.folds:
            return (
                f"its output is {value:g}, which no bias of '{read.where or read.weight}' can take over: {read.why_not}"
            )
        if read.bias is not None and len(trace.biases[read.bias]) > 1:
            return f"its output is {value:g}, and {read.bias} is the bias of several layers"
        if read.bias is None and _owner(model, read) is None:
            return f"its output is {value:g}, and '{read.where or read.weight}' adds no bias that could take it over"
    return ""


def _owner(model: nn.Module, read: Read) -> str | None:
    """The layer without a bias that can be given one."""
    name, _, leaf = read.weight.rpartition(".")
    module = model.get_submodule(name)
    kind = next((k for k in _BIASED if isinstance(module, k)), None)
    usual = kind is not None and type(module).forward is kind.forward and leaf == "weight"
    return name if usual and module._parameters.get("bias", 0) is None else None


def _made(
    model: nn.Module,
    trace: Trace,
    constants: dict[str, Tensor],
    going: set[int],
    reads: dict[int, list[tuple[Read, int]]],
    kept: dict[tuple[str, int], str],
) -> Plan:
    slots = trace.slots
    removed: dict[Place, list[int]] = {}
    labels: list[float] = []
    for place, along in slots.of.items():
        for i, label in enumerate(along.tolist()):
            if slots.group(int(label)) in going:
                removed.setdefault(place, []).append(i)
                labels.append(label)
    folds: dict[tuple[str, str], Fold] = {}
    for group in sorted(going):
        for read, i in reads.get(group, []):
            if float(read.known[i]) != 0:
                owner = "" if read.bias is not None else str(_owner(model, read))
                bias = read.bias if read.bias is not None else f"{owner}.bias".lstrip(".")
                fold = folds.setdefault((read.weight, bias), Fold(read.weight, read.axis, owner, bias))
                fold.values[i] = float(read.known[i])
                if owner and (read.weight, 0) in removed:  # the new bias is as long as the layer has rows left
                    removed[bias, 0] = removed[read.weight, 0]
    units: dict[str, tuple[int, ...]] = {}
    for name, marks in trace.sites.items():
        gone = [i for i, v in enumerate(marks.labels.tolist()) if v >= FIRST and slots.group(int(v)) in going]
        if gone:
            units[name] = tuple(gone)
    return Plan(removed, torch.tensor(labels, dtype=torch.float64), list(folds.values()), units, kept)
