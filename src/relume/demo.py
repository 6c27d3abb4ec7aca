"""`relume demo`: the main job on real data, with a verdict, the cause, its proof by replay, and a report.

One small network is trained twice on scikit-learn's handwritten digits under watch: once with a learning rate that
kills its units, once with a sane one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from relume.diagnose import Finding
from relume.errors import missing_extra
from relume.report import LiveView, verdict, write_html
from relume.report.diagnosed import Diagnosed
from relume.report.findings_terminal import findings_text
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
    """One of the two trainings: its recording, what was found, and its accuracy on held-out digits."""

    label: str
    lr: float
    recording: Watch
    findings: list[Finding]
    accuracy: float

    @property
    def verdict(self) -> str:
        return verdict(self.recording, Diagnosed(tuple(self.findings)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        census = self.recording.census()
        return {
            "learning_rate": self.lr,
            "held_out_accuracy": self.accuracy,
            "dead": census.dead,
            "units": census.units,
            "verdict": self.verdict,
            "findings": [f.to_dict() for f in self.findings],
        }


@dataclass(frozen=True)
class Demo:
    """Both trainings, and where their files are."""

    doomed: Outcome
    sane: Outcome
    seed: int
    out: Path
    report: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        runs = {o.label: {**o.to_dict(), "run": str(self.out / o.label)} for o in (self.doomed, self.sane)}
        return {"report": str(self.report), "seed": self.seed, **runs}

    def tell(self, console: Console) -> None:
        """Say what happened, why, and what shows it."""
        for outcome in (self.doomed, self.sane):
            console.print()
            head = Text(f"Learning rate {outcome.lr:g}", style="bold")
            console.print(head.append(f" ({outcome.label}): {outcome.verdict}", style="not bold"))
            if outcome is self.doomed:
                console.print()
                console.print(findings_text(outcome.findings))
        console.print()
        console.print(
            f"Right on held-out digits: [bold]{self.doomed.accuracy:.1%}[/] doomed, [bold]{self.sane.accuracy:.1%}[/] "
            "sane. The loss says that it stopped learning; the findings say why."
        )
        console.print()
        console.print(f"Report: [bold]{self.report}[/]", soft_wrap=True)


def train(
    label: str, lr: float, data: Digits, *, seed: int, epochs: int, save: Path | None, view: LiveView | None
) -> Outcome:
    """Train one network under watch and ask what is the matter; an ordinary loop but for the lines with `w`."""
    torch.manual_seed(seed)
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    shuffle = torch.Generator().manual_seed(seed)
    steps = -(-len(data.x) // BATCH)
    accuracy = 0.0
    with watch(model, optimizer, every=EVERY, window=steps, save=save, replay=True) as w:
        for _ in range(epochs):
            model.train()
            total = 0.0
            for batch in torch.randperm(len(data.x), generator=shuffle).split(BATCH):
                loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
                if view is not None:
                    view.update(w)
            model.eval()
            with torch.no_grad():
                accuracy = float((model(data.x_test).argmax(1) == data.y_test).double().mean())
            w.log(**{"training loss": total / steps, "held-out accuracy": accuracy})
        findings = w.diagnose()
        if view is not None and any(f.severity != "note" for f in findings):
            view.say(f"{label}: running it again, one thing changed")
        # As `w.diagnose(confirm=True)`, but that what is not worth acting on is not run again.
        findings = [f if f.severity == "note" else f.confirm() for f in findings]
        w.keep_confirmed()
    return Outcome(label, lr, w, findings, accuracy)


def run(out: Path, *, seed: int = 1, epochs: int = 30, quiet: bool = False) -> Demo:
    """Train both networks, write both run files and the report under `out`.

    Deterministic: the same seed on the same machine gives the same numbers.

    Args:
        out: folder for `doomed/`, `sane/` and `report.html`; those of an earlier demo are replaced.
        seed: of initial weights and batch order.
        epochs: of each training.
        quiet: no live view.

    Returns:
        Demo: both trainings with their findings, and the report's path.

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
        with contextlib.nullcontext() if quiet else LiveView(total, f"{label}: learning rate {lr:g}") as view:
            outcomes.append(train(label, lr, data, seed=seed, epochs=epochs, save=out / label, view=view))
    doomed, sane = outcomes
    report = write_html(
        doomed.recording,
        out / "report.html",
        title="A network on handwritten digits, trained twice",
        label=f"learning rate {DOOMED_LR:g} (doomed)",
        beside=[(f"learning rate {SANE_LR:g} (sane)", sane.recording)],
        findings=doomed.findings,
    )
    return Demo(doomed, sane, seed, out, report)
