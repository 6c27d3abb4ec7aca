"""`Tracker`: finds the sites of one model and names them, one forward pass at a time.

`ForwardPass` (next door) sees the calls; the tracker decides which site a call is, and hands the
pre-activation to a meter.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from relume.activations import Activation
from relume.activations.registry import registered_module
from relume.errors import RelumeError, RelumeWarning
from relume.sites import layout as lay
from relume.sites.expected import Expected
from relume.sites.flow import Flow, Node, tensors_in
from relume.sites.forward_pass import ForwardPass
from relume.sites.layout import INPUT, UNIT
from relume.sites.plan import Plan, plan_for
from relume.sites.recognise import Application
from relume.sites.site import Site, Zones
from relume.sites.structure import Structure

# Set by the tests: errors inside relume are raised instead of turned into a warning.
STRICT = False

Key = tuple[Any, ...]

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Tanhshrink,
    nn.LogSigmoid, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.GLU,
)  # fmt: skip


@dataclass
class Found:
    """A site as the tracker keeps it: the description shown to readers, and what metering needs.

    `number` is the site's own among those of its tracker.
    """

    key: Key
    number: int
    site: Site
    activation: Activation
    plan: Plan


# So many kinds of passes are known again; told apart by mode and by what the model is given.
_KINDS = 16

# Called before each application with the site and its pre-activation; what it returns is called with the output.
Meter = Callable[[Found, Tensor], "Callable[[Tensor], None] | None"]


class Tracker:
    """Finds the sites of one model.

    Args:
        model: the root; sites are named from it.
        meter: called before each application of an activation.
        include, exclude: shell patterns on site names; no include means all.
        axis: unit axis, for all sites or by shell pattern.
        input_axis: the axis of the model's first input that counts inputs. None: 0, unless the model hands that
            input to a recurrent or attention module with `batch_first=False`, then 1.
        keep_fast_path: leave torch's fused inference modules on their fast path and look at them in a pass aside,
            so that their results stay bitwise what they are without relume.
    """

    def __init__(
        self,
        model: nn.Module,
        meter: Meter,
        *,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        axis: int | Mapping[str, int] | None = None,
        input_axis: int | None = None,
        keep_fast_path: bool = True,
    ) -> None:
        self.model = model
        self.meter = meter
        self.include, self.exclude, self.axis = include, exclude, axis
        self.input_axis = input_axis
        self.keep_fast_path = keep_fast_path
        self.found: dict[Key, Found] = {}
        self.notes: dict[str, None] = {}
        self.restarted = False
        self.met_compiled_code = False  # in a pass, where it should not run under relume's eyes
        self.flow = Flow()
        self.structure = Structure(model)
        self._uses: dict[str, int] = {}
        self._pass: ForwardPass | None = None
        self._expected: dict[Any, Expected] = {}
        self._numbers = 0
        self._structure_checked = False

    @property
    def active(self) -> bool:
        return self._pass is not None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start seeing: call just before the model's forward, in the thread that runs it."""
        self.end()
        self.check_structure()
        self._structure_checked = False
        self.restarted = False
        self.flow.start(self.structure.parameters)
        inputs = self.flow.mark_inputs((args, kwargs), self.input_axis or 0)
        self._pass = ForwardPass(self, self._expected_of((self.model.training, torch.is_grad_enabled(), inputs)))
        self._pass.open(args, kwargs)

    def check_structure(self) -> None:
        """See whether the model is still built as it was; once for each pass."""
        if not self._structure_checked and not self.structure.holds():
            self.structure = Structure(self.model)
            self._expected.clear()
        self._structure_checked = True

    def _expected_of(self, kind: Any) -> Expected:
        expected = self._expected.get(kind)
        if expected is None:
            if len(self._expected) >= _KINDS:
                self._expected.clear()
            expected = self._expected[kind] = Expected()
        return expected

    def end(self, output: Any = None) -> None:
        """Stop seeing. Safe at any time, also after an exception or interrupt has left a pass half done."""
        if self._pass is None:
            return
        self._pass.close()
        self._pass = None
        for tensor in tensors_in(output):
            self.flow.consume(self.flow.node(tensor), "output")
        self.flow.clear()

    @property
    def thread(self) -> int | None:
        return self._pass.thread if self._pass is not None else None

    def here(self) -> bool:
        """Is a pass being seen, in this very thread?"""
        return self.thread == threading.get_ident()

    @property
    def news(self) -> tuple[int, ...]:
        """Changes with each new site, consumer and note."""
        return self._numbers, self.flow.linked, len(self.notes)

    def sites(self) -> list[Site]:
        """All sites found so far, in the order in which they were first seen."""
        for key, found in self.found.items():
            consumers = tuple(self.flow.consumers.get(key, ()))
            if consumers != found.site.consumers:
                found.site = found.site.with_consumers(consumers)
        return [found.site for found in self.found.values()]

    def forget(self) -> None:
        """Drop all sites, to find them anew."""
        self.found.clear()
        self._uses.clear()
        self.flow.consumers.clear()
        self.flow.memo.clear()
        self._expected.clear()

    def note(self, text: str, *, quiet: bool = False) -> None:
        """Something that can't be counted: kept for the report and, unless quiet, warned of once."""
        if text not in self.notes:
            self.notes[text] = None
            if not quiet:
                warnings.warn(text, RelumeWarning, stacklevel=2)

    def trouble(self, doing: str, error: Exception) -> None:
        """An error inside relume must not end a training run: it is said once, and training goes on.

        Errors that the user can mend (a wrong `axis=`) are raised.
        """
        if STRICT or isinstance(error, RelumeError):
            raise error
        self.note(f"relume failed while {doing} ({type(error).__name__}: {error}); this part is not counted")

    # Called by the forward pass

    def apply(
        self, app: Application, module: nn.Module | None, caller: Any, node: Node | None, label: str = ""
    ) -> tuple[Found, Callable[[Tensor], None] | None] | None:
        """One application of an activation: find or make its site and meter the pre-activation.

        Returns None when the call turns out to be arithmetic rather than an activation.
        """
        if not app.plain and not _is_neuronal(app, node):
            return None
        layout = node.layout if node is not None else lay.plain(app.x.shape)
        base, alias = self._place(app, module, label)
        plan = plan_for(layout, self.flow.inputs, self._axis_for(base))
        if not plan.n_samples or not plan.n_units:
            return None
        source = node.sources[0] if node is not None and len(node.sources) == 1 else "+"
        key: Key = (base, caller, source, plan.n_units, app.activation.name)
        assert self._pass is not None
        key = (*key, self._pass.occurrence(key))
        found = self.found.get(key)
        if found is None:
            self._numbers += 1
            found = self.found[key] = Found(
                key, self._numbers, self._new_site(app, base, alias, plan, node), app.activation, plan
            )
        else:
            found.plan, found.activation = plan, app.activation
        self.flow.consume(node, found.site.name)
        return found, (self.meter(found, app.x) if self.wanted(found.site.name) else None)

    def handed_to(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module with `batch_first=False` says that axis 0 of its input is not the batch: take it at its word."""
        if self.input_axis is not None or getattr(module, "batch_first", True) or not args:
            return
        x = args[0]
        node = self.flow.node(x)
        if not isinstance(x, Tensor) or x.dim() != 3 or node is None:
            return
        if not any(f.role == INPUT for f in node.layout[0]) or any(f.role == INPUT for f in node.layout[1]):
            return
        self.input_axis = 1
        self.flow.inputs = int(x.shape[1])
        positions, inputs = lay.axis_of(int(x.shape[0])), lay.axis_of(int(x.shape[1]), INPUT)
        self.flow.set(x, node.moved((positions, inputs, node.layout[2])))
        # What this pass counted before it came here was counted on the wrong axis.
        self.restarted = bool(self.found)

    # Names

    def _place(self, app: Application, module: nn.Module | None, label: str) -> tuple[str, str]:
        """Name and alias of a site, but for the number of its use."""
        where = self.flow.where
        if module is not None and (
            isinstance(module, _ACTIVATION_MODULES) or registered_module(type(module)) is not None
        ):
            return (where, where) if where else (f":{app.called}", f":{app.activation.name}")
        prefix = f"{where}.{label}" if label else where
        return f"{prefix}:{app.called}", f"{prefix}:{app.activation.name}"

    def _new_site(self, app: Application, base: str, alias: str, plan: Plan, node: Node | None) -> Site:
        def numbered(name: str, family: str) -> str:
            use = self._uses.get(family, 0)
            self._uses[family] = use + 1
            return f"{name}#{use}" if use else name

        return Site(
            name=numbered(base, base),
            alias=numbered(alias, f"alias of {alias}"),
            module=self.flow.where,
            activation=app.activation.name,
            formula=app.activation.formula,
            units=plan.n_units,
            axis=plan.axis,
            producers=node.sources if node is not None else (),
            between=node.between if node is not None else (),
            axis_known=plan.axis_known,
            inputs_known=plan.inputs_known,
            zones=Zones.of(app.activation),
        )

    def _axis_for(self, name: str) -> int | None:
        if self.axis is None or isinstance(self.axis, int):
            return self.axis
        return next((a for pattern, a in self.axis.items() if fnmatchcase(name, pattern)), None)

    def wanted(self, name: str) -> bool:
        """Is a site of this name to be counted?"""
        if self.include and not any(fnmatchcase(name, p) for p in self.include):
            return False
        return not any(fnmatchcase(name, p) for p in self.exclude)


def _is_neuronal(app: Application, node: Node | None) -> bool:
    """clamp, maximum, where and mul count as activations only on units that something learnt produces."""
    if node is None:
        return app.x.dim() >= 2
    return bool(node.sources) and not node.weight and lay.has(node.layout, UNIT)
