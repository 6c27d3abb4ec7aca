"""`ForwardPass`: sees every torch call of one forward pass of a model, and which module makes it.

A torch function mode receives the calls; global module hooks, there only while the pass lasts, tell the modules.
No hook, attribute or mode stays behind, and no result is changed: what relume computes for itself runs apart.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode

from relume.activations.registry import registered_module
from relume.sites import layout as lay
from relume.sites import recurrent, transforms
from relume.sites.flow import Node
from relume.sites.layout import UNIT
from relume.sites.recognise import Application, application
from relume.sites.rules import by_shape, follow, through_module

if TYPE_CHECKING:
    from relume.sites.tracker import Found, Tracker

# These leave a fused inference path, with other rounding, as soon as any torch function mode is active.
_FUSED_IN_EVAL = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_SEQUENCE_FIRST = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


class _Mode(TorchFunctionMode):
    def __init__(self, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.forward_pass = forward_pass

        def traced() -> None:
            forward_pass.tracker.met_compiled_code = True

        # As torch.compiler.assume_constant_result does, which would import the compiler.
        traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
        self.traced = traced

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # something compiled runs inside the pass
            self.traced()
            return func(*args, **(kwargs or {}))
        return self.forward_pass.call(func, args, kwargs or {})


class ForwardPass:
    """One forward pass under a tracker's eyes, from `open` to `close`."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.flow = tracker.flow
        self.thread = threading.get_ident()
        self._mode = _Mode(self)
        self._handles: list[Any] = []
        self._modules: list[tuple[nn.Module, str]] = [(tracker.model, "")]
        self.flow.running = tracker.model
        # Registered activation modules now running: module, site and meter, the pre-activation's node.
        self._registered: list[tuple[nn.Module, tuple[Found, Any] | None, Node | None]] = []
        self._aside = 0  # how deep inside a fused inference module, which runs without the mode
        self._aside_nodes: dict[int, Node] = {}
        self._fused: dict[int, Any] = {}  # hooks on fused inference modules, by the module's id
        self._probing = False
        self._occurrences: dict[Any, int] = {}
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
        if self.tracker.keep_fast_path and isinstance(model, _FUSED_IN_EVAL) and not model.training:
            self._look_aside(model, args, kwargs)

    def close(self) -> None:
        for handle in (*self._handles, *self._fused.values()):
            handle.remove()
        self._handles, self._fused = [], {}
        _leave(self._mode)
        self._modules = self._modules[:1]
        self._beyond = None

    # Calls

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One torch call: run it, and before and after it take note of what it does."""
        flow, tracker = self.flow, self.tracker
        applied: tuple[Found, Any] | None = None
        node: Node | None = None
        try:
            app = None if self._registered else application(func, args, kwargs, flow)
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
                self._after(applied, app.x if out is None else out, node)  # x[x < 0] = 0 returns nothing
            elif func in recurrent.FUSED or func in recurrent.CELLS:
                self._recurrent(func, args, out)
            else:
                if func in recurrent.GATED:
                    tracker.note(
                        f"{recurrent.GATED[func]} '{flow.where}': its gates, in a fused kernel, are not sites",
                        quiet=True,
                    )
                follow(flow, func, args, kwargs, out)
        except Exception as error:
            tracker.trouble(f"following {getattr(func, '__name__', func)}", error)
        return out

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
        at, code = frame.f_lasti, frame.f_code.co_code
        while at > 0 and code[at] == 0:  # past an inline cache, where Python may or may not point during a call
            at -= 2
        return id(frame.f_code), at

    # Modules

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self.thread or module is self.tracker.model:
            return
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
        if isinstance(module, _SEQUENCE_FIRST):
            tracker.handed_to(module, args)
        activation = registered_module(type(module))
        if activation is not None and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            node = self.flow.node(args[0])
            try:
                app = Application(activation, args[0], activation.name)
                with torch._C.DisableTorchFunction():  # here, in a hook, the mode would see relume's own calls
                    applied = None if self._registered else tracker.apply(app, module, self._caller(), node)
                self._registered.append((module, applied, node))
            except Exception as error:
                tracker.trouble(f"looking at '{name}'", error)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() != self.thread or module is self.tracker.model:
            return
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
            if self._registered and self._registered[-1][0] is module:
                _, applied, node = self._registered.pop()
                if applied is not None:
                    self._after(applied, output, node)
            elif output is not None and self.flow.node(output) is None:
                with torch._C.DisableTorchFunction():
                    through_module(self.flow, args, output)
        except Exception as error:
            self.tracker.trouble(f"following the output of '{self.flow.where}'", error)
        self.flow.running, self.flow.where = self._modules[-1]

    def _hook_fused(self, root: nn.Module) -> None:
        for module in self.tracker.structure.flat if root is self.tracker.model else root.modules():
            fused = isinstance(module, _FUSED_IN_EVAL) and not module.training
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
    return any(isinstance(mode, _Mode) for mode in _get_current_function_mode_stack())


def _leave(mode: TorchFunctionMode) -> None:
    """Take one mode off torch's stack, wherever it is: others may have been entered since."""
    if mode not in _get_current_function_mode_stack():
        return
    above = []
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)


def _first_outside(frame: FrameType | None) -> FrameType | None:
    """The first frame, going outwards, that runs neither torch's nor relume's code."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("torch.", "relume.")):
            return frame
        frame = frame.f_back
    return None
