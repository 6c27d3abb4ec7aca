"""`Recipe`: how a fresh model of the original's class is made as small as a compacted one, so that its weights fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from relume.errors import RelumeError

FORMAT = 1


class RecipeError(RelumeError):
    """A compacted model's file can't be read, or does not fit the model that it is to be loaded into."""


@dataclass(frozen=True)
class Recipe:
    """What was taken from the original, and what was added.

    Attributes:
        model: class name of the original.
        shapes: of the tensors that were cut, before.
        removed: entries that went, by name and axis.
        biases: modules that were given a bias.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    removed: dict[str, dict[int, tuple[int, ...]]]
    biases: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> nn.Module:
        """Make a model of the original's sizes as small, in place; its weights are those of the entries left.

        Raises:
            RecipeError: the model's tensors are not those of the original; the model is unchanged.
        """
        self.check(model)
        self.add_biases(model)
        self.cut(model)
        return model

    def check(self, model: nn.Module) -> None:
        tensors = tensors_of(model)
        for name, shape in self.shapes.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                raise RecipeError(
                    f"this recipe is for a {self.model} in which {name} is {list(shape)}; in this "
                    f"{type(model).__name__} {'it is ' + str(list(found)) if found else 'there is none'}"
                )

    def add_biases(self, model: nn.Module) -> None:
        for name in self.biases:
            module = model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)

    def cut(self, model: nn.Module) -> None:
        tensors = tensors_of(model)
        changed = set()
        for name, axes in self.removed.items():
            tensor = tensors[name]
            kept = tensor.detach()
            for axis, gone in axes.items():
                keep = torch.ones(tensor.shape[axis], dtype=torch.bool)
                keep[list(gone)] = False
                kept = kept.index_select(axis, torch.nonzero(keep).flatten().to(kept.device))
            tensor.data = kept.contiguous()  # in place: a tensor shared by several modules stays one
            tensor.grad = None
            changed.add(id(tensor))
        for module in model.modules():
            own = chain(module._parameters.values(), module._buffers.values())
            if any(id(t) in changed for t in own if t is not None):
                _fit(module)

    def to_json(self) -> str:
        return json.dumps({
            "format": FORMAT,
            "model": self.model,
            "shapes": {n: list(s) for n, s in self.shapes.items()},
            "removed": {n: {str(a): list(gone) for a, gone in axes.items()} for n, axes in self.removed.items()},
            "biases": list(self.biases),
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Inverse of `to_json`; RecipeError on anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise RecipeError(f"the recipe has format {data['format']}, this relume reads {FORMAT}")
            return cls(
                str(data["model"]),
                {str(n): tuple(int(v) for v in s) for n, s in data["shapes"].items()},
                {str(n): {int(a): tuple(map(int, g)) for a, g in axes.items()} for n, axes in data["removed"].items()},
                tuple(map(str, data["biases"])),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"this is no recipe of relume.compact: {type(error).__name__}: {error}") from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, a shared one by its first."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _fit(module: nn.Module) -> None:
    """Make the sizes that torch's own modules keep as numbers those of their weights."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _ConvNd):
        if module.groups > 1:  # depthwise
            each = module.out_channels // module.groups
            module.out_channels = int(weight.shape[0])
            module.groups = module.in_channels = module.out_channels // each
        elif module.transposed:
            module.in_channels, module.out_channels = int(weight.shape[0]), int(weight.shape[1])
        else:
            module.out_channels, module.in_channels = int(weight.shape[0]), int(weight.shape[1])
    elif isinstance(module, _NormBase):
        found = next(t for t in (weight, module.running_mean) if t is not None)
        module.num_features = int(found.shape[0])
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.embedding_dim = int(weight.shape[1])
    elif hasattr(module, "nf") and hasattr(module, "nx"):  # transformers' Conv1D
        vars(module).update(nx=int(weight.shape[0]), nf=int(weight.shape[1]))
    elif isinstance(module, nn.PReLU):
        module.num_parameters = int(weight.shape[0])


def save(path: str | Path, recipe: Recipe, model: nn.Module) -> Path:
    """Write recipe and weights to one file, which `rebuild` reads."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"relume_recipe": recipe.to_json(), "state_dict": model.state_dict()}, path)
    return path


def rebuild(model: nn.Module | Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """A compacted model from the file that `Compaction.save` or `relume compact` wrote.

    Args:
        model: of the original's class and sizes, or what makes one. It is made as small as the compacted one was, in
            place, and given its weights.
        path: of the file. No code that it may hold is run.

    Returns:
        The model.

    Raises:
        RecipeError: the file is none of these, or the model is not of the original's sizes.

    >>> import relume
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with torch.no_grad(): net[0].bias[:3] = -100
    >>> x = torch.randn(512, 4)
    >>> path = relume.compact(net, relume.census(net, x), x).save(getfixture("tmp_path") / "small.pt")
    >>> fresh = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> relume.rebuild(fresh, path)[0]
    Linear(in_features=4, out_features=5, bias=True)
    """
    content = _read(Path(path))
    recipe, state = Recipe.from_json(str(content["relume_recipe"])), content["state_dict"]
    built = model if isinstance(model, nn.Module) else model()
    if not isinstance(built, nn.Module):
        raise TypeError(f"relume.rebuild takes a torch.nn.Module or what makes one; that made a {type(built).__name__}")
    recipe.apply(built)
    try:
        built.load_state_dict(state)
    except RuntimeError as error:
        raise RecipeError(f"the weights in {path} do not fit: {' '.join(str(error).split())}") from error
    return built


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch's reader
        raise RecipeError(f"{path} can't be read as a compacted model: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not {"relume_recipe", "state_dict"} <= content.keys():
        raise RecipeError(f"{path} is no compacted model: it holds no recipe. Write one by Compaction.save(path)")
    return content
