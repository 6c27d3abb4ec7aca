"""Trainings with planted causes by a second outsider: each has a control, the same seed with the plant taken back.

`CASES`, on tables, were used while rules were mended; `HELD_BACK`, of other architectures, for a figure at the end.
"""

from .layers import CASES as HELD_BACK
from .tables import CASES
from .tools import Case

__all__ = ["CASES", "HELD_BACK", "Case"]
