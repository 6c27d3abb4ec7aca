"""`Product`: one use of weights in a forward pass, a matrix product or a convolution, its columns and rows by number.

What a consumer reads are its columns (entries of the axis that is summed over), what a producer writes are its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relume.treat.surgery.aliases import Alias, Aliases

_MATRIX = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "mv": (0, 1), "addmv": (1, 2)}
_CONVOLUTION = ("convolution", "_convolution", "convolution_overrideable")


@dataclass
class Product:
    """A call that multiplies data with a parameter.

    Attributes:
        number: of the call among all products and norms of the pass.
        where: dotted name of the module that makes it.
        func, args: the call.
        at: which of `args` is the data.
        left: the data is the left factor.
        weight: the parameter's entries, shape as in the call.
        bias: entries of the bias given in the call.
        x: the data; kept where asked for.
        size: shape of the data.
        reads: for each column, the unit that it says, as a label; −1 where it says none, or several.
    """

    number: int
    where: str
    func: Any
    args: tuple[Any, ...]
    at: int
    left: bool
    weight: Alias
    bias: Alias | None = None
    x: Tensor | None = None
    size: torch.Size = field(default_factory=torch.Size)
    reads: list[Tensor] = field(default_factory=list)

    @property
    def convolves(self) -> bool:
        return str(self.func.overloadpacket.__name__) in _CONVOLUTION

    @property
    def transposed(self) -> bool:
        return self.convolves and bool(self.args[6])

    @property
    def groups(self) -> int:
        return int(self.args[8]) if self.convolves else 1

    def by_row(self, values: Tensor) -> Tensor:
        """Weight-shaped values as [rows, columns, …]: what one output entry is made of, and of which input entry.

        Of a grouped convolution, columns count within the group.
        """
        if self.convolves:
            if not self.transposed:
                return values
            g = self.groups  # [in, out / g, …] to [out, in / g, …]
            out: Tensor = values.unflatten(0, (g, -1)).transpose(1, 2)
            return out.flatten(0, 1)
        if self.left:  # x [.., n, J] @ w [.., J, O]
            return values.transpose(-1, -2) if values.dim() > 1 else values.unsqueeze(0)
        return values

    def let_go(self) -> None:
        """Keep no data but `x`."""
        self.size = self.args[self.at].shape
        self.args = (*self.args[: self.at], None, *self.args[self.at + 1 :])

    # Masks

    def columns(self, of_x: Tensor) -> Tensor:
        """Which columns have any entry of a mask over `x`."""
        return self._over_samples(of_x, lambda t, dims: t.any(dims) if dims else t)

    def _over_samples(self, x: Tensor, reduce: Any) -> Tensor:
        if self.convolves:
            spatial = x.dim() - 2
            return reduce(x, tuple(i for i in range(x.dim()) if i != x.dim() - spatial - 1))  # type: ignore[no-any-return]
        if x.dim() == 1:
            return x
        return reduce(x, (-2,) if self.left else (-1,))  # type: ignore[no-any-return]

    def range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lowest and highest value in each column."""
        low = self._over_samples(x, lambda t, dims: t.amin(dims))
        return low, self._over_samples(x, lambda t, dims: t.amax(dims))

    def mean(self, x: Tensor) -> Tensor:
        """Mean of each column."""
        return self._over_samples(x, lambda t, dims: t.mean(dims))

    def said(self, labels: Tensor) -> Tensor:
        """For each column, the one label that its elements have; −1 where there are several."""
        low, high = self.range(labels)
        return torch.where(low == high, low, -1)

    def touching(self, of_weight: Tensor) -> Tensor:
        """Which columns have any entry of a mask of the weight's shape."""
        return self.by_column(of_weight.int()) > 0

    def by_column(self, of_weight: Tensor) -> Tensor:
        """Sums over each column's entries of values of the weight's shape."""
        if self.convolves:
            if self.transposed:
                return of_weight.flatten(1).sum(1)
            per_group: Tensor = of_weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(2).sum(2)
            return per_group.flatten()
        if of_weight.dim() == 1:
            return of_weight
        return of_weight.sum(-1) if self.left else of_weight.sum(-2)

    def mask_of(self, columns: Tensor) -> Tensor:
        """Mask of the weight's shape: all entries that these columns go through."""
        shape = self.weight.index.shape
        if self.convolves:
            if self.transposed:
                return columns.view(-1, *[1] * (len(shape) - 1)).expand(shape)
            each = columns.view(self.groups, 1, shape[1]).expand(self.groups, shape[0] // self.groups, shape[1])
            return each.flatten(0, 1).view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
        if len(shape) == 1:
            return columns
        return (columns.unsqueeze(-1) if self.left else columns.unsqueeze(-2)).expand(shape)

    def rows_of(self, of_weight: Tensor) -> Tensor:
        """Which rows (entries of the output's feature axis) have any entry of a mask of the weight's shape."""
        mask = self.by_row(of_weight)
        if mask.dim() > 2 and not self.convolves:  # a batch of matrices
            return mask.any(-1).flatten()
        return mask.flatten(1).any(1)

    def rows_to_weight(self, rows: Tensor) -> Tensor:
        """Mask of the weight's shape: all entries that make these rows."""
        shape = self.weight.index.shape
        if self.convolves:
            if self.transposed:
                each = rows.view(self.groups, 1, shape[1]).expand(self.groups, shape[0] // self.groups, shape[1])
                return each.flatten(0, 1).view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
            return rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        if len(shape) == 1:
            return rows.expand(shape)
        if len(shape) > 2:
            rows = rows.view(*shape[:-2], -1)
        return (rows.unsqueeze(-2) if self.left else rows.unsqueeze(-1)).expand(shape)

    def row_numbers(self, out: Tensor) -> Tensor:
        """For each element of the output, the number of the row that made it."""
        device = out.device
        if self.convolves:
            spatial = self.weight.index.dim() - 2
            n = out.shape[-spatial - 1]
            return torch.arange(n, device=device).view(-1, *[1] * spatial).expand(out.shape)
        if self.weight.index.dim() == 1 or out.dim() == 0:
            return torch.zeros((), dtype=torch.int64, device=device).expand(out.shape)
        if self.weight.index.dim() > 2:
            features = out.shape[-1] if self.left else out.shape[-2]
            numbers = torch.arange(out.shape[0] * features, device=device).view(out.shape[0], features)
            return (numbers.unsqueeze(-2) if self.left else numbers.unsqueeze(-1)).expand(out.shape)
        if out.dim() == 1:
            return torch.arange(out.shape[0], device=device)
        numbers = torch.arange(out.shape[-1] if self.left else out.shape[-2], device=device)
        return (numbers if self.left else numbers.unsqueeze(-1)).expand(out.shape)

    def contribution(self, weight: Tensor, columns: Tensor, values: Tensor) -> Tensor | None:
        """What columns of constant value add to each row; None where that differs between positions.

        Args:
            weight: the parameter's values, in the weight's shape.
            columns: bool.
            values: of the columns.
        """
        filled = torch.where(columns, values, torch.zeros_like(values))
        if not self.convolves:
            if weight.dim() == 1:
                return (filled * weight).sum(-1, keepdim=True)
            factor = weight if self.left else weight.transpose(-1, -2)
            return torch.matmul(filled.unsqueeze(-2), factor).squeeze(-2).flatten()
        spatial = len(self.size) - 2
        x = filled.view(1, -1, *[1] * spatial).expand(1, -1, *self.size[2:]).to(weight.dtype)
        out: Tensor = self.func(x, weight, None, *self.args[3:])
        rows = out[0].flatten(1)
        spread = rows.amax(1) - rows.amin(1)
        if bool((spread > 1e-6 * rows.abs().amax().clamp(min=1e-30)).any()):
            return None
        return rows.mean(1)


def product_of(number: int, where: str, func: Any, args: tuple[Any, ...], aliases: Aliases) -> Product | None:
    """The call as a product of data with a parameter; None where it is none."""
    name = func.overloadpacket.__name__
    if name in _CONVOLUTION:
        if aliases.name_of(args[0]) is not None:
            return None
        weight = aliases.of(args[1])
        bias = aliases.of(args[2]) if isinstance(args[2], Tensor) else None
        return Product(number, where, func, args, 0, True, weight, bias) if weight is not None else None
    if name not in _MATRIX:
        return None
    a, b = _MATRIX[name]
    of_a, of_b = aliases.name_of(args[a]), aliases.name_of(args[b])
    if (of_a is None) == (of_b is None):
        return None
    at, w = (a, b) if of_a is None else (b, a)
    weight = aliases.of(args[w])
    assert weight is not None
    bias = aliases.of(args[0]) if name.startswith(("add", "badd")) else None
    return Product(number, where, func, args, at, at == a, weight, bias)
