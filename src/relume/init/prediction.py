"""`check`: what a model's initialization will do to signal, gradients and units, before the first step of training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from relume.census import Phase, SiteCensus
from relume.census.table import WIDTH, cut, percent, plain_text
from relume.errors import RelumeError
from relume.init.advice import advice
from relume.init.born_dead import BornDead, born_dead_probability
from relume.init.draws import draw
from relume.init.layers import Layer, checked, find
from relume.init.passes import Call, calls, in_phase, run, seen, with_gradients
from relume.sites import Found
from relume.sites.flow import tensors_in
from relume.watch.once import census

_REDRAWS = 4  # of a layer, for the expected share of dead units
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class SitePrediction:
    """What one site sees of the batch, at initialization.

    Attributes:
        name, activation, units, inputs: of the site.
        mean: of the pre-activation, over units, inputs and positions.
        second_moment: E z² over all of them: what forward gains keep.
        variance: mean over units of the variance over the data: what tells inputs apart.
        likeness: mean cosine between the pre-activations of two inputs: at 1 the site can tell them apart only by
            size; None where the axis that counts inputs is unknown, or there is one input.
        growth: second moment divided by that of the site before; None at the first.
        gradient: mean squared gradient with respect to the pre-activation; None when it could not be had.
        gradient_growth: gradient divided by that of the site after (backward it goes from there to here).
        dead: units that fire on no input of the batch; 0 where the activation has no flat zone.
        death_bound: 95 % bound for the chance that one such unit fires on a fresh input (see `SiteCensus`); None when
            there is none.
        expected_dead: share of units expected to be dead on this batch if this layer's weights were drawn anew,
            normal with the same deviation; None behind normalization, sums, or activations without a flat zone.
    """

    name: str
    activation: str
    units: int
    inputs: int
    mean: float
    second_moment: float
    variance: float
    likeness: float | None
    growth: float | None
    gradient: float | None
    gradient_growth: float | None
    dead: int
    death_bound: float | None
    expected_dead: float | None

    @property
    def silent(self) -> bool:
        """Are all its units dead?"""
        return self.units > 0 and self.dead == self.units


@dataclass(frozen=True)
class Prediction:
    """What is to be expected of a model as it is initialized now.

    Attributes:
        model: class name.
        phase: mode it was run in.
        sites: in forward order.
        born_dead: chance that a network of these widths is born dead, for plain ReLU networks with zero biases; else
            None.
        born_dead_upper: bound that holds for data on one side of zero too, and for any number of input dimensions.
        about_born_dead: what it rests on, or why there is none.
        advice: sentences for a person, the gravest first.
        notes: what could not be done.
    """

    model: str
    phase: Phase
    sites: tuple[SitePrediction, ...]
    born_dead: BornDead | None
    born_dead_upper: float | None
    about_born_dead: str
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> SitePrediction:
        """By the site's name.

        Raises:
            KeyError: there is no such site.
        """
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"there is no site {name!r}; sites: {', '.join(s.name for s in self.sites[:20])}")

    @property
    def dead(self) -> int:
        """Units of all sites that are dead on the batch."""
        return sum(s.dead for s in self.sites)

    @property
    def units(self) -> int:
        return sum(s.units for s in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: numbers that are not finite are None."""
        return {
            "model": self.model,
            "phase": self.phase,
            "units": self.units,
            "dead": self.dead,
            "sites": {s.name: {k: _plain(v) for k, v in asdict(s).items()} for s in self.sites},
            "born_dead": None if self.born_dead is None else self.born_dead.to_dict(),
            "born_dead_upper": self.born_dead_upper,
            "about_born_dead": self.about_born_dead,
            "advice": list(self.advice),
            "notes": list(self.notes),
        }

    def __rich__(self) -> Table:
        foot = [*self.advice, self.about_born_dead, *self.notes]
        table = Table(
            title=Text(
                f"{self.model} at initialization · {self.phase} · {self.dead} of {self.units} units dead", "bold"
            ),
            caption=Text("\n".join(foot)),
            title_justify="left",
            caption_justify="left",
            box=None,
            pad_edge=False,
            width=WIDTH,
            header_style="dim",
        )
        table.add_column("site", no_wrap=True, ratio=1)
        for name in ("units", "E z²", "×", "alike", "grad²", "×", "dead", "expected"):
            table.add_column(name, justify="right", no_wrap=True)
        for s in self.sites:
            table.add_row(
                Text(cut(s.name, 22)),
                str(s.units),
                *(_shown(v) for v in (s.second_moment, s.growth, s.likeness, s.gradient, s.gradient_growth)),
                f"{s.dead}{' !' if s.silent else ''}",
                "" if s.expected_dead is None else percent(s.expected_dead),
            )
        return table

    def __str__(self) -> str:
        return plain_text(self.__rich__())

    def __repr__(self) -> str:
        return f"Prediction({self.model}, {len(self.sites)} sites, {self.dead} of {self.units} units dead)"


def check(model: nn.Module, batch: Any, *, loss: Loss | None = None, phase: Phase = "train") -> Prediction:
    """Say before training what the initialization does: variance and gradients per site, units dead at birth.

    Runs the model forward and backward once and leaves it as it was: parameters, their `.grad`, buffers, mode, random
    state. A few hundred inputs are enough; the more, the tighter the bound on units that never fire.

    Args:
        model: any module that applies an activation relume knows.
        batch: one batch, as `relume.census` takes them.
        loss: called with the model's output and the batch, gives a scalar; the gradients are then the loss's. None: of
            a random linear function of the output, each entry weighted by N(0, 1); then only their ratios matter.
        phase: mode the model is run in.

    Returns:
        Prediction: printable, `.to_dict()`, `.advice`.

    Raises:
        NoSitesError: the model applies no activation that relume knows.
        BatchError: the batch does not fit, is empty, or holds NaN.
        RelumeError: a lazy, meta or distributed parameter; `loss` gives no scalar.

    Source: born dead: Lu et al. 2019, arXiv 1903.06733. Variances: He et al. 2015, arXiv 1502.01852.

    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> from relume.init import he_
    >>> _ = he_(net)
    >>> round(check(net, torch.linspace(-1, 1, 64)[:, None]).born_dead.probability, 3)
    0.156
    """
    model = checked(model, "check")
    [call] = calls(model, [batch])
    counted = census(model, [batch], phase=phase, min_inputs=1)
    notes: list[str] = list(counted.notes)
    gradients, likeness, found = _pass(model, call, batch, loss, phase, notes)
    layers = {layer.name: layer for layer in _layers(model)}
    expected = _expected(model, call, layers, found, phase)
    born, upper, about = _born_dead(model, call, layers, found)
    sites = tuple(_sites([counted[name] for name in counted], gradients, likeness, expected))
    said = advice(sites, born, upper)
    return Prediction(type(model).__name__, phase, sites, born, upper, about, said, tuple(notes))


def _sites(
    members: list[SiteCensus], gradients: dict[str, float], likeness: dict[str, float], expected: dict[str, float]
) -> Iterator[SitePrediction]:
    seconds = [float((m.mean.square() + m.std.square()).mean()) for m in members]
    grads = [gradients.get(m.name) for m in members]
    for i, m in enumerate(members):
        here, after = grads[i], grads[i + 1] if i + 1 < len(members) else None
        bad = bool(m.nonfinite.any())
        bounds = m.death_bound()
        yield SitePrediction(
            name=m.name,
            activation=m.site.activation,
            units=m.units,
            inputs=m.inputs,
            mean=math.nan if bad else float(m.mean.mean()),
            second_moment=math.nan if bad else seconds[i],
            variance=math.nan if bad else float(m.std.square().mean()),
            likeness=likeness.get(m.name),
            growth=None if i == 0 else _ratio(seconds[i], seconds[i - 1]),
            gradient=here,
            gradient_growth=None if here is None or after is None else _ratio(here, after),
            dead=int((m.dead | m.stuck_at_top).sum()),
            death_bound=float(bounds[m.dead][0]) if bool(m.dead.any()) else None,
            expected_dead=expected.get(m.name),
        )


def _pass(
    model: nn.Module, call: Call, batch: Any, loss: Loss | None, phase: Phase, notes: list[str]
) -> tuple[dict[str, float], dict[str, float], list[Found]]:
    """By site: mean squared gradient with respect to the pre-activation, and how alike inputs are; and the sites."""
    squares: dict[str, tuple[float, int]] = {}
    likeness: dict[str, float] = {}

    def meter(found: Found, x: Tensor) -> None:
        name = found.site.name

        def keep(gradient: Tensor) -> None:
            total, n = squares.get(name, (0.0, 0))
            squares[name] = total + float(gradient.detach().double().square().sum()), n + gradient.numel()

        alike = _cosine(found, x.detach())
        if alike is not None:
            likeness[name] = alike
        if x.requires_grad:
            x.register_hook(keep)

    weights = [p for p in model.parameters() if p.requires_grad]
    with with_gradients(model, phase):
        tracker, output = seen(model, call, meter)
        found = list(tracker.found.values())
        try:
            if loss is not None:
                value = loss(output, batch)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    raise RelumeError(f"loss must give a tensor with one number, not {_described(value)}")
                outputs, cotangents = [value.reshape(())], [torch.ones((), dtype=value.dtype, device=value.device)]
            else:
                outputs = [t for t in tensors_in(output) if t.requires_grad]
                cotangents = [torch.randn_like(t) for t in outputs]
            if weights and outputs:
                torch.autograd.grad(outputs, weights, cotangents, allow_unused=True)
            else:
                notes.append("no gradients: no parameter has requires_grad=True, or the output depends on none")
        except RelumeError:
            raise
        except RuntimeError as error:
            notes.append(f"gradients could not be computed: {error}")
    return {name: total / n for name, (total, n) in squares.items() if n}, likeness, found


def _cosine(found: Found, x: Tensor) -> float | None:
    """Mean cosine between two inputs' pre-activations: of n unit vectors u, (n |mean u|² − 1) / (n − 1)."""
    plan = found.plan
    if not plan.inputs_known or plan.n_inputs < 2:
        return None
    y = x if plan.shape is None else x.reshape(plan.shape)
    rows = y.permute(*plan.inputs, *plan.units, *plan.others).reshape(plan.n_inputs, -1).double()
    units = F.normalize(rows)
    return float((len(rows) * units.mean(0).square().sum() - 1) / (len(rows) - 1))


def _layers(model: nn.Module) -> list[Layer]:
    """All layers, frozen ones too; none where there is nothing that relume could initialise."""
    with contextlib.suppress(RelumeError):
        return find(model, frozen=True).layers
    return []


def _expected(
    model: nn.Module, call: Call, layers: dict[str, Layer], found: list[Found], phase: Phase
) -> dict[str, float]:
    """Share of units dead on the batch if a layer's weights were drawn anew, with what it reads as it is."""
    sites: dict[str, Found] = {}
    for f in found:
        alone = len(f.site.producers) == 1 and f.site.producers[0] in layers and not f.site.between
        if alone and f.activation.flat and layers[f.site.producers[0]].kind in ("linear", "conv"):
            sites.setdefault(f.site.producers[0], f)
    shares: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)

    def look(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        f, weight = sites[layer.name], layer.out.read()
        if f.site.name in shares or layer.out.parametrized:
            return
        std = float(weight.double().square().mean().sqrt())
        module: Any = layer.module
        forward = F.linear if layer.kind == "linear" else module._conv_forward
        dead = []
        for _ in range(_REDRAWS):
            new = forward(args[0] if args else kwargs["input"], draw(weight, std, "normal", generator), module.bias)
            flat = f.activation.flat.contains(new.double().movedim(layer.channel_axis(new), -1))
            dead.append(flat.flatten(0, -2).all(0).double().mean())
        shares[f.site.name] = float(torch.stack(dead).mean())

    with in_phase(model, phase):
        run(model, call, [layers[name] for name in sites], look)
    return shares


def _born_dead(
    model: nn.Module, call: Call, layers: dict[str, Layer], found: list[Found]
) -> tuple[BornDead | None, float | None, str]:
    sites = [f.site for f in found]
    why = ""
    if not all(f.activation.is_relu for f in found):
        why = "an activation is not ReLU"
    elif any(len(s.producers) != 1 or s.between or len(s.consumers) > 1 for s in sites):
        why = "there is normalization, a sum or a branch"
    elif not all(s.producers[0] in layers and layers[s.producers[0]].kind == "linear" for s in sites):
        why = "a layer is not fully connected"
    elif len(layers) > len(sites) + 1 or len({s.producers[0] for s in sites}) != len(sites):
        why = "it is no plain sequence of layers"
    elif any(bool(getattr(*b).detach().any()) for s in sites for b in layers[s.producers[0]].biases):
        why = "biases are not zero"
    if why:
        return None, None, f"Chance of being born dead: known for plain ReLU networks with zero biases; here {why}."
    widths = [s.units for s in sites]
    first = next(iter(tensors_in((call.args, call.kwargs))))
    dim = int(layers[sites[0].producers[0]].out.fan_in)
    born = born_dead_probability(widths, dim)
    if dim == 1 and bool((first > 0).any() and (first < 0).any()):
        return born, float(born), f"A network of this shape is {born}."
    chance = "" if born.one_ray > 1e-6 else "negligible, "
    return (
        born,
        born.one_ray,
        f"A network of this shape is born dead with probability at most {born.one_ray:.2g} ({chance}the chance that "
        "one given input's ray dies).",
    )


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 and math.isfinite(a) and math.isfinite(b) else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _described(value: Any) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
