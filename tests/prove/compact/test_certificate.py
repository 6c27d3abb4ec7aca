"""With a certificate: what is proven dead on a box goes, and the result is exact on the box."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import relume
from relume.errors import CensusMismatchError
from relume.prove.certify import certify


class Fake(dict):
    """The names of a Certificate that compact relies on."""

    def __init__(self, lower, upper, **sites):
        super().__init__(sites)
        self.lower, self.upper = lower, upper


def one(dead, value):
    return SimpleNamespace(dead=torch.tensor(dead), value=torch.tensor(value))


@pytest.fixture
def net():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU6(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0]])
        model[0].bias[:] = torch.tensor([-2.5, 10.0, 0.0])
    return model


def test_what_a_certificate_proves_goes_without_any_batches(net):
    certificate = Fake(torch.zeros(2), torch.ones(2), **{"1": one([True, True, False], [0.0, 6.0, math.nan])})
    compaction = relume.compact(net, certificate)
    assert compaction.removed == {"1": (0, 1)}
    assert compaction.basis == "certificate"
    assert compaction.exact == "exact on the certificate's box, but for rounding"
    assert compaction.inputs == 256
    x = torch.rand(1000, 2)
    torch.testing.assert_close(compaction.model(x), net(x), rtol=1e-5, atol=1e-6)
    outside = torch.tensor([[3.0, 3.0]])
    assert not torch.allclose(compaction.model(outside), net(outside)), "nothing is said of inputs outside of the box"


def test_a_certificate_that_the_data_contradicts_removes_nothing(net):
    wrong = Fake(torch.zeros(2), torch.ones(2), **{"1": one([False, True, True], [math.nan, 5.0, 0.0])})
    compaction = relume.compact(net, wrong)
    assert compaction.removed == {}
    assert compaction.kept["1"] == {
        1: "its output is 6 where the certificate says 5", 2: "its output is not constant on these batches",
    }  # fmt: skip


def test_a_certificate_of_another_model_is_refused(net):
    with pytest.raises(CensusMismatchError, match="'1' has 3 units, in the certificate 2"):
        relume.compact(net, Fake(torch.zeros(2), torch.ones(2), **{"1": one([True, True], [0.0, 0.0])}))
    with pytest.raises(CensusMismatchError, match="none of the sites 1"):
        relume.compact(net, Fake(torch.zeros(2), torch.ones(2), act=one([True], [0.0])))


def test_a_box_is_tried_at_corners_and_within(net):
    from relume.prove.compact.evidence import points_of

    points = points_of(Fake(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0])))
    assert points.shape == (256, 2)
    corners = (points[:, 0].abs() == 1) & ((points[:, 1] == 2) | (points[:, 1] == 5))
    assert len(points[corners].unique(dim=0)) == 4
    assert int((~corners).sum()) >= 100
    assert bool((points[:, 0].abs() <= 1).all() & (points[:, 1] >= 2).all() & (points[:, 1] <= 5).all())
    image = points_of(Fake(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)))
    assert image.shape == (256, 1, 4, 4), "the box is of one input: an axis of size 1 is a channel"


def test_a_real_certificate_of_a_convolutional_net():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    with torch.no_grad():
        model[0].bias[:2] = -20.0
        model[4].bias[5] = -50.0
    certificate = certify(model, 0.0, 1.0, shape=(1, 8, 8))
    compaction = relume.compact(model, certificate)
    for name, units in (("1", {0, 1}), ("5", {5})):
        assert units <= set(compaction.removed[name])
        assert set(compaction.removed[name]) == set(certificate[name].dead.nonzero().flatten().tolist())
    x = torch.rand(2000, 1, 8, 8)
    torch.testing.assert_close(compaction.model(x), model(x), rtol=1e-5, atol=1e-5)
    assert compaction.death_bound["1"] == 0
