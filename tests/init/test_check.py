"""What `check` predicts, against the same worked out by hand."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume

I = relume.init  # noqa: E741


def test_variances_and_gradients_are_those_of_a_pass_by_hand(make_mlp, digits, labels) -> None:
    model, x, y = make_mlp(64, 32, 16, 10), digits[:200], labels[:200]
    result = I.check(model, (x, y), loss=lambda out, batch: F.cross_entropy(out, batch[1]))
    z1 = model[0](x)
    z2 = model[2](z1.relu())
    loss = F.cross_entropy(model[4](z2.relu()), y)
    g1, g2 = torch.autograd.grad(loss, (z1, z2))
    for site, z, g in ((result["1"], z1, g1), (result["3"], z2, g2)):
        z = z.detach().double()
        assert site.second_moment == pytest.approx(float(z.square().mean()), rel=1e-5)
        assert site.variance == pytest.approx(float(z.var(0, unbiased=False).mean()), rel=1e-5)
        u = F.normalize(z)
        pairs = u @ u.T
        assert site.likeness == pytest.approx(float((pairs.sum() - len(z)) / (len(z) * (len(z) - 1))), abs=1e-6)
        assert site.mean == pytest.approx(float(z.mean()), rel=1e-4, abs=1e-6)
        assert site.gradient == pytest.approx(float(g.double().square().mean()), rel=1e-4)
    assert result["3"].growth == pytest.approx(result["3"].second_moment / result["1"].second_moment)
    assert result["1"].gradient_growth == pytest.approx(result["1"].gradient / result["3"].gradient)
    assert (result["1"].growth, result["3"].gradient_growth) == (None, None)


def test_in_place_activations_have_the_gradient_of_their_input() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    loss = lambda out, _: out.square().sum()  # noqa: E731
    in_place = I.check(model, x, loss=loss)["1"].gradient
    model[1].inplace = False
    assert in_place == pytest.approx(I.check(model, x, loss=loss)["1"].gradient)


def test_planted_dead_units_are_counted_with_their_bound(make_mlp, digits) -> None:
    model = make_mlp(64, 32, 32, 10)
    I.he_(model)
    with torch.no_grad():
        model[0].bias[:7] = -1e3
    result = I.check(model, digits[:300])
    assert result["1"].dead == 7
    assert result["1"].death_bound == pytest.approx(1 - 0.05 ** (1 / 300))
    assert result.dead >= 7
    assert "7 of 32 units of '1' fire on no input" in result.advice[0]


def test_the_expected_share_of_dead_units_is_that_of_fresh_draws(make_mlp, digits) -> None:
    """Uncentred inputs: nearly a whole half of the units never fires, and check says beforehand how many."""
    x = digits[:100].abs() + 2
    model = make_mlp(64, 100, 10)
    I.he_(model)
    predicted = I.check(model, x)["1"].expected_dead
    shares = []
    for _ in range(30):
        I.he_(model)
        shares.append(I.check(model, x)["1"].dead / 100)
    actual = sum(shares) / len(shares)
    assert 0.1 < actual < 0.5
    assert predicted == pytest.approx(actual, abs=0.06)


def test_the_expected_share_is_known_for_convolutions_and_not_behind_norms(residual, images) -> None:
    result = I.check(residual, images[:64])
    assert {s.name: s.expected_dead is not None for s in result.sites} == {
        ":relu": False, ":relu#1": True, ":relu#2": False, ":leaky_relu": False,
    }  # fmt: skip


def test_a_narrow_network_is_told_its_chance_of_being_born_dead(make_mlp) -> None:
    model = make_mlp(1, *[2] * 10, 1)
    I.he_(model)
    result = I.check(model, torch.linspace(-1, 1, 100)[:, None])
    assert result.born_dead.probability == pytest.approx(0.91, abs=0.005)
    assert any("Of 100 networks drawn like this 91 are born dead" in line for line in result.advice)
    # Inputs on one side of zero follow one ray: 1 − (1 − 1/4)^10.
    one_side = I.check(model, torch.linspace(0.1, 1, 100)[:, None])
    assert one_side.born_dead_upper == pytest.approx(1 - 0.75**10)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "an activation is not ReLU"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), "normalization"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "biases are not zero"),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.ReLU()), "not fully connected"),
    ],
)
def test_where_the_chance_is_not_known_it_says_why(model: nn.Module, why: str) -> None:
    result = I.check(model, torch.randn(32, 4))
    assert result.born_dead is None
    assert why in result.about_born_dead


def deep(gain: float, depth: int = 15, width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers)
    I.he_(model)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= gain
    return model


@pytest.mark.parametrize(
    ("gain", "words"),
    [(2.0, ("Pre-activations grow", "Gradients explode")), (0.4, ("Pre-activations shrink", "Gradients vanish"))],
)
def test_scales_that_run_away_are_called_by_name_with_the_remedy(gain: float, words: tuple[str, ...]) -> None:
    model, x = deep(gain), torch.randn(64, 64)
    advice = " ".join(I.check(model, x).advice)
    assert all(word in advice for word in words)
    assert "lsuv_" in advice
    I.lsuv_(model, x)
    after = " ".join(I.check(model, x).advice)
    assert not any(word in after for word in words)


def test_a_deep_relu_network_is_told_that_its_inputs_come_to_look_alike() -> None:
    result = I.check(deep(1.0, depth=60, width=128), torch.randn(64, 128))
    assert abs(result.sites[0].likeness) < 0.05
    assert any("look alike" in line for line in result.advice)


def test_a_dead_layer_is_the_first_thing_said(make_mlp, digits) -> None:
    model = make_mlp(64, 16, 16, 10)
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    result = I.check(model, digits[:64])
    assert result["3"].silent
    assert result.advice[0].startswith("All 16 units of '3' are dead")


def test_a_sound_network_is_told_so(make_mlp, digits) -> None:
    model = make_mlp(64, 64, 64, 10)
    I.he_(model)
    assert I.check(model, digits[:200]).advice == (
        "Nothing stands in the way of training: scales, gradients and units are in order.",
    )


def test_a_frozen_model_has_no_gradients_and_an_infinite_one_is_said_to_be(make_mlp, digits) -> None:
    frozen = make_mlp(64, 8, 10).requires_grad_(False)
    result = I.check(frozen, digits[:32])
    assert result["1"].gradient is None
    assert "no gradients" in result.notes[-1]
    with torch.no_grad():
        frozen[0].weight[0, 0] = torch.inf
    assert "NaN or infinite, first at '1'" in I.check(frozen, digits[:32] + 1).advice[0]


def test_loss_must_give_one_number(make_mlp, digits) -> None:
    with pytest.raises(relume.RelumeError, match="one number"):
        I.check(make_mlp(64, 8, 10), digits[:32], loss=lambda out, _: out)


def test_it_prints_in_80_columns_and_is_plain_data(residual, images) -> None:
    result = I.check(residual, images[:64])
    text = str(result)
    assert all(name in text for name in ("Residual at initialization", ":relu#1", "E z²", "born dead"))
    assert max(map(len, text.splitlines())) <= 80
    data = json.loads(json.dumps(result.to_dict()))
    assert data["sites"][":relu"]["units"] == 8
    with pytest.raises(KeyError, match=":relu#1"):
        result["relu"]


def test_outputs_in_a_dict_and_batches_as_dicts_are_taken() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: Tensor) -> dict:
            return {"logits": self.fc(x).relu() * scale}

    result = I.check(Named(), {"x": torch.randn(16, 4), "scale": torch.ones(1), "labels": torch.zeros(16)})
    assert result.sites[0].gradient > 0
