"""On every member of the zoo: what the model computes stays, and the units live."""

import pytest
import torch

import relume

TOLERANCE = 1e-6


def moved(before, after):
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True))


def test_the_zoo_is_planted_as_it_says(planted):
    model, batch, units = planted
    census = relume.census(model, [batch], min_inputs=1)
    for site, numbers in units.items():
        assert {census[site].state[n] for n in numbers} <= {"dead", "stuck-at-top"}


@pytest.mark.parametrize("method", ["redo", "recentre", "rescale"])
def test_the_function_is_kept_and_the_units_fire(planted, method, outputs, state):
    model, batch, units = planted
    census = relume.census(model, [batch], min_inputs=1)
    before, numbers_before = outputs(model, batch), state(model)
    revival = relume.revive(model, census, units=units, batches=[batch], method=method)
    assert revival.units == units
    assert moved(before, outputs(model, batch)) <= TOLERANCE
    after = relume.census(model, [batch], min_inputs=1)
    fires = [float(after[site].firing_rate[n]) > 0 for site, numbers in units.items() for n in numbers]
    assert sum(fires) >= 0.8 * len(fires)
    revival.undo()
    assert state.same(numbers_before, state(model))


def test_whatever_the_units_say_the_output_does_not_hear_it(planted, outputs):
    """Once revived they are cut off: rewritten again, with no regard to the function, they change nothing."""
    model, batch, units = planted
    census = relume.census(model, [batch], min_inputs=1)
    before = outputs(model, batch)
    revival = relume.revive(model, census, units=units, batches=[batch], seed=1)
    first = relume.census(model, [batch], min_inputs=1)
    # Behind a norm that mixes units only the norm's own shift is the unit's alone.
    how = {"method": "recentre", "share": 0.9} if any(a.note for a in revival) else {"method": "redo", "seed": 2}
    relume.revive(model, census, units=units, batches=[batch], preserve=False, **how)
    second = relume.census(model, [batch], min_inputs=1)
    assert moved(before, outputs(model, batch)) <= 2 * TOLERANCE
    assert all(float(first[s].mean[n]) != float(second[s].mean[n]) for s, numbers in units.items() for n in numbers)


def test_other_units_and_other_inputs_are_as_they_were(planted, outputs):
    """The function is kept for fresh inputs too, as far as the units are dead on them."""
    model, batch, units = planted
    census = relume.census(model, [batch], min_inputs=1)
    torch.manual_seed(1)
    fresh = torch.randn_like(batch)
    before = outputs(model, fresh)
    relume.revive(model, census, units=units, batches=[batch])
    assert moved(before, outputs(model, fresh)) <= TOLERANCE
