"""`zero_` and `identity_`: weights without chance: identities, Hadamard matrices where a layer widens, zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from relume.init.biases import fill_biases
from relume.init.draws import middle
from relume.init.layers import Layer, Left, all_or_nothing, checked, find
from relume.init.summary import Done, Initialization
from relume.watch import arguments


def zero_(
    model: nn.Module,
    *,
    zeros: str | Iterable[str] = (),
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
) -> Initialization:
    """ZerO: identity where a layer keeps or lowers the number of features, a Hadamard matrix where it raises it.

    With identities alone a network that widens trains as if it were no wider than its input; the Hadamard matrix
    breaks that. A convolution has the matrix at its kernel's centre. It draws nothing: every call gives the same.

    Args:
        model: a whole model or one layer. Linear and convolution layers; others are left alone.
        zeros: shell patterns on the names of layers to be all zero: in a residual network the last of each branch,
            so that each block starts as the identity.
        include, exclude, frozen: as in `he_`.

    Returns:
        Initialization, as `he_`. Biases are zero.

    Raises:
        RelumeError: as `he_`.

    Source: Zhao et al. 2021, arXiv 2110.12661, algorithm 1, with the Hadamard matrix divided by √size, so that it is
    orthogonal, as in the authors' code.

    >>> layer = nn.Linear(2, 4)
    >>> _ = zero_(layer)
    >>> layer.weight.tolist()
    [[0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [0.5, -0.5]]
    """
    patterns = arguments.patterns("zeros", zeros)

    def matrix(layer: Layer, rows: int, columns: int, like: Tensor) -> tuple[Tensor, str]:
        if any(fnmatchcase(layer.name, p) for p in patterns):
            return torch.zeros(rows, columns).to(like), "zeros"
        if rows <= columns:
            return torch.eye(rows, columns).to(like), "identity"
        size = 2 ** math.ceil(math.log2(rows))
        return (hadamard(size)[:rows, :columns] / math.sqrt(size)).to(like), "Hadamard"

    return _fixed("zero", model, matrix, include, exclude, frozen)


def identity_(
    model: nn.Module,
    *,
    gain: float = 1.0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    frozen: bool = False,
) -> Initialization:
    """Give each layer a (partial) identity: as many features as there is room for go through unchanged.

    A convolution hands on each position (a Dirac kernel), group by group. It draws nothing.

    Args:
        model: a whole model or one layer. Linear and convolution layers; others are left alone.
        gain: on the diagonal.
        include, exclude, frozen: as in `he_`.

    Returns:
        Initialization, as `he_`. Biases are zero.

    Raises:
        RelumeError: as `he_`.

    Source: Le et al. 2015, arXiv 1504.00941; for convolutions Zagoruyko & Komodakis 2017, arXiv 1706.00388.

    >>> layer = nn.Linear(3, 2)
    >>> _ = identity_(layer)
    >>> layer(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [1.0, 2.0]
    """

    def matrix(layer: Layer, rows: int, columns: int, like: Tensor) -> tuple[Tensor, str]:
        return gain * torch.eye(rows, columns).to(like), "identity"

    return _fixed("identity", model, matrix, include, exclude, frozen)


def hadamard(size: int) -> Tensor:
    """Sylvester's Hadamard matrix of ±1; float32 [size, size], size a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _fixed(
    method: str,
    model: nn.Module,
    matrix: Callable[[Layer, int, int, Tensor], tuple[Tensor, str]],
    include: str | Iterable[str],
    exclude: str | Iterable[str],
    frozen: bool,
) -> Initialization:
    model = checked(model, f"{method}_")
    found = find(model, include=include, exclude=exclude, frozen=frozen)
    done, left = [], list(found.left)
    with all_or_nothing(model):
        for layer in found.layers:
            if layer.kind not in ("linear", "conv", "transposed"):
                left.append(Left(layer.shown, f"{layer.kind}: an identity of it would not hand on its input"))
                continue
            weight = layer.out
            new = torch.zeros_like(weight.read())
            what = ""
            for block in new.chunk(weight.groups):
                centre = middle(block)
                if layer.kind == "transposed":  # [in, out, …]
                    centre = centre.T
                values, what = matrix(layer, centre.shape[0], centre.shape[1], new)
                centre.copy_(values)
            weight.write(new)
            std = float(new.double().square().mean().sqrt())
            done.append(Done(layer.shown, "", tuple(new.shape), what, std=std, bias=fill_biases(layer, "zeros", None)))
    return Initialization(method, type(model).__name__, tuple(done), tuple(left))
