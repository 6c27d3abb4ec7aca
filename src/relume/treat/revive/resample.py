"""`resample`: incoming weights towards inputs that the model serves badly.

The recipe of Anthropic for sparse autoencoders (Bricken et al. 2023, "Towards Monosemanticity", appendix "Neuron
Resampling"), in general form. As published: an input is chosen with a probability in proportion to its squared loss;
the unit's incoming weights become that input, at 0.2 of the mean norm of the incoming weights of units that live; bias
0; optimizer state of these entries reset. There the unit's decoder row becomes the same direction at length 1, which
changes the function: `decoder=True` does that, with preserve=False. Otherwise the outgoing weights are zero.
Deviations: any producer, not only an encoder; of a convolution the input is a patch of one input at a random place;
behind a batch norm, where the length of weights means nothing, scale and shift go back to 1 and 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relume.errors import BatchError, RelumeError
from relume.sites.flow import tensors_in
from relume.treat.revive.context import Patient, Unit, Write
from relume.treat.revive.redo import norms_as_new
from relume.treat.surgery.products import Product

Loss = Callable[[Any, Any], Tensor]


def resample(patient: Patient, *, loss: Loss | None = None, norm: float = 0.2, decoder: bool = False) -> list[Write]:
    """New values of all entries that make the units.

    Args:
        patient: the units; the first batch is drawn from.
        loss: of (the model's output, the batch): float [inputs], not reduced. None: squared error of a model whose
            output has its input's shape (an autoencoder).
        norm: length of the new weights, by the mean length of living units' at the site.
        decoder: give the outgoing weights the same direction, at length 1; only where a linear layer reads the units
            straight and writes what their producer reads. Changes the function.

    Raises:
        RelumeError: without batches, without a loss where one is needed, or behind weights that relume can't take
            apart so.
    """
    if not patient.data_known:
        raise RelumeError("method='resample' draws from inputs: pass batches=")
    weights = _losses(patient, loss).double().square().cpu()
    if not bool(weights.isfinite().all()) or float(weights.sum()) <= 0:
        raise RelumeError("method='resample' needs finite losses that are not all 0")
    writes = norms_as_new(patient)
    drawn = torch.multinomial(
        weights, len(patient.units), replacement=len(patient.units) > int((weights > 0).sum()),
        generator=patient.generator,
    )  # fmt: skip
    for unit, which in zip(patient.units, drawn.tolist(), strict=True):
        writes += _towards(patient, unit, which, len(weights), norm, decoder)
    return writes


def _losses(patient: Patient, loss: Loss | None) -> Tensor:
    anatomy = patient.anatomy
    args, kwargs = anatomy.calls[0]
    given = next(tensors_in((args, kwargs)))
    output = anatomy.output_of(0)
    if loss is not None:
        with torch.no_grad():
            found = loss(output, anatomy.given[0])
        if not isinstance(found, Tensor) or found.dim() != 1:
            raise BatchError("loss= returns one number for each input, a tensor of shape [inputs]")
        return found
    out = next(tensors_in(output))
    if out.shape != given.shape or not given.is_floating_point():
        raise RelumeError(
            "method='resample' needs the loss of each input: pass loss=, a function of (output, batch) that returns "
            "[inputs], such as lambda out, batch: F.cross_entropy(out, batch[1], reduction='none')"
        )
    return (out - given).square().flatten(1).mean(1)


def _towards(patient: Patient, unit: Unit, which: int, inputs: int, norm: float, decoder: bool) -> list[Write]:
    if len(unit.made.rows) != 1:
        raise RelumeError(
            f"unit {unit.number} of '{unit.site}' is made by {len(unit.made.rows)} products: method='resample' takes "
            "those with one. Use method='redo'"
        )
    call, row = unit.made.rows[0]
    product = patient.anatomy.trace.products[call]
    patch = _patch(patient, product, row, which, inputs)
    direction = patch / patch.norm().clamp(min=1e-30)
    length = norm * _living_norm(patient, unit, product)
    numbers = product.weight.index[product.rows_to_weight(_one(product, row))].cpu()
    writes = [Write(product.weight.name, numbers, direction * length)]
    writes += [Write(name, n, torch.zeros(n.numel())) for name, n in unit.biases.items()]
    if decoder:
        writes.append(_decoded(patient, unit, direction))
    return writes


def _one(product: Product, row: int) -> Tensor:
    rows = product.rows_of(torch.ones_like(product.weight.index, dtype=torch.bool))
    chosen = torch.zeros_like(rows)
    chosen[row] = True
    return chosen


def _patch(patient: Patient, product: Product, row: int, which: int, inputs: int) -> Tensor:
    """float64: what a row multiplied for one input, at a random place."""
    assert product.x is not None
    x = product.x.double().cpu()

    def anywhere(n: int) -> int:
        return int(torch.randint(n, (), generator=patient.generator))

    if not product.convolves:
        if product.weight.index.dim() != 2 or x.dim() != 2:
            raise RelumeError(f"method='resample' can't take '{product.where}' apart: use method='redo'")
        rows = x if product.left else x.t()
        each, odd = divmod(len(rows), inputs)
        return rows[which * each + anywhere(each)] if each and not odd else rows[anywhere(len(rows))]
    if product.transposed or len(x) != inputs:
        raise RelumeError(f"method='resample' can't take '{product.where}' apart: use method='redo'")
    _, _, _, _, padding, dilation = product.args[:6]
    padded = F.pad(x[which], [p for p in reversed(padding) for _ in range(2)])
    out_channels, per_group, *kernel = product.weight.index.shape
    group = row // (out_channels // product.groups)
    patch = padded[group * per_group : (group + 1) * per_group]
    for axis, (size, step) in enumerate(zip(kernel, dilation, strict=True), start=1):
        start = anywhere(patch.shape[axis] - (size - 1) * step)
        patch = patch.index_select(axis, torch.arange(start, start + (size - 1) * step + 1, step))
    return patch.flatten()


def _living_norm(patient: Patient, unit: Unit, product: Product) -> float:
    """Mean length of the incoming weights of the site's units that say something; of all rows where none does."""
    seen = patient.anatomy.sites[unit.site]
    weight = product.by_row(patient.anatomy.parameter(product.weight.name).detach().reshape(-1)[product.weight.index])
    lengths = weight.double().flatten(1).norm(dim=1).cpu()
    call = unit.made.rows[0][0]
    living = [
        r for made, varies in zip(seen.made, seen.varies, strict=True) if varies for c, r in made.rows if c == call
    ]
    return float((lengths[living] if living else lengths).mean())


def _decoded(patient: Patient, unit: Unit, direction: Tensor) -> Write:
    for call, columns, units in patient.anatomy.columns(unit.site):
        product = patient.anatomy.trace.products[call]
        mine = columns[units == unit.number]
        if len(mine) != 1 or product.convolves or product.weight.index.dim() != 2:
            continue
        chosen = torch.zeros(product.weight.index.shape[0 if product.left else 1], dtype=torch.bool)
        chosen[mine] = True
        numbers = product.weight.index[product.mask_of(chosen.to(product.weight.index.device))].cpu()
        if len(numbers) == len(direction):
            return Write(product.weight.name, numbers, direction)
    raise RelumeError(
        f"decoder=True: no linear layer reads unit {unit.number} of '{unit.site}' and writes what its producer reads"
    )
