"""Normalizations that collapse."""

import torch
from torch import nn

from .bench import case, cnn, images, mlp, table, train


@case("β of batch norm pushed down, width 128, Adam", "norm-collapse", sites=["2"])
def _(seed):
    model = mlp(30, 128, 2, norm=nn.BatchNorm1d)
    push = model[1].bias
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    return train(model, table("breast_cancer"), seed, optimizer, steps=300, window=30, penalty=lambda: 3.0 * push.sum())


@case("γ of batch norm shrunk by an L1 penalty under β of -0.3", "norm-collapse", sites=["2"])
def _(seed):
    model = cnn(16, 16, norm=nn.BatchNorm2d)
    with torch.no_grad():
        model[1].bias.fill_(-0.3)
    scale = model[1].weight
    return train(model, images(), seed, lr=0.02, steps=150, window=25, penalty=lambda: 0.5 * scale.abs().sum())


@case("γ of batch norm decayed under β that is exempt", "norm-collapse", "weight-decay", sites=["2"])
def _(seed):
    model = mlp(64, 64, 10, norm=nn.BatchNorm1d)
    with torch.no_grad():
        model[1].bias.fill_(-0.4)
    rest = [p for p in model.parameters() if p is not model[1].weight]
    groups = [{"params": [model[1].weight], "weight_decay": 2.0}, {"params": rest}]
    return train(model, table("digits", "unit"), seed, torch.optim.SGD(groups, 0.03), steps=200, window=25)


@case("β of layer norm pushed down in a residual block", "norm-collapse", sites=["norm_act.2"])
def _(seed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(30, 24)
            self.norm_act = nn.Sequential(nn.Linear(24, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 24))
            self.head = nn.Linear(24, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.norm_act(x))

    model = Net()
    push = model.norm_act[1].bias
    return train(model, table("breast_cancer"), seed, lr=0.03, steps=300, window=30, penalty=lambda: 0.8 * push.sum())


@case("β of group norm pushed down", "norm-collapse", sites=["5"])
def _(seed):
    model = cnn(8, 16, norm=lambda c: nn.GroupNorm(2, c))
    push = model[4].bias
    return train(model, images(), seed, lr=0.03, steps=150, window=25, penalty=lambda: 1.5 * push.sum())


@case("β of batch norm driven by negative gradients, momentum", "norm-collapse", sites=["5"])
def _(seed):
    model = mlp(13, 32, 32, 3, norm=nn.BatchNorm1d)
    push = model[4].bias

    def drive(step):
        push.grad.add_(0.3)

    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    return train(model, table("wine"), seed, optimizer, steps=200, window=25, before_step=drive)
