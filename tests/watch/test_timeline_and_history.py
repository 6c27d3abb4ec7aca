"""Trainings whose deaths are planted by hand, so that every step of birth, death and revival is known.

A unit's bias is set before the forward pass of a step; +1 fires on every input, -100 on none. Weights are zero.
"""

import pytest
import torch
from torch import nn

import relume
from relume.errors import CensusMismatchError
from relume.watch import recording, store

ALIVE, BURIED = 1.0, -100.0
BATCH = 4


def train(lives, *, steps, every, window, min_inputs=1, save=None, evaluate=False):
    """`lives`: per unit, the step spans [a, b) in which it is buried. Returns the closed watch."""
    model = nn.Sequential(nn.Linear(2, len(lives)), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model[0].weight.zero_()
    with relume.watch(model, optimizer, every=every, window=window, min_inputs=min_inputs, save=save) as watch:
        for step in range(steps):
            buried = [any(a <= step < b for a, b in spans) for spans in lives]
            with torch.no_grad():
                model[0].bias.copy_(torch.tensor([BURIED if b else ALIVE for b in buried]))
            model(torch.randn(BATCH, 2)).sum().backward()
            optimizer.step()
            if evaluate:
                model.eval()
                with torch.no_grad():
                    model(torch.randn(2 * BATCH, 2))
                model.train()
    return watch


EVER = 10**9
LIVES = {
    "alive": [],
    "born dead": [(0, EVER)],
    "born dead, revived at 30": [(0, 30)],
    "dies at 17": [(17, EVER)],
    "dies at 12, revived at 33": [(12, 33)],
    "dies twice": [(6, 27), (40, EVER)],
    "a pause within one window": [(13, 17)],
    "a pause across two windows": [(8, 13)],
    "dead but for one step": [(0, 24), (25, EVER)],
    "dies at the very end": [(59, EVER)],
}


def truth(spans, steps, every, window):
    """What a timeline must say, found step by step without relume: a window is dead if no observed step fired."""
    born = dead = False
    judged, last, died, revived, deaths = False, -1, -1, -1, 0
    for start in range(0, steps, window):
        observed = [s for s in range(start, min(start + window, steps)) if s % every == 0]
        fired = [s for s in observed if not any(a <= s < b for a, b in spans)]
        if not observed:
            continue
        if fired:
            if dead:
                revived, died = fired[0], -1
            dead, last = False, fired[-1]
        elif not dead:
            dead, deaths, died = True, deaths + 1, last
            born = born or not judged
        judged = True
    return {
        "born_dead": born,
        "dead": dead,
        "died_at": died,
        "revived_at": revived,
        "last_fired": last,
        "deaths": deaths,
    }


@pytest.mark.parametrize(("every", "window"), [(1, 10), (3, 12), (3, 10), (1, 1), (5, 7)])
def test_every_birth_death_and_revival_is_dated_as_planted(every, window, tmp_path):
    steps = 60
    watch = train(LIVES.values(), steps=steps, every=every, window=window, save=tmp_path)
    for timeline in (watch.timeline("1"), relume.load(tmp_path).timeline("1")):
        for unit, (name, spans) in enumerate(LIVES.items()):
            expected = truth(spans, steps, every, window)
            found = {n: getattr(timeline, n)[unit].item() for n in expected}
            assert found == expected, name


def test_dates_in_plain_numbers():
    """The same, with the dates written out, for a window of 10 steps that are all observed."""
    timeline = train(LIVES.values(), steps=60, every=1, window=10).timeline("1")
    said = dict(zip(LIVES, (timeline.describe(i) for i in range(len(LIVES))), strict=True))
    assert said == {
        "alive": "alive throughout",
        "born dead": "born dead",
        "born dead, revived at 30": "born dead, revived at 30",
        "dies at 17": "died at 16",
        "dies at 12, revived at 33": "revived at 33",
        "dies twice": "revived at 27, died at 39",
        "a pause within one window": "alive throughout",
        "a pause across two windows": "alive throughout",
        "dead but for one step": "born dead, revived at 24, died at 24",
        "dies at the very end": "alive throughout",
    }
    assert timeline.deaths.tolist() == [0, 1, 1, 1, 1, 2, 0, 0, 2, 0]


def test_a_date_is_right_to_the_spacing_of_observed_steps():
    watch = train([[(17, EVER)]], steps=60, every=3, window=12)
    assert watch.timeline("1").died_at.tolist() == [15], "the last observed step at which it fired; 18 is the next"


def test_too_few_inputs_date_nothing():
    timeline = train([[(0, EVER)], [(10, EVER)]], steps=40, every=1, window=5, min_inputs=21).timeline("1")
    assert timeline.born_dead.tolist() == [False, False]
    assert timeline.dead.tolist() == [False, False]
    enough = train([[(0, EVER)], [(10, EVER)]], steps=40, every=1, window=5, min_inputs=20).timeline("1")
    assert enough.dead.tolist() == [True, True]


def test_a_timeline_once_read_does_not_change():
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(ALIVE)
    with relume.watch(model, every=1, window=2, min_inputs=1) as watch:
        model(torch.randn(4, 2)), model(torch.randn(4, 2))
        before = watch.timeline("1")
        with torch.no_grad():
            model[0].bias.fill_(BURIED)
        model(torch.randn(4, 2)), model(torch.randn(4, 2))
        assert before.dead.tolist() == [False]
        assert watch.timeline("1").dead.tolist() == [True]


def test_a_timeline_of_no_site_names_those_there_are():
    watch = train([[]], steps=2, every=1, window=2)
    with pytest.raises(CensusMismatchError, match=r"no site 'x'; sites: 1"):
        watch.timeline("x")


# History


def test_history_has_one_row_per_window_phase_and_site():
    watch = train([[], [(10, EVER)], [(0, 20)]], steps=25, every=2, window=10, evaluate=True)
    rows = watch.history()
    assert [(r["window"], r["phase"], r["first_step"], r["last_step"], r["complete"]) for r in rows] == [
        (0, "train", 0, 9, True), (0, "eval", 0, 9, True),
        (1, "train", 10, 19, True), (1, "eval", 10, 19, True),
        (2, "train", 20, 24, False), (2, "eval", 20, 24, False),
    ]  # fmt: skip
    train_rows = [r for r in rows if r["phase"] == "train"]
    assert [r["inputs"] for r in train_rows] == [20, 20, 12]
    assert [r["dead"] for r in train_rows] == [1, 2, 1]
    assert [r["firing_rate"] for r in train_rows] == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    assert [r["mean"] for r in train_rows] == pytest.approx([(1 + 1 - 100) / 3, (1 - 200) / 3, (1 - 100 + 1) / 3])
    assert {(r["site"], r["activation"], r["units"]) for r in rows} == {("1", "relu", 3)}
    # A step is the number of optimizer steps made: the evaluation after step 9 belongs to what came of it.
    assert sum(r["inputs"] for r in rows if r["phase"] == "eval") == 13 * 2 * BATCH


def test_a_site_that_a_window_did_not_reach_has_no_row_there_and_is_not_dead():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.use_b = True

        def forward(self, x):
            x = torch.relu(self.a(x))
            return torch.tanh(self.b(x)) if self.use_b else x

    model = Model()
    with relume.watch(model, every=1, window=2, min_inputs=1) as watch:
        for step in range(6):
            model.use_b = step < 2
            model(torch.randn(4, 2))
    assert [(r["window"], r["site"]) for r in watch.history()] == [
        (0, ":relu"), (0, ":tanh"), (1, ":relu"), (2, ":relu"),
    ]  # fmt: skip
    late = watch.census()[":tanh"]
    assert not late.reached
    assert late.state == ["unknown", "unknown"]
    assert not late.dead.any()


ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.GELU(), nn.Hardshrink(), nn.Sigmoid(), nn.LeakyReLU()]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("units", [1, 7, 64, 100])
def test_every_figure_of_history_is_that_of_the_windows_own_census(activation, units, tmp_path):
    """To the last bit, though it is worked out for many windows at once; with NaN, and windows of several kinds."""
    torch.manual_seed(units)
    model = nn.Sequential(nn.Linear(2, units), activation)
    with relume.watch(model, every=1, window=2, min_inputs=12, save=tmp_path) as watch:
        for step in range(30):
            with torch.no_grad():
                model[0].bias.normal_(0, 4)
                model[0].bias[: 1 + step % 3] = (BURIED, 30.0, float("nan"))[step % 5 % 3]
            model(torch.randn(1 if step % 7 == 0 else 40, 2) * (1e30 if step == 11 else 1.0))
    for told in (watch, relume.load(tmp_path)):
        rows = told.history()
        assert len(rows) == 15
        for window, row in zip(told.windows, rows, strict=True):
            one = told.census_of(window)["1"]
            tally = one.tally()
            expected = {
                "inputs": one.inputs, "samples": one.samples, "dead": int(one.dead.sum()), "unknown": tally["unknown"],
                "saturated": int(one.saturated.sum()), "linear": int(one.linear.sum()),
                "nonfinite": tally["non-finite"], "dormant": int(one.dormant().sum()),
                "firing_rate": float(one.firing_rate.mean()), "mean": float(one.mean.nanmean()),
                "std": float(one.std.nanmean()),
            }  # fmt: skip
            assert {k: repr(row[k]) for k in expected} == {k: repr(v) for k, v in expected.items()}
            assert [type(row[k]) for k in expected] == [type(v) for v in expected.values()]


@pytest.mark.parametrize("batch", [1, 3000, 10**9])
def test_history_is_the_same_however_many_windows_are_read_at_once(batch, monkeypatch, tmp_path):
    watch = train([[], [(10, EVER)], [(0, 20)]], steps=25, every=2, window=3, evaluate=True, save=tmp_path)
    whole = watch.history()
    monkeypatch.setattr(store, "_BATCH", batch)
    monkeypatch.setattr(recording, "_SPAN", batch)
    monkeypatch.setattr(recording, "_TOGETHER", batch % 7)
    assert watch.history() == relume.load(tmp_path).history() == whole
    assert len(whole) == 18


def test_history_as_plain_data_and_as_a_data_frame():
    history = train([[], [(0, EVER)]], steps=20, every=1, window=5).history()
    plain = history.to_dict()
    assert plain == list(history)
    plain[0]["dead"] = 99
    assert history[0]["dead"] == 1, "a copy"
    frame = history.to_pandas()
    assert frame.shape == (4, len(history[0]))
    assert frame["dead"].tolist() == [1, 1, 1, 1]
    assert frame["last_step"].tolist() == [4, 9, 14, 19]


# Coarsening


@pytest.mark.parametrize("steps", [40, 41, 47])
def test_a_coarser_history_keeps_totals_extremes_and_the_timeline(monkeypatch, steps):
    import sys

    lives = [*LIVES.values()]
    torch.manual_seed(0)
    fine = train(lives, steps=steps, every=1, window=2, evaluate=True)
    monkeypatch.setattr(sys.modules["relume.watch.watch"], "WINDOWS_LIMIT", 6)
    torch.manual_seed(0)
    coarse = train(lives, steps=steps, every=1, window=2, evaluate=True)
    assert len(coarse.windows) <= 7 < len(fine.windows)
    for phase in ("train", "eval"):
        a, b = (w.census("all", phase=phase)["1"].counts for w in (fine, coarse))
        for name in ("fired", "samples_fired", "max", "min", "first_fired", "last_fired", "nonfinite"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert (a.inputs, a.samples) == (b.inputs, b.samples)
        torch.testing.assert_close(a.mean, b.mean)
        torch.testing.assert_close(a.m2, b.m2)
        torch.testing.assert_close(a.output, b.output)
    assert fine.timeline("1").to_dict() == coarse.timeline("1").to_dict()
    assert sum(w.observed for w in coarse.windows) == steps
    latest = coarse.windows[-1]
    assert (latest.first_step, latest.last_step) == (fine.windows[-1].first_step, fine.windows[-1].last_step)
    assert [w.first_step for w in coarse.windows[1:]] == [w.last_step + 1 for w in coarse.windows[:-1]]


def test_memory_too_makes_the_history_coarser(monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["relume.watch.watch"], "MEMORY_LIMIT", 44 * 2 * 5)
    watch = train([[], []], steps=40, every=1, window=2)
    assert 3 < len(watch.windows) <= 6
    assert watch.census("all")["1"].inputs == 40 * BATCH
