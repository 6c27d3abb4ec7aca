"""What a study costs beside the training: seconds per run, the store's bytes and rows, planning, opening; and so what
a million runs take.

    python benchmarks/study.py [--members 32] [--alone 8] [--steps 500] [--rows 100_000]

The rows are made up from real results (other seeds, the same curves and census), and go through all that a study does
but the training: planned, claimed, committed in blocks, ranked. Seconds are of the CPU, of one thread, so that what
else runs on the machine matters less. Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch

from relume.lab import Member, Result, run_batched, run_member
from relume.lab.runners import Block, Local, Outcome
from relume.lab.study import Study
from relume.lab.study.store import Store

T = TypeVar("T")
RUNS = 1_000_000


def timed(what: Callable[[], T]) -> tuple[float, T]:
    began = time.process_time()
    found = what()
    return time.process_time() - began, found


def training(members: int, alone: int, steps: int) -> tuple[dict[str, float], list[Result]]:
    """Seconds per run of digits, 2 × 32, together and alone."""
    several = [Member("digits", lr=lr, seed=s, steps=steps) for s in range(members // 2) for lr in (0.1, 1.0)]
    run_batched(several[:2])
    run_member(several[0])  # both warm up
    together, results = timed(lambda: run_batched(several))
    by_itself, _ = timed(lambda: [run_member(m, diagnose=False) for m in several[:alone]])
    diagnosed, _ = timed(lambda: [run_member(m) for m in several[:alone]])
    seconds = {"together": together / len(several), "alone": by_itself / alone, "diagnosed": diagnosed / alone}
    return {f"{name}_s_per_run": value for name, value in seconds.items()}, results


def keeping(results: list[Result], rows: int, folder: Path) -> dict[str, Any]:
    """A study of so many runs whose training takes no time."""

    def made_up(block: Block) -> list[Outcome]:
        return [Outcome(m, dataclasses.replace(results[m.seed % len(results)], member=m)) for m in block.members]

    config = {"name": "rows", "settings": {"task": "digits", "lr": [0.1, 0.2, 0.5, 1.0],
                                           "seed": {"low": 0, "high": rows // 4 - 1}}}  # fmt: skip
    planned, study = timed(lambda: Study(config, out=folder))
    with study:
        ran, _ = timed(lambda: study.run(runner=Local(work=made_up), progress=False))
    size = (folder / "study.sqlite").stat().st_size

    def opened() -> int:
        with closing(Store(folder)) as store:
            return len(store.statuses())

    with Study(config, out=folder) as study:
        again, _ = timed(lambda: study.run(runner=Local(work=made_up), progress=False))
        table, _ = timed(study.table)
        whole, _ = timed(lambda: sum(1 for _ in study.results()))
    return {
        "rows": rows,
        "plan_us_per_run": 1e6 * planned / rows,
        "rows_per_s": rows / ran,
        "bytes_per_row": size / rows,
        "open_s": min(timed(opened)[0] for _ in range(3)),
        "go_on_with_nothing_to_do_s": again,
        "table_s": table,
        "results_s": whole,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def a_million(found: dict[str, Any]) -> dict[str, float]:
    """CPU hours, and at how many CPUs the driver, which plans and writes for all, is what one waits for."""
    driver = 1 / found["rows_per_s"]
    told = {f"{RUNS}_runs_{kind}_cpu_hours": RUNS * found[f"{kind}_s_per_run"] / 3600 for kind in ("together", "alone")}
    told |= {
        f"cpus_that_one_driver_feeds_{kind}": found[f"{kind}_s_per_run"] / driver for kind in ("together", "alone")
    }
    told[f"{RUNS}_runs_driver_hours"] = RUNS * (driver + found["plan_us_per_run"] / 1e6) / 3600
    told[f"{RUNS}_runs_gib"] = RUNS * found["bytes_per_row"] / 2**30
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--alone", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", type=int, default=100_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, results = training(given.members, given.alone, given.steps)
    with tempfile.TemporaryDirectory() as folder:
        found |= keeping(results, given.rows, Path(folder))
    found |= a_million(found)
    print(json.dumps({k: float(f"{v:.4g}") if math.isfinite(v) else None for k, v in found.items()}, indent=1))


if __name__ == "__main__":
    main()
