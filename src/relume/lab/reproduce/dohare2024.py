"""dohare2024, in small: backpropagation loses plasticity on a long row of tasks; continual backpropagation keeps it.

Dohare, Hernandez-Garcia, Lan, Rahman, Mahmood and Sutton 2024, "Loss of plasticity in deep continual learning", Nature
632, arXiv 2306.13812: online permuted MNIST, each example seen once, accuracy counted before each update.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.redo import network
from relume.lab.reproduce.reproduction import Progress, Rows, statements
from relume.lab.stats import compare, interval
from relume.treat.revive import Continual
from relume.watch import census

TITLE = "Loss of plasticity, and continual backpropagation"
SOURCE = "Dohare et al. 2024, Nature 632, arXiv 2306.13812"
WIDTHS, LR, BATCH, TRAIN = (64, 64, 64, 64, 10), 0.003, 32, 1400
RATE, MATURITY = 1e-3, 100


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    seeds = range(seed, seed + max(3, int((20 if full else 5) * scale)))
    tasks = max(4, int((800 if full else 120) * scale))
    arms = {"backprop": 0.0, "continual": RATE}
    accuracy = {arm: np.zeros((len(seeds), tasks)) for arm in arms}
    dead = {arm: np.zeros(len(seeds)) for arm in arms}
    for k, one in enumerate(seeds):
        for i, (arm, rate) in enumerate(arms.items()):
            progress((k + 0.2 * i) / len(seeds), f"{arm}, seed {one}")
            accuracy[arm][k], dead[arm][k] = train(one, rate, tasks)
    part = max(1, tasks // 10)
    early = {arm: 100 * a[:, :part].mean(1) for arm, a in accuracy.items()}
    late = {arm: 100 * a[:, -part:].mean(1) for arm, a in accuracy.items()}
    ran = (
        f"scikit-learn digits, {TRAIN} images, each seen once per task, pixels permuted anew for each of {tasks} "
        f"tasks; three hidden layers of {WIDTHS[1]}, Adam with lr {LR}, batches of {BATCH}; accuracy before each "
        f"update; replacement of a fraction {RATE:g} of mature units per step, maturity {MATURITY}, by "
        f"relume.treat.revive.Continual; early and late: first and last {part} tasks; {len(seeds)} seeds."
    )

    row = statements("dohare", SOURCE, ran)
    rows = (
        row("Backpropagation loses plasticity: it learns later tasks worse than early ones.",
            "accuracy in points, early less late, backpropagation",
            compare(early["backprop"], late["backprop"]).difference),
        row("Continual backpropagation keeps its plasticity.",
            "accuracy in points, late less early, continual backpropagation",
            compare(late["continual"], early["continual"]).difference, "same", 5.0),
        row("Late tasks are learnt better with continual backpropagation.",
            "accuracy in points on late tasks, continual less plain backpropagation",
            compare(late["continual"], late["backprop"]).difference),
        row("The number of dead units grows with backpropagation and stays small with continual backpropagation.",
            "share of dead units at the end, plain less continual backpropagation",
            compare(dead["backprop"], dead["continual"]).difference),
    )  # fmt: skip
    notes = (
        "In small: digits of 8 × 8 for MNIST, a tenth of the tasks, networks of 192 units for 6,000, Adam, and so a "
        "rate of replacement above the paper's 1e-6 to 1e-4.",
        *(
            f"{arm}: accuracy {interval(early[arm], 'mean')} early, {interval(late[arm], 'mean')} late; "
            f"{interval(dead[arm], 'mean')} of units dead at the end."
            for arm in arms
        ),
    )
    return rows, ran, notes


def train(seed: int, rate: float, tasks: int) -> tuple[list[float], float]:
    """Accuracy before the update, mean over each task, and the share of units dead at the end on the last task."""
    images, labels, _, _ = digits([seed], TRAIN)
    x, y = images[0].flatten(1), labels[0]
    generator = torch.Generator().manual_seed(seed)
    model = network(seed, WIDTHS)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    continual = Continual(rate, MATURITY, seed=seed) if rate else None
    accuracy = []
    shown = x
    for _ in range(tasks):
        shown = x[:, torch.randperm(x.shape[1], generator=generator)]
        order = torch.randperm(len(y), generator=generator)
        hits = seen = 0
        for start in range(0, len(y) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            outputs = model(shown[chosen])
            hits += int((outputs.argmax(1) == y[chosen]).sum())
            seen += BATCH
            loss = F.cross_entropy(outputs, y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if continual is not None:
                continual.step(model, shown[chosen], optimizer)
        accuracy.append(hits / seen)
    found = census(model, [shown])
    return accuracy, float(torch.cat([site.dead for site in found.sites]).double().mean())
