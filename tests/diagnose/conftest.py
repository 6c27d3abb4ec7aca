"""Real small trainings under watch and record."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import relume
from relume.diagnose.record import Record


@dataclass
class Training:
    model: nn.Module
    watch: Any
    record: Any
    batches: list = field(default_factory=list)
    states: list = field(default_factory=list)  # of the model before each step, where they are kept


@pytest.fixture(scope="session")
def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]


@pytest.fixture
def train(digits):
    """Train on digits; `shape` is what one image is given as."""

    def run(model, optimizer=None, *, steps=20, every=1, window=10, shape=(64,), recorded=True, keep=False, **options):
        x, y = digits
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        drawn = torch.Generator().manual_seed(1)
        with relume.watch(model, optimizer, every=every, window=window, min_inputs=32) as watch:
            training = Training(model, watch, Record.on(watch, **options) if recorded else None)
            for _ in range(steps):
                batch = torch.randint(len(x), (32,), generator=drawn)
                given = x[batch].reshape(-1, *shape)
                if keep:
                    training.batches.append(given)
                    training.states.append({k: v.clone() for k, v in model.state_dict().items()})
                loss = F.cross_entropy(model(given), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return training

    return run
