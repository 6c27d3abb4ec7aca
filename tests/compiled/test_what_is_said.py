"""What can't be seen of compiled code is said at once, with the reason and a way out."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.errors import RelumeWarning

EAGER = {"backend": "eager"}


def test_a_step_that_is_compiled_as_a_whole_is_named_at_its_first_call(lab):
    model = lab.make()

    @torch.compile(**EAGER, fullgraph=True)
    def loss_of(x):
        return model(x).square().mean()

    optimizer = lab.adam(model)
    with relume.watch(model, optimizer) as watch:
        with pytest.warns(RelumeWarning, match=r"loss_of is compiled as a whole.*Net.*Compile the model"):
            loss_of(torch.randn(8, 4)).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RelumeWarning)
            for _ in range(5):  # and only once
                loss_of(torch.randn(8, 4)).backward()
                optimizer.step()
    assert watch.step == 5
    assert len(watch.notes) == 1
    assert not watch.sites


def test_a_whole_step_compiled_before_the_watch_is_noticed_after_a_few_steps(lab):
    model = lab.make()
    whole = torch.compile(lambda x: model(x).square().mean(), **EAGER)
    whole(torch.randn(8, 4)).backward()
    optimizer = lab.adam(model)
    with relume.watch(model, optimizer):
        for _ in range(2):
            whole(torch.randn(8, 4)).backward()
            optimizer.step()
        with pytest.warns(RelumeWarning, match="without a call of Net"):
            optimizer.step()


def test_an_optimizer_whose_step_is_compiled_is_named_and_passes_are_counted_instead(lab):
    model = lab.make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stepping = torch.compile(optimizer.step, **EAGER)
    with relume.watch(model, optimizer, every=1) as watch:
        for i in range(5):
            model(torch.randn(8, 4)).sum().backward()
            if i < 2:
                optimizer.step()
            elif i == 2:
                with pytest.warns(RelumeWarning, match=r"SGD\.step is compiled as a whole.*each training forward"):
                    stepping()
            else:
                stepping()
            assert watch.step == i + 1
    assert watch.census("all")[":relu"].inputs == 40


def test_a_look_aside_that_fails_is_said_and_the_training_goes_on(lab, monkeypatch):
    monkeypatch.setattr("relume.sites.tracker.STRICT", False)

    class OnlyCompiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            if not torch.compiler.is_dynamo_compiling():
                raise TypeError("compiled code only")
            return F.relu(self.fc(x))

    model = OnlyCompiled()
    compiled = torch.compile(model, **EAGER, fullgraph=True)
    with pytest.warns(RelumeWarning, match="aside .TypeError: compiled code only"), relume.watch(compiled) as watch:
        assert compiled(torch.randn(8, 4)).shape == (8, 4)
    assert watch.step == 1


def test_a_scripted_model_is_refused_with_the_way_out(lab):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with pytest.raises(relume.RelumeError, match="watch the model that was scripted"):
        relume.watch(scripted)
    with pytest.raises(relume.RelumeError, match="census the model that was scripted"):
        relume.census(scripted, [torch.randn(8, 4)])
