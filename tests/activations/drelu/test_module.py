"""`relume.nn.DReLU`: what it refuses, what it keeps, how τ and α are learned or follow."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import relume
from relume.activations.drelu.statistics import LEAST
from relume.functional import drelu
from relume.nn import DReLU

FORMS = ["rational", "exponential"]


def mean_of_negatives(x, axis=1):
    flat = x.double().movedim(axis, 0).reshape(x.shape[axis], -1)
    return torch.tensor([row[row < 0].abs().mean() for row in flat])


@pytest.mark.parametrize("axis", [1, -1, 0, -3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tau_is_the_running_mean_of_the_negative_inputs_and_the_first_batch_sets_it(axis, dtype):
    batches = [torch.randn(6, 8, 10).to(dtype) * 3 for _ in range(4)]
    act = DReLU(batches[0].shape[axis], axis=axis, momentum=0.3)
    expected = None
    for x in batches:
        before = act.tau.clone()
        y = act(x)
        torch.testing.assert_close(y, drelu(x, before, 0.1, axis=axis))  # of τ before the batch
        mean = mean_of_negatives(x, axis)
        expected = mean if expected is None else expected + 0.3 * (mean - expected)
        torch.testing.assert_close(act.tau.double(), expected, rtol=1e-5, atol=0)
    assert act.batches.tolist() == [4] * act.channels


def test_without_momentum_tau_is_the_mean_of_all_batches():
    batches = [torch.randn(40, 3) for _ in range(5)]
    act = DReLU(3, momentum=None)
    for x in batches:
        act(x)
    expected = torch.stack([mean_of_negatives(x) for x in batches]).mean(0)
    torch.testing.assert_close(act.tau.double(), expected, rtol=1e-5, atol=0)


def test_one_tau_for_all_channels_is_the_mean_over_all():
    x = torch.randn(5, 7, 3) - 1
    act = DReLU()
    act(x)
    torch.testing.assert_close(act.tau, x[x < 0].abs().mean().reshape(1))


def test_before_any_batch_and_in_evaluation_tau_stays():
    act = DReLU(4).eval()
    act(torch.randn(30, 4) * 9)
    assert act.tau.tolist() == [1.0] * 4
    act.train()(torch.randn(30, 4) * 9)
    frozen = act.tau.clone()
    assert (frozen != 1).all()
    act.eval()(torch.randn(30, 4))
    assert torch.equal(act.tau, frozen)


def test_a_channel_without_negative_inputs_keeps_its_tau_and_waits_for_its_first_batch():
    x = torch.randn(50, 3)
    x[:, 1] = x[:, 1].abs()
    act = DReLU(3)
    act(x)
    assert act.batches.tolist() == [1, 0, 1]
    assert act.tau[1] == 1.0
    act(torch.full((50, 3), -7.0))
    assert act.tau[1] == 7.0


@pytest.mark.parametrize("kernels", ["cpp", "off"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("shape", [(64, 5), (3, 5, 40)])
def test_a_bad_input_does_not_reach_tau(bad, shape, kernels, monkeypatch):
    if kernels == "off":
        monkeypatch.setenv("RELUME_KERNELS", "off")
    act = DReLU(5)
    act(torch.randn(shape))
    before = act.tau.clone()
    x = torch.randn(shape)
    x[(0, 2) + (0,) * (len(shape) - 2)] = bad
    act(x)
    assert act.tau.isfinite().all()
    assert (act.tau[[0, 1, 3, 4]] != before[[0, 1, 3, 4]]).all()
    if bad != math.inf:  # plus infinity is no negative input
        assert act.tau[2] == before[2]


def test_tiny_negative_inputs_leave_tau_large_enough_to_divide_by():
    act = DReLU(2)
    act(torch.tensor([[-1e-38, -1e-44], [1.0, 1.0]]))
    assert (act.tau >= LEAST * 0.99).all()
    y = act.eval()(torch.tensor([[0.0, -1e30]]))
    assert y.isfinite().all()


@settings(deadline=None, max_examples=60)
@given(raw=st.floats(-1e4, 1e4), form=st.sampled_from(FORMS))
def test_learned_tau_stays_above_zero_and_learned_alpha_inside_its_interval(raw, form):
    act = DReLU(3, tau="learned", learn_alpha=True, form=form)
    with torch.no_grad():
        act.log_tau.fill_(raw)
        act.logit_alpha.fill_(raw)
    assert (act.tau > 0).all()
    assert (act.alpha > 0).all()
    assert (act.alpha < 1).all()
    x = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    y = act(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert (x.grad > 0).all()


def test_learned_values_start_where_asked_and_learn():
    act = DReLU(3, tau="learned", alpha=0.3, learn_alpha=True)
    torch.testing.assert_close(act.alpha, torch.full((3,), 0.3))
    torch.testing.assert_close(act.tau, torch.ones(3))
    x = torch.randn(400, 3) * 5
    target = drelu(x, torch.tensor([0.5, 2.0, 3.0]), torch.tensor([0.1, 0.5, 0.3]))
    optimizer = torch.optim.Adam(act.parameters(), 0.05)
    for _ in range(500):
        optimizer.zero_grad()
        (act(x) - target).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(act.tau.detach(), torch.tensor([0.5, 2.0, 3.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(act.alpha.detach(), torch.tensor([0.1, 0.5, 0.3]), rtol=0.05, atol=0)


def test_the_state_dict_holds_tau_and_a_copy_or_pickle_is_whole():
    act = DReLU(4)
    act(torch.randn(20, 4) * 5)
    assert set(act.state_dict()) == {"running_tau", "batches"}
    fresh = DReLU(4)
    fresh.load_state_dict(act.state_dict())
    x = torch.randn(20, 4)
    for other in (fresh, copy.deepcopy(act), pickle.loads(pickle.dumps(act))):
        assert torch.equal(other.eval()(x), copy.deepcopy(act).eval()(x))
    assert set(DReLU(4, tau="learned", learn_alpha=True).state_dict()) == {"log_tau", "logit_alpha"}
    assert not DReLU(tau=2.0).state_dict()


def test_tau_keeps_its_precision_in_a_model_of_half_precision():
    model = nn.Sequential(nn.Linear(4, 4), DReLU(4)).bfloat16()
    assert model[1].tau.dtype == torch.float32
    for _ in range(300):
        model[1](torch.full((8, 4), -1.001, dtype=torch.float32))
    model[1](torch.full((8, 4), -2.0, dtype=torch.bfloat16))
    torch.testing.assert_close(model[1].tau, torch.full((4,), 1.1009), rtol=1e-4, atol=0)
    assert model.double()[1].tau.dtype == torch.float64
    assert model(torch.randn(3, 4).double()).dtype == torch.float64


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing_the_second_run_uses_the_same_tau_and_does_not_move_it(reentrant):
    def run(with_checkpoint):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 8), DReLU(8), nn.Linear(8, 3))
        model(torch.randn(16, 8))
        x = torch.randn(16, 8, requires_grad=True)
        y = checkpoint(model, x, use_reentrant=reentrant) if with_checkpoint else model(x)
        y.square().sum().backward()
        return x.grad, model[1].tau, model[1].batches

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(a, b)


def test_moving_tau_after_the_forward_pass_does_not_disturb_its_backward_pass():
    act = DReLU(4)
    x = torch.randn(30, 4, requires_grad=True)
    used = act.tau.clone()
    first = act(x)
    act(torch.randn(30, 4) * 100)
    (g,) = torch.autograd.grad(first.sum(), x)
    (expected,) = torch.autograd.grad(drelu(x, used).sum(), x)
    torch.testing.assert_close(g, expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"alpha": 0.0}, "strictly between 0 and 1"),
        ({"alpha": 1.0}, "strictly between 0 and 1"),
        ({"tau": 0.0}, "above 0"),
        ({"tau": -1.0}, "above 0"),
        ({"tau": math.inf}, "finite"),
        ({"tau": "runing"}, "'running', 'learned'"),
        ({"form": "linear"}, "'rational', 'exponential'"),
        ({"channels": 0}, "channels"),
        ({"axis": 1.0}, "axis"),
        ({"momentum": 0.0}, "momentum"),
        ({"alpha": 5e-5, "learn_alpha": True}, "can't start"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused_with_what_is_allowed(arguments, said):
    with pytest.raises(ValueError, match=said):
        DReLU(**arguments)


def test_an_input_that_does_not_fit_is_refused_with_its_shape():
    with pytest.raises(ValueError, match=r"expects 4 channels on axis 1, but the input \(2, 5\) has 5"):
        DReLU(4)(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"axis 1, but the input has 1 axes"):
        DReLU(4)(torch.randn(4))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        DReLU()(torch.arange(3))
    with pytest.raises(TypeError, match=r"torch\.complex64"):
        drelu(torch.randn(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"tau expects 3 channels"):
        drelu(torch.randn(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match=r"alpha must hold one value"):
        drelu(torch.randn(2, 4), 1.0, torch.ones(1, 4))
    with pytest.raises(ValueError, match="tau must be"):
        drelu(torch.randn(2, 4), -1.0)


def test_its_repr_says_what_it_was_made_with():
    assert repr(DReLU(8, axis=-1, momentum=None)) == "DReLU(8, axis=-1, tau=running, alpha=0.1, momentum=None)"
    assert (
        repr(DReLU(tau=2, alpha=0.2, learn_alpha=True, form="exponential"))
        == "DReLU(1, tau=2, alpha=0.2, learn_alpha=True, form=exponential)"
    )


def test_empty_and_zero_dimensional_tensors_pass():
    act = DReLU(8)
    x = torch.zeros(0, 8, requires_grad=True)
    act(x).sum().backward()
    assert act.tau.tolist() == [1.0] * 8
    assert x.grad.shape == (0, 8)
    assert DReLU()(torch.tensor(-1.0)).item() == pytest.approx(-0.55)


def test_a_watched_model_has_no_dead_units_and_shows_the_dormant_one():
    model = nn.Sequential(nn.Linear(6, 5), DReLU(5), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias[3] = -4.0  # would be dead with ReLU
        model[0].weight[1] *= 1e-5
        model[0].bias[1] = 0.0
    site = relume.census(model, torch.randn(512, 6))["1"]
    assert not site.dead.any()
    assert site.dormant(0.025).tolist() == [False, True, False, False, False]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 5)

    def forward(self, x):
        return drelu(self.up(x), 0.5)


def test_the_function_is_a_site_too():
    census = relume.census(Functional(), torch.randn(300, 6))
    assert list(census) == [":drelu"]
