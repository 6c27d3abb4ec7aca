"""Small models with planted deaths, one for each way in which what a unit says can reach what reads it.

`ZOO[name]()` gives a model in evaluation, a batch, and by site the units that are dead on it.
"""

import torch
import torch.nn.functional as F
from torch import nn

ZOO = {}
BURIED = -1e3


def member(make):
    ZOO[make.__name__] = make
    return make


def bury(bias, *units, at=BURIED):
    with torch.no_grad():
        bias[list(units)] = at


def images(channels=3, size=8, n=64):
    return torch.randn(n, channels, size, size)


class Net(nn.Module):
    """Its layers as attributes, its forward a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            else:
                self.add_module(name, layer)
        self._forward = forward

    def forward(self, *args):
        return self._forward(self, *args)


@member
def mlp():
    m = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    bury(m[0].bias, 2, 5)
    bury(m[2].bias, 0, 15)
    return m, torch.randn(64, 6), {"1": [2, 5], "3": [0, 15]}


@member
def all_of_two_layers_dead():
    m = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    bury(m[0].bias, *range(8))
    bury(m[2].bias, *range(8))
    return m, torch.randn(64, 6), {"1": range(8), "3": range(8)}


@member
def flatten_after_pooling():
    m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 4))
    bury(m[0].bias, 1, 6)
    return m, images(), {"1": [1, 6]}


@member
def average_pooling_and_dropout():
    m = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, 4),
    )  # fmt: skip
    bury(m[0].bias, 0)
    return m, images(), {"1": [0]}


@member
def batch_norm_before():
    m = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    bury(m[1].bias, 3, 4)
    return m, images(), {"2": [3, 4]}


@member
def batch_norm_after_makes_a_constant():
    m = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4))
    bury(m[0].bias, 1, 2)
    with torch.no_grad():
        m[2].bias.normal_()
        m[2].running_mean.normal_()
    return m, torch.randn(64, 6), {"1": [1, 2]}


@member
def convolution_reads_a_constant_without_padding():
    m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, stride=2))
    bury(m[0].bias, 1, 2)
    nn.init.normal_(m[2].bias)
    return m, images(), {"1": [1, 2]}


@member
def instance_norm_after():
    m = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.InstanceNorm1d(8, affine=True), nn.Conv1d(8, 4, 3))
    bury(m[0].bias, 1, 2)
    nn.init.normal_(m[2].bias)
    return m, torch.randn(64, 3, 12), {"1": [1, 2]}


@member
def layer_norm_before():
    m = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4))
    bury(m[1].bias, 1, 2)
    return m, torch.randn(64, 6), {"2": [1, 2]}


@member
def group_norm_before():
    m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    bury(m[1].bias, 1, 7)
    return m, images(), {"2": [1, 7]}


@member
def depthwise_convolution():
    m = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    bury(m[0].bias, 1, 2)
    bury(m[3].bias, 5)
    return m, images(), {"1": [1, 2], "4": [5]}


@member
def grouped_convolutions():
    m = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.ReLU(),
                      nn.Conv2d(6, 2, 1))  # fmt: skip
    bury(m[0].bias, 1, 5)
    bury(m[2].bias, 4)
    return m, images(4), {"1": [1, 5], "3": [4]}


@member
def channel_shuffle():
    def forward(m, x):
        x = F.channel_shuffle(m.act(m.a(x)), 2)
        return m.b(x)

    m = Net(forward, a=nn.Conv2d(4, 8, 1, groups=2), act=nn.ReLU(), b=nn.Conv2d(8, 6, 3, padding=1, groups=2))
    bury(m.a.bias, 1, 6)
    return m, images(4), {"act": [1, 6]}


@member
def transposed_convolutions():
    m = nn.Sequential(nn.ConvTranspose2d(3, 8, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2),
                      nn.ReLU(), nn.Conv2d(6, 2, 1))  # fmt: skip
    bury(m[0].bias, 1, 5)
    bury(m[2].bias, 3)
    return m, images(size=4), {"1": [1, 5], "3": [3]}


@member
def volumes():
    m = nn.Sequential(nn.Conv3d(2, 6, 3), nn.ReLU(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(6 * 8, 3))
    bury(m[0].bias, 4)
    return m, torch.randn(16, 2, 6, 6, 6), {"1": [4]}


@member
def basic_residual_block():
    def forward(m, x):
        x = m.stem(x)
        h = F.relu(m.bn1(m.conv1(x)))
        return m.head((m.bn2(m.conv2(h)) + x).mean((2, 3)))

    m = Net(forward, stem=nn.Conv2d(3, 8, 1), conv1=nn.Conv2d(8, 8, 3, padding=1), bn1=nn.BatchNorm2d(8),
            conv2=nn.Conv2d(8, 8, 3, padding=1), bn2=nn.BatchNorm2d(8), head=nn.Linear(8, 2))  # fmt: skip
    bury(m.bn1.bias, 3, 4)
    return m, images(), {":relu": [3, 4]}


@member
def dense_block():
    def forward(m, x):
        a = F.relu(m.a(x))
        b = F.relu(m.b(torch.cat([x, a], 1)))
        return m.c(torch.cat([x, a, b], 1))

    m = Net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(7, 4, 3, padding=1), c=nn.Conv2d(11, 2, 1))
    bury(m.a.bias, 1)
    bury(m.b.bias, 0, 3)
    return m, images(), {":relu": [1], ":relu#1": [0, 3]}


@member
def norm_over_what_was_joined():
    def forward(m, x):
        return m.c(F.relu(m.bn(torch.cat([m.a(x), m.b(x)], 1))))

    m = Net(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 5, 1), bn=nn.BatchNorm2d(9), c=nn.Conv2d(9, 2, 3))
    bury(m.bn.bias, 2, 6)
    return m, images(), {":relu": [2, 6]}


@member
def unet_with_a_skip():
    def forward(m, x):
        down = F.relu(m.down(x))
        low = F.relu(m.low(F.max_pool2d(down, 2)))
        return m.out(torch.cat([down, F.interpolate(low, scale_factor=2)], 1))

    m = Net(forward, down=nn.Conv2d(3, 6, 3, padding=1), low=nn.Conv2d(6, 8, 3, padding=1),
            out=nn.Conv2d(14, 2, 3, padding=1))  # fmt: skip
    bury(m.down.bias, 2)
    bury(m.low.bias, 7)
    return m, images(), {":relu": [2], ":relu#1": [7]}


@member
def several_consumers():
    def forward(m, x):
        h = m.act(m.trunk(x))
        return m.one(h), m.two(h), m.three(h[:, :6])

    m = Net(forward, trunk=nn.Linear(6, 8), act=nn.ReLU(), one=nn.Linear(8, 2), two=nn.Linear(8, 3),
            three=nn.Linear(6, 1))  # fmt: skip
    bury(m.trunk.bias, 1, 7)
    return m, torch.randn(64, 6), {"act": [1, 7]}


@member
def split_in_two():
    def forward(m, x):
        a, b = F.relu(m.up(x)).chunk(2, -1)
        return m.left(a) + m.right(b)

    m = Net(forward, up=nn.Linear(6, 8), left=nn.Linear(4, 3), right=nn.Linear(4, 3))
    bury(m.up.bias, 1, 6)
    return m, torch.randn(64, 6), {":relu": [1, 6]}


@member
def permuted_and_reshaped():
    def forward(m, x):
        h = m.conv(x).relu().permute(0, 2, 3, 1).reshape(len(x), -1)
        return m.out(h)

    m = Net(forward, conv=nn.Conv2d(3, 5, 3), out=nn.Linear(5 * 36, 2))
    bury(m.conv.bias, 4)
    return m, images(), {":relu": [4]}


@member
def space_to_depth():
    def forward(m, x):
        return m.out(F.pixel_unshuffle(F.relu(m.conv(x)), 2))

    m = Net(forward, conv=nn.Conv2d(3, 5, 3, padding=1), out=nn.Conv2d(20, 2, 1))
    bury(m.conv.bias, 4)
    return m, images(), {":relu": [4]}


@member
def swiglu_like_gate():
    def forward(m, x):
        return x + m.down(F.relu(m.gate(x)) * m.up(x))

    m = Net(forward, gate=nn.Linear(6, 8), up=nn.Linear(6, 8), down=nn.Linear(8, 6))
    bury(m.gate.bias, 1, 6)
    return m, torch.randn(16, 5, 6), {":relu": [1, 6]}


@member
def fused_gate_and_value():
    def forward(m, x):
        gate, up = m.both(x).chunk(2, -1)
        return m.down(F.relu(gate) * up)

    m = Net(forward, both=nn.Linear(6, 16), down=nn.Linear(8, 6))
    bury(m.both.bias, 1, 6)
    return m, torch.randn(16, 5, 6), {":relu": [1, 6]}


@member
def transformer_layer():
    m = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    bury(m.linear1.bias, 3, 9)
    return m, torch.randn(32, 5, 8), {":relu": [3, 9]}


@member
def values_through_attention():
    def forward(m, x):
        q, k, v = m.q(x), m.k(x), F.relu(m.v(x))
        q, k, v = (t.view(*t.shape[:2], 2, 4).transpose(1, 2) for t in (q, k, v))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    m = Net(forward, **{n: nn.Linear(8, 8) for n in ("q", "k", "v", "out")})
    bury(m.v.bias, 3, 6)
    return m, torch.randn(16, 5, 8), {":relu": [3, 6]}


@member
def reused_module():
    def forward(m, x):
        a, b = x.chunk(2, -1)
        return m.out(m.act(m.shared(a))) - m.out(m.act(m.shared(b)))

    m = Net(forward, shared=nn.Linear(3, 8), act=nn.ReLU(), out=nn.Linear(8, 2))
    bury(m.shared.bias, 3, 6)
    return m, torch.randn(64, 6), {"act": [3, 6], "act#1": [3, 6]}


@member
def tied_elsewhere():
    """Encoder and decoder share weights, and the dead unit lies between other layers."""

    def forward(m, x):
        h = F.linear(x, m.tied)
        return F.linear(m.b(F.relu(m.a(h))), m.tied.t())

    m = Net(forward, tied=nn.Parameter(torch.randn(6, 4)), a=nn.Linear(6, 8), b=nn.Linear(8, 6))
    bury(m.a.bias, 3)
    return m, torch.randn(64, 4), {":relu": [3]}


@member
def functional_weights():
    def forward(m, x):
        return torch.einsum("bth,ho->bto", torch.relu(x @ m.w1 + m.b1), m.w2)

    m = Net(forward, w1=nn.Parameter(torch.randn(6, 8)), b1=nn.Parameter(torch.randn(8)),
            w2=nn.Parameter(torch.randn(8, 3)))  # fmt: skip
    bury(m.b1, 3)
    return m, torch.randn(16, 5, 6), {":relu": [3]}


@member
def batched_experts():
    def forward(m, x):
        h = torch.baddbmm(m.b1, x.expand(3, *x.shape), m.w1).relu()
        return torch.bmm(h, m.w2).sum(0)

    m = Net(forward, w1=nn.Parameter(torch.randn(3, 6, 8)), b1=nn.Parameter(torch.randn(3, 1, 8)),
            w2=nn.Parameter(torch.randn(3, 8, 2)))  # fmt: skip
    with torch.no_grad():
        m.b1[:, :, 5] = BURIED
    return m, torch.randn(64, 6), {":relu": [5]}


@member
def saturated_at_the_top():
    m = nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 4))
    bury(m[0].bias, 1, at=1e3)
    return m, torch.randn(64, 6), {"1": [1]}


@member
def flat_sigmoid():
    m = nn.Sequential(nn.Linear(6, 8), nn.Hardsigmoid(), nn.Dropout(), nn.Linear(8, 4))
    bury(m[0].bias, 1, at=1e3)
    return m, torch.randn(64, 6), {"1": [1]}


@member
def recurrent_consumer():
    def forward(m, x):
        return m.rnn(F.relu(m.embed(x)))[0]

    m = Net(forward, embed=nn.Linear(4, 6), rnn=nn.LSTM(6, 5, batch_first=True))
    bury(m.embed.bias, 2)
    return m, torch.randn(16, 7, 4), {":relu": [2]}


@member
def recurrent_hand_written():
    def forward(m, x):
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = torch.relu(m.ih(x[:, t]) + m.hh(h))
        return m.out(h)

    m = Net(forward, ih=nn.Linear(4, 6), hh=nn.Linear(6, 6), out=nn.Linear(6, 2))
    bury(m.ih.bias, 2)
    return m, torch.randn(16, 3, 4), {":relu": [2], ":relu#1": [2], ":relu#2": [2]}


@member
def convolution_over_tokens():
    def forward(m, x):
        h = F.gelu(m.conv(x.transpose(1, 2)))
        return m.out(F.relu(m.up(h.transpose(1, 2))).mean(1))

    m = Net(forward, conv=nn.Conv1d(4, 6, 3, padding=1), up=nn.Linear(6, 8), out=nn.Linear(8, 2))
    bury(m.up.bias, 2)
    return m, torch.randn(16, 7, 4), {":relu": [2]}


@member
def squeeze_and_excitation():
    def forward(m, x):
        x = m.conv(x)
        gate = torch.sigmoid(m.expand(F.relu(m.squeeze(x.mean((2, 3))))))
        return m.out(x * gate[:, :, None, None])

    m = Net(forward, conv=nn.Conv2d(3, 6, 3), squeeze=nn.Linear(6, 4), expand=nn.Linear(4, 6), out=nn.Conv2d(6, 2, 1))
    bury(m.squeeze.bias, 2)
    return m, images(), {":relu": [2]}


@member
def reflected_borders_around_a_constant():
    m = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6),
                      nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"))  # fmt: skip
    bury(m[0].bias, 1)
    nn.init.normal_(m[2].bias)
    return m, images(), {"1": [1]}


@member
def written_in_place():
    def forward(m, x):
        x = m.act(m.bn(m.a(x)))
        y = m.b(x)
        y[y < 0] = 0
        return m.c(y.mul_(2))

    m = Net(
        forward, a=nn.Conv2d(3, 6, 3), bn=nn.BatchNorm2d(6), act=nn.ReLU(inplace=True), b=nn.Conv2d(6, 6, 3),
        c=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    bury(m.bn.bias, 2)
    bury(m.b.bias, 4)
    return m, images(), {"act": [2], ":setitem": [4]}


@member
def checkpointed():
    from torch.utils.checkpoint import checkpoint

    def forward(m, x):
        return m.out(checkpoint(m.body, x, use_reentrant=False))

    m = Net(forward, body=nn.Sequential(nn.Linear(6, 8), nn.ReLU()), out=nn.Linear(8, 2))
    bury(m.body[0].bias, 2)
    return m, torch.randn(64, 6), {"body.1": [2]}
