"""Which changes are tried for which cause, best first: what each cause says would have saved the units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relume import init
from relume.diagnose.finding import Finding
from relume.diagnose.normalization import NORMS
from relume.diagnose.replay.change import (
    Centred,
    Change,
    Clipping,
    Drawn,
    Earlier,
    FrozenBelow,
    Held,
    LearningRate,
    NoDecay,
    Standardized,
    Unit,
)
from relume.diagnose.replay.events import Step
from relume.diagnose.replay.reel import Segment
from relume.treat.convert import convert

if TYPE_CHECKING:
    from relume.watch import Watch

#: Keys of the changes that belong to a cause: it is confirmed where the first of them that can be tried, or another,
#: saves most of the units.
OF_CAUSE: dict[str, tuple[str, ...]] = {
    "killed-by-step": ("lr", "clip", "lr_100"),
    "bias-drift": ("bias",),
    "weight-drift": ("centre", "weights"),
    "weight-decay": ("decay",),
    "norm-collapse": ("norm",),
    "upstream-cascade": ("below",),
    "input-shift": ("standardize", "earlier"),
    "born-dead": ("lsuv", "he"),
    "deep-narrow": ("rai", "identity"),
    "saturation": ("lsuv", "he", "unit", "lr", "lr_100"),
    "vanishing-gradient": ("lsuv", "relu", "lr"),
    "exploding-gradient": ("lr", "clip", "lsuv"),
}
#: The cause that a change speaks for.
CAUSE_OF = {
    "lr": "killed-by-step", "clip": "killed-by-step", "lr_100": "killed-by-step", "bias": "bias-drift",
    "weights": "weight-drift", "centre": "weight-drift", "decay": "weight-decay", "norm": "norm-collapse",
    "below": "upstream-cascade", "standardize": "input-shift", "earlier": "input-shift",
}  # fmt: skip
#: What is tried where the cause is not known, or its own changes saved nobody.
FOR_DEATHS = ("standardize", "decay", "below", "norm", "bias", "weights", "clip", "lr")


def own_changes(finding: Finding) -> tuple[str, ...]:
    """Keys of the changes that belong to a finding's cause; to that of its root, where it only says what follows."""
    code = finding.root[0] if finding.code == "silent-site" and finding.root else finding.code
    if code == "silent-site" and not any(step > 0 for step in finding.steps):
        code = "born-dead"
    return OF_CAUSE.get(code, ())


class Plan:
    """The changes that can be tried on a finding.

    Args:
        watch: of the training.
        finding: whose units are to be saved.
        segments: that are run again.
    """

    def __init__(self, watch: Watch, finding: Finding, segments: Sequence[Segment]) -> None:
        self.watch, self.finding = watch, finding
        steps = [event for s in segments for event in s.events if isinstance(event, Step)]
        groups = [group for step in steps for group in step.settings]
        self.lr = max((_number(g.get("lr")) for g in groups), default=0.0)
        self.weight_decay = max((_number(g.get("weight_decay", 0.0)) for g in groups), default=0.0)
        self.first = segments[0].first
        self.modules = dict(watch.model.named_modules())
        self.producers = self._found_producers()

    def change(self, key: str) -> Change | None:
        """The change of that name; None where there is nothing that it could change."""
        make = getattr(self, f"_{key}")
        change: Change | None = make()
        return change

    def _lr(self) -> Change | None:
        return LearningRate(self.lr) if self.lr > 0 else None

    def _lr_100(self) -> Change | None:
        return LearningRate(self.lr, 100.0, "lr_100") if self.lr > 0 else None

    def _unit(self) -> Change | None:
        return Unit()

    def _earlier(self) -> Change | None:
        return Earlier(self.finding.steps[0]) if self.finding.steps[0] > self.first else None

    def _clip(self) -> Change | None:
        return Clipping() if self.lr > 0 else None

    def _decay(self) -> Change | None:
        return NoDecay(self.weight_decay) if self.weight_decay > 0 else None

    def _bias(self) -> Change | None:
        return self._held("bias", "the bias", self.producers, ("bias",))

    def _weights(self) -> Change | None:
        return self._held("weights", "the weights", self.producers, ("weight",))

    def _norm(self) -> Change | None:
        return self._held("norm", "γ and β", self._norms(), ("weight", "bias"))

    def _held(self, key: str, what: str, modules: Sequence[str], own: Sequence[str]) -> Change | None:
        there = {id(p): name for name, p in self.watch.model.named_parameters()}
        found = [getattr(self.modules[m], name, None) for m in modules for name in own]
        names = [there[id(p)] for p in found if id(p) in there]
        return Held(key, f"{what} of {_listed(modules)} held still", names) if names else None

    def _below(self) -> Change | None:
        fed = any(set(self.producers) & set(s.consumers) for s in self.watch.sites if s.name != self.finding.site)
        return FrozenBelow(self.producers) if self.producers and fed else None

    def _centre(self) -> Change | None:
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        fit = self.producers and all(isinstance(self.modules[p], kinds) for p in self.producers)
        return Centred(self.producers) if fit else None

    def _standardize(self) -> Change | None:
        return Standardized(self.finding.steps[0]) if self.finding.steps[0] > self.first else None

    def _lsuv(self) -> Change | None:
        return self._drawn("lsuv", lambda model, batches: init.lsuv_(model, batches))

    def _he(self) -> Change | None:
        return self._drawn("he", lambda model, batches: init.he_(model, batches[0]))

    def _rai(self) -> Change | None:
        return self._drawn("rai", lambda model, batches: init.rai_(model, batches[0]))

    def _relu(self) -> Change | None:
        def rectified(model: nn.Module, batches: Any) -> None:
            convert(model, to="relu", where="*", batches=batches)
            init.he_(model, batches[0])

        words = "relume.convert to ReLU and relume.init.he_ before the first step"
        return Drawn("relu", words, rectified) if self.first == 0 else None

    def _identity(self) -> Change | None:
        return self._drawn("identity", lambda model, batches: init.identity_(model))

    def _drawn(self, key: str, draw: Callable[[nn.Module, Any], Any]) -> Change | None:
        def afresh(model: nn.Module, batches: Any) -> None:
            for module in model.modules():
                weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
                if isinstance(module, NORMS) and isinstance(weight, Tensor):
                    nn.init.ones_(weight)
                    if isinstance(bias, Tensor):
                        nn.init.zeros_(bias)
            draw(model, batches)

        return Drawn(key, f"relume.init.{key}_ before the first step", afresh) if self.first == 0 else None

    def _found_producers(self) -> tuple[str, ...]:
        site = next((s for s in self.watch.sites if s.name == self.finding.site), None)
        trace = None if self.watch.record is None else self.watch.record.traces.get(self.finding.site)
        named = (trace.producers if trace is not None else ()) or (site.producers if site is not None else ())
        return tuple(name for name in named if name in self.modules)

    def _norms(self) -> tuple[str, ...]:
        """Normalizations between the producers and the site: of those of that name, the ones nearest by."""
        site = next((s for s in self.watch.sites if s.name == self.finding.site), None)
        labels = site.between if site is not None else ()
        named = [n for n, m in self.modules.items() if isinstance(m, NORMS) and n.rpartition(".")[2] in labels]
        parents = {p.rpartition(".")[0] for p in self.producers}
        return tuple(n for n in named if n.rpartition(".")[0] in parents) or tuple(named)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
