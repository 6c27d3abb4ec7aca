"""`propagate`: bounds of every value of a graph, step by step from the box; with `crown`, backward linear bounds
tighten what each bend is given, before it is bounded."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relume.errors import RelumeError, UnsupportedOperationError
from relume.prove.certify.bound import Bound
from relume.prove.certify.linear import tighten
from relume.prove.certify.rules import BENDS, RULES, Call, norms
from relume.prove.certify.trace import Graph, Step

Method = Literal["ibp", "crown"]


def propagate(graph: Graph, lower: Tensor, upper: Tensor, method: Method) -> list[Bound | None]:
    """Bounds of the sites' pre-activations, at their values' numbers; of others they may be let go.

    Args:
        graph: of one input.
        lower, upper: the box, float64, of the input's shape.
        method: of bounding.

    Raises:
        UnsupportedOperationError: an operation has no rule; says which and where.
        RelumeError: what the model computed in the traced pass is not within the bounds, a fault of relume.
    """
    bounds: list[Bound | None] = [None] * len(graph.examples)
    box = bounds[0] = Bound(lower, upper, index=0)
    _hold(box, graph.examples[0], "the box", "")
    wanted = {u.value for u in graph.uses if u.value is not None}
    steps = _needed(graph, wanted)
    last = {i: n for n, step in enumerate(steps) for i in step.reads}
    producers: dict[int, Step] = {}
    tight: set[int] = {0}

    def tightened(index: int) -> None:
        if index not in tight:
            tight.add(index)
            tighten(bounds, index)

    for n, step in enumerate(steps):
        if _of_indices(step, bounds, graph):
            continue
        rule = RULES.get(step.name)
        if rule is None:
            raise UnsupportedOperationError(_unknown(step))
        if method == "crown" and step.name in BENDS:
            for i in step.reads[:1] if step.name == "site" else step.reads:
                tightened(i)
        try:
            found = rule(call := Call(step, bounds, graph.examples, lines=method == "crown"))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UnsupportedOperationError(f"{_unknown(step)} Bounding it raised: {error}") from error
        for index, bound in zip(step.outputs, found if isinstance(found, list) else [found], strict=True):
            if index is None or bound is None:
                continue
            bound.index = index
            known = norms.rms_written_out(step, producers, bounds, call.dtype)
            if known is not None:
                bound.meet(*known)
            _hold(bound, graph.examples[index], step.name, step.where)
            bounds[index], producers[index] = bound, step
        if method == "ibp":
            for i in step.reads:
                if last[i] == n and i not in wanted:
                    bounds[i] = None
    if method == "crown":
        for i in sorted(wanted):
            if bounds[i] is not None:
                tightened(i)
    return bounds


def _needed(graph: Graph, wanted: set[int]) -> list[Step]:
    """The steps that lead to a site: what comes after the last one is no matter."""
    values, steps = set(wanted), []
    for step in reversed(graph.steps):
        if values.intersection(i for i in step.outputs if i is not None):
            values.update(step.reads)
            steps.append(step)
    return steps[::-1]


def _of_indices(step: Step, bounds: list[Bound | None], graph: Graph) -> bool:
    """Does it only pass on whole numbers that have no bounds, such as where a maximum lies?"""
    return all(bounds[i] is None for i in step.reads) and not any(
        i is not None and graph.examples[i].is_floating_point() for i in step.outputs
    )


def _hold(bound: Bound, example: Tensor, name: str, where: str) -> None:
    """The traced pass is a sample: it must lie within."""
    value = example.double()
    bound.lower, bound.upper = bound.lower.expand(example.shape), bound.upper.expand(example.shape)
    within = (bound.lower <= value) & (value <= bound.upper)
    unbounded = torch.isinf(bound.lower) & torch.isinf(bound.upper)
    if not bool((within | (torch.isnan(value) & unbounded)).all()):
        raise RelumeError(
            f"relume's bounds of {name} in '{where}' do not hold for the middle of the box: this is a fault of "
            f"relume, and "
            "nothing is certified. Please report it with the model"
        )


def _unknown(step: Step) -> str:
    where = f"'{step.where}'" if step.where else "the model"
    return (
        f"{where} applies {step.name}, for which certify has no bounds. Certify the part of the model before or "
        f"after it, "
        "or write it with operations that docs/certify.md lists."
    )
