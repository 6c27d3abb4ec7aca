"""`Network`: the members' networks as one, a chain of stacked layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from relume.activations import activation_of
from relume.census import SiteCensus, Timeline
from relume.lab.member import Member
from relume.lab.together.activations import Site
from relume.lab.together.layers import CantStackError, Layer, Linear, stacked
from relume.lab.together.parameters import Parameters


class Network:
    """Networks of one shape as one.

    Args:
        models: the members' own, which `give_back` brings up to date.
        members: theirs, equal activations next to each other.

    Raises:
        CantStackError: a network is no chain of layers, or a layer of it can't be stacked.
    """

    def __init__(self, models: Sequence[nn.Module], members: Sequence[Member]) -> None:
        if not isinstance(models[0], nn.Sequential):
            raise CantStackError(f"{type(models[0]).__name__} is no chain of layers")
        self.members = len(models)
        self.parameters = Parameters(members)
        self.layers: list[Layer] = []
        self.sites: list[Site] = []
        units, dims = 0, 2
        for name, first in models[0].named_children():
            layers = [model.get_submodule(name) for model in models]
            if isinstance(first, (nn.Linear, nn.Conv2d)):
                units, dims = first.weight.shape[0], first.weight.dim()
            if activation_of(first) is not None or name.startswith("act"):
                site = Site(name, layers, members, units, dims, self.parameters)
                self.sites.append(site)
                self.layers.append(site)
            else:
                self.layers.append(stacked(name, layers, self.parameters))
        self.parameters.close()

    def __call__(self, x: Tensor, *, training: bool, observing: int | None = None) -> Tensor:
        """All members' outputs, [members, inputs, …], for inputs [members, inputs, …].

        Args:
            observing: the step that this pass is counted at, or None for a pass that is not counted.
        """
        for site in self.sites:
            site.observing = observing
        for layer in self.layers:
            self._read, x = x, layer(x, training)
        return x

    def code(self) -> tuple[Tensor, Tensor]:
        """What the output layer, a linear one, has read in the latest pass, [members, inputs, width], and its weights,
        [members, outputs, width]."""
        out = self.layers[-1]
        assert isinstance(out, Linear)
        assert out.weight is not None
        return self._read, self.parameters[out.weight].transpose(1, 2)

    def end_window(self) -> Tensor:
        """End a window of the census; each member's dead units, of all sites: int64 [members]."""
        return torch.stack([site.end_window() for site in self.sites]).sum(0)

    def at_end(self, min_inputs: int) -> dict[str, list[tuple[SiteCensus, Timeline]]]:
        """By site, each member's census of what was counted since the last window, and its timeline of the training."""
        return {site.name: found for site in self.sites if (found := site.at_end(min_inputs))}

    def give_back(self) -> None:
        """Write parameters and buffers into the members' own models."""
        for layer in self.layers:
            layer.give_back()
