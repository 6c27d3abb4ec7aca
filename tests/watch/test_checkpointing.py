"""Under activation checkpointing every site is counted once per forward pass, and training stays bitwise the same."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

import relume


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.25)

    def forward(self, x):
        return x + self.drop(F.relu(self.fc(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.blocks, self.out = nn.Linear(4, 8), nn.Sequential(*(Block() for _ in range(4))), nn.Linear(8, 1)
        with torch.no_grad():
            self.blocks[1].fc.bias[3] = -50.0
        self.run = None

    def forward(self, x):
        x = torch.relu(self.inp(x))
        for part in self.run(self.blocks) if self.run else self.blocks:
            x = part(x)
        return self.out(x)


def save_products(ctx, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if op is torch.ops.aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


def selective(x, block):
    return checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(save_products)
    )


WAYS = {
    "each block, not reentrant": lambda blocks: [lambda x, b=b: checkpoint(b, x, use_reentrant=False) for b in blocks],
    "each block, reentrant": lambda blocks: [lambda x, b=b: checkpoint(b, x, use_reentrant=True) for b in blocks],
    "in segments": lambda blocks: [lambda x: checkpoint_sequential(blocks, 2, x, use_reentrant=False)],
    "in segments, reentrant": lambda blocks: [lambda x: checkpoint_sequential(blocks, 2, x, use_reentrant=True)],
    "by a policy": lambda blocks: [lambda x, b=b: selective(x, b) for b in blocks],
    "one in another": lambda blocks: [
        lambda x: checkpoint(lambda y: checkpoint(blocks, y, use_reentrant=False), x, use_reentrant=False)
    ],
}


def train(model, every=None, call=None):
    call = call or model
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    torch.manual_seed(1)
    watch = relume.watch(model, optimizer, every=every) if every else None
    losses = []
    for _ in range(4):
        loss = call(torch.randn(16, 4, requires_grad=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if watch:
        watch.close()
    return (losses, [p.tolist() for p in model.parameters()], torch.get_rng_state().tolist()), watch


def counts(watch):
    census = watch.census("all")
    return {n: (census[n].inputs, census[n].fired.tolist(), census[n].mean_output.tolist()) for n in census}


@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_blocks_are_counted_once_and_as_without_checkpoints(way):
    plain = Net()
    model = copy.deepcopy(plain)
    model.run = WAYS[way]
    bare, _ = train(copy.deepcopy(model))
    got, watch = train(model, every=1)
    assert got == bare
    _, expected = train(plain, every=1)
    assert counts(watch) == counts(expected)
    assert watch.census("all")["blocks.1:relu"].inputs == 64
    assert watch.census("all")["blocks.1:relu"].fired[3] == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_whole_model_in_a_checkpoint_is_counted_once_and_as_without(reentrant):
    plain = Net()
    model = copy.deepcopy(plain)

    def call(x):
        return checkpoint(model, x, use_reentrant=reentrant)

    bare, _ = train(copied := copy.deepcopy(model), call=lambda x: checkpoint(copied, x, use_reentrant=reentrant))
    got, watch = train(model, every=1, call=call)
    assert got == bare
    _, expected = train(plain, every=1)
    assert {n: c[:2] for n, c in counts(watch).items()} == {n: c[:2] for n, c in counts(expected).items()}
