"""The flow forgets tensors that are gone, and does not take for a ReLU what is none."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.sites.flow import Flow, Node, owner_of, tensors_in
from relume.sites.layout import plain

LOOKALIKES = {
    "minimum with zero": lambda x: torch.where(x > 0, 0.0, x),
    "the negative part, by a mask": lambda x: torch.where(~(x > 0), x, 0.0),
    "a leak": lambda x: x * ((x > 0) * 0.9 + 0.1),
    "another tensor's sign": lambda x: x * (x.flip(1) > 0),
    "any sign of a row": lambda x: x * (x > 0).any(1, keepdim=True),
    "clamped elsewhere": lambda x: x.clamp(min=0.5),
    "clamped from above": lambda x: x.clamp(max=0),
    "maximum of two": lambda x: torch.maximum(x, -x),
    "a dropout mask": lambda x: x * (torch.rand_like(x) > 0.5),
    "an assignment of something else": lambda x: x.clone().index_fill_(1, torch.tensor([0]), 0.0),
    "masked by both signs": lambda x: x * ((x > 0) & (x < 1)),
}


@pytest.mark.parametrize("what", LOOKALIKES)
def test_what_only_looks_like_a_relu_is_no_site(what):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            return F.gelu(self.out(LOOKALIKES[what](self.fc(x))))

    assert list(relume.census(Model(), [torch.randn(64, 6)])) == [":gelu"]


def test_the_flow_holds_no_tensor_alive():
    flow = Flow()
    flow.start({})
    x = torch.zeros(3)
    flow.set(x, Node(plain(x.shape)))
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_a_new_tensor_at_an_old_address_is_not_taken_for_the_old_one():
    flow = Flow()
    flow.start({})
    old = torch.zeros(3)
    flow.set(old, Node(plain(old.shape)))
    new = torch.ones(3)
    flow._nodes[id(new)] = flow._nodes[id(old)]
    assert flow.node(new) is None


def test_the_state_of_a_pass_is_dropped_at_its_end():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    with relume.watch(model, every=1) as watch:
        model(torch.randn(8, 6))
        assert not watch._tracker.flow._nodes


@pytest.mark.parametrize(
    ("parameter", "owner"),
    [
        ("fc1.weight", "fc1"),
        ("blocks.0.fc.bias", "blocks.0.fc"),
        ("weight", "weight"),
        ("w_enc", "w_enc"),
        ("sae.w_enc", "sae"),
        ("0.parametrizations.weight.original0", "0"),
    ],
)
def test_a_producer_is_named_after_the_module_that_owns_its_weight(parameter, owner):
    expected = "" if parameter == "weight" else owner
    assert owner_of(parameter) == expected


def test_tensors_are_found_in_nested_structures():
    import dataclasses

    @dataclasses.dataclass
    class Box:
        inside: object

    a, b, c = (torch.zeros(i) for i in (1, 2, 3))
    assert [t.numel() for t in tensors_in(([a, {"k": (b, None)}], Box([c]), "x", 3))] == [1, 2, 3]


def test_zeros_are_told_from_data_that_happens_to_be_zero():
    """`maximum(x, y)` is a ReLU if y is a constant of zeros, not if y is a second input that is zero today."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.floor = nn.Linear(6, 8), nn.Parameter(torch.zeros(8))

        def forward(self, x, y):
            h = self.fc(x)
            return F.gelu(torch.maximum(torch.maximum(h, y), self.floor))

    assert list(relume.census(Model(), [(torch.randn(64, 6), torch.zeros(64, 8))])) == [":gelu"]
