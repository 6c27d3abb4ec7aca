"""`relume.diagnose` as one calls it: of a living, closed or loaded run, and where there is nothing to say."""

import inspect
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.errors import EmptyCensusError


def mlp(units=32):
    return nn.Sequential(nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10))


def trained(model, digits, *, lr=0.05, steps=60, call=lambda model, x: model(x), **options):
    x, y = digits
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    drawn = torch.Generator().manual_seed(3)
    watch = relume.watch(model, optimizer, **{"every": 2, "window": 20, **options})
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=drawn)
        loss = F.cross_entropy(call(model, x[rows].flatten(1)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return watch


def codes(findings):
    return {f.code for f in findings}


def test_the_name_is_the_function_whatever_of_its_folder_is_imported():
    import relume.diagnose.causes
    from relume.diagnose import Finding, diagnose

    assert inspect.isfunction(relume.diagnose)
    assert relume.diagnose is diagnose
    assert relume.Finding is Finding
    assert inspect.ismodule(sys.modules["relume.diagnose"])


def test_living_closed_and_loaded_runs_are_asked_alike(digits, tmp_path):
    watch = trained(mlp(), digits, lr=1.0, save=tmp_path)
    living = relume.diagnose(watch)
    watch.close()
    closed, loaded = watch.diagnose(), relume.load(tmp_path).diagnose()
    assert "killed-by-step" in codes(living)
    assert [f.to_dict() for f in living] == [f.to_dict() for f in closed] == [f.to_dict() for f in loaded]
    assert relume.diagnose(relume.load(tmp_path)) == loaded


def test_findings_travel_to_other_processes(digits):
    with trained(mlp(), digits, lr=1.0) as watch:
        findings = watch.diagnose()
    assert findings
    assert pickle.loads(pickle.dumps(findings)) == findings


def test_a_callback_may_ask_after_each_window(digits):
    asked = []
    trained(mlp(), digits, lr=1.0, on_window=lambda watch, window: asked.append(watch.diagnose())).close()
    assert len(asked) == 3
    assert "killed-by-step" in codes(asked[-1])


def test_asking_changes_nothing_of_what_follows(digits):
    def weights(**options):
        torch.manual_seed(1)
        model = mlp()
        trained(model, digits, lr=0.5, **options).close()
        return model.state_dict()

    asked = weights(on_window=lambda watch, window: watch.diagnose())
    assert all(torch.equal(value, asked[name]) for name, value in weights().items())


def test_a_watch_without_a_record_says_how_to_have_one(digits, tmp_path):
    watch = trained(mlp(), digits, diagnose=False, save=tmp_path)
    with pytest.raises(relume.RelumeError, match=r"leave out diagnose=False"):
        watch.diagnose()
    watch.close()
    with pytest.raises(relume.RelumeError, match=r"written with diagnose=False"):
        relume.load(tmp_path).diagnose()


def test_a_replay_of_a_loaded_run_takes_the_living_one(digits, tmp_path):
    trained(mlp(), digits, save=tmp_path).close()
    with pytest.raises(relume.RelumeError, match="needs the living run"):
        relume.load(tmp_path).diagnose(confirm=True)


def test_a_replay_of_a_watch_that_keeps_nothing_for_it_names_the_option(digits):
    watch = trained(mlp(), digits)
    with pytest.raises(relume.RelumeError, match=r"replay=True"):
        watch.diagnose(confirm=True)
    watch.close()


@pytest.mark.parametrize("run", [nn.ReLU(), None, "runs/x"])
def test_what_is_no_run_is_named(run):
    with pytest.raises(TypeError, match=rf"not {type(run).__name__}; for a trained model"):
        relume.diagnose(run)


def test_before_any_training_pass_there_is_nothing_to_diagnose(tmp_path):
    model = mlp()
    watch = relume.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), save=tmp_path)
    for run in (watch, relume.load(tmp_path)):
        with pytest.raises(EmptyCensusError, match="no training pass was observed"):
            run.diagnose()
    watch.close()


def test_evaluation_alone_gives_nothing_to_diagnose():
    model = mlp().eval()
    with relume.watch(model, every=1, window=4) as watch, torch.no_grad():
        for _ in range(4):
            model(torch.randn(8, 64))
    with pytest.raises(EmptyCensusError, match="only evaluation"):
        watch.diagnose()


@pytest.mark.filterwarnings("ignore:Linear applied no activation")
def test_without_any_activation_there_is_nothing_to_diagnose():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with relume.watch(model, optimizer, every=1, window=4) as watch:
        for _ in range(8):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
    with pytest.raises(EmptyCensusError, match="no activation that relume knows"):
        watch.diagnose()


def test_before_the_first_window_has_ended_no_death_is_told(digits):
    model = mlp()
    with torch.no_grad():
        model[0].bias[:20] = -50.0
    watch = trained(model, digits, steps=12, every=1)
    assert not watch.windows
    assert codes(watch.diagnose()) <= {"sparse"}
    watch.close()
    assert "born-dead" in codes(watch.diagnose())


def test_a_training_that_diverged_says_so_first_and_as_json(digits, tmp_path):
    import json

    model = nn.Sequential(nn.Linear(64, 16), nn.ELU(), nn.Linear(16, 16), nn.ELU(), nn.Linear(16, 10))
    trained(model, digits, lr=1e6, save=tmp_path).close()
    findings = relume.load(tmp_path).diagnose()
    assert findings[0].code == "exploding-gradient"
    assert findings[0].severity == "error"
    json.dumps([f.to_dict() for f in findings], allow_nan=False)


class Branches(nn.Module):
    """The second branch runs only for a while."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 16), nn.Linear(64, 16), nn.Linear(16, 10)
        self.calls = 0
        with torch.no_grad():
            self.b.bias[:12] = -50.0

    def forward(self, x):
        self.calls += 1
        y = F.relu(self.a(x))
        return self.out(y + F.relu(self.b(x)) if self.calls <= 20 else y)


def test_a_site_that_the_last_window_did_not_reach_keeps_what_was_known_of_it(digits, tmp_path):
    watch = trained(Branches(), digits, save=tmp_path)
    watch.close()
    findings = watch.diagnose()
    born = [f for f in findings if f.code == "born-dead"]
    assert [len(f.units) for f in born] == [12]
    assert [f.to_dict() for f in relume.load(tmp_path).diagnose()] == [f.to_dict() for f in findings]


def test_a_site_that_is_first_seen_late_is_diagnosed(digits, tmp_path):
    model = Branches()
    model.forward = lambda x, forward=model.forward: _late(model, forward, x)
    watch = trained(model, digits, save=tmp_path)
    watch.close()
    assert {f.site for f in watch.diagnose() if f.code == "born-dead"} == {":relu#1"}
    assert [f.to_dict() for f in relume.load(tmp_path).diagnose()] == [f.to_dict() for f in watch.diagnose()]


def _late(model, forward, x):
    model.late = getattr(model, "late", 0) + 1
    model.calls = 0 if model.late > 20 else 99
    return forward(x)


@pytest.mark.parametrize("how", ["living", "loaded"])
def test_where_the_record_was_stopped_before_it_saw_anything_it_says_why(digits, tmp_path, how):
    model = mlp()
    watch = relume.watch(model, every=1, window=4, save=tmp_path)
    watch.record.stop("planted trouble")
    for _ in range(8):
        model(torch.randn(8, 64))
    watch.close()
    with pytest.raises(relume.RelumeError, match="nothing was recorded to diagnose by: planted trouble"):
        relume.diagnose(watch if how == "living" else relume.load(tmp_path))


# Confirmed by a replay


@pytest.fixture
def confirmed(digits, tmp_path):
    """A watch that was asked to confirm while its training went on, and its run file."""
    torch.manual_seed(0)
    watch = trained(mlp(), digits, lr=1.0, replay=True, save=tmp_path)
    yield watch, watch.diagnose(confirm=True), tmp_path
    watch.close()


def test_what_a_replay_said_stays_with_the_watch_and_in_the_file(confirmed):
    watch, said, folder = confirmed
    assert any(f.confirmation is not None for f in said)
    assert [f.to_dict() for f in sorted(watch.diagnose(), key=str)] == [f.to_dict() for f in sorted(said, key=str)]
    loaded = relume.load(folder).diagnose()
    assert [f.to_dict() for f in sorted(loaded, key=str)] == [f.to_dict() for f in sorted(said, key=str)]
    assert not any(f._replay for f in loaded)


def test_what_a_replay_says_after_the_end_is_added_to_the_file(digits, tmp_path):
    torch.manual_seed(0)
    watch = trained(mlp(), digits, lr=1.0, replay=True, save=tmp_path)
    watch.close()
    before, unread = relume.load(tmp_path), relume.load(tmp_path)
    assert all(f.confirmation is None for f in before.diagnose())
    said = watch.diagnose(confirm=True)
    assert any(f.confirmation is not None for f in said)
    run = relume.load(tmp_path)
    assert sorted(map(str, (f.to_dict() for f in run.diagnose()))) == sorted(map(str, (f.to_dict() for f in said)))
    assert run.status == "finished"
    assert run.history() == watch.history()
    assert unread.diagnose() == run.diagnose(), "opened before, asked after"


def test_of_other_units_a_replay_has_said_nothing(confirmed):
    watch, *_ = confirmed
    from dataclasses import replace

    key, before = next((k, f) for k, f in watch.record.confirmed.items() if f.confirmation is not None)
    watch.record.confirmed[key] = replace(before, units=before.units[1:])
    again = next(f for f in watch.diagnose() if (f.code, f.site) == key)
    watch.record.confirmed[key] = before
    assert again.confirmation is None
