"""How often a diagnosis names the planted cause first: a confusion matrix over the trainings of tests/planted/causes.

    python benchmarks/diagnosis.py [--corpus NAME] [--seeds 4] [--first-seed 0] [--only WORD] [--json FILE]
    python benchmarks/diagnosis.py --replay [--corpus …] [--seeds …]
    python benchmarks/diagnosis.py --speed

Corpora: "first" was written together with the rules; "second" before and apart from their present form; "held" was
looked at only after rules had been mended by the second. "third" and "fourth" are by another outsider, with a control
for each; the fourth was looked at only at the end. Where more than one cause is right, the matrix counts the planted
one if any of them came first. In the third and fourth, some trainings ask for the first finding at a site.

Rows are planted causes, columns what was put first among findings that are more than notes ("none": there were none).
Below it: for planted sites, whether the first finding names that site; deaths said to be of unknown cause; and every
training that was diagnosed otherwise. `--speed` diagnoses 100 sites of 1000 units, a tenth of which have died.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import relume
from relume.diagnose.causes import diagnose
from relume.diagnose.record import Record
from relume.diagnose.replay import confirmed

PLANTED = Path(__file__).parent.parent / "tests" / "planted" / "causes"
NONE = "none"


@dataclass(frozen=True)
class Planted:
    """One training of any corpus; `right` are codes of which one must come first, `sites` where."""

    name: str
    cause: str
    right: frozenset[str]
    sites: frozenset[str]
    run: Callable[[int], Any]
    ask: str | None = None  # the site whose first finding is judged; None: the first of all


def corpus(name: str) -> list[Planted]:
    """The planted trainings, which are no part of the package."""
    if name == "first":
        cases = _load("planted_causes", PLANTED / "corpus.py").CASES
        return [
            Planted(c.name, c.cause or NONE, frozenset({c.cause or NONE}), frozenset({c.site} - {None}), c.run)
            for c in cases
        ]
    if name in ("third", "fourth"):
        third = _load("planted_third", PLANTED / "third" / "__init__.py", [str(PLANTED / "third")])
        return [
            Planted(
                c.name,
                " or ".join(sorted(c.accepted or {NONE})),
                c.accepted or frozenset({NONE}),
                frozenset(),
                c.run,
                c.site,
            )
            for c in (third.CASES if name == "third" else third.HELD_BACK)
        ]
    second = _load("planted_second", PLANTED / "second" / "__init__.py", [str(PLANTED / "second")])
    return [
        Planted(c.name, c.planted or NONE, c.causes or frozenset({NONE}), c.sites, c.run)
        for c in (second.HELD_BACK if name == "held" else second.CASES)
    ]


def _load(name: str, path: Path, folders: list[str] | None = None) -> Any:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(which: str, seeds: range, only: str, replay: bool = False) -> list[dict[str, Any]]:
    """One row per training; with `replay`, each is watched with replay=True and grave findings are confirmed."""
    watch = relume.watch
    if replay:
        relume.watch = functools.partial(watch, replay=True)
    try:
        return _run(which, seeds, only)
    finally:
        relume.watch = watch


def _run(which: str, seeds: range, only: str) -> list[dict[str, Any]]:
    rows = []
    for case in corpus(which):
        if only not in case.name:
            continue
        for seed in seeds:
            start = time.perf_counter()
            ran = case.run(seed)
            watch, record = ran if isinstance(ran, tuple) else (ran, ran.record)
            trained = time.perf_counter()
            findings = diagnose(watch, record)
            if watch.replay is not None:
                notes = [f for f in findings if f.severity == "note"]
                findings = [*confirmed([f for f in findings if f not in notes], watch.replay), *notes]
            ended = time.perf_counter()
            grave = [f for f in findings if f.severity != "note" and case.ask in (None, f.site)]
            named = grave[0].code if grave else NONE
            dead = sum(int(watch.timeline(s.name).dead.sum()) for s in watch.sites)
            unknown = sum(len(f.units) for f in findings if f.code == "unknown-cause")
            rows.append(
                {
                    "case": case.name,
                    "seed": seed,
                    "planted": case.cause,
                    "named": case.cause if named in case.right else named,
                    "first": named,
                    "sites": sorted(case.sites),
                    "named_site": grave[0].site if grave else None,
                    "dead": dead,
                    "unknown": unknown,
                    "said": str(grave[0]) if grave else "",
                    "replay": grave[0].confirmation.sentence if grave and grave[0].confirmation else "",
                    "training_s": trained - start,
                    "diagnosis_s": ended - trained,
                }
            )
    return rows


def speed(sites: int = 100, units: int = 1000) -> None:
    """Seconds that a diagnosis takes of many sites whose units have died."""
    block = lambda: (nn.Linear(8, units), nn.ReLU(), nn.Linear(units, 8))  # noqa: E731
    model = nn.Sequential(*[m for _ in range(sites) for m in block()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x = torch.randn(64, units)
    with relume.watch(model, optimizer, every=1, window=8, min_inputs=128, diagnose=False) as watch:
        record = Record.on(watch, limit=2**31)
        for step in range(24):
            if step == 12:
                with torch.no_grad():
                    for layer in model:
                        if isinstance(layer, nn.Linear) and layer.out_features == units:
                            layer.bias[: units // 10] -= 100
            optimizer.zero_grad()
            model(x[:, :8]).square().mean().backward()
            optimizer.step()
    dead = sum(int(watch.timeline(s.name).dead.sum()) for s in watch.sites)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        findings = diagnose(watch, record)
        times.append(time.perf_counter() - start)
    print(f"{sites} sites of {units} units, {dead} dead: {len(findings)} findings in {min(times):.2f} s (best of 3)")


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
    sited = [r for r in ill if r["sites"]]
    for label, chosen, right in (
        ("planted cause first", ill, lambda r: r["named"] == r["planted"]),
        ("no cause named where there is none", well, lambda r: r["named"] == NONE),
        ("cause and site first, where a site was planted", sited, lambda r: _at(r) and r["named"] == r["planted"]),
    ):
        if chosen:
            good = sum(map(right, chosen))
            print(f"{label}: {good} of {len(chosen)} ({good / len(chosen):.1%})")
    said = [r["replay"] for r in ill if r["replay"]]
    if said:
        kinds = Counter(text.partition(":")[0] for text in said)
        print(
            "replay of the first finding, where a cause was planted: " + ", ".join(f"{n} {k}" for k, n in kinds.items())
        )
    dead = sum(r["dead"] for r in ill)
    if dead:
        unknown = sum(r["unknown"] for r in ill)
        print(f"deaths of unknown cause, in trainings with a planted one: {unknown} of {dead} ({unknown / dead:.1%})")
    for what in ("training_s", "diagnosis_s"):
        times = [r[what] for r in rows]
        print(f"{what.removesuffix('_s')}: median {statistics.median(times):.3f} s, longest {max(times):.3f} s")
    for r in rows:
        if r["named"] != r["planted"] or not _at(r):
            where = f" at {', '.join(map(repr, r['sites']))}" if r["sites"] else ""
            print(f"- {r['case']} (seed {r['seed']}): planted {r['planted']}{where}, named {r['named']}. {r['said']}")


def _at(row: dict[str, Any]) -> bool:
    return not row["sites"] or row["named_site"] in row["sites"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=("first", "second", "held", "third", "fourth"), default="first")
    parser.add_argument(
        "--replay", action="store_true", help="confirm by replay, and count the causes that it supports"
    )
    parser.add_argument("--speed", action="store_true", help="how long a diagnosis of many sites takes")
    parser.add_argument("--seeds", type=int, default=4, help="trainings of each case")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", type=Path, help="write one object per training there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.speed:
        speed()
        return
    rows = run(given.corpus, range(given.first_seed, given.first_seed + given.seeds), given.only, given.replay)
    if not rows:
        parser.error(f"no case has '{given.only}' in its name")
    show(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
