"""A sparse autoencoder on the hidden layer of a small network: `encode` and `decode` are called, the module never is.
Knows no relume.

relume run examples/scripts/sparse_autoencoder.py [FILE]
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn


class SparseAutoencoder(nn.Module):
    def __init__(self, size: int, latents: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(size, latents), nn.ReLU())
        self.decoder = nn.Linear(latents, size)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x - self.decoder.bias)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents)


torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
subject = nn.Sequential(nn.Linear(64, 32), nn.GELU()).eval()
with torch.no_grad():
    hidden = subject(x)
    hidden = (hidden - hidden.mean(0)) / hidden.std()

sae = SparseAutoencoder(32, 256)
optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
for epoch in range(8):
    for batch in torch.randperm(len(hidden)).split(64):
        latents = sae.encode(hidden[batch])
        loss = (sae.decode(latents) - hidden[batch]).square().sum(1).mean() + 0.5 * latents.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.6f}, {(latents > 0).sum(1).float().mean():.2f} latents fire")
if len(sys.argv) > 1:
    torch.save(sae.state_dict(), sys.argv[1])
