"""`find_cut`: which entries have to be zero so that units can be rewritten without a trace in the model's output.

Found by trial: the units' rows and outputs are given other values, and what arrives changed at a product is what it
reads of them. A column that was constant on all data can be cut there: its entries become zero, and what the constant
contributed goes into the bias. What can't be cut so is named.

Where the function need not be kept, columns that say nothing but what the units say are cut as well, though they vary
(`exclusive`): their mean goes into the bias. The others are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relume.sites import Found
from relume.treat.surgery.anatomy import Anatomy, Numbers, units_of
from relume.treat.surgery.products import Product
from relume.treat.surgery.trace import Norm, Trace

# A constant up to so many units in the last place of its column's size counts as constant.
_ULPS = 8
_ABLATION = 3  # the draw in which the units say nothing at all


@dataclass
class Consumer:
    """What becomes of one parameter that reads the units.

    Attributes:
        parameter: its name.
        zeroed: numbers of the entries that become zero.
        bias: name of the bias that takes over what they contributed; "" where that is nothing.
        correction: by number of the bias' entry.
    """

    parameter: str
    zeroed: Tensor
    bias: str = ""
    at: Tensor | None = None
    correction: Tensor | None = None


@dataclass
class Cut:
    """Attributes:
    consumers: what to write.
    problems: why the function can't be kept, a sentence each; empty where it can.
    """

    consumers: list[Consumer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def zeroed(self) -> Numbers:
        return {c.parameter: c.zeroed for c in self.consumers}


def find_cut(
    anatomy: Anatomy, written: Numbers, units: Mapping[str, Sequence[int]], *, exclusive: bool = False, seed: int = 0
) -> Cut:
    """Find the entries through which the units, and all else that the written entries make, reach the output.

    Args:
        anatomy: of the model.
        written: entries that are going to have other values.
        units: of each site, the units whose output is going to change.
        exclusive: cut too what varies, if it varies by the units alone.
        seed: of the values that are tried.
    """
    cut = Cut()
    masks = {name: plain_mask(anatomy, name, numbers) for name, numbers in written.items()}
    _check_other_uses(anatomy, written, cut)
    sources = source_rows(anatomy, masks)
    columns: dict[int, Tensor] = {}
    for draw in range(3):
        trial = Trial(anatomy, masks, sources, units, draw, seed)
        out = anatomy.run(0, trial, trial.look)
        for number, found in trial.columns.items():
            columns[number] = columns[number] | found if number in columns else found
        cut.problems += [p for p in trial.problems if p not in cut.problems]
        if not trial.lost and any(not _same(a, b) for a, b in zip(out, anatomy.outputs[0], strict=True)):
            text = f"the output of the model itself reads {_named(units)}"
            cut.problems += [text] if text not in cut.problems else []
    if exclusive:
        trial = Trial(anatomy, masks, sources, units, _ABLATION, seed)
        anatomy.run(0, trial, trial.look)
        for number, found in trial.columns.items():
            columns[number] = columns[number] | found if number in columns else found
    zero: dict[str, Tensor] = {}
    for number, chosen in columns.items():
        product = anatomy.trace.products[number]
        entries = product.mask_of(chosen)
        if number in sources:  # rows that are rewritten read what they like: they are cut off themselves
            entries = entries & ~product.rows_to_weight(sources[number])
        mask = zero.setdefault(product.weight.name, plain_mask(anatomy, product.weight.name))
        mask[product.weight.index[entries]] = True
    zero = {name: mask for name, mask in zero.items() if mask.any()}
    _check_other_uses(anatomy, {name: m.nonzero().flatten() for name, m in zero.items()}, cut)
    _corrections(anatomy, zero, cut, exclusive)
    return cut


def source_rows(anatomy: Anatomy, masks: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """By the number of the product, the rows that entries in the masks make."""
    sources = {
        number: product.rows_of(masks[product.weight.name][product.weight.index])
        for number, product in anatomy.trace.products.items()
        if product.weight.name in masks
    }
    for number, product in anatomy.trace.products.items():
        if product.bias is not None and product.bias.name in masks:
            own = masks[product.bias.name][product.bias.index.flatten()]
            sources[number] = sources[number] | own if number in sources else own
    return sources


class Trial(Trace):
    """A pass in which the rows that will be written, and the units, have other values; cut where it can be."""

    def __init__(self, anatomy: Anatomy, masks: dict[str, Tensor], sources: dict[int, Tensor],
                 units: Mapping[str, Sequence[int]], draw: int, seed: int) -> None:  # fmt: skip
        super().__init__(anatomy.aliases, str)
        self.anatomy, self.masks, self.sources, self.units, self.draw = anatomy, masks, sources, units, draw
        self.generator = torch.Generator().manual_seed(seed + draw)
        self.columns: dict[int, Tensor] = {}
        self.problems: list[str] = []
        self.lost = False

    def before(self, product: Product) -> Tensor:
        x: Tensor = product.args[product.at]
        base = self.anatomy.trace.products.get(product.number)
        if (
            self.lost
            or base is None
            or base.x is None
            or base.x.shape != x.shape
            or base.weight.name != product.weight.name
        ):
            if not self.lost:
                self.problems.append("the model takes another way through its code when the units change")
            self.lost = True
            return x
        changed = ~((x == base.x) | (x.isnan() & base.x.isnan()))
        if not bool(changed.any()):
            return x
        columns = product.columns(changed)
        if self.draw == _ABLATION:
            constant = _constant(*product.range(x), x)
            self.columns[product.number] = columns & constant
            return base.x.clone()
        constant = _constant(*product.range(base.x), base.x)
        mixed = columns & ~constant
        if mixed.any():
            name = product.where or product.weight.name
            self.problems.append(
                f"'{name}' reads them mixed with other values (in {int(mixed.sum())} of the {mixed.numel()} columns of "
                f"'{product.weight.name}')"
            )
        self.columns[product.number] = columns & constant
        return base.x.clone()

    def after(self, product: Product, out: Tensor) -> Tensor:
        rows = self.sources.get(product.number)
        if rows is None or not rows.any() or self.draw == _ABLATION:
            return out
        return self._disturbed(out, rows[product.row_numbers(out)])

    def after_norm(self, norm: Norm, out: Tensor) -> None:
        own = norm.weight or norm.bias
        if own is None or self.draw == _ABLATION:
            return
        numbers = norm.numbers(out)
        for alias in (norm.weight, norm.bias):
            mask = self.masks.get(alias.name) if alias is not None else None
            if mask is not None and mask.any():
                out.copy_(self._disturbed(out, mask[numbers]))
                return

    def look(self, found: Found, x: Tensor) -> Any:
        chosen = self.units.get(self.anatomy.site_name(found))
        if chosen is None or not len(chosen):
            return None

        def finish(out: Tensor) -> None:
            if out.shape != x.shape:
                return
            self.quiet = True
            numbers = units_of(found.plan, out.shape, out.device)
            mask = torch.zeros(found.plan.n_units, dtype=torch.bool, device=out.device)
            mask[torch.as_tensor(chosen, device=out.device)] = True
            mask = mask[numbers]
            out.copy_(out.masked_fill(mask, 0) if self.draw == _ABLATION else self._disturbed(out, mask))
            self.quiet = False

        return finish

    def _disturbed(self, t: Tensor, where: Tensor) -> Tensor:
        scale = t.abs().amax().nan_to_num(1.0).clamp(max=1e4) + 1
        noise = torch.randn(t.shape, generator=self.generator, dtype=torch.float32).to(t.device, t.dtype)
        noise = (noise.abs() * 10, noise, -noise.abs() * 10)[self.draw] * scale
        return torch.where(where, noise, t)


class _Measuring(Trace):
    """A pass as it is, for the range of columns that are to be cut."""

    def __init__(self, anatomy: Anatomy, zero: dict[str, Tensor]) -> None:
        super().__init__(anatomy.aliases, str)
        self.zero = zero
        self.found: list[tuple[Product, Tensor, Tensor, Tensor, Tensor]] = []  # columns, lowest, highest, mean

    def before(self, product: Product) -> Tensor:
        x: Tensor = product.args[product.at]
        mask = self.zero.get(product.weight.name)
        if mask is not None:
            columns = product.touching(mask[product.weight.index])
            if columns.any():
                low, high = product.range(x)
                self.found.append((product, columns, low, high, product.mean(x)))
        return x

    def after(self, product: Product, out: Tensor) -> Tensor:
        product.let_go()
        return out


def _corrections(anatomy: Anatomy, zero: dict[str, Tensor], cut: Cut, exclusive: bool) -> None:
    """Is what the entries to be zeroed contribute constant on all batches, and which bias can take it over?"""
    contributions: dict[str, list[tuple[Product, Tensor]]] = {name: [] for name in zero}
    constants: dict[int, tuple[Tensor, Tensor]] = {}
    means: dict[int, list[Tensor]] = {}
    last: dict[int, tuple[Product, Tensor]] = {}
    for batch in range(len(anatomy.calls)):
        measured = _Measuring(anatomy, zero)
        anatomy.run(batch, measured)
        for product, columns, low, high, mean in measured.found:
            means.setdefault(product.number, []).append(mean)
            if product.number in constants:
                was = constants[product.number]
                low, high = torch.minimum(low, was[0]), torch.maximum(high, was[1])
            constants[product.number] = (low, high)
            last[product.number] = (product, columns)
    for number, (product, columns) in last.items():
        low, high = constants[number]
        varying = columns & ~_constant(low, high, torch.maximum(low.abs(), high.abs()))
        name = product.where or product.weight.name
        if varying.any() and not exclusive:
            _say(
                cut,
                f"'{name}' reads values through '{product.weight.name}' that are not constant on the batches (in "
                f"{int(varying.sum())} columns): the units fire, or another use of these weights reads other values",
            )
            continue
        middle = torch.where(varying, torch.stack(means[number]).mean(0), (low + high) / 2)
        values = torch.where(columns, middle, torch.zeros_like(low))
        weight = anatomy.parameter(product.weight.name).detach().reshape(-1)[product.weight.index]
        weight = torch.where(zero[product.weight.name][product.weight.index], weight, torch.zeros_like(weight))
        if not values.any():
            rows = product.rows_of(torch.ones_like(product.weight.index, dtype=torch.bool)).numel()
            contributions[product.weight.name].append((product, torch.zeros(rows, dtype=weight.dtype)))
            continue
        added = product.contribution(weight, columns, values.to(weight.dtype))
        if added is None:
            _say(
                cut,
                f"'{name}' reads the units as a constant other than 0 with zeros around it (padding or stride), so "
                "that no bias can take over what they contribute",
            )
            continue
        contributions[product.weight.name].append((product, added))
    for name, uses in contributions.items():
        consumer = Consumer(name, zero[name].nonzero().flatten())
        cut.consumers.append(consumer)
        if not any(a.any() for _, a in uses):
            continue
        product, first = next((p, a) for p, a in uses if a.any())
        if any(a.shape != first.shape or not torch.allclose(a, first, rtol=1e-6, atol=0) for _, a in uses):
            _say(
                cut, f"'{name}' is used several times and reads different constants there, for which one bias won't do"
            )
            continue
        bias = anatomy.trace.products[product.number].bias
        if bias is None or any(
            (own := anatomy.trace.products[p.number].bias) is None or own.name != bias.name for p, _ in uses
        ):
            _say(
                cut,
                f"'{product.where or name}' reads the units as a constant other than 0 and has no bias to take over "
                "what they contribute",
            )
            continue
        consumer.bias, consumer.at, consumer.correction = bias.name, bias.index.flatten(), first


def _check_other_uses(anatomy: Anatomy, numbers: Numbers, cut: Cut) -> None:
    for name in numbers:
        for use in anatomy.trace.other_uses.get(name, ()):
            where = f" in '{use.where}'" if use.where else ""
            _say(cut, f"'{name}' is shared: '{use.operation}'{where} reads the same numbers")


def _say(cut: Cut, text: str) -> None:
    if text not in cut.problems:
        cut.problems.append(text)


def plain_mask(anatomy: Anatomy, name: str, numbers: Tensor | None = None) -> Tensor:
    """Entries of a parameter as a flat bool tensor."""
    own = anatomy.parameter(name)
    mask = torch.zeros(own.numel(), dtype=torch.bool, device=own.device)
    if numbers is not None:
        mask[numbers] = True
    return mask


def _constant(low: Tensor, high: Tensor, x: Tensor) -> Tensor:
    eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    size = torch.maximum(low.abs(), high.abs())
    return (high - low <= _ULPS * eps * size) & torch.isfinite(size)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b).all())


def _named(units: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"'{name}'" for name in units)
