"""Every kernel computes the float64 formula, for every dtype and however the tensor lies; without one torch does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import relume
from relume.activations.drelu import formula, operator, statistics
from relume.activations.drelu.kernels import cpu
from relume.activations.drelu.layout import layout_of
from relume.functional import drelu

FORMS = ["rational", "exponential"]
# Rounding of the result, and a few of float32's for what is computed in it.
TOLERANCE = {torch.float64: 2e-14, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
DTYPES = list(TOLERANCE)

needs_kernel = pytest.mark.skipif(cpu.load() is None, reason=f"no kernel here: {cpu.reason()}")


def check(x, axis, form, *, many_taus=True, many_alphas=True, g=None, seed=0):
    """Output and gradients of x, τ and α against the formula's, differentiated by autograd in float64."""
    r = torch.Generator().manual_seed(seed)
    channels = x.shape[axis] if x.dim() else 1
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    tau = (torch.rand(channels if many_taus else 1, generator=r) * 2 + 0.3).to(acc).requires_grad_()
    alpha = (torch.rand(channels if many_alphas else 1, generator=r) * 0.8 + 0.1).to(acc).requires_grad_()
    x = x.detach().requires_grad_()
    y = drelu(x, tau, alpha, form=form, axis=axis)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    g = torch.randn(x.shape, generator=r).to(x.dtype) if g is None else g
    got = torch.autograd.grad(y, (x, tau, alpha), g)

    wide = [t.detach().double().requires_grad_() for t in (x, tau, alpha)]
    views = [formula.per_channel(t, x.dim(), axis) for t in wide[1:]]
    expected = formula.output(wide[0], *views, form)
    gradients = torch.autograd.grad(expected, wide, g.double())
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * 1e-2)
    # From a rounded output the slope is known to about twice its rounding.
    torch.testing.assert_close(got[0].double(), gradients[0], rtol=2 * tolerance, atol=tolerance * 1e-2)
    per_value = max(1.0, (x.numel() / max(1, min(tau.numel(), alpha.numel()))) ** 0.5)
    for a, b in zip(got[1:], gradients[1:], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=10 * tolerance, atol=20 * tolerance * per_value)


@needs_kernel
@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    axis=st.integers(-3, 2),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(FORMS),
    many=st.tuples(st.booleans(), st.booleans()),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_formula_for_any_shape_and_channel_axis(sizes, axis, dtype, form, many, scale, seed):
    axis = max(-len(sizes), min(axis, len(sizes) - 1))
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(seed)) * scale
    check(x.to(dtype), axis, form, many_taus=many[0], many_alphas=many[1], seed=seed)


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((300, 200), 1), ((4, 6, 90, 70), 1), ((3, 50, 128), -1), ((70_000,), 0), ((2, 200, 5, 5), 1)]
)
def test_it_is_the_formula_on_tensors_large_enough_for_several_threads(shape, axis, dtype, form):
    torch.set_num_threads(2)
    try:
        check((torch.randn(shape) * 3).to(dtype), axis, form)
    finally:
        torch.set_num_threads(1)


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
def test_channels_last_transposed_strided_and_expanded_tensors_need_not_be_copied_by_the_caller(form):
    images = torch.randn(2, 6, 9, 8)
    views = {
        "channels last": (images.to(memory_format=torch.channels_last), 1),
        "transposed": (torch.randn(30, 40).t(), 1),
        "permuted": (torch.randn(4, 5, 6).permute(2, 0, 1), 1),
        "strided": (torch.randn(30, 40)[:, ::2], 1),
        "expanded": (torch.randn(1, 40).expand(7, 40), 1),
        "cut": (torch.randn(30, 40)[3:, 5:], 0),
    }
    for x, axis in views.values():
        check(x, axis, form)
        check(x, axis, form, g=torch.ones(()).expand(x.shape))
    y = drelu(views["channels last"][0])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert drelu(views["permuted"][0]).stride() == views["permuted"][0].stride()


def test_the_layout_is_found_for_tensors_without_gaps_only():
    x = torch.empty(2, 3, 4, 5)
    assert layout_of(x, 1, 3) == (2, 3, 20)
    assert layout_of(x, -1, 5) == (24, 5, 1)
    assert layout_of(x.to(memory_format=torch.channels_last), 1, 3) == (40, 3, 1)
    assert layout_of(x.permute(3, 1, 0, 2), 1, 3) == (2, 3, 20)
    assert layout_of(x, 1, 1) == (1, 1, 120)
    assert layout_of(x[:, :, ::2], 1, 3) is None
    assert layout_of(torch.empty(1, 3).expand(2, 3), 1, 3) is None


@needs_kernel
def test_statistics_are_those_of_the_negative_inputs_for_every_layout_and_dtype():
    for shape, axis in (
        ((64, 48), 1),
        ((5, 7, 40, 3), 1),
        ((5, 7, 8, 9), 1),
        ((6, 10, 33), -1),
        ((3000,), 0),
        ((2, 9), 0),
    ):
        for dtype in DTYPES:
            for x in ((torch.randn(shape) * 2 + 0.5).to(dtype), (torch.randn(shape) - 50).to(dtype)):
                channels = shape[axis]
                tau = torch.rand(channels, dtype=torch.float64 if dtype == torch.float64 else torch.float32) + 0.5
                _, batch = operator.with_statistics(x, tau, 0.1, axis, "rational")
                moved = x.double().movedim(axis, 0).reshape(channels, -1)
                assert batch[1].tolist() == (moved < 0).sum(1).tolist()
                torch.testing.assert_close(batch[0].double(), moved.clamp(max=0).abs().sum(1), rtol=2e-6, atol=1e-9)
                reference = statistics.of_batch(x, channels, axis)
                torch.testing.assert_close(batch.double(), reference.double(), rtol=2e-5, atol=1e-9)


@needs_kernel
def test_the_running_mean_moves_in_c_as_in_torch():
    batch = torch.tensor(
        [[3.0, 8.0, 0.0, float("nan"), float("inf"), 1e-30, 5.0], [2.0, 4.0, 0.0, 3.0, 3.0, 1.0, 1.0]],
        dtype=torch.float64,
    )
    for momentum in (0.1, 1.0, -1.0):
        tau = torch.tensor([1.0, 5.0, 2.0, 3.0, 4.0, 1.0, 0.5])
        batches = torch.tensor([0, 3, 0, 1, 2, 0, 9])
        expected = statistics.moved(tau, batches, batch, momentum)
        assert cpu.move(tau, batches, batch, momentum, statistics.LEAST)
        torch.testing.assert_close(tau, expected[0])
        assert torch.equal(batches, expected[1])
        assert batches.tolist() == [1, 4, 0, 1, 2, 1, 10]
        assert tau[5] >= statistics.LEAST * 0.99


@needs_kernel
def test_it_takes_no_more_threads_than_torch(monkeypatch):
    assert "1 thread" in relume.backend()
    torch.set_num_threads(2)
    try:
        assert "2 threads" in relume.backend()
    finally:
        torch.set_num_threads(1)


@needs_kernel
@pytest.mark.parametrize("form", FORMS)
def test_backward_keeps_one_tensor_of_the_inputs_size_the_output_where_it_can(form):
    kept = []
    x = torch.randn(128, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = drelu(x, form=form)
    large = [t for t in kept if t.numel() > 256]
    assert len(large) == 1
    assert large[0].data_ptr() == (y if form == "rational" else x).data_ptr()


@pytest.mark.parametrize("broken", ["off", "no compiler", "bad compiler"])
def test_without_a_kernel_torch_computes_the_same_and_the_reason_is_known(broken, tmp_path):
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    fake.chmod(0o755)
    (tmp_path / "c++").symlink_to(fake)
    environment = {
        "off": {"RELUME_KERNELS": "off"},
        "no compiler": {"PATH": str(tmp_path / "nowhere")},
        "bad compiler": {"PATH": f"{tmp_path}:/bin:/usr/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    }[broken]
    code = (
        "import torch, relume\n"
        "m = relume.nn.DReLU(2)\n"
        "x = torch.tensor([[-1.0, -2.0], [1.0, -4.0]], requires_grad=True)\n"
        "y = m(x)\n"
        "y.sum().backward()\n"
        "numbers = (*y.flatten().tolist(), *m.tau.tolist(), *x.grad.flatten().tolist())\n"
        "print([round(v, 4) for v in numbers], '|', relume.backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    values, _, said = done.stdout.strip().partition(" | ")
    assert values == "[-0.55, -0.8, 1.0, -1.12, 1.0, 3.0, 0.325, 0.2, 1.0, 0.136]"
    reason = {"off": "turned off by RELUME_KERNELS", "no compiler": "no C++ compiler", "bad compiler": "no such thing"}
    assert said.startswith("eager: ")
    assert reason[broken] in said


def test_backend_says_what_computes_a_tensor():
    assert relume.backend("meta") == "eager: there is no kernel for meta"
    said = []
    torch.vmap(lambda x: said.append(relume.backend(x)) or x)(torch.randn(3))
    assert said[0].startswith("formula: ")
    with pytest.raises(RuntimeError):
        relume.backend("no such device")


TRITON = """
import torch, relume
from relume.activations.drelu import operator, statistics
from tests_drelu_kernels import DTYPES, FORMS, TOLERANCE, check

TOLERANCE[torch.bfloat16] *= 2  # the interpreter cuts off where a GPU rounds
assert relume.backend() == "cpu: Triton kernel, interpreted"
n = 0
for shape, axis in (((7, 130), 1), ((3, 5, 6, 7), 1), ((2, 3, 40, 50), 1), ((4, 9, 33), -1), ((5000,), 0), ((1,), 0)):
    for dtype in DTYPES:
        for form in FORMS:
            check((torch.randn(shape) * 3).to(dtype), axis, form, many_taus=n % 2 == 0, many_alphas=n % 3 == 0)
            n += 1
    x = torch.randn(shape)
    _, batch = operator.with_statistics(x, torch.rand(shape[axis]) + 0.5, 0.1, axis, "rational")
    torch.testing.assert_close(batch.float(), statistics.of_batch(x, shape[axis], axis), rtol=1e-5, atol=1e-6)
x = torch.tensor([float("inf"), -float("inf"), float("nan"), -1.0] * 9, requires_grad=True)
y = relume.functional.drelu(x, 0.5, 0.25)
y.sum().backward()
assert y[:2].tolist() == [float("inf"), -float("inf")] and y[2].isnan()
torch.testing.assert_close(x.grad[[0, 1, 3]], torch.tensor([1.0, 0.25, 0.25 + 0.75 / 9]))
print(n)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_gpu_kernel_is_the_formula_in_tritons_interpreter(tmp_path):
    (tmp_path / "tests_drelu_kernels.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "TRITON_INTERPRET": "1", "RELUME_KERNELS": "triton", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) == 48
