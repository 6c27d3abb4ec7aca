"""The real small data of the reproductions: scikit-learn's 1797 images of handwritten digits, split anew per seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relume.errors import missing_extra


def digits(seeds: Sequence[int], train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [seeds, n, 1, 8, 8] with mean 0 and spread 1, and labels [seeds, n]: to train on, and all that is left.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: fewer than 10 images, or none left to test on.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo", "the digits") from error
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(found.target)
    if not 10 <= train < len(x):
        raise ValueError(f"train lies between 10 and {len(x) - 1}, not {train}")
    orders = torch.stack([torch.randperm(len(x), generator=torch.Generator().manual_seed(s)) for s in seeds])
    split, left = orders[:, :train], orders[:, train:]
    x_train = x[split]
    mean, std = x_train.mean((1, 2, 3, 4), keepdim=True), x_train.std((1, 2, 3, 4), keepdim=True)
    return (x_train - mean) / std, y[split], (x[left] - mean) / std, y[left]
