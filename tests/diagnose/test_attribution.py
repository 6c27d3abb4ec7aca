"""The split of a change is held to direct recomputation: the layers are run, their outputs averaged, terms compared."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from relume.diagnose.attribution import Moment, Parts, split, summed
from relume.diagnose.normalization import Norm, norm_of
from relume.diagnose.producer import Unknown, bias, matrix, mean_input, response, units_of, why_unknown

SEEDS = st.integers(0, 2**31 - 1)
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def per_unit(out, unit_axis):
    return out.double().transpose(0, unit_axis).flatten(1).mean(1)


def shaken(layer, amount=0.7):
    """A copy with other weights, as after training."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return other


def moment_of(layer, x, norm=None, mean=None):
    mu = mean_input(layer, (x,), layer(x))
    (r,) = response(matrix(layer), mu)
    return mu, Moment.of(bias(layer), r, norm, mean)


def split_of(before, after, x, x_after):
    """The split between two states of a layer on two batches."""
    mu, first = moment_of(before, x)
    _, second = moment_of(after, x_after)
    (crossed,) = response(matrix(after), mu)
    return split(first, second, crossed)


def check(before, x, x_after, unit_axis):
    """Every part against a forward pass in which only that part was changed."""
    after = shaken(before)
    with torch.no_grad():
        old, new = per_unit(before(x), unit_axis), per_unit(after(x_after), unit_axis)
        old_weights_aside = per_unit(after(x), unit_axis)  # the later layer on the earlier batch
        parts = split_of(before, after, x, x_after)
        torch.testing.assert_close(parts.total, new - old, **EXACT)
        torch.testing.assert_close(parts.upstream, new - old_weights_aside, **EXACT)
        had_bias = getattr(before, "bias", None) is not None
        by_bias = after.bias - before.bias if had_bias else torch.zeros_like(old)
        torch.testing.assert_close(parts.bias, by_bias.double(), **EXACT)
        torch.testing.assert_close(parts.weights, old_weights_aside - old - by_bias, **EXACT)
        torch.testing.assert_close(parts.remainder, torch.zeros_like(old), **EXACT)
    assert units_of(before) == len(old)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans(), st.integers(1, 3), st.integers(1, 9), st.integers(1, 6))
def test_parts_of_a_linear_layer_are_those_of_direct_recomputation(seed, with_bias, axes, units, features):
    torch.manual_seed(seed)
    layer = nn.Linear(features, units, bias=with_bias).double()
    x, x_after = (torch.randn(*[3] * axes, features, dtype=torch.float64) + i for i in range(2))
    check(layer, x, x_after, -1)


@st.composite
def convolutions(draw):
    spatial, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    sides = {3: 5, 2: 7, 1: 11}[spatial]

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    options = {
        "kernel_size": each(1, 3),
        "stride": each(1, 2),
        "dilation": each(1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    transposed = draw(st.booleans())
    if transposed:
        options["padding"] = tuple(draw(st.integers(0, (k - 1) * d)) for k, d in zip(*_two(options), strict=True))
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(options["stride"], options["dilation"], strict=True)
        )
        kind = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d][spatial - 1]
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
        options["padding"] = draw(st.sampled_from([each(0, 2), "same", "valid"]))
        if options["padding"] == "same":
            options["stride"] = (1,) * spatial
        kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][spatial - 1]
    channels, units = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    torch.manual_seed(draw(SEEDS))
    layer = kind(channels, units, **options).double()
    batched = draw(st.booleans())
    shape = (*([2] if batched else []), channels, *[sides] * spatial)
    return layer, *(torch.randn(shape, dtype=torch.float64) + i for i in range(2)), 1 if batched else 0


def _two(options):
    return options["kernel_size"], options["dilation"]


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_parts_of_a_convolution_are_those_of_direct_recomputation(case):
    check(*case)


def test_a_transposed_convolution_called_with_an_output_size_is_split_exactly():
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1).double()
    x = torch.randn(4, 2, 5, 6, dtype=torch.float64)
    out = layer(x, output_size=(10, 12))
    (r,) = response(matrix(layer), mean_input(layer, (x,), out))
    torch.testing.assert_close(r + bias(layer), per_unit(out, 1).detach(), **EXACT)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["embedding", "padded", "sum", "mean"]), st.integers(1, 7), st.integers(1, 5))
def test_parts_of_an_embedding_are_those_of_direct_recomputation(seed, kind, rows, units):
    torch.manual_seed(seed)
    if kind in ("embedding", "padded"):
        layer = nn.Embedding(rows, units, padding_idx=0 if kind == "padded" else None)
    else:
        layer = nn.EmbeddingBag(rows, units, mode=kind)
    check(layer.double(), *(torch.randint(rows, (4, 3)) for _ in range(2)), -1)


def test_token_and_position_embeddings_add_up():
    token, position = nn.Embedding(9, 4).double(), nn.Embedding(5, 4).double()
    x, places = torch.randint(9, (6, 5)), torch.arange(5).expand(6, 5)
    total = summed([moment_of(token, x)[1], moment_of(position, places)[1]])
    expected = per_unit(token(x) + position(places), -1).detach()
    torch.testing.assert_close(total.bias + total.response, expected, **EXACT)


NORMS = {
    "batch": (lambda u: nn.BatchNorm1d(u), True),
    "batch without affine": (lambda u: nn.BatchNorm1d(u, affine=False), True),
    "batch without running statistics": (lambda u: nn.BatchNorm1d(u, track_running_stats=False), True),
    "layer": (lambda u: nn.LayerNorm(u), False),
    "layer without bias": (lambda u: nn.LayerNorm(u, bias=False), False),
    "group": (lambda u: nn.GroupNorm(u // 2, u), False),
    "rms": (lambda u: nn.RMSNorm(u), False),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", NORMS)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, shift=st.floats(-5, 5), units=st.sampled_from([2, 4, 6]))
def test_parts_through_a_normalization_add_up_and_stand_for_what_they_say(kind, training, seed, shift, units):
    torch.manual_seed(seed)
    make, exact = NORMS[kind]
    before = nn.Linear(3, units).double()
    norm = make(units).double()
    if any(True for _ in norm.buffers()):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 3)
    after, norm_after = shaken(before), shaken(norm, 0.3)
    if any(True for _ in norm.buffers()):
        norm_after.running_mean.add_(0.5)
        norm_after.running_var.mul_(1.7)
    norm.train(training), norm_after.train(training)
    x, x_after = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64) + shift
    with torch.no_grad():
        means, moments = [], []
        for layer, n, batch in ((before, norm, x), (after, norm_after, x_after)):
            kept = copy.deepcopy(n.state_dict())
            what = norm_of(n, layer(batch))
            assert isinstance(what, Norm)
            assert all(torch.equal(v, kept[k]) for k, v in n.state_dict().items()), "looking changed a statistic"
            means.append(n(layer(batch)).mean(0))
            moments.append(moment_of(layer, batch, what, means[-1])[1])
        (crossed,) = response(matrix(after), mean_input(before, (x,), before(x)))
        parts = split(*moments, crossed)
        torch.testing.assert_close(parts.total, means[1] - means[0], **EXACT)
        if exact:
            torch.testing.assert_close(parts.remainder, torch.zeros(units, dtype=torch.float64), **EXACT)
        if hasattr(norm, "bias") and norm.bias is not None:
            torch.testing.assert_close(parts.beta, norm_after.bias - norm.bias, **EXACT)
        else:
            assert not parts.beta.any()
    both = moments[1].norm.gamma * moments[1].norm.inverse
    torch.testing.assert_close(parts.bias, both * (after.bias - before.bias).detach(), **EXACT)


def test_in_training_batch_norm_takes_back_what_the_weights_did():
    """The mean that leaves batch norm in training is β, whatever comes in: statistics cancel weights and upstream."""
    layer, norm = nn.Linear(3, 4).double(), nn.BatchNorm1d(4).double()
    after = shaken(layer)
    x = torch.randn(16, 3, dtype=torch.float64)
    (mu, first), (_, second) = (moment_of(m, x, norm_of(norm, m(x).detach())) for m in (layer, after))
    (crossed,) = response(matrix(after), mu)
    parts = split(first, second, crossed)
    assert parts.weights.abs().min() > 1e-3
    torch.testing.assert_close(parts.weights + parts.bias, -parts.statistics, **EXACT)


def test_a_group_norms_remainder_is_the_covariance_that_the_docstring_names():
    norm = nn.GroupNorm(2, 4).double()
    y = torch.randn(6, 4, 5, dtype=torch.float64) * torch.rand(6, 1, 1, dtype=torch.float64) + 1
    what = norm_of(norm, y)
    moment = Moment.of(per_unit(y, 1), torch.zeros(4).double(), what, per_unit(norm(y), 1).detach())
    by_group = y.reshape(6, 2, 10)
    sigma = (by_group.var(2, correction=0) + norm.eps).sqrt().repeat_interleave(2, 1)
    centre = by_group.mean(2).repeat_interleave(2, 1)
    deviation = y.mean(2) - centre
    covariance = (deviation / sigma).mean(0) - deviation.mean(0) * (1 / sigma).mean(0)
    torch.testing.assert_close(moment.unexplained, covariance, **EXACT)
    assert covariance.abs().max() > 1e-4


def test_parts_add_up_over_time():
    layers = [nn.Linear(3, 4).double() for _ in range(3)]
    batches = [torch.randn(5, 3, dtype=torch.float64) for _ in layers]
    steps = [split_of(*pair[0], *pair[1]) for pair in zip(*map(itertools.pairwise, (layers, batches)), strict=True)]
    both = steps[0] + steps[1]
    change = layers[2](batches[2]).mean(0) - layers[0](batches[0]).mean(0)
    torch.testing.assert_close(both.total, change.detach(), **EXACT)
    torch.testing.assert_close(Parts.unstacked(both.stacked()).total, both.total, **EXACT)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.LSTM(2, 3), "LSTM is no Linear"),
        (Doubled(2, 3), "forward of its own"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), "parametrized"),
        (nn.EmbeddingBag(3, 2, mode="max"), "EmbeddingBag"),
        (nn.EmbeddingBag(3, 2, padding_idx=0), "padding_idx"),
    ],
)
def test_what_cannot_be_split_says_so(module, says):
    unknown = why_unknown(module)
    assert isinstance(unknown, Unknown)
    assert unknown.reason.startswith("unknown producer")
    assert says in unknown.reason


def test_a_call_that_cannot_be_split_says_so():
    bag, linear = nn.EmbeddingBag(5, 2, mode="sum"), nn.Linear(3, 2)
    x = torch.randint(5, (4, 3))
    assert isinstance(mean_input(bag, (x.flatten(), torch.tensor([0, 4])), torch.zeros(2, 2)), Unknown)
    assert isinstance(mean_input(linear, (), torch.zeros(2, 2)), Unknown)
    assert isinstance(mean_input(linear, (torch.zeros(0, 3),), torch.zeros(0, 2)), Unknown)
    assert isinstance(norm_of(nn.LayerNorm((2, 3)), torch.zeros(4, 2, 3)), Unknown)
    assert isinstance(norm_of(nn.InstanceNorm1d(3), torch.zeros(4, 3, 2)), Unknown)
    assert why_unknown(linear) is None
