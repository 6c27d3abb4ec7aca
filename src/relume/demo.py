"""`relume demo`: the main job on real data, with a verdict and a report.

One small network is trained twice on scikit-learn's handwritten digits under watch: once with a learning rate that
kills its units, once with a sane one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.errors import missing_extra
from relume.report import LiveView, verdict, write_html
from relume.watch import Watch, watch
from relume.watch.store import FILE_NAME

DOOMED_LR, SANE_LR = 0.3, 0.02
BATCH, EVERY = 64, 2


@dataclass(frozen=True)
class Digits:
    """1797 real 8 × 8 images of handwritten digits, split once: 1347 to train on, 450 held out."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    @classmethod
    def load(cls) -> Digits:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise missing_extra("scikit-learn", "demo", "the demo's data") from error
        data = load_digits()
        x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        y = torch.tensor(data.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        train, test = order[:1347], order[1347:]
        return cls(x[train], y[train], x[test], y[test])


class DigitsNet(nn.Module):
    """A small convolutional network whose ReLUs are written in three ways: module, function, method."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1))
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.features(x)), 2)
        return self.out(self.hidden(x.flatten(1)).relu())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Outcome:
    """One of the two trainings: its recording, and its accuracy on held-out digits."""

    label: str
    lr: float
    recording: Watch
    accuracy: float


def train(
    label: str, lr: float, data: Digits, *, seed: int, epochs: int, save: Path | None, live: Callable[[Watch], None]
) -> Outcome:
    """Train one network under watch; an ordinary loop but for the `with` line and `w.log`."""
    torch.manual_seed(seed)
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    shuffle = torch.Generator().manual_seed(seed)
    steps = -(-len(data.x) // BATCH)
    accuracy = 0.0
    with watch(model, optimizer, every=EVERY, window=steps, save=save) as w:
        for _ in range(epochs):
            model.train()
            total = 0.0
            for batch in torch.randperm(len(data.x), generator=shuffle).split(BATCH):
                loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
                live(w)
            model.eval()
            with torch.no_grad():
                accuracy = float((model(data.x_test).argmax(1) == data.y_test).double().mean())
            w.log(**{"training loss": total / steps, "held-out accuracy": accuracy})
    return Outcome(label, lr, w, accuracy)


def run(out: Path, *, seed: int = 1, epochs: int = 30, quiet: bool = False) -> dict[str, Any]:
    """Train both networks, write both run files and the report under `out`.

    Deterministic: the same seed on the same machine gives the same numbers.

    Args:
        out: folder for `doomed/`, `sane/` and `report.html`; those of an earlier demo are replaced.
        seed: of initial weights and batch order.
        epochs: of each training.
        quiet: no live view.

    Returns:
        Plain data: verdicts, accuracies, dead units, the report's path.

    Raises:
        MissingExtraError: scikit-learn is not installed (extra "demo").
        RunFileError: `out` can't be written.
    """
    data = Digits.load()
    outcomes = []
    for label, lr in (("doomed", DOOMED_LR), ("sane", SANE_LR)):
        for old in (out / label).glob(f"{FILE_NAME}*"):
            old.unlink()
        total = epochs * -(-len(data.x) // BATCH)
        view = LiveView(total, f"{label}: learning rate {lr:g}")
        with contextlib.nullcontext() if quiet else view:
            outcomes.append(
                train(
                    label,
                    lr,
                    data,
                    seed=seed,
                    epochs=epochs,
                    save=out / label,
                    live=(lambda w: None) if quiet else view.update,
                )
            )
    doomed, sane = outcomes
    report = write_html(
        doomed.recording,
        out / "report.html",
        title="A network on handwritten digits, trained twice",
        label=f"learning rate {DOOMED_LR:g} (doomed)",
        beside=[(f"learning rate {SANE_LR:g} (sane)", sane.recording)],
    )
    return {
        "report": str(report),
        "seed": seed,
        **{
            o.label: {
                "learning_rate": o.lr,
                "held_out_accuracy": o.accuracy,
                "dead": o.recording.census().dead,
                "units": o.recording.census().units,
                "verdict": verdict(o.recording),
                "run": str(out / o.label),
            }
            for o in outcomes
        },
    }
