"""An ordinary training loop, with a frozen teacher, an average of the weights, and an evaluation. Knows no relume.

relume run examples/scripts/plain_training.py --epochs 3
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("save", nargs="?")
options = parser.parse_args()

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)
    )


teacher = network().requires_grad_(False)
model = network()
average = copy.deepcopy(model).eval()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

for epoch in range(options.epochs):
    model.train()
    for batch in torch.randperm(len(x)).split(32):
        out = model(x[batch])
        loss = F.cross_entropy(out, y[batch]) + 0.01 * F.mse_loss(out, teacher(x[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(average.parameters(), model.parameters(), strict=True):
                p.lerp_(q, 0.05)
    model.eval()
    with torch.no_grad():
        right = [float((net(x).argmax(1) == y).float().mean()) for net in (model, average)]
    print(f"epoch {epoch}: loss {loss.item():.6f}, right {right[0]:.4f}, averaged {right[1]:.4f}")

if options.save:
    torch.save(model.state_dict(), options.save)
