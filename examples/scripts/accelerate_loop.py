"""A loop of one's own on Accelerate, with gradient accumulation and clipping. Knows no relume.

relume run examples/scripts/accelerate_loop.py [FILE]
"""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(10, 64), nn.Linear(64, 64)])
        self.out = nn.Linear(64, 1)

    def forward(self, x):
        for block in self.blocks:
            x = F.relu(block(x))
        return self.out(x).squeeze(1)


set_seed(0)
torch.set_num_threads(1)
x, y = (torch.tensor(a, dtype=torch.float32) for a in load_diabetes(return_X_y=True))
loader = DataLoader(TensorDataset(x * 20, (y - y.mean()) / y.std()), 16, shuffle=True)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
regressor = Regressor()
regressor, optimizer, loader = accelerator.prepare(
    regressor, torch.optim.AdamW(regressor.parameters(), lr=2e-3), loader
)

for epoch in range(6):
    total = 0.0
    for inputs, targets in loader:
        with accelerator.accumulate(regressor):
            loss = F.mse_loss(regressor(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(regressor.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
    print(f"epoch {epoch}: loss {total / len(loader):.6f}")

if len(sys.argv) > 1:
    torch.save(accelerator.unwrap_model(regressor).state_dict(), sys.argv[1])
