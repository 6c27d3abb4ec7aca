"""`Member`: the settings of one training in a study, and the key by which it is never run twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relume.activations import activation
from relume.lab import tasks

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
TREATMENTS = ("none", "guard", "guard-full", "penalty")
# Inputs that a window must have seen before its silent units are called dead.
MIN_INPUTS = 256


@dataclass(frozen=True)
class Member:
    """The settings of one training. All that its result depends on, but for versions and rounding.

    Attributes:
        task: name, of `tasks.names()`.
        activation: as `relume.convert` takes it: "relu", "leaky_relu(0.2)".
        init: name, of `tasks.INITS`.
        norm: "none", "batch" or "layer".
        lr: learning rate.
        optimizer: "sgd", "momentum" (SGD with momentum 0.9), "adam" or "adamw", with torch's defaults otherwise.
        weight_decay: of the optimizer.
        depth: hidden layers.
        width: units of each.
        treatment: "none"; "guard" or "guard-full" (`relume.guard` with policy gentle or full); "penalty" (0.1 times
            `relume.nn.LivenessPenalty` is added to the loss).
        seed: of initial weights and of the order of batches.
        split: seed of the data, the same for all seeds that are to be compared.
        steps: optimizer steps.
        batch: inputs in each.
        every: each so many steps the census looks at one.
        window: steps of a window of the census, and between looks at the validation part. With batch · window / every
            below 256 a window is too short to call a unit dead.

    Raises:
        ValueError: a setting is not among the accepted values.
        UnknownActivationError: there is no such activation.
    """

    task: str
    activation: str = "relu"
    init: str = "he"
    norm: str = "none"
    lr: float = 0.1
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    depth: int = 2
    width: int = 32
    treatment: str = "none"
    seed: int = 0
    split: int = 0
    steps: int = 500
    batch: int = 64
    every: int = 10
    window: int = 100

    def __post_init__(self) -> None:
        tasks.get(self.task)
        activation(self.activation)
        for name, accepted in _ACCEPTED.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} is one of {', '.join(accepted)}, not {getattr(self, name)!r}")
        for name in ("lr", "weight_decay"):
            object.__setattr__(self, name, float(getattr(self, name)))
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is a number not below 0, not {getattr(self, name)}")
        for name in ("depth", "width", "steps", "batch", "every", "window", "seed", "split"):
            value, least = getattr(self, name), 0 if name in ("seed", "split") else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is a whole number not below {least}, not {value!r}")
        if self.every > self.window:
            raise ValueError(f"a window of {self.window} steps has none to look at, with every={self.every}")

    @property
    def key(self) -> str:
        """Hexadecimal digits that stand for these settings: the same in every process, on every machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What members must have in common to be trained as one: all settings but those that may differ."""
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in MAY_DIFFER)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Member:
        """Inverse of `to_dict`; settings left out have their defaults.

        Raises:
            ValueError: a setting has a name or a value that is not accepted.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise ValueError(f"a member has no setting {name!r}; it has: {', '.join(known)}")
        return cls(**data)


_ACCEPTED = {"init": tasks.INITS, "norm": tasks.NORMS, "optimizer": OPTIMIZERS, "treatment": TREATMENTS}
MAY_DIFFER = frozenset({"activation", "init", "lr", "weight_decay", "seed"})
