"""`mixers`: where on the way to a consumer the units are mixed with other values; asked only once that is a problem."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.treat.surgery.anatomy import Anatomy
from relume.treat.surgery.cut import Trial, plain_mask, source_rows
from relume.treat.surgery.products import Product
from relume.treat.surgery.trace import Norm, Trace

_SUMS = ("add", "sub", "rsub", "lerp")
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "convolution")


def mixers(anatomy: Anatomy, written: Mapping[str, Tensor], units: Mapping[str, Sequence[int]]) -> list[str]:
    """A sentence for each operation that mixes what the units say with other values, in the order of the pass.

    Args:
        anatomy, written, units: as for `find_cut`.
    """
    seen = _Events(anatomy.aliases)
    anatomy.run(0, seen)
    masks = {name: plain_mask(anatomy, name, numbers) for name, numbers in written.items()}
    trial = _Compared(anatomy, masks, source_rows(anatomy, masks), units, seen.events)
    anatomy.run(0, trial, trial.look)
    return list(dict.fromkeys(trial.found))


class _Events(Trace):
    """Keeps what each operation that may mix was given."""

    def __init__(self, aliases: Any) -> None:
        super().__init__(aliases, str)
        self.events: list[list[Tensor]] = []

    def before_norm(self, norm: Norm, x: Tensor) -> None:
        self.events.append([x.detach().clone()])

    def _other(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if _may_mix(name, args):
            self.events.append([a.detach().clone() for a in args if isinstance(a, Tensor)])


class _Compared(Trial):
    def __init__(
        self,
        anatomy: Anatomy,
        masks: dict[str, Tensor],
        sources: dict[int, Tensor],
        units: Mapping[str, Sequence[int]],
        events: list[list[Tensor]],
    ) -> None:
        super().__init__(anatomy, masks, sources, units, 1, 0)
        self.events, self.at, self.found = events, 0, list[str]()

    def before(self, product: Product) -> Tensor:
        x = super().before(product)
        self.problems.clear()
        return x

    def before_norm(self, norm: Norm, x: Tensor) -> None:
        (was,) = self._event() or (x,)
        if norm.mixes and was.shape == x.shape and not torch.equal(was, x):
            self.found.append(f"'{norm.where}' normalizes over them and other units")

    def _other(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not _may_mix(name, args):
            return
        now = [a for a in args if isinstance(a, Tensor)]
        was = self._event()
        if was is None or [t.shape for t in was] != [t.shape for t in now]:
            return
        changed = [not torch.equal(a, b) for a, b in zip(was, now, strict=True)]
        where = f" in '{self.where()}'" if self.where() else ""
        if name.rstrip("_") in _PRODUCTS:
            if any(changed):
                self.found.append(self._of_product(where))
        elif changed.count(True) == 1 and len(now) == 2:
            i = changed.index(True)
            moved = (was[i] != now[i]).expand(torch.broadcast_shapes(was[0].shape, was[1].shape))
            other = was[1 - i].expand(moved.shape)[moved]
            if other.numel() > 1 and bool((other != other[0]).any()) and self.aliases.name_of(args[1 - i]) is None:
                self.found.append(f"a sum{where} adds other values to them")

    def _of_product(self, where: str) -> str:
        module: nn.Module | None = None
        with contextlib.suppress(AttributeError):  # a call outside of all modules
            module = self.anatomy.owner.get_submodule(self.where())
        computed = module is not None and (
            hasattr(module, "parametrizations") or any(n.endswith(("_v", "_orig")) for n in module._parameters)
        )
        if computed:
            return f"the weights of '{self.where()}' are computed (parametrized) and can't be zeroed entry by entry"
        return f"a product{where} multiplies them with values that are no parameter"

    def _event(self) -> list[Tensor] | None:
        self.at += 1
        return self.events[self.at - 1] if self.at <= len(self.events) else None


def _may_mix(name: str, args: tuple[Any, ...]) -> bool:
    return name.rstrip("_") in (*_SUMS, *_PRODUCTS) and sum(isinstance(a, Tensor) for a in args) >= 2
