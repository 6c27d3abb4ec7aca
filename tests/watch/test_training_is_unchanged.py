"""Watching changes no bit of a training: each member of the zoo is trained bare and watched, and all is compared."""

import contextlib
import copy
import hashlib
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import relume
from relume.watch.calls import Hook

from .zoo import ZOO

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
FLAGS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_non_persistent_buffers_set",
)
GLOBAL_HOOKS = [n for n in dir(nn_module) if n.startswith("_global") and isinstance(getattr(nn_module, n), dict)]


def bits(value):
    """A tensor as something that is equal only if every bit, stride and flag is."""
    if not isinstance(value, torch.Tensor):
        return value
    raw = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    data = hashlib.sha1(raw.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    stride = value.stride() if value.layout is torch.strided else None
    return str(value.dtype), tuple(value.shape), stride, value.requires_grad, value.is_leaf, data


def nested(value):
    if isinstance(value, dict):
        return {k: nested(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [nested(v) for v in value]
    return bits(value)


def graph(tensor):
    """Names of the autograd graph below a tensor, in order of a walk."""
    names, todo, seen = [], [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.append(node.name())
        todo += [n for n, _ in node.next_functions]
    return names


def hooks(model):
    """Names and flags of the hooks of every module, in order, but for relume's on the root; flags as they lie."""
    found = {}
    for name, module in model.named_modules():
        for kind in HOOKS:
            own = {k: h for k, h in getattr(module, kind).items() if not isinstance(h, Hook)}
            flags = [[f for f in FLAGS if k in getattr(module, f)] for k in own]
            found[name, kind] = [(getattr(h, "__qualname__", type(h).__name__)) for h in own.values()], flags
        ours = [h for kind in HOOKS for h in getattr(module, kind).values() if isinstance(h, Hook)]
        assert not ours or module is model or name == "generator", f"a hook of relume on {name}"
    return found


def chance():
    return bits(torch.get_rng_state()), hashlib.sha1(repr(random.getstate()).encode()).hexdigest(), np.random.rand()


class Training:
    """One run of a member of the zoo, and what it is compared by."""

    def __init__(self, **watching):
        self.watching = watching
        self.watches = []
        self.trace = []

    def begin(self, model, *optimizers, called=None):
        self.model, self.optimizers = model, optimizers
        if self.watching:
            self.watches = [relume.watch(called if called is not None else model, optimizers, **self.watching)]

    def state(self):
        return {
            "parameters": {n: bits(p) for n, p in self.model.named_parameters()},
            "gradients": {n: bits(p.grad) for n, p in self.model.named_parameters()},
            "buffers": {n: bits(b) for n, b in self.model.named_buffers()},
            "modes": {n: m.training for n, m in self.model.named_modules()},
            "attributes": {n: sorted(vars(m)) for n, m in self.model.named_modules()},
            "optimizers": [nested(o.state_dict()) for o in self.optimizers],
            "optimizer hooks": [
                [
                    h.__qualname__
                    for h in (*o._optimizer_step_pre_hooks.values(), *o._optimizer_step_post_hooks.values())
                    if not isinstance(h, Hook)
                ]
                for o in self.optimizers
            ],
            "hooks": hooks(self.model),
            "modes of torch": (len(_get_current_function_mode_stack()), len(_get_current_dispatch_mode_stack())),
            "global hooks": {n: len(getattr(nn_module, n)) for n in GLOBAL_HOOKS},
            "grad mode": torch.is_grad_enabled(),
            "chance": chance(),
        }

    def loss(self, value):
        self.trace.append(("loss", bits(value), graph(value), self.state()))

    def evaluated(self, value):
        tensors = value if isinstance(value, tuple) else (value,)
        self.trace.append(("evaluated", nested(value), [graph(t) for t in tensors], chance()))

    def called(self, what):
        self.trace.append(("called", what))

    def run(self, train):
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        train(self)
        for watch in self.watches:
            watch.close()
        self.trace.append(("end", self.state(), nested(dict(self.model.state_dict()))))
        for module in self.model.modules():
            left = {k: h for kind in HOOKS for k, h in getattr(module, kind).items()}
            assert not any(isinstance(h, Hook) for h in left.values())
            assert {k for flag in FLAGS[:3] for k in getattr(module, flag)} <= set(left)
        return self


BARE = {}
SAYS = {"rnn_with_dropout_between_layers": "dropout between layers"}  # the one that relume says it can't count


@pytest.mark.filterwarnings("error::relume.errors.RelumeWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ZOO)
def test_a_watched_training_is_bitwise_the_bare_one(name, every):
    if name not in BARE:
        BARE[name] = Training().run(ZOO[name])
    said = SAYS.get(name)
    with pytest.warns(relume.errors.RelumeWarning, match=said) if said else contextlib.nullcontext():
        watched = Training(every=every, window=4, min_inputs=1).run(ZOO[name])
    assert len(watched.trace) == len(BARE[name].trace)
    for ours, bare in zip(watched.trace, BARE[name].trace, strict=True):
        assert ours == bare
    (watch,) = watched.watches
    assert watch.windows, "nothing was watched, so nothing is shown"


def test_the_comparison_notices_one_bit():
    """The comparison itself: a training that differs in the last bit of one weight is told apart."""

    def nudged(run):
        ZOO["mlp"](run)
        weight = run.model[0].weight.data
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))

    assert Training().run(ZOO["mlp"]).trace == Training().run(ZOO["mlp"]).trace
    assert Training().run(nudged).trace != Training().run(ZOO["mlp"]).trace


class Operators(TorchDispatchMode):
    """Names of the operators that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_fused_encoder_layer_stays_fused_on_an_observed_pass():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    x = torch.randn(4, 5, 4)
    fused = "_transformer_encoder_layer_fwd"
    with torch.no_grad(), relume.watch(model, every=1), Operators() as operators:
        model(x)
    assert operators.names.count(fused) == 2


class Spy(nn.Module):
    """Notes, from within the forward pass, what hangs on the modules and on torch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.seen = []

    def forward(self, x):
        inner = sum(len(getattr(m, kind)) for m in self.body.modules() for kind in HOOKS)
        everywhere = sum(len(getattr(nn_module, n)) for n in GLOBAL_HOOKS)
        self.seen.append((inner, everywhere > 0, len(_get_current_function_mode_stack())))
        return self.body(x)


def test_an_unobserved_step_has_no_hook_on_inner_modules_and_no_mode():
    model = Spy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, every=3):
        for _ in range(7):
            model(torch.randn(4, 4)).mean().backward()
            optimizer.step()
    # The record's hooks: on both producers at first, then on the one that leads to a site.
    first, seen, unseen = (2, True, 1), (1, True, 1), (0, False, 0)
    assert model.seen == [first, unseen, unseen, seen, unseen, unseen, seen]


def test_hooks_of_the_user_and_of_relume_come_in_the_stated_order():
    """relume's hooks come last: a pre-hook of the user's changes the input before it is counted."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
    model.register_forward_pre_hook(lambda m, args: (-args[0],))
    with relume.watch(model, every=1, min_inputs=1) as watch:
        model(torch.ones(4, 1))
    assert watch.census()["1"].dead.tolist() == [True]


def test_a_deep_copy_and_the_original_train_on_as_equals():
    """A copy made under watch is not watched, and holds nothing that reaches the watch."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with relume.watch(model, every=1) as watch:
        twin = copy.deepcopy(model)
        x = torch.randn(4, 4)
        y = model(x)
        calls = watch._calls.total
        assert torch.equal(twin(x), y)
        assert watch._calls.total == calls
    assert not any(isinstance(h, Hook) for kind in HOOKS for h in getattr(twin, kind).values())
