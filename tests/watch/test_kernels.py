"""The one-pass kernel counts what torch's reductions count; where it can't be had or can't serve, those do."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relume.activations import catalogue as of
from relume.sites import layout as lay
from relume.sites.layout import INPUT, OTHER, UNIT
from relume.sites.plan import plan_for
from relume.watch import kernels
from relume.watch.kernels import cpu
from relume.watch.meters import Meter, collect

ROLES = {
    "rows": (INPUT, UNIT),
    "images": (INPUT, UNIT, OTHER, OTHER),
    "tokens": (INPUT, OTHER, UNIT),
    "heads": (INPUT, OTHER, UNIT, UNIT),
    "both sides": (INPUT, OTHER, UNIT, OTHER),
    "units first": (UNIT, INPUT),
    "positions first": (OTHER, INPUT, UNIT),
}
ACTIVATIONS = [
    of.relu(),
    of.hardtanh(0.0, 6.0),
    of.gelu(),
    of.tanh(),
    of.leaky_relu(),
    of.hardswish(),
    of.hardshrink(0.5),
]

needs_kernel = pytest.mark.skipif(cpu.load() is None, reason=f"no kernel here: {kernels.reason()}")


def observed(tensors, roles, activation, *, fused):
    layout = tuple(lay.axis_of(s, r) for s, r in zip(tensors[0].shape, roles, strict=True))
    plan = plan_for(layout, math.prod(s for s, r in zip(tensors[0].shape, roles, strict=True) if r == INPUT))
    meter = Meter(plan.n_units, torch.device("cpu"), fused=fused)
    for step, x in enumerate(tensors):
        meter.observe(x, plan, activation, step)(activation.function(x))
    return collect([meter])[0]


def assert_same(a, b, *, tolerance):
    for name in ("fired", "samples_fired", "nonfinite", "first_fired", "last_fired", "max", "min"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in ("mean", "m2", "output"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance)


@needs_kernel
@settings(max_examples=120, deadline=None)
@given(
    roles=st.sampled_from(sorted(ROLES)),
    sizes=st.lists(st.integers(1, 35), min_size=4, max_size=4),
    activation=st.sampled_from(ACTIVATIONS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    shift=st.sampled_from([0.0, -3.0, 1000.0]),
    bad=st.sampled_from([None, math.nan, math.inf, 1e30]),
    seed=st.integers(0, 10**6),
)
def test_it_agrees_with_torchs_reductions(roles, sizes, activation, dtype, shift, bad, seed):
    g = torch.Generator().manual_seed(seed)
    shape = sizes[: len(ROLES[roles])]
    tensors = [(torch.randn(shape, generator=g) * 2 + shift).to(dtype) for _ in range(3)]
    if bad is not None:
        tensors[1].view(-1)[seed % tensors[1].numel()] = bad
    one, other = (observed(tensors, ROLES[roles], activation, fused=f) for f in (True, False))
    assert_same(one, other, tolerance=1e-9 if dtype == torch.float64 else 2e-4)


@needs_kernel
def test_it_serves_rows_tokens_and_images_in_both_memory_formats(monkeypatch):
    served = []
    real = kernels.prepared

    def prepared(*args, **kwargs):
        run = real(*args, **kwargs)
        return lambda *a: served.append(run(*a)) or served[-1]

    monkeypatch.setattr(kernels, "prepared", prepared)
    for roles in ("rows", "tokens", "images", "heads"):
        observed([torch.randn([4, 5, 6, 7][: len(ROLES[roles])])], ROLES[roles], of.relu(), fused=True)
    observed([torch.randn(4, 5, 6, 7).to(memory_format=torch.channels_last)], ROLES["images"], of.relu(), fused=True)
    assert served == [True] * 5


@needs_kernel
def test_an_input_fires_once_however_many_of_its_samples_do():
    x = torch.full((2, 3, 1000), -1.0)
    x[0, 0, 999] = 1.0
    x[1, 0, :] = 1.0
    x[1, 2, 0] = 1.0
    counted = observed([x], (INPUT, UNIT, OTHER), of.relu(), fused=True)
    assert counted.fired.tolist() == [2, 0, 1]
    assert counted.samples_fired.tolist() == [1001, 0, 1]
    rows = observed([x.transpose(1, 2).contiguous()], (INPUT, OTHER, UNIT), of.relu(), fused=True)
    assert rows.fired.tolist() == [2, 0, 1]


@needs_kernel
def test_zero_exactly_does_not_fire_and_the_smallest_positive_number_does():
    x = torch.tensor([[0.0, -0.0, 1e-38, torch.finfo(torch.float32).tiny]] * 4)
    assert observed([x], (INPUT, UNIT), of.relu(), fused=True).fired.tolist() == [0, 0, 4, 4]


@needs_kernel
def test_sums_stay_good_over_many_rows_though_the_pivot_is_off():
    x = torch.full((300_000, 2), 0.1)
    x[0, 0] = 50.0  # drags the pivot off
    counted = observed([x], (INPUT, UNIT), of.relu(), fused=True)
    torch.testing.assert_close(counted.mean, x.double().mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(counted.output, x.double().sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("broken", ["off", "no compiler", "bad compiler"])
def test_without_a_kernel_the_counts_are_the_same_and_the_reason_is_known(broken, tmp_path):
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    fake.chmod(0o755)
    environment = {
        "off": {"RELUME_KERNELS": "off"},
        "no compiler": {"PATH": str(tmp_path / "nowhere")},
        "bad compiler": {"PATH": f"{tmp_path}:/bin:/usr/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    }[broken]
    if broken == "bad compiler":
        (tmp_path / "c++").symlink_to(fake)
    code = (
        "import torch, relume\nfrom torch import nn\nfrom relume.watch import kernels\ntorch.manual_seed(0)\n"
        "m = nn.Sequential(nn.Linear(4, 3), nn.ReLU())\nm[0].bias.data[0] = -99\n"
        "print(relume.census(m, torch.randn(300, 4))['1'].dead.tolist(), '|', kernels.reason())"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    dead, _, reason = done.stdout.strip().partition(" | ")
    assert dead == "[True, False, False]"
    expected = {"off": "turned off", "no compiler": "no C++ compiler", "bad compiler": "no such thing"}
    assert expected[broken] in reason


TRITON = """
import math, torch
from relume.activations import catalogue as of
from relume.watch.kernels import gpu
from tests_watch_kernels import ACTIVATIONS, ROLES, assert_same, observed

served = []
real = gpu.totals
gpu.totals = lambda *a: served.append(a[1]) or real(*a)
g = torch.Generator().manual_seed(0)
for roles in ROLES:
    for activation in ACTIVATIONS:
        for dtype, bad in ((torch.float32, None), (torch.float32, math.nan), (torch.bfloat16, math.inf)):
            shape = [5, 3, 70, 2][: len(ROLES[roles])]
            tensors = [(torch.randn(shape, generator=g) * 2 + 1).to(dtype) for _ in range(2)]
            if bad is not None:
                tensors[1].view(-1)[7] = bad
            one, other = (observed(tensors, ROLES[roles], activation, fused=f) for f in (True, False))
            assert_same(one, other, tolerance=2e-5)
print(len(served))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_gpu_kernel_agrees_with_torchs_reductions_in_tritons_interpreter(tmp_path):
    (tmp_path / "tests_watch_kernels.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "TRITON_INTERPRET": "1", "RELUME_KERNELS": "triton", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
