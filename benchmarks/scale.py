"""What watching needs as things grow: memory per unit, very wide models, very long runs.

    python benchmarks/scale.py [--units 10_000_000] [--windows 10_000] [--steps 100_000] [--only PART]

Prints one Markdown table. Memory is the peak of a process of its own, with relume and without; the long run is written
by the run file's own writer from made-up counts, then opened in a process of its own, as a reader would.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import relume
from relume.activations.zones import INF, Zone
from relume.census import Counts, SiteCensus, Timeline
from relume.census.counts import same_for_all
from relume.sites import Site
from relume.sites.site import Zones
from relume.watch.recording import Window, held
from relume.watch.store import Writer

SITES = 100


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# A wide model


class Wide(nn.Module):
    """100 sites over so many units in all, with as few weights as that takes."""

    def __init__(self, units: int) -> None:
        super().__init__()
        width = units // SITES
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(width)) for _ in range(SITES))

    def forward(self, x: Tensor) -> Tensor:
        for scale in self.scales:
            x = torch.relu(x * scale - 0.01)
        return x


def wide(units: int, how: str) -> dict[str, Any]:
    """Peak memory of 12 steps, bare or watched with two windows, kept in memory or in a run file."""
    model = Wide(units)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder) / "run" if how == "saved" else None
        watch = None if how == "bare" else relume.watch(model, optimizer, every=1, window=5, save=save)
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.randn(2, units // SITES)).sum().backward()
            optimizer.step()
        state = 0 if watch is None else watch.state_bytes
        if watch is not None:
            assert watch.census(-1).units == units // SITES * SITES
            watch.close()
        return {"peak_mb": peak_mb(), "state": state}


# Many steps


def steps(n: int) -> dict[str, Any]:
    """Bytes of state and of the process after a hundredth of the steps, and at their end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    x = torch.randn(16, 4)
    watch = relume.watch(model, optimizer, every=1, window=100)
    early: tuple[int, float] = (0, 0.0)
    start = time.perf_counter()
    for step in range(n):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if step == n // 100:
            early = watch.state_bytes, peak_mb()
    seconds = time.perf_counter() - start
    result = {"units": 128, "early": early, "late": (watch.state_bytes, peak_mb()), "us_per_step": seconds / n * 1e6}
    watch.close()
    return {**result, "kept_windows": len(watch.windows)}


# A long run


def made_up(site: Site, generator: torch.Generator, dead: int) -> Counts:
    """Counts as a window of 10 observed batches of 32 would have them; the first `dead` units are silent."""
    n, units = 320, site.units
    fired = torch.randint(1, n, (units,), generator=generator)
    fired[:dead] = 0
    high = torch.rand(units, generator=generator)
    high[:dead] *= -1
    mean = torch.rand(units, generator=generator, dtype=torch.float64) - 0.5
    last = torch.where(fired > 0, torch.randint(90, 100, (units,), generator=generator), -1).int()
    fired = fired.int()
    return Counts(
        n,
        n,
        fired=fired,
        samples_fired=fired,
        mean=mean,
        m2=torch.rand(units, generator=generator) * n,
        max=high,
        min=high - 1,
        output=torch.rand(units, generator=generator) * n,
        nonfinite=same_for_all(0, units),
        first_fired=torch.where(fired > 0, 0, -1).int(),
        last_fired=last,
    )


def long_run(folder: Path, windows: int, units: int) -> dict[str, Any]:
    """Write a run of so many windows; what is in them repeats, so that making it up does not take longest."""
    relu = Zones(Zone(((-INF, 0.0),)), Zone(((-INF, 0.0),)), Zone(((0.0, INF),)))
    names = [f"blocks.{i}.act" for i in range(SITES)]
    sites = tuple(Site(n, n, n, "relu", "max(x, 0)", units, -1, zones=relu) for n in names)
    generator = torch.Generator().manual_seed(0)
    variants = [{s.name: made_up(s, generator, dead) for s in sites} for dead in range(0, 20, 2)]
    about = {"min_inputs": 256, "model": "Made", "every": 10, "window": 100, "parameters": 0, "optimizer": "SGD"}
    timelines = {s.name: Timeline(s.name, units) for s in sites}
    writer = Writer(folder, about)
    spent = 0.0
    for i in range(windows):
        counts = variants[i * len(variants) // windows]
        window = Window(i, 100 * i, 100 * i + 99, 10, True, {"train": held(counts)}, {"groups": [{"lr": 0.1}]})
        if i % 50 == 0:  # folding is the watch's work; the file's is to write what is folded each time
            for site in sites:
                timelines[site.name].fold(SiteCensus(site, counts[site.name], 256))
        start = time.perf_counter()
        writer.write(window, sites, [(100 * i, "loss", 1 / (i + 1))], [], timelines=timelines)
        spent += time.perf_counter() - start
    writer.write(None, sites, [], [], {"status": "finished", "steps": 100 * windows})
    writer.close()
    return {"ms_per_window": spent / windows * 1e3, "file_mb": (folder / "run.sqlite").stat().st_size / 2**20}


def read_run(folder: Path) -> dict[str, Any]:
    def timed(what: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        value = what()
        return time.perf_counter() - start, value

    opened, run = timed(lambda: relume.load(folder))
    counted, census = timed(lambda: run.census())
    followed, _ = timed(lambda: run.timeline(census.sites[0].name))
    reported, page = timed(lambda: run.report(folder / "report.html"))
    return {
        "windows": len(run.windows),
        "open_s": opened,
        "census_s": counted,
        "timeline_s": followed,
        "report_s": reported,
        "report_kb": page.stat().st_size / 1024,
        "peak_mb": peak_mb(),
    }


def read_history(folder: Path) -> dict[str, Any]:
    run = relume.load(folder)
    start = time.perf_counter()
    rows = run.history()
    return {"rows": len(rows), "s": time.perf_counter() - start, "peak_mb": peak_mb()}


# The table


def alone(*args: object) -> dict[str, Any]:
    """A part in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, __file__, "--part", *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def part(name: str, *args: str) -> dict[str, Any]:
    match name:
        case "wide":
            return wide(int(args[0]), args[1])
        case "steps":
            return steps(int(args[0]))
        case "write":
            return long_run(Path(args[0]), int(args[1]), int(args[2]))
        case "read":
            return read_run(Path(args[0]))
    return read_history(Path(args[0]))


def row(what: str, found: str, goal: str = "") -> None:
    print(f"| {what} | {found} | {goal} |", flush=True)


def show_steps(n: int) -> None:
    r = alone("steps", n)
    (early, early_mb), (late, late_mb) = r["early"], r["late"]
    row(
        f"state per unit after {n // 100:,} and {n:,} steps",
        f"{early / r['units']:g} and {late / r['units']:g} bytes",
        "flat",
    )
    row(f"peak of the process, ditto ({r['kept_windows']} windows kept)", f"{early_mb:,.0f} and {late_mb:,.0f} MiB")


def show_wide(units: int) -> None:
    bare = alone("wide", units, "bare")
    for how, words in (("memory", "history in memory"), ("saved", "with a run file")):
        r = alone("wide", units, how)
        state = f"state {r['state'] / 2**20:,.0f} MiB"
        row(
            f"{units:,} units in {SITES} sites, {words}: extra peak",
            f"{r['peak_mb'] - bare['peak_mb']:,.0f} MiB ({state})",
            "≤ 1,024 MiB",
        )


def show_long(windows: int, units: int, history: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        w = alone("write", folder, windows, units)
        size = f"{windows:,} windows × {SITES} sites × {units} units"
        per = w["file_mb"] * 2**20 / (windows * SITES * units)
        row(f"{size}: run file", f"{w['file_mb']:,.0f} MiB, {per:.1f} bytes per unit and window")
        row("… written in", f"{w['ms_per_window']:.1f} ms per window")
        r = alone("read", folder)
        assert r["windows"] == windows
        row("… opened, and its last census", f"{r['open_s']:.2f} s and {r['census_s']:.2f} s", "≤ 2 s")
        row("… timeline of a site", f"{r['timeline_s'] * 1e3:.1f} ms")
        row("… report", f"{r['report_s']:.1f} s, {r['report_kb']:,.0f} KiB", "≤ 5 s, < 1,024 KiB")
        row("… peak of the reading process", f"{r['peak_mb']:,.0f} MiB")
        if history:
            h = alone("history", folder)
            per = h["s"] / h["rows"] * 1e6
            found = f"{h['rows']:,} rows in {h['s']:.1f} s, {per:.1f} µs a row, peak {h['peak_mb']:,.0f} MiB"
            row("… history", found, "≤ 10 µs a row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=10_000_000)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=64, help="units per site of the long run")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--history", action="store_true", help="also the whole history of the long run")
    parser.add_argument("--only", choices=("steps", "wide", "long"))
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.part:
        print(json.dumps(part(*args.part)))
        return
    print(f"torch {torch.__version__}, {platform.machine()}, 2 threads\n\n| what | found | goal |\n|---|---|---|")
    if args.only in (None, "steps"):
        show_steps(args.steps)
    if args.only in (None, "wide"):
        show_wide(args.units)
    if args.only in (None, "long"):
        show_long(args.windows, args.width, args.history)


if __name__ == "__main__":
    main()
