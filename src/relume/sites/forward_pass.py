"""`ForwardPass`: sees every torch call of one forward pass of a model, and which module makes it.

A torch function mode receives the calls; global module hooks, there only while the pass lasts, tell the modules.
No hook, attribute or mode stays behind, and no result is changed: what relume computes for itself runs apart.
"""

from __future__ import annotations

import sys
import threading
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from relume.activations.registry import registered_module
from relume.sites import layout as lay
from relume.sites import recurrent, transforms
from relume.sites.expected import Expected, KnownSite, Step, given
from relume.sites.flow import Node
from relume.sites.layout import UNIT
from relume.sites.mode import Mode
from relume.sites.recognise import Application, application, looks_at_values
from relume.sites.rules import by_shape, follow, through_module
from relume.sites.structure import FUSED_IN_EVAL, SEQUENCE_FIRST

if TYPE_CHECKING:
    from relume.sites.tracker import Found, Tracker


class ForwardPass:
    """One forward pass under a tracker's eyes, from `open` to `close`.

    Args:
        tracker: of the model.
        expected: what an earlier pass alike did, checked off in this one and put right where this one differs.
    """

    def __init__(self, tracker: Tracker, expected: Expected) -> None:
        self.tracker = tracker
        self.flow = tracker.flow
        self.thread = threading.get_ident()
        self._mode = Mode(self)
        self._handles: list[Any] = []
        self._modules: list[tuple[nn.Module, str]] = [(tracker.model, "")]
        self.flow.running = tracker.model
        # Registered activation modules now running: module, site and meter, the pre-activation's node.
        self.registered: list[tuple[nn.Module, tuple[Found, Any] | None, Node | None]] = []
        self._aside = 0  # how deep inside a fused inference module, which runs without the mode
        self._aside_nodes: dict[int, Node] = {}
        self._fused: dict[int, Any] = {}  # hooks on fused inference modules, by the module's id
        self._probing = False
        self._occurrences: dict[Any, int] = {}
        self.expected: Expected | None = expected if expected.holds else None
        self.at = 0  # calls seen
        self._names, self._ordinary = tracker.structure.modules, tracker.structure.ordinary
        self._beyond = _first_outside(sys._getframe(1))

    def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model = self.tracker.model
        self._handles = [
            nn_module.register_module_forward_pre_hook(self._enter_module),
            nn_module.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        if self.tracker.keep_fast_path:
            self._hook_fused(model)
        self._mode.__enter__()
        if self.tracker.keep_fast_path and isinstance(model, FUSED_IN_EVAL) and not model.training:
            self._look_aside(model, args, kwargs)

    def close(self) -> None:
        for handle in (*self._handles, *self._fused.values()):
            handle.remove()
        self._handles, self._fused = [], {}
        _leave(self._mode)
        self._modules = self._modules[:1]
        self._beyond = None

    # Calls

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], step: Step | None) -> Any:
        """One torch call that is not as expected: run it, and before and after it take note of what it does.

        Args:
            func, args, kwargs: the call.
            step: what was expected; None: nothing.
        """
        expected = self.expected
        if expected is None or (step is not None and not step.learns):
            return self._follow(func, args, kwargs, None)[0]
        at = self.at - 1
        was = None
        try:
            if not self.registered and not looks_at_values(func, args, kwargs):
                was = given(self.flow, args, kwargs)
        except Exception as error:
            self.tracker.trouble(f"looking at {getattr(func, '__name__', func)}", error)
        out, learnt = self._follow(func, args, kwargs, was)
        expected.put(at, learnt if learnt is not None else Step(func))
        return out

    def give(self, step: Step, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Give the outputs of a call that was as expected the nodes that they had before."""
        try:
            if not step.give(self.flow, out):
                follow(self.flow, func, args, kwargs, out)
        except Exception as error:
            self.tracker.trouble(f"following {getattr(func, '__name__', func)}", error)

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], was: tuple[Any, Any] | None
    ) -> tuple[Any, Step | None]:
        """Run a call and follow it; returns the step by which to know it again, if its arguments `was` are given."""
        flow, tracker = self.flow, self.tracker
        running = flow.running
        applied: tuple[Found, Any] | None = None
        learnt: Step | None = None
        node: Node | None = None
        try:
            app = None if self.registered else application(func, args, kwargs, flow)
            if app is not None:
                node = flow.node(app.x)
                if node is None and app.called == "glu":
                    whole = flow.node(args[0] if args else kwargs["input"])
                    node = by_shape([(args[0] if args else kwargs["input"], whole)], app.x) if whole else None
                if app.x.is_nested:
                    tracker.note(f"'{flow.where}' applies {app.called} to a nested tensor, which relume can't count")
                else:
                    with torch._C.DisableTorchFunction():  # another watch must not see what this one computes
                        applied = self._apply(app, node)
        except Exception as error:
            tracker.trouble(f"looking at {getattr(func, '__name__', func)}", error)
        out = func(*args, **kwargs)
        try:
            if applied is not None and app is not None:
                site = self._known_by(applied[0], app, args) if was is not None else None
                self._after(applied, app.x if out is None else out, node)  # x[x < 0] = 0 returns nothing
                if site is not None and isinstance(out, Tensor):
                    learnt = Step(func, running, was, ((out.shape, flow.node(out)),), True, site)
            elif func in recurrent.FUSED or func in recurrent.CELLS:
                self._recurrent(func, args, out)
            else:
                if func in recurrent.GATED:
                    tracker.note(
                        f"{recurrent.GATED[func]} '{flow.where}': its gates, in a fused kernel, are not sites",
                        quiet=True,
                    )
                nodes = follow(flow, func, args, kwargs, out)
                if was is not None and nodes is not None:
                    learnt = _step(func, running, was, out, nodes)
        except Exception as error:
            tracker.trouble(f"following {getattr(func, '__name__', func)}", error)
        return out, learnt

    # Sites known from an earlier pass

    def _known_by(self, found: Found, app: Application, args: tuple[Any, ...]) -> KnownSite | None:
        """What a site that has just been found is to be known by; None where it must be found each time."""
        if not args or app.x is not args[0] or transforms.transformed():
            return None
        *place, use = found.key
        return KnownSite(
            found=found,
            plan=found.plan,
            activation=app.activation,
            module=self._modules[-1][0],
            caller=place[1],
            place=tuple(place),
            use=use,
            inputs=self.flow.inputs,
            wanted=self.tracker.wanted(found.site.name),
        )

    def reached(self, site: KnownSite) -> bool:
        """Is it this site that the call now seen applies? Counts the use of its place if so."""
        used = self._occurrences.get(site.place, 0)
        if (
            used != site.use
            or self._modules[-1][0] is not site.module
            or self.flow.inputs != site.inputs
            or transforms.transformed()
            or self._caller() != site.caller
        ):
            return False
        self._occurrences[site.place] = used + 1
        return True

    def count(self, site: KnownSite, x: Tensor) -> Any:
        """Meter the pre-activation of a site reached as expected; returns what to call with the output, if anything."""
        found = site.found
        found.plan, found.activation = site.plan, site.activation
        if not site.wanted:
            return None
        try:
            with torch._C.DisableTorchFunction():
                return self.tracker.meter(found, x)
        except Exception as error:
            self.tracker.trouble(f"looking at '{found.site.name}'", error)
            return None

    def counted(self, finish: Any, out: Any) -> None:
        """Meter the output of such a site."""
        try:
            with torch._C.DisableTorchFunction():
                finish(out)
        except Exception as error:
            self.tracker.trouble("looking at an output", error)

    def _apply(self, app: Application, node: Node | None) -> tuple[Found, Any] | None:
        if not transforms.transformed():
            return self.tracker.apply(app, self._modules[-1][0], self._caller(), node)
        with transforms.outside():
            x, layout = transforms.unwrapped(app.x, node.layout if node is not None else None, self.flow.inputs)
            node = node.moved(layout) if node is not None else Node(layout)
            return self.tracker.apply(app._replace(x=x), self._modules[-1][0], self._caller(), node)

    def _after(self, applied: tuple[Found, Any], out: Any, node: Node | None) -> None:
        """The output of a site: metered, and the start of the way to its consumers."""
        found, finish = applied
        if not isinstance(out, Tensor):
            return
        if finish is not None:
            with torch._C.DisableTorchFunction():
                if transforms.transformed():
                    with transforms.outside():
                        finish(transforms.unwrapped(out, None, None)[0])
                else:
                    finish(out)
        layout = node.layout if node is not None and len(node.layout) == out.dim() else lay.plain(out.shape)
        key = ("output", found.key, found.site.name, layout)
        self.flow.set(out, self.flow.same(key, lambda: Node(layout, (found.site.name,), (), (found.key,))))

    def _recurrent(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        flow = self.flow
        x_node = flow.node(args[0])
        follow(flow, func, args, {}, out)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            inners = [recurrent.cell(func, args, out)] if func in recurrent.CELLS else recurrent.layers(func, args, out)
            if inners is None:
                self.tracker.note(
                    f"RNN '{flow.where}': its activations are not counted: they run in a fused kernel with packed "
                    "sequences, or with dropout between layers in training, and can't be recomputed from outside"
                )
                return
            for inner in inners:
                head = x_node.layout[:-1] if x_node is not None else lay.plain(inner.x.shape[:-1])
                layout = (*(lay.without_units(a) for a in head), lay.axis_of(inner.x.shape[-1], UNIT))
                name = f"{flow.where}.{inner.label}".rstrip(".") or "rnn"
                node = Node(layout, (name,))
                app = Application(inner.activation, inner.x, inner.activation.name)
                applied = self.tracker.apply(app, None, self._caller(), node, inner.label)
                if applied is not None and applied[1] is not None:
                    applied[1](inner.y)

    def occurrence(self, key: Any) -> int:
        """How often this place has applied an activation in this pass before."""
        n = self._occurrences.get(key, 0)
        self._occurrences[key] = n + 1
        return n

    def _caller(self) -> tuple[int, int] | None:
        """The place in the user's code that makes the call, within the model; None when all of the way is torch's."""
        frame = _first_outside(sys._getframe(1))
        if frame is None or frame is self._beyond:
            return None
        code, at = frame.f_code, frame.f_lasti
        place = _PLACES.get((id(code), at))
        if place is None:
            instructions, start = code.co_code, at
            while at > 0 and instructions[at] == 0:  # past an inline cache, where Python may or may not point in a call
                at -= 2
            place = _PLACES[id(code), start] = (code, (id(code), at))
        return place[1]

    # Modules

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        if not self._aside and id(module) in self._ordinary:
            flow = self.flow
            here = (module, self._names[id(module)])
            self._modules.append(here)
            flow.running, flow.where = here
        elif module is not self.tracker.model:
            self._enter_special(module, args)

    def _enter_special(self, module: nn.Module, args: Any) -> None:
        """One that may be a site itself, or says more than where it is."""
        if self._aside:
            self._aside += 1
            return
        tracker = self.tracker
        # A module that is not part of the model belongs to whoever calls it.
        name = tracker.structure.modules.get(id(module), self._modules[-1][1])
        self._modules.append((module, name))
        self.flow.where, self.flow.running = name, module
        if isinstance(module, torch.jit.ScriptModule):
            tracker.note(
                f"'{name}' is a torch.jit.ScriptModule: relume can't see inside it, so its activations are not "
                "counted. Watch the model before scripting it"
            )
        if isinstance(module, SEQUENCE_FIRST):
            tracker.handed_to(module, args)
        activation = registered_module(type(module))
        if activation is not None and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            node = self.flow.node(args[0])
            try:
                app = Application(activation, args[0], activation.name)
                with torch._C.DisableTorchFunction():  # here, in a hook, the mode would see relume's own calls
                    applied = None if self.registered else tracker.apply(app, module, self._caller(), node)
                self.registered.append((module, applied, node))
            except Exception as error:
                tracker.trouble(f"looking at '{name}'", error)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        modules, flow = self._modules, self.flow
        if modules[-1][0] is module and not self._aside and id(module) in self._ordinary and flow.knows(output):
            modules.pop()
            flow.running, flow.where = modules[-1]
        elif module is not self.tracker.model:
            self._leave_special(module, args, output)

    def _leave_special(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._aside:
            self._aside -= 1
            if self._aside:
                return
            self._mode.__enter__()
            self._hook_fused(module)
            if isinstance(output, Tensor) and id(module) in self._aside_nodes:
                self.flow.set(output, self._aside_nodes[id(module)])
        if len(self._modules) > 1 and self._modules[-1][0] is module:
            self._modules.pop()
        try:
            if self.registered and self.registered[-1][0] is module:
                _, applied, node = self.registered.pop()
                if applied is not None:
                    self._after(applied, output, node)
            elif output is not None and self.flow.node(output) is None:
                with torch._C.DisableTorchFunction():
                    through_module(self.flow, args, output)
        except Exception as error:
            self.tracker.trouble(f"following the output of '{self.flow.where}'", error)
        self.flow.running, self.flow.where = self._modules[-1]

    def _hook_fused(self, root: nn.Module) -> None:
        for module in self.tracker.structure.fused if root is self.tracker.model else root.modules():
            fused = isinstance(module, FUSED_IN_EVAL) and not module.training
            if fused and module is not self.tracker.model and id(module) not in self._fused:
                hook = module.register_forward_pre_hook(self._look_aside, with_kwargs=True)
                self._fused[id(module)] = hook

    def _look_aside(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Count a fused inference module in a run of its own, then take the mode off for the real one."""
        if threading.get_ident() != self.thread or self._aside or self._probing:
            return
        if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            return  # torch takes the ordinary path as well
        if not isinstance(module, nn.MultiheadAttention):  # attention itself applies no activation
            self._probing = True
            try:
                with torch.no_grad(), torch.random.fork_rng():
                    probed = module.forward(*args, **kwargs)
                node = self.flow.node(probed)
                if node is not None:
                    self._aside_nodes[id(module)] = node
            except Exception as error:
                self.tracker.trouble(f"looking into '{self.flow.where}'", error)
            finally:
                self._probing = False
        for inner in module.modules():  # torch takes the fused path only where no hook hangs
            hook = self._fused.pop(id(inner), None)
            if hook is not None:
                hook.remove()
        _leave(self._mode)
        self._aside = 1


def seen_here() -> bool:
    """Is any pass being seen in this thread?"""
    return any(isinstance(mode, Mode) for mode in _get_current_function_mode_stack())


def _leave(mode: TorchFunctionMode) -> None:
    """Take one mode off torch's stack, wherever it is: others may have been entered since."""
    if mode not in _get_current_function_mode_stack():
        return
    above = []
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)


def _step(func: Any, running: nn.Module | None, was: tuple[Any, Any], out: Any, nodes: tuple[Any, ...]) -> Step:
    """The step of a call that is no site: all alike give their outputs these nodes."""
    if not nodes:
        return Step(func, outs=())
    outputs = (out,) if isinstance(out, Tensor) else out
    outs = tuple((t.shape, node) for t, node in zip(outputs, nodes, strict=True))
    return Step(func, running, was, outs, isinstance(out, Tensor))


# Places in code by where Python points during a call; the code is held, so that no other can have its id.
_PLACES: dict[tuple[int, int], tuple[CodeType, tuple[int, int]]] = {}
# Globals of torch's and relume's own modules, by id; held, so that no other object can have it.
_OURS: dict[int, Any] = {}


def _first_outside(frame: FrameType | None) -> FrameType | None:
    """The first frame, going outwards, that runs neither torch's nor relume's code."""
    while frame is not None:
        names = frame.f_globals
        if id(names) not in _OURS:
            if not names.get("__name__", "").startswith(("torch.", "relume.")):
                return frame
            _OURS[id(names)] = names
        frame = frame.f_back
    return None
