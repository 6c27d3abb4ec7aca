"""`run_member`: one training by an ordinary loop under watch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from relume.census import SiteCensus
from relume.errors import NoSitesError
from relume.lab.member import MIN_INPUTS, Member
from relume.lab.result import Curves, Result, SiteSummary
from relume.lab.setup import AT_ONCE, data_of, lesson_of, model_of, window_ends
from relume.lab.tasks.task import PARTS
from relume.treat.guard import guard
from relume.watch import Watch, census, watch


def run_member(member: Member, *, diagnose: bool = True) -> Result:
    """Train one model by the settings, watch it, and say what became of it.

    It is deterministic: the same settings on the same machine give the same result, but for `seconds`. The global
    random state is left as it was.

    Args:
        diagnose: also ask what killed the units that died.

    Raises:
        MissingExtraError: what the task's data come from is not installed.
    """
    return train_alone(member, diagnose=diagnose)[0]


def train_alone(member: Member, *, diagnose: bool = True) -> tuple[Result, nn.Module]:
    """As `run_member`, with the trained model."""
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.seed)
        task, split = data_of(member)
        model = model_of(member, task, split)
        lesson = lesson_of(member, task, split, model)
        optimizer = optimizer_of(member, model)
        losses: list[Tensor] = []
        validation: list[float] = []
        with _watched(member, model, optimizer, diagnose) as watched:
            penalty = _penalty(member, model)
            for step in range(member.steps):
                loss = lesson.loss(step)
                optimizer.zero_grad()
                (loss if penalty is None else loss + 0.1 * penalty()).backward()
                optimizer.step()
                losses.append(loss.detach())
                if member.treatment.startswith("guard"):
                    watched.log(loss=float(loss.detach()))
                if window_ends(member, step + 1):
                    validation.append(lesson.score("validation", step))
        last = member.steps - 1
        scores: dict[str, float] = {part: lesson.score(part, last) for part in PARTS}
        at_end = _census_at_end(model, lesson.inputs(last))
        causes = _causes(watched) if diagnose else None
    trained = torch.stack(losses).double()
    ends = [done for done in range(1, member.steps + 1) if window_ends(member, done)]
    curves = Curves(tuple(ends), window_means(trained, ends), tuple(validation), _dead_per_window(watched, ends))
    sites = {s.name: SiteSummary.of(s, watched.timeline(s.name)) for s in at_end}
    diverged = not bool(torch.isfinite(trained).all())
    return Result(member, scores, curves, sites, causes, time.perf_counter() - began, diverged), model


def optimizer_of(member: Member, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the member's settings name."""
    lr, decay = member.lr, member.weight_decay
    if member.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr, weight_decay=decay)
    if member.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr, weight_decay=decay)
    momentum = 0.9 if member.optimizer == "momentum" else 0.0
    return torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=decay)


def window_means(losses: Tensor, ends: list[int]) -> tuple[float, ...]:
    """Means of losses [steps] over the windows that end after so many steps."""
    starts = [0, *ends[:-1]]
    return tuple(float(losses[a:b].mean()) for a, b in zip(starts, ends, strict=True))


def _watched(member: Member, model: nn.Module, optimizer: torch.optim.Optimizer, diagnose: bool) -> Watch:
    settings: dict[str, Any] = {"every": member.every, "window": member.window, "min_inputs": MIN_INPUTS}
    if member.treatment.startswith("guard"):
        policy = "full" if member.treatment == "guard-full" else "gentle"
        return guard(model, optimizer, policy=policy, seed=member.seed, **settings)
    return watch(model, optimizer, diagnose=diagnose, **settings)


def _penalty(member: Member, model: nn.Module) -> Callable[[], Tensor] | None:
    if member.treatment != "penalty":
        return None
    from relume.nn import LivenessPenalty

    return LivenessPenalty(model)


def _census_at_end(model: nn.Module, x: Tensor) -> tuple[SiteCensus, ...]:
    """Of all training inputs, in evaluation; empty where the network applies no activation that relume knows."""
    try:
        return census(model, x.split(AT_ONCE), min_inputs=min(MIN_INPUTS, len(x))).sites
    except NoSitesError:
        return ()


def _causes(watched: Watch) -> dict[str, int]:
    found: Counter[str] = Counter()
    for finding in watched.diagnose():
        found[finding.code] += len(finding.units)
    return dict(found)


def _dead_per_window(watched: Watch, ends: list[int]) -> tuple[int, ...]:
    """Dead units in the windows that end after so many steps; in one without an observed step, as in the one before."""
    dead = [(w.last_step + 1, watched.census_of(w).dead) for w in watched.windows if "train" in w.counts]
    latest = dead[-1][1] if dead else 0
    return tuple(next((count for last, count in dead if last >= end), latest) for end in ends)
