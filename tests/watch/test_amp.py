"""Mixed precision: the census is of the values in the precision used; steps that a scaler skips are none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)
        with torch.no_grad():
            self.conv.bias[1] = -50.0

    def forward(self, x):
        self.pre = self.conv(x)
        return self.fc(F.relu(self.pre).flatten(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cache", [False, True])
def test_the_census_under_autocast_is_that_of_the_values_in_low_precision(dtype, cache):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    fired = torch.zeros(4, dtype=torch.long)
    with relume.watch(model, optimizer, every=1) as watch:
        for _ in range(3):
            with torch.autocast("cpu", dtype, cache_enabled=cache):
                loss = model(torch.randn(8, 1, 8, 8)).float().square().mean()
            assert model.pre.dtype is dtype
            fired += (model.pre > 0).flatten(2).any(2).sum(0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    census = watch.census("all")[":relu"]
    assert census.fired.tolist() == fired.tolist()
    assert census.fired[1] == 0
    assert census.inputs == 24


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_no_steps_also_where_the_optimizer_itself_skips_them(fused):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with relume.watch(model, optimizer, every=1) as watch:
        for i in range(6):
            loss = model(torch.randn(4, 1, 8, 8)).sum() * (torch.inf if i in (1, 4) else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.step == 4
    assert watch.windows[0].observed == 4
    assert watch.census()[":relu"].inputs == 24


def test_under_autocast_no_weight_loses_its_gradient_to_a_watch():
    def gradients(watched):
        torch.manual_seed(0)
        model = Net()
        watch = relume.watch(model, every=1) if watched else None
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.randn(4, 1, 8, 8)).float().sum().backward()
        if watch:
            watch.close()
        return [p.grad.tolist() for p in model.parameters()]

    assert gradients(True) == gradients(False)
