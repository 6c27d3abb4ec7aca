"""What is said when DReLU is given something that it can't take."""

from __future__ import annotations

from torch import Tensor

from relume.activations.drelu.formula import FORMS


def check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, not {form!r}")


def check_tau(tau: float) -> None:
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be a finite number above 0, in the units of the pre-activation, not {tau}")


def check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(
            f"alpha must lie strictly between 0 and 1, not {alpha}: at 0 the gradient would vanish far below zero, "
            "at 1 the function would be the identity"
        )


def check_channels(x: Tensor, channels: int, axis: int, name: str) -> None:
    """Has x `channels` entries on `axis`?"""
    dims = x.dim()
    if not -dims <= axis < dims:
        raise ValueError(f"{name} has its channels on axis {axis}, but the input has {dims} axes: {tuple(x.shape)}")
    if x.shape[axis] != channels:
        raise ValueError(
            f"{name} expects {channels} channels on axis {axis}, but the input {tuple(x.shape)} has {x.shape[axis]}; "
            "give axis= of the channels, or channels=1 for one τ and α for all"
        )
