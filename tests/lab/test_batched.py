"""Members trained together come out as those trained by themselves: parameters, scores, and who is dead."""

import dataclasses

import pytest
import torch

from relume.errors import RelumeError
from relume.lab import CantStackError, Member, run_batched, run_member, tasks
from relume.lab.alone import train_alone
from relume.lab.batched import train_together

SHORT = {"steps": 50, "window": 20, "every": 4}  # the last window is cut short


@pytest.fixture
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def assert_alike(together, alone, tolerance=1e-9):
    (result, model), (by_itself, its_model) = together, alone
    assert result.member == by_itself.member
    assert list(model.state_dict()) == list(its_model.state_dict())
    for a, b in zip(model.state_dict().values(), its_model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert result.scores == pytest.approx(by_itself.scores, abs=1e-9)
    assert result.curves.loss == pytest.approx(by_itself.curves.loss, rel=tolerance)
    assert result.curves.validation == pytest.approx(by_itself.curves.validation, abs=1e-9)
    assert (result.curves.step, result.curves.dead) == (by_itself.curves.step, by_itself.curves.dead)
    assert result.sites == by_itself.sites
    assert result.diverged == by_itself.diverged
    assert all(bool(p.isfinite().all()) for p in model.parameters())


CASES = {
    "learning rates that kill": [{"lr": lr} for lr in (0.05, 0.5, 1.0, 3.0)],
    "initializations": [{"init": init, "lr": 0.2} for init in tasks.INITS],
    "activations": [{"activation": a} for a in ("relu", "elu", "drelu", "relu", "prelu", "relu6", "leaky_relu(0.2)")],
    "momentum and decay": [{"optimizer": "momentum", "weight_decay": d, "lr": 0.1} for d in (0.0, 0.1)],
    "plain decay": [{"weight_decay": d} for d in (0.01, 0.1)],
    "Adam": [{"optimizer": "adam", "lr": lr, "weight_decay": 0.01} for lr in (0.01, 0.1)],
    "AdamW": [{"optimizer": "adamw", "lr": lr, "weight_decay": d} for lr, d in ((0.01, 0.1), (0.1, 0.0))],
    "batch norm": [{"norm": "batch", "lr": lr, "activation": a} for lr, a in ((0.1, "relu"), (0.3, "drelu"))],
    "layer norm": [{"norm": "layer", "lr": lr} for lr in (0.1, 2.0)],
    "text": [{"task": "docstrings", "optimizer": "adam", "lr": lr} for lr in (0.01, 0.1)],
    "images": [{"task": "digits-cnn", "width": 6, "norm": "batch", "activation": a} for a in ("prelu", "relu")],
    "images, layers": [{"task": "digits-cnn", "width": 6, "norm": "layer", "activation": a} for a in ("drelu", "gelu")],
    "images, killed": [{"task": "digits-cnn", "width": 6, "depth": 3, "lr": lr} for lr in (0.1, 4.0)],
    "deep and narrow": [{"task": "sine", "depth": 8, "width": 3, "lr": 0.05}] * 4,
    "continual": [{"task": "permuted-digits", "steps": 230, "window": 100, "every": 10, "lr": lr} for lr in (0.1, 0.3)],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_together_is_as_alone(case, in_float64):
    members = [Member(**{"task": "digits", **SHORT, **of, "seed": seed}) for seed, of in enumerate(CASES[case])]
    dead = 0
    for member, together in zip(members, train_together(members), strict=True):
        assert together[0].member == member
        assert_alike(together, train_alone(member, diagnose=False))
        dead += together[0].dead
    if "kill" in case or "narrow" in case:
        assert dead > 0  # else the censuses agree on nothing


def test_in_float32_rounding_is_all_that_differs():
    members = [Member("digits", lr=lr, seed=seed, **{**SHORT, "steps": 20}) for seed, lr in enumerate((0.05, 0.1, 0.3))]
    for together, member in zip(train_together(members), members, strict=True):
        for a, b in zip(together[1].parameters(), train_alone(member, diagnose=False)[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_dead_are_those_that_never_fire_on_the_training_data():
    members = [Member("digits", lr=lr, seed=seed, **SHORT) for seed, lr in enumerate((0.1, 1.0, 2.0))]
    x = tasks.get("digits").data(0).train.x
    found = train_together(members)
    for result, model in found:
        with torch.no_grad():
            z = model.hidden1(x)
        assert result.sites["act1"].dead == tuple(torch.nonzero((z <= 0).all(0)).flatten().tolist())
    assert len({result.sites["act1"].dead for result, _ in found}) > 1


def test_one_that_diverges_leaves_the_others_as_they_were():
    calm = Member("sine", activation="leaky_relu", lr=0.01, **SHORT)
    wild = dataclasses.replace(calm, lr=100.0, seed=1)
    first, second, third = run_batched([calm, wild, dataclasses.replace(calm, seed=2)])
    assert (first.diverged, second.diverged, third.diverged) == (False, True, False)
    assert second.scores["test"] != second.scores["test"]
    assert run_member(wild, diagnose=False).diverged
    assert first.scores["test"] == pytest.approx(run_member(calm, diagnose=False).scores["test"], rel=1e-4)


def test_seconds_are_shared_and_no_cause_is_claimed():
    results = run_batched([Member("digits", seed=s, **SHORT) for s in (0, 1)])
    assert results[0].seconds == results[1].seconds > 0
    assert results[0].causes is None
    assert run_batched([]) == []


def test_the_random_state_is_as_it_was():
    state = torch.get_rng_state()
    run_batched([Member("digits", **SHORT)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("others", "error", "said"),
    [
        ([{"width": 16}], RelumeError, "width 32 and 16"),
        ([{"optimizer": "adam", "split": 1}], RelumeError, "optimizer 'sgd' and 'adam', split 0 and 1"),
        ([{"treatment": "guard"}], RelumeError, "use run_member"),
        ([{"activation": "rrelu"}], CantStackError, "at random"),
    ],
)
def test_what_can_not_be_trained_together_is_refused(others, error, said):
    with pytest.raises(error, match=said):
        run_batched([Member("digits", **SHORT), *(Member(**{"task": "digits", **SHORT, **o}) for o in others)])


def test_a_transformer_is_refused():
    with pytest.raises(CantStackError, match="Transformer"):
        run_batched([Member("docstrings-transformer", **SHORT)])
