"""`relume demo`: the main job on real data, with a verdict, the cause, its proof by replay, treatment, and a report.

One small network is trained on scikit-learn's handwritten digits under watch: with a learning rate that kills its
units, and with a sane one. The doomed network is then trained on at the sane rate twice, as it is and revived in place;
and the doomed training is done once more under guard.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from relume.diagnose import Finding
from relume.errors import missing_extra
from relume.report import LiveView, verdict, write_html
from relume.report.diagnosed import Diagnosed
from relume.report.findings_terminal import findings_text
from relume.treat.guard import Guard, guard
from relume.treat.revive import Revival, revive
from relume.watch import Watch, census, watch
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
    """One training: its network and recording, what was found, and its accuracy on held-out digits."""

    label: str
    lr: float
    model: DigitsNet
    recording: Watch
    findings: list[Finding]
    accuracy: float

    @property
    def verdict(self) -> str:
        return verdict(self.recording, Diagnosed(tuple(self.findings)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        last = self.recording.census()
        return {
            "learning_rate": self.lr,
            "held_out_accuracy": self.accuracy,
            "dead": last.dead,
            "units": last.units,
            "verdict": self.verdict,
            "findings": [f.to_dict() for f in self.findings],
        }


@dataclass(frozen=True)
class Demo:
    """All trainings, what was revived, and where their files are."""

    doomed: Outcome
    sane: Outcome
    untreated: Outcome
    revived: Outcome
    guarded: Outcome
    revival: Revival
    seed: int
    out: Path
    report: Path

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.doomed, self.sane, self.untreated, self.revived, self.guarded

    @property
    def acts(self) -> list[dict[str, Any]]:
        """What the guard did."""
        assert isinstance(self.guarded.recording, Guard)
        return [act.to_dict() for act in self.guarded.recording.acts]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        runs = {o.label: {**o.to_dict(), "run": str(self.out / o.label)} for o in self.outcomes}
        treatment = {"revival": self.revival.to_dict(), "acts": self.acts}
        return {"report": str(self.report), "seed": self.seed, **runs, **treatment}

    def tell(self, console: Console) -> None:
        """Say what happened, why, what shows it, and what helped."""
        for outcome in (self.doomed, self.sane):
            console.print()
            head = Text(f"Learning rate {outcome.lr:g}", style="bold")
            console.print(head.append(f" ({outcome.label}): {outcome.verdict}", style="not bold"))
            if outcome is self.doomed:
                console.print()
                console.print(findings_text(outcome.findings))
        console.print()
        console.print("[bold]Treatment[/]")
        console.print(
            f"Revived in place: {len(self.revival)} units of the doomed network. That moved its output by "
            f"{self.revival.change or 0.0:.2g}, and they learn from there on."
        )
        assert isinstance(self.guarded.recording, Guard)
        acts = self.guarded.recording.acts
        console.print(f"Guarded, the same doomed training, {len(acts)} acts. The first:")
        for act in acts[:3]:
            console.print(f"  {act}", markup=False)
        console.print()
        console.print(self.table())
        console.print()
        console.print(f"Report: [bold]{self.report}[/]", soft_wrap=True)

    def table(self) -> Table:
        """Untreated, treated and sane side by side."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("training")
        table.add_column("dead units", justify="right")
        table.add_column("right on held-out digits", justify="right")
        for outcome in self.outcomes:
            last = outcome.recording.census()
            name = _NAMES[outcome.label].format(doomed=DOOMED_LR, sane=SANE_LR)
            table.add_row(name, f"{last.dead} of {last.units}", f"{outcome.accuracy:.1%}")
        return table


_NAMES = {
    "doomed": "learning rate {doomed:g} (doomed)",
    "sane": "learning rate {sane:g} (sane)",
    "untreated": "doomed, trained on at {sane:g}",
    "revived": "doomed, revived, trained on at {sane:g}",
    "guarded": "learning rate {doomed:g} under guard",
}


def train(
    label: str,
    lr: float,
    data: Digits,
    *,
    seed: int,
    epochs: int,
    save: Path | None,
    view: LiveView | None,
    model: DigitsNet | None = None,
    watching: Callable[..., Watch] = watch,
    before: Callable[[DigitsNet, torch.optim.Optimizer], None] = lambda model, optimizer: None,
    **options: Any,
) -> Outcome:
    """Train one network under watch and ask what is the matter; an ordinary loop but for the lines with `w`.

    Args:
        label, lr, data, seed, epochs, save, view: of the training.
        model: to train on; default: a new one.
        watching: `relume.watch` or `relume.guard`, with `options`.
        before: done to network and optimizer before the first step.
    """
    torch.manual_seed(seed)
    model = model or DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    before(model, optimizer)
    shuffle = torch.Generator().manual_seed(seed)
    steps = -(-len(data.x) // BATCH)
    accuracy = 0.0
    with watching(model, optimizer, every=EVERY, window=steps, save=save, **options) as w:
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
        if options.get("replay"):
            if view is not None and any(f.severity != "note" for f in findings):
                view.say(f"{label}: running it again, one thing changed")
            # As `w.diagnose(confirm=True)`, but that what is not worth acting on is not run again.
            findings = [f if f.severity == "note" else f.confirm() for f in findings]
            w.keep_confirmed()
    return Outcome(label, lr, model, w, findings, accuracy)


def run(out: Path, *, seed: int = 1, epochs: int = 30, quiet: bool = False) -> Demo:
    """Train, diagnose and treat; write the run files and the report under `out`.

    Deterministic: the same seed on the same machine gives the same numbers.

    Args:
        out: folder for the run files, one folder each, and `report.html`; those of an earlier demo are replaced.
        seed: of initial weights and batch order.
        epochs: of the doomed, sane and guarded trainings; the doomed network is trained on for half as many.
        quiet: no live view.

    Returns:
        Demo: the trainings with their findings, what was done, and the report's path.

    Raises:
        MissingExtraError: scikit-learn is not installed (extra "demo").
        RunFileError: `out` can't be written.
    """
    data = Digits.load()
    steps = -(-len(data.x) // BATCH)
    more = max(2, epochs // 2)

    def one(label: str, lr: float, epochs: int, **options: Any) -> Outcome:
        for old in (out / label).glob(f"{FILE_NAME}*"):
            old.unlink()
        name = _NAMES[label].format(doomed=DOOMED_LR, sane=SANE_LR)
        with contextlib.nullcontext() if quiet else LiveView(epochs * steps, name) as view:
            return train(label, lr, data, seed=seed, epochs=epochs, save=out / label, view=view, **options)

    doomed = one("doomed", DOOMED_LR, epochs, replay=True)
    sane = one("sane", SANE_LR, epochs, replay=True)
    untreated = one("untreated", SANE_LR, more, model=copy.deepcopy(doomed.model))
    done: list[Revival] = []

    def treat(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        seen = census(model, data.x.split(BATCH))
        done.append(revive(model, seen, optimizer=optimizer, batches=data.x.split(BATCH), seed=seed))

    revived = one("revived", SANE_LR, more, model=copy.deepcopy(doomed.model), before=treat)
    guarded = one("guarded", DOOMED_LR, epochs, watching=guard, policy="full", loss="training loss")
    report = write_html(
        doomed.recording,
        out / "report.html",
        title="A network on handwritten digits: doomed, treated, sane",
        label=_NAMES["doomed"].format(doomed=DOOMED_LR),
        beside=[
            (_NAMES[o.label].format(doomed=DOOMED_LR, sane=SANE_LR), o.recording) for o in (revived, guarded, sane)
        ],
        findings=doomed.findings,
    )
    return Demo(doomed, sane, untreated, revived, guarded, done[0], seed, out, report)
