"""Architectures with planted dead units: those that can go do, exactly, and those that can't stay with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

N = 64
ZOO = {}


def case(removed, kept=None):
    """A case: what makes a model and its input; the units that go by site; parts of the reasons why others stay."""

    def add(build):
        ZOO[build.__name__] = (build, removed, kept or {})
        return build

    return add


def dead(layer, units, bias=-100.0):
    """Units that are dead for sure, while all others live for sure."""
    with torch.no_grad():
        layer.bias.fill_(1.0)
        layer.weight.mul_(0.5)
        layer.bias[list(units)] = bias
    return layer


class Net(nn.Module):
    """A model of some parts and one function of them and the input."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self.run = forward

    def forward(self, *inputs):
        return self.run(self, *inputs)


def images(channels=3, size=8, n=N):
    return torch.randn(n, channels, size, size)


@case({"1": (0, 3), "3": (1,)})
def mlp():
    return nn.Sequential(
        dead(nn.Linear(5, 8), [0, 3]), nn.ReLU(), dead(nn.Linear(8, 6), [1]), nn.ReLU(), nn.Linear(6, 2)
    ), torch.randn(N, 5)


@case({"0.1": (2,), "1.0.1": (0, 1)})
def nested_sequential():
    inner = nn.Sequential(nn.Sequential(dead(nn.Linear(6, 7), [0, 1]), nn.ReLU(), nn.Dropout(0.5)))
    return nn.Sequential(
        nn.Sequential(dead(nn.Linear(5, 6), [2]), nn.ReLU(inplace=True)), inner, nn.Linear(7, 2)
    ), torch.randn(N, 5)


@case({"2": (1, 4), "6": (0,)})
def cnn_with_batch_norm_pooling_and_flatten():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), dead(nn.BatchNorm2d(6), [1, 4]), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1, bias=False), dead(nn.BatchNorm2d(4), [0]), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5),
    ), images()  # fmt: skip


@case({"1": (1, 4)})
def batch_norm_after_the_activation_makes_a_constant():
    model = nn.Sequential(
        dead(nn.Linear(5, 6), [1, 4]), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    with torch.no_grad():
        model[2].running_mean.normal_()
        model[2].bias.normal_()
    return model, torch.randn(N, 5)


@case({"2": (0, 5), "5": (0, 5)})
def depthwise_separable_as_mobilenet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), dead(nn.BatchNorm2d(6), [0, 5]), nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 2),
    ), images()  # fmt: skip


@case({}, {"1": "as many channels in each group"})
def grouped_convolution():
    return nn.Sequential(
        dead(nn.Conv2d(4, 8, 1), [1]), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(288, 2)
    ), images(4)


@case({"1": (2,), "3": (0, 3)})
def transposed_convolution():
    return nn.Sequential(
        dead(nn.Conv2d(3, 4, 2, stride=2), [2]), nn.ReLU(), dead(nn.ConvTranspose2d(4, 5, 2, stride=2), [0, 3]),
        nn.ReLU(), nn.Conv2d(5, 2, 1),
    ), images()  # fmt: skip


@case({"1": (1,)})
def adaptive_pooling():
    return nn.Sequential(
        dead(nn.Conv2d(3, 4, 3), [1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 2)
    ), images()


@case({"1": (3,)})
def one_dimensional_and_strided():
    return nn.Sequential(
        dead(nn.Conv1d(3, 4, 5, stride=2, dilation=2), [3]), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 2, 3)
    ), torch.randn(N, 3, 40)


@case({":relu": (0, 2)})
def functional():
    return Net(
        lambda m, x: m.b(F.relu(m.a(x)).flatten(1)), a=dead(nn.Conv2d(3, 4, 3), [0, 2]), b=nn.Linear(144, 2)
    ), images()


@case({":relu6": (1,), ":relu": (1,), ":relu#1": (0,)})
def activations_one_after_another():
    """What relume computes anew for constants is no application of the model's own."""
    return Net(
        lambda m, x: m.c(F.relu(m.b(F.relu(F.relu6(m.a(x)))))),
        a=dead(nn.Linear(4, 5), [1], 100.0), b=dead(nn.Linear(5, 6), [0]), c=nn.Linear(6, 2),
    ), torch.randn(N, 4)  # fmt: skip


@case({":relu": (1,)})
def methods_and_in_place():
    def forward(m, x):
        h = m.a(x)
        h.relu_()
        return m.b(h.permute(0, 2, 3, 1).mean((1, 2)))

    return Net(forward, a=dead(nn.Conv2d(3, 4, 3), [1]), b=nn.Linear(4, 2)), images()


class Residual(nn.Module):
    """As torchvision writes it."""

    def __init__(self, width=6, middle=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, middle, 3, padding=1), dead(nn.BatchNorm2d(middle), [1, 3])
        self.conv2, self.bn2 = nn.Conv2d(middle, width, 3, padding=1), dead(nn.BatchNorm2d(width), [])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


@case({"1.relu": (1, 3)}, {"0.1": "is not constant: it is summed"})
def resnet_block():
    return nn.Sequential(
        nn.Sequential(dead(nn.Conv2d(3, 6, 3), [2]), nn.ReLU()), Residual(), nn.Flatten(), nn.Linear(216, 2)
    ), images()


@case({":relu": (2,), ":relu#1": (2,)}, {":relu": "is not constant: it is summed", ":relu#1": "is not constant"})
def both_sides_of_a_sum_dead():
    return Net(
        lambda m, x: m.c(F.relu(m.a(x)) + F.relu(m.b(x))),
        a=dead(nn.Linear(5, 6), [2, 3]),
        b=dead(nn.Linear(5, 6), [1, 2]),
        c=nn.Linear(6, 2),
    ), torch.randn(N, 5)


class Dense(nn.Module):
    """Each layer reads what all before it gave, as DenseNet does."""

    def __init__(self):
        super().__init__()
        self.a, self.b = dead(nn.Conv2d(3, 4, 3, padding=1), [1]), dead(nn.Conv2d(7, 4, 3, padding=1), [0, 3])
        self.c = nn.Conv2d(11, 2, 1)

    def forward(self, x):
        h = torch.cat([x, F.relu(self.a(x))], 1)
        h = torch.cat([h, F.relu(self.b(h))], 1)
        return self.c(h)


@case({":relu": (1,), ":relu#1": (0, 3)})
def densenet_concatenation():
    return Dense(), images()


@case({"layers.0:relu": (0, 9), "layers.1:relu": (3,)})
def transformer_encoder():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, enable_nested_tensor=False)
    dead(model.layers[0].linear1, [0, 9])
    dead(model.layers[1].linear1, [3])
    return model, torch.randn(N, 5, 8)


@case({":relu": (4,)})
def transformer_mlp_with_layer_norm_and_layer_scale():
    return Net(
        lambda m, x: x + m.scale * m.down(m.drop(F.relu(m.up(m.norm(x))))),
        norm=nn.LayerNorm(6), up=dead(nn.Linear(6, 10), [4]), drop=nn.Dropout(0.1), down=nn.Linear(10, 6),
        scale=nn.Parameter(torch.randn(6)),
    ), torch.randn(N, 4, 6)  # fmt: skip


@case({":relu": (2, 5)})
def gated_linear_unit():
    return Net(
        lambda m, x: m.down(F.relu(m.gate(x)) * m.up(x)),
        gate=dead(nn.Linear(5, 8), [2, 5]), up=nn.Linear(5, 8), down=nn.Linear(8, 3),
    ), torch.randn(N, 5)  # fmt: skip


@case({":relu": (2, 3)})
def gate_and_value_from_one_layer():
    def forward(m, x):
        gate, up = m.both(x).chunk(2, -1)
        return m.down(F.relu(gate) * up)

    return Net(forward, both=dead(nn.Linear(5, 16), [2, 3]), down=nn.Linear(8, 3)), torch.randn(N, 5)


@case({"2": (3,)})
def convnext_like_block():
    class ToLast(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    class Block(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x).permute(0, 3, 1, 2)

    return Block(
        nn.Conv2d(4, 4, 7, padding=3, groups=4),
        nn.Sequential(ToLast(), nn.LayerNorm(4), dead(nn.Linear(4, 12), [3])),
        nn.ReLU(),
        nn.Linear(12, 4),
    ), images(4)


@case({"relu": (1,), "relu#1": (1,)}, {"relu": "is not constant: it is summed"})
def layer_used_twice():
    """Unit 1 is dead in both uses and goes; unit 2 is dead only where the input is positive, and stays."""
    layer = nn.Linear(4, 6)
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.bias.fill_(1.0)
        layer.weight[2], layer.bias[2], layer.bias[1] = -1.0, 0.0, -100.0
    return Net(
        lambda m, x: m.b(m.relu(m.a(x.abs()))) + m.b(m.relu(m.a(-x.abs()))), a=layer, relu=nn.ReLU(), b=nn.Linear(6, 2)
    ), torch.randn(N, 4)


@case({}, {":relu": "used in other ways"})
def tied_weights_of_an_autoencoder():
    return Net(lambda m, x: F.linear(F.relu(m.a(x)), m.a.weight.t()), a=dead(nn.Linear(6, 4), [1])), torch.randn(N, 6)


@case({":relu": (1,)})
def tied_embedding_and_head():
    def forward(m, tokens):
        h = m.embed(tokens)
        return F.linear(h + m.down(F.relu(m.up(h))), m.embed.weight)

    return Net(forward, embed=nn.Embedding(11, 6), up=dead(nn.Linear(6, 8), [1]), down=nn.Linear(8, 6)), torch.randint(
        0, 11, (N, 5)
    )


@case({":relu": (0,)})
def attention_beside_an_mlp():
    def forward(m, x):
        h, _ = m.attention(x, x, x)
        return m.b(F.relu(m.a(x + h)))

    return Net(
        forward,
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        a=dead(nn.Linear(8, 6), [0]),
        b=nn.Linear(6, 2),
    ), torch.randn(N, 5, 8)


@case({}, {":relu": "attention reads it"})
def attention_that_reads_the_units():
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.attention(h, h, h)[0]

    return Net(forward, a=dead(nn.Linear(4, 8), [0]), attention=nn.MultiheadAttention(8, 2, batch_first=True)), (
        torch.randn(N, 5, 4)
    )


@case({":relu#1": (3,)}, {":relu": "recurrent layer reads it"})
def lstm_between_two_layers():
    def forward(m, x):
        return m.c(F.relu(m.b(m.lstm(F.relu(m.a(x)))[0])))

    return Net(
        forward, a=dead(nn.Linear(4, 6), [0]), lstm=nn.LSTM(6, 5, batch_first=True), b=dead(nn.Linear(5, 8), [3]),
        c=nn.Linear(8, 2),
    ), torch.randn(N, 7, 4)  # fmt: skip


@case({":relu": (1, 2)})
def several_consumers():
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.b(h), m.c(h) + m.d(h)

    return Net(
        forward, a=dead(nn.Linear(4, 6), [1, 2]), b=nn.Linear(6, 2), c=nn.Linear(6, 3, bias=False), d=nn.Linear(6, 3)
    ), torch.randn(N, 4)


@case({}, {":relu": "by their position"})
def split_into_halves_with_layers_of_their_own():
    def forward(m, x):
        a, b = F.relu(m.a(x)).chunk(2, 1)
        return m.b(a) + m.c(b)

    return Net(forward, a=dead(nn.Linear(4, 8), [1]), b=nn.Linear(4, 2), c=nn.Linear(4, 2)), torch.randn(N, 4)


@case({}, {":relu": "fixed number of units"})
def shape_written_into_the_code():
    return Net(
        lambda m, x: m.b(F.relu(m.a(x)).view(-1, 4 * 36)), a=dead(nn.Conv2d(3, 4, 3), [0]), b=nn.Linear(144, 2)
    ), images()


@case({}, {":relu": "'div' in '' computes with the number of units"})
def number_of_units_computed_with():
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.b(h / h.size(1))

    return Net(forward, a=dead(nn.Linear(4, 6), [0]), b=nn.Linear(6, 2)), torch.randn(N, 4)


@case({}, {":relu": "with what must keep its shape"})
def number_of_each_unit_computed_with():
    def forward(m, x):
        h = F.relu(m.a(x))
        return m.b(h * torch.arange(h.size(1)))

    return Net(forward, a=dead(nn.Linear(4, 6), [0]), b=nn.Linear(6, 2)), torch.randn(N, 4)


@case({}, {":relu": "the model returns it"})
def units_that_are_the_output():
    return Net(lambda m, x: F.relu(m.a(x)), a=dead(nn.Linear(4, 6), [0])), torch.randn(N, 4)


@case({}, {"1": "normalizes all units together"})
def layer_norm_over_the_units():
    return nn.Sequential(dead(nn.Linear(4, 6), [0]), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(N, 4)


@case({}, {"2": "normalizes all units together"})
def group_norm_before_the_activation():
    return nn.Sequential(nn.Conv2d(3, 4, 3), dead(nn.GroupNorm(2, 4), [0]), nn.ReLU(), nn.Conv2d(4, 2, 1)), images()


@case({"2": (0,)})
def instance_norm_before_the_activation():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), dead(nn.InstanceNorm2d(4, affine=True), [0]), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ), images()


@case({":relu": (3,), ":sigmoid": (3,)})
def squeeze_and_excitation():
    def forward(m, x):
        h = F.relu(m.a(x))
        gate = torch.sigmoid(m.up(F.silu(m.down(h.mean((2, 3))))))
        return m.b(h * gate[:, :, None, None])

    return Net(
        forward, a=dead(nn.Conv2d(3, 6, 3), [3]), down=nn.Linear(6, 3), up=nn.Linear(3, 6), b=nn.Conv2d(6, 2, 3)
    ), images()


@case({":relu": (0,)})
def spatial_attention():
    return Net(
        lambda m, x: m.b(F.relu(m.a(x)) * torch.sigmoid(m.mask(x))),
        a=dead(nn.Conv2d(3, 6, 3, padding=1), [0]), mask=nn.Conv2d(3, 1, 1), b=nn.Conv2d(6, 2, 3, padding=1),
    ), images()  # fmt: skip


@case({"1": (1, 4), "3": (0, 1, 2, 3)}, {"3": "is not constant: it is summed"})
def pixel_shuffle_takes_four_units_or_none():
    return nn.Sequential(
        dead(nn.Conv2d(3, 5, 3), [1, 4]), nn.ReLU(), dead(nn.Conv2d(5, 8, 3), [0, 1, 2, 3, 6]), nn.ReLU(),
        nn.PixelShuffle(2), nn.Conv2d(2, 2, 1),
    ), images()  # fmt: skip


@case({":relu": (2,)})
def parameters_and_a_product_without_a_bias():
    def forward(m, x):
        return torch.relu(x @ m.w + m.b) @ m.v

    b = torch.zeros(6)
    b[2] = -100
    return Net(
        forward, w=nn.Parameter(torch.randn(4, 6)), b=nn.Parameter(b), v=nn.Parameter(torch.randn(6, 2))
    ), torch.randn(N, 4)


class Conv1D(nn.Module):
    """As transformers writes the layers of GPT-2."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)


@case({"1": (1, 7)})
def layers_of_gpt2():
    return nn.Sequential(dead(Conv1D(9, 4), [1, 7], 100.0), nn.ReLU6(), Conv1D(4, 9)), torch.randn(N, 3, 4) / 4


@case({}, {"1": "computed from others"})
def a_weight_with_a_parametrization_reads_it():
    return nn.Sequential(
        dead(nn.Linear(4, 6), [0]), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
    ), torch.randn(N, 4)


@case({"convs.0:relu": (1,)})
def graph_convolution():
    class Conv(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.lin = nn.Linear(a, b)

        def forward(self, x, adjacency):
            return F.relu(self.lin(adjacency @ x))

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([Conv(4, 6), Conv(6, 5)])
            self.out = nn.Linear(5, 2)

        def forward(self, x, adjacency):
            for conv in self.convs:
                x = conv(x, adjacency)
            return self.out(x.sum(1))

    model = Graph()
    dead(model.convs[0].lin, [1])
    dead(model.convs[1].lin, [])
    return model, (torch.randn(N, 7, 4), torch.rand(N, 7, 7))


@case({"inc.1": (0,), "mid.1": (2,)})
def unet_with_a_skip():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.inc = nn.Sequential(dead(nn.Conv2d(3, 4, 3, padding=1), [0]), nn.ReLU())
            self.mid = nn.Sequential(dead(nn.Conv2d(4, 5, 3, padding=1), [2]), nn.ReLU())
            self.out = nn.Conv2d(9, 2, 1)

        def forward(self, x):
            a = self.inc(x)
            b = self.mid(F.max_pool2d(a, 2))
            return self.out(torch.cat([a, F.interpolate(b, size=a.shape[-2:], mode="bilinear")], 1))

    return UNet(), images()


@pytest.mark.parametrize("name", list(ZOO))
def test_dead_units_go_exactly_or_stay_for_a_reason(name, compacted):
    build, removed, kept = ZOO[name]
    model, x = build()
    compaction = compacted(model, x)
    assert {k: v for k, v in compaction.removed.items() if v} == removed
    assert set(compaction.kept) == set(kept)
    for site, part in kept.items():
        assert all(part in why for why in compaction.kept[site].values()), compaction.kept
    assert (compaction.parameters[1] < compaction.parameters[0]) == bool(removed)
