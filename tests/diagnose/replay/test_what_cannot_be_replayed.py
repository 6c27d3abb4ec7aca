"""Where a replay does not come to where the training did, it says so and why, and gives no verdict."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.diagnose.finding import Finding

STEPS = 24


def _doomed(data, *, watch_options=None, step=None, model=None, optimizer=None, loss=None):
    """A training whose units die of its learning rate; `step(model, optimizer, loss)` may do the step otherwise."""
    x, y = data
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = optimizer(model) if optimizer else torch.optim.SGD(model.parameters(), lr=3.0, momentum=0.9)
    drawn = torch.Generator().manual_seed(0)
    options = {"every": 1, "window": 6, "min_inputs": 64, "replay": True} | (watch_options or {})
    with relume.watch(model, optimizer, **options) as watch:
        for _ in range(STEPS):
            rows = torch.randint(len(x), (64,), generator=drawn)
            value = (loss or (lambda m, a, b: F.cross_entropy(m(a), b)))(model, x[rows], y[rows])
            optimizer.zero_grad()
            if step:
                step(model, optimizer, value)
            else:
                value.backward()
                optimizer.step()
    return watch


def _finding(watch):
    """Of all dead units of the first site, as a diagnosis would put it."""
    name = watch.sites[0].name
    timeline = watch.timeline(name)
    units = tuple((timeline.dead & (timeline.died_at >= 0)).nonzero().flatten().tolist())
    assert len(units) >= 8
    at = timeline.died_at[list(units)]
    evidence = {"of": timeline.units, "share": len(units) / timeline.units}
    return Finding(
        "killed-by-step", "error", name, units, (int(at.min()), int(at.max()) + 1), evidence, "They died.",
        _replay=watch.replay,
    )  # fmt: skip


def test_with_all_heard_the_learning_rate_is_confirmed(data):
    watch = _doomed(data)
    said = _finding(watch).confirm().confirmation
    assert said.confirmed is True
    assert said.change == "lr 0.3 instead of 3"
    assert said.dead < said.units / 2
    assert said.sentence == (
        f"confirmed: with lr 0.3 instead of 3 the same 24 batches kill {said.dead} of 32 units instead of {said.units}"
    )
    assert said.steps == (0, 24)


class Doubled(torch.autograd.Function):
    """Written in Python: what it does inside can be heard, but not that its gradient is another."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 1.5


class Hidden(nn.Module):
    """A part of its loss is no output."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        h = F.relu(self.a(x))
        loss_of_hidden.append(Doubled.apply(h.mean()))
        return self.b(h)


loss_of_hidden = []


def _numpy_edit(model, optimizer, loss):
    loss.backward()
    optimizer.step()
    model[0].bias.data.numpy()[0] -= 0.1


def _inside_backward(model, optimizer, loss):
    handle = model[0].bias.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    loss.backward()
    handle.remove()


def _several_evaluations(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"loss": lambda m, x, y: F.cross_entropy(Doubled.apply(m(x)), y)}, "the gradient of Doubled"),
        ({"model": Hidden(), "loss": lambda m, x, y: F.cross_entropy(m(x), y) + 9 * loss_of_hidden.pop()},
         "neither the model's output nor made from it"),
        ({"step": _numpy_edit}, "end elsewhere"),
        ({"step": _inside_backward}, "steps inside of the backward pass"),
    ],
    ids=["custom-gradient", "hidden-loss", "numpy-edit", "step-in-backward"],
)  # fmt: skip
def test_what_was_not_heard_is_said_and_nothing_is_confirmed(data, options, why):
    watch = _doomed(data, **options)
    said = _finding(watch).confirm().confirmation
    assert said.confirmed is None
    assert said.sentence.startswith("could not be replayed: ")
    assert why in said.sentence
    assert not said.tried


def test_a_closure_evaluated_several_times_is_not_replayed(data):
    x, y = data
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:64]), y[:64])
        loss.backward()
        return loss

    with relume.watch(model, optimizer, every=1, window=3, min_inputs=64, replay=True) as watch:
        for _ in range(6):
            optimizer.step(closure)
    assert "several times" in watch.replay.recorder.reel.segments[0].trouble


def test_a_compiled_model_is_refused(data):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model.compile(backend="eager")
    with relume.watch(model, replay=True) as watch:
        assert "compiled" in watch.replay.refused
        assert watch.replay.nbytes == 0


def test_a_snapshot_larger_than_the_limit_is_refused_with_its_size(data):
    watch = _doomed(data, watch_options={"replay": 10_000})
    said = _finding(watch).confirm().confirmation
    assert said.confirmed is None
    assert "replay=BYTES" in said.sentence
    assert watch.replay.nbytes == 0


def test_without_replay_confirm_says_how_to_have_one(data):
    watch = _doomed(data, watch_options={"replay": False})
    with pytest.raises(relume.RelumeError, match="replay=True"):
        _finding(watch).confirm()
    with pytest.raises(relume.RelumeError, match="replay=True"):
        watch.diagnose(confirm=True)
