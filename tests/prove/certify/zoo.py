"""Small networks of many architectures, each with one input's shape; used by the tests and by benchmarks/certify.py."""

import torch
import torch.nn.functional as F
from torch import nn

import relume


class Residual(nn.Module):
    """Functional calls, a module used twice, in-place addition."""

    def __init__(self):
        super().__init__()
        self.up, self.a, self.b, self.norm = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.LayerNorm(12)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.up(x))
        x = x + F.relu(self.a(self.norm(x)))
        y = self.b(x)
        x = x.clone()
        x += y
        return self.act(x)


class WritingStyles(nn.Module):
    """The ways in which a ReLU may be written."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))

    def forward(self, x):
        first, *rest = self.layers
        x = first(x).relu_()
        x = rest[0](x).clamp(min=0)
        y = rest[1](x)
        x = y * (y > 0)
        y = rest[2](x)
        y[y < 0] = 0
        x = torch.maximum(rest[3](y), torch.tensor(0.0))
        y = rest[4](x)
        x = torch.where(y > 0, y, torch.zeros(()))
        y = rest[5](x)
        x = y.masked_fill(y < 0, 0.0)
        return F.threshold(rest[6](x), 0.1, 0.1)


class Views(nn.Module):
    """Writes in place through views, into buffers made in the pass, and over the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.a(x)
        left, right = x[:, :4], x[:, 4:]
        left.relu_()
        right -= 0.5
        buffer = torch.zeros(len(x), 8)
        buffer[:, :4] = right
        buffer[:, 4:] = left * 2
        x = F.relu(self.b(x + buffer))
        x[:, 0] += 1.0
        return F.relu6(x)


class Attention(nn.Module):
    """A pre-norm transformer layer over tokens, with a causal mask and a gated MLP."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.first, self.second = nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-3)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.first(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        y = self.second(x)
        return F.relu(self.down(F.silu(self.gate(y)) * self.up(y)) + x)


class Inception(nn.Module):
    """Branches side by side: concatenation, grouped, dilated, strided and transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2)
        self.c = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.d = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.act = nn.ReLU6()

    def forward(self, x):
        y = torch.cat([F.relu(self.a(x)), F.elu(self.b(x))], 1)
        y = self.act(self.d(F.hardswish(self.c(y))))
        return F.softplus(F.adaptive_avg_pool2d(y, 2).flatten(1) - 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(4, 6, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return F.relu(self.head(self.rnn(x)[0][:, -1]))


def every_activation():
    """All of torch's element-wise ones and relume's, one after the other, with what keeps them in range."""
    modules = [
        nn.ReLU(),
        nn.ReLU6(),
        nn.LeakyReLU(0.2),
        nn.PReLU(8),
        nn.RReLU(),
        nn.ELU(0.7),
        nn.SELU(),
        nn.CELU(0.5),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Mish(),
        nn.Softplus(2.0),
        nn.Sigmoid(),
        nn.Tanh(),
        nn.Hardtanh(-0.3, 0.4),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Softsign(),
        nn.Tanhshrink(),
        nn.LogSigmoid(),
        nn.Softshrink(0.1),
        nn.Hardshrink(0.1),
        nn.Threshold(0.05, 0.0),
        nn.Threshold(0.1, 0.5),
        relume.nn.DReLU(),
        relume.nn.DReLU(8, form="exponential"),
    ]
    layers = []
    for module in modules:
        layers += [nn.Linear(8, 8), module]
    return nn.Sequential(*layers)


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


ZOO = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), (5,)),
    "gelu": (
        lambda: nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 12), nn.SiLU(), nn.Linear(12, 8), nn.ReLU()),
        (5,),
    ),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 9), nn.BatchNorm1d(9), nn.ReLU6()
        ),
        (5,),
    ),
    "cnn": (cnn, (1, 8, 8)),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.MaxPool1d(3, 2, 1),
            nn.Conv1d(6, 6, 3, groups=3),
            nn.InstanceNorm1d(6),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(7),
            nn.Hardtanh(),
        ),
        (2, 12),
    ),
    "conv3d": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.ConvTranspose3d(4, 3, 2, 2),
            nn.LeakyReLU(0.1),
            nn.AdaptiveMaxPool3d(2),
            nn.Flatten(),
            nn.Linear(24, 6),
            nn.ReLU(),
        ),
        (1, 4, 4, 4),
    ),
    "residual": (Residual, (6,)),
    "writing styles": (WritingStyles, (6,)),
    "views": (Views, (6,)),
    "attention": (Attention, (3, 8)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), 1),
        (3, 8),
    ),
    "inception": (Inception, (2, 6, 6)),
    "recurrent": (Recurrent, (3, 4)),
    "activations": (every_activation, (8,)),
    "upsampling": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.PReLU(4),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(4, 4, 3, 2),
            nn.PixelShuffle(2),
            nn.ELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(1, 3, 3),
            nn.GLU(3),
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
        ),
        (1, 5, 5),
    ),
    "double": (lambda: nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU()).double(), (5,)),
}


def build(name, seed=0, buried=0.4):
    """A network of the zoo, its box's ends and what was done to it: biases of a share of all units moved far down.

    Batch norm is given statistics as after training. Returns the model in evaluation, and one input's shape.
    """
    torch.manual_seed(seed)
    make, shape = ZOO[name]
    model = make()
    dtype = torch.float64 if name == "double" else torch.float32
    model(torch.randn(4, *shape, dtype=dtype))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2.0)
            elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.bias is not None:
                module.bias[torch.rand(len(module.bias)) < buried] -= 2.0
    return model.eval(), shape
