"""Cart and pole: play that is known to balance, the targets of Q-learning, what the census counts, treatments."""

import dataclasses
import random
import sys

import pytest
import torch

from relume.errors import MissingExtraError, RelumeError
from relume.lab import CantStackError, Member, run_batched, run_member, tasks
from relume.lab.tasks.control import EPISODES, CartPole
from relume.watch import watch

pytest.importorskip("gymnasium")
SHORT = {"optimizer": "adam", "lr": 0.003, "steps": 60, "window": 20, "every": 4}


def linear(weights, bias=(0.0, 0.0)):
    """A value network that can be written down: of position, speed, angle, angular speed, each as scaled."""
    model = torch.nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 4, weights]))
        model.bias.copy_(torch.tensor(bias))
    return model


BALANCING = (0.1, 0.3, 1.0, 1.5)


def lesson_of(model, batch=64, **settings):
    return CartPole(**settings).lesson(model, batch=batch, steps=100, seed=0, split=0)


def test_a_controller_that_balances_scores_500_and_one_that_always_pushes_right_about_9():
    task = tasks.get("cartpole")
    assert task.play(linear(BALANCING)) == (500.0,) * EPISODES
    pushing = task.play(linear((0.0,) * 4, (0.0, 1.0)))
    assert all(8 <= value <= 11 for value in pushing)


def test_parts_and_splits_start_elsewhere_and_always_at_the_same_places():
    task, model = tasks.get("cartpole"), linear((0.0, 0.0, 1.0, 0.0))
    played = {
        (part, split): task.play(model, part, split) for part in ("train", "validation", "test") for split in (0, 1)
    }
    assert len(set(played.values())) == 6
    assert task.play(model, "validation", 1) == played["validation", 1]


def test_play_leaves_the_model_in_its_mode():
    model = torch.nn.Sequential(linear(BALANCING), torch.nn.Dropout(0.9))
    assert tasks.get("cartpole").play(model) == (500.0,) * EPISODES  # nothing is dropped while it plays
    assert model.training
    assert model[1].training


def test_data_say_what_followed_in_random_play():
    task = tasks.get("cartpole")
    y = task.data(0).train.y
    # Values fall by the rule v = 1 + γ v', from step to step, down to 1 where an episode ends.
    ends = y[:, 1] == 1
    assert 3 <= int(ends.sum()) <= 30
    going = ~ends[:-1]
    torch.testing.assert_close(y[:-1, 1][going], 1 + 0.95 * y[1:, 1][going])
    assert set(y[:, 0].tolist()) == {0.0, 1.0}


def test_the_loss_is_that_of_huber_for_the_action_taken():
    output = torch.tensor([[1.0, 5.0], [2.0, 0.0], [0.0, 0.5]])
    y = torch.tensor([[1.0, 2.0], [0.0, 2.5], [1.0, 0.5]])
    assert tasks.get("cartpole").losses(output, y).tolist() == [2.5, 0.125, 0.0]


def test_values_are_learnt_towards_reward_and_what_the_target_network_expects():
    lesson = lesson_of(linear((0.0,) * 4, (10.0, 10.0)), batch=1000, discount=0.99)
    # To 1 at the end of the world: off by 9; else to 1 + 0.99 · 10: off by 0.9.
    loss = lesson.loss(0).item()
    fell = (loss - 0.405) / (8.5 - 0.405) * 1000
    assert fell == pytest.approx(round(fell), abs=0.02)
    assert 20 < fell < 80


def test_the_time_limit_is_no_end_of_the_world():
    lesson = lesson_of(linear(BALANCING), warm=0, plays=600, exploring=0.0, least=0.0)
    lesson.loss(0)  # at random
    lesson.loss(1)  # as it was taught
    assert int((lesson.between[:600, 2] == 0).sum()) > 10
    assert int((lesson.between[620:1200, 2] == 0).sum()) == 0
    jumps = (lesson.before[621:1200] - lesson.after[620:1199]).abs().amax(1) > 0
    assert int(jumps.sum()) == 1  # yet the next episode has begun


def test_the_target_network_stands_still_between_two_syncs():
    model = linear((0.0,) * 4, (10.0, 10.0))
    lesson = lesson_of(model, batch=1000, discount=0.99, synced=3)
    with torch.no_grad():
        model.bias.fill_(0.0)
    # Off by 10.9 or, at the end, by 1 while the target expects 10; by 1 everywhere once it is synced.
    assert lesson.loss(2).item() > 9
    assert lesson.loss(3).item() == pytest.approx(0.5)
    assert not any(p.requires_grad for p in lesson.target.parameters())


def test_the_memory_holds_the_latest():
    lesson = lesson_of(linear(BALANCING), warm=30, plays=4, memory=50)
    assert len(lesson.inputs(0)) == 30
    for step in range(4):
        lesson.loss(step)
    assert len(lesson.inputs(3)) == 46
    first = lesson.before[0].clone()
    for step in range(4, 6):
        lesson.loss(step)
    assert len(lesson.inputs(5)) == 50
    assert not torch.equal(lesson.before[0], first)


def test_the_census_counts_replayed_batches_and_no_play():
    model = tasks.get("cartpole").model(width=8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    lesson = lesson_of(model, batch=32)
    with watch(model, optimizer, every=2, window=10, min_inputs=1) as watched:
        for step in range(10):
            optimizer.zero_grad()
            lesson.loss(step).backward()
            optimizer.step()
        lesson.score("validation", 9)
    assert watched.census()["act1"].inputs == 5 * 32
    assert [set(window.counts) for window in watched.windows] == [{"train"}]


def test_it_learns():
    scores = [
        run_member(Member("cartpole", **{**SHORT, "steps": 500, "window": 250}, seed=s), diagnose=False).scores
        for s in (0, 1)
    ]
    assert sum(s["test"] for s in scores) / 2 > 50, scores


def test_twice_the_same_and_all_random_states_as_they_were():
    import numpy

    member = Member("cartpole", activation="rrelu", **SHORT)
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    first = run_member(member)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]
    again, other = run_member(member), run_member(dataclasses.replace(member, seed=1))
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(again, seconds=0.0)
    assert first.curves.loss != other.curves.loss
    assert set(first.scores) == {"train", "validation", "test"}
    assert first.curves.validation[-1] == first.scores["validation"]
    assert first.causes is not None


def test_units_killed_by_the_learning_rate_are_found_and_treatments_save_some():
    doomed = Member("cartpole", **{**SHORT, "lr": 0.1, "steps": 150, "every": 2})
    plain, guarded, penalized = (
        run_member(dataclasses.replace(doomed, treatment=t)) for t in ("none", "guard", "penalty")
    )
    assert plain.dead > 20
    assert sum(plain.causes.values()) > 0
    assert guarded.dead < plain.dead
    assert penalized.dead < plain.dead


def test_batch_norm_plays_single_states_in_evaluation():
    result = run_member(Member("cartpole", norm="batch", **SHORT), diagnose=False)
    assert not result.diverged
    assert all(8 <= score <= 500 for score in result.scores.values())


def test_a_diverged_value_network_scores_nothing():
    result = run_member(Member("cartpole", **{**SHORT, "optimizer": "sgd", "lr": 1e20}), diagnose=False)
    assert result.diverged
    assert all(score != score for score in result.scores.values())


def test_it_is_not_trained_with_others_nor_scored_by_outputs():
    with pytest.raises(CantStackError, match="learns from its own play: use run_member"):
        run_batched([Member("cartpole", **SHORT)])
    with pytest.raises(RelumeError, match="scored by play"):
        tasks.get("cartpole").score(torch.zeros(3, 2), torch.zeros(3, 2))


def test_without_gymnasium_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"gymnasium.*relume\[lab\]"):
        run_member(Member("cartpole", **SHORT))
