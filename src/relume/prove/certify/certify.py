"""`certify(model, lower, upper)`: which units can't fire on any input of a box, which are linear on all of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from relume.activations import Zone
from relume.prove.certify.bound import Bound
from relume.prove.certify.box import checked_box
from relume.prove.certify.certificate import Certificate, SiteCertificate
from relume.prove.certify.passes import Passes, check_weights
from relume.prove.certify.propagate import Method, propagate
from relume.prove.certify.trace import Use
from relume.prove.certify.witness import Claim, Search
from relume.sites import Plan
from relume.watch import arguments, compiled
from relume.watch.passes import as_it_was


def certify(
    model: nn.Module,
    lower: Tensor | float,
    upper: Tensor | float,
    *,
    method: Method = "ibp",
    witnesses: bool = True,
    shape: tuple[int, ...] | None = None,
    axis: int | Mapping[str, int] | None = None,
    input_axis: int = 0,
    samples: int = 1024,
    seed: int = 0,
) -> Certificate:
    """Bound every unit's pre-activation over all inputs of a box, and say which units can't fire on any of them.

    The model is traced in evaluation on the middle of the box and left as it was: weights, buffers, modes, hooks,
    gradients, random state. Bounds hold for the values that the model's own arithmetic computes, rounding included;
    docs/certify.md states the model of rounding.

    Args:
        model: any module that takes one tensor; activations may be modules, functions or methods.
        lower, upper: ends of the box, inclusive: numbers or tensors that broadcast to one input's shape, without the
            batch axis. They are taken in the model's dtype. `relume.prove.box(batches)` finds them from data.
        method: "ibp" propagates intervals; "crown" adds backward linear bounds, which are tighter and take longer, by
            about the number of units that come before the last site.
        witnesses: search the box for inputs on which open units fire, by sampling and gradient ascent.
        shape: one input's shape, where the ends do not have it.
        axis: unit axis, as for `relume.census`.
        input_axis: axis of the model's input that counts inputs.
        samples: points of the box that bounds are held against, and that witnesses are first looked for in; 64 when
            no witness is asked for.
        seed: of the samples.

    Returns:
        Certificate, one SiteCertificate per site in forward order, under the names of a census.

    Raises:
        ValueError: the box is empty, upside down, not finite, or does not fit `shape`.
        UnsupportedOperationError: an operation has no sound bounds here; names it and where it is applied.
        BatchError: the model can't take inputs of that shape.
        NoSitesError: the model applies no activation that relume knows.
        RelumeError: NaN or infinite weights; or a sample contradicts a bound, which then is not certified.

    Source: Gowal et al. 2018, arXiv 1810.12715 (ibp); Zhang et al. 2018, arXiv 1811.00866 (crown).

    >>> layer = nn.Linear(2, 2)
    >>> _ = torch.nn.init.ones_(layer.weight), layer.bias.data.copy_(torch.tensor([0.0, -3.0]))
    >>> certificate = certify(nn.Sequential(layer, nn.ReLU()), torch.zeros(2), torch.ones(2))
    >>> certificate["1"].dead
    tensor([False,  True])
    """
    model = compiled.original(arguments.module(model, "certify"))
    if method not in ("ibp", "crown"):
        raise ValueError(f"method is 'ibp' or 'crown', not {method!r}")
    arguments.positive("samples", samples)
    arguments.axes(axis, input_axis)
    dtype = check_weights(model)
    first = next(model.parameters(), next(model.buffers(), torch.zeros(0)))
    low, high = (end.to(first.device) for end in checked_box(lower, upper, shape, dtype))
    notes = []
    if any(m.training for m in model.modules()):
        notes.append("the model is in training mode; certified is what it computes in evaluation")
    passes = Passes(model, axis, input_axis)
    with as_it_was(model, "eval"):
        middle = torch.clamp(low / 2 + high / 2, low, high)
        centre = middle.cpu()
        graph, _ = passes.graph(middle)
        work = "cpu" if first.device.type == "mps" else first.device  # where there is no float64
        least, largest = (end.unsqueeze(input_axis).double().to(work) for end in (low, high))
        bounds = propagate(graph, least, largest, method)
        found = [_judge(use, bounds, dtype) for use in graph.uses]
        claims = {
            use.found.site.name: Claim(
                use.found, part["lower"], part["upper"], part["dead"],
                wanted=~part["dead"] & bool(use.found.activation.flat),
                score=torch.full_like(part["lower"], -torch.inf),
                best=[centre] * len(part["lower"]),
            )
            for use, part in zip(graph.uses, found, strict=True)
        }  # fmt: skip
        search = Search(passes, low, high, claims, seed)
        search.independent()
        search.check(samples if witnesses else 64)
        if witnesses:
            search.climb()
    if search.unseen:
        notes.append(
            f"inputs can't be told apart at {', '.join(sorted(search.unseen))}: no witness was looked for there"
        )
    if search.not_climbed:
        notes.append(f"no gradient reaches the input from {', '.join(sorted(search.not_climbed))}: sampled only")
    sites = []
    for use, part in zip(graph.uses, found, strict=True):
        claim = claims[use.found.site.name]
        which, rows = _witnesses(claim) if witnesses else (torch.full_like(part["dead"], -1, dtype=torch.long), [])
        held = torch.stack(rows) if rows else centre.new_empty(0, *centre.shape)
        sites.append(SiteCertificate(use.found.site, **part, which=which, witnesses=held))
    return Certificate(tuple(sites), low.cpu(), high.cpu(), method, type(model).__name__, tuple(notes))


def _witnesses(claim: Claim) -> tuple[Tensor, list[Tensor]]:
    """The row of each unit's witness, and the inputs, each once."""
    rows: dict[int, int] = {}
    inputs: list[Tensor] = []
    which = torch.full((len(claim.best),), -1)
    for unit in torch.nonzero(claim.fires).flatten().tolist():
        best = claim.best[unit]
        if id(best) not in rows:
            rows[id(best)] = len(inputs)
            inputs.append(best)
        which[unit] = rows[id(best)]
    return which, inputs


def _judge(use: Use, bounds: list[Bound | None], dtype: torch.dtype) -> dict[str, Tensor]:
    """Bounds and verdicts of one site, per unit."""
    bound = bounds[use.value] if use.value is not None else None
    if bound is not None:
        low, high = bound.lower.cpu(), bound.upper.cpu()
    else:
        assert use.constant is not None
        low = high = use.constant.double().cpu()
    activation, plan = use.found.activation, use.found.plan
    low, high = (_by_unit(v, plan) for v in (low, high))
    least, largest = low.amin(1), high.amax(1)
    dead = (
        _covers(activation.flat, low, high, dtype).all(1)
        if activation.flat
        else torch.zeros(len(low), dtype=torch.bool)
    )
    linear = _covers(activation.linear_zone, least, largest, dtype) & ~dead
    outputs = activation.function(torch.where(torch.isfinite(low), low, high)).to(dtype).double()
    same = (outputs == outputs[:, :1]).all(1)
    value = torch.where(dead & same, outputs[:, 0], torch.nan)
    return {"lower": least, "upper": largest, "dead": dead, "linear": linear, "value": value}


def _by_unit(x: Tensor, plan: Plan) -> Tensor:
    """[units, samples]."""
    z = x if plan.shape is None else x.reshape(plan.shape)
    others = [a for a in range(z.dim()) if a not in plan.units]
    return z.permute(*plan.units, *others).reshape(plan.n_units, -1)


def _covers(zone: Zone, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """Does one interval of the zone hold the whole range, for its ends as given and as rounded to the model's dtype?"""
    covered = torch.zeros(low.shape, dtype=torch.bool)
    for a, b in zone.intervals:
        a_rounded, b_rounded = (float(torch.tensor(e, dtype=torch.float64).to(dtype)) for e in (a, b))
        covered |= (low >= max(a, a_rounded)) & (high <= min(b, b_rounded))
    return covered
