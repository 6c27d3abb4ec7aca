"""`Trace`: the products and norms of one forward pass, each under a number that is the same in every pass.

A dispatch mode sees every operator that torch runs, so a consumer is found however it is written. Subclasses look at a
product's data before it, and at outputs after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from relume.treat.surgery.aliases import Alias, Aliases
from relume.treat.surgery.labels import Labels
from relume.treat.surgery.products import Product, product_of

_COPIES = ("clone", "_to_copy", "contiguous", "repeat", "_unsafe_view", "_reshape_alias")


@dataclass
class Norm:
    """A call of a normalization.

    Attributes:
        number, where: as of a product.
        weight, bias, mean, var: entries of scale, shift and running statistics, each [channels]; None where absent.
        axes: of the output that the channels lie on.
        channels: how many.
        mixes: does each channel depend on others?
        reads: for each channel, the unit that it says, as a label; −1 where it says none, or several.
    """

    number: int
    where: str
    name: str
    weight: Alias | None
    bias: Alias | None
    mean: Alias | None
    var: Alias | None
    axes: tuple[int, ...]
    channels: int
    mixes: bool = False
    reads: list[Tensor] = field(default_factory=list)

    def numbers(self, out: Tensor) -> Tensor:
        """For each element of the output, the number of its entry in scale and shift."""
        first = self.axes[0]
        own = self.weight or self.bias
        each = own.index.flatten() if own is not None else torch.arange(self.channels, device=out.device)
        shape = [out.shape[i] if i in self.axes else 1 for i in range(first, out.dim())]
        return each.view(shape).expand(out.shape)

    def per_channel(self, x: Tensor) -> Tensor:
        """[channels, samples] of its input."""
        assert len(self.axes) == 1
        return x.transpose(0, self.axes[0]).flatten(1)


@dataclass(frozen=True)
class OtherUse:
    """An operation other than a product or a norm that reads a parameter."""

    operation: str
    where: str


class Trace(TorchDispatchMode):
    """Entered around one forward pass.

    Args:
        aliases: of the model.
        where: says which module is running.
        labels: to follow rows with, or None.
    """

    def __init__(self, aliases: Aliases, where: Callable[[], str], labels: Labels | None = None) -> None:
        super().__init__()
        self.aliases, self.where, self.labels = aliases, where, labels
        self.products: dict[int, Product] = {}
        self.norms: dict[int, Norm] = {}
        self.other_uses: dict[str, list[OtherUse]] = {}
        self.quiet = False
        self._number = 0
        aliases.forget_copies()

    # For subclasses

    def before(self, product: Product) -> Tensor:
        """What the product is to be given as its data."""
        return product.args[product.at]  # type: ignore[no-any-return]

    def after(self, product: Product, out: Tensor) -> Tensor:
        return out

    def before_norm(self, norm: Norm, x: Tensor) -> None:
        pass

    def after_norm(self, norm: Norm, out: Tensor) -> None:
        pass

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.quiet or not hasattr(func, "overloadpacket"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        product = product_of(self._number, self.where(), func, args, self.aliases)
        if product is not None:
            self._number += 1
            return self._product(product, kwargs)
        if "norm" in name and (norm := self._norm_of(name, args)) is not None:
            self._number += 1
            return self._norm(norm, func, args, kwargs)
        out = func(*args, **kwargs)
        self.quiet = True
        try:
            self._other(func, name, args, kwargs, out)
        finally:
            self.quiet = False
        return out

    def _product(self, product: Product, kwargs: dict[str, Any]) -> Tensor:
        self.products[product.number] = product
        self.quiet = True
        try:
            read = self.labels.of(product.args[product.at]) if self.labels is not None else None
            x = self.before(product)
            args = list(product.args)
            args[product.at] = x
            out: Tensor = product.func(*args, **kwargs)
            out = self.after(product, out)
            if self.labels is not None:
                product.reads = [product.said(t.expand(x.shape)) for t in read.units] if read is not None else []
                self.labels.numbered(out, product.number, product.row_numbers(out))
        finally:
            self.quiet = False
        return out

    def _norm(self, norm: Norm, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.norms[norm.number] = norm
        self.quiet = True
        try:
            x = args[0]
            label = self.labels.of(x) if self.labels is not None else None
            self.before_norm(norm, x)
            result = func(*args, **kwargs)
            out = result[0] if isinstance(result, tuple | list) else result
            self.after_norm(norm, out)
            if self.labels is not None and label is not None:
                if len(norm.axes) == 1:
                    each = [norm.per_channel(t.expand(x.shape)) for t in label.units]
                    norm.reads = [torch.where(t.amin(1) == t.amax(1), t.amin(1), -1) for t in each]
                self.labels.numbered(out, norm.number, norm.numbers(out), label)
        finally:
            self.quiet = False
        return result

    def _norm_of(self, name: str, args: tuple[Any, ...]) -> Norm | None:
        if not args or not isinstance(args[0], Tensor):
            return None
        x = args[0]

        def alias(i: int) -> Alias | None:
            return self.aliases.of(args[i]) if len(args) > i and isinstance(args[i], Tensor) else None

        axes: tuple[int, ...] = (1,)
        mixes = True
        if "batch_norm" in name and "backward" not in name:
            channels, at, mixes = x.shape[1], (1, 2, 3, 4), False
        elif "group_norm" in name:
            channels, at, mixes = x.shape[1], (1, 2, 99, 99), args[6] < x.shape[1]
        elif "layer_norm" in name or name == "_fused_rms_norm":
            n = len(args[1])
            axes, at = tuple(range(x.dim() - n, x.dim())), (2, 3, 99, 99)
            channels = int(torch.Size(args[1]).numel())
        else:
            return None
        weight, bias, mean, var = map(alias, at)
        return Norm(self._number, self.where(), name, weight, bias, mean, var, axes, channels, mixes)

    def _other(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        for i, arg in enumerate(args):
            for tensor in arg if isinstance(arg, tuple | list) else (arg,):
                if not isinstance(tensor, Tensor) or (owner := self.aliases.name_of(tensor)) is None:
                    continue
                if i == 0 and name in _COPIES and isinstance(out, Tensor):
                    self._copy(func, name, args, kwargs, out)
                elif not func.is_view and not self._is_bias(name, args, i):
                    self.other_uses.setdefault(owner, []).append(OtherUse(name.rstrip("_"), self.where()))
        if self.labels is not None:
            self.labels.follow(func, args, kwargs, out)

    def _copy(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        alias = self.aliases.of(args[0])
        if alias is not None:
            plain = name in ("clone", "_to_copy", "contiguous")
            index = alias.index if plain else func(alias.index, *args[1:], **kwargs)
            self.aliases.copied(Alias(alias.name, index), out)

    def _is_bias(self, name: str, args: tuple[Any, ...], i: int) -> bool:
        """A bias that is added on its own belongs to the product before it."""
        if name not in ("add", "add_") or self.labels is None:
            return False
        label = self.labels.of(args[1 - i]) if i in (0, 1) and isinstance(args[1 - i], Tensor) else None
        if label is None or len(label.rows) != 1 or label.norms:
            return False
        calls = torch.unique(label.rows[0] >> 32)
        product = self.products.get(int(calls[0])) if calls.numel() == 1 else None
        alias = self.aliases.of(args[i])
        if product is None or product.bias is not None or alias is None:
            return False
        rows = product.rows_of(torch.ones(product.weight.index.shape, dtype=torch.bool)).numel()
        # One for each row, along the axis of the rows.
        if alias.index.squeeze().shape != (rows,):
            return False
        product.bias = Alias(alias.name, alias.index.flatten())
        return True
