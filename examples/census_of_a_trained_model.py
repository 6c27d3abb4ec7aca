"""Which units of a trained model are dead, and how sure is that? No training, no change to the model.

python examples/census_of_a_trained_model.py
"""

import torch
from torch import nn

import relume

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU()
)
with torch.no_grad():
    model[1].bias[:3] = -20.0  # what training can do to three channels

images = torch.randn(1000, 3, 8, 8)
census = relume.census(model, images.split(100))
print(census)

site = census["2"]
print("dead channels:", site.dead.nonzero().flatten().tolist())
print("each of them fires on fewer than one in", round(1 / float(site.death_bound(0.95)[0])), "new images (95 %)")
print("all of them at once:", round(1 / float(site.death_bound(0.95, simultaneous=True)[0])))
