"""A network as a scikit-learn estimator, by skorch, with its own validation split. Knows no relume.

relume run examples/scripts/skorch_digits.py [FILE]
"""

import sys

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn


class Classifier(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU6()
        )
        self.out = nn.Linear(width, 10)

    def forward(self, x):
        return self.out(self.layers(x))


torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
x, y = digits.data.astype("float32") / 16, digits.target
net = NeuralNetClassifier(
    Classifier, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, optimizer__momentum=0.9, lr=0.05,
    max_epochs=4, batch_size=32, verbose=0,
)  # fmt: skip
net.fit(x, y)
print(f"right {net.score(x, y):.4f}")
if len(sys.argv) > 1:
    torch.save(net.module_.state_dict(), sys.argv[1])
