"""`run_batched`: members of one shape trained as one, with each one's census: what `run_member` gives, sooner."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relume.errors import RelumeError
from relume.lab.alone import window_means
from relume.lab.member import MAY_DIFFER, MIN_INPUTS, Member
from relume.lab.result import Curves, Result, SiteSummary
from relume.lab.setup import data_of, model_of, order_of, window_ends
from relume.lab.tasks import Part, Split, Task
from relume.lab.together import CantStackError, Network

# Numbers of a hidden layer, of all members, in a pass of evaluation.
_AT_ONCE = 2**20


def run_batched(members: Sequence[Member]) -> list[Result]:
    """Train members of one shape together, and say what became of each.

    They may differ in activation, initialization, learning rate, weight decay and seed; the order of batches goes with
    the seed. Each result is that of `run_member` to rounding, but that `causes` is None: diagnosis follows a model that
    trains by itself. `seconds` is an equal share.

    Args:
        members: any number, in any order; results come in the same.

    Raises:
        RelumeError: they are not of one shape, have a treatment, or (`CantStackError`) have a network that can't be
            stacked (a transformer, an activation that draws at random) or learns from its own play. `run_member` takes
            these.
        MissingExtraError: what the task's data come from is not installed.
    """
    return [result for result, _ in train_together(members)]


def train_together(members: Sequence[Member]) -> list[tuple[Result, nn.Module]]:
    """As `run_batched`, with the trained models."""
    if not members:
        return []
    _check(members)
    began = time.perf_counter()
    # Equal activations next to each other: they are applied at once.
    places = sorted(range(len(members)), key=lambda i: members[i].activation)
    ordered = [members[i] for i in places]
    task, split = data_of(members[0])
    if task.kind == "control":
        raise CantStackError(f"each member of '{task.name}' learns from its own play: use run_member")
    with torch.random.fork_rng(devices=[]):
        models = [model_of(member, task, split) for member in ordered]
        network = Network(models, ordered)
        course = _train(network, ordered, task, split)
        results = _results(network, ordered, task, split, course)
    network.give_back()
    seconds = (time.perf_counter() - began) / len(members)
    results = [dataclasses.replace(result, seconds=seconds) for result in results]
    found = dict(zip(places, zip(results, models, strict=True), strict=True))
    return [found[i] for i in range(len(members))]


def _check(members: Sequence[Member]) -> None:
    first = members[0]
    for member in members:
        if member.treatment != "none":
            raise RelumeError(f"treatment {member.treatment!r} is for a model that trains by itself: use run_member")
        if member.shape != first.shape:
            apart = [
                f"{f.name} {getattr(first, f.name)!r} and {getattr(member, f.name)!r}"
                for f in dataclasses.fields(Member)
                if f.name not in MAY_DIFFER and getattr(first, f.name) != getattr(member, f.name)
            ]
            raise RelumeError(f"members that are trained together have one shape; these differ in {', '.join(apart)}")


@dataclass(frozen=True)
class _Course:
    """How training went: losses [steps, members]; and at the end of each window, scores and dead units of members."""

    losses: Tensor
    ends: list[int]
    validation: list[list[float]]
    dead: list[list[int]]


def _train(network: Network, members: Sequence[Member], task: Task, split: Split) -> _Course:
    of = members[0]
    x, y = split.train
    # Which inputs each step sees, of all members: [steps, members · batch].
    orders = torch.stack([order_of(member, len(x)) for member in members], 1).flatten(1)
    course = _Course(torch.empty(of.steps, len(members), dtype=torch.float64), [], [], [])
    for step, rows in enumerate(orders):
        batch = task.at(x.index_select(0, rows), step).unflatten(0, (len(members), -1))
        output = network(batch, training=True, observing=step if step % of.every == 0 else None)
        each = task.losses(output.flatten(0, 1), y.index_select(0, rows)).view(len(members), -1)
        burden = task.burden(*network.code())
        losses = (each if burden is None else each + burden).mean(1)
        network.parameters.step(losses.sum())
        course.losses[step] = losses.detach()
        if window_ends(of, step + 1):
            course.ends.append(step + 1)
            course.dead.append(network.end_window().tolist())
            course.validation.append(_scores(network, of, task, split.validation, step))
    return course


def _scores(network: Network, of: Member, task: Task, part: Part, step: int, *, count: bool = False) -> list[float]:
    """Each member's score on a part of the data; `count`: let the census see it."""
    at_once = max(_AT_ONCE // (network.members * of.width), 1)
    observing = step if count else None
    with torch.no_grad():
        outputs = [
            network(x.expand(network.members, *x.shape), training=False, observing=observing)
            for x in task.at(part.x, step).split(at_once)
        ]
    return [task.score(output, part.y) for output in torch.cat(outputs, 1)]


def _results(network: Network, members: Sequence[Member], task: Task, split: Split, course: _Course) -> list[Result]:
    last = members[0].steps - 1
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    scores = {
        name: _scores(network, members[0], task, part, last, count=name == "train") for name, part in parts.items()
    }
    at_end = network.at_end(min(MIN_INPUTS, len(split.train.x)))
    results = []
    for i, member in enumerate(members):
        losses = course.losses[:, i]
        curves = Curves(
            tuple(course.ends),
            window_means(losses, course.ends),
            tuple(of_window[i] for of_window in course.validation),
            tuple(of_window[i] for of_window in course.dead),
        )
        sites = {name: SiteSummary.of(*found[i]) for name, found in at_end.items()}
        own = {name: of_part[i] for name, of_part in scores.items()}
        results.append(Result(member, own, curves, sites, None, 0.0, not bool(torch.isfinite(losses).all())))
    return results
