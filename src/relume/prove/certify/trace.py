"""`Trace`: writes down what one forward pass does with the model's input, as a list of torch's core operations.

The model runs as it is, in Python, on an example; a dispatch mode sees every operation below modules, functions and
methods, and a `Tracker` says which of them are sites, so that names are those of a census. Writes in place are turned
into new values, for all views of what was written to. What does not depend on the input is a constant.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from relume.errors import UnsupportedOperationError
from relume.prove.certify.curves import Curve
from relume.sites import Found

_READS_VALUES = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique2", "_unique2"}
_FACTORIES = {
    "empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_ones", "new_full",
    "empty_strided", "new_empty_strided", "size", "sym_size", "stride", "sym_stride", "numel",
}  # fmt: skip
_RESHAPES_ITSELF = {"squeeze_", "unsqueeze_", "t_", "transpose_", "detach_", "swapaxes_", "swapdims_"}


@dataclass(frozen=True)
class Ref:
    """In the arguments of a step: a tensor that depends on the model's input."""

    index: int


@dataclass
class Step:
    """One operation on values that depend on the input.

    Attributes:
        name: of the operation without a trailing underscore, "addmm", or one of relume's own, "merge", "site".
        function: that computes it and writes nothing; None for relume's own.
        args, kwargs: constants, and `Ref`s.
        outputs: value of each output; None for one that is no tensor.
        where: the module in which it happens.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[int | None]
    where: str

    @property
    def reads(self) -> list[int]:
        return [v.index for v in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(v, Ref)]


@dataclass
class Use:
    """A site reached in the pass: its pre-activation as a value of the graph, or as a constant."""

    found: Found
    value: int | None
    constant: Tensor | None


class Graph:
    """What a forward pass did; `examples[i]` is what value i was in it. Value 0 is the input."""

    def __init__(self) -> None:
        self.examples: list[Tensor] = []
        self.steps: list[Step] = []
        self.uses: list[Use] = []

    def value(self, example: Tensor) -> int:
        self.examples.append(example.detach().clone())
        return len(self.examples) - 1


class Trace(TorchDispatchMode):
    """A dispatch mode that fills a `Graph`.

    Args:
        x: the model's input.
        state: tensors of the model, which are constants and may not be written to.
        where: tells the module that now runs.
    """

    def __init__(self, x: Tensor, state: list[Tensor], where: Callable[[], str]) -> None:
        super().__init__()
        self.graph = Graph()
        self.where = where
        self._known: dict[int, tuple[weakref.ref[Tensor], int | None]] = {}
        self._views: dict[int, list[weakref.ref[Tensor]]] = {}
        self._state = {_storage(t) for t in state}
        self._random: dict[int, weakref.ref[Tensor]] = {}
        self._bind(x, self.graph.value(x))

    # What is known of tensors

    def value_of(self, tensor: Tensor) -> int | None:
        """The value that a tensor now has, None for a constant."""
        held = self._known.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else None

    def _bind(self, tensor: Tensor, value: int | None) -> None:
        held = self._known.get(id(tensor))
        if held is None or held[0]() is not tensor:
            self._views.setdefault(_storage(tensor), []).append(weakref.ref(tensor))
        self._known[id(tensor)] = (weakref.ref(tensor), value)

    def _made_here(self, tensor: Tensor) -> bool:
        held = self._known.get(id(tensor))
        return held is not None and held[0]() is tensor and _storage(tensor) not in self._state

    def _others(self, tensor: Tensor) -> list[Tensor]:
        key = _storage(tensor)
        alive = [t for t in (r() for r in self._views.get(key, ())) if t is not None and _storage(t) == key]
        return [t for t in alive if t is not tensor]

    # Calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2] if func.namespace == "aten" else func._schema.name
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if all(self.value_of(t) is None for t in tensors):
            out = func(*args, **kwargs)
            for t in tensors:
                self._check_escape(t, name)
            random = torch.Tag.nondeterministic_seeded in func.tags or any(self._is_random(t) for t in tensors)
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor) and t.layout is torch.strided:
                    self._bind(t, None)
                    if random:
                        self._random[id(t)] = weakref.ref(t)
            return out
        self._check(func, name, tensors, args, kwargs)
        if name in _FACTORIES:
            out = func(*args, **kwargs)
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor):
                    self._bind(t, None)
            return out
        if name.endswith("_") and not name.endswith("__"):
            return self._in_place(func, name, args, kwargs)
        kept_args, kept_kwargs = self._kept((args, kwargs))
        out = func(*args, **kwargs)
        outputs = out if isinstance(out, tuple | list) else (out,)
        values = [self._new(t) if isinstance(t, Tensor) else None for t in outputs]
        self.graph.steps.append(Step(name, func, kept_args, kept_kwargs, values, self.where()))
        return out

    def _new(self, tensor: Tensor) -> int:
        index = self.graph.value(tensor)
        self._bind(tensor, index)
        return index

    def _kept(self, given: Any) -> Any:
        """Arguments to write down: constants as they are now, as they may be written to."""

        def keep(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            index = self.value_of(value)
            if index is not None:
                return Ref(index)
            return value.detach() if _storage(value) in self._state else value.detach().clone()

        return pytree.tree_map(keep, given)

    def _in_place(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        target = args[0]
        base = name[:-1]
        packet = getattr(torch.ops.aten, base, None)
        plain = getattr(packet, func._overloadname, packet)
        kept_args, kept_kwargs = self._kept((args, kwargs))
        where = self.where()
        if name in _RESHAPES_ITSELF:
            out = func(*args, **kwargs)
            self.graph.steps.append(Step(base, plain, kept_args, kept_kwargs, [self._new(target)], where))
            return out
        if not self._made_here(target):
            raise UnsupportedOperationError(
                f"{_at(where)} writes what follows from its input into a tensor that was there before ({name}): a "
                "certificate is about models that keep nothing from one input to the next"
            )
        others = self._others(target)
        before = {id(t): self._kept(t) for t in others}
        places = {id(t): _overlap(target, t) for t in others}
        out = func(*args, **kwargs)
        new = self._new(target)
        self.graph.steps.append(Step(base, plain, kept_args, kept_kwargs, [new], where))
        for other in others:
            place = places[id(other)]
            if place is None:
                self._bind(other, new)
            elif bool((place >= 0).any()):
                merged = self._new(other)
                self.graph.steps.append(Step("merge", None, (before[id(other)], Ref(new), place), {}, [merged], where))
        return out

    # Sites

    def site(self, found: Found, x: Tensor, curve: Curve | None) -> Callable[[Tensor], None]:
        """A meter for the tracker: remembers the pre-activation, and ties the output to the activation as a whole.

        Args:
            found, x: of the tracker.
            curve: of the activation, where it is known for certain.
        """
        value = self.value_of(x)
        self.graph.uses.append(Use(found, value, None if value is not None else x.detach().clone()))

        def output(out: Tensor) -> None:
            composed = self.value_of(out)
            if curve is None or value is None or composed is None:
                return
            made = next((s for s in reversed(self.graph.steps) if composed in s.outputs), None)
            plain = made is not None and made.reads == [value]  # one operation, which has its own rule
            if not plain and out.shape == self.graph.examples[value].shape:
                step = Step("site", None, (Ref(value), Ref(composed), curve), {}, [self._new(out)], self.where())
                self.graph.steps.append(step)

        return output

    # What can't be followed

    def _check(self, func: Any, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        where = _at(self.where())
        for t in tensors:
            if self.value_of(t) is None:
                self._check_escape(t, name)
        if name in _READS_VALUES:
            raise UnsupportedOperationError(
                f"{where} looks at values of its tensors to decide what to do ({name}), so another input may go "
                f"another "
                "way: no bound holds for all inputs of a box. Take the branch out of the model, or certify each part"
            )
        if any(self._is_random(t) for t in tensors):
            raise UnsupportedOperationError(
                f"{where} draws random numbers in evaluation ({name}): nothing holds for certain"
            )
        if kwargs.get("out") is not None:
            raise UnsupportedOperationError(
                f"{where} writes with out= ({name}), which certify does not follow; assign instead"
            )
        for t in tensors:
            if t.dtype in (torch.float16, torch.bfloat16, torch.complex64, torch.complex128):
                raise UnsupportedOperationError(
                    f"{where} computes in {str(t.dtype).removeprefix('torch.')} ({name}): margins for rounding "
                    f"are known "
                    "for float32 and float64. Certify model.float(), outside of autocast"
                )

    def _check_escape(self, tensor: Tensor, name: str) -> None:
        """A tensor that came from one that depends on the input, in a way that was not seen."""
        held = self._known.get(id(tensor))
        if (held is not None and held[0]() is tensor) or tensor.layout is not torch.strided or not tensor.numel():
            return
        if any(self.value_of(t) is not None for t in self._others(tensor)):
            raise UnsupportedOperationError(
                f"{_at(self.where())} reaches values of its input around torch's operations ({name} of a tensor "
                f"that shares "
                "their memory, as .data and .numpy() give)"
            )

    def _is_random(self, tensor: Tensor) -> bool:
        held = self._random.get(id(tensor))
        return held is not None and held() is tensor


def _at(where: str) -> str:
    return f"'{where}'" if where else "the model"


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return -id(tensor)


def _overlap(target: Tensor, other: Tensor) -> Tensor | None:
    """For each element of `other`, the element of `target` at the same place in memory, or −1; None: they are alike."""
    if (target.shape, target.stride(), target.storage_offset()) == (
        other.shape,
        other.stride(),
        other.storage_offset(),
    ):
        return None
    size = target.untyped_storage().nbytes() // target.element_size()
    numbers = torch.full((size,), -1, dtype=torch.long, device=target.device)
    here = torch.arange(target.numel(), device=target.device).reshape(target.shape)
    numbers.as_strided(target.shape, target.stride(), target.storage_offset()).copy_(here)
    return numbers.as_strided(other.shape, other.stride(), other.storage_offset()).clone()
