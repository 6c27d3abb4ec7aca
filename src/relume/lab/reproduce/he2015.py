"""he2015: the slopes that PReLU learns: away from zero in the first layer, smaller in deeper ones.

He, Zhang, Ren and Sun 2015, "Delving Deep into Rectifiers", arXiv 1502.01852, section 2.1 and table 1: first layer
0.681 (one slope per layer) and 0.596 (per channel, mean), later convolutions mostly below 0.25, on ImageNet; top-1
error 33.82 % with ReLU, 32.64 % with PReLU, as commonly cited.
"""

from __future__ import annotations

from typing import Any

import torch

from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.reproduction import Progress, Row, Rows, statement
from relume.lab.reproduce.stack import Stack, evaluate, train
from relume.lab.stats import Interval, compare, interval
from relume.lab.verdicts import Claim

TITLE = "Slopes that PReLU learns"
SOURCE = "He, Zhang, Ren and Sun 2015, arXiv 1502.01852"
CONVOLUTIONS, HIDDEN, BATCH, TRAIN, LR = (16, 16, 16, 16), (64,), 64, 1400, 0.02
START, WELL = 0.25, 0.1  # a rise of less than 0.1 is not "well above"


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    members = max(3, int((30 if full else 12) * scale))
    epochs = max(2, int((200 if full else 60) * scale))
    seeds = range(seed, seed + members)
    x, y, x_test, y_test = digits(seeds, TRAIN)
    found = {}
    for i, name in enumerate(("relu", "prelu")):
        progress(i / 2, f"{name}: {members} networks")
        stack = Stack(seeds, (1, 8, 8), CONVOLUTIONS, HIDDEN, 10, name)
        slopes = [p for n, p in stack.named_parameters() if n.endswith("slope")]
        others = [p for n, p in stack.named_parameters() if not n.endswith("slope")]
        # As published: weight decay, but none on the slopes.
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 5e-4}]
        if slopes:
            groups.append({"params": slopes})
        optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9)
        train(stack, x, y, seeds, optimizer=optimizer, epochs=epochs, batch=BATCH)
        found[name] = 100 * (1 - evaluate(stack, x_test, y_test)[1].numpy())
    learnt = stack.slopes().double().numpy()  # [members, layers]
    ran = (
        f"scikit-learn digits, {TRAIN} of 1797 images; convolutions 3 × 3 of {CONVOLUTIONS[0]} channels, "
        f"{len(CONVOLUTIONS)} of them, one hidden layer of {HIDDEN[0]}; a slope per channel, starting at {START}, "
        f"without weight decay; SGD with lr {LR}, momentum 0.9, decay 0.0005, batches of {BATCH}, {epochs} epochs; "
        f"{members} seeds."
    )
    first, deeper = learnt[:, 0], learnt[:, 1:].mean(1)
    deepest = learnt[:, -1]

    def row(id_: str, text: str, support: str, effect: Interval, margin: float = 0.0) -> Row:
        return statement(Claim(id_, text, SOURCE, support, "more", margin), effect, ran)

    rows = (
        row("first-rises", "The first layer learns a slope well above its start, 0.25 (0.596, mean over channels).",
            "mean slope of the first layer, less 0.25", interval(first - START, "mean"), WELL),
        row("deeper", "Deeper layers learn smaller slopes than the first.",
            "mean slope of the first layer, less that of all others", compare(first, deeper).difference),
        row("falls", "Deeper layers become more non-linear: the last hidden layer's slope is below the second's.",
            "mean slope of the second layer, less that of the last hidden one",
            compare(learnt[:, 1], deepest).difference),
        row("error", "PReLU has a lower test error than ReLU (top-1, 32.64 against 33.82 %).",
            "test error in points, ReLU less PReLU", compare(found["relu"], found["prelu"]).difference),
    )  # fmt: skip
    layers = [f"{interval(learnt[:, i], 'mean')}" for i in range(learnt.shape[1])]
    notes = (
        "The published figures are of ImageNet; here the statements are tested on the digits, at 8 × 8 pixels.",
        f"Mean slopes by layer, first to last: {'; '.join(layers)}.",
        f"Test error: ReLU {interval(found['relu'], 'mean')} %, PReLU {interval(found['prelu'], 'mean')} %.",
    )
    return rows, ran, notes
