"""Small studies that take a second, of a task that needs nothing but torch."""

import math

import pytest


@pytest.fixture
def small():
    """A function that makes a config: 2 activations × 2 learning rates × 3 seeds of a few steps."""

    def make(**changed):
        settings = {
            "task": "spirals", "steps": 12, "window": 6, "every": 2, "width": 8,
            "activation": ["relu", "elu"], "lr": [0.05, 0.5], "seed": [0, 1, 2],
        }  # fmt: skip
        settings.update(changed.pop("settings", {}))
        return {"name": "small", "together": 4, **changed, "settings": settings}

    return make


@pytest.fixture
def without_seconds():
    """A function: a table's rows without what is never twice the same, and NaN as text, which equals itself."""

    def make(table):
        def plain(value):
            return "NaN" if isinstance(value, float) and math.isnan(value) else value

        return [{name: plain(value) for name, value in row.items() if name != "seconds"} for row in table]

    return make
