"""Models and batches that no initializer can work with: refused by name, and the model left as it was."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import relume
from relume.errors import BatchError, EmptyCensusError, NoSitesError, RelumeError

I = relume.init  # noqa: E741
BY_DATA = ["lsuv_", "data_dependent_", "alive_"]


@pytest.mark.parametrize("method", ["he_", "glorot_", "orthogonal_", "rai_", "zero_", "identity_", "bias_"])
def test_a_model_without_layers_says_what_it_is_made_of(method: str) -> None:
    with pytest.raises(RelumeError, match=r"no layer to initialise \(it is made of: BatchNorm1d, ReLU"):
        getattr(I, method)(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))


@pytest.mark.parametrize("method", ["he_", "rai_", "zero_", *BY_DATA, "check"])
def test_parameters_without_numbers_are_named(method: str) -> None:
    args = (torch.randn(4, 4),) if method in (*BY_DATA, "check") else ()
    with pytest.raises(RelumeError, match=r"'0\.weight' is lazy"):
        getattr(I, method)(nn.Sequential(nn.LazyLinear(4), nn.ReLU()), *args)
    with pytest.raises(RelumeError, match=r"'0\.weight' is on the meta device"):
        getattr(I, method)(nn.Sequential(nn.Linear(4, 4, device="meta"), nn.ReLU()), *args)


def test_a_dtensor_is_refused(make_mlp) -> None:
    class DTensor(Tensor):  # as torch's is recognised, by its name, without a process group
        pass

    model = make_mlp(4, 4, 4, 2)
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(DTensor))
    with pytest.raises(RelumeError, match=r"DTensor.*before the model is sharded"):
        I.he_(model)


@pytest.mark.parametrize("method", [*BY_DATA, "check"])
def test_a_batch_with_nan_an_empty_one_and_none_are_refused(method: str, make_mlp) -> None:
    model = make_mlp(4, 4, 4, 2)
    before = [p.detach().clone() for p in model.parameters()]
    bad = torch.randn(8, 4)
    bad[3, 1] = torch.nan
    with pytest.raises(BatchError, match="batch 0 holds NaN"):
        getattr(I, method)(model, bad)
    with pytest.raises(BatchError, match="empty"):
        getattr(I, method)(model, torch.randn(0, 4))
    if method != "check":
        with pytest.raises(EmptyCensusError):
            getattr(I, method)(model, [])
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("method", BY_DATA)
def test_infinite_outputs_are_blamed_on_their_layer_and_nothing_is_changed(method: str, make_mlp) -> None:
    model = make_mlp(4, 4, 4, 2)
    before = [p.detach().clone() for p in model.parameters()]
    batch = torch.randn(8, 4)
    batch[0, 0] = torch.inf
    with pytest.raises(RelumeError, match=r"'0'.*NaN or infinite|site '1' sees NaN or infinite"):
        getattr(I, method)(model, batch)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm])
def test_weights_computed_by_a_hook_of_old_are_refused_with_the_way_out(wrap) -> None:
    model = nn.Sequential(wrap(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(RelumeError, match=r"'0\.weight'.*weight_(g|orig).*parametrizations.*exclude="):
        I.he_(model)
    assert [d.layer for d in I.he_(model, exclude="0").done] == ["2"]


def test_a_parametrization_that_cant_be_set_is_named_and_nothing_is_changed() -> None:
    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(model[2], "weight", Doubled())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RelumeError, match=r"Linear\.weight is parametrized by Doubled"):
        I.he_(model)
    assert all(map(torch.equal, model.parameters(), before))


def test_an_orthogonal_parametrization_takes_an_orthogonal_matrix() -> None:
    layer = parametrizations.orthogonal(nn.Linear(6, 6))
    I.orthogonal_(layer, activation="linear")
    w = layer.weight.detach()
    assert torch.allclose(w @ w.T, torch.eye(6), atol=1e-5)


def test_integer_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RelumeError, match="int8"):
        I.he_(model, frozen=True)


def test_check_needs_an_activation_it_knows() -> None:
    with pytest.raises(NoSitesError):
        I.check(nn.Linear(4, 4), torch.randn(8, 4))


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"init\.he_ takes a torch\.nn\.Module, not Tensor"):
        I.he_(torch.randn(3))
