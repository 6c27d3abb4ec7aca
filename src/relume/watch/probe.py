"""`Probe`: looks at a call of a model that runs compiled code, by running its original code aside on the same input.

No mode and no hook of relume may be there while compiled code runs: the compiler would compile anew, and round
otherwise. So the observed pass is run twice, first by the original code, without gradients, for the counts; it costs
one more forward pass, on observed steps only. The results are those of the compiled pass, bit for bit. What the
original code computes may differ from the compiled in the last bits: a unit within rounding of its threshold may fire
in one and not in the other.

The model's Python runs twice as well. What it writes to buffers, random state and plain attributes is put back; effects
outside of it (printing, files, global variables) happen twice, as do collectives inside its forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from relume.sites import Tracker
from relume.sites.flow import tensors_in
from relume.sites.forward_pass import seen_here
from relume.watch import compiled
from relume.watch.aside import aside, copied

# Threads in which a probe is running, of whatever watch.
_probing: set[int] = set()


class Probe:
    """For one model.

    Args:
        tracker: of the model, whose pass a probe is.
        begins: called when the pass begins: what that hangs on modules must be gone when `ended` returns, as modules
            are then put back as they were.
        ended: called with the output when the pass has been seen.
    """

    def __init__(self, tracker: Tracker, begins: Callable[[], None], ended: Callable[[Any, bool], None]) -> None:
        self.tracker = tracker
        self.model = tracker.model
        self._begins = begins
        self._ended = ended
        self._depth = 0
        self.failure: Exception | None = None  # what the original code raised; the compiled may do as well, or not
        # Does the model call functions that are compiled, which no module tells of? By phase; asked in the first pass.
        self._calls_compiled: dict[bool, bool] = {}

    @staticmethod
    def here() -> bool:
        """Is a probe running in this thread, of this model or of one around it? What it calls is not to be counted."""
        return threading.get_ident() in _probing

    def needed(self, module: nn.Module) -> bool:
        """Would a call of `module` run compiled code? Where that is not known yet, the answer is yes."""
        if seen_here():
            return False  # another watch sees all that runs here, which is not compiled then
        if module is not self.model or compiled.in_place(module) or self.tracker.met_compiled_code:
            return True
        self.tracker.check_structure()
        if compiled.any_compiled(self.tracker.structure.flat):
            return True
        if not compiled.compiles():
            return False
        # A model whose weights the real pass is to draw can't be run aside before.
        unknown = not any(is_lazy(p) for p in self.model.parameters())
        return self._calls_compiled.get(self.model.training, unknown)

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the call that is about to begin; under `compiled.eager()`."""
        model = self.model
        if any(is_lazy(p) for p in model.parameters()):
            return  # the real pass draws its weights
        grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in((args, kwargs)))
        args, kwargs = copied((args, kwargs))
        inner = compiled.original(module)
        begun = module is model and not compiled.in_place(model)  # the model's own hooks have run
        # Without DistributedDataParallel's own forward, which calls other ranks.
        within: nn.Module | None = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else None
        handles: list[Any] = []
        self._depth, self.failure = 0, None
        _probing.add(threading.get_ident())
        try:
            with aside(inner, grad=grad), compiled.Lookout() as lookout:
                try:
                    if begun or (within is not None and inner is model):
                        forward: Any = inner.forward if within is None else within
                        self._begin(model, args, kwargs)
                        self._end(model, args, kwargs, forward(*args, **kwargs))
                    else:
                        handles = [
                            model.register_forward_pre_hook(self._begin, with_kwargs=True),
                            model.register_forward_hook(self._end, with_kwargs=True),
                        ]
                        (inner if within is None else within)._call_impl(*args, **kwargs)
                except Exception as error:
                    self.failure = error
                finally:
                    for handle in handles:
                        handle.remove()
                    if self.tracker.here():
                        self._ended(None, True)
            self._calls_compiled[model.training] = lookout.seen
        finally:
            _probing.discard(threading.get_ident())

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's own call begins; it may call itself."""
        if not self._depth:
            self._begins()
            self.tracker.begin(args, kwargs)
        self._depth += 1

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth -= 1
        if not self._depth and self.tracker.here():
            self._ended(output, False)
