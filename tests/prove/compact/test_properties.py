"""Random networks with units planted dead at random places: what is left computes the same on data where they are."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh, "gelu": nn.GELU}
layers = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(sorted(ACTIVATIONS)), st.sampled_from(["", "bn", "after", "dropout"]),
              st.sets(st.integers(0, 8)), st.sampled_from([-60.0, 60.0])),
    min_size=1, max_size=4,
)  # fmt: skip


def planted(layer, units, bias):
    with torch.no_grad():
        layer.bias[[u for u in units if u < len(layer.bias)]] = bias


def scrambled(norm):
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


def check(model, x):
    model = model.double().eval()
    x = x.double()
    before = copy.deepcopy(model.state_dict())
    census = relume.census(model, x, min_inputs=1)
    compaction = relume.compact(model, census, x)
    a, b = model(x), compaction.model(x)
    torch.testing.assert_close(b, a, rtol=0, atol=1e-11 * max(1.0, float(a.detach().abs().max())))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, member in census.items():
        gone = set(compaction.removed.get(name, ()))
        stays = set(compaction.kept.get(name, {}))
        dead = set(member.dead.nonzero().flatten().tolist())
        assert not gone & stays
        assert dead <= gone | stays, "each dead unit goes, or stays for a reason"
        assert compaction.units[name] == member.units
    return compaction


@settings(max_examples=40, deadline=None)
@given(layers, st.integers(0, 2**31))
def test_random_mlps(spec, seed):
    torch.manual_seed(seed)
    parts, width = [], 4
    for units, kind, norm, dead, bias in spec:
        layer = nn.Linear(width, units, bias=norm != "bn")
        parts.append(layer)
        if norm == "bn":
            parts.append(scrambled(nn.BatchNorm1d(units)))
        planted(parts[-1], dead, bias)
        parts.append(ACTIVATIONS[kind]())
        if norm == "after":
            parts.append(scrambled(nn.BatchNorm1d(units)))
        if norm == "dropout":
            parts.append(nn.Dropout(0.5))
        width = units
    compaction = check(nn.Sequential(*parts, nn.Linear(width, 3)), torch.randn(64, 4))
    for site, why in compaction.kept.items():
        allowed = ("one must be left", "only unit of its layer", "not constant on these batches")
        assert all(any(a in w for a in allowed) for w in why.values()), (site, why)


@settings(max_examples=30, deadline=None)
@given(layers, st.integers(0, 2**31), st.booleans(), st.sampled_from([0, 1]))
def test_random_cnns(spec, seed, pool, padding):
    torch.manual_seed(seed)
    parts, width = [], 2
    for units, kind, norm, dead, bias in spec:
        parts.append(nn.Conv2d(width, units, 3, padding=1 if padding or len(parts) else 0, bias=norm != "bn"))
        if norm == "bn":
            parts.append(scrambled(nn.BatchNorm2d(units)))
        planted(parts[-1], dead, bias)
        parts.append(ACTIVATIONS[kind]())
        if norm == "dropout":
            parts.append(nn.Conv2d(units, units, 3, padding=1, groups=units))
        width = units
    parts += [nn.AdaptiveAvgPool2d(1)] if pool else []
    model = nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(8, 2, 8, 8)
    model(x)
    check(model, x)
