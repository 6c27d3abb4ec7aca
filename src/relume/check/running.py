"""`run`: from names on a command line to a census; and `write` for what is made of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from relume.census import Census
from relume.check.loading import InputError, Target, blamed, load_batches, load_model
from relume.check.weights import load_weights
from relume.watch import census


def run(
    model: str, data: str, weights: Path | None, *, seed: int = 0, max_batches: int | None = None, **options: Any
) -> tuple[Target, Census]:
    """Import model and data, load the weights, and count.

    What the user's code prints goes to stderr, as stdout is for the result.

    Args:
        model, data: MODULE:NAME.
        weights: file, or None.
        seed: of torch, before anything is made.
        max_batches: to take; None takes all.
        options: for `relume.census`.

    Returns:
        What `model` names, and the census.

    Raises:
        InputError: any of it can't be imported, built, loaded or run.
        RelumeError: as `relume.census` does.
    """
    with contextlib.redirect_stdout(sys.stderr):
        torch.manual_seed(seed)
        source = Target.find(model, "the model")
        module = load_model(source)
        if weights is not None:
            load_weights(module, weights)
        batches = load_batches(Target.find(data, "--data"), max_batches)
        with blamed(f"running {model} on {data}"):
            return source, census(module, batches, **options)


def axes(given: Iterable[str]) -> int | dict[str, int] | None:
    """The unit axis from `N`, or from any number of `PATTERN=N`.

    Raises:
        InputError: it is neither.
    """
    texts = tuple(given)
    try:
        if len(texts) == 1 and "=" not in texts[0]:
            return int(texts[0])
        pairs = [text.rpartition("=") for text in texts]
        if all(pattern for pattern, _, _ in pairs):
            return {pattern: int(axis) for pattern, _, axis in pairs} or None
    except ValueError:
        pass
    raise InputError(f"--axis takes a number, or PATTERN=NUMBER any number of times, not {', '.join(texts)}")


def write(path: Path, text: str, *, add: bool = False) -> None:
    """Write a file, or add to it; its folder is made.

    Raises:
        OSError: it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a" if add else "w", encoding="utf-8", newline="\n") as file:
        file.write(text if text.endswith("\n") else text + "\n")
        file.flush()
        os.fsync(file.fileno())
