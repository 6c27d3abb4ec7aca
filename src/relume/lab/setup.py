"""What a member trains on and in which order: the same whether it is trained alone or with others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relume.lab import tasks
from relume.lab.member import Member
from relume.lab.tasks import Part, Split, Task
from relume.lab.tasks.task import Lesson, PartName

# Inputs in a pass of evaluation.
AT_ONCE = 512


def data_of(member: Member) -> tuple[Task, Split]:
    """A member's task and data, numbers in torch's default dtype."""
    task = tasks.get(member.task)
    split = task.data(member.split)
    return task, Split(*(Part(_as_default(part.x), _as_default(part.y)) for part in _parts(split)))


def _parts(split: Split) -> tuple[Part, Part, Part]:
    return split.train, split.validation, split.test


def _as_default(values: Tensor) -> Tensor:
    return values.to(torch.get_default_dtype()) if values.is_floating_point() else values


def model_of(member: Member, task: Task, split: Split) -> nn.Module:
    """A member's model with initial weights."""
    return task.model(
        member.activation,
        width=member.width,
        depth=member.depth,
        norm=member.norm,
        init=member.init,
        seed=member.seed,
        batch=split.train.x,
    )


def lesson_of(member: Member, task: Task, split: Split, model: nn.Module) -> Lesson:
    """How a member's model is taught: as the task says, else by rows of the data."""
    own = task.lesson(model, batch=member.batch, steps=member.steps, seed=member.seed, split=member.split)
    return _Rows(member, task, split, model) if own is None else own


class _Rows:
    """A `Lesson` by rows of the data, epoch by epoch."""

    def __init__(self, member: Member, task: Task, split: Split, model: nn.Module) -> None:
        self.task, self.split, self.model = task, split, model
        self.order = order_of(member, len(split.train.x))

    def loss(self, step: int) -> Tensor:
        x, y = self.split.train
        rows = self.order[step]
        return self.task.batch_loss(self.model, self.task.at(x[rows], step), y[rows])

    def score(self, part: PartName, step: int) -> float:
        x, y = getattr(self.split, part)
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            outputs = torch.cat([self.model(some) for some in self.task.at(x, step).split(AT_ONCE)])
        self.model.train(training)
        return self.task.score(outputs, y)

    def inputs(self, step: int) -> Tensor:
        return self.task.at(self.split.train.x, step)


def order_of(member: Member, inputs: int) -> Tensor:
    """Which inputs each step sees: int64 [steps, batch]; epoch by epoch, each a new permutation without what would be
    an incomplete batch. With fewer inputs than a batch holds, every batch is all of them."""
    batch = min(member.batch, inputs)
    generator = torch.Generator().manual_seed(member.seed)
    in_epoch = inputs // batch
    epochs = -(-member.steps // in_epoch)
    rows = [
        torch.randperm(inputs, generator=generator)[: in_epoch * batch].view(in_epoch, batch) for _ in range(epochs)
    ]
    return torch.cat(rows)[: member.steps]


def window_ends(member: Member, done: int) -> bool:
    """Does a window of the census end when so many steps are done? The last may be shorter."""
    return done % member.window == 0 or done == member.steps
