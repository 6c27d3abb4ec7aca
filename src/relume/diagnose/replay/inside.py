"""`Inside`: the tensors that a forward pass makes on its way, by the order in which they are made.

A loss may use what the model did not return: hidden activations that a hook has kept, say. In a replay the same tensor
is found again by its place in that order.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any

from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import TorchFunctionMode

from relume.diagnose.replay.values import tensors_of


class Inside(TorchFunctionMode):
    """On torch's stack of modes during one forward pass.

    Args:
        wanted: places of tensors to be kept alive; of all others only a weak reference is kept.

    Attributes:
        made: results with a gradient, in order.
        kept: those wanted, by place.
    """

    def __init__(self, wanted: Collection[int] = ()) -> None:
        super().__init__()
        self.wanted = frozenset(wanted)
        self.made: list[weakref.ref[Tensor]] = []
        self.kept: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not is_dynamo_compiling():
            for tensor in tensors_of(out):
                # What has none is of no use to a loss, and what relume computes itself has none.
                if tensor.grad_fn is not None:
                    if len(self.made) in self.wanted:
                        self.kept[len(self.made)] = tensor
                    self.made.append(weakref.ref(tensor))
        return out
