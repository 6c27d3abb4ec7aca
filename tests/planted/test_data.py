"""What is fed: rare and sparse firing, batch sizes, and every form a batch may have."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import relume


def _mlp(planted, *dead, width=8):
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1))
    planted.bury(model[0], *dead)
    return model


def test_a_sparse_layer_has_every_unit_alive(planted):
    """Each unit fires on 5 % of the inputs: 95 % zeros, no death."""
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(20))
        model[0].bias.fill_(-0.5)
    rows = torch.eye(20).repeat(30, 1)
    census = planted(model, list(rows.split(100)), lambda x: {"1": model[0](x)}, {})
    assert census["1"].firing_rate.tolist() == [0.05] * 20


def test_a_rare_unit_that_fires_once_in_2000_inputs_is_alive(planted):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.copy_(torch.tensor([0.0, -10.0, -10.0]))
    data = torch.randn(2000, 3).clamp(-5, 5)
    data[1234, 1] = 10.5
    census = planted(model, list(data.split(100)), lambda x: {"1": model[0](x)}, {"1": {2}})
    assert census["1"].fired[1:].tolist() == [1, 0]


def test_a_pre_activation_of_exactly_zero_does_not_fire(planted):
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight[0] = 0
    planted(model, planted.batches(3), lambda x: {"1": model[0](x)}, {"1": {0}})


def test_too_few_inputs_are_not_enough_for_a_death(planted):
    model = _mlp(planted, 3)
    census = planted(model, planted.batches(6, inputs=255), lambda x: {"1": model[0](x)}, {"1": {3}})
    assert census["1"].state[3] == "unknown"
    planted(model, planted.batches(6, inputs=256), lambda x: {"1": model[0](x)}, {"1": {3}})


def test_many_tokens_of_few_inputs_are_not_enough_either(planted):
    model = _mlp(planted, 3)
    planted(model, planted.batches(100, 6, inputs=200), lambda x: {"1": model[0](x).movedim(-1, 1)}, {"1": {3}})


@pytest.mark.parametrize("size", [1, 3, 6, 8, 100])
def test_batches_of_any_size_and_a_smaller_last_one(planted, size):
    """Also as many inputs as features (6) and as units (8), where the shape says nothing."""
    model = _mlp(planted, 0, 5)
    planted(model, planted.batches(6, inputs=257, batch=size), lambda x: {"1": model[0](x)}, {"1": {0, 5}})


def test_all_axes_of_one_size(planted):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    planted.bury(model[0], 1)
    planted.bury(model[2], 2)

    def oracle(x):
        h = model[0](x)
        return {"1": h.movedim(-1, 1), "3": model[2](h.clamp(min=0)).movedim(-1, 1)}

    planted(model, planted.batches(8, 8, inputs=256, batch=8), oracle, {"1": {1}, "3": {2}})


def test_a_single_vector_without_a_batch_axis(planted):
    model = _mlp(planted, 2)
    planted(model, [torch.randn(6) for _ in range(300)], lambda x: {"1": model[0](x)[None]}, {"1": {2}})


def test_a_unit_dead_for_ten_batches_and_alive_afterwards(planted):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.copy_(torch.tensor([-3.0, -30.0]))
    batches = [torch.rand(64, 2) for _ in range(10)] + [torch.rand(64, 2) + 4.0]
    planted(model, batches[:10], lambda x: {"1": model[0](x)}, {"1": {0, 1}})
    planted(model, batches, lambda x: {"1": model[0](x)}, {"1": {1}})


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(3, 8)

    def forward(self, x, extra, scale=1.0):
        return F.relu(self.a(x) + self.b(extra) * scale)


def test_tuples_and_dicts_of_arguments(planted):
    model = Pair()
    planted.bury(model.a, 4)
    pairs = list(zip(planted.batches(6), planted.batches(3), strict=True))

    def oracle(x, extra):
        return {":relu": model.a(x) + model.b(extra)}

    planted(model, pairs, oracle, {":relu": {4}})
    planted(model, [{"extra": e, "x": x} for x, e in pairs], oracle, {":relu": {4}})


def test_a_data_loader_with_labels_counts_like_its_inputs(planted):
    model = _mlp(planted, 1)
    x = torch.randn(500, 6)
    loader = DataLoader(TensorDataset(x, torch.zeros(500)), batch_size=64)
    ours = relume.census(model, loader)
    assert ours["1"].fired.tolist() == planted(model, [x], lambda x: {"1": model[0](x)}, {"1": {1}})["1"].fired.tolist()


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Named(NamedTuple):
    x: torch.Tensor


@pytest.mark.parametrize("kind", ["dict", "dataclass", "tuple", "none", "nested"])
def test_outputs_and_inputs_that_are_no_tensors(planted, kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, given):
            x = given["x"][0]
            h = F.relu(self.fc(x))
            return {
                "dict": {"h": h},
                "dataclass": Output(h, x),
                "tuple": (h, None, "x"),
                "none": None,
                "nested": [{"h": (h,)}],
            }[kind]

    model = Model()
    planted.bury(model.fc, 1)
    batches = [({"x": (x,)},) for x in planted.batches(6)]
    planted(model, batches, lambda given: {":relu": model.fc(given["x"][0])}, {":relu": {1}})


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_under_autocast_to_bfloat16(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return F.relu(self.fc2(torch.relu(self.fc1(x))))

    model = Model()
    planted.bury(model.fc1, 1)
    planted.bury(model.fc2, 2)

    def oracle(x):
        with torch.autocast("cpu", torch.bfloat16):
            z = model.fc1(x)
            return {":relu": z, ":relu#1": model.fc2(z.relu())}

    planted(model, planted.batches(6), oracle, {":relu": {1}, ":relu#1": {2}})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(planted, dtype):
    model = _mlp(planted, 1).to(dtype)
    batches = [b.to(dtype) for b in planted.batches(6)]
    planted(model, batches, lambda x: {"1": model[0](x)}, {"1": {1}})


def test_token_ids_through_an_embedding(planted):
    model = nn.Sequential(nn.Embedding(50, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:, 3] = -model[0].weight[:, 3].abs() - 0.1
    planted.bury(model[2], 0)

    def oracle(x):
        h = model[0](x)
        return {"1": h.movedim(-1, 1), "3": model[2](h.clamp(min=0)).movedim(-1, 1)}

    batches = [torch.randint(50, (64, 7)) for _ in range(5)]
    planted(model, batches, oracle, {"1": {3}, "3": {0}})


def test_a_bag_of_tokens(planted):
    model = nn.Sequential(nn.EmbeddingBag(50, 8, mode="sum"), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:, 3] = -1.0
    planted(model, [torch.randint(50, (64, 7)) for _ in range(5)], lambda x: {"1": model[0](x)}, {"1": {3}})


def test_an_embedding_row_that_never_comes_up_tells_nothing_of_units(planted):
    """Units of an embedding are its features; a row of zeros is a token, not a unit."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[7] = -1.0
    planted(model, [torch.randint(10, (128, 3)) for _ in range(3)], lambda x: {"1": model[0](x).movedim(-1, 1)}, {})


def test_rows_of_a_parameter_looked_up_by_index(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(20, 6))

        def forward(self, ids):
            return F.relu(self.table[ids])

    model = Model()
    with torch.no_grad():
        model.table[:, 4] = -1.0
    batches = [torch.randint(20, (64, 3)) for _ in range(5)]
    census = planted(model, batches, lambda ids: {":relu": model.table[ids].movedim(-1, 1)}, {":relu": {4}})
    assert census[":relu"].site.producers == ("table",)


def test_distances_to_learnt_centres(planted):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.randn(7, 3))

        def forward(self, x):
            return F.relu(2.0 - torch.cdist(x, self.centres))

    model = Model()
    with torch.no_grad():
        model.centres[5] = 100.0
    planted(model, planted.batches(3), lambda x: {":relu": 2.0 - torch.cdist(x, model.centres)}, {":relu": {5}})
