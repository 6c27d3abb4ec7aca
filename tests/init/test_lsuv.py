"""LSUV reaches unit variance on real networks and data, says where it does not, and leaves no trace."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import relume
from relume.errors import RelumeError

I = relume.init  # noqa: E741


def state(model: nn.Module) -> dict:
    return {n: t.detach().clone() for n, t in model.state_dict(keep_vars=False).items()}


def variances(model: nn.Module, batches: list[Tensor]) -> dict[str, float]:
    """Of every layer's output, by plain hooks, over all batches."""
    seen: dict[str, list[Tensor]] = {}
    kinds = (nn.Linear, nn.Conv2d)
    handles = [
        m.register_forward_hook(lambda m, a, o, n=n: seen.setdefault(n, []).append(o.detach().double().flatten()))
        for n, m in model.named_modules() if isinstance(m, kinds)
    ]  # fmt: skip
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return {n: float(torch.cat(parts).var(unbiased=False)) for n, parts in seen.items()}


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual", "normalized"])
@pytest.mark.parametrize("n_batches", [1, 3])
def test_every_layer_comes_within_tolerance_on_digits(kind: str, n_batches: int, nets, digits, images) -> None:
    model = nets[kind]()
    data = (digits if kind in ("mlp", "normalized") else images)[:300]
    batches = list(data.chunk(n_batches))
    done = I.lsuv_(model, batches, tolerance=0.02, phase="eval")
    assert done.reached
    measured = variances(model.eval(), batches)
    assert {d.layer: d.variance for d in done.done} == pytest.approx(measured, rel=1e-4)
    assert all(abs(v - 1) <= 0.02 for v in measured.values())
    # The first layer's output is linear in its weights: one correction, or none.
    assert all(d.iterations <= (1 if n_batches == 1 else 2) for d in done.done)


def test_in_training_mode_batch_norm_normalizes_by_the_batch(nets, digits) -> None:
    model = nets["normalized"]()
    model.eval()
    with torch.no_grad():
        model[1].running_var.fill_(100.0)
    assert I.lsuv_(model, digits[:256], tolerance=0.02).reached
    assert not model.training
    model.train()
    assert variances(model, [digits[:256]])["3"] == pytest.approx(1, abs=0.02)


def test_it_is_the_papers_algorithm_in_one_pass(make_mlp, digits) -> None:
    """Mishkin & Matas 2016, algorithm 1, written out: a full pass for every correction of every layer."""
    ours = make_mlp(64, 32, 32, 32, 10)
    I.lsuv_(ours, digits[:200], tolerance=0.01, generator=torch.Generator().manual_seed(1))
    paper = make_mlp(64, 32, 32, 32, 10)
    I.orthogonal_(paper, activation="linear", generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name in ("0", "2", "4", "6"):
            for _ in range(10):
                variance = variances(paper, [digits[:200]])[name]
                if abs(variance - 1) < 0.01:
                    break
                paper[int(name)].weight /= math.sqrt(variance)
    for a, b in zip(ours.parameters(), paper.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_transformers_attention_is_scaled_by_its_output() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    x = torch.randn(64, 6, 16)
    done = I.lsuv_(model, x, tolerance=0.02, phase="eval")
    assert done.reached
    model.eval()
    out = model.self_attn(x, x, x)[0].detach()
    assert float(out.var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("method", ["lsuv_", "data_dependent_", "alive_", "check"])
def test_mode_buffers_random_state_and_gradients_stay(method: str, residual, images) -> None:
    residual.bn.eval()  # mixed modes, as when a part is kept frozen
    buffers = {n: b.detach().clone() for n, b in residual.named_buffers()}
    modes = [m.training for m in residual.modules()]
    for p in residual.parameters():
        p.grad = torch.ones_like(p)
    rng = torch.get_rng_state()
    extra = {"generator": torch.Generator().manual_seed(0)} if method in ("lsuv_", "data_dependent_") else {}
    getattr(I, method)(residual, images[:64], **extra)
    assert all(torch.equal(b, buffers[n]) for n, b in residual.named_buffers())
    assert [m.training for m in residual.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.is_leaf and bool((p.grad == 1).all()) for p in residual.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in residual.modules())


@pytest.mark.parametrize("method", ["lsuv_", "data_dependent_"])
def test_a_constant_output_is_named_and_nothing_is_changed(method: str, make_mlp, digits) -> None:
    model = make_mlp(64, 16, 16, 10)
    model.insert(2, nn.Threshold(1e9, 0.0))  # nothing passes
    before = state(model)
    with pytest.raises(RelumeError, match=r"layer '3' gives a constant output.*exclude='3'"):
        getattr(I, method)(model, digits[:64])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert "excluded" in [e.why for e in getattr(I, method)(model, digits[:64], exclude=["3", "5"]).left]


def test_a_layer_that_does_not_get_there_is_named(digits) -> None:
    """Spectral norm takes every scale out of the weight again."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, 2))
    done = I.lsuv_(model, 0.01 * digits[:128], max_iterations=3)
    assert not done.reached
    assert done["0"].reached is False
    assert done["2"].reached is True
    assert "'0' (parametrized by SpectralNorm) did not reach variance 1" in done.notes[0]
    assert "!" in str(done)


def test_weights_already_there_are_only_scaled_without_pre_init(make_mlp, digits) -> None:
    model = make_mlp(64, 16, 10)
    before = model[0].weight.detach().clone()
    done = I.lsuv_(model, digits[:128], pre_init=False)
    ratio = model[0].weight / before
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)
    assert done["0"].what == "as it was"


def test_a_layer_the_batches_do_not_reach_is_drawn_and_said_so(make_mlp, digits) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(64, 8), nn.Linear(64, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x).relu()

    done = I.lsuv_(Unused(), digits[:64])
    assert done["spare"].variance is None
    assert "'spare' was not called" in done.notes[0]


def test_a_module_used_twice_is_scaled_at_its_first_use(digits) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Linear(64, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            h = self.again(self.first(x).relu())
            return self.again(3 * h.relu())

    model = Twice()
    done = I.lsuv_(model, digits[:128], tolerance=0.02)
    with torch.no_grad():
        h = model.again(model.first(digits[:128]).relu())
        again = model.again(3 * h.relu())
    assert float(h.var(unbiased=False)) == pytest.approx(1, abs=0.02)
    pooled = float(torch.cat([h, again]).var(unbiased=False))
    assert done["again"].variance == pytest.approx(pooled, rel=1e-3)


@pytest.mark.parametrize("setting", [{"tolerance": 0}, {"max_iterations": 0}, {"phase": "test"}, {"bias": "alive"}])
def test_settings_are_checked(setting: dict, make_mlp, digits) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        I.lsuv_(make_mlp(64, 8, 2), digits[:8], **setting)
