"""`load_weights`: puts a file of weights into a model without running any code that the file may hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relume.check.loading import InputError
from relume.errors import missing_extra

# Where a checkpoint keeps the model's state, and what wrappers put before its names.
_KEYS = ("state_dict", "model_state_dict", "model", "module")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 5


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict, or a checkpoint that holds one, into the model.

    Args:
        model: whose every parameter and persistent buffer the file must give, and no other.
        path: written by `torch.save`, or a .safetensors file.

    Raises:
        InputError: the file can't be read, holds anything but weights, or its names and shapes are not the model's.
        MissingExtraError: safetensors is needed and not installed.
    """
    if not path.is_file():
        raise InputError(f"there is no file of weights at {path}")
    state = _state_of(_read(path), path)
    own = model.state_dict()
    for wrapper in _WRAPPERS:
        if state and all(k.startswith(wrapper) for k in state) and not any(k.startswith(wrapper) for k in own):
            state = {k.removeprefix(wrapper): v for k, v in state.items()}
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise InputError(f"{path} does not fit {type(model).__name__}: {_differences(own, state, error)}") from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise missing_extra("safetensors", "safetensors", f"--weights {path.name}") from error
        try:
            return load_file(path)
        except Exception as error:
            raise InputError(f"{path} can't be read as safetensors: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds more than weights, and relume runs no code from a file: "
            "save it anew with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # whatever a damaged file makes of torch's reader
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} can't be read as weights saved by torch.save: {first}") from error


def _state_of(content: Any, path: Path) -> dict[str, Any]:
    if isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        content = next((content[k] for k in _KEYS if isinstance(content.get(k), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict by name")
    if content and not any(isinstance(v, Tensor) for v in content.values()):
        raise InputError(
            f"{path} holds no weights under {', '.join(_KEYS)}; its keys: {_listed(list(content))}. "
            "Save the state dict alone: torch.save(model.state_dict(), path)"
        )
    return dict(content)


def _differences(own: Mapping[str, Any], state: Mapping[str, Any], error: Exception) -> str:
    shapes = [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and isinstance(own[k], Tensor) and isinstance(state[k], Tensor) and own[k].shape != state[k].shape
    ]
    named = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": shapes,
    }
    parts = [f"{what}: {_listed(names)}" for what, names in named.items() if names]
    return "; ".join(parts) or " ".join(str(error).split())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
