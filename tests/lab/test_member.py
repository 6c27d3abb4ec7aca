"""One training by itself: keys, the loop, who is found dead and why."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from relume.errors import UnknownActivationError
from relume.lab import Member, Result, run_member, tasks
from relume.lab.alone import train_alone, window_means
from relume.lab.setup import order_of

SHORT = {"steps": 60, "window": 20, "every": 4}
OTHER = {
    "task": "spirals", "activation": "elu", "init": "rai", "norm": "layer", "lr": 0.2, "optimizer": "adam",
    "weight_decay": 0.1, "depth": 3, "width": 33, "treatment": "guard", "seed": 1, "split": 1, "steps": 501,
    "batch": 65, "every": 11, "window": 101,
}  # fmt: skip


def test_every_setting_changes_the_key():
    member = Member("digits")
    assert set(OTHER) == {f.name for f in dataclasses.fields(Member)}
    keys = {member.key, *(dataclasses.replace(member, **{name: value}).key for name, value in OTHER.items())}
    assert len(keys) == len(OTHER) + 1


def test_a_key_is_the_same_in_another_process_and_for_equal_numbers():
    code = "from relume.lab import Member; print(Member('digits', lr=1).key)"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == Member("digits", lr=1.0).key == Member.from_dict(Member("digits", lr=1).to_dict()).key


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"task": "digit"}, ValueError, "close to it: digits"),
        ({"activation": "rleu"}, UnknownActivationError, "close to it: relu"),
        ({"norm": "group"}, ValueError, "none, batch, layer"),
        ({"init": "kaiming"}, ValueError, "he, glorot"),
        ({"optimizer": "lion"}, ValueError, "sgd, momentum, adam, adamw"),
        ({"treatment": "prayer"}, ValueError, "none, guard"),
        ({"lr": -0.1}, ValueError, "lr is a number not below 0"),
        ({"lr": float("nan")}, ValueError, "lr is a number"),
        ({"depth": 0}, ValueError, "depth is a whole number not below 1"),
        ({"seed": -1}, ValueError, "seed is a whole number not below 0"),
        ({"steps": 2.5}, ValueError, "steps is a whole number"),
        ({"every": 200}, ValueError, "a window of 100 steps"),
        ({"depht": 3}, ValueError, "depht.*depth"),
    ],
)
def test_a_setting_that_is_not_accepted_is_refused(settings, error, said):
    with pytest.raises(error, match=said):
        Member.from_dict({"task": "digits", **settings})


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_each_epoch_shows_no_input_twice_and_every_batch_is_full(inputs, batch, steps, seed):
    order = order_of(Member("digits", batch=batch, steps=steps, seed=seed), inputs)
    size = min(batch, inputs)
    assert order.shape == (steps, size)
    assert 0 <= int(order.min()) <= int(order.max()) < inputs
    in_epoch = inputs // size
    for start in range(0, steps, in_epoch):
        seen = order[start : start + in_epoch].flatten().tolist()
        assert len(set(seen)) == len(seen)


def test_another_seed_shows_the_inputs_in_another_order():
    first, again, other = (order_of(Member("digits", seed=s), 1000) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_loop_is_the_one_that_anybody_would_write():
    member = Member("digits", lr=0.2, optimizer="momentum", weight_decay=1e-3, seed=4, **SHORT)
    result, trained = train_alone(member, diagnose=False)
    data = tasks.get("digits").data(0)
    model = tasks.get("digits").model(seed=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    losses = []
    for rows in order_of(member, len(data.train.x)):
        loss = F.cross_entropy(model(data.train.x[rows]), data.train.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    for a, b in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert result.curves.step == (20, 40, 60)
    assert result.curves.loss == pytest.approx([sum(losses[i : i + 20]) / 20 for i in (0, 20, 40)], rel=1e-5)
    right = (model(data.test.x).argmax(1) == data.test.y).double().mean()
    assert result.scores["test"] == pytest.approx(float(right))
    assert result.curves.validation[-1] == result.scores["validation"]


def test_a_learning_rate_that_kills_is_found_to_have_killed():
    member = Member("digits", lr=3.0, steps=120, window=20, every=2, seed=1)
    result, model = train_alone(member)
    x = tasks.get("digits").data(0).train.x
    with torch.no_grad():
        first = model.hidden1(x)
        second = model.hidden2(first.relu())
    for name, z in (("act1", first), ("act2", second)):
        assert result.sites[name].dead == tuple(torch.nonzero((z <= 0).all(0)).flatten().tolist())
    assert result.dead > 32
    assert result.units == 64
    assert result.curves.dead[-1] == sum(len(s.born_dead) + len(s.died_at) for s in result.sites.values())
    assert sum(result.causes.get(c, 0) for c in ("killed-by-step", "upstream-cascade", "silent-site")) > 32
    assert all(0 <= step < 120 for s in result.sites.values() for step in s.died_at.values())


def test_guard_saves_units_that_die_without_it():
    doomed = Member("digits", lr=0.5, depth=4, steps=200, window=20, every=2, seed=3)
    without = run_member(doomed, diagnose=False)
    under_guard = run_member(dataclasses.replace(doomed, treatment="guard"), diagnose=False)
    assert without.causes is None
    assert without.dead > 10
    assert under_guard.dead < without.dead


def test_the_penalty_changes_the_training():
    plain = Member("digits", lr=0.5, **SHORT)
    assert run_member(plain).curves.loss != run_member(dataclasses.replace(plain, treatment="penalty")).curves.loss


def test_a_diverged_training_says_so():
    result = run_member(Member("sine", activation="leaky_relu", lr=50.0, **SHORT), diagnose=False)
    assert result.diverged
    assert result.scores["test"] != result.scores["test"]


def test_twice_the_same_and_the_random_state_as_it_was():
    member = Member("digits", activation="rrelu", **SHORT)
    state = torch.get_rng_state()
    first = run_member(member)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = run_member(member)
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(again, seconds=0.0)
    assert first != run_member(dataclasses.replace(member, seed=1))


def test_a_result_survives_json():
    result = run_member(Member("digits", lr=3.0, **SHORT))
    assert any(site.died_at for site in result.sites.values())
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_continual_digits_are_unlearnt_by_each_permutation():
    result = run_member(Member("permuted-digits", lr=0.2, steps=400, window=50, every=10), diagnose=False)
    assert result.curves.loss[4] > 2 * result.curves.loss[3]  # the permutation came between them
    assert result.scores["test"] > 0.85


@pytest.mark.parametrize(
    ("task", "lr", "steps", "better_than"),
    [("spirals", 0.01, 800, 0.9), ("docstrings", 0.02, 150, 0.6), ("docstring-kinds", 0.02, 100, 0.65),
     ("docstrings-transformer", 0.01, 60, 0.35), ("digits-cnn", 0.01, 100, 0.85), ("abs", 0.01, 200, 0.1),
     ("step", 0.01, 300, 0.2)],
)  # fmt: skip
def test_what_is_to_be_learnt_can_be_learnt(task, lr, steps, better_than):
    width = 16 if task in ("digits-cnn", "docstrings-transformer") else 32
    member = Member(task, lr=lr, optimizer="adam", steps=steps, width=width, depth=1 if width == 16 else 2)
    score = run_member(member, diagnose=False).scores["test"]
    assert score > better_than if tasks.get(task).higher_is_better else score < better_than


def test_means_of_windows():
    assert window_means(torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]), [2, 4, 5]) == (2.0, 6.0, 9.0)
