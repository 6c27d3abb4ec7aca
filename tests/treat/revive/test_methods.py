"""What each method makes of a unit's incoming weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import relume


def buried(width=64, inputs=16, n=512, norm=None, bias=True):
    torch.manual_seed(0)
    layers = [nn.Linear(inputs, width, bias=bias), *([norm(width)] if norm else []), nn.ReLU(), nn.Linear(width, 3)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        layers[1 if norm else 0].bias[:8] = -100
    return model, torch.randn(n, inputs)


def census_of(model, x):
    return relume.census(model, [x])


def test_redo_draws_from_the_distribution_of_the_layer():
    model, x = buried(width=512, inputs=100)
    with torch.no_grad():
        model[0].bias[:256] = -1000
        model[0].weight[:256] = 0.77
    relume.revive(model, census_of(model, x), batches=[x])
    drawn = model[0].weight.detach()[:256]
    bound = 1 / math.sqrt(100)  # nn.Linear's own: uniform
    assert float(drawn.abs().max()) <= bound
    assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(model[0].bias.detach()[:256].abs().max()) == 0


def test_redo_draws_as_a_layer_of_ones_own_says():
    class Mine(nn.Linear):
        def reset_parameters(self):
            nn.init.constant_(self.weight, 0.25)
            nn.init.zeros_(self.bias)

    model, x = buried()
    model[0].__class__ = Mine
    relume.revive(model, census_of(model, x), batches=[x])
    assert torch.equal(model[0].weight.detach()[:8], torch.full((8, 16), 0.25))


@pytest.mark.parametrize(("init", "std"), [("xavier", math.sqrt(2 / (100 + 512))), ("he", math.sqrt(2 / 100))])
def test_redo_with_other_initializers(init, std):
    model, x = buried(width=512, inputs=100)
    with torch.no_grad():
        model[0].bias[:256] = -1000
    relume.revive(model, census_of(model, x), batches=[x], init=init)
    assert float(model[0].weight.detach()[:256].std()) == pytest.approx(std, rel=0.02)


def test_redo_lifts_a_sunken_norm_and_takes_new_statistics():
    model, x = buried(norm=nn.BatchNorm1d)
    with torch.no_grad():
        model[1].weight[:8] = 0.01
        model[1].running_var[:8] = 1e-10
    relume.revive(model, census_of(model, x), batches=[x[:256], x[256:]])
    assert torch.equal(model[1].weight.detach()[:8], torch.ones(8))
    assert torch.equal(model[1].bias.detach()[:8], torch.zeros(8))
    z = F.linear(x, model[0].weight.detach(), model[0].bias.detach())[:, :8]
    torch.testing.assert_close(model[1].running_mean[:8], z.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[1].running_var[:8], z.var(0), atol=1e-5, rtol=1e-4)


def test_a_norm_that_reads_the_units_takes_new_statistics():
    """Those of a constant would blow the units up in evaluation, by 1 / √eps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 3))
    x = torch.randn(512, 16)
    with torch.no_grad():
        model[0].bias[:4] = -100
        for _ in range(200):
            model(x)
    assert float(model[2].running_var[:4].max()) < 1e-6
    others = model[2].running_mean[4:].clone()
    revival = relume.revive(model.eval(), census_of(model, x), batches=[x])
    h = F.relu(model[0](x)).detach()[:, :4]
    torch.testing.assert_close(model[2].running_mean[:4], h.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[2].running_var[:4], h.var(0), atol=1e-5, rtol=1e-4)
    assert torch.equal(model[2].running_mean[4:], others)
    assert revival.relative <= 1e-6


def test_the_same_seed_draws_the_same_and_the_global_state_stays():
    drawn = []
    for seed in (5, 5, 6):
        model, x = buried()
        census = census_of(model, x)
        torch.manual_seed(seed * 100)
        before = torch.get_rng_state()
        relume.revive(model, census, batches=[x], seed=seed if seed != 5 else 5)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(model[0].weight.detach()[:8].clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_generator_goes_on_from_call_to_call():
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(2):
        model, x = buried()
        relume.revive(model, census_of(model, x), batches=[x], generator=generator)
        drawn.append(model[0].weight.detach()[:8].clone())
    assert not torch.equal(*drawn)


@given(share=st.floats(0.02, 0.98), norm=st.booleans())
@settings(max_examples=15, deadline=None)
def test_recentre_lets_units_fire_on_the_share_that_is_asked(share, norm):
    model, x = buried(norm=nn.BatchNorm1d if norm else None)
    before = model[0].weight.detach().clone()
    relume.revive(model, census_of(model, x), batches=[x], method="recentre", share=share)
    rates = census_of(model, x)["2" if norm else "1"].firing_rate[:8]
    assert float((rates - share).abs().max()) <= 1 / 512 + 1e-9
    assert torch.equal(before, model[0].weight.detach())


def test_recentre_counts_inputs_not_positions():
    """Of a convolution an input fires when any of its positions does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with torch.no_grad():
        model[0].bias[:2] = -100
    x = torch.randn(300, 1, 8, 8)
    relume.revive(model, census_of(model, x), batches=[x], method="recentre", share=0.25)
    assert census_of(model, x)["1"].firing_rate[:2].tolist() == pytest.approx([0.25, 0.25], abs=1 / 300)


def test_recentre_without_a_bias_moves_along_the_mean_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(512, 6) * 0.3 + 1
    with torch.no_grad():
        model[0].weight[2] = -torch.linspace(0.1, 1, 6)
    relume.revive(model, census_of(model, x), batches=[x], method="recentre", share=0.5)
    assert 0.2 < float(census_of(model, x)["1"].firing_rate[2]) < 0.8


def test_recentre_by_the_moments_of_a_census_alone():
    model, x = buried(n=4096)
    relume.revive(model, census_of(model, x), method="recentre", share=0.3)
    rates = census_of(model, x)["1"].firing_rate[:8]
    assert float((rates - 0.3).abs().max()) < 0.05


def test_units_above_each_other_are_recentred_in_their_order():
    """What the upper site is given depends on the lower: it is looked at once that lives."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].bias[:] = -100
        model[2].bias[:] = -100
    x = torch.randn(512, 6)
    relume.revive(model, census_of(model, x), batches=[x], method="recentre", share=0.4)
    assert census_of(model, x)["3"].firing_rate.tolist() == pytest.approx([0.4] * 8, abs=2 / 512)


def test_rescale_puts_the_spread_around_zero_and_keeps_the_direction():
    model, x = buried()
    with torch.no_grad():
        model[0].weight[:8] *= 1e-3
    before = model[0].weight.detach().clone()
    census = census_of(model, x)
    relume.revive(model, census, batches=[x], method="rescale")
    after = census_of(model, x)["1"]
    assert float((after.mean / after.std)[:8].abs().max()) < 1e-3  # z was rounded beside a bias of −100
    assert after.std[:8].tolist() == pytest.approx([float(census["1"].std[8:].median())] * 8, rel=0.1)
    assert torch.nn.functional.cosine_similarity(before, model[0].weight.detach()).min() > 1 - 1e-5
    relume.revive(model, census, batches=[x], method="rescale", std=3.0, preserve=False)
    assert census_of(model, x)["1"].std[:8].tolist() == pytest.approx([3.0] * 8, rel=1e-4)


def test_a_unit_of_a_constant_input_is_said_to_be_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].bias[:] = -100
        model[2].bias[:] = -100
    x = torch.randn(512, 6)
    revival = relume.revive(model, census_of(model, x), units={"3": [1]}, batches=[x], method="rescale")
    assert "its input is constant on the batches" in revival[0].note
    assert revival[0].after["firing_rate"] == 1


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.randn(8))
        self.encode, self.decode = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x):
        return self.decode(F.relu(self.encode(x - self.centre))) + self.centre


def dead_latents():
    torch.manual_seed(0)
    model = Autoencoder().eval()
    with torch.no_grad():
        model.encode.bias[:3] = -100
    x = torch.randn(512, 8)
    x[7] *= 100  # served worst by far
    return model, x


def test_resample_points_at_the_worst_served_input_at_a_fifth_of_the_norm():
    model, x = dead_latents()
    alive = census_of(model, x).sites[0].fired > 0
    length = model.encode.weight.detach()[alive].norm(dim=1).mean()
    revival = relume.revive(model, census_of(model, x), batches=[x], method="resample", units={":relu": [0]})
    row = model.encode.weight.detach()[0]
    assert float(row.norm() / length) == pytest.approx(0.2, rel=1e-4)
    towards = x[7] - model.centre.detach()
    assert float(F.cosine_similarity(row, towards, dim=0)) > 1 - 1e-5
    assert float(model.encode.bias[0].detach()) == 0
    assert revival.change == 0
    assert float(model.decode.weight.detach()[:, 0].abs().max()) == 0


def test_resample_gives_a_decoder_the_same_direction_at_length_one():
    model, x = dead_latents()
    relume.revive(model, census_of(model, x), batches=[x], method="resample", decoder=True, preserve=False, norm=0.5)
    rows, columns = model.encode.weight.detach()[:3], model.decode.weight.detach()[:, :3].t()
    assert columns.norm(dim=1).tolist() == pytest.approx([1.0] * 3, rel=1e-5)
    assert float(F.cosine_similarity(rows, columns).min()) > 1 - 1e-5


def test_resample_by_a_loss_of_ones_own_through_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    with torch.no_grad():
        model[0].bias[[2, 5]] = -100
    x, y = torch.randn(64, 4, 6, 6), torch.randint(3, (64,))
    chosen = torch.zeros(64)
    chosen[5] = 1
    seen = []

    def loss(output, batch):
        seen.append((output.shape, batch[1]))
        return chosen

    relume.revive(model, relume.census(model, [x], min_inputs=1), batches=[(x, y)], method="resample", loss=loss)
    assert seen[0][0] == (64, 3)
    assert seen[0][1] is y
    row = model[0].weight.detach()[5]
    patches = F.unfold(F.pad(x[5:6, 2:4], [1] * 4), 3)[0].t()  # unit 5 is of the second group
    assert float(F.cosine_similarity(patches, row.flatten()[None]).max()) > 1 - 1e-5


def test_resample_says_that_it_needs_losses():
    model, x = buried()
    with pytest.raises(relume.RelumeError, match="pass loss="):
        relume.revive(model, census_of(model, x), batches=[x], method="resample")
    with pytest.raises(relume.RelumeError, match="pass batches="):
        relume.revive(model, census_of(model, x), method="resample")
