"""Data that relume can't bring along: where they are looked for, and what is said when they aren't there."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relume import native
from relume.errors import RelumeError
from relume.lab.tasks.parts import distinct
from relume.lab.tasks.task import Split, Task


class MissingDataError(RelumeError):
    """A task's data are not on this machine; the message says what to download and where to put it."""


class Raw(NamedTuple):
    """Inputs as they were published, in two or three parts; for each a key that equal inputs share.

    Attributes:
        inputs, labels, keys: of the training part, of the test part, and of the validation part if one was published.
    """

    inputs: tuple[Any, ...]
    labels: tuple[Tensor, ...]
    keys: tuple[Sequence[Hashable], ...]


def folder() -> Path:
    """Where data are looked for: `RELUME_DATA`, else `relume/data` in the user's cache folder."""
    return Path(os.environ.get("RELUME_DATA") or native.cache() / "data")


@dataclass(frozen=True)
class Brought(Task):
    """A task on published data that the user brings: as files, or through Hugging Face's `datasets` where installed.

    The published test part is the test part. Of inputs that are equal one is kept, in the test part if it is there.
    The order of files doesn't matter.

    Attributes:
        places: where the files may lie, in the data folder.
        download: what to download to have them there.
        hub: name of the same data for `datasets`; empty if it can't load them.
    """

    places: tuple[str, ...] = ()
    download: str = ""
    hub: str = ""

    def files(self) -> Path | None:
        """The folder that the data are in, or None where there is none."""
        return next((found for place in self.places if (found := folder() / place).is_dir()), None)

    def data(self, seed: int = 0) -> Split:
        """The data, split by the seed.

        Raises:
            MissingDataError: they are not here.
            RelumeError: a file is not what it should be.
        """
        return _split(self, self.files(), seed)

    def read(self, files: Path) -> Raw:
        """The data from their folder."""
        raise NotImplementedError

    def fetch(self, loaded: Any) -> Raw:
        """The data from what `datasets` gives: by name of the part, a table of rows."""
        raise NotImplementedError

    def split(self, raw: Raw, train: list[int], validation: list[int], test: list[int]) -> Split:
        """Make inputs of what was published.

        Args:
            train: which of its training part to train on.
            validation: which to validate on: of the published validation part, else of the training part.
            test: which of the test part to keep.
        """
        raise NotImplementedError


# One at a time: they are large.
@functools.lru_cache(maxsize=1)
def _raw(task: Brought, files: Path | None) -> Raw:
    if files is not None:
        return task.read(files)
    here = folder() / task.places[0]
    advice = f"download {task.download}, so that there is {here} (the environment variable RELUME_DATA says where)"
    if not task.hub:
        raise MissingDataError(f"the data of {task.name!r} are not here: {advice}")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingDataError(
            f"the data of {task.name!r} are not here: {advice}; or install Hugging Face's library, which downloads "
            f"them: pip install 'relume[data]'"
        ) from error
    try:
        return task.fetch(datasets.load_dataset(task.hub))
    except Exception as error:  # a network, a hub, a cache: much can be wrong, and none of it is known here
        raise MissingDataError(
            f"the data of {task.name!r} are not here, and the library datasets could not load {task.hub!r} "
            f"({type(error).__name__}: {error}): {advice}"
        ) from error


@functools.lru_cache(maxsize=1)
def _split(task: Brought, files: Path | None, seed: int) -> Split:
    raw = _raw(task, files)
    test = _ordered(raw.keys[1], ())
    taken = list(raw.keys[1])
    published = len(raw.keys) > 2
    held_out = _ordered(raw.keys[2], taken) if published else []
    train = _ordered(raw.keys[0], [*taken, *raw.keys[2]] if published else taken)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    if not published:
        a = len(order) // 10
        held_out, order = [train[i] for i in order[:a]], order[a:]
    train = [train[i] for i in order]
    if not (train and held_out and test):
        raise RelumeError(f"the data of {task.name!r} are too few: {len(train)} to train on, {len(test)} to test by")
    return task.split(raw, train, held_out, test)


def _ordered(keys: Sequence[Any], taken: Sequence[Hashable]) -> list[int]:
    """Which to keep, in the order of their keys."""
    return sorted(distinct(keys, taken), key=lambda i: keys[i])
