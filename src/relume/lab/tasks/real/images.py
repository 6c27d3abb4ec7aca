"""MNIST and CIFAR-10 as they are published: idx files, and batches in the binary version."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relume.errors import RelumeError
from relume.lab.tasks.networks import Choice, cnn, mlp
from relume.lab.tasks.parts import keys, standardized
from relume.lab.tasks.real.source import Brought, MissingDataError, Raw
from relume.lab.tasks.task import Kind, Part, Split

_CIFAR_ROW = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Images(Brought):
    """Which of ten classes is an image of? A tenth of the training part, drawn by the seed, is for validation.

    Attributes:
        size: channels, height, width.
        column: that holds images for `datasets`.
    """

    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = 10
    about: str = ""
    size: tuple[int, int, int] = (1, 28, 28)
    column: str = "image"

    def fetch(self, loaded: Any) -> Raw:
        return _raw([_stack(loaded[part][self.column], loaded[part]["label"]) for part in ("train", "test")])

    def split(self, raw: Raw, train: list[int], validation: list[int], test: list[int]) -> Split:
        (x, other), (y, other_y) = raw.inputs, raw.labels
        parts = [Part(x[train], y[train]), Part(x[validation], y[validation]), Part(other[test], other_y[test])]
        return standardized(Split(*(Part(part.x.float(), part.y) for part in parts)), (0, 2, 3))


@dataclass(frozen=True)
class Mnist(Images):
    """28 × 28 handwritten digits (LeCun et al. 1998), as rows of 784 numbers."""

    name: str = "mnist"
    about: str = "MNIST: 70,000 real 28 × 28 images of handwritten digits (LeCun et al. 1998); you bring the files"
    places: tuple[str, ...] = ("mnist", "MNIST/raw")
    download: str = (
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        "t10k-labels-idx1-ubyte.gz of MNIST into one folder"
    )
    hub: str = "ylecun/mnist"

    def read(self, files: Path) -> Raw:
        return _raw(
            [
                (
                    _idx(files, f"{part}-images-idx3-ubyte", (28, 28)).unsqueeze(1),
                    _idx(files, f"{part}-labels-idx1-ubyte"),
                )
                for part in ("train", "t10k")
            ]
        )

    def split(self, raw: Raw, train: list[int], validation: list[int], test: list[int]) -> Split:
        split = super().split(raw, train, validation, test)
        return Split(*(Part(part.x.flatten(1), part.y) for part in (split.train, split.validation, split.test)))

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, 784, self.outputs, width, depth)


@dataclass(frozen=True)
class Cifar10(Images):
    """32 × 32 colour images of ten kinds of things (Krizhevsky 2009)."""

    name: str = "cifar10"
    about: str = "CIFAR-10: 60,000 real 32 × 32 colour images (Krizhevsky 2009); you bring the files"
    places: tuple[str, ...] = ("cifar-10-batches-bin",)
    download: str = "and unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (the binary version)"
    hub: str = "uoft-cs/cifar10"
    size: tuple[int, int, int] = (3, 32, 32)
    column: str = "img"

    def read(self, files: Path) -> Raw:
        batches = [_cifar(files / f"{name}.bin") for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
        train_x, train_y = zip(*batches[:5], strict=True)
        return _raw([(torch.cat(train_x), torch.cat(train_y)), batches[5]])

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return cnn(choice, self.size, self.outputs, width, depth)


def _raw(parts: Sequence[tuple[Tensor, Tensor]]) -> Raw:
    for x, y in parts:
        if len(x) != len(y) or not len(y) or not 0 <= int(y.min()) <= int(y.max()) <= 9:
            raise RelumeError(f"{len(x)} images have {len(y)} labels, which should be as many, from 0 to 9")
    images, labels = zip(*parts, strict=True)
    return Raw(images, tuple(y.to(torch.int64) for y in labels), tuple(keys(x) for x in images))


def _stack(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Pictures of PIL as uint8 [images, channels, height, width]."""
    x = np.stack([np.asarray(image, np.uint8) for image in images])
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:3], -1), 3, 1))), torch.tensor(labels)


def _cifar(file: Path) -> tuple[Tensor, Tensor]:
    """Rows of one byte of label and 3072 of a picture: all red, all green, all blue."""
    content = _bytes(file)
    if not content or len(content) % _CIFAR_ROW:
        raise RelumeError(f"{file} has {len(content)} bytes, not a multiple of {_CIFAR_ROW}: it is damaged or no batch")
    rows = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_ROW).copy())
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _idx(files: Path, name: str, size: tuple[int, ...] = ()) -> Tensor:
    """An idx file of bytes: [number, *size]; its head gives type, axes and their lengths, big-endian."""
    packed = files / f"{name}.gz"
    file = packed if packed.exists() else files / name
    content = _bytes(file)
    if packed.exists():
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise RelumeError(f"{file} can't be unpacked: {error}") from error
    axes = 1 + len(size)
    head = 4 + 4 * axes
    lengths = tuple(np.frombuffer(content[4:head], ">u4").tolist()) if len(content) >= head else ()
    if content[:4] != bytes((0, 0, 8, axes)) or lengths[1:] != size or len(content) - head != np.prod(lengths):
        raise RelumeError(f"{file} is damaged, or no idx file of bytes [number{''.join(f', {n}' for n in size)}]")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).reshape(lengths).copy())


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise MissingDataError(f"{file} is missing, of which the others are there") from error


TASKS = (Mnist(), Cifar10())
