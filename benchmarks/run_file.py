"""What a long run's file keeps for diagnosis costs: bytes, time of writing, and time to open and diagnose.

    python benchmarks/run_file.py [--windows 10_000] [--sites 100] [--width 64] [--deaths 5]

Counts, rows, steps and deaths are made up; the run file's own writer writes them, once with what diagnosis needs and
once without, window by window in turn. A process of its own then opens the file and diagnoses it, three times. Prints
one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from scale import made_up
from torch import nn

import relume
from relume.activations.zones import INF, Zone
from relume.census import SiteCensus, Timeline
from relume.diagnose.archive import Archivist
from relume.diagnose.attribution import PARTS
from relume.diagnose.death import Around, Death, Fall
from relume.diagnose.record import MEMORY_LIMIT, WINDOWS_LIMIT, Record
from relume.diagnose.steps import Settings, StepRow
from relume.diagnose.trace import COLUMNS, Trace
from relume.sites import Site
from relume.sites.site import Zones
from relume.watch.recording import Window, held
from relume.watch.store import Writer

PASSES = 10  # of a window
STATISTICS = slice(COLUMNS.index("statistics"), COLUMNS.index("beta") + 1)


def made_record(sites: tuple[Site, ...]) -> Record:
    record = Record(nn.Module())
    for site in sites:
        trace = Trace(site, torch.empty(0, len(COLUMNS), site.units), producers=(site.producers[0],))
        trace.first = (0, torch.randn(len(COLUMNS), site.units))
        record.traces[site.name] = trace
    return record


def go_on(record: Record, window: int) -> None:
    """Another window, as a record takes it in."""
    settings = Settings("SGD", 0.1, 0.9, 0.0, float("nan"), False, False, False)
    for trace in record.traces.values():
        row = torch.randn(len(COLUMNS), trace.site.units)
        row[STATISTICS] = 0  # there is no normalization
        trace.passes += PASSES
        trace.windows.append((100 * window + 90, trace.passes, row))
    rows = sum(row.nbytes for trace in record.traces.values() for _, _, row in trace.windows)
    if rows > MEMORY_LIMIT or any(len(t.windows) > WINDOWS_LIMIT for t in record.traces.values()):
        for trace in record.traces.values():
            trace.thin()
    producers = [t.producers[0] for t in record.traces.values()]
    for i in range(PASSES):
        values = dict(zip(producers, torch.rand(len(producers)).tolist(), strict=True))
        record.steps.rows.append(
            StepRow(100 * window + 10 * i, dict.fromkeys(producers, settings), values, values, values)
        )


def death(unit: int, step: int) -> Death:
    parts = dict(zip(PARTS, torch.randn(len(PARTS)).tolist(), strict=True))
    numbers = torch.randn(7).tolist()
    fall = Fall(unit, step, step - 90, step + 1, *numbers[:5], parts, parts, numbers[5], step - 3, numbers[6], True)
    return Death(step, fall, Around(*torch.rand(10).tolist()))


def write(folder: Path, windows: int, n_sites: int, width: int, deaths: int) -> dict[str, Any]:
    relu = Zones(Zone(((-INF, 0.0),)), Zone(((-INF, 0.0),)), Zone(((0.0, INF),)))
    names = [f"blocks.{i}.act" for i in range(n_sites)]
    sites = tuple(Site(n, n, n, "relu", "max(x, 0)", width, -1, producers=(f"{n}.fc",), zones=relu) for n in names)
    generator = torch.Generator().manual_seed(0)
    variants = [{s.name: made_up(s, generator, dead) for s in sites} for dead in range(0, 2 * deaths, 2)]
    about = {"min_inputs": 256, "model": "Made", "every": 10, "window": 100, "parameters": 0, "optimizer": "SGD"}
    timelines = {s.name: Timeline(s.name, width) for s in sites}
    record = made_record(sites)
    archivist = Archivist(record)
    writers = {"with": Writer(folder / "with", about), "without": Writer(folder / "without", about)}
    spent = dict.fromkeys([*writers, "slowest"], 0.0)
    for i in range(windows):
        place = i * len(variants) // windows
        counts = variants[place]
        window = Window(i, 100 * i, 100 * i + 99, PASSES, True, {"train": held(counts)}, {"groups": [{"lr": 0.1}]})
        if i % 50 == 0:
            for site in sites:
                timelines[site.name].fold(SiteCensus(site, counts[site.name], 256))
        if place and variants[(i - 1) * len(variants) // windows] is not counts:
            for trace in record.traces.values():
                trace.deaths |= {unit: death(unit, 100 * i - 10) for unit in range(2 * place - 2, 2 * place)}
        go_on(record, i)
        for how, writer in writers.items():
            start = time.perf_counter()
            news = archivist.news() if how == "with" else None
            writer.write(window, sites, [(100 * i, "loss", 1 / (i + 1))], [], timelines=timelines, diagnosis=news)
            took = time.perf_counter() - start
            spent[how] += took
            spent["slowest"] = max(spent["slowest"], took)
    for writer in writers.values():
        writer.write(None, sites, [], [], {"status": "finished", "steps": 100 * windows})
        writer.close()
    return {
        "ms_per_window": {how: 1e3 * spent[how] / windows for how in writers},
        "slowest_ms": 1e3 * spent["slowest"],
        "file_mb": {how: (folder / how / "run.sqlite").stat().st_size / 2**20 for how in writers},
        "kept_mb": _kept(folder / "with" / "run.sqlite"),
    }


def _kept(path: Path) -> dict[str, float]:
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT kind, count(*), sum(length(content)) FROM diagnosis GROUP BY kind").fetchall()
    return {f"{kind} ({n})": size / 2**20 for kind, n, size in rows}


def read(folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    run = relume.load(folder)
    opened = time.perf_counter()
    findings = run.diagnose()
    ended = time.perf_counter()
    return {"open_s": opened - start, "diagnose_s": ended - opened, "findings": len(findings)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--width", type=int, default=64, help="units per site")
    parser.add_argument("--deaths", type=int, default=5, help="windows in which units die, two of each site")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.read is not None:
        print(json.dumps(read(given.read)))
        return
    with tempfile.TemporaryDirectory() as folder:
        written = write(Path(folder), given.windows, given.sites, given.width, given.deaths)
        command = [sys.executable, __file__, "--read", str(Path(folder) / "with")]
        rounds = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3)
        ]
    best = min(rounds, key=lambda r: r["open_s"] + r["diagnose_s"])
    size = {"windows": given.windows, "sites": given.sites, "width": given.width}
    print(json.dumps({**size, **written, **best}))


if __name__ == "__main__":
    main()
