"""`LivenessPenalty`: the liveness penalty of a whole model, which needs no rewriting for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from relume.activations.lookup import activation_of
from relume.activations.penalty import liveness_penalty
from relume.activations.registry import Activation
from relume.errors import RelumeError, RelumeWarning

# Backward nodes of the operations that write units, with the axis on which they do, and of those that leave it there.
_WRITES = {
    "Convolution": 1, "MkldnnConvolution": 1, "CudnnConvolution": 1,
    "NativeBatchNorm": 1, "CudnnBatchNorm": 1, "MiopenBatchNorm": 1, "NativeGroupNorm": 1,
    "Addmm": -1, "Mm": -1, "Bmm": -1, "MkldnnLinear": -1, "Linear": -1, "NativeLayerNorm": -1, "Embedding": -1,
}  # fmt: skip
_KEEPS = {
    "Add", "Sub", "Mul", "Div", "ToCopy", "NativeDropout", "Clone", "MaxPool2DWithIndices", "MaxPool3DWithIndices",
    "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
}  # fmt: skip
_RESHAPES = {"View", "UnsafeView", "ReshapeAlias"}


class LivenessPenalty:
    """Collects `liveness_penalty` at every activation module of a model that can die, while the model runs.

    Hooks on the activation modules compute the penalty of each pre-activation in passing, so activations may work in
    place and nothing else is kept. Calling the object gives the penalty of the latest forward pass, to be added to the
    loss. Only modules can be hooked: where a forward calls `F.relu`, call `liveness_penalty` there, or make it an
    `nn.ReLU`. An activation module used several times in a pass counts each time.

    Under `DistributedDataParallel` give it the wrapped or the bare model; each process penalizes its own batch, and the
    gradients are averaged as those of the loss are. Evaluation under `no_grad` is left alone. `deepcopy` of the model
    gives one without these hooks; call `remove` before saving a whole model by pickle.

    Args:
        model: any module; it stays as it is, but for the hooks.
        share: of the inputs on which each unit is to fire.
        include, exclude: shell patterns on the modules' names; no include means all.
        axis: the unit axis, for all or by shell pattern. Default: by what produced the pre-activation.
        margin: as in `liveness_penalty`.

    Attributes:
        names: the activation modules that are penalized.

    Raises:
        RelumeError: the model has no activation module with a flat zone (of those included).

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with LivenessPenalty(model, share=0.1) as liveness:
    ...     loss = model(torch.randn(32, 4)).square().mean() + 0.1 * liveness()
    """

    def __init__(
        self,
        model: nn.Module,
        share: float = 0.05,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        axis: int | Mapping[str, int] | None = None,
        margin: float = 0.0,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {share}")
        self.share, self.margin, self.axis = share, margin, axis
        found = {
            name: (module, entry)
            for name, module in model.named_modules()
            if (entry := activation_of(module)) is not None
            and entry.flat.edges not in (None, (-torch.inf, torch.inf))
            and (not include or any(fnmatchcase(name, p) for p in include))
            and not any(fnmatchcase(name, p) for p in exclude)
        }
        if not found:
            raise RelumeError(
                "the model has no activation module with a flat zone to penalize; activations that are called as "
                "functions can't be hooked: call relume.functional.liveness_penalty on their pre-activations"
            )
        self.names = tuple(found)
        self._terms: dict[str, Tensor] | None = None
        self._running = False
        self._noted: set[str] = set()
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._begin), prepend=True),
            model.register_forward_hook(_Hook(self._end), always_call=True),
            *(
                m.register_forward_pre_hook(_Hook(self._at(name, e)), with_kwargs=True)
                for name, (m, e) in found.items()
            ),
        ]

    def __call__(self) -> Tensor:
        """The mean penalty over all units of the latest forward pass: a scalar in [0, 1 + margin].

        Raises:
            RelumeError: no forward pass with gradients has been made, or none reached a penalized module.
        """
        terms = self.per_unit()
        device = next(iter(terms.values())).device
        return torch.cat([t.to(device) for t in terms.values()]).mean()

    def per_unit(self) -> dict[str, Tensor]:
        """The penalty of each unit, [units], by module; `name#1` is the second use of a module in the pass."""
        if not self._terms:
            raise RelumeError(
                "no penalized module has run with gradients yet: run the model's forward first, not under no_grad"
                if self._handles
                else "this LivenessPenalty has been removed from its model"
            )
        return dict(self._terms)

    def remove(self) -> None:
        """Take the hooks off the model. May be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._terms = [], None

    def __enter__(self) -> LivenessPenalty:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _begin(self, model: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            self._terms, self._running = {}, True

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        self._running = False

    def _at(self, name: str, entry: Activation) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            z = args[0] if args else kwargs.get("input")
            # Checkpointing runs a segment again during backward, and has to find the same steps there.
            again = not self._running and torch._C._current_graph_task_id() != -1
            if not isinstance(z, Tensor) or self._terms is None or not (self._running or again):
                return
            if not torch.is_grad_enabled():
                self._note(name, "runs without gradients within the model, as under checkpointing with use_reentrant")
                return
            term = liveness_penalty(
                z, self.share, axis=self._axis(name, z), activation=entry, margin=self.margin, reduction="none"
            )
            if not again:
                use = sum(key.partition("#")[0] == name for key in self._terms)
                self._terms[f"{name}#{use}" if use else name] = term

        return see

    def _axis(self, name: str, z: Tensor) -> int:
        if isinstance(self.axis, int):
            return self.axis
        given = next((a for p, a in (self.axis or {}).items() if fnmatchcase(name, p)), None)
        if given is not None:
            return given
        if z.dim() == 2:
            return 1
        written = _written_axis(z)
        if written is None:
            raise RelumeError(
                f"which axis of '{name}' carries its units, of shape {tuple(z.shape)}? Its producer can't be seen; "
                f"say axis={{'{name}': …}}: 1 after a convolution, -1 after a linear layer"
            )
        return written

    def _note(self, name: str, why: str) -> None:
        if name not in self._noted:
            self._noted.add(name)
            warnings.warn(f"'{name}' {why}: its units are not penalized", RelumeWarning, stacklevel=2)


class _Hook:
    """A hook that a copy of the model goes without."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, *args: Any) -> None:
        self.call(*args)

    def __deepcopy__(self, memo: Any) -> Any:
        return _Hook(_nothing)


def _nothing(*args: Any) -> None:
    return None


def _written_axis(z: Tensor) -> int | None:
    """The axis on which the operation that produced z writes its units, read off the autograd graph."""
    node, shape, kept = z.grad_fn, tuple(z.shape), {1, -1}
    for _ in range(16):
        if node is None:
            return None
        name = node.name().partition("Backward")[0]
        if name in _WRITES:
            return _WRITES[name] if _WRITES[name] in kept else None
        if name in _RESHAPES:
            before = tuple(getattr(node, "_saved_self_sym_sizes", ()))
            kept -= {axis for axis, there in ((1, slice(0, 2)), (-1, slice(-1, None))) if before[there] != shape[there]}
            shape = before
        elif name not in _KEEPS:
            return None
        node = node.next_functions[0][0] if node.next_functions else None
    return None
