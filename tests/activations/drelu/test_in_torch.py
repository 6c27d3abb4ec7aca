"""DReLU within torch: derivatives of any order, transforms, compilers, exporters, autocast."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from relume.functional import drelu
from relume.nn import DReLU

FORMS = ["rational", "exponential"]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(8, 8), DReLU(8), nn.Linear(8, 3))


@pytest.fixture
def x():
    return torch.randn(16, 8)


@pytest.mark.parametrize("kernels", ["cpp", "off"])
@pytest.mark.parametrize("form", FORMS)
def test_first_and_second_derivatives_by_x_tau_and_alpha(form, kernels, monkeypatch):
    if kernels == "off":
        monkeypatch.setenv("RELUME_KERNELS", "off")
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    tau = (torch.rand(4, dtype=torch.float64) + 0.5).requires_grad_()
    alpha = (torch.rand(4, dtype=torch.float64) * 0.5 + 0.2).requires_grad_()

    def f(x, tau, alpha):
        return drelu(x, tau, alpha, form=form)

    assert torch.autograd.gradcheck(
        f, (x, tau, alpha), check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, (x, tau, alpha))


@pytest.mark.parametrize("form", FORMS)
def test_only_the_gradients_that_are_wanted(form):
    x = torch.randn(20, 4)
    tau, alpha = torch.rand(4) + 0.5, torch.tensor(0.3)
    whole = [t.clone().requires_grad_() for t in (x, tau, alpha)]
    expected = torch.autograd.grad(drelu(*whole, form=form).sum(), whole)
    for k in range(3):
        some = [t.clone().requires_grad_(i == k) for i, t in enumerate((x, tau, alpha))]
        drelu(*some, form=form).sum().backward()
        assert [t.grad is not None for t in some] == [i == k for i in range(3)]
        torch.testing.assert_close(some[k].grad, expected[k])


@pytest.mark.parametrize("form", FORMS)
def test_vmap_grad_jvp_and_hessian(form):
    x = torch.randn(6, 8, dtype=torch.float64)

    def f(z):
        return drelu(z, 0.7, 0.2, form=form)

    torch.testing.assert_close(torch.vmap(f)(x), f(x))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda z: f(z).sum())(x), slope)
    torch.testing.assert_close(torch.func.jvp(f, (x,), (torch.ones_like(x),))[1], slope)
    curvature = torch.func.hessian(lambda z: f(z).sum())(x[0]).diagonal()
    assert (curvature >= 0).all()
    u = (-x[0]).clamp(min=0) / 0.7
    by_hand = 2 * 0.8 / 0.7 / (1 + u) ** 3 if form == "rational" else 0.8 / 0.7 * torch.exp(-u)
    torch.testing.assert_close(curvature, torch.where(x[0] < 0, by_hand, 0.0))


def test_many_models_train_as_one_under_vmap(model, x):
    models = [copy.deepcopy(model) for _ in range(3)]
    for i, m in enumerate(models):
        nn.init.constant_(m[0].bias, -float(i))
    parameters, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(model)
    y = torch.vmap(lambda p, b, x: torch.func.functional_call(base, (p, b), (x,)), in_dims=(0, 0, None))(
        parameters, buffers, x
    )
    for i, m in enumerate(models):
        torch.testing.assert_close(y[i], m(x))
        torch.testing.assert_close(buffers["1.running_tau"][i], m[1].tau)


@pytest.mark.parametrize(
    "arguments", [{}, {"tau": "learned", "learn_alpha": True}, {"tau": 2.0, "form": "exponential"}]
)
def test_compiled_without_a_break_it_trains_as_eager(arguments):
    one = nn.Sequential(nn.Linear(8, 8), DReLU(8, **arguments), nn.Linear(8, 3))
    other = copy.deepcopy(one)
    compiled = torch.compile(one, fullgraph=True)
    for step in range(3):
        x = torch.randn(16, 8) * (step + 1)
        for m in (compiled, other):
            m(x).square().sum().backward()
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    for p, q in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_custom_operator_keeps_torchs_rules():
    torch.library.opcheck(torch.ops.relume.held.default, (torch.rand(3),))


@pytest.mark.parametrize("training", [False, True])
def test_exported_it_is_plain_operations_and_computes_the_same(model, x, training):
    model.train(training)
    exported = torch.export.export(copy.deepcopy(model), (x,))
    assert all(str(n.target).startswith("aten.") for n in exported.graph.nodes if n.op == "call_function"), (
        exported.graph
    )
    again = exported.module()
    torch.testing.assert_close(again(x), model(x))
    torch.testing.assert_close(again.state_dict()["1.running_tau"], model[1].tau)


def test_exported_to_onnx_it_computes_the_same(model, x, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model(x)
    model.eval()
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    graph = onnx.load(tmp_path / "m.onnx")
    (y,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.tensor(y), model(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [{"channels": 8}, {}, {"channels": 8, "tau": "learned", "learn_alpha": True}, {"tau": 2.0, "form": "exponential"}],
)
def test_scripted_saved_and_loaded_it_computes_the_same(x, training, arguments):
    act = DReLU(**arguments).train(training)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(act), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(x), act(x))
    torch.testing.assert_close(loaded(x.double()), act(x.double()))
    for name, value in act.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore")
def test_traced_saved_and_loaded_it_computes_the_same(model, x):
    model(x)
    model.eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


def test_traced_by_fx_it_stays_whole(model, x):
    graph = torch.fx.symbolic_trace(model)
    assert [n.op for n in graph.graph.nodes] == ["placeholder", "call_module", "call_module", "call_module", "output"]
    torch.testing.assert_close(graph(x), copy.deepcopy(model)(x), rtol=0, atol=1)
    assert len(make_fx(lambda z: drelu(z))(x).graph.nodes) > 4


def test_fake_and_meta_tensors_give_shapes():
    with FakeTensorMode():
        y = nn.Sequential(nn.Linear(8, 8), DReLU(8))(torch.randn(3, 8))
        assert y.shape == (3, 8)
    assert DReLU(8, device="meta")(torch.empty(3, 8, device="meta")).shape == (3, 8)


def test_under_autocast_it_runs_in_the_dtype_it_gets(model, x):
    seen = []
    model[1].register_forward_hook(lambda m, args, y: seen.append((args[0].dtype, y.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_changed_parameter_is_noticed_by_its_backward_pass():
    tau = torch.ones(4, requires_grad=True)
    y = drelu(torch.randn(3, 4, requires_grad=True), tau)
    with torch.no_grad():
        tau.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
