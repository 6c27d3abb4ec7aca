"""Asymmetric, deterministic and living initializations: the numbers that make them what they are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume
from relume.errors import RelumeError
from relume.init.rai import SIGMA

I = relume.init  # noqa: E741


def test_sigma_is_the_papers() -> None:
    assert round(SIGMA, 4) == 0.6007


def test_each_neuron_has_one_beta_entry_among_weights_and_bias_and_the_rest_normal() -> None:
    layer = nn.Linear(3, 200_000)
    I.rai_(layer, first="rai")
    drawn = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()
    # E v² = (3 σ²/3 + E P²) / 4 and E v = E P / 4: the other three entries are centred.
    assert float(drawn.square().mean()) == pytest.approx((SIGMA**2 + 0.5) / 4, rel=0.01)
    assert float(drawn.mean()) == pytest.approx(2 / 3 / 4, abs=0.002)
    # Which entry it is, is drawn evenly, the bias among them.
    assert torch.allclose(drawn.mean(0), torch.full((4,), 1 / 6, dtype=torch.float64), atol=0.005)
    # Above 0.5 both kinds are told by their share: P(P > 0.5) = 3/4.
    tail = 0.5 * math.erfc(0.5 / (SIGMA / math.sqrt(3)) / math.sqrt(2))
    assert float((drawn > 0.5).double().mean()) == pytest.approx((3 * tail + 0.75) / 4, abs=0.003)


def test_the_layer_that_reads_data_is_drawn_as_hes_and_a_convolution_per_channel() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4000, 3), nn.ReLU(), nn.ConvTranspose1d(4000, 4000, 2, groups=1000))
    done = I.rai_(model)
    assert [d.reads for d in done.done] == [(), ("relu",)]
    assert not model[0].bias.any()
    assert float(model[0].weight.detach().mean()) == pytest.approx(0, abs=0.01)
    # [in, out / group, k] in 1000 groups of 4: each output has 4 · 2 weights, one positive entry among 9.
    per_output = model[2].weight.detach().view(1000, 4, 4, 2).transpose(1, 2).reshape(4000, 8)
    entries = torch.cat([per_output, model[2].bias.detach()[:, None]], 1)
    assert float(entries.sum(1).mean()) == pytest.approx(2 / 3, abs=0.05)
    assert float(entries.sum(1).var()) == pytest.approx(8 * SIGMA**2 / 8 + 1 / 18, rel=0.1)


def test_what_reads_no_non_negative_output_is_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [e.name for e in I.rai_(model).left] == ["0"]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 33), st.integers(1, 33))
def test_zero_is_identity_when_it_narrows_and_orthogonal_when_it_widens(n: int, m: int) -> None:
    layer = nn.Linear(n, m)
    I.zero_(layer)
    w = layer.weight.detach()
    if m <= n:
        assert torch.equal(w, torch.eye(m, n))
    else:
        size = 2 ** math.ceil(math.log2(m))
        assert torch.allclose(w.abs(), torch.full_like(w, size**-0.5))
        assert torch.linalg.matrix_rank(w) == n
        if m == size:
            assert torch.allclose(w.T @ w, torch.eye(n), atol=1e-6)


def test_zero_starts_a_residual_network_as_the_identity_on_its_blocks(residual, images) -> None:
    done = I.zero_(residual, zeros="c2")
    x = images[:4].expand(-1, 8, -1, -1)
    assert torch.equal(residual.c2(residual.c1(x).relu()) + x, x)
    assert done["c2"].what == "zeros"
    assert done["down"].what == "Hadamard"
    again = type(residual)()
    I.zero_(again, zeros="c2")
    assert all(map(torch.equal, residual.parameters(), again.parameters()))


def test_an_identity_hands_on_each_position_group_by_group() -> None:
    x = torch.randn(2, 4, 5, 5)
    for conv in (
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
    ):
        I.identity_(conv, gain=2.0)
        assert torch.allclose(conv(x), 2 * x)


def test_zero_knows_which_way_a_transposed_convolution_widens() -> None:
    assert I.zero_(nn.ConvTranspose1d(4, 2, 1)).done[0].what == "identity"
    assert I.zero_(nn.ConvTranspose1d(2, 4, 1)).done[0].what == "Hadamard"


def test_alive_gives_every_unit_its_share_through_layers_norms_and_positions(
    residual, images, make_mlp, digits
) -> None:
    for share in (0.1, 0.5):
        model = make_mlp(64, 32, 32, 10)
        with torch.no_grad():
            model[0].bias.fill_(-30.0)  # buried
        done = I.alive_(model, list(digits[:400].chunk(2)), share=share)
        census = relume.census(model, [digits[:400]])
        for site in census:
            assert torch.allclose(census[site].firing_rate, torch.full((32,), share, dtype=torch.float64))
        assert f"fires on {share:.0%}" in done["0"].what
    done = I.alive_(residual, images[:200], share=0.25)
    census = relume.census(residual, [images[:200]], phase="train")
    assert float(census[":relu"].firing_rate.mean()) == pytest.approx(0.25, abs=0.02)  # by the batch norm's shift
    assert residual.stem.bias is None
    assert {e.name: e.why for e in done.left} == {
        ":relu#2": "several producers",
        ":leaky_relu": "leaky_relu has no flat zone on the left",
    }


def test_alive_says_when_there_is_no_bias_to_shift(digits) -> None:
    model = nn.Sequential(nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(RelumeError, match="'0' has no bias"):
        I.alive_(model, digits[:64])
    with pytest.raises(ValueError, match="share"):
        I.alive_(model, digits[:64], share=1.0)
    with pytest.raises(ValueError, match="pass a batch"):
        I.he_(model, bias="alive")
    with pytest.raises(ValueError, match="alive_"):
        I.bias_(model, "alive")
