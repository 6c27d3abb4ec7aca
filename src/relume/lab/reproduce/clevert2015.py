"""clevert2015: ELU keeps mean activations nearer to zero than ReLU, leaky ReLU and a shifted ReLU, and learns faster.

Clevert, Unterthiner and Hochreiter 2015, "Fast and Accurate Deep Network Learning by Exponential Linear Units (ELUs)",
arXiv 1511.07289, section 4.1: the median over units of their mean
activation, for eight hidden layers of 128 units, SGD with lr 0.01, batches of 64, on MNIST.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from relume.activations import activation
from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.reproduction import Progress, Row, Rows, figure, statement
from relume.lab.reproduce.stack import Stack, evaluate, train
from relume.lab.stats import compare, interval
from relume.lab.verdicts import Claim

TITLE = "Bias shift: ELU keeps mean activations near zero"
SOURCE = "Clevert, Unterthiner and Hochreiter 2015, arXiv 1511.07289"
NAMES = ("relu", "leaky_0.1", "shifted_relu", "elu")
SHOWN = {"relu": "ReLU", "leaky_0.1": "leaky ReLU (0.1)", "shifted_relu": "shifted ReLU max(x, −1)", "elu": "ELU"}
HIDDEN, LR, BATCH, TRAIN = (128,) * 8, 0.01, 64, 1400

KNOWN = (
    "The paper's curves are of MNIST; here the statements are tested on the digits. That ELU is ahead of each of the "
    "other three is read off its figure."
)


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    members = max(3, int((30 if full else 10) * scale))
    epochs = max(2, int((300 if full else 40) * scale))
    seeds = range(seed, seed + members)
    x, y, x_test, y_test = digits(seeds, TRAIN)
    before, during, loss, accuracy = ({name: np.zeros(members) for name in NAMES} for _ in range(4))
    for i, name in enumerate(NAMES):
        progress(i / len(NAMES), f"{SHOWN[name]}: {members} networks")
        stack = Stack(seeds, (1, 8, 8), (), HIDDEN, 10, name)
        shifts: list[Tensor] = []
        optimizer = torch.optim.SGD(stack.parameters(), lr=LR)
        look = _look(stack, x, shifts)
        train(stack, x, y, seeds, optimizer=optimizer, epochs=epochs, batch=BATCH, each_epoch=look)
        before[name] = shifts[0].numpy()
        during[name] = torch.stack(shifts[1:]).mean(0).numpy()
        loss[name] = evaluate(stack, x, y)[0].double().numpy()
        accuracy[name] = evaluate(stack, x_test, y_test)[1].numpy()
    ran = (
        f"scikit-learn digits, {TRAIN} of 1797 images to train on, standardized; {len(HIDDEN)} hidden layers of "
        f"{HIDDEN[0]} units, He-normal weights, SGD with lr {LR}, batches of {BATCH}, {epochs} epochs; {members} "
        "seeds, each with its own split, weights and batch order, the same for all activations."
    )
    rows = _means()
    for stage, shift in (("before training", before), ("during training", during)):
        for other in ("relu", "leaky_0.1", "shifted_relu"):
            claim = Claim(
                "bias-shift", f"ELU's mean activations are nearer to zero than those of {SHOWN[other]}.", SOURCE,
                f"|median over units of the mean activation| {stage}, {SHOWN[other]} less ELU",
            )  # fmt: skip
            rows.append(statement(claim, compare(shift[other], shift["elu"]).difference, ran))
    for other in ("relu", "leaky_0.1", "shifted_relu"):
        claim = Claim(
            "faster", f"ELU's training loss falls faster than that of {SHOWN[other]}.", SOURCE,
            f"training loss after {epochs} epochs, {SHOWN[other]} less ELU",
        )  # fmt: skip
        rows.append(statement(claim, compare(loss[other], loss["elu"]).difference, ran))
    notes = [
        f"{SHOWN[n]}: |median of mean activations| {interval(before[n], 'mean')} before and "
        f"{interval(during[n], 'mean')} during training, final training loss {interval(loss[n], 'mean')}, "
        f"test accuracy {interval(accuracy[n], 'mean')}."
        for n in NAMES
    ]
    return tuple(rows), ran, (KNOWN, *notes)


def _means() -> list[Row]:
    """The shift that an activation makes by itself, of a standard normal pre-activation: by Monte Carlo and known."""
    z = np.random.default_rng(0).standard_normal(400_000)
    rows = []
    for name, outputs in (("relu", np.maximum(z, 0)), ("elu", np.where(z > 0, z, np.expm1(np.minimum(z, 0))))):
        exact = activation(name).mean
        assert exact is not None
        ours = interval(outputs, "mean")
        rows.append(figure(f"mean of {SHOWN[name]} under N(0, 1)", exact, f"theory: {exact:.4f}", ours))
    return rows


def _look(stack: Stack, x: Tensor, shifts: list[Tensor]) -> Callable[[int], None]:
    """Called each epoch: appends |median over all hidden units of their mean activation|, [members]."""

    @torch.no_grad()
    def look(epoch: int) -> None:
        kept: list[Tensor] = []
        stack(x[:, :512], kept)
        means = torch.cat([h.mean((1, 3)) for h in kept], 1)
        shifts.append(means.median(1).values.abs().double())

    return look
