"""Channels normalized by data, layers balanced without changing the function."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume

I = relume.init  # noqa: E741


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    seen = {}
    handles = [
        m.register_forward_hook(lambda m, a, o, n=n: seen.__setitem__(n, o.detach().double()))
        for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]  # fmt: skip
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual", "normalized"])
@pytest.mark.parametrize("n_batches", [1, 2])
def test_every_channel_has_mean_0_and_variance_1_on_the_data(kind: str, n_batches: int, nets, digits, images) -> None:
    model = nets[kind]()
    data = (digits if kind in ("mlp", "normalized") else images)[:300]
    I.data_dependent_(model, list(data.chunk(n_batches)), between=False, phase="eval")
    for name, out in outputs(model.eval(), data).items():
        flat = out.movedim(1, -1).reshape(-1, out.shape[1])
        assert float((flat.var(0, unbiased=False) - 1).abs().max()) < 0.01, name
        if model.get_submodule(name).bias is not None:
            assert float(flat.mean(0).abs().max()) < 0.01, name


def test_channels_of_grouped_and_transposed_convolutions_are_the_right_ones() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2))
    x = torch.randn(64, 4, 8, 8) * torch.tensor([1.0, 3.0, 0.1, 1.0]).view(1, 4, 1, 1)
    I.data_dependent_(model, x, between=False)
    for out in outputs(model, x).values():
        assert float((out.var((0, 2, 3), unbiased=False) - 1).abs().max()) < 0.01
        assert float(out.mean((0, 2, 3)).abs().max()) < 0.01


def test_no_unit_is_born_dead_where_hes_are(make_mlp, digits) -> None:
    """Inputs that lie far to one side, as pixels that were not centred: half of He's units fire on none or on all."""
    shifted = digits[:500].abs() + 3
    he, ours = make_mlp(64, 64, 64, 64, 10), make_mlp(64, 64, 64, 64, 10)
    I.he_(he)
    I.data_dependent_(ours, shifted)
    assert relume.census(he, [shifted]).dead > 20
    census = relume.census(ours, [shifted])
    assert census.dead == 0
    assert all(0.2 < float(census[s].firing_rate.mean()) < 0.8 for s in census)


def test_balancing_keeps_the_function_and_gives_every_layer_of_the_chain_one_relative_gradient(
    make_mlp, digits
) -> None:
    plain = make_mlp(64, 128, 16, 64, 10)
    balanced = copy.deepcopy(plain)
    I.data_dependent_(plain, digits[:256], between=False, generator=torch.Generator().manual_seed(0))
    done = I.data_dependent_(balanced, digits[:256], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plain(digits), balanced(digits), rtol=1e-3, atol=1e-4)
    torch.manual_seed(9)
    cotangent = torch.randn(256, 10)

    def spread(model: nn.Module) -> float:
        weights = [m.weight for m in model if isinstance(m, nn.Linear)]
        gradients = torch.autograd.grad(model(digits[:256]), weights, cotangent)
        rates = [float(g.norm() / w.detach().norm()) for g, w in zip(gradients, weights, strict=True)]
        return max(rates) / min(rates)

    assert spread(plain) > 3
    assert spread(balanced) < 1.5  # another cotangent than the one it was balanced by
    assert "3 scaled" in done.notes[0]
    assert done.notes[0].endswith("now 1 times")


def test_a_layer_whose_output_also_goes_around_its_readers_is_not_scaled(images, residual) -> None:
    """c1 → relu → c2 may be, down → leaky → mean → fc may be; the stem's output is added to c2's."""
    done = I.data_dependent_(residual, images[:128])
    assert "2 scaled" in done.notes[0]


def test_a_reader_that_also_reads_something_else_is_found_out() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x + F.relu(self.a(x)))

    model, x = Skips(), torch.randn(128, 8)
    done = I.data_dependent_(model, x)
    assert "not done" in done.notes[0]
    assert all(float((o.var(0, unbiased=False) - 1).abs().max()) < 0.01 for o in outputs(model, x).values())


def test_activations_that_are_not_homogeneous_are_left_out(make_mlp, digits) -> None:
    assert "not done" in I.data_dependent_(make_mlp(64, 16, 10, activation=nn.Tanh), digits[:128]).notes[0]
