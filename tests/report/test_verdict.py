"""The verdict in words agrees with the census, and says what it can't know."""

from dataclasses import replace

import torch
from torch import nn

import relume
from relume.diagnose import Finding
from relume.report import verdict
from relume.report.diagnosed import Diagnosed
from relume.report.verdict import _named


def test_a_healthy_network_is_called_so(make_run):
    assert verdict(make_run()) == (
        "Nothing is the matter: no unit is dead: all 16 that could be judged fired in the last window (steps 15–19), "
        "on 320 inputs, in 2 sites."
    )


def test_what_was_not_diagnosed_is_not_called_well(make_run):
    assert verdict(make_run(diagnose=False)).startswith("No unit is dead: all 16 that could be judged")


def test_a_handful_of_dead_units_is_called_ordinary_with_its_number(make_run):
    said = verdict(make_run(kill=[(0, 0, [1], -100.0)]))
    assert said.startswith(
        "Nothing is the matter: 1 of 16 units are dead (6.2 %), all in site body.1 (1 of 8), and so few"
    )


def test_one_in_eight_is_no_longer_called_ordinary(make_run):
    run = make_run(kill=[(0, 0, [1, 2], -100.0)])
    told = Diagnosed(tuple(replace(f, severity="note") for f in run.diagnose()))
    assert verdict(run, told).startswith("Nothing grave is the matter: 2 of 16 units are dead (12 %), all in site")
    assert "ordinary" not in verdict(run, told)


def test_the_gravest_cause_is_named_with_its_units(make_run):
    run = make_run(kill=[(6, 0, range(5), -100.0)])
    told = [replace(f, code="weight-decay") for f in run.diagnose() if len(f.units) == 5]
    assert len(told) == 1
    assert "5 died at step 5; all were let fade by weight decay. In the last" in verdict(run, Diagnosed(tuple(told)))


def test_what_is_no_death_is_said_first(make_run):
    run = make_run()
    finding = Finding("vanishing-gradient", "warning", "", (), (0, 19), {"layers": 3}, "The gradient hardly arrives.")
    said = verdict(run, Diagnosed((finding,)))
    assert said.startswith("The gradient hardly arrives. No unit is dead")


def test_a_cause_that_is_not_known_is_said_to_be_so(make_run):
    run = make_run(kill=[(6, 0, range(5), -100.0)])
    told = tuple(replace(f, code="unknown-cause") for f in run.diagnose() if len(f.units) == 5)
    assert "5 died at step 5; what killed them can't be told." in verdict(run, Diagnosed(told))


def test_deaths_are_counted_placed_and_dated(make_run):
    said = verdict(make_run(kill=[(0, 0, [1], -100.0), (7, 0, [2, 3], -100.0), (12, 0, [5], -100.0)]))
    assert said.startswith(
        "4 of 16 units are dead (25 %), all in site body.1 (4 of 8); 1 was born dead, 3 died between steps 6 and 11"
    )
    assert "none of 320 inputs, so it fires on fewer than 1 in 107 new ones" in said  # 1 / (1 - 0.05 ** (1 / 320))


def test_a_silent_site_is_said_to_cut_the_signal(make_run):
    said = verdict(make_run(kill=[(6, 0, range(8), -100.0)]))
    assert "among them all of site body.1, where the signal is cut" in said


def test_two_silent_sites_are_both_named(make_run):
    said = verdict(make_run(kill=[(6, 0, range(8), -100.0), (6, 2, range(8), -100.0)]))
    assert "all of sites body.1 and body.3, so the signal is cut" in said


def test_the_site_with_the_largest_share_is_named_when_several_have_dead_units(make_run):
    said = verdict(make_run(kill=[(6, 0, [0], -100.0), (6, 2, [0, 1, 2], -100.0)]))
    assert "most in site body.3 (3 of 8)" in said


def test_too_few_inputs_are_no_death_and_the_verdict_says_how_many_are_missing(make_run):
    said = verdict(make_run(kill=[(0, 0, [0, 1], -100.0)], rows=8))
    assert said.startswith("No unit is dead: all 14 that could be judged")
    assert "2 units that did not fire could not be judged: 40 inputs seen, 256 needed." in said


def test_divergence_is_named_and_not_taken_for_death(make_run):
    said = verdict(make_run(kill=[(12, 0, [4], float("nan"))]))
    assert "NaN or infinite pre-activations were seen in sites body.1 and body.3: the training has diverged." in said
    assert "dead (" not in said


def test_activations_without_a_flat_zone_cannot_die():
    model = nn.Sequential(nn.Linear(2, 4), nn.GELU())
    with relume.watch(model, every=1, window=5) as watch:
        for _ in range(5):
            model(torch.randn(64, 2)).sum().backward()
    assert verdict(watch) == "No unit can die: none of the 1 site seen has a flat zone."


def test_an_evaluation_only_recording_has_a_verdict_too():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU()).eval()
    with relume.watch(model, every=1, window=5) as watch, torch.no_grad():
        model(torch.randn(512, 2))
    assert "512 inputs" in verdict(watch)


def test_a_site_that_was_not_reached_is_named():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(2, 4)
            self.act_a, self.act_b = nn.ReLU(), nn.ReLU()

        def forward(self, x, left):
            return self.act_a(self.a(x)) if left else self.act_b(self.b(x))

    model = Forked()
    with relume.watch(model, every=1, window=5) as watch:
        for step in range(10):
            model(torch.randn(64, 2), step < 5).sum().backward()
    assert "Not reached in this window: site act_a." in verdict(watch)


def test_many_silent_sites_are_named_in_short():
    assert _named(["a"]) == "site a"
    assert _named(["a", "b", "c"]) == "sites a, b and c"
    assert _named(["a", "b", "c", "d", "e"]) == "sites a, b, c and 2 more"
