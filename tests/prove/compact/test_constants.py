"""Dead units whose constant is not zero: it moves into what follows, or the unit stays and it is said why."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume


class Run(nn.Module):
    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(("activation", "bias", "constant"), [
    (nn.ReLU6(), 100.0, 6.0), (nn.Hardtanh(), -100.0, -1.0), (nn.Hardtanh(), 100.0, 1.0),
    (nn.Hardsigmoid(), 100.0, 1.0), (nn.Threshold(0.5, -3.0), -100.0, -3.0),
])  # fmt: skip
def test_a_constant_is_folded_into_the_bias_of_a_linear_layer(activation, bias, constant, kill, compacted):
    model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3))
    kill(model[0], range(6), bias=0.0)
    kill(model[0], [1, 4], bias=bias)
    before = model[2].bias.detach().double() + constant * model[2].weight.detach().double()[:, [1, 4]].sum(1)
    compaction = compacted(model, torch.randn(256, 4))
    assert compaction.removed == {"1": (1, 4)}
    torch.testing.assert_close(compaction.model[2].bias, before)
    assert compaction.recipe.biases == ()


def test_a_layer_without_a_bias_is_given_one(kill, compacted):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 3, bias=False))
    kill(model[0], [2], bias=100.0)
    compaction = compacted(model, torch.randn(256, 4))
    assert compaction.removed == {"1": (2,)}
    assert compaction.recipe.biases == ("2",)
    assert compaction.model[2].bias.shape == (3,)
    assert "given a bias" in compaction.notes[0]


@pytest.mark.parametrize(("options", "removed"), [
    ({}, True), ({"padding": 1}, False), ({"padding": "same"}, False), ({"padding": "valid"}, True),
    ({"padding": 1, "padding_mode": "reflect"}, True), ({"padding": 1, "padding_mode": "circular"}, True),
    ({"stride": 2, "dilation": 2}, True),
])  # fmt: skip
def test_a_constant_is_folded_into_a_convolution_unless_zeros_surround_it(options, removed, kill, compacted):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.Conv2d(4, 3, 3, **options))
    kill(model[0], [0], bias=100.0)
    kill(model[0], [3])
    compaction = compacted(model, torch.randn(64, 2, 7, 7))
    assert compaction.removed == {"1": (0, 3) if removed else (3,)}, "a zero goes in any case"
    if not removed:
        assert "the zeros around it" in compaction.kept["1"][0]


def test_a_constant_stays_before_a_transposed_convolution(kill, compacted):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.ConvTranspose2d(4, 3, 3, stride=2))
    kill(model[0], [0], bias=100.0)
    compaction = compacted(model, torch.randn(64, 2, 5, 5))
    assert "transposed" in compaction.kept["1"][0]


def test_explicit_padding_makes_a_constant_uneven(kill, compacted):
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.ZeroPad2d(1), nn.Conv2d(4, 3, 3))
    kill(model[0], [0], bias=100.0)
    kill(model[0], [3])
    compaction = compacted(model, torch.randn(64, 2, 5, 5))
    assert compaction.removed == {"1": (3,)}
    assert "not constant" in compaction.kept["1"][0]


def test_average_pooling_that_counts_its_padding_makes_a_constant_uneven(kill, compacted):
    for counts, removed in ((True, (3,)), (False, (0, 3))):
        model = nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.AvgPool2d(3, padding=1, count_include_pad=counts), nn.Conv2d(4, 3, 3)
        )
        kill(model[0], [0], bias=100.0)
        kill(model[0], [3])
        assert compacted(model, torch.randn(64, 2, 9, 9)).removed == {"1": removed}


def test_a_sum_over_positions_is_no_constant_for_inputs_of_another_size(kill, compacted):
    model = Run(lambda m, x: m.b(m.act(m.a(x)).sum((2, 3))), a=nn.Conv2d(2, 4, 1), act=nn.ReLU6(), b=nn.Linear(4, 2))
    kill(model.a, [0], bias=100.0)
    kill(model.a, [1])
    compaction = compacted(model, torch.randn(64, 2, 5, 5))
    assert compaction.removed == {"act": (1,)}


def test_a_unit_at_both_ends_has_two_values_and_stays(compacted):
    model = nn.Sequential(nn.Linear(1, 2), nn.Hardtanh(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight[:], model[0].bias[:] = torch.tensor([[100.0], [0.1]]), 0.0
    x = torch.cat([torch.rand(150, 1) + 1, -torch.rand(150, 1) - 1])
    assert compacted(model, x).kept["1"] == {0: "its output is not constant on these batches"}


def test_a_bias_of_several_layers_takes_no_constant(kill, compacted):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(4, 3)
            self.c.bias = self.b.bias

        def forward(self, x):
            return self.b(F.relu6(self.a(x))) + self.c(x)

    model = Shared()
    kill(model.a, [0], bias=100.0)
    kill(model.a, [1])
    compaction = compacted(model, torch.randn(256, 4))
    assert compaction.removed == {":relu6" if ":relu6" in compaction.units else ":hardtanh": (1,)}
    assert any("the bias of several layers" in why for site in compaction.kept.values() for why in site.values())


def test_a_product_without_a_bias_reads_zeros_only(kill, compacted):
    model = Run(lambda m, x: m.act(m.a(x)) @ m.w, a=nn.Linear(4, 6), act=nn.ReLU6(), w=nn.Parameter(torch.randn(6, 2)))
    kill(model.a, [0], bias=100.0)
    kill(model.a, [1])
    compaction = compacted(model, torch.randn(256, 4))
    assert compaction.removed == {"act": (1,)}
    assert "a product without a bias" in compaction.kept["act"][0]


def test_different_constants_in_two_uses_stay(compacted):
    model = Run(
        lambda m, x: m.b(m.act(m.a(x))) + m.b(m.act(-m.a(x))), a=nn.Linear(2, 3), act=nn.ReLU6(), b=nn.Linear(3, 1)
    )
    with torch.no_grad():
        model.a.weight.fill_(0.1)
        model.a.bias[:] = torch.tensor([0.0, 100.0, 0.1])
    compaction = compacted(model, torch.randn(256, 2))
    assert compaction.removed == {}
    assert compaction.kept["act"] == {1: "'b' is used several times and reads different constants"}


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_of_a_silent_site_one_unit_is_left(bias, kill, compacted):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    kill(model[0], range(6), bias=bias)
    compaction = compacted(model, torch.randn(256, 4))
    assert compaction.removed["1"] == (1, 2, 3, 4, 5)
    assert compaction.kept["1"] == {0: "all units of its layer are dead, and one must be left"}
    assert compaction.model[2].in_features == 1


def test_units_of_batch_norm_with_batch_statistics_stay(kill, compacted):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2))
    kill(model[0], [1])
    assert "not constant" in compacted(model, torch.randn(256, 4)).kept["1"][1]


def test_a_masked_unit_is_still_zero(kill, compacted):
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.b(h.masked_fill(x[..., :1] > 1, 0.0))

    model = Run(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    kill(model.a, [1])
    assert 1 in compacted(model, torch.randn(64, 5, 4)).removed[":relu"]


def test_a_write_into_a_view_makes_its_values_unknown(kill, compacted):
    def forward(m, x):
        h = F.relu(m.a(x))
        h[:, 0].add_(1.0)
        return m.b(h)

    model = Run(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    kill(model.a, [0, 1])
    compaction = compacted(model, torch.randn(256, 4))
    assert "is not constant" in compaction.kept[":relu"][0]


def test_a_shape_of_other_inputs_does_not_matter(kill):
    """What was proven on one size holds on others, where nothing that was folded depends on it."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    kill(model[0], [0], bias=100.0)
    kill(model[0], [1])
    x = torch.randn(300, 2, 7, 7)
    small = relume.compact(model, relume.census(model, x), x).model
    other = torch.randn(3, 2, 12, 9)
    torch.testing.assert_close(small(other), model(other), rtol=1e-4, atol=1e-5)
    assert small[0].out_channels == 2
