"""`Policy`: what a guard may do, how often, and what counts as harm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from relume.watch import arguments

Kind = Literal["revive", "lr", "clip", "decay", "convert"]
KINDS: tuple[Kind, ...] = ("revive", "lr", "clip", "decay", "convert")


@dataclass(frozen=True)
class Policy:
    """What a guard may do. Times are in windows of the watch.

    Attributes:
        name: of the policy.
        may: the kinds of act it may take: "revive" dead units; cut the learning rate ("lr"), clip the gradient
            ("clip") or lower weight decay ("decay") where these killed them; "convert" a site whose units die again
            and again to another activation.
        dry: say what would be done, and do nothing.
        method: of `relume.revive`.
        least: share of a site's units, dead by one cause, from which on it acts; one unit at least.
        cooldown: windows after an act in which its site, or its setting, is left alone.
        patience: windows after which an act is judged by the training loss.
        tolerance: how much higher the loss may then be, as a share of what it was before; beyond, the act is undone.
        budget: acts in all.
        tries: revivals of a site after which it is left alone (or converted) where fewer than half of the units
            treated are alive; the same number of times a setting is lowered at most.
        lr_factor: what a cut multiplies the learning rate with.
        clip_factor: how many times the usual gradient norm the gradient may have once it is clipped.
        to: the activation that a site is converted to.
    """

    name: str = "gentle"
    may: tuple[Kind, ...] = ("revive",)
    dry: bool = False
    method: str = "redo"
    least: float = 0.05
    cooldown: int = 2
    patience: int = 2
    tolerance: float = 0.25
    budget: int = 50
    tries: int = 3
    lr_factor: float = 0.3
    clip_factor: float = 3.0
    to: str = "drelu"

    def __post_init__(self) -> None:
        for name in ("cooldown", "patience", "budget", "tries"):
            arguments.positive(name, getattr(self, name))
        for name in ("least", "lr_factor"):
            arguments.share(name, getattr(self, name))
        for name in ("tolerance", "clip_factor"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ValueError(f"{name} is a number above 0, not {value!r}")
        if self.cooldown < self.patience:
            raise ValueError(
                f"cooldown ({self.cooldown}) is at least patience ({self.patience}): acts are judged first"
            )
        unknown = [kind for kind in self.may if kind not in KINDS]
        if unknown or not self.may:
            raise ValueError(
                f"a policy may do some of {', '.join(KINDS)}, not {', '.join(map(str, unknown)) or 'none'}"
            )


POLICIES = {
    "gentle": Policy(),
    "full": Policy("full", KINDS),
    "log": Policy("log", KINDS, dry=True),
}


def policy_of(policy: str | Policy, **changes: Any) -> Policy:
    """A policy by name, or as it is, with some of it changed.

    Raises:
        ValueError: no policy has that name, or a value is out of range.
        TypeError: it is neither name nor Policy, or a policy has no such setting.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy is one of {', '.join(map(repr, POLICIES))}, or a relume.Policy, not {policy!r}")
        policy = POLICIES[policy]
    if not isinstance(policy, Policy):
        raise TypeError(f"policy is a name or a relume.Policy, not {type(policy).__name__}")
    return replace(policy, **changes)
