"""Where part of the evidence is missing or misleading: the right cause or "cannot tell", never a wrong one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.diagnose.causes import diagnose
from relume.diagnose.record import Record


def run(model, digits, optimizer, *, steps=100, watched="same", shape=(64,), penalty=lambda s: 0.0, every=1, window=20):
    """Train on digits; `watched` is the optimizer that the watch is told of."""
    x, y = digits
    told = optimizer if watched == "same" else watched
    drawn = torch.Generator().manual_seed(4)
    with relume.watch(model, told, every=every, window=window) as watch:
        record = Record.on(watch)
        for step in range(steps):
            rows = torch.randint(len(x), (64,), generator=drawn)
            loss = F.cross_entropy(model(x[rows].reshape(-1, *shape)), y[rows]) + penalty(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch, record


def killed(findings, *others):
    """Codes by units, of deaths after birth."""
    return {f.code: len(f.units) for f in findings if f.code not in ("born-dead", "sparse", "silent-site", *others)}


def mlp(units=64):
    return nn.Sequential(nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10))


def hot(model):
    return torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9)


def test_without_an_optimizer_steps_that_kill_are_told_only_where_the_fall_itself_says_so(digits):
    model = mlp()
    found = killed(diagnose(*run(model, digits, hot(model), watched=None)))
    assert sum(found.values()) >= 20
    assert set(found) <= {"killed-by-step", "unknown-cause"}


def test_with_an_optimizer_that_does_not_hold_the_layer_no_learning_rate_is_named(digits):
    model = mlp()
    wrong = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=123.0)
    optimizer = hot(model)
    optimizer.register_step_post_hook(lambda *_: wrong.step())
    with pytest.warns(relume.RelumeWarning, match="holds no parameter"):
        findings = diagnose(*run(model, digits, optimizer, watched=wrong))
    assert set(killed(findings)) <= {"killed-by-step", "unknown-cause"}
    for finding in findings:
        assert "123" not in finding.sentence
        assert finding.evidence.get("lr") != 123.0


class Unknown(nn.Module):
    """Its producer is a matrix product with a bare parameter."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(64, 64) / 8), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(F.relu(x @ self.w))


def test_deaths_above_an_unknown_producer_are_of_unknown_cause_and_say_why(digits):
    model = Unknown()
    findings = diagnose(*run(model, digits, hot(model)))
    deaths = [f for f in findings if f.code not in ("born-dead", "sparse", "exploding-gradient", "silent-site")]
    assert [f.code for f in deaths] == ["unknown-cause"]
    assert "unknown producer" in deaths[0].evidence["why"]
    assert "unknown producer" in deaths[0].sentence


def test_a_frozen_first_layer_is_not_blamed_for_what_its_input_does(digits):
    x, y = digits
    model = mlp()
    with torch.no_grad():
        model[0].weight.abs_()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.01)
    with relume.watch(model, optimizer, every=1, window=20) as watch:
        record = Record.on(watch)
        for step in range(60):
            batch = x[:64].reshape(64, 64) - (5.0 if step >= 30 else 0.0)
            optimizer.zero_grad()
            F.cross_entropy(model(batch), y[:64]).backward()
            optimizer.step()
    assert killed(diagnose(watch, record)) == {"input-shift": 64}


def test_a_frozen_weight_under_a_drifting_bias_is_bias_drift(digits):
    model = mlp()
    model[0].weight.requires_grad_(False)
    bias = model[0].bias
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    found = killed(diagnose(*run(model, digits, optimizer, penalty=lambda s: 1.0 * bias.sum())))
    assert found.pop("bias-drift") >= 40
    assert set(found) <= {"unknown-cause"}


class Tied(nn.Module):
    """One layer used twice, before two sites."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.out(F.relu(self.fc(F.relu(self.fc(x)))))


def test_a_tied_layer_whose_bias_drifts_is_bias_drift_at_its_first_site(digits):
    model = Tied()
    bias = model.fc.bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    findings = diagnose(*run(model, digits, optimizer, penalty=lambda s: 1.0 * bias.sum()))
    first = {f.code: len(f.units) for f in findings if f.site == ":relu" and f.code != "silent-site"}
    assert max(first, key=first.get) == "bias-drift"
    assert not {f.code for f in findings} & {"killed-by-step", "weight-decay", "input-shift"}


@pytest.mark.parametrize("decoupled", [True, False])
def test_weight_decay_is_told_for_adamw_and_for_adam_whose_share_of_it_is_not_known(decoupled, digits):
    model = mlp()
    with torch.no_grad():
        model[0].bias.uniform_(-0.3, -0.1)
    groups = [
        {"params": [model[0].weight], "weight_decay": 20.0 if decoupled else 0.2},
        {"params": [model[0].bias, *model[2].parameters()]},
    ]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    found = killed(diagnose(*run(model, digits, kind(groups, lr=0.003, weight_decay=0.0))))
    assert sum(found.values()) >= 5
    assert max(found, key=found.get) == "weight-decay" if decoupled else set(found) <= {"unknown-cause", "weight-decay"}


def test_divergence_is_told_from_death(digits):
    model = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 10))
    findings = diagnose(*run(model, digits, torch.optim.SGD(model.parameters(), lr=30.0, momentum=0.9)))
    assert findings[0].code == "exploding-gradient"
    assert findings[0].severity == "error"
    assert findings[0].evidence["lr"] == 30.0


def test_divergence_is_told_without_an_optimizer(digits):
    model = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1000.0, momentum=0.9)
    findings = diagnose(*run(model, digits, optimizer, watched=None))
    assert findings[0].code == "exploding-gradient"


def test_a_watch_that_has_seen_no_whole_window_can_be_diagnosed(digits):
    model = mlp()
    x, y = digits
    optimizer = hot(model)
    with relume.watch(model, optimizer, every=1, window=1000) as watch:
        record = Record.on(watch)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(x[:512].flatten(1)), y[:512]).backward()
            optimizer.step()
        assert [f for f in diagnose(watch, record) if f.severity == "error"] == []
    assert isinstance(diagnose(watch, record), list)
