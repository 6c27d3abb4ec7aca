"""A package's own training, with relative imports and an exit code. Knows no relume.

cd examples/scripts/project && relume run -m training --width 32
"""

import argparse
import sys

import torch
import torch.nn.functional as F

from .network import network


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("save", nargs="?")
    parser.add_argument("--good-enough", type=float, default=0.2)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.rand(2000, 2) * 2 - 1
    y = (x.square().sum(1) < 0.5).float()
    classifier = network(options.width)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
    for _ in range(5):
        for batch in torch.randperm(len(x)).split(50):
            loss = F.binary_cross_entropy_with_logits(classifier(x[batch]).squeeze(1), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"loss {loss.item():.6f}")
    if options.save:
        torch.save(classifier.state_dict(), options.save)
    return 0 if loss.item() < options.good_enough else 3


if __name__ == "__main__":
    sys.exit(main())
