"""A small GAN on digits: two networks, two optimizers, the critic trained twice as often. Knows no relume.

relume run examples/scripts/gan.py [FILE]
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class Gan:
    def __init__(self) -> None:
        self.generator = nn.Sequential(
            nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid()
        )
        self.critic = nn.Sequential(
            nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )
        self.for_generator = torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
        self.for_critic = torch.optim.Adam(self.critic.parameters(), lr=1e-3, betas=(0.5, 0.999))

    def train_critic(self, real: torch.Tensor) -> float:
        fake = self.generator(torch.randn(len(real), 16)).detach()
        loss = F.softplus(self.critic(fake)).mean() + F.softplus(-self.critic(real)).mean()
        self.for_critic.zero_grad()
        loss.backward()
        self.for_critic.step()
        return loss.item()

    def train_generator(self, size: int) -> float:
        loss = F.softplus(-self.critic(self.generator(torch.randn(size, 16)))).mean()
        self.for_generator.zero_grad()
        loss.backward()
        self.for_generator.step()
        return loss.item()


torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
gan = Gan()
for epoch in range(4):
    for index, batch in enumerate(torch.randperm(len(x)).split(64)):
        critic_loss = gan.train_critic(x[batch])
        if index % 2:
            generator_loss = gan.train_generator(64)
    print(f"epoch {epoch}: critic {critic_loss:.6f}, generator {generator_loss:.6f}")
if len(sys.argv) > 1:
    torch.save({"generator": gan.generator.state_dict(), "critic": gan.critic.state_dict()}, sys.argv[1])
