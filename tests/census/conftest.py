"""`counted`: the census of one site from samples given by hand, through a meter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from relume.activations import Activation
from relume.activations import catalogue as of
from relume.census import SiteCensus
from relume.sites import Site, Zones
from relume.sites import layout as lay
from relume.sites.layout import INPUT, UNIT
from relume.sites.plan import plan_for
from relume.watch.meters import Meter, collect


def site_of(activation: Activation, units: int, name: str = "1") -> Site:
    return Site(name, name, "", activation.name, activation.formula, units, -1, zones=Zones.of(activation))


@pytest.fixture
def counted() -> Callable[..., SiteCensus]:
    def make(x: Tensor, activation: Activation | None = None, *, min_inputs: int = 4, name: str = "1") -> SiteCensus:
        """x: pre-activations of shape [inputs, units]."""
        entry = activation or of.relu()
        meter = Meter(x.shape[1], torch.device("cpu"))
        if len(x):
            plan = plan_for((lay.axis_of(len(x), INPUT), lay.axis_of(x.shape[1], UNIT)), len(x))
            meter.observe(x, plan, entry, 0)(entry.function(x.double()).to(x.dtype))
        return SiteCensus(site_of(entry, x.shape[1], name), collect([meter])[0], min_inputs)

    return make
