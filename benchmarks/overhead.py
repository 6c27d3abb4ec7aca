"""What watching costs: time per training step with and without relume, interleaved in one process.

    python benchmarks/overhead.py [--rounds 15] [--threads 2] [--rivals] [--json FILE]

Each round trains every setting for a stretch of steps, in shuffled order, and divides by the bare run of that round; a
second bare run is the control. Printed: median ratio over rounds, and the middle half of them. "record" is what
a watch takes more than one with `diagnose=False`, as a share of the bare step.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume


@dataclass(frozen=True)
class Task:
    """A model, its optimizer's learning rate, and a batch."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    steps: int


def mlp(width: int, depth: int, inputs: int = 64) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn() -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(3, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (z.view(b, t, 4, d // 4).transpose(1, 2) for z in self.qkv(self.norm1(x)).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Embedding(128, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))


def text() -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 256, (8, 129))
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()


def rows(n: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(n, 64), torch.randint(0, 10, (n,)))


# Steps after which every="auto" has chosen, window by window.
AUTO_STEPS = 300

TASKS = [
    Task("MLP 3×256, batch 128", lambda: mlp(256, 3), rows(128), 100),
    Task("MLP 4×1024, batch 256", lambda: mlp(1024, 4), rows(256), 20),
    Task("CNN, 32 × 3×32×32", cnn, images, 20),
    Task("GPT, 8 × 128 tokens", GPT, text, 20),
]


class Runner:
    """One setting of one task: a model of its own, trained in stretches. `step` is called after each update."""

    def __init__(self, task: Task, model: nn.Module, batch: tuple[Tensor, Tensor], setting: Setting | None) -> None:
        self.task, self.model, self.batch = task, copy.deepcopy(model), batch
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.watch: relume.Watch | None = None
        self.before: Callable[[], object] | None = None
        self.after: Callable[[Tensor], object] | None = None
        if setting is not None:
            setting(self)

    def stretch(self, steps: int) -> float:
        """Seconds per step."""
        x, y = self.batch
        sync = torch.cuda.synchronize if x.is_cuda else (lambda: None)
        sync()
        start = time.perf_counter()
        for _ in range(steps):
            if self.before is not None:
                self.before()
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x).flatten(0, -2), y.flatten())
            loss.backward()
            self.optimizer.step()
            if self.after is not None:
                self.after(loss)
        sync()
        return (time.perf_counter() - start) / steps


Setting = Callable[[Runner], None]


def watched(every: int | Literal["auto"], *, diagnose: bool = True) -> Setting:
    def start(runner: Runner) -> None:
        window = 50 if every == "auto" else 100  # it chooses anew at the end of each
        runner.watch = relume.watch(runner.model, runner.optimizer, every=every, window=window, diagnose=diagnose)

    return start


OURS: dict[str, Setting | None] = {
    "bare": None,
    "control": None,
    "every=10": watched(10),
    "every=1": watched(1),
    "auto": watched("auto"),
    "every=10, counts alone": watched(10, diagnose=False),
    "every=1, counts alone": watched(1, diagnose=False),
}
# What the record for diagnosis adds: the time of the one less that of the other.
RECORD = {"every=10": "every=10, counts alone", "every=1": "every=1, counts alone"}


def torchmortem(sampling: str) -> Setting:
    def start(runner: Runner) -> None:
        from torchmortem import Autopsy

        autopsy = Autopsy(runner.model, optimizer=runner.optimizer, sampling=sampling).__enter__()
        runner.after = lambda loss: autopsy.step(loss=loss.item())

    return start


def torch_audit(every: int) -> Setting:
    def start(runner: Runner) -> None:
        from torch_audit import autopatch

        autopatch(runner.model, optimizer=runner.optimizer, every_n_steps=every, reporters=[])

    return start


def neural_observatory(runner: Runner) -> None:
    from neural_observatory import Observatory

    observatory, steps = Observatory(runner.model), itertools.count()
    observatory.watch()
    runner.before = lambda: observatory.step(step=next(steps), epoch=0)


RIVALS: dict[str, Setting | None] = {
    "torchmortem": torchmortem("balanced"),
    "torchmortem, fast": torchmortem("fast"),
    "torch-audit, each step": torch_audit(1),
    "torch-audit, each 1000th": torch_audit(1000),
    "neural-observatory": neural_observatory,
}


def measure(task: Task, rounds: int, device: str, settings: dict[str, Setting | None]) -> dict[str, object]:
    torch.manual_seed(0)
    model = task.model().to(device)
    x, y = task.batch()
    runners = {n: Runner(task, model, (x.to(device), y.to(device)), e) for n, e in settings.items()}
    for name, runner in runners.items():
        runner.stretch(AUTO_STEPS if name == "auto" else 10)
    ratios: dict[str, list[float]] = {name: [] for name in settings}
    record: dict[str, list[float]] = {name: [] for name in RECORD}
    bare: list[float] = []
    for _ in range(rounds):
        order = list(runners)
        random.shuffle(order)
        seconds = {name: runners[name].stretch(task.steps) for name in order}
        bare.append(seconds["bare"])
        for name in order:
            ratios[name].append(seconds[name] / seconds["bare"])
        for name, without in RECORD.items():
            record[name].append((seconds[name] - seconds[without]) / seconds["bare"])
    state = {n: r.watch.state_bytes for n, r in runners.items() if r.watch is not None}
    chosen = runners["auto"].watch.every
    for runner in runners.values():
        if runner.watch is not None:
            runner.watch.close()
    quarter = {n: statistics.quantiles(v, n=4) for n, v in ratios.items() if n != "bare"}
    added = {n: statistics.quantiles(v, n=4) for n, v in record.items()}
    return {
        "task": task.name,
        "bare_ms": statistics.median(bare) * 1e3,
        "ratio": {n: {"median": q[1], "low": q[0], "high": q[2]} for n, q in quarter.items()},
        "record": {n: {"median": q[1], "low": q[0], "high": q[2]} for n, q in added.items()},
        "state_bytes": state["every=1"],
        "chosen": chosen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="part of a task's name")
    parser.add_argument("--rivals", action="store_true", help="needs: pip install -e '.[bench]'")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(0)
    print(
        f"torch {torch.__version__}, {args.threads} threads, {args.device}, {platform.machine()}, {args.rounds} rounds"
    )
    settings = {**OURS, **(RIVALS if args.rivals else {})}
    header = ["task", "bare ms/step", *list(settings)[1:], *(f"record, {n}" for n in RECORD), "auto chose", "state"]
    print(f"| {' | '.join(header)} |")
    print("|---" * len(header) + "|")
    results = []
    for task in TASKS:
        if args.only not in task.name:
            continue
        result = measure(task, args.rounds, args.device, settings)
        results.append(result)
        ratio: dict[str, dict[str, float]] = result["ratio"]  # type: ignore[assignment]
        cells = [f"{r['median']:.3f} ({r['low']:.3f}–{r['high']:.3f})" for r in ratio.values()]
        shares: dict[str, dict[str, float]] = result["record"]  # type: ignore[assignment]
        cells += [f"{r['median']:+.1%} ({r['low']:+.1%} to {r['high']:+.1%})" for r in shares.values()]
        kib = result["state_bytes"] / 1024  # type: ignore[operator]
        row = [task.name, f"{result['bare_ms']:.2f}", *cells, str(result["chosen"]), f"{kib:.0f} KiB"]
        print(f"| {' | '.join(row)} |", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
