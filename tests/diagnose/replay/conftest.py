"""Training loops as people write them, each a function of (watch or None), for what replay must do again."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import relume

STEPS = 12
LOOPS = {}


@pytest.fixture(scope="session")
def data():
    loaded = load_digits()
    return torch.tensor(loaded.data, dtype=torch.float32) / 16, torch.tensor(loaded.target)


@dataclass
class Run:
    model: nn.Module
    optimizers: Any
    watch: Any
    extra: Any = None


def loop(function):
    """Register a loop: a function (x, y, watching) -> Run; `watching(model, optimizers)` is a context."""
    LOOPS[function.__name__] = function
    return function


def mlp(*between, inputs=64, width=24):
    return nn.Sequential(nn.Linear(inputs, width), *between, nn.ReLU(), nn.Linear(width, 10))


def batches(x, y, size=32, steps=STEPS):
    drawn = torch.Generator().manual_seed(3)
    for _ in range(steps):
        rows = torch.randint(len(x), (size,), generator=drawn)
        yield x[rows], y[rows]


@loop
def plain(x, y, watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            loss = F.cross_entropy(model(given), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Run(model, [optimizer], watch)


@loop
def zeroed_before_and_in_place(x, y, watching):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            optimizer.zero_grad(set_to_none=False)
            nn.CrossEntropyLoss(label_smoothing=0.1)(model(given), wanted).backward()
            optimizer.step()
    return Run(model, [optimizer], watch)


@loop
def never_zeroed(x, y, watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            F.cross_entropy(model(given), wanted).backward()
            optimizer.step()
    return Run(model, [optimizer], watch)


@loop
def dropout_and_batch_norm(x, y, watching):
    model = mlp(nn.BatchNorm1d(24), nn.Dropout(0.3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=STEPS + 1)
    with watching(model, optimizer) as watch:
        for step, (given, wanted) in enumerate(batches(x, y)):
            noisy = given + 0.1 * torch.randn_like(given)
            loss = F.cross_entropy(F.dropout(model(noisy), 0.1), wanted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            if step == 5:
                model.eval()
                with torch.no_grad():
                    model(x[:100])
                model.train()
    return Run(model, [optimizer], watch)


@loop
def accumulated(x, y, watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer) as watch:
        for i, (given, wanted) in enumerate(batches(x, y, steps=3 * STEPS)):
            (F.cross_entropy(model(given), wanted) / 3).backward()
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    return Run(model, [optimizer], watch)


@loop
def penalties_and_edited_gradients(x, y, watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            given = given.clone().requires_grad_()
            out = model(given)
            loss = F.cross_entropy(out, wanted) + 0.01 * sum(p.square().sum() for p in model.parameters())
            (slope,) = torch.autograd.grad(loss, given, create_graph=True)
            loss = loss + slope.square().sum()
            optimizer.zero_grad()
            loss.backward()
            model[0].bias.grad.add_(0.01)
            model[0].weight.grad = model[0].weight.grad * 0.5
            for p in model.parameters():
                p.grad.clamp_(-0.1, 0.1)
            optimizer.step()
            with torch.no_grad():
                model[0].weight.mul_(0.999)
                model[2].weight.data.clamp_(-0.5, 0.5)
    return Run(model, [optimizer], watch)


@loop
def scaled_under_autocast(x, y, watching):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(given)
                loss = F.cross_entropy(out, wanted)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    return Run(model, [optimizer], watch)


@loop
def buffers_filled_anew(x, y, watching):
    """The batch lies in the same memory each time."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given, wanted = torch.empty(32, 64), torch.empty(32, dtype=torch.long)
    weights = torch.ones(10)
    with watching(model, optimizer) as watch:
        for a, b in batches(x, y):
            given.copy_(a)
            wanted.copy_(b)
            weights.mul_(1.1)
            loss = F.cross_entropy(model(given), wanted, weight=weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Run(model, [optimizer], watch)


@loop
def two_losses_two_optimizers(x, y, watching):
    """Two passes in one step, backward in parts, and a head that is outside of the watched model."""
    model, head = mlp(), nn.Linear(10, 10)
    first = torch.optim.SGD(model.parameters(), lr=0.1)
    second = torch.optim.Adam(head.parameters(), lr=0.01)
    with watching(model, [first, second]) as watch:
        for given, wanted in batches(x, y):
            out, other = model(given), model(given.flip(1))
            first.zero_grad()
            second.zero_grad()
            F.cross_entropy(head(out), wanted).backward(retain_graph=True)
            F.mse_loss(out, other.detach()).backward()
            F.mse_loss(other, torch.zeros_like(other)).backward()
            second.step()
            first.step()
    return Run(model, [first, second], watch, head)


class Counting(nn.Module):
    """Its forward depends on a counter, on a hook, and on drawn numbers; it returns a dict."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 24), nn.Linear(24, 10)
        self.calls = 0
        self.register_buffer("mean", torch.zeros(24))

    def forward(self, x, *, scale):
        self.calls += 1
        h = F.relu(self.a(x * scale))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
            h = h + float(np.random.rand()) * 0.01
        h = h - 0.1 * self.mean
        if self.calls % 2:
            h = h * 0.9
        return {"logits": self.b(h), "hidden": h}


@loop
def counters_hooks_and_numpy(x, y, watching):
    model = Counting()
    seen = []
    model.a.register_forward_hook(lambda module, args, out: seen.append(1) or out * 1.01)
    model.b.weight.register_hook(lambda g: g.clamp(-0.05, 0.05))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            out = model(given, scale=0.5)
            loss = F.cross_entropy(out["logits"], wanted) + 0.1 * out["hidden"].abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Run(model, [optimizer], watch, seen)


@loop
def a_loss_of_hidden_activations(x, y, watching):
    """Kept by a hook; not returned by the model. From the sixth step on, another of them too."""
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10))
    hidden = {}
    for i in (1, 3):
        model[i].register_forward_hook(lambda module, args, out, i=i: hidden.update({i: out}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer) as watch:
        for step, (given, wanted) in enumerate(batches(x, y)):
            loss = F.cross_entropy(model(given), wanted) + 0.1 * hidden[1].abs().mean()
            if step > 5:
                loss = loss + 0.1 * hidden[3].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Run(model, [optimizer], watch)


@loop
def no_optimizer_given(x, y, watching):
    model = mlp()
    with watching(model, None) as watch:
        for given, wanted in batches(x, y):
            loss = F.cross_entropy(model(given), wanted)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= 0.1 * g
    return Run(model, [], watch)


@loop
def in_threes_with_modes(x, y, watching):
    """Contexts that push torch function modes of their own, and leave them at other times than the tape."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):
            with torch.device("cpu"):
                out = model(given)
            with torch.device("cpu"), torch.overrides.BaseTorchFunctionMode():
                loss = F.cross_entropy(out, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Run(model, [optimizer], watch)


@loop
def closures(x, y, watching):
    """As Lightning does it: the step is given a closure that makes the loss, clips and counts."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    with watching(model, optimizer) as watch:
        for given, wanted in batches(x, y):

            def closure(given=given, wanted=wanted):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(given), wanted)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                return loss

            optimizer.step(closure)
    return Run(model, [optimizer], watch)


def pytest_generate_tests(metafunc):
    if "loop_name" in metafunc.fixturenames:
        metafunc.parametrize("loop_name", LOOPS)


@pytest.fixture
def run_loop(data):
    """Run one of the loops, watched with replay or not at all."""

    def run(name, *, replay=None, inside=None, **options):
        torch.manual_seed(7)
        np.random.seed(7)

        def watching(model, optimizers):
            if replay is None:
                return contextlib.nullcontext()
            return relume.watch(model, optimizers, every=1, window=4, min_inputs=32, replay=replay, **options)

        return LOOPS[name](*data, watching)

    return run
