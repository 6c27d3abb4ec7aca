"""`Anatomy`: what a forward pass shows of a model: for each unit the entries that make it, and the passes to try out
what reads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relume.activations import Activation
from relume.errors import EmptyCensusError
from relume.sites import Found, Site, Tracker
from relume.sites.flow import tensors_in
from relume.sites.plan import Plan
from relume.treat.surgery.aliases import Aliases
from relume.treat.surgery.labels import BITS, Label, Labels
from relume.treat.surgery.products import Product
from relume.treat.surgery.trace import Trace
from relume.watch import compiled
from relume.watch.aside import copied
from relume.watch.passes import as_it_was, batches_in, call_with

Numbers = dict[str, Tensor]  # row-major numbers of entries, by name of the parameter

# Called at each site with its description and pre-activation; what it returns is called with the output.
AtSite = Callable[[Found, Tensor], "Callable[[Tensor], None] | None"]


@dataclass(frozen=True)
class Made:
    """What a unit is made by: rows of products and channels of norms, as (number of the call, row or entry)."""

    rows: tuple[tuple[int, int], ...] = ()
    norms: tuple[tuple[int, int], ...] = ()


@dataclass
class SiteSeen:
    """A site as the first pass showed it.

    Attributes:
        number: in the order of the pass.
        made: of each unit; an empty one where it could not be followed.
        varies: of each unit: is its output not the same for all of the first batch?
        size: float64 [units], mean |output| over the first batch.
    """

    site: Site
    activation: Activation
    number: int = 0
    made: list[Made] = field(default_factory=list)
    varies: list[bool] = field(default_factory=list)
    size: Tensor = field(default_factory=lambda: torch.empty(0))

    def firing(self, units: Sequence[int]) -> list[int]:
        """Those of the units whose output is not constant."""
        return [n for n in units if self.varies and self.varies[n]]


class Anatomy:
    """Looks at a model through its forward pass; runs leave the model as it was.

    Args:
        model: not compiled.
        batches: kept; the first shows the structure.
        axis, input_axis: as for `relume.census`.
        owner: the model whose parameters are meant and named, where `model` is a part of it.
        names: of sites, and of modules that make calls, in the owner, by their names in the part.
        held: by site, pre-activations that units are held at, NaN for those that are free; for batches made up.

    Raises:
        EmptyCensusError: there is no batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        axis: Any = None,
        input_axis: int | None = None,
        owner: nn.Module | None = None,
        names: dict[str, str] | None = None,
        held: dict[str, Tensor] | None = None,
    ) -> None:
        self.owner = model if owner is None else owner
        self.names, self.held = names or {}, held or {}
        # Around the model, DDP and DataParallel would broadcast buffers in each pass.
        self._around = ""
        while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model, self._around = model.module, f"{self._around}.module".lstrip(".")
        self.model = model
        given = [batches] if isinstance(batches, Tensor) else list(batches_in(batches))
        if not given:
            raise EmptyCensusError("there is nothing to look at: the batches yielded nothing")
        self.given = given
        self.calls = [call_with(model, batch) for batch in given]
        self.axis, self.input_axis = axis, input_axis
        self.aliases = Aliases(self.owner)
        self.sites: dict[str, SiteSeen] = {}
        labels = Labels()
        trace = self.trace = _Keeping(self.aliases, labels)

        def look(found: Found, x: Tensor) -> Callable[[Tensor], None]:
            trace.quiet = True
            number = len(self.sites)
            seen = self.sites[self.site_name(found)] = SiteSeen(found.site, found.activation, number)
            seen.made = _made(found.plan, x, labels.of(x))
            trace.quiet = False

            def finish(out: Tensor) -> None:
                labels.give(out, Label())
                if out.shape != x.shape:
                    return
                trace.quiet = True
                labels.give(out, Label(units=(units_of(found.plan, x.shape, x.device) + (number << BITS),)))
                flat = _by_unit(found.plan, out.detach())
                seen.varies = (flat.amin(1) != flat.amax(1)).tolist()
                seen.size = flat.abs().double().mean(1).cpu()
                trace.quiet = False

            return finish

        self.outputs = [self.run(0, trace, look)]
        trace.labels = None

    @property
    def made_up(self) -> bool:
        """Are the batches made up, to show the structure alone?"""
        return bool(self.held)

    def site_name(self, found: Found) -> str:
        name = found.site.name
        if self._around:
            return self._around + (name if name.startswith(":") else f".{name}")
        return self.names.get(name, name)

    def _where(self, name: str) -> str:
        return f"{self._around}.{name}".strip(".") if self._around else self.names.get(name, name)

    def run(self, batch: int, trace: Trace, look: AtSite | None = None, *, hold: bool = True) -> list[Tensor]:
        """One forward pass in evaluation; returns the tensors of the output, on the CPU.

        Args:
            batch: number of the batch.
            trace: entered around it.
            look: called at each site.
            hold: hold the units that are to be held.
        """
        args, kwargs = self.calls[batch]

        def meter(found: Found, x: Tensor) -> Any:
            values = self.held.get(self.site_name(found)) if hold else None
            if values is not None:
                trace.quiet = True
                each = values.to(x)[units_of(found.plan, x.shape, x.device)]
                x.copy_(torch.where(each.isnan(), x, each))
                trace.quiet = False
            return look(found, x) if look is not None else None

        tracker = Tracker(self.model, meter, axis=self.axis, input_axis=self.input_axis, keep_fast_path=False)
        trace.where = lambda: self._where(tracker.flow.where)
        output = None

        def begin(module: nn.Module, a: Any, k: Any) -> None:
            tracker.begin(a, k)

        with as_it_was(self.model, "eval"), _unfused():
            handle = self.model.register_forward_pre_hook(begin, with_kwargs=True)
            try:
                with compiled.eager(), trace:
                    output = self.model(*copied(args), **copied(kwargs))
            finally:
                handle.remove()
                tracker.end(output)
        return [t.detach().to("cpu", copy=True) for t in tensors_in(output)]

    def outputs_now(self, *, hold: bool = False) -> list[list[Tensor]]:
        """The output for every batch: by the model's own code alone, unless the batches are made up."""
        if self.made_up:
            return [self.run(i, Trace(self.aliases, str), hold=hold) for i in range(len(self.calls))]
        numbers = range(len(self.calls))
        return [[t.detach().to("cpu", copy=True) for t in tensors_in(self.output_of(n))] for n in numbers]

    def output_of(self, batch: int) -> Any:
        """The model's output for a batch, by its own code alone."""
        args, kwargs = self.calls[batch]
        with as_it_was(self.model, "eval"), compiled.eager():
            return self.model(*copied(args), **copied(kwargs))

    def rows(self, made: Made) -> tuple[Numbers, Numbers, Numbers]:
        """Entries that make a unit: of weights, of biases, and of norms (scale, shift, running statistics)."""
        weights: Numbers = {}
        biases: Numbers = {}
        for call, row in made.rows:
            product = self.trace.products[call]
            wanted = torch.zeros(self._n_rows(call), dtype=torch.bool, device=product.weight.index.device)
            wanted[row] = True
            _add(weights, product.weight.name, product.weight.index[product.rows_to_weight(wanted)])
            if product.bias is not None:
                _add(biases, product.bias.name, product.bias.index.flatten()[wanted])
        norms: Numbers = {}
        for call, entry in made.norms:
            norm = self.trace.norms[call]
            for alias in (norm.weight, norm.bias, norm.mean, norm.var):
                if alias is not None:
                    _add(norms, alias.name, torch.tensor([entry], device=alias.index.device))
        return weights, biases, norms

    def columns(self, site: str) -> list[tuple[int, Tensor, Tensor]]:
        """What reads the units of a site straight: number of the product, columns, and the unit that each says."""
        number, found = self.sites[site].number, []
        for call, product in self.trace.products.items():
            for labels in product.reads:
                flat = labels.flatten()
                at = ((flat >= 0) & (flat >> BITS == number)).nonzero().flatten()
                if at.numel():
                    found.append((call, at, flat[at] & (2**BITS - 1)))
        return found

    def norms_after(self, site: str) -> list[tuple[int, Tensor, Tensor]]:
        """What normalizes the units of a site straight: number of the norm, entries, and the unit that each says."""
        number, found = self.sites[site].number, []
        for call, norm in self.trace.norms.items():
            own = norm.weight or norm.bias or norm.mean
            entries = own.index.flatten().cpu() if own is not None else torch.arange(norm.channels)
            for labels in norm.reads:
                flat = labels.cpu()
                at = ((flat >= 0) & (flat >> BITS == number)).nonzero().flatten()
                if at.numel():
                    found.append((call, entries[at], flat[at] & (2**BITS - 1)))
        return found

    def _n_rows(self, call: int) -> int:
        product = self.trace.products[call]
        return product.rows_of(torch.ones_like(product.weight.index, dtype=torch.bool)).numel()

    def parameter(self, name: str) -> Tensor:
        return self.aliases.tensors[name]


class _Keeping(Trace):
    """Keeps the data of every product."""

    def __init__(self, aliases: Aliases, labels: Labels) -> None:
        super().__init__(aliases, str, labels)

    def before(self, product: Product) -> Tensor:
        x: Tensor = product.args[product.at]
        product.x = x.detach().clone()  # what comes later may write to it
        return x

    def after(self, product: Product, out: Tensor) -> Tensor:
        product.let_go()
        return out


def units_of(plan: Plan, shape: torch.Size, device: torch.device) -> Tensor:
    """For each element of a site's tensor, its unit: int64 of that shape."""
    view = plan.shape if plan.shape is not None else tuple(shape)
    sizes = [view[i] if i in plan.units else 1 for i in range(len(view))]
    return torch.arange(plan.n_units, device=device).view(sizes).expand(view).reshape(shape)


def _by_unit(plan: Plan, x: Tensor) -> Tensor:
    """A site's tensor as [units, samples]."""
    view = plan.shape if plan.shape is not None else tuple(x.shape)
    rest = [i for i in range(len(view)) if i not in plan.units]
    return x.reshape(view).permute(*plan.units, *rest).reshape(plan.n_units, -1)


def _made(plan: Plan, x: Tensor, label: Label | None) -> list[Made]:
    if label is None:
        return [Made()] * plan.n_units

    def per_unit(t: Tensor) -> list[int | None]:
        flat = _by_unit(plan, t.expand(x.shape))
        low, high = flat.amin(1), flat.amax(1)
        return [a if a == b and a >= 0 else None for a, b in zip(low.tolist(), high.tolist(), strict=True)]

    rows, norms = [per_unit(t) for t in label.rows], [per_unit(t) for t in label.norms]

    def split(labels: list[list[int | None]], unit: int) -> tuple[tuple[int, int], ...]:
        return tuple((v >> BITS, v & (2**BITS - 1)) for one in labels if (v := one[unit]) is not None)

    return [Made(split(rows, u), split(norms, u)) for u in range(plan.n_units)]


def _add(into: Numbers, name: str, numbers: Tensor) -> None:
    both = torch.cat([into[name], numbers.flatten()]) if name in into else numbers.flatten()
    into[name] = torch.unique(both)


def merged(groups: Iterable[Numbers]) -> Numbers:
    """All entries of several."""
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        for name, numbers in group.items():
            found.setdefault(name, []).append(numbers)
    return {name: torch.unique(torch.cat(parts)) for name, parts in found.items()}


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Recurrent layers as products that can be seen, not as one kernel."""
    # Not `torch.backends.mkldnn.flags`, which sets more than it is asked to, with a warning.
    was, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was)
        torch._C._set_cudnn_enabled(cudnn)
