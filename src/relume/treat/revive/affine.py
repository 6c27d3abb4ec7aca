"""A unit's pre-activation scaled and shifted by the entries that make it: the last norm's, or weights and bias."""

from __future__ import annotations

import torch
from torch import Tensor

from relume.errors import RelumeError
from relume.treat.revive.context import Patient, Unit, Write


def scaled_and_shifted(patient: Patient, unit: Unit, scale: float, shift: float) -> list[Write]:
    """Writes by which z becomes scale · z + shift.

    Behind a norm its scale γ and shift β do it, exactly. Else the weights and bias do; of a layer without a bias the
    weights move along its mean input, which shifts the mean of z by `shift` and each z by nearly that.

    Raises:
        RelumeError: there is nothing by which to shift: no bias, and a mean input of 0.
    """
    if unit.shifts:
        name, number = unit.shifts[-1]
        one = torch.tensor([number])
        writes = [Write(name, one, patient.of(name, one) * scale + shift)]
        if scale != 1 and unit.scales:
            name, number = unit.scales[-1]
            writes.append(Write(name, one, patient.of(name, one) * scale))
        return writes
    writes = []
    values = {name: (numbers.cpu(), patient.of(name, numbers) * scale) for name, numbers in unit.weights.items()}
    for name, numbers in unit.biases.items():
        writes.append(Write(name, numbers.cpu(), patient.of(name, numbers) * scale))
    if unit.biases:
        writes[-1].values[-1] += shift
        if scale == 1:
            return writes
    elif shift:
        name, moved = _along_the_mean(patient, unit)
        numbers, old = values[name]
        values[name] = (numbers, old + shift * moved)
    return [*writes, *(Write(name, n, v) for name, (n, v) in values.items())]


def _along_the_mean(patient: Patient, unit: Unit) -> tuple[str, Tensor]:
    """The change of a unit's weights, in the order of their numbers, that shifts its mean pre-activation by 1."""
    call, row = unit.made.rows[-1]
    product = patient.anatomy.trace.products[call]
    mean = mean_input(patient, call, row)
    size = mean.square().sum()
    if not size > 0:
        raise RelumeError(
            f"unit {unit.number} of '{unit.site}' can't be shifted: '{product.where}' has no bias, and its mean input "
            "is 0. Use method='redo'"
        )
    name = product.weight.name
    wanted = torch.zeros(product.rows_of(torch.ones_like(product.weight.index, dtype=torch.bool)).numel()).bool()
    wanted[row] = True
    at = product.rows_to_weight(wanted.to(product.weight.index.device))
    numbers = product.weight.index[at].cpu()
    order = torch.argsort(numbers)
    if not torch.equal(numbers[order], unit.weights[name].cpu()):
        raise RelumeError(f"unit {unit.number} of '{unit.site}' can't be shifted: its weights are used more than once")
    return name, (mean / size)[order]


def mean_input(patient: Patient, call: int, row: int) -> Tensor:
    """float64: for each weight of a row, in the order of the weight's elements, the mean of what it multiplies."""
    product = patient.anatomy.trace.products[call]
    assert product.x is not None
    x = product.x.double()
    if product.convolves:
        if product.transposed:
            raise RelumeError(f"'{product.where}' is a transposed convolution without a bias: use method='redo'")
        means = x.mean([i for i in range(x.dim()) if i != x.dim() - product.weight.index.dim() + 1])
        per_group = product.weight.index.shape[1]
        group = row // (product.weight.index.shape[0] // product.groups)
        kernel = product.weight.index[0, 0].numel()
        return means[group * per_group : (group + 1) * per_group].repeat_interleave(kernel).cpu()
    if product.weight.index.dim() > 2 or x.dim() < 2:
        raise RelumeError(f"'{product.where}' has weights that relume can't shift a unit by: use method='redo'")
    return (x.mean(0) if product.left else x.mean(1)).cpu()
