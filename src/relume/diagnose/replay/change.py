"""`Change`: the one thing that a replay does otherwise. Each kind is a class, called as the replay goes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relume.diagnose.replay.values import mapped, tensors_of

if TYPE_CHECKING:
    from relume.diagnose.replay.player import Player


class Change:
    """Nothing is changed: the base of all changes, and what each is compared with.

    Attributes:
        key: tells it from others.
        words: what is changed, as in "with … the same 200 batches kill …".
    """

    key = ""
    words = "nothing changed"

    def start(self, player: Player) -> None:
        """The snapshot has been restored."""

    def arguments(self, player: Player, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A forward pass is about to be run."""
        return args, kwargs

    def before_step(self, player: Player, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to step; its groups are set as they were live."""

    def after_step(self, player: Player) -> None:
        """It has."""


class LearningRate(Change):
    """All learning rates divided, by ten as a rule."""

    def __init__(self, usual: float, divisor: float = 10.0, key: str = "lr") -> None:
        self.divisor, self.key = divisor, key
        self.words = f"lr {usual / divisor:.3g} instead of {usual:.3g}"

    def before_step(self, player: Player, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] / self.divisor


class Clipping(Change):
    """The norm of the gradient at most 1."""

    key = "clip"
    words = "the gradient clipped to norm 1"

    def before_step(self, player: Player, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)


class NoDecay(Change):
    """Weight decay 0."""

    key = "decay"

    def __init__(self, usual: float) -> None:
        self.words = f"weight decay 0 instead of {usual:.3g}"

    def before_step(self, player: Player, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0


class Held(Change):
    """Some parameters stay as they were at the beginning.

    Args:
        key, words: as of any change.
        names: of the parameters, as `named_parameters` of the model gives them.
    """

    def __init__(self, key: str, words: str, names: Iterable[str]) -> None:
        self.key, self.words = key, words
        self.names = tuple(names)
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def start(self, player: Player) -> None:
        own = dict(player.model.named_parameters())
        self.hold(own[name] for name in self.names)

    def hold(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            self._kept.setdefault(str(id(parameter)), (parameter, parameter.detach().clone()))

    def after_step(self, player: Player) -> None:
        with torch.no_grad():
            for parameter, value in self._kept.values():
                parameter.copy_(value)


class FrozenBelow(Held):
    """All that runs before a site's producers stays as it was at the beginning."""

    def __init__(self, producers: Iterable[str]) -> None:
        super().__init__("below", "everything below held still", ())
        self.producers = tuple(producers)
        self._reached = False
        self._hooks: list[Any] = []

    def start(self, player: Player) -> None:
        above = {player.model.get_submodule(name) for name in self.producers}

        def reached(module: nn.Module, args: Any) -> None:
            self._reached = self._reached or module in above
            if not self._reached:
                self.hold(module.parameters(recurse=False))

        self._hooks = [m.register_forward_pre_hook(reached) for m in player.model.modules()]

    def after_step(self, player: Player) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        super().after_step(player)


class Centred(Change):
    """What a producer reads is centred, while its output starts as it was.

    The mean input μ is that of the first pass. With x − μ in place of x and w₀·μ added to the output, the function is
    the same at the beginning; a step of the weights then moves the output by Δw·(x − μ) instead of Δw·x.
    """

    key = "centre"
    words = "the inputs of its producer centred"

    def __init__(self, producers: Iterable[str]) -> None:
        self.producers = tuple(producers)

    def start(self, player: Player) -> None:
        for name in self.producers:
            module = player.model.get_submodule(name)
            _centre(module, copy.deepcopy(module).requires_grad_(False))


def _centre(module: nn.Module, first: nn.Module) -> None:
    found: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
        x = args[0]
        if not found:
            axis = 1 if isinstance(module, nn.modules.conv._ConvNd) and x.dim() == module.weight.dim() else x.dim() - 1
            found.append(x.detach().mean([i for i in range(x.dim()) if i != axis], keepdim=True))
        return (x - found[0], *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        added: Tensor
        with torch.no_grad():
            mean = found[0].expand_as(args[0])
            added = first(mean)
            bias = getattr(first, "bias", None)
            if bias is not None:
                added = added - first(torch.zeros_like(mean))
        return output.add(added)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


class Standardized(Change):
    """From a step on, the model's first input is brought back to the mean and spread that it had before.

    Args:
        after: step after which it had changed.
    """

    key = "standardize"
    words = "its input brought back to the statistics of the batches before"

    def __init__(self, after: int) -> None:
        self.after = after
        self._before: list[Tensor] = []

    def arguments(self, player: Player, args: Any, kwargs: Any) -> tuple[Any, Any]:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            return args, kwargs
        if player.step <= self.after:
            self._before = [*self._before[-31:], x.detach()]
            return args, kwargs
        if not self._before:
            return args, kwargs
        mean, std = _moments(torch.cat(self._before))
        return (_brought(x, mean, std), *args[1:]), kwargs


class Unit(Change):
    """The model's first input has mean 0 and deviation 1 in each feature or channel, batch by batch."""

    key = "unit"
    words = "its input standardized"

    def arguments(self, player: Player, args: Any, kwargs: Any) -> tuple[Any, Any]:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
            return args, kwargs
        return (_brought(x, torch.zeros(()).to(x), torch.ones(()).to(x)), *args[1:]), kwargs


class Earlier(Change):
    """From a step on, the model is given once more what it was given before, in turn.

    Args:
        after: step after which its input had changed.
    """

    key = "earlier"
    words = "the batches of before in place of the later ones"

    def __init__(self, after: int) -> None:
        self.after = after
        self._before: list[Any] = []
        self._turn = 0

    def arguments(self, player: Player, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if player.step <= self.after:
            self._before = [*self._before[-31:], (args, kwargs)]
            return args, kwargs
        same = [given for given in self._before if _shapes(given) == _shapes((args, kwargs))]
        if not same:
            return args, kwargs
        self._turn += 1
        args, kwargs = mapped(same[self._turn % len(same)], lambda v: v.clone() if isinstance(v, Tensor) else v)
        return args, kwargs


def _shapes(value: Any) -> list[Any]:
    return [tensor.shape for tensor in tensors_of(value)]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature, or channel."""
    over = [i for i in range(x.dim()) if i != 1] if x.dim() > 2 else [0]
    return x.mean(over, keepdim=True), x.std(over, keepdim=True)


def _brought(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    own, spread = _moments(x)
    # What does not vary in the batch at hand has no spread to be scaled by.
    scale = torch.where(spread > 1e-6 * (1 + own.abs()), std / spread, torch.ones_like(spread))
    return (x - own) * scale + mean


class Drawn(Change):
    """Weights are drawn anew before the first step.

    Args:
        key, words: as of any change.
        draw: draws them, given the model and its first batch as arguments.
    """

    def __init__(self, key: str, words: str, draw: Callable[[nn.Module, Any], Any]) -> None:
        self.key, self.words = key, words
        self.draw = draw
        self._done = False

    def arguments(self, player: Player, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not self._done:
            self._done = True
            with player.fresh_random():
                batch = dict(kwargs) if not args else tuple(args)
                self.draw(player.model, [batch])
        return args, kwargs
