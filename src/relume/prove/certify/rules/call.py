"""`Call`: one step as a rule sees it: bounds in place of values, constants in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relume.errors import UnsupportedOperationError
from relume.prove.certify.bound import Affine, Bound
from relume.prove.certify.trace import Ref, Step


class Call:
    """One step, its arguments as bounds.

    Attributes:
        args, kwargs: `Bound` for what depends on the input, other floating-point tensors in float64.
        dtype: in which the model computes it.
        lines: linear bounds are wanted.
    """

    def __init__(self, step: Step, bounds: list[Bound | None], examples: list[Tensor], *, lines: bool) -> None:
        self.step, self.lines = step, lines
        self.tracked: list[Bound] = []

        def given(value: Any) -> Any:
            if isinstance(value, Ref):
                bound = bounds[value.index]
                if bound is None:
                    raise self.unsupported("it reads indices or other whole numbers that follow from the input")
                self.tracked.append(bound)
                return bound
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.double()
            return value

        self.args, self.kwargs = pytree.tree_map(given, (step.args, step.kwargs))
        self.outputs = [None if i is None else examples[i] for i in step.outputs]
        floating = [t.dtype for t in self.outputs if t is not None and t.is_floating_point()]
        floating += [examples[i].dtype for i in step.reads if examples[i].is_floating_point()]
        # Of several, the coarsest: float32 before float64.
        self.dtype = torch.float32 if torch.float32 in floating or not floating else floating[0]

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def with_tracked(self, function: Callable[..., Any], values: tuple[Tensor, ...] | list[Tensor]) -> Any:
        """The function on the arguments with tensors in place of bounds, in order."""
        rest = iter(values)
        args, kwargs = pytree.tree_map(
            lambda v: next(rest) if isinstance(v, Bound) else v,
            (self.args, self.kwargs),
            is_leaf=lambda v: isinstance(v, Bound),
        )
        return function(*args, **kwargs)

    def affine(self, function: Callable[..., Tensor]) -> Affine | None:
        """That the output is this affine function of the tracked arguments, in order."""
        return Affine(function, tuple(b.index for b in self.tracked)) if self.lines else None

    def unsupported(self, why: str) -> UnsupportedOperationError:
        where = f"'{self.step.where}'" if self.step.where else "the model"
        return UnsupportedOperationError(f"{where} applies {self.step.name}: {why}")
