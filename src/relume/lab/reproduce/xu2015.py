"""xu2015: a negative side that is not flat helps; on small data the slope drawn at random overfits least.

Xu, Wang, Chen and Li 2015, "Empirical Evaluation of Rectified Activations in Convolutional Network", arXiv 1505.00853.
Their test errors on CIFAR-10 (network in network), as commonly cited: ReLU 12.45 %, leaky 0.01 12.66 %, leaky 1/5.5
11.20 %, PReLU 11.79 %, RReLU 11.19 %.
"""

from __future__ import annotations

import numpy as np
import torch

from relume.lab.reproduce.digits import digits
from relume.lab.reproduce.reproduction import Progress, Row, Rows, statement
from relume.lab.reproduce.stack import Stack, evaluate, train
from relume.lab.stats import compare, interval
from relume.lab.verdicts import Claim

TITLE = "Slopes of the negative side on small data"
SOURCE = "Xu, Wang, Chen and Li 2015, arXiv 1505.00853"
NAMES = ("relu", "leaky_0.01", "leaky_1/5.5", "prelu", "rrelu")
SHOWN = {
    "relu": "ReLU", "leaky_0.01": "leaky ReLU (0.01)", "leaky_1/5.5": "leaky ReLU (1/5.5)", "prelu": "PReLU",
    "rrelu": "RReLU",
}  # fmt: skip
CONVOLUTIONS, HIDDEN, BATCH, TRAIN, LR = (8, 16, 16), (64,), 50, 200, 0.02
MARGIN = 0.25  # percentage points of test error: about one image in 400


def run(full: bool = False, seed: int = 0, progress: Progress = lambda done, what: None, scale: float = 1.0) -> Rows:
    """Rows of the reproduction, and what was run."""
    members = max(3, int((100 if full else 60) * scale))
    epochs = max(2, int((200 if full else 60) * scale))
    seeds = range(seed, seed + members)
    x, y, x_test, y_test = digits(seeds, TRAIN)
    fit: dict[str, np.ndarray] = {}
    error: dict[str, np.ndarray] = {}
    for i, name in enumerate(NAMES):
        progress(i / len(NAMES), f"{SHOWN[name]}: {members} networks")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # RReLU draws its slopes from torch's own random state
            stack = Stack(seeds, (1, 8, 8), CONVOLUTIONS, HIDDEN, 10, name)
            optimizer = torch.optim.SGD(stack.parameters(), lr=LR, momentum=0.9)
            train(stack, x, y, seeds, optimizer=optimizer, epochs=epochs, batch=BATCH)
        fit[name] = evaluate(stack, x, y)[0].double().log10().numpy()
        error[name] = 100 * (1 - evaluate(stack, x_test, y_test)[1].numpy())
    ran = (
        f"scikit-learn digits, {TRAIN} images to train on and {x_test.shape[1]} to test; convolutions 3 × 3 of "
        f"{', '.join(map(str, CONVOLUTIONS))} channels, one hidden layer of {HIDDEN[0]}; SGD with lr {LR} and momentum "
        f"0.9, batches of {BATCH}, {epochs} epochs; {members} seeds, the same for all activations."
    )
    rows: list[Row] = []

    def test(better: str, worse: str, text: str, says: str = "more", margin: float = 0.0) -> None:
        claim = Claim("test", text, SOURCE, f"test error in points, {SHOWN[worse]} less {SHOWN[better]}", says, margin)  # type: ignore[arg-type]
        rows.append(statement(claim, compare(error[worse], error[better]).difference, ran))

    test("leaky_1/5.5", "relu", "A leaky ReLU with slope 1/5.5 has a lower test error than ReLU.")
    test("leaky_0.01", "relu", "A leaky ReLU with slope 0.01 does as ReLU does.", "same", MARGIN)
    test("rrelu", "relu", "RReLU has a lower test error than ReLU.")
    test("rrelu", "prelu", "On small data RReLU has a lower test error than PReLU, which overfits.")
    test("rrelu", "leaky_1/5.5", "On small data RReLU has a lower test error than a fixed slope.")
    for other in ("relu", "leaky_1/5.5", "rrelu"):
        claim = Claim("fit", f"PReLU fits the training data more closely than {SHOWN[other]}.", SOURCE,
                      f"log10 of the training loss, {SHOWN[other]} less PReLU")  # fmt: skip
        rows.append(statement(claim, compare(fit[other], fit["prelu"]).difference, ran))
    notes = [
        f"{SHOWN[n]}: test error {interval(error[n], 'mean')} %, training loss 10^{interval(fit[n], 'mean')}."
        for n in NAMES
    ]
    return (
        tuple(rows),
        ran,
        ("The published errors are of CIFAR-10 and CIFAR-100; here the statements are tested on the digits.", *notes),
    )
