"""Watch an ordinary training loop: one line is added, nothing else changes.

python examples/plain_loop.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import relume

torch.manual_seed(0)
x = torch.rand(2000, 20) * 4  # positive, not centred: the classic way to kill ReLUs
y = (x.sum(1) > 40).long()

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

with relume.watch(model, optimizer, every=5, window=50) as watch:
    for _ in range(10):
        for batch in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

print(watch.census())
for site in watch.sites:
    timeline = watch.timeline(site.name)
    died = sorted(set(timeline.died_at[timeline.died_at >= 0].tolist()))  # -1: alive, or born dead
    print(f"{site.name}: {int(timeline.born_dead.sum())} born dead; others died at steps {died}")
print("report:", watch.report("runs/plain_loop.html"))
