"""he_, glorot_, orthogonal_: whose gain, which fan, and what is left alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import relume
from relume.activations import activation
from relume.errors import RelumeError, UnknownActivationError

I = relume.init  # noqa: E741


def rms(t: Tensor) -> float:
    return float(t.detach().double().square().mean().sqrt())


def test_the_gain_is_that_of_the_activation_a_layer_reads_and_1_for_data() -> None:
    model = nn.Sequential(
        nn.Linear(9, 9), nn.Tanh(), nn.Dropout(), nn.Sequential(nn.Linear(9, 9), nn.SELU()), nn.Linear(9, 9)
    )
    done = I.he_(model)
    assert [(d.layer, d.reads) for d in done.done] == [("0", ()), ("3.0", ("tanh",)), ("4", ("selu",))]
    assert [d.gain for d in done.done] == [1, activation("tanh").gain, activation("selu").gain]


def test_with_a_batch_functional_calls_shortcuts_and_parameters_of_activations_are_seen(residual, images) -> None:
    done = I.he_(residual, images[:32])
    assert {d.layer: d.reads for d in done.done} == {
        "stem": (), "c1": ("relu",), "c2": ("relu",), "down": ("relu",), "fc": ("leaky_relu",),
    }  # fmt: skip
    assert done["fc"].gain == activation("leaky_relu", negative_slope=0.2).gain


def test_a_layer_that_reads_two_activations_side_by_side_gets_the_gain_of_their_mean_square() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x).relu(), self.b(x).tanh()], 1))

    done = I.he_(Joined(), torch.randn(8, 4))
    assert set(done["c"].reads) == {"relu", "tanh"}
    expected = 1 / math.sqrt((0.5 + activation("tanh").gain ** -2) / 2)
    assert done["c"].gain == pytest.approx(expected)


def test_attention_and_transformers_are_drawn_block_by_block_and_only_the_second_linear_reads_the_activation() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True)
    done = I.he_(layer, torch.randn(8, 5, 16))
    assert [(d.layer, d.weight) for d in done.done][:4] == [("self_attn", n) for n in ("q", "k", "v", "out")]
    assert done["linear2"].reads == ("gelu",)
    assert done["linear1"].reads == done["self_attn"].reads == ()
    I.orthogonal_(layer, torch.randn(8, 5, 16))
    for block in layer.self_attn.in_proj_weight.detach().chunk(3):
        assert torch.allclose(block @ block.T, torch.eye(16), atol=1e-5)
    assert not layer.self_attn.in_proj_bias.any()


def test_attention_that_reads_an_activation_has_its_gain_for_queries_keys_and_values_alone() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.attention = nn.Linear(16, 16), nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(x).relu()
            return self.attention(h, h, h, need_weights=False)[0]

    done = I.he_(Reads(), torch.randn(8, 5, 16))
    gains = {d.weight: d.gain for d in done.done if d.layer == "attention"}
    assert gains == {**dict.fromkeys("qkv", pytest.approx(math.sqrt(2))), "out": 1}


def test_one_input_is_enough_to_see_what_reads_what() -> None:
    """Batch norm can't be run on one input in training mode; what reads what is seen in evaluation."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    assert I.he_(model, torch.randn(1, 4))["3"].reads == ("relu",)
    assert model.training


def test_attention_with_keys_of_another_size_has_their_fan() -> None:
    attention = nn.MultiheadAttention(16, 4, kdim=64, vdim=4)
    done = {d.weight: d.std for d in I.he_(attention, activation="linear").done}
    assert done["k"] == pytest.approx(1 / 8, rel=0.1)
    assert done["v"] == pytest.approx(1 / 2, rel=0.2)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["normal", "uniform"]),
    st.sampled_from(["fan_in", "fan_out"]),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_linear_layers_get_what_torch_draws_from_the_same_seed(distribution: str, mode: str, n: int, m: int) -> None:
    ours, torchs = nn.Linear(n, m), torch.empty(m, n)
    generator = torch.Generator().manual_seed(3)
    I.he_(ours, activation="relu", distribution=distribution, mode="forward" if mode == "fan_in" else "backward",
          generator=generator)  # fmt: skip
    draw = nn.init.kaiming_normal_ if distribution == "normal" else nn.init.kaiming_uniform_
    draw(torchs, mode=mode, nonlinearity="relu", generator=torch.Generator().manual_seed(3))
    assert torch.allclose(ours.weight, torchs, rtol=1e-6)
    I.glorot_(ours, activation="linear", distribution=distribution, generator=generator.manual_seed(3))
    draw = nn.init.xavier_normal_ if distribution == "normal" else nn.init.xavier_uniform_
    draw(torchs, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(ours.weight, torchs, rtol=1e-6)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(32, 64, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(32, 64, 3, padding=1, padding_mode="circular", groups=4),
    "depthwise": lambda: nn.Conv1d(64, 64, 5, padding=2, padding_mode="circular", groups=64),
    "strided": lambda: nn.Conv2d(32, 64, 4, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(32, 64, 4, stride=2),
    "transposed, grouped": lambda: nn.ConvTranspose1d(32, 64, 6, stride=3, groups=2),
}


@pytest.mark.parametrize("method", ["he", "orthogonal"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolutions_output_has_the_scale_of_its_input_whatever_its_groups_and_stride(
    kind: str, method: str
) -> None:
    layer = CONVOLUTIONS[kind]()
    size = (64,) if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) else (32, 32)
    x = torch.randn(16, layer.in_channels, *size)
    getattr(I, f"{method}_")(layer, activation="linear")
    inner = (..., *(slice(5, -5) for _ in size))  # away from the edges, where fewer inputs are summed
    assert float(layer(x).detach()[inner].square().mean()) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_backward_its_inputs_gradient_has_the_scale_of_its_outputs(kind: str) -> None:
    layer = CONVOLUTIONS[kind]()
    size = (64,) if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) else (32, 32)
    x = torch.randn(16, layer.in_channels, *size, requires_grad=True)
    I.he_(layer, activation="linear", mode="backward")
    y = layer(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    inner = (..., *(slice(5, -5) for _ in size))
    assert float(gradient[inner].square().mean()) == pytest.approx(1, abs=0.12)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["forward", "backward"]))
def test_orthogonal_weights_are_orthogonal_and_have_hes_mean_square(n: int, m: int, mode: str) -> None:
    layer = nn.Linear(n, m)
    I.orthogonal_(layer, activation="relu", mode=mode)
    w = layer.weight.detach()
    gram = w @ w.T if m <= n else w.T @ w
    assert torch.allclose(gram, torch.eye(len(gram)) * gram.diagonal().mean(), atol=1e-4)
    assert rms(w) == pytest.approx(math.sqrt(2 / (n if mode == "forward" else m)), rel=1e-4)


def test_grouped_convolutions_are_orthogonal_group_by_group() -> None:
    conv = nn.Conv2d(8, 8, 1, groups=4)
    I.orthogonal_(conv, activation="linear")
    for group in conv.weight.detach().flatten(1).chunk(4):
        assert torch.allclose(group @ group.T, torch.eye(2), atol=1e-5)


def test_delta_orthogonal_convolutions_rotate_every_position() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    I.orthogonal_(conv, activation="linear", delta=True)
    x = torch.randn(4, 8, 6, 6)
    assert torch.allclose(conv(x).norm(dim=1), x.norm(dim=1), atol=1e-4)


def test_recurrent_states_are_turned_not_stretched_gate_by_gate() -> None:
    lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True)
    done = I.glorot_(lstm, activation="linear")
    for name, weight in lstm.named_parameters():
        if "weight_hh" in name:
            for gate in weight.detach().chunk(4):
                assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)
        if "bias" in name:
            assert not weight.any()
    assert len(done.done) == 4 * 4 * 2
    assert len(I.glorot_(nn.GRUCell(3, 4), activation="linear").done) == 6


def test_an_embeddings_rows_have_unit_entries_and_its_padding_stays_zero() -> None:
    embedding = nn.Embedding(2000, 16, padding_idx=3)
    I.he_(embedding, activation="linear")
    assert rms(embedding.weight) == pytest.approx(1, abs=0.02)
    assert not embedding.weight[3].any()


def test_tied_weights_are_drawn_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x))

    model = Tied()
    done = I.he_(model, torch.randint(50, (4, 3)))
    assert [d.layer for d in done.done] == ["embedding"]
    assert [(e.name, e.why) for e in done.left] == [("head", "tied to 'embedding'")]
    assert rms(model.head.weight) == pytest.approx(1, abs=0.1)


def test_frozen_excluded_and_unknown_layers_are_left_and_named(make_mlp) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

    model = nn.ModuleDict(
        {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4), "bn": nn.BatchNorm1d(4), "own": Own()}
    )
    model["a"].requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    done = I.he_(model, activation="relu", exclude="b")
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"c.weight", "c.bias"}
    why = {e.name: e.why for e in done.left}
    assert set(why) == {"a", "b", "bn", "own"}
    assert "frozen=True" in why["a"]
    assert why["b"] == "excluded"
    assert "normalization" in why["bn"]
    assert "scale" in why["own"]
    assert {d.layer for d in I.he_(model, activation="relu", include="a", frozen=True).done} == {"a"}


@pytest.mark.parametrize("method", ["he_", "glorot_", "orthogonal_", "rai_"])
def test_with_a_generator_the_global_random_state_stays_and_the_result_repeats(method: str, make_mlp) -> None:
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        model = make_mlp(8, 8, 8, 2)
        torch.set_rng_state(state)
        getattr(I, method)(model, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.get_rng_state(), state)
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *results))


def test_parameters_stay_the_same_objects_without_a_trace_of_autograd(make_mlp) -> None:
    model = make_mlp(8, 8, 8, 2)
    before = list(model.parameters())
    I.he_(model)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in model.parameters())


def test_half_precision_weights_are_drawn_in_single_precision_and_rounded() -> None:
    layer = nn.Linear(64, 64, dtype=torch.bfloat16)
    I.orthogonal_(layer, activation="linear")
    w = layer.weight.detach().float()
    assert torch.allclose(w @ w.T, torch.eye(64), atol=0.03)


def test_biases_are_zero_uniform_constant_or_kept() -> None:
    layer = nn.Linear(16, 4000)
    kept = layer.bias.detach().clone()
    I.he_(layer, activation="relu", bias="keep")
    assert torch.equal(layer.bias, kept)
    I.he_(layer, activation="relu", bias=0.1)
    assert bool((layer.bias == 0.1).all())
    I.bias_(layer, "uniform")
    assert float(layer.bias.detach().abs().max()) == pytest.approx(1 / 4, rel=0.01)
    weight = layer.weight.detach().clone()
    assert I.bias_(layer).done[0].bias == "zeros"
    assert not layer.bias.any()
    assert torch.equal(layer.weight, weight)


def test_bias_alive_makes_each_unit_fire_on_half_of_the_batch(residual, images) -> None:
    done = I.he_(residual, images[:200], bias="alive")
    assert "fires on 50%" in done.notes[0]
    census = relume.census(residual, [images[:200]], phase="train")
    assert torch.allclose(census[":relu#1"].firing_rate, torch.tensor(0.5, dtype=torch.float64), atol=0.011)


def test_weight_norm_is_written_through_and_gives_the_weights_asked_for() -> None:
    layer = parametrizations.weight_norm(nn.Linear(32, 32))
    done = I.orthogonal_(layer, activation="relu")
    w = layer.weight.detach()
    assert torch.allclose(w @ w.T, 2 * torch.eye(32), atol=1e-4)
    assert "WeightNorm" in done.done[0].what
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 2))
    )
    assert I.he_(model, torch.randn(8, 4))["2"].reads == ("relu",)


def test_activations_are_named_given_as_modules_or_by_pattern(make_mlp) -> None:
    model = make_mlp(8, 8, 8, 2)
    for named in ("leaky_relu(0.2)", nn.LeakyReLU(0.2), activation("leaky_relu", negative_slope=0.2)):
        assert {d.gain for d in I.he_(model, activation=named).done} == {activation("leaky_relu(0.2)").gain}
    gains = [d.gain for d in I.he_(model, activation={"0": "linear", "2": "selu", "*": "tanh"}).done]
    assert gains == [1, activation("selu").gain, activation("tanh").gain]
    with pytest.raises(UnknownActivationError, match="rellu"):
        I.he_(model, activation="rellu")
    with pytest.raises(RelumeError, match="Linear is no activation"):
        I.he_(model, activation=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="int"):
        I.he_(model, activation=3)


def test_what_a_layer_reads_is_asked_for_where_it_cant_be_told(residual) -> None:
    with pytest.raises(RelumeError, match=r"'Residual'.*batch.*activation="):
        I.he_(residual)
    with pytest.raises(RelumeError, match="say activation='relu'"):
        I.he_(nn.Linear(2, 2))
    with pytest.raises(RelumeError, match="'1' is a Residual"):
        I.he_(nn.Sequential(nn.Linear(2, 2), residual))


def test_an_activation_without_a_gain_is_refused() -> None:
    @relume.register_activation(name="nothing_test", function=lambda x: 0 * x)
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    with pytest.raises(RelumeError, match="nothing_test has no forward gain"):
        I.he_(nn.Linear(2, 2), activation=Nothing())


@pytest.mark.parametrize(
    "setting", [{"mode": "sideways"}, {"distribution": "cauchy"}, {"bias": "maybe"}, {"bias": math.nan}]
)
def test_a_setting_that_does_not_exist_is_refused_and_nothing_is_changed(setting: dict, make_mlp) -> None:
    model = make_mlp(4, 4, 4, 2)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="|".join(map(str, setting.values()))):
        I.he_(model, **setting)
    assert all(map(torch.equal, model.parameters(), before))


def test_a_summary_prints_each_weight_and_what_was_left_and_is_plain_data(residual, images) -> None:
    import json

    done = I.he_(residual, images[:32])
    text = str(done)
    assert all(name in text for name in ("he: Residual, 5 weights", "c1", "8×8×3×3", "leaky_relu", "left alone", "bn"))
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(done.to_dict()))["done"][0]["shape"] == [8, 1, 3, 3]
    with pytest.raises(KeyError, match="stem"):
        done["fc9"]


def test_f_linear_with_a_bare_parameter_is_named_as_left() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.fc = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(F.linear(x, self.w)))

    done = I.he_(Bare(), torch.randn(4, 4))
    assert done["fc"].reads == ("relu",)
    assert [e.name for e in done.left] == ["Bare"]
