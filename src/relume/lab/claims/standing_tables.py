"""The contest's standings as sentences, tables and a plot."""

from __future__ import annotations

from collections.abc import Iterable

from relume.lab.claims import plot
from relume.lab.claims.members import CONTEST_TASKS
from relume.lab.claims.runs import Runs
from relume.lab.claims.standings import OURS, against_rivals, on_tasks, places_by_loss, profiles, standings


def headline(runs: Runs) -> str:
    """How DReLU came off, in a few sentences."""
    ranked = standings(runs)
    place = 1 + [s.activation for s in ranked].index(OURS)
    ours, relu = ranked[place - 1], next(s for s in ranked if s.activation == "relu")
    best = ranked[0] if place > 1 else ranked[1]
    faster = sum(s.loss < ours.loss for s in ranked)
    tasks = on_tasks(runs)
    wins = sum(t.place == 1 for t in tasks)
    ahead, behind = sum(t.difference.low > 0 for t in tasks), sum(t.difference.high < 0 for t in tasks)
    far = sorted(tasks, key=lambda t: t.difference.estimate)[:2]
    furthest = [f"{t.task} ({t.ours.estimate:.1f} against {t.best}'s {t.bests.estimate:.1f})" for t in far]
    return (
        f"**DReLU against all others, with equal tuning**: place {place} of {len(ranked)} by test score, averaged over "
        f"{len(tasks)} tasks: {ours.points:.2f} points; {best.activation} has {best.points:.2f}, ReLU "
        f"{relu.points:.2f}. By training loss it has place {faster + 1}. It has the best mean score on {wins} of "
        f"{len(tasks)} tasks, is surely ahead of every other on {ahead}, and surely behind some other on {behind}. It "
        f"is furthest from the best on {' and '.join(furthest)}."
    )


def tables(runs: Runs) -> list[str]:
    """Lines of Markdown: places, rivals, tasks, learning rates."""
    places = [
        [str(n), f"**{s.activation}**" if s.activation == OURS else s.activation, f"{s.points:.2f}", f"{s.loss:.3f}",
         str(s.diverged), ", ".join(f"{rate:g}" for rate in s.rates)]
        for n, s in enumerate(standings(runs), 1)
    ]  # fmt: skip
    rivals = [
        [rival, str(found.difference), f"{p:.2g}", str(found.improvement)] for rival, found, p in against_rivals(runs)
    ]
    each = [[t.task, str(t.ours), str(t.place), t.best, str(t.bests), str(t.difference)] for t in on_tasks(runs)]
    by_loss = zip(CONTEST_TASKS, places_by_loss(runs), strict=True)
    return [
        *_table("place, activation, test points, training loss, diverged, learning rates chosen", places), "",
        f"Means over tasks (of the loss, a geometric one); rates are of {', '.join(CONTEST_TASKS)}.", "",
        "DReLU against each, over all tasks and seeds; intervals of 95 % each by itself:", "",
        *_table("rival, test points ahead, p (Holm), chance that a run of DReLU's is better", rivals), "",
        "On each task against the others; the difference is from the best of them, and holds for all rivals and tasks "
        "at once:", "",
        *_table("task, DReLU, place, best other, its points, DReLU is ahead by", each), "",
        f"DReLU's place by training loss: {', '.join(f'{task} {place}' for task, place in by_loss)}.", "",
    ]  # fmt: skip


def _table(header: str, rows: Iterable[list[str]]) -> list[str]:
    names = header.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    return [plot.minus("| " + " | ".join(cells) + " |") for cells in lines]


def course_of_profiles(runs: Runs) -> str:
    """Performance profiles of DReLU, ReLU, and the best and the last of the others."""
    others = [s.activation for s in standings(runs) if s.activation not in (OURS, "relu")]
    thresholds = [float(t) for t in range(40, 101)]
    lines = [
        (name, found.share.tolist(), found.low.tolist(), found.high.tolist())
        for name, found in profiles(runs, (OURS, "relu", others[0], others[-1]), thresholds)
    ]
    levels = [f"{t:g}" if t % 10 == 0 else "" for t in thresholds]
    return plot.courses("Share of runs above each test score", "share of runs above", levels, lines, "test points")
