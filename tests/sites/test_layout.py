"""Layouts: what they say of an axis is what happens to the numbers in it."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relume.errors import AxisError
from relume.sites import layout as lay
from relume.sites.flow import Flow, Node
from relume.sites.layout import INPUT, OTHER, UNIT
from relume.sites.plan import plan_for
from relume.sites.rules import follow

ROLES = (INPUT, UNIT, OTHER)
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def numbered(shape, axis):
    """A tensor whose every entry is its own index along `axis`."""
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return torch.arange(shape[axis]).view(view).expand(shape).contiguous()


def located(layout, role):
    """By the layout alone: a tensor of its shape whose entries are their number among the factors with `role`."""
    factors = [f for axis in layout for f in axis]
    stride, strides = 1, []
    for f in reversed(factors):
        strides.insert(0, stride if f.role == role else 0)
        stride *= f.size if f.role == role else 1
    result = torch.zeros([f.size for f in factors], dtype=torch.long)
    for i, (f, s) in enumerate(zip(factors, strides, strict=True)):
        view = [1] * len(factors)
        view[i] = f.size
        result = result + torch.arange(f.size).view(view) * s
    return result.reshape([lay.size_of(a) for a in layout])


def start(shape, axis, role):
    return lay.with_role(lay.plain(shape), axis, role)


@st.composite
def reshapes(draw):
    """A shape, an axis of it, and another shape of as many entries."""
    shape = draw(sizes)
    axis = draw(st.integers(0, len(shape) - 1))
    total = int(torch.tensor(shape).prod())
    target = []
    while total > 1 and len(target) < 4:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        size = draw(st.sampled_from(divisors))
        target.append(size)
        total //= size
    return shape, axis, [*target, total]


@given(reshapes())
def test_a_reshape_that_a_layout_can_follow_is_what_happens(case):
    shape, axis, target = case
    moved = lay.reshape(start(shape, axis, UNIT), target)
    assume(moved is not None)
    assert [lay.size_of(a) for a in moved] == target
    if shape[axis] > 1:
        assert torch.equal(located(moved, UNIT), numbered(shape, axis).reshape(target))


@given(sizes, st.data())
def test_permuting_a_layout_permutes_the_numbers(shape, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    moved = lay.permute(start(shape, axis, INPUT), order)
    assert torch.equal(located(moved, INPUT), numbered(shape, axis).permute(order))


OPERATIONS = {
    "flatten": lambda x, d: torch.flatten(x, d.draw(st.integers(0, x.dim() - 1))),
    "transpose": lambda x, d: x.transpose(*(d.draw(st.integers(-x.dim(), x.dim() - 1)) for _ in range(2))),
    "movedim": lambda x, d: x.movedim(*(d.draw(st.integers(-x.dim(), x.dim() - 1)) for _ in range(2))),
    "permute": lambda x, d: x.permute(d.draw(st.permutations(range(x.dim())))),
    "unsqueeze": lambda x, d: x.unsqueeze(d.draw(st.integers(-x.dim() - 1, x.dim()))),
    "T": lambda x, d: x.T if x.dim() == 2 else x,
    "mT": lambda x, d: x.mT if x.dim() > 1 else x,
    "None": lambda x, d: x[None] if d.draw(st.booleans()) else x[..., None],
    "view": lambda x, d: x.contiguous().view(-1, x.shape[-1]),
    "unflatten": lambda x, d: x.unflatten(-1, (1, x.shape[-1])),
    "expand": lambda x, d: x.unsqueeze(0).expand(3, *x.shape),
    "repeat": lambda x, d: x.repeat(2, *[1] * (x.dim() - 1)),
    "interleave": lambda x, d: x.repeat_interleave(2, d.draw(st.integers(0, x.dim() - 1))),
    "clone": lambda x, d: x.clone() * 1,
}


class Seen(torch.overrides.TorchFunctionMode):
    def __init__(self, flow):
        self.flow = flow

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        follow(self.flow, func, args, kwargs or {}, out)
        return out


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(2, 4), min_size=2, max_size=3),
    st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=5),
    st.data(),
)
def test_the_flow_through_operations_is_what_happens_to_the_numbers(shape, names, data):
    """Any chain of shape operations: inputs and units are still told apart, entry by entry."""
    flow = Flow()
    flow.start({})
    a, b = numbered(shape, 0), numbered(shape, len(shape) - 1)
    x = torch.stack([a, b], -1).float()
    layout = lay.with_role(lay.with_role(lay.plain(shape), 0, INPUT), len(shape) - 1, UNIT)
    tensors = [x[..., 0], x[..., 1]]
    probe = torch.zeros(shape)
    flow.set(probe, Node(layout, ("fc",)))
    for name in names:
        recorded = Recorded(data)
        with Seen(flow):
            after = OPERATIONS[name](probe, recorded)
        tensors = [OPERATIONS[name](t, Replayed(recorded.values)) for t in tensors]
        probe = after
    node = flow.node(probe)
    assert node is not None
    assert [lay.size_of(axis) for axis in node.layout] == list(probe.shape)
    # An axis that was split and put apart again may have lost its role, but never has a wrong one.
    for role, numbers, count in ((INPUT, tensors[0], shape[0]), (UNIT, tensors[1], shape[-1])):
        if lay.count(node.layout, role) == count:
            assert torch.equal(located(node.layout, role), numbers.long())


class Recorded:
    def __init__(self, data):
        self.data, self.values = data, []

    def draw(self, strategy):
        self.values.append(self.data.draw(strategy))
        return self.values[-1]


class Replayed:
    def __init__(self, values):
        self.values = list(values)

    def draw(self, strategy):
        return self.values.pop(0)


@given(sizes, st.data())
def test_a_plan_parts_the_samples_of_a_tensor_into_inputs_and_units(shape, data):
    roles = [data.draw(st.sampled_from(ROLES)) for _ in shape]
    layout = tuple(lay.axis_of(s, r) for s, r in zip(shape, roles, strict=True))
    inputs = lay.count(layout, INPUT)
    plan = plan_for(layout, inputs)
    total = int(torch.tensor(shape).prod())
    assert plan.n_units * plan.n_samples == total
    assert plan.n_inputs <= plan.n_samples
    assert {*plan.inputs, *plan.units, *plan.others} == set(range(len(plan.shape or shape))) or total == plan.n_units
    if UNIT in roles:
        assert plan.axis_known
        assert plan.n_units == lay.count(layout, UNIT)


def test_an_axis_given_by_the_user_must_exist_and_must_not_count_inputs():
    layout = lay.with_role(lay.plain((8, 3, 5)), 0, INPUT)
    assert plan_for(layout, 8, 1).axis == 1
    assert plan_for(layout, 8, -1).axis == -1
    with pytest.raises(AxisError, match="3 axes"):
        plan_for(layout, 8, 3)
    with pytest.raises(AxisError, match="counts the inputs"):
        plan_for(layout, 8, 0)


@pytest.mark.parametrize(("shape", "axis"), [((8, 5), -1), ((8, 3, 5), -1), ((8, 3, 5, 5), 1), ((8, 3, 2, 5, 5), 1)])
def test_without_a_producer_the_axis_is_guessed_and_said_to_be(shape, axis):
    plan = plan_for(lay.with_role(lay.plain(shape), 0, INPUT), 8)
    assert plan.axis == axis
    assert not plan.axis_known
