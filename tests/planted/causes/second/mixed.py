"""Two causes in one training, at different sites."""

import torch
from torch import nn

from .bench import case, cnn, images, mlp, table, train


@case(
    "born dead below, drifting above",
    "born-dead",
    "bias-drift",
    at={"1": ["born-dead"], "3": ["bias-drift"]},
)
def _(seed):
    model = mlp(64, 48, 48, 10)
    with torch.no_grad():
        model[0].bias[:24] = -10.0
    push = model[2].bias
    return train(model, table("digits", "unit"), seed, lr=0.03, steps=250, penalty=lambda: 0.8 * push.sum())


@case(
    "β of batch norm sinks below, a spike throws the top",
    "norm-collapse",
    "killed-by-step",
    at={"2": ["norm-collapse"], "4": ["killed-by-step"]},
)
def _(seed):
    model = nn.Sequential(
        nn.Linear(30, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )

    def spike(step):
        if step == 40:
            model[3].bias.grad[:16] += 500.0

    return train(
        model,
        table("breast_cancer"),
        seed,
        lr=0.03,
        steps=250,
        before_step=spike,
        penalty=lambda: 0.8 * model[1].bias[:20].sum(),
    )


@case(
    "the inputs turn, and a higher layer was born dead",
    "input-shift",
    "born-dead",
    at={"1": ["input-shift"], "3": ["born-dead"]},
)
def _(seed):
    model = mlp(13, 48, 48, 3)
    with torch.no_grad():
        model[0].weight.abs_().mul_(0.5)
        model[2].bias[:30] = -30.0
    data = table("wine", "unit")
    return train(model, data, seed, lr=0.005, inputs=lambda s, x: -3 * x if s >= 90 else x, steps=180, window=30)


@case(
    "weight decay in the first convolution, born dead in the second",
    "weight-decay",
    "born-dead",
    at={"1": ["weight-decay"], "3": ["born-dead"]},
)
def _(seed):
    model = cnn(16, 16)
    with torch.no_grad():
        model[0].bias.uniform_(-0.3, -0.15)
        model[2].bias[:10] = -8.0
    groups = [
        {"params": [model[0].weight], "weight_decay": 1.0},
        {"params": [model[0].bias, *model[2:].parameters()], "weight_decay": 0.0},
    ]
    return train(model, images(), seed, torch.optim.SGD(groups, 0.03), steps=250, window=25)
