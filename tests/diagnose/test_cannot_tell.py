"""Trainings of an unusual make: the right cause or "cannot tell" with the reason, never a wrong one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.diagnose.causes import diagnose as causes_of


def run(model, digits, optimizer, *, steps=120, window=20, shape=(64,), step=None, penalty=lambda: 0.0, tokens=None):
    """Train on digits, or on what `tokens` makes of them; `step` replaces the optimizer's."""
    x, y = digits
    drawn = torch.Generator().manual_seed(4)
    with relume.watch(model, optimizer, every=1, window=window) as watch:
        for i in range(steps):
            rows = torch.randint(len(x), (64,), generator=drawn)
            given = x[rows].reshape(-1, *shape) if tokens is None else tokens(x[rows])
            optimizer.zero_grad() if step is None or i % 2 == 0 else None
            loss = F.cross_entropy(model(given), y[rows]) + penalty()
            loss.backward()
            step(i) if step is not None else optimizer.step()
    return watch


def codes(watch, *others):
    """Codes of deaths after birth, by units."""
    found = {}
    for f in relume.diagnose(watch):
        if f.code not in ("born-dead", "sparse", "silent-site", "exploding-gradient", *others):
            found[f.code] = found.get(f.code, 0) + len(f.units)
    return found


def mlp():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


class Attention(nn.Module):
    """A ReLU straight on what attention gives out."""

    def __init__(self):
        super().__init__()
        self.attention, self.act, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.ReLU(), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.act(self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Functional(nn.Module):
    """Its first layer is a function of bare parameters."""

    def __init__(self, call):
        super().__init__()
        self.call, self.head = call, nn.Linear(48, 10)
        self.w, self.b = nn.Parameter(torch.randn(48, 64) / 8), nn.Parameter(torch.zeros(48))

    def forward(self, x):
        return self.head(torch.relu(self.call(x, self.w, self.b)))


class Shared(nn.Module):
    """Two layers that share one parameter."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b: F.linear(x, w, b),
        lambda x, w, b: torch.einsum("ni,oi->no", x, w) + b,
        lambda x, w, b: torch.addmm(b, x, w.T),
    ],
    ids=["linear", "einsum", "addmm"],
)
def test_above_a_function_of_bare_parameters_the_cause_can_not_be_told_and_the_reason_is_said(call, digits):
    model = Functional(call)
    bias = model.b
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    watch = run(model, digits, optimizer, penalty=lambda: 1.0 * bias.sum())
    assert set(codes(watch)) == {"unknown-cause"}
    assert sum(codes(watch).values()) >= 30
    (finding,) = [f for f in relume.diagnose(watch) if f.code == "unknown-cause"]
    assert "producer" in finding.evidence["why"]
    assert finding.evidence["certainty"] == 0


def test_above_attention_the_cause_is_the_bias_of_its_projection_or_can_not_be_told(digits):
    torch.manual_seed(0)
    model = Attention()
    bias = model.attention.out_proj.bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    watch = run(model, digits, optimizer, shape=(8, 8), penalty=lambda: 1.0 * bias.sum())
    found = codes(watch)
    assert sum(found.values()) >= 4
    assert set(found) <= {"bias-drift", "unknown-cause"}


def test_a_parameter_that_two_layers_share_is_followed_in_both(digits):
    model = Shared()
    push = model.a.bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    findings = relume.diagnose(run(model, digits, optimizer, penalty=lambda: 1.0 * push.sum()))
    first = [f for f in findings if f.site == ":relu" and f.code not in ("silent-site", "sparse", "born-dead")]
    assert max(first, key=lambda f: len(f.units)).code == "bias-drift"
    assert not {f.code for f in findings} & {"killed-by-step", "weight-decay", "input-shift", "weight-drift"}


def test_gradients_added_up_over_two_batches_hide_no_bias_drift(digits):
    model = mlp()
    push = model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    watch = run(
        model,
        digits,
        optimizer,
        steps=240,
        penalty=lambda: 0.5 * push.sum(),
        step=lambda i: optimizer.step() if i % 2 else None,
    )
    found = [
        f for f in relume.diagnose(watch) if f.site == "1" and f.code not in ("silent-site", "sparse", "born-dead")
    ]
    assert max(found, key=lambda f: len(f.units)).code == "bias-drift"


def test_steps_that_a_scaler_skips_are_no_steps_that_killed(digits):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=10_000)
    x, y = digits
    with relume.watch(model, optimizer, every=1, window=20) as watch:
        for i in range(80):
            rows = slice(i * 16, i * 16 + 64)
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x[rows].flatten(1)), y[rows])).backward()
            if i % 7 == 0:
                model[0].weight.grad[0, 0] = torch.inf  # as half precision would give
            scaler.step(optimizer)
            scaler.update()
    # Scaled gradients that are not finite belong to steps that were never made.
    assert not [f for f in relume.diagnose(watch) if f.severity != "note"]


def test_each_group_is_told_by_its_own_learning_rate(digits):
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2:].parameters(), "lr": 20.0}]
    findings = relume.diagnose(run(model, digits, torch.optim.SGD(groups)))
    killed = [f for f in findings if f.code == "killed-by-step" and f.site == "3"]
    assert killed
    assert killed[0].evidence["lr"] == 20.0
    assert not [f for f in findings if f.code == "killed-by-step" and f.site == "1" and f.severity != "note"]


def test_where_nothing_was_recorded_dead_units_are_still_said_to_be_dead(digits):
    model = mlp()
    with torch.no_grad():
        model[0].bias[:30] = -50
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = digits
    with relume.watch(model, optimizer, every=1, window=20) as watch:
        watch.record.stop("it was told to stop")
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x[:64].flatten(1)), y[:64]).backward()
            optimizer.step()
    found = next(f for f in causes_of(watch, watch.record) if f.site == "1")
    assert found.code == "unknown-cause"
    assert len(found.units) >= 30
    assert "it was told to stop" in found.sentence


def test_a_residual_stream_is_no_input_of_the_model(digits):
    """Nothing but linear layers lies below the second block, so no site tells of what they send up."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.head, self.act = nn.Linear(32, 10), nn.ReLU()

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.act(self.b(x + self.a(x))))

    torch.manual_seed(1)
    model = Net()
    found = codes(run(model, digits, torch.optim.AdamW(model.parameters(), 0.2)))
    assert sum(found.values()) >= 5
    assert "input-shift" not in found
