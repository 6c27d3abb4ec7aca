"""What a member trains on and in which order: the same whether it is trained alone or with others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relume.lab import tasks
from relume.lab.member import Member
from relume.lab.tasks import Part, Split, Task


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
