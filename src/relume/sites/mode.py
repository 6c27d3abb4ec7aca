"""`Mode`: the torch calls of one forward pass, as torch announces them.

Those that are as expected are checked off here; all others go to the `ForwardPass`, which follows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from relume.sites.forward_pass import ForwardPass


class Mode(TorchFunctionMode):
    """On torch's stack of modes while a pass is seen."""

    def __init__(self, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.forward_pass = forward_pass

        def traced() -> None:
            forward_pass.tracker.met_compiled_code = True

        # As torch.compiler.assume_constant_result does, which would import the compiler.
        traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
        self.traced = traced

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if is_dynamo_compiling():  # something compiled runs inside the pass
            self.traced()
            return func(*args, **(kwargs or {}))
        seen = self.forward_pass
        given = kwargs or {}
        step = None
        if seen.expected is not None:
            step = seen.expected.step(seen.at, func)
            seen.at += 1
            if step is not None and step.outs is not None:
                finish = None
                try:
                    known = step.fits(seen.flow, args, given) and (step.site is None or seen.reached(step.site))
                except Exception as error:
                    seen.tracker.trouble(f"looking at {getattr(func, '__name__', func)}", error)
                    known = False
                if known:
                    if step.site is not None:
                        finish = seen.count(step.site, args[0])
                    out = func(*args, **given)
                    if finish is not None:
                        seen.counted(finish, out)
                    if step.outs:
                        seen.give(step, func, args, given, out)
                    return out
        return seen.call(func, args, given, step)
