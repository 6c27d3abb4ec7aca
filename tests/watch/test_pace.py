"""`every="auto"`: from measured step times to a stride that keeps watching within its budget."""

import pytest
import torch
from torch import nn

import relume
from relume.watch.pace import MOST, Pace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run(pace, clock, windows, *, usual, extra, window=200, jitter=lambda i: 0.0):
    step = 0
    for _ in range(windows):
        for _ in range(window):
            observed = step % pace.every == 0
            clock.now += usual + (extra if observed else 0.0) + jitter(step)
            pace.step(observed=observed)
            step += 1
        pace.choose()
        pace.pause()
    return pace.every


@pytest.mark.parametrize(
    ("usual", "extra", "every"), [(1e-3, 4e-4, 40), (1e-2, 1e-3, 10), (1.0, 0.03, 3), (1e-3, 1.0, MOST)]
)
def test_it_settles_where_the_extra_time_is_the_budget(usual, extra, every):
    clock = Clock()
    settled = run(Pace(0.01, clock), clock, 40, usual=usual, extra=extra)
    assert settled == pytest.approx(every, abs=1)
    assert extra / settled <= 0.0101 * usual or settled == MOST


def test_free_observation_is_done_often_but_never_at_every_step_as_it_could_not_be_compared_then():
    clock = Clock()
    assert run(Pace(0.01, clock), clock, 10, usual=1e-3, extra=0.0) == 2


def test_rare_slow_steps_do_not_mislead_it():
    clock = Clock()
    stumbling = run(Pace(0.01, clock), clock, 20, usual=1e-3, extra=4e-4, jitter=lambda i: 0.5 if i % 17 == 3 else 0.0)
    assert stumbling == pytest.approx(40, abs=1)


def test_it_follows_a_training_that_gets_slower():
    clock = Clock()
    pace = Pace(0.01, clock)
    assert run(pace, clock, 20, usual=1e-3, extra=4e-4) == pytest.approx(40, abs=1)
    assert run(pace, clock, 20, usual=1e-2, extra=4e-4) == pytest.approx(4, abs=1)


def test_too_little_ground_changes_nothing():
    pace = Pace(0.01, Clock())
    pace.step(observed=True)
    assert pace.choose() == 10
    assert pace.cost is None


def test_a_watch_shows_what_it_chose():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with relume.watch(model, optimizer, every="auto", window=100) as watch:
        assert watch.every == 10
        for _ in range(1000):
            model(torch.randn(32, 4)).mean().backward()
            optimizer.step()
    chosen = watch.about["every"]
    assert chosen == f"auto ({watch.every} at the end)"
    assert watch.every >= 2
    observed = sum(w.observed for w in watch.windows)
    assert 0 < observed <= 500


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, "much", True, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(ValueError, match="budget"):
        relume.watch(nn.Linear(2, 2), every="auto", budget=budget)


def test_a_word_other_than_auto_is_refused():
    with pytest.raises(ValueError, match="auto"):
        relume.watch(nn.Linear(2, 2), every="often")
