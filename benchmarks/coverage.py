"""How often the intervals of relume.lab.stats hold the true value, and how often its tests find what is not there.

    python benchmarks/coverage.py                # table; --runs 10 --experiments 2000 --json

Scores are drawn from distributions whose truth is known; "fails" is what training that sometimes dies looks like: nine
runs in ten near 0.9, one in ten near 0.1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from relume.lab.stats import comparison, corrections, effects, location, proportions

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0.8, 0.02, shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "t3": lambda rng, shape: rng.standard_t(3, shape),
    "lognormal": lambda rng, shape: rng.lognormal(0, 0.5, shape),
    "exponential": lambda rng, shape: rng.exponential(1, shape),
    "fails": lambda rng, shape: np.where(rng.random(shape) < 0.1, 0.1, 0.9) + rng.normal(0, 0.02, shape),
}


def truth(draw: Draw, statistic: str, values: int = 4_000_000) -> float:
    """Population value, from so many draws that its own error does not count."""
    drawn = np.sort(draw(np.random.default_rng(99), (values,)))
    if statistic == "mean":
        return float(drawn.mean())
    if statistic == "median":
        return float(np.median(drawn))
    return float(drawn[values // 4 : values - values // 4].mean())


def share(hits: np.ndarray) -> dict[str, float]:
    found = proportions.proportion(int(hits.sum()), len(hits))
    return {"share": found.estimate, "low": found.low, "high": found.high}


def of_location(runs: int, tasks: int, experiments: int, resamples: int) -> list[dict[str, Any]]:
    rows = []
    for name, draw in DISTRIBUTIONS.items():
        batch = draw(np.random.default_rng(1), (experiments, runs, tasks))
        for statistic in ("mean", "iqm", "median"):
            true = truth(draw, statistic)
            function = location._STATISTICS[statistic]
            for method in ("student", "expanded", "percentile", "bca"):
                if method == "student":
                    if tasks > 1 or statistic == "median":
                        continue
                    low, high = location.student(batch[..., 0], 0.25 if statistic == "iqm" else 0.0, 0.95)
                else:
                    low, high = location.bootstrap(batch, function, 0.95, method, resamples, 0)
                held = (low <= true) & (true <= high)
                rows.append(
                    {"what": statistic, "method": method, "of": name, "runs": runs, "tasks": tasks, **share(held)}
                )
    return rows


def of_improvement(runs: int, experiments: int) -> list[dict[str, Any]]:
    rows = []
    rng = np.random.default_rng(2)
    for gap in (0.0, 0.5, 1.0, 2.0):
        true = float(scipy_stats.norm.cdf(gap / np.sqrt(2)))
        x, y = rng.normal(gap, 1, (experiments, runs)), rng.normal(0, 1, (experiments, runs))
        found = effects.better(x[:, :, None], y[:, None, :])
        ends = np.array([effects.newcombe(float(p), runs, runs, 1.959964) for p in found])
        rows.append(
            {"what": "improvement", "method": "newcombe", "of": f"true {true:.2f}", "runs": runs, "tasks": 1,
             **share((ends[:, 0] <= true) & (true <= ends[:, 1]))}
        )  # fmt: skip
        index = rng.integers(0, runs, (2, 500, runs))
        boot = np.stack([effects.better(x[:, i][:, :, None], y[:, j][:, None, :]) for i, j in index.swapaxes(0, 1)])
        low, high = np.quantile(boot, [0.025, 0.975], axis=0)
        rows.append(
            {"what": "improvement", "method": "bootstrap", "of": f"true {true:.2f}", "runs": runs, "tasks": 1,
             **share((low <= true) & (true <= high))}
        )  # fmt: skip
    return rows


def of_differences(runs: int, experiments: int) -> list[dict[str, Any]]:
    rows = []
    for name, draw in DISTRIBUTIONS.items():
        rng = np.random.default_rng(3)
        x, y = draw(rng, (experiments, runs, 1)), draw(rng, (experiments, runs, 1))
        low, high = comparison.welch(x, y, 0.95)
        rows.append({"what": "difference", "method": "welch", "of": name, "runs": runs, "tasks": 1,
                     **share((low <= 0) & (high >= 0))})  # fmt: skip
        low, high = location.student((x - y)[..., 0], 0.0, 0.95)
        rows.append({"what": "difference", "method": "paired t", "of": name, "runs": runs, "tasks": 1,
                     **share((low <= 0) & (high >= 0))})  # fmt: skip
    return rows


def of_tests(runs: int, experiments: int) -> list[dict[str, Any]]:
    """False positives at 5 %: of both tests, and of any of 20 comparisons, raw and corrected."""
    rows = []
    few = min(experiments, 1000)
    for name, draw in DISTRIBUTIONS.items():
        rng = np.random.default_rng(4)
        x, y = draw(rng, (few, runs, 1)), draw(rng, (few, runs, 1))
        for method, p in (
            ("signs", np.array([comparison.signs(a - b) for a, b in zip(x, y, strict=True)])),
            ("exchange", np.array([comparison.exchange(a, b, 999) for a, b in zip(x, y, strict=True)])),
        ):
            rows.append({"what": "false positives", "method": method, "of": name, "runs": runs, "tasks": 1,
                         **share(p <= 0.05)})  # fmt: skip
    p = np.random.default_rng(5).random((experiments, 20))
    for method, adjusted in (("raw", p), ("holm", np.array([corrections.holm(row) for row in p]))):
        rows.append({"what": "any of 20", "method": method, "of": "null", "runs": runs, "tasks": 1,
                     **share((adjusted <= 0.05).any(1))})  # fmt: skip
    return rows


def of_proportions() -> list[dict[str, Any]]:
    """Exact, by summing over all outcomes; mean and least over true shares from 0.01 to 0.99."""
    rows = []
    for trials in (10, 20, 100):
        outcomes = np.arange(trials + 1)
        truths = np.linspace(0.01, 0.99, 99)
        weight = scipy_stats.binom.pmf(outcomes, trials, truths[:, None])
        for method in ("wilson", "clopper-pearson"):
            ends = [proportions.proportion(int(k), trials, method=method) for k in outcomes]
            low, high = np.array([e.low for e in ends]), np.array([e.high for e in ends])
            held = (weight * ((low <= truths[:, None]) & (truths[:, None] <= high))).sum(1)
            rows.append({"what": "proportion", "method": method, "of": f"{trials} trials", "runs": trials, "tasks": 1,
                         "share": float(held.mean()), "low": float(held.min()), "high": float(held.max())})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=999)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = of_proportions()
    for runs in arguments.runs:
        for tasks in (1, 5):
            rows += of_location(runs, tasks, arguments.experiments, arguments.resamples)
        rows += of_improvement(runs, min(arguments.experiments, 1000))
        rows += of_differences(runs, arguments.experiments)
        rows += of_tests(runs, arguments.experiments)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'what':16}{'method':18}{'of':14}{'runs':>5}{'tasks':>6}{'held':>8}")
    for row in rows:
        ends = f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"
        print(
            f"{row['what']:16}{row['method']:18}{row['of']:14}{row['runs']:5}{row['tasks']:6}"
            f"{100 * row['share']:8.1f}  {ends}"
        )


if __name__ == "__main__":
    main()
