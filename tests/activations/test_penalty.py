"""The liveness penalty: which units get it, how much, that it revives them, and that a model's hooks leave no trace."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import relume
from relume.errors import RelumeError, RelumeWarning
from relume.functional import liveness_penalty
from relume.nn import LivenessPenalty


def gradient(z: Tensor, *args, **kwargs) -> Tensor:
    leaf = z.detach().clone().requires_grad_()
    penalty = liveness_penalty(leaf, *args, **kwargs)
    return torch.autograd.grad(penalty, leaf, allow_unused=True, materialize_grads=True)[0]


def by_hand(z: Tensor, share: float, margin: float = 0.0) -> list[float]:
    """For ReLU and z of shape [N, units], a unit at a time."""
    penalties = []
    for column in z.double().T:
        rms = math.sqrt(float(column.square().mean())) or 1.0
        top = sorted(column.tolist(), reverse=True)[: max(1, math.ceil(share * len(column) - 1e-9))]
        penalties.append(sum(max(0.0, margin - v / rms) for v in top) / len(top))
    return penalties


@given(st.integers(1, 30), st.integers(1, 5), st.floats(0.01, 1), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
@settings(deadline=None)
def test_it_is_the_mean_depth_of_the_inputs_that_should_fire(n, units, share, margin, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, units, generator=generator, dtype=torch.float64) - 1.5
    found = liveness_penalty(z, share, margin=margin, reduction="none")
    assert found.tolist() == pytest.approx(by_hand(z, share, margin), abs=1e-12)
    assert float(liveness_penalty(z, share, margin=margin)) == pytest.approx(float(found.mean()))
    assert float(liveness_penalty(z, share, margin=margin, reduction="sum")) == pytest.approx(float(found.sum()))
    assert found.max() <= 1 + margin


def test_a_dead_unit_gets_gradient_towards_firing_and_an_alive_one_exactly_none() -> None:
    z = torch.randn(100, 3)
    z[:, 0] -= 20  # dead
    z[:, 1] = -1.0
    z[:3, 1] = 1.0  # fires on 3 % of inputs
    g = gradient(z, 0.05)
    assert (g[:, 0] < 0).sum() == 5  # descending on a negative gradient raises z
    assert (g[:, 0] <= 0).all()
    assert (g[:, 1] < 0).sum() == 2  # two more are asked for
    assert not g[:, 2].any()
    assert not gradient(z[:, 2:], 0.05).any()


def test_the_gradient_pushes_the_inputs_nearest_to_the_edge() -> None:
    z = -torch.arange(1.0, 101.0)[:, None]
    assert torch.nonzero(gradient(z, 0.1)[:, 0]).flatten().tolist() == list(range(10))


@given(st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_scaling_the_pre_activation_changes_nothing(scale: float) -> None:
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    torch.testing.assert_close(liveness_penalty(z * scale, 0.2), liveness_penalty(z, 0.2))
    torch.testing.assert_close(gradient(z * scale, 0.2) * scale, gradient(z, 0.2))


def test_a_unit_buried_deep_with_little_spread_gets_no_larger_push_than_one_near_the_edge() -> None:
    deep = -100 + 0.001 * torch.randn(200, 1)
    assert 0 < float(liveness_penalty(deep)) <= 1
    assert float(gradient(deep).abs().sum()) == pytest.approx(0.01, rel=0.01)


def test_a_unit_of_zeros_alone_is_pushed_though_its_penalty_is_zero() -> None:
    z = torch.zeros(20, 1)
    assert float(liveness_penalty(z)) == 0
    assert (gradient(z) < 0).sum() == 1


def test_an_input_fires_by_any_of_its_positions() -> None:
    """Of 10 images, each lights one pixel of channel 0 and none of channel 1."""
    z = -torch.ones(10, 2, 4, 4)
    z[:, 0, 1, 2] = 0.5
    found = liveness_penalty(z, 1.0, reduction="none")
    assert float(found[0]) == 0
    assert float(found[1]) > 0
    g = gradient(z, 1.0)
    assert not g[:, 0].any()
    assert (g[:, 1] != 0).flatten(1).sum(1).tolist() == [1] * 10  # a position of each


def test_the_unit_axis_may_be_last_and_must_be_said_with_three_axes() -> None:
    z = torch.randn(20, 5, 7) - 2
    torch.testing.assert_close(liveness_penalty(z, axis=-1), liveness_penalty(z.transpose(1, 2), axis=1))
    assert liveness_penalty(z, axis=2, reduction="none").shape == (7,)
    with pytest.raises(ValueError, match=r"which axis of \(20, 5, 7\) carries the units"):
        liveness_penalty(z)
    with pytest.raises(ValueError, match="axis 0 counts inputs"):
        liveness_penalty(z, axis=-3)


def test_units_stuck_at_either_end_of_a_two_sided_flat_zone_are_pushed_inwards() -> None:
    z = torch.stack([torch.full((20,), -2.0), torch.full((20,), 9.0), torch.full((20,), 3.0)], 1)
    g = gradient(z, 0.5, activation="relu6")
    assert [float(v) for v in g.sum(0).sign()] == [-1.0, 1.0, 0.0]
    top_only = relume.activations.catalogue.hardtanh(-math.inf, 1.0)
    assert gradient(z, 0.5, activation=top_only).sum(0).sign().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"share": 0.0}, "share must be above 0"),
        ({"share": 1.5}, "share must be above 0 and at most 1"),
        ({"margin": -1.0}, "margin must not be negative"),
        ({"reduction": "max"}, "reduction must be"),
        ({"activation": "gelu"}, "gelu is flat nowhere"),
        ({"activation": "softshrink"}, "zones at the ends only"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        liveness_penalty(torch.randn(4, 2), **arguments)


def test_empty_pre_activations_have_no_penalty_and_half_precision_is_summed_in_float32() -> None:
    z = torch.zeros(0, 3, requires_grad=True)
    liveness_penalty(z).backward()
    assert float(liveness_penalty(z.detach())) == 0
    half = (torch.randn(64, 3) - 3).bfloat16()
    found = liveness_penalty(half)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(liveness_penalty(half.float())), rel=0.02)


def test_looking_for_short_units_first_changes_neither_value_nor_gradient(monkeypatch) -> None:
    from relume.activations import penalty

    for z in (torch.randn(40, 6) - 1, torch.randn(40, 6, 3, 3) - 2.5, torch.randn(40, 6) + 5):
        for options in ({}, {"margin": 0.2}, {"activation": "relu6"}):
            looked = liveness_penalty(z, 0.3, reduction="none", **options), gradient(z, 0.3, **options)
            with monkeypatch.context() as patch:
                patch.setattr(penalty, "_may_look", lambda z: False)
                torch.testing.assert_close(looked[0], liveness_penalty(z, 0.3, reduction="none", **options))
                torch.testing.assert_close(looked[1], gradient(z, 0.3, **options))


def test_it_works_under_vmap_and_compile() -> None:
    z = torch.randn(3, 40, 6) - 1
    torch.testing.assert_close(
        torch.vmap(lambda t: liveness_penalty(t, 0.3))(z), torch.stack([liveness_penalty(t, 0.3) for t in z])
    )
    compiled = torch.compile(lambda t: liveness_penalty(t, 0.3), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z[0]), liveness_penalty(z[0], 0.3))


# Of a whole model


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32)[:512], torch.tensor(data.target)[:512]


def buried() -> nn.Sequential:
    """Every unit of both layers starts dead: on digits, ReLU never fires with these biases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        model[0].bias.fill_(-3.0)
        model[2].bias.fill_(-3.0)
    return model


def train(model: nn.Module, steps: int, weight: float) -> float:
    """Accuracy after training, with the penalty at the given weight."""
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with LivenessPenalty(model, 0.1) as liveness:
        for step in range(steps):
            batch = torch.arange(step * 64, step * 64 + 64) % len(x)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch]), y[batch]) + weight * liveness()
            loss.backward()
            optimizer.step()
    return float((model(x).argmax(1) == y).float().mean())


def test_units_that_are_dead_from_the_start_revive_and_the_network_learns_where_it_did_not() -> None:
    x, _ = digits()
    without, with_penalty = buried(), buried()
    assert relume.census(without, x).dead == 64
    assert train(without, 150, 0.0) < 0.2
    assert relume.census(without, x).dead == 64
    assert train(with_penalty, 150, 1.0) > 0.8
    assert relume.census(with_penalty, x).dead == 0


def conv_net(inplace: bool) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 8),
        nn.ReLU6(inplace), nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 2),
    )  # fmt: skip


@pytest.mark.parametrize("inplace", [False, True])
def test_it_is_the_penalty_of_every_module_that_can_die_in_place_or_not(inplace: bool) -> None:
    model, x = conv_net(inplace), torch.randn(16, 1, 8, 8)
    with LivenessPenalty(model, 0.9) as liveness:
        out = model(x)
        found = liveness.per_unit()
        (out.square().sum() + liveness()).backward()
    assert liveness.names == ("2", "6")
    z1 = model[1](model[0](x))
    z2 = model[5](model[:5](x))
    expected = {
        "2": liveness_penalty(z1, 0.9, reduction="none"),
        "6": liveness_penalty(z2, 0.9, activation="relu6", reduction="none"),
    }
    for name, penalty in expected.items():
        torch.testing.assert_close(found[name], penalty)
    assert found["2"].sum() + found["6"].sum() > 0
    plain = conv_net(False)
    bn = plain[1](plain[0](x))
    second = plain[5](plain[3:5](bn.relu()))
    units = [
        liveness_penalty(bn, 0.9, reduction="none"),
        liveness_penalty(second, 0.9, activation="relu6", reduction="none"),
    ]
    (plain(x).square().sum() + torch.cat(units).mean()).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_removing_it_leaves_the_model_as_it_was() -> None:
    def hooks(model: nn.Module) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model = conv_net(False)
    liveness = LivenessPenalty(model)
    assert hooks(model) == 4
    model(torch.randn(4, 1, 8, 8))
    liveness.remove()
    liveness.remove()
    assert hooks(model) == 0
    with pytest.raises(RelumeError, match="has been removed"):
        liveness()


def test_a_copy_of_the_model_is_not_penalized_and_can_be_made_after_a_forward() -> None:
    model = conv_net(False)
    liveness = LivenessPenalty(model, 0.9)
    x = torch.randn(4, 1, 8, 8)
    model(x)
    before = liveness()
    copy.deepcopy(model)(torch.randn(4, 1, 8, 8))
    torch.testing.assert_close(liveness(), before)


def test_include_and_exclude_choose_modules_and_none_left_is_an_error() -> None:
    assert LivenessPenalty(conv_net(False), include=["2"]).names == ("2",)
    assert LivenessPenalty(conv_net(False), exclude=["2"]).names == ("6",)
    with pytest.raises(RelumeError, match="no activation module with a flat zone"):
        LivenessPenalty(nn.Sequential(nn.Linear(2, 2), nn.GELU()))


def test_without_a_forward_with_gradients_it_says_so() -> None:
    model = conv_net(False)
    liveness = LivenessPenalty(model)
    with pytest.raises(RelumeError, match="run the model's forward first"):
        liveness()
    with torch.no_grad():
        model(torch.randn(4, 1, 8, 8))
    with pytest.raises(RelumeError, match="run the model's forward first"):
        liveness()


def test_evaluation_under_no_grad_between_forward_and_loss_does_not_disturb_it() -> None:
    model = conv_net(False)
    with LivenessPenalty(model, 0.9) as liveness:
        model(torch.randn(16, 1, 8, 8))
        before = liveness()
        with torch.no_grad():
            model(torch.randn(16, 1, 8, 8) * 50)
        torch.testing.assert_close(liveness(), before)


def test_a_module_used_twice_counts_twice_and_the_unit_axis_follows_its_producer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up, self.act = nn.Conv1d(5, 7, 1), nn.Linear(4, 9), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:  # [N, 5, 4]
            return self.act(self.conv(x)).sum() + self.act(self.up(x)).sum()

    model = Net()
    with LivenessPenalty(model) as liveness:
        model(torch.randn(8, 5, 4))
        assert {name: len(units) for name, units in liveness.per_unit().items()} == {"act": 7, "act#1": 9}


def test_where_the_producer_cannot_be_seen_the_axis_is_asked_for_and_taken() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.act = nn.Linear(4, 9), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.up(x).transpose(1, 2))

    unsure = Net()
    with LivenessPenalty(unsure), pytest.raises(RelumeError, match=r"which axis of 'act' .* of shape \(8, 9, 5\)"):
        unsure(torch.randn(8, 5, 4))
    model = Net()
    with LivenessPenalty(model, axis={"a*": 1}) as liveness:
        model(torch.randn(8, 5, 4))
        assert len(liveness.per_unit()["act"]) == 9


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_segments_are_counted_once_or_named_as_left_out(reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, self.first(x), use_reentrant=reentrant)

    model = Net()
    with LivenessPenalty(model, 1.0) as liveness:
        if reentrant:
            with pytest.warns(RelumeWarning, match=r"'block\.1' runs without gradients within the model"):
                model(torch.randn(8, 4))
        else:
            out = model(torch.randn(8, 4))
            assert list(liveness.per_unit()) == ["block.1"]
            (out.sum() + liveness()).backward()
            assert list(liveness.per_unit()) == ["block.1"]
            assert model.first.weight.grad.abs().sum() > 0
