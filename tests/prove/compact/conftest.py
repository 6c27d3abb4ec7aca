"""What the tests of compaction share: units that die by their bias, and a compaction held against the original."""

import copy

import pytest
import torch

import relume


@pytest.fixture
def kill():
    """`kill(layer, units)` makes units dead for every input of a usual size; with bias=100 stuck at the top."""

    def put(layer, units, bias=-100.0):
        with torch.no_grad():
            layer.bias[list(units)] = bias

    return put


def _outputs(model, x):
    with torch.no_grad():
        out = model(*x) if isinstance(x, tuple) else model(x)
    return out if isinstance(out, tuple) else (out,)


@pytest.fixture
def outputs():
    return _outputs


@pytest.fixture
def compacted():
    """Compact a model by its census on x, and hold the result against it, in float64 to 1e-12; returns Compaction."""

    def run(model, x, **options):
        model = model.double().eval()
        x = tuple(t.double() if t.is_floating_point() else t for t in (x if isinstance(x, tuple) else (x,)))
        before = copy.deepcopy(model.state_dict())
        batches = [x]
        compaction = relume.compact(model, relume.census(model, batches, min_inputs=1), batches, **options)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model given is untouched"
        for a, b in zip(_outputs(model, x), _outputs(compaction.model, x), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12 * float(a.abs().max()))
        assert type(compaction.model) is type(model)
        return compaction

    return run
