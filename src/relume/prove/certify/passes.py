"""Forward passes for a certificate: traced ones, and ones over samples of the box, seen by a tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from relume.errors import BatchError, NoSitesError, RelumeError, UnsupportedOperationError
from relume.prove.certify.known import curve_of
from relume.prove.certify.rules import BENDS
from relume.prove.certify.trace import Graph, Trace
from relume.sites import Found, Tracker
from relume.watch import compiled
from relume.watch.aside import aside

_ARITHMETIC = {"mul", "div", "bmm"}
Meter = Callable[[Found, Tensor], "Callable[[Tensor], None] | None"]


class Passes:
    """Runs one model, in evaluation, under a tracker.

    Args:
        model: not compiled, already in evaluation.
        axis: unit axis, as for a census.
        input_axis: of the model's input, that counts inputs.
    """

    def __init__(self, model: nn.Module, axis: Any, input_axis: int) -> None:
        self.model, self.axis, self.input_axis = model, axis, input_axis

    def run(self, x: Tensor, meter: Meter) -> Tracker:
        """One pass; `meter` is called before each application of an activation."""
        tracker = Tracker(self.model, meter, axis=self.axis, input_axis=self.input_axis, keep_fast_path=False)
        with self._begun(tracker), compiled.eager(), sdpa_kernel(SDPBackend.MATH):
            self.model(x)
        return tracker

    @contextlib.contextmanager
    def _begun(self, tracker: Tracker) -> Iterator[None]:
        handle = self.model.register_forward_pre_hook(lambda _, a, k: tracker.begin(a, k), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            tracker.end()

    def trace(self, x: Tensor) -> tuple[Graph, Tracker]:
        """What one pass does, and its sites.

        Raises:
            BatchError: the model can't be given such an input.
            UnsupportedOperationError: it does what no bounds can follow.
            NoSitesError: it applies no activation.
        """
        tracker: Tracker

        def meter(found: Found, z: Tensor) -> Callable[[Tensor], None]:
            return trace.site(found, z, curve_of(found.activation, tracker.flow.running, z))

        tracker = Tracker(self.model, meter, axis=self.axis, input_axis=self.input_axis, keep_fast_path=False)
        x = x.clone()
        trace = Trace(x, [*self.model.parameters(), *self.model.buffers()], lambda: tracker.flow.where)
        try:
            with self._begun(tracker), compiled.eager(), sdpa_kernel(SDPBackend.MATH), trace:
                self.model(x)
        except RelumeError:
            raise
        except Exception as error:
            raise BatchError(
                f"{type(self.model).__name__} could not be run on {len(x)} inputs of shape "
                f"{tuple(x.shape[1:]) if self.input_axis == 0 else tuple(x.shape)} in the middle of the box: "
                f"{type(error).__name__}: {error}. The box has the shape of one input, without the batch axis"
            ) from error
        if not trace.graph.uses:
            kinds = sorted({type(m).__name__ for m in self.model.modules() if not list(m.children())})
            raise NoSitesError(
                f"{type(self.model).__name__} applied no activation that relume knows (it is made of: "
                f"{', '.join(kinds[:12])})"
            )
        return trace.graph, tracker

    def graph(self, middle: Tensor) -> tuple[Graph, Tracker]:
        """The graph for one input, once it is seen that the model treats each of two inputs alike.

        Args:
            middle: of the box, one input's shape.
        """
        two, _ = self.trace(torch.stack([middle, middle], self.input_axis))
        for step in two.steps:
            if step.name in ("native_batch_norm", "cudnn_batch_norm") and step.args[5]:
                shape = two.examples[step.reads[0]].shape
                if shape[0] != 1:
                    raise UnsupportedOperationError(
                        f"'{step.where}' is a batch norm without running statistics: what it gives for an input "
                        f"depends on "
                        "the others of its batch, of which a box says nothing"
                    )
        one, tracker = self.trace(middle.unsqueeze(self.input_axis))
        sites = [[(u.found.site.name, u.found.site.units) for u in g.uses] for g in (one, two)]
        # Of one input torch may lay out memory otherwise, and split a product from its sum.
        steps = [[s.name for s in g.steps if s.name in BENDS - _ARITHMETIC] for g in (one, two)]
        if sites[0] != sites[1] or steps[0] != steps[1]:
            at = next((f"{a} instead of {b}" for a, b in zip(*steps, strict=False) if a != b), "in its sites")
            raise UnsupportedOperationError(
                f"{type(self.model).__name__} does not do the same with one input as with two ({at}), so bounds "
                f"for one say "
                "nothing of a batch. Look for squeeze() without an axis, or a branch on the batch size"
            )
        return one, tracker

    @contextlib.contextmanager
    def with_gradients(self) -> Iterator[None]:
        """Passes whose gradients may be asked for by `torch.autograd.grad`."""
        with aside(self.model, grad=True), torch.enable_grad():
            yield


def check_weights(model: nn.Module) -> torch.dtype:
    """The dtype that the model computes in.

    Raises:
        RelumeError: it holds no numbers, or such that nothing can be certified of them.
    """
    name = type(model).__name__
    tensors = list(chain(model.named_parameters(), model.named_buffers()))
    if any(is_lazy(t) for _, t in tensors):
        raise RelumeError(f"{name} has lazy layers, whose weights the first batch draws: pass it one before certifying")
    if any(t.is_meta for _, t in tensors):
        raise RelumeError(f"{name} is on the meta device, where tensors hold no numbers: move it to a real one")
    bad = [n for n, t in model.named_parameters() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    bad += [n for n, t in model.named_buffers() if t.is_floating_point() and bool(torch.isnan(t).any())]
    if bad:
        raise RelumeError(
            f"{', '.join(bad[:5])}{' and others' if len(bad) > 5 else ''}: NaN or infinite weights, of which "
            f"nothing can be "
            "certified. The model has diverged; load an earlier checkpoint"
        )
    found = {t.dtype for _, t in tensors if t.is_floating_point()} or {torch.float32}
    narrow = [d for d in found if d not in (torch.float32, torch.float64)]
    if narrow:
        raise UnsupportedOperationError(
            f"{name} has weights in {', '.join(str(d).removeprefix('torch.') for d in narrow)}: margins for "
            f"rounding are "
            "known for float32 and float64. Certify model.float()"
        )
    first = next((t.dtype for _, t in tensors if t.is_floating_point()), torch.float32)
    return first
