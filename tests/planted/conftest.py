"""`planted`: takes a model whose dead units are known by construction, and holds relume to every one of its counts.

Each case gives an oracle, written by hand in plain torch, which computes every site's pre-activation in the canonical
shape [inputs, units] or [inputs, units, samples…]. All counts are then made anew by brute force and compared exactly.
"""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume.errors import RelumeWarning

NEVER = torch.zeros_like

FLAT = {
    "relu": lambda x: x <= 0,
    "relu6": lambda x: (x <= 0) | (x >= 6),
    "hardtanh": lambda x: (x <= -1) | (x >= 1),
    "hardswish": lambda x: x <= -3,
    "hardsigmoid": lambda x: (x <= -3) | (x >= 3),
    "hardshrink": lambda x: x.abs() <= 0.5,
    "threshold": lambda x: x <= 0.5,
}
OUTPUT = {
    "relu": lambda x: x.clamp(min=0),
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}


class Planted:
    """Makes planted models and checks them; the fixture's value."""

    @staticmethod
    def bury(layer: nn.Module, *units: int, depth: float = 50.0, lift: float = 0.5) -> nn.Module:
        """Give units of a layer a bias far below anything its inputs can make up for, and all others a helpful one."""
        with torch.no_grad():
            layer.bias.fill_(lift)
            layer.bias[list(units)] = -depth
        return layer

    @staticmethod
    def batches(*shape: int, inputs: int = 512, batch: int = 128, axis: int = 0) -> list[Tensor]:
        """Standard normal batches; `shape` is one input's, the inputs go on `axis`."""
        sizes = [batch] * (inputs // batch) + ([inputs % batch] if inputs % batch else [])
        return [torch.randn(*shape[:axis], n, *shape[axis:]) for n in sizes]

    def __call__(
        self,
        model: nn.Module,
        batches: list,
        oracle: Callable[..., dict],
        dead: dict[str, set[int]],
        *,
        train: bool = True,
        min_inputs: int = 256,
        guessed: bool = False,
        notes: bool = False,
        **options,
    ) -> relume.Census:
        """Check the one-off census, and a watch over evaluation and, unless told otherwise, over training.

        Args:
            oracle: called like the model; {site: pre-activation}, or (activation, pre-activation[, output]) where it
                is not ReLU.
            dead: the planted units of each site; sites left out have none.
            train: the planted units are dead in training mode as well.
            guessed: relume has to guess the unit axis and says so.
            notes: the case is about something that relume warns of.
            options: passed on to `census` and `watch`.
        """
        with warnings.catch_warnings():
            if notes:
                warnings.simplefilter("ignore", RelumeWarning)
            model.eval()
            torch.manual_seed(1)
            census = relume.census(model, batches, min_inputs=min_inputs, **options)
            truth = {"eval": self._brute_force(model, batches, oracle, 1)}
            with relume.watch(model, every=1, window=len(batches), min_inputs=min_inputs, **options) as watch:
                torch.manual_seed(1)
                with torch.no_grad():
                    for batch in batches:
                        _call(model, batch)
                if train:
                    model.train()
                    torch.manual_seed(2)
                    for batch in batches:
                        _call(model, batch)
        if train:
            truth["train"] = self._brute_force(model, batches, oracle, 2)
        self._compare(census, truth["eval"], dead, min_inputs, guessed)
        for phase, sites in truth.items():
            self._compare(watch.census("all", phase=phase), sites, dead, min_inputs, guessed)
        return census

    def _brute_force(self, model, batches, oracle, seed) -> dict[str, list]:
        """Per site: the activation, and of every batch the pre-activations and outputs."""
        torch.manual_seed(seed)
        seen: dict[str, list] = {}
        with torch.no_grad():
            for batch in batches:
                for name, given in _call(oracle, batch).items():
                    activation, x, *output = given if isinstance(given, tuple) else ("relu", given)
                    x = x.double()
                    y = output[0].double() if output else OUTPUT[activation](x)
                    seen.setdefault(name, []).append((activation, *(t.reshape(*t.shape[:2], -1) for t in (x, y))))
        return seen

    def _compare(self, census, truth, dead, min_inputs, guessed) -> None:
        assert set(census) == set(truth)
        assert list(census) == list(truth), "sites come in forward order"
        for name, parts in truth.items():
            site, activation = census[name], parts[0][0]
            flat = FLAT.get(activation, NEVER)
            x = torch.cat([p[1].transpose(0, 1).flatten(1) for p in parts], 1)  # [units, samples]
            y = torch.cat([p[2].transpose(0, 1).flatten(1) for p in parts], 1)
            fired = sum((~flat(p[1]).bool()).any(2).sum(0) for p in parts)
            inputs = sum(p[1].shape[0] for p in parts)
            assert site.site.activation == activation, name
            assert (site.units, site.inputs, site.samples) == (x.shape[0], inputs, x.shape[1]), name
            assert site.fired.tolist() == fired.tolist(), name
            never = set(torch.nonzero(fired == 0).flatten().tolist())
            assert never == set(dead.get(name, ())), f"{name}: planted otherwise than brute force finds"
            if inputs >= min_inputs:
                assert set(torch.nonzero(site.dead).flatten().tolist()) == never, name
            else:
                assert not site.dead.any(), name
                assert set(torch.nonzero(site.unknown).flatten().tolist()) == never, name
            close = {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(site.mean, x.mean(1), **close)
            torch.testing.assert_close(site.std, x.std(1, correction=0), **close)
            torch.testing.assert_close(site.min, x.amin(1), **close)
            torch.testing.assert_close(site.max, x.amax(1), **close)
            torch.testing.assert_close(site.mean_output, y.abs().mean(1), **close)
            assert site.site.axis_known is not guessed, name
            assert site.site.inputs_known, name


def _call(function: Callable, batch):
    if isinstance(batch, dict):
        return function(**batch)
    return function(*batch) if isinstance(batch, tuple | list) else function(batch)


@pytest.fixture
def planted() -> Planted:
    return Planted()
