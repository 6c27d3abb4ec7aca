"""Which trainings the claims are judged by: their settings in one place, so that like is compared with like."""

from __future__ import annotations

from typing import Any

from relume.lab.member import Member

SEEDS = range(24)
# One task each of images, text and speech.
TASKS = ("digits", "complaints", "spoken-digits")
SHOWN = {"digits": "images", "complaints": "text", "spoken-digits": "speech"}

_PLAIN: dict[str, Any] = {"optimizer": "adam", "lr": 0.003, "depth": 4, "steps": 300, "every": 5, "window": 50}
# Embeddings and convolutions cost the most: they are smaller.
_SMALL = {"width": 16, "batch": 32}
_OWN: dict[str, dict[str, Any]] = {
    "complaints": _SMALL,
    "docstrings": {**_SMALL, "steps": 200},
    "digits-cnn": {"width": 6, "batch": 32, "steps": 200},
    "permuted-digits": {"steps": 400},
}

# Learning rates of Adam at which, in a trial with other seeds, a quarter to a third and more than half of the units of
# four ReLU layers died. Chosen by the dead, not by scores.
DOOMED, WORSE = 0.03, 0.1
CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (("lr 0.03", {"lr": DOOMED}), ("lr 0.1", {"lr": WORSE}))


def seeded(task: str, **changes: Any) -> tuple[Member, ...]:
    """A task's members with these settings, one for each seed; one split of the data."""
    settings = {**_PLAIN, **_OWN.get(task, {}), **changes}
    return tuple(Member(task, **settings, seed=seed) for seed in SEEDS)


# What DReLU is compared on, and with.
CONTEST_TASKS = (
    "digits", "digits-cnn", "permuted-digits", "spirals", "sine", "docstrings", "complaints", "spoken-digits",
)  # fmt: skip
RIVALS = (
    "relu", "leaky_relu", "prelu", "rrelu", "elu", "selu", "gelu", "silu", "softplus", "mish", "tanh", "sigmoid",
    "displaced_relu",
)  # fmt: skip
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
TUNING_SEEDS, FRESH_SEEDS = range(3), range(100, 120)
_CONTEST = {**_PLAIN, "depth": 3, "every": 25, "window": 25}


def contest(task: str, activation: str, lr: float, seed: int) -> Member:
    """A training of the contest: each seed has its own split of the data, weights and order of batches."""
    settings = {**_CONTEST, **_OWN.get(task, {}), "activation": activation, "lr": lr}
    return Member(task, **settings, seed=seed, split=seed)
