"""lu2019: deep narrow ReLU networks are born dead, He's initialization against RAI.

Lu, Shin, Su and Karniadakis 2019, "Dying ReLU and Initialization: Theory and Numerical Examples", arXiv 1903.06733.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from relume.init import born_dead_probability, simulate_born_dead
from relume.init.rai import asymmetric
from relume.lab.reproduce.reproduction import Progress, Row, Rows, figure, statement
from relume.lab.stats import Interval, difference_of_proportions, proportion, simultaneous
from relume.lab.stats.needs import stats
from relume.lab.verdicts import Claim

TITLE = "Deep narrow ReLU networks are born dead"
SOURCE = "Lu, Shin, Su and Karniadakis 2019, arXiv 1903.06733"
WIDTHS, DEPTHS = (2, 3, 4, 5, 8), (2, 5, 10, 20, 50)
CHUNK = 4000
COLLAPSED = 1e-3  # a trained network whose output moves by less than this over [−√3, √3] fits a constant


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    nets = int((100_000 if full else 8_000) * scale)
    trained = int((2_000 if full else 400) * scale)
    steps = int((20_000 if full else 2_000) * scale)
    generator = torch.Generator().manual_seed(seed)
    cells = [(n, depth) for n in WIDTHS for depth in DEPTHS]
    level = simultaneous(0.95, len(cells))
    rows: list[Row] = []
    for i, (n, depth) in enumerate(cells):
        progress(0.5 * i / len(cells), f"{nets:,} networks of width {n}, depth {depth}")
        theory = float(born_dead_probability([n] * depth))
        ours = proportion(_dead([n] * depth, "he", nets, generator), nets, confidence=level)
        rows.append(figure(f"born dead, width {n}, depth {depth}, He", theory, f"theory: {theory:.3g}", ours))
    for depth in (10, 20):
        hits = [_dead([2] * depth, method, nets, generator) for method in ("he", "rai")]
        rows += _rai_rows(depth, hits[0], hits[1], nets)
    collapsed: dict[str, int] = {}
    for part, method in enumerate(("he", "rai")):
        progress(0.6 + 0.2 * part, f"training {trained:,} networks on |x| ({method})")
        collapsed[method] = int(collapses(trained, method, steps, generator).sum())
    he, rai = (proportion(collapsed[m], trained) for m in ("he", "rai"))
    rows.append(
        statement(
            Claim("collapse", "More than 90 % of ReLU networks of depth 10 and width 2 collapse when they fit |x|.",
                  SOURCE, "share of networks constant after training on |x|, He, less 0.9"),
            he.map(lambda p: p - 0.9), f"{trained} networks", same_setting=True,
        )
    )  # fmt: skip
    rows.append(
        statement(
            Claim("collapse-rai", "RAI makes fewer of them collapse.", SOURCE,
                  "share constant after training on |x|, He less RAI"),
            difference_of_proportions(he, rai), f"{trained} networks each", same_setting=True,
        )
    )  # fmt: skip
    ran = (
        f"{nets:,} random networks per cell, one-dimensional input, zero biases; a network is born dead when it gives "
        f"the same at 65 points of [−√3, √3]. Trained: {trained} networks of 10 hidden layers of width 2, {steps:,} "
        "steps of Adam (lr 0.001) on |x| at 128 points, all He or all RAI; collapsed: the output moves by less than "
        f"{COLLAPSED} over the points."
    )
    notes = (
        "Theory: P(both rays of the input die), followed as a chain of the angle between what the two rays feed a "
        "layer (relume.init.born_dead_probability). A chain of how many units are alive on each ray is not exact: how "
        "likely a unit is silent on both rays depends on that angle.",
        f"The {len(cells)} intervals of the table hold all at once with 95 %.",
        "That RAI halves the share is the effect as commonly cited; the test allows a factor from 0.4 to 0.6.",
        f"Shares that collapsed: He {he}, RAI {rai}.",
    )
    return tuple(rows), ran, notes


def _dead(widths: list[int], method: str, nets: int, generator: torch.Generator) -> int:
    """How many of so many random networks are born dead; in chunks, for memory."""
    hits = 0
    for start in range(0, nets, CHUNK):
        size = min(CHUNK, nets - start)
        share = simulate_born_dead(widths, method, nets=size, first="rai", generator=generator)
        hits += round(share * size)
    return hits


def _rai_rows(depth: int, he: int, rai: int, nets: int) -> list[Row]:
    first, second = proportion(he, nets), proportion(rai, nets)
    ran = f"{nets:,} networks each, width 2, depth {depth}"
    return [
        statement(
            Claim("rai", "RAI makes fewer networks born dead than He's initialization.", SOURCE,
                  f"share born dead, width 2, depth {depth}, He less RAI"),
            difference_of_proportions(first, second), ran, same_setting=True,
        ),
        statement(
            Claim("rai-half", "RAI about halves the share of networks born dead.", SOURCE,
                  f"share born dead, width 2, depth {depth}, RAI by He, less 0.5", "same", 0.1),
            ratio(rai, he, nets).map(lambda r: r - 0.5), ran, same_setting=True,
        ),
    ]  # fmt: skip


def ratio(hits: int, other: int, trials: int, confidence: float = 0.95) -> Interval:
    """Ratio of two shares of so many trials each: by logarithms (Katz et al. 1978), a half added to empty counts."""
    a, b = (max(h, 0.5) for h in (hits, other))
    error = math.sqrt(max(1 / a - 1 / trials + 1 / b - 1 / trials, 0.0))
    z = float(stats().norm.ppf((1 + confidence) / 2))
    centre = math.log(a / b)
    low, high = (math.exp(centre + sign * z * error) for sign in (-1, 1))
    return Interval(a / b, low, high, confidence, "katz", trials)


def collapses(nets: int, method: str, steps: int, generator: torch.Generator, depth: int = 10) -> Tensor:
    """bool [nets]: which networks of width 2 are constant after training on |x|."""
    x = torch.linspace(-math.sqrt(3), math.sqrt(3), 128).expand(nets, 1, 128)
    weights, biases = _drawn(nets, [1] + [2] * depth + [1], method, generator)
    optimizer = torch.optim.Adam([*weights, *biases], lr=1e-3)
    for _ in range(steps):
        loss = (_fit(weights, biases, x) - x.abs()).square().mean((1, 2)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        y = _fit(weights, biases, x)[:, 0]
    return y.amax(1) - y.amin(1) < COLLAPSED


def _fit(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> Tensor:
    h = x
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h = torch.baddbmm(bias, weight, h).relu()
    return torch.baddbmm(biases[-1], weights[-1], h)


def _drawn(nets: int, widths: list[int], method: str, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for i, (n_in, n) in enumerate(itertools.pairwise(widths)):
        if method == "he" or i == len(widths) - 2:  # the last layer is linear and drawn alike
            weight = torch.randn(nets, n, n_in, generator=generator) * math.sqrt(2 / n_in)
            bias = torch.zeros(nets, n, 1)
        else:
            drawn = asymmetric(nets * n, n_in, n_in + 1, generator, weights[0] if weights else torch.empty(0))
            drawn = drawn.detach().view(nets, n, n_in + 1)
            weight, bias = drawn[:, :, :n_in].contiguous(), drawn[:, :, n_in:].contiguous()
        weights.append(weight.requires_grad_())
        biases.append(bias.requires_grad_())
    return weights, biases
