"""A doomed training under guard ends close to a sane one; acts are judged, undone, logged, and nothing else changes."""

import copy
import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import relume
from relume.treat.guard import POLICIES, policy_of

# The module, which the function of its name hides.
GUARD = importlib.import_module("relume.treat.guard.guard")


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(data.target)[order]
    return x[:1347], y[:1347], x[1347:], y[1347:]


def net(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def fit(digits, model, *, lr=0.6, steps=320, seed=1, watching=None, log=True, schedule=None, **options):
    """Train on digits; `watching` makes the guard or watch, None leaves the training alone."""
    x, y, *_ = digits
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = schedule(optimizer) if schedule else None
    drawn = torch.Generator().manual_seed(seed)
    guard = watching(model, optimizer, every=2, window=20, **options) if watching else None
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=drawn)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        if guard is not None and log:
            guard.log(loss=float(loss.detach()))
    if guard is not None:
        guard.close()
    return guard, optimizer


def accuracy(digits, model):
    *_, x, y = digits
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def test_a_doomed_training_under_full_guard_ends_close_to_the_sane_one(digits):
    doomed, sane, guarded = net(), net(), net()
    fit(digits, doomed)
    fit(digits, sane, lr=0.02)
    guard, _ = fit(digits, guarded, watching=relume.guard, policy="full")
    low, high, ours = (accuracy(digits, m) for m in (doomed, sane, guarded))
    assert low < 0.7 < 0.9 < high, "the training is not doomed, or the sane one is not sane"
    assert ours >= low + 0.9 * (high - low)
    kinds = {act.kind for act in guard.acts}
    assert {"lr", "revive"} <= kinds
    assert all(act.outcome in ("kept", "undone", "failed", "pending") for act in guard.acts)
    assert guard.census().dead_fraction < 0.3


def test_until_it_acts_the_training_is_bitwise_as_without_it(digits):
    bare, guarded = net(), net()
    _, plain = fit(digits, bare, lr=0.02, steps=100)
    guard, optimizer = fit(digits, guarded, lr=0.02, steps=100, watching=relume.guard, policy="full", least=0.9)
    assert not guard.acts
    for a, b in zip(bare.parameters(), guarded.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(plain.state[a]["momentum_buffer"], optimizer.state[b]["momentum_buffer"])
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_the_same_seeds_give_the_same_acts_and_the_same_weights(digits):
    runs = []
    for _ in range(2):
        model = net()
        guard, _ = fit(digits, model, steps=160, watching=relume.guard, policy="full", seed=5)
        runs.append((guard.acts, [p.clone() for p in model.parameters()]))
    (acts, weights), (again, weights_again) = runs
    assert acts
    assert [act.to_dict() for act in acts] == [act.to_dict() for act in again]
    assert all(map(torch.equal, weights, weights_again))


def test_the_log_policy_says_what_it_would_do_and_changes_nothing(digits):
    bare, guarded = net(), net()
    fit(digits, bare, steps=120)
    guard, optimizer = fit(digits, guarded, steps=120, watching=relume.guard, policy="log")
    assert guard.acts
    assert {act.outcome for act in guard.acts} == {"would"}
    assert all(map(torch.equal, bare.parameters(), guarded.parameters()))
    assert optimizer.param_groups[0]["lr"] == 0.6
    said = [(act.kind, act.units) for act in guard.acts]
    assert all(said.count(one) == 1 for one in said), "the same thing is said once"


def test_gentle_revives_and_leaves_every_setting(digits):
    model = net()
    guard, optimizer = fit(digits, model, steps=120, watching=relume.guard)
    assert {act.kind for act in guard.acts} == {"revive"}
    assert optimizer.param_groups[0]["lr"] == 0.6
    assert any(act.treated for act in guard.acts)
    measured = [act.difference for act in guard.acts if act.treated]
    assert all(difference <= 1e-6 for difference in measured)


def planted(model, units=8):
    with torch.no_grad():
        model[0].bias[:units] = -20.0
    return model


def test_an_act_after_which_the_loss_is_higher_is_undone_entry_by_entry(digits):
    model = planted(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y, *_ = digits
    guard = relume.guard(model, optimizer, every=1, window=5, cooldown=2)
    before = copy.deepcopy(model.state_dict())
    for step in range(15):
        F.cross_entropy(model(x[:256]), y[:256]).backward()
        optimizer.step()
        guard.log(loss=1.0 if step < 5 else 3.0)  # said to be worse after the first act
        if step == 4:
            assert guard.acts[0].outcome == "pending"
            assert not torch.equal(model[0].weight, before["0.weight"])
    (act, *_) = guard.acts
    guard.close()
    assert act.outcome == "undone"
    assert (act.loss_before, act.loss_after) == (1.0, 3.0)
    assert set(act.units["1"]) >= set(range(8))
    pending = [a for a in guard.acts[1:] if a.treated]  # the units are dead again, so it has tried once more
    if not pending:
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_act_that_does_no_harm_is_kept_and_says_how_many_live(digits):
    model = planted(net())
    guard, _ = fit(digits, model, lr=0.02, steps=100, watching=relume.guard)
    act = guard.acts[0]
    assert act.why == ("born-dead", "1")
    assert act.outcome == "kept"
    assert set(act.units["1"]) >= set(range(8))
    assert act.alive >= 0.8 * act.treated
    assert act.loss_after < act.loss_before
    assert f"{act.alive} of {act.treated} alive" in str(act)


def test_without_a_loss_acts_are_kept_and_it_is_said_that_they_were_not_judged(digits):
    guard, _ = fit(digits, planted(net()), lr=0.02, steps=100, watching=relume.guard, log=False)
    assert guard.acts[0].outcome == "kept"
    assert "no finite loss was logged before it" in guard.acts[0].note
    assert math.isnan(guard.acts[0].loss_before)


def test_a_cut_learning_rate_survives_a_scheduler_which_goes_on_as_it_would(digits):
    rates = []
    model = net()

    def schedule(optimizer):
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0 if s < 100 else 0.5)

    guard, optimizer = fit(digits, model, steps=160, watching=relume.guard, policy="full", schedule=schedule)
    cuts = [act for act in guard.acts if act.kind == "lr"]
    assert cuts
    # The hook above comes before the guard's, so it sees what the scheduler has set.
    assert set(rates) == {0.6, 0.3}
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_the_rate_is_lowered_within_the_step_only():
    from relume.treat.guard.held import Held

    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0, weight_decay=0.5)
    held = Held(optimizer)
    held.lr, held.decay = 0.25, 0.0
    weight.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((3,), 0.75))
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    held.clip = 0.1
    weight.grad = torch.full((3,), 100.0)
    optimizer.step()
    assert float(weight.grad.norm()) == pytest.approx(0.1, rel=1e-4)
    held.release()
    weight.grad = torch.ones(3)
    before = weight.detach().clone()
    optimizer.step()
    assert torch.allclose(weight.detach(), before - 1.0 * (1 + 0.5 * before))


def test_a_site_that_dies_again_and_again_is_converted_under_full_and_left_alone_under_gentle(digits):
    x, y, *_ = digits
    for policy in ("full", "gentle"):
        model = planted(net(), units=40)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        guard = relume.guard(model, optimizer, policy=policy, every=1, window=4, tries=2)
        for _ in range(60):
            with torch.no_grad():  # something that buries the units each time
                model[0].bias[:40] = -20.0
            loss = F.cross_entropy(model(x[:256]), y[:256])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.log(loss=float(loss.detach()))
        guard.close()
        revivals = [act for act in guard.acts if act.kind == "revive" and "1" in act.units]
        assert len(revivals) == 2
        assert all(act.alive < act.treated / 2 for act in revivals)
        assert isinstance(model[1], relume.nn.DReLU if policy == "full" else nn.ReLU)


def test_what_can_not_be_done_is_written_down_and_training_goes_on(digits):
    class Odd(nn.Module):
        """The site's output is the model's output as well, so nothing can be zeroed behind it."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

        def forward(self, x):
            self.hidden = F.relu(self.a(x))
            return self.b(self.hidden) + self.hidden.cumsum(1)[:, :10]

    torch.manual_seed(0)
    model = Odd()
    with torch.no_grad():
        model.a.bias[:12] = -20.0
    guard, _ = fit(digits, model, lr=0.02, steps=60, watching=relume.guard)
    assert guard.acts
    assert guard.acts[0].outcome == "failed"
    assert guard.acts[0].note
    assert guard.acts[0].what.startswith("revive ")
    assert " of ':relu' by redo" in guard.acts[0].what
    assert guard.step == 60


def test_acts_are_in_the_run_file_and_outlive_the_run(digits, tmp_path):
    guard, _ = fit(digits, planted(net()), lr=0.02, steps=100, watching=relume.guard, save=tmp_path / "run")
    loaded = relume.load(tmp_path / "run")
    assert loaded.about["policy"] == "gentle"
    assert loaded.about["acts"] == [act.to_dict() for act in guard.acts]
    assert loaded.about["acts"]


class Halved(nn.Module):
    """Takes its input in two halves, by position or by name."""

    def __init__(self):
        super().__init__()
        self.body = planted(net())

    def forward(self, left, right=None, **others):
        return self.body(torch.cat([left, right], 1))


class Both(Halved):
    def forward(self, *halves, flip=False):
        return self.body(torch.cat(halves[::-1] if flip else halves, 1))


@pytest.mark.parametrize(
    ("kind", "call", "outcome"),
    [
        (Halved, lambda model, x: model(x[:, :32], right=x[:, 32:]), "kept"),
        (Halved, lambda model, x: model(right=x[:, 32:], left=x[:, :32]), "kept"),
        (Halved, lambda model, x: model(x[:, :32], x[:, 32:], extra=1), "kept"),
        (Both, lambda model, x: model(x[:, :32], x[:, 32:], flip=True), "failed"),
    ],
)
def test_a_model_is_treated_however_it_takes_its_arguments(digits, kind, call, outcome):
    x, y, *_ = digits
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with relume.guard(model, optimizer, every=1, window=10) as guard:
        for step in range(40):
            rows = slice(64 * (step % 20), 64 * (step % 20) + 64)
            loss = F.cross_entropy(call(model, x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            guard.log(loss=loss)
    assert guard.acts[0].outcome == outcome
    assert ("call it with all by name" in guard.acts[0].note) == (outcome == "failed")


def test_its_own_passes_are_none_of_the_runs_evaluation(digits):
    guard, _ = fit(digits, planted(net()), lr=0.02, steps=100, watching=relume.guard)
    assert guard.acts
    assert {phase for w in guard.windows for phase in w.counts} == {"train"}


def test_it_prints_as_a_person_reads_it(digits):
    guard, _ = fit(digits, planted(net()), lr=0.02, steps=60, watching=relume.guard)
    head, first, *_ = str(guard).splitlines()
    assert head.startswith("gentle guard of Sequential, step 60: ")
    assert first == f"  {guard.acts[0]}"


def test_weight_decay_that_there_is_none_of_is_not_switched_off_and_that_is_said_once(digits, monkeypatch):
    def found(watch, record):  # as a penalty in the loss is
        return [
            relume.Finding("weight-decay", "error", "1", tuple(range(40)), (0, watch.step), {"of": 64}, "They faded.")
        ]

    monkeypatch.setattr(GUARD, "diagnose", found)
    guard, _ = fit(digits, net(), lr=0.02, steps=200, watching=relume.guard, policy="full", may=("decay",))
    assert [(act.kind, act.what, act.outcome) for act in guard.acts] == [("decay", "switch weight decay off", "failed")]
    assert "must be a penalty in the loss" in guard.acts[0].note
    assert guard.acts[0].alive is None


def test_a_guard_without_a_diagnosis_is_refused():
    model = net()
    with pytest.raises(ValueError, match="leave diagnose=True"):
        relume.guard(model, torch.optim.SGD(model.parameters(), lr=0.1), diagnose=False)


def test_replicas_of_several_ranks_are_not_treated_each_by_itself(monkeypatch):
    monkeypatch.setattr(GUARD, "_ranks", lambda: 2)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(relume.RelumeError, match="replicas of several ranks would part"):
        relume.guard(model, optimizer)
    relume.guard(model, optimizer, sync=False).close()
    relume.guard(model, optimizer, policy="log").close()


def test_trouble_while_treating_does_not_end_the_training(digits, monkeypatch):
    def fail(*_, **__):
        raise relume.RelumeError("nothing can be found")

    monkeypatch.setattr(GUARD, "diagnose", fail)
    guard, _ = fit(digits, planted(net()), lr=0.02, steps=60, watching=relume.guard)
    assert guard.step == 60
    assert not guard.acts
    assert any("could not treat: nothing can be found" in note for note in guard.census().notes)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"policy": "brave"}, ValueError, "'gentle', 'full', 'log'"),
        ({"policy": 3}, TypeError, "relume.Policy"),
        ({"policy": relume.Policy, "optimizer": None}, TypeError, "optimizer"),
        ({"every": 0}, ValueError, "every"),
    ],
)
def test_wrong_arguments_are_named(wrong, error, says):
    model = net()
    optimizer = wrong.pop("optimizer", torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(error, match=says):
        relume.guard(model, optimizer, **wrong)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    "wrong", [{"least": 0}, {"cooldown": 0}, {"cooldown": 1, "patience": 3}, {"may": ("pray",)}, {"tolerance": -1}]
)
def test_a_policy_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        policy_of("gentle", **wrong)


def test_policies_may_do_what_they_say():
    assert POLICIES["gentle"].may == ("revive",)
    assert not POLICIES["full"].dry
    assert POLICIES["log"].may == POLICIES["full"].may
