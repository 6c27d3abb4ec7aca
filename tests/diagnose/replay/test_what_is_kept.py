"""What is kept is bounded, the first and the gravest stay, and nothing of it is left on the model."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import relume
from relume.diagnose.replay.reel import Reel, Segment
from relume.diagnose.replay.snapshot import Snapshot, State

MIB = 2**20


def _segment(first, last, nbytes):
    model = nn.Linear(1, 1)
    return Segment(Snapshot.take(State.of(model, ()), (), ()), first, last, [], nbytes)


def _kept(reel):
    return [(s.first, s.last) for s in reel.segments]


def test_of_quiet_segments_the_oldest_go_but_for_the_first():
    reel = Reel(limit=59, window=10)  # and 8 bytes where an end must be kept
    for i in range(12):
        reel.add(_segment(10 * i, 10 * (i + 1), 10))
    assert _kept(reel) == [(0, 10), (80, 90), (90, 100), (100, 110), (110, 120)]


def test_segments_in_which_units_died_outlast_quiet_ones():
    reel = Reel(limit=80, window=10)
    for i in range(12):
        if i == 5:
            reel.deaths[38] += 30
        if i == 8:
            reel.deaths[62] += 2
        reel.add(_segment(10 * i, 10 * (i + 1), 10))
    assert {(0, 10), (20, 30), (30, 40)} <= set(_kept(reel))  # and the window before the deaths, as their run-up
    assert (60, 70) not in _kept(reel)


def test_a_segment_keeps_its_end_when_the_next_is_let_go_of():
    reel = Reel(limit=30, window=1)
    first = _segment(0, 10, 10)
    reel.add(first)
    following = _segment(10, 20, 10)
    for segment in (following, _segment(20, 30, 10), _segment(30, 40, 10)):
        reel.add(segment)
    assert (10, 20) not in _kept(reel)
    assert first.end is following.start.values


def test_steps_kept_lead_to_the_deaths_without_a_gap():
    reel = Reel(limit=10**9, window=10)
    for i in (0, 1, 4, 5, 6):
        reel.add(_segment(10 * i, 10 * (i + 1), 10))
    assert [s.first for s in reel.run_up(65, 500)] == [40, 50, 60]
    assert [s.first for s in reel.run_up(65, 25)] == [50, 60]
    assert reel.run_up(35, 500) == []


def _train(data, steps, **options):
    x, y = data
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
    drawn = torch.Generator().manual_seed(0)
    watch = relume.watch(model, optimizer, every=1, window=10, min_inputs=64, **options)
    for step in range(steps):
        rows = torch.randint(len(x), (256,), generator=drawn)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step, watch, model, optimizer
    watch.close()


def test_memory_stays_below_the_limit_and_counts_the_batches(data):
    limit = 2 * MIB
    most = 0
    for _, watch, _, _ in _train(data, 120, replay=limit):
        most = max(most, watch.replay.nbytes)
    assert limit / 2 < most <= limit * 1.2  # the segment in progress may pass it before it ends
    segments = watch.replay.recorder.reel.segments
    assert segments[0].first == 0
    assert segments[-1].last == 120
    own = sum(t.nbytes for t in (torch.empty(256, 64), torch.empty(256, dtype=torch.long)))
    per_step = [s.nbytes / (s.last - s.first) for s in segments]
    assert all(own < n < 2 * own for n in per_step)


def test_closing_takes_every_hook_and_mode_off(data):
    for _, watch, model, optimizer in _train(data, 3, replay=True):
        assert model._forward_pre_hooks
        assert optimizer._optimizer_step_pre_hooks
        assert watch.replay.nbytes > 0
        assert _get_current_function_mode_stack()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not _get_current_function_mode_stack()
    assert watch.replay.nbytes > 0


def test_an_error_in_the_loop_leaves_no_mode_behind(data):
    model = nn.Linear(64, 2)
    with pytest.raises(RuntimeError), relume.watch(model, replay=True):
        model(torch.randn(3, 5))
    assert not _get_current_function_mode_stack()
    assert not model._forward_hooks


def test_a_person_s_default_device_may_change_while_the_tape_is_on(data):
    for step, *_ in _train(data, 4, replay=True):
        torch.set_default_device("cpu" if step % 2 == 0 else None)
    assert not _get_current_function_mode_stack()


@pytest.fixture(scope="module")
def doomed(data):
    """Killed by its learning rate; asked in the midst of training and after it."""
    said = []
    for step, watch, model, _ in _train(data, 60, lr=4.0, replay=True):
        if step == 39:
            before = [t.clone() for t in (*model.parameters(), *(p.grad for p in model.parameters()))]
            random = torch.get_rng_state()
            said.append(watch.diagnose(confirm=True))
            after = [*model.parameters(), *(p.grad for p in model.parameters())]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert torch.equal(random, torch.get_rng_state())
    return watch, said[0], [p.detach().clone() for p in model.parameters()]


def test_confirming_in_the_midst_of_training_changes_no_bit_of_it(data, doomed):
    *_, model, _ = list(_train(data, 60, lr=4.0))[-1]
    assert all(torch.equal(a, b) for a, b in zip(doomed[2], model.parameters(), strict=True))


def test_a_finding_is_confirmed_during_the_training_and_after_it(doomed):
    watch, during, _ = doomed
    after = relume.diagnose(watch, confirm=True)
    for findings in (during, after):
        grave = [f for f in findings if f.severity == "error"]
        assert grave
        assert grave[0].code == "killed-by-step"
        assert grave[0].confirmation.confirmed is True
        assert grave[0].confirmation.dead < grave[0].confirmation.units / 2
    assert any(r.gain for r in after[0].remedies)
    assert "units lived in the replay, with" in str([r["gain"] for r in after[0].to_dict()["remedies"]])


def test_a_copied_or_pickled_finding_leaves_the_replay_behind(doomed):
    finding = doomed[0].diagnose()[0]
    for other in (copy.deepcopy(finding), pickle.loads(pickle.dumps(finding))):
        assert other == finding
        with pytest.raises(relume.RelumeError, match="replay=True"):
            other.confirm()
