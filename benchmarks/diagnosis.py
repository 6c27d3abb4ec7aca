"""How often a diagnosis names the planted cause first: a confusion matrix over the trainings of tests/planted/causes.

    python benchmarks/diagnosis.py [--seeds 4] [--first-seed 0] [--only WORD] [--json FILE]

Rows are planted causes, columns what was put first among findings that are more than notes ("none": there were none).
Below it: for planted sites, whether the first finding names that site; deaths said to be of unknown cause; and every
training that was diagnosed otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from relume.diagnose.causes import diagnose

CORPUS = Path(__file__).parent.parent / "tests" / "planted" / "causes" / "corpus.py"
NONE = "none"


def corpus() -> Any:
    """The planted trainings, which are no part of the package."""
    spec = importlib.util.spec_from_file_location("planted_causes", CORPUS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(seeds: range, only: str) -> list[dict[str, Any]]:
    """One row per training."""
    rows = []
    for case in corpus().CASES:
        if only not in case.name:
            continue
        for seed in seeds:
            start = time.perf_counter()
            watch, record = case.run(seed)
            trained = time.perf_counter()
            findings = diagnose(watch, record)
            ended = time.perf_counter()
            grave = [f for f in findings if f.severity != "note"]
            dead = sum(int(watch.timeline(s.name).dead.sum()) for s in watch.sites)
            unknown = sum(len(f.units) for f in findings if f.code == "unknown-cause")
            rows.append(
                {
                    "case": case.name,
                    "seed": seed,
                    "planted": case.cause or NONE,
                    "named": grave[0].code if grave else NONE,
                    "site": case.site,
                    "named_site": grave[0].site if grave else None,
                    "dead": dead,
                    "unknown": unknown,
                    "said": str(grave[0]) if grave else "",
                    "training_s": trained - start,
                    "diagnosis_s": ended - trained,
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the matrix and what lies off its diagonal."""
    pairs = Counter((r["planted"], r["named"]) for r in rows)
    planted = list(dict.fromkeys(r["planted"] for r in rows))
    named = list(dict.fromkeys([*planted, *(r["named"] for r in rows)]))
    wide = max(map(len, named)) + 2
    print(" " * wide + "".join(f"{i:>5}" for i in range(len(named))))
    for name in planted:
        print(f"{name:<{wide}}" + "".join(f"{pairs[name, other] or '·':>5}" for other in named))
    print("columns: " + ", ".join(f"{i} {name}" for i, name in enumerate(named)))
    ill = [r for r in rows if r["planted"] != NONE]
    well = [r for r in rows if r["planted"] == NONE]
    sited = [r for r in ill if r["site"]]
    for label, chosen, right in (
        ("planted cause first", ill, lambda r: r["named"] == r["planted"]),
        ("no cause named where there is none", well, lambda r: r["named"] == NONE),
        ("cause and site first, where a site was planted", sited, lambda r: _at(r) and r["named"] == r["planted"]),
    ):
        if chosen:
            good = sum(map(right, chosen))
            print(f"{label}: {good} of {len(chosen)} ({good / len(chosen):.1%})")
    dead = sum(r["dead"] for r in ill)
    if dead:
        unknown = sum(r["unknown"] for r in ill)
        print(f"deaths of unknown cause, in trainings with a planted one: {unknown} of {dead} ({unknown / dead:.1%})")
    for what in ("training_s", "diagnosis_s"):
        times = [r[what] for r in rows]
        print(f"{what.removesuffix('_s')}: median {statistics.median(times):.3f} s, longest {max(times):.3f} s")
    for r in rows:
        if r["named"] != r["planted"] or not _at(r):
            where = f" at '{r['site']}'" if r["site"] else ""
            print(f"- {r['case']} (seed {r['seed']}): planted {r['planted']}{where}, named {r['named']}. {r['said']}")


def _at(row: dict[str, Any]) -> bool:
    return row["site"] is None or row["site"] == row["named_site"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each case")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="write one object per training there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(range(given.first_seed, given.first_seed + given.seeds), given.only)
    if not rows:
        parser.error(f"no case has '{given.only}' in its name")
    show(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
