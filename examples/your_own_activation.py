"""An activation of your own becomes a site when relume is told where it is flat.

python examples/your_own_activation.py
"""

import math

import torch
from torch import Tensor, nn

import relume


@relume.register_activation(flat=[(-math.inf, 0.0)])
def squared_relu(x: Tensor) -> Tensor:
    return torch.relu(x) ** 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(squared_relu(self.up(x)))


torch.manual_seed(0)
net = Net()
with torch.no_grad():
    net.up.bias[:4] = -50.0
print(relume.census(net, torch.randn(512, 8)))
