"""A watch of a compiled model leaves the model, its wrappers and torch as they were, and keeps them so while open."""

import copy
import gc
import random
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import eval_frame

import relume
from relume.watch.aside import aside, copied

EAGER = {"backend": "eager"}


def held(*modules):
    """Every attribute of every module by identity, and all hooks."""
    return [
        {k: (id(v), list(v) if isinstance(v, dict) else None) for k, v in m.__dict__.items()}
        for module in modules
        for m in module.modules()
    ]


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_two_watches_leave_a_model_compiled_both_ways_as_it_was(lab, error, first):
    wrapped, in_place = lab.make(), lab.make()
    compiled = torch.compile(wrapped, **EAGER)
    in_place.compile(**EAGER)
    before = held(compiled, in_place)
    for call in (compiled, in_place):
        watches = [relume.watch(call, every=1), relume.watch(call, every=1)]
        call(torch.randn(8, 4))
        if error:
            with pytest.raises(RuntimeError):
                call(torch.randn(8, 3))
        watches[first].close()
        call(torch.randn(8, 4))
        watches[1 - first].close()
        call(torch.randn(8, 4))
        assert watches[first].census("all")[":relu"].inputs == 8
        assert watches[1 - first].census("all")[":relu"].inputs == 16
    assert held(compiled, in_place) == before
    assert eval_frame._stance.stance == "default"
    assert not any(f[0] == "ignore" and "torch.compile" in str(f[1]) for f in warnings.filters)


def test_a_copy_or_pickle_of_a_model_compiled_in_place_carries_no_watch(lab):
    model = lab.make()
    model.compile(**EAGER)
    with relume.watch(model, every=1) as watch:
        other = copy.deepcopy(model)
        other(torch.randn(8, 4))
        model(torch.randn(8, 4))
    assert "_compiled_call_impl" not in other.__dict__
    assert watch.census("all")[":relu"].inputs == 8


def test_a_watched_compiled_model_that_nobody_keeps_is_freed(lab):
    model = lab.make()
    compiled = torch.compile(model, **EAGER)
    watch = relume.watch(model, every=1)
    compiled(torch.randn(8, 4))
    gone = weakref.ref(watch)
    del watch, compiled, model
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


def test_a_stance_of_the_users_own_is_put_back(lab):
    model = lab.make()
    compiled = torch.compile(model, **EAGER)
    compiled(torch.randn(8, 4))
    with relume.watch(compiled, every=1) as watch, torch.compiler.set_stance("fail_on_recompile"):
        compiled(torch.randn(8, 4))
        assert eval_frame._stance.stance == "fail_on_recompile"
        with pytest.raises(RuntimeError, match="recompile"):
            compiled(torch.randn(8, 4).double())
        assert eval_frame._stance.stance == "fail_on_recompile"
    assert watch.census("all")[":relu"].inputs == 8


class Writes(nn.Module):
    """Writes to all that a forward pass may write to."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("ema", torch.zeros(4))
        self.calls, self.mean, self.seen, self.cache = 0, torch.zeros(4), [], {"k": torch.zeros(4)}
        self.source = torch.Generator().manual_seed(3)

    def forward(self, x):
        y = F.relu(self.fc(x.clone()))
        self.calls += 1
        self.ema.mul_(0.9).add_(y.detach().mean(0))
        self.mean = self.mean + y.detach().mean(0)
        self.mean.add_(1.0)
        self.seen.append(y.detach().mean())
        self.cache["k"].add_(1.0)
        self.cache[len(self.cache)] = self.calls
        noise = torch.rand(4, generator=self.source)
        x.add_(random.random() + float(np.random.rand()) + float(torch.rand(())))
        return y + noise + x


def written(model, x):
    chance = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    lists = [t.tolist() for t in (model.ema, model.mean, x, model.cache["k"], *model.seen)]
    return lists, model.calls, list(model.cache), model.source.get_state().tolist(), chance


def test_a_look_aside_leaves_no_trace_of_what_the_model_writes(lab):
    def run(watched):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        model = Writes()
        model.compile(**EAGER)
        watch = relume.watch(model, every=1) if watched else None
        x = torch.randn(8, 4)
        for _ in range(3):
            model(x).sum().backward()
        if watch is not None:
            watch.close()
            assert watch.census("all")[":relu"].inputs == 24
        return written(model, x), [p.grad.tolist() for p in model.parameters()]

    assert run(True) == run(False)


def test_aside_puts_everything_back_after_an_error_and_in_place():
    model = Writes()
    x = torch.randn(8, 4)
    objects = [id(model.ema), id(model.mean), id(model.seen), id(model.cache), id(model.cache["k"])]
    before = written(model, x.clone())
    with pytest.raises(ZeroDivisionError), aside(model):  # noqa: PT012
        model(x.clone())
        assert written(model, x)[0] != before[0]
        raise ZeroDivisionError
    assert written(model, x) == before
    assert objects == [id(model.ema), id(model.mean), id(model.seen), id(model.cache), id(model.cache["k"])]


def test_aside_is_no_change_to_what_autograd_has_saved():
    model = nn.BatchNorm1d(4)
    model.eval()
    x = torch.randn(8, 4, requires_grad=True)
    y = model(x)
    with aside(model):
        model.running_mean.data.add_(1.0)
    y.sum().backward()
    assert x.grad is not None


def test_aside_does_not_cost_a_weight_its_gradient_under_autocast():
    model = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with aside(model):
            model(torch.randn(2, 4))
        model(torch.randn(2, 4)).sum().backward()
    assert model.weight.grad is not None


def test_copied_arguments_share_no_memory_and_keep_what_is_one_as_one():
    class Cache:
        def __init__(self):
            self.keys = [torch.zeros(2)]

    x, cache = torch.randn(3, requires_grad=True), Cache()
    (a, b), kwargs = copied(((x * 2, [x]), {"x": x, "cache": cache, "n": 3, "f": len}))
    assert b[0] is kwargs["x"]
    assert b[0].requires_grad
    assert b[0].is_leaf
    with torch.no_grad():
        b[0].add_(1.0)
        kwargs["cache"].keys[0].add_(1.0)
        kwargs["cache"].keys.append(a)
    assert not torch.equal(b[0], x)
    assert len(cache.keys) == 1
    assert cache.keys[0].tolist() == [0.0, 0.0]
    assert kwargs["n"] == 3
    assert kwargs["f"] is len
